//! A walk over a whole segment that does not end at damage: it names what is damaged, looks for the next batch behind
//! it, and goes on. Recovery and reads stop at the first bad byte, as they must; whoever asks what is left wants all of
//! it.
//!
//! Reads a window at a time, at most [`WINDOW_BYTES`] or two of the largest batches.

use std::{io, ops::ControlFlow};

use crate::{
    limits::{BATCH_HEADER_BYTES, SEGMENT_HEADER_BYTES},
    log::{
        last_segment::{WINDOW_AND_BATCH_BYTES, WINDOW_BYTES},
        scan::{Check, Padding, Step, Walk},
        segment::SegmentHeader,
    },
    record::{BatchHeader, check_stored, check_stored_header, find_stored_header},
    types::{Incarnation, Offset},
};

/// A file that is only read.
pub trait Source {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Reads `len` bytes at `position`; fewer at the end of the file, none beyond it.
    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>>;
}

/// What a walk comes by, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A batch whose header is intact.
    Batch {
        /// Where it begins.
        position: u64,
        /// Its header.
        header: BatchHeader,
        /// All its bytes.
        bytes: &'a [u8],
        /// Why its body cannot be trusted; `None` if it can.
        damage: Option<String>,
    },
    /// Bytes that are no batch of this life of the file.
    Gap {
        /// Where they begin.
        position: u64,
        /// Where the next batch begins, or the file ends.
        end: u64,
        /// Whether all of them are zero.
        zeros: bool,
        /// Why no batch stands there.
        reason: String,
    },
}

/// Bytes without a batch, while the next batch is looked for.
struct Gap {
    position: u64,
    zeros: bool,
    reason: String,
}

/// Shows every piece of a segment file to `see`, until that breaks it off. Gives where reading failed, if it did.
pub fn walk_segment<S: Source>(
    source: &S,
    header: &SegmentHeader,
    see: &mut impl FnMut(Piece<'_>) -> ControlFlow<()>,
) -> Result<(), (u64, io::Error)> {
    let size = source.size().map_err(|error| (0, error))?;
    let (mut at, mut window) = (SEGMENT_HEADER_BYTES, WINDOW_BYTES);
    let mut gap: Option<Gap> = None;
    // Where the last intact batch ended, and the offset behind it.
    let mut end = (at, header.base_offset);
    while at < size {
        let bytes = source.read_at(at, window).map_err(|error| (at, error))?;
        if bytes.is_empty() {
            // Somebody cut the file since its size was asked for.
            break;
        }
        let last = bytes.len() < window || at + bytes.len() as u64 >= size;
        let start = at;
        if let Some(open) = gap.take() {
            let (next, still) = leave_gap(&bytes, start, last, (open, header.incarnation));
            at = next;
            match still {
                Ok(still) => gap = Some(still),
                Err(ended) => {
                    if see(ended).is_break() {
                        return Ok(());
                    }
                }
            }
            continue;
        }
        match walk_window((&bytes, start, last), header, &mut end, see) {
            ControlFlow::Break(()) => return Ok(()),
            ControlFlow::Continue((next, found)) => (at, gap) = (next, found),
        }
        // A batch larger than the window is read again, with one that holds it.
        window = if at == start { WINDOW_AND_BATCH_BYTES } else { WINDOW_BYTES };
    }
    if let Some(Gap { position, zeros, reason }) = gap {
        // The walk is over, whatever is said.
        let _ = see(Piece::Gap { position, end: size.max(position), zeros, reason });
    }
    Ok(())
}

/// The first intact batch of a segment with records of this range only: it has the incarnation of the file, if the
/// header does not say.
pub(super) fn first_batch<S: Source>(source: &S, (first, end): (Offset, Offset)) -> io::Result<Option<BatchHeader>> {
    let size = source.size()?;
    let mut at = SEGMENT_HEADER_BYTES;
    while at < size {
        // Holds every batch that begins in the first part of it; the next window begins behind that part.
        let bytes = source.read_at(at, WINDOW_AND_BATCH_BYTES)?;
        let mut from = 0;
        while !is_zero(&bytes[from..])
            && let Some((found, header)) = find_stored_header(&bytes[from..])
        {
            let begin = from + found;
            let fits = header.base_offset >= first && header.end_offset() <= end;
            let batch = bytes.get(begin..begin + header.batch_len()).filter(|_| fits);
            if batch.is_some_and(|batch| check_stored(batch).is_ok()) {
                return Ok(Some(header));
            }
            from = begin + 1;
        }
        at += WINDOW_BYTES as u64;
    }
    Ok(None)
}

/// Walks the batches of a window, the last intact one before which ended with `end`. Returns where to go on, and the
/// gap that begins there, if one does.
fn walk_window(
    (bytes, start, last): (&[u8], u64, bool),
    segment: &SegmentHeader,
    end: &mut (u64, Offset),
    see: &mut impl FnMut(Piece<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), (u64, Option<Gap>)> {
    let at = |position: u64| &bytes[((position - start) as usize).min(bytes.len())..];
    // The byte at its beginning belongs to a gap even if a header stands there: of a batch that is cut off.
    let gap = |position: u64, reason| {
        let zeros = at(position).first().is_none_or(|byte| *byte == 0);
        ControlFlow::Continue((position + 1, Some(Gap { position, zeros, reason })))
    };
    let mut walk = Walk::new(bytes, start, (segment.block_bytes, segment.incarnation), Check::Whole);
    loop {
        match walk.step() {
            Step::Batch(batch) => {
                let (position, header) = (batch.position, batch.header);
                let bytes = &at(position)[..header.batch_len()];
                *end = (position + header.batch_len() as u64, header.end_offset());
                see(Piece::Batch { position, header, bytes, damage: None })?;
            }
            Step::End { position } => return ControlFlow::Continue((position, None)),
            Step::CutOff { position, need } if last => {
                return gap(position, format!("the file ends within {need} bytes of a batch"));
            }
            Step::CutOff { position, .. } => return ControlFlow::Continue((position, None)),
            Step::Invalid { position, reason } => {
                // As recovery does: whatever stands in padding, the log goes on behind it.
                match walk.pass_padding(position, *end) {
                    Padding::Passed(end) => {
                        see(Piece::Gap { position, end, zeros: false, reason })?;
                        continue;
                    }
                    Padding::Unclear if !last => return ControlFlow::Continue((position, None)),
                    Padding::Unclear | Padding::No => {}
                }
                let rest = at(position);
                match check_stored_header(rest) {
                    Ok(header) if header.incarnation == segment.incarnation => {
                        // The walk came to the body, so all of it is here; and its length is right.
                        let Some(bytes) = rest.get(..header.batch_len()) else { return gap(position, reason) };
                        see(Piece::Batch { position, header, bytes, damage: Some(reason) })?;
                        let next = position + header.batch_len() as u64;
                        walk = Walk::new(at(next), next, (segment.block_bytes, segment.incarnation), Check::Whole);
                    }
                    _ => return gap(position, reason),
                }
            }
        }
    }
}

/// Looks for the end of `gap` in a window. Returns where to go on, and the gap: still open, or as it turned out.
fn leave_gap<'a>(
    bytes: &[u8],
    start: u64,
    last: bool,
    (mut gap, incarnation): (Gap, Incarnation),
) -> (u64, Result<Gap, Piece<'a>>) {
    let mut from = 0;
    // Prepared room is megabytes of zeros: not looked at byte by byte.
    while !is_zero(&bytes[from..])
        && let Some((at, header)) = find_stored_header(&bytes[from..])
    {
        if header.incarnation == incarnation {
            let end = start + (from + at) as u64;
            let zeros = gap.zeros && is_zero(&bytes[..from + at]);
            return (end, Err(Piece::Gap { position: gap.position, end, zeros, reason: gap.reason }));
        }
        from += at + 1;
    }
    // A header may begin in the last bytes and end in the next window.
    let seen = if last { bytes.len() } else { bytes.len() - BATCH_HEADER_BYTES };
    gap.zeros &= is_zero(&bytes[..seen]);
    (start + seen as u64, Ok(gap))
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::fixture::P,
        record::{BatchBuilder, Codec, ServerFields, stamp},
        types::LeaderEpoch,
    };

    impl Source for Vec<u8> {
        fn size(&self) -> io::Result<u64> {
            Ok(self.len() as u64)
        }

        fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
            let from = (position as usize).min(self.len());
            Ok(self[from..(from + len).min(self.len())].to_vec())
        }
    }

    const HEADER: usize = SEGMENT_HEADER_BYTES as usize;
    const LIFE: u32 = 7;

    /// A batch with `values` in a record each.
    fn batch(offset: u64, values: &[usize], life: u32) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None);
        values.iter().for_each(|len| builder.push(None, &vec![7; *len], &[], 1).unwrap());
        let mut batch = builder.finish().unwrap().to_vec();
        let (base_offset, incarnation) = (Offset(offset), Incarnation(life));
        let fields = ServerFields { base_offset, durable_hint: Offset(0), leader_epoch: LeaderEpoch(1), incarnation };
        stamp(&mut batch, fields);
        batch
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Seen {
        Batch { position: usize, offset: u64, damaged: bool },
        Gap { position: usize, end: usize, zeros: bool },
    }

    fn intact(position: usize, offset: u64) -> Seen {
        Seen::Batch { position, offset, damaged: false }
    }

    fn walk(bytes: &Vec<u8>) -> Vec<Seen> {
        let header = SegmentHeader {
            partition: P,
            block_bytes: 512,
            base_offset: Offset(0),
            created_ms: 0,
            incarnation: Incarnation(LIFE),
            leader_epoch: LeaderEpoch(1),
        };
        let mut seen = Vec::new();
        let mut see = |piece: Piece<'_>| {
            seen.push(match piece {
                Piece::Batch { position, header, damage, .. } => {
                    let damaged = damage.is_some();
                    Seen::Batch { position: position as usize, offset: header.base_offset.0, damaged }
                }
                Piece::Gap { position, end, zeros, .. } => {
                    Seen::Gap { position: position as usize, end: end as usize, zeros }
                }
            });
            ControlFlow::Continue(())
        };
        walk_segment(bytes, &header, &mut see).unwrap();
        seen
    }

    #[test]
    fn every_batch_is_seen_once_wherever_windows_end() {
        let (mut bytes, mut expected, mut offset) = (vec![0; HEADER], Vec::new(), 0);
        // Larger than a window in the middle, and not a divisor of one before and behind.
        for values in
            [[300_000; 1].as_slice(); 16].into_iter().chain([[1_000_000; 5].as_slice()]).chain([[9].as_slice()])
        {
            expected.push(intact(bytes.len(), offset));
            bytes.extend_from_slice(&batch(offset, values, LIFE));
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            offset += values.len() as u64;
        }
        assert_eq!(walk(&bytes), expected);
        let last = expected.len() - 2;
        let Seen::Batch { position, .. } = expected[last] else { unreachable!() };
        bytes[position + 4_900_000] ^= 1;
        expected[last] = Seen::Batch { position, offset: 16, damaged: true };
        assert_eq!(walk(&bytes), expected);
    }

    #[test]
    fn the_batch_behind_a_gap_is_found_wherever_a_window_ends_in_it() {
        let first = batch(0, &[9], LIFE);
        let gap = HEADER + first.len().next_multiple_of(512);
        for short in [0, 1, 40, BATCH_HEADER_BYTES - 1, BATCH_HEADER_BYTES, BATCH_HEADER_BYTES + 1] {
            // The search begins behind the first byte of the gap.
            let end = gap + 1 + WINDOW_BYTES - short;
            let mut bytes = vec![0; end];
            bytes[HEADER..HEADER + first.len()].copy_from_slice(&first);
            bytes.extend_from_slice(&batch(1, &[200], LIFE));
            let expected = |zeros| [intact(HEADER, 0), Seen::Gap { position: gap, end, zeros }, intact(end, 1)];
            assert_eq!(walk(&bytes), expected(true), "{short} bytes of it are in the first window");
        }
    }

    #[test]
    fn a_gap_is_of_zeros_only_if_all_of_it_is() {
        let first = batch(0, &[9], LIFE);
        let gap = HEADER + first.len().next_multiple_of(512);
        let end = gap + WINDOW_BYTES + 8192;
        for behind in [Some(batch(1, &[200], LIFE)), None] {
            for place in [Some(gap), Some(gap + 1), Some(gap + WINDOW_BYTES / 2), Some(end - 1), None] {
                let mut bytes = vec![0; end];
                bytes[HEADER..HEADER + first.len()].copy_from_slice(&first);
                place.into_iter().for_each(|at| bytes[at] = 5);
                bytes.extend_from_slice(behind.as_deref().unwrap_or_default());
                let mut expected = vec![intact(HEADER, 0), Seen::Gap { position: gap, end, zeros: place.is_none() }];
                expected.extend(behind.is_some().then(|| intact(end, 1)));
                assert_eq!(walk(&bytes), expected, "with {place:?}");
            }
        }
    }

    #[test]
    fn batches_of_an_earlier_life_belong_to_the_gap() {
        let first = batch(0, &[9], LIFE);
        let gap = HEADER + first.len().next_multiple_of(512);
        let stale = batch(1, &[200], LIFE - 1);
        let mut bytes = vec![0; gap];
        bytes[HEADER..HEADER + first.len()].copy_from_slice(&first);
        for damaged in [false, true] {
            bytes.extend_from_slice(&stale);
            *bytes.last_mut().unwrap() ^= u8::from(damaged);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        let end = bytes.len();
        bytes.extend_from_slice(&batch(1, &[200], LIFE));
        assert_eq!(walk(&bytes), [intact(HEADER, 0), Seen::Gap { position: gap, end, zeros: false }, intact(end, 1)]);
        bytes.truncate(end + 100);
        let cut_off = Seen::Gap { position: end, end: end + 100, zeros: false };
        let whole = [intact(HEADER, 0), Seen::Gap { position: gap, end, zeros: false }, cut_off];
        assert_eq!(walk(&bytes), whole, "and what is cut off is a gap of its own");
    }

    #[test]
    fn the_first_batch_is_the_first_intact_one_with_records_of_the_segment() {
        let range = (Offset(100), Offset(200));
        let mut damaged = batch(100, &[100], LIFE);
        damaged[90] ^= 1;
        let mut bytes = vec![0; HEADER];
        let others =
            [batch(99, &[9, 9], 1), batch(199, &[9, 9], 2), damaged, batch(101, &[9], LIFE), batch(102, &[9], 3)];
        others.iter().for_each(|batch| bytes.extend_from_slice(batch));
        let found = first_batch(&bytes, range).unwrap().unwrap();
        assert_eq!((found.base_offset, found.incarnation), (Offset(101), Incarnation(LIFE)));
        let behind: usize = others[3..].iter().map(Vec::len).sum();
        bytes.truncate(bytes.len() - behind);
        assert_eq!(first_batch(&bytes, range).unwrap(), None);
        assert_eq!(first_batch(&vec![0; HEADER], range).unwrap(), None);
    }

    #[test]
    fn the_first_batch_is_found_wherever_a_window_ends_in_it() {
        for short in [1, BATCH_HEADER_BYTES - 1, BATCH_HEADER_BYTES, 200] {
            let mut bytes = vec![0; HEADER + WINDOW_AND_BATCH_BYTES - short];
            bytes.extend_from_slice(&batch(100, &[1000], LIFE));
            let found = first_batch(&bytes, (Offset(100), Offset(101))).unwrap();
            assert_eq!(found.map(|header| header.base_offset), Some(Offset(100)), "{short} bytes in the first window");
        }
    }
}

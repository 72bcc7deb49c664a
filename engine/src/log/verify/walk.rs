//! A walk over a whole segment that does not end at damage: it names what is damaged, looks for the next batch behind
//! it, and goes on. Recovery and reads stop at the first bad byte, as they must; whoever asks what is left wants all of
//! it.
//!
//! Reads a window at a time, at most [`WINDOW_BYTES`] or two of the largest batches.

use std::{io, ops::ControlFlow};

use crate::{
    limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, SEGMENT_HEADER_BYTES},
    log::{
        last_segment::WINDOW_BYTES,
        scan::{Check, Step, Walk},
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
        match walk_window(&bytes, start, last, (header, see)) {
            ControlFlow::Break(()) => return Ok(()),
            ControlFlow::Continue((next, found)) => (at, gap) = (next, found),
        }
        // A batch larger than the window is read again, with one that holds it.
        window = if at == start { WINDOW_BYTES + BATCH_BYTES_MAX } else { WINDOW_BYTES };
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
    // Holds any batch that begins in the first part of it.
    let window = WINDOW_BYTES + BATCH_BYTES_MAX;
    let mut at = SEGMENT_HEADER_BYTES;
    while at < size {
        let bytes = source.read_at(at, window)?;
        let last = bytes.len() < window || at + bytes.len() as u64 >= size;
        let (mut from, mut next) = (0, at + (bytes.len() as u64).saturating_sub(BATCH_HEADER_BYTES as u64 - 1));
        while !is_zero(&bytes[from..])
            && let Some((found, header)) = find_stored_header(&bytes[from..])
        {
            let begin = from + found;
            let fits = header.base_offset >= first && header.end_offset() <= end;
            match bytes.get(begin..begin + header.batch_len()) {
                Some(batch) if fits && check_stored(batch).is_ok() => return Ok(Some(header)),
                None if fits && !last && begin > 0 => {
                    next = at + begin as u64;
                    break;
                }
                _ => from = begin + 1,
            }
        }
        if last {
            break;
        }
        at = next;
    }
    Ok(None)
}

/// Walks the batches of a window. Returns where to go on, and the gap that begins there, if one does.
fn walk_window(
    bytes: &[u8],
    start: u64,
    last: bool,
    (segment, see): (&SegmentHeader, &mut impl FnMut(Piece<'_>) -> ControlFlow<()>),
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
                see(Piece::Batch { position, header, bytes, damage: None })?;
            }
            Step::End { position } => return ControlFlow::Continue((position, None)),
            Step::CutOff { position, need } if last => {
                return gap(position, format!("the file ends within {need} bytes of a batch"));
            }
            Step::CutOff { position, .. } => return ControlFlow::Continue((position, None)),
            Step::Invalid { position, reason } => {
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
    gap.zeros &= is_zero(bytes);
    // A header may begin in the last bytes and end in the next window.
    let seen = if last { bytes.len() } else { bytes.len() - (BATCH_HEADER_BYTES - 1) };
    (start + seen as u64, Ok(gap))
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

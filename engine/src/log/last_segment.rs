//! The judgement on the last segment of a log: where it ends, and what is damaged. The cases are those of
//! [`super::recovery`], which acts on them; `verify` reports them by the same rules, so that the two never disagree.
//!
//! It reads nothing itself: it says which bytes it wants next and is given them. So it is the same for a server, for
//! the simulation, and for a tool that only looks.

use std::path::PathBuf;

use thiserror::Error;

use super::{
    index::Index,
    reigns::Reigns,
    scan::{Check, Padding, Step, Walk},
    segment::{SegmentHeader, SegmentHeaderError},
};
use crate::{
    limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, DEVICE_BLOCK_BYTES_MAX, SEGMENT_HEADER_BYTES},
    record::{BatchHeader, ProducerHistory, check_stored_header},
    testing::bug::{PlantedBug, planted},
    types::{LeaderEpoch, LogUid, Offset, PartitionIndex},
};

/// What a scan reads at once. Large enough for full bandwidth, and a multiple of any block.
pub const WINDOW_BYTES: usize = 4 << 20;

/// A window that holds every batch that begins in the first [`WINDOW_BYTES`] of it.
pub const WINDOW_AND_BATCH_BYTES: usize = WINDOW_BYTES + BATCH_BYTES_MAX;

/// Damage that no loss of power explains. The log is served up to it, and accepts no writes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{} is damaged at byte {position} (case {case}): {reason}", path.display())]
pub struct Damage {
    /// The row of the table above.
    pub case: char,
    /// The segment file.
    pub path: PathBuf,
    /// Where in it.
    pub position: u64,
    /// What is wrong.
    pub reason: String,
}

/// What stands at the beginning of a last segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// The header that belongs there.
    Intact(SegmentHeader),
    /// Case D: no header and no room for a batch.
    Nothing,
    /// Case E: why it is not the header that belongs there.
    Damaged(String),
}

impl Beginning {
    /// Judges `block`, the first [`BEGINNING_BYTES`] of a file of `size` bytes, which should be that of the log (if its
    /// number is known), the partition and the base offset of `place`.
    pub fn of(block: &[u8], size: u64, place: (Option<LogUid>, PartitionIndex, Offset)) -> Self {
        let (log, index, base_offset) = place;
        match SegmentHeader::decode(block) {
            Ok(header)
                if log.is_none_or(|log| log == header.partition.log)
                    && header.partition.index == index
                    && header.base_offset == base_offset =>
            {
                Beginning::Intact(header)
            }
            Ok(header) => Beginning::Damaged(format!(
                "its header says partition {} and base offset {}",
                header.partition, header.base_offset
            )),
            Err(SegmentHeaderError::Blank | SegmentHeaderError::Damaged(_)) if is_bare(block, size) => {
                Beginning::Nothing
            }
            Err(error) => Beginning::Damaged(error.to_string()),
        }
    }
}

/// How much of a file [`Beginning::of`] wants to see.
pub const BEGINNING_BYTES: usize = (SEGMENT_HEADER_BYTES + DEVICE_BLOCK_BYTES_MAX) as usize;

/// Whether a file of `size` bytes has nothing but a header block: what a crash leaves that comes before the header is
/// synced. A recovery that ended while it waited for writes under way leaves a block of zeros behind it.
fn is_bare(beginning: &[u8], size: u64) -> bool {
    let behind = beginning.get(SEGMENT_HEADER_BYTES as usize..).unwrap_or_default();
    size <= BEGINNING_BYTES as u64 && behind.iter().all(|byte| *byte == 0)
}

/// What the last segment turned out to hold.
pub struct LastSegment {
    /// The offset after its last intact record.
    pub end_offset: Offset,
    /// The position after its last flush group, padding included.
    pub end_position: u64,
    /// The end of the last batch's bytes, before its padding: where a torn tail is cut off. What is left of its block
    /// reads as zero then, else the next scan would find the rest of a torn batch there.
    pub cut_position: u64,
    /// How far zeros follow.
    pub prepared_end: u64,
    /// Whether anything but zeros follows, which must be cut off.
    pub torn: bool,
    /// The highest durable hint in it: records before that were durable.
    pub durable_hint: Offset,
    /// The newest reign in it.
    pub epoch: LeaderEpoch,
    /// Those that its batches are of.
    pub reigns: Reigns,
    /// Where its batches are.
    pub index: Index,
    /// What they say of their producers.
    pub producers: ProducerHistory,
    /// Why it must not be written.
    pub damage: Option<Damage>,
}

/// The walk over a last segment: its batches in order, then whatever is behind them.
pub struct LastScan {
    path: PathBuf,
    header: SegmentHeader,
    size: u64,
    position: u64,
    window: usize,
    /// The last read came to the end of the file before it should.
    ended: bool,
    found: LastSegment,
    /// E: the highest durable hint seen.
    durable_hint: Offset,
    /// The first place without an intact batch, and why.
    invalid: Option<(u64, String)>,
    /// Whether all bytes behind that place are zero.
    zeros_follow: bool,
    /// Where the next batch of a group that was met behind that place begins.
    group_at: u64,
    /// Where the first batch behind that place stands that should stand at it.
    misplaced: Option<u64>,
}

impl LastScan {
    /// A scan of the file at `path` with `header` and `size` bytes.
    pub fn new(path: PathBuf, header: SegmentHeader, size: u64) -> Self {
        let found = LastSegment {
            end_offset: header.base_offset,
            end_position: SEGMENT_HEADER_BYTES,
            cut_position: SEGMENT_HEADER_BYTES,
            // The file may end within a block: after a cut, or a crash while recovery waited for writes. Zeros are
            // written from a block on.
            prepared_end: size - size % u64::from(header.block_bytes),
            torn: false,
            durable_hint: header.base_offset,
            epoch: header.leader_epoch,
            reigns: Reigns::default(),
            index: Index::default(),
            producers: ProducerHistory::default(),
            damage: None,
        };
        LastScan {
            path,
            header,
            size,
            position: SEGMENT_HEADER_BYTES,
            window: WINDOW_BYTES,
            ended: false,
            found,
            durable_hint: header.base_offset,
            invalid: None,
            zeros_follow: true,
            group_at: 0,
            misplaced: None,
        }
    }

    /// Records before `durable` were durable, as whoever wrote them knows.
    pub fn knowing(mut self, durable: Offset) -> LastScan {
        self.durable_hint = self.durable_hint.max(durable);
        self
    }

    /// Where to read next, and how much; `None` when the scan is over. Both are aligned for any device.
    pub fn wants(&self) -> Option<(u64, usize)> {
        let over = self.ended || self.position >= self.size || self.found.damage.is_some();
        (!over).then_some((self.position & !(SEGMENT_HEADER_BYTES - 1), self.window))
    }

    /// Takes what was read where [`LastScan::wants`] said; fewer bytes at the end of the file.
    pub fn take(&mut self, bytes: &[u8]) {
        let position = self.position;
        let skip = (position & (SEGMENT_HEADER_BYTES - 1)) as usize;
        if bytes.len() <= skip {
            self.ended = true;
            return;
        }
        let last_window = bytes.len() < self.window;
        let next = if self.invalid.is_none() {
            self.batches(&bytes[skip..], position, last_window)
        } else {
            self.behind(&bytes[skip..], position, last_window)
        };
        // A batch larger than the window is read again, with a window of its size.
        self.window = if next == position { self.window * 2 } else { WINDOW_BYTES };
        self.position = next;
    }

    /// Takes the batches of a window. Returns where to go on.
    fn batches(&mut self, bytes: &[u8], start: u64, last_window: bool) -> u64 {
        let segment = (self.header.block_bytes, self.header.incarnation);
        let check = if planted(PlantedBug::TrustStaleTail) { Check::Known } else { Check::Whole };
        let mut walk = Walk::new(bytes, start, segment, check);
        loop {
            match walk.step() {
                Step::Batch(batch)
                    if batch.header.base_offset == self.found.end_offset
                        || (planted(PlantedBug::ZerosForPadding)
                            && batch.header.base_offset > self.found.end_offset) =>
                {
                    self.found.index.note(batch.header.base_offset, batch.position, batch.header.max_timestamp_ms);
                    if let Some(mark) = batch.header.producer_mark() {
                        self.found.producers.note(&mark, batch.header.base_offset);
                    }
                    self.found.end_offset = batch.header.end_offset();
                    self.found.end_position = batch.position + batch.header.batch_len() as u64;
                    self.found.epoch = self.found.epoch.max(batch.header.leader_epoch);
                    self.found.reigns.note(batch.header.leader_epoch, batch.header.base_offset);
                    self.durable_hint = self.durable_hint.max(batch.header.durable_hint);
                }
                Step::Batch(batch) => {
                    let (offset, expected) = (batch.header.base_offset, self.found.end_offset);
                    let reason = format!("a batch with offset {offset} where {expected} should follow");
                    if offset < expected {
                        let path = self.path.clone();
                        self.found.damage = Some(Damage { case: 'F', path, position: batch.position, reason });
                        return batch.position;
                    }
                    // Bytes between the two are missing, and what is left of them looks like padding. Torn or rotten: E
                    // tells.
                    self.durable_hint = self.durable_hint.max(batch.header.durable_hint);
                    return self.stop(batch.position, reason);
                }
                Step::CutOff { position, need } if last_window => {
                    return self.stop(position, format!("the file ends within {need} bytes of a batch"));
                }
                Step::CutOff { position, .. } | Step::End { position } => return position,
                Step::Invalid { position, reason } => {
                    match walk.pass_padding(position, (self.found.end_position, self.found.end_offset)) {
                        Padding::Passed(_) => {}
                        Padding::Unclear if !last_window => return position,
                        Padding::Unclear | Padding::No => return self.stop(position, reason),
                    }
                }
            }
        }
    }

    fn stop(&mut self, position: u64, reason: String) -> u64 {
        self.invalid = Some((position, reason));
        // If only the body of the batch there is damaged, its header leads on through its group.
        self.group_at = position;
        position
    }

    /// Looks through a window behind the first invalid place: is there anything but zeros, and are there batches that
    /// know of a durable end beyond it? Every flush group begins at a block, so these are the places where a batch can
    /// be found again; from there its group is followed, whose later batches may know of more.
    fn behind(&mut self, bytes: &[u8], start: u64, last_window: bool) -> u64 {
        self.zeros_follow &= bytes.iter().all(|byte| *byte == 0);
        let end = start + bytes.len() as u64;
        self.follow(bytes, start);
        let block = u64::from(self.header.block_bytes);
        for position in (start.next_multiple_of(block)..end).step_by(block as usize) {
            if position >= self.group_at {
                self.group_at = position;
                self.follow(bytes, start);
            } else {
                // Within a group, where a batch could stand that overwrote it. Not followed: each byte is met once.
                self.note_hint(&bytes[(position - start) as usize..], position);
            }
        }
        // A header that goes on in the next window.
        let is_cut_off = self.group_at < end && end - self.group_at < BATCH_HEADER_BYTES as u64;
        if is_cut_off && !last_window { self.group_at } else { end }
    }

    /// Follows batches from `group_at` on, by their headers alone, as far as they begin in these bytes.
    fn follow(&mut self, bytes: &[u8], start: u64) {
        while let Some(rest) = self.group_at.checked_sub(start).and_then(|at| bytes.get(at as usize..))
            && let Some(header) = self.note_hint(rest, self.group_at)
        {
            self.group_at += header.batch_len() as u64;
        }
    }

    /// Takes what the batch at the beginning of `bytes`, which is `place` of the file, says, if one stands there.
    fn note_hint(&mut self, bytes: &[u8], place: u64) -> Option<BatchHeader> {
        let header = check_stored_header(bytes).ok()?;
        if header.incarnation != self.header.incarnation {
            return None;
        }
        self.durable_hint = self.durable_hint.max(header.durable_hint);
        // Behind garbage in the padding of the last group, the next one stands where it belongs.
        let next_group = self.found.end_position.next_multiple_of(u64::from(self.header.block_bytes));
        let is_elsewhere = self.invalid.as_ref().is_some_and(|(invalid, _)| ![*invalid, next_group].contains(&place));
        if is_elsewhere && header.base_offset == self.found.end_offset {
            self.misplaced.get_or_insert(place);
        }
        Some(header)
    }

    /// What was found, once nothing more is wanted.
    pub fn verdict(mut self) -> LastSegment {
        let block = u64::from(self.header.block_bytes);
        self.found.cut_position = self.found.end_position;
        self.found.durable_hint = self.durable_hint;
        self.found.end_position = self.found.end_position.next_multiple_of(block);
        let is_short = self.durable_hint > self.found.end_offset;
        let too_early = (self.found.cut_position, "the file ends".to_owned());
        let Some((position, reason)) = self.invalid.or_else(|| is_short.then_some(too_early)) else {
            self.found.prepared_end = self.found.prepared_end.max(self.found.end_position);
            return self.found;
        };
        if is_short && !planted(PlantedBug::CutOffAtRot) {
            let reason = format!("{reason}; records up to {} were durable", self.durable_hint);
            let path = self.path.clone();
            self.found.damage.get_or_insert(Damage { case: 'C', path, position, reason });
        } else if let Some(misplaced) = self.misplaced {
            // No flush that was cut off leaves that: whatever is behind a batch has a larger offset.
            let reason = format!("the batch with offset {} stands here and not at {position}", self.found.end_offset);
            let path = self.path.clone();
            self.found.damage.get_or_insert(Damage { case: 'F', path, position: misplaced, reason });
        }
        self.found.torn = !self.zeros_follow;
        if self.found.torn {
            self.found.prepared_end = self.found.end_position;
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::fixture::{batch_of, header_at},
        record::{ServerFields, stamp},
    };

    #[test]
    fn a_file_without_a_header_is_nothing_only_as_long_as_nothing_stands_behind_it() {
        let place = (None, PartitionIndex(0), Offset(0));
        let mut bytes = vec![0; BEGINNING_BYTES];
        for size in [0, 512, SEGMENT_HEADER_BYTES, BEGINNING_BYTES as u64] {
            let read = &bytes[..(size as usize).max(512)];
            assert_eq!(Beginning::of(read, size, place), Beginning::Nothing, "{size} bytes");
        }
        let longer = Beginning::of(&bytes, BEGINNING_BYTES as u64 + 512, place);
        assert!(matches!(longer, Beginning::Damaged(_)), "a segment that was in use");
        bytes[SEGMENT_HEADER_BYTES as usize + 9] = 1;
        let batch = Beginning::of(&bytes, BEGINNING_BYTES as u64, place);
        assert!(matches!(batch, Beginning::Damaged(_)), "something stands behind the header");
    }

    const BLOCK: usize = 512;

    /// The judgement on a segment with these groups of batches: for each batch its offset, its durable hint and its
    /// length. `spoil` gets the file and where its batches begin.
    fn judge(groups: &[&[(u64, u64, usize)]], spoil: impl Fn(&mut Vec<u8>, &[usize])) -> LastSegment {
        judge_knowing(Offset(0), groups, spoil)
    }

    /// The same if all before `durable` is known to have been.
    fn judge_knowing(
        durable: Offset,
        groups: &[&[(u64, u64, usize)]],
        spoil: impl FnOnce(&mut Vec<u8>, &[usize]),
    ) -> LastSegment {
        let header = header_at(0);
        let (mut file, mut starts) = (vec![0; SEGMENT_HEADER_BYTES as usize], Vec::new());
        for group in groups {
            for (offset, hint, len) in *group {
                let (base_offset, durable_hint, at) = (Offset(*offset), Offset(*hint), file.len());
                let (leader_epoch, incarnation) = (header.leader_epoch, header.incarnation);
                starts.push(at);
                file.extend_from_slice(&batch_of(*len));
                stamp(&mut file[at..], ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
            }
            file.resize(file.len().next_multiple_of(BLOCK), 0);
        }
        file.resize(file.len() + (1 << 20), 0);
        spoil(&mut file, &starts);
        let mut scan = LastScan::new("f".into(), header, file.len() as u64).knowing(durable);
        while let Some((position, len)) = scan.wants() {
            let position = position as usize;
            scan.take(&file[position.min(file.len())..(position + len).min(file.len())]);
        }
        scan.verdict()
    }

    #[test]
    fn nothing_is_a_torn_tail_that_ends_before_what_is_known_to_be_durable() {
        let groups: [&[_]; 2] = [&[(0, 0, 300)], &[(1, 0, 300)]];
        type Spoil = fn(&mut Vec<u8>, usize);
        let spoils: [Spoil; 3] = [
            |file, at| file[at + 200] ^= 1,
            // As if it had never been written.
            |file, at| file[at..].fill(0),
            |file, at| file.truncate(at),
        ];
        for spoil in spoils {
            for (known, case) in [(0, None), (1, None), (2, Some('C'))] {
                let found = judge_knowing(Offset(known), &groups, |file, starts| spoil(file, starts[1]));
                assert_eq!((found.end_offset, case_of(&found)), (Offset(1), case), "known up to {known}");
            }
        }
        let mut len = 0;
        let found = judge_knowing(Offset(2), &groups, |file, starts| {
            len = starts[0] + 300;
            file.truncate(len);
        });
        assert_eq!(found.damage.map(|damage| damage.position), Some(len as u64), "the padding is not there");
        let whole = judge_knowing(Offset(2), &groups, |_, _| ());
        assert_eq!((whole.end_offset, case_of(&whole)), (Offset(2), None));
    }

    fn case_of(found: &LastSegment) -> Option<char> {
        found.damage.as_ref().map(|damage| damage.case)
    }

    #[test]
    fn a_durable_hint_is_found_wherever_in_a_group_behind_damage_it_stands() {
        // The hint is in the last batch only, which does not begin at a block.
        let groups: [&[_]; 3] = [&[(0, 0, 300)], &[(1, 0, 300), (2, 0, 300)], &[(3, 0, 300), (4, 2, 300)]];
        for (hit, at) in [(0, 200), (0, 20), (1, 200), (1, 20), (2, 200), (2, 20)] {
            let found = judge(&groups, |file, starts| file[starts[hit] + at] ^= 1);
            let expected = (hit < 2).then_some('C');
            assert_eq!((found.end_offset.0, case_of(&found)), (hit as u64, expected), "batch {hit}, byte {at}");
            assert_eq!(found.durable_hint, Offset(2));
        }
        // Also in the group whose first batch has a damaged body.
        let found = judge(&[&[(0, 0, 300), (1, 0, 300), (2, 1, 300)]], |file, starts| file[starts[0] + 200] ^= 1);
        assert_eq!(case_of(&found), Some('C'));
    }

    #[test]
    fn headers_are_followed_from_one_window_to_the_next() {
        // The last header of the group begins in the one and ends in the other, or is cut off by no window.
        for short in [0, 10, 79, 80, 81] {
            // Damage at the beginning of a window is read again with a larger one; this is behind a batch, so that the
            // next window begins with the block of the damage.
            let end = SEGMENT_HEADER_BYTES as usize + WINDOW_BYTES;
            let rest = WINDOW_BYTES - 2 * BLOCK - short;
            let (count, len) = (2000, rest / 2001);
            let mut group: Vec<_> = (2..=count + 1).map(|offset| (offset, 0, len)).collect();
            group.push((count + 2, 0, rest - 2000 * len));
            group.push((count + 3, 3, 300));
            let found = judge(&[&[(0, 0, 300)], &[(1, 0, 300)], &group], |file, starts| {
                assert_eq!(starts[2003], end - short);
                file[starts[1] + 200] ^= 1
            });
            assert_eq!((found.durable_hint, case_of(&found)), (Offset(3), Some('C')), "{short} bytes before the end");
        }
    }

    #[test]
    fn a_header_of_another_version_is_never_taken_for_a_file_that_was_only_created() {
        let mut bytes = vec![0; BEGINNING_BYTES];
        bytes[..4].copy_from_slice(b"PYS2");
        for size in [SEGMENT_HEADER_BYTES, BEGINNING_BYTES as u64, BEGINNING_BYTES as u64 + 512] {
            let beginning = Beginning::of(&bytes, size, (None, PartitionIndex(0), Offset(0)));
            assert_eq!(beginning, Beginning::Damaged("the header block has format version 2".to_owned()), "{size}");
        }
    }

    #[test]
    fn the_next_batch_in_a_wrong_place_is_no_flush_that_was_cut_off() {
        let groups: [&[_]; 3] = [&[(0, 0, 300)], &[(1, 0, 300)], &[(2, 0, 300)]];
        let moved = judge(&groups, |file, starts| {
            file.copy_within(starts[2]..starts[2] + BLOCK, starts[2] + 8 * BLOCK);
            file[starts[2]..starts[2] + BLOCK].fill(0);
        });
        assert_eq!((moved.end_offset, case_of(&moved)), (Offset(2), Some('F')));
        let lost = judge(&groups, |file, starts| file[starts[1]..starts[1] + BLOCK].fill(0));
        assert_eq!((lost.end_offset, case_of(&lost)), (Offset(1), None), "a batch with a larger offset is left");
        let torn = judge(&groups, |file, starts| file[starts[2] + 200] ^= 1);
        assert_eq!((torn.end_offset, case_of(&torn)), (Offset(2), None), "it stands where it belongs");
    }

    #[test]
    fn garbage_in_the_padding_of_a_group_neither_ends_the_log_nor_puts_the_next_group_in_a_wrong_place() {
        let groups: [&[_]; 3] = [&[(0, 0, 300)], &[(1, 0, 300)], &[(2, 0, 300)]];
        for garbage in [1, 100, 212] {
            let spoil = |file: &mut Vec<u8>, at: usize| file[at + 300..at + 300 + garbage].fill(9);
            let found = judge(&groups, |file, starts| spoil(file, starts[0]));
            assert_eq!((found.end_offset.0, case_of(&found), found.torn), (3, None, false), "{garbage} bytes");
            // Power was lost: the group before was whole but for its padding, the next one was not.
            let torn = judge(&groups, |file, starts| {
                spoil(file, starts[0]);
                file[starts[1] + 200] ^= 1;
            });
            assert_eq!((torn.end_offset.0, case_of(&torn), torn.torn), (1, None, true), "{garbage} bytes");
            assert_eq!(torn.cut_position, SEGMENT_HEADER_BYTES + 300);
            let last = judge(&groups, |file, starts| spoil(file, starts[2]));
            assert_eq!((last.end_offset.0, case_of(&last), last.torn), (3, None, true), "{garbage} bytes");
        }
        let later = judge(&groups, |file, starts| {
            file[starts[0] + 300..starts[2]].fill(9);
        });
        assert_eq!((later.end_offset.0, case_of(&later)), (1, None), "a batch with a larger offset is left");
    }

    #[test]
    fn garbage_in_padding_is_passed_wherever_a_window_ends() {
        for blocks in 0..4 {
            // The next group begins so many blocks before the end of the window, or right behind it.
            let filled = WINDOW_BYTES - blocks * BLOCK;
            let len = (filled - BLOCK) / 2000;
            let mut group: Vec<_> = (0..2000).map(|offset| (offset, 0, len)).collect();
            group.push((2000, 0, filled - 2000 * len - 100));
            let found = judge(&[&group, &[(2001, 0, 1200)]], |file, starts| {
                assert_eq!(starts[2001], SEGMENT_HEADER_BYTES as usize + filled);
                file[starts[2001] - 100..starts[2001]].fill(9);
            });
            assert_eq!((found.end_offset.0, case_of(&found), found.torn), (2002, None, false), "{blocks} blocks");
        }
    }

    #[test]
    fn a_batch_of_an_earlier_offset_where_the_next_should_stand_is_no_flush_that_was_cut_off() {
        for earlier in [0, 1] {
            let found = judge(&[&[(0, 0, 300)], &[(1, 0, 300)], &[(earlier, 0, 300)]], |_, _| ());
            assert_eq!((found.end_offset, case_of(&found)), (Offset(2), Some('F')), "offset {earlier}");
            assert_eq!(found.damage.unwrap().position, SEGMENT_HEADER_BYTES + 2 * BLOCK as u64);
        }
    }

    #[test]
    fn a_file_that_ends_within_a_header_behind_damage_is_judged_by_what_is_before_it() {
        for (hint, case) in [(2, Some('C')), (0, None)] {
            for len in [1, 40, BATCH_HEADER_BYTES - 1, BATCH_HEADER_BYTES, BATCH_HEADER_BYTES + 1] {
                let groups: [&[_]; 3] = [&[(0, 0, 300)], &[(1, hint, 300), (2, 0, 300)], &[(3, 0, 300)]];
                let found = judge(&groups, |file, starts| {
                    file[starts[0] + 200] ^= 1;
                    file.truncate(starts[3] + len);
                });
                assert_eq!((found.end_offset, case_of(&found)), (Offset(0), case), "{len} bytes of a header");
                assert!(found.torn);
            }
        }
    }
}

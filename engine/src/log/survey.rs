//! A check of stored bytes that does not end at damage: every byte is checked, every intact batch is shown, and what
//! lies between them is named with the records that are lost in it.
//!
//! Behind damage nothing says how long a batch was, so the next one is looked for: an intact batch of this life of the
//! file, whose offsets fit between what was expected and what follows the surveyed bytes. Which of several it is, if a
//! drive wrote some to a wrong place, [`super::chain`] says. A client that stores bytes that look like such a batch
//! inside a record can deceive it only when the very batch that holds them is damaged.
//!
//! Pure: it says which bytes it wants next and is given them. Reads, the scrub, the rebuilding of an index and the
//! recovery of a damaged log all ask it, so that they never disagree about what is lost.

use std::collections::VecDeque;

use super::{
    chain::{Place, Run, Runs},
    last_segment::{WINDOW_AND_BATCH_BYTES, WINDOW_BYTES},
    scan::{Check, Located, Step, Walk},
    segment::SegmentHeader,
};
use crate::{
    record::{BatchHeader, check_stored_header},
    types::Offset,
};

/// Bytes of a segment file in which records are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Where the damage begins in the file.
    pub position: u64,
    /// Where the next intact batch begins, or the surveyed bytes end.
    pub end_position: u64,
    /// The first record that is lost.
    pub from: Offset,
    /// The record after the last that is lost; `from` where only bytes without a meaning were hit.
    pub to: Offset,
    /// What is wrong.
    pub reason: String,
}

/// How many records are lost, and in how many places: the order in which two readings of the same place are better.
pub(super) fn records_in(losses: &[Lost]) -> (u64, usize) {
    (losses.iter().map(|lost| lost.to.0 - lost.from.0).sum(), losses.len())
}

/// What a survey comes by, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An intact batch; its offset is the one that is due.
    Batch(Located),
    /// Records that are lost.
    Lost(Lost),
}

/// Bytes without a batch, while the next one is looked for.
struct Gap {
    position: u64,
    reason: String,
}

/// See the module.
pub struct Survey {
    segment: SegmentHeader,
    at: u64,
    end: u64,
    window: usize,
    /// How large the window is, if no batch needs more.
    window_bytes: usize,
    /// The offset that is due.
    expected: Offset,
    /// The offset that follows the surveyed bytes; the largest there is if nobody knows.
    bound: Offset,
    gap: Option<Gap>,
    /// Where the last batch ends that was shown, or is lost alone.
    behind: u64,
    /// What belongs to the log of the window that was looked through last.
    plan: Option<Plan>,
    check: Check,
}

/// What of a window behind damage belongs to the log, as far as it was not shown yet.
struct Plan {
    runs: VecDeque<Run>,
    /// How many bytes of the window were looked through.
    seen: usize,
    /// Whether a batch begins behind these that is not here whole.
    is_cut_off: bool,
    /// Whether there were more runs than are compared at once.
    is_full: bool,
}

impl Survey {
    /// A survey of the bytes from `start`, where a batch with the offset `first` should begin, to `end`, behind which
    /// `bound` should follow.
    pub fn new(segment: &SegmentHeader, (start, end): (u64, u64), (first, bound): (Offset, Offset)) -> Self {
        Survey {
            segment: *segment,
            at: start,
            end,
            window: WINDOW_BYTES,
            window_bytes: WINDOW_BYTES,
            expected: first,
            bound,
            gap: None,
            behind: start,
            plan: None,
            check: Check::Whole,
        }
    }

    /// One that asks for so many bytes at once, or more where a batch is larger.
    pub fn in_windows_of(self, bytes: usize) -> Self {
        Survey { window: bytes, window_bytes: bytes, ..self }
    }

    /// One that is given all its bytes at once.
    pub fn in_one_piece(self) -> Self {
        self.in_windows_of(usize::MAX)
    }

    /// One whose batches are believed by their headers: for bytes that were checked before.
    pub fn believing(self) -> Self {
        Survey { check: Check::Known, ..self }
    }

    /// Which bytes to give it next: where they begin, and how many. `None` when it has seen all.
    pub fn wants(&self) -> Option<(u64, usize)> {
        let left = if self.is_complete() { 0 } else { self.end.saturating_sub(self.at) };
        (left > 0).then(|| (self.at, usize::try_from(left).unwrap_or(usize::MAX).min(self.window)))
    }

    /// Whether all records were shown or are lost. What stands behind them was cut off.
    fn is_complete(&self) -> bool {
        self.bound != Offset(u64::MAX) && self.expected >= self.bound
    }

    /// The offset after the last record that was shown.
    pub fn expected(&self) -> Offset {
        self.expected
    }

    /// Takes the bytes that it [`wants`](Survey::wants), all it can get of them. Fewer mean that the file ends there.
    pub fn take(&mut self, bytes: &[u8], see: &mut impl FnMut(Found)) {
        let Some((start, wanted)) = self.wants() else { return };
        if bytes.len() < wanted {
            self.end = start + bytes.len() as u64;
        }
        let last = start + bytes.len() as u64 >= self.end;
        self.window = self.window_bytes;
        self.plan = None;
        let window = Window { bytes, start, last };
        loop {
            let more = match self.gap {
                None => self.walk(&window, see),
                Some(_) => self.leave_gap(&window, see),
            };
            if !more || self.at >= self.end || self.is_complete() {
                return;
            }
        }
    }

    /// Says what is lost at the end. To be called when nothing more is wanted.
    pub fn finish(self, see: &mut impl FnMut(Found)) {
        if self.bound == Offset(u64::MAX) || self.is_complete() {
            return;
        }
        let (position, reason) = match self.gap {
            Some(gap) => (gap.position, gap.reason),
            None => (self.end, format!("records {} to {} are missing", self.expected, self.bound.0 - 1)),
        };
        let end_position = self.end.max(position);
        see(Found::Lost(Lost { position, end_position, from: self.expected, to: self.bound, reason }));
    }

    /// Whether a batch with `header` can stand behind what was shown.
    fn fits(&self, header: &BatchHeader) -> bool {
        header.incarnation == self.segment.incarnation
            && header.base_offset >= self.expected
            && header.end_offset() <= self.bound
    }

    /// Whether too little is behind `position` to judge what stands there: how much there is must not depend on where
    /// windows begin. Half a window at least, so that a window is asked for anew but once.
    fn needs_more(&self, position: u64, window: &Window<'_>) -> bool {
        !window.last && window.end() - position < self.window_bytes as u64 / 2
    }

    /// Takes batches, until they or the bytes end. Says whether there is more to do here.
    fn walk(&mut self, window: &Window<'_>, see: &mut impl FnMut(Found)) -> bool {
        let segment = (self.segment.block_bytes, self.segment.incarnation);
        let mut walk = Walk::new(window.from(self.at), self.at, segment, self.check);
        loop {
            match walk.step() {
                Step::Batch(batch) if batch.header.base_offset == self.expected && self.fits(&batch.header) => {
                    self.expected = batch.header.end_offset();
                    self.behind = batch.position + batch.header.batch_len() as u64;
                    self.at = self.behind;
                    see(Found::Batch(batch));
                }
                Step::Batch(batch) => {
                    let (offset, expected) = (batch.header.base_offset, self.expected);
                    let reason = format!("a batch with offset {offset} where {expected} is due");
                    return self.open_gap((batch.position, reason), window);
                }
                Step::End { position } => {
                    self.at = position;
                    return false;
                }
                Step::CutOff { position, need } if window.last => {
                    let reason = format!("the bytes end within {need} bytes of a batch");
                    return self.open_gap((position, reason), window);
                }
                Step::CutOff { position, .. } => {
                    self.at = position;
                    self.window = WINDOW_AND_BATCH_BYTES;
                    return false;
                }
                Step::Invalid { position, reason } => match self.damaged_at(position, window) {
                    // Its header is whole, so its length is right: only this batch is lost.
                    Some(header) => {
                        self.behind = position + header.batch_len() as u64;
                        self.at = self.behind;
                        let from = std::mem::replace(&mut self.expected, header.end_offset());
                        let (end_position, to) = (self.behind, self.expected);
                        see(Found::Lost(Lost { position, end_position, from, to, reason }));
                        return true;
                    }
                    None => return self.open_gap((position, reason), window),
                },
            }
        }
    }

    /// The header of the batch at `position` with a damaged body, if it is known that it stands where it belongs.
    fn damaged_at(&self, position: u64, window: &Window<'_>) -> Option<BatchHeader> {
        let runs = self.plan.as_ref().map(|plan| &plan.runs)?;
        let header = check_stored_header(window.from(position)).ok()?;
        let end = position + header.batch_len() as u64;
        let is_in = |run: &Run| run.position <= position && end <= run.end_position;
        let is_due = self.fits(&header) && header.base_offset == self.expected;
        (is_due && runs.iter().any(is_in)).then_some(header)
    }

    /// No batch that is due stands at `position`. Says whether there is more to do here.
    fn open_gap(&mut self, (position, reason): (u64, String), window: &Window<'_>) -> bool {
        let from = self.behind.max(window.start);
        if from > window.start && self.needs_more(position, window) {
            self.at = from;
            return false;
        }
        self.gap = Some(Gap { position, reason });
        self.at = from;
        true
    }

    /// Looks for the batch that ends the gap. Says whether there is more to do here.
    fn leave_gap(&mut self, window: &Window<'_>, see: &mut impl FnMut(Found)) -> bool {
        let behind = self.behind;
        let plan = self.plan.take().unwrap_or_else(|| self.look_behind(window));
        let Plan { runs, seen, is_cut_off, .. } = self.plan.insert(plan);
        while runs.front().is_some_and(|run| run.end_position <= behind) {
            runs.pop_front();
        }
        let Some(run) = runs.front() else {
            self.at = window.start + *seen as u64;
            if *is_cut_off {
                self.window = WINDOW_AND_BATCH_BYTES;
            }
            // With too many runs to compare at once, the next ones stand here.
            return self.plan.take_if(|plan| plan.is_full).is_some();
        };
        let (position, from) = if run.position < behind {
            // Garbage in the padding of one of its groups.
            (behind.next_multiple_of(u64::from(self.segment.block_bytes)), self.expected)
        } else {
            (run.position, run.from)
        };
        self.at = position;
        if position > window.start.max(behind) && self.needs_more(position, window) {
            return false;
        }
        self.close_gap((position, from), see);
        true
    }

    /// What belongs to the log behind the last batch that was shown.
    fn look_behind(&self, window: &Window<'_>) -> Plan {
        let place = Place {
            segment: &self.segment,
            start: window.start,
            bytes: window.bytes,
            from: (self.at - window.start) as usize,
            is_last: window.last,
            is_believed: self.check == Check::Known,
            bound: self.bound,
        };
        // What was passed over without being shown began with a zero, as padding does.
        let is_padded = self.behind < window.start || window.from(self.behind).first().is_none_or(|byte| *byte == 0);
        let known = Run::known((self.behind, self.expected), self.segment.block_bytes, is_padded);
        let runs = Runs::behind(known, &place);
        Plan { seen: runs.seen, is_cut_off: runs.is_cut_off, is_full: runs.is_full, runs: runs.chain().into() }
    }

    /// Ends the gap where the batch with `base_offset` stands.
    fn close_gap(&mut self, (end_position, base_offset): (u64, Offset), see: &mut impl FnMut(Found)) {
        let Some(Gap { position, reason }) = self.gap.take() else { return };
        let (from, to) = (self.expected, base_offset);
        self.expected = base_offset;
        if position < end_position {
            see(Found::Lost(Lost { position, end_position, from, to, reason }));
        } else if from < to || position > end_position {
            // Lost bytes that read as zeros look like the padding between groups.
            let reason = format!("{to} follows where {from} is due");
            see(Found::Lost(Lost { position: self.behind, end_position, from, to, reason }));
        }
    }
}

/// Bytes that were read.
struct Window<'a> {
    bytes: &'a [u8],
    /// Where they stand in the file.
    start: u64,
    /// Whether no more bytes follow.
    last: bool,
}

impl Window<'_> {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Those from `position` of the file on.
    fn from(&self, position: u64) -> &[u8] {
        &self.bytes[(position.saturating_sub(self.start) as usize).min(self.bytes.len())..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{
            chain::BROKEN_BODIES_MAX,
            fixture::{batch_of, header_at},
        },
        record::{BatchBuilder, Codec, ServerFields, stamp},
        types::{Incarnation, LeaderEpoch},
    };

    const BLOCK: u64 = 512;
    const START: u64 = 4096;

    fn fields(offset: u64, incarnation: u32) -> ServerFields {
        ServerFields {
            base_offset: Offset(offset),
            durable_hint: Offset(0),
            leader_epoch: LeaderEpoch(1),
            incarnation: Incarnation(incarnation),
        }
    }

    /// Groups of `per_group` batches of `len` bytes, `count` batches in all, each group padded to a block.
    fn stored(count: u64, len: usize, per_group: u64) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for n in 0..count {
            if n % per_group == 0 {
                bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            }
            starts.push(bytes.len());
            let at = bytes.len();
            bytes.extend_from_slice(&batch_of(len));
            stamp(&mut bytes[at..], fields(100 + n, 7));
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        (bytes, starts)
    }

    /// Surveys `bytes` in windows as it wants them. Every offset is either in a batch or lost, in order and once.
    fn survey(bytes: &[u8], bound: u64) -> (Vec<u64>, Vec<Lost>) {
        survey_by(bytes, bound, |survey| survey)
    }

    fn survey_by(bytes: &[u8], bound: u64, change: impl FnOnce(Survey) -> Survey) -> (Vec<u64>, Vec<Lost>) {
        let span = (START, START + bytes.len() as u64);
        let mut survey = change(Survey::new(&header_at(100), span, (Offset(100), Offset(bound))));
        let (mut intact, mut lost, mut due) = (Vec::new(), Vec::new(), Offset(100));
        let mut see = |found| match found {
            Found::Batch(batch) => {
                assert_eq!(batch.header.base_offset, due);
                due = batch.header.end_offset();
                intact.push(batch.header.base_offset.0);
            }
            Found::Lost(one) => {
                assert_eq!(one.from, due, "{one:?}");
                assert!(one.position < one.end_position || one.from < one.to, "{one:?}");
                due = one.to;
                if one.from < one.to {
                    lost.push(one);
                }
            }
        };
        let mut turns = 0;
        while let Some((position, len)) = survey.wants() {
            let from = ((position - START) as usize).min(bytes.len());
            survey.take(&bytes[from..(from + len).min(bytes.len())], &mut see);
            turns += 1;
            assert!(turns <= 2 + bytes.len() / 64, "it wants {len} bytes at {position} for ever");
        }
        survey.finish(&mut see);
        assert_eq!(due, Offset(bound));
        (intact, lost)
    }

    #[test]
    fn any_flipped_bit_costs_exactly_the_batch_it_is_in_and_the_neighbours_stay() {
        let (bytes, starts) = stored(6, 200, 3);
        assert_eq!(survey(&bytes, 106).0, [100, 101, 102, 103, 104, 105]);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let hit = starts.iter().position(|start| (*start..start + 200).contains(&(bit / 8)));
            let (intact, lost) = survey(&damaged, 106);
            let others: Vec<u64> =
                (100..106).filter(|offset| hit.is_none_or(|hit| *offset != 100 + hit as u64)).collect();
            assert_eq!(intact, others, "bit {bit}");
            let ranges: Vec<_> = lost.iter().map(|one| (one.from.0, one.to.0)).collect();
            assert_eq!(ranges, hit.map_or(vec![], |hit| vec![(100 + hit as u64, 101 + hit as u64)]), "bit {bit}");
        }
    }

    fn ranges(lost: &[Lost]) -> Vec<(u64, u64)> {
        lost.iter().map(|one| (one.from.0, one.to.0)).collect()
    }

    #[test]
    fn small_windows_find_what_one_piece_does() {
        let (bytes, starts) = stored(12, 200, 3);
        for window in [700, 1024, 1500] {
            for (at, count) in [(0, 1), (starts[1] + 9, 1), (starts[2], 300), (starts[3] + 90, 2500), (starts[11], 200)]
            {
                let mut damaged = bytes.clone();
                damaged[at..at + count].iter_mut().for_each(|byte| *byte ^= 0x55);
                let (intact, lost) = survey_by(&damaged, 112, |survey| survey.in_windows_of(window));
                let (whole_intact, whole_lost) = survey_by(&damaged, 112, Survey::in_one_piece);
                assert_eq!(intact, whole_intact, "{count} bytes at {at} in windows of {window}");
                assert_eq!(ranges(&lost), ranges(&whole_lost), "{count} bytes at {at} in windows of {window}");
            }
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_was_thought_ends_where_it_ends() {
        let (bytes, starts) = stored(6, 200, 3);
        for len in [bytes.len(), starts[5] + 100, starts[5], starts[3], starts[1] + 10, 0] {
            // Damage before the end, none, and a header there whose batch is not whole.
            for damaged in [None, Some(starts[3] + 10), Some(starts[4] + 10)] {
                let mut bytes = bytes[..len].to_vec();
                damaged.and_then(|at| bytes.get_mut(at)).into_iter().for_each(|byte| *byte ^= 1);
                let whole = |at: usize| {
                    starts[at] + 200 <= len && damaged.is_none_or(|hit| !(starts[at]..starts[at] + 200).contains(&hit))
                };
                let expected: Vec<u64> = (0..6).filter(|at| whole(*at)).map(|at| 100 + at as u64).collect();
                let (intact, _) = survey_by(&bytes, 106, |survey| Survey { end: START + 1_000_000, ..survey });
                assert_eq!(intact, expected, "{len} bytes, damage at {damaged:?}");
            }
        }
    }

    #[test]
    fn of_two_readings_that_with_fewer_lost_records_is_better_and_then_that_with_fewer_places() {
        let lost =
            |from, to| Lost { position: 0, end_position: 1, from: Offset(from), to: Offset(to), reason: String::new() };
        assert_eq!(records_in(&[]), (0, 0));
        assert_eq!(records_in(&[lost(10, 13), lost(20, 20)]), (3, 2));
        assert!(records_in(&[lost(1000, 1001)]) < records_in(&[lost(1, 3)]));
    }

    #[test]
    fn bytes_within_a_record_are_no_batch_while_the_header_around_them_is_whole() {
        for claimed in [100, 101, 102] {
            let mut forged = batch_of(200).to_vec();
            stamp(&mut forged, fields(claimed, 7));
            let mut builder = BatchBuilder::new(Codec::None);
            (0..3).for_each(|_| builder.push(None, &forged, &[], 1).unwrap());
            let mut bytes = builder.finish().unwrap().to_vec();
            stamp(&mut bytes, fields(100, 7));
            // One bit of the body, in none of the forged batches.
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            let at = bytes.len();
            bytes.extend_from_slice(&batch_of(200));
            stamp(&mut bytes[at..], fields(103, 7));
            let (intact, lost) = survey(&bytes, 104);
            assert_eq!((intact, ranges(&lost)), (vec![103], vec![(100, 103)]), "{claimed} is claimed");
        }
    }

    #[test]
    fn a_batch_in_a_wrong_place_is_known_by_those_it_leaves_out_behind_it_and_not_by_older_ones() {
        let (bytes, starts) = stored(9, 200, 3);
        // The third group in the place of the first; a batch of an earlier life behind it.
        let mut spoiled = bytes.clone();
        spoiled.copy_within(starts[6]..starts[6] + 1024, 0);
        spoiled[starts[6]..].fill(0);
        let mut stale = batch_of(200).to_vec();
        stamp(&mut stale, fields(100, 6));
        spoiled[600..800].copy_from_slice(&stale);
        let (intact, lost) = survey(&spoiled, 109);
        assert_eq!((intact, ranges(&lost)), (vec![103, 104, 105], vec![(100, 103), (106, 109)]));
    }

    #[test]
    fn batches_in_damaged_bodies_are_looked_for_so_often_and_then_no_more() {
        for (broken, found) in
            [(3, true), (u64::from(BROKEN_BODIES_MAX) - 1, true), (2 * u64::from(BROKEN_BODIES_MAX), false)]
        {
            let mut bytes = vec![1; BLOCK as usize];
            let mut offset = 101;
            for _ in 0..broken {
                let at = bytes.len();
                bytes.extend_from_slice(&batch_of(200));
                stamp(&mut bytes[at..], fields(offset, 7));
                bytes[at + 150] ^= 1;
                offset += 1;
            }
            // The last of them was written over by a later batch, and another one follows it.
            let at = bytes.len();
            bytes.extend_from_slice(&batch_of(1000));
            stamp(&mut bytes[at..], fields(offset, 7));
            for (place, offset) in [(at + 300, offset + 1), (at + 1000, offset + 2)] {
                bytes.resize(bytes.len().max(place + 200), 0);
                bytes[place..place + 200].copy_from_slice(&batch_of(200));
                stamp(&mut bytes[place..place + 200], fields(offset, 7));
            }
            let (intact, lost) = survey(&bytes, offset + 3);
            let expected = if found { vec![offset + 1, offset + 2] } else { vec![offset + 2] };
            assert_eq!(intact, expected, "{broken} broken bodies, {:?}", ranges(&lost));
        }
    }

    #[test]
    fn a_zeroed_stretch_a_cut_and_a_repeated_block_cost_what_they_cover() {
        let (bytes, starts) = stored(12, 200, 3);
        let mut zeroed = bytes.clone();
        zeroed[starts[4]..starts[7]].fill(0);
        let (intact, lost) = survey(&zeroed, 112);
        assert_eq!(intact, [100, 101, 102, 103, 107, 108, 109, 110, 111]);
        assert_eq!(lost.iter().map(|one| (one.from.0, one.to.0)).collect::<Vec<_>>(), [(104, 107)]);

        let (intact, lost) = survey(&bytes[..starts[8] + 100], 112);
        assert_eq!(intact, [100, 101, 102, 103, 104, 105, 106, 107]);
        assert_eq!(lost.iter().map(|one| (one.from.0, one.to.0)).collect::<Vec<_>>(), [(108, 112)]);

        let mut repeated = bytes.clone();
        let (first, second) = repeated.split_at_mut(starts[6]);
        second[..starts[3]].copy_from_slice(&first[..starts[3]]);
        let (intact, lost) = survey(&repeated, 112);
        assert_eq!(intact, [100, 101, 102, 103, 104, 105, 109, 110, 111]);
        assert_eq!(lost.iter().map(|one| (one.from.0, one.to.0)).collect::<Vec<_>>(), [(106, 109)]);
    }

    #[test]
    fn a_group_in_the_wrong_place_costs_what_it_hit_and_its_own_place_and_nothing_between() {
        let (bytes, starts) = stored(24, 200, 3);
        let group = |n: usize| starts[3 * n]..starts[3 * n] + 1024;
        for (from, to) in (0..8).flat_map(|from| (0..8).map(move |to| (from, to))).filter(|(from, to)| from != to) {
            let mut spoiled = bytes.clone();
            spoiled.copy_within(group(from), group(to).start);
            spoiled[group(from)].fill(0);
            let hit = |offset: &u64| [from, to].contains(&((offset - 100) as usize / 3));
            let (intact, lost) = survey(&spoiled, 124);
            // Next to its own place nobody can tell which of the two is right.
            let unclear = from == to + 1 || to == from + 1;
            let others: Vec<u64> = (100..124).filter(|offset| !hit(offset)).collect();
            if unclear {
                assert!(others.iter().all(|offset| intact.contains(offset)), "group {from} at {to}: {intact:?}");
            } else {
                assert_eq!(intact, others, "group {from} at {to}: {lost:?}");
            }
        }
    }

    #[test]
    fn a_group_in_the_wrong_place_is_known_also_at_the_end_of_a_window() {
        let (mut bytes, starts) = stored(8, 300, 1);
        bytes.copy_within(starts[7].., starts[2]);
        let found = survey_by(&bytes, 108, |survey| survey.in_windows_of(3 * BLOCK as usize));
        assert_eq!((found.0, ranges(&found.1)), (vec![100, 101, 103, 104, 105, 106, 107], vec![(102, 103)]));
    }

    #[test]
    fn several_groups_that_go_on_are_not_taken_for_one_in_a_wrong_place() {
        let (mut bytes, starts) = stored(8, 300, 1);
        let (lost, behind) = (starts[2]..starts[4], bytes.len());
        bytes.extend_from_within(starts[3]..starts[4]);
        bytes[lost].fill(0);
        assert!(behind < bytes.len());
        let (intact, lost) = survey(&bytes, 108);
        assert_eq!((intact, ranges(&lost)), (vec![100, 101, 104, 105, 106, 107], vec![(102, 104)]));
    }

    #[test]
    fn the_front_of_a_large_batch_in_a_wrong_place_does_not_hide_what_stands_where_its_body_would() {
        let (mut bytes, starts) = stored(24, 200, 3);
        let mut large = batch_of(5000).to_vec();
        stamp(&mut large, fields(124, 7));
        bytes.extend_from_slice(&large);
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        bytes[starts[3]..starts[3] + 512].copy_from_slice(&large[..512]);
        let (intact, lost) = survey(&bytes, 125);
        let others: Vec<u64> = (100..125).filter(|offset| !(103..106).contains(offset)).collect();
        assert_eq!(intact, others, "{lost:?}");
    }

    #[test]
    fn a_group_that_hit_only_the_end_of_a_batch_does_not_hide_the_next_ones() {
        let (mut bytes, starts) = stored(12, 300, 2);
        // A batch ends in the second block of its group, and the last batch, alone in a group, was written there.
        bytes[starts[2] + 512..starts[2] + 1024].fill(0);
        bytes.copy_within(starts[10]..starts[10] + 300, starts[2] + 512);
        bytes[starts[10]..].fill(0);
        let (intact, lost) = survey(&bytes, 112);
        assert!((104..110).all(|offset| intact.contains(&offset)), "{intact:?}, {lost:?}");
    }

    #[test]
    fn a_group_in_the_wrong_place_does_not_hide_the_rest_of_the_one_that_it_hit() {
        // The first group is of one batch; the second begins with a large one, to whose front a later group was
        // written.
        let (mut bytes, _) = stored(1, 200, 1);
        bytes.resize(BLOCK as usize, 0);
        for (offset, len) in [(101, 1200), (102, 300), (103, 300)] {
            let at = bytes.len();
            bytes.extend_from_slice(&batch_of(len));
            stamp(&mut bytes[at..], fields(offset, 7));
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        let mut later = batch_of(300).to_vec();
        stamp(&mut later, fields(104, 7));
        bytes[512..812].copy_from_slice(&later);
        let (intact, lost) = survey(&bytes, 105);
        assert!([100, 102, 103].iter().all(|offset| intact.contains(offset)), "{intact:?}, {lost:?}");
    }

    #[test]
    fn a_group_that_was_written_too_far_on_does_not_hide_those_that_then_took_their_places_in_it() {
        let (mut bytes, _) = stored(3, 200, 3);
        // A batch, and a large one behind it: written where the groups after them came to stand.
        bytes.extend_from_slice(&batch_of(200));
        let at = bytes.len() - 200;
        stamp(&mut bytes[at..], fields(103, 7));
        let large = bytes.len();
        bytes.extend_from_slice(&batch_of(5000));
        stamp(&mut bytes[large..], fields(104, 7));
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        for (number, place) in (105..).zip([1536, 2048, 2560]) {
            bytes[place..place + 200].copy_from_slice(&batch_of(200));
            stamp(&mut bytes[place..place + 200], fields(number, 7));
            bytes[place + 200..place + 512].fill(0);
        }
        let (intact, lost) = survey(&bytes, 108);
        assert_eq!(intact, [100, 101, 102, 103, 105, 106, 107], "{lost:?}");
        assert_eq!(lost.iter().map(|one| (one.from.0, one.to.0)).collect::<Vec<_>>(), [(104, 105)]);
    }

    #[test]
    fn the_end_of_a_group_that_was_written_too_far_on_does_not_hide_those_that_then_took_the_front() {
        let (mut bytes, _) = stored(1, 200, 1);
        // Due in the second block, and 3,200 bytes long: the next groups belong at 4096 and 4608.
        bytes.resize(2560, 0);
        for (offset, len) in [(101, 2600), (102, 300), (103, 300)] {
            let at = bytes.len();
            bytes.extend_from_slice(&batch_of(len));
            stamp(&mut bytes[at..], fields(offset, 7));
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        for (offset, place) in [(104, 4096), (105, 4608)] {
            bytes[place..place + BLOCK as usize].fill(0);
            bytes[place..place + 200].copy_from_slice(&batch_of(200));
            stamp(&mut bytes[place..place + 200], fields(offset, 7));
        }
        let (intact, lost) = survey(&bytes, 106);
        assert_eq!((intact, ranges(&lost)), (vec![100, 104, 105], vec![(101, 104)]), "{lost:?}");
    }

    #[test]
    fn records_that_stand_behind_one_that_was_shown_already_are_served_from_wherever_a_survey_begins() {
        let (mut bytes, starts) = stored(12, 200, 1);
        bytes[starts[2]..starts[3]].fill(0xa7);
        // A drive wrote three groups, the first of them damaged by then, to the place two groups further on; what was
        // lost between their end and the next group was written there again.
        let behind = starts[9]..starts[10];
        bytes.copy_within(starts[4]..starts[7], starts[6]);
        bytes[starts[6]..starts[7]].fill(0xa7);
        bytes[behind.clone()].fill(0);
        let mut at = behind.start;
        for offset in 107..110 {
            let batch = batch_of(130);
            bytes[at..at + batch.len()].copy_from_slice(&batch);
            stamp(&mut bytes[at..at + batch.len()], fields(offset, 7));
            at += batch.len();
        }
        let (intact, lost) = survey(&bytes, 112);
        assert_eq!(ranges(&lost), [(102, 103)], "{intact:?}");
        for (n, start) in starts.iter().enumerate().take(6).skip(3) {
            let span = (START + *start as u64, START + bytes.len() as u64);
            let first = Offset(100 + n as u64);
            let mut survey = Survey::new(&header_at(100), span, (first, Offset(112))).in_one_piece();
            survey.take(&bytes[*start..], &mut |found| {
                assert!(!matches!(&found, Found::Lost(lost) if lost.from < lost.to), "from {first}: {found:?}");
            });
            assert_eq!(survey.expected(), Offset(112));
        }
    }

    #[test]
    fn batches_larger_than_a_window_are_found_before_and_behind_damage() {
        let mut builder = BatchBuilder::new(Codec::None);
        for _ in 0..5 {
            builder.push(None, &vec![7; 1_000_000], &[], 1).unwrap();
        }
        let large = builder.finish().unwrap();
        assert!(large.len() > WINDOW_BYTES);
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for n in 0..4 {
            starts.push(bytes.len());
            bytes.extend_from_slice(&large);
            let at = starts[n as usize];
            stamp(&mut bytes[at..], fields(100 + 5 * n, 7));
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        bytes[starts[1] + 10] ^= 1;
        let (intact, lost) = survey(&bytes, 120);
        assert_eq!((intact, lost.len()), (vec![100, 110, 115], 1));
        assert_eq!((lost[0].from, lost[0].to), (Offset(105), Offset(110)));
    }

    #[test]
    fn bytes_of_another_life_or_beyond_what_follows_are_no_batches() {
        let (bytes, starts) = stored(6, 200, 3);
        let (intact, lost) = survey(&bytes[..starts[3]], 102);
        assert_eq!((intact, lost.len()), (vec![100, 101], 0), "102 belongs to the next segment");
        let mut stale = bytes.clone();
        stamp(&mut stale[starts[2]..], fields(102, 6));
        let (intact, lost) = survey(&stale, 106);
        assert_eq!((intact, lost.len()), (vec![100, 101, 103, 104, 105], 1));
    }

    #[test]
    fn a_group_in_the_padding_of_another_does_not_hide_the_groups_that_follow() {
        let mut bytes = Vec::new();
        let groups = [
            [(0, 100)].as_slice(),
            &[(512, 106)],
            &[(1024, 101), (1224, 102), (1424, 103)],
            &[(2048, 104), (2248, 105)],
            &[(2560, 106)],
        ];
        for (place, offset) in groups.concat() {
            bytes.resize(place + 200, 0);
            bytes[place..].copy_from_slice(&batch_of(200));
            stamp(&mut bytes[place..], fields(offset, 7));
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        let (intact, lost) = survey(&bytes, 107);
        assert_eq!(intact, [100, 101, 102, 103, 104, 105, 106], "{lost:?}");
    }

    #[test]
    fn the_end_of_a_group_that_reads_as_zeros_is_missed_from_where_its_last_intact_batch_ends() {
        let (mut bytes, starts) = stored(8, 200, 2);
        bytes[starts[3]..starts[4]].fill(0);
        let (intact, lost) = survey(&bytes, 108);
        assert_eq!((intact, ranges(&lost)), (vec![100, 101, 102, 104, 105, 106, 107], vec![(103, 104)]));
        assert_eq!((lost[0].position, lost[0].end_position), (START + starts[3] as u64, START + starts[4] as u64));
    }

    #[test]
    fn a_damaged_body_is_searched_for_later_batches_until_so_many_broken_ones_were_met() {
        // The outermost is one of them, and the last of them holds an intact one.
        for (broken, is_found) in [(BROKEN_BODIES_MAX - 1, true), (BROKEN_BODIES_MAX, false)] {
            let mut bytes = batch_of(20_000).to_vec();
            stamp(&mut bytes, fields(100, 7));
            for number in 0..broken as usize {
                let len = if number + 1 == broken as usize { 1000 } else { 200 };
                let inner = &mut bytes[300 + 200 * number..300 + 200 * number + len];
                inner.copy_from_slice(&batch_of(len));
                stamp(inner, fields(101 + number as u64, 7));
                inner[150] ^= 1;
            }
            let last = 101 + u64::from(broken);
            let inmost = &mut bytes[300 + 200 * broken as usize..][..200];
            inmost.copy_from_slice(&batch_of(200));
            stamp(inmost, fields(last, 7));
            let (intact, lost) = survey(&bytes, last + 1);
            assert_eq!(intact, if is_found { vec![last] } else { vec![] }, "behind {broken}: {:?}", ranges(&lost));
        }
    }
}

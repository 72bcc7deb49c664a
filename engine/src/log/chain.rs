//! Which of the batches behind damage belong to the log, and which a drive wrote to a wrong place.
//!
//! The place of a batch says its offset a second time: what follows a batch stands right behind it, or where the next
//! group begins, and records that are missing between two batches once had room there. A group in a wrong place
//! breaks that on both sides. So what belongs to the log is a chain in which each batch [can follow](Run::can_lead_to)
//! the one before: of all such chains behind the last batch that is in order, the one with the most bytes. Then the
//! same of what fits into its gaps by offsets: a record that nothing else speaks against is served wherever it stands.
//!
//! The batches that are intact where they belong are such a chain. So no less is served than these have, and another
//! chain is taken for it only if a drive wrote more bytes to one wrong place than stand intact between that and their
//! own, and the batches beside both are damaged as well.
//!
//! A batch that was met before, and goes on behind nothing, is left for those gaps, and nothing is told from it of what
//! follows: records behind a group in a wrong place may have taken up where that ends.
//!
//! A batch with an intact header and a damaged body where it is due is where it belongs; what stands in it is not.

use crate::{
    limits::BATCH_HEADER_BYTES,
    log::segment::SegmentHeader,
    record::{BatchHeader, check_stored, find_stored_header},
    types::Offset,
};

/// Runs that are compared at once. More are met only where records were made to look like batches.
const RUNS_MAX: usize = 256;

/// Damaged bodies that are searched for other batches: the check of one costs half a millisecond at the most.
pub(super) const BROKEN_BODIES_MAX: u32 = 64;

/// Batches that follow each other in their offsets and in their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) position: u64,
    /// Behind the last of them, before its padding.
    pub(super) end_position: u64,
    /// The first offset, and the one after the last.
    pub(super) from: Offset,
    pub(super) to: Offset,
    /// Bytes of the intact ones.
    intact_bytes: u64,
    /// Where the group after this one would begin.
    next_group: u64,
    /// Whether padding stands behind it, and no batch that was damaged: none begins with a zero.
    is_padded: bool,
    /// Where the batches with damaged bodies end that go on behind it, and the offset behind them. They stand where
    /// they belong if it does, and what stands in them does not.
    held: (u64, Offset),
    /// The run that it continues, if it is one batch with a damaged body.
    continues: Option<usize>,
    /// Whether it became a part of that.
    is_joined: bool,
    /// Whether it is one batch that stands in an earlier run as well, and goes on behind nothing.
    is_copy: bool,
}

impl Run {
    /// What is known to be in order up to `end_position`, behind which `to` is due.
    pub(super) fn known((end_position, to): (u64, Offset), block_bytes: u32, is_padded: bool) -> Self {
        Run {
            position: end_position,
            end_position,
            from: to,
            to,
            intact_bytes: 0,
            next_group: end_position.next_multiple_of(u64::from(block_bytes)),
            is_padded,
            held: (end_position, to),
            continues: None,
            is_joined: false,
            is_copy: false,
        }
    }

    /// Whether a batch at `position` that begins with `from` stands where this run goes on.
    fn goes_on_with(&self, position: u64, from: Offset) -> bool {
        from == self.to && (position == self.end_position || position == self.next_group)
    }

    /// Takes in what goes on behind it.
    fn extend(&mut self, next: &Run) {
        if self.from == self.to {
            self.position = next.position;
        }
        (self.end_position, self.to) = (next.end_position, next.to);
        (self.next_group, self.is_padded, self.held) = (next.next_group, next.is_padded, next.held);
    }

    /// Whether both stand where they belong if `next` is what comes next: right behind this, or so far that what is
    /// missing had room.
    fn can_lead_to(&self, next: &Run) -> bool {
        let from = if self.is_padded && next.position >= self.next_group { self.next_group } else { self.end_position };
        let has_room = next.position >= from + BATCH_HEADER_BYTES as u64;
        let is_behind_held = self.held.0 <= next.position && self.held.1 <= next.from;
        self.goes_on_with(next.position, next.from) || (self.to < next.from && has_room && is_behind_held)
    }

    /// Whether `next` is behind this one, by place and by offset.
    fn is_before(&self, next: &Run) -> bool {
        self.end_position <= next.position && self.to <= next.from
    }

    fn is_intact(&self) -> bool {
        self.intact_bytes > 0
    }
}

/// The runs of some bytes.
pub(super) struct Runs {
    runs: Vec<Run>,
    /// How many of the bytes were looked at.
    pub(super) seen: usize,
    /// Whether a batch begins behind these that is not here whole.
    pub(super) is_cut_off: bool,
    /// Whether there are more than are compared at once.
    pub(super) is_full: bool,
}

/// What to look for runs in.
pub(super) struct Place<'a> {
    pub(super) segment: &'a SegmentHeader,
    /// Where the bytes stand in the file.
    pub(super) start: u64,
    pub(super) bytes: &'a [u8],
    /// From which of them on.
    pub(super) from: usize,
    /// Whether no more bytes follow.
    pub(super) is_last: bool,
    /// Whether batches are believed by their headers.
    pub(super) is_believed: bool,
    /// What follows them.
    pub(super) bound: Offset,
}

impl Runs {
    /// Those behind what is `known`.
    pub(super) fn behind(known: Run, place: &Place<'_>) -> Self {
        let bytes = place.bytes;
        let mut runs = Runs { runs: vec![known], seen: bytes.len(), is_cut_off: false, is_full: false };
        let (mut from, mut broken_bodies) = (place.from, 0);
        // Prepared room is megabytes of zeros: not looked at byte by byte.
        while let Some(rest) = bytes.get(from..).filter(|rest| !is_zero(rest))
            && let Some((at, header)) = find_stored_header(rest)
        {
            let at = from + at;
            from = at + 1;
            let is_of_this_life = header.incarnation == place.segment.incarnation;
            if !is_of_this_life || header.base_offset < known.to || header.end_offset() > place.bound {
                continue;
            }
            if runs.runs.len() == RUNS_MAX {
                (runs.seen, runs.is_full) = (at, true);
                return runs;
            }
            let end = at + header.batch_len();
            match bytes.get(at..end) {
                Some(batch) if place.is_believed || check_stored(batch).is_ok() => {
                    from = end;
                    runs.take((&header, true), (at, end), place);
                }
                Some(_) => {
                    // Another batch may stand in it. Not looked for again and again: records can be made to look so.
                    from = if broken_bodies < BROKEN_BODIES_MAX { from } else { end };
                    broken_bodies += 1;
                    runs.take((&header, false), (at, end), place);
                }
                None if place.is_last => {}
                None => {
                    (runs.seen, runs.is_cut_off) = (at, true);
                    return runs;
                }
            }
        }
        if !place.is_last {
            // A header may begin in the last bytes.
            runs.seen = bytes.len().saturating_sub(BATCH_HEADER_BYTES).max(from.min(bytes.len()));
        }
        runs
    }

    fn take(&mut self, (header, is_intact): (&BatchHeader, bool), (at, end): (usize, usize), place: &Place<'_>) {
        let (position, end_position) = (place.start + at as u64, place.start + end as u64);
        let is_padded = place.bytes.get(end).is_none_or(|byte| *byte == 0);
        let known = Run::known((end_position, header.end_offset()), place.segment.block_bytes, is_padded);
        let one = Run { position, from: header.base_offset, ..known };
        let before = |run: &Run| !run.is_joined && !run.is_copy && run.goes_on_with(position, one.from);
        let before = self.runs.iter().position(before);
        let is_copy = self.runs.iter().any(|run| run.is_intact() && run.from <= one.from && one.to <= run.to);
        match before {
            Some(before) if is_intact => {
                let before = self.join(before);
                let run = &mut self.runs[before];
                run.intact_bytes += (end - at) as u64;
                run.extend(&one);
            }
            _ if is_intact => self.runs.push(Run { intact_bytes: (end - at) as u64, is_copy, ..one }),
            _ => {
                // Of two that could go on there, the first: the other one stands in it.
                let before = before.filter(|at| self.runs[*at].held.0 == self.runs[*at].end_position);
                self.hold(before, one.held);
                self.runs.push(Run { continues: before, ..one });
            }
        }
    }

    /// Notes how far damaged batches go on behind the run at `at`, and behind that which it continues.
    fn hold(&mut self, mut at: Option<usize>, until: (u64, Offset)) {
        while let Some(run) = at.map(|at| &mut self.runs[at]) {
            run.held = until;
            at = run.continues;
        }
    }

    /// Makes the run at `at` a part of the one that it continues, if it is a damaged batch, since it is certain by now
    /// that it stands where it belongs. Gives the run that it is in.
    fn join(&mut self, at: usize) -> usize {
        let one = self.runs[at];
        let Some(before) = one.continues else { return at };
        let before = self.join(before);
        let run = &mut self.runs[before];
        if !run.goes_on_with(one.position, one.from) {
            return at;
        }
        run.extend(&one);
        self.runs[at].is_joined = true;
        before
    }

    /// Those that belong to the log, in order.
    pub(super) fn chain(mut self) -> Vec<Run> {
        let known = self.runs[0];
        self.runs.retain(|run| !run.is_joined);
        let (intact, damaged): (Vec<&Run>, Vec<&Run>) =
            self.runs.iter().filter(|run| known.is_before(run)).partition(|run| run.is_intact());
        let mut chain = vec![known];
        let originals: Vec<&Run> = intact.iter().filter(|run| !run.is_copy).copied().collect();
        between((&known, None), &heaviest(&originals, |run| known.can_lead_to(run)), &mut |before, after| {
            fill(&intact, (before, after), &mut chain);
            chain.extend(after);
        });
        let mut whole = Vec::new();
        between((&known, None), &chain.iter().skip(1).collect::<Vec<_>>(), &mut |before, after| {
            let fits = |run: &&&Run| before.is_before(run) && after.is_none_or(|after| run.is_before(after));
            let fitting: Vec<&Run> = damaged.iter().filter(fits).copied().collect();
            whole.extend(heaviest(&fitting, |run| before.can_lead_to(run)).into_iter().chain(after).copied());
        });
        // What was known is no part of it, unless it goes on.
        if known.is_intact() {
            whole.insert(0, known);
        }
        whole
    }
}

/// Shows each two neighbours of a chain between two others, or behind one.
fn between<'a>(
    (first, last): (&'a Run, Option<&'a Run>),
    chain: &[&'a Run],
    see: &mut impl FnMut(&'a Run, Option<&'a Run>),
) {
    let mut before = first;
    for run in chain {
        see(before, Some(run));
        before = run;
    }
    see(before, last);
}

/// Adds what fits between two runs of the chain, or behind the last one.
fn fill(all: &[&Run], (before, after): (&Run, Option<&Run>), chain: &mut Vec<Run>) {
    let fits = |run: &&&Run| before.is_before(run) && after.is_none_or(|after| run.is_before(after));
    let fitting: Vec<&Run> = all.iter().filter(fits).copied().collect();
    let found = heaviest(&fitting, |_| true);
    if found.is_empty() {
        return;
    }
    between((before, after), &found, &mut |before, next| {
        fill(&fitting, (before, next), chain);
        chain.extend(next.filter(|next| after != Some(*next)));
    });
}

/// The heaviest chain of these runs, which stand in the order of their places, that begins with one that `is_first`.
fn heaviest<'a>(runs: &[&'a Run], is_first: impl Fn(&Run) -> bool) -> Vec<&'a Run> {
    // Of each the weight of the heaviest chain that ends with it, and the one before it in that.
    let mut best: Vec<Option<(u64, Option<usize>)>> = Vec::with_capacity(runs.len());
    for run in runs {
        let begins = is_first(run).then_some((0, None));
        let follows = (0..best.len()).filter_map(|at| {
            let (weight, _) = best[at]?;
            runs[at].can_lead_to(run).then_some((weight, Some(at)))
        });
        let before = begins.into_iter().chain(follows).max_by_key(|(weight, _)| *weight);
        // Among damaged ones, most.
        best.push(before.map(|(weight, before)| (weight + run.intact_bytes.max(1), before)));
    }
    let mut next =
        (0..best.len()).filter(|at| best[*at].is_some()).max_by_key(|at| best[*at].map(|(weight, _)| weight));
    let mut chain = Vec::new();
    while let Some(at) = next {
        chain.push(runs[at]);
        next = best[at].and_then(|(_, before)| before);
    }
    chain.reverse();
    chain
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::{
        log::{
            fixture::header_at,
            survey::{Found, Survey},
        },
        record::{BatchBuilder, Codec, ServerFields, stamp},
        runtime::sim::SimRandom,
        types::LeaderEpoch,
    };

    const BLOCK: usize = 512;
    const START: u64 = 4096;

    /// A batch where it belongs.
    struct Placed {
        bytes: Range<usize>,
        offset: u64,
    }

    /// A segment as a drive has it.
    struct Drive {
        bytes: Vec<u8>,
        /// What it should have.
        right: Vec<u8>,
        batches: Vec<Placed>,
        groups: Vec<Range<usize>>,
        end_offset: u64,
    }

    impl Drive {
        /// One with these groups of batches: for each how many records it has, and how long one is.
        fn with(groups: &[Vec<(u64, usize)>]) -> Self {
            let (bytes, right, batches) = (Vec::new(), Vec::new(), Vec::new());
            let mut drive = Drive { bytes, right, batches, groups: Vec::new(), end_offset: 100 };
            for group in groups {
                let start = drive.right.len();
                for (records, len) in group {
                    let mut builder = BatchBuilder::new(Codec::None);
                    (0..*records).for_each(|_| builder.push(None, &vec![7; *len], &[], 1).unwrap());
                    let (from, offset) = (drive.right.len(), drive.end_offset);
                    drive.right.extend_from_slice(&builder.finish().unwrap());
                    let (base_offset, durable_hint) = (Offset(offset), Offset(0));
                    let (leader_epoch, incarnation) = (LeaderEpoch(1), header_at(100).incarnation);
                    let fields = ServerFields { base_offset, durable_hint, leader_epoch, incarnation };
                    stamp(&mut drive.right[from..], fields);
                    drive.batches.push(Placed { bytes: from..drive.right.len(), offset });
                    drive.end_offset += records;
                }
                drive.right.resize(drive.right.len().next_multiple_of(BLOCK), 0);
                drive.groups.push(start..drive.right.len());
            }
            drive.bytes = drive.right.clone();
            drive
        }

        fn drawn(random: &mut SimRandom) -> Self {
            let batch = |random: &mut SimRandom| (random.within(1..5), random.within(10..400) as usize);
            let group = |random: &mut SimRandom| (0..random.within(1..6)).map(|_| batch(random)).collect();
            let groups: Vec<Vec<_>> = (0..24).map(|_| group(random)).collect();
            Drive::with(&groups)
        }

        /// Writes the groups in their order, of which some go to other places.
        fn write_astray(&mut self, astray: &[(usize, usize)]) {
            self.bytes.fill(0);
            for (number, group) in self.groups.iter().enumerate() {
                let to = astray.iter().find(|(from, _)| *from == number).map_or(group.start, |(_, to)| *to);
                let end = (to + group.len()).min(self.bytes.len());
                self.bytes[to..end].copy_from_slice(&self.right[group.start..group.start + end - to]);
            }
        }

        /// Turns over a bit of a batch.
        fn flip(&mut self, random: &mut SimRandom) {
            let batch = self.batches[random.below(self.batches.len() as u64) as usize].bytes.clone();
            self.bytes[random.within(batch.start as u64..batch.end as u64) as usize] ^= 1;
        }

        /// The batches that are intact where they belong.
        fn intact(&self) -> Vec<u64> {
            let is_intact = |batch: &&Placed| self.bytes[batch.bytes.clone()] == self.right[batch.bytes.clone()];
            self.batches.iter().filter(is_intact).map(|batch| batch.offset).collect()
        }

        fn served(&self) -> Vec<u64> {
            let span = (START, START + self.bytes.len() as u64);
            let offsets = (Offset(100), Offset(self.end_offset));
            let mut survey = Survey::new(&header_at(100), span, offsets).in_one_piece();
            let mut served = Vec::new();
            survey.take(&self.bytes, &mut |found| {
                if let Found::Batch(batch) = found {
                    served.push(batch.header.base_offset.0);
                }
            });
            served
        }

        fn bytes_of(&self, offsets: &[u64]) -> usize {
            let is_one = |batch: &&Placed| offsets.contains(&batch.offset);
            self.batches.iter().filter(is_one).map(|batch| batch.bytes.len()).sum()
        }
    }

    #[test]
    fn two_groups_in_wrong_places_one_behind_the_other_hide_nothing_that_stands_behind_them() {
        // The third group is one large batch, into whose body the drive wrote two later groups.
        let mut groups = vec![vec![(1, 200)]; 12];
        groups[2] = vec![(4, 1500)];
        let mut drive = Drive::with(&groups);
        let hit = drive.groups[2].start;
        drive.write_astray(&[(8, hit + 2 * BLOCK), (10, hit + 4 * BLOCK)]);
        let others = [100, 101, 106, 107, 108, 109, 110, 112, 114];
        assert_eq!((drive.intact(), drive.served()), (others.to_vec(), others.to_vec()));
        // Nor if of the first one only the front is whole.
        drive.bytes[hit + 3 * BLOCK - 200] ^= 1;
        assert_eq!(drive.served(), others);
    }

    #[test]
    fn what_stands_in_a_damaged_batch_that_is_due_where_it_stands_is_in_a_wrong_place() {
        // The last group, the largest of what is behind, was written into the body of the third.
        let groups = [vec![(1, 200)], vec![(1, 200)], vec![(1, 3000)], vec![(1, 300)], vec![(1, 900); 2]];
        let mut drive = Drive::with(&groups);
        drive.write_astray(&[(4, drive.groups[2].start + BLOCK)]);
        assert_eq!(drive.served(), [100, 101, 103]);
    }

    #[test]
    fn more_runs_than_are_compared_at_once_are_all_served() {
        let mut drive = Drive::with(&vec![vec![(1, 200)]; 3 * RUNS_MAX]);
        // Every second batch is lost, so that each of the others is a run.
        for group in drive.groups.iter().step_by(2) {
            drive.bytes[group.start + 10] ^= 1;
        }
        assert_eq!(drive.intact().len(), 3 * RUNS_MAX / 2);
        assert_eq!(drive.served(), drive.intact());
    }

    #[test]
    fn garbage_in_the_padding_between_groups_parts_nothing() {
        let mut drive = Drive::with(&[vec![(1, 200)], vec![(1, 200); 2], vec![(1, 200)], vec![(1, 200)]]);
        // Behind damage, and behind a damaged batch.
        drive.bytes[100] ^= 1;
        for group in [0, 2] {
            let end = drive.groups[group].end;
            drive.bytes[end - 50..end].fill(9);
        }
        assert_eq!(drive.served(), [101, 102, 103, 104]);
    }

    #[test]
    fn no_less_is_served_than_stands_intact_where_it_belongs_and_nearly_always_all_of_that() {
        let mut missed = [0; 4];
        for (astray, flips) in (0..4).flat_map(|astray| (0..4).map(move |flips| (astray, flips))) {
            for seed in 0..300 {
                let mut random = SimRandom::new(seed, 1);
                let mut drive = Drive::drawn(&mut random);
                let (groups, blocks) = (drive.groups.len() as u64, (drive.bytes.len() / BLOCK) as u64);
                let place = |_| (random.below(groups) as usize, random.below(blocks) as usize * BLOCK);
                let moved: Vec<_> = (0..astray).map(place).collect();
                drive.write_astray(&moved);
                (0..flips).for_each(|_| drive.flip(&mut random));
                let (intact, served) = (drive.intact(), drive.served());
                let (bytes, least) = (drive.bytes_of(&served), drive.bytes_of(&intact));
                assert!(bytes >= least, "{astray} astray, {flips} flips, {seed}: {bytes} of {least} bytes");
                missed[astray] += usize::from(!intact.iter().all(|offset| served.contains(offset)));
            }
        }
        // What is heavier in its wrong place than all between that and its own, and has lost its neighbours.
        assert!(missed[0] == 0 && missed[1] <= 1 && missed[2] <= 6 && missed[3] <= 11, "of 1,200 each: {missed:?}");
    }
}

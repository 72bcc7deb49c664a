//! The judge: reads a partition from its first record to its last and compares it with what its writers know.
//!
//! Every acknowledged record must be there exactly once, intact, at the offset that its ack named, and each writer's
//! records in the order in which they were sent. Records whose outcome is unknown may be there, once; refused ones may
//! not. The judge takes constant time for each record and keeps nothing but what is wrong, so that it keeps up with
//! tens of millions of them. (`pyralog_engine::testing` judges whole histories with faults in them, and remembers every
//! record to do so.)

use std::{
    collections::BTreeMap,
    fmt,
    ops::{AddAssign, Range},
};

use crate::{
    dataset::{Dataset, Identity},
    ledger::{Ledger, Run},
};

/// How many defects are described in words; the rest are counted.
const SAMPLES_MAX: usize = 8;

/// What is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defects {
    /// Acknowledged records that are not there.
    pub lost: u64,
    /// Records that are there again.
    pub duplicated: u64,
    /// Records behind one that was sent later, at another offset than their ack said, or offsets that do not count up
    /// by one.
    pub reordered: u64,
    /// Records that are not what anybody wrote, or were refused and are there nevertheless.
    pub corrupt: u64,
    /// Acknowledged records that retention deleted before they were read. No defect.
    pub expired: u64,
    /// Some of the defects, in words.
    pub samples: Vec<String>,
}

/// A kind of defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`Defects::lost`].
    Lost,
    /// See [`Defects::duplicated`].
    Duplicated,
    /// See [`Defects::reordered`].
    Reordered,
    /// See [`Defects::corrupt`].
    Corrupt,
}

impl Defects {
    /// Notes `count` defects of a kind; `what` says in words what they are, and is called only while there is room.
    pub fn note(&mut self, kind: Kind, count: u64, what: impl FnOnce() -> String) {
        let counter = match kind {
            Kind::Lost => &mut self.lost,
            Kind::Duplicated => &mut self.duplicated,
            Kind::Reordered => &mut self.reordered,
            Kind::Corrupt => &mut self.corrupt,
        };
        *counter += count;
        if count > 0 && self.samples.len() < SAMPLES_MAX {
            self.samples.push(what());
        }
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.corrupt == 0
    }
}

impl AddAssign for Defects {
    fn add_assign(&mut self, other: Defects) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.expired += other.expired;
        let room = SAMPLES_MAX.saturating_sub(self.samples.len());
        self.samples.extend(other.samples.into_iter().take(room));
    }
}

impl fmt::Display for Defects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Defects { lost, duplicated, reordered, corrupt, samples, expired: _ } = self;
        write!(f, "{lost} lost, {duplicated} duplicated, {reordered} reordered, {corrupt} corrupt")?;
        samples.iter().try_for_each(|sample| write!(f, "\n  {sample}"))
    }
}

/// Judges one partition, record by record.
pub struct PartitionJudge<'a> {
    dataset: &'a Dataset,
    partition: u16,
    next_offset: u64,
    writers: Vec<Writer>,
    defects: Defects,
}

/// What is known of one writer while the partition is read.
struct Writer {
    /// The lowest sequence above all that were seen.
    expected: u64,
    /// Stretches below `expected` that were not seen, by their start.
    missing: BTreeMap<u64, u64>,
    runs: Vec<Run>,
    /// The run that the last record belonged to: records in order meet the runs in order.
    current: usize,
    refused: Vec<Range<u64>>,
}

impl<'a> PartitionJudge<'a> {
    /// A judge of `partition`, whose writers are numbered as `ledgers` are. Reading begins at offset 0.
    pub fn new<'l>(dataset: &'a Dataset, partition: u16, ledgers: impl IntoIterator<Item = &'l Ledger>) -> Self {
        let writers = ledgers.into_iter().map(Writer::new).collect();
        PartitionJudge { dataset, partition, next_offset: 0, writers, defects: Defects::default() }
    }

    /// The offset to be read next.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// Takes the next record of the partition.
    pub fn record(&mut self, offset: u64, value: &[u8]) {
        if offset != self.next_offset {
            let (partition, expected) = (self.partition, self.next_offset);
            let what = || format!("partition {partition}: offset {offset} follows where {expected} should");
            self.defects.note(Kind::Reordered, 1, what);
        }
        self.next_offset = offset + 1;
        let (partition, writers) = (self.partition, self.writers.len());
        match self.dataset.read(value) {
            Ok(who) if who.partition == partition && usize::from(who.writer) < writers => self.see(who, offset),
            Ok(who) => {
                let what = || format!("partition {partition}, offset {offset}: a record of {who:?}");
                self.defects.note(Kind::Corrupt, 1, what);
            }
            Err(damage) => {
                let what = || format!("partition {partition}, offset {offset}: damaged ({damage:?})");
                self.defects.note(Kind::Corrupt, 1, what);
                self.excuse(offset);
            }
        }
    }

    /// Takes the key of the record that was taken last. It follows from who wrote the record.
    pub fn key(&mut self, offset: u64, key: Option<&[u8]>, value: &[u8]) {
        if !self.dataset.has_keys() {
            return;
        }
        // A damaged value is a defect already.
        let Ok(who) = self.dataset.read(value) else { return };
        if self.dataset.key(who) != key {
            let partition = self.partition;
            let what = || format!("partition {partition}, offset {offset}: {who:?} has the key {key:?}");
            self.defects.note(Kind::Corrupt, 1, what);
        }
    }

    /// The log begins at `start` now, beyond the next offset: the records between were deleted on purpose.
    pub fn expire_before(&mut self, start: u64) {
        let gone = self.next_offset..start;
        for writer in &mut self.writers {
            self.defects.expired += writer.expire(&gone);
        }
        self.next_offset = start.max(self.next_offset);
    }

    /// Takes note of something unreadable at the offset that is next, such as a batch that does not parse.
    pub fn unreadable(&mut self, what: &dyn fmt::Display) {
        let (partition, offset) = (self.partition, self.next_offset);
        self.defects.note(Kind::Corrupt, 1, || format!("partition {partition}, offset {offset}: {what}"));
    }

    /// What was wrong, now that the partition was read to its end.
    pub fn finish(mut self) -> Defects {
        for (number, writer) in self.writers.iter().enumerate() {
            let lost = writer.lost();
            let (partition, first) = (self.partition, lost.first().cloned().unwrap_or_default());
            let count = lost.iter().map(|range| range.end - range.start).sum();
            self.defects.note(Kind::Lost, count, || {
                format!(
                    "partition {partition}, writer {number}: {count} acknowledged records are missing, first {first:?}"
                )
            });
        }
        self.defects
    }

    fn see(&mut self, who: Identity, offset: u64) {
        let (partition, defects) = (self.partition, &mut self.defects);
        let writer = &mut self.writers[usize::from(who.writer)];
        match writer.see(who.sequence) {
            Seen::InOrder => {}
            Seen::Late => {
                let what = || format!("partition {partition}, offset {offset}: {who:?} comes after a later one");
                defects.note(Kind::Reordered, 1, what);
            }
            Seen::Again => {
                let what = || format!("partition {partition}, offset {offset}: {who:?} is there again");
                return defects.note(Kind::Duplicated, 1, what);
            }
        }
        if let Some(acked) = writer.acked_offset(who.sequence) {
            if acked != offset {
                let what =
                    || format!("partition {partition}: {who:?} was acknowledged at {acked} and lies at {offset}");
                defects.note(Kind::Reordered, 1, what);
            }
        } else if writer.refused.iter().any(|range| range.contains(&who.sequence)) {
            let what = || format!("partition {partition}, offset {offset}: {who:?} was refused and is stored");
            defects.note(Kind::Corrupt, 1, what);
        }
    }

    /// A damaged record is corrupt, not also lost: finds out which one was acknowledged there and counts it as seen.
    fn excuse(&mut self, offset: u64) {
        for writer in &mut self.writers {
            if let Some(run) = writer.runs.iter().find(|run| run.offsets().contains(&offset)) {
                writer.see(run.sequence + (offset - run.offset));
                return;
            }
        }
    }
}

enum Seen {
    InOrder,
    Late,
    Again,
}

impl Writer {
    fn new(ledger: &Ledger) -> Self {
        let (runs, refused) = (ledger.runs(), ledger.refusals().to_vec());
        Writer { expected: 0, missing: BTreeMap::new(), runs, current: 0, refused }
    }

    fn see(&mut self, sequence: u64) -> Seen {
        if sequence >= self.expected {
            if sequence > self.expected {
                self.missing.insert(self.expected, sequence);
            }
            self.expected = sequence + 1;
            return Seen::InOrder;
        }
        let gap = self.missing.range(..=sequence).next_back().map(|(start, end)| (*start, *end));
        match gap.filter(|(_, end)| sequence < *end) {
            None => Seen::Again,
            Some((start, end)) => {
                self.missing.remove(&start);
                if start < sequence {
                    self.missing.insert(start, sequence);
                }
                if sequence + 1 < end {
                    self.missing.insert(sequence + 1, end);
                }
                Seen::Late
            }
        }
    }

    /// Forgets the acks of the records at these offsets; returns how many there were.
    fn expire(&mut self, gone: &Range<u64>) -> u64 {
        let before: u64 = self.runs.iter().map(|run| run.count).sum();
        let part = |run: &Run, from: u64, to: u64| {
            let (from, to) = (from.max(run.offset), to.min(run.offsets().end));
            let sequence = run.sequence + from.saturating_sub(run.offset);
            (from < to).then(|| Run { sequence, offset: from, count: to - from })
        };
        let kept = |run: &Run| [part(run, 0, gone.start), part(run, gone.end.max(gone.start), u64::MAX)];
        self.runs = self.runs.iter().flat_map(kept).flatten().collect();
        self.current = 0;
        before - self.runs.iter().map(|run| run.count).sum::<u64>()
    }

    /// The offset that the ack of this record named, if it was acknowledged.
    fn acked_offset(&mut self, sequence: u64) -> Option<u64> {
        let holds = |run: Option<&Run>| run.filter(|run| run.sequences().contains(&sequence)).copied();
        let run = holds(self.runs.get(self.current)).or_else(|| {
            self.current = self.runs.partition_point(|run| run.sequence <= sequence).saturating_sub(1);
            holds(self.runs.get(self.current))
        })?;
        Some(run.offset + (sequence - run.sequence))
    }

    /// Acknowledged sequences that were not seen.
    fn lost(&self) -> Vec<Range<u64>> {
        let unseen =
            self.missing.iter().map(|(start, end)| *start..*end).chain(std::iter::once(self.expected..u64::MAX));
        let mut lost = Vec::new();
        for gap in unseen {
            let first = self.runs.partition_point(|run| run.sequences().end <= gap.start);
            for run in self.runs[first..].iter().take_while(|run| run.sequence < gap.end) {
                lost.push(run.sequence.max(gap.start)..run.sequences().end.min(gap.end));
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{KeySpace, Keys};

    /// Two writers, ten records each, in turns; the ledgers that match; and the values by offset.
    struct World {
        dataset: Dataset,
        ledgers: Vec<Ledger>,
        stored: Vec<Identity>,
    }

    impl World {
        fn new() -> Self {
            let mut world = World { dataset: Dataset::new(9, 64), ledgers: vec![Ledger::default(); 2], stored: vec![] };
            for turn in 0..10 {
                for writer in 0..2u16 {
                    let sequences = world.ledgers[usize::from(writer)].begin(1);
                    let offset = world.stored.len() as u64;
                    world.ledgers[usize::from(writer)].acknowledged(sequences, offset);
                    world.stored.push(Identity { writer, partition: 5, sequence: turn });
                }
            }
            world
        }

        fn judge(&self) -> Defects {
            self.judge_with(|_, _| {})
        }

        fn judge_with(&self, mut damage: impl FnMut(u64, &mut Vec<u8>)) -> Defects {
            let mut judge = PartitionJudge::new(&self.dataset, 5, &self.ledgers);
            for (offset, who) in self.stored.iter().enumerate() {
                let mut value = vec![0; self.dataset.value_bytes()];
                self.dataset.write(*who, &mut value);
                damage(offset as u64, &mut value);
                judge.record(offset as u64, &value);
            }
            judge.finish()
        }
    }

    fn counts(defects: &Defects) -> [u64; 4] {
        [defects.lost, defects.duplicated, defects.reordered, defects.corrupt]
    }

    #[test]
    fn what_was_written_and_is_there_is_clean() {
        let defects = World::new().judge();
        assert!(defects.is_clean(), "{defects}");
    }

    #[test]
    fn a_record_missing_at_the_end_is_lost() {
        let mut world = World::new();
        world.stored.pop();
        assert_eq!(counts(&world.judge()), [1, 0, 0, 0]);
    }

    #[test]
    fn a_record_missing_in_the_middle_is_lost_and_what_follows_lies_at_wrong_offsets() {
        let mut world = World::new();
        world.stored.remove(4);
        assert_eq!(counts(&world.judge()), [1, 0, 15, 0]);
    }

    #[test]
    fn what_retention_deleted_is_expired_and_what_else_is_missing_is_lost() {
        for expired in [0..0, 0..6, 4..11, 0..20] {
            for missing in [None, Some(13)] {
                let world = World::new();
                let mut judge = PartitionJudge::new(&world.dataset, 5, &world.ledgers);
                for (offset, who) in (0..).zip(&world.stored) {
                    if expired.start == offset {
                        judge.expire_before(expired.end);
                    }
                    if expired.contains(&offset) || missing == Some(offset) {
                        continue;
                    }
                    let mut value = vec![0; world.dataset.value_bytes()];
                    world.dataset.write(*who, &mut value);
                    judge.record(offset, &value);
                }
                let defects = judge.finish();
                let lost = u64::from(missing.is_some_and(|offset| !expired.contains(&offset)));
                assert_eq!((defects.expired, defects.lost), (expired.end - expired.start, lost), "{expired:?}");
                assert_eq!(defects.is_clean(), lost == 0, "{defects}");
            }
        }
    }

    #[test]
    fn everything_missing_is_lost() {
        let mut world = World::new();
        world.stored.clear();
        assert_eq!(counts(&world.judge()), [20, 0, 0, 0]);
    }

    #[test]
    fn a_record_that_is_there_twice_is_duplicated() {
        let mut world = World::new();
        world.stored.push(world.stored[3]);
        assert_eq!(counts(&world.judge()), [0, 1, 0, 0]);
    }

    #[test]
    fn records_of_one_writer_that_changed_places_are_reordered() {
        let mut world = World::new();
        world.stored.swap(2, 4);
        // One comes late, and both lie where the acks did not say.
        assert_eq!(counts(&world.judge()), [0, 0, 3, 0]);
    }

    #[test]
    fn a_damaged_record_is_corrupt_and_not_also_lost() {
        let defects = World::new().judge_with(|offset, value| {
            if offset == 7 {
                value[40] ^= 1;
            }
        });
        assert_eq!(counts(&defects), [0, 0, 0, 1]);
        assert!(defects.samples[0].contains("offset 7"), "{defects}");
    }

    #[test]
    fn a_record_of_another_partition_or_writer_is_corrupt() {
        for stranger in
            [Identity { writer: 0, partition: 4, sequence: 10 }, Identity { writer: 2, partition: 5, sequence: 0 }]
        {
            let mut world = World::new();
            world.stored.push(stranger);
            assert_eq!(counts(&world.judge()), [0, 0, 0, 1]);
        }
    }

    #[test]
    fn offsets_that_do_not_count_up_by_one_are_noticed() {
        let world = World::new();
        let mut judge = PartitionJudge::new(&world.dataset, 5, []);
        judge.record(1, &[]);
        assert_eq!(counts(&judge.finish()), [0, 0, 1, 1]);
    }

    #[test]
    fn a_write_of_unknown_outcome_may_be_there_once_and_a_refused_one_may_not() {
        let mut world = World::new();
        let unknown = world.ledgers[0].begin(1);
        assert!(world.judge().is_clean(), "unknown and not there");
        world.stored.push(Identity { writer: 0, partition: 5, sequence: unknown.start });
        assert!(world.judge().is_clean(), "unknown and there");
        world.ledgers[0].refused(unknown);
        assert_eq!(counts(&world.judge()), [0, 0, 0, 1]);
    }

    #[test]
    fn only_some_defects_are_told_in_words() {
        let defects = World::new().judge_with(|_, value| value[0] ^= 1);
        assert_eq!((defects.corrupt, defects.samples.len()), (20, SAMPLES_MAX));
    }

    #[test]
    fn a_record_with_the_key_of_another_is_corrupt() {
        let keys = KeySpace::new(Keys::Sequential, 100, 1);
        let dataset = Dataset::new(9, 64).with_keys(keys);
        let mut ledger = Ledger::default();
        let sequences = ledger.begin(2);
        ledger.acknowledged(sequences, 0);
        let mut judge = PartitionJudge::new(&dataset, 0, [&ledger]);
        for sequence in 0..2 {
            let (who, mut value) = (Identity { writer: 0, partition: 0, sequence }, Vec::new());
            dataset.write(who, &mut value);
            judge.record(sequence, &value);
            let first = Identity { sequence: 0, ..who };
            judge.key(sequence, dataset.key(first), &value);
        }
        assert_eq!(counts(&judge.finish()), [0, 0, 0, 1]);
    }
}

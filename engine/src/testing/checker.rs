//! The judge: takes a history and names every promise that was broken. Linear in the history's length.
//!
//! It walks through the events and keeps, per partition, what must be at each offset and how safely it is known to be
//! stored. A fault turns what is stored less safely into what may be gone. The rules have the numbers of the programme
//! in
//! `docs/RELIABILITY.md`; later ones get a variant of [`Rule`], another of [`Evidence`], and a check at the event that
//! shows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::history::{AppendId, AppendOutcome, AppendSent, Event, FinalRead, History, ReadSeen, RecordTag};
use crate::types::{AckLevel, Offset, PartitionId};

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What was acknowledged is readable, the same bytes at the same offset, after every fault that its level survives.
    C1,
    /// What was refused is never readable; what is unknown is readable at most once, and once seen for ever.
    C2,
    /// Offsets are contiguous: no gap, no overlap, no two contents, nothing that nobody wrote.
    C3,
    /// One producer's records appear in the order of their sequence, none twice.
    C4,
}

/// What shows that a promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// This record should be there, and the partition ends before it.
    Missing(RecordTag),
    /// Another record is where this one should be.
    Replaced {
        /// What should be there.
        expected: RecordTag,
        /// What is there.
        found: RecordTag,
    },
    /// The record's content is not what its producer sent.
    Altered {
        /// What was sent.
        sent: RecordTag,
        /// What is there.
        found: RecordTag,
    },
    /// Nobody wrote this record to this partition.
    NeverSent(RecordTag),
    /// This append was refused, and here is a record of it.
    RefusedButStored(AppendId),
    /// The record is at this offset too.
    Twice {
        /// Which record.
        tag: RecordTag,
        /// Its other offset.
        other: Offset,
    },
    /// This record of the same producer comes first although it was sent later.
    OutOfOrder {
        /// The record out of place.
        tag: RecordTag,
        /// The sequence of the one before it.
        before: u64,
    },
    /// Here should be this offset.
    Gap {
        /// The offset after the one before.
        expected: Offset,
    },
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// Where.
    pub partition: PartitionId,
    /// At which record.
    pub offset: Offset,
    /// What shows it.
    pub evidence: Evidence,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} broken in partition {} at offset {}: {:?}",
            self.rule, self.partition, self.offset, self.evidence
        )
    }
}

/// Every broken promise of `history`, in the order in which it shows; at most 100.
pub fn judge(history: &History) -> Vec<Violation> {
    let mut judge = Judge { history, partitions: BTreeMap::new(), lives: 0, violations: Vec::new() };
    for (at, event) in history.events().iter().enumerate() {
        judge.take(AppendId(at), event);
    }
    judge.violations.truncate(VIOLATIONS_MAX);
    judge.violations
}

/// A broken log breaks everywhere; nobody reads more than this.
const VIOLATIONS_MAX: usize = 100;

/// What must be at an offset.
#[derive(Clone, Copy)]
struct Expected {
    tag: RecordTag,
    /// How safely it is known to be stored.
    level: AckLevel,
    /// A fault came that this level does not survive: it may be gone, or another record may be here.
    may_be_gone: bool,
    /// Whether it was acknowledged; else it was only seen.
    acked: bool,
}

/// An append as far as it is known.
#[derive(Clone, Copy)]
struct Append {
    id: AppendId,
    tag: RecordTag,
    level: AckLevel,
    refused: bool,
    acked: bool,
    /// The life of the server in which it was sent.
    life: u32,
}

#[derive(Default)]
struct PartitionState {
    /// By offset; `None` for offsets of which nothing is known.
    expected: Vec<Option<Expected>>,
    /// All before this are durable, so no fault changes them.
    settled: usize,
    /// By producer and sequence.
    sent: BTreeMap<(u32, u64), Append>,
}

struct Judge<'a> {
    history: &'a History,
    partitions: BTreeMap<PartitionId, PartitionState>,
    /// How often the server failed so far.
    lives: u32,
    violations: Vec<Violation>,
}

impl Judge<'_> {
    fn take(&mut self, at: AppendId, event: &Event) {
        match event {
            Event::Sent(append) => self.sent(at, append),
            Event::Ended(id, outcome) => self.ended(*id, *outcome),
            Event::Read(read) => self.read(read),
            Event::Fault(fault) => {
                self.lives += 1;
                for partition in self.partitions.values_mut() {
                    partition.lose_below(fault.survived_by());
                }
            }
            Event::Final(read) => self.last(read),
        }
    }

    fn sent(&mut self, id: AppendId, append: &AppendSent) {
        let life = self.lives;
        let partition = self.partitions.entry(append.partition).or_default();
        for tag in &append.records {
            let sent = Append { id, tag: *tag, level: append.ack, refused: false, acked: false, life };
            partition.sent.insert((tag.producer, tag.sequence), sent);
        }
    }

    fn ended(&mut self, id: AppendId, outcome: AppendOutcome) {
        let Some(Event::Sent(append)) = self.history.events().get(id.0) else { return };
        match outcome {
            AppendOutcome::Unknown => {}
            AppendOutcome::Refused => {
                let partition = self.partitions.entry(append.partition).or_default();
                for tag in &append.records {
                    if let Some(sent) = partition.sent.get_mut(&(tag.producer, tag.sequence)) {
                        sent.refused = true;
                    }
                }
            }
            AppendOutcome::Acked { level, base } => {
                for (tag, offset) in append.records.iter().zip(base.0..) {
                    self.know(append.partition, Offset(offset), (*tag, level), true);
                }
            }
        }
    }

    fn read(&mut self, read: &ReadSeen) {
        self.contiguous(read.partition, read.from, &read.records);
        for (offset, tag) in &read.records {
            self.see(read.partition, *offset, *tag);
        }
    }

    /// A record was shown. It is only shown when it is as safe as was asked for; and what an earlier life of the server
    /// stored was synced before this life showed it.
    fn see(&mut self, partition: PartitionId, offset: Offset, tag: RecordTag) {
        let state = self.partitions.entry(partition).or_default();
        let Some(append) = state.sent.get(&(tag.producer, tag.sequence)).copied() else {
            return self.broken(Rule::C3, partition, offset, Evidence::NeverSent(tag));
        };
        if append.refused {
            return self.broken(Rule::C2, partition, offset, Evidence::RefusedButStored(append.id));
        }
        if append.tag.crc != tag.crc {
            let evidence = Evidence::Altered { sent: append.tag, found: tag };
            return self.broken(Rule::C1, partition, offset, evidence);
        }
        let level = if append.life == self.lives { append.level } else { AckLevel::Durable };
        self.know(partition, offset, (tag, level), false);
    }

    fn know(&mut self, partition: PartitionId, offset: Offset, (tag, level): (RecordTag, AckLevel), acked: bool) {
        let state = self.partitions.entry(partition).or_default();
        if let Some(append) = state.sent.get_mut(&(tag.producer, tag.sequence)) {
            append.acked |= acked;
        }
        let index = offset.0 as usize;
        if state.expected.len() <= index {
            state.expected.resize(index + 1, None);
        }
        let new = Expected { tag, level, may_be_gone: false, acked };
        match &mut state.expected[index] {
            Some(old) if old.tag == tag => {
                old.level = if old.may_be_gone { level } else { old.level.max(level) };
                old.may_be_gone = false;
                old.acked |= acked;
            }
            Some(old) if !old.may_be_gone => {
                let (rule, expected) = (if old.acked { Rule::C1 } else { Rule::C3 }, old.tag);
                self.broken(rule, partition, offset, Evidence::Replaced { expected, found: tag });
            }
            place => *place = Some(new),
        }
    }

    fn last(&mut self, read: &FinalRead) {
        self.contiguous(read.partition, read.start, &read.records);
        let mut places: BTreeMap<(u32, u64), Offset> = BTreeMap::new();
        let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
        for (offset, tag) in &read.records {
            self.see(read.partition, *offset, *tag);
            if let Some(other) = places.insert((tag.producer, tag.sequence), *offset) {
                let rule = if self.is_acked(read.partition, *tag) { Rule::C4 } else { Rule::C2 };
                self.broken(rule, read.partition, *offset, Evidence::Twice { tag: *tag, other });
                continue;
            }
            let before = newest.insert(tag.producer, tag.sequence);
            if let Some(before) = before.filter(|before| *before > tag.sequence) {
                self.broken(Rule::C4, read.partition, *offset, Evidence::OutOfOrder { tag: *tag, before });
            }
        }
        self.nothing_missing(read);
    }

    fn is_acked(&self, partition: PartitionId, tag: RecordTag) -> bool {
        let sent = self.partitions.get(&partition).and_then(|state| state.sent.get(&(tag.producer, tag.sequence)));
        sent.is_some_and(|append| append.acked)
    }

    fn nothing_missing(&mut self, read: &FinalRead) {
        let found: BTreeSet<u64> = read.records.iter().map(|(offset, _)| offset.0).collect();
        let Some(state) = self.partitions.get(&read.partition) else { return };
        let mut missing = Vec::new();
        for (offset, known) in (0..).zip(&state.expected).filter_map(|(o, known)| known.map(|known| (o, known))) {
            if offset >= read.start.0 && !known.may_be_gone && !found.contains(&offset) {
                missing.push((Offset(offset), known));
            }
        }
        for (offset, known) in missing {
            let rule = if known.acked { Rule::C1 } else { Rule::C2 };
            self.broken(rule, read.partition, offset, Evidence::Missing(known.tag));
        }
    }

    fn contiguous(&mut self, partition: PartitionId, from: Offset, records: &[(Offset, RecordTag)]) {
        let mut expected = from;
        for (offset, _) in records {
            if *offset != expected {
                self.broken(Rule::C3, partition, *offset, Evidence::Gap { expected });
            }
            expected = offset.advance(1);
        }
    }

    fn broken(&mut self, rule: Rule, partition: PartitionId, offset: Offset, evidence: Evidence) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { rule, partition, offset, evidence });
        }
    }
}

impl PartitionState {
    /// A fault took, or may have taken, what is stored less safely than `level`. What lies before a safe record is as
    /// safe: a log is kept as a prefix.
    fn lose_below(&mut self, level: AckLevel) {
        let mut safest = AckLevel::Received;
        let mut durable_from_end = true;
        for index in (self.settled..self.expected.len()).rev() {
            let Some(known) = &mut self.expected[index] else { continue };
            if !known.may_be_gone {
                safest = safest.max(known.level);
            }
            known.level = known.level.max(safest);
            known.may_be_gone |= known.level < level;
            if durable_from_end && safest >= AckLevel::Durable {
                self.settled = self.settled.max(index + 1);
                durable_from_end = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::history::Fault, *};
    use crate::types::{LogUid, PartitionIndex};

    const P: PartitionId = PartitionId { log: LogUid(1), index: PartitionIndex(0) };

    fn tag(sequence: u64) -> RecordTag {
        RecordTag { producer: 7, sequence, crc: 1000 + sequence as u32 }
    }

    fn send(history: &mut History, ack: AckLevel, sequences: &[u64]) -> AppendId {
        history.send(AppendSent { partition: P, ack, records: sequences.iter().map(|s| tag(*s)).collect() })
    }

    fn acked(history: &mut History, level: AckLevel, base: u64, sequences: &[u64]) {
        let id = send(history, level, sequences);
        history.end(id, AppendOutcome::Acked { level, base: Offset(base) });
    }

    fn placed(from: u64, tags: &[RecordTag]) -> Vec<(Offset, RecordTag)> {
        (from..).map(Offset).zip(tags.iter().copied()).collect()
    }

    fn read(history: &mut History, from: u64, sequences: &[u64]) {
        let records = placed(from, &sequences.iter().map(|s| tag(*s)).collect::<Vec<_>>());
        history.read(ReadSeen { observer: 0, partition: P, from: Offset(from), records });
    }

    fn finish(history: &mut History, sequences: &[u64]) {
        let records = placed(0, &sequences.iter().map(|s| tag(*s)).collect::<Vec<_>>());
        history.finish(FinalRead { partition: P, start: Offset(0), records });
    }

    fn rules(history: &History) -> Vec<Rule> {
        judge(history).iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn a_history_of_all_outcomes_and_faults_passes() {
        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[1, 2]);
        acked(&mut h, AckLevel::Written, 2, &[3]);
        acked(&mut h, AckLevel::Received, 3, &[4]);
        read(&mut h, 1, &[2, 3, 4]);
        let refused = send(&mut h, AckLevel::Durable, &[5]);
        h.end(refused, AppendOutcome::Refused);
        send(&mut h, AckLevel::Durable, &[6]);
        h.fault(Fault::Kill);
        // The received one is gone, and the unknown one has taken its place.
        read(&mut h, 2, &[3, 6]);
        acked(&mut h, AckLevel::Written, 4, &[7]);
        h.fault(Fault::PowerLoss);
        acked(&mut h, AckLevel::Durable, 4, &[8]);
        finish(&mut h, &[1, 2, 3, 6, 8]);
        assert_eq!(judge(&h), []);
    }

    #[test]
    fn c1_a_durable_record_that_is_gone_after_a_loss_of_power() {
        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[1, 2]);
        h.fault(Fault::PowerLoss);
        finish(&mut h, &[1]);
        let violation =
            Violation { rule: Rule::C1, partition: P, offset: Offset(1), evidence: Evidence::Missing(tag(2)) };
        assert_eq!(judge(&h), [violation]);
    }

    #[test]
    fn c1_a_written_record_survives_a_kill_but_need_not_survive_a_loss_of_power() {
        for (fault, fine) in [(Fault::Kill, false), (Fault::PowerLoss, true)] {
            let mut h = History::new();
            acked(&mut h, AckLevel::Written, 0, &[1]);
            h.fault(fault);
            finish(&mut h, &[]);
            assert_eq!(judge(&h).is_empty(), fine, "{fault:?}");
        }
    }

    #[test]
    fn c1_what_lies_before_a_durable_record_is_durable_too() {
        let mut h = History::new();
        acked(&mut h, AckLevel::Received, 0, &[1]);
        acked(&mut h, AckLevel::Durable, 1, &[2]);
        h.fault(Fault::PowerLoss);
        let other = send(&mut h, AckLevel::Received, &[3]);
        h.end(other, AppendOutcome::Unknown);
        finish(&mut h, &[3, 2]);
        assert_eq!(rules(&h)[0], Rule::C1);
    }

    #[test]
    fn c1_another_record_or_other_bytes_at_an_acknowledged_offset() {
        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[1]);
        send(&mut h, AckLevel::Durable, &[2]);
        read(&mut h, 0, &[2]);
        assert_eq!(rules(&h), [Rule::C1]);

        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[1]);
        let altered = RecordTag { crc: 5, ..tag(1) };
        h.finish(FinalRead { partition: P, start: Offset(0), records: placed(0, &[altered]) });
        let found = judge(&h);
        assert_eq!(found[0].evidence, Evidence::Altered { sent: tag(1), found: altered });
    }

    #[test]
    fn c2_a_refused_record_is_seen() {
        let mut h = History::new();
        let id = send(&mut h, AckLevel::Durable, &[1]);
        h.end(id, AppendOutcome::Refused);
        finish(&mut h, &[1]);
        assert_eq!(rules(&h), [Rule::C2]);
    }

    #[test]
    fn c2_an_unknown_record_is_stored_twice() {
        let mut h = History::new();
        send(&mut h, AckLevel::Durable, &[1]);
        finish(&mut h, &[1, 1]);
        assert_eq!(rules(&h), [Rule::C2]);
    }

    #[test]
    fn c2_an_unknown_record_that_a_new_life_showed_is_gone_in_the_next() {
        let mut h = History::new();
        send(&mut h, AckLevel::Received, &[1]);
        h.fault(Fault::Kill);
        read(&mut h, 0, &[1]);
        h.fault(Fault::PowerLoss);
        finish(&mut h, &[]);
        assert_eq!(rules(&h), [Rule::C2]);
    }

    #[test]
    fn c3_a_gap_two_contents_and_a_record_that_nobody_sent() {
        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[1, 2]);
        let records = vec![(Offset(0), tag(1)), (Offset(2), tag(2))];
        h.read(ReadSeen { observer: 0, partition: P, from: Offset(0), records });
        assert_eq!(rules(&h), [Rule::C3]);

        let mut h = History::new();
        send(&mut h, AckLevel::Durable, &[1]);
        send(&mut h, AckLevel::Durable, &[2]);
        read(&mut h, 0, &[1]);
        read(&mut h, 0, &[2]);
        assert_eq!(rules(&h), [Rule::C3]);

        let mut h = History::new();
        finish(&mut h, &[9]);
        assert_eq!(judge(&h)[0].evidence, Evidence::NeverSent(tag(9)));
    }

    #[test]
    fn c4_a_producers_records_change_places_or_appear_twice() {
        let mut h = History::new();
        send(&mut h, AckLevel::Durable, &[1]);
        send(&mut h, AckLevel::Durable, &[2]);
        finish(&mut h, &[2, 1]);
        assert_eq!(rules(&h), [Rule::C4]);

        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[1]);
        finish(&mut h, &[1, 1]);
        assert_eq!(rules(&h), [Rule::C4]);
    }
}

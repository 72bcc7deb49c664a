//! The judge: takes a history and names every promise that was broken. Linear in the history's length.
//!
//! It walks through the events and keeps, per partition, what must be at each offset and how safely it is known to be
//! stored. A fault turns what is stored less safely into what may be gone. The rules have the numbers of the programme
//! in `docs/RELIABILITY.md`; later ones get a variant of [`Rule`], another of [`Evidence`], and a check at the event
//! that shows it.

mod beginning;
mod partition;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::history::{AppendId, AppendOutcome, AppendSent, Event, FinalRead, History, ReadSeen, RecordTag};
use crate::types::{AckLevel, Offset, PartitionId};
use partition::{Append, Expected, PartitionState};

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
    /// Where a partition begins never goes back for one observer, across restarts.
    C6,
    /// An append that expects an offset gets that one or none, and at most one of those who expect it wins.
    C8,
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
    /// The append was to be stored at another offset or not at all.
    Misplaced {
        /// At which one.
        expected: Offset,
    },
    /// Two appends that expect this offset were acknowledged.
    TwoWinners {
        /// The first of them.
        first: AppendId,
        /// The second.
        second: AppendId,
    },
    /// The partition begins here, or shows a record from here, after an observer was told that it begins later.
    BeginningWentBack {
        /// What the observer was told.
        seen: Offset,
    },
    /// The partition begins here, but nobody asked to delete so much and nothing was old enough.
    GivenUp {
        /// Where it may begin at most.
        may_be: Offset,
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
    let (partitions, winners) = (BTreeMap::new(), BTreeMap::new());
    let mut judge = Judge { history, partitions, winners, lives: 0, violations: Vec::new() };
    for (at, event) in history.events().iter().enumerate() {
        judge.take(AppendId(at), event);
    }
    judge.violations.truncate(VIOLATIONS_MAX);
    judge.violations
}

/// A broken log breaks everywhere; nobody reads more than this.
const VIOLATIONS_MAX: usize = 100;

struct Judge<'a> {
    history: &'a History,
    partitions: BTreeMap<PartitionId, PartitionState>,
    /// The last append that was acknowledged at the offset that it expected.
    winners: BTreeMap<(PartitionId, Offset), AppendId>,
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
            Event::TrimSent(trim) => self.trim_sent(trim),
            Event::StartSeen(told) => self.start_seen(told),
            Event::Final(read) => self.last(read),
            Event::Expects(id, offset) => self.each_sent(*id, |append, at| append.condition = Some(offset.advance(at))),
            Event::Resent(id) => {
                let life = self.lives;
                self.each_sent(*id, |append, _| append.life = life);
            }
        }
    }

    fn sent(&mut self, id: AppendId, append: &AppendSent) {
        let life = self.lives;
        let partition = self.partitions.entry(append.partition).or_default();
        for tag in &append.records {
            let (condition, place) = (None, None);
            let sent =
                Append { id, tag: *tag, level: append.ack, refused: false, acked: false, life, condition, place };
            partition.sent.insert((tag.producer, tag.sequence), sent);
        }
    }

    fn ended(&mut self, id: AppendId, outcome: AppendOutcome) {
        let Some(Event::Sent(append)) = self.history.events().get(id.0) else { return };
        match outcome {
            AppendOutcome::Unknown => {}
            AppendOutcome::Refused => self.each_sent(id, |append, _| append.refused = true),
            AppendOutcome::Acked { level, base } => {
                self.won((id, append), base);
                for (tag, offset) in append.records.iter().zip(base.0..) {
                    self.know(append.partition, Offset(offset), (*tag, level), true);
                }
            }
        }
    }

    /// Changes what is known of each record of an append, by its place in it.
    fn each_sent(&mut self, id: AppendId, mut change: impl FnMut(&mut Append, u64)) {
        let Some(Event::Sent(append)) = self.history.events().get(id.0) else { return };
        let partition = self.partitions.entry(append.partition).or_default();
        for (tag, at) in append.records.iter().zip(0..) {
            if let Some(sent) = partition.sent.get_mut(&(tag.producer, tag.sequence)) {
                change(sent, at);
            }
        }
    }

    /// An append was acknowledged at `base`: if it expected that, no other one that did may still be there.
    fn won(&mut self, (id, append): (AppendId, &AppendSent), base: Offset) {
        let Some(tag) = append.records.first() else { return };
        let Some(state) = self.partitions.get(&append.partition) else { return };
        if state.sent.get(&(tag.producer, tag.sequence)).is_none_or(|sent| sent.condition.is_none()) {
            return;
        }
        let other = self.winners.insert((append.partition, base), id);
        let Some(first) = other.filter(|other| *other != id) else { return };
        let Some(Event::Sent(before)) = self.history.events().get(first.0) else { return };
        if before.records.first().is_some_and(|tag| state.holds(*tag, base)) {
            self.broken(Rule::C8, append.partition, base, Evidence::TwoWinners { first, second: id });
        }
    }

    fn read(&mut self, read: &ReadSeen) {
        self.contiguous(read.partition, read.from, &read.records);
        self.nothing_before_the_beginning(read);
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
        let wrong = state.misplaced(tag, offset, acked);
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
        if let Some((rule, evidence)) = wrong {
            self.broken(rule, partition, offset, evidence);
        }
    }

    fn last(&mut self, read: &FinalRead) {
        self.contiguous(read.partition, read.start, &read.records);
        self.final_beginning(read);
        let mut places: BTreeSet<(u32, u64)> = BTreeSet::new();
        let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
        for (offset, tag) in &read.records {
            self.see(read.partition, *offset, *tag);
            if !places.insert((tag.producer, tag.sequence)) {
                // The judge said so when it saw it.
                continue;
            }
            let before = newest.insert(tag.producer, tag.sequence);
            if let Some(before) = before.filter(|before| *before > tag.sequence) {
                self.broken(Rule::C4, read.partition, *offset, Evidence::OutOfOrder { tag: *tag, before });
            }
        }
        self.nothing_missing(read);
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

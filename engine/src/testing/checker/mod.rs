//! The judge: takes a history and names every promise that was broken. Linear in the history's length.
//!
//! It walks through the events and keeps, per partition, what must be at each offset and how safely it is known to be
//! stored. A fault turns what is stored less safely into what may be gone. The rules have the numbers of the programme
//! in `docs/RELIABILITY.md`; later ones get a variant of [`Rule`], another of [`Evidence`], and a check at the event
//! that shows it.

mod answers;
mod beginning;
mod errors;
mod partition;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use super::history::{AppendId, AppendOutcome, AppendSent, Cause, Event, FinalRead, History, ReadSeen, RecordTag};
use crate::types::{AckLevel, LogUid, Offset, PartitionId};
use errors::Complaint;
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
    /// What was acknowledged before something else was asked lies before it, and shows in the answer.
    C5,
    /// The high watermark and the beginning of a partition never go back for one observer, also across restarts, and
    /// nothing above the watermark is shown.
    C6,
    /// What was shown is never taken back by a fault that it survives, acknowledged or not.
    C7,
    /// An append that expects an offset gets that one or none, and at most one of those who expect it wins.
    C8,
    /// An error occurs only where a fault or a limit explains it; one about a range carries the true range.
    C11,
    /// When nothing fails any more, everything ends within a minute and nothing stays in use.
    C12,
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
    /// An append that was sent after everything up to this offset was acknowledged was placed before that.
    BeforeEarlier {
        /// What was acknowledged when it was sent.
        acked_end: Offset,
    },
    /// The answer reaches to this offset, though more was acknowledged before the question.
    NotSeen {
        /// What was acknowledged when it was asked.
        acked_end: Offset,
    },
    /// The same observer saw a high watermark beyond this one.
    WentBack {
        /// What it saw.
        before: Offset,
    },
    /// Records up to this offset were shown, and the high watermark is lower.
    ShownTooEarly {
        /// The offset after the last one shown.
        shown_end: Offset,
    },
    /// Nothing that happened explains this error.
    Unexplained(String),
    /// The range that an error tells is not true.
    WrongRange(String),
    /// An operation took so long although nothing failed.
    TooLong(Duration),
    /// So much is in use though nothing is under way.
    LeftOver {
        /// What.
        what: &'static str,
        /// How much.
        amount: u64,
        /// How much may be.
        allowed: u64,
    },
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// Where, if it is about a partition.
    pub partition: Option<PartitionId>,
    /// At which record.
    pub offset: Offset,
    /// What shows it.
    pub evidence: Evidence,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { rule, partition, offset, evidence } = self;
        match partition {
            Some(partition) => write!(f, "{rule:?} broken in partition {partition} at offset {offset}: {evidence:?}"),
            None => write!(f, "{rule:?} broken: {evidence:?}"),
        }
    }
}

/// Every broken promise of `history`, in the order in which it shows; a few of each rule.
pub fn judge(history: &History) -> Vec<Violation> {
    let mut judge = Judge { history: history.events(), ..Judge::default() };
    for (at, event) in history.events().iter().enumerate() {
        judge.take(at, event);
    }
    judge.explain_errors();
    judge.violations
}

/// A broken log breaks everywhere; nobody reads more than this of each rule.
const VIOLATIONS_MAX: usize = 20;

#[derive(Default)]
struct Judge<'a> {
    history: &'a [Event],
    partitions: BTreeMap<PartitionId, PartitionState>,
    /// The last append that was acknowledged at the offset that it expected.
    winners: BTreeMap<(PartitionId, Offset), AppendId>,
    /// How often the server failed so far.
    lives: u32,
    /// What was acknowledged when each question was asked, and each append sent, that has no answer yet.
    asked: BTreeMap<usize, Offset>,
    /// Errors of this life, and what explains errors in it.
    errors: Vec<Complaint<'a>>,
    causes: BTreeSet<Cause>,
    /// Logs of which nothing is promised any more but that they are there as they were, or not at all.
    deleting: BTreeSet<LogUid>,
    healed: bool,
    violations: Vec<Violation>,
}

impl<'a> Judge<'a> {
    fn take(&mut self, at: usize, event: &'a Event) {
        match event {
            Event::Sent(append) => self.sent(AppendId(at), append),
            Event::Ended(id, outcome) => self.ended(*id, *outcome),
            Event::Read(read) => self.read(read),
            Event::Fault(fault) => {
                self.explain_errors();
                self.lives += 1;
                self.asked.clear();
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
            Event::Asked(partition) => drop(self.asked.insert(at, self.acked_end(*partition))),
            Event::Answered(answer) => self.answered(answer),
            Event::Failed(failed) => self.failed(failed),
            Event::NotStarted(why) => self.errors.push(Complaint::NotStarted(why)),
            Event::Cause(cause) => drop(self.causes.insert(*cause)),
            Event::Spoiled(spoiled) => self.partitions.entry(spoiled.partition).or_default().spoil(*spoiled),
            Event::Deleting(log) => drop(self.deleting.insert(*log)),
            Event::Healed => self.healed = true,
            Event::Took(took) => self.took(*took),
            Event::InUse { what, amount, allowed } => self.in_use(what, *amount, *allowed),
        }
    }

    fn sent(&mut self, id: AppendId, append: &AppendSent) {
        let life = self.lives;
        self.asked.insert(id.0, self.acked_end(append.partition));
        let partition = self.partitions.entry(append.partition).or_default();
        for tag in &append.records {
            let sent = Append {
                id,
                tag: *tag,
                level: append.ack,
                refused: false,
                unknown: false,
                acked: false,
                life,
                condition: None,
                place: None,
            };
            partition.sent.insert((tag.producer, tag.sequence), sent);
        }
    }

    fn ended(&mut self, id: AppendId, outcome: AppendOutcome) {
        let Some(Event::Sent(append)) = self.history.get(id.0) else { return };
        let acked_before = self.asked.remove(&id.0);
        match outcome {
            AppendOutcome::Unknown => self.each_sent(id, |append, _| append.unknown = true),
            AppendOutcome::Refused => self.each_sent(id, |append, _| append.refused = true),
            AppendOutcome::Acked { level, base } => {
                self.placed(append, base, acked_before);
                self.won((id, append), base);
                for (tag, offset) in append.records.iter().zip(base.0..) {
                    self.know(append.partition, Offset(offset), (*tag, level), true);
                }
            }
        }
    }

    /// Changes what is known of each record of an append, by its place in it.
    fn each_sent(&mut self, id: AppendId, mut change: impl FnMut(&mut Append, u64)) {
        let Some(Event::Sent(append)) = self.history.get(id.0) else { return };
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
        let Some(Event::Sent(before)) = self.history.get(first.0) else { return };
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
        let new = Expected { tag, level, may_be_gone: false, acked, life: self.lives };
        match &mut state.expected[index] {
            Some(old) if old.tag == tag => {
                old.level = if old.may_be_gone { level } else { old.level.max(level) };
                old.may_be_gone = false;
                old.acked |= acked;
            }
            Some(old) if !old.may_be_gone => {
                let other_life = if old.life < self.lives { Rule::C7 } else { Rule::C3 };
                let (rule, expected) = (if old.acked { Rule::C1 } else { other_life }, old.tag);
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
            let gone = offset >= read.start.0 && !known.may_be_gone && !found.contains(&offset);
            if gone && !state.is_spoiled(Offset(offset), Offset(offset + 1)) {
                missing.push((Offset(offset), known));
            }
        }
        for (offset, known) in missing {
            let unknown = || self.partitions[&read.partition].sent.get(&(known.tag.producer, known.tag.sequence));
            let rule = match known.acked {
                true => Rule::C1,
                false if unknown().is_some_and(|append| append.unknown) => Rule::C2,
                false => Rule::C7,
            };
            self.broken(rule, read.partition, offset, Evidence::Missing(known.tag));
        }
    }

    fn contiguous(&mut self, partition: PartitionId, from: Offset, records: &[(Offset, RecordTag)]) {
        let mut expected = from;
        for (offset, _) in records {
            let spoiled =
                || self.partitions.get(&partition).is_some_and(|state| state.may_be_unreadable(expected, *offset));
            if *offset != expected && (*offset < expected || !spoiled()) {
                self.broken(Rule::C3, partition, *offset, Evidence::Gap { expected });
            }
            expected = offset.advance(1);
        }
    }

    fn broken(&mut self, rule: Rule, partition: impl Into<Option<PartitionId>>, offset: Offset, evidence: Evidence) {
        if self.violations.iter().filter(|other| other.rule == rule).count() < VIOLATIONS_MAX {
            self.violations.push(Violation { rule, partition: partition.into(), offset, evidence });
        }
    }
}

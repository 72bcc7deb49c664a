//! What the judge knows of one partition.

use std::collections::BTreeMap;

use super::{Evidence, Rule, beginning::Beginning};
use crate::{
    testing::history::{AppendId, RecordTag, Spoiled},
    types::{AckLevel, Offset},
};

/// What must be at an offset.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    pub(super) tag: RecordTag,
    /// How safely it is known to be stored.
    pub(super) level: AckLevel,
    /// A fault came that this level does not survive: it may be gone, or another record may be here.
    pub(super) may_be_gone: bool,
    /// Whether it was acknowledged; else it was only seen.
    pub(super) acked: bool,
    /// The life of the server in which it was learned.
    pub(super) life: u32,
}

/// An append as far as it is known.
#[derive(Clone, Copy)]
pub(super) struct Append {
    pub(super) id: AppendId,
    pub(super) tag: RecordTag,
    pub(super) level: AckLevel,
    pub(super) refused: bool,
    /// Its client was told that nobody knows.
    pub(super) unknown: bool,
    pub(super) acked: bool,
    /// The life of the server in which it was sent last.
    pub(super) life: u32,
    /// The only offset it may have, if it was sent on that condition.
    pub(super) condition: Option<Offset>,
    /// Where it was found last.
    pub(super) place: Option<Offset>,
}

#[derive(Default)]
pub(super) struct PartitionState {
    pub(super) beginning: Beginning,
    /// By offset; `None` for offsets of which nothing is known.
    pub(super) expected: Vec<Option<Expected>>,
    /// All before this are durable, so no fault changes them.
    pub(super) settled: usize,
    /// By producer and sequence.
    pub(super) sent: BTreeMap<(u32, u64), Append>,
    /// The offset after the last acknowledged record that is still safe: whoever asks now must see so far.
    pub(super) acked_end: Offset,
    /// The high watermark that each observer saw last.
    pub(super) seen_end: BTreeMap<u32, Offset>,
    /// What a drive spoiled.
    pub(super) spoiled: Vec<Spoiled>,
}

impl PartitionState {
    /// Notes that the record `tag` was found at `offset`. What is wrong with that, if something is.
    pub(super) fn misplaced(&mut self, tag: RecordTag, offset: Offset, acked: bool) -> Option<(Rule, Evidence)> {
        let append = self.sent.get_mut(&(tag.producer, tag.sequence))?;
        append.acked |= acked;
        let (acked, other, condition) = (append.acked, append.place.replace(offset), append.condition);
        if let Some(expected) = condition.filter(|expected| *expected != offset) {
            return Some((Rule::C8, Evidence::Misplaced { expected }));
        }
        let other = other.filter(|other| *other != offset && self.holds(tag, *other))?;
        Some((if acked { Rule::C4 } else { Rule::C2 }, Evidence::Twice { tag, other }))
    }

    /// Whether `tag` is known to be at `offset`, and no fault since may have taken it.
    pub(super) fn holds(&self, tag: RecordTag, offset: Offset) -> bool {
        let known = self.expected.get(offset.0 as usize).copied().flatten();
        known.is_some_and(|known| known.tag == tag && !known.may_be_gone)
    }

    /// A fault took, or may have taken, what is stored less safely than `level`. What lies before a safe record is as
    /// safe: a log is kept as a prefix.
    pub(super) fn lose_below(&mut self, level: AckLevel) {
        let mut safest = AckLevel::Received;
        let mut durable_from_end = true;
        let mut safe_end = None;
        for index in (self.settled..self.expected.len()).rev() {
            let Some(known) = &mut self.expected[index] else { continue };
            if !known.may_be_gone {
                safest = safest.max(known.level);
            }
            known.level = known.level.max(safest);
            known.may_be_gone |= known.level < level;
            if !known.may_be_gone {
                safe_end.get_or_insert(index + 1);
            }
            if durable_from_end && safest >= AckLevel::Durable {
                self.settled = self.settled.max(index + 1);
                durable_from_end = false;
            }
        }
        self.reach_at_most(safe_end.unwrap_or(self.settled.min(self.expected.len())));
    }

    /// Nobody may rely on what is at `end` or behind it any more.
    fn reach_at_most(&mut self, end: usize) {
        let end = Offset(end as u64);
        self.acked_end = self.acked_end.min(end);
        self.seen_end.values_mut().for_each(|seen| *seen = (*seen).min(end));
    }

    /// A drive spoiled some of what is stored.
    pub(super) fn spoil(&mut self, spoiled: Spoiled) {
        self.spoiled.push(spoiled);
        let from = (spoiled.from.0 as usize).min(self.expected.len());
        // Nothing is left behind it, so nobody sees farther.
        if spoiled.to.0 as usize >= self.expected.len() {
            self.reach_at_most(from);
        }
        if spoiled.newest {
            self.expected[from..].iter_mut().flatten().for_each(|known| known.may_be_gone = true);
            self.settled = self.settled.min(from);
            self.reach_at_most(from);
        }
    }

    /// Whether all records from `from` to `to` were spoiled.
    pub(super) fn is_spoiled(&self, from: Offset, to: Offset) -> bool {
        let covers = |offset: u64| self.spoiled.iter().any(|s| s.from.0 <= offset && offset < s.to.0);
        (from.0..to.0).all(covers)
    }

    /// Whether damage explains that nothing is readable from `from` to `to`: each record was spoiled, or nobody relies
    /// on it since what was newest then was spoiled before it.
    pub(super) fn may_be_unreadable(&self, from: Offset, to: Offset) -> bool {
        let behind_newest = |offset: u64| self.spoiled.iter().any(|s| s.newest && s.from.0 <= offset);
        let relied_on = |offset: u64| {
            let known = self.expected.get(offset as usize).copied().flatten();
            known.is_some_and(|known| !known.may_be_gone)
        };
        let lost = |offset: u64| {
            self.is_spoiled(Offset(offset), Offset(offset + 1)) || behind_newest(offset) && !relied_on(offset)
        };
        (from.0..to.0).all(lost)
    }
}

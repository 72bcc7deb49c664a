//! C6 for the beginning of a partition: it never goes back for one observer, and it goes forward only as far as it was
//! asked to, or as the log's settings let it.

use std::collections::BTreeMap;

use super::{Evidence, Judge, Rule};
use crate::{
    testing::history::{FinalRead, ReadSeen, StartSeen, TrimSent},
    types::Offset,
};

/// What is known of the beginning of a partition.
#[derive(Default)]
pub(super) struct Beginning {
    /// The latest that each observer was told.
    seen: BTreeMap<u32, Offset>,
    /// The most that somebody asked to delete.
    asked: Offset,
}

impl Judge<'_> {
    pub(super) fn trim_sent(&mut self, trim: &TrimSent) {
        let beginning = &mut self.partitions.entry(trim.partition).or_default().beginning;
        beginning.asked = beginning.asked.max(trim.before);
    }

    pub(super) fn start_seen(&mut self, told: &StartSeen) {
        let beginning = &mut self.partitions.entry(told.partition).or_default().beginning;
        let may_be = beginning.asked.max(told.due);
        let seen = beginning.seen.entry(told.observer).or_default();
        let before = std::mem::replace(seen, told.start.max(*seen));
        if told.start < before {
            self.broken(Rule::C6, told.partition, told.start, Evidence::BeginningWentBack { seen: before });
        }
        if told.start > may_be {
            self.broken(Rule::C1, told.partition, told.start, Evidence::GivenUp { may_be });
        }
    }

    /// A read shows where the log begins at the latest.
    pub(super) fn nothing_before_the_beginning(&mut self, read: &ReadSeen) {
        let Some((first, _)) = read.records.first() else { return };
        let beginning = &self.partitions.entry(read.partition).or_default().beginning;
        let seen = beginning.seen.get(&read.observer).copied().unwrap_or_default();
        if *first < seen {
            self.broken(Rule::C6, read.partition, *first, Evidence::BeginningWentBack { seen });
        }
    }

    /// What one observer was told holds for all in the end.
    pub(super) fn final_beginning(&mut self, read: &FinalRead) {
        let beginning = &self.partitions.entry(read.partition).or_default().beginning;
        let seen = beginning.seen.values().copied().max().unwrap_or_default();
        if read.start < seen {
            self.broken(Rule::C6, read.partition, read.start, Evidence::BeginningWentBack { seen });
        }
    }
}

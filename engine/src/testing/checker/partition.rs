//! What the judge knows of one partition.

use std::collections::BTreeMap;

use crate::{
    testing::history::{AppendId, RecordTag},
    types::AckLevel,
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
}

/// An append as far as it is known.
#[derive(Clone, Copy)]
pub(super) struct Append {
    pub(super) id: AppendId,
    pub(super) tag: RecordTag,
    pub(super) level: AckLevel,
    pub(super) refused: bool,
    pub(super) acked: bool,
    /// The life of the server in which it was sent.
    pub(super) life: u32,
}

#[derive(Default)]
pub(super) struct PartitionState {
    /// By offset; `None` for offsets of which nothing is known.
    pub(super) expected: Vec<Option<Expected>>,
    /// All before this are durable, so no fault changes them.
    pub(super) settled: usize,
    /// By producer and sequence.
    pub(super) sent: BTreeMap<(u32, u64), Append>,
}

impl PartitionState {
    /// A fault took, or may have taken, what is stored less safely than `level`. What lies before a safe record is as
    /// safe: a log is kept as a prefix.
    pub(super) fn lose_below(&mut self, level: AckLevel) {
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

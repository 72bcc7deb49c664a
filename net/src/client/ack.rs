//! What a write that was acknowledged is told.

use pyralog_engine::{
    shard::request::Appended,
    types::{AckLevel, Offset, PartitionIndex},
};

/// One record was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordAck {
    /// In this partition.
    pub partition: PartitionIndex,
    /// At this offset.
    pub offset: Offset,
    /// This safe when it was acknowledged.
    pub level: AckLevel,
    /// An idempotent producer's attempt before the last had stored it.
    pub duplicate: bool,
}

/// A run of records was stored in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionAck {
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset of the first record; the others follow without gaps.
    pub base_offset: Offset,
    /// How many records.
    pub count: u32,
    /// An idempotent producer's attempt before the last had stored them.
    pub duplicate: bool,
}

/// The records of one `produce_batch` were stored.
///
/// Within a partition they lie in the order of the input. Partitions are listed in the order in which the input came to
/// them; one that took more than one batch of the largest size is listed once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchAck {
    /// Where they are.
    pub partitions: Vec<PartitionAck>,
    /// How safe they were when they were acknowledged: the lowest level among the partitions. `None` if the input was
    /// empty.
    pub level: Option<AckLevel>,
}

impl BatchAck {
    /// How many records were stored.
    pub fn count(&self) -> u64 {
        self.partitions.iter().map(|part| u64::from(part.count)).sum()
    }

    pub(super) fn empty() -> Self {
        BatchAck { partitions: Vec::new(), level: None }
    }

    pub(super) fn add(&mut self, partition: PartitionIndex, appended: &Appended) {
        let Appended { base_offset, count, level, duplicate, .. } = *appended;
        self.partitions.push(PartitionAck { partition, base_offset, count, duplicate });
        self.level = Some(self.level.map_or(level, |lowest| lowest.min(level)));
    }
}

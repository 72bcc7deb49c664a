//! How the control thread, which is no shard, asks a shard how it is.

use serde::Serialize;

use crate::{
    log::{damage::Loss, survey::Lost},
    types::{CoreId, LeaderEpoch, Offset, PartitionIndex},
};

/// A partition as its owner sees it now.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    /// The log's full name.
    pub log: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// Its owner.
    pub core: CoreId,
    /// The first offset.
    pub start_offset: Offset,
    /// The offset after the last visible record.
    pub high_watermark: Offset,
    /// The offset after the last record.
    pub log_end_offset: Offset,
    /// The offset after the last synced record.
    pub durable_end_offset: Offset,
    /// The reign over it: grows at every opening that follows a crash.
    pub epoch: LeaderEpoch,
    /// Bytes of its segment files.
    pub size_bytes: u64,
    /// The fault that stopped its writes, if one did.
    pub read_only: Option<String>,
    /// The damaged places that are known, at most [`DAMAGES_SHOWN_MAX`].
    pub damages: Vec<DamageStatus>,
}

/// How many damaged places of a partition a status shows.
pub const DAMAGES_SHOWN_MAX: usize = 100;

/// A damaged place in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamageStatus {
    /// The segment file.
    pub file: String,
    /// Where in it.
    pub position: u64,
    /// The first record lost.
    pub from: Offset,
    /// Where the records go on.
    pub to: Offset,
    /// What is wrong.
    pub reason: String,
}

impl From<Loss> for DamageStatus {
    fn from(Loss { file, lost }: Loss) -> Self {
        let Lost { position, from, to, reason, .. } = lost;
        DamageStatus { file: file.display().to_string(), position, from, to, reason }
    }
}

/// What a shard has in use now. All of it is nothing, the tails and mappings aside, when nothing is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Bytes of the budget of requests in flight.
    pub reserved_bytes: u64,
    /// Bytes of appends that are not synced.
    pub undurable_bytes: u64,
    /// Bytes of appends that the device has not taken.
    pub unwritten_bytes: u64,
    /// Bytes of written batches kept for readers, and how many there may be.
    pub tail_bytes: u64,
    /// See above.
    pub tail_bytes_max: u64,
    /// Bytes of sealed segments that are mapped, and how many there may be.
    pub mapped_bytes: u64,
    /// See above.
    pub mapped_bytes_max: u64,
    /// Appends and fetches that wait.
    pub waiting: u64,
    /// Messages to other cores that are not sent, and requests that they have not answered.
    pub messages: u64,
}

/// Asks one shard; may be used from any thread.
#[derive(Clone)]
pub struct ControlHandle {
    requests: async_channel::Sender<ControlRequest>,
}

/// The shard's end of a [`ControlHandle`].
pub struct ControlInbox {
    pub(crate) requests: async_channel::Receiver<ControlRequest>,
}

pub(crate) enum ControlRequest {
    Partitions(async_channel::Sender<Vec<PartitionStatus>>),
    Shutdown(async_channel::Sender<()>),
}

/// A handle and the inbox it writes to.
pub fn control_channel() -> (ControlHandle, ControlInbox) {
    // A handful of scrapers at once; more of them wait their turn.
    let (sender, receiver) = async_channel::bounded(16);
    (ControlHandle { requests: sender }, ControlInbox { requests: receiver })
}

impl ControlHandle {
    /// The shard's partitions; `None` if the shard is gone.
    pub async fn partitions(&self) -> Option<Vec<PartitionStatus>> {
        let (sender, receiver) = async_channel::bounded(1);
        self.requests.send(ControlRequest::Partitions(sender)).await.ok()?;
        receiver.recv().await.ok()
    }

    /// Makes the shard refuse new work, flush what it accepted and close its logs; returns when that is done.
    pub async fn shut_down(&self) {
        let (sender, receiver) = async_channel::bounded(1);
        if self.requests.send(ControlRequest::Shutdown(sender)).await.is_ok() {
            let _ = receiver.recv().await;
        }
    }
}

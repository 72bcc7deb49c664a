//! How the control thread, which is no shard, asks a shard how it is.

use serde::{Deserialize, Serialize};

use crate::{
    log::{damage::Loss, survey::Lost},
    replication::{RoleName, assignment::ReplicaId},
    settings::Replication,
    types::{CoreId, LeaderEpoch, Offset, PartitionIndex},
};

/// A partition as one copy of it sees it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// The log's full name.
    pub log: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The core of the copy that says so.
    pub core: CoreId,
    /// Which copy that is.
    pub replica: ReplicaId,
    /// Whether it leads, so that what it says goes for the partition.
    pub leads: bool,
    /// How many copies there are, and how many of them a decision takes.
    pub replication: Replication,
    /// What that is to become, while copies of the log change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Replication>,
    /// Whether load may not move it, since an operator moved it, until he releases it.
    #[serde(default)]
    pub pinned: bool,
    /// The copies: all as the leader sees them; itself alone as one that does not lead does.
    pub replicas: Vec<ReplicaStatus>,
    /// The first offset.
    pub start_offset: Offset,
    /// The offset after the last visible record.
    pub high_watermark: Offset,
    /// The offset after the last record.
    pub log_end_offset: Offset,
    /// The offset after the last synced record.
    pub durable_end_offset: Offset,
    /// The reign over it: grows with each leader, and with one copy at every opening that follows a crash.
    pub epoch: LeaderEpoch,
    /// The last reign that an operator began by force, accepting that records were lost; 0 for none.
    #[serde(default)]
    pub forced_epoch: LeaderEpoch,
    /// Bytes of its segment files.
    pub size_bytes: u64,
    /// The fault that stopped its writes, if one did.
    pub read_only: Option<String>,
    /// The damaged places that are known, at most [`DAMAGES_SHOWN_MAX`].
    pub damages: Vec<DamageStatus>,
    /// Damaged records that its copies here got back from others since the start.
    pub repaired_records: u64,
}

/// A copy of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Which.
    pub replica: ReplicaId,
    /// Where it is; none if its drive is away.
    pub core: Option<CoreId>,
    /// What it is. Of another copy that was not asked, or does not answer, only that it follows.
    pub role: ReplicaRole,
    /// Up to where it has the log in memory,
    pub received_offset: Offset,
    /// on the device,
    pub written_offset: Offset,
    /// and synced.
    pub durable_offset: Offset,
    /// Whether it keeps up with the leader.
    pub in_sync: bool,
    /// For how long it has not had all that the leader has.
    pub lag_ms: u64,
    /// What is damaged of its log and waits for repair. As with `role`, each copy knows that of itself only.
    #[serde(default)]
    pub damaged: Option<Places>,
    /// What its drive does not give of its log, though nothing says that it is damaged.
    #[serde(default)]
    pub withheld: Option<Places>,
    /// Why it is out of service, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl ReplicaStatus {
    /// Takes over what this copy, and no other, knows of itself.
    pub fn take_its_word(&mut self, own: &ReplicaStatus) {
        self.role = own.role;
        self.damaged = own.damaged;
        self.withheld = own.withheld;
        self.problem.clone_from(&own.problem);
    }
}

/// Places of a log that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// How many are known.
    pub places: u64,
    /// The first record of the first.
    pub first_offset: Offset,
    /// How many records are in them, where that is known.
    pub records: Option<u64>,
}

/// Where a partition is led after it was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The core.
    pub core: CoreId,
    /// The copy that leads.
    pub replica: ReplicaId,
    /// Its reign.
    pub epoch: LeaderEpoch,
}

/// What a core has, and what it has done since it was started. Rates follow from two of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreStatus {
    /// Which core.
    pub core: CoreId,
    /// Its drive,
    pub drive: u16,
    /// and where that is.
    pub data_dir: String,
    /// What it does; none if it does not answer.
    pub doing: Option<CoreDoing>,
}

/// See [`CoreStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreDoing {
    /// When this was said, in microseconds of a clock that only that core has.
    pub at_us: u64,
    /// Partitions that are led here, those with one copy included.
    pub leads: u64,
    /// Copies here that do not lead.
    pub follows: u64,
    /// Partitions that are led here and that load may not move, since an operator moved them.
    #[serde(default)]
    pub pinned: u64,
    /// For how many microseconds it ran tasks.
    #[serde(default)]
    pub busy_us: u64,
    /// Batches acknowledged,
    pub write_requests: u64,
    /// and their bytes.
    pub write_bytes: u64,
    /// Fetches answered,
    pub read_requests: u64,
    /// and the bytes of batches handed out.
    pub read_bytes: u64,
}

/// What a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaRole {
    /// It leads.
    Leader,
    /// It follows, or waits for somebody to lead.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It lost its memory, and is given back what it had.
    Rebuilding,
    /// It found that its leader lacks what was acknowledged, and does nothing any more.
    Halted,
    /// Its drive failed: it is out of service until the server is restarted.
    Closed,
    /// Its drive does not give it: it is out of service until that does, or until the others can do without it.
    Unreadable,
}

impl From<RoleName> for ReplicaRole {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Leader => ReplicaRole::Leader,
            RoleName::Follower => ReplicaRole::Follower,
            RoleName::Candidate => ReplicaRole::Candidate,
            RoleName::Rebuilding => ReplicaRole::Rebuilding,
            RoleName::Halted => ReplicaRole::Halted,
        }
    }
}

/// A copy of a partition as it stands by itself, for whoever has to choose one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStanding {
    /// Which.
    pub replica: ReplicaId,
    /// Where it is; none if its drive is away.
    pub core: Option<CoreId>,
    /// What it is; none if it cannot be asked.
    pub role: Option<ReplicaRole>,
    /// Whether its log holds what it once acknowledged.
    pub is_intact: bool,
    /// The last reign of whose leader its log is a copy: of two logs the one with the higher has more of what was
    /// acknowledged.
    pub accepted: LeaderEpoch,
    /// The offset of its first record.
    pub start_offset: Offset,
    /// The offset after its last.
    pub end_offset: Offset,
    /// An offset below which everything was acknowledged as durable, as far as it knows.
    pub committed: Offset,
    /// Why it cannot lead.
    pub problem: Option<String>,
}

/// What there is to know before an operator accepts a loss, and what was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// The log's full name.
    pub log: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// How many copies there are, and how many of them a decision takes.
    pub replication: Replication,
    /// The copies as they stood before.
    pub copies: Vec<CopyStanding>,
    /// The copy that leads: then there is nothing to recover.
    pub leader: Option<ReplicaId>,
    /// The copy that would lead, or does.
    pub chosen: Option<ReplicaId>,
    /// The reign that it began; none if nothing was done.
    pub begun: Option<LeaderEpoch>,
}

/// How many damaged places of a partition a status shows.
pub const DAMAGES_SHOWN_MAX: usize = 100;

/// A damaged place in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

//! What one may ask of a shard, and what it answers. All of it may cross cores.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    CopyId,
    balancing::Loads,
    control::{CopyStanding, CoreDoing, CoreStatus, Moved, PartitionStatus, RecoveryReport},
    stages::StageClock,
};
use crate::{
    catalog::LogEntry,
    error::RequestError,
    name::LogName,
    replication::assignment::{Members, ReplicaId},
    settings::{LogChanges, LogSettings},
    types::{AckLevel, CoreId, LeaderEpoch, Offset, PartitionId},
};

/// A request; any shard takes any request and passes it on to the core that owns what it concerns.
#[derive(Clone, Debug)]
pub enum Request {
    /// Append a batch.
    Append(Append),
    /// Read batches, or wait for some.
    Fetch(Fetch),
    /// Find an offset.
    FindOffset(FindOffset),
    /// Delete the records before an offset.
    Trim(Trim),
    /// Tell how a partition and its copies are.
    Describe(PartitionId),
    /// Create a log.
    CreateLog(CreateLog),
    /// Change the settings of a log.
    AlterLog(AlterLog),
    /// Delete a log and its records. The name may be used again, the log's number never is.
    DeleteLog(LogName),
    /// Have a copy of a partition that nobody leads lead it, whatever is lost with that.
    Recover(Recover),
    /// Have a core lead a partition, now and from now on; a copy goes there if it has none.
    Move(Move),
    /// Let a partition that was moved by command move by itself again.
    Unpin(PartitionId),
    /// Tell what the cores have and do.
    DescribeCores,
    /// Tell what this core has and does. Among cores.
    Doing(CoreId),
    /// Tell what this core and its copies have done. Among cores.
    Loads(CoreId),
    /// Do a small write on the drive of this core. Among cores.
    Probe(CoreId),
    /// Hand leadership over to this copy. Among cores.
    HandOver(CopyId),
    /// Tell the members of a partition, if it is led and they are settled. Among cores.
    Members(PartitionId),
    /// Tell whether the others can do without what this copy has, whose drive does not give it. Among cores.
    Spare(CopyId),
    /// Tell how a copy stands by itself. Among cores.
    StandingOf(CopyId),
    /// Tell how a copy is, as it sees itself. Among cores.
    DescribeCopy(CopyId),
    /// Have this copy lead by the operator's word. Among cores.
    Force(CopyId),
    /// Close this copy, since this core is to open it. Among cores.
    Release(CopyId, CoreId),
}

/// Append one batch to one partition.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where to.
    pub partition: PartitionId,
    /// The bytes of exactly one batch, as the client built it.
    pub batch: Bytes,
    /// When to reply; `None` for the log's own level, else the server's.
    pub ack: Option<AckLevel>,
    /// The offset that the first record must get; refused if it would get another. `None` for whatever comes next.
    pub expected_offset: Option<Offset>,
}

/// Read from one partition.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// Where from.
    pub partition: PartitionId,
    /// The first record wanted; the answer begins with the batch that holds it.
    pub offset: Offset,
    /// The answer ends before the batch that would exceed this, but has at least one batch. Capped by
    /// `FETCH_BYTES_MAX`.
    pub max_bytes: u32,
    /// How long to wait when `offset` is the high watermark; then the answer has no batch. Capped by
    /// `FETCH_WAIT_MS_MAX`.
    pub max_wait: Duration,
}

/// Find an offset in one partition.
#[derive(Clone, Copy, Debug)]
pub struct FindOffset {
    /// Where.
    pub partition: PartitionId,
    /// Which.
    pub at: OffsetAt,
}

/// Delete the records of one partition before an offset, for good.
#[derive(Clone, Copy, Debug)]
pub struct Trim {
    /// Where.
    pub partition: PartitionId,
    /// The first record that stays; at most the high watermark. Nothing changes if it is the first already, or before
    /// it.
    pub before: Offset,
}

/// A way to name an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first record's.
    Earliest,
    /// The one after the last visible record's: the high watermark.
    Latest,
    /// That of the first batch whose newest record is not older than this, in milliseconds since 1970; else the high
    /// watermark.
    Timestamp(i64),
}

/// Create a log.
#[derive(Clone, Debug)]
pub struct CreateLog {
    /// Its name.
    pub name: LogName,
    /// How many partitions; 1 to `PARTITIONS_PER_LOG_MAX`.
    pub partitions: u32,
    /// What holds for it.
    pub settings: LogSettings,
}

/// Change the settings of a log.
#[derive(Clone, Debug)]
pub struct AlterLog {
    /// Its name.
    pub name: LogName,
    /// What changes.
    pub changes: LogChanges,
}

/// Have a copy lead by the operator's word.
#[derive(Clone, Copy, Debug)]
pub struct Recover {
    /// Which partition.
    pub partition: PartitionId,
    /// Which copy; that which loses least, if none is named.
    pub copy: Option<ReplicaId>,
    /// That records may be lost is accepted. Otherwise nothing is done, and the answer says what would be.
    pub accept_data_loss: bool,
}

/// Have a core lead a partition.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Which partition.
    pub partition: PartitionId,
    /// The core.
    pub to: CoreId,
}

/// The answer to a [`Request`].
pub type Outcome = Result<Reply, RequestError>;

/// The answer to a request that was carried out.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To [`Request::Append`].
    Appended(Appended),
    /// To [`Request::Fetch`].
    Fetched(Fetched),
    /// To [`Request::FindOffset`].
    Found(Found),
    /// To [`Request::Trim`]: the first offset now, and the range.
    Trimmed(Found),
    /// To [`Request::Describe`]: as the leader sees it, or else as another copy does; and to
    /// [`Request::DescribeCopy`].
    Described(Box<PartitionStatus>),
    /// To [`Request::CreateLog`].
    LogCreated(Arc<LogEntry>),
    /// To [`Request::AlterLog`]: the log as it is now.
    LogAltered(Arc<LogEntry>),
    /// To [`Request::DeleteLog`].
    LogDeleted,
    /// To [`Request::Recover`].
    Recovery(Box<RecoveryReport>),
    /// To [`Request::Move`].
    Moved(Moved),
    /// To [`Request::Unpin`].
    Unpinned,
    /// To [`Request::DescribeCores`], in their order.
    Cores(Vec<CoreStatus>),
    /// To [`Request::Doing`].
    Doing(CoreDoing),
    /// To [`Request::Loads`].
    Loads(Box<Loads>),
    /// To [`Request::Probe`]: it is done, or failed.
    Probed,
    /// To [`Request::HandOver`]: the copy leads in this reign.
    HandedOver(LeaderEpoch),
    /// To [`Request::Members`].
    Members(Option<Members>),
    /// To [`Request::Spare`].
    Spared(bool),
    /// To [`Request::StandingOf`].
    Stands(Box<CopyStanding>),
    /// To [`Request::Force`]: the reign that it begins.
    Forced(LeaderEpoch),
    /// To [`Request::Release`]: nobody has its files open, and its log ends there.
    Released(Offset),
}

/// A batch was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The offset of its first record; the others follow without gaps.
    pub base_offset: Offset,
    /// How many records it has.
    pub count: u32,
    /// How safe it was when this was said: the level asked for, or a higher one.
    pub level: AckLevel,
    /// The batch was stored before; an idempotent producer sent it again.
    pub duplicate: bool,
    /// Where the time went, if the request was measured.
    pub clock: Option<StageClock>,
}

/// Batches were read.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The partition's first offset.
    pub start_offset: Offset,
    /// The offset after the last visible record.
    pub high_watermark: Offset,
    /// The offset after the last record, visible or not.
    pub log_end_offset: Offset,
    /// Stored batches end to end when concatenated; a batch may span pieces. Empty if nothing came before the wait was
    /// over.
    pub batches: Vec<Bytes>,
}

/// An offset was found, and the range it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The offset.
    pub offset: Offset,
    /// The partition's first offset.
    pub start_offset: Offset,
    /// The offset after the last visible record.
    pub high_watermark: Offset,
    /// The offset after the last record, visible or not.
    pub log_end_offset: Offset,
}

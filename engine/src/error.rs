//! What can go wrong with a request, grouped by who must act. Operating faults are values; broken invariants are
//! assertions.

use std::path::PathBuf;

use thiserror::Error;

use crate::{
    name::{LogName, NameError},
    types::{CoreId, Offset, PartitionId, PartitionIndex, ProducerId, Sequence},
};

/// Who must act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The caller: the request is wrong, and will be as wrong next time. Nothing was stored.
    Refused,
    /// Nobody: the same request may succeed later. Nothing was stored.
    Retriable,
    /// The operator: a partition or a drive stopped after a fault. Nothing was stored.
    Fenced,
    /// The operator: stored bytes are damaged.
    Corrupt,
    /// The caller, by asking again: whether the write was stored, or the change made, is not known.
    Unknown,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No log has this name.
    #[error("there is no log `{name}`")]
    UnknownLog {
        /// The name asked for.
        name: String,
    },
    /// No partition has this number, or its log was deleted.
    #[error("there is no partition {partition} (log number/partition); the log may have been deleted")]
    UnknownPartition {
        /// The partition asked for.
        partition: PartitionId,
    },
    /// The partition's log was created just now, and this core has not opened its part of it.
    #[error("partition {partition} (log number/partition) is not open yet; try again later")]
    PartitionOpening {
        /// The partition asked for.
        partition: PartitionId,
    },
    /// The partition has several copies, and the one that was asked does not lead; or its copy is on another core.
    #[error("partition {partition} (log number/partition) is led by {}; try again", leader_name(*leader))]
    NotLeader {
        /// The partition asked for.
        partition: PartitionId,
        /// The core of the copy that leads; `None` while the copies agree on one.
        leader: Option<CoreId>,
    },
    /// The log has fewer partitions.
    #[error("log `{log}` has partitions 0 to {last}, not {partition}", last = partitions - 1)]
    PartitionOutOfRange {
        /// The log.
        log: LogName,
        /// The partition asked for.
        partition: PartitionIndex,
        /// How many the log has, at least 1.
        partitions: u32,
    },
    /// The offset is before the first record or after the last.
    #[error("offset {offset} is out of range: this partition has offsets {start} to {end} (the next to be written)")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// The first offset.
        start: Offset,
        /// The high watermark: the offset after the last visible record.
        end: Offset,
    },
    /// A partition cannot be moved to that core, or not now.
    #[error("the partition was not moved: {reason}")]
    MoveRefused {
        /// Why.
        reason: String,
    },
    /// The batch breaks the format or a limit.
    #[error("the batch was refused: {reason}")]
    BatchRefused {
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The append was to be made at another offset than the next one.
    #[error("the append expects to get offset {expected}, but the next offset of the partition is {end}")]
    WrongOffset {
        /// What the append was told to expect.
        expected: Offset,
        /// The offset that it would have got.
        end: Offset,
    },
    /// A batch of the producer is missing before this one, or this one is older than those that are known again.
    #[error("producer {producer} is at sequence {expected} in this partition, and the batch has {got}")]
    OutOfSequence {
        /// The producer.
        producer: ProducerId,
        /// The sequence that continues what is stored.
        expected: Sequence,
        /// The batch's.
        got: Sequence,
    },
    /// A newer life of the producer has written; this one is over.
    #[error("epoch {epoch} of producer {producer} is over: this partition has a batch of its epoch {current}")]
    ProducerFenced {
        /// The producer.
        producer: ProducerId,
        /// The batch's epoch.
        epoch: u32,
        /// The newest.
        current: u32,
    },
    /// The partition knows no batch of the producer, and this one is not its first.
    #[error(
        "this partition knows nothing of producer {producer}, and the batch begins at sequence {sequence}: its records \
         are gone, or other producers took its place; begin a higher epoch at sequence 0"
    )]
    UnknownProducer {
        /// The producer.
        producer: ProducerId,
        /// The batch's sequence.
        sequence: Sequence,
    },
    /// The producer's sequence is taken by another batch: the two differ in their bytes.
    #[error("producer {producer} has another batch of sequence {sequence} in this partition, at offset {base_offset}")]
    SequenceReused {
        /// The producer.
        producer: ProducerId,
        /// The sequence of both.
        sequence: Sequence,
        /// Where the other is.
        base_offset: Offset,
    },
    /// The text is no log name.
    #[error(transparent)]
    NameRefused(#[from] NameError),
    /// A log of this name exists.
    #[error("log `{name}` exists already")]
    LogExists {
        /// The name.
        name: LogName,
    },
    /// The log's settings break a limit.
    #[error("{reason}")]
    SettingsRefused {
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// A partition is not led by an operator's word.
    #[error("the partition is not recovered by force: {reason}")]
    RecoveryRefused {
        /// Why not.
        reason: String,
    },
    /// The core's memory is used up.
    #[error("the server's memory budget is used up; try again later")]
    Overloaded,
    /// The server is stopping.
    #[error("the server is shutting down; try again later")]
    ShuttingDown,
    /// The drive is full.
    #[error(
        "the drive of {path} is full; writes are refused until there is room ({})",
        room(*free_bytes, *reserve_bytes)
    )]
    DiskFull {
        /// The data directory.
        path: PathBuf,
        /// What the file system says is free.
        free_bytes: u64,
        /// What is kept back of it for what was accepted before.
        reserve_bytes: u64,
    },
    /// The partition stopped accepting writes after a fault, until restart. What is stored stays readable.
    #[error("partition {partition} accepts no writes until the server is restarted: {reason}")]
    ReadOnly {
        /// The partition.
        partition: PartitionId,
        /// The fault.
        reason: String,
    },
    /// Stored bytes are damaged. They are never served; what is before and behind them is.
    #[error("{file} is damaged at byte {position}: {reason}{}", lost_records(*from, *to))]
    Corrupt {
        /// The segment file.
        file: PathBuf,
        /// Where in it.
        position: u64,
        /// The first record that is lost.
        from: Offset,
        /// Where records go on behind the damage; not beyond `from` if nobody knows, and then nothing is served behind
        /// it.
        to: Offset,
        /// What is wrong.
        reason: String,
    },
    /// Reading failed. The records may be there: the drive did not give them.
    #[error("reading {file} failed at byte {position}: {reason}{}", unread_records(*from, *to))]
    ReadFailed {
        /// The segment file.
        file: PathBuf,
        /// Where in it the read began.
        position: u64,
        /// The first record that was to be read.
        from: Offset,
        /// The one after the last; `from` if nobody knows.
        to: Offset,
        /// The operating system's words.
        reason: String,
    },
    /// A write was accepted but its fate is not known: the disk or the server failed before it could be acknowledged.
    #[error("whether the write was stored is not known: {reason}")]
    OutcomeUnknown {
        /// What happened.
        reason: String,
    },
    /// A drive, or a core of it, does not answer, so that a change of logs or of where they are was not begun.
    #[error("the drive of {} does not answer in time: nothing was changed; try again later", path.display())]
    DriveSilent {
        /// The data directory.
        path: PathBuf,
    },
    /// The same, when the change had begun.
    #[error(
        "the drive of {} does not answer in time: whether the change is made is not known; it may still be when the \
         drive answers, so look before you try again",
        path.display()
    )]
    ChangeUnknown {
        /// The data directory.
        path: PathBuf,
    },
    /// The catalogue of logs could not be written.
    #[error("the catalogue of logs could not be written: {reason}")]
    CatalogFailed {
        /// The operating system's words.
        reason: String,
    },
}

fn leader_name(leader: Option<CoreId>) -> String {
    leader.map_or_else(|| "nobody at the moment".to_owned(), |core| format!("core {core}"))
}

fn room(free_bytes: u64, reserve_bytes: u64) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if free_bytes < reserve_bytes {
        format!("{:.1} MiB are free, {:.1} MiB are kept back", mib(free_bytes), mib(reserve_bytes))
    } else {
        format!("it takes no more, though it says that {:.1} MiB are free", mib(free_bytes))
    }
}

fn unread_records(from: Offset, to: Offset) -> String {
    if from < to { format!("; it is about records {from} to {}", to.0 - 1) } else { String::new() }
}

fn lost_records(from: Offset, to: Offset) -> String {
    match to.0.saturating_sub(from.0) {
        0 => format!("; records from {from} on cannot be read"),
        1 => format!("; record {from} is lost, {to} follows"),
        _ => format!("; records {from} to {} are lost, {to} follows", to.0 - 1),
    }
}

impl RequestError {
    /// Who must act.
    pub fn class(&self) -> ErrorClass {
        use RequestError as E;
        match self {
            E::UnknownLog { .. } | E::UnknownPartition { .. } | E::PartitionOutOfRange { .. } => ErrorClass::Refused,
            E::OffsetOutOfRange { .. } | E::BatchRefused { .. } | E::NameRefused(_) => ErrorClass::Refused,
            E::WrongOffset { .. } | E::OutOfSequence { .. } | E::ProducerFenced { .. } => ErrorClass::Refused,
            E::UnknownProducer { .. } | E::SequenceReused { .. } => ErrorClass::Refused,
            E::LogExists { .. } | E::SettingsRefused { .. } => ErrorClass::Refused,
            E::RecoveryRefused { .. } | E::MoveRefused { .. } => ErrorClass::Refused,
            E::Overloaded | E::ShuttingDown | E::DiskFull { .. } => ErrorClass::Retriable,
            E::PartitionOpening { .. } | E::NotLeader { .. } | E::DriveSilent { .. } => ErrorClass::Retriable,
            E::ReadOnly { .. } | E::CatalogFailed { .. } => ErrorClass::Fenced,
            E::Corrupt { .. } | E::ReadFailed { .. } => ErrorClass::Corrupt,
            E::OutcomeUnknown { .. } | E::ChangeUnknown { .. } => ErrorClass::Unknown,
        }
    }

    /// Whether an append was refused for good because of what the log has, or lacks.
    pub fn is_by_the_log(&self) -> bool {
        use RequestError as E;
        let of_offset = matches!(self, E::WrongOffset { .. });
        let of_producer = matches!(self, E::OutOfSequence { .. } | E::ProducerFenced { .. } | E::SequenceReused { .. });
        of_offset || of_producer || matches!(self, E::UnknownProducer { .. })
    }

    /// Whether the same request may succeed later without anybody doing anything.
    pub fn is_retriable(&self) -> bool {
        self.class() == ErrorClass::Retriable
    }
}

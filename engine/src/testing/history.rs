//! What clients did and what they saw, in the order in which they learned it.

use std::time::Duration;

use crate::{
    error::RequestError,
    types::{AckLevel, LogUid, Offset, PartitionId},
};

/// Who a record is: its producer's own number and its position in what that producer sent, with a checksum of its
/// content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordTag {
    /// The producer, counted from 0.
    pub producer: u32,
    /// Grows with every record that the producer sends to a partition, also over retries and restarts.
    pub sequence: u64,
    /// CRC-32C of the record's content.
    pub crc: u32,
}

/// How an append ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It is stored from `base` on, as safely as `level` says.
    Acked {
        /// What the reply said.
        level: AckLevel,
        /// The first record's offset.
        base: Offset,
    },
    /// It is not stored and never will be.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// An append, by its place in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppendId(pub usize);

/// An append that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendSent {
    /// Where to.
    pub partition: PartitionId,
    /// The level asked for.
    pub ack: AckLevel,
    /// The records, in order.
    pub records: Vec<RecordTag>,
}

/// What a fetch returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSeen {
    /// Who read; an observer sees a partition's end move in one direction only, as long as nothing fails.
    pub observer: u32,
    /// Where.
    pub partition: PartitionId,
    /// The offset asked for.
    pub from: Offset,
    /// The records with their offsets.
    pub records: Vec<(Offset, RecordTag)>,
}

/// Somebody asks to delete the records before an offset. It may happen from now on, whatever the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimSent {
    /// Where.
    pub partition: PartitionId,
    /// The first record that is to stay.
    pub before: Offset,
}

/// Somebody was told where a partition begins: by the answer to a trim, by a range, by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartSeen {
    /// Who.
    pub observer: u32,
    /// Where.
    pub partition: PartitionId,
    /// The first offset.
    pub start: Offset,
    /// How far the partition may have given records up by itself when this was said; 0 if it keeps them all.
    pub due: Offset,
}

/// A question, by its place in the history: what was acknowledged before it must show in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskId(pub usize);

/// An answer that says how far a partition reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Who asked.
    pub observer: u32,
    /// What he asked.
    pub asked: AskId,
    /// Where.
    pub partition: PartitionId,
    /// The high watermark it told.
    pub high_watermark: Offset,
    /// What it gave, if it was asked for records: from which offset on, and how many.
    pub gave: Option<(Offset, u64)>,
}

/// Something went wrong for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The partition it was about, if it was about one.
    pub partition: Option<PartitionId>,
    /// The question it is the answer to, if one was noted.
    pub asked: Option<AskId>,
    /// What.
    pub error: RequestError,
}

/// Why clients may be told of errors until the next fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A drive was full.
    DriveFull,
    /// A drive failed a write or a sync.
    DriveFailed,
    /// A drive did not answer for a while.
    DriveStalled,
    /// A drive failed a read.
    ReadFailed,
    /// A drive gave something else than it was asked for.
    Misread,
    /// The server was told to stop.
    Stopping,
    /// A log was being created: its partitions open one after the other.
    Creating,
    /// Partitions have several copies, which take a moment to agree on a leader.
    Replicated,
    /// Copies move from core to core: for a moment nobody answers for one.
    Moving,
}

/// Stored bytes that a drive spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoiled {
    /// Of which partition.
    pub partition: PartitionId,
    /// The first record that cannot be read any more.
    pub from: Offset,
    /// The one after the last; may be `from`, when only padding was hit.
    pub to: Offset,
    /// Nothing behind them tells that they were there: for one copy they look like a write that was cut off.
    pub newest: bool,
}

/// Something that takes weakly stored records away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process died. `Written` survives.
    Kill,
    /// The power was lost, or a drive failed a write or a sync. `Durable` survives.
    PowerLoss,
}

impl Fault {
    /// The weakest level that survives it.
    pub fn survived_by(self) -> AckLevel {
        match self {
            Fault::Kill => AckLevel::Written,
            Fault::PowerLoss => AckLevel::Durable,
        }
    }
}

/// All there is of a partition, read when everything works again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalRead {
    /// Which partition.
    pub partition: PartitionId,
    /// Its first offset.
    pub start: Offset,
    /// Its records from `start` on.
    pub records: Vec<(Offset, RecordTag)>,
}

/// One thing that became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An append was sent.
    Sent(AppendSent),
    /// An append ended. Those without this event are unknown.
    Ended(AppendId, AppendOutcome),
    /// A fetch returned.
    Read(ReadSeen),
    /// Something failed, everywhere at once. The server runs anew after it.
    Fault(Fault),
    /// A trim was sent.
    TrimSent(TrimSent),
    /// Somebody was told where a partition begins.
    StartSeen(StartSeen),
    /// A partition was read whole, at the end.
    Final(FinalRead),
    /// An append, just sent, must get this offset or be refused.
    Expects(AppendId, Offset),
    /// An idempotent producer sent an append again: a new life of the server may store it.
    Resent(AppendId),
    /// Something is about to be asked of this partition.
    Asked(PartitionId),
    /// An answer that says how far a partition reaches.
    Answered(Answered),
    /// Something went wrong for a client.
    Failed(Failed),
    /// A server did not start, and says why.
    NotStarted(String),
    /// Something happened that explains errors.
    Cause(Cause),
    /// A drive spoiled what was stored.
    Spoiled(Spoiled),
    /// Somebody asks for the deletion of a log, which may be gone from now on, whatever the answer is.
    Deleting(LogUid),
    /// From here on nothing fails.
    Healed,
    /// An operation took so long.
    Took(Duration),
    /// Memory or waiters in use when nothing is under way any more, and how much of it may be.
    InUse {
        /// What.
        what: &'static str,
        /// How much.
        amount: u64,
        /// How much may be.
        allowed: u64,
    },
}

/// A history. Made while a test runs, judged by [`super::checker::judge`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        History::default()
    }

    /// An append is about to be sent.
    pub fn send(&mut self, append: AppendSent) -> AppendId {
        self.events.push(Event::Sent(append));
        AppendId(self.events.len() - 1)
    }

    /// An append, just sent, is to be stored at `offset` or not at all.
    pub fn expect(&mut self, append: AppendId, offset: Offset) {
        self.events.push(Event::Expects(append, offset));
    }

    /// An append is about to be sent again, as it was.
    pub fn resend(&mut self, append: AppendId) {
        self.events.push(Event::Resent(append));
    }

    /// An append ended.
    pub fn end(&mut self, append: AppendId, outcome: AppendOutcome) {
        assert!(matches!(self.events.get(append.0), Some(Event::Sent(_))), "event {} is no append", append.0);
        self.events.push(Event::Ended(append, outcome));
    }

    /// A fetch returned.
    pub fn read(&mut self, read: ReadSeen) {
        self.events.push(Event::Read(read));
    }

    /// Something failed.
    pub fn fault(&mut self, fault: Fault) {
        self.events.push(Event::Fault(fault));
    }

    /// A trim is about to be sent.
    pub fn trim(&mut self, trim: TrimSent) {
        self.events.push(Event::TrimSent(trim));
    }

    /// Somebody was told where a partition begins.
    pub fn start(&mut self, told: StartSeen) {
        self.events.push(Event::StartSeen(told));
    }

    /// A partition was read whole, at the end.
    pub fn finish(&mut self, read: FinalRead) {
        self.events.push(Event::Final(read));
    }

    /// Something is about to be asked of `partition`.
    pub fn ask(&mut self, partition: PartitionId) -> AskId {
        self.events.push(Event::Asked(partition));
        AskId(self.events.len() - 1)
    }

    /// Anything else that became known.
    pub fn note(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Everything, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

//! What can go wrong in the simulated world, how often, and how often it did.

/// A kind of fault. Each is counted when it had an effect, not when it was merely possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum FaultKind {
    /// A loss of power takes a sector that was written but not synced: it has its old content.
    LostUnsynced,
    /// A loss of power leaves garbage or zeros in a sector that was written but not synced.
    TornSector,
    /// A write completes before one that was submitted earlier.
    Reordered,
    /// A bit of durable data changes.
    BitFlip,
    /// A write goes to another place of its file: what it should replace stays, what it hits is gone.
    MisdirectedWrite,
    /// A read gives what stands at another place of its file.
    MisdirectedRead,
    /// A write fails with EIO; each of its sectors is old or new.
    WriteError,
    /// A sync fails with EIO once; what it should have made durable stays in danger though later syncs succeed
    /// (fsyncgate).
    SyncError,
    /// A read fails with EIO.
    ReadError,
    /// The drive is full for a while: what needs new room fails with ENOSPC.
    NoSpace,
    /// A write into new room takes a part of its bytes before the drive is full.
    NoSpaceLate,
    /// The system takes only a part of a write, and the rest after that.
    ShortWrite,
    /// The system gives only a part of a read, and the rest after that.
    ShortRead,
    /// An operation takes a thousand times as long.
    Stall,
    /// A loss of power undoes a change of names that was not synced.
    LostName,
    /// A loss of power undoes a change of a file's length that was not synced.
    LostSize,
    /// A process is killed at some await point; the drive keeps its power.
    Kill,
    /// The power is lost at some await point.
    PowerLoss,
    /// A message between two cores is delayed.
    RingDelay,
    /// A core, or a whole process, does not run for a while; the drive and the time go on.
    Pause,
    /// The wall clock jumps, forward or back.
    ClockJump,
    /// A server starts with another number of cores than the one before had.
    OtherCores,
    /// A server starts in a directory in which a file has another format version.
    OtherFormat,
    /// Everything fails on one of several drives, until the server starts again.
    DriveFailed,
    /// One of several drives does not answer for a while.
    DriveStalled,
    /// One of several drives is replaced by an empty one.
    DriveReplaced,
    /// One of several drives is replaced by a copy of an earlier time.
    DriveStale,
    /// A read fails with EIO, however often it is tried.
    Unreadable,
    /// What a copy of a partition says to another is lost.
    MessageLost,
    /// No fault, but somebody's doing: a partition is led on another core.
    PartitionMoved,
    /// The number of copies of a log, or a quorum, is to be another.
    CopiesChanged,
    /// The same of a log that never had more than one.
    OneToSeveral,
    /// The same of one that is to have one.
    SeveralToOne,
    /// A log is deleted.
    LogDeleted,
}

impl FaultKind {
    /// How many kinds there are.
    pub const COUNT: usize = 34;

    /// All kinds.
    pub const ALL: [FaultKind; FaultKind::COUNT] = [
        FaultKind::LostUnsynced,
        FaultKind::TornSector,
        FaultKind::Reordered,
        FaultKind::BitFlip,
        FaultKind::MisdirectedWrite,
        FaultKind::MisdirectedRead,
        FaultKind::WriteError,
        FaultKind::SyncError,
        FaultKind::ReadError,
        FaultKind::NoSpace,
        FaultKind::NoSpaceLate,
        FaultKind::ShortWrite,
        FaultKind::ShortRead,
        FaultKind::Stall,
        FaultKind::LostName,
        FaultKind::LostSize,
        FaultKind::Kill,
        FaultKind::PowerLoss,
        FaultKind::RingDelay,
        FaultKind::Pause,
        FaultKind::ClockJump,
        FaultKind::OtherCores,
        FaultKind::OtherFormat,
        FaultKind::DriveFailed,
        FaultKind::DriveStalled,
        FaultKind::DriveReplaced,
        FaultKind::DriveStale,
        FaultKind::Unreadable,
        FaultKind::MessageLost,
        FaultKind::PartitionMoved,
        FaultKind::CopiesChanged,
        FaultKind::OneToSeveral,
        FaultKind::SeveralToOne,
        FaultKind::LogDeleted,
    ];
}

/// How often each kind of fault happens, in ten thousand chances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRates([u32; FaultKind::COUNT]);

impl Default for FaultRates {
    fn default() -> Self {
        FaultRates([0; FaultKind::COUNT])
    }
}

impl FaultRates {
    /// Nothing ever goes wrong: even a loss of power, which the test calls for, keeps everything.
    pub fn none() -> Self {
        FaultRates::default()
    }

    /// The rate of `kind`.
    pub fn get(&self, kind: FaultKind) -> u32 {
        self.0[kind as usize]
    }

    /// These rates, with that of `kind` replaced; 10,000 is always.
    #[must_use]
    pub fn with(mut self, kind: FaultKind, per_10k: u32) -> Self {
        assert!(per_10k <= 10_000, "{per_10k} in ten thousand");
        self.0[kind as usize] = per_10k;
        self
    }
}

/// How one chosen operation fails, see [`super::Sim::fail_nth`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// EIO.
    Error,
    /// ENOSPC, where the operation takes room; else it succeeds.
    NoSpace,
    /// It never ends: the power is about to be lost.
    Crash,
}

/// How often each kind of fault had an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultCounts([u64; FaultKind::COUNT]);

impl Default for FaultCounts {
    fn default() -> Self {
        FaultCounts([0; FaultKind::COUNT])
    }
}

impl FaultCounts {
    /// The count of `kind`.
    pub fn get(&self, kind: FaultKind) -> u64 {
        self.0[kind as usize]
    }

    /// Counts one more.
    pub fn add(&mut self, kind: FaultKind) {
        self.0[kind as usize] += 1;
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &FaultCounts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

//! Bugs planted on purpose. Without the feature `planted-bugs` none of them is compiled: [`planted`] is `false`, for
//! ever.

/// A bug that somebody could have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// A sync of a segment returns without having synced.
    SkipFsync,
    /// A write is called durable when the device has taken it.
    AckBeforeSync,
    /// Recovery takes a batch by its header and does not look at the checksum of its body.
    TrustStaleTail,
    /// A failed write is taken for a good one.
    IgnoreWriteError,
    /// A sealed segment is cut off one block too early.
    OffByOneAtRoll,
    /// A new segment is used before its name is durable.
    ForgetDirSync,
    /// What recovery read is trusted before it is synced.
    NoSyncBeforeTrust,
    /// A failed sync is tried again, and its success believed.
    RetryFailedSync,
    /// A segment gets its name before its predecessor is whole and durable.
    RollBeforeSeal,
    /// A restart forgets which producers wrote.
    ForgetProducersAtRestart,
    /// A producer's batch again is taken for a new one while the first is not durable.
    PendingDuplicateIsFresh,
    /// A producer's batch again is acknowledged at once, however safe the first is.
    AckPendingDuplicate,
    /// A producer's batch of an epoch that is over is taken.
    SkipEpochCheck,
    /// The offset that an append expects is not looked at.
    IgnoreExpectedOffset,
    /// What comes from the device is served without a look at its checksum.
    ServeUnchecked,
    /// A reader who comes to damage is led behind it without a word.
    SkipDamageSilently,
    /// A reader who comes to damage is told that there is nothing more.
    StopAtDamage,
    /// A block in the cache is known by its number only, whatever segment it is of.
    BlockOfAnotherSegment,
    /// A trim is answered before the new beginning of the log is durable.
    TrimBeforeDurable,
    /// The start file is renamed into its place without having been synced.
    StartNotSynced,
    /// The directory is not synced after the start file was renamed into its place.
    StartNameNotSynced,
    /// Recovery does not look at the start file.
    ForgetStart,
    /// Retention deletes one segment more than it may.
    DeleteOneTooMany,
    /// The last group before a roll is never written.
    ForgetTailAtRoll,
    /// Two appends that become safe together get each other's answer.
    AckOfAnother,
    /// What the device has is shown, whatever its ack waits for.
    ShowBeforeAck,
    /// The first append that is not durable is shown before it is, and so before its ack.
    ShowFirstBeforeAck,
    /// A batch says that all before it is durable when that is only in memory.
    HintTooHigh,
    /// A batch says that nothing before it is durable.
    HintTooLow,
    /// A copy says what its ballot promises before that is durable.
    BallotNotSaved,
    /// A leader counts one replica more than there is.
    CountTwice,
    /// A replica votes for a log that is worth less than its own.
    ElectTheShorter,
    /// A leader acknowledges before a write quorum has taken its log over.
    EstablishAtOnce,
    /// A follower counts before it has what its leader began with.
    AcceptEarly,
    /// A follower whose log differs from its leader's is told that it agrees.
    SkipAlignment,
    /// A leader answers reads without asking whether it still leads.
    ReadUnconfirmed,
    /// A leader refuses appends for good without asking whether it still leads.
    RefuseUnconfirmed,
    /// A leader shows that records are deleted before the others have deleted them.
    ShowTrimEarly,
    /// A core that led a partition goes on to answer for it when another leads.
    ServeAfterHandover,
    /// A copy is opened on another core before the one that has it has let go of it.
    MoveWithoutRelease,
    /// A copy goes to another core before all that was accepted is durable.
    LeaveUndrained,
    /// What the members were is forgotten as soon as others are to be.
    ForgetFormer,
    /// A copy whose ballot is gone is taken for a new one.
    LostIsNew,
    /// A drive that was away, or is an old copy, is taken for one that has everything.
    OldIsIntact,
    /// A log that is begun anew forgets what deleted batches said of their producers.
    ForgetProducersWhenBegunAnew,
    /// What is only received by a write quorum is acknowledged as durable.
    ReceivedIsDurable,
    /// A follower whose log is to be cut off says that it is, and cuts nothing.
    SkipTruncation,
    /// A copy that lost its memory counts again as soon as it follows, whatever it lacks.
    RebuiltAtOnce,
    /// A leader answers reads before a write quorum has taken its log over.
    ReadUnestablished,
    /// A copy that its drive does not give is given up, whoever depends on it.
    SpareAnybody,
    /// What is damaged on one copy stays so, whatever others have.
    NeverRepair,
    /// Damaged records are written over with the fields that they have in the segment of another replica, and nobody
    /// looks whether they can be read.
    RewriteAsItCame,
    /// Recovery does not wait for writes that a killed process left under way.
    NoWaitForWrites,
    /// Recovery takes the zeros of a group that was lost for padding, and goes on behind them.
    ZerosForPadding,
    /// A sealed segment is not synced before its successor is used.
    SealWithoutSync,
    /// A new segment's header is not synced.
    SegmentNotSynced,
    /// The catalogue is not synced before it replaces the old one.
    CatalogNotSynced,
    /// The catalogue replaces the old one, and is synced after that.
    CatalogRenamedBeforeSync,
    /// Memory of some requests is never given back to the budget.
    LeakBudget,
    /// What a sync made durable is still counted as not durable.
    LeakUndurable,
    /// A fetch that waits for a record is not told that it came.
    WaiterNeverWoken,
    /// Some appends never get their answer.
    ForgetAck,
    /// Some answers of other cores are dropped.
    LoseAnswer,
    /// A read goes on to the end of the log.
    ReadBeyondWatermark,
    /// The answer to where the log ends is what is durable.
    LaggingWatermark,
    /// An error about a range tells an end that is not the watermark.
    WrongRange,
    /// An answer says that the append is durable, whatever was waited for.
    ClaimMore,
    /// A write that is refused because the drive is full is stored all the same.
    StoreRefused,
    /// Damage of durable records is cut off like a write that did not end.
    CutOffAtRot,
    /// A file of another format version is taken for a damaged one.
    OtherVersionIsDamage,
    /// A segment that is still written is mapped.
    MapUnsealed,
    /// The space of a deleted file is given back though somebody has it mapped.
    CutUnderMapping,
}

impl PlantedBug {
    /// Those of partitions with several copies.
    pub const OF_COPIES: &[PlantedBug] = &[
        PlantedBug::BallotNotSaved,
        PlantedBug::CountTwice,
        PlantedBug::ElectTheShorter,
        PlantedBug::EstablishAtOnce,
        PlantedBug::AcceptEarly,
        PlantedBug::SkipAlignment,
        PlantedBug::ForgetFormer,
        PlantedBug::LostIsNew,
        PlantedBug::ReceivedIsDurable,
        PlantedBug::SkipTruncation,
        PlantedBug::RebuiltAtOnce,
        PlantedBug::NeverRepair,
        PlantedBug::RewriteAsItCame,
        PlantedBug::ServeAfterHandover,
        PlantedBug::MoveWithoutRelease,
    ];

    /// Those of partitions with several copies that no seed of a run need meet.
    pub const OF_COPIES_RARE: &[PlantedBug] = &[
        PlantedBug::ReadUnconfirmed,
        PlantedBug::ReadUnestablished,
        PlantedBug::RefuseUnconfirmed,
        PlantedBug::ShowTrimEarly,
        PlantedBug::OldIsIntact,
        PlantedBug::ForgetProducersWhenBegunAnew,
        PlantedBug::SpareAnybody,
    ];

    /// All others.
    pub const ALL: &[PlantedBug] = &[
        PlantedBug::MoveWithoutRelease,
        PlantedBug::LeaveUndrained,
        PlantedBug::SkipFsync,
        PlantedBug::AckBeforeSync,
        PlantedBug::TrustStaleTail,
        PlantedBug::IgnoreWriteError,
        PlantedBug::OffByOneAtRoll,
        PlantedBug::ForgetDirSync,
        PlantedBug::NoSyncBeforeTrust,
        PlantedBug::RetryFailedSync,
        PlantedBug::ServeUnchecked,
        PlantedBug::SkipDamageSilently,
        PlantedBug::StopAtDamage,
        PlantedBug::BlockOfAnotherSegment,
        PlantedBug::ForgetProducersAtRestart,
        PlantedBug::PendingDuplicateIsFresh,
        PlantedBug::AckPendingDuplicate,
        PlantedBug::SkipEpochCheck,
        PlantedBug::IgnoreExpectedOffset,
        PlantedBug::RollBeforeSeal,
        PlantedBug::TrimBeforeDurable,
        PlantedBug::StartNotSynced,
        PlantedBug::StartNameNotSynced,
        PlantedBug::ForgetStart,
        PlantedBug::DeleteOneTooMany,
        PlantedBug::ForgetTailAtRoll,
        PlantedBug::AckOfAnother,
        PlantedBug::ShowBeforeAck,
        PlantedBug::ShowFirstBeforeAck,
        PlantedBug::HintTooHigh,
        PlantedBug::HintTooLow,
        PlantedBug::NoWaitForWrites,
        PlantedBug::ZerosForPadding,
        PlantedBug::SealWithoutSync,
        PlantedBug::SegmentNotSynced,
        PlantedBug::CatalogNotSynced,
        PlantedBug::CatalogRenamedBeforeSync,
        PlantedBug::LeakBudget,
        PlantedBug::LeakUndurable,
        PlantedBug::WaiterNeverWoken,
        PlantedBug::ForgetAck,
        PlantedBug::LoseAnswer,
        PlantedBug::ReadBeyondWatermark,
        PlantedBug::LaggingWatermark,
        PlantedBug::WrongRange,
        PlantedBug::ClaimMore,
        PlantedBug::StoreRefused,
        PlantedBug::CutOffAtRot,
        PlantedBug::OtherVersionIsDamage,
        PlantedBug::MapUnsealed,
        PlantedBug::CutUnderMapping,
    ];
}

/// Whether `bug` is in force on this thread.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn planted(_: PlantedBug) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
pub use with_bugs::{plant, planted};

#[cfg(feature = "planted-bugs")]
mod with_bugs {
    use std::cell::Cell;

    use super::PlantedBug;

    thread_local! {
        static IN_FORCE: Cell<Option<PlantedBug>> = const { Cell::new(None) };
    }

    /// Whether `bug` is in force on this thread.
    pub fn planted(bug: PlantedBug) -> bool {
        IN_FORCE.get() == Some(bug)
    }

    /// Puts `bug`, or none, in force on this thread.
    pub fn plant(bug: Option<PlantedBug>) {
        IN_FORCE.set(bug);
    }
}

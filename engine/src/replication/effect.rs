//! What the owner of a replica must do for it. The replica decides, its owner does.
//!
//! Effects are carried out in the order in which they come out. Those that take time say which call reports that they
//! are done; until then nothing is taken for done. None of them reports back by failing: a replica whose drive fails is
//! closed by its owner, and is to the others one that is silent.

use super::{
    assignment::{Members, ReplicaId, ReplicaSet},
    ballot::Ballot,
    message::{Batches, Held, Message},
    reads::ReadTicket,
};
use crate::types::{AckLevel, LeaderEpoch, Offset};

/// See the module. `B` is what carries batches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect<B> {
    /// Send a message to another replica, over a link that may lose it. Emitted by every part of the protocol.
    Send {
        /// To whom.
        to: ReplicaId,
        /// What.
        message: Message<B>,
    },
    /// Make the ballot durable, replacing the one before, then call `handle_saved` with `revision`. Emitted when a
    /// promise is given, a log accepted, a configuration learnt. Later ones may be saved in place of earlier ones that
    /// are still waiting.
    Save {
        /// Counts the saves of this life.
        revision: u64,
        /// What to save.
        ballot: Ballot,
    },
    /// Follower: append these batches, as they are, to the log, in memory at first. Emitted for batches that continue
    /// the log. The progress of the device is reported with `handle_held`.
    Write {
        /// The batches.
        batches: Batches<B>,
        /// How safe somebody waits for them to be.
        wanted: AckLevel,
    },
    /// Follower: cut off the log at `to`, durably, then call `handle_truncated`. Nothing is written meanwhile. Emitted
    /// when the leader's log differs from there on, or this one is damaged there and lost its memory for that.
    Truncate {
        /// The offset after the last record that stays.
        to: Offset,
    },
    /// Follower: drop all records and go on at `at`, durably, then call `handle_truncated`. Emitted when the leader has
    /// deleted what would have to come next.
    Restart {
        /// The first offset of the log to be.
        at: Offset,
    },
    /// Delete the records before `before`, then call `handle_log_start`. Emitted when the leader's log begins later,
    /// and at a leader when that of one who voted does.
    Trim {
        /// The first offset that stays.
        before: Offset,
    },
    /// Leader: read batches of the log from `from` on, from memory or from the device, and give them to
    /// `handle_loaded`; `handle_load_failed` if that fails. Not beyond `until`, and not more than `bytes_max` unless it
    /// is one batch. Emitted when a follower has room for more. One at a time for each follower.
    Load {
        /// The follower that they are for.
        to: ReplicaId,
        /// The offset of the first batch.
        from: Offset,
        /// The end of the reign that the first batch is of, or of the log.
        until: Offset,
        /// Bytes.
        bytes_max: u64,
    },
    /// This replica leads from now on: admit appends, at `start` and stamped with `epoch`. Acks are held back until
    /// `Moved` says otherwise. Emitted when an election quorum has voted.
    Lead {
        /// The reign.
        epoch: LeaderEpoch,
        /// The end of the log.
        start: Offset,
    },
    /// Leader: a write quorum has taken over the log. Everything in it is final, and reads may be asked. Emitted once a
    /// reign.
    Established {
        /// The reign.
        epoch: LeaderEpoch,
    },
    /// Leader: a write quorum holds the log up to here, by level: release acks. Never goes back. Emitted whenever it
    /// moves.
    Moved(Held),
    /// Leader: a write quorum has given up the records before `at`, durably: only now it may be shown, since whoever
    /// leads later will not have them either. Emitted whenever it moves.
    Begins {
        /// The first offset of the log.
        at: Offset,
    },
    /// This replica leads no more, or knows another leader: what waits for an ack has an unknown fate, clients are sent
    /// to `leader` if it is known. Emitted on every change of that.
    Follow {
        /// The leader of `epoch`; `None` while there is none.
        leader: Option<ReplicaId>,
        /// The epoch promised.
        epoch: LeaderEpoch,
    },
    /// Leader: the reads up to this ticket may be answered, with everything that is visible now.
    Answer {
        /// The last of them.
        through: ReadTicket,
    },
    /// Leader: this replica led when it was asked up to this ticket, and its log was the log.
    StillLeads {
        /// The last of them.
        through: ReadTicket,
    },
    /// Leader: admit no appends until `Resume`, or until it leads no more. Emitted when leadership is handed over.
    Drain,
    /// Leader: admit appends again: the handover came to nothing.
    Resume,
    /// Candidate: too few vote. Say so, and wait. Emitted when an attempt has come to nothing.
    Stuck(Stuck),
    /// Leader: the replica keeps up from now on, or does not any more. For metrics and for who is asked to lead.
    InSync {
        /// Which.
        replica: ReplicaId,
        /// Whether it does.
        keeps_up: bool,
    },
    /// Leader: a replica came back without records that it had acknowledged. It is rebuilt; the operator should know
    /// that its drive lost something, or is an old copy.
    Regressed {
        /// Which.
        replica: ReplicaId,
        /// What it had acknowledged as durable.
        had: Offset,
        /// What it has.
        has: Offset,
    },
    /// This replica has all back that it may have lost. Emitted when that is durable.
    Rebuilt,
    /// Leader: these are the members from now on, and a write quorum knows. Emitted at the end of a change.
    Changed(Members),
    /// This replica is a member no longer, and may be deleted.
    Retired,
    /// Read the batches from `from` to `until` for another replica, check them, and give them to `handle_spare`; do
    /// nothing if they are damaged here too. Emitted when another replica wants them.
    LoadSpare {
        /// For whom.
        to: ReplicaId,
        /// The offset of the first record.
        from: Offset,
        /// The end of the reign of that, or of what is wanted.
        until: Offset,
    },
    /// Write these batches over the damaged ones, if they are what should be there.
    Rewrite(Batches<B>),
    /// Accept nothing any more, and tell the operator: the leader's log lacks records that were acknowledged. The
    /// records are kept. Emitted instead of a truncation that must not be.
    Halt {
        /// What is acknowledged.
        committed: Offset,
        /// Where the leader's log differs.
        differs_at: Offset,
    },
}

/// Why nobody leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stuck {
    /// Who voted, the candidate included.
    pub votes: ReplicaSet,
    /// Who answered that it lost its memory.
    pub without_memory: ReplicaSet,
    /// Everything before it was acknowledged, as one of the voters knows.
    pub committed: Offset,
    /// The end of the candidate's log: no record is missing if it is not below `committed`.
    pub log_end: Offset,
}

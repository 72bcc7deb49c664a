//! What replicas say to each other. Any message may be lost, late, doubled or overtaken; none is harmful then.
//!
//! Whoever receives one first compares epochs: what comes from a reign that is over is answered with
//! [`Message::Deposed`], and has no other effect.

use std::fmt;

use super::{
    assignment::{ConfigId, Configuration},
    epochs::EpochEnd,
};
use crate::types::{AckLevel, LeaderEpoch, Offset};

/// One conversation between a leader and a follower. Both ends have named it, so nothing that either said in an earlier
/// life, or about an earlier one, is taken for something said now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// The leader's present life: an epoch that it began in an earlier one, and that nobody heard of before it lost its
    /// memory, may be begun again.
    pub leader_life: u64,
    /// The leader's number for it, new for every probe that asks anew.
    pub round: u32,
    /// The follower's present life: a random number that it drew when it was opened.
    pub life: u64,
}

/// What a replica's log is worth in an election. Ordered: the greater has all that the lesser has and that was
/// acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// See [`Ballot::accepted`](super::ballot::Ballot::accepted).
    pub accepted: LeaderEpoch,
    /// The offset after the last record.
    pub log_end: Offset,
}

/// A leader asks a follower where it stands, and so begins a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// The leader's reign.
    pub epoch: LeaderEpoch,
    /// See [`Session::leader_life`].
    pub life: u64,
    /// See [`Session::round`].
    pub round: u32,
    /// The end of the leader's log when it was elected.
    pub start: Offset,
    /// The end of the leader's log when the session began. A replica that lost its memory has all that it may have
    /// acknowledged when it has all before this.
    pub log_end: Offset,
    /// Who decides.
    pub config: Configuration,
    /// See [`Ballot::forced`](super::ballot::Ballot::forced).
    pub forced: LeaderEpoch,
}

/// A follower says where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Standing {
    /// The leader's reign.
    pub epoch: LeaderEpoch,
    /// The session that this answers for.
    pub session: Session,
    /// The epoch and the end of its last record.
    pub last: EpochEnd,
    /// The offset after its last durable record.
    pub durable: Offset,
    /// Whether it lost its memory, so that having less than it once had is no news.
    pub rebuilding: bool,
}

/// How far a follower is. Cumulative: a later one replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ack {
    /// The leader's reign.
    pub epoch: LeaderEpoch,
    /// The session.
    pub session: Session,
    /// How far its log goes, and how much of that is how safe.
    pub held: Held,
    /// Whether it has durably taken over the leader's log up to where the reign began, and so counts.
    pub accepted: bool,
    /// The configuration that it durably knows.
    pub config: ConfigId,
    /// Where its log begins, durably.
    pub log_start: Offset,
    /// Whether it was sent something behind a gap: what comes after `held.received` must be sent again.
    pub missing: bool,
    /// Records of its log are damaged and on their way to be repaired: better somebody else leads.
    pub damaged: bool,
}

/// Up to where a replica has its partition's records, by how safe they are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Held {
    /// In memory, at least. Not below `written`.
    pub received: Offset,
    /// On the device, at least. Not below `durable`.
    pub written: Offset,
    /// Synced.
    pub durable: Offset,
}

impl Held {
    /// Everything before `end`, synced.
    pub fn durable(end: Offset) -> Self {
        Held { received: end, written: end, durable: end }
    }

    /// The further of the two, end by end.
    pub fn max(self, other: Self) -> Self {
        Held {
            received: self.received.max(other.received),
            written: self.written.max(other.written),
            durable: self.durable.max(other.durable),
        }
    }

    /// What is left of it if the log ends at `end`.
    pub fn min_end(self, end: Offset) -> Self {
        Held { received: self.received.min(end), written: self.written.min(end), durable: self.durable.min(end) }
    }

    /// Whether the order of the fields' invariants holds.
    pub fn is_ordered(&self) -> bool {
        self.durable <= self.written && self.written <= self.received
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.received, self.written, self.durable)
    }
}

/// Batches of one reign, as they lie in the leader's log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Batches<B> {
    /// The offset of the first record.
    pub from: Offset,
    /// The offset after the last.
    pub end: Offset,
    /// The reign that they were written in.
    pub epoch: LeaderEpoch,
    /// The bytes. The protocol does not look at them.
    pub bytes: B,
}

/// Batches that a leader's owner has read for a follower.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Loaded<B> {
    /// The batches.
    pub batches: Batches<B>,
    /// Their size, for the window.
    pub size_bytes: u64,
    /// The highest level that somebody waits for now.
    pub wanted: AckLevel,
}

/// A message between two replicas of a partition. `B` is what carries batches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message<B> {
    /// To all, by a replica that would lead: vote for me.
    Elect {
        /// The reign to be.
        epoch: LeaderEpoch,
        /// The candidate's life: votes for an earlier one do not count.
        life: u64,
        /// What its log is worth.
        claim: Claim,
        /// The configuration by which it counts votes.
        config: Configuration,
        /// See [`Ballot::forced`](super::ballot::Ballot::forced).
        forced: LeaderEpoch,
        /// Counts the times that all are asked; 0 if once is enough.
        round: u32,
    },
    /// To a candidate: I listen to nothing before your epoch any more, and my log is worth no more than yours.
    Vote {
        /// The candidate's.
        epoch: LeaderEpoch,
        /// The candidate's.
        life: u64,
        /// What the voter knows to be on a write quorum.
        committed: Offset,
        /// Where the voter's log begins: a leader does not bring back what was given up.
        log_start: Offset,
        /// The round that it was asked in.
        round: u32,
        /// The voter's own life: what it said in an earlier one it may have forgotten.
        voter: u64,
    },
    /// To a candidate: I do not vote for you.
    Refuse {
        /// The candidate's.
        epoch: LeaderEpoch,
        /// The candidate's.
        life: u64,
        /// What was promised to another, or before.
        promised: LeaderEpoch,
        /// What the log is worth; `None` from a replica that lost its memory.
        claim: Option<Claim>,
        /// The newest configuration it knows, which the candidate may not.
        config: Configuration,
    },
    /// To whoever acts in a reign that is over: there is a higher promise.
    Deposed {
        /// The promise.
        promised: LeaderEpoch,
    },
    /// Leader to follower, until it answers: where do you stand?
    Probe(Probe),
    /// Follower to leader: here. Also after every step of [`Message::Align`].
    Standing(Standing),
    /// Leader to follower: our logs agree at most up to here; cut off what is behind it and say where you stand.
    Align {
        /// The reign.
        epoch: LeaderEpoch,
        /// The session.
        session: Session,
        /// The leader's last epoch that is not after the follower's last, and its end.
        until: EpochEnd,
    },
    /// Leader to follower: what would have to come next for you is deleted. Drop everything and begin here.
    Restart {
        /// The reign.
        epoch: LeaderEpoch,
        /// The session.
        session: Session,
        /// The first offset of the leader's log.
        at: Offset,
    },
    /// Leader to follower: you had more than you have now. Take your memory for lost.
    Amnesia {
        /// The reign.
        epoch: LeaderEpoch,
        /// The session.
        session: Session,
    },
    /// Leader to follower: batches. They begin where the follower's log ends, or are repeated.
    Append {
        /// The reign.
        epoch: LeaderEpoch,
        /// The session.
        session: Session,
        /// Everything before it is durable on a write quorum.
        committed: Offset,
        /// How safe somebody waits for records to be: a follower does not leave them less safe than that any longer
        /// than it takes.
        wanted: AckLevel,
        /// The batches.
        batches: Batches<B>,
    },
    /// Leader to follower, while there is nothing to send: this is where I stand.
    Beat {
        /// The reign.
        epoch: LeaderEpoch,
        /// The session.
        session: Session,
        /// Everything before it is durable on a write quorum.
        committed: Offset,
        /// The first offset of the log: followers delete what is before it.
        log_start: Offset,
        /// Who decides. Told again and again, until everybody knows.
        config: Configuration,
    },
    /// Follower to leader: how far I am.
    Ack(Ack),
    /// Follower to leader: you speak of a session that I know nothing of, being new here. Probe me.
    Stranger {
        /// The reign.
        epoch: LeaderEpoch,
    },
    /// Leader to follower: do you still follow me?
    Confirm {
        /// The reign.
        epoch: LeaderEpoch,
        /// The leader's life.
        life: u64,
        /// Which round, of reads or of refusals.
        round: u64,
    },
    /// Follower to leader: yes. I have promised nothing to a later leader.
    Confirmed {
        /// The reign.
        epoch: LeaderEpoch,
        /// The leader's life.
        life: u64,
        /// The round.
        round: u64,
    },
    /// Leader to the follower that shall lead: you have everything. Begin a new reign.
    TakeOver {
        /// The reign that is to end.
        epoch: LeaderEpoch,
        /// The session in which it was found that the follower has everything.
        session: Session,
    },
    /// Leader to a replica that is a member no longer, as a write quorum knows: you may forget everything.
    Retire {
        /// The reign.
        epoch: LeaderEpoch,
        /// The session: a replica that takes the same slot later is not meant.
        session: Session,
    },
    /// To all others, by a replica that lost its memory: what may I have promised?
    Inquire {
        /// Its present life.
        life: u64,
    },
    /// To a replica that lost its memory: nothing before this epoch may be listened to.
    Known {
        /// The life of who asked.
        life: u64,
        /// What the one who answers has promised; if it lost its memory too, what it has heard of since, or has in its
        /// log.
        promised: LeaderEpoch,
        /// Whether it has all that it ever promised.
        is_intact: bool,
        /// The newest configuration it knows.
        config: Configuration,
    },
    /// To another replica: these records are damaged here. Send yours.
    Want {
        /// The first.
        from: Offset,
        /// The offset after the last.
        until: Offset,
    },
    /// To the replica that wanted them: the records, from the first on, perhaps not all of them.
    Spare(Batches<B>),
}

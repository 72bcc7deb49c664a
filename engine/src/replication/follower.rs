//! A replica that follows: it brings its log to agree with its leader's, then takes what it is sent.

use std::time::Duration;

use super::{
    assignment::{Configuration, ReplicaId},
    ballot::Memory,
    effect::Effect,
    epochs::EpochEnd,
    message::{Ack, Batches, Message, Probe, Session, Standing},
    own::Own,
};
use crate::{
    testing::bug::{PlantedBug, planted},
    types::{AckLevel, LeaderEpoch, Offset},
};

/// A replica that does not lead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Follower {
    /// Its leader, once that has spoken to it.
    pub(super) following: Option<Following>,
    /// When to try to lead if there is no leader until then.
    pub(super) campaign_at: Duration,
}

/// A session with a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Following {
    pub(super) leader: ReplicaId,
    /// Its reign: what the ballot has promised, else the session is over.
    pub(super) epoch: LeaderEpoch,
    pub(super) session: Session,
    /// When the leader last said something in this session.
    pub(super) heard_at: Duration,
    /// See [`Probe::start`].
    start: Offset,
    /// See [`Probe::log_end`].
    rebuilt_at: Offset,
    /// The leader has found that the logs agree. From then on the log only grows in this session, and messages that
    /// would cut it off are late ones.
    aligned: bool,
}

impl Follower {
    /// One without a leader, which tries to lead itself at `campaign_at`.
    pub(super) fn alone(campaign_at: Duration) -> Self {
        Follower { following: None, campaign_at }
    }

    /// Whether this is said in the session under way.
    pub(super) fn is_in(&self, from: ReplicaId, session: Session) -> bool {
        self.following.is_some_and(|following| following.leader == from && following.session == session)
    }
}

#[cfg(test)]
impl Follower {
    pub(super) fn forget_times(&mut self) {
        self.campaign_at = Duration::ZERO;
        self.following = self.following.map(|following| Following { heard_at: Duration::ZERO, ..following });
    }
}

impl Following {
    /// Begins the session that a probe asks for.
    pub(super) fn begin(leader: ReplicaId, probe: &Probe, life: u64, now: Duration) -> Self {
        assert!(probe.start <= probe.log_end, "{probe:?}");
        Following {
            leader,
            epoch: probe.epoch,
            session: Session { leader_life: probe.life, round: probe.round, life },
            heard_at: now,
            start: probe.start,
            rebuilt_at: probe.log_end,
            aligned: false,
        }
    }

    /// Whether a probe says nothing new: it asks for this session, or for an earlier one.
    pub(super) fn is_past(&self, leader: ReplicaId, probe: &Probe) -> bool {
        let same = self.leader == leader && self.epoch == probe.epoch && self.session.leader_life == probe.life;
        same && probe.round <= self.session.round
    }

    /// Answers the probe, unless the log is being cut off: then it is answered after that.
    pub(super) fn stand<B>(&self, own: &mut Own<B>) {
        if own.cutting.is_some() || self.aligned {
            return;
        }
        let (last, durable, rebuilding) = (own.last(), own.held.durable, !own.is_intact());
        let standing = Standing { epoch: self.epoch, session: self.session, last, durable, rebuilding };
        own.send_saved(self.leader, Message::Standing(standing));
    }

    /// The leader says up to where the logs may agree.
    pub(super) fn handle_align<B>(&self, own: &mut Own<B>, until: EpochEnd) {
        if self.aligned || own.cutting.is_some() {
            return;
        }
        let to = own.epochs.agrees_until(until, own.held.received).end.max(own.log_start);
        if to >= own.held.received {
            return self.stand(own);
        }
        let committed = own.committed();
        if to < committed && own.is_intact() {
            own.halted = true;
            return own.effect(Effect::Halt { committed, differs_at: to });
        }
        own.cutting = Some(to);
        own.effect(Effect::Truncate { to });
    }

    /// The leader has deleted what would come next here, or nothing here agrees with it.
    pub(super) fn handle_restart<B>(&self, own: &mut Own<B>, at: Offset) {
        if self.aligned || own.cutting.is_some() {
            return;
        }
        let committed = own.committed().min(own.held.received);
        if at < committed && own.is_intact() {
            own.halted = true;
            return own.effect(Effect::Halt { committed, differs_at: at });
        }
        (own.cutting, own.restarting) = (Some(at), true);
        own.effect(Effect::Restart { at });
    }

    /// Batches come.
    pub(super) fn handle_append<B>(
        &mut self,
        own: &mut Own<B>,
        (committed, wanted): (Offset, AckLevel),
        batches: Batches<B>,
    ) {
        if own.cutting.is_some() {
            return;
        }
        self.aligned = true;
        own.note_committed(committed, self.epoch);
        if batches.from == own.held.received {
            own.extend(batches.from, batches.end, batches.epoch);
            own.effect(Effect::Write { batches, wanted });
            self.acknowledge(own, false);
        } else {
            let missing = batches.end > own.held.received;
            self.acknowledge(own, missing);
        }
    }

    /// The leader says where it stands.
    pub(super) fn handle_beat<B>(
        &mut self,
        own: &mut Own<B>,
        (committed, log_start): (Offset, Offset),
        config: Configuration,
    ) {
        if own.cutting.is_some() {
            return;
        }
        self.aligned = true;
        own.note_committed(committed, self.epoch);
        own.learn(config);
        if log_start > own.log_start && log_start <= own.held.durable {
            own.effect(Effect::Trim { before: log_start });
        }
        self.accept(own);
        self.acknowledge(own, false);
    }

    /// The device has come further, or a save is done.
    pub(super) fn handle_moved<B>(&self, own: &mut Own<B>) {
        if self.aligned && own.cutting.is_none() {
            self.accept(own);
            self.acknowledge(own, false);
        }
    }

    /// Takes the leader's log over, once it has durably what the leader began with. A replica that lost its memory
    /// waits until it has all that its leader had when the session began: it may have acknowledged that.
    fn accept<B>(&self, own: &mut Own<B>) {
        assert!(self.epoch == own.ballot.promised, "following in {} after {}", self.epoch, own.ballot);
        let early = (planted(PlantedBug::AcceptEarly) && own.is_intact())
            || (planted(PlantedBug::RebuiltAtOnce) && !own.is_intact());
        let needs = if early {
            Offset(0)
        } else if own.is_intact() {
            self.start
        } else {
            self.rebuilt_at
        };
        let news = own.ballot.accepted < self.epoch || !own.is_intact();
        if news && own.held.durable >= needs {
            own.vow(|ballot| (ballot.accepted, ballot.memory) = (self.epoch, Memory::Intact));
        }
    }

    /// Says how far the log goes. Of the ballot only what is saved is said.
    fn acknowledge<B>(&self, own: &mut Own<B>, missing: bool) {
        let saved = &own.saved;
        let ack = Ack {
            epoch: self.epoch,
            session: self.session,
            held: own.held,
            accepted: saved.accepted == self.epoch && saved.memory == Memory::Intact,
            config: saved.config.id,
            log_start: own.log_start,
            missing,
            damaged: own.damaged,
        };
        own.send(self.leader, Message::Ack(ack));
    }
}

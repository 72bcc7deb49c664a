//! How a replica becomes leader, and how one that lost its memory finds out whom it may follow.
//!
//! A candidate begins a reign of its own number, promises it to itself, and asks all others to listen to nothing
//! earlier any more. Who has a log that is worth more refuses, and tries itself. With the votes of an election quorum
//! the candidate leads: every record that was acknowledged is on a write quorum, so on one of the voters, whose log is
//! worth no more than the candidate's.
//!
//! A voter may lose its drive, and be given back what it had by the leader of an earlier reign, before others have
//! voted. Those whom it asks what it promised need not know of the vote then. So where it does not ask all others, a
//! candidate that has its votes asks once more, and counts who votes again in the same life: these had all promised at
//! one time, and whoever forgets later hears of it from one of them.

use std::{collections::BTreeMap, time::Duration};

use super::{
    assignment::{ConfigId, Configuration, Members, ReplicaId, ReplicaSet},
    ballot::Memory,
    effect::{Effect, Stuck},
    message::{Claim, Message},
    own::Own,
};
use crate::{
    testing::bug::{PlantedBug, planted},
    types::{LeaderEpoch, Offset},
};

/// A replica that would lead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Candidate {
    /// The reign to be; promised by the candidate itself.
    pub(super) epoch: LeaderEpoch,
    /// How often it has asked all anew, counted from 1. 0: once is enough, by its configuration or by force.
    round: u32,
    /// Who votes for it in this round, itself among them once its own promise is durable; each in which life.
    votes: BTreeMap<ReplicaId, u64>,
    /// Who had voted for it when the round began.
    before: BTreeMap<ReplicaId, u64>,
    /// Who answered that it has no vote, having lost its memory.
    without_memory: ReplicaSet,
    /// The most that any voter, or the candidate, knows to be on a write quorum.
    committed: Offset,
    /// The latest beginning of any voter's log, or of the candidate's.
    pub(super) log_start: Offset,
    /// Somebody has promised a later reign already: this attempt may come to nothing, the next begins later still.
    outbid: bool,
    /// The operator said that this replica shall lead, whoever is missing.
    forced: bool,
    /// When to ask again.
    retry_at: Duration,
}

impl Candidate {
    /// Begins a reign: by votes, or by the operator's word, who then says who the members are.
    pub(super) fn begin<B>(own: &mut Own<B>, forced: Option<Members>, now: Duration) -> Self {
        assert!(own.cutting.is_none(), "a candidate whose log is being cut off at {:?}", own.cutting);
        let epoch = own.epoch_to_lead();
        own.vow(|ballot| {
            ballot.promised = epoch;
            if let Some(current) = forced {
                let id = ConfigId { epoch, version: ballot.config.id.version + 1 };
                ballot.config = Configuration { id, current, incoming: None };
                (ballot.forced, ballot.memory) = (epoch, Memory::Intact);
            }
        });
        assert!(own.is_intact(), "replica {} lost its memory and would lead", own.id);
        own.tell(None);
        let committed = own.committed();
        let mut candidate = Candidate {
            epoch,
            round: u32::from(forced.is_none() && own.ballot.config.may_miss_votes()),
            votes: BTreeMap::new(),
            before: BTreeMap::new(),
            without_memory: ReplicaSet::default(),
            committed,
            log_start: own.log_start,
            outbid: false,
            forced: forced.is_some(),
            retry_at: now,
        };
        candidate.ask(own, now);
        candidate
    }

    fn ask<B>(&mut self, own: &mut Own<B>, now: Duration) {
        self.retry_at = own.turn(now) + own.pace.election_retry;
        let (life, claim, config, forced) = (own.life, own.claim(), own.ballot.config, own.ballot.forced);
        let (epoch, round) = (self.epoch, self.round);
        for to in config.replicas().without(own.id).iter().filter(|to| !self.votes.contains_key(to)) {
            own.send_saved(to, Message::Elect { epoch, life, claim, config, forced, round });
        }
    }

    /// Asks all once more if that is needed and the votes of the first round are complete: who still knows of its own?
    pub(super) fn ask_again<B>(&mut self, own: &mut Own<B>, now: Duration) {
        if self.round == 1 && self.is_round_complete(own) {
            self.begin_round(own, now);
        }
    }

    fn is_round_complete<B>(&self, own: &Own<B>) -> bool {
        own.ballot.config.is_election_quorum(self.votes.keys().copied().collect())
    }

    fn begin_round<B>(&mut self, own: &mut Own<B>, now: Duration) {
        self.round += 1;
        self.before = std::mem::take(&mut self.votes);
        self.handle_saved(own);
        self.ask(own, now);
    }

    /// The candidate's own promise may be durable now.
    pub(super) fn handle_saved<B>(&mut self, own: &Own<B>) {
        if own.saved.promised >= self.epoch {
            self.votes.insert(own.id, own.life);
        }
    }

    /// `from` votes, in its life `voter`, for having been asked in `round`.
    pub(super) fn handle_vote(
        &mut self,
        (from, voter, round): (ReplicaId, u64, u32),
        (committed, log_start): (Offset, Offset),
    ) {
        if round == self.round {
            self.votes.insert(from, voter);
        }
        self.log_start = self.log_start.max(log_start);
        self.committed = self.committed.max(committed);
    }

    pub(super) fn handle_refusal<B>(
        &mut self,
        own: &Own<B>,
        (from, promised): (ReplicaId, LeaderEpoch),
        claim: Option<Claim>,
        now: Duration,
    ) {
        self.outbid |= promised > self.epoch;
        match claim {
            None => self.without_memory.insert(from),
            // The other one should lead, and will try: outbidding it again would only keep it from that, for ever if
            // the two take turns.
            Some(claim) if claim > own.claim() => self.retry_at = own.turn(now) + own.pace.silence_max * 2,
            Some(_) => {}
        }
    }

    pub(super) fn handle_outbid(&mut self, promised: LeaderEpoch) {
        self.outbid |= promised > self.epoch;
    }

    /// Whether it leads now.
    pub(super) fn is_elected<B>(&self, own: &Own<B>) -> bool {
        let counts = |(from, voter): &(&ReplicaId, &u64)| self.round == 0 || self.before.get(from) == Some(voter);
        let votes: ReplicaSet = self.votes.iter().filter(counts).map(|(from, _)| *from).collect();
        let enough = self.forced || own.ballot.config.is_election_quorum(votes);
        enough && votes.contains(own.id) && (self.forced || own.held.received >= self.committed)
    }

    /// Tries again if it is time to. Gives whether it must begin a later reign for that.
    pub(super) fn tick<B>(&mut self, own: &mut Own<B>, now: Duration) -> bool {
        if now < self.retry_at {
            return false;
        }
        let Candidate { without_memory, committed, .. } = *self;
        let votes = self.votes.keys().copied().collect();
        own.effect(Effect::Stuck(Stuck { votes, without_memory, committed, log_end: own.held.received }));
        if !self.outbid && self.round > 0 && self.is_round_complete(own) {
            // Not all of those who have voted had done so before in the same life.
            self.begin_round(own, now);
        } else if !self.outbid {
            self.ask(own, now);
        }
        self.outbid
    }

    #[cfg(test)]
    pub(super) fn forget_times(&mut self) {
        self.retry_at = Duration::ZERO;
    }
}

/// What a candidate was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A vote.
    Voted,
    /// The vote that it was given before, once more.
    VotedAgain,
    /// A refusal.
    Refused,
}

/// Answers a candidate.
pub(super) fn answer<B>(own: &mut Own<B>, from: ReplicaId, elect: Message<B>) -> Answer {
    let Message::Elect { epoch, life, claim, config, forced, round } = elect else { return Answer::Refused };
    own.see(epoch);
    let voter = own.life;
    let grants = own.is_intact()
        && own.cutting.is_none()
        && epoch > own.ballot.promised
        && config.id >= own.ballot.config.id
        && (claim >= own.claim() || planted(PlantedBug::ElectTheShorter));
    if grants {
        own.vow(|ballot| {
            ballot.promised = epoch;
            ballot.forced = ballot.forced.max(forced);
            ballot.config = config;
        });
        let (committed, log_start) = (own.committed(), own.log_start);
        own.send_saved(from, Message::Vote { epoch, life, committed, log_start, round, voter });
        return Answer::Voted;
    }
    // A vote that was lost on its way is given again: the promise is the same. Not to one that has led the epoch
    // already and begins it again: an old copy of a drive does not know that.
    if epoch == own.ballot.promised && own.is_intact() && claim >= own.claim() && own.epochs.last() < epoch {
        let (committed, log_start) = (own.committed(), own.log_start);
        own.send_saved(from, Message::Vote { epoch, life, committed, log_start, round, voter });
        return Answer::VotedAgain;
    }
    let (promised, config) = (own.ballot.promised, own.ballot.config);
    let claim = own.is_intact().then(|| own.claim());
    own.send_saved(from, Message::Refuse { epoch, life, promised, claim, config });
    Answer::Refused
}

/// What a replica that lost its memory has found out. It may have promised that it would listen to nobody before some
/// epoch, and must not listen to an earlier leader only because it forgot. Among those it hears from is one that knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Inquiry {
    /// Who has answered in this life.
    heard: ReplicaSet,
    /// Who has answered that it lost its memory too.
    without_memory: ReplicaSet,
    /// The highest promise that they told.
    promised: LeaderEpoch,
    /// When they were last asked.
    asked_at: Duration,
}

impl Inquiry {
    pub(super) fn begin<B>(own: &mut Own<B>, now: Duration) -> Self {
        let mut inquiry = Inquiry::default();
        inquiry.ask(own, now);
        inquiry
    }

    fn ask<B>(&mut self, own: &mut Own<B>, now: Duration) {
        self.asked_at = now;
        let life = own.life;
        let others = own.ballot.config.replicas().without(own.id);
        others.iter().filter(|to| !self.heard.contains(*to)).for_each(|to| own.send(to, Message::Inquire { life }));
    }

    pub(super) fn handle_known(&mut self, from: ReplicaId, promised: LeaderEpoch, is_intact: bool) {
        if is_intact {
            self.without_memory.remove(from);
            self.heard.insert(from);
        } else if !self.heard.contains(from) {
            self.without_memory.insert(from);
        }
        self.promised = self.promised.max(promised);
    }

    /// Takes over what it found out if that is enough: it has heard from one who knows of any promise, or from
    /// everybody. Then whatever only those knew who lost their memory was promised to one of them, which leads no more,
    /// and nothing was acknowledged in its reign, since one who still knows would have accepted it. Gives whether it
    /// is.
    ///
    /// Not before it is durable that the memory is lost: a leader that is listened to has the log cut off, and after a
    /// crash what is left of it would pass for all that there was.
    pub(super) fn ends<B>(&self, own: &mut Own<B>) -> bool {
        let config = own.ballot.config;
        let all = config.replicas().without(own.id);
        let is_everybody = self.heard.union(self.without_memory).intersection(all) == all;
        let enough = !self.heard.is_empty() && (config.is_inquiry_quorum(own.id, self.heard) || is_everybody);
        let ends = enough && own.saved.memory == Memory::Lost;
        if ends {
            own.vow(|ballot| ballot.promised = ballot.promised.max(self.promised));
        }
        ends
    }

    pub(super) fn tick<B>(&mut self, own: &mut Own<B>, now: Duration) {
        if now.saturating_sub(self.asked_at) >= own.pace.resend {
            self.ask(own, now);
        }
    }

    #[cfg(test)]
    pub(super) fn forget_times(&mut self) {
        self.asked_at = Duration::ZERO;
    }
}

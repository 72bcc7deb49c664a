//! One replica of a partition: which records count as stored, whose log is the log, and who says so.
//!
//! Pure: messages of other replicas, reports of the own log and the time come in through [`Replica`]; messages and
//! effects go out through [`Replica::poll_effect`]. No file, no clock, no task, and not a byte of a batch is looked at.
//! A link between two replicas may lose, double, delay and reorder, so it may be a ring between cores or a network.
//! Invariant: a record that was acknowledged by a write quorum is in the log of every later leader, at the same offset.
//! `docs/REPLICATION.md` describes the protocol state by state and argues that it holds.

pub mod assignment;
pub mod ballot;
pub mod effect;
mod election;
pub mod epochs;
mod follower;
mod leader;
pub mod message;
mod own;
mod progress;
mod reads;
mod repair;
mod sparing;
#[cfg(test)]
mod tests;
mod text;

use std::time::Duration;

use assignment::{Members, ReplicaId, ReplicaSet};
use ballot::{Ballot, Memory};
use effect::Effect;
use election::{Answer, Candidate, Inquiry};
use follower::{Follower, Following};
use leader::Leader;
use message::{Batches, Held, Loaded, Message, Probe};
use own::Own;
use repair::Repair;

pub use leader::{Damaged, NotNow};
pub use own::Opened;
pub use reads::ReadTicket;

use crate::{
    limits::{BATCH_BYTES_MAX, REPLICATION_WINDOW_BYTES},
    types::{AckLevel, LeaderEpoch, Offset},
};

/// How fast, how patient, how much at once. No promise depends on these: they decide when something is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pace {
    /// What was not answered for so long is sent again.
    pub resend: Duration,
    /// How often a leader tells its followers where it stands when it has nothing else to tell.
    pub beat: Duration,
    /// A leader that said nothing for so long leads no more, as far as a follower can tell. The host knows earlier when
    /// a core or a drive is gone; this is for a replica that is there and leads no more.
    pub silence_max: Duration,
    /// A follower that has not kept up for so long is out of sync.
    pub lag_max: Duration,
    /// How long a candidate waits for votes before it asks again.
    pub election_retry: Duration,
    /// By how much later each slot tries to lead than the one before it.
    pub election_stagger: Duration,
    /// How long a handover may take before the old leader goes on.
    pub handover_max: Duration,
    /// Bytes in flight to a follower that keeps up; one that does not gets a quarter.
    pub window_bytes: u64,
    /// How fast a follower that does not keep up is sent what it lacks.
    pub catch_up_bytes_per_second: u64,
}

impl Default for Pace {
    /// For cores of one host, where a message takes microseconds and a sync a millisecond: a failed leader is replaced
    /// well within a second, also if the first attempt comes to nothing.
    fn default() -> Self {
        Pace {
            resend: Duration::from_millis(100),
            beat: Duration::from_millis(50),
            silence_max: Duration::from_millis(400),
            lag_max: Duration::from_millis(500),
            election_retry: Duration::from_millis(150),
            election_stagger: Duration::from_millis(10),
            handover_max: Duration::from_millis(500),
            window_bytes: REPLICATION_WINDOW_BYTES,
            catch_up_bytes_per_second: 256 << 20,
        }
    }
}

const _: () = assert!(REPLICATION_WINDOW_BYTES / 4 > 0 && REPLICATION_WINDOW_BYTES >= BATCH_BYTES_MAX as u64);

/// See the module. `B` is what carries batches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica<B> {
    own: Own<B>,
    role: Role,
    /// While a replica that lost its memory asks what it may have promised. `None` if it did not lose it, or knows.
    inquiry: Option<Inquiry>,
    /// Records that are fetched from others.
    repair: Option<Repair>,
}

/// What a replica is at the moment. Every one begins as a follower without a leader.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Role {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Leader),
}

/// A replica's role, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// It follows, or waits for somebody to lead.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
    /// It lost its memory, and is given back what it had.
    Rebuilding,
    /// It found what must not be, and does nothing any more.
    Halted,
}

/// A follower as its leader sees it, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerView {
    /// Which.
    pub replica: ReplicaId,
    /// How far it said it is, in the session under way.
    pub held: Held,
    /// Whether it keeps up.
    pub in_sync: bool,
    /// For how long it has not had all that the leader has; zero if it has.
    pub lag: Duration,
}

impl<B> Replica<B> {
    /// A replica as its drive has it. It tries to lead when its turn comes, unless a leader speaks to it before: one
    /// that is there does so with its next beat.
    pub fn open(opened: Opened, pace: Pace, now: Duration) -> Self {
        let mut own = Own::new(opened, pace);
        let inquiry = (!own.is_intact()).then(|| Inquiry::begin(&mut own, now));
        let role = Role::Follower(Follower::alone(own.turn(now) + own.pace.beat * 2));
        Replica { own, role, inquiry, repair: None }
    }

    /// Takes what another replica says.
    pub fn handle_message(&mut self, from: ReplicaId, message: Message<B>, now: Duration) {
        assert!(from != self.own.id, "replica {from} hears itself");
        if self.own.halted {
            return;
        }
        match message {
            Message::Elect { .. } => self.on_elect(from, message, now),
            Message::Vote { .. } | Message::Refuse { .. } | Message::Deposed { .. } => {
                self.on_election_news(from, message, now);
            }
            Message::Probe(probe) => self.on_probe(from, &probe, now),
            Message::Standing(_) | Message::Ack(_) | Message::Stranger { .. } | Message::Confirmed { .. } => {
                self.on_follower_news(from, message, now)
            }
            Message::Align { epoch, session, .. }
            | Message::Restart { epoch, session, .. }
            | Message::Amnesia { epoch, session }
            | Message::Append { epoch, session, .. }
            | Message::Beat { epoch, session, .. }
            | Message::TakeOver { epoch, session }
            | Message::Retire { epoch, session } => {
                if self.admits(from, epoch) && self.is_in(from, epoch, session) {
                    self.on_leader_news(message, now);
                }
            }
            Message::Confirm { epoch, life, round } => {
                if self.admits(from, epoch) && self.own.is_intact() && epoch == self.own.ballot.promised {
                    self.own.send_saved(from, Message::Confirmed { epoch, life, round });
                }
            }
            Message::Inquire { .. } | Message::Known { .. } => self.on_inquiry(from, message, now),
            Message::Want { from: first, until } => repair::give(&mut self.own, from, first, until),
            Message::Spare(batches) => self.on_spare(batches, now),
        }
        self.settle(now);
    }

    /// Stops to follow `leader` if this replica does, and tries to lead itself a while later.
    fn leave(&mut self, leader: ReplicaId, campaign_at: Duration) {
        if let Role::Follower(follower) = &mut self.role
            && follower.following.is_some_and(|following| following.leader == leader)
        {
            *follower = Follower::alone(campaign_at);
            self.own.tell(None);
        }
    }

    fn on_elect(&mut self, from: ReplicaId, elect: Message<B>, now: Duration) {
        if matches!(&elect, Message::Elect { epoch, .. } if *epoch > self.own.ballot.promised) {
            // Whoever would lead a later reign leads this one no more.
            self.leave(from, self.own.turn(now) + self.own.pace.election_retry);
        }
        let own = &mut self.own;
        let claims_less = matches!(&elect, Message::Elect { claim, .. } if *claim < own.claim());
        let told = match &elect {
            Message::Elect { config, forced, .. } if *forced <= own.ballot.forced => Some(*config),
            _ => None,
        };
        match election::answer(own, from, elect) {
            Answer::Voted => {
                own.tell(None);
                self.role = Role::Follower(Follower::alone(own.patience(now)));
            }
            answer => {
                if let Role::Follower(Follower { following: None, campaign_at }) = &mut self.role {
                    *campaign_at = match answer {
                        // It still waits for others: let it.
                        Answer::VotedAgain => own.patience(now),
                        // It will not get far without this vote, and this replica would get its.
                        _ if claims_less => now.min(*campaign_at),
                        _ => *campaign_at,
                    };
                    // Who is about to be a member hears so here: if its log is worth more than those of all others,
                    // nobody else can lead.
                    told.into_iter().for_each(|config| own.learn(config));
                }
            }
        }
    }

    fn on_election_news(&mut self, from: ReplicaId, message: Message<B>, now: Duration) {
        match (&mut self.role, message) {
            (Role::Candidate(candidate), Message::Vote { epoch, life, committed, log_start, round, voter })
                if epoch == candidate.epoch && life == self.own.life =>
            {
                candidate.handle_vote((from, voter, round), (committed, log_start));
                candidate.ask_again(&mut self.own, now);
            }
            (role, Message::Refuse { epoch, life, promised, claim, config }) if life == self.own.life => {
                self.own.see(promised);
                let news = config.id > self.own.ballot.config.id;
                if let Role::Candidate(candidate) = role
                    && epoch == candidate.epoch
                {
                    candidate.handle_refusal(&self.own, (from, promised), claim, now);
                    if news {
                        // Votes were counted among members of the past. With a log that is worth more the other one
                        // has the next turn: both would wait as long else, and outbid each other for ever.
                        let yields = claim.is_some_and(|claim| claim > self.own.claim());
                        self.own.learn(config);
                        let wait = if yields { self.own.pace.silence_max * 2 } else { Duration::ZERO };
                        *role = Role::Follower(Follower::alone(self.own.turn(now) + wait));
                    }
                }
            }
            (role, Message::Deposed { promised }) => {
                self.own.see(promised);
                match role {
                    Role::Leader(leader) if leader.epoch < promised => self.step_down(now),
                    Role::Candidate(candidate) => candidate.handle_outbid(promised),
                    Role::Leader(_) | Role::Follower(_) => {}
                }
            }
            _ => {}
        }
    }

    /// Somebody has promised more than this leader offers. Most likely there is a later one, and it will be heard of
    /// soon; if not, this replica tries to be it.
    fn step_down(&mut self, now: Duration) {
        self.role = Role::Follower(Follower::alone(self.own.patience(now)));
        self.own.tell(None);
    }

    /// Whether `epoch` is not over. If it is, whoever speaks in it hears of that.
    fn admits(&mut self, from: ReplicaId, epoch: LeaderEpoch) -> bool {
        self.own.see(epoch);
        let promised = self.own.ballot.promised;
        if epoch < promised {
            self.own.send_saved(from, Message::Deposed { promised });
        }
        epoch >= promised
    }

    /// Whether `session` is under way with `from`. If not, `from` hears of that.
    fn is_in(&mut self, from: ReplicaId, epoch: LeaderEpoch, session: message::Session) -> bool {
        let known = matches!(&self.role, Role::Follower(follower) if follower.is_in(from, session));
        if !known && self.inquiry.is_none() {
            self.own.send(from, Message::Stranger { epoch });
        }
        known
    }

    fn on_probe(&mut self, from: ReplicaId, probe: &Probe, now: Duration) {
        if !self.admits(from, probe.epoch) || self.inquiry.is_some() {
            return;
        }
        match &self.role {
            Role::Follower(Follower { following: Some(following), .. }) if following.is_past(from, probe) => {
                if following.session.round == probe.round {
                    following.stand(&mut self.own);
                }
                return;
            }
            Role::Leader(leader) => {
                assert!(leader.epoch < probe.epoch, "replica {from} leads in {} too", leader.epoch);
            }
            Role::Follower(_) | Role::Candidate(_) => {}
        }
        self.own.vow(|ballot| {
            ballot.promised = probe.epoch;
            ballot.forced = ballot.forced.max(probe.forced);
            if probe.config.id > ballot.config.id {
                ballot.config = probe.config;
            }
        });
        let following = Following::begin(from, probe, self.own.life, now);
        self.own.give_up_damage();
        following.stand(&mut self.own);
        self.own.tell(Some(from));
        self.role = Role::Follower(Follower { following: Some(following), campaign_at: now });
    }

    fn on_follower_news(&mut self, from: ReplicaId, message: Message<B>, now: Duration) {
        let Role::Leader(leader) = &mut self.role else { return };
        let own = &mut self.own;
        match message {
            Message::Standing(standing) if standing.epoch == leader.epoch => {
                leader.handle_standing(own, from, standing, now);
            }
            Message::Ack(ack) if ack.epoch == leader.epoch => leader.handle_ack(own, from, &ack, now),
            Message::Stranger { epoch } if epoch == leader.epoch => leader.handle_stranger(own, from, now),
            Message::Confirmed { epoch, life, round } if epoch == leader.epoch && life == own.life => {
                leader.handle_confirmed(from, round);
            }
            _ => {}
        }
    }

    /// What the leader says in the session under way.
    fn on_leader_news(&mut self, message: Message<B>, now: Duration) {
        let own = &mut self.own;
        let Role::Follower(follower) = &mut self.role else { return };
        let Some(following) = &mut follower.following else { return };
        following.heard_at = now;
        match message {
            Message::Align { until, .. } => following.handle_align(own, until),
            Message::Restart { at, .. } => following.handle_restart(own, at),
            Message::Append { committed, wanted, batches, .. } => {
                following.handle_append(own, (committed, wanted), batches);
            }
            Message::Beat { committed, log_start, config, .. } => {
                following.handle_beat(own, (committed, log_start), config);
            }
            Message::Amnesia { .. } => self.forget(now),
            Message::TakeOver { .. } => self.campaign(now),
            Message::Retire { .. } => {
                own.effect(Effect::Retired);
                // It must not stand for election in the configuration that it knows, also not after a restart; but the
                // operator may want it back before it is deleted, and then it is rebuilt like a new one.
                self.forget(now);
            }
            _ => {}
        }
    }

    /// Takes the memory for lost.
    fn forget(&mut self, now: Duration) {
        self.own.vow(|ballot| ballot.memory = Memory::Lost);
        self.inquiry = Some(Inquiry::begin(&mut self.own, now));
        self.role = Role::Follower(Follower::alone(now));
    }

    fn on_inquiry(&mut self, from: ReplicaId, message: Message<B>, now: Duration) {
        if matches!(message, Message::Inquire { .. }) {
            // A leader that lost its memory leads no more.
            self.leave(from, self.own.turn(now));
        }
        let own = &mut self.own;
        match message {
            Message::Inquire { life } => {
                let (is_intact, config) = (own.is_intact(), own.ballot.config);
                let promised = if is_intact { own.ballot.promised } else { own.seen };
                own.send_saved(from, Message::Known { life, promised, is_intact, config });
            }
            Message::Known { life, promised, is_intact, config } if life == own.life => {
                if let Some(inquiry) = &mut self.inquiry {
                    own.learn(config);
                    inquiry.handle_known(from, promised, is_intact);
                    self.end_inquiry();
                }
            }
            _ => {}
        }
    }

    /// Listens to leaders again if enough is known for that.
    fn end_inquiry(&mut self) {
        if self.inquiry.as_ref().is_some_and(|inquiry| inquiry.ends(&mut self.own)) {
            self.inquiry = None;
        }
    }

    fn on_spare(&mut self, batches: Batches<B>, now: Duration) {
        if let Some(repair) = &mut self.repair
            && repair.handle_spare(&mut self.own, batches, now)
        {
            self.repair = None;
        }
    }

    /// Looks at what follows from what has just happened.
    fn settle(&mut self, now: Duration) {
        if let Role::Candidate(candidate) = &self.role
            && candidate.is_elected(&self.own)
        {
            let (epoch, log_start) = (candidate.epoch, candidate.log_start);
            let leader = Leader::begin(&mut self.own, epoch, log_start, now);
            self.role = Role::Leader(leader);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.settle(&mut self.own, now);
        }
    }

    /// The ballot of this revision, or a later one, is durable.
    pub fn handle_saved(&mut self, revision: u64, now: Duration) {
        let rebuilding = self.own.saved.memory == Memory::Lost;
        self.own.handle_saved(revision);
        if rebuilding && self.own.saved.memory == Memory::Intact {
            self.own.effect(Effect::Rebuilt);
        }
        self.end_inquiry();
        match &mut self.role {
            Role::Candidate(candidate) => candidate.handle_saved(&self.own),
            Role::Follower(Follower { following: Some(following), .. }) => following.handle_moved(&mut self.own),
            Role::Follower(_) | Role::Leader(_) => {}
        }
        self.settle(now);
    }

    /// The device has everything before `written`, and everything before `durable` is synced.
    pub fn handle_held(&mut self, written: Offset, durable: Offset, now: Duration) {
        self.own.hold(written, durable);
        if let Role::Follower(Follower { following: Some(following), .. }) = &mut self.role {
            following.handle_moved(&mut self.own);
        }
        self.settle(now);
    }

    /// The log is cut off at `to`, or begun anew there, durably; and what is left is durable.
    pub fn handle_truncated(&mut self, to: Offset, now: Duration) {
        self.own.cut(to);
        if let Role::Follower(Follower { following: Some(following), .. }) = &mut self.role {
            following.stand(&mut self.own);
        }
        self.settle(now);
    }

    /// The records before `log_start` are deleted.
    pub fn handle_log_start(&mut self, log_start: Offset, now: Duration) {
        self.own.begin(log_start);
        match &mut self.role {
            Role::Follower(Follower { following: Some(following), .. }) => following.handle_moved(&mut self.own),
            Role::Follower(_) | Role::Candidate(_) => {}
            Role::Leader(leader) => leader.handle_log_start(&mut self.own),
        }
        self.settle(now);
    }

    /// The leader's owner admitted a batch, and stamped it with the epoch of this reign: it is in memory.
    ///
    /// Panics if this replica does not admit appends: its owner asks [`Replica::admits_appends`] first.
    pub fn handle_appended(&mut self, from: Offset, end: Offset, now: Duration) {
        assert!(self.admits_appends(), "records from {from} on at a replica that does not admit any");
        if let Role::Leader(leader) = &mut self.role {
            self.own.extend(from, end, leader.epoch);
            leader.settle(&mut self.own, now);
        }
    }

    /// Batches were read for [`Effect::Load`].
    pub fn handle_loaded(&mut self, to: ReplicaId, loaded: Loaded<B>, now: Duration) {
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_loaded(&mut self.own, to, loaded, now);
            leader.settle(&mut self.own, now);
        }
    }

    /// Reading for [`Effect::Load`] failed. It is tried again at the next tick or event.
    pub fn handle_load_failed(&mut self, to: ReplicaId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_load_failed(to);
        }
    }

    /// Batches were read for [`Effect::LoadSpare`].
    pub fn handle_spare(&mut self, to: ReplicaId, batches: Batches<B>) {
        self.own.send(to, Message::Spare(batches));
    }

    /// The core or the drive of `leader` is taken for dead or stalled. If this replica follows it, it will try to lead.
    /// May be wrong: that costs a change of leaders, nothing else.
    pub fn handle_suspect(&mut self, leader: ReplicaId, now: Duration) {
        self.leave(leader, self.own.turn(now));
    }

    /// Tries to lead, now.
    pub fn campaign(&mut self, now: Duration) {
        let can = self.own.is_intact() && self.own.is_member() && self.own.cutting.is_none() && !self.own.halted;
        if can && !matches!(self.role, Role::Leader(_)) {
            self.role = Role::Candidate(Candidate::begin(&mut self.own, None, now));
        }
    }

    /// Leads without asking, with these members, because an operator says so and accepts that records may be lost that
    /// only others have.
    ///
    /// Panics if this replica is not among the members.
    pub fn force(&mut self, members: Members, now: Duration) {
        assert!(members.replicas().contains(self.own.id), "replica {} shall lead {members}", self.own.id);
        (self.own.halted, self.own.damaged_at) = (false, None);
        self.inquiry = None;
        if self.own.cutting.is_none() {
            self.role = Role::Candidate(Candidate::begin(&mut self.own, Some(members), now));
        }
    }

    /// Time passes. To be called every few milliseconds while there is anything to wait for.
    pub fn tick(&mut self, now: Duration) {
        if self.own.halted {
            return;
        }
        if let Some(inquiry) = &mut self.inquiry {
            inquiry.tick(&mut self.own, now);
        }
        if let Some(repair) = &mut self.repair {
            repair.tick(&mut self.own, now);
        }
        match &mut self.role {
            Role::Follower(Follower { following: Some(following), .. }) => {
                if now.saturating_sub(following.heard_at) >= self.own.pace.silence_max {
                    let leader = following.leader;
                    self.leave(leader, self.own.turn(now));
                }
            }
            Role::Follower(follower) => {
                if now >= follower.campaign_at {
                    self.campaign(now);
                }
            }
            Role::Candidate(candidate) => {
                if candidate.tick(&mut self.own, now) {
                    self.campaign(now);
                }
            }
            Role::Leader(leader) => leader.tick(&mut self.own, now),
        }
        self.settle(now);
    }

    /// A read comes that must see every write acknowledged before it. [`Effect::Answer`] says when it may be answered;
    /// [`Effect::Follow`] that it never will be.
    ///
    /// Errors: `NotLeading`.
    pub fn ask(&mut self, now: Duration) -> Result<ReadTicket, NotNow> {
        let Role::Leader(leader) = &mut self.role else { return Err(NotNow::NotLeading) };
        let ticket = leader.ask();
        leader.settle(&mut self.own, now);
        Ok(ticket)
    }

    /// Something is to be refused for good by what the log has now. [`Effect::StillLeads`] says when it may be;
    /// [`Effect::Follow`] that another log may be the one that counts.
    ///
    /// Errors: `NotLeading`.
    pub fn ask_whether_it_leads(&mut self, now: Duration) -> Result<ReadTicket, NotNow> {
        let Role::Leader(leader) = &mut self.role else { return Err(NotNow::NotLeading) };
        let ticket = leader.ask_whether_it_leads();
        leader.settle(&mut self.own, now);
        Ok(ticket)
    }

    /// Begins to change the members, online. [`Effect::Changed`] says that it is done.
    ///
    /// Errors: `NotLeading`, `NotEstablished`, `Changing`, `LeaderLeaves`.
    pub fn change_members(&mut self, members: Members, now: Duration) -> Result<(), NotNow> {
        let Role::Leader(leader) = &mut self.role else { return Err(NotNow::NotLeading) };
        leader.change(&mut self.own, members, now)?;
        leader.settle(&mut self.own, now);
        Ok(())
    }

    /// Leader: the members, if no change of them is under way and a write quorum durably knows them: every leader to
    /// come has them too, until somebody changes them.
    pub fn settled_members(&self) -> Option<Members> {
        let Role::Leader(leader) = &self.role else { return None };
        leader.settled(&self.own)
    }

    /// Begins to hand leadership over to a replica that keeps up, as soon as everything is as safe as somebody waits
    /// for: as `wanted`.
    ///
    /// Errors: `NotLeading`, `NotEstablished`, `Changing`, `NotInSync`.
    pub fn hand_over(&mut self, to: ReplicaId, wanted: AckLevel, now: Duration) -> Result<(), NotNow> {
        let Role::Leader(leader) = &mut self.role else { return Err(NotNow::NotLeading) };
        leader.hand_over(&mut self.own, (to, wanted), now)?;
        leader.settle(&mut self.own, now);
        Ok(())
    }

    /// The records from `from` to `until` are damaged here. To be called again for as long as they are: what comes of
    /// it depends on what the others have.
    pub fn handle_damage(&mut self, from: Offset, until: Offset, now: Duration) -> Damaged {
        let Role::Leader(leader) = &self.role else { return Damaged::Waits };
        let damaged = leader.judge_damage(&self.own, (from, until));
        if damaged == Damaged::Forgets {
            self.forget(now);
            self.own.damaged_at = Some(from);
            self.own.tell(None);
        }
        damaged
    }

    /// Whether records are damaged here that others may have: these hear of it with the next answer to a leader.
    pub fn note_damage(&mut self, is_damaged: bool) {
        self.own.damaged = is_damaged;
    }

    /// The records from `from` to `until` are damaged here: get those of them that are final from another replica.
    /// Gives whether there are any. [`Effect::Rewrite`] brings them.
    pub fn repair(&mut self, from: Offset, until: Offset, now: Duration) -> bool {
        self.repair = Repair::begin(&mut self.own, from, until, now);
        self.repair.is_some()
    }

    /// The replica is about to stop: what it knows to be final shall be known to whoever opens it.
    pub fn keep(&mut self) {
        self.own.keep();
    }

    /// Nobody waits for what is being repaired any more.
    pub fn stop_repair(&mut self) {
        self.repair = None;
    }

    /// The next thing to do, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect<B>> {
        self.own.pop_effect()
    }

    /// Whether this replica leads and takes appends.
    pub fn admits_appends(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.admits()) && !self.own.halted
    }

    /// Leader: what a write quorum holds, by level. `None` if this replica does not lead, or its reign is not
    /// established: then nobody is told where the log ends.
    pub fn quorum(&self) -> Option<Held> {
        match &self.role {
            Role::Leader(leader) if leader.established => Some(leader.moved),
            _ => None,
        }
    }

    /// Whether what this replica holds is a write quorum's without anybody else: no producer waits for the others.
    pub fn is_enough_alone(&self) -> bool {
        self.own.ballot.config.is_write_quorum([self.own.id].into_iter().collect())
    }

    /// Where the records end that a follower may be sent at once, from `from` on: all of one reign. `None` if this
    /// replica does not lead, or has no record there (any more).
    pub fn sendable_from(&self, from: Offset) -> Option<Offset> {
        self.own.reign_end(from).filter(|_| matches!(self.role, Role::Leader(_)))
    }

    /// Everything before it is final, also while no reign is established. Zero if nothing is known.
    pub fn committed(&self) -> Offset {
        self.own.committed().min(self.own.held.received)
    }

    /// The ballot, as it shall be.
    pub fn ballot(&self) -> &Ballot {
        &self.own.ballot
    }

    /// How far the log goes here.
    pub fn held(&self) -> Held {
        self.own.held
    }

    /// Where the log begins here.
    pub fn log_start(&self) -> Offset {
        self.own.log_start
    }

    /// What the replica is.
    pub fn role(&self) -> RoleName {
        match &self.role {
            _ if self.own.halted => RoleName::Halted,
            _ if !self.own.is_intact() => RoleName::Rebuilding,
            Role::Follower(_) => RoleName::Follower,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        }
    }

    /// Forgets every point in time, so that states that differ in nothing else are the same.
    #[cfg(test)]
    fn forget_times(&mut self) {
        match &mut self.role {
            Role::Follower(follower) => follower.forget_times(),
            Role::Candidate(candidate) => candidate.forget_times(),
            Role::Leader(leader) => leader.forget_times(),
        }
        self.inquiry.iter_mut().for_each(Inquiry::forget_times);
        self.repair.iter_mut().for_each(Repair::forget_times);
    }

    /// Leader: whoever keeps up, itself included. Empty elsewhere.
    pub fn in_sync(&self) -> ReplicaSet {
        match &self.role {
            Role::Leader(leader) => leader.in_sync(&self.own),
            Role::Follower(_) | Role::Candidate(_) => ReplicaSet::default(),
        }
    }

    /// Leader: who of the others can be given leadership, so that nobody has to wait for what is damaged there. Another
    /// that keeps up can be given it all the same.
    pub fn fit_to_lead(&self) -> ReplicaSet {
        match &self.role {
            Role::Leader(leader) => leader.fit_to_lead(),
            Role::Follower(_) | Role::Candidate(_) => ReplicaSet::default(),
        }
    }

    /// Leader: how far each follower is, for lag and progress. Empty elsewhere.
    pub fn followers(&self, now: Duration) -> impl Iterator<Item = FollowerView> {
        let leader = if let Role::Leader(leader) = &self.role { Some(leader) } else { None };
        let log_end = self.own.held.received;
        leader.into_iter().flat_map(|leader| &leader.followers).map(move |(replica, progress)| FollowerView {
            replica: *replica,
            held: progress.held,
            in_sync: progress.in_sync,
            lag: progress.lag(log_end, now),
        })
    }
}

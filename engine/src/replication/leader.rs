//! A replica that leads: it gives records their place, sends them to its followers, and says what a write quorum holds.
//!
//! A reign begins with taking over: until a write quorum has durably accepted the leader's log, up to where the reign
//! began, nothing is acknowledged, nothing new is visible and no read is answered. From then on everything before that
//! place is final. No record of the reign itself is needed for it, because logs are ordered in elections by the reign
//! that was *accepted*, not by the epoch of their last record.

use std::{collections::BTreeMap, time::Duration};

use super::{
    assignment::{Configuration, Members, ReplicaId, ReplicaSet},
    effect::Effect,
    message::{Ack, Held, Loaded, Message, Probe, Standing},
    own::Own,
    progress::{Phase, Progress},
    reads::{ReadTicket, Reads},
};
use crate::{
    testing::bug::{PlantedBug, planted},
    types::{AckLevel, LeaderEpoch, Offset},
};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Leader {
    /// The reign: what the own ballot has promised, else it is over.
    pub(super) epoch: LeaderEpoch,
    /// The end of the log when the reign began.
    start: Offset,
    /// Everybody who is sent the log: the other members, and those that are to become members.
    pub(super) followers: BTreeMap<ReplicaId, Progress>,
    /// A write quorum has accepted the log of this reign.
    pub(super) established: bool,
    /// What a write quorum holds, by level. Zero until established, and never goes back.
    pub(super) moved: Held,
    /// Where the log must begin at least on a write quorum before the reign is established: nothing that was given up
    /// comes back.
    begins_at_least: Offset,
    /// A write quorum has given up what is before.
    begins: Offset,
    reads: Reads,
    /// What is to be refused for good if this replica still leads.
    refusals: Reads,
    /// Members that are to be: their new replicas catch up before they count.
    change: Option<Members>,
    /// The end of the log when the members began to change: the new ones must have all before it on their own.
    change_from: Offset,
    /// Whoever shall lead instead.
    handover: Option<Handover>,
    /// When to tell the followers where the leader stands.
    beat_at: Duration,
}

/// A change of leaders that is under way. No appends are admitted meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Handover {
    to: ReplicaId,
    /// How safe somebody still waits for the log to be: whoever waits for that is to hear of it before.
    wanted: AckLevel,
    /// When it has come to nothing.
    until: Duration,
    /// The other one was told to take over.
    told: bool,
}

/// Why a leader will not do what it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// Somebody else leads, or nobody does.
    #[error("this replica does not lead")]
    NotLeading,
    /// The reign has just begun: too few replicas have taken the log over.
    #[error("a write quorum has not taken the log over yet")]
    NotEstablished,
    /// One change at a time.
    #[error("the members, or the leader, are changing already")]
    Changing,
    /// The replica lags behind, or is no member.
    #[error("replica {0} is not in sync")]
    NotInSync(ReplicaId),
    /// A leader does not dismiss itself: leadership is handed over first.
    #[error("the leader {0} is not among the new members")]
    LeaderLeaves(ReplicaId),
}

/// What comes of records that are damaged in the log of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// It is waited: they are final, so that others can give them; or may come to be; or nobody is kept from anything.
    Waits,
    /// Some follower cannot be sent them, nothing that is behind them can become final for that, and too few others
    /// could elect another leader: it waits for these.
    Keeps,
    /// The same, but another leader can be elected: this one takes its memory for lost, and is given it back.
    Forgets,
}

impl Leader {
    /// Begins the reign that was voted for, by replicas whose logs begin at `log_start` or before.
    pub(super) fn begin<B>(own: &mut Own<B>, epoch: LeaderEpoch, log_start: Offset, now: Duration) -> Self {
        assert!(epoch == own.ballot.promised, "leading in {epoch} after {}", own.ballot);
        assert!(own.saved.promised == epoch, "leading in {epoch}, which is not durable: {}", own.saved);
        assert!(own.epochs.last() < epoch, "the log has records of {epoch} already");
        let start = own.held.received;
        own.lead(start);
        // The newest configuration, whether it was ever decided or not, becomes one of this reign: so it orders above
        // all that earlier leaders may have issued and nobody here has heard of.
        let durable = own.held.durable >= start;
        own.vow(|ballot| {
            ballot.config.id.epoch = epoch;
            ballot.accepted = if durable { epoch } else { ballot.accepted };
        });
        let mut leader = Leader {
            epoch,
            start,
            followers: BTreeMap::new(),
            established: false,
            moved: Held::default(),
            begins_at_least: log_start,
            begins: Offset(0),
            reads: Reads::default(),
            refusals: Reads::of_refusals(),
            change: None,
            change_from: start,
            handover: None,
            beat_at: now + own.pace.beat,
        };
        leader.recruit(own, now);
        if log_start > own.log_start {
            own.effect(Effect::Trim { before: log_start.min(start) });
        }
        leader
    }

    /// The own log begins later: followers shall give up the same.
    pub(super) fn handle_log_start<B>(&mut self, own: &mut Own<B>) {
        self.beat_all(own);
    }

    /// Probes those who are to be followers and are not yet, and forgets those who are not to be.
    fn recruit<B>(&mut self, own: &mut Own<B>, now: Duration) {
        let learners = self.change.map_or(ReplicaSet::default(), |members| members.replicas());
        let all = own.ballot.config.replicas().union(learners).without(own.id);
        self.followers.retain(|replica, _| all.contains(*replica));
        let new = all.iter().filter(|replica| !self.followers.contains_key(replica)).collect::<Vec<_>>();
        for replica in new {
            self.followers.insert(replica, Progress::new(own.held.received, now));
            self.probe(own, replica, now);
        }
    }

    /// Begins a session with a follower.
    fn probe<B>(&mut self, own: &mut Own<B>, to: ReplicaId, now: Duration) {
        let Some(progress) = self.followers.get_mut(&to) else { return };
        progress.probe(now);
        let probe = self.probe_of(own, to);
        own.send_saved(to, probe);
    }

    fn probe_of<B>(&self, own: &Own<B>, to: ReplicaId) -> Message<B> {
        Message::Probe(Probe {
            epoch: self.epoch,
            life: own.life,
            round: self.followers[&to].round,
            start: self.start,
            log_end: own.held.received,
            config: own.ballot.config,
            forced: own.ballot.forced,
        })
    }

    /// A follower says where it stands: find out whether its log is the beginning of this one.
    pub(super) fn handle_standing<B>(&mut self, own: &mut Own<B>, from: ReplicaId, s: Standing, now: Duration) {
        let epoch = self.epoch;
        let Some(progress) = self.followers.get_mut(&from) else { return };
        let answers = s.session.round == progress.round && s.session.leader_life == own.life;
        if progress.phase == Phase::Replicating || !answers {
            return;
        }
        progress.answered(s.session);
        (progress.sent_at, progress.remembers) = (now, !s.rebuilding);
        let had = progress.promised_durable;
        if s.rebuilding {
            progress.promised_durable = Offset(0);
        } else if s.durable < had {
            progress.promised_durable = Offset(0);
            own.send(from, Message::Amnesia { epoch, session: s.session });
            return own.effect(Effect::Regressed { replica: from, had, has: s.durable });
        }
        let ours = own.epochs.end_of(s.last.epoch, own.held.received);
        // A log without a record, from which all were deleted that were final, differs from none.
        let is_empty = s.last.epoch == LeaderEpoch(0) && s.last.end <= own.held.received;
        let agrees =
            is_empty || planted(PlantedBug::SkipAlignment) || (ours.epoch == s.last.epoch && s.last.end <= ours.end);
        let (session, at) = (s.session, own.log_start);
        if agrees && s.last.end >= at {
            progress.aligned(s.last.end, now);
            self.beat(own, from);
        } else if s.last.end <= at || ours.epoch == LeaderEpoch(0) {
            // All that it has is deleted here, or of reigns that are over before the first record here.
            own.send(from, Message::Restart { epoch, session, at });
        } else {
            own.send(from, Message::Align { epoch, session, until: ours });
        }
    }

    /// A follower says how far it is.
    pub(super) fn handle_ack<B>(&mut self, own: &mut Own<B>, from: ReplicaId, ack: &Ack, now: Duration) {
        let end = own.held.received;
        let Some(progress) = self.followers.get_mut(&from) else { return };
        if progress.phase != Phase::Replicating || !progress.is_in(ack.session) {
            return;
        }
        assert!(ack.held.received <= end, "replica {from} has {} of a log that ends at {end}", ack.held);
        let counted = progress.accepted;
        progress.heard(ack, now);
        let behind = progress.log_start < own.log_start;
        if !counted && ack.accepted && behind {
            self.beat(own, from);
        }
        self.judge(own, from, now);
    }

    fn judge<B>(&mut self, own: &mut Own<B>, replica: ReplicaId, now: Duration) {
        let Some(progress) = self.followers.get_mut(&replica) else { return };
        if progress.judge(own.held.received, &own.pace, now) {
            own.effect(Effect::InSync { replica, keeps_up: progress.in_sync });
        }
    }

    /// A follower knows nothing of the session: it began a new life, or its probe was lost.
    pub(super) fn handle_stranger<B>(&mut self, own: &mut Own<B>, from: ReplicaId, now: Duration) {
        if self.followers.get(&from).is_some_and(|progress| progress.phase != Phase::Probing) {
            self.probe(own, from, now);
        }
    }

    pub(super) fn handle_confirmed(&mut self, from: ReplicaId, round: u64) {
        self.reads.confirm(from, round);
        self.refusals.confirm(from, round);
    }

    /// Batches were read for a follower.
    pub(super) fn handle_loaded<B>(&mut self, own: &mut Own<B>, to: ReplicaId, loaded: Loaded<B>, now: Duration) {
        let Loaded { batches, size_bytes, wanted } = loaded;
        let Some(progress) = self.followers.get_mut(&to) else { return };
        let fits = progress.phase == Phase::Replicating && progress.loading && progress.next == batches.from;
        progress.loading = false;
        let Some(session) = progress.session().filter(|_| fits) else { return };
        assert!(batches.end <= own.held.received, "read up to {} in {}", batches.end, own.held);
        progress.sending(batches.end, size_bytes, &own.pace, now);
        let (epoch, committed) = (self.epoch, self.moved.durable);
        own.send(to, Message::Append { epoch, session, committed, wanted, batches });
    }

    pub(super) fn handle_load_failed(&mut self, to: ReplicaId) {
        if let Some(progress) = self.followers.get_mut(&to) {
            progress.loading = false;
        }
    }

    /// Records of the own log are damaged. Those that are final others can give. Of others it may be the only one to
    /// have had them, and then nobody can be sent what is behind them: a leader that lost its log, as far as the rest
    /// is concerned. If that is so, and the others can elect a leader, it is better that they do.
    pub(super) fn judge_damage<B>(&self, own: &Own<B>, (from, until): (Offset, Offset)) -> Damaged {
        let config = own.ballot.config;
        let those = |fits: &dyn Fn(&Progress) -> bool| {
            let fit =
                self.followers.iter().filter(|(_, progress)| progress.phase == Phase::Replicating && fits(progress));
            fit.map(|(replica, _)| *replica).collect::<ReplicaSet>()
        };
        let have = those(&|progress| progress.held.received >= until).union([own.id].into_iter().collect());
        let lack = those(&|progress| progress.waits_for(from, until)).intersection(config.replicas());
        // What they said of their memory in this session is durable. Whoever lags behind the damage gets up to it.
        let able = those(&|progress| progress.remembers && progress.held.received >= from);
        match () {
            () if own.committed() >= until || config.is_write_quorum(have) || lack.is_empty() => Damaged::Waits,
            () if config.is_election_quorum(able) => Damaged::Forgets,
            () => Damaged::Keeps,
        }
    }

    /// A read comes.
    pub(super) fn ask(&mut self) -> ReadTicket {
        self.reads.ask()
    }

    /// Something is to be refused.
    pub(super) fn ask_whether_it_leads(&mut self) -> ReadTicket {
        self.refusals.ask()
    }

    /// Begins to change the members.
    ///
    /// Errors: `NotEstablished`, `Changing`, `LeaderLeaves`.
    pub(super) fn change<B>(&mut self, own: &mut Own<B>, members: Members, now: Duration) -> Result<(), NotNow> {
        // A change whose new replicas still catch up has changed nothing: another may take its place.
        let begun = self.change.is_some_and(|change| [members, own.ballot.config.current].contains(&change));
        let changing = begun || own.ballot.config.incoming.is_some();
        match (self.established, changing || self.handover.is_some()) {
            (false, _) => Err(NotNow::NotEstablished),
            (true, true) => Err(NotNow::Changing),
            (true, false) if !members.replicas().contains(own.id) => Err(NotNow::LeaderLeaves(own.id)),
            (true, false) => {
                self.change = Some(members);
                self.recruit(own, now);
                Ok(())
            }
        }
    }

    /// Begins to hand leadership over.
    ///
    /// Errors: `NotEstablished`, `Changing`, `NotInSync`.
    pub(super) fn hand_over<B>(
        &mut self,
        own: &mut Own<B>,
        (to, wanted): (ReplicaId, AckLevel),
        now: Duration,
    ) -> Result<(), NotNow> {
        let changing = self.change.is_some() || own.ballot.config.incoming.is_some();
        let fit = own.ballot.config.replicas().contains(to) && self.followers.get(&to).is_some_and(|p| p.in_sync);
        match (self.established, changing || self.handover.is_some(), fit) {
            (false, ..) => Err(NotNow::NotEstablished),
            (true, true, _) => Err(NotNow::Changing),
            (true, false, false) => Err(NotNow::NotInSync(to)),
            (true, false, true) => {
                self.handover = Some(Handover { to, wanted, until: now + own.pace.handover_max, told: false });
                own.effect(Effect::Drain);
                Ok(())
            }
        }
    }

    /// Whether appends are admitted.
    pub(super) fn admits(&self) -> bool {
        self.handover.is_none()
    }

    /// Whoever keeps up, the leader included.
    pub(super) fn in_sync<B>(&self, own: &Own<B>) -> ReplicaSet {
        let followers = self.followers.iter().filter(|(_, progress)| progress.in_sync).map(|(replica, _)| *replica);
        followers.chain([own.id]).collect()
    }

    /// Who of the others had better lead than any that is left out: those that keep up and have nothing damaged.
    pub(super) fn fit_to_lead(&self) -> ReplicaSet {
        let fit = self.followers.iter().filter(|(_, progress)| progress.in_sync && !progress.damaged);
        fit.map(|(replica, _)| *replica).collect()
    }

    /// Looks at what follows from what has just happened. Called after everything.
    pub(super) fn settle<B>(&mut self, own: &mut Own<B>, now: Duration) {
        if own.ballot.accepted < self.epoch && own.held.durable >= self.start {
            own.vow(|ballot| ballot.accepted = self.epoch);
        }
        self.move_watermarks(own);
        self.carry_change(own, now);
        self.carry_reads(own);
        self.carry_handover(own);
        self.load(own, now);
    }

    /// How far a replica counts: not at all before it has accepted this reign.
    fn counted<B>(&self, own: &Own<B>, replica: ReplicaId) -> Option<Held> {
        if replica == own.id {
            return (own.saved.accepted == self.epoch).then_some(own.held);
        }
        self.followers.get(&replica).filter(|progress| progress.accepted).map(|progress| progress.held)
    }

    fn accepted<B>(&self, own: &Own<B>) -> ReplicaSet {
        let all = self.followers.keys().copied().chain([own.id]);
        all.filter(|replica| self.counted(own, *replica).is_some()).collect()
    }

    /// Up to where a write quorum of `config` has given up its records.
    fn begins<B>(&self, own: &Own<B>, config: Configuration) -> Offset {
        config.held_by_quorum(|replica| match self.counted(own, replica) {
            None => Offset(0),
            Some(_) => self.followers.get(&replica).map_or(own.log_start, |progress| progress.log_start),
        })
    }

    fn move_watermarks<B>(&mut self, own: &mut Own<B>) {
        let config = own.ballot.config;
        if !self.established {
            let begins = self.begins(own, config) >= self.begins_at_least.min(self.start);
            let enough = config.is_write_quorum(self.accepted(own)) || planted(PlantedBug::EstablishAtOnce);
            if !begins || !enough {
                return;
            }
            self.established = true;
            own.effect(Effect::Established { epoch: self.epoch });
        }
        let level = |level: fn(&Held) -> Offset| {
            config.held_by_quorum(|replica| self.counted(own, replica).map_or(Offset(0), |held| level(&held)))
        };
        let now = Held {
            received: level(|held| held.received),
            written: level(|held| held.written),
            durable: level(|held| held.durable),
        };
        // A replica that begins a new session, or a member that is new, may hold less than the one that counted before
        // it. What was said stays said.
        let moved = self.moved.max(now);
        assert!(moved.is_ordered() && moved.received <= own.held.received, "{moved} of a log that has {}", own.held);
        if moved != self.moved {
            assert!(moved.durable >= self.start, "the watermark is at {moved} in a reign from {}", self.start);
            self.moved = moved;
            own.note_committed(moved.durable, self.epoch);
            own.effect(Effect::Moved(moved));
        }
        let begins = if planted(PlantedBug::ShowTrimEarly) { own.log_start } else { self.begins(own, config) };
        if begins > self.begins {
            self.begins = begins;
            own.effect(Effect::Begins { at: begins });
        }
    }

    /// Whether a write quorum durably knows the configuration as it is now, so that no leader to come is without it.
    fn is_decided<B>(&self, own: &Own<B>) -> bool {
        let id = own.ballot.config.id;
        let knows = |replica: &ReplicaId| match self.followers.get(replica) {
            Some(progress) => progress.accepted && progress.config == id,
            None => own.saved.accepted == self.epoch && own.saved.config.id == id,
        };
        let all = self.followers.keys().copied().chain([own.id]);
        own.ballot.config.is_write_quorum(all.filter(knows).collect())
    }

    /// The steps of a change: the new replicas catch up, and enough of those that are to be members have their memory
    /// to elect a leader; then every quorum is one of both; when that is decided, and the new members hold on their own
    /// all that there was before, and have given up what was given up, they are the members; when that is decided, it
    /// is over.
    fn carry_change<B>(&mut self, own: &mut Own<B>, now: Duration) {
        let config = own.ballot.config;
        if !self.established || !self.is_decided(own) {
            return;
        }
        if let Some(incoming) = config.incoming {
            let alone = Configuration { current: incoming, incoming: None, ..config };
            let held = alone.held_by_quorum(|replica| self.counted(own, replica).map_or(Offset(0), |h| h.durable));
            // Whoever is elected by the new members begins where the log was shown to begin, or later.
            if held >= self.change_from && self.begins(own, alone) >= self.begins {
                self.change = Some(incoming);
                self.reconfigure(own, alone);
            }
        } else if self.change == Some(config.current) {
            for (replica, progress) in &self.followers {
                if let Some(session) = progress.session().filter(|_| !config.replicas().contains(*replica)) {
                    own.send(*replica, Message::Retire { epoch: self.epoch, session });
                }
            }
            self.change = None;
            self.recruit(own, now);
            own.effect(Effect::Changed(config.current));
        } else if let Some(incoming) = self.change {
            let ready = |replica| replica == own.id || self.followers.get(&replica).is_some_and(|p| p.in_sync);
            let mut new = incoming.replicas().iter().filter(|replica| !config.replicas().contains(*replica));
            // Those that stay may be rebuilt at the moment, and give no vote then.
            let alone = Configuration { current: incoming, incoming: None, ..config };
            let can_elect = alone.is_election_quorum(self.accepted(own));
            if new.all(ready) && can_elect {
                self.change_from = own.held.received;
                self.reconfigure(own, Configuration { incoming: Some(incoming), ..config });
            }
        }
    }

    /// The members, if they are what they are to be, and no leader to come is without them.
    pub(super) fn settled<B>(&self, own: &Own<B>) -> Option<Members> {
        let Configuration { current, incoming, .. } = own.ballot.config;
        let is_settled = self.established && self.change.is_none() && incoming.is_none() && self.is_decided(own);
        is_settled.then_some(current)
    }

    fn reconfigure<B>(&mut self, own: &mut Own<B>, mut config: Configuration) {
        config.id.version += 1;
        assert!(config.id.epoch == self.epoch, "configuration {config} issued in {}", self.epoch);
        own.learn(config);
        self.beat_all(own);
    }

    fn carry_reads<B>(&mut self, own: &mut Own<B>) {
        if !self.established {
            return;
        }
        let (config, id) = (own.ballot.config, own.id);
        let Leader { epoch, followers, reads, refusals, .. } = self;
        let ask = |own: &mut Own<B>, round| ask(own, (*epoch, followers), round, ReplicaSet::default());
        while let Some(through) = reads.turn(id, |round| ask(own, round), |set| config.is_read_quorum(set)) {
            own.effect(Effect::Answer { through });
        }
        while let Some(through) = refusals.turn(id, |round| ask(own, round), |set| config.is_write_quorum(set)) {
            own.effect(Effect::StillLeads { through });
        }
    }

    fn carry_handover<B>(&mut self, own: &mut Own<B>) {
        let Some(handover) = self.handover.as_mut().filter(|handover| !handover.told) else { return };
        let Some(progress) = self.followers.get(&handover.to) else { return };
        let Some(session) = progress.session() else { return };
        let held = match handover.wanted {
            AckLevel::Received => self.moved.received,
            AckLevel::Written => self.moved.written,
            AckLevel::Durable | AckLevel::Quorum => self.moved.durable,
        };
        let end = own.held.received;
        if progress.accepted && progress.held.received == end && held == end {
            handover.told = true;
            own.send(handover.to, Message::TakeOver { epoch: self.epoch, session });
        }
    }

    /// Has batches read for every follower that has room for more.
    fn load<B>(&mut self, own: &mut Own<B>, now: Duration) {
        let end = own.held.received;
        for (to, progress) in &mut self.followers {
            let Some(bytes_max) = progress.room(end, &own.pace, now) else { continue };
            let from = progress.next;
            // What comes next was deleted while it caught up: the next tick probes it anew.
            let Some(until) = own.reign_end(from) else { continue };
            progress.loading = true;
            own.effect(Effect::Load { to: *to, from, until, bytes_max });
        }
    }

    fn beat<B>(&self, own: &mut Own<B>, to: ReplicaId) {
        let Some(progress) = self.followers.get(&to).filter(|p| p.phase == Phase::Replicating) else { return };
        let Some(session) = progress.session() else { return };
        let (epoch, committed, log_start, config) = (self.epoch, self.moved.durable, own.log_start, own.ballot.config);
        own.send_saved(to, Message::Beat { epoch, session, committed, log_start, config });
    }

    fn beat_all<B>(&self, own: &mut Own<B>) {
        self.followers.keys().for_each(|to| self.beat(own, *to));
    }

    /// Says again what may have been lost.
    pub(super) fn tick<B>(&mut self, own: &mut Own<B>, now: Duration) {
        let followers: Vec<ReplicaId> = self.followers.keys().copied().collect();
        for to in followers {
            self.judge(own, to, now);
            let (resend, log_start) = (own.pace.resend, own.log_start);
            let Some(progress) = self.followers.get_mut(&to) else { continue };
            progress.resend_if_lost(&own.pace, now);
            let silent = now.saturating_sub(progress.sent_at) >= resend;
            match progress.phase {
                Phase::Probing if silent => {
                    progress.sent_at = now;
                    let probe = self.probe_of(own, to);
                    own.send_saved(to, probe);
                }
                Phase::Aligning if silent => self.probe(own, to, now),
                Phase::Replicating if progress.next < log_start => self.probe(own, to, now),
                _ => {}
            }
        }
        if now >= self.beat_at {
            self.beat_at = now + own.pace.beat;
            self.beat_all(own);
            for (round, confirmed) in [self.reads.open_round(), self.refusals.open_round()].into_iter().flatten() {
                ask(own, (self.epoch, &self.followers), round, confirmed);
            }
        }
        if let Some(handover) = &mut self.handover {
            handover.told = false;
            if now >= handover.until {
                self.handover = None;
                own.effect(Effect::Resume);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn forget_times(&mut self) {
        self.beat_at = Duration::ZERO;
        self.followers.values_mut().for_each(Progress::forget_times);
        self.handover = self.handover.map(|handover| Handover { until: Duration::ZERO, ..handover });
    }
}

/// Asks the followers who have not confirmed a round of a reign to do so.
fn ask<B>(
    own: &mut Own<B>,
    (epoch, followers): (LeaderEpoch, &BTreeMap<ReplicaId, Progress>),
    round: u64,
    confirmed: ReplicaSet,
) {
    for replica in followers.keys().filter(|replica| !confirmed.contains(**replica)) {
        own.send(*replica, Message::Confirm { epoch, life: own.life, round });
    }
}

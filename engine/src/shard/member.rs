//! A copy of a partition that has others on other cores: the protocol that decides ([`crate::replication`]), and the
//! carrying out of what it decides on the copy's log, its ballot and the rings.
//!
//! Effects are carried out in the order in which they come. While the log is cut off, begun anew or mended before its
//! first record from a leader, all of them wait. A copy whose drive fails is closed: it says and hears nothing more,
//! and the others are told to suspect it.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    Common, CopyId, Core, ballot_store,
    changing::GivenUp,
    confirming::Confirmed,
    mailbox,
    moving::Homing,
    owned::Owned,
    reopening::{Change, LOG_BUSY_PAUSE},
    repairing::Repairs,
    wait_at_most,
    withheld::Withheld,
};
use crate::{
    error::RequestError,
    log::{LogFault, copies::BALLOT_NAME, read::ReadRange, recovery::Recovered, version::OtherVersion},
    metrics::CoreMetrics,
    record::{ProducerHistory, check_stored_header},
    replication::{
        Opened, Pace, Replica, RoleName,
        assignment::{Configuration, Members, ReplicaId},
        ballot::{Ballot, Memory},
        effect::Effect,
        epochs::Epochs,
        message::{Batches, Held, Loaded, Message},
    },
    runtime::Runtime,
    signal::Signal,
    testing::bug::{PlantedBug, planted},
    types::{AckLevel, CoreId, LeaderEpoch, Offset},
};

/// For how long what a follower is sent next is gathered, if no producer waits for it: each message wakes another core
/// and is answered. Less than it may wait there before it is written.
const GATHERING: Duration = Duration::from_millis(5);

/// See the module.
pub(super) struct Member<R: Runtime> {
    pub(super) common: Rc<Common<R>>,
    /// For the rings, and to be put in place anew when the log was opened anew. The core holds its members.
    pub(super) core: Weak<Core<R>>,
    pub(super) id: CopyId,
    pub(super) dir: PathBuf,
    pub(super) replica: RefCell<Replica<Bytes>>,
    /// The present opening of the log. That holds this.
    owned: RefCell<Weak<Owned<R>>>,
    /// A task has the log for itself; effects wait.
    pub(super) log_busy: Cell<bool>,
    /// Somebody carries effects out already.
    carrying: Cell<bool>,
    /// An effect that waits for the log to be mended.
    deferred: RefCell<Option<Effect<Bytes>>>,
    /// What the leader knows of producers, told when it has this copy's log begun anew.
    pub(super) told_producers: RefCell<ProducerHistory>,
    /// The newest ballot that is not saved, and its number.
    unsaved: RefCell<Option<(u64, Ballot)>>,
    pub(super) saving: Cell<bool>,
    /// Nothing waits to be saved any more.
    pub(super) saved: Signal,
    /// When the saving that is under way began.
    saving_since: Cell<Option<Duration>>,
    /// When the others were last told to find another leader.
    gave_way: Cell<Duration>,
    pub(super) confirmed: Confirmed,
    /// Who leads, as far as is known here.
    leader: Cell<Option<ReplicaId>>,
    closed: Cell<bool>,
    /// When it was said last that too few copies vote.
    stuck_said: Cell<Option<Duration>>,
    /// What is damaged here and is got back from the others.
    pub(super) repairs: Repairs,
    /// What its drive does not give.
    pub(super) withheld: Withheld,
    /// Whether the copy that is to lead is given leadership back.
    pub(super) homing: Homing,
    /// Whether it hands over because it is given up.
    pub(super) given_up: GivenUp,
}

/// How often that is said.
const STUCK_SAID_EVERY: Duration = Duration::from_secs(10);

/// How the copies of this host wait for each other. The host notices itself when a core or a drive is gone, so leaders
/// need not prove often that they are there.
fn pace() -> Pace {
    Pace { beat: Duration::from_millis(100), silence_max: Duration::from_secs(1), ..Pace::default() }
}

impl<R: Runtime> Member<R> {
    /// The copy `id` as its drive has it. `founding` is what it begins with if it was never there; else a copy without
    /// a ballot has lost its memory.
    pub(super) async fn open(
        core: &Rc<Core<R>>,
        id: CopyId,
        (dir, recovered): (PathBuf, &Recovered<R>),
        (config, founding): (Configuration, bool),
    ) -> Result<Rc<Self>, LogFault> {
        let runtime = &core.common.context.runtime;
        let mut epochs = Epochs::default();
        let beginnings = recovered.reigns.beginnings().iter().filter(|(_, start)| *start < recovered.end);
        beginnings.for_each(|(epoch, start)| epochs.note(*epoch, *start));
        let ballot = ballot_at_opening(core, id, &dir, (recovered, &epochs), (config, founding)).await?;
        let life = runtime.random_u64();
        let (log_start, log_end) = (recovered.start, recovered.end);
        let opened = Opened { id: id.copy, life, ballot, log_start, log_end, epochs };
        let replica = Replica::open(opened, pace(), runtime.monotonic());
        Ok(Rc::new(Member {
            common: Rc::clone(&core.common),
            core: Rc::downgrade(core),
            id,
            dir,
            replica: RefCell::new(replica),
            owned: RefCell::new(Weak::new()),
            log_busy: Cell::new(false),
            carrying: Cell::new(false),
            deferred: RefCell::new(None),
            told_producers: RefCell::default(),
            unsaved: RefCell::new(None),
            saving: Cell::new(false),
            saved: Signal::default(),
            saving_since: Cell::new(None),
            gave_way: Cell::default(),
            confirmed: Confirmed::default(),
            leader: Cell::new(None),
            closed: Cell::new(false),
            stuck_said: Cell::new(None),
            repairs: Repairs::default(),
            withheld: Withheld::default(),
            homing: Homing::default(),
            given_up: GivenUp::default(),
        }))
    }

    /// The log was opened, for the first time or anew.
    pub(super) fn attach(&self, owned: &Rc<Owned<R>>) {
        *self.owned.borrow_mut() = Rc::downgrade(owned);
    }

    /// Whether appends may be admitted here.
    pub(super) fn admits_appends(&self) -> bool {
        !self.closed.get() && self.replica.borrow().admits_appends()
    }

    /// Whether this copy leads, established or not.
    pub(super) fn leads(&self) -> bool {
        let is_leader = self.replica.borrow().role() == RoleName::Leader;
        let goes_on =
            planted(PlantedBug::ServeAfterHandover) && self.owned().is_some_and(|owned| owned.state.borrow().leads());
        !self.closed.get() && (is_leader || goes_on)
    }

    /// Whether it leads, and everything that it has is final or on its way to be.
    pub(super) fn is_established(&self) -> bool {
        !self.closed.get() && self.replica.borrow().quorum().is_some()
    }

    /// The core of the copy that leads, as far as is known here.
    pub(super) fn leader_core(&self) -> Option<CoreId> {
        self.leader.get().filter(|leader| *leader != self.id.copy).and_then(|leader| self.home(leader))
    }

    /// What is answered that only the leader can do.
    pub(super) fn not_leader(&self) -> RequestError {
        RequestError::NotLeader { partition: self.id.partition, leader: self.leader_core() }
    }

    /// Whether it is out of service until the server is restarted.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether it hears the others: not if it is about to go to another core, so that it comes to rest. To them it is
    /// one that is silent for a moment.
    fn listens(&self) -> bool {
        !self.closed.get() && self.common.leaving.to(self.id).is_none()
    }

    /// Whether nothing is under way on its drive but what its log does.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.log_busy.get() && !self.saving.get()
    }

    /// Whether the partition has no other copy.
    pub(super) fn is_alone(&self) -> bool {
        self.look(|replica| replica.ballot().config.has_one_member())
    }

    /// The reign that this copy takes part in.
    pub(super) fn epoch(&self) -> LeaderEpoch {
        self.replica.borrow().ballot().promised
    }

    /// Lets somebody look at how the protocol stands.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Replica<Bytes>) -> T) -> T {
        look(&self.replica.borrow())
    }

    pub(super) fn now(&self) -> Duration {
        self.runtime().monotonic()
    }

    pub(super) fn runtime(&self) -> &R {
        &self.common.context.runtime
    }

    pub(super) fn metrics(&self) -> &CoreMetrics {
        &self.common.context.metrics
    }

    /// The present opening of its log.
    pub(super) fn owned(&self) -> Option<Rc<Owned<R>>> {
        self.owned.borrow().upgrade()
    }

    /// Whether the log is opened anew now.
    pub(super) fn is_changing(&self) -> bool {
        self.log_busy.get()
    }

    /// Waits until the log is not changed any more.
    pub(super) async fn until_unchanging(&self) {
        while self.log_busy.get() {
            self.runtime().sleep(LOG_BUSY_PAUSE).await;
        }
    }

    /// The core of another copy; `None` if its drive is away.
    pub(super) fn home(&self, copy: ReplicaId) -> Option<CoreId> {
        self.core.upgrade()?.home_of(CopyId { copy, ..self.id })
    }

    /// Runs the protocol, then does what it asks for.
    pub(super) fn drive<T>(self: &Rc<Self>, event: impl FnOnce(&mut Replica<Bytes>, Duration) -> T) -> T {
        let result = event(&mut self.replica.borrow_mut(), self.now());
        self.carry_effects();
        result
    }

    /// All copies of a new partition are open: the first of them leads.
    pub(super) fn begin(self: &Rc<Self>) {
        if self.id.copy == ReplicaId(0) && !self.closed.get() {
            self.drive(|replica, now| replica.campaign(now));
        }
    }

    /// Whether a copy leads, as far as is known here.
    pub(super) fn is_led(&self) -> bool {
        self.leader.get().is_some()
    }

    /// Another copy says something.
    pub(super) fn receive(self: &Rc<Self>, from: ReplicaId, message: Message<Bytes>) {
        if self.listens() {
            self.drive(|replica, now| replica.handle_message(from, message, now));
        }
    }

    /// The leader tells what it knows of producers.
    pub(super) fn learn_producers(&self, history: ProducerHistory) {
        *self.told_producers.borrow_mut() = history;
    }

    /// Time passes. Until its log is made completely it asks nobody for anything: a copy that is not there is new until
    /// then, whatever the one that was there has promised.
    pub(super) fn tick(self: &Rc<Self>) {
        let is_founding = self.owned().is_some_and(|owned| owned.entry.borrow().founding);
        if self.listens() && !is_founding {
            self.drive(|replica, now| replica.tick(now));
            self.see_to_damage();
        }
    }

    /// The copy `other` does not answer, or its drive does not.
    pub(super) fn suspect(self: &Rc<Self>, other: ReplicaId) {
        if self.listens() && other != self.id.copy {
            self.drive(|replica, now| replica.handle_suspect(other, now));
        }
    }

    /// The copy that leads does not answer.
    pub(super) fn suspect_leader(self: &Rc<Self>) {
        if let Some(leader) = self.leader.get() {
            self.suspect(leader);
        }
    }

    /// Begins a reign without votes, because the operator says so, with these members, or if none are given with those
    /// that this copy knows. A log that ends at damage is mended before: what is behind the damage is among what he
    /// gives up.
    ///
    /// Errors: why it does not.
    pub(super) async fn force(self: &Rc<Self>, members: Option<Members>) -> Result<LeaderEpoch, String> {
        let damaged = self.owned.borrow().upgrade().filter(|owned| owned.damage.is_some() && !self.log_busy.get());
        if let Some(owned) = damaged {
            self.change_log(owned, Change::Mend);
        }
        self.until_unchanging().await;
        if self.closed.get() {
            return Err("is out of service until the server is restarted".to_owned());
        }
        let members = members.unwrap_or_else(|| self.look(|replica| replica.ballot().config.current));
        if !members.replicas().contains(self.id.copy) {
            return Err(format!("is none of the partition's members {members}"));
        }
        self.drive(|replica, now| replica.force(members, now));
        let epoch = self.epoch();
        tracing::error!(
            copy = %self.id, %epoch,
            "AN OPERATOR ACCEPTED THE LOSS OF RECORDS: this copy leads without the votes of others, and what it has \
             not is cut off everywhere"
        );
        self.common.context.metrics.forced_leaders.add(1);
        Ok(epoch)
    }

    /// The copy `other` is out of service, since its drive does not give it. Gives whether it can be done without.
    pub(super) fn spares(self: &Rc<Self>, other: ReplicaId) -> bool {
        self.drive(|replica, now| replica.handle_out_of_service(other, now))
    }

    /// A write or a sync takes too long: have the others find another leader, if this copy is it; and again if nothing
    /// comes of it.
    pub(super) fn give_way(&self) {
        let now = self.now();
        let is_due = now.saturating_sub(self.gave_way.get()) > self.common.config.drive_timeout;
        if self.leads() && is_due {
            self.gave_way.set(now);
            tracing::warn!(copy = %self.id, "another copy is to lead");
            self.tell_suspicion();
        }
    }

    /// The device has come further.
    pub(super) fn held(self: &Rc<Self>, written: Offset, durable: Offset) {
        if !self.closed.get() {
            self.drive(|replica, now| replica.handle_held(written, durable, now));
        }
    }

    /// Since when a ballot is being saved, if one is.
    pub(super) fn saving_since(&self) -> Option<Duration> {
        self.saving_since.get()
    }

    /// Closes the copy for `reason`, for good: to the others it is one that is silent.
    pub(super) fn close(&self, reason: &str) {
        if self.closed.replace(true) {
            return;
        }
        tracing::error!(copy = %self.id, reason, "the copy is out of service until the server is restarted");
        self.confirmed.news.notify();
        self.tell_suspicion();
    }

    /// The log is deleted, or the copy is not on this core any more: it says nothing more here.
    pub(super) fn forget(&self) {
        self.closed.set(true);
        self.confirmed.news.notify();
    }

    fn tell_suspicion(&self) {
        let Some(core) = self.core.upgrade() else { return };
        let CopyId { partition, copy } = self.id;
        for peer in core.other_cores() {
            core.mailbox.outbox(peer).push(mailbox::Message::Suspect { partition, copy });
        }
        core.suspect(partition, copy);
    }

    /// Does what the protocol asks for, until it asks for nothing or the log is busy.
    pub(super) fn carry_effects(self: &Rc<Self>) {
        if self.carrying.replace(true) {
            return;
        }
        while !self.log_busy.get() && !self.closed.get() {
            let deferred = self.deferred.borrow_mut().take();
            let Some(effect) = deferred.or_else(|| self.replica.borrow_mut().poll_effect()) else { break };
            self.carry_out(effect);
        }
        self.carrying.set(false);
    }

    fn carry_out(self: &Rc<Self>, effect: Effect<Bytes>) {
        let Some(owned) = self.owned.borrow().upgrade() else { return };
        match effect {
            Effect::Send { to, message } => self.send(to, message),
            Effect::Save { revision, ballot } => {
                *self.unsaved.borrow_mut() = Some((revision, ballot));
                self.save();
            }
            Effect::Write { .. } if owned.damage.is_some() => {
                *self.deferred.borrow_mut() = Some(effect);
                self.change_log(owned, Change::Mend);
            }
            Effect::Write { batches, wanted } => {
                if let Err(reason) = owned.take_copy(&batches, wanted) {
                    owned.fence(format!("a leader sent what is no copy of its log: {reason}"));
                }
            }
            Effect::Truncate { to } => self.change_log(owned, Change::Cut(to)),
            Effect::Restart { at } => self.change_log(owned, Change::Restart(at)),
            Effect::Trim { before } => self.trim(owned, before),
            Effect::LoadSpare { to, from, until } => self.load_spare(owned, to, (from, until)),
            Effect::Rewrite(batches) => self.repairs.take(batches),
            Effect::Load { to, from, until, bytes_max } => self.load(&owned, to, (from, until, bytes_max)),
            Effect::Lead { epoch, start } => {
                tracing::info!(copy = %self.id, %epoch, %start, "leads from now on");
                self.common.context.metrics.leader_elections.add(1);
                self.leader.set(Some(self.id.copy));
                self.confirmed.begin_reign();
                owned.lead(epoch, self.replica.borrow().committed());
                if let Some(core) = self.core.upgrade() {
                    core.announce_leader(self.id.partition, epoch);
                }
            }
            Effect::Moved(Held { received, .. }) if planted(PlantedBug::ReceivedIsDurable) => {
                owned.quorum_has(received, received, received);
            }
            Effect::Moved(Held { received, written, durable }) => owned.quorum_has(received, written, durable),
            Effect::Begins { at } => owned.begins(at),
            Effect::Follow { leader, epoch } => {
                tracing::debug!(copy = %self.id, %epoch, ?leader, "follows");
                self.leader.set(leader);
                if !planted(PlantedBug::ServeAfterHandover) {
                    owned.follow();
                }
                self.confirmed.news.notify();
                if leader.is_some() && owned.damage.is_some() {
                    // It has all that was acknowledged: nobody needs what is behind the damage any more.
                    self.change_log(owned, Change::Mend);
                }
            }
            Effect::Answer { through } => self.confirmed.note_reads(through),
            Effect::StillLeads { through } => self.confirmed.note_refusals(through),
            other => self.report(&other),
        }
    }

    /// What asks for nothing but to be known.
    fn report(&self, effect: &Effect<Bytes>) {
        let copy = self.id;
        match effect {
            Effect::Stuck(stuck) => {
                // It is tried many times a second.
                let now = self.now();
                if self.stuck_said.get().is_some_and(|said| now.saturating_sub(said) < STUCK_SAID_EVERY) {
                    return;
                }
                self.stuck_said.set(Some(now));
                let (votes, without) = (stuck.votes, stuck.without_memory);
                let (committed, log_end) = (stuck.committed, stuck.log_end);
                tracing::warn!(%copy, %votes, %without, %committed, %log_end, "too few copies vote for a leader");
            }
            Effect::InSync { replica, keeps_up } => tracing::info!(%copy, %replica, keeps_up, "a follower"),
            Effect::Regressed { replica, had, has } => {
                tracing::error!(%copy, %replica, %had, %has, "a copy came back without what it had: it is rebuilt");
            }
            Effect::Rebuilt => tracing::info!(%copy, "the copy is rebuilt"),
            Effect::Changed(members) => tracing::info!(%copy, %members, "the members changed"),
            Effect::Halt { committed, differs_at } => {
                tracing::error!(%copy, %committed, %differs_at, "the leader's log lacks acknowledged records: halted");
            }
            _ => {}
        }
    }

    fn send(&self, to: ReplicaId, message: Message<Bytes>) {
        let Some(core) = self.core.upgrade() else { return };
        // Who does not know when it can save or write again must not keep the others from going on: they would follow
        // a leader that they hear, and wait for a candidate whose log is longer.
        if core.drive_stalls() && (self.leads() || matches!(message, Message::Refuse { .. })) {
            return;
        }
        let CopyId { partition, copy: from } = self.id;
        if let Some(home) = self.home(to).filter(|_| !self.runtime().loses_what_copies_say()) {
            if let (Message::Restart { .. }, Some(owned)) = (&message, self.owned.borrow().upgrade()) {
                let history = Box::new(owned.state.borrow().producers().clone());
                core.mailbox.outbox(home).push(mailbox::Message::Producers { partition, to, history });
            }
            core.mailbox.outbox(home).push(mailbox::Message::Replica { partition, from, to, message });
        }
    }

    /// Saves what is known to be final, since the server stops.
    pub(super) async fn keep_ballot(self: &Rc<Self>, deadline: Duration) {
        if self.closed.get() || self.log_busy.get() {
            return;
        }
        self.drive(|replica, _| replica.keep());
        while self.saving.get() && self.now() < deadline {
            wait_at_most(self.runtime(), &self.saved, deadline.saturating_sub(self.now())).await;
        }
    }

    /// Waits until nothing is being saved.
    pub(super) async fn until_saved(&self) {
        self.saved.wait_until(|| !self.saving.get()).await;
    }

    /// Sees to it that a task saves the newest ballot.
    fn save(self: &Rc<Self>) {
        if self.saving.replace(true) {
            return;
        }
        let member = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            loop {
                let next = member.unsaved.borrow_mut().take();
                let Some((revision, ballot)) = next.filter(|_| !member.closed.get()) else { break };
                let runtime = &member.common.context.runtime;
                member.saving_since.set(Some(runtime.monotonic()));
                let saved = if planted(PlantedBug::BallotNotSaved) {
                    Ok(())
                } else {
                    let CopyId { partition, copy } = member.id;
                    ballot_store::save(runtime, &member.dir, (partition, copy), &ballot).await
                };
                member.saving_since.set(None);
                match saved {
                    Ok(()) => member.drive(|replica, now| replica.handle_saved(revision, now)),
                    Err(LogFault::Full { .. }) => {
                        // Nothing was promised yet. What comes meanwhile is newer.
                        member.unsaved.borrow_mut().get_or_insert((revision, ballot));
                        runtime.sleep(super::drive::FULL_RETRY).await;
                    }
                    Err(fault) => {
                        let owned = member.owned.borrow().upgrade();
                        owned.inspect(|owned| owned.fence(fault.to_string()));
                        member.close(&fault.to_string());
                    }
                }
            }
            member.saving.set(false);
            member.saved.notify();
        });
    }

    fn trim(self: &Rc<Self>, owned: Rc<Owned<R>>, before: Offset) {
        let member = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            if owned.keep_start(before).await.is_ok() {
                owned.bury().await;
            } else {
                tracing::warn!(copy = %member.id, %before, "the copy keeps more records than its leader");
            }
        });
    }

    /// Reads for a follower: what was appended lately from memory, the rest from the device.
    fn load(self: &Rc<Self>, owned: &Rc<Owned<R>>, to: ReplicaId, (from, until, bytes_max): (Offset, Offset, u64)) {
        let range = ReadRange { offset: from, end: until, max_bytes: bytes_max as usize };
        // A copy that nobody waits for takes its time, so that it writes more at once: see `flusher.rs`.
        if self.replica.borrow().is_enough_alone() {
            let member = Rc::clone(self);
            self.common.context.runtime.spawn(async move {
                member.common.context.runtime.sleep(GATHERING).await;
                let (owned, end) = (member.owned.borrow().upgrade(), member.replica.borrow().sendable_from(from));
                match owned.zip(end) {
                    Some((owned, end)) => {
                        member.load_now(&owned, to, (ReadRange { end, ..range }, AckLevel::Received));
                    }
                    None => member.replica.borrow_mut().handle_load_failed(to),
                }
                member.carry_effects();
            });
        } else {
            self.load_now(owned, to, (range, owned.most_wanted()));
        }
    }

    fn load_now(self: &Rc<Self>, owned: &Rc<Owned<R>>, to: ReplicaId, (range, wanted): (ReadRange, AckLevel)) {
        if let Some(pieces) = owned.log.read_memory(range) {
            return self.loaded(to, range.offset, wanted, join(&pieces));
        }
        if self.withheld.has(range.offset) {
            return self.replica.borrow_mut().handle_load_failed(to);
        }
        let (member, owned) = (Rc::clone(self), Rc::clone(owned));
        self.common.context.runtime.spawn_background(async move {
            match owned.log.read_disk(range).await {
                Ok(pieces) => member.loaded(to, range.offset, wanted, join(&pieces)),
                Err(error) => {
                    member.note_withheld(range.offset, &error);
                    tracing::warn!(copy = %member.id, %error, "a follower cannot be sent what it lacks");
                    member.replica.borrow_mut().handle_load_failed(to);
                }
            }
            member.carry_effects();
        });
    }

    fn loaded(&self, to: ReplicaId, from: Offset, wanted: AckLevel, bytes: Bytes) {
        let now = self.common.context.runtime.monotonic();
        let mut replica = self.replica.borrow_mut();
        match extent(&bytes).filter(|batches| batches.from == from) {
            Some(batches) => {
                let size_bytes = batches.bytes.len() as u64;
                replica.handle_loaded(to, Loaded { batches, size_bytes, wanted }, now);
            }
            None => {
                tracing::error!(copy = %self.id, %from, "the log has no batch that begins there");
                replica.handle_load_failed(to);
            }
        }
    }
}

/// The ballot with which a copy is opened; see [`Member::open`].
async fn ballot_at_opening<R: Runtime>(
    core: &Core<R>,
    id: CopyId,
    dir: &Path,
    (recovered, epochs): (&Recovered<R>, &Epochs),
    (config, founding): (Configuration, bool),
) -> Result<Ballot, LogFault> {
    let runtime = &core.common.context.runtime;
    let fault = |error: std::io::Error| LogFault::unread("reading the ballot in", dir, &error);
    let found = ballot_store::load(runtime, dir, (id.partition, id.copy)).await.map_err(fault)?;
    let is_there = matches!(found, ballot_store::Found::Is(_));
    let is_new = match &found {
        // An earlier try to give an only copy others left it.
        ballot_store::Found::Is(ballot) => founding && config.has_one_member() && ballot.config.has_one_member(),
        ballot_store::Found::Missing => founding || planted(PlantedBug::LostIsNew),
        // No copy has promised anything yet: that of an earlier log of the name may be there.
        ballot_store::Found::Damaged(_) => founding,
        ballot_store::Found::Version(_) => false,
    };
    let mut ballot = match found {
        _ if is_new => {
            let ballot = first_ballot(config, epochs);
            ballot_store::save(runtime, dir, (id.partition, id.copy), &ballot).await?;
            ballot
        }
        ballot_store::Found::Is(ballot) => ballot,
        ballot_store::Found::Missing => Ballot::lost(config),
        ballot_store::Found::Version(found) => {
            return Err(OtherVersion { path: dir.join(BALLOT_NAME), found, supported: 1 }.into());
        }
        ballot_store::Found::Damaged(reason) => {
            tracing::error!(copy = %id, reason, "the ballot is damaged: the copy is rebuilt from the others");
            Ballot::lost(config)
        }
    };
    let drives = &core.common.config.drives;
    // Nobody could give the only copy back what its drive may lack.
    let trusts = planted(PlantedBug::OldIsIntact) || founding || config.has_one_member();
    let is_old = !trusts && drives.is_old(drives.of(core.common.id));
    if is_old || recovered.damage.is_some() || recovered.lost_end.is_some() || epochs.last() > ballot.promised {
        let before = std::mem::replace(&mut ballot.memory, Memory::Lost);
        // What is damaged of an only member nobody can give it: it waits for as long as that is found, and a drive
        // may only have given other bytes than it has. But an old drive looks like any other at the next start.
        if is_there && before == Memory::Intact && (is_old || !ballot.config.has_one_member()) {
            // Before the drive passes for one that has everything.
            ballot_store::save(runtime, dir, (id.partition, id.copy), &ballot).await?;
        }
    }
    Ok(ballot)
}

/// What a copy begins with that was never there. Records that are there already are of the reigns of the only copy that
/// there was: nobody else ever had any.
fn first_ballot(config: Configuration, epochs: &Epochs) -> Ballot {
    let last = epochs.last();
    Ballot { promised: last, accepted: last, ..Ballot::founding(config) }
}

/// One string of bytes of its own memory: what goes to another core must not be this one's buffers.
pub(super) fn join(pieces: &[Bytes]) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
    joined.freeze()
}

/// Which records stored batches hold that lie end to end; `None` of none.
pub(super) fn extent(bytes: &Bytes) -> Option<Batches<Bytes>> {
    let first = check_stored_header(bytes).ok()?;
    let (mut end, mut at) = (first.base_offset, 0);
    while at < bytes.len() {
        let header = check_stored_header(&bytes[at..]).ok().filter(|header| header.base_offset == end)?;
        end = header.end_offset();
        at += header.batch_len();
    }
    Some(Batches { from: first.base_offset, end, epoch: first.leader_epoch, bytes: bytes.clone() })
}

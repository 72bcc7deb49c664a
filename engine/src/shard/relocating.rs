//! A copy that moves to another core of its drive. Its files stay where they are: the core that has them closes them,
//! the catalogue says that another has them from now on, and that one opens them.
//!
//! Two cores never have the files of a copy open. The old one lets go before the catalogue changes, and opens them
//! again only when a catalogue comes that still places the copy there; a crash on the way leaves nothing but the
//! catalogue, whichever it is. What was accepted is durable before, as when the server stops, so the new core finds all
//! of it, and what is said of producers; nobody hears that the fate of a write is not known. It is told where the log
//! ended: a drive that once gives other bytes than it has could hide the end from it.
//!
//! One that leads others hands over to one of them before, and leads again after.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use super::{
    CopyId, Core, Slot,
    completion::ReplyTo,
    control::Moved,
    mailbox::Message,
    moving::refused,
    owned::{Gone, Owned},
    request::{Reply, Request},
    wait_at_most,
};
use crate::{
    catalog::LogEntry,
    error::RequestError,
    replication::assignment::{ReplicaId, leader_of},
    runtime::Runtime,
    signal::Signal,
    testing::bug::{PlantedBug, planted},
    types::{AckLevel, CoreId, LeaderEpoch, Offset, PartitionId},
};

/// How long a copy may take until all that was accepted is durable. A drive takes milliseconds, unless it stalls.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);

/// How long core 0 waits for that: leadership may have to be handed over before, and files are closed after.
const RELEASE_PATIENCE: Duration = Duration::from_secs(8);

const PAUSE: Duration = Duration::from_millis(5);

/// The copy of a core that is about to go to another; one at a time. And what has left its core to come to this one.
#[derive(Default)]
pub(super) struct Leaving {
    copy: Cell<Option<(CopyId, CoreId)>>,
    /// It takes nothing more, so that it comes to rest.
    drains: Cell<bool>,
    /// It is to stay after all.
    recalled: Cell<bool>,
    over: Signal,
    /// Where logs ended that were closed so that this core opens them, and has not yet: what the drive shows of one may
    /// not end earlier.
    pub(super) closed: RefCell<BTreeMap<CopyId, Offset>>,
}

impl Leaving {
    /// Where a copy goes to, once it takes nothing more here.
    pub(super) fn to(&self, id: CopyId) -> Option<CoreId> {
        self.copy.get().filter(|(copy, _)| *copy == id && self.drains.get()).map(|(_, to)| to)
    }

    /// A copy was closed, and its log ends at `end`: this core may be the next to open it.
    pub(super) fn note_closed(&self, id: CopyId, end: Offset) {
        self.closed.borrow_mut().insert(id, end);
    }

    fn begin(&self, id: CopyId, to: CoreId) {
        self.copy.set(Some((id, to)));
    }

    fn end(&self) {
        self.copy.set(None);
        self.drains.set(false);
        self.recalled.set(false);
        self.over.notify();
    }
}

/// Core 0, which decides.
impl<R: Runtime> Core<R> {
    /// Has a core that has no copy of a partition take one over and lead.
    pub(super) async fn relocate(self: &Rc<Self>, partition: PartitionId, to: CoreId) -> Result<Moved, RequestError> {
        let id = {
            let _turn = self.admin.changes.take().await;
            let log = self.entry_of(partition)?;
            let id = self.copy_for(&log, partition, to)?;
            self.carry_over(&log, id, to).await?;
            tracing::info!(log = %log.name, copy = %id, %to, "the copy is on another core");
            if log.replication().is_none() {
                return Ok(Moved { core: to, replica: id.copy, epoch: LeaderEpoch(0) });
            }
            id
        };
        match self.have_handed_over(id).await {
            Ok(epoch) => Ok(Moved { core: to, replica: id.copy, epoch }),
            Err(error) => Err(refused(format!("copy {} is on core {to} now, but: {error}", id.copy))),
        }
    }

    /// The copy that can go to a core: of several the one that leads, or that is to.
    fn copy_for(&self, log: &LogEntry, partition: PartitionId, to: CoreId) -> Result<CopyId, RequestError> {
        let drives = &self.common.config.drives;
        let home = |copy: &ReplicaId| self.home_of(CopyId { partition, copy: *copy });
        if log.slots().any(|copy| home(&copy) == Some(to)) {
            return Err(refused(format!("core {to} has a copy of it by now")));
        }
        let is_near = |copy: &ReplicaId| home(copy).is_some_and(|home| drives.of(home) == drives.of(to));
        let leader = self.led_in(partition).map(leader_of);
        let wanted = [leader, Some(log.preferred(partition.index))].into_iter().flatten();
        let copy = wanted.filter(is_near).find(|copy| log.has_slot(*copy)).or_else(|| log.slots().find(is_near));
        match copy {
            Some(_) if log.founding => Err(refused("its log is not made completely".to_owned())),
            Some(copy) => Ok(CopyId { partition, copy }),
            None => {
                let has_drive = |core: &CoreId| {
                    log.slots().filter_map(|copy| home(&copy)).any(|home| drives.of(home) == drives.of(*core))
                };
                let possible = (0..self.cores as u16).map(CoreId).filter(has_drive);
                Err(refused(no_copy_near(to, possible)))
            }
        }
    }

    /// Has the files of a copy closed on its core and opened on another. In the turn of changes.
    async fn carry_over(self: &Rc<Self>, log: &LogEntry, id: CopyId, to: CoreId) -> Result<(), RequestError> {
        let (from, cores) = (self.home_of(id), self.cores as u16);
        if !planted(PlantedBug::MoveWithoutRelease) {
            self.have_released(id, to).await?;
        }
        let own = self.common.config.drives.home(id.partition, id.copy, log.layout());
        let place = |core: Option<CoreId>| core.filter(|core| own != Some(*core));
        let name = (id.partition, id.copy);
        let current = Arc::clone(&self.catalog.borrow());
        let next = current.with_place(name, place(Some(to)), cores).with_leader(id.partition, id.copy);
        let Err(error) = self.change(next).await else {
            self.common.context.metrics.copies_moved.add(1);
            return Ok(());
        };
        if self.home_of(id) == Some(to) {
            tracing::error!(copy = %id, %to, %error, "the core cannot open the copy: it goes back");
            let current = Arc::clone(&self.catalog.borrow());
            self.change(current.with_place(name, place(from), cores)).await?;
        } else {
            self.recall().await;
        }
        Err(error)
    }

    /// Has the core of a copy close it, so that `to` can open it: another core, or the same anew. That one knows then
    /// where the log ends.
    pub(super) async fn have_released(self: &Rc<Self>, id: CopyId, to: CoreId) -> Result<(), RequestError> {
        match self.call_within(Request::Release(id, to), RELEASE_PATIENCE).await {
            Some(Ok(Reply::Released(end))) => {
                if to == self.common.id {
                    self.common.leaving.note_closed(id, end);
                } else {
                    self.mailbox.outbox(to).push(Message::Closed { copy: id, end });
                }
                Ok(())
            }
            Some(outcome) => outcome.map(drop),
            None => {
                let core = Rc::clone(self);
                self.common.context.runtime.spawn(async move {
                    let _turn = core.admin.changes.take().await;
                    core.recall().await;
                });
                Err(refused("its core, or the drive, does not answer in time; it stays where it is".to_owned()))
            }
        }
    }

    /// Has every core open what the present catalogue places there.
    pub(super) async fn recall(self: &Rc<Self>) {
        let current = Arc::clone(&self.catalog.borrow());
        let (told, opened) = futures_util::future::join(self.tell_others(&current), self.open_missing(&current)).await;
        if let Err(error) = opened.and(told) {
            tracing::error!(%error, "a copy that was to go to another core and stays could not be opened");
        }
    }
}

/// The core that has the copy.
impl<R: Runtime> Core<R> {
    /// Closes a copy, so that another core can open it. An answer means that its files are nobody's, or that nothing
    /// has changed.
    pub(super) fn release(self: &Rc<Self>, id: CopyId, to: CoreId, reply: ReplyTo) {
        let leaving = &self.common.leaving;
        if leaving.copy.get().is_some() {
            return reply.send(Err(refused("another copy is about to leave its core".to_owned())));
        }
        // At once, so that whatever core 0 says next finds it under way.
        leaving.begin(id, to);
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let left = core.leave(id, to).await;
            core.common.leaving.end();
            reply.send(left.map(Reply::Released).map_err(refused));
        });
    }

    /// Gives where the log ends.
    async fn leave(self: &Rc<Self>, id: CopyId, to: CoreId) -> Result<Offset, String> {
        self.cede(id).await?;
        let Core { common, partitions, .. } = &**self;
        let runtime = &common.context.runtime;
        let until = runtime.monotonic() + DRAIN_PATIENCE;
        common.leaving.drains.set(true);
        if let Some(member) = self.copy(id).and_then(|owned| owned.member.clone()) {
            member.keep_ballot(until).await;
        }
        let owned = loop {
            // Again each time: a log that is changed is opened anew.
            let owned = self.copy(id).ok_or("it is not open on its core")?;
            if let Some(reason) = self.must_stay(&owned) {
                return Err(reason);
            }
            if owned.is_at_rest() || planted(PlantedBug::LeaveUndrained) {
                break owned;
            }
            if runtime.monotonic() >= until {
                return Err("the drive does not take in time what was accepted".to_owned());
            }
            owned.work.notify();
            wait_at_most(runtime, &owned.settled, PAUSE).await;
        };
        if to == common.id && owned.member.is_none() {
            // It is opened anew as a copy that can have others.
            owned.can_have_others().await?;
        }
        // From here on the way back is to open it again.
        partitions.borrow_mut().insert(id, Slot::Released(to));
        owned.end(Gone::Elsewhere(Some(to))).await;
        let end = owned.held.get().durable;
        common.leaving.note_closed(id, end);
        Ok(end)
    }

    /// Has another copy lead, if this one does and there are others.
    async fn cede(&self, id: CopyId) -> Result<(), String> {
        let Some(member) = self.copy(id).and_then(|owned| owned.member.clone()) else { return Ok(()) };
        if !member.leads() || member.is_alone() {
            return Ok(());
        }
        let others = member.successors(member.members());
        let preferred = self.catalog.borrow().by_uid(id.partition.log).map(|log| log.preferred(id.partition.index));
        let to = preferred.filter(|copy| others.contains(*copy)).or_else(|| others.iter().next());
        let to = to.ok_or("it leads, and no other copy keeps up that could do so meanwhile")?;
        self.hand_over_from(&member, to).await.map(drop).map_err(|error| error.to_string())
    }

    /// Why a copy cannot go, if it cannot.
    fn must_stay(&self, owned: &Owned<R>) -> Option<String> {
        let Core { common, .. } = self;
        let drives = &common.config.drives;
        let now = common.context.runtime.monotonic();
        let takes_long = |since: Duration| now.saturating_sub(since) > common.config.drive_timeout;
        let stalls = self.open_partitions().iter().any(|owned| owned.io_since.get().is_some_and(takes_long));
        let member = owned.member.as_ref();
        let fence = owned.state.borrow().fence().map(str::to_owned);
        match () {
            () if common.leaving.recalled.get() => Some("it was called back".to_owned()),
            () if fence.is_some() => fence,
            () if member.is_some_and(|member| member.is_closed()) => Some("the copy is out of service".to_owned()),
            () if member.is_some_and(|member| member.leads() && !member.is_alone()) => {
                Some("it was given leadership back meanwhile".to_owned())
            }
            () if stalls || self.drive_stalls() => Some("its drive does not answer in time".to_owned()),
            () if owned.full.get() || common.context.room.is_low() => Some(common.disk_full().to_string()),
            // Whatever is opened on it is taken for older than it is, and rebuilt.
            () if drives.is_old(drives.of(common.id)) => {
                Some("its drive was away, or is an old copy; it can be moved after the next start".to_owned())
            }
            () => None,
        }
    }

    /// What was about to leave and is placed here by `next` stays; what has left already is to be opened again.
    pub(super) async fn call_back(&self, places_here: impl Fn(CopyId) -> bool) {
        let leaving = &self.common.leaving;
        if leaving.copy.get().is_some_and(|(id, _)| places_here(id)) {
            leaving.recalled.set(true);
        }
        leaving.over.wait_until(|| leaving.copy.get().is_none()).await;
        let has_left = |id: &CopyId, slot: &Slot<R>| matches!(slot, Slot::Released(_)) && places_here(*id);
        self.partitions.borrow_mut().retain(|id, slot| !has_left(id, slot));
    }
}

impl<R: Runtime> Owned<R> {
    /// Whether everything that was accepted is durable, and nothing is under way that began by itself.
    fn is_at_rest(&self) -> bool {
        let held = self.held.get();
        let carries = self.flushing.get() || self.log.unwritten_bytes() > 0 || held.durable < held.received;
        let waits = self.state.borrow().waits_for(AckLevel::Received);
        !carries && !waits && self.member.as_ref().is_none_or(|member| member.is_at_rest())
    }
}

fn no_copy_near(core: CoreId, possible: impl Iterator<Item = CoreId>) -> String {
    let possible: Vec<_> = possible.map(|core| core.to_string()).collect();
    let possible = if possible.is_empty() { "none now".to_owned() } else { possible.join(", ") };
    format!("no copy of it is on the drive of core {core}, and copies stay on their drive; possible are {possible}")
}

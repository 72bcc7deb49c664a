//! What a core knows of the others of its server: whether they are alive, and which of them lead which partitions.
//!
//! A core that stops responding is noticed by its pulse, which every core that has copies of partitions sends to all
//! others. A stalled drive is noticed on its own core, by a write or a sync that takes too long.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use super::{CopyId, Core, Slot, mailbox::Message, member::Member, owned::Owned};
use crate::{
    catalog::LogEntry,
    replication::assignment::{ReplicaId, leader_of},
    runtime::Runtime,
    testing::bug::{PlantedBug, planted},
    types::{CoreId, LeaderEpoch, PartitionId},
};

/// How often copies look at the time.
const TICK: Duration = Duration::from_millis(20);

/// How often a core says that it is alive.
const PULSE: Duration = Duration::from_millis(50);

/// A core that said nothing for so long is suspected: longer than any other program keeps a busy core, short enough for
/// a new leader within a second.
const PULSE_MISSED: Duration = Duration::from_millis(400);

/// How long it is waited for leaders at most before whoever asked is told that all is ready: several elections.
const LED_PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(super) struct Peers {
    /// When each other core was heard of last; those that were never are still starting.
    heard: RefCell<BTreeMap<CoreId, Duration>>,
    last_pulse: Cell<Duration>,
    /// A write, a sync or the saving of a ballot takes too long on this core's drive.
    drive_stalls: Cell<bool>,
    keeps_time: Cell<bool>,
    /// The newest reign over each partition that was ever announced: that says which copy leads.
    leaders: RefCell<BTreeMap<PartitionId, LeaderEpoch>>,
}

impl<R: Runtime> Core<R> {
    /// Every core but this one.
    pub(super) fn other_cores(&self) -> impl Iterator<Item = CoreId> + use<R> {
        let own = self.common.id;
        (0..self.cores as u16).map(CoreId).filter(move |core| *core != own)
    }

    /// The core to ask about a partition: that of its leader, as far as is known here.
    pub(super) fn owner(&self, partition: PartitionId) -> CoreId {
        // Most clients ask the right core, and most partitions have one copy.
        if let Some(Slot::Open(owned)) = self.partitions.borrow().get(&CopyId::only(partition))
            && owned.member.is_none()
        {
            return self.common.id;
        }
        let known = self.led_in(partition).map(|epoch| CopyId { partition, copy: leader_of(epoch) });
        let known = known.and_then(|leader| self.home_of(leader));
        known.or_else(|| self.home_of(CopyId::only(partition))).unwrap_or_default()
    }

    /// The same, if it is another core.
    pub(super) fn led_elsewhere(&self, partition: PartitionId) -> Option<CoreId> {
        Some(self.owner(partition)).filter(|core| *core != self.common.id)
    }

    /// A copy of this core leads `partition` from now on: tell everybody.
    pub(super) fn announce_leader(&self, partition: PartitionId, epoch: LeaderEpoch) {
        self.note_leader(partition, epoch);
        for core in self.other_cores() {
            self.mailbox.outbox(core).push(Message::Leads { partition, epoch });
        }
    }

    /// A reign over `partition` has begun.
    pub(super) fn note_leader(&self, partition: PartitionId, epoch: LeaderEpoch) {
        if planted(PlantedBug::ServeAfterHandover) && self.owner(partition) == self.common.id {
            return;
        }
        let mut leaders = self.peers.leaders.borrow_mut();
        let known = leaders.entry(partition).or_insert(epoch);
        *known = epoch.max(*known);
    }

    /// The newest reign over a partition that was ever announced.
    pub(super) fn led_in(&self, partition: PartitionId) -> Option<LeaderEpoch> {
        self.peers.leaders.borrow().get(&partition).copied()
    }

    /// Waits until all partitions of a new log are led, as far as is known here; but not for ever.
    pub(super) async fn until_led(&self, log: &LogEntry) {
        if log.replication().is_some() {
            let is_led = |partition| self.peers.leaders.borrow().contains_key(&partition);
            self.wait_patiently(|| log.partition_ids().all(is_led)).await;
        }
    }

    /// Waits until all copies of this core know who leads; but not for ever.
    pub(super) async fn until_settled(&self) {
        self.wait_patiently(|| self.members().iter().all(|member| member.is_led() || member.is_closed())).await;
    }

    async fn wait_patiently(&self, condition: impl Fn() -> bool) {
        let runtime = &self.common.context.runtime;
        let until = runtime.monotonic() + LED_PATIENCE;
        while !condition() && runtime.monotonic() < until {
            runtime.sleep(TICK / 4).await;
        }
    }

    /// Logs were deleted: nobody asks for the leaders of their partitions any more.
    pub(super) fn forget_leaders(&self, exists: impl Fn(&PartitionId) -> bool) {
        self.peers.leaders.borrow_mut().retain(|partition, _| exists(partition));
    }

    /// `core` is alive.
    pub(super) fn hear_pulse(&self, core: CoreId) {
        self.peers.heard.borrow_mut().insert(core, self.common.context.runtime.monotonic());
    }

    /// Another core says that a copy stopped.
    pub(super) fn suspect(&self, partition: PartitionId, copy: ReplicaId) {
        for member in self.members().into_iter().filter(|member| member.id.partition == partition) {
            member.suspect(copy);
        }
    }

    fn members(&self) -> Vec<Rc<Member<R>>> {
        let partitions = self.partitions.borrow();
        let open = partitions.values().filter_map(|slot| match slot {
            Slot::Open(owned) => owned.member.clone(),
            Slot::Broken(_) | Slot::Unread(_) | Slot::NoRoom | Slot::Released(_) => None,
        });
        open.collect()
    }

    /// The copy `id`, if it is open here.
    pub(super) fn copy(&self, id: CopyId) -> Option<Rc<Owned<R>>> {
        match self.partitions.borrow().get(&id) {
            Some(Slot::Open(owned)) => Some(Rc::clone(owned)),
            _ => None,
        }
    }

    /// Begins to let time pass for the copies of this core, which has the first of them now, and to carry what those of
    /// one partition say to each other.
    pub(super) fn begin_to_keep_time(self: &Rc<Self>) {
        if self.peers.keeps_time.replace(true) {
            return;
        }
        let runtime = &self.common.context.runtime;
        runtime.spawn(Rc::clone(self).keep_time());
        let core = Rc::clone(self);
        runtime.spawn(async move {
            let own = core.common.id;
            loop {
                let message = core.mailbox.outbox(own).next().await;
                core.receive(own, message);
            }
        });
    }

    /// For as long as the core lives.
    async fn keep_time(self: Rc<Self>) {
        let runtime = self.common.context.runtime.clone();
        let mut last = runtime.monotonic();
        loop {
            runtime.sleep(TICK).await;
            let now = runtime.monotonic();
            if now.saturating_sub(std::mem::replace(&mut last, now)) > PULSE {
                // It is this core that did not answer.
                self.peers.heard.borrow_mut().values_mut().for_each(|at| *at = now);
            }
            let members = self.members();
            self.show_lag(&members);
            if members.is_empty() {
                continue;
            }
            self.see_to_stalled_drives(&members, now);
            if now.saturating_sub(self.peers.last_pulse.get()) >= PULSE {
                self.peers.last_pulse.set(now);
                self.other_cores().for_each(|core| self.mailbox.outbox(core).push(Message::Pulse));
            }
            for core in self.silent(now) {
                tracing::warn!(%core, "a core does not answer: its copies are not counted on");
                let led = members.iter().filter(|member| member.leader_core() == Some(core));
                led.for_each(|member| member.suspect_leader());
            }
            members.iter().for_each(|member| member.tick());
            self.give_leadership_back(&members, now);
            self.change_members(&members, now);
        }
    }

    fn show_lag(&self, members: &[Rc<Member<R>>]) {
        let worst = members.iter().filter_map(|member| member.worst_lag()).max().unwrap_or_default();
        let worst_us = u64::try_from(worst.as_micros()).unwrap_or(u64::MAX);
        self.common.context.metrics.replication_lag_us.set(worst_us);
    }

    /// A write, a sync or the saving of a ballot that takes too long makes others lead what is led on this drive.
    fn see_to_stalled_drives(&self, members: &[Rc<Member<R>>], now: Duration) {
        let timeout = self.common.config.drive_timeout;
        let takes_long = |since: Duration| now.saturating_sub(since) > timeout;
        let writes = self.open_partitions().iter().any(|owned| owned.io_since.get().is_some_and(takes_long));
        let stalls = writes || members.iter().any(|member| member.saving_since().is_some_and(takes_long));
        if stalls != self.peers.drive_stalls.replace(stalls) {
            let dir = self.common.data_dir.display();
            match stalls {
                true => tracing::warn!(%dir, "the drive does not answer in time"),
                false => tracing::warn!(%dir, "the drive answers again"),
            }
        }
        if stalls {
            members.iter().for_each(|member| member.give_way());
        }
    }

    /// Whether the drive does not answer.
    pub(super) fn drive_stalls(&self) -> bool {
        self.peers.drive_stalls.get()
    }

    /// The cores that should have been heard of by now. Each is named once for every time it falls silent.
    fn silent(&self, now: Duration) -> Vec<CoreId> {
        let mut heard = self.peers.heard.borrow_mut();
        let silent: Vec<_> =
            heard.iter().filter(|(_, at)| now.saturating_sub(**at) > PULSE_MISSED).map(|(core, _)| *core).collect();
        heard.retain(|core, _| !silent.contains(core));
        silent
    }
}

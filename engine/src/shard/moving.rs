//! Leadership that moves by plan: because an operator says so, or back to the copy that is to lead a partition, when
//! that has kept up for a while after it failed. Which copy that is stands in the catalogue: the first one, and those
//! are spread evenly over the cores, unless somebody chose another.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use super::{
    CopyId, Core,
    completion::ReplyTo,
    control::Moved,
    member::Member,
    request::{Move, Reply, Request},
};
use crate::{
    error::RequestError,
    replication::{
        NotNow,
        assignment::{ReplicaId, ReplicaSet, leader_of},
    },
    runtime::Runtime,
    types::{AckLevel, LeaderEpoch, PartitionId},
};

/// How long it is tried to hand over before whoever asked is told that it was not possible: several elections.
const PATIENCE: Duration = Duration::from_secs(3);

const PAUSE: Duration = Duration::from_millis(5);

/// The longest that a copy must have kept up before it is given leadership back.
const CALM_MAX: Duration = Duration::from_secs(600);

/// What a copy that leads in the place of another knows of giving leadership back.
#[derive(Default)]
pub(super) struct Homing {
    /// Since when the other one keeps up.
    since: Cell<Option<Duration>>,
    /// When leadership was given back last, and how often in a row without peace between.
    given: Cell<Option<(Duration, u32)>>,
}

impl Homing {
    /// How long the other one must have kept up: twice as long each time it did not hold for long.
    fn calm(&self, calm: Duration, now: Duration) -> Duration {
        calm.saturating_mul(1 << self.times_given(now).min(16)).min(CALM_MAX.max(calm))
    }

    fn times_given(&self, now: Duration) -> u32 {
        self.given.get().filter(|(at, _)| now.saturating_sub(*at) < CALM_MAX).map_or(0, |(_, times)| times)
    }

    /// This copy leads, and another is to. Gives whether that is to be given leadership now.
    fn is_due(&self, keeps_up: bool, calm: Duration, now: Duration) -> bool {
        if !keeps_up {
            self.since.set(None);
            return false;
        }
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        let is_due = now.saturating_sub(since) >= self.calm(calm, now);
        if is_due {
            self.since.set(None);
            self.given.set(Some((now, self.times_given(now).saturating_add(1))));
        }
        is_due
    }
}

impl<R: Runtime> Core<R> {
    /// Has a core lead a partition, for an operator: by the copy that it has, or by one that comes to it
    /// ([`super::relocating`]). There it stays until he says otherwise.
    pub(super) fn move_partition(self: &Rc<Self>, request: Move, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.administer_in_steps(reply, async move {
            let moved = core.moved(request).await?;
            core.pin(request.partition, true).await?;
            Ok(Reply::Moved(moved))
        });
    }

    /// Lets a partition move by itself again.
    pub(super) fn unpin_partition(self: &Rc<Self>, partition: PartitionId, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.administer_in_steps(reply, async move { core.pin(partition, false).await.map(|()| Reply::Unpinned) });
    }

    /// Notes in the catalogue, durably, whether a partition moves by an operator's word only.
    async fn pin(self: &Rc<Self>, partition: PartitionId, is_pinned: bool) -> Result<(), RequestError> {
        let _turn = self.admin.changes.take().await;
        let log = self.entry_of(partition)?;
        if log.is_pinned(partition.index) == is_pinned {
            return Ok(());
        }
        let next = self.catalog.borrow().with_pin(partition, is_pinned);
        self.change(next).await
    }

    pub(super) async fn moved(self: &Rc<Self>, Move { partition, to }: Move) -> Result<Moved, RequestError> {
        let log = self.entry_of(partition)?;
        if usize::from(to.0) >= self.cores {
            return Err(refused(format!("there is no core {to}; there are 0 to {}", self.cores - 1)));
        }
        let homes: Vec<_> = log.slots().map(|copy| (copy, self.home_of(CopyId { partition, copy }))).collect();
        let Some((replica, _)) = homes.iter().find(|(_, home)| *home == Some(to)) else {
            return self.relocate(partition, to).await;
        };
        let id = CopyId { partition, copy: *replica };
        self.prefer(id).await?;
        if log.replication().is_none() {
            return Ok(Moved { core: to, replica: id.copy, epoch: LeaderEpoch(0) });
        }
        let epoch = self.have_handed_over(id).await?;
        Ok(Moved { core: to, replica: id.copy, epoch })
    }

    /// Notes in the catalogue that this copy is to lead, durably: else it would be given back soon.
    async fn prefer(self: &Rc<Self>, CopyId { partition, copy }: CopyId) -> Result<(), RequestError> {
        let _turn = self.admin.changes.take().await;
        let current = Arc::clone(&self.catalog.borrow());
        let log = current.by_uid(partition.log).ok_or(RequestError::UnknownPartition { partition })?;
        if log.preferred(partition.index) == copy {
            return Ok(());
        }
        self.change(current.with_leader(partition, copy)).await
    }

    /// Asks whoever leads, again while that is not settled.
    pub(super) async fn have_handed_over(self: &Rc<Self>, id: CopyId) -> Result<LeaderEpoch, RequestError> {
        let runtime = &self.common.context.runtime;
        let until = runtime.monotonic() + PATIENCE;
        loop {
            let error = match self.call_within(Request::HandOver(id), PATIENCE).await {
                Some(Ok(Reply::HandedOver(epoch))) => return Ok(epoch),
                Some(Err(error)) => error,
                Some(Ok(_)) | None => refused("the core that leads it does not answer".to_owned()),
            };
            let may_pass = error.is_retriable() || matches!(error, RequestError::MoveRefused { .. });
            if !may_pass || self.common.draining.get() {
                return Err(error);
            }
            if runtime.monotonic() >= until {
                return Err(refused(format!("{error}; copy {} leads as soon as it keeps up", id.copy)));
            }
            runtime.sleep(PAUSE * 4).await;
        }
    }

    /// Hands leadership over to this copy, if a copy of this core leads.
    pub(super) fn hand_over(self: &Rc<Self>, id: CopyId, reply: ReplyTo) {
        let member = match self.owned(id.partition) {
            Err(error) => return reply.send(Err(error)),
            Ok(owned) => owned.member.clone(),
        };
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let outcome = match member {
                Some(member) if member.id == id => Ok(member.epoch()),
                Some(member) => core.hand_over_from(&member, id.copy).await,
                None => Err(refused("it has one copy".to_owned())),
            };
            reply.send(outcome.map(Reply::HandedOver));
        });
    }

    pub(super) async fn hand_over_from(
        &self,
        member: &Rc<Member<R>>,
        to: ReplicaId,
    ) -> Result<LeaderEpoch, RequestError> {
        let before = member.epoch();
        member.hand_over(to).map_err(|error| refused(error.to_string()))?;
        let runtime = &self.common.context.runtime;
        let until = runtime.monotonic() + PATIENCE;
        while member.leads() && !member.admits_appends() && runtime.monotonic() < until {
            runtime.sleep(PAUSE).await;
        }
        let led_in = || self.led_in(member.id.partition).filter(|epoch| *epoch > before);
        while led_in().is_none() && !member.leads() && runtime.monotonic() < until {
            runtime.sleep(PAUSE).await;
        }
        led_in().filter(|epoch| leader_of(*epoch) == to).ok_or_else(|| refused(format!("copy {to} was not elected")))
    }

    /// Hands leadership over to the copies that are to lead, after they have kept up for long enough and had nothing
    /// damaged. One at a time: the next when time passes again.
    pub(super) fn give_leadership_back(&self, members: &[Rc<Member<R>>], now: Duration) {
        if self.common.draining.get() || self.drive_stalls() {
            return;
        }
        let due = |member: &&Rc<Member<R>>| {
            let preferred = self.preferred(member);
            let elsewhere = self.home_of(CopyId { copy: preferred, ..member.id }) != Some(self.common.id);
            member.leads() && elsewhere && {
                let keeps_up = member.look(|replica| replica.fit_to_lead().contains(preferred));
                member.homing.is_due(keeps_up, self.common.config.calm, now)
            }
        };
        if let Some(member) = members.iter().find(due) {
            let to = self.preferred(member);
            tracing::info!(copy = %member.id, %to, "the copy that is to lead keeps up again: it is given leadership");
            if let Err(error) = member.hand_over(to) {
                tracing::info!(copy = %member.id, %error, "leadership was not handed over");
            }
        }
    }

    /// The copy that is to lead the partition of a member.
    pub(super) fn preferred(&self, member: &Member<R>) -> ReplicaId {
        let CopyId { partition, copy } = member.id;
        self.catalog.borrow().by_uid(partition.log).map_or(copy, |log| log.preferred(partition.index))
    }
}

impl<R: Runtime> Member<R> {
    /// Who of `others` could lead now: rather one that has nothing damaged.
    pub(super) fn successors(&self, others: ReplicaSet) -> ReplicaSet {
        let others = others.without(self.id.copy);
        let (fit, in_sync) = self.look(|replica| (replica.fit_to_lead(), replica.in_sync()));
        let fit = fit.intersection(others);
        if fit.is_empty() { in_sync.intersection(others) } else { fit }
    }

    /// The copies that the partition has, as far as this one knows.
    pub(super) fn members(&self) -> ReplicaSet {
        self.look(|replica| replica.ballot().config.replicas())
    }

    /// Begins to hand leadership over: what somebody waits for is told before, and nothing is admitted meanwhile.
    pub(super) fn hand_over(self: &Rc<Self>, to: ReplicaId) -> Result<(), NotNow> {
        let wanted = self.owned().map(|owned| owned.most_wanted()).unwrap_or(AckLevel::Received);
        self.drive(|replica, now| replica.hand_over(to, wanted, now))?;
        self.metrics().leaders_moved.add(1);
        Ok(())
    }
}

pub(super) fn refused(reason: String) -> RequestError {
    RequestError::MoveRefused { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Duration = Duration::from_secs(10);

    /// When leadership is given back, in seconds, if the other one keeps up at these.
    fn given(homing: &Homing, seconds: std::ops::Range<u64>, keeps_up: impl Fn(u64) -> bool) -> Vec<u64> {
        let now = Duration::from_secs;
        seconds.filter(|second| homing.is_due(keeps_up(*second), CALM, now(*second))).collect()
    }

    #[test]
    fn a_copy_leads_again_when_it_has_kept_up_without_a_break() {
        let homing = Homing::default();
        assert_eq!(given(&homing, 0..30, |second| second != 7), [18]);
    }

    #[test]
    fn each_time_that_it_did_not_hold_it_takes_twice_as_long_until_there_was_peace() {
        let homing = Homing::default();
        assert_eq!(given(&homing, 0..200, |_| true), [10, 31, 72, 153]);
        let homing = Homing::default();
        assert_eq!(given(&homing, 0..11, |_| true), [10]);
        assert_eq!(given(&homing, 700..711, |_| true), [710], "the first one held for long");
        homing.given.set(Some((Duration::ZERO, 99)));
        assert_eq!(homing.calm(CALM, CALM), CALM_MAX);
    }
}

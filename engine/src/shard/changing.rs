//! Copies that are added or given up, and quorums that change, while a log is in use.
//!
//! The catalogue says what is to be, and while a partition may not be like that yet, what was: cores open the copies of
//! both. What the members *are* is for the ballots to say. Each leader looks whether its members are those that are to
//! be, and has them changed if not ([`crate::replication`] does it without a gap between the quorums of both). When the
//! leaders of all partitions have said that their members are settled, core 0 makes the catalogue forget what was, and
//! the copies that are given up are closed and deleted: not before, since until then they may be all that has a record.
//! Nothing is remembered of a change but the catalogue, so it goes on after any crash.

use std::{cell::Cell, collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};

use futures_util::stream::{self, StreamExt};

use super::{
    CopyId, Core,
    completion::ReplyTo,
    member::Member,
    opening::copy_dir,
    request::{AlterLog, Reply, Request},
};
use crate::{
    catalog::{Catalog, LogEntry},
    error::RequestError,
    replication::{
        NotNow,
        assignment::{Members, ReplicaId, ReplicaSet},
    },
    runtime::Runtime,
    testing::bug::{PlantedBug, planted},
    types::{LogUid, PartitionId},
};

/// How often core 0 asks whether members are settled.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// A leader that does not answer for so long is asked again later.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How many leaders are asked at once.
const ASKED_AT_ONCE: usize = 16;

/// How often a leader that is to be a member no more tries to hand over: nothing is admitted while it does.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);

/// What a copy that leads knows of a change of its members.
#[derive(Default)]
pub(super) struct GivenUp {
    /// When it tried last to hand over, because it is to be a member no more.
    tried: Cell<Option<Duration>>,
}

impl<R: Runtime> Core<R> {
    /// Changes the settings of a log. A change of its copies goes on after the answer.
    pub(super) fn alter_log(self: &Rc<Self>, request: AlterLog, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.administer(reply, async move { core.altered(&request).await.map(Reply::LogAltered) });
    }

    async fn altered(self: &Rc<Self>, request: &AlterLog) -> Result<Arc<LogEntry>, RequestError> {
        let current = Arc::clone(&self.catalog.borrow());
        let log = current.with_changes(request)?.1;
        let before = current.by_uid(log.uid).map_or(0, |log| log.slots().count());
        let copies = log.replication().map_or(1, |replication| replication.replication_factor);
        if log.former.is_some() && usize::from(copies) > before {
            if self.common.context.room.is_low() {
                return Err(self.common.disk_full());
            }
            if usize::from(copies) > self.cores {
                return Err(super::admin::too_many_copies(copies, self.cores));
            }
        }
        if log.former.is_some() && current.by_uid(log.uid).is_some_and(|log| log.replication().is_none()) {
            self.introduce(&log).await?;
        }
        let (next, log) = self.catalog.borrow().with_changes(request)?;
        let next = if planted(PlantedBug::ForgetFormer) { next.with_settled(log.uid) } else { next };
        let revision = self.catalog.borrow().revision();
        let changed = self.change(next).await;
        // A copy that could not be opened yet does not undo what the catalogue says. That the settings are as they are
        // wanted does not say so: a change before may have failed, and be on some drive nevertheless.
        let is_taken = self.catalog.borrow().revision() > revision;
        match changed {
            Err(error) if !(is_taken && log.former.is_some()) => return Err(error),
            Err(error) => tracing::error!(log = %log.name, %error, "a new copy is not open"),
            Ok(()) => {}
        }
        self.watch_changes();
        Ok(log)
    }

    /// The only copies of a log's partitions, which know of no others, become copies that could have some: closed, and
    /// opened as the first members of what has one copy so far, with a ballot that says so. They lack nothing, whatever
    /// reigns their records are of, since nobody else had any.
    async fn introduce(self: &Rc<Self>, log: &LogEntry) -> Result<(), RequestError> {
        if let Err(error) = self.release_all(log).await {
            self.recall().await;
            return Err(error);
        }
        let next = self.catalog.borrow().with_only_members(log.uid);
        let begun = self.change(next).await;
        if let Err(error) = begun {
            self.recall().await;
            return Err(error);
        }
        if let Some(id) = self.damaged_member(log).await {
            if let Err(error) = self.make_only_copies(log).await {
                tracing::error!(copy = %id, %error, "its log ends at damage, and it waits for the operator's word");
            }
            return Err(no_others(id, "its log was found to end at damage"));
        }
        let founded = self.catalog.borrow().with_founded(log.uid);
        self.change(founded).await
    }

    /// Has the only copies of a log closed, so that they are opened as something else.
    ///
    /// Errors: which one is not, and why.
    async fn release_all(self: &Rc<Self>, log: &LogEntry) -> Result<(), RequestError> {
        for id in log.partition_ids().map(CopyId::only) {
            let released = match self.home_of(id) {
                None => Err(RequestError::UnknownPartition { partition: id.partition }),
                Some(home) => self.have_released(id, home).await,
            };
            released.map_err(|error| no_others(id, &error.to_string()))?;
        }
        Ok(())
    }

    /// An only member that has lost its memory, if there is one: nobody leads its partition.
    async fn damaged_member(self: &Rc<Self>, log: &LogEntry) -> Option<CopyId> {
        for id in log.partition_ids().map(CopyId::only) {
            let standing = self.ask_standing(id).await;
            if standing.problem.is_none() && !standing.is_intact {
                return Some(id);
            }
        }
        None
    }

    /// Takes back what was begun: as an only copy one can be read up to the damage; and if the drive gave other bytes
    /// than it has, it may not do so again.
    async fn make_only_copies(self: &Rc<Self>, log: &LogEntry) -> Result<(), RequestError> {
        let changed = match self.release_all(log).await {
            Err(error) => Err(error),
            Ok(()) => {
                let next = self.catalog.borrow().with_only_copies(log.uid);
                self.change(next).await
            }
        };
        if changed.is_err() {
            self.recall().await;
        }
        changed
    }

    /// Has the members of partitions that are led here become those that are to be.
    pub(super) fn change_members(&self, members: &[Rc<Member<R>>], now: Duration) {
        if self.common.draining.get() || self.drive_stalls() {
            return;
        }
        for member in members.iter().filter(|member| member.is_established()) {
            let Some(target) = self.members_to_be(member.id.partition) else { continue };
            if target.replicas().contains(member.id.copy) {
                member.change_members(target);
            } else {
                self.hand_over_to_one_of(member, target.replicas(), now);
            }
        }
    }

    fn members_to_be(&self, partition: PartitionId) -> Option<Members> {
        let catalog = self.catalog.borrow();
        catalog.by_uid(partition.log)?.replication()?.members().ok()
    }

    /// A leader does not dismiss itself: one that stays is to lead.
    fn hand_over_to_one_of(&self, member: &Rc<Member<R>>, stay: ReplicaSet, now: Duration) {
        let tried = &member.given_up.tried;
        if tried.get().is_some_and(|tried| now.saturating_sub(tried) < LEAVE_PAUSE) {
            return;
        }
        let fit = member.successors(stay);
        let preferred = Some(self.preferred(member)).filter(|copy| fit.contains(*copy));
        let Some(to) = preferred.or_else(|| fit.iter().next()) else { return };
        tried.set(Some(now));
        match member.hand_over(to) {
            Ok(()) => tracing::info!(copy = %member.id, %to, "it is given up, and hands over"),
            Err(error) => tracing::debug!(copy = %member.id, %to, %error, "it is given up, and leads on"),
        }
    }

    /// Answers which members a partition has, if a copy of this core leads it and they are settled.
    pub(super) fn tell_members(&self, partition: PartitionId, reply: ReplyTo) {
        let settled = self.owned(partition).map(|owned| {
            let member = owned.member.as_ref().filter(|member| !member.is_closed());
            member.and_then(|member| member.look(|replica| replica.settled_members()))
        });
        reply.send(settled.map(Reply::Members));
    }

    /// For as long as copies of any log change, looks whether they have. On core 0.
    pub(super) fn watch_changes(self: &Rc<Self>) {
        if changing(&self.catalog.borrow()).is_empty() || self.admin.watches.replace(true) {
            return;
        }
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            loop {
                core.common.context.runtime.sleep(WATCH_PAUSE).await;
                let logs = changing(&core.catalog.borrow());
                if logs.is_empty() || core.common.draining.get() {
                    break;
                }
                for log in logs {
                    if core.are_settled(&log).await {
                        core.settle(&log).await;
                    }
                }
            }
            core.admin.watches.set(false);
        });
    }

    /// Whether the leaders of all partitions of a log say that their members are those that are to be.
    async fn are_settled(self: &Rc<Self>, log: &LogEntry) -> bool {
        let Some(target) = log.replication().and_then(|replication| replication.members().ok()) else { return false };
        let asked = log.partition_ids().map(|partition| async move {
            let answer = self.call_within(Request::Members(partition), ANSWER_PATIENCE).await;
            matches!(answer, Some(Ok(Reply::Members(Some(members)))) if members == target)
        });
        stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).all(std::future::ready).await
    }

    /// All partitions of `log` have the members that are to be: what was is forgotten, and the copies that are none any
    /// more are deleted.
    async fn settle(self: &Rc<Self>, log: &LogEntry) {
        let _turn = self.admin.changes.take().await;
        let current = Arc::clone(&self.catalog.borrow());
        let is_as_asked = |now: &Arc<LogEntry>| (now.former, now.replication()) == (log.former, log.replication());
        if !current.by_uid(log.uid).is_some_and(is_as_asked) {
            return;
        }
        if let Err(error) = self.change(current.with_settled(log.uid)).await {
            tracing::warn!(log = %log.name, %error, "the copies have changed, and the catalogue does not say so yet");
        }
        if self.is_settled(log.uid) {
            tracing::info!(log = %log.name, "its copies are what they are to be");
            self.throw_copies_away(log).await;
        }
    }

    fn is_settled(&self, log: LogUid) -> bool {
        self.catalog.borrow().by_uid(log).is_some_and(|log| log.former.is_none())
    }

    /// Deletes the copies that a log has no more. Before the next change, which may make new ones in their places.
    async fn throw_copies_away(&self, before: &LogEntry) {
        let kept: BTreeSet<ReplicaId> = match self.catalog.borrow().by_uid(before.uid) {
            Some(log) => log.slots().collect(),
            None => return,
        };
        for copy in before.slots().filter(|copy| !kept.contains(copy)) {
            for id in before.partition_ids().map(|partition| CopyId { partition, copy }) {
                for (_, data_dir) in self.common.config.drives.all() {
                    self.throw_away(data_dir, &copy_dir(data_dir, &before.name, id)).await;
                }
            }
        }
    }
}

impl<R: Runtime> Member<R> {
    /// Has the members become `target`, if they are not and nothing else is under way.
    fn change_members(self: &Rc<Self>, target: Members) {
        let config = self.look(|replica| replica.ballot().config);
        if config.current == target && config.incoming.is_none() {
            return;
        }
        match self.drive(|replica, now| replica.change_members(target, now)) {
            Ok(()) => tracing::info!(copy = %self.id, from = %config, to = %target, "the members begin to change"),
            Err(NotNow::Changing) => {}
            Err(error) => tracing::debug!(copy = %self.id, to = %target, %error, "the members do not change yet"),
        }
    }
}

/// Why an only copy remains the only one.
fn no_others(CopyId { partition, .. }: CopyId, why: &str) -> RequestError {
    let reason = format!("the only copy of partition {} cannot have others: {why}", partition.index);
    RequestError::SettingsRefused { reason }
}

/// The logs whose copies change.
fn changing(catalog: &Catalog) -> Vec<Arc<LogEntry>> {
    catalog.logs().filter(|log| log.former.is_some()).cloned().collect()
}

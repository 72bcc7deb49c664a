//! The operator's way out of a partition that nobody leads: he accepts that records are lost, and one copy begins a
//! reign without the votes that it lacks. Which one, and what that may cost, is found out here from all copies that can
//! be asked; what it means is the protocol's (`docs/REPLICATION.md`, "The operator accepts a loss").

use std::{cmp::Reverse, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::{Either, join_all, select};

use super::{
    CopyId, Core, Shard, Slot,
    completion::ReplyTo,
    control::{CopyStanding, RecoveryReport, ReplicaRole},
    request::{Outcome, Recover, Reply, Request},
};
use crate::{
    catalog::LogEntry,
    error::RequestError,
    replication::assignment::{Members, ReplicaId},
    runtime::Runtime,
    types::{CoreId, LeaderEpoch, Offset, PartitionId},
};

/// A core that does not say so soon how its copy stands is left out.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How long it is waited for copies to elect one of themselves: several elections.
const ELECTION_PATIENCE: Duration = Duration::from_secs(1);

/// How long one that was told to lead may take: its log may have to be mended.
const FORCE_PATIENCE: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(50);

impl<R: Runtime> Core<R> {
    /// Has a copy lead by the operator's word, or says which one would and what there is to know of all.
    pub(super) fn recover_partition(self: &Rc<Self>, request: Recover, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let report = core.recovery(request).await;
            reply.send(report.map(|report| Reply::Recovery(Box::new(report))));
        });
    }

    async fn recovery(self: &Rc<Self>, request: Recover) -> Result<RecoveryReport, RequestError> {
        let Recover { partition, copy, accept_data_loss } = request;
        let log = self.entry_of(partition)?;
        let Some(replication) = log.replication() else {
            return Err(refused("the partition has one copy, and nobody to disagree with".to_owned()));
        };
        let copies = self.settled_standings(partition, &log).await;
        let leader = leader_of(&copies);
        let chosen = match copy {
            Some(copy) => Some(usable(&copies, copy)?),
            None => choose(&copies),
        };
        let name = log.name.to_string();
        let mut report =
            RecoveryReport { log: name, partition: partition.index, replication, copies, leader, chosen, begun: None };
        if !accept_data_loss {
            return Ok(report);
        }
        if let Some(leader) = leader {
            return Err(refused(format!("copy {leader} leads the partition: there is nothing to recover")));
        }
        let chosen =
            chosen.ok_or_else(|| refused("no copy can lead: none can be asked, or is in service".to_owned()))?;
        let epoch = self.have_lead(CopyId { partition, copy: chosen }).await?;
        report.begun = Some(epoch);
        Ok(report)
    }

    /// How all copies stand, when one of them leads or has had the time to.
    async fn settled_standings(self: &Rc<Self>, partition: PartitionId, log: &LogEntry) -> Vec<CopyStanding> {
        let runtime = &self.common.context.runtime;
        let until = runtime.monotonic() + ELECTION_PATIENCE;
        loop {
            let all = log.slots().map(|copy| self.ask_standing(CopyId { partition, copy }));
            let copies = join_all(all).await;
            if leader_of(&copies).is_some() || runtime.monotonic() >= until {
                return copies;
            }
            runtime.sleep(PAUSE).await;
        }
    }

    pub(super) async fn ask_standing(self: &Rc<Self>, id: CopyId) -> CopyStanding {
        let core = self.home_of(id);
        let answer = match core {
            Some(_) => self.call_within(Request::StandingOf(id), ANSWER_PATIENCE).await,
            None => return unknown(id, core, "its drive is away".to_owned()),
        };
        match answer {
            Some(Ok(Reply::Stands(standing))) => *standing,
            Some(Err(error)) => unknown(id, core, error.to_string()),
            Some(Ok(_)) | None => unknown(id, core, "its core does not answer".to_owned()),
        }
    }

    /// Tells a copy to lead, and waits until it does.
    async fn have_lead(self: &Rc<Self>, id: CopyId) -> Result<LeaderEpoch, RequestError> {
        let epoch = match self.call_within(Request::Force(id), FORCE_PATIENCE).await {
            Some(Ok(Reply::Forced(epoch))) => epoch,
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) | None => return Err(refused(format!("copy {} did not answer in time", id.copy))),
        };
        let runtime = &self.common.context.runtime;
        let until = runtime.monotonic() + ANSWER_PATIENCE;
        while self.led_in(id.partition).is_none_or(|led| led < epoch) {
            if runtime.monotonic() >= until {
                return Err(refused(format!("copy {} was told to lead and does not yet", id.copy)));
            }
            runtime.sleep(PAUSE).await;
        }
        Ok(epoch)
    }

    /// An answer of whatever core is to give it, if it comes in time.
    pub(super) async fn call_within(self: &Rc<Self>, request: Request, patience: Duration) -> Option<Outcome> {
        let shard = Shard(Rc::clone(self));
        let call = std::pin::pin!(shard.call(request));
        let sleep = std::pin::pin!(self.common.context.runtime.sleep(patience));
        match select(call, sleep).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(_) => None,
        }
    }

    /// The catalogue's entry of the log that has this partition.
    pub(super) fn entry_of(&self, partition: PartitionId) -> Result<Arc<LogEntry>, RequestError> {
        let found = self.catalog.borrow().by_uid(partition.log).map(Arc::clone);
        found.filter(|log| partition.index.0 < log.partitions).ok_or(RequestError::UnknownPartition { partition })
    }

    /// Answers how a copy of this core stands.
    pub(super) fn standing_of(&self, id: CopyId) -> Outcome {
        let own = Some(self.common.id);
        let standing = match self.partitions.borrow().get(&id) {
            Some(Slot::Open(owned)) => match &owned.member {
                Some(member) => member.standing(),
                None => unknown(id, own, "it is the only copy".to_owned()),
            },
            Some(Slot::Broken(error)) => unknown(id, own, error.to_string()),
            Some(Slot::Unread(unread)) => unknown(id, own, unread.error().to_string()),
            Some(Slot::NoRoom) => unknown(id, own, self.common.disk_full().to_string()),
            Some(Slot::Released(to)) => unknown(id, own, format!("it is on its way to core {to}")),
            None => unknown(id, own, "it is not where it should be".to_owned()),
        };
        Ok(Reply::Stands(Box::new(standing)))
    }

    /// Has a copy of this core lead by the operator's word.
    pub(super) fn force(self: &Rc<Self>, id: CopyId, reply: ReplyTo) {
        let member = self.copy(id).and_then(|owned| owned.member.clone());
        let Some(member) = member else { return reply.send(Err(refused(format!("copy {} is not open", id.copy)))) };
        let members = self.catalog.borrow().by_uid(id.partition.log).and_then(|log| decided_members(log));
        self.common.context.runtime.spawn(async move {
            let begun = member.force(members).await;
            reply.send(begun.map(Reply::Forced).map_err(|reason| refused(format!("copy {} {reason}", id.copy))));
        });
    }
}

/// The members of a log's partitions, if these do not change: the copy that is to lead may have missed the last change,
/// and would count on some that have left. While they change, who is a member is for the ballots to say, and all are
/// there.
fn decided_members(log: &LogEntry) -> Option<Members> {
    let replication = log.replication().filter(|_| log.former.is_none())?;
    replication.members().ok()
}

fn refused(reason: String) -> RequestError {
    RequestError::RecoveryRefused { reason }
}

/// A copy of which nothing is known but why.
fn unknown(id: CopyId, core: Option<CoreId>, problem: String) -> CopyStanding {
    let nothing = Offset(0);
    CopyStanding {
        replica: id.copy,
        core,
        role: None,
        is_intact: false,
        accepted: LeaderEpoch(0),
        start_offset: nothing,
        end_offset: nothing,
        committed: nothing,
        problem: Some(problem),
    }
}

fn leader_of(copies: &[CopyStanding]) -> Option<ReplicaId> {
    copies.iter().find(|copy| copy.role == Some(ReplicaRole::Leader)).map(|copy| copy.replica)
}

/// The copy that loses least, as far as can be known: one that has its memory before one that lost it, and then by what
/// decides elections. Of equals the first.
fn choose(copies: &[CopyStanding]) -> Option<ReplicaId> {
    let usable = copies.iter().filter(|copy| copy.problem.is_none());
    let worth = |copy: &&CopyStanding| (copy.is_intact, copy.accepted, copy.end_offset, Reverse(copy.replica));
    usable.max_by_key(worth).map(|copy| copy.replica)
}

fn usable(copies: &[CopyStanding], chosen: ReplicaId) -> Result<ReplicaId, RequestError> {
    let found = copies.iter().find(|copy| copy.replica == chosen);
    match found.map(|copy| copy.problem.as_ref()) {
        Some(None) => Ok(chosen),
        Some(Some(problem)) => Err(refused(format!("copy {chosen} cannot lead: {problem}"))),
        None => {
            let all: Vec<_> = copies.iter().map(|copy| copy.replica.to_string()).collect();
            Err(refused(format!("there is no copy {chosen}; there are {}", all.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::Catalog,
        settings::{LogChanges, LogSettings, Replication},
        shard::request::{AlterLog, CreateLog},
    };

    fn copy(number: u8, is_intact: bool, accepted: u32, end: u64) -> CopyStanding {
        CopyStanding {
            role: Some(ReplicaRole::Candidate),
            is_intact,
            accepted: LeaderEpoch(accepted),
            end_offset: Offset(end),
            problem: None,
            ..unknown(CopyId { copy: ReplicaId(number), ..CopyId::only(PARTITION) }, None, String::new())
        }
    }

    const PARTITION: PartitionId = PartitionId { log: crate::types::LogUid(1), index: crate::types::PartitionIndex(0) };

    #[test]
    fn memory_goes_before_epoch_before_length_before_number() {
        let chosen = |copies: &[CopyStanding]| choose(copies).map(|copy| copy.0);
        assert_eq!(chosen(&[copy(0, true, 8, 5), copy(1, false, 9, 99)]), Some(0));
        assert_eq!(chosen(&[copy(0, true, 8, 99), copy(1, true, 9, 5)]), Some(1));
        assert_eq!(chosen(&[copy(0, true, 8, 5), copy(1, true, 8, 6), copy(2, true, 8, 6)]), Some(1));
        assert_eq!(chosen(&[copy(0, false, 8, 5), copy(1, false, 8, 6)]), Some(1), "better than none");
        let gone = CopyStanding { problem: Some("away".to_owned()), ..copy(0, true, 99, 99) };
        assert_eq!(chosen(&[gone.clone(), copy(1, true, 8, 5)]), Some(1));
        assert_eq!(chosen(&[gone]), None);
    }

    #[test]
    fn whoever_is_told_to_lead_counts_on_nobody_who_has_left() {
        let of = |replication_factor| Replication { replication_factor, write_quorum: 1, read_quorum: 1 };
        let settings = LogSettings { replication: Some(of(3)), ..LogSettings::default() };
        let create = CreateLog { name: "a".parse().unwrap(), partitions: 1, settings };
        let (catalog, log) = Catalog::default().with_log(&create, (1, 0)).unwrap();
        let members = |log: &LogEntry| decided_members(log).map(|members| members.replicas().len());
        assert_eq!(members(&log), Some(3));
        let changes = LogChanges { replication: Some(of(2).into()), ..LogChanges::default() };
        let alter = AlterLog { name: log.name.clone(), changes };
        let (catalog, log) = catalog.with_founded(log.uid).with_changes(&alter).unwrap();
        assert_eq!(members(&log), None, "both are there");
        let settled = catalog.with_settled(log.uid);
        assert_eq!(members(settled.by_uid(log.uid).unwrap()), Some(2));
    }

    #[test]
    fn a_copy_that_cannot_lead_is_refused_with_the_reason() {
        let gone = CopyStanding { problem: Some("its drive is away".to_owned()), ..copy(0, true, 9, 9) };
        let copies = [gone, copy(1, false, 0, 0)];
        assert_eq!(usable(&copies, ReplicaId(1)), Ok(ReplicaId(1)));
        let words = |copy| usable(&copies, ReplicaId(copy)).unwrap_err().to_string();
        assert!(words(0).ends_with("copy 0 cannot lead: its drive is away"), "{}", words(0));
        assert!(words(5).ends_with("there is no copy 5; there are 0, 1"), "{}", words(5));
    }
}

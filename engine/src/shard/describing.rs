//! How a partition is, as one copy of it sees it: for whoever watches, and for `dlog log describe`; and how a core is.

use std::{rc::Rc, sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{
    CopyId, Core, Slot,
    completion::ReplyTo,
    control::{
        CopyStanding, CoreDoing, CoreStatus, DAMAGES_SHOWN_MAX, DamageStatus, PartitionStatus, Places, ReplicaRole,
        ReplicaStatus,
    },
    member::Member,
    owned::Owned,
    request::{Outcome, Reply, Request},
};
use crate::{
    error::RequestError,
    replication::{FollowerView, assignment::ReplicaId, ballot::Memory, message::Held},
    runtime::Runtime,
    settings::Replication,
    types::{CoreId, LeaderEpoch, Offset, PartitionId},
};

/// A core that does not say for so long how it is does not answer.
const CORE_PATIENCE: Duration = Duration::from_secs(1);

impl<R: Runtime> Core<R> {
    /// Answers how a partition is: as its leader sees it, with what the other copies say of themselves; or else as a
    /// copy of this core sees it.
    pub(super) fn describe(self: &Rc<Self>, id: PartitionId, reply: ReplyTo) {
        let found = self.owned(id).or_else(|error| {
            let partitions = self.partitions.borrow();
            let open = partitions.range(CopyId::all_of(id)).find_map(|(_, slot)| match slot {
                Slot::Open(owned) => Some(Rc::clone(owned)),
                Slot::Broken(_) | Slot::Unread(_) | Slot::NoRoom | Slot::Released(_) => None,
            });
            let unread = partitions.range(CopyId::all_of(id)).find_map(|(_, slot)| match slot {
                Slot::Unread(unread) => Some(unread.error()),
                _ => None,
            });
            open.ok_or(unread.unwrap_or(error))
        });
        let mut status = match found {
            Ok(owned) => owned.status(),
            Err(error) => return reply.send(Err(error)),
        };
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let asked = status.replicas.iter().filter(|replica| replica.replica != status.replica);
            let asked = asked.map(|replica| core.own_word(CopyId { partition: id, copy: replica.replica }));
            let said: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
            for replica in &mut status.replicas {
                let own = said.iter().find(|own| own.replica == replica.replica);
                own.into_iter().for_each(|own| replica.take_its_word(own));
            }
            reply.send(Ok(Reply::Described(Box::new(status))));
        });
    }

    /// What a copy says of itself, if it does in time.
    async fn own_word(self: &Rc<Self>, id: CopyId) -> Option<ReplicaStatus> {
        self.home_of(id)?;
        match self.call_within(Request::DescribeCopy(id), CORE_PATIENCE).await {
            Some(Ok(Reply::Described(status))) => status.replicas.into_iter().find(|own| own.replica == id.copy),
            _ => None,
        }
    }

    /// How a copy of this core is.
    pub(super) fn describe_copy(&self, id: CopyId) -> Outcome {
        let status = self.copy(id).map(|owned| owned.status()).or_else(|| self.unread_status(id));
        let status = status.ok_or(RequestError::UnknownPartition { partition: id.partition })?;
        Ok(Reply::Described(Box::new(status)))
    }
}

impl<R: Runtime> Core<R> {
    /// Answers what all cores have and do. Core 0 asks them.
    pub(super) fn describe_cores(self: &Rc<Self>, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let all = (0..core.cores as u16).map(CoreId).map(|id| core.core_status(id));
            let all = join_all(all).await;
            reply.send(Ok(Reply::Cores(all)));
        });
    }

    async fn core_status(self: &Rc<Self>, core: CoreId) -> CoreStatus {
        let drives = &self.common.config.drives;
        let doing = match self.call_within(Request::Doing(core), CORE_PATIENCE).await {
            Some(Ok(Reply::Doing(doing))) => Some(doing),
            _ => None,
        };
        let data_dir = drives.dir_of(core).display().to_string();
        CoreStatus { core, drive: drives.of(core).0, data_dir, doing }
    }

    /// The copies here that are out of service since their drive does not give them.
    pub(super) fn unread(&self) -> Vec<PartitionStatus> {
        let all: Vec<_> = self.partitions.borrow().keys().copied().collect();
        all.into_iter().filter_map(|id| self.unread_status(id)).collect()
    }

    fn unread_status(&self, id: CopyId) -> Option<PartitionStatus> {
        let problem = match self.partitions.borrow().get(&id) {
            Some(Slot::Unread(unread)) => unread.problem(),
            _ => return None,
        };
        let log = self.catalog.borrow().by_uid(id.partition.log).map(Arc::clone)?;
        let core = self.common.id;
        let own = ReplicaStatus {
            replica: id.copy,
            core: Some(core),
            role: ReplicaRole::Unreadable,
            problem: Some(problem.clone()),
            ..far(Held::default())
        };
        Some(PartitionStatus {
            log: log.name.to_string(),
            partition: id.partition.index,
            core,
            replica: id.copy,
            leads: false,
            replication: log.replication().unwrap_or(Replication::SINGLE),
            wanted: None,
            pinned: log.is_pinned(id.partition.index),
            replicas: vec![own],
            start_offset: Offset(0),
            high_watermark: Offset(0),
            log_end_offset: Offset(0),
            durable_end_offset: Offset(0),
            epoch: LeaderEpoch(0),
            forced_epoch: LeaderEpoch(0),
            size_bytes: 0,
            read_only: Some(problem),
            damages: Vec::new(),
            repaired_records: 0,
        })
    }

    /// What this core has and does.
    pub(super) fn doing(&self) -> CoreDoing {
        let copies = self.open_partitions();
        let leads = |owned: &&Rc<Owned<R>>| owned.member.as_ref().is_none_or(|member| member.leads());
        let led = copies.iter().filter(leads).count();
        let pinned = copies.iter().filter(leads).filter(|owned| owned.is_pinned()).count();
        self.common.note_busy();
        let metrics = &self.common.context.metrics;
        let at_us = self.common.context.runtime.monotonic().as_micros();
        CoreDoing {
            at_us: u64::try_from(at_us).unwrap_or(u64::MAX),
            leads: led as u64,
            follows: (copies.len() - led) as u64,
            pinned: pinned as u64,
            busy_us: metrics.busy_us.get(),
            write_requests: metrics.write_requests.get(),
            write_bytes: metrics.write_bytes.get(),
            read_requests: metrics.read_requests.get(),
            read_bytes: metrics.read_bytes.get(),
        }
    }
}

impl<R: Runtime> Owned<R> {
    pub(super) fn status(&self) -> PartitionStatus {
        let state = self.state.borrow();
        let ends = state.ends();
        let (replication, replicas) = match &self.member {
            Some(member) => (member.numbers(), member.replicas()),
            None => (Replication::SINGLE, vec![self.only_replica()]),
        };
        PartitionStatus {
            log: self.entry.borrow().name.to_string(),
            partition: self.id.index,
            core: self.core.id,
            replica: self.copy_id().copy,
            leads: self.member.as_ref().is_none_or(|member| member.leads()),
            replication,
            wanted: self.wanted(),
            pinned: self.is_pinned(),
            replicas,
            start_offset: ends.log_start(),
            high_watermark: ends.high_watermark(),
            log_end_offset: ends.log_end(),
            durable_end_offset: ends.durable_end(),
            epoch: self.member.as_ref().map_or_else(|| state.epoch(), |member| member.epoch()),
            forced_epoch: self.member.as_ref().map_or(LeaderEpoch(0), |member| member.look(|r| r.ballot().forced)),
            size_bytes: self.log.size_bytes(),
            read_only: state.fence().map(str::to_owned),
            damages: self.damages(),
            repaired_records: self.member.as_ref().map_or(0, |member| member.repairs.records()),
        }
    }

    /// What is damaged, and why that is not repaired.
    fn damages(&self) -> Vec<DamageStatus> {
        let shown = self.log.losses().all().into_iter().take(DAMAGES_SHOWN_MAX).map(DamageStatus::from);
        let why_not = |from| self.member.as_ref().and_then(|member| member.repairs.why_not(from));
        let explained = |damage: DamageStatus| match why_not(damage.from) {
            Some(why) => DamageStatus { reason: format!("{}; not repaired: {why}", damage.reason), ..damage },
            None => damage,
        };
        shown.map(explained).collect()
    }

    /// Whether an operator moved the partition here, so that load does not move it.
    fn is_pinned(&self) -> bool {
        self.entry.borrow().is_pinned(self.id.index)
    }

    /// What the copies are to become, while they change.
    fn wanted(&self) -> Option<Replication> {
        let entry = self.entry.borrow();
        entry.former.and(entry.settings.replication)
    }

    fn only_replica(&self) -> ReplicaStatus {
        ReplicaStatus {
            replica: ReplicaId(0),
            core: Some(self.core.id),
            role: ReplicaRole::Leader,
            in_sync: true,
            damaged: self.damaged(),
            ..far(self.held.get())
        }
    }

    fn damaged(&self) -> Option<Places> {
        let losses = self.log.losses().all();
        Some(Places {
            places: losses.len() as u64,
            first_offset: losses.first()?.lost.from,
            records: Some(losses.iter().map(|loss| loss.lost.to.0 - loss.lost.from.0).sum()),
        })
    }
}

impl<R: Runtime> Member<R> {
    /// How many copies there are, and how many of them a decision takes.
    fn numbers(&self) -> Replication {
        self.look(|replica| {
            let members = replica.ballot().config.current;
            Replication {
                replication_factor: members.replicas().len(),
                write_quorum: members.write_quorum(),
                read_quorum: members.read_quorum(),
            }
        })
    }

    /// This copy, and the others if it leads.
    fn replicas(&self) -> Vec<ReplicaStatus> {
        let now = self.now();
        let leads = self.leads();
        let own = self.look(|replica| ReplicaStatus {
            replica: self.id.copy,
            core: self.home(self.id.copy),
            role: if self.is_closed() { ReplicaRole::Closed } else { replica.role().into() },
            in_sync: leads,
            damaged: self.owned().and_then(|owned| owned.damaged()),
            withheld: self.withheld.known(),
            ..far(replica.held())
        });
        let follower = |FollowerView { replica, held, in_sync, lag }| ReplicaStatus {
            replica,
            core: self.home(replica),
            in_sync,
            lag_ms: u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
            ..far(held)
        };
        let mut all = vec![own];
        if leads {
            self.look(|replica| all.extend(replica.followers(now).map(follower)));
        }
        all.sort_unstable_by_key(|replica| replica.replica);
        all
    }

    /// This copy by itself.
    pub(super) fn standing(&self) -> CopyStanding {
        let problem = self.is_closed().then(|| "it is out of service until the server is restarted".to_owned());
        self.look(|replica| {
            let ballot = replica.ballot();
            CopyStanding {
                replica: self.id.copy,
                core: self.home(self.id.copy),
                role: Some(if self.is_closed() { ReplicaRole::Closed } else { replica.role().into() }),
                is_intact: ballot.memory == Memory::Intact,
                accepted: ballot.accepted,
                start_offset: replica.log_start(),
                end_offset: replica.held().received,
                committed: ballot.committed,
                problem,
            }
        })
    }

    /// For how long the worst follower has not had all that this copy has, if it leads.
    pub(super) fn worst_lag(&self) -> Option<Duration> {
        let now = self.now();
        if self.is_closed() { None } else { self.look(|replica| replica.followers(now).map(|view| view.lag).max()) }
    }
}

/// Some follower that is so far.
fn far(held: Held) -> ReplicaStatus {
    ReplicaStatus {
        replica: ReplicaId(0),
        core: None,
        role: ReplicaRole::Follower,
        received_offset: held.received,
        written_offset: held.written,
        durable_offset: held.durable,
        in_sync: false,
        lag_ms: 0,
        damaged: None,
        withheld: None,
        problem: None,
    }
}

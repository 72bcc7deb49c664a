//! One core of the server: takes a request, feeds the partition it concerns, and carries out the partition's effects on
//! its log.
//!
//! A shard owns every copy of a partition that [`placement`] gives its core, with all their state, as plain data. What
//! concerns another core's partition goes through [`mailbox`], visibly. Core 0 also keeps the catalogue of logs
//! (`admin`). What keeps the copies of a partition one is [`crate::replication`], carried out by `member`.

mod admin;
mod adopting;
mod answering;
pub mod balancing;
mod ballot_store;
pub mod budget;
mod catalog_store;
mod changing;
pub mod completion;
mod confirming;
pub mod control;
mod describing;
mod drive;
mod exposure;
mod fetching;
mod flusher;
pub mod mailbox;
mod member;
mod moving;
pub mod muster;
mod namesake;
mod opening;
mod owned;
mod peers;
pub mod placement;
mod recovering;
mod relocating;
mod reopening;
mod repairing;
pub mod request;
mod retaining;
mod scrubbing;
pub mod stages;
pub mod trust;
mod unread;
mod withheld;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

pub use ballot_store::committed_in;
pub use catalog_store::{CatalogError, FILE_NAME as CATALOG_FILE, decode as decode_catalog};
pub use opening::{TRASH, Wiring, copy_dir, copy_named, log_dir, log_name_of, mapped_bytes, open};

use balancing::Balance;
use budget::Budget;
use completion::{CompletionQueue, ReplyTo};
use control::InUse;
use mailbox::{Mailbox, Message};
use owned::Owned;
use placement::Drives;
use request::{Outcome, Reply, Request};
use stages::Stage;
use trust::Trust;
use unread::Unread;

use crate::{
    catalog::Catalog,
    error::RequestError,
    limits::REPLICAS_MAX,
    log::{LogContext, prepare::HeavyLoad, retention::Limits, scrub::ScrubPace},
    metrics::CoreMetrics,
    replication::assignment::ReplicaId,
    runtime::Runtime,
    settings::Replication,
    signal::{Signal, Turns},
    types::{AckLevel, CoreId, PartitionId},
};

/// The core that keeps the catalogue.
const CATALOG_CORE: CoreId = CoreId(0);

/// How long a server that stops waits for other copies to have what it admitted.
const GRACE: Duration = Duration::from_secs(2);

/// How a core keeps its partitions. Amounts of memory are this core's share, not the server's.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The server's drives and the cores of each; their folders exist.
    pub drives: Drives,
    /// A segment is sealed before it would grow beyond this, in bytes.
    pub segment_bytes: u64,
    /// From which load of a partition on its segments are not filled with zeros ahead of use.
    pub heavy_load: HeavyLoad,
    /// How long a write that was acknowledged as `received` may stay in memory only. Zero: not longer than it takes.
    pub buffer_time_max: Duration,
    /// How many bytes of such writes there may be; beyond, acks wait for the device.
    pub buffer_bytes_max: usize,
    /// How long bytes that the device has taken may stay unsynced when nobody asked for `durable`.
    pub sync_interval: Duration,
    /// The ack level of writes that name none, to logs that name none.
    pub default_ack: AckLevel,
    /// Bytes of index blocks kept after reading them from the device.
    pub cache_bytes: u64,
    /// Whether sealed segments are read through mappings; they take a part of the cache's room.
    pub use_mmap: bool,
    /// Bytes of batches kept after writing them, for readers near the end of a partition.
    pub tail_bytes: usize,
    /// Bytes that requests in flight may use.
    pub budget_bytes: usize,
    /// Bytes of the drive that are kept back: with less free than this, writes are refused.
    pub reserve_bytes: u64,
    /// How sealed segments are read again.
    pub scrub: ScrubPace,
    /// What partitions keep of logs that do not say it themselves.
    pub retention: Limits,
    /// How often it is looked for what is more than that.
    pub retention_interval: Duration,
    /// The copies of logs that do not say it themselves.
    pub replication: Replication,
    /// A write or a sync of a leader that takes longer than this makes another copy lead.
    pub drive_timeout: Duration,
    /// When partitions move by themselves; `None`: never.
    pub balance: Option<Balance>,
    /// How long the copy that is to lead must have kept up before it is given leadership back.
    pub calm: Duration,
}

/// One copy of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyId {
    /// The partition.
    pub partition: PartitionId,
    /// Which of its copies.
    pub copy: ReplicaId,
}

impl CopyId {
    /// The copy of a partition that has no other.
    pub fn only(partition: PartitionId) -> Self {
        CopyId { partition, copy: ReplicaId(0) }
    }

    /// All that a partition may have.
    fn all_of(partition: PartitionId) -> std::ops::RangeInclusive<CopyId> {
        CopyId::only(partition)..=CopyId { partition, copy: ReplicaId(REPLICAS_MAX) }
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.partition, self.copy)
    }
}

/// A core's state; shared by the tasks of its core.
struct Core<R: Runtime> {
    common: Rc<Common<R>>,
    cores: usize,
    budget: Rc<Budget>,
    mailbox: Mailbox,
    catalog: RefCell<Arc<Catalog>>,
    partitions: RefCell<BTreeMap<CopyId, Slot<R>>>,
    admin: admin::Admin,
    peers: peers::Peers,
    balancer: RefCell<balancing::Balancer>,
    /// Partitions that found no room are opened one after the other.
    openings: Turns,
}

/// What a core and its partitions share. The core holds its partitions and they hold this: if they held the core, none
/// of it would ever be freed.
struct Common<R: Runtime> {
    id: CoreId,
    /// Where its drive is.
    data_dir: PathBuf,
    config: ShardConfig,
    context: Rc<LogContext<R>>,
    /// Bytes of appends that the device has not taken, of all partitions.
    unwritten_bytes: Cell<usize>,
    exposure: exposure::Exposure,
    /// No new work is accepted.
    draining: Cell<bool>,
    leaving: relocating::Leaving,
    /// What failed on this core and was not reported yet.
    drive_faults: drive::Faults,
    /// What failed on any core.
    trust: RefCell<Trust>,
}

/// A partition that this core should own.
enum Slot<R: Runtime> {
    /// It does.
    Open(Rc<Owned<R>>),
    /// Its log could not be opened, for this reason.
    Broken(RequestError),
    /// Its drive does not give what its log is to be opened with. It is tried again, or rebuilt from others.
    Unread(Rc<Unread>),
    /// Its log could not be opened for want of room. It is tried again.
    NoRoom,
    /// It does not any more: its files are shut, so that this core can open them. It is forgotten, or opened again,
    /// when the next catalogue comes.
    Released(CoreId),
}

/// A core's shard; cheap to clone, never leaves its core.
pub struct Shard<R: Runtime>(Rc<Core<R>>);

impl<R: Runtime> Clone for Shard<R> {
    fn clone(&self) -> Self {
        Shard(Rc::clone(&self.0))
    }
}

impl<R: Runtime> Shard<R> {
    /// Which core this is.
    pub fn core(&self) -> CoreId {
        self.0.common.id
    }

    /// How many cores the server has.
    pub fn cores(&self) -> usize {
        self.0.cores
    }

    /// The door to the world of this core.
    pub fn runtime(&self) -> &R {
        &self.0.common.context.runtime
    }

    /// What this core counts.
    pub fn metrics(&self) -> &Arc<CoreMetrics> {
        &self.0.common.context.metrics
    }

    /// The memory that requests in flight on this core may use.
    pub fn budget(&self) -> &Rc<Budget> {
        &self.0.budget
    }

    /// The ack level of writes that name none, to logs that name none.
    pub fn default_ack(&self) -> AckLevel {
        self.0.common.config.default_ack
    }

    /// The logs that exist, as this core knows them now.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.0.catalog.borrow())
    }

    /// The core that owns `partition`; of one with several copies that of the leader, as far as is known here.
    pub fn owner(&self, partition: PartitionId) -> CoreId {
        self.0.owner(partition)
    }

    /// Carries out `request`, here or on the core that owns what it concerns, and delivers the outcome to `reply`.
    /// Never waits.
    pub fn submit(&self, request: Request, reply: ReplyTo) {
        self.0.submit(request, reply);
    }

    /// [`Shard::submit`] for callers that want one answer.
    pub async fn call(&self, request: Request) -> Outcome {
        let queue = CompletionQueue::new();
        self.submit(request, queue.reply_to(0));
        queue.ready().await;
        match queue.pop() {
            Some((_, outcome)) => outcome,
            None => Err(RequestError::ShuttingDown),
        }
    }

    /// What this core has in use now.
    pub fn in_use(&self) -> InUse {
        let Core { common, budget, mailbox, .. } = &*self.0;
        let waiting =
            self.0.open_partitions().iter().map(|partition| partition.state.borrow().waiting()).sum::<usize>();
        let mapped = common.context.windows.used_bytes();
        InUse {
            reserved_bytes: budget.used_bytes() as u64,
            undurable_bytes: common.context.metrics.undurable_bytes.get(),
            unwritten_bytes: common.unwritten_bytes.get() as u64,
            tail_bytes: common.context.tails.kept_bytes() as u64,
            tail_bytes_max: common.config.tail_bytes as u64,
            mapped_bytes: mapped.0 as u64,
            mapped_bytes_max: mapped.1 as u64,
            waiting: waiting as u64,
            messages: mailbox.pending() as u64,
        }
    }

    /// Waits until this core knows who leads the partitions that it has copies of; two seconds at most, since nobody
    /// may.
    pub async fn settled(&self) {
        self.0.until_settled().await;
    }

    /// Refuses new work, waits until all that was accepted is durable, and closes the logs.
    pub async fn shut_down(&self) {
        self.0.common.draining.set(true);
        let all: Vec<Rc<Owned<R>>> = self.0.open_partitions();
        for partition in &all {
            partition.drain().await;
        }
        let deadline = self.runtime().monotonic() + GRACE;
        for partition in &all {
            partition.settle(deadline).await;
        }
        for member in all.iter().filter_map(|partition| partition.member.as_ref()) {
            member.keep_ballot(deadline).await;
        }
    }
}

impl<R: Runtime> Core<R> {
    fn submit(self: &Rc<Self>, request: Request, mut reply: ReplyTo) {
        reply.mark(Stage::Queue, &self.common.context.runtime);
        let owner = match &request {
            Request::Append(append) => self.owner(append.partition),
            Request::Fetch(fetch) => self.owner(fetch.partition),
            Request::FindOffset(find) => self.owner(find.partition),
            Request::Trim(trim) => self.owner(trim.partition),
            Request::Describe(partition) => self.owner(*partition),
            Request::Doing(core) | Request::Loads(core) | Request::Probe(core) => *core,
            Request::HandOver(CopyId { partition, .. })
            | Request::Spare(CopyId { partition, .. })
            | Request::Members(partition) => self.owner(*partition),
            Request::StandingOf(copy)
            | Request::DescribeCopy(copy)
            | Request::Force(copy)
            | Request::Release(copy, _) => self.home_of(*copy).unwrap_or(self.common.id),
            Request::CreateLog(_) | Request::AlterLog(_) | Request::DeleteLog(_) => CATALOG_CORE,
            Request::Recover(_) | Request::Move(_) | Request::Unpin(_) | Request::DescribeCores => CATALOG_CORE,
        };
        if owner == self.common.id {
            self.carry_out(request, reply);
        } else {
            self.common.context.metrics.hops.add(1);
            self.mailbox.pass_on(owner, request, reply);
        }
    }

    fn carry_out(self: &Rc<Self>, request: Request, reply: ReplyTo) {
        match request {
            Request::Append(append) => match self.owned(append.partition) {
                Ok(partition) => partition.append(&append, reply),
                Err(error) => reply.send(Err(error)),
            },
            Request::Fetch(fetch) => match self.owned(fetch.partition) {
                Ok(partition) => partition.fetch(fetch, reply),
                Err(error) => reply.send(Err(error)),
            },
            Request::FindOffset(find) => match self.owned(find.partition) {
                Ok(partition) => partition.find_offset(find.at, reply),
                Err(error) => reply.send(Err(error)),
            },
            Request::Trim(trim) => match self.owned(trim.partition) {
                Ok(partition) => partition.trim(trim.before, reply),
                Err(error) => reply.send(Err(error)),
            },
            Request::Describe(partition) => self.describe(partition, reply),
            Request::CreateLog(create) => self.create_log(create, reply),
            Request::AlterLog(alter) => self.alter_log(alter, reply),
            Request::DeleteLog(name) => self.delete_log(name, reply),
            Request::Recover(recover) => self.recover_partition(recover, reply),
            Request::Move(request) => self.move_partition(request, reply),
            Request::Unpin(partition) => self.unpin_partition(partition, reply),
            Request::DescribeCores => self.describe_cores(reply),
            Request::Doing(_) => reply.send(Ok(Reply::Doing(self.doing()))),
            Request::Loads(_) => self.tell_loads(reply),
            Request::Probe(_) => self.probe(reply),
            Request::HandOver(copy) => self.hand_over(copy, reply),
            Request::Members(partition) => self.tell_members(partition, reply),
            Request::Spare(copy) => self.tell_spared(copy, reply),
            Request::StandingOf(copy) => reply.send(self.standing_of(copy)),
            Request::DescribeCopy(copy) => reply.send(self.describe_copy(copy)),
            Request::Force(copy) => self.force(copy, reply),
            Request::Release(copy, to) => self.release(copy, to, reply),
        }
    }

    /// The copy of a partition that answers for it: the only one, or the one that leads.
    fn owned(&self, id: PartitionId) -> Result<Rc<Owned<R>>, RequestError> {
        if let Some(Slot::Open(owned)) = self.partitions.borrow().get(&CopyId::only(id))
            && owned.member.is_none()
        {
            return Ok(Rc::clone(owned));
        }
        if self.catalog.borrow().by_uid(id.log).is_some_and(|log| log.founding) {
            // Not before it is known that every copy was made: then one that is not there is lost.
            return Err(RequestError::PartitionOpening { partition: id });
        }
        let mut why = None;
        for (_, slot) in self.partitions.borrow().range(CopyId::all_of(id)) {
            why = Some(match slot {
                Slot::Open(owned) if owned.member.as_ref().is_none_or(|member| member.leads()) => {
                    return Ok(Rc::clone(owned));
                }
                Slot::Open(owned) => owned.not_leader(),
                Slot::Broken(error) => why.unwrap_or_else(|| error.clone()),
                Slot::Unread(_) => {
                    let leader = self.led_elsewhere(id).filter(|_| self.led_in(id).is_some());
                    why.unwrap_or(RequestError::NotLeader { partition: id, leader })
                }
                Slot::NoRoom => why.unwrap_or_else(|| self.common.disk_full()),
                Slot::Released(to) => {
                    let leader = if self.led_in(id).is_some() { self.led_elsewhere(id) } else { Some(*to) };
                    why.unwrap_or(RequestError::NotLeader { partition: id, leader })
                }
            });
        }
        let catalog = self.catalog.borrow();
        Err(match (why, catalog.by_uid(id.log)) {
            (Some(why), _) => why,
            // Its log is newer than the catalogue of this core.
            (None, None) if id.log.0 >= catalog.next_uid() => RequestError::PartitionOpening { partition: id },
            // The copy that was here, or led here, is elsewhere.
            (None, Some(log)) if id.index.0 < log.partitions => {
                RequestError::NotLeader { partition: id, leader: self.led_elsewhere(id) }
            }
            (None, _) => RequestError::UnknownPartition { partition: id },
        })
    }

    fn open_partitions(&self) -> Vec<Rc<Owned<R>>> {
        let partitions = self.partitions.borrow();
        let open = partitions.values().filter_map(|slot| match slot {
            Slot::Open(partition) => Some(Rc::clone(partition)),
            Slot::Broken(_) | Slot::Unread(_) | Slot::NoRoom | Slot::Released(_) => None,
        });
        open.collect()
    }

    /// A message from `sender`.
    fn receive(self: &Rc<Self>, sender: CoreId, message: Message) {
        match message {
            Message::Request { id, request, clock } => {
                let mut reply = ReplyTo::core(self.mailbox.outbox(sender), id).timed(clock);
                reply.mark(Stage::Hop, &self.common.context.runtime);
                self.carry_out(request, reply);
            }
            Message::Response { id, outcome } => self.mailbox.answer(id, outcome),
            Message::Catalog { id, catalog } => {
                let core = Rc::clone(self);
                self.common.context.runtime.spawn(async move {
                    let result = core.take_catalog(catalog).await;
                    core.mailbox.outbox(sender).push(Message::CatalogTaken { id, result });
                });
            }
            Message::CatalogTaken { id, result } => self.admin.taken(id, result),
            Message::Closed { copy, end } => self.common.leaving.note_closed(copy, end),
            Message::Replica { partition, from, to, message } => {
                if let Some(member) = self.copy(CopyId { partition, copy: to }).and_then(|owned| owned.member.clone()) {
                    member.receive(from, message);
                }
            }
            Message::Producers { partition, to, history } => {
                if let Some(member) = self.copy(CopyId { partition, copy: to }).and_then(|owned| owned.member.clone()) {
                    member.learn_producers(*history);
                }
            }
            Message::Suspect { partition, copy } => self.suspect(partition, copy),
            Message::Leads { partition, epoch } => self.note_leader(partition, epoch),
            Message::Pulse => self.hear_pulse(sender),
            Message::DriveFailed { sufferer, reason } => self.take_drive_fault(sufferer, &reason),
        }
    }
}

/// Waits for `signal` or for `duration`, whichever comes first.
async fn wait_at_most<R: Runtime>(runtime: &R, signal: &Signal, duration: Duration) {
    let sleep = std::pin::pin!(runtime.sleep(duration));
    let wait = std::pin::pin!(signal.wait());
    futures_util::future::select(sleep, wait).await;
}

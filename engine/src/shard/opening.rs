//! Starting a shard: reading the catalogue, recovering the partitions, and setting the tasks to work that connect it to
//! others.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use futures_util::stream::{self, StreamExt};

use super::{
    CATALOG_CORE, CatalogError, Common, CopyId, Core, Shard, ShardConfig, Slot,
    balancing::Balancer,
    budget::Budget,
    catalog_store,
    control::{ControlInbox, ControlRequest},
    drive::FULL_RETRY,
    mailbox::{Mailbox, Message},
    member::Member,
    owned::Owned,
    unread::{Looks, has_others},
};
use crate::{
    catalog::{Catalog, LogEntry},
    error::RequestError,
    limits::{DEVICE_BLOCK_BYTES_MAX, REPLICAS_MAX},
    log::{
        LogContext, LogFault,
        ahead::AheadMemory,
        cache::BlockCache,
        loaded::Loaded,
        recovery::{self, Recovered},
        removal::Reaper,
        room::Room,
        tail_memory::TailMemory,
        windows::Windows,
    },
    metrics::CoreMetrics,
    name::LogName,
    replication::assignment::ReplicaId,
    runtime::{File, Mesh, OpenMode, RingReceiver, Runtime},
    signal::Turns,
    types::{CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};

/// How many partitions are recovered side by side: enough to keep a drive busy, few enough to bound memory.
const RECOVERIES_AT_ONCE: usize = 16;

/// Where folders of deleted logs wait for their removal, in the data directory.
pub const TRASH: &str = "trash";

/// The buffer of zeros that files are filled from.
const ZERO_BYTES: usize = 1 << 20;

/// Where a shard stands among its kind, and how it is reached.
pub struct Wiring<R: Runtime> {
    /// Which core this is.
    pub core: CoreId,
    /// The rings to and from the other cores; as long as the server has cores.
    pub mesh: Mesh<R, Message>,
    /// Where the control thread asks; none in simulation.
    pub control: Option<ControlInbox>,
    /// What this core counts, shared with whoever reads it.
    pub metrics: Arc<CoreMetrics>,
}

/// Starts the shard of one core: recovers its partitions and begins to serve. Every core of a server must be opened at
/// once.
///
/// Errors: the catalogue cannot be read. A partition that cannot be opened is served as such, and does not stop the
/// others.
pub async fn open<R: Runtime>(
    runtime: R,
    mut config: ShardConfig,
    wiring: Wiring<R>,
) -> Result<Shard<R>, CatalogError> {
    let Wiring { core: id, mesh, control, metrics } = wiring;
    config.drives = config.drives.on(mesh.senders.len());
    let (catalog, _) = catalog_store::load_latest(&runtime, &config.drives).await?;
    let data_dir = config.drives.dir_of(id).to_path_buf();
    let block_bytes = probe_block(&runtime, &data_dir, id).await?;
    let context = Rc::new(LogContext {
        openings: Cell::new(0),
        cache: BlockCache::new(block_bytes_kept(&config) - window_bytes(&config)),
        windows: Windows::new(window_bytes(&config), mapped_bytes(&config) as usize),
        loaded: Loaded::new(index_bytes(&config) as usize),
        ahead: AheadMemory::new(read_ahead_bytes(&config) as usize),
        zeros: Rc::new(runtime.allocate(ZERO_BYTES)),
        block_bytes,
        segment_bytes: config.segment_bytes,
        heavy_load: config.heavy_load,
        tails: TailMemory::new(config.tail_bytes),
        room: Room::new(config.reserve_bytes),
        reaper: Reaper::default(),
        metrics: Arc::clone(&metrics),
        runtime,
    });
    let cores = mesh.senders.len();
    let budget = Budget::new(config.budget_bytes, metrics);
    let common = Rc::new(Common {
        id,
        data_dir,
        config,
        context,
        unwritten_bytes: Cell::new(0),
        exposure: Default::default(),
        draining: Cell::new(false),
        leaving: Default::default(),
        drive_faults: Default::default(),
        trust: Default::default(),
    });
    let balancer = Balancer::new(common.config.balance);
    common.look_at_drive().await;
    common.context.runtime.spawn(Rc::clone(&common).watch_drive());
    let core = Rc::new(Core {
        common,
        cores,
        budget,
        mailbox: Mailbox::new(cores),
        catalog: RefCell::new(Arc::default()),
        partitions: RefCell::default(),
        admin: Default::default(),
        peers: Default::default(),
        balancer: RefCell::new(balancer),
        openings: Turns::default(),
    });
    if id == CATALOG_CORE {
        core.throw_leftovers_away(&catalog).await;
    }
    core.open_all(Arc::new(catalog)).await;
    core.connect(mesh, control);
    core.begin_scrubbing(core.common.config.scrub);
    core.keep_retention();
    if id == CATALOG_CORE {
        core.go_on_founding();
        core.watch_changes();
        core.keep_generations();
        core.keep_balanced();
    }
    Ok(Shard(core))
}

impl<R: Runtime> Core<R> {
    async fn open_all(self: &Rc<Self>, catalog: Arc<Catalog>) {
        let mine = catalog.logs().flat_map(|entry| self.mine(entry).map(move |id| (id, Arc::clone(entry))));
        let opening = mine.map(|(id, entry)| open_partition(Rc::clone(self), id, entry));
        // A partition that fails is reported there, and answers with its error.
        stream::iter(opening).buffer_unordered(RECOVERIES_AT_ONCE).for_each(|_| std::future::ready(())).await;
        *self.catalog.borrow_mut() = catalog;
    }

    fn connect(self: &Rc<Self>, mesh: Mesh<R, Message>, control: Option<ControlInbox>) {
        let runtime = &self.common.context.runtime;
        for (peer, sender) in (0..).map(CoreId).zip(mesh.senders) {
            if let Some(ring) = sender {
                runtime.spawn(Rc::clone(self.mailbox.outbox(peer)).drain::<R>(ring));
            }
        }
        for (peer, receiver) in (0..).map(CoreId).zip(mesh.receivers) {
            let Some(ring) = receiver else { continue };
            let core = Rc::clone(self);
            runtime.spawn(async move {
                while let Some(message) = ring.recv().await {
                    core.receive(peer, message);
                }
            });
        }
        runtime.spawn(Rc::clone(self).report_drive_faults());
        if self.common.id == CATALOG_CORE {
            self.await_cores();
        }
        if let Some(inbox) = control {
            let shard = Shard(Rc::clone(self));
            runtime.spawn(async move {
                while let Ok(request) = inbox.requests.recv().await {
                    shard.answer_control(request).await;
                }
            });
        }
    }

    /// Removes logs and copies that are not in the catalogue: their deletion was cut off.
    async fn throw_leftovers_away(&self, catalog: &Catalog) {
        let runtime = &self.common.context.runtime;
        let list =
            async |dir: PathBuf| runtime.list_dir(&dir).await.unwrap_or_default().into_iter().filter(|e| e.is_dir);
        let drives = &self.common.config.drives;
        for (_, data_dir) in drives.all() {
            for namespace in list(data_dir.join("logs")).await {
                for log in list(namespace.path.clone()).await {
                    let Some(name) = log_name_of(&log.path) else { continue };
                    match catalog.by_name(&name) {
                        // A drive that is away may have a later catalogue.
                        _ if !drives.is_complete() => {}
                        None => self.throw_away(data_dir, &log.path).await,
                        Some(entry) => {
                            for dir in list(log.path.clone()).await {
                                if self.is_left_over(data_dir, entry, &dir.path).await {
                                    self.throw_away(data_dir, &dir.path).await;
                                }
                            }
                        }
                    }
                }
            }
            for log in list(data_dir.join(TRASH)).await {
                Reaper::remove(&self.common.context, log.path);
            }
        }
    }

    /// Moves the folder of a log that nobody uses any more out of the way, so that its name is free, and has it removed
    /// in the background.
    pub(super) async fn throw_away(&self, data_dir: &Path, dir: &Path) {
        if let Err(error) = self.move_away(data_dir, dir).await {
            tracing::warn!(dir = %dir.display(), %error, "files of a deleted log stay until the next start");
        }
    }

    /// The same. Durable when this returns; it is no error if the folder is gone already.
    pub(super) async fn move_away(&self, data_dir: &Path, dir: &Path) -> std::io::Result<()> {
        let runtime = &self.common.context.runtime;
        let trash = data_dir.join(TRASH);
        let place = trash.join(format!("{:016x}", runtime.random_u64()));
        let moved = async {
            runtime.create_dir_all(&trash).await?;
            runtime.rename(dir, &place).await?;
            runtime.sync_dir(&trash).await?;
            runtime.sync_dir(dir.parent().unwrap_or(dir)).await
        };
        match moved.await {
            Ok(()) => Reaper::remove(&self.common.context, place),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl<R: Runtime> Shard<R> {
    async fn answer_control(&self, request: ControlRequest) {
        match request {
            ControlRequest::Partitions(reply) => {
                let mut all: Vec<_> = self.0.open_partitions().iter().map(|partition| partition.status()).collect();
                all.extend(self.0.unread());
                let _ = reply.send(all).await;
            }
            ControlRequest::Shutdown(reply) => {
                self.shut_down().await;
                let _ = reply.send(()).await;
            }
        }
    }
}

/// Opens one partition and puts it in its place. Without room for its first files it has none yet, but is no failure:
/// it is tried again until there is.
pub(super) async fn open_partition<R: Runtime>(
    core: Rc<Core<R>>,
    id: CopyId,
    entry: Arc<LogEntry>,
) -> Result<(), RequestError> {
    match open_copy(&core, id, &entry).await {
        Ok((recovered, member)) => {
            core.place(id, (entry, member), recovered);
            Ok(())
        }
        Err(fault @ LogFault::Full { .. }) => {
            tracing::warn!(log = %entry.name, copy = %id, %fault, "the partition waits for room");
            core.partitions.borrow_mut().insert(id, Slot::NoRoom);
            core.common.context.runtime.spawn(open_when_there_is_room(Rc::clone(&core), id, entry));
            Ok(())
        }
        Err(fault) => Err(core.not_opened(id, entry, &fault)),
    }
}

impl<R: Runtime> Core<R> {
    /// Puts a copy that was opened in its place. `entry` may have changed meanwhile.
    pub(super) fn place(
        &self,
        id: CopyId,
        (entry, member): (Arc<LogEntry>, Option<Rc<Member<R>>>),
        recovered: Recovered<R>,
    ) {
        let entry = self.catalog.borrow().by_uid(id.partition.log).map_or(entry, Arc::clone);
        self.common.leaving.closed.borrow_mut().remove(&id);
        let owned = Owned::new(&self.common, id.partition, (entry, member), recovered);
        self.partitions.borrow_mut().insert(id, Slot::Open(owned));
    }

    /// A copy could not be opened. It stays like that, unless it has others, and its drive only does not give it now.
    fn not_opened(self: &Rc<Self>, id: CopyId, entry: Arc<LogEntry>, fault: &LogFault) -> RequestError {
        let error = cannot_open(self, id, &entry, fault);
        if matches!(fault, LogFault::Unread { .. }) && has_others(&entry) {
            let looks = Looks::at_opening(self.common.context.runtime.monotonic());
            self.leave_unread((id, entry), error.clone(), looks);
        } else {
            self.partitions.borrow_mut().insert(id, Slot::Broken(error.clone()));
        }
        error
    }

    /// Opens the log of a copy, which was durable up to `end` when this process closed it (0: it did not).
    pub(super) async fn recover(&self, id: CopyId, entry: &LogEntry, end: Offset) -> Result<Recovered<R>, LogFault> {
        let Common { context, data_dir, .. } = &*self.common;
        let dir = copy_dir(data_dir, &entry.name, id);
        let made = make_durable_dir(&context.runtime, data_dir, &dir).await;
        made.map_err(|error| LogFault::from_io("creating", &dir, &error))?;
        match entry.replication() {
            Some(_) => recovery::open_replica(context, id.partition, (dir, end)).await,
            None => recovery::open_again(context, id.partition, (dir, end)).await,
        }
    }
}

pub(super) async fn open_copy<R: Runtime>(
    core: &Rc<Core<R>>,
    id: CopyId,
    entry: &LogEntry,
) -> Result<(Recovered<R>, Option<Rc<Member<R>>>), LogFault> {
    let end = core.common.leaving.closed.borrow().get(&id).copied().unwrap_or_default();
    let recovered = core.recover_own(id, entry, end).await?;
    let Some(config) = entry.configuration() else { return Ok((recovered, None)) };
    let dir = copy_dir(&core.common.data_dir, &entry.name, id);
    let member = Member::open(core, id, (dir, &recovered), (config, entry.founding)).await?;
    core.begin_to_keep_time();
    Ok((recovered, Some(member)))
}

pub(super) fn cannot_open<R: Runtime>(core: &Core<R>, id: CopyId, entry: &LogEntry, fault: &LogFault) -> RequestError {
    tracing::error!(log = %entry.name, copy = %id, %fault, "the partition could not be opened");
    let file = copy_dir(&core.common.data_dir, &entry.name, id);
    let nothing = Offset(0);
    RequestError::ReadFailed { file, position: 0, from: nothing, to: nothing, reason: fault.to_string() }
}

/// Opens a partition that found no room, as soon as there is some; unless its log is deleted before. In turn: a
/// deletion waits until nothing is created in the log's folder any more.
async fn open_when_there_is_room<R: Runtime>(core: Rc<Core<R>>, id: CopyId, entry: Arc<LogEntry>) {
    let waits = || matches!(core.partitions.borrow().get(&id), Some(Slot::NoRoom));
    loop {
        core.common.context.runtime.sleep(FULL_RETRY).await;
        let _turn = core.openings.take().await;
        if !waits() || core.common.draining.get() {
            return;
        }
        let entry = core.catalog.borrow().by_uid(id.partition.log).map_or_else(|| Arc::clone(&entry), Arc::clone);
        match open_copy(&core, id, &entry).await {
            Err(LogFault::Full { .. }) => continue,
            Ok((recovered, member)) if waits() => {
                tracing::warn!(log = %entry.name, copy = %id, "the partition has found room");
                core.place(id, (entry, member), recovered);
            }
            Err(fault) if waits() => drop(core.not_opened(id, entry, &fault)),
            // Deleted meanwhile.
            Ok(_) | Err(_) => {}
        }
        return;
    }
}

/// Creates `dir` below `data_dir` and makes every name on the way to it durable. Also those that were there already: an
/// earlier life may have been killed, or another partition's opening may be under way, between the making of a name and
/// its sync.
pub(super) async fn make_durable_dir<R: Runtime>(runtime: &R, data_dir: &Path, dir: &Path) -> std::io::Result<()> {
    runtime.create_dir_all(dir).await?;
    for parent in dir.ancestors().skip(1).take_while(|parent| parent.starts_with(data_dir)) {
        runtime.sync_dir(parent).await?;
    }
    Ok(())
}

/// The folder of a copy: the number of the partition, and the copy's if it is not the first.
pub fn copy_dir(data_dir: &Path, name: &LogName, id: CopyId) -> PathBuf {
    log_dir(data_dir, name).join(copy_name(id))
}

/// The copy whose folder has this name.
pub fn copy_named(name: &str) -> Option<(PartitionIndex, ReplicaId)> {
    let (index, copy) = name.split_once('.').unwrap_or((name, "0"));
    let found =
        (PartitionIndex(index.parse().ok()?), ReplicaId(copy.parse().ok().filter(|copy| *copy < REPLICAS_MAX)?));
    // There is one way to write it.
    let partition = PartitionId { log: LogUid(0), index: found.0 };
    copy_name(CopyId { partition, copy: found.1 }).eq(name).then_some(found)
}

fn copy_name(CopyId { partition, copy }: CopyId) -> String {
    if copy == ReplicaId(0) { partition.index.to_string() } else { format!("{}.{copy}", partition.index) }
}

/// The folder of a log.
pub fn log_dir(data_dir: &Path, name: &LogName) -> PathBuf {
    data_dir.join("logs").join(name.namespace()).join(name.name())
}

/// The name of the log whose folder this is.
pub fn log_name_of(dir: &Path) -> Option<LogName> {
    let (namespace, name) = (dir.parent()?.file_name()?.to_str()?, dir.file_name()?.to_str()?);
    format!("{namespace}/{name}").parse().ok()
}

/// The part of a core's cache that is for what is read ahead: enough for four readers at full speed, and a quarter
/// where there is little.
fn read_ahead_bytes(config: &ShardConfig) -> u64 {
    const ENOUGH: u64 = 32 << 20;
    (config.cache_bytes / 4).min(ENOUGH)
}

/// The part of a core's cache that is for the indexes of sealed segments: those of 40 segments of 256 MiB at most.
fn index_bytes(config: &ShardConfig) -> u64 {
    const ENOUGH: u64 = 16 << 20;
    (config.cache_bytes / 8).min(ENOUGH)
}

/// The part of a core's cache that is for blocks of segments, in memory of the core's own or mapped.
fn block_bytes_kept(config: &ShardConfig) -> u64 {
    config.cache_bytes - read_ahead_bytes(config) - index_bytes(config)
}

/// The part of that for windows of sealed segments. The rest is for the active ones, and for what cannot be mapped.
fn window_bytes(config: &ShardConfig) -> u64 {
    if config.use_mmap { block_bytes_kept(config) / 4 * 3 } else { 0 }
}

/// How many bytes of sealed segments a core may have mapped, and locked in memory, at once: its windows, and what it
/// reads ahead. All within `cache_bytes`.
pub fn mapped_bytes(config: &ShardConfig) -> u64 {
    if config.use_mmap { window_bytes(config) + read_ahead_bytes(config) } else { 0 }
}

/// The device's logical block, asked of a file that is removed again: an empty directory has none to ask. Without room
/// for it the catalogue is asked; where there is none there are no segments, and the largest block will do.
async fn probe_block<R: Runtime>(runtime: &R, data_dir: &Path, core: CoreId) -> Result<u32, CatalogError> {
    let path = data_dir.join(format!(".probe-{core}"));
    let block = match runtime.open(&path, OpenMode::CreateTruncate).await {
        Ok(file) => file.alignment().clamp(512, DEVICE_BLOCK_BYTES_MAX),
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            let catalog = runtime.open(&data_dir.join(catalog_store::FILE_NAME), OpenMode::Existing).await;
            let block = catalog.map_or(DEVICE_BLOCK_BYTES_MAX, |file| file.alignment());
            return Ok(block.clamp(512, DEVICE_BLOCK_BYTES_MAX) as u32);
        }
        Err(error) => return Err(CatalogError::Io { path, reason: error.to_string() }),
    };
    let _ = runtime.remove_file(&path).await;
    Ok(block as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folders_name_says_which_copy_it_is_and_each_copy_has_one_name() {
        for (index, copy) in [(0, 0), (7, 0), (0, 1), (1023, 7)] {
            let partition = PartitionId { log: LogUid(3), index: PartitionIndex(index) };
            let name = copy_name(CopyId { partition, copy: ReplicaId(copy) });
            assert_eq!(copy_named(&name), Some((PartitionIndex(index), ReplicaId(copy))), "{name}");
        }
        for name in ["", "a", "0.0", "00", "0.8", "0.1.2", "1.", ".1", "+1", "0.01"] {
            assert_eq!(copy_named(name), None, "{name}");
        }
    }
}

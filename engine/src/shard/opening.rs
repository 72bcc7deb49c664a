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
    CATALOG_CORE, CatalogError, Common, Core, Shard, ShardConfig, Slot,
    budget::Budget,
    catalog_store,
    control::{ControlInbox, ControlRequest},
    mailbox::{Mailbox, Message},
    owned::Owned,
    placement,
};
use crate::{
    catalog::{Catalog, LogEntry},
    error::RequestError,
    limits::DEVICE_BLOCK_BYTES_MAX,
    log::{LogContext, cache::BlockCache, delete_files, recovery, tail_memory::TailMemory},
    metrics::CoreMetrics,
    name::LogName,
    runtime::{File, Mesh, OpenMode, RingReceiver, Runtime},
    types::{CoreId, PartitionId},
};

/// How many partitions are recovered side by side: enough to keep a drive busy, few enough to bound memory.
const RECOVERIES_AT_ONCE: usize = 16;

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
pub async fn open<R: Runtime>(runtime: R, config: ShardConfig, wiring: Wiring<R>) -> Result<Shard<R>, CatalogError> {
    let Wiring { core: id, mesh, control, metrics } = wiring;
    let catalog = catalog_store::load(&runtime, &config.data_dir).await?;
    let block_bytes = probe_block(&runtime, &config.data_dir, id).await?;
    let context = Rc::new(LogContext {
        cache: BlockCache::new(config.cache_bytes),
        zeros: Rc::new(runtime.allocate(ZERO_BYTES)),
        block_bytes,
        segment_bytes: config.segment_bytes,
        tails: TailMemory::new(config.tail_bytes),
        metrics: Arc::clone(&metrics),
        runtime,
    });
    let cores = mesh.senders.len();
    let budget = Budget::new(config.budget_bytes, metrics);
    let common = Common { id, config, context, unwritten_bytes: Cell::new(0), draining: Cell::new(false) };
    let core = Rc::new(Core {
        common: Rc::new(common),
        cores,
        budget,
        mailbox: Mailbox::new(cores),
        catalog: RefCell::new(Arc::default()),
        partitions: RefCell::default(),
        admin: Default::default(),
    });
    if id == CATALOG_CORE {
        core.remove_leftovers(&catalog).await;
    }
    core.open_all(Arc::new(catalog)).await;
    core.connect(mesh, control);
    Ok(Shard(core))
}

impl<R: Runtime> Core<R> {
    async fn open_all(self: &Rc<Self>, catalog: Arc<Catalog>) {
        let mine = catalog.logs().flat_map(|entry| {
            let owned = move |p: &PartitionId| placement::owner(*p, self.cores) == self.common.id;
            entry.partition_ids().filter(owned).map(move |p| (p, Arc::clone(entry)))
        });
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
        if let Some(inbox) = control {
            let shard = Shard(Rc::clone(self));
            runtime.spawn(async move {
                while let Ok(request) = inbox.requests.recv().await {
                    shard.answer_control(request).await;
                }
            });
        }
    }

    /// Removes files of logs that are not in the catalogue: their deletion was cut off.
    async fn remove_leftovers(&self, catalog: &Catalog) {
        let runtime = &self.common.context.runtime;
        let list =
            async |dir: PathBuf| runtime.list_dir(&dir).await.unwrap_or_default().into_iter().filter(|e| e.is_dir);
        for namespace in list(self.common.config.data_dir.join("logs")).await {
            for log in list(namespace.path.clone()).await {
                let name = log_name_of(&log.path);
                if name.is_none_or(|name| catalog.by_name(&name).is_some()) {
                    continue;
                }
                for partition in list(log.path.clone()).await {
                    if let Err(error) = delete_files(runtime, &partition.path).await {
                        tracing::warn!(dir = %partition.path.display(), %error, "leftovers of a deleted log stay");
                    }
                }
                let _ = runtime.remove_dir(&log.path).await;
            }
        }
    }
}

impl<R: Runtime> Shard<R> {
    async fn answer_control(&self, request: ControlRequest) {
        match request {
            ControlRequest::Partitions(reply) => {
                let all = self.0.open_partitions().iter().map(|partition| partition.status()).collect();
                let _ = reply.send(all).await;
            }
            ControlRequest::Shutdown(reply) => {
                self.shut_down().await;
                let _ = reply.send(()).await;
            }
        }
    }
}

/// Opens one partition and puts it in its place.
pub(super) async fn open_partition<R: Runtime>(
    core: Rc<Core<R>>,
    id: PartitionId,
    entry: Arc<LogEntry>,
) -> Result<(), RequestError> {
    let dir = log_dir(&core.common.config.data_dir, &entry.name).join(id.index.to_string());
    let made = make_durable_dir(&core.common.context.runtime, &core.common.config.data_dir, &dir).await;
    let opened = match made {
        Ok(()) => recovery::open(&core.common.context, id, dir.clone()).await.map_err(|fault| fault.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let (slot, result) = match opened {
        Ok(recovered) => (Slot::Open(Owned::new(&core.common, id, entry, recovered)), Ok(())),
        Err(reason) => {
            tracing::error!(log = %entry.name, partition = %id.index, reason, "the partition could not be opened");
            let error = RequestError::ReadFailed { file: dir, reason };
            (Slot::Broken(error.clone()), Err(error))
        }
    };
    core.partitions.borrow_mut().insert(id, slot);
    result
}

/// Creates `dir` below `data_dir` and makes every name on the way to it durable. Also those that were there already: an
/// earlier life may have been killed, or another partition's opening may be under way, between the making of a name and
/// its sync.
async fn make_durable_dir<R: Runtime>(runtime: &R, data_dir: &Path, dir: &Path) -> std::io::Result<()> {
    runtime.create_dir_all(dir).await?;
    for parent in dir.ancestors().skip(1).take_while(|parent| parent.starts_with(data_dir)) {
        runtime.sync_dir(parent).await?;
    }
    Ok(())
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

/// The device's logical block, asked of a file that is removed again: an empty directory has none to ask.
async fn probe_block<R: Runtime>(runtime: &R, data_dir: &Path, core: CoreId) -> Result<u32, CatalogError> {
    let path = data_dir.join(format!(".probe-{core}"));
    let opened = runtime.open(&path, OpenMode::CreateTruncate).await;
    let file = opened.map_err(|error| CatalogError::Io { path: path.clone(), reason: error.to_string() })?;
    let block = file.alignment().clamp(512, DEVICE_BLOCK_BYTES_MAX);
    drop(file);
    let _ = runtime.remove_file(&path).await;
    Ok(block as u32)
}

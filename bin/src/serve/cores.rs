//! The cores: each is an executor with a shard and an endpoint on it. Starts them, hands out what the control thread
//! needs of them, and stops them in good order.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_channel::{Receiver, Sender};
use pyralog_engine::{
    limits::{REPLICAS_MAX, REPLICATION_WINDOW_BYTES},
    log::{prepare::HeavyLoad, retention::Limits, scrub::ScrubPace},
    metrics::CoreMetrics,
    runtime::glommio::{CoreThread, GlommioRuntime, LaunchOptions, MeshSeat, launch, mesh, try_lock},
    settings::Replication,
    shard::{
        self, ShardConfig, Wiring,
        balancing::Balance,
        control::{ControlHandle, control_channel},
        mailbox::Message,
        placement::Drives,
    },
    types::{AckLevel, CoreId},
};
use pyralog_net::{
    quic_on_glommio::ForwardingSeat,
    server::{self, ServerCore, ServerIdentity, ServerInfo, ServerLimits, ServerSockets},
};
use pyralog_tuning::{
    Ack, Config,
    copies::{COPIES_MAX, Copies},
    memory::{self, Plan},
};

use super::{ServeError, drives::drive_of_core};

const _: () = assert!(COPIES_MAX == REPLICAS_MAX as u64, "the configuration allows what the engine can do");

/// Messages that may wait in the ring from one core to another. A burst beyond that waits in the sender's own queue.
const MAILBOX_MESSAGES: usize = 1024;

/// How long a copy that is to lead must have kept up before it leads again: longer than it takes to see whether its
/// core or its drive fails again at once.
const CALM: Duration = Duration::from_secs(10);

/// How long nothing is moved by itself after such a move. Connections follow within seconds; the rest is for what was
/// moved to show whether it helped.
const BALANCE_PAUSE: Duration = Duration::from_secs(60);

/// The part of a core's read cache that is for the newest batches of its partitions, as a divisor: they stay after they
/// were written. The rest is for what was read from the drive.
const TAIL_SHARE: u64 = 4;

/// The cores, as the control thread sees them.
#[derive(Clone)]
pub struct Cores {
    /// The CPUs, by core.
    pub cpus: Vec<usize>,
    /// By core.
    pub controls: Vec<ControlHandle>,
    /// By core.
    pub metrics: Vec<Arc<CoreMetrics>>,
}

/// The running cores' other ends.
pub struct Running {
    /// What each core says: once when it serves, and once if it cannot.
    pub reports: Receiver<Result<CoreId, String>>,
    /// Closed to stop all cores.
    stop: Sender<()>,
    threads: Vec<CoreThread<Result<(), String>>>,
    /// Kept until every core has ended: the order of the sockets is the order of the cores.
    _sockets: ServerSockets,
}

/// What is the same on every core.
#[derive(Clone)]
pub struct Common {
    /// Of each shard, but for what follows.
    pub shard: ShardConfig,
    /// Bytes that are kept back on each drive.
    pub reserves: Vec<u64>,
    /// Of each endpoint.
    pub limits: ServerLimits,
    /// The certificate.
    pub identity: ServerIdentity,
    /// What the server says of itself.
    pub info: Arc<ServerInfo>,
    /// How long a core looks for work before it sleeps.
    pub spin_before_park: Duration,
}

/// What one core takes with it.
struct Luggage {
    mailbox: MeshSeat<Message>,
    forwarding: ForwardingSeat,
    socket: std::net::UdpSocket,
    control: shard::control::ControlInbox,
    metrics: Arc<CoreMetrics>,
}

/// The shard's settings that follow from the configuration; drives and reserve are those of the first directory.
pub fn shard_config(config: &Config, plan: &Plan, cores: u64, ack: Ack) -> ShardConfig {
    let cache = &config.storage.cache_config;
    // Without the cache nothing is kept back: what is only `received` goes to the drive as soon as it is free.
    let buffer_time_max =
        if cache.enabled { Duration::from_millis(cache.max_buffer_time_ms.0) } else { Duration::ZERO };
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let retention = &config.storage.retention;
    let tail_bytes = plan.read_cache_bytes_per_core / TAIL_SHARE;
    ShardConfig {
        drives: Drives::single(config.server.data_dir.paths().first().map_or(Path::new(""), PathBuf::as_path)),
        segment_bytes: config.storage.segment_config.max_size.0,
        heavy_load: HeavyLoad::default(),
        buffer_time_max,
        buffer_bytes_max: bytes(cache.max_size.0 / cores),
        sync_interval: Duration::from_millis(config.storage.sync_interval_ms.0),
        scrub: ScrubPace {
            bytes_per_second: config.storage.scrub.bytes_per_second.0.div_ceil(cores),
            period: Duration::from_millis(config.storage.scrub.period_ms.0),
        },
        default_ack: ack_level(ack),
        cache_bytes: plan.read_cache_bytes_per_core - tail_bytes,
        use_mmap: config.storage.segment_config.use_mmap,
        tail_bytes: bytes(tail_bytes),
        budget_bytes: bytes(plan.requests_bytes_per_core),
        reserve_bytes: config.storage.reserve_bytes.0,
        retention: Limits {
            age_ms: retention.max_age_ms.map(|age| age.0),
            bytes: retention.max_size.map(|size| size.0),
        },
        retention_interval: Duration::from_millis(retention.check_interval_ms.0),
        replication: replication(config),
        drive_timeout: Duration::from_millis(config.storage.drive_timeout_ms.0),
        calm: CALM,
        balance: balance(config),
    }
}

/// When partitions move by themselves.
fn balance(config: &Config) -> Option<Balance> {
    let balancing = &config.balancing;
    // The table of keys allows no more.
    let percent = |percent: u64| u8::try_from(percent).unwrap_or(100);
    balancing.enabled.then(|| Balance {
        busy_percent: percent(balancing.busy_percent),
        difference_percent: percent(balancing.difference_percent),
        period: Duration::from_millis(balancing.period_ms.0),
        pause: BALANCE_PAUSE,
    })
}

/// The copies of logs that do not say it themselves.
fn replication(config: &Config) -> Replication {
    let Copies { factor, write, read } = config.copies();
    // The table of keys allows no more.
    let number = |number: u64| u8::try_from(number).unwrap_or(REPLICAS_MAX);
    Replication { replication_factor: number(factor), write_quorum: number(write), read_quorum: number(read) }
}

/// What each core needs besides what is shared out: its executor's, and with several copies the windows of what a
/// leader sends and of what a follower was sent. What is in them is what clients have just sent, so one window each is
/// enough for all partitions together, but for those that catch up.
pub fn overhead_bytes_per_core(config: &Config) -> u64 {
    let windows = if config.copies().factor > 1 { 2 * REPLICATION_WINDOW_BYTES } else { 0 };
    memory::CORE_OVERHEAD_BYTES + windows
}

/// Lets the cores read with direct I/O only, should the system not let them map as much as they may want to. Then says
/// why.
pub fn settle_mappings(config: &mut Config, plan: &Plan, cores: u64, ack: Ack) -> Option<String> {
    let wanted = cores * shard::mapped_bytes(&shard_config(config, plan, cores, ack));
    if !config.storage.segment_config.use_mmap {
        return None;
    }
    let error = try_lock(wanted).err()?;
    config.storage.segment_config.use_mmap = false;
    Some(format!("sealed segments are read with direct I/O, as if storage.segment_config.use_mmap were false: {error}"))
}

/// The endpoints' settings that follow from the configuration.
pub fn server_limits(config: &Config, plan: &Plan) -> ServerLimits {
    let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let connections_max = count(plan.connections_per_core);
    ServerLimits {
        connections_max,
        connections_per_ip_max: count(config.network.connections_per_ip).min(connections_max),
        connections_per_loopback_ip_max: connections_max,
        quic_memory_bytes: plan.network_bytes_per_core,
        ..ServerLimits::default()
    }
}

/// The engine's word for a configured level.
pub fn ack_level(ack: Ack) -> AckLevel {
    match ack {
        Ack::Received => AckLevel::Received,
        Ack::Written => AckLevel::Written,
        Ack::Durable => AckLevel::Durable,
        Ack::Quorum => AckLevel::Quorum,
    }
}

/// Starts a core on each of `cpus`. They serve when each has reported.
///
/// Errors: the host's, and a drive that fails its self-test.
pub fn start(cpus: &[usize], common: Common, mut sockets: ServerSockets) -> Result<(Cores, Running), ServeError> {
    let count = cpus.len();
    let (report, reports) = async_channel::bounded(2 * count);
    let (stop, stopped) = async_channel::bounded(1);
    let (mut controls, mut metrics) = (Vec::new(), Vec::new());
    let mut luggage = Vec::new();
    let mailboxes = mesh(count, MAILBOX_MESSAGES);
    for (index, (mailbox, forwarding)) in mailboxes.into_iter().zip(server::forwarding(count)).enumerate() {
        let (handle, control) = control_channel();
        let own: Arc<CoreMetrics> = Arc::default();
        // There is a socket for each core.
        let Some(socket) = sockets.take(CoreId(index as u16)) else { continue };
        controls.push(handle);
        metrics.push(Arc::clone(&own));
        luggage.push(std::sync::Mutex::new(Some(Luggage { mailbox, forwarding, socket, control, metrics: own })));
    }
    // Every core takes its own luggage out of this by its number; the closure is the same for all.
    let luggage = Arc::new(luggage);
    let options = LaunchOptions {
        data_dirs: common.shard.drives.all().map(|(_, dir)| dir.to_path_buf()).collect(),
        spin_before_park: common.spin_before_park,
        ..LaunchOptions::default()
    };
    let threads = launch(cpus, &options, move |core, runtime| {
        let (common, report, stopped, luggage) =
            (common.clone(), report.clone(), stopped.clone(), Arc::clone(&luggage));
        async move {
            let own = luggage.get(usize::from(core.0)).and_then(|own| own.lock().ok()?.take());
            let Some(own) = own else { return Err(format!("core {core} has no socket")) };
            let outcome = run_core(runtime, core, common, own, (&report, stopped)).await;
            if let Err(reason) = &outcome {
                let _ = report.send(Err(reason.clone())).await;
            }
            outcome
        }
    })?;
    let cores = Cores { cpus: cpus.to_vec(), controls, metrics };
    Ok((cores, Running { reports, stop, threads, _sockets: sockets }))
}

/// The life of one core.
async fn run_core(
    runtime: GlommioRuntime,
    core: CoreId,
    common: Common,
    own: Luggage,
    (report, stopped): (&Sender<Result<CoreId, String>>, Receiver<()>),
) -> Result<(), String> {
    let Luggage { mailbox, forwarding: seat, socket, control, metrics } = own;
    let wiring = Wiring { core, mesh: mailbox.connect(&runtime).await, control: Some(control), metrics };
    let mut config = common.shard;
    config.reserve_bytes = common.reserves[drive_of_core(core, common.reserves.len())];
    let shard = shard::open(runtime, config, wiring).await.map_err(|error| error.to_string())?;
    let parts = ServerCore {
        shard: shard.clone(),
        socket,
        seat,
        identity: common.identity,
        limits: common.limits,
        info: common.info,
    };
    let server = server::serve_core(parts).await.map_err(|error| format!("core {core} cannot serve: {error}"))?;
    shard.settled().await;
    let _ = report.send(Ok(core)).await;
    // Ends when the control thread drops its end.
    let _ = stopped.recv().await;
    server.drain().await;
    shard.shut_down().await;
    Ok(())
}

impl Running {
    /// Stops all cores: they acknowledge what they accepted, refuse the rest, and flush. Blocks until they have ended.
    ///
    /// Errors: a core's own words.
    pub fn stop(self) -> Result<(), String> {
        self.stop.close();
        let mut outcome = Ok(());
        for thread in self.threads {
            let ended = thread.join().and_then(|ended| ended);
            outcome = outcome.and(ended);
        }
        outcome
    }
}

//! The server as a process: checks what can be checked, starts the cores, opens the operator's window, waits for a
//! signal, and stops in good order. Everything that can be refused is refused before a core runs.

mod cores;
pub mod data_dir;
mod drives;
mod http;
mod partitions;
mod prometheus;
mod sampler;

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use pyralog_engine::runtime::start::StartError;
use pyralog_net::{
    fingerprint,
    server::{BindError, CertificateError, LimitsError, ServerIdentity, ServerInfo, ServerSockets},
};
use pyralog_tuning::{
    Config, ConfigError, Promise, Settings,
    cores::CoresError,
    host::{Host, HostError},
    memory::{Demand, MemoryError, Plan, Wish},
    units::about,
};
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

use cores::{Common, Cores, Running};
use drives::{DriveView, DrivesError, Ground, ServerDrives};
use http::Window;

use crate::output::say;

/// Why the server did not start, or did not end well.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The configuration, on this machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--cores`.
    #[error(transparent)]
    Cores(#[from] CoresError),
    /// The machine.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The data directories.
    #[error(transparent)]
    Drives(#[from] DrivesError),
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The UDP port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The limits of connections.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The TCP port.
    #[error("the HTTP address {address} cannot be used: {}", http_reason(source))]
    Http {
        /// What was asked for.
        address: SocketAddr,
        /// The operating system's words.
        source: io::Error,
    },
    /// The cores.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A core, after it had started.
    #[error("{reason}")]
    Core {
        /// Its words.
        reason: String,
    },
    /// The control thread.
    #[error("the control thread cannot start: {0}")]
    Control(io::Error),
    /// The time for stopping is over, or the operator is impatient.
    #[error("stopped before everything was flushed: {reason}")]
    Hurried {
        /// Which.
        reason: &'static str,
    },
}

fn http_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; choose another one with --http".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

/// What was found out before anything was started.
struct Prepared {
    config: Config,
    promise: Promise,
    warnings: Vec<String>,
    host: Host,
    cpus: Vec<usize>,
    plan: Plan,
    drives: ServerDrives,
    identity: ServerIdentity,
    sockets: ServerSockets,
    http: TcpListener,
}

/// Serves until SIGTERM or SIGINT.
///
/// Errors: see [`ServeError`].
pub fn run(settings: &Settings) -> Result<(), ServeError> {
    log_to_stderr();
    let prepared = prepare(settings)?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Control)?;
    let outcome = control.block_on(serve(prepared));
    // A page being read must not keep the process.
    control.shutdown_timeout(Duration::from_millis(100));
    outcome
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DLOG_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // Fails only if there is one already. When nobody reads it, it must not say so on the same stderr and panic.
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false).try_init();
}

fn prepare(settings: &Settings) -> Result<Prepared, ServeError> {
    let host = Host::probe()?;
    let cpus = pyralog_tuning::cores::parse(&settings.config().server.cores)?.choose(&host.cpus)?;
    let settings = &settings.clone().on_cores(cpus.len())?;
    let (mut config, mut warnings) = (settings.config().clone(), settings.warnings());
    if let Some(cpu) = pyralog_tuning::cores::shared(&cpus) {
        warnings.push(format!("CPU {cpu} has several cores of this server, which take turns on it"));
    }
    let ground = Ground::survey(settings)?;
    let grounds = ground.warnings(config.server.data_dir.paths());
    grounds.iter().for_each(|warning| tracing::warn!("{warning}"));
    warnings.extend(grounds);
    config.storage.reserve_bytes.0 = ground.largest_reserve_bytes();
    let plan = demand(settings, cpus.len() as u64).plan(host.memory_bytes)?;
    warnings.extend(cores::settle_mappings(&mut config, &plan, cpus.len() as u64, settings.promise().ack));
    cores::server_limits(&config, &plan).validate()?;
    let drives = ServerDrives::open(config.server.data_dir.paths(), ground, cpus.first().copied().unwrap_or(0))?;
    config.server.data_dir = drives.dirs().try_into().unwrap_or(config.server.data_dir);
    let became = drives.warnings();
    became.iter().for_each(|warning| tracing::warn!("{warning}"));
    warnings.extend(became);
    let identity = ServerIdentity::load_or_create_in(&drives.dirs())?;
    let sockets = bind_when_free(config.server.listen, cpus.len())?;
    let address = config.server.http;
    let http = TcpListener::bind(address).map_err(|source| ServeError::Http { address, source })?;
    http.set_nonblocking(true).map_err(|source| ServeError::Http { address, source })?;
    warnings.extend(sockets.warnings().iter().cloned());
    for (what, address) in [("the server", config.server.listen), ("the status pages", config.server.http)] {
        if !address.ip().is_loopback() {
            warnings.push(format!(
                "{address} is reachable from other machines, and there is no authentication yet: \
                 anyone there may use {what}"
            ));
        }
    }
    if let Err(error) = fingerprint::publish(sockets.local_addr(), identity.fingerprint()) {
        warnings.push(format!(
            "clients of this machine will not recognise the server by themselves and need --fingerprint: {error}"
        ));
    }
    let promise = settings.promise();
    Ok(Prepared { config, promise, warnings, host, cpus, plan, drives, identity, sockets, http })
}

fn demand(settings: &Settings, cores: u64) -> Demand {
    let config = settings.config();
    let wish = |path: &str, bytes: u64| Wish { bytes, is_explicit: settings.origin(path).is_explicit() };
    Demand {
        cores,
        overhead_bytes_per_core: cores::overhead_bytes_per_core(config),
        connections_per_core: wish("network.connections_per_core", config.network.connections_per_core),
        requests: wish("memory.requests", config.memory.requests.0),
        read_cache: wish("memory.read_cache", config.memory.read_cache.0),
        network: wish("memory.network", config.memory.network.0),
    }
}

async fn serve(prepared: Prepared) -> Result<(), ServeError> {
    // Before the cores start, so that a signal during recovery is not lost.
    let mut signals = Signals::new().map_err(ServeError::Control)?;
    print_start(&prepared);
    let Prepared { config, promise, warnings, cpus, plan, drives, identity, sockets, http, .. } = prepared;
    let info = Arc::new(ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        profile: config.profile.name().to_owned(),
        ack: cores::ack_level(promise.ack),
        guarantee: promise.guarantee.clone(),
        copies: promise.copies.clone(),
        config: serde_json::to_value(&config).unwrap_or_default(),
    });
    let mut shard = cores::shard_config(&config, &plan, cpus.len() as u64, promise.ack);
    shard.drives = drives.drives().clone();
    let common = Common {
        shard,
        reserves: drives.views().iter().map(|view| view.reserve_bytes).collect(),
        limits: cores::server_limits(&config, &plan),
        identity: identity.clone(),
        info: Arc::clone(&info),
        spin_before_park: Duration::from_micros(config.spin_before_park_us()),
    };
    let listen = sockets.local_addr();
    let (cores, running) = cores::start(&cpus, common, sockets)?;
    all_ready(&running, cpus.len()).await?;
    let http = tokio::net::TcpListener::from_std(http).map_err(ServeError::Control)?;
    let window = Arc::new(Window {
        cold: http::install_recorder(&info.version),
        cores,
        drives: drives.views().to_vec(),
        warnings,
        info,
        listen,
        http: http.local_addr().map_err(ServeError::Control)?,
        fingerprint: identity.fingerprint().to_string(),
        started: Instant::now(),
        draining: AtomicBool::new(false),
        sampler: Mutex::default(),
    });
    say!("ready  clients: udp {listen}  status: http://{}  certificate: {}", window.http, window.fingerprint);
    let _ = io::stdout().flush();
    tokio::spawn(axum::serve(http, http::router(Arc::clone(&window))).into_future());
    tokio::spawn(sample(window.cores.clone(), Arc::clone(&window)));
    let outcome = until_stopped(&mut signals, running, &window, config.server.drain_time_ms.0).await;
    // Locked until the last byte is written.
    drop(drives);
    outcome
}

/// Waits until every core serves.
async fn all_ready(running: &Running, cores: usize) -> Result<(), ServeError> {
    for _ in 0..cores {
        match running.reports.recv().await {
            Ok(Ok(_)) => {}
            Ok(Err(reason)) => return Err(ServeError::Core { reason }),
            Err(async_channel::RecvError) => return Err(ServeError::Core { reason: "a core ended".to_owned() }),
        }
    }
    Ok(())
}

async fn sample(cores: Cores, window: Arc<Window>) {
    let mut ticks = tokio::time::interval(sampler::INTERVAL);
    loop {
        ticks.tick().await;
        http::lock(&window.sampler).take(&cores.metrics);
    }
}

/// Waits for a signal, then stops the cores; a second signal, or too long a wait, ends it at once.
async fn until_stopped(
    signals: &mut Signals,
    running: Running,
    window: &Window,
    drain_time_ms: u64,
) -> Result<(), ServeError> {
    tokio::select! {
        () = signals.next() => {}
        // A core that ends by itself can only have failed.
        Ok(Err(reason)) = running.reports.recv() => return Err(ServeError::Core { reason }),
    }
    window.draining.store(true, Relaxed);
    say!("stopping: acknowledging what was accepted, refusing the rest");
    let stopping = tokio::task::spawn_blocking(|| running.stop());
    tokio::select! {
        stopped = stopping => match stopped {
            Ok(Ok(())) => {
                say!("stopped");
                Ok(())
            }
            Ok(Err(reason)) => Err(ServeError::Core { reason }),
            Err(error) => Err(ServeError::Core { reason: error.to_string() }),
        },
        () = signals.next() => Err(ServeError::Hurried { reason: "a second signal came" }),
        () = tokio::time::sleep(Duration::from_millis(drain_time_ms)) => {
            Err(ServeError::Hurried { reason: "server.drain_time_ms is over" })
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Says on what the server stands and what it promises; with the line `ready` at most fifteen lines.
fn print_start(prepared: &Prepared) {
    let Prepared { config, promise, warnings, host, cpus, plan, drives, .. } = prepared;
    let kind = if host.memory_is_limited { " (limit of the cgroup)" } else { "" };
    say!("dlog {}, process {}, Linux {}", env!("CARGO_PKG_VERSION"), std::process::id(), host.kernel);
    say!("cores      {} on CPU {} ({})", cpus.len(), pyralog_tuning::cores::list(cpus), host.cpu_model);
    say!("data       {}", drives.views().iter().map(place).collect::<Vec<_>>().join("; "));
    say!(
        "memory     at most {} of {}{kind}; per core {} for requests, {} cache, {} for {} connections",
        about(plan.total_bytes),
        about(host.memory_bytes),
        about(plan.requests_bytes_per_core),
        about(plan.read_cache_bytes_per_core),
        about(plan.network_bytes_per_core),
        plan.connections_per_core,
    );
    say!("profile    {}: {}", config.profile.name(), config.profile.purpose());
    say!("ack        {}", promise.ack);
    say!("guarantee  {}", promise.guarantee);
    say!("copies     {}", promise.copies);
    // Room for the lines above, for `ready`, and for one that says that there are more.
    let shown = warnings.len().min(5);
    warnings[..shown].iter().for_each(|warning| say!("warning    {warning}"));
    if warnings.len() > shown {
        say!("warning    and {} more; `dlog config show` has those of the configuration", warnings.len() - shown);
    }
    let _ = io::stdout().flush();
}

/// A drive in words.
fn place(view: &DriveView) -> String {
    let DriveView { dir, volume, .. } = view;
    format!(
        "{} ({} on {}, {} of {} free)",
        dir.display(),
        volume.file_system,
        volume.device.as_deref().unwrap_or("no block device"),
        about(volume.free_bytes),
        about(volume.total_bytes),
    )
}

/// How long a start waits for the port of a server that was killed just now: the kernel closes the sockets of its rings
/// in the background, once the last of their operations has ended.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
const PORT_PAUSE: Duration = Duration::from_millis(50);

fn bind_when_free(listen: SocketAddr, cores: usize) -> Result<ServerSockets, BindError> {
    let begun = Instant::now();
    loop {
        match ServerSockets::bind(listen, cores) {
            Err(BindError::PortInUse { .. }) if begun.elapsed() < PORT_PATIENCE => std::thread::sleep(PORT_PAUSE),
            outcome => return outcome,
        }
    }
}

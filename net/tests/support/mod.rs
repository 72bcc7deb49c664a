//! A real server in this process: shards, sockets and QUIC on threads of their own, on a real directory.

#![allow(dead_code)] // each test file uses a part of it

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use pyralog_engine::{
    log::scrub::ScrubPace,
    metrics::CoreMetrics,
    runtime::glommio::{CoreThread, GlommioRuntime, LaunchOptions, launch, mesh},
    settings::Replication,
    shard::{self, ShardConfig, Wiring, mailbox::Message, placement::Drives},
    types::{AckLevel, CoreId},
};
use pyralog_net::{
    client::{ClientBuilder, PyralogClient},
    fingerprint::Fingerprint,
    server::{ServerCore, ServerIdentity, ServerInfo, ServerLimits, ServerSockets, Steering, forwarding, serve_core},
};
use tokio::net::UdpSocket;

/// How a server ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In good order: drained, flushed.
    Drained,
    /// As if the process had died: no goodbye to anybody.
    Killed,
}

pub struct TestServer {
    pub address: SocketAddr,
    pub fingerprint: Fingerprint,
    /// By core.
    pub metrics: Vec<Arc<CoreMetrics>>,
    stop: async_channel::Sender<End>,
    threads: Vec<CoreThread<()>>,
    sockets: ServerSockets,
}

/// A directory on the real disk: O_DIRECT does not work on tmpfs.
pub fn data_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn config(data_dir: &Path) -> ShardConfig {
    ShardConfig {
        drives: Drives::single(data_dir),
        segment_bytes: 32 << 20,
        heavy_load: Default::default(),
        buffer_time_max: Duration::from_millis(5),
        buffer_bytes_max: 8 << 20,
        sync_interval: Duration::from_millis(100),
        scrub: ScrubPace { bytes_per_second: 0, period: Duration::from_secs(60) },
        default_ack: AckLevel::Received,
        cache_bytes: 16 << 20,
        use_mmap: false,
        tail_bytes: 1 << 20,
        budget_bytes: 64 << 20,
        retention: Default::default(),
        retention_interval: Duration::from_millis(50),
        replication: Replication::SINGLE,
        drive_timeout: Duration::from_millis(500),
        calm: Duration::from_secs(1),
        balance: None,
        reserve_bytes: 0,
    }
}

impl TestServer {
    /// Starts a server on a free port.
    pub fn start(data_dir: &Path, cores: usize) -> Self {
        Self::start_with(data_dir, cores, ServerLimits::default(), Steering::ByConnectionId)
    }

    /// As [`TestServer::start`], with limits and a steering of one's own.
    pub fn start_with(data_dir: &Path, cores: usize, limits: ServerLimits, steering: Steering) -> Self {
        let identity = ServerIdentity::load_or_create(data_dir).unwrap();
        let fingerprint = Fingerprint(identity.fingerprint().0);
        let mut sockets = ServerSockets::bind_steered("127.0.0.1:0".parse().unwrap(), cores, steering).unwrap();
        let address = sockets.local_addr();
        let parts = (0..cores).zip(mesh::<Message>(cores, 64)).zip(forwarding(cores));
        let parts = parts.map(|((core, mesh), seat)| Some((mesh, seat, sockets.take(CoreId(core as u16)).unwrap())));
        let parts = Arc::new(Mutex::new(parts.collect::<Vec<_>>()));
        let info = Arc::new(ServerInfo {
            version: "test".to_owned(),
            profile: "test".to_owned(),
            ack: AckLevel::Received,
            guarantee: "none".to_owned(),
            copies: "one".to_owned(),
            config: serde_json::json!({}),
        });
        let (stop, stopped) = async_channel::bounded::<End>(cores);
        let cpus: Vec<usize> = (0..cores).map(|core| core % 2).collect();
        let options =
            LaunchOptions { data_dirs: vec![data_dir.to_path_buf()], abort_on_panic: false, ..Default::default() };
        let data_dir: PathBuf = data_dir.to_path_buf();
        let metrics: Vec<Arc<CoreMetrics>> = (0..cores).map(|_| Arc::default()).collect();
        let counted = metrics.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let main = move |core: CoreId, runtime: GlommioRuntime| async move {
            let (mesh, seat, socket) = parts.lock().unwrap()[usize::from(core.0)].take().unwrap();
            let mesh = mesh.connect(&runtime).await;
            let metrics = Arc::clone(&counted[usize::from(core.0)]);
            let wiring = Wiring { core, mesh, control: None, metrics };
            let shard = shard::open(runtime, config(&data_dir), wiring).await.unwrap();
            let parts = ServerCore { shard: shard.clone(), socket, seat, identity, limits, info };
            let serving = serve_core(parts).await.unwrap();
            ready.send(()).unwrap();
            if stopped.recv().await == Ok(End::Drained) {
                serving.drain().await;
                shard.shut_down().await;
            }
        };
        let threads = launch(&cpus, &options, main).unwrap();
        (0..cores).for_each(|_| is_ready.recv_timeout(Duration::from_secs(20)).expect("the server stands"));
        TestServer { address, fingerprint, metrics, stop, threads, sockets }
    }

    /// A client that trusts this server.
    pub async fn client(&self) -> PyralogClient {
        self.builder().connect(self.address).await.unwrap()
    }

    pub fn builder(&self) -> ClientBuilder {
        PyralogClient::builder().fingerprint(self.fingerprint)
    }

    /// Ends the server; blocks until its threads have ended.
    pub fn stop(self, end: End) {
        self.threads.iter().for_each(|_| self.stop.send_blocking(end).unwrap());
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(self.sockets);
    }
}

/// Passes datagrams on between clients and a server that may be exchanged: an address that outlives servers. (A port of
/// a killed server cannot be bound again in this process: what the executor leaked still holds it.)
pub struct Relay {
    pub address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
    muted: Arc<AtomicBool>,
}

impl Relay {
    /// To `server`; ends with the runtime.
    pub async fn start(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = front.local_addr().unwrap();
        let (server, muted) = (Arc::new(Mutex::new(server)), Arc::new(AtomicBool::new(false)));
        tokio::spawn(relay(front, Arc::clone(&server), Arc::clone(&muted)));
        Relay { address, server, muted }
    }

    /// From now on clients hear nothing of the server, which hears them; or hear it again.
    pub fn mute(&self, muted: bool) {
        self.muted.store(muted, SeqCst);
    }

    /// From now on to another server.
    pub fn switch(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }
}

async fn relay(front: Arc<UdpSocket>, server: Arc<Mutex<SocketAddr>>, muted: Arc<AtomicBool>) {
    let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut datagram = vec![0; 65536];
    while let Ok((bytes, client)) = front.recv_from(&mut datagram).await {
        if let Entry::Vacant(vacant) = backs.entry(client) {
            let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            vacant.insert(Arc::clone(&back));
            let (front, muted) = (Arc::clone(&front), Arc::clone(&muted));
            tokio::spawn(async move {
                let mut datagram = vec![0; 65536];
                // A dead server's port answers with an ICMP error, which is read here: it is nobody's datagram.
                loop {
                    if let Ok((bytes, _)) = back.recv_from(&mut datagram).await
                        && !muted.load(SeqCst)
                    {
                        let _ = front.send_to(&datagram[..bytes], client).await;
                    }
                }
            });
        }
        let to = *server.lock().unwrap();
        let _ = backs[&client].send_to(&datagram[..bytes], to).await;
    }
}

//! The configuration's shape. The words of `docs/CONFIG.md` are the doc comments here: the first paragraph says what a
//! key is, the one that begins with `Trades:` what is won and lost by it. Ranges are in [`crate::keys`].

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    copies::{Copies, majority},
    data_dirs::DataDirs,
    profile::Profile,
    promise::Ack,
    units::{ByteSize, Millis},
};

/// All keys. A `Config` on its own is unchecked; [`crate::Settings::load`] gives a checked one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The named set of values that this configuration starts from.
    pub profile: Profile,
    /// Where the server lives.
    pub server: Server,
    /// How many clients may be there, and what each may hold.
    pub network: Network,
    /// What the server may keep in memory.
    pub memory: Memory,
    /// What holds for a log whose creator did not say.
    pub log: LogDefaults,
    /// How records reach the drive.
    pub storage: Storage,
    /// How many copies there are.
    pub replication: Replication,
    /// When partitions move from core to core by themselves.
    pub balancing: Balancing,
}

/// Where the server lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The directory of all data, or a list of directories, one for each drive: copies of a partition are on drives of
    /// their own while there are enough. Created if missing; a relative path starts at the working directory. Each must
    /// lie on a file system that supports direct I/O (ext4, xfs; not tmpfs). The flag is given once for each, in a
    /// variable they are separated by `:`. Cores are dealt out to the directories in turn, so there must be a core for
    /// each. Directories can be added later, for logs that are created then, and moved; none can be left out again, but
    /// an empty one may take the place of another and is rebuilt from the others.
    pub data_dir: DataDirs,
    /// The UDP address for clients (QUIC). Port 0 takes any free port and prints it.
    ///
    /// Trades: any other address than loopback lets other machines in, and there is no authentication yet.
    pub listen: SocketAddr,
    /// The TCP address of `/health`, `/status` and `/metrics`. Port 0 takes any free port and prints it.
    pub http: SocketAddr,
    /// The CPUs to use, one shard pinned to each: `all` that the process may use, a range `0-3`, a list `0,2,4`, or
    /// both `0-3,8`. A CPU that is named twice has two shards, so that there can be as many copies of a partition as
    /// one wants to try.
    ///
    /// Trades: each core adds throughput and takes its share of the memory; leave one out for other work on a busy
    /// host.
    pub cores: String,
    /// How long a stopping server may take to flush and to close its clients' connections before it gives up.
    pub drain_time_ms: Millis,
    /// How long a core that has nothing to do looks for work, in microseconds, before it sleeps. Without a value, 200
    /// in the profile `latency` and 0 in the others.
    ///
    /// Trades: an answer comes some 20 to 50 µs sooner for each time the core would have slept while it was on its way,
    /// against a CPU that is busy whenever there was work that long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spin_before_park_us: Option<u64>,
}

/// What [`Server::spin_before_park_us`] is in the latency profile: a write to an NVMe drive and the way to a client and
/// back fit in.
const LATENCY_SPIN_US: u64 = 200;

impl Config {
    /// How long a core looks for work before it sleeps, in microseconds.
    pub fn spin_before_park_us(&self) -> u64 {
        let by_profile = if self.profile == Profile::Latency { LATENCY_SPIN_US } else { 0 };
        self.server.spin_before_park_us.unwrap_or(by_profile)
    }

    /// The copies of logs that do not say it themselves.
    pub fn copies(&self) -> Copies {
        let Quorum { replication_factor: factor, write_quorum, read_quorum: read } = self.replication.quorum;
        Copies { factor, write: write_quorum.unwrap_or(majority(factor)), read }
    }
}

/// How many clients may be there, and what each may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Connections open at once on one core. A client has one connection to every core whose partitions it uses.
    ///
    /// Trades: `memory.network` is shared out over the connections, so the more there are, the smaller their windows.
    pub connections_per_core: u64,
    /// Connections open at once on one core from one IP address. The loopback addresses are exempt: all clients and
    /// proxies of this machine share them.
    ///
    /// Trades: a low number keeps a single host from taking every place; a high one suits many clients behind one NAT.
    pub connections_per_ip: u64,
}

/// What the server may keep in memory. Without explicit values, a host with little memory gets proportionally less.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Memory for requests in flight and for records on their way to the drive, shared out evenly over the cores. When
    /// a core's share is used up it stops reading from its clients, and QUIC's flow control slows them down.
    ///
    /// Trades: more rides out bursts; less bounds the memory of a server under overload.
    pub requests: ByteSize,
    /// Memory for records that were read or written recently, shared out evenly over the cores.
    ///
    /// Trades: more serves consumers that lag behind without touching the drive.
    pub read_cache: ByteSize,
    /// Memory for the windows of the clients' connections, shared out evenly over the cores. Each connection needs 192
    /// KiB at least: a receive and a send window of 64 KiB, and 64 KiB of state.
    ///
    /// Trades: more gives each connection larger windows, which long or fast networks need.
    pub network: ByteSize,
}

/// What holds for a log whose creator did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogDefaults {
    /// When a write is acknowledged if neither the request nor its log says so. Without a value it follows from
    /// `storage.segment_config.sync_on_write` and `storage.cache_config.enabled`.
    ///
    /// Trades: `received` answers soonest and survives nothing, `written` survives a crash of the process, `durable` a
    /// loss of power.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
}

/// How records reach the drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Segment files.
    pub segment_config: SegmentConfig,
    /// The write cache.
    pub cache_config: CacheConfig,
    /// How long records that the drive has taken may stay unsynced when nobody waits for their sync.
    ///
    /// Trades: the window that a power loss takes of what was acknowledged as `received` or `written`, against one sync
    /// of the drive for each partition that is written to.
    pub sync_interval_ms: Millis,
    /// How long a write or a sync of a copy that leads may take before another copy is made to lead. A partition with
    /// one copy waits as long as it takes.
    ///
    /// Trades: a short time moves writes away from a drive that stalls sooner; one that the drive needs anyway under
    /// load moves them for nothing, and each move costs them some tens of milliseconds.
    pub drive_timeout_ms: Millis,
    /// Reading old records again to find what rots.
    pub scrub: Scrub,
    /// How much of the file system is kept back. With less free, writes are refused with an error that may be repeated,
    /// until there is room again. Reads and deletions go on, and what was accepted before is written into the reserve.
    /// The default holds the write cache, a prepared stretch for a few segments, and what else fills the file system
    /// within a quarter of a second, which is how often it is looked at; on a file system of less than 5 GiB it is a
    /// twentieth of it.
    ///
    /// Trades: room that is never used, against a server that still can do what it promised when the file system is
    /// full.
    pub reserve_bytes: ByteSize,
    /// What is kept of logs that do not say it themselves. Without a value everything is kept for ever.
    pub retention: Retention,
}

/// What is kept of logs whose settings do not say it (`dlog log create --retention … --retention-bytes …`). Without a
/// value everything is kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// For how long records are kept at least. Without a value, for ever. A segment is deleted when its newest record
    /// is older; the age of a record is that of its timestamp, which its producer set. A log that nobody writes to
    /// expires too. When the clock jumps ahead by more than a minute, that counts only once it has lasted for an hour.
    ///
    /// Trades: the drive's room against the time in which a consumer may come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<Millis>,
    /// How many bytes of each partition are kept at least. Without a value, all. The oldest segment is deleted when the
    /// others are still enough, and a new one is begun when the newest is enough by itself (from 1 MiB on): up to about
    /// twice this much is on the drive.
    ///
    /// Trades: the drive's room against how far back a consumer may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// How often it is looked for what is more or older than that.
    ///
    /// Trades: room that is free sooner against a moment of each core for each of its partitions.
    pub check_interval_ms: Millis,
}

/// Reading old records again to find what rots: all sealed segments, in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scrub {
    /// How many bytes of segments the whole server reads in a second. 0 turns the scrub off.
    ///
    /// Trades: a fast scrub finds damage sooner; it takes bandwidth of the drive that readers might use.
    pub bytes_per_second: ByteSize,
    /// From the beginning of one pass over all segments to that of the next, if a pass takes no longer.
    ///
    /// Trades: as above.
    pub period_ms: Millis,
}

/// Segment files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentConfig {
    /// The size at which a partition begins a new segment file.
    ///
    /// Trades: large segments mean fewer files and rolls; small ones are zero-filled ahead of use in less time, are
    /// recovered faster, and let retention free space in smaller steps.
    pub max_size: ByteSize,
    /// Whether sealed segments are read through memory mappings; the active segment is always read with direct I/O.
    /// What is mapped is read into the system's page cache away from the core and locked in memory before it is used,
    /// so that no core waits for a page, and a drive that fails is an error and no SIGBUS. The mappings take a part of
    /// `memory.read_cache`, which must fit under the limit on locked memory (`ulimit -l`, LimitMEMLOCK=); if it does
    /// not, the server says so and reads with direct I/O.
    ///
    /// Trades: with mappings the system keeps what was read for as long as nobody needs the memory, and readers who
    /// catch up gain, most of all on busy cores. Single records at random, from more than the core's cache holds, cost
    /// about half as much again: a mapping brings 128 KiB.
    pub use_mmap: bool,
    /// Whether a write is acknowledged only after it is synced to stable storage.
    ///
    /// Trades: with it nothing acknowledged is lost; without it a write is answered some hundred microseconds sooner.
    pub sync_on_write: bool,
}

/// The write cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// How many bytes may be acknowledged but not yet flushed, shared out evenly over the cores. Beyond a core's share,
    /// acks wait until the drive has taken them.
    ///
    /// Trades: a large cache gathers larger flushes; it is also the most that a crash can take of what was
    /// acknowledged.
    pub max_size: ByteSize,
    /// How long an acknowledged record may wait before it is handed to the drive.
    ///
    /// Trades: a long time gathers larger flushes; it is also the window of loss.
    pub max_buffer_time_ms: Millis,
    /// Whether a write may be acknowledged from memory. Has no effect on acknowledgements while `sync_on_write` is
    /// true.
    ///
    /// Trades: lower latency against the window of loss that the two keys above set.
    pub enabled: bool,
}

/// How many copies there are of each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Replication {
    /// Copies of each partition of logs that do not say it themselves (`dlog log create --replication-factor …`), and
    /// how many of them a decision takes. A log keeps what it was created with.
    ///
    /// A copy that is away for a while is sent what it lacks, from memory or from the drive. What is on its way to a
    /// copy takes at most 16 MiB of memory for each pair of a leading and a following copy, on either core, and is
    /// little more than what clients have just sent; the memory plan sets 32 MiB aside for it on each core.
    /// docs/REPLICATION.md says how the copies agree.
    pub quorum: Quorum,
}

/// See [`Replication::quorum`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quorum {
    /// Copies of each partition, each on a core of its own (N). If a profile asks for more than there are cores, there
    /// are as many as cores, quorums included, and a warning says so; an explicit value above the number of cores is
    /// refused.
    ///
    /// Trades: each copy is written once more, by another core.
    pub replication_factor: u64,
    /// Copies that must have a record, as safe as its ack level says, before it is acknowledged (W); at most
    /// `replication_factor`. Without a value, a majority of it: 2 of 2 or 3, 3 of 4 or 5. What is acknowledged survives
    /// the loss of any W - 1 copies. 1 is asynchronous replication: the loss of the leader's copy loses what had not
    /// reached another, and no other leads until it is back.
    ///
    /// Trades: a write waits for the W-th fastest copy. With N - W copies missing writes go on while the leader is
    /// there; a new leader is elected with up to W - 1 missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_quorum: Option<u64>,
    /// Copies, the leader's among them, that must confirm that it leads before it answers a read (R); at most
    /// `replication_factor`. If R + W > N, reads are linearizable: they see every write that was acknowledged before
    /// they came. If not, a leader that was deposed and does not know it yet may answer from its past.
    ///
    /// Trades: above 1 a read waits for a message to other cores and back; one round serves all that wait.
    pub read_quorum: u64,
}

/// When partitions move from core to core by themselves: one after the other, each from a core that is much busier than
/// another, and only what makes that better. At most one a minute, and more seldom each time that it did not help.
/// Nothing moves while a drive does not answer, a copy is being rebuilt or out of service, or a log is being changed;
/// and what was moved by `dlog cores move` stays where it is for an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Balancing {
    /// Whether they do. A move is a handover of leadership to a copy that keeps up, where there is one; or else the
    /// files of the partition are closed and opened again by another core of the same drive.
    ///
    /// Trades: a core that is the bottleneck gets help, against some tens of milliseconds for each move, in which
    /// requests for the partition wait.
    pub enabled: bool,
    /// How busy a core must be, in percent of its time, before anything is taken from it. Time in which it looks for
    /// work does not count.
    pub busy_percent: u64,
    /// By how much it must be busier than another core, in percent of the time of a core.
    pub difference_percent: u64,
    /// How long both must have been so, without a break.
    pub period_ms: Millis,
}

impl Default for Balancing {
    fn default() -> Self {
        // A core that is busy for less than two thirds of its time answers as soon as one that is idle. A difference
        // that is smaller than a third comes and goes.
        Balancing { enabled: true, busy_percent: 70, difference_percent: 35, period_ms: Millis(30_000) }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server {
            data_dir: DataDirs::single("./dlog-data"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9092)),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 9644)),
            cores: "all".to_owned(),
            // systemd kills a service after 90 s; this leaves it time to see that we gave up, and to read why.
            drain_time_ms: Millis(30_000),
            spin_before_park_us: None,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Network { connections_per_core: 512, connections_per_ip: 32 }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory { requests: ByteSize(256 << 20), read_cache: ByteSize(256 << 20), network: ByteSize(512 << 20) }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            segment_config: SegmentConfig::default(),
            cache_config: CacheConfig::default(),
            sync_interval_ms: Millis(100),
            // A healthy drive answers within tens of milliseconds also under load; a second is what a move may take.
            drive_timeout_ms: Millis(500),
            reserve_bytes: ByteSize(256 << 20),
            scrub: Scrub::default(),
            retention: Retention::default(),
        }
    }
}

impl Default for Scrub {
    fn default() -> Self {
        // 600 GiB in a day for less than a hundredth of a drive's bandwidth; a week is what others take for a pass.
        Scrub { bytes_per_second: ByteSize(8 << 20), period_ms: Millis(7 * 24 * 3_600_000) }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Retention { max_age_ms: None, max_size: None, check_interval_ms: Millis(5_000) }
    }
}

impl Default for SegmentConfig {
    fn default() -> Self {
        SegmentConfig { max_size: ByteSize(256 << 20), use_mmap: false, sync_on_write: true }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig { max_size: ByteSize(16 << 20), max_buffer_time_ms: Millis(10), enabled: true }
    }
}

impl Default for Quorum {
    fn default() -> Self {
        Quorum { replication_factor: 1, write_quorum: None, read_quorum: 1 }
    }
}

//! The parts that a record goes through, each alone: building and decoding a batch, its checksum, steering, the index,
//! an append to a shard, and the hop to another core.

use std::{
    hint::black_box,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bench_harness::floor::device;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pyralog_engine::{
    log::{index::Index, retention::Limits, scrub::ScrubPace},
    record::{BatchBuilder, Codec, ServerFields, split_batches, stamp},
    runtime::{
        RingReceiver, RingSender,
        glommio::{GlommioRuntime, LaunchOptions, launch, mesh},
    },
    settings::{LogSettings, Replication},
    shard::{
        self, Shard, ShardConfig,
        placement::Drives,
        request::{Append, CreateLog, Reply, Request},
    },
    types::{AckLevel, CoreId, Incarnation, LeaderEpoch, Offset, PartitionId},
};
use pyralog_net::steering::{cid_for, core_of_datagram};

const BATCHES: [(u32, usize); 4] = [(1, 100), (100, 100), (1000, 100), (100, 1000)];

fn batch(records: u32, value: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    fill(&mut builder, records, value)
}

fn fill(builder: &mut BatchBuilder, records: u32, value: &[u8]) -> Bytes {
    for n in 0..records {
        builder.push(None, value, &[], i64::from(n)).expect("a record");
    }
    builder.finish().expect("a batch")
}

fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch_build");
    for (records, bytes) in BATCHES {
        group.throughput(Throughput::Elements(records.into()));
        group.bench_function(format!("{records}x{bytes}"), |bencher| {
            let (mut builder, value) = (BatchBuilder::new(Codec::None), vec![b'v'; bytes]);
            bencher.iter(|| fill(&mut builder, records, black_box(&value)));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("batch_decode");
    for (records, bytes) in BATCHES {
        group.throughput(Throughput::Elements(records.into()));
        group.bench_function(format!("{records}x{bytes}"), |bencher| {
            let batch = stored(batch(records, &vec![b'v'; bytes]));
            bencher.iter(|| decode(black_box(&batch)));
        });
    }
    group.finish();
}

/// The batch as a server stores it.
fn stored(batch: Bytes) -> Bytes {
    let mut bytes = batch.to_vec();
    let fields = ServerFields {
        base_offset: Offset(0),
        durable_hint: Offset(0),
        leader_epoch: LeaderEpoch(1),
        incarnation: Incarnation(1),
    };
    stamp(&mut bytes, fields);
    bytes.into()
}

/// Checks a batch and walks over its records, as a consumer does.
fn decode(batch: &Bytes) -> usize {
    let view = split_batches(batch.clone()).next().expect("a batch").expect("a sound batch");
    view.records().expect("records").borrowed().map(|record| record.expect("a sound record").value.len()).sum()
}

fn crc(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc32c");
    for bytes in [100, 10_000, 1_000_000] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &bytes, |bencher, bytes| {
            let data = vec![7; *bytes];
            bencher.iter(|| crc32c::crc32c(black_box(&data)));
        });
    }
    group.finish();
}

fn steering(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("steering");
    let mut datagram = vec![0x40; 1200];
    datagram[1..13].copy_from_slice(&cid_for(CoreId(3), 8));
    group.bench_function("core_of_datagram", |bencher| bencher.iter(|| core_of_datagram(black_box(&datagram), 8)));
    group.bench_function("cid_for", |bencher| bencher.iter(|| cid_for(black_box(CoreId(3)), 8)));
    group.finish();
}

fn index(criterion: &mut Criterion) {
    // A segment of 512 MiB in batches of 12 KiB.
    const BATCHES: u64 = (512 << 20) / (12 << 10);
    let mut index = Index::default();
    (0..BATCHES).for_each(|n| index.note(Offset(n * 100), 4096 + n * (12 << 10), n as i64));
    let mut group = criterion.benchmark_group("index_lookup");
    let mut at = 0;
    let mut next = move || {
        at = (at + 7_919) % (BATCHES * 100);
        at
    };
    group.bench_function("by_offset", |bencher| bencher.iter(|| index.block_of(Offset(next()))));
    group.bench_function("by_time", |bencher| bencher.iter(|| index.block_of_time(next() as i64 / 100)));
    group.finish();
}

/// Asks a thread that is an executor to do something so many times, and is told how long that took.
struct Remote {
    ask: async_channel::Sender<u64>,
    told: async_channel::Receiver<Duration>,
}

/// The other end.
#[derive(Clone)]
struct Asked {
    times: async_channel::Receiver<u64>,
    tell: async_channel::Sender<Duration>,
}

impl Remote {
    fn new() -> (Remote, Asked) {
        let ((ask, times), (tell, told)) = (async_channel::bounded(1), async_channel::bounded(1));
        (Remote { ask, told }, Asked { times, tell })
    }

    fn time(&self, times: u64) -> Duration {
        self.ask.send_blocking(times).expect("the executor");
        self.told.recv_blocking().expect("the executor")
    }
}

fn append(criterion: &mut Criterion) {
    appends(criterion, ("append", AckLevel::Received), &[(1, 100), (100, 100)]);
}

/// Beside it, what the drive alone does: a write of 4 KiB and an fdatasync, one after the other.
fn append_durable(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let drive = || match device::measure(folder, Duration::from_millis(500)) {
        Ok(device) => {
            println!("append_durable: the drive alone writes and syncs {:.0}/s", device.write_fdatasync.per_s)
        }
        Err(error) => println!("append_durable: the drive alone was not measured: {error}"),
    };
    drive();
    appends(criterion, ("append_durable", AckLevel::Durable), &[(1, 100)]);
    drive();
}

fn appends(criterion: &mut Criterion, (name, ack): (&str, AckLevel), batches: &[(u32, usize)]) {
    let mut group = criterion.benchmark_group(name);
    // What is appended goes to the drive: less time, less of it.
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for &(records, bytes) in batches {
        group.throughput(Throughput::Elements(records.into()));
        group.bench_function(format!("{records}x{bytes}"), |bencher| {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
            let (remote, asked) = Remote::new();
            let server = shard_thread(folder.path(), (batch(records, &vec![b'v'; bytes]), ack), asked);
            bencher.iter_custom(|times| remote.time(times));
            drop(remote);
            server.join().expect("the executor");
        });
    }
    group.finish();
}

/// A core of a server that appends `batch` as often as it is asked, one after the other, each acknowledged at `ack`.
fn shard_thread(folder: &Path, (batch, ack): (Bytes, AckLevel), asked: Asked) -> thread::JoinHandle<()> {
    let folder = folder.to_owned();
    thread::spawn(move || {
        let options = LaunchOptions { data_dirs: vec![folder.clone()], ..LaunchOptions::default() };
        let threads = launch(&[0], &options, move |core: CoreId, runtime: GlommioRuntime| async move {
            let mesh = mesh(1, 64).remove(0).connect(&runtime).await;
            let wiring = shard::Wiring { core, mesh, control: None, metrics: Arc::default() };
            let shard = shard::open(runtime, config(&folder), wiring).await.expect("a shard");
            let partition = create(&shard).await;
            while let Ok(times) = asked.times.recv().await {
                let begin = Instant::now();
                for _ in 0..times {
                    let append = Append { partition, batch: batch.clone(), ack: Some(ack), expected_offset: None };
                    shard.call(Request::Append(append)).await.expect("an ack");
                }
                asked.tell.send(begin.elapsed()).await.expect("the benchmark");
            }
        });
        threads.expect("an executor").into_iter().for_each(|thread| thread.join().expect("an executor"));
    })
}

fn config(data_dir: &Path) -> ShardConfig {
    ShardConfig {
        drives: Drives::single(data_dir),
        segment_bytes: 256 << 20,
        heavy_load: Default::default(),
        use_mmap: false,
        buffer_time_max: Duration::from_millis(10),
        buffer_bytes_max: 64 << 20,
        sync_interval: Duration::from_millis(100),
        scrub: ScrubPace { bytes_per_second: 0, period: Duration::from_secs(3600) },
        default_ack: AckLevel::Received,
        cache_bytes: 64 << 20,
        tail_bytes: 16 << 20,
        budget_bytes: 64 << 20,
        reserve_bytes: 0,
        retention: Limits::default(),
        retention_interval: Duration::from_secs(5),
        replication: Replication::SINGLE,
        drive_timeout: Duration::from_millis(500),
        calm: Duration::from_secs(1),
        balance: None,
    }
}

async fn create(shard: &Shard<GlommioRuntime>) -> PartitionId {
    let name = "bench/append".parse().expect("a name");
    let create = CreateLog { name, partitions: 1, settings: LogSettings::default() };
    match shard.call(Request::CreateLog(create)).await {
        Ok(Reply::LogCreated(log)) => log.partition_ids().next().expect("a partition"),
        other => panic!("{other:?}"),
    }
}

fn hop(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring_hop");
    group.bench_function("there_and_back", |bencher| {
        let (remote, asked) = Remote::new();
        let executors = thread::spawn(move || echo_threads(asked));
        bencher.iter_custom(|times| remote.time(times));
        drop(remote);
        executors.join().expect("the executors");
    });
    group.finish();
}

/// Two cores: one sends a number as often as it is asked, and waits for it to come back from the other.
fn echo_threads(asked: Asked) {
    let seats = Arc::new(Mutex::new(mesh::<u64>(2, 64).into_iter().map(Some).collect::<Vec<_>>()));
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let threads = launch(&[0, 1 % cpus], &LaunchOptions::default(), move |core: CoreId, runtime| async move {
        let seat = seats.lock().expect("seats")[usize::from(core.0)].take().expect("a seat");
        let mut mesh = seat.connect(&runtime).await;
        let other = 1 - usize::from(core.0);
        let sender = mesh.senders[other].take().expect("a ring");
        let receiver = mesh.receivers[other].take().expect("a ring");
        if core == CoreId(1) {
            while let Some(number) = receiver.recv().await {
                if sender.send(number).await.is_err() {
                    return;
                }
            }
            return;
        }
        while let Ok(times) = asked.times.recv().await {
            let begin = Instant::now();
            for number in 0..times {
                sender.send(number).await.expect("a ring");
                receiver.recv().await.expect("a ring");
            }
            asked.tell.send(begin.elapsed()).await.expect("the benchmark");
        }
    });
    threads.expect("executors").into_iter().for_each(|thread| thread.join().expect("an executor"));
}

criterion_group!(benches, batches, crc, steering, index, append, append_durable, hop);
criterion_main!(benches);

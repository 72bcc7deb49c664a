//! A server in this process, on a directory of its own, and what tests ask of it.

use std::{path::PathBuf, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use pyralog_engine::{
    error::RequestError,
    log::{retention::Limits, scrub::ScrubPace},
    record::{BatchBuilder, Codec, split_batches},
    runtime::{
        Runtime,
        glommio::{GlommioRuntime, LaunchOptions, launch, mesh},
    },
    settings::{LogSettings, Replication},
    shard::{
        self, Shard, ShardConfig,
        mailbox::Message,
        placement::Drives,
        request::{Append, CreateLog, Fetch, Outcome, Reply, Request},
    },
    types::{AckLevel, CoreId, Offset, PartitionId},
};

pub fn config(drives: Drives) -> ShardConfig {
    ShardConfig {
        drives,
        segment_bytes: 1 << 20,
        heavy_load: Default::default(),
        buffer_time_max: Duration::from_millis(5),
        buffer_bytes_max: 8 << 20,
        sync_interval: Duration::from_millis(100),
        scrub: ScrubPace { bytes_per_second: 0, period: Duration::from_secs(60) },
        default_ack: AckLevel::Durable,
        cache_bytes: 4 << 20,
        use_mmap: false,
        tail_bytes: 256 << 10,
        budget_bytes: 64 << 20,
        reserve_bytes: 0,
        retention: Limits::default(),
        retention_interval: Duration::from_millis(20),
        replication: Replication::SINGLE,
        drive_timeout: Duration::from_millis(500),
        calm: Duration::from_secs(1),
        balance: None,
    }
}

/// Tells every core to end when it is dropped.
struct Stop(async_channel::Sender<()>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs `story` on core 0 of a server with `cores` cores on `data_dir`.
pub fn serve<Fut: Future<Output = ()> + 'static>(
    data_dir: PathBuf,
    cores: usize,
    story: impl FnOnce(Shard<GlommioRuntime>) -> Fut + Clone + Send + 'static,
) {
    serve_with(config(Drives::single(&data_dir)), cores, story);
}

/// The same with settings of its own.
pub fn serve_with<Fut: Future<Output = ()> + 'static>(
    config: ShardConfig,
    cores: usize,
    story: impl FnOnce(Shard<GlommioRuntime>) -> Fut + Clone + Send + 'static,
) {
    let cpus: Vec<usize> = (0..cores).map(|core| core % 2).collect();
    let seats = Arc::new(std::sync::Mutex::new(mesh::<Message>(cores, 64).into_iter().map(Some).collect::<Vec<_>>()));
    let (stop, stopped) = async_channel::bounded::<()>(1);
    let data_dirs = config.drives.all().map(|(_, dir)| dir.to_path_buf()).collect();
    let options = LaunchOptions { data_dirs, abort_on_panic: false, ..Default::default() };
    let threads = launch(&cpus, &options, move |core: CoreId, runtime: GlommioRuntime| async move {
        let seat = seats.lock().unwrap()[usize::from(core.0)].take().unwrap();
        let mesh = seat.connect(&runtime).await;
        let wiring = shard::Wiring { core, mesh, control: None, metrics: Arc::default() };
        // Whichever core ends first, also by a panic, ends the others: a test that fails must not leave any behind.
        let _stop = Stop(stop);
        let shard = shard::open(runtime, config, wiring).await.unwrap();
        let ended = stopped.recv();
        if core == CoreId(0) {
            let (story, ended) = (pin!(story(shard)), pin!(ended));
            match select(story, ended).await {
                Either::Left(_) => {}
                Either::Right(_) => panic!("another core has died"),
            }
        } else {
            let _ = ended.await;
        }
    })
    .unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

pub fn batch(first: usize, count: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    for i in first..first + count {
        builder.push(None, format!("value-{i}-{}", "x".repeat(i % 300)).as_bytes(), &[], 1_000 + i as i64).unwrap();
    }
    builder.finish().unwrap()
}

pub async fn append(shard: &Shard<GlommioRuntime>, partition: PartitionId, batch: Bytes, ack: AckLevel) -> Offset {
    match shard.call(Request::Append(Append { partition, batch, ack: Some(ack), expected_offset: None })).await {
        Ok(Reply::Appended(appended)) => {
            assert!(appended.level >= ack);
            appended.base_offset
        }
        other => panic!("{other:?}"),
    }
}

/// Asks again while no copy leads, as clients do.
pub async fn ask(shard: &Shard<GlommioRuntime>, request: Request) -> Outcome {
    for _ in 0..1_000 {
        match shard.call(request.clone()).await {
            Err(RequestError::NotLeader { .. }) => shard.runtime().sleep(Duration::from_millis(5)).await,
            other => return other,
        }
    }
    panic!("nobody leads for 5 s");
}

/// Reads everything and checks that it is `count` records in order.
pub async fn check(shard: &Shard<GlommioRuntime>, partition: PartitionId, count: usize) {
    let mut next = 0usize;
    while next < count {
        let fetch = Fetch { partition, offset: Offset(next as u64), max_bytes: 100_000, max_wait: Duration::ZERO };
        let fetched = match ask(shard, Request::Fetch(fetch)).await {
            Ok(Reply::Fetched(fetched)) => fetched,
            other => panic!("{partition} at {next}: {other:?}"),
        };
        assert_eq!(fetched.high_watermark, Offset(count as u64), "{partition}");
        assert!(!fetched.batches.is_empty(), "{partition} at {next}");
        let mut joined = Vec::new();
        fetched.batches.iter().for_each(|piece| joined.extend_from_slice(piece));
        for view in split_batches(Bytes::from(joined)) {
            for record in view.unwrap().records().unwrap() {
                let record = record.unwrap();
                if record.offset.0 < next as u64 {
                    continue;
                }
                assert_eq!(record.offset.0, next as u64);
                assert!(record.value.starts_with(format!("value-{next}-").as_bytes()), "{partition} at {next}");
                next += 1;
            }
        }
    }
}

pub async fn create(shard: &Shard<GlommioRuntime>, name: &str, partitions: u32) -> Vec<PartitionId> {
    let request = CreateLog { name: name.parse().unwrap(), partitions, settings: LogSettings::default() };
    match shard.call(Request::CreateLog(request)).await {
        Ok(Reply::LogCreated(log)) => log.partition_ids().collect(),
        other => panic!("{other:?}"),
    }
}

pub fn partitions_of(shard: &Shard<GlommioRuntime>, name: &str) -> Vec<PartitionId> {
    shard.catalog().by_name(&name.parse().unwrap()).unwrap().partition_ids().collect()
}

pub fn data_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

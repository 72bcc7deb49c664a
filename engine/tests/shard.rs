//! Whole shards on the real runtime: what goes in comes out, on every core, after a clean stop and after none, and with
//! another number of cores.

use std::{path::Path, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use pyralog_engine::{
    error::RequestError,
    log::{retention::Limits, scrub::ScrubPace},
    record::{BatchBuilder, Codec, split_batches},
    runtime::{
        Runtime,
        glommio::{GlommioRuntime, LaunchOptions, launch, mesh},
    },
    settings::LogSettings,
    shard::{
        self, Shard, ShardConfig,
        completion::CompletionQueue,
        mailbox::Message,
        request::{Append, CreateLog, Fetch, FindOffset, OffsetAt, Reply, Request},
        stages::{Stage, StageClock, Stages},
    },
    types::{AckLevel, CoreId, Offset, PartitionId},
};

fn config(data_dir: &Path) -> ShardConfig {
    ShardConfig {
        data_dir: data_dir.to_path_buf(),
        segment_bytes: 1 << 20,
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
    }
}

/// Runs `story` on core 0 of a server with `cores` cores on `data_dir`.
fn serve<Fut: Future<Output = ()> + 'static>(
    data_dir: PathBuf,
    cores: usize,
    story: impl FnOnce(Shard<GlommioRuntime>) -> Fut + Clone + Send + 'static,
) {
    let cpus: Vec<usize> = (0..cores).map(|core| core % 2).collect();
    let seats = Arc::new(std::sync::Mutex::new(mesh::<Message>(cores, 64).into_iter().map(Some).collect::<Vec<_>>()));
    let (stop, stopped) = async_channel::bounded::<()>(1);
    let options = LaunchOptions { data_dirs: vec![data_dir.clone()], abort_on_panic: false, ..Default::default() };
    let threads = launch(&cpus, &options, move |core: CoreId, runtime: GlommioRuntime| async move {
        let seat = seats.lock().unwrap()[usize::from(core.0)].take().unwrap();
        let mesh = seat.connect(&runtime).await;
        let wiring = shard::Wiring { core, mesh, control: None, metrics: Arc::default() };
        let shard = shard::open(runtime, config(&data_dir), wiring).await.unwrap();
        if core == CoreId(0) {
            story(shard).await;
            stop.close();
        } else {
            let _ = stopped.recv().await;
        }
    })
    .unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn batch(first: usize, count: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    for i in first..first + count {
        builder.push(None, format!("value-{i}-{}", "x".repeat(i % 300)).as_bytes(), &[], 1_000 + i as i64).unwrap();
    }
    builder.finish().unwrap()
}

async fn append(shard: &Shard<GlommioRuntime>, partition: PartitionId, batch: Bytes, ack: AckLevel) -> Offset {
    match shard.call(Request::Append(Append { partition, batch, ack: Some(ack), expected_offset: None })).await {
        Ok(Reply::Appended(appended)) => {
            assert!(appended.level >= ack);
            appended.base_offset
        }
        other => panic!("{other:?}"),
    }
}

/// Reads everything and checks that it is `count` records in order.
async fn check(shard: &Shard<GlommioRuntime>, partition: PartitionId, count: usize) {
    let mut next = 0usize;
    while next < count {
        let fetch = Fetch { partition, offset: Offset(next as u64), max_bytes: 100_000, max_wait: Duration::ZERO };
        let fetched = match shard.call(Request::Fetch(fetch)).await {
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

async fn create(shard: &Shard<GlommioRuntime>, name: &str, partitions: u32) -> Vec<PartitionId> {
    let request = CreateLog { name: name.parse().unwrap(), partitions, settings: LogSettings::default() };
    match shard.call(Request::CreateLog(request)).await {
        Ok(Reply::LogCreated(log)) => log.partition_ids().collect(),
        other => panic!("{other:?}"),
    }
}

fn partitions_of(shard: &Shard<GlommioRuntime>, name: &str) -> Vec<PartitionId> {
    shard.catalog().by_name(&name.parse().unwrap()).unwrap().partition_ids().collect()
}

/// Appends durably and gives where the time went, and how long it was.
async fn timed(shard: &Shard<GlommioRuntime>, partition: PartitionId) -> (Stages, Duration) {
    let begun = shard.runtime().monotonic();
    let append = Append { partition, batch: batch(0, 10), ack: Some(AckLevel::Durable), expected_offset: None };
    let answers = CompletionQueue::new();
    shard.submit(Request::Append(append), answers.reply_to(7).timed(Some(StageClock::start(begun))));
    answers.ready().await;
    match answers.pop() {
        Some((7, Ok(Reply::Appended(appended)))) => {
            (appended.clock.unwrap().stages(), shard.runtime().monotonic() - begun)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_measured_append_says_where_its_time_went_here_and_on_another_core() {
    let dir = data_dir();
    serve(dir.path().to_owned(), 2, |shard| async move {
        let partitions = create(&shard, "timed", 16).await;
        for (core, crosses) in [(CoreId(0), false), (CoreId(1), true)] {
            let partition = *partitions.iter().find(|id| shard.owner(**id) == core).unwrap();
            let (stages, whole) = timed(&shard, partition).await;
            assert_eq!(stages.get(Stage::Hop) > Duration::ZERO, crosses, "{stages:?}");
            assert!(stages.get(Stage::Validate) > Duration::ZERO, "{stages:?}");
            assert!(stages.get(Stage::Disk) > Duration::ZERO, "{stages:?}");
            assert!(stages.total() <= whole, "{stages:?} are longer than {whole:?}");
        }
    });
}

fn data_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

const COUNT: usize = 20_000;

#[test]
fn records_come_back_after_rolls_after_a_restart_and_on_other_core_counts() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 2, |shard| async move {
        let partitions = create(&shard, "events", 4).await;
        let levels = [AckLevel::Received, AckLevel::Written, AckLevel::Durable, AckLevel::Quorum];
        for (partition, ack) in partitions.iter().zip(levels) {
            for first in (0..COUNT).step_by(100) {
                assert_eq!(append(&shard, *partition, batch(first, 100), ack).await, Offset(first as u64));
            }
            check(&shard, *partition, COUNT).await;
        }
        // Everything is written or durable but for the `received` partition; its buffer's time passes.
        shard.runtime().sleep(Duration::from_millis(300)).await;
        shard.shut_down().await;
    });
    for cores in [1, 3] {
        serve(dir.path().to_path_buf(), cores, |shard| async move {
            for partition in partitions_of(&shard, "events") {
                check(&shard, partition, COUNT).await;
            }
        });
    }
}

#[test]
fn what_was_durable_is_there_without_a_clean_stop_and_the_log_goes_on() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 1, |shard| async move {
        let partition = create(&shard, "a", 1).await[0];
        for first in 0..500 {
            append(&shard, partition, batch(first, 1), AckLevel::Durable).await;
        }
    });
    serve(dir.path().to_path_buf(), 1, |shard| async move {
        let partition = partitions_of(&shard, "a")[0];
        check(&shard, partition, 500).await;
        for first in 500..600 {
            append(&shard, partition, batch(first, 1), AckLevel::Durable).await;
        }
        check(&shard, partition, 600).await;
    });
}

#[test]
fn offsets_are_found_by_time_and_out_of_range_says_the_range() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 1, |shard| async move {
        let partition = create(&shard, "a", 1).await[0];
        for first in (0..COUNT).step_by(10) {
            append(&shard, partition, batch(first, 10), AckLevel::Received).await;
        }
        shard.shut_down().await;
        for (timestamp, offset) in [(0, 0), (1_005, 0), (1_010, 10), (10_000, 9_000), (1_000_000, COUNT as u64)] {
            let at = OffsetAt::Timestamp(timestamp);
            match shard.call(Request::FindOffset(FindOffset { partition, at })).await {
                Ok(Reply::Found(found)) => assert_eq!(found.offset, Offset(offset), "time {timestamp}"),
                other => panic!("{other:?}"),
            }
        }
        let far = Fetch { partition, offset: Offset(1 << 40), max_bytes: 1, max_wait: Duration::ZERO };
        match shard.call(Request::Fetch(far)).await {
            Err(RequestError::OffsetOutOfRange { start, end, .. }) => {
                assert_eq!((start, end), (Offset(0), Offset(COUNT as u64)));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_fetch_at_the_end_waits_for_the_next_record() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 2, |shard| async move {
        for partition in create(&shard, "a", 4).await {
            let fetch = Fetch { partition, offset: Offset(0), max_bytes: 1, max_wait: Duration::from_secs(30) };
            let waiting = shard.call(Request::Fetch(fetch));
            let appending = async {
                shard.runtime().yield_now().await;
                append(&shard, partition, batch(0, 1), AckLevel::Durable).await;
            };
            match futures_util::future::join(waiting, appending).await.0 {
                Ok(Reply::Fetched(fetched)) => assert_eq!(fetched.batches.len(), 1),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_deleted_log_is_gone_with_its_files_and_its_name_begins_anew() {
    let dir = data_dir();
    let path = dir.path().to_path_buf();
    serve(path.clone(), 2, move |shard| async move {
        let old = create(&shard, "a", 4).await;
        for partition in &old {
            append(&shard, *partition, batch(0, 10), AckLevel::Written).await;
        }
        assert!(matches!(shard.call(Request::DeleteLog("a".parse().unwrap())).await, Ok(Reply::LogDeleted)));
        assert!(!path.join("logs/default/a").exists());
        let gone = Append { partition: old[0], batch: batch(0, 1), ack: None, expected_offset: None };
        let refused = shard.call(Request::Append(gone)).await;
        assert!(matches!(refused, Err(RequestError::UnknownPartition { .. })), "{refused:?}");
        let new = create(&shard, "a", 1).await;
        assert_eq!(append(&shard, new[0], batch(0, 1), AckLevel::Durable).await, Offset(0));
        assert_ne!(new[0].log, old[0].log);
    });
}

#[test]
fn a_flipped_byte_is_reported_with_its_place_and_never_served() {
    use std::os::unix::fs::FileExt;
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 1, |shard| async move {
        let partition = create(&shard, "a", 1).await[0];
        for first in (0..COUNT).step_by(100) {
            append(&shard, partition, batch(first, 100), AckLevel::Durable).await;
        }
    });
    let segments = dir.path().join("logs/default/a/0");
    let mut files: Vec<_> = std::fs::read_dir(&segments).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "seg"));
    files.sort();
    assert!(files.len() > 2, "the test wants several segments");
    let (sealed, last) = (files[0].clone(), files[files.len() - 1].clone());
    for path in [&sealed, &last] {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 5_000).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 5_000).unwrap();
        file.sync_all().unwrap();
    }
    serve(dir.path().to_path_buf(), 1, move |shard| async move {
        let partition = partitions_of(&shard, "a")[0];
        let fetch = Fetch { partition, offset: Offset(0), max_bytes: 1, max_wait: Duration::ZERO };
        match shard.call(Request::Fetch(fetch)).await {
            Err(RequestError::Corrupt { file, position, .. }) => assert_eq!((file, position), (sealed, 4096)),
            other => panic!("{other:?}"),
        }
        // The last segment was synced past the damage, so its end is not taken for a torn tail: no writes.
        let append = Append { partition, batch: batch(0, 1), ack: None, expected_offset: None };
        match shard.call(Request::Append(append)).await {
            Err(RequestError::ReadOnly { reason, .. }) => assert!(reason.contains("case C"), "{reason}"),
            other => panic!("{other:?}"),
        }
    });
}

//! Whole shards on the real runtime: what goes in comes out, on every core, after a clean stop and after none, and with
//! another number of cores.

mod changes;
mod copies;
mod moves;
mod relocations;
mod support;

use std::time::Duration;

use pyralog_engine::{
    error::RequestError,
    runtime::{Runtime, glommio::GlommioRuntime},
    shard::{
        Shard,
        completion::CompletionQueue,
        request::{Append, Fetch, FindOffset, OffsetAt, Reply, Request},
        stages::{Stage, StageClock, Stages},
    },
    types::{AckLevel, CoreId, Offset, PartitionId},
};

use support::*;

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

//! Leadership that moves by plan, on the real runtime.

use std::time::Duration;

use pyralog_engine::{
    error::RequestError,
    runtime::{Runtime, glommio::GlommioRuntime},
    settings::{LogSettings, Replication},
    shard::{
        Shard,
        control::{Moved, PartitionStatus},
        request::{Append, CreateLog, Move, Outcome, Reply, Request},
    },
    types::{AckLevel, CoreId, Offset, PartitionId},
};

use crate::support::{ask, batch, check, data_dir, partitions_of, serve};

pub async fn create(shard: &Shard<GlommioRuntime>, name: &str, (n, w, r): (u8, u8, u8)) {
    let replication = Some(Replication { replication_factor: n, write_quorum: w, read_quorum: r });
    let settings = LogSettings { replication, ..LogSettings::default() };
    let create = CreateLog { name: name.parse().unwrap(), partitions: 2, settings };
    assert!(matches!(shard.call(Request::CreateLog(create)).await, Ok(Reply::LogCreated(_))));
}

pub async fn move_to(shard: &Shard<GlommioRuntime>, partition: PartitionId, core: u16) -> Outcome {
    shard.call(Request::Move(Move { partition, to: CoreId(core) })).await
}

pub async fn status(shard: &Shard<GlommioRuntime>, partition: PartitionId) -> PartitionStatus {
    match shard.call(Request::Describe(partition)).await {
        Ok(Reply::Described(status)) => *status,
        other => panic!("{other:?}"),
    }
}

pub async fn append(shard: &Shard<GlommioRuntime>, partition: PartitionId, first: usize) {
    let append = Append { partition, batch: batch(first, 10), ack: Some(AckLevel::Durable), expected_offset: None };
    match ask(shard, Request::Append(append)).await {
        Ok(Reply::Appended(appended)) => assert_eq!(appended.base_offset, Offset(first as u64)),
        other => panic!("{other:?}"),
    }
}

/// Waits until `core` leads a partition, for 10 s at most.
pub async fn until_led_by(shard: &Shard<GlommioRuntime>, partition: PartitionId, core: u16) {
    for _ in 0..1_000 {
        let status = status(shard, partition).await;
        if status.leads && status.core == CoreId(core) {
            return;
        }
        shard.runtime().sleep(Duration::from_millis(10)).await;
    }
    panic!("core {core} does not lead {partition}: {:?}", status(shard, partition).await);
}

#[test]
fn a_partition_is_led_by_the_core_that_was_named_and_so_it_is_after_a_restart() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        create(&shard, "a", (3, 2, 2)).await;
        for partition in partitions_of(&shard, "a") {
            let mut first = 0;
            for core in [0, 1, 2, 2, 1, 0, 2] {
                append(&shard, partition, first).await;
                let Ok(Reply::Moved(Moved { core: led_by, epoch, .. })) = move_to(&shard, partition, core).await else {
                    panic!("{partition} was not moved to {core}")
                };
                assert_eq!(led_by, CoreId(core));
                let status = status(&shard, partition).await;
                assert_eq!((status.core, status.epoch), (CoreId(core), epoch));
                assert_eq!(shard.owner(partition), CoreId(core));
                append(&shard, partition, first + 10).await;
                first += 20;
                check(&shard, partition, first).await;
            }
        }
    });
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        for partition in partitions_of(&shard, "a") {
            until_led_by(&shard, partition, 2).await;
            check(&shard, partition, 140).await;
        }
    });
}

#[test]
fn writes_that_are_under_way_are_acknowledged_before_leadership_goes() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 2, |shard| async move {
        create(&shard, "a", (2, 2, 1)).await;
        let partition = partitions_of(&shard, "a")[0];
        for round in 0..20 {
            let begun = (0..5).map(|n| {
                let batch = batch(round * 50 + n * 10, 10);
                shard.call(Request::Append(Append { partition, batch, ack: None, expected_offset: None }))
            });
            let writes = futures_util::future::join_all(begun);
            let (written, moved) =
                futures_util::future::join(writes, move_to(&shard, partition, round as u16 % 2)).await;
            assert!(matches!(moved, Ok(Reply::Moved(_))), "{moved:?}");
            for outcome in written {
                // None of an unknown fate.
                assert!(matches!(outcome, Ok(_) | Err(RequestError::NotLeader { .. })), "{outcome:?}");
            }
        }
    });
}

#[test]
fn what_cannot_be_moved_is_refused_with_the_reason() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        create(&shard, "a", (2, 2, 1)).await;
        let partition = partitions_of(&shard, "a")[0];
        let reason = |outcome: Outcome| match outcome {
            Err(RequestError::MoveRefused { reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(move_to(&shard, partition, 3).await), "there is no core 3; there are 0 to 2");
    });
}

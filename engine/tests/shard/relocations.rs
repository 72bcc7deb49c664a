//! Copies that move to another core of their drive, on the real runtime.

use std::{cell::Cell, path::PathBuf, rc::Rc, time::Duration};

use pyralog_engine::{
    error::RequestError,
    replication::assignment::ReplicaId,
    runtime::{Runtime, glommio::GlommioRuntime},
    shard::{
        Shard,
        control::Moved,
        placement::Drives,
        request::{Append, Fetch, Outcome, Reply, Request},
    },
    types::{AckLevel, CoreId, DriveId, Offset, PartitionId},
};

use crate::{
    moves::{self, append, move_to, status, until_led_by},
    support::{ask, batch, check, config, create, data_dir, partitions_of, serve, serve_with},
};

async fn moved_to(shard: &Shard<GlommioRuntime>, partition: PartitionId, core: u16) -> Moved {
    match move_to(shard, partition, core).await {
        Ok(Reply::Moved(moved)) => moved,
        other => panic!("{partition} was not moved to {core}: {other:?}"),
    }
}

#[test]
fn the_only_copy_goes_from_core_to_core_and_is_where_it_was_after_a_restart() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        for partition in create(&shard, "a", 2).await {
            let mut first = 0;
            for core in [1, 2, 0, 0, 1, 2] {
                append(&shard, partition, first).await;
                assert_eq!(moved_to(&shard, partition, core).await.core, CoreId(core));
                assert_eq!(
                    (shard.owner(partition), status(&shard, partition).await.core),
                    (CoreId(core), CoreId(core))
                );
                append(&shard, partition, first + 10).await;
                first += 20;
                check(&shard, partition, first).await;
            }
        }
    });
    for (cores, there) in [(3, true), (2, false), (3, true)] {
        serve(dir.path().to_path_buf(), cores, move |shard| async move {
            for partition in partitions_of(&shard, "a") {
                assert!(!there || shard.owner(partition) == CoreId(2));
                check(&shard, partition, 120).await;
            }
        });
    }
}

/// Appends batches of ten records one after the other until told to stop; again where it was not stored. Gives how many
/// records that were.
async fn write_until(shard: Shard<GlommioRuntime>, partition: PartitionId, stop: Rc<Cell<bool>>) -> usize {
    let (mut first, mut refused) = (0, 0);
    while !stop.get() {
        let ack = [AckLevel::Received, AckLevel::Written, AckLevel::Durable][first / 10 % 3];
        let append = Append { partition, batch: batch(first, 10), ack: Some(ack), expected_offset: None };
        match shard.call(Request::Append(append)).await {
            Ok(Reply::Appended(appended)) => {
                assert_eq!(appended.base_offset, Offset(first as u64));
                first += 10;
            }
            // Nothing else: no write has an unknown fate.
            Err(RequestError::NotLeader { .. }) => {
                refused += 1;
                shard.runtime().sleep(Duration::from_millis(1)).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "no write met the move");
    first
}

#[test]
fn writes_that_are_under_way_are_stored_once_and_waiting_readers_are_told_where_to_ask() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        let partition = create(&shard, "a", 1).await[0];
        let stop = Rc::new(Cell::new(false));
        let writer = write_until(shard.clone(), partition, Rc::clone(&stop));
        let mover = async {
            for round in 0..30 {
                moved_to(&shard, partition, round % 3).await;
                shard.runtime().sleep(Duration::from_millis(10)).await;
            }
            stop.set(true);
        };
        let (count, ()) = futures_util::future::join(writer, mover).await;
        check(&shard, partition, count).await;

        let end = Offset(count as u64);
        let fetch = Fetch { partition, offset: end, max_bytes: 1 << 20, max_wait: Duration::from_secs(20) };
        let from = shard.owner(partition);
        let to = CoreId((from.0 + 1) % 3);
        let (told, _) =
            futures_util::future::join(shard.call(Request::Fetch(fetch)), moved_to(&shard, partition, to.0)).await;
        assert!(matches!(told, Err(RequestError::NotLeader { leader: Some(leader), .. }) if leader == to), "{told:?}");
    });
}

#[test]
fn one_of_several_copies_goes_where_none_is_and_leads_there() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 4, |shard| async move {
        moves::create(&shard, "a", (2, 2, 1)).await;
        for partition in partitions_of(&shard, "a") {
            let mut first = 0;
            for core in [0, 1, 2, 3, 0, 3] {
                append(&shard, partition, first).await;
                let moved = moved_to(&shard, partition, core).await;
                let status = status(&shard, partition).await;
                assert_eq!((status.core, status.replica, status.epoch), (CoreId(core), moved.replica, moved.epoch));
                assert!(status.replicas.iter().any(|copy| copy.core == Some(CoreId(core))), "{status:?}");
                append(&shard, partition, first + 10).await;
                first += 20;
                check(&shard, partition, first).await;
            }
        }
    });
    serve(dir.path().to_path_buf(), 4, |shard| async move {
        for partition in partitions_of(&shard, "a") {
            until_led_by(&shard, partition, 3).await;
            check(&shard, partition, 120).await;
        }
    });
}

#[test]
fn a_copy_stays_on_its_drive() {
    let (one, other) = (data_dir(), data_dir());
    let dirs: Vec<PathBuf> = [&one, &other].map(|dir| dir.path().to_path_buf()).into();
    let drives = Drives::new((0..2).map(DriveId).zip(dirs).collect());
    serve_with(config(drives), 4, |shard| async move {
        let partition = create(&shard, "a", 1).await[0];
        let reason = |outcome: Outcome| match outcome {
            Err(RequestError::MoveRefused { reason }) => reason,
            other => panic!("{other:?}"),
        };
        append(&shard, partition, 0).await;
        let own = shard.owner(partition).0;
        let (near, far) = ((own + 2) % 4, (own + 1) % 4);
        let possible = if own % 2 == 0 { "0, 2" } else { "1, 3" };
        let words = format!(
            "no copy of it is on the drive of core {far}, and copies stay on their drive; possible are {possible}"
        );
        assert_eq!(reason(move_to(&shard, partition, far).await), words);
        assert_eq!(moved_to(&shard, partition, near).await.replica, ReplicaId(0));
        check(&shard, partition, 10).await;
        assert!(matches!(ask(&shard, Request::Describe(partition)).await, Ok(Reply::Described(_))));
    });
}

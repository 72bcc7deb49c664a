//! Partitions with several copies, on the real runtime: what one core acknowledged, the others have.

use std::time::Duration;

use pyralog_engine::{
    error::RequestError,
    runtime::{Runtime, glommio::GlommioRuntime},
    settings::{LogSettings, Replication},
    shard::{
        Shard,
        request::{Append, CreateLog, Outcome, Reply, Request},
    },
    types::{AckLevel, Offset, PartitionId},
};

use crate::support::{batch, check, data_dir, partitions_of, serve};

/// Asks again while no copy leads, as clients do.
async fn ask(shard: &Shard<GlommioRuntime>, request: Request) -> Outcome {
    for _ in 0..1_000 {
        match shard.call(request.clone()).await {
            Err(RequestError::NotLeader { .. }) => shard.runtime().sleep(Duration::from_millis(5)).await,
            other => return other,
        }
    }
    panic!("nobody leads for 5 s");
}

async fn append(shard: &Shard<GlommioRuntime>, partition: PartitionId, first: usize, ack: AckLevel) {
    let append = Append { partition, batch: batch(first, 10), ack: Some(ack), expected_offset: None };
    match ask(shard, Request::Append(append)).await {
        Ok(Reply::Appended(appended)) => assert_eq!(appended.base_offset, Offset(first as u64)),
        other => panic!("{other:?}"),
    }
}

async fn create(shard: &Shard<GlommioRuntime>, name: &str, (n, w, r): (u8, u8, u8)) -> Outcome {
    let replication = Some(Replication { replication_factor: n, write_quorum: w, read_quorum: r });
    let settings = LogSettings { replication, ..LogSettings::default() };
    shard.call(Request::CreateLog(CreateLog { name: name.parse().unwrap(), partitions: 2, settings })).await
}

#[test]
fn what_a_quorum_acknowledged_is_there_after_a_restart_on_any_number_of_cores() {
    let dir = data_dir();
    let quorums = [("a", (2, 2, 1)), ("b", (3, 2, 2)), ("c", (3, 3, 1)), ("d", (3, 1, 1))];
    serve(dir.path().to_path_buf(), 3, move |shard| async move {
        for (name, numbers) in quorums {
            assert!(matches!(create(&shard, name, numbers).await, Ok(Reply::LogCreated(_))));
        }
        for (name, _) in quorums {
            for partition in partitions_of(&shard, name) {
                for first in (0..600).step_by(10) {
                    let ack = [AckLevel::Received, AckLevel::Written, AckLevel::Durable][first / 10 % 3];
                    append(&shard, partition, first, ack).await;
                }
                append(&shard, partition, 600, AckLevel::Durable).await;
                check(&shard, partition, 610).await;
            }
        }
    });
    for (life, cores) in [1, 2, 3].into_iter().enumerate() {
        serve(dir.path().to_path_buf(), cores, move |shard| async move {
            for (name, _) in quorums {
                for partition in partitions_of(&shard, name) {
                    append(&shard, partition, 610 + life * 10, AckLevel::Durable).await;
                    check(&shard, partition, 620 + life * 10).await;
                }
            }
        });
    }
}

#[test]
fn more_copies_than_cores_are_refused_with_the_arithmetic() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 2, |shard| async move {
        let refused = create(&shard, "a", (3, 2, 1)).await.unwrap_err();
        let reason = "replication_factor 3 needs 3 cores, one for each copy; this server has 2";
        assert_eq!(refused, RequestError::SettingsRefused { reason: reason.to_owned() });
    });
}

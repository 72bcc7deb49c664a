//! Copies that are added and given up, and quorums that change, while a log is in use; on the real runtime.

use std::{path::Path, time::Duration};

use pyralog_engine::{
    error::RequestError,
    runtime::{Runtime, glommio::GlommioRuntime},
    settings::{LogChanges, LogSettings, Replication, ReplicationChanges},
    shard::{
        Shard,
        control::PartitionStatus,
        request::{AlterLog, Append, CreateLog, Move, Outcome, Reply, Request, Trim},
    },
    types::{AckLevel, CoreId, Offset, PartitionId},
};

use crate::support::{ask, batch, check, data_dir, partitions_of, serve};

type Numbers = (u8, u8, u8);

fn replication((replication_factor, write_quorum, read_quorum): Numbers) -> Replication {
    Replication { replication_factor, write_quorum, read_quorum }
}

async fn create(shard: &Shard<GlommioRuntime>, name: &str, numbers: Numbers) {
    let settings = LogSettings { replication: Some(replication(numbers)), ..LogSettings::default() };
    let create = CreateLog { name: name.parse().unwrap(), partitions: 2, settings };
    assert!(matches!(shard.call(Request::CreateLog(create)).await, Ok(Reply::LogCreated(_))));
}

async fn alter(shard: &Shard<GlommioRuntime>, name: &str, changes: ReplicationChanges) -> Outcome {
    let changes = LogChanges { replication: Some(changes), ..LogChanges::default() };
    shard.call(Request::AlterLog(AlterLog { name: name.parse().unwrap(), changes })).await
}

async fn status(shard: &Shard<GlommioRuntime>, partition: PartitionId) -> PartitionStatus {
    for _ in 0..1_000 {
        match ask(shard, Request::Describe(partition)).await {
            Ok(Reply::Described(status)) if status.leads => return *status,
            Ok(Reply::Described(_)) => shard.runtime().sleep(Duration::from_millis(5)).await,
            other => panic!("{other:?}"),
        }
    }
    panic!("nobody leads {partition} for 5 s");
}

/// Waits until no change of the copies of a log is under way, for 20 s at most.
async fn until_settled(shard: &Shard<GlommioRuntime>, name: &str) {
    let name = name.parse().unwrap();
    for _ in 0..2_000 {
        if shard.catalog().by_name(&name).unwrap().former.is_none() {
            return;
        }
        shard.runtime().sleep(Duration::from_millis(10)).await;
    }
    for partition in partitions_of(shard, &name.to_string()) {
        println!("{:?}", status(shard, partition).await);
    }
    panic!("the copies do not come to be what they are to be: {:?}", shard.catalog().by_name(&name));
}

/// Appends ten records, again while nobody leads.
async fn append(shard: &Shard<GlommioRuntime>, partition: PartitionId, first: usize) {
    let expected_offset = Some(Offset(first as u64));
    let append = Append { partition, batch: batch(first, 10), ack: Some(AckLevel::Durable), expected_offset };
    for _ in 0..1_000 {
        match ask(shard, Request::Append(append.clone())).await {
            Ok(Reply::Appended(appended)) => return assert_eq!(appended.base_offset, Offset(first as u64)),
            Err(RequestError::WrongOffset { end, .. }) if end == Offset(first as u64 + 10) => return,
            Err(error) if error.is_retriable() => shard.runtime().sleep(Duration::from_millis(5)).await,
            Err(RequestError::OutcomeUnknown { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("nothing can be appended for 5 s");
}

fn copies_on(dir: &Path) -> Vec<String> {
    let listed = std::fs::read_dir(dir.join("logs/default/a")).unwrap();
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until these copies have directories and no other has, for 20 s at most: a core removes what was given up when
/// it hears of it.
async fn until_copies_are(shard: &Shard<GlommioRuntime>, dir: &Path, expected: &[String]) {
    for _ in 0..2_000 {
        if copies_on(dir) == expected {
            return;
        }
        shard.runtime().sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(copies_on(dir), expected);
}

/// Grows and shrinks with writes between and meanwhile; gives how many records there are.
async fn go_through(shard: &Shard<GlommioRuntime>, dir: &Path, steps: &[Numbers], mut first: usize) -> usize {
    let partitions = partitions_of(shard, "a");
    for numbers in steps {
        let outcome = alter(shard, "a", replication(*numbers).into()).await;
        assert!(matches!(outcome, Ok(Reply::LogAltered(_))), "{numbers:?}: {outcome:?}");
        for _ in 0..20 {
            for partition in &partitions {
                append(shard, *partition, first).await;
            }
            first += 10;
        }
        until_settled(shard, "a").await;
        for partition in &partitions {
            let status = status(shard, *partition).await;
            assert_eq!((status.replication, status.wanted), (replication(*numbers), None));
            assert_eq!(status.replicas.len(), usize::from(numbers.0));
            check(shard, *partition, first).await;
        }
        let expected = (0..2).flat_map(|index| {
            (0..numbers.0).map(move |copy| if copy == 0 { index.to_string() } else { format!("{index}.{copy}") })
        });
        until_copies_are(shard, dir, &expected.collect::<Vec<_>>()).await;
    }
    first
}

#[test]
fn copies_and_quorums_change_while_a_log_is_in_use() {
    let dir = data_dir();
    let home = dir.path().to_path_buf();
    serve(home.clone(), 3, |shard| async move {
        create(&shard, "a", (2, 2, 1)).await;
        let steps = [(3, 2, 2), (3, 3, 1), (3, 2, 1), (2, 2, 2), (2, 1, 2), (3, 3, 3), (2, 2, 1)];
        let count = go_through(&shard, &home, &steps, 0).await;
        assert_eq!(count, 1_400);
    });
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        for partition in partitions_of(&shard, "a") {
            check(&shard, partition, 1_400).await;
            assert_eq!(status(&shard, partition).await.replication, replication((2, 2, 1)));
        }
    });
}

#[test]
fn a_log_with_one_copy_gets_others_and_gives_them_up_again() {
    let dir = data_dir();
    let home = dir.path().to_path_buf();
    // Records of several reigns, which nobody but the only copy knows.
    for life in 0..3 {
        serve(home.clone(), 3, move |shard| async move {
            if life == 0 {
                create(&shard, "a", (1, 1, 1)).await;
            }
            for partition in partitions_of(&shard, "a") {
                append(&shard, partition, life * 10).await;
            }
        });
    }
    let again = home.clone();
    serve(home.clone(), 3, |shard| async move {
        let steps = [(2, 2, 1), (3, 2, 2), (2, 2, 1), (1, 1, 1), (3, 3, 1), (1, 1, 1)];
        assert_eq!(go_through(&shard, &again, &steps, 30).await, 1_230);
    });
    let again = home.clone();
    serve(home, 3, |shard| async move {
        for partition in partitions_of(&shard, "a") {
            check(&shard, partition, 1_230).await;
        }
        assert_eq!(go_through(&shard, &again, &[(2, 2, 1)], 1_230).await, 1_430);
    });
}

#[test]
fn an_only_copy_that_begins_within_a_batch_gets_others_when_it_begins_with_a_whole_one() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        let create = CreateLog { name: "a".parse().unwrap(), partitions: 2, settings: LogSettings::default() };
        assert!(matches!(shard.call(Request::CreateLog(create)).await, Ok(Reply::LogCreated(_))));
        let partitions = partitions_of(&shard, "a");
        for partition in &partitions {
            append(&shard, *partition, 0).await;
            append(&shard, *partition, 10).await;
        }
        let trim = async |before| {
            let trim = Trim { partition: partitions[1], before: Offset(before) };
            assert!(matches!(ask(&shard, Request::Trim(trim)).await, Ok(Reply::Trimmed(_))));
        };
        trim(4).await;
        let more = ReplicationChanges { replication_factor: Some(2), write_quorum: Some(2), ..Default::default() };
        let Err(RequestError::SettingsRefused { reason }) = alter(&shard, "a", more).await else {
            panic!("not refused")
        };
        assert!(reason.contains("trimmed to 4, within the batch that begins at 0"), "{reason}");
        for partition in &partitions {
            append(&shard, *partition, 20).await;
        }
        trim(10).await;
        assert!(matches!(alter(&shard, "a", more).await, Ok(Reply::LogAltered(_))));
        until_settled(&shard, "a").await;
        append(&shard, partitions[1], 30).await;
        let status = status(&shard, partitions[1]).await;
        assert_eq!((status.start_offset, status.replication), (Offset(10), replication((2, 2, 1))));
    });
}

#[test]
fn a_leader_that_is_given_up_hands_over_before() {
    let dir = data_dir();
    let home = dir.path().to_path_buf();
    serve(home.clone(), 3, |shard| async move {
        create(&shard, "a", (3, 2, 1)).await;
        for partition in partitions_of(&shard, "a") {
            let last = status(&shard, partition).await.replicas[2].core.unwrap();
            assert!(matches!(shard.call(Request::Move(Move { partition, to: last })).await, Ok(Reply::Moved(_))));
            assert_eq!(status(&shard, partition).await.replica.0, 2);
        }
        go_through(&shard, &home, &[(2, 2, 1)], 0).await;
        assert!(shard.catalog().logs().all(|log| log.leaders.is_empty()));
    });
}

#[test]
fn a_change_that_was_cut_off_goes_on_at_the_next_start() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        create(&shard, "a", (2, 2, 1)).await;
        for partition in partitions_of(&shard, "a") {
            append(&shard, partition, 0).await;
        }
        assert!(matches!(alter(&shard, "a", replication((3, 2, 1)).into()).await, Ok(Reply::LogAltered(_))));
        shard.shut_down().await;
    });
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        until_settled(&shard, "a").await;
        for partition in partitions_of(&shard, "a") {
            check(&shard, partition, 10).await;
            assert_eq!(status(&shard, partition).await.replicas.len(), 3);
        }
    });
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_and_a_change_under_way_can_be_turned_back() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 3, |shard| async move {
        create(&shard, "a", (2, 2, 1)).await;
        let reason = |outcome: Outcome| match outcome {
            Err(RequestError::SettingsRefused { reason }) => reason,
            other => panic!("{other:?}"),
        };
        let four = reason(alter(&shard, "a", replication((4, 3, 1)).into()).await);
        assert_eq!(four, "replication_factor 4 needs 4 cores, one for each copy; this server has 3");
        let quorum = ReplicationChanges { write_quorum: Some(3), ..ReplicationChanges::default() };
        let too_many = reason(alter(&shard, "a", quorum).await);
        assert_eq!(too_many, "the write quorum is 1 to 2, the number of replicas, not 3");
        assert!(matches!(alter(&shard, "a", replication((3, 2, 1)).into()).await, Ok(Reply::LogAltered(_))));
        let meanwhile = reason(alter(&shard, "a", replication((1, 1, 1)).into()).await);
        assert!(meanwhile.contains("are changing from 2 with write quorum 2"), "{meanwhile}");
        // The same once more is no other change; and back.
        assert!(matches!(alter(&shard, "a", replication((3, 2, 1)).into()).await, Ok(Reply::LogAltered(_))));
        assert!(matches!(alter(&shard, "a", replication((2, 2, 1)).into()).await, Ok(Reply::LogAltered(_))));
        until_settled(&shard, "a").await;
        for partition in partitions_of(&shard, "a") {
            append(&shard, partition, 0).await;
            assert_eq!(status(&shard, partition).await.replicas.len(), 2);
            assert!(status(&shard, partition).await.core < CoreId(3));
        }
    });
}

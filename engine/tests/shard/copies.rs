//! Partitions with several copies, on the real runtime: what one core acknowledged, the others have.

use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

use futures_util::future::join_all;
use pyralog_engine::{
    error::RequestError,
    replication::assignment::ReplicaId,
    runtime::{Runtime, glommio::GlommioRuntime},
    settings::{LogSettings, Replication},
    shard::{
        Shard, ShardConfig,
        control::{PartitionStatus, RecoveryReport, ReplicaRole},
        placement::Drives,
        request::{Append, CreateLog, Outcome, Recover, Reply, Request, Trim},
    },
    types::{AckLevel, Offset, PartitionId},
};

use crate::support::{ask, batch, check, config, data_dir, partitions_of, serve, serve_with};

async fn append(shard: &Shard<GlommioRuntime>, partition: PartitionId, first: usize, ack: AckLevel) {
    let expected_offset = Some(Offset(first as u64));
    let append = Append { partition, batch: batch(first, 10), ack: Some(ack), expected_offset };
    // On a busy machine a core may be silent for so long that another copy takes over: then the fate of what was under
    // way is not known, and is found out by asking for the same place again.
    let mut is_unknown = false;
    for _ in 0..100 {
        match ask(shard, Request::Append(append.clone())).await {
            Ok(Reply::Appended(appended)) => return assert_eq!(appended.base_offset, Offset(first as u64)),
            Err(RequestError::OutcomeUnknown { .. }) => is_unknown = true,
            Err(RequestError::WrongOffset { end, .. }) if is_unknown && end == Offset(first as u64 + 10) => return,
            other => panic!("{other:?}"),
        }
    }
    panic!("the fate of an append is unknown again and again");
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
fn a_copy_that_nobody_waits_for_takes_its_time_to_write() {
    let dir = data_dir();
    let an_hour = Duration::from_secs(3600);
    let config = ShardConfig { buffer_time_max: an_hour, sync_interval: an_hour, ..config(Drives::single(dir.path())) };
    serve_with(config, 2, |shard| async move {
        for (name, numbers) in [("a", (2, 1, 1)), ("b", (2, 2, 1))] {
            assert!(matches!(create(&shard, name, numbers).await, Ok(Reply::LogCreated(_))));
            for partition in partitions_of(&shard, name) {
                // Many at once: followers are sent some of them while producers wait for others.
                let (ack, batch) = (Some(AckLevel::Durable), batch(0, 10));
                let append = Append { partition, batch, ack, expected_offset: None };
                let appends = (0..50).map(|_| shard.call(Request::Append(append.clone())));
                assert!(join_all(appends).await.iter().all(Result::is_ok));
            }
        }
        let have_all = |status: &PartitionStatus| status.replicas.iter().all(|r| r.received_offset == Offset(500));
        for (name, synced) in [("a", 1), ("b", 2)] {
            for partition in partitions_of(&shard, name) {
                let replicas = described(&shard, partition, have_all).await.replicas;
                let count = replicas.iter().filter(|replica| replica.durable_offset > Offset(0)).count();
                assert_eq!(count, synced, "{replicas:?}");
            }
        }
    });
}

/// Changes bytes in the middle of the first segment of a copy, past the header of the batch that stands there.
fn spoil(dir: &Path, copy: &str, at: u64) {
    let path = dir.join("logs/default/a").join(copy).join(format!("{:020}.seg", 0));
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xa5; 64], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_is_damaged_on_one_copy_or_the_other_is_repaired_and_read() {
    let dir = data_dir();
    let home = dir.path().to_path_buf();
    serve(home.clone(), 2, move |shard| async move {
        assert!(matches!(create(&shard, "a", (2, 2, 1)).await, Ok(Reply::LogCreated(_))));
        let partition = partitions_of(&shard, "a")[0];
        // Enough that the first segment is sealed.
        for first in (0..10_000).step_by(10) {
            append(&shard, partition, first, AckLevel::Received).await;
        }
        append(&shard, partition, 10_000, AckLevel::Durable).await;
        check(&shard, partition, 10_010).await;
        // While it runs, in what nobody has in memory.
        for (copy, at) in [("0", 100_000), ("0.1", 200_000), ("0", 300_000)] {
            spoil(&home, copy, at);
        }
        check(&shard, partition, 10_010).await;
    });
    // Of the copy that does not lead nobody read: whichever leads now, all is there.
    for at in [400_000, 0] {
        spoil(dir.path(), "0", at);
        spoil(dir.path(), "0.1", 500_000);
        serve(dir.path().to_path_buf(), 2, move |shard| async move {
            check(&shard, partitions_of(&shard, "a")[0], 10_010).await;
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

async fn recover(shard: &Shard<GlommioRuntime>, partition: PartitionId, copy: Option<u8>, accept: bool) -> Outcome {
    let recover = Recover { partition, copy: copy.map(ReplicaId), accept_data_loss: accept };
    shard.call(Request::Recover(recover)).await
}

async fn report(
    shard: &Shard<GlommioRuntime>,
    partition: PartitionId,
    copy: Option<u8>,
    accept: bool,
) -> RecoveryReport {
    match recover(shard, partition, copy, accept).await {
        Ok(Reply::Recovery(report)) => *report,
        other => panic!("{other:?}"),
    }
}

async fn refused(shard: &Shard<GlommioRuntime>, partition: PartitionId, copy: Option<u8>) -> String {
    match recover(shard, partition, copy, true).await {
        Err(RequestError::RecoveryRefused { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

/// How the partition is, once it is as `wanted`.
async fn described(
    shard: &Shard<GlommioRuntime>,
    partition: PartitionId,
    wanted: impl Fn(&PartitionStatus) -> bool,
) -> PartitionStatus {
    for _ in 0..2_000 {
        match shard.call(Request::Describe(partition)).await {
            Ok(Reply::Described(status)) if wanted(&status) => return *status,
            _ => shard.runtime().sleep(Duration::from_millis(5)).await,
        }
    }
    panic!("{:?}", shard.call(Request::Describe(partition)).await);
}

fn all_in_sync(status: &PartitionStatus) -> bool {
    let replicas = &status.replicas;
    status.leads
        && replicas.len() == usize::from(status.replication.replication_factor)
        && replicas.iter().all(|replica| replica.in_sync && replica.durable_offset == status.high_watermark)
}

/// Makes log `a` with these numbers on so many cores, with 100 records in its first partition on all copies.
fn prepare(dir: &Path, cores: usize, numbers: (u8, u8, u8)) {
    serve(dir.to_path_buf(), cores, move |shard| async move {
        assert!(matches!(create(&shard, "a", numbers).await, Ok(Reply::LogCreated(_))));
        let partition = partitions_of(&shard, "a")[0];
        for first in (0..100).step_by(10) {
            append(&shard, partition, first, AckLevel::Durable).await;
            // No copy writes all of it at once: what is written later says that what was before is durable.
            if first % 50 == 40 {
                described(&shard, partition, all_in_sync).await;
            }
        }
        let reason = refused(&shard, partition, None).await;
        assert!(reason.ends_with("leads the partition: there is nothing to recover"), "{reason}");
    });
}

fn remove(dir: &Path, copy: &str) {
    fs::remove_dir_all(dir.join("logs/default/a").join(copy)).unwrap();
}

#[test]
fn by_the_operators_word_the_copy_that_is_left_leads_and_the_other_is_rebuilt() {
    for (gone, left) in [("0", 1), ("0.1", 0)] {
        let dir = data_dir();
        prepare(dir.path(), 2, (2, 1, 1));
        remove(dir.path(), gone);
        serve(dir.path().to_path_buf(), 2, move |shard| async move {
            let partition = partitions_of(&shard, "a")[0];
            let before = report(&shard, partition, None, false).await;
            assert_eq!((before.leader, before.chosen, before.begun), (None, Some(ReplicaId(left)), None));
            let memory: Vec<_> = before.copies.iter().map(|copy| copy.is_intact).collect();
            assert_eq!(memory, [left == 0, left == 1]);
            assert_eq!(before.copies[usize::from(left)].end_offset, Offset(100));
            assert_eq!(before.copies[usize::from(1 - left)].role, Some(ReplicaRole::Rebuilding));
            let words = refused(&shard, partition, Some(7)).await;
            assert_eq!(words, "there is no copy 7; there are 0, 1");
            let append_now = Append { partition, batch: batch(100, 1), ack: None, expected_offset: None };
            assert!(matches!(shard.call(Request::Append(append_now)).await, Err(RequestError::NotLeader { .. })));

            let after = report(&shard, partition, None, true).await;
            let begun = after.begun.unwrap();
            append(&shard, partition, 100, AckLevel::Durable).await;
            check(&shard, partition, 110).await;
            let status = described(&shard, partition, all_in_sync).await;
            assert_eq!((status.replica, status.forced_epoch), (ReplicaId(left), begun));
        });
        serve(dir.path().to_path_buf(), 2, move |shard| async move {
            let partition = partitions_of(&shard, "a")[0];
            append(&shard, partition, 110, AckLevel::Durable).await;
            check(&shard, partition, 120).await;
            let status = described(&shard, partition, all_in_sync).await;
            assert!(status.forced_epoch.0 > 0, "it is not forgotten");
        });
    }
}

#[test]
fn a_copy_that_its_operator_chose_leads_though_others_have_more() {
    let dir = data_dir();
    prepare(dir.path(), 3, (3, 2, 1));
    ["0", "0.1"].iter().for_each(|copy| remove(dir.path(), copy));
    serve(dir.path().to_path_buf(), 3, move |shard| async move {
        let partition = partitions_of(&shard, "a")[0];
        assert_eq!(report(&shard, partition, None, false).await.chosen, Some(ReplicaId(2)));
        report(&shard, partition, Some(1), true).await.begun.unwrap();
        append(&shard, partition, 0, AckLevel::Durable).await;
        check(&shard, partition, 10).await;
        described(&shard, partition, all_in_sync).await;
    });
}

#[test]
fn a_copy_with_a_damaged_log_is_mended_before_it_leads_and_takes_writes() {
    let dir = data_dir();
    prepare(dir.path(), 2, (2, 1, 1));
    remove(dir.path(), "0");
    let segments = fs::read_dir(dir.path().join("logs/default/a/0.1")).unwrap();
    let paths = segments.map(|entry| entry.unwrap().path());
    let segment = paths.filter(|path| path.extension().is_some_and(|end| end == "seg")).max().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    // In the body of the first batch: padding may be hit anywhere else, and then nothing is damaged.
    bytes[4096 + 90..4096 + 154].fill(0xa5);
    fs::write(&segment, bytes).unwrap();
    serve(dir.path().to_path_buf(), 2, move |shard| async move {
        let partition = partitions_of(&shard, "a")[0];
        let before = report(&shard, partition, None, false).await;
        assert!(before.copies.iter().all(|copy| !copy.is_intact), "{before:?}");
        assert_eq!(before.copies[1].end_offset, Offset(100), "what is intact behind the damage counts");
        assert_eq!(before.chosen, Some(ReplicaId(1)), "it has more");
        report(&shard, partition, None, true).await.begun.unwrap();
        append(&shard, partition, 100, AckLevel::Durable).await;
        assert_eq!(described(&shard, partition, |status| status.leads).await.read_only, None);
        // Nobody can be given what nobody has: the other copy follows once it is given up.
        let before = Offset(90);
        assert!(matches!(shard.call(Request::Trim(Trim { partition, before })).await, Ok(Reply::Trimmed(_))));
        let status = described(&shard, partition, all_in_sync).await;
        assert_eq!((status.start_offset, status.high_watermark), (before, Offset(110)));
    });
}

#[test]
fn a_partition_with_one_copy_has_nobody_to_be_recovered_from() {
    let dir = data_dir();
    serve(dir.path().to_path_buf(), 1, |shard| async move {
        let partition = crate::support::create(&shard, "a", 1).await[0];
        let reason = refused(&shard, partition, None).await;
        assert!(reason.starts_with("the partition has one copy"), "{reason}");
    });
}

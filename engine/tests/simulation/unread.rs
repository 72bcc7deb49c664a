//! A copy whose drive does not give what it takes to open or to cut off its log: rebuilt while the drive still does
//! not, or back as soon as it does; and given up only where the other can do without it.

use std::{path::PathBuf, rc::Rc, time::Duration};

use pyralog_engine::{
    replication::assignment::ReplicaId,
    runtime::sim::{Sim, SimRuntime},
    shard::{
        Shard,
        control::{PartitionStatus, ReplicaRole},
        request::{Reply, Request},
    },
};

use crate::{
    clients::Clients,
    damaged_leader::{PARTITION, begin, keep_writing, status, store_on_one_copy, with_batches, with_batches_on},
    lives::STEPS_MAX,
    plan::Plan,
    spoiling::copies_on,
};

const RECORDS: u64 = 60;

/// The segments of copy `copy`, of two.
fn segments_of(sim: &Sim, plan: &Plan, copy: u8) -> Vec<PathBuf> {
    let copies = copies_on(sim, plan).into_values().next().unwrap();
    let is_it = |dir: &PathBuf| dir.extension().is_some() == (copy == 1);
    copies.into_iter().find(|(dir, _)| is_it(dir)).unwrap().1
}

fn run(sim: &Sim, time: Duration) {
    let until = sim.now() + time;
    sim.keep_going_until(until);
    sim.run_until(|| sim.now() >= until, 30 * STEPS_MAX).unwrap();
}

/// How far the partition reaches, and how it is, if both copies are in sync.
fn end_of(sim: &Sim, runtime: &SimRuntime, shard: &Shard<SimRuntime>, clients: &Rc<Clients>) -> (u64, PartitionStatus) {
    let (end, status) = status(sim, runtime, shard.clone(), Rc::clone(clients));
    let in_sync = status.replicas.len() == 2 && status.replicas.iter().all(|copy| copy.in_sync);
    assert!(status.leads && in_sync, "{status:?}");
    (end, status)
}

#[test]
fn a_copy_that_its_drive_does_not_give_when_it_is_opened_is_rebuilt_whichever_it_is() {
    for (copy, last) in [(0, true), (1, true), (0, false), (1, false)] {
        let (sim, plan, clients, (process, runtime, shard)) = with_batches(RECORDS);
        drop((shard, runtime));
        sim.lose_power(process);
        let segments = segments_of(&sim, &plan, copy);
        assert!(segments.len() > 3, "{segments:?}");
        let path = if last { segments.last() } else { segments.get(1) };
        sim.refuse_reads(path.unwrap(), 0..4096);
        let (_, runtime, shard) = begin(&sim, &plan);
        let written = keep_writing(&runtime, &shard, &clients);
        run(&sim, Duration::from_secs(4));
        assert!(written.get() > 20, "with both copies and no other nothing is written before it is rebuilt");
        let (end, status) = end_of(&sim, &runtime, &shard, &clients);
        assert!(end >= (RECORDS + written.get()) * 20 && status.damages.is_empty(), "{end} {status:?}");
    }
}

#[test]
fn what_a_drive_does_not_give_for_a_moment_only_delays_an_opening() {
    let (sim, plan, clients, (process, runtime, shard)) = with_batches(RECORDS);
    drop((shard, runtime));
    sim.lose_power(process);
    let first = segments_of(&sim, &plan, 1)[0].clone();
    let before = sim.content(&first).unwrap();
    sim.refuse_reads(&first, 0..4096);
    let (_, runtime, shard) = begin(&sim, &plan);
    run(&sim, Duration::from_millis(700));
    sim.allow_reads();
    run(&sim, Duration::from_secs(2));
    assert_eq!(end_of(&sim, &runtime, &shard, &clients).0, RECORDS * 20);
    assert!(sim.content(&first) == Some(before), "it was rebuilt");
}

#[cfg(feature = "planted-bugs")]
#[test]
#[should_panic]
fn a_copy_that_is_given_up_though_it_is_needed_is_missed() {
    use pyralog_engine::testing::bug::{PlantedBug, plant};
    let _planted = crate::damaged_leader::Planted;
    plant(Some(PlantedBug::SpareAnybody));
    a_copy_that_the_others_cannot_do_without_keeps_its_files_and_comes_back_with_its_drive();
}

#[test]
fn a_copy_that_the_others_cannot_do_without_keeps_its_files_and_comes_back_with_its_drive() {
    // With W = 1 only both of two copies elect a leader.
    let (sim, plan, clients, (process, runtime, shard)) = with_batches_on(1, RECORDS);
    drop((shard, runtime));
    sim.lose_power(process);
    let (first, files) = (segments_of(&sim, &plan, 1)[0].clone(), sim.files());
    sim.refuse_reads(&first, 0..4096);
    let (_, runtime, shard) = begin(&sim, &plan);
    run(&sim, Duration::from_secs(300));
    let own = shard.clone();
    let told = async move { own.call(Request::Describe(PARTITION)).await };
    let Ok(Reply::Described(status)) = sim.block_on(&runtime, told, STEPS_MAX).unwrap() else { panic!("no status") };
    assert!(!status.leads, "{status:?}");
    let segments = |files: Vec<(PathBuf, u64)>| {
        files.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg")).count()
    };
    assert_eq!(segments(sim.files()), segments(files));
    sim.allow_reads();
    run(&sim, Duration::from_secs(40));
    assert_eq!(end_of(&sim, &runtime, &shard, &clients).0, RECORDS * 20);
}

#[test]
fn a_copy_that_is_to_be_cut_off_where_its_drive_does_not_give_it_is_rebuilt() {
    let (sim, plan, clients, (process, runtime, shard)) = with_batches(5);
    let leads = status(&sim, &runtime, shard.clone(), Rc::clone(&clients)).1;
    assert!(leads.leads && leads.replica == ReplicaId(0), "{leads:?}");
    store_on_one_copy(&sim, &clients, &plan.drives[1], (process, runtime, shard));
    let (_, runtime, shard) = begin(&sim, &plan);
    // While it cannot say anything copy 1 is elected, which has less.
    sim.stall_drive(&plan.drives[0], Duration::from_secs(3));
    for segment in segments_of(&sim, &plan, 0) {
        sim.refuse_reads(&segment, 0..1 << 20);
    }
    let written = keep_writing(&runtime, &shard, &clients);
    run(&sim, Duration::from_secs(9));
    assert!(written.get() > 20, "nobody takes writes");
    let (end, status) = end_of(&sim, &runtime, &shard, &clients);
    let roles: Vec<_> = status.replicas.iter().map(|copy| copy.role).collect();
    assert!(end >= (5 + written.get()) * 20 && !roles.contains(&ReplicaRole::Closed), "{end} {status:?}");
}

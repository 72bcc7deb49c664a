//! A copy that leads and has damaged records. Those that no other copy ever got it can send to nobody, and the others
//! lead instead. For those that fit nowhere, so that a segment is to be written anew, another leads until it is.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use pyralog_engine::{
    error::RequestError,
    limits::SEGMENT_HEADER_BYTES,
    replication::assignment::ReplicaId,
    runtime::{
        Runtime,
        sim::{ProcessId, Sim, SimConfig, SimRandom, SimRuntime, faults::FaultRates},
    },
    settings::{LogSettings, Replication},
    shard::{
        Shard,
        control::{PartitionStatus, Places, ReplicaRole},
        request::{Append, CreateLog, Fetch, FindOffset, OffsetAt, Outcome, Reply, Request, Trim},
    },
    types::{AckLevel, LogUid, Offset, PartitionId, PartitionIndex},
};

use crate::{
    clients::{Clients, ends, make_batch},
    lives::{STEPS_MAX, prepare_directory, start},
    plan::Plan,
    spoiling::copies_on,
};

pub const PARTITION: PartitionId = PartitionId { log: LogUid(0), index: PartitionIndex(0) };

/// How many records both copies have.
const BEFORE: u64 = 5;

pub async fn append(shard: &Shard<SimRuntime>, clients: &Clients) -> Outcome {
    let (batch, _) = make_batch(0, 20, clients);
    let append = Append { partition: PARTITION, batch, ack: Some(AckLevel::Durable), expected_offset: None };
    shard.call(Request::Append(append)).await
}

pub fn begin(sim: &Sim, plan: &Plan) -> (ProcessId, SimRuntime, Shard<SimRuntime>) {
    let (process, runtimes, shards, _) = start(sim, plan, 2);
    sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
    let shard = shards.borrow()[0].clone().unwrap();
    (process, runtimes[0].clone(), shard)
}

/// Appends batches one after the other, however often the leader changes. Counts those that were acknowledged.
pub fn keep_writing(runtime: &SimRuntime, shard: &Shard<SimRuntime>, clients: &Rc<Clients>) -> Rc<Cell<u64>> {
    let written = Rc::<Cell<u64>>::default();
    let (own, shard, clients, count) = (runtime.clone(), shard.clone(), Rc::clone(clients), Rc::clone(&written));
    runtime.spawn(async move {
        loop {
            match append(&shard, &clients).await {
                Ok(_) => count.set(count.get() + 1),
                Err(_) => own.sleep(Duration::from_millis(5)).await,
            }
        }
    });
    written
}

/// A server with two copies on drives of their own, and so many batches on both.
pub fn with_batches(count: u64) -> (Sim, Plan, Rc<Clients>, (ProcessId, SimRuntime, Shard<SimRuntime>)) {
    with_batches_on(2, count)
}

/// The same with this write quorum.
pub fn with_batches_on(
    write_quorum: u8,
    count: u64,
) -> (Sim, Plan, Rc<Clients>, (ProcessId, SimRuntime, Shard<SimRuntime>)) {
    let replication = Replication { replication_factor: 2, write_quorum, read_quorum: 1 };
    let settings = LogSettings { replication: Some(replication), ..LogSettings::default() };
    let drawn = Plan::draw(&mut SimRandom::new(1, 100));
    let drives = ["/data", "/data1"].map(PathBuf::from).to_vec();
    let plan = Plan { rates: FaultRates::none(), settings, drives, segment_bytes: 24 << 12, ..drawn };
    let sim = Sim::new(1, &SimConfig { rates: FaultRates::none(), alignment: plan.alignment });
    prepare_directory(&sim, &plan);
    let clients = Clients::new(1, &plan);
    let (process, runtime, shard) = begin(&sim, &plan);
    let create = CreateLog { name: "sim".parse().unwrap(), partitions: 1, settings };
    let first = {
        let (shard, clients) = (shard.clone(), Rc::clone(&clients));
        async move {
            shard.call(Request::CreateLog(create)).await.unwrap();
            for _ in 0..count {
                while append(&shard, &clients).await.is_err() {
                    shard.runtime().sleep(Duration::from_millis(5)).await;
                }
            }
        }
    };
    sim.block_on(&runtime, first, STEPS_MAX).unwrap();
    (sim, plan, clients, (process, runtime, shard))
}

/// How far the partition reaches, and how it is.
pub fn status(
    sim: &Sim,
    runtime: &SimRuntime,
    shard: Shard<SimRuntime>,
    clients: Rc<Clients>,
) -> (u64, PartitionStatus) {
    let status = async move {
        let end = ends(0, &shard, PARTITION, &clients).await.unwrap().high_watermark;
        let Ok(Reply::Described(status)) = shard.call(Request::Describe(PARTITION)).await else { panic!("no status") };
        (end.0, *status)
    };
    sim.block_on(runtime, status, STEPS_MAX).unwrap()
}

/// Has the copy that leads store what the other does not get, whose `drive` stalls: nobody is told that it is safe.
/// Then the power is lost.
pub fn store_on_one_copy(
    sim: &Sim,
    clients: &Rc<Clients>,
    drive: &Path,
    (process, runtime, shard): (ProcessId, SimRuntime, Shard<SimRuntime>),
) {
    sim.stall_drive(drive, Duration::from_secs(30));
    for _ in 0..60 {
        let (shard, clients) = (shard.clone(), Rc::clone(clients));
        runtime.spawn(async move { drop(append(&shard, &clients).await) });
    }
    sim.run_for(Duration::from_millis(200), STEPS_MAX).unwrap();
    drop((shard, runtime));
    sim.lose_power(process);
    sim.heal_drive(drive);
}

/// The segments of the copy that leads first, and the folder of the other.
fn leader_and_other(sim: &Sim, plan: &Plan) -> (Vec<PathBuf>, PathBuf) {
    let of_first = copies_on(sim, plan).into_values().next().unwrap();
    // The folders of later copies end with their number.
    let other = of_first.keys().find(|dir| dir.extension().is_some()).unwrap().clone();
    let (_, segments) = of_first.into_iter().find(|(dir, _)| dir.extension().is_none()).unwrap();
    (segments, other)
}

/// A copy that leads, in whose log something is done to records that the other copy never got: while it is away, or as
/// soon as it is open.
fn lead_with_records_of_its_own(away: impl Fn(&Sim, &Path), open: impl Fn(&Sim, &Path)) {
    crate::trace::begin();
    let (sim, plan, clients, (process, runtime, shard)) = with_batches(BEFORE);
    let (_, other) = leader_and_other(&sim, &plan);
    let drive = plan.drives.iter().rev().find(|drive| other.starts_with(drive)).unwrap();
    store_on_one_copy(&sim, &clients, drive, (process, runtime, shard));
    let (segments, _) = leader_and_other(&sim, &plan);
    assert!(segments.len() > 3, "{segments:?}");
    away(&sim, &segments[segments.len() / 2]);

    let (_, runtime, shard) = begin(&sim, &plan);
    open(&sim, &segments[segments.len() / 2]);
    let written = keep_writing(&runtime, &shard, &clients);
    let until = sim.now() + Duration::from_secs(10);
    sim.keep_going_until(until);
    sim.run_until(|| written.get() > 20 || sim.now() >= until, 30 * STEPS_MAX).unwrap();
    assert!(written.get() > 20, "nobody takes writes");
    let (end, status) = self::status(&sim, &runtime, shard, clients);
    assert!(status.damages.is_empty() && status.replicas.len() == 2, "{status:?}");
    assert!(status.replicas.iter().all(|replica| replica.role != ReplicaRole::Closed), "{status:?}");
    assert!(status.leads && status.replica != ReplicaId(0) && end >= (BEFORE + written.get()) * 20, "{end} {status:?}");
}

#[test]
fn a_leader_that_alone_has_damaged_records_is_replaced_and_rebuilt() {
    let flip = |sim: &Sim, segment: &Path| assert!(sim.flip_bit_at(segment, SEGMENT_HEADER_BYTES + 200));
    lead_with_records_of_its_own(flip, |_, _| ());
}

#[test]
fn a_leader_that_cannot_read_what_no_other_copy_has_is_replaced_and_rebuilt() {
    // At the beginning of a segment, and behind whole blocks of its index.
    for at in [SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + (40 << 10)] {
        lead_with_records_of_its_own(|_, _| (), |sim, segment| sim.refuse_reads(segment, at..at + 512));
    }
}

/// Takes back what was planted, also when a test panics.
#[cfg(feature = "planted-bugs")]
pub struct Planted;

#[cfg(feature = "planted-bugs")]
impl Drop for Planted {
    fn drop(&mut self) {
        pyralog_engine::testing::bug::plant(None);
    }
}

#[cfg(feature = "planted-bugs")]
#[test]
#[should_panic(expected = "nobody takes writes")]
fn a_leader_that_does_nothing_about_what_it_cannot_read_keeps_all_from_writing() {
    let _planted = Planted;
    pyralog_engine::testing::bug::plant(Some(pyralog_engine::testing::bug::PlantedBug::NeverRepair));
    let at = SEGMENT_HEADER_BYTES;
    lead_with_records_of_its_own(|_, _| (), |sim, segment| sim.refuse_reads(segment, at..at + 512));
}

/// Reads the first record again and again. Counts how often it came, and notes what a reader should not be told.
fn keep_reading(runtime: &SimRuntime, shard: &Shard<SimRuntime>) -> Rc<RefCell<(u64, Vec<RequestError>)>> {
    let read = Rc::<RefCell<(u64, Vec<RequestError>)>>::default();
    let (own, shard, seen) = (runtime.clone(), shard.clone(), Rc::clone(&read));
    runtime.spawn(async move {
        let fetch = Fetch { partition: PARTITION, offset: Offset(0), max_bytes: 1, max_wait: Duration::ZERO };
        loop {
            match shard.call(Request::Fetch(fetch)).await {
                Ok(_) => seen.borrow_mut().0 += 1,
                Err(RequestError::NotLeader { .. }) => {}
                Err(error) => seen.borrow_mut().1.push(error),
            }
            own.sleep(Duration::from_millis(5)).await;
        }
    });
    read
}

/// A server that was started again with many records on both copies, of which `away` and then `open` do something to
/// the first segment of the leader. Whoever reads the first record is told of no error, and the leader leads again when
/// its segment is written anew.
fn have_a_segment_written_anew(away: impl Fn(&Sim, &Path), open: impl Fn(&Sim, &Path)) -> PartitionStatus {
    let (sim, plan, clients, (process, runtime, shard)) = with_batches(60);
    let (end, before) = status(&sim, &runtime, shard.clone(), Rc::clone(&clients));
    assert!(before.leads && before.replica == ReplicaId(0), "{before:?}");
    drop((shard, runtime));
    sim.lose_power(process);
    let (segments, _) = leader_and_other(&sim, &plan);
    assert!(segments.len() > 3, "{segments:?}");
    away(&sim, &segments[0]);

    let (_, runtime, shard) = begin(&sim, &plan);
    open(&sim, &segments[0]);
    let read = keep_reading(&runtime, &shard);
    sim.keep_going_until(sim.now() + Duration::from_secs(10));
    let until = sim.now() + Duration::from_secs(5);
    sim.run_until(|| sim.now() >= until, 30 * STEPS_MAX).unwrap();
    let (times, wrong) = read.take();
    let (end_after, after) = status(&sim, &runtime, shard, clients);
    assert!(times > 500 && wrong.is_empty(), "read {times} times, told {wrong:?}");
    assert!(end_after == end && after.damages.is_empty(), "{after:?}");
    // The restart, the handover, and back.
    assert!(after.leads && after.replica == ReplicaId(0) && after.epoch.0 <= before.epoch.0 + 3 * 8, "{after:?}");
    after
}

#[test]
fn a_leader_whose_segment_is_to_be_written_anew_leads_again_only_after_that() {
    // The header, and the batch that could tell it.
    let flip = |sim: &Sim, segment: &Path| {
        for at in [8, SEGMENT_HEADER_BYTES + 200] {
            assert!(sim.flip_bit_at(segment, at));
        }
    };
    let after = have_a_segment_written_anew(flip, |_, _| ());
    assert!(after.repaired_records > 0, "{after:?}");
}

#[test]
fn for_what_a_leader_cannot_read_and_another_has_that_one_leads_until_the_segment_is_written_anew() {
    let at = SEGMENT_HEADER_BYTES;
    let after = have_a_segment_written_anew(|_, _| (), |sim, segment| sim.refuse_reads(segment, at..at + 512));
    assert!(after.epoch.0 > 2 * 8, "nobody else led: {after:?}");
}

/// What a request comes to at a leader whose first batch of many is damaged, and whole on the other copy.
fn asked_of_a_damaged_leader(request: Request) -> Reply {
    let (sim, plan, _, (process, runtime, shard)) = with_batches(60);
    drop((shard, runtime));
    sim.lose_power(process);
    let (segments, _) = leader_and_other(&sim, &plan);
    assert!(sim.flip_bit_at(&segments[0], SEGMENT_HEADER_BYTES + 200));
    let (_, runtime, shard) = begin(&sim, &plan);
    let asking = async move {
        loop {
            match shard.call(request.clone()).await {
                Err(RequestError::NotLeader { .. }) => shard.runtime().sleep(Duration::from_millis(1)).await,
                outcome => return outcome.unwrap(),
            }
        }
    };
    sim.block_on(&runtime, asking, 30 * STEPS_MAX).unwrap()
}

#[test]
fn whoever_trims_or_looks_for_a_time_where_the_leader_is_damaged_is_not_told_of_damage_that_others_repair() {
    let trim = Trim { partition: PARTITION, before: Offset(10) };
    let trimmed = asked_of_a_damaged_leader(Request::Trim(trim));
    assert!(matches!(&trimmed, Reply::Trimmed(now) if now.start_offset == Offset(0)), "{trimmed:?}");
    let find = FindOffset { partition: PARTITION, at: OffsetAt::Timestamp(0) };
    let found = asked_of_a_damaged_leader(Request::FindOffset(find));
    assert!(matches!(&found, Reply::Found(found) if found.offset == Offset(0)), "{found:?}");
}

/// A server that was started again with many records on both copies, whose leader is asked how the partition is after
/// something was done to it and its other copy: its first segment, and the drive of the other.
fn described_after(something: impl Fn(&Sim, &Path, &Path)) -> (Sim, PartitionStatus, impl Fn(&Sim) -> PartitionStatus) {
    let (sim, plan, clients, (process, runtime, shard)) = with_batches(60);
    drop((shard, runtime));
    sim.lose_power(process);
    let (segments, other) = leader_and_other(&sim, &plan);
    let drive = plan.drives.iter().rev().find(|drive| other.starts_with(drive)).unwrap();
    let (_, runtime, shard) = begin(&sim, &plan);
    sim.run_for(Duration::from_secs(1), 30 * STEPS_MAX).unwrap();
    something(&sim, &segments[0], drive);
    _ = keep_reading(&runtime, &shard);
    _ = keep_writing(&runtime, &shard, &clients);
    sim.keep_going_until(sim.now() + Duration::from_secs(20));
    let later = move |sim: &Sim| {
        sim.run_for(Duration::from_secs(3), 30 * STEPS_MAX).unwrap();
        status(sim, &runtime, shard.clone(), Rc::clone(&clients)).1
    };
    let status = later(&sim);
    (sim, status, later)
}

#[test]
fn what_a_drive_does_not_give_is_shown_until_it_gives_it() {
    let at = SEGMENT_HEADER_BYTES;
    let (sim, shown, later) = described_after(|sim, segment, other_drive| {
        sim.refuse_reads(segment, at..at + 512);
        // Nobody who could give it, or lead.
        sim.stall_drive(other_drive, Duration::from_secs(60));
    });
    assert!(shown.leads && shown.replica == ReplicaId(0), "{shown:?}");
    let withheld = Places { places: 1, first_offset: Offset(0), records: None };
    assert_eq!((shown.replicas[0].withheld, shown.replicas[0].damaged), (Some(withheld), None), "{shown:?}");
    assert_eq!(shown.replicas[1].withheld, None, "{shown:?}");
    sim.allow_reads();
    assert_eq!(later(&sim).replicas[0].withheld, None);
}

#[test]
fn a_leader_says_of_other_copies_what_they_say_of_themselves() {
    let (_, shown, _) = described_after(|sim, _, other_drive| sim.fail_drive(other_drive));
    assert!(shown.leads && shown.replica == ReplicaId(0), "{shown:?}");
    assert_eq!(shown.replicas[1].role, ReplicaRole::Closed, "{shown:?}");
}

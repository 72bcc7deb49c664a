//! Logs of several copies whose creation or deletion a failing drive cuts off. A copy that is not there is new until
//! every copy was made, also in later lives; so none may have promised or accepted anything before. And what is left of
//! a deleted log, of several copies or of one, is nothing to a later one of the same name.

use std::{path::Path, time::Duration};

use pyralog_engine::{
    log::segment::{SegmentHeader, base_offset_of},
    record::{BatchBuilder, Codec},
    replication::assignment::ReplicaId,
    runtime::sim::{ProcessId, Sim, SimConfig, SimRandom, SimRuntime, faults::FaultRates},
    settings::{LogSettings, Replication},
    shard::{
        Shard,
        placement::{Layout, drive_of},
        request::{Append, CreateLog, Outcome, Request},
    },
    types::{AckLevel, DriveId, LogUid, PartitionId, PartitionIndex},
};

use crate::{
    clients::call,
    lives::{STEPS_MAX, prepare_directory, start},
    plan::Plan,
};

/// How the copies of its logs are spread.
const DEALT: Layout = Layout { drives: 3, dealt: true };

fn world() -> (Sim, Plan) {
    let drives = ["/data", "/data1", "/data2"].map(Into::into).to_vec();
    let drawn = Plan::draw(&mut SimRandom::new(1, 100));
    let plan = Plan { rates: FaultRates::none(), settings: Default::default(), drives, ..drawn };
    let sim = Sim::new(1, &SimConfig { rates: FaultRates::none(), alignment: plan.alignment });
    prepare_directory(&sim, &plan);
    (sim, plan)
}

/// With three copies.
fn create(name: &str) -> Request {
    let replication = Replication { replication_factor: 3, write_quorum: 2, read_quorum: 2 };
    let settings = LogSettings { replication: Some(replication), ..LogSettings::default() };
    Request::CreateLog(CreateLog { name: name.parse().unwrap(), partitions: 1, settings })
}

fn begin(sim: &Sim, plan: &Plan) -> (ProcessId, SimRuntime, Shard<SimRuntime>) {
    let (process, runtimes, shards, _) = start(sim, plan, 3);
    sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
    let shard = shards.borrow()[0].clone().unwrap();
    (process, runtimes[0].clone(), shard)
}

fn ask(sim: &Sim, (runtime, shard): (&SimRuntime, &Shard<SimRuntime>), request: Request) -> Outcome {
    let shard = shard.clone();
    sim.block_on(runtime, async move { shard.call(request).await }, STEPS_MAX).unwrap()
}

/// Of each copy that has a ballot, whether that promises something.
fn have_promised(sim: &Sim) -> Vec<bool> {
    let nothing = b"\"promised\":0,";
    let ballots = sim.files().into_iter().filter(|(path, len)| path.ends_with("ballot") && *len > 0);
    let bytes = ballots.filter_map(|(path, _)| sim.content(&path));
    bytes.map(|bytes| !bytes.windows(nothing.len()).any(|window| window == nothing)).collect()
}

#[test]
fn copies_promise_nothing_before_every_copy_of_their_log_was_made() {
    let (sim, plan) = world();
    let (process, runtime, shard) = begin(&sim, &plan);
    sim.fail_drive(Path::new("/data2"));
    assert!(ask(&sim, (&runtime, &shard), create("sim")).is_err(), "one of its copies cannot be made");
    sim.keep_going_until(sim.now() + Duration::from_secs(2));
    sim.run_for(Duration::from_secs(2), STEPS_MAX).unwrap();
    assert_eq!(have_promised(&sim), [false; 2], "a copy promised something too early");

    let (_, shard) = begin_again(&sim, &plan, process);
    assert!(shard.catalog().logs().all(|log| !log.founding), "it is not made completely");
    assert_eq!(have_promised(&sim), [true; 3], "nobody was elected");
}

/// The power is lost, the drives are mended, and the server runs for a while again.
fn begin_again(sim: &Sim, plan: &Plan, process: ProcessId) -> (SimRuntime, Shard<SimRuntime>) {
    sim.lose_power(process);
    sim.wait_for_calls();
    sim.heal_drive(Path::new("/data2"));
    let (_, runtime, shard) = begin(sim, plan);
    sim.keep_going_until(sim.now() + Duration::from_secs(2));
    sim.run_for(Duration::from_secs(2), STEPS_MAX).unwrap();
    (runtime, shard)
}

fn only_partition(log: u64) -> PartitionId {
    PartitionId { log: LogUid(log), index: PartitionIndex(0) }
}

/// Appends a record to the only partition of a log.
fn append(sim: &Sim, (runtime, shard): (&SimRuntime, &Shard<SimRuntime>), log: u64) -> Outcome {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(None, b"a record", &[], 1).unwrap();
    let (partition, batch) = (only_partition(log), builder.finish().unwrap());
    let append = Append { partition, batch, ack: Some(AckLevel::Durable), expected_offset: None };
    let shard = shard.clone();
    sim.block_on(runtime, async move { call(&shard, Request::Append(append)).await }, STEPS_MAX).unwrap()
}

/// Of which logs there are segments, on all drives.
fn logs_on_drives(sim: &Sim) -> Vec<u64> {
    let segments = sim.files().into_iter().filter(|(path, _)| base_offset_of(path).is_some());
    let headers = segments.filter_map(|(path, _)| SegmentHeader::decode(&sim.content(&path)?).ok());
    headers.map(|header| header.partition.log.0).collect()
}

#[test]
fn a_log_has_nothing_of_a_deleted_one_of_its_name_that_stayed_on_a_drive_that_failed() {
    let failing = |log: u64| (0..3).find(|copy| drive_of(only_partition(log), ReplicaId(*copy), DEALT) == DriveId(2));
    // Where a copy of the later log has the folder that was left, and where no copy has.
    for has_the_folder in [true, false] {
        let (sim, plan) = world();
        let (process, runtime, shard) = begin(&sim, &plan);
        ask(&sim, (&runtime, &shard), create("sim")).unwrap();
        for _ in 0..20 {
            append(&sim, (&runtime, &shard), 0).unwrap();
        }
        sim.fail_drive(Path::new("/data2"));
        let mut later = 1;
        while later == 1 || (failing(later) == failing(0)) != has_the_folder {
            let made = ask(&sim, (&runtime, &shard), create(&format!("other-{later}")));
            assert!(made.is_err(), "one of its copies cannot be made");
            later += 1;
        }
        let delete = Request::DeleteLog("sim".parse().unwrap());
        ask(&sim, (&runtime, &shard), delete).expect("a deletion is answered with what is wrong with another log");
        assert!(ask(&sim, (&runtime, &shard), create("sim")).is_err(), "one of its copies cannot be made");

        drop(shard);
        let (runtime, shard) = begin_again(&sim, &plan, process);
        for _ in 0..20 {
            append(&sim, (&runtime, &shard), later).unwrap();
        }
        sim.run_for(Duration::from_secs(1), STEPS_MAX).unwrap();
        let logs = logs_on_drives(&sim);
        assert!(!logs.contains(&0), "{logs:?}: {:?}", sim.files());
        assert_eq!(logs.iter().filter(|log| **log == later).count(), 3, "{logs:?}: {:?}", sim.files());
    }
}

#[test]
fn an_only_copy_is_made_anew_where_one_of_a_deleted_log_of_its_name_stayed() {
    let (sim, plan) = world();
    let (process, runtime, shard) = begin(&sim, &plan);
    let is_on_failing = |log: u64| drive_of(only_partition(log), ReplicaId(0), DEALT) == DriveId(2);
    let make = |name: &str| {
        let create = CreateLog { name: name.parse().unwrap(), partitions: 1, settings: LogSettings::default() };
        ask(&sim, (&runtime, &shard), Request::CreateLog(create))
    };
    let first_from = |from: u64| {
        let others = (from..).take_while(|log| !is_on_failing(*log));
        from + others.inspect(|log| drop(make(&format!("other-{log}")).unwrap())).count() as u64
    };
    let first = first_from(0);
    make("sim").unwrap();
    append(&sim, (&runtime, &shard), first).unwrap();
    sim.fail_drive(Path::new("/data2"));
    ask(&sim, (&runtime, &shard), Request::DeleteLog("sim".parse().unwrap())).unwrap();
    let second = first_from(first + 1);
    assert!(make("sim").is_err(), "its copy cannot be made");

    let (runtime, shard) = begin_again(&sim, &plan, process);
    append(&sim, (&runtime, &shard), second).unwrap();
    assert!(!logs_on_drives(&sim).contains(&first), "{:?}", sim.files());
}

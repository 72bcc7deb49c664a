//! What a drive that does not answer keeps others from, and for how long: until what is led there is led elsewhere, and
//! until whoever creates or deletes logs is answered. No judge looks at that: slow is not wrong.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use pyralog_engine::{
    error::RequestError,
    record::{BatchBuilder, Codec},
    runtime::{
        Runtime,
        sim::{ProcessId, Sim, SimConfig, SimRandom, SimRuntime, faults::FaultRates},
    },
    settings::{Bound, LogChanges, LogSettings, Replication},
    shard::{
        Shard,
        request::{AlterLog, Append, CreateLog, Fetch, FindOffset, Move, OffsetAt, Outcome, Reply, Request, Trim},
    },
    types::{AckLevel, CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};

use crate::{
    clients::{Clients, make_batch},
    lives::{STEPS_MAX, prepare_directory, start},
    plan::Plan,
};

const PARTITIONS: u32 = 6;

fn partition(index: u32) -> PartitionId {
    PartitionId { log: LogUid(0), index: PartitionIndex(index) }
}

async fn append(shard: &Shard<SimRuntime>, index: u32, ack: AckLevel, clients: &Clients) -> Outcome {
    let (batch, _) = make_batch(0, 1, clients);
    let append = Append { partition: partition(index), batch, ack: Some(ack), expected_offset: None };
    shard.call(Request::Append(append)).await
}

/// Writes to all partitions, so that their leaders always have what no other copy has yet.
fn write_on(runtime: &SimRuntime, shard: &Shard<SimRuntime>, clients: &Rc<Clients>) {
    for index in 0..PARTITIONS {
        let (own, shard, clients) = (runtime.clone(), shard.clone(), Rc::clone(clients));
        runtime.spawn(async move {
            loop {
                let outcome = append(&shard, index, AckLevel::Received, &clients).await;
                own.sleep(Duration::from_millis(if outcome.is_ok() { 1 } else { 5 })).await;
            }
        });
    }
}

/// A server with a drive for each of its three cores.
struct Server {
    sim: Sim,
    plan: Plan,
    clients: Rc<Clients>,
    process: ProcessId,
    runtime: SimRuntime,
    shard: Shard<SimRuntime>,
}

impl Server {
    /// With a log of several copies, which is led.
    fn new(seed: u64) -> Server {
        let drives = ["/data", "/data1", "/data2"].map(PathBuf::from);
        let rates = FaultRates::none();
        let drawn = Plan::draw(&mut SimRandom::new(1, 100));
        let plan = Plan { rates: rates.clone(), settings: Default::default(), drives: drives.into(), ..drawn };
        let sim = Sim::new(seed, &SimConfig { rates, alignment: plan.alignment });
        prepare_directory(&sim, &plan);
        let clients = Clients::new(1, &plan);
        let (process, runtime, shard) = open(&sim, &plan);
        let server = Server { sim, plan, clients, process, runtime, shard };
        server.call(create("sim")).unwrap();
        server
    }

    fn call(&self, request: Request) -> Outcome {
        let shard = self.shard.clone();
        self.sim.block_on(&self.runtime, async move { shard.call(request).await }, STEPS_MAX).unwrap()
    }

    /// Begins something, whose outcome will be there.
    fn begin(&self, request: Request) -> Rc<RefCell<Option<Outcome>>> {
        let (shard, outcome) = (self.shard.clone(), Rc::<RefCell<Option<Outcome>>>::default());
        let told = Rc::clone(&outcome);
        self.runtime.spawn(async move {
            let answer = shard.call(request).await;
            *told.borrow_mut() = Some(answer);
        });
        outcome
    }

    /// The answer, which comes in time.
    fn in_time(&self, outcome: &RefCell<Option<Outcome>>) -> Outcome {
        let until = self.sim.now() + Duration::from_secs(3);
        self.sim.keep_going_until(until);
        self.sim.run_until(|| outcome.borrow().is_some() || self.sim.now() >= until, STEPS_MAX).unwrap();
        outcome.borrow_mut().take().expect("no answer within 3 s")
    }

    fn has(&self, log: &str) -> bool {
        self.shard.catalog().by_name(&log.parse().unwrap()).is_some()
    }

    fn stall(&self, drive: usize) {
        self.sim.stall_drive(&self.plan.drives[drive], STALL);
    }

    fn until_it_answers(&self) {
        self.sim.keep_going_until(self.sim.now() + STALL * 2);
        self.sim.run_for(STALL + Duration::from_secs(3), STEPS_MAX).unwrap();
    }

    /// The power is lost, and everything begins again.
    fn restarted(self) -> Server {
        let Server { sim, plan, clients, process, runtime, shard } = self;
        drop((runtime, shard));
        sim.lose_power(process);
        sim.wait_for_calls();
        plan.drives.iter().for_each(|drive| sim.heal_drive(drive));
        let (process, runtime, shard) = open(&sim, &plan);
        let server = Server { sim, plan, clients, process, runtime, shard };
        server.sim.run_for(Duration::from_secs(3), STEPS_MAX).unwrap();
        server
    }

    /// Each partition of a log takes a record.
    fn is_of_use(&self, log: &str) {
        let uid = self.shard.catalog().by_name(&log.parse().unwrap()).unwrap().uid;
        for index in (0..PARTITIONS).map(PartitionIndex) {
            let (shard, clients) = (self.shard.clone(), Rc::clone(&self.clients));
            let written = async move {
                let (batch, _) = make_batch(0, 1, &clients);
                let partition = PartitionId { log: uid, index };
                let append = Append { partition, batch, ack: Some(AckLevel::Durable), expected_offset: None };
                for _ in 0..1000 {
                    match shard.call(Request::Append(append.clone())).await {
                        Ok(Reply::Appended(_)) => return,
                        _ => shard.runtime().sleep(Duration::from_millis(5)).await,
                    }
                }
                panic!("{partition} takes no record");
            };
            self.sim.block_on(&self.runtime, written, STEPS_MAX).unwrap();
        }
    }
}

const STALL: Duration = Duration::from_secs(12);

fn open(sim: &Sim, plan: &Plan) -> (ProcessId, SimRuntime, Shard<SimRuntime>) {
    let (process, runtimes, shards, _) = start(sim, plan, 3);
    sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
    let shard = shards.borrow()[0].clone().unwrap();
    (process, runtimes[0].clone(), shard)
}

fn create(name: &str) -> Request {
    let replication = Some(Replication { replication_factor: 3, write_quorum: 2, read_quorum: 2 });
    let settings = LogSettings { replication, ..LogSettings::default() };
    Request::CreateLog(CreateLog { name: name.parse().unwrap(), partitions: PARTITIONS, settings })
}

fn delete(name: &str) -> Request {
    Request::DeleteLog(name.parse().unwrap())
}

/// For how long some partition could not be written to durably after the drive of core 2 stalled.
fn outage(seed: u64) -> Duration {
    let Server { sim, plan, clients, runtime, shard, .. } = Server::new(seed);
    let runtimes = [runtime];
    write_on(&runtimes[0], &shard, &clients);
    sim.run_for(Duration::from_millis(300), STEPS_MAX).unwrap();

    let led: Vec<u32> = (0..PARTITIONS).filter(|index| shard.owner(partition(*index)) == CoreId(2)).collect();
    assert!(!led.is_empty(), "nothing is led there");
    sim.stall_drive(&plan.drives[2], Duration::from_secs(20));
    let begun = sim.now();
    let left = Rc::new(Cell::new(led.len()));
    for index in led {
        let (runtime, shard, clients) = (runtimes[0].clone(), shard.clone(), Rc::clone(&clients));
        let left = Rc::clone(&left);
        runtimes[0].spawn(async move {
            // An append that is under way on the stalled drive says nothing; one that begins later may be answered.
            while shard.owner(partition(index)) == CoreId(2) {
                runtime.sleep(Duration::from_millis(1)).await;
            }
            while !matches!(append(&shard, index, AckLevel::Durable, &clients).await, Ok(Reply::Appended(_))) {
                runtime.sleep(Duration::from_millis(1)).await;
            }
            left.set(left.get() - 1);
        });
    }
    let patience = begun + Duration::from_secs(3);
    sim.run_until(|| left.get() == 0 || sim.now() > patience, STEPS_MAX).unwrap();
    sim.now() - begun
}

#[test]
fn what_is_led_on_a_drive_that_does_not_answer_is_led_elsewhere_within_a_second() {
    for seed in 1..=20 {
        let outage = outage(seed);
        assert!(outage < Duration::from_secs(1), "seed {seed}: {outage:?}");
    }
}

#[test]
fn while_a_drive_does_not_answer_changes_are_refused_in_time_and_nothing_comes_of_them_later() {
    for stalled in 0..3 {
        let server = Server::new(1);
        let retention_ms = Some(Some(Bound::AtMost(1_000_000)));
        let changes = LogChanges { retention_ms, ..LogChanges::default() };
        let requests = [
            create("other"),
            delete("sim"),
            Request::AlterLog(AlterLog { name: "sim".parse().unwrap(), changes }),
            Request::Move(Move { partition: partition(0), to: CoreId(1) }),
            Request::Unpin(partition(0)),
        ];
        let before = server.shard.catalog();
        server.stall(stalled);
        let outcomes: Vec<_> = requests.into_iter().map(|request| server.begin(request)).collect();
        for outcome in outcomes {
            match server.in_time(&outcome) {
                Err(RequestError::DriveSilent { path }) => assert_eq!(path, server.plan.drives[stalled]),
                other => panic!("drive {stalled}: {other:?}"),
            }
        }
        server.until_it_answers();
        assert_eq!(*server.shard.catalog(), *before, "drive {stalled}");
        server.call(create("other")).unwrap();
        server.is_of_use("other");
        server.call(delete("sim")).unwrap();
    }
}

/// Stalls a drive at some moment of a change, and tells `judge` what came of it when it answered again, or, every other
/// time, after the power was lost meanwhile. Gives how often the answer was that it is not known.
fn stall_within(change: impl Fn() -> Request, judge: impl Fn(Server, &Outcome)) -> usize {
    let mut unknown = 0;
    for step in 0.. {
        let server = Server::new(1);
        let outcome = server.begin(change());
        server.sim.run_for(Duration::from_micros(150) * step, STEPS_MAX).unwrap();
        if outcome.borrow().is_some() {
            return unknown;
        }
        server.stall(step as usize % 3);
        let told = server.in_time(&outcome);
        if told.is_err() {
            let again = server.begin(change());
            match server.in_time(&again) {
                Err(RequestError::DriveSilent { .. }) => {}
                other => panic!("step {step}, again: {other:?}"),
            }
        }
        unknown += usize::from(matches!(told, Err(RequestError::ChangeUnknown { .. })));
        if step % 2 == 0 {
            server.until_it_answers();
            judge(server, &told);
        } else {
            judge(server.restarted(), &told);
        }
    }
    unknown
}

#[test]
fn a_log_is_created_once_or_not_at_all_when_a_drive_stalls_at_any_moment() {
    let unknown = stall_within(
        || create("new"),
        |server, told| {
            match (told, server.has("new")) {
                (Ok(_), true) | (Err(RequestError::DriveSilent { .. }), false) => {}
                (Err(RequestError::ChangeUnknown { .. }), _) => {}
                other => panic!("{other:?}"),
            }
            match (server.call(create("new")), server.has("new")) {
                (Ok(_) | Err(RequestError::LogExists { .. }), true) => server.is_of_use("new"),
                other => panic!("{other:?}"),
            }
        },
    );
    assert!(unknown > 3, "{unknown} were not known");
}

#[test]
fn a_log_is_deleted_with_its_files_or_not_at_all_when_a_drive_stalls_at_any_moment() {
    let unknown = stall_within(
        || delete("sim"),
        |server, told| {
            match (told, server.has("sim")) {
                (Ok(_), false) | (Err(RequestError::DriveSilent { .. }), true) => {}
                (Err(RequestError::ChangeUnknown { .. }), _) => {}
                other => panic!("{other:?}"),
            }
            match (server.call(delete("sim")), server.has("sim")) {
                (Ok(_) | Err(RequestError::UnknownLog { .. }), false) => {}
                other => panic!("{other:?}"),
            }
            server.sim.run_for(Duration::from_secs(1), STEPS_MAX).unwrap();
            let is_left = |path: &PathBuf| path.components().any(|part| part.as_os_str() == "logs");
            let left: Vec<_> = server.sim.files().into_iter().map(|(path, _)| path).filter(is_left).collect();
            assert!(left.is_empty(), "{left:?}");
            server.call(create("sim")).unwrap();
            server.is_of_use("sim");
        },
    );
    assert!(unknown > 3, "{unknown} were not known");
}

/// How many segments of the copies of log 1 are on the second drive, whose core leads it.
fn segments_there(server: &Server) -> usize {
    let there = |path: &PathBuf| path.starts_with("/data1/logs") && path.extension().is_some_and(|end| end == "seg");
    server.sim.files().iter().filter(|(path, _)| there(path) && path.to_string_lossy().contains("kept")).count()
}

#[test]
fn what_a_leader_gave_up_that_others_have_not_is_no_damage_to_its_readers() {
    let server = Server::new(3);
    let replication = Replication { replication_factor: 3, write_quorum: 3, read_quorum: 1 };
    let settings = LogSettings { replication: Some(replication), ..LogSettings::default() };
    let kept = CreateLog { name: "kept".parse().unwrap(), partitions: 1, settings };
    server.call(Request::CreateLog(kept)).unwrap();
    let partition = PartitionId { log: LogUid(1), index: PartitionIndex(0) };
    let mut end = Offset(0);
    while segments_there(&server) < 3 {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &[7; 16 << 10], &[], 1).unwrap();
        let batch = builder.finish().unwrap();
        let append = Append { partition, batch, ack: Some(AckLevel::Durable), expected_offset: None };
        let Ok(Reply::Appended(appended)) = server.call(Request::Append(append)) else { panic!("not stored") };
        end = Offset(appended.base_offset.0 + 1);
    }
    server.stall(2);
    let _trimmed = server.begin(Request::Trim(Trim { partition, before: end }));
    let mut was_told_to_ask_again = false;
    loop {
        let fetch = Fetch { partition, offset: Offset(0), max_bytes: 1, max_wait: Duration::ZERO };
        match server.call(Request::Fetch(fetch)) {
            Ok(_) => {}
            Err(RequestError::NotLeader { .. }) => was_told_to_ask_again = true,
            Err(RequestError::OffsetOutOfRange { start, .. }) => break assert_eq!(start, end),
            Err(error) => panic!("{error}"),
        }
        match server.call(Request::FindOffset(FindOffset { partition, at: OffsetAt::Timestamp(0) })) {
            Ok(_) | Err(RequestError::NotLeader { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        server.sim.keep_going_until(server.sim.now() + Duration::from_millis(5));
        server.sim.run_for(Duration::from_millis(5), STEPS_MAX).unwrap();
    }
    assert!(was_told_to_ask_again, "nothing was given up before that was shown");
}

//! Whole servers on a simulated drive that is full or fails: what is refused, what goes on, and how it ends.

use std::{cell::RefCell, path::Path, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use pyralog_engine::{
    error::RequestError,
    log::scrub::ScrubPace,
    record::{BatchBuilder, Codec},
    runtime::{
        Runtime,
        sim::{
            ProcessId, Sim, SimConfig, SimRuntime,
            faults::{FaultKind, FaultRates},
        },
    },
    settings::Replication,
    shard::{
        self, Shard, ShardConfig, Wiring,
        mailbox::Message,
        placement::Drives,
        request::{Append, CreateLog, Fetch, FindOffset, OffsetAt, Outcome, Reply, Request},
    },
    types::{AckLevel, CoreId, Offset, PartitionId},
};

const STEPS_MAX: u64 = 2_000_000;
const MIB: u64 = 1 << 20;
const RESERVE: u64 = 8 * MIB;

fn config() -> ShardConfig {
    ShardConfig {
        drives: Drives::single(Path::new("/data")),
        segment_bytes: 2 * MIB,
        heavy_load: Default::default(),
        buffer_time_max: Duration::from_secs(30),
        buffer_bytes_max: 4 << 20,
        sync_interval: Duration::from_millis(20),
        scrub: ScrubPace { bytes_per_second: 0, period: Duration::from_secs(60) },
        default_ack: AckLevel::Durable,
        cache_bytes: 64 << 10,
        use_mmap: false,
        tail_bytes: 16 << 10,
        budget_bytes: 8 << 20,
        reserve_bytes: RESERVE,
        retention: Default::default(),
        retention_interval: Duration::from_millis(50),
        replication: Replication::SINGLE,
        drive_timeout: Duration::from_millis(500),
        calm: Duration::from_secs(1),
        balance: None,
    }
}

/// A server in its world.
struct Server<'a> {
    sim: &'a Sim,
    process: ProcessId,
    runtime: SimRuntime,
    shards: Vec<Shard<SimRuntime>>,
}

impl<'a> Server<'a> {
    fn start(sim: &'a Sim, cores: usize) -> Self {
        let (process, runtimes) = sim.process(cores);
        let shards = Rc::new(RefCell::new(vec![None; cores]));
        for ((core, mesh), runtime) in sim.mesh::<Message>(cores, 16).into_iter().enumerate().zip(&runtimes) {
            let (shards, runtime) = (Rc::clone(&shards), runtime.clone());
            runtime.clone().spawn(async move {
                runtime.create_dir_all(Path::new("/data")).await.unwrap();
                let wiring = Wiring { core: CoreId(core as u16), mesh, control: None, metrics: Arc::default() };
                shards.borrow_mut()[core] = Some(shard::open(runtime, config(), wiring).await.unwrap());
            });
        }
        sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
        let shards = shards.borrow_mut().drain(..).flatten().collect();
        Server { sim, process, runtime: runtimes[0].clone(), shards }
    }

    fn call(&self, request: Request) -> Outcome {
        let shard = self.shards[0].clone();
        self.sim.block_on(&self.runtime, async move { shard.call(request).await }, STEPS_MAX).unwrap()
    }

    /// The partitions of a new log.
    fn create(&self, name: &str, partitions: u32) -> Vec<PartitionId> {
        match self.call(Request::CreateLog(CreateLog {
            name: name.parse().unwrap(),
            partitions,
            settings: Default::default(),
        })) {
            Ok(Reply::LogCreated(log)) => log.partition_ids().collect(),
            other => panic!("{other:?}"),
        }
    }

    fn append(&self, partition: PartitionId, ack: AckLevel) -> Outcome {
        self.call(Request::Append(Append { partition, batch: batch(100_000), ack: Some(ack), expected_offset: None }))
    }

    /// Appends until that is refused; how often it was not, and why it was.
    fn append_until_refused(&self, partition: PartitionId, ack: AckLevel) -> (u64, RequestError) {
        for done in 0..1000 {
            if let Err(error) = self.append(partition, ack) {
                return (done, error);
            }
            self.wait(10);
        }
        panic!("a full drive takes everything");
    }

    fn wait(&self, millis: u64) {
        self.sim.run_for(Duration::from_millis(millis), STEPS_MAX).unwrap();
    }

    fn end(&self, partition: PartitionId) -> Offset {
        match self.call(Request::FindOffset(FindOffset { partition, at: OffsetAt::Latest })) {
            Ok(Reply::Found(found)) => found.high_watermark,
            other => panic!("{other:?}"),
        }
    }

    fn reads(&self, partition: PartitionId, offset: u64) -> bool {
        let fetch = Fetch { partition, offset: Offset(offset), max_bytes: 1, max_wait: Duration::ZERO };
        matches!(self.call(Request::Fetch(fetch)), Ok(Reply::Fetched(fetched)) if !fetched.batches.is_empty())
    }

    fn stop(self) {
        let shards = self.shards.clone();
        let all = async move {
            for shard in shards {
                shard.shut_down().await;
            }
        };
        self.sim.block_on(&self.runtime, all, STEPS_MAX).unwrap();
        self.sim.kill(self.process);
    }
}

fn batch(bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(None, &vec![7; bytes], &[], 1).unwrap();
    builder.finish().unwrap()
}

fn used(sim: &Sim) -> u64 {
    sim.files().iter().map(|(_, len)| len).sum()
}

fn is_full(error: &RequestError) -> bool {
    matches!(error, RequestError::DiskFull { reserve_bytes: RESERVE, .. }) && error.is_retriable()
}

#[test]
fn writes_are_refused_before_the_drive_is_full_and_taken_again_when_there_is_room() {
    let sim = Sim::new(1, &SimConfig::default());
    sim.set_disk_bytes(24 * MIB);
    let server = Server::start(&sim, 2);
    let partitions = server.create("a", 2);
    let (done, error) = server.append_until_refused(partitions[0], AckLevel::Durable);
    assert!(is_full(&error), "{error}");
    let RequestError::DiskFull { free_bytes, .. } = error else { unreachable!() };
    assert!(done > 50 && free_bytes < RESERVE && free_bytes > RESERVE / 2, "{done} appends, {free_bytes} bytes free");
    assert!(error.to_string().contains("8.0 MiB are kept back"), "{error}");
    // A roll may have given some back.
    sim.set_disk_bytes(used(&sim) + RESERVE / 2);
    server.wait(300);
    let other = server.append(partitions[1], AckLevel::Received).unwrap_err();
    assert!(is_full(&other), "{other}");
    let create = CreateLog { name: "b".parse().unwrap(), partitions: 1, settings: Default::default() };
    assert!(is_full(&server.call(Request::CreateLog(create)).unwrap_err()));
    assert!(server.reads(partitions[0], 0), "reads go on");
    assert_eq!(sim.counts().get(FaultKind::NoSpace), 0, "the drive itself had to refuse something");

    sim.set_disk_bytes(48 * MIB);
    server.wait(300);
    server.append(partitions[0], AckLevel::Durable).unwrap();
    assert_eq!(server.end(partitions[0]), Offset(done + 1));
    server.stop();
}

#[test]
fn a_deletion_makes_room_by_itself() {
    let sim = Sim::new(2, &SimConfig::default());
    sim.set_disk_bytes(24 * MIB);
    let server = Server::start(&sim, 1);
    let (old, new) = (server.create("old", 1)[0], server.create("new", 1)[0]);
    server.append_until_refused(old, AckLevel::Durable);
    assert!(server.append(new, AckLevel::Durable).is_err());
    assert!(matches!(server.call(Request::DeleteLog("old".parse().unwrap())), Ok(Reply::LogDeleted)));
    server.wait(300);
    server.append(new, AckLevel::Durable).unwrap();
    server.stop();
}

#[test]
fn what_was_received_before_the_drive_was_full_is_flushed_into_the_reserve_at_a_stop() {
    let sim = Sim::new(3, &SimConfig::default());
    sim.set_disk_bytes(64 * MIB);
    let server = Server::start(&sim, 1);
    let partition = server.create("a", 1)[0];
    server.append(partition, AckLevel::Received).unwrap();
    // Somebody else takes the rest; only the reserve is left.
    sim.set_disk_bytes(used(&sim) + RESERVE - 1);
    server.wait(300);
    assert!(is_full(&server.append(partition, AckLevel::Received).unwrap_err()));
    assert!(used(&sim) < MIB / 4, "the record has left the memory");
    server.stop();
    let server = Server::start(&sim, 1);
    assert_eq!(server.end(partition), Offset(1));
    server.stop();
}

#[test]
fn a_server_starts_on_a_full_drive_and_serves_what_it_has() {
    let sim = Sim::new(4, &SimConfig::default());
    let server = Server::start(&sim, 2);
    let partitions = server.create("a", 2);
    for partition in &partitions {
        (0..30).for_each(|_| _ = server.append(*partition, AckLevel::Durable).unwrap());
    }
    sim.kill(server.process);
    sim.set_disk_bytes(0);
    let server = Server::start(&sim, 1);
    for partition in &partitions {
        assert_eq!(server.end(*partition), Offset(30));
        assert!(server.reads(*partition, 29));
        assert!(is_full(&server.append(*partition, AckLevel::Durable).unwrap_err()));
    }
    sim.set_disk_bytes(u64::MAX);
    server.wait(1000);
    for partition in &partitions {
        server.append(*partition, AckLevel::Durable).unwrap();
    }
    server.stop();
}

#[test]
fn a_partition_without_room_for_its_first_file_waits_for_it() {
    let sim = Sim::new(5, &SimConfig::default());
    let server = Server::start(&sim, 1);
    let partition = server.create("a", 1)[0];
    sim.kill(server.process);
    // As if the power had been lost before the first segment was there.
    let (_, cores) = sim.process(1);
    let runtime = cores[0].clone();
    let gone = async move {
        for file in ["begun", "00000000000000000000.seg"] {
            runtime.remove_file(&PathBuf::from("/data/logs/default/a/0").join(file)).await.unwrap();
        }
    };
    sim.block_on(&cores[0], gone, STEPS_MAX).unwrap();
    sim.set_disk_bytes(0);
    let server = Server::start(&sim, 1);
    let refused = server.append(partition, AckLevel::Durable).unwrap_err();
    assert!(is_full(&refused), "{refused}");
    sim.set_disk_bytes(u64::MAX);
    server.wait(1000);
    server.append(partition, AckLevel::Durable).unwrap();
    server.stop();
}

#[test]
fn a_drive_that_refuses_though_it_says_that_it_has_room_is_tried_again() {
    let sim = Sim::new(6, &SimConfig::default());
    let server = Server::start(&sim, 1);
    let partition = server.create("a", 1)[0];
    server.append(partition, AckLevel::Durable).unwrap();
    sim.set_rates(FaultRates::none().with(FaultKind::NoSpace, 10_000));
    let shard = server.shards[0].clone();
    let waiting = Rc::new(RefCell::new(0));
    for _ in 0..20 {
        let (shard, waiting) = (shard.clone(), Rc::clone(&waiting));
        server.runtime.spawn(async move {
            let (ack, batch) = (Some(AckLevel::Durable), batch(100_000));
            let append = Append { partition, batch, ack, expected_offset: None };
            shard.call(Request::Append(append)).await.unwrap();
            *waiting.borrow_mut() += 1;
        });
    }
    server.wait(100);
    assert!(*waiting.borrow() < 20, "there was room for all");
    let refused = server.append(partition, AckLevel::Durable).unwrap_err();
    assert!(refused.to_string().contains("it takes no more, though it says that"), "{refused}");
    sim.set_rates(FaultRates::none());
    server.wait(1000);
    assert_eq!(*waiting.borrow(), 20, "what was accepted is acknowledged late, not lost");
    server.append(partition, AckLevel::Durable).unwrap();
    server.stop();
}

/// Appends to `partition` while every write to the drive fails.
fn append_to_failing_drive(server: &Server<'_>, partition: PartitionId) -> RequestError {
    server.sim.set_rates(FaultRates::none().with(FaultKind::WriteError, 10_000));
    let error = server.append(partition, AckLevel::Durable).unwrap_err();
    server.sim.set_rates(FaultRates::none());
    server.wait(10);
    error
}

#[test]
fn one_partitions_fault_is_its_own_and_a_second_ones_stops_the_writes_of_all_cores_until_restart() {
    let sim = Sim::new(7, &SimConfig::default());
    let server = Server::start(&sim, 3);
    let partitions = server.create("a", 6);
    for partition in &partitions {
        server.append(*partition, AckLevel::Durable).unwrap();
    }
    let error = append_to_failing_drive(&server, partitions[0]);
    assert!(matches!(error, RequestError::OutcomeUnknown { .. }), "{error}");
    for partition in &partitions[1..] {
        server.append(*partition, AckLevel::Durable).unwrap();
    }
    append_to_failing_drive(&server, partitions[1]);
    for partition in &partitions {
        let error = server.append(*partition, AckLevel::Received).unwrap_err();
        assert!(matches!(error, RequestError::ReadOnly { .. }), "{error}");
        assert!(server.reads(*partition, 0), "reads go on");
    }
    let error = server.append(partitions[5], AckLevel::Received).unwrap_err();
    assert!(error.to_string().contains("the drive failed twice: writing of /data/logs/default/a/0/"), "{error}");
    let create = CreateLog { name: "b".parse().unwrap(), partitions: 1, settings: Default::default() };
    let error = server.call(Request::CreateLog(create)).unwrap_err();
    assert!(matches!(error, RequestError::CatalogFailed { .. }), "{error}");
    sim.kill(server.process);
    let server = Server::start(&sim, 2);
    for partition in &partitions {
        server.append(*partition, AckLevel::Durable).unwrap();
    }
    server.stop();
}

#[test]
fn a_failed_write_of_the_catalogue_alone_stops_all_writes() {
    let sim = Sim::new(8, &SimConfig::default());
    let server = Server::start(&sim, 2);
    let partitions = server.create("a", 4);
    sim.set_rates(FaultRates::none().with(FaultKind::SyncError, 10_000));
    let create = CreateLog { name: "b".parse().unwrap(), partitions: 1, settings: Default::default() };
    let error = server.call(Request::CreateLog(create)).unwrap_err();
    assert!(matches!(error, RequestError::CatalogFailed { .. }), "{error}");
    sim.set_rates(FaultRates::none());
    server.wait(10);
    for partition in partitions {
        let error = server.append(partition, AckLevel::Durable).unwrap_err();
        assert!(error.to_string().contains("the drive failed the catalogue: "), "{error}");
    }
    server.stop();
}

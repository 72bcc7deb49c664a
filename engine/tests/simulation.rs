//! Whole servers in the simulated world: clients append and read, segments roll, things fail, processes die and the
//! power goes out, the server starts again on another number of cores; in the end everything works, all is read, and
//! the judge decides.
//!
//! `PYRALOG_SEED=N` runs one seed, `PYRALOG_SEEDS=N` and `PYRALOG_FROM=N` set how many and from which on
//! (`scripts/simulate` does), and `PYRALOG_TRACE=1` prints what each life of the server came to.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use pyralog_engine::{
    error::{ErrorClass, RequestError},
    record::{BatchBuilder, Codec, split_batches},
    runtime::{
        Runtime,
        sim::{
            ProcessId, Sim, SimConfig, SimRandom, SimRuntime,
            faults::{FaultCounts, FaultKind, FaultRates},
        },
    },
    shard::{
        self, Shard, ShardConfig, Wiring,
        mailbox::Message,
        request::{Append, CreateLog, Fetch, FindOffset, Found, OffsetAt, Reply, Request},
    },
    testing::{
        checker::{Evidence, judge},
        history::{AppendOutcome, AppendSent, Fault, FinalRead, History, ReadSeen, RecordTag},
    },
    types::{AckLevel, CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};

/// More than any life of a server takes.
const STEPS_MAX: u64 = 3_000_000;
const PARTITIONS: u32 = 3;
const CLIENTS: u32 = 4;

/// What one seed means, drawn before anything runs.
struct Plan {
    rates: FaultRates,
    alignment: u64,
    segment_bytes: u64,
    lives: u64,
    /// Drives fail reads, writes or syncs in this seed: then a dead process may have lost what was only written.
    drive_fails: bool,
}

impl Plan {
    /// Swarm: each seed has some kinds of fault, with strengths of their own; a third of them have only one.
    fn draw(random: &mut SimRandom) -> Plan {
        let rare = [
            (FaultKind::WriteError, 60),
            (FaultKind::SyncError, 200),
            (FaultKind::ReadError, 100),
            (FaultKind::NoSpace, 50),
            (FaultKind::Stall, 100),
            (FaultKind::RingDelay, 3_000),
        ];
        let at_power_loss = [FaultKind::LostUnsynced, FaultKind::TornSector, FaultKind::LostName, FaultKind::LostSize];
        let mut rates = FaultRates::none();
        let single = random.happens(3_333).then(|| random.below((rare.len() + at_power_loss.len()) as u64) as usize);
        for (index, (kind, most)) in rare.into_iter().enumerate() {
            let drawn = random.below(most) as u32 + 1;
            if single.map_or_else(|| random.happens(3_000), |only| only == index) {
                rates = rates.with(kind, drawn);
            }
        }
        for (index, kind) in (rare.len()..).zip(at_power_loss) {
            let drawn = [300, 3_000, 10_000][random.below(3) as usize];
            if single.map_or_else(|| random.happens(7_000), |only| only == index) {
                rates = rates.with(kind, drawn);
            }
        }
        let drive_fails = rates.get(FaultKind::WriteError) + rates.get(FaultKind::SyncError) > 0;
        Plan {
            rates,
            alignment: if random.happens(5_000) { 512 } else { 4096 },
            segment_bytes: random.within(24..256) << 12,
            lives: random.within(2..6),
            drive_fails,
        }
    }

    fn config(&self) -> ShardConfig {
        ShardConfig {
            data_dir: PathBuf::from("/data"),
            segment_bytes: self.segment_bytes,
            buffer_time_max: Duration::from_millis(5),
            buffer_bytes_max: 256 << 10,
            sync_interval: Duration::from_millis(20),
            default_ack: AckLevel::Durable,
            cache_bytes: 64 << 10,
            tail_bytes: 16 << 10,
            budget_bytes: 8 << 20,
        }
    }
}

/// What outlives every process: the clients' own memory.
struct Clients {
    history: RefCell<History>,
    random: RefCell<SimRandom>,
    next_sequence: RefCell<BTreeMap<u32, u64>>,
    appends_acked: Cell<u64>,
    records_read: Cell<u64>,
}

impl Clients {
    fn new(seed: u64) -> Rc<Clients> {
        Rc::new(Clients {
            history: RefCell::new(History::new()),
            random: RefCell::new(SimRandom::new(seed, 101)),
            next_sequence: RefCell::default(),
            appends_acked: Cell::new(0),
            records_read: Cell::new(0),
        })
    }
}

/// What a seed came to.
struct Report {
    trace: u64,
    steps: u64,
    counts: FaultCounts,
    acked: u64,
    read: u64,
    violations: Vec<String>,
}

fn run_seed(seed: u64) -> Report {
    let mut random = SimRandom::new(seed, 100);
    let plan = Plan::draw(&mut random);
    if std::env::var("PYRALOG_TRACE").is_ok() {
        let rates: Vec<_> =
            FaultKind::ALL.iter().map(|kind| (kind, plan.rates.get(*kind))).filter(|r| r.1 > 0).collect();
        println!("rates {rates:?}, alignment {}, segments of {} bytes", plan.alignment, plan.segment_bytes);
    }
    let sim = Sim::new(seed, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    let clients = Clients::new(seed);
    sim.set_rates(FaultRates::none());
    prepare_directory(&sim);
    sim.set_rates(plan.rates.clone());
    for _ in 0..plan.lives {
        live(&sim, &plan, &clients, &mut random);
    }
    sim.set_rates(FaultRates::none());
    let mut violations = last_life(&sim, &plan, &clients, random.within(1..4) as usize);
    violations.extend(judge(&clients.history.borrow()).iter().map(ToString::to_string));
    Report {
        trace: sim.trace_hash(),
        steps: sim.steps(),
        counts: sim.counts(),
        acked: clients.appends_acked.get(),
        read: clients.records_read.get(),
        violations,
    }
}

/// The data directory is there before the server is, as `dlog serve` makes it.
fn prepare_directory(sim: &Sim) {
    let (process, cores) = sim.process(1);
    let runtime = cores[0].clone();
    let made = async move { runtime.create_dir_all(&PathBuf::from("/data")).await };
    sim.block_on(&cores[0], made, STEPS_MAX).unwrap().unwrap();
    sim.kill(process);
}

type Shards = Rc<RefCell<Vec<Option<Shard<SimRuntime>>>>>;

/// Starts a server; its shards appear as they open, or one of them fails to.
fn start(sim: &Sim, plan: &Plan, cores: usize) -> (ProcessId, Vec<SimRuntime>, Shards, Rc<RefCell<Option<String>>>) {
    let (process, runtimes) = sim.process(cores);
    let shards: Shards = Rc::new(RefCell::new((0..cores).map(|_| None).collect()));
    let failed = Rc::new(RefCell::new(None));
    for (core, mesh) in sim.mesh::<Message>(cores, 16).into_iter().enumerate() {
        let (shards, failed) = (Rc::clone(&shards), Rc::clone(&failed));
        let (runtime, config) = (runtimes[core].clone(), plan.config());
        runtimes[core].spawn(async move {
            let wiring = Wiring { core: CoreId(core as u16), mesh, control: None, metrics: Arc::default() };
            match shard::open(runtime, config, wiring).await {
                Ok(shard) => shards.borrow_mut()[core] = Some(shard),
                Err(error) => *failed.borrow_mut() = Some(error.to_string()),
            }
        });
    }
    (process, runtimes, shards, failed)
}

/// One life of the server, from its start to its sudden end.
fn live(sim: &Sim, plan: &Plan, clients: &Rc<Clients>, random: &mut SimRandom) {
    let cores = random.within(1..4) as usize;
    let (process, runtimes, shards, failed) = start(sim, plan, cores);
    let ends = if random.happens(2_000) { random.within(100..5_000) } else { random.within(5_000..200_000) };
    let end = sim.now() + Duration::from_micros(ends);
    let all_open = || shards.borrow().iter().all(Option::is_some);
    sim.run_until(|| sim.now() >= end || failed.borrow().is_some() || all_open(), STEPS_MAX).unwrap();
    if all_open() {
        // Some lives end just after they showed what the one before left.
        let soon = sim.now() + Duration::from_micros(random.within(50..3_000));
        let end = if random.happens(2_500) { end.min(soon) } else { end };
        for client in 0..CLIENTS {
            let core = random.below(cores as u64) as usize;
            let shard = shards.borrow()[core].clone().unwrap();
            runtimes[core].spawn(be_client(client, shard, Rc::clone(clients)));
        }
        // A task that only waits keeps the world from standing still.
        let waiting = runtimes[0].clone();
        runtimes[0].spawn(async move { waiting.sleep(Duration::from_secs(3600)).await });
        sim.run_until(|| sim.now() >= end, STEPS_MAX).unwrap();
        if random.happens(2_000) {
            let stopping: Vec<_> = shards.borrow().iter().flatten().cloned().collect();
            for (shard, runtime) in stopping.into_iter().zip(&runtimes) {
                runtime.spawn(async move { shard.shut_down().await });
            }
            let grace = sim.now() + Duration::from_millis(random.below(20));
            sim.run_until(|| sim.now() >= grace, STEPS_MAX).unwrap();
        }
    }
    let open = all_open();
    let logs: Vec<_> = shards.borrow().iter().flatten().map(|shard| shard.catalog().logs().count()).collect();
    shards.borrow_mut().clear();
    let kill = random.happens(4_000);
    if kill {
        sim.kill(process);
    } else {
        sim.lose_power(process);
    }
    if std::env::var("PYRALOG_TRACE").is_ok() {
        let end = if kill { "killed" } else { "power lost" };
        let acked = clients.appends_acked.get();
        println!(
            "{cores} cores, open {open}, failed {:?}, logs {logs:?}, {acked} acked; {end} at {:?}",
            failed.borrow(),
            sim.now()
        );
        println!("  {:?}", sim.files());
    }
    let fault = if kill && !plan.drive_fails { Fault::Kill } else { Fault::PowerLoss };
    clients.history.borrow_mut().fault(fault);
}

async fn be_client(client: u32, shard: Shard<SimRuntime>, clients: Rc<Clients>) {
    let partitions = loop {
        let log = shard.catalog().logs().next().cloned();
        match log {
            Some(log) => break log.partition_ids().collect::<Vec<_>>(),
            None => {
                let create = CreateLog { name: "sim".parse().unwrap(), partitions: PARTITIONS, ack: None };
                let _ = shard.call(Request::CreateLog(create)).await;
                shard.runtime().sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let draw = |below| clients.random.borrow_mut().below(below);
    // As a consumer does that goes on where it was.
    read_some(client, &shard, partitions[draw(partitions.len() as u64) as usize], &clients).await;
    loop {
        let partition = partitions[draw(partitions.len() as u64) as usize];
        match draw(10) {
            0..=6 => append(client, &shard, partition, &clients).await,
            7..=8 => read_some(client, &shard, partition, &clients).await,
            _ => shard.runtime().sleep(Duration::from_micros(draw(3_000))).await,
        }
    }
}

/// One to three batches at once.
async fn append(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let draw = |below| clients.random.borrow_mut().below(below);
    let calls: Vec<_> = (0..draw(3) + 1)
        .map(|_| {
            let ack = [AckLevel::Received, AckLevel::Written, AckLevel::Durable][draw(3) as usize];
            let count = if draw(4) == 0 { draw(20) + 1 } else { 1 };
            let (batch, records) = make_batch(client, count, clients);
            let id = clients.history.borrow_mut().send(AppendSent { partition, ack, records });
            let call = shard.call(Request::Append(Append { partition, batch, ack: Some(ack) }));
            let clients = Rc::clone(clients);
            async move {
                let outcome = match call.await {
                    Ok(Reply::Appended(appended)) => {
                        clients.appends_acked.set(clients.appends_acked.get() + 1);
                        AppendOutcome::Acked { level: appended.level, base: appended.base_offset }
                    }
                    Err(error) if error.class() == ErrorClass::Unknown => AppendOutcome::Unknown,
                    Err(_) => AppendOutcome::Refused,
                    Ok(other) => panic!("an append was answered by {other:?}"),
                };
                clients.history.borrow_mut().end(id, outcome);
            }
        })
        .collect();
    futures_util::future::join_all(calls).await;
}

fn make_batch(client: u32, count: u64, clients: &Clients) -> (Bytes, Vec<RecordTag>) {
    let mut builder = BatchBuilder::new(Codec::None);
    let mut tags = Vec::new();
    for _ in 0..count {
        let mut sequences = clients.next_sequence.borrow_mut();
        let sequence = sequences.entry(client).or_insert(0);
        *sequence += 1;
        let (filler, len) = {
            let mut random = clients.random.borrow_mut();
            let most = if random.happens(300) { 20_000 } else { 600 };
            (random.next_u64(), random.below(most) as usize)
        };
        let mut value = format!("{client} {sequence} ").into_bytes();
        value.extend(filler.to_le_bytes().iter().cycle().take(len));
        builder.push(None, &value, &[], 1).unwrap();
        tags.push(RecordTag { producer: client, sequence: *sequence, crc: crc32c::crc32c(&value) });
    }
    (builder.finish().unwrap(), tags)
}

async fn read_some(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let Ok(found) = ends(shard, partition).await else { return };
    let range = found.high_watermark.0 - found.start_offset.0;
    let back = clients.random.borrow_mut().below(range.min(200) + 1);
    let from =
        if clients.random.borrow_mut().below(4) == 0 { found.start_offset.0 } else { found.high_watermark.0 - back };
    if let Ok(records) = fetch(shard, partition, Offset(from), Duration::from_millis(2)).await {
        clients.records_read.set(clients.records_read.get() + records.len() as u64);
        clients.history.borrow_mut().read(ReadSeen { observer: client, partition, from: Offset(from), records });
    }
}

async fn ends(shard: &Shard<SimRuntime>, partition: PartitionId) -> Result<Found, RequestError> {
    match shard.call(Request::FindOffset(FindOffset { partition, at: OffsetAt::Latest })).await? {
        Reply::Found(found) => Ok(found),
        other => panic!("a search was answered by {other:?}"),
    }
}

/// The records from `from` on.
async fn fetch(
    shard: &Shard<SimRuntime>,
    partition: PartitionId,
    from: Offset,
    max_wait: Duration,
) -> Result<Vec<(Offset, RecordTag)>, RequestError> {
    let fetch = Fetch { partition, offset: from, max_bytes: 64 << 10, max_wait };
    let fetched = match shard.call(Request::Fetch(fetch)).await? {
        Reply::Fetched(fetched) => fetched,
        other => panic!("a fetch was answered by {other:?}"),
    };
    let mut stored = BytesMut::new();
    fetched.batches.iter().for_each(|piece| stored.extend_from_slice(piece));
    let mut records = Vec::new();
    for view in split_batches(stored.freeze()) {
        for record in view.expect("a damaged batch was served").records().unwrap() {
            let record = record.unwrap();
            if record.offset >= from {
                records.push((record.offset, tag_of(&record.value)));
            }
        }
    }
    Ok(records)
}

fn tag_of(value: &[u8]) -> RecordTag {
    let mut words = value.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(words.next().unwrap_or_default()).ok()?.parse::<u64>().ok();
    let (producer, sequence) = (number().unwrap_or(u64::from(u32::MAX)) as u32, number().unwrap_or(u64::MAX));
    RecordTag { producer, sequence, crc: crc32c::crc32c(value) }
}

/// Nothing fails any more: all must open, take a write, and be read. Returns what did not.
fn last_life(sim: &Sim, plan: &Plan, clients: &Rc<Clients>, cores: usize) -> Vec<String> {
    let (_, runtimes, shards, failed) = start(sim, plan, cores);
    let all_open = || shards.borrow().iter().all(Option::is_some);
    let opened = sim.run_until(|| failed.borrow().is_some() || all_open(), STEPS_MAX);
    if let (Err(_), _) | (_, Some(_)) = (&opened, failed.borrow().as_ref()) {
        return vec![format!("the server does not start again: {opened:?} {:?}", failed.borrow())];
    }
    let shard = shards.borrow()[0].clone().unwrap();
    let clients = Rc::clone(clients);
    let all = async move {
        let mut complaints = Vec::new();
        let partitions: Vec<_> = shard.catalog().logs().flat_map(|log| log.partition_ids()).collect();
        for partition in partitions {
            if let Err(error) = read_all(&shard, partition, &clients).await {
                complaints.push(format!("partition {partition} is not whole: {error}"));
            }
        }
        complaints
    };
    match sim.block_on(&runtimes[0], all, STEPS_MAX) {
        Ok(complaints) => complaints,
        Err(stuck) => vec![format!("the last reading does not end: {stuck}")],
    }
}

async fn read_all(
    shard: &Shard<SimRuntime>,
    partition: PartitionId,
    clients: &Rc<Clients>,
) -> Result<(), RequestError> {
    // A write first: a partition that takes none has lost its use.
    let (batch, records) = make_batch(CLIENTS, 1, clients);
    let ack = AckLevel::Durable;
    let id = clients.history.borrow_mut().send(AppendSent { partition, ack, records });
    let Reply::Appended(appended) = shard.call(Request::Append(Append { partition, batch, ack: Some(ack) })).await?
    else {
        panic!("an append was answered by something else");
    };
    let outcome = AppendOutcome::Acked { level: appended.level, base: appended.base_offset };
    clients.history.borrow_mut().end(id, outcome);
    let found = ends(shard, partition).await?;
    let (start, mut next, mut records) = (found.start_offset, found.start_offset, Vec::new());
    while next < found.high_watermark {
        let more = fetch(shard, partition, next, Duration::ZERO).await?;
        assert!(!more.is_empty(), "nothing at {next} of {}", found.high_watermark);
        next = Offset(more.last().unwrap().0.0 + 1);
        records.extend(more);
    }
    clients.history.borrow_mut().finish(FinalRead { partition, start, records });
    Ok(())
}

/// Runs a seed; a panic in it is a violation like others.
fn try_seed(seed: u64) -> Result<Report, String> {
    let report = catch_unwind(AssertUnwindSafe(|| run_seed(seed))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".to_owned())
    })?;
    if report.violations.is_empty() { Ok(report) } else { Err(shorten(&report.violations)) }
}

fn shorten(violations: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = violations.len().saturating_sub(SHOWN);
    let mut lines = violations[..violations.len() - more].join("\n  ");
    if more > 0 {
        lines += &format!("\n  and {more} more");
    }
    lines
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn no_seed_breaks_a_promise() {
    let one = number("PYRALOG_SEED");
    let from = one.or_else(|| number("PYRALOG_FROM")).unwrap_or(1);
    let count = one.map_or_else(|| number("PYRALOG_SEEDS").unwrap_or(SEEDS), |_| 1);
    let (mut steps, mut acked, mut read, mut counts) = (0, 0, 0, FaultCounts::default());
    let mut failures = Vec::new();
    for seed in from..from + count {
        match try_seed(seed) {
            Ok(report) => {
                steps += report.steps;
                acked += report.acked;
                read += report.read;
                counts.merge(&report.counts);
            }
            Err(why) => {
                println!("seed {seed} failed; again with scripts/simulate --seed {seed}\n  {why}");
                failures.push(seed);
            }
        }
    }
    println!("{count} seeds, {steps} steps, {acked} appends acknowledged, {read} records read in between");
    for kind in FaultKind::ALL {
        println!("{:>9} × {kind:?}", counts.get(kind));
    }
    assert!(failures.is_empty(), "{} of {count} seeds failed: {failures:?}", failures.len());
}

/// How many seeds a run has unless it is told otherwise: about a minute without optimisation, a few seconds with it.
const SEEDS: u64 = if cfg!(debug_assertions) && cfg!(not(feature = "planted-bugs")) { 40 } else { 600 };

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 1..=10 {
        let (first, second) = (try_seed(seed), try_seed(seed));
        if let (Ok(first), Ok(second)) = (first, second) {
            assert_eq!(
                (first.trace, first.steps, first.acked, &first.counts),
                (second.trace, second.steps, second.acked, &second.counts),
                "seed {seed} ran differently the second time"
            );
        }
    }
    assert_ne!(run_seed(1).trace, run_seed(2).trace);
}

#[test]
fn nothing_of_a_server_outlives_its_world() {
    let plan = Plan { rates: FaultRates::none(), ..Plan::draw(&mut SimRandom::new(1, 100)) };
    let sim = Sim::new(1, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    prepare_directory(&sim);
    let clients = Clients::new(1);
    let (_, runtimes, shards, _) = start(&sim, &plan, 2);
    sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
    let shard = shards.borrow()[0].clone().unwrap();
    runtimes[0].spawn(be_client(0, shard, Rc::clone(&clients)));
    sim.run_until(|| clients.appends_acked.get() > 20, STEPS_MAX).unwrap();
    // Every partition and every log of a core holds on to these.
    let counters: Vec<_> = shards.borrow().iter().flatten().map(|shard| Arc::downgrade(shard.metrics())).collect();
    drop((shards, runtimes, sim));
    assert!(counters.iter().all(|core| core.strong_count() == 0), "a seed leaves its memory to the next");
}

#[test]
fn what_a_killed_process_left_under_way_is_not_shown_before_it_can_be_synced() {
    let plan = Plan { rates: FaultRates::none(), ..Plan::draw(&mut SimRandom::new(1, 100)) };
    let sim = Sim::new(1, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    prepare_directory(&sim);
    let clients = Clients::new(1);
    let open = || {
        let (process, runtimes, shards, _) = start(&sim, &plan, 1);
        sim.run_until(|| shards.borrow()[0].is_some(), STEPS_MAX).unwrap();
        let shard = shards.borrow()[0].clone().unwrap();
        (process, runtimes[0].clone(), shard)
    };
    let partition = PartitionId { log: LogUid(0), index: PartitionIndex(0) };
    let append = |shard: Shard<SimRuntime>| {
        let (batch, _) = make_batch(0, 1, &clients);
        async move { shard.call(Request::Append(Append { partition, batch, ack: Some(AckLevel::Written) })).await }
    };
    let end = |runtime: &SimRuntime, shard: Shard<SimRuntime>| {
        let ends = async move { ends(&shard, partition).await.unwrap().high_watermark };
        sim.block_on(runtime, ends, STEPS_MAX).unwrap()
    };

    let (process, runtime, shard) = open();
    let create = CreateLog { name: "sim".parse().unwrap(), partitions: 1, ack: None };
    let creating = shard.clone();
    let created = async move { creating.call(Request::CreateLog(create)).await };
    sim.block_on(&runtime, created, STEPS_MAX).unwrap().unwrap();
    sim.block_on(&runtime, append(shard.clone()), STEPS_MAX).unwrap().unwrap();
    sim.set_rates(FaultRates::none().with(FaultKind::Stall, 10_000));
    let appending = append(shard);
    runtime.spawn(async move { drop(appending.await) });
    sim.run_for(Duration::from_millis(10), STEPS_MAX).unwrap();
    sim.kill(process);

    sim.set_rates(FaultRates::none().with(FaultKind::LostUnsynced, 10_000));
    let (process, runtime, shard) = open();
    let shown = end(&runtime, shard);
    assert_eq!(shown, Offset(2), "the write was under way when the process was killed");
    sim.lose_power(process);
    let (_, runtime, shard) = open();
    assert_eq!(end(&runtime, shard), shown, "a record was shown and is gone");
}

#[test]
fn a_flipped_bit_is_never_served() {
    let (mut noticed, mut served) = (0, 0);
    for seed in 1..=SEEDS / 4 {
        let mut random = SimRandom::new(seed, 200);
        let plan = Plan { rates: FaultRates::none(), lives: 1, drive_fails: false, ..Plan::draw(&mut random) };
        let sim = Sim::new(seed, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
        let clients = Clients::new(seed);
        prepare_directory(&sim);
        live(&sim, &plan, &clients, &mut random);
        let files = sim.files().into_iter().map(|(path, _)| path);
        let segments: Vec<PathBuf> = files.filter(|path| path.extension() == Some("seg".as_ref())).collect();
        if segments.is_empty() {
            continue;
        }
        assert!(sim.flip_bit(&segments[random.below(segments.len() as u64) as usize]));
        // Partitions may now say that they are damaged. One whose newest records were hit may take them for a torn
        // write and cut them off, and then the last life's own record has their place. What is served must be right.
        noticed += u32::from(!last_life(&sim, &plan, &clients, 1).is_empty());
        let is_loss = |evidence: &Evidence| match evidence {
            Evidence::Missing(_) => true,
            Evidence::Replaced { found, .. } => found.producer == CLIENTS,
            _ => false,
        };
        let wrong = judge(&clients.history.borrow());
        let wrong: Vec<_> = wrong.iter().filter(|one| !is_loss(&one.evidence)).collect();
        assert!(wrong.is_empty(), "seed {seed}: {}", wrong[0]);
        served += clients.records_read.get();
    }
    assert!(noticed > 0 && served > 0, "{noticed} flipped bits were noticed, {served} records served");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn every_planted_bug_is_caught() {
    use pyralog_engine::testing::bug::{PlantedBug, plant};

    const SEEDS_MAX: u64 = 500;
    std::panic::set_hook(Box::new(|_| {}));
    let mut needed: Vec<(u64, PlantedBug)> = Vec::new();
    for bug in PlantedBug::ALL {
        plant(Some(bug));
        let caught = (1..=SEEDS_MAX).find(|seed| try_seed(*seed).is_err());
        plant(None);
        println!("{bug:?}: {caught:?}");
        needed.push((caught.unwrap_or(u64::MAX), bug));
    }
    let _ = std::panic::take_hook();
    needed.sort_by_key(|(seeds, _)| *seeds);
    println!("median seeds to catch a planted bug: {}", needed[needed.len() / 2].0);
    let missed: Vec<_> = needed.iter().filter(|(seeds, _)| *seeds == u64::MAX).collect();
    assert!(missed.is_empty(), "not caught within {SEEDS_MAX} seeds: {missed:?}");
}

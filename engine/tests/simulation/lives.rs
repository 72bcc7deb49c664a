//! The lives of a server: each from its start to its sudden end, and a last one in which nothing fails.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use pyralog_engine::{
    runtime::{
        Runtime,
        sim::{
            ProcessId, Sim, SimConfig, SimRandom, SimRuntime,
            faults::{FaultCounts, FaultKind, FaultRates},
        },
    },
    shard::{self, Shard, Wiring, mailbox::Message},
    testing::{checker::judge, history::Fault},
    types::CoreId,
};

use crate::{
    clients::{CLIENTS, Clients, be_client, read_all},
    plan::Plan,
    producers::settle,
};

/// More than any life of a server takes.
pub const STEPS_MAX: u64 = 3_000_000;

/// What a seed came to.
pub struct Report {
    pub trace: u64,
    pub steps: u64,
    pub counts: FaultCounts,
    pub acked: u64,
    pub read: u64,
    pub violations: Vec<String>,
}

pub fn run_seed(seed: u64) -> Report {
    let mut random = SimRandom::new(seed, 100);
    let plan = Plan::draw(&mut random);
    if std::env::var("PYRALOG_TRACE").is_ok() {
        let rates: Vec<_> =
            FaultKind::ALL.iter().map(|kind| (kind, plan.rates.get(*kind))).filter(|r| r.1 > 0).collect();
        println!("rates {rates:?}, alignment {}, segments of {} bytes", plan.alignment, plan.segment_bytes);
    }
    let sim = Sim::new(seed, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    let clients = Clients::new(seed, &plan);
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
pub fn prepare_directory(sim: &Sim) {
    let (process, cores) = sim.process(1);
    let runtime = cores[0].clone();
    let made = async move { runtime.create_dir_all(&PathBuf::from("/data")).await };
    sim.block_on(&cores[0], made, STEPS_MAX).unwrap().unwrap();
    sim.kill(process);
}

pub type Shards = Rc<RefCell<Vec<Option<Shard<SimRuntime>>>>>;

/// Starts a server; its shards appear as they open, or one of them fails to.
pub fn start(
    sim: &Sim,
    plan: &Plan,
    cores: usize,
) -> (ProcessId, Vec<SimRuntime>, Shards, Rc<RefCell<Option<String>>>) {
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
pub fn live(sim: &Sim, plan: &Plan, clients: &Rc<Clients>, random: &mut SimRandom) {
    let cores = random.within(1..4) as usize;
    if ![0, cores].contains(&clients.cores.replace(cores)) {
        sim.count(FaultKind::OtherCores);
    }
    if plan.rates.get(FaultKind::NoSpace) > 0 && random.happens(1_000) {
        sim.fill_drive(Duration::from_micros(random.within(100..50_000)));
    }
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

/// Nothing fails any more: all must open, take a write, and be read. Returns what did not.
pub fn last_life(sim: &Sim, plan: &Plan, clients: &Rc<Clients>, cores: usize) -> Vec<String> {
    let (_, runtimes, shards, failed) = start(sim, plan, cores);
    let all_open = || shards.borrow().iter().all(Option::is_some);
    let opened = sim.run_until(|| failed.borrow().is_some() || all_open(), STEPS_MAX);
    if let (Err(_), _) | (_, Some(_)) = (&opened, failed.borrow().as_ref()) {
        return vec![format!("the server does not start again: {opened:?} {:?}", failed.borrow())];
    }
    let shard = shards.borrow()[0].clone().unwrap();
    let clients = Rc::clone(clients);
    let all = async move {
        let mut complaints = settle(&shard, &clients).await;
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

/// Runs a seed; a panic in it is a violation like others.
pub fn try_seed(seed: u64) -> Result<Report, String> {
    let report = catch_unwind(AssertUnwindSafe(|| run_seed(seed))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".to_owned())
    })?;
    if report.violations.is_empty() { Ok(report) } else { Err(shorten(&report.violations)) }
}

pub fn shorten(violations: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = violations.len().saturating_sub(SHOWN);
    let mut lines = violations[..violations.len() - more].join("\n  ");
    if more > 0 {
        lines += &format!("\n  and {more} more");
    }
    lines
}

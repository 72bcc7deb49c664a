//! The lives of a server: each from its start to its sudden end, and a last one in which nothing fails.

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind},
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
    shard::{
        self, Shard, Wiring,
        mailbox::Message,
        muster::{self, Absence},
        placement::Drives,
    },
    testing::{
        checker::judge,
        history::{Cause, Event, Fault},
    },
    types::CoreId,
};

use crate::{
    clients::{CLIENTS, Clients, act, be_client, follow, partitions_of, read_all},
    copies, damage,
    deaths::{Death, Deaths},
    deleting, members,
    other_format::Foreigners,
    plan::{Mappings, Plan, balance, heavy_load, moves},
    producers::settle,
    spoiling,
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
    pub mappings: u64,
    pub violations: Vec<String>,
}

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One copy of each partition, on one drive.
    Single,
    /// Several, on one drive or on several.
    Copies,
}

pub fn run_seed(kind: Kind, seed: u64) -> Report {
    let mut random = SimRandom::new(seed, 100);
    let plan = Plan { mappings: RefCell::new(Mappings::of_seed(seed)), ..Plan::draw(&mut random) };
    let moves = moves(seed, &plan.rates);
    let plan = Plan { moves, balance: balance(seed).filter(|_| moves), ..plan };
    let plan = Deaths::of_seed(seed).arrange(Plan { heavy_load: heavy_load(seed), ..plan });
    let plan = if kind == Kind::Copies { plan.with_copies(seed) } else { plan };
    let plan = Plan { changes: members::change(seed, &plan), ..plan };
    let plan = Plan { begins_alone: members::begin_alone(seed, &plan), ..plan };
    let plan = Plan { deletes: deleting::of_seed(seed), ..plan };
    if std::env::var("PYRALOG_TRACE").is_ok() {
        let rates: Vec<_> =
            FaultKind::ALL.iter().map(|kind| (kind, plan.rates.get(*kind))).filter(|r| r.1 > 0).collect();
        println!("rates {rates:?}, alignment {}, segments of {} bytes", plan.alignment, plan.segment_bytes);
    }
    let sim = Sim::new(seed, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    let clients = Clients::new(seed, &plan);
    sim.set_rates(FaultRates::none());
    prepare_directory(&sim, &plan);
    sim.set_rates(plan.rates.clone());
    let (mut foreigners, mut violations) = (Foreigners::of_seed(seed), Vec::new());
    let mut fate = copies::Fate::new(seed, &plan);
    for _ in 0..plan.lives {
        live(&sim, (&plan, &mut fate), &clients, &mut random);
        if plan.settings.replication.is_some() {
            fate.between_lives(&sim, &plan);
        } else {
            violations.extend(foreigners.visit(&sim, &plan, &clients));
        }
    }
    sim.set_rates(FaultRates::none());
    if fate.before_the_last(&sim, &plan) && std::env::var("PYRALOG_TRACE").is_ok() {
        println!("of each partition a copy is not given");
    }
    let cores = (random.within(1..4) as usize).max(plan.drives.len());
    violations.extend(last_life(&sim, &plan, &clients, cores));
    violations.extend(copies::compare(&sim, &plan));
    if plan.spoils_copies {
        violations.extend(spoiling::unrepaired(&sim, &plan));
    }
    violations.extend(judge(&clients.history.borrow()).iter().map(ToString::to_string));
    Report {
        trace: sim.trace_hash(),
        steps: sim.steps(),
        counts: sim.counts(),
        acked: clients.appends_acked.get(),
        read: clients.records_read.get(),
        mappings: sim.mappings(),
        violations,
    }
}

/// The data directories are there before the server is, as `dlog serve` makes it.
pub fn prepare_directory(sim: &Sim, plan: &Plan) {
    let (process, cores) = sim.process(1);
    let runtime = cores[0].clone();
    let dirs = plan.drives.clone();
    let made = async move {
        for dir in dirs {
            runtime.create_dir_all(&dir).await.unwrap();
        }
    };
    sim.block_on(&cores[0], made, STEPS_MAX).unwrap();
    sim.kill(process);
}

pub type Shards = Rc<RefCell<Vec<Option<Shard<SimRuntime>>>>>;

/// Starts a server; its shards appear as they open, or one of them fails to.
pub fn start(
    sim: &Sim,
    plan: &Plan,
    cores: usize,
) -> (ProcessId, Vec<SimRuntime>, Shards, Rc<RefCell<Option<String>>>) {
    sim.wait_for_calls();
    let (process, runtimes) = sim.process(cores);
    let shards: Shards = Rc::new(RefCell::new((0..cores).map(|_| None).collect()));
    let failed = Rc::new(RefCell::new(None));
    let Some(drives) = muster(sim, plan, &runtimes[0], &failed) else { return (process, runtimes, shards, failed) };
    for (core, mesh) in sim.mesh::<Message>(cores, 16).into_iter().enumerate() {
        let (shards, failed) = (Rc::clone(&shards), Rc::clone(&failed));
        let (runtime, config) = (runtimes[core].clone(), plan.config(drives.clone()));
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

/// Counts the drives before any core starts. Without an answer in time the server does not start.
fn muster(sim: &Sim, plan: &Plan, runtime: &SimRuntime, failed: &Rc<RefCell<Option<String>>>) -> Option<Drives> {
    if let [dir] = &plan.drives[..] {
        return Some(Drives::single(dir));
    }
    let (own, dirs) = (runtime.clone(), plan.drives.clone());
    let answer = sim.block_on(runtime, async move { muster::muster(&own, &dirs, Absence::Refused).await }, STEPS_MAX);
    match answer.unwrap() {
        Ok(drives) => Some(drives),
        Err(error) => {
            *failed.borrow_mut() = Some(error.to_string());
            None
        }
    }
}

/// One life of the server, from its start to its sudden end.
pub fn live(sim: &Sim, (plan, fate): (&Plan, &mut copies::Fate), clients: &Rc<Clients>, random: &mut SimRandom) {
    let cores = random.within(1..4) as usize;
    let cores = if plan.settings.replication.is_some() && clients.cores.get() == 0 { 3 } else { cores };
    let cores = cores.max(plan.drives.len()) + plan.more_cores;
    if ![0, cores].contains(&clients.cores.replace(cores)) {
        sim.count(FaultKind::OtherCores);
    }
    if plan.rates.get(FaultKind::NoSpace) > 0 && random.happens(1_000) {
        sim.fill_drive(Duration::from_micros(random.within(100..50_000)));
    }
    let before = sim.counts();
    if sim.drive_is_full() {
        clients.note(Event::Cause(Cause::DriveFull));
    }
    // Recovery believes what it reads: nothing tells it that a drive hides the end of a log from it.
    sim.set_rate(FaultKind::MisdirectedRead, 0);
    note_copies(plan, clients);
    note_spoiled(plan, clients);
    let (process, runtimes, shards, failed) = start(sim, plan, cores);
    let death = plan.deaths.borrow_mut().next();
    let end = death.latest(sim.now() + Duration::from_micros(length_of_life(plan, random)));
    let all_open = || shards.borrow().iter().all(Option::is_some);
    sim.run_until(|| sim.now() >= end || failed.borrow().is_some() || all_open(), STEPS_MAX).unwrap();
    sim.set_rate(FaultKind::MisdirectedRead, plan.rates.get(FaultKind::MisdirectedRead));
    let open: Vec<_> = shards.borrow_mut().drain(..).flatten().collect();
    fate.strike(sim, clients);
    fate.withhold(sim, plan);
    if open.len() == cores {
        serve(sim, (&open, &runtimes), (plan, clients), (end, death), random);
    }
    fate.note_given_up(&open);
    let logs: Vec<_> = open.iter().map(|shard| shard.catalog().logs().count()).collect();
    drop(open);
    let kill = plan.deaths.borrow_mut().is_kill(death, random.happens(4_000));
    if kill {
        sim.kill(process);
    } else {
        sim.lose_power(process);
    }
    if std::env::var("PYRALOG_TRACE").is_ok() {
        let (end, acked) = (if kill { "killed" } else { "power lost" }, clients.appends_acked.get());
        let failed = failed.borrow();
        println!("{cores} cores, failed {failed:?}, logs {logs:?}, {acked} acked; {end} at {:?}, {death:?}", sim.now());
        println!("  {:?}", sim.files());
    }
    failed.borrow().iter().for_each(|why| clients.note(Event::NotStarted(why.clone())));
    note_causes(&before, &sim.counts(), clients);
    if plan.settings.replication.is_none() {
        damage::tell(sim, clients);
    }
    let fault = if kill && !plan.drive_fails { Fault::Kill } else { Fault::PowerLoss };
    clients.history.borrow_mut().fault(fault);
    if plan.settings.replication.is_none() {
        damage::rot(sim, plan, clients, random);
        damage::tell(sim, clients);
    } else if !kill {
        fate.spoil(sim, plan);
    }
}

fn note_copies(plan: &Plan, clients: &Clients) {
    if plan.settings.replication.is_some() {
        clients.note(Event::Cause(Cause::Replicated));
        clients.note(Event::Cause(Cause::Creating));
    }
    if plan.moves {
        clients.note(Event::Cause(Cause::Moving));
    }
}

/// What was spoiled cannot be read until it is repaired.
fn note_spoiled(plan: &Plan, clients: &Clients) {
    if plan.spoils_copies {
        clients.note(Event::Cause(Cause::Misread));
    }
}

/// In microseconds.
fn length_of_life(plan: &Plan, random: &mut SimRandom) -> u64 {
    match random.below(10) {
        // Long enough to agree on leaders, and on others when those fail.
        2..8 if plan.settings.replication.is_some() => random.within(300_000..2_000_000),
        0..2 => random.within(100..5_000),
        // Long enough to see room come back.
        2..4 if plan.rates.get(FaultKind::NoSpace) > 0 => random.within(500_000..3_000_000),
        _ => random.within(5_000..200_000),
    }
}

/// Lets clients use the server until it is to die, or until `end`, or shorter.
fn serve(
    sim: &Sim,
    (shards, runtimes): (&[Shard<SimRuntime>], &[SimRuntime]),
    (plan, clients): (&Plan, &Rc<Clients>),
    (end, death): (Duration, Death),
    random: &mut SimRandom,
) {
    shards.iter().for_each(|shard| clients.logs_known.check(shard));
    // Some lives end just after they showed what the one before left.
    let soon = sim.now() + Duration::from_micros(random.within(50..3_000));
    let end = if random.happens(2_500) && matches!(death, Death::AnyTime) { end.min(soon) } else { end };
    for client in 0..CLIENTS {
        let core = random.below(shards.len() as u64) as usize;
        runtimes[core].spawn(be_client(client, shards[core].clone(), Rc::clone(clients)));
    }
    if plan.moves && plan.balance.is_none() && shards.len() > 1 {
        copies::keep_moving(sim, &runtimes[0], (shards[0].clone(), shards.len() as u64));
    }
    if plan.changes {
        members::keep_changing(sim, &runtimes[0], plan, (shards[0].clone(), shards.len() as u64));
    }
    if plan.deletes {
        deleting::keep_deleting(sim, &runtimes[0], clients, shards[0].clone());
    }
    sim.keep_going_until(end + Duration::from_secs(1));
    let died = death.wait(sim, (plan, clients), end);
    if random.happens(2_000) && !died {
        clients.note(Event::Cause(Cause::Stopping));
        for (shard, runtime) in shards.iter().cloned().zip(runtimes) {
            runtime.spawn(async move { shard.shut_down().await });
        }
        let grace = sim.now() + Duration::from_millis(random.below(20));
        sim.run_until(|| sim.now() >= grace, STEPS_MAX).unwrap();
    }
}

/// Tells the judge what happened in a life that may explain errors.
fn note_causes(before: &FaultCounts, after: &FaultCounts, clients: &Clients) {
    for (kind, cause) in [
        (FaultKind::NoSpace, Cause::DriveFull),
        (FaultKind::WriteError, Cause::DriveFailed),
        (FaultKind::SyncError, Cause::DriveFailed),
        (FaultKind::ReadError, Cause::ReadFailed),
        (FaultKind::Unreadable, Cause::ReadFailed),
        (FaultKind::DriveFailed, Cause::DriveFailed),
        (FaultKind::DriveFailed, Cause::ReadFailed),
        (FaultKind::MisdirectedRead, Cause::Misread),
        // What it spoiled may have been deleted since.
        (FaultKind::MisdirectedWrite, Cause::Misread),
    ] {
        if after.get(kind) > before.get(kind) {
            clients.note(Event::Cause(cause));
        }
    }
}

/// How long the world goes on for things that should end within a minute.
const PATIENCE: Duration = Duration::from_secs(100);
/// What each client does in the last life.
const LAST_ACTS: usize = 8;

/// Nothing fails any more: all must open, take writes, be read, end in time, and leave nothing in use. What does not is
/// the judge's to say; returned is what he cannot see.
pub fn last_life(sim: &Sim, plan: &Plan, clients: &Rc<Clients>, cores: usize) -> Vec<String> {
    clients.note(Event::Healed);
    note_copies(plan, clients);
    let since = sim.now();
    let (_, runtimes, shards, failed) = start(sim, plan, cores);
    let all_open = || shards.borrow().iter().all(Option::is_some);
    let opened = sim.run_until(|| failed.borrow().is_some() || all_open(), STEPS_MAX);
    failed.borrow().iter().for_each(|why| clients.note(Event::NotStarted(why.clone())));
    clients.note(Event::Took(sim.now() - since));
    if opened.is_err() || failed.borrow().is_some() {
        return vec![format!("the server does not start again: {opened:?} {:?}", failed.borrow())];
    }
    let shards: Vec<_> = shards.borrow().iter().flatten().cloned().collect();
    shards.iter().for_each(|shard| clients.logs_known.check(shard));
    let (shard, busy) = (shards[0].clone(), Rc::new(Cell::new(0)));
    if !partitions_of(&shard).is_empty() {
        for client in 0..CLIENTS {
            let at = client as usize % cores;
            let (shard, clients, busy) = (shards[at].clone(), Rc::clone(clients), Rc::clone(&busy));
            busy.set(busy.get() + 1);
            runtimes[at].spawn(async move {
                for _ in 0..LAST_ACTS {
                    timed(&shard, &clients, act(client, &shard, &clients)).await;
                }
                timed(&shard, &clients, follow(client, &shard, &clients)).await;
                busy.set(busy.get() - 1);
            });
        }
    }
    if let Some(stuck) = wait_for(sim, clients, || busy.get() == 0) {
        return vec![stuck];
    }
    if let Some(stuck) = wait_for(sim, clients, || members::are_settled(&shard)) {
        return vec![stuck];
    }
    if !members::are_settled(&shard) {
        return vec![format!("the copies of a log do not come to be what they are to be: {:?}", shard.catalog())];
    }
    let out = out_of_service(sim, (plan, clients), &shard);
    if !out.is_empty() {
        return out;
    }
    if let Err(stuck) = sim.run_for(Duration::from_secs(1), STEPS_MAX) {
        return vec![format!("a server at rest does not rest: {stuck}")];
    }
    // Core 0 asks the others every now and then what they do: between two such questions nothing is on its way.
    let is_quiet = || shards.iter().all(|shard| shard.in_use().messages == 0);
    if let Some(stuck) = wait_for(sim, clients, is_quiet) {
        return vec![stuck];
    }
    shards.iter().for_each(|shard| note_in_use(shard, clients));
    let done = Rc::new(Cell::new(false));
    let (reader, flag) = (Rc::clone(clients), Rc::clone(&done));
    let complaints = Rc::new(RefCell::new(Vec::new()));
    let (unsettled, last) = (Rc::clone(&complaints), shard.clone());
    runtimes[0].spawn(async move {
        let unended = settle(&shard, &reader).await;
        unsettled.borrow_mut().extend(unended);
        for partition in partitions_of(&shard) {
            timed(&shard, &reader, read_all(&shard, partition, &reader)).await;
        }
        flag.set(true);
    });
    let stuck = wait_for(sim, clients, || done.get());
    complaints.take().into_iter().chain(stuck).chain(deleting::leftovers(sim, plan, &last)).collect()
}

/// The copies that do not come to be in service.
fn out_of_service(sim: &Sim, (plan, clients): (&Plan, &Clients), shard: &Shard<SimRuntime>) -> Vec<String> {
    if plan.settings.replication.is_none() {
        return Vec::new();
    }
    let (own, out) = (shard.clone(), Rc::new(RefCell::new(None)));
    let found = Rc::clone(&out);
    shard.runtime().spawn(async move { *found.borrow_mut() = Some(copies::out_of_service(&own).await) });
    let stuck = wait_for(sim, clients, || out.borrow().is_some());
    out.take().unwrap_or_default().into_iter().chain(stuck).collect()
}

/// Lets the world go on until `done`. What does not end in time is noted; returned is what does not end at all.
fn wait_for(sim: &Sim, clients: &Clients, done: impl Fn() -> bool) -> Option<String> {
    let since = sim.now();
    // Something that keeps the time going.
    sim.keep_going_until(since + PATIENCE);
    let result = sim.run_until(|| done() || sim.now() >= since + PATIENCE, STEPS_MAX);
    if !done() {
        clients.note(Event::Took(sim.now() - since));
    }
    result.err().map(|stuck| format!("the last life does not end: {stuck}"))
}

async fn timed(shard: &Shard<SimRuntime>, clients: &Clients, operation: impl Future<Output = ()>) {
    let since = shard.runtime().monotonic();
    operation.await;
    clients.note(Event::Took(shard.runtime().monotonic() - since));
}

/// Tells the judge what a shard has in use.
fn note_in_use(shard: &Shard<SimRuntime>, clients: &Clients) {
    let now = shard.in_use();
    let note = |what, amount: u64, allowed: u64| clients.note(Event::InUse { what, amount, allowed });
    note("bytes of the budget", now.reserved_bytes, 0);
    note("bytes not durable", now.undurable_bytes, 0);
    note("bytes not written", now.unwritten_bytes, 0);
    note("bytes of tails", now.tail_bytes, now.tail_bytes_max);
    note("bytes mapped", now.mapped_bytes, now.mapped_bytes_max);
    note("appends and fetches waiting", now.waiting, 0);
    note("messages to other cores", now.messages, 0);
}

/// Runs a seed; a panic in it is a violation like others.
pub fn try_seed(kind: Kind, seed: u64) -> Result<Report, String> {
    let report = catch_unwind(AssertUnwindSafe(|| run_seed(kind, seed))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".to_owned())
    })?;
    if report.violations.is_empty() { Ok(report) } else { Err(report.violations.join("\n  ")) }
}

/// The first lines of what is wrong with a seed.
pub fn shorten(why: &str) -> String {
    let shown = if std::env::var("PYRALOG_TRACE").is_ok() { 200 } else { 5 };
    let mut text = why.lines().take(shown).collect::<Vec<_>>().join("\n");
    let more = why.lines().count().saturating_sub(shown);
    if more > 0 {
        text += &format!("\n  and {more} more");
    }
    text
}

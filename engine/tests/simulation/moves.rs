//! A single copy that moves to another core, with something in its way at every moment of the move.

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
    time::Duration,
};

use pyralog_engine::{
    error::RequestError,
    runtime::{
        Runtime,
        sim::{
            ProcessId, Sim, SimConfig, SimRandom, SimRuntime,
            faults::{FaultKind, FaultRates},
        },
    },
    shard::{
        Shard,
        request::{Append, CreateLog, Move, Outcome, Reply, Request},
    },
    types::{AckLevel, CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};

use crate::{
    clients::{Clients, call, ends, make_batch},
    lives::{STEPS_MAX, prepare_directory, start},
    plan::Plan,
};

const PARTITION: PartitionId = PartitionId { log: LogUid(0), index: PartitionIndex(0) };

/// How many records are there before the move.
const BEFORE: u64 = 5;

/// A server with two cores, and the copy that is to move from one to the other.
struct Story {
    sim: Sim,
    plan: Plan,
    clients: Rc<Clients>,
}

struct Life {
    process: ProcessId,
    runtime: SimRuntime,
    shard: Shard<SimRuntime>,
}

impl Story {
    fn new() -> Story {
        let rates = FaultRates::none().with(FaultKind::LostUnsynced, 10_000).with(FaultKind::LostName, 10_000);
        let drawn = Plan::draw(&mut SimRandom::new(1, 100));
        let plan = Plan { rates: rates.clone(), settings: Default::default(), ..drawn };
        let sim = Sim::new(1, &SimConfig { rates, alignment: plan.alignment });
        prepare_directory(&sim, &plan);
        let clients = Clients::new(1, &plan);
        Story { sim, plan, clients }
    }

    fn start(&self) -> Life {
        let (process, runtimes, shards, _) = start(&self.sim, &self.plan, 2);
        self.sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
        let shard = shards.borrow()[0].clone().unwrap();
        Life { process, runtime: runtimes[0].clone(), shard }
    }

    fn ask(&self, life: &Life, request: Request) -> Outcome {
        let shard = life.shard.clone();
        self.sim.block_on(&life.runtime, async move { call(&shard, request).await }, STEPS_MAX).unwrap()
    }

    /// Appends a record, which must get this offset.
    fn append(&self, life: &Life, offset: u64) {
        let (batch, _) = make_batch(0, 1, &self.clients);
        let expected_offset = Some(Offset(offset));
        let append = Append { partition: PARTITION, batch, ack: Some(AckLevel::Durable), expected_offset };
        let outcome = self.ask(life, Request::Append(append));
        assert!(matches!(outcome, Ok(Reply::Appended(_))), "{outcome:?}");
    }

    /// One record after the other until told to stop; how many were acknowledged.
    fn keep_writing(&self, life: &Life) -> (Rc<Cell<u64>>, Rc<Cell<bool>>) {
        let (written, stop) = (Rc::<Cell<u64>>::default(), Rc::<Cell<bool>>::default());
        let (shard, clients) = (life.shard.clone(), Rc::clone(&self.clients));
        let (count, stopped) = (Rc::clone(&written), Rc::clone(&stop));
        life.runtime.spawn(async move {
            while !stopped.get() {
                let (batch, _) = make_batch(0, 1, &clients);
                let ack = Some(AckLevel::Durable);
                let append = Append { partition: PARTITION, batch, ack, expected_offset: None };
                match call(&shard, Request::Append(append)).await {
                    Ok(_) => count.set(count.get() + 1),
                    Err(RequestError::NotLeader { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
        (written, stop)
    }

    fn end(&self, life: &Life) -> Offset {
        let (shard, clients) = (life.shard.clone(), Rc::clone(&self.clients));
        let ends = async move { ends(0, &shard, PARTITION, &clients).await.unwrap().high_watermark };
        self.sim.block_on(&life.runtime, ends, STEPS_MAX).unwrap()
    }

    /// The log, its first records, and the begin of the move, whose outcome will be there.
    fn begin(&self) -> (Life, CoreId, Rc<RefCell<Option<Outcome>>>) {
        let life = self.start();
        let create = CreateLog { name: "sim".parse().unwrap(), partitions: 1, settings: Default::default() };
        self.ask(&life, Request::CreateLog(create)).unwrap();
        (0..BEFORE).for_each(|offset| self.append(&life, offset));
        let to = CoreId(1 - life.shard.owner(PARTITION).0);
        let outcome: Rc<RefCell<Option<Outcome>>> = Rc::default();
        let (shard, moved) = (life.shard.clone(), Rc::clone(&outcome));
        life.runtime.spawn(async move {
            let answer = shard.call(Request::Move(Move { partition: PARTITION, to })).await;
            *moved.borrow_mut() = Some(answer);
        });
        (life, to, outcome)
    }
}

/// Times after the begin of a move, until it is over.
fn moments() -> impl Iterator<Item = Duration> {
    (0..).map(|step| Duration::from_micros(15 * step))
}

#[test]
fn a_move_that_is_cut_off_anywhere_leaves_the_copy_on_one_core_with_everything() {
    let mut on = [0; 2];
    for moment in moments() {
        let story = Story::new();
        let (life, to, outcome) = story.begin();
        story.sim.run_for(moment, STEPS_MAX).unwrap();
        let is_over = outcome.borrow().is_some();
        if moment.as_micros() % 2 == 0 {
            story.sim.kill(life.process)
        } else {
            story.sim.lose_power(life.process)
        }
        let life = story.start();
        assert_eq!(story.end(&life), Offset(BEFORE), "cut off after {moment:?}");
        let is_moved = life.shard.owner(PARTITION) == to;
        assert!(is_moved || !is_over, "it was said to be moved, and is not after {moment:?}");
        on[usize::from(is_moved)] += 1;
        story.append(&life, BEFORE);
        if is_over {
            break;
        }
    }
    assert!(on.iter().all(|times| *times > 3), "how often it stayed, and was moved: {on:?}");
}

#[test]
fn a_read_that_comes_from_another_place_at_any_moment_of_a_move_hides_nothing() {
    let mut misread = 0;
    for moment in moments() {
        let story = Story::new();
        let (life, to, outcome) = story.begin();
        story.sim.run_for(moment, STEPS_MAX).unwrap();
        if outcome.borrow().is_some() {
            break;
        }
        let is_over = || outcome.borrow().is_some();
        let count = || story.sim.counts().get(FaultKind::MisdirectedRead);
        story.sim.set_rate(FaultKind::MisdirectedRead, 10_000);
        story.sim.run_until(|| count() > 0 || is_over(), STEPS_MAX).unwrap();
        story.sim.set_rate(FaultKind::MisdirectedRead, 0);
        story.sim.run_until(is_over, STEPS_MAX).unwrap();
        misread += count();
        assert_eq!(life.shard.owner(PARTITION), to, "misread after {moment:?}");
        assert_eq!(story.end(&life), Offset(BEFORE), "misread after {moment:?}");
        story.append(&life, BEFORE);
    }
    assert!(misread > 3, "{misread} misread");
}

#[test]
fn a_drive_that_stalls_at_any_moment_of_a_move_leaves_nothing_closed() {
    let (stall, mut refused, mut unknown) = (Duration::from_secs(12), 0, 0);
    for moment in moments().step_by(4) {
        let story = Story::new();
        let (life, _, outcome) = story.begin();
        let (written, stop) = story.keep_writing(&life);
        story.sim.run_for(moment, STEPS_MAX).unwrap();
        if outcome.borrow().is_some() {
            break;
        }
        story.sim.stall_drive(Path::new("/data"), stall);
        let begun = story.sim.now();
        story.sim.run_until(|| outcome.borrow().is_some(), STEPS_MAX).unwrap();
        let took = story.sim.now() - begun;
        assert!(took < Duration::from_secs(3), "an answer after {took:?}");
        match outcome.borrow().as_ref().unwrap() {
            Ok(_) => {}
            Err(RequestError::DriveSilent { .. } | RequestError::MoveRefused { .. }) => refused += 1,
            Err(RequestError::ChangeUnknown { .. }) => unknown += 1,
            Err(other) => panic!("stalled after {moment:?}: {other}"),
        }
        story.sim.run_until(|| story.sim.now() >= begun + stall, STEPS_MAX).unwrap();
        let before = written.get();
        let until = story.sim.now() + Duration::from_secs(1);
        story.sim.run_until(|| written.get() > before + 3 || story.sim.now() > until, STEPS_MAX).unwrap();
        assert!(written.get() > before + 3, "nobody takes writes, stalled after {moment:?}");
        stop.set(true);
        story.sim.run_for(Duration::from_millis(100), STEPS_MAX).unwrap();
        assert_eq!(story.end(&life), Offset(BEFORE + written.get()), "stalled after {moment:?}");
    }
    assert!(refused > 0 && unknown > 0, "{refused} were refused, and {unknown} had begun");
}

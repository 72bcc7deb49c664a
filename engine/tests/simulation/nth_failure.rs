//! A scripted life of a log in which operation number N on the drive fails, for N = 1, 2, 3 … until a run has no
//! failure: with an error, for want of room, and by a loss of power; once only, and with every one after it.
//!
//! What chance would find seldom, such as the second sync of a roll, has its turn here.

use std::{cell::Cell, rc::Rc, time::Duration};

use pyralog_engine::{
    log::prepare::HeavyLoad,
    runtime::{
        Runtime,
        sim::{
            Sim, SimConfig, SimRandom, SimRuntime,
            faults::{Failure, FaultKind, FaultRates},
        },
    },
    shard::Shard,
    testing::{
        checker::judge,
        history::{Cause, Event, Fault},
    },
    types::AckLevel,
};

use crate::{
    clients::{Clients, Patience, append_one, create_log, partitions_of, read_some, read_through, trim},
    lives::{STEPS_MAX, last_life, prepare_directory, start},
    plan::Plan,
};

/// Lives of the server before the last one.
const LIVES: u64 = 2;
/// More than any run has.
const OPERATIONS_MAX: u64 = 2_000;

#[test]
fn any_one_operation_may_fail_once_or_for_good() {
    let mut runs = 0;
    for failure in [Failure::Error, Failure::NoSpace, Failure::Crash] {
        for (sticky, mappings) in [(false, 0), (false, 10_000), (true, 0)] {
            let last = (1..OPERATIONS_MAX).find(|nth| !run(*nth, (failure, sticky), mappings));
            let last = last.expect("a run without a failure");
            println!(
                "{failure:?}, sticky: {sticky}, mapped: {}: {} operations failed one after the other",
                mappings > 0,
                last - 1
            );
            assert!(last > 50, "a life of a log has more operations than {last}");
            runs += last;
        }
    }
    println!("{runs} runs");
}

/// Runs the script. `false` if there is no operation number `nth` in it.
fn run(nth: u64, (failure, sticky): (Failure, bool), mappings: u32) -> bool {
    let rates = FaultRates::none()
        .with(FaultKind::LostUnsynced, 5_000)
        .with(FaultKind::LostName, 5_000)
        .with(FaultKind::LostSize, 5_000);
    let drawn = Plan::draw(&mut SimRandom::new(1, 100));
    let mut plan = Plan { rates, segment_bytes: 96 << 10, logs: 1, settings: Default::default(), ..drawn };
    if mappings > 0 {
        // Not both in every run: room is taken for segments, or they are filled with zeros.
        plan.heavy_load = HeavyLoad { commit_bytes_min: 0, bytes_per_second_min: 0, unawaited_bytes_per_second_min: 0 };
    }
    plan.mappings.borrow_mut().0 = mappings;
    let sim = Sim::new(nth, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    prepare_directory(&sim, &plan);
    let clients = Clients::new(1, &plan);
    sim.fail_nth(nth, failure, sticky);
    for _ in 0..LIVES {
        live(&sim, &plan, &clients, failure);
    }
    let (operations, failed) = sim.fail_none();
    sim.set_rates(FaultRates::none());
    let complaints = last_life(&sim, &plan, &clients, 1);
    let broken: Vec<String> = judge(&clients.history.borrow()).iter().map(ToString::to_string).collect();
    let wrong: Vec<_> = complaints.into_iter().chain(broken).take(5).collect();
    assert!(wrong.is_empty(), "operation {nth} of {operations}, {failure:?}, sticky: {sticky}\n{}", wrong.join("\n"));
    assert!(failed || mappings == 0 || sim.mappings() > 0, "nothing was mapped");
    // A sticky shortage of room may only begin with a later operation.
    failed || operations >= nth
}

fn live(sim: &Sim, plan: &Plan, clients: &Rc<Clients>, failure: Failure) {
    let (process, runtimes, shards, not_started) = start(sim, plan, 1);
    let crashed = || failure == Failure::Crash && sim.has_failed();
    sim.keep_going_until(sim.now() + Duration::from_secs(10));
    let opened = || shards.borrow()[0].is_some();
    sim.run_until(|| opened() || not_started.borrow().is_some() || crashed(), STEPS_MAX).unwrap();
    let shard = shards.borrow_mut()[0].take();
    if let Some(shard) = shard {
        let done = Rc::new(Cell::new(false));
        let (client, over) = (Rc::clone(clients), Rc::clone(&done));
        runtimes[0].spawn(async move {
            script(&shard, &client).await;
            client.note(Event::Cause(Cause::Stopping));
            shard.shut_down().await;
            over.set(true);
        });
        // A full drive keeps appends waiting; who does not want to wait kills the server.
        let patience = sim.now() + Duration::from_secs(3);
        sim.run_until(|| done.get() || crashed() || sim.now() >= patience, STEPS_MAX).unwrap();
    }
    not_started.borrow().iter().for_each(|why| clients.note(Event::NotStarted(why.clone())));
    sim.lose_power(process);
    if sim.has_failed() {
        let causes: &[Cause] = match failure {
            Failure::Error => &[Cause::DriveFailed, Cause::ReadFailed],
            Failure::NoSpace => &[Cause::DriveFull, Cause::DriveFailed],
            Failure::Crash => &[],
        };
        causes.iter().for_each(|cause| clients.note(Event::Cause(*cause)));
    }
    clients.history.borrow_mut().fault(Fault::PowerLoss);
    if crashed() {
        sim.fail_none();
    }
}

/// Create, produce through some rolls, read, trim, produce again.
async fn script(shard: &Shard<SimRuntime>, clients: &Rc<Clients>) {
    if partitions_of(shard).is_empty() {
        create_log(shard, clients).await;
    }
    for part in 0..2 {
        let Some(partition) = partitions_of(shard).first().copied() else { return };
        for number in 0..6 {
            let ack = if number % 3 == 0 { AckLevel::Written } else { AckLevel::Durable };
            append_one(part, shard.clone(), Rc::clone(clients), (partition, ack, 60), Patience::Again).await;
        }
        read_some(part, shard, clients).await;
        read_through(part, shard, partition, clients).await;
        trim(part, shard, clients).await;
    }
}

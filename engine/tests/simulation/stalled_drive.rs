//! How long it takes until what is led on a drive that does not answer is led elsewhere. No judge looks at that: slow
//! is not wrong.

use std::{cell::Cell, path::PathBuf, rc::Rc, time::Duration};

use pyralog_engine::{
    runtime::{
        Runtime,
        sim::{Sim, SimConfig, SimRandom, SimRuntime, faults::FaultRates},
    },
    settings::{LogSettings, Replication},
    shard::{
        Shard,
        request::{Append, CreateLog, Outcome, Reply, Request},
    },
    types::{AckLevel, CoreId, LogUid, PartitionId, PartitionIndex},
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

/// For how long some partition could not be written to durably after the drive of core 2 stalled.
fn outage(seed: u64) -> Duration {
    let drives = ["/data", "/data1", "/data2"].map(PathBuf::from);
    let rates = FaultRates::none();
    let drawn = Plan::draw(&mut SimRandom::new(1, 100));
    let plan = Plan { rates: rates.clone(), settings: Default::default(), drives: drives.into(), ..drawn };
    let sim = Sim::new(seed, &SimConfig { rates, alignment: plan.alignment });
    prepare_directory(&sim, &plan);
    let clients = Clients::new(1, &plan);
    let (_, runtimes, shards, _) = start(&sim, &plan, 3);
    sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
    let shard = shards.borrow()[0].clone().unwrap();
    let replication = Some(Replication { replication_factor: 3, write_quorum: 2, read_quorum: 2 });
    let settings = LogSettings { replication, ..LogSettings::default() };
    let create = CreateLog { name: "sim".parse().unwrap(), partitions: PARTITIONS, settings };
    let creating = shard.clone();
    let created = async move { creating.call(Request::CreateLog(create)).await };
    sim.block_on(&runtimes[0], created, STEPS_MAX).unwrap().unwrap();
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

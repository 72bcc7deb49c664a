//! What a leader tells only when others have confirmed that it leads: reads, in each reign anew, and that an append is
//! refused for good by what its log has.

use std::{cell::RefCell, rc::Rc, time::Duration};

use pyralog_engine::{
    error::RequestError,
    runtime::{
        Runtime,
        sim::{
            Sim, SimConfig, SimRandom, SimRuntime,
            faults::{FaultKind, FaultRates},
        },
    },
    settings::{LogSettings, Replication},
    shard::{
        Shard,
        request::{Append, CreateLog, FindOffset, Move, OffsetAt, Outcome, Request},
    },
    types::{AckLevel, CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};

use crate::{
    clients::{Clients, make_batch},
    lives::{STEPS_MAX, prepare_directory, start},
    plan::Plan,
};

const PARTITION: PartitionId = PartitionId { log: LogUid(0), index: PartitionIndex(0) };

/// A message to another core and one back take longer than this here.
const WAY: Duration = Duration::from_micros(2);

type Story = Rc<RefCell<Vec<String>>>;

/// Asks as whoever is connected to the core of the leader. Gives what came, and how long it took.
async fn timed(shards: &[Shard<SimRuntime>], request: Request) -> (Outcome, Duration) {
    let shard = &shards[usize::from(shards[0].owner(PARTITION).0)];
    let since = shard.runtime().monotonic();
    let outcome = shard.call(request).await;
    (outcome, shard.runtime().monotonic() - since)
}

async fn read_often(shards: &[Shard<SimRuntime>], wrong: &Story) {
    for number in 0..30 {
        let (outcome, took) =
            timed(shards, Request::FindOffset(FindOffset { partition: PARTITION, at: OffsetAt::Latest })).await;
        if outcome.is_err() || took < WAY {
            wrong.borrow_mut().push(format!("read {number} took {took:?}: {outcome:?}"));
        }
    }
}

async fn lead_twice_and_refuse(shards: Vec<Shard<SimRuntime>>, clients: Rc<Clients>, wrong: Story) {
    let replication = Replication { replication_factor: 3, write_quorum: 2, read_quorum: 2 };
    let settings = LogSettings { replication: Some(replication), ..LogSettings::default() };
    let create = CreateLog { name: "sim".parse().unwrap(), partitions: 1, settings };
    shards[0].call(Request::CreateLog(create)).await.unwrap();
    read_often(&shards, &wrong).await;
    let first = shards[0].owner(PARTITION);
    for to in [CoreId((first.0 + 1) % 3), first] {
        shards[0].call(Request::Move(Move { partition: PARTITION, to })).await.unwrap();
    }
    read_often(&shards, &wrong).await;
    let (batch, _) = make_batch(0, 1, &clients);
    let expected_offset = Some(Offset(7));
    let append = Append { partition: PARTITION, batch, ack: Some(AckLevel::Durable), expected_offset };
    let (outcome, took) = timed(&shards, Request::Append(append)).await;
    if !matches!(outcome, Err(RequestError::WrongOffset { .. })) || took < WAY {
        wrong.borrow_mut().push(format!("a refusal took {took:?}: {outcome:?}"));
    }
}

#[test]
fn reads_of_every_reign_and_refusals_wait_for_others_to_confirm_them() {
    let rates = FaultRates::none().with(FaultKind::RingDelay, 10_000);
    let drawn = Plan::draw(&mut SimRandom::new(1, 100));
    let plan = Plan { rates: rates.clone(), settings: Default::default(), ..drawn };
    let sim = Sim::new(1, &SimConfig { rates, alignment: plan.alignment });
    prepare_directory(&sim, &plan);
    let clients = Clients::new(1, &plan);
    let (_, runtimes, shards, _) = start(&sim, &plan, 3);
    sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
    let shards = shards.borrow().iter().flatten().cloned().collect();
    let wrong = Story::default();
    let story = lead_twice_and_refuse(shards, clients, Rc::clone(&wrong));
    sim.block_on(&runtimes[0], story, STEPS_MAX).unwrap();
    assert!(wrong.borrow().is_empty(), "{:?}", wrong.borrow());
}

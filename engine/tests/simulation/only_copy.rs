//! An only copy that is opened anew and found to end at damage. Nobody can give it back what it lacks; but a drive may
//! only have given other bytes than it has.

use std::{path::PathBuf, rc::Rc, time::Duration};

use pyralog_engine::{
    error::RequestError,
    runtime::{
        Runtime,
        sim::{ProcessId, Sim, SimConfig, SimRandom, SimRuntime, faults::FaultRates},
    },
    settings::{LogChanges, LogSettings, Replication},
    shard::{
        Shard,
        request::{AlterLog, Append, CreateLog, Fetch, Outcome, Reply, Request},
    },
    types::{AckLevel, LogUid, Offset, PartitionId, PartitionIndex},
};

use crate::{
    clients::{Clients, make_batch},
    lives::{STEPS_MAX, prepare_directory, start},
    members::are_settled,
    plan::Plan,
    spoiling::copies_on,
};

const PARTITION: PartitionId = PartitionId { log: LogUid(0), index: PartitionIndex(0) };

/// A server, and what clients do with it.
struct Scene {
    sim: Sim,
    plan: Plan,
    clients: Rc<Clients>,
    server: Option<(ProcessId, SimRuntime, Shard<SimRuntime>)>,
    /// Where the third batch stands, in its body,
    place: u64,
    /// and what stands there.
    right: u8,
}

impl Scene {
    /// A log whose partition has so many copies, and five batches.
    fn new(copies: u8) -> Scene {
        let settings = LogSettings { replication: Some(all_of(copies)), ..LogSettings::default() };
        let drawn = Plan::draw(&mut SimRandom::new(1, 100));
        let plan = Plan { rates: FaultRates::none(), settings, drives: vec![PathBuf::from("/data")], ..drawn };
        let sim = Sim::new(1, &SimConfig { rates: FaultRates::none(), alignment: plan.alignment });
        prepare_directory(&sim, &plan);
        let clients = Clients::new(1, &plan);
        let mut scene = Scene { sim, plan, clients, server: None, place: 0, right: 0 };
        scene.begin();
        let create = CreateLog { name: "sim".parse().unwrap(), partitions: 1, settings };
        let created = scene.call(Request::CreateLog(create));
        assert!(matches!(created, Ok(Reply::LogCreated(_))), "{created:?}");
        for count in 0..5 {
            assert_eq!(scene.append(), Ok(20 * count));
            if count == 1 {
                let bytes = scene.sim.content(&scene.segment()).unwrap();
                let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
                scene.place = end.next_multiple_of(scene.plan.alignment) + 200;
            }
        }
        scene.right = scene.byte();
        scene
    }

    /// Starts the server, after a loss of power if it runs.
    fn begin(&mut self) {
        if let Some((process, ..)) = self.server.take() {
            self.sim.lose_power(process);
        }
        let (process, runtimes, shards, _) = start(&self.sim, &self.plan, 2);
        self.sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
        let shard = shards.borrow()[0].clone().unwrap();
        self.server = Some((process, runtimes[0].clone(), shard));
    }

    /// Asks, and for three seconds again while nobody leads.
    fn call(&self, request: Request) -> Outcome {
        let (_, runtime, shard) = self.server.clone().unwrap();
        let asked = async move {
            for _ in 0..300 {
                match shard.call(request.clone()).await {
                    Err(RequestError::NotLeader { .. }) => shard.runtime().sleep(Duration::from_millis(10)).await,
                    outcome => return outcome,
                }
            }
            shard.call(request).await
        };
        self.sim.block_on(&runtime, asked, STEPS_MAX).unwrap()
    }

    /// Gives the offset of the first of the records.
    fn append(&self) -> Result<u64, RequestError> {
        let (batch, _) = make_batch(0, 20, &self.clients);
        let append = Append { partition: PARTITION, batch, ack: Some(AckLevel::Durable), expected_offset: None };
        match self.call(Request::Append(append))? {
            Reply::Appended(appended) => Ok(appended.base_offset.0),
            other => panic!("{other:?}"),
        }
    }

    fn change(&self, copies: u8) -> Result<(), RequestError> {
        let changes = LogChanges { replication: Some(all_of(copies).into()), ..LogChanges::default() };
        self.call(Request::AlterLog(AlterLog { name: "sim".parse().unwrap(), changes })).map(drop)
    }

    /// Waits until the copies are what they are to be.
    fn settle(&self) {
        let (_, _, shard) = self.server.clone().unwrap();
        let until = self.sim.now() + Duration::from_secs(10);
        self.sim.keep_going_until(until);
        self.sim.run_until(|| are_settled(&shard) || self.sim.now() >= until, STEPS_MAX).unwrap();
        assert!(are_settled(&shard), "{:?}", shard.catalog());
    }

    /// The segment of the first copy.
    fn segment(&self) -> PathBuf {
        copies_on(&self.sim, &self.plan).values().next().unwrap().values().next().unwrap()[0].clone()
    }

    fn byte(&self) -> u8 {
        self.sim.content(&self.segment()).unwrap()[self.place as usize]
    }

    fn spoil(&self) {
        assert!(self.sim.flip_bit_at(&self.segment(), self.place) && self.byte() != self.right);
    }

    /// Turns bits over until what stands there is right again.
    fn unspoil(&self) {
        while self.byte() != self.right {
            assert!(self.sim.flip_bit_at(&self.segment(), self.place));
        }
    }
}

/// So many copies, and a write is on all of them.
fn all_of(copies: u8) -> Replication {
    Replication { replication_factor: copies, write_quorum: copies, read_quorum: 1 }
}

#[test]
fn an_only_copy_that_ends_at_damage_gets_no_others_and_stays_what_it_is() {
    let mut scene = Scene::new(1);
    scene.spoil();
    // The second time it is known.
    for why in ["its log was found to end at damage", "(case C)"] {
        let refused = scene.change(2).unwrap_err().to_string();
        assert!(refused.contains("cannot have others") && refused.contains(why), "{refused}");
        let refused = scene.append().unwrap_err();
        assert!(matches!(refused, RequestError::ReadOnly { .. }), "{refused:?}");
    }
    let fetch = Fetch { partition: PARTITION, offset: Offset(0), max_bytes: 1, max_wait: Duration::ZERO };
    let read = scene.call(Request::Fetch(fetch));
    assert!(matches!(&read, Ok(Reply::Fetched(fetched)) if !fetched.batches.is_empty()), "{read:?}");
    scene.unspoil();
    scene.begin();
    assert_eq!(scene.append(), Ok(100));
    // That is of a later reign than any was when others were refused.
    assert_eq!(scene.change(2), Ok(()));
    scene.settle();
    assert_eq!(scene.append(), Ok(120));
}

#[test]
fn an_only_member_that_ended_at_damage_leads_again_when_it_does_not() {
    let mut scene = Scene::new(2);
    assert_eq!(scene.change(1), Ok(()));
    scene.settle();
    scene.spoil();
    for _ in 0..2 {
        scene.begin();
        let refused = scene.append().unwrap_err();
        assert!(matches!(refused, RequestError::NotLeader { .. }), "{refused:?}");
    }
    scene.unspoil();
    scene.begin();
    assert_eq!(scene.append(), Ok(100));
}

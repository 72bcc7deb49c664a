//! An operator who changes how many copies there are, and the quorums, of logs in use. It has a stream of chance of its
//! own, so that it changes no seed in which it does nothing.
//!
//! What he chooses never promises less than the seed's faults allow for: where a drive may be lost every write is on
//! another one too. Reads are linearizable before and after.

use std::time::Duration;

use pyralog_engine::{
    runtime::{
        Runtime,
        sim::{Sim, SimRandom, SimRuntime, faults::FaultKind},
    },
    settings::{LogChanges, Replication},
    shard::{
        Shard,
        request::{AlterLog, Reply, Request},
    },
};

use crate::plan::Plan;

/// Whether the copies of a seed's logs change.
pub fn change(seed: u64, plan: &Plan) -> bool {
    plan.settings.replication.is_some() && SimRandom::new(seed, 240).happens(4_000)
}

/// Whether logs have one copy until the operator says otherwise. Not where a drive may be lost, or what is on one.
pub fn begin_alone(seed: u64, plan: &Plan) -> bool {
    plan.changes && !plan.spoils_copies && !plan.may_lose_a_drive() && SimRandom::new(seed, 242).happens(5_000)
}

/// Some numbers of copies and quorums, for a server with `cores` cores; `None` if chance hits on none.
fn any(plan: &Plan, random: &mut SimRandom, cores: u64) -> Option<Replication> {
    let replication_factor = random.within(1..cores.min(4) + 1) as u8;
    let write_quorum = random.within(1..u64::from(replication_factor) + 1) as u8;
    let least = replication_factor - write_quorum + 1;
    let read_quorum = random.within(u64::from(least)..u64::from(replication_factor) + 1) as u8;
    // How many copies of a partition may lack what they had.
    let lost = match () {
        () if plan.spoils_copies => 1,
        () if plan.may_lose_a_drive() => replication_factor.div_ceil(plan.drives.len() as u8),
        () => 0,
    };
    (write_quorum > lost).then_some(Replication { replication_factor, write_quorum, read_quorum })
}

/// For as long as the server lives, copies of its logs are added and given up.
pub fn keep_changing(sim: &Sim, runtime: &SimRuntime, plan: &Plan, (shard, cores): (Shard<SimRuntime>, u64)) {
    let mut random = SimRandom::new(sim.now().as_nanos() as u64, 241);
    let choices: Vec<_> = (0..20).filter_map(|_| any(plan, &mut random, cores)).collect();
    let pause = random.within(20_000..600_000);
    runtime.spawn(async move {
        while !choices.is_empty() {
            shard.runtime().sleep(Duration::from_micros(random.within(5_000..pause))).await;
            let catalog = shard.catalog();
            let logs: Vec<_> = catalog.logs().collect();
            if logs.is_empty() {
                continue;
            }
            let log = logs[random.below(logs.len() as u64) as usize];
            let (name, before) = (log.name.clone(), log.settings.replication);
            let replication = Some(choices[random.below(choices.len() as u64) as usize].into());
            let changes = LogChanges { replication, ..LogChanges::default() };
            // Whether it could be done is of no concern here.
            let altered = shard.call(Request::AlterLog(AlterLog { name, changes })).await;
            let Ok(Reply::LogAltered(now)) = altered else { continue };
            count(shard.runtime(), before, now.settings.replication);
        }
    });
}

fn count(runtime: &SimRuntime, before: Option<Replication>, now: Option<Replication>) {
    let Some(to_be) = now.filter(|_| now != before) else { return };
    runtime.count(FaultKind::CopiesChanged);
    if before.is_none() {
        runtime.count(FaultKind::OneToSeveral);
    }
    if to_be.replication_factor == 1 {
        runtime.count(FaultKind::SeveralToOne);
    }
}

/// Whether no log's copies are about to change.
pub fn are_settled(shard: &Shard<SimRuntime>) -> bool {
    shard.catalog().logs().all(|log| log.former.is_none())
}

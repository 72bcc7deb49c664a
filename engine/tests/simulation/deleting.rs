//! Somebody who deletes logs while others write to them, read them, move them and change their copies, and make new
//! ones of the same names. It has streams of chance of its own, so that it changes no seed in which it does nothing.
//!
//! Nothing is promised of a log from the moment on at which somebody asks for its deletion, but that it is there with
//! all that it had, or not at all; once that was answered it never comes back, and leaves no files.

use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc, time::Duration};

use pyralog_engine::{
    log::segment::{SegmentHeader, base_offset_of},
    name::LogName,
    runtime::{
        Runtime,
        sim::{Sim, SimRandom, SimRuntime, faults::FaultKind},
    },
    shard::{
        Shard, TRASH,
        request::{Reply, Request},
    },
    testing::history::Event,
    types::LogUid,
};

use crate::{clients::Clients, plan::Plan, spoiling::still_there};

/// Whether logs are deleted in a seed, which they are not where their settings are changed: that is by name. The stream
/// is one in which they are not in the kept seeds.
pub fn of_seed(seed: u64) -> bool {
    SimRandom::new(seed, 603).happens(2_000)
}

/// What is known of a log that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nobody asked for its deletion.
    Kept,
    /// Somebody did.
    Asked,
    /// And was told that it is gone.
    Gone,
}

/// What is known of all logs.
#[derive(Default)]
pub struct LogsKnown(RefCell<BTreeMap<LogUid, Known>>);

impl LogsKnown {
    /// This log was made, or is there.
    pub fn see(&self, log: LogUid) {
        self.0.borrow_mut().entry(log).or_insert(Known::Kept);
    }

    /// A server that has just started has all logs that nobody wanted to be deleted, and none that are gone.
    pub fn check(&self, shard: &Shard<SimRuntime>) {
        let catalog = shard.catalog();
        for (log, known) in self.0.borrow().iter() {
            let is_there = catalog.by_uid(*log).is_some();
            assert!(is_there || *known != Known::Kept, "log {log} is gone, and nobody deleted it");
            assert!(!is_there || *known != Known::Gone, "log {log} was deleted, and is there again");
        }
        catalog.logs().for_each(|log| self.see(log.uid));
    }

    fn ask(&self, log: LogUid, clients: &Clients) {
        self.0.borrow_mut().insert(log, Known::Asked);
        clients.note(Event::Deleting(log));
    }
}

/// For as long as the server lives, logs are deleted.
pub fn keep_deleting(sim: &Sim, runtime: &SimRuntime, clients: &Rc<Clients>, shard: Shard<SimRuntime>) {
    let mut random = SimRandom::new(sim.now().as_nanos() as u64, 301);
    let pause = random.within(4_000..500_000);
    let clients = Rc::clone(clients);
    runtime.spawn(async move {
        loop {
            shard.runtime().sleep(Duration::from_micros(random.within(3_000..pause))).await;
            let catalog = shard.catalog();
            let logs: Vec<_> = catalog.logs().map(|log| (log.uid, log.name.clone())).collect();
            if logs.is_empty() {
                continue;
            }
            let (uid, name) = logs[random.below(logs.len() as u64) as usize].clone();
            if !delete(&shard, &clients, (uid, name)).await {
                // It may go on, and another log may have the name when it is over.
                return;
            }
        }
    });
}

/// Gives whether it is known to be over.
async fn delete(shard: &Shard<SimRuntime>, clients: &Clients, (uid, name): (LogUid, LogName)) -> bool {
    clients.logs_known.ask(uid, clients);
    match shard.call(Request::DeleteLog(name)).await {
        Ok(Reply::LogDeleted) => {
            assert!(shard.catalog().by_uid(uid).is_none(), "a core has not heard that log {uid} is gone");
            clients.logs_known.0.borrow_mut().insert(uid, Known::Gone);
            shard.runtime().count(FaultKind::LogDeleted);
            true
        }
        Ok(other) => panic!("a deletion was answered by {other:?}"),
        Err(error) => {
            clients.failed(None, None, &error);
            false
        }
    }
}

/// What is left of deleted logs after a few seconds. Called when all is well again, with a server that runs.
pub fn leftovers(sim: &Sim, plan: &Plan, shard: &Shard<SimRuntime>) -> Vec<String> {
    if !plan.deletes {
        return Vec::new();
    }
    let is_left = |path: &Path| {
        let is_trash = plan.drives.iter().any(|drive| path.starts_with(drive.join(TRASH)));
        let header = || sim.content(path).and_then(|bytes| SegmentHeader::decode(&bytes).ok());
        let is_of_none = || header().is_some_and(|header| shard.catalog().by_uid(header.partition.log).is_none());
        is_trash || base_offset_of(path).is_some() && is_of_none()
    };
    still_there(sim, || {
        let left = sim.files().into_iter().filter(|(path, _)| is_left(path));
        left.map(|(path, _)| format!("left of a deleted log: {}", path.display())).collect()
    })
}

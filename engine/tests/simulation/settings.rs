//! Clients that change the settings of logs in use, and what is known of the settings that a log has by now: those of
//! the last change that was answered, and those of changes since whose fate is not known.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use pyralog_engine::{
    runtime::{
        Runtime,
        sim::{SimRandom, SimRuntime},
    },
    settings::{LogChanges, LogSettings},
    shard::{
        Shard,
        request::{AlterLog, Reply, Request},
    },
    types::{LogUid, Offset, PartitionId},
};

use crate::{
    clients::Clients,
    plan::{self, Plan},
};

/// Of a thousand acts of clients that change settings at all, so many are that.
const CHANGES_IN_1000: u64 = 60;

/// What is known of the settings of all logs. It has a stream of chance of its own, so that it changes no seed in which
/// no settings are changed.
pub struct SettingsKnown {
    /// What logs are made with.
    pub first: LogSettings,
    random: RefCell<SimRandom>,
    /// Whether this seed changes any.
    change: bool,
    /// By log: what may hold.
    may_be: RefCell<BTreeMap<LogUid, Vec<LogSettings>>>,
    /// How far records were given up at most under settings that are over.
    due_before: RefCell<BTreeMap<PartitionId, Offset>>,
    /// One change at a time, so that its answer says what holds.
    under_way: Rc<Cell<bool>>,
}

/// A change that is under way, until it is answered or its process dies.
struct UnderWay(Rc<Cell<bool>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl SettingsKnown {
    pub fn new(seed: u64, plan: &Plan) -> SettingsKnown {
        let mut random = SimRandom::new(seed, 103);
        let change = random.happens(2_500) && !plan.deletes;
        SettingsKnown {
            first: plan.settings,
            random: RefCell::new(random),
            change,
            may_be: RefCell::default(),
            due_before: RefCell::default(),
            under_way: Rc::default(),
        }
    }

    /// What a log's settings may be.
    pub fn of(&self, log: LogUid) -> Vec<LogSettings> {
        self.may_be.borrow().get(&log).cloned().unwrap_or_else(|| vec![self.first])
    }

    pub fn due_before(&self, partition: PartitionId) -> Offset {
        self.due_before.borrow().get(&partition).copied().unwrap_or_default()
    }

    pub fn are_to_change(&self) -> bool {
        self.change && !self.under_way.get() && self.random.borrow_mut().below(1_000) < CHANGES_IN_1000
    }

    /// A server that has just started knows the settings that it confirmed.
    pub fn check(&self, shard: &Shard<SimRuntime>) {
        for log in shard.catalog().logs() {
            let may_be = self.of(log.uid);
            // How many copies there are is another one's to change.
            let settings = LogSettings { replication: self.first.replication, ..log.settings };
            assert!(may_be.contains(&settings), "log {} has {:?}, not one of {may_be:?}", log.uid, log.settings);
        }
    }
}

/// Changes how long a log keeps records, or how many.
pub async fn alter(shard: &Shard<SimRuntime>, clients: &Clients) {
    let known = &clients.settings;
    let (log, wanted) = {
        let mut random = known.random.borrow_mut();
        let catalog = shard.catalog();
        let logs: Vec<_> = catalog.logs().cloned().collect();
        let log = logs[random.below(logs.len() as u64) as usize].clone();
        let replication = known.first.replication;
        (log, LogSettings { replication, ..plan::settings(&mut random) })
    };
    known.under_way.set(true);
    let _under_way = UnderWay(Rc::clone(&known.under_way));
    let mut may_be = known.of(log.uid);
    may_be.push(wanted);
    known.may_be.borrow_mut().insert(log.uid, may_be);
    let LogSettings { retention_ms, retention_bytes, .. } = wanted;
    let (retention_ms, retention_bytes) = (Some(retention_ms), Some(retention_bytes));
    let changes = LogChanges { retention_ms, retention_bytes, ..LogChanges::default() };
    match shard.call(Request::AlterLog(AlterLog { name: log.name.clone(), changes })).await {
        Ok(Reply::LogAltered(now)) => {
            let replication = wanted.replication;
            let now = LogSettings { replication, ..now.settings };
            assert_eq!(now, wanted, "log {} was given other settings", log.uid);
            let taken = shard.catalog().by_uid(log.uid).map(|log| LogSettings { replication, ..log.settings });
            assert_eq!(taken, Some(wanted), "a core has not heard of the new settings of log {}", log.uid);
            // No core keeps to those before any more.
            let now_ms = shard.runtime().unix_millis();
            for partition in log.partition_ids() {
                let due = clients.due(partition, now_ms);
                known.due_before.borrow_mut().insert(partition, due);
            }
            known.may_be.borrow_mut().insert(log.uid, vec![wanted]);
        }
        Ok(other) => panic!("a change of settings was answered by {other:?}"),
        Err(error) => clients.failed(None, None, &error),
    }
}

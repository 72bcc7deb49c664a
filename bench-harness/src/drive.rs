//! Runs one row: makes a log, prepares it if it is to be read, puts the load on it, lets the judge read it back, and
//! deletes it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use pyralog_engine::types::AckLevel;
use pyralog_net::client::LogId;

use crate::{
    args::{CommonArgs, Workload},
    checking::Defects,
    dataset::Dataset,
    ledger::{Ledger, Run},
    load::Load,
    measuring::{Tally, intervals::Interval},
    plan::Plan,
    progress::Progress,
    target::{HarnessError, RunId, Target},
    trust::{CpuShares, Snapshot, StatusPage, Usage, shares::Recording},
    workloads::{Found, Job, read::prepared_requests},
};

/// What came of a row.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The requests.
    pub tally: Tally,
    /// When the measured time began.
    pub began: Option<SystemTime>,
    /// From the first request measured to the last answer.
    pub elapsed: Duration,
    /// How it went over time.
    pub intervals: Vec<Interval>,
    /// What was wrong with what was read.
    pub defects: Defects,
    /// Records that were read and checked.
    pub checked: u64,
    /// The lowest level that an ack named.
    pub level: Option<AckLevel>,
    /// Requests that were due and never sent.
    pub unsent: u64,
    /// How much of its CPU each thread of the load needed, from 0 to 1: without empty passes while it waited.
    pub busy: Vec<f64>,
    /// What was used meanwhile.
    pub usage: Option<Usage>,
    /// Why what was asked for could not be found out.
    pub missed: Vec<String>,
    /// Whether the server runs on this machine.
    pub is_server_local: bool,
}

impl Outcome {
    /// Adds another run of the same row. How it went over time stays that of the first.
    pub fn merge(&mut self, other: Outcome) {
        if self.began.is_none() {
            *self = other;
            return;
        }
        self.tally.add(&other.tally);
        self.elapsed += other.elapsed;
        self.defects += other.defects;
        self.checked += other.checked;
        self.level = [self.level, other.level].into_iter().flatten().min();
        self.unsent += other.unsent;
    }

    /// Notes why the shares of the server's CPU time are not known, if they are not.
    pub fn note_missed(&mut self, shares: Result<Option<CpuShares>, String>) -> Option<CpuShares> {
        shares.unwrap_or_else(|why| {
            self.missed.push(format!("what the server's CPU time went into is not known: {why}"));
            None
        })
    }

    /// Takes over what threads found out, except the ledgers.
    pub fn take(&mut self, found: &mut Found) {
        self.level = found.level;
        self.unsent = found.unsent;
        self.busy = std::mem::take(&mut found.busy);
        self.defects += std::mem::take(&mut found.defects);
    }
}

/// A log that was written and not read back yet.
pub struct Filled {
    load: Load,
    outcome: Outcome,
    ledgers: Vec<Vec<Ledger>>,
}

impl Filled {
    /// The log.
    pub fn log(&self) -> &LogId {
        &self.load.log
    }
}

/// Runs rows against one server.
pub struct Driver<'a> {
    /// Where, and on which CPUs.
    pub args: &'a CommonArgs,
    /// A connection for what is not measured.
    pub target: Target,
    /// This run.
    pub run: RunId,
    /// Where to show how it goes.
    pub progress: &'a Progress,
    /// The server's own pages, if they were found.
    pub pages: Option<StatusPage>,
    /// Set by Control-C.
    pub stop: Arc<AtomicBool>,
}

impl Driver<'_> {
    /// Runs the row and deletes its log, whatever came of it.
    pub async fn row(&self, plan: &Plan) -> Result<Outcome, HarnessError> {
        let log = self.run.log(&plan.name);
        self.target.create(&log, plan.partitions, plan.ack).await?;
        let outcome = self.on_log(plan, &log).await;
        let deleted = self.target.delete(&log).await;
        let mut outcome = outcome?;
        if let Err(error) = deleted {
            outcome.tally.main.note_failure(&error.to_string());
        }
        if self.stop.load(Relaxed) { Err(HarnessError::Interrupted) } else { Ok(outcome) }
    }

    async fn on_log(&self, plan: &Plan, log: &LogId) -> Result<Outcome, HarnessError> {
        let dataset = Arc::new(plan.data.dataset(self.run.0, plan.partitions));
        if plan.workload == Workload::Write {
            let mut load = self.load(plan, log, &dataset, None);
            let (mut outcome, found) = load.carry_out(self).await?;
            self.progress.note(&plan.name, "reading everything back");
            let ledgers = ledgers_by_writer(found.ledgers);
            match load.read_back(self, ledgers).await {
                Ok((defects, checked)) => {
                    outcome.defects += defects;
                    outcome.checked = checked;
                }
                // What was measured is worth seeing nevertheless; the row has failed.
                Err(error) => outcome.tally.main.note_failure(&error.to_string()),
            }
            return Ok(outcome);
        }
        let level = self.prepare(plan, log, &dataset).await?;
        let mut load = self.load(plan, log, &dataset, None);
        let (mut outcome, _) = load.carry_out(self).await?;
        outcome.checked = load.job.done.load(Relaxed);
        outcome.level = level;
        Ok(outcome)
    }

    /// Puts a writing load on a new log and keeps the log, to be read back later, perhaps from a server that was
    /// started anew.
    pub async fn fill(&self, plan: &Plan) -> Result<Filled, HarnessError> {
        let log = self.run.log(&plan.name);
        self.target.create(&log, plan.partitions, plan.ack).await?;
        let dataset = Arc::new(plan.data.dataset(self.run.0, plan.partitions));
        let mut load = self.load(plan, &log, &dataset, None);
        let (outcome, found) = load.carry_out(self).await?;
        Ok(Filled { load, outcome, ledgers: ledgers_by_writer(found.ledgers) })
    }

    /// Reads back what was filled, and judges it.
    pub async fn read_back(&self, filled: Filled) -> Result<Outcome, HarnessError> {
        let Filled { mut load, mut outcome, ledgers } = filled;
        let (defects, checked) = load.read_back(self, ledgers).await?;
        outcome.defects += defects;
        outcome.checked = checked;
        Ok(outcome)
    }

    async fn prepare(
        &self,
        plan: &Plan,
        log: &LogId,
        dataset: &Arc<Dataset>,
    ) -> Result<Option<AckLevel>, HarnessError> {
        let preparing = plan.preparing();
        let requests = prepared_requests(plan.prepare, preparing.batch, plan.partitions);
        let records = requests * u64::from(preparing.batch);
        self.progress.note(&plan.name, &format!("preparing {records} records"));
        let (outcome, found) = self.load(&preparing, log, dataset, Some(records)).carry_out(self).await?;
        if let Some(message) = outcome.tally.main.messages.keys().next() {
            return Err(HarnessError::NotPrepared(message.clone()));
        }
        let in_order = [Run { sequence: 0, offset: 0, count: records / u64::from(plan.partitions) }];
        let ledgers = found.ledgers.iter().flat_map(|(_, ledgers)| ledgers);
        for (partition, ledger) in ledgers.enumerate().filter(|_| !self.stop.load(Relaxed)) {
            if ledger.runs() != in_order {
                let runs = ledger.runs();
                let first: Vec<_> = runs.iter().take(3).collect();
                let message = format!("partition {partition} was acknowledged as {first:?}, expected {in_order:?}");
                return Err(HarnessError::NotPrepared(message));
            }
        }
        Ok(found.level)
    }

    fn load(&self, plan: &Plan, log: &LogId, dataset: &Arc<Dataset>, records: Option<u64>) -> Load {
        let (plan, dataset, stop) = (Arc::new(plan.clone()), Arc::clone(dataset), Arc::clone(&self.stop));
        let (done, book) = (Arc::new(AtomicU64::new(0)), Arc::default());
        Load { log: log.clone(), job: Job { plan, dataset, stop, done, records, book } }
    }

    /// The counters of the machine and of the server now.
    pub async fn snapshot(&self) -> Snapshot {
        let server = match &self.pages {
            Some(pages) => pages.counters().await.ok(),
            None => None,
        };
        Snapshot::take(server)
    }

    /// Begins to look at what the server does, if that was asked for.
    ///
    /// Errors: why it cannot, in words.
    pub async fn record_shares(&self, length: Duration) -> Result<Option<Recording>, String> {
        if !self.args.cpu_shares {
            return Ok(None);
        }
        let pages = self.pages.as_ref().ok_or("the server's status page was not found: give --http")?;
        let status = pages.status().await.map_err(|error| error.to_string())?;
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.filter(|_| self.target.is_local()).ok_or("the server is not on this machine")?;
        Recording::start(pid, length).map(Some).map_err(|error| format!("perf could not be started: {error}"))
    }

    /// The CPU of each thread; one thread on any CPU if none were given.
    pub fn cpus(&self, threads_max: usize) -> Vec<Option<usize>> {
        match &self.args.cpu {
            None => vec![None],
            Some(list) => list.0.iter().take(threads_max).map(|cpu| Some(*cpu)).collect(),
        }
    }
}

fn ledgers_by_writer(mut ledgers: Vec<(u16, Vec<Ledger>)>) -> Vec<Vec<Ledger>> {
    ledgers.sort_by_key(|(writer, _)| *writer);
    ledgers.into_iter().map(|(_, partitions)| partitions).collect()
}

//! What one connection does: [`mod@write`], [`read`], [`consume`] and [`catch_up`] beside the writers, and
//! [`readback`] for the judge.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use pyralog_engine::types::AckLevel;
use pyralog_net::client::PartitionHandle;

use crate::{
    checking::Defects,
    dataset::{Dataset, splitmix},
    ledger::Ledger,
    measuring::{Amount, Recorder, Side},
    plan::Plan,
    target::HarnessError,
    turns::{Pacer, Timer, Turn},
};

pub mod catch_up;
pub mod consume;
pub mod read;
pub mod readback;
pub mod write;

use consume::DueBook;
use write::BatchMaker;

/// What a thread was told to do.
#[derive(Clone)]
pub struct Job {
    /// The row.
    pub plan: Arc<Plan>,
    /// The values of this run.
    pub dataset: Arc<Dataset>,
    /// Stop early.
    pub stop: Arc<AtomicBool>,
    /// Records that were written or checked, for the progress of work that is not measured.
    pub done: Arc<AtomicU64>,
    /// Write so many records and stop; `None` to go on until the time is over.
    pub records: Option<u64>,
    /// When writes were due, for those who consume them.
    pub book: Arc<DueBook>,
}

/// What a thread found out.
#[derive(Default)]
pub struct Found {
    /// Each connection's book on each partition.
    pub ledgers: Vec<(u16, Vec<Ledger>)>,
    /// What was wrong with what was read.
    pub defects: Defects,
    /// The lowest level that an ack named.
    pub level: Option<AckLevel>,
    /// Requests that were due and never sent, because the server was too far behind.
    pub unsent: u64,
    /// How much of its CPU each thread of the load needed, from 0 to 1: without empty passes while it waited.
    pub busy: Vec<f64>,
    /// CPU time of the load's threads, in seconds.
    pub cpu_s: f64,
}

impl Found {
    /// Adds what another thread found out.
    pub fn merge(&mut self, more: Found) {
        self.ledgers.extend(more.ledgers);
        self.defects += more.defects;
        self.level = [self.level, more.level].into_iter().flatten().min();
        self.unsent += more.unsent;
        self.busy.extend(more.busy);
        self.cpu_s += more.cpu_s;
    }
}

/// When a load begins and ends, and where its times go.
#[derive(Clone)]
pub struct Start {
    /// The first request may be due then.
    pub begin: Instant,
    /// No request is due then or later.
    pub end: Instant,
    /// Where times go.
    pub recorder: Recorder,
}

/// A connection at work: shared by the tasks that each keep one request in flight.
pub struct Connection {
    /// What to do.
    pub job: Job,
    /// Its number.
    pub number: u16,
    /// The partitions, by number.
    pub partitions: Vec<PartitionHandle>,
    recorder: Recorder,
    pacer: Pacer<Timer>,
    maker: RefCell<BatchMaker>,
    left: Cell<u64>,
    turn: Cell<u64>,
    chance: Cell<u64>,
    ledgers: RefCell<Vec<Ledger>>,
    /// The offset after the last acknowledged record of each partition, as far as acks came.
    acknowledged: RefCell<Vec<u64>>,
    defects: RefCell<Defects>,
    level: Cell<Option<AckLevel>>,
}

impl Connection {
    /// Connection `number`, which makes its requests due as `start` says.
    pub fn new(
        job: Job,
        number: u16,
        partitions: Vec<PartitionHandle>,
        start: &Start,
    ) -> Result<Rc<Self>, HarnessError> {
        let timer = Timer::new().map_err(HarnessError::system("making a timer"))?;
        let begin = start.begin + job.plan.phase(number);
        let pacer = Pacer::new(begin, start.end, job.plan.schedule(number), timer);
        let left = job.records.map_or(u64::MAX, |records| records.div_ceil(u64::from(job.plan.batch)));
        Ok(Rc::new(Connection {
            maker: RefCell::new(BatchMaker::new(&job.dataset, job.plan.batch, job.plan.data.codec)),
            number,
            recorder: start.recorder.clone(),
            pacer,
            left: Cell::new(left),
            // Connections begin at different partitions, so that few of them do not all press on one core.
            turn: Cell::new(number.into()),
            chance: Cell::new(u64::from(number) << 32 | 0x9e37),
            ledgers: RefCell::new(vec![Ledger::default(); partitions.len()]),
            acknowledged: RefCell::new(vec![0; partitions.len()]),
            partitions,
            defects: RefCell::default(),
            level: Cell::new(None),
            job,
        }))
    }

    /// Waits until the next request is due; `None` when there is none.
    async fn next(&self) -> Option<Turn> {
        if self.left.get() == 0 || self.job.stop.load(Relaxed) {
            return None;
        }
        self.left.set(self.left.get() - 1);
        self.pacer.next().await
    }

    fn answered(&self, side: Side, turn: Turn, amount: Amount) {
        self.recorder.answered(side, turn, self.pacer.now(), amount);
    }

    fn failed(&self, side: Side, message: &str) {
        self.recorder.failed(side, message);
    }

    /// Partitions take turns, unless keys decide. What is prepared to be read is the same in all partitions.
    fn next_partition(&self) -> usize {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        let keyed = if self.job.records.is_none() { self.job.dataset.partition(turn, self.draw()) } else { None };
        keyed.unwrap_or((turn % self.partitions.len() as u64) as usize)
    }

    /// A number as chance has it.
    fn draw(&self) -> u64 {
        let mut chance = self.chance.get();
        let drawn = splitmix(&mut chance);
        self.chance.set(chance);
        drawn
    }

    fn note_level(&self, level: AckLevel) {
        self.level.set(Some(self.level.get().map_or(level, |lowest| lowest.min(level))));
    }

    /// Adds what this connection found out.
    pub fn report(&self, found: &mut Found) {
        found.ledgers.push((self.number, self.ledgers.borrow().clone()));
        found.defects += self.defects.borrow().clone();
        found.level = [found.level, self.level.get()].into_iter().flatten().min();
        found.unsent += self.pacer.unsent();
    }
}

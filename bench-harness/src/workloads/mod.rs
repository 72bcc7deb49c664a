//! What one connection does: [`mod@write`], [`read`], and [`readback`] for the judge.

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
    checking::Defects, dataset::Dataset, ledger::Ledger, measuring::Recorder, pacing::Pacer, plan::Plan,
    target::HarnessError,
};

pub mod read;
pub mod readback;
pub mod write;

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
}

/// A connection at work: shared by the tasks that each keep one request in flight.
pub struct Connection {
    /// What to do.
    pub job: Job,
    /// Its number.
    pub number: u16,
    /// The partitions, by number.
    pub partitions: Vec<PartitionHandle>,
    /// Where times go.
    pub recorder: Recorder,
    pacer: Pacer,
    left: Cell<u64>,
    turn: Cell<usize>,
    ledgers: RefCell<Vec<Ledger>>,
    defects: RefCell<Defects>,
    level: Cell<Option<AckLevel>>,
}

impl Connection {
    /// Connection `number`, which makes its requests due between `begin` and `end`.
    pub fn new(
        job: Job,
        number: u16,
        partitions: Vec<PartitionHandle>,
        recorder: Recorder,
        (begin, end): (Instant, Instant),
    ) -> Result<Rc<Self>, HarnessError> {
        let interval = job.plan.interval();
        // Connections take turns within the interval, rather than all send at once.
        let phase = interval.unwrap_or_default().mul_f64(f64::from(number) / f64::from(job.plan.connections));
        let pacer = Pacer::new(begin + phase, end, interval).map_err(HarnessError::system("making a timer"))?;
        let left = job.records.map_or(u64::MAX, |records| records.div_ceil(u64::from(job.plan.batch)));
        let ledgers = vec![Ledger::default(); partitions.len()];
        Ok(Rc::new(Connection {
            job,
            number,
            partitions,
            recorder,
            pacer,
            left: Cell::new(left),
            // Connections begin at different partitions, so that few of them do not all press on one core.
            turn: Cell::new(usize::from(number)),
            ledgers: RefCell::new(ledgers),
            defects: RefCell::default(),
            level: Cell::new(None),
        }))
    }

    /// Waits until the next request is due; `None` when there is none.
    async fn next(&self) -> Option<Instant> {
        if self.left.get() == 0 || self.job.stop.load(Relaxed) {
            return None;
        }
        self.left.set(self.left.get() - 1);
        self.pacer.next().await
    }

    /// Partitions take turns.
    fn next_partition(&self) -> usize {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        turn % self.partitions.len()
    }

    fn note_level(&self, level: AckLevel) {
        self.level.set(Some(self.level.get().map_or(level, |lowest| lowest.min(level))));
    }

    /// Adds what this connection found out.
    pub fn report(&self, found: &mut Found) {
        found.ledgers.push((self.number, self.ledgers.borrow().clone()));
        found.defects += self.defects.borrow().clone();
        found.level = [found.level, self.level.get()].into_iter().flatten().min();
    }
}

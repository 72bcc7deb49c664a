//! Gathers single records into batches: by size, by number, or after a pause on a real timer, so that an idle tail is
//! sent too.
//!
//! Each partition in use has a queue and a task that sends its batches, one at a time: that keeps the order also when a
//! batch has to be sent again, and what comes meanwhile makes the next batch larger. What is in flight is bounded in
//! bytes. A producer is idempotent unless told otherwise: an attempt with an unknown fate is repeated, not reported.

use std::{
    borrow::Borrow,
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use pyralog_engine::{
    record::{BatchBuilder, BatchError, Codec},
    shard::request::Appended,
    types::{Offset, PartitionIndex},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{
    AppendOptions, PyralogClient,
    ack::RecordAck,
    batches::{now_ms, push},
    error::{Error, Result},
    idempotence::ProducerIdentity,
    ids::LogId,
    partitioner::partition_of_key,
    record::{IntoRecord, Record},
};

/// What a record costs in the producer's memory beside its bytes.
const RECORD_COST_BYTES: usize = 32;

/// When a [`Producer`] sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// How long the first record of a batch waits for others; 5 ms. Zero sends whatever gathered while the last batch
    /// was on its way.
    pub linger: Duration,
    /// Bytes, before compression, at which a batch is sent without waiting; 1 MiB.
    pub batch_bytes: usize,
    /// Records at which a batch is sent without waiting; 10,000.
    pub batch_records: u32,
    /// Bytes of records that are not acknowledged yet; 64 MiB. [`Producer::send`] waits for room.
    pub in_flight_bytes: usize,
    /// Whether a batch whose fate is unknown is sent again until it is known, and stored at most once; so it is.
    pub idempotent: bool,
    /// Under which identity, if it is to outlive the process; else the client's, if it has one, else one of its own.
    pub identity: Option<ProducerIdentity>,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        ProducerOptions {
            linger: Duration::from_millis(5),
            batch_bytes: 1 << 20,
            batch_records: 10_000,
            in_flight_bytes: 64 << 20,
            idempotent: true,
            identity: None,
        }
    }
}

/// Sends records in batches of its own making. Call [`Producer::flush`] at the end: dropped, it still sends what it has
/// as long as the runtime lives, but nobody learns what became of it.
pub struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    client: PyralogClient,
    options: ProducerOptions,
    room: Semaphore,
    queues: Mutex<HashMap<(LogId, PartitionIndex), Arc<Queue>>>,
    /// The partition that records without a key go to until its batch is sent.
    sticky: AtomicU32,
    /// The first failure since the last flush.
    failure: Mutex<Option<Error>>,
}

/// The records of one partition on their way.
struct Queue {
    log: LogId,
    partition: PartitionIndex,
    state: Mutex<QueueState>,
    changed: Notify,
}

struct QueueState {
    /// How its batches are compressed: as it was decided when the first record came.
    codec: Codec,
    building: BatchBuilder,
    /// Of the batch being built, and its cost.
    outcome: Arc<Outcome>,
    cost: usize,
    /// When the first record of it came.
    since: Instant,
    full: VecDeque<Sealed>,
    /// The last batch that anything was put into.
    last: Option<Arc<Outcome>>,
    /// Send what there is without waiting.
    hurry: bool,
    closed: bool,
}

struct Sealed {
    batch: Result<Bytes, BatchError>,
    outcome: Arc<Outcome>,
    cost: usize,
}

/// What became of one batch; its records share it.
#[derive(Default)]
struct Outcome {
    state: Mutex<(Option<Result<Appended>>, Vec<Waker>)>,
}

/// A record on its way; resolves when its batch is acknowledged, refused or lost. Need not be awaited:
/// [`Producer::flush`] tells of failures too.
pub struct Delivery {
    outcome: Arc<Outcome>,
    partition: PartitionIndex,
    /// The record's place in its batch.
    index: u32,
}

impl Producer {
    pub(super) fn new(client: PyralogClient, options: ProducerOptions) -> Self {
        let room = Semaphore::new(options.in_flight_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize)));
        let (queues, sticky, failure) = (Mutex::default(), AtomicU32::new(0), Mutex::default());
        let client = match (options.idempotent, options.identity) {
            (true, None) if client.idempotence.is_some() => client,
            (true, identity) => client.idempotent(identity),
            (false, _) => PyralogClient { idempotence: None, ..client },
        };
        Producer { shared: Arc::new(Shared { client, options, room, queues, sticky, failure }) }
    }

    /// Takes a record, waiting for room if too much is in flight.
    ///
    /// Errors: of the record, or that the log is not there. What befalls the record later, the [`Delivery`] says.
    pub async fn send(&self, log: impl Borrow<LogId>, record: impl IntoRecord) -> Result<Delivery> {
        let (log, record) = (log.borrow(), record.into_record());
        let shared = &self.shared;
        let cost = shared.cost(&record);
        let room = shared.room.acquire_many(cost).await.map_err(|_| Error::Closed { what: "producer" })?;
        let partition = match record.partition {
            Some(partition) => partition,
            None => {
                let partitions = shared.client.partitions(log).await?;
                let sticky = || PartitionIndex(shared.sticky.load(Relaxed) % partitions);
                record.key.as_deref().map_or_else(sticky, |key| partition_of_key(key, partitions))
            }
        };
        let codec = shared.client.codec(log).await?;
        let delivery = shared.queue(log, partition, codec).push(shared, &record, cost as usize)?;
        // Given back when the batch is done.
        room.forget();
        Ok(delivery)
    }

    /// Sends everything now and waits until it is settled.
    ///
    /// Errors: the first failure of any record since the last flush.
    pub async fn flush(&self) -> Result<()> {
        let queues: Vec<Arc<Queue>> = lock(&self.shared.queues).values().cloned().collect();
        let mut last = Vec::new();
        for queue in queues {
            let mut state = lock(&queue.state);
            state.hurry = !state.building.is_empty();
            last.extend(state.last.clone());
            drop(state);
            queue.changed.notify_one();
        }
        for outcome in last {
            let _ = Delivery { outcome, partition: PartitionIndex(0), index: 0 }.await;
        }
        lock(&self.shared.failure).take().map_or(Ok(()), Err)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        for queue in lock(&self.shared.queues).values() {
            lock(&queue.state).closed = true;
            queue.changed.notify_one();
        }
    }
}

impl Shared {
    /// What the record takes of the room; a record larger than all of it takes all.
    fn cost(&self, record: &Record) -> u32 {
        let all = self.options.in_flight_bytes.clamp(1, u32::MAX as usize);
        (record.len_bytes() + RECORD_COST_BYTES).min(all) as u32
    }

    fn queue(self: &Arc<Self>, log: &LogId, partition: PartitionIndex, codec: Codec) -> Arc<Queue> {
        let mut queues = lock(&self.queues);
        // Two look-ups, so that the log's name is cloned only once.
        if let Some(queue) = queues.get(&(log.clone(), partition)) {
            return Arc::clone(queue);
        }
        let queue = Arc::new(Queue::new(log.clone(), partition, codec));
        queues.insert((log.clone(), partition), Arc::clone(&queue));
        tokio::spawn(send_batches(Arc::clone(self), Arc::clone(&queue)));
        queue
    }

    fn settle(&self, sealed: Sealed, result: Result<Appended>) {
        if let Err(error) = &result {
            lock(&self.failure).get_or_insert(error.clone());
        }
        sealed.outcome.settle(result);
        self.room.add_permits(sealed.cost);
    }
}

impl Queue {
    fn new(log: LogId, partition: PartitionIndex, codec: Codec) -> Self {
        let state = QueueState {
            codec,
            building: BatchBuilder::new(codec),
            outcome: Arc::default(),
            cost: 0,
            since: Instant::now(),
            full: VecDeque::new(),
            last: None,
            hurry: false,
            closed: false,
        };
        Queue { log, partition, state: Mutex::new(state), changed: Notify::new() }
    }

    fn push(&self, shared: &Shared, record: &Record, cost: usize) -> Result<Delivery> {
        let options = &shared.options;
        let mut state = lock(&self.state);
        let room = options.batch_bytes.saturating_sub(state.building.len_bytes());
        if !state.building.is_empty() && record.len_bytes() > room {
            state.seal(shared);
        }
        let now_ms = now_ms();
        match push(&mut state.building, record, now_ms) {
            Err(BatchError::BatchFull) => {
                state.seal(shared);
                push(&mut state.building, record, now_ms)?;
            }
            outcome => outcome?,
        }
        state.cost += cost;
        let index = state.building.count() - 1;
        let first = index == 0;
        if first {
            state.since = Instant::now();
            state.last = Some(Arc::clone(&state.outcome));
        }
        let delivery = Delivery { outcome: Arc::clone(&state.outcome), partition: self.partition, index };
        let full = state.building.count() >= options.batch_records || state.building.len_bytes() >= options.batch_bytes;
        if full {
            state.seal(shared);
        }
        drop(state);
        if first || full {
            self.changed.notify_one();
        }
        Ok(delivery)
    }
}

impl QueueState {
    fn seal(&mut self, shared: &Shared) {
        let batch = self.building.finish();
        if batch.is_err() {
            // The compressor failed and kept the records; their senders are told, so they must not be sent after all.
            self.building = BatchBuilder::new(self.codec);
        }
        let (outcome, cost) = (std::mem::take(&mut self.outcome), std::mem::take(&mut self.cost));
        self.full.push_back(Sealed { batch, outcome, cost });
        shared.sticky.fetch_add(1, Relaxed);
    }

    /// The next batch to send, or until when to wait for one, if there is an end to it.
    fn next(&mut self, shared: &Shared) -> Result<Sealed, Option<Instant>> {
        if self.full.is_empty() && !self.building.is_empty() {
            let due = self.since + shared.options.linger;
            if !(self.hurry || self.closed) && Instant::now() < due {
                return Err(Some(due));
            }
            self.seal(shared);
        }
        let sealed = self.full.pop_front().ok_or(None)?;
        self.hurry &= !(self.full.is_empty() && self.building.is_empty());
        Ok(sealed)
    }
}

async fn send_batches(shared: Arc<Shared>, queue: Arc<Queue>) {
    loop {
        let (next, closed) = {
            let mut state = lock(&queue.state);
            (state.next(&shared), state.closed)
        };
        match next {
            Ok(mut sealed) => {
                // Taken out, so that it can be marked without a copy.
                let result = match std::mem::replace(&mut sealed.batch, Err(BatchError::NoRecords)) {
                    Ok(batch) => {
                        let options = AppendOptions::default();
                        shared.client.append_batch(&queue.log, queue.partition, batch, options).await
                    }
                    Err(error) => Err(error.into()),
                };
                shared.settle(sealed, result);
            }
            Err(_) if closed => return,
            Err(Some(due)) => {
                let _ = tokio::time::timeout_at(due, queue.changed.notified()).await;
            }
            Err(None) => queue.changed.notified().await,
        }
    }
}

impl Outcome {
    fn settle(&self, result: Result<Appended>) {
        let mut state = lock(&self.state);
        state.0 = Some(result);
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Future for Delivery {
    type Output = Result<RecordAck>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.outcome.state);
        match &state.0 {
            Some(Ok(appended)) => {
                let offset = Offset(appended.base_offset.0 + u64::from(self.index));
                let (level, duplicate) = (appended.level, appended.duplicate);
                Poll::Ready(Ok(RecordAck { partition: self.partition, offset, level, duplicate }))
            }
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            None => {
                if !state.1.iter().any(|waker| waker.will_wake(context.waker())) {
                    state.1.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held but a broken invariant, after which the state is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

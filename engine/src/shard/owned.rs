//! A partition that this core owns: its promises ([`Partition`]) and its bytes ([`Log`]), which know nothing of each
//! other, and the carrying of the effects of the one to the other.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use super::{
    Common,
    completion::{CompletionQueue, ReplyTo},
    control::{DAMAGES_SHOWN_MAX, DamageStatus, PartitionStatus},
    request::{Append, Appended, Reply},
    stages::{Stage, StageClock},
    trust::Sufferer,
};
use crate::{
    catalog::LogEntry,
    error::RequestError,
    log::{Log, Placed, last_segment::Damage, recovery::Recovered},
    partition::{Effect, Partition, Placement, producers::Standing},
    record::{BatchHeader, check_produced},
    runtime::Runtime,
    signal::{Signal, Turns},
    testing::bug::{PlantedBug, planted},
    types::{AckLevel, Offset, PartitionId},
};

/// An append that waits for its ack.
pub(super) struct AppendToken {
    reply: ReplyTo,
    arrived: Duration,
    bytes: usize,
    /// What the client asked for; the partition may have been made to wait for more.
    level: AckLevel,
    /// The batch is there already.
    duplicate: bool,
}

/// See the module.
pub(super) struct Owned<R: Runtime> {
    pub(super) core: Rc<Common<R>>,
    pub(super) id: PartitionId,
    /// The log as the catalogue has it now.
    pub(super) entry: RefCell<Arc<LogEntry>>,
    pub(super) log: Rc<Log<R>>,
    pub(super) state: RefCell<Partition<AppendToken, Rc<Signal>>>,
    pub(super) damage: Option<Damage>,
    /// Records behind the end that are lost. See [`Recovered::lost_end`].
    pub(super) lost_end: Option<(Offset, Offset)>,
    /// Whether a task carries bytes to the device; there is one at most.
    pub(super) flushing: Cell<bool>,
    /// Something for that task to look at.
    pub(super) work: Signal,
    /// That task is over.
    pub(super) settled: Signal,
    /// When the oldest unwritten append came.
    pub(super) oldest_unwritten: Cell<Duration>,
    /// When the last write to the device began.
    pub(super) write_begun: Cell<Duration>,
    /// This partition's part of the core's `unwritten_bytes`.
    pub(super) unwritten_counted: Cell<usize>,
    /// The drive was full at the last try.
    pub(super) full: Cell<bool>,
    /// The log was deleted.
    pub(super) deleted: Cell<bool>,
    /// The beginning of the log moves by one step at a time.
    pub(super) start_turns: Turns,
    /// Bytes of all appends so far, and how many of them are synced: the difference is what a loss of power would take.
    pub(super) appended_bytes: Cell<u64>,
    pub(super) durable_bytes: Cell<u64>,
    /// Since when the oldest of that difference is here.
    pub(super) undurable_since: Cell<Option<Duration>>,
}

impl<R: Runtime> Owned<R> {
    pub(super) fn new(
        core: &Rc<Common<R>>,
        id: PartitionId,
        entry: Arc<LogEntry>,
        recovered: Recovered<R>,
    ) -> Rc<Self> {
        let Recovered { log, start, end, epoch, producers, damage, lost_end, .. } = recovered;
        let mut state = Partition::recovered(start, end, epoch).with_producers(producers);
        if let Some(damage) = &damage {
            tracing::error!(log = %entry.name, partition = %id.index, %damage, "the partition is read-only");
            state.handle_fault(damage.to_string());
        }
        if let Some(fence) = core.trust.borrow().fence() {
            state.handle_fault(fence.to_owned());
        }
        Rc::new(Owned {
            core: Rc::clone(core),
            id,
            entry: RefCell::new(entry),
            log,
            state: RefCell::new(state),
            damage,
            lost_end,
            flushing: Cell::new(false),
            work: Signal::default(),
            settled: Signal::default(),
            oldest_unwritten: Cell::new(Duration::ZERO),
            write_begun: Cell::new(Duration::ZERO),
            unwritten_counted: Cell::new(0),
            full: Cell::new(false),
            deleted: Cell::new(false),
            start_turns: Turns::default(),
            appended_bytes: Cell::new(0),
            durable_bytes: Cell::new(0),
            undurable_since: Cell::new(None),
        })
    }

    /// Appends a batch. The reply is sent when it is as safe as was asked.
    pub(super) fn append(self: &Rc<Self>, request: &Append, mut reply: ReplyTo) {
        let refusal = match check_produced(&request.batch) {
            Err(error) => RequestError::BatchRefused { reason: error.to_string() },
            Ok(header) => match self.judge(request, &header) {
                Err(error) => {
                    if planted(PlantedBug::StoreRefused) && matches!(error, RequestError::DiskFull { .. }) {
                        self.admit((request, &header), Standing::Fresh, CompletionQueue::new().reply_to(0));
                    }
                    error
                }
                Ok(standing) => {
                    reply.mark(Stage::Validate, &self.core.context.runtime);
                    return self.admit((request, &header), standing, reply);
                }
            },
        };
        self.core.context.metrics.write_errors.add(1);
        reply.send(Err(refusal));
    }

    fn refuses_writes(&self) -> Option<RequestError> {
        if self.deleted.get() {
            return Some(RequestError::UnknownPartition { partition: self.id });
        }
        if self.core.draining.get() {
            return Some(RequestError::ShuttingDown);
        }
        if let Some(reason) = self.state.borrow().fence() {
            return Some(RequestError::ReadOnly { partition: self.id, reason: reason.to_owned() });
        }
        (self.full.get() || self.core.context.room.is_low()).then(|| self.core.disk_full())
    }

    /// The drive refused to let the log grow, or did so no longer. Gives whether that is news.
    pub(super) fn set_full(&self, full: bool) -> bool {
        let news = self.full.replace(full) != full;
        match (news, full) {
            (true, true) => self.core.context.room.refuse(),
            (true, false) => self.core.context.room.admit(),
            (false, _) => {}
        }
        news
    }

    /// Whether the append is refused, new, or one that is there already.
    fn judge(&self, request: &Append, header: &BatchHeader) -> Result<Standing, RequestError> {
        match self.refuses_writes() {
            Some(error) => Err(error),
            None => self.state.borrow().judge(header.producer_mark().as_ref(), request.expected_offset),
        }
    }

    fn admit(self: &Rc<Self>, (request, header): (&Append, &BatchHeader), standing: Standing, reply: ReplyTo) {
        let core = &self.core;
        let arrived = core.context.runtime.monotonic();
        let bytes = request.batch.len();
        let level = request.ack.or(self.entry.borrow().settings.ack).unwrap_or(core.config.default_ack);
        // The write buffer is full: from here on `received` must wait for the device, else memory would grow without
        // bound.
        let crowded = core.unwritten_bytes.get() + bytes > core.config.buffer_bytes_max;
        let wait_for = if crowded { level.max(AckLevel::Written) } else { level };
        let duplicate = standing != Standing::Fresh;
        let token = AppendToken { reply, arrived, bytes, level, duplicate };
        if let Standing::Duplicate { base_offset, count } = standing {
            self.state.borrow_mut().handle_duplicate((base_offset, count), wait_for, token);
            self.carry_effects();
            // What is repeated may have asked for less.
            return self.wake_flusher();
        }
        if self.log.unwritten_bytes() == 0 {
            self.oldest_unwritten.set(arrived);
        }
        let placed = self.state.borrow_mut().handle_append(header.record_count, wait_for, token);
        let Placement { base_offset, durable_hint, leader_epoch: epoch } = placed;
        self.log.append(&request.batch, header, Placed { base_offset, durable_hint, epoch });
        self.note_producer(header, placed.base_offset);
        self.count_unwritten(self.log.unwritten_bytes());
        self.appended_bytes.set(self.appended_bytes.get() + bytes as u64);
        core.context.metrics.undurable_bytes.add(bytes as u64);
        if self.undurable_since.get().is_none() {
            self.expose(Some(arrived));
        }
        self.carry_effects();
        self.wake_flusher();
    }

    /// Notes whose batch the log has taken. What the batches before it say is kept if it is the first of a segment.
    fn note_producer(&self, header: &BatchHeader, base_offset: Offset) {
        if self.log.begins_segment(base_offset) {
            self.log.keep_producers(self.state.borrow().producers());
        }
        if let Some(mark) = header.producer_mark() {
            self.state.borrow_mut().note_producer(&mark, base_offset);
        }
    }

    /// Does what the partition asks for, until it asks for nothing.
    pub(super) fn carry_effects(&self) {
        loop {
            let effect = self.state.borrow_mut().poll_effect();
            match effect {
                None => return,
                Some(Effect::Ack { token, base_offset, count, level }) => {
                    let metrics = &self.core.context.metrics;
                    if token.duplicate {
                        metrics.duplicate_writes.add(1);
                    } else {
                        metrics.writes.add(u64::from(count));
                        metrics.write_requests.add(1);
                        metrics.write_bytes.add(token.bytes as u64);
                    }
                    let now = self.core.context.runtime.monotonic();
                    let took = now.saturating_sub(token.arrived);
                    metrics.write_duration.record_many(took, 1);
                    let claimed = if planted(PlantedBug::ClaimMore) { AckLevel::Durable } else { level };
                    let level = claimed.max(token.level);
                    if planted(PlantedBug::ForgetAck) && base_offset.0 % 64 == 63 {
                        std::mem::forget(token);
                        continue;
                    }
                    let clock = self.clock_at_ack(&token, now);
                    let appended = Appended { base_offset, count, level, duplicate: token.duplicate, clock };
                    token.reply.send(Ok(Reply::Appended(appended)));
                }
                Some(Effect::Unknown { token, .. }) => {
                    self.core.context.metrics.write_errors.add(1);
                    let reason = self.state.borrow().fence().unwrap_or("the partition stopped").to_owned();
                    token.reply.send(Err(RequestError::OutcomeUnknown { reason }));
                }
                Some(Effect::Wake { .. }) if planted(PlantedBug::WaiterNeverWoken) => {}
                Some(Effect::Wake { token }) => token.notify(),
            }
        }
    }

    /// What was measured of an append that is acknowledged `now`.
    fn clock_at_ack(&self, token: &AppendToken, now: Duration) -> Option<StageClock> {
        let mut clock = token.reply.clock()?;
        if token.level > AckLevel::Received && !token.duplicate {
            clock.mark(Stage::Buffer, self.write_begun.get().min(now));
            clock.mark(Stage::Disk, now);
        } else {
            clock.mark(Stage::Buffer, now);
        }
        Some(clock)
    }

    /// What is not durable is no older than `since`; `None`: all is.
    pub(super) fn expose(&self, since: Option<Duration>) {
        let before = self.undurable_since.replace(since);
        if before != since {
            let context = &self.core.context;
            self.core.exposure.change((&context.runtime, &context.metrics), self.id, (before, since));
        }
    }

    /// Keeps the core's sum of unwritten bytes true when this partition's part of it becomes `bytes`.
    pub(super) fn count_unwritten(&self, bytes: usize) {
        let before = self.unwritten_counted.replace(bytes);
        self.core.unwritten_bytes.set(self.core.unwritten_bytes.get() - before + bytes);
    }

    /// Stops writes for good: a write or a sync failed.
    pub(super) fn fence(&self, reason: String) {
        let partition = self.id.index;
        tracing::error!(log = %self.entry.borrow().name, %partition, reason, "the partition accepts no more writes");
        self.stop_writes(&reason);
        self.core.drive_faults.report(Sufferer::Partition(self.id), reason);
    }

    /// Stops writes for good, for a reason that may be another's.
    pub(super) fn stop_writes(&self, reason: &str) {
        self.state.borrow_mut().handle_fault(reason.to_owned());
        self.carry_effects();
    }

    /// Waits until everything accepted is durable, or cannot be.
    pub(super) async fn drain(self: &Rc<Self>) {
        self.work.notify();
        self.settled.wait_until(|| !self.flushing.get()).await;
    }

    /// Ends the partition because its log was deleted. Nothing of it touches its files any more when this returns,
    /// except for who reads from them.
    pub(super) async fn delete(self: &Rc<Self>) {
        self.deleted.set(true);
        self.state.borrow_mut().handle_close("the log was deleted");
        self.carry_effects();
        self.drain().await;
        self.core.context.metrics.undurable_bytes.sub(self.appended_bytes.get() - self.durable_bytes.get());
        self.expose(None);
        let _turn = self.start_turns.take().await;
        self.core.context.cache.forget(self.id);
        self.log.close().await;
    }

    pub(super) fn status(&self) -> PartitionStatus {
        let state = self.state.borrow();
        let ends = state.ends();
        PartitionStatus {
            log: self.entry.borrow().name.to_string(),
            partition: self.id.index,
            core: self.core.id,
            start_offset: ends.log_start(),
            high_watermark: ends.high_watermark(),
            log_end_offset: ends.log_end(),
            durable_end_offset: ends.durable_end(),
            epoch: self.log.epoch(),
            size_bytes: self.log.size_bytes(),
            read_only: state.fence().map(str::to_owned),
            damages: self.log.losses().all().into_iter().take(DAMAGES_SHOWN_MAX).map(DamageStatus::from).collect(),
        }
    }
}

//! A partition that this core owns: its promises ([`Partition`]) and its bytes ([`Log`]), which know nothing of each
//! other, and the carrying of the effects of the one to the other. If it is one of several copies, its
//! [`Member`](super::member) says what the others have.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Common, CopyId,
    balancing::Done,
    completion::{CompletionQueue, ReplyTo},
    member::Member,
    request::{Append, Appended, Reply},
    stages::{Stage, StageClock},
    trust::Sufferer,
    wait_at_most,
};
use crate::{
    catalog::LogEntry,
    error::RequestError,
    log::{Log, Placed, last_segment::Damage, recovery::Recovered},
    partition::{Effect, Partition, producers::Standing},
    record::{BatchHeader, check_produced, split_batches},
    replication::message::{Batches, Held},
    runtime::Runtime,
    signal::{Signal, Turns},
    testing::bug::{PlantedBug, planted},
    types::{AckLevel, CoreId, LeaderEpoch, Offset, PartitionId},
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

/// Why a partition is not here any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// Its log was deleted.
    Deleted,
    /// It is on another core.
    Elsewhere(Option<CoreId>),
}

/// See the module.
pub(super) struct Owned<R: Runtime> {
    pub(super) core: Rc<Common<R>>,
    pub(super) id: PartitionId,
    /// If there are other copies of it.
    pub(super) member: Option<Rc<Member<R>>>,
    /// How far the log is on this copy's own device.
    pub(super) held: Cell<Held>,
    /// Up to where others wait for what this copy takes from its leader to be written, and to be durable.
    wanted: Cell<(Offset, Offset)>,
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
    /// It is over here, for this reason.
    gone: Cell<Option<Gone>>,
    /// This opening of the log ends.
    pub(super) retired: Cell<bool>,
    /// What it did, for who spreads the load.
    pub(super) done: Done,
    /// Since when a write or a sync is under way.
    pub(super) io_since: Cell<Option<Duration>>,
    /// Where the log begins, durably. Of several copies that may be later than what is shown, until enough others have
    /// come so far.
    pub(super) kept_start: Cell<Offset>,
    /// A write quorum has come further, or this copy leads no more.
    pub(super) news: Signal,
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
        (entry, member): (Arc<LogEntry>, Option<Rc<Member<R>>>),
        recovered: Recovered<R>,
    ) -> Rc<Self> {
        let Recovered { log, epoch, start, end, producers, damage, lost_end, .. } = recovered;
        let state = match &member {
            None => Partition::recovered(start, end, epoch),
            Some(_) => Partition::of_copy(start, end),
        };
        let mut state = state.with_producers(producers);
        match (&damage, &member) {
            (Some(damage), None) => {
                tracing::error!(log = %entry.name, partition = %id.index, %damage, "the partition is read-only");
                state.handle_fault(damage.to_string());
            }
            (Some(damage), Some(member)) => {
                tracing::error!(copy = %member.id, %damage, "the copy is damaged: it is rebuilt from the others");
            }
            (None, _) => {}
        }
        let fence = core.trust.borrow().fence().map(str::to_owned);
        if let Some(fence) = &fence {
            state.handle_fault(fence.clone());
        }
        let owned = Rc::new(Owned {
            core: Rc::clone(core),
            id,
            member,
            held: Cell::new(Held::durable(end)),
            wanted: Cell::new((Offset(0), Offset(0))),
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
            gone: Cell::new(None),
            retired: Cell::new(false),
            done: Done::default(),
            io_since: Cell::new(None),
            kept_start: Cell::new(start),
            news: Signal::default(),
            start_turns: Turns::default(),
            appended_bytes: Cell::new(0),
            durable_bytes: Cell::new(0),
            undurable_since: Cell::new(None),
        });
        if let Some(member) = &owned.member {
            member.attach(&owned);
            fence.iter().for_each(|fence| member.close(fence));
        }
        owned
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
        match self.member.as_ref().filter(|_| refusal.is_by_the_log()) {
            Some(member) => member.refuse(refusal, reply),
            None => reply.send(Err(refusal)),
        }
    }

    /// Whether it is not here any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get().is_some()
    }

    /// What is answered then.
    pub(super) fn absence(&self) -> Option<RequestError> {
        let partition = self.id;
        self.gone.get().map(|gone| match (gone, &self.member) {
            (Gone::Deleted, _) => RequestError::UnknownPartition { partition },
            (Gone::Elsewhere(leader), None) => RequestError::NotLeader { partition, leader },
            (Gone::Elsewhere(_), Some(member)) => member.not_leader(),
        })
    }

    /// What is answered to whoever would change it while it is about to go to another core.
    pub(super) fn departure(&self) -> Option<RequestError> {
        let leader = self.core.leaving.to(self.copy_id())?;
        Some(RequestError::NotLeader { partition: self.id, leader: Some(leader) })
    }

    fn refuses_writes(&self) -> Option<RequestError> {
        if let Some(error) = self.absence() {
            return Some(error);
        }
        if self.core.draining.get() {
            return Some(RequestError::ShuttingDown);
        }
        if self.member.as_ref().is_some_and(|member| !member.admits_appends()) {
            return Some(self.not_leader());
        }
        if let Some(error) = self.departure() {
            return Some(error);
        }
        if let Some(reason) = self.state.borrow().fence() {
            return Some(RequestError::ReadOnly { partition: self.id, reason: reason.to_owned() });
        }
        (self.full.get() || self.core.context.room.is_low()).then(|| self.core.disk_full())
    }

    /// What is answered that only the leader can do.
    pub(super) fn not_leader(&self) -> RequestError {
        let alone = RequestError::NotLeader { partition: self.id, leader: None };
        self.member.as_ref().map_or(alone, |member| member.not_leader())
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
        if let Some(error) = self.refuses_writes() {
            return Err(error);
        }
        let mark = header.producer_mark();
        let standing = self.state.borrow().judge(mark.as_ref(), request.expected_offset);
        let is_again = matches!(standing, Ok(Standing::Duplicate { .. }));
        if mark.is_some() && !is_again && self.may_learn_of_producers() {
            return Err(self.not_leader());
        }
        // What this log lacks may be in another, which may yet be the one that counts, while no write quorum follows
        // this reign: then an append that was tried before may be there, and is not refused for good.
        let is_the_log = self.member.as_ref().is_none_or(|member| member.is_established());
        standing.map_err(|refusal| if is_the_log { refusal } else { self.not_leader() })
    }

    /// Whether batches of producers are damaged here that nobody has read, and that others have: an append that seems
    /// to be new may be one of them. If each record is on one copy only, nobody need have them.
    fn may_learn_of_producers(&self) -> bool {
        let others_have =
            |member: &Rc<Member<R>>| member.look(|replica| replica.ballot().config.current.write_quorum() > 1);
        self.log.unread().is_some() && self.member.as_ref().is_some_and(others_have)
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
        let placement = self.state.borrow_mut().handle_append(header.record_count, wait_for, token);
        let base_offset = placement.base_offset;
        self.put(&request.batch, header, (base_offset, placement.leader_epoch), arrived);
        self.carry_effects();
        self.wake_flusher();
        if let Some(member) = &self.member {
            let end = base_offset.advance(u64::from(header.record_count));
            member.drive(|replica, now| replica.handle_appended(base_offset, end, now));
        }
    }

    /// Hands a batch to the log.
    fn put(
        self: &Rc<Self>,
        bytes: &[u8],
        header: &BatchHeader,
        (base_offset, epoch): (Offset, LeaderEpoch),
        arrived: Duration,
    ) {
        self.done.add(bytes.len() as u64);
        if self.log.unwritten_bytes() == 0 {
            self.oldest_unwritten.set(arrived);
        }
        let durable_hint = match () {
            () if planted(PlantedBug::HintTooHigh) => base_offset,
            () if planted(PlantedBug::HintTooLow) => Offset(0),
            () => self.held.get().durable,
        };
        self.log.append(bytes, header, Placed { base_offset, durable_hint, epoch });
        let received = base_offset.advance(u64::from(header.record_count));
        self.held.set(Held { received, ..self.held.get() });
        self.note_producer(header, base_offset);
        self.count_unwritten(self.log.unwritten_bytes());
        self.appended_bytes.set(self.appended_bytes.get() + bytes.len() as u64);
        self.core.context.metrics.undurable_bytes.add(bytes.len() as u64);
        if self.undurable_since.get().is_none() {
            self.expose(Some(arrived));
        }
    }

    /// Takes batches of the leader's log, which continue this one. Somebody waits for them to be as safe as `wanted`.
    ///
    /// Errors: they are not what they should be.
    pub(super) fn take_copy(self: &Rc<Self>, batches: &Batches<Bytes>, wanted: AckLevel) -> Result<(), String> {
        let arrived = self.core.context.runtime.monotonic();
        let mut next = batches.from;
        for view in split_batches(batches.bytes.clone()) {
            let view = view.map_err(|error| error.to_string())?;
            let header = view.header();
            if header.base_offset != next {
                return Err(format!("a batch at {} where {next} comes next", header.base_offset));
            }
            self.state.borrow_mut().handle_copied(header.record_count);
            self.put(view.bytes(), header, (next, header.leader_epoch), arrived);
            next = header.end_offset();
        }
        if next != batches.end {
            return Err(format!("batches end at {next} instead of {}", batches.end));
        }
        let (written, durable) = self.wanted.get();
        self.wanted.set(match wanted {
            AckLevel::Received => (written, durable),
            AckLevel::Written => (next, durable),
            AckLevel::Durable | AckLevel::Quorum => (next, next),
        });
        self.wake_flusher();
        Ok(())
    }

    /// Whether the leader waits for something to be written here, and to be durable.
    pub(super) fn is_wanted(&self) -> (bool, bool) {
        let (held, (written, durable)) = (self.held.get(), self.wanted.get());
        (held.written < written, held.durable < durable)
    }

    /// The highest level that somebody waits for.
    pub(super) fn most_wanted(&self) -> AckLevel {
        let state = self.state.borrow();
        let waits = |level: &AckLevel| state.waits_for(*level);
        [AckLevel::Durable, AckLevel::Written].into_iter().find(waits).unwrap_or(AckLevel::Received)
    }

    /// This copy leads from now on.
    pub(super) fn lead(&self, epoch: LeaderEpoch, committed: Offset) {
        self.state.borrow_mut().handle_lead(epoch, committed);
        self.carry_effects();
    }

    /// This copy leads no more, if it did.
    pub(super) fn follow(&self) {
        if self.state.borrow().leads() {
            self.state.borrow_mut().handle_follow();
            self.carry_effects();
        }
        self.news.notify();
    }

    /// A write quorum has all records before these ends.
    pub(super) fn quorum_has(&self, received: Offset, written: Offset, durable: Offset) {
        self.state.borrow_mut().handle_quorum(received, written, durable);
        self.carry_effects();
        self.news.notify();
    }

    /// A write quorum has given up the records before `at`.
    pub(super) fn begins(&self, at: Offset) {
        let start = self.state.borrow().ends().log_start();
        if at > start {
            self.state.borrow_mut().handle_log_start(at);
            self.log.release_before(at);
        }
        self.news.notify();
    }

    /// The device of this copy has come to `written`, and to `durable`.
    pub(super) fn now_held(&self, written: Offset, durable: Offset) {
        let held = self.held.get();
        let (written, durable) = (held.written.max(written).max(durable), held.durable.max(durable));
        self.held.set(Held { written, durable, ..held });
        match &self.member {
            Some(member) => {
                member.held(written, durable);
                self.news.notify();
            }
            None => {
                let mut state = self.state.borrow_mut();
                state.handle_written(written);
                state.handle_durable(durable);
            }
        }
        self.carry_effects();
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
                    let reason = self.state.borrow().fence().unwrap_or("another copy leads the partition").to_owned();
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
            self.core.exposure.change((&context.runtime, &context.metrics), self.copy_id(), (before, since));
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
        self.member.iter().for_each(|member| member.close(reason));
    }

    /// Ends this opening of the log: nobody writes to it any more when this returns.
    pub(super) async fn retire(self: &Rc<Self>) {
        self.retired.set(true);
        self.drain().await;
        // In the place of the task that carries, so that none begins.
        self.flushing.set(true);
        let _turn = self.start_turns.take().await;
        self.count_unwritten(0);
        self.core.context.metrics.undurable_bytes.sub(self.appended_bytes.get() - self.durable_bytes.get());
        self.expose(None);
    }

    /// Waits until everything accepted is durable, or cannot be.
    pub(super) async fn drain(self: &Rc<Self>) {
        self.work.notify();
        self.settled.wait_until(|| !self.flushing.get()).await;
    }

    /// Waits until nobody waits for an ack any more, but not beyond `deadline`: other copies may not answer.
    pub(super) async fn settle(&self, deadline: Duration) {
        let runtime = &self.core.context.runtime;
        while self.state.borrow().waits_for(AckLevel::Received) && runtime.monotonic() < deadline {
            wait_at_most(runtime, &self.news, deadline.saturating_sub(runtime.monotonic())).await;
        }
    }

    /// Ends the partition here. Nothing of it touches its files any more when this returns, except for who reads from
    /// them.
    pub(super) async fn end(self: &Rc<Self>, gone: Gone) {
        self.gone.set(Some(gone));
        self.state.borrow_mut().handle_close(match gone {
            Gone::Deleted => "the log was deleted",
            Gone::Elsewhere(_) => "the copy is on another core",
        });
        self.member.iter().for_each(|member| member.forget());
        self.carry_effects();
        // One whose log could not be opened anew has ended already.
        if !self.retired.get() {
            self.retire().await;
        }
        if let Some(member) = &self.member {
            member.until_saved().await;
        }
        self.log.close().await;
    }

    /// This copy's name.
    pub(super) fn copy_id(&self) -> CopyId {
        self.member.as_ref().map_or_else(|| CopyId::only(self.id), |member| member.id)
    }
}

//! Moving the beginning of a partition: because somebody asks for it, or because its records are more or older than its
//! log is to keep.

use std::rc::Rc;

use super::{
    Core,
    completion::ReplyTo,
    owned::Owned,
    request::{Found, Reply},
};
use crate::{
    error::RequestError,
    log::{
        LogFault,
        read::ReadRange,
        retention::{Clock, Limits},
    },
    record::BatchHeader,
    runtime::Runtime,
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

impl<R: Runtime> Owned<R> {
    /// Deletes the records before `before`. The reply is sent when no crash can bring them back.
    pub(super) fn trim(self: &Rc<Self>, before: Offset, reply: ReplyTo) {
        let partition = Rc::clone(self);
        self.core.context.runtime.spawn(async move {
            let outcome = partition.trim_to(before).await;
            reply.send(outcome.map(|()| Reply::Trimmed(partition.range())));
            partition.bury().await;
        });
    }

    fn range(&self) -> Found {
        let ends = *self.state.borrow().ends();
        Found {
            offset: ends.log_start(),
            start_offset: ends.log_start(),
            high_watermark: ends.high_watermark(),
            log_end_offset: ends.log_end(),
        }
    }

    async fn trim_to(self: &Rc<Self>, before: Offset) -> Result<(), RequestError> {
        let turn = self.start_turns.take().await;
        if let Some(error) = self.refuses_trims() {
            return Err(error);
        }
        let Found { start_offset: start, high_watermark: end, .. } = self.range();
        if before > end {
            return Err(RequestError::OffsetOutOfRange { offset: before, start, end });
        }
        if before <= start {
            return Ok(());
        }
        if self.member.is_none() {
            return self.move_start(before).await;
        }
        drop(turn);
        // Whoever is elected has what is durable on a write quorum: only that may be given up on all of them.
        self.wait_as_leader(|| self.durable_everywhere() >= before).await?;
        let before = match self.batch_start(before, end).await {
            Ok(start) => start,
            // Another has given it up meanwhile.
            Err(_) if before <= self.kept_start.get() => before,
            Err(error) => return Err(error),
        };
        {
            let _turn = self.start_turns.take().await;
            self.move_start(before).await?;
        }
        self.wait_as_leader(|| self.range().start_offset >= before).await
    }

    /// What is durable on a write quorum, and here.
    fn durable_everywhere(&self) -> Offset {
        self.state.borrow().ends().durable_end().min(self.held.get().durable)
    }

    /// Waits until `condition` holds, for as long as this copy leads.
    ///
    /// Errors: `OutcomeUnknown`, if it does not any more.
    async fn wait_as_leader(&self, condition: impl Fn() -> bool) -> Result<(), RequestError> {
        self.news.wait_until(|| condition() || self.refuses_trims().is_some()).await;
        // Of one that follows by now it may hold though no write quorum has come so far: whoever leads then shows less.
        if self.state.borrow().leads() && condition() {
            return Ok(());
        }
        Err(RequestError::OutcomeUnknown { reason: "another copy leads the partition".to_owned() })
    }

    /// The offset of the first record of the batch that holds `offset`: a log with several copies begins with a whole
    /// batch, so that all of them can begin there.
    async fn batch_start(self: &Rc<Self>, offset: Offset, end: Offset) -> Result<Offset, RequestError> {
        if offset >= end {
            return Ok(offset);
        }
        let range = ReadRange { offset, end, max_bytes: 1 };
        let pieces = match self.log.read_memory(range) {
            Some(pieces) => pieces,
            None => self.read_whole(range).await?,
        };
        let first = pieces.first().and_then(|piece| BatchHeader::decode(piece).ok());
        Ok(first.map_or(offset, |header| header.base_offset))
    }

    /// Whether an only copy can come to have others. It may have been trimmed to anywhere.
    ///
    /// Errors: why not.
    pub(super) async fn can_have_others(self: &Rc<Self>) -> Result<(), String> {
        // Nothing is trimmed while it is about to leave.
        let _turn = self.start_turns.take().await;
        let (start, end) = (self.kept_start.get(), self.held.get().durable);
        let base = self.batch_start(start, end).await.map_err(|error| error.to_string())?;
        if base == start {
            return Ok(());
        }
        Err(format!(
            "it was trimmed to {start}, within the batch that begins at {base}, and copies begin with a whole batch: \
             trim it to where another one begins"
        ))
    }

    /// The leader has given up the records before `before`, or whoever voted for this copy has: so does it.
    pub(super) async fn keep_start(self: &Rc<Self>, before: Offset) -> Result<(), RequestError> {
        let _turn = self.start_turns.take().await;
        if self.is_gone() || self.retired.get() {
            return Err(RequestError::UnknownPartition { partition: self.id });
        }
        self.move_start(before).await
    }

    /// A fenced partition is left as it is: what is damaged is evidence, and the operator's.
    fn refuses_trims(&self) -> Option<RequestError> {
        if let Some(error) = self.absence() {
            return Some(error);
        }
        if self.core.draining.get() {
            return Some(RequestError::ShuttingDown);
        }
        if self.member.as_ref().is_some_and(|member| !member.is_established() || !member.admits_appends()) {
            return Some(self.not_leader());
        }
        if let Some(error) = self.departure() {
            return Some(error);
        }
        let reason = self.state.borrow().fence()?.to_owned();
        Some(RequestError::ReadOnly { partition: self.id, reason })
    }

    /// Durably first, then for all to see. Called in turn.
    async fn move_start(self: &Rc<Self>, to: Offset) -> Result<(), RequestError> {
        if to <= self.kept_start.get() {
            return Ok(());
        }
        if planted(PlantedBug::TrimBeforeDurable) {
            let log = Rc::clone(&self.log);
            self.core.context.runtime.spawn(async move { drop(log.keep_start(to).await) });
        } else {
            self.log.keep_start(to).await.map_err(|fault| match fault {
                LogFault::Full { .. } => self.core.disk_full(),
                failed => {
                    // Which of the two the next start will find is not known.
                    self.fence(failed.to_string());
                    RequestError::OutcomeUnknown { reason: failed.to_string() }
                }
            })?;
        }
        let Some(member) = &self.member else {
            self.kept_start.set(to);
            self.state.borrow_mut().handle_log_start(to);
            self.log.release_before(to);
            return Ok(());
        };
        if !self.state.borrow().leads() {
            self.begins(to);
        }
        if self.kept_start.replace(self.kept_start.get().max(to)) < to {
            member.drive(|replica, now| replica.handle_log_start(to, now));
        }
        Ok(())
    }

    /// Takes the files that were released away. In turn, so that they are gone from their folder before it may belong
    /// to another log of the same name.
    pub(super) async fn bury(&self) {
        let _turn = self.start_turns.take().await;
        if self.is_gone() || !self.log.has_released() {
            return;
        }
        if let Err(error) = self.log.bury().await {
            let (log, partition) = (&self.entry.borrow().name, self.id.index);
            tracing::warn!(%log, %partition, %error, "old segments could not be removed; tried again later");
        }
    }

    /// How much this partition keeps.
    fn retention(&self) -> Limits {
        let (settings, server) = (self.entry.borrow().settings, self.core.config.retention);
        Limits {
            age_ms: settings.retention_ms.map_or(server.age_ms, |own| own.number()),
            bytes: settings.retention_bytes.map_or(server.bytes, |own| own.number()),
        }
    }

    /// One look: gives up what is too much or too old at `now_ms`.
    async fn retain(self: &Rc<Self>, now_ms: i64) {
        let limits = self.retention();
        if !limits.is_unlimited() && self.refuses_trims().is_none() {
            self.give_up_old(limits, now_ms).await;
        }
        if self.log.has_released() {
            self.bury().await;
        }
    }

    async fn give_up_old(self: &Rc<Self>, limits: Limits, now_ms: i64) {
        let name = |partition: &Self| partition.entry.borrow().name.clone();
        // Twice at most: once more after the active segment was sealed.
        for look in 0..2 {
            let verdict = match self.log.judge(limits, now_ms).await {
                Ok(verdict) => verdict,
                Err(error) => {
                    tracing::debug!(log = %name(self), partition = %self.id.index, %error, "no retention this time");
                    return;
                }
            };
            {
                let _turn = self.start_turns.take().await;
                if self.refuses_trims().is_some() {
                    return;
                }
                // Not what may still be lost on all copies but one.
                let start = verdict.start.min(self.range().high_watermark);
                let start = if self.member.is_some() { start.min(self.durable_everywhere()) } else { start };
                if let Err(error) = self.move_start(start).await {
                    tracing::warn!(log = %name(self), partition = %self.id.index, %error, "no retention this time");
                    return;
                }
            }
            if look > 0 || !verdict.roll || !self.roll().await {
                return;
            }
        }
    }

    /// Seals the active segment of a partition that has nothing to carry; one that has is left for the next look. Says
    /// whether it did.
    pub(super) async fn roll(self: &Rc<Self>) -> bool {
        if self.flushing.get() || self.refuses_trims().is_some() || self.log.unwritten_bytes() > 0 {
            return false;
        }
        // In the place of the task that carries, so that none begins.
        self.flushing.set(true);
        let end = self.range().log_end_offset;
        let producers = self.state.borrow().producers().clone();
        let outcome = self.log.roll(end, &producers).await;
        self.flushing.set(false);
        self.settled.notify();
        match &outcome {
            // There will be room when it is needed, or the flush meets the same.
            Ok(()) | Err(LogFault::Full { .. }) => {}
            Err(fault) => self.fence(fault.to_string()),
        }
        if self.log.unwritten_bytes() > 0 {
            self.wake_flusher();
        }
        outcome.is_ok()
    }
}

impl<R: Runtime> Core<R> {
    /// Looks at every partition again and again, for as long as the core lives.
    pub(super) fn keep_retention(self: &Rc<Self>) {
        let core = Rc::clone(self);
        let runtime = self.common.context.runtime.clone();
        let mut clock = Clock::new(runtime.monotonic(), runtime.unix_millis());
        self.common.context.runtime.spawn(async move {
            while !core.common.draining.get() {
                runtime.sleep(core.common.config.retention_interval).await;
                let now_ms = clock.now(runtime.monotonic(), runtime.unix_millis());
                for partition in core.open_partitions() {
                    partition.retain(now_ms).await;
                    runtime.yield_now().await;
                }
            }
        });
    }
}

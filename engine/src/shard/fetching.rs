//! Answering fetches: from memory at once, from the device in a task of its own, or later, when there is something to
//! see.

use std::{rc::Rc, time::Duration};

use super::{
    completion::ReplyTo,
    owned::Owned,
    repairing::READER_PATIENCE,
    request::{Fetch, Fetched, Found, OffsetAt, Outcome, Reply},
    wait_at_most,
};
use crate::{
    error::RequestError,
    limits::{FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX},
    log::read::ReadRange,
    runtime::Runtime,
    signal::Signal,
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

impl<R: Runtime> Owned<R> {
    /// Answers a fetch, now or later.
    pub(super) fn fetch(self: &Rc<Self>, request: Fetch, reply: ReplyTo) {
        self.confirmed(reply, move |partition, confirmed, reply| match confirmed {
            Ok(()) => partition.fetch_confirmed(request, reply),
            Err(error) => partition.answer(reply, partition.core.context.runtime.monotonic(), Err(error)),
        });
    }

    /// Goes on with `then` when it is sure that nothing was acknowledged before that is not here, or is not to be had:
    /// at once, unless other copies have to confirm it.
    fn confirmed(
        self: &Rc<Self>,
        reply: ReplyTo,
        then: impl FnOnce(&Rc<Self>, Result<(), RequestError>, ReplyTo) + 'static,
    ) {
        let Some(member) = self.member.as_ref().filter(|member| member.confirms_reads()) else {
            return then(self, Ok(()), reply);
        };
        let (partition, member) = (Rc::clone(self), Rc::clone(member));
        self.core.context.runtime.spawn(async move {
            let confirmed = member.confirm_read().await;
            then(&partition, confirmed, reply);
        });
    }

    /// The same, when nothing was acknowledged before that is not here.
    fn fetch_confirmed(self: &Rc<Self>, request: Fetch, reply: ReplyTo) {
        let arrived = self.core.context.runtime.monotonic();
        match self.readable(request.offset) {
            Err(error) => self.answer(reply, arrived, Err(error)),
            Ok(true) => self.read(request, reply, arrived),
            Ok(false) if request.max_wait.is_zero() || self.core.draining.get() => {
                let nothing = self.fetched(Vec::new());
                self.answer(reply, arrived, Ok(nothing));
            }
            Ok(false) => {
                let partition = Rc::clone(self);
                self.core.context.runtime.spawn(async move { partition.fetch_later(request, reply).await });
            }
        }
    }

    /// Whether the record at `offset` is visible now; an error if it never will be.
    fn readable(&self, offset: Offset) -> Result<bool, RequestError> {
        if let Some(error) = self.absence() {
            return Err(error);
        }
        // Another may lead that has more, before a write quorum has taken over the log of this one.
        if self.member.as_ref().is_some_and(|member| !member.is_established())
            && !planted(PlantedBug::ReadUnestablished)
        {
            return Err(self.not_leader());
        }
        let state = self.state.borrow();
        let ends = state.ends();
        let (start, end) = (ends.log_start(), ends.high_watermark());
        // Given up here already, and shown to be gone when a write quorum has: who asks again is told.
        if start <= offset && offset < self.kept_start.get() && self.member.is_some() {
            return Err(self.not_leader());
        }
        // Between the watermark and the log end are records that are on their way to be visible.
        if offset < start || offset > ends.log_end() {
            let end = if planted(PlantedBug::WrongRange) { ends.durable_end() } else { end };
            return Err(RequestError::OffsetOutOfRange { offset, start, end });
        }
        match (&self.damage, self.lost_end) {
            (Some(damage), Some((from, to))) if offset >= end => Err(RequestError::Corrupt {
                file: damage.path.clone(),
                position: damage.position,
                from,
                to,
                reason: damage.reason.clone(),
            }),
            _ => Ok(offset < end),
        }
    }

    async fn fetch_later(self: &Rc<Self>, request: Fetch, reply: ReplyTo) {
        let runtime = &self.core.context.runtime;
        let wait_max = request.max_wait.min(Duration::from_millis(u64::from(FETCH_WAIT_MS_MAX)));
        let deadline = runtime.monotonic() + wait_max;
        loop {
            let arrived = runtime.monotonic();
            match self.readable(request.offset) {
                Err(error) => return self.answer(reply, arrived, Err(error)),
                Ok(true) => return self.read(request, reply, arrived),
                Ok(false) if arrived >= deadline || self.core.draining.get() => {
                    let nothing = self.fetched(Vec::new());
                    return self.answer(reply, arrived, Ok(nothing));
                }
                Ok(false) => {
                    let woken = Rc::new(Signal::default());
                    let wait = self.state.borrow_mut().handle_fetch_wait(request.offset, Rc::clone(&woken));
                    wait_at_most(runtime, &woken, deadline - arrived).await;
                    self.state.borrow_mut().handle_fetch_cancel(wait);
                }
            }
        }
    }

    fn read(self: &Rc<Self>, request: Fetch, reply: ReplyTo, arrived: Duration) {
        let ends = *self.state.borrow().ends();
        let beyond = planted(PlantedBug::ReadBeyondWatermark);
        let range = ReadRange {
            offset: request.offset,
            end: if beyond { ends.log_end() } else { ends.high_watermark() },
            max_bytes: request.max_bytes.min(FETCH_BYTES_MAX) as usize,
        };
        if let Some(batches) = self.log.read_memory(range) {
            let fetched = self.fetched(batches);
            return self.answer(reply, arrived, Ok(fetched));
        }
        // A record may have been deleted while it was looked for: that is no damage.
        let unless_gone = move |partition: &Self, error| partition.readable(range.offset).err().unwrap_or(error);
        let ahead = self.log.read_ahead(range);
        if let Some(outcome) = ahead.filter(|outcome| self.member.is_none() || outcome.is_ok()) {
            let outcome = outcome.map(|batches| self.fetched(batches)).map_err(|error| unless_gone(self, error));
            return self.answer(reply, arrived, outcome);
        }
        let (partition, runtime) = (Rc::clone(self), &self.core.context.runtime);
        let reading = async move {
            let read = partition.read_whole(range).await;
            let outcome =
                read.map(|batches| partition.fetched(batches)).map_err(|error| unless_gone(&partition, error));
            partition.answer(reply, arrived, outcome);
        };
        // Who catches up, or has an index made anew, takes what the others leave of the core.
        if self.log.is_catching_up(range.offset) || !self.log.has_index_of(range.offset) {
            runtime.spawn_background(reading);
        } else {
            runtime.spawn(reading);
        }
    }

    /// Reads from the device. What is damaged there and whole on another copy is repaired first; for what the drive
    /// does not give another leads.
    pub(super) async fn read_whole(self: &Rc<Self>, range: ReadRange) -> Result<Vec<bytes::Bytes>, RequestError> {
        let read = self.log.read_disk(range).await;
        match (&read, &self.member) {
            (Err(RequestError::Corrupt { from, to, .. }), Some(member)) if from < to => {
                if member.repaired(self, range.offset).await? { self.log.read_disk(range).await } else { read }
            }
            (Err(RequestError::ReadFailed { .. }), Some(member)) if !member.is_alone() => {
                member.read_again(self, range).await
            }
            _ => read,
        }
    }

    fn fetched(&self, batches: Vec<bytes::Bytes>) -> Fetched {
        let state = self.state.borrow();
        let ends = state.ends();
        Fetched {
            start_offset: ends.log_start(),
            high_watermark: ends.high_watermark(),
            log_end_offset: ends.log_end(),
            batches,
        }
    }

    fn answer(&self, reply: ReplyTo, arrived: Duration, outcome: Result<Fetched, RequestError>) {
        let metrics = &self.core.context.metrics;
        match &outcome {
            Ok(fetched) => {
                let bytes = fetched.batches.iter().map(|piece| piece.len() as u64).sum();
                metrics.read_requests.add(1);
                metrics.read_bytes.add(bytes);
                self.done.add(bytes);
                let took = self.core.context.runtime.monotonic().saturating_sub(arrived);
                metrics.read_duration.record_many(took, 1);
            }
            Err(_) => metrics.read_errors.add(1),
        }
        reply.send(outcome.map(Reply::Fetched));
    }

    /// Answers where an offset is.
    pub(super) fn find_offset(self: &Rc<Self>, at: OffsetAt, reply: ReplyTo) {
        self.confirmed(reply, move |partition, confirmed, reply| match confirmed {
            Ok(()) => partition.find_confirmed(at, reply),
            Err(error) => reply.send(Err(error)),
        });
    }

    fn find_confirmed(self: &Rc<Self>, at: OffsetAt, reply: ReplyTo) {
        if self.member.as_ref().is_some_and(|member| !member.is_established()) {
            return reply.send(Err(self.not_leader()));
        }
        let ends = *self.state.borrow().ends();
        match at {
            OffsetAt::Earliest => reply.send(self.found(Ok(ends.log_start()))),
            OffsetAt::Latest => reply.send(self.found(Ok(ends.high_watermark()))),
            OffsetAt::Timestamp(timestamp_ms) => {
                let partition = Rc::clone(self);
                // It may have to read and to check whole segments, where an index is missing.
                self.core.context.runtime.spawn_background(async move {
                    reply.send(partition.found(partition.find_time(timestamp_ms).await));
                });
            }
        }
    }

    /// The first record that is not older, as far as there is one; not the one behind damage that others can repair.
    async fn find_time(self: &Rc<Self>, timestamp_ms: i64) -> Result<Offset, RequestError> {
        let now = || self.core.context.runtime.monotonic();
        let deadline = now() + READER_PATIENCE;
        loop {
            let (ends, kept) = (*self.state.borrow().ends(), self.kept_start.get());
            let range = (ends.log_start().max(kept).min(ends.high_watermark()), ends.high_watermark());
            let found = self.log.find_time(timestamp_ms, range).await;
            // Records may have been deleted while they were looked through: that is no damage.
            match found {
                Err(_) if self.kept_start.get() > kept && self.absence().is_none() => {}
                found if now() < deadline && self.is_mended(&found, range.0).await? => {}
                found => return found.map_err(|error| self.absence().unwrap_or(error)),
            }
        }
    }

    /// Whether what was found may be another now, since what stood before it could not be read, and can be.
    ///
    /// Errors: `NotLeader` if this copy does not lead any more: whoever does may have it.
    async fn is_mended(
        self: &Rc<Self>,
        found: &Result<Offset, RequestError>,
        start: Offset,
    ) -> Result<bool, RequestError> {
        let Some(member) = self.member.as_ref().filter(|member| !member.is_alone()) else { return Ok(false) };
        match found {
            Ok(at) if start < *at => {
                let before = Offset(at.0 - 1);
                Ok(self.log.losses().at(before).is_some() && member.repaired(self, before).await?)
            }
            Err(RequestError::ReadFailed { from, to, .. }) if from < to => {
                let range = ReadRange { offset: start.max(*from), end: *to, max_bytes: 1 };
                member.read_again(self, range).await.map(|_| true)
            }
            _ => Ok(false),
        }
    }

    fn found(&self, offset: Result<Offset, RequestError>) -> Outcome {
        let ends = *self.state.borrow().ends();
        let lagging = planted(PlantedBug::LaggingWatermark);
        let high_watermark =
            if lagging { ends.durable_end().min(ends.high_watermark()) } else { ends.high_watermark() };
        offset.map(|offset| {
            Reply::Found(Found {
                offset,
                start_offset: ends.log_start(),
                high_watermark,
                log_end_offset: ends.log_end(),
            })
        })
    }
}

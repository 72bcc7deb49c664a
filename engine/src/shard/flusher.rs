//! Carrying a partition's bytes to the device: when to write, when to sync, what to do when it fails.
//!
//! One task per partition that has something to carry; an idle partition has none. While one write or sync is under
//! way, what arrives joins the next: batching comes from the load itself, there is no linger.

use std::{rc::Rc, time::Duration};

use super::{drive::FULL_RETRY, owned::Owned, wait_at_most};
use crate::{
    log::{
        LogFault,
        flush::{Commit, Written},
    },
    runtime::Runtime,
    testing::bug::{PlantedBug, planted},
    types::AckLevel,
};

/// What the task does next. Decided by [`next_step`], from values only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Hand what waits to the device.
    Write,
    /// Make durable what the device has.
    Sync,
    /// Wait for more work, but no longer than this.
    Wait(Duration),
    /// Everything is durable.
    Rest,
}

/// Where a partition stands, for [`next_step`].
#[derive(Clone, Copy, Debug)]
struct Situation {
    unwritten_bytes: usize,
    /// A full group waits, or someone waits for `written` or more, or the server stops: there is no reason to wait.
    urgent: bool,
    /// Someone waits for `durable`, or the server stops.
    sync_wanted: bool,
    undurable: bool,
    /// The last step was a write.
    just_wrote: bool,
    /// Since the oldest unwritten append.
    buffered_for: Duration,
    /// Since the last sync.
    unsynced_for: Duration,
    buffer_time_max: Duration,
    sync_interval: Duration,
}

fn next_step(now: Situation) -> Next {
    // Under a steady load there is always something to write: to write it first would be to never sync.
    if now.undurable && now.sync_wanted && now.just_wrote {
        return Next::Sync;
    }
    if now.unwritten_bytes > 0 && (now.urgent || now.buffered_for >= now.buffer_time_max) {
        return Next::Write;
    }
    // A sync for its own sake comes after the write that is due, so that it covers it.
    if now.undurable && (now.sync_wanted || now.unsynced_for >= now.sync_interval) {
        return Next::Sync;
    }
    match (now.unwritten_bytes > 0, now.undurable) {
        (true, true) => Next::Wait((now.buffer_time_max - now.buffered_for).min(now.sync_interval - now.unsynced_for)),
        (true, false) => Next::Wait(now.buffer_time_max - now.buffered_for),
        (false, true) => Next::Wait(now.sync_interval - now.unsynced_for),
        (false, false) => Next::Rest,
    }
}

impl<R: Runtime> Owned<R> {
    /// Sees to it that something carries this partition's bytes.
    pub(super) fn wake_flusher(self: &Rc<Self>) {
        if self.flushing.replace(true) {
            self.work.notify();
            return;
        }
        let partition = Rc::clone(self);
        self.core.context.runtime.spawn(async move {
            partition.flush_until_settled().await;
            partition.flushing.set(false);
            partition.settled.notify();
        });
    }

    async fn flush_until_settled(self: &Rc<Self>) {
        let runtime = &self.core.context.runtime;
        let mut last_sync = runtime.monotonic();
        let mut just_wrote = false;
        loop {
            let step = next_step(self.situation(last_sync, just_wrote));
            just_wrote = step == Next::Write;
            let outcome = match step {
                Next::Rest => return,
                Next::Wait(duration) => {
                    wait_at_most(runtime, &self.work, duration).await;
                    Ok(())
                }
                Next::Write => self.write().await,
                Next::Sync => {
                    last_sync = runtime.monotonic();
                    self.sync().await
                }
            };
            match outcome {
                Ok(()) => {}
                Err(LogFault::Full { .. }) if !self.stops() => {
                    if self.set_full(true) {
                        let (log, partition, free_bytes) =
                            (&self.entry.borrow().name, self.id.index, self.core.context.room.free_bytes());
                        tracing::warn!(%log, %partition, free_bytes, "the drive is full: it does not let the log grow");
                    }
                    runtime.sleep(FULL_RETRY).await;
                }
                Err(fault) => return self.give_up(&fault),
            }
        }
    }

    fn situation(&self, last_sync: Duration, just_wrote: bool) -> Situation {
        let state = self.state.borrow();
        let now = self.core.context.runtime.monotonic();
        let config = &self.core.config;
        let crowded = self.core.unwritten_bytes.get() > config.buffer_bytes_max;
        let (written_wanted, durable_wanted) = self.is_wanted();
        let durable_wanted = durable_wanted || state.waits_for(AckLevel::Durable);
        Situation {
            unwritten_bytes: self.log.unwritten_bytes(),
            urgent: durable_wanted
                || written_wanted
                || state.waits_for(AckLevel::Written)
                || self.log.has_full_group()
                || crowded
                || self.hurries(),
            sync_wanted: durable_wanted || self.hurries(),
            undurable: self.is_undurable(),
            just_wrote,
            buffered_for: now.saturating_sub(self.oldest_unwritten.get()).min(config.buffer_time_max),
            unsynced_for: now.saturating_sub(last_sync).min(config.sync_interval),
            buffer_time_max: config.buffer_time_max,
            sync_interval: config.sync_interval,
        }
    }

    /// Whether what was accepted is to become durable as soon as it can.
    fn hurries(&self) -> bool {
        self.stops() || self.departure().is_some()
    }

    /// Whether there is no later: the server stops, or the log is gone.
    fn stops(&self) -> bool {
        self.core.draining.get() || self.is_gone() || self.retired.get()
    }

    /// Whether the device has taken something that is not durable.
    fn is_undurable(&self) -> bool {
        let held = self.held.get();
        held.durable < held.written
    }

    async fn write(self: &Rc<Self>) -> Result<(), LogFault> {
        let begun = self.core.context.runtime.monotonic();
        self.write_begun.set(begun);
        let commit = match (self.is_wanted(), self.state.borrow()) {
            ((_, durable), state) if durable || state.waits_for(AckLevel::Durable) => {
                if self.is_undurable() {
                    Commit::Written
                } else {
                    Commit::Durable
                }
            }
            ((written, _), state) if written || state.waits_for(AckLevel::Written) => Commit::Written,
            _ => Commit::Unawaited,
        };
        self.io_since.set(Some(begun));
        let written = self.log.write_waiting(commit).await;
        self.io_since.set(None);
        let written = written?;
        self.set_full(false);
        // What came meanwhile is at most as old as this write.
        self.oldest_unwritten.set(begun);
        let unwritten = self.log.unwritten_bytes();
        self.count_unwritten(unwritten);
        let Some(Written { end, durable }) = written else { return Ok(()) };
        if durable {
            self.note_durable(self.appended_bytes.get() - unwritten as u64, begun);
        }
        let durable = durable || planted(PlantedBug::AckBeforeSync);
        self.now_held(end, if durable { end } else { self.held.get().durable });
        Ok(())
    }

    async fn sync(&self) -> Result<(), LogFault> {
        let begun = self.core.context.runtime.monotonic();
        let end = self.held.get().written;
        let bytes = self.appended_bytes.get() - self.log.unwritten_bytes() as u64;
        self.io_since.set(Some(begun));
        let synced = self.log.sync().await;
        self.io_since.set(None);
        synced?;
        // What was written since is younger; what waits to be written may be as old as that.
        let oldest = if self.log.unwritten_bytes() > 0 { begun.min(self.oldest_unwritten.get()) } else { begun };
        self.note_durable(bytes, oldest);
        self.now_held(end, end);
        Ok(())
    }

    /// `bytes` of all that were appended so far are durable; the others came at `since` or later.
    fn note_durable(&self, bytes: u64, since: Duration) {
        let newly = bytes - self.durable_bytes.replace(bytes);
        if !planted(PlantedBug::LeakUndurable) {
            self.core.context.metrics.undurable_bytes.sub(newly);
        }
        self.expose((bytes < self.appended_bytes.get()).then_some(since));
    }

    fn give_up(&self, fault: &LogFault) {
        // The bytes stay in memory for readers, but they no longer wait for the device.
        self.count_unwritten(0);
        self.set_full(false);
        if self.is_gone() {
            return;
        }
        match fault {
            LogFault::Failed { .. } | LogFault::Unread { .. } | LogFault::Missing { .. } | LogFault::Version(_) => {
                self.fence(fault.to_string());
            }
            // The server stops, and there is not even room for what the reserve was kept back for.
            LogFault::Full { .. } => {
                let (log, partition) = (&self.entry.borrow().name, self.id.index);
                tracing::error!(%log, %partition, %fault, "what was not written yet is lost");
                self.stop_writes(&fault.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn quiet() -> Situation {
        Situation {
            unwritten_bytes: 0,
            urgent: false,
            sync_wanted: false,
            undurable: false,
            just_wrote: false,
            buffered_for: Duration::ZERO,
            unsynced_for: Duration::ZERO,
            buffer_time_max: 10 * MS,
            sync_interval: 1000 * MS,
        }
    }

    #[test]
    fn a_buffered_write_waits_for_its_time_and_an_urgent_one_does_not() {
        let buffered = Situation { unwritten_bytes: 1, buffered_for: 4 * MS, ..quiet() };
        assert_eq!(next_step(buffered), Next::Wait(6 * MS));
        assert_eq!(next_step(Situation { buffered_for: 10 * MS, ..buffered }), Next::Write);
        assert_eq!(next_step(Situation { urgent: true, ..buffered }), Next::Write);
    }

    #[test]
    fn what_was_written_is_synced_at_once_if_wanted_and_within_the_interval_if_not() {
        let written = Situation { undurable: true, unsynced_for: 400 * MS, ..quiet() };
        assert_eq!(next_step(written), Next::Wait(600 * MS));
        assert_eq!(next_step(Situation { unsynced_for: 1000 * MS, ..written }), Next::Sync);
        assert_eq!(next_step(Situation { sync_wanted: true, ..written }), Next::Sync);
    }

    #[test]
    fn a_write_goes_before_the_sync_that_should_cover_it() {
        let both = Situation { unwritten_bytes: 1, urgent: true, undurable: true, sync_wanted: true, ..quiet() };
        assert_eq!(next_step(both), Next::Write);
    }

    #[test]
    fn a_load_that_never_pauses_does_not_keep_a_sync_waiting() {
        let both = Situation { unwritten_bytes: 1, urgent: true, undurable: true, sync_wanted: true, ..quiet() };
        assert_eq!(next_step(Situation { just_wrote: true, ..both }), Next::Sync);
        // Nobody waits for it: then what was received goes first.
        assert_eq!(next_step(Situation { just_wrote: true, sync_wanted: false, ..both }), Next::Write);
    }

    #[test]
    fn a_settled_partition_needs_no_task() {
        assert_eq!(next_step(quiet()), Next::Rest);
    }
}

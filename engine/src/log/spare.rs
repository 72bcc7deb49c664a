//! The next segment's file, made ready while the one before it still fills: created, filled with zeros and synced under
//! a name of its own, so that a roll writes one block and changes a name, and nobody waits for more.
//!
//! A spare holds nothing. What is left of one after a crash is made anew over it, or goes with the log.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
};

use futures_util::future::join;

use super::{
    Log, LogFault,
    prepare::{STEP_BYTES_MAX, write_zeros},
    segment::{SPARE_NAME, Segment, header_block},
};
use crate::{
    limits::SEGMENT_HEADER_BYTES,
    runtime::{File, OpenMode, Runtime},
    signal::Signal,
    testing::bug::{PlantedBug, planted},
};

/// A spare is made when the active segment has this part of its size left, as a divisor: early enough to be ready, late
/// enough that a log which grows slowly does not keep an empty file for long.
const ROOM_LEFT: u64 = 4;

/// A log's spare.
pub(super) struct Spare<R: Runtime> {
    state: RefCell<State<R>>,
    /// Nothing is being made any more.
    settled: Signal,
}

enum State<R: Runtime> {
    /// There is none.
    None,
    /// A task makes it.
    BeingMade,
    /// It is filled with zeros up to here, and synced.
    Ready(Rc<R::File>, u64),
    /// None will be made for this segment: making it failed, which the roll itself will say better if it fails too.
    GivenUp,
    /// None will be made any more: the log is being deleted.
    Closed,
}

impl<R: Runtime> Default for Spare<R> {
    fn default() -> Self {
        Spare { state: RefCell::new(State::None), settled: Signal::default() }
    }
}

/// Says that nothing is being made any more, also when the task that did is dropped half-way.
struct BeingMade<'a, R: Runtime> {
    spare: &'a Spare<R>,
    outcome: Cell<Option<State<R>>>,
}

impl<R: Runtime> Drop for BeingMade<'_, R> {
    fn drop(&mut self) {
        let mut state = self.spare.state.borrow_mut();
        if matches!(*state, State::BeingMade) {
            *state = self.outcome.take().unwrap_or(State::GivenUp);
        }
        drop(state);
        self.spare.settled.notify();
    }
}

impl<R: Runtime> Log<R> {
    /// The active `segment` is written up to `end`: if it is nearly full, the next one's file should be made.
    pub(super) fn see_to_spare(self: &Rc<Self>, segment: &Segment<R>, end: u64) {
        let limit = self.context.segment_bytes;
        if end < limit - limit / ROOM_LEFT || !matches!(*self.spare.state.borrow(), State::None) {
            return;
        }
        let block = u64::from(segment.header.block_bytes);
        let bytes = limit.min(STEP_BYTES_MAX).next_multiple_of(block);
        if self.context.room.has_less_than(bytes) {
            return;
        }
        *self.spare.state.borrow_mut() = State::BeingMade;
        let log = Rc::clone(self);
        self.context.runtime.spawn(async move {
            let making = BeingMade { spare: &log.spare, outcome: Cell::new(None) };
            match log.make_spare(bytes).await {
                Ok(file) => making.outcome.set(Some(State::Ready(file, bytes))),
                Err(error) => tracing::debug!(dir = %log.dir.display(), %error, "no segment was made ahead"),
            }
        });
    }

    async fn make_spare(&self, bytes: u64) -> Result<Rc<R::File>, LogFault> {
        let path = self.spare_path();
        let fault = |operation, error| LogFault::from_io(operation, &path, &error);
        let opened = self.context.runtime.open(&path, OpenMode::CreateTruncate).await;
        let file = Rc::new(opened.map_err(|error| fault("creating", error))?);
        let end = Cell::new(0);
        let filled = write_zeros(&self.context, &*file, (&end, bytes), || ()).await;
        filled.map_err(|error| fault("filling with zeros", error))?;
        file.fdatasync().await.map_err(|error| fault("fdatasync", error))?;
        Ok(file)
    }

    /// Makes the spare, if it is ready, the file of `segment`: with its header, under its name, both durable. Its
    /// predecessor is sealed when `sealed` is done, and not before that does the name change: recovery looks for the
    /// end of the log in the last segment only. `None` if there is no spare.
    pub(super) async fn adopt_spare(
        &self,
        segment: &Segment<R>,
        sealed: impl Future<Output = Result<(), LogFault>>,
    ) -> Result<Option<Rc<R::File>>, LogFault> {
        let taken = {
            let mut state = self.spare.state.borrow_mut();
            match std::mem::replace(&mut *state, State::None) {
                State::Ready(file, prepared_end) => Some((file, prepared_end)),
                unfinished @ (State::BeingMade | State::Closed) => {
                    *state = unfinished;
                    None
                }
                State::None | State::GivenUp => None,
            }
        };
        let Some((file, prepared_end)) = taken else { return sealed.await.map(|()| None) };
        let path = self.spare_path();
        let headed = file.write_durable_at(0, Rc::new(header_block(&self.context.runtime, &segment.header)));
        let headed = async { headed.await.map_err(|error| LogFault::failed("writing the header of", &path, &error)) };
        if planted(PlantedBug::RollBeforeSeal) {
            headed.await?;
            self.name_spare(segment).await?;
            sealed.await?;
        } else {
            // At once: neither needs the other, and both wait for the device.
            let (sealed, headed) = join(sealed, headed).await;
            sealed.and(headed)?;
            self.name_spare(segment).await?;
        }
        segment.prepared_end.set(prepared_end.max(SEGMENT_HEADER_BYTES));
        Ok(Some(file))
    }

    /// Gives the spare the name of `segment`, durably.
    async fn name_spare(&self, segment: &Segment<R>) -> Result<(), LogFault> {
        let runtime = &self.context.runtime;
        let fault = |operation, error| LogFault::from_io(operation, &segment.path, &error);
        runtime.rename(&self.spare_path(), &segment.path).await.map_err(|error| fault("naming", error))?;
        if planted(PlantedBug::ForgetDirSync) {
            return Ok(());
        }
        runtime.sync_dir(&self.dir).await.map_err(|error| fault("syncing the directory of", error))
    }

    /// No spare is made any more when this returns.
    pub(super) async fn close_spare(&self) {
        let being_made = {
            let mut state = self.spare.state.borrow_mut();
            let being_made = matches!(*state, State::BeingMade);
            if !being_made {
                *state = State::Closed;
            }
            being_made
        };
        if being_made {
            self.spare.settled.wait_until(|| !matches!(*self.spare.state.borrow(), State::BeingMade)).await;
            *self.spare.state.borrow_mut() = State::Closed;
        }
    }

    fn spare_path(&self) -> PathBuf {
        self.dir.join(SPARE_NAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{
            fixture::{P, batch_of, context, placed},
            flush::Commit,
            recovery,
            segment::segment_path,
        },
        record::check_produced,
        runtime::sim::{Sim, SimConfig, SimRuntime},
        types::Offset,
    };

    async fn append(log: &Rc<Log<SimRuntime>>, batch: &[u8], offset: u64) {
        log.append(batch, &check_produced(batch).unwrap(), placed(offset, 0));
        log.write_waiting(Commit::Written).await.unwrap();
    }

    #[test]
    fn a_log_that_is_nearly_full_goes_on_in_a_file_made_ahead() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let runtime = cores[0].clone();
        let dir = PathBuf::from("/p");
        let story = {
            let dir = dir.clone();
            async move {
                runtime.create_dir_all(&dir).await.unwrap();
                let log = recovery::open(&context, P, dir).await.unwrap().log;
                let batch = batch_of(4096);
                let limit = context.segment_bytes / 4096;
                for offset in 0..limit * 3 / 4 + 1 {
                    append(&log, &batch, offset).await;
                }
                log.spare.settled.wait_until(|| !matches!(*log.spare.state.borrow(), State::BeingMade)).await;
                (log, limit)
            }
        };
        let (log, limit) = sim.block_on(&cores[0], story, 1_000_000).unwrap();
        let has_spare = |sim: &Sim| sim.files().iter().any(|(path, _)| *path == dir.join(SPARE_NAME));
        assert!(has_spare(&sim), "no file was made ahead");
        let rolling = Rc::clone(&log);
        let story = async move {
            let batch = batch_of(4096);
            for offset in limit * 3 / 4 + 1..limit + 1 {
                append(&rolling, &batch, offset).await;
            }
            rolling.active()
        };
        let active = sim.block_on(&cores[0], story, 1_000_000).unwrap();
        assert!(active.base_offset() > Offset(0), "the log did not roll");
        assert!(active.prepared_end.get() >= log.context.segment_bytes.min(STEP_BYTES_MAX), "it was made anew");
        let files = sim.files();
        assert!(files.iter().any(|(path, _)| *path == segment_path(&dir, active.base_offset())), "{files:?}");
        assert!(!has_spare(&sim), "the spare stays behind");
    }

    #[test]
    fn of_a_log_that_was_closed_no_file_is_made_any_more() {
        for begun in [false, true] {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 4096);
            let runtime = cores[0].clone();
            let dir = PathBuf::from("/p");
            let story = {
                let dir = dir.clone();
                async move {
                    runtime.create_dir_all(&dir).await.unwrap();
                    let log = recovery::open(&context, P, dir).await.unwrap().log;
                    let end = context.segment_bytes;
                    if begun {
                        log.see_to_spare(&log.active(), end);
                        assert!(matches!(*log.spare.state.borrow(), State::BeingMade));
                    }
                    log.close().await;
                    assert!(matches!(*log.spare.state.borrow(), State::Closed), "begun: {begun}");
                    log.see_to_spare(&log.active(), end);
                    assert!(matches!(*log.spare.state.borrow(), State::Closed), "begun: {begun}");
                    runtime.sleep(std::time::Duration::from_secs(1)).await;
                }
            };
            sim.block_on(&cores[0], story, 1_000_000).unwrap();
            let has_spare = sim.files().iter().any(|(path, _)| *path == dir.join(SPARE_NAME));
            assert_eq!(has_spare, begun, "who closes the log removes its folder afterwards");
        }
    }
}

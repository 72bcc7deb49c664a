//! Filling a segment with zeros ahead of use, so that a commit neither changes the file's length nor meets unwritten
//! extents, which cost it a journal commit: 1.6 to 2.3 times the latency, measured.
//!
//! The prepared stretch doubles as the segment grows: a small log stays small on disk, a fast one is never waited for.

use std::{cell::Cell, rc::Rc};

use super::{Log, LogContext, LogFault, segment::Segment};
use crate::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    runtime::{Buffer, File, Runtime},
};

/// What the first preparation of a segment takes: 250 single-record commits padded to 4 KiB.
const STEP_BYTES_MIN: u64 = 1 << 20;

/// At 1 GB/s this lasts for 30 ms, much longer than preparing it takes to begin.
pub(super) const STEP_BYTES_MAX: u64 = 32 << 20;

/// Clears the flag and wakes those who wait, also when the task that prepares is dropped half-way.
struct Preparing<'a, R: Runtime>(&'a Log<R>);

impl<R: Runtime> Drop for Preparing<'_, R> {
    fn drop(&mut self) {
        self.0.preparing.set(false);
        self.0.prepared.notify();
    }
}

impl<R: Runtime> Log<R> {
    /// Waits until `segment`, whose file exists, is filled with zeros up to `end` at least, and sees to it that it will
    /// be for what comes after.
    pub(super) async fn ensure_prepared(self: &Rc<Self>, segment: &Rc<Segment<R>>, end: u64) -> Result<(), LogFault> {
        loop {
            if segment.prepared_end.get() >= end {
                self.prepare_ahead(segment, end);
                return Ok(());
            }
            if self.preparing.get() {
                // Not for all of it: a step takes longer than a commit may.
                self.prepared.wait_until(|| !self.preparing.get() || segment.prepared_end.get() >= end).await;
            } else {
                // Only what is needed now: the rest of the step is made ahead, behind the commit. What was accepted may
                // use the reserve, what may come may not.
                let some = end.next_multiple_of(STEP_BYTES_MIN).min(self.next_step(segment)).max(end);
                let target = if self.context.room.has_less_than(some - end) { end } else { some };
                self.prepare_to(segment, target).await?;
            }
        }
    }

    /// Waits until nothing prepares: the segment is about to be sealed.
    pub(super) async fn preparation_over(&self) {
        self.prepared.wait_until(|| !self.preparing.get()).await;
    }

    fn prepare_ahead(self: &Rc<Self>, segment: &Rc<Segment<R>>, end: u64) {
        let prepared = segment.prepared_end.get();
        let target = self.next_step(segment);
        // Begin while half of the last step is left.
        let plenty = prepared - end > step_bytes(prepared) / 2;
        if plenty || target <= prepared || self.preparing.get() {
            return;
        }
        if self.context.room.has_less_than(target - prepared) {
            return;
        }
        let (log, segment) = (Rc::clone(self), Rc::clone(segment));
        self.context.runtime.spawn_background(async move {
            // A failure is met again, and reported, by the flush that needs the room.
            let _ = log.prepare_to(&segment, target).await;
        });
    }

    fn next_step(&self, segment: &Segment<R>) -> u64 {
        let prepared = segment.prepared_end.get();
        let block = u64::from(self.context.block_bytes);
        (prepared + step_bytes(prepared)).min(self.context.segment_bytes.next_multiple_of(block)).max(prepared)
    }

    async fn prepare_to(&self, segment: &Segment<R>, target: u64) -> Result<(), LogFault> {
        if self.end.has_come() || self.preparing.replace(true) {
            return Ok(());
        }
        let _guard = Preparing(self);
        fill_with_zeros(self, segment, target).await
    }
}

fn step_bytes(prepared: u64) -> u64 {
    prepared.clamp(STEP_BYTES_MIN, STEP_BYTES_MAX)
}

async fn fill_with_zeros<R: Runtime>(log: &Log<R>, segment: &Segment<R>, target: u64) -> Result<(), LogFault> {
    let file = segment.file.borrow().clone().expect("prepared segments have a file"); // why: callers create it first
    let filled = write_zeros(&log.context, &*file, (&segment.prepared_end, target), || log.prepared.notify()).await;
    filled.map_err(|error| LogFault::from_io("filling with zeros", &segment.path, &error))
}

/// Writes zeros from `end`, which moves along, to `target`; says each time that it has `moved`.
pub(super) async fn write_zeros<R: Runtime>(
    context: &LogContext<R>,
    file: &R::File,
    (end, target): (&Cell<u64>, u64),
    moved: impl Fn(),
) -> std::io::Result<()> {
    while end.get() < target {
        let mut zeros = Rc::clone(&context.zeros);
        let len = (target - end.get()).min(zeros.bytes().len() as u64);
        if len < zeros.bytes().len() as u64 {
            let allocated = len.next_multiple_of(DEVICE_BLOCK_BYTES_MAX);
            let mut rest = context.runtime.allocate(allocated as usize);
            rest.trim(len as usize);
            zeros = Rc::new(rest);
        }
        file.write_at(end.get(), zeros).await?;
        end.set(end.get() + len);
        context.room.take(len);
        moved();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        log::{
            fixture::{append_each, batch_of, context, context_of, open},
            room::Room,
        },
        runtime::{
            OpenMode,
            sim::{Sim, SimConfig},
        },
    };

    #[test]
    fn zeros_are_written_up_to_where_they_are_wanted_and_no_further() {
        for (from, to) in [(512, 1024), (512, 512), (4096, 3 << 20), (4096, (3 << 20) + 512)] {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let story = async move {
                let file = context.runtime.open(Path::new("/f"), OpenMode::CreateTruncate).await.unwrap();
                let (end, moves) = (Cell::new(from), Cell::new(0));
                write_zeros(&context, &file, (&end, to), || moves.set(moves.get() + 1)).await.unwrap();
                assert_eq!(end.get(), to);
                assert_eq!(moves.get(), (to - from).div_ceil(1 << 20), "each write is told");
                assert_eq!(file.size().await.unwrap(), if from < to { to } else { 0 });
            };
            sim.block_on(&cores[0], story, 100_000).unwrap();
        }
    }

    #[test]
    fn what_may_come_takes_nothing_of_the_reserve() {
        for (free_bytes, prepared) in [(5 << 19, 2 << 20), (3 << 19, 1 << 20)] {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let mut context = context_of(&cores[0], 512, 64 << 20);
            Rc::get_mut(&mut context).unwrap().room = Room::new(1 << 20);
            let story = async move {
                let log = open(&context).await.log;
                context.room.look((1 << 20) + free_bytes);
                // More than half of the first step.
                append_each(&log, &batch_of(60_000), 0..10).await;
                context.runtime.sleep(std::time::Duration::from_millis(100)).await;
                assert_eq!(log.active().prepared_end.get(), prepared, "{free_bytes} bytes are free");
            };
            sim.block_on(&cores[0], story, 1_000_000).unwrap();
        }
    }

    #[test]
    fn the_next_step_begins_while_half_of_the_last_one_is_left_and_not_before() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context_of(&cores[0], 512, 64 << 20);
        let story = async move {
            let log = open(&context).await.log;
            for offset in 0..10 {
                append_each(&log, &batch_of(60_000), offset..offset + 1).await;
                context.runtime.sleep(std::time::Duration::from_millis(100)).await;
                let (end, prepared) = (log.active().end_position.get(), log.active().prepared_end.get());
                assert_eq!(prepared, if end < 512 << 10 { 1 << 20 } else { 2 << 20 }, "with {end} bytes");
            }
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }

    #[test]
    fn a_commit_waits_for_the_room_that_it_needs_and_not_for_all_of_a_step() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context_of(&cores[0], 512, 64 << 20);
        let story = async move {
            let log = open(&context).await.log;
            let mut waited = 0;
            for offset in 0..40 {
                let (preparing, prepared) = (log.preparing.get(), log.active().prepared_end.get());
                append_each(&log, &batch_of(1_000_000), offset..offset + 1).await;
                let has_waited = preparing && prepared < log.active().end_position.get();
                waited += u32::from(has_waited && log.preparing.get());
                assert!(log.active().prepared_end.get() >= log.active().end_position.get());
            }
            assert!(waited > 0, "no commit went on while the rest of a step was prepared");
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }
}

//! Filling a segment with zeros ahead of use, so that a commit neither changes the file's length nor meets unwritten
//! extents, which cost it a journal commit: 1.6 to 2.3 times the latency, measured.
//!
//! Zeros take as much of the drive as what is written over them later. Under a heavy load a log takes room without
//! filling it: the drive moves twice as much for it then, and the journal's commit is little beside moving the bytes.
//! So does a log whose commits nobody waits for.
//!
//! The prepared stretch doubles as the segment grows: a small log stays small on disk, a fast one is never waited for.

use std::{cell::Cell, rc::Rc, time::Duration};

use super::{Log, LogContext, LogFault, flush::Commit, segment::Segment};
use crate::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    runtime::{Buffer, File, Runtime},
    signal::Signal,
};

/// What the first preparation of a segment takes: 250 single-record commits padded to 4 KiB.
const STEP_BYTES_MIN: u64 = 1 << 20;

/// At 1 GB/s this lasts for 30 ms, much longer than preparing it takes to begin.
pub(super) const STEP_BYTES_MAX: u64 = 32 << 20;

/// Taking room waits until nothing is written to the file: not more often than ten times a second at 1 GB/s.
const ROOM_BYTES_MAX: u64 = 128 << 20;

/// How long a load is looked at before it is judged.
const LOOK: Duration = Duration::from_millis(100);

/// The load of one log from which on its commits meet unwritten extents.
///
/// The default: with commits of 512 KiB the zeros take longer than the journal, measured: a quarter more throughput
/// without them when the drive is busy, while batches of 100 KiB, a few in a commit, lost a twentieth. A log that
/// writes less than 64 MiB/s is not what the drive is busy with. A commit that nobody waits for, as on a follower whose
/// leader is a write quorum by itself, may take as long as it likes: there only small logs are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeavyLoad {
    /// Bytes of a commit, on average.
    pub commit_bytes_min: u64,
    /// Bytes a second.
    pub bytes_per_second_min: u64,
    /// Bytes a second, while nobody waits for a commit: it may take longer then, of whatever size.
    pub unawaited_bytes_per_second_min: u64,
}

impl Default for HeavyLoad {
    fn default() -> Self {
        HeavyLoad {
            commit_bytes_min: 512 << 10,
            bytes_per_second_min: 64 << 20,
            unawaited_bytes_per_second_min: 8 << 20,
        }
    }
}

/// What a log knows of the preparation of its active segment.
#[derive(Default)]
pub(super) struct Preparation {
    /// Whether a task fills the active segment with zeros.
    is_running: Cell<bool>,
    /// It has come further, or is over.
    moved: Signal,
    /// What was committed since the load was judged.
    look: Cell<Look>,
    /// Whether it was heavy then.
    is_heavy: Cell<bool>,
}

#[derive(Clone, Copy, Default)]
struct Look {
    begun: Duration,
    commits: u64,
    bytes: u64,
    /// Whether somebody waited for any of them.
    awaited: bool,
}

impl Preparation {
    fn note_commit(&self, (commit, bytes): (Commit, usize), now: Duration, heavy: HeavyLoad) {
        let mut look = self.look.get();
        look.commits += 1;
        look.bytes += bytes as u64;
        look.awaited |= commit != Commit::Unawaited;
        let lasted = now.saturating_sub(look.begun);
        if lasted >= LOOK {
            let is_large = look.bytes >= look.commits * heavy.commit_bytes_min;
            let is_faster_than = |limit: u64| look.bytes as f64 >= limit as f64 * lasted.as_secs_f64();
            self.is_heavy.set(
                (is_large && is_faster_than(heavy.bytes_per_second_min))
                    || (!look.awaited && is_faster_than(heavy.unawaited_bytes_per_second_min)),
            );
            look = Look { begun: now, ..Look::default() };
        }
        self.look.set(look);
    }
}

/// Clears the flag and wakes those who wait, also when the task that prepares is dropped half-way.
struct Preparing<'a>(&'a Preparation);

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        self.0.is_running.set(false);
        self.0.moved.notify();
    }
}

impl<R: Runtime> Log<R> {
    /// Waits until `segment`, whose file exists, is ready for a `commit` of so many bytes up to `end`, and sees to it
    /// that it will be for what comes after. All of them must be written: where they go may not be filled.
    pub(super) async fn ensure_prepared(
        self: &Rc<Self>,
        segment: &Rc<Segment<R>>,
        commit: (Commit, usize),
        end: u64,
    ) -> Result<(), LogFault> {
        let preparation = &self.preparation;
        preparation.note_commit(commit, self.context.runtime.monotonic(), self.context.heavy_load);
        loop {
            if segment.prepared_end.get() >= end {
                if !preparation.is_heavy.get() {
                    self.prepare_ahead(segment, end);
                }
                return Ok(());
            }
            if preparation.is_running.get() {
                // Not for all of it: a step takes longer than a commit may.
                let is_ready = || !preparation.is_running.get() || segment.prepared_end.get() >= end;
                preparation.moved.wait_until(is_ready).await;
            } else if preparation.is_heavy.get() {
                self.take_room(segment, end).await?;
                segment.prepared_end.set(end);
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
        self.preparation.moved.wait_until(|| !self.preparation.is_running.get()).await;
    }

    fn prepare_ahead(self: &Rc<Self>, segment: &Rc<Segment<R>>, end: u64) {
        let prepared = segment.prepared_end.get();
        let target = self.next_step(segment);
        // Begin while half of the last step is left.
        let plenty = prepared - end > step_bytes(prepared) / 2;
        if plenty || target <= prepared || self.preparation.is_running.get() {
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
        self.end_of_step(prepared, step_bytes(prepared))
    }

    /// Where a step of so many `bytes` ends that begins at `from`: behind the segment there is none.
    fn end_of_step(&self, from: u64, bytes: u64) -> u64 {
        let block = u64::from(self.context.block_bytes);
        (from + bytes).min(self.context.segment_bytes.next_multiple_of(block)).max(from)
    }

    /// Has the file system give `segment` room up to `end` at least.
    async fn take_room(&self, segment: &Segment<R>, end: u64) -> Result<(), LogFault> {
        let has = segment.prepared_end.get().max(segment.allocated_end.get());
        if has >= end {
            return Ok(());
        }
        let some = self.end_of_step(has, has.clamp(STEP_BYTES_MIN, ROOM_BYTES_MAX)).max(end);
        // What was accepted may use the reserve, what may come may not.
        let target = if self.context.room.has_less_than(some - has) { end } else { some };
        let file = segment.file.borrow().clone().expect("it has a file"); // why: callers create it first
        let taken = file.allocate(target).await;
        taken.map_err(|error| LogFault::from_io("taking room for", &segment.path, &error))?;
        self.context.room.take(target - has);
        segment.allocated_end.set(target);
        Ok(())
    }

    async fn prepare_to(&self, segment: &Segment<R>, target: u64) -> Result<(), LogFault> {
        if self.end.has_come() || self.preparation.is_running.replace(true) {
            return Ok(());
        }
        let _guard = Preparing(&self.preparation);
        fill_with_zeros(self, segment, target).await
    }
}

fn step_bytes(prepared: u64) -> u64 {
    prepared.clamp(STEP_BYTES_MIN, STEP_BYTES_MAX)
}

async fn fill_with_zeros<R: Runtime>(log: &Log<R>, segment: &Segment<R>, target: u64) -> Result<(), LogFault> {
    let file = segment.file.borrow().clone().expect("prepared segments have a file"); // why: callers create it first
    let filled =
        write_zeros(&log.context, &*file, (&segment.prepared_end, target), || log.preparation.moved.notify()).await;
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
            read::ReadRange,
            room::Room,
        },
        record::check_stored_header,
        runtime::{
            OpenMode,
            sim::{Sim, SimConfig},
        },
        types::Offset,
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
                let (preparing, prepared) = (log.preparation.is_running.get(), log.active().prepared_end.get());
                append_each(&log, &batch_of(1_000_000), offset..offset + 1).await;
                let has_waited = preparing && prepared < log.active().end_position.get();
                waited += u32::from(has_waited && log.preparation.is_running.get());
                assert!(log.active().prepared_end.get() >= log.active().end_position.get());
            }
            assert!(waited > 0, "no commit went on while the rest of a step was prepared");
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn a_load_is_heavy_that_is_of_large_commits_and_fast_or_that_nobody_waits_for() {
        let heavy =
            HeavyLoad { commit_bytes_min: 1000, bytes_per_second_min: 100_000, unawaited_bytes_per_second_min: 10_000 };
        // How many commits of how many bytes in so many milliseconds.
        let after = |preparation: &Preparation,
                     commit: Commit,
                     (from, commits, bytes, millis): (u64, u64, usize, u64)| {
            for nth in 1..=commits {
                preparation.note_commit((commit, bytes), Duration::from_millis(from + millis * nth / commits), heavy);
            }
            preparation.is_heavy.get()
        };
        for (commits, bytes, is_heavy) in [(10, 1000, true), (20, 999, false), (9, 1000, false), (5, 2000, true)] {
            let load = (0, commits, bytes, 100);
            assert_eq!(after(&Preparation::default(), Commit::Written, load), is_heavy, "{commits} of {bytes}");
        }
        let preparation = Preparation::default();
        assert!(after(&preparation, Commit::Durable, (0, 100, 1000, 1000)));
        assert!(after(&preparation, Commit::Durable, (1000, 1, 10, 99)), "it was not looked at for long enough");
        assert!(!after(&preparation, Commit::Durable, (1099, 1, 1000, 5000)), "a load is heavy after a lull");
        for (bytes, is_heavy) in [(100, true), (99, false)] {
            let load = (0, 10, bytes, 100);
            assert_eq!(after(&Preparation::default(), Commit::Unawaited, load), is_heavy, "10 of {bytes}");
        }
        let preparation = Preparation::default();
        after(&preparation, Commit::Written, (0, 1, 100, 10));
        assert!(!after(&preparation, Commit::Unawaited, (10, 9, 100, 90)), "somebody waited for one of them");
    }

    #[test]
    fn under_a_heavy_load_room_is_taken_and_not_filled() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let mut context = context_of(&cores[0], 512, 64 << 20);
        let heavy_load = HeavyLoad { commit_bytes_min: 100_000, bytes_per_second_min: 1 << 20, ..HeavyLoad::default() };
        Rc::get_mut(&mut context).unwrap().heavy_load = heavy_load;
        let (large, small) = (batch_of(1_000_000), batch_of(1000));
        let story = async move {
            let log = open(&context).await.log;
            let pause = || context.runtime.sleep(Duration::from_millis(20));
            for offset in 0..30 {
                append_each(&log, &large, offset..offset + 1).await;
                pause().await;
            }
            let segment = log.active();
            let ends = || [&segment.end_position, &segment.prepared_end, &segment.allocated_end].map(Cell::get);
            let [end, prepared, allocated] = ends();
            assert_eq!(end, prepared, "something was filled with zeros");
            assert!((end + 1..64 << 20).contains(&allocated), "{allocated} bytes with {end} in use");
            let file = segment.file.borrow().clone().unwrap();
            assert_eq!(file.size().await.unwrap(), allocated);
            for offset in 30..60 {
                append_each(&log, &small, offset..offset + 1).await;
                pause().await;
            }
            let [end, prepared, allocated] = ends();
            assert!(end < prepared && prepared > allocated, "the load is light, and nothing was filled: {prepared}");
            log.sync().await.unwrap();
            let log = open(&context).await.log;
            assert_eq!(log.end_offset.get(), Offset(60));
            let mut range = ReadRange { offset: Offset(0), end: Offset(60), max_bytes: 1 };
            while range.offset < range.end {
                let pieces = log.read_disk(range).await.unwrap();
                range.offset = check_stored_header(&pieces[0]).unwrap().end_offset();
            }
        };
        sim.block_on(&cores[0], story, 10_000_000).unwrap();
    }
}

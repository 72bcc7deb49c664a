//! Sealed segments through mappings (`use_mmap`): instead of reading bytes into memory of its own, a log maps the part
//! of the file that holds them, and hands that out.
//!
//! A mapping never decides what is lost. If the drive does not give the bytes, if anything in them is damaged, or if
//! there is no room for them, the same bytes are read with O_DIRECT, and what that says counts: so an unreadable sector
//! costs no more than without mappings, and stale pages of the system are not taken for the drive's.
//!
//! Who reads on is given mappings of what he wants, past the cache. Who jumps about is given *windows*: the index
//! blocks that begin in the same [`WINDOW_BYTES`] of the file, mapped and checked together, and kept. All mappings of a
//! core, kept or in use by answers that nobody has fetched, are within one bound; beyond it nothing more is mapped.
//!
//! Only what will never be written or cut again may be mapped: sealed segments, until they are deleted. Whoever gives
//! back their space claims the file first (`removal`), and waits for mappings that answers still use.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use send_wrapper::SendWrapper;

use super::{
    Log,
    ahead::Share,
    cache::{BlockCache, Opening},
    read::{Checked, Stretch, check},
    segment::Segment,
};
use crate::{
    runtime::{File, MapError, Runtime},
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// Index blocks that begin in the same stretch of this length are mapped together when one of them is wanted: what the
/// system reads at least for a mapping anyway, and few enough mappings for its limit on their number.
const WINDOW_BYTES: u64 = 128 << 10;

/// What a mapping is rounded to: the system's page.
const PAGE_BYTES: u64 = 4096;

/// The mappings of a core.
pub struct Windows {
    /// Windows by their first block, checked.
    kept: BlockCache,
    used_bytes: Rc<Cell<usize>>,
    bytes_max: usize,
    /// The system refused one: it is not asked again.
    refused: RefCell<Option<String>>,
}

impl Windows {
    /// Room for `bytes_max` bytes of mappings, `kept_bytes` of them kept for the next reader. Without any, nothing is
    /// mapped.
    pub fn new(kept_bytes: u64, bytes_max: usize) -> Self {
        let refused = RefCell::new(None);
        Windows { kept: BlockCache::new(kept_bytes), used_bytes: Rc::default(), bytes_max, refused }
    }

    /// Bytes mapped now, and how many there may be.
    pub fn used_bytes(&self) -> (usize, usize) {
        (self.used_bytes.get(), self.bytes_max)
    }

    /// Forgets the windows of a log's segments but those that it still `holds`.
    fn forget(&self, log: Opening, holds: impl Fn(Offset) -> bool) {
        self.kept.retain(|key| key.log != log || holds(key.base_offset));
    }

    fn refuse(&self, reason: String) {
        if self.refused.borrow().is_none() {
            tracing::warn!(reason, "sealed segments are read with direct I/O from now on, as with use_mmap: false");
            *self.refused.borrow_mut() = Some(reason);
        }
    }
}

/// A mapping and the room that it takes. In this order: the room is free once the mapping is gone.
struct Mapped<M>(SendWrapper<(M, Share)>);

impl<M: AsRef<[u8]>> AsRef<[u8]> for Mapped<M> {
    fn as_ref(&self) -> &[u8] {
        self.0.0.as_ref()
    }
}

impl<R: Runtime> Log<R> {
    fn may_be_mapped(&self, segment: &Segment<R>) -> bool {
        let Windows { bytes_max, refused, .. } = &self.context.windows;
        let is_final = segment.sealed.get() || planted(PlantedBug::MapUnsealed);
        *bytes_max > 0 && refused.borrow().is_none() && is_final
    }

    /// The bytes of a stretch by a mapping, checked and intact. `None` if that cannot be had.
    pub(super) async fn map_stretch(&self, segment: &Segment<R>, stretch: &Stretch) -> Option<Bytes> {
        if !self.may_be_mapped(segment) {
            return None;
        }
        let windows = &self.context.windows;
        let pages = stretch.end.next_multiple_of(PAGE_BYTES) - stretch.start / PAGE_BYTES * PAGE_BYTES;
        let share = Share::take(&windows.used_bytes, pages as usize, windows.bytes_max)?;
        let file = segment.file.borrow().clone()?;
        match file.map(stretch.start, (stretch.end - stretch.start) as usize).await {
            Ok(mapping) => {
                self.context.metrics.mapped_reads.add(1);
                self.context.metrics.mapped_read_bytes.add(pages);
                let bytes = Bytes::from_owner(Mapped(SendWrapper::new((mapping, share))));
                check(segment, stretch, &bytes).is_empty().then_some(bytes)
            }
            Err(MapError::Refused(error)) => {
                windows.refuse(error.to_string());
                None
            }
            Err(MapError::Unreadable(error)) => {
                tracing::debug!(file = %segment.path.display(), %error, "it is read with direct I/O instead");
                None
            }
        }
    }

    /// What `stretch` holds, if one window does, from the window. `None` if that cannot be had.
    pub(super) async fn windowed(&self, segment: &Rc<Segment<R>>, stretch: &Stretch) -> Option<Checked> {
        if !self.may_be_mapped(segment) {
            return None;
        }
        let window = self.window_around(segment, stretch).filter(|window| stretch.end <= window.end)?;
        let (kept, metrics) = (&self.context.windows.kept, &self.context.metrics);
        let key = window.cached_as?;
        let bytes = match kept.get(&key) {
            Some(bytes) => {
                metrics.cache_hits.add(1);
                bytes
            }
            None => {
                metrics.cache_misses.add(1);
                let bytes = self.map_stretch(segment, &window).await?;
                // Not of a segment that was deleted meanwhile: nobody would ever forget it.
                if self.holds(key.base_offset) && !self.end.has_come() {
                    kept.insert(key, bytes.clone());
                }
                bytes
            }
        };
        // Padding at the end of the file may be missing: that is no damage.
        let at = |position: u64| ((position - window.start) as usize).min(bytes.len());
        let bytes = bytes.slice(at(stretch.start)..at(stretch.end));
        Some(Checked { start: stretch.start, bytes, bound: stretch.bound, losses: Vec::new() })
    }

    /// The index blocks that begin in the same window as `stretch`, unless some of their records are known to be lost.
    fn window_around(&self, segment: &Rc<Segment<R>>, stretch: &Stretch) -> Option<Stretch> {
        let index = segment.index.borrow();
        let index = index.as_ref()?;
        let middle = index.block_of(stretch.first)?;
        let is_inside = |number: usize| {
            index.block(number).filter(|block| block.start / WINDOW_BYTES == middle.start / WINDOW_BYTES)
        };
        let (mut first, mut last) = (middle, middle);
        while let Some(before) = first.number.checked_sub(1).and_then(is_inside) {
            first = before;
        }
        while let Some(after) = is_inside(last.number + 1) {
            last = after;
        }
        let offset = |number: usize| index.entry_offset(number);
        let window = Stretch {
            start: first.start,
            end: last.end.unwrap_or(segment.end_position.get()),
            first: offset(first.number)?,
            bound: offset(last.number + 1).unwrap_or_else(|| self.written_offset(segment)),
            cached_as: Some(self.block_key(segment, first.number)),
        };
        (!self.losses.any_in(window.first, window.bound)).then_some(window)
    }

    /// Forgets the mappings of segments that are no part of the log any more. Answers may still use some.
    pub(super) fn forget_windows(&self) {
        self.context.windows.forget(self.opening, |base| self.holds(base));
        self.ahead.retain(|base| self.holds(base));
    }

    /// Forgets what was read of the segment at `base`. Answers may still use some.
    pub(super) fn forget_windows_of(&self, base: Offset) {
        self.context.windows.forget(self.opening, |other| other != base);
        self.ahead.retain(|other| other != base);
    }

    /// Forgets all mappings. Answers may still use some.
    pub(super) fn forget_all_windows(&self) {
        self.context.windows.forget(self.opening, |_| false);
        self.ahead.retain(|_| false);
    }
}

impl<R: Runtime> Drop for Log<R> {
    fn drop(&mut self) {
        // The last who read from it is gone: nobody else can keep one.
        self.forget_all_windows();
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::{
        error::RequestError,
        log::{
            LogContext,
            fixture::{DIR, P, append_each, batch_of, mapping_context, open},
            loading::headers_of,
            read::ReadRange,
            recovery,
            removal::Reaper,
            segment::segment_path,
        },
        record::ProducerHistory,
        runtime::sim::{Sim, SimConfig, SimRuntime},
    };

    const BATCH: usize = 8192;
    const STEPS: u64 = 5_000_000;
    /// Batches of a segment of the tests' size.
    const PER_SEGMENT: u64 = 127;

    /// Runs `story` on a log of three full segments and one that is active, with room for `bytes_max` bytes mapped.
    fn with_log<Fut: Future<Output = ()> + 'static>(
        bytes_max: usize,
        story: impl FnOnce(Rc<Sim>, Rc<Log<SimRuntime>>) -> Fut + 'static,
    ) {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let context = mapping_context(&cores[0], bytes_max);
        let world = Rc::clone(&sim);
        let whole = async move {
            let log = open(&context).await.log;
            append_each(&log, &batch_of(BATCH), 0..4 * PER_SEGMENT - 10).await;
            let bases: Vec<u64> = log.segments.borrow().iter().map(|segment| segment.base_offset().0).collect();
            assert_eq!(bases, [0, PER_SEGMENT, 2 * PER_SEGMENT, 3 * PER_SEGMENT]);
            story(world, log).await;
        };
        sim.block_on(&cores[0], whole, STEPS).unwrap();
    }

    async fn read(log: &Rc<Log<SimRuntime>>, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, RequestError> {
        log.read_disk(ReadRange { offset: Offset(from), end: log.end_offset.get(), max_bytes }).await
    }

    fn first_of(pieces: &[Bytes]) -> u64 {
        headers_of(&pieces[0])[0].base_offset.0
    }

    fn mapped_and_read(context: &LogContext<SimRuntime>) -> (u64, u64) {
        (context.metrics.mapped_reads.get(), context.metrics.disk_reads.get())
    }

    #[test]
    fn who_jumps_about_in_sealed_segments_finds_windows_that_were_mapped_once() {
        with_log(1 << 20, async |_, log| {
            // Neighbours of 16 batches to a window; from one window to another and back.
            for offset in [20, 200, 21, 205, 24, 201, 20] {
                assert_eq!(first_of(&read(&log, offset, 1).await.unwrap()), offset);
            }
            assert_eq!(mapped_and_read(&log.context), (2, 0));
            assert_eq!(log.context.metrics.cache_hits.get(), 5);
        });
        with_log(1 << 20, async |_, log| {
            for offset in [40, 33, 46] {
                assert_eq!(first_of(&read(&log, offset, 1).await.unwrap()), offset);
            }
            assert_eq!(mapped_and_read(&log.context), (1, 0), "also from the middle of the window");
        });
    }

    #[test]
    fn who_reads_on_is_given_mappings_and_the_active_segment_is_never_mapped() {
        with_log(4 << 20, async |_, log| {
            let mut next = 0;
            while next < 3 * PER_SEGMENT {
                let pieces = read(&log, next, 100_000).await.unwrap();
                assert_eq!(first_of(&pieces), next);
                next = pieces.iter().flat_map(headers_of).last().unwrap().end_offset().0;
            }
            let (mapped, direct) = mapped_and_read(&log.context);
            assert!(mapped >= 5, "{mapped} mappings");
            while next < log.end_offset.get().0 {
                let pieces = read(&log, next, 100_000).await.unwrap();
                next = pieces.iter().flat_map(headers_of).last().unwrap().end_offset().0;
            }
            assert!(mapped_and_read(&log.context).1 > direct, "the active segment was not read with direct I/O");
            let (used, bytes_max) = log.context.windows.used_bytes();
            assert!(used <= bytes_max, "{used} of {bytes_max} bytes");
        });
    }

    #[test]
    fn answers_that_nobody_fetches_keep_others_from_mappings_and_from_nothing_else() {
        with_log(256 << 10, async |_, log| {
            let mut answers = Vec::new();
            for offset in (0..3 * PER_SEGMENT).step_by(20) {
                answers.push(read(&log, offset, 1).await.unwrap());
                let (used, bytes_max) = log.context.windows.used_bytes();
                assert!(used <= bytes_max, "{used} of {bytes_max} bytes");
            }
            assert!(answers.iter().zip((0..).step_by(20)).all(|(pieces, offset)| first_of(pieces) == offset));
            let (mapped, direct) = mapped_and_read(&log.context);
            assert!(mapped > 0 && direct > 0, "{mapped} mappings, {direct} reads");
            answers.clear();
            log.forget_all_windows();
            assert_eq!(log.context.windows.used_bytes().0, 0);
            read(&log, 100, 1).await.unwrap();
            assert_eq!(mapped_and_read(&log.context), (mapped + 1, direct), "the room is free again");
        });
    }

    #[test]
    fn damage_in_a_window_costs_what_is_damaged_and_not_its_neighbours() {
        with_log(1 << 20, async |sim, log| {
            let position = {
                let segments = log.segments.borrow();
                let index = segments[1].index.borrow();
                index.as_ref().unwrap().block_of(Offset(PER_SEGMENT + 50)).unwrap().start
            };
            assert!(sim.flip_bit_at(&segment_path(Path::new(DIR), Offset(PER_SEGMENT)), position + 100));
            let lost = (PER_SEGMENT..2 * PER_SEGMENT).collect::<Vec<_>>();
            let mut served = Vec::new();
            for offset in lost {
                match read(&log, offset, 1).await {
                    Ok(pieces) => served.push(first_of(&pieces)),
                    Err(RequestError::Corrupt { from, to, .. }) => {
                        assert_eq!((from, to), (Offset(offset), Offset(offset + 1)));
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert_eq!(served.len() as u64, PER_SEGMENT - 1, "{served:?}");
            assert_eq!(log.context.metrics.damages_found.get(), 1);
        });
    }

    #[test]
    fn a_system_that_refuses_mappings_is_asked_once_and_all_is_read() {
        with_log(1 << 20, async |sim, log| {
            sim.refuse_mappings(true);
            for offset in [20, 200, 21] {
                assert_eq!(first_of(&read(&log, offset, 1).await.unwrap()), offset);
            }
            assert!(log.context.windows.refused.borrow().is_some());
            sim.refuse_mappings(false);
            assert_eq!(first_of(&read(&log, 300, 1).await.unwrap()), 300);
            assert_eq!(mapped_and_read(&log.context).0, 0);
            assert_eq!(log.context.windows.used_bytes().0, 0);
        });
    }

    #[test]
    fn a_deleted_segment_keeps_its_space_while_an_answer_uses_it_and_the_others_do_not_wait() {
        with_log(1 << 20, async |sim, log| {
            let runtime = log.context.runtime.clone();
            let answer = read(&log, 20, 1).await.unwrap();
            read(&log, 200, 1).await.unwrap();
            log.keep_producers(&ProducerHistory::default());
            log.keep_start(Offset(3 * PER_SEGMENT)).await.unwrap();
            log.release_before(Offset(3 * PER_SEGMENT));
            while log.has_released() {
                log.bury().await.unwrap();
                runtime.sleep(Duration::from_millis(5)).await;
            }
            runtime.sleep(Duration::from_secs(1)).await;
            let deleted = || {
                let files = sim.files().into_iter();
                files.filter(|(path, _)| path.extension().is_some_and(|suffix| suffix == "del")).collect::<Vec<_>>()
            };
            assert_eq!(deleted().len(), 1, "only what is still used: {:?}", deleted());
            assert_eq!(first_of(&answer), 20);
            drop(answer);
            runtime.sleep(Duration::from_secs(1)).await;
            assert_eq!(deleted(), []);
            assert_eq!(log.context.windows.used_bytes().0, 0);
        });
    }

    #[test]
    fn of_a_deleted_log_the_file_that_an_answer_uses_stays_until_then_and_all_others_go() {
        with_log(1 << 20, async |sim, log| {
            let (runtime, context) = (log.context.runtime.clone(), Rc::clone(&log.context));
            let answer = read(&log, 200, 1).await.unwrap();
            log.close().await;
            drop(log);
            assert!(context.windows.used_bytes().0 > 0, "the answer's");
            Reaper::remove(&context, Path::new(DIR).to_path_buf());
            runtime.sleep(Duration::from_secs(1)).await;
            let files = || sim.files().into_iter().map(|(path, _)| path).collect::<Vec<_>>();
            assert_eq!(files(), [segment_path(Path::new(DIR), Offset(PER_SEGMENT))]);
            assert_eq!(first_of(&answer), 200);
            drop(answer);
            runtime.sleep(Duration::from_secs(1)).await;
            assert_eq!(files(), Vec::<std::path::PathBuf>::new());
            assert!(runtime.list_dir(Path::new(DIR)).await.is_err(), "the folder is there");
            assert_eq!(context.windows.used_bytes().0, 0);
        });
    }

    #[test]
    fn a_log_that_forgets_its_windows_leaves_those_of_others_and_of_a_segment_those_of_the_next() {
        with_log(4 << 20, async |_, log| {
            let context = Rc::clone(&log.context);
            let (partition, dir) = (crate::types::PartitionId { log: crate::types::LogUid(2), ..P }, "/q");
            context.runtime.create_dir_all(Path::new(dir)).await.unwrap();
            let other = recovery::open(&context, partition, dir.into()).await.unwrap().log;
            append_each(&other, &batch_of(BATCH), 0..2 * PER_SEGMENT).await;
            let both = async |offset| {
                for log in [&log, &other] {
                    assert_eq!(first_of(&read(log, offset, 1).await.unwrap()), offset);
                }
                mapped_and_read(&context).0
            };
            assert_eq!((both(20).await, both(20).await, both(PER_SEGMENT + 20).await), (2, 2, 3), "two are active");
            log.forget_windows_of(Offset(0));
            assert_eq!((both(PER_SEGMENT + 20).await, both(20).await), (3, 4));
            log.forget_all_windows();
            assert_eq!((both(20).await, both(20).await), (5, 5));
        });
    }
}

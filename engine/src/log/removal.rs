//! Giving up the old end of a log: the look at what may go, and the going.
//!
//! The order is what matters. First the start file says where the log begins now, durably; only then is anybody told,
//! and only then do the segments before it lose their names: renamed to `….del`, their sidecars removed, the directory
//! synced once. A crash anywhere between leaves segments that mean nothing, which the next opening removes.
//!
//! A file system that discards freed blocks does it when a file loses its last name and its last opener, and may take
//! seconds for gigabytes. So the space itself is given back last and in small pieces, by [`Reaper`].

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use super::{
    Log, LogContext, LogFault,
    index::Index,
    producer_snapshot,
    retention::{Active, Limits, is_expired, must_roll, surplus},
    segment::{Segment, SegmentHeader, Snapshot, belongs_to_log, sidecars_of},
    start,
};
use crate::{
    limits::SEGMENT_HEADER_BYTES,
    record::ProducerHistory,
    runtime::{File, OpenMode, Runtime},
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// The suffix of a segment that is no part of its log any more.
pub const DELETED_SUFFIX: &str = "del";

/// What a look at the log says may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where the log may begin.
    pub start: Offset,
    /// The active segment should be sealed first.
    pub roll: bool,
}

type SegmentRef<R> = Rc<Segment<R>>;

impl<R: Runtime> Log<R> {
    /// What `limits` let go at `now_ms`.
    ///
    /// Errors: what was needed to know it could not be read.
    pub async fn judge(&self, limits: Limits, now_ms: i64) -> io::Result<Verdict> {
        let (segments, is_last) = self.on_disk();
        let (active, sealed) = segments.split_last().expect("a log has an active segment"); // why: see `on_disk`
        let active_bytes = active.end_position.get() - SEGMENT_HEADER_BYTES;
        let sizes: Vec<u64> = sealed.iter().map(|segment| segment.end_position.get()).collect();
        let mut goes = limits.bytes.map_or(0, |limit| surplus(&sizes, active_bytes, limit));
        if let Some(age_ms) = limits.age_ms {
            while goes < sealed.len() && is_expired(self.newest_of(&segments, goes).await?, now_ms, age_ms) {
                goes += 1;
            }
        }
        let all_expired = goes == sealed.len();
        if planted(PlantedBug::DeleteOneTooMany) && goes > 0 && goes < sealed.len() {
            goes += 1;
        }
        let roll = is_last && must_roll(self.active_facts(active, now_ms), all_expired, limits, now_ms);
        Ok(Verdict { start: segments[goes].base_offset(), roll })
    }

    /// The segments that have a file, at least one: those before the newest of them are sealed. And whether that is the
    /// last there is; else its successor is about to get a file.
    pub(super) fn on_disk(&self) -> (Vec<SegmentRef<R>>, bool) {
        let segments = self.segments.borrow();
        let newest = segments.iter().rposition(|segment| segment.file.borrow().is_some());
        // A log that could not be opened for damage of its last segment has no open file; all of it is on the disk.
        let count = newest.map_or(segments.len(), |at| at + 1);
        (segments[..count].to_vec(), count == segments.len())
    }

    fn active_facts(&self, active: &Segment<R>, now_ms: i64) -> Option<Active> {
        let end = active.end_position.get();
        let max_timestamp = active.index.borrow().as_ref().map(Index::max_timestamp)?;
        // When it was written last, as far as the looks at it tell: the hot path asks no clock for this.
        if active.seen.get().0 != end {
            active.seen.set((end, now_ms));
        }
        let newest_ms = max_timestamp.min(active.seen.get().1);
        (end > SEGMENT_HEADER_BYTES).then_some(Active { bytes: end - SEGMENT_HEADER_BYTES, newest_ms })
    }

    /// The time of the newest record of sealed segment `at`; its records came before its successor was made.
    async fn newest_of(&self, segments: &[SegmentRef<R>], at: usize) -> io::Result<i64> {
        let segment = &segments[at];
        if let Some(known) = segment.newest_ms.get() {
            return Ok(known);
        }
        let sealed_ms = self.header_of(&segments[at + 1]).await?.created_ms;
        let loaded = segment.index.borrow().as_ref().map(Index::max_timestamp);
        let max_timestamp = match loaded {
            Some(max_timestamp) => Some(max_timestamp),
            None => self.max_timestamp_of(segment).await,
        };
        let newest = max_timestamp.map_or(sealed_ms, |newest| newest.min(sealed_ms));
        segment.newest_ms.set(Some(newest));
        Ok(newest)
    }

    /// The newest timestamp in a segment that is not loaded, from its sidecar. The index is not kept: there may be
    /// thousands. `None` if that cannot be had; to rebuild an index just for this is not worth it.
    async fn max_timestamp_of(&self, segment: &Segment<R>) -> Option<i64> {
        let header = self.header_of(segment).await.ok()?;
        let real = Segment::planned(&self.dir, header);
        real.end_position.set(segment.end_position.get());
        self.read_sidecar(&real).await.map(|index| index.max_timestamp())
    }

    /// A segment's header: of one that was not read yet, from its file.
    pub(super) async fn header_of(&self, segment: &Segment<R>) -> io::Result<SegmentHeader> {
        if segment.file.borrow().is_some() {
            return Ok(segment.header);
        }
        let file = self.context.runtime.open(&segment.path, OpenMode::Existing).await?;
        let block = file.read_at(0, SEGMENT_HEADER_BYTES as usize).await?;
        SegmentHeader::decode(&block).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Seals the active segment, unless it is empty: from now on `end`, the end of the log, is in the next one, whose
    /// file is there when this returns. Nothing waits for the device, and nobody flushes meanwhile.
    /// `producers` is what its batches say of their producers.
    pub async fn roll(self: &Rc<Self>, end: Offset, producers: &ProducerHistory) -> Result<(), LogFault> {
        assert!(self.unwritten_bytes() == 0, "{} bytes wait for the device", self.unwritten_bytes());
        if self.active().base_offset() != end {
            self.tail.borrow_mut().seal();
            let next = Rc::new(Segment::planned(&self.dir, self.new_header(end, self.epoch.get())));
            self.segments.borrow_mut().push(next);
            self.keep_producers(producers);
        }
        let active = self.active();
        if active.file.borrow().is_none() {
            self.begin_segment(&active).await?;
        }
        Ok(())
    }

    /// Makes `start` the beginning of the log, durably. What lies before it may still be read until it is released.
    pub async fn keep_start(&self, start: Offset) -> Result<(), LogFault> {
        start::write(&self.context.runtime, &self.dir, (self.partition.log, self.partition.index), start).await
    }

    /// Takes the segments that lie before `start` whole out of the log, for [`Log::bury`]. Never the newest that has a
    /// file: it may still be written.
    pub fn release_before(&self, start: Offset) {
        let (segments, _) = self.on_disk();
        let count = released(&segments, start);
        let gone = self.segments.borrow_mut().drain(..count).collect::<Vec<_>>();
        self.released.borrow_mut().extend(gone);
        self.losses.forget_before(start);
    }

    /// Whether segments were released that still have their names.
    pub fn has_released(&self) -> bool {
        !self.released.borrow().is_empty()
    }

    /// Whether a segment of the log begins with `base`.
    pub(super) fn holds(&self, base: Offset) -> bool {
        self.segments.borrow().binary_search_by_key(&base, |segment| segment.base_offset()).is_ok()
    }

    /// Takes their names from the segments that were released, and leaves the rest to the reaper.
    ///
    /// Errors: the operating system's; those whose turn did not come are tried again at the next call.
    pub async fn bury(&self) -> io::Result<()> {
        let runtime = &self.context.runtime;
        let mut deleted = Vec::new();
        let Some(needed) = self.needed_for_producers().await? else { return Ok(()) };
        loop {
            let next = self.released.borrow().first().filter(|oldest| oldest.base_offset() < needed).cloned();
            let Some(segment) = next else { break };
            for sidecar in sidecars_of(&segment.path) {
                unless_gone(runtime.remove_file(&sidecar).await)?;
            }
            let path = segment.path.with_extension(DELETED_SUFFIX);
            unless_gone(runtime.rename(&segment.path, &path).await)?;
            self.released.borrow_mut().retain(|other| !Rc::ptr_eq(other, &segment));
            deleted.push((path, segment));
        }
        if deleted.is_empty() {
            return Ok(());
        }
        runtime.sync_dir(&self.dir).await?;
        for (path, segment) in deleted {
            self.context.metrics.segments_deleted.add(1);
            self.context.metrics.segment_bytes_deleted.add(segment.end_position.get());
            // The reaper closes it, once nobody reads from it any more.
            let file = segment.file.borrow_mut().take();
            self.forget_windows();
            Reaper::reap(&self.context, Remains { path, file });
        }
        Ok(())
    }

    /// The segment from which on the producers of all batches are known again after a loss of power: the newest with a
    /// snapshot that is durable. `None` if there is none yet: snapshots are written behind the acks.
    async fn needed_for_producers(&self) -> io::Result<Option<Offset>> {
        let (segments, _) = self.on_disk();
        let released = self.released.borrow().clone();
        for segment in segments.iter().rev().chain(released.iter().rev()) {
            let state = segment.snapshot.get();
            if state == Snapshot::Durable || (state == Snapshot::Unknown && self.has_snapshot(segment).await?) {
                segment.snapshot.set(Snapshot::Durable);
                return Ok(Some(segment.base_offset()));
            }
        }
        Ok(None)
    }

    /// Whether an earlier life of the server left a snapshot beside `segment`; if so it is durable now.
    async fn has_snapshot(&self, segment: &Segment<R>) -> io::Result<bool> {
        match self.context.runtime.open(&segment.producers_path(), OpenMode::Existing).await {
            Ok(file) => file.fdatasync().await?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        self.context.runtime.sync_dir(&self.dir).await?;
        let Ok(header) = self.header_of(segment).await else { return Ok(false) };
        Ok(producer_snapshot::load(&self.context, segment, &header).await.is_some())
    }

    /// Lets go of the log's files. Nothing writes to them any more when this returns: they may be another's then.
    pub async fn close(&self) {
        self.come_to_rest().await;
        self.segments.borrow().iter().for_each(|segment| drop(segment.file.borrow_mut().take()));
    }
}

/// How many of `segments`, which are on the disk in order, lie before `start` whole.
pub(super) fn released<R: Runtime>(segments: &[SegmentRef<R>], start: Offset) -> usize {
    segments.iter().skip(1).take_while(|next| next.base_offset() <= start).count()
}

pub(super) fn unless_gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What is given back at once: a device that takes 0.2 ms to discard a MiB keeps its writes waiting for 1 ms.
const STEP_BYTES: u64 = 4 << 20;

/// Between two steps at least: leaves the core's helper thread to others. Bounds the rate to some 4 GB/s.
const STEP_PAUSE_MIN: Duration = Duration::from_millis(1);

/// Between two steps at most: a drive that stalled once has not become slow.
const STEP_PAUSE_MAX: Duration = Duration::from_millis(100);

/// For how many times as long as a step took the device is left to others. Where discards are slow they share its time
/// with writes: without this the steps come one upon the other, and p90 of writes beside them is 2.8 instead of 1.0 ms.
const STEPS_LEFT_OUT: u32 = 5;

/// Between two looks whether a reader is done.
const PAUSE: Duration = Duration::from_millis(5);

/// After a look at a file that is still mapped.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// A file that nothing needs any more.
pub struct Remains<R: Runtime> {
    path: PathBuf,
    /// Open still, and perhaps read from.
    file: Option<Rc<R::File>>,
}

/// Gives the space of deleted files back, one after the other, a piece at a time. What it does not finish in this life
/// of the process is found by its name in the next.
pub struct Reaper<R: Runtime> {
    waiting: RefCell<VecDeque<Remains<R>>>,
    at_work: Cell<bool>,
}

impl<R: Runtime> Default for Reaper<R> {
    fn default() -> Self {
        Reaper { waiting: RefCell::default(), at_work: Cell::new(false) }
    }
}

impl<R: Runtime> Reaper<R> {
    /// Removes the file or the directory at `path` when its turn comes. Of a directory, the files of logs in it, and
    /// itself if that leaves it empty.
    pub fn remove(context: &Rc<LogContext<R>>, path: PathBuf) {
        Self::reap(context, Remains { path, file: None });
    }

    /// How long to wait after a step that took `took`: the less, the more files wait, lest segments come faster than
    /// they go.
    fn pause_after(&self, took: Duration) -> Duration {
        let waiting = u32::try_from(self.waiting.borrow().len()).unwrap_or(u32::MAX);
        (took * STEPS_LEFT_OUT / waiting.saturating_add(1)).clamp(STEP_PAUSE_MIN, STEP_PAUSE_MAX)
    }

    fn reap(context: &Rc<LogContext<R>>, remains: Remains<R>) {
        let reaper = &context.reaper;
        reaper.waiting.borrow_mut().push_back(remains);
        if reaper.at_work.replace(true) {
            return;
        }
        let context = Rc::clone(context);
        context.runtime.clone().spawn(async move {
            loop {
                let next = context.reaper.waiting.borrow_mut().pop_front();
                let Some(Remains { path, file }) = next else { break };
                match remove(&context, &path, file).await {
                    Ok(()) => {}
                    // An answer that nobody has fetched uses a mapping of it. The others need not wait for that.
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        context.reaper.waiting.borrow_mut().push_back(Remains { path, file: None });
                        context.runtime.sleep(BUSY_PAUSE).await;
                    }
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "what was deleted is removed at the next start");
                    }
                }
            }
            context.reaper.at_work.set(false);
        });
    }
}

async fn remove<R: Runtime>(context: &LogContext<R>, path: &Path, file: Option<Rc<R::File>>) -> io::Result<()> {
    let runtime = &context.runtime;
    while file.as_ref().is_some_and(|file| Rc::strong_count(file) > 1) {
        runtime.sleep(PAUSE).await;
    }
    // Closed while it still has a name: whoever closes a file that has none waits for its blocks to be freed.
    drop(file);
    match runtime.list_dir(path).await {
        Ok(_) => remove_dir(context, path).await,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => unless_gone(remove_file(context, path).await),
    }
}

/// Two levels: the folder of a log, and those of its partitions in it. `ResourceBusy` if some files are mapped, which
/// are then left.
async fn remove_dir<R: Runtime>(context: &LogContext<R>, path: &Path) -> io::Result<()> {
    let runtime = &context.runtime;
    let mut busy = None;
    for inner in runtime.list_dir(path).await? {
        let files = if inner.is_dir { runtime.list_dir(&inner.path).await? } else { vec![inner.clone()] };
        for file in files {
            // What is not ours stays, and the folders with it.
            if !file.is_dir && belongs_to_log(&file.path) {
                match unless_gone(remove_file(context, &file.path).await) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => busy = Some(error),
                    other => other?,
                }
            }
        }
        if inner.is_dir && runtime.list_dir(&inner.path).await?.is_empty() {
            runtime.remove_dir(&inner.path).await?;
        }
    }
    if runtime.list_dir(path).await?.is_empty() {
        runtime.remove_dir(path).await?;
    }
    busy.map_or(Ok(()), Err)
}

async fn remove_file<R: Runtime>(context: &LogContext<R>, path: &Path) -> io::Result<()> {
    let runtime = &context.runtime;
    let file = runtime.open(path, OpenMode::Existing).await?;
    // By whatever core, and not mapped again from here on: to be cut under a mapping is the end of the process.
    if !planted(PlantedBug::CutUnderMapping) && !file.claim().await? {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let mut len = file.size().await?;
    while len > STEP_BYTES {
        len -= STEP_BYTES;
        let begun = runtime.monotonic();
        file.truncate(len).await?;
        runtime.sleep(context.reaper.pause_after(runtime.monotonic() - begun)).await;
    }
    file.truncate(0).await?;
    drop(file);
    runtime.remove_file(path).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::DEVICE_BLOCK_BYTES_MAX,
        log::{
            fixture::{DIR, context, open, placed},
            flush::Commit,
            read::ReadRange,
            recovery::Recovered,
            segment::segment_path,
        },
        record::check_produced,
        runtime::sim::{Sim, SimConfig, SimRuntime, faults::Failure},
    };

    const STEPS: u64 = 1_000_000;

    /// Appends records of half a MiB from `offset` to before `end`: two of them fill a segment.
    async fn append(log: &Rc<Log<SimRuntime>>, offset: u64, end: u64) {
        let batch = batch_of_half_a_mib();
        for offset in offset..end {
            log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, offset));
            log.write_waiting(Commit::Written).await.unwrap();
        }
        log.sync().await.unwrap();
    }

    fn batch_of_half_a_mib() -> bytes::Bytes {
        let mut builder = crate::record::BatchBuilder::new(crate::record::Codec::None);
        builder.push(None, &vec![7; 500_000], &[], 1).unwrap();
        builder.finish().unwrap()
    }

    fn bases(log: &Log<SimRuntime>) -> Vec<u64> {
        log.segments.borrow().iter().map(|segment| segment.base_offset().0).collect()
    }

    fn names(sim: &Sim) -> Vec<String> {
        let name = |(path, _): (PathBuf, u64)| path.file_name().unwrap().to_str().unwrap().to_owned();
        let files = sim.files().into_iter().map(name);
        files.filter(|name| name.ends_with(".seg") || name.ends_with(".del")).collect()
    }

    #[test]
    fn whole_segments_before_the_start_go_the_rest_stays_and_so_does_the_start() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append(&log, 0, 9).await;
            assert_eq!(bases(&log), [0, 2, 4, 6, 8]);
            log.bury().await.unwrap();
            // As the shard does when a segment is begun. Without it nothing is buried: see `needed_for_producers`.
            log.keep_producers(&ProducerHistory::default());
            log.keep_start(Offset(5)).await.unwrap();
            log.release_before(Offset(5));
            assert_eq!(bases(&log), [4, 6, 8]);
            log.bury().await.unwrap();
            assert!(log.has_released(), "what is known of producers was not durable yet");
            while log.has_released() {
                log.bury().await.unwrap();
                context.runtime.sleep(PAUSE).await;
            }
            let Recovered { log, start, end, damage, .. } = open(&context).await;
            assert_eq!((start, end, damage), (Offset(5), Offset(9), None));
            assert_eq!(bases(&log), [4, 6, 8]);
            let range = ReadRange { offset: Offset(5), end, max_bytes: 1 };
            assert_eq!(log.read_disk(range).await.unwrap().len(), 1);
            context.runtime.sleep(100 * PAUSE).await;
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
        assert_eq!(names(&sim), [4, 6, 8].map(|base| format!("{base:020}.seg")), "what was deleted is still there");
    }

    #[test]
    fn segments_before_the_start_may_be_missing_in_any_order() {
        for missing in 0..16 {
            let sim = Sim::new(missing, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let story = async move {
                let log = open(&context).await.log;
                append(&log, 0, 9).await;
                log.keep_start(Offset(8)).await.unwrap();
                for (bit, base) in (0..).zip([0, 2, 4, 6]).filter(|(bit, _)| missing >> bit & 1 == 1) {
                    let path = segment_path(Path::new(DIR), Offset(base));
                    let gone = path.with_extension(DELETED_SUFFIX);
                    if bit % 2 == 0 {
                        context.runtime.rename(&path, &gone).await.unwrap();
                    } else {
                        context.runtime.remove_file(&path).await.unwrap();
                    }
                }
                let Recovered { log, start, end, damage, .. } = open(&context).await;
                assert_eq!((start, end, damage, bases(&log)), (Offset(8), Offset(9), None, vec![8]));
                while log.has_released() {
                    log.bury().await.unwrap();
                }
                context.runtime.sleep(100 * PAUSE).await;
            };
            sim.block_on(&cores[0], story, STEPS).unwrap();
            assert_eq!(names(&sim), [format!("{:020}.seg", 8)], "without {missing:04b}");
        }
    }

    #[test]
    fn offsets_that_were_trimmed_and_then_lost_are_not_used_again() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append(&log, 0, 1).await;
            // As if records up to 6 had been received only.
            log.keep_start(Offset(6)).await.unwrap();
            for life in 0..2 {
                let Recovered { log, start, end, damage, .. } = open(&context).await;
                assert_eq!((start, end, damage), (Offset(6), Offset(6 + life), None), "case J");
                append(&log, 6 + life, 7 + life).await;
                let range = ReadRange { offset: Offset(6), end: Offset(7), max_bytes: 1 };
                assert_eq!(log.read_disk(range).await.unwrap().len(), 1);
            }
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn a_damaged_start_file_makes_the_log_read_only() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append(&log, 0, 3).await;
            log.keep_start(Offset(1)).await.unwrap();
            let path = Path::new(DIR).join(start::FILE_NAME);
            let file = context.runtime.open(&path, OpenMode::Existing).await.unwrap();
            let garbage = Rc::new(context.runtime.allocate(DEVICE_BLOCK_BYTES_MAX as usize));
            file.write_at(0, garbage).await.unwrap();
            let Recovered { start, end, damage, .. } = open(&context).await;
            assert_eq!((start, end, damage.map(|damage| damage.case)), (Offset(0), Offset(3), Some('I')));
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn a_log_is_judged_by_size_and_by_age_and_an_idle_one_is_sealed_to_go() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append(&log, 0, 9).await;
            let judge = async |age_ms, bytes| log.judge(Limits { age_ms, bytes }, 1_000).await.unwrap();
            let verdict = |start, roll| Verdict { start: Offset(start), roll };
            let active = log.active_facts(&log.active(), 1_000).unwrap();
            let bytes = batch_of_half_a_mib().len().next_multiple_of(512) as u64;
            assert_eq!(active, crate::log::retention::Active { bytes, newest_ms: 1 });
            assert_eq!(judge(None, None).await, verdict(0, false));
            // Each segment but the last has a little over 1,000,000 bytes.
            assert_eq!(judge(None, Some(2_400_000)).await, verdict(4, false));
            assert_eq!(judge(None, Some(1)).await, verdict(8, false));
            // What is left without the first one; an active segment is as large as what is in it.
            let left = log.size_bytes() - log.segments.borrow()[0].end_position.get() - SEGMENT_HEADER_BYTES;
            assert_eq!(judge(None, Some(left)).await, verdict(2, false));
            assert_eq!(judge(None, Some(left + 1)).await, verdict(0, false));
            // Their records have the time 1.
            assert_eq!(judge(Some(999), None).await, verdict(0, false));
            assert_eq!(judge(Some(998), None).await, verdict(8, true));
            log.roll(Offset(9), &ProducerHistory::default()).await.unwrap();
            assert_eq!(judge(Some(998), None).await, verdict(9, false), "what is left is empty");
            assert_eq!(bases(&log), [0, 2, 4, 6, 8, 9]);
            // Nothing of it is known any more after a restart but what the sidecars say.
            let log = open(&context).await.log;
            assert_eq!(log.judge(Limits { age_ms: Some(998), bytes: None }, 1_000).await.unwrap(), verdict(9, false));
            assert_eq!(log.judge(Limits { age_ms: Some(999), bytes: None }, 1_000).await.unwrap(), verdict(0, false));
            append(&log, 9, 10).await;
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn the_time_of_a_segment_is_that_of_its_newest_record_and_no_later_than_its_end() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            // The second segment has a record from far in the future, the others records from now.
            let now = context.runtime.unix_millis();
            for offset in 0..7 {
                let time = if offset == 3 { i64::MAX } else { now + offset as i64 };
                let mut builder = crate::record::BatchBuilder::new(crate::record::Codec::None);
                builder.push(None, &vec![7; 500_000], &[], time).unwrap();
                let batch = builder.finish().unwrap();
                log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, offset));
                log.write_waiting(Commit::Written).await.unwrap();
                context.runtime.sleep(Duration::from_secs(60)).await;
            }
            log.sync().await.unwrap();
            assert_eq!(bases(&log), [0, 2, 4, 6]);
            for log in [Rc::clone(&log), open(&context).await.log] {
                let (segments, _) = log.on_disk();
                let sealed = log.header_of(&segments[2]).await.unwrap().created_ms;
                assert!(sealed >= now + 3 * 60_000, "{sealed} after {now}");
                let times = [
                    log.newest_of(&segments, 0).await.unwrap(),
                    log.newest_of(&segments, 1).await.unwrap(),
                    log.newest_of(&segments, 2).await.unwrap(),
                ];
                assert_eq!(times, [now + 1, sealed, now + 5]);
            }
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn a_large_file_gives_its_space_back_in_steps() {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let path = Path::new(DIR).join("00000000000000000000.del");
        let size = |sim: &Sim, path: &Path| sim.files().into_iter().find(|(other, _)| other == path).map(|file| file.1);
        let story = {
            let (sim, path) = (Rc::clone(&sim), path.clone());
            async move {
                context.runtime.create_dir_all(Path::new(DIR)).await.unwrap();
                let file = context.runtime.open(&path, OpenMode::CreateTruncate).await.unwrap();
                file.truncate(2 * STEP_BYTES + 512).await.unwrap();
                drop(file);
                Reaper::remove(&context, path.clone());
                let mut sizes = Vec::new();
                for _ in 0..100 {
                    sizes.extend(size(&sim, &path).filter(|size| sizes.last() != Some(size)));
                    context.runtime.sleep(STEP_PAUSE_MIN / 5).await;
                }
                sizes
            }
        };
        let sizes = sim.block_on(&cores[0], story, STEPS).unwrap();
        assert_eq!(size(&sim, &path), None);
        let steps: Vec<u64> = sizes.iter().copied().filter(|size| size % STEP_BYTES == 512).collect();
        assert_eq!(steps, [2 * STEP_BYTES + 512, STEP_BYTES + 512, 512], "{sizes:?}");
    }

    #[test]
    fn a_slow_discard_leaves_the_device_to_others_and_the_more_files_wait_the_less() {
        let reaper = Reaper::<SimRuntime>::default();
        let ms = Duration::from_millis;
        assert_eq!(reaper.pause_after(Duration::ZERO), STEP_PAUSE_MIN);
        assert_eq!(reaper.pause_after(ms(4)), ms(20));
        assert_eq!(reaper.pause_after(ms(400)), STEP_PAUSE_MAX, "a stall, not a slow drive");
        reaper.waiting.borrow_mut().push_back(Remains { path: "/a".into(), file: None });
        assert_eq!(reaper.pause_after(ms(4)), ms(10), "what is deleted must not come faster than it goes");
    }

    #[test]
    fn of_a_deleted_folder_what_is_not_ours_stays_and_all_else_goes() {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let world = Rc::clone(&sim);
        let story = async move {
            let runtime = &context.runtime;
            let files =
                ["/l/README", "/l/0/notes.seg", "/l/0/00000000000000000000.seg", "/l/1/00000000000000000000.seg"];
            for dir in ["/l/0", "/l/1"] {
                runtime.create_dir_all(Path::new(dir)).await.unwrap();
            }
            for file in files {
                runtime.open(Path::new(file), OpenMode::CreateTruncate).await.unwrap();
            }
            Reaper::remove(&context, "/l".into());
            runtime.sleep(Duration::from_secs(1)).await;
            let left: Vec<_> = world.files().into_iter().map(|(path, _)| path).collect();
            assert_eq!(left, [PathBuf::from("/l/0/notes.seg"), PathBuf::from("/l/README")]);
            assert!(runtime.list_dir(Path::new("/l/1")).await.is_err(), "it was empty");
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn the_newest_segment_with_a_durable_snapshot_is_kept_until_another_one_has_one() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append(&log, 0, 3).await;
            log.keep_producers(&ProducerHistory::default());
            append(&log, 3, 9).await;
            log.keep_start(Offset(8)).await.unwrap();
            log.release_before(Offset(8));
            log.bury().await.unwrap();
            let there = async |base| {
                let path = segment_path(Path::new(DIR), Offset(base));
                context.runtime.open(&path, OpenMode::Existing).await.is_ok()
            };
            assert!(!there(0).await && there(2).await && there(4).await, "what is known of producers is beside 2");
            log.keep_producers(&ProducerHistory::default());
            while log.has_released() {
                context.runtime.sleep(PAUSE).await;
                log.bury().await.unwrap();
            }
            assert!(!there(2).await && !there(6).await && there(8).await);
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_waits_for_the_next_start_and_what_is_read_for_its_reader() {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let (world, context) = (Rc::clone(&sim), context(&cores[0], 512));
        let story = async move {
            let runtime = &context.runtime;
            let path = PathBuf::from("/00000000000000000000.del");
            let is_there = || world.files().iter().any(|(other, _)| *other == path);
            let file = Rc::new(runtime.open(&path, OpenMode::CreateTruncate).await.unwrap());
            world.fail_nth(1, Failure::Error, true);
            Reaper::remove(&context, path.clone());
            runtime.sleep(Duration::from_secs(1)).await;
            world.fail_none();
            runtime.sleep(Duration::from_secs(1)).await;
            assert!(is_there(), "it is not tried again and again");
            let reader = Rc::clone(&file);
            Reaper::reap(&context, Remains { path: path.clone(), file: Some(file) });
            runtime.sleep(Duration::from_secs(1)).await;
            assert!(is_there());
            drop(reader);
            runtime.sleep(Duration::from_secs(1)).await;
            assert!(!is_there());
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }
}

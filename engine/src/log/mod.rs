//! One partition's bytes: segments on disk, the tail in memory, and the way from the one to the other.
//!
//! A log takes batches that were placed by the partition and keeps them; it knows nothing of acks, watermarks or
//! clients. It promises that what was synced is found again at the next opening, at the same offsets and with the same
//! bytes, and that damaged bytes are reported and never handed out. All of it runs on the owning core; nothing here is
//! shared.

pub mod ahead;
mod behind_damage;
pub mod cache;
mod chain;
pub(crate) mod copies;
pub mod cut;
pub mod damage;
pub(crate) mod envelope;
#[cfg(test)]
mod fixture;
pub mod flush;
pub mod index;
pub mod last_segment;
pub mod loaded;
mod loading;
pub mod missing;
pub mod prepare;
mod producer_gathering;
pub mod producer_snapshot;
pub mod read;
pub mod recovery;
pub mod reigns;
pub mod removal;
pub mod renew;
pub mod retention;
pub mod rewrite;
pub mod room;
pub mod scan;
pub mod scrub;
pub mod segment;
mod spare;
pub mod start;
pub mod survey;
pub mod tail;
pub mod tail_memory;
pub mod verify;
pub mod version;
pub mod windows;

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use ahead::{AheadMemory, ReadAhead};
use cache::{BlockCache, Opening};
use cut::End;
use damage::Losses;
use loaded::Loaded;
use prepare::{HeavyLoad, Preparation};
use removal::Reaper;
use room::Room;
use segment::{Segment, SegmentHeader};
use spare::Spare;
use tail::{Admitted, Tail};
use tail_memory::TailMemory;
use thiserror::Error;
use version::OtherVersion;
use windows::Windows;

use crate::{
    metrics::CoreMetrics,
    record::{BatchHeader, ServerFields},
    runtime::Runtime,
    types::{Incarnation, LeaderEpoch, Offset, PartitionId},
};

/// What all logs of a core share.
pub struct LogContext<R: Runtime> {
    /// The door to the world.
    pub runtime: R,
    /// The core's counters.
    pub metrics: Arc<CoreMetrics>,
    /// How many logs were opened.
    pub openings: Cell<u64>,
    /// Index blocks read from the device.
    pub cache: BlockCache,
    /// Mappings of sealed segments.
    pub windows: Windows,
    /// What is read before it is asked for.
    pub ahead: AheadMemory<R>,
    /// What is loaded of sealed segments.
    pub loaded: Loaded<R>,
    /// A buffer of zeros, to fill files with.
    pub zeros: Rc<R::Buffer>,
    /// The device's logical block.
    pub block_bytes: u32,
    /// A segment is sealed before it would grow beyond this.
    pub segment_bytes: u64,
    /// From which load on segments are not filled with zeros ahead of use.
    pub heavy_load: HeavyLoad,
    /// What was written lately, for readers near the end of a log.
    pub tails: TailMemory<R>,
    /// The drive's room.
    pub room: Room,
    /// Gives the space of deleted files back.
    pub reaper: Reaper<R>,
}

/// Why a log stopped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LogFault {
    /// The drive is full. Nothing was lost; it can be tried again.
    #[error("the drive of {} is full", path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The log has had segments, and has none any more.
    #[error("{} (case H): {reason}", dir.display())]
    Missing {
        /// The partition's directory.
        dir: PathBuf,
        /// What says so.
        reason: String,
    },
    /// A file is of another format version. Nothing in the directory was touched.
    #[error(transparent)]
    Version(#[from] OtherVersion),
    /// The drive does not give bytes that must be read. It may give them the next time.
    #[error("{operation} of {} failed: {reason}", path.display())]
    Unread {
        /// What failed.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A write or a sync failed. The log must not be written again before it is recovered.
    #[error("{operation} of {} failed: {reason}", path.display())]
    Failed {
        /// What failed.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
}

impl LogFault {
    /// What an error means of an operation that takes room: it can be tried again when there is some.
    pub(crate) fn from_io(operation: &'static str, path: &Path, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            LogFault::Full { path: path.to_path_buf() }
        } else {
            LogFault::failed(operation, path, error)
        }
    }

    /// What an error means of a read.
    pub(crate) fn unread(operation: &'static str, path: &Path, error: &std::io::Error) -> Self {
        if is_withheld(error) {
            LogFault::Unread { operation, path: path.to_path_buf(), reason: error.to_string() }
        } else {
            LogFault::from_io(operation, path, error)
        }
    }

    /// What an error means of a write into prepared room, or of a sync: the fate of the bytes is unknown, whatever the
    /// reason.
    pub(crate) fn failed(operation: &'static str, path: &Path, error: &std::io::Error) -> Self {
        LogFault::Failed { operation, path: path.to_path_buf(), reason: error.to_string() }
    }
}

/// Whether a read failed because the drive does not give the bytes, or the file system finds that they are not what was
/// written; and not because of something that is in the way.
fn is_withheld(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let known = [Errno::IO, Errno::NODATA, Errno::BADMSG, Errno::UCLEAN, Errno::REMOTEIO];
    error.raw_os_error().is_some_and(|code| known.iter().any(|errno| errno.raw_os_error() == code))
}

/// What the owner says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The durable end known now; see "Where the log ends" in `docs/FORMAT.md`.
    pub durable_hint: Offset,
    /// The reign it is of.
    pub epoch: LeaderEpoch,
}

/// One partition's log. Made by [`recovery`].
pub struct Log<R: Runtime> {
    context: Rc<LogContext<R>>,
    opening: Opening,
    partition: PartitionId,
    dir: PathBuf,
    /// The newest reign of a batch in it, or that in which the next opening of a single copy appends.
    epoch: Cell<LeaderEpoch>,
    /// By base offset; the last one is active. Never empty.
    segments: RefCell<Vec<Rc<Segment<R>>>>,
    /// Segments that are no part of the log any more and still have their names, oldest first.
    released: RefCell<Vec<Rc<Segment<R>>>>,
    tail: RefCell<Tail<R>>,
    /// The offset after the last record.
    end_offset: Cell<Offset>,
    /// What is known to be damaged.
    losses: Losses,
    /// See [`Log::unread`].
    unread: Cell<Option<(Offset, Offset)>>,
    ahead: ReadAhead<R>,
    preparation: Preparation,
    spare: Spare<R>,
    end: End,
}

impl<R: Runtime> Log<R> {
    /// Adds a batch to the tail. It is in memory when this returns, and nowhere else.
    pub fn append(&self, bytes: &[u8], header: &BatchHeader, placed: Placed) {
        let Placed { base_offset, durable_hint, epoch: leader_epoch } = placed;
        let segment = self.segment_for(bytes.len(), placed);
        self.epoch.set(leader_epoch);
        let stamp = ServerFields { base_offset, durable_hint, leader_epoch, incarnation: segment.header.incarnation };
        let admitted = Admitted { bytes, header, stamp };
        let position = self.tail.borrow_mut().push(&self.context.runtime, &segment, &admitted);
        self.end_offset.set(base_offset.advance(u64::from(header.record_count)));
        if let Some(index) = segment.index.borrow_mut().as_mut() {
            index.note(base_offset, position, header.max_timestamp_ms);
        }
    }

    /// The active segment, or its successor if a batch of `batch_bytes` would make it too large or does not belong into
    /// it. Every reign begins a segment, so that the headers of the segments say where the reigns begin; also that of a
    /// single copy, which may get others later. The successor has no file yet: the flush makes it when it gets there.
    fn segment_for(&self, batch_bytes: usize, placed: Placed) -> Rc<Segment<R>> {
        let active = self.active();
        let is_empty = active.base_offset() == placed.base_offset;
        // A segment that was made on a drive with smaller blocks cannot be gone on with here.
        let belongs =
            active.header.block_bytes >= self.context.block_bytes && active.header.leader_epoch == placed.epoch;
        let fits = is_empty || self.tail.borrow().end_with(&active, batch_bytes) <= self.context.segment_bytes;
        if belongs && fits {
            return active;
        }
        let header = self.new_header(placed.base_offset, placed.epoch);
        let mut segments = self.segments.borrow_mut();
        let next = if is_empty {
            segments.pop();
            Rc::new(Segment::in_place_of(&active, header))
        } else {
            self.tail.borrow_mut().seal();
            Rc::new(Segment::planned(&self.dir, header))
        };
        segments.push(Rc::clone(&next));
        next
    }

    fn new_header(&self, base_offset: Offset, epoch: LeaderEpoch) -> SegmentHeader {
        new_header(&self.context, self.partition, base_offset, epoch)
    }

    fn active(&self) -> Rc<Segment<R>> {
        let segments = self.segments.borrow();
        Rc::clone(segments.last().expect("a log has an active segment")) // why: the invariant of `segments`
    }

    /// The reign of the newest batch; before there is one, that in which a single copy appends.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch.get()
    }

    /// The offset after the last record.
    pub fn end(&self) -> Offset {
        self.end_offset.get()
    }

    /// What is known to be damaged.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Bytes that the device has not taken.
    pub fn unwritten_bytes(&self) -> usize {
        self.tail.borrow().unwritten_bytes()
    }

    /// Whether a group is full, so that nothing is gained by waiting before it is written.
    pub fn has_full_group(&self) -> bool {
        self.tail.borrow().has_full_group()
    }

    /// Bytes of the segments, without what is prepared but not used.
    pub fn size_bytes(&self) -> u64 {
        self.segments.borrow().iter().map(|segment| segment.end_position.get()).sum()
    }
}

fn new_header<R: Runtime>(
    context: &LogContext<R>,
    partition: PartitionId,
    base_offset: Offset,
    leader_epoch: LeaderEpoch,
) -> SegmentHeader {
    SegmentHeader {
        partition,
        block_bytes: context.block_bytes,
        base_offset,
        created_ms: context.runtime.unix_millis(),
        incarnation: Incarnation(context.runtime.random_u64() as u32),
        leader_epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fixture::{DIR, P, append_each, batch_of, context, context_of, cut_everywhere, edit, open, placed},
        flush::Commit,
        read::ReadRange,
        recovery::Recovered,
        reigns::Reigns,
        segment::{Snapshot, segment_path},
        *,
    };
    use crate::{
        record::{ProducerHistory, check_produced},
        runtime::sim::{Sim, SimConfig, SimRuntime},
    };

    async fn append_in(log: &Rc<Log<SimRuntime>>, reigns: &[u32], from: u64) {
        let batch = batch_of(800);
        for (offset, reign) in (from..).zip(reigns) {
            let placed = Placed { epoch: LeaderEpoch(*reign), ..placed(offset, offset) };
            log.append(&batch, &check_produced(&batch).unwrap(), placed);
            log.write_waiting(Commit::Durable).await.unwrap();
        }
    }

    fn headers(log: &Log<SimRuntime>) -> Vec<(u64, u32)> {
        let header = |segment: &Rc<Segment<_>>| (segment.base_offset().0, segment.header.leader_epoch.0);
        log.segments.borrow().iter().map(header).collect()
    }

    #[test]
    fn a_reign_begins_a_segment() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let Recovered { log, epoch, .. } = open(&context).await;
            assert_eq!((epoch, log.epoch()), (LeaderEpoch(1), LeaderEpoch(1)));
            append_in(&log, &[1, 3], 0).await;
            assert_eq!((headers(&log), log.epoch()), (vec![(0, 1), (1, 3)], LeaderEpoch(3)));
            let Recovered { log, epoch, .. } = open(&context).await;
            assert_eq!(epoch, LeaderEpoch(4));
            append_in(&log, &[3, 3, 5, 5, 8], 2).await;
            assert_eq!(headers(&log)[1..], [(1, 3), (4, 5), (6, 8)]);
            log.roll(Offset(7), &ProducerHistory::default()).await.unwrap();
            assert_eq!(headers(&log)[4..], [(7, 8)], "an empty one is of the reign before");
            append_in(&log, &[9, 9], 7).await;
            assert_eq!(headers(&log)[4..], [(7, 9)], "an empty one is replaced");
            let Recovered { log, end, damage, .. } = open(&context).await;
            assert_eq!((end, damage), (Offset(9), None));
            let range = ReadRange { offset: Offset(7), end, max_bytes: 1 << 16 };
            assert_eq!(log.read_disk(range).await.unwrap()[0].len(), 2 * 800);
        };
        sim.block_on(&cores[0], story, 100_000).unwrap();
    }

    #[test]
    fn the_reigns_of_a_replica_are_found_again_whatever_segments_they_are_in() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let spoiled = segment_path(Path::new(DIR), Offset(2));
        let story = async move {
            let reopen = || recovery::open_replica(&context, P, (PathBuf::from(DIR), Offset(0)));
            // Also those in which it was a single copy.
            append_in(&open(&context).await.log, &[2, 2, 3], 0).await;
            append_in(&reopen().await.unwrap().log, &[5, 5], 3).await;
            let Recovered { log, reigns, .. } = reopen().await.unwrap();
            let found = |reigns: Reigns| reigns.beginnings().iter().map(|(e, at)| (e.0, at.0)).collect::<Vec<_>>();
            assert_eq!(found(reigns), [(2, 0), (3, 2), (5, 3)]);
            log.roll(Offset(5), &ProducerHistory::default()).await.unwrap();
            assert_eq!(found(reopen().await.unwrap().reigns), [(2, 0), (3, 2), (5, 3)], "the last segment is empty");
            assert_eq!(found(open(&context).await.reigns), [], "of a single copy nobody asks for them");
            log.keep_start(Offset(1)).await.unwrap();
            assert_eq!(found(reopen().await.unwrap().reigns), [(2, 1), (3, 2), (5, 3)]);
            // The batch behind a damaged header says it too, and without it nobody does.
            edit(&context.runtime, &spoiled, 0..512, |bytes| bytes.fill(7)).await;
            let Recovered { reigns, damage, .. } = reopen().await.unwrap();
            assert_eq!((found(reigns), damage), (vec![(2, 1), (3, 2), (5, 3)], None));
            edit(&context.runtime, &spoiled, 4096..4608, |bytes| bytes.fill(7)).await;
            assert_eq!(reopen().await.unwrap().damage.unwrap().case, 'E');
            assert_eq!(open(&context).await.damage, None, "a single copy does not compare itself");
        };
        sim.block_on(&cores[0], story, 100_000).unwrap();
    }

    #[test]
    fn an_empty_segment_that_was_made_on_a_drive_with_smaller_blocks_is_replaced() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (before, now) = (context(&cores[0], 512), context(&cores[0], 4096));
        let story = async move {
            open(&before).await;
            let log = open(&now).await.log;
            append_each(&log, &batch_of(800), 0..3).await;
            let active = open(&now).await.log.active();
            (active.header.block_bytes, active.end_position.get())
        };
        assert_eq!(sim.block_on(&cores[0], story, 100_000).unwrap(), (4096, 4 * 4096));
    }

    #[test]
    fn what_is_being_kept_beside_an_empty_segment_that_is_replaced_lets_those_before_go() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append_in(&log, &[1, 1], 0).await;
            log.roll(Offset(2), &ProducerHistory::default()).await.unwrap();
            let empty = log.active();
            assert_eq!(empty.snapshot.get(), Snapshot::Pending, "it is too early to see anything");
            append_in(&log, &[2], 2).await;
            assert!(!Rc::ptr_eq(&empty, &log.active()));
            log.keep_start(Offset(2)).await.unwrap();
            log.release_before(Offset(2));
            context.runtime.sleep(std::time::Duration::from_millis(50)).await;
            log.bury().await.unwrap();
            assert!(!log.has_released());
        };
        sim.block_on(&cores[0], story, 100_000).unwrap();
    }

    #[test]
    fn a_crash_while_an_empty_segment_is_replaced_takes_nothing_away() {
        let setup = |context: Rc<LogContext<SimRuntime>>| async move {
            let log = open(&context).await.log;
            append_in(&log, &[1, 1], 0).await;
            log.roll(Offset(2), &ProducerHistory::default()).await.unwrap();
            // The index of the first segment says that there is a second one.
            context.runtime.sleep(std::time::Duration::from_millis(50)).await;
            log
        };
        let story = |_, log: Rc<Log<SimRuntime>>| async move {
            append_in(&log, &[2], 2).await;
        };
        let after = |context: Rc<LogContext<SimRuntime>>, over: bool| async move {
            let Recovered { log, end, damage, .. } = open(&context).await;
            assert_eq!(damage, None);
            assert!(end == Offset(3) || end == Offset(2) && !over, "{end}, over: {over}");
            assert_eq!(log.segments.borrow().len(), 2);
        };
        let operations = cut_everywhere(|runtime| context(runtime, 512), setup, story, after);
        assert!(operations > 5, "{operations} operations");
    }

    #[test]
    fn a_full_drive_is_told_from_one_that_fails_and_where_bytes_may_be_lost_both_are_failures() {
        let (full, broken) = (std::io::ErrorKind::StorageFull.into(), std::io::Error::other("it burns"));
        let path = Path::new("/f");
        assert_eq!(LogFault::from_io("writing", path, &full), LogFault::Full { path: path.to_path_buf() });
        let failed = LogFault::from_io("writing", path, &broken);
        assert_eq!(failed.to_string(), "writing of /f failed: it burns");
        assert!(matches!(LogFault::failed("syncing", path, &full), LogFault::Failed { .. }));
    }

    #[test]
    fn the_end_the_size_and_what_waits_of_a_log_are_those_of_its_batches_and_not_of_prepared_room() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            assert_eq!((log.end(), log.size_bytes()), (Offset(0), 4096));
            append_each(&log, &batch_of(800), 0..3).await;
            assert_eq!((log.end(), log.size_bytes()), (Offset(3), 4096 + 3 * 1024));
            let large = batch_of(300_000);
            for (offset, is_full) in [(3, false), (4, true)] {
                log.append(&large, &check_produced(&large).unwrap(), placed(offset, 0));
                assert_eq!(log.has_full_group(), is_full, "another one has no room beside the first");
            }
            assert_eq!(log.unwritten_bytes(), 600_000);
            log.write_waiting(Commit::Written).await.unwrap();
            assert_eq!((log.has_full_group(), log.unwritten_bytes()), (false, 0));
            log.roll(Offset(5), &ProducerHistory::default()).await.unwrap();
            assert_eq!(log.size_bytes(), 4096 + 3 * 1024 + 2 * 300_032 + 4096, "of all segments");
        };
        sim.block_on(&cores[0], story, 100_000).unwrap();
    }

    #[test]
    fn a_last_segment_of_several_windows_is_read_to_its_end_also_if_one_batch_is_larger_than_a_window() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context_of(&cores[0], 512, 64 << 20);
        let story = async move {
            let log = open(&context).await.log;
            append_each(&log, &batch_of(100_000), 0..100).await;
            let mut builder = crate::record::BatchBuilder::new(crate::record::Codec::None);
            (0..5).for_each(|_| builder.push(None, &vec![7; 1_000_000], &[], 1).unwrap());
            let large = builder.finish().unwrap();
            log.append(&large, &check_produced(&large).unwrap(), placed(100, 0));
            log.write_waiting(Commit::Written).await.unwrap();
            append_each(&log, &batch_of(100_000), 105..110).await;
            let end_position = log.active().end_position.get();
            let Recovered { log, end, damage, .. } = open(&context).await;
            assert_eq!((end, damage, log.active().end_position.get()), (Offset(110), None, end_position));
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }
}

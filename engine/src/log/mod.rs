//! One partition's bytes: segments on disk, the tail in memory, and the way from the one to the other.
//!
//! A log takes batches that were placed by the partition and keeps them; it knows nothing of acks, watermarks or
//! clients. It promises that what was synced is found again at the next opening, at the same offsets and with the same
//! bytes, and that damaged bytes are reported and never handed out. All of it runs on the owning core; nothing here is
//! shared.

pub mod ahead;
mod behind_damage;
pub mod cache;
pub mod damage;
mod envelope;
#[cfg(test)]
mod fixture;
pub mod flush;
pub mod index;
pub mod last_segment;
pub mod loaded;
mod loading;
pub mod missing;
pub mod prepare;
pub mod producer_snapshot;
pub mod read;
pub mod recovery;
pub mod removal;
pub mod retention;
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
use cache::BlockCache;
use damage::Losses;
use loaded::Loaded;
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
    signal::Signal,
    types::{Incarnation, LeaderEpoch, Offset, PartitionId},
};

/// What all logs of a core share.
pub struct LogContext<R: Runtime> {
    /// The door to the world.
    pub runtime: R,
    /// The core's counters.
    pub metrics: Arc<CoreMetrics>,
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

    /// What an error means of a write into prepared room, or of a sync: the fate of the bytes is unknown, whatever the
    /// reason.
    pub(crate) fn failed(operation: &'static str, path: &Path, error: &std::io::Error) -> Self {
        LogFault::Failed { operation, path: path.to_path_buf(), reason: error.to_string() }
    }
}

/// One partition's log. Made by [`recovery`].
pub struct Log<R: Runtime> {
    context: Rc<LogContext<R>>,
    partition: PartitionId,
    dir: PathBuf,
    epoch: LeaderEpoch,
    /// By base offset; the last one is active. Never empty.
    segments: RefCell<Vec<Rc<Segment<R>>>>,
    /// Segments that are no part of the log any more and still have their names, oldest first.
    released: RefCell<Vec<Rc<Segment<R>>>>,
    tail: RefCell<Tail<R>>,
    /// The offset after the last record.
    end_offset: Cell<Offset>,
    /// What is known to be damaged.
    losses: Losses,
    ahead: ReadAhead<R>,
    /// Whether a task fills the active segment with zeros, and who wants to know when it is done.
    preparing: Cell<bool>,
    prepared: Signal,
    spare: Spare<R>,
}

impl<R: Runtime> Log<R> {
    /// Adds a batch to the tail. It is in memory when this returns, and nowhere else.
    pub fn append(&self, bytes: &[u8], header: &BatchHeader, placed: (Offset, Offset)) {
        let (base_offset, durable_hint) = placed;
        let segment = self.segment_for(bytes.len(), base_offset);
        let stamp = ServerFields {
            base_offset,
            durable_hint,
            leader_epoch: self.epoch,
            incarnation: segment.header.incarnation,
        };
        let admitted = Admitted { bytes, header, stamp };
        let limit = self.context.segment_bytes;
        let position = self.tail.borrow_mut().push(&self.context.runtime, &segment, &admitted, limit);
        self.end_offset.set(base_offset.advance(u64::from(header.record_count)));
        if let Some(index) = segment.index.borrow_mut().as_mut() {
            index.note(base_offset, position, header.max_timestamp_ms);
        }
    }

    /// The active segment, or its successor if a batch of `batch_bytes` would make it too large. The successor has no
    /// file yet: the flush makes it when it gets there.
    fn segment_for(&self, batch_bytes: usize, base_offset: Offset) -> Rc<Segment<R>> {
        let active = self.active();
        // A segment that was made on a drive with smaller blocks cannot be gone on with here.
        let fits = self.tail.borrow().end_with(&active, batch_bytes) <= self.context.segment_bytes
            && active.header.block_bytes >= self.context.block_bytes;
        if fits || active.base_offset() == base_offset {
            return active;
        }
        self.tail.borrow_mut().seal();
        let next = Rc::new(Segment::planned(&self.dir, self.new_header(base_offset)));
        self.segments.borrow_mut().push(Rc::clone(&next));
        next
    }

    fn new_header(&self, base_offset: Offset) -> SegmentHeader {
        new_header(&self.context, self.partition, base_offset, self.epoch)
    }

    fn active(&self) -> Rc<Segment<R>> {
        let segments = self.segments.borrow();
        Rc::clone(segments.last().expect("a log has an active segment")) // why: the invariant of `segments`
    }

    /// The reign that batches are stamped with.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
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

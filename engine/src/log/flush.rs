//! Group commit: what waits in the tail goes to the device in one go, and one sync makes all of it durable.
//!
//! The owner calls [`Log::write_waiting`] and [`Log::sync`] in turn, one at a time; what arrives meanwhile joins the
//! next group.

use std::{path::Path, rc::Rc};

use futures_util::future::{Either, join_all};

use super::{
    Log, LogFault, envelope,
    index::{Index, SidecarKey},
    segment::{REPLACEMENT_NAME, Segment, SegmentHeader, header_block},
};
use crate::{
    limits::{FLUSH_GROUP_BYTES_MAX, SEGMENT_HEADER_BYTES},
    runtime::{File, OpenMode, Runtime},
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

type SegmentRef<R> = Rc<Segment<R>>;

/// Above this, the time is that of moving the bytes, and one trip less to the device's queue saves nothing.
const SYNCHRONOUS_BYTES_MAX: usize = 128 << 10;

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// To be written, and nobody waits for it.
    Unawaited,
    /// To be written.
    Written,
    /// To be durable as soon as can be, and everything written before is.
    Durable,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The offset after the last record written so far.
    pub end: Offset,
    /// Whether it is durable already.
    pub durable: bool,
}

impl<R: Runtime> Log<R> {
    /// Hands what waits to the device, or a good part of it. `None` if nothing waited. With [`Commit::Durable`], a
    /// small commit is durable when this returns: the caller knows that all before it is.
    pub async fn write_waiting(self: &Rc<Self>, commit: Commit) -> Result<Option<Written>, LogFault> {
        let groups = {
            let mut tail = self.tail.borrow_mut();
            tail.seal();
            tail.waiting(FLUSH_GROUP_BYTES_MAX)
        };
        let Some(last) = groups.last() else { return Ok(None) };
        let (segment, end_offset) = (Rc::clone(&last.segment), last.end_offset);
        let end_position = last.position + last.padded_bytes as u64;
        if segment.file.borrow().is_none() {
            self.begin_segment(&segment).await?;
        }
        let bytes = groups.iter().map(|group| group.padded_bytes).sum::<usize>();
        self.ensure_prepared(&segment, (commit, bytes), end_position).await?;
        let file = segment.file.borrow().clone().expect("begun above"); // why: begin_segment sets it
        // Each of its writes by itself: on a drive that can, O_DSYNC makes durable what it writes, and nothing else.
        let durable = commit == Commit::Durable && bytes <= SYNCHRONOUS_BYTES_MAX;
        let forgotten = planted(PlantedBug::ForgetTailAtRoll) && !Rc::ptr_eq(&segment, &self.active());
        let writes = groups.iter().take(groups.len() - usize::from(forgotten)).map(|group| {
            let (metrics, buffer) = (&self.context.metrics, Rc::clone(&group.buffer));
            metrics.disk_writes.add(1);
            metrics.disk_write_bytes.add(group.padded_bytes as u64);
            metrics.disk_syncs.add(u64::from(durable));
            if durable && !planted(PlantedBug::SkipFsync) {
                Either::Left(file.write_durable_at(group.position, buffer))
            } else {
                Either::Right(file.write_at(group.position, buffer))
            }
        });
        // All of them are awaited, also after a failure: the device must be done with the buffers.
        for outcome in join_all(writes).await {
            if !planted(PlantedBug::IgnoreWriteError) {
                outcome.map_err(|error| LogFault::failed("writing", &segment.path, &error))?;
            }
        }
        self.see_to_spare(&segment, end_position);
        self.tail.borrow_mut().mark_written(groups.len());
        self.context.tails.keep(self, groups.iter().map(|group| group.allocated_bytes));
        Ok(Some(Written { end: end_offset, durable }))
    }

    /// Makes durable what was written before the call.
    pub async fn sync(&self) -> Result<(), LogFault> {
        // Segments before this one were synced when they were sealed.
        let Some((segment, file)) = self.newest_file() else { return Ok(()) };
        self.sync_file(&segment, &file).await
    }

    fn newest_file(&self) -> Option<(SegmentRef<R>, Rc<R::File>)> {
        let segments = self.segments.borrow();
        segments.iter().rev().find_map(|segment| {
            let file = segment.file.borrow().clone()?;
            Some((Rc::clone(segment), file))
        })
    }

    async fn sync_file(&self, segment: &Segment<R>, file: &R::File) -> Result<(), LogFault> {
        self.context.metrics.disk_syncs.add(1);
        if planted(PlantedBug::SkipFsync) || (planted(PlantedBug::RetryFailedSync) && file.fdatasync().await.is_err()) {
            return Ok(());
        }
        file.fdatasync().await.map_err(|error| LogFault::failed("fdatasync", &segment.path, &error))
    }

    /// Gives the active segment its file. Its predecessor is sealed first: recovery looks for the end of the log in the
    /// last segment only, so all before it must be whole and durable by then.
    pub(super) async fn begin_segment(self: &Rc<Self>, segment: &Rc<Segment<R>>) -> Result<(), LogFault> {
        // One that had a successor before is sealed already.
        let previous = self.newest_file().filter(|(previous, _)| !previous.sealed.get());
        let sealed = async {
            match &previous {
                Some((previous, file)) => self.seal_segment(previous, file).await,
                None => Ok(()),
            }
        };
        let file = match self.adopt_spare(segment, sealed).await? {
            Some(file) => file,
            None => create_segment(&self.context.runtime, segment).await?,
        };
        *segment.file.borrow_mut() = Some(file);
        // Not before: that they are there says that this segment was (see `missing`).
        if let Some((previous, _)) = previous {
            previous.sealed.set(true);
            self.keep_index(previous);
        }
        self.write_producers(segment);
        Ok(())
    }

    async fn seal_segment(self: &Rc<Self>, segment: &Rc<Segment<R>>, file: &R::File) -> Result<(), LogFault> {
        self.preparation_over().await;
        let mut end_position = segment.end_position.get();
        if planted(PlantedBug::OffByOneAtRoll) {
            end_position -= u64::from(segment.header.block_bytes);
        }
        let cut = file.truncate(end_position).await;
        cut.map_err(|error| LogFault::from_io("truncating", &segment.path, &error))?;
        segment.prepared_end.set(end_position);
        if planted(PlantedBug::SealWithoutSync) {
            return Ok(());
        }
        self.sync_file(segment, file).await
    }

    /// Derived data: not waited for, and rebuilt if it does not arrive.
    fn keep_index(self: &Rc<Self>, segment: SegmentRef<R>) {
        let log = Rc::clone(self);
        self.context.runtime.spawn_background(async move {
            if let Err(error) = log.write_sidecar(&segment).await {
                tracing::warn!(file = %segment.index_path().display(), %error, "the index was not kept");
            }
            log.note_loaded(&segment);
        });
    }

    async fn write_sidecar(&self, segment: &Segment<R>) -> std::io::Result<()> {
        let index = segment.index.borrow().clone();
        match index {
            Some(index) => self.write_index(segment, &index).await,
            None => Ok(()),
        }
    }

    /// Keeps the index of a sealed segment beside it.
    pub(super) async fn write_index(&self, segment: &Segment<R>, index: &Index) -> std::io::Result<()> {
        let Some(_writing) = self.end.begin_writing() else { return Ok(()) };
        if !self.holds(segment.base_offset()) {
            // Deleted meanwhile, and its sidecars with it.
            return Ok(());
        }
        let end_position = segment.end_position.get();
        let bytes = index.to_sidecar(SidecarKey { incarnation: segment.header.incarnation, end_position });
        envelope::write(&self.context.runtime, &segment.index_path(), &bytes).await.map(drop)
    }
}

/// Creates a segment's file with its header block. File and name are durable when this returns: no ack may come from a
/// segment that a loss of power could take away whole. One that replaces another does so in one step: what is kept
/// beside its predecessor says that there is a segment behind that.
pub(super) async fn create_segment<R: Runtime>(runtime: &R, segment: &Segment<R>) -> Result<Rc<R::File>, LogFault> {
    let path = if segment.replaces { &segment.path.with_file_name(REPLACEMENT_NAME) } else { &segment.path };
    let fault = |operation, error| LogFault::from_io(operation, &segment.path, &error);
    let file = write_segment(runtime, path, &segment.header).await?;
    if segment.replaces {
        runtime.rename(path, &segment.path).await.map_err(|error| fault("naming", error))?;
    }
    if let Some(dir) = segment.path.parent()
        && !planted(PlantedBug::ForgetDirSync)
    {
        runtime.sync_dir(dir).await.map_err(|error| fault("syncing the directory of", error))?;
    }
    segment.prepared_end.set(SEGMENT_HEADER_BYTES);
    Ok(file)
}

/// Creates a segment's file with its header block, under this name, which a loss of power may take away.
pub(super) async fn write_segment<R: Runtime>(
    runtime: &R,
    path: &Path,
    header: &SegmentHeader,
) -> Result<Rc<R::File>, LogFault> {
    let fault = |operation, error| LogFault::from_io(operation, path, &error);
    let opened = runtime.open(path, OpenMode::CreateTruncate).await;
    let file = Rc::new(opened.map_err(|error| fault("creating", error))?);
    let written = file.write_at(0, Rc::new(header_block(runtime, header))).await;
    written.map_err(|error| fault("writing the header of", error))?;
    if !planted(PlantedBug::SegmentNotSynced) {
        file.fdatasync().await.map_err(|error| LogFault::failed("fdatasync", path, &error))?;
    }
    Ok(file)
}

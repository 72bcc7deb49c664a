//! Cutting off the end of a log, and beginning it anew elsewhere: what a replica does whose records its leader does not
//! have.
//!
//! A sector that is durable is never written again, and a cut goes to a batch, not to a sector. So nothing of a segment
//! is overwritten: a new one begins at the cut, and a segment *ends where the next one begins*, whatever stands behind
//! in its file. Segments that lie behind the cut whole are deleted.
//!
//! That takes many steps, and a log in which only some of them were done has a hole, or misses a segment that it had.
//! So the new segment is made aside first, with what is known of producers before it; then the file `cut` says what is
//! to be done, durably; then it is done; then that file goes. Power that is lost before the file is there leaves the
//! log as it was, and after that the next opening does what it says. Format: `docs/FORMAT.md`, "What was cut off".

use std::{cell::Cell, io, path::Path, rc::Rc};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

use super::{
    Log, LogFault,
    copies::{self, COPY_BYTES},
    envelope,
    flush::{Commit, write_segment},
    last_segment::Damage,
    producer_gathering,
    producer_snapshot::{self, SnapshotKey},
    removal::{DELETED_SUFFIX, unless_gone},
    scan::{Check, Step, Walk},
    segment::{
        REPLACEMENT_NAME, REPLACEMENT_PRODUCERS_NAME, Segment, base_offset_of, index_base_of, producers_base_of,
        producers_path, segment_of_sidecar, segment_path,
    },
    start::{self, Owner},
};
use crate::{
    limits::{BATCH_BYTES_MAX, INDEX_INTERVAL_BYTES},
    record::ProducerHistory,
    runtime::{File, OpenMode, Runtime},
    signal::Signal,
    types::{LogUid, Offset, PartitionIndex},
};

/// The name of the file in the partition's directory.
pub const FILE_NAME: &str = "cut";
const ASIDE_NAME: &str = "cut.new";

/// The first bytes of each copy. The 1 is the version.
pub(super) const MAGIC: [u8; 4] = *b"PYC1";

/// One copy, as it stands on disk; the rest of its sector is zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawCut {
    magic: [u8; 4],
    /// CRC-32C of what follows.
    crc: U32,
    log: U64,
    partition: U32,
    kind: U32,
    at: U64,
    holder: U64,
    end_position: U64,
}

const _: () = assert!(size_of::<RawCut>() == 48, "the file is laid out by hand");

/// What means something of a copy.
pub(super) const COPY_LEN: usize = size_of::<RawCut>();

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The records from here on go.
    End {
        /// The end of what stays.
        at: Offset,
        /// The base offset of the segment that ends there; the same if none does.
        holder: Offset,
        /// The position in its file behind the block in which its last batch ends; the largest if that is not known.
        end_position: u64,
    },
    /// All records go, and the log begins and ends here.
    Restart {
        /// The offset of what will be its first record.
        at: Offset,
    },
}

/// Whether a file in a partition's directory says what is to be cut off, or was about to.
pub fn is_cut_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == FILE_NAME || name == ASIDE_NAME)
}

impl Cut {
    /// Where the log ends then.
    pub(super) fn at(self) -> Offset {
        match self {
            Cut::End { at, .. } | Cut::Restart { at } => at,
        }
    }

    /// The bytes of one copy.
    pub fn encode(self, (log, index): (LogUid, PartitionIndex)) -> [u8; 48] {
        let (kind, at, holder, end_position) = match self {
            Cut::End { at, holder, end_position } => (0, at, holder, end_position),
            Cut::Restart { at } => (1, at, at, 0),
        };
        let mut raw = RawCut {
            magic: MAGIC,
            crc: U32::new(0),
            log: U64::new(log.0),
            partition: U32::new(index.0),
            kind: U32::new(kind),
            at: U64::new(at.0),
            holder: U64::new(holder.0),
            end_position: U64::new(end_position),
        };
        raw.crc = U32::new(crc32c::crc32c(&raw.as_bytes()[8..]));
        zerocopy::transmute!(raw)
    }

    /// Reads the file of `owner`. All its copies say the same.
    ///
    /// Errors: what is wrong with the first copy, if all are damaged.
    pub fn decode(bytes: &[u8], owner: Owner) -> Result<Cut, String> {
        copies::best_of(bytes.chunks(COPY_BYTES).map(|copy| Cut::decode_copy(copy, owner)), |first, _| first)
    }

    fn decode_copy(bytes: &[u8], owner: Owner) -> Result<Cut, String> {
        let (raw, _) = RawCut::read_from_prefix(bytes).map_err(|_| "it is cut off".to_owned())?;
        if raw.magic != MAGIC {
            return Err("it does not begin with PYC1".to_owned());
        }
        if raw.crc.get() != crc32c::crc32c(&raw.as_bytes()[8..]) {
            return Err("its checksum is wrong".to_owned());
        }
        let (log, index) = (LogUid(raw.log.get()), PartitionIndex(raw.partition.get()));
        if owner.0.is_some_and(|known| known != log) || owner.1 != index {
            return Err(format!("it is that of partition {log}/{index}"));
        }
        let (at, holder) = (Offset(raw.at.get()), Offset(raw.holder.get()));
        match raw.kind.get() {
            0 if holder <= at => Ok(Cut::End { at, holder, end_position: raw.end_position.get() }),
            1 => Ok(Cut::Restart { at }),
            kind => Err(format!("it asks for {kind}, from {holder} to {at}")),
        }
    }

    /// Whether this one of the log's files goes. The new segment is still aside if `is_aside`.
    pub fn takes(self, path: &Path, is_aside: bool) -> bool {
        let at = self.at();
        // Behind what stays; or in the place of the new segment, which is then replaced.
        let is_gone = |base: Offset| match self {
            Cut::End { .. } => base > at || (base == at && is_aside),
            Cut::Restart { .. } => base != at || is_aside,
        };
        if let Some(base) = base_offset_of(path) {
            return is_gone(base);
        }
        match (self, index_base_of(path), producers_base_of(path)) {
            // That of the segment at the cut says that one follows, and knows batches that are cut off.
            (Cut::End { holder, .. }, Some(base), _) => base >= holder,
            // What is kept for the new segment replaces what is there, or did so before this was cut off.
            (Cut::End { .. }, _, Some(base)) => base > at,
            (Cut::Restart { .. }, _, Some(base)) => base != at || at == Offset(0),
            (Cut::Restart { .. }, ..) => segment_of_sidecar(path).is_some(),
            _ => segment_of_sidecar(path).and_then(|segment| base_offset_of(&segment)).is_some_and(is_gone),
        }
    }
}

/// Whether a log is about to end, so that nothing of it is written any more by itself, and whether something is.
#[derive(Default)]
pub(super) struct End {
    has_come: Cell<bool>,
    writers: Cell<usize>,
    settled: Signal,
}

/// Somebody writes what stands beside a segment.
pub(super) struct Writing<'a>(&'a End);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writers.set(self.0.writers.get() - 1);
        self.0.settled.notify();
    }
}

impl End {
    pub(super) fn has_come(&self) -> bool {
        self.has_come.get()
    }

    /// To be held while a sidecar is written; `None` if it must not be.
    pub(super) fn begin_writing(&self) -> Option<Writing<'_>> {
        if self.has_come.get() {
            return None;
        }
        self.writers.set(self.writers.get() + 1);
        Some(Writing(self))
    }
}

impl<R: Runtime> Log<R> {
    /// Cuts off the records from `to` on, for good, and sees to it that those before are durable. Whoever calls it is
    /// the only one who uses the log; he drops it and opens it again, which finds it to end at `to`, a place between
    /// two batches.
    ///
    /// Errors: the operating system's. The next opening finds the log cut, or as it was.
    pub async fn cut(self: &Rc<Self>, to: Offset) -> Result<(), LogFault> {
        let first = self.segments.borrow().first().map_or(Offset(0), |segment| segment.base_offset());
        let end = self.end_offset.get();
        assert!(first <= to && to <= end, "a cut at {to} of a log from {first} to {end}");
        let written = self.tail.borrow().unwritten_from().unwrap_or(end);
        self.tail.borrow_mut().cut(&self.context.runtime, to);
        while self.write_waiting(Commit::Written).await?.is_some() {}
        self.sync().await?;
        if to < written {
            self.end_at(to).await?;
        }
        self.end_offset.set(to);
        Ok(())
    }

    /// Makes a log that ends at damage one that can be gone on with, without what is behind the damage. Otherwise like
    /// [`Log::cut`].
    pub async fn mend(self: &Rc<Self>) -> Result<(), LogFault> {
        self.end_at(self.end_offset.get()).await
    }

    async fn end_at(self: &Rc<Self>, to: Offset) -> Result<(), LogFault> {
        self.come_to_rest().await;
        let (holder, end_position) = self.holder_of(to).await;
        let producers = self.producers_until(to).await?;
        self.put_aside(to, producers.as_ref()).await?;
        self.carry_out(Cut::End { at: to, holder, end_position }).await
    }

    /// Deletes all records, for good: whoever opens the log again finds it to begin and to end at `at`. Otherwise like
    /// [`Log::cut`].
    /// `producers` is what batches before `at` said of their producers.
    pub async fn restart(self: &Rc<Self>, at: Offset, producers: &ProducerHistory) -> Result<(), LogFault> {
        self.come_to_rest().await;
        self.put_aside(at, Some(producers)).await?;
        self.carry_out(Cut::Restart { at }).await
    }

    /// Nothing is written any more when this returns, and what was read is forgotten.
    pub(super) async fn come_to_rest(&self) {
        self.end.has_come.set(true);
        self.end.settled.wait_until(|| self.end.writers.get() == 0).await;
        self.close_spare().await;
        self.preparation_over().await;
        self.context.cache.forget(self.opening);
        self.forget_all_windows();
    }

    /// The segment that ends at `to` when that is the end, and where in its file.
    async fn holder_of(self: &Rc<Self>, to: Offset) -> (Offset, u64) {
        let first = self.segments.borrow()[0].base_offset();
        let Some(before) = to.0.checked_sub(1).map(Offset).filter(|before| *before >= first) else {
            return (to, u64::MAX);
        };
        let Ok((segment, Some(block))) = self.load_and_locate(before).await else {
            let holder = self.segment_of(before).map_or(to, |segment| segment.base_offset());
            return (holder, u64::MAX);
        };
        let most = block.start + INDEX_INTERVAL_BYTES + 2 * BATCH_BYTES_MAX as u64;
        let end = block.end.unwrap_or(segment.end_position.get()).min(most);
        let read = self.read_file(&segment, (block.start, end), (before, to)).await.unwrap_or_default();
        let header = &segment.header;
        let mut walk = Walk::new(&read, block.start, (header.block_bytes, header.incarnation), Check::Whole);
        let mut end_position = u64::MAX;
        while let Step::Batch(batch) = walk.step() {
            if batch.header.end_offset() == to {
                let end = batch.position + batch.header.batch_len() as u64;
                end_position = end.next_multiple_of(u64::from(header.block_bytes));
                break;
            }
        }
        (header.base_offset, end_position)
    }

    /// What the batches before `to` say of their producers; `None` if some are damaged. Of those that were deleted only
    /// what is kept beside the segments knows, also beside those that are cut off.
    async fn producers_until(&self, to: Offset) -> Result<Option<ProducerHistory>, LogFault> {
        let segments = self.segments.borrow().clone();
        let (before, behind) = segments.split_at(segments.partition_point(|segment| segment.base_offset() < to));
        let first = before.first().map_or(to, |segment| segment.base_offset());
        let mut known = ProducerHistory::default();
        for segment in behind.iter().filter(|_| first > Offset(0)) {
            let Ok(header) = self.header_of(segment).await else { continue };
            if let Some(kept) = producer_snapshot::load(&self.context, segment, &header).await {
                known = kept.until(first);
                break;
            }
        }
        let gathered = producer_gathering::until(&self.context, before, to, known.clone()).await?;
        if gathered.missed.is_empty() {
            return Ok(Some(gathered.history));
        }
        if let Some(oldest) = before.first().filter(|_| known.newest_offset().is_some()) {
            // What else knows of those that were deleted is about to go.
            self.keep_durably(oldest, &known).await?;
        }
        Ok(None)
    }

    /// Makes the segment that will begin at `at`, under another name, and what is kept beside it. Durable when this
    /// returns.
    async fn put_aside(&self, at: Offset, producers: Option<&ProducerHistory>) -> Result<(), LogFault> {
        let (runtime, dir) = (&self.context.runtime, &self.dir);
        let segment = Segment::<R>::planned(dir, self.new_header(at, self.epoch.get()));
        let path = dir.join(REPLACEMENT_PRODUCERS_NAME);
        let fault = |operation, error: io::Error| LogFault::from_io(operation, &path, &error);
        match producers.filter(|_| at > Offset(0)) {
            Some(producers) => {
                let bytes = producer_snapshot::to_sidecar(producers, SnapshotKey::from(&segment.header));
                let written = envelope::write(runtime, &path, &bytes).await;
                let file = written.map_err(|error| fault("writing", error))?;
                file.fdatasync().await.map_err(|error| LogFault::failed("fdatasync", &path, &error))?;
            }
            None => {
                // Of an earlier try.
                unless_gone(runtime.remove_file(&path).await).map_err(|error| fault("removing", error))?;
            }
        }
        write_segment(runtime, &dir.join(REPLACEMENT_NAME), &segment.header).await?;
        runtime.sync_dir(dir).await.map_err(|error| LogFault::failed("syncing", dir, &error))
    }

    async fn carry_out(&self, cut: Cut) -> Result<(), LogFault> {
        let owner = (self.partition.log, self.partition.index);
        copies::write(&self.context.runtime, &self.dir.join(FILE_NAME), &cut.encode(owner)).await?;
        finish(&self.context.runtime, (&self.dir, owner), cut).await
    }
}

/// Does what the file `cut` in `dir`, if there is one, says is to be done. The directory was synced by the caller.
/// Gives why it cannot be known what it is.
pub(super) async fn finish_begun<R: Runtime>(
    runtime: &R,
    (dir, owner): (&Path, (LogUid, PartitionIndex)),
) -> Result<Option<Damage>, LogFault> {
    let path = dir.join(FILE_NAME);
    let read = copies::read(runtime, &path).await.map_err(|error| LogFault::unread("reading", &path, &error))?;
    match read.map(|bytes| Cut::decode(&bytes, (Some(owner.0), owner.1))) {
        None => Ok(None),
        Some(Ok(cut)) => {
            tracing::info!(dir = %dir.display(), ?cut, "what was begun is carried out");
            finish(runtime, (dir, owner), cut).await.map(|()| None)
        }
        Some(Err(reason)) => Ok(Some(Damage { case: 'I', path, position: 0, reason })),
    }
}

/// Carries out what the file `cut` says, which is durable; from the beginning, however much of it was done before.
async fn finish<R: Runtime>(
    runtime: &R,
    (dir, owner): (&Path, (LogUid, PartitionIndex)),
    cut: Cut,
) -> Result<(), LogFault> {
    let fault = |operation, path: &Path, error: io::Error| LogFault::failed(operation, path, &error);
    if let Cut::Restart { at } = cut {
        start::write(runtime, dir, owner, at).await?;
    }
    let entries = runtime.list_dir(dir).await.map_err(|error| fault("listing", dir, error))?;
    let files = || entries.iter().filter(|entry| !entry.is_dir).map(|entry| &*entry.path);
    let is_aside = files().any(|path| path.ends_with(REPLACEMENT_NAME));
    let new_path = segment_path(dir, cut.at());
    for path in files().filter(|path| cut.takes(path, is_aside)) {
        // The space of a segment is given back by the reaper, who finds it by this name.
        let gone = match base_offset_of(path) {
            Some(_) => runtime.rename(path, &path.with_extension(DELETED_SUFFIX)).await,
            None => runtime.remove_file(path).await,
        };
        unless_gone(gone).map_err(|error| fault("removing", path, error))?;
    }
    for (name, path) in [(REPLACEMENT_PRODUCERS_NAME, producers_path(&new_path)), (REPLACEMENT_NAME, new_path)] {
        if files().any(|path| path.ends_with(name)) {
            runtime.rename(&dir.join(name), &path).await.map_err(|error| fault("naming", &path, error))?;
        }
    }
    runtime.sync_dir(dir).await.map_err(|error| fault("syncing", dir, error))?;
    if let Cut::End { at, holder, end_position } = cut
        && holder < at
        && let Err(error) = shorten(runtime, &segment_path(dir, holder), end_position).await
    {
        tracing::info!(dir = %dir.display(), %error, "what was cut off takes room until its segment goes");
    }
    let path = dir.join(FILE_NAME);
    unless_gone(runtime.remove_file(&path).await).map_err(|error| fault("removing", &path, error))?;
    // Before anything is written behind the cut: it must not be cut off again.
    runtime.sync_dir(dir).await.map_err(|error| fault("syncing", dir, error))
}

/// Gives back the room behind `end_position` of a segment, unless somebody has it mapped.
async fn shorten<R: Runtime>(runtime: &R, path: &Path, end_position: u64) -> io::Result<()> {
    let file = runtime.open(path, OpenMode::Existing).await?;
    if file.size().await? <= end_position || !file.claim().await? {
        return Ok(());
    }
    file.truncate(end_position).await?;
    file.fdatasync().await
}

#[cfg(test)]
mod tests;

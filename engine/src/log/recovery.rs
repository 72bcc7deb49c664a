//! Opening a log: finding its end after whatever happened.
//!
//! Only the last segment is read: all others were synced before it was created. Let E be the highest durable hint found
//! in it.
//!
//! | case | found | the physical fault behind it | done |
//! |---|---|---|---|
//! | A | zeros after the last batch | none, or a kill | go on there |
//! | B | invalid bytes, and E is not beyond them | a flush cut off by a loss of power | truncate: not durable |
//! | C | invalid bytes, and E is beyond them | bit rot, a misdirected write | fence, cut off nothing |
//! | D | an empty header block and no batch | power lost while the segment was created | remove the file |
//! | E | a damaged header block, or an empty one before batches | bit rot | fence |
//! | F | an intact batch with an offset that was there already, or the next one in a wrong place | a misdirected write,
//! a mixed-up directory | fence |
//! | G | no segment | the log is new | create the first |
//! | H | traces of a segment behind the last one, or of any where none is | a lost file | fence; without any, do not
//! open |
//! | I | a damaged start file or file `cut` | bit rot | fence; it is not known where the log begins, or ends |
//! | J | a start file beyond the end | power lost after records that were not durable were trimmed | begin there |
//!
//! None of them is judged while a file is of another format version: see [`super::version`].
//!
//! For what traces those are, and for segments missing between others, see [`super::missing`].
//!
//! The log begins where its start file says ([`super::start`]), and not before its first segment. Segments that lie
//! before that whole, and files that were being deleted, are removed when it is open.
//!
//! Before anything is read, the writes that a killed process left under way are waited for: no sync covers them, reads
//! may show them or not, and they could arrive on top of what is written next. Then the file is synced, since bytes
//! that O_DIRECT handed over may still sit in the device's cache; only what is read after that is trusted. The other
//! order would trust bytes that are dropped between the read and the sync, as a failing sync of someone else drops
//! them. (Linux lets a killed process end only after its syncs, so this takes a start beside a process that is still
//! dying.)
//!
//! What looks damaged is looked at a few times before it is believed: a drive may once give other bytes than it has.
//! One that hides the end of a log is found out only if that is known: a log that this process closed and opens again
//! ended where it was closed.
//!
//! What the batches say of their producers is taken from the snapshot beside the last segment and from its batches
//! ([`super::producer_snapshot`], [`super::producer_gathering`]).

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    Log, LogContext, LogFault,
    behind_damage::read_behind_damage,
    cache::Opening,
    cut,
    flush::create_segment,
    index::Index,
    last_segment::{BEGINNING_BYTES, Beginning, Damage, LastScan, LastSegment},
    missing::{BEGUN, MissingEnd, Names},
    new_header, producer_gathering,
    reigns::Reigns,
    removal::{Reaper, unless_gone},
    segment::{RENEWED_NAME, Segment, base_offset_of, is_deleted_segment, segment_of_sidecar, segment_path},
    start,
    version::Versions,
};
use crate::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    record::ProducerHistory,
    runtime::{DirEntry, File, OpenMode, Runtime},
    testing::bug::{PlantedBug, planted},
    types::{LeaderEpoch, Offset, PartitionId},
};

/// A log that was opened.
pub struct Recovered<R: Runtime> {
    /// The log, ready to append unless it is damaged.
    pub log: Rc<Log<R>>,
    /// The offset of its first record.
    pub start: Offset,
    /// The offset after its last intact record.
    pub end: Offset,
    /// The reign in which a single copy appends now: the one after the newest that was found.
    pub epoch: LeaderEpoch,
    /// Where reigns begin in the log of a replica, ascending, from its start on; of another, in its last segment.
    pub reigns: Reigns,
    /// What its batches say of their producers; nothing if it must not be written.
    pub producers: ProducerHistory,
    /// Why it must not be written.
    pub damage: Option<Damage>,
    /// Records behind the end that were durable and are lost: the first, and the one after the last. The two are the
    /// same if nobody knows how many there were.
    pub lost_end: Option<(Offset, Offset)>,
}

/// How often something is read before it is believed to be damaged. The second time a drive that gave the bytes of
/// another place gives those that were asked for; the third is for one that does so twice.
pub(super) const LOOKS: usize = 3;

/// Opens the log of a replica like any other, and finds out where reigns begin in it, for which it reads a block of
/// every segment. It is known to have been durable up to `end` (0: nothing is).
pub async fn open_replica<R: Runtime>(
    context: &Rc<LogContext<R>>,
    partition: PartitionId,
    (dir, end): (PathBuf, Offset),
) -> Result<Recovered<R>, LogFault> {
    let mut recovered = open_any(context, partition, (dir, end)).await?;
    let (reigns, damage) = recovered.log.reigns(recovered.start, &recovered.reigns).await?;
    recovered.reigns = reigns;
    recovered.damage = recovered.damage.or(damage);
    Ok(recovered)
}

/// Opens the log of `partition` in `dir`, which exists; makes it if it is new.
pub async fn open<R: Runtime>(
    context: &Rc<LogContext<R>>,
    partition: PartitionId,
    dir: PathBuf,
) -> Result<Recovered<R>, LogFault> {
    open_again(context, partition, (dir, Offset(0))).await
}

/// The same of a log that is known to have been durable up to `end`.
pub async fn open_again<R: Runtime>(
    context: &Rc<LogContext<R>>,
    partition: PartitionId,
    (dir, end): (PathBuf, Offset),
) -> Result<Recovered<R>, LogFault> {
    let recovered = open_any(context, partition, (dir, end)).await?;
    // Nobody has what is lost of the only copy.
    recovered.log.give_up_unread();
    Ok(recovered)
}

async fn open_any<R: Runtime>(
    context: &Rc<LogContext<R>>,
    partition: PartitionId,
    (dir, known_end): (PathBuf, Offset),
) -> Result<Recovered<R>, LogFault> {
    let runtime = &context.runtime;
    let fault = |operation, path: &PathBuf, error| LogFault::from_io(operation, path, &error);
    let unread = |operation, error| LogFault::unread(operation, &dir, &error);
    let list = async || runtime.list_dir(&dir).await.map_err(|e| unread("listing", e));
    let (mut entries, mut damage) = (list().await?, None);
    if refuse_other_versions(runtime, &entries).await? {
        runtime.sync_dir(&dir).await.map_err(|e| fault("syncing", &dir, e))?;
        damage = cut::finish_begun(runtime, (&dir, (partition.log, partition.index))).await?;
        entries = list().await?;
    }
    for path in files_in(&entries).filter(|path| path.ends_with(RENEWED_NAME)) {
        // It did not come to take a segment's place.
        unless_gone(runtime.remove_file(path).await).map_err(|e| fault("removing", &path.to_path_buf(), e))?;
    }
    let names = Names::of(files_in(&entries));
    let found = segments_in(context, partition, &dir, entries).await;
    let mut segments = found.map_err(|e| unread("listing", e))?;
    runtime.sync_dir(&dir).await.map_err(|e| fault("syncing", &dir, e))?;
    let owner = (Some(partition.log), partition.index);
    let read = start::read(runtime, &dir, owner).await.map_err(|e| unread("reading the start file in", e))?;
    let read = read.filter(|_| !planted(PlantedBug::ForgetStart));
    let first = segments.first().map_or(Offset(0), |segment| segment.base_offset());
    let start = Start {
        offset: read.as_ref().and_then(|read| read.as_ref().ok()).map_or(first, |start| first.max(*start)),
        damage: damage.or(read.and_then(Result::err).map(|reason| Damage {
            case: 'I',
            path: dir.join(start::FILE_NAME),
            position: 0,
            reason,
        })),
    };
    for base in names.missing_between().filter(|base| *base >= start.offset) {
        let missing = segment_path(&dir, base);
        tracing::error!(missing = %missing.display(), "a segment is missing: its records are lost");
    }
    loop {
        let Some(last) = segments.pop() else {
            if let Some(missing) = names.missing_end(None) {
                return Err(LogFault::Missing { dir, reason: missing.reason });
            }
            return create_first(context, (partition, dir), start).await;
        };
        let path = last.path.clone();
        let Some((segment, found)) = examine(context, partition, (last, known_end)).await? else {
            runtime.remove_file(&path).await.map_err(|e| fault("removing", &path, e))?;
            runtime.sync_dir(&dir).await.map_err(|e| fault("syncing", &dir, e))?;
            continue;
        };
        let missing = names.missing_end(Some(segment.base_offset()));
        segments.push(segment);
        if !names.has_begun() {
            begin(runtime, &dir).await;
        }
        return finish(context, (partition, dir, start), segments, (found, missing)).await;
    }
}

/// Where the log begins, and why that may not be so.
struct Start {
    offset: Offset,
    damage: Option<Damage>,
}

async fn finish<R: Runtime>(
    context: &Rc<LogContext<R>>,
    (partition, dir, start): (PartitionId, PathBuf, Start),
    segments: Vec<Rc<Segment<R>>>,
    (mut found, missing): (LastSegment, Option<MissingEnd>),
) -> Result<Recovered<R>, LogFault> {
    let last = Rc::clone(segments.last().expect("pushed by the caller")); // why: `open` pushes one
    let file = last.file.borrow().clone();
    let mut losses = Vec::new();
    let mut lost_end = match (&file, &found.damage) {
        (_, None) => None,
        (None, Some(_)) => Some((found.end_offset, found.durable_hint)),
        (Some(file), Some(_)) => {
            losses = read_behind_damage(context, &last, file, &mut found).await?;
            Some((found.end_offset, found.durable_hint)).filter(|(end, durable)| end < durable)
        }
    };
    if let Some(MissingEnd { known_end, reason }) = missing {
        let (path, position) = (last.path.clone(), found.end_position);
        found.damage.get_or_insert(Damage { case: 'H', path, position, reason });
        lost_end = lost_end.or(Some((found.end_offset, known_end.max(found.end_offset))));
    }
    last.end_position.set(found.end_position);
    last.prepared_end.set(found.prepared_end);
    *last.index.borrow_mut() = Some(found.index);
    if let (Some(file), None) = (file, &found.damage) {
        let fault = |operation, error| LogFault::from_io(operation, &last.path, &error);
        if found.torn {
            let (path, position) = (last.path.display(), found.cut_position);
            tracing::info!(%path, position, "case B: a torn tail is cut off");
            file.truncate(found.cut_position).await.map_err(|e| fault("truncating", e))?;
            file.fdatasync().await.map_err(|e| fault("fdatasync", e))?;
        }
    }
    let epoch = LeaderEpoch(found.epoch.0 + 1);
    let damage = found.damage.clone().or(start.damage);
    let (start, mut end) = (start.offset, found.end_offset);
    let log = assemble(context, (partition, dir), epoch, (segments, end));
    for lost in losses {
        log.report_loss(&last, lost);
    }
    let producers =
        if found.damage.is_none() { known_producers(&log, found.producers, start).await? } else { Default::default() };
    if start > end {
        tracing::info!(dir = %log.dir.display(), %start, %end, "case J: the log begins beyond the end of what is left");
        // None of the offsets between is used again: they were seen.
        end = start;
        log.end_offset.set(end);
        if damage.is_none() {
            let segment = create_at(context, (partition, &log.dir), start, epoch).await?;
            log.segments.borrow_mut().push(segment);
            log.keep_producers(&producers);
        }
    }
    log.release_before(start);
    let lost_end = lost_end.map(|(from, to)| (from.max(start), to.max(start)));
    Ok(Recovered { log, start, end, epoch, reigns: found.reigns, producers, damage, lost_end })
}

async fn create_at<R: Runtime>(
    context: &LogContext<R>,
    (partition, dir): (PartitionId, &Path),
    base_offset: Offset,
    epoch: LeaderEpoch,
) -> Result<Rc<Segment<R>>, LogFault> {
    let segment = Rc::new(Segment::planned(dir, new_header(context, partition, base_offset, epoch)));
    let file = create_segment(&context.runtime, &segment).await?;
    *segment.file.borrow_mut() = Some(file);
    Ok(segment)
}

/// What all batches say of their producers, if those of the last segment say `last`. Records before `start` are
/// deleted.
async fn known_producers<R: Runtime>(
    log: &Rc<Log<R>>,
    last: ProducerHistory,
    start: Offset,
) -> Result<ProducerHistory, LogFault> {
    if planted(PlantedBug::ForgetProducersAtRestart) {
        return Ok(ProducerHistory::default());
    }
    let segments = log.segments.borrow().clone();
    let Some((active, earlier)) = segments.split_last() else { return Ok(last) };
    let (gathered, is_kept) = producer_gathering::before(&log.context, earlier, active).await?;
    let mut producers = log.take_gathered(gathered, start);
    if !is_kept {
        log.keep_producers(&producers);
    }
    producers.follow(&last);
    Ok(producers)
}

fn assemble<R: Runtime>(
    context: &Rc<LogContext<R>>,
    (partition, dir): (PartitionId, PathBuf),
    epoch: LeaderEpoch,
    (segments, end_offset): (Vec<Rc<Segment<R>>>, Offset),
) -> Rc<Log<R>> {
    assert!(!segments.is_empty(), "a log has an active segment");
    Rc::new(Log {
        context: Rc::clone(context),
        opening: Opening(context.openings.replace(context.openings.get() + 1)),
        partition,
        dir,
        epoch: Cell::new(epoch),
        segments: RefCell::new(segments),
        released: RefCell::default(),
        tail: Default::default(),
        end_offset: Cell::new(end_offset),
        losses: Default::default(),
        unread: Default::default(),
        ahead: Default::default(),
        preparation: Default::default(),
        spare: Default::default(),
        end: Default::default(),
    })
}

/// Case G.
async fn create_first<R: Runtime>(
    context: &Rc<LogContext<R>>,
    (partition, dir): (PartitionId, PathBuf),
    start: Start,
) -> Result<Recovered<R>, LogFault> {
    let epoch = LeaderEpoch(1);
    let Start { offset: start, damage } = start;
    let segment = create_at(context, (partition, &dir), start, epoch).await?;
    begin(&context.runtime, &dir).await;
    let log = assemble(context, (partition, dir), epoch, (vec![segment], start));
    let producers = ProducerHistory::default();
    let reigns = Reigns::default();
    Ok(Recovered { log, start, end: start, epoch, reigns, producers, damage, lost_end: None })
}

/// Leaves the trace that the partition has had a segment. A trace, no promise: it is neither synced nor insisted on.
async fn begin<R: Runtime>(runtime: &R, dir: &Path) {
    let path = dir.join(BEGUN);
    if let Err(error) = runtime.open(&path, OpenMode::CreateTruncate).await {
        tracing::info!(path = %path.display(), %error, "the beginning of the log leaves no trace");
    }
}

fn files_in(entries: &[DirEntry]) -> impl Iterator<Item = &Path> {
    entries.iter().filter(|entry| !entry.is_dir).map(|entry| &*entry.path)
}

/// Before anything in the directory is touched: opening removes, cuts off and writes anew what it takes for damaged.
/// Gives whether something was to be cut off when the log was used last.
async fn refuse_other_versions<R: Runtime>(runtime: &R, entries: &[DirEntry]) -> Result<bool, LogFault> {
    let files = || files_in(entries);
    let versions = Versions::of(&Names::of(files()));
    let last = files().filter_map(base_offset_of).max();
    for path in files().filter(|path| versions.wants(path, 0).is_some()) {
        let read = async {
            let file = runtime.open(path, OpenMode::Existing).await?;
            let wanted = versions.wants(path, file.size().await?).unwrap_or_default();
            file.read_at(0, wanted.next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize)).await
        };
        match read.await {
            Ok(_) if planted(PlantedBug::OtherVersionIsDamage) => {}
            Ok(bytes) => versions.judge(path, &bytes)?,
            // A sealed segment is not needed yet, and opening changes nothing in it.
            Err(error) if base_offset_of(path).is_some_and(|base| Some(base) < last) => {
                tracing::warn!(file = %path.display(), %error, "its format version cannot be read");
            }
            Err(error) => return Err(LogFault::unread("reading", path, &error)),
        }
    }
    let is_cut = files().any(|path| path.ends_with(cut::FILE_NAME));
    Ok(is_cut)
}

/// The segments of a directory by base offset, as far as their names and sizes tell. What is left of deleted segments
/// is given to the reaper.
async fn segments_in<R: Runtime>(
    context: &Rc<LogContext<R>>,
    partition: PartitionId,
    dir: &Path,
    entries: Vec<DirEntry>,
) -> std::io::Result<Vec<Rc<Segment<R>>>> {
    let mut segments = Vec::new();
    let first = entries.iter().filter_map(|entry| base_offset_of(&entry.path)).min();
    for entry in entries {
        // Behind the first segment it is a trace of one that should be there.
        let is_before = |segment: PathBuf| base_offset_of(&segment) < first;
        if is_deleted_segment(&entry.path) || segment_of_sidecar(&entry.path).is_some_and(is_before) {
            Reaper::remove(context, entry.path.clone());
        }
        let Some(base_offset) = base_offset_of(&entry.path).filter(|_| !entry.is_dir) else { continue };
        let file = context.runtime.open(&entry.path, OpenMode::Existing).await?;
        // The header is read when the segment is; until then these stand for it.
        let segment = Segment::planned(dir, new_header(context, partition, base_offset, LeaderEpoch(0)));
        segment.end_position.set(file.size().await?);
        *segment.index.borrow_mut() = None;
        segments.push(Rc::new(segment));
    }
    Ok(segments)
}

/// Reads the last segment of a log that was durable up to `known_end`. `None` in case D.
async fn examine<R: Runtime>(
    context: &LogContext<R>,
    partition: PartitionId,
    (last, known_end): (Rc<Segment<R>>, Offset),
) -> Result<Option<(Rc<Segment<R>>, LastSegment)>, LogFault> {
    let fault = |error: std::io::Error| LogFault::unread("reading", &last.path, &error);
    let file = context.runtime.open(&last.path, OpenMode::Existing).await.map_err(fault)?;
    let size = last.end_position.get();
    if !planted(PlantedBug::NoWaitForWrites) {
        let settled = settle(&file, size).await;
        settled.map_err(|error| LogFault::from_io("waiting for writes to", &last.path, &error))?;
    }
    if !planted(PlantedBug::NoSyncBeforeTrust) {
        file.fdatasync().await.map_err(|error| LogFault::failed("fdatasync", &last.path, &error))?;
    }
    let file = Rc::new(file);
    let mut seen = look(partition, (&last, &file), known_end).await?;
    for _ in 1..LOOKS {
        let Some(damage) = seen.as_ref().and_then(|(_, found)| found.damage.clone()) else { break };
        // A segment that has something is not removed because it seems to have nothing once.
        let Some((segment, found)) = look(partition, (&last, &file), known_end).await? else { continue };
        if found.damage.is_none() {
            tracing::warn!(%damage, "that was seen, and is not so: the drive gave other bytes than it has");
        }
        seen = Some((segment, found));
    }
    Ok(seen)
}

/// One look at the last segment; see [`examine`].
async fn look<R: Runtime>(
    partition: PartitionId,
    (last, file): (&Rc<Segment<R>>, &Rc<R::File>),
    known_end: Offset,
) -> Result<Option<(Rc<Segment<R>>, LastSegment)>, LogFault> {
    let fault = |error: std::io::Error| LogFault::unread("reading", &last.path, &error);
    let size = last.end_position.get();
    let block = file.read_at(0, BEGINNING_BYTES).await.map_err(fault)?;
    let reason = match Beginning::of(&block, size, (Some(partition.log), partition.index, last.base_offset())) {
        Beginning::Intact(header) => {
            let dir = last.path.parent().unwrap_or(&last.path);
            let segment = Rc::new(Segment::planned(dir, header));
            *segment.file.borrow_mut() = Some(Rc::clone(file));
            let mut scan = LastScan::new(segment.path.clone(), header, size).knowing(known_end);
            while let Some((position, len)) = scan.wants() {
                scan.take(&file.read_at(position, len).await.map_err(fault)?);
            }
            return Ok(Some((segment, scan.verdict())));
        }
        Beginning::Nothing if known_end > last.base_offset() => "its batches are missing".to_owned(),
        Beginning::Nothing => return Ok(None),
        Beginning::Damaged(reason) => reason,
    };
    let damage = Damage { case: 'E', path: last.path.clone(), position: 0, reason };
    let found = LastSegment {
        end_offset: last.base_offset(),
        end_position: size,
        cut_position: size,
        prepared_end: size,
        torn: false,
        durable_hint: last.base_offset().max(known_end),
        epoch: LeaderEpoch(0),
        reigns: Reigns::default(),
        index: Index::default(),
        producers: ProducerHistory::default(),
        damage: Some(damage),
    };
    Ok(Some((Rc::clone(last), found)))
}

/// Waits for the writes that an earlier process left under way to `file` of `size` bytes: makes it longer by a block
/// and cuts that off again, for which a file system must wait. A sync does not. Measured on ext4 with a throttled
/// drive: with a write under way whose process was killed, fdatasync returned at once, a read gave the old bytes, and
/// 1.7 s later the new ones stood there. A crash half-way leaves a block of zeros, as if it had been prepared.
async fn settle<F: File>(file: &F, size: u64) -> std::io::Result<()> {
    file.truncate(size + DEVICE_BLOCK_BYTES_MAX).await?;
    file.truncate(size).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::RequestError,
        limits::SEGMENT_HEADER_BYTES,
        log::{
            fixture::{P, batch_of, context, edit, placed},
            flush::Commit,
            loading::headers_of,
            read::ReadRange,
            segment::segment_path,
            version::OtherVersion,
        },
        record::check_produced,
        runtime::{
            Buffer,
            sim::{
                Sim, SimConfig, SimRuntime,
                faults::{FaultKind, FaultRates},
            },
        },
    };

    const STEPS: u64 = 100_000;

    async fn open_here(context: &Rc<LogContext<SimRuntime>>) -> Result<Recovered<SimRuntime>, LogFault> {
        context.runtime.create_dir_all(Path::new("/p")).await.unwrap();
        open(context, P, PathBuf::from("/p")).await
    }

    /// A log with ten records that are written and not synced.
    async fn unsynced(context: Rc<LogContext<SimRuntime>>) -> Rc<Log<SimRuntime>> {
        let log = open_here(&context).await.unwrap().log;
        for offset in 0..10 {
            let batch = batch_of(800);
            log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
            log.write_waiting(Commit::Written).await.unwrap();
        }
        log
    }

    fn everything(sim: &Sim) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        sim.files().into_iter().map(|(path, _)| (path.clone(), sim.content(&path))).collect()
    }

    /// Lets all copies of a magic say `version`, with a checksum that is not ours; or does away with that again.
    async fn say_version(context: &LogContext<SimRuntime>, path: &Path, version: u8) {
        let copies = if path.ends_with(start::FILE_NAME) { 8 } else { 1 };
        for copy in 0..copies {
            let at = copy * 512;
            let change = |bytes: &mut [u8]| (bytes[3], bytes[4]) = (b'0' + version, bytes[4] ^ 1);
            edit(&context.runtime, path, at..at + 512, change).await;
        }
    }

    #[test]
    fn a_file_of_another_version_is_refused_and_nothing_in_the_directory_is_touched() {
        let (first, second) = (segment_path(Path::new("/p"), Offset(0)), segment_path(Path::new("/p"), Offset(10)));
        // Without its batches a last segment looks as if it had been created only.
        for (name, batches, version) in [(&first, 0, 2), (&first, 1, 0), (&second, 1, 2), (&second, 0, 2)]
            .into_iter()
            .map(|(path, batches, version)| (path.clone(), batches, version))
            .chain([(PathBuf::from("/p/start"), 1, 2), (PathBuf::from("/p/start"), 1, 9)])
        {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let (setting_up, path) = (Rc::clone(&context), name.clone());
            let setup = async move {
                let log = unsynced(Rc::clone(&setting_up)).await;
                let next = Rc::new(Segment::planned(Path::new("/p"), log.new_header(Offset(10), LeaderEpoch(1))));
                create_segment(&setting_up.runtime, &next).await.unwrap();
                start::write(&setting_up.runtime, Path::new("/p"), (P.log, P.index), Offset(3)).await.unwrap();
                if batches == 0 {
                    let file = setting_up.runtime.open(&path, OpenMode::Existing).await.unwrap();
                    file.truncate(SEGMENT_HEADER_BYTES).await.unwrap();
                }
                let dead = Path::new("/p/00000000000000000000.del");
                setting_up.runtime.open(dead, OpenMode::CreateTruncate).await.unwrap();
                say_version(&setting_up, &path, version).await;
                setting_up.runtime.sleep(std::time::Duration::from_millis(50)).await;
            };
            sim.block_on(&cores[0], setup, STEPS).unwrap();
            let before = everything(&sim);
            let opening = Rc::clone(&context);
            let opened = sim.block_on(&cores[0], async move { open_here(&opening).await.map(|_| ()) }, STEPS);
            let other = OtherVersion { path: name.clone(), found: version, supported: 1 };
            assert_eq!(opened.unwrap(), Err(LogFault::Version(other)), "{name:?}, {batches} batches");
            sim.run_for(std::time::Duration::from_millis(50), STEPS).unwrap();
            assert!(everything(&sim) == before, "{name:?}, {batches} batches: something was touched");
            let healed = async move {
                say_version(&context, &name, 1).await;
                open_here(&context).await.unwrap().end
            };
            assert_eq!(sim.block_on(&cores[0], healed, STEPS).unwrap(), Offset(10));
        }
    }

    #[test]
    fn a_bit_of_a_version_that_turned_over_is_damage_of_a_header_and_no_other_version() {
        for version in [0, 3, 5, 9] {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let story = async move {
                unsynced(Rc::clone(&context)).await;
                let path = segment_path(Path::new("/p"), Offset(0));
                edit(&context.runtime, &path, 0..512, |bytes| bytes[3] = b'0' + version).await;
                open_here(&context).await.unwrap().damage.map(|damage| damage.case)
            };
            assert_eq!(sim.block_on(&cores[0], story, STEPS).unwrap(), Some('E'), "version {version}");
        }
    }

    #[test]
    fn an_index_of_another_version_is_made_anew() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = unsynced(Rc::clone(&context)).await;
            let next = Rc::new(Segment::planned(Path::new("/p"), log.new_header(Offset(10), LeaderEpoch(1))));
            create_segment(&context.runtime, &next).await.unwrap();
            let log = open_here(&context).await.unwrap().log;
            let range = ReadRange { offset: Offset(0), end: Offset(10), max_bytes: 1 << 16 };
            log.read_disk(range).await.unwrap();
            let path = Path::new("/p/00000000000000000000.idx");
            say_version(&context, path, 2).await;
            let log = open_here(&context).await.unwrap().log;
            log.read_disk(range).await.unwrap();
            let file = context.runtime.open(path, OpenMode::Existing).await.unwrap();
            file.read_at(0, 512).await.unwrap().slice(..4)
        };
        assert_eq!(sim.block_on(&cores[0], story, STEPS).unwrap(), &b"PYI1"[..]);
    }

    #[test]
    fn a_file_that_ends_within_a_block_goes_on_at_a_block() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            unsynced(Rc::clone(&context)).await;
            let file =
                context.runtime.open(&segment_path(Path::new("/p"), Offset(0)), OpenMode::Existing).await.unwrap();
            file.truncate(50_001).await.unwrap();
            let Recovered { log, end, damage, .. } = open_here(&context).await.unwrap();
            assert_eq!((end, damage), (Offset(10), None));
            let batch = batch_of(50_000);
            log.append(&batch, &check_produced(&batch).unwrap(), placed(end.0, end.0));
            log.write_waiting(Commit::Written).await.unwrap();
            open_here(&context).await.unwrap().end
        };
        assert_eq!(sim.block_on(&cores[0], story, STEPS).unwrap(), Offset(11));
    }

    #[test]
    fn a_log_goes_on_where_the_block_is_another_than_it_was() {
        for (before, now) in [(4096, 512), (512, 4096)] {
            let sim = Sim::new(1, &SimConfig { alignment: u64::from(before.min(now)), ..SimConfig::default() });
            let (_, cores) = sim.process(1);
            let (first, second) = (context(&cores[0], before), context(&cores[0], now));
            let story = async move {
                unsynced(first).await;
                let mut end = open_here(&second).await.unwrap().end;
                for _ in 0..2 {
                    let Recovered { log, end: found, damage, .. } = open_here(&second).await.unwrap();
                    assert_eq!((found, damage), (end, None));
                    for _ in 0..3 {
                        let batch = batch_of(800);
                        log.append(&batch, &check_produced(&batch).unwrap(), placed(end.0, end.0));
                        log.write_waiting(Commit::Written).await.unwrap();
                        end = end.advance(1);
                    }
                }
                open_here(&second).await.unwrap().end
            };
            assert_eq!(sim.block_on(&cores[0], story, STEPS).unwrap(), Offset(16), "{before}, then {now}");
        }
    }

    #[test]
    fn a_sync_of_the_life_before_that_fails_during_recovery_takes_nothing_that_is_then_trusted() {
        let mut met = 0;
        for delay in (0..5_000).step_by(20) {
            let sim = Sim::new(delay, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let old = sim.block_on(&cores[0], unsynced(Rc::clone(&context)), STEPS).unwrap();
            let recovered = Rc::new(RefCell::new(None));
            let (slot, opening) = (Rc::clone(&recovered), Rc::clone(&context));
            cores[0].spawn(async move {
                let opened = open_here(&opening).await;
                *slot.borrow_mut() = Some(opened);
            });
            sim.run_for(std::time::Duration::from_micros(delay), STEPS).unwrap();
            cores[0].spawn(async move { drop(old.sync().await) });
            sim.set_rates(FaultRates::none().with(FaultKind::SyncError, 10_000));
            let failed = || sim.counts().get(FaultKind::SyncError) == 1;
            sim.run_until(failed, STEPS).unwrap();
            sim.set_rates(FaultRates::none());
            sim.run_until(|| recovered.borrow().is_some(), STEPS).unwrap();
            let trusted = recovered.borrow_mut().take().unwrap().map(|found| (found.end, found.damage));
            let Ok((end, None)) = trusted else { continue };
            met += 1;
            let again = sim.block_on(&cores[0], async move { open_here(&context).await }, STEPS).unwrap().unwrap();
            assert_eq!((again.end, again.damage), (end, None), "{delay} µs after the beginning");
        }
        assert!(met > 50, "only {met} recoveries came through");
    }

    /// The offsets of the records before `end` that the drive gives, each of which is a batch.
    async fn served(log: &Rc<Log<SimRuntime>>, end: Offset) -> Vec<u64> {
        let mut read = Vec::new();
        let mut range = ReadRange { offset: Offset(0), end, max_bytes: 1 << 16 };
        while range.offset < end {
            match log.read_disk(range).await {
                Ok(pieces) => read.extend(pieces.iter().flat_map(headers_of).map(|header| header.base_offset.0)),
                Err(RequestError::Corrupt { to, .. }) => {
                    range.offset = to;
                    continue;
                }
                Err(other) => panic!("{other}"),
            }
            range.offset = Offset(read.last().unwrap() + 1);
        }
        read
    }

    #[test]
    fn what_is_intact_behind_damage_in_the_last_segment_is_served_up_to_what_may_be_taken_back() {
        // Which batches are damaged, what the last hint says, and what is then read.
        let cases: [(&[u64], u64, u64, &[u64]); 7] = [
            (&[3], 9, 10, &[0, 1, 2, 4, 5, 6, 7, 8, 9]),
            (&[3, 4, 7], 9, 10, &[0, 1, 2, 5, 6, 8, 9]),
            // Nothing says that record 9 was durable: it was cut off.
            (&[3, 9], 9, 9, &[0, 1, 2, 4, 5, 6, 7, 8]),
            (&[3, 6], 5, 6, &[0, 1, 2, 4, 5]),
            (&[3, 6], 6, 6, &[0, 1, 2, 4, 5]),
            (&[3, 6, 8], 5, 6, &[0, 1, 2, 4, 5]),
            (&[0], 9, 10, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ];
        for (damaged, hint, end, intact) in cases {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let story = async move {
                let log = open_here(&context).await.unwrap().log;
                let batch = batch_of(800);
                for offset in 0..10 {
                    let placed = placed(offset, offset.min(hint));
                    log.append(&batch, &check_produced(&batch).unwrap(), placed);
                    log.write_waiting(Commit::Written).await.unwrap();
                }
                let path = segment_path(Path::new("/p"), Offset(0));
                let file = context.runtime.open(&path, OpenMode::Existing).await.unwrap();
                for n in damaged {
                    let position = SEGMENT_HEADER_BYTES + n * 1024;
                    let block = file.read_at(position, 512).await.unwrap();
                    let mut buffer = context.runtime.allocate(4096);
                    buffer.trim(512);
                    buffer.bytes_mut().copy_from_slice(&block);
                    buffer.bytes_mut()[10] ^= 1;
                    file.write_at(position, Rc::new(buffer)).await.unwrap();
                }
                let Recovered { log, end, damage, lost_end, .. } = open_here(&context).await.unwrap();
                assert_eq!((damage.map(|damage| damage.case), lost_end), (Some('C'), None));
                (end, served(&log, end).await)
            };
            let found = sim.block_on(&cores[0], story, STEPS).unwrap();
            assert_eq!(found, (Offset(end), intact.to_vec()), "{damaged:?} damaged");
        }
    }

    #[test]
    fn a_hole_in_which_no_record_is_missing_ends_nothing_in_a_last_segment_that_is_damaged() {
        // Batches of 1024 bytes but for number 7, which has 2048. From where to where a drive moved a group, what the
        // hints say at most, and what is then found and read.
        let cases: [(u64, u64, u64, char, &[u64]); 4] = [
            (7, 5, 8, 'C', &[0, 1, 2, 3, 4, 7, 8, 9]),
            (7, 5, 7, 'C', &[0, 1, 2, 3, 4, 7, 8, 9]),
            // Beyond the end.
            (9, 13, 9, 'F', &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            // Record 8 is missing, and nothing says that it was durable.
            (8, 5, 8, 'C', &[0, 1, 2, 3, 4, 6, 7]),
        ];
        for (from, to, hint, case, intact) in cases {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let story = async move {
                let log = open_here(&context).await.unwrap().log;
                for offset in 0..10 {
                    let batch = batch_of(if offset == 7 { 2048 } else { 1024 });
                    log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, offset.min(hint)));
                    log.write_waiting(Commit::Written).await.unwrap();
                }
                let at = |number: u64| SEGMENT_HEADER_BYTES + 1024 * (number + u64::from(number > 7));
                let path = segment_path(Path::new("/p"), Offset(0));
                let mut moved = Vec::new();
                let take = |group: &mut [u8]| {
                    moved = group.to_vec();
                    group.fill(0);
                };
                edit(&context.runtime, &path, at(from)..at(from + 1), take).await;
                let end = at(to) + moved.len() as u64;
                edit(&context.runtime, &path, at(to)..end, |place| place.copy_from_slice(&moved)).await;
                let Recovered { log, end, damage, .. } = open_here(&context).await.unwrap();
                (damage.map(|damage| damage.case), served(&log, end).await)
            };
            let found = sim.block_on(&cores[0], story, STEPS).unwrap();
            assert_eq!(found, (Some(case), intact.to_vec()), "{from} where {to} was, hints up to {hint}");
        }
    }

    #[test]
    fn a_durable_hint_counts_wherever_in_a_flush_group_it_stands() {
        for block in [512, 4096] {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], block);
            let story = async move {
                let log = open_here(&context).await.unwrap().log;
                let batch = batch_of(800);
                for offset in 0..6 {
                    // Only the very last batch knows that those before its group were durable.
                    let hint = if offset == 5 { 4 } else { 0 };
                    log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, hint));
                    if offset % 2 == 1 {
                        log.write_waiting(Commit::Written).await.unwrap();
                    }
                }
                let second = SEGMENT_HEADER_BYTES + 1600u64.next_multiple_of(u64::from(block));
                let path = segment_path(Path::new("/p"), Offset(0));
                edit(&context.runtime, &path, second..second + 512, |bytes| bytes[10] ^= 1).await;
                let Recovered { damage, end, .. } = open_here(&context).await.unwrap();
                (damage.map(|damage| damage.case), end)
            };
            let found = sim.block_on(&cores[0], story, STEPS).unwrap();
            assert_eq!(found, (Some('C'), Offset(6)), "blocks of {block}");
        }
    }

    #[test]
    fn a_log_that_has_had_a_segment_is_not_taken_for_a_new_one_when_that_is_gone() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            // The trace is left when the segment is made, and again when it is opened and has none.
            for is_reopened in [false, true] {
                drop(open_here(&context).await.unwrap());
                let trace = Path::new("/p").join(BEGUN);
                if is_reopened {
                    context.runtime.remove_file(&trace).await.unwrap();
                    drop(open_here(&context).await.unwrap());
                }
                context.runtime.remove_file(&segment_path(Path::new("/p"), Offset(0))).await.unwrap();
                let opened = open_here(&context).await.map(drop);
                assert!(matches!(opened, Err(LogFault::Missing { .. })), "{opened:?}");
                context.runtime.remove_file(&trace).await.unwrap();
            }
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn a_sealed_segment_that_cannot_be_read_does_not_keep_a_log_from_opening_and_the_last_one_does() {
        let setup = async |context: &Rc<LogContext<SimRuntime>>| {
            let log = open_here(context).await.unwrap().log;
            let batch = batch_of(800);
            for offset in 0..2 {
                log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
                log.write_waiting(Commit::Durable).await.unwrap();
                if offset == 0 {
                    log.roll(Offset(1), &ProducerHistory::default()).await.unwrap();
                }
            }
            context.runtime.sleep(std::time::Duration::from_millis(50)).await;
        };
        let paths = [0, 1].map(|base| segment_path(Path::new("/p"), Offset(base)));
        for (path, opens) in paths.iter().zip([true, false]) {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let path = path.clone();
            let story = async move {
                setup(&context).await;
                let entries = context.runtime.list_dir(Path::new("/p")).await.unwrap();
                // Gone since the directory was listed.
                context.runtime.remove_file(&path).await.unwrap();
                refuse_other_versions(&context.runtime, &entries).await
            };
            let judged = sim.block_on(&cores[0], story, STEPS).unwrap();
            if opens {
                assert_eq!(judged, Ok(false));
            } else {
                assert!(matches!(judged, Err(LogFault::Failed { .. })), "{judged:?}");
            }
        }
    }
}

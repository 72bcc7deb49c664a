//! One partition's files: every segment from its header to its end, the offsets from one to the next, and the sidecars.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use super::{Disk, Finding, Kind, Piece, Remedy, Source, walk_segment};
use crate::{
    limits::{DEVICE_BLOCK_BYTES_MAX, INDEX_INTERVAL_BYTES, PRODUCERS_PER_PARTITION_MAX},
    log::{
        index::{Index, SidecarKey},
        last_segment::{BEGINNING_BYTES, Beginning, LastScan, LastSegment},
        missing::{BEGUN, MissingEnd, Names},
        producer_snapshot::{self, SnapshotKey},
        segment::{
            SegmentHeader, base_offset_of, belongs_to_log, index_base_of, is_deleted_segment, is_spare,
            producers_base_of, segment_of_sidecar,
        },
        start::{self, is_start_file},
    },
    record::ProducerHistory,
    types::{LogUid, Offset, PartitionIndex},
};

/// Findings in one segment after which it is given up: there is hardly anything right in it.
const FINDINGS_PER_SEGMENT_MAX: usize = 1000;

/// Bytes of a sidecar for each entry, generously; bounds what is read of one.
const SIDECAR_BYTES_PER_ENTRY_MAX: u64 = 64;

/// What is read of a snapshot of producers: 256 bytes for each, generously.
const SNAPSHOT_BYTES_MAX: u64 = DEVICE_BLOCK_BYTES_MAX + 256 * PRODUCERS_PER_PARTITION_MAX as u64;

const DURABLE: Remedy = Remedy::None("the records were durable; restore them from a copy");

/// Which files to check.
#[derive(Clone, Debug)]
pub struct PartitionFiles {
    /// Where they are.
    pub dir: PathBuf,
    /// The log's number, if the catalogue tells.
    pub log: Option<LogUid>,
    /// The partition.
    pub index: PartitionIndex,
    /// Whether a server is at work in them: then the last segment is left out, and nothing that is missing in a moment
    /// is held against it.
    pub in_use: bool,
}

/// How much was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Segment files.
    pub segments: u64,
    /// Batches that are intact.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Bytes of the segment files.
    pub bytes: u64,
}

struct Listed {
    path: PathBuf,
    base_offset: Offset,
}

struct Check<'a, D: Disk> {
    disk: &'a D,
    files: PartitionFiles,
    findings: Vec<Finding>,
    totals: Totals,
    /// The offset after the last segment that was read whole; `None` after one that was not.
    expected: Option<Offset>,
    /// What the batches so far say of their producers; `None` while that is not known: after damage, and before the
    /// first snapshot of a log whose beginning is gone.
    producers: Option<ProducerHistory>,
}

/// Checks a partition.
///
/// Errors: its directory cannot be listed.
pub fn check_partition<D: Disk>(disk: &D, files: PartitionFiles) -> io::Result<(Vec<Finding>, Totals)> {
    let entries = disk.list(&files.dir)?;
    let producers = Some(ProducerHistory::default());
    let mut check = Check { disk, files, findings: Vec::new(), totals: Totals::default(), expected: None, producers };
    let mut segments = Vec::new();
    let mut others = Vec::new();
    for entry in entries {
        match base_offset_of(&entry.path).filter(|_| !entry.is_dir) {
            Some(base_offset) => segments.push(Listed { path: entry.path, base_offset }),
            None => others.push(entry.path),
        }
    }
    let known_start = check.start(&others);
    let start = known_start.unwrap_or_default();
    check.before_the_beginning(&mut segments, start);
    if segments.first().is_some_and(|first| first.base_offset.0 > 0) {
        check.producers = None;
    }
    let names = Names::of(segments.iter().map(|segment| &segment.path).chain(&others).map(|path| &**path));
    check.strays(&segments, &others);
    if known_start.is_some() {
        check.beginning_of_log(segments.first(), start);
    }
    if let Some(last) = check.segments(segments, (&others, start)) {
        check.missing_end(&names, last);
    }
    Ok((check.findings, check.totals))
}

impl<D: Disk> Check<'_, D> {
    /// Where the log begins, as its start file says; `None` if that cannot be known.
    fn start(&mut self, others: &[PathBuf]) -> Option<Offset> {
        let path = self.files.dir.join(start::FILE_NAME);
        if !others.contains(&path) {
            return Some(Offset(0));
        }
        let read = self.disk.open(&path).and_then(|file| file.read_at(0, DEVICE_BLOCK_BYTES_MAX as usize));
        match read.map(|bytes| start::decode(&bytes, (self.files.log, self.files.index))) {
            Ok(Ok(start)) => return Some(start),
            Ok(Err(reason)) => {
                let finding = Finding::new(Kind::Start, &path, reason).at(0).case('I');
                self.findings.push(finding.remedy(Remedy::SetAside));
            }
            Err(error) => self.unreadable(&path, 0, &error),
        }
        None
    }

    /// Takes the segments out that lie before `start` whole: nothing depends on what is in them.
    fn before_the_beginning(&mut self, segments: &mut Vec<Listed>, start: Offset) {
        let count = segments.iter().skip(1).take_while(|next| next.base_offset <= start).count();
        for segment in segments.drain(..count) {
            self.deleted(&segment.path, &format!("all its records lie before offset {start}, where the log begins"));
        }
    }

    fn deleted(&mut self, path: &Path, reason: &str) {
        let remedy = Remedy::None("the server removes it");
        self.findings.push(Finding::new(Kind::Deleted, path, reason).remedy(remedy));
    }

    fn strays(&mut self, segments: &[Listed], others: &[PathBuf]) {
        for path in others {
            if is_start_file(path) && path.ends_with(start::FILE_NAME) {
                continue;
            }
            let of_deleted = |sidecar: &Path| {
                let finding = |known: &&Finding| known.kind == Kind::Deleted;
                let segment = segment_of_sidecar(sidecar);
                self.findings.iter().filter(finding).any(|known| segment.as_ref() == Some(&known.path))
            };
            if is_start_file(path) || is_deleted_segment(path) || of_deleted(path) {
                if !self.files.in_use {
                    self.deleted(path, "it was deleted, or not finished");
                }
                continue;
            }
            let segment = path.with_extension("seg");
            // What shows that the end of the log is missing must not be tidied away.
            let newest = segments.last().map(|last| last.base_offset);
            let trace = index_base_of(path).or(producers_base_of(path)).filter(|base| Some(*base) > newest);
            if trace.is_some() || is_spare(path) || path.file_name().is_some_and(|name| name == BEGUN) {
                continue;
            }
            if belongs_to_log(path) && (self.files.in_use || segments.iter().any(|known| known.path == segment)) {
                continue;
            }
            let is_ours =
                path.extension().is_some_and(|suffix| ["seg", "idx", "prd"].iter().any(|ours| suffix == *ours));
            let finding = match (belongs_to_log(path), is_ours) {
                (true, _) => Finding::new(Kind::Stray, path, "a sidecar without its segment").remedy(Remedy::SetAside),
                (_, true) => Finding::new(Kind::Stray, path, "no segment has such a name").remedy(Remedy::SetAside),
                _ => {
                    let alone = Remedy::None("the server does not look at it");
                    Finding::new(Kind::Unknown, path, "it is no file of a log").remedy(alone)
                }
            };
            self.findings.push(finding);
        }
    }

    /// Records are deleted only after the start file says so.
    fn beginning_of_log(&mut self, first: Option<&Listed>, start: Offset) {
        let Some(first) = first.filter(|first| first.base_offset > start) else { return };
        let base = first.base_offset;
        let reason = format!("records {start} to {} are in no segment; the first one begins at {base}", base.0 - 1);
        let finding = Finding::new(Kind::Chain, &self.files.dir, reason).case('C').remedy(DURABLE);
        self.findings.push(finding.records(start, base));
    }

    /// What was trimmed may never have been durable.
    fn beginning_beyond_the_end(&mut self, path: &Path, found: &LastSegment, start: Offset) {
        let end = found.end_offset;
        if found.damage.is_none() && end < start {
            let reason = format!("the log begins at {start}, after its last record, {end}: those between were trimmed");
            let remedy = Remedy::None("the next start goes on at that offset");
            self.findings.push(Finding::new(Kind::Deleted, path, reason).case('J').remedy(remedy));
        }
    }

    /// The end of the log, of which the last segment has `last`: is it the end?
    fn missing_end(&mut self, names: &Names, last: Option<Offset>) {
        let Some(MissingEnd { known_end, reason }) = names.missing_end(last) else { return };
        if last.is_none() {
            // It is known now which of the two it is.
            self.findings.retain(|finding| finding.kind != Kind::NoSegment);
        }
        let finding = Finding::new(Kind::Missing, &self.files.dir, reason).case('H').remedy(DURABLE);
        self.findings.push(finding.records(self.expected.unwrap_or(known_end), known_end));
    }

    /// The segments in order. The last ones may have been created and never written to, which says nothing against the
    /// one before. Gives the base offset of the last one that has something to say; nothing at all of a log in use.
    fn segments(&mut self, mut segments: Vec<Listed>, (others, start): (&[PathBuf], Offset)) -> Option<Option<Offset>> {
        if self.files.in_use {
            let active = segments.pop().map(|active| active.base_offset);
            self.sealed(&segments, active, others);
            return None;
        }
        while let Some(last) = segments.pop() {
            match self.beginning(&last) {
                Ok((Beginning::Nothing, _)) => {
                    let reason = "it was created, and power was lost before its header was written";
                    let finding = Finding::new(Kind::EmptySegment, &last.path, reason).at(0).case('D');
                    self.findings.push(finding.remedy(Remedy::SetAside));
                }
                Ok((Beginning::Damaged(reason), size)) => {
                    self.sealed(&segments, Some(last.base_offset), others);
                    self.totals.segments += 1;
                    self.totals.bytes += size;
                    let finding = Finding::new(Kind::Header, &last.path, reason).at(0).case('E');
                    self.findings.push(finding.remedy(DURABLE));
                    return Some(Some(last.base_offset));
                }
                Ok((Beginning::Intact(header), size)) => {
                    self.sealed(&segments, Some(last.base_offset), others);
                    self.snapshot(&last.path, &header, others);
                    self.last(&last.path, (&header, size), start);
                    return Some(Some(last.base_offset));
                }
                Err(error) => {
                    self.sealed(&segments, Some(last.base_offset), others);
                    self.unreadable(&last.path, 0, &error);
                    return Some(Some(last.base_offset));
                }
            }
        }
        let reason = "it has no segment: it is new, or its files are lost";
        self.findings.push(Finding::new(Kind::NoSegment, &self.files.dir, reason).case('G'));
        Some(None)
    }

    fn unreadable(&mut self, path: &Path, position: u64, error: &io::Error) {
        // A log that is deleted while we look at it is no damage.
        if !(self.files.in_use && error.kind() == io::ErrorKind::NotFound) {
            self.findings.push(Finding::new(Kind::Unreadable, path, error.to_string()).at(position));
        }
    }

    fn beginning(&mut self, segment: &Listed) -> io::Result<(Beginning, u64)> {
        let file = self.disk.open(&segment.path)?;
        let size = file.size()?;
        let block = file.read_at(0, BEGINNING_BYTES)?;
        let beginning = Beginning::of(&block, size, (self.files.log, self.files.index, segment.base_offset));
        if let Beginning::Intact(header) = &beginning {
            // Without a catalogue the first header says whose files these are.
            self.files.log.get_or_insert(header.partition.log);
        }
        Ok((beginning, size))
    }

    /// The sealed segments, and whether the last one of the log, at `last`, follows them.
    fn sealed(&mut self, segments: &[Listed], last: Option<Offset>, others: &[PathBuf]) {
        let bases = segments.iter().map(|segment| segment.base_offset).skip(1).chain(last);
        for (segment, next) in segments.iter().zip(bases) {
            self.expected = None;
            match self.beginning(segment) {
                Ok((Beginning::Intact(header), size)) => self.sealed_segment(segment, (&header, size), next, others),
                Ok((beginning, size)) => {
                    self.totals.segments += 1;
                    self.totals.bytes += size;
                    let reason = match beginning {
                        Beginning::Damaged(reason) => reason,
                        _ => "its header block is missing".to_owned(),
                    };
                    let finding = Finding::new(Kind::Header, &segment.path, reason).at(0).case('E');
                    self.findings.push(finding.records(segment.base_offset, next).remedy(DURABLE));
                }
                Err(error) => self.unreadable(&segment.path, 0, &error),
            }
            self.chain(next, &segment.path);
        }
    }

    /// Between two segments: `next` is what the second begins with, `path` the first.
    fn chain(&mut self, next: Offset, path: &Path) {
        let Some(expected) = self.expected.filter(|expected| *expected != next) else { return };
        let (case, reason) = if next > expected {
            ('C', format!("records {expected} to {} are in no segment; the next one begins at {next}", next.0 - 1))
        } else {
            ('F', format!("it ends before {expected}, but the next one begins at {next}"))
        };
        let finding = Finding::new(Kind::Chain, path, reason).case(case).remedy(DURABLE);
        self.findings.push(finding.records(expected.min(next), expected.max(next)));
    }

    fn sealed_segment(
        &mut self,
        segment: &Listed,
        (header, size): (&SegmentHeader, u64),
        next: Offset,
        others: &[PathBuf],
    ) {
        let path = &segment.path;
        self.snapshot(path, header, others);
        let mut pass = Pass { producers: self.producers.take(), ..Pass::new(path, header, next) };
        if !self.walk(path, header, &mut pass) {
            return;
        }
        let damaged = !pass.findings.is_empty();
        // Behind a gap it is said already which records are missing.
        self.expected = (pass.gap == Behind::Batch).then_some(pass.end);
        self.findings.append(&mut pass.findings);
        self.producers = pass.producers.take().filter(|_| !damaged);
        if !damaged {
            let key = SidecarKey { incarnation: header.incarnation, end_position: size };
            self.sidecar(&path.with_extension("idx"), (key, &pass.index), others);
        }
    }

    /// Whether the walk came to the end.
    fn walk(&mut self, path: &Path, header: &SegmentHeader, pass: &mut Pass<'_>) -> bool {
        let walked = self.disk.open(path).map_err(|error| (0, error)).and_then(|file| {
            self.totals.bytes += file.size().unwrap_or_default();
            walk_segment(&file, header, &mut |piece| pass.take(&piece))
        });
        self.totals.segments += 1;
        self.totals.batches += pass.batches;
        self.totals.records += pass.records;
        if let Err((position, error)) = walked {
            self.findings.append(&mut pass.findings);
            self.unreadable(path, position, &error);
            return false;
        }
        if pass.findings.len() < FINDINGS_PER_SEGMENT_MAX {
            return true;
        }
        let reason = format!("{FINDINGS_PER_SEGMENT_MAX} things are wrong in it; the rest was not looked at");
        self.findings.append(&mut pass.findings);
        self.findings.push(Finding::new(Kind::Bytes, path, reason).case('C').remedy(DURABLE));
        false
    }

    /// What is kept of producers beside a segment, if it is: only the last two segments have such a snapshot. A running
    /// server may be writing it.
    fn snapshot(&mut self, segment: &Path, header: &SegmentHeader, others: &[PathBuf]) {
        let path = segment.with_extension("prd");
        if self.files.in_use || !others.contains(&path) {
            return;
        }
        let key = SnapshotKey::from(header);
        let read = self.disk.open(&path).and_then(|file| {
            let len = file.size()?.min(SNAPSHOT_BYTES_MAX);
            file.read_at(0, usize::try_from(len).unwrap_or(usize::MAX))
        });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => return self.unreadable(&path, 0, &error),
        };
        let (reason, remedy) = match (&self.producers, producer_snapshot::from_sidecar(&bytes, key)) {
            (Some(known), Some(kept)) if kept.agrees_with(known) => return,
            (None, Some(kept)) => {
                self.producers = Some(kept);
                return;
            }
            (Some(known), _) => {
                let right = Remedy::Rewrite(producer_snapshot::to_sidecar(known, key));
                ("what it says of producers is not what the segments before it say", right)
            }
            (None, None) => ("it is damaged; the server makes it anew from the segments", Remedy::SetAside),
        };
        self.findings.push(Finding::new(Kind::Producers, &path, reason).remedy(remedy));
    }

    fn sidecar(&mut self, path: &Path, (key, index): (SidecarKey, &Index), others: &[PathBuf]) {
        let right = index.to_sidecar(key);
        let is_there = others.iter().any(|other| other == path);
        let found = if is_there { self.read_sidecar(path, key.end_position) } else { Ok(Vec::new()) };
        let finding = match found {
            Ok(bytes) if bytes.is_empty() => {
                Finding::new(Kind::NoIndex, path, "the sealed segment has no index; it is made when it is needed")
            }
            Ok(bytes) if Index::from_sidecar(&bytes, key).as_ref() == Some(index) => return,
            Ok(_) => Finding::new(Kind::Index, path, "the index is not what the segment gives"),
            Err(error) => Finding::new(Kind::Unreadable, path, error.to_string()),
        };
        self.findings.push(finding.remedy(Remedy::Rewrite(right)));
    }

    fn read_sidecar(&self, path: &Path, segment_bytes: u64) -> io::Result<Vec<u8>> {
        let entries = segment_bytes / INDEX_INTERVAL_BYTES + 1;
        let len = DEVICE_BLOCK_BYTES_MAX + entries * SIDECAR_BYTES_PER_ENTRY_MAX;
        let file = self.disk.open(path)?;
        file.read_at(0, usize::try_from(len.min(file.size()?)).unwrap_or(usize::MAX))
    }

    /// The last segment: where recovery would end it, and all that is wrong in it.
    fn last(&mut self, path: &Path, (header, size): (&SegmentHeader, u64), start: Offset) {
        let judged = self.disk.open(path).and_then(|file| {
            let mut scan = LastScan::new(path.to_path_buf(), *header, size);
            while let Some((position, len)) = scan.wants() {
                scan.take(&file.read_at(position, len)?);
            }
            Ok(scan.verdict())
        });
        let found = match judged {
            Ok(found) => found,
            Err(error) => return self.unreadable(path, 0, &error),
        };
        self.beginning_beyond_the_end(path, &found, start);
        let mut pass = Pass::new(path, header, Offset(u64::MAX));
        if self.walk(path, header, &mut pass) {
            let mut findings = judge_last(path, &found, pass);
            self.findings.append(&mut findings);
        }
    }
}

/// What the last segment comes to: `found` as recovery sees it, `pass` all there is.
fn judge_last(path: &Path, found: &LastSegment, pass: Pass<'_>) -> Vec<Finding> {
    let end = found.end_offset;
    // Recovery looks for batches where a flush group can begin, the walk everywhere.
    let was_durable = pass.durable_hint > end;
    if found.damage.is_none() && !was_durable {
        if !found.torn {
            return Vec::new();
        }
        let cut = found.cut_position;
        let reason = format!("a flush was cut off; the log ends before it, at offset {end}");
        let finding = Finding::new(Kind::TornTail, path, reason).at(cut).case('B').remedy(Remedy::Truncate(cut));
        return vec![finding];
    }
    let durable = pass.durable_hint;
    let case = found.damage.as_ref().map_or('C', |damage| damage.case);
    let mut findings = pass.findings;
    if pass.gap == Behind::Zeros {
        // Room that was prepared and not used.
        findings.pop();
    }
    if findings.is_empty() {
        let position = found.damage.as_ref().map_or(found.cut_position, |damage| damage.position);
        let reason = found.damage.as_ref().map_or("records that were durable are missing", |damage| &damage.reason);
        findings.push(Finding::new(Kind::Bytes, path, reason).at(position).remedy(DURABLE));
    }
    for finding in &mut findings {
        finding.case = finding.case.filter(|own| *own == 'F').or(Some(case));
        if let Some((first, u64::MAX)) = finding.offsets.map(|(first, end)| (first, end.0)) {
            finding.offsets = (first < durable).then_some((first, durable));
        }
    }
    findings
}

/// What the walk came by last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Batch,
    Zeros,
    Bytes,
}

/// What one walk over a segment gathers.
struct Pass<'a> {
    path: &'a Path,
    /// The offset after the last batch.
    end: Offset,
    /// What the next segment begins with; the largest offset if there is none.
    next: Offset,
    index: Index,
    batches: u64,
    records: u64,
    /// The highest durable hint.
    durable_hint: Offset,
    /// What came last.
    gap: Behind,
    findings: Vec<Finding>,
    /// What the batches before and in this segment say of their producers, if that is wanted.
    producers: Option<ProducerHistory>,
}

impl<'a> Pass<'a> {
    fn new(path: &'a Path, header: &SegmentHeader, next: Offset) -> Self {
        Pass {
            path,
            end: header.base_offset,
            next,
            index: Index::default(),
            batches: 0,
            records: 0,
            durable_hint: header.base_offset,
            gap: Behind::Batch,
            findings: Vec::new(),
            producers: None,
        }
    }

    fn take(&mut self, piece: &Piece<'_>) -> ControlFlow<()> {
        match piece {
            Piece::Batch { position, header, damage, .. } => {
                let (base, end) = (header.base_offset, header.end_offset());
                self.durable_hint = self.durable_hint.max(header.durable_hint);
                self.chain(*position, base, end);
                match damage {
                    None => {
                        if let (Some(producers), Some(mark)) = (&mut self.producers, header.producer_mark()) {
                            producers.note(&mark, base);
                        }
                        self.index.note(base, *position, header.max_timestamp_ms);
                        self.batches += 1;
                        self.records += u64::from(header.record_count);
                    }
                    Some(reason) => self.add(Kind::Batch, (*position, base, end), reason.clone()),
                }
                self.end = self.end.max(end);
            }
            Piece::Gap { position, end, zeros, reason } => {
                let len = end - position;
                let what = if *zeros { "zeros where a batch should stand" } else { reason.as_str() };
                // Which records are missing is known when the next batch comes, or none does.
                let next = self.next;
                self.add(Kind::Bytes, (*position, self.end, next), format!("{what}; {len} bytes hold no batch"));
                self.gap = if *zeros { Behind::Zeros } else { Behind::Bytes };
            }
        }
        if self.findings.len() < FINDINGS_PER_SEGMENT_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// A batch with `base` follows what ended at `self.end`.
    fn chain(&mut self, position: u64, base: Offset, end: Offset) {
        let behind = std::mem::replace(&mut self.gap, Behind::Batch);
        if behind != Behind::Batch
            && let Some(gap) = self.findings.last_mut()
        {
            gap.offsets = (self.end < base).then_some((self.end, base));
        }
        let reason = format!("a batch with offset {base} where {} should follow", self.end);
        if base < self.end {
            self.add(Kind::Chain, (position, base, end), reason);
            if let Some(twice) = self.findings.last_mut() {
                twice.case = Some('F');
            }
        } else if base > self.end && behind == Behind::Batch {
            self.add(Kind::Chain, (position, self.end, base), reason);
        }
    }

    fn add(&mut self, kind: Kind, (position, first, end): (u64, Offset, Offset), reason: String) {
        let finding = Finding::new(kind, self.path, reason).at(position).records(first, end).case('C').remedy(DURABLE);
        self.findings.push(finding);
    }
}

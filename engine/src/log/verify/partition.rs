//! One partition's files: every segment from its header to its end, and the offsets from one to the next.

use std::{
    cmp::Ordering,
    io,
    path::{Path, PathBuf},
};

use super::{
    DURABLE, Disk, Finding, Kind, Remedy, Source, first_batch,
    last::end_at,
    pass::{Behind, FINDINGS_PER_SEGMENT_MAX, Pass},
    walk_segment,
};
use crate::{
    limits::{DEVICE_BLOCK_BYTES_MAX, DEVICE_BLOCK_BYTES_MIN},
    log::{
        copies::{BALLOT_NAME, has_intact_ballot, is_ballot_file},
        cut::{self, Cut, is_cut_file},
        index::SidecarKey,
        last_segment::{BEGINNING_BYTES, Beginning, LastSegment},
        missing::{BEGUN, MissingEnd, Names},
        segment::{
            REPLACEMENT_NAME, SegmentHeader, base_offset_of, belongs_to_log, index_base_of, is_deleted_segment,
            is_spare, producers_base_of, segment_of_sidecar,
        },
        start::{self, is_start_file},
        version::Versions,
    },
    record::ProducerHistory,
    runtime::DirEntry,
    types::{LogUid, Offset, PartitionId, PartitionIndex},
};

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

pub(super) struct Check<'a, D: Disk> {
    pub(super) disk: &'a D,
    pub(super) files: PartitionFiles,
    pub(super) findings: Vec<Finding>,
    pub(super) totals: Totals,
    /// The offset after the last segment that was read whole; `None` after one that was not.
    expected: Option<Offset>,
    /// What the batches so far say of their producers; `None` while that is not known: after damage, and before the
    /// first snapshot of a log whose beginning is gone.
    pub(super) producers: Option<ProducerHistory>,
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
    check.versions(&entries);
    if !check.findings.is_empty() {
        return Ok((check.findings, check.totals));
    }
    check.ballot(&entries);
    let cut = check.cut(&entries);
    let is_aside = entries.iter().any(|entry| entry.path.ends_with(REPLACEMENT_NAME));
    let entries = entries.into_iter().filter(|entry| cut.is_none_or(|cut| !cut.takes(&entry.path, is_aside)));
    for entry in entries {
        match base_offset_of(&entry.path).filter(|_| !entry.is_dir) {
            Some(base_offset) => segments.push(Listed { path: entry.path, base_offset }),
            None => others.push(entry.path),
        }
    }
    if cut.is_some() && segments.is_empty() {
        return Ok((check.findings, check.totals));
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

/// The segments of a partition, with the first offset of each and of the one behind it; of one in use without the last,
/// which is written to.
pub(super) fn segments_of<D: Disk>(disk: &D, files: &PartitionFiles) -> io::Result<Vec<(PathBuf, Offset, Offset)>> {
    let entries = disk.list(&files.dir)?;
    let (findings, totals, producers) = (Vec::new(), Totals::default(), None);
    let mut check = Check { disk, files: files.clone(), findings, totals, expected: None, producers };
    let cut = check.cut(&entries);
    let is_aside = entries.iter().any(|entry| entry.path.ends_with(REPLACEMENT_NAME));
    let stays = |entry: &&DirEntry| !entry.is_dir && cut.is_none_or(|cut| !cut.takes(&entry.path, is_aside));
    let base = |entry: &DirEntry| Some((entry.path.clone(), base_offset_of(&entry.path)?));
    let all: Vec<_> = entries.iter().filter(stays).filter_map(base).collect();
    let ends = all.iter().skip(1).map(|(_, next)| Some(*next));
    let last = (!files.in_use).then(|| cut.map_or(Offset(u64::MAX), |cut| cut.at()));
    let ends: Vec<_> = ends.chain([last]).collect();
    Ok(all.into_iter().zip(ends).filter_map(|((path, base), end)| Some((path, base, end?))).collect())
}

impl<D: Disk> Check<'_, D> {
    /// The files that a server would refuse for their version. What cannot be read is told where it is needed.
    fn versions(&mut self, entries: &[DirEntry]) {
        let files = || entries.iter().filter(|entry| !entry.is_dir).map(|entry| &*entry.path);
        let versions = Versions::of(&Names::of(files()));
        for path in files().filter(|path| versions.wants(path, 0).is_some()) {
            let read = self.disk.open(path).and_then(|file| {
                let wanted = versions.wants(path, file.size()?).unwrap_or_default();
                file.read_at(0, wanted)
            });
            let Ok(bytes) = read else { continue };
            if let Err(other) = versions.judge(path, &bytes) {
                let reason = format!("it has format version {}, this version reads {}", other.found, other.supported);
                let remedy = Remedy::None("it is not damaged; use a version of Pyralog that reads it");
                self.findings.push(Finding::new(Kind::Version, path, reason).at(0).remedy(remedy));
            }
        }
    }

    /// A replica whose ballot is gone asks the others what it promised, so it is no loss of records.
    fn ballot(&mut self, entries: &[DirEntry]) {
        let path = self.files.dir.join(BALLOT_NAME);
        if !entries.iter().any(|entry| entry.path == path) {
            return;
        }
        match self.disk.open(&path).and_then(|file| file.read_at(0, DEVICE_BLOCK_BYTES_MAX as usize)) {
            Ok(bytes) if has_intact_ballot(&bytes) => {}
            Ok(_) => {
                let remedy = Remedy::None("the replica is rebuilt from the others");
                let finding = Finding::new(Kind::Ballot, &path, "none of its copies is intact");
                self.findings.push(finding.at(0).remedy(remedy));
            }
            Err(error) => self.unreadable(&path, 0, &error),
        }
    }

    /// What the next start will cut off.
    fn cut(&mut self, entries: &[DirEntry]) -> Option<Cut> {
        let path = self.files.dir.join(cut::FILE_NAME);
        entries.iter().find(|entry| entry.path == path)?;
        let read = self.disk.open(&path).and_then(|file| file.read_at(0, DEVICE_BLOCK_BYTES_MAX as usize));
        match read.map(|bytes| Cut::decode(&bytes, (self.files.log, self.files.index))) {
            Ok(Ok(cut)) => {
                self.deleted(&path, "what it says is to be cut off is not looked at");
                Some(cut)
            }
            Ok(Err(reason)) => {
                self.findings.push(Finding::new(Kind::Start, &path, reason).at(0).case('I'));
                None
            }
            Err(error) => {
                self.unreadable(&path, 0, &error);
                None
            }
        }
    }

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
            if trace.is_some()
                || is_spare(path)
                || is_cut_file(path)
                || is_ballot_file(path)
                || path.file_name().is_some_and(|name| name == BEGUN)
            {
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
    pub(super) fn beginning_beyond_the_end(&mut self, path: &Path, found: &LastSegment, start: Offset) {
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
                    self.expected = None;
                    self.without_header(&last, (reason, size), None, others);
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

    pub(super) fn unreadable(&mut self, path: &Path, position: u64, error: &io::Error) {
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
            let place = self.findings.len();
            match self.beginning(segment) {
                Ok((Beginning::Intact(header), size)) => self.sealed_segment(segment, (&header, size), next, others),
                Ok((beginning, size)) => {
                    let reason = match beginning {
                        Beginning::Damaged(reason) => reason,
                        _ => "its header block is missing".to_owned(),
                    };
                    self.without_header(segment, (reason, size), Some(next), others);
                }
                Err(error) => self.unreadable(&segment.path, 0, &error),
            }
            self.chain(next, &segment.path);
            // A file that is deleted while it is read loses its name first, and then its bytes.
            if self.files.in_use && self.findings.len() > place && self.is_gone(&segment.path) {
                self.findings.truncate(place);
            }
        }
    }

    fn is_gone(&self, path: &Path) -> bool {
        self.disk.open(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Between two segments: `next` is what the second begins with, `path` the first.
    fn chain(&mut self, next: Offset, path: &Path) {
        let Some(expected) = self.expected else { return };
        let (case, reason) = match next.cmp(&expected) {
            Ordering::Equal => return,
            Ordering::Greater => {
                ('C', format!("records {expected} to {} are in no segment; the next one begins at {next}", next.0 - 1))
            }
            Ordering::Less => ('F', format!("it ends before {expected}, but the next one begins at {next}")),
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
        let walked = self.walk(path, header, &mut pass);
        if !walked && !pass.gave_up() {
            return;
        }
        let damaged = !walked || !pass.findings.is_empty();
        // Behind a gap it is said already which records are missing.
        self.expected = (walked && pass.gap == Behind::Batch).then_some(pass.end);
        self.findings.append(&mut pass.findings);
        if pass.cut_off > 0 {
            self.cut_off(path, pass.cut_off);
        }
        self.producers = pass.producers.take().filter(|_| !damaged);
        if damaged {
            self.index_of_damaged(path, (header, size), next, others);
        } else {
            let key = SidecarKey { incarnation: header.incarnation, end_position: size };
            self.index(&path.with_extension("idx"), (key, &pass.index), others);
        }
    }

    fn cut_off(&mut self, path: &Path, position: u64) {
        let reason = "from there on it holds records that were cut off: the next segment begins before them";
        let remedy = Remedy::None("the room is given back with the segment");
        self.findings.push(Finding::new(Kind::Deleted, path, reason).at(position).remedy(remedy));
    }

    /// A segment without a header that can be trusted, for this `reason`: sealed, with `next` behind it, or the last.
    /// What can be established is enough to check what stands behind the header: its name has the first offset, its
    /// first intact batch the incarnation.
    fn without_header(
        &mut self,
        segment: &Listed,
        (reason, size): (String, u64),
        next: Option<Offset>,
        others: &[PathBuf],
    ) {
        let (path, base) = (&segment.path, segment.base_offset);
        let end = next.unwrap_or(Offset(u64::MAX));
        let place = self.findings.len();
        let header = match self.disk.open(path).and_then(|file| first_batch(&file, (base, end))) {
            Ok(first) => first.map(|first| SegmentHeader {
                partition: PartitionId { log: self.files.log.unwrap_or(LogUid(0)), index: self.files.index },
                block_bytes: DEVICE_BLOCK_BYTES_MIN as u32,
                base_offset: base,
                created_ms: 0,
                incarnation: first.incarnation,
                leader_epoch: first.leader_epoch,
            }),
            Err(error) => {
                self.unreadable(path, 0, &error);
                None
            }
        };
        let behind = match &header {
            Some(header) => self.behind_header(path, (header, size), next, others),
            None => {
                self.totals.segments += 1;
                self.totals.bytes += size;
                "no intact batch stands behind it".to_owned()
            }
        };
        let finding = Finding::new(Kind::Header, path, format!("{reason}; {behind}")).at(0).case('E').remedy(DURABLE);
        // Its records cannot be served, whatever is left of them.
        let finding = next.into_iter().fold(finding, |finding, next| finding.records(base, next));
        self.findings.insert(place, finding);
    }

    /// Checks what stands behind a damaged header; `header` is what could be established. Says what there is.
    fn behind_header(
        &mut self,
        path: &Path,
        (header, size): (&SegmentHeader, u64),
        next: Option<Offset>,
        others: &[PathBuf],
    ) -> String {
        self.snapshot(path, header, others);
        self.producers = None;
        let end = next.unwrap_or(Offset(u64::MAX));
        let mut pass = Pass { block_is_unknown: true, ..Pass::new(path, header, end) };
        let walked = self.walk(path, header, &mut pass);
        if walked && (next.is_none() || pass.end >= end) {
            pass.forget_room();
        }
        let durable = pass.durable_hint;
        for finding in &mut pass.findings {
            end_at(finding, durable);
            if next.is_none() && finding.offsets.is_none() {
                let unknown = Remedy::None("without the header nobody can say where the log ends");
                *finding = finding.clone().case('E').remedy(unknown);
            }
        }
        self.findings.append(&mut pass.findings);
        if let Some(next) = next {
            self.expected = (walked && pass.gap == Behind::Batch).then_some(pass.end);
            self.index_of_damaged(path, (header, size), next, others);
        }
        format!("behind it {} batches with {} records are intact", pass.batches, pass.records)
    }

    /// Whether the walk came to the end.
    pub(super) fn walk(&mut self, path: &Path, header: &SegmentHeader, pass: &mut Pass<'_>) -> bool {
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
        if !pass.gave_up() {
            return true;
        }
        let reason = format!("{FINDINGS_PER_SEGMENT_MAX} things are wrong in it; the rest was not looked at");
        self.findings.append(&mut pass.findings);
        self.findings.push(Finding::new(Kind::Bytes, path, reason).case('C').remedy(DURABLE));
        false
    }
}

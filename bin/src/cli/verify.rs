//! `dlog verify`: every byte of a data directory against every rule there is, without a server. The rules are the
//! engine's; here is which files there should be, and how it is told.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use pyralog_engine::{
    catalog::{Catalog, LogEntry},
    log::verify::{CopyFiles, Disk, Finding, Kind, PartitionFiles, Remedy, Totals, check_partition, compare_copies},
    replication::assignment::ReplicaId,
    runtime::DirEntry,
    shard::{
        CATALOG_FILE, CopyId, committed_in, copy_dir, copy_named, decode_catalog, log_name_of,
        muster::{self, FILE_NAME as DRIVE_FILE},
        placement::drive_of,
    },
    types::{DriveId, Offset, PartitionId, PartitionIndex},
};
use serde_json::{Value, json};

use super::{
    Fault, Outcome,
    files::RealDisk,
    log::count,
    repair::{Done, Repair, settle},
};
use crate::{
    output::say,
    serve::data_dir::{DataDir, DataDirError},
};

/// The flags.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The data directory; of a server with several all of them, or only some. While a server uses it, only the sealed
    /// segments are checked.
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Repair what can be repaired, cutting off only what was provably never acknowledged as durable; needs the
    /// directories for itself.
    #[arg(long)]
    repair: bool,
    /// Hold the copies of each partition, in all the directories, against each other as well.
    #[arg(long, conflicts_with = "repair")]
    compare: bool,
}

/// A data directory.
struct Root {
    path: PathBuf,
    /// The server's process number, if one runs.
    used_by: Option<String>,
    /// Held until the end.
    _lock: Option<DataDir>,
    /// Which drive of its server it is, if that can be read.
    drive: Option<DriveId>,
    repair: Option<Repair>,
}

/// The check of the data directories.
struct Verify {
    roots: Vec<Root>,
    /// That which is checked now.
    at: usize,
    disk: RealDisk,
    json: bool,
    totals: Totals,
    partitions: u64,
    findings: Vec<Value>,
    /// Damage that is still there.
    damaged: u64,
    /// Whether copies are held against each other, and of how many partitions there were several.
    compare: bool,
    compared: u64,
}

/// The copies that were found of one partition: by the folder of its log and its number.
type Copies = BTreeMap<(PathBuf, PartitionIndex), Vec<(ReplicaId, PartitionFiles)>>;

/// Checks the directories.
pub fn run(args: &VerifyArgs, json: bool) -> Outcome {
    let roots = args.dirs.iter().map(|dir| Root::open(dir, args.repair)).collect::<Result<Vec<_>, _>>()?;
    let bytes: u64 = roots.iter().map(|root| bytes_below(&root.path.join("logs"))).sum();
    let disk = RealDisk::new(if args.compare { 2 * bytes } else { bytes });
    if let (Some(process), false) = (roots.iter().find_map(|root| root.used_by.as_ref()), json) {
        say!("in use by process {process}: only sealed segments are checked, not the end of any partition");
    }
    let (totals, findings, compare) = (Totals::default(), Vec::new(), args.compare);
    let mut verify =
        Verify { roots, at: 0, disk, json, totals, partitions: 0, findings, damaged: 0, compare, compared: 0 };
    verify.everything();
    verify.conclude()
}

impl Root {
    fn open(dir: &Path, repair: bool) -> Result<Self, Fault> {
        let (path, used_by, lock) = match DataDir::existing(dir) {
            Ok(data) => (data.path().to_owned(), None, Some(data)),
            Err(DataDirError::InUse { path, process }) if repair => {
                let message =
                    format!("{} is in use by process {process}; nothing is repaired under it", path.display());
                return Err(Fault::usage(message).with_help("stop the server first"));
            }
            Err(DataDirError::InUse { path, process }) => (path, Some(process), None),
            Err(error) => return Err(Fault::usage(error)),
        };
        let repair = repair.then(|| Repair::new(&path));
        Ok(Root { path, used_by, _lock: lock, drive: None, repair })
    }
}

/// For the progress: nothing depends on it.
fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok().map(|known| (entry.path(), known)))
        .map(|(path, known)| if known.is_dir() { bytes_below(&path) } else { known.len() })
        .sum()
}

impl Verify {
    fn root(&self) -> &Root {
        &self.roots[self.at]
    }

    fn everything(&mut self) {
        let mut catalogs = Vec::new();
        for at in 0..self.roots.len() {
            self.at = at;
            self.roots[at].drive = self.drive();
            catalogs.extend(self.catalog());
        }
        // A server takes the latest, and gives it to those that lack it.
        let latest = catalogs.into_iter().max_by_key(Catalog::revision);
        let mut copies = Copies::new();
        for at in 0..self.roots.len() {
            self.at = at;
            let mut partitions = Vec::new();
            self.folders(latest.as_ref(), &mut partitions);
            for files in partitions {
                self.partition(&files);
                self.note_copy(files, &mut copies);
            }
        }
        let compares = self.compare;
        copies.into_values().filter(|copies| compares && copies.len() > 1).for_each(|copies| self.compare(copies));
    }

    fn note_copy(&self, files: PartitionFiles, copies: &mut Copies) {
        let log = files.dir.strip_prefix(&self.root().path).ok().and_then(Path::parent);
        let named = files.dir.file_name().and_then(|name| copy_named(name.to_str()?));
        if let Some((log, (index, copy))) = log.zip(named) {
            copies.entry((log.to_owned(), index)).or_default().push((copy, files));
        }
    }

    fn compare(&mut self, copies: Vec<(ReplicaId, PartitionFiles)>) {
        self.compared += 1;
        let with_ballot = |(copy, files): (ReplicaId, PartitionFiles)| {
            let ballot = fs::read(files.dir.join("ballot")).unwrap_or_default();
            let owner = files.log.map(|log| (PartitionId { log, index: files.index }, copy));
            CopyFiles { committed: owner.map_or(Offset(0), |owner| committed_in(&ballot, owner)), files }
        };
        let copies: Vec<_> = copies.into_iter().map(with_ballot).collect();
        match compare_copies(&self.disk, &copies) {
            Ok(findings) => findings.iter().for_each(|finding| self.found(finding)),
            Err(error) => self.found(&Finding::new(Kind::Unreadable, &copies[0].files.dir, error.to_string())),
        }
    }

    /// Which drive the directory is, if that can be read.
    fn drive(&mut self) -> Option<DriveId> {
        let path = self.root().path.join(DRIVE_FILE);
        let read = match fs::read(&path) {
            Ok(bytes) => muster::number_in(&bytes),
            // It never was one of several.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DriveId(0)),
            Err(error) => Err(error.to_string()),
        };
        read.inspect_err(|reason| self.found(&Finding::new(Kind::Unreadable, &path, reason.clone()))).ok()
    }

    /// The catalogue, if it can be used.
    fn catalog(&mut self) -> Option<Catalog> {
        let path = self.root().path.join(CATALOG_FILE);
        let reason = match fs::read(&path) {
            Ok(bytes) => match decode_catalog(&path, &bytes) {
                Ok(catalog) => return Some(catalog),
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.subfolders(&self.root().path.join("logs")).is_empty() {
                    return Some(Catalog::default());
                }
                "it is missing, but there are logs".to_owned()
            }
            Err(error) => error.to_string(),
        };
        self.found(&Finding::new(Kind::Catalog, &path, reason));
        None
    }

    fn subfolders(&self, dir: &Path) -> Vec<PathBuf> {
        let entries: Vec<DirEntry> = self.disk.list(dir).unwrap_or_default();
        entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.path).collect()
    }

    /// Which copies of partitions there are, and which folders should not be. Without a catalogue the folders are
    /// believed.
    fn folders(&mut self, catalog: Option<&Catalog>, partitions: &mut Vec<PartitionFiles>) {
        let in_use = self.root().used_by.is_some();
        for namespace in self.subfolders(&self.root().path.join("logs")) {
            for log in self.subfolders(&namespace) {
                let entry = log_name_of(&log).and_then(|name| catalog?.by_name(&name).cloned());
                if catalog.is_some() && entry.is_none() {
                    let reason = "no such log is in the catalogue; the server would remove its files at its next start";
                    self.stray(&log, reason);
                    continue;
                }
                for dir in self.subfolders(&log) {
                    let named = dir.file_name().and_then(|name| copy_named(name.to_str()?));
                    let belongs = |copy| entry.as_ref().is_none_or(|log| self.copies_of(log).any(|own| own == copy));
                    match named.filter(|copy| belongs(*copy)) {
                        Some((index, _)) => {
                            let log = entry.as_ref().map(|entry| entry.uid);
                            partitions.push(PartitionFiles { log, index, dir, in_use });
                        }
                        None => self.stray(&dir, "it is no partition of its log"),
                    }
                }
            }
        }
        let knows_all = !in_use && self.root().drive.is_some();
        for log in catalog.into_iter().flat_map(Catalog::logs).filter(|_| knows_all) {
            for (index, copy) in self.copies_of(log).collect::<Vec<_>>() {
                let id = CopyId { partition: PartitionId { log: log.uid, index }, copy };
                let dir = copy_dir(&self.root().path, &log.name, id);
                if !dir.is_dir() {
                    let reason = match log.replication() {
                        None => "the partition has no folder",
                        Some(_) => "the copy has no folder: it is rebuilt from the others",
                    };
                    self.found(&Finding::new(Kind::NoSegment, &dir, reason).case('G'));
                }
            }
        }
    }

    /// The copies of a log's partitions that belong on this drive; all, if it is not known which that is.
    fn copies_of(&self, log: &LogEntry) -> impl Iterator<Item = (PartitionIndex, ReplicaId)> + use<> {
        let (drive, layout) = (self.root().drive, log.layout());
        let copies: Vec<_> = log.slots().collect();
        let all = log.partition_ids().flat_map(move |id| copies.clone().into_iter().map(move |copy| (id, copy)));
        all.filter(move |(id, copy)| drive.is_none_or(|drive| drive_of(*id, *copy, layout) == drive))
            .map(|(id, copy)| (id.index, copy))
    }

    fn stray(&mut self, path: &Path, reason: &str) {
        // Under a running server it may be a log that is being made or deleted.
        if self.root().used_by.is_none() {
            self.found(&Finding::new(Kind::Stray, path, reason).remedy(Remedy::SetAside));
        }
    }

    fn partition(&mut self, files: &PartitionFiles) {
        self.partitions += 1;
        match self.checked(files) {
            Ok((findings, totals)) => {
                self.totals.segments += totals.segments;
                self.totals.batches += totals.batches;
                self.totals.records += totals.records;
                self.totals.bytes += totals.bytes;
                findings.iter().for_each(|finding| self.found(finding));
            }
            Err(error) if files.in_use && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.found(&Finding::new(Kind::Unreadable, &files.dir, error.to_string())),
        }
    }

    fn checked(&self, files: &PartitionFiles) -> io::Result<(Vec<Finding>, Totals)> {
        let (findings, totals) = check_partition(&self.disk, files.clone())?;
        let torn = findings.iter().find(|finding| matches!(finding.remedy, Remedy::Truncate(_) | Remedy::Copy(_)));
        match torn.filter(|_| self.root().repair.is_some()) {
            // A torn tail is judged again when nothing can arrive any more.
            Some(torn) => {
                settle(&torn.path)?;
                check_partition(&self.disk, files.clone())
            }
            None => Ok((findings, totals)),
        }
    }

    /// Repairs if asked to, and tells.
    fn found(&mut self, finding: &Finding) {
        let done = self.roots[self.at].repair.as_mut().map(|repair| repair.apply(finding));
        let (action, repaired) = match done {
            Some(Ok(Done::Repaired(action))) => (Some(action), true),
            Some(Ok(Done::Kept(action))) => (Some(action), false),
            Some(Err(error)) => (Some(format!("could not be repaired: {error}")), false),
            Some(Ok(Done::Nothing)) | None => (None, false),
        };
        if !repaired && !finding.kind.is_harmless() {
            self.damaged += 1;
        }
        // Of several directories it is to be said which.
        let within = finding.path.strip_prefix(&self.root().path).ok().filter(|_| self.roots.len() == 1);
        let file = within.unwrap_or(&finding.path).display().to_string();
        let impossible = match finding.remedy {
            Remedy::None(why) => Some(why),
            Remedy::Copy(_) => {
                Some("the next start cuts it off; nothing proves that it was not acknowledged as durable")
            }
            Remedy::Truncate(_) | Remedy::Rewrite(_) | Remedy::SetAside => None,
        };
        if !self.json {
            self.disk.print(&line(finding, &file));
            match (&action, impossible) {
                (Some(action), _) => self.disk.print(&format!("    {action}")),
                (None, Some(why)) => self.disk.print(&format!("    not repairable: {why}")),
                (None, None) => {}
            }
            if let Some(promise) = promise(&finding.remedy).filter(|_| action.is_none()) {
                self.disk.print(&format!("    --repair would {promise}"));
            }
        }
        self.findings.push(json!({
            "kind": finding.kind.name(),
            "file": file,
            "position": finding.position,
            "first_offset": finding.offsets.map(|(first, _)| first.0),
            "last_offset": finding.offsets.map(|(_, end)| end.0 - 1),
            "case": finding.case,
            "reason": finding.reason,
            "harmless": finding.kind.is_harmless(),
            "repairable": impossible.is_none(),
            "not_repairable_because": impossible,
            "repaired": repaired,
            "action": action,
        }));
    }

    fn conclude(self) -> Outcome {
        let Totals { segments, batches, records, bytes } = self.totals;
        let dirs: Vec<String> = self.roots.iter().map(|root| root.path.display().to_string()).collect();
        let used_by = self.roots.iter().find_map(|root| root.used_by.clone());
        let data_dir = if let [dir] = &dirs[..] { json!(dir) } else { json!(dirs) };
        if self.json {
            let report = json!({
                "data_dir": data_dir,
                "in_use_by": used_by,
                "last_segments_checked": used_by.is_none(),
                "partitions": self.partitions,
                "partitions_compared": self.compare.then_some(self.compared),
                "segments": segments,
                "batches": batches,
                "records": records,
                "bytes": bytes,
                "clean": self.damaged == 0,
                "findings": self.findings,
            });
            say!("{report}");
        } else {
            let (partitions, segments) = (count(self.partitions, "partition"), count(segments, "segment"));
            let (records, bytes) = (count(records, "intact record"), pyralog_tuning::units::about(bytes));
            self.disk.print(&format!("checked {partitions}, {segments}, {bytes}: {records}"));
            if self.compare {
                self.disk.print(&format!("compared the copies of {}", count(self.compared, "partition")));
            }
            if self.damaged == 0 {
                self.disk.print("no damage");
            }
        }
        match self.damaged {
            0 => Ok(()),
            damaged => {
                let said = if self.root().repair.is_some() { "damage is left in" } else { "damage was found in" };
                Err(Fault::new(format!("{said} {}: {}", dirs.join(", "), count(damaged, "finding"))))
            }
        }
    }
}

/// A finding in one line.
fn line(finding: &Finding, file: &str) -> String {
    let mut text = file.to_owned();
    if let Some(position) = finding.position {
        text += &format!(", byte {position}");
    }
    if let Some((first, end)) = finding.offsets {
        text += &format!(", records {first} to {}", end.0 - 1);
    }
    let harmless = if finding.kind.is_harmless() { "harmless: " } else { "" };
    let case = finding.case.map_or_else(String::new, |case| format!(" (case {case})"));
    format!("{text}: {harmless}{}{case}", finding.reason)
}

fn promise(remedy: &Remedy) -> Option<String> {
    match remedy {
        Remedy::Truncate(position) => Some(format!("cut it off at byte {position}, and keep a copy of the rest")),
        Remedy::Copy(position) => {
            Some(format!("keep a copy of what stands from byte {position} on, and cut off nothing"))
        }
        Remedy::Rewrite(_) => Some("write it anew from its segment".to_owned()),
        Remedy::SetAside => Some("move it out of the way".to_owned()),
        Remedy::None(_) => None,
    }
}

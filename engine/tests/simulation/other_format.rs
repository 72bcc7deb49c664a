//! Servers that start where another Pyralog was: in a file of a partition, or in the catalogue, stands another format
//! version, with a checksum of its own as far as that can be made up. Whoever cannot read it must say so, touch nothing
//! beside it, and serve the rest; once the file is back as it was, the lives that follow must find everything.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use pyralog_engine::{
    log::segment::{SegmentHeader, base_offset_of},
    runtime::sim::{
        Sim, SimRandom, SimRuntime,
        faults::{FaultKind, FaultRates},
    },
    shard::{
        Shard,
        request::{FindOffset, OffsetAt, Request},
    },
    testing::history::Fault,
    types::{PartitionId, PartitionIndex},
};

use crate::{
    clients::{CLIENTS, Clients, ends, partitions_of},
    lives::{STEPS_MAX, start},
    plan::Plan,
};

/// Draws which files are of another version when. It has a stream of chance of its own.
pub struct Foreigners {
    are_about: bool,
    random: SimRandom,
}

/// A stream in which the kept seeds have none.
const STREAM: u64 = 309;

/// What the server says.
const SAYS: &str = "has format version 2, this version reads 1; nothing was changed";

/// Bytes to be changed in a file, each with its place.
type Changes = Vec<(u64, Vec<u8>)>;

/// A file of ours, and how it looks in another version.
struct Disguise {
    path: PathBuf,
    changes: Changes,
}

impl Foreigners {
    pub fn of_seed(seed: u64) -> Self {
        let mut random = SimRandom::new(seed, STREAM);
        Foreigners { are_about: random.happens(2_500), random }
    }

    /// Perhaps has a server start where a file is of another version, and puts it back. Returns what was wrong.
    pub fn visit(&mut self, sim: &Sim, plan: &Plan, clients: &Rc<Clients>) -> Vec<String> {
        if !self.are_about || self.random.happens(5_000) {
            return Vec::new();
        }
        sim.wait_for_calls();
        let disguises = disguises(sim);
        if disguises.is_empty() {
            return Vec::new();
        }
        let Disguise { path, changes } = &disguises[self.random.below(disguises.len() as u64) as usize];
        let original = sim.content(path).unwrap();
        changes.iter().for_each(|(at, bytes)| sim.put_bytes(path, *at, bytes));
        sim.count(FaultKind::OtherFormat);
        sim.set_rates(FaultRates::none());
        let wrong = refused(sim, plan, clients, (path, self.random.within(1..4) as usize));
        sim.set_rates(plan.rates.clone());
        for (at, bytes) in changes {
            sim.put_bytes(path, *at, &original[*at as usize..*at as usize + bytes.len()]);
        }
        let fault = if plan.drive_fails { Fault::PowerLoss } else { Fault::Kill };
        clients.history.borrow_mut().fault(fault);
        wrong.into_iter().map(|wrong| format!("another version in {}: {wrong}", path.display())).collect()
    }
}

/// Every file that a server refuses if it is of another version, one for each kind and folder.
fn disguises(sim: &Sim) -> Vec<Disguise> {
    let catalog = PathBuf::from("/data/catalog.json");
    let Some(text) = sim.content(&catalog) else { return Vec::new() };
    let known = String::from_utf8_lossy(&text).into_owned();
    let is_known = |path: &Path| {
        let log = path.ancestors().nth(2).and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        log.is_some_and(|log| known.contains(&format!("/{log}\"")))
    };
    let files: Vec<PathBuf> = sim.files().into_iter().map(|(path, _)| path).filter(|path| is_known(path)).collect();
    let mut all: Vec<Disguise> = files
        .iter()
        .filter_map(|path| Some(Disguise { path: path.clone(), changes: in_another_version(sim, &files, path)? }))
        .collect();
    all.extend(catalog_of_another_version(&text).map(|changes| Disguise { path: catalog, changes }));
    all
}

fn in_another_version(sim: &Sim, files: &[PathBuf], path: &Path) -> Option<Changes> {
    let content = sim.content(path)?;
    // The digit, and a checksum that is over it too.
    let copy = |at: usize, len: usize| {
        let mut bytes = content.get(at..at + len)?.to_vec();
        bytes[3] = b'2';
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        Some((at as u64, bytes[..8].to_vec()))
    };
    if base_offset_of(path).is_some() {
        return SegmentHeader::decode(&content).ok().and_then(|_| Some(vec![copy(0, 48)?]));
    }
    if path.file_name().is_some_and(|name| name == "start") {
        return (0..8).map(|number| copy(number * 512, 32)).collect();
    }
    let segment = path.with_extension("seg");
    let is_snapshot = path.extension().is_some_and(|suffix| suffix == "prd") && base_offset_of(&segment).is_some();
    let mut bases = files.iter().filter(|file| file.parent() == path.parent()).filter_map(|file| base_offset_of(file));
    // While the first segment is there, it is made anew.
    let is_needed = files.contains(&segment) && bases.all(|base| base.0 > 0);
    (is_snapshot && is_needed).then(|| copy(0, content.len())).flatten().map(|change| vec![change])
}

fn catalog_of_another_version(content: &[u8]) -> Option<Changes> {
    let line = &content[..content.iter().position(|byte| *byte == b'\n')?];
    let version = line.iter().position(|byte| *byte == b'1')?;
    let crc = line.iter().rposition(u8::is_ascii_digit)?;
    let other = b'0' + (line[crc] - b'0' + 1) % 10;
    Some(vec![(version as u64, vec![b'2']), (crc as u64, vec![other])])
}

/// Starts a server, and says what it did wrong: it must refuse what has the file at `path`, and serve the rest.
fn refused(sim: &Sim, plan: &Plan, clients: &Rc<Clients>, (path, cores): (&Path, usize)) -> Vec<String> {
    let is_catalog = path.ends_with("catalog.json");
    let dir = path.parent().unwrap();
    let beside = || {
        let files = sim.files().into_iter().map(|(path, _)| path).filter(|path| path.starts_with(dir));
        files.map(|path| (sim.content(&path), path)).collect::<Vec<_>>()
    };
    let before = beside();
    let (process, runtimes, shards, failed) = start(sim, plan, cores);
    let all_open = || shards.borrow().iter().all(Option::is_some);
    sim.run_until(|| failed.borrow().is_some() || all_open(), STEPS_MAX).unwrap();
    let why = failed.borrow().clone();
    let mut wrong = Vec::new();
    match (why, is_catalog) {
        (Some(why), true) if why.contains(SAYS) => {}
        (None, false) => {
            let shard = shards.borrow()[0].clone().unwrap();
            wrong.extend(only_it_is_refused(sim, (&shard, &runtimes[0]), dir, clients));
        }
        (why, _) => wrong.push(format!("the start came to {why:?}")),
    }
    // Retention and scrubbing have their turns.
    sim.run_for(Duration::from_millis(60), STEPS_MAX).unwrap();
    sim.kill(process);
    sim.wait_for_calls();
    if beside() != before {
        wrong.push("something beside it was touched".to_owned());
    }
    wrong
}

/// Asks every partition: that in `dir` must be refused, the others served.
fn only_it_is_refused(
    sim: &Sim,
    (shard, runtime): (&Shard<SimRuntime>, &SimRuntime),
    dir: &Path,
    clients: &Rc<Clients>,
) -> Vec<String> {
    let name = dir.parent().and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
    let index = PartitionIndex(dir.file_name().unwrap().to_string_lossy().parse().unwrap());
    let log = shard.catalog().logs().find(|log| log.name.name() == name).unwrap().uid;
    let refused = PartitionId { log, index };
    let mut wrong = Vec::new();
    for partition in partitions_of(shard) {
        let (asked, clients) = (shard.clone(), Rc::clone(clients));
        let says = if partition == refused {
            let find = Request::FindOffset(FindOffset { partition, at: OffsetAt::Latest });
            let answer = async move { asked.call(find).await.map(drop) };
            sim.block_on(runtime, answer, STEPS_MAX).unwrap()
        } else {
            // What else may be wrong with it the judge is told.
            let answer = async move { ends(CLIENTS, &asked, partition, &clients).await.map(drop) };
            sim.block_on(runtime, answer, STEPS_MAX).unwrap()
        };
        if says.as_ref().is_err_and(|error| error.to_string().contains(SAYS)) != (partition == refused) {
            wrong.push(format!("partition {partition} answers {says:?}"));
        }
    }
    wrong
}

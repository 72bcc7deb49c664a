//! Counting a server's drives before it starts: which is which, and which of them was away, or is an old copy.
//!
//! Each drive of a server with several has a file `drive`: whose it is, its number, and a generation that is raised on
//! all drives together, at every start and every minute. A drive that shows a lower one than another was not there when
//! it was raised, or is a copy of an earlier time: what it says that its replicas acknowledged and promised may be less
//! than they did, so they are taken to have lost their memory (`docs/REPLICATION.md`, "An old copy of a drive"). What
//! is missed: a copy that was made and put back within the same minute.
//!
//! It also has the number of drives there are, so that one that was left out is missed. The number grows, and never
//! shrinks: where a copy is follows from how many drives there were when its log was made.
//!
//! An empty directory in the place of one that is missing is a replaced drive. Its replicas are rebuilt from the
//! others; of partitions that had their only copy there it is noted, before it passes for a drive of this server, that
//! they had one: a log that begins anew would use its offsets again.
//!
//! A server that has one drive and never had more needs none of this.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

use super::{
    CATALOG_FILE, CatalogError, CopyId, catalog_store,
    opening::{copy_dir, make_durable_dir},
    placement::{self, Drives},
};
use crate::{
    catalog::Catalog,
    log::{
        LogFault,
        copies::{self, COPY_BYTES},
        missing::BEGUN,
    },
    replication::assignment::ReplicaId,
    runtime::{OpenMode, Runtime},
    types::DriveId,
};

/// Its name in the data directory.
pub const FILE_NAME: &str = "drive";

const MAGIC: [u8; 4] = *b"PYD1";

/// How often the generation is raised.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Drives that a server may have.
pub const DRIVES_MAX: usize = 64;

/// Why the drives do not make a server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MusterError {
    /// Two data directories are the same drive.
    #[error("{} and {} are both drive {number}: one is a copy of the other", one.display(), other.display())]
    Twice {
        /// The number.
        number: u16,
        /// A data directory.
        one: PathBuf,
        /// Another.
        other: PathBuf,
    },
    /// Data directories of different servers.
    #[error("{} and {} belong to different servers", one.display(), other.display())]
    Strangers {
        /// A data directory.
        one: PathBuf,
        /// Another.
        other: PathBuf,
    },
    /// Drives of this server were left out.
    #[error(
        "this server has {known} drives, and the data directory of drive {} is not among those given; add it, or an \
         empty one in its place, which is then rebuilt from the others. The number of drives can grow, not shrink",
        list(away)
    )]
    Away {
        /// How many drives the server has.
        known: u16,
        /// Those that were left out.
        away: Vec<DriveId>,
    },
    /// The file is damaged.
    #[error("{}: {reason}; if the drive is to be rebuilt from the others, empty it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] LogFault),
    /// None of them has a catalogue that can be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

fn list(drives: &[DriveId]) -> String {
    drives.iter().map(DriveId::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether a server may start without some of its drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It may: their copies are missing until the next start with them.
    Allowed,
    /// It may not: whoever left one out by mistake would make an old copy of it.
    Refused,
}

/// One copy, as it stands on disk; the rest of its sector is zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawDrive {
    magic: [u8; 4],
    /// CRC-32C of what follows.
    crc: U32,
    server: U64,
    generation: U64,
    number: U16,
    drives: U16,
    is_new: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<RawDrive>() == 32, "the drive file is laid out by hand");

/// What a drive says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Badge {
    /// A number that no other server has.
    server: u64,
    generation: u64,
    number: DriveId,
    /// How many drives the server has.
    drives: u16,
    /// It is empty in the place of another, and what was lost with that is not noted on it yet.
    is_new: bool,
}

impl Badge {
    fn encode(self) -> [u8; 32] {
        let mut raw = RawDrive {
            magic: MAGIC,
            crc: U32::new(0),
            server: U64::new(self.server),
            generation: U64::new(self.generation),
            number: U16::new(self.number.0),
            drives: U16::new(self.drives),
            is_new: u8::from(self.is_new),
            reserved: [0; 3],
        };
        raw.crc = U32::new(crc32c::crc32c(&raw.as_bytes()[8..]));
        zerocopy::transmute!(raw)
    }

    fn decode(bytes: &[u8]) -> Result<Badge, String> {
        copies::best_of(bytes.chunks(COPY_BYTES).map(decode_copy), |one, other| {
            if one.generation >= other.generation { one } else { other }
        })
    }
}

fn decode_copy(bytes: &[u8]) -> Result<Badge, String> {
    let (raw, _) = RawDrive::read_from_prefix(bytes).map_err(|_| "it is cut off".to_owned())?;
    if raw.magic != MAGIC {
        return Err("it does not begin with PYD1".to_owned());
    }
    if raw.crc.get() != crc32c::crc32c(&raw.as_bytes()[8..]) {
        return Err("its checksum is wrong".to_owned());
    }
    let (server, generation) = (raw.server.get(), raw.generation.get());
    let (number, drives, is_new) = (DriveId(raw.number.get()), raw.drives.get(), raw.is_new != 0);
    Ok(Badge { server, generation, number, drives, is_new })
}

/// Whether a directory may be one of several drives: then it has the file by which [`muster`] knows it again.
pub fn is_one_of_several(dir: &Path) -> bool {
    dir.join(FILE_NAME).exists()
}

/// Which drive a file `drive` with these bytes says that its directory is.
///
/// Errors: what is wrong with it.
pub fn number_in(bytes: &[u8]) -> Result<DriveId, String> {
    Badge::decode(bytes).map(|badge| badge.number)
}

/// What was found in a directory.
struct Found {
    badge: Option<Badge>,
    /// Logs, or a catalogue of them.
    has_data: bool,
}

/// Finds out which drive is which, gives new ones a number, and raises the generation of all. To be called once, before
/// any core starts. One directory that was never one of several is left as it is.
///
/// Errors: see [`MusterError`]. Nothing was changed if the directories are no server together.
pub async fn muster<R: Runtime>(runtime: &R, dirs: &[PathBuf], absence: Absence) -> Result<Drives, MusterError> {
    let mut found = Vec::new();
    for dir in dirs {
        found.push(look(runtime, dir).await?);
    }
    if let ([dir], [Found { badge: None, .. }]) = (dirs, &found[..]) {
        return Ok(Drives::single(dir));
    }
    check(dirs, &found)?;
    let drives = count(dirs, &found);
    let away: Vec<DriveId> = drives.away().collect();
    if absence == Absence::Refused && !away.is_empty() {
        return Err(MusterError::Away { known: drives.known(), away });
    }
    let badges = || found.iter().filter_map(|found| found.badge);
    let server = badges().next().map_or_else(|| runtime.random_u64(), |badge| badge.server);
    let (catalog, all_have_it) = catalog_store::load_latest(runtime, &drives).await?;
    let known = |number| badges().find(|badge| badge.number == number).map_or(0, |badge| badge.generation);
    let badge = |number, is_new| {
        let generation = if is_new { 0 } else { known(number) };
        Badge { server, generation, number, drives: drives.known(), is_new }
    };
    let replaced: BTreeMap<DriveId, &Path> = drives.all().filter(|(drive, _)| drives.is_replaced(*drive)).collect();
    for (number, dir) in &replaced {
        copies::write(runtime, &dir.join(FILE_NAME), &badge(*number, true).encode()).await?;
    }
    note_losses(runtime, &catalog, &replaced).await?;
    // An old one stays old until each of its copies has noted that it lost its memory.
    let present = drives.all().filter(|(number, _)| !drives.is_old(*number));
    raise_together(runtime, present.map(|(number, dir)| (dir, badge(number, false))).collect()).await?;
    // Before anything is made on a drive that lacks it.
    for (_, dir) in drives.all().filter(|_| !all_have_it) {
        catalog_store::save(runtime, dir, &catalog).await?;
    }
    Ok(drives)
}

async fn look<R: Runtime>(runtime: &R, dir: &Path) -> Result<Found, MusterError> {
    let badge = read(runtime, dir).await?;
    let entries = runtime.list_dir(dir).await.unwrap_or_default();
    let is_data = |name: &std::ffi::OsStr| name == CATALOG_FILE || name == "logs";
    let has_data = entries.iter().any(|entry| entry.path.file_name().is_some_and(is_data));
    Ok(Found { badge, has_data })
}

/// Which drive each directory is. Those that have no number get the first that are free: one that has data was the only
/// drive until now, the others come after it in the order in which they were given.
fn count(dirs: &[PathBuf], found: &[Found]) -> Drives {
    let badges = || found.iter().filter_map(|found| found.badge);
    let newest = badges().map(|badge| badge.generation).max().unwrap_or(0);
    let mut free = (0..).map(DriveId).filter(|number| badges().all(|badge| badge.number != *number));
    let mut order: Vec<usize> = (0..dirs.len()).collect();
    order.sort_by_key(|at| !found[*at].has_data);
    let mut numbers = BTreeMap::new();
    for at in order {
        let number = found[at].badge.map(|badge| badge.number).or_else(|| free.next()).unwrap_or_default();
        numbers.insert(at, number);
    }
    let known = badges().map(|badge| badge.drives).max().unwrap_or(0);
    // Less by one is what a crash leaves while all are raised.
    let stale = |badge: &Badge| badge.generation + 1 < newest && !badge.is_new;
    // Of a server that never had a log nothing is missing.
    let had_data = found.iter().any(|found| found.badge.is_some() && found.has_data);
    let is_empty = |at: usize| found[at].badge.map_or(!found[at].has_data, |badge| badge.is_new);
    let replaced = numbers.iter().filter(|(at, number)| had_data && is_empty(**at) && number.0 < known);
    let replaced = replaced.map(|(_, number)| *number).collect();
    let mounted = numbers.iter().map(|(at, number)| (*number, dirs[*at].clone())).collect();
    let old = badges().filter(stale).map(|badge| badge.number).collect();
    Drives::new(mounted).with_known(known).with_old(old).with_replaced(replaced)
}

/// Leaves a trace of the partitions that had their only copy on a drive that was replaced, so that they are not opened
/// as if they were new.
async fn note_losses<R: Runtime>(
    runtime: &R,
    catalog: &Catalog,
    replaced: &BTreeMap<DriveId, &Path>,
) -> Result<(), MusterError> {
    for (dir, data_dir) in only_copies(catalog, replaced) {
        let trace = dir.join(BEGUN);
        let left = async {
            make_durable_dir(runtime, data_dir, &dir).await?;
            runtime.open(&trace, OpenMode::CreateTruncate).await?;
            runtime.sync_dir(&dir).await
        };
        left.await.map_err(|error: std::io::Error| LogFault::from_io("creating", &trace, &error))?;
    }
    Ok(())
}

/// The folders of the partitions that have no copy but the one on any of `drives`.
fn only_copies<'a>(catalog: &Catalog, drives: &BTreeMap<DriveId, &'a Path>) -> Vec<(PathBuf, &'a Path)> {
    let logs = catalog.logs().filter(|log| log.replication().is_none());
    let partitions = logs.flat_map(|log| log.partition_ids().map(move |partition| (log, partition)));
    let there = partitions.filter_map(|(log, partition)| {
        let drive = placement::drive_of(partition, ReplicaId(0), log.layout());
        let data_dir = *drives.get(&drive)?;
        Some((copy_dir(data_dir, &log.name, CopyId::only(partition)), data_dir))
    });
    there.collect()
}

fn check(dirs: &[PathBuf], found: &[Found]) -> Result<(), MusterError> {
    let all: Vec<(&PathBuf, &Found)> = dirs.iter().zip(found).collect();
    for (at, (one, mine)) in all.iter().enumerate() {
        for (other, theirs) in &all[..at] {
            let (one, other) = ((*other).clone(), (*one).clone());
            match (mine.badge, theirs.badge) {
                (Some(mine), Some(theirs)) if mine.server != theirs.server => {
                    return Err(MusterError::Strangers { one, other });
                }
                (Some(mine), Some(theirs)) if mine.number == theirs.number => {
                    return Err(MusterError::Twice { number: mine.number.0, one, other });
                }
                (Some(_), Some(_)) => {}
                // Data without a number is what a server with one drive has. All of several get their numbers before
                // a second one gets data.
                _ if mine.has_data && theirs.has_data => return Err(MusterError::Strangers { one, other }),
                _ => {}
            }
        }
    }
    Ok(())
}

async fn read<R: Runtime>(runtime: &R, dir: &Path) -> Result<Option<Badge>, MusterError> {
    let path = dir.join(FILE_NAME);
    let fault = |error: std::io::Error| LogFault::from_io("reading", &path, &error);
    let bytes = copies::read(runtime, &path).await.map_err(fault)?;
    let badge = bytes.map(|bytes| Badge::decode(&bytes)).transpose();
    badge.map_err(|reason| MusterError::Damaged { path: path.clone(), reason })
}

/// Raises the generation of all of these by two, in steps of one, of which none begins before the one before is done on
/// all of them. So whatever a crash leaves, they differ by one at most, and one that was not there by two at least.
async fn raise_together<R: Runtime>(runtime: &R, mut badges: Vec<(&Path, Badge)>) -> Result<(), LogFault> {
    let newest = badges.iter().map(|(_, badge)| badge.generation).max().unwrap_or(0);
    for generation in newest..=newest + 2 {
        for (dir, badge) in badges.iter_mut().filter(|(_, badge)| badge.generation < generation) {
            badge.generation = generation;
            copies::write(runtime, &dir.join(FILE_NAME), &badge.encode()).await?;
        }
    }
    Ok(())
}

/// Raises the generation of the drives of a server that runs, whose copies are open. While one does not take it all
/// stay as they are.
pub(super) async fn raise<R: Runtime>(runtime: &R, drives: &Drives) {
    let raised = async {
        let mut badges = Vec::new();
        for (_, dir) in drives.all() {
            badges.extend(read(runtime, dir).await?.map(|badge| (dir, badge)));
        }
        raise_together(runtime, badges).await.map_err(MusterError::from)
    };
    if let Err(error) = raised.await {
        tracing::error!(%error, "a drive does not take part any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        runtime::sim::{Sim, SimConfig, SimRuntime, faults::Failure},
        settings::{LogSettings, Replication},
        shard::request::CreateLog,
        types::{LogUid, PartitionId, PartitionIndex},
    };

    async fn write(runtime: &SimRuntime, dir: &Path, badge: Badge) {
        copies::write(runtime, &dir.join(FILE_NAME), &badge.encode()).await.unwrap();
    }

    fn dirs(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    fn in_a_world<T: 'static>(story: impl AsyncFnOnce(SimRuntime) -> T + 'static) -> T {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let runtime = cores[0].clone();
        let story = async move {
            for dir in ["/a", "/b", "/c"] {
                runtime.create_dir_all(Path::new(dir)).await.unwrap();
            }
            story(runtime).await
        };
        sim.block_on(&cores[0], story, 100_000).unwrap()
    }

    #[test]
    fn drives_keep_their_numbers_wherever_they_are_mounted() {
        in_a_world(async |runtime| {
            let first = muster(&runtime, &dirs(&["/a", "/b"]), Absence::Allowed).await.unwrap();
            let all = |drives: &Drives| {
                drives.all().map(|(drive, dir)| (drive.0, dir.display().to_string())).collect::<Vec<_>>()
            };
            assert_eq!(all(&first), [(0, "/a".to_owned()), (1, "/b".to_owned())]);
            let again = muster(&runtime, &dirs(&["/c", "/b", "/a"]), Absence::Allowed).await.unwrap();
            assert_eq!(all(&again), [(2, "/c".to_owned()), (1, "/b".to_owned()), (0, "/a".to_owned())]);
            assert!(again.all().all(|(drive, _)| !again.is_old(drive)));
        });
    }

    #[test]
    fn a_drive_that_was_away_is_old() {
        in_a_world(async |runtime| {
            muster(&runtime, &dirs(&["/a", "/b"]), Absence::Allowed).await.unwrap();
            assert!(
                muster(&runtime, &dirs(&["/b"]), Absence::Allowed)
                    .await
                    .unwrap()
                    .all()
                    .all(|(drive, _)| drive == DriveId(1))
            );
            for _ in 0..2 {
                let drives = muster(&runtime, &dirs(&["/a", "/b"]), Absence::Allowed).await.unwrap();
                assert!(drives.is_old(DriveId(0)) && !drives.is_old(DriveId(1)));
            }
            let both = Drives::new(vec![(DriveId(0), PathBuf::from("/a")), (DriveId(1), PathBuf::from("/b"))]);
            raise(&runtime, &both).await;
            assert!(
                !muster(&runtime, &dirs(&["/a", "/b"]), Absence::Allowed).await.unwrap().is_old(DriveId(0)),
                "it was there since"
            );
            raise(&runtime, &Drives::new(vec![(DriveId(0), PathBuf::from("/a"))])).await;
            assert!(muster(&runtime, &dirs(&["/a", "/b"]), Absence::Allowed).await.unwrap().is_old(DriveId(1)));
        });
    }

    #[test]
    fn a_start_that_is_cut_off_anywhere_makes_no_drive_old() {
        for operation in 1..80 {
            let sim = Sim::new(operation, &SimConfig::default());
            let begin = |operation: Option<u64>| {
                let (process, cores) = sim.process(1);
                let runtime = cores[0].clone();
                if let Some(nth) = operation {
                    sim.fail_nth(nth, Failure::Crash, false);
                }
                let story = async move {
                    for dir in ["/a", "/b", "/c"] {
                        runtime.create_dir_all(Path::new(dir)).await.unwrap();
                    }
                    muster(&runtime, &dirs(&["/a", "/b", "/c"]), Absence::Allowed).await.unwrap()
                };
                let drives = sim.block_on(&cores[0], story, 20_000).ok();
                sim.lose_power(process);
                sim.fail_none();
                drives
            };
            begin(None).unwrap();
            begin(Some(operation));
            begin(Some(operation));
            let drives = begin(None).unwrap();
            assert!(drives.all().all(|(drive, _)| !drives.is_old(drive)), "operation {operation}");
        }
    }

    #[test]
    fn one_directory_that_was_never_one_of_several_is_left_alone_and_becomes_the_first() {
        in_a_world(async |runtime| {
            assert_eq!(
                muster(&runtime, &dirs(&["/b"]), Absence::Allowed).await.unwrap(),
                Drives::single(Path::new("/b"))
            );
            assert!(runtime.list_dir(Path::new("/b")).await.unwrap().is_empty());
            catalog_store::save(&runtime, Path::new("/b"), &Default::default()).await.unwrap();
            let drives = muster(&runtime, &dirs(&["/a", "/b"]), Absence::Allowed).await.unwrap();
            assert!(drives.all().any(|(drive, dir)| drive == DriveId(0) && dir == Path::new("/b")));
        });
    }

    #[test]
    fn copies_and_strangers_are_refused() {
        in_a_world(async |runtime| {
            muster(&runtime, &dirs(&["/a", "/b"]), Absence::Allowed).await.unwrap();
            let badge = read(&runtime, Path::new("/a")).await.unwrap().unwrap();
            write(&runtime, Path::new("/c"), badge).await;
            let twice = muster(&runtime, &dirs(&["/a", "/c"]), Absence::Allowed).await.unwrap_err();
            assert_eq!(twice.to_string(), "/a and /c are both drive 0: one is a copy of the other");
            write(&runtime, Path::new("/c"), Badge { server: badge.server ^ 1, ..badge }).await;
            let strangers = muster(&runtime, &dirs(&["/b", "/c"]), Absence::Allowed).await.unwrap_err();
            assert_eq!(strangers.to_string(), "/b and /c belong to different servers");
        });
    }

    async fn with_log(runtime: &SimRuntime, dir: &str, replication: Option<Replication>) {
        let settings = LogSettings { replication, ..LogSettings::default() };
        let request = CreateLog { name: "a/b".parse().unwrap(), partitions: 8, settings };
        let (catalog, _) = Catalog::default().with_log(&request, (2, 0)).unwrap();
        catalog_store::save(runtime, Path::new(dir), &catalog.with_founded(LogUid(0)).next_revision()).await.unwrap();
    }

    #[test]
    fn a_drive_that_was_left_out_is_missed_and_nothing_is_changed() {
        in_a_world(async |runtime| {
            muster(&runtime, &dirs(&["/a", "/b", "/c"]), Absence::Refused).await.unwrap();
            let before = read(&runtime, Path::new("/a")).await.unwrap();
            for left in [&["/a", "/b"][..], &["/a"]] {
                let error = muster(&runtime, &dirs(left), Absence::Refused).await.unwrap_err().to_string();
                let away = if left.len() == 2 { "drive 2 is not" } else { "drive 1, 2 is not" };
                assert!(error.starts_with("this server has 3 drives, ") && error.contains(away), "{error}");
            }
            assert_eq!(read(&runtime, Path::new("/a")).await.unwrap(), before);
            let drives = muster(&runtime, &dirs(&["/a", "/b", "/c"]), Absence::Refused).await.unwrap();
            assert!(drives.all().all(|(drive, _)| !drives.is_old(drive) && !drives.is_replaced(drive)));
        });
    }

    #[test]
    fn two_servers_with_a_drive_each_are_not_made_one() {
        in_a_world(async |runtime| {
            with_log(&runtime, "/a", None).await;
            with_log(&runtime, "/b", None).await;
            let error = muster(&runtime, &dirs(&["/a", "/b"]), Absence::Refused).await.unwrap_err();
            assert_eq!(error.to_string(), "/a and /b belong to different servers");
            muster(&runtime, &dirs(&["/a", "/c"]), Absence::Refused).await.unwrap();
            let error = muster(&runtime, &dirs(&["/a", "/c", "/b"]), Absence::Refused).await.unwrap_err();
            assert_eq!(error.to_string(), "/a and /b belong to different servers");
        });
    }

    #[test]
    fn an_empty_drive_in_the_place_of_another_is_known_for_it_and_no_only_copy_begins_anew_there() {
        let three = Replication { replication_factor: 3, write_quorum: 2, read_quorum: 1 };
        for (replication, traces) in [(None, true), (Some(three), false)] {
            in_a_world(async move |runtime| {
                muster(&runtime, &dirs(&["/a", "/b"]), Absence::Refused).await.unwrap();
                with_log(&runtime, "/a", replication).await;
                let drives = muster(&runtime, &dirs(&["/a", "/c"]), Absence::Refused).await.unwrap();
                assert!(drives.is_replaced(DriveId(1)) && !drives.is_replaced(DriveId(0)));
                assert!(!drives.is_old(DriveId(1)), "it has nothing that could be old");
                let begun = async |dir: &str| {
                    let mut count = 0;
                    for partition in 0..8 {
                        let dir = PathBuf::from(format!("{dir}/logs/a/b/{partition}"));
                        let entries = runtime.list_dir(&dir).await.unwrap_or_default();
                        count += usize::from(entries.iter().any(|entry| entry.path.ends_with(BEGUN)));
                    }
                    count
                };
                let own = drives_own(1);
                assert_eq!(begun("/c").await, if traces { own } else { 0 });
                assert_eq!(begun("/a").await, 0);
                let again = muster(&runtime, &dirs(&["/a", "/c"]), Absence::Refused).await.unwrap();
                assert!(!again.is_replaced(DriveId(1)), "it is a drive of this server from now on");
            });
        }
    }

    #[test]
    fn a_start_with_a_replaced_drive_that_is_cut_off_anywhere_forgets_no_loss() {
        for operation in 1..120 {
            let sim = Sim::new(operation, &SimConfig::default());
            let begin = |operation: Option<u64>, dirs: &[&str]| {
                let (process, cores) = sim.process(1);
                let runtime = cores[0].clone();
                let dirs: Vec<PathBuf> = dirs.iter().map(PathBuf::from).collect();
                if let Some(nth) = operation {
                    sim.fail_nth(nth, Failure::Crash, false);
                }
                let story = async move {
                    for dir in &dirs {
                        runtime.create_dir_all(dir).await.unwrap();
                    }
                    let drives = muster(&runtime, &dirs, Absence::Refused).await.unwrap();
                    if dirs.ends_with(&[PathBuf::from("/b")]) {
                        with_log(&runtime, "/a", None).await;
                    }
                    (drives, runtime.list_dir(Path::new("/c/logs/a/b")).await.unwrap_or_default().len())
                };
                let found = sim.block_on(&cores[0], story, 20_000).ok();
                sim.lose_power(process);
                sim.fail_none();
                found
            };
            begin(None, &["/a", "/b"]).unwrap();
            begin(Some(operation), &["/a", "/c"]);
            let (drives, folders) = begin(None, &["/a", "/c"]).unwrap();
            assert!(drives.all().all(|(drive, _)| !drives.is_old(drive)), "operation {operation}");
            assert_eq!(folders, drives_own(1), "operation {operation}");
        }
    }

    /// How many of the partitions of [`with_log`] have their first copy on this drive.
    fn drives_own(drive: u16) -> usize {
        let ids = (0..8).map(|index| PartitionId { log: LogUid(0), index: PartitionIndex(index) });
        let own = ids
            .filter(|id| {
                placement::drive_of(*id, ReplicaId(0), placement::Layout { drives: 2, dealt: true }) == DriveId(drive)
            })
            .count();
        assert!((1..8).contains(&own), "the test shows nothing");
        own
    }

    #[test]
    fn a_spoiled_sector_is_no_loss_and_a_spoiled_file_is_refused() {
        let badge = Badge { server: 7, generation: 9, number: DriveId(3), drives: 4, is_new: true };
        let mut file = vec![0; 4096];
        file.chunks_mut(COPY_BYTES).for_each(|copy| copy[..32].copy_from_slice(&badge.encode()));
        file[..7 * COPY_BYTES].fill(0xff);
        assert_eq!(Badge::decode(&file), Ok(badge));
        file[7 * COPY_BYTES + 9] ^= 1;
        assert_eq!(Badge::decode(&file), Err("it does not begin with PYD1".to_owned()));
    }
}

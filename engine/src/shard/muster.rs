//! Counting a server's drives before it starts: which is which, and which of them was away, or is an old copy.
//!
//! Each drive of a server with several has a file `drive`: whose it is, its number, and a generation that is raised on
//! all drives together, at every start and every minute. A drive that shows a lower one than another was not there when
//! it was raised, or is a copy of an earlier time: what it says that its replicas acknowledged and promised may be less
//! than they did, so they are taken to have lost their memory (`docs/REPLICATION.md`, "An old copy of a drive"). What
//! is missed: a copy that was made and put back within the same minute.
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

use super::{CATALOG_FILE, CatalogError, catalog_store, placement::Drives};
use crate::{
    log::{
        LogFault,
        copies::{self, COPY_BYTES},
    },
    runtime::Runtime,
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
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawDrive>() == 32, "the drive file is laid out by hand");

/// What a drive says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Badge {
    /// A number that no other server has.
    server: u64,
    generation: u64,
    number: DriveId,
}

impl Badge {
    fn encode(self) -> [u8; 32] {
        let mut raw = RawDrive {
            magic: MAGIC,
            crc: U32::new(0),
            server: U64::new(self.server),
            generation: U64::new(self.generation),
            number: U16::new(self.number.0),
            reserved: [0; 6],
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
    Ok(Badge { server, generation, number: DriveId(raw.number.get()) })
}

/// Finds out which drive is which, gives new ones a number, and raises the generation of all. To be called once, before
/// any core starts. One directory that was never one of several is left as it is.
///
/// Errors: see [`MusterError`].
pub async fn muster<R: Runtime>(runtime: &R, dirs: &[PathBuf]) -> Result<Drives, MusterError> {
    let mut badges = Vec::new();
    for dir in dirs {
        badges.push(read(runtime, dir).await?);
    }
    if let ([dir], [None]) = (dirs, &badges[..]) {
        return Ok(Drives::single(dir));
    }
    check(dirs, &badges)?;
    let newest = badges.iter().flatten().map(|badge| badge.generation).max().unwrap_or(0);
    let server = badges.iter().flatten().next().map_or_else(|| runtime.random_u64(), |badge| badge.server);
    // The directory that has a catalogue, though no number, was the only one.
    let mut catalogs = Vec::new();
    for dir in dirs {
        let entries = runtime.list_dir(dir).await.unwrap_or_default();
        catalogs.push(entries.iter().any(|entry| entry.path.file_name().is_some_and(|name| name == CATALOG_FILE)));
    }
    let mut free = (0..).map(DriveId).filter(|number| badges.iter().flatten().all(|badge| badge.number != *number));
    let mut order: Vec<usize> = (0..dirs.len()).collect();
    order.sort_by_key(|at| !catalogs[*at]);
    let mut numbers = BTreeMap::new();
    for at in order {
        let number = badges[at].map(|badge| badge.number).or_else(|| free.next()).unwrap_or_default();
        numbers.insert(at, number);
    }
    // Less by one is what a crash leaves while all are raised.
    let stale = |badge: &Badge| badge.generation + 1 < newest;
    let mounted = numbers.iter().map(|(at, number)| (*number, dirs[*at].clone())).collect();
    let old = badges.iter().flatten().filter(|badge| stale(badge)).map(|badge| badge.number).collect();
    let drives = Drives::new(mounted).with_old(old);
    // An old one stays old until each of its copies has noted that it lost its memory.
    let present = drives.all().filter(|(number, _)| !drives.is_old(*number));
    let known = |number| badges.iter().flatten().find(|badge| badge.number == number).map(|badge| badge.generation);
    let badge = |number| Badge { server, generation: known(number).unwrap_or(0), number };
    raise_together(runtime, present.map(|(number, dir)| (dir, badge(number))).collect()).await?;
    share_catalog(runtime, &drives).await?;
    Ok(drives)
}

/// Gives every drive the latest catalogue, before anything is made on one that lacks it.
async fn share_catalog<R: Runtime>(runtime: &R, drives: &Drives) -> Result<(), MusterError> {
    let (catalog, all_have_it) = catalog_store::load_latest(runtime, drives).await?;
    for (_, dir) in drives.all().filter(|_| !all_have_it) {
        catalog_store::save(runtime, dir, &catalog).await?;
    }
    Ok(())
}

fn check(dirs: &[PathBuf], badges: &[Option<Badge>]) -> Result<(), MusterError> {
    let known: Vec<(&PathBuf, Badge)> =
        dirs.iter().zip(badges).filter_map(|(dir, badge)| Some((dir, (*badge)?))).collect();
    for (at, (one, badge)) in known.iter().enumerate() {
        for (other, theirs) in &known[..at] {
            let (one, other) = ((*one).clone(), (*other).clone());
            if badge.server != theirs.server {
                return Err(MusterError::Strangers { one: other, other: one });
            }
            if badge.number == theirs.number {
                return Err(MusterError::Twice { number: badge.number.0, one: other, other: one });
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
    use crate::runtime::sim::{Sim, SimConfig, SimRuntime, faults::Failure};

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
            let first = muster(&runtime, &dirs(&["/a", "/b"])).await.unwrap();
            let all = |drives: &Drives| {
                drives.all().map(|(drive, dir)| (drive.0, dir.display().to_string())).collect::<Vec<_>>()
            };
            assert_eq!(all(&first), [(0, "/a".to_owned()), (1, "/b".to_owned())]);
            let again = muster(&runtime, &dirs(&["/c", "/b", "/a"])).await.unwrap();
            assert_eq!(all(&again), [(2, "/c".to_owned()), (1, "/b".to_owned()), (0, "/a".to_owned())]);
            assert!(again.all().all(|(drive, _)| !again.is_old(drive)));
        });
    }

    #[test]
    fn a_drive_that_was_away_is_old() {
        in_a_world(async |runtime| {
            muster(&runtime, &dirs(&["/a", "/b"])).await.unwrap();
            assert!(muster(&runtime, &dirs(&["/b"])).await.unwrap().all().all(|(drive, _)| drive == DriveId(1)));
            for _ in 0..2 {
                let drives = muster(&runtime, &dirs(&["/a", "/b"])).await.unwrap();
                assert!(drives.is_old(DriveId(0)) && !drives.is_old(DriveId(1)));
            }
            let both = Drives::new(vec![(DriveId(0), PathBuf::from("/a")), (DriveId(1), PathBuf::from("/b"))]);
            raise(&runtime, &both).await;
            assert!(!muster(&runtime, &dirs(&["/a", "/b"])).await.unwrap().is_old(DriveId(0)), "it was there since");
            raise(&runtime, &Drives::new(vec![(DriveId(0), PathBuf::from("/a"))])).await;
            assert!(muster(&runtime, &dirs(&["/a", "/b"])).await.unwrap().is_old(DriveId(1)));
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
                    muster(&runtime, &dirs(&["/a", "/b", "/c"])).await.unwrap()
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
            assert_eq!(muster(&runtime, &dirs(&["/b"])).await.unwrap(), Drives::single(Path::new("/b")));
            assert!(runtime.list_dir(Path::new("/b")).await.unwrap().is_empty());
            catalog_store::save(&runtime, Path::new("/b"), &Default::default()).await.unwrap();
            let drives = muster(&runtime, &dirs(&["/a", "/b"])).await.unwrap();
            assert!(drives.all().any(|(drive, dir)| drive == DriveId(0) && dir == Path::new("/b")));
        });
    }

    #[test]
    fn copies_and_strangers_are_refused() {
        in_a_world(async |runtime| {
            muster(&runtime, &dirs(&["/a", "/b"])).await.unwrap();
            let badge = read(&runtime, Path::new("/a")).await.unwrap().unwrap();
            write(&runtime, Path::new("/c"), badge).await;
            let twice = muster(&runtime, &dirs(&["/a", "/c"])).await.unwrap_err();
            assert_eq!(twice.to_string(), "/a and /c are both drive 0: one is a copy of the other");
            write(&runtime, Path::new("/c"), Badge { server: badge.server ^ 1, ..badge }).await;
            let strangers = muster(&runtime, &dirs(&["/b", "/c"])).await.unwrap_err();
            assert_eq!(strangers.to_string(), "/b and /c belong to different servers");
        });
    }

    #[test]
    fn a_spoiled_sector_is_no_loss_and_a_spoiled_file_is_refused() {
        let badge = Badge { server: 7, generation: 9, number: DriveId(3) };
        let mut file = vec![0; 4096];
        file.chunks_mut(COPY_BYTES).for_each(|copy| copy[..32].copy_from_slice(&badge.encode()));
        file[..7 * COPY_BYTES].fill(0xff);
        assert_eq!(Badge::decode(&file), Ok(badge));
        file[7 * COPY_BYTES + 9] ^= 1;
        assert_eq!(Badge::decode(&file), Err("it does not begin with PYD1".to_owned()));
    }
}

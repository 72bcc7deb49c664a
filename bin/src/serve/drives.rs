//! The server's drives: a data directory each, opened and locked together, counted before a core runs, and shown to the
//! operator. What is on which drive is the engine's business; here is whether these directories are drives of this
//! server at all, and what is known of the file systems that they are on.

use std::path::{Path, PathBuf};

use pyralog_engine::{
    runtime::{
        glommio::{LaunchOptions, launch},
        start::StartError,
    },
    shard::{
        muster::{self, Absence, DRIVES_MAX, MusterError},
        placement::Drives,
    },
    types::{CoreId, DriveId},
};
use pyralog_tuning::{
    Settings,
    data_dirs::DATA_DIRS_MAX,
    host::{HostError, Volume},
    units::about,
};
use thiserror::Error;

use super::data_dir::{DataDir, DataDirError};

const _: () = assert!(DATA_DIRS_MAX <= DRIVES_MAX, "the configuration allows what the engine can do");

/// Why the directories are no drives for a server. The operator must act.
#[derive(Debug, Error)]
pub enum DrivesError {
    /// One of them, or its file system.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A file system.
    #[error(transparent)]
    Host(#[from] HostError),
    /// They are no server together.
    #[error("the data directories cannot be used: {0}")]
    Muster(#[from] MusterError),
    /// The executor that was to count them.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It died.
    #[error("the data directories could not be counted: {0}")]
    Died(String),
}

/// What a drive was when the server started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AtStart {
    /// It had all that it once had, or is new to the server.
    Whole,
    /// It is empty in the place of one that was there: its copies are rebuilt.
    Empty,
    /// It is a copy of an earlier time, or was away: likewise.
    Old,
}

/// A drive, for the operator.
#[derive(Clone, Debug)]
pub struct DriveView {
    /// Its number, which it keeps wherever it is mounted.
    pub number: DriveId,
    /// Its data directory.
    pub dir: PathBuf,
    /// Its file system.
    pub volume: Volume,
    /// Bytes of it that are kept back.
    pub reserve_bytes: u64,
    /// What it was when the server started.
    pub at_start: AtStart,
}

/// The file systems of the data directories, before anything on them was touched.
pub struct Ground {
    volumes: Vec<Volume>,
    reserves: Vec<u64>,
}

impl Ground {
    /// Looks at the file systems of the configured directories.
    ///
    /// Errors: `Host`.
    pub fn survey(settings: &Settings) -> Result<Self, DrivesError> {
        let dirs = settings.config().server.data_dir.paths();
        let volumes = dirs.iter().map(|dir| Volume::of(dir)).collect::<Result<Vec<_>, _>>()?;
        volumes.iter().try_for_each(Volume::check)?;
        let reserves = volumes.iter().map(|volume| reserve_bytes(settings, volume.total_bytes)).collect();
        Ok(Ground { volumes, reserves })
    }

    /// The most that is kept back on any of them, in bytes.
    pub fn largest_reserve_bytes(&self) -> u64 {
        self.reserves.iter().copied().max().unwrap_or(0)
    }

    /// What is not as it should be, though it stops nothing.
    pub fn warnings(&self, dirs: &[PathBuf]) -> Vec<String> {
        let mut warnings = Vec::new();
        for (dir, (volume, reserve_bytes)) in dirs.iter().zip(self.volumes.iter().zip(&self.reserves)) {
            if volume.free_bytes < *reserve_bytes {
                warnings.push(format!(
                    "the file system of {} is full: {} are free, and {} are kept back (storage.reserve_bytes); writes \
                     are refused until there is room",
                    dir.display(),
                    about(volume.free_bytes),
                    about(*reserve_bytes),
                ));
            }
        }
        warnings.extend(self.shared(dirs));
        warnings
    }

    /// A warning for each file system that has several of the directories.
    fn shared(&self, dirs: &[PathBuf]) -> Vec<String> {
        let number = |at: usize| self.volumes[at].device_number;
        let first = |at: &usize| (0..*at).all(|before| number(before) != number(*at));
        let mut warnings = Vec::new();
        for at in (0..dirs.len()).filter(first) {
            let same: Vec<_> = (at..dirs.len()).filter(|other| number(*other) == number(at)).collect();
            if same.len() > 1 {
                let names: Vec<_> = same.iter().map(|at| dirs[*at].display().to_string()).collect();
                warnings.push(format!(
                    "the data directories {} are on the same file system: what takes it takes them all, and copies of \
                     a partition on them are no safer than on one",
                    names.join(" and "),
                ));
            }
        }
        warnings
    }
}

/// What of a file system of `total_bytes` is kept back: what was asked for, but by default at most a twentieth, so that
/// a small one is of use.
fn reserve_bytes(settings: &Settings, total_bytes: u64) -> u64 {
    let wanted = settings.config().storage.reserve_bytes.0;
    let explicit = settings.origin("storage.reserve_bytes").is_explicit();
    if explicit { wanted } else { wanted.min(total_bytes / 20) }
}

/// The server's drives. Until this is dropped they are its own.
pub struct ServerDrives {
    _locks: Vec<DataDir>,
    drives: Drives,
    views: Vec<DriveView>,
}

impl ServerDrives {
    /// Opens, locks and counts the directories `dirs`, which lie on `ground`. `cpu` does the counting.
    ///
    /// Errors: see [`DrivesError`].
    pub fn open(dirs: &[PathBuf], ground: Ground, cpu: usize) -> Result<Self, DrivesError> {
        let locks = DataDir::open_all(dirs)?;
        let real: Vec<_> = locks.iter().map(|data| data.path().to_owned()).collect();
        let drives = count(&real, cpu)?;
        let known = ground.volumes.into_iter().zip(ground.reserves);
        let view = |((number, dir), (volume, reserve_bytes)): ((DriveId, &Path), _)| DriveView {
            number,
            dir: dir.to_owned(),
            volume,
            reserve_bytes,
            at_start: match (drives.is_replaced(number), drives.is_old(number)) {
                (true, _) => AtStart::Empty,
                (false, true) => AtStart::Old,
                (false, false) => AtStart::Whole,
            },
        };
        let views = drives.all().zip(known).map(view).collect();
        Ok(ServerDrives { _locks: locks, drives, views })
    }

    /// For the engine.
    pub fn drives(&self) -> &Drives {
        &self.drives
    }

    /// For the operator, in the order in which cores are dealt out to them.
    pub fn views(&self) -> &[DriveView] {
        &self.views
    }

    /// The absolute paths of the directories, in this order too.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.views.iter().map(|view| view.dir.clone()).collect()
    }

    /// What became of drives since the last start.
    pub fn warnings(&self) -> Vec<String> {
        let warning = |view: &DriveView| {
            let words = match view.at_start {
                AtStart::Whole => return None,
                AtStart::Empty => {
                    "is empty in the place of one that was there: its copies are rebuilt from the others, and \
                     partitions that had their only copy there are lost and stay closed"
                }
                AtStart::Old => {
                    "is a copy of an earlier time, or was away: its copies are rebuilt from the others, and partitions \
                     that have their only copy there are as they were then"
                }
            };
            Some(format!("drive {} ({}) {words}", view.number, view.dir.display()))
        };
        self.views.iter().filter_map(warning).collect()
    }
}

/// The drive of a core, where there are so many.
pub fn drive_of_core(core: CoreId, drives: usize) -> usize {
    usize::from(core.0) % drives
}

/// Counts the drives. One that never was one of several needs no counting; others are read and written as everything
/// that must be durable is, by an executor that lives for that.
fn count(dirs: &[PathBuf], cpu: usize) -> Result<Drives, DrivesError> {
    if let [dir] = dirs
        && !muster::is_one_of_several(dir)
    {
        return Ok(Drives::single(dir));
    }
    let options = LaunchOptions { data_dirs: dirs.to_vec(), ..LaunchOptions::default() };
    let dirs = dirs.to_vec();
    let counting =
        launch(
            &[cpu],
            &options,
            move |_, runtime| async move { muster::muster(&runtime, &dirs, Absence::Refused).await },
        )?;
    let mut counted = Err(DrivesError::Died("no core was started".to_owned()));
    for core in counting {
        counted = core.join().map_err(DrivesError::Died).and_then(|drives| Ok(drives?));
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(device_number: u64) -> Volume {
        Volume {
            path: PathBuf::from("/"),
            file_system: "ext4",
            device: None,
            device_number,
            total_bytes: 100 << 30,
            free_bytes: 50 << 30,
        }
    }

    #[test]
    fn directories_on_one_file_system_are_named_together_once() {
        let dirs: Vec<_> = ["/a", "/b", "/c", "/d"].map(PathBuf::from).into();
        let ground = |devices: [u64; 4]| Ground { volumes: devices.map(volume).into(), reserves: vec![1 << 20; 4] };
        assert_eq!(ground([1, 2, 3, 4]).warnings(&dirs), [""; 0]);
        let warnings = ground([1, 2, 1, 1]).warnings(&dirs);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("the data directories /a and /c and /d are on the same file system: "));
        assert_eq!(ground([1, 2, 2, 1]).warnings(&dirs).len(), 2);
    }

    #[test]
    fn each_full_file_system_is_named() {
        let mut ground = Ground { volumes: vec![volume(1), volume(2)], reserves: vec![1 << 30; 2] };
        ground.volumes[1].free_bytes = 1 << 20;
        let warnings = ground.warnings(&["/a", "/b"].map(PathBuf::from));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("the file system of /b is full: 1 MiB are free"), "{warnings:?}");
    }
}

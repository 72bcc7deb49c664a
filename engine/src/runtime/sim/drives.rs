//! The drives of the simulated world: each is a directory of the root, and may stop answering, fail for good, or be
//! replaced by an empty one or by a copy of an earlier time.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Component, Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use super::{
    Sim,
    executor::World,
    faults::{FaultKind, FaultRates},
    names,
};

/// How a drive is.
#[derive(Default)]
pub(super) struct Drive {
    /// Everything fails.
    dead: Cell<bool>,
    /// Nothing begins before then.
    stalled_until: Cell<Duration>,
}

/// The drives of a world, by the first part of the paths on them.
#[derive(Default)]
pub(super) struct Drives(RefCell<BTreeMap<OsString, Rc<Drive>>>);

impl Drives {
    /// The drive that `path` is on.
    pub(super) fn of(&self, path: &Path) -> Rc<Drive> {
        let first = path.components().find_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            _ => None,
        });
        Rc::clone(self.0.borrow_mut().entry(first.unwrap_or_default()).or_default())
    }
}

impl World {
    /// Waits until a drive answers.
    ///
    /// Errors: EIO, if it is dead.
    pub(super) async fn reach(self: &Rc<Self>, drive: &Drive) -> io::Result<()> {
        let wait = drive.stalled_until.get().saturating_sub(self.now());
        if wait > Duration::ZERO {
            self.sleep(wait).await;
        }
        if drive.dead.get() { Err(names::os_error(libc::EIO)) } else { Ok(()) }
    }
}

/// What is on a drive at some time.
pub struct DriveImage(Vec<(PathBuf, Vec<u8>)>);

impl Sim {
    fn drive(&self, dir: &Path) -> Rc<Drive> {
        self.world.drives.of(dir)
    }

    /// From now on everything fails on the drive at `dir`.
    pub fn fail_drive(&self, dir: &Path) {
        self.world.count(FaultKind::DriveFailed);
        self.drive(dir).dead.set(true);
    }

    /// The drive at `dir` begins nothing for `duration`.
    pub fn stall_drive(&self, dir: &Path, duration: Duration) {
        self.world.count(FaultKind::DriveStalled);
        self.drive(dir).stalled_until.set(self.now() + duration);
    }

    /// The drive at `dir` works again; what is on it is as it was.
    pub fn heal_drive(&self, dir: &Path) {
        let drive = self.drive(dir);
        drive.dead.set(false);
        drive.stalled_until.set(Duration::ZERO);
    }

    /// What is on the drive at `dir` now.
    pub fn image_of(&self, dir: &Path) -> DriveImage {
        let on = self.files().into_iter().map(|(path, _)| path).filter(|path| path.starts_with(dir));
        DriveImage(on.filter_map(|path| Some((path.clone(), self.content(&path)?))).collect())
    }

    /// Another drive stands in the place of the one at `dir`: an empty one, or one with what `image` shows. No process
    /// runs.
    pub fn replace_drive(&self, dir: &Path, image: Option<&DriveImage>) -> io::Result<()> {
        self.world.count(if image.is_some() { FaultKind::DriveStale } else { FaultKind::DriveReplaced });
        self.heal_drive(dir);
        self.world.free_space();
        self.world.empty(dir)?;
        let Some(DriveImage(files)) = image else { return Ok(()) };
        // Whatever chance says of the room.
        let rates = self.world.rates.replace(FaultRates::none());
        let installed = files.iter().try_for_each(|(path, content)| self.install(path, content));
        *self.world.rates.borrow_mut() = rates;
        installed
    }
}

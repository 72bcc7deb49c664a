//! Files on the real disk as `verify` and `dump` read them: plain reads, which every file system takes, also of a copy
//! elsewhere. Nothing is ever written through this.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, IsTerminal},
    os::unix::fs::FileExt,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pyralog_engine::{
    log::verify::{Disk, Source},
    runtime::DirEntry,
};

use crate::output::say;

/// Before that nobody asks how far it is.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// The disk, and how much of it was read.
pub struct RealDisk {
    progress: Rc<RefCell<Progress>>,
}

/// A file of it.
pub struct RealFile {
    file: File,
    progress: Rc<RefCell<Progress>>,
}

/// What is shown on a terminal when reading takes long.
struct Progress {
    bar: ProgressBar,
    total_bytes: u64,
    read_bytes: u64,
    started: Instant,
}

impl RealDisk {
    /// The disk, of which about `total_bytes` are going to be read.
    pub fn new(total_bytes: u64) -> Self {
        let progress = Progress { bar: ProgressBar::hidden(), total_bytes, read_bytes: 0, started: Instant::now() };
        RealDisk { progress: Rc::new(RefCell::new(progress)) }
    }

    /// Prints a line, without tearing what is shown.
    pub fn print(&self, line: &str) {
        self.progress.borrow().bar.suspend(|| say!("{line}"));
    }
}

impl Drop for RealDisk {
    fn drop(&mut self) {
        self.progress.borrow().bar.finish_and_clear();
    }
}

impl Progress {
    fn read(&mut self, bytes: u64) {
        self.read_bytes += bytes;
        if self.started.elapsed() < PROGRESS_AFTER || !io::stderr().is_terminal() {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            self.bar.set_length(self.total_bytes);
            let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        self.bar.set_position(self.read_bytes.min(self.total_bytes));
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn open(&self, path: &Path) -> io::Result<RealFile> {
        Ok(RealFile { file: File::open(path)?, progress: Rc::clone(&self.progress) })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let entry = |entry: fs::DirEntry| Ok(DirEntry { path: entry.path(), is_dir: entry.file_type()?.is_dir() });
        let mut entries =
            fs::read_dir(path)?.map(|found| found.and_then(entry)).collect::<io::Result<Vec<DirEntry>>>()?;
        entries.sort();
        Ok(entries)
    }
}

impl Source for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            match self.file.read_at(&mut bytes[have..], position + have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(have);
        self.progress.borrow_mut().read(have as u64);
        Ok(bytes)
    }
}

//! The data directory's front door: whose it is, which format it has, and that only one server is in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// Tells our directories from others, and one format from the next.
const MARKER: &str = "PYRALOG";
const MARKER_ASIDE: &str = "PYRALOG.new";
const MARKER_TEXT: &str = "A Pyralog data directory. Do not change anything in it by hand.\nformat 1\n";
const FORMAT: u32 = 1;

/// Locked while a server uses the directory; holds its process number.
const LOCK: &str = "LOCK";

/// Why a data directory cannot be used. The operator must act.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another server is in it.
    #[error("the data directory {} is in use by process {process}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other server's process number, as far as it said.
        process: String,
    },
    /// Somebody else's files are in it.
    #[error("{} is not empty and no data directory of ours (it has `{found}` but no `{MARKER}`)", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the files.
        found: String,
    },
    /// It is empty or missing, and a tool was to look into it.
    #[error("{} is no data directory: it has no `{MARKER}`", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// It was written by another version.
    #[error("the data directory {} has {found}; this version reads and writes format {FORMAT}", path.display())]
    OtherFormat {
        /// The directory.
        path: PathBuf,
        /// What its marker says.
        found: String,
    },
    /// Two names for the same directory.
    #[error("the data directories {} and {} are the same directory", one.display(), other.display())]
    Same {
        /// One of the names.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// One is in another.
    #[error("the data directory {} lies in {}, which is one too", inner.display(), outer.display())]
    Nested {
        /// The one inside.
        inner: PathBuf,
        /// The one around it.
        outer: PathBuf,
    },
    /// The operating system refuses.
    #[error("the data directory {} cannot be used: {what}: {source}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Its words.
        source: io::Error,
    },
}

/// A data directory that is ours, and ours alone until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Opens the directories at `paths`, as [`DataDir::open`] does each.
    ///
    /// Errors: see [`DataDirError`]. None is locked if they are not all different.
    pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Self>, DataDirError> {
        let mut seen: Vec<(&PathBuf, PathBuf, (u64, u64))> = Vec::new();
        for path in paths {
            let tried = |what: &'static str| {
                move |source: io::Error| DataDirError::Unusable { path: path.to_owned(), what, source }
            };
            fs::create_dir_all(path).map_err(tried("creating it"))?;
            let real = fs::canonicalize(path).map_err(tried("finding it"))?;
            let known = fs::metadata(&real).map_err(tried("finding it"))?;
            // A directory that is mounted twice has two paths.
            let id = (known.dev(), known.ino());
            for (one, other, other_id) in &seen {
                if id == *other_id {
                    return Err(DataDirError::Same { one: one.to_path_buf(), other: path.to_owned() });
                }
                if real.starts_with(other) {
                    return Err(DataDirError::Nested { inner: path.to_owned(), outer: one.to_path_buf() });
                }
                if other.starts_with(&real) {
                    return Err(DataDirError::Nested { inner: one.to_path_buf(), outer: path.to_owned() });
                }
            }
            seen.push((path, real, id));
        }
        paths.iter().map(|path| DataDir::open(path)).collect()
    }

    /// Opens the directory at `path`, creating it if missing, and locks it.
    ///
    /// Errors: see [`DataDirError`]. A directory that is refused is left as it was.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let tried = |what: &'static str| {
            move |source: io::Error| DataDirError::Unusable { path: path.to_owned(), what, source }
        };
        fs::create_dir_all(path).map_err(tried("creating it"))?;
        let path = fs::canonicalize(path).map_err(tried("finding it"))?;
        let is_ours = is_ours(&path)?;
        let lock = lock(&path)?;
        if !is_ours {
            write_marker(&path).map_err(tried("writing its marker"))?;
        }
        Ok(DataDir { path, _lock: lock })
    }

    /// Opens and locks a directory that is ours already. Nothing is created in any other.
    ///
    /// Errors: see [`DataDirError`]; `InUse` names the absolute path, in which a tool may still read.
    pub fn existing(path: &Path) -> Result<Self, DataDirError> {
        let missing = || DataDirError::Missing { path: path.to_owned() };
        let path = fs::canonicalize(path).map_err(|_| missing())?;
        if !is_ours(&path)? {
            return Err(missing());
        }
        let lock = lock(&path)?;
        Ok(DataDir { path, _lock: lock })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether the directory has our marker; `false` if it is empty and can become ours.
fn is_ours(path: &Path) -> Result<bool, DataDirError> {
    let tried =
        |what: &'static str| move |source: io::Error| DataDirError::Unusable { path: path.to_owned(), what, source };
    match fs::read_to_string(path.join(MARKER)) {
        Ok(text) => return check_format(path, &text).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(tried("reading its marker")(source)),
    }
    for entry in fs::read_dir(path).map_err(tried("listing it"))? {
        let found = entry.map_err(tried("listing it"))?.file_name().to_string_lossy().into_owned();
        // What a fresh file system has, and what a start of ours that was cut off leaves behind.
        if !["lost+found", LOCK, MARKER_ASIDE].contains(&found.as_str()) {
            return Err(DataDirError::Foreign { path: path.to_owned(), found });
        }
    }
    Ok(false)
}

fn check_format(path: &Path, text: &str) -> Result<(), DataDirError> {
    let format = text.lines().last().unwrap_or_default();
    if format == format!("format {FORMAT}") {
        return Ok(());
    }
    let readable = format.strip_prefix("format ").is_some_and(|number| number.parse::<u32>().is_ok());
    let found = if readable { format.to_owned() } else { format!("an unreadable `{MARKER}`") };
    Err(DataDirError::OtherFormat { path: path.to_owned(), found })
}

fn write_marker(path: &Path) -> io::Result<()> {
    let aside = path.join(MARKER_ASIDE);
    let mut file = File::create(&aside)?;
    file.write_all(MARKER_TEXT.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path.join(MARKER))?;
    File::open(path)?.sync_all()?;
    // The directory's own name, if it is new.
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn lock(path: &Path) -> Result<Flock<File>, DataDirError> {
    let tried =
        |what: &'static str| move |source: io::Error| DataDirError::Unusable { path: path.to_owned(), what, source };
    // Not truncated: until the lock is ours, the number in it is another's.
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join(LOCK));
    let file = options.map_err(tried("opening its lock"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // In place, and as long as any other: a full drive has no room for a new block, and need not have.
            let write = |lock: &mut File| {
                lock.rewind()?;
                writeln!(lock, "{:<10}", std::process::id())
            };
            match write(&mut lock) {
                Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(tried("writing its lock")(error)),
                // The number only helps those who find it locked.
                _ => Ok(lock),
            }
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut process = String::new();
            let _ = file.read_to_string(&mut process);
            let process = if process.trim().is_empty() { "unknown" } else { process.trim() }.to_owned();
            Err(DataDirError::InUse { path: path.to_owned(), process })
        }
        Err((_, errno)) => Err(tried("locking it")(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_becomes_ours_and_opens_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        drop(DataDir::open(&path).unwrap());
        assert!(path.join(MARKER).exists());
        drop(DataDir::open(&path).unwrap());
    }

    #[test]
    fn two_servers_never_share_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let first = DataDir::open(root.path()).unwrap();
        let message = DataDir::open(root.path()).unwrap_err().to_string();
        assert!(message.ends_with(&format!("is in use by process {}", std::process::id())), "{message}");
        drop(first);
        DataDir::open(root.path()).unwrap();
    }

    #[test]
    fn two_names_for_one_directory_and_one_in_another_are_refused_and_nothing_is_locked() {
        let root = tempfile::tempdir().unwrap();
        let (a, b, link) = (root.path().join("a"), root.path().join("b"), root.path().join("link"));
        std::os::unix::fs::symlink(&a, &link).unwrap();
        for same in [[&a, &b, &a], [&a, &b, &link]] {
            let error = DataDir::open_all(&same.map(PathBuf::clone)).unwrap_err();
            assert!(matches!(&error, DataDirError::Same { one, other } if *one == a && other == same[2]), "{error}");
        }
        let inner = a.join("inner");
        for nested in [[inner.clone(), a.clone()], [a.clone(), inner.clone()]] {
            let error = DataDir::open_all(&nested).unwrap_err().to_string();
            assert!(error.ends_with(&format!("lies in {}, which is one too", a.display())), "{error}");
        }
        assert!(!a.join(LOCK).exists());
        fs::remove_dir(&inner).unwrap();
        assert_eq!(DataDir::open_all(&[a, b]).unwrap().len(), 2);
    }

    #[test]
    fn a_strangers_directory_is_refused_and_left_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.txt"), "years of work").unwrap();
        let message = DataDir::open(root.path()).unwrap_err().to_string();
        assert!(message.ends_with("(it has `thesis.txt` but no `PYRALOG`)"), "{message}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tool_makes_no_directory_ours() {
        let root = tempfile::tempdir().unwrap();
        for path in [root.path().to_owned(), root.path().join("missing")] {
            assert!(matches!(DataDir::existing(&path), Err(DataDirError::Missing { .. })));
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        drop(DataDir::open(root.path()).unwrap());
        let held = DataDir::existing(root.path()).unwrap();
        assert!(matches!(DataDir::existing(root.path()), Err(DataDirError::InUse { .. })));
        drop(held);
    }

    #[test]
    fn another_format_and_a_damaged_marker_are_refused() {
        for (text, found) in [("Later.\nformat 2\n", "has format 2;"), ("rubbish", "has an unreadable `PYRALOG`;")] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(MARKER), text).unwrap();
            let message = DataDir::open(root.path()).unwrap_err().to_string();
            assert!(message.contains(found), "{message}");
        }
    }

    #[test]
    fn a_start_that_was_cut_off_does_not_make_the_directory_foreign() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(LOCK), "1\n").unwrap();
        fs::write(root.path().join(MARKER_ASIDE), "A Pyr").unwrap();
        DataDir::open(root.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_directorys_place_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "").unwrap();
        assert!(matches!(DataDir::open(&path), Err(DataDirError::Unusable { what: "creating it", .. })));
    }
}

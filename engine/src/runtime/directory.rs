//! What the real runtime does to directories, as plain blocking calls; they run on a core's helper thread.

use std::{fs, io, path::Path};

use super::DirEntry;

/// Creates `path` and its missing parents, and makes each new name durable before the next one is made in it.
pub(super) fn create_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_all(parent)?;
    }
    match fs::create_dir(path) {
        // Somebody was faster: then it is for us as if it had been there.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync(parent.unwrap_or(Path::new(".")))
}

/// The names in `path`, sorted.
pub(super) fn list(path: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = fs::read_dir(path)?
        .map(|entry| entry.and_then(|e| Ok(DirEntry { path: e.path(), is_dir: e.file_type()?.is_dir() })))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// What the file system of `path` has left for those without privileges.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(path)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Makes the names in `path` durable. With fsync: fdatasync of a directory need not write a new name, which leaves its
/// length as it was.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

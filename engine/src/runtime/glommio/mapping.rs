//! Parts of files mapped into memory, such that no access to them can wait for a drive or fail. What is unsafe about it
//! stays in here: everybody else sees bytes.
//!
//! A page of a mapping that is not in memory is read when it is touched. That would stall the core, and if the drive
//! fails, it would end the process with SIGBUS. So here every page is read before anybody gets the mapping, by a call
//! that returns such a failure as an error (`MADV_POPULATE_READ`, Linux 5.14), and the mapping is locked before that,
//! so that the kernel takes no page of it back.
//!
//! What is left is that the file is cut. A mapping holds a shared lock (`flock`) on its opening of the file, which ends
//! when the mapping does, by whatever core; whoever cuts a file claims it with an exclusive one.
#![allow(unsafe_code)]

use std::{ffi::c_void, fs::File, io, ptr::NonNull};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    mm::{Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock_with, mmap, mmap_anonymous, munmap},
    param::page_size,
};

use super::super::{MapError, start::raise_memlock};

/// Why the system would refuse mappings.
#[derive(Debug, thiserror::Error)]
pub enum MappingUnavailable {
    /// There is no room under the limit on locked memory.
    #[error(
        "{wanted_bytes} bytes of memory cannot be locked, memlock is {has_bytes} (`ulimit -l {}` or LimitMEMLOCK=): \
         {source}",
        wanted_bytes.div_ceil(1024)
    )]
    Locked {
        /// What was tried.
        wanted_bytes: u64,
        /// The limit now.
        has_bytes: u64,
        /// The operating system's words.
        source: io::Error,
    },
    /// The kernel cannot populate a mapping without the danger of SIGBUS.
    #[error("the kernel has no MADV_POPULATE_READ, which came with Linux 5.14: {0}")]
    Populated(io::Error),
}

/// Whether `bytes` of mappings can be locked in memory, all at once. Takes no memory and leaves nothing behind.
pub fn try_lock(bytes: u64) -> Result<(), MappingUnavailable> {
    let has_bytes = raise_memlock();
    let refused = |source: Errno| MappingUnavailable::Locked { wanted_bytes: bytes, has_bytes, source: source.into() };
    let len = usize::try_from(bytes).map_err(|_| refused(Errno::NOMEM))?.max(page_size());
    // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE) };
    let pages = Pages::new(start.map_err(refused)?, len).ok_or_else(|| refused(Errno::NOMEM))?;
    pages.lock().map_err(refused)?;
    pages.advise(page_size(), Advice::LinuxPopulateRead).map_err(|error| MappingUnavailable::Populated(error.into()))
}

/// Locks a file against being mapped, for as long as `file` is open. `false` if it is mapped now.
pub(super) fn claim(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        // A file system without such locks, where nothing is ever mapped.
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK | Errno::INVAL) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Pages of memory that are nobody else's. Dropped, they are unmapped.
struct Pages {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the pages are memory like any other: nothing about them belongs to the thread that mapped them.
unsafe impl Send for Pages {}
// SAFETY: they are only ever read.
unsafe impl Sync for Pages {}

impl Pages {
    /// `start` and `len` are those of a mapping that nobody else knows of.
    fn new(start: *mut c_void, len: usize) -> Option<Self> {
        NonNull::new(start).map(|start| Pages { start, len })
    }

    /// From now on a page that came stays. Brings none.
    fn lock(&self) -> Result<(), Errno> {
        // SAFETY: the pages are ours; being locked changes nothing that a reader could see.
        unsafe { mlock_with(self.start.as_ptr(), self.len, MlockFlags::ONFAULT) }
    }

    /// Advises the kernel about the first `len` bytes.
    fn advise(&self, len: usize, advice: Advice) -> Result<(), Errno> {
        assert!(len <= self.len && matches!(advice, Advice::WillNeed | Advice::LinuxPopulateRead), "harmless advice");
        // SAFETY: the pages are ours, and both advices only bring pages into memory.
        unsafe { madvise(self.start.as_ptr(), len, advice) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages are ours, and whoever could read them borrows from what is being dropped here.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, bytes = self.len, "a mapping could not be removed; its memory is lost");
        }
    }
}

/// Bytes of a file, mapped. See [`super::super::File::map`].
pub struct Mapping {
    /// `None` if there are no bytes.
    pages: Option<Pages>,
    /// The bytes wanted, within the pages.
    from: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of `file` at `position`, or as many as it has. Waits for the drive.
    pub(super) fn populated(file: &File, position: u64, len: usize) -> Result<Mapping, MapError> {
        match flock(file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(error @ Errno::WOULDBLOCK) => return Err(MapError::Unreadable(error.into())),
            // Without locks nobody could be kept from cutting the file.
            Err(error) => return Err(MapError::Refused(error.into())),
        }
        let size = file.metadata().map_err(MapError::Unreadable)?.len();
        let len = usize::try_from(size.saturating_sub(position).min(len as u64)).unwrap_or(len);
        if len == 0 {
            return Ok(Mapping { pages: None, from: 0, len: 0 });
        }
        let from = (position % page_size() as u64) as usize;
        let whole = (from + len).next_multiple_of(page_size());
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        let start = unsafe {
            mmap(std::ptr::null_mut(), whole, ProtFlags::READ, MapFlags::SHARED, file, position - from as u64)
        };
        let pages = Pages::new(start.map_err(not_mapped)?, whole).ok_or_else(|| not_mapped(Errno::NOMEM))?;
        pages.lock().map_err(|error| MapError::Refused(error.into()))?;
        // All of it is asked of the drive at once, and then waited for. The first is a hint: it may fail.
        let _ = pages.advise(whole, Advice::WillNeed);
        pages.advise(whole, Advice::LinuxPopulateRead).map_err(not_populated)?;
        Ok(Mapping { pages: Some(pages), from, len })
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        let Some(pages) = &self.pages else { return &[] };
        assert!(self.from + self.len <= pages.len, "{} + {} of {} bytes", self.from, self.len, pages.len);
        // SAFETY: the pages are mapped for as long as `self` lives, readable, all of them in memory and locked there
        // (see `populated`). Nobody writes these bytes of the file or cuts it: segments are mapped once they are
        // sealed, and who deletes one claims it first, which the lock that the mapping holds refuses.
        unsafe { std::slice::from_raw_parts(pages.start.as_ptr().cast::<u8>().add(self.from), self.len) }
    }
}

/// What a failed `mmap` means: of a drive that was shut down it is EIO.
fn not_mapped(error: Errno) -> MapError {
    match error {
        Errno::IO => MapError::Unreadable(error.into()),
        _ => MapError::Refused(error.into()),
    }
}

/// What a failed population means. The kernel says EFAULT where an access would have been answered with SIGBUS.
fn not_populated(error: Errno) -> MapError {
    match error {
        Errno::FAULT | Errno::HWPOISON => MapError::Unreadable(Errno::IO.into()),
        Errno::IO | Errno::INTR | Errno::AGAIN => MapError::Unreadable(error.into()),
        _ => MapError::Refused(error.into()),
    }
}

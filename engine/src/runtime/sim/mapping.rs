//! Mappings of the simulated world: a copy of the bytes, taken as a read takes them, with the same faults. What would
//! end a real process, a page that is taken away under a mapping, ends the run with a panic: it is a bug of whoever
//! wrote or cut the file, or mapped it.

use std::{cell::RefCell, ops::Range, rc::Rc};

use super::{
    executor::World,
    inode::{Inode, PAGE},
    names::os_error,
};
use crate::runtime::MapError;

/// Bytes of a simulated file, mapped. See [`crate::runtime::File::map`].
pub struct SimMapping {
    bytes: Vec<u8>,
    inode: Rc<RefCell<Inode>>,
    pages: Range<u64>,
}

impl SimMapping {
    fn new(inode: &Rc<RefCell<Inode>>, pages: Range<u64>) -> Self {
        inode.borrow_mut().mapped.push(pages.clone());
        SimMapping { bytes: Vec::new(), inode: Rc::clone(inode), pages }
    }
}

impl Drop for SimMapping {
    fn drop(&mut self) {
        let mapped = &mut self.inode.borrow_mut().mapped;
        let mine = mapped.iter().position(|pages| *pages == self.pages);
        mapped.swap_remove(mine.expect("pushed when this was made")); // why: `new` is the only way to make one
    }
}

impl AsRef<[u8]> for SimMapping {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Keeps a file from being mapped.
pub(super) struct Claim(Rc<RefCell<Inode>>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.borrow_mut().claims -= 1;
    }
}

impl World {
    pub(super) async fn map(
        self: &Rc<Self>,
        inode: &Rc<RefCell<Inode>>,
        position: u64,
        len: usize,
    ) -> Result<SimMapping, MapError> {
        if self.disk.refuses_mappings.get() {
            return Err(MapError::Refused(os_error(libc::ENOMEM)));
        }
        if inode.borrow().claims > 0 {
            return Err(MapError::Unreadable(os_error(libc::EWOULDBLOCK)));
        }
        assert!(inode.borrow().busy_until() <= self.now(), "a file is mapped while it is written");
        let end = inode.borrow().len().min(position + len as u64).max(position);
        let page = PAGE as u64;
        let pages = position - position % page..end.next_multiple_of(page);
        // Whoever cuts the file from now on cuts off what is being read.
        let mut mapping = SimMapping::new(inode, pages.clone());
        if position < end {
            let read = self.read(inode, pages.start, (pages.end - pages.start) as usize).await;
            let read = read.map_err(MapError::Unreadable)?;
            let at = |position: u64| ((position - pages.start) as usize).min(read.len());
            mapping.bytes = read[at(position)..at(end)].to_vec();
        }
        self.disk.mappings.set(self.disk.mappings.get() + 1);
        Ok(mapping)
    }

    pub(super) fn claim(&self, inode: &Rc<RefCell<Inode>>) -> Option<Claim> {
        let mut locked = inode.borrow_mut();
        if !locked.mapped.is_empty() || locked.claims > 0 {
            return None;
        }
        locked.claims += 1;
        Some(Claim(Rc::clone(inode)))
    }
}

impl Inode {
    /// Ends the run if a write to `range` takes pages away from a mapping: direct I/O throws out what it writes to.
    pub(super) fn check_not_mapped(&self, range: &Range<u64>) {
        let hit = self.mapped.iter().find(|pages| pages.start < range.end && range.start < pages.end);
        assert!(hit.is_none(), "a write to {range:?} under a mapping of {hit:?}");
    }

    /// Ends the run if a cut to `len` takes pages away from a mapping: the next access would be answered with SIGBUS.
    pub(super) fn check_cut(&self, len: u64) {
        let hit = self.mapped.iter().find(|pages| len < pages.end && len < self.len());
        assert!(hit.is_none(), "a cut to {len} under a mapping of {hit:?}: SIGBUS");
    }
}

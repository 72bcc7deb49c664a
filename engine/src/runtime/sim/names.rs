//! The directories of the simulated disk: names that are seen, names that are durable, and the changes between the two.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::{Component, Path},
    rc::Rc,
};

use super::{inode::Inode, random::SimRandom};

/// What a file takes at least, and a multiple of which it takes.
pub(super) const BLOCK: u64 = 4096;

/// What a name stands for.
#[derive(Clone)]
pub(super) enum Node {
    File(Rc<RefCell<Inode>>),
    Dir(Rc<RefCell<Dir>>),
}

/// One change of names, which a loss of power undoes as a whole or not at all: file systems with a journal promise as
/// much.
#[derive(Clone)]
enum Change {
    Link(OsString, Node),
    Unlink(OsString),
    Rename(OsString, OsString),
}

/// A directory.
#[derive(Default)]
pub(super) struct Dir {
    seen: BTreeMap<OsString, Node>,
    durable: BTreeMap<OsString, Node>,
    /// From what is durable to what is seen, each with its number.
    changes: Vec<(u64, Change)>,
    next_change: u64,
    /// The changes before this are durable.
    synced_before: u64,
}

/// What a sync of a directory will make durable.
pub(super) struct DirSyncPoint {
    names: BTreeMap<OsString, Node>,
    before: u64,
}

impl Dir {
    fn change(&mut self, change: Change) {
        apply(&mut self.seen, &change);
        self.changes.push((self.next_change, change));
        self.next_change += 1;
    }

    pub(super) fn begin_sync(&self) -> DirSyncPoint {
        DirSyncPoint { names: self.seen.clone(), before: self.next_change }
    }

    pub(super) fn end_sync(&mut self, point: DirSyncPoint) {
        // A sync that began later may end first; it covered this one.
        if point.before < self.synced_before {
            return;
        }
        self.synced_before = point.before;
        self.durable = point.names;
        self.changes.retain(|(number, _)| *number >= point.before);
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&OsString, &Node)> {
        self.seen.iter()
    }

    /// The power is lost: each change since the last sync is kept or undone, in one of two ways by which journals fail
    /// us: a prefix of the changes is kept, or any of them. Returns how many were undone.
    pub(super) fn lose_power(&mut self, rate: u32, random: &mut SimRandom) -> u64 {
        let mut names = std::mem::take(&mut self.durable);
        let prefix = random.happens(5_000);
        let mut undone = 0;
        for (_, change) in std::mem::take(&mut self.changes) {
            if (prefix && undone > 0) || random.happens(rate) {
                undone += 1;
            } else {
                apply(&mut names, &change);
            }
        }
        self.durable = names.clone();
        self.seen = names;
        undone
    }
}

fn apply(names: &mut BTreeMap<OsString, Node>, change: &Change) {
    match change {
        Change::Link(name, node) => {
            names.insert(name.clone(), node.clone());
        }
        Change::Unlink(name) => {
            names.remove(name);
        }
        Change::Rename(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

/// An error as the operating system gives it.
pub(super) fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The directory at `path`, from `root` on.
pub(super) fn directory(root: &Rc<RefCell<Dir>>, path: &Path) -> io::Result<Rc<RefCell<Dir>>> {
    let mut dir = Rc::clone(root);
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        let node = dir.borrow().seen.get(name).cloned();
        dir = match node {
            Some(Node::Dir(next)) => next,
            Some(Node::File(_)) => return Err(os_error(libc::ENOTDIR)),
            None => return Err(os_error(libc::ENOENT)),
        };
    }
    Ok(dir)
}

/// The directory that holds `path`, and the name in it.
pub(super) fn parent<'a>(root: &Rc<RefCell<Dir>>, path: &'a Path) -> io::Result<(Rc<RefCell<Dir>>, &'a OsStr)> {
    let name = path.file_name().ok_or_else(|| os_error(libc::EINVAL))?;
    Ok((directory(root, path.parent().unwrap_or(Path::new("/")))?, name))
}

/// What `name` stands for in `dir`.
pub(super) fn look_up(dir: &Rc<RefCell<Dir>>, name: &OsStr) -> Option<Node> {
    dir.borrow().seen.get(name).cloned()
}

/// Gives `node` a name.
pub(super) fn link(dir: &Rc<RefCell<Dir>>, name: &OsStr, node: Node) {
    dir.borrow_mut().change(Change::Link(name.to_owned(), node));
}

/// Renames a file or a directory. Into another directory it is two changes, of which a loss of power may undo either.
pub(super) fn rename(root: &Rc<RefCell<Dir>>, from: &Path, to: &Path) -> io::Result<()> {
    let (dir, old) = parent(root, from)?;
    let (other, new) = parent(root, to)?;
    let Some(node) = look_up(&dir, old) else { return Err(os_error(libc::ENOENT)) };
    if let (Node::Dir(_), Some(_)) = (&node, look_up(&other, new)) {
        return Err(os_error(libc::EEXIST));
    }
    if Rc::ptr_eq(&dir, &other) {
        dir.borrow_mut().change(Change::Rename(old.to_owned(), new.to_owned()));
    } else {
        other.borrow_mut().change(Change::Link(new.to_owned(), node));
        dir.borrow_mut().change(Change::Unlink(old.to_owned()));
    }
    Ok(())
}

/// Removes a file's name.
pub(super) fn remove_file(root: &Rc<RefCell<Dir>>, path: &Path) -> io::Result<()> {
    let (dir, name) = parent(root, path)?;
    match look_up(&dir, name) {
        None => Err(os_error(libc::ENOENT)),
        Some(Node::Dir(_)) => Err(os_error(libc::EISDIR)),
        Some(Node::File(_)) => {
            dir.borrow_mut().change(Change::Unlink(name.to_owned()));
            Ok(())
        }
    }
}

/// Removes an empty directory.
pub(super) fn remove_dir(root: &Rc<RefCell<Dir>>, path: &Path) -> io::Result<()> {
    let (dir, name) = parent(root, path)?;
    match look_up(&dir, name) {
        None => Err(os_error(libc::ENOENT)),
        Some(Node::File(_)) => Err(os_error(libc::ENOTDIR)),
        Some(Node::Dir(inner)) if !inner.borrow().seen.is_empty() => Err(os_error(libc::ENOTEMPTY)),
        Some(Node::Dir(_)) => {
            dir.borrow_mut().change(Change::Unlink(name.to_owned()));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        Node::File(Rc::default())
    }

    fn names(dir: &Dir) -> Vec<&str> {
        dir.nodes().map(|(name, _)| name.to_str().unwrap()).collect()
    }

    #[test]
    fn syncs_of_a_directory_may_end_in_another_order_than_they_began() {
        let mut dir = Dir::default();
        dir.change(Change::Link("a".into(), file()));
        let first = dir.begin_sync();
        dir.change(Change::Link("b".into(), file()));
        let second = dir.begin_sync();
        dir.end_sync(second);
        dir.end_sync(first);
        dir.lose_power(10_000, &mut SimRandom::new(1, 1));
        assert_eq!(names(&dir), ["a", "b"], "what a sync made durable is not taken back by another");
    }

    #[test]
    fn a_name_that_came_after_the_beginning_of_a_sync_is_not_durable() {
        let mut dir = Dir::default();
        dir.change(Change::Link("a".into(), file()));
        let sync = dir.begin_sync();
        dir.change(Change::Link("b".into(), file()));
        dir.end_sync(sync);
        assert_eq!(names(&dir), ["a", "b"]);
        assert_eq!(dir.lose_power(10_000, &mut SimRandom::new(1, 1)), 1);
        assert_eq!(names(&dir), ["a"]);
    }
}

//! The simulated drive: operations take time, complete out of order, fail, and forget at a loss of power what was not
//! synced.
//!
//! An operation runs its course once it was submitted, whether or not anybody waits for it, as in a kernel.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use super::{
    executor::{Done, Stream, World},
    faults::FaultKind,
    inode::Inode,
    names::{self, Dir, Node, os_error},
    random::SimRandom,
};
use crate::runtime::{DirEntry, OpenMode};

/// The drive of a world.
pub(super) struct Disk {
    root: Rc<RefCell<Dir>>,
    pub(super) alignment: u64,
    /// Grows at every loss of power; what was under way then never happens.
    reign: Cell<u64>,
    next_write: Cell<u64>,
    /// The newest write that completed, to notice when writes overtake each other.
    newest_completed: Cell<u64>,
    /// When the last of the changes of names and lengths under way will end.
    calls_end: Cell<Duration>,
    /// The drive is full until then, whatever it says.
    full_until: Cell<Duration>,
    /// What it holds.
    size_bytes: Cell<u64>,
    /// The system gives no mappings.
    pub(super) refuses_mappings: Cell<bool>,
    /// How many it gave.
    pub(super) mappings: Cell<u64>,
    /// How many files were renamed, by the suffix of their new names or by the name if it has none.
    renames: RefCell<BTreeMap<OsString, u64>>,
    /// How many of them while such a file in the directory, perhaps itself, was not synced.
    pub(super) renames_too_early: Cell<u64>,
    /// When the last of the writes under way will end that are more than zeros.
    writes_end: Cell<Duration>,
}

/// A file with something wrong in it.
#[derive(Clone, Debug)]
pub struct Wound {
    /// Which.
    pub path: PathBuf,
    /// What stands in it.
    pub found: Vec<u8>,
    /// What should.
    pub right: Vec<u8>,
}

/// How long operations take, in nanoseconds. Names are changed through a journal, which is slow.
const READ_NANOS: Range<u64> = 40_000..200_000;
const WRITE_NANOS: Range<u64> = 15_000..150_000;
const SYNC_NANOS: Range<u64> = 50_000..800_000;
/// What a write that is durable when it ends takes longer than one that is not.
const DURABLE_NANOS: Range<u64> = 30_000..400_000;
const NAME_NANOS: Range<u64> = 20_000..300_000;

/// Where a write went, and what it was numbered.
pub(super) struct Placed {
    target: u64,
    len: usize,
    version: u64,
}

impl Disk {
    pub(super) fn new(alignment: u64) -> Self {
        assert!(alignment.is_power_of_two() && (512..=4096).contains(&alignment), "an alignment of {alignment} bytes");
        Disk {
            root: Rc::default(),
            alignment,
            reign: Cell::new(0),
            next_write: Cell::new(1),
            newest_completed: Cell::new(0),
            calls_end: Cell::new(Duration::ZERO),
            full_until: Cell::new(Duration::ZERO),
            size_bytes: Cell::new(u64::MAX),
            refuses_mappings: Cell::new(false),
            mappings: Cell::new(0),
            renames: RefCell::default(),
            renames_too_early: Cell::new(0),
            writes_end: Cell::new(Duration::ZERO),
        }
    }
}

impl World {
    /// A change of names or of a length, which is a system call: a process that is killed in it is not gone before it
    /// is over, and lets nobody take its place before that.
    async fn call<T: 'static>(
        self: &Rc<Self>,
        earliest: Duration,
        effect: impl FnOnce(&Rc<World>) -> T + 'static,
    ) -> T {
        let ends = (self.now() + self.draw_time(NAME_NANOS)).max(earliest);
        self.disk.calls_end.set(self.disk.calls_end.get().max(ends));
        self.operation_until(ends, effect).await
    }

    /// When the system calls of all processes will be over.
    pub(super) fn calls_end(&self) -> Duration {
        self.disk.calls_end.get()
    }

    /// Lets an operation take its time, and then happen; `effect` gives its result.
    async fn operation<T: 'static>(
        self: &Rc<Self>,
        nanos: Range<u64>,
        effect: impl FnOnce(&Rc<World>) -> T + 'static,
    ) -> T {
        let ends = self.now() + self.draw_time(nanos);
        self.operation_until(ends, effect).await
    }

    /// How long an operation takes.
    fn draw_time(self: &Rc<Self>, nanos: Range<u64>) -> Duration {
        let mut took = Duration::from_nanos(self.random(Stream::Disk, |random| random.within(nanos)));
        if self.fault(FaultKind::Stall, Stream::Disk) {
            took *= 1000;
        }
        took
    }

    async fn operation_until<T: 'static>(
        self: &Rc<Self>,
        ends: Duration,
        effect: impl FnOnce(&Rc<World>) -> T + 'static,
    ) -> T {
        let done = Done::new();
        let (event, world, reign) = (Rc::clone(&done), Rc::clone(self), self.disk.reign.get());
        self.at(ends, move || {
            if world.disk.reign.get() == reign {
                event.set(effect(&world));
            }
        });
        done.wait().await
    }

    pub(super) fn set_disk_bytes(&self, bytes: u64) {
        self.disk.size_bytes.set(bytes);
    }

    /// Files take what their length says, holes too: ours have none to speak of.
    fn free_bytes(&self) -> u64 {
        let size = self.disk.size_bytes.get();
        if size == u64::MAX {
            return size;
        }
        let used: u64 = self.files().iter().map(|(_, len)| len.next_multiple_of(names::BLOCK)).sum();
        size.saturating_sub(used)
    }

    pub(super) async fn free_bytes_of(self: &Rc<Self>, path: PathBuf) -> io::Result<u64> {
        self.call(Duration::ZERO, move |world| {
            names::directory(&world.disk.root, &path)?;
            Ok(world.free_bytes())
        })
        .await
    }

    /// Whether the drive does not take `bytes` more now. It becomes full by chance too, and stays so for a while,
    /// though it says nothing of it beforehand.
    fn is_full(&self, bytes: u64) -> bool {
        if self.free_bytes() < bytes {
            self.count(FaultKind::NoSpace);
            return true;
        }
        if self.now() >= self.disk.full_until.get() && self.fault(FaultKind::NoSpace, Stream::Disk) {
            let millis = self.random(Stream::Disk, |random| random.within(20..2_000));
            self.disk.full_until.set(self.now() + Duration::from_millis(millis));
        }
        self.is_still_full()
    }

    /// Whether a shortage of room has not ended.
    pub(super) fn is_still_full(&self) -> bool {
        self.now() < self.disk.full_until.get()
    }

    /// The drive is full for `duration`.
    pub(super) fn fill(&self, duration: Duration) {
        self.disk.full_until.set(self.disk.full_until.get().max(self.now() + duration));
    }

    /// Ends a shortage of room.
    pub(super) fn free_space(&self) {
        self.disk.full_until.set(Duration::ZERO);
    }

    pub(super) async fn open(self: &Rc<Self>, path: &Path, mode: OpenMode) -> io::Result<Rc<RefCell<Inode>>> {
        let path = path.to_owned();
        let mut earliest = Duration::ZERO;
        if mode == OpenMode::CreateTruncate
            && let Ok((dir, name)) = names::parent(&self.disk.root, &path)
            && let Some(Node::File(inode)) = names::look_up(&dir, name)
        {
            earliest = inode.borrow().busy_until();
        }
        self.call(earliest, move |world| world.open_now(&path, mode)).await
    }

    fn open_now(&self, path: &Path, mode: OpenMode) -> io::Result<Rc<RefCell<Inode>>> {
        let (dir, name) = names::parent(&self.disk.root, path)?;
        match (names::look_up(&dir, name), mode) {
            (Some(Node::Dir(_)), _) => Err(os_error(libc::EISDIR)),
            (Some(_), OpenMode::CreateNew) => Err(os_error(libc::EEXIST)),
            (Some(Node::File(inode)), OpenMode::Existing) => Ok(inode),
            (Some(Node::File(inode)), OpenMode::CreateTruncate) => {
                inode.borrow_mut().truncate(0, self.next_write());
                Ok(inode)
            }
            (None, OpenMode::Existing) => Err(os_error(libc::ENOENT)),
            (None, _) if self.is_full(names::BLOCK) => Err(os_error(libc::ENOSPC)),
            (None, _) => {
                let inode = Rc::new(RefCell::new(Inode::default()));
                names::link(&dir, name, Node::File(Rc::clone(&inode)));
                Ok(inode)
            }
        }
    }

    fn next_write(&self) -> u64 {
        self.disk.next_write.replace(self.disk.next_write.get() + 1)
    }

    /// Reads, as a caller does who asks for the rest when the system gives less than he asked for.
    pub(super) async fn read(
        self: &Rc<Self>,
        inode: &Rc<RefCell<Inode>>,
        position: u64,
        len: usize,
    ) -> io::Result<Vec<u8>> {
        self.check_aligned("read", position, len);
        let Some(first) = self.part_of(len, FaultKind::ShortRead) else {
            return self.read_once(inode, position, len).await;
        };
        let mut bytes = self.read_once(inode, position, first).await?;
        if bytes.len() == first {
            self.count(FaultKind::ShortRead);
            bytes.extend(self.read_once(inode, position + first as u64, len - first).await?);
        }
        Ok(bytes)
    }

    /// How much of `len` bytes the system takes or gives, if it is not all.
    fn part_of(&self, len: usize, kind: FaultKind) -> Option<usize> {
        let blocks = len as u64 / self.disk.alignment;
        let partly = blocks > 1 && self.would(kind, Stream::Disk);
        partly.then(|| (self.random(Stream::Disk, |random| random.within(1..blocks)) * self.disk.alignment) as usize)
    }

    /// Another place of the file where `len` bytes have room.
    fn elsewhere(&self, inode: &RefCell<Inode>, position: u64, len: usize) -> Option<u64> {
        let places = inode.borrow().len().checked_sub(len as u64)? / self.disk.alignment + 1;
        let other = self.random(Stream::Disk, |random| random.below(places)) * self.disk.alignment;
        (other != position).then_some(other)
    }

    async fn read_once(self: &Rc<Self>, inode: &Rc<RefCell<Inode>>, position: u64, len: usize) -> io::Result<Vec<u8>> {
        let inode = Rc::clone(inode);
        self.operation(READ_NANOS, move |world| {
            if world.fault(FaultKind::ReadError, Stream::Disk) {
                return Err(os_error(libc::EIO));
            }
            if inode.borrow().is_unreadable(position, len) {
                world.count(FaultKind::Unreadable);
                return Err(os_error(libc::EIO));
            }
            let bytes = inode.borrow().read(position, len);
            if world.would(FaultKind::MisdirectedRead, Stream::Disk)
                && let Some(other) = world.elsewhere(&inode, position, bytes.len())
            {
                let wrong = inode.borrow().read(other, bytes.len());
                if wrong != bytes {
                    world.count(FaultKind::MisdirectedRead);
                }
                return Ok(wrong);
            }
            Ok(bytes)
        })
        .await
    }

    /// The rule of O_DIRECT. A real drive answers EINVAL; here it is a bug that must not pass unseen.
    fn check_aligned(&self, what: &str, position: u64, len: usize) {
        let alignment = self.disk.alignment;
        let aligned = position.is_multiple_of(alignment) && (len as u64).is_multiple_of(alignment);
        assert!(aligned, "a {what} of {len} bytes at {position} on a drive with blocks of {alignment}");
    }

    /// Writes, as a caller does who asks for the rest when the system takes less than he gave it.
    pub(super) async fn write(
        self: &Rc<Self>,
        inode: &Rc<RefCell<Inode>>,
        position: u64,
        bytes: &[u8],
    ) -> io::Result<Vec<Placed>> {
        self.check_aligned("write", position, bytes.len());
        let grows = (position + bytes.len() as u64).saturating_sub(inode.borrow().len());
        if grows > 0 && self.is_full(grows) {
            if let Some(first) = self.part_of(bytes.len(), FaultKind::NoSpaceLate) {
                self.count(FaultKind::NoSpaceLate);
                self.write_once(inode, position, &bytes[..first]).await?;
            }
            return self.operation(WRITE_NANOS, |_| Err(os_error(libc::ENOSPC))).await;
        }
        let Some(first) = self.part_of(bytes.len(), FaultKind::ShortWrite) else {
            return Ok(vec![self.write_once(inode, position, bytes).await?]);
        };
        self.count(FaultKind::ShortWrite);
        let first_placed = self.write_once(inode, position, &bytes[..first]).await?;
        Ok(vec![first_placed, self.write_once(inode, position + first as u64, &bytes[first..]).await?])
    }

    async fn write_once(
        self: &Rc<Self>,
        inode: &Rc<RefCell<Inode>>,
        position: u64,
        bytes: &[u8],
    ) -> io::Result<Placed> {
        let (version, len) = (self.next_write(), bytes.len());
        inode.borrow().check_not_mapped(&(position..position + len as u64));
        let target = self.place_of_write(inode, position, len);
        if target == position {
            inode.borrow_mut().write(position, bytes, version);
        } else {
            inode.borrow_mut().write_misdirected((position, target), bytes, version);
        }
        self.trace(target ^ (len as u64) << 40);
        let ends = self.now() + self.draw_time(WRITE_NANOS);
        inode.borrow_mut().be_busy_until(ends);
        // Neither prepared room nor padding begins a batch.
        if bytes.first().is_some_and(|first| *first != 0) {
            self.disk.writes_end.set(self.disk.writes_end.get().max(ends));
        }
        let inode = Rc::clone(inode);
        self.operation_until(ends, move |world| {
            if world.fault(FaultKind::WriteError, Stream::Disk) {
                world.random(Stream::Disk, |random| inode.borrow_mut().fail(target, len, version, random));
                return Err(os_error(libc::EIO));
            }
            if version < world.disk.newest_completed.replace(version.max(world.disk.newest_completed.get())) {
                world.count(FaultKind::Reordered);
            }
            inode.borrow_mut().complete(target, len, version);
            Ok(Placed { target, len, version })
        })
        .await
    }

    /// Where a write really goes.
    fn place_of_write(&self, inode: &RefCell<Inode>, position: u64, len: usize) -> u64 {
        if !self.would(FaultKind::MisdirectedWrite, Stream::Disk) {
            return position;
        }
        let Some(other) = self.elsewhere(inode, position, len) else { return position };
        self.count(FaultKind::MisdirectedWrite);
        other
    }

    /// A write with a sync of its own. If the write succeeds and the sync fails, the bytes are as unsafe as after any
    /// failed sync.
    pub(super) async fn write_durable(
        self: &Rc<Self>,
        inode: &Rc<RefCell<Inode>>,
        position: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let placed = self.write(inode, position, bytes).await?;
        let inode = Rc::clone(inode);
        self.operation(DURABLE_NANOS, move |world| {
            if world.fault(FaultKind::SyncError, Stream::Disk) {
                world.random(Stream::Disk, |random| inode.borrow_mut().fail_sync(random));
                return Err(os_error(libc::EIO));
            }
            // Not if a sync of somebody else failed meanwhile and took the bytes with it.
            let mut inode = inode.borrow_mut();
            let whole = placed.iter().all(|part| inode.make_durable(part.target, part.len, part.version));
            if whole { Ok(()) } else { Err(os_error(libc::EIO)) }
        })
        .await
    }

    pub(super) async fn sync(self: &Rc<Self>, inode: &Rc<RefCell<Inode>>) -> io::Result<()> {
        let point = inode.borrow_mut().begin_sync();
        let inode = Rc::clone(inode);
        self.operation(SYNC_NANOS, move |world| {
            if world.fault(FaultKind::SyncError, Stream::Disk) {
                world.random(Stream::Disk, |random| inode.borrow_mut().fail_sync(random));
                return Err(os_error(libc::EIO));
            }
            inode.borrow_mut().end_sync(point);
            Ok(())
        })
        .await
    }

    /// Room is what a file's length says, so what is new is more of it.
    pub(super) async fn allocate(self: &Rc<Self>, inode: &Rc<RefCell<Inode>>, len: u64) -> io::Result<()> {
        let (inode, grows) = (Rc::clone(inode), len.saturating_sub(inode.borrow().len()));
        if grows > 0 && self.is_full(grows) {
            return self.operation(WRITE_NANOS, |_| Err(os_error(libc::ENOSPC))).await;
        }
        let earliest = inode.borrow().busy_until();
        self.call(earliest, move |world| {
            if len > inode.borrow().len() {
                inode.borrow_mut().truncate(len, world.next_write());
            }
            Ok(())
        })
        .await
    }

    /// Cutting off waits for the writes under way: no file system takes blocks away beneath them. Nothing else does
    /// (measured on ext4: neither a sync nor a change to the same length or a larger one), and growing takes no room.
    pub(super) async fn truncate(self: &Rc<Self>, inode: &Rc<RefCell<Inode>>, len: u64) -> io::Result<()> {
        let inode = Rc::clone(inode);
        let shorter = len < inode.borrow().len();
        let earliest = if shorter { inode.borrow().busy_until() } else { Duration::ZERO };
        self.call(earliest, move |world| {
            inode.borrow_mut().truncate(len, world.next_write());
            Ok(())
        })
        .await
    }

    pub(super) async fn rename(self: &Rc<Self>, from: PathBuf, to: PathBuf) -> io::Result<()> {
        self.call(Duration::ZERO, move |world| {
            names::rename(&world.disk.root, &from, &to)?;
            world.note_rename(&to);
            Ok(())
        })
        .await
    }

    fn note_rename(&self, to: &Path) {
        let kind = |path: &Path| path.extension().or(path.file_name()).map(OsStr::to_owned);
        let (Some(of), Ok((dir, _))) = (kind(to), names::parent(&self.disk.root, to)) else { return };
        let at_risk = dir.borrow().nodes().any(|(name, node)| match node {
            Node::File(inode) => kind(Path::new(name)).is_some_and(|other| other == of) && inode.borrow().is_at_risk(),
            Node::Dir(_) => false,
        });
        *self.disk.renames.borrow_mut().entry(of).or_default() += 1;
        self.disk.renames_too_early.update(|count| count + u64::from(at_risk));
    }

    /// How many files were given a name with this suffix, or this name, in place of another.
    pub(super) fn renames(&self, kind: &OsStr) -> u64 {
        self.disk.renames.borrow().get(kind).copied().unwrap_or_default()
    }

    /// When the last of the writes under way will end that are more than zeros.
    pub(super) fn writes_end(&self) -> Duration {
        self.disk.writes_end.get()
    }

    pub(super) async fn remove_file(self: &Rc<Self>, path: PathBuf) -> io::Result<()> {
        self.call(Duration::ZERO, move |world| names::remove_file(&world.disk.root, &path)).await
    }

    pub(super) async fn remove_dir(self: &Rc<Self>, path: PathBuf) -> io::Result<()> {
        self.call(Duration::ZERO, move |world| names::remove_dir(&world.disk.root, &path)).await
    }

    pub(super) async fn create_dir_all(self: &Rc<Self>, path: &Path) -> io::Result<()> {
        let mut ancestors: Vec<&Path> = path.ancestors().filter(|path| path.file_name().is_some()).collect();
        ancestors.reverse();
        for step in ancestors {
            let made = step.to_owned();
            if self.call(Duration::ZERO, move |world| world.create_dir_now(&made)).await? {
                self.sync_dir(step.parent().unwrap_or(Path::new("/"))).await?;
            }
        }
        Ok(())
    }

    fn create_dir_now(&self, path: &Path) -> io::Result<bool> {
        let (dir, name) = names::parent(&self.disk.root, path)?;
        match names::look_up(&dir, name) {
            Some(Node::Dir(_)) => Ok(false),
            Some(Node::File(_)) => Err(os_error(libc::EEXIST)),
            None if self.is_full(names::BLOCK) => Err(os_error(libc::ENOSPC)),
            None => {
                names::link(&dir, name, Node::Dir(Rc::default()));
                Ok(true)
            }
        }
    }

    pub(super) async fn list_dir(self: &Rc<Self>, path: PathBuf) -> io::Result<Vec<DirEntry>> {
        self.call(Duration::ZERO, move |world| {
            let dir = names::directory(&world.disk.root, &path)?;
            let entry =
                |(name, node): (&_, &Node)| DirEntry { path: path.join(name), is_dir: matches!(node, Node::Dir(_)) };
            let entries = dir.borrow().nodes().map(entry).collect();
            Ok(entries)
        })
        .await
    }

    pub(super) async fn sync_dir(self: &Rc<Self>, path: &Path) -> io::Result<()> {
        let dir = names::directory(&self.disk.root, path)?;
        let point = dir.borrow().begin_sync();
        self.operation(SYNC_NANOS, move |world| {
            if world.fault(FaultKind::SyncError, Stream::Disk) {
                return Err(os_error(libc::EIO));
            }
            dir.borrow_mut().end_sync(point);
            Ok(())
        })
        .await
    }

    /// The power is lost: what was under way never happens, and of what was not synced the drive keeps what it likes.
    pub(super) fn lose_power(&self) {
        self.disk.reign.set(self.disk.reign.get() + 1);
        self.disk.calls_end.set(Duration::ZERO);
        let root = Rc::clone(&self.disk.root);
        self.random(Stream::Disk, |random| self.lose_in(&root, random));
    }

    fn lose_in(&self, dir: &Rc<RefCell<Dir>>, random: &mut SimRandom) {
        let rates = self.rates.borrow().clone();
        let rate = |kind| rates.get(kind);
        for _ in 0..dir.borrow_mut().lose_power(rate(FaultKind::LostName), random) {
            self.count(FaultKind::LostName);
        }
        let nodes: Vec<Node> = dir.borrow().nodes().map(|(_, node)| node.clone()).collect();
        for node in nodes {
            match node {
                Node::Dir(inner) => self.lose_in(&inner, random),
                Node::File(inode) => {
                    let rates = (rate(FaultKind::LostUnsynced), rate(FaultKind::TornSector), rate(FaultKind::LostSize));
                    let losses = inode.borrow_mut().lose_power(rates, random);
                    (0..losses.lost).for_each(|_| self.count(FaultKind::LostUnsynced));
                    (0..losses.torn).for_each(|_| self.count(FaultKind::TornSector));
                    if losses.size {
                        self.count(FaultKind::LostSize);
                    }
                }
            }
        }
    }

    /// Every file there is, with its length.
    pub(super) fn files(&self) -> Vec<(PathBuf, u64)> {
        fn walk(dir: &Rc<RefCell<Dir>>, path: &Path, into: &mut Vec<(PathBuf, u64)>) {
            for (name, node) in dir.borrow().nodes() {
                match node {
                    Node::Dir(inner) => walk(inner, &path.join(name), into),
                    Node::File(inode) => into.push((path.join(name), inode.borrow().len())),
                }
            }
        }
        let mut files = Vec::new();
        walk(&self.disk.root, Path::new("/"), &mut files);
        files
    }

    /// Turns over one bit of the file at `path`, of the byte at `position` or of any, durably. `false` if it has none.
    pub(super) fn flip_bit(&self, path: &Path, position: Option<u64>) -> bool {
        let Some(inode) = self.file_at(path) else { return false };
        let flipped = self.random(Stream::Disk, |random| inode.borrow_mut().flip_bit(position, random));
        if flipped {
            self.count(FaultKind::BitFlip);
        }
        flipped
    }

    pub(super) fn misdirect(&self, path: &Path, (from, to): (u64, u64), sectors: u64) -> bool {
        let hit = self.file_at(path).is_some_and(|inode| inode.borrow_mut().misdirect(from, to, sectors));
        if hit {
            self.count(FaultKind::MisdirectedWrite);
        }
        hit
    }

    /// From now on reads of these bytes of the file at `path` fail.
    pub(super) fn refuse_reads(&self, path: &Path, bytes: Range<u64>) {
        if let Some(inode) = self.file_at(path) {
            inode.borrow_mut().unreadable.push(bytes);
        }
    }

    /// All bytes can be read again.
    pub(super) fn allow_reads(&self) {
        let files = self.files().into_iter().filter_map(|(path, _)| self.file_at(&path));
        files.for_each(|inode| inode.borrow_mut().unreadable.clear());
    }

    fn file_at(&self, path: &Path) -> Option<Rc<RefCell<Inode>>> {
        let (dir, name) = names::parent(&self.disk.root, path).ok()?;
        match names::look_up(&dir, name)? {
            Node::File(inode) => Some(inode),
            Node::Dir(_) => None,
        }
    }

    /// Changes bytes of the file at `path`.
    pub(super) fn put_bytes(&self, path: &Path, position: u64, bytes: &[u8]) {
        if let Some(inode) = self.file_at(path) {
            inode.borrow_mut().put_bytes(position, bytes);
        }
    }

    /// What stands in the file at `path`.
    pub(super) fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.file_at(path)?;
        let content = inode.borrow().read(0, inode.borrow().len() as usize);
        Some(content)
    }

    /// The files in which something is wrong.
    pub(super) fn wounds(&self) -> Vec<Wound> {
        let wound = |(path, _): (PathBuf, u64)| {
            let right = self.file_at(&path)?.borrow().right_content()?;
            Some(Wound { found: self.content(&path)?, right, path })
        };
        self.files().into_iter().filter_map(wound).collect()
    }

    /// Removes everything in the directory at `path`, durably.
    pub(super) fn empty(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = names::parent(&self.disk.root, path)?;
        names::link(&parent, name, Node::Dir(Rc::default()));
        let point = parent.borrow().begin_sync();
        parent.borrow_mut().end_sync(point);
        Ok(())
    }

    /// Puts a durable file at `path`, with the directories it needs.
    pub(super) fn install(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut ancestors: Vec<&Path> = path.ancestors().skip(1).filter(|dir| dir.file_name().is_some()).collect();
        ancestors.reverse();
        for dir in ancestors {
            self.create_dir_now(dir)?;
        }
        let inode = Rc::new(RefCell::new(Inode::with_content(content)));
        let (dir, name) = names::parent(&self.disk.root, path)?;
        names::link(&dir, name, Node::File(inode));
        for dir in path.ancestors().skip(1) {
            let dir = names::directory(&self.disk.root, dir)?;
            let point = dir.borrow().begin_sync();
            dir.borrow_mut().end_sync(point);
        }
        Ok(())
    }
}

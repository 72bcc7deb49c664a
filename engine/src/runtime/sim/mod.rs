//! The simulated world: all cores of a server in one thread, with a seeded scheduler, virtual time, and a disk that
//! forgets, tears and fails as real ones do. The same seed gives the same run, step by step, which [`Sim::trace_hash`]
//! proves.
//!
//! Which ready task runs next, how long the disk takes, what a loss of power leaves and what goes wrong when are drawn
//! from separate streams of the seed, so that a change to one does not shuffle all others.

mod disk;
mod drives;
mod executor;
pub mod faults;
mod inode;
mod mapping;
mod names;
mod random;
mod ring;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;

pub use disk::Wound;
use drives::Drive;
pub use drives::DriveImage;
use executor::{Place, Stream, World};
use faults::{Failure, FaultCounts, FaultKind, FaultRates};
use inode::Inode;
use mapping::Claim;
pub use mapping::SimMapping;
pub use random::SimRandom;
pub use ring::{SimReceiver, SimSender};

use super::{Buffer, DirEntry, File, MapError, Mesh, OpenMode, Runtime};
use crate::limits::DEVICE_BLOCK_BYTES_MAX;

/// What the wall clock says when a world begins: some time in 2023.
const EPOCH_MILLIS: i64 = 1_700_000_000_000;

/// What a core counts as its work each time that it runs a task.
const POLL: Duration = Duration::from_micros(5);

/// How a world is made.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// How often things go wrong.
    pub rates: FaultRates,
    /// The logical block of the drive in bytes: 512, 1024, 2048 or 4096.
    pub alignment: u64,
}

impl Default for SimConfig {
    fn default() -> Self {
        SimConfig { rates: FaultRates::none(), alignment: 512 }
    }
}

/// A world, seen from outside. It ends, with every process in it, when this is dropped.
pub struct Sim {
    world: Rc<World>,
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.world.end();
    }
}

/// A server process in the world: dies as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId(u64);

/// Why a run did not get to where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// No task is ready and nothing will ever wake one.
    #[error("every task waits for ever, after {steps} steps")]
    Deadlock {
        /// Steps of the world so far.
        steps: u64,
    },
    /// The bound was reached.
    #[error("not done after {steps} steps")]
    TooManySteps {
        /// Steps of the world so far.
        steps: u64,
    },
}

impl Sim {
    /// The world of `seed`.
    pub fn new(seed: u64, config: &SimConfig) -> Self {
        Sim { world: World::new(seed, config.rates.clone(), config.alignment) }
    }

    /// Starts a process with `cores` cores; nothing runs on them yet.
    pub fn process(&self, cores: usize) -> (ProcessId, Vec<SimRuntime>) {
        let process = ProcessId(self.world.next_id());
        let runtime = |core| SimRuntime { world: Rc::clone(&self.world), place: Place { process: process.0, core } };
        (process, (0..cores).map(runtime).collect())
    }

    /// A ring from each of `cores` cores to every other, each with room for `capacity` items.
    pub fn mesh<T: Send + 'static>(&self, cores: usize, capacity: usize) -> Vec<Mesh<SimRuntime, T>> {
        let empty =
            || Mesh { senders: (0..cores).map(|_| None).collect(), receivers: (0..cores).map(|_| None).collect() };
        let mut seats: Vec<Mesh<SimRuntime, T>> = (0..cores).map(|_| empty()).collect();
        for from in 0..cores {
            for to in (0..cores).filter(|to| *to != from) {
                let (sender, receiver) = ring::ring(&self.world, capacity);
                seats[from].senders[to] = Some(sender);
                seats[to].receivers[from] = Some(receiver);
            }
        }
        seats
    }

    /// Runs until `done`, looking before each step, for at most `steps_max` steps.
    pub fn run_until(&self, mut done: impl FnMut() -> bool, steps_max: u64) -> Result<(), Stuck> {
        for _ in 0..steps_max {
            if done() {
                return Ok(());
            }
            if !self.world.step() {
                return if done() { Ok(()) } else { Err(Stuck::Deadlock { steps: self.steps() }) };
            }
        }
        Err(Stuck::TooManySteps { steps: self.steps() })
    }

    /// Runs `task` on a core of `runtime`'s process until it is done.
    pub fn block_on<T: 'static>(
        &self,
        runtime: &SimRuntime,
        task: impl Future<Output = T> + 'static,
        steps_max: u64,
    ) -> Result<T, Stuck> {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        runtime.spawn(async move {
            let value = task.await;
            *slot.borrow_mut() = Some(value);
        });
        self.run_until(|| result.borrow().is_some(), steps_max)?;
        let value = result.borrow_mut().take();
        value.ok_or(Stuck::Deadlock { steps: self.steps() })
    }

    /// Lets `duration` of virtual time pass, or `steps_max` steps.
    pub fn run_for(&self, duration: Duration, steps_max: u64) -> Result<(), Stuck> {
        let until = self.now() + duration;
        let passed = Rc::new(Cell::new(false));
        let flag = Rc::clone(&passed);
        self.world.at(until, move || flag.set(true));
        self.run_until(|| passed.get(), steps_max)
    }

    /// Sees to it that something happens until `until`, so that waiting for that is no deadlock.
    pub fn keep_going_until(&self, until: Duration) {
        self.world.at(until, || {});
    }

    /// Lets the time pass until the system calls of dead processes are over: until then they hold the lock of their
    /// data directory, and nobody else starts. Writes and syncs that they handed over may go on after that.
    pub fn wait_for_calls(&self) {
        while self.now() < self.world.calls_end() && self.world.step() {}
    }

    /// Whether the drive is full now.
    pub fn drive_is_full(&self) -> bool {
        self.world.is_still_full()
    }

    /// Kills a process where it stands, as SIGKILL does. What it handed to the drive goes on and stays.
    pub fn kill(&self, process: ProcessId) {
        self.world.count(FaultKind::Kill);
        self.world.drop_process(process.0);
    }

    /// Cuts the power: the process ends, and of what was not synced the drive keeps what the faults' rates let it.
    pub fn lose_power(&self, process: ProcessId) {
        self.world.count(FaultKind::PowerLoss);
        self.world.drop_process(process.0);
        self.world.lose_power();
    }

    /// From now on things go wrong as often as `rates` says. Ends a shortage of room.
    pub fn set_rates(&self, rates: FaultRates) {
        *self.world.rates.borrow_mut() = rates;
        self.world.free_space();
    }

    /// From now on faults of `kind` happen so often, in ten thousand chances.
    pub fn set_rate(&self, kind: FaultKind, per_10k: u32) {
        let rates = self.world.rates.borrow().clone();
        *self.world.rates.borrow_mut() = rates.with(kind, per_10k);
    }

    /// Lets the `nth` operation on the drive from now on fail, counted from 1, and every one after it if `sticky`.
    pub fn fail_nth(&self, nth: u64, failure: Failure, sticky: bool) {
        self.world.choose(Some((nth, failure, sticky)));
    }

    /// Lets no more operations fail by their number. Returns how many there were, and whether the chosen one failed.
    pub fn fail_none(&self) -> (u64, bool) {
        let operations = self.world.operations();
        self.world.choose(None);
        operations
    }

    /// Whether the chosen operation failed.
    pub fn has_failed(&self) -> bool {
        self.world.operations().1
    }

    /// A fault that whoever drives the world brought about.
    pub fn count(&self, kind: FaultKind) {
        self.world.count(kind);
    }

    /// The drive is full for `duration` from now on.
    pub fn fill_drive(&self, duration: Duration) {
        self.world.count(FaultKind::NoSpace);
        self.world.fill(duration);
    }

    /// From now on the drive holds so many bytes; what is on it stays, also if that is more. Endless by default.
    pub fn set_disk_bytes(&self, bytes: u64) {
        self.world.set_disk_bytes(bytes);
    }

    /// How many mappings of files there ever were.
    pub fn mappings(&self) -> u64 {
        self.world.disk.mappings.get()
    }

    /// From now on the system gives no process a mapping, or does again.
    pub fn refuse_mappings(&self, refuse: bool) {
        self.world.disk.refuses_mappings.set(refuse);
    }

    /// Turns over one bit of a file, durably. `false` if there is no such file or it is empty.
    pub fn flip_bit(&self, path: &Path) -> bool {
        self.world.flip_bit(path, None)
    }

    /// Turns over one bit of the byte at `position` of a file, durably. `false` if there is no such byte.
    pub fn flip_bit_at(&self, path: &Path, position: u64) -> bool {
        self.world.flip_bit(path, Some(position))
    }

    /// A write of so many sectors that belongs to `from` went to `to` before: both have it now. Gives whether the file
    /// has these places.
    pub fn misdirect(&self, path: &Path, (from, to): (u64, u64), sectors: u64) -> bool {
        self.world.misdirect(path, (from, to), sectors)
    }

    /// From now on reads of these bytes of the file at `path` fail, until they are written anew.
    pub fn refuse_reads(&self, path: &Path, bytes: Range<u64>) {
        self.world.refuse_reads(path, bytes);
    }

    /// All bytes of all files can be read again.
    pub fn allow_reads(&self) {
        self.world.allow_reads();
    }

    /// Puts a durable file with this content where `path` says, with the directories it needs.
    pub fn install(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.world.install(path, content)
    }

    /// Changes bytes of a file, if it is there and has them, until the next loss of power.
    pub fn put_bytes(&self, path: &Path, position: u64, bytes: &[u8]) {
        self.world.put_bytes(path, position, bytes);
    }

    /// What stands in a file now. `None` if there is none.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        self.world.content(path)
    }

    /// The files in which flipped bits and misdirected writes left something wrong that nothing has replaced yet.
    pub fn wounds(&self) -> Vec<Wound> {
        self.world.wounds()
    }

    /// The files on the disk, as one would see them now, with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.world.files()
    }

    /// How many files were renamed so far to names with this suffix, or to this name if it has none.
    pub fn renames(&self, kind: &str) -> u64 {
        self.world.renames(kind.as_ref())
    }

    /// How many of all were so while a file with such a name in the directory, perhaps the renamed one, was not synced.
    pub fn renames_too_early(&self) -> u64 {
        self.world.disk.renames_too_early.get()
    }

    /// When the last of the writes under way that are more than zeros will end, or ended.
    pub fn writes_end(&self) -> Duration {
        self.world.writes_end()
    }

    /// The virtual time.
    pub fn now(&self) -> Duration {
        self.world.now()
    }

    /// How many times a task was polled.
    pub fn steps(&self) -> u64 {
        self.world.steps()
    }

    /// A hash of every step and of everything the disk did: equal for equal seeds.
    pub fn trace_hash(&self) -> u64 {
        self.world.trace_hash()
    }

    /// How often each kind of fault had an effect.
    pub fn counts(&self) -> FaultCounts {
        self.world.counts.borrow().clone()
    }
}

/// One core of a simulated process. See [`Runtime`].
#[derive(Clone)]
pub struct SimRuntime {
    world: Rc<World>,
    place: Place,
}

impl SimRuntime {
    /// Like [`Sim::count`], for who lives in the world.
    pub fn count(&self, kind: FaultKind) {
        self.world.count(kind);
    }
}

impl Runtime for SimRuntime {
    type File = SimFile;
    type Buffer = SimBuffer;
    type Sender<T: Send + 'static> = SimSender<T>;
    type Receiver<T: Send + 'static> = SimReceiver<T>;

    fn monotonic(&self) -> Duration {
        self.world.now()
    }

    fn take_busy(&self) -> Duration {
        self.world.take_polls(self.place) * POLL
    }

    fn loses_what_copies_say(&self) -> bool {
        self.world.fault(FaultKind::MessageLost, Stream::Ring)
    }

    fn unix_millis(&self) -> i64 {
        EPOCH_MILLIS + self.world.now().as_millis() as i64 + self.world.clock_shift_ms()
    }

    fn random_u64(&self) -> u64 {
        self.world.random(Stream::Runtime, SimRandom::next_u64)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.world.spawn(self.place, task);
    }

    fn spawn_background(&self, task: impl Future<Output = ()> + 'static) {
        // The seed chooses who runs, and so also that the one class waits for the other.
        self.spawn(task);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.world.sleep(duration)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let mut yielded = false;
        std::future::poll_fn(move |context| {
            if std::mem::replace(&mut yielded, true) {
                return std::task::Poll::Ready(());
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
    }

    fn allocate(&self, len: usize) -> SimBuffer {
        SimBuffer::filled_with(0, len)
    }

    fn allocate_unfilled(&self, len: usize) -> SimBuffer {
        // Padding is zeros, and no batch begins so: whoever lets this out is found out.
        SimBuffer::filled_with(0xa5, len)
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        let drive = self.world.drives.of(path);
        begin(&self.world, &drive, mode != OpenMode::Existing).await?;
        let inode = self.world.open(path, mode).await?;
        Ok(SimFile { world: Rc::clone(&self.world), drive, inode, claim: RefCell::new(None) })
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        begin(&self.world, &self.world.drives.of(from), true).await?;
        self.world.rename(from.to_owned(), to.to_owned()).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        begin(&self.world, &self.world.drives.of(path), false).await?;
        self.world.remove_file(path.to_owned()).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        begin(&self.world, &self.world.drives.of(path), false).await?;
        self.world.remove_dir(path.to_owned()).await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        begin(&self.world, &self.world.drives.of(path), true).await?;
        self.world.create_dir_all(path).await
    }

    async fn list_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        begin(&self.world, &self.world.drives.of(path), false).await?;
        self.world.list_dir(path.to_owned()).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        begin(&self.world, &self.world.drives.of(path), false).await?;
        self.world.sync_dir(path).await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.world.reach(&self.world.drives.of(path)).await?;
        self.world.free_bytes_of(path.to_owned()).await
    }
}

/// An open file of the simulated disk. See [`File`].
pub struct SimFile {
    world: Rc<World>,
    drive: Rc<Drive>,
    inode: Rc<RefCell<Inode>>,
    claim: RefCell<Option<Claim>>,
}

impl File for SimFile {
    type Buffer = SimBuffer;
    type Mapped = SimMapping;

    fn alignment(&self) -> u64 {
        self.world.disk.alignment
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<Bytes> {
        begin(&self.world, &self.drive, false).await?;
        self.world.read(&self.inode, position, len).await.map(Bytes::from)
    }

    async fn map(&self, position: u64, len: usize) -> Result<SimMapping, MapError> {
        begin(&self.world, &self.drive, false).await.map_err(MapError::Unreadable)?;
        self.world.map(&self.inode, position, len).await
    }

    async fn claim(&self) -> io::Result<bool> {
        if self.claim.borrow().is_none() {
            *self.claim.borrow_mut() = self.world.claim(&self.inode);
        }
        Ok(self.claim.borrow().is_some())
    }

    async fn write_at(&self, position: u64, buffer: Rc<SimBuffer>) -> io::Result<()> {
        begin(&self.world, &self.drive, true).await?;
        self.world.write(&self.inode, position, buffer.bytes()).await.map(drop)
    }

    async fn write_durable_at(&self, position: u64, buffer: Rc<SimBuffer>) -> io::Result<()> {
        begin(&self.world, &self.drive, true).await?;
        self.world.write_durable(&self.inode, position, buffer.bytes()).await
    }

    async fn fdatasync(&self) -> io::Result<()> {
        begin(&self.world, &self.drive, false).await?;
        self.world.sync(&self.inode).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        begin(&self.world, &self.drive, true).await?;
        self.world.allocate(&self.inode, len).await
    }

    async fn size(&self) -> io::Result<u64> {
        Ok(self.inode.borrow().len())
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        begin(&self.world, &self.drive, true).await?;
        self.world.truncate(&self.inode, len).await
    }
}

/// An operation on the drive begins, and may be the one that is chosen to fail.
async fn begin(world: &Rc<World>, drive: &Drive, takes_room: bool) -> io::Result<()> {
    world.reach(drive).await?;
    match world.begins(takes_room) {
        None => Ok(()),
        Some(Failure::Error) => Err(names::os_error(libc::EIO)),
        Some(Failure::NoSpace) => Err(names::os_error(libc::ENOSPC)),
        Some(Failure::Crash) => std::future::pending().await,
    }
}

/// Memory of the simulated world, aligned like real memory for direct I/O. See [`Buffer`].
pub struct SimBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl SimBuffer {
    fn filled_with(byte: u8, len: usize) -> Self {
        let align = DEVICE_BLOCK_BYTES_MAX as usize;
        assert!(len > 0 && len.is_multiple_of(align), "{len} bytes is no multiple of {align}");
        let memory = vec![byte; len + align];
        let start = memory.as_ptr().align_offset(align);
        assert!(start < align, "memory that cannot be aligned");
        SimBuffer { memory, start, len }
    }
}

impl Buffer for SimBuffer {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    fn trim(&mut self, len: usize) {
        assert!(len <= self.len, "a buffer of {} bytes cannot grow to {len}", self.len);
        self.len = len;
    }
}

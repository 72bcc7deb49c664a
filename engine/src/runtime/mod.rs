//! The only door to the world: disk, clock, tasks, chance and the rings between cores.
//!
//! Everything in this crate that waits or touches a file does it through [`Runtime`], a static generic. [`glommio`] is
//! the real one: one pinned io_uring executor per core. [`sim`] is a seeded simulation of all cores in one thread, with
//! virtual time and a disk that forgets, tears and lies as real ones do. One contract suite
//! (`tests/runtime_contract/`) runs against both, so that what the simulation proves holds for the real thing. If
//! glommio ever has to go, one file is rewritten.

use std::{future::Future, io, path::Path, path::PathBuf, rc::Rc, time::Duration};

use bytes::Bytes;
use send_wrapper::SendWrapper;

mod directory;
pub mod glommio;
pub mod sim;
pub mod slice;
pub mod start;
mod vigil;

/// How the names of files begin that a drive is tried with; the rest is the core. What a crash leaves of one is
/// overwritten and removed when that core starts.
pub const PROBE: &str = ".probe-";

/// One core's view of the world. Cheap to clone; never leaves its core.
pub trait Runtime: Clone + 'static {
    /// An open file.
    type File: File<Buffer = Self::Buffer>;
    /// Memory that may be written to a file.
    type Buffer: Buffer;
    /// The sending end of a ring to another core.
    type Sender<T: Send + 'static>: RingSender<T>;
    /// The receiving end of a ring from another core.
    type Receiver<T: Send + 'static>: RingReceiver<T>;

    /// Time since some moment in the past; never goes back.
    fn monotonic(&self) -> Duration;

    /// The wall clock, in milliseconds since 1970. May jump both ways.
    fn unix_millis(&self) -> i64;

    /// A random number; from the operating system, or from the seed of the simulation.
    fn random_u64(&self) -> u64;

    /// For how long this core ran tasks since this was asked last; time in which it only looked for work does not
    /// count.
    fn take_busy(&self) -> Duration;

    /// Runs `task` on this core, beside its caller. It ends with the core; a panic in it stops the process.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// [`Runtime::spawn`] for work that must not be felt by those who are served: it gets a small part of the core
    /// while others want it, and all of it while nobody does. Whoever waits for such a task waits with it; a task that
    /// it spawns is of the class that it asks for.
    fn spawn_background(&self, task: impl Future<Output = ()> + 'static);

    /// Waits for `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;

    /// Whether what a copy of a partition is about to say to another is lost on its way. Between cores of one host
    /// nothing is; the simulation has it happen, since copies must bear it: their link may be a network once.
    fn loses_what_copies_say(&self) -> bool {
        false
    }

    /// Lets other tasks of this core run.
    fn yield_now(&self) -> impl Future<Output = ()> + 'static;

    /// Zeroed memory of `len` bytes, aligned for any device. `len` is a multiple of [`limits::DEVICE_BLOCK_BYTES_MAX`].
    ///
    /// [`limits::DEVICE_BLOCK_BYTES_MAX`]: crate::limits::DEVICE_BLOCK_BYTES_MAX
    fn allocate(&self, len: usize) -> Self::Buffer;

    /// [`Runtime::allocate`], but what the memory holds is whatever was there: whoever asks for it fills all that a
    /// device or a reader will see. Saves writing it twice.
    fn allocate_unfilled(&self, len: usize) -> Self::Buffer;

    /// Opens a file for direct reading and writing. See [`OpenMode`].
    fn open(&self, path: &Path, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>>;

    /// Gives a file another name, replacing what had it, or a directory a name that nothing has. Durable only after
    /// [`Runtime::sync_dir`] of the directory, of both if it goes from one to another.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file. Durable only after [`Runtime::sync_dir`].
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Creates a directory and its missing parents, and syncs the parent of each directory it created.
    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// The names in a directory, sorted. `NotFound` if it does not exist.
    fn list_dir(&self, path: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// How many bytes the file system of `path` still takes from us.
    fn free_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>>;
}

/// How [`Runtime::open`] treats a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist; read and write.
    Existing,
    /// The file must not exist: `AlreadyExists` otherwise.
    CreateNew,
    /// Created if missing, emptied if not.
    CreateTruncate,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The path, starting with the directory's own.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// An open file, read and written with O_DIRECT. Dropping it closes it.
///
/// Positions and lengths are multiples of [`File::alignment`], except that a read may run past the end of the file, and
/// that mappings have none.
pub trait File: 'static {
    /// See [`Runtime::Buffer`].
    type Buffer: Buffer;
    /// Bytes of a file in memory, by [`File::map`].
    type Mapped: AsRef<[u8]> + 'static;

    /// What positions and lengths must be multiples of: the device's logical block, a power of two from 512 to 4096.
    fn alignment(&self) -> u64;

    /// Reads `len` bytes at `position`; fewer at the end of the file, none beyond it.
    fn read_at(&self, position: u64, len: usize) -> impl Future<Output = io::Result<Bytes>>;

    /// Maps `len` bytes at `position` into memory, of any alignment; fewer at the end of the file, none beyond it. They
    /// are there, and stay there, when this returns: reading them waits for no drive and cannot fail, whatever happens
    /// to the drive. The mapping outlives the file's closing.
    ///
    /// The bytes must not be written and the file not be cut while any mapping of it lives: a page that is taken away
    /// under a reader ends the process. Whoever is about to [`File::claim`]s the file first.
    fn map(&self, position: u64, len: usize) -> impl Future<Output = Result<Self::Mapped, MapError>>;

    /// Whether the file is mapped by nobody, in any way. If so it is not mapped again before this opening of it is
    /// closed: [`File::map`] gives an error.
    fn claim(&self) -> impl Future<Output = io::Result<bool>>;

    /// Writes all of `buffer` at `position`, or gives an error. Written is not durable. To write only the first part of
    /// a buffer, [`Buffer::trim`] it before it is shared.
    fn write_at(&self, position: u64, buffer: Rc<Self::Buffer>) -> impl Future<Output = io::Result<()>>;

    /// [`File::write_at`], and what it wrote is durable when this returns, with the length that takes. Says nothing of
    /// any other write. One trip to the device's queue instead of two (O_DSYNC), for a commit of one write. An error
    /// means that the bytes are written or not, durable or not: never retry.
    fn write_durable_at(&self, position: u64, buffer: Rc<Self::Buffer>) -> impl Future<Output = io::Result<()>>;

    /// Makes every completed write, and the length, durable. An error means that what was written since the last
    /// success may be lost, and that a second attempt may wrongly succeed: never retry.
    fn fdatasync(&self) -> impl Future<Output = io::Result<()>>;

    /// Takes room for the first `len` bytes, and makes the file so long if it is shorter: what was not written reads as
    /// zeros. What was written stays as it is. Waits for writes under way, and keeps others waiting meanwhile.
    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>>;

    /// The length in bytes.
    fn size(&self) -> impl Future<Output = io::Result<u64>>;

    /// Cuts off or extends (with zeros) to `len` bytes, of any alignment. Cutting off waits for every write under
    /// way to the file, also those that a killed process left behind.
    fn truncate(&self, len: u64) -> impl Future<Output = io::Result<()>>;
}

/// Why bytes of a file were not mapped. They may be read all the same.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The drive did not give them, or the file is claimed.
    #[error("the bytes cannot be mapped: {0}")]
    Unreadable(io::Error),
    /// The system does not let this process have them, and will not let it have others: no room under a limit, or it
    /// cannot do it at all.
    #[error("the system refuses a mapping: {0}")]
    Refused(io::Error),
}

/// Memory that a device can read. Its length never grows.
pub trait Buffer: 'static {
    /// The bytes.
    fn bytes(&self) -> &[u8];
    /// The bytes, to be filled.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Shortens the buffer to its first `len` bytes, at most its length, for good.
    fn trim(&mut self, len: usize);
}

/// The sending end of a bounded single-producer, single-consumer ring.
pub trait RingSender<T>: 'static {
    /// Sends if there is room, else gives the item back.
    fn try_send(&self, item: T) -> Result<(), T>;
    /// Waits for room. The item comes back if the receiver is gone.
    fn send(&self, item: T) -> impl Future<Output = Result<(), T>>;
}

/// The receiving end of a ring.
pub trait RingReceiver<T>: 'static {
    /// The next item; `None` when the sender is gone and the ring is empty.
    fn recv(&self) -> impl Future<Output = Option<T>>;
}

/// One core's ends of the rings to and from every other core. The places for the core itself are `None`.
pub struct Mesh<R: Runtime, T: Send + 'static> {
    /// By the core sent to.
    pub senders: Vec<Option<R::Sender<T>>>,
    /// By the core received from.
    pub receivers: Vec<Option<R::Receiver<T>>>,
}

/// Shares a filled buffer as [`Bytes`] without copying it.
///
/// The result may be cloned and sliced freely but must stay on this core: the last owner frees a buffer that belongs to
/// the core's ring, and `SendWrapper` stops the process if that happens elsewhere. What crosses cores is copied (see
/// `shard/mailbox.rs`).
pub fn share<B: Buffer>(buffer: &Rc<B>) -> Bytes {
    struct Shared<B: Buffer>(SendWrapper<Rc<B>>);
    impl<B: Buffer> AsRef<[u8]> for Shared<B> {
        fn as_ref(&self) -> &[u8] {
            self.0.bytes()
        }
    }
    Bytes::from_owner(Shared(SendWrapper::new(Rc::clone(buffer))))
}

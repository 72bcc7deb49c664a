//! The real world: one pinned glommio executor per core, each with its own io_uring rings.
//!
//! Beside `vigil` the only file of the engine that names glommio. It works around what is known of glommio 0.9, each
//! where it happens: the poll probe that misfires on fresh files, `connect` that sleeps through its wake-up, `statx`
//! that goes by the file's first name, `send` that waits for ever when the receiver went away, blocking closures whose
//! panic hangs the caller.

use std::{
    cell::{Cell, OnceCell},
    io,
    marker::PhantomData,
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{OnceLock, mpsc},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use glommio::{
    GlommioError, LocalExecutorBuilder, Placement, ResourceType, TaskQueueHandle,
    channels::shared_channel::{ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender, new_bounded},
    io::{DmaBuffer, DmaFile, OpenOptions, ReadResult},
};
use send_wrapper::SendWrapper;

use super::{
    Buffer, DirEntry, File, Mesh, OpenMode, RingReceiver, RingSender, Runtime, directory,
    slice::ask_for_long_slices,
    start::{Registration, StartError, abort_on_panic, check_io_uring, check_memlock, raise_open_files},
    vigil,
};
use crate::types::CoreId;

/// How long a sender whose ring is full waits before it looks again. A ring of a thousand drains in about this time.
const FULL_RING_PAUSE: Duration = Duration::from_micros(100);

/// The preempt timer until the vigil is kept. An executor whose timer is up before its first task runs never runs it;
/// this one outlasts any pause of a thread.
const PREEMPT_TIMER_AT_START: Duration = Duration::from_secs(10);

/// The classes of tasks; places in [`QUEUES`].
const SERVING: usize = 0;
const BACKGROUND: usize = 1;

/// What the classes get of a core that both of them want: nine parts in ten are for those who are served. A catch-up
/// reader still checks some hundred MB/s with the rest.
const SERVING_SHARES: usize = 900;
const BACKGROUND_SHARES: usize = 100;

thread_local! {
    /// The task queues of this thread's executor, by class.
    static QUEUES: Cell<Option<[TaskQueueHandle; vigil::CLASSES]>> = const { Cell::new(None) };
}

/// How often an executor wakes while its rings are being connected.
const CONNECT_TICK: Duration = Duration::from_millis(1);

/// A handle on the glommio executor it was made on. See [`Runtime`].
#[derive(Clone)]
pub struct GlommioRuntime {
    stays_on_its_core: PhantomData<Rc<()>>,
}

/// How [`launch`] makes executors.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// How long a task may run before it is asked to yield. glommio's own default of 100 ms starves receiving while
    /// sending.
    pub preempt_timer: Duration,
    /// How often an idle core wakes: how late a wake-up from a thread that is no executor may come, should it be one of
    /// the few that can be slept through (see `vigil`). Each costs some 20 µs.
    pub heartbeat: Duration,
    /// How long an idle core polls before it sleeps: saves some 50 µs per wake-up for a whole core's time. 0 by
    /// default.
    pub spin_before_park: Duration,
    /// Entries of each io_uring submission queue.
    pub ring_depth: usize,
    /// Bytes of memory per core that is registered for I/O. More I/O than that works, unregistered.
    pub io_memory_bytes: usize,
    /// Directories whose drives are primed and tested on every core before its work begins.
    pub data_dirs: Vec<PathBuf>,
    /// Whether a panic on any thread ends the process, as it must in a server.
    pub abort_on_panic: bool,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        LaunchOptions {
            preempt_timer: Duration::from_millis(1),
            heartbeat: Duration::from_millis(100),
            spin_before_park: Duration::ZERO,
            ring_depth: 256,
            io_memory_bytes: 10 << 20,
            data_dirs: Vec::new(),
            abort_on_panic: true,
        }
    }
}

/// A running core.
pub struct CoreThread<T: Send + 'static> {
    /// The core's number.
    pub core: CoreId,
    /// The CPU it is pinned to.
    pub cpu: usize,
    handle: glommio::ExecutorJoinHandle<Option<T>>,
}

impl<T: Send + 'static> CoreThread<T> {
    /// Waits, blocking the thread, until the core's main future is done. Tasks still running on the core end with it.
    ///
    /// Errors: the panic's message, if the core panicked and `abort_on_panic` was off.
    pub fn join(self) -> Result<T, String> {
        let (core, cpu) = (self.core, self.cpu);
        match self.handle.join() {
            Ok(Some(result)) => Ok(result),
            Ok(None) => Err(format!("core {core} on CPU {cpu} was told to stop before it began")),
            Err(error) => Err(format!("core {core} on CPU {cpu} died: {error}")),
        }
    }
}

/// Starts an executor on each of `cpus`, in core order, and runs `main` on each. Returns when all run and every drive
/// of
/// `options.data_dirs` passed its self-test on every core; on an error no core is left running.
///
/// Errors: any [`StartError`].
pub fn launch<T, F, Fut>(cpus: &[usize], options: &LaunchOptions, main: F) -> Result<Vec<CoreThread<T>>, StartError>
where
    T: Send + 'static,
    F: FnOnce(CoreId, GlommioRuntime) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    check_io_uring()?;
    if let Registration::Unregistered { has_bytes, wants_bytes } = check_memlock(cpus.len(), options.io_memory_bytes)? {
        tracing::warn!(
            "running with unregistered I/O memory: memlock is {has_bytes} bytes, registration wants {wants_bytes} \
             (`ulimit -l {}` or LimitMEMLOCK=); all works, a little slower",
            wants_bytes.div_ceil(1024)
        );
    }
    raise_open_files();
    if options.abort_on_panic {
        abort_on_panic();
    }
    let mut starting = Vec::with_capacity(cpus.len());
    let mut failure = None;
    for (index, &cpu) in cpus.iter().enumerate() {
        match start_core(CoreId(index as u16), cpu, options, main.clone()) {
            Ok(core) => starting.push(core),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let mut ready = Vec::with_capacity(cpus.len());
    for core in starting {
        match core.wait_until_ready() {
            Ok(core) => ready.push(core),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    // All are told to go, or none: a core whose `go` is dropped ends without having run `main`.
    match failure {
        None => Ok(ready.into_iter().map(StartingCore::go).collect()),
        Some(error) => {
            ready.into_iter().for_each(StartingCore::stop);
            Err(error)
        }
    }
}

/// A core whose executor was asked for and whose `main` does not run yet.
struct StartingCore<T: Send + 'static> {
    ready: mpsc::Receiver<Result<(), StartError>>,
    go: async_channel::Sender<()>,
    thread: CoreThread<T>,
}

impl<T: Send + 'static> StartingCore<T> {
    fn wait_until_ready(self) -> Result<Self, StartError> {
        match self.ready.recv() {
            Ok(Ok(())) => Ok(self),
            Ok(Err(error)) => {
                self.stop();
                Err(error)
            }
            // The thread ended before its executor ran anything; its result says why.
            Err(mpsc::RecvError) => {
                let reason = self.thread.handle.join().err().map_or_else(String::new, |error| error.to_string());
                Err(StartError::Cpu { cpu: self.thread.cpu, reason })
            }
        }
    }

    fn go(self) -> CoreThread<T> {
        // Fails only if the thread ended meanwhile; then its result says why.
        let _ = self.go.try_send(());
        self.thread
    }

    fn stop(self) {
        drop(self.go);
        let _ = self.thread.handle.join();
    }
}

fn start_core<T, F, Fut>(
    core: CoreId,
    cpu: usize,
    options: &LaunchOptions,
    main: F,
) -> Result<StartingCore<T>, StartError>
where
    T: Send + 'static,
    F: FnOnce(CoreId, GlommioRuntime) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let (report, ready) = mpsc::channel();
    let (go, told_to_go) = async_channel::bounded(1);
    let data_dirs = options.data_dirs.clone();
    let LaunchOptions { preempt_timer, heartbeat, .. } = *options;
    let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("core{core}"))
        .preempt_timer(PREEMPT_TIMER_AT_START)
        .spin_before_park(options.spin_before_park)
        .ring_depth(options.ring_depth)
        .io_memory(options.io_memory_bytes)
        .spawn(move || async move {
            if let Err(error) = ask_for_long_slices() {
                tracing::info!(%core, %error, "the core runs with the default time slice");
            }
            // The same timer for both: a background task is asked to yield as soon as any other.
            let queue = |(shares, name)| {
                let latency = glommio::Latency::Matters(preempt_timer);
                glommio::executor().create_task_queue(glommio::Shares::Static(shares), latency, name)
            };
            let queues = [(SERVING_SHARES, "core"), (BACKGROUND_SHARES, "background")].map(queue);
            vigil::begin(queues).await;
            QUEUES.set(Some(queues));
            let life = glommio::spawn_local_into(
                async move {
                    let runtime = GlommioRuntime::on_this_executor();
                    runtime.spawn(async move {
                        loop {
                            glommio::timer::sleep(heartbeat).await;
                        }
                    });
                    let whole = async move {
                        let mut primed = Ok(());
                        for dir in &data_dirs {
                            primed = primed.and(runtime.prime(dir, core).await);
                        }
                        // The launcher waits for this; it is never gone.
                        let _ = report.send(primed);
                        match told_to_go.recv().await {
                            Ok(()) => {
                                let result = main(core, runtime).await;
                                helper_is_idle().await;
                                Some(result)
                            }
                            Err(async_channel::RecvError) => None,
                        }
                    };
                    vigil::guarded(SERVING, whole).await
                },
                queues[SERVING],
            );
            life.expect("the queue exists").await // why: made above, on this executor
        })
        .map_err(|error| StartError::Cpu { cpu, reason: error.to_string() })?;
    Ok(StartingCore { ready, go, thread: CoreThread { core, cpu, handle } })
}

impl GlommioRuntime {
    /// The executor this is called on.
    ///
    /// Panics outside of an executor.
    pub fn on_this_executor() -> Self {
        // Asking for the id panics, with glommio's own message, where there is no executor.
        let _ = glommio::executor().id();
        GlommioRuntime { stays_on_its_core: PhantomData }
    }

    /// Makes this core's executor learn the truth about the drive of `dir`, and tests that what is written there with
    /// direct I/O can be read back. Must come before any other file of that drive is opened on this core; [`launch`]
    /// does it.
    ///
    /// glommio decides once per executor and drive whether the drive supports polled I/O, by a read at the start of the
    /// first file opened. On a fresh file that read succeeds without reaching the drive, and from then on reads fail
    /// with EOPNOTSUPP and writes take 5 ms. So that first file is one with synced content.
    ///
    /// On a full drive there is no room for that: then it is primed with a file that is there, and not tested.
    ///
    /// Errors: `DataDir`, `SelfTest`.
    pub async fn prime(&self, dir: &Path, core: CoreId) -> Result<(), StartError> {
        let path = dir.join(format!(".probe-{core}"));
        let failed = |what| move |source| StartError::DataDir { dir: dir.to_owned(), what, source };
        let content: Vec<u8> = (0..2 * PROBE_BYTES as u32).map(|i| (i % 251) as u8).collect();
        match write_probe(&path, &content) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // Gone or never made; what is left of it takes no room worth a failed start.
                let _ = std::fs::remove_file(&path);
                return self.prime_without_room(dir).await.map_err(failed("reading a file of it"));
            }
            Err(error) => return Err(failed("writing a probe file")(error)),
        }
        let tested = self.self_test(&path, &content).await;
        std::fs::remove_file(&path).map_err(failed("removing the probe file"))?;
        tested.map_err(|reason| StartError::SelfTest { dir: dir.to_owned(), reason })
    }

    async fn prime_without_room(&self, dir: &Path) -> io::Result<()> {
        tracing::warn!(dir = %dir.display(), "the drive is full: it is used without the self-test of direct I/O");
        for entry in directory::list(dir)? {
            let content = if entry.is_dir { 0 } else { std::fs::metadata(&entry.path)?.len() };
            if content > 0 {
                let file = self.open(&entry.path, OpenMode::Existing).await?;
                file.read_at(0, PROBE_BYTES).await?;
                return Ok(());
            }
        }
        Ok(())
    }

    async fn self_test(&self, path: &Path, content: &[u8]) -> Result<(), String> {
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let file = self.open(path, OpenMode::Existing).await.map_err(failed("opening with O_DIRECT"))?;
        let alignment = file.alignment();
        if !alignment.is_power_of_two() || alignment > PROBE_BYTES as u64 {
            return Err(format!("its alignment is {alignment} bytes; 512 to {PROBE_BYTES} is supported"));
        }
        let before = file.read_at(0, content.len()).await.map_err(failed("reading"))?;
        if *before != *content {
            return Err("a read returned other bytes than were written".to_owned());
        }
        let mut buffer = self.allocate(PROBE_BYTES);
        buffer.bytes_mut().fill(0xa5);
        let buffer = Rc::new(buffer);
        file.write_at(PROBE_BYTES as u64, Rc::clone(&buffer)).await.map_err(failed("writing"))?;
        file.fdatasync().await.map_err(failed("syncing"))?;
        let after = file.read_at(PROBE_BYTES as u64, PROBE_BYTES).await.map_err(failed("reading back"))?;
        if after != buffer.bytes() { Err("a write did not read back".to_owned()) } else { Ok(()) }
    }
}

/// Bytes of each half of the probe file: the largest alignment we accept.
const PROBE_BYTES: usize = crate::limits::DEVICE_BLOCK_BYTES_MAX as usize;

fn write_probe(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    io::Write::write_all(&mut file, content)?;
    file.sync_all()
}

impl Runtime for GlommioRuntime {
    type File = GlommioFile;
    type Buffer = DmaBuffer;
    type Sender<T: Send + 'static> = GlommioSender<T>;
    type Receiver<T: Send + 'static> = GlommioReceiver<T>;

    fn monotonic(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    fn unix_millis(&self) -> i64 {
        match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
        }
    }

    fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(filled.ok(), Some(8), "getrandom gives 8 bytes at once, since Linux 3.17");
        u64::from_ne_bytes(bytes)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        spawn_into(SERVING, task);
    }

    fn spawn_background(&self, task: impl Future<Output = ()> + 'static) {
        spawn_into(BACKGROUND, task);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        glommio::timer::sleep(duration)
    }

    #[allow(clippy::manual_async_fn)] // An `async fn` would borrow `self`; the trait promises a future that does not.
    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        async { glommio::executor().yield_task_queue_now().await }
    }

    fn allocate(&self, len: usize) -> DmaBuffer {
        assert!(len > 0 && len.is_multiple_of(PROBE_BYTES), "{len} bytes is no multiple of {PROBE_BYTES}");
        let mut buffer = glommio::allocate_dma_buffer(len);
        buffer.as_bytes_mut().fill(0);
        buffer
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<GlommioFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o640);
        match mode {
            OpenMode::Existing => &mut options,
            OpenMode::CreateNew => options.create_new(true),
            OpenMode::CreateTruncate => options.create(true).truncate(true),
        };
        Ok(GlommioFile { file: options.dma_open(path).await.map_err(io_error)?, synchronous: OnceCell::new() })
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking(move || std::fs::rename(from, to)).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || std::fs::remove_file(path)).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || std::fs::remove_dir(path)).await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || directory::create_all(&path)).await
    }

    async fn list_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let path = path.to_owned();
        blocking(move || directory::list(&path)).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || directory::sync(&path)).await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let path = path.to_owned();
        blocking(move || directory::free_bytes(&path)).await
    }
}

fn spawn_into(class: usize, task: impl Future<Output = ()> + 'static) {
    let task = vigil::guarded(class, task);
    match QUEUES.get() {
        Some(queues) => {
            let spawned = glommio::spawn_local_into(task, queues[class]);
            spawned.expect("the queue exists").detach() // why: it lives as long as the executor
        }
        // An executor that `launch` did not make has one queue.
        None => glommio::spawn_local(task).detach(),
    };
}

/// Runs `operation` on the core's helper thread. If it panics, the caller gets an error: glommio would let it wait for
/// ever.
async fn blocking<T: Send + 'static>(operation: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let guarded = move || {
        catch_unwind(AssertUnwindSafe(operation))
            .unwrap_or_else(|_| Err(io::Error::other("the blocking operation panicked")))
    };
    let _counted = UnderWay::begin();
    glommio::executor().spawn_blocking(guarded).await
}

thread_local! {
    /// Operations that this core's helper thread has not answered.
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// Counts an operation until its answer came, or nobody waits for it.
struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        UnderWay
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get() - 1);
    }
}

/// Waits until the helper thread owes no answer. It panics when it has one for an executor that is gone, and a panic
/// ends the process: a clean stop would look like a crash.
async fn helper_is_idle() {
    while UNDER_WAY.get() > 0 {
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}

/// The operating system's own error, with its number. glommio's conversion loses the number of most.
fn io_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}

/// A file opened with O_DIRECT. See [`File`].
///
/// Futures of it may be dropped at any time: glommio keeps buffers that the kernel may still touch until the kernel is
/// done.
pub struct GlommioFile {
    file: DmaFile,
    /// The same file opened with O_DSYNC, once somebody wants that: glommio has no such flag for a single write.
    synchronous: OnceCell<DmaFile>,
}

impl File for GlommioFile {
    type Buffer = DmaBuffer;

    fn alignment(&self) -> u64 {
        self.file.alignment().max(512)
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let first = self.read_once(position, len).await?;
        // Short and ragged: the end of the file. Short and aligned: perhaps the end, perhaps a kernel that stopped
        // early.
        if first.len() == len || first.is_empty() || !(first.len() as u64).is_multiple_of(self.alignment()) {
            return Ok(first);
        }
        let mut whole = Vec::from(first);
        while whole.len() < len {
            let more = self.read_once(position + whole.len() as u64, len - whole.len()).await?;
            whole.extend_from_slice(&more);
            if more.is_empty() || !(more.len() as u64).is_multiple_of(self.alignment()) {
                break;
            }
        }
        Ok(Bytes::from(whole))
    }

    async fn write_at(&self, position: u64, buffer: Rc<DmaBuffer>) -> io::Result<()> {
        write_whole(&self.file, position, buffer).await
    }

    async fn write_durable_at(&self, position: u64, buffer: Rc<DmaBuffer>) -> io::Result<()> {
        let file = match self.synchronous.get() {
            Some(file) => file,
            None => {
                let opened = self.open_synchronous().await?;
                // Another write may have been faster: then its file stays.
                self.synchronous.get_or_init(|| opened)
            }
        };
        write_whole(file, position, buffer).await
    }

    async fn fdatasync(&self) -> io::Result<()> {
        self.file.fdatasync().await.map_err(io_error)
    }

    async fn size(&self) -> io::Result<u64> {
        // Not `DmaFile::file_size`: it goes by the name the file had when it was opened, and ours are renamed.
        match std::fs::metadata(format!("/proc/self/fd/{}", self.file.as_raw_fd())) {
            Ok(metadata) => Ok(metadata.len()),
            Err(_) => self.file.file_size().await.map_err(io_error),
        }
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len).await.map_err(io_error)
    }
}

async fn write_whole(file: &DmaFile, position: u64, buffer: Rc<DmaBuffer>) -> io::Result<()> {
    let len = buffer.len();
    let mut done = file.write_rc_at(Rc::clone(&buffer), position).await.map_err(io_error)?;
    // A write falls short when the drive fills up. Asking for the rest either works or says what is wrong.
    while done < len {
        let rest_at = done - done % file.alignment().max(512) as usize;
        let mut rest = glommio::allocate_dma_buffer(len - rest_at);
        rest.as_bytes_mut().copy_from_slice(&buffer.as_bytes()[rest_at..]);
        let more = file.write_at(rest, position + rest_at as u64).await.map_err(io_error)?;
        if rest_at + more <= done {
            return Err(io::Error::new(io::ErrorKind::WriteZero, format!("wrote {done} of {len} bytes")));
        }
        done = rest_at + more;
    }
    Ok(())
}

impl GlommioFile {
    /// By its descriptor, not by a name: files are renamed.
    async fn open_synchronous(&self) -> io::Result<DmaFile> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_DSYNC);
        options.dma_open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).await.map_err(io_error)
    }

    async fn read_once(&self, position: u64, len: usize) -> io::Result<Bytes> {
        /// Lets the bytes stay where the drive put them; see [`super::share`] for what `SendWrapper` guards.
        struct Read(SendWrapper<ReadResult>);
        impl AsRef<[u8]> for Read {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let read = self.file.read_at_aligned(position, len).await.map_err(io_error)?;
        Ok(Bytes::from_owner(Read(SendWrapper::new(read))))
    }
}

impl Buffer for DmaBuffer {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_bytes_mut()
    }

    fn trim(&mut self, len: usize) {
        self.trim_to_size(len);
    }
}

/// One core's seat in a [`mesh`]; moves to its core, where [`MeshSeat::connect`] makes it usable.
pub struct MeshSeat<T: Send + 'static> {
    senders: Vec<Option<SharedSender<T>>>,
    receivers: Vec<Option<SharedReceiver<T>>>,
}

/// A ring from every one of `cores` cores to every other, each with room for `capacity` items: one seat per core.
pub fn mesh<T: Send + 'static>(cores: usize, capacity: usize) -> Vec<MeshSeat<T>> {
    let mut seats: Vec<MeshSeat<T>> = (0..cores)
        .map(|_| MeshSeat {
            senders: (0..cores).map(|_| None).collect(),
            receivers: (0..cores).map(|_| None).collect(),
        })
        .collect();
    for from in 0..cores {
        for to in (0..cores).filter(|to| *to != from) {
            let (sender, receiver) = new_bounded(capacity);
            seats[from].senders[to] = Some(sender);
            seats[to].receivers[from] = Some(receiver);
        }
    }
    seats
}

impl<T: Send + 'static> MeshSeat<T> {
    /// Connects this core's rings. Returns when every other core has done the same.
    pub async fn connect(self, runtime: &GlommioRuntime) -> Mesh<GlommioRuntime, T> {
        // An executor that sleeps while its peer connects may miss the wake-up for good (seen in 15 of 20 starts of
        // four executors). A timer that keeps waking it until all stands cures it (0 of 20).
        let connecting = Rc::new(());
        let (alive, ticker) = (Rc::downgrade(&connecting), runtime.clone());
        runtime.spawn(async move {
            while alive.upgrade().is_some() {
                ticker.sleep(CONNECT_TICK).await;
            }
        });
        // All at once: each waits for its peer, so one after the other would be a deadlock.
        let senders = join_all(self.senders.into_iter().map(async |sender| match sender {
            Some(sender) => Some(GlommioSender { ring: sender.connect().await }),
            None => None,
        }));
        let receivers = join_all(self.receivers.into_iter().map(async |receiver| match receiver {
            Some(receiver) => Some(GlommioReceiver { ring: receiver.connect().await }),
            None => None,
        }));
        let (senders, receivers) = join(senders, receivers).await;
        drop(connecting);
        Mesh { senders, receivers }
    }
}

/// See [`RingSender`].
pub struct GlommioSender<T: Send + 'static> {
    ring: ConnectedSender<T>,
}

impl<T: Send + 'static> RingSender<T> for GlommioSender<T> {
    fn try_send(&self, item: T) -> Result<(), T> {
        self.ring.try_send(item).map_err(|error| match error {
            GlommioError::WouldBlock(ResourceType::Channel(item))
            | GlommioError::Closed(ResourceType::Channel(item)) => item,
            other => unreachable!("a channel refuses only because it is full or closed: {other}"),
        })
    }

    async fn send(&self, mut item: T) -> Result<(), T> {
        // Not glommio's own `send`: it waits for ever when the receiver goes away while the ring is full.
        loop {
            match self.ring.try_send(item) {
                Ok(()) => return Ok(()),
                Err(GlommioError::WouldBlock(ResourceType::Channel(refused))) => item = refused,
                Err(GlommioError::Closed(ResourceType::Channel(refused))) => return Err(refused),
                Err(other) => unreachable!("a channel refuses only because it is full or closed: {other}"),
            }
            glommio::timer::sleep(FULL_RING_PAUSE).await;
        }
    }
}

/// See [`RingReceiver`].
pub struct GlommioReceiver<T: Send + 'static> {
    ring: ConnectedReceiver<T>,
}

impl<T: Send + 'static> RingReceiver<T> for GlommioReceiver<T> {
    async fn recv(&self) -> Option<T> {
        self.ring.recv().await
    }
}

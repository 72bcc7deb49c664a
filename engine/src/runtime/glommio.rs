//! The real world: one pinned glommio executor per core, each with its own io_uring rings.
//!
//! Beside `vigil` the only room of the engine that names glommio. It works around what is known of glommio 0.9, each
//! where it happens: the poll probe that misfires on fresh files, `connect` that sleeps through its wake-up, `statx`
//! that goes by the file's first name, `send` that waits for ever when the receiver went away, blocking closures whose
//! panic hangs the caller.

mod file;
mod helper;
mod mapping;
mod rings;

use std::{
    cell::Cell,
    io,
    marker::PhantomData,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{OnceLock, mpsc},
    time::{Duration, Instant, SystemTime},
};

use glommio::{LocalExecutorBuilder, Placement, TaskQueueHandle, io::DmaBuffer};

pub use file::GlommioFile;
use helper::blocking;
pub use mapping::{Mapping, MappingUnavailable, try_lock};
pub use rings::{GlommioReceiver, GlommioSender, MeshSeat, mesh};

use super::{
    Buffer, DirEntry, File, OpenMode, PROBE, Runtime, directory,
    slice::ask_for_long_slices,
    start::{Registration, StartError, abort_on_panic, check_io_uring, check_memlock, raise_open_files},
    vigil,
};
use crate::types::CoreId;

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
                                helper::settle().await;
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
        let path = dir.join(format!("{PROBE}{core}"));
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
        // Another core's probe may be gone before it is looked at.
        let is_probe = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PROBE));
        for entry in directory::list(dir)?.into_iter().filter(|entry| !is_probe(&entry.path)) {
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

    fn take_busy(&self) -> Duration {
        // Nobody else may ask: glommio's counts begin anew each time. Looking for work is not in them.
        glommio::executor().executor_stats().total_runtime()
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
        let mut buffer = self.allocate_unfilled(len);
        buffer.as_bytes_mut().fill(0);
        buffer
    }

    fn allocate_unfilled(&self, len: usize) -> DmaBuffer {
        assert!(len > 0 && len.is_multiple_of(PROBE_BYTES), "{len} bytes is no multiple of {PROBE_BYTES}");
        glommio::allocate_dma_buffer(len)
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<GlommioFile> {
        GlommioFile::open(path, mode).await
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

//! The contract on glommio, and what only the real runtime has: what the kernel says of it, and its own traps.

use std::sync::mpsc;

use pyralog_engine::{
    runtime::{
        glommio::{CoreThread, GlommioRuntime, LaunchOptions, launch, mesh, try_lock},
        start::StartError,
    },
    types::CoreId,
};

use super::*;

fn scratch() -> tempfile::TempDir {
    // Not /tmp, which may be a tmpfs, where O_DIRECT means nothing.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn options(dir: &Path) -> LaunchOptions {
    // A failing assertion is to fail its test, not the whole process.
    LaunchOptions { data_dirs: vec![dir.to_owned()], abort_on_panic: false, ..LaunchOptions::default() }
}

fn cpus(count: usize) -> Vec<usize> {
    let all = std::thread::available_parallelism().unwrap().get();
    (0..count).map(|i| i % all).collect()
}

fn join<T: Send + 'static>(cores: Vec<CoreThread<T>>) -> Vec<T> {
    cores.into_iter().map(|core| core.join().unwrap()).collect()
}

fn on_one_core<F, Fut>(case: F)
where
    F: FnOnce(GlommioRuntime, PathBuf) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let scratch = scratch();
    let dir = scratch.path().to_owned();
    join(launch(&cpus(1), &options(scratch.path()), move |_, runtime| case(runtime, dir)).unwrap());
}

fn on_meshed_cores<F, Fut>(cores: usize, case: F)
where
    F: FnOnce(GlommioRuntime, usize, Rings<GlommioRuntime>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let scratch = scratch();
    let (give, take) = mpsc::channel();
    mesh(cores, CAPACITY).into_iter().enumerate().for_each(|seat| give.send(seat).unwrap());
    let take = std::sync::Arc::new(std::sync::Mutex::new(take));
    let main = move |_: CoreId, runtime: GlommioRuntime| async move {
        let (core, seat) = take.lock().unwrap().recv().unwrap();
        let mesh = seat.connect(&runtime).await;
        case(runtime, core, mesh).await;
    };
    join(launch(&cpus(cores), &options(scratch.path()), main).unwrap());
}

contract!();

/// What the kernel says of the mapping of the file called `name`: the bytes of it, in memory, and locked, in KiB.
fn kernels_view(name: &str) -> [u64; 3] {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let after = text.lines().skip_while(|line| !line.ends_with(name));
    let of = |what: &str| {
        let line = after.clone().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    [of("Size:"), of("Rss:"), of("Locked:")]
}

#[test]
fn every_page_of_a_mapping_is_in_memory_and_locked_there() {
    on_one_core(async |runtime: GlommioRuntime, dir: PathBuf| {
        let file = runtime.open(&dir.join("to-be-mapped"), OpenMode::CreateNew).await.unwrap();
        for at in 0..4 {
            file.write_at(at << 20, filled(&runtime, 256, at as u8)).await.unwrap();
        }
        file.fdatasync().await.unwrap();
        let mapping = file.map(10_000, 3 << 20).await.unwrap();
        assert_eq!(kernels_view("/to-be-mapped"), [3076; 3]);
        assert_eq!((mapping.as_ref()[0], mapping.as_ref()[(3 << 20) - 1]), (0, 3));
        drop(mapping);
        let left = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(!left.contains("/to-be-mapped"), "a mapping that nobody has any more");
    });
}

#[test]
fn more_memory_than_may_be_locked_is_refused_with_its_size() {
    try_lock(1 << 20).unwrap();
    let error = try_lock(1 << 60).unwrap_err().to_string();
    assert!(error.starts_with("1152921504606846976 bytes of memory cannot be locked"), "{error}");
}

#[test]
fn a_core_that_ends_while_its_helper_works_ends_well() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    static HELPERS_DEAD: AtomicUsize = AtomicUsize::new(0);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.to_string().contains("failed to send response") {
            HELPERS_DEAD.fetch_add(1, SeqCst);
        }
        before(info);
    }));
    let options = LaunchOptions { abort_on_panic: false, ..LaunchOptions::default() };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("cut");
    for _ in 0..20 {
        let path = path.clone();
        let main = |_: CoreId, runtime: GlommioRuntime| async move {
            let file = Rc::new(runtime.open(&path, OpenMode::CreateTruncate).await.unwrap());
            for len in 0..100 {
                let (busy, file) = (runtime.clone(), Rc::clone(&file));
                runtime.spawn(async move { while busy.list_dir("/usr/bin".as_ref()).await.is_ok() {} });
                // Nobody waits for it any more.
                let mut cut = Box::pin(async move { file.truncate(len << 20).await });
                std::future::poll_fn(|context| std::task::Poll::Ready(cut.as_mut().poll(context).is_ready())).await;
            }
            runtime.yield_now().await;
        };
        launch(&[0], &options, main).unwrap().into_iter().for_each(|core| core.join().unwrap());
    }
    assert_eq!(HELPERS_DEAD.load(SeqCst), 0, "a helper had an answer for nobody");
}

#[test]
fn a_mesh_of_four_cores_stands_at_each_of_two_hundred_starts() {
    for _ in 0..200 {
        on_meshed_cores(4, async |_, core, mesh| {
            for other in (0..4).filter(|other| *other != core) {
                to(&mesh, other).send(core as u64).await.unwrap();
            }
            for other in (0..4).filter(|other| *other != core) {
                assert_eq!(from(&mesh, other).recv().await, Some(other as u64));
            }
        });
    }
}

/// A preempt timer that is up before the first task runs has glommio park with tasks in its queue. With one this
/// short that happens within these passes, and without a heartbeat one time is one too many.
#[test]
fn a_core_does_not_fall_asleep_while_its_tasks_wait_to_run() {
    pass_to_and_fro(|runtime, task| runtime.spawn(task));
}

#[test]
fn a_core_does_not_fall_asleep_while_its_background_tasks_wait_to_run() {
    pass_to_and_fro(|runtime, task| runtime.spawn_background(task));
}

fn pass_to_and_fro(spawn: fn(&GlommioRuntime, LocalBoxFuture<'static, ()>)) {
    const PASSES: u64 = 20_000;
    let scratch = scratch();
    let options = LaunchOptions {
        preempt_timer: Duration::from_micros(50),
        heartbeat: Duration::from_secs(3600),
        ..options(scratch.path())
    };
    let (done, finished) = mpsc::channel();
    let cores = launch(&[0, 0], &options, {
        let seats = std::sync::Arc::new(std::sync::Mutex::new(mesh::<u64>(2, CAPACITY)));
        move |_: CoreId, runtime: GlommioRuntime| async move {
            // Seat 0 to whoever comes first: 1 has its ring to 0 and the other way round.
            let (seat, other) = {
                let mut seats = seats.lock().unwrap();
                let other = seats.len() % 2;
                (seats.remove(0), usize::from(other == 0))
            };
            let mesh = seat.connect(&runtime).await;
            let (passed, over) = async_channel::bounded(1);
            let own = runtime.clone();
            let passing = async move {
                for pass in 0..PASSES {
                    own.yield_now().await;
                    to(&mesh, other).send(pass).await.unwrap();
                    assert_eq!(from(&mesh, other).recv().await, Some(pass));
                }
                passed.send(()).await.unwrap();
                // The other core may still be at its last pass.
                own.sleep(Duration::from_millis(10)).await;
            };
            spawn(&runtime, Box::pin(passing));
            over.recv().await.unwrap();
            runtime.sleep(Duration::from_millis(10)).await;
            done.send(()).unwrap();
        }
    });
    let cores = cores.unwrap();
    for _ in 0..2 {
        finished.recv_timeout(Duration::from_secs(60)).expect("a core sleeps");
    }
    join(cores);
}

#[test]
fn a_waker_works_from_a_thread_that_is_no_executor() {
    let (send, receive) = async_channel::bounded::<u64>(1);
    let (back, returned) = async_channel::bounded(1);
    let cores = launch(&cpus(1), &options(scratch().path()), move |_, _| async move {
        while let Ok(item) = receive.recv().await {
            back.send(item + 1).await.unwrap();
        }
    });
    let cores = cores.unwrap();
    for i in 0..1000 {
        send.send_blocking(i).unwrap();
        assert_eq!(returned.recv_blocking().unwrap(), i + 1);
    }
    drop(send);
    join(cores);
}

#[test]
fn a_data_directory_that_is_missing_stops_the_start_with_its_name() {
    let missing = scratch().path().join("missing");
    let Err(error) = launch(&cpus(2), &options(&missing), async |_, _| ()) else { panic!("it started") };
    assert!(matches!(error, StartError::DataDir { .. }), "{error}");
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
}

#[test]
fn a_cpu_that_does_not_exist_stops_the_start_with_its_number() {
    let scratch = scratch();
    let Err(error) = launch(&[0, 9999], &options(scratch.path()), async |_, _| ()) else { panic!("it started") };
    assert!(error.to_string().contains("CPU 9999"), "{error}");
}

#[test]
fn a_panic_on_a_core_ends_that_core_with_an_error() {
    let scratch = scratch();
    let cores = launch(&cpus(1), &options(scratch.path()), async |_, _| panic!("on purpose")).unwrap();
    assert!(cores.into_iter().next().unwrap().join().is_err());
}

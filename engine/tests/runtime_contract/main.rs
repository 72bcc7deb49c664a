//! What every runtime promises, asked of each of them in the same words: what the simulation proves is worth no more
//! than its likeness to the real one.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::ErrorKind,
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use futures_util::future::{LocalBoxFuture, join_all};
use pyralog_engine::runtime::{Buffer, DirEntry, File, MapError, Mesh, OpenMode, RingReceiver, RingSender, Runtime};

/// Bytes that any device takes as one block.
const BLOCK: usize = 4096;

/// A buffer of `blocks` blocks, filled with `byte`.
fn filled<R: Runtime>(runtime: &R, blocks: usize, byte: u8) -> Rc<R::Buffer> {
    let mut buffer = runtime.allocate(blocks * BLOCK);
    buffer.bytes_mut().fill(byte);
    Rc::new(buffer)
}

async fn open_modes<R: Runtime>(runtime: R, dir: PathBuf) {
    let path = dir.join("file");
    let missing = runtime.open(&path, OpenMode::Existing).await.err().expect("a missing file was opened");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let file = runtime.open(&path, OpenMode::CreateNew).await.unwrap();
    assert_eq!(file.size().await.unwrap(), 0);
    file.write_at(0, filled(&runtime, 1, 7)).await.unwrap();
    let taken = runtime.open(&path, OpenMode::CreateNew).await.err().expect("a file was created twice");
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    let again = runtime.open(&path, OpenMode::Existing).await.unwrap();
    assert_eq!(again.size().await.unwrap(), BLOCK as u64);
    assert_eq!(again.read_at(0, BLOCK).await.unwrap(), vec![7; BLOCK]);
    let emptied = runtime.open(&path, OpenMode::CreateTruncate).await.unwrap();
    assert_eq!(emptied.size().await.unwrap(), 0);
    assert_eq!(again.size().await.unwrap(), 0, "both are the same file");
    let nowhere = dir.join("no-such-directory").join("file");
    assert_eq!(runtime.open(&nowhere, OpenMode::CreateNew).await.err().unwrap().kind(), ErrorKind::NotFound);
}

async fn what_is_written_is_read_also_before_a_sync<R: Runtime>(runtime: R, dir: PathBuf) {
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    assert!(file.alignment().is_power_of_two() && (512..=4096).contains(&file.alignment()));
    file.write_at(0, filled(&runtime, 2, 1)).await.unwrap();
    file.write_at(BLOCK as u64, filled(&runtime, 2, 2)).await.unwrap();
    let read = file.read_at(0, 3 * BLOCK).await.unwrap();
    assert_eq!(read[..BLOCK], [1; BLOCK]);
    assert_eq!(read[BLOCK..], [2; 2 * BLOCK]);
    file.fdatasync().await.unwrap();
    assert_eq!(file.read_at(0, 3 * BLOCK).await.unwrap(), read);
    assert_eq!(file.size().await.unwrap(), 3 * BLOCK as u64);
    let slice = read.slice(BLOCK - 1..BLOCK + 1);
    drop((read, file));
    assert_eq!(slice, vec![1, 2], "bytes outlive the file they were read from");
}

async fn a_durable_write_is_a_write<R: Runtime>(runtime: R, dir: PathBuf) {
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    file.write_at(0, filled(&runtime, 2, 1)).await.unwrap();
    runtime.rename(&dir.join("file"), &dir.join("renamed")).await.unwrap();
    let (first, second) =
        (file.write_durable_at(0, filled(&runtime, 1, 2)), file.write_at(2 * BLOCK as u64, filled(&runtime, 1, 3)));
    let (first, second) = futures_util::future::join(first, second).await;
    first.and(second).unwrap();
    file.write_durable_at(3 * BLOCK as u64, filled(&runtime, 1, 4)).await.unwrap();
    let read = file.read_at(0, 5 * BLOCK).await.unwrap();
    for (index, byte) in [2, 1, 3, 4].into_iter().enumerate() {
        assert_eq!(read[index * BLOCK..(index + 1) * BLOCK], [byte; BLOCK]);
    }
    assert_eq!(read.len(), 4 * BLOCK);
}

async fn reads_fall_short_at_the_end_of_the_file<R: Runtime>(runtime: R, dir: PathBuf) {
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    assert!(file.read_at(0, BLOCK).await.unwrap().is_empty());
    file.write_at(0, filled(&runtime, 2, 9)).await.unwrap();
    assert_eq!(file.read_at(BLOCK as u64, 4 * BLOCK).await.unwrap(), vec![9; BLOCK]);
    assert!(file.read_at(2 * BLOCK as u64, BLOCK).await.unwrap().is_empty());
    assert!(file.read_at(64 * BLOCK as u64, BLOCK).await.unwrap().is_empty());
    assert!(file.read_at(0, 0).await.unwrap().is_empty());
    file.truncate(BLOCK as u64 + 10).await.unwrap();
    assert_eq!(file.read_at(0, 2 * BLOCK).await.unwrap(), vec![9; BLOCK + 10]);
}

async fn a_hole_reads_as_zeros<R: Runtime>(runtime: R, dir: PathBuf) {
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    file.write_at(2 * BLOCK as u64, filled(&runtime, 1, 3)).await.unwrap();
    assert_eq!(file.size().await.unwrap(), 3 * BLOCK as u64);
    assert_eq!(file.read_at(0, 2 * BLOCK).await.unwrap(), vec![0; 2 * BLOCK]);
    assert_eq!(file.read_at(2 * BLOCK as u64, BLOCK).await.unwrap(), vec![3; BLOCK]);
}

async fn truncating_cuts_off_and_extends_with_zeros<R: Runtime>(runtime: R, dir: PathBuf) {
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    file.write_at(0, filled(&runtime, 2, 5)).await.unwrap();
    file.truncate(BLOCK as u64).await.unwrap();
    assert_eq!(file.size().await.unwrap(), BLOCK as u64);
    file.truncate(3 * BLOCK as u64).await.unwrap();
    let read = file.read_at(0, 4 * BLOCK).await.unwrap();
    assert_eq!(read[..BLOCK], [5; BLOCK]);
    assert_eq!(read[BLOCK..], [0; 2 * BLOCK], "what was cut off does not come back");
}

async fn a_trimmed_buffer_is_written_up_to_its_new_end<R: Runtime>(runtime: R, dir: PathBuf) {
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    let mut buffer = runtime.allocate(4 * BLOCK);
    assert!(buffer.bytes().iter().all(|b| *b == 0), "fresh memory is zeroed");
    assert_eq!(buffer.bytes().as_ptr() as usize % BLOCK, 0, "fresh memory is aligned");
    buffer.bytes_mut().fill(8);
    buffer.trim(file.alignment() as usize);
    assert_eq!(buffer.bytes().len() as u64, file.alignment());
    let alignment = file.alignment();
    file.write_at(alignment, Rc::new(buffer)).await.unwrap();
    assert_eq!(file.size().await.unwrap(), 2 * alignment);
    assert_eq!(file.read_at(alignment, BLOCK).await.unwrap(), vec![8; alignment as usize]);
    // Memory that was used before is zeroed again.
    assert!(runtime.allocate(4 * BLOCK).bytes().iter().all(|b| *b == 0));
}

async fn renaming_replaces_and_an_open_file_follows_its_name<R: Runtime>(runtime: R, dir: PathBuf) {
    let (a, b) = (dir.join("a"), dir.join("b"));
    let file = runtime.open(&a, OpenMode::CreateNew).await.unwrap();
    file.write_at(0, filled(&runtime, 1, 1)).await.unwrap();
    drop(runtime.open(&b, OpenMode::CreateNew).await.unwrap());
    runtime.rename(&a, &b).await.unwrap();
    assert_eq!(file.size().await.unwrap(), BLOCK as u64, "the size is that of the file, not of a name");
    file.write_at(BLOCK as u64, filled(&runtime, 1, 2)).await.unwrap();
    assert_eq!(runtime.open(&a, OpenMode::Existing).await.err().unwrap().kind(), ErrorKind::NotFound);
    let renamed = runtime.open(&b, OpenMode::Existing).await.unwrap();
    assert_eq!(renamed.size().await.unwrap(), 2 * BLOCK as u64);
    assert_eq!(runtime.rename(&a, &b).await.unwrap_err().kind(), ErrorKind::NotFound);
    runtime.sync_dir(&dir).await.unwrap();
}

async fn a_directory_moves_to_another_with_all_that_is_in_it<R: Runtime>(runtime: R, dir: PathBuf) {
    let (here, there) = (dir.join("here").join("log"), dir.join("there").join("moved"));
    runtime.create_dir_all(&here).await.unwrap();
    runtime.create_dir_all(&dir.join("there")).await.unwrap();
    let file = runtime.open(&here.join("file"), OpenMode::CreateNew).await.unwrap();
    file.write_at(0, filled(&runtime, 1, 6)).await.unwrap();
    runtime.rename(&here, &there).await.unwrap();
    runtime.sync_dir(&dir.join("here")).await.unwrap();
    runtime.sync_dir(&dir.join("there")).await.unwrap();
    assert_eq!(runtime.list_dir(&here).await.unwrap_err().kind(), ErrorKind::NotFound);
    let moved = DirEntry { path: there.join("file"), is_dir: false };
    assert_eq!(runtime.list_dir(&there).await.unwrap(), [moved]);
    assert_eq!(file.read_at(0, BLOCK).await.unwrap(), vec![6; BLOCK], "an open file follows");
    assert_eq!(runtime.rename(&here, &there).await.unwrap_err().kind(), ErrorKind::NotFound);
    runtime.create_dir_all(&here).await.unwrap();
    assert!(runtime.rename(&here, &there).await.is_err(), "a directory that is not empty was replaced");
}

async fn a_removed_file_lives_until_it_is_closed<R: Runtime>(runtime: R, dir: PathBuf) {
    let path = dir.join("file");
    let file = runtime.open(&path, OpenMode::CreateNew).await.unwrap();
    file.write_at(0, filled(&runtime, 1, 4)).await.unwrap();
    runtime.remove_file(&path).await.unwrap();
    assert_eq!(runtime.remove_file(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(file.read_at(0, BLOCK).await.unwrap(), vec![4; BLOCK]);
    assert_eq!(file.size().await.unwrap(), BLOCK as u64);
    let second = runtime.open(&path, OpenMode::CreateNew).await.unwrap();
    assert_eq!(second.size().await.unwrap(), 0, "the name now means another file");
}

async fn mapped_bytes_are_those_of_the_file_and_outlive_its_name<R: Runtime>(runtime: R, dir: PathBuf) {
    let path = dir.join("file");
    let file = runtime.open(&path, OpenMode::CreateNew).await.unwrap();
    file.write_at(0, filled(&runtime, 2, 1)).await.unwrap();
    file.write_at(2 * BLOCK as u64, filled(&runtime, 1, 2)).await.unwrap();
    file.truncate(2 * BLOCK as u64 + 10).await.unwrap();
    let whole = file.map(0, 64 * BLOCK).await.unwrap();
    assert_eq!(whole.as_ref(), [vec![1; 2 * BLOCK], vec![2; 10]].concat(), "as much as there is");
    let middle = file.map(BLOCK as u64 + 100, BLOCK - 99).await.unwrap();
    assert_eq!(middle.as_ref()[..BLOCK - 100], vec![1; BLOCK - 100], "of any alignment");
    assert_eq!(middle.as_ref()[BLOCK - 100..], [2]);
    for beyond in [2 * BLOCK as u64 + 10, 64 * BLOCK as u64] {
        assert!(file.map(beyond, BLOCK).await.unwrap().as_ref().is_empty());
    }
    assert!(file.map(0, 0).await.unwrap().as_ref().is_empty());
    assert_eq!(file.read_at(0, BLOCK).await.unwrap(), vec![1; BLOCK], "it is read beside that");
    runtime.remove_file(&path).await.unwrap();
    drop(file);
    assert_eq!(whole.as_ref().len(), 2 * BLOCK + 10);
    assert_eq!(middle.as_ref()[..1], [1]);
}

async fn who_claims_a_file_shares_it_with_no_mapping<R: Runtime>(runtime: R, dir: PathBuf) {
    let path = dir.join("file");
    let file = runtime.open(&path, OpenMode::CreateNew).await.unwrap();
    file.write_at(0, filled(&runtime, 1, 1)).await.unwrap();
    let (mapped, again) = (file.map(0, BLOCK).await.unwrap(), file.map(0, 1).await.unwrap());
    assert!(!file.claim().await.unwrap(), "a mapping of the same opening");
    drop(file);
    let other = runtime.open(&path, OpenMode::Existing).await.unwrap();
    assert!(!other.claim().await.unwrap(), "mappings that outlive their opening");
    drop(mapped);
    assert!(!other.claim().await.unwrap(), "another mapping");
    drop(again);
    assert!(other.claim().await.unwrap(), "nobody has it mapped any more");
    assert!(other.claim().await.unwrap(), "it is claimed");
    let third = runtime.open(&path, OpenMode::Existing).await.unwrap();
    assert!(!third.claim().await.unwrap(), "somebody else has claimed it");
    for file in [&other, &third] {
        assert!(matches!(file.map(0, 1).await, Err(MapError::Unreadable(_))), "a claimed file was mapped");
    }
    other.truncate(0).await.unwrap();
    drop(other);
    assert!(third.map(0, 1).await.unwrap().as_ref().is_empty(), "the claim ends with its opening");
}

async fn directories_are_made_listed_and_removed<R: Runtime>(runtime: R, dir: PathBuf) {
    let deep = dir.join("x").join("y");
    assert_eq!(runtime.list_dir(&deep).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(runtime.sync_dir(&deep).await.unwrap_err().kind(), ErrorKind::NotFound);
    runtime.create_dir_all(&deep).await.unwrap();
    runtime.create_dir_all(&deep).await.unwrap();
    for name in ["b", "a"] {
        drop(runtime.open(&deep.join(name), OpenMode::CreateNew).await.unwrap());
    }
    runtime.create_dir_all(&deep.join("c")).await.unwrap();
    runtime.sync_dir(&deep).await.unwrap();
    let entry = |name: &str, is_dir| DirEntry { path: deep.join(name), is_dir };
    assert_eq!(runtime.list_dir(&deep).await.unwrap(), [entry("a", false), entry("b", false), entry("c", true)]);
    assert_eq!(runtime.list_dir(&dir.join("x")).await.unwrap(), [DirEntry { path: deep.clone(), is_dir: true }]);
    assert_eq!(runtime.remove_dir(&deep).await.unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    assert!(runtime.remove_dir(&deep.join("a")).await.is_err(), "a file is no directory");
    assert!(runtime.remove_file(&deep.join("c")).await.is_err(), "a directory is no file");
    runtime.remove_file(&deep.join("a")).await.unwrap();
    runtime.remove_file(&deep.join("b")).await.unwrap();
    runtime.remove_dir(&deep.join("c")).await.unwrap();
    runtime.remove_dir(&deep).await.unwrap();
    assert_eq!(runtime.list_dir(&dir.join("x")).await.unwrap(), []);
    assert_eq!(runtime.remove_dir(&deep).await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn a_file_system_says_what_it_has_left<R: Runtime>(runtime: R, dir: PathBuf) {
    // Others use the real drive too, so that it has room is all that can be said of it.
    assert!(runtime.free_bytes(&dir).await.unwrap() > 0);
    assert_eq!(runtime.free_bytes(&dir.join("nowhere")).await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn many_writes_at_once_all_arrive<R: Runtime>(runtime: R, dir: PathBuf) {
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    let writes = (0..64u8).map(|i| file.write_at(u64::from(i) * BLOCK as u64, filled(&runtime, 1, i)));
    assert!(join_all(writes).await.iter().all(Result::is_ok));
    let reads = join_all((0..64u64).map(|i| file.read_at(i * BLOCK as u64, BLOCK))).await;
    for (i, read) in reads.into_iter().enumerate() {
        assert_eq!(read.unwrap(), vec![i as u8; BLOCK], "block {i}");
    }
}

async fn an_operation_may_be_abandoned_at_any_time<R: Runtime>(runtime: R, dir: PathBuf) {
    let path = dir.join("file");
    for round in 0..20u8 {
        let file = runtime.open(&path, OpenMode::CreateTruncate).await.unwrap();
        let buffer = filled(&runtime, 16, round);
        {
            let mut write = pin!(file.write_at(0, Rc::clone(&buffer)));
            let mut read = pin!(file.read_at(0, BLOCK));
            poll_fn(|context| {
                let _ = write.as_mut().poll(context);
                let _ = read.as_mut().poll(context);
                Poll::Ready(())
            })
            .await;
            if round % 2 == 0 {
                // Give the operations the time to reach the device before they are forgotten.
                runtime.yield_now().await;
            }
        }
        drop(buffer);
        drop(file);
    }
    let file = runtime.open(&path, OpenMode::CreateTruncate).await.unwrap();
    file.write_at(0, filled(&runtime, 1, 0xee)).await.unwrap();
    file.fdatasync().await.unwrap();
    assert_eq!(file.read_at(0, BLOCK).await.unwrap(), vec![0xee; BLOCK]);
}

async fn sleepers_wake_in_the_order_of_their_deadlines<R: Runtime>(runtime: R, _: PathBuf) {
    let woken = Rc::new(RefCell::new(Vec::new()));
    let before = runtime.monotonic();
    for millis in [30, 10, 20, 0] {
        let (woken, clock) = (Rc::clone(&woken), runtime.clone());
        runtime.spawn(async move {
            clock.sleep(Duration::from_millis(millis)).await;
            woken.borrow_mut().push(millis);
        });
    }
    runtime.sleep(Duration::from_millis(40)).await;
    until(&runtime, || woken.borrow().len() == 4).await;
    assert_eq!(*woken.borrow(), [0, 10, 20, 30]);
    assert!(runtime.monotonic() - before >= Duration::from_millis(40));
    assert!(runtime.unix_millis() > 1_600_000_000_000, "the wall clock is somewhere after 2020");
}

async fn spawned_tasks_run_beside_their_caller<R: Runtime>(runtime: R, _: PathBuf) {
    let turns = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let (turns, other) = (Rc::clone(&turns), runtime.clone());
        runtime.spawn(async move {
            for _ in 0..10 {
                turns.set(turns.get() + 1);
                other.yield_now().await;
            }
        });
    }
    until(&runtime, || turns.get() == 30).await;
    assert_ne!(runtime.random_u64(), runtime.random_u64());
}

async fn background_tasks_run_are_woken_and_do_not_keep_others_from_running<R: Runtime>(runtime: R, dir: PathBuf) {
    // Some that always want the core, and more of them than there are others.
    let stop = Rc::new(Cell::new(false));
    let turns = Rc::new(Cell::new(0u64));
    for _ in 0..8 {
        let (stop, turns, other) = (Rc::clone(&stop), Rc::clone(&turns), runtime.clone());
        runtime.spawn_background(async move {
            while !stop.get() {
                turns.set(turns.get() + 1);
                other.yield_now().await;
            }
        });
    }
    let file = runtime.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
    for round in 0..50u8 {
        file.write_at(0, filled(&runtime, 1, round)).await.unwrap();
        runtime.sleep(Duration::from_micros(100)).await;
    }
    until(&runtime, || turns.get() > 100).await;
    stop.set(true);
    // One that waits for the drive and the clock, woken by both, while nobody else does anything.
    let (done, inner) = (Rc::new(Cell::new(false)), runtime.clone());
    let flag = Rc::clone(&done);
    runtime.spawn_background(async move {
        for _ in 0..20 {
            assert_eq!(file.read_at(0, BLOCK).await.unwrap(), vec![49; BLOCK]);
            inner.sleep(Duration::from_micros(100)).await;
        }
        // What it spawns to be served is served, what it spawns behind itself comes as well.
        let (again, last) = (inner.clone(), inner.clone());
        inner.spawn(async move { again.spawn_background(async move { last.spawn(async move { flag.set(true) }) }) });
    });
    until(&runtime, || done.get()).await;
}

/// Lets other tasks run until `done`, at most for ten seconds.
async fn until<R: Runtime>(runtime: &R, done: impl Fn() -> bool) {
    let deadline = runtime.monotonic() + Duration::from_secs(10);
    while !done() {
        assert!(runtime.monotonic() < deadline, "waited ten seconds in vain");
        runtime.sleep(Duration::from_millis(1)).await;
    }
}

type Rings<R> = Mesh<R, u64>;

fn to<R: Runtime>(mesh: &Rings<R>, core: usize) -> &R::Sender<u64> {
    mesh.senders[core].as_ref().expect("no ring leads to this core")
}

fn from<R: Runtime>(mesh: &Rings<R>, core: usize) -> &R::Receiver<u64> {
    mesh.receivers[core].as_ref().expect("no ring comes from this core")
}

const ITEMS: u64 = 20_000;

/// Core 0 sends to core 1 more than the ring holds, and core 1 sends everything back.
async fn rings_keep_the_order_and_lose_nothing<R: Runtime>(runtime: R, core: usize, mesh: Rings<R>) {
    assert!(mesh.senders[core].is_none() && mesh.receivers[core].is_none(), "no core has a ring to itself");
    if core == 0 {
        let mesh = Rc::new(mesh);
        let sending = Rc::clone(&mesh);
        runtime.spawn(async move {
            for i in 0..ITEMS {
                to(&sending, 1).send(i).await.unwrap();
            }
        });
        for i in 0..ITEMS {
            assert_eq!(from(&mesh, 1).recv().await, Some(i));
        }
    } else {
        while let Some(item) = from(&mesh, 0).recv().await {
            to(&mesh, 0).send(item).await.unwrap();
            if item + 1 == ITEMS {
                break;
            }
        }
    }
}

/// Core 0 fills the ring before core 1 takes anything, and then closes it.
async fn rings_are_bounded_and_drain_after_the_sender_is_gone<R: Runtime>(runtime: R, core: usize, mesh: Rings<R>) {
    if core == 0 {
        let mut sent = 0;
        while to(&mesh, 1).try_send(sent).is_ok() {
            sent += 1;
            assert!(sent <= 2 * CAPACITY as u64, "the ring has no bound");
        }
        assert!(sent >= CAPACITY as u64, "the ring holds only {sent}");
        assert_eq!(to(&mesh, 1).try_send(77), Err(77), "a refused item comes back");
        to(&mesh, 1).send(sent).await.unwrap();
        drop(mesh);
    } else {
        // Long enough for core 0 to find the ring full; if not, the test is weaker but still right.
        runtime.sleep(Duration::from_millis(5)).await;
        let mut expected = 0;
        while let Some(item) = from(&mesh, 0).recv().await {
            assert_eq!(item, expected);
            expected += 1;
        }
        assert!(expected > CAPACITY as u64);
    }
}

/// Core 1 goes away while core 0 waits for room.
async fn a_sender_learns_that_the_receiver_is_gone<R: Runtime>(runtime: R, core: usize, mesh: Rings<R>) {
    if core == 0 {
        loop {
            if to(&mesh, 1).send(1).await.is_err() {
                break;
            }
        }
        assert_eq!(to(&mesh, 1).try_send(5), Err(5));
    } else {
        runtime.sleep(Duration::from_millis(5)).await;
        drop(mesh);
    }
}

const CAPACITY: usize = 128;

/// Every case as a test of the module that asks for it, which has `on_one_core` and `on_meshed_cores`.
macro_rules! contract {
    () => {
        contract! { @one
            open_modes
            what_is_written_is_read_also_before_a_sync
            a_durable_write_is_a_write
            reads_fall_short_at_the_end_of_the_file
            a_hole_reads_as_zeros
            truncating_cuts_off_and_extends_with_zeros
            a_trimmed_buffer_is_written_up_to_its_new_end
            renaming_replaces_and_an_open_file_follows_its_name
            a_directory_moves_to_another_with_all_that_is_in_it
            a_removed_file_lives_until_it_is_closed
            mapped_bytes_are_those_of_the_file_and_outlive_its_name
            who_claims_a_file_shares_it_with_no_mapping
            directories_are_made_listed_and_removed
            a_file_system_says_what_it_has_left
            many_writes_at_once_all_arrive
            an_operation_may_be_abandoned_at_any_time
            sleepers_wake_in_the_order_of_their_deadlines
            spawned_tasks_run_beside_their_caller
            background_tasks_run_are_woken_and_do_not_keep_others_from_running
        }
        contract! { @meshed
            rings_keep_the_order_and_lose_nothing
            rings_are_bounded_and_drain_after_the_sender_is_gone
            a_sender_learns_that_the_receiver_is_gone
        }
    };
    (@one $($case:ident)*) => { $( #[test] fn $case() { on_one_core(super::$case); } )* };
    (@meshed $($case:ident)*) => { $( #[test] fn $case() { on_meshed_cores(2, super::$case); } )* };
}

mod real;
mod simulated;

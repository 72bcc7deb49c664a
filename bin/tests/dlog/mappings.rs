//! Sealed segments read through mappings: on a drive that fails, what is mapped stays readable, what is not is an
//! error, and no process ends with SIGBUS; without the right to lock memory a server reads with direct I/O and says so.

use std::{fs, path::Path, process::Stdio, rc::Rc};

use pyralog_engine::runtime::{
    Buffer, File, MapError, OpenMode, Runtime,
    glommio::{LaunchOptions, launch},
};

use crate::{
    power::Drive,
    support::{Server, dlog, scratch, wait},
};

const MAPPED: [&str; 2] = ["--set", "storage.segment_config.use_mmap=true"];

/// Maps a part of a file on `drive`, lets the drive fail, and maps another part.
fn map_around_a_failure(drive: &Drive, fail: impl FnOnce(&Drive)) {
    const MIB: usize = 1 << 20;
    let (ask, asked) = async_channel::bounded(1);
    let (done, failed) = async_channel::bounded::<()>(1);
    let options =
        LaunchOptions { data_dirs: vec![drive.path().to_owned()], abort_on_panic: false, ..LaunchOptions::default() };
    let path = drive.path().join("file");
    let main = move |_, runtime: pyralog_engine::runtime::glommio::GlommioRuntime| async move {
        let file = runtime.open(&path, OpenMode::CreateNew).await.unwrap();
        for part in 0..8u8 {
            let mut buffer = runtime.allocate(MIB);
            buffer.bytes_mut().fill(part);
            file.write_at(u64::from(part) * MIB as u64, Rc::new(buffer)).await.unwrap();
        }
        file.fdatasync().await.unwrap();
        let before = file.map(0, MIB).await.unwrap();
        ask.send(()).await.unwrap();
        failed.recv().await.unwrap();
        assert!(before.as_ref().iter().all(|byte| *byte == 0), "what was mapped is as it was");
        let after = file.map(4 * MIB as u64, MIB).await;
        assert!(matches!(&after, Err(MapError::Unreadable(error)) if error.raw_os_error() == Some(5)), "no EIO");
        assert!(before.as_ref().iter().all(|byte| *byte == 0), "what was mapped is as it was");
    };
    let cores = launch(&[0], &options, main).unwrap();
    asked.recv_blocking().unwrap();
    fail(drive);
    done.send_blocking(()).unwrap();
    cores.into_iter().for_each(|core| core.join().unwrap());
}

#[test]
fn a_mapping_outlives_a_power_cut_of_its_drive_and_the_next_one_is_an_error() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    map_around_a_failure(&drive, Drive::cut);
}

#[test]
fn sectors_that_cannot_be_read_are_an_error_of_the_mapping_and_not_of_who_reads_it() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    map_around_a_failure(&drive, Drive::lose_sectors);
}

/// A server that maps, on a drive with a log `a` whose partition 0 has two sealed segments. Of it nothing is in memory.
/// Returns its records too.
fn start_with_sealed(root: &Path, drive: &Drive) -> (Server, String) {
    let data = drive.path().join("data");
    let server = Server::start(&data, &MAPPED);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    let file = root.join("much.txt");
    let records: Vec<String> = (0..40_000).map(|number| format!("{number:0>999}")).collect();
    let text = records.join("\n") + "\n";
    fs::write(&file, &text).unwrap();
    server.run(&["produce", "a", "--partition", "0", "--ack", "durable", file.to_str().unwrap()]);
    server.feed(&["produce", "a", "--partition", "1", "--ack", "durable"], b"kept\n");
    server.stop();
    (Server::start(&data, &MAPPED), text)
}

fn mapped_reads(server: &Server) -> u64 {
    let page = server.page("/metrics").1;
    let line = page.lines().find(|line| line.starts_with("dlog_mapped_reads_total ")).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_server_whose_drive_is_cut_off_answers_reads_of_sealed_segments_with_an_error_that_names_the_place() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let (server, text) = start_with_sealed(root.path(), &drive);
    assert_eq!(server.text(&["consume", "a", "--partition", "0", "--count", "10000"]), text[..10_000_000]);
    assert!(mapped_reads(&server) > 0, "nothing was mapped");
    drive.cut();
    let (_, message) = server.refused(&["consume", "a", "--partition", "0"]);
    assert!(message.contains("reading ") && message.contains(".seg failed at byte "), "{message}");
    assert!(message.contains("Input/output error"), "{message}");
    assert_eq!(server.page("/health").0, 200, "the process lives");
    server.kill();
    drive.power_up();
    let server = Server::start(&drive.path().join("data"), &MAPPED);
    assert_eq!(server.text(&["consume", "a", "--partition", "0"]), text);
    server.stop();
}

#[test]
fn a_server_whose_drive_loses_its_sectors_under_mappings_lives() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let (server, text) = start_with_sealed(root.path(), &drive);
    assert_eq!(server.text(&["consume", "a", "--partition", "0", "--count", "10000"]), text[..10_000_000]);
    assert!(mapped_reads(&server) > 0, "nothing was mapped");
    drive.lose_sectors();
    let (_, message) = server.refused(&["consume", "a", "--partition", "0", "--from", "15000"]);
    assert!(message.contains(".seg failed at byte ") && message.contains("Input/output error"), "{message}");
    assert_eq!(server.page("/health").0, 200, "the process lives");
    server.kill();
}

#[test]
fn a_log_is_deleted_while_its_segments_are_mapped_and_its_space_comes_back() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &MAPPED);
    server.run(&["log", "create", "a", "--partitions", "1"]);
    let file = root.path().join("much.txt");
    fs::write(&file, format!("{:0>998}\n", 1).repeat(40_000)).unwrap();
    server.run(&["produce", "a", "--ack", "durable", file.to_str().unwrap()]);
    server.run(&["consume", "a"]);
    server.run(&["log", "delete", "a"]);
    server.status_once("/partitions", |all| all.as_array().is_some_and(Vec::is_empty));
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while fs::read_dir(data.join("trash")).unwrap().next().is_some() {
        assert!(std::time::Instant::now() < until, "the files of a deleted log stay");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    server.stop();
}

#[test]
fn a_server_that_may_not_lock_memory_says_so_and_reads_with_direct_io() {
    let root = scratch();
    let mut command = std::process::Command::new("setpriv");
    // Without the right to ignore the limit, which root has, and with a limit that is just enough for the rings.
    command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", "--memlock=8388608:8388608"]);
    command.arg(dlog().get_program()).args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.args(MAPPED).arg("--data-dir").arg(root.path().join("data")).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        println!("SKIPPED: a limit on locked memory, which takes setpriv and prlimit of util-linux");
        return;
    };
    let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let lines = std::io::BufRead::lines(stdout).map_while(Result::ok);
    let mut warned = false;
    let ready = lines.inspect(|line| warned |= line.starts_with("warning    sealed segments are read with direct I/O"));
    let ready = ready.into_iter().any(|line| line.starts_with("ready"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(wait(&mut child).success());
    assert!(ready && warned, "ready: {ready}, warned: {warned}");
}

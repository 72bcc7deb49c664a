//! A real server with three copies of everything on three drives, under load while a drive fails, stops answering, is
//! replaced by an empty one, or all of them lose their power; and after each it dies of `kill -9`. What was
//! acknowledged as durable must be there in the end, once and in order, and while one drive is gone the others must go
//! on.
//!
//! `scripts/crash-loop --mode drives` runs many rounds; `PYRALOG_ROUNDS` says how many, `PYRALOG_SEED` which choices
//! are made. Each drive is an ext4 file system in a file. Only root can do that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use pyralog_engine::{runtime::sim::SimRandom, testing::history::Fault};
use serde_json::Value;

use crate::{
    power::Drive,
    support::{PATIENCE, Server, failed, scratch},
    workload::{LOG, Outcomes, PARTITIONS, Story, load, number, seed},
};

const DRIVES: usize = 3;
const DRIVE_BYTES: u64 = 1 << 30;

/// One of each calamity; `scripts/crash-loop` runs more.
const ROUNDS: u64 = 4;

/// How long partitions may be without a leader that can write. It takes `storage.drive_timeout_ms`, half a second, and
/// an election; here three cores share two CPUs with the clients, and with whatever else runs.
const MOVED_WITHIN: Duration = Duration::from_secs(5);

struct Host {
    drives: Vec<Drive>,
    story: std::sync::Arc<Story>,
    random: SimRandom,
}

impl Host {
    fn new(root: &Path, seed: u64) -> Option<Host> {
        let mut drives = Vec::new();
        for number in 0..DRIVES {
            let dir = root.join(number.to_string());
            fs::create_dir(&dir).unwrap();
            drives.push(Drive::of_size(&dir, DRIVE_BYTES)?);
        }
        Some(Host { drives, story: Story::new(), random: SimRandom::new(seed, 2000) })
    }

    fn start(&self) -> Server {
        let allowed = pyralog_tuning::cores::allowed().unwrap();
        let cores: Vec<_> = (0..DRIVES).map(|core| allowed[core % allowed.len()].to_string()).collect();
        let dirs: Vec<PathBuf> = self.drives.iter().map(|drive| drive.path().join("data")).collect();
        let cores = cores.join(",");
        let mut flags = vec!["--cores", &cores, "--set", "memory.requests=192MiB"];
        dirs[1..].iter().for_each(|dir| flags.extend(["--data-dir", dir.to_str().unwrap()]));
        Server::start(&dirs[0], &flags)
    }

    fn events(&self) -> usize {
        self.story.history().events().len()
    }

    /// Waits until every partition is led by a copy that is not on drive `gone`, and then until appends are
    /// acknowledged as durable again.
    fn until_moved(&self, server: &Server, gone: usize, what: &str) {
        let begun = Instant::now();
        let is_elsewhere =
            |partition: &Value| partition["leads"] == true && partition["core"].as_u64() != Some(gone as u64);
        server.status_once("/partitions", |all| all.as_array().unwrap().iter().all(is_elsewhere));
        let moved = begun.elapsed();
        let from = self.events();
        while Outcomes::of(&self.story.history(), from).durable == 0 {
            assert!(begun.elapsed() < PATIENCE, "nothing is acknowledged while drive {gone} {what}");
            thread::sleep(Duration::from_millis(1));
        }
        println!("drive {gone} {what}: led elsewhere after {moved:?}, durable acks after {:?}", begun.elapsed());
        assert!(begun.elapsed() < MOVED_WITHIN, "it took {:?}", begun.elapsed());
    }

    fn until_in_sync(&self, server: &Server) {
        let is_whole = |partition: &Value| partition["in_sync"] == DRIVES;
        server.status_once("/partitions", |all| all.as_array().unwrap().iter().all(is_whole));
    }

    /// A drive on which some partition is led.
    fn any_leading_drive(&mut self, server: &Server) -> usize {
        let partition = self.random.below(u64::from(PARTITIONS));
        let core = server.status_once(&format!("/partitions/{partition}/core"), Value::is_u64);
        // Core i is on drive i.
        core.as_u64().unwrap() as usize
    }

    fn pause(&mut self, millis_max: u64) {
        thread::sleep(Duration::from_millis(self.random.below(millis_max)));
    }

    /// One life of a server, or two, with a calamity in it.
    fn round(&mut self, round: u64) {
        let from = self.events();
        let server = self.start();
        if round == 0 {
            let copies = ["--replication-factor", "3", "--write-quorum", "2", "--read-quorum", "2"];
            let partitions = PARTITIONS.to_string();
            server.run(&[&["log", "create", LOG, "--partitions", &partitions][..], &copies].concat());
        }
        let end_load = load(&server.address, &self.story, self.random.next_u64());
        self.story.until_acknowledged(from);
        self.until_in_sync(&server);
        self.pause(500);
        let (drive, fault) =
            (self.any_leading_drive(&server), if round % 4 < 2 { Fault::PowerLoss } else { Fault::Kill });
        match round % 4 {
            0 => {
                self.drives[drive].cut();
                self.until_moved(&server, drive, "fails");
                self.pause(500);
                server.kill();
                self.drives[drive].power_up();
            }
            1 => {
                self.drives.iter().for_each(Drive::cut);
                server.kill();
                self.drives.iter().for_each(Drive::power_up);
            }
            2 => {
                let frozen = self.drives[drive].frozen();
                self.until_moved(&server, drive, "does not answer");
                thread::sleep(Duration::from_millis(self.random.below(1_000)));
                drop(frozen);
                self.until_in_sync(&server);
                server.kill();
            }
            _ => {
                server.kill();
                self.drives[drive].replace();
            }
        }
        end_load();
        self.story.history().fault(fault);
        if round % 4 == 3 {
            self.rebuild(drive);
        }
        println!("round {}: {}", round + 1, Outcomes::of(&self.story.history(), from));
    }

    /// A life of a server that finds drive `empty` replaced, and rebuilds it under load.
    fn rebuild(&mut self, empty: usize) {
        let (from, begun) = (self.events(), Instant::now());
        let server = self.start();
        assert_eq!(server.json("/status")["drives"][empty]["at_start"], "empty");
        let end_load = load(&server.address, &self.story, self.random.next_u64());
        self.until_in_sync(&server);
        server.status_once(&format!("/drives/{empty}/copies_rebuilding"), |copies| *copies == 0);
        println!("drive {empty} is replaced: rebuilt after {:?}", begun.elapsed());
        self.story.until_acknowledged(from);
        self.pause(500);
        server.kill();
        end_load();
        self.story.history().fault(Fault::Kill);
    }
}

#[test]
fn the_loss_of_any_drive_loses_nothing_and_stops_nothing() {
    let root = scratch();
    let seed = seed();
    let Some(mut host) = Host::new(root.path(), seed) else { return };
    let rounds = number("PYRALOG_ROUNDS").unwrap_or(ROUNDS);
    for round in 0..rounds {
        host.round(round);
    }
    let server = host.start();
    host.until_in_sync(&server);
    host.story.conclude(server, seed);
}

/// Runs a command until it succeeds, or says that it is done `already`: while a drive takes long to come back to
/// itself, a change may be made without anybody hearing of it.
fn until_done(server: &Server, command: &[&str], already: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let output = server.command(command).output().unwrap();
        if output.status.success() {
            return;
        }
        let (_, message) = failed(output);
        if message.contains(already) {
            return;
        }
        assert!(Instant::now() < until && message.contains("does not answer in time"), "{message}");
    }
}

#[test]
fn whoever_creates_or_deletes_logs_is_told_which_drive_does_not_answer_and_that_nothing_was_changed() {
    let root = scratch();
    let Some(host) = Host::new(root.path(), 1) else { return };
    let server = host.start();
    let copies = ["--replication-factor", "3", "--write-quorum", "2", "--read-quorum", "2"];
    let create = |name| [&["log", "create", name][..], &copies].concat();
    server.run(&create("a"));
    let commands: [&[&str]; 5] = [
        &["log", "create", "b"],
        &["log", "delete", "a"],
        &["log", "alter", "a", "--retention", "7d"],
        &["cores", "move", "a/0", "1"],
        &["cores", "release", "a/0"],
    ];
    for drive in &host.drives {
        let frozen = drive.frozen();
        let words = format!("the drive of {} does not answer in time", drive.path().join("data").display());
        // At once, since clients repeat them for some seconds.
        let begin = |command: &[&str]| {
            let mut command = server.command(command);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let told = commands.map(begin).map(|child| failed(child.wait_with_output().unwrap()));
        for (code, message) in told {
            assert!(code == 1 && message.contains(&words) && message.contains("nothing was changed"), "{message}");
        }
        drop(frozen);
        until_done(&server, &create("b"), "exists already");
        until_done(&server, &["log", "delete", "b"], "there is no log `default/b`");
    }
    assert!(server.text(&["log", "list"]).contains("default/a "));
    server.stop();
}

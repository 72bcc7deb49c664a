//! Partitions that go from core to core while clients write and read them, and the server dies meanwhile.

use std::{
    fs,
    io::Write,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use pyralog_engine::{runtime::sim::SimRandom, testing::history::Fault};

use super::{
    copies::cores,
    support::{PATIENCE, Server, dlog, scratch, wait},
    workload::{LOG, Outcomes, PARTITIONS, Story, load, seed},
};

/// Moves all partitions of a log from one core to the other and back until it is stopped. Gives how often.
struct Mover {
    stop: Arc<AtomicBool>,
    moves: Arc<AtomicU64>,
    task: thread::JoinHandle<()>,
}

impl Mover {
    fn start(address: &str, log: &'static str, partitions: u32) -> Mover {
        let (stop, moves) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, address) = (Arc::clone(&stop), Arc::clone(&moves), address.to_owned());
        let task = thread::spawn(move || {
            for round in 0.. {
                for partition in 0..partitions {
                    if stopped.load(Relaxed) {
                        return;
                    }
                    let (name, core) = (format!("{log}/{partition}"), ((round + partition) % 2).to_string());
                    let flags = ["--server", &address, "--timeout", "2", "cores", "move", &name, &core];
                    let moved = dlog().args(flags).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap();
                    counted.fetch_add(u64::from(moved.success()), Relaxed);
                }
            }
        });
        Mover { stop, moves, task }
    }

    /// Waits until so many were done.
    fn until(&self, moves: u64) {
        let until = Instant::now() + PATIENCE;
        while self.moves.load(Relaxed) < moves {
            assert!(Instant::now() < until, "only {} moves", self.moves.load(Relaxed));
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.task.join().unwrap();
        self.moves.load(Relaxed)
    }
}

#[test]
fn moves_of_single_copies_and_kills_break_no_promise() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let flags = ["--cores", &two];
    let (seed, story) = (seed(), Story::new());
    let mut random = SimRandom::new(seed, 2000);
    for round in 0..3 {
        let from = story.history().events().len();
        let server = Server::start(&data, &flags);
        if round == 0 {
            server.run(&["log", "create", LOG, "--partitions", &PARTITIONS.to_string()]);
        }
        let end_load = load(&server.address, &story, random.next_u64());
        let mover = Mover::start(&server.address, LOG, PARTITIONS);
        story.until_acknowledged(from);
        mover.until(20);
        if round == 0 {
            // Before anything failed: a move leaves nobody in doubt.
            end_load();
            mover.stop();
            let outcomes = Outcomes::of(&story.history(), from);
            assert!(outcomes.unknown == 0 && outcomes.refused > 0, "{outcomes}");
            server.stop();
            continue;
        }
        thread::sleep(Duration::from_millis(random.below(300)));
        server.kill();
        mover.stop();
        end_load();
        story.history().fault(Fault::Kill);
        println!("round {}: {}", round + 1, Outcomes::of(&story.history(), from));
    }
    story.conclude(Server::start(&data, &flags), seed);
}

fn numbered_lines(count: u64) -> Vec<u8> {
    (0..count).flat_map(|i| format!("line {i} {}\n", "x".repeat(80)).into_bytes()).collect()
}

/// Writes to what a process reads, for some seconds.
fn feed_slowly(process: &mut Child, lines: Vec<u8>) -> thread::JoinHandle<()> {
    let mut stdin = process.stdin.take().unwrap();
    thread::spawn(move || {
        for part in lines.chunks(lines.len() / 300) {
            stdin.write_all(part).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    })
}

#[test]
fn lines_go_on_in_order_while_their_partition_goes_back_and_forth() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let server = Server::start(&root.path().join("data"), &["--cores", &two]);
    server.run(&["log", "create", "lines", "--partitions", "1"]);
    let input = numbered_lines(100_000);
    let produce = ["produce", "lines", "--ack", "durable"];
    let mut writer = server.command(&produce).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mover = Mover::start(&server.address, "lines", 1);
    let feeding = feed_slowly(&mut writer, input.clone());
    mover.until(10);
    feeding.join().unwrap();
    assert!(wait(&mut writer).success());
    mover.stop();
    let stored = server.run(&["consume", "lines", "--from", "earliest"]);
    assert!(stored == input, "{} bytes came back of {}", stored.len(), input.len());
    server.stop();
}

#[test]
fn a_stream_of_lines_goes_on_in_order_while_its_partition_goes_back_and_forth_and_the_server_dies() {
    const LINES: u64 = 100_000;
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags = ["--cores", &two];
    let mut server = Server::start_at(&address, &data, &flags);
    server.run(&["log", "create", "lines", "--partitions", "1"]);
    let input = numbered_lines(LINES);
    let output = root.path().join("output");
    let count = LINES.to_string();
    let follow = ["--timeout", "2", "consume", "lines", "--partition", "0", "--follow", "--count", &count];
    let mut reader = server.command(&follow).stdout(fs::File::create(&output).unwrap()).spawn().unwrap();
    let produce = ["--timeout", "2", "produce", "lines", "--idempotent", "--ack", "durable"];
    let mut writer = server.command(&produce).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let feeding = feed_slowly(&mut writer, input.clone());
    let mover = Mover::start(&address, "lines", 1);
    mover.until(10);
    server.kill();
    let until = Instant::now() + PATIENCE;
    while UdpSocket::bind(&address).is_err() {
        assert!(Instant::now() < until, "the port of a dead server is never free");
    }
    server = Server::start_at(&address, &data, &flags);
    feeding.join().unwrap();
    assert!(wait(&mut writer).success());
    let moves = mover.stop();
    assert!(wait(&mut reader).success());
    println!("{moves} moves");
    let read = fs::read(&output).unwrap();
    assert!(read == input, "{} bytes were read of {}", read.len(), input.len());
    let stored = server.run(&["consume", "lines", "--from", "earliest"]);
    assert!(stored == input, "{} bytes came back of {}", stored.len(), input.len());
    server.stop();
}

#[test]
fn a_single_copy_is_moved_by_command_and_stays_there() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &["--cores", &two]);
    server.run(&["log", "create", "a", "--partitions", "1"]);
    server.feed(&["produce", "a"], b"one\n");
    for core in [1, 0, 1] {
        let text = server.text(&["cores", "move", "a/0", &core.to_string()]);
        assert_eq!(text, format!("partition 0 of default/a is on core {core}\n"));
        assert_eq!(server.json("/status")["partitions"][0]["core"], core);
        let cores: serde_json::Value = serde_json::from_slice(&server.run(&["--json", "cores", "list"])).unwrap();
        for field in ["leads", "pinned"] {
            assert_eq!([0, 1].map(|at: usize| cores[at][field].as_u64().unwrap()), [1 - core, core], "{field}");
        }
    }
    let counted =
        server.page("/metrics").1.lines().find(|line| line.starts_with("dlog_copies_moved_total")).map(String::from);
    assert!(counted.as_ref().is_some_and(|line| line.ends_with(" 2") || line.ends_with(" 3")), "{counted:?}");
    server.stop();
    let server = Server::start(&data, &["--cores", &two]);
    assert_eq!(server.json("/status")["partitions"][0]["core"], 1);
    assert_eq!(server.text(&["consume", "a"]), "one\n");
    let pinned = || {
        let described: serde_json::Value =
            serde_json::from_slice(&server.run(&["--json", "log", "describe", "a"])).unwrap();
        let said = server.text(&["log", "describe", "a"]).contains("`dlog cores release default/a/0`");
        assert_eq!(described["partitions"][0]["pinned"], said, "{described}");
        assert_eq!(server.json("/status")["partitions"][0]["pinned"], said);
        said
    };
    assert!(pinned());
    server.run(&["cores", "release", "a/0"]);
    assert!(!pinned());
    server.stop();
}

/// The sum of a metric over all cores.
fn metric(server: &Server, name: &str) -> u64 {
    let page = server.page("/metrics").1;
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

fn core_of(server: &Server, log: &str, partition: u64) -> u64 {
    let status = server.json("/status");
    let all = status["partitions"].as_array().unwrap();
    let one = all.iter().find(|one| one["log"] == log && one["partition"] == partition && one["leads"] == true);
    one.map_or(u64::MAX, |one| one["core"].as_u64().unwrap())
}

/// Does something while lines are written to two partitions of the log `a`; gives also how often `file` was written to
/// each.
fn under_load<T>(server: &Server, file: &Path, partitions: [u64; 2], something: impl FnOnce() -> T) -> (T, [u64; 2]) {
    let (address, file) = (&server.address, file.to_str().unwrap());
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let writers = partitions.map(|partition| {
            scope.spawn(move || {
                let mut rounds = 0;
                while !stop.load(Relaxed) {
                    let partition = partition.to_string();
                    let produce = ["--server", address, "produce", "a", "--partition", &partition, file];
                    assert!(dlog().args(produce).stdout(Stdio::null()).status().unwrap().success());
                    rounds += 1;
                }
                rounds
            })
        });
        let done = something();
        stop.store(true, Relaxed);
        (done, writers.map(|writer| writer.join().unwrap()))
    })
}

/// Waits until load has moved a partition.
fn until_moved(server: &Server) {
    let until = Instant::now() + PATIENCE;
    while metric(server, "dlog_balancing_moves_total") == 0 {
        assert!(Instant::now() < until, "nothing moves: {}", server.text(&["cores", "list"]));
        thread::sleep(Duration::from_millis(100));
    }
}

/// Flags of a server that spreads load soon, and a file of lines to make some.
fn soon_balanced<'a>(root: &Path, two: &'a str) -> (Vec<&'a str>, PathBuf) {
    let settings = ["balancing.busy_percent=2", "balancing.difference_percent=2", "balancing.period_ms=1000"];
    let flags = ["--cores", two].into_iter().chain(settings.into_iter().flat_map(|setting| ["--set", setting]));
    let file = root.join("input");
    fs::write(&file, format!("{}\n", "x".repeat(200)).repeat(20_000)).unwrap();
    (flags.collect(), file)
}

#[test]
fn what_was_moved_by_command_stays_there_through_a_restart_until_it_is_released() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let (flags, file) = soon_balanced(root.path(), &two);
    let server = Server::start(&data, &flags);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    for partition in ["a/0", "a/1"] {
        server.run(&["cores", "move", partition, "0"]);
    }
    server.stop();
    let server = Server::start(&data, &flags);
    under_load(&server, &file, [0, 1], || {
        // Several times the period after which load moves something.
        thread::sleep(Duration::from_secs(6));
        assert_eq!([0, 1].map(|partition| core_of(&server, "default/a", partition)), [0, 0]);
        assert_eq!(metric(&server, "dlog_balancing_moves_total"), 0);
        let text = server.text(&["cores", "release", "a/1"]);
        assert_eq!(text, "partition 1 of default/a may move by itself\n");
        until_moved(&server);
    });
    assert_eq!([0, 1].map(|partition| core_of(&server, "default/a", partition)), [0, 1]);
    let (code, message) = server.refused(&["cores", "release", "a/2"]);
    assert!(code == 1 && message.contains("2"), "{message}");
    server.stop();
}

#[test]
fn load_that_is_on_one_core_spreads_by_itself_and_every_line_is_there() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let (flags, file) = soon_balanced(root.path(), &two);
    let server = Server::start(&root.path().join("data"), &flags);
    server.run(&["log", "create", "a", "--partitions", "8"]);
    let crowded: Vec<u64> = (0..8).filter(|partition| core_of(&server, "default/a", *partition) == 0).collect();
    assert!(crowded.len() > 1, "all but {crowded:?} are on core 1");
    let (one, other) = (crowded[0], crowded[1]);
    let ((), written) = under_load(&server, &file, [one, other], || {
        until_moved(&server);
        thread::sleep(Duration::from_secs(2));
    });
    let now_on = [one, other].map(|partition| core_of(&server, "default/a", partition));
    assert!(now_on == [0, 1] || now_on == [1, 0], "{now_on:?}");
    assert_eq!(metric(&server, "dlog_balancing_moves_total"), 1, "one a minute");
    for (partition, rounds) in [one, other].into_iter().zip(written) {
        let latest = server.json("/status")["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|status| status["partition"] == partition)
            .map(|status| status["high_watermark"].as_u64().unwrap());
        assert_eq!(latest, Some(rounds * 20_000), "partition {partition}");
    }
    server.stop();
}

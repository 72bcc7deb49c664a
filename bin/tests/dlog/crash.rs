//! Real servers under load that die, again and again, of `kill -9` and of power cuts; in the end the judge of the
//! simulation decides whether a promise was broken.
//!
//! `scripts/crash-loop` runs many rounds; `PYRALOG_ROUNDS` says how many, `PYRALOG_SEED` which choices are made.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use pyralog_engine::{runtime::sim::SimRandom, testing::history::Fault};

use super::{
    power::Drive,
    support::{Server, scratch, serve},
    workload::{LOG, Outcomes, PARTITIONS, Story, load, number, seed},
};

/// In a run of all tests; `scripts/crash-loop` runs more.
const ROUNDS: u64 = 4;

/// Starts a server that dies while it recovers what the last one left. Gives whether it died before it was ready.
fn die_in_recovery(data: &Path, flags: &[&str], after: Duration, die: &mut impl FnMut(&mut dyn FnMut())) -> bool {
    let mut starting = serve(data, flags).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(starting.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The last thing it says before its cores start.
    assert!(lines.any(|line| line.starts_with("guarantee")), "a server does not even begin to start");
    thread::sleep(after);
    die(&mut || {
        starting.kill().unwrap();
        starting.wait().unwrap();
    });
    !lines.any(|line| line.starts_with("ready"))
}

/// Rounds of a server's life and death on the drive at `data`. `die` makes the fault happen around the death of a
/// process, which it is given; the drive is usable again afterwards.
fn rounds(data: &Path, fault: Fault, mut die: impl FnMut(&mut dyn FnMut())) {
    let rounds = number("PYRALOG_ROUNDS").unwrap_or(ROUNDS);
    let seed = seed();
    let mut random = SimRandom::new(seed, 1000);
    let story = Story::new();
    let one_core = pyralog_tuning::cores::allowed().unwrap()[0].to_string();
    let mut in_recovery = 0;
    for round in 0..rounds {
        let flags: &[&str] = if random.below(2) == 0 { &[] } else { &["--cores", &one_core] };
        if round % 4 == 3 {
            let after = Duration::from_millis(random.below(40));
            in_recovery += u64::from(die_in_recovery(data, flags, after, &mut die));
            story.history().fault(fault);
        }
        let from = story.history().events().len();
        let server = Server::start(data, flags);
        if round == 0 {
            server.run(&["log", "create", LOG, "--partitions", &PARTITIONS.to_string()]);
        }
        let end_load = load(&server.address, &story, random.next_u64());
        story.until_acknowledged(from);
        thread::sleep(Duration::from_millis(random.below(1500)));
        let mut server = Some(server);
        die(&mut || server.take().into_iter().for_each(Server::kill));
        end_load();
        // What was acknowledged before the fault is in the history by now.
        story.history().fault(fault);
        println!("round {}: {}", round + 1, Outcomes::of(&story.history(), from));
    }
    println!("{rounds} rounds, {in_recovery} more deaths before a server was ready");
    story.conclude(Server::start(data, &[]), seed);
}

#[test]
fn kills_break_no_promise() {
    let root = scratch();
    rounds(&root.path().join("data"), Fault::Kill, |kill| kill());
}

#[test]
fn power_cuts_break_no_promise() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let data: PathBuf = drive.path().join("data");
    rounds(&data, Fault::PowerLoss, |kill| {
        drive.cut();
        kill();
        drive.power_up();
    });
}

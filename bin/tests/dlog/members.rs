//! Copies of a log in use that are added and given up while clients write and read it, and the server dies meanwhile.

use std::{
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use pyralog_engine::{runtime::sim::SimRandom, testing::history::Fault};
use serde_json::Value;

use super::{
    copies::cores,
    support::{Server, dlog, scratch, wait},
    workload::{LOG, Outcomes, PARTITIONS, Story, load, seed},
};

/// The numbers of copies that a log goes through, from one on, on as many cores as there are.
fn steps() -> Option<(String, Vec<u8>)> {
    match cores(3) {
        Some(three) => Some((three, vec![2, 3, 2, 1, 2, 1])),
        None => cores(2).map(|two| (two, vec![2, 1, 2, 1])),
    }
}

fn alter(server: &Server, copies: u8) -> Child {
    let copies = copies.to_string();
    let args = ["--json", "log", "alter", LOG, "--replication-factor", &copies];
    server.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn copies_of(server: &Server) -> Vec<usize> {
    let shown: Value = serde_json::from_str(&server.text(&["--json", "log", "describe", LOG])).unwrap();
    let partitions = shown["partitions"].as_array().unwrap();
    partitions.iter().map(|partition| partition["replicas"].as_array().unwrap().len()).collect()
}

#[test]
fn copies_are_added_and_given_up_under_load_and_kills_and_no_promise_is_broken() {
    let Some((cores, steps)) = steps() else { return };
    let root = scratch();
    let data = root.path().join("data");
    let flags = ["--cores", &cores];
    let (seed, story) = (seed(), Story::new());
    let mut random = SimRandom::new(seed, 3000);
    let mut server = Server::start(&data, &flags);
    server.run(&["log", "create", LOG, "--partitions", &PARTITIONS.to_string(), "--replication-factor", "1"]);
    for (round, copies) in steps.into_iter().enumerate() {
        let from = story.history().events().len();
        let end_load = load(&server.address, &story, random.next_u64());
        story.until_acknowledged(from);
        let mut change = alter(&server, copies);
        if round % 2 == 1 {
            // In the middle of it, or soon after.
            thread::sleep(Duration::from_millis(random.below(400)));
            server.kill();
            change.kill().unwrap();
            wait(&mut change);
            end_load();
            story.history().fault(Fault::Kill);
            server = Server::start(&data, &flags);
            // It goes on by itself; whoever was not answered asks again.
            let end_load = load(&server.address, &story, random.next_u64());
            assert!(wait(&mut alter(&server, copies)).success());
            end_load();
        } else {
            assert!(wait(&mut change).success());
            end_load();
        }
        assert_eq!(copies_of(&server), vec![usize::from(copies); PARTITIONS as usize]);
        println!("{copies} copies: {}", Outcomes::of(&story.history(), from));
    }
    story.conclude(server, seed);
    let checked = dlog().args(["verify", "--compare"]).arg(&data).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn a_change_of_copies_is_shown_while_it_is_under_way_and_said_when_it_is_done() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let server = Server::start(&root.path().join("data"), &["--cores", &two]);
    server.run(&["log", "create", "a", "--partitions", "2", "--replication-factor", "1"]);
    let said = server.text(&["log", "alter", "a", "--replication-factor", "2", "--no-wait"]);
    assert!(said.contains("copies           2, write quorum 2, read quorum 1\n"), "{said}");
    assert!(said.contains("not everywhere yet: they were 1 with write quorum 1 and read quorum 1\n"), "{said}");
    let said = server.text(&["log", "alter", "a", "--replication-factor", "2"]);
    assert!(said.ends_with("the copies are what they are to be\n") || !said.contains("not everywhere"), "{said}");
    let shown: Value = serde_json::from_str(
        server.text(&["--json", "log", "alter", "a", "--write-quorum", "1"]).lines().last().unwrap(),
    )
    .unwrap();
    assert_eq!(shown["replication"]["write_quorum"], 1);
    assert_eq!(shown["former"], Value::Null);
    let described = server.text(&["log", "describe", "a"]);
    assert!(described.contains("copies           2, write quorum 1, read quorum 1\n"), "{described}");
    let (code, message) = server.refused(&["log", "alter", "a", "--replication-factor", "3"]);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("replication_factor 3 needs 3 cores"), "{message}");
    server.stop();
}

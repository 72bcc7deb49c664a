//! `dlog produce` as an idempotent producer, and on the condition that nobody else has written.

use std::{
    io::{Read, Write},
    net::UdpSocket,
    process::Stdio,
    thread,
    time::Instant,
};

use serde_json::Value;

use crate::support::{PATIENCE, Server, scratch, wait};

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Of the only partition; 0 until it is open.
fn high_watermark(server: &Server) -> u64 {
    server.json("/status")["partitions"][0]["high_watermark"].as_u64().unwrap_or_default()
}

#[test]
fn a_durable_produce_goes_on_through_kill_9_and_every_line_is_there_once_and_in_order() {
    const LINES: u64 = 200_000;
    let root = scratch();
    let data = root.path().join("data");
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut server = Server::start_at(&address, &data, &[]);
    server.run(&["log", "create", "lines", "--partitions", "1"]);
    let mut command =
        server.command(&["--json", "--timeout", "2", "produce", "lines", "--idempotent", "--ack", "durable"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input: Vec<u8> = (0..LINES).flat_map(|i| format!("line {i} {}\n", "x".repeat(80)).into_bytes()).collect();
    let (mut stdin, lines) = (child.stdin.take().unwrap(), input.clone());
    let feeding = thread::spawn(move || stdin.write_all(&lines));
    for round in 1..=2 {
        let until = Instant::now() + PATIENCE;
        while high_watermark(&server) < round * LINES / 4 {
            assert!(Instant::now() < until, "round {round}: only {} lines", high_watermark(&server));
        }
        server.kill();
        // The kernel gives the ring of a killed process up, and the socket with it, only after the process has ended.
        let until = Instant::now() + PATIENCE;
        while UdpSocket::bind(&address).is_err() {
            assert!(Instant::now() < until, "the port of a dead server is never free");
        }
        server = Server::start_at(&address, &data, &[]);
    }
    assert!(wait(&mut child).success());
    feeding.join().unwrap().unwrap();
    let mut summary = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut summary).unwrap();
    let summary = json(&summary);
    println!("{summary}");
    assert_eq!((&summary["records"], &summary["ack"]), (&LINES.into(), &"durable".into()));
    let stored = server.run(&["consume", "lines", "--from", "earliest"]);
    assert!(stored == input, "{} bytes came back of {}", stored.len(), input.len());
    server.stop();
}

#[test]
fn a_produce_that_expects_an_offset_writes_there_or_not_at_all() {
    let root = scratch();
    let server = Server::start(&root.path().join("data"), &[]);
    server.run(&["log", "create", "account", "--partitions", "2"]);
    let at = |offset: &'static str| ["produce", "account", "--partition", "1", "--expect-offset", offset];
    server.feed(&at("0"), b"opened\npaid in 5\n");
    let input = root.path().join("input");
    std::fs::write(&input, b"paid out 3\n").unwrap();
    let file = input.to_str().unwrap();
    let (code, message) = server.refused(&[&at("1")[..], &[file]].concat());
    assert_eq!(code, 1);
    assert!(message.contains("expects to get offset 1, but the next offset of the partition is 2"), "{message}");
    server.feed(&at("2"), b"paid out 3\n");
    assert_eq!(server.text(&["consume", "account", "--partition", "1", "--from", "earliest"]).lines().count(), 3);
    let (code, message) = server.refused(&["produce", "account", "--expect-offset", "0", file]);
    assert!(code == 2 && message.contains("--partition"), "{message}");
    server.stop();
}

#[test]
fn an_older_life_of_a_producer_is_shut_out() {
    let root = scratch();
    let server = Server::start(&root.path().join("data"), &[]);
    server.run(&["log", "create", "log", "--partitions", "1"]);
    let input = root.path().join("input");
    std::fs::write(&input, b"late\n").unwrap();
    let life = |epoch: &'static str| ["--json", "produce", "log", "--producer-id", "5", "--producer-epoch", epoch];
    let done = json(&server.feed(&life("7"), b"one\n"));
    assert_eq!((&done["records"], &done["duplicates"]), (&1.into(), &0.into()));
    let (code, message) = server.refused(&[&life("6")[..], &[input.to_str().unwrap()]].concat());
    assert!(code == 1 && message.contains("epoch 6 of producer 5 is over"), "{message}");
    server.feed(&life("8"), b"two\n");
    assert_eq!(server.text(&["consume", "log", "--from", "earliest"]), "one\ntwo\n");
    server.stop();
}

//! A real server whose drive fails or does not answer: what stops, what goes on, and what a restart finds.

use std::{process::Stdio, time::Instant};

use crate::{
    power::Drive,
    support::{PATIENCE, Server, scratch, wait},
};

/// A server with log `a` of two partitions, each with a durable record.
fn start(drive: &Drive, flags: &[&str]) -> Server {
    let server = Server::start(&drive.path().join("data"), flags);
    server.run(&["log", "create", "a", "--partitions", "3"]);
    for partition in ["0", "1", "2"] {
        server.feed(&["produce", "a", "--partition", partition, "--ack", "durable"], b"kept\n");
    }
    server
}

fn produce_fails(server: &Server, partition: &str) -> String {
    server.feed_refused(&["produce", "a", "--partition", partition, "--ack", "durable"], b"more\n").1
}

#[test]
fn a_failed_write_stops_its_partition_a_second_one_all_and_reads_go_on() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let server = start(&drive, &[]);
    drive.cut();
    let message = produce_fails(&server, "0");
    assert!(message.contains("whether the write was stored is not known: "), "{message}");
    assert!(message.contains("Input/output error"), "{message}");
    let message = produce_fails(&server, "0");
    assert!(message.contains("accepts no writes until the server is restarted: writing of "), "{message}");
    assert_eq!(server.json("/status")["drive"]["fenced"], 0);
    produce_fails(&server, "1");
    server.status_once("/drive/fenced", |fenced| *fenced == 1);
    let reason = server.status_once("/partitions/2/read_only", |reason| reason.is_string());
    assert!(reason.as_str().unwrap().starts_with("the drive failed twice: writing of "), "{reason}");
    let message = produce_fails(&server, "2");
    assert!(message.contains("the drive failed twice: "), "{message}");
    assert!(server.refused(&["log", "create", "b"]).1.contains("the drive failed twice: "));
    assert!(server.page("/metrics").1.contains("\ndlog_disk_fenced 1\n"));
    assert_eq!(server.text(&["consume", "a"]), "kept\nkept\nkept\n", "the newest records are read from memory");
    server.kill();
    drive.power_up();
    let server = Server::start(&drive.path().join("data"), &[]);
    assert_eq!(server.text(&["consume", "a"]), "kept\nkept\nkept\n");
    server.feed(&["produce", "a", "--partition", "0", "--ack", "durable"], b"more\n");
    server.stop();
}

#[test]
fn a_failed_sync_that_nobody_waited_for_stops_the_partition_too() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let server = start(&drive, &["--set", "storage.sync_interval_ms=3s"]);
    server.feed(&["produce", "a", "--partition", "1", "--ack", "written"], b"written\n");
    drive.cut();
    let reason = server.status_once("/partitions/1/read_only", |reason| reason.is_string());
    assert!(reason.as_str().unwrap().starts_with("fdatasync of "), "{reason}");
    assert!(server.json("/status")["partitions"][0]["read_only"].is_null(), "one fault is one partition's");
    server.kill();
    drive.power_up();
}

#[test]
fn sectors_that_cannot_be_read_are_an_error_and_what_is_in_memory_is_served() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let data = drive.path().join("data");
    let server = start(&drive, &[]);
    let file = root.path().join("much.txt");
    std::fs::write(&file, vec![b'x'; 20 << 20].chunks(999).collect::<Vec<_>>().join(&b'\n')).unwrap();
    server.run(&["produce", "a", "--partition", "0", "--ack", "durable", file.to_str().unwrap()]);
    server.stop();
    let server = Server::start(&data, &[]);
    server.feed(&["produce", "a", "--partition", "2", "--ack", "durable"], b"new\n");
    drive.lose_sectors();
    let (_, message) = server.refused(&["consume", "a", "--partition", "0"]);
    assert!(message.contains("reading ") && message.contains("Input/output error"), "{message}");
    assert_eq!(server.text(&["consume", "a", "--partition", "2", "--from", "1"]), "new\n");
    assert_eq!(server.page("/health").0, 200);
    server.kill();
}

#[test]
fn a_frozen_drive_is_waited_for_while_the_rest_goes_on_and_memory_is_bounded() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let server = start(&drive, &["--set", "memory.requests=64MiB"]);
    let file = root.path().join("much.txt");
    std::fs::write(&file, vec![b'x'; 60 << 20].chunks(999).collect::<Vec<_>>().join(&b'\n')).unwrap();
    let before = server.json("/status")["memory_usage_bytes"].as_u64().unwrap();
    drive.freeze();
    let produce = |partition| {
        let mut command =
            server.command(&["produce", "a", "--partition", partition, "--ack", "durable", file.to_str().unwrap()]);
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let mut producers = ["0", "1", "2", "0"].map(produce);
    server.status_once("/cores/0/counters/memory_reserved_bytes", |bytes| bytes.is_u64());
    let until = Instant::now() + std::time::Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(server.page("/health").0, 200);
        let memory = server.json("/status")["memory_usage_bytes"].as_u64().unwrap();
        assert!(memory < before + (200 << 20), "{memory} bytes, {before} before");
        assert_eq!(server.text(&["consume", "a", "--count", "3"]), "kept\nkept\nkept\n");
        assert!(
            producers.iter_mut().all(|child| child.try_wait().unwrap().is_none()),
            "acknowledged by a frozen drive"
        );
    }
    drive.thaw();
    assert!(until.elapsed() < PATIENCE);
    for producer in &mut producers {
        assert!(wait(producer).success());
    }
    let lines = server.run(&["consume", "a", "--partition", "1"]).split(|byte| *byte == b'\n').count();
    assert_eq!(lines, 1 + (60usize << 20).div_ceil(999), "all is there, once");
    server.stop();
}

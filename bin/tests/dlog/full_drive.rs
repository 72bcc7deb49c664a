//! A real server on a real drive that is full: it refuses in time, keeps its word, and goes on when there is room.

use crate::{
    power::Drive,
    support::{Server, scratch},
};

const MIB: u64 = 1 << 20;

fn is_full(server: &Server) -> bool {
    server.status_once("/drive/full", |full| full.is_u64()) == 1
}

fn until_full(server: &Server, full: u64) {
    server.status_once("/drive/full", |found| *found == full);
}

#[test]
fn a_full_drive_refuses_writes_serves_and_deletes_and_is_taken_again_when_there_is_room() {
    let root = scratch();
    let Some(drive) = Drive::of_size(root.path(), 400 * MIB) else { return };
    let server = Server::start(&drive.path().join("data"), &[]);
    server.run(&["log", "create", "a"]);
    server.feed(&["produce", "a", "--ack", "durable"], b"one\n");
    let status = server.json("/status");
    let reserve = status["drive"]["reserve_bytes"].as_u64().unwrap();
    assert!((15 * MIB..21 * MIB).contains(&reserve), "a small drive keeps a twentieth back, not {reserve}");
    assert!(!is_full(&server));

    drive.fill_up_to(reserve / 2);
    until_full(&server, 1);
    let (code, message) = server.feed_refused(&["produce", "a"], b"more\n");
    assert!(code == 1 && message.contains("is full; writes are refused until there is room ("), "{code}: {message}");
    assert!(message.contains("MiB are kept back"), "{message}");
    let (_, message) = server.refused(&["log", "create", "b"]);
    assert!(message.contains("is full"), "{message}");
    assert_eq!(server.text(&["consume", "a"]), "one\n");
    let metrics = server.page("/metrics").1;
    assert!(metrics.contains("\ndlog_disk_full 1\n") && metrics.contains(&format!("_reserve_bytes {reserve}\n")));

    drive.make_room();
    until_full(&server, 0);
    server.feed(&["produce", "a", "--ack", "durable"], b"two\n");
    assert_eq!(server.text(&["consume", "a"]), "one\ntwo\n");
    drive.fill_up_to(reserve / 2);
    until_full(&server, 1);
    server.run(&["log", "delete", "a"]);
    server.stop();
}

#[test]
fn what_was_received_before_the_drive_was_full_is_flushed_into_the_reserve_at_a_stop() {
    let root = scratch();
    let Some(drive) = Drive::of_size(root.path(), 400 * MIB) else { return };
    let data = drive.path().join("data");
    let slow = ["--profile", "latency", "--set", "storage.cache_config.max_buffer_time_ms=1min"];
    let server = Server::start(&data, &slow);
    server.run(&["log", "create", "a"]);
    server.feed(&["produce", "a", "--ack", "received"], b"kept\n");
    drive.fill_up_to(4 * MIB);
    until_full(&server, 1);
    server.stop();
    drive.make_room();
    let server = Server::start(&data, &[]);
    assert_eq!(server.text(&["consume", "a"]), "kept\n");
    server.stop();
}

#[test]
fn a_server_starts_on_a_drive_without_a_byte_left() {
    let root = scratch();
    let Some(drive) = Drive::of_size(root.path(), 400 * MIB) else { return };
    let data = drive.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    server.feed(&["produce", "a", "--partition", "0", "--ack", "durable"], b"one\n");
    server.kill();
    drive.fill();
    let server = Server::start(&data, &[]);
    let all = server.lines.join("\n");
    assert!(all.contains(&format!("warning    the file system of {} is full: ", data.display())), "{all}");
    assert_eq!(server.text(&["consume", "a"]), "one\n");
    let (_, message) = server.feed_refused(&["produce", "a", "--partition", "1"], b"more\n");
    assert!(message.contains("is full; writes are refused until there is room"), "{message}");
    drive.make_room();
    until_full(&server, 0);
    server.feed(&["produce", "a", "--partition", "0", "--ack", "durable"], b"two\n");
    server.feed(&["produce", "a", "--partition", "1", "--ack", "durable"], b"three\n");
    assert_eq!(server.text(&["consume", "a", "--partition", "0"]), "one\ntwo\n");
    server.stop();
}

#[test]
fn a_drive_that_refuses_though_it_says_that_it_has_room_loses_nothing() {
    let root = scratch();
    // The journal and the tables of ext4 take some of the room too.
    let Some(drive) = Drive::promising(root.path(), 1024 * MIB, 96 * MIB) else { return };
    let data = drive.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a"]);
    server.feed(&["produce", "a", "--ack", "durable"], b"one\n");
    let file = root.path().join("much.txt");
    std::fs::write(&file, vec![b'x'; 100 << 20].chunks(999).collect::<Vec<_>>().join(&b'\n')).unwrap();
    // The drive's answer comes at a write or at a sync, which says whether it may be repeated.
    let (_, message) = server.refused(&["produce", "a", "--ack", "durable", file.to_str().unwrap()]);
    assert!(message.contains("the drive of ") || message.contains("whether the write was stored is not"), "{message}");
    let acknowledged = message.split(" records acknowledged before").next().unwrap().rsplit(' ').next().unwrap();
    let acknowledged: usize = acknowledged.parse().unwrap_or(0);
    assert_eq!(server.text(&["consume", "a", "--count", "1"]), "one\n", "reads go on");
    assert_eq!(server.page("/health").0, 200);
    server.kill();
    drive.get_real();
    drive.power_up();
    let server = Server::start(&data, &[]);
    let lines = server.run(&["consume", "a"]).iter().filter(|byte| **byte == b'\n').count();
    assert!(lines > acknowledged, "{lines} records, {acknowledged} and one were acknowledged");
    server.feed(&["produce", "a", "--ack", "durable"], b"two\n");
    server.stop();
}

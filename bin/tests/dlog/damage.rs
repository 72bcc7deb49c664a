//! A real server over files that were damaged while it was away: it says what is wrong and where, serves what is right,
//! and never takes damage for the end of a log.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::support::{Server, scratch};

/// Lines of 1000 bytes; segments have 16 MiB, so these are three.
const LINES: usize = 40_000;
const PRODUCE: [&str; 7] = ["produce", "a", "--partition", "0", "--compression", "none", "--ack"];

/// A data directory with log `a`, whose partition 0 has three segments and partition 1 a record; and the segments of
/// the first.
fn written(root: &Path) -> (PathBuf, Vec<PathBuf>) {
    let data = root.join("data");
    let lines: Vec<u8> = (0..LINES).flat_map(|line| format!("{line:0>999}\n").into_bytes()).collect();
    let file = root.join("lines.txt");
    fs::write(&file, lines).unwrap();
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    server.run(&[&PRODUCE[..], &["durable", file.to_str().unwrap()]].concat());
    // One more by itself, which knows that all before it is durable.
    server.feed(&[&PRODUCE[..], &["durable"]].concat(), b"the last\n");
    server.feed(&["produce", "a", "--partition", "1", "--ack", "durable"], b"a neighbour\n");
    server.stop();
    let all = fs::read_dir(data.join("logs/default/a/0")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = all.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    segments.sort();
    assert_eq!(segments.len(), 3);
    (data, segments)
}

fn flip(file: &Path, position: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 4], position).unwrap();
}

fn base_of(segment: &Path) -> u64 {
    segment.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

fn line(number: u64) -> String {
    format!("{number:0>999}\n")
}

/// The record at `offset`.
fn record(server: &Server, offset: u64) -> String {
    server.text(&["consume", "a", "--partition", "0", "--from", &offset.to_string(), "--count", "1"])
}

/// Why the record at `offset` is not served.
fn refusal(server: &Server, offset: u64) -> String {
    server.refused(&["consume", "a", "--partition", "0", "--from", &offset.to_string(), "--count", "1"]).1
}

/// The records that the only damaged batch takes: the first and the last.
fn lost(data: &Path) -> (u64, u64) {
    let output = crate::support::dlog().args(["verify", "--json"]).arg(data).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{report:#}");
    (findings[0]["first_offset"].as_u64().unwrap(), findings[0]["last_offset"].as_u64().unwrap())
}

/// Why partition 0 takes no writes.
fn read_only(server: &Server) -> String {
    let (_, message) = server.feed_refused(&[&PRODUCE[..], &["durable"]].concat(), b"more\n");
    assert!(message.contains("accepts no writes until the server is restarted: "), "{message}");
    server.json("/status")["partitions"][0]["read_only"].as_str().unwrap().to_owned()
}

/// The other partition knows nothing of it.
fn neighbour_is_well(server: &Server) {
    assert!(server.text(&["consume", "a", "--partition", "1"]).starts_with("a neighbour\n"));
    server.feed(&["produce", "a", "--partition", "1", "--ack", "durable"], b"more\n");
}

#[test]
fn a_flipped_byte_in_a_sealed_segment_is_never_served_and_its_neighbours_are() {
    let root = scratch();
    let (data, segments) = written(root.path());
    let damaged = &segments[1];
    flip(damaged, 4096 + 6_000 * 1000);
    let (first, last) = lost(&data);
    assert!(first > base_of(damaged) && last < base_of(&segments[2]), "{first} to {last}");
    let server = Server::start(&data, &[]);
    for offset in [first, last] {
        let message = refusal(&server, offset);
        let words = format!("{} is damaged at byte ", damaged.display());
        assert!(message.contains(&words) && message.contains("checksum"), "{message}");
    }
    for offset in [0, base_of(damaged), first - 1, last + 1, base_of(&segments[2])] {
        assert_eq!(record(&server, offset), line(offset), "a neighbour is not served");
    }
    assert_eq!(record(&server, LINES as u64), "the last\n");
    let described = server.text(&["log", "describe", "a"]);
    let records = last - first + 1;
    let words = format!("partition 0, copy 0: 1 place from offset {first} ({records} records) damaged\n");
    assert!(described.contains(&words), "{described}");
    let known = &server.json("/status")["partitions"][0]["replicas"][0]["damaged"];
    assert_eq!(
        (&known["places"], &known["first_offset"], &known["records"]),
        (&1.into(), &first.into(), &records.into())
    );
    // What was sealed does not concern what is written next.
    server.feed(&[&PRODUCE[..], &["durable"]].concat(), b"more\n");
    neighbour_is_well(&server);
    server.stop();
}

#[test]
fn a_flipped_byte_in_the_last_segment_is_not_taken_for_its_end() {
    let root = scratch();
    let (data, segments) = written(root.path());
    let last = &segments[2];
    flip(last, 4096 + 2_000 * 1000);
    let (from, to) = lost(&data);
    let server = Server::start(&data, &[]);
    let reason = read_only(&server);
    assert!(reason.starts_with(&format!("{} is damaged at byte ", last.display())), "{reason}");
    assert!(reason.contains("(case C): ") && reason.ends_with("records up to 40000 were durable"), "{reason}");
    for offset in [from, to] {
        let message = refusal(&server, offset);
        assert!(message.contains("is damaged at byte "), "{message}");
    }
    for offset in [base_of(last), from - 1, to + 1] {
        assert_eq!(record(&server, offset), line(offset), "a neighbour is not served");
    }
    neighbour_is_well(&server);
    server.stop();
}

#[test]
fn a_last_segment_that_was_cut_off_is_served_up_to_its_last_whole_batch() {
    let root = scratch();
    let (data, segments) = written(root.path());
    let last = &segments[2];
    // Within a batch. What is left cannot know what followed it, so this is what a loss of power leaves too (case B).
    OpenOptions::new().write(true).open(last).unwrap().set_len(4096 + 5_000 * 1000).unwrap();
    let server = Server::start(&data, &[]);
    let end = server.json("/status")["partitions"][0]["high_watermark"].as_u64().unwrap();
    assert!((base_of(last) + 1..base_of(last) + 5_000).contains(&end), "{end}");
    assert_eq!(record(&server, end - 1), line(end - 1));
    server.feed(&[&PRODUCE[..], &["durable"]].concat(), b"more\n");
    assert_eq!(record(&server, end), "more\n");
    neighbour_is_well(&server);
    server.stop();
}

fn verify(data: &Path) -> String {
    let output = crate::support::dlog().arg("verify").arg(data).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_missing_segment_in_the_middle_is_an_error_for_its_records_only() {
    let root = scratch();
    let (data, segments) = written(root.path());
    let (from, to) = (base_of(&segments[1]), base_of(&segments[2]));
    fs::remove_file(&segments[1]).unwrap();
    let report = verify(&data);
    assert!(report.contains(&format!("records {from} to {} are in no segment", to - 1)), "{report}");
    let server = Server::start(&data, &[]);
    for offset in [0, from - 1, to, LINES as u64 - 1] {
        assert_eq!(record(&server, offset), line(offset), "the neighbours are served");
    }
    for offset in [from, (from + to) / 2, to - 1] {
        let message = refusal(&server, offset);
        assert!(message.contains("is damaged at byte "), "{message}");
    }
    server.feed(&[&PRODUCE[..], &["durable"]].concat(), b"more\n");
    neighbour_is_well(&server);
    server.stop();
}

#[test]
fn a_missing_last_segment_is_not_taken_for_the_end() {
    let root = scratch();
    let (data, segments) = written(root.path());
    fs::remove_file(&segments[2]).unwrap();
    let report = verify(&data);
    assert!(report.contains("is missing") && report.contains("case H"), "{report}");
    let server = Server::start(&data, &[]);
    let reason = read_only(&server);
    assert!(reason.contains("(case H): ") && reason.contains("is missing"), "{reason}");
    let end = base_of(&segments[2]);
    assert_eq!(record(&server, end - 1), line(end - 1));
    let message = refusal(&server, end + 1);
    assert!(message.contains("is missing") || message.contains("is out of range"), "{message}");
    neighbour_is_well(&server);
    server.stop();
}

#[test]
fn a_log_whose_only_segment_is_missing_is_not_taken_for_an_empty_one() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    for partition in ["0", "1"] {
        server.feed(&["produce", "a", "--partition", partition, "--ack", "durable"], b"a neighbour\n");
    }
    server.stop();
    let segment = data.join("logs/default/a/0/00000000000000000000.seg");
    fs::rename(&segment, root.path().join("kept")).unwrap();
    let report = verify(&data);
    assert!(report.contains("all its segments are missing") && report.contains("case H"), "{report}");
    let server = Server::start(&data, &[]);
    let (_, message) = server.feed_refused(&[&PRODUCE[..], &["durable"]].concat(), b"more\n");
    assert!(message.contains("(case H): all its segments are missing"), "{message}");
    assert!(refusal(&server, 0).contains("(case H): all its segments are missing"));
    neighbour_is_well(&server);
    server.stop();
    fs::rename(root.path().join("kept"), &segment).unwrap();
    let server = Server::start(&data, &[]);
    assert_eq!(record(&server, 0), "a neighbour\n");
    server.stop();
}

#[test]
fn a_missing_catalogue_beside_logs_is_not_taken_for_a_new_directory() {
    let root = scratch();
    let (data, _) = written(root.path());
    fs::rename(data.join("catalog.json"), root.path().join("kept")).unwrap();
    let (code, message) = crate::support::start_refused(crate::support::serve(&data, &[]));
    let words = "catalog.json is missing, but the folder `logs` beside it is not empty; restore it from a copy";
    assert!(code == 1 && message.contains(words), "{code}: {message}");
    fs::rename(root.path().join("kept"), data.join("catalog.json")).unwrap();
    let server = Server::start(&data, &[]);
    assert_eq!(record(&server, 7), line(7));
    server.stop();
}

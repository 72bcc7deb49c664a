//! Logs that give up records: by size, by age and by request, also when the process is killed; and what their settings
//! mean for compression.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::Value;

use crate::support::{PATIENCE, Server, dlog, scratch};

/// Looks often, so that no test waits.
const EAGER: [&str; 2] = ["--set", "storage.retention.check_interval_ms=20"];

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The first offset of partition 0, and the one after the last.
fn range(server: &Server, log: &str) -> (u64, u64) {
    let described = json(&server.run(&["--json", "log", "describe", log]));
    let partition = &described["partitions"][0];
    (partition["start_offset"].as_u64().unwrap(), partition["high_watermark"].as_u64().unwrap())
}

/// Asks until the answer will do. Each question is a process, so this does not spin.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what} never happens");
    }
}

/// Lines of a thousand bytes with their numbers.
fn lines(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(|number| format!("{number:0>999}\n").into_bytes()).collect()
}

fn files(data: &Path, suffix: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(data.join("logs/default/a/0")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == suffix)).collect()
}

fn verified_clean(data: &Path) {
    let output = dlog().arg("verify").arg(data).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_log_keeps_what_it_is_told_to_and_a_reader_of_what_is_gone_is_told_the_range() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &EAGER);
    server.run(&["log", "create", "a", "--retention-bytes", "1MiB"]);
    let mut written = 0;
    // What is sealed while the log is idle is given up when there is enough behind it.
    let (start, end) = until("the first segment's deletion", || {
        server.feed(&["produce", "a"], &lines(written..written + 1200));
        written += 1200;
        Some(range(&server, "a")).filter(|(start, _)| *start > 0)
    });
    assert_eq!(end, written);
    assert!(end - start >= 1000, "less than 1 MiB of records of 1000 bytes stay: {start} to {end}");
    let (code, message) = server.refused(&["consume", "a", "--from", "0"]);
    let (start, end) = range(&server, "a");
    let expected = format!("dlog: offset 0 is out of range: this partition has offsets {start} to {end}");
    assert!(code == 1 && message.starts_with(&expected), "{message}");
    let (_, refusal) = server.refused(&["--json", "consume", "a", "--from", "0"]);
    let details = &json(refusal.as_bytes())["details"];
    assert_eq!((&details["code"], &details["offset"], &details["end"]), (&204.into(), &0.into(), &end.into()));
    let first = server.text(&["consume", "a", "-n", "1"]);
    assert_eq!(first.trim().trim_start_matches('0').parse::<u64>().unwrap(), range(&server, "a").0);
    // Its files are gone too, in the end.
    until("the removal of the deleted segments", || files(&data, "del").is_empty().then_some(()));
    let kept: u64 = files(&data, "seg").iter().map(|file| fs::metadata(file).map_or(0, |known| known.len())).sum();
    assert!(kept < 16 << 20, "{kept} bytes");
    server.stop();
    verified_clean(&data);
}

#[test]
fn what_was_trimmed_stays_gone_after_a_kill() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a"]);
    server.feed(&["produce", "a", "--ack", "durable"], &lines(0..40_000));
    assert!(files(&data, "seg").len() > 2, "the test wants several segments");
    assert_eq!(
        server.text(&["log", "trim", "a/0", "--before", "30000"]),
        "partition 0 of default/a begins at offset 30000\n"
    );
    server.kill();

    let server = Server::start(&data, &[]);
    assert_eq!(range(&server, "a"), (30_000, 40_000));
    assert_eq!(server.run(&["consume", "a", "-n", "1"]), lines(30_000..30_001));
    let (_, message) = server.refused(&["consume", "a", "--from", "29999"]);
    assert!(message.contains("this partition has offsets 30000 to 40000"), "{message}");
    let (code, message) = server.refused(&["log", "trim", "a/0", "--before", "40001"]);
    assert!(code == 1 && message.contains("this partition has offsets 30000 to 40000"), "{message}");
    // Nothing changes what is gone already, and everything may go.
    assert_eq!(json(&server.run(&["--json", "log", "trim", "a/0", "--before", "5"]))["start_offset"], 30_000);
    assert_eq!(json(&server.run(&["--json", "log", "trim", "a/0", "--before", "latest"]))["start_offset"], 40_000);
    assert_eq!(server.text(&["consume", "a"]), "");
    server.kill();

    let server = Server::start(&data, &[]);
    assert_eq!(range(&server, "a"), (40_000, 40_000));
    server.feed(&["produce", "a", "--ack", "durable"], b"next\n");
    assert_eq!(server.text(&["consume", "a", "--output", "%o %s\\n"]), "40000 next\n");
    server.stop();
    verified_clean(&data);
}

#[test]
fn settings_change_while_a_log_is_in_use_and_one_that_nobody_writes_to_expires() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[&EAGER[..], &["--set", "storage.retention.max_age_ms=7d"]].concat());
    let created = json(&server.run(&["--json", "log", "create", "a", "--retention", "2d", "--compression", "zstd"]));
    assert_eq!((&created["retention_ms"], &created["compression"]), (&172_800_000.into(), &"zstd".into()));
    assert!(created["retention_bytes"].is_null());
    server.feed(&["produce", "a"], &lines(0..10));
    let altered = server.text(&["log", "alter", "a", "--retention", "unlimited", "--ack", "written"]);
    assert!(
        altered.contains("retention time   unlimited") && altered.contains("ack              written"),
        "{altered}"
    );
    let shown = server.text(&["log", "describe", "a"]);
    assert!(shown.contains("compression      zstd") && shown.contains("retention bytes  server's"), "{shown}");
    let (code, message) = server.refused(&["log", "alter", "a"]);
    assert!(code == 2 && message.contains("nothing is to change"), "{message}");
    let (code, message) = server.refused(&["log", "alter", "a", "--retention", "0"]);
    assert!(code == 1 && message.contains("at least 1"), "{message}");
    assert_eq!(range(&server, "a"), (0, 10));
    server.run(&["log", "alter", "a", "--retention", "1ms"]);
    until("the expiry of an idle log", || (range(&server, "a") == (10, 10)).then_some(()));
    server.kill();

    // The catalogue has it.
    let server = Server::start(&data, &EAGER);
    assert_eq!(range(&server, "a"), (10, 10));
    let described = json(&server.run(&["--json", "log", "describe", "a"]));
    assert_eq!((&described["retention_ms"], &described["ack"]), (&1.into(), &"written".into()));
    server.run(&["log", "alter", "a", "--retention", "server", "--compression", "producer"]);
    let described = json(&server.run(&["--json", "log", "describe", "a"]));
    assert!(described["retention_ms"].is_null() && described["compression"].is_null(), "{described}");
    server.stop();
    verified_clean(&data);
}

#[test]
fn a_producer_compresses_as_it_was_told_else_as_its_log_says_and_the_server_keeps_it_so() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a", "--compression", "lz4"]);
    for flags in [&[][..], &["--compression", "none"], &["--compression", "zstd"]] {
        server.feed(&[&["produce", "a"][..], flags].concat(), &lines(0..5));
    }
    assert_eq!(server.run(&["consume", "a"]), [lines(0..5), lines(0..5), lines(0..5)].concat());
    server.stop();
    let dumped = dlog().args(["--json", "dump", "--partition", "a/0"]).arg(&data).output().unwrap();
    let batches = dumped.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(json);
    let codecs: Vec<String> = batches.filter_map(|batch| batch["codec"].as_str().map(str::to_owned)).collect();
    assert_eq!(codecs, ["lz4", "none", "zstd"]);
}

#[test]
fn a_deleted_log_leaves_nothing_and_its_name_is_free_at_once() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    server.feed(&["produce", "a", "--partition", "0"], &lines(0..40_000));
    server.run(&["log", "delete", "a"]);
    server.run(&["log", "create", "a"]);
    server.feed(&["produce", "a"], b"new\n");
    assert_eq!(server.text(&["consume", "a"]), "new\n");
    let trash = data.join("trash");
    until("the removal of the old log", || fs::read_dir(&trash).unwrap().next().is_none().then_some(()));
    server.stop();
    verified_clean(&data);
}

//! `dlog verify` and `dlog dump` over what a real server wrote, whole and damaged.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::support::{Server, dlog, scratch};
use serde_json::Value;

/// Lines of 1000 bytes: 20 MiB and more are two segments.
const LINES: usize = 24_000;

fn lines() -> Vec<u8> {
    (0..LINES).flat_map(|line| format!("{line:0>999}\n").into_bytes()).collect()
}

/// A data directory with log `a`, whose partition 0 has a sealed and a last segment, and 1 an empty one; and the folder
/// of the first.
fn written(root: &Path) -> (PathBuf, PathBuf) {
    let data = root.join("data");
    let file = root.join("lines.txt");
    fs::write(&file, lines()).unwrap();
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    let produce = ["produce", "a", "--partition", "0", "--compression", "none", "--ack", "durable"];
    server.run(&[&produce[..], &[file.to_str().unwrap()]].concat());
    // One more by itself, which knows that all before it is durable.
    server.feed(&produce, b"the last\n");
    server.stop();
    let folder = data.join("logs/default/a/0");
    assert_eq!(segments(&folder).len(), 2);
    (data, folder)
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = all.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    segments.sort();
    segments
}

fn flip(file: &Path, position: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 4], position).unwrap();
}

fn verify(data: &Path, flags: &[&str]) -> (i32, Output) {
    let output = dlog().arg("verify").arg(data).args(flags).output().unwrap();
    (output.status.code().unwrap(), output)
}

/// The exit code and the report for machines.
fn report(data: &Path, flags: &[&str]) -> (i32, Value) {
    let (code, output) = verify(data, &[&["--json"][..], flags].concat());
    (code, serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}")))
}

/// The only finding of a directory that is damaged in one place.
fn only(data: &Path, flags: &[&str]) -> (i32, Value) {
    let (code, report) = report(data, flags);
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{report:#}");
    (code, findings[0].clone())
}

/// The batches of a segment file, as `dump` shows them.
fn batches(file: &Path) -> Vec<Value> {
    let output = dlog().args(["dump", "--json"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let all = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    all.map(|line| serde_json::from_slice::<Value>(line).unwrap()).filter(|line| line["type"] == "batch").collect()
}

#[test]
fn what_a_server_wrote_is_clean_and_what_is_damaged_in_sealed_segments_is_reported_and_left_alone() {
    let root = scratch();
    let (data, folder) = written(root.path());
    let (code, output) = verify(&data, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(code == 0 && text.ends_with("24001 intact records\nno damage\n"), "{code}: {text}");
    assert!(text.contains("checked 2 partitions, 3 segments"), "{text}");
    let (code, clean) = report(&data, &["--repair"]);
    assert_eq!((code, &clean["clean"], &clean["records"]), (0, &true.into(), &24_001.into()));
    let sealed = segments(&folder)[0].clone();
    let batch = batches(&sealed)[3].clone();
    let position = batch["position"].as_u64().unwrap();
    for (at, kind) in [(position + 500, "batch"), (position + 9, "bytes")] {
        flip(&sealed, at);
        let before = fs::read(&sealed).unwrap();
        let (code, found) = only(&data, &["--repair"]);
        assert_eq!((code, &found["kind"], &found["case"]), (1, &kind.into(), &"C".into()), "{found}");
        assert_eq!(found["file"], "logs/default/a/0/00000000000000000000.seg");
        assert_eq!((&found["position"], &found["first_offset"]), (&batch["position"], &batch["base_offset"]));
        assert_eq!((&found["repairable"], &found["repaired"]), (&false.into(), &false.into()));
        let last = batch["base_offset"].as_u64().unwrap() + batch["record_count"].as_u64().unwrap() - 1;
        assert_eq!(found["last_offset"], last);
        assert!(before == fs::read(&sealed).unwrap(), "a damaged sealed segment was changed");
        flip(&sealed, at);
    }
    flip(&sealed, 20);
    let (code, found) = only(&data, &[]);
    assert_eq!(
        (code, &found["kind"], &found["case"], &found["first_offset"]),
        (1, &"header".into(), &"E".into(), &0.into())
    );
    flip(&sealed, 20);
    fs::rename(&sealed, root.path().join("gone")).unwrap();
    fs::rename(sealed.with_extension("idx"), root.path().join("gone.idx")).unwrap();
    let (code, found) = only(&data, &["--repair"]);
    assert_eq!((code, &found["kind"], &found["first_offset"]), (1, &"chain".into(), &0.into()));
}

/// Where the last batch of a segment file begins.
fn last_batch(file: &Path) -> u64 {
    batches(file).last().unwrap()["position"].as_u64().unwrap()
}

#[test]
fn a_torn_tail_and_a_bad_index_are_repaired_strays_are_set_aside_and_then_it_is_served() {
    let root = scratch();
    let (data, folder) = written(root.path());
    let all = segments(&folder);
    // Of a group of two sectors the first never reached the drive.
    let torn = last_batch(&all[1]);
    let file = OpenOptions::new().write(true).open(&all[1]).unwrap();
    file.write_all_at(&[0; 512], torn).unwrap();
    file.write_all_at(b"PYR1 and so on", torn + 512).unwrap();
    let (code, found) = only(&data, &[]);
    assert_eq!((code, &found["kind"], &found["case"]), (1, &"torn-tail".into(), &"B".into()));
    assert_eq!((&found["repairable"], &found["repaired"]), (&true.into(), &false.into()));
    flip(&all[0].with_extension("idx"), 40);
    fs::write(folder.join("copy.seg"), "x").unwrap();
    fs::create_dir_all(data.join("logs/default/forgotten/0")).unwrap();
    fs::write(data.join("logs/default/forgotten/0/00000000000000000000.seg"), "precious").unwrap();
    let (code, before) = report(&data, &[]);
    assert_eq!((code, before["findings"].as_array().unwrap().len()), (1, 4), "{before:#}");
    let (code, output) = verify(&data, &["--repair"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(code, 0, "{text}");
    for words in ["cut off at byte", "written anew from its segment", "moved to set-aside/"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let aside = fs::read_dir(data.join("set-aside")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(aside.join("logs/default/a/0/copy.seg")).unwrap(), b"x");
    let kept = fs::read_dir(aside.join("logs/default/a/0")).unwrap().map(|entry| entry.unwrap().path());
    let cut_off =
        kept.filter(|path| path.display().to_string().contains(".seg.from-")).map(|path| fs::read(path).unwrap());
    let damaged = |bytes: Vec<u8>| bytes.windows(4).any(|word| word == b"PYR1");
    assert_eq!(cut_off.map(damaged).collect::<Vec<_>>(), [true], "what was cut off is not kept");
    let forgotten = aside.join("logs/default/forgotten/0/00000000000000000000.seg");
    assert_eq!(fs::read(forgotten).unwrap(), b"precious");
    assert_eq!(report(&data, &[]).0, 0);
    let server = Server::start(&data, &[]);
    assert!(server.run(&["consume", "a"]) == lines(), "not all came back");
    server.feed(&["produce", "a", "--partition", "0"], b"and it goes on\n");
    server.stop();
    assert_eq!(report(&data, &[]).0, 0);
}

#[test]
fn the_newest_group_may_have_been_acknowledged_so_it_is_copied_and_not_cut_off() {
    let root = scratch();
    let (data, folder) = written(root.path());
    let last = segments(&folder)[1].clone();
    flip(&last, last_batch(&last) + 85);
    let before = fs::read(&last).unwrap();
    let (code, output) = verify(&data, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(code == 1 && text.contains("nothing proves that it was not acknowledged as durable"), "{text}");
    assert!(text.contains("--repair would keep a copy of what stands from byte "), "{text}");
    let (code, found) = only(&data, &["--repair"]);
    assert_eq!((code, &found["kind"], &found["case"]), (1, &"torn-tail".into(), &"B".into()));
    assert_eq!((&found["repairable"], &found["repaired"]), (&false.into(), &false.into()));
    assert!(before == fs::read(&last).unwrap(), "something was cut off");
    let action = found["action"].as_str().unwrap();
    assert!(action.starts_with("nothing is cut off; a copy of what stands from byte "), "{action}");
    let (_, copy) = action.split_once(" is in ").unwrap();
    let position = found["position"].as_u64().unwrap() as usize;
    assert!(before[position..] == fs::read(data.join(copy)).unwrap(), "the copy is not what stands there");
    // The next start cuts it off.
    let server = Server::start(&data, &[]);
    assert!(server.run(&["consume", "a"]) == lines(), "not all came back");
    server.stop();
    assert_eq!(report(&data, &[]).0, 0);
}

#[test]
fn while_a_server_writes_rolls_and_deletes_verify_finds_nothing_wrong_and_says_what_it_leaves_out() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &["--set", "storage.retention.check_interval_ms=20"]);
    server.run(&["log", "create", "a", "--retention-bytes", "20MiB"]);
    let file = root.path().join("lines.txt");
    fs::write(&file, lines()).unwrap();
    let mut produce = server.command(&["produce", "a", "--compression", "none", file.to_str().unwrap()]);
    let done = AtomicBool::new(false);
    let checked = thread::scope(|scope| {
        scope.spawn(|| {
            let written = (0..4).all(|_| produce.output().unwrap().status.success());
            done.store(true, Ordering::Relaxed);
            assert!(written);
        });
        let mut checked = 0;
        while !done.load(Ordering::Relaxed) {
            let (code, found) = report(&data, &[]);
            let findings = found["findings"].as_array().unwrap();
            assert!(code == 0 && findings.iter().all(|finding| finding["harmless"] == true), "{found:#}");
            assert_eq!(found["last_segments_checked"], false);
            checked += found["segments"].as_u64().unwrap();
        }
        checked
    });
    assert!(checked > 0, "there was no sealed segment to check");
    let (code, output) = verify(&data, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(code == 0 && text.contains(": only sealed segments are checked, not the end of any partition"), "{text}");
}

#[test]
fn damage_below_the_durable_hint_is_left_as_it_is() {
    let root = scratch();
    let (data, folder) = written(root.path());
    let last = segments(&folder)[1].clone();
    let all = batches(&last);
    let victim = &all[all.len() - 2];
    flip(&last, victim["position"].as_u64().unwrap() + 200);
    let before = fs::read(&last).unwrap();
    let (code, found) = only(&data, &["--repair"]);
    assert_eq!((code, &found["case"], &found["repairable"]), (1, &"C".into(), &false.into()), "{found}");
    assert_eq!(found["first_offset"], victim["base_offset"]);
    assert!(before == fs::read(&last).unwrap(), "it was changed");
    let (_, output) = verify(&data, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("(case C)\n    not repairable: the records were durable"), "{text}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("damage was found in ") && message.ends_with(": 1 finding\n"), "{message}");
}

#[test]
fn under_a_running_server_the_sealed_segments_are_checked_and_nothing_is_repaired() {
    let root = scratch();
    let (data, folder) = written(root.path());
    flip(&segments(&folder)[0], 5000);
    let server = Server::start(&data, &[]);
    let (code, output) = verify(&data, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(code == 1 && text.contains(": only sealed segments are checked"), "{text}");
    assert!(text.contains("00000000000000000000.seg, byte 4096, records 0 to "), "{text}");
    let (code, output) = verify(&data, &["--repair"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(code == 2 && message.contains("nothing is repaired under it"), "{message}");
    server.stop();
}

#[test]
fn a_damaged_catalogue_is_reported_and_the_partitions_are_checked_all_the_same() {
    let root = scratch();
    let (data, folder) = written(root.path());
    flip(&data.join("catalog.json"), 90);
    let (code, found) = only(&data, &["--repair"]);
    assert_eq!((code, &found["kind"]), (1, &"catalog".into()));
    fs::remove_file(data.join("catalog.json")).unwrap();
    flip(&segments(&folder)[0], 5000);
    let (code, report) = report(&data, &[]);
    let kinds: Vec<_> = report["findings"].as_array().unwrap().iter().map(|found| found["kind"].clone()).collect();
    assert_eq!((code, kinds), (1, vec![Value::from("catalog"), Value::from("batch")]));
}

#[test]
fn what_is_no_data_directory_is_wrong_use() {
    let root = scratch();
    for path in [root.path().to_owned(), root.path().join("missing"), PathBuf::from("/proc/self/status")] {
        let (code, output) = verify(&path, &[]);
        assert_eq!(code, 2, "{output:?}");
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "it is left as it was");
}

#[test]
fn dump_shows_batches_records_and_damage() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "eu/a"]);
    server.feed(&["produce", "eu/a", "--compression", "zstd"], b"one\ntwo\n");
    server.feed(&["produce", "eu/a", "--ack", "durable"], b"three\n");
    server.kill();
    let shown = |flags: &[&str]| {
        let output = dlog().arg("dump").arg(&data).args(["--partition", "eu/a/0"]).args(flags).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = shown(&["--records"]);
    for words in ["offset 0, count 2", "offset 2, count 1", "server_crc ok, crc ok", "\"value\":\"three\"", "of zeros"]
    {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let types: Vec<Value> = shown(&["--records", "--json"])
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone())
        .collect();
    assert_eq!(types, ["segment", "batch", "record", "record", "batch", "record", "gap"]);
    let segment = data.join("logs/eu/a/0/00000000000000000000.seg");
    flip(&segment, 4096 + 82);
    flip(&segment, 4096 + 512 + 8);
    let text = shown(&[]);
    assert!(text.contains("crc BAD") && text.contains("without a batch"), "{text}");
    let output = dlog().args(["dump", "/proc/self/status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let output = dlog().arg("dump").arg(&data).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_consumer_is_told_which_records_are_damaged_and_goes_on_behind_them_only_if_asked_to() {
    let root = scratch();
    let (data, folder) = written(root.path());
    let files = segments(&folder);
    // A batch in the middle of the sealed segment, and one of the last, which is then fenced.
    let (sealed, last) = (batches(&files[0]), batches(&files[1]));
    let hit = [&sealed[sealed.len() / 2], &last[1]];
    let range = |batch: &Value| (batch["base_offset"].as_u64().unwrap(), batch["record_count"].as_u64().unwrap());
    for (file, batch) in files.iter().zip(hit) {
        flip(file, batch["position"].as_u64().unwrap() + 100);
    }
    let server = Server::start(&data, &[]);
    let consume = ["consume", "a", "--partition", "0"];
    let (first, count) = range(hit[0]);
    let stopped = server.command(&consume).output().unwrap();
    let message = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(stopped.status.code(), Some(1), "{message}");
    let all = lines();
    assert_eq!(stopped.stdout, all[..first as usize * 1000], "what is before the damage is served");
    assert!(message.contains(&format!("{} follows", first + count)), "{message}");

    let skipped = server.command(&[&consume[..], &["--skip-corrupt"]].concat()).output().unwrap();
    let message = String::from_utf8_lossy(&skipped.stderr).into_owned();
    assert_eq!(skipped.status.code(), Some(3), "{message}");
    let mut whole = all.clone();
    whole.extend(b"the last\n");
    for (first, count) in [range(hit[1]), range(hit[0])] {
        whole.drain(first as usize * 1000..(first + count) as usize * 1000);
        let said = format!("SKIPPED records {first} to {} of partition 0", first + count - 1);
        assert!(message.contains(&said), "{said}: {message}");
    }
    assert!(skipped.stdout == whole, "what is behind the damage is not all there: {message}");
    let partition = &server.json("/status")["partitions"][0];
    assert_eq!(partition["damages"].as_array().unwrap().len(), 2, "{partition:#}");
    assert!(server.page("/metrics").1.contains("dlog_damages_found_total 2"));
}

#[test]
fn the_scrub_finds_damage_that_nobody_reads() {
    let root = scratch();
    let (data, folder) = written(root.path());
    flip(&segments(&folder)[0], 1_000_000);
    let set = |key: &str| ["--set".to_owned(), format!("storage.scrub.{key}")];
    let flags: Vec<String> = [set("bytes_per_second=1GiB"), set("period_ms=1000")].concat();
    let server = Server::start(&data, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    let found = loop {
        let status = server.json("/status");
        let damages = status["partitions"][0]["damages"].as_array().unwrap().clone();
        if !damages.is_empty() {
            break damages;
        }
        assert!(std::time::Instant::now() < until, "{status:#}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(found.len(), 1);
    assert!(found[0]["file"].as_str().unwrap().ends_with("00000000000000000000.seg"), "{found:?}");
    assert!(found[0]["from"].as_u64() < found[0]["to"].as_u64(), "{found:?}");
    let (code, report) = report(&data, &[]);
    assert_eq!(
        (code, report["findings"][0]["kind"].as_str()),
        (1, Some("batch")),
        "verify beside the server: {report:#}"
    );
}

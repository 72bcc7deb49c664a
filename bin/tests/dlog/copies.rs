//! Partitions with several copies, as the operator meets them: what a profile gives on so many cores, what is said of
//! it, and that what was acknowledged is there whatever becomes of a copy.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use pyralog_engine::{
    record::{BatchHeader, ServerFields, check_stored_header, mark_producer, stamp},
    types::{LeaderEpoch, ProducerId, Sequence},
};
use serde_json::Value;

use crate::support::{Server, dlog, failed, sample_file, scratch, start_refused};

/// The first so many CPUs of this machine, for `--cores`; `None` if it has fewer.
pub fn cores(count: usize) -> Option<String> {
    let allowed = pyralog_tuning::cores::allowed().unwrap();
    (allowed.len() >= count).then(|| pyralog_tuning::cores::list(&allowed[..count]))
}

fn described(server: &Server, log: &str) -> Value {
    serde_json::from_slice(&server.run(&["--json", "log", "describe", log])).unwrap()
}

/// `field` of each copy of a partition.
fn of_copies<'a>(partition: &'a Value, field: &str) -> Vec<&'a Value> {
    partition["replicas"].as_array().unwrap().iter().map(|replica| &replica[field]).collect()
}

fn line<'a>(server: &'a Server, word: &str) -> &'a str {
    server.lines.iter().find(|line| line.starts_with(word)).unwrap_or_else(|| panic!("{:#?}", server.lines))
}

#[test]
fn what_two_copies_acknowledged_outlives_a_kill_and_a_core() {
    let (Some(one), Some(two)) = (cores(1), cores(2)) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let (path, bytes) = sample_file(root.path(), 20_000);
    let durability = |cores: &str| Server::start(&data, &["--profile", "durability", "--cores", cores]);
    let server = durability(&two);
    assert!(server.lines.len() <= 15, "{:#?}", server.lines);
    assert!(line(&server, "copies").contains("write quorum 2, read quorum 2: what is acknowledged survives"));
    assert!(line(&server, "guarantee").contains("on 2 of 2 copies"));
    assert!(line(&server, "warning").contains("asks for 5 copies of each partition"));
    let created = server.text(&["log", "create", "a", "--partitions", "2"]);
    assert_eq!(created, "created default/a with 2 partitions, 2 copies of each\n");
    server.run(&["produce", "a", path.to_str().unwrap()]);
    assert!(server.run(&["consume", "a"]) == bytes);
    let log = described(&server, "a");
    assert_eq!(log["replication"]["write_quorum"], 2);
    for partition in log["partitions"].as_array().unwrap() {
        let mut homes = of_copies(partition, "core");
        homes.sort_by_key(|core| core.as_u64());
        assert_eq!(homes, [0, 1], "{partition}");
        assert_eq!(partition["leads"], true);
        for held in of_copies(partition, "durable_offset") {
            assert_eq!(*held, partition["high_watermark"], "{partition}");
        }
    }
    let status = server.status_once("/isr_count", |count| *count == 2);
    assert_eq!(status, 2);
    for line in ["dlog_in_sync_replicas 4", "dlog_partitions_under_replicated 0", "dlog_partitions_without_leader 0"] {
        let page = server.page("/metrics").1;
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
    server.kill();

    let server = durability(&one);
    assert!(line(&server, "copies").starts_with("copies     one of each partition"));
    assert!(line(&server, "warning").contains("has 1 core, so replication_factor is 1"));
    assert!(server.run(&["consume", "a"]) == bytes, "not all came back");
    let partition = &described(&server, "a")["partitions"][0];
    assert_eq!(of_copies(partition, "core"), [0, 0], "the log has two copies, and both are on the core there is");
    server.feed(&["produce", "a", "--partition", "0"], b"and it goes on\n");
    assert_eq!(server.text(&["log", "create", "b"]), "created default/b with 1 partition\n");
    let text = server.text(&["log", "list"]);
    let numbers = |log: &str| {
        let row = text.lines().find(|line| line.starts_with(log)).unwrap();
        row.split_whitespace().skip(1).take(4).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((numbers("default/a"), numbers("default/b")), (words("2 2 2 2"), words("1 1 1 1")));
    server.stop();
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_copy_whose_files_are_gone_is_rebuilt_from_the_other() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let (path, bytes) = sample_file(root.path(), 20_000);
    let server = Server::start(&data, &["--cores", &two]);
    server.run(&["log", "create", "a", "--replication-factor", "2"]);
    server.run(&["produce", "a", path.to_str().unwrap()]);
    server.stop();
    // The one that led at first, and would again.
    fs::remove_dir_all(data.join("logs/default/a/0")).unwrap();

    let server = Server::start(&data, &["--cores", &two]);
    assert!(server.run(&["consume", "a"]) == bytes, "not all came back");
    let partition = server.status_once("/partitions/0", |partition| partition["in_sync"] == 2);
    assert_eq!(partition["replica"], 1, "the other one leads");
    assert_eq!(of_copies(&partition, "role"), ["follower", "leader"]);
    for held in of_copies(&partition, "durable_offset") {
        assert_eq!(*held, partition["high_watermark"], "{partition}");
    }
    let text = server.text(&["log", "describe", "a"]);
    assert!(text.contains("copies           2, write quorum 2, read quorum 1"), "{text}");
    let rows: Vec<_> = text.lines().skip_while(|line| !line.contains("ROLE")).skip(1).collect();
    assert_eq!(rows.len(), 2, "{text}");
    assert!(rows[0].contains(" follower ") && rows[0].ends_with("yes"), "{text}");
    assert!(rows[1].contains(" leader ") && rows[1].ends_with("yes"), "{text}");
    server.stop();
}

/// Makes the first batch of a copy's segment another one of this epoch, with the same offsets and as intact.
fn forge(segment: &Path, epoch: impl Fn(u32) -> u32) {
    let mut bytes = fs::read(segment).unwrap();
    let header = check_stored_header(&bytes[4096..]).unwrap();
    let place = 4096..4096 + header.batch_len();
    let batch = Bytes::copy_from_slice(&bytes[place.clone()]);
    let mut other = mark_producer(batch, ProducerId(77), 1, Sequence(0)).to_vec();
    let BatchHeader { base_offset, durable_hint, incarnation, leader_epoch, .. } = header;
    let leader_epoch = LeaderEpoch(epoch(leader_epoch.0));
    stamp(&mut other, ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
    bytes[place].copy_from_slice(&other);
    fs::write(segment, bytes).unwrap();
}

#[test]
fn copies_that_differ_where_they_must_not_are_found_offline() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let (path, _) = sample_file(root.path(), 20_000);
    let server = Server::start(&data, &["--cores", &two]);
    server.run(&["log", "create", "a", "--partitions", "2", "--replication-factor", "2"]);
    server.run(&["log", "create", "b"]);
    server.run(&["produce", "a", "--partition", "0", path.to_str().unwrap()]);
    server.stop();
    let compare = || {
        let output = dlog().args(["--json", "verify", "--compare"]).arg(&data).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (output.status.code().unwrap(), report)
    };
    let (code, report) = compare();
    assert_eq!((code, &report["partitions_compared"], &report["clean"]), (0, &2.into(), &true.into()), "{report:#}");

    // Both are intact, and nothing but the comparison can tell.
    let (ours, theirs) = ("logs/default/a/0/00000000000000000000.seg", "logs/default/a/0.1/00000000000000000000.seg");
    let right = fs::read(data.join(theirs)).unwrap();
    let differences = |report: &Value| {
        let is_one = |found: &&Value| ["diverges", "unsettled"].iter().any(|kind| found["kind"] == *kind);
        report["findings"].as_array().unwrap().iter().filter(is_one).cloned().collect::<Vec<_>>()
    };
    for epoch in [0, 1] {
        fs::write(data.join(theirs), &right).unwrap();
        forge(&data.join(theirs), |own| own + epoch);
        let (code, report) = compare();
        let [found] = &differences(&report)[..] else { panic!("{report:#}") };
        assert_eq!((code, &found["kind"], &found["file"]), (1, &"diverges".into(), &ours.into()), "{report:#}");
        assert_eq!((&found["first_offset"], &found["position"]), (&0.into(), &4096.into()), "{report:#}");
        assert!(found["reason"].as_str().unwrap().contains(theirs), "{report:#}");
    }
    // Of another epoch it may stand there for as long as not both know what is final.
    fs::remove_file(data.join("logs/default/a/0.1/ballot")).unwrap();
    let report = compare().1;
    let [found] = &differences(&report)[..] else { panic!("{report:#}") };
    assert_eq!((&found["kind"], &found["harmless"]), (&"unsettled".into(), &true.into()), "{report:#}");
}

#[test]
fn a_partition_that_nobody_can_lead_says_so_and_the_others_go_on() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &["--cores", &two]);
    server.run(&["log", "create", "a", "--partitions", "2", "--replication-factor", "2", "--write-quorum", "1"]);
    server.stop();
    fs::remove_dir_all(data.join("logs/default/a/0")).unwrap();

    let server = Server::start(&data, &["--cores", &two]);
    // Nobody knows what only the lost copy had.
    let partition = server.status_once("/partitions/0", |partition| partition["leads"] == false);
    assert_eq!(of_copies(&partition, "in_sync"), [false, false]);
    assert_eq!(of_copies(&partition, "role")[0], "rebuilding");
    assert_eq!(server.json("/status")["isr_count"], 0);
    let page = server.page("/metrics").1;
    assert!(page.contains("\ndlog_partitions_without_leader 1\n"), "{page}");
    let text = server.text(&["log", "describe", "a"]);
    assert_eq!(text.lines().filter(|line| line.ends_with("none of its copies leads")).count(), 1, "{text}");
    let since = Instant::now();
    let (code, message) = server.feed_refused(&["produce", "a", "--partition", "0"], b"x\n");
    assert!(code == 1 && message.contains("is led by nobody at the moment; try again"), "{message}");
    assert!(since.elapsed() > Duration::from_secs(4), "it did not try again: nothing stood behind the batch");
    server.feed(&["produce", "a", "--partition", "1"], b"y\n");
    assert_eq!(server.text(&["consume", "a", "--partition", "1"]), "y\n");
    server.stop();
}

#[test]
fn an_operator_who_accepts_the_loss_gets_a_leader_and_is_told_before_what_it_may_cost() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let (path, bytes) = sample_file(root.path(), 5_000);
    let server = Server::start(&data, &["--cores", &two]);
    server.run(&["log", "create", "a", "--replication-factor", "2", "--write-quorum", "1"]);
    server.run(&["produce", "a", path.to_str().unwrap()]);
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 2);
    let (code, message) = server.refused(&["recover", "a/0", "--accept-data-loss"]);
    assert!(code == 1 && message.contains("leads the partition: there is nothing to recover"), "{message}");
    let (code, message) = server.refused(&["recover", "a/0"]);
    assert!(code == 1 && message.contains("leads: there is nothing to recover"), "{message}");
    assert!(server.refused(&["recover", "a/1"]).1.contains("has partitions 0 to 0, not 1"));
    server.stop();
    fs::remove_dir_all(data.join("logs/default/a/0")).unwrap();

    let server = Server::start(&data, &["--cores", &two]);
    let output = server.command(&["recover", "a/0"]).output().unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "nobody leads partition 0 of default/a: of 2 copies with write quorum 1, 2 that have their memory must",
        "copy 1 would lead, with the records before offset 5000:",
        "what was acknowledged and only copy 0 had is lost: nobody knows what that was",
    ] {
        assert!(said.contains(words), "{words} is missing in\n{said}");
    }
    let (_, message) = failed(output);
    assert!(message.contains("nothing was done") && message.contains("add --accept-data-loss"), "{message}");
    assert!(server.refused(&["recover", "a/0", "--copy", "4", "--accept-data-loss"]).1.contains("there is no copy 4"));
    assert!(server.page("/metrics").1.contains("\ndlog_forced_leaders_total 0\n"));

    let said = server.text(&["recover", "a/0", "--accept-data-loss"]);
    assert!(said.contains("copy 1 leads from now on, with the records before offset 5000:"), "{said}");
    assert!(server.run(&["consume", "a"]) == bytes, "not all came back");
    server.feed(&["produce", "a"], b"and it goes on\n");
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 2);
    assert!(server.page("/metrics").1.contains("\ndlog_forced_leaders_total 1\n"));
    server.stop();

    let server = Server::start(&data, &["--cores", &two]);
    let text = server.text(&["log", "describe", "a"]);
    assert!(text.contains("\npartition 0: an operator accepted the loss of records in epoch "), "{text}");
    assert!(server.json("/status")["partitions"][0]["forced_epoch"].as_u64().unwrap() > 0);
    server.stop();
}

#[test]
fn more_copies_than_cores_are_refused_with_the_arithmetic() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let server = Server::start(&root.path().join("data"), &["--cores", &two]);
    for (flags, code, words) in [
        (
            &["--replication-factor", "3"][..],
            1,
            "replication_factor 3 needs 3 cores, one for each copy; this server has 2",
        ),
        (
            &["--replication-factor", "2", "--write-quorum", "3"],
            1,
            "the write quorum is 1 to 2, the number of replicas",
        ),
        (&["--replication-factor", "2", "--read-quorum", "0"], 1, "the read quorum is 1 to 2"),
        (&["--replication-factor", "9"], 2, "9 is not in 1..=8"),
        (&["--write-quorum", "2"], 2, "--replication-factor <N>"),
    ] {
        let (got, message) = server.refused(&[&["log", "create", "a"][..], flags].concat());
        assert_eq!(got, code, "{message}");
        assert!(message.contains(words), "{message}");
    }
    assert!(server.text(&["log", "list"]).contains("there are no logs"));
    server.run(&["log", "create", "a", "--replication-factor", "2", "--write-quorum", "1"]);
    let log = described(&server, "a");
    assert_eq!((&log["replication"]["write_quorum"], &log["replication"]["read_quorum"]), (&1.into(), &1.into()));
    server.stop();
}

#[test]
fn every_profile_starts_on_two_cores_and_on_one_and_says_what_it_guarantees_there() {
    let root = scratch();
    for (count, profile, numbers, losses) in [
        (2, "latency", "write quorum 1, read quorum 1", "asynchronous: "),
        (2, "throughput", "write quorum 1, read quorum 1", "asynchronous: "),
        (2, "durability", "write quorum 2, read quorum 2", "survives the loss of any 1 of them"),
        (1, "latency", "one of each partition", "is lost"),
        (1, "throughput", "one of each partition", "is lost"),
        (1, "durability", "one of each partition", "is lost"),
    ] {
        let Some(cores) = cores(count) else { continue };
        let server =
            Server::start(&root.path().join(format!("{profile}-{count}")), &["--profile", profile, "--cores", &cores]);
        let said = line(&server, "copies");
        assert!(said.contains(numbers) && said.contains(losses), "{said}");
        let warned = line(&server, "warning");
        assert!(warned.contains(&format!("so replication_factor is {count}, ")), "{warned}");
        assert_eq!(server.json("/status")["copies"], said.trim_start_matches("copies").trim());
        server.run(&["log", "create", "a"]);
        server.feed(&["produce", "a"], b"x\n");
        assert_eq!(server.text(&["consume", "a"]), "x\n");
        assert_eq!(described(&server, "a")["partitions"][0]["replicas"].as_array().unwrap().len(), count);
        server.stop();
    }
}

#[test]
fn a_check_of_a_file_says_what_its_copies_guarantee_on_the_cores_that_it_names() {
    let root = scratch();
    let file = root.path().join("dlog.json");
    let check = |cores: &str, quorum: &str| {
        let text = format!("{{\"server\": {{\"cores\": \"{cores}\"}}, \"replication\": {{\"quorum\": {{{quorum}}}}}}}");
        fs::write(&file, text).unwrap();
        dlog().args(["config", "check", file.to_str().unwrap()]).output().unwrap()
    };
    let output = check("0-4", "\"replication_factor\": 3");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("acknowledged when quorum") && said.contains("copies: 3 of each partition"), "{said}");
    assert!(said.contains("writes go on with any 1 missing; reads are not linearizable (R + W <= N: 1 + 2 <= 3)"));
    let (code, message) = failed(check("0,1", "\"replication_factor\": 3"));
    let words = "dlog.json:1: `replication.quorum.replication_factor` is 3, which cannot be honoured: it needs 3 \
                 cores, one for each copy; this server has 2";
    assert!(code == 2 && message.contains(words), "{message}");
    refused_without_touching(&root.path().join("data"));
}

fn refused_without_touching(data: &Path) {
    let Some(one) = cores(1) else { return };
    let flags = ["--cores", &one, "--set", "replication.quorum.replication_factor=2"];
    let (code, message) = start_refused(crate::support::serve(data, &flags));
    assert!(code == 2 && message.contains("it needs 2 cores, one for each copy; this server has 1"), "{message}");
    assert!(!data.exists(), "it touched the disk");
}

#[test]
fn a_partition_is_led_by_the_core_that_the_operator_names() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &["--cores", &two]);
    server.run(&["log", "create", "a", "--replication-factor", "2"]);
    let (mut written, mut last) = (String::new(), 0);
    for round in 0..6 {
        let core = round % 2;
        let text = server.text(&["cores", "move", "a/0", &core.to_string()]);
        assert!(
            text.starts_with("partition 0 of default/a is led by copy ") && text.contains(&format!(" core {core}, "))
        );
        let partition = &described(&server, "a")["partitions"][0];
        assert_eq!(partition["core"], core);
        let epoch = partition["epoch"].as_u64().unwrap();
        assert!(epoch >= last, "{partition}");
        last = epoch;
        let line = format!("round {round}\n");
        server.feed(&["produce", "a"], line.as_bytes());
        written += &line;
        assert_eq!(server.text(&["consume", "a"]), written);
    }
    let (code, message) = server.refused(&["cores", "move", "a/0", "7"]);
    assert!(code == 1 && message.contains("there is no core 7; there are 0 to 1"), "{message}");
    server.stop();
    let server = Server::start(&data, &["--cores", &two]);
    server.status_once("/partitions/0", |partition| partition["leads"] == true && partition["core"] == 1);
    server.stop();
}

#[test]
fn the_cores_are_listed_with_what_they_lead_and_follow() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &["--cores", &two]);
    server.run(&["log", "create", "a", "--replication-factor", "2", "--partitions", "3"]);
    (0..3).for_each(|partition| drop(server.run(&["cores", "move", &format!("a/{partition}"), "1"])));
    server.run(&["log", "create", "b"]);
    let listed: Value = serde_json::from_slice(&server.run(&["--json", "cores", "list"])).unwrap();
    let of = |field: &str| [0, 1].map(|core: usize| listed[core][field].as_u64().unwrap());
    assert_eq!(of("core"), [0, 1]);
    let (leads, follows) = (of("leads"), of("follows"));
    assert_eq!((leads[0] + leads[1], follows), (4, [3, 0]), "{listed}");
    assert_eq!(of("write_requests_per_s"), [0, 0]);
    let text = server.text(&["cores", "list"]);
    let rows: Vec<_> = text.lines().skip(1).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.ends_with(data.to_str().unwrap())), "{text}");
    server.stop();
}

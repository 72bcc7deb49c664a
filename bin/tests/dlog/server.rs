//! The server as a process: how it starts, what it refuses, what it says, how it dies and comes back.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use crate::support::{Server, dlog, failed, sample_file, scratch, serve, start_refused};
use nix::sys::signal::Signal;

#[test]
fn starting_says_on_what_it_stands_and_what_it_promises_in_fifteen_lines() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &["--profile", "latency"]);
    assert!(server.lines.len() <= 15, "{:#?}", server.lines);
    let all = server.lines.join("\n");
    for word in ["cores  ", "data  ", "memory  ", "profile    latency: ", "ack        received", "guarantee  "] {
        assert!(all.contains(word), "{word} is missing in\n{all}");
    }
    assert!(all.contains("within 1 ms or once 8 MiB wait, and is synced within 100 ms"), "{all}");
    assert!(all.contains("warning    profile latency asks for 3 copies"), "{all}");
    server.stop();
}

#[test]
fn what_was_acknowledged_as_durable_survives_a_kill_and_another_number_of_cores() {
    let root = scratch();
    let data = root.path().join("data");
    let (path, bytes) = sample_file(root.path(), 60_000);
    let cores = pyralog_tuning::cores::allowed().unwrap();
    let one = cores[0].to_string();
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a", "--partitions", "3"]);
    server.run(&["produce", "a", "--ack", "durable", path.to_str().unwrap()]);
    server.kill();
    for flags in [&["--cores", &one][..], &[]] {
        let server = Server::start(&data, flags);
        assert!(server.run(&["consume", "a"]) == bytes, "not all came back with {flags:?}");
        server.kill();
    }
    let server = Server::start(&data, &["--cores", &one]);
    server.feed(&["produce", "a", "--partition", "0"], b"and it goes on\n");
    // The partition may hold the sample too, which is no text.
    assert!(server.run(&["consume", "a", "--partition", "0"]).ends_with(b"and it goes on\n"));
    server.stop();
}

#[test]
fn a_stop_keeps_what_was_acknowledged_only_from_memory_and_exits_with_0() {
    let root = scratch();
    let data = root.path().join("data");
    let slow = ["--set", "storage.cache_config.max_buffer_time_ms=1min", "--set", "storage.sync_interval_ms=1min"];
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Server::start(&data, &[&["--profile", "latency"][..], &slow].concat());
        if server.json("/status")["partitions"].as_array().unwrap().is_empty() {
            server.run(&["log", "create", "a"]);
        }
        server.feed(&["produce", "a", "--ack", "received"], format!("{signal}\n").as_bytes());
        server.signal(signal);
        let (code, lines) = server.ended();
        assert_eq!((code, lines.last().map(String::as_str)), (0, Some("stopped")), "{lines:#?}");
    }
    let server = Server::start(&data, &[]);
    assert_eq!(server.text(&["consume", "a"]), "SIGTERM\nSIGINT\n");
    server.stop();
}

#[test]
fn the_pages_say_how_it_is() {
    let root = scratch();
    let server = Server::start(&root.path().join("data"), &["--profile", "throughput"]);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    server.feed(&["produce", "a", "--partition", "1"], b"x\ny\nz\n");
    server.run(&["consume", "a"]);
    assert_eq!(server.page("/health"), (200, "{\"status\":\"ok\"}".to_owned()));
    assert_eq!(server.page("/nowhere").0, 404);
    let status = server.json("/status");
    assert_eq!((&status["profile"], &status["ack"]), (&"throughput".into(), &"received".into()));
    assert!(status["guarantee"].as_str().unwrap().starts_with("an acknowledged record is in memory"));
    let partition = &status["partitions"][1];
    for (key, value) in [("start_offset", 0), ("high_watermark", 3), ("log_end_offset", 3), ("partition", 1)] {
        assert_eq!(partition[key], value, "{key} in {partition}");
    }
    assert_eq!(partition["log"], "default/a");
    let owner = partition["core"].as_u64().unwrap() as usize;
    assert_eq!(status["cores"][owner]["counters"]["writes"], 3);
    assert_eq!(status["config"]["storage"]["segment_config"]["max_size"], 16 << 20);
    for name in [
        "write_latency_p50",
        "write_latency_p99",
        "write_latency_p999",
        "write_throughput_bytes_per_sec",
        "write_throughput_ops_per_sec",
        "read_throughput_bytes_per_sec",
        "cpu_usage_percent",
        "memory_usage_bytes",
        "disk_io_ops_per_sec",
        "network_bandwidth_mbps",
        "replication_lag_ms",
        "isr_count",
        "epoch_number",
    ] {
        assert!(status.get(name).is_some(), "{name} is missing");
    }
    let metrics = server.page("/metrics").1;
    for line in [
        "dlog_writes_total 3",
        "dlog_write_duration_seconds_bucket{le=\"+Inf\"} 1",
        "dlog_write_duration_seconds_count 1",
        "dlog_datagrams_misrouted_total 0",
        "dlog_partitions 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in\n{metrics}");
    }
    assert!(metrics.contains("\ndlog_replication_lag_seconds "));
    assert!(metrics.contains("\ndlog_hops_total ") && metrics.contains("\ndlog_build_info{"));
    server.stop();
}

/// What a start is refused with: exit code 1, and this message.
fn refused(command: Command, words: &str) {
    let (code, message) = start_refused(command);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains(words), "{words} is not in {message}");
}

#[test]
fn a_port_in_use_is_named() {
    let root = scratch();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap().to_string();
    let mut command = serve(&root.path().join("a"), &[]);
    command.args(["--set", &format!("server.listen={address}")]);
    refused(command, &address);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let mut command = serve(&root.path().join("b"), &[]);
    command.args(["--set", &format!("server.http={address}")]);
    refused(command, &format!("the HTTP address {address} cannot be used: another process listens there"));
}

#[test]
fn two_servers_never_share_a_data_directory() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[]);
    let shown = fs::canonicalize(&data).unwrap();
    refused(serve(&data, &[]), &format!("dlog: the data directory {} is in use by process ", shown.display()));
    server.stop();
    Server::start(&data, &[]).stop();
}

#[test]
fn a_strangers_an_unreadable_and_an_unfit_directory_are_refused() {
    let root = scratch();
    fs::write(root.path().join("thesis.txt"), "years of work").unwrap();
    refused(
        serve(root.path(), &[]),
        "is not empty and no data directory of ours (it has `thesis.txt` but no `PYRALOG`)",
    );
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "it is left as it was");
    refused(serve(&root.path().join("thesis.txt"), &[]), "cannot be used: creating it: ");
    let closed = root.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read anything, whatever the permissions say.
    if fs::read_dir(&closed).is_err() {
        refused(serve(&closed, &[]), "Permission denied");
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    if fs::metadata("/dev/shm").is_ok() {
        refused(serve("/dev/shm/dlog-test-of-refusal".as_ref(), &[]), "is on tmpfs, which is memory");
    }
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused_before_anything_is_touched() {
    let root = scratch();
    let file = root.path().join("dlog.json");
    fs::write(&file, "{\n  // a slip\n  \"storage\": { \"segment_config\": { \"max_sise\": 1 } }\n}\n").unwrap();
    let file = file.to_str().unwrap();
    for (flags, words) in [
        (
            &["--config", file][..],
            format!(
                "dlog: {file}:3: there is no key `storage.segment_config.max_sise`; \
                 did you mean `storage.segment_config.max_size`?\n"
            ),
        ),
        (&["--profile", "fast"], "flag --profile: `profile` is fast, but must be one of balanced, ".to_owned()),
        (&["--set", "memory.requests=plenty"], "`memory.requests` is plenty, but must be a size from ".to_owned()),
        (&["--cores", "x"], "flag --cores: `server.cores` is x, but must be \"all\", or CPUs such as".to_owned()),
        (
            &["--set", "replication.quorum.write_quorum=2"],
            "`replication.quorum.write_quorum` is 2, which cannot be honoured: it is a number of copies".to_owned(),
        ),
    ] {
        let data = root.path().join("data");
        let (code, message) = start_refused(serve(&data, flags));
        assert_eq!(code, 2, "{flags:?}: {message}");
        assert!(message.contains(&words), "{flags:?}: {message}");
        assert!(!data.exists(), "{flags:?} touched the disk");
    }
    let data = root.path().join("data");
    refused(serve(&data, &["--cores", "4000"]), "CPU 4000 is not available; this process may use ");
    refused(serve(&data, &["--set", "memory.network=16TiB"]), "lower one of them");
}

#[test]
fn the_configuration_is_shown_with_its_layers_and_checked_without_a_server() {
    let root = scratch();
    let file = root.path().join("dlog.json");
    fs::write(&file, "{ \"profile\": \"latency\", }").unwrap();
    let file = file.to_str().unwrap();
    let output = dlog().env("DLOG_CORES", "0").args(["--json", "config", "show", "--config", file]).output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let layer = |key: &str| shown["keys"][key]["origin"]["layer"].clone();
    assert_eq!(layer("profile"), "file");
    assert_eq!(layer("server.cores"), "environment");
    assert_eq!(layer("storage.cache_config.max_size"), "profile");
    assert_eq!(layer("server.listen"), "default");
    assert_eq!(shown["keys"]["replication.quorum.replication_factor"]["lowered_from"], 3);
    let checked = dlog().args(["config", "check", file]).output().unwrap();
    assert!(String::from_utf8_lossy(&checked.stdout).starts_with("the configuration is fine: profile latency"));
    fs::write(file, "{").unwrap();
    let (code, message) = failed(dlog().args(["config", "check", file]).output().unwrap());
    assert_eq!(code, 2);
    assert!(message.contains(&format!("{file}:1:")), "{message}");
}

#[test]
fn an_address_that_others_can_reach_is_warned_of() {
    let root = scratch();
    let server = Server::start(&root.path().join("data"), &["--set", "server.http=0.0.0.0:0"]);
    let all = server.lines.join("\n");
    assert!(all.contains("warning    0.0.0.0:0 is reachable from other machines"), "{all}");
    server.stop();
}

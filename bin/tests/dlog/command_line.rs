//! The command line against a real server: what goes in comes out, and wrong use is answered clearly.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::Stdio,
};

use crate::support::{Server, dlog, failed, sample_file, scratch};
use serde_json::Value;

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn logs_are_created_listed_described_and_deleted() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    assert!(server.text(&["log", "list"]).contains("there are no logs"));
    assert_eq!(
        server.text(&["log", "create", "orders", "--partitions", "4"]),
        "created default/orders with 4 partitions\n"
    );
    let created = json(&server.run(&["--json", "log", "create", "eu/orders", "--ack", "written"]));
    assert_eq!((&created["name"], &created["ack"]), (&"eu/orders".into(), &"written".into()));
    let listed = json(&server.run(&["--json", "log", "list"]));
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|log| log["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default/orders", "eu/orders"]);
    let described = json(&server.run(&["--json", "log", "describe", "orders"]));
    assert_eq!(described["partitions"].as_array().unwrap().len(), 4);
    assert_eq!(described["partitions"][3]["high_watermark"], 0);
    assert!(server.text(&["log", "describe", "orders"]).contains("HIGH WATERMARK"));
    assert_eq!(server.text(&["log", "delete", "orders"]), "deleted default/orders\n");
    let (code, message) = server.refused(&["log", "describe", "orders"]);
    assert_eq!((code, message.as_str()), (1, "dlog: there is no log `default/orders`\n"));
    server.stop();
}

#[test]
fn a_file_comes_back_byte_for_byte() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    let (path, bytes) = sample_file(data.path(), 100_000);
    let file = path.to_str().unwrap();
    for (log, partitions, produce, consume) in [
        ("one", "1", &[][..], &[][..]),
        ("four", "4", &[], &[]),
        ("third", "4", &["--partition", "2"], &["--partition", "2"]),
        ("lz4", "1", &["--compression", "lz4"], &[]),
        ("zstd", "1", &["--compression", "zstd", "--ack", "received"], &[]),
    ] {
        server.run(&["log", "create", log, "--partitions", partitions]);
        server.run(&[&["produce", log, file][..], produce].concat());
        let back = server.run(&[&["consume", log, "--from", "earliest"][..], consume].concat());
        assert!(back == bytes, "{log}: {} bytes came back of {}", back.len(), bytes.len());
    }
    server.stop();
}

#[test]
fn an_input_without_a_final_newline_comes_back_without_one_and_never_sticks_to_the_next() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a"]);
    for (input, shown) in [("", ""), ("x", "x"), ("y\n", "x\ny\n"), ("\n\nz", "x\ny\n\n\nz")] {
        server.feed(&["produce", "a"], input.as_bytes());
        assert_eq!(server.text(&["consume", "a"]), shown);
    }
    assert_eq!(server.text(&["consume", "a", "-n", "2"]), "x\ny\n");
    assert_eq!(server.text(&["consume", "a", "-n", "0"]), "");
    server.stop();
}

#[test]
fn other_delimiters_cut_and_join() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a"]);
    let input = b"one\ntwo\0three\0\0";
    server.feed(&["produce", "a", "--delimiter", "\\0"], input);
    assert_eq!(server.run(&["consume", "a", "--delimiter", "\\0"]), input);
    assert_eq!(server.text(&["consume", "a", "--output", "[%s]"]), "[one\ntwo][three][]");
    server.stop();
}

#[test]
fn keys_decide_the_partition_and_are_printed() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a", "--partitions", "8"]);
    let input: String = (0..1000).map(|i| format!("key-{}:value-{i}\n", i % 50)).collect();
    let summary = json(&server.feed(&["--json", "produce", "a", "--key-delimiter", ":"], input.as_bytes()));
    assert_eq!((&summary["records"], &summary["bytes"]), (&1000.into(), &input.len().into()));
    assert!(summary["partitions"].as_array().unwrap().len() > 1, "{summary}");
    let printed = server.text(&["consume", "a", "--output", "%p %k %s\\n"]);
    let mut of_key_7: Vec<_> = printed.lines().filter(|line| line.contains(" key-7 ")).collect();
    assert_eq!(of_key_7.len(), 20);
    let partition = of_key_7[0].split(' ').next().unwrap().to_owned();
    assert!(of_key_7.iter().all(|line| line.starts_with(&partition)), "one key, one partition");
    let order: Vec<_> =
        of_key_7.drain(..).map(|line| line.rsplit('-').next().unwrap().parse::<u32>().unwrap()).collect();
    assert!(order.is_sorted(), "{order:?}");
    server.stop();
}

#[test]
fn every_start_and_output_does_what_it_says() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a"]);
    server.feed(&["produce", "a"], b"zero\none\ntwo\n");
    assert_eq!(server.text(&["consume", "a", "--from", "1", "-n", "1", "--output", "%o=%s\\n"]), "1=one\n");
    assert_eq!(server.text(&["consume", "a", "--from", "latest"]), "");
    assert_eq!(server.text(&["consume", "a", "--from", "3"]), "");
    assert_eq!(server.text(&["consume", "a", "--from", "@2001-01-01T00:00:00Z", "-n", "1"]), "zero\n");
    assert_eq!(server.text(&["consume", "a", "--from", "@2100-01-01T00:00:00Z"]), "");
    let lines = server.text(&["consume", "a", "--output", "json"]);
    let first = json(lines.lines().next().unwrap().as_bytes());
    assert_eq!((&first["value"], &first["offset"], &first["key"]), (&"zero".into(), &0.into(), &Value::Null));
    server.stop();
}

#[test]
fn following_shows_records_as_they_come_and_ends_with_its_reader() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a", "--partitions", "3"]);
    let mut following = server.command(&["consume", "a", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut shown = BufReader::new(following.stdout.take().unwrap());
    for round in 0..3 {
        server.feed(&["produce", "a"], format!("round {round}\n").as_bytes());
        let mut line = String::new();
        shown.read_line(&mut line).unwrap();
        assert_eq!(line, format!("round {round}\n"));
    }
    drop(shown);
    server.feed(&["produce", "a"], b"nobody reads this\n");
    assert!(crate::support::wait(&mut following).success(), "a closed pipe is no fault");
    let counted = server.command(&["consume", "a", "--follow", "-n", "4"]).output().unwrap();
    assert_eq!(counted.stdout.iter().filter(|byte| **byte == b'\n').count(), 4);
    server.stop();
}

#[test]
fn lines_are_sent_as_they_come_also_when_the_input_stays_open() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a"]);
    let mut producing = server.command(&["produce", "a"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = producing.stdin.take().unwrap();
    let mut following = server.command(&["consume", "a", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut shown = BufReader::new(following.stdout.take().unwrap());
    for round in 0..3 {
        writeln!(input, "round {round}").unwrap();
        let mut line = String::new();
        shown.read_line(&mut line).unwrap();
        assert_eq!(line, format!("round {round}\n"));
    }
    drop(input);
    assert!(crate::support::wait(&mut producing).success());
    following.kill().unwrap();
    following.wait().unwrap();
    server.stop();
}

#[test]
fn a_producer_whose_server_dies_ends_though_its_input_stays_open() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a"]);
    let mut producing = server.command(&["produce", "a", "--timeout", "2"]);
    let mut producing = producing.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = producing.stdin.take().unwrap();
    input.write_all(b"before\n").unwrap();
    let seen = server.command(&["consume", "a", "--follow", "-n", "1"]).output().unwrap();
    assert_eq!(seen.stdout, b"before\n");
    server.kill();
    input.write_all(b"after\n").unwrap();
    assert_eq!(crate::support::wait(&mut producing).code(), Some(1));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    let (path, _) = sample_file(data.path(), 50_000);
    server.run(&["log", "create", "a"]);
    server.run(&["produce", "a", path.to_str().unwrap()]);
    let mut consuming = server.command(&["consume", "a"]).stdout(Stdio::piped()).spawn().unwrap();
    consuming.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    assert!(crate::support::wait(&mut consuming).success());
    server.stop();
}

#[test]
fn wrong_use_of_a_server_is_answered_clearly() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    server.run(&["log", "create", "a", "--partitions", "2"]);
    let missing = data.path().join("missing.txt");
    let long = data.path().join("long.txt");
    fs::write(&long, vec![b'x'; (1 << 20) + 1]).unwrap();
    let (missing, long) = (missing.to_str().unwrap(), long.to_str().unwrap());
    for (args, code, words) in [
        (&["consume", "nope"][..], 1, "there is no log `default/nope`".to_owned()),
        (&["produce", "nope"], 1, "there is no log `default/nope`".to_owned()),
        (&["log", "delete", "nope"], 1, "there is no log `default/nope`".to_owned()),
        (&["log", "create", "a"], 1, "log `default/a` exists already".to_owned()),
        (&["log", "create", "b", "--partitions", "0"], 1, "a log has 1 to 1024 partitions, not 0".to_owned()),
        (&["log", "create", "b", "--partitions", "1025"], 1, "a log has 1 to 1024 partitions, not 1025".to_owned()),
        (&["consume", "a", "--partition", "2"], 1, "log `default/a` has partitions 0 to 1, not 2".to_owned()),
        (&["produce", "a", "--partition", "9"], 1, "log `default/a` has partitions 0 to 1, not 9".to_owned()),
        (
            &["consume", "a", "--from", "5", "--partition", "0"],
            1,
            "offset 5 is out of range: this partition has offsets 0 to 0 (the next to be written)".to_owned(),
        ),
        (&["produce", "a", missing], 1, format!("{missing}: No such file or directory (os error 2)")),
        (
            &["produce", "a", long],
            1,
            format!("{long}: record 1 has more than 1048576 bytes, the most a record may have"),
        ),
    ] {
        let (found, message) = server.refused(args);
        assert_eq!(found, code, "{args:?}: {message}");
        assert!(message.contains(&format!("dlog: {words}\n")), "{args:?}: {message}");
    }
    let (code, message) = server.refused(&["--json", "consume", "nope"]);
    let fault = json(message.as_bytes());
    assert_eq!((code, &fault["error"], &fault["exit_code"]), (1, &"there is no log `default/nope`".into(), &1.into()));
    server.stop();
}

#[test]
fn what_cannot_be_understood_exits_with_2_and_says_what_can() {
    for (args, words) in [
        (&["consume", "../etc"][..], "a name is NAME or NAMESPACE/NAME"),
        (&["consume", "a", "--from", "yesterday"], "write earliest, latest, an offset or @TIME"),
        (&["consume", "a", "--output", "%z"], "there is no field `%z`"),
        (&["produce", "a", "--ack", "sometimes"], "there are received, written, durable and quorum"),
        (&["produce", "a", "--compression", "rar"], "possible values: none, lz4, zstd"),
        (&["produce", "a", "--delimiter", ""], "a delimiter has at least one byte"),
        (&["--fingerprint", "12", "log", "list"], "a fingerprint is 64 hexadecimal digits"),
        (&["--cores", "0", "log", "list"], "flags of the server come after `serve`"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["--server", "nonsense", "log", "list"], "the server's address is not usable"),
    ] {
        let (code, message) = failed(dlog().args(args).output().unwrap());
        assert_eq!(code, 2, "{args:?}: {message}");
        assert!(message.contains(words), "{args:?}: {message}");
    }
}

#[test]
fn a_server_that_is_not_there_is_named_with_what_to_do() {
    // A port that nobody has: bound and let go.
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, message) = failed(dlog().args(["--server", &free, "--timeout", "1", "log", "list"]).output().unwrap());
    assert_eq!(code, 1);
    assert!(message.starts_with(&format!("dlog: no connection to the server at {free}: ")), "{message}");
    assert!(message.contains("help: is the server running there? `dlog` starts one"), "{message}");
}

#[test]
fn a_server_with_another_certificate_is_not_trusted() {
    let data = scratch();
    let server = Server::start(&data.path().join("data"), &[]);
    let wrong = "ab".repeat(32);
    let (code, message) = server.refused(&["--fingerprint", &wrong, "log", "list"]);
    assert_eq!(code, 1);
    assert!(message.contains(&format!("but {wrong} is expected")), "{message}");
    let right = fs::read_to_string(data.path().join("data/tls/fingerprint")).unwrap();
    server.run(&["--fingerprint", right.trim(), "log", "list"]);
    server.stop();
}

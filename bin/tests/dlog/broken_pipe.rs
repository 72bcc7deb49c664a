//! Commands and a server whose output nobody reads: no panic, no word of it, and the exit code of what was done.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Server, dlog, scratch, serve, wait};

/// The end of a pipe that somebody has closed at the other end.
fn unread() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Its exit code, first with a stdout that nobody reads, of which it must say nothing on stderr; and then with an
/// unread stderr as well.
fn exit_codes(command: &mut Command) -> [i32; 2] {
    let quiet = command.stdin(Stdio::null()).stdout(unread()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(quiet.stderr).unwrap();
    assert!(!said.contains("panicked") && !said.to_lowercase().contains("pipe"), "{command:?}: {said}");
    let deaf = command.stdout(unread()).stderr(unread()).status().unwrap();
    [quiet.status.code().unwrap(), deaf.code().unwrap()]
}

#[test]
fn a_command_whose_output_nobody_reads_ends_as_if_somebody_did() {
    let root = scratch();
    let data = root.path().join("data");
    let file = root.path().join("lines.txt");
    fs::write(&file, "a line\n".repeat(1000)).unwrap();
    let file = file.to_str().unwrap();
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a"]);
    for json in [&["--json"][..], &[]] {
        let commands: [&[&str]; 8] = [
            &["produce", "a", file],
            &["consume", "a"],
            &["consume", "a", "--output", "json"],
            &["log", "list"],
            &["log", "describe", "a"],
            &["log", "alter", "a", "--retention", "7d"],
            &["log", "trim", "a/0", "--before", "1"],
            &["config", "show"],
        ];
        for args in commands {
            assert_eq!(exit_codes(&mut server.command(&[json, args].concat())), [0, 0], "{json:?} {args:?}");
        }
        let create = |name: &str| server.command(&[json, &["log", "create", name]].concat());
        let name = format!("b{}", json.len());
        assert_eq!(exit_codes(&mut create(&name)), [0, 1], "the second time it exists");
        let delete = |name: &str| server.command(&[json, &["log", "delete", name]].concat());
        assert_eq!(exit_codes(&mut delete(&name)), [0, 1], "the second time it does not");
    }
    server.stop();
    let segment = data.join("logs/default/a/0/00000000000000000000.seg");
    for args in [&["config", "reference"][..], &["config", "schema"]] {
        assert_eq!(exit_codes(dlog().args(args)), [0, 0]);
    }
    for json in [&["--json"][..], &[]] {
        assert_eq!(exit_codes(dlog().arg("dump").arg(&segment).args(json)), [0, 0]);
        assert_eq!(exit_codes(dlog().arg("verify").arg(&data).args(json)), [0, 0]);
    }
    fs::write(data.join("catalog.json"), "nothing").unwrap();
    assert_eq!(exit_codes(dlog().arg("verify").arg(&data)), [1, 1], "damage stays damage");
}

#[test]
fn output_that_cannot_be_written_for_another_reason_is_a_fault() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = dlog().args(["config", "show"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.starts_with("dlog: stdout: No space left")), (Some(1), true), "{said}");
}

#[test]
fn a_server_whose_output_nobody_reads_stops_in_good_order() {
    let root = scratch();
    let data = root.path().join("data");
    let mut command = serve(&data, &[]);
    let mut child = command.env("DLOG_LOG", "trace").stdout(Stdio::piped()).stderr(unread()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let ready = lines.find(|line| line.starts_with("ready")).unwrap();
    let address = ready.split("udp ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    drop(lines);
    let client = |args: &[&str]| dlog().args(["--server", &address]).args(args).output().unwrap();
    assert!(client(&["log", "create", "a"]).status.success());
    assert!(client(&["log", "list"]).status.success());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
}

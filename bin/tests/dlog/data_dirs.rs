//! A server with several data directories, as the operator meets it: what he may give it, what it says of each, and
//! what becomes of one that is replaced, put back, or left out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{Server, dlog, failed, sample_file, scratch, serve, start_refused};

/// Three cores, however many CPUs there are.
const CORES: &str = "0,0,0";

/// Three directories below `root`.
fn three(root: &Path) -> [PathBuf; 3] {
    ["a", "b", "c"].map(|name| root.join(name))
}

/// The flags for these directories but the first.
fn more(dirs: &[PathBuf]) -> Vec<&str> {
    let mut flags = vec!["--cores", CORES, "--set", "memory.requests=64MiB", "--set", "memory.read_cache=64MiB"];
    dirs[1..].iter().for_each(|dir| flags.extend(["--data-dir", dir.to_str().unwrap()]));
    flags
}

fn start(dirs: &[PathBuf]) -> Server {
    Server::start(&dirs[0], &more(dirs))
}

fn refused(dirs: &[PathBuf]) -> String {
    start_refused(serve(&dirs[0], &more(dirs))).1
}

fn field<'a>(drives: &'a Value, name: &str) -> Vec<&'a Value> {
    drives.as_array().unwrap().iter().map(|drive| &drive[name]).collect()
}

/// Creates log `a` with three copies and log `s` with one copy of six partitions, and puts the sample into both.
fn fill(server: &Server, root: &Path) -> Vec<u8> {
    let (path, bytes) = sample_file(root, 5_000);
    server.run(&["log", "create", "a", "--replication-factor", "3"]);
    server.run(&["log", "create", "s", "--partitions", "6"]);
    server.run(&["produce", "a", path.to_str().unwrap()]);
    server.feed(&["produce", "s", "--partition", "0"], b"single\n");
    bytes
}

/// The directory that has the only copy of partition 0 of log `s`.
fn home_of_single(dirs: &[PathBuf]) -> usize {
    dirs.iter().position(|dir| dir.join("logs/default/s/0").exists()).unwrap()
}

#[test]
fn copies_are_on_a_directory_each_and_each_is_shown_with_its_room() {
    let root = scratch();
    let dirs = three(root.path());
    let server = start(&dirs);
    let bytes = fill(&server, root.path());
    for copy in ["a/0", "a/0.1", "a/0.2"] {
        let on = dirs.iter().filter(|dir| dir.join("logs/default").join(copy).exists()).count();
        assert_eq!(on, 1, "{copy}");
    }
    assert!(dirs.iter().all(|dir| ["LOCK", "PYRALOG", "drive", "catalog.json"].iter().all(|f| dir.join(f).exists())));
    let status = server.json("/status");
    let drives = &status["drives"];
    assert_eq!(field(drives, "drive"), [0, 1, 2]);
    assert_eq!(field(drives, "at_start"), ["whole"; 3]);
    assert_eq!(field(drives, "cores"), [&Value::from([0]), &Value::from([1]), &Value::from([2])]);
    assert!(field(drives, "free_bytes").iter().all(|free| free.as_u64().unwrap() > 0), "{drives:#}");
    let names: Vec<_> = status["config"]["server"]["data_dir"].as_array().unwrap().iter().collect();
    assert_eq!(names, field(drives, "dir"));
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("are on the same file system: "), "{warnings}");
    let page = server.page("/metrics").1;
    for (number, dir) in dirs.iter().enumerate() {
        let start = format!("dlog_drive_free_bytes{{drive=\"{number}\",dir=\"{}\"}} ", dir.display());
        assert!(page.contains(&start), "{start} is missing in\n{page}");
    }
    server.kill();
    // In another order: the numbers stay.
    let server = start(&[dirs[2].clone(), dirs[0].clone(), dirs[1].clone()]);
    assert_eq!(field(&server.json("/status")["drives"], "drive"), [2, 0, 1]);
    assert!(server.run(&["consume", "a"]) == bytes, "not all came back");
    assert_eq!(server.text(&["consume", "s", "--partition", "0"]), "single\n");
    server.stop();
}

#[test]
fn what_is_no_server_together_is_refused_with_what_to_do() {
    let root = scratch();
    let dirs = three(root.path());
    std::os::unix::fs::symlink(&dirs[0], root.path().join("link")).unwrap();
    let link = root.path().join("link");
    let message = refused(&[dirs[0].clone(), dirs[1].clone(), link]);
    assert!(message.contains("are the same directory"), "{message}");
    let four: Vec<_> = dirs.iter().cloned().chain([root.path().join("d")]).collect();
    let message = refused(&four);
    assert!(message.contains("4 directories need 4 cores, one for each; this server has 3"), "{message}");
    assert!(!four[3].exists(), "it touched the disk");

    let server = start(&dirs);
    fill(&server, root.path());
    server.stop();
    let message = refused(&dirs[..2]);
    assert!(message.contains("this server has 3 drives, and the data directory of drive 2 is not among"), "{message}");
    let other = root.path().join("other");
    let server = Server::start(&other, &["--cores", "0"]);
    server.run(&["log", "create", "theirs"]);
    server.stop();
    let message = refused(&[dirs[0].clone(), dirs[1].clone(), other.clone()]);
    assert!(message.contains("belong to different servers"), "{message}");
    let copied = root.path().join("copied");
    assert!(std::process::Command::new("cp").arg("-a").args([&dirs[1], &copied]).status().unwrap().success());
    let message = refused(&[dirs[0].clone(), dirs[1].clone(), copied]);
    assert!(message.contains("are both drive 1: one is a copy of the other"), "{message}");
    fs::create_dir(root.path().join("foreign")).unwrap();
    fs::write(root.path().join("foreign/thesis.txt"), "years of work").unwrap();
    let message = refused(&[dirs[0].clone(), dirs[1].clone(), root.path().join("foreign")]);
    assert!(message.contains("no data directory of ours"), "{message}");
    let server = start(&dirs);
    assert_eq!(field(&server.json("/status")["drives"], "at_start"), ["whole"; 3], "a refused start is no start");
    server.stop();
}

#[test]
fn a_replaced_drive_is_rebuilt_and_an_only_copy_that_was_on_it_stays_closed() {
    let root = scratch();
    let dirs = three(root.path());
    let server = start(&dirs);
    let bytes = fill(&server, root.path());
    server.stop();
    let lost = home_of_single(&dirs);
    let image = root.path().join("image");
    fs::rename(&dirs[lost], &image).unwrap();

    let server = start(&dirs);
    let warned = server.lines.iter().any(|line| line.contains("is empty in the place of one that was there"));
    assert!(warned, "{:#?}", server.lines);
    assert_eq!(server.json("/status")["drives"][lost]["at_start"], "empty");
    assert!(server.run(&["consume", "a"]) == bytes, "not all came back");
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 3);
    server.status_once(&format!("/drives/{lost}/copies_rebuilding"), |count| *count == 0);
    assert!(server.page("/metrics").1.contains("\ndlog_replicas_rebuilding 0\n"));
    // Its offsets must not be used again.
    let (_, message) = server.feed_refused(&["produce", "s", "--partition", "0"], b"again\n");
    assert!(message.contains("all its segments are missing"), "{message}");
    server.feed(&["produce", "a"], b"more\n");
    server.stop();

    // The old one is put back: it is known for what it is.
    fs::rename(&dirs[lost], root.path().join("new")).unwrap();
    fs::rename(&image, &dirs[lost]).unwrap();
    let server = start(&dirs);
    assert_eq!(server.json("/status")["drives"][lost]["at_start"], "old");
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 3);
    assert!(server.run(&["consume", "a"]) == [&bytes[..], b"more\n"].concat());
    assert_eq!(server.text(&["consume", "s", "--partition", "0"]), "single\n");
    server.stop();
}

#[test]
fn the_tools_know_what_belongs_on_which_drive() {
    let root = scratch();
    let dirs = three(root.path());
    let server = start(&dirs);
    fill(&server, root.path());
    let tool = |args: &[&str], dirs: &[PathBuf]| {
        let output = dlog().args(args).args(dirs).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = tool(&["verify"], &dirs);
    assert!(code == 0 && said.contains("only sealed segments are checked") && said.contains("no damage"), "{said}");
    server.stop();
    let (code, said) = tool(&["verify"], &dirs);
    assert!(code == 0 && said.contains("checked 9 partitions, 9 segments"), "{said}");
    assert!(said.contains(": 15001 intact records"), "{said}");
    for dir in &dirs {
        let (code, said) = tool(&["verify"], std::slice::from_ref(dir));
        assert_eq!(code, 0, "each by itself: {said}");
    }
    for copy in ["a/0", "a/0.0", "a/0.1", "a/0.2"] {
        let output = dlog().args(["dump", "--json", "--partition", copy]).args(&dirs).output().unwrap();
        assert_eq!(output.status.success(), copy != "a/0.0", "{copy}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().contains("\"type\":\"batch\""), copy != "a/0.0", "{copy}");
    }
    // A copy on the wrong drive, and one that is gone.
    let home = dirs.iter().position(|dir| dir.join("logs/default/a/0.1").exists()).unwrap();
    fs::rename(dirs[home].join("logs/default/a/0.1"), dirs[(home + 1) % 3].join("logs/default/a/0.1")).unwrap();
    let (code, said) = tool(&["verify"], &dirs);
    assert_eq!(code, 1, "{said}");
    for (at, words) in [((home + 1) % 3, "it is no partition of its log"), (home, "it is rebuilt from the others")] {
        let line = said.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.starts_with(dirs[at].join("logs/default/a/0.1").to_str().unwrap()), "{line}");
    }
    // Whose drive is not known, of that no copy is judged to be in the wrong place.
    fs::write(dirs[(home + 1) % 3].join("drive"), [b'x'; 4096]).unwrap();
    let said = tool(&["verify"], &dirs).1;
    assert!(said.contains("it does not begin with PYD1") && !said.contains("it is no partition"), "{said}");
}

#[test]
fn directories_can_be_added_and_what_was_there_stays_where_it_is() {
    let root = scratch();
    let dirs = three(root.path());
    let server = start(&dirs[..1]);
    let bytes = fill(&server, root.path());
    server.stop();
    let server = start(&dirs);
    assert_eq!(field(&server.json("/status")["drives"], "at_start"), ["whole"; 3]);
    assert!(server.run(&["consume", "a"]) == bytes, "not all came back");
    assert!(!dirs[1].join("logs").exists() && !dirs[2].join("logs").exists());
    server.run(&["log", "create", "b", "--replication-factor", "3"]);
    assert!(dirs.iter().all(|dir| dir.join("logs/default/b").exists()));
    server.stop();
}

#[test]
fn a_list_in_a_file_is_checked_like_the_flags() {
    let root = scratch();
    let file = root.path().join("dlog.json");
    let check = |dirs: &str, cores: &str| {
        let quorum = "\"replication\": {\"quorum\": {\"replication_factor\": 2}}";
        fs::write(&file, format!("{{\"server\": {{\"data_dir\": {dirs}, \"cores\": \"{cores}\"}}, {quorum}}}"))
            .unwrap();
        dlog().args(["config", "check", file.to_str().unwrap()]).output().unwrap()
    };
    let output = check("[\"/x\", \"/y\"]", "0,0");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("copies: 2 of each partition, each on a core and a drive of its own"), "{said}");
    let (code, message) = failed(check("[\"/x\", \"/y\", \"/z\"]", "0,1"));
    assert!(code == 2 && message.contains("3 directories need 3 cores, one for each; this server has 2"), "{message}");
    let (_, message) = failed(check("[]", "0,1"));
    assert!(message.contains("must be a path, or a list of 1 to 64 paths"), "{message}");
}

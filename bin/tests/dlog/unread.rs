//! A real server on whose drive a segment of one copy cannot be read when it starts.

use std::{fs, os::unix, path::Path};

use crate::{
    copies::cores,
    power::Drive,
    support::{Server, sample_file, scratch},
};

/// A data directory in which a sealed segment of copy 1 of two is where nothing can be read, and what is stored.
fn with_an_unreadable_segment(root: &Path, drive: &Drive, (two, write_quorum): (&str, &str)) -> Vec<u8> {
    let data = root.join("data");
    let (path, bytes) = sample_file(root, 5_000);
    let server = Server::start(&data, &["--cores", two]);
    server.run(&["log", "create", "a", "--replication-factor", "2", "--write-quorum", write_quorum]);
    server.run(&["produce", "a", path.to_str().unwrap()]);
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 2);
    server.stop();
    // The records of another reign are in another segment.
    let server = Server::start(&data, &["--cores", two]);
    server.feed(&["produce", "a"], b"last\n");
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 2);
    server.stop();
    let segment = data.join("logs/default/a/0.1/00000000000000000000.seg");
    let place = drive.path().join("sealed");
    fs::copy(&segment, &place).unwrap();
    fs::File::open(&place).unwrap().sync_all().unwrap();
    fs::remove_file(&segment).unwrap();
    unix::fs::symlink(&place, &segment).unwrap();
    drive.come_to_rest();
    drive.lose_sectors();
    [bytes, b"last\n".to_vec()].concat()
}

#[test]
fn a_copy_with_a_segment_that_cannot_be_read_at_a_start_is_rebuilt_by_itself() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let bytes = with_an_unreadable_segment(root.path(), &drive, (&two, "2"));
    let server = Server::start(&root.path().join("data"), &["--cores", &two]);
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 2);
    assert!(server.page("/metrics").1.contains("\ndlog_copies_given_up_total 1\n"));
    server.feed(&["produce", "a"], b"and it goes on\n");
    assert!(server.run(&["consume", "a"]) == [&bytes[..], b"and it goes on\n"].concat(), "not all is there");
    let segment = root.path().join("data/logs/default/a/0.1/00000000000000000000.seg");
    assert!(!fs::symlink_metadata(segment).unwrap().is_symlink());
    server.stop();
}

#[test]
fn a_copy_that_is_needed_and_cannot_be_read_says_so_and_is_rebuilt_after_the_operators_word() {
    let Some(two) = cores(2) else { return };
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let bytes = with_an_unreadable_segment(root.path(), &drive, (&two, "1"));
    let server = Server::start(&root.path().join("data"), &["--cores", &two]);
    let problem = server.status_once("/partitions/0/replicas/1/problem", |problem| {
        problem.as_str().is_some_and(|problem| problem.contains("the others cannot do without it"))
    });
    assert!(problem.as_str().unwrap().contains("Input/output error"), "{problem}");
    assert_eq!(server.json("/status")["partitions"][0]["replicas"][1]["role"], "unreadable");
    assert_eq!(server.json("/status")["partitions"][0]["leads"], false);
    let said = server.command(&["recover", "a/0"]).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("Input/output error") && said.contains("copy 0 would lead"), "{said}");
    server.run(&["recover", "a/0", "--accept-data-loss"]);
    server.status_once("/partitions/0", |partition| partition["in_sync"] == 2);
    assert!(server.run(&["consume", "a"]) == bytes, "not all is there");
    server.stop();
}

//! Every kind of finding, over files in memory that are made byte by byte.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{Disk, Finding, Kind, PartitionFiles, Remedy, Source, Totals, check_partition};
use crate::{
    log::{
        cut::{self, Cut},
        index::{Index, SidecarKey},
        producer_snapshot::{SnapshotKey, to_sidecar},
        segment::{SegmentHeader, segment_path},
        start,
    },
    record::{BatchBuilder, Codec, ProducerHistory, ServerFields, check_produced, stamp},
    runtime::DirEntry,
    types::{Incarnation, LeaderEpoch, LogUid, Offset, PartitionId, PartitionIndex, ProducerId, Sequence},
};

mod compare;
mod ends;

const DIR: &str = "/d";
const BLOCK: usize = 512;
const HEADER: usize = 4096;

type Bytes = Rc<RefCell<Vec<u8>>>;

#[derive(Default)]
struct Memory(BTreeMap<PathBuf, Bytes>);

impl Source for Bytes {
    fn size(&self) -> io::Result<u64> {
        Ok(self.borrow().len() as u64)
    }

    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        let bytes = self.borrow();
        let from = (position as usize).min(bytes.len());
        Ok(bytes[from..(from + len).min(bytes.len())].to_vec())
    }
}

impl Disk for Memory {
    type File = Bytes;

    fn open(&self, path: &Path) -> io::Result<Bytes> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        Ok(self
            .0
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .map(|path| DirEntry { path: path.clone(), is_dir: false })
            .collect())
    }
}

fn header(base: u64) -> SegmentHeader {
    SegmentHeader {
        partition: PartitionId { log: LogUid(1), index: PartitionIndex(0) },
        block_bytes: BLOCK as u32,
        base_offset: Offset(base),
        created_ms: 5,
        incarnation: Incarnation(base as u32 + 7),
        leader_epoch: LeaderEpoch(1),
    }
}

/// Batches of three records and some 300 bytes, each in a block of its own, with offsets from `base` on; each knows all
/// before it as durable.
fn segment(base: u64, batches: u64) -> (Vec<u8>, Index) {
    let header = header(base);
    let mut bytes = header.encode().to_vec();
    bytes.resize(HEADER, 0);
    let mut index = Index::default();
    for number in 0..batches {
        let mut builder = BatchBuilder::new(Codec::None);
        (0..3).for_each(|_| builder.push(None, &[7; 70], &[], 1).unwrap());
        let mut batch = builder.finish().unwrap().to_vec();
        let base_offset = Offset(base + 3 * number);
        let fields = ServerFields {
            base_offset,
            durable_hint: base_offset,
            leader_epoch: LeaderEpoch(1),
            incarnation: header.incarnation,
        };
        let max_timestamp = check_produced(&batch).unwrap().max_timestamp_ms;
        stamp(&mut batch, fields);
        index.note(base_offset, bytes.len() as u64, max_timestamp);
        bytes.extend_from_slice(&batch);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    (bytes, index)
}

fn path(base: u64) -> PathBuf {
    segment_path(Path::new(DIR), Offset(base))
}

/// Three segments of four batches, offsets 0 to 35; the last one with prepared room.
fn sound() -> Memory {
    let mut disk = Memory::default();
    for base in [0, 12, 24] {
        let (mut bytes, index) = segment(base, 4);
        if base < 24 {
            let key = SidecarKey { incarnation: header(base).incarnation, end_position: bytes.len() as u64 };
            disk.put(path(base).with_extension("idx"), index.to_sidecar(key));
        } else {
            bytes.resize(bytes.len() + (1 << 20), 0);
        }
        disk.put(path(base), bytes);
    }
    disk
}

impl Memory {
    fn put(&mut self, path: PathBuf, bytes: Vec<u8>) {
        self.0.insert(path, Rc::new(RefCell::new(bytes)));
    }

    fn flip(&self, path: &Path, position: usize) {
        self.0[path].borrow_mut()[position] ^= 0x10;
    }

    fn check(&self) -> (Vec<Finding>, Totals) {
        self.check_as(Some(LogUid(1)), false)
    }

    fn check_as(&self, log: Option<LogUid>, in_use: bool) -> (Vec<Finding>, Totals) {
        let files = PartitionFiles { dir: PathBuf::from(DIR), log, index: PartitionIndex(0), in_use };
        check_partition(self, files).unwrap()
    }

    fn only(&self) -> Finding {
        let (findings, _) = self.check();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        findings.into_iter().next().unwrap()
    }
}

fn range(first: u64, end: u64) -> Option<(Offset, Offset)> {
    Some((Offset(first), Offset(end)))
}

fn is_lost(finding: &Finding) -> bool {
    matches!(finding.remedy, Remedy::None(_))
}

/// Where batch `number` of a segment begins.
fn batch(number: usize) -> usize {
    HEADER + BLOCK * number
}

#[test]
fn a_sound_partition_has_no_finding_and_is_counted() {
    let (findings, totals) = sound().check();
    assert_eq!(findings, []);
    assert_eq!((totals.segments, totals.batches, totals.records), (3, 12, 36));
    assert_eq!(totals.bytes, 3 * batch(4) as u64 + (1 << 20));
    assert_eq!(sound().check_as(None, false).0, []);
    let (findings, totals) = sound().check_as(Some(LogUid(1)), true);
    assert_eq!((findings, totals.segments), (vec![], 2), "the last segment of a running server is left alone");
}

/// A partition whose first segment can be opened only so often.
struct Vanishing(Memory, Cell<u32>);

impl Disk for Vanishing {
    type File = Bytes;

    fn open(&self, wanted: &Path) -> io::Result<Bytes> {
        if wanted == path(0) {
            let left = self.1.get().checked_sub(1).ok_or(io::ErrorKind::NotFound)?;
            self.1.set(left);
        }
        self.0.open(wanted)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(dir)
    }
}

#[test]
fn what_a_running_server_deletes_while_it_is_read_is_no_damage() {
    let files =
        PartitionFiles { dir: PathBuf::from(DIR), log: Some(LogUid(1)), index: PartitionIndex(0), in_use: true };
    for left in [0, 20, batch(2) + 10] {
        let disk = sound();
        disk.0[&path(0)].borrow_mut().truncate(left);
        assert_ne!(disk.check_as(Some(LogUid(1)), true).0, [], "while its name is there");
        // Once for its version, once for its header, and once for all of it.
        let opened = if left < HEADER { 2 } else { 3 };
        let deleted = Vanishing(disk, Cell::new(opened));
        assert_eq!(check_partition(&deleted, files.clone()).unwrap().0, [], "{left} bytes were left");
        // Nobody deletes files of a server that is not there.
        deleted.1.set(opened);
        let at_rest = PartitionFiles { in_use: false, ..files.clone() };
        assert_ne!(check_partition(&deleted, at_rest).unwrap().0, [], "{left} bytes were left");
    }
}

/// A partition whose second segment cannot be opened.
struct Refusing(Memory);

impl Disk for Refusing {
    type File = Bytes;

    fn open(&self, wanted: &Path) -> io::Result<Bytes> {
        if wanted == path(12) { Err(io::ErrorKind::PermissionDenied.into()) } else { self.0.open(wanted) }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(dir)
    }
}

#[test]
fn what_cannot_be_read_is_said_also_of_a_running_server() {
    for in_use in [false, true] {
        let files = PartitionFiles { dir: PathBuf::from(DIR), log: Some(LogUid(1)), index: PartitionIndex(0), in_use };
        let (findings, _) = check_partition(&Refusing(sound()), files).unwrap();
        let about: Vec<_> = findings.iter().map(|found| (found.kind, &*found.path)).collect();
        assert_eq!(about, [(Kind::Unreadable, &*path(12))], "in use: {in_use}");
    }
}

#[test]
fn a_segment_in_which_hardly_anything_is_right_is_given_up() {
    let mut disk = Memory::default();
    let (mut bytes, _) = segment(0, 1200);
    (0..1100).for_each(|number| bytes[batch(number) + 100] ^= 1);
    disk.put(path(0), bytes);
    disk.put(path(3600), segment(3600, 1).0);
    let (findings, _) = disk.check();
    let damaged = findings.iter().filter(|found| found.kind == Kind::Batch && !found.kind.is_harmless()).count();
    assert_eq!(damaged, 1000);
    let given_up = |found: &&Finding| found.reason.starts_with("1000 things are wrong in it");
    assert_eq!(findings.iter().filter(given_up).count(), 1, "{:?}", findings.last());
}

#[test]
fn bytes_between_batches_that_cost_no_record_are_said_to_cost_none() {
    let mut disk = sound();
    let (bytes, _) = segment(12, 4);
    let spread = [&bytes[..batch(2)], &[9; BLOCK][..], &bytes[batch(2)..]].concat();
    disk.put(path(12), spread);
    disk.0.remove(&path(12).with_extension("idx"));
    let found = disk.check().0;
    assert_eq!((found[0].kind, found[0].offsets, found[0].position), (Kind::Bytes, None, Some(batch(2) as u64)));
    assert_eq!(found[1..].iter().map(|found| found.kind).collect::<Vec<_>>(), [Kind::NoIndex]);
}

#[test]
fn any_flipped_byte_of_a_sealed_batch_or_header_is_found_and_names_its_records() {
    for at in (0..48).chain(batch(1)..batch(1) + 80).chain([batch(1) + 200]) {
        let disk = sound();
        disk.flip(&path(0), at);
        let found = disk.only();
        assert!(is_lost(&found), "{found:?}");
        let (kind, case, offsets) = match at {
            0..48 => (Kind::Header, 'E', range(0, 12)),
            // The magic and what the server's checksum covers; the client's covers the rest.
            _ if at < batch(1) + 80 => (Kind::Bytes, 'C', range(3, 6)),
            _ => (Kind::Batch, 'C', range(3, 6)),
        };
        assert_eq!((found.kind, found.case, found.offsets), (kind, Some(case), offsets), "byte {at}: {found:?}");
        assert_eq!(found.path, path(0));
        assert_eq!(found.position, Some(if at < 48 { 0 } else { batch(1) as u64 }));
    }
}

#[test]
fn all_damage_of_a_segment_is_found_not_only_the_first() {
    let disk = sound();
    disk.flip(&path(0), batch(0) + 100);
    disk.flip(&path(0), batch(1) + 10);
    disk.flip(&path(0), batch(3) + 10);
    let found: Vec<_> = disk.check().0.iter().map(|found| (found.kind, found.offsets)).collect();
    assert_eq!(found, [(Kind::Batch, range(0, 3)), (Kind::Bytes, range(3, 6)), (Kind::Bytes, range(9, 12))]);
}

/// The finding in the segment at `base`, beside that its index is not that of so many bytes.
fn with_its_index(disk: &Memory, base: u64) -> Finding {
    let (mut findings, _) = disk.check();
    assert_eq!(findings.len(), 2, "{findings:#?}");
    let index = findings.pop().unwrap();
    assert_eq!((index.kind, &index.remedy), (Kind::Index, &Remedy::SetAside));
    assert_eq!(index.path, path(base).with_extension("idx"));
    findings.remove(0)
}

#[test]
fn a_missing_a_cut_and_a_lengthened_sealed_segment_are_found() {
    let mut disk = sound();
    disk.0.remove(&path(12));
    disk.0.remove(&path(12).with_extension("idx"));
    let found = disk.only();
    assert_eq!((found.kind, found.case, found.offsets), (Kind::Chain, Some('C'), range(12, 24)));
    assert_eq!(found.path, path(0));
    let mut disk = sound();
    disk.0.remove(&path(0));
    disk.0.remove(&path(0).with_extension("idx"));
    let found = disk.only();
    assert_eq!((found.kind, found.path, found.offsets), (Kind::Chain, PathBuf::from(DIR), range(0, 12)));
    let disk = sound();
    disk.0[&path(12)].borrow_mut().truncate(batch(3));
    let found = disk.check().0;
    assert!(found.iter().any(|found| found.kind == Kind::Chain && found.offsets == range(21, 24)), "{found:?}");
    let disk = sound();
    disk.0[&path(12)].borrow_mut().truncate(batch(3) + 100);
    let found = with_its_index(&disk, 12);
    assert_eq!((found.kind, found.offsets, is_lost(&found)), (Kind::Bytes, range(21, 24), true));
    let disk = sound();
    disk.0[&path(12)].borrow_mut().resize(1 << 20, 0);
    let found = with_its_index(&disk, 12);
    assert_eq!((found.kind, found.offsets), (Kind::Bytes, None), "no record is missing: {found:?}");
}

#[test]
fn a_segment_ends_where_the_next_one_begins_whatever_stands_behind() {
    // Whole batches, and the rest of one in the last block.
    for end in [batch(4), batch(3) + 100, batch(3) + 20] {
        let mut disk = sound();
        disk.0.retain(|path, _| path.to_str().unwrap().contains("00012.seg"));
        disk.0[&path(12)].borrow_mut().truncate(end);
        disk.put(path(0), segment(0, 4).0);
        disk.put(path(21), segment(21, 0).0);
        let found = disk.check().0;
        assert!(found.iter().all(|found| found.kind.is_harmless()), "{found:?}");
        let cut_off = found.iter().find(|found| found.kind == Kind::Deleted).map(|found| found.position);
        assert_eq!(cut_off, (end == batch(4)).then_some(Some(batch(3) as u64)));
    }
}

#[test]
fn a_ballot_is_known_and_one_without_an_intact_copy_is_found() {
    let mut disk = sound();
    let mut file = crate::log::envelope::seal(*b"PYV1", b"{}");
    file.resize(4096, 0);
    disk.put(PathBuf::from(DIR).join("ballot"), file);
    disk.put(PathBuf::from(DIR).join("ballot.new"), Vec::new());
    assert_eq!(disk.check().0, []);
    disk.flip(&PathBuf::from(DIR).join("ballot"), 17);
    let found = disk.only();
    assert_eq!((found.kind, found.path), (Kind::Ballot, PathBuf::from(DIR).join("ballot")));
}

#[test]
fn records_that_are_there_twice_are_case_f() {
    let mut disk = sound();
    disk.put(path(20), segment(20, 4).0);
    let found = disk.check().0;
    assert!(found.iter().any(|found| found.case == Some('F') && found.offsets == range(20, 21)), "{found:?}");
    let disk = sound();
    let twin = disk.0[&path(24)].borrow()[batch(0)..batch(1)].to_vec();
    disk.0[&path(24)].borrow_mut()[batch(2)..batch(3)].copy_from_slice(&twin);
    let found = disk.check().0;
    assert_eq!((found[0].case, found[0].kind, found[0].position), (Some('F'), Kind::Chain, Some(batch(2) as u64)));
}

#[test]
fn a_sidecar_that_differs_is_found_with_the_right_one_and_a_missing_one_is_harmless() {
    let mut disk = sound();
    let sidecar = path(0).with_extension("idx");
    let right = disk.0[&sidecar].borrow().clone();
    disk.flip(&sidecar, 30);
    let found = disk.only();
    assert_eq!((found.kind, &found.remedy), (Kind::Index, &Remedy::Rewrite(right.clone())));
    // Whole, but of fewer batches than there are.
    let key = SidecarKey { incarnation: header(0).incarnation, end_position: batch(4) as u64 };
    disk.put(sidecar.clone(), Index::default().to_sidecar(key));
    assert_eq!(disk.only().remedy, Remedy::Rewrite(right));
    disk.0.remove(&sidecar);
    let found = disk.only();
    assert!(found.kind == Kind::NoIndex && found.kind.is_harmless());
}

#[test]
fn a_tail_is_cut_off_only_where_its_first_sector_was_never_written() {
    let fill = |disk: &Memory, from: usize, to: usize, byte: u8| {
        disk.0[&path(24)].borrow_mut()[from..to].fill(byte);
    };
    // The last group is of two sectors, and nothing says that it was durable.
    let with_a_long_last_batch = || {
        let disk = sound();
        let mut bytes = disk.0[&path(24)].borrow_mut();
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &[7; 700], &[], 1).unwrap();
        let mut long = builder.finish().unwrap().to_vec();
        let fields = ServerFields {
            base_offset: Offset(36),
            durable_hint: Offset(30),
            leader_epoch: LeaderEpoch(1),
            incarnation: header(24).incarnation,
        };
        stamp(&mut long, fields);
        bytes[batch(4)..batch(4) + long.len()].copy_from_slice(&long);
        drop(bytes);
        disk
    };
    let end = |disk: &Memory, before: usize| {
        disk.0[&path(24)].borrow()[..before].iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
    };
    assert_eq!(with_a_long_last_batch().check().0, []);
    let disk = with_a_long_last_batch();
    fill(&disk, batch(4), batch(5), 0);
    let found = disk.only();
    assert_eq!((found.kind, found.case), (Kind::TornTail, Some('B')));
    let Remedy::Truncate(cut) = found.remedy else { panic!("{found:?}") };
    assert!((end(&disk, batch(4))..batch(4) as u64).contains(&cut), "{found:?}");
    // What else a loss of power leaves, rot may leave of a group that was acknowledged.
    for damage in [
        |disk: &Memory, fill: &dyn Fn(&Memory, usize, usize, u8)| fill(disk, batch(5), batch(6), 0),
        |disk: &Memory, fill: &dyn Fn(&Memory, usize, usize, u8)| fill(disk, batch(4), batch(5), 9),
        |disk: &Memory, _: &dyn Fn(&Memory, usize, usize, u8)| disk.flip(&path(24), batch(4) + 100),
        |disk: &Memory, _: &dyn Fn(&Memory, usize, usize, u8)| disk.0[&path(24)].borrow_mut().truncate(batch(5)),
    ] {
        let disk = with_a_long_last_batch();
        damage(&disk, &fill);
        let found = disk.only();
        assert_eq!((found.kind, found.case, &found.remedy), (Kind::TornTail, Some('B'), &Remedy::Copy(cut)));
    }
}

#[test]
fn damage_below_the_durable_hint_is_never_cut_off() {
    let disk = sound();
    disk.flip(&path(24), batch(1) + 100);
    let found = disk.only();
    assert_eq!((found.case, found.offsets, is_lost(&found)), (Some('C'), range(27, 30), true));
    let disk = sound();
    disk.0[&path(24)].borrow_mut()[batch(1)..batch(2)].fill(0);
    let found = disk.only();
    assert_eq!((found.case, found.offsets, is_lost(&found)), (Some('C'), range(27, 30), true));
    assert!(found.reason.ends_with("512 bytes hold no batch"), "{found:?}");
}

#[test]
fn a_damaged_last_header_is_case_e_an_empty_file_case_d_and_nothing_at_all_case_g() {
    let disk = sound();
    disk.flip(&path(24), 20);
    let found = disk.only();
    assert_eq!((found.case, is_lost(&found)), (Some('E'), true));
    let mut disk = sound();
    disk.put(path(36), vec![0; HEADER]);
    let found = disk.only();
    assert_eq!((found.case, &found.remedy), (Some('D'), &Remedy::SetAside));
    assert_eq!(Memory::default().only().case, Some('G'));
}

#[test]
fn what_stands_behind_a_damaged_header_is_checked() {
    for (victim, last) in [(0, false), (24, true)] {
        let disk = sound();
        disk.flip(&path(victim), 20);
        disk.flip(&path(victim), batch(1) + 100);
        disk.flip(&path(victim), batch(2) + 10);
        let (findings, totals) = disk.check();
        let about: Vec<_> = findings.iter().map(|found| (found.kind, found.offsets)).collect();
        assert_eq!(findings.iter().map(|found| found.case).collect::<Vec<_>>(), [Some('E'), Some('C'), Some('C')]);
        let whole = if last { None } else { range(0, 12) };
        let lost = [(victim + 3, victim + 6), (victim + 6, victim + 9)].map(|(from, to)| range(from, to));
        assert_eq!(about, [(Kind::Header, whole), (Kind::Batch, lost[0]), (Kind::Bytes, lost[1])]);
        assert!(findings[0].reason.ends_with("behind it 2 batches with 6 records are intact"), "{findings:?}");
        assert!(findings.iter().all(is_lost));
        assert_eq!(totals.records, 30);
    }
    // Of what is behind the last batch that is left nobody can say whether it was ever there.
    let disk = sound();
    disk.flip(&path(24), 20);
    disk.flip(&path(24), batch(3) + 10);
    let findings = disk.check().0;
    let about: Vec<_> = findings.iter().map(|found| (found.kind, found.offsets, found.case)).collect();
    assert_eq!(about, [(Kind::Header, None, Some('E')), (Kind::Bytes, None, Some('E'))]);
    assert_eq!(findings[1].remedy, Remedy::None("without the header nobody can say where the log ends"));
    // Of a block of 4096 bytes nobody knows then: what pads the groups is no damage.
    let disk = sound();
    let mut spread = disk.0[&path(12)].borrow()[..HEADER].to_vec();
    for number in 0..4 {
        spread.extend_from_slice(&disk.0[&path(12)].borrow()[batch(number)..batch(number + 1)]);
        spread.resize(spread.len().next_multiple_of(4096), 0);
    }
    spread[20] ^= 1;
    let mut disk = disk;
    disk.put(path(12), spread);
    disk.0.remove(&path(12).with_extension("idx"));
    let found = disk.check().0;
    assert_eq!(found.iter().map(|found| found.kind).collect::<Vec<_>>(), [Kind::Header, Kind::NoIndex]);
    // And of what holds no batch of it, that there is none.
    let disk = sound();
    disk.0[&path(12)].borrow_mut()[..batch(4)].fill(3);
    assert!(disk.only().reason.ends_with("no intact batch stands behind it"));
    let (sound, spoiled) = (sound().check().1, disk.check().1);
    assert_eq!((spoiled.segments, spoiled.bytes, spoiled.records), (sound.segments, sound.bytes, 24));
}

#[test]
fn the_sidecars_of_damaged_segments_are_checked() {
    let damages: [fn(&Memory); 4] = [
        |disk| disk.flip(&path(0), batch(1) + 100),
        |disk| disk.flip(&path(0), batch(0) + 10),
        |disk| disk.flip(&path(0), 20),
        |disk| disk.0[&path(0)].borrow_mut()[batch(0)..batch(4)].fill(3),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let mut disk = sound();
        damage(&disk);
        let of_index = |disk: &Memory| {
            let found = disk.check().0.into_iter().filter(|found| found.path == path(0).with_extension("idx"));
            found.map(|found| (found.kind, found.remedy)).collect::<Vec<_>>()
        };
        assert_eq!(of_index(&disk), [], "made before the damage {number}");
        disk.flip(&path(0).with_extension("idx"), 40);
        assert_eq!(of_index(&disk), [(Kind::Index, Remedy::SetAside)], "damage {number}");
        let key = SidecarKey { incarnation: header(0).incarnation, end_position: batch(4) as u64 };
        disk.put(path(0).with_extension("idx"), Index::default().to_sidecar(key));
        assert_eq!(of_index(&disk), [(Kind::Index, Remedy::SetAside)], "it leads nowhere, damage {number}");
        disk.0.remove(&path(0).with_extension("idx"));
        assert_eq!(of_index(&disk).iter().map(|found| found.0).collect::<Vec<_>>(), [Kind::NoIndex]);
    }
}

#[test]
fn a_file_of_another_version_is_all_that_is_said_and_nothing_is_to_be_done_to_it() {
    // With a checksum that is not that of our version.
    let spoil = |copy: &mut [u8]| (copy[3], copy[4]) = (b'2', copy[4] ^ 1);
    let say = |disk: &Memory, path: &Path| {
        disk.0[path].borrow_mut().chunks_mut(BLOCK).take(8).for_each(spoil);
    };
    for base in [0, 12, 24] {
        let disk = sound();
        spoil(&mut disk.0[&path(base)].borrow_mut());
        let found = disk.only();
        assert_eq!((found.kind, found.path.clone()), (Kind::Version, path(base)));
        assert!(is_lost(&found));
        assert_eq!(found.reason, "it has format version 2, this version reads 1");
    }
    let mut disk = sound();
    let (file, key) = (Path::new(DIR).join("start"), (LogUid(1), PartitionIndex(0)));
    disk.put(file.clone(), start::encode(key, Offset(0)).repeat(128));
    say(&disk, &file);
    assert_eq!((disk.only().kind, disk.only().path), (Kind::Version, file));
    let mut disk = sound();
    disk.0.remove(&path(0));
    disk.0.remove(&path(0).with_extension("idx"));
    let snapshot = path(24).with_extension("prd");
    disk.put(snapshot.clone(), b"PYP2 and what nobody here can read".to_vec());
    assert_eq!((disk.only().kind, disk.only().path), (Kind::Version, snapshot));
}

#[test]
fn another_partitions_segment_and_strange_names_are_found() {
    let files = |log, index| {
        let disk = sound();
        let files = PartitionFiles { dir: DIR.into(), log: Some(log), index, in_use: false };
        check_partition(&disk, files).unwrap().0
    };
    for found in [files(LogUid(2), PartitionIndex(0)), files(LogUid(1), PartitionIndex(3))] {
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|found| found.kind == Kind::Header && is_lost(found)));
    }
    let (name, sidecar) = ("no segment has such a name", "a sidecar without its segment");
    for (name, reason) in
        [("24.seg", name), ("00000000000000000005.idx", sidecar), ("00000000000000000005.prd", sidecar)]
    {
        let mut disk = sound();
        disk.put(Path::new(DIR).join(name), vec![1; 10]);
        let found = disk.only();
        assert_eq!((found.kind, &*found.reason, found.remedy), (Kind::Stray, reason, Remedy::SetAside), "{name}");
    }
    // What stands behind the end shows that it is not the end, and must stay.
    for name in ["00000000000000000099.idx", "00000000000000000099.prd"] {
        let mut disk = sound();
        disk.put(Path::new(DIR).join(name), vec![1; 10]);
        let found = disk.only();
        assert_eq!((found.kind, found.case), (Kind::Missing, Some('H')), "{name}");
        assert!(is_lost(&found));
    }
    let mut disk = Memory::default();
    disk.put(Path::new(DIR).join("begun"), Vec::new());
    assert_eq!(disk.only().case, Some('H'), "a log that has begun is not new");
    let mut disk = sound();
    disk.put(Path::new(DIR).join("notes.txt"), vec![1; 10]);
    let found = disk.only();
    assert!(found.kind.is_harmless() && is_lost(&found), "a file that nobody looks at stays: {found:?}");
}

#[test]
fn no_bytes_make_it_panic_or_run_for_ever() {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for _ in 0..300 {
        let disk = sound();
        let victim = &disk.0[&path([0, 12, 24][random() % 3])];
        let len = victim.borrow().len();
        let from = random() % (batch(4) + 100);
        let until = (from + random() % 3000).min(len);
        match random() % 4 {
            0 => victim.borrow_mut().truncate(from),
            1 => victim.borrow_mut()[from.min(until)..until].fill(0),
            2 => victim.borrow_mut()[from.min(until)..until].iter_mut().for_each(|byte| *byte = random() as u8),
            _ => victim.borrow_mut().copy_within(batch(0)..batch(2), from.min(len - 1024)),
        }
        disk.check();
        disk.check_as(None, true);
    }
}

/// Three segments of four batches of one producer, each of three records.
fn of_a_producer() -> (Memory, ProducerHistory) {
    let (mut disk, mut history) = (Memory::default(), ProducerHistory::default());
    for base in [0, 12, 24] {
        let (mut bytes, _) = segment(base, 4);
        for number in 0..4 {
            let at = batch(number);
            let mut builder = BatchBuilder::new(Codec::None);
            (0..3).for_each(|_| builder.push(None, &[7; 70], &[], 1).unwrap());
            let base_offset = Offset(base + 3 * number as u64);
            builder.producer(ProducerId(5), 0, Sequence(base_offset.0 as u32));
            let mut marked = builder.finish().unwrap().to_vec();
            history.note(&check_produced(&marked).unwrap().producer_mark().unwrap(), base_offset);
            let incarnation = header(base).incarnation;
            stamp(
                &mut marked,
                ServerFields { base_offset, durable_hint: base_offset, leader_epoch: LeaderEpoch(1), incarnation },
            );
            bytes[at..at + marked.len()].copy_from_slice(&marked);
        }
        if base == 12 {
            let snapshot = to_sidecar(&history, SnapshotKey::from(&header(24)));
            disk.put(path(24).with_extension("prd"), snapshot);
        }
        disk.put(path(base), bytes);
    }
    (disk, history)
}

fn about_producers(disk: &Memory) -> Vec<Finding> {
    disk.check().0.into_iter().filter(|finding| finding.kind == Kind::Producers).collect()
}

#[test]
fn a_snapshot_of_producers_that_differs_is_found_with_the_right_one() {
    let (mut disk, _) = of_a_producer();
    assert_eq!(about_producers(&disk), []);
    let sidecar = path(24).with_extension("prd");
    let right = disk.0[&sidecar].borrow().clone();
    let wrong = to_sidecar(&ProducerHistory::default(), SnapshotKey::from(&header(24)));
    for damaged in [wrong, b"nothing".to_vec(), Vec::new()] {
        disk.put(sidecar.clone(), damaged);
        let found = about_producers(&disk);
        assert_eq!((found.len(), &found[0].path), (1, &sidecar));
        assert_eq!(found[0].remedy, Remedy::Rewrite(right.clone()));
    }
}

#[test]
fn a_snapshot_is_believed_where_the_beginning_of_the_log_is_gone_and_a_damaged_one_goes() {
    let (mut disk, _) = of_a_producer();
    disk.0.remove(&path(0));
    assert_eq!(about_producers(&disk), []);
    disk.put(path(24).with_extension("prd"), b"nothing".to_vec());
    let found = about_producers(&disk);
    assert_eq!((found.len(), &found[0].remedy), (1, &Remedy::SetAside));
}

/// A start file that says `offset`.
fn start_file(offset: u64) -> Vec<u8> {
    start::encode((LogUid(1), PartitionIndex(0)), Offset(offset)).to_vec()
}

#[test]
fn what_was_trimmed_is_not_missed_and_what_is_left_of_it_is_harmless() {
    let mut disk = sound();
    let start_path = Path::new(DIR).join(start::FILE_NAME);
    let second = disk.0.keys().filter(|path| path.extension().is_some_and(|suffix| suffix == "seg")).nth(1);
    let second = crate::log::segment::base_offset_of(second.unwrap()).unwrap().0;
    disk.put(start_path.clone(), start_file(second + 1));
    let (findings, _) = disk.check();
    let about: Vec<(Kind, &Path)> = findings.iter().map(|finding| (finding.kind, finding.path.as_path())).collect();
    let index = path(0).with_extension("idx");
    assert_eq!(about, [(Kind::Deleted, path(0).as_path()), (Kind::Deleted, index.as_path())]);
    assert!(about.iter().all(|(kind, _)| kind.is_harmless()));
    disk.0.remove(&path(0));
    disk.0.remove(&index);
    assert_eq!(disk.check().0, [], "the first segment is gone");
    for left in [path(0).with_extension("del"), Path::new(DIR).join("start.new")] {
        disk.put(left.clone(), vec![1; 10]);
        assert_eq!((disk.only().kind, disk.only().path), (Kind::Deleted, left.clone()));
        disk.0.remove(&left);
    }
    disk.put(start_path.clone(), start_file(second - 1));
    let missing = disk.only();
    assert_eq!((missing.kind, missing.offsets), (Kind::Chain, range(second - 1, second)));
    disk.put(start_path, start_file(1_000_000));
    assert!(disk.check().0.iter().any(|finding| finding.case == Some('J') && finding.kind.is_harmless()));
}

#[test]
fn a_damaged_start_file_is_case_i_and_can_be_set_aside() {
    let mut disk = sound();
    let path = Path::new(DIR).join(start::FILE_NAME);
    disk.put(path.clone(), start_file(0));
    assert_eq!(disk.check().0, []);
    disk.flip(&path, 30);
    let finding = disk.only();
    assert_eq!((finding.kind, finding.case, finding.remedy), (Kind::Start, Some('I'), Remedy::SetAside));
}

#[test]
fn what_is_about_to_be_cut_off_is_not_checked() {
    for (at, holder, records) in [(23, 12, 24), (11, 0, 12)] {
        let mut disk = sound();
        disk.flip(&path(24), batch(1) + 100);
        let cut = Cut::End { at: Offset(at), holder: Offset(holder), end_position: u64::MAX };
        let mut bytes = cut.encode((LogUid(1), PartitionIndex(0))).to_vec();
        bytes.resize(BLOCK, 0);
        disk.put(Path::new(DIR).join(cut::FILE_NAME), bytes);
        let (findings, totals) = disk.check();
        assert_eq!(totals.records, records, "cut at {at}: {findings:?}");
        assert!(!findings.iter().any(|found| found.path == path(24)), "cut at {at}: {findings:?}");
    }
}

#[test]
fn every_kind_of_finding_has_a_name_of_its_own() {
    let kinds = [
        Kind::Version,
        Kind::Catalog,
        Kind::Unreadable,
        Kind::Header,
        Kind::Batch,
        Kind::Bytes,
        Kind::Chain,
        Kind::TornTail,
        Kind::EmptySegment,
        Kind::NoSegment,
        Kind::Missing,
        Kind::Index,
        Kind::NoIndex,
        Kind::Producers,
        Kind::Start,
        Kind::Ballot,
        Kind::Deleted,
        Kind::Stray,
        Kind::Diverges,
        Kind::Unsettled,
        Kind::Unknown,
    ];
    let names: std::collections::BTreeSet<&str> = kinds.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), kinds.len());
    assert!(
        names.iter().all(|name| name.len() > 3 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
    );
}

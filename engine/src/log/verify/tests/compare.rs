//! Two copies of a partition, held against each other.

use super::*;
use crate::{
    log::verify::{CopyFiles, compare_copies},
    record::check_stored_header,
};

/// The sound partition twice; `change` gets the second copy's segment at 12.
fn two_copies(change: impl Fn(&mut Vec<u8>)) -> Memory {
    let mut disk = sound();
    for base in [0, 12, 24] {
        let mut bytes = disk.0[&path(base)].borrow().clone();
        if base == 12 {
            change(&mut bytes);
        }
        disk.put(segment_path(Path::new("/e"), Offset(base)), bytes);
    }
    disk
}

fn compare(disk: &Memory, committed: [u64; 2], in_use: bool) -> Vec<Finding> {
    let copies = [(DIR, committed[0]), ("/e", committed[1])].map(|(dir, committed)| CopyFiles {
        files: PartitionFiles { dir: dir.into(), log: Some(LogUid(1)), index: PartitionIndex(0), in_use },
        committed: Offset(committed),
    });
    compare_copies(disk, &copies).unwrap()
}

/// Says of a batch that it is of another reign.
fn of_another_reign(bytes: &mut [u8], number: usize) {
    let place = &mut bytes[batch(number)..batch(number + 1)];
    let header = check_stored_header(place).unwrap();
    let (base_offset, durable_hint, incarnation) = (header.base_offset, header.durable_hint, header.incarnation);
    let leader_epoch = LeaderEpoch(2);
    stamp(&mut place[..header.batch_len()], ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
}

/// Other records in its place, of the same reign and length.
fn of_other_records(bytes: &mut [u8], number: usize) {
    let place = &mut bytes[batch(number)..batch(number + 1)];
    let header = check_stored_header(place).unwrap();
    let mut builder = BatchBuilder::new(Codec::None);
    (0..3).for_each(|_| builder.push(None, &[8; 70], &[], 1).unwrap());
    place[..header.batch_len()].copy_from_slice(&builder.finish().unwrap());
    let (base_offset, durable_hint) = (header.base_offset, header.durable_hint);
    let (leader_epoch, incarnation) = (header.leader_epoch, header.incarnation);
    stamp(&mut place[..header.batch_len()], ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
}

#[test]
fn copies_that_lack_something_or_have_it_damaged_do_not_differ() {
    assert_eq!(compare(&two_copies(|_| ()), [36, 36], false), []);
    assert_eq!(compare(&two_copies(|bytes| bytes[batch(1) + 100] ^= 1), [36, 36], false), []);
    assert_eq!(compare(&two_copies(|bytes| bytes.truncate(batch(2))), [36, 36], false), []);
    let mut disk = two_copies(|_| ());
    disk.0.remove(&segment_path(Path::new("/e"), Offset(12)));
    assert_eq!(compare(&disk, [36, 36], false), []);
}

#[test]
fn other_records_of_one_reign_can_never_be_and_of_two_reigns_not_where_both_know_that_all_is_final() {
    let other_reign: fn(&mut Vec<u8>) = |bytes| (1..3).for_each(|number| of_another_reign(bytes, number));
    let other_records: fn(&mut Vec<u8>) = |bytes| (1..3).for_each(|number| of_other_records(bytes, number));
    for (change, committed, expected) in [
        (other_records, [0, 0], vec![(Kind::Diverges, range(15, 21))]),
        (other_records, [36, 36], vec![(Kind::Diverges, range(15, 21))]),
        (other_reign, [36, 36], vec![(Kind::Diverges, range(15, 21))]),
        (other_reign, [19, 36], vec![(Kind::Diverges, range(15, 21))]),
        (other_reign, [36, 18], vec![(Kind::Diverges, range(15, 18)), (Kind::Unsettled, range(18, 21))]),
        (other_reign, [15, 36], vec![(Kind::Unsettled, range(15, 21))]),
        (other_reign, [0, 36], vec![(Kind::Unsettled, range(15, 21))]),
    ] {
        let found = compare(&two_copies(change), committed, false);
        let about: Vec<_> = found.iter().map(|found| (found.kind, found.offsets)).collect();
        assert_eq!(about, expected, "final up to {committed:?}: {found:?}");
        assert_eq!((&found[0].path, found[0].position), (&path(12), Some(batch(1) as u64)));
    }
}

#[test]
fn the_last_segments_of_running_servers_are_not_held_against_each_other() {
    for (in_use, count) in [(false, 1), (true, 0)] {
        let disk = two_copies(|_| ());
        let last = segment_path(Path::new("/e"), Offset(24));
        of_other_records(&mut disk.0[&last].borrow_mut(), 1);
        assert_eq!(compare(&disk, [36, 36], in_use).len(), count, "in use: {in_use}");
        let disk = two_copies(|bytes| of_other_records(bytes, 1));
        assert_eq!(compare(&disk, [36, 36], in_use).len(), 1, "in use: {in_use}");
    }
}

#[test]
fn what_one_copy_is_about_to_cut_off_is_not_held_against_the_other() {
    for (is_cut, expected) in [(false, range(3, 30)), (true, range(3, 6))] {
        let mut disk = two_copies(|bytes| of_other_records(bytes, 1));
        for base in [0, 24] {
            let file = segment_path(Path::new("/e"), Offset(base));
            of_other_records(&mut disk.0[&file].borrow_mut(), 1);
        }
        if is_cut {
            let cut = Cut::End { at: Offset(12), holder: Offset(0), end_position: batch(4) as u64 };
            let bytes = cut.encode((LogUid(1), PartitionIndex(0))).to_vec();
            disk.put(Path::new("/e").join(cut::FILE_NAME), bytes);
        }
        let found = compare(&disk, [36, 36], false);
        assert_eq!((found.len(), found[0].offsets), (1, expected), "{found:?}");
    }
}

//! Where a log or a segment ends: what is missing there, what is room, and what was cut off.

use super::*;

#[test]
fn a_log_that_begins_where_it_ends_is_empty_and_not_cut_short() {
    for (start, is_beyond) in [(36, false), (37, true)] {
        let mut disk = sound();
        let bytes = start::encode((LogUid(1), PartitionIndex(0)), Offset(start)).to_vec();
        disk.put(Path::new(DIR).join(start::FILE_NAME), bytes);
        let found = disk.check().0;
        assert_eq!(found.iter().any(|found| found.case == Some('J')), is_beyond, "{start}: {found:?}");
        assert!(found.iter().all(|found| found.kind == Kind::Deleted));
    }
}

#[test]
fn the_index_of_a_sound_segment_can_be_written_as_it_should_be() {
    let mut disk = sound();
    let right = disk.0.remove(&path(0).with_extension("idx")).unwrap();
    let found = disk.only();
    assert_eq!((found.kind, &found.remedy), (Kind::NoIndex, &Remedy::Rewrite(right.borrow().clone())));
}

#[test]
fn records_that_are_missing_at_the_end_of_a_segment_are_missed_though_its_header_is_damaged() {
    let mut disk = sound();
    disk.0.remove(&path(12).with_extension("idx"));
    disk.0[&path(12)].borrow_mut().truncate(batch(3));
    disk.flip(&path(12), 20);
    let found: Vec<_> = disk.check().0.iter().map(|found| (found.kind, found.offsets)).collect();
    assert_eq!(found, [(Kind::Header, range(12, 24)), (Kind::NoIndex, None), (Kind::Chain, range(21, 24))]);
}

#[test]
fn what_recovery_would_cut_off_was_durable_if_a_batch_says_so_that_only_the_walk_finds() {
    let disk = sound();
    {
        // The last batch within the group of the one before, whose header is damaged: no group begins with it.
        let mut bytes = disk.0[&path(24)].borrow_mut();
        let last = bytes[batch(3)..batch(4)].to_vec();
        bytes[batch(2) + 10] ^= 1;
        bytes[batch(3)..batch(4)].fill(0);
        bytes[batch(2) + 320..batch(3) + 320].copy_from_slice(&last);
    }
    let found = disk.only();
    assert_eq!((found.kind, found.case, found.offsets), (Kind::Bytes, Some('C'), range(30, 33)), "{found:?}");
    assert!(is_lost(&found));
}

#[test]
fn behind_a_whole_segment_the_rest_of_a_block_is_room_and_more_than_that_is_said() {
    for (garbage, is_said) in [(4095, false), (4096, true), (9000, true)] {
        let mut disk = sound();
        disk.0.remove(&path(12).with_extension("idx"));
        let end = disk.0[&path(12)].borrow().len();
        disk.0[&path(12)].borrow_mut().resize(end + garbage, 9);
        let found = disk.check().0;
        let bytes: Vec<_> = found.iter().filter(|found| found.kind == Kind::Bytes).collect();
        assert_eq!(bytes.len(), usize::from(is_said), "{garbage} bytes: {found:?}");
        assert!(bytes.iter().all(|found| found.position == Some(end as u64) && found.offsets.is_none()));
    }
}

#[test]
fn of_a_damaged_header_it_is_said_what_is_wrong_with_it_and_of_a_missing_one_that_it_is() {
    let disk = sound();
    disk.flip(&path(12), 20);
    let reason = disk.only().reason;
    assert!(reason.starts_with("the header block is damaged: its checksum is wrong; "), "{reason}");
    let mut disk = sound();
    disk.put(path(12), vec![0; HEADER]);
    disk.0.remove(&path(12).with_extension("idx"));
    let reason = &disk.check().0[0].reason;
    assert!(reason.starts_with("its header block is missing; "), "{reason}");
}

#[test]
fn batches_of_the_next_segment_behind_a_gap_are_said_to_be_there_and_those_before_them_to_be_missing() {
    let mut disk = sound();
    disk.0.remove(&path(12).with_extension("idx"));
    {
        let mut bytes = disk.0[&path(12)].borrow_mut();
        let place = &mut bytes[batch(3)..batch(4)];
        let fields = ServerFields {
            base_offset: Offset(24),
            durable_hint: Offset(12),
            leader_epoch: LeaderEpoch(1),
            incarnation: header(12).incarnation,
        };
        stamp(place, fields);
    }
    let found: Vec<_> = disk.check().0.iter().map(|found| (found.kind, found.case, found.offsets)).collect();
    let chain = |case, first, end| (Kind::Chain, Some(case), range(first, end));
    assert_eq!(found, [chain('C', 21, 24), (Kind::NoIndex, None, None), chain('F', 24, 27)]);
}

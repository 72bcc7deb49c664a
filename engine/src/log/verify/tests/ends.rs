//! Where a log or a segment ends: what is missing there, what is room, and what was cut off.

use std::ops::ControlFlow;

use super::*;
use crate::{
    log::{
        last_segment::LastScan,
        verify::{Piece, walk_segment},
    },
    record::check_stored_header,
    runtime::sim::SimRandom,
};

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

#[test]
fn garbage_in_padding_is_said_of_a_sealed_segment_to_cost_no_record_and_of_the_last_one_not_at_all() {
    let mut disk = sound();
    for base in [0, 24] {
        let mut bytes = disk.0[&path(base)].borrow_mut();
        let end = batch(1) + check_stored_header(&bytes[batch(1)..]).unwrap().batch_len();
        bytes[end..batch(2)].fill(9);
    }
    disk.0.remove(&path(0).with_extension("idx"));
    let found: Vec<_> = disk.check().0.into_iter().filter(|found| found.kind != Kind::NoIndex).collect();
    let nothing = Remedy::None("no record is missing there, so nothing has to be restored");
    assert_eq!((found.len(), &found[0].path, found[0].offsets, &found[0].remedy), (1, &path(0), None, &nothing));
}

/// A segment of right and wrong batches, zeros and garbage in any order.
fn drawn(random: &mut SimRandom) -> Vec<u8> {
    let header = header(0);
    let mut file = header.encode().to_vec();
    file.resize(HEADER, 0);
    let mut next = 0;
    for _ in 0..random.within(1..25) {
        let (one, behind) = (random.within(1..700) as usize, file.len().next_multiple_of(BLOCK));
        match random.below(12) {
            0 => file.resize(file.len() + one, 9),
            1 => file.resize(file.len() + one, 0),
            2 | 3 => file.resize(behind, 9),
            4 | 5 => file.resize(behind, 0),
            _ => {
                let (mut batch, _) = segment(0, 1);
                let mut batch = batch.split_off(HEADER);
                batch.truncate(check_stored_header(&batch).unwrap().batch_len());
                let other = random.happens(800);
                let fields = ServerFields {
                    base_offset: Offset(if other { random.below(40) } else { next }),
                    durable_hint: Offset(if random.happens(500) { random.below(40) } else { 0 }),
                    leader_epoch: LeaderEpoch(1),
                    incarnation: Incarnation(header.incarnation.0 + u32::from(random.happens(500))),
                };
                stamp(&mut batch, fields);
                if random.happens(800) {
                    batch[random.below(300) as usize] ^= 1;
                }
                file.extend_from_slice(&batch);
                next = fields.base_offset.0 + 3;
            }
        }
    }
    file
}

/// Where the intact batches end that a walk comes by from the beginning of a file on, and behind how many of them
/// garbage in padding stands.
fn walked_to(file: &Bytes) -> (Offset, usize) {
    let (mut end_offset, mut is_intact, mut at) = (Offset(0), true, HEADER as u64);
    let mut passed = 0;
    let mut see = |piece: Piece<'_>| {
        let (position, end) = match piece {
            Piece::Batch { position, header, bytes, damage } => {
                is_intact &= damage.is_none() && header.base_offset == end_offset;
                end_offset = if is_intact { header.end_offset() } else { end_offset };
                (position, position + bytes.len() as u64)
            }
            Piece::Gap { position, end, .. } => {
                is_intact &= !position.is_multiple_of(BLOCK as u64) && end == position.next_multiple_of(BLOCK as u64);
                passed += usize::from(is_intact);
                (position, end)
            }
        };
        assert!(position >= at && end >= position, "pieces overlap at {position}, {at} was reached");
        at = end;
        ControlFlow::Continue(())
    };
    walk_segment(file, &header(0), &mut see).unwrap();
    (end_offset, passed)
}

#[test]
fn whatever_a_segment_holds_the_walk_and_recovery_end_alike_and_no_remedy_takes_what_is_served() {
    let (mut all_passed, mut torn) = (0, 0);
    for seed in 0..4000 {
        let mut disk = Memory::default();
        disk.put(path(0), drawn(&mut SimRandom::new(seed, 1)));
        let file = &disk.0[&path(0)];
        let mut scan = LastScan::new(path(0), header(0), file.size().unwrap());
        while let Some((position, len)) = scan.wants() {
            scan.take(&file.read_at(position, len).unwrap());
        }
        let found = scan.verdict();
        let (end_offset, passed) = walked_to(file);
        assert_eq!(end_offset, found.end_offset, "seed {seed}");
        all_passed += passed;
        for finding in disk.check().0 {
            if let Remedy::Truncate(at) | Remedy::Copy(at) = finding.remedy {
                let is_torn = found.damage.is_none() && found.torn && found.cut_position == at;
                assert!(is_torn, "seed {seed}: {finding:?}");
                torn += 1;
            }
        }
    }
    assert!(all_passed > 100 && torn > 100, "{all_passed} and {torn}");
}

//! The world in which damage is written over, and what is left of it when the power is lost on the way.

use std::path::Path;

use super::*;
use crate::{
    log::{
        fixture::{DIR, append_each, batch_of, context, cut_everywhere, edit, mapping_context, open, placed},
        flush::Commit,
        loading::headers_of,
        read::ReadRange,
        scrub::{ScrubPace, scrub},
        segment::segment_path,
    },
    record::check_produced,
    runtime::sim::{Sim, SimConfig, SimRuntime},
};

const STEPS: u64 = 2_000_000;
const BLOCK: u32 = 512;

/// Batches of these lengths from `offset` on, as another replica has them: in a file of another incarnation.
fn theirs(offset: u64, lens: &[usize]) -> Bytes {
    let mut all = Vec::new();
    for (offset, len) in (offset..).zip(lens) {
        let at = all.len();
        all.extend_from_slice(&batch_of(*len));
        let (base_offset, durable_hint) = (Offset(offset), Offset(offset));
        let (leader_epoch, incarnation) = (crate::types::LeaderEpoch(1), crate::types::Incarnation(77));
        stamp(&mut all[at..], ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
    }
    all.into()
}

fn wanted(lens: &[usize]) -> Vec<Wanted> {
    let to = Offset(lens.len() as u64);
    let lost = Lost { position: 0, end_position: 0, from: Offset(0), to, reason: String::new() };
    split(&theirs(0, lens), &lost).unwrap()
}

/// A log of groups of batches of these lengths, all in the active segment.
async fn log_of(context: &Rc<crate::log::LogContext<SimRuntime>>, groups: &[&[usize]]) -> Rc<Log<SimRuntime>> {
    let log = open(context).await.log;
    let mut offset = 0;
    for group in groups {
        for len in *group {
            let batch = batch_of(*len);
            log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
            offset += 1;
        }
        log.write_waiting(Commit::Durable).await.unwrap();
    }
    log
}

/// The offsets that a reader of all from `offset` on gets at once.
async fn offsets(log: &Rc<Log<SimRuntime>>, offset: u64, end: u64) -> Result<Vec<u64>, crate::error::RequestError> {
    let range = ReadRange { offset: Offset(offset), end: Offset(end), max_bytes: 1 << 20 };
    let pieces = log.read_disk(range).await?;
    Ok(pieces.iter().flat_map(headers_of).map(|header| header.base_offset.0).collect())
}

/// The damage that a reader of the record at `offset` meets.
async fn loss_at(log: &Rc<Log<SimRuntime>>, offset: u64, end: u64) -> Loss {
    offsets(log, offset, end).await.unwrap_err();
    log.losses().at(Offset(offset)).unwrap()
}

fn run<Fut: Future<Output = ()> + 'static>(story: impl FnOnce(SimRuntime) -> Fut + 'static) {
    let sim = Sim::new(1, &SimConfig::default());
    let (_, cores) = sim.process(1);
    sim.block_on(&cores[0], story(cores[0].clone()), STEPS).unwrap();
}

#[test]
fn batches_are_arranged_as_flush_groups_do_it_or_not_at_all() {
    let place = |start, end, may_be_short| Place { span: (start, end), block: BLOCK, may_be_short };
    let at = |place: Place, lens: &[usize]| place.arrange(&wanted(lens), |_| None);
    assert_eq!(at(place(100, 400, false), &[300]), Some(vec![100]));
    assert_eq!(at(place(100, 512, false), &[300]), Some(vec![100]), "the padding is part of it");
    assert_eq!(at(place(100, 1024, false), &[300]), Some(vec![512]), "a group of its own");
    assert_eq!(at(place(100, 1536, false), &[300]), None, "a block of zeros would be a hole");
    assert_eq!(at(place(100, 1536, true), &[300]), Some(vec![100]), "nothing is behind it");
    assert_eq!(at(place(100, 390, false), &[300]), None);
    assert_eq!(at(place(0, 1536, false), &[200, 200, 200]), Some(vec![0, 512, 1024]));
    assert_eq!(at(place(0, 1024, false), &[200, 200, 200]), Some(vec![0, 200, 400]));
    let second = place(0, 1024, false)
        .arrange(&wanted(&[200, 200, 200]), |header| (header.base_offset == Offset(1)).then_some(512));
    assert_eq!(second, Some(vec![0, 512, 712]), "where the index leads to");
    let many = vec![100; 3000];
    assert_eq!(at(place(0, 300_000, false), &many).map(|all| all[2999]), Some(299_900));
}

#[test]
fn damage_is_written_over_where_it_is_and_nothing_else_is_touched() {
    run(|runtime| async move {
        let context = context(&runtime, BLOCK);
        let log = log_of(&context, &[&[300, 400, 300], &[500], &[200, 200]]).await;
        let path = segment_path(Path::new(DIR), Offset(0));
        let whole = runtime.open(&path, OpenMode::Existing).await.unwrap();
        let before = whole.read_at(0, 8192).await.unwrap();
        // In the body of the second batch; in the header of the third and all of the fourth.
        for (first, last, span) in [(1, 2, 4396..4796), (2, 4, 4796..5600), (0, 6, 4096..6144)] {
            edit(&runtime, &path, 4096..8192, |bytes| {
                bytes[(span.start - 4096 + 90) as usize..(span.end - 4096) as usize].fill(0xa5);
                bytes[(span.start - 4096 + 5) as usize] ^= u8::from(first != 1);
            })
            .await;
            let loss = loss_at(&log, first, 6).await;
            assert_eq!((loss.lost.from, loss.lost.to), (Offset(first), Offset(last)), "{loss:?}");
            assert_eq!(log.look_again(&loss).await, Ok(Look::Lost));
            let lens = &[300, 400, 300, 500, 200, 200][first as usize..last as usize];
            let refused = log.rewrite(&loss, &theirs(first, lens), Offset(last - 1)).await;
            assert!(matches!(refused, Err(RewriteError::Misfit { .. })), "{refused:?}: not durable");
            log.rewrite(&loss, &theirs(first, lens), Offset(6)).await.unwrap();
            assert!(log.losses().is_empty());
            assert_eq!(offsets(&log, 0, 6).await.unwrap(), [0, 1, 2, 3, 4, 5]);
            assert_eq!(log.look_again(&loss).await, Ok(Look::Intact));
            let after = whole.read_at(0, 8192).await.unwrap();
            let differs: Vec<_> = (0..8192).filter(|at| before[*at] != after[*at]).collect();
            let (from, to) = (loss.lost.position as usize, loss.lost.end_position as usize);
            assert!(differs.iter().all(|at| (from..to).contains(at)), "{differs:?}, within {from} to {to}");
            // Of one batch only the hint may be another, and the checksum over it.
            let is_hint = |at: &usize| (from + 4..from + 24).contains(at);
            assert!(last > first + 1 || differs.iter().all(is_hint), "{differs:?} from {from} on");
            edit(&runtime, &path, 4096..8192, |bytes| bytes.copy_from_slice(&before[4096..])).await;
        }
    });
}

#[test]
fn damage_that_the_drive_once_showed_in_a_wrong_place_is_looked_for_anew_and_nothing_is_written_there() {
    run(|runtime| async move {
        let context = context(&runtime, BLOCK);
        // Three batches of each group would fit into a place of two blocks less.
        let lens: &[&[usize]] = &[&[200], &[200], &[200], &[200], &[300, 200], &[500]];
        let log = log_of(&context, lens).await;
        let path = segment_path(Path::new(DIR), Offset(0));
        let file = runtime.open(&path, OpenMode::Existing).await.unwrap();
        let before = file.read_at(0, 8192).await.unwrap();
        let lost = |from: u64, to: u64, position: u64, end_position: u64| {
            let reason = "as a drive showed it".to_owned();
            Loss {
                file: path.clone(),
                lost: Lost { position, end_position, from: Offset(from), to: Offset(to), reason },
            }
        };
        for is_damaged in [false, true] {
            if is_damaged {
                edit(&runtime, &path, 5120..5632, |bytes| bytes[5] ^= 1).await;
            }
            for wrong in
                [lost(1, 4, 4608, 5632), lost(0, 4, 4096, 5120), lost(2, 5, 4608, 6656), lost(2, 4, 5120, 5632)]
            {
                log.remember(vec![wrong.clone()]);
                assert_eq!(log.look_again(&wrong).await, Ok(Look::Intact), "{wrong:?}");
                let known = log.losses().all();
                assert_eq!(known.len(), usize::from(is_damaged), "{known:?}");
                let right = lost(2, 3, 5120, 5632).lost;
                assert!(
                    known.iter().all(|loss| loss.lost == Lost { reason: loss.lost.reason.clone(), ..right.clone() })
                );
            }
        }
        let loss = log.losses().all().remove(0);
        assert_eq!(log.look_again(&loss).await, Ok(Look::Lost));
        log.rewrite(&loss, &theirs(2, &[200]), Offset(7)).await.unwrap();
        assert_eq!(offsets(&log, 0, 7).await.unwrap(), [0, 1, 2, 3, 4, 5, 6]);
        let after = file.read_at(0, 8192).await.unwrap();
        let differs: Vec<_> = (0..8192).filter(|at| before[*at] != after[*at]).collect();
        assert!(differs.iter().all(|at| (5124..5144).contains(at)), "only its hint: {differs:?}");
    });
}

#[test]
fn batches_of_the_active_segment_are_written_nowhere_but_where_its_index_leads() {
    run(|runtime| async move {
        let context = context(&runtime, BLOCK);
        let log = log_of(&context, &[&[8900], &[8900], &[8900], &[8900]]).await;
        let path = segment_path(Path::new(DIR), Offset(0));
        let file = runtime.open(&path, OpenMode::Existing).await.unwrap();
        let before = file.read_at(0, 65536).await.unwrap();
        // As one group the two would fit into that; the index has the second of them.
        let (from, to, position, end_position) = (Offset(1), Offset(3), 13312, 31232);
        let lost = Lost { position, end_position, from, to, reason: String::new() };
        let loss = Loss { file: path.clone(), lost };
        let refused = log.rewrite(&loss, &theirs(1, &[8900, 8900]), Offset(4)).await;
        assert!(matches!(refused, Err(RewriteError::Misfit { .. })), "{refused:?}");
        assert!(file.read_at(0, 65536).await.unwrap() == before);
    });
}

#[test]
fn what_does_not_fit_or_is_not_what_was_there_is_refused() {
    run(|runtime| async move {
        let context = context(&runtime, BLOCK);
        let log = log_of(&context, &[&[300, 400, 300]]).await;
        let path = segment_path(Path::new(DIR), Offset(0));
        edit(&runtime, &path, 4096..4608, |bytes| bytes[300 + 100] ^= 1).await;
        let loss = loss_at(&log, 1, 3).await;
        for (offset, lens) in [(1, &[399][..]), (1, &[401]), (1, &[200, 200])] {
            let refused = log.rewrite(&loss, &theirs(offset, lens), Offset(3)).await.unwrap_err();
            let expected = if lens.len() > 1 {
                matches!(refused, RewriteError::Wrong { .. } | RewriteError::Misfit { .. })
            } else {
                matches!(refused, RewriteError::Misfit { .. })
            };
            assert!(expected, "{refused:?}");
        }
        let mut spoiled = theirs(1, &[400]).to_vec();
        spoiled[200] ^= 1;
        for wrong in [theirs(2, &[400]), theirs(1, &[400]).slice(..390), spoiled.into(), Bytes::new()] {
            let refused = log.rewrite(&loss, &wrong, Offset(3)).await.unwrap_err();
            assert!(matches!(refused, RewriteError::Wrong { .. }), "{refused:?}");
        }
        assert_eq!(log.look_again(&loss).await, Ok(Look::Lost));
        assert_eq!(log.losses().all(), std::slice::from_ref(&loss));
        edit(&runtime, &path, 4096..4608, |bytes| bytes[300 + 100] ^= 1).await;
        assert_eq!(log.look_again(&loss).await, Ok(Look::Intact), "the drive had answered with other bytes");
        assert!(log.losses().is_empty());
    });
}

#[test]
fn a_place_can_be_taken_to_reach_behind_the_next_batch_and_that_is_written_over_too() {
    run(|runtime| async move {
        let context = context(&runtime, BLOCK);
        let log = log_of(&context, &[&[300], &[400, 300], &[300]]).await;
        let path = segment_path(Path::new(DIR), Offset(0));
        edit(&runtime, &path, 4608..5120, |bytes| bytes[100] ^= 1).await;
        let loss = loss_at(&log, 1, 4).await;
        let mut wider = loss.clone();
        let mut ends = Vec::new();
        while let Some(next) = log.widened(&wider).await.unwrap() {
            ends.push((next.lost.to.0, next.lost.end_position));
            wider = next;
        }
        assert_eq!(ends[..2], [(3, 5632), (4, 6144)], "up to the next batch, and up to the end");
        let lost = Lost { end_position: 5632, to: Offset(3), ..loss.lost.clone() };
        let wider = Loss { lost, ..loss };
        assert_eq!(log.rewrite(&wider, &theirs(1, &[400, 300]), Offset(4)).await, Ok(2));
        assert!(log.losses().is_empty(), "the narrower one is repaired with it");
        assert_eq!(offsets(&log, 0, 4).await.unwrap(), [0, 1, 2, 3]);
    });
}

#[test]
fn a_sealed_segment_is_repaired_also_while_it_is_mapped_and_its_index_is_as_if_nothing_had_been() {
    run(|runtime| async move {
        let context = mapping_context(&runtime, 1 << 20);
        let log = open(&context).await.log;
        append_each(&log, &batch_of(8192), 0..300).await;
        let path = segment_path(Path::new(DIR), Offset(0));
        let right = log.segment_of(Offset(0)).unwrap().index.borrow().clone();
        let held = log.read_disk(ReadRange { offset: Offset(40), end: Offset(300), max_bytes: 1 }).await.unwrap();
        drop(log);
        // Its index is made anew from what is left.
        runtime.remove_file(&path.with_extension("idx")).await.unwrap();
        edit(&runtime, &path, 4096 + 8192 * 20..4096 + 8192 * 21, |bytes| bytes[200] ^= 1).await;
        let log = open(&context).await.log;
        let loss = loss_at(&log, 20, 300).await;
        let refused = log.rewrite(&loss, &theirs(20, &[8192]), Offset(300)).await;
        assert_eq!(refused, Err(RewriteError::Busy { path: path.clone() }), "an answer is on its way");
        drop(held);
        log.rewrite(&loss, &theirs(20, &[8192]), Offset(300)).await.unwrap();
        assert_eq!(offsets(&log, 20, 21).await.unwrap(), [20]);
        assert_eq!(*log.segment_of(Offset(0)).unwrap().index.borrow(), right);
    });
}

#[test]
fn the_header_block_of_a_sealed_segment_is_told_by_its_batches() {
    run(|runtime| async move {
        for block in [512, 4096] {
            let context = context(&runtime, block);
            let log = open(&context).await.log;
            append_each(&log, &batch_of(3000), 0..600).await;
            let path = log.segment_of(Offset(0)).unwrap().path.clone();
            drop(log);
            edit(&runtime, &path, 0..4096, |bytes| bytes[20] ^= 1).await;
            let log = open(&context).await.log;
            let loss = loss_at(&log, 7, 600).await;
            assert_eq!(loss.lost.from, Offset(0));
            assert_eq!(log.look_again(&loss).await, Ok(Look::Restored));
            assert_eq!(offsets(&log, 7, 8).await.unwrap()[0], 7);
            let reopened = open(&context).await.log;
            assert_eq!(offsets(&reopened, 7, 8).await.unwrap()[0], 7);
            // What is known of producers can be kept by now.
            runtime.sleep(std::time::Duration::from_millis(50)).await;
            Box::pin(clear(&runtime)).await;
        }
    });
}

async fn clear(runtime: &SimRuntime) {
    for entry in runtime.list_dir(Path::new(DIR)).await.unwrap() {
        runtime.remove_file(&entry.path).await.unwrap();
    }
}

#[test]
fn power_that_is_lost_while_damage_is_written_over_leaves_damage_there_and_nowhere_else() {
    let lens: &[&[usize]] = &[&[300, 400, 300], &[500]];
    cut_everywhere(
        |runtime| context(runtime, BLOCK),
        |context| async move {
            let log = log_of(&context, lens).await;
            log.sync().await.unwrap();
            // Something behind it says that all of it is durable.
            let batch = batch_of(200);
            log.append(&batch, &check_produced(&batch).unwrap(), placed(4, 4));
            log.write_waiting(Commit::Durable).await.unwrap();
            let path = segment_path(Path::new(DIR), Offset(0));
            edit(&context.runtime, &path, 4096..5120, |bytes| bytes[300..720].fill(9)).await;
            context.runtime.open(&path, OpenMode::Existing).await.unwrap().fdatasync().await.unwrap();
        },
        |context, ()| async move {
            let recovered = open(&context).await;
            let loss = recovered.log.losses().at(Offset(1)).unwrap();
            recovered.log.rewrite(&loss, &theirs(1, &[400, 300]), Offset(5)).await.unwrap();
        },
        |context, over| async move {
            let recovered = open(&context).await;
            let lost: Vec<_> =
                recovered.log.losses().all().iter().map(|loss| (loss.lost.from.0, loss.lost.to.0)).collect();
            assert!(lost.iter().all(|(from, to)| 1 <= *from && *to <= 3) && (lost.is_empty() || !over), "{lost:?}");
            assert_eq!(recovered.end, Offset(5));
        },
    );
}

#[test]
fn a_header_block_says_the_blocks_with_which_most_is_found_though_batches_are_damaged_too() {
    run(|runtime| async move {
        for block in [512, 4096] {
            let made = context(&runtime, block);
            let log = open(&made).await.log;
            append_each(&log, &batch_of(1000), 0..1200).await;
            let path = log.segment_of(Offset(0)).unwrap().path.clone();
            drop(log);
            let stored = async || {
                let file = runtime.open(&path, OpenMode::Existing).await.unwrap();
                SegmentHeader::decode(&file.read_at(0, 4096).await.unwrap())
            };
            let before = stored().await.unwrap();
            edit(&runtime, &path, 0..4096, |bytes| bytes[20] ^= 1).await;
            let second = SEGMENT_HEADER_BYTES + 1000u64.next_multiple_of(block.into());
            edit(&runtime, &path, second..second + 512, |bytes| bytes[200] ^= 1).await;
            let log = open(&context(&runtime, 512)).await.log;
            let loss = loss_at(&log, 7, 1200).await;
            assert_eq!(log.look_again(&loss).await, Ok(Look::Restored));
            let after = stored().await.unwrap();
            assert_eq!(SegmentHeader { created_ms: before.created_ms, ..after }, before);
            assert_eq!(loss_at(&log, 1, 1200).await.lost.to, Offset(2));
            Box::pin(clear(&runtime)).await;
        }
    });
}

#[test]
fn the_header_block_of_another_segment_or_partition_is_written_over_too() {
    type Change = fn(&mut SegmentHeader);
    let changes: [Change; 2] = [|header| header.partition.index.0 += 1, |header| header.base_offset.0 += 1];
    for change in changes {
        run(move |runtime| async move {
            let made = context(&runtime, BLOCK);
            append_each(&open(&made).await.log, &batch_of(3000), 0..600).await;
            let path = segment_path(Path::new(DIR), Offset(0));
            edit(&runtime, &path, 0..4096, |block| {
                let mut header = SegmentHeader::decode(block).unwrap();
                change(&mut header);
                let bytes = header.encode();
                block[..bytes.len()].copy_from_slice(&bytes);
            })
            .await;
            let log = open(&made).await.log;
            let loss = loss_at(&log, 7, 600).await;
            assert_eq!(log.look_again(&loss).await, Ok(Look::Restored));
            assert_eq!(offsets(&log, 7, 8).await.unwrap()[0], 7);
            assert_eq!(log.look_again(&loss).await, Ok(Look::Intact), "somebody was faster");
        });
    }
}

#[test]
fn what_is_kept_mapped_for_readers_does_not_keep_damage_from_being_written_over() {
    run(|runtime| async move {
        let context = mapping_context(&runtime, 8 << 20);
        let log = open(&context).await.log;
        append_each(&log, &batch_of(8192), 0..300).await;
        let path = segment_path(Path::new(DIR), Offset(0));
        let range = ReadRange { offset: Offset(40), end: Offset(300), max_bytes: 1 };
        drop(log.read_disk(range).await.unwrap());
        assert!(context.metrics.mapped_reads.get() > 0);
        edit(&runtime, &path, 4096 + 8192 * 20..4096 + 8192 * 21, |bytes| bytes[200] ^= 1).await;
        let pace = ScrubPace { bytes_per_second: 1 << 30, period: std::time::Duration::from_secs(60) };
        scrub(Rc::downgrade(&log), pace, Offset(0)..Offset(300)).await;
        let loss = log.losses().at(Offset(20)).unwrap();
        assert_eq!(log.rewrite(&loss, &theirs(20, &[8192]), Offset(300)).await, Ok(1));
        assert_eq!(offsets(&log, 20, 21).await.unwrap(), [20]);
        assert!(log.losses().is_empty());
    });
}

#[test]
fn a_place_of_so_many_bytes_is_written_over_and_a_longer_one_is_not() {
    run(|runtime| async move {
        let context = context(&runtime, BLOCK);
        let log = log_of(&context, &[&[300], &[400]]).await;
        for (more, is_too_long) in [(0, false), (1, true)] {
            let (position, end_position) = (4096, 4096 + REWRITE_BYTES_MAX + more);
            let lost = Lost { position, end_position, from: Offset(0), to: Offset(1), reason: String::new() };
            let loss = Loss { file: segment_path(Path::new(DIR), Offset(0)), lost };
            assert_eq!(loss.bytes(), REWRITE_BYTES_MAX + more);
            let refused = log.rewrite(&loss, &theirs(0, &[300]), Offset(2)).await;
            let Err(RewriteError::Misfit { reason, .. }) = refused else { panic!("{refused:?}") };
            assert_eq!(reason.contains("too long"), is_too_long, "{more} more: {reason}");
        }
    });
}

#[test]
fn a_sealed_segment_is_as_long_as_before_when_its_last_batch_was_written_over() {
    run(|runtime| async move {
        let context = context(&runtime, BLOCK);
        let log = log_of(&context, &[&[300], &[400]]).await;
        log.roll(Offset(2), &crate::record::ProducerHistory::default()).await.unwrap();
        let path = segment_path(Path::new(DIR), Offset(0));
        edit(&runtime, &path, 4608..5120, |bytes| bytes[100] ^= 1).await;
        let loss = loss_at(&log, 1, 2).await;
        log.rewrite(&loss, &theirs(1, &[400]), Offset(2)).await.unwrap();
        assert_eq!(offsets(&log, 0, 2).await.unwrap(), [0, 1]);
        assert_eq!(runtime.open(&path, OpenMode::Existing).await.unwrap().size().await.unwrap(), 5120);
    });
}

#[test]
fn what_was_read_of_a_segment_that_is_repaired_is_read_anew_and_what_was_read_of_others_is_not() {
    run(|runtime| async move {
        let mut context = context(&runtime, BLOCK);
        Rc::get_mut(&mut context).unwrap().cache = crate::log::cache::BlockCache::new(8 << 20);
        let log = open(&context).await.log;
        append_each(&log, &batch_of(8192), 0..300).await;
        let dir = Path::new("/q");
        runtime.create_dir_all(dir).await.unwrap();
        let other = crate::log::recovery::open(&context, crate::log::fixture::P, dir.into()).await.unwrap().log;
        append_each(&other, &batch_of(8192), 0..300).await;
        let hits = async |log: &Rc<Log<SimRuntime>>, offset| {
            let before = context.metrics.cache_hits.get();
            let range = ReadRange { offset: Offset(offset), end: Offset(300), max_bytes: 1 };
            log.read_disk(range).await.unwrap();
            context.metrics.cache_hits.get() - before
        };
        for (log, offset) in [(&log, 40), (&log, 200), (&other, 40)] {
            assert_eq!((hits(log, offset).await, hits(log, offset).await), (0, 1));
        }
        log.forget_reads_of(&log.segment_of(Offset(40)).unwrap());
        assert_eq!((hits(&log, 40).await, hits(&log, 200).await, hits(&other, 40).await), (0, 1, 1));
    });
}

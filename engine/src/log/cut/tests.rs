//! Logs that are cut off and begun anew, on the simulated drive: anywhere, and with the power cut anywhere within it.

use std::{collections::BTreeMap, ops::Range, path::PathBuf, time::Duration};

use bytes::Bytes;

use super::*;
use crate::{
    log::{
        LogContext, Placed,
        fixture::{DIR, P, append_each, batch_of, context_of, cut_everywhere, edit, placed},
        loading::headers_of,
        read::ReadRange,
        recovery::{self, Recovered},
        verify::{Disk, Finding, PartitionFiles, Source, check_partition},
    },
    record::{BatchBuilder, Codec, check_produced},
    runtime::{
        DirEntry,
        sim::{Sim, SimConfig, SimRuntime},
    },
    types::{LeaderEpoch, ProducerId, Sequence},
};

const STEPS: u64 = 1_000_000;
/// Appended together, so they are in one flush group; they end within a block.
const GROUP: u64 = 4;
const ALL: u64 = 96;

type Context = Rc<LogContext<SimRuntime>>;

/// Segments of 64 KiB: five groups in each.
fn context(runtime: &SimRuntime) -> Context {
    context_of(runtime, 512, 64 << 10)
}

/// The batch at `offset` that reign `reign` stores there. Three producers take turns, and a fourth wrote once.
fn batch(offset: u64, reign: u32) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(None, &vec![offset as u8; 2900 + reign as usize], &[], 1).unwrap();
    let producer = if offset == 1 { 9 } else { offset % 3 + 1 };
    builder.producer(ProducerId(producer), reign, Sequence((offset / 3) as u32));
    builder.finish().unwrap()
}

fn note(history: &mut ProducerHistory, offsets: Range<u64>, reign: u32) {
    for offset in offsets {
        let mark = check_produced(&batch(offset, reign)).unwrap().producer_mark().unwrap();
        history.note(&mark, Offset(offset));
    }
}

fn history_of(offsets: Range<u64>) -> ProducerHistory {
    let mut history = ProducerHistory::default();
    note(&mut history, offsets, 1);
    history
}

async fn open(context: &Context) -> Recovered<SimRuntime> {
    context.runtime.create_dir_all(Path::new(DIR)).await.unwrap();
    recovery::open_replica(context, P, (PathBuf::from(DIR), Offset(0))).await.unwrap()
}

/// Appends as a shard does; writes only whole groups.
async fn append(
    (log, known): (&Rc<Log<SimRuntime>>, &ProducerHistory),
    offsets: Range<u64>,
    (reign, commit): (u32, Option<Commit>),
) {
    let mut history = known.clone();
    for offset in offsets.clone() {
        let bytes = batch(offset, reign);
        let placed =
            Placed { base_offset: Offset(offset), durable_hint: Offset(offset / 8 * 8), epoch: LeaderEpoch(reign) };
        log.append(&bytes, &check_produced(&bytes).unwrap(), placed);
        if log.begins_segment(Offset(offset)) {
            log.keep_producers(&history);
        }
        note(&mut history, offset..offset + 1, reign);
        if let Some(commit) = commit.filter(|_| offset % GROUP == GROUP - 1 || offset + 1 == offsets.end) {
            log.write_waiting(commit).await.unwrap();
        }
    }
    if commit.is_some() {
        log.sync().await.unwrap();
    }
    log.context.runtime.sleep(Duration::from_millis(50)).await;
}

async fn filled(context: Context) -> Rc<Log<SimRuntime>> {
    let log = open(&context).await.log;
    append((&log, &history_of(0..0)), 0..ALL, (1, Some(Commit::Written))).await;
    log
}

/// Reads all of a log: of which reign each record is.
async fn reigns_in(found: &Recovered<SimRuntime>) -> Vec<u32> {
    let mut reigns = Vec::new();
    let (start, end) = (found.start, found.end);
    let mut range = ReadRange { offset: start, end, max_bytes: 10_000 };
    while range.offset < end {
        for header in found.log.read_disk(range).await.unwrap().iter().flat_map(headers_of) {
            let (offset, reign) = (header.base_offset, header.leader_epoch.0);
            assert_eq!(offset, range.offset, "of {start} to {end}");
            assert_eq!(header.crc, check_produced(&batch(offset.0, reign)).unwrap().crc, "at {offset}");
            range.offset = header.end_offset();
            reigns.push(reign);
        }
    }
    reigns
}

/// What stands on the drive, to be verified.
struct Still(BTreeMap<PathBuf, Rc<Vec<u8>>>);

impl Source for Rc<Vec<u8>> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        let from = (position as usize).min(self.len());
        Ok(self[from..(from + len).min(self.len())].to_vec())
    }
}

impl Disk for Still {
    type File = Rc<Vec<u8>>;

    fn open(&self, path: &Path) -> io::Result<Self::File> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<DirEntry>> {
        Ok(self.0.keys().map(|path| DirEntry { path: path.clone(), is_dir: false }).collect())
    }
}

fn verify(sim: &Sim) -> Vec<Finding> {
    let content = |(path, _): (PathBuf, u64)| sim.content(&path).map(|bytes| (path, Rc::new(bytes)));
    let still = Still(sim.files().into_iter().filter_map(content).collect());
    let files = PartitionFiles { dir: PathBuf::from(DIR), log: Some(P.log), index: P.index, in_use: false };
    let (findings, _) = check_partition(&still, files).unwrap();
    findings.into_iter().filter(|finding| !finding.kind.is_harmless()).collect()
}

fn world() -> (Sim, Context) {
    let sim = Sim::new(1, &SimConfig::default());
    let (_, cores) = sim.process(1);
    let context = context(&cores[0]);
    (sim, context)
}

/// Opens a log that should end at `end`, with all of it there, and goes on with it in another reign.
async fn goes_on_from(context: &Context, end: u64) {
    let found = open(context).await;
    assert_eq!((found.end, &found.damage), (Offset(end), &None));
    assert_eq!(found.producers, history_of(0..end), "cut at {end}");
    assert_eq!(reigns_in(&found).await, vec![1; end as usize]);
    append((&found.log, &found.producers), end..end + 30, (2, Some(Commit::Durable))).await;
    let found = open(context).await;
    assert_eq!((found.end, &found.damage), (Offset(end + 30), &None));
    assert_eq!(reigns_in(&found).await, [vec![1; end as usize], vec![2; 30]].concat());
    let reigns: Vec<_> = found.reigns.beginnings().iter().map(|(epoch, at)| (epoch.0, at.0)).collect();
    assert_eq!(reigns, if end == 0 { vec![(2, 0)] } else { vec![(1, 0), (2, end)] });
    let mut history = history_of(0..end);
    note(&mut history, end..end + 30, 2);
    assert_eq!(found.producers, history);
}

#[test]
fn a_log_is_cut_off_anywhere_and_goes_on_from_there() {
    // Within groups and between them, between segments (of 20), within the first and the last, to the start.
    for to in [0, 1, 3, 4, 17, 20, 22, 39, 40, 41, 61, 80, 83, 95, 96] {
        let (sim, context) = world();
        let story = {
            let context = Rc::clone(&context);
            async move {
                let log = filled(Rc::clone(&context)).await;
                // Whatever was read before must not be seen again.
                reigns_in(&open(&context).await).await;
                log.cut(Offset(to)).await.unwrap();
            }
        };
        sim.block_on(&context.runtime, story, STEPS).unwrap();
        assert_eq!(verify(&sim), [], "cut at {to}");
        let going_on = Rc::clone(&context);
        sim.block_on(&context.runtime, async move { goes_on_from(&going_on, to).await }, STEPS).unwrap();
        assert_eq!(verify(&sim), [], "cut at {to}, gone on with");
        assert!(!sim.files().iter().any(|(path, _)| is_cut_file(path)), "cut at {to}");
    }
}

#[test]
fn what_waits_for_the_device_is_written_up_to_the_cut_and_dropped_behind_it() {
    for (unwritten, to) in [(30, 30), (30, 31), (30, 45), (32, 77), (32, 95), (32, 32), (32, 10), (96, 96)] {
        let sim = Sim::new(1, &SimConfig::default());
        let (process, cores) = sim.process(1);
        let context_now = context(&cores[0]);
        let story = async move {
            let log = open(&context_now).await.log;
            append((&log, &history_of(0..0)), 0..unwritten, (1, Some(Commit::Written))).await;
            append((&log, &history_of(0..unwritten)), unwritten..ALL, (1, None)).await;
            log.cut(Offset(to)).await.unwrap();
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
        sim.lose_power(process);
        let (_, cores) = sim.process(1);
        let context = context(&cores[0]);
        sim.block_on(&cores[0], async move { goes_on_from(&context, to).await }, STEPS).unwrap();
        assert_eq!(verify(&sim), [], "unwritten from {unwritten}, cut at {to}");
    }
}

#[test]
fn what_was_cut_off_and_stands_in_the_same_block_is_never_seen() {
    let (sim, context) = world();
    let story = {
        let context = Rc::clone(&context);
        async move {
            let log = open(&context).await.log;
            let small = batch_of(100);
            let header = check_produced(&small).unwrap();
            (0..5).for_each(|offset| log.append(&small, &header, placed(offset, 0)));
            log.write_waiting(Commit::Durable).await.unwrap();
            log.cut(Offset(2)).await.unwrap();
            let log = open(&context).await.log;
            append_each(&log, &small, 2..4).await;
            let Recovered { log, end, .. } = open(&context).await;
            let pieces = log.read_disk(ReadRange { offset: Offset(0), end, max_bytes: 10_000 }).await.unwrap();
            pieces.iter().flat_map(headers_of).map(|header| header.base_offset.0).collect::<Vec<_>>()
        }
    };
    assert_eq!(sim.block_on(&context.runtime, story, STEPS).unwrap(), [0, 1]);
    assert_eq!(verify(&sim), []);
}

#[test]
fn a_log_is_cut_again_and_again() {
    let (sim, context) = world();
    let story = {
        let context = Rc::clone(&context);
        async move {
            drop(filled(Rc::clone(&context)).await);
            for to in [90, 70, 69, 41, 40, 22, 3, 1] {
                let found = open(&context).await;
                assert_eq!(found.damage, None);
                append((&found.log, &found.producers), found.end.0..found.end.0 + 7, (1, Some(Commit::Durable))).await;
                found.log.cut(Offset(to)).await.unwrap();
                drop(found);
                let found = open(&context).await;
                assert_eq!((found.end, &found.producers), (Offset(to), &history_of(0..to)));
                assert_eq!(reigns_in(&found).await.len() as u64, to);
            }
        }
    };
    sim.block_on(&context.runtime, story, STEPS).unwrap();
    assert_eq!(verify(&sim), []);
}

#[test]
fn power_that_is_lost_within_a_cut_or_behind_it_leaves_the_log_as_it_was_or_cut() {
    for to in [22, 40, 0, 95] {
        let story = move |context: Context, log: Rc<Log<SimRuntime>>| async move {
            log.cut(Offset(to)).await.unwrap();
            let found = open(&context).await;
            append((&found.log, &found.producers), to..to + 8, (2, Some(Commit::Durable))).await;
        };
        let after = move |context: Context, over: bool| async move {
            let found = open(&context).await;
            assert_eq!(found.damage, None);
            let reigns = reigns_in(&found).await;
            let end = found.end.0;
            if end == ALL && reigns == [1; ALL as usize] {
                assert!(!over, "it was cut at {to}");
            } else {
                assert!(to <= end && end <= to + 8 && (end == to + 8 || !over), "{end}, over: {over}");
                assert_eq!(reigns, [vec![1; to as usize], vec![2; (end - to) as usize]].concat());
            }
            let mut history = history_of(0..reigns.iter().filter(|reign| **reign == 1).count() as u64);
            note(&mut history, to..if reigns.contains(&2) { end } else { to }, 2);
            assert_eq!(found.producers, history);
            drop(found.log);
            open(&context).await.log.cut(Offset(to)).await.unwrap();
            goes_on_from(&context, to).await;
        };
        let operations = cut_everywhere(context, filled, story, after);
        assert!(operations > 25, "{operations} operations");
    }
}

#[test]
fn power_that_is_lost_while_a_cut_is_carried_out_again_takes_nothing_away() {
    let setup = |context: Context| async move {
        let log = filled(Rc::clone(&context)).await;
        log.come_to_rest().await;
        let (holder, end_position) = log.holder_of(Offset(22)).await;
        let cut = Cut::End { at: Offset(22), holder, end_position };
        assert!(holder == Offset(20) && end_position < 16_000, "{cut:?}");
        log.put_aside(Offset(22), Some(&history_of(0..22))).await.unwrap();
        copies::write(&context.runtime, &Path::new(DIR).join(FILE_NAME), &cut.encode((P.log, P.index))).await.unwrap();
    };
    let story = |context: Context, ()| async move { drop(open(&context).await) };
    let after = |context: Context, _| async move { goes_on_from(&context, 22).await };
    let operations = cut_everywhere(context, setup, story, after);
    assert!(operations > 15, "{operations} operations");
}

#[test]
fn a_log_that_is_begun_anew_has_no_records_and_goes_on_where_it_was_told() {
    for (at, unwritten) in [(500, ALL), (40, ALL), (0, ALL), (22, 50), (ALL, ALL)] {
        let (sim, context) = world();
        let story = {
            let context = Rc::clone(&context);
            async move {
                let log = open(&context).await.log;
                append((&log, &history_of(0..0)), 0..unwritten, (1, Some(Commit::Written))).await;
                append((&log, &history_of(0..unwritten)), unwritten..ALL, (1, None)).await;
                log.keep_start(Offset(5)).await.unwrap();
                log.restart(Offset(at), &ProducerHistory::default()).await.unwrap();
                let found = open(&context).await;
                assert_eq!((found.start, found.end, &found.damage), (Offset(at), Offset(at), &None));
                assert_eq!((&found.producers, found.reigns.beginnings()), (&history_of(0..0), &[][..]));
                append((&found.log, &found.producers), at..at + 30, (2, Some(Commit::Durable))).await;
                let found = open(&context).await;
                assert_eq!((found.start, found.end, &found.damage), (Offset(at), Offset(at + 30), &None));
                assert_eq!(reigns_in(&found).await, [2; 30]);
                context.runtime.sleep(Duration::from_secs(1)).await;
            }
        };
        sim.block_on(&context.runtime, story, STEPS).unwrap();
        assert_eq!(verify(&sim), [], "begun anew at {at}");
        let dead = |(path, _): &(PathBuf, u64)| path.extension().is_some_and(|suffix| suffix == DELETED_SUFFIX);
        assert!(!sim.files().iter().any(dead), "the room of what was deleted is given back");
    }
}

#[test]
fn power_that_is_lost_within_a_restart_leaves_the_log_as_it_was_or_empty() {
    for at in [500, 40, 0] {
        let known = move || history_of(0..at.min(ALL));
        let story = move |_, log: Rc<Log<SimRuntime>>| async move { log.restart(Offset(at), &known()).await.unwrap() };
        let after = move |context: Context, over: bool| async move {
            let found = open(&context).await;
            assert_eq!(found.damage, None);
            match (found.start.0, found.end.0) {
                (start, end) if start == at && end == at => {
                    assert!(reigns_in(&found).await.is_empty());
                    assert_eq!(found.producers, known(), "begun anew at {at}");
                }
                (0, ALL) if !over => assert_eq!(reigns_in(&found).await, [1; ALL as usize]),
                other => panic!("{other:?}, over: {over}"),
            }
        };
        let operations = cut_everywhere(context, filled, story, after);
        assert!(operations > 15, "{operations} operations");
    }
}

#[test]
fn what_only_a_snapshot_behind_the_cut_knows_of_producers_is_kept() {
    let (sim, context) = world();
    let story = {
        let context = Rc::clone(&context);
        async move {
            let log = filled(Rc::clone(&context)).await;
            log.keep_start(Offset(40)).await.unwrap();
            log.release_before(Offset(40));
            log.bury().await.unwrap();
            assert!(!log.has_released());
            // Beside this one is none any more: only the last two keep theirs.
            log.cut(Offset(43)).await.unwrap();
            let Recovered { end, producers, .. } = open(&context).await;
            assert_eq!(end, Offset(43));
            let ninth = |history: &ProducerHistory| history.get(ProducerId(9)).cloned();
            assert_eq!(ninth(&producers), ninth(&history_of(0..43)));
            let newest = producers.newest_offset();
            assert_eq!((newest, producers.iter().len()), (Some(Offset(42)), 4));
        }
    };
    sim.block_on(&context.runtime, story, STEPS).unwrap();
}

#[test]
fn a_cut_behind_damage_keeps_what_is_known_of_deleted_batches_and_nothing_of_the_others() {
    let (sim, context) = world();
    let story = {
        let context = Rc::clone(&context);
        async move {
            let log = filled(Rc::clone(&context)).await;
            log.keep_start(Offset(20)).await.unwrap();
            log.release_before(Offset(20));
            log.bury().await.unwrap();
            let path = segment_path(Path::new(DIR), Offset(40));
            edit(&context.runtime, &path, 4096..4608, |bytes| bytes.fill(9)).await;
            log.cut(Offset(53)).await.unwrap();
            let kept = |base: u64| {
                let path = producers_path(&segment_path(Path::new(DIR), Offset(base)));
                let runtime = context.runtime.clone();
                async move { runtime.open(&path, OpenMode::Existing).await.is_ok() }
            };
            assert!(kept(20).await && !kept(53).await);
            let found = open(&context).await;
            let (from, to) = found.log.unread().unwrap();
            assert!(from == Offset(40) && to < Offset(53), "{from} to {to}");
            context.runtime.sleep(Duration::from_millis(50)).await;
            assert!(!kept(53).await);
            let ninth = found.producers.get(ProducerId(9)).cloned();
            assert_eq!(ninth, history_of(0..53).get(ProducerId(9)).cloned(), "it wrote once, at the very beginning");
            let newest = found.producers.newest_offset();
            assert_eq!((newest, found.producers.iter().len()), (Some(Offset(52)), 4));
        }
    };
    sim.block_on(&context.runtime, story, STEPS).unwrap();
}

#[test]
fn nothing_is_written_any_more_beside_segments_of_a_log_that_ends() {
    let (sim, context) = world();
    let runtime = context.runtime.clone();
    let story = async move {
        let log = filled(context).await;
        let writing = log.end.begin_writing();
        let (ending, ended) = (Rc::clone(&log), Rc::new(Cell::new(false)));
        let flag = Rc::clone(&ended);
        log.context.runtime.spawn(async move {
            ending.come_to_rest().await;
            flag.set(true);
        });
        log.context.runtime.sleep(Duration::from_millis(50)).await;
        assert!(!ended.get(), "somebody writes still");
        drop(writing);
        log.context.runtime.sleep(Duration::from_millis(50)).await;
        assert!(ended.get() && log.end.begin_writing().is_none());
    };
    sim.block_on(&runtime, story, STEPS).unwrap();
}

#[test]
fn the_file_has_these_bytes_and_any_damage_is_noticed() {
    let cut = Cut::End { at: Offset(1_000_000), holder: Offset(999_000), end_position: 1 << 20 };
    let owner = (LogUid(7), PartitionIndex(3));
    let bytes = cut.encode(owner);
    let golden = "50594331c26f47500700000000000000030000000000000040420f0000000000583e0f00000000000000100000000000";
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, golden);
    for cut in [cut, Cut::Restart { at: Offset(5) }] {
        assert_eq!(Cut::decode(&cut.encode(owner), (Some(owner.0), owner.1)), Ok(cut));
        assert_eq!(Cut::decode(&cut.encode(owner), (None, owner.1)), Ok(cut));
    }
    assert!(Cut::decode(&bytes, (Some(LogUid(8)), owner.1)).unwrap_err().contains("7/3"));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Cut::decode(&damaged, (None, owner.1)).is_err(), "bit {bit}");
    }
    for garbage in [&[][..], &bytes[..47], &[0; 4096]] {
        assert!(Cut::decode(garbage, (None, owner.1)).is_err());
    }
}

#[test]
fn without_an_intact_copy_of_the_file_a_log_is_read_only() {
    let (sim, context) = world();
    let runtime = context.runtime.clone();
    let story = async move {
        drop(filled(Rc::clone(&context)).await);
        copies::write(&context.runtime, &Path::new(DIR).join(FILE_NAME), &[7; 48]).await.unwrap();
        let Recovered { end, damage, .. } = open(&context).await;
        assert_eq!((end, damage.map(|damage| damage.case)), (Offset(ALL), Some('I')));
    };
    sim.block_on(&runtime, story, STEPS).unwrap();
    assert_eq!(verify(&sim).iter().map(|finding| finding.case).collect::<Vec<_>>(), [Some('I')]);
}

#[test]
fn what_waits_for_the_device_is_counted_until_it_is_written_or_cut_off() {
    let sim = Sim::new(1, &SimConfig::default());
    let (_, cores) = sim.process(1);
    let context = context(&cores[0]);
    let story = async move {
        let log = open(&context).await.log;
        assert_eq!(log.unwritten_bytes(), 0);
        let one = batch_of(300);
        let header = check_produced(&one).unwrap();
        for offset in 0..4 {
            log.append(&one, &header, placed(offset, 0));
        }
        assert_eq!(log.unwritten_bytes(), 4 * 300);
        log.write_waiting(Commit::Written).await.unwrap();
        assert_eq!(log.unwritten_bytes(), 0);
        for offset in 4..8 {
            log.append(&one, &header, placed(offset, 0));
        }
        log.cut(Offset(6)).await.unwrap();
        assert_eq!(log.unwritten_bytes(), 0, "what was left of them was written");
        assert_eq!(open(&context).await.end, Offset(6));
    };
    sim.block_on(&cores[0], story, STEPS).unwrap();
}

#[test]
fn a_log_that_ends_at_damage_is_mended_and_can_be_gone_on_with() {
    let sim = Sim::new(1, &SimConfig::default());
    let (_, cores) = sim.process(1);
    let context = context(&cores[0]);
    let story = async move {
        let log = open(&context).await.log;
        let one = batch_of(300);
        let header = check_produced(&one).unwrap();
        for offset in 0..6 {
            log.append(&one, &header, placed(offset, offset));
            log.write_waiting(Commit::Durable).await.unwrap();
        }
        drop(log);
        let path = segment_path(Path::new(DIR), Offset(0));
        edit(&context.runtime, &path, 4096 + 512 * 5..4096 + 512 * 6, |bytes| bytes.fill(0)).await;
        edit(&context.runtime, &path, 4096 + 512 * 3..4096 + 512 * 4, |bytes| bytes[200] ^= 1).await;
        let damaged = open(&context).await;
        assert!(damaged.damage.is_some());
        let end = damaged.end;
        damaged.log.mend().await.unwrap();
        drop(damaged);
        let mended = open(&context).await;
        assert_eq!((mended.damage, mended.end), (None, end));
        mended.log.append(&one, &header, placed(end.0, 0));
        mended.log.write_waiting(Commit::Durable).await.unwrap();
        assert_eq!(open(&context).await.end, Offset(end.0 + 1));
        assert!(is_cut_file(&Path::new(DIR).join(FILE_NAME)) && is_cut_file(Path::new(ASIDE_NAME)));
        assert!(!is_cut_file(&path));
    };
    sim.block_on(&cores[0], story, STEPS).unwrap();
}

#[test]
fn a_cut_is_of_a_segment_that_begins_before_it_or_there() {
    let owner = (LogUid(1), PartitionIndex(0));
    for (holder, is_one) in [(4, true), (5, true), (6, false)] {
        let cut = Cut::End { at: Offset(5), holder: Offset(holder), end_position: 4096 };
        let read = Cut::decode(&cut.encode(owner), (Some(owner.0), owner.1));
        assert_eq!(read.is_ok(), is_one, "{cut:?}: {read:?}");
    }
}

#[test]
fn what_is_cut_off_gives_its_room_back_also_behind_a_batch_that_is_larger_than_an_index_block() {
    let sim = Sim::new(1, &SimConfig::default());
    let (_, cores) = sim.process(1);
    let context = context_of(&cores[0], 512, 1 << 20);
    let story = async move {
        for (first, end_of_first) in [(300, 512), (300_000, 300_032)] {
            let log = open(&context).await.log;
            append_each(&log, &batch_of(first), 0..1).await;
            append_each(&log, &batch_of(700), 1..9).await;
            let path = log.active().path.clone();
            log.cut(Offset(1)).await.unwrap();
            let file = context.runtime.open(&path, OpenMode::Existing).await.unwrap();
            assert_eq!(file.size().await.unwrap(), 4096 + end_of_first, "behind {first} bytes");
            drop(log);
            let recovered = open(&context).await;
            assert_eq!((recovered.end, recovered.damage), (Offset(1), None));
            for entry in context.runtime.list_dir(Path::new(DIR)).await.unwrap() {
                context.runtime.remove_file(&entry.path).await.unwrap();
            }
        }
    };
    sim.block_on(&cores[0], story, STEPS).unwrap();
}

#[test]
fn a_cut_takes_what_is_behind_it_and_of_what_is_beside_a_segment_what_is_not_right_any_more() {
    let end = Cut::End { at: Offset(5), holder: Offset(3), end_position: 4096 };
    let restart = Cut::Restart { at: Offset(5) };
    let taken = |cut: Cut, suffix: &str, is_aside| {
        let name = |base| PathBuf::from(format!("/p/{base:020}.{suffix}"));
        (2..8).filter(|base| cut.takes(&name(*base), is_aside)).collect::<Vec<u64>>()
    };
    // The new segment is aside still, and then in its place.
    for (is_aside, at) in [(true, &[5][..]), (false, &[])] {
        assert_eq!(taken(end, "seg", is_aside), [at, &[6, 7]].concat());
        assert_eq!(taken(end, "idx", is_aside), [3, 4, 5, 6, 7], "that of the holder says that one follows");
        assert_eq!(taken(end, "prd", is_aside), [6, 7], "the new one's is put in the place of the old one");
        assert_eq!(taken(restart, "seg", is_aside), [&[2, 3, 4], at, &[6, 7]].concat());
        assert_eq!(taken(restart, "idx", is_aside), [2, 3, 4, 5, 6, 7]);
        assert_eq!(taken(restart, "prd", is_aside), [2, 3, 4, 6, 7], "the new one's, or what it replaces");
    }
    let from_zero = Cut::Restart { at: Offset(0) };
    assert_eq!(taken(from_zero, "prd", true), [2, 3, 4, 5, 6, 7]);
    assert!(!end.takes(Path::new("/p/start"), true) && !restart.takes(Path::new("/p/notes.txt"), true));
}

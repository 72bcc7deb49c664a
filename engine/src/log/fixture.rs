//! What the tests of this folder share: a simulated world for a log, and batches of a given length.

use std::{
    cell::Cell,
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Log, LogContext, Placed,
    ahead::AheadMemory,
    cache::BlockCache,
    flush::Commit,
    loaded::Loaded,
    recovery::{self, Recovered},
    room::Room,
    segment::SegmentHeader,
    tail_memory::TailMemory,
    windows::Windows,
};
use crate::{
    limits::SEGMENT_HEADER_BYTES,
    record::{BatchBuilder, Codec, check_produced},
    runtime::{
        Buffer, File, OpenMode, Runtime,
        sim::{
            Sim, SimConfig, SimRuntime,
            faults::{Failure, FaultKind, FaultRates},
        },
    },
    types::{Incarnation, LeaderEpoch, LogUid, Offset, PartitionId, PartitionIndex},
};

pub const P: PartitionId = PartitionId { log: LogUid(1), index: PartitionIndex(0) };

/// Where the log lies.
pub const DIR: &str = "/p";

/// What a log of blocks of `block_bytes` needs; it keeps nothing in memory that the device has.
pub fn context(runtime: &SimRuntime, block_bytes: u32) -> Rc<LogContext<SimRuntime>> {
    context_of(runtime, block_bytes, 1 << 20)
}

/// The same with segments of so many bytes.
pub fn context_of(runtime: &SimRuntime, block_bytes: u32, segment_bytes: u64) -> Rc<LogContext<SimRuntime>> {
    Rc::new(LogContext {
        runtime: runtime.clone(),
        metrics: Arc::default(),
        openings: Default::default(),
        cache: BlockCache::new(1 << 16),
        ahead: AheadMemory::new(1 << 20),
        windows: Windows::new(0, 0),
        loaded: Loaded::new(8 << 10),
        zeros: Rc::new(runtime.allocate(1 << 20)),
        block_bytes,
        segment_bytes,
        heavy_load: Default::default(),
        tails: TailMemory::new(0),
        room: Room::new(0),
        reaper: Default::default(),
    })
}

/// The same with room for `bytes_max` bytes of mappings, of which half are kept.
pub fn mapping_context(runtime: &SimRuntime, bytes_max: usize) -> Rc<LogContext<SimRuntime>> {
    let mut context = context(runtime, 4096);
    Rc::get_mut(&mut context).unwrap().windows = Windows::new(bytes_max as u64 / 2, bytes_max);
    context
}

/// The header block of a segment that begins with `base_offset`, in blocks of 512 bytes and with incarnation 7.
pub fn header_at(base_offset: u64) -> SegmentHeader {
    SegmentHeader {
        partition: P,
        block_bytes: 512,
        base_offset: Offset(base_offset),
        created_ms: 0,
        incarnation: Incarnation(7),
        leader_epoch: LeaderEpoch(1),
    }
}

/// A batch of one record that is `bytes` long.
pub fn batch_of(bytes: usize) -> Bytes {
    let batch = |value: usize| {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &vec![7; value], &[], 1).unwrap();
        builder.finish().unwrap()
    };
    // What a batch has beside its value is shorter than that.
    (bytes.saturating_sub(200)..bytes).map(batch).find(|batch| batch.len() == bytes).unwrap()
}

/// Opens the log in [`DIR`], which is made if need be.
pub async fn open(context: &Rc<LogContext<SimRuntime>>) -> Recovered<SimRuntime> {
    context.runtime.create_dir_all(Path::new(DIR)).await.unwrap();
    recovery::open(context, P, PathBuf::from(DIR)).await.unwrap()
}

/// In the first reign, at this offset and with this durable hint.
pub fn placed(base_offset: u64, durable_hint: u64) -> Placed {
    Placed { base_offset: Offset(base_offset), durable_hint: Offset(durable_hint), epoch: LeaderEpoch(1) }
}

/// Writes `batch`, of one record, at each of the offsets, in a flush group of its own.
pub async fn append_each(log: &Rc<Log<SimRuntime>>, batch: &Bytes, offsets: Range<u64>) {
    let header = check_produced(batch).unwrap();
    for offset in offsets {
        log.append(batch, &header, placed(offset, 0));
        log.write_waiting(Commit::Written).await.unwrap();
    }
}

/// Changes bytes of the file at `path` behind the back of whoever has it open.
pub async fn edit(runtime: &SimRuntime, path: &Path, span: Range<u64>, change: impl FnOnce(&mut [u8])) {
    let file = runtime.open(path, OpenMode::Existing).await.unwrap();
    let len = (span.end - span.start) as usize;
    let bytes = file.read_at(span.start, len).await.unwrap();
    let mut buffer = runtime.allocate(len.next_multiple_of(4096));
    buffer.trim(len);
    buffer.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
    change(buffer.bytes_mut());
    file.write_at(span.start, Rc::new(buffer)).await.unwrap();
}

/// Changes the header of the segment at `path` likewise, to another that is whole.
pub async fn edit_header(runtime: &SimRuntime, path: &Path, change: impl FnOnce(&mut SegmentHeader)) {
    edit(runtime, path, 0..SEGMENT_HEADER_BYTES, |block| {
        let mut header = SegmentHeader::decode(block).unwrap();
        change(&mut header);
        let bytes = header.encode();
        block[..bytes.len()].copy_from_slice(&bytes);
    })
    .await;
}

/// Writes 400 records of 8,000 bytes, each in a batch and a flush group of its own; the time of each is its offset.
pub async fn append_timed(log: &Rc<Log<SimRuntime>>) {
    for offset in 0..400 {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &[7; 8000], &[], offset as i64).unwrap();
        let batch = builder.finish().unwrap();
        log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
        log.write_waiting(Commit::Written).await.unwrap();
    }
}

/// Cuts the power within `story`, which begins with a world as `setup` leaves it: before operation 1 of the drive,
/// before operation 2, and so on until the story is over before its power is cut. Each time `after` looks at what is
/// left, with whether the story was over. Gives how many operations it has.
pub fn cut_everywhere<T: 'static, S, F, L>(
    context: impl Fn(&SimRuntime) -> Rc<LogContext<SimRuntime>>,
    setup: impl Fn(Rc<LogContext<SimRuntime>>) -> S,
    story: impl Fn(Rc<LogContext<SimRuntime>>, T) -> F,
    after: impl Fn(Rc<LogContext<SimRuntime>>, bool) -> L,
) -> u64
where
    S: Future<Output = T> + 'static,
    F: Future<Output = ()> + 'static,
    L: Future<Output = ()> + 'static,
{
    const STEPS: u64 = 1_000_000;
    let lossy = [FaultKind::LostUnsynced, FaultKind::LostName, FaultKind::LostSize];
    let rates = lossy.into_iter().fold(FaultRates::none(), |rates, kind| rates.with(kind, 5_000));
    for (operation, seed) in (1..).flat_map(|operation| (0..4).map(move |seed| (operation, seed))) {
        let sim = Sim::new(seed, &SimConfig::default());
        let (process, cores) = sim.process(1);
        let made = sim.block_on(&cores[0], setup(context(&cores[0])), STEPS).unwrap();
        sim.set_rates(rates.clone());
        sim.fail_nth(operation, Failure::Crash, false);
        let over = Rc::new(Cell::new(false));
        let (flag, told) = (Rc::clone(&over), story(context(&cores[0]), made));
        cores[0].spawn(async move {
            told.await;
            flag.set(true);
        });
        sim.run_until(|| over.get() || sim.has_failed(), STEPS).unwrap();
        sim.lose_power(process);
        sim.fail_none();
        sim.set_rates(FaultRates::none());
        let (_, cores) = sim.process(1);
        sim.block_on(&cores[0], after(context(&cores[0]), over.get()), STEPS).unwrap();
        if over.get() && seed == 3 {
            return operation - 1;
        }
    }
    unreachable!("the operations are without end")
}

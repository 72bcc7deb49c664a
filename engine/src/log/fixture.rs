//! What the tests of this folder share: a simulated world for a log, and batches of a given length.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Log, LogContext,
    ahead::AheadMemory,
    cache::BlockCache,
    flush::Commit,
    loaded::Loaded,
    recovery::{self, Recovered},
    room::Room,
    tail_memory::TailMemory,
    windows::Windows,
};
use crate::{
    record::{BatchBuilder, Codec, check_produced},
    runtime::{Buffer, File, OpenMode, Runtime, sim::SimRuntime},
    types::{LogUid, Offset, PartitionId, PartitionIndex},
};

pub const P: PartitionId = PartitionId { log: LogUid(1), index: PartitionIndex(0) };

/// Where the log lies.
pub const DIR: &str = "/p";

/// What a log of blocks of `block_bytes` needs; it keeps nothing in memory that the device has.
pub fn context(runtime: &SimRuntime, block_bytes: u32) -> Rc<LogContext<SimRuntime>> {
    Rc::new(LogContext {
        runtime: runtime.clone(),
        metrics: Arc::default(),
        cache: BlockCache::new(1 << 16),
        ahead: AheadMemory::new(1 << 20),
        windows: Windows::new(0, 0),
        loaded: Loaded::new(8 << 10),
        zeros: Rc::new(runtime.allocate(1 << 20)),
        block_bytes,
        segment_bytes: 1 << 20,
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

/// A batch of one record that is `bytes` long.
pub fn batch_of(bytes: usize) -> Bytes {
    let batch = |value: usize| {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &vec![7; value], &[], 1).unwrap();
        builder.finish().unwrap()
    };
    (0..bytes).map(batch).find(|batch| batch.len() == bytes).unwrap()
}

/// Opens the log in [`DIR`], which is made if need be.
pub async fn open(context: &Rc<LogContext<SimRuntime>>) -> Recovered<SimRuntime> {
    context.runtime.create_dir_all(Path::new(DIR)).await.unwrap();
    recovery::open(context, P, PathBuf::from(DIR)).await.unwrap()
}

/// Writes `batch`, of one record, at each of the offsets, in a flush group of its own.
pub async fn append_each(log: &Rc<Log<SimRuntime>>, batch: &Bytes, offsets: Range<u64>) {
    let header = check_produced(batch).unwrap();
    for offset in offsets {
        log.append(batch, &header, (Offset(offset), Offset(0)));
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

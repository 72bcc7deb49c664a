//! What the tests of this folder share: a simulated world for a log, and batches of a given length.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;

use super::{LogContext, ahead::AheadMemory, cache::BlockCache, loaded::Loaded, room::Room, tail_memory::TailMemory};
use crate::{
    record::{BatchBuilder, Codec},
    runtime::{Runtime, sim::SimRuntime},
    types::{LogUid, PartitionId, PartitionIndex},
};

pub const P: PartitionId = PartitionId { log: LogUid(1), index: PartitionIndex(0) };

/// What a log of blocks of `block_bytes` needs; it keeps nothing in memory that the device has.
pub fn context(runtime: &SimRuntime, block_bytes: u32) -> Rc<LogContext<SimRuntime>> {
    Rc::new(LogContext {
        runtime: runtime.clone(),
        metrics: Arc::default(),
        cache: BlockCache::new(1 << 16),
        ahead: AheadMemory::new(1 << 20),
        loaded: Loaded::new(8 << 10),
        zeros: Rc::new(runtime.allocate(1 << 20)),
        block_bytes,
        segment_bytes: 1 << 20,
        tails: TailMemory::new(0),
        room: Room::new(0),
        reaper: Default::default(),
    })
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

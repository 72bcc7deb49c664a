//! Index blocks that were read from the device and checked, kept for the next reader of this core.

use std::cell::RefCell;

use bytes::Bytes;
use quick_cache::{Weighter, unsync::Cache};

use crate::types::Offset;

/// Names the opening of a log on a core: a log that was opened anew may have other bytes at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opening(pub u64);

/// Names an index block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Whose.
    pub log: Opening,
    /// The segment.
    pub base_offset: Offset,
    /// The block in it.
    pub number: usize,
}

#[derive(Clone)]
struct ByLength;

impl Weighter<BlockKey, Bytes> for ByLength {
    fn weight(&self, _: &BlockKey, bytes: &Bytes) -> u64 {
        // The key and the cache's own bookkeeping cost about this much.
        bytes.len() as u64 + 128
    }
}

/// A cache of bounded size. Its policy (S3-FIFO, by `quick_cache`) lets one long scan pass without losing what is read
/// often.
pub struct BlockCache {
    blocks: RefCell<Cache<BlockKey, Bytes, ByLength>>,
}

impl BlockCache {
    /// A cache of up to `capacity_bytes`.
    pub fn new(capacity_bytes: u64) -> Self {
        // Blocks are a little more than the index interval; the estimate only sizes the tables.
        let expected = (capacity_bytes / crate::limits::INDEX_INTERVAL_BYTES).max(16) as usize;
        BlockCache { blocks: RefCell::new(Cache::with_weighter(expected, capacity_bytes, ByLength)) }
    }

    /// The block, if it is here.
    pub fn get(&self, key: &BlockKey) -> Option<Bytes> {
        self.blocks.borrow().get(key).cloned()
    }

    /// Keeps a block.
    pub fn insert(&self, key: BlockKey, bytes: Bytes) {
        self.blocks.borrow_mut().insert(key, bytes);
    }

    /// Forgets all blocks of a log, whose files are gone.
    pub fn forget(&self, log: Opening) {
        self.retain(|key| key.log != log);
    }

    /// Keeps only the blocks that `stays` says so of.
    pub fn retain(&self, stays: impl Fn(&BlockKey) -> bool) {
        self.blocks.borrow_mut().retain(|key, _| stays(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u64, number: usize) -> BlockKey {
        BlockKey { log: Opening(index), base_offset: Offset(0), number }
    }

    #[test]
    fn blocks_take_no_more_room_than_there_is_and_small_ones_not_none() {
        for (len, most) in [(1000, 100_000 / 1128), (1, 100_000 / 129), (0, 100_000 / 128)] {
            let cache = BlockCache::new(100_000);
            (0..2000).for_each(|number| cache.insert(key(0, number), Bytes::from(vec![7; len])));
            let kept = (0..2000).filter(|number| cache.get(&key(0, *number)).is_some()).count();
            assert!((most / 2..=most).contains(&kept), "{kept} blocks of {len} bytes");
        }
    }

    #[test]
    fn the_blocks_of_a_partition_that_is_gone_are_forgotten_and_no_others() {
        let cache = BlockCache::new(100_000);
        let kept = || [(0, 0), (0, 1), (1, 0)].map(|(index, number)| cache.get(&key(index, number)).is_some());
        for (index, number) in [(0, 0), (0, 1), (1, 0)] {
            cache.insert(key(index, number), Bytes::from_static(b"block"));
        }
        assert_eq!(kept(), [true; 3]);
        cache.forget(key(0, 0).log);
        assert_eq!(kept(), [false, false, true]);
    }
}

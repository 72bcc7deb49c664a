//! The sparse index of a segment: where to begin looking for an offset or a time.
//!
//! Its entries cut the segment into *index blocks* that begin at batch boundaries, at least [`INDEX_INTERVAL_BYTES`]
//! apart: the unit that is read, checked and cached. The index of the active segment grows in memory; that of a sealed
//! one is kept beside it as a checked rkyv archive. It is derived data: on any doubt it is rebuilt from the segment.

use rkyv::{Archive, Deserialize, Serialize, rancor};

use super::envelope;
use crate::{
    limits::INDEX_INTERVAL_BYTES,
    types::{Incarnation, Offset},
};

const SIDECAR_MAGIC: [u8; 4] = *b"PYI1";

/// One batch in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct IndexEntry {
    /// Its first offset.
    pub offset: u64,
    /// Where it begins in the file.
    pub position: u64,
    /// The newest timestamp of the batches before it, in milliseconds; `i64::MIN` for the first.
    pub max_timestamp_before: i64,
}

/// The index of one segment.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Index {
    entries: Vec<IndexEntry>,
    /// The newest timestamp of all batches.
    max_timestamp: i64,
}

impl Default for Index {
    fn default() -> Self {
        Index { entries: Vec::new(), max_timestamp: i64::MIN }
    }
}

/// Which segment, in which state, a sidecar speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidecarKey {
    /// The segment's incarnation.
    pub incarnation: Incarnation,
    /// The segment's end position.
    pub end_position: u64,
}

#[derive(Archive, Serialize, Deserialize)]
struct Sidecar {
    incarnation: u32,
    end_position: u64,
    index: Index,
}

/// The bytes of a segment between two entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexBlock {
    /// Counts the blocks of the segment.
    pub number: usize,
    /// Where it begins: at a batch.
    pub start: u64,
    /// Where the next begins; `None` if it is the last, which ends where the segment does.
    pub end: Option<u64>,
}

impl Index {
    /// Notes a batch, in the order of the file.
    pub fn note(&mut self, offset: Offset, position: u64, max_timestamp: i64) {
        let due = self.entries.last().is_none_or(|last| position >= last.position + INDEX_INTERVAL_BYTES);
        if due {
            let max_timestamp_before = self.max_timestamp;
            self.entries.push(IndexEntry { offset: offset.0, position, max_timestamp_before });
        }
        self.max_timestamp = self.max_timestamp.max(max_timestamp);
    }

    /// The memory it takes.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<IndexEntry>()
    }

    /// The newest timestamp in the segment; `i64::MIN` if it is empty.
    pub fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// The block that holds `offset`, if any does; `None` for an empty segment or an offset before it.
    pub fn block_of(&self, offset: Offset) -> Option<IndexBlock> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset.0);
        after.checked_sub(1).and_then(|number| self.block(number))
    }

    /// The first block that has a batch with a timestamp of at least `timestamp_ms`.
    pub fn block_of_time(&self, timestamp_ms: i64) -> Option<IndexBlock> {
        if self.max_timestamp < timestamp_ms {
            return None;
        }
        let after = self.entries.partition_point(|entry| entry.max_timestamp_before < timestamp_ms);
        // Nothing is older than the oldest time there is: then it is the first.
        self.block(after.saturating_sub(1))
    }

    /// Block `number`; `None` past the last.
    pub fn block(&self, number: usize) -> Option<IndexBlock> {
        let start = self.entries.get(number)?.position;
        Some(IndexBlock { number, start, end: self.entries.get(number + 1).map(|next| next.position) })
    }

    /// The first offset of block `number`.
    pub fn entry_offset(&self, number: usize) -> Option<Offset> {
        self.entries.get(number).map(|entry| Offset(entry.offset))
    }

    /// The bytes of the sidecar file.
    pub fn to_sidecar(&self, key: SidecarKey) -> Vec<u8> {
        let sidecar = Sidecar { incarnation: key.incarnation.0, end_position: key.end_position, index: self.clone() };
        envelope::seal(SIDECAR_MAGIC, &rkyv::to_bytes::<rancor::Error>(&sidecar).unwrap_or_default())
    }

    /// Reads a sidecar file; `None` on any doubt.
    pub fn from_sidecar(bytes: &[u8], key: SidecarKey) -> Option<Self> {
        let sidecar = rkyv::from_bytes::<Sidecar, rancor::Error>(&envelope::open(SIDECAR_MAGIC, bytes)?).ok()?;
        let found = SidecarKey { incarnation: Incarnation(sidecar.incarnation), end_position: sidecar.end_position };
        (found == key && sidecar.index.is_in_order()).then_some(sidecar.index)
    }

    fn is_in_order(&self) -> bool {
        self.entries.windows(2).all(|w| w[0].offset < w[1].offset && w[0].position < w[1].position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SidecarKey = SidecarKey { incarnation: Incarnation(9), end_position: 1 << 20 };

    /// Batches of 1 KiB with one record each, at times that jump back every third batch.
    fn sample() -> Index {
        let mut index = Index::default();
        for i in 0..100u64 {
            let time = if i % 3 == 0 { i as i64 * 10 - 500 } else { i as i64 * 10 };
            index.note(Offset(1000 + i), 4096 + i * 1024, time);
        }
        index
    }

    #[test]
    fn every_offset_is_in_the_block_that_the_index_names() {
        let index = sample();
        assert_eq!(index.block_of(Offset(999)), None);
        for i in 0..100 {
            let block = index.block_of(Offset(1000 + i)).unwrap();
            let position = 4096 + i * 1024;
            assert!(block.start <= position && block.end.is_none_or(|end| position < end), "{i} in {block:?}");
            assert!(block.end.is_none_or(|end| end - block.start >= INDEX_INTERVAL_BYTES));
        }
    }

    #[test]
    fn a_time_leads_to_the_first_block_with_a_record_not_older() {
        let index = sample();
        for wanted in [i64::MIN, -500, 0, 10, 15, 500, 980] {
            let first = (0..100).find(|i| (if i % 3 == 0 { i * 10 - 500 } else { i * 10 }) >= wanted).unwrap();
            let block = index.block_of_time(wanted).unwrap();
            let position = 4096 + first as u64 * 1024;
            assert!(block.start <= position && block.end.is_none_or(|end| position < end), "{wanted}: {block:?}");
        }
        assert_eq!(index.block_of_time(991), None);
    }

    #[test]
    fn a_sidecar_comes_back_whole_and_any_damage_or_other_segment_is_refused() {
        let bytes = sample().to_sidecar(KEY);
        let mut padded = bytes.clone();
        padded.resize(8192, 0);
        assert_eq!(Index::from_sidecar(&padded, KEY), Some(sample()));
        assert_eq!(Index::from_sidecar(&bytes, SidecarKey { incarnation: Incarnation(8), ..KEY }), None);
        assert_eq!(Index::from_sidecar(&bytes[..bytes.len() - 1], KEY), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Index::from_sidecar(&damaged, KEY), None, "bit {bit}");
        }
    }
}

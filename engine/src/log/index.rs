//! The sparse index of a segment: where to begin looking for an offset or a time.
//!
//! Its entries cut the segment into *index blocks* that begin at batch boundaries, at least [`INDEX_INTERVAL_BYTES`]
//! apart: the unit that is read, checked and cached. The index of the active segment grows in memory; that of a sealed
//! one is kept beside it as a checked rkyv archive. It is derived data: on any doubt it is rebuilt from the segment.

use std::ops::Range;

use rkyv::{Archive, Deserialize, Serialize, rancor};

use super::{envelope, survey::Found};
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

    /// The offsets from here to there that it has, and where their batches begin.
    pub(super) fn entries_in(&self, offsets: Range<Offset>) -> Vec<(Offset, u64)> {
        let is_in = |entry: &&IndexEntry| offsets.contains(&Offset(entry.offset));
        self.entries.iter().filter(is_in).map(|entry| (Offset(entry.offset), entry.position)).collect()
    }

    /// Whether it has the entries that it would have if these batches, which stand end to end in the segment, had been
    /// noted like all others: each with its offset, its place and its newest timestamp.
    pub(super) fn knows_all(&self, mut batches: impl Iterator<Item = (Offset, u64, i64)>) -> bool {
        batches.all(|(offset, position, max_timestamp)| {
            let after = self.entries.partition_point(|entry| entry.position <= position);
            let Some(last) = after.checked_sub(1).map(|at| &self.entries[at]) else { return false };
            let leads_there = last.position == position && last.offset == offset.0;
            let is_due = last.position + INDEX_INTERVAL_BYTES <= position;
            let newest = self.entries.get(after).map_or(self.max_timestamp, |next| next.max_timestamp_before);
            let is_right = leads_there || (last.position < position && last.offset < offset.0 && !is_due);
            is_right && newest >= max_timestamp
        })
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

/// Whether an index may be that of a damaged segment: made before the damage, or from what is left. Of entries that
/// lead to lost records nobody can say more than that they lead there.
pub(super) struct Agreement<'a> {
    index: &'a Index,
    /// The entries that nothing was found for yet.
    left: &'a [IndexEntry],
    /// Where the last entry leads of those before.
    last: Option<u64>,
    /// The newest timestamp of the intact batches so far, and whether there were no others.
    newest: (i64, bool),
    agrees: bool,
}

impl<'a> Agreement<'a> {
    /// `index` is to be held against what a survey of a segment from `base_offset` on finds.
    pub fn new(index: &'a Index, base_offset: Offset) -> Self {
        let left = &index.entries[..];
        // Else whoever asks for the first records is led nowhere.
        let agrees = left.first().is_some_and(|first| first.offset == base_offset.0);
        Agreement { index, left, last: None, newest: (i64::MIN, true), agrees }
    }

    /// Takes what the survey shows next.
    pub fn see(&mut self, found: &Found) {
        match found {
            Found::Batch(batch) => {
                let (offset, position) = (batch.header.base_offset.0, batch.position);
                let entry = self.left.first().filter(|entry| entry.position == position);
                self.agrees &= entry.is_some() == self.is_due(position);
                self.agrees &= entry.is_none_or(|entry| entry.offset == offset);
                self.take(entry.is_some());
                self.newest.0 = self.newest.0.max(batch.header.max_timestamp_ms);
            }
            Found::Lost(lost) => {
                self.newest.1 = false;
                while let Some(entry) = self.left.first().filter(|entry| entry.position < lost.end_position) {
                    let leads_there = lost.position <= entry.position
                        && (lost.from.0..lost.to.0.max(lost.from.0 + 1)).contains(&entry.offset);
                    self.agrees &= leads_there && self.is_due(entry.position);
                    self.take(true);
                }
            }
        }
    }

    /// What it came to, after the survey.
    pub fn holds(&self) -> bool {
        self.agrees && self.left.is_empty() && self.knows_time(self.index.max_timestamp)
    }

    fn is_due(&self, position: u64) -> bool {
        self.last.is_none_or(|last| position >= last + INDEX_INTERVAL_BYTES)
    }

    fn knows_time(&self, newest: i64) -> bool {
        let (known, all) = self.newest;
        if all { newest == known } else { newest >= known }
    }

    /// Goes past the next entry, if that was what stood there.
    fn take(&mut self, is_entry: bool) {
        let Some((entry, left)) = self.left.split_first().filter(|_| is_entry) else { return };
        self.agrees &= self.knows_time(entry.max_timestamp_before);
        (self.last, self.left) = (Some(entry.position), left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{fixture::batch_of, scan::Located, survey::Lost},
        record::{BatchHeader, check_produced},
    };

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

    #[test]
    fn a_sidecar_whose_entries_are_not_in_order_is_refused() {
        let with = |offset: u64, position: u64| {
            let mut index = sample();
            (index.entries[2].offset, index.entries[2].position) = (offset, position);
            Index::from_sidecar(&index.to_sidecar(KEY), KEY).is_some()
        };
        let entries = sample().entries;
        let (before, at) = (&entries[1], &entries[2]);
        assert!(with(at.offset, at.position) && with(before.offset + 1, before.position + 1));
        assert!(!with(before.offset, at.position) && !with(at.offset, before.position));
        assert!(!with(before.offset - 1, at.position) && !with(at.offset, before.position - 1));
    }

    /// What a survey finds of the sample's segment when the batches `lost` are damaged.
    fn found(lost: &Range<u64>) -> Vec<Found> {
        let header = check_produced(&batch_of(200)).unwrap();
        let place = |i: u64| (Offset(1000 + i), 4096 + i * 1024);
        let mut all = Vec::new();
        for i in 0..100u64 {
            let (base_offset, position) = place(i);
            let max_timestamp_ms = if i % 3 == 0 { i as i64 * 10 - 500 } else { i as i64 * 10 };
            if !lost.contains(&i) {
                all.push(Found::Batch(Located {
                    position,
                    header: BatchHeader { base_offset, max_timestamp_ms, ..header },
                }));
            } else if i == lost.start {
                let ((from, position), (to, end_position)) = (place(i), place(lost.end));
                all.push(Found::Lost(Lost { position, end_position, from, to, reason: String::new() }));
            }
        }
        all
    }

    fn agrees(index: &Index, found: &[Found]) -> bool {
        let mut agreement = Agreement::new(index, Offset(1000));
        found.iter().for_each(|found| agreement.see(found));
        agreement.holds()
    }

    #[test]
    fn the_index_of_a_damaged_segment_may_be_from_before_or_from_what_is_left_and_nothing_else() {
        for lost in [0..0, 0..1, 0..30, 5..6, 15..17, 40..80, 99..100, 0..100] {
            let found = found(&lost);
            let before = sample();
            let mut rebuilt = Index::default();
            for one in &found {
                match one {
                    Found::Batch(batch) => {
                        rebuilt.note(batch.header.base_offset, batch.position, batch.header.max_timestamp_ms);
                    }
                    Found::Lost(lost) if lost.from == Offset(1000) => rebuilt.note(lost.from, 4096, i64::MIN),
                    Found::Lost(_) => {}
                }
            }
            assert!(agrees(&before, &found) && agrees(&rebuilt, &found), "{lost:?}");
            assert!(!agrees(&Index::default(), &found), "{lost:?}");
            for index in [&before, &rebuilt] {
                for number in 0..index.entries.len() {
                    let position = index.entries[number].position;
                    let batch = (position - 4096) / 1024;
                    let is_left = |batch: &u64| !lost.contains(batch);
                    let with = |change: &dyn Fn(&mut Vec<IndexEntry>)| {
                        let mut changed = index.clone();
                        change(&mut changed.entries);
                        agrees(&changed, &found)
                    };
                    let wrong = [
                        with(&|entries| _ = entries.remove(number)),
                        with(&|entries| entries[number].position += 512),
                        with(&|entries| entries[number].offset += 1),
                        with(&|entries| entries[number].max_timestamp_before = i64::MIN),
                    ];
                    // Of the time of what is lost nobody knows.
                    let is_timeless = !(0..batch).any(|before| is_left(&before));
                    if is_left(&batch) {
                        let expected = [false, false, false, is_timeless];
                        assert_eq!(wrong, expected, "{lost:?}: entry {number} at {position}");
                    }
                }
            }
            // An entry more that leads to where records are lost, but sooner than any is due.
            if let Some(batch) = lost.clone().find(|batch| batch % 16 == 1 && *batch > 1) {
                let mut crowded = before.clone();
                let place = crowded.entries.partition_point(|entry| entry.offset < 1000 + batch);
                let max_timestamp_before = crowded.entries[place - 1].max_timestamp_before;
                let (offset, position) = (1000 + batch, 4096 + batch * 1024);
                crowded.entries.insert(place, IndexEntry { offset, position, max_timestamp_before });
                assert!(!agrees(&crowded, &found), "{lost:?}: an entry for batch {batch}");
            }
            let newest = Index { max_timestamp: i64::MIN, ..before.clone() };
            assert_eq!(agrees(&newest, &found), lost == (0..100), "{lost:?}");
        }
    }

    #[test]
    fn an_index_knows_batches_that_it_would_lead_to_if_they_had_been_noted_and_no_others() {
        let index = sample();
        let time = |i: u64| if i.is_multiple_of(3) { i as i64 * 10 - 500 } else { i as i64 * 10 };
        let place = |i: u64| (Offset(1000 + i), 4096 + i * 1024, time(i));
        assert!(index.knows_all((0..100).map(place)) && index.knows_all([].into_iter()));
        for i in 0..100 {
            let (offset, position, time) = place(i);
            let known = |batch| index.knows_all([batch].into_iter());
            assert!(known(place(i)), "batch {i}");
            let is_entry = index.entries.iter().any(|entry| entry.position == position);
            assert!(!known((Offset(offset.0 - i - 1), position, time)), "batch {i} before all others");
            assert_eq!(known((Offset(offset.0 + 1), position, time)), !is_entry, "batch {i}, one offset on");
            assert!(!known((offset, position, 5_000)), "batch {i}, newer than all");
        }
        assert!(!index.knows_all([(Offset(1000), 0, 0)].into_iter()), "before the first entry");
        let mut behind = Index::default();
        behind.note(Offset(0), 4096, 1);
        let next = |position| behind.knows_all([(Offset(1), position, 1)].into_iter());
        assert!(next(4097) && next(4096 + INDEX_INTERVAL_BYTES - 1));
        assert!(!next(4096 + INDEX_INTERVAL_BYTES), "an entry is due there");
        assert!(!Index::default().knows_all([(Offset(0), 4096, 1)].into_iter()));
    }

    #[test]
    fn the_entries_of_a_range_of_offsets_are_given_with_their_places() {
        let index = sample();
        let all = index.entries_in(Offset(0)..Offset(u64::MAX));
        assert_eq!(all.len(), index.entries.len());
        let (second, third) = (all[1], all[2]);
        assert_eq!(second, (Offset(1016), 4096 + INDEX_INTERVAL_BYTES));
        assert_eq!(index.entries_in(second.0..third.0), [second], "the end is not in it");
        assert_eq!(index.entries_in(Offset(second.0.0 + 1)..third.0), []);
    }
}

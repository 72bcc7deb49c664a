//! What drives spoil: bits flipped on purpose between two lives, and for the judge the records that these and
//! misdirected writes took.
//!
//! One copy cannot answer for everything. Of the newest flush group nothing says that it was there once it is damaged,
//! until a later batch carries its durable hint; so bits are flipped in what such a batch covers, as far as the clients
//! can tell, and the loss of what a misdirected write spoiled behind that is excused.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use pyralog_engine::{
    limits::{BATCH_HEADER_BYTES, SEGMENT_HEADER_BYTES},
    log::{
        scan::{Check, Step, Walk},
        segment::SegmentHeader,
    },
    record::check_stored_header,
    runtime::sim::{Sim, SimRandom, Wound, faults::FaultKind},
    testing::history::{Event, Spoiled},
    types::{Incarnation, Offset, PartitionId},
};

use crate::{clients::Clients, plan::Plan};

/// Bytes of the header block that mean something.
const HEADER_BYTES: usize = 48;

/// A batch in a segment file.
struct Placed {
    bytes: Range<usize>,
    offsets: Range<u64>,
}

/// What the file of a segment should hold.
struct Content {
    partition: PartitionId,
    base: Offset,
    block_bytes: usize,
    incarnation: Incarnation,
    batches: Vec<Placed>,
}

impl Content {
    fn of(bytes: &[u8]) -> Option<Content> {
        let header = SegmentHeader::decode(bytes).ok()?;
        let start = SEGMENT_HEADER_BYTES as usize;
        let body = bytes.get(start..)?;
        let mut walk = Walk::new(body, start as u64, (header.block_bytes, header.incarnation), Check::Whole);
        let mut batches: Vec<Placed> = Vec::new();
        while let Step::Batch(batch) = walk.step() {
            let from = batch.position as usize;
            let offsets = batch.header.base_offset.0..batch.header.end_offset().0;
            batches.push(Placed { bytes: from..from + batch.header.batch_len(), offsets });
        }
        let block_bytes = header.block_bytes as usize;
        let SegmentHeader { partition, base_offset: base, incarnation, .. } = header;
        Some(Content { partition, base, block_bytes, incarnation, batches })
    }

    /// Up to where recovery knows of damage that it is damage, if these headers are spoiled and the segment is the last
    /// of its log: what the hints say that it finds, from each block on by the lengths in the headers. Which hints
    /// those are at least, the clients know: what the server stored of them is not believed.
    fn known_durable(&self, clients: &Clients, is_header_spoiled: impl Fn(&Placed) -> bool) -> Offset {
        let (mut is_found, mut known) = (true, self.base);
        for batch in &self.batches {
            is_found |= batch.bytes.start.is_multiple_of(self.block_bytes);
            is_found &= !is_header_spoiled(batch);
            if is_found {
                known = known.max(clients.hint_of(self.partition, batch.offsets.start));
            }
        }
        known
    }

    /// Whether in `found` the batch with `offset` stands at a block that is not its own: then recovery knows that it
    /// was no flush that was cut off.
    fn is_elsewhere(&self, offset: u64, found: &[u8]) -> bool {
        let own = self.batches.iter().find(|batch| batch.offsets.start == offset).map(|batch| batch.bytes.start);
        let places = (SEGMENT_HEADER_BYTES as usize..found.len()).step_by(self.block_bytes);
        let mut others = places.filter(|place| Some(*place) != own);
        others.any(|place| {
            let header = check_stored_header(&found[place..]);
            header.is_ok_and(|header| header.base_offset.0 == offset && header.incarnation == self.incarnation)
        })
    }

    fn end(&self) -> Offset {
        self.batches.last().map_or(self.base, |last| Offset(last.offsets.end))
    }
}

fn segments(sim: &Sim) -> Vec<PathBuf> {
    let paths = sim.files().into_iter().map(|(path, _)| path);
    paths.filter(|path| path.extension() == Some("seg".as_ref())).collect()
}

/// Whether recovery may look for the end of the log in the segment at `path`: behind it are only segments without a
/// header, which it removes.
fn may_be_last(sim: &Sim, segments: &[PathBuf], path: &Path) -> bool {
    let mut behind = segments.iter().filter(|other| other.parent() == path.parent() && other.as_path() > path);
    behind.all(|path| sim.content(path).is_none_or(|bytes| SegmentHeader::decode(&bytes).is_err()))
}

/// Perhaps flips a bit of a record, or of a header block, that the drive should still have.
pub fn rot(sim: &Sim, plan: &Plan, clients: &Clients, random: &mut SimRandom) {
    if !random.happens(plan.rates.get(FaultKind::BitFlip)) {
        return;
    }
    let segments = segments(sim);
    if segments.is_empty() {
        return;
    }
    let path = &segments[random.below(segments.len() as u64) as usize];
    let Some(content) = sim.content(path).as_deref().and_then(Content::of) else { return };
    let last = may_be_last(sim, &segments, path);
    let covered = clients.covered(content.partition).0;
    let is_known = |one: &&Placed| {
        let known = content.known_durable(clients, |other| other.bytes == one.bytes).0;
        one.offsets.end <= if last { covered.min(known) } else { covered }
    };
    let safe: Vec<&Placed> = content.batches.iter().filter(is_known).collect();
    if safe.is_empty() {
        return;
    }
    let chosen = &safe[random.below(safe.len() as u64) as usize].bytes;
    let place = if random.happens(500) { 0..HEADER_BYTES } else { chosen.clone() };
    let at = random.within(place.start as u64..place.end as u64);
    assert!(sim.flip_bit_at(path, at));
}

/// Tells the judge which records the drive has spoiled by now.
pub fn tell(sim: &Sim, clients: &Clients) {
    let segments = segments(sim);
    for wound in sim.wounds() {
        for spoiled in spoiled_by(&wound, may_be_last(sim, &segments, &wound.path), clients) {
            if !clients.spoiled.borrow().contains(&spoiled) {
                clients.spoiled.borrow_mut().push(spoiled);
                clients.note(Event::Spoiled(spoiled));
            }
        }
    }
}

/// What a wound takes: the batches that it hit, and what is behind them only where one copy cannot tell.
///
/// In the last segment, damage that no durable hint is beyond looks like a flush that was cut off, and all from there
/// on is given up; unless damage before it, or the very batch in a wrong place, shows that it is none. Then the
/// partition is not written any more, and serves nothing from there on.
fn spoiled_by(wound: &Wound, last: bool, clients: &Clients) -> Vec<Spoiled> {
    let Some(content) = Content::of(&wound.right) else { return Vec::new() };
    let differs = |bytes: &Range<usize>| wound.found[bytes.clone()] != wound.right[bytes.clone()];
    let partition = content.partition;
    let spoil = |from: u64, to: u64| Spoiled { partition, from: Offset(from), to: Offset(to), newest: false };
    if differs(&(0..HEADER_BYTES)) {
        return vec![spoil(content.base.0, if last { u64::MAX } else { content.end().0 })];
    }
    let hit: Vec<&Placed> = content.batches.iter().filter(|batch| differs(&batch.bytes)).collect();
    let mut all: Vec<_> = hit.iter().map(|batch| spoil(batch.offsets.start, batch.offsets.end)).collect();
    if all.is_empty() {
        return vec![spoil(content.end().0, content.end().0)];
    }
    let header_of = |batch: &Placed| batch.bytes.start..batch.bytes.start + BATCH_HEADER_BYTES;
    let known = content.known_durable(clients, |batch| differs(&header_of(batch))).0;
    if let Some(first) = hit.iter().map(|batch| batch.offsets.start).find(|from| last && *from >= known) {
        let is_noticed = hit[0].offsets.start < known || content.is_elsewhere(first, &wound.found);
        let to = if is_noticed { u64::MAX } else { first };
        all.push(Spoiled { newest: !is_noticed, ..spoil(first, to) });
    }
    all
}

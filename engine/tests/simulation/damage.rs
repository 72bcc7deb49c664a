//! What drives spoil: bits flipped on purpose between two lives, and for the judge the records that these and
//! misdirected writes took.
//!
//! One copy cannot answer for everything. Of the newest flush group nothing says that it was there once it is damaged,
//! until a later batch carries its durable hint; so bits are flipped in what such a batch covers, as far as the clients
//! can tell, and the loss of what a misdirected write spoiled behind that is excused.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use pyralog_engine::{
    limits::SEGMENT_HEADER_BYTES,
    log::{
        scan::{Check, Step, Walk},
        segment::SegmentHeader,
    },
    runtime::sim::{Sim, SimRandom, Wound, faults::FaultKind},
    testing::history::{Event, Spoiled},
    types::{Offset, PartitionId},
};

use crate::{clients::Clients, plan::Plan};

const SECTOR_BYTES: usize = 512;

/// Bytes of the header block that mean something.
const HEADER_BYTES: usize = 48;

/// A batch in a segment file.
struct Placed {
    bytes: Range<usize>,
    offsets: Range<u64>,
    durable_hint: Offset,
}

/// What the file of a segment should hold.
struct Content {
    partition: PartitionId,
    base: Offset,
    block_bytes: usize,
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
            let durable_hint = batch.header.durable_hint;
            batches.push(Placed { bytes: from..from + batch.header.batch_len(), offsets, durable_hint });
        }
        let block_bytes = header.block_bytes as usize;
        Some(Content { partition: header.partition, base: header.base_offset, block_bytes, batches })
    }

    /// Up to where recovery would know of damage in the segment at `path` that it is damage: in the last segment of its
    /// log, what the hints say that it can find behind any damage; in others, everything.
    fn known_durable(&self, segments: &[PathBuf], path: &Path) -> Offset {
        let is_last = !segments.iter().any(|other| other.parent() == path.parent() && other.as_path() > path);
        let found = self.batches.iter().filter(|batch| batch.bytes.start.is_multiple_of(self.block_bytes));
        let hints = found.map(|batch| batch.durable_hint).max().unwrap_or(self.base);
        if is_last { hints } else { Offset(u64::MAX) }
    }

    fn end(&self) -> Offset {
        self.batches.last().map_or(self.base, |last| Offset(last.offsets.end))
    }
}

fn segments(sim: &Sim) -> Vec<PathBuf> {
    let paths = sim.files().into_iter().map(|(path, _)| path);
    paths.filter(|path| path.extension() == Some("seg".as_ref())).collect()
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
    let covered = clients.covered(content.partition).0.min(content.known_durable(&segments, path).0);
    let safe: Vec<&Placed> = content.batches.iter().take_while(|batch| batch.offsets.end <= covered).collect();
    if safe.is_empty() {
        return;
    }
    let chosen = &safe[random.below(safe.len() as u64) as usize].bytes;
    let place = if random.happens(500) { 0..HEADER_BYTES } else { chosen.clone() };
    assert!(sim.flip_bit_at(path, random.within(place.start as u64..place.end as u64)));
}

/// Tells the judge which records the drive has spoiled by now.
pub fn tell(sim: &Sim, clients: &Clients) {
    let wounds = sim.wounds();
    let mut newest: BTreeMap<&Path, &Path> = BTreeMap::new();
    let all = segments(sim);
    for path in &all {
        newest.insert(path.parent().unwrap(), path);
    }
    for wound in &wounds {
        let last = wound.path.parent().and_then(|dir| newest.get(dir)) == Some(&wound.path.as_path());
        for spoiled in spoiled_by(wound, last, clients) {
            if !clients.spoiled.borrow().contains(&spoiled) {
                clients.spoiled.borrow_mut().push(spoiled);
                clients.note(Event::Spoiled(spoiled));
            }
        }
    }
}

/// Whether whole sectors are others than they should be: flipped bits are a few.
fn is_misdirected(wound: &Wound) -> bool {
    const FLIPPED_BITS_MAX: usize = 16;
    let sectors = wound.found.chunks(SECTOR_BYTES).zip(wound.right.chunks(SECTOR_BYTES));
    let differing = |(found, right): (&[u8], &[u8])| found.iter().zip(right).filter(|(a, b)| a != b).count();
    sectors.into_iter().any(|pair| differing(pair) > FLIPPED_BITS_MAX)
}

fn spoiled_by(wound: &Wound, last: bool, clients: &Clients) -> Vec<Spoiled> {
    let Some(content) = Content::of(&wound.right) else { return Vec::new() };
    let covered = clients.covered(content.partition);
    let differs = |bytes: &Range<usize>| wound.found[bytes.clone()] != wound.right[bytes.clone()];
    let spoil = |offsets: &Range<u64>| Spoiled {
        partition: content.partition,
        from: Offset(offsets.start),
        to: Offset(offsets.end),
        newest: last && offsets.end > covered.0,
    };
    if differs(&(0..HEADER_BYTES)) {
        return vec![spoil(&(content.base.0..content.end().0))];
    }
    if is_misdirected(wound) {
        // A batch that stands elsewhere than where it belongs, or what is left of it, looks like the next one behind
        // the damage: what the two enclose is given up, with an error that says so, and it may be all that follows.
        // What is served must be right all the same.
        let first =
            content.batches.iter().find(|batch| differs(&batch.bytes)).map_or(content.end().0, |b| b.offsets.start);
        // And where it belongs may have been the end of the log, which then looks as if it had come earlier.
        return vec![Spoiled { newest: true, ..spoil(&(first..content.end().0)) }];
    }
    let hit: Vec<_> =
        content.batches.iter().filter(|batch| differs(&batch.bytes)).map(|batch| spoil(&batch.offsets)).collect();
    if hit.is_empty() { vec![spoil(&(content.end().0..content.end().0))] } else { hit }
}

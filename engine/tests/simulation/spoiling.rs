//! What drives spoil of partitions with several copies: bits that turn over, and writes that went to a wrong place
//! before they went to their own. One copy of a partition at a time, so that nothing may be lost by it: in the end all
//! of it is repaired.
//!
//! The newest flush group of a copy can be spoiled without anybody noticing, as if it had never been synced; such a
//! copy is worth no more than an old image of its drive. So only that is spoiled of which an opening says so.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use pyralog_engine::{
    limits::SEGMENT_HEADER_BYTES,
    log::{
        last_segment::{BEGINNING_BYTES, Beginning, LastScan},
        segment::{SegmentHeader, base_offset_of},
        start,
        survey::{Found, Survey},
    },
    runtime::sim::{Sim, SimRandom},
    types::Offset,
};

use crate::{lives::STEPS_MAX, plan::Plan};

const SECTOR: u64 = 512;

/// The segments of each copy, by its folder, of each partition.
type Copies = BTreeMap<PathBuf, BTreeMap<PathBuf, Vec<PathBuf>>>;

/// What there is on the drives.
pub fn copies_on(sim: &Sim, plan: &Plan) -> Copies {
    let mut copies = Copies::new();
    for (path, _) in sim.files() {
        let is_segment = base_offset_of(&path).is_some();
        let on = plan.drives.iter().find(|drive| path.starts_with(drive));
        if let Some((drive, dir)) = on.zip(path.parent()).filter(|_| is_segment) {
            // Without the number of the copy.
            let partition = dir.strip_prefix(drive).unwrap().with_extension("");
            copies.entry(partition).or_default().entry(dir.to_path_buf()).or_default().push(path);
        }
    }
    copies
}

/// Perhaps spoils something. The power was lost before, so all that there is will stay.
pub fn spoil(sim: &Sim, plan: &Plan, random: &mut SimRandom) {
    let copies = copies_on(sim, plan);
    let partitions: Vec<_> = copies.values().collect();
    if partitions.is_empty() || !random.happens(6_000) {
        return;
    }
    let copies = partitions[random.below(partitions.len() as u64) as usize];
    let hurt: Vec<_> = copies.iter().filter(|copy| !is_whole(sim, *copy)).collect();
    let (_, segments) = match hurt[..] {
        [] => copies.iter().nth(random.below(copies.len() as u64) as usize).unwrap(),
        [one] => one,
        _ => return,
    };
    let segments = in_use(sim, segments);
    for _ in 0..=random.below(3) {
        if segments.is_empty() {
            return;
        }
        let at = random.below(segments.len() as u64) as usize;
        hit(sim, (&segments[at], at + 1 == segments.len()), plan.alignment, random);
    }
}

/// Whether a copy has nothing damaged, and its memory.
pub fn is_whole(sim: &Sim, (dir, segments): (&PathBuf, &Vec<PathBuf>)) -> bool {
    damage_of(sim, segments).is_empty() && !forgot(sim, dir)
}

/// Spoils a place of a segment file, if an opening will notice it.
fn hit(sim: &Sim, (path, is_last): (&Path, bool), alignment: u64, random: &mut SimRandom) {
    let Some(right) = sim.content(path).filter(|bytes| SegmentHeader::decode(bytes).is_ok()) else { return };
    let end = used_end(&right);
    let body = SEGMENT_HEADER_BYTES..end;
    if body.is_empty() {
        return;
    }
    let mut wrong = right.clone();
    if random.happens(5_000) {
        let place = if random.happens(1_000) { 0..48 } else { body };
        let at = random.within(place);
        wrong[at as usize] ^= 0xff;
        if is_noticed((path, is_last), &right, &wrong) {
            assert!(sim.flip_bit_at(path, at));
        }
        return;
    }
    let blocks = (end - SEGMENT_HEADER_BYTES) / alignment;
    let count = random.within(1..5).min(blocks);
    if count == 0 || blocks == count {
        return;
    }
    let place = |random: &mut SimRandom| SEGMENT_HEADER_BYTES + random.below(blocks - count + 1) * alignment;
    let (from, to) = (place(random), place(random));
    let bytes = |start: u64| -> Range<usize> { start as usize..(start + count * alignment) as usize };
    wrong.copy_within(bytes(from), to as usize);
    if wrong != right && bytes(to).end <= right.len() && is_noticed((path, is_last), &right, &wrong) {
        sim.misdirect(path, (from, to), count * alignment / SECTOR);
    }
}

/// Where the last byte of a file that means something is followed by zeros only.
fn used_end(bytes: &[u8]) -> u64 {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    (used as u64).next_multiple_of(SECTOR).min(bytes.len() as u64)
}

/// Whether an opening of the log, or whoever reads a sealed segment, notices that a file is not what it was.
fn is_noticed((path, is_last): (&Path, bool), right: &[u8], wrong: &[u8]) -> bool {
    if !is_last {
        return true;
    }
    let Ok(header) = SegmentHeader::decode(right) else { return false };
    let place = (Some(header.partition.log), header.partition.index, header.base_offset);
    if SegmentHeader::decode(wrong) != Ok(header) {
        let beginning = &wrong[..wrong.len().min(BEGINNING_BYTES)];
        return matches!(Beginning::of(beginning, wrong.len() as u64, place), Beginning::Damaged(_));
    }
    scan(path, header, wrong).1
}

/// Where the log ends as an opening sees it, and whether it takes the segment for damaged.
fn scan(path: &Path, header: SegmentHeader, bytes: &[u8]) -> (Offset, bool) {
    let mut scan = LastScan::new(path.to_path_buf(), header, bytes.len() as u64);
    while let Some((position, len)) = scan.wants() {
        let position = position as usize;
        scan.take(&bytes[position.min(bytes.len())..(position + len).min(bytes.len())]);
    }
    let found = scan.verdict();
    (found.end_offset, found.damage.is_some())
}

/// The segments without those at the end that were only created.
fn in_use(sim: &Sim, segments: &[PathBuf]) -> Vec<PathBuf> {
    let mut segments = segments.to_vec();
    let is_bare = |path: &PathBuf| sim.content(path).is_none_or(|bytes| used_end(&bytes) == 0);
    while segments.last().is_some_and(is_bare) {
        segments.pop();
    }
    segments
}

/// Whether the ballot in `dir` says that the copy lost its memory, or is not there.
fn forgot(sim: &Sim, dir: &Path) -> bool {
    let ballot = sim.content(&dir.join("ballot")).unwrap_or_default();
    let says = |word: &[u8]| ballot.windows(word.len()).any(|window| window == word);
    says(b"\"lost\"") || !says(b"\"intact\"")
}

/// What is damaged of a copy with these segments.
fn damage_of(sim: &Sim, segments: &[PathBuf]) -> Vec<String> {
    let segments = in_use(sim, segments);
    let mut damage = Vec::new();
    for (at, path) in segments.iter().enumerate() {
        let Some(bytes) = sim.content(path) else { continue };
        let Ok(header) = SegmentHeader::decode(&bytes) else {
            damage.push(format!("the header of {}", path.display()));
            continue;
        };
        let Some(next) = segments.get(at + 1).and_then(|next| base_offset_of(next)) else {
            damage.extend(scan(path, header, &bytes).1.then(|| format!("the end of {}", path.display())));
            continue;
        };
        let start_file = sim.content(&path.with_file_name(start::FILE_NAME)).unwrap_or_default();
        let owner = (Some(header.partition.log), header.partition.index);
        let start = start::decode(&start_file, owner).unwrap_or_default();
        let span = (SEGMENT_HEADER_BYTES, bytes.len() as u64);
        let mut survey = Survey::new(&header, span, (header.base_offset, next)).in_one_piece();
        let mut see = |found| {
            if let Found::Lost(lost) = found
                && lost.from < lost.to
                && lost.to > start
            {
                damage.push(format!("{} to {} in {}: {}", lost.from, lost.to, path.display(), lost.reason));
            }
        };
        survey.take(&bytes[SEGMENT_HEADER_BYTES as usize..], &mut see);
        survey.finish(&mut see);
    }
    damage
}

/// What is not repaired in a few seconds. Called when all is well again, with a server that runs.
pub fn unrepaired(sim: &Sim, plan: &Plan) -> Vec<String> {
    still_there(sim, || {
        let copies = copies_on(sim, plan);
        let damage = copies.values().flatten().flat_map(|(_, segments)| damage_of(sim, segments));
        damage.map(|what| format!("C3 broken: not repaired: {what}")).collect()
    })
}

/// What `left` finds when a server that runs had a few seconds to see to it.
pub fn still_there(sim: &Sim, left: impl Fn() -> Vec<String>) -> Vec<String> {
    const STEP: Duration = Duration::from_millis(500);
    const STEPS: u32 = 20;
    for _ in 0..STEPS {
        if left().is_empty() {
            break;
        }
        sim.keep_going_until(sim.now() + STEP);
        if let Err(stuck) = sim.run_for(STEP, STEPS_MAX) {
            return vec![stuck.to_string()];
        }
    }
    left()
}

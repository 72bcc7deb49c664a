//! Bytes of a copy that its drive does not give, however often they are asked for, until the server starts again: in a
//! segment that was there when it started, so that they are not in memory; or already while the copy is opened.

use std::path::{Path, PathBuf};

use pyralog_engine::{
    limits::SEGMENT_HEADER_BYTES,
    runtime::sim::{Sim, SimRandom},
    shard::CATALOG_FILE,
};

use crate::{
    plan::Plan,
    spoiling::{copies_on, is_whole},
};

/// Whether drives do that in a seed of several copies. The stream is one in which they do not in the kept seeds.
pub fn of_seed(seed: u64) -> bool {
    SimRandom::new(seed, 258).happens(3_000)
}

/// Perhaps some bytes cannot be read from now on: of the newest segments rather, which others may lack.
pub fn withhold(sim: &Sim, plan: &Plan, random: &mut SimRandom) {
    let copies: Vec<_> = copies_on(sim, plan).into_values().flatten().collect();
    if copies.is_empty() {
        return;
    }
    for _ in 0..random.below(4) {
        let (_, segments) = &copies[random.below(copies.len() as u64) as usize];
        let newest = random.below(segments.len().min(3) as u64) as usize;
        let path = &segments[segments.len() - 1 - newest];
        let len = sim.content(path).map_or(0, |bytes| bytes.len() as u64);
        if len > SEGMENT_HEADER_BYTES {
            let at = random.within(SEGMENT_HEADER_BYTES..len) / 512 * 512;
            sim.refuse_reads(path, at..at + 512 * random.within(1..64));
        }
    }
}

/// The server is down: perhaps some bytes cannot be read when it starts, of any copy. Where something spoils copies
/// too, only of one whose others are whole: nobody could have both back.
pub fn withhold_from_openings(sim: &Sim, plan: &Plan, random: &mut SimRandom) {
    if !random.happens(5_000) {
        return;
    }
    for copies in copies_on(sim, plan).values() {
        for (dir, segments) in copies.iter().filter(|_| random.happens(4_000)).collect::<Vec<_>>() {
            let others = || copies.iter().filter(|(other, _)| *other != dir);
            if !plan.spoils_copies || others().all(|copy| is_whole(sim, copy)) {
                refuse(sim, (dir, segments), random);
            }
        }
    }
}

/// The last server is about to start: of each partition one copy is not given, if all are whole and the others can
/// elect a leader. Gives whether any is.
pub fn withhold_from_the_last(sim: &Sim, plan: &Plan, random: &mut SimRandom) -> bool {
    let replication = plan.settings.replication.filter(|copies| copies.write_quorum > 1 && !plan.changes);
    let Some(replication) = replication.filter(|_| random.happens(6_000)) else { return false };
    let says_founding =
        |path: &Path| sim.content(path).is_some_and(|bytes| bytes.windows(8).any(|word| word == b"founding"));
    if plan.drives.iter().any(|drive| says_founding(&drive.join(CATALOG_FILE))) {
        // A copy that is missing then may be a new one.
        return false;
    }
    let mut any = false;
    for copies in copies_on(sim, plan).values() {
        let are_all = copies.len() == usize::from(replication.replication_factor);
        if are_all && copies.iter().all(|copy| is_whole(sim, copy)) {
            let (dir, segments) = copies.iter().nth(random.below(copies.len() as u64) as usize).unwrap();
            any |= refuse(sim, (dir, segments), random);
        }
    }
    any
}

/// Refuses reads of what an opening reads, most likely: the ballot, what a segment begins with, or something of the
/// last one.
fn refuse(sim: &Sim, (dir, segments): (&Path, &[PathBuf]), random: &mut SimRandom) -> bool {
    let any = &segments[random.below(segments.len() as u64) as usize];
    let (path, at) = match random.below(4) {
        0 => (dir.join("ballot"), 0),
        1 => (any.clone(), 0),
        _ => {
            let last = segments[segments.len() - 1].clone();
            let blocks = sim.content(&last).map_or(1, |bytes| bytes.len() as u64 / 512).max(1);
            (last, 512 * random.below(blocks))
        }
    };
    let is_there = sim.content(&path).is_some();
    sim.refuse_reads(&path, at..at + 512 * random.within(8..64));
    is_there
}

//! Bytes of a copy that its drive does not give, however often they are asked for, until the server starts again: in a
//! segment that was there when it started, so that they are not in memory.

use pyralog_engine::{
    limits::SEGMENT_HEADER_BYTES,
    runtime::sim::{Sim, SimRandom},
};

use crate::{plan::Plan, spoiling::copies_on};

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

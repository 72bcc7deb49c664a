//! Bugs planted on purpose: a judge that misses one of them is not worth much.

use pyralog_engine::testing::bug::{PlantedBug, plant};

use crate::lives::try_seed;

#[test]
fn every_planted_bug_is_caught() {
    const SEEDS_MAX: u64 = 500;
    std::panic::set_hook(Box::new(|_| {}));
    let mut needed: Vec<(u64, PlantedBug)> = Vec::new();
    for &bug in PlantedBug::ALL {
        plant(Some(bug));
        let caught = (1..=SEEDS_MAX).find(|seed| try_seed(*seed).is_err());
        plant(None);
        println!("{bug:?}: {caught:?}");
        needed.push((caught.unwrap_or(u64::MAX), bug));
    }
    let _ = std::panic::take_hook();
    needed.sort_by_key(|(seeds, _)| *seeds);
    println!("median seeds to catch a planted bug: {}", needed[needed.len() / 2].0);
    let missed: Vec<_> = needed.iter().filter(|(seeds, _)| *seeds == u64::MAX).collect();
    assert!(missed.is_empty(), "not caught within {SEEDS_MAX} seeds: {missed:?}");
}

//! Bugs planted on purpose: a judge that misses one of them is not worth much.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use pyralog_engine::testing::bug::{PlantedBug, plant};

use crate::{
    lives::{Kind, try_seed},
    number,
};

const SEEDS_MAX: u64 = 500;

#[test]
fn every_planted_bug_is_caught() {
    all_are_caught(Kind::Single, PlantedBug::ALL);
}

#[test]
fn every_planted_bug_of_several_copies_is_caught() {
    all_are_caught(Kind::Copies, PlantedBug::OF_COPIES);
}

fn all_are_caught(kind: Kind, bugs: &[PlantedBug]) {
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let work = || {
        let one = || bugs.get(next.fetch_add(1, Relaxed)).map(|bug| (*bug, catch(kind, *bug)));
        std::iter::from_fn(one).collect::<Vec<_>>()
    };
    let caught: Vec<_> = std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let _ = std::panic::take_hook();
    let mut needed: Vec<u64> = caught.iter().map(|(_, seeds)| seeds.unwrap_or(u64::MAX)).collect();
    needed.sort_unstable();
    println!("{} bugs planted, median seeds to catch one: {}", needed.len(), needed[needed.len() / 2]);
    let missed: Vec<_> = caught.iter().filter(|(_, seeds)| seeds.is_none()).collect();
    assert!(missed.is_empty(), "not caught within {SEEDS_MAX} seeds: {missed:?}");
}

/// For each rule of the judge a bug that in some seed breaks nothing else: without the rule that seed would pass.
const CAUGHT_BY_ONE: [(&str, PlantedBug); 10] = [
    ("C1", PlantedBug::DeleteOneTooMany),
    ("C2", PlantedBug::StoreRefused),
    ("C3", PlantedBug::SkipDamageSilently),
    ("C4", PlantedBug::ForgetProducersAtRestart),
    ("C5", PlantedBug::AckPendingDuplicate),
    ("C6", PlantedBug::StartNameNotSynced),
    ("C7", PlantedBug::ShowFirstBeforeAck),
    ("C8", PlantedBug::IgnoreExpectedOffset),
    ("C11", PlantedBug::CatalogNotSynced),
    ("C12", PlantedBug::LoseAnswer),
];

#[test]
fn every_rule_catches_a_bug_that_breaks_no_other() {
    std::panic::set_hook(Box::new(|_| {}));
    let needed = CAUGHT_BY_ONE.map(|(rule, bug)| {
        let alone = format!("{:?}", BTreeSet::from([rule]));
        plant(Some(bug));
        let seed = (1..=SEEDS_MAX).find(|seed| try_seed(Kind::Single, *seed).is_err_and(|why| rules_in(&why) == alone));
        plant(None);
        (rule, bug, seed)
    });
    let _ = std::panic::take_hook();
    println!("{needed:?}");
    assert!(needed.iter().all(|(.., seed)| seed.is_some()), "not within {SEEDS_MAX} seeds: {needed:?}");
}

/// How often a bug is caught, by which rules: `PYRALOG_BUG=RollBeforeSeal`, `PYRALOG_FROM` and `PYRALOG_SEEDS`.
#[test]
#[ignore = "by hand: a measurement"]
fn how_often_a_bug_is_caught() {
    let wanted = std::env::var("PYRALOG_BUG").unwrap_or_default();
    let from = number("PYRALOG_FROM").unwrap_or(1);
    let seeds = from..from + number("PYRALOG_SEEDS").unwrap_or(SEEDS_MAX);
    std::panic::set_hook(Box::new(|_| {}));
    let of_copies = PlantedBug::OF_COPIES.iter().chain(PlantedBug::OF_COPIES_RARE).map(|bug| (Kind::Copies, bug));
    let all = PlantedBug::ALL.iter().map(|bug| (Kind::Single, bug)).chain(of_copies);
    for (kind, bug) in all.filter(|(_, bug)| wanted.split(',').any(|name| name == format!("{bug:?}"))) {
        plant(Some(*bug));
        let caught: Vec<_> =
            seeds.clone().filter_map(|seed| Some((seed, rules_in(&try_seed(kind, seed).err()?)))).collect();
        plant(None);
        println!("{bug:?}: {} of {} seeds: {caught:?}", caught.len(), seeds.end - from);
    }
    let _ = std::panic::take_hook();
}

/// How many seeds it takes to catch a bug.
fn catch(kind: Kind, bug: PlantedBug) -> Option<u64> {
    plant(Some(bug));
    let caught = (1..=SEEDS_MAX).find_map(|seed| try_seed(kind, seed).err().map(|why| (seed, why)));
    plant(None);
    match &caught {
        Some((seeds, why)) => println!("{bug:?}: {seeds} seeds; {}", rules_in(why)),
        None => println!("{bug:?}: not caught"),
    }
    caught.map(|(seeds, _)| seeds)
}

/// Which rules a text names as broken, or its first line.
fn rules_in(why: &str) -> String {
    let named = why.lines().filter_map(|line| line.trim().split_once(" broken").map(|(rule, _)| rule));
    let rules: BTreeSet<&str> = named.collect();
    if rules.is_empty() { why.lines().next().unwrap_or_default().to_owned() } else { format!("{rules:?}") }
}

//! Whole servers in the simulated world: clients append and read, segments roll, things fail, processes die and the
//! power goes out, the server starts again on another number of cores; in the end everything works, all is read, and
//! the judge decides.
//!
//! Partitions have one copy, or several in other seeds (`PYRALOG_COPIES_SEED`, …).
//!
//! `PYRALOG_SEED=N` runs one seed, `PYRALOG_SEEDS=N` and `PYRALOG_FROM=N` set how many and from which on
//! (`scripts/simulate` does), `PYRALOG_TRACE=1` prints what each life of the server came to, and
//! `PYRALOG_TRACE=2` also what it logs.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use pyralog_engine::runtime::sim::faults::{FaultCounts, FaultKind};

#[cfg(feature = "planted-bugs")]
mod bugs;
mod clients;
mod confirming;
mod copies;
mod damage;
mod damaged_leader;
mod deaths;
mod deleting;
mod founding;
mod lives;
mod members;
mod moves;
mod nth_failure;
mod only_copy;
mod other_format;
mod plan;
mod producers;
mod scenes;
mod settings;
mod spoiling;
mod stalled_drive;
mod trace;
mod unread;
mod withholding;

use lives::{Kind, Report, run_seed, shorten, try_seed};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Seeds that found something once, and what. They run in every run of more than one seed.
const KEPT: &[(u64, &str)] = &[
    (8, "a server that began on a full drive padded to another block than its segments said"),
    (2520084544, "a batch in a wrong place hid the later ones that stood in its body"),
    (2532244302, "the same without losses of power before"),
    (5000910, "power was lost while the only record of a producer's batches was written anew in place"),
    (802353, "a write that was split and misdirected spoiled the first sector of a start file"),
    (809608, "a bit turned over, and the only durable hint behind it stood in the middle of a flush group"),
    (903014, "the same in another group, and acknowledged records were cut off"),
    (2853960514, "the hole that a group in a wrong place left ended a damaged last segment"),
    (3333000311, "a loss of power filled padding with garbage, and the next group was taken for one in a wrong place"),
    (864472997, "two groups in wrong places, one behind the other, hid what stood behind them"),
];

/// Runs seeds on several threads. The switch of the planted bugs belongs to a thread.
fn run_seeds(kind: Kind, seeds: &[u64]) -> (Total, Vec<u64>) {
    let threads = number("PYRALOG_THREADS").unwrap_or(2).max(1) as usize;
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut total, mut failed) = (Total::default(), Vec::new());
        while let Some(seed) = seeds.get(next.fetch_add(1, Relaxed)) {
            match try_seed(kind, *seed) {
                Ok(report) => total.add(&report),
                Err(why) => {
                    let copies = if kind == Kind::Copies { " --copies" } else { "" };
                    println!("seed {seed} failed; again with scripts/simulate{copies} --seed {seed}");
                    println!("  {}", shorten(&why));
                    failed.push(*seed);
                }
            }
        }
        (total, failed)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let (mut total, mut failed) = (Total::default(), Vec::new());
        for worker in workers {
            let (part, more) = worker.join().unwrap();
            total.merge(&part);
            failed.extend(more);
        }
        (total, failed)
    })
}

/// What many seeds came to.
#[derive(Default)]
struct Total {
    steps: u64,
    acked: u64,
    read: u64,
    mappings: u64,
    counts: FaultCounts,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.merge(&Total {
            steps: report.steps,
            acked: report.acked,
            read: report.read,
            mappings: report.mappings,
            counts: report.counts.clone(),
        });
    }

    fn merge(&mut self, other: &Total) {
        self.steps += other.steps;
        self.acked += other.acked;
        self.read += other.read;
        self.mappings += other.mappings;
        self.counts.merge(&other.counts);
    }
}

/// Seeds of several copies that broke once, and what was wrong.
const KEPT_OF_COPIES: &[(u64, &str)] = &[
    (4300031, "a copy that was taken back before it was deleted never kept up again"),
    (5200179, "a log that was begun anew, which a failing drive cut off, lost what it had been told of producers"),
    (6000299, "a batch that was damaged when its copy was opened, and given back later, was stored again"),
    (7003379, "a place that a drive once showed wrong was written over as if it were damaged"),
    (4500834, "a leader that no quorum follows refused for good what another copy has"),
    (6001257, "leadership went back to a copy with a segment to be written anew, and a reader was told of damage"),
    (835557644, "an only copy that was to have others was misread once, and took its memory for lost for ever"),
    (3143613498, "an only copy that moved was misread, and readers were told that it had never had a record"),
    (31000552, "a change of settings that failed was taken for done, since the settings were what it wanted"),
    (61000318, "a copy that had voted before its log was made completely, and was lost then, was taken for a new one"),
    (1258453810, "a snapshot of producers that was under way when its segment was replaced held old segments back"),
    (80000378, "records that stand where a group in a wrong place ends were given up with that, and never repaired"),
];

/// These seeds, and those that are kept, unless it is one that somebody wants to see.
fn with_kept(from: u64, count: u64, kept: &[(u64, &str)]) -> Vec<u64> {
    let mut seeds: Vec<u64> = (from..from + count).collect();
    if count > 1 {
        seeds.extend(kept.iter().map(|(seed, _)| *seed).filter(|seed| !(from..from + count).contains(seed)));
    }
    seeds
}

/// From so many seeds on, each kind of fault must have had an effect.
const SEEDS_FOR_ALL_KINDS: u64 = 400;

#[test]
fn no_seed_breaks_a_promise() {
    trace::begin();
    let one = number("PYRALOG_SEED");
    let from = one.or_else(|| number("PYRALOG_FROM")).unwrap_or(1);
    let count = one.map_or_else(|| number("PYRALOG_SEEDS").unwrap_or(SEEDS), |_| 1);
    let Total { counts, mappings, .. } = &judge(Kind::Single, &with_kept(from, count, KEPT));
    let of_several = FaultKind::ALL.map(|kind| (kind, kind >= FaultKind::DriveFailed));
    let own = of_several.into_iter().filter(|(_, of_several)| !of_several).map(|(kind, _)| kind);
    let never: Vec<_> = own.filter(|kind| counts.get(*kind) == 0).collect();
    assert!(count < SEEDS_FOR_ALL_KINDS || never.is_empty(), "these faults never had an effect: {never:?}");
    assert!(count < SEEDS_FOR_ALL_KINDS || *mappings > 0, "nothing was ever mapped");
}

/// Partitions with several copies, on one drive or on several that fail, stall, are lost or are old copies.
#[test]
fn no_seed_of_several_copies_breaks_a_promise() {
    trace::begin();
    let one = number("PYRALOG_COPIES_SEED");
    let from = one.or_else(|| number("PYRALOG_COPIES_FROM")).unwrap_or(1);
    let count = one.map_or_else(|| number("PYRALOG_COPIES_SEEDS").unwrap_or(SEEDS / 4), |_| 1);
    let Total { counts, .. } = &judge(Kind::Copies, &with_kept(from, count, KEPT_OF_COPIES));
    let wanted = FaultKind::ALL.iter().filter(|kind| **kind != FaultKind::OtherFormat);
    let never: Vec<_> = wanted.filter(|kind| counts.get(**kind) == 0).collect();
    assert!(count < SEEDS_FOR_ALL_KINDS || never.is_empty(), "these faults never had an effect: {never:?}");
}

/// Runs seeds, and says what they came to. None may fail.
fn judge(kind: Kind, seeds: &[u64]) -> Total {
    let since = std::time::Instant::now();
    let (total, failures) = run_seeds(kind, seeds);
    let took = since.elapsed().as_secs_f64();
    let Total { steps, acked, read, mappings, counts } = &total;
    let from = seeds.first().copied().unwrap_or_default();
    println!("{} seeds from {from} on, {steps} steps, {:.0} steps/s", seeds.len(), *steps as f64 / took);
    println!("{acked} appends acknowledged, {read} records read in between, {mappings} parts of files mapped");
    let crashes = counts.get(FaultKind::Kill) + counts.get(FaultKind::PowerLoss);
    println!("{crashes} crashes; how often each kind of fault had an effect:");
    for kind in FaultKind::ALL {
        println!("{:>9} × {kind:?}", counts.get(kind));
    }
    assert!(failures.is_empty(), "{} of {} seeds failed: {failures:?}", failures.len(), seeds.len());
    total
}

/// How many seeds a run has unless it is told otherwise: about a minute without optimisation, a few seconds with it.
const SEEDS: u64 = if cfg!(debug_assertions) && cfg!(not(feature = "planted-bugs")) { 40 } else { 600 };

#[test]
fn a_seed_is_the_same_run_every_time() {
    let copies = if SEEDS < 100 { 2 } else { 20 };
    let all = (1..=20).map(|seed| (Kind::Single, seed)).chain((1..=copies).map(|seed| (Kind::Copies, seed)));
    for (kind, seed) in all {
        let (first, second) = (try_seed(kind, seed), try_seed(kind, seed));
        if let (Ok(first), Ok(second)) = (first, second) {
            assert_eq!(
                (first.trace, first.steps, first.acked, &first.counts),
                (second.trace, second.steps, second.acked, &second.counts),
                "seed {seed} of {kind:?} ran differently the second time"
            );
        }
    }
    assert_ne!(run_seed(Kind::Single, 1).trace, run_seed(Kind::Single, 2).trace);
}

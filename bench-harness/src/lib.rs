//! Pyralog's load generator: it paces, measures, and checks that every acknowledged record is read back once.
//!
//! One *row* is one workload under one load: [`plan`] says which, [`drive`] runs it on one thread for each CPU given,
//! with
//! [`pacing`] deciding when a request is due and [`measuring`] keeping the time it took. What is written comes from
//! [`dataset`], where every value says who wrote it and when in its sequence, so that [`checking`] can judge what is
//! read back without remembering any of it. [`report`] tells the outcome to people and to machines.

pub mod args;
pub mod baseline;
pub mod checking;
pub mod dataset;
pub mod drive;
pub mod floor;
pub mod ledger;
pub mod load;
pub mod measuring;
pub mod pacing;
pub mod plan;
pub mod progress;
pub mod report;
pub mod server_process;
pub mod session;
pub mod suites;
pub mod target;
pub mod trust;
pub mod turns;
pub mod verdict;
pub mod workloads;

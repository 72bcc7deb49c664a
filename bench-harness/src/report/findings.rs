//! What suites find out that is no row.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The server's memory under a load that went on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// What it had on average, once it had settled.
    pub mean_bytes: f64,
    /// How it grew.
    pub bytes_per_hour: f64,
    /// Whether it stays where it is, as far as one can tell.
    pub is_flat: bool,
}

/// A server that nobody asks anything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    /// How much of a core it used, in percent.
    pub busy_percent: f64,
    /// Its memory.
    pub memory_bytes: f64,
    /// Whether that is little enough.
    pub is_idle: bool,
}

/// A server after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// Records that were read back and compared.
    pub records: u64,
    /// From the start of the process until it said that it is ready, in seconds.
    pub ready_after_s: f64,
    /// From then on until every partition had served a read.
    pub serving_after_s: f64,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mean, slope) = (self.mean_bytes / 1e6, self.bytes_per_hour / 1e6);
        let word = if self.is_flat { "flat" } else { "NOT flat" };
        write!(f, "memory: {mean:.1} MB on average, {slope:+.1} MB an hour: {word}")
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, megabytes) = (self.busy_percent, self.memory_bytes / 1e6);
        let word = if self.is_idle { "idle" } else { "NOT idle" };
        write!(f, "{percent:.3} % of a core, {megabytes:.1} MB of memory: {word}")
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recovery { records, ready_after_s, serving_after_s } = self;
        write!(
            f,
            "after a kill: ready after {ready_after_s:.3} s, all partitions served after {serving_after_s:.3} s; \
             {records} records read back"
        )
    }
}

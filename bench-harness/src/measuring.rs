//! Keeps how long requests took, and how many records and errors there were.
//!
//! Each thread of the harness has a [`Recorder`]; the thread that shows the progress takes what has gathered in it a
//! few times a second and adds it up. The lock between the two is almost never contended and costs some 20 ns a
//! request.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// The longest time that is told apart; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(120);

/// Kinds of error messages that are kept; the rest are counted.
const MESSAGES_MAX: usize = 8;

/// How many samples must lie beyond a percentile for it to mean something.
pub const SAMPLES_BEYOND_MIN: f64 = 100.0;

/// The moments that count: requests due in it are measured, those before are warm-up.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The first moment.
    pub begin: Instant,
    /// The moment after the last.
    pub end: Instant,
}

/// What was measured in some time.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Requests that were answered well.
    pub requests: u64,
    /// Records in them.
    pub records: u64,
    /// Requests that failed.
    pub errors: u64,
    /// When the last answer came.
    pub last: Option<Instant>,
    /// Why requests failed, and how often.
    pub messages: BTreeMap<String, u64>,
    times_ns: Histogram<u64>,
}

impl Default for Measured {
    fn default() -> Self {
        let longest = LONGEST.as_nanos() as u64;
        let times_ns = Histogram::new_with_bounds(1, longest, 3).expect("histogram"); // why: the bounds are constants
        Measured { requests: 0, records: 0, errors: 0, last: None, messages: BTreeMap::new(), times_ns }
    }
}

impl Measured {
    /// The time within which the fraction `quantile` of the requests was answered, in microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.times_ns.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The longest time, in microseconds.
    pub fn max_us(&self) -> f64 {
        self.times_ns.max() as f64 / 1e3
    }

    /// Whether enough samples lie beyond `quantile` to trust it.
    pub fn is_supported(&self, quantile: f64) -> bool {
        self.times_ns.len() as f64 * (1.0 - quantile) >= SAMPLES_BEYOND_MIN - 1e-6
    }

    /// Adds what `other` measured.
    pub fn add(&mut self, other: &Measured) {
        self.requests += other.requests;
        self.records += other.records;
        self.errors += other.errors;
        self.last = self.last.max(other.last);
        for (message, count) in &other.messages {
            self.count_message(message, *count);
        }
        self.times_ns.add(&other.times_ns).expect("histograms"); // why: all have the same bounds
    }

    /// Counts something that failed outside of any request that is measured.
    pub fn note_failure(&mut self, message: &str) {
        self.errors += 1;
        self.count_message(message, 1);
    }

    fn count_message(&mut self, message: &str, count: u64) {
        let known = self.messages.contains_key(message) || self.messages.len() < MESSAGES_MAX;
        *self.messages.entry(if known { message } else { "other errors" }.to_owned()).or_default() += count;
    }
}

/// Where one thread keeps what it measures. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Recorder {
    window: Window,
    measured: Arc<Mutex<Measured>>,
}

impl Recorder {
    /// An empty recorder for requests due in `window`.
    pub fn new(window: Window) -> Self {
        Recorder { window, measured: Arc::default() }
    }

    /// A request that was due at `due` was answered now with, or for, this many records.
    pub fn answered(&self, due: Instant, records: u64) {
        if !self.counts(due) {
            return;
        }
        let now = Instant::now();
        let took = now.saturating_duration_since(due).as_nanos() as u64;
        let mut measured = self.lock();
        measured.requests += 1;
        measured.records += records;
        measured.last = measured.last.max(Some(now));
        measured.times_ns.saturating_record(took.max(1));
    }

    /// A request failed. Counts also outside of the window: an error is an error.
    pub fn failed(&self, message: &str) {
        self.lock().note_failure(message);
    }

    /// What was measured since this was called last.
    pub fn take(&self) -> Measured {
        std::mem::take(&mut *self.lock())
    }

    fn counts(&self, due: Instant) -> bool {
        (self.window.begin..self.window.end).contains(&due)
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> (Recorder, Instant) {
        let begin = Instant::now() - Duration::from_secs(10);
        (Recorder::new(Window { begin, end: begin + Duration::from_secs(5) }), begin)
    }

    #[test]
    fn time_counts_from_when_a_request_was_due() {
        let (recorder, begin) = recorder();
        recorder.answered(begin, 100);
        let measured = recorder.take();
        assert_eq!((measured.requests, measured.records), (1, 100));
        assert!(measured.quantile_us(0.5) >= 9.9e6, "{} µs", measured.quantile_us(0.5));
        assert_eq!(recorder.take().requests, 0);
    }

    #[test]
    fn the_warm_up_and_what_comes_after_do_not_count_but_errors_do() {
        let (recorder, begin) = recorder();
        recorder.answered(begin - Duration::from_nanos(1), 1);
        recorder.answered(begin + Duration::from_secs(5), 1);
        recorder.failed("no");
        let measured = recorder.take();
        assert_eq!((measured.requests, measured.errors), (0, 1));
    }

    #[test]
    fn a_percentile_needs_a_hundred_samples_beyond_it() {
        let (recorder, begin) = recorder();
        (0..10_000).for_each(|_| recorder.answered(begin, 1));
        let measured = recorder.take();
        assert!(measured.is_supported(0.99) && !measured.is_supported(0.999));
    }

    #[test]
    fn messages_are_counted_and_bounded() {
        let (recorder, _) = recorder();
        (0..100).for_each(|n| recorder.failed(&format!("error {n}")));
        let mut sum = Measured::default();
        sum.add(&recorder.take());
        assert_eq!(sum.messages.len(), MESSAGES_MAX + 1);
        assert_eq!(sum.messages.values().sum::<u64>(), 100);
    }
}

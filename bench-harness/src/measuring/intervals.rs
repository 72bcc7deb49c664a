//! How it went over time: a short summary of each stretch of the measured time, and its histogram in few bytes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Measured, Times, rounded};

/// Stretches of one row, about; more would be no finer on any screen.
const INTERVALS_WANTED: f64 = 120.0;

/// One stretch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// When it began, in seconds since the measured time began.
    pub begin_s: f64,
    /// How long it was.
    pub seconds: f64,
    /// Records a second in answers that came in it.
    pub records_per_s: f64,
    /// Requests that failed in it.
    pub errors: u64,
    /// Half of the answers that came in it were within this.
    pub p50_us: Option<f64>,
    /// 99 of 100 were.
    pub p99_us: Option<f64>,
    /// The longest.
    pub max_us: f64,
    /// The histogram behind these, packed.
    #[serde(skip)]
    pub packed: Vec<u8>,
}

/// Gathers stretches.
#[derive(Debug)]
pub struct Intervals {
    length: Duration,
    begun: Duration,
    gathered: Measured,
    done: Vec<Interval>,
}

impl Intervals {
    /// Stretches for a row that is measured for `seconds`, and looked at every `tick`.
    pub fn new(seconds: Duration, tick: Duration) -> Self {
        let wanted = seconds.div_f64(INTERVALS_WANTED).max(tick);
        let ticks = (wanted.as_secs_f64() / tick.as_secs_f64()).round().max(1.0);
        Intervals { length: tick.mul_f64(ticks), begun: Duration::ZERO, gathered: Measured::default(), done: vec![] }
    }

    /// Adds what came until `elapsed` since the measured time began.
    pub fn add(&mut self, elapsed: Duration, lately: &Measured) {
        self.gathered.add(lately);
        // Ticks come late rather than early; a tenth of one makes no stretch short.
        if elapsed + self.length / 10 >= self.begun + self.length {
            self.close(elapsed);
        }
    }

    /// All of them. What came after the last whole stretch is not one: too little to tell.
    pub fn finish(self) -> Vec<Interval> {
        self.done
    }

    fn close(&mut self, now: Duration) {
        let gathered = std::mem::take(&mut self.gathered);
        let seconds = now.saturating_sub(self.begun).as_secs_f64();
        let times: &Times = gathered.headline();
        self.done.push(Interval {
            begin_s: (self.begun.as_secs_f64() * 1e3).round() / 1e3,
            seconds: (seconds * 1e3).round() / 1e3,
            records_per_s: rounded(gathered.records as f64 / seconds.max(1e-9)),
            errors: gathered.errors,
            p50_us: times.quantile_us(0.5).map(rounded),
            p99_us: times.quantile_us(0.99).map(rounded),
            max_us: rounded(times.max_us()),
            packed: times.packed(),
        });
        self.begun = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_as_long_as_a_screen_needs_and_lose_nothing() {
        let tick = Duration::from_millis(250);
        let mut intervals = Intervals::new(Duration::from_secs(240), tick);
        for n in 1..=80u32 {
            let mut lately = Measured { records: 500, ..Measured::default() };
            lately.service.record(Duration::from_micros(n.into()));
            intervals.add(tick * n, &lately);
        }
        let done = intervals.finish();
        assert_eq!(done.len(), 10);
        assert!(done.iter().all(|interval| interval.seconds == 2.0 && interval.records_per_s == 2000.0), "{done:?}");
        assert_eq!((done[3].begin_s, done[3].max_us, done[3].p50_us), (6.0, 32.0, None));
        assert_eq!(Times::unpacked(&done[3].packed).count(), 8);
    }
}

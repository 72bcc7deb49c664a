//! A distribution of times: an HDR histogram of nanoseconds that grows as needed, so that nothing is clamped.

use std::time::Duration;

use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};
use serde::{Deserialize, Serialize};

/// How many samples must lie beyond a percentile for it to mean something.
pub const SAMPLES_BEYOND_MIN: f64 = 100.0;

/// Significant digits that are kept: 0.1 %.
const DIGITS: u8 = 3;

/// A distribution of times. Distributions of several threads or repeats are merged, percentiles never.
#[derive(Clone, Debug)]
pub struct Times {
    nanos: Histogram<u64>,
}

/// What a distribution comes to, in microseconds. A percentile without 100 samples beyond it is not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Samples.
    pub count: u64,
    /// The least.
    pub min_us: f64,
    /// The mean.
    pub mean_us: f64,
    /// Half of the samples are within this.
    pub p50_us: Option<f64>,
    /// 90 of 100.
    pub p90_us: Option<f64>,
    /// 99 of 100.
    pub p99_us: Option<f64>,
    /// 999 of 1000.
    pub p999_us: Option<f64>,
    /// 9999 of 10000.
    pub p9999_us: Option<f64>,
    /// The longest. It is no percentile: it happened once.
    pub max_us: f64,
    /// The curve: fractions and the times within which they lie, as far as 100 samples lie beyond.
    pub curve: Vec<(f64, f64)>,
}

impl Default for Times {
    fn default() -> Self {
        Times { nanos: Histogram::new(DIGITS).expect("histogram") } // why: the library takes 0 to 5 digits
    }
}

impl Times {
    /// Adds a sample.
    pub fn record(&mut self, time: Duration) {
        // Half of what a u64 holds is 292 years; a histogram that resizes takes all of it.
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 2);
        self.nanos.record(nanos).expect("histogram"); // why: it grows to what it is given
    }

    /// Adds the samples of `other`.
    pub fn add(&mut self, other: &Times) {
        self.nanos.add(&other.nanos).expect("histograms"); // why: this one grows to what the other holds
    }

    /// Samples.
    pub fn count(&self) -> u64 {
        self.nanos.len()
    }

    /// The time within which the fraction `quantile` lies, in microseconds, if enough samples lie beyond it.
    pub fn quantile_us(&self, quantile: f64) -> Option<f64> {
        let beyond = self.nanos.len() as f64 * (1.0 - quantile);
        (beyond >= SAMPLES_BEYOND_MIN - 1e-6).then(|| self.nanos.value_at_quantile(quantile) as f64 / 1e3)
    }

    /// The longest, in microseconds.
    pub fn max_us(&self) -> f64 {
        self.nanos.max() as f64 / 1e3
    }

    /// The fraction of samples that are longer than `limit`.
    pub fn fraction_above(&self, limit: Duration) -> f64 {
        if self.nanos.is_empty() {
            return 0.0;
        }
        1.0 - self.nanos.quantile_below(limit.as_nanos() as u64)
    }

    /// What it comes to; `None` without a sample.
    pub fn latencies(&self) -> Option<Latencies> {
        if self.nanos.is_empty() {
            return None;
        }
        let quantile = |quantile| self.quantile_us(quantile).map(rounded);
        Some(Latencies {
            count: self.count(),
            min_us: rounded(self.nanos.min() as f64 / 1e3),
            mean_us: rounded(self.nanos.mean() / 1e3),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            p9999_us: quantile(0.9999),
            max_us: rounded(self.max_us()),
            curve: self.curve(),
        })
    }

    fn curve(&self) -> Vec<(f64, f64)> {
        let points = self.nanos.iter_quantiles(8).map(|value| value.quantile_iterated_to());
        points.filter_map(|quantile| Some((quantile, rounded(self.quantile_us(quantile)?)))).collect()
    }

    /// The histogram, for what writes it to files.
    pub(super) fn histogram(&self) -> &Histogram<u64> {
        &self.nanos
    }

    /// The histogram in few bytes, to be kept in great number.
    pub fn packed(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.nanos, &mut bytes).expect("vec"); // why: a vector takes all
        bytes
    }

    /// What [`Times::packed`] made; empty if it was something else.
    pub fn unpacked(bytes: &[u8]) -> Times {
        let nanos = Deserializer::new().deserialize(&mut &bytes[..]);
        nanos.map_or_else(|_| Times::default(), |nanos| Times { nanos })
    }
}

/// A tenth is more than any of these numbers is good for.
pub fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacing::unit;

    fn times(samples: impl IntoIterator<Item = f64>) -> Times {
        let mut times = Times::default();
        samples.into_iter().for_each(|seconds| times.record(Duration::from_secs_f64(seconds)));
        times
    }

    fn is_near(measured: Option<f64>, expected: f64, tolerance: f64) -> bool {
        measured.is_some_and(|measured| (measured / expected - 1.0).abs() <= tolerance)
    }

    #[test]
    fn percentiles_of_a_uniform_distribution_are_where_they_must_be() {
        let times = times((1..=1_000_000).map(|n| f64::from(n) / 1e6));
        for quantile in [0.5, 0.9, 0.99, 0.999, 0.9999] {
            assert!(is_near(times.quantile_us(quantile), quantile * 1e6, 0.001), "{quantile}");
        }
        assert!(is_near(Some(times.latencies().unwrap().mean_us), 5e5, 0.001));
    }

    #[test]
    fn percentiles_of_an_exponential_distribution_are_where_they_must_be() {
        let mut chance = 3;
        let times = times((0..1_000_000).map(|_| -0.001 * unit(&mut chance).ln()));
        for quantile in [0.5f64, 0.9, 0.99, 0.999] {
            let expected = -1000.0 * (1.0 - quantile).ln();
            assert!(is_near(times.quantile_us(quantile), expected, 0.03), "{quantile}");
        }
    }

    /// A log-normal distribution has a long tail, as latencies do: exp(N(ln 200 µs, 1)).
    #[test]
    fn percentiles_of_a_lognormal_distribution_are_where_they_must_be() {
        let mut chance = 5;
        let normal =
            |chance: &mut u64| (-2.0 * unit(chance).ln()).sqrt() * (std::f64::consts::TAU * unit(chance)).cos();
        let times = times((0..1_000_000).map(|_| 200e-6 * normal(&mut chance).exp()));
        for (quantile, deviations) in [(0.5, 0.0f64), (0.9, 1.281_552), (0.99, 2.326_348), (0.999, 3.090_232)] {
            assert!(is_near(times.quantile_us(quantile), 200.0 * deviations.exp(), 0.04), "{quantile}");
        }
    }

    #[test]
    fn nothing_is_clamped_and_three_digits_are_kept() {
        assert_eq!(times([1e11]).count(), 1, "three thousand years");
        let times = times([1e-9, 3600.0, 86_400.0 * 30.0]);
        let latencies = times.latencies().unwrap();
        assert!(is_near(Some(latencies.max_us), 86_400.0 * 30.0 * 1e6, 0.001), "{latencies:?}");
        assert_eq!(times.count(), 3);
    }

    #[test]
    fn merging_is_the_same_as_measuring_together() {
        let samples: Vec<f64> = (0..20_000).map(|n| f64::from(n * n) / 1e9 + 1e-6).collect();
        let mut merged = times(samples[..3000].iter().copied());
        merged.add(&times(samples[3000..].iter().copied()));
        assert_eq!(merged.latencies(), times(samples).latencies());
    }

    #[test]
    fn a_percentile_needs_a_hundred_samples_beyond_it() {
        let times = times((0..10_000).map(|n| f64::from(n) / 1e6));
        let latencies = times.latencies().unwrap();
        assert!(latencies.p99_us.is_some() && latencies.p999_us.is_none(), "{latencies:?}");
        assert!(latencies.curve.iter().all(|(quantile, _)| *quantile <= 0.99), "{:?}", latencies.curve);
        assert!(latencies.curve.last().is_some_and(|(quantile, _)| *quantile > 0.98));
    }

    #[test]
    fn the_fraction_above_a_limit_counts_what_is_longer() {
        let times = times((1..=1000).map(|n| f64::from(n) / 1e3));
        assert!((times.fraction_above(Duration::from_millis(900)) - 0.1).abs() < 0.002);
        assert_eq!(Times::default().fraction_above(Duration::ZERO), 0.0);
    }

    #[test]
    fn what_is_packed_comes_back() {
        let times = times((1..=1000).map(|n| f64::from(n) / 1e5));
        assert_eq!(Times::unpacked(&times.packed()).latencies(), times.latencies());
        assert_eq!(Times::unpacked(b"nothing").count(), 0);
    }
}

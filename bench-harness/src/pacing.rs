//! When requests are meant to be sent. Pure: moments follow from arrivals, rate and seed alone, and know no server.
//!
//! Open loop: requests are due whatever the server does, and response time counts from the moment a request was due. A
//! server that stalls is then charged for every request that had to wait, also for those that the harness could not
//! send in time ("coordinated omission" is what hides them otherwise). Closed loop: the next request is due when a
//! place among those in flight is free; such latencies flatter the server and are labelled so.

use std::{fmt, str::FromStr, time::Duration};

use crate::dataset::splitmix;

/// Requests of one burst, at most: more at one moment would only measure the queue in front of the first.
const BURST_MAX: u32 = 100_000;

/// How requests are spread over time at a given rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// One after the other at equal distances.
    #[default]
    Constant,
    /// As from very many users who know nothing of each other: distances are exponential.
    Poisson,
    /// So many at once, then none until the next burst.
    Burst(u32),
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "constant" => Ok(Arrivals::Constant),
            None if text == "poisson" => Ok(Arrivals::Poisson),
            Some(("burst", number)) => match number.parse() {
                Ok(requests @ 1..=BURST_MAX) => Ok(Arrivals::Burst(requests)),
                _ => Err(format!("a burst has 1 to {BURST_MAX} requests, not `{number}`")),
            },
            _ => Err(format!("`{text}` is none of constant, poisson, burst:REQUESTS")),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arrivals::Constant => f.write_str("constant"),
            Arrivals::Poisson => f.write_str("poisson"),
            Arrivals::Burst(requests) => write!(f, "burst:{requests}"),
        }
    }
}

/// The moments at which one connection's requests are due, from 0 on, never descending.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    interval_s: f64,
    issued: u64,
    poisson_s: f64,
    chance: u64,
}

impl Schedule {
    /// Moments at `requests_per_s` on average. Seeds make the chance of connections independent.
    pub fn new(arrivals: Arrivals, requests_per_s: f64, seed: u64) -> Self {
        assert!(requests_per_s > 0.0, "{requests_per_s} requests a second never come");
        let mut chance = seed;
        splitmix(&mut chance);
        Schedule { arrivals, interval_s: 1.0 / requests_per_s, issued: 0, poisson_s: 0.0, chance }
    }

    /// When the next request is due.
    pub fn next_due(&mut self) -> Duration {
        let number = self.issued;
        self.issued += 1;
        let seconds = match self.arrivals {
            // Multiplied, not summed: the millionth request is as exact as the first.
            Arrivals::Constant => self.interval_s * number as f64,
            Arrivals::Burst(size) => self.interval_s * (number - number % u64::from(size)) as f64,
            Arrivals::Poisson => {
                self.poisson_s += self.interval_s * exponential(&mut self.chance);
                self.poisson_s
            }
        };
        Duration::from_secs_f64(seconds)
    }
}

/// An exponentially distributed number with mean 1.
fn exponential(chance: &mut u64) -> f64 {
    -unit(chance).ln()
}

/// A number of the open interval from 0 to 1, all of its 2^53 values equally likely.
pub fn unit(chance: &mut u64) -> f64 {
    ((splitmix(chance) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(arrivals: Arrivals, count: usize) -> Vec<f64> {
        let mut schedule = Schedule::new(arrivals, 1000.0, 7);
        std::iter::repeat_with(|| schedule.next_due().as_secs_f64()).take(count).collect()
    }

    #[test]
    fn constant_arrivals_are_equally_far_apart_and_do_not_drift() {
        let due = due(Arrivals::Constant, 1_000_001);
        assert!(due.iter().enumerate().all(|(n, due)| (due - n as f64 / 1e3).abs() < 2e-9), "{:?}", due.last());
    }

    #[test]
    fn bursts_come_together_and_keep_the_rate() {
        let due = due(Arrivals::Burst(100), 1000);
        for burst in due.chunks(100) {
            assert!(burst.iter().all(|due| due == &burst[0]));
        }
        assert!((due[999] - 0.9).abs() < 1e-9, "{}", due[999]);
    }

    /// The distances of Poisson arrivals have mean 1/rate, as much deviation, and 1/e of them are longer than the mean;
    /// counts of equal stretches of time have a variance like their mean.
    #[test]
    fn poisson_arrivals_are_exponential_and_independent() {
        let due = due(Arrivals::Poisson, 200_000);
        let distances: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) * 1e3).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let deviation = |values: &[f64]| {
            let center = mean(values);
            mean(&values.iter().map(|value| (value - center).powi(2)).collect::<Vec<_>>()).sqrt()
        };
        assert!((mean(&distances) - 1.0).abs() < 0.01, "{}", mean(&distances));
        assert!((deviation(&distances) - 1.0).abs() < 0.02, "{}", deviation(&distances));
        let longer = distances.iter().filter(|distance| **distance > 1.0).count() as f64 / distances.len() as f64;
        assert!((longer - (-1.0f64).exp()).abs() < 0.005, "{longer}");
        let mut counts = vec![0.0; due[due.len() - 1] as usize * 100];
        due.iter().for_each(|due| {
            if let Some(count) = counts.get_mut((due * 100.0) as usize) {
                *count += 1.0;
            }
        });
        let dispersion = deviation(&counts).powi(2) / mean(&counts);
        assert!((dispersion - 1.0).abs() < 0.05, "{dispersion}");
    }

    #[test]
    fn arrivals_are_read_as_they_are_written() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson, Arrivals::Burst(64)] {
            assert_eq!(arrivals.to_string().parse(), Ok(arrivals));
        }
        for wrong in ["", "burst", "burst:0", "burst:x", "poisson:1", "uniform"] {
            assert!(wrong.parse::<Arrivals>().is_err(), "{wrong}");
        }
    }
}

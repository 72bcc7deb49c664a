//! How large values are: all the same, within a range, as a distribution says, or as a table does.

use std::{fmt, str::FromStr};

use pyralog_engine::limits::RECORD_BYTES_MAX;

use super::VALUE_BYTES_MIN;
use crate::pacing::unit;

/// A log-normal size is at most so many deviations above the median: one in 30,000 would be larger, and the largest
/// decides how much memory a batch needs.
const DEVIATIONS_MAX: f64 = 4.0;

/// Samples by which the mean of a distribution is estimated.
const MEAN_SAMPLES: u32 = 20_000;

/// Sizes of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    /// All the same.
    Fixed(usize),
    /// From the first to the last, each as likely.
    Range(usize, usize),
    /// Log-normal, as sizes of real messages often are: the median, and the deviation of the logarithm.
    LogNormal(usize, f64),
    /// So large with such a weight.
    Table(Vec<(usize, f64)>),
}

impl Sizes {
    /// The size that this chance has.
    pub fn pick(&self, chance: u64) -> usize {
        let mut chance = chance;
        match self {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Range(least, most) => least + (unit(&mut chance) * (most - least + 1) as f64) as usize,
            Sizes::LogNormal(median, deviation) => {
                let normal = (-2.0 * unit(&mut chance).ln()).sqrt() * (std::f64::consts::TAU * unit(&mut chance)).cos();
                let bytes = *median as f64 * (deviation * normal.min(DEVIATIONS_MAX)).exp();
                (bytes as usize).clamp(VALUE_BYTES_MIN, self.most())
            }
            Sizes::Table(rows) => {
                let whole: f64 = rows.iter().map(|(_, weight)| weight).sum();
                let mut left = unit(&mut chance) * whole;
                let found = rows.iter().find(|(_, weight)| {
                    left -= weight;
                    left < 0.0
                });
                found.map_or(rows[rows.len() - 1].0, |(bytes, _)| *bytes)
            }
        }
    }

    /// The largest.
    pub fn most(&self) -> usize {
        match self {
            Sizes::Fixed(bytes) | Sizes::Range(_, bytes) => *bytes,
            Sizes::LogNormal(median, deviation) => {
                ((*median as f64 * (deviation * DEVIATIONS_MAX).exp()) as usize).min(RECORD_BYTES_MAX)
            }
            Sizes::Table(rows) => rows.iter().map(|(bytes, _)| *bytes).max().unwrap_or(VALUE_BYTES_MIN),
        }
    }

    /// The mean.
    pub fn mean(&self) -> f64 {
        match self {
            Sizes::Fixed(bytes) => *bytes as f64,
            _ => {
                let sum: usize = (0..MEAN_SAMPLES).map(|n| self.pick(u64::from(n) << 20)).sum();
                sum as f64 / f64::from(MEAN_SAMPLES)
            }
        }
    }

    fn check(self) -> Result<Self, String> {
        let all = match &self {
            Sizes::Fixed(bytes) => vec![*bytes],
            Sizes::Range(least, most) if least > most => return Err(format!("{least} is more than {most}")),
            Sizes::Range(least, most) => vec![*least, *most],
            Sizes::LogNormal(median, deviation) if !(0.0..=3.0).contains(deviation) => {
                return Err(format!("{deviation} of `lognormal:{median}` is not between 0 and 3"));
            }
            Sizes::LogNormal(median, _) => vec![*median],
            Sizes::Table(rows) => rows.iter().map(|(bytes, _)| *bytes).collect(),
        };
        match all.iter().find(|bytes| !(VALUE_BYTES_MIN..=RECORD_BYTES_MAX).contains(bytes)) {
            None => Ok(self),
            Some(bytes) => {
                let why = format!("each value carries {VALUE_BYTES_MIN} bytes by which it is checked");
                Err(format!("a record has {VALUE_BYTES_MIN} to {RECORD_BYTES_MAX} bytes ({why}), not {bytes}"))
            }
        }
    }
}

impl From<usize> for Sizes {
    fn from(bytes: usize) -> Self {
        Sizes::Fixed(bytes)
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let forms = "BYTES, LEAST..MOST, lognormal:MEDIAN:DEVIATION, or BYTES=WEIGHT,…";
        let number = |text: &str| text.parse::<usize>().map_err(|_| format!("`{text}` is no number of bytes: {forms}"));
        let weight = |text: &str| {
            let weight = text.parse::<f64>().ok().filter(|weight| (0.0..=1e9).contains(weight));
            weight.ok_or_else(|| format!("`{text}` is no number: {forms}"))
        };
        if let Some(rest) = text.strip_prefix("lognormal:") {
            let (median, deviation) = rest.split_once(':').ok_or_else(|| format!("`{text}` is none of {forms}"))?;
            return Sizes::LogNormal(number(median)?, weight(deviation)?).check();
        }
        if let Some((least, most)) = text.split_once("..") {
            return Sizes::Range(number(least)?, number(most)?).check();
        }
        if text.contains('=') {
            let row = |row: &str| {
                let (bytes, share) = row.split_once('=').ok_or_else(|| format!("`{row}` is no BYTES=WEIGHT"))?;
                Ok((number(bytes)?, weight(share)?))
            };
            let rows = text.split(',').map(row).collect::<Result<Vec<_>, String>>()?;
            if rows.iter().all(|(_, weight)| *weight <= 0.0) {
                return Err(format!("no size in `{text}` has a weight"));
            }
            return Sizes::Table(rows).check();
        }
        Sizes::Fixed(number(text)?).check()
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(bytes) => write!(f, "{bytes}"),
            Sizes::Range(least, most) => write!(f, "{least}..{most}"),
            Sizes::LogNormal(median, deviation) => write!(f, "lognormal:{median}:{deviation}"),
            Sizes::Table(rows) => {
                let rows: Vec<_> = rows.iter().map(|(bytes, weight)| format!("{bytes}={weight}")).collect();
                f.write_str(&rows.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::splitmix;

    fn sizes(text: &str) -> Vec<usize> {
        let (sizes, mut state) = (text.parse::<Sizes>().unwrap(), 1);
        (0..100_000).map(|_| sizes.pick(splitmix(&mut state))).collect()
    }

    fn mean(sizes: &[usize]) -> f64 {
        sizes.iter().sum::<usize>() as f64 / sizes.len() as f64
    }

    #[test]
    fn each_form_gives_the_sizes_that_it_says() {
        assert!(sizes("100").iter().all(|bytes| *bytes == 100));
        let range = sizes("100..200");
        assert_eq!((range.iter().min(), range.iter().max()), (Some(&100), Some(&200)));
        assert!((mean(&range) - 150.0).abs() < 0.5, "{}", mean(&range));
        let table = sizes("100=9,1000=1");
        let small = table.iter().filter(|bytes| **bytes == 100).count();
        assert!((small as f64 / 1e5 - 0.9).abs() < 0.005 && table.iter().all(|bytes| [100, 1000].contains(bytes)));
    }

    #[test]
    fn lognormal_sizes_have_their_median_and_mean_and_an_end() {
        let mut sizes = sizes("lognormal:500:0.5");
        assert!((mean(&sizes) / (500.0 * 0.125f64.exp()) - 1.0).abs() < 0.02, "{}", mean(&sizes));
        sizes.sort_unstable();
        assert!((sizes[50_000] as f64 / 500.0 - 1.0).abs() < 0.02, "{}", sizes[50_000]);
        assert!(sizes[99_999] <= "lognormal:500:0.5".parse::<Sizes>().unwrap().most());
    }

    #[test]
    fn the_mean_told_is_the_mean_of_what_is_picked() {
        for text in ["100", "100..300", "lognormal:500:0.5", "100=1,900=1"] {
            let told = text.parse::<Sizes>().unwrap().mean();
            assert!((told / mean(&sizes(text)) - 1.0).abs() < 0.02, "{text}: {told}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_the_rest_reads_as_it_is_written() {
        for wrong in ["", "x", "19", "1048577", "200..100", "lognormal:500", "lognormal:500:9", "100=0", "100=x"] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
        for text in ["100", "100..200", "lognormal:500:0.5", "100=9,1000=1"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
    }
}

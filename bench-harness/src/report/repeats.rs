//! Several runs of one row: each number is the median of the runs, and its spread stands beside it. Curves and kinds of
//! time are of all runs together.

use serde::{Deserialize, Serialize};

use super::Row;
use crate::{measuring::rounded, suites::seed_table::Target};

/// One run of a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Repeat {
    /// Records a second.
    pub records_per_s: f64,
    /// Half of the requests.
    pub p50_us: Option<f64>,
    /// 99 of 100 requests.
    pub p99_us: Option<f64>,
    /// 999 of 1000 requests.
    pub p999_us: Option<f64>,
    /// Whether the measurement went well.
    pub valid: bool,
}

/// The runs as one row. `all` is the row of everything that was measured in them.
pub fn combine(mut runs: Vec<Row>, all: Row, target: Option<Target>) -> Row {
    if runs.len() < 2 {
        return runs.pop().unwrap_or(all);
    }
    let number = |of: fn(&Row) -> f64| median(runs.iter().map(of).collect()).unwrap_or(0.0);
    let known = |of: fn(&Row) -> Option<f64>| runs.iter().map(of).collect::<Option<Vec<_>>>().and_then(median);
    let mut row = Row {
        records_per_s: number(|row| row.records_per_s),
        bytes_per_s: number(|row| row.bytes_per_s),
        requests_per_s: number(|row| row.requests_per_s),
        p50_us: known(|row| row.p50_us),
        p99_us: known(|row| row.p99_us),
        p999_us: known(|row| row.p999_us),
        seconds: number(|row| row.seconds),
        repeats: runs.iter().map(Repeat::of).collect(),
        ..all
    };
    row.spread_percent = spread_percent(&row.repeats);
    // How it went over time, and what was used, is shown of the run that is nearest to the median.
    let distance = |run: &&Row| (run.records_per_s - row.records_per_s).abs();
    if let Some(typical) = runs.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))) {
        row.intervals = typical.intervals.clone();
        row.trust = typical.trust.clone();
    }
    let said = |of: fn(&Row) -> &Vec<String>| {
        let numbered = runs.iter().enumerate();
        numbered.flat_map(|(n, run)| of(run).iter().map(move |text| format!("run {}: {text}", n + 1))).collect()
    };
    (row.trust.invalid, row.trust.doubts) = (said(|row| &row.trust.invalid), said(|row| &row.trust.doubts));
    row.target = target.map(|target| row.verdict(target));
    row
}

/// The middle; the mean of the two in the middle of an even number.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(rounded((values[middle - 1] + values[middle]) / 2.0)),
    }
}

/// How far apart the throughput of the runs was, in percent of its median.
fn spread_percent(repeats: &[Repeat]) -> Option<f64> {
    let rates: Vec<f64> = repeats.iter().map(|repeat| repeat.records_per_s).collect();
    let (least, most) = (rates.iter().copied().reduce(f64::min)?, rates.iter().copied().reduce(f64::max)?);
    Some(rounded(100.0 * (most - least) / median(rates)?.max(1e-9)))
}

impl Repeat {
    fn of(row: &Row) -> Self {
        Repeat {
            records_per_s: row.records_per_s,
            p50_us: row.p50_us,
            p99_us: row.p99_us,
            p999_us: row.p999_us,
            valid: row.trust.invalid.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(records_per_s: f64, p99_us: Option<f64>, invalid: &[&str]) -> Row {
        let mut row = Row { records_per_s, p99_us, ..Row::default() };
        row.trust.invalid = invalid.iter().map(|text| (*text).to_owned()).collect();
        row
    }

    #[test]
    fn each_number_is_the_median_of_its_own_and_the_spread_stands_beside_it() {
        let runs = vec![run(100.0, Some(9.0), &[]), run(120.0, Some(7.0), &["drops"]), run(90.0, Some(8.0), &[])];
        let all = Row { lost: 3, ..Row::default() };
        let row = combine(runs, all, None);
        assert_eq!((row.records_per_s, row.p99_us, row.spread_percent), (100.0, Some(8.0), Some(30.0)));
        assert_eq!((row.lost, row.repeats.len(), row.repeats[1].valid), (3, 3, false));
        assert_eq!(row.trust.invalid, ["run 2: drops"]);
    }

    #[test]
    fn a_percentile_that_one_run_does_not_know_is_not_known() {
        let row = combine(vec![run(1.0, None, &[]), run(1.0, Some(7.0), &[])], Row::default(), None);
        assert_eq!(row.p99_us, None);
    }

    #[test]
    fn one_run_is_itself() {
        let row = combine(vec![run(5.0, None, &[])], Row::default(), None);
        assert_eq!((row.records_per_s, row.repeats.len(), row.spread_percent), (5.0, 0, None));
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}

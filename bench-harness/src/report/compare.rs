//! Compares two reports, row by row: better, worse, or the same as far as one can tell. Pure.
//!
//! A difference counts when it is larger than the tolerance and, where rows were run several times, when the runs do
//! not overlap: noise alone makes numbers differ, and seldom moves all of them to one side.

use std::fmt;

use super::{Report, Row, repeats::Repeat};

/// How a new number stands against an old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Better beyond doubt.
    Better,
    /// The same, as far as one can tell.
    Same,
    /// Worse beyond doubt.
    Worse,
    /// One of them does not know it.
    Unknown,
}

/// One number of a row in both reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What it is.
    pub metric: &'static str,
    /// In the first report.
    pub before: Option<f64>,
    /// In the second.
    pub after: Option<f64>,
    /// How they compare.
    pub verdict: Verdict,
}

/// One row in both reports.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// Its name.
    pub name: String,
    /// Why it cannot be compared; then there are no changes.
    pub incomparable: Option<String>,
    /// Its numbers.
    pub changes: Vec<Change>,
}

/// Two reports side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The rows of the second, in order.
    pub rows: Vec<RowChange>,
    /// What is different about the circumstances.
    pub remarks: Vec<String>,
}

/// A number of a row, as it is and in each run, and which way is better.
struct Measure {
    metric: &'static str,
    of: fn(&Row) -> Option<f64>,
    of_run: fn(&Repeat) -> Option<f64>,
    more_is_better: bool,
}

const MEASURES: [Measure; 4] = [
    Measure {
        metric: "records/s",
        of: |row| Some(row.records_per_s),
        of_run: |run| Some(run.records_per_s),
        more_is_better: true,
    },
    Measure { metric: "p50 µs", of: |row| row.p50_us, of_run: |run| run.p50_us, more_is_better: false },
    Measure { metric: "p99 µs", of: |row| row.p99_us, of_run: |run| run.p99_us, more_is_better: false },
    Measure { metric: "p99.9 µs", of: |row| row.p999_us, of_run: |run| run.p999_us, more_is_better: false },
];

/// Compares `after` with `before`; differences up to `tolerance` (a fraction) do not count.
pub fn compare(before: &Report, after: &Report, tolerance: f64) -> Comparison {
    let mut remarks = Vec::new();
    let circumstances = [
        ("CPU", &before.host.cpu, &after.host.cpu),
        ("kernel", &before.host.kernel, &after.host.kernel),
        ("cpuset", &before.host.cpuset, &after.host.cpuset),
        ("file system", &before.host.file_system, &after.host.file_system),
        ("server", &before.server.version, &after.server.version),
        ("profile", &before.server.profile, &after.server.profile),
    ];
    for (what, before, after) in circumstances.into_iter().filter(|(_, before, after)| before != after) {
        remarks.push(format!("{what}: {before}, then {after}"));
    }
    let gone = before.rows.iter().filter(|row| after.rows.iter().all(|other| other.name != row.name));
    remarks.extend(gone.map(|row| format!("{} is in the first report only", row.name)));
    let rows = after.rows.iter().map(|row| {
        let old = before.rows.iter().find(|old| old.name == row.name);
        let incomparable =
            old.map_or_else(|| Some("it is in the second report only".to_owned()), |old| why_not(old, row));
        let changes = match (old, &incomparable) {
            (Some(old), None) => MEASURES.iter().map(|measure| measure.change(old, row, tolerance)).collect(),
            _ => Vec::new(),
        };
        RowChange { name: row.name.clone(), incomparable, changes }
    });
    Comparison { rows: rows.collect(), remarks }
}

/// Why two rows of one name are not the same work.
fn why_not(before: &Row, after: &Row) -> Option<String> {
    let work = |row: &Row| {
        let (data, pace) = (row.data.clone(), (row.open_loop, row.offered_per_s, row.arrivals.clone()));
        (row.ack.clone(), row.batch, row.connections, row.partitions, data, pace)
    };
    if work(before) != work(after) || (!before.open_loop && before.in_flight != after.in_flight) {
        return Some("they did different work (ack level, batch, data, connections, partitions or pace)".to_owned());
    }
    let which = [("first", before), ("second", after)];
    let bad = which.iter().find(|(_, row)| !row.is_valid() || !row.is_clean())?;
    let what = if bad.1.is_valid() { "failed" } else { "is invalid" };
    Some(format!("the {} measurement {what}", bad.0))
}

impl Measure {
    fn change(&self, before: &Row, after: &Row, tolerance: f64) -> Change {
        let (old, new) = ((self.of)(before), (self.of)(after));
        let verdict = match (old, new) {
            (Some(old), Some(new)) if old > 0.0 => {
                let gain = if self.more_is_better { new / old - 1.0 } else { old / new.max(1e-9) - 1.0 };
                match gain.abs() > tolerance && self.is_apart(before, after) {
                    false => Verdict::Same,
                    true if gain > 0.0 => Verdict::Better,
                    true => Verdict::Worse,
                }
            }
            _ => Verdict::Unknown,
        };
        Change { metric: self.metric, before: old, after: new, verdict }
    }

    /// Whether the runs of one lie all on one side of those of the other. Single runs cannot tell.
    fn is_apart(&self, before: &Row, after: &Row) -> bool {
        let range = |row: &Row| {
            let runs: Vec<f64> = row.repeats.iter().filter_map(self.of_run).collect();
            Some((runs.iter().copied().reduce(f64::min)?, runs.iter().copied().reduce(f64::max)?))
        };
        match (range(before), range(after)) {
            (Some(old), Some(new)) => old.1 < new.0 || new.1 < old.0,
            _ => true,
        }
    }
}

impl Comparison {
    /// Whether a number is worse beyond doubt.
    pub fn is_worse(&self) -> bool {
        self.rows.iter().flat_map(|row| &row.changes).any(|change| change.verdict == Verdict::Worse)
    }

    /// Whether a row could not be compared, or there was none.
    pub fn is_incomplete(&self) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| row.incomparable.is_some())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for remark in &self.remarks {
            writeln!(f, "note    {remark}")?;
        }
        for row in &self.rows {
            if let Some(why) = &row.incomparable {
                writeln!(f, "{}: not compared, {why}", row.name)?;
                continue;
            }
            writeln!(f, "{}", row.name)?;
            for change in &row.changes {
                let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
                let percent = change.before.zip(change.after).map(|(old, new)| 100.0 * (new / old.max(1e-9) - 1.0));
                let percent = percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:+.1} %"));
                let word = match change.verdict {
                    Verdict::Better => "better",
                    Verdict::Same => "same",
                    Verdict::Worse => "WORSE",
                    Verdict::Unknown => "not known",
                };
                let (before, after) = (show(change.before), show(change.after));
                writeln!(f, "  {:<10} {before:>14} {after:>14} {percent:>10}  {word}", change.metric)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    fn row(rate: f64, p99: f64, runs: &[f64]) -> Row {
        let repeats = runs.iter().map(|rate| Repeat { records_per_s: *rate, p99_us: Some(p99), ..Repeat::default() });
        let p50_us = Some(1.0);
        Row {
            requests: 1,
            records_per_s: rate,
            p50_us,
            p99_us: Some(p99),
            repeats: repeats.collect(),
            ..Row::default()
        }
    }

    fn verdicts(before: Row, after: Row) -> Vec<Verdict> {
        let comparison = compare(&report(vec![before]), &report(vec![after]), 0.05);
        comparison.rows[0].changes.iter().map(|change| change.verdict).collect()
    }

    #[test]
    fn more_throughput_and_less_latency_are_better_and_small_differences_nothing() {
        use Verdict::{Better, Same, Unknown, Worse};
        assert_eq!(verdicts(row(100.0, 10.0, &[]), row(120.0, 12.0, &[])), [Better, Same, Worse, Unknown]);
        assert_eq!(verdicts(row(100.0, 10.0, &[]), row(96.0, 10.3, &[])), [Same, Same, Same, Unknown]);
    }

    #[test]
    fn runs_that_overlap_are_the_same_however_their_medians_differ() {
        let (before, after) = (row(100.0, 10.0, &[80.0, 100.0, 130.0]), row(120.0, 10.0, &[110.0, 120.0, 140.0]));
        assert_eq!(verdicts(before.clone(), after)[0], Verdict::Same);
        assert_eq!(verdicts(before, row(150.0, 10.0, &[140.0, 150.0, 160.0]))[0], Verdict::Better);
    }

    #[test]
    fn other_work_failed_and_invalid_rows_are_not_compared() {
        let other = Row { batch: 7, ..row(1.0, 1.0, &[]) };
        let failed = Row { lost: 1, ..row(1.0, 1.0, &[]) };
        let mut invalid = row(1.0, 1.0, &[]);
        invalid.trust.invalid.push("drops".to_owned());
        for after in [other, failed, invalid, Row { name: "new".to_owned(), ..row(1.0, 1.0, &[]) }] {
            let comparison = compare(&report(vec![row(1.0, 1.0, &[])]), &report(vec![after]), 0.05);
            assert!(comparison.is_incomplete() && !comparison.is_worse(), "{comparison}");
        }
    }

    #[test]
    fn the_verdict_is_told_in_words() {
        let comparison = compare(&report(vec![row(100.0, 10.0, &[])]), &report(vec![row(50.0, 10.0, &[])]), 0.05);
        let text = comparison.to_string();
        assert!(comparison.is_worse() && text.contains("-50.0 %  WORSE"), "{text}");
    }
}

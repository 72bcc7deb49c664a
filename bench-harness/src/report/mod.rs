//! The outcome, for machines ([`Report`], which is the interface that checks read) and for people ([`human`]).

use std::collections::BTreeMap;

use pyralog_net::wire::reply::ServerDescription;
use serde::Serialize;

use crate::{drive::Outcome, host::Host, plan::Plan, seed_table::Target};

pub mod human;

/// What `--json` writes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine that the harness ran on.
    pub host: Host,
    /// What the server said of itself.
    pub server: ServerDescription,
    /// The rows in the order in which they ran.
    pub rows: Vec<Row>,
}

/// One row. Latencies are response times of requests, in microseconds, from when they were due.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Records a second, acknowledged or read.
    pub records_per_s: f64,
    /// Bytes of values a second.
    pub bytes_per_s: f64,
    /// Requests a second.
    pub requests_per_s: f64,
    /// Half of the requests were answered within this.
    pub p50_us: f64,
    /// 99 of 100 were.
    pub p99_us: f64,
    /// 999 of 1000 were.
    pub p999_us: f64,
    /// All were.
    pub max_us: f64,
    /// Requests that failed, the warm-up's included.
    pub errors: u64,
    /// Acknowledged records that were not there.
    pub lost: u64,
    /// Records that were there again.
    pub duplicated: u64,
    /// Records out of their order or at another offset than acknowledged.
    pub reordered: u64,
    /// Records that nobody wrote so.
    pub corrupt: u64,
    /// The ack level reached by the writes.
    pub ack: String,
    /// Records in a batch.
    pub batch: u32,
    /// Requests in flight on each connection.
    pub in_flight: u32,
    /// Independent clients.
    pub connections: u16,
    /// Bytes of a value.
    pub record_size: usize,
    /// Whether requests were due at a fixed rate; otherwise as soon as an earlier one was answered.
    pub open_loop: bool,
    /// The rate offered in an open loop, in records a second.
    pub offered_per_s: Option<f64>,
    /// Partitions of the log.
    pub partitions: u32,
    /// How long was measured, until the last answer.
    pub seconds: f64,
    /// Requests that were measured.
    pub requests: u64,
    /// Records that were read and checked.
    pub records_checked: u64,
    /// Percentiles with fewer than a hundred samples beyond them, which mean little.
    pub unsupported: Vec<&'static str>,
    /// The target, in the seed's table.
    pub target: Option<TargetVerdict>,
    /// Why requests failed, and how often.
    pub messages: BTreeMap<String, u64>,
    /// Some of the defects, in words.
    pub defects: Vec<String>,
}

/// A target of the seed's table, and whether it was met.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TargetVerdict {
    /// At least so many records a second.
    pub records_per_s: f64,
    /// At most this.
    pub p50_us: f64,
    /// At most this.
    pub p99_us: f64,
    /// Whether the throughput was reached.
    pub throughput_met: bool,
    /// Whether the median was.
    pub p50_met: bool,
    /// Whether the 99th percentile was.
    pub p99_met: bool,
}

impl Report {
    /// Whether no request failed and no record was wrong.
    pub fn is_clean(&self) -> bool {
        self.rows.iter().all(Row::is_clean)
    }
}

impl Row {
    /// The row of `plan`, with its target if it has one.
    pub fn new(plan: &Plan, outcome: &Outcome, target: Option<Target>) -> Self {
        let measured = &outcome.measured;
        let seconds = outcome.elapsed.as_secs_f64();
        let per_s = |count: u64| round(count as f64 / seconds.max(1e-9));
        let supported = [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)];
        let unsupported = supported.into_iter().filter(|(_, quantile)| !measured.is_supported(*quantile));
        let mut row = Row {
            name: plan.name.clone(),
            records_per_s: per_s(measured.records),
            bytes_per_s: per_s(measured.records * plan.record_size as u64),
            requests_per_s: per_s(measured.requests),
            p50_us: round(measured.quantile_us(0.5)),
            p99_us: round(measured.quantile_us(0.99)),
            p999_us: round(measured.quantile_us(0.999)),
            max_us: round(measured.max_us()),
            errors: measured.errors,
            lost: outcome.defects.lost,
            duplicated: outcome.defects.duplicated,
            reordered: outcome.defects.reordered,
            corrupt: outcome.defects.corrupt,
            ack: outcome.level.map_or_else(|| "none".to_owned(), |level| level.to_string()),
            batch: plan.batch,
            in_flight: plan.in_flight,
            connections: plan.connections,
            record_size: plan.record_size,
            open_loop: plan.rate.is_some(),
            offered_per_s: plan.rate,
            partitions: plan.partitions,
            seconds: (seconds * 1e3).round() / 1e3,
            requests: measured.requests,
            records_checked: outcome.checked,
            unsupported: unsupported.map(|(name, _)| name).collect(),
            target: None,
            messages: measured.messages.clone(),
            defects: outcome.defects.samples.clone(),
        };
        row.target = target.map(|target| row.verdict(target));
        row
    }

    /// Whether no request failed, no record was wrong, and anything was done at all.
    pub fn is_clean(&self) -> bool {
        self.requests > 0 && self.errors + self.lost + self.duplicated + self.reordered + self.corrupt == 0
    }

    fn verdict(&self, target: Target) -> TargetVerdict {
        // An open loop at the target rate cannot exceed it: what is offered and taken is reached, within a clock's
        // doubt.
        let reached = if self.open_loop { target.records_per_s * 0.995 } else { target.records_per_s };
        TargetVerdict {
            records_per_s: target.records_per_s,
            p50_us: target.p50_us,
            p99_us: target.p99_us,
            throughput_met: self.records_per_s >= reached,
            p50_met: self.p50_us <= target.p50_us,
            p99_met: self.p99_us <= target.p99_us,
        }
    }
}

/// A tenth is more than any of these numbers is good for.
fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, Instant};

    use clap::Parser;

    use super::*;
    use crate::{
        args::{Cli, Command},
        measuring::{Recorder, Window},
    };

    pub(crate) fn row(requests: u64, target: Option<Target>) -> Row {
        let line = "x run --workload write --batch 10 --ack durable";
        let Command::Run(args) = Cli::parse_from(line.split(' ')).command else { panic!("{line}") };
        let begin = Instant::now() - Duration::from_millis(10);
        let recorder = Recorder::new(Window { begin, end: begin + Duration::from_secs(2) });
        (0..requests).for_each(|_| recorder.answered(begin, 10));
        let outcome = Outcome { measured: recorder.take(), elapsed: Duration::from_secs(2), ..Outcome::default() };
        Row::new(&Plan::of_run(&args), &outcome, target)
    }

    #[test]
    fn the_json_has_the_fields_that_checks_read() {
        let json = serde_json::to_value(row(1000, None)).unwrap();
        for field in ["errors", "lost", "duplicated", "reordered", "corrupt"] {
            assert_eq!(json[field], 0, "{field}");
        }
        for field in ["p50_us", "p99_us", "p999_us", "max_us"] {
            assert!(json[field].as_f64().unwrap() >= 10_000.0, "{field}");
        }
        assert_eq!((json["records_per_s"].as_f64(), json["requests_per_s"].as_f64()), (Some(5000.0), Some(500.0)));
        assert_eq!(json["bytes_per_s"].as_f64(), Some(500_000.0));
        assert_eq!((&json["open_loop"], &json["batch"], &json["in_flight"]), (&false.into(), &10.into(), &64.into()));
        assert_eq!((&json["connections"], &json["record_size"]), (&1.into(), &100.into()));
        assert!(json["ack"].is_string() && json["name"] == "write-batch-10");
    }

    #[test]
    fn a_row_with_an_error_a_defect_or_nothing_at_all_is_not_clean() {
        assert!(row(1, None).is_clean());
        assert!(!row(0, None).is_clean());
        for spoil in [
            (|row: &mut Row| row.errors = 1) as fn(&mut Row),
            |row| row.lost = 1,
            |row| row.duplicated = 1,
            |row| row.reordered = 1,
            |row| row.corrupt = 1,
        ] {
            let mut row = row(1, None);
            spoil(&mut row);
            assert!(!row.is_clean());
        }
    }

    #[test]
    fn a_target_is_met_or_missed_in_each_of_its_three_parts() {
        let target = Target { records_per_s: 5000.0, p50_us: 1.0, p99_us: 1e9 };
        let verdict = row(1000, Some(target)).target.unwrap();
        assert!(verdict.throughput_met && !verdict.p50_met && verdict.p99_met);
    }
}

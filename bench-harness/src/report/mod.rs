//! The outcome, for machines ([`Report`], which is the interface that checks read) and for people ([`human`]).

use std::collections::BTreeMap;

use pyralog_engine::shard::stages::Stage;
use pyralog_net::wire::reply::ServerDescription;
use serde::{Deserialize, Serialize};

use crate::{
    args::Workload,
    drive::Outcome,
    floor::{Floor, Share},
    measuring::{Latencies, Measured, intervals::Interval, rounded},
    plan::{Pace, Plan},
    suites::seed_table::Target,
    trust::{Host, Trust, validity},
};

pub mod assertion;
pub mod compare;
pub mod files;
pub mod findings;
pub mod html;
pub mod human;
pub mod plots;
pub mod repeats;

pub use findings::{Idle, Memory, Recovery};

/// What `--json` writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The command that was run.
    pub command: Vec<String>,
    /// When it was begun, in seconds since 1970.
    pub begun_unix_s: u64,
    /// The machine that the harness ran on.
    pub host: Host,
    /// What the server said of itself.
    pub server: ServerDescription,
    /// The server's own `/status` page, if it could be fetched.
    pub status: Option<serde_json::Value>,
    /// What the machine can do without Pyralog, if it was measured.
    pub floor: Option<Floor>,
    /// What could not be found out about the server.
    pub missing: Vec<String>,
    /// The rows in the order in which they ran.
    pub rows: Vec<Row>,
    /// What a suite concludes from them, in words.
    pub conclusions: Vec<String>,
    /// The server's memory, of `soak`.
    pub memory: Option<Memory>,
    /// The server's CPU, of `idle`.
    pub idle: Option<Idle>,
    /// The time after a crash, of `recovery`.
    pub recovery: Option<Recovery>,
}

/// One row. A percentile that fewer than 100 samples lie beyond is `null`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Records a second, acknowledged or read.
    pub records_per_s: f64,
    /// Bytes of keys and values a second.
    pub bytes_per_s: f64,
    /// Requests a second.
    pub requests_per_s: f64,
    /// Half of the requests took at most this: response time, in a closed loop service time, in microseconds.
    pub p50_us: Option<f64>,
    /// 99 of 100 did.
    pub p99_us: Option<f64>,
    /// 999 of 1000 did.
    pub p999_us: Option<f64>,
    /// All did.
    pub max_us: f64,
    /// From when requests were meant to be sent to their answers; none in a closed loop.
    pub response: Option<Latencies>,
    /// From when requests were sent to their answers.
    pub service: Option<Latencies>,
    /// From when writes were meant to be sent to a consumer's having them; none without consumers.
    pub end_to_end: Option<Latencies>,
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
    /// Acknowledged records that retention deleted before they were read back; nothing is wrong with that.
    #[serde(default)]
    pub expired: u64,
    /// The server's profile.
    pub profile: String,
    /// The ack level reached by the writes.
    pub ack: String,
    /// Records in a batch.
    pub batch: u32,
    /// Requests in flight on each connection, at most.
    pub in_flight: u32,
    /// Independent clients.
    pub connections: u16,
    /// Bytes of a value, on average.
    pub record_size: f64,
    /// What else records are like.
    pub data: DataShown,
    /// Whether requests were due whatever the server did; otherwise as soon as an earlier one was answered.
    pub open_loop: bool,
    /// The rate offered in an open loop, in records a second.
    pub offered_per_s: Option<f64>,
    /// How requests were spread over time in an open loop.
    pub arrivals: Option<String>,
    /// Partitions of the log.
    pub partitions: u32,
    /// How long was measured, until the last answer.
    pub seconds: f64,
    /// Requests that were measured.
    pub requests: u64,
    /// Requests that were due before there was a place among those in flight.
    pub held_up: u64,
    /// Requests that were due and never sent, because the server was too far behind.
    pub unsent: u64,
    /// Records that were read and checked.
    pub records_checked: u64,
    /// The target, in the seed's table.
    pub target: Option<TargetVerdict>,
    /// How it went over time.
    pub intervals: Vec<Interval>,
    /// Why requests failed, and how often.
    pub messages: BTreeMap<String, u64>,
    /// Some of the defects, in words.
    pub defects: Vec<String>,
    /// The reads among the writes of this row.
    pub reads: Option<Box<ReadsShown>>,
    /// Where the time of its writes went, if that was asked for.
    pub stages: Option<StagesShown>,
    /// Whether it reads what was prepared.
    pub is_read: bool,
    /// Whether the measurement can be believed, and what was used.
    pub trust: Trust,
    /// The runs of which the numbers above are medians, if there were several.
    pub repeats: Vec<repeats::Repeat>,
    /// How far apart their throughput was, in percent of the median.
    pub spread_percent: Option<f64>,
    /// How it stands against what the machine can do.
    pub floor_share: Option<Share>,
}

/// What records are like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataShown {
    /// Bytes of values.
    pub sizes: String,
    /// How keys were drawn.
    pub keys: String,
    /// How batches were compressed.
    pub codec: String,
    /// The fraction of values that could be compressed away.
    pub compressibility: f64,
    /// Whether values were cut from a file.
    pub payload: bool,
}

/// The reads beside the writes of a row: those mixed with them, or those of readers who catch up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReadsShown {
    /// Records a second.
    pub records_per_s: f64,
    /// Bytes of keys and values a second.
    pub bytes_per_s: f64,
    /// Requests a second.
    pub requests_per_s: f64,
    /// From when they were meant to be sent; none in a closed loop.
    pub response: Option<Latencies>,
    /// From when they were sent.
    pub service: Option<Latencies>,
}

/// Where the time of writes went: the stages follow each other, and their means add up to that of the service time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StagesShown {
    /// The server's stages, and last what is left for the network and the client.
    pub stages: Vec<StageShown>,
    /// The longest.
    pub bottleneck: String,
}

/// One stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageShown {
    /// Its name.
    pub name: String,
    /// Its mean.
    pub mean_us: f64,
    /// Half of the writes spent at most this in it; not known of what is only left over.
    pub p50_us: Option<f64>,
    /// 99 of 100 did.
    pub p99_us: Option<f64>,
}

/// A target of the seed's table, and whether it was met.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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
    /// Whether no request failed, no record was wrong, and nothing else that is found is bad.
    pub fn is_clean(&self) -> bool {
        let is_flat = self.memory.is_none_or(|memory| memory.is_flat);
        let is_idle = self.idle.is_none_or(|idle| idle.is_idle);
        self.rows.iter().all(Row::is_clean) && is_flat && is_idle
    }

    /// The reports of several servers as one: all rows, and for the rest what the first says.
    pub fn joined(before: Option<Report>, more: Report) -> Report {
        match before {
            None => more,
            Some(mut all) => {
                all.rows.extend(more.rows);
                all.conclusions.extend(more.conclusions);
                all
            }
        }
    }
}

impl Row {
    /// The row of `plan`, with its target if it has one.
    pub fn new(plan: &Plan, outcome: &Outcome, target: Option<Target>) -> Self {
        let (measured, reads) = (&outcome.tally.main, &outcome.tally.reads);
        let seconds = outcome.elapsed.as_secs_f64();
        let headline = measured.headline().latencies().unwrap_or_default();
        let mut row = Row {
            records_per_s: per_s(measured.records, seconds),
            bytes_per_s: per_s(measured.bytes, seconds),
            requests_per_s: per_s(measured.requests, seconds),
            p50_us: headline.p50_us,
            p99_us: headline.p99_us,
            p999_us: headline.p999_us,
            max_us: headline.max_us,
            response: measured.response.latencies(),
            service: measured.service.latencies(),
            end_to_end: measured.end_to_end.latencies(),
            errors: measured.errors + reads.errors,
            lost: outcome.defects.lost,
            duplicated: outcome.defects.duplicated,
            reordered: outcome.defects.reordered,
            corrupt: outcome.defects.corrupt,
            expired: outcome.defects.expired,
            ack: outcome.level.map_or_else(|| "none".to_owned(), |level| level.to_string()),
            seconds: (seconds * 1e3).round() / 1e3,
            requests: measured.requests,
            held_up: measured.held_up + reads.held_up,
            unsent: outcome.unsent,
            records_checked: outcome.checked,
            intervals: outcome.intervals.clone(),
            messages: measured.messages.iter().chain(&reads.messages).map(|(text, n)| (text.clone(), *n)).collect(),
            defects: outcome.defects.samples.clone(),
            reads: ReadsShown::new(reads, seconds),
            stages: StagesShown::new(measured),
            trust: validity::judge(outcome, plan.is_open_loop()),
            ..Row::planned(plan)
        };
        row.target = target.map(|target| row.verdict(target));
        row
    }

    /// What was planned.
    fn planned(plan: &Plan) -> Self {
        let data = &plan.data;
        Row {
            name: plan.name.clone(),
            batch: plan.batch,
            in_flight: plan.in_flight,
            connections: plan.connections,
            record_size: rounded(data.sizes.mean()),
            data: DataShown {
                sizes: data.sizes.to_string(),
                keys: data.keys.to_string(),
                codec: data.codec.to_string(),
                compressibility: data.compressibility,
                payload: data.payload.is_some(),
            },
            open_loop: plan.is_open_loop(),
            offered_per_s: plan.offered_per_s().map(rounded),
            arrivals: match plan.pace {
                Pace::Open { arrivals, .. } => Some(arrivals.to_string()),
                Pace::Closed => None,
            },
            partitions: plan.partitions,
            is_read: plan.workload != Workload::Write,
            ..Row::default()
        }
    }

    /// Whether no request failed, no record was wrong, and anything was done at all.
    pub fn is_clean(&self) -> bool {
        self.requests > 0 && self.errors + self.lost + self.duplicated + self.reordered + self.corrupt == 0
    }

    /// Whether the measurement went well, so that its numbers say something of the server.
    pub fn is_valid(&self) -> bool {
        self.trust.invalid.is_empty()
    }

    fn verdict(&self, target: Target) -> TargetVerdict {
        // An open loop at the target rate cannot exceed it: what is offered and taken is reached, within a clock's
        // doubt.
        let reached = if self.open_loop { target.records_per_s * 0.995 } else { target.records_per_s };
        let within = |measured: Option<f64>, most: f64| measured.is_some_and(|measured| measured <= most);
        TargetVerdict {
            records_per_s: target.records_per_s,
            p50_us: target.p50_us,
            p99_us: target.p99_us,
            throughput_met: self.records_per_s >= reached,
            p50_met: within(self.p50_us, target.p50_us),
            p99_met: within(self.p99_us, target.p99_us),
        }
    }
}

impl StagesShown {
    fn new(measured: &Measured) -> Option<Self> {
        let service = measured.service.latencies()?.mean_us;
        let shown = Stage::ALL.iter().zip(&measured.stages).filter_map(|(stage, times)| {
            let times = times.latencies()?;
            let (name, mean_us) = (stage.name().to_owned(), times.mean_us);
            Some(StageShown { name, mean_us, p50_us: times.p50_us, p99_us: times.p99_us })
        });
        let mut stages: Vec<StageShown> = shown.collect();
        if stages.is_empty() {
            return None;
        }
        let known: f64 = stages.iter().map(|stage| stage.mean_us).sum();
        let mean_us = rounded((service - known).max(0.0));
        stages.push(StageShown { name: "network and client".to_owned(), mean_us, ..StageShown::default() });
        let longest = stages.iter().max_by(|a, b| a.mean_us.total_cmp(&b.mean_us));
        let bottleneck = longest.map_or_else(String::new, |stage| stage.name.clone());
        Some(StagesShown { stages, bottleneck })
    }
}

impl ReadsShown {
    fn new(reads: &Measured, seconds: f64) -> Option<Box<Self>> {
        (reads.requests > 0).then(|| {
            Box::new(ReadsShown {
                records_per_s: per_s(reads.records, seconds),
                bytes_per_s: per_s(reads.bytes, seconds),
                requests_per_s: per_s(reads.requests, seconds),
                response: reads.response.latencies(),
                service: reads.service.latencies(),
            })
        })
    }
}

fn per_s(count: u64, seconds: f64) -> f64 {
    rounded(count as f64 / seconds.max(1e-9))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, Instant};

    use clap::Parser;
    use pyralog_engine::types::AckLevel;

    use super::*;
    use crate::{
        args::{Cli, Command},
        measuring::{Amount, Recorder, Side, Times, Window},
        turns::Turn,
    };

    pub(crate) fn outcome(requests: u64, open_loop: bool) -> Outcome {
        let begin = Instant::now();
        let recorder = Recorder::new(Window { begin, end: begin + Duration::from_secs(2), open_loop });
        let turn = Turn { due: begin, sent: begin, held_up: false };
        for n in 0..requests {
            let now = begin + Duration::from_micros(10_000 + n);
            recorder.answered(Side::Main, turn, now, Amount { records: 10, bytes: 1000 });
        }
        Outcome { tally: recorder.take(), elapsed: Duration::from_secs(2), ..Outcome::default() }
    }

    pub(crate) fn report(rows: Vec<Row>) -> Report {
        let server = ServerDescription {
            version: "1.2.3".to_owned(),
            profile: "latency".to_owned(),
            ack: AckLevel::Durable,
            guarantee: "it is there".to_owned(),
            copies: "one of each".to_owned(),
            cores: 1,
            config: serde_json::json!({ "server": {} }),
        };
        Report {
            command: vec!["bench-harness".to_owned(), "run".to_owned()],
            begun_unix_s: 0,
            host: Host::default(),
            server,
            status: None,
            floor: None,
            missing: Vec::new(),
            rows,
            conclusions: Vec::new(),
            memory: None,
            idle: None,
            recovery: None,
        }
    }

    pub(crate) fn row(requests: u64, target: Option<Target>) -> Row {
        let line = "x run --workload write --batch 10 --ack durable --closed";
        let Command::Run(args) = Cli::parse_from(line.split(' ')).command else { panic!("{line}") };
        Row::new(&Plan::of_run(&args).unwrap(), &outcome(requests, false), target)
    }

    #[test]
    fn the_json_has_the_fields_that_checks_read() {
        let json = serde_json::to_value(row(100_000, None)).unwrap();
        for field in ["errors", "lost", "duplicated", "reordered", "corrupt"] {
            assert_eq!(json[field], 0, "{field}");
        }
        for field in ["p50_us", "p99_us", "p999_us", "max_us"] {
            assert!(json[field].as_f64().unwrap() >= 10_000.0, "{field}");
        }
        assert_eq!(
            (json["records_per_s"].as_f64(), json["requests_per_s"].as_f64()),
            (Some(500_000.0), Some(50_000.0))
        );
        assert_eq!(json["bytes_per_s"].as_f64(), Some(50_000_000.0));
        assert_eq!((&json["open_loop"], &json["batch"], &json["in_flight"]), (&false.into(), &10.into(), &64.into()));
        assert_eq!((&json["connections"], json["record_size"].as_f64()), (&1.into(), Some(100.0)));
        assert!(json["ack"].is_string() && json["name"] == "write-batch-10");
    }

    #[test]
    fn the_stages_add_up_to_the_service_time_and_the_longest_is_named() {
        let mut outcome = outcome(1000, true);
        let measured = &mut outcome.tally.main;
        let service = measured.service.latencies().unwrap().mean_us;
        for micros in [1, 2, 3, 4, 5, 6000, 7] {
            let mut times = Times::default();
            times.record(Duration::from_micros(micros));
            measured.stages.push(times);
        }
        let shown = StagesShown::new(measured).unwrap();
        let sum: f64 = shown.stages.iter().map(|stage| stage.mean_us).sum();
        assert!((sum / service - 1.0).abs() < 0.01, "{sum} of {service}");
        assert_eq!((shown.stages.len(), shown.bottleneck.as_str()), (8, "disk"));
        measured.stages.clear();
        assert_eq!(StagesShown::new(measured), None);
    }

    #[test]
    fn a_percentile_that_means_little_is_not_there() {
        let row = row(1000, None);
        assert!(row.p50_us.is_some() && row.p99_us.is_none() && row.p999_us.is_none());
        assert!(serde_json::to_value(row).unwrap()["p99_us"].is_null());
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
        let verdict = row(10_000, Some(target)).target.unwrap();
        assert!(verdict.throughput_met && !verdict.p50_met && verdict.p99_met);
        let unknown = row(1000, Some(target)).target.unwrap();
        assert!(!unknown.p99_met, "a percentile that is not known is not met");
    }
}

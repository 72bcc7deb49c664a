//! The performance guide's table: five rows with their targets.

use crate::{
    args::{SeedTableArgs, Workload},
    pacing::Arrivals,
    plan::Plan,
    target::HarnessError,
};

/// What the guide promises of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// At least so many records a second.
    pub records_per_s: f64,
    /// Half of the requests within this, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 requests within this, in microseconds.
    pub p99_us: f64,
}

/// One row of the table, with the load that we put on it.
struct Row {
    name: &'static str,
    workload: Workload,
    batch: u32,
    /// In a closed loop. Little's law: throughput times latency, both as promised, is what must be in flight. Rounded
    /// up a little.
    in_flight: u32,
    fetch_bytes: u32,
    target: Target,
}

const fn target(records_per_s: f64, p50_us: f64, p99_us: f64) -> Target {
    Target { records_per_s, p50_us, p99_us }
}

const ROWS: [Row; 5] = [
    Row {
        name: "write-single",
        workload: Workload::Write,
        batch: 1,
        in_flight: 32,
        fetch_bytes: 0,
        target: target(100e3, 300.0, 800.0),
    },
    Row {
        name: "write-batch-100",
        workload: Workload::Write,
        batch: 100,
        in_flight: 8,
        fetch_bytes: 0,
        target: target(1e6, 800.0, 1200.0),
    },
    Row {
        name: "write-batch-1000",
        workload: Workload::Write,
        batch: 1000,
        in_flight: 10,
        fetch_bytes: 0,
        target: target(5e6, 2000.0, 5000.0),
    },
    Row {
        name: "read-single",
        workload: Workload::ReadSingle,
        batch: 1,
        in_flight: 20,
        fetch_bytes: 1,
        target: target(200e3, 100.0, 300.0),
    },
    Row {
        name: "read-sequential",
        workload: Workload::ReadSequential,
        batch: 1000,
        in_flight: 4,
        fetch_bytes: 128 << 10,
        target: target(10e6, 500.0, 1000.0),
    },
];

/// The rows asked for, as plans.
///
/// Errors: the file of payloads cannot be read.
pub fn plans(args: &SeedTableArgs) -> Result<Vec<(Plan, Target)>, HarnessError> {
    let wanted = |row: &&Row| args.rows.is_empty() || args.rows.iter().any(|name| row.name.contains(name.as_str()));
    let plan = |row: &Row| {
        let mut plan = Plan::of_common(row.name.to_owned(), row.workload, row.batch, &args.common)?;
        plan.fetch_bytes = row.fetch_bytes;
        let plan = match args.closed {
            true => plan.closed(row.in_flight),
            false => plan.offered(row.target.records_per_s * args.offer, Arrivals::Constant),
        };
        Ok((plan, row.target))
    };
    ROWS.iter().filter(wanted).map(plan).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn names(line: &str) -> Vec<String> {
        let Command::SeedTable(args) = Cli::parse_from(line.split_whitespace()).command else { panic!("{line}") };
        plans(&args).unwrap().into_iter().map(|(plan, _)| plan.name).collect()
    }

    #[test]
    fn the_rows_have_the_names_that_checks_look_for() {
        let all = ["write-single", "write-batch-100", "write-batch-1000", "read-single", "read-sequential"];
        assert_eq!(names("x seed-table"), all);
        assert_eq!(names("x seed-table --row read"), all[3..]);
    }

    #[test]
    fn each_row_is_offered_its_target_unless_a_closed_loop_is_asked_for() {
        let offered = |line: &str| {
            let Command::SeedTable(args) = Cli::parse_from(line.split_whitespace()).command else { panic!("{line}") };
            plans(&args).unwrap()[0].0.offered_per_s()
        };
        assert_eq!(offered("x seed-table"), Some(100e3));
        assert_eq!(offered("x seed-table --offer 2"), Some(200e3));
        assert_eq!(offered("x seed-table --closed"), None);
    }

    #[test]
    fn enough_is_in_flight_for_the_promised_throughput_at_the_promised_latency() {
        for row in ROWS.iter().filter(|row| row.workload != Workload::ReadSequential) {
            let requests_per_s = row.target.records_per_s / f64::from(row.batch);
            assert!(f64::from(row.in_flight) >= requests_per_s * row.target.p50_us / 1e6, "{}", row.name);
        }
    }
}

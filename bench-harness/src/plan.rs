//! One row: a workload under a load. All that decides what is done, nothing about how.

use std::time::Duration;

use pyralog_engine::types::AckLevel;

use crate::args::{CommonArgs, Order, RunArgs, Workload};

/// Single-record batches to prepare for reading: small enough to write quickly one by one.
const PREPARED_SINGLE: u64 = 100_000;
/// Records to prepare for reading in sequence: 200 MB of the seed's records, more than any cache of a CPU.
const PREPARED_SEQUENTIAL: u64 = 2_000_000;
/// Requests in flight while records are prepared.
const PREPARING_IN_FLIGHT: u32 = 128;

/// A row.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name in reports.
    pub name: String,
    /// What to do.
    pub workload: Workload,
    /// Records in a batch.
    pub batch: u32,
    /// Requests in flight on each connection.
    pub in_flight: u32,
    /// Independent clients.
    pub connections: u16,
    /// Partitions of the log.
    pub partitions: u32,
    /// Bytes of a value.
    pub record_size: usize,
    /// How long to measure.
    pub seconds: Duration,
    /// How long to run before.
    pub warmup: Duration,
    /// The ack level asked for; `None` leaves it to the server.
    pub ack: Option<AckLevel>,
    /// Records a second to offer; `None` for a closed loop.
    pub rate: Option<f64>,
    /// Records to prepare before reading.
    pub prepare: u64,
    /// Bytes that a request of a sequential read asks for.
    pub fetch_bytes: u32,
    /// Where single records are read.
    pub order: Order,
}

impl Plan {
    /// The row of `run`.
    pub fn of_run(args: &RunArgs) -> Self {
        let name = match args.workload {
            Workload::Write if args.batch == 1 => "write-single".to_owned(),
            Workload::Write => format!("write-batch-{}", args.batch),
            Workload::ReadSingle => "read-single".to_owned(),
            Workload::ReadSequential => "read-sequential".to_owned(),
        };
        Plan {
            in_flight: args.in_flight,
            connections: args.connections,
            rate: args.rate,
            prepare: args.prepare.unwrap_or_else(|| prepared(args.workload)),
            fetch_bytes: args.fetch_bytes,
            order: args.order,
            ..Plan::of_common(name, args.workload, batch_of(args), &args.common)
        }
    }

    /// A row with the defaults of `workload`.
    pub fn of_common(name: String, workload: Workload, batch: u32, common: &CommonArgs) -> Self {
        Plan {
            name,
            workload,
            batch,
            in_flight: 1,
            connections: 1,
            partitions: common.partitions,
            record_size: common.record_size,
            seconds: common.seconds,
            warmup: common.warmup,
            ack: common.ack,
            rate: None,
            prepare: prepared(workload),
            fetch_bytes: 256 << 10,
            order: Order::Random,
        }
    }

    /// The plan by which the records that this one reads are written: as fast as they go, durable or not.
    pub fn preparing(&self) -> Self {
        let batch = if self.workload == Workload::ReadSingle { 1 } else { self.batch };
        let in_flight = (PREPARING_IN_FLIGHT / batch.isqrt().max(1)).max(8);
        Plan { workload: Workload::Write, batch, in_flight, connections: 1, rate: None, ..self.clone() }
    }

    /// Between two requests of one connection in an open loop.
    pub fn interval(&self) -> Option<Duration> {
        let per_request = f64::from(if self.workload == Workload::ReadSingle { 1 } else { self.batch });
        self.rate.map(|rate| Duration::from_secs_f64(per_request * f64::from(self.connections) / rate))
    }
}

fn batch_of(args: &RunArgs) -> u32 {
    if args.workload == Workload::ReadSingle { 1 } else { args.batch }
}

fn prepared(workload: Workload) -> u64 {
    match workload {
        Workload::Write => 0,
        Workload::ReadSingle => PREPARED_SINGLE,
        Workload::ReadSequential => PREPARED_SEQUENTIAL,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn plan(line: &str) -> Plan {
        let Command::Run(args) = Cli::parse_from(line.split_whitespace()).command else { panic!("{line}") };
        Plan::of_run(&args)
    }

    #[test]
    fn the_rate_is_in_records_over_all_connections() {
        let plan = plan("x run --workload write --batch 100 --connections 4 --rate 100000");
        assert_eq!(plan.interval(), Some(Duration::from_millis(4)));
        assert_eq!(plan.name, "write-batch-100");
    }

    #[test]
    fn single_reads_read_single_records() {
        let plan = plan("x run --workload read-single --batch 100");
        assert_eq!((plan.batch, plan.preparing().batch, plan.prepare), (1, 1, PREPARED_SINGLE));
    }
}

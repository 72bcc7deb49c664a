//! One row: a workload under a load. All that decides what is done, nothing about how.

use std::{fs, sync::Arc, time::Duration};

use pyralog_engine::{record::Codec, types::AckLevel};

use crate::{
    args::{CommonArgs, DataArgs, Order, PaceArgs, RunArgs, Workload},
    dataset::{Dataset, KeySpace, Keys, Sizes},
    pacing::{Arrivals, Schedule},
    target::HarnessError,
};

/// Single-record batches to prepare for reading: small enough to write quickly one by one.
const PREPARED_SINGLE: u64 = 100_000;
/// Records to prepare for reading in sequence: 200 MB of the seed's records, more than any cache of a CPU.
const PREPARED_SEQUENTIAL: u64 = 2_000_000;
/// Requests in flight while records are prepared.
const PREPARING_IN_FLIGHT: u32 = 128;

/// Requests a second that are offered if nothing is said: few enough for any machine.
const REQUESTS_PER_S: f64 = 1000.0;
/// Requests in flight on a connection of a closed loop.
const CLOSED_IN_FLIGHT: u32 = 64;
/// Requests in flight on a connection of an open loop, at most. Where it ends, it no longer is one, and says so.
const OPEN_IN_FLIGHT: u32 = 1024;
/// Readers in sequence on a connection of an open loop, at least.
const SEQUENTIAL_READERS: u32 = 4;
/// Bytes of requests in flight on a connection of an open loop.
const OPEN_IN_FLIGHT_BYTES: f64 = (64 << 20) as f64;

/// A row.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name in reports.
    pub name: String,
    /// What to do.
    pub workload: Workload,
    /// Records in a batch.
    pub batch: u32,
    /// When requests are sent.
    pub pace: Pace,
    /// Requests in flight on each connection, at most.
    pub in_flight: u32,
    /// Independent clients.
    pub connections: u16,
    /// Partitions of the log.
    pub partitions: u32,
    /// What records are like.
    pub data: Data,
    /// How long to measure.
    pub seconds: Duration,
    /// How long to run before.
    pub warmup: Duration,
    /// The ack level asked for; `None` leaves it to the server.
    pub ack: Option<AckLevel>,
    /// Records to prepare before reading.
    pub prepare: u64,
    /// Bytes that a request of a sequential read asks for.
    pub fetch_bytes: u32,
    /// Where single records are read.
    pub order: Order,
    /// The fraction of requests of a writing workload that read.
    pub reads: f64,
    /// Whether consumers take what is written, to measure end-to-end time.
    pub end_to_end: bool,
    /// Whether acks are to say where their time went.
    pub stages: bool,
    /// Readers that read all from the beginning while others write.
    pub catch_up: u32,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// At a rate, whatever the server does.
    Open {
        /// Records a second over all connections.
        records_per_s: f64,
        /// How they are spread.
        arrivals: Arrivals,
    },
    /// When an earlier one is answered.
    Closed,
}

/// What records are like.
#[derive(Clone, Debug)]
pub struct Data {
    /// Bytes of values.
    pub sizes: Sizes,
    /// Their keys.
    pub keys: Keys,
    /// How many keys there are.
    pub key_space: u32,
    /// The fraction of values that can be compressed away.
    pub compressibility: f64,
    /// How batches are compressed.
    pub codec: Codec,
    /// What values are cut from; `None` for noise.
    pub payload: Option<Arc<[u8]>>,
}

impl Data {
    /// As the command line says.
    ///
    /// Errors: the file cannot be read.
    pub fn of_args(args: &DataArgs) -> Result<Self, HarnessError> {
        let payload = args.payload.as_ref().map(|file| {
            fs::read(file).map(Arc::from).map_err(HarnessError::system(format!("reading {}", file.display())))
        });
        Ok(Data {
            sizes: args.record_size.clone(),
            keys: args.keys,
            key_space: args.key_space,
            compressibility: args.compressibility,
            codec: args.codec,
            payload: payload.transpose()?,
        })
    }

    /// The data set of a run over so many partitions.
    pub fn dataset(&self, run: u32, partitions: u32) -> Dataset {
        let dataset = Dataset::new(run, self.sizes.clone());
        let dataset = match &self.payload {
            Some(payload) => dataset.filled_from(payload),
            None if self.compressibility > 0.0 => dataset.compressible(self.compressibility),
            None => dataset,
        };
        dataset.with_keys(KeySpace::new(self.keys, self.key_space, partitions))
    }
}

impl Plan {
    /// The row of `run`.
    ///
    /// Errors: the file of payloads cannot be read.
    pub fn of_run(args: &RunArgs) -> Result<Self, HarnessError> {
        let name = match args.workload {
            Workload::Write if args.batch == 1 => "write-single".to_owned(),
            Workload::Write => format!("write-batch-{}", args.batch),
            Workload::ReadSingle => "read-single".to_owned(),
            Workload::ReadSequential => "read-sequential".to_owned(),
        };
        let batch = if args.workload == Workload::ReadSingle { 1 } else { args.batch };
        let mut plan = Plan {
            prepare: args.prepare.unwrap_or_else(|| prepared(args.workload)),
            fetch_bytes: args.fetch_bytes,
            order: args.order,
            reads: args.reads,
            end_to_end: args.end_to_end,
            catch_up: args.catch_up,
            ..Plan::of_common(name, args.workload, batch, &args.common)?
        };
        plan.pace = plan.pace_of(&args.pace);
        plan.in_flight = args.pace.in_flight.unwrap_or_else(|| plan.default_in_flight());
        Ok(plan)
    }

    /// A row with the defaults of `workload`.
    ///
    /// Errors: the file of payloads cannot be read.
    pub fn of_common(name: String, workload: Workload, batch: u32, common: &CommonArgs) -> Result<Self, HarnessError> {
        Ok(Plan {
            name,
            workload,
            batch,
            pace: Pace::Closed,
            in_flight: CLOSED_IN_FLIGHT,
            connections: common.connections,
            partitions: common.partitions,
            data: Data::of_args(&common.data)?,
            seconds: common.seconds,
            warmup: common.warmup,
            ack: common.ack,
            prepare: prepared(workload),
            fetch_bytes: 256 << 10,
            order: Order::Random,
            reads: 0.0,
            end_to_end: false,
            stages: common.stages,
            catch_up: 0,
        })
    }

    /// This row in an open loop.
    pub fn offered(mut self, records_per_s: f64, arrivals: Arrivals) -> Self {
        self.pace = Pace::Open { records_per_s, arrivals };
        self.in_flight = self.default_in_flight();
        self
    }

    /// This row in a closed loop.
    pub fn closed(mut self, in_flight: u32) -> Self {
        (self.pace, self.in_flight) = (Pace::Closed, in_flight);
        self
    }

    /// The plan by which the records that this one reads are written: as fast as they go, durable or not.
    pub fn preparing(&self) -> Self {
        let batch = if self.workload == Workload::ReadSingle { 1 } else { self.batch };
        let in_flight = (PREPARING_IN_FLIGHT / batch.isqrt().max(1)).max(8);
        let plan = Plan { workload: Workload::Write, batch, connections: 1, reads: 0.0, ..self.clone() };
        Plan { end_to_end: false, catch_up: 0, ..plan }.closed(in_flight)
    }

    /// Whether requests are due whatever the server does.
    pub fn is_open_loop(&self) -> bool {
        self.pace != Pace::Closed
    }

    /// Records a second that are offered; `None` in a closed loop.
    pub fn offered_per_s(&self) -> Option<f64> {
        match self.pace {
            Pace::Open { records_per_s, .. } => Some(records_per_s),
            Pace::Closed => None,
        }
    }

    /// When the requests of a connection are due; `None` in a closed loop.
    pub fn schedule(&self, connection: u16) -> Option<Schedule> {
        let Pace::Open { records_per_s, arrivals } = self.pace else { return None };
        let requests_per_s = records_per_s / self.records_per_request() / f64::from(self.connections);
        Some(Schedule::new(arrivals, requests_per_s, connection.into()))
    }

    /// How far the schedule of a connection is moved, so that connections do not all send at once. Those who come as
    /// chance has it need no help, and bursts are meant.
    pub fn phase(&self, connection: u16) -> Duration {
        match self.pace {
            Pace::Open { records_per_s, arrivals: Arrivals::Constant } => {
                Duration::from_secs_f64(self.records_per_request() * f64::from(connection) / records_per_s)
            }
            _ => Duration::ZERO,
        }
    }

    /// Records that a request writes or, about, reads.
    pub fn records_per_request(&self) -> f64 {
        match self.workload {
            Workload::Write => f64::from(self.batch),
            Workload::ReadSingle => 1.0,
            Workload::ReadSequential => {
                f64::from(self.batch) * (f64::from(self.fetch_bytes) / self.batch_bytes()).floor().max(1.0)
            }
        }
    }

    fn pace_of(&self, args: &PaceArgs) -> Pace {
        if args.closed {
            return Pace::Closed;
        }
        let records_per_s = args.rate.unwrap_or_else(|| REQUESTS_PER_S * self.records_per_request());
        Pace::Open { records_per_s, arrivals: args.arrivals }
    }

    fn default_in_flight(&self) -> u32 {
        if self.pace == Pace::Closed {
            return CLOSED_IN_FLIGHT;
        }
        let bytes = match self.workload {
            Workload::Write => self.batch_bytes(),
            Workload::ReadSingle => self.data.sizes.mean(),
            // One who reads in sequence waits for an answer before the next request: this is how many such readers
            // there are.
            Workload::ReadSequential => return self.partitions.clamp(SEQUENTIAL_READERS, 64),
        };
        ((OPEN_IN_FLIGHT_BYTES / bytes) as u32).clamp(16, OPEN_IN_FLIGHT)
    }

    /// Bytes of a batch, about: a record has some ten bytes around its value.
    fn batch_bytes(&self) -> f64 {
        f64::from(self.batch) * (self.data.sizes.mean() + 10.0)
    }
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
        Plan::of_run(&args).unwrap()
    }

    #[test]
    fn the_rate_is_in_records_over_all_connections_which_take_turns() {
        let plan = plan("x run --workload write --batch 100 --connections 4 --rate 100000");
        let mut schedule = plan.schedule(1).unwrap();
        assert_eq!((schedule.next_due(), schedule.next_due()), (Duration::ZERO, Duration::from_millis(4)));
        assert_eq!((plan.phase(1), plan.phase(3)), (Duration::from_millis(1), Duration::from_millis(3)));
        assert_eq!(plan.name, "write-batch-100");
    }

    #[test]
    fn an_open_loop_is_the_default_and_a_closed_one_is_asked_for() {
        let open = plan("x run --workload write --batch 100");
        assert_eq!((open.offered_per_s(), open.in_flight), (Some(100_000.0), OPEN_IN_FLIGHT));
        assert_eq!(plan("x run --workload write --batch 1000 --record-size 1000").in_flight, 66);
        let closed = plan("x run --workload write --closed");
        assert_eq!((closed.offered_per_s(), closed.in_flight), (None, CLOSED_IN_FLIGHT));
    }

    #[test]
    fn single_reads_read_single_records_and_sequential_ones_whole_batches() {
        let single = plan("x run --workload read-single --batch 100");
        assert_eq!((single.batch, single.preparing().batch, single.prepare), (1, 1, PREPARED_SINGLE));
        let sequential = plan("x run --workload read-sequential --batch 1000 --fetch-bytes 262144");
        assert_eq!(sequential.records_per_request(), 2000.0);
        assert!(!sequential.preparing().is_open_loop());
    }
}

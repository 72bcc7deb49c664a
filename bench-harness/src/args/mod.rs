//! The command line, and what of it cannot be.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use pyralog_engine::{
    limits::{BATCH_RECORDS_MAX, FETCH_BYTES_MAX, PARTITIONS_PER_LOG_MAX},
    record::Codec,
    types::AckLevel,
};

pub mod parse;
pub mod suites;

pub use parse::CpuList;
pub use suites::*;

use parse::{cpu_list, fraction, rate, seconds, seconds_or_zero, up_to};

use crate::{
    dataset::{Keys, Sizes},
    pacing::Arrivals,
    report::assertion::Assertion,
};

/// Puts load on a Pyralog server, measures it, and checks that every acknowledged record is read back once, in order,
/// intact.
///
/// Requests are sent at a given rate whatever the server does (open loop), unless --closed asks for the opposite.
///
/// Exit code: 0 if all went well; 1 if a request failed, a record was lost, duplicated, reordered or corrupt, an
/// assertion does not hold, or a comparison says worse; 2 for wrong use; 3 if a verdict was asked of a measurement that
/// is not to be believed.
#[derive(Debug, Parser)]
#[command(name = "bench-harness", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the five rows of the performance guide's table and say which of its targets are met.
    SeedTable(SeedTableArgs),
    /// Run one workload.
    Run(RunArgs),
    /// Run a workload at growing rates and find the knee, or with --slo search the highest rate that keeps a promise.
    Sweep(Box<SweepArgs>),
    /// Try batches of growing size with small, medium and large records, and compare with the guide's advice.
    BatchSweep(BatchSweepArgs),
    /// Start a server with each shipped profile and check what the guide expects of it.
    Profiles(ProfilesArgs),
    /// Start servers of 1, 2, … cores and see how throughput grows.
    Scale(ScaleArgs),
    /// See what consumers at the tail notice of readers that catch up.
    TailVsCatchup(TailArgs),
    /// Put a load on a server for long and see whether its memory stays flat.
    Soak(SoakArgs),
    /// See what a server costs that nobody asks anything.
    Idle(IdleArgs),
    /// Fill a log, kill the server, and see how long it takes to serve again, and whether everything is there.
    Recovery(RecoveryArgs),
    /// Compare two reports, row by row.
    Compare(CompareArgs),
    /// Keep a report under a name, or compare one with what was kept.
    #[command(subcommand)]
    Baseline(BaselineCommand),
    /// Make a page with figures of a report.
    Html(HtmlArgs),
}

/// Options of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// The first report, as --json wrote it.
    pub before: PathBuf,
    /// The second.
    pub after: PathBuf,
    /// Differences up to this fraction do not count.
    #[arg(long, default_value = "0.05", value_name = "FRACTION", value_parser = fraction)]
    pub tolerance: f64,
}

/// What to do with a baseline.
#[derive(Clone, Debug, Subcommand)]
pub enum BaselineCommand {
    /// Keep this report under a name.
    Save(BaselineArgs),
    /// Compare this report with what was kept under a name.
    Check(BaselineArgs),
}

/// Options of `baseline`.
#[derive(Clone, Debug, Args)]
pub struct BaselineArgs {
    /// The name.
    pub name: String,
    /// The report, as --json wrote it.
    pub report: PathBuf,
    /// The folder that has the baselines.
    #[arg(long, default_value = "bench-baselines", value_name = "FOLDER")]
    pub dir: PathBuf,
    /// Differences up to this fraction do not count.
    #[arg(long, default_value = "0.05", value_name = "FRACTION", value_parser = fraction)]
    pub tolerance: f64,
}

/// Options of `html`.
#[derive(Clone, Debug, Args)]
pub struct HtmlArgs {
    /// The report, as --json wrote it.
    pub report: PathBuf,
    /// The page.
    pub page: PathBuf,
}

/// Options that every command has which puts load on a server.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// The server's address.
    #[arg(long, env = "DLOG_SERVER", default_value = "127.0.0.1:9092", value_name = "HOST:PORT")]
    pub server: String,
    /// The server's HTTP address, of which its status and counters come [default: as its configuration says].
    #[arg(long, env = "DLOG_HTTP", value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// How long to measure each row.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    pub seconds: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds_or_zero)]
    pub warmup: Duration,
    /// How often to run each row. Its numbers are medians then, with their spread.
    #[arg(long, default_value_t = 1, value_name = "RUNS", value_parser = up_to(1000))]
    pub repeats: u32,
    /// When the server acknowledges a write [default: as its profile says].
    #[arg(
        long,
        value_name = "LEVEL",
        help = "received, written, durable or quorum [default: as the server's profile says]"
    )]
    pub ack: Option<AckLevel>,
    /// Partitions of the log that is written or read.
    #[arg(long, default_value_t = 4, value_parser = up_to(PARTITIONS_PER_LOG_MAX))]
    pub partitions: u32,
    /// Independent clients in each row.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub connections: u16,
    /// What is written.
    #[command(flatten)]
    pub data: DataArgs,
    /// Write the results to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the results to this file as a page with figures, with everything in it.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Fail unless this holds, for example `p99<1ms`, `service.p50<=300us`, `rate>=100K`, `errors=0`, or of some rows
    /// only `write-single:p99.9<5ms`; may be repeated.
    #[arg(long = "assert", value_name = "ASSERTION")]
    pub asserts: Vec<Assertion>,
    /// Ask the server where the time of each write went, and name the bottleneck.
    #[arg(long)]
    pub stages: bool,
    /// Look with `perf` at what the server's CPU time goes into, while a row is measured; for a server on this machine.
    #[arg(long)]
    pub cpu_shares: bool,
    /// Write distributions into this folder: for each row a percentile table (.hgrm), an interval log (.hlog), a CSV.
    #[arg(long, value_name = "FOLDER")]
    pub export: Option<PathBuf>,
    /// How long to measure each part of the machine's floor (drive and network stack alone) before the rows; 0 to leave
    /// it out.
    #[arg(long, default_value = "0.5", value_name = "SECONDS", value_parser = seconds_or_zero)]
    pub floor_seconds: Duration,
    /// Where the drive's floor is measured [default: the server's data folder, if it is here, else this folder].
    #[arg(long, value_name = "FOLDER")]
    pub floor_dir: Option<PathBuf>,
    /// Run on these CPUs, one thread on each, for example `1` or `2-3` [default: one thread, on any CPU].
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub cpu: Option<CpuList>,
}

/// What records are like.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Bytes of each record's value: `100`, `100..2000` (each as likely), `lognormal:500:1` (median and deviation of
    /// the logarithm), or `100=9,10000=1` (sizes and weights).
    #[arg(long, default_value = "100", value_name = "SIZES")]
    pub record_size: Sizes,
    /// Keys of records: none, uniform, zipf, zipf:EXPONENT, sequential or single. They decide the partition.
    #[arg(long, default_value = "none", value_name = "KEYS")]
    pub keys: Keys,
    /// How many keys there are.
    #[arg(long, default_value_t = 10_000, value_name = "KEYS", value_parser = up_to(10_000_000))]
    pub key_space: u32,
    /// The fraction of values that can be compressed away; 0 is noise.
    #[arg(long, default_value = "0", value_name = "FRACTION", value_parser = fraction, conflicts_with = "payload")]
    pub compressibility: f64,
    /// How the client compresses batches: none, lz4 or zstd.
    #[arg(long, default_value = "none", value_name = "CODEC")]
    pub codec: Codec,
    /// Cut values from this file instead of from noise.
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// What it has in common with `seed-table`.
    #[command(flatten)]
    pub common: CommonArgs,
    /// When requests are sent.
    #[command(flatten)]
    pub pace: PaceArgs,
    /// What to do.
    #[arg(long, value_enum)]
    pub workload: Workload,
    /// Records in a batch, of a write or of the log that `read-sequential` reads.
    #[arg(long, default_value_t = 1, value_parser = up_to(BATCH_RECORDS_MAX))]
    pub batch: u32,
    /// The fraction of requests of `write` that read a record already acknowledged instead.
    #[arg(long, default_value = "0", value_name = "FRACTION", value_parser = fraction)]
    pub reads: f64,
    /// Have consumers subscribe to what `write` writes, and measure the time until they have it.
    #[arg(long)]
    pub end_to_end: bool,
    /// Have so many readers read all that was written from the beginning, over and over, while `write` writes.
    #[arg(long, default_value_t = 0, value_name = "READERS", conflicts_with = "reads",
        value_parser = clap::value_parser!(u32).range(..=1000))]
    pub catch_up: u32,
    /// Records to prepare before reading [default: 100,000 single ones, 2,000,000 to read in sequence].
    #[arg(long, value_name = "RECORDS")]
    pub prepare: Option<u64>,
    /// Bytes that one request of `read-sequential` asks for.
    #[arg(long, default_value_t = 256 << 10, value_name = "BYTES", value_parser = up_to(FETCH_BYTES_MAX))]
    pub fetch_bytes: u32,
    /// Where single records are read.
    #[arg(long, value_enum, default_value_t = Order::Random)]
    pub order: Order,
}

/// When requests are sent.
#[derive(Clone, Debug, Args)]
pub struct PaceArgs {
    /// Records a second to offer over all connections, whatever the server does [default: 1000 requests a second].
    #[arg(long, value_name = "RECORDS", value_parser = rate, conflicts_with = "closed")]
    pub rate: Option<f64>,
    /// How requests are spread over time: constant, poisson, or burst:REQUESTS.
    #[arg(long, default_value = "constant", value_name = "ARRIVALS", conflicts_with = "closed")]
    pub arrivals: Arrivals,
    /// Closed loop: send a request when an earlier one is answered. Shows the most that the server takes; a stall
    /// delays requests that were never sent, so its latencies flatter the server and are labelled so.
    #[arg(long)]
    pub closed: bool,
    /// Requests in flight on each connection, at most [default: 64 in a closed loop, else as many as 64 MiB hold].
    #[arg(long, value_name = "REQUESTS", value_parser = up_to(100_000))]
    pub in_flight: Option<u32>,
}

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Write batches, then read all of them back.
    Write,
    /// Read one record a request from a log of single-record batches.
    ReadSingle,
    /// Read a log of batches from one end to the other, decoding and checking every record.
    ReadSequential,
}

/// An order of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Any offset, each as likely.
    Random,
    /// One offset after the other.
    Sequential,
    /// Among the newest thousand records of a partition.
    Tail,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_interface_that_checks_use_parses() {
        let line = "x seed-table --server 127.0.0.1:9092 --record-size 100 --seconds 5 --json out.json";
        assert!(matches!(parse(line), Ok(Command::SeedTable(_))));
        let line = "x run --server h:1 --workload read-single --batch 100 --in-flight 64 --connections 1 \
                    --partitions 4 --record-size 100 --seconds 5 --ack durable --rate 1000 --json out.json";
        let Ok(Command::Run(run)) = parse(line) else { panic!("{:?}", parse(line)) };
        assert_eq!((run.batch, run.pace.in_flight, run.common.ack), (100, Some(64), Some(AckLevel::Durable)));
        assert_eq!((run.pace.rate, run.common.seconds), (Some(1000.0), Duration::from_secs(5)));
    }

    #[test]
    fn every_knob_of_a_workload_parses() {
        let line = "x run --workload write --record-size 100..2000 --keys zipf:1.1 --key-space 50 --codec lz4 \
                    --compressibility 0.5 --arrivals poisson --rate 5000 --reads 0.3 --order tail --end-to-end";
        let Ok(Command::Run(run)) = parse(line) else { panic!("{:?}", parse(line)) };
        assert_eq!((run.pace.arrivals, run.common.data.codec), (Arrivals::Poisson, Codec::Lz4));
    }

    #[test]
    fn every_suite_parses() {
        for line in [
            "x sweep --workload write --slo p99<1ms --from 5000",
            "x sweep --workload write --batch 100 --from 1000 --to 100000 --steps 5",
            "x batch-sweep --seconds 2",
            "x profiles --dlog target/release/dlog --server-cpu 0 --cpu 1",
            "x scale --server-cpu 0-3 --batch 100",
            "x tail-vs-catchup --rate 50000 --readers 2",
            "x soak --minutes 30 --rate 10000",
            "x idle --seconds 20",
            "x recovery --data-dir . --profile latency --ack written",
        ] {
            assert!(parse(line).is_ok(), "{:?}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (wrong, said) in [
            ("--record-size 19", "20 to 1048576 bytes"),
            ("--ack fast", "received, written, durable and quorum"),
            ("--seconds 0", "more than 0"),
            ("--partitions 0", "1..="),
            ("--in-flight 0", "1..="),
            ("--rate 0", "between"),
            ("--cpu 3-1", "list of CPUs"),
            ("--closed --rate 5", "cannot be used with"),
            ("--arrivals often", "poisson"),
            ("--reads 2", "between 0 and 1"),
            ("--keys hot", "zipf"),
            ("--codec gzip", "zstd"),
        ] {
            let error = parse(&format!("x run --workload write {wrong}")).unwrap_err();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }
}

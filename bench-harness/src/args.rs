//! The command line, and what of it cannot be.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::RangedI64ValueParser};
use pyralog_engine::{
    limits::{BATCH_RECORDS_MAX, FETCH_BYTES_MAX, PARTITIONS_PER_LOG_MAX, RECORD_BYTES_MAX},
    types::AckLevel,
};

use crate::dataset::VALUE_BYTES_MIN;

/// Puts load on a Pyralog server, measures it, and checks that every acknowledged record is read back once, in order,
/// intact.
///
/// Exit code: 0 if all went well, 1 if a request failed or a record was lost, duplicated, reordered or corrupt, 2 for
/// wrong use.
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
}

/// Options that every command has.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// The server's address.
    #[arg(long, env = "DLOG_SERVER", default_value = "127.0.0.1:9092", value_name = "HOST:PORT")]
    pub server: String,
    /// Bytes of each record's value; there are no keys.
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = record_size)]
    pub record_size: usize,
    /// How long to measure each row.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    pub seconds: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds_or_zero)]
    pub warmup: Duration,
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
    /// Write the results to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Run on these CPUs, one thread on each, for example `1` or `2-3` [default: one thread, on any CPU].
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub cpu: Option<CpuList>,
}

/// Options of `seed-table`.
#[derive(Clone, Debug, Args)]
pub struct SeedTableArgs {
    /// What every row has in common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Independent clients in each row.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub connections: u16,
    /// Offer each row exactly its target rate (open loop), instead of as much as the server takes.
    #[arg(long)]
    pub open_loop: bool,
    /// Run only the rows whose name contains this; may be repeated.
    #[arg(long = "row", value_name = "NAME")]
    pub rows: Vec<String>,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// What it has in common with `seed-table`.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to do.
    #[arg(long, value_enum)]
    pub workload: Workload,
    /// Records in a batch, of a write or of the log that `read-sequential` reads.
    #[arg(long, default_value_t = 1, value_parser = up_to(BATCH_RECORDS_MAX))]
    pub batch: u32,
    /// Requests in flight on each connection.
    #[arg(long, default_value_t = 64, value_parser = up_to(100_000))]
    pub in_flight: u32,
    /// Independent clients.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub connections: u16,
    /// Records a second to offer over all connections, whatever the server does (open loop) [default: as much as it
    /// takes].
    #[arg(long, value_name = "RECORDS", value_parser = rate)]
    pub rate: Option<f64>,
    /// Records to prepare before reading [default: 100,000 single ones, 2,000,000 to read in sequence].
    #[arg(long, value_name = "RECORDS")]
    pub prepare: Option<u64>,
    /// Bytes that one request of `read-sequential` asks for.
    #[arg(long, default_value_t = 256 << 10, value_name = "BYTES", value_parser = up_to(FETCH_BYTES_MAX))]
    pub fetch_bytes: u32,
    /// Where `read-single` reads.
    #[arg(long, value_enum, default_value_t = Order::Random)]
    pub order: Order,
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
}

/// CPUs by number, ascending, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

fn up_to(most: u32) -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=most.into())
}

fn record_size(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("`{text}` is no number of bytes"))?;
    // The limit counts the whole record; a value with an empty key leaves a little less.
    let most = RECORD_BYTES_MAX;
    if !(VALUE_BYTES_MIN..=most).contains(&bytes) {
        let why = format!("each value carries {VALUE_BYTES_MIN} bytes by which it is checked");
        return Err(format!("a record has {VALUE_BYTES_MIN} to {most} bytes ({why}), not {bytes}"));
    }
    Ok(bytes)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match seconds_or_zero(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

fn seconds_or_zero(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    if !(0.0..=86_400.0).contains(&number) {
        return Err(format!("`{text}` is not between 0 and 86400 seconds"));
    }
    Ok(Duration::from_secs_f64(number))
}

fn rate(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number of records a second"))?;
    if !(0.001..=1e9).contains(&number) {
        return Err(format!("`{text}` is not between 0.001 and 1e9 records a second"));
    }
    Ok(number)
}

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let refuse = || format!("`{text}` is no list of CPUs such as 0, 1-3 or 0,2,4-5");
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|cpu| *cpu < 1024).ok_or_else(refuse);
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(refuse());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(CpuList(cpus))
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
        assert_eq!((run.batch, run.in_flight, run.common.ack), (100, 64, Some(AckLevel::Durable)));
        assert_eq!((run.rate, run.common.seconds), (Some(1000.0), Duration::from_secs(5)));
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
        ] {
            let error = parse(&format!("x run --workload write {wrong}")).unwrap_err();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn lists_of_cpus_are_sorted_and_without_twins() {
        assert_eq!(cpu_list("5,1-3,2"), Ok(CpuList(vec![1, 2, 3, 5])));
        for wrong in ["", "a", "1,", "-1", "1024"] {
            assert!(cpu_list(wrong).is_err(), "{wrong}");
        }
    }
}

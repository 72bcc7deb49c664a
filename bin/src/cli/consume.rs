//! `dlog consume`: prints records.
//!
//! Without `--follow` it prints what there was when it began: each partition from the start asked for to its high
//! watermark, one partition after the other. With `--follow` the partitions are merged as their records come.

use std::io::{self, BufWriter, Stdout, Write};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    stream::{BoxStream, select_all},
};
use pyralog_net::client::{
    FetchOptions, LogId, Offset, OffsetAt, PartitionId, PyralogClient, StartAt, StoredRecord, Subscription,
};

use super::{
    Fault, Outcome,
    cutting::UNENDED_HEADER,
    format::{Output, Shown, parse_output, print},
    produce::{Delimiter, delimiter},
};
use crate::output::{self, note};

/// How much is asked for at once.
const FETCH_BYTES: u32 = 4 << 20;

/// The buffer before stdout: large enough that writing to a file or a pipe costs little.
const STDOUT_BYTES: usize = 256 << 10;

/// The flags.
#[derive(Debug, clap::Args)]
pub struct ConsumeArgs {
    /// NAME, or NAMESPACE/NAME.
    log: LogId,
    /// Where to begin: earliest, latest, an offset, or @TIME with TIME as in RFC 3339, such as @2026-11-23T09:30:00Z.
    #[arg(long, default_value = "earliest", value_parser = start)]
    from: StartAt,
    /// Stop after so many records.
    #[arg(short = 'n', long = "count", value_name = "N")]
    limit: Option<u64>,
    /// Wait for new records when all are printed.
    #[arg(long, short)]
    follow: bool,
    /// Only this partition. Without it all of them: one after the other, or merged with --follow.
    #[arg(long, short)]
    partition: Option<u32>,
    /// Go on behind records that are damaged on the server's drive, where it is known how many are lost. What was
    /// skipped is said on stderr, and the exit code is 3.
    #[arg(long)]
    skip_corrupt: bool,
    /// What to print: value (and the delimiter), json (an object a line), or a format with %o offset, %k key, %s value,
    /// %p partition, %t timestamp in ms, %%, \n, \t.
    #[arg(long, default_value = "value", value_parser = parse_output)]
    output: Output,
    /// What to print after each value, with `--output value`; \n \t \r \0 and \\ are understood. Nothing after the last
    /// one if it ended an input of `produce` that had no delimiter there either.
    #[arg(long, default_value = "\\n", value_parser = delimiter)]
    delimiter: Delimiter,
}

/// Reads `--from`.
fn start(text: &str) -> Result<StartAt, String> {
    match text {
        "earliest" => return Ok(StartAt::Earliest),
        "latest" => return Ok(StartAt::Latest),
        _ => {}
    }
    if let Some(time) = text.strip_prefix('@') {
        let time: jiff::Timestamp =
            time.parse().map_err(|error| format!("`{time}` is no time of RFC 3339: {error}"))?;
        return Ok(StartAt::Timestamp(time.as_millisecond()));
    }
    let offset =
        text.parse().map_err(|_| format!("`{text}` is no start; write earliest, latest, an offset or @TIME"))?;
    Ok(StartAt::Offset(Offset(offset)))
}

/// Prints the records.
pub async fn run(client: &PyralogClient, args: &ConsumeArgs) -> Outcome {
    let log = client.describe_log(&args.log).await?;
    let partitions: Vec<PartitionId> = match args.partition {
        None => (0..log.partitions).map(PartitionId).collect(),
        Some(index) if index < log.partitions => vec![PartitionId(index)],
        Some(index) => {
            let last = log.partitions - 1;
            return Err(Fault::new(format!("log `{}` has partitions 0 to {last}, not {index}", log.name)));
        }
    };
    let mut printer = Printer::new(args);
    let printed = match args.follow {
        true => follow(client, args, &partitions, &mut printer).await,
        false => until_now(client, args, &partitions, &mut printer).await,
    };
    let ended = printed.and_then(|()| printer.finish());
    let skipped = printer.skipped;
    let outcome = match ended {
        // The reader of our pipe has seen enough: `dlog consume … | head`.
        Err(Stop::Output(error)) if output::is_unread(&error) => Ok(()),
        Err(Stop::Output(error)) => Err(Fault::new(format!("stdout: {error}"))),
        Err(Stop::Client(error)) => Err(error.into()),
        Err(Stop::Enough) | Ok(()) => Ok(()),
    };
    match outcome {
        Ok(()) if skipped > 0 => Err(Fault::skipped(format!("{skipped} damaged records were skipped"))),
        outcome => outcome,
    }
}

/// Why printing ends before the records do.
enum Stop {
    Enough,
    Output(io::Error),
    Client(pyralog_net::client::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Output(error)
    }
}

impl From<pyralog_net::client::Error> for Stop {
    fn from(error: pyralog_net::client::Error) -> Self {
        Stop::Client(error)
    }
}

const OPTIONS: FetchOptions = FetchOptions { max_bytes: FETCH_BYTES, max_wait: std::time::Duration::from_secs(5) };

async fn until_now(
    client: &PyralogClient,
    args: &ConsumeArgs,
    partitions: &[PartitionId],
    printer: &mut Printer,
) -> Result<(), Stop> {
    // All ends are found first, so that "now" is the same moment for all partitions, as near as can be.
    let mut ranges = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let found = client.find_offset(&args.log, *partition, at(args.from)).await?;
        let first = if let StartAt::Offset(offset) = args.from { offset } else { found.offset };
        ranges.push((*partition, first, found.high_watermark));
    }
    for (partition, first, end) in ranges {
        printer.check_limit()?;
        if first == end {
            continue;
        }
        // An offset out of range is the server's to refuse, with the range.
        let mut next = Some(first);
        while let Some(from) = next.filter(|from| *from < end || *from == first) {
            next = until(client, (args, partition), (from, end), printer).await?;
        }
    }
    Ok(())
}

/// Prints one partition's records from `from` to before `end`. Where to go on, if damage was met that may be skipped.
async fn until(
    client: &PyralogClient,
    (args, partition): (&ConsumeArgs, PartitionId),
    (from, end): (Offset, Offset),
    printer: &mut Printer,
) -> Result<Option<Offset>, Stop> {
    let mut records = client.subscribe(&args.log, partition, from, OPTIONS).await?;
    while let Some(record) = records.next().await {
        let record = match record {
            Ok(record) => record,
            Err(error) => return printer.skip(args, partition, error).map(Some),
        };
        if record.offset >= end {
            break;
        }
        printer.print(partition, &record)?;
        if record.offset.advance(1) == end {
            break;
        }
    }
    Ok(None)
}

async fn follow(
    client: &PyralogClient,
    args: &ConsumeArgs,
    partitions: &[PartitionId],
    printer: &mut Printer,
) -> Result<(), Stop> {
    printer.check_limit()?;
    let mut all = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let records = client.subscribe(&args.log, *partition, args.from, OPTIONS).await?;
        all.push(of_partition(*partition, records));
    }
    let mut merged = select_all(all);
    loop {
        // What is there is printed in large pieces; before waiting, all of it is shown.
        let next = match merged.next().now_or_never() {
            Some(next) => next,
            None => {
                printer.show()?;
                merged.next().await
            }
        };
        match next {
            Some((partition, Ok(record))) => printer.print(partition, &record)?,
            Some((partition, Err(error))) => {
                let behind = printer.skip(args, partition, error)?;
                let records = client.subscribe(&args.log, partition, behind, OPTIONS).await?;
                merged.push(of_partition(partition, records));
            }
            None => return Ok(()),
        }
    }
}

type OfPartition = BoxStream<'static, (PartitionId, pyralog_net::client::Result<StoredRecord>)>;

fn of_partition(partition: PartitionId, records: Subscription) -> OfPartition {
    records.map(move |record| (partition, record)).boxed()
}

fn at(start: StartAt) -> OffsetAt {
    match start {
        StartAt::Earliest => OffsetAt::Earliest,
        StartAt::Latest | StartAt::Offset(_) => OffsetAt::Latest,
        StartAt::Timestamp(timestamp_ms) => OffsetAt::Timestamp(timestamp_ms),
    }
}

/// Writes records to stdout.
struct Printer {
    out: BufWriter<Stdout>,
    output: Output,
    /// Printed after each record.
    end: Vec<u8>,
    left: u64,
    /// The last record was the unended end of an input: its delimiter comes only if another record follows.
    owes_end: bool,
    /// Damaged records that were passed over.
    skipped: u64,
}

impl Printer {
    fn new(args: &ConsumeArgs) -> Self {
        let end = match &args.output {
            Output::Value => args.delimiter.0.clone(),
            Output::Json => b"\n".to_vec(),
            Output::Format(_) => Vec::new(),
        };
        let out = BufWriter::with_capacity(STDOUT_BYTES, io::stdout());
        Printer {
            out,
            output: args.output.clone(),
            end,
            left: args.limit.unwrap_or(u64::MAX),
            owes_end: false,
            skipped: 0,
        }
    }

    fn check_limit(&self) -> Result<(), Stop> {
        if self.left == 0 { Err(Stop::Enough) } else { Ok(()) }
    }

    fn print(&mut self, partition: PartitionId, record: &StoredRecord) -> Result<(), Stop> {
        if self.owes_end {
            self.out.write_all(&self.end)?;
        }
        let StoredRecord { offset, timestamp_ms, key, value, headers } = record;
        let shown = Shown {
            partition: partition.0,
            offset: offset.0,
            timestamp_ms: *timestamp_ms,
            key: key.as_deref(),
            value,
            headers,
        };
        print(&self.output, &shown, &mut self.out)?;
        self.owes_end = self.output == Output::Value && is_unended(headers);
        if !self.owes_end {
            self.out.write_all(&self.end)?;
        }
        self.left -= 1;
        if self.left == 0 {
            self.out.flush()?;
        }
        self.check_limit()
    }

    /// Says that records of `partition` are damaged and passed over, if that is wanted and `error` says so. Where the
    /// records go on.
    fn skip(
        &mut self,
        args: &ConsumeArgs,
        partition: PartitionId,
        error: pyralog_net::client::Error,
    ) -> Result<Offset, Stop> {
        let Some((from, to)) = error.lost_records().filter(|_| args.skip_corrupt) else {
            return Err(error.into());
        };
        self.out.flush()?;
        note!("SKIPPED records {from} to {} of partition {}: {error}", to.0 - 1, partition.0);
        self.skipped += to.0 - from.0;
        Ok(to)
    }

    /// Shows everything, since nobody knows when the next record comes.
    fn show(&mut self) -> Result<(), Stop> {
        if std::mem::take(&mut self.owes_end) {
            self.out.write_all(&self.end)?;
        }
        Ok(self.out.flush()?)
    }

    fn finish(&mut self) -> Result<(), Stop> {
        Ok(self.out.flush()?)
    }
}

fn is_unended(headers: &[(Bytes, Bytes)]) -> bool {
    headers.iter().any(|(name, _)| name == UNENDED_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_is_read_and_others_are_refused_with_what_there_is() {
        assert_eq!(start("earliest"), Ok(StartAt::Earliest));
        assert_eq!(start("latest"), Ok(StartAt::Latest));
        assert_eq!(start("17"), Ok(StartAt::Offset(Offset(17))));
        assert_eq!(start("@1970-01-01T00:00:01.5Z"), Ok(StartAt::Timestamp(1500)));
        assert_eq!(start("@1970-01-01T01:00:00+01:00"), Ok(StartAt::Timestamp(0)));
        for wrong in ["", "-1", "beginning", "@yesterday", "1.5"] {
            assert!(start(wrong).is_err(), "{wrong}");
        }
        assert_eq!(start("x").unwrap_err(), "`x` is no start; write earliest, latest, an offset or @TIME");
    }
}

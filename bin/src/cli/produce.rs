//! `dlog produce`: lines of files or of stdin become records.
//!
//! A thread of its own reads, cuts and builds batches; the client sends them with several in flight, in order. Nothing
//! ever holds the whole input. Without keys all records of one run go to one partition, so that their order is the
//! input's, and what `consume` prints is the input again; the next run may take another partition.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IsTerminal},
    num::NonZeroU64,
    path::PathBuf,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::{StreamExt, stream::FuturesOrdered};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pyralog_engine::{record::Codec, shard::request::Appended};
use pyralog_net::client::{
    self, AckLevel, AppendOptions, LogId, Offset, PartitionHandle, PartitionId, ProducerIdentity, PyralogClient,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Fault, Outcome,
    cutting::{self, Built, Gatherer},
    format::parse_delimiter,
    log::count,
};
use crate::output::{note, say};

/// Batches built ahead of sending, and batches in flight: 2 and 4 MiB.
const BUILT_AHEAD: usize = 8;
const IN_FLIGHT: usize = 16;

/// A run that is over sooner shows no progress.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// The flags.
#[derive(Debug, clap::Args)]
pub struct ProduceArgs {
    /// NAME, or NAMESPACE/NAME.
    log: LogId,
    /// The files, in order; `-` is stdin. Without any, stdin.
    files: Vec<PathBuf>,
    /// Write to this partition. Without it, records with a key go where the key says, and all others of this run to one
    /// partition.
    #[arg(long, short)]
    partition: Option<u32>,
    /// When a write counts as done: received, written, durable or quorum. The log's level, if not given.
    #[arg(long, value_name = "LEVEL")]
    ack: Option<AckLevel>,
    /// What ends a record; \n \t \r \0 and \\ are understood.
    #[arg(long, default_value = "\\n", value_parser = delimiter)]
    delimiter: Delimiter,
    /// What stands between key and value. A line without it has no key.
    #[arg(long, value_parser = delimiter)]
    key_delimiter: Option<Delimiter>,
    /// How batches are compressed. As the log's settings say, if not given.
    #[arg(long, value_enum)]
    compression: Option<Compression>,
    /// Send again what may have been stored, until that is known; it is stored at most once. One batch is in flight at
    /// a time.
    #[arg(long)]
    idempotent: bool,
    /// Be this idempotent producer, not one with a random id. A higher epoch shuts out what an older process of the
    /// same id may still send.
    #[arg(long, value_name = "N", requires = "producer_epoch")]
    producer_id: Option<NonZeroU64>,
    /// Which life of the producer this is; higher than all before.
    #[arg(long, value_name = "N", requires = "producer_id")]
    producer_epoch: Option<u32>,
    /// Write only if the first record gets this offset, and the others the ones after it: nothing, or nothing more, is
    /// written once somebody else has written to the partition.
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    expect_offset: Option<u64>,
}

impl ProduceArgs {
    /// The client to write with if batches are to be sent in their turn, and the offset that the first one must get.
    fn in_turn(&self, client: &PyralogClient) -> Option<(PyralogClient, Option<Offset>)> {
        let identity = self.producer_id.zip(self.producer_epoch).map(|(id, epoch)| ProducerIdentity { id, epoch });
        let expected = self.expect_offset.map(Offset);
        match (self.idempotent || identity.is_some(), expected) {
            (true, expected) => Some((client.idempotent(identity), expected)),
            (false, Some(_)) => Some((client.clone(), expected)),
            (false, None) => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Delimiter(pub Vec<u8>);

/// For clap.
pub fn delimiter(text: &str) -> Result<Delimiter, String> {
    parse_delimiter(text).map(Delimiter)
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Compression {
    None,
    Lz4,
    Zstd,
}

impl From<Compression> for Codec {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Codec::None,
            Compression::Lz4 => Codec::Lz4,
            Compression::Zstd => Codec::Zstd,
        }
    }
}

/// Writes the records and prints where they are.
pub async fn run(client: &PyralogClient, args: &ProduceArgs, json: bool) -> Outcome {
    let log = client.describe_log(&args.log).await?;
    let sticky = PartitionId(args.partition.unwrap_or_else(|| any_number() % log.partitions));
    if sticky.0 >= log.partitions {
        let last = log.partitions - 1;
        return Err(Fault::new(format!("log `{}` has partitions 0 to {last}, not {sticky}", log.name)));
    }
    let read_bytes = Arc::new(AtomicU64::new(0));
    let inputs = if args.files.is_empty() { vec![PathBuf::from("-")] } else { args.files.clone() };
    let progress = Progress::new(&inputs, Arc::clone(&read_bytes));
    let lines = cutting::read(inputs, args.delimiter.0.clone(), Arc::clone(&read_bytes));
    let gatherer = Gatherer {
        key_delimiter: args.key_delimiter.clone().map(|delimiter| delimiter.0),
        codec: args.compression.map_or(log.settings.compression.unwrap_or_default(), Codec::from),
        partitions: log.partitions,
        fixed: args.partition.map(PartitionId),
        sticky,
        building: BTreeMap::new(),
    };
    let (sender, receiver) = mpsc::channel(BUILT_AHEAD);
    let gathering = std::thread::spawn(move || gatherer.gather(&lines, &sender));
    let mut sending = Sending::new(client.clone(), args.log.clone(), args.ack);
    let sent = match args.in_turn(client) {
        Some(turn) => sending.send_in_turn(receiver, &progress, turn).await,
        None => sending.send_all(receiver, &progress).await,
    };
    progress.finish();
    // Nobody takes batches any more, so it has ended or does so at once; the thread that reads may wait for its input
    // for ever.
    let gathered = gathering.join().unwrap_or_else(|_| Err(Fault::new("building batches failed")));
    sending.summary(json, read_bytes.load(Relaxed));
    sent.and(gathered)
}

/// A number that differs from run to run.
fn any_number() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.subsec_nanos().wrapping_mul(0x9e37_79b9).rotate_left(16) ^ std::process::id()
}

/// Sends batches, and remembers what became of them.
struct Sending {
    client: PyralogClient,
    log: LogId,
    ack: Option<AckLevel>,
    handles: BTreeMap<PartitionId, PartitionHandle>,
    stored: BTreeMap<PartitionId, Stored>,
    level: Option<AckLevel>,
    /// Records that an attempt before the last had stored.
    duplicates: u64,
    started: Instant,
}

/// What was stored in one partition.
#[derive(Clone, Copy)]
struct Stored {
    first: u64,
    last: u64,
    records: u64,
}

impl Sending {
    fn new(client: PyralogClient, log: LogId, ack: Option<AckLevel>) -> Self {
        let (handles, stored) = (BTreeMap::new(), BTreeMap::new());
        Sending { client, log, ack, handles, stored, level: None, duplicates: 0, started: Instant::now() }
    }

    /// Keeps batches in flight until there are no more or one fails; then nothing further is sent, since it would stand
    /// before what failed. What is refused for now, as while a partition goes to another core, is sent again in its
    /// order, when everything that was sent behind it is answered.
    async fn send_all(&mut self, mut batches: mpsc::Receiver<Built>, progress: &Progress) -> Outcome {
        let mut in_flight = FuturesOrdered::new();
        let mut refused = Vec::<(Built, client::Error)>::new();
        let mut again = VecDeque::<Built>::new();
        let mut failure: Option<client::Error> = None;
        let mut is_all_built = false;
        loop {
            if in_flight.is_empty() {
                for (built, _) in refused.drain(..).rev() {
                    // The way to it is asked for anew.
                    self.handles.remove(&built.partition);
                    again.push_front(built);
                }
            }
            let has_room = in_flight.len() < IN_FLIGHT && refused.is_empty() && failure.is_none();
            let is_over = is_all_built && again.is_empty();
            let next = async {
                match again.pop_front() {
                    Some(built) => Some(built),
                    None => batches.recv().await,
                }
            };
            tokio::select! {
                Some((built, result)) = in_flight.next() => failure = match self.settle(built, result, &mut refused) {
                    Ok(()) => failure,
                    Err(error) => failure.or(Some(error)),
                },
                built = next, if has_room && !is_over => match built {
                    Some(Built { partition, batch }) => match self.handles.get(&partition) {
                        Some(handle) => {
                            let pending = handle.append(batch.clone(), self.ack);
                            in_flight.push_back(async move { (Built { partition, batch }, pending.await) });
                        }
                        None => failure = self.send_first(partition, batch).await.err(),
                    },
                    None => is_all_built = true,
                },
                else => break,
            }
            progress.tick();
        }
        failure.map_or(Ok(()), |error| Err(self.explain(error)))
    }

    /// Notes what became of a batch that was sent. One that was not stored, and may be later, is `refused`.
    ///
    /// Errors: why it was not stored; or why one before it was not, if it was: that one cannot be sent again without
    /// standing behind it.
    fn settle(
        &mut self,
        built: Built,
        result: client::Result<Appended>,
        refused: &mut Vec<(Built, client::Error)>,
    ) -> client::Result<()> {
        match result {
            Ok(appended) => {
                self.note(built.partition, &appended);
                match refused.iter().position(|(before, _)| before.partition == built.partition) {
                    Some(at) => Err(refused.swap_remove(at).1),
                    None => Ok(()),
                }
            }
            Err(error) if error.is_retriable() => {
                refused.push((built, error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Sends one batch after the other, each when the one before is stored.
    async fn send_in_turn(
        &mut self,
        mut batches: mpsc::Receiver<Built>,
        progress: &Progress,
        (client, mut expected): (PyralogClient, Option<Offset>),
    ) -> Outcome {
        while let Some(Built { partition, batch }) = batches.recv().await {
            let options = AppendOptions { ack: self.ack, expected_offset: expected, timed: false };
            match client.append_batch(&self.log, partition, batch, options).await {
                Ok(appended) => {
                    self.note(partition, &appended);
                    expected = expected.map(|at| at.advance(u64::from(appended.count)));
                }
                Err(error) => {
                    batches.close();
                    return Err(self.explain(error));
                }
            }
            progress.tick();
        }
        Ok(())
    }

    /// Sends the first batch to a partition, on its own: while nothing stands behind it, it may be sent again if there
    /// is no room, or nobody leads the partition yet.
    async fn send_first(&mut self, partition: PartitionId, batch: Bytes) -> client::Result<()> {
        let appended = self.client.append_batch(&self.log, partition, batch, self.ack.into()).await?;
        self.note(partition, &appended);
        let handle = self.client.partition(&self.log, partition).await?;
        self.handles.insert(partition, handle);
        Ok(())
    }

    fn note(&mut self, partition: PartitionId, appended: &Appended) {
        let (first, records) = (appended.base_offset.0, u64::from(appended.count));
        let last = first + records - 1;
        let stored = self.stored.entry(partition).or_insert(Stored { first, last, records: 0 });
        *stored =
            Stored { first: stored.first.min(first), last: stored.last.max(last), records: stored.records + records };
        self.duplicates += if appended.duplicate { records } else { 0 };
        self.level = Some(self.level.map_or(appended.level, |level| level.min(appended.level)));
    }

    fn explain(&self, error: client::Error) -> Fault {
        let stored: u64 = self.stored.values().map(|stored| stored.records).sum();
        let unknown = error.is_unknown();
        let fault = Fault::from(error);
        let message = format!("{fault}; {} acknowledged before that", count(stored, "record"));
        match unknown {
            true => {
                Fault::new(message).with_help("the batches in flight may or may not be stored: consume the end to see")
            }
            false => Fault::new(message),
        }
    }

    fn summary(&self, json: bool, bytes: u64) {
        let records: u64 = self.stored.values().map(|stored| stored.records).sum();
        let seconds = self.started.elapsed().as_secs_f64();
        if json {
            let partitions: Vec<_> = self
                .stored
                .iter()
                .map(|(partition, stored)| {
                    let Stored { first, last, records } = *stored;
                    json!({ "partition": partition, "first_offset": first, "last_offset": last, "records": records })
                })
                .collect();
            say!(
                "{}",
                json!({
                    "log": self.log.to_string(), "records": records, "bytes": bytes, "seconds": seconds,
                    "ack": self.level, "duplicates": self.duplicates, "partitions": partitions,
                })
            );
            return;
        }
        let level = self.level.map_or_else(String::new, |level| format!(", acknowledged as {level}"));
        let rate = records as f64 / seconds.max(1e-9);
        note!("{}, {bytes} bytes in {seconds:.2} s ({rate:.0} records/s){level}", count(records, "record"));
        if self.duplicates > 0 {
            note!("  {} stored already when they were sent again", count(self.duplicates, "record"));
        }
        for (partition, Stored { first, last, records }) in &self.stored {
            note!("  partition {partition}: offsets {first} to {last}, {}", count(*records, "record"));
        }
    }
}

/// A bar on a terminal, once it is worth one.
struct Progress {
    bar: ProgressBar,
    total_bytes: Option<u64>,
    read_bytes: Arc<AtomicU64>,
    started: Instant,
}

impl Progress {
    fn new(inputs: &[PathBuf], read_bytes: Arc<AtomicU64>) -> Self {
        let size = |path: &PathBuf| std::fs::metadata(path).ok().filter(|file| file.is_file()).map(|file| file.len());
        let total_bytes = inputs.iter().map(size).sum::<Option<u64>>();
        Progress { bar: ProgressBar::hidden(), total_bytes, read_bytes, started: Instant::now() }
    }

    fn tick(&self) {
        if self.started.elapsed() < PROGRESS_AFTER || !io::stderr().is_terminal() {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            let template = match self.total_bytes {
                Some(total) => {
                    self.bar.set_length(total);
                    "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
                }
                None => "{spinner} {bytes} {bytes_per_sec}",
            };
            self.bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        self.bar.set_position(self.read_bytes.load(Relaxed));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

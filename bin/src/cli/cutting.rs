//! The way of `dlog produce` from inputs to batches: one thread reads and cuts, another gathers records into batches
//! and hands on what it has when the input pauses, so that the last lines of `tail -f` do not wait for a full batch.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use pyralog_engine::{
    limits::RECORD_BYTES_MAX,
    record::{BatchBuilder, BatchError, Codec},
};
use pyralog_net::client::{PartitionId, partition_of_key};
use tokio::sync::mpsc;

use super::{
    Fault, Outcome,
    lines::{Line, Lines},
};

/// The header of a record that was the last of an input and had no delimiter after it. `consume` leaves the delimiter
/// out too when such a record is the last that it prints, so that a file without a final newline comes back as it was.
pub const UNENDED_HEADER: &str = "dlog.unended";

/// Bytes at which a batch is sent. Large enough that the server's cost per request vanishes, small enough that several
/// are in flight and the first is written while the next is built.
const BATCH_BYTES: usize = 256 << 10;

/// Blocks of lines read ahead of the gathering.
const BLOCKS_AHEAD: usize = 4;

/// How long a record waits for others when the input pauses.
const LINGER: Duration = Duration::from_millis(20);

/// How often a pausing input is interrupted to see whether anybody still takes batches.
const LOOK_UP: Duration = Duration::from_millis(200);

/// What the reading thread says: some lines, or why there are no more.
type Block = Result<Vec<Line>, Fault>;

/// A batch on its way to the sender.
pub struct Built {
    /// Where it goes.
    pub partition: PartitionId,
    /// Its bytes.
    pub batch: Bytes,
}

/// Reads `inputs` one after the other (`-` is stdin) in a thread of its own, counting what was read.
pub fn read(inputs: Vec<PathBuf>, delimiter: Vec<u8>, read_bytes: Arc<AtomicU64>) -> Receiver<Block> {
    let (blocks, received) = sync_channel(BLOCKS_AHEAD);
    std::thread::spawn(move || {
        for path in inputs {
            let outcome = read_one(&path, &delimiter, &read_bytes, &blocks);
            if let Err(reason) = outcome {
                let _ = blocks.send(Err(Fault::new(format!("{}: {reason}", path.display()))));
                return;
            }
        }
    });
    received
}

fn read_one(
    path: &PathBuf,
    delimiter: &[u8],
    read_bytes: &AtomicU64,
    blocks: &SyncSender<Block>,
) -> Result<(), super::lines::LinesError> {
    let input: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path)?),
    };
    let mut lines = Lines::new(Counted { input, read_bytes }, delimiter, RECORD_BYTES_MAX);
    loop {
        let block = lines.next_lines()?;
        // Refused when nobody gathers any more: then there is nothing left to do here.
        if block.is_empty() || blocks.send(Ok(block)).is_err() {
            return Ok(());
        }
    }
}

/// An input that tells how much was read of it.
struct Counted<'a> {
    input: Box<dyn Read>,
    read_bytes: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read_bytes.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

/// Gathers records into batches.
pub struct Gatherer {
    /// What stands between key and value, if lines have keys.
    pub key_delimiter: Option<Vec<u8>>,
    /// How batches are compressed.
    pub codec: Codec,
    /// How many partitions the log has.
    pub partitions: u32,
    /// Where all records go, if the user said so.
    pub fixed: Option<PartitionId>,
    /// Where records without a key go.
    pub sticky: PartitionId,
    /// The batches that are not full yet.
    pub building: BTreeMap<PartitionId, BatchBuilder>,
}

/// Why gathering stops.
enum Stop {
    /// Nobody takes batches any more, and knows why.
    NotTaken,
    /// A record cannot be in a batch.
    Refused(BatchError),
}

impl From<BatchError> for Stop {
    fn from(error: BatchError) -> Self {
        Stop::Refused(error)
    }
}

impl Gatherer {
    /// Gathers until the lines end or nobody takes batches any more. What came before a fault is sent.
    pub fn gather(mut self, lines: &Receiver<Block>, out: &mpsc::Sender<Built>) -> Outcome {
        let outcome = self.gather_all(lines, out);
        match outcome {
            Ok(outcome) => outcome,
            Err(Stop::NotTaken) => Ok(()),
            Err(Stop::Refused(error)) => Err(Fault::new(error)),
        }
    }

    fn gather_all(&mut self, lines: &Receiver<Block>, out: &mpsc::Sender<Built>) -> Result<Outcome, Stop> {
        loop {
            let pending = self.building.values().any(|builder| !builder.is_empty());
            match lines.recv_timeout(if pending { LINGER } else { LOOK_UP }) {
                Ok(Ok(block)) => block.iter().try_for_each(|line| self.push(line, out))?,
                Ok(Err(fault)) => {
                    self.send_all(out)?;
                    return Ok(Err(fault));
                }
                Err(RecvTimeoutError::Timeout) if out.is_closed() => return Err(Stop::NotTaken),
                Err(RecvTimeoutError::Timeout) => self.send_all(out)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(Ok(self.send_all(out)?)),
            }
        }
    }

    fn push(&mut self, line: &Line, out: &mpsc::Sender<Built>) -> Result<(), Stop> {
        let (key, value) = self.split(&line.bytes);
        let keyed = key.map(|key| partition_of_key(key, self.partitions));
        let partition = self.fixed.or(keyed).unwrap_or(self.sticky);
        let codec = self.codec;
        let builder = self.building.entry(partition).or_insert_with(|| BatchBuilder::with_capacity(codec, BATCH_BYTES));
        let unended = [(Bytes::from_static(UNENDED_HEADER.as_bytes()), Bytes::new())];
        let headers = if line.is_ended { &[][..] } else { &unended };
        if !builder.is_empty() && builder.len_bytes() + line.bytes.len() > BATCH_BYTES {
            send(partition, builder, out)?;
        }
        match builder.push(key, value, headers, now_ms()) {
            Err(BatchError::BatchFull) => {
                send(partition, builder, out)?;
                Ok(builder.push(key, value, headers, now_ms())?)
            }
            outcome => Ok(outcome?),
        }
    }

    fn split<'a>(&self, line: &'a [u8]) -> (Option<&'a [u8]>, &'a [u8]) {
        let Some(delimiter) = &self.key_delimiter else { return (None, line) };
        match memchr::memmem::find(line, delimiter) {
            Some(at) => (Some(&line[..at]), &line[at + delimiter.len()..]),
            None => (None, line),
        }
    }

    fn send_all(&mut self, out: &mpsc::Sender<Built>) -> Result<(), Stop> {
        let mut waiting = self.building.iter_mut().filter(|(_, builder)| !builder.is_empty());
        waiting.try_for_each(|(partition, builder)| send(*partition, builder, out))
    }
}

fn send(partition: PartitionId, builder: &mut BatchBuilder, out: &mpsc::Sender<Built>) -> Result<(), Stop> {
    let batch = builder.finish()?;
    out.blocking_send(Built { partition, batch }).map_err(|_| Stop::NotTaken)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
}

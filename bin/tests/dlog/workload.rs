//! Clients that put a real server under load through all its lives, remember what they were told, and have the judge of
//! the simulation decide in the end whether a promise was broken.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use dlog::client::{FetchOptions, Fetched, LogId, PyralogClient, Record};
use pyralog_engine::{
    runtime::sim::SimRandom,
    testing::{
        checker::judge,
        history::{AppendOutcome, AppendSent, Event, FinalRead, History, ReadSeen, RecordTag},
    },
    types::{AckLevel, LogUid, Offset, PartitionId, PartitionIndex},
};
use tokio::sync::watch;

use super::support::{PATIENCE, Server};

/// The log that they use.
pub const LOG: &str = "crash";
/// How many partitions it has.
pub const PARTITIONS: u32 = 3;
const PRODUCERS: u64 = 4;
const READERS: u64 = 2;
/// What the clients of all lives of a server share.
pub struct Story {
    history: Mutex<History>,
    /// The next sequence of each producer.
    sequences: Mutex<[u64; PRODUCERS as usize]>,
}

impl Story {
    /// Nothing happened yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Story { history: Mutex::default(), sequences: Mutex::default() })
    }

    /// What happened.
    pub fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number from the environment.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// The choices of this run: those of `PYRALOG_SEED`, or new ones; said, so that they can be made again.
pub fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("PYRALOG_SEED").unwrap_or_else(now);
    println!("PYRALOG_SEED={seed}");
    seed
}

fn partition_id(index: PartitionIndex) -> PartitionId {
    PartitionId { log: LogUid(0), index }
}

/// The tag and the bytes of a record: who it is, then as many bytes as chance wants.
fn make_record(producer: u32, sequence: u64, random: &mut SimRandom) -> (RecordTag, Record) {
    let mut value = Vec::from(producer.to_le_bytes());
    value.extend_from_slice(&sequence.to_le_bytes());
    value.resize(value.len() + random.below(2000) as usize, sequence as u8);
    let tag = RecordTag { producer, sequence, crc: crc32c::crc32c(&value) };
    (tag, Record::new(value))
}

fn tag_of(value: &[u8]) -> RecordTag {
    let producer = u32::from_le_bytes(value[..4].try_into().unwrap());
    RecordTag { producer, sequence: u64::from_le_bytes(value[4..12].try_into().unwrap()), crc: crc32c::crc32c(value) }
}

fn tags(fetched: Fetched) -> Vec<(Offset, RecordTag)> {
    fetched.into_iter().map(|record| record.unwrap()).map(|record| (record.offset, tag_of(&record.value))).collect()
}

async fn produce(
    address: String,
    producer: u64,
    story: Arc<Story>,
    mut random: SimRandom,
    stop: watch::Receiver<bool>,
) {
    let levels = [AckLevel::Received, AckLevel::Written, AckLevel::Durable, AckLevel::Quorum];
    // One of them asks for what a drive has; a life in which none did would show nothing of durable acks.
    let lowest = if producer == 0 { 2 } else { 0 };
    let ack = levels[random.within(lowest..4) as usize];
    // Half of them ask again what became of an append; the others send each once, since it could be stored twice.
    let builder = PyralogClient::builder().ack(ack).retry_for(Duration::ZERO).idempotent(producer.is_multiple_of(2));
    let Ok(client) = builder.connect(address).await else { return };
    let log = LogId::new(LOG).unwrap();
    while !*stop.borrow() {
        let partition = PartitionIndex(random.below(u64::from(PARTITIONS)) as u32);
        let (tags, records): (Vec<_>, Vec<_>) = {
            let mut sequences = story.sequences.lock().unwrap();
            let next = &mut sequences[producer as usize];
            let records = (0..random.below(20) + 1).map(|_| {
                *next += 1;
                make_record(producer as u32, *next, &mut random)
            });
            records.unzip()
        };
        let sent = AppendSent { partition: partition_id(partition), ack, records: tags };
        let id = story.history().send(sent);
        let outcome = tokio::select! {
            biased;
            outcome = client.produce_batch_to(&log, partition, records) => outcome,
            () = stopped(stop.clone()) => return,
        };
        let ended = match outcome {
            Ok(done) => {
                assert_eq!(done.partitions.len(), 1, "an append became more than one batch");
                AppendOutcome::Acked { level: done.level.unwrap(), base: done.partitions[0].base_offset }
            }
            Err(error) if error.is_unknown() => AppendOutcome::Unknown,
            Err(_) => AppendOutcome::Refused,
        };
        let refused = !matches!(ended, AppendOutcome::Acked { .. });
        story.history().end(id, ended);
        if refused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stopped| *stopped).await;
}

async fn read(address: String, observer: u64, story: Arc<Story>, mut random: SimRandom, stop: watch::Receiver<bool>) {
    let Ok(client) = PyralogClient::builder().retry_for(Duration::ZERO).connect(address).await else { return };
    let log = LogId::new(LOG).unwrap();
    let mut next = [Offset(0); PARTITIONS as usize];
    let options = FetchOptions { max_bytes: 256 << 10, max_wait: Duration::from_millis(20) };
    while !*stop.borrow() {
        let partition = PartitionIndex(random.below(u64::from(PARTITIONS)) as u32);
        let from = next[partition.0 as usize];
        let fetched = tokio::select! {
            biased;
            fetched = client.fetch(&log, partition, from, options) => fetched,
            () = stopped(stop.clone()) => return,
        };
        match fetched {
            Ok(fetched) => {
                next[partition.0 as usize] = fetched.next_offset;
                let observer = observer as u32;
                let read = ReadSeen { observer, partition: partition_id(partition), from, records: tags(fetched) };
                story.history().read(read);
            }
            Err(error) => match error.offset_range() {
                Some((_, end)) => next[partition.0 as usize] = end,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            },
        }
    }
}

/// Puts a server under load from several clients until the returned function is called.
pub fn load(address: &str, story: &Arc<Story>, seed: u64) -> impl FnOnce() + use<> {
    let (stop, stopping) = watch::channel(false);
    let (address, story) = (address.to_owned(), Arc::clone(story));
    let clients = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        let random = |stream| SimRandom::new(seed, stream);
        for i in 0..PRODUCERS {
            let (address, story, stop) = (address.clone(), Arc::clone(&story), stopping.clone());
            tasks.spawn_on(produce(address, i, story, random(i), stop), runtime.handle());
        }
        for i in 0..READERS {
            let (address, story, stop) = (address.clone(), Arc::clone(&story), stopping.clone());
            tasks.spawn_on(read(address, i, story, random(100 + i), stop), runtime.handle());
        }
        runtime.block_on(async {
            while let Some(ended) = tasks.join_next().await {
                ended.unwrap();
            }
        });
    });
    move || {
        stop.send_replace(true);
        clients.join().unwrap();
    }
}

async fn read_all(address: &str, story: &Story) {
    let client = PyralogClient::connect(address).await.unwrap();
    let log = LogId::new(LOG).unwrap();
    for partition in (0..PARTITIONS).map(PartitionIndex) {
        let start = client.earliest(&log, partition).await.unwrap();
        let end = client.latest(&log, partition).await.unwrap();
        let mut records = Vec::new();
        let mut next = start;
        while next < end {
            let fetched = client.fetch(&log, partition, next, FetchOptions::default()).await.unwrap();
            assert!(!fetched.is_empty(), "nothing at {next} of {end} of partition {partition}");
            next = fetched.next_offset;
            records.extend(tags(fetched));
        }
        story.history().finish(FinalRead { partition: partition_id(partition), start, records });
    }
}

/// How the appends ended that did so since event `from`.
#[derive(Default)]
pub struct Outcomes {
    received: usize,
    written: usize,
    /// As durable, or more.
    pub durable: usize,
    /// Not stored, and that is known.
    pub refused: usize,
    /// Stored or not.
    pub unknown: usize,
}

impl Outcomes {
    /// How many were acknowledged at any level.
    pub fn acknowledged(&self) -> usize {
        self.received + self.written + self.durable
    }

    /// Of the events from this one on.
    pub fn of(history: &History, from: usize) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for event in &history.events()[from..] {
            let Event::Ended(_, outcome) = event else { continue };
            *match outcome {
                AppendOutcome::Acked { level: AckLevel::Received, .. } => &mut outcomes.received,
                AppendOutcome::Acked { level: AckLevel::Written, .. } => &mut outcomes.written,
                AppendOutcome::Acked { .. } => &mut outcomes.durable,
                AppendOutcome::Refused => &mut outcomes.refused,
                AppendOutcome::Unknown => &mut outcomes.unknown,
            } += 1;
        }
        outcomes
    }
}

impl std::fmt::Display for Outcomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcomes { received, written, durable, refused, unknown } = self;
        write!(f, "{received} acknowledged as received, {written} as written, {durable} as durable or more, ")?;
        write!(f, "{refused} refused, {unknown} unknown")
    }
}

impl Story {
    /// Waits until something was acknowledged since event `from`: a life without a promise could break none.
    pub fn until_acknowledged(&self, from: usize) {
        let until = Instant::now() + PATIENCE;
        while Outcomes::of(&self.history(), from).acknowledged() == 0 {
            assert!(Instant::now() < until, "the server acknowledges nothing");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads everything back from a server, stops it, and judges.
    pub fn conclude(&self, server: Server, seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(read_all(&server.address, self));
        server.stop();
        let history = self.history();
        let all = Outcomes::of(&history, 0);
        println!("in all: {all}");
        assert!(all.durable > 0, "no append was acknowledged as durable");
        let broken = judge(&history);
        broken.iter().for_each(|violation| println!("{violation}"));
        assert!(broken.is_empty(), "{} promises broken, PYRALOG_SEED={seed}", broken.len());
    }
}

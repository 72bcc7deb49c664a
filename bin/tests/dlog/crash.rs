//! Real servers under load that die, again and again, of `kill -9` and of power cuts; in the end the judge of the
//! simulation decides whether a promise was broken.
//!
//! `scripts/crash-loop` runs many rounds; `PYRALOG_ROUNDS` says how many, `PYRALOG_SEED` which choices are made.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use dlog::client::{FetchOptions, Fetched, LogId, PyralogClient, Record};
use pyralog_engine::{
    runtime::sim::SimRandom,
    testing::{
        checker::judge,
        history::{AppendOutcome, AppendSent, Event, Fault, FinalRead, History, ReadSeen, RecordTag},
    },
    types::{AckLevel, LogUid, Offset, PartitionId, PartitionIndex},
};
use tokio::sync::watch;

use super::{
    power::Drive,
    support::{PATIENCE, Server, scratch, serve},
};

const LOG: &str = "crash";
const PARTITIONS: u32 = 3;
const PRODUCERS: u64 = 4;
const READERS: u64 = 2;
/// In a run of all tests; `scripts/crash-loop` runs more.
const ROUNDS: u64 = 4;

/// What the clients of all rounds share.
struct Story {
    history: Mutex<History>,
    /// The next sequence of each producer.
    sequences: Mutex<[u64; PRODUCERS as usize]>,
}

impl Story {
    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
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
    let ack = levels[random.below(4) as usize];
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
fn load(address: &str, story: &Arc<Story>, seed: u64) -> impl FnOnce() + use<> {
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
struct Outcomes {
    received: usize,
    written: usize,
    durable: usize,
    refused: usize,
    unknown: usize,
}

impl Outcomes {
    fn acknowledged(&self) -> usize {
        self.received + self.written + self.durable
    }

    fn of(history: &History, from: usize) -> Outcomes {
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

/// Starts a server that dies while it recovers what the last one left. Gives whether it died before it was ready.
fn die_in_recovery(data: &Path, flags: &[&str], after: Duration, die: &mut impl FnMut(&mut dyn FnMut())) -> bool {
    let mut starting = serve(data, flags).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(starting.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The last thing it says before its cores start.
    assert!(lines.any(|line| line.starts_with("guarantee")), "a server does not even begin to start");
    thread::sleep(after);
    die(&mut || {
        starting.kill().unwrap();
        starting.wait().unwrap();
    });
    !lines.any(|line| line.starts_with("ready"))
}

/// Rounds of a server's life and death on the drive at `data`. `die` makes the fault happen around the death of a
/// process, which it is given; the drive is usable again afterwards.
fn rounds(data: &Path, fault: Fault, mut die: impl FnMut(&mut dyn FnMut())) {
    let rounds = number("PYRALOG_ROUNDS").unwrap_or(ROUNDS);
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("PYRALOG_SEED").unwrap_or_else(now);
    println!("PYRALOG_SEED={seed}");
    let mut random = SimRandom::new(seed, 1000);
    let story = Arc::new(Story { history: Mutex::default(), sequences: Mutex::default() });
    let one_core = pyralog_tuning::cores::allowed().unwrap()[0].to_string();
    let mut in_recovery = 0;
    for round in 0..rounds {
        let flags: &[&str] = if random.below(2) == 0 { &[] } else { &["--cores", &one_core] };
        if round % 4 == 3 {
            let after = Duration::from_millis(random.below(40));
            in_recovery += u64::from(die_in_recovery(data, flags, after, &mut die));
            story.history().fault(fault);
        }
        let from = story.history().events().len();
        let server = Server::start(data, flags);
        if round == 0 {
            server.run(&["log", "create", LOG, "--partitions", &PARTITIONS.to_string()]);
        }
        let end_load = load(&server.address, &story, random.next_u64());
        // A round without a promise could break none.
        let until = Instant::now() + PATIENCE;
        while Outcomes::of(&story.history(), from).acknowledged() == 0 {
            assert!(Instant::now() < until, "a server acknowledges nothing");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(random.below(1500)));
        let mut server = Some(server);
        die(&mut || server.take().into_iter().for_each(Server::kill));
        end_load();
        // What was acknowledged before the fault is in the history by now.
        story.history().fault(fault);
        println!("round {}: {}", round + 1, Outcomes::of(&story.history(), from));
    }
    let server = Server::start(data, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(read_all(&server.address, &story));
    server.stop();
    let history = story.history();
    let all = Outcomes::of(&history, 0);
    println!("{rounds} rounds, {in_recovery} more deaths before a server was ready: {all}");
    assert!(all.durable > 0, "no append was acknowledged as durable");
    let broken = judge(&history);
    broken.iter().for_each(|violation| println!("{violation}"));
    assert!(broken.is_empty(), "{} promises broken, PYRALOG_SEED={seed}", broken.len());
}

#[test]
fn kills_break_no_promise() {
    let root = scratch();
    rounds(&root.path().join("data"), Fault::Kill, |kill| kill());
}

#[test]
fn power_cuts_break_no_promise() {
    let root = scratch();
    let Some(drive) = Drive::mount(root.path()) else { return };
    let data: PathBuf = drive.path().join("data");
    rounds(&data, Fault::PowerLoss, |kill| {
        drive.cut();
        kill();
        drive.power_up();
    });
}

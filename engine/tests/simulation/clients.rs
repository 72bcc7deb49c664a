//! The clients: what they send and read, and what they remember of it for the judge.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use pyralog_engine::{
    error::{ErrorClass, RequestError},
    record::{BatchBuilder, Codec, split_batches},
    runtime::{
        Runtime,
        sim::{SimRandom, SimRuntime, faults::FaultKind},
    },
    settings::LogSettings,
    shard::{
        Shard,
        request::{Append, CreateLog, Fetch, FindOffset, Found, OffsetAt, Outcome, Reply, Request, Trim},
    },
    testing::history::{
        Answered, AppendOutcome, AppendSent, AskId, Cause, Event, Failed, FinalRead, History, ReadSeen, RecordTag,
        Spoiled, StartSeen, TrimSent,
    },
    types::{AckLevel, Offset, PartitionId},
};

use crate::{
    deleting::LogsKnown,
    plan::Plan,
    producers::{self, Producers},
    settings::{self, SettingsKnown},
};

pub const PARTITIONS: u32 = 2;
pub const CLIENTS: u32 = 4;

/// What a fetch asks for, mostly.
const FETCH_BYTES: u32 = 64 << 10;

/// What outlives every process: the clients' own memory.
pub struct Clients {
    pub history: RefCell<History>,
    pub random: RefCell<SimRandom>,
    pub next_sequence: RefCell<BTreeMap<u32, u64>>,
    pub producers: RefCell<Producers>,
    pub appends_acked: Cell<u64>,
    pub records_read: Cell<u64>,
    /// How often a read came to the end of a partition.
    pub ends_read: Cell<u64>,
    /// How many cores the server had last.
    pub cores: Cell<usize>,
    /// By partition: the end of what is known to be durable, and of what a later durable record's hint covers.
    durable: RefCell<BTreeMap<PartitionId, (Offset, Offset)>>,
    /// What the clients knew to be durable when they sent the batch at an offset: its durable hint is not below that.
    hints: RefCell<BTreeMap<PartitionId, BTreeMap<u64, Offset>>>,
    /// How many logs they make.
    pub logs: usize,
    /// With which settings, and what else those may be by now.
    pub settings: SettingsKnown,
    /// What logs are made with.
    made_with: LogSettings,
    /// Nobody can tell then what is old.
    pub clock_jumps: bool,
    /// What their clocks say.
    pub now_ms: Cell<i64>,
    /// The timestamp of what is durable at an offset.
    pub stored_ms: RefCell<BTreeMap<PartitionId, BTreeMap<u64, i64>>>,
    pub trims_acked: Cell<u64>,
    /// Which logs there must be, and which not.
    pub logs_known: LogsKnown,
    /// What the judge was told of spoiled records.
    pub spoiled: RefCell<Vec<Spoiled>>,
}

impl Clients {
    pub fn new(seed: u64, plan: &Plan) -> Rc<Clients> {
        Rc::new(Clients {
            history: RefCell::new(History::new()),
            random: RefCell::new(SimRandom::new(seed, 101)),
            next_sequence: RefCell::default(),
            producers: RefCell::default(),
            appends_acked: Cell::new(0),
            records_read: Cell::new(0),
            ends_read: Cell::new(0),
            cores: Cell::new(0),
            durable: RefCell::default(),
            spoiled: RefCell::default(),
            hints: RefCell::default(),
            logs: plan.logs,
            settings: SettingsKnown::new(seed, plan),
            made_with: plan.first_settings(),
            clock_jumps: plan.rates.get(FaultKind::ClockJump) > 0,
            now_ms: Cell::new(1),
            stored_ms: RefCell::default(),
            trims_acked: Cell::new(0),
            logs_known: LogsKnown::default(),
        })
    }

    /// The end of the records of a partition of which a later one, which is durable too, says that they are durable.
    pub fn covered(&self, partition: PartitionId) -> Offset {
        self.durable.borrow().get(&partition).map_or(Offset(0), |(_, covered)| *covered)
    }

    /// The end of what is known to be durable.
    fn durable_end(&self, partition: PartitionId) -> Offset {
        self.durable.borrow().get(&partition).map_or(Offset(0), |(end, _)| *end)
    }

    /// What the hint of the batch at `base` is at least.
    pub fn hint_of(&self, partition: PartitionId, base: u64) -> Offset {
        self.hints.borrow().get(&partition).and_then(|hints| hints.get(&base)).copied().unwrap_or_default()
    }

    /// A record that was sent when all before `hint` was durable is durable too.
    fn is_durable(&self, partition: PartitionId, end: Offset, hint: Offset) {
        let mut all = self.durable.borrow_mut();
        let (durable, covered) = all.entry(partition).or_insert((Offset(0), Offset(0)));
        *durable = end.max(*durable);
        *covered = hint.max(*covered);
    }

    pub fn note(&self, event: Event) {
        self.history.borrow_mut().note(event);
    }

    /// A client was told of an error; the judge asks why.
    pub fn failed(&self, partition: Option<PartitionId>, asked: Option<AskId>, error: &RequestError) {
        self.note(Event::Failed(Failed { partition, asked, error: error.clone() }));
    }

    fn draw(&self, below: u64) -> u64 {
        self.random.borrow_mut().below(below)
    }
}

/// Every partition there is, of all logs.
pub fn partitions_of(shard: &Shard<SimRuntime>) -> Vec<PartitionId> {
    shard.catalog().logs().flat_map(|log| log.partition_ids()).collect()
}

pub async fn be_client(client: u32, shard: Shard<SimRuntime>, clients: Rc<Clients>) {
    while partitions_of(&shard).is_empty() {
        create_log(&shard, &clients).await;
        shard.runtime().sleep(Duration::from_millis(1)).await;
    }
    clients.settings.check(&shard);
    // As a consumer does that goes on where it was.
    read_some(client, &shard, &clients).await;
    loop {
        act(client, &shard, &clients).await;
    }
}

/// One thing that a client does.
pub async fn act(client: u32, shard: &Shard<SimRuntime>, clients: &Rc<Clients>) {
    clients.now_ms.set(shard.runtime().unix_millis());
    if clients.draw(60) == 0 {
        trim(client, shard, clients).await;
    }
    if clients.settings.are_to_change() {
        settings::alter(&shard.clone(), clients).await;
    }
    match clients.draw(200) {
        0..80 if client % 2 == 1 => {
            let Some(partition) = any_partition(shard, clients) else { return };
            producers::act(client, shard, partition, clients).await
        }
        0..140 => append(client, shard, clients).await,
        140..180 => read_some(client, shard, clients).await,
        180..190 if shard.catalog().logs().count() < clients.logs => create_log(shard, clients).await,
        _ => {
            let pause = Duration::from_micros(clients.draw(3_000));
            shard.runtime().sleep(pause).await;
        }
    }
}

/// Asks a shard as a client does: again while no copy of the partition leads.
pub async fn call(shard: &Shard<SimRuntime>, request: Request) -> Outcome {
    const ATTEMPTS: usize = 1_000;
    for _ in 0..ATTEMPTS {
        match shard.call(request.clone()).await {
            Err(RequestError::NotLeader { .. } | RequestError::PartitionOpening { .. }) => {
                shard.runtime().sleep(Duration::from_millis(5)).await
            }
            other => return other,
        }
    }
    shard.call(request).await
}

pub async fn create_log(shard: &Shard<SimRuntime>, clients: &Clients) {
    let name = format!("sim-{}", clients.draw(clients.logs as u64)).parse().unwrap();
    if clients.made_with.replication.is_some_and(|r| usize::from(r.replication_factor) > shard.cores()) {
        return;
    }
    clients.note(Event::Cause(Cause::Creating));
    let create = CreateLog { name, partitions: PARTITIONS, settings: clients.made_with };
    match shard.call(Request::CreateLog(create)).await {
        Ok(Reply::LogCreated(log)) => clients.logs_known.see(log.uid),
        Ok(other) => panic!("a creation was answered by {other:?}"),
        Err(error) => clients.failed(None, None, &error),
    }
}

/// None if all logs were deleted.
fn any_partition(shard: &Shard<SimRuntime>, clients: &Clients) -> Option<PartitionId> {
    let partitions = partitions_of(shard);
    if partitions.is_empty() { None } else { Some(partitions[clients.draw(partitions.len() as u64) as usize]) }
}

/// One to three batches at once.
async fn append(client: u32, shard: &Shard<SimRuntime>, clients: &Rc<Clients>) {
    let Some(partition) = any_partition(shard, clients) else { return };
    let count = clients.draw(3) + 1;
    // Of several, one that comes again would come after those behind it.
    let patience = if count == 1 { Patience::Again } else { Patience::Once };
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let ack = [AckLevel::Received, AckLevel::Written, AckLevel::Durable][clients.draw(3) as usize];
            let count = if clients.draw(4) == 0 { clients.draw(20) + 1 } else { 1 };
            append_one(client, shard.clone(), Rc::clone(clients), (partition, ack, count), patience)
        })
        .collect();
    futures_util::future::join_all(calls).await;
}

/// Whether a batch is sent again while no copy leads.
#[derive(Clone, Copy)]
pub enum Patience {
    Again,
    Once,
}

/// Sends one batch, as the front end does: with memory reserved for it. Gives whether it was acknowledged.
pub fn append_one(
    client: u32,
    shard: Shard<SimRuntime>,
    clients: Rc<Clients>,
    (partition, ack, count): (PartitionId, AckLevel, u64),
    patience: Patience,
) -> impl Future<Output = bool> {
    let (batch, records) = make_batch(client, count, &clients);
    let id = clients.history.borrow_mut().send(AppendSent { partition, ack, records });
    let (hint, sent_ms) = (clients.durable_end(partition), clients.now_ms.get());
    async move {
        let _reserved = shard.budget().reserve(batch.len()).await;
        let request = Request::Append(Append { partition, batch, ack: Some(ack), expected_offset: None });
        let answer = match patience {
            Patience::Again => call(&shard, request).await,
            Patience::Once => shard.call(request).await,
        };
        let outcome = match answer {
            Ok(Reply::Appended(appended)) => {
                clients.appends_acked.set(clients.appends_acked.get() + 1);
                clients.hints.borrow_mut().entry(partition).or_default().insert(appended.base_offset.0, hint);
                if appended.level >= AckLevel::Durable {
                    clients.is_durable(partition, appended.base_offset.advance(count), hint);
                    clients.note_stored(partition, appended.base_offset, sent_ms);
                }
                AppendOutcome::Acked { level: appended.level, base: appended.base_offset }
            }
            Ok(other) => panic!("an append was answered by {other:?}"),
            Err(error) => {
                clients.failed(Some(partition), None, &error);
                let outcome =
                    if error.class() == ErrorClass::Unknown { AppendOutcome::Unknown } else { AppendOutcome::Refused };
                // Who is refused comes again later.
                let pause = Duration::from_micros(500 + clients.draw(2_000));
                shard.runtime().sleep(pause).await;
                outcome
            }
        };
        clients.history.borrow_mut().end(id, outcome);
        matches!(outcome, AppendOutcome::Acked { .. })
    }
}

pub fn make_batch(client: u32, count: u64, clients: &Clients) -> (Bytes, Vec<RecordTag>) {
    let mut builder = BatchBuilder::new(Codec::None);
    let mut tags = Vec::new();
    for _ in 0..count {
        let mut sequences = clients.next_sequence.borrow_mut();
        let sequence = sequences.entry(client).or_insert(0);
        *sequence += 1;
        let (filler, len) = {
            let mut random = clients.random.borrow_mut();
            let most = if random.happens(300) { 20_000 } else { 600 };
            (random.next_u64(), random.below(most) as usize)
        };
        let mut value = format!("{client} {sequence} ").into_bytes();
        value.extend(filler.to_le_bytes().iter().cycle().take(len));
        builder.push(None, &value, &[], clients.now_ms.get()).unwrap();
        tags.push(RecordTag { producer: client, sequence: *sequence, crc: crc32c::crc32c(&value) });
    }
    (builder.finish().unwrap(), tags)
}

/// Asks how far a partition reaches, and reads from somewhere in it; sometimes from where nothing is.
pub async fn read_some(client: u32, shard: &Shard<SimRuntime>, clients: &Clients) {
    let Some(partition) = any_partition(shard, clients) else { return };
    let Ok(found) = ends(client, shard, partition, clients).await else { return };
    clients.told_start(client, shard, partition, found.start_offset);
    let range = found.high_watermark.0 - found.start_offset.0;
    let back = clients.draw(range.min(200) + 1);
    let from = match clients.draw(20) {
        0..3 => found.start_offset.0,
        // What is gone stays gone.
        3..5 => found.start_offset.0.saturating_sub(1),
        5 => found.log_end_offset.0 + 1 + clients.draw(50),
        _ => found.high_watermark.0 - back,
    };
    // Little at a time is read by single blocks, which go into the cache.
    let max_bytes = if clients.draw(3) == 0 { 1 } else { FETCH_BYTES };
    let wanted = (Offset(from), max_bytes, Duration::from_millis(2));
    if let Ok(records) = fetch(client, shard, partition, wanted, clients).await {
        clients.records_read.set(clients.records_read.get() + records.len() as u64);
        let is_end = |(offset, _): &(Offset, RecordTag)| offset.advance(1) >= found.high_watermark;
        clients.ends_read.set(clients.ends_read.get() + u64::from(records.last().is_some_and(is_end)));
    }
}

/// Reads a partition from its beginning, until something fails.
pub async fn read_through(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Clients) {
    let Ok(found) = ends(client, shard, partition, clients).await else { return };
    clients.told_start(client, shard, partition, found.start_offset);
    let mut next = found.start_offset;
    while next < found.high_watermark {
        let wanted = (next, FETCH_BYTES, Duration::ZERO);
        let Ok(records) = fetch(client, shard, partition, wanted, clients).await else { return };
        let Some((last, _)) = records.last() else { return };
        next = Offset(last.0 + 1);
    }
}

/// Deletes some of the oldest records, or asks for more than there is.
pub async fn trim(client: u32, shard: &Shard<SimRuntime>, clients: &Clients) {
    let Some(partition) = any_partition(shard, clients) else { return };
    let Ok(found) = ends(client, shard, partition, clients).await else { return };
    let range = found.high_watermark.0 - found.start_offset.0;
    let further = if clients.draw(4) == 0 { range + clients.draw(3) } else { clients.draw(range + 1) };
    let before = found.start_offset.advance(further);
    clients.history.borrow_mut().trim(TrimSent { partition, before });
    match call(shard, Request::Trim(Trim { partition, before })).await {
        Ok(Reply::Trimmed(now)) => {
            // With several copies a log begins with a whole batch.
            let whole = clients.settings.first.replication.is_some();
            assert!(whole || now.start_offset >= before, "trimmed before {before}, and begins at {}", now.start_offset);
            clients.trims_acked.set(clients.trims_acked.get() + 1);
            clients.told_start(client, shard, partition, now.start_offset);
        }
        Ok(other) => panic!("a trim was answered by {other:?}"),
        Err(RequestError::OffsetOutOfRange { start, end, .. }) => {
            assert!(end < before, "{before} is within the range that ends at {end}");
            clients.told_start(client, shard, partition, start);
        }
        Err(error) => clients.failed(Some(partition), None, &error),
    }
}

impl Clients {
    fn note_stored(&self, partition: PartitionId, base: Offset, sent_ms: i64) {
        self.stored_ms.borrow_mut().entry(partition).or_default().insert(base.0, sent_ms);
    }

    fn told_start(&self, observer: u32, shard: &Shard<SimRuntime>, partition: PartitionId, start: Offset) {
        let due = self.due(partition, shard.runtime().unix_millis());
        self.history.borrow_mut().start(StartSeen { observer, partition, start, due });
    }

    /// How far the log may have given up records by itself, with any of the settings that it may have or had.
    pub fn due(&self, partition: PartitionId, now_ms: i64) -> Offset {
        if self.clock_jumps {
            return Offset(u64::MAX);
        }
        let under = |settings: LogSettings| self.due_under(settings, partition, now_ms);
        self.settings.due_before(partition).max(self.settings.of(partition.log).into_iter().map(under).max().unwrap())
    }

    /// With these settings: to the first that is not old enough.
    fn due_under(&self, settings: LogSettings, partition: PartitionId, now_ms: i64) -> Offset {
        const LOOKED_AT: usize = 400;
        let (Some(age), None) = (settings.retention_ms, settings.retention_bytes) else {
            return if settings.retention_bytes.is_none() { Offset(0) } else { Offset(u64::MAX) };
        };
        let age_ms = age.number().unwrap_or(u64::MAX) as i64;
        let stored = self.stored_ms.borrow();
        let newest = stored.get(&partition).into_iter().flat_map(|stored| stored.iter().rev().take(LOOKED_AT));
        let young = newest.filter(|(_, sent_ms)| **sent_ms + age_ms >= now_ms).map(|(offset, _)| *offset).min();
        young.map_or(Offset(u64::MAX), Offset)
    }
}

/// How far a partition reaches.
pub async fn ends(
    client: u32,
    shard: &Shard<SimRuntime>,
    partition: PartitionId,
    clients: &Clients,
) -> Result<Found, RequestError> {
    let asked = clients.history.borrow_mut().ask(partition);
    match call(shard, Request::FindOffset(FindOffset { partition, at: OffsetAt::Latest })).await {
        Ok(Reply::Found(found)) => {
            let high_watermark = found.high_watermark;
            let answer = Answered { observer: client, asked, partition, high_watermark, gave: None };
            clients.note(Event::Answered(answer));
            Ok(found)
        }
        Ok(other) => panic!("a search was answered by {other:?}"),
        Err(error) => {
            clients.failed(Some(partition), Some(asked), &error);
            Err(error)
        }
    }
}

/// The records from an offset on.
pub async fn fetch(
    client: u32,
    shard: &Shard<SimRuntime>,
    partition: PartitionId,
    (from, max_bytes, max_wait): (Offset, u32, Duration),
    clients: &Clients,
) -> Result<Vec<(Offset, RecordTag)>, RequestError> {
    let asked = clients.history.borrow_mut().ask(partition);
    let fetch = Fetch { partition, offset: from, max_bytes, max_wait };
    let fetched = match call(shard, Request::Fetch(fetch)).await {
        Ok(Reply::Fetched(fetched)) => fetched,
        Ok(other) => panic!("a fetch was answered by {other:?}"),
        Err(error) => {
            clients.failed(Some(partition), Some(asked), &error);
            if let RequestError::OffsetOutOfRange { start, .. } = &error {
                clients.told_start(client, shard, partition, *start);
            }
            return Err(error);
        }
    };
    let mut stored = BytesMut::new();
    fetched.batches.iter().for_each(|piece| stored.extend_from_slice(piece));
    let mut records = Vec::new();
    for view in split_batches(stored.freeze()) {
        for record in view.expect("a damaged batch was served").records().unwrap() {
            let record = record.unwrap();
            if record.offset >= from {
                records.push((record.offset, tag_of(&record.value)));
            }
        }
    }
    let (high_watermark, gave) = (fetched.high_watermark, Some((from, records.len() as u64)));
    clients.note(Event::Answered(Answered { observer: client, asked, partition, high_watermark, gave }));
    let read = ReadSeen { observer: client, partition, from, records: records.clone() };
    clients.history.borrow_mut().read(read);
    Ok(records)
}

pub fn tag_of(value: &[u8]) -> RecordTag {
    let mut words = value.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(words.next().unwrap_or_default()).ok()?.parse::<u64>().ok();
    let (producer, sequence) = (number().unwrap_or(u64::from(u32::MAX)) as u32, number().unwrap_or(u64::MAX));
    RecordTag { producer, sequence, crc: crc32c::crc32c(value) }
}

/// Follows a partition as a consumer at its end does: thrice it waits for a record that is written meanwhile.
pub async fn follow(client: u32, shard: &Shard<SimRuntime>, clients: &Rc<Clients>) {
    let Some(partition) = any_partition(shard, clients) else { return };
    for _ in 0..3 {
        let Ok(found) = ends(client, shard, partition, clients).await else { return };
        let writing = async {
            shard.runtime().sleep(Duration::from_millis(1)).await;
            append_one(client, shard.clone(), Rc::clone(clients), (partition, AckLevel::Durable, 1), Patience::Again)
                .await
        };
        let wanted = (found.high_watermark, FETCH_BYTES, Duration::from_secs(30));
        let reading = fetch(client, shard, partition, wanted, clients);
        let (written, _) = futures_util::future::join(writing, reading).await;
        if !written {
            return;
        }
    }
}

/// Writes to a partition and reads it whole. What fails goes to the judge.
pub async fn read_all(shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    clients.now_ms.set(shard.runtime().unix_millis());
    // A write first: a partition that takes none has lost its use.
    append_one(CLIENTS, shard.clone(), Rc::clone(clients), (partition, AckLevel::Durable, 1), Patience::Again).await;
    let Ok(found) = ends(CLIENTS, shard, partition, clients).await else { return };
    clients.told_start(CLIENTS, shard, partition, found.start_offset);
    let max_bytes = if partition.index.0.is_multiple_of(2) { FETCH_BYTES } else { 1 };
    let (mut start, mut next, mut records) = (found.start_offset, found.start_offset, Vec::new());
    while next < found.high_watermark {
        match fetch(CLIENTS, shard, partition, (next, max_bytes, Duration::ZERO), clients).await {
            Ok(more) => {
                assert!(!more.is_empty(), "nothing at {next} of {}", found.high_watermark);
                next = Offset(more.last().unwrap().0.0 + 1);
                records.extend(more);
            }
            // It became too old while it was read.
            Err(RequestError::OffsetOutOfRange { start: now, .. }) if now > next => {
                (start, next) = (now, now);
                records.clear();
            }
            // A consumer goes on behind what is lost.
            Err(RequestError::Corrupt { to, .. }) if to > next => next = to,
            Err(_) => break,
        }
    }
    clients.history.borrow_mut().finish(FinalRead { partition, start, records });
    // Backwards, as nobody reads who catches up: from single blocks, which are kept in the cache, once more as a whole.
    // The judge sees whether a record is another one the second time.
    let range = start.0..found.high_watermark.0;
    for offset in range.clone().rev().step_by(7).chain(range.step_by(11)) {
        let _ = fetch(CLIENTS, shard, partition, (Offset(offset), 1, Duration::ZERO), clients).await;
    }
}

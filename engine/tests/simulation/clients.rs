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
        request::{Append, CreateLog, Fetch, FindOffset, Found, OffsetAt, Reply, Request, Trim},
    },
    testing::history::{AppendOutcome, AppendSent, FinalRead, History, ReadSeen, RecordTag, StartSeen, TrimSent},
    types::{AckLevel, Offset, PartitionId},
};

use crate::{
    plan::Plan,
    producers::{self, Producers},
};

pub const PARTITIONS: u32 = 3;
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
    /// How many cores the server had last.
    pub cores: Cell<usize>,
    /// Of the log that they make.
    pub settings: LogSettings,
    /// Nobody can tell then what is old.
    pub clock_jumps: bool,
    /// What their clocks say.
    pub now_ms: Cell<i64>,
    /// The timestamp of what is durable at an offset.
    pub stored_ms: RefCell<BTreeMap<PartitionId, BTreeMap<u64, i64>>>,
    pub trims_acked: Cell<u64>,
}

impl Clients {
    pub fn new(seed: u64, plan: &Plan) -> Rc<Clients> {
        let (settings, clock_jumps) = (plan.settings, plan.rates.get(FaultKind::ClockJump) > 0);
        Rc::new(Clients {
            history: RefCell::new(History::new()),
            random: RefCell::new(SimRandom::new(seed, 101)),
            next_sequence: RefCell::default(),
            producers: RefCell::default(),
            appends_acked: Cell::new(0),
            records_read: Cell::new(0),
            cores: Cell::new(0),
            settings,
            clock_jumps,
            now_ms: Cell::new(1),
            stored_ms: RefCell::default(),
            trims_acked: Cell::new(0),
        })
    }
}

pub async fn be_client(client: u32, shard: Shard<SimRuntime>, clients: Rc<Clients>) {
    let partitions = loop {
        let log = shard.catalog().logs().next().cloned();
        match log {
            Some(log) => break log.partition_ids().collect::<Vec<_>>(),
            None => {
                let (name, settings) = ("sim".parse().unwrap(), clients.settings);
                let create = CreateLog { name, partitions: PARTITIONS, settings };
                let _ = shard.call(Request::CreateLog(create)).await;
                shard.runtime().sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let draw = |below| clients.random.borrow_mut().below(below);
    // As a consumer does that goes on where it was.
    read_some(client, &shard, partitions[draw(partitions.len() as u64) as usize], &clients).await;
    loop {
        let partition = partitions[draw(partitions.len() as u64) as usize];
        clients.now_ms.set(shard.runtime().unix_millis());
        if draw(60) == 0 {
            trim(client, &shard, partition, &clients).await;
        }
        match draw(10) {
            0..=3 if client % 2 == 1 => producers::act(client, &shard, partition, &clients).await,
            0..=6 => append(client, &shard, partition, &clients).await,
            7..=8 => read_some(client, &shard, partition, &clients).await,
            _ => shard.runtime().sleep(Duration::from_micros(draw(3_000))).await,
        }
    }
}

/// One to three batches at once.
pub async fn append(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let draw = |below| clients.random.borrow_mut().below(below);
    let calls: Vec<_> = (0..draw(3) + 1)
        .map(|_| {
            let ack = [AckLevel::Received, AckLevel::Written, AckLevel::Durable][draw(3) as usize];
            let count = if draw(4) == 0 { draw(20) + 1 } else { 1 };
            let (batch, records) = make_batch(client, count, clients);
            let sent_ms = clients.now_ms.get();
            let id = clients.history.borrow_mut().send(AppendSent { partition, ack, records });
            let call = shard.call(Request::Append(Append { partition, batch, ack: Some(ack), expected_offset: None }));
            let clients = Rc::clone(clients);
            async move {
                let outcome = match call.await {
                    Ok(Reply::Appended(appended)) => {
                        clients.appends_acked.set(clients.appends_acked.get() + 1);
                        if appended.level >= AckLevel::Durable {
                            clients.note_stored(partition, appended.base_offset, sent_ms);
                        }
                        AppendOutcome::Acked { level: appended.level, base: appended.base_offset }
                    }
                    Err(error) if error.class() == ErrorClass::Unknown => AppendOutcome::Unknown,
                    Err(_) => AppendOutcome::Refused,
                    Ok(other) => panic!("an append was answered by {other:?}"),
                };
                clients.history.borrow_mut().end(id, outcome);
            }
        })
        .collect();
    futures_util::future::join_all(calls).await;
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

pub async fn read_some(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let Ok(found) = ends(shard, partition).await else { return };
    clients.told_start(client, shard, partition, found.start_offset);
    let range = found.high_watermark.0 - found.start_offset.0;
    let back = clients.random.borrow_mut().below(range.min(200) + 1);
    let from = match clients.random.borrow_mut().below(8) {
        0 => found.start_offset.0,
        // What is gone stays gone.
        1 => found.start_offset.0.saturating_sub(1),
        _ => found.high_watermark.0 - back,
    };
    // Little at a time is read by single blocks, which go into the cache.
    let max_bytes = if clients.random.borrow_mut().below(3) == 0 { 1 } else { FETCH_BYTES };
    let fetched = fetch(shard, partition, (Offset(from), max_bytes), Duration::from_millis(2)).await;
    if let Err(RequestError::OffsetOutOfRange { start, .. }) = &fetched {
        clients.told_start(client, shard, partition, *start);
    }
    if let Ok(records) = fetched {
        let visible = from < found.high_watermark.0;
        assert!(
            !visible || !records.is_empty(),
            "nothing at {from}, and records to {} are visible",
            found.high_watermark
        );
        clients.records_read.set(clients.records_read.get() + records.len() as u64);
        clients.history.borrow_mut().read(ReadSeen { observer: client, partition, from: Offset(from), records });
    }
}

/// Deletes some of the oldest records, or asks for more than there is.
async fn trim(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let Ok(found) = ends(shard, partition).await else { return };
    let draw = |below| clients.random.borrow_mut().below(below);
    let range = found.high_watermark.0 - found.start_offset.0;
    let before = Offset(found.start_offset.0 + if draw(4) == 0 { range + draw(3) } else { draw(range + 1) });
    clients.history.borrow_mut().trim(TrimSent { partition, before });
    match shard.call(Request::Trim(Trim { partition, before })).await {
        Ok(Reply::Trimmed(now)) => {
            assert!(now.start_offset >= before, "trimmed before {before}, and it begins at {}", now.start_offset);
            clients.trims_acked.set(clients.trims_acked.get() + 1);
            clients.told_start(client, shard, partition, now.start_offset);
        }
        Err(RequestError::OffsetOutOfRange { start, end, .. }) => {
            assert!(end < before, "{before} is within the range that ends at {end}");
            clients.told_start(client, shard, partition, start);
        }
        Err(_) => {}
        Ok(other) => panic!("a trim was answered by {other:?}"),
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

    /// How far the log may have given up records by itself: to the first that is not old enough.
    fn due(&self, partition: PartitionId, now_ms: i64) -> Offset {
        const LOOKED_AT: usize = 400;
        if self.clock_jumps {
            return Offset(u64::MAX);
        }
        let (Some(age), None) = (self.settings.retention_ms, self.settings.retention_bytes) else {
            let keeps_all = self.settings.retention_bytes.is_none();
            return if keeps_all { Offset(0) } else { Offset(u64::MAX) };
        };
        let age_ms = age.number().unwrap_or(u64::MAX) as i64;
        let stored = self.stored_ms.borrow();
        let newest = stored.get(&partition).into_iter().flat_map(|stored| stored.iter().rev().take(LOOKED_AT));
        let young = newest.filter(|(_, sent_ms)| **sent_ms + age_ms >= now_ms).map(|(offset, _)| *offset).min();
        young.map_or(Offset(u64::MAX), Offset)
    }
}

pub async fn ends(shard: &Shard<SimRuntime>, partition: PartitionId) -> Result<Found, RequestError> {
    match shard.call(Request::FindOffset(FindOffset { partition, at: OffsetAt::Latest })).await? {
        Reply::Found(found) => Ok(found),
        other => panic!("a search was answered by {other:?}"),
    }
}

/// The records from `from` on.
pub async fn fetch(
    shard: &Shard<SimRuntime>,
    partition: PartitionId,
    (from, max_bytes): (Offset, u32),
    max_wait: Duration,
) -> Result<Vec<(Offset, RecordTag)>, RequestError> {
    let fetch = Fetch { partition, offset: from, max_bytes, max_wait };
    let fetched = match shard.call(Request::Fetch(fetch)).await? {
        Reply::Fetched(fetched) => fetched,
        other => panic!("a fetch was answered by {other:?}"),
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
    Ok(records)
}

pub fn tag_of(value: &[u8]) -> RecordTag {
    let mut words = value.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(words.next().unwrap_or_default()).ok()?.parse::<u64>().ok();
    let (producer, sequence) = (number().unwrap_or(u64::from(u32::MAX)) as u32, number().unwrap_or(u64::MAX));
    RecordTag { producer, sequence, crc: crc32c::crc32c(value) }
}

pub async fn read_all(
    shard: &Shard<SimRuntime>,
    partition: PartitionId,
    clients: &Rc<Clients>,
) -> Result<(), RequestError> {
    clients.now_ms.set(shard.runtime().unix_millis());
    // A write first: a partition that takes none has lost its use.
    let (batch, records) = make_batch(CLIENTS, 1, clients);
    let ack = AckLevel::Durable;
    let id = clients.history.borrow_mut().send(AppendSent { partition, ack, records });
    let Reply::Appended(appended) =
        shard.call(Request::Append(Append { partition, batch, ack: Some(ack), expected_offset: None })).await?
    else {
        panic!("an append was answered by something else");
    };
    let outcome = AppendOutcome::Acked { level: appended.level, base: appended.base_offset };
    clients.history.borrow_mut().end(id, outcome);
    let found = ends(shard, partition).await?;
    clients.told_start(CLIENTS, shard, partition, found.start_offset);
    let max_bytes = if partition.index.0.is_multiple_of(2) { FETCH_BYTES } else { 1 };
    let (mut start, mut next, mut records) = (found.start_offset, found.start_offset, Vec::new());
    while next < found.high_watermark {
        let more = match fetch(shard, partition, (next, max_bytes), Duration::ZERO).await {
            // It became too old while it was read.
            Err(RequestError::OffsetOutOfRange { start: now, .. }) if now > next => {
                clients.told_start(CLIENTS, shard, partition, now);
                (start, next) = (now, now);
                records.clear();
                continue;
            }
            more => more?,
        };
        assert!(!more.is_empty(), "nothing at {next} of {}", found.high_watermark);
        next = Offset(more.last().unwrap().0.0 + 1);
        records.extend(more);
    }
    // Backwards, as nobody reads who catches up: from single blocks, which are kept in the cache, once more as a whole.
    for offset in
        (start.0..found.high_watermark.0).rev().step_by(7).chain((start.0..found.high_watermark.0).step_by(11))
    {
        let again = match fetch(shard, partition, (Offset(offset), 1), Duration::ZERO).await {
            Err(RequestError::OffsetOutOfRange { start: now, .. }) if now.0 > offset => continue,
            again => again?,
        };
        let known = records.get((offset - start.0) as usize);
        assert_eq!(again.first(), known, "the record at {offset} is another one the second time");
    }
    clients.history.borrow_mut().finish(FinalRead { partition, start, records });
    Ok(())
}

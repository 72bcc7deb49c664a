//! Clients that want more than to append: idempotent producers, which send a batch again until they know its fate, over
//! any number of lives of the server, and writers of histories, who append at the offset that they have read up to.
//!
//! They have numbers of their own among the producers of records, beside their plain appends: each sends to a partition
//! one batch at a time, and the judge wants a producer's records in order.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use bytes::Bytes;
use pyralog_engine::{
    error::{ErrorClass, RequestError},
    record::{
        mark_producer,
        sequencer::{Epochs, Failure, Next, Sequencer},
    },
    runtime::{Runtime, sim::SimRuntime},
    shard::{
        Shard,
        request::{Append, Appended, FindOffset, OffsetAt, Reply, Request},
    },
    testing::history::{AppendId, AppendOutcome, AppendSent},
    types::{AckLevel, Offset, PartitionId, ProducerId},
};

use crate::clients::{Clients, call, make_batch};

/// What is added to a client's number for its idempotent producer, and for its plain conditional appends.
const IDEMPOTENT: u32 = 100;
const CONDITIONAL: u32 = 200;

/// Times that a batch is sent again when nothing fails, before it counts as never ending.
const TRIES_MAX: usize = 20;

/// All producers' memory, which outlives every server.
pub type Producers = BTreeMap<(u32, PartitionId), Producer>;

/// What an idempotent producer remembers of a partition.
pub struct Producer {
    sequencer: Sequencer,
    pending: Option<Pending>,
    /// A batch that it gave up, not knowing its fate. Its requests may still be on their way.
    left: Option<Pending>,
}

#[derive(Clone)]
struct Pending {
    id: AppendId,
    batch: Bytes,
    count: u32,
    ack: AckLevel,
    expected: Option<Offset>,
    /// It was sent, and the answer did not come yet.
    under_way: bool,
}

impl Pending {
    fn append(&self, partition: PartitionId) -> Append {
        Append { partition, batch: self.batch.clone(), ack: Some(self.ack), expected_offset: self.expected }
    }
}

fn draw(clients: &Clients, below: u64) -> u64 {
    clients.random.borrow_mut().below(below)
}

fn any_level(clients: &Clients) -> AckLevel {
    [AckLevel::Received, AckLevel::Written, AckLevel::Durable, AckLevel::Durable][draw(clients, 4) as usize]
}

/// One thing that such a client does.
pub async fn act(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    match draw(clients, 8) {
        0 => compete(client, shard, partition, clients).await,
        1 => haunt(client, shard, partition, clients).await,
        _ => produce(client, shard, partition, clients).await,
    }
}

/// The offset that the next record would get, as far as one can know.
async fn log_end(shard: &Shard<SimRuntime>, partition: PartitionId) -> Option<Offset> {
    match call(shard, Request::FindOffset(FindOffset { partition, at: OffsetAt::Latest })).await {
        Ok(Reply::Found(found)) => Some(found.log_end_offset),
        _ => None,
    }
}

/// Appends where the log ended a moment ago, as others may try too.
async fn compete(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let Some(end) = log_end(shard, partition).await else { return };
    let deciding = draw(clients, 300);
    shard.runtime().sleep(Duration::from_micros(deciding)).await;
    let (ack, count) = (any_level(clients), draw(clients, 3) + 1);
    let (batch, records) = make_batch(CONDITIONAL + client, count, clients);
    let id = {
        let mut history = clients.history.borrow_mut();
        let id = history.send(AppendSent { partition, ack, records });
        history.expect(id, end);
        id
    };
    let append = Append { partition, batch, ack: Some(ack), expected_offset: Some(end) };
    let outcome = match call(shard, Request::Append(append)).await {
        Ok(Reply::Appended(appended)) => acked(clients, &appended),
        Ok(other) => panic!("an append was answered by {other:?}"),
        Err(RequestError::WrongOffset { expected, end: told }) => {
            assert!(expected == end && told != end, "expected {end}, refused for {expected}, and the end is {told}");
            AppendOutcome::Refused
        }
        Err(error) if error.class() == ErrorClass::Unknown => AppendOutcome::Unknown,
        Err(_) => AppendOutcome::Refused,
    };
    clients.history.borrow_mut().end(id, outcome);
}

fn acked(clients: &Clients, appended: &Appended) -> AppendOutcome {
    clients.appends_acked.set(clients.appends_acked.get() + 1);
    AppendOutcome::Acked { level: appended.level, base: appended.base_offset }
}

/// Sends the next batch, or the one whose fate is not known again.
async fn produce(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let is_pending = with(client, partition, clients, |producer| producer.pending.is_some());
    // Some of them are told where the log must end.
    let wants_condition = !is_pending && draw(clients, 4) == 0;
    let expected = if wants_condition { log_end(shard, partition).await } else { None };
    let Some(append) = next_append(client, partition, expected, clients) else { return };
    let answer = attempt(shard, &append, clients).await;
    conclude(client, partition, answer, clients);
}

/// Does something with a producer's memory.
fn with<T>(client: u32, partition: PartitionId, clients: &Clients, act: impl FnOnce(&mut Producer) -> T) -> T {
    let mut producers = clients.producers.borrow_mut();
    let id = ProducerId(u64::from(client) + 1);
    let new = || Producer { sequencer: Sequencer::new(id, 0, Epochs::Own), pending: None, left: None };
    act(producers.entry((client, partition)).or_insert_with(new))
}

/// What to send: the pending batch again, or a new one.
fn next_append(client: u32, partition: PartitionId, expected: Option<Offset>, clients: &Clients) -> Option<Append> {
    let (ack, count) = (any_level(clients), if draw(clients, 4) == 0 { draw(clients, 20) + 1 } else { 1 });
    let asks_more = draw(clients, 3) == 0;
    with(client, partition, clients, |producer| {
        if let Some(pending) = &mut producer.pending {
            if std::mem::replace(&mut pending.under_way, true) {
                // The process died, or nobody waited for the answer.
                producer.sequencer.failed(Failure::Unknown);
            }
            if asks_more {
                pending.ack = AckLevel::Durable;
            }
            clients.history.borrow_mut().resend(pending.id);
            return Some(pending.append(partition));
        }
        let stamp = producer.sequencer.begin()?;
        let (batch, records) = make_batch(IDEMPOTENT + client, count, clients);
        let batch = mark_producer(batch, stamp.id, stamp.epoch, stamp.sequence);
        let mut history = clients.history.borrow_mut();
        let id = history.send(AppendSent { partition, ack, records });
        if let Some(offset) = expected {
            history.expect(id, offset);
        }
        let pending = Pending { id, batch, count: count as u32, ack, expected, under_way: true };
        Some(producer.pending.insert(pending).append(partition))
    })
}

/// Sends an append: once, twice at the same time, or without the patience to wait for the answer, which is then `None`.
async fn attempt(
    shard: &Shard<SimRuntime>,
    append: &Append,
    clients: &Clients,
) -> Option<Result<Appended, RequestError>> {
    let call = || async {
        match call(shard, Request::Append(append.clone())).await {
            Ok(Reply::Appended(appended)) => Ok(appended),
            Ok(other) => panic!("an append was answered by {other:?}"),
            Err(error) => Err(error),
        }
    };
    match draw(clients, 6) {
        0 => {
            let patience = Duration::from_micros(draw(clients, 400));
            let (calling, sleeping) = (std::pin::pin!(call()), std::pin::pin!(shard.runtime().sleep(patience)));
            match futures_util::future::select(calling, sleeping).await {
                futures_util::future::Either::Left((answer, _)) => Some(answer),
                futures_util::future::Either::Right(_) => None,
            }
        }
        1 => {
            let (first, second) = futures_util::future::join(call(), call()).await;
            if let (Ok(first), Ok(second)) = (&first, &second) {
                assert_eq!(first.base_offset, second.base_offset, "the same batch at two offsets");
                assert!(first.duplicate || second.duplicate, "the same batch was new twice");
            }
            // One that succeeded says more than one that did not, and one whose fate is not known more than a refusal.
            Some(match (first, second) {
                (Ok(stored), _) | (_, Ok(stored)) => Ok(stored),
                (Err(unknown), Err(_)) if unknown.class() == ErrorClass::Unknown => Err(unknown),
                (Err(_), Err(second)) => Err(second),
            })
        }
        _ => Some(call().await),
    }
}

/// Takes an answer to the pending batch.
fn conclude(client: u32, partition: PartitionId, answer: Option<Result<Appended, RequestError>>, clients: &Clients) {
    let gives_up = draw(clients, 5) == 0;
    with(client, partition, clients, |producer| {
        let Some(pending) = &mut producer.pending else { return };
        let id = pending.id;
        let failure = match &answer {
            Some(Ok(appended)) => {
                assert_eq!(appended.count, pending.count, "a part of a batch was acknowledged");
                producer.sequencer.stored(pending.count);
                producer.pending = None;
                return clients.history.borrow_mut().end(id, acked(clients, appended));
            }
            Some(Err(error)) => Failure::from(error),
            None => Failure::Unknown,
        };
        pending.under_way = false;
        let mut next = producer.sequencer.failed(failure);
        if next == Next::Again && gives_up {
            next = producer.sequencer.give_up();
        }
        let outcome = match next {
            Next::Again => return,
            Next::Renumbered => {
                let stamp = producer.sequencer.stamp();
                pending.batch = mark_producer(pending.batch.clone(), stamp.id, stamp.epoch, stamp.sequence);
                return;
            }
            Next::Refused => AppendOutcome::Refused,
            Next::Unknown => AppendOutcome::Unknown,
        };
        let ended = producer.pending.take();
        if next == Next::Unknown {
            producer.left = ended;
        }
        clients.history.borrow_mut().end(id, outcome);
    });
}

/// A request of an epoch that the producer has left arrives late.
async fn haunt(client: u32, shard: &Shard<SimRuntime>, partition: PartitionId, clients: &Rc<Clients>) {
    let late = with(client, partition, clients, |producer| producer.left.clone());
    let Some(late) = late else { return };
    clients.history.borrow_mut().resend(late.id);
    let _ = shard.call(Request::Append(late.append(partition))).await;
}

/// Whether a partition's log was not deleted.
fn is_there(shard: &Shard<SimRuntime>, partition: PartitionId) -> bool {
    shard.catalog().by_uid(partition.log).is_some()
}

/// Nothing fails any more: every pending batch must come to an end. Returns those that do not.
pub async fn settle(shard: &Shard<SimRuntime>, clients: &Rc<Clients>) -> Vec<String> {
    let mut complaints = Vec::new();
    let all: Vec<_> = clients.producers.borrow().keys().copied().collect();
    for (client, partition) in all.into_iter().filter(|(_, partition)| is_there(shard, *partition)) {
        let is_pending = || with(client, partition, clients, |producer| producer.pending.is_some());
        let mut tries = 0;
        while is_pending() && tries < TRIES_MAX {
            let Some(append) = next_append(client, partition, None, clients) else { break };
            let answer = attempt(shard, &append, clients).await;
            conclude(client, partition, answer, clients);
            tries += 1;
        }
        // A partition with damage takes no writes.
        let spoiled = clients.spoiled.borrow().iter().any(|spoiled| spoiled.partition == partition);
        if is_pending() && !spoiled {
            complaints.push(format!("producer {client} of partition {partition} never learns what became of a batch"));
        }
    }
    complaints
}

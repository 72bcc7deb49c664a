//! Idempotent writes: what may have been stored is sent again until that is known, and is stored at most once.
//!
//! A producer has an id, and numbers its records for each partition. So a partition takes turns: one batch is under way
//! at a time, the same bytes until its fate is known, and the next one waits in line. That keeps the order also over
//! retries; many records per batch make it fast. What each answer means is decided by the engine's [`Sequencer`].
//!
//! A write whose future is dropped before it is done has an unknown fate; the next one begins a new epoch, which shuts
//! the dropped one out if it is still on its way.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use pyralog_engine::{
    error::ErrorClass,
    limits::PRODUCER_BATCHES_KEPT,
    record::{
        mark_producer,
        sequencer::{Epochs, Failure, Next, Sequencer, Stamp},
    },
    shard::request::Appended,
    types::{PartitionIndex, ProducerId, Sequence},
};
use tokio::time::Instant;

use super::{
    AppendOptions, PyralogClient,
    error::{Error, Result},
    ids::LogId,
};
use crate::{tls::crypto_provider, wire::code::ErrorCode};

/// Batches that a producer has in flight to a partition.
const IN_FLIGHT_PER_PARTITION: usize = 1;

const _: () =
    assert!(IN_FLIGHT_PER_PARTITION <= PRODUCER_BATCHES_KEPT, "a repeated batch must still be known to its partition");

const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A producer that outlives its process, and one of its lives.
///
/// Without one a producer has a random id, which nobody else has, and looks after its epochs itself. With one, the next
/// life takes a higher epoch: once it has written to a partition, what the former life still sends there is refused.
/// Each life's sequences begin at 0, so two lives must not have the same epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProducerIdentity {
    /// Which producer.
    pub id: NonZeroU64,
    /// Which life of it.
    pub epoch: u32,
}

/// An idempotent producer, shared by all who write under its name.
pub(super) struct Idempotence {
    identity: ProducerIdentity,
    epochs: Epochs,
    delivery_timeout: Duration,
    turns: Mutex<HashMap<(LogId, PartitionIndex), Arc<Turn>>>,
}

/// Whoever holds the lock may send; the others stand in line.
type Turn = tokio::sync::Mutex<Sequencer>;

impl Idempotence {
    /// A producer with this identity, else with one of its own.
    pub fn new(identity: Option<ProducerIdentity>, delivery_timeout: Duration) -> Arc<Self> {
        let epochs = if identity.is_some() { Epochs::Given } else { Epochs::Own };
        let identity = identity.unwrap_or_else(|| ProducerIdentity { id: random_id(), epoch: 0 });
        Arc::new(Idempotence { identity, epochs, delivery_timeout, turns: Mutex::default() })
    }

    /// Appends a batch, whatever its mark, and stays with it until its fate is known or the time is over.
    pub async fn append(
        &self,
        client: &PyralogClient,
        (log, partition): (&LogId, PartitionIndex),
        batch: Bytes,
        options: AppendOptions,
    ) -> Result<Appended> {
        let turn = self.turn(log, partition);
        let mut sequencer = turn.lock().await;
        let stamp = sequencer.begin().ok_or(Error::Closed { what: "epoch of the producer" })?;
        let mut batch = marked(batch, stamp);
        let until = Instant::now() + self.delivery_timeout;
        let mut pause = PAUSE_FIRST;
        loop {
            let error = match client.append_once(log, partition, &batch, options).await {
                Ok(appended) => {
                    sequencer.stored(appended.count);
                    return Ok(appended);
                }
                Err(error) => error,
            };
            match sequencer.failed(failure(&error)) {
                Next::Again if (sequencer.is_in_doubt() || error.is_retriable()) && Instant::now() + pause < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Next::Again => return Err(end(sequencer.give_up(), error)),
                Next::Renumbered => batch = marked(batch, sequencer.stamp()),
                next => return Err(end(next, error)),
            }
        }
    }

    fn turn(&self, log: &LogId, partition: PartitionIndex) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Two look-ups, so that the log's name is cloned only once.
        if let Some(turn) = turns.get(&(log.clone(), partition)) {
            return Arc::clone(turn);
        }
        let ProducerIdentity { id, epoch } = self.identity;
        let turn = Arc::new(Turn::new(Sequencer::new(ProducerId(id.get()), epoch, self.epochs)));
        turns.insert((log.clone(), partition), Arc::clone(&turn));
        turn
    }
}

fn marked(batch: Bytes, stamp: Stamp) -> Bytes {
    mark_producer(batch, stamp.id, stamp.epoch, stamp.sequence)
}

/// What a failed attempt says of the batch.
fn failure(error: &Error) -> Failure {
    match (error.code(), error.class()) {
        (Some(ErrorCode::OUT_OF_SEQUENCE), _) => match error.detail("expected").map(u32::try_from) {
            Some(Ok(expected)) => Failure::OutOfSequence { expected: Sequence(expected) },
            _ => Failure::Refused,
        },
        (Some(ErrorCode::UNKNOWN_PRODUCER), _) => Failure::Forgotten,
        (Some(ErrorCode::PRODUCER_FENCED), _) => Failure::Fenced,
        (Some(ErrorCode::WRONG_OFFSET), _) => Failure::RefusedAsNew,
        (_, ErrorClass::Unknown) => Failure::Unknown,
        (_, ErrorClass::Retriable | ErrorClass::Fenced) => Failure::NotNow,
        (_, ErrorClass::Refused | ErrorClass::Corrupt) => Failure::Refused,
    }
}

/// What the caller is told.
fn end(next: Next, error: Error) -> Error {
    match next {
        Next::Unknown if !error.is_unknown() => {
            Error::Unknown { reason: format!("{error}; an attempt before that may have been stored") }
        }
        _ => error,
    }
}

/// An id that nobody else has. The random source is the one that connections are encrypted with.
fn random_id() -> NonZeroU64 {
    let provider = crypto_provider();
    loop {
        let mut bytes = [0; 8];
        provider.secure_random.fill(&mut bytes).expect("no connection could be opened without it"); // why: see there
        if let Some(id) = NonZeroU64::new(u64::from_le_bytes(bytes)) {
            return id;
        }
    }
}

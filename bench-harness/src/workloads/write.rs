//! Writes batches, each built and checksummed within the measured time as a user's client would do it.

use std::{
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use pyralog_engine::{
    limits::BATCH_HEADER_BYTES,
    record::{BatchBuilder, BatchError, Codec},
    shard::request::Appended,
    types::Offset,
};
use pyralog_net::client::{AppendOptions, Error};

use super::{
    Connection,
    read::{TAIL_RECORDS, check_any},
};
use crate::{
    args::Order,
    checking::Kind,
    dataset::{Dataset, Identity},
    measuring::{Amount, Side},
    pacing::unit,
    target::at_once,
    turns::Turn,
};

/// Bytes of a record around its key and value, at most: lengths, time, counts.
const RECORD_OVERHEAD_BYTES: usize = 24;

/// Memory that a batch gets at once; a batch of many sizes may need more and then grows.
const BATCH_ROOM_MAX: usize = 1 << 20;

/// How long to leave a server alone that said it is overloaded.
const OVERLOADED_PAUSE: Duration = Duration::from_millis(5);

/// Builds the batches of one connection.
pub struct BatchMaker {
    builder: BatchBuilder,
    value: Vec<u8>,
}

impl BatchMaker {
    /// A maker of batches of `records` values of `dataset`.
    pub fn new(dataset: &Dataset, records: u32, codec: Codec) -> Self {
        let record = dataset.value_bytes() + dataset.key_bytes() + RECORD_OVERHEAD_BYTES;
        let bytes = (BATCH_HEADER_BYTES + records as usize * record).min(BATCH_ROOM_MAX);
        BatchMaker { builder: BatchBuilder::with_capacity(codec, bytes), value: Vec::with_capacity(record) }
    }

    /// A batch of `records` values, the first of which is `first`'s, and the bytes of keys and values in it.
    ///
    /// Errors: the batch would be above the limit.
    pub fn make(&mut self, dataset: &Dataset, first: Identity, records: u32) -> Result<(Bytes, u64), BatchError> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64);
        let mut bytes = 0;
        for n in 0..u64::from(records) {
            let identity = Identity { sequence: first.sequence + n, ..first };
            dataset.write(identity, &mut self.value);
            let key = dataset.key(identity);
            bytes += self.value.len() + key.map_or(0, <[u8]>::len);
            self.builder.push(key, &self.value, &[], now_ms)?;
        }
        Ok((self.builder.finish()?, bytes as u64))
    }
}

/// Keeps one request in flight until there is no more to do.
pub async fn keep_one_in_flight(connection: Rc<Connection>) {
    let reads = connection.job.plan.reads;
    while let Some(turn) = connection.next().await {
        let is_read = reads > 0.0 && unit(&mut connection.draw()) < reads;
        let goes_on = match is_read {
            true => read_one(&connection, turn).await,
            false => write_one(&connection, turn).await,
        };
        if !goes_on {
            return;
        }
    }
}

async fn write_one(connection: &Connection, turn: Turn) -> bool {
    let (plan, dataset) = (&connection.job.plan, &connection.job.dataset);
    // No wait from here until the batch is handed over: sequences go out in the order in which they are taken.
    let partition = connection.next_partition();
    let sequences = connection.ledgers.borrow_mut()[partition].begin(u64::from(plan.batch));
    let first = Identity { writer: connection.number, partition: partition as u16, sequence: sequences.start };
    let made = connection.maker.borrow_mut().make(dataset, first, plan.batch);
    let (pending, bytes) = match made {
        Ok((batch, bytes)) => {
            let options = AppendOptions { ack: plan.ack, timed: plan.stages, ..AppendOptions::default() };
            (connection.partitions[partition].append(batch, options), bytes)
        }
        Err(error) => {
            connection.failed(Side::Main, &error.to_string());
            return false;
        }
    };
    if plan.end_to_end {
        connection.job.book.sent(first, turn.due);
    }
    match pending.await {
        Ok(appended) => {
            connection.answered(Side::Main, turn, Amount { records: u64::from(plan.batch), bytes });
            if let Some(clock) = &appended.clock {
                connection.recorder.staged(turn.due, &clock.stages());
            }
            connection.note_level(appended.level);
            check_ack(connection, &appended);
            let end = &mut connection.acknowledged.borrow_mut()[partition];
            *end = (*end).max(appended.base_offset.0 + u64::from(plan.batch));
            connection.ledgers.borrow_mut()[partition].acknowledged(sequences, appended.base_offset.0);
            connection.job.done.fetch_add(u64::from(plan.batch), Relaxed);
            true
        }
        Err(error) => {
            connection.failed(Side::Main, &error.to_string());
            connection.job.book.forget(first);
            if !error.is_unknown() {
                connection.ledgers.borrow_mut()[partition].refused(sequences);
            }
            may_go_on(connection, partition, &error).await
        }
    }
}

/// Reads a record among those that this connection knows to be acknowledged; writes if there is none yet.
async fn read_one(connection: &Connection, turn: Turn) -> bool {
    let draw = connection.draw();
    let partition = (draw % connection.partitions.len() as u64) as usize;
    let end = connection.acknowledged.borrow()[partition];
    let draw = draw >> 16;
    let offset = match (end, connection.job.plan.order) {
        (0, _) => return write_one(connection, turn).await,
        (end, Order::Random) => draw % end,
        (end, Order::Sequential) => connection.turn.replace(connection.turn.get() + 1) % end,
        (end, Order::Tail) => end - 1 - draw % end.min(TAIL_RECORDS),
    };
    match connection.partitions[partition].fetch(Offset(offset), at_once(1)).await {
        Ok(reply) => {
            let defects = &mut connection.defects.borrow_mut();
            let (next, amount) = check_any(&connection.job, partition, offset, reply.batches, defects);
            if next == offset {
                defects.note(Kind::Lost, 1, || format!("partition {partition}, offset {offset}: nothing came"));
            }
            connection.answered(Side::Reads, turn, amount);
            true
        }
        Err(error) => {
            connection.failed(Side::Reads, &error.to_string());
            may_go_on(connection, partition, &error).await
        }
    }
}

/// An ack for another number of records, or below the level asked for, would be a lie that reading back does not show.
fn check_ack(connection: &Connection, appended: &Appended) {
    let plan = &connection.job.plan;
    if appended.count != plan.batch {
        let what = || format!("{} records were acknowledged at {appended:?}", plan.batch);
        connection.defects.borrow_mut().note(Kind::Corrupt, 1, what);
    }
    if plan.ack.is_some_and(|asked| appended.level < asked) {
        connection.failed(Side::Main, &format!("acknowledged as {} only", appended.level));
    }
}

async fn may_go_on(connection: &Connection, partition: usize, error: &Error) -> bool {
    if error.is_retriable() {
        tokio::time::sleep(OVERLOADED_PAUSE).await;
    }
    connection.partitions[partition].is_open()
}

#[cfg(test)]
mod tests {
    use pyralog_engine::{
        record::{ServerFields, stamp},
        types::{Incarnation, LeaderEpoch, Offset},
    };

    use super::*;
    use crate::{checking::PartitionJudge, ledger::Ledger, workloads::readback::judge_batches};

    /// The way from the maker to the judge, without a server between them.
    #[test]
    fn what_the_maker_makes_the_judge_finds_clean() {
        let dataset = Dataset::new(1, 100);
        let (mut maker, mut ledger) = (BatchMaker::new(&dataset, 10, Codec::None), Ledger::default());
        let sequences = ledger.begin(10);
        let first = Identity { writer: 0, partition: 2, sequence: sequences.start };
        let mut batch = maker.make(&dataset, first, 10).unwrap().0.to_vec();
        ledger.acknowledged(sequences, 0);
        let fields = ServerFields {
            base_offset: Offset(0),
            durable_hint: Offset(0),
            leader_epoch: LeaderEpoch(1),
            incarnation: Incarnation(1),
        };
        stamp(&mut batch, fields);

        let mut judge = PartitionJudge::new(&dataset, 2, [&ledger]);
        assert_eq!(judge_batches(&mut judge, batch.into()), 10);
        assert!(judge.finish().is_clean());
    }
}

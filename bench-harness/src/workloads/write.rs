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
};
use pyralog_net::client::Error;

use super::Connection;
use crate::{
    checking::Kind,
    dataset::{Dataset, Identity},
};

/// Bytes of a record around its value, at most: lengths, time, counts.
const RECORD_OVERHEAD_BYTES: usize = 24;

/// How long to leave a server alone that said it is overloaded.
const OVERLOADED_PAUSE: Duration = Duration::from_millis(5);

/// Builds the batches of one task.
pub struct BatchMaker {
    builder: BatchBuilder,
    value: Vec<u8>,
}

impl BatchMaker {
    /// A maker of batches of `records` values of `dataset`.
    pub fn new(dataset: &Dataset, records: u32) -> Self {
        let bytes = BATCH_HEADER_BYTES + records as usize * (dataset.value_bytes() + RECORD_OVERHEAD_BYTES);
        let builder = BatchBuilder::with_capacity(Codec::None, bytes);
        BatchMaker { builder, value: vec![0; dataset.value_bytes()] }
    }

    /// A batch of `records` values, the first of which is `first`'s.
    ///
    /// Errors: the batch would be above the limit.
    pub fn make(&mut self, dataset: &Dataset, first: Identity, records: u32) -> Result<Bytes, BatchError> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64);
        for n in 0..u64::from(records) {
            dataset.write(Identity { sequence: first.sequence + n, ..first }, &mut self.value);
            self.builder.push(None, &self.value, &[], now_ms)?;
        }
        self.builder.finish()
    }
}

/// Keeps one request in flight until there is no more to do.
pub async fn keep_one_in_flight(connection: Rc<Connection>) {
    let (plan, dataset) = (&connection.job.plan, &connection.job.dataset);
    let mut maker = BatchMaker::new(dataset, plan.batch);
    while let Some(due) = connection.next().await {
        // No wait from here until the batch is handed over: sequences go out in the order in which they are taken.
        let partition = connection.next_partition();
        let sequences = connection.ledgers.borrow_mut()[partition].begin(u64::from(plan.batch));
        let first = Identity { writer: connection.number, partition: partition as u16, sequence: sequences.start };
        let pending = match maker.make(dataset, first, plan.batch) {
            Ok(batch) => connection.partitions[partition].append(batch, plan.ack),
            Err(error) => return connection.recorder.failed(&error.to_string()),
        };
        match pending.await {
            Ok(appended) => {
                connection.recorder.answered(due, u64::from(plan.batch));
                connection.note_level(appended.level);
                check_ack(&connection, &appended);
                connection.ledgers.borrow_mut()[partition].acknowledged(sequences, appended.base_offset.0);
                connection.job.done.fetch_add(u64::from(plan.batch), Relaxed);
            }
            Err(error) => {
                connection.recorder.failed(&error.to_string());
                if !error.is_unknown() {
                    connection.ledgers.borrow_mut()[partition].refused(sequences);
                }
                if !may_go_on(&connection, partition, &error).await {
                    return;
                }
            }
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
        connection.recorder.failed(&format!("acknowledged as {} only", appended.level));
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
        let (mut maker, mut ledger) = (BatchMaker::new(&dataset, 10), Ledger::default());
        let sequences = ledger.begin(10);
        let first = Identity { writer: 0, partition: 2, sequence: sequences.start };
        let mut batch = maker.make(&dataset, first, 10).unwrap().to_vec();
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

//! Reads records that were prepared: one a request at any offset, or all of them in sequence. Every record read is
//! checked.
//!
//! What was prepared has one writer and nothing failed, so that the record at an offset has that sequence: each record
//! tells by itself whether it is the one asked for.

use std::{cell::Cell, rc::Rc, sync::atomic::Ordering::Relaxed};

use bytes::Bytes;
use pyralog_engine::{
    record::{BatchError, split_batches},
    types::Offset,
};

use super::{Connection, Job};
use crate::{
    args::Order,
    checking::{Defects, Kind},
    dataset::{Identity, splitmix},
    measuring::{Amount, Side},
    target::at_once,
};

/// How many records of a partition are its tail.
pub const TAIL_RECORDS: u64 = 1000;

/// Keeps one request for one record in flight. `task` tells the tasks of a connection apart.
pub async fn read_single(connection: Rc<Connection>, task: u32) {
    let plan = &connection.job.plan;
    let mut chance = u64::from(task) << 32 | u64::from(connection.number);
    let per_partition = records_per_partition(&connection);
    let mut next = chance % per_partition;
    while let Some(turn) = connection.next().await {
        let partition = connection.next_partition();
        let offset = match plan.order {
            Order::Random => splitmix(&mut chance) % per_partition,
            Order::Sequential => next,
            Order::Tail => per_partition - 1 - splitmix(&mut chance) % per_partition.min(TAIL_RECORDS),
        };
        next = (offset + 1) % per_partition;
        match connection.partitions[partition].fetch(Offset(offset), at_once(1)).await {
            Ok(reply) => {
                let found = check(&connection, partition, offset, reply.batches);
                if found.records == 0 {
                    missing(&connection, partition, offset);
                }
                connection.answered(Side::Main, turn, found);
            }
            Err(error) => {
                connection.failed(Side::Main, &error.to_string());
                if !connection.partitions[partition].is_open() {
                    return;
                }
            }
        }
    }
}

/// Reads a stretch of a partition in sequence, over and over, one request at a time. `task` of `tasks` has its own
/// stretch.
pub async fn read_sequential(connection: Rc<Connection>, task: u32, tasks: u32) {
    let plan = &connection.job.plan;
    let partition = task as usize % connection.partitions.len();
    let (per_partition, share) = (records_per_partition(&connection), connection.partitions.len() as u64);
    // Tasks that share a partition begin at different places, so that they do not all read the same batch at once.
    let begin = u64::from(task) / share * per_partition / u64::from(tasks).div_ceil(share);
    let next = Cell::new(begin % per_partition);
    while let Some(turn) = connection.next().await {
        let offset = next.get();
        match connection.partitions[partition].fetch(Offset(offset), at_once(plan.fetch_bytes)).await {
            Ok(reply) => {
                let found = check(&connection, partition, offset, reply.batches);
                if found.records == 0 {
                    return missing(&connection, partition, offset);
                }
                let end = offset + found.records;
                next.set(if end >= per_partition { 0 } else { end });
                connection.answered(Side::Main, turn, found);
            }
            Err(error) => {
                connection.failed(Side::Main, &error.to_string());
                if !connection.partitions[partition].is_open() {
                    return;
                }
            }
        }
    }
}

/// How many records each partition was given.
fn records_per_partition(connection: &Connection) -> u64 {
    let plan = &connection.job.plan;
    prepared_requests(plan.prepare, plan.batch, plan.partitions) / u64::from(plan.partitions) * u64::from(plan.batch)
}

/// How many batches to prepare: as many as asked for, the same number and at least one in each partition.
pub fn prepared_requests(records: u64, batch: u32, partitions: u32) -> u64 {
    let partitions = u64::from(partitions);
    records.div_ceil(u64::from(batch)).div_ceil(partitions).max(1) * partitions
}

/// Checks the records from `wanted` on, which must follow each other, and returns how much they were.
fn check(connection: &Connection, partition: usize, wanted: u64, batches: Bytes) -> Amount {
    let defects = &mut connection.defects.borrow_mut();
    let mut reading = Reading { job: &connection.job, partition, next: wanted, bytes: 0, only: Some(0), defects };
    reading.check(batches);
    let amount = Amount { records: reading.next - wanted, bytes: reading.bytes };
    connection.job.done.fetch_add(amount.records, Relaxed);
    amount
}

/// Checks the records from `wanted` on, whoever wrote them; returns the offset after the last and how much they were.
pub fn check_any(job: &Job, partition: usize, wanted: u64, batches: Bytes, defects: &mut Defects) -> (u64, Amount) {
    let mut reading = Reading { job, partition, next: wanted, bytes: 0, only: None, defects };
    reading.check(batches);
    (reading.next, Amount { records: reading.next - wanted, bytes: reading.bytes })
}

/// One reply that is checked.
struct Reading<'a> {
    job: &'a Job,
    partition: usize,
    /// The offset that is next.
    next: u64,
    bytes: u64,
    /// The only writer, if there is only one: its sequences are the offsets then.
    only: Option<u16>,
    defects: &'a mut Defects,
}

impl Reading<'_> {
    fn check(&mut self, batches: Bytes) {
        if let Err(error) = self.check_all(batches) {
            let (partition, next) = (self.partition, self.next);
            self.defects.note(Kind::Corrupt, 1, || format!("partition {partition}, offset {next}: {error}"));
        }
    }

    fn check_all(&mut self, batches: Bytes) -> Result<(), BatchError> {
        for batch in split_batches(batches) {
            for record in batch?.records()?.borrowed() {
                let record = record?;
                let (partition, offset, next) = (self.partition, record.offset.0, self.next);
                if offset < next {
                    continue;
                }
                if offset > next {
                    let what = || format!("partition {partition}: offset {offset} follows where {next} should");
                    self.defects.note(Kind::Reordered, 1, what);
                }
                let found = self.job.dataset.read(record.value);
                let is_right = found.is_ok_and(|found| self.is_expected(found, offset, record.key));
                if !is_right {
                    self.defects
                        .note(Kind::Corrupt, 1, || format!("partition {partition}, offset {offset}: {found:?}"));
                }
                self.bytes += (record.value.len() + record.key.map_or(0, <[u8]>::len)) as u64;
                self.next = offset + 1;
            }
        }
        Ok(())
    }

    fn is_expected(&self, found: Identity, offset: u64, key: Option<&[u8]>) -> bool {
        let whose = self.only.is_none_or(|writer| (found.writer, found.sequence) == (writer, offset));
        let keyed = !self.job.dataset.has_keys() || self.job.dataset.key(found) == key;
        usize::from(found.partition) == self.partition && whose && keyed
    }
}

fn missing(connection: &Connection, partition: usize, offset: u64) {
    let what = || format!("partition {partition}, offset {offset}: nothing came, and the record was acknowledged");
    connection.defects.borrow_mut().note(Kind::Lost, 1, what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_is_prepared_with_the_same_number_of_whole_batches() {
        assert_eq!(prepared_requests(100_000, 1, 4), 100_000);
        assert_eq!(prepared_requests(2_000_000, 1000, 3), 2001);
        assert_eq!(prepared_requests(0, 10, 4), 4);
    }
}

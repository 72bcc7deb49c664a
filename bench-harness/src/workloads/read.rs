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

use super::Connection;
use crate::{
    args::Order,
    checking::Kind,
    dataset::{Identity, splitmix},
    target::at_once,
};

/// Keeps one request for one record in flight. `task` tells the tasks of a connection apart.
pub async fn read_single(connection: Rc<Connection>, task: u32) {
    let plan = &connection.job.plan;
    let mut chance = u64::from(task) << 32 | u64::from(connection.number);
    let per_partition = records_per_partition(&connection);
    let mut next = chance % per_partition;
    while let Some(due) = connection.next().await {
        let partition = connection.next_partition();
        let offset = match plan.order {
            Order::Random => splitmix(&mut chance) % per_partition,
            Order::Sequential => next,
        };
        next = (offset + 1) % per_partition;
        match connection.partitions[partition].fetch(Offset(offset), at_once(1)).await {
            Ok(reply) => {
                let found = check(&connection, partition, offset, reply.batches);
                if found == 0 {
                    missing(&connection, partition, offset);
                }
                connection.recorder.answered(due, found.min(1));
            }
            Err(error) => {
                connection.recorder.failed(&error.to_string());
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
    while let Some(due) = connection.next().await {
        let offset = next.get();
        match connection.partitions[partition].fetch(Offset(offset), at_once(plan.fetch_bytes)).await {
            Ok(reply) => {
                let found = check(&connection, partition, offset, reply.batches);
                if found == 0 {
                    return missing(&connection, partition, offset);
                }
                next.set(if offset + found >= per_partition { 0 } else { offset + found });
                connection.recorder.answered(due, found);
            }
            Err(error) => {
                connection.recorder.failed(&error.to_string());
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

/// Checks the records from `wanted` on, which must follow each other, and returns how many there were.
fn check(connection: &Connection, partition: usize, wanted: u64, batches: Bytes) -> u64 {
    let mut next = wanted;
    let outcome = check_all(connection, partition, &mut next, batches);
    if let Err(error) = outcome {
        let what = || format!("partition {partition}, offset {next}: {error}");
        connection.defects.borrow_mut().note(Kind::Corrupt, 1, what);
    }
    connection.job.done.fetch_add(next - wanted, Relaxed);
    next - wanted
}

fn check_all(connection: &Connection, partition: usize, next: &mut u64, batches: Bytes) -> Result<(), BatchError> {
    for batch in split_batches(batches) {
        for record in batch?.records()?.borrowed() {
            let record = record?;
            let offset = record.offset.0;
            if offset < *next {
                continue;
            }
            if offset > *next {
                let what = || format!("partition {partition}: offset {offset} follows where {next} should");
                connection.defects.borrow_mut().note(Kind::Reordered, 1, what);
            }
            let expected = Identity { writer: 0, partition: partition as u16, sequence: offset };
            let found = connection.job.dataset.read(record.value);
            if found != Ok(expected) {
                let what = || format!("partition {partition}, offset {offset}: {found:?}");
                connection.defects.borrow_mut().note(Kind::Corrupt, 1, what);
            }
            *next = offset + 1;
        }
    }
    Ok(())
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

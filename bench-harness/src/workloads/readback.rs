//! Reads every partition back from its first record to its last and lets the judge see each record.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use pyralog_engine::{
    record::{BatchError, BatchView, split_batches},
    types::Offset,
};
use pyralog_net::client::{FetchOptions, PartitionHandle};

use super::Job;
use crate::{
    checking::{Defects, PartitionJudge},
    ledger::Ledger,
    target::HarnessError,
};

/// Bytes that one request asks for.
const FETCH_BYTES: u32 = 1 << 20;

/// How long acknowledged records may take to become visible before they are called lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// Reads all partitions at the same time. `ledgers` are the writers', each by partition.
///
/// Errors: a fetch failed, so that nothing can be said of what was stored.
pub async fn judge_log(
    job: &Job,
    partitions: &[PartitionHandle],
    ledgers: &[Vec<Ledger>],
) -> Result<Defects, HarnessError> {
    let read = |(number, handle)| judge_partition(job, number, handle, ledgers);
    let defects = try_join_all(partitions.iter().enumerate().map(read)).await?;
    Ok(defects.into_iter().fold(Defects::default(), |mut sum, more| {
        sum += more;
        sum
    }))
}

async fn judge_partition(
    job: &Job,
    number: usize,
    handle: &PartitionHandle,
    ledgers: &[Vec<Ledger>],
) -> Result<Defects, HarnessError> {
    let own = ledgers.iter().map(|partitions| &partitions[number]);
    let mut judge = PartitionJudge::new(&job.dataset, number as u16, own.clone());
    let acknowledged_end = own.map(Ledger::end_offset).max().unwrap_or(0);
    let mut last_progress = Instant::now();
    while !job.stop.load(Relaxed) {
        let behind = judge.next_offset() < acknowledged_end;
        let max_wait = if behind { Duration::from_millis(500) } else { Duration::ZERO };
        let options = FetchOptions { max_bytes: FETCH_BYTES, max_wait };
        let reply = handle.fetch(Offset(judge.next_offset()), options).await;
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => match error.offset_range().filter(|(start, _)| start.0 > judge.next_offset()) {
                // Retention was faster.
                Some((start, _)) => {
                    judge.expire_before(start.0);
                    last_progress = Instant::now();
                    continue;
                }
                None => return Err(HarnessError::client("reading back what was written")(error)),
            },
        };
        let seen = judge_batches(&mut judge, reply.batches);
        job.done.fetch_add(seen, Relaxed);
        if seen > 0 {
            last_progress = Instant::now();
        } else if !behind || last_progress.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(judge.finish())
}

/// Lets the judge see the records of these batches from the next offset on; returns how many there were.
pub fn judge_batches(judge: &mut PartitionJudge<'_>, batches: Bytes) -> u64 {
    let mut seen = 0;
    for batch in split_batches(batches) {
        if let Err(error) = batch.and_then(|batch| judge_batch(judge, &batch, &mut seen)) {
            judge.unreadable(&error);
            // What follows is not tried: it would be asked for again at the same offset, for ever.
            return 0;
        }
    }
    seen
}

fn judge_batch(judge: &mut PartitionJudge<'_>, batch: &BatchView, seen: &mut u64) -> Result<(), BatchError> {
    let wanted = judge.next_offset();
    for record in batch.records()?.borrowed() {
        let record = record?;
        // The first batch may begin before the offset that was asked for.
        if record.offset.0 >= wanted {
            judge.record(record.offset.0, record.value);
            judge.key(record.offset.0, record.key, record.value);
            *seen += 1;
        }
    }
    Ok(())
}

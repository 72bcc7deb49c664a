//! Readers that read all that was written from the beginning, over and over, while others write: what a consumer that
//! was away for long does to those who are at the tail.

use std::{rc::Rc, time::Duration};

use pyralog_engine::types::Offset;
use pyralog_net::client::PartitionHandle;

use super::{Found, Job, Start, read::check_any};
use crate::{
    measuring::Side,
    target::{HarnessError, at_once},
    turns::{Pacer, Timer},
};

/// Bytes that one request asks for.
const FETCH_BYTES: u32 = 1 << 20;

/// How long to wait for the first record of all.
const NOTHING_YET: Duration = Duration::from_millis(5);

/// Reads the partitions one after the other, from this one on, until the time is over.
pub async fn catch_up(
    job: Job,
    partitions: Vec<PartitionHandle>,
    first: usize,
    start: Start,
) -> Result<Found, HarnessError> {
    let timer = Timer::new().map_err(HarnessError::system("making a timer"))?;
    let pacer = Rc::new(Pacer::new(start.begin, start.end, None, timer));
    let (mut found, mut partition, mut offset) = (Found::default(), first % partitions.len(), 0);
    while let Some(turn) = pacer.next().await {
        match partitions[partition].fetch(Offset(offset), at_once(FETCH_BYTES)).await {
            Ok(reply) if reply.batches.is_empty() => {
                if offset == 0 {
                    tokio::time::sleep(NOTHING_YET).await;
                }
                (partition, offset) = ((partition + 1) % partitions.len(), 0);
            }
            Ok(reply) => {
                let (next, amount) = check_any(&job, partition, offset, reply.batches, &mut found.defects);
                start.recorder.answered(Side::Reads, turn, pacer.now(), amount);
                offset = next;
            }
            Err(error) => {
                start.recorder.failed(Side::Reads, &format!("catching up: {error}"));
                return Ok(found);
            }
        }
    }
    Ok(found)
}

//! Builds the batches of one call and sends them: partitions at the same time, the batches of one partition one after
//! the other, so that a failure in the middle never leaves a later record stored before an earlier one.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use pyralog_engine::{
    limits::BATCH_HEADER_BYTES,
    record::{BatchBuilder, BatchError, Codec},
    shard::request::Appended,
    types::PartitionIndex,
};

use super::{
    AppendOptions, PyralogClient,
    ack::BatchAck,
    builder::Settings,
    error::{Error, Result},
    ids::LogId,
    record::{IntoRecord, Record},
};

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
}

/// A batch of one record.
pub(super) fn single(record: &Record, codec: Codec) -> Result<Bytes> {
    let mut builder = BatchBuilder::new(codec);
    push(&mut builder, record, now_ms())?;
    Ok(builder.finish()?)
}

/// One batch of all these records.
///
/// Errors: `BatchFull` if they do not fit into one.
pub(super) fn whole<I>(records: I, codec: Codec) -> Result<Bytes>
where
    I: IntoIterator,
    I::Item: IntoRecord,
{
    let (mut builder, now_ms) = (BatchBuilder::new(codec), now_ms());
    for record in records {
        push(&mut builder, &record.into_record(), now_ms)?;
    }
    Ok(builder.finish()?)
}

/// Adds a record that has its own time or is given this one.
pub(super) fn push(builder: &mut BatchBuilder, record: &Record, now_ms: i64) -> Result<(), BatchError> {
    let timestamp_ms = record.timestamp_ms.unwrap_or(now_ms);
    builder.push(record.key.as_deref(), &record.value, &record.headers, timestamp_ms)
}

/// Records of one call, by partition.
pub(super) struct Batches {
    now_ms: i64,
    codec: Codec,
    batch_bytes: usize,
    /// Where in `parts` a partition is.
    places: Vec<Option<usize>>,
    parts: Vec<Part>,
}

struct Part {
    partition: PartitionIndex,
    builder: BatchBuilder,
    full: Vec<Bytes>,
}

impl Batches {
    /// For a log of this many partitions; a partition beyond them is the server's to refuse.
    pub fn new(partitions: u32, codec: Codec, settings: &Settings) -> Self {
        Batches {
            now_ms: now_ms(),
            codec,
            batch_bytes: settings.batch_bytes,
            places: vec![None; partitions as usize],
            parts: Vec::new(),
        }
    }

    /// Adds a record.
    ///
    /// Errors: of the record.
    pub fn push(&mut self, partition: PartitionIndex, record: &Record) -> Result<()> {
        let place = self.place(partition);
        let part = &mut self.parts[place];
        let room = self.batch_bytes.saturating_sub(part.builder.len_bytes());
        if !part.builder.is_empty() && record.len_bytes() > room {
            part.full.push(part.builder.finish()?);
        }
        match push(&mut part.builder, record, self.now_ms) {
            Err(BatchError::BatchFull) => {
                part.full.push(part.builder.finish()?);
                Ok(push(&mut part.builder, record, self.now_ms)?)
            }
            outcome => Ok(outcome?),
        }
    }

    fn place(&mut self, partition: PartitionIndex) -> usize {
        let known = self.places.get(partition.0 as usize).copied().flatten();
        let known = known.or_else(|| self.parts.iter().position(|part| part.partition == partition));
        known.unwrap_or_else(|| {
            // The first batch of a call starts small: most calls have few records for each of many partitions.
            let builder = BatchBuilder::with_capacity(self.codec, BATCH_HEADER_BYTES + (8 << 10));
            self.parts.push(Part { partition, builder, full: Vec::new() });
            let place = self.parts.len() - 1;
            if let Some(slot) = self.places.get_mut(partition.0 as usize) {
                *slot = Some(place);
            }
            place
        })
    }

    /// Sends everything.
    pub async fn send(mut self, client: &PyralogClient, log: &LogId) -> Result<BatchAck> {
        for part in &mut self.parts {
            if !part.builder.is_empty() {
                part.full.push(part.builder.finish()?);
            }
        }
        let outcomes = match &self.parts[..] {
            [part] => vec![part.send(client, log).await],
            parts => join_all(parts.iter().map(|part| part.send(client, log))).await,
        };
        let (mut ack, mut first_error) = (BatchAck::empty(), None);
        for (part, (stored, error)) in self.parts.iter().zip(outcomes) {
            stored.iter().for_each(|appended| ack.add(part.partition, appended));
            // An unknown outcome says more than a refusal: it is the one to be told.
            first_error = match (first_error, error) {
                (Some(first), Some(Error::Unknown { reason })) if !Error::is_unknown(&first) => {
                    Some(Error::Unknown { reason })
                }
                (first, error) => first.or(error),
            };
        }
        match first_error {
            None => Ok(ack),
            Some(error) if ack.partitions.is_empty() => Err(error),
            Some(error) => Err(Error::Partial { stored: Box::new(ack), error: Box::new(error) }),
        }
    }
}

impl Part {
    async fn send(&self, client: &PyralogClient, log: &LogId) -> (Vec<Appended>, Option<Error>) {
        let mut stored = Vec::with_capacity(self.full.len());
        for batch in &self.full {
            match client.append_batch(log, self.partition, batch.clone(), AppendOptions::default()).await {
                Ok(appended) => stored.push(appended),
                Err(error) => return (stored, Some(error)),
            }
        }
        (stored, None)
    }
}

//! Building batches: the client's hot path.
//!
//! Records are encoded straight behind room left for the header, so a batch is written once, checksummed in one pass,
//! and handed on without a copy. A builder that makes one batch of one record allocates once, exactly what the batch
//! takes; a builder that is used again starts with the size of its last batch.

use bytes::Bytes;

use super::{
    RECORD_BYTES_MIN,
    codec::{Codec, Compressor},
    error::BatchError,
    header::{ClientFields, ProducerFields, seal},
    varint::{VARINT_BYTES_MAX, VarintRow, signed_len, unsigned_len},
};
use crate::{
    limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, RECORD_BYTES_MAX, RECORD_HEADERS_MAX},
    types::{ProducerId, Sequence},
};

/// Bytes that the lengths of a record take at most: its own, the timestamp, key, value and header count, and two for
/// each header.
const RECORD_OVERHEAD_MAX: usize = VARINT_BYTES_MAX * (5 + 2 * RECORD_HEADERS_MAX);

/// Room for the varint of any length in a record: four bytes reach 256 MiB.
const LENGTH_BYTES: usize = 4;

/// Room for the first varints of a record: its length, its timestamp and the lengths of key and value.
const ROW_BYTES: usize = VARINT_BYTES_MAX + 3 * LENGTH_BYTES;

const _: () = assert!(RECORD_BYTES_MAX + RECORD_OVERHEAD_MAX < 1 << (7 * LENGTH_BYTES - 1), "zigzag takes a bit too");
const _: () = assert!(
    BATCH_HEADER_BYTES + RECORD_BYTES_MAX + RECORD_OVERHEAD_MAX <= BATCH_BYTES_MAX,
    "a record within its limits must fit into an empty batch, or BatchFull would be an endless loop for callers"
);

/// Collects records into batches.
#[derive(Debug)]
pub struct BatchBuilder {
    codec: Codec,
    compressor: Compressor,
    /// Room for the header, then the records, not compressed. Without capacity while the batch is empty, unless kept.
    buffer: Vec<u8>,
    /// The capacity to start the next batch with; 0 for just what the first record needs.
    capacity_hint: usize,
    record_count: u32,
    first_timestamp_ms: i64,
    max_timestamp_ms: i64,
    producer: ProducerFields,
}

impl BatchBuilder {
    /// A builder whose batches are compressed by `codec`, unless that makes them longer. Allocates nothing yet.
    pub fn new(codec: Codec) -> Self {
        Self::with_capacity(codec, 0)
    }

    /// As [`Self::new`], with room for `bytes` of batch, header included, once the first record comes.
    pub fn with_capacity(codec: Codec, bytes: usize) -> Self {
        BatchBuilder {
            codec,
            compressor: Compressor::default(),
            buffer: Vec::new(),
            capacity_hint: bytes.min(BATCH_BYTES_MAX),
            record_count: 0,
            first_timestamp_ms: 0,
            max_timestamp_ms: 0,
            producer: ProducerFields::default(),
        }
    }

    /// Makes the present batch an idempotent producer's. Holds for this batch only: the next one has another sequence.
    pub fn producer(&mut self, id: ProducerId, epoch: u32, base_sequence: Sequence) -> &mut Self {
        self.producer = ProducerFields { id, epoch, base_sequence };
        self
    }

    /// Adds a record. `timestamp_ms` counts milliseconds since 1970; records need not be in the order of their
    /// timestamps.
    ///
    /// On an error nothing was added. Errors: `BatchFull`, after which the record fits into the next batch;
    /// `RecordTooLarge` and `TooManyHeaders`, which the record will meet in any batch.
    pub fn push(
        &mut self,
        key: Option<&[u8]>,
        value: &[u8],
        headers: &[(Bytes, Bytes)],
        timestamp_ms: i64,
    ) -> Result<(), BatchError> {
        check_record(key, value, headers)?;
        let first_timestamp_ms = if self.record_count == 0 { timestamp_ms } else { self.first_timestamp_ms };
        // A timestamp more than 2^63 ms from the first one is out of reach in this batch, not in the next.
        let timestamp_delta = timestamp_ms.checked_sub(first_timestamp_ms).ok_or(BatchError::BatchFull)?;
        let len = encoded_len(timestamp_delta, key, value, headers);
        let framed_len = unsigned_len(len as u64) + len;
        if self.record_count == BATCH_RECORDS_MAX || self.len_bytes() + framed_len > BATCH_BYTES_MAX {
            assert!(self.record_count > 0, "a record of {framed_len} bytes passed the limits and fits into no batch");
            return Err(BatchError::BatchFull);
        }

        if self.record_count == 0 {
            self.begin_batch(framed_len);
            self.first_timestamp_ms = timestamp_ms;
            self.max_timestamp_ms = timestamp_ms;
        }
        let end = self.buffer.len() + framed_len;
        let row = VarintRow::<ROW_BYTES>::new().unsigned(len as u64).signed(timestamp_delta);
        match key {
            None => row.signed(-1).unsigned(value.len() as u64).append_to(&mut self.buffer),
            Some(key) => {
                row.signed(key.len() as i64).append_to(&mut self.buffer);
                self.buffer.extend_from_slice(key);
                put_length(&mut self.buffer, value.len());
            }
        }
        self.buffer.extend_from_slice(value);
        put_headers(&mut self.buffer, headers);
        assert!(self.buffer.len() == end, "a record ends at {}, not at {end}", self.buffer.len());
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        self.record_count += 1;
        Ok(())
    }

    /// Bytes of the batch so far, header included, before compression.
    pub fn len_bytes(&self) -> usize {
        self.buffer.len().max(BATCH_HEADER_BYTES)
    }

    /// Records so far.
    pub fn count(&self) -> u32 {
        self.record_count
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Seals the batch and returns it; the builder is then empty and begins the next one.
    ///
    /// Errors: `NoRecords`; `CompressionFailed`, after which the records are still there.
    pub fn finish(&mut self) -> Result<Bytes, BatchError> {
        if self.record_count == 0 {
            return Err(BatchError::NoRecords);
        }
        assert!(self.buffer.len() >= BATCH_HEADER_BYTES + self.record_count as usize * RECORD_BYTES_MIN);
        let mut fields = ClientFields {
            codec: self.codec,
            record_count: self.record_count,
            first_timestamp_ms: self.first_timestamp_ms,
            max_timestamp_ms: self.max_timestamp_ms,
            producer: self.producer,
        };
        let compressed = match self.codec {
            Codec::None => None,
            codec => self.compressor.compress(codec, &self.buffer[BATCH_HEADER_BYTES..])?,
        };
        let batch = match compressed {
            Some(body) => {
                let mut batch = Vec::with_capacity(BATCH_HEADER_BYTES + body.len());
                batch.resize(BATCH_HEADER_BYTES, 0);
                batch.extend_from_slice(body);
                seal(&mut batch, fields);
                // The records' buffer never leaves the builder: the next batch is encoded into the same memory.
                self.buffer.clear();
                batch
            }
            None => {
                fields.codec = Codec::None;
                seal(&mut self.buffer, fields);
                let is_single = self.record_count == 1;
                let len = self.buffer.len();
                self.capacity_hint = if is_single { 0 } else { (len + len / 8).min(BATCH_BYTES_MAX) };
                std::mem::take(&mut self.buffer)
            }
        };
        self.record_count = 0;
        self.producer = ProducerFields::default();
        Ok(Bytes::from(batch))
    }

    /// Leaves room for the header. A first batch of one record gets exactly the memory it takes, so that it becomes
    /// `Bytes` without a second allocation.
    fn begin_batch(&mut self, first_record_len: usize) {
        assert!(self.buffer.is_empty(), "a batch begins with {} bytes of another", self.buffer.len());
        if self.buffer.capacity() == 0 {
            self.buffer = Vec::with_capacity(self.capacity_hint.max(BATCH_HEADER_BYTES + first_record_len));
        }
        self.buffer.resize(BATCH_HEADER_BYTES, 0);
    }
}

#[inline]
fn put_headers(buffer: &mut Vec<u8>, headers: &[(Bytes, Bytes)]) {
    if headers.is_empty() {
        return buffer.push(0);
    }
    put_length(buffer, headers.len());
    for (name, value) in headers {
        for part in [name, value] {
            put_length(buffer, part.len());
            buffer.extend_from_slice(part);
        }
    }
}

#[inline]
fn put_length(buffer: &mut Vec<u8>, len: usize) {
    VarintRow::<LENGTH_BYTES>::new().unsigned(len as u64).append_to(buffer);
}

fn check_record(key: Option<&[u8]>, value: &[u8], headers: &[(Bytes, Bytes)]) -> Result<(), BatchError> {
    if headers.len() > RECORD_HEADERS_MAX {
        return Err(BatchError::TooManyHeaders { count: headers.len() });
    }
    let headers_bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = key.unwrap_or_default().len() + value.len() + headers_bytes;
    if bytes > RECORD_BYTES_MAX {
        return Err(BatchError::RecordTooLarge { bytes });
    }
    Ok(())
}

/// Bytes of the record after its own length.
fn encoded_len(timestamp_delta: i64, key: Option<&[u8]>, value: &[u8], headers: &[(Bytes, Bytes)]) -> usize {
    let prefixed = |len: usize| unsigned_len(len as u64) + len;
    let key = key.map_or(signed_len(-1), |key| signed_len(key.len() as i64) + key.len());
    let headers_len: usize = headers.iter().map(|(name, value)| prefixed(name.len()) + prefixed(value.len())).sum();
    signed_len(timestamp_delta) + key + prefixed(value.len()) + unsigned_len(headers.len() as u64) + headers_len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_given_the_memory_that_the_last_one_needed_and_an_eighth_more() {
        let mut builder = BatchBuilder::new(Codec::None);
        for count in [100, 3, 100] {
            (0..count).for_each(|_| builder.push(None, &[7; 1000], &[], 1).unwrap());
            let len = builder.finish().unwrap().len();
            builder.push(None, &[], &[], 1).unwrap();
            let given = builder.buffer.capacity();
            assert!((len..=len + len / 8).contains(&given), "{given} bytes after a batch of {len}");
            (0..2).for_each(|_| builder.push(None, &[], &[], 1).unwrap());
        }
    }

    #[test]
    fn a_batch_of_one_record_takes_no_more_memory_than_its_bytes() {
        let mut builder = BatchBuilder::new(Codec::None);
        for len in [0, 5000, 10] {
            assert!(builder.is_empty());
            builder.push(Some(b"key"), &vec![7; len], &[], 1).unwrap();
            let given = builder.buffer.capacity();
            assert!(!builder.is_empty());
            assert_eq!(given, builder.finish().unwrap().len());
        }
    }
}

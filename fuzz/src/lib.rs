//! What the fuzz targets share: making bytes pass for a batch, and reading a batch in every way there is.
//!
//! A checksum stops a fuzzer at once, so the targets write the right ones over whatever the input holds. That is also
//! what a hostile client would send.

use bytes::Bytes;
use pyralog_engine::{
    limits::{BATCH_HEADER_BYTES, DECOMPRESSED_BYTES_MAX},
    record::{
        BatchBuilder, BatchError, BatchHeader, BatchView, Codec, Record, ServerFields, check_produced, check_stored,
        stamp,
    },
    types::{Incarnation, LeaderEpoch, Offset},
};

/// Makes `input`, a header and a body, pass the checks of magic, length and the client's checksum. `None` if it has no
/// body.
pub fn with_right_checksum(input: &[u8]) -> Option<Vec<u8>> {
    let body_len = input.len().checked_sub(BATCH_HEADER_BYTES).filter(|&len| len > 0)?;
    let mut batch = input.to_vec();
    batch[..4].copy_from_slice(b"PYR1");
    batch[36..40].copy_from_slice(&(body_len as u32).to_le_bytes());
    let crc = crc32c::crc32c(&batch[36..]);
    batch[32..36].copy_from_slice(&crc.to_le_bytes());
    Some(batch)
}

/// A batch of `count` records by its header, with `body` as it is.
pub fn batch_around(codec: Codec, count: u32, body: &[u8]) -> Option<Vec<u8>> {
    let mut input = vec![0; BATCH_HEADER_BYTES];
    input[40..44].copy_from_slice(&count.to_le_bytes());
    input[44] = codec.code();
    input.extend_from_slice(body);
    with_right_checksum(&input)
}

/// `archive` in the envelope of a sidecar, with the right checksum.
pub fn sealed(magic: [u8; 4], archive: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(archive).to_le_bytes());
    bytes.extend_from_slice(&(archive.len() as u64).to_le_bytes());
    bytes.extend_from_slice(archive);
    bytes
}

/// A batch of `count` records as a segment holds it.
pub fn stored_batch(base_offset: Offset, count: u32, durable_hint: Offset, incarnation: Incarnation) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    for number in 0..count {
        kept(builder.push(None, &number.to_le_bytes(), &[], 0), "a small record fits");
    }
    let mut batch = kept(builder.finish(), "a batch with records can be finished").to_vec();
    stamp(&mut batch, ServerFields { base_offset, durable_hint, leader_epoch: LeaderEpoch(1), incarnation });
    batch
}

/// Takes `batch` the way of a produced one: check, stamp, store, read. Panics where a promise of `record` is broken.
pub fn produce_and_read(mut batch: Vec<u8>) {
    let Ok(produced) = check_produced(&batch) else { return };
    stamp(&mut batch, server_fields_of(&produced));
    let stored = kept(check_stored(&batch), "an accepted batch is valid once it is stamped");
    assert_eq!(
        BatchHeader { server_crc: produced.server_crc, ..stored },
        produced,
        "a stamp changed the client's part"
    );

    let view = kept(BatchView::parse(Bytes::from(batch)), "parse accepts what check_stored accepts");
    if let Some(records) = read(&view) {
        build_and_compare(stored.codec, &records);
    }
}

/// Reads the records of a batch, owned and borrowed; `None` if they break the format.
pub fn read(view: &BatchView) -> Option<Vec<Record>> {
    let records = view.records().ok()?;
    let shared: Vec<_> = records.borrowed().map(|record| record.map(|record| records.share(&record))).collect();
    let owned: Vec<_> = records.collect();
    assert_eq!(owned, shared, "the two ways to read disagree");
    let bytes: usize = owned.iter().flatten().map(|record| record.value.len()).sum();
    assert!(bytes <= DECOMPRESSED_BYTES_MAX, "{bytes} bytes of values came out of one batch");
    let count = owned.len();
    let records = owned.into_iter().collect::<Result<Vec<_>, _>>().ok()?;
    assert_eq!(count, view.header().record_count as usize, "all records are there, or there is an error");
    Some(records)
}

/// Builds batches of `records`, which came out of one, and reads the same out of them.
fn build_and_compare(codec: Codec, records: &[Record]) {
    let mut builder = BatchBuilder::new(codec);
    let mut expected = Vec::new();
    for record in records {
        match builder.push(record.key.as_deref(), &record.value, &record.headers, record.timestamp_ms) {
            Ok(()) => expected.push(record.clone()),
            // Readers accept what fits into a batch; builders keep narrower limits.
            Err(BatchError::RecordTooLarge { .. } | BatchError::BatchFull) => {}
            Err(error) => panic!("a record that was read cannot be written: {error}"),
        }
    }
    let Some(base_offset) = expected.first().map(|record| record.offset) else { return };
    let mut batch = kept(builder.finish(), "a batch with records can be finished").to_vec();
    let produced = kept(check_produced(&batch), "a builder's batch is accepted");
    stamp(&mut batch, ServerFields { base_offset, ..server_fields_of(&produced) });
    let view = kept(BatchView::parse(Bytes::from(batch)), "a builder's batch parses once it is stamped");
    let Some(again) = read(&view) else { panic!("broken: a builder's records parse") };
    assert_eq!(again.len(), expected.len());
    for (index, (mut record, expected)) in again.into_iter().zip(expected).enumerate() {
        assert_eq!(record.offset.0, base_offset.0 + index as u64);
        record.offset = expected.offset;
        assert_eq!(record, expected);
    }
}

/// The server's fields as the header has them.
fn server_fields_of(header: &BatchHeader) -> ServerFields {
    let BatchHeader { base_offset, durable_hint, leader_epoch, incarnation, .. } = *header;
    ServerFields { base_offset, durable_hint, leader_epoch, incarnation }
}

/// The value, or a panic that names the promise of `record` that was broken.
fn kept<T>(result: Result<T, BatchError>, promise: &str) -> T {
    result.unwrap_or_else(|error| panic!("broken: {promise}: {error}"))
}

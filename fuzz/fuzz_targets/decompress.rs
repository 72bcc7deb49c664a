//! Arbitrary bytes as a compressed body, and arbitrary values through the compressors and back.
//!
//! The first byte picks the codec, the next two the number of records; the rest is the body, or the value.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pyralog_engine::{
    record::{BatchBuilder, BatchView, Codec, ServerFields, check_produced, stamp},
    types::{Incarnation, LeaderEpoch, Offset},
};
use pyralog_fuzz::{batch_around, produce_and_read, read};

const SERVER_FIELDS: ServerFields = ServerFields {
    base_offset: Offset(0),
    durable_hint: Offset(0),
    leader_epoch: LeaderEpoch(1),
    incarnation: Incarnation(1),
};

fuzz_target!(|input: &[u8]| {
    let Some((&[choice, low, high], rest)) = input.split_first_chunk() else { return };
    let codec = if choice & 1 == 0 { Codec::Lz4 } else { Codec::Zstd };
    let count = u32::from(u16::from_le_bytes([low, high]));
    if let Some(batch) = batch_around(codec, count, rest) {
        produce_and_read(batch);
    }
    compress_and_decompress(codec, count % 50 + 1, rest);
});

fn compress_and_decompress(codec: Codec, count: u32, value: &[u8]) {
    let mut builder = BatchBuilder::new(codec);
    for _ in 0..count {
        if builder.push(None, value, &[], 0).is_err() {
            break;
        }
    }
    let Ok(batch) = builder.finish() else { return };
    let mut batch = batch.to_vec();
    let header = check_produced(&batch).expect("a builder's batch is accepted");
    stamp(&mut batch, SERVER_FIELDS);
    let view = BatchView::parse(Bytes::from(batch)).expect("it was stamped");
    let records = read(&view).expect("a builder's records parse");
    assert_eq!(records.len(), header.record_count as usize);
    assert!(records.iter().all(|record| record.value == value));
}

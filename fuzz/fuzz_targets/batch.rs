//! Arbitrary bytes as a batch: as they are, and once more with the right checksums, as a hostile client sends them.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pyralog_engine::record::{check_produced, check_stored, check_stored_header, split_batches};
use pyralog_fuzz::{produce_and_read, read, with_right_checksum};

fuzz_target!(|input: &[u8]| {
    let _ = check_produced(input);
    let _ = check_stored(input);
    let _ = check_stored_header(input);
    for view in split_batches(Bytes::copy_from_slice(input)).flatten() {
        read(&view);
    }
    if let Some(batch) = with_right_checksum(input) {
        produce_and_read(batch);
    }
});

//! Arbitrary bytes as the sidecars of a segment, its index and its snapshot of producers: as they are, and once more in
//! an envelope whose checksum is right, so that the archive itself is met.
//!
//! The first bytes are the key that the sidecar should have. What is accepted must come out the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyralog_engine::{
    log::{
        index::{Index, SidecarKey},
        producer_snapshot::{self, SnapshotKey},
    },
    types::{Incarnation, Offset},
};
use pyralog_fuzz::sealed;

fuzz_target!(|input: &[u8]| {
    let Some((incarnation, rest)) = input.split_first_chunk() else { return };
    let Some((number, rest)) = rest.split_first_chunk() else { return };
    let (incarnation, number) = (Incarnation(u32::from_le_bytes(*incarnation)), u64::from_le_bytes(*number));
    let key = SidecarKey { incarnation, end_position: number };
    for bytes in [rest.to_vec(), sealed(*b"PYI1", rest)] {
        let Some(index) = Index::from_sidecar(&bytes, key) else { continue };
        assert_eq!(Index::from_sidecar(&index.to_sidecar(key), key).as_ref(), Some(&index));
        let mut blocks = 0;
        while let Some(block) = index.block(blocks) {
            assert!(block.end.is_none_or(|end| end > block.start), "a block of an index that is accepted is empty");
            let first = index.entry_offset(blocks);
            assert_eq!(first.and_then(|offset| index.block_of(offset)), Some(block));
            blocks += 1;
        }
        let _ = (index.block_of(Offset(number)), index.block_of_time(number as i64), index.max_timestamp());
    }
    let key = SnapshotKey { incarnation, base_offset: Offset(number) };
    for bytes in [rest.to_vec(), sealed(*b"PYP1", rest)] {
        let Some(history) = producer_snapshot::from_sidecar(&bytes, key) else { continue };
        let again = producer_snapshot::to_sidecar(&history, key);
        let again = producer_snapshot::from_sidecar(&again, key).expect("what was accepted is accepted again");
        assert_eq!(format!("{history:?}"), format!("{again:?}"));
    }
});

//! The batch of records: one contiguous byte string from the client's builder to the disk to the consumer.
//!
//! The client builds, compresses and checksums it; the server checks the header and the checksum, stamps its own fields
//! in place and never looks at a record; consumers get the stored bytes and decode them. This module owns that format
//! (`docs/FORMAT.md`) and is used by client and server alike. It is pure: no file, no clock, no `async`.
//!
//! It promises that bytes from anywhere give a batch or a [`BatchError`], never a panic, and never an allocation larger
//! than the limits of [`crate::limits`].

mod builder;
mod codec;
mod error;
mod header;
mod producers;
pub mod sequencer;
mod varint;
mod view;

pub use builder::BatchBuilder;
pub use codec::Codec;
pub use error::BatchError;
pub use header::{
    BatchHeader, ServerFields, check_produced, check_stored, check_stored_header, find_stored_header, len_if_before,
    mark_producer, stamp,
};
pub use producers::{KeptBatch, KeptProducer, ProducerHistory, ProducerMark};
pub use view::{BatchView, Batches, HeaderRefs, Record, RecordRef, RecordRefs, Records, split_batches};

/// Bytes of the shortest record: length, timestamp delta, key length, value length and header count in a byte each.
const RECORD_BYTES_MIN: usize = 5;

#[cfg(test)]
mod tests;

//! What can be wrong with a batch. Every variant says what was found and what is allowed, because its text reaches the
//! user.

use thiserror::Error;

use super::{RECORD_BYTES_MIN, codec::Codec, header::MAGIC};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, DECOMPRESSED_BYTES_MAX, RECORD_BYTES_MAX,
    RECORD_HEADERS_MAX,
};

/// Why bytes are not a batch, or why a record was not added to one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// There are fewer bytes than a header has.
    #[error("a batch begins with a header of {BATCH_HEADER_BYTES} bytes, and there are only {have}")]
    HeaderTruncated {
        /// Bytes given.
        have: usize,
    },
    /// The first four bytes are not a batch's, or are those of another version of the format.
    #[error("a batch begins with `{}`, not with `{}`", MAGIC.escape_ascii(), found.escape_ascii())]
    WrongMagic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// The codec's number is unknown.
    #[error("codec {code} is unknown; there are 0 (none), 1 (lz4) and 2 (zstd)")]
    UnknownCodec {
        /// The number found.
        code: u8,
    },
    /// Flags are set that this version does not know, so it cannot honour them.
    #[error("flags {flags:#04x} are unknown; no flag is defined")]
    UnknownFlags {
        /// The flags found.
        flags: u8,
    },
    /// The reserved field is in use.
    #[error("the reserved field is {value:#06x}; it must be 0")]
    ReservedNotZero {
        /// The value found.
        value: u16,
    },
    /// The batch has no record.
    #[error("the batch has no record; it must have 1 to {BATCH_RECORDS_MAX}")]
    NoRecords,
    /// The batch has too many records.
    #[error("the batch has {count} records; it must have 1 to {BATCH_RECORDS_MAX}")]
    TooManyRecords {
        /// The number declared.
        count: u32,
    },
    /// The batch is too long.
    #[error("the batch has {bytes} bytes; at most {BATCH_BYTES_MAX} are allowed, header included")]
    BatchTooLarge {
        /// The length declared, header included.
        bytes: u64,
    },
    /// The body cannot hold the records declared.
    #[error("{count} records cannot fit into {bytes} bytes: each takes at least {RECORD_BYTES_MIN}")]
    BodyTooSmall {
        /// The number of records declared.
        count: u32,
        /// Bytes of the records, after decompression.
        bytes: usize,
    },
    /// The newest timestamp is older than the first record's.
    #[error("the newest timestamp, {max_ms} ms, is older than the first record's, {first_ms} ms")]
    TimestampsReversed {
        /// The first record's, in milliseconds since 1970.
        first_ms: i64,
        /// The newest declared.
        max_ms: i64,
    },
    /// The last record's offset would pass the largest offset.
    #[error("{count} records from offset {base} pass the largest offset, {max}", max = u64::MAX)]
    OffsetsOverflow {
        /// The base offset found.
        base: u64,
        /// The number of records.
        count: u32,
    },
    /// The bytes are not exactly one batch.
    #[error("the header declares a batch of {declared} bytes, and there are {have}")]
    LengthMismatch {
        /// Bytes declared, header included.
        declared: usize,
        /// Bytes given.
        have: usize,
    },
    /// The client's part was changed after the client wrote it.
    #[error("the checksum of the batch is {stored:#010x}, but its bytes give {computed:#010x}")]
    ChecksumMismatch {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The header was changed after the server stamped it, or its parts are of different batches, or it was never
    /// stamped.
    #[error("the checksum of the stored header is {stored:#010x}, but its bytes give {computed:#010x}")]
    ServerChecksumMismatch {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The record is over the limit.
    #[error("the record has {bytes} bytes; at most {RECORD_BYTES_MAX} are allowed for key, value and headers together")]
    RecordTooLarge {
        /// Bytes of key, value and headers.
        bytes: usize,
    },
    /// The record has too many headers.
    #[error("the record has {count} headers; at most {RECORD_HEADERS_MAX} are allowed")]
    TooManyHeaders {
        /// How many it has.
        count: usize,
    },
    /// The batch has no room for this record, which would fit into an empty one: finish this batch and push the record
    /// again.
    #[error("the batch is full")]
    BatchFull,
    /// A record of the batch breaks the format, though the checksums are right: the client that built it is broken.
    #[error("record {index} of the batch is malformed: {problem}")]
    MalformedRecord {
        /// Which record, counted from 0.
        index: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// Bytes follow the last record.
    #[error("{bytes} bytes follow the last of the {count} records that the batch declares")]
    TrailingBytes {
        /// How many.
        bytes: usize,
        /// The number of records declared.
        count: u32,
    },
    /// The records would be too long after decompression. Nothing was decompressed.
    #[error("the records have {bytes} bytes after decompression; at most {DECOMPRESSED_BYTES_MAX} are allowed")]
    DecompressedTooLarge {
        /// The length declared.
        bytes: u64,
    },
    /// The compressed records are damaged.
    #[error("the records cannot be decompressed by {codec}: {problem}")]
    DecompressionFailed {
        /// The codec declared.
        codec: Codec,
        /// What is wrong.
        problem: &'static str,
    },
    /// The compressor failed: a fault of its library, or no memory.
    #[error("the records cannot be compressed by {codec}: {problem}")]
    CompressionFailed {
        /// The codec asked for.
        codec: Codec,
        /// The library's words.
        problem: &'static str,
    },
}

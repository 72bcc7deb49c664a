//! The fixed header of a batch: its layout, its limits and its two checksums.
//!
//! The header has two authors. The client writes what it knows before sending, and seals it together with the records
//! under `crc`. The server adds what only it knows, the offset above all, and seals the whole header, `crc` included,
//! under `server_crc`: so it stamps a batch without touching the records again, the stamp cannot be taken for another
//! batch's, and a walk from header to header trusts every field it sees, the length that leads to the next one above
//! all.

use std::mem::offset_of;

use bytes::{Bytes, BytesMut};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I64, U16, U32, U64},
};

use super::{RECORD_BYTES_MIN, codec::Codec, error::BatchError};
use crate::{
    limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX},
    types::{Incarnation, LeaderEpoch, Offset, ProducerId, Sequence},
};

/// The first bytes of every batch; the last of them is the version of the format.
pub(super) const MAGIC: [u8; 4] = *b"PYR1";

/// The header as it lies in the batch. All integers are little-endian.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: [u8; 4],
    pub(super) server_crc: U32,
    // The server's fields; zero as the client builds them.
    pub(super) base_offset: U64,
    pub(super) durable_hint: U64,
    pub(super) leader_epoch: U32,
    pub(super) incarnation: U32,
    // The client's fields.
    pub(super) crc: U32,
    pub(super) body_len: U32,
    pub(super) record_count: U32,
    pub(super) codec: u8,
    pub(super) flags: u8,
    pub(super) reserved: U16,
    pub(super) first_timestamp: I64,
    pub(super) max_timestamp: I64,
    pub(super) producer_id: U64,
    pub(super) producer_epoch: U32,
    pub(super) base_sequence: U32,
}

/// Where the bytes begin that `server_crc` covers, up to the end of the header: after itself.
const SERVER_CRC_FROM: usize = offset_of!(RawHeader, base_offset);
/// Where the bytes begin that `crc` covers, up to the end of the batch.
const CRC_FROM: usize = offset_of!(RawHeader, body_len);
/// Where `crc` lies.
const CRC_AT: usize = offset_of!(RawHeader, crc);

const _: () = assert!(size_of::<RawHeader>() == BATCH_HEADER_BYTES, "the layout and the limit disagree");
const _: () = assert!(offset_of!(RawHeader, server_crc) == 4);
const _: () = assert!(SERVER_CRC_FROM == 8 && CRC_AT == 32 && CRC_FROM == 36);
const _: () =
    assert!(SERVER_CRC_FROM < CRC_AT && CRC_AT + 4 == CRC_FROM, "the server's checksum must cover the client's");
const _: () = assert!(offset_of!(RawHeader, first_timestamp) == 48 && offset_of!(RawHeader, base_sequence) == 76);

/// The decoded header of a batch. Numbers are within the limits, but true only once the checksums were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// CRC-32C of all of the header that follows it; 0 before stamping.
    pub server_crc: u32,
    /// The offset of the first record; 0 before stamping.
    pub base_offset: Offset,
    /// The durable end of the partition known when the batch was stamped; 0 before. Damage below it is corruption, not
    /// a torn tail.
    pub durable_hint: Offset,
    /// The reign in which the batch was appended; 0 before stamping.
    pub leader_epoch: LeaderEpoch,
    /// The life of the segment file that the batch was written to; 0 before stamping.
    pub incarnation: Incarnation,
    /// CRC-32C of the client's fields and the body. Serves as the batch's fingerprint.
    pub crc: u32,
    /// Bytes after the header, as compressed.
    pub body_len: u32,
    /// Records; 1 to `BATCH_RECORDS_MAX`.
    pub record_count: u32,
    /// How the body is compressed.
    pub codec: Codec,
    /// The first record's timestamp, in milliseconds since 1970.
    pub first_timestamp_ms: i64,
    /// The newest timestamp among the records, as the client says; not before the first.
    pub max_timestamp_ms: i64,
    /// The idempotent producer; 0 for none.
    pub producer_id: ProducerId,
    /// Which life of the producer; 0 for none.
    pub producer_epoch: u32,
    /// The first record's place in the producer's sequence; 0 for none.
    pub base_sequence: Sequence,
}

/// What the server writes into a batch when it gives it its place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerFields {
    /// The offset of the first record.
    pub base_offset: Offset,
    /// The durable end of the partition known now.
    pub durable_hint: Offset,
    /// The present reign.
    pub leader_epoch: LeaderEpoch,
    /// The life of the segment file that the batch goes to.
    pub incarnation: Incarnation,
}

/// What the client's builder knows of a batch beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientFields {
    pub(super) codec: Codec,
    pub(super) record_count: u32,
    pub(super) first_timestamp_ms: i64,
    pub(super) max_timestamp_ms: i64,
    pub(super) producer: ProducerFields,
}

/// An idempotent producer's mark; all zero for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProducerFields {
    pub(super) id: ProducerId,
    pub(super) epoch: u32,
    pub(super) base_sequence: Sequence,
}

/// Writes the client's header, with the server's fields zero and the client's checksum, before the body that lies in
/// `batch`.
///
/// Panics if the batch breaks a limit: the builder keeps them.
pub(super) fn seal(batch: &mut [u8], fields: ClientFields) {
    assert!(batch.len() > BATCH_HEADER_BYTES, "a batch of {} bytes has no body", batch.len());
    assert!(batch.len() <= BATCH_BYTES_MAX, "a batch of {} bytes was built", batch.len());
    let raw = RawHeader {
        magic: MAGIC,
        server_crc: U32::ZERO,
        base_offset: U64::ZERO,
        durable_hint: U64::ZERO,
        leader_epoch: U32::ZERO,
        incarnation: U32::ZERO,
        crc: U32::ZERO,
        body_len: U32::new((batch.len() - BATCH_HEADER_BYTES) as u32),
        record_count: fields.record_count.into(),
        codec: fields.codec.code(),
        flags: 0,
        reserved: U16::ZERO,
        first_timestamp: fields.first_timestamp_ms.into(),
        max_timestamp: fields.max_timestamp_ms.into(),
        producer_id: fields.producer.id.0.into(),
        producer_epoch: fields.producer.epoch.into(),
        base_sequence: fields.producer.base_sequence.0.into(),
    };
    batch[..BATCH_HEADER_BYTES].copy_from_slice(raw.as_bytes());
    let crc = crc32c::crc32c(&batch[CRC_FROM..]);
    batch[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_le_bytes());
    debug_assert!(check_produced(batch).is_ok(), "a batch was built that the server would refuse");
}

/// Checks what a client sent: the bytes are exactly one batch, within the limits, and intact. One pass over the bytes.
///
/// Whatever the server's fields hold is not looked at: [`stamp`] overwrites them.
///
/// Errors: those of [`BatchHeader::decode`], `LengthMismatch`, `ChecksumMismatch`.
pub fn check_produced(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(batch)?;
    check_exact_length(&header, batch)?;
    check_client_crc(&header, batch)?;
    Ok(header)
}

/// Marks a sealed batch as a producer's, whatever its mark was, and seals it anew: one pass over its bytes, and a copy
/// if others hold them.
///
/// Panics if `batch` is no batch.
pub fn mark_producer(batch: Bytes, id: ProducerId, epoch: u32, base_sequence: Sequence) -> Bytes {
    let mut batch = batch.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let (raw, _) = RawHeader::mut_from_prefix(&mut batch).expect("a header fits"); // why: the caller built a batch
    assert!(raw.magic == MAGIC, "marking {:02x?}, which is no batch", raw.magic);
    raw.producer_id = id.0.into();
    raw.producer_epoch = epoch.into();
    raw.base_sequence = base_sequence.0.into();
    let crc = crc32c::crc32c(&batch[CRC_FROM..]);
    batch[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_le_bytes());
    batch.freeze()
}

/// Writes the server's fields, and their checksum, into the batch at the start of `batch`; the header suffices.
///
/// Panics if `batch` does not begin with a batch header: only a batch that was checked is stamped.
pub fn stamp(batch: &mut [u8], fields: ServerFields) {
    assert!(batch.len() >= BATCH_HEADER_BYTES, "a batch of {} bytes cannot be stamped", batch.len());
    let (raw, _) = RawHeader::mut_from_prefix(batch).expect("a header fits"); // why: the length was asserted
    assert!(raw.magic == MAGIC, "stamping {:02x?}, which is no batch", raw.magic);
    raw.base_offset = fields.base_offset.0.into();
    raw.durable_hint = fields.durable_hint.0.into();
    raw.leader_epoch = fields.leader_epoch.0.into();
    raw.incarnation = fields.incarnation.0.into();
    raw.server_crc = crc32c::crc32c(&raw.as_bytes()[SERVER_CRC_FROM..BATCH_HEADER_BYTES]).into();
}

/// Checks the header of a stored batch, for which its 80 bytes suffice: limits, and every bit of it. Used to walk over
/// batches: the length is right even if the body is damaged, so the next batch is found.
///
/// Errors: those of [`BatchHeader::decode`], `ServerChecksumMismatch`.
pub fn check_stored_header(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(bytes)?;
    let computed = crc32c::crc32c(&bytes[SERVER_CRC_FROM..BATCH_HEADER_BYTES]);
    if computed != header.server_crc {
        return Err(BatchError::ServerChecksumMismatch { stored: header.server_crc, computed });
    }
    Ok(header)
}

/// Where the next stored batch with an intact header begins in `bytes`, at any place. For looking behind damage, where
/// nothing says how long it is.
pub fn find_stored_header(bytes: &[u8]) -> Option<(usize, BatchHeader)> {
    let mut from = 0;
    loop {
        let rest = bytes.get(from..)?;
        let at = from + rest.windows(MAGIC.len()).position(|window| window == MAGIC)?;
        match check_stored_header(&bytes[at..]) {
            Ok(header) => return Some((at, header)),
            Err(_) => from = at + 1,
        }
    }
}

/// Checks exactly one stored batch whole: both checksums, so every bit.
///
/// Errors: those of [`check_stored_header`] and [`check_produced`].
pub fn check_stored(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = check_stored_header(batch)?;
    check_exact_length(&header, batch)?;
    check_client_crc(&header, batch)?;
    Ok(header)
}

/// Bytes of the batch at the start of `bytes` if all its records come before `offset`, without looking at more than
/// that takes. For bytes that were checked before: 0, or nonsense, for others.
pub fn len_if_before(bytes: &[u8], offset: Offset) -> usize {
    match RawHeader::ref_from_prefix(bytes) {
        Ok((raw, _)) if raw.base_offset.get().saturating_add(u64::from(raw.record_count.get())) <= offset.0 => {
            BATCH_HEADER_BYTES + raw.body_len.get() as usize
        }
        _ => 0,
    }
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may end with it or go on, and checks the limits but no checksum.
    ///
    /// Errors: `HeaderTruncated`, `WrongMagic`, `UnknownCodec`, `UnknownFlags`, `ReservedNotZero`, `NoRecords`,
    /// `TooManyRecords`, `BatchTooLarge`, `BodyTooSmall`, `TimestampsReversed`, `OffsetsOverflow`.
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else {
            return Err(BatchError::HeaderTruncated { have: bytes.len() });
        };
        if raw.magic != MAGIC {
            return Err(BatchError::WrongMagic { found: raw.magic });
        }
        let header = BatchHeader {
            server_crc: raw.server_crc.get(),
            base_offset: Offset(raw.base_offset.get()),
            durable_hint: Offset(raw.durable_hint.get()),
            leader_epoch: LeaderEpoch(raw.leader_epoch.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            crc: raw.crc.get(),
            body_len: raw.body_len.get(),
            record_count: raw.record_count.get(),
            codec: Codec::from_code(raw.codec)?,
            first_timestamp_ms: raw.first_timestamp.get(),
            max_timestamp_ms: raw.max_timestamp.get(),
            producer_id: ProducerId(raw.producer_id.get()),
            producer_epoch: raw.producer_epoch.get(),
            base_sequence: Sequence(raw.base_sequence.get()),
        };
        if raw.flags != 0 {
            return Err(BatchError::UnknownFlags { flags: raw.flags });
        }
        if raw.reserved.get() != 0 {
            return Err(BatchError::ReservedNotZero { value: raw.reserved.get() });
        }
        header.check_limits()?;
        Ok(header)
    }

    /// Bytes of the whole batch: header and body. At most `BATCH_BYTES_MAX`.
    pub fn batch_len(&self) -> usize {
        BATCH_HEADER_BYTES + self.body_len as usize
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> Offset {
        self.base_offset.advance(u64::from(self.record_count) - 1)
    }

    /// The offset after the last record: the next batch's base offset.
    pub fn end_offset(&self) -> Offset {
        self.base_offset.advance(u64::from(self.record_count))
    }

    /// Refuses numbers that no batch of ours can have, so that nobody allocates, seeks or counts by them.
    fn check_limits(&self) -> Result<(), BatchError> {
        let count = self.record_count;
        if count == 0 {
            return Err(BatchError::NoRecords);
        }
        if count > BATCH_RECORDS_MAX {
            return Err(BatchError::TooManyRecords { count });
        }
        let bytes = BATCH_HEADER_BYTES as u64 + u64::from(self.body_len);
        if bytes > BATCH_BYTES_MAX as u64 {
            return Err(BatchError::BatchTooLarge { bytes });
        }
        if self.codec == Codec::None {
            check_body_holds(count, self.body_len as usize)?;
        }
        let (first_ms, max_ms) = (self.first_timestamp_ms, self.max_timestamp_ms);
        if max_ms < first_ms {
            return Err(BatchError::TimestampsReversed { first_ms, max_ms });
        }
        if self.base_offset.0.checked_add(u64::from(count)).is_none() {
            return Err(BatchError::OffsetsOverflow { base: self.base_offset.0, count });
        }
        Ok(())
    }
}

/// Refuses a count of records that `bytes` of records, not compressed, cannot hold.
pub(super) fn check_body_holds(count: u32, bytes: usize) -> Result<(), BatchError> {
    if (count as usize) > bytes / RECORD_BYTES_MIN {
        return Err(BatchError::BodyTooSmall { count, bytes });
    }
    Ok(())
}

fn check_exact_length(header: &BatchHeader, batch: &[u8]) -> Result<(), BatchError> {
    if batch.len() != header.batch_len() {
        return Err(BatchError::LengthMismatch { declared: header.batch_len(), have: batch.len() });
    }
    Ok(())
}

fn check_client_crc(header: &BatchHeader, batch: &[u8]) -> Result<(), BatchError> {
    let computed = crc32c::crc32c(&batch[CRC_FROM..]);
    if computed != header.crc {
        return Err(BatchError::ChecksumMismatch { stored: header.crc, computed });
    }
    Ok(())
}

//! The codecs of a batch's body.
//!
//! A compressed body is the length of the records as a little-endian u32, then one LZ4 block or one Zstandard frame.
//! The length stands in front so that a reader refuses a bomb before it allocates, and then allocates once.

use std::{cell::RefCell, fmt, str::FromStr};

use bytes::Bytes;
use lz4_flex::block::CompressTable;
use serde::{Deserialize, Serialize};

use super::error::BatchError;
use crate::limits::{BATCH_BYTES_MAX, DECOMPRESSED_BYTES_MAX};

/// Zstandard's own default, a middle way between speed and size.
const ZSTD_LEVEL: i32 = 3;

/// Bytes of the length in front of compressed records.
const LENGTH_BYTES: usize = size_of::<u32>();

/// An LZ4 block grows by at most this factor: a byte of a length adds 255. A declared length above it is a lie.
const LZ4_RATIO_MAX: usize = 255;

const _: () = assert!(DECOMPRESSED_BYTES_MAX >= BATCH_BYTES_MAX, "what a builder compresses, a reader must accept");
const _: () = assert!(DECOMPRESSED_BYTES_MAX <= u32::MAX as usize, "the length of the records is a u32");

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Not at all.
    #[default]
    None = 0,
    /// LZ4 block: cheap; about half the size for text.
    Lz4 = 1,
    /// Zstandard frame: a third to a fifth of the size for text, at several times the cost of LZ4.
    Zstd = 2,
}

impl Codec {
    /// The codec's number in a batch header.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The codec with number `code`.
    ///
    /// Errors: `UnknownCodec`.
    pub fn from_code(code: u8) -> Result<Self, BatchError> {
        match code {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Lz4),
            2 => Ok(Codec::Zstd),
            _ => Err(BatchError::UnknownCodec { code }),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        })
    }
}

impl FromStr for Codec {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "none" => Ok(Codec::None),
            "lz4" => Ok(Codec::Lz4),
            "zstd" => Ok(Codec::Zstd),
            _ => Err(format!("`{word}` is no codec; there are none, lz4 and zstd")),
        }
    }
}

/// Compresses bodies one after the other in the same memory.
#[derive(Default)]
pub(super) struct Compressor {
    /// Made at first use: 16 KiB.
    lz4: Option<Box<CompressTable>>,
    /// Made at first use: some 1.3 MB at level 3.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// The compressed body, kept so that a batch is allocated at its exact length.
    body: Vec<u8>,
    /// The Zstandard frame before it is joined to its length.
    frame: Vec<u8>,
}

impl Compressor {
    /// The compressed body of a batch with these records; `None` if it would not be shorter than they are.
    ///
    /// Errors: `CompressionFailed`.
    pub(super) fn compress(&mut self, codec: Codec, records: &[u8]) -> Result<Option<&[u8]>, BatchError> {
        assert!(records.len() <= BATCH_BYTES_MAX, "{} bytes of records are over the batch limit", records.len());
        self.body.clear();
        self.body.extend_from_slice(&(records.len() as u32).to_le_bytes());
        match codec {
            Codec::None => return Ok(None),
            Codec::Lz4 => self.append_lz4(records)?,
            Codec::Zstd => self.append_zstd(records)?,
        }
        Ok((self.body.len() < records.len()).then_some(&self.body))
    }

    fn append_lz4(&mut self, records: &[u8]) -> Result<(), BatchError> {
        let table = self.lz4.get_or_insert_with(|| Box::new(CompressTable::large()));
        self.body.resize(LENGTH_BYTES + lz4_flex::block::get_maximum_output_size(records.len()), 0);
        let len = lz4_flex::block::compress_into_with_table(records, &mut self.body[LENGTH_BYTES..], table)
            .map_err(|_| BatchError::CompressionFailed { codec: Codec::Lz4, problem: "the output has no room" })?;
        self.body.truncate(LENGTH_BYTES + len);
        Ok(())
    }

    fn append_zstd(&mut self, records: &[u8]) -> Result<(), BatchError> {
        let failed = |problem| BatchError::CompressionFailed { codec: Codec::Zstd, problem };
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|_| failed("it could not be set up"))?),
        };
        self.frame.clear();
        self.frame.reserve(zstd::zstd_safe::compress_bound(records.len()));
        zstd.compress_to_buffer(records, &mut self.frame).map_err(|_| failed("its library refused them"))?;
        self.body.extend_from_slice(&self.frame);
        Ok(())
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("lz4", &self.lz4.is_some()).field("zstd", &self.zstd.is_some()).finish()
    }
}

/// The records of a compressed body.
///
/// Errors: `DecompressedTooLarge`, before anything is allocated; `DecompressionFailed`.
pub(super) fn decompress(codec: Codec, body: &[u8]) -> Result<Bytes, BatchError> {
    assert!(codec != Codec::None, "there is nothing to decompress");
    let failed = |problem| BatchError::DecompressionFailed { codec, problem };
    let (length, packed) = body.split_first_chunk().ok_or(failed("the length of the records is cut off"))?;
    let len = u32::from_le_bytes(*length) as usize;
    if len > DECOMPRESSED_BYTES_MAX {
        return Err(BatchError::DecompressedTooLarge { bytes: len as u64 });
    }
    let (records, written) = match codec {
        Codec::None => unreachable!("asserted above"),
        Codec::Lz4 => {
            if len / LZ4_RATIO_MAX > packed.len() {
                return Err(failed("a block so short cannot hold as many bytes as it declares"));
            }
            let mut records = vec![0; len];
            let written = lz4_flex::block::decompress_into(packed, &mut records);
            (records, written.map_err(|_| failed("the block is damaged or longer than it declares"))?)
        }
        Codec::Zstd => {
            let mut records = Vec::with_capacity(len);
            let written = with_zstd(|zstd| zstd.decompress_to_buffer(packed, &mut records));
            (records, written.map_err(|_| failed("the frame is damaged or longer than it declares"))?)
        }
    };
    if written != len {
        return Err(failed("there are fewer bytes of records than it declares"));
    }
    Ok(Bytes::from(records))
}

/// Lends this thread's decompressor. Setting one up costs more than decompressing a small batch.
fn with_zstd<T>(work: impl FnOnce(&mut zstd::bulk::Decompressor<'static>) -> std::io::Result<T>) -> std::io::Result<T> {
    thread_local! {
        static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    ZSTD.with_borrow_mut(|zstd| match zstd {
        Some(zstd) => work(zstd),
        none => work(none.insert(zstd::bulk::Decompressor::new()?)),
    })
}

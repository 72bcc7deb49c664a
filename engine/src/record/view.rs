//! Reading batches: from stored bytes to records that share those bytes.
//!
//! A view exists only of a batch whose checksums were right, so a record that does not parse was built wrong, not
//! damaged. Two ways to read: [`Records`] gives records that own their share of the batch's memory (a reference count
//! for each key and value), [`Records::borrowed`] gives them borrowed, at a third of the cost or less.

use bytes::Bytes;

use super::{
    codec::{self, Codec},
    error::BatchError,
    header::{BatchHeader, check_body_holds, check_stored},
    varint::Reader,
};
use crate::{
    limits::{BATCH_HEADER_BYTES, RECORD_BYTES_MAX, RECORD_HEADERS_MAX},
    types::Offset,
};

/// Exactly one stored batch, with both checksums checked.
#[derive(Clone, Debug)]
pub struct BatchView {
    header: BatchHeader,
    bytes: Bytes,
}

/// Splits stored batches that lie end to end, as a fetch answers them. Ends after the first error.
///
/// The last batch must be whole: a cut one gives `HeaderTruncated` or `LengthMismatch`.
pub fn split_batches(bytes: Bytes) -> Batches {
    Batches { rest: bytes }
}

/// The iterator of [`split_batches`].
#[derive(Clone, Debug)]
pub struct Batches {
    rest: Bytes,
}

/// The records of a batch, each with its share of the batch's memory. Ends after the first error.
///
/// The number of records and the end of the body are checked too: bytes after the last record are an error at the end.
#[derive(Clone, Debug)]
pub struct Records {
    body: Bytes,
    cursor: Cursor,
}

/// The records of a batch, borrowed. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordRefs<'a> {
    body: &'a [u8],
    cursor: Cursor,
}

/// A record that shares the memory of its batch: keeping it keeps the whole batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The record's address in its partition.
    pub offset: Offset,
    /// In milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The key, if it has one; an empty key is a key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Bytes,
    /// Names and values, in the order given; a name may occur twice.
    pub headers: Vec<(Bytes, Bytes)>,
}

/// A record that borrows from its batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// The record's address in its partition.
    pub offset: Offset,
    /// In milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The key, if it has one; an empty key is a key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// Names and values, in the order given; a name may occur twice.
    pub headers: HeaderRefs<'a>,
}

/// The headers of a [`RecordRef`]: an iterator over names and values.
#[derive(Clone, Copy, Debug)]
pub struct HeaderRefs<'a> {
    left: usize,
    reader: Reader<'a>,
}

impl BatchView {
    /// Takes exactly one stored batch.
    ///
    /// Errors: those of [`check_stored`].
    pub fn parse(bytes: Bytes) -> Result<BatchView, BatchError> {
        let header = check_stored(&bytes)?;
        Ok(BatchView { header, bytes })
    }

    /// The batch's header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch as it is stored.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The batch's records. Decompresses them if need be: then it allocates, at most `DECOMPRESSED_BYTES_MAX`.
    ///
    /// Errors: `DecompressedTooLarge`, `DecompressionFailed`, `BodyTooSmall`.
    pub fn records(&self) -> Result<Records, BatchError> {
        let stored = self.bytes.slice(BATCH_HEADER_BYTES..);
        let body = match self.header.codec {
            Codec::None => stored,
            codec => codec::decompress(codec, &stored)?,
        };
        check_body_holds(self.header.record_count, body.len())?;
        Ok(Records { body, cursor: Cursor::new(&self.header) })
    }
}

impl Iterator for Batches {
    type Item = Result<BatchView, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = self.take_batch();
        if batch.is_err() {
            self.rest.clear();
        }
        Some(batch)
    }
}

impl Batches {
    fn take_batch(&mut self) -> Result<BatchView, BatchError> {
        let declared = BatchHeader::decode(&self.rest)?.batch_len();
        if declared > self.rest.len() {
            return Err(BatchError::LengthMismatch { declared, have: self.rest.len() });
        }
        BatchView::parse(self.rest.split_to(declared))
    }
}

impl Records {
    /// The records from here on, borrowed: the fast way, without reference counts.
    pub fn borrowed(&self) -> RecordRefs<'_> {
        RecordRefs { body: &self.body, cursor: self.cursor.clone() }
    }

    /// Gives a record of [`Self::borrowed`] its share of the batch's memory; nothing is copied.
    ///
    /// Panics if the record is not one of this batch.
    pub fn share(&self, record: &RecordRef<'_>) -> Record {
        let share = |slice: &[u8]| self.body.slice_ref(slice);
        Record {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(share),
            value: share(record.value),
            headers: record.headers.map(|(name, value)| (share(name), share(value))).collect(),
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.cursor.next_in(&self.body)?;
        Some(next.map(|record| self.share(&record)))
    }
}

impl<'a> Iterator for RecordRefs<'a> {
    type Item = Result<RecordRef<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.cursor.next_in(self.body)
    }
}

impl<'a> Iterator for HeaderRefs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(next_header(&mut self.reader).expect("headers were checked")) // why: parse_headers walked over all of them
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for HeaderRefs<'_> {}

/// A position between two records of a batch.
#[derive(Clone, Debug)]
struct Cursor {
    base_offset: Offset,
    first_timestamp_ms: i64,
    count: u32,
    /// The next record's number; `count` once all were read.
    index: u32,
    /// Where the next record begins in the body; past its end after an error or after the last word on trailing bytes.
    at: usize,
}

impl Cursor {
    /// The end of the iteration: no body is as long.
    const ENDED: usize = usize::MAX;

    fn new(header: &BatchHeader) -> Self {
        Cursor {
            base_offset: header.base_offset,
            first_timestamp_ms: header.first_timestamp_ms,
            count: header.record_count,
            index: 0,
            at: 0,
        }
    }

    #[inline]
    fn next_in<'a>(&mut self, body: &'a [u8]) -> Option<Result<RecordRef<'a>, BatchError>> {
        if self.index == self.count || self.at == Self::ENDED {
            return self.end_in(body).map(Err);
        }
        let mut reader = Reader::new(&body[self.at..]);
        match self.parse_record(&mut reader) {
            Ok(record) => {
                self.index += 1;
                self.at = body.len() - reader.rest().len();
                Some(Ok(record))
            }
            Err(problem) => {
                self.at = Self::ENDED;
                Some(Err(BatchError::MalformedRecord { index: self.index, problem }))
            }
        }
    }

    /// After the last record: whether anything follows it. Says so once.
    #[cold]
    fn end_in(&mut self, body: &[u8]) -> Option<BatchError> {
        let at = std::mem::replace(&mut self.at, Self::ENDED);
        let bytes = body.len().checked_sub(at).filter(|&bytes| bytes > 0)?;
        Some(BatchError::TrailingBytes { bytes, count: self.count })
    }

    #[inline]
    fn parse_record<'a>(&self, body: &mut Reader<'a>) -> Result<RecordRef<'a>, &'static str> {
        let whole = body.unsigned().ok_or("its length is cut off or longer than 64 bits")?;
        let mut reader = Reader::new(body.bytes(whole).ok_or("it is longer than what is left of the batch")?);
        let delta = reader.signed().ok_or("its timestamp is cut off or longer than 64 bits")?;
        let timestamp_ms = self.first_timestamp_ms.checked_add(delta).ok_or("its timestamp is out of range")?;
        let key = match reader.signed().ok_or("the length of its key is cut off or longer than 64 bits")? {
            -1 => None,
            len => {
                let len = u64::try_from(len).map_err(|_| "the length of its key is negative, and not -1")?;
                Some(reader.bytes(len).ok_or("its key is longer than what is left of the record")?)
            }
        };
        let len = reader.unsigned().ok_or("the length of its value is cut off or longer than 64 bits")?;
        let value = reader.bytes(len).ok_or("its value is longer than what is left of the record")?;
        let headers = parse_headers(&mut reader)?;
        if !reader.rest().is_empty() {
            return Err("it is longer than its parts");
        }
        // Few records are near the limit: the sum is taken only where it could be reached.
        if whole > RECORD_BYTES_MAX as u64 && record_bytes(key, value, headers) > RECORD_BYTES_MAX {
            return Err("its key, value and headers have more than 1048576 bytes, the most that is allowed");
        }
        Ok(RecordRef { offset: Offset(self.base_offset.0 + u64::from(self.index)), timestamp_ms, key, value, headers })
    }
}

const _: () = assert!(RECORD_BYTES_MAX == 1_048_576, "the words in `parse_record`");

#[cold]
fn record_bytes(key: Option<&[u8]>, value: &[u8], headers: HeaderRefs<'_>) -> usize {
    let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
    key.unwrap_or_default().len() + value.len() + headers
}

#[inline]
fn parse_headers<'a>(reader: &mut Reader<'a>) -> Result<HeaderRefs<'a>, &'static str> {
    let count = reader.unsigned().ok_or("the number of its headers is cut off or longer than 64 bits")?;
    if count > RECORD_HEADERS_MAX as u64 {
        return Err("it has more headers than are allowed");
    }
    let headers = HeaderRefs { left: count as usize, reader: *reader };
    for _ in 0..count {
        next_header(reader).ok_or("a header is longer than what is left of the record")?;
    }
    Ok(headers)
}

fn next_header<'a>(reader: &mut Reader<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let name_len = reader.unsigned()?;
    let name = reader.bytes(name_len)?;
    let value_len = reader.unsigned()?;
    let value = reader.bytes(value_len)?;
    Some((name, value))
}

//! Walking stored bytes batch by batch. Pure; used by reads, by recovery and by the rebuilding of an index.

use crate::{
    limits::BATCH_HEADER_BYTES,
    record::{BatchError, BatchHeader, check_stored, check_stored_header, len_if_before},
    testing::bug::{PlantedBug, planted},
    types::{Incarnation, Offset},
};

/// A batch found in stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where it begins in the file.
    pub position: u64,
    /// Its header, checked.
    pub header: BatchHeader,
}

/// What stands at a place where a batch could begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A batch, whole and intact.
    Batch(Located),
    /// The bytes end within a batch of which at least so many bytes are needed.
    CutOff {
        /// Where the batch begins in the file.
        position: u64,
        /// Bytes of the batch, or of its header if not even that is here.
        need: usize,
    },
    /// The bytes end between two batches.
    End {
        /// The position after the last of them.
        position: u64,
    },
    /// No intact batch: zeros, stale bytes of an earlier life of the file, or damage.
    Invalid {
        /// Where in the file.
        position: u64,
        /// What is wrong.
        reason: String,
    },
}

/// How thoroughly a walk checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Every byte: what comes from a device.
    Whole,
    /// Only that a header makes sense: bytes in memory that were checked when they came from a client or a device.
    Known,
}

/// Whether what no batch stands in is only the padding of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// It is: the next group begins there, with the batch that is due.
    Passed(u64),
    /// That takes more bytes to tell.
    Unclear,
    /// It is not.
    No,
}

/// Walks `bytes`, which stand at `position` of a segment file.
pub struct Walk<'a> {
    bytes: &'a [u8],
    start: u64,
    at: usize,
    block_bytes: u64,
    incarnation: Incarnation,
    check: Check,
}

impl<'a> Walk<'a> {
    /// A walk that begins at a batch. Padding between flush groups, up to the next multiple of `block_bytes`, is
    /// skipped.
    pub fn new(bytes: &'a [u8], start: u64, segment: (u32, Incarnation), check: Check) -> Self {
        let (block_bytes, incarnation) = segment;
        Walk { bytes, start, at: 0, block_bytes: u64::from(block_bytes), incarnation, check }
    }

    /// Goes past batches that end before `offset`, up to the next padding; in bytes that were checked before.
    pub fn skip_before(&mut self, offset: Offset) {
        while let Some(rest) = self.bytes.get(self.at..).filter(|rest| rest.first().is_some_and(|first| *first != 0)) {
            match len_if_before(rest, offset) {
                0 => return,
                len => self.at += len,
            }
        }
    }

    /// What comes next. After anything but a batch the walk is over.
    pub fn step(&mut self) -> Step {
        loop {
            let position = self.start + self.at as u64;
            let rest = &self.bytes[self.at.min(self.bytes.len())..];
            if rest.is_empty() {
                return Step::End { position };
            }
            let padding = !position.is_multiple_of(self.block_bytes) || planted(PlantedBug::ZerosForPadding);
            if rest[0] == 0 && padding {
                // No batch begins with a zero: this is the padding of a flush group.
                self.at += ((position + 1).next_multiple_of(self.block_bytes) - position) as usize;
                continue;
            }
            return self.batch(position, rest);
        }
    }

    /// Goes on where the next group begins, if the batch stands there that is due, and what is not one at `position` is
    /// right behind the batch before that, which ended with `end`, and within its block. Padding means nothing: a loss
    /// of power may have filled it with garbage while the group was not durable, or bits in it turned over, and
    /// neither takes a record from what is intact behind it.
    pub fn pass_padding(&mut self, position: u64, end: (u64, Offset)) -> Padding {
        let next = position.next_multiple_of(self.block_bytes);
        if position != end.0 || next == position {
            return Padding::No;
        }
        let at = (next - self.start) as usize;
        match (Walk { at, ..*self }).step() {
            Step::Batch(batch) if batch.header.base_offset == end.1 => {
                self.at = at;
                Padding::Passed(next)
            }
            Step::CutOff { .. } | Step::End { .. } => Padding::Unclear,
            Step::Batch(_) | Step::Invalid { .. } => Padding::No,
        }
    }

    fn batch(&mut self, position: u64, rest: &[u8]) -> Step {
        if rest.len() < BATCH_HEADER_BYTES {
            return Step::CutOff { position, need: BATCH_HEADER_BYTES };
        }
        let invalid = |error: BatchError| Step::Invalid { position, reason: error.to_string() };
        let read = if self.check == Check::Known { BatchHeader::decode(rest) } else { check_stored_header(rest) };
        let header = match read {
            Ok(header) => header,
            Err(error) => return invalid(error),
        };
        if header.incarnation != self.incarnation {
            let reason = format!("a batch of incarnation {}, not {}", header.incarnation, self.incarnation);
            return Step::Invalid { position, reason };
        }
        let need = header.batch_len();
        let Some(batch) = rest.get(..need) else { return Step::CutOff { position, need } };
        if self.check == Check::Whole
            && let Err(error) = check_stored(batch)
        {
            return invalid(error);
        }
        self.at += need;
        Step::Batch(Located { position, header })
    }
}

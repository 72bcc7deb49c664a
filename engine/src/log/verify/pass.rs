//! What one walk over a segment gathers: what is wrong, and what is right.

use std::{ops::ControlFlow, path::Path};

use super::{DURABLE, Finding, Kind, Piece, Remedy};
use crate::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    log::{index::Index, segment::SegmentHeader},
    record::ProducerHistory,
    types::Offset,
};

/// Findings in one segment after which it is given up: there is hardly anything right in it.
pub(super) const FINDINGS_PER_SEGMENT_MAX: usize = 1000;

/// What the walk came by last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Batch,
    Zeros,
    Bytes,
}

/// What one walk over a segment gathers.
pub(super) struct Pass<'a> {
    pub path: &'a Path,
    /// The offset after the last batch.
    pub end: Offset,
    /// What the next segment begins with; the largest offset if there is none.
    pub next: Offset,
    pub index: Index,
    pub batches: u64,
    pub records: u64,
    /// The highest durable hint.
    pub durable_hint: Offset,
    /// What came last.
    pub gap: Behind,
    pub findings: Vec<Finding>,
    /// What the batches before and in this segment say of their producers, if that is wanted.
    pub producers: Option<ProducerHistory>,
    /// Where batches begin that were cut off: the next segment begins before them. 0 if there are none.
    pub cut_off: u64,
    /// Nobody knows to which block groups are padded: zeros that cost no record are taken for padding.
    pub block_is_unknown: bool,
}

impl<'a> Pass<'a> {
    pub fn new(path: &'a Path, header: &SegmentHeader, next: Offset) -> Self {
        Pass {
            path,
            end: header.base_offset,
            next,
            index: Index::default(),
            batches: 0,
            records: 0,
            durable_hint: header.base_offset,
            gap: Behind::Batch,
            findings: Vec::new(),
            producers: None,
            cut_off: 0,
            block_is_unknown: false,
        }
    }

    /// Whether so much is wrong that the rest was not looked at.
    pub fn gave_up(&self) -> bool {
        self.findings.len() >= FINDINGS_PER_SEGMENT_MAX
    }

    /// Takes the zeros at the end for room that was prepared and not used.
    pub fn forget_room(&mut self) {
        if self.gap == Behind::Zeros {
            self.findings.pop();
        }
    }

    pub fn take(&mut self, piece: &Piece<'_>) -> ControlFlow<()> {
        let is_whole = self.next != Offset(u64::MAX) && self.end >= self.next;
        match piece {
            Piece::Batch { position, header, .. } if is_whole && header.base_offset >= self.next => {
                self.cut_off = *position;
                return ControlFlow::Break(());
            }
            // Of such a batch, in the block that its segment ends with.
            Piece::Gap { position, end, zeros: false, .. } if is_whole && end - position < DEVICE_BLOCK_BYTES_MAX => {}
            Piece::Batch { position, header, damage, .. } => {
                let (base, end) = (header.base_offset, header.end_offset());
                self.durable_hint = self.durable_hint.max(header.durable_hint);
                self.chain(*position, base, end);
                match damage {
                    None => {
                        if let (Some(producers), Some(mark)) = (&mut self.producers, header.producer_mark()) {
                            producers.note(&mark, base);
                        }
                        self.index.note(base, *position, header.max_timestamp_ms);
                        self.batches += 1;
                        self.records += u64::from(header.record_count);
                    }
                    Some(reason) => self.add(Kind::Batch, (*position, base, end), reason.clone()),
                }
                self.end = self.end.max(end);
            }
            Piece::Gap { position, end, zeros, reason } => {
                let len = end - position;
                let what = if *zeros { "zeros where a batch should stand" } else { reason.as_str() };
                // Which records are missing is known when the next batch comes, or none does.
                let next = self.next;
                self.add(Kind::Bytes, (*position, self.end, next), format!("{what}; {len} bytes hold no batch"));
                self.gap = if *zeros { Behind::Zeros } else { Behind::Bytes };
            }
        }
        if self.gave_up() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// A batch with `base` follows what ended at `self.end`.
    fn chain(&mut self, position: u64, base: Offset, end: Offset) {
        let behind = std::mem::replace(&mut self.gap, Behind::Batch);
        if behind == Behind::Zeros && self.block_is_unknown && base <= self.end {
            self.findings.pop();
        } else if behind != Behind::Batch
            && let Some(gap) = self.findings.last_mut()
        {
            gap.offsets = (self.end < base).then_some((self.end, base));
            if gap.offsets.is_none() {
                gap.remedy = Remedy::None("no record is missing there, so nothing has to be restored");
            }
        }
        let reason = format!("a batch with offset {base} where {} should follow", self.end);
        if base < self.end {
            self.add(Kind::Chain, (position, base, end), reason);
            if let Some(twice) = self.findings.last_mut() {
                twice.case = Some('F');
            }
        } else if base > self.end && behind == Behind::Batch {
            self.add(Kind::Chain, (position, self.end, base), reason);
        }
    }

    fn add(&mut self, kind: Kind, (position, first, end): (u64, Offset, Offset), reason: String) {
        let finding = Finding::new(kind, self.path, reason).at(position).records(first, end).case('C').remedy(DURABLE);
        self.findings.push(finding);
    }
}

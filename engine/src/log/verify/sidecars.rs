//! The files beside a segment: its index, and what is known of producers before it. Those of a damaged segment are
//! checked as far as what is left of it tells.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Disk, Finding, Kind, Remedy, Source, partition::Check};
use crate::{
    limits::{DEVICE_BLOCK_BYTES_MAX, INDEX_INTERVAL_BYTES, PRODUCERS_PER_PARTITION_MAX, SEGMENT_HEADER_BYTES},
    log::{
        index::{Agreement, Index, SidecarKey},
        producer_snapshot::{self, SnapshotKey},
        segment::SegmentHeader,
        survey::Survey,
    },
    types::Offset,
};

/// Bytes of a sidecar for each entry, generously; bounds what is read of one.
const SIDECAR_BYTES_PER_ENTRY_MAX: u64 = 64;

/// What is read of a snapshot of producers: 256 bytes for each, generously.
const SNAPSHOT_BYTES_MAX: u64 = DEVICE_BLOCK_BYTES_MAX + 256 * PRODUCERS_PER_PARTITION_MAX as u64;

const NO_INDEX: &str = "the sealed segment has no index; it is made when it is needed";

impl<D: Disk> Check<'_, D> {
    /// What is kept of producers beside a segment, if it is: only the last two segments have such a snapshot. A running
    /// server may be writing it.
    pub(super) fn snapshot(&mut self, segment: &Path, header: &SegmentHeader, others: &[PathBuf]) {
        let path = segment.with_extension("prd");
        if self.files.in_use || !others.contains(&path) {
            return;
        }
        let key = SnapshotKey::from(header);
        let read = self.disk.open(&path).and_then(|file| {
            let len = file.size()?.min(SNAPSHOT_BYTES_MAX);
            file.read_at(0, usize::try_from(len).unwrap_or(usize::MAX))
        });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => return self.unreadable(&path, 0, &error),
        };
        let (reason, remedy) = match (&self.producers, producer_snapshot::from_sidecar(&bytes, key)) {
            (Some(known), Some(kept)) if kept.agrees_with(known) => return,
            (None, Some(kept)) => {
                self.producers = Some(kept);
                return;
            }
            (Some(known), _) => {
                let right = Remedy::Rewrite(producer_snapshot::to_sidecar(known, key));
                ("what it says of producers is not what the segments before it say", right)
            }
            (None, None) => ("it is damaged; the server makes it anew from the segments", Remedy::SetAside),
        };
        self.findings.push(Finding::new(Kind::Producers, &path, reason).remedy(remedy));
    }

    /// The index of a sealed segment that is whole, which gives `index`.
    pub(super) fn index(&mut self, path: &Path, (key, index): (SidecarKey, &Index), others: &[PathBuf]) {
        let finding = match self.read_index(path, key.end_position, others) {
            Ok(bytes) if bytes.is_empty() => Finding::new(Kind::NoIndex, path, NO_INDEX),
            Ok(bytes) if Index::from_sidecar(&bytes, key).as_ref() == Some(index) => return,
            Ok(_) => Finding::new(Kind::Index, path, "the index is not what the segment gives"),
            Err(error) => return self.unreadable(path, 0, &error),
        };
        self.findings.push(finding.remedy(Remedy::Rewrite(index.to_sidecar(key))));
    }

    /// The index of a sealed segment of `size` bytes that is damaged, with `next` behind it.
    pub(super) fn index_of_damaged(
        &mut self,
        segment: &Path,
        (header, size): (&SegmentHeader, u64),
        next: Offset,
        others: &[PathBuf],
    ) {
        let path = &segment.with_extension("idx");
        let key = SidecarKey { incarnation: header.incarnation, end_position: size };
        let finding = match self.read_index(path, size, others) {
            Ok(bytes) if bytes.is_empty() => {
                let later = Remedy::None("the server makes it from what is left of the segment");
                Finding::new(Kind::NoIndex, path, NO_INDEX).remedy(later)
            }
            Ok(bytes) => match Index::from_sidecar(&bytes, key).map(|index| self.agrees(segment, header, &index, next))
            {
                Some(Ok(true)) => return,
                Some(Err(error)) => return self.unreadable(segment, 0, &error),
                // It may know more of the segment than what is left of it.
                Some(Ok(false)) | None => {
                    let reason = "the index is not that of the damaged segment, nor of what is left of it";
                    Finding::new(Kind::Index, path, reason).remedy(Remedy::SetAside)
                }
            },
            Err(error) => return self.unreadable(path, 0, &error),
        };
        self.findings.push(finding);
    }

    /// Whether `index` leads to what a reader finds intact in a damaged segment.
    fn agrees(&self, segment: &Path, header: &SegmentHeader, index: &Index, next: Offset) -> io::Result<bool> {
        let file = self.disk.open(segment)?;
        let mut survey = Survey::new(header, (SEGMENT_HEADER_BYTES, file.size()?), (header.base_offset, next));
        let mut agreement = Agreement::new(index, header.base_offset);
        while let Some((position, len)) = survey.wants() {
            survey.take(&file.read_at(position, len)?, &mut |found| agreement.see(&found));
        }
        survey.finish(&mut |found| agreement.see(&found));
        Ok(agreement.holds())
    }

    /// Nothing if there is none.
    fn read_index(&self, path: &Path, segment_bytes: u64, others: &[PathBuf]) -> io::Result<Vec<u8>> {
        if !others.iter().any(|other| other == path) {
            return Ok(Vec::new());
        }
        let entries = segment_bytes / INDEX_INTERVAL_BYTES + 1;
        let len = DEVICE_BLOCK_BYTES_MAX + entries * SIDECAR_BYTES_PER_ENTRY_MAX;
        let file = self.disk.open(path)?;
        file.read_at(0, usize::try_from(len.min(file.size()?)).unwrap_or(usize::MAX))
    }
}

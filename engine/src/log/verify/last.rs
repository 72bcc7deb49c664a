//! The last segment: where recovery would end it, and all that is wrong in it.
//!
//! A tail that recovery would cut off (case B) is one of two things: a flush that power was lost in, or the newest
//! flush group, acknowledged and then damaged. Nothing that is stored says which (`docs/RELIABILITY.md`), with one
//! exception: files are filled with zeros ahead of use, every flush group begins with a batch and every batch with its
//! magic. So where the sector that the next group must begin with still reads as zeros, that group never reached the
//! drive whole, and neither it nor anything behind it was acknowledged as durable: acks come in the order of offsets.

use std::{io, path::Path};

use super::{DURABLE, Disk, Finding, Kind, Remedy, Source, partition::Check, pass::Pass};
use crate::{
    limits::DEVICE_BLOCK_BYTES_MIN,
    log::{
        last_segment::{LastScan, LastSegment},
        segment::SegmentHeader,
    },
    types::Offset,
};

impl<D: Disk> Check<'_, D> {
    /// Judges the last segment, if its header is right.
    pub(super) fn last(&mut self, path: &Path, (header, size): (&SegmentHeader, u64), start: Offset) {
        let judged = self.disk.open(path).and_then(|file| {
            let mut scan = LastScan::new(path.to_path_buf(), *header, size);
            while let Some((position, len)) = scan.wants() {
                scan.take(&file.read_at(position, len)?);
            }
            let found = scan.verdict();
            let tail = tail(&file, &found)?;
            Ok((found, tail))
        });
        let (found, tail) = match judged {
            Ok(judged) => judged,
            Err(error) => return self.unreadable(path, 0, &error),
        };
        self.beginning_beyond_the_end(path, &found, start);
        let mut pass = Pass::new(path, header, Offset(u64::MAX));
        if self.walk(path, header, &mut pass) {
            self.findings.append(&mut judge_last(path, (&found, tail), pass));
        }
    }
}

/// What stands behind the last batch that recovery would keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    /// A group that never reached the drive whole.
    NeverWhole,
    /// Whatever else.
    Unknown,
}

fn tail<S: Source>(file: &S, found: &LastSegment) -> io::Result<Tail> {
    // The next batch would begin behind the last one, or at the next block; up to there everything is padding or zero.
    let first_sector_end = found.end_position + DEVICE_BLOCK_BYTES_MIN;
    let len = (first_sector_end - found.cut_position) as usize;
    let bytes = file.read_at(found.cut_position, len)?;
    let unwritten = bytes.len() == len && bytes.iter().all(|byte| *byte == 0);
    Ok(if unwritten { Tail::NeverWhole } else { Tail::Unknown })
}

/// What the last segment comes to: `found` as recovery sees it, `pass` all there is.
fn judge_last(path: &Path, (found, tail): (&LastSegment, Tail), mut pass: Pass<'_>) -> Vec<Finding> {
    let end = found.end_offset;
    // Recovery looks for batches where a flush group can begin, the walk everywhere.
    let was_durable = pass.durable_hint > end;
    if found.damage.is_none() && !was_durable {
        return if found.torn { vec![torn_tail(path, found, tail)] } else { Vec::new() };
    }
    let durable = pass.durable_hint;
    let case = found.damage.as_ref().map_or('C', |damage| damage.case);
    pass.forget_room();
    let mut findings = pass.findings;
    if findings.is_empty() {
        let position = found.damage.as_ref().map_or(found.cut_position, |damage| damage.position);
        let reason = found.damage.as_ref().map_or("records that were durable are missing", |damage| &damage.reason);
        findings.push(Finding::new(Kind::Bytes, path, reason).at(position).remedy(DURABLE));
    }
    for finding in &mut findings {
        finding.case = finding.case.filter(|own| *own == 'F').or(Some(case));
        end_at(finding, durable);
    }
    findings
}

/// Records that are missing at the end of a log are as many as were durable.
pub(super) fn end_at(finding: &mut Finding, durable: Offset) {
    if let Some((first, Offset(u64::MAX))) = finding.offsets {
        *finding = finding.clone().records(first, durable);
    }
}

fn torn_tail(path: &Path, found: &LastSegment, tail: Tail) -> Finding {
    let (cut, end) = (found.cut_position, found.end_offset);
    let (reason, remedy) = match tail {
        Tail::NeverWhole => {
            let reason = format!("a flush was cut off before it was whole; the log ends before it, at offset {end}");
            (reason, Remedy::Truncate(cut))
        }
        Tail::Unknown => {
            let reason = format!(
                "a flush was cut off, or the newest one is damaged, which nothing tells apart; the next start ends the \
                 log before it, at offset {end}"
            );
            (reason, Remedy::Copy(cut))
        }
    };
    Finding::new(Kind::TornTail, path, reason).at(cut).case('B').remedy(remedy)
}

//! Arbitrary bytes as a last segment, and segments of right and wrong batches in any order: the judgement of recovery
//! and the walk of `dlog verify` end, name a case of the table, and agree with each other.
#![no_main]

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use libfuzzer_sys::fuzz_target;
use pyralog_engine::{
    log::{
        last_segment::{Beginning, LastScan, LastSegment},
        segment::SegmentHeader,
        verify::{Disk, PartitionFiles, Piece, Remedy, Source, check_partition, walk_segment},
    },
    runtime::DirEntry,
    types::{Incarnation, LeaderEpoch, LogUid, Offset, PartitionId, PartitionIndex},
};
use pyralog_fuzz::stored_batch;

const NAME: &str = "/p/00000000000000000010.seg";
const PLACE: (Option<LogUid>, PartitionIndex, Offset) = (Some(LogUid(1)), PartitionIndex(0), Offset(10));

/// A partition's directory with one file.
struct Memory<'a>(&'a [u8]);

impl Source for Memory<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        let from = (position as usize).min(self.0.len());
        Ok(self.0[from..(from + len).min(self.0.len())].to_vec())
    }
}

impl<'a> Disk for Memory<'a> {
    type File = Memory<'a>;

    fn open(&self, path: &Path) -> io::Result<Self::File> {
        if path == Path::new(NAME) { Ok(Memory(self.0)) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn list(&self, _: &Path) -> io::Result<Vec<DirEntry>> {
        Ok(vec![DirEntry { path: PathBuf::from(NAME), is_dir: false }])
    }
}

fuzz_target!(|input: &[u8]| {
    judge(input);
    let Some((&choice, pieces)) = input.split_first() else { return };
    judge(&segment(if choice & 1 == 0 { 512 } else { 4096 }, pieces));
});

/// A segment with a right header and whatever `pieces` says: each begins with a byte for its kind and one for its size.
fn segment(block_bytes: u32, mut pieces: &[u8]) -> Vec<u8> {
    let header = SegmentHeader {
        partition: PartitionId { log: LogUid(1), index: PartitionIndex(0) },
        block_bytes,
        base_offset: Offset(10),
        created_ms: 0,
        incarnation: Incarnation(1),
        leader_epoch: LeaderEpoch(1),
    };
    let mut file = header.encode().to_vec();
    file.resize(4096, 0);
    let mut next = 10u64;
    while let Some((&[kind, size], rest)) = pieces.split_first_chunk() {
        pieces = rest;
        let offset = match kind & 0x30 {
            0x10 => next.wrapping_add(u64::from(size)),
            0x20 => next.saturating_sub(u64::from(size)),
            _ => next,
        };
        match kind & 3 {
            0 => {
                let raw = pieces.len().min(usize::from(size));
                file.extend_from_slice(&pieces[..raw]);
                pieces = &pieces[raw..];
            }
            1 => file.resize(file.len().next_multiple_of(block_bytes as usize), 0),
            2 => file.resize(file.len() + usize::from(size) * 16, 0),
            _ => {
                let hint = if kind & 4 == 0 { next } else { offset.wrapping_add(u64::from(size)) };
                let incarnation = Incarnation(if kind & 8 == 0 { 1 } else { 2 });
                let count = u32::from(size) % 7 + 1;
                file.extend_from_slice(&stored_batch(Offset(offset), count, Offset(hint), incarnation));
                next = offset.saturating_add(u64::from(count));
            }
        }
        if file.len() > 256 << 10 {
            break;
        }
    }
    file
}

fn judge(file: &[u8]) {
    let block = &file[..file.len().min(4096)];
    let mut found = None;
    if let Beginning::Intact(header) = Beginning::of(block, file.len() as u64, PLACE) {
        let judged = scan(file, header);
        walk(file, &header, &judged);
        found = Some(judged);
    }
    let files = PartitionFiles { dir: "/p".into(), log: PLACE.0, index: PLACE.1, in_use: false };
    let (findings, totals) = check_partition(&Memory(file), files).expect("the directory can be listed");
    assert!(findings.iter().all(|finding| finding.case.is_none_or(|case| ('A'..='H').contains(&case))));
    for finding in &findings {
        // Nothing is cut off, or called a tail that may be, but what recovery cuts off.
        if let Remedy::Truncate(at) | Remedy::Copy(at) = finding.remedy {
            let found = found.as_ref().expect("a tail behind a right header");
            assert!(found.damage.is_none() && found.torn && found.cut_position == at, "{finding:?}");
        }
    }
    assert!(totals.records <= file.len() as u64, "{} records in {} bytes", totals.records, file.len());
}

fn scan(file: &[u8], header: SegmentHeader) -> LastSegment {
    let mut scan = LastScan::new(NAME.into(), header, file.len() as u64);
    let mut windows = 0;
    while let Some((position, len)) = scan.wants() {
        scan.take(&Memory(file).read_at(position, len).expect("memory can be read"));
        windows += 1;
        assert!(windows < 1000, "the scan does not end");
    }
    let found = scan.verdict();
    assert!(found.cut_position <= found.end_position && found.end_offset >= header.base_offset);
    assert!(found.cut_position <= file.len() as u64, "the end is beyond the file");
    if let Some(damage) = &found.damage {
        assert!(['C', 'F'].contains(&damage.case), "{damage}");
        assert!(damage.position <= file.len() as u64);
    }
    found
}

/// The pieces cover the file without a gap, and begin with the batches that the scan found.
fn walk(file: &[u8], header: &SegmentHeader, found: &LastSegment) {
    let (mut at, mut end_offset, mut intact) = (4096u64, header.base_offset, true);
    let walked = walk_segment(&Memory(file), header, &mut |piece| {
        let (position, end) = match &piece {
            Piece::Batch { position, header, bytes, damage } => {
                assert_eq!(bytes.len(), header.batch_len());
                intact &= damage.is_none() && header.base_offset == end_offset;
                if intact {
                    end_offset = header.end_offset();
                }
                (*position, position + bytes.len() as u64)
            }
            Piece::Gap { position, end, .. } => {
                // What stands in the padding of a group ends nothing: the next one begins behind it, or does not.
                let block = u64::from(header.block_bytes);
                intact &= !position.is_multiple_of(block) && *end == position.next_multiple_of(block);
                (*position, *end)
            }
        };
        assert!(position >= at && end >= position, "pieces overlap at {position}, {at} was reached");
        at = end;
        ControlFlow::Continue(())
    });
    assert!(walked.is_ok(), "memory can be read");
    assert_eq!(end_offset, found.end_offset, "recovery and verify disagree about the end");
}

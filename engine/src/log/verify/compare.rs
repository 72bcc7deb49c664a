//! Holding the copies of a partition against each other. A reign has one leader, so two copies that have different
//! records of one reign at an offset were never both right; nor were they if their reigns differ where both know that
//! all is final. Behind that they may differ: the next leader settles it.
//!
//! Batch by batch in the order of their offsets, of each copy one segment at a time: what one copy lacks or has damaged
//! is no difference, and the business of the check of that copy alone.

use std::{collections::VecDeque, io, ops::ControlFlow, path::Path, path::PathBuf, rc::Rc};

use super::{
    Disk, Finding, Kind, PartitionFiles, Piece, Remedy,
    partition::segments_of,
    walk::{Source, walk_segment},
};
use crate::{
    limits::SEGMENT_HEADER_BYTES,
    log::segment::SegmentHeader,
    types::{LeaderEpoch, Offset},
};

/// One copy of a partition.
pub struct CopyFiles {
    /// Where it is.
    pub files: PartitionFiles,
    /// Everything before it is final, as this copy knows.
    pub committed: Offset,
}

const NOBODY_KNOWS: Remedy = Remedy::None("nothing here says which copy is right; keep all of them");
const WILL_BE_SETTLED: Remedy = Remedy::None("it is not known to be final; the next leader settles it");

#[derive(Clone)]
struct Batch {
    from: Offset,
    to: Offset,
    epoch: LeaderEpoch,
    crc: u32,
    position: u64,
    path: Rc<Path>,
}

impl Batch {
    fn content(&self) -> (Offset, LeaderEpoch, u32) {
        (self.to, self.epoch, self.crc)
    }
}

/// The intact batches of a copy, by offset.
struct Batches<'a, D> {
    disk: &'a D,
    /// Segments that were not read yet, and where each ends.
    segments: VecDeque<(PathBuf, Offset, Offset)>,
    read: VecDeque<Batch>,
}

impl<D: Disk> Batches<'_, D> {
    fn first(&mut self) -> Option<&Batch> {
        while self.read.is_empty() {
            let (path, base, end) = self.segments.pop_front()?;
            self.read = self.batches_of(&path, (base, end)).unwrap_or_default();
        }
        self.read.front()
    }

    fn batches_of(&self, path: &Path, (base, end): (Offset, Offset)) -> io::Result<VecDeque<Batch>> {
        let file = self.disk.open(path)?;
        let block = file.read_at(0, SEGMENT_HEADER_BYTES as usize)?;
        let Ok(header) = SegmentHeader::decode(&block) else { return Ok(VecDeque::new()) };
        let (mut next, mut all, path) = (base, VecDeque::new(), Rc::<Path>::from(path));
        let mut see = |piece: Piece<'_>| {
            if let Piece::Batch { position, header, damage: None, .. } = piece
                && header.base_offset >= next
                && header.end_offset() <= end
            {
                next = header.end_offset();
                let (from, to) = (header.base_offset, header.end_offset());
                let (epoch, crc, path) = (header.leader_epoch, header.crc, Rc::clone(&path));
                all.push_back(Batch { from, to, epoch, crc, position, path });
            }
            ControlFlow::Continue(())
        };
        walk_segment(&file, &header, &mut see).map_err(|(_, error)| error)?;
        Ok(all)
    }
}

/// What is different among the copies of one partition: for each pair of them what cannot be, and what will be settled.
///
/// Errors: the directory of one cannot be listed.
pub fn compare_copies<D: Disk>(disk: &D, copies: &[CopyFiles]) -> io::Result<Vec<Finding>> {
    let mut all = Vec::new();
    for copy in copies {
        let segments = segments_of(disk, &copy.files)?;
        all.push(Batches { disk, segments: segments.into(), read: VecDeque::new() });
    }
    let mut findings: Vec<((usize, usize), Finding)> = Vec::new();
    while let Some(from) = all.iter_mut().filter_map(|batches| batches.first().map(|batch| batch.from)).min() {
        let due = |batches: &mut Batches<'_, D>| batches.first().filter(|batch| batch.from == from).cloned();
        let here: Vec<(usize, Batch)> =
            all.iter_mut().enumerate().filter_map(|(copy, batches)| Some((copy, due(batches)?))).collect();
        for (copy, _) in &here {
            all[*copy].read.pop_front();
        }
        for (at, (one, mine)) in here.iter().enumerate() {
            for (other, theirs) in here[at + 1..].iter().filter(|(_, theirs)| theirs.content() != mine.content()) {
                let committed = copies[*one].committed.min(copies[*other].committed);
                note(&mut findings, (*one, *other), difference(mine, theirs, committed));
            }
        }
    }
    Ok(findings.into_iter().map(|(_, finding)| finding).collect())
}

fn difference(mine: &Batch, theirs: &Batch, committed: Offset) -> Finding {
    let is_final = mine.from < committed;
    let (kind, remedy, why) = match (mine.epoch == theirs.epoch, is_final) {
        (true, _) => (Kind::Diverges, NOBODY_KNOWS, "and an epoch has one leader"),
        (false, true) => (Kind::Diverges, NOBODY_KNOWS, "and both know that all is final there"),
        (false, false) => (Kind::Unsettled, WILL_BE_SETTLED, "where nothing is known to be final"),
    };
    let (path, position) = (theirs.path.display(), theirs.position);
    let reason = format!(
        "records of epoch {} stand here, and others, of epoch {}, in {path} at byte {position}, {why}",
        mine.epoch, theirs.epoch
    );
    let end = mine.to.max(theirs.to);
    Finding::new(kind, &mine.path, reason).at(mine.position).records(mine.from, end).remedy(remedy)
}

/// One finding for two copies and a kind: from the first difference to the last.
fn note(findings: &mut Vec<((usize, usize), Finding)>, pair: (usize, usize), found: Finding) {
    let known = findings.iter_mut().find(|(other, known)| *other == pair && known.kind == found.kind);
    match known {
        Some((_, known)) => known.offsets = known.offsets.zip(found.offsets).map(|((first, _), (_, end))| (first, end)),
        None => findings.push((pair, found)),
    }
}

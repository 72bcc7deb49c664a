//! Writing over damaged bytes what should stand there: records that another replica has intact, and the header block of
//! a sealed segment, which its own first batch tells.
//!
//! The one place where bytes of a segment are written that were durable before. Only blocks are written in which
//! damage was found, with what else stands in them as it was read; so a crash on the way leaves damage where there was
//! damage. The batches get the server's fields that belong into this file: its incarnation, and a hint that is true.
//! They must fill the damaged place exactly, as those did that stood there: what is behind it stays where it is.

use std::{cell::Cell, io, path::PathBuf, rc::Rc};

use bytes::Bytes;
use thiserror::Error;

use super::{
    Log, LogFault,
    behind_damage::{run_survey, run_survey_until},
    damage::Loss,
    segment::{Segment, SegmentHeader, header_block},
    survey::{Found, Lost, Survey, records_in},
};
use crate::{
    limits::{BATCH_BYTES_MAX, DEVICE_BLOCK_BYTES_MAX, SEGMENT_HEADER_BYTES},
    record::{BatchHeader, ServerFields, check_stored, check_stored_header, stamp},
    runtime::{Buffer, File, OpenMode, Runtime},
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// A damaged place that is longer is not written over: what stood there is not held in memory at once.
pub const REWRITE_BYTES_MAX: u64 = 2 * BATCH_BYTES_MAX as u64;

/// In how many ways batches may stand in a damaged place before it is not tried any more.
const WAYS_MAX: usize = 4096;

/// Why damage stays.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RewriteError {
    /// Another replica sent what cannot have stood there.
    #[error("what came is not what stood at offset {at}: {reason}")]
    Wrong {
        /// The first record that is missing.
        at: Offset,
        /// What is wrong with it.
        reason: String,
    },
    /// The records do not fill the place.
    #[error("records {from} to {to} do not fit into {} at byte {position}: {reason}", path.display())]
    Misfit {
        /// The segment file.
        path: PathBuf,
        /// Where the damage begins.
        position: u64,
        /// The first record that is missing.
        from: Offset,
        /// The one after the last.
        to: Offset,
        /// Why not.
        reason: String,
    },
    /// Somebody has the file mapped. It can be tried again.
    #[error("{} is mapped by a reader", path.display())]
    Busy {
        /// The segment file.
        path: PathBuf,
    },
    /// The segment is not sealed.
    #[error("{} is still being written", path.display())]
    Active {
        /// The segment file.
        path: PathBuf,
    },
    /// The log is about to end.
    #[error("the log ends")]
    Ending,
    /// The drive does not give what stands there.
    #[error("reading {} failed: {reason}", path.display())]
    Unreadable {
        /// The segment file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A write failed.
    #[error(transparent)]
    Fault(#[from] LogFault),
}

/// What has become of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// There is none, or in another place, which is known now: a drive may once have answered with the bytes of another
    /// place, or somebody was faster.
    Intact,
    /// It was the header block of a segment, and was repaired.
    Restored,
    /// Records are lost; others may have them.
    Lost,
}

/// A batch that is to stand somewhere.
pub(super) struct Wanted {
    pub(super) bytes: Bytes,
    pub(super) header: BatchHeader,
}

impl<R: Runtime> Log<R> {
    /// Looks again at damage that was found, and repairs what needs nobody else for it. What is not damaged any more is
    /// forgotten. A place is written over only if it was seen twice to be exactly this one.
    pub async fn look_again(self: &Rc<Self>, loss: &Loss) -> Result<Look, RewriteError> {
        let Some(segment) = self.segment_of(loss.lost.from) else {
            self.losses.forget(loss);
            return Ok(Look::Intact);
        };
        if loss.is_of_header() {
            return self.restore_header(&segment, loss).await;
        }
        let header = self.header_of(&segment).await.map_err(|error| unreadable(&segment, &error))?;
        let file = self.open_again(&segment).await?;
        let losses = self.lost_now(&file, (&segment, &header), loss).await?;
        let is_it = |lost: &Lost| {
            let span = |lost: &Lost| (lost.position, lost.end_position, lost.from, lost.to);
            span(lost) == span(&loss.lost)
        };
        if losses.iter().any(is_it) {
            return Ok(Look::Lost);
        }
        self.forget_loss(&segment, loss);
        for lost in losses {
            self.report_loss(&segment, lost);
        }
        Ok(Look::Intact)
    }

    /// What is lost from the records of `loss` on to the first batch behind them, as the drive says now, read from a
    /// place that is known: where `loss` begins and ends may be wrong.
    async fn lost_now(
        self: &Rc<Self>,
        file: &R::File,
        (segment, header): (&Rc<Segment<R>>, &SegmentHeader),
        loss: &Loss,
    ) -> Result<Vec<Lost>, RewriteError> {
        let (mut start, mut first) = (SEGMENT_HEADER_BYTES, segment.base_offset());
        if let Ok((loaded, Some(block))) = self.load_and_locate(loss.lost.from).await
            && let Some(offset) = loaded.index.borrow().as_ref().and_then(|index| index.entry_offset(block.number))
        {
            (start, first) = (block.start, offset);
        }
        let span = (start, segment.end_position.get());
        let mut survey = Survey::new(header, span, (first, self.written_offset(segment)));
        let (mut losses, is_behind) = (Vec::new(), Cell::new(false));
        let mut see = |found| match found {
            Found::Batch(batch) => is_behind.set(is_behind.get() || batch.header.base_offset >= loss.lost.to),
            Found::Lost(lost) if is_behind.get() || lost.from == lost.to || lost.to <= loss.lost.from => {}
            Found::Lost(lost) => losses.push(lost),
        };
        let run = run_survey_until(&self.context, file, (&mut survey, &mut see), || is_behind.get());
        run.await.map_err(|error| unreadable(segment, &error))?;
        if !is_behind.get() {
            survey.finish(&mut see);
        }
        Ok(losses)
    }

    /// Writes `batches`, which are all the records of the damaged place `loss` and come from another replica, where
    /// they belong, durably. Everything before `durable` is durable here. Gives how many batches these were.
    pub async fn rewrite(self: &Rc<Self>, loss: &Loss, batches: &Bytes, durable: Offset) -> Result<u64, RewriteError> {
        let Some(_writing) = self.end.begin_writing() else { return Err(RewriteError::Ending) };
        let Some(segment) = self.segment_of(loss.lost.from) else { return Err(RewriteError::Ending) };
        let wanted = split(batches, &loss.lost)?;
        let misfit = |reason: &str| loss.misfit(reason);
        if loss.lost.to > durable {
            return Err(misfit("they are not durable here"));
        }
        if loss.bytes() > REWRITE_BYTES_MAX {
            return Err(misfit("the place is too long"));
        }
        let header = self.header_of(&segment).await.map_err(|error| unreadable(&segment, &error))?;
        // Of records that are deleted by now there is nothing to write: then those that are left need not fill the
        // place.
        let whole = self.losses.at(loss.lost.from).filter(|known| known.lost.from < loss.lost.from);
        let may_be_short = whole.is_some() || loss.lost.to >= self.written_offset(&segment);
        let place =
            Place { span: (loss.lost.position, loss.lost.end_position), block: header.block_bytes, may_be_short };
        let entries = segment.index.borrow().as_ref().map(|index| index.entries_in(loss.lost.from..loss.lost.to));
        let entries = entries.unwrap_or_default();
        let stands = |header: &BatchHeader| entries.iter().find(|(at, _)| *at == header.base_offset).map(|(_, p)| *p);
        // The index of the active segment was made when the batches were: they stood nowhere else.
        let anywhere = || self.successor(&segment).and_then(|_| place.arrange(&wanted, |_| None));
        let positions = place.arrange(&wanted, stands).or_else(anywhere);
        let positions = positions.ok_or_else(|| misfit("they have another length"))?;
        let file = self.open_to_write(&segment).await?;
        self.write_over(&file, (&segment, &header, loss), &wanted, &positions).await?;
        let looks = !planted(PlantedBug::RewriteAsItCame);
        if looks && self.is_lost(&file, (&segment, &header), loss).await? {
            return Err(misfit("the drive does not give back what was written"));
        }
        drop(file);
        self.forget_loss(&segment, whole.as_ref().unwrap_or(loss));
        self.mend_index(&segment, &wanted, &positions).await;
        Ok(wanted.len() as u64)
    }

    /// Damage that reaches behind the next batch that was found as well: for when the records of `loss` do not fit.
    /// Then a drive wrote that batch to a wrong place, which was theirs. `None` if nothing is behind it.
    pub async fn widened(&self, loss: &Loss) -> Result<Option<Loss>, RewriteError> {
        let Some(segment) = self.segment_of(loss.lost.from) else { return Ok(None) };
        let header = self.header_of(&segment).await.map_err(|error| unreadable(&segment, &error))?;
        let bound = self.written_offset(&segment);
        if loss.lost.to >= bound {
            return Ok(None);
        }
        let end = segment.end_position.get().min(loss.lost.position + REWRITE_BYTES_MAX);
        let file = self.open_again(&segment).await?;
        let (mut met, mut behind) = (0, None);
        let mut see = |found| {
            if let Found::Batch(batch) = found {
                met += 1;
                if met == 2 {
                    behind = Some((batch.position, batch.header.base_offset));
                }
            }
        };
        let mut survey = Survey::new(&header, (loss.lost.end_position, end), (loss.lost.to, bound));
        run_survey(&self.context, &file, &mut survey, &mut see).await.map_err(|error| unreadable(&segment, &error))?;
        let (end_position, to) = behind.unwrap_or((end, bound));
        let lost = Lost { end_position, to, ..loss.lost.clone() };
        Ok(Some(Loss { lost, ..loss.clone() }))
    }

    /// A file of its own: those that are kept open are for readers, and a claim ends when it is closed.
    async fn open_again(&self, segment: &Segment<R>) -> Result<R::File, RewriteError> {
        let opened = self.context.runtime.open(&segment.path, OpenMode::Existing).await;
        opened.map_err(|error| unreadable(segment, &error))
    }

    /// The same, mapped by nobody from now on: what is written under a mapping is thrown out of it.
    async fn open_to_write(&self, segment: &Segment<R>) -> Result<R::File, RewriteError> {
        self.forget_reads_of(segment);
        let file = self.open_again(segment).await?;
        match file.claim().await {
            Ok(true) => Ok(file),
            Ok(false) => Err(RewriteError::Busy { path: segment.path.clone() }),
            Err(error) => Err(unreadable(segment, &error)),
        }
    }

    /// Whether any record of `loss` is missing, as the drive says now.
    async fn is_lost(
        &self,
        file: &R::File,
        (segment, header): (&Segment<R>, &SegmentHeader),
        loss: &Loss,
    ) -> Result<bool, RewriteError> {
        let span = (loss.lost.position, loss.lost.end_position);
        let survey = Survey::new(header, span, (loss.lost.from, loss.lost.to));
        let losses = self.survey_file(file, survey).await.map_err(|error| unreadable(segment, &error))?;
        Ok(records_in(&losses).0 > 0)
    }

    async fn survey_file(&self, file: &R::File, mut survey: Survey) -> std::io::Result<Vec<Lost>> {
        let mut losses = Vec::new();
        let mut see = |found| {
            if let Found::Lost(lost) = found {
                losses.push(lost);
            }
        };
        run_survey(&self.context, file, &mut survey, &mut see).await?;
        survey.finish(&mut see);
        Ok(losses)
    }

    async fn write_over(
        &self,
        file: &R::File,
        (segment, header, loss): (&Segment<R>, &SegmentHeader, &Loss),
        wanted: &[Wanted],
        positions: &[u64],
    ) -> Result<(), RewriteError> {
        let (start, end) = (loss.lost.position, loss.lost.end_position);
        let align = file.alignment();
        let first = start - start % align;
        let len = (end.next_multiple_of(align) - first) as usize;
        let read = file.read_at(first, len).await.map_err(|error| unreadable(segment, &error))?;
        // What stands in the same blocks is written once more, and must be what it is.
        if read != file.read_at(first, len).await.map_err(|error| unreadable(segment, &error))? {
            return Err(unreadable(segment, &io::Error::other("it says something else each time")));
        }
        let mut buffer = self.context.runtime.allocate(len.next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize));
        let at = |position: u64| (position - first) as usize;
        let bytes = buffer.bytes_mut();
        bytes[..read.len()].copy_from_slice(&read);
        bytes[at(start)..at(end)].fill(0);
        for (batch, position) in wanted.iter().zip(positions) {
            let place = &mut bytes[at(*position)..at(*position) + batch.bytes.len()];
            place.copy_from_slice(&batch.bytes);
            // All records before the damage are durable: this hint is true whatever the old one said.
            let (base_offset, durable_hint) = (batch.header.base_offset, loss.lost.from);
            let (leader_epoch, incarnation) = (batch.header.leader_epoch, header.incarnation);
            if !planted(PlantedBug::RewriteAsItCame) {
                stamp(place, ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
            }
        }
        buffer.trim(len);
        self.context.metrics.disk_writes.add(1);
        self.context.metrics.disk_write_bytes.add(len as u64);
        self.context.metrics.disk_syncs.add(1);
        let written = file.write_durable_at(first, Rc::new(buffer)).await;
        written.map_err(|error| LogFault::failed("writing", &segment.path, &error).into())
    }

    /// Writes the header block of a sealed segment anew if it is damaged, as its first batch tells it.
    async fn restore_header(self: &Rc<Self>, segment: &Rc<Segment<R>>, loss: &Loss) -> Result<Look, RewriteError> {
        let Some(_writing) = self.end.begin_writing() else { return Err(RewriteError::Ending) };
        let base_offset = segment.base_offset();
        let file = self.open_to_write(segment).await?;
        let len = SEGMENT_HEADER_BYTES as usize + BATCH_BYTES_MAX;
        let bytes = file.read_at(0, len).await.map_err(|error| unreadable(segment, &error))?;
        if SegmentHeader::decode(&bytes)
            .is_ok_and(|header| header.partition == self.partition && header.base_offset == base_offset)
        {
            self.forget_loss(segment, loss);
            return Ok(Look::Intact);
        }
        let behind = bytes.get(SEGMENT_HEADER_BYTES as usize..).unwrap_or_default();
        let first = check_stored_header(behind).ok().filter(|first| first.base_offset == base_offset);
        let whole = first.and_then(|first| behind.get(..first.batch_len()));
        let Some(first) = whole.and_then(|batch| check_stored(batch).ok()) else {
            return Err(loss.misfit("its first batch is damaged too"));
        };
        let (created_ms, incarnation) = (self.context.runtime.unix_millis(), first.incarnation);
        let (partition, leader_epoch) = (self.partition, first.leader_epoch);
        let with =
            |block_bytes| SegmentHeader { partition, block_bytes, base_offset, created_ms, incarnation, leader_epoch };
        let bound = self.written_offset(segment);
        let mut best: Option<((u64, usize), SegmentHeader)> = None;
        // Its blocks are those of the device, unless another device wrote it: they are of the size with which all is
        // found.
        for block_bytes in [self.context.block_bytes, 512, 1024, 2048, 4096] {
            let header = with(block_bytes);
            let span = (SEGMENT_HEADER_BYTES, segment.end_position.get());
            let survey = Survey::new(&header, span, (base_offset, bound));
            let losses = self.survey_file(&file, survey).await.map_err(|error| unreadable(segment, &error))?;
            let lost = records_in(&losses);
            if best.as_ref().is_none_or(|(least, _)| lost < *least) {
                best = Some((lost, header));
            }
            if losses.is_empty() {
                break;
            }
        }
        let header = best.map_or_else(|| with(self.context.block_bytes), |(_, header)| header);
        let written = file.write_durable_at(0, Rc::new(header_block(&self.context.runtime, &header))).await;
        written.map_err(|error| LogFault::failed("writing", &segment.path, &error))?;
        drop(file);
        self.forget_loss(segment, loss);
        Ok(Look::Restored)
    }

    /// What was read of `segment` is read anew when it is asked for.
    fn forget_reads_of(&self, segment: &Segment<R>) {
        let base = segment.base_offset();
        self.context.cache.retain(|key| key.log != self.opening || key.base_offset != base);
        self.forget_windows_of(base);
    }

    fn forget_loss(&self, segment: &Segment<R>, loss: &Loss) {
        self.losses.forget(loss);
        self.forget_reads_of(segment);
    }

    /// Sees to it that the index of a segment leads to what was written into it, as if it had never been missing.
    async fn mend_index(self: &Rc<Self>, segment: &Rc<Segment<R>>, wanted: &[Wanted], positions: &[u64]) {
        let placed = wanted.iter().zip(positions);
        let placed = placed.map(|(batch, at)| (batch.header.base_offset, *at, batch.header.max_timestamp_ms));
        let knows_all = segment.index.borrow().as_ref().is_none_or(|index| index.knows_all(placed));
        // That of the active segment was made when the batches were, and one that is not loaded before the damage.
        if knows_all || self.successor(segment).is_none() || segment.file.borrow().is_none() {
            return;
        }
        if let Ok(index) = self.rebuild_index(segment).await {
            *segment.index.borrow_mut() = Some(index);
            self.note_loaded(segment);
        }
    }
}

pub(super) fn unreadable<R: Runtime>(segment: &Segment<R>, error: &std::io::Error) -> RewriteError {
    RewriteError::Unreadable { path: segment.path.clone(), reason: error.to_string() }
}

impl Loss {
    /// Whether all of a segment is lost because its header is.
    fn is_of_header(&self) -> bool {
        self.lost.position < SEGMENT_HEADER_BYTES
    }

    /// How long the place is.
    pub fn bytes(&self) -> u64 {
        self.lost.end_position - self.lost.position
    }

    fn misfit(&self, reason: &str) -> RewriteError {
        let (path, reason) = (self.file.clone(), reason.to_owned());
        let Lost { position, from, to, .. } = self.lost;
        RewriteError::Misfit { path, position, from, to, reason }
    }
}

/// The batches in `bytes`, which must be all the records of `lost`, and intact.
fn split(bytes: &Bytes, lost: &Lost) -> Result<Vec<Wanted>, RewriteError> {
    let all = batches_in(bytes, lost.from, lost.to)?;
    let end = all.last().map_or(lost.from, |last| last.header.end_offset());
    let short = || RewriteError::Wrong { at: end, reason: format!("it ends there and not at {}", lost.to) };
    if end == lost.to { Ok(all) } else { Err(short()) }
}

/// The batches in `bytes`, of which the first begins at `due`, up to the end `to`; all of them intact, at least one.
pub(super) fn batches_in(bytes: &Bytes, mut due: Offset, to: Offset) -> Result<Vec<Wanted>, RewriteError> {
    let (mut rest, mut all) = (bytes.clone(), Vec::new());
    let wrong = |at, reason: String| RewriteError::Wrong { at, reason };
    while !rest.is_empty() && due < to {
        let header = check_stored_header(&rest).map_err(|error| wrong(due, error.to_string()))?;
        if header.base_offset != due || header.batch_len() > rest.len() || header.end_offset() > to {
            return Err(wrong(due, format!("a batch at {} of {} bytes", header.base_offset, header.batch_len())));
        }
        let batch = rest.split_to(header.batch_len());
        check_stored(&batch).map_err(|error| wrong(due, error.to_string()))?;
        due = header.end_offset();
        all.push(Wanted { bytes: batch, header });
    }
    if all.is_empty() { Err(wrong(due, "nothing came".to_owned())) } else { Ok(all) }
}

/// A damaged place of a segment file.
struct Place {
    span: (u64, u64),
    /// Flush groups begin at multiples of this.
    block: u32,
    /// It need not be filled: no record of the segment comes behind it, or some that stood there are deleted.
    may_be_short: bool,
}

impl Place {
    /// Where `batches` can stand so that they fill the place as flush groups do, each where `stands` says, if it says
    /// so. `None` if they cannot.
    fn arrange(&self, batches: &[Wanted], stands: impl Fn(&BatchHeader) -> Option<u64>) -> Option<Vec<u64>> {
        let (start, end) = self.span;
        let padded = |position: u64| position.next_multiple_of(u64::from(self.block));
        // For each batch where it can end, and from which end of the one before.
        let mut steps: Vec<Vec<(u64, u64)>> = Vec::new();
        let mut ends = vec![start];
        let mut left: u64 = batches.iter().map(|batch| batch.bytes.len() as u64).sum();
        for batch in batches {
            let len = batch.bytes.len() as u64;
            let fixed = stands(&batch.header);
            let mut next: Vec<(u64, u64)> = Vec::new();
            for before in &ends {
                // Right behind it, or at the beginning of a group.
                for at in [*before, padded(*before)] {
                    let fits = at + left <= end && fixed.is_none_or(|fixed| fixed == at);
                    if fits && !next.iter().any(|(known, _)| *known == at) {
                        next.push((at, *before));
                    }
                }
            }
            left -= len;
            if next.len() > WAYS_MAX {
                return None;
            }
            ends = next.iter().map(|(at, _)| at + len).collect();
            steps.push(next);
        }
        let mut end_of_last = *ends.iter().find(|last| self.may_be_short || **last == end || padded(**last) == end)?;
        let mut positions = Vec::new();
        for (batch, step) in batches.iter().zip(&steps).rev() {
            let at = end_of_last - batch.bytes.len() as u64;
            let (_, before) = step.iter().find(|(known, _)| *known == at)?;
            positions.push(at);
            end_of_last = *before;
        }
        positions.reverse();
        Some(positions)
    }
}

#[cfg(test)]
mod tests;

//! Making a sealed segment readable when somebody first wants it: its file, its header and its index; and finding a
//! place in a log by time.

use std::rc::Rc;

use bytes::Bytes;

use super::{
    Log,
    index::{Index, IndexBlock, SidecarKey},
    read::ReadRange,
    segment::{Segment, SegmentHeader},
    survey::{Found, Lost, Survey, records_in},
};
use crate::{
    error::RequestError,
    limits::{BATCH_BYTES_MAX, SEGMENT_HEADER_BYTES},
    record::BatchHeader,
    runtime::{File, OpenMode, Runtime},
    types::Offset,
};

impl<R: Runtime> Log<R> {
    /// The offset of the first record from `start` to `end` whose batch has a record that is not older than
    /// `timestamp_ms`; `end` if there is none. What is lost is passed over. Of segments that are too old only the
    /// newest timestamp is looked at, which is known once an index was loaded.
    pub async fn find_time(
        self: &Rc<Self>,
        timestamp_ms: i64,
        (start, end): (Offset, Offset),
    ) -> Result<Offset, RequestError> {
        let segments: Vec<_> = self.segments.borrow().clone();
        let nexts = segments.iter().skip(1).map(|next| next.base_offset()).chain([Offset(u64::MAX)]);
        for (known, next) in segments.iter().zip(nexts) {
            let (base, is_sealed) = (known.base_offset(), next < Offset(u64::MAX));
            let too_old = is_sealed && known.max_timestamp.get().is_some_and(|newest| newest < timestamp_ms);
            if next <= start || too_old {
                continue;
            }
            match self.find_time_in(timestamp_ms, base, (start, end.min(next))).await {
                Ok(None) => {}
                Ok(Some(found)) => return Ok(found),
                Err(RequestError::Corrupt { from, to, .. }) if to > from => {}
                // Deleted meanwhile; what is wanted comes later.
                Err(_) if !self.holds(base) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(end)
    }

    /// The same in the segment at `base` only; `None` if nothing in it is new enough.
    async fn find_time_in(
        self: &Rc<Self>,
        timestamp_ms: i64,
        base: Offset,
        (start, end): (Offset, Offset),
    ) -> Result<Option<Offset>, RequestError> {
        let (segment, _) = self.load_and_locate(base).await?;
        let block = segment.index.borrow().as_ref().and_then(|index| index.block_of_time(timestamp_ms));
        let Some(block) = block else { return Ok(None) };
        let first = self.first_offset_of(&segment, block).max(start);
        let mut range = ReadRange { offset: first, end, max_bytes: BATCH_BYTES_MAX };
        while range.offset < end {
            let pieces = match self.read(range).await {
                Ok(pieces) => pieces,
                Err(RequestError::Corrupt { to, .. }) if to > range.offset => {
                    range.offset = to;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for header in pieces.iter().flat_map(headers_of) {
                if header.max_timestamp_ms >= timestamp_ms {
                    return Ok(Some(header.base_offset.max(first)));
                }
                range.offset = header.end_offset();
            }
        }
        Ok(None)
    }

    fn first_offset_of(&self, segment: &Segment<R>, block: IndexBlock) -> Offset {
        let index = segment.index.borrow();
        index.as_ref().and_then(|index| index.entry_offset(block.number)).unwrap_or(segment.base_offset())
    }

    /// Opens the sealed segment that holds `offset` and gets its index, from its sidecar or from itself.
    pub(super) async fn load_segment(self: &Rc<Self>, offset: Offset) -> Result<(), RequestError> {
        let Some(known) = self.segment_of(offset) else { return Ok(()) };
        let failed = |error: std::io::Error| RequestError::ReadFailed {
            file: known.path.clone(),
            position: 0,
            from: known.base_offset(),
            to: self.written_offset(&known),
            reason: error.to_string(),
        };
        let runtime = &self.context.runtime;
        let file = match runtime.open(&known.path, OpenMode::Existing).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.whole_segment_lost(&known, error.to_string()));
            }
            Err(error) => return Err(failed(error)),
        };
        let block = file.read_at(0, SEGMENT_HEADER_BYTES as usize).await.map_err(failed)?;
        let header = match SegmentHeader::decode(&block) {
            Ok(header) if header.partition == self.partition && header.base_offset == known.base_offset() => header,
            Ok(header) => {
                let (partition, base) = (header.partition, header.base_offset);
                let reason = format!("its header says partition {partition} and base offset {base}");
                return Err(self.whole_segment_lost(&known, reason));
            }
            Err(error) => return Err(self.whole_segment_lost(&known, error.to_string())),
        };
        // The file of the last segment is open, or the log is not written at all.
        let is_sealed = self.successor(&known).is_some();
        if known.was_loaded.get() && known.header == header {
            // Let go of before: it stays the same segment.
            let index = self.index_of(&known, Rc::new(file)).await?;
            *known.index.borrow_mut() = Some(index);
            self.note_loaded(&known);
            return Ok(());
        }
        let segment = Segment::planned(&self.dir, header);
        segment.end_position.set(known.end_position.get());
        segment.sealed.set(is_sealed);
        let segment = Rc::new(segment);
        let index = self.index_of(&segment, Rc::new(file)).await?;
        *segment.index.borrow_mut() = Some(index);
        let mut segments = self.segments.borrow_mut();
        // Another reader may have been faster; then its segment stays.
        let Some(place) = segments.iter_mut().find(|other| Rc::ptr_eq(other, &known)) else { return Ok(()) };
        *place = Rc::clone(&segment);
        drop(segments);
        self.note_loaded(&segment);
        Ok(())
    }

    /// Gives `segment` its `file`, and gets its index from its sidecar or from itself.
    async fn index_of(self: &Rc<Self>, segment: &Rc<Segment<R>>, file: Rc<R::File>) -> Result<Index, RequestError> {
        *segment.file.borrow_mut() = Some(file);
        match self.read_sidecar(segment).await {
            Some(index) => Ok(index),
            None => self.rebuild_index(segment).await,
        }
    }

    /// Without its header nothing says whose batches a segment holds.
    pub(super) fn whole_segment_lost(&self, segment: &Rc<Segment<R>>, reason: String) -> RequestError {
        let (from, to) = (segment.base_offset(), self.written_offset(segment));
        let end_position = segment.end_position.get();
        let lost = Lost { position: 0, end_position, from, to, reason };
        self.report_loss(segment, lost).error()
    }

    pub(super) async fn read_sidecar(&self, segment: &Segment<R>) -> Option<Index> {
        let file = self.context.runtime.open(&segment.index_path(), OpenMode::Existing).await.ok()?;
        let size = usize::try_from(file.size().await.ok()?).ok()?;
        let bytes = file.read_at(0, size.next_multiple_of(file.alignment() as usize)).await.ok()?;
        let key = SidecarKey { incarnation: segment.header.incarnation, end_position: segment.end_position.get() };
        Index::from_sidecar(&bytes, key)
    }

    /// Makes the index from the segment. What is lost in it does not keep the rest from being found.
    pub(super) async fn rebuild_index(&self, segment: &Rc<Segment<R>>) -> Result<Index, RequestError> {
        let (mut index, mut losses) = self.survey_segment(segment).await?;
        if !losses.is_empty() {
            // Once more, as a reader does: an index that was made from a wrong answer of the drive would stay.
            let (again, lost_again) = self.survey_segment(segment).await?;
            if records_in(&lost_again) < records_in(&losses) {
                (index, losses) = (again, lost_again);
            }
        }
        for lost in losses {
            self.report_loss(segment, lost);
        }
        if let Err(error) = self.write_index(segment, &index).await {
            tracing::warn!(file = %segment.index_path().display(), %error, "the rebuilt index was not kept");
        }
        Ok(index)
    }

    /// Reads a segment whole: its index, and what is lost of it.
    async fn survey_segment(&self, segment: &Rc<Segment<R>>) -> Result<(Index, Vec<Lost>), RequestError> {
        let mut index = Index::default();
        let mut losses = Vec::new();
        let base = segment.base_offset();
        let span = (SEGMENT_HEADER_BYTES, segment.end_position.get());
        let bound = self.written_offset(segment);
        let mut survey = Survey::new(&segment.header, span, (base, bound));
        let mut see = |found| match found {
            Found::Batch(batch) => {
                index.note(batch.header.base_offset, batch.position, batch.header.max_timestamp_ms);
            }
            Found::Lost(lost) => {
                // Whoever asks for the first records must be led to where they are missing.
                if lost.from == base {
                    index.note(base, SEGMENT_HEADER_BYTES, i64::MIN);
                }
                losses.push(lost);
            }
        };
        while let Some((position, len)) = survey.wants() {
            // What was shown so far was read.
            let records = (survey.expected().min(bound), bound);
            let bytes = self.read_file(segment, (position, position + len as u64), records).await?;
            survey.take(&bytes, &mut see);
            self.context.runtime.yield_now().await;
        }
        survey.finish(&mut see);
        Ok((index, losses))
    }
}

/// The headers of the batches in `piece`.
pub(super) fn headers_of(piece: &Bytes) -> Vec<BatchHeader> {
    let mut headers = Vec::new();
    let mut rest: &[u8] = piece;
    while let Ok(header) = BatchHeader::decode(rest) {
        rest = rest.get(header.batch_len()..).unwrap_or_default();
        headers.push(header);
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use futures_util::future::join;

    use super::*;
    use crate::{
        log::{
            LogContext,
            fixture::{append_timed, context, open},
        },
        runtime::sim::{
            Sim, SimConfig, SimRuntime,
            faults::{FaultKind, FaultRates},
        },
    };

    const STEPS: u64 = 1_000_000;
    const ALL: (Offset, Offset) = (Offset(0), Offset(400));

    /// A log of 400 records in four segments, of which none is loaded; the time of each record is its offset.
    async fn unloaded(context: Rc<LogContext<SimRuntime>>) -> Rc<Log<SimRuntime>> {
        let log = open(&context).await.log;
        append_timed(&log).await;
        context.runtime.sleep(std::time::Duration::from_secs(1)).await;
        open(&context).await.log
    }

    /// The file of each segment, and where it begins.
    fn segments_of(log: &Log<SimRuntime>) -> [(PathBuf, Offset); 4] {
        let segments = log.segments.borrow();
        let all: Vec<_> = segments.iter().map(|segment| (segment.path.clone(), segment.base_offset())).collect();
        all.try_into().unwrap()
    }

    #[test]
    fn a_segment_that_is_deleted_while_a_time_is_looked_up_in_it_is_passed_over() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = unloaded(context).await;
            let [_, (_, second), ..] = segments_of(&log);
            let deletion = async { log.release_before(second) };
            let (found, ()) = join(log.find_time(5, ALL), deletion).await;
            assert_eq!(found, Ok(second), "what was wanted is gone, and later records are new enough");
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn a_segment_whose_file_is_missing_is_lost_and_a_time_is_looked_for_behind_it() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = unloaded(Rc::clone(&context)).await;
            let [_, (path, second), (_, third), _] = segments_of(&log);
            context.runtime.remove_file(&path).await.unwrap();
            assert_eq!(log.find_time(second.0 as i64 + 5, ALL).await, Ok(third));
            assert_eq!(log.find_time(second.0 as i64 - 1, ALL).await, Ok(Offset(second.0 - 1)));
            let losses = log.losses().all();
            let [loss] = &losses[..] else { panic!("{losses:?}") };
            assert_eq!((loss.lost.from, loss.lost.to, &loss.file), (second, third, &path));
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn a_drive_that_gives_nothing_is_an_error_and_not_a_time_that_nobody_wrote() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let log = sim.block_on(&cores[0], unloaded(context(&cores[0], 4096)), STEPS).unwrap();
        sim.set_rates(FaultRates::none().with(FaultKind::ReadError, 10_000));
        let [(path, _), (_, second), ..] = segments_of(&log);
        let story = async move { log.find_time(5, ALL).await };
        let error = sim.block_on(&cores[0], story, STEPS).unwrap().unwrap_err();
        let RequestError::ReadFailed { file, from, to, .. } = &error else { panic!("{error}") };
        assert_eq!((file, *from, *to), (&path, Offset(0), second));
    }
}

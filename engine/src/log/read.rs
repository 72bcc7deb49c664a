//! From an offset to bytes: the tail in memory, else the cache, else the device.
//!
//! What comes from the device is checked whole, once, before anybody sees it; then it is handed out without copying.
//! Damage is never served and never taken for the end: batches before it are, a read of it is an error that says which
//! records are lost, and batches behind it are found again ([`super::survey`]).

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::{
    Log,
    ahead::Ready,
    cache::BlockKey,
    damage::Loss,
    index::IndexBlock,
    scan::{Check, Step, Walk},
    segment::{Segment, SegmentHeader},
    survey::{Found, Lost, Survey, records_in},
};
use crate::{
    error::RequestError,
    limits::{BATCH_BYTES_MAX, DEVICE_BLOCK_BYTES_MAX, INDEX_INTERVAL_BYTES, SEGMENT_HEADER_BYTES},
    runtime::{File, Runtime},
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// Small pieces are joined by copying: below this size a copy is cheaper than one more piece on its way to the socket.
const PIECE_BYTES_MIN: usize = 1024;

/// What a reader wants.
#[derive(Clone, Copy, Debug)]
pub struct ReadRange {
    /// The first record.
    pub offset: Offset,
    /// No batch from here on is visible.
    pub end: Offset,
    /// Stop before the batch that would exceed this, but take at least one.
    pub max_bytes: usize,
}

/// Gathers the batches of a range from the stretches of bytes that hold them.
struct Collector {
    range: ReadRange,
    pieces: Vec<Bytes>,
    bytes: usize,
    /// The offset after the last batch.
    next: Offset,
    /// The range is complete.
    done: bool,
}

impl Collector {
    fn new(range: ReadRange) -> Self {
        Collector { range, pieces: Vec::new(), bytes: 0, next: range.offset, done: false }
    }

    /// Takes the wanted batches of `bytes`, which stand at `start` of the file of `segment` and were checked before.
    fn take(&mut self, bytes: &Bytes, start: u64, segment: &SegmentHeader) {
        let mut walk = Walk::new(bytes, start, (segment.block_bytes, segment.incarnation), Check::Known);
        walk.skip_before(self.range.offset);
        let mut run: Option<(usize, usize)> = None;
        while let Step::Batch(batch) = walk.step() {
            if batch.header.end_offset() <= self.range.offset {
                continue;
            }
            let len = batch.header.batch_len();
            let full = self.bytes > 0 && self.bytes + len > self.range.max_bytes;
            // Behind what was checked may stand what was cut off: also batches of smaller offsets, if a drive wrote
            // them to a wrong place.
            let goes_on = self.bytes == 0 || batch.header.base_offset == self.next;
            if batch.header.base_offset >= self.range.end || !goes_on || full {
                self.done = true;
                break;
            }
            let from = (batch.position - start) as usize;
            self.bytes += len;
            self.next = batch.header.end_offset();
            run = match run {
                Some((begin, end)) if end == from => Some((begin, from + len)),
                other => {
                    self.flush_run(bytes, other);
                    Some((from, from + len))
                }
            };
        }
        self.flush_run(bytes, run);
    }

    fn flush_run(&mut self, bytes: &Bytes, run: Option<(usize, usize)>) {
        if let Some((from, to)) = run {
            self.pieces.push(bytes.slice(from..to));
        }
    }

    fn into_pieces(self) -> Vec<Bytes> {
        if self.pieces.len() < 2 || self.bytes / self.pieces.len() >= PIECE_BYTES_MIN {
            return self.pieces;
        }
        let mut joined = BytesMut::with_capacity(self.bytes);
        self.pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        vec![joined.freeze()]
    }
}

/// How often a reader loads a segment that others push out before it comes to read it.
const LOADS_MAX: u32 = 8;

impl<R: Runtime> Log<R> {
    /// Reads without waiting, if the first record wanted is in memory. `None` if it is not.
    pub fn read_memory(&self, range: ReadRange) -> Option<Vec<Bytes>> {
        let (mut segment, block) = self.locate(range.offset)?;
        let tail = self.tail.borrow();
        let mut position = tail.start_of(&segment, range.offset)?.max(block?.start);
        let mut collector = Collector::new(range);
        while !collector.done {
            let wanted = range.max_bytes.saturating_sub(collector.bytes).max(1);
            let Some(found) = tail.bytes_at(&segment, position, wanted) else {
                let Some(next) = self.successor(&segment) else { break };
                (segment, position) = (next, SEGMENT_HEADER_BYTES);
                continue;
            };
            collector.take(&found.bytes, position, &segment.header);
            position = found.next;
        }
        Some(collector.into_pieces()).filter(|pieces| !pieces.is_empty())
    }

    /// Reads what was appended lately from memory, the rest from the device.
    ///
    /// Errors: those of [`Log::read_disk`].
    pub async fn read(self: &Rc<Self>, range: ReadRange) -> Result<Vec<Bytes>, RequestError> {
        match self.read_memory(range) {
            Some(pieces) => Ok(pieces),
            None => self.read_disk(range).await,
        }
    }

    /// Reads from the device what [`Log::read_memory`] did not find: up to the next damage, if there is some, and not
    /// across it. Likewise up to what the drive does not give, as far as blocks of the index are apart.
    ///
    /// Errors: `Corrupt`, if the first record wanted is lost; `ReadFailed`.
    pub async fn read_disk(self: &Rc<Self>, range: ReadRange) -> Result<Vec<Bytes>, RequestError> {
        match self.read_at_once(range).await {
            Err(RequestError::ReadFailed { .. }) if range.max_bytes > 1 => {
                self.read_at_once(ReadRange { max_bytes: 1, ..range }).await
            }
            outcome => outcome,
        }
    }

    async fn read_at_once(self: &Rc<Self>, range: ReadRange) -> Result<Vec<Bytes>, RequestError> {
        let careless = planted(PlantedBug::SkipDamageSilently) || planted(PlantedBug::StopAtDamage);
        if let Some(loss) = self.losses.at(range.offset).filter(|_| !careless) {
            return Err(loss.error());
        }
        // A few turns at most: the stretches of a reader come in his order.
        self.ahead.settled(range.offset).await;
        if let Some(outcome) = self.read_ahead(range) {
            return outcome;
        }
        let read = if self.is_catching_up(range.offset) {
            self.read_stretch(range).await?
        } else {
            let (segment, stretch) = self.find_stretch(range).await?;
            let checked = self.checked_bytes(&segment, &stretch).await?;
            Ready { segment, checked, bound: stretch.bound }
        };
        let (pieces, end) = read.checked.batches(range, &read.segment)?;
        if pieces.is_empty() && !planted(PlantedBug::StopAtDamage) {
            return Err(nowhere(&read.segment, range.offset, read.checked.start));
        }
        self.note_reader(range.offset, end);
        Ok(pieces)
    }

    /// Reads what is worth reading at once for `range`, in the background and past the cache.
    pub(super) async fn read_stretch(self: &Rc<Self>, range: ReadRange) -> Result<Ready<R>, RequestError> {
        let _lane = self.context.ahead.lane().await;
        let (segment, stretch) = self.find_stretch(range).await?;
        let checked = self.read_checked(&segment, &stretch).await?;
        Ok(Ready { segment, checked, bound: stretch.bound })
    }

    async fn find_stretch(self: &Rc<Self>, range: ReadRange) -> Result<(Rc<Segment<R>>, Stretch), RequestError> {
        let (segment, block) = self.load_and_locate(range.offset).await?;
        let Some(block) = block else { return Err(nowhere(&segment, range.offset, 0)) };
        let stretch = self.stretch(&segment, block, range);
        Ok((segment, stretch))
    }

    /// The segment that holds `offset`, and the block of it, if its index is loaded.
    fn locate(&self, offset: Offset) -> Option<(Rc<Segment<R>>, Option<IndexBlock>)> {
        let segment = self.segment_of(offset)?;
        let block = segment.index.borrow().as_ref()?.block_of(offset);
        segment.read_lately.set(true);
        Some((segment, block))
    }

    /// Whether the index is in memory that leads to `offset`.
    pub fn has_index_of(&self, offset: Offset) -> bool {
        self.locate(offset).is_some()
    }

    pub(super) fn segment_of(&self, offset: Offset) -> Option<Rc<Segment<R>>> {
        let segments = self.segments.borrow();
        let after = segments.partition_point(|segment| segment.base_offset() <= offset);
        Some(Rc::clone(segments.get(after.checked_sub(1)?)?))
    }

    pub(super) fn successor(&self, segment: &Segment<R>) -> Option<Rc<Segment<R>>> {
        let segments = self.segments.borrow();
        let after = segments.partition_point(|other| other.base_offset() <= segment.base_offset());
        segments.get(after).cloned()
    }

    pub(super) async fn load_and_locate(
        self: &Rc<Self>,
        offset: Offset,
    ) -> Result<(Rc<Segment<R>>, Option<IndexBlock>), RequestError> {
        for _ in 0..LOADS_MAX {
            if let Some(found) = self.locate(offset) {
                return Ok(found);
            }
            // If another reader was faster, what it loaded may have gone by now.
            self.load_segment(offset).await?;
        }
        let (file, position, from, to) = (self.dir.clone(), 0, offset, offset);
        match self.segment_of(offset) {
            None => {
                let reason = format!("no segment holds offset {offset}");
                Err(RequestError::Corrupt { file, position, from, to, reason })
            }
            Some(segment) => {
                let reason = "its index was pushed out of memory by others again and again".to_owned();
                Err(RequestError::ReadFailed { file: segment.path.clone(), position, from, to, reason })
            }
        }
    }

    /// The bytes worth reading at once for `range`: whole index blocks from `first` on.
    fn stretch(&self, segment: &Rc<Segment<R>>, first: IndexBlock, range: ReadRange) -> Stretch {
        let written_end = self.tail.borrow().written_end(segment);
        let index = segment.index.borrow();
        let mut last = first;
        while let Some(end) = last.end.filter(|end| *end < written_end)
            && ((end - first.start) as usize) < range.max_bytes
            && let Some(next) = index.as_ref().and_then(|index| index.block(last.number + 1))
        {
            last = next;
        }
        let whole = last.end.filter(|end| *end <= written_end);
        let key = self.block_key(segment, first.number);
        let cached_as = (whole.is_some() && last.number == first.number).then_some(key);
        let entry = |number| index.as_ref().and_then(|index| index.entry_offset(number));
        let bound = entry(last.number + 1).filter(|_| whole.is_some());
        // No batch that is due begins later in the last block. What was cut off may stand there, and be long.
        let end_max = last.start + INDEX_INTERVAL_BYTES + BATCH_BYTES_MAX as u64;
        Stretch {
            start: first.start,
            end: whole.unwrap_or(written_end.min(end_max.next_multiple_of(DEVICE_BLOCK_BYTES_MAX))),
            first: entry(first.number).unwrap_or(segment.base_offset()),
            bound: bound.unwrap_or_else(|| self.written_offset(segment)),
            cached_as,
        }
    }

    pub(super) fn block_key(&self, segment: &Segment<R>, number: usize) -> BlockKey {
        let segment_named = !planted(PlantedBug::BlockOfAnotherSegment);
        let base_offset = if segment_named { segment.base_offset() } else { Offset(0) };
        BlockKey { log: self.opening, base_offset, number }
    }

    /// The offset that follows what the device has of `segment`.
    pub(super) fn written_offset(&self, segment: &Rc<Segment<R>>) -> Offset {
        match self.successor(segment) {
            Some(next) => self.tail.borrow().unwritten_offset(segment).unwrap_or(next.base_offset()),
            None => self.tail.borrow().unwritten_offset(segment).unwrap_or(self.end_offset.get()),
        }
    }

    async fn checked_bytes(&self, segment: &Rc<Segment<R>>, stretch: &Stretch) -> Result<Checked, RequestError> {
        let Stretch { start, bound, .. } = *stretch;
        if let Some(checked) = self.windowed(segment, stretch).await {
            return Ok(checked);
        }
        if let Some(bytes) = stretch.cached_as.and_then(|key| self.context.cache.get(&key)) {
            self.context.metrics.cache_hits.add(1);
            return Ok(Checked { start, bytes, bound, losses: Vec::new() });
        }
        self.context.metrics.cache_misses.add(1);
        let checked = self.read_checked(segment, stretch).await?;
        if let Some(key) = stretch.cached_as.filter(|_| checked.losses.is_empty() && !self.end.has_come()) {
            self.context.cache.insert(key, checked.bytes.clone());
        }
        Ok(checked)
    }

    /// Reads a stretch and checks it. Where records seem to be lost it is read again: a drive may once have answered
    /// with the bytes of another place.
    async fn read_checked(&self, segment: &Rc<Segment<R>>, stretch: &Stretch) -> Result<Checked, RequestError> {
        let Stretch { start, bound, .. } = *stretch;
        if let Some(bytes) = self.map_stretch(segment, stretch).await {
            return Ok(Checked { start, bytes, bound, losses: Vec::new() });
        }
        let span = (stretch.start, stretch.end);
        let mut bytes = self.read_file(segment, span, (stretch.first, stretch.bound)).await?;
        let mut losses = check(segment, stretch, &bytes);
        if !losses.is_empty() {
            let again = self.read_file(segment, span, (stretch.first, stretch.bound)).await?;
            let lost_again = check(segment, stretch, &again);
            if records_in(&lost_again) < records_in(&losses) {
                (bytes, losses) = (again, lost_again);
            }
        }
        let losses = losses.into_iter().map(|lost| self.report_loss(segment, lost)).collect();
        Ok(Checked { start, bytes, bound, losses })
    }

    /// Reads a file from `start` to `end`, or to where it ends; for an error to name, the records that are there.
    pub(super) async fn read_file(
        &self,
        segment: &Segment<R>,
        (start, end): (u64, u64),
        (from, to): (Offset, Offset),
    ) -> Result<Bytes, RequestError> {
        let failed = |error: std::io::Error| RequestError::ReadFailed {
            file: segment.path.clone(),
            position: start,
            from,
            to,
            reason: error.to_string(),
        };
        let file = segment.file.borrow().clone();
        let file = file.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let align = file.alignment();
        let first = start - start % align;
        let len = end.next_multiple_of(align) - first;
        self.context.metrics.disk_reads.add(1);
        self.context.metrics.disk_read_bytes.add(len);
        let bytes = file.read_at(first, len as usize).await.map_err(failed)?;
        let wanted = (start - first) as usize..(end - first) as usize;
        Ok(bytes.slice(wanted.start.min(bytes.len())..wanted.end.min(bytes.len())))
    }
}

/// Checks every byte of what was read of a stretch, and that its records go on without a gap. Gives what is lost.
pub(super) fn check<R: Runtime>(segment: &Segment<R>, stretch: &Stretch, bytes: &[u8]) -> Vec<Lost> {
    let mut losses = Vec::new();
    let mut see = |found| {
        if let Found::Lost(lost) = found {
            losses.push(lost);
        }
    };
    let span = (stretch.start, stretch.end);
    let mut survey = Survey::new(&segment.header, span, (stretch.first, stretch.bound)).in_one_piece();
    if planted(PlantedBug::ServeUnchecked) {
        survey = survey.believing();
    }
    survey.take(bytes, &mut see);
    survey.finish(&mut see);
    losses
}

/// Bytes to read from a segment file.
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) end: u64,
    /// The offset due at `start`.
    pub(super) first: Offset,
    /// The offset due at `end`.
    pub(super) bound: Offset,
    /// Under which name they are cached: a single whole block.
    pub(super) cached_as: Option<BlockKey>,
}

/// Bytes of a segment file that were checked: intact batches, and what is lost between them.
pub(super) struct Checked {
    pub(super) start: u64,
    pub(super) bytes: Bytes,
    /// The offset due behind it. What stands there from this one on was cut off.
    pub(super) bound: Offset,
    pub(super) losses: Vec<Loss>,
}

impl Checked {
    /// The batches of `range`, up to the first damage behind its beginning, and the offset after the last of them.
    ///
    /// Errors: `Corrupt`, if its beginning is lost.
    pub(super) fn batches<R: Runtime>(
        &self,
        range: ReadRange,
        segment: &Segment<R>,
    ) -> Result<(Vec<Bytes>, Offset), RequestError> {
        let mut range = ReadRange { end: range.end.min(self.bound), ..range };
        let (mut from, mut until) = (self.start, self.start + self.bytes.len() as u64);
        for loss in &self.losses {
            let lost = &loss.lost;
            if planted(PlantedBug::SkipDamageSilently) && (lost.from..lost.to).contains(&range.offset) {
                range.offset = lost.to;
            }
            if lost.to <= range.offset {
                from = lost.end_position;
            } else if lost.from <= range.offset {
                if planted(PlantedBug::StopAtDamage) {
                    return Ok((Vec::new(), range.offset));
                }
                return Err(loss.error());
            } else {
                // By the place, and not by offsets alone: what a damaged header says of its own is not to be believed.
                range.end = range.end.min(lost.from);
                until = until.min(lost.position);
                break;
            }
        }
        let at = |position: u64| ((position - self.start) as usize).min(self.bytes.len());
        let bytes = self.bytes.slice(at(from)..at(until.max(from)));
        let mut collector = Collector::new(range);
        collector.take(&bytes, from, &segment.header);
        let next = collector.next;
        Ok((collector.into_pieces(), next))
    }
}

fn nowhere<R: Runtime>(segment: &Segment<R>, offset: Offset, position: u64) -> RequestError {
    let reason = format!("offset {offset} is not where the index says");
    RequestError::Corrupt { file: segment.path.clone(), position, from: offset, to: offset, reason }
}

#[cfg(test)]
mod tests {
    use std::{ops::Range, path::Path};

    use super::*;
    use crate::{
        log::{
            fixture::{DIR, append_each, batch_of, context, edit, edit_header, open, placed},
            flush::Commit,
            loading::headers_of,
            segment::segment_path,
        },
        record::check_produced,
        runtime::sim::{
            Sim, SimConfig, SimRuntime,
            faults::{FaultKind, FaultRates},
        },
    };

    const BATCH: usize = 512;

    /// Where batch `number` stands behind the header block.
    fn place(number: u64) -> Range<usize> {
        let start = (number / 2 * 4096) as usize + (number % 2) as usize * BATCH;
        start..start + BATCH
    }

    /// A log with two groups of two batches, whose bytes were then changed.
    async fn with_damage(runtime: SimRuntime, damage: impl FnOnce(&mut [u8])) -> Rc<Log<SimRuntime>> {
        let log = open(&context(&runtime, 4096)).await.log;
        let batch = batch_of(BATCH);
        for offset in 0..4 {
            log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
            if offset % 2 == 1 {
                log.write_waiting(Commit::Written).await.unwrap();
            }
        }
        let groups = SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + 2 * 4096;
        edit(&runtime, &segment_path(Path::new(DIR), Offset(0)), groups, damage).await;
        log
    }

    /// The same with the batch at offset `lost` overwritten with zeros.
    async fn with_a_hole(runtime: SimRuntime, lost: u64) -> Rc<Log<SimRuntime>> {
        with_damage(runtime, |bytes| bytes[place(lost)].fill(0)).await
    }

    #[test]
    fn what_was_cut_off_behind_the_end_is_not_served_though_it_begins_before_the_end() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let runtime = cores[0].clone();
        let story = async move {
            // A batch of an earlier offset, with a damaged body, where the last group is padded.
            let log = with_damage(runtime, |bytes| {
                let stray = place(3).end;
                bytes.copy_within(place(1), stray);
                bytes[stray + BATCH - 9] ^= 1;
            });
            let log = log.await;
            for offset in 0..4 {
                assert_eq!(offsets_from(&log, offset, 4).await.unwrap(), (offset..4).collect::<Vec<_>>());
            }
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }

    /// The offsets that a reader of all gets at once who begins at `offset`.
    async fn offsets_from(log: &Rc<Log<SimRuntime>>, offset: u64, end: u64) -> Result<Vec<u64>, RequestError> {
        let range = ReadRange { offset: Offset(offset), end: Offset(end), max_bytes: 1 << 16 };
        let pieces = log.read_disk(range).await?;
        Ok(pieces.iter().flat_map(headers_of).map(|header| header.base_offset.0).collect())
    }

    #[test]
    fn a_batch_that_reads_as_zeros_is_missed_wherever_the_reader_begins() {
        for (lost, offset) in [0, 1, 2, 3].into_iter().flat_map(|lost| (0..=lost).map(move |offset| (lost, offset))) {
            let sim = Sim::new(lost, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let log = with_a_hole(cores[0].clone(), lost);
            let read = async move {
                let range = ReadRange { offset: Offset(offset), end: Offset(4), max_bytes: 1 << 16 };
                log.await.read_disk(range).await
            };
            match sim.block_on(&cores[0], read, 100_000).unwrap() {
                Err(RequestError::Corrupt { file, from, to, .. }) => {
                    assert_eq!(file, segment_path(Path::new("/p"), Offset(0)));
                    assert_eq!((from, to), (Offset(lost), Offset(lost + 1)));
                    assert_eq!(offset, lost);
                }
                Err(other) => panic!("{other}"),
                Ok(pieces) => {
                    let found: Vec<u64> =
                        pieces.iter().flat_map(headers_of).map(|header| header.base_offset.0).collect();
                    let before: Vec<u64> = (offset..lost).collect();
                    assert_eq!(found, before, "batch {lost} is lost, read from {offset}");
                    assert!(offset < lost, "a read of a lost batch gives nothing, and says nothing");
                }
            }
        }
    }

    #[test]
    fn behind_a_lost_batch_the_log_goes_on_and_a_second_reader_is_told_without_a_read() {
        for lost in 0..4 {
            let sim = Sim::new(lost, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let log = with_a_hole(cores[0].clone(), lost);
            let story = async move {
                let log = log.await;
                let range = |offset| ReadRange { offset: Offset(offset), end: Offset(4), max_bytes: 1 << 16 };
                let lost_error = log.read_disk(range(lost)).await.unwrap_err();
                let reads = log.context.metrics.disk_reads.get();
                assert_eq!(log.read_disk(range(lost)).await.unwrap_err(), lost_error);
                assert_eq!(log.context.metrics.disk_reads.get(), reads, "known damage was read again");
                assert_eq!(log.context.metrics.damages_found.get(), 1);
                let mut behind = Vec::new();
                if lost < 3 {
                    behind = log.read_disk(range(lost + 1)).await.unwrap();
                }
                behind.iter().flat_map(headers_of).map(|header| header.base_offset.0).collect::<Vec<_>>()
            };
            let behind = sim.block_on(&cores[0], story, 100_000).unwrap();
            assert_eq!(behind, (lost + 1..4).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_damaged_header_that_claims_a_smaller_offset_is_not_served_with_the_batches_before_it() {
        for (lost, claimed) in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)] {
            let sim = Sim::new(lost, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let log = with_damage(cores[0].clone(), move |bytes| {
                // The offset stands 8 bytes behind the beginning of the header.
                bytes[place(lost)][8..16].copy_from_slice(&u64::to_le_bytes(claimed));
            });
            let story = async move { offsets_from(&log.await, 0, 4).await };
            let served = sim.block_on(&cores[0], story, 100_000).unwrap().unwrap();
            assert_eq!(served, (0..lost).collect::<Vec<_>>(), "batch {lost} claims to be {claimed}");
        }
    }

    #[test]
    fn what_is_left_of_a_batch_under_its_successor_does_not_hide_the_successor() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let log = with_damage(cores[0].clone(), |bytes| {
            // Batch 1 was written elsewhere, into room that batch 2 then took from its middle on.
            let elsewhere = place(2).start - BATCH / 2;
            bytes.copy_within(place(1).start..place(1).start + BATCH / 2, elsewhere);
            bytes[place(1)].fill(9);
        });
        let story = async move {
            let log = log.await;
            let lost = log.read_disk(ReadRange { offset: Offset(1), end: Offset(4), max_bytes: 1 << 16 }).await;
            (lost.unwrap_err(), offsets_from(&log, 2, 4).await)
        };
        let (error, behind) = sim.block_on(&cores[0], story, 100_000).unwrap();
        assert!(matches!(error, RequestError::Corrupt { from: Offset(1), to: Offset(2), .. }), "{error}");
        assert_eq!(behind, Ok(vec![2, 3]));
    }

    #[test]
    fn a_misdirected_read_while_an_index_is_made_leaves_no_index_that_hides_records() {
        let sim = Sim::new(3, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let sealed = {
            let context = Rc::clone(&context);
            async move {
                append_each(&open(&context).await.log, &batch_of(8192), 0..200).await;
                context.runtime.sleep(std::time::Duration::from_secs(1)).await;
                let log = open(&context).await.log;
                let sealed = Rc::clone(&log.segments.borrow()[0]);
                context.runtime.remove_file(&sealed.index_path()).await.unwrap();
                log
            }
        };
        let log = sim.block_on(&cores[0], sealed, 1_000_000).unwrap();
        let end = log.segments.borrow()[1].base_offset().0;
        let reads = context.metrics.disk_reads.get();
        let outcome = Rc::new(std::cell::RefCell::new(None));
        let (slot, reading) = (Rc::clone(&outcome), Rc::clone(&log));
        cores[0].spawn(async move {
            let read = offsets_from(&reading, 0, end).await;
            *slot.borrow_mut() = Some(read);
        });
        // The first read is of the whole segment.
        sim.run_until(|| context.metrics.disk_reads.get() > reads, 100_000).unwrap();
        sim.set_rates(FaultRates::none().with(FaultKind::MisdirectedRead, 10_000));
        sim.run_until(|| sim.counts().get(FaultKind::MisdirectedRead) == 1, 100_000).unwrap();
        sim.set_rates(FaultRates::none());
        sim.run_until(|| outcome.borrow().is_some(), 100_000).unwrap();
        let again = async move {
            let mut all = Vec::new();
            // Both with the index that was made and with its sidecar.
            for log in [log, open(&context).await.log] {
                let mut next = 0;
                while next < end {
                    let read = offsets_from(&log, next, end).await;
                    all.extend(read.unwrap());
                    next = all.last().unwrap() + 1;
                }
            }
            all
        };
        let all = sim.block_on(&cores[0], again, 1_000_000).unwrap();
        assert_eq!(all, (0..end).chain(0..end).collect::<Vec<_>>());
    }

    #[test]
    fn a_read_that_fails_names_the_place_and_the_records_that_it_was_about() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let making = {
            let context = Rc::clone(&context);
            async move {
                append_each(&open(&context).await.log, &batch_of(8192), 0..20).await;
                open(&context).await.log
            }
        };
        let log = sim.block_on(&cores[0], making, 1_000_000).unwrap();
        sim.set_rates(FaultRates::none().with(FaultKind::ReadError, 10_000));
        // Index blocks begin at every second batch, from which on as much is read as was asked for.
        let story = async move { offsets_from(&log, 7, 20).await };
        let error = sim.block_on(&cores[0], story, 100_000).unwrap().unwrap_err();
        let RequestError::ReadFailed { file, position, from, to, .. } = &error else { panic!("{error}") };
        assert_eq!(*file, segment_path(Path::new(DIR), Offset(0)));
        assert_eq!((*position, *from), (SEGMENT_HEADER_BYTES + 6 * 8192, Offset(6)));
        assert!((Offset(8)..=Offset(20)).contains(to), "{error}");
        assert!(error.to_string().contains("; it is about records 6 to "), "{error}");
    }

    #[test]
    fn a_reader_gets_as_many_bytes_as_he_asks_for_and_at_least_a_batch() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let log = with_damage(cores[0].clone(), |_| ());
        let reading = async move {
            let log = log.await;
            let mut counts = Vec::new();
            for max_bytes in [0, 1, BATCH - 1, BATCH, 2 * BATCH - 1, 2 * BATCH, 3 * BATCH - 1, 3 * BATCH, 4 * BATCH] {
                let range = ReadRange { offset: Offset(0), end: Offset(4), max_bytes };
                let pieces = log.read_disk(range).await.unwrap();
                counts.push(pieces.iter().flat_map(headers_of).count());
            }
            counts
        };
        let counts = sim.block_on(&cores[0], reading, 100_000).unwrap();
        assert_eq!(counts, [1, 1, 1, 1, 1, 2, 2, 3, 4]);
    }

    #[test]
    fn a_read_that_went_to_another_place_is_repeated_before_anybody_is_told_of_a_loss() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let log = sim.block_on(&cores[0], with_damage(cores[0].clone(), |_| ()), 100_000).unwrap();
        let outcome = Rc::new(std::cell::RefCell::new(None));
        let (slot, reading) = (Rc::clone(&outcome), Rc::clone(&log));
        sim.set_rates(FaultRates::none().with(FaultKind::MisdirectedRead, 10_000));
        cores[0].spawn(async move {
            *slot.borrow_mut() = Some(offsets_from(&reading, 0, 4).await);
        });
        sim.run_until(|| sim.counts().get(FaultKind::MisdirectedRead) == 1, 100_000).unwrap();
        sim.set_rates(FaultRates::none());
        sim.run_until(|| outcome.borrow().is_some(), 100_000).unwrap();
        assert_eq!(outcome.take().unwrap().unwrap(), [0, 1, 2, 3]);
        assert_eq!((log.losses().all().len(), log.context.metrics.damages_found.get()), (0, 0));
    }

    #[test]
    fn a_segment_that_has_another_ones_header_is_lost_whole() {
        type Change = fn(&mut SegmentHeader);
        let changes: [Change; 2] = [|header| header.partition.index.0 += 1, |header| header.base_offset.0 += 1];
        for change in changes {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 4096);
            let story = async move {
                let log = open(&context).await.log;
                append_each(&log, &batch_of(8192), 0..300).await;
                drop(log);
                let log = open(&context).await.log;
                let (path, base, next) = {
                    let segments = log.segments.borrow();
                    (segments[1].path.clone(), segments[1].base_offset(), segments[2].base_offset())
                };
                edit_header(&context.runtime, &path, change).await;
                let refused = offsets_from(&log, base.0, next.0).await.unwrap_err();
                let RequestError::Corrupt { file, from, to, .. } = refused else { panic!("{refused}") };
                assert_eq!((file, from, to), (path, base, next));
                assert_eq!(offsets_from(&log, base.0 - 1, base.0).await.unwrap(), [base.0 - 1]);
            };
            sim.block_on(&cores[0], story, 1_000_000).unwrap();
        }
    }

    #[test]
    fn pieces_are_handed_out_as_they_are_and_only_small_ones_are_joined() {
        let range = ReadRange { offset: Offset(0), end: Offset(3), max_bytes: 1 << 20 };
        for (len, count, joined) in [(PIECE_BYTES_MIN, 3, false), (PIECE_BYTES_MIN - 1, 3, true), (1, 1, false)] {
            let pieces: Vec<_> = (0..count).map(|n| Bytes::from(vec![n; len])).collect();
            let bytes = len * pieces.len();
            let given = Collector { pieces: pieces.clone(), bytes, ..Collector::new(range) }.into_pieces();
            assert_eq!(given.concat(), pieces.concat());
            assert_eq!(given.len(), if joined { 1 } else { pieces.len() }, "{count} pieces of {len} bytes");
            assert_eq!(given[0].as_ptr() == pieces[0].as_ptr(), !joined, "copied only to be joined");
        }
    }

    #[test]
    fn a_block_with_damage_is_not_taken_from_the_cache_for_one_that_was_checked() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = open(&context).await.log;
            append_each(&log, &batch_of(8192), 0..40).await;
            // In the body of the second of two batches in the first block, behind which there are others.
            let second = SEGMENT_HEADER_BYTES + 8192;
            edit(&context.runtime, &log.active().path, second..second + 4096, |bytes| bytes[200] ^= 1).await;
            for time in 0..3 {
                let range = ReadRange { offset: Offset(0), end: Offset(40), max_bytes: 2 * 8192 };
                let headers: Vec<_> = log.read_disk(range).await.unwrap().iter().flat_map(headers_of).collect();
                assert_eq!(headers.last().unwrap().end_offset(), Offset(1), "read {time} goes up to the damage");
            }
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }

    #[test]
    fn the_index_that_leads_to_a_record_is_in_memory_once_its_segment_was_read() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            append_each(&open(&context).await.log, &batch_of(8192), 0..200).await;
            let log = open(&context).await.log;
            assert!(!log.has_index_of(Offset(0)) && log.has_index_of(Offset(199)), "only the active one is loaded");
            log.read_disk(ReadRange { offset: Offset(5), end: Offset(200), max_bytes: 1 }).await.unwrap();
            assert!(log.has_index_of(Offset(0)));
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }

    #[test]
    fn batches_that_stand_side_by_side_are_handed_out_as_one_piece() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = open(&context).await.log;
            let batch = batch_of(2000);
            for offset in 0..4 {
                log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
                if offset % 2 == 1 {
                    log.write_waiting(Commit::Written).await.unwrap();
                }
            }
            let range = ReadRange { offset: Offset(0), end: Offset(4), max_bytes: 1 << 20 };
            let lens: Vec<_> = log.read_disk(range).await.unwrap().iter().map(Bytes::len).collect();
            assert_eq!(lens, [4000, 4000], "a piece for each group");
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }
}

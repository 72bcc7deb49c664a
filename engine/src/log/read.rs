//! From an offset to bytes: the tail in memory, else the cache, else the device.
//!
//! What comes from the device is checked whole, once, before anybody sees it; then it is handed out without copying.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::{
    Log,
    cache::BlockKey,
    index::{Index, IndexBlock, SidecarKey},
    scan::{Check, Located, Step, Walk},
    segment::{Segment, SegmentHeader},
};
use crate::{
    error::RequestError,
    limits::{BATCH_BYTES_MAX, SEGMENT_HEADER_BYTES},
    runtime::{File, OpenMode, Runtime},
    types::Offset,
};

/// Small pieces are joined by copying: below this size a copy is cheaper than one more piece on its way to the socket.
const PIECE_BYTES_MIN: usize = 1024;

/// What a rebuilding of an index reads at once.
const REBUILD_BYTES: usize = BATCH_BYTES_MAX + (1 << 20);

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
    /// The range is complete.
    done: bool,
}

impl Collector {
    fn new(range: ReadRange) -> Self {
        Collector { range, pieces: Vec::new(), bytes: 0, done: false }
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
            if batch.header.base_offset >= self.range.end || full {
                self.done = true;
                break;
            }
            let from = (batch.position - start) as usize;
            self.bytes += len;
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

impl<R: Runtime> Log<R> {
    /// Reads without waiting, if the first record wanted is in memory. `None` if it is not.
    pub fn read_memory(&self, range: ReadRange) -> Option<Vec<Bytes>> {
        let (mut segment, block) = self.locate(range.offset)?;
        let tail = self.tail.borrow();
        let mut position = tail.group_start(&segment, range.offset)?.max(block?.start);
        let mut collector = Collector::new(range);
        while !collector.done {
            let Some(found) = tail.bytes_at(&segment, position) else {
                let Some(next) = self.successor(&segment) else { break };
                (segment, position) = (next, SEGMENT_HEADER_BYTES);
                continue;
            };
            collector.take(&found.bytes, position, &segment.header);
            position = found.next;
        }
        Some(collector.into_pieces()).filter(|pieces| !pieces.is_empty())
    }

    /// Reads from the device what [`Log::read_memory`] did not find.
    pub async fn read_disk(self: &Rc<Self>, range: ReadRange) -> Result<Vec<Bytes>, RequestError> {
        let (segment, block) = self.load_and_locate(range.offset).await?;
        let Some(block) = block else {
            let reason = format!("there is no batch with offset {}", range.offset);
            return Err(RequestError::Corrupt { file: segment.path.clone(), position: 0, reason });
        };
        let stretch = self.stretch(&segment, block, range);
        let start = stretch.start;
        let bytes = self.checked_bytes(&segment, stretch).await?;
        let mut collector = Collector::new(range);
        collector.take(&bytes, start, &segment.header);
        let pieces = collector.into_pieces();
        if pieces.is_empty() {
            let reason = format!("offset {} is not where the index says", range.offset);
            return Err(RequestError::Corrupt { file: segment.path.clone(), position: start, reason });
        }
        Ok(pieces)
    }

    /// The offset of the first batch below `end` whose newest record is not older than `timestamp_ms`; `end` if there
    /// is none.
    pub async fn find_time(self: &Rc<Self>, timestamp_ms: i64, end: Offset) -> Result<Offset, RequestError> {
        let bases: Vec<Offset> = self.segments.borrow().iter().map(|segment| segment.base_offset()).collect();
        for base in bases {
            let (segment, _) = self.load_and_locate(base).await?;
            let block = segment.index.borrow().as_ref().and_then(|index| index.block_of_time(timestamp_ms));
            let Some(block) = block else { continue };
            let first = self.first_offset_of(&segment, block);
            let mut range = ReadRange { offset: first, end, max_bytes: BATCH_BYTES_MAX };
            while range.offset < end {
                let pieces = match self.read_memory(range) {
                    Some(pieces) => pieces,
                    None => self.read_disk(range).await?,
                };
                for header in pieces.iter().flat_map(headers_of) {
                    if header.max_timestamp_ms >= timestamp_ms {
                        return Ok(header.base_offset);
                    }
                    range.offset = header.end_offset();
                }
            }
        }
        Ok(end)
    }

    fn first_offset_of(&self, segment: &Segment<R>, block: IndexBlock) -> Offset {
        let index = segment.index.borrow();
        index.as_ref().and_then(|index| index.entry_offset(block.number)).unwrap_or(segment.base_offset())
    }

    /// The segment that holds `offset`, and the block of it, if its index is loaded.
    fn locate(&self, offset: Offset) -> Option<(Rc<Segment<R>>, Option<IndexBlock>)> {
        let segments = self.segments.borrow();
        let after = segments.partition_point(|segment| segment.base_offset() <= offset);
        let segment = Rc::clone(segments.get(after.checked_sub(1)?)?);
        let block = segment.index.borrow().as_ref()?.block_of(offset);
        Some((segment, block))
    }

    fn successor(&self, segment: &Segment<R>) -> Option<Rc<Segment<R>>> {
        let segments = self.segments.borrow();
        let after = segments.partition_point(|other| other.base_offset() <= segment.base_offset());
        segments.get(after).cloned()
    }

    async fn load_and_locate(
        self: &Rc<Self>,
        offset: Offset,
    ) -> Result<(Rc<Segment<R>>, Option<IndexBlock>), RequestError> {
        if self.locate(offset).is_none() {
            self.load_segment(offset).await?;
        }
        self.locate(offset).ok_or_else(|| RequestError::Corrupt {
            file: self.dir.clone(),
            position: 0,
            reason: format!("no segment holds offset {offset}"),
        })
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
        let key = BlockKey { partition: self.partition, base_offset: segment.base_offset(), number: first.number };
        let cached_as = (whole.is_some() && last.number == first.number).then_some(key);
        let first_offset = index.as_ref().and_then(|index| index.entry_offset(first.number));
        Stretch {
            start: first.start,
            end: whole.unwrap_or(written_end),
            first_offset: first_offset.unwrap_or(segment.base_offset()),
            cached_as,
        }
    }

    async fn checked_bytes(&self, segment: &Segment<R>, stretch: Stretch) -> Result<Bytes, RequestError> {
        if let Some(bytes) = stretch.cached_as.and_then(|key| self.context.cache.get(&key)) {
            self.context.metrics.cache_hits.add(1);
            return Ok(bytes);
        }
        self.context.metrics.cache_misses.add(1);
        let bytes = self.read_file(segment, stretch.start, stretch.end).await?;
        let corrupt = |position, reason| RequestError::Corrupt { file: segment.path.clone(), position, reason };
        match check_whole(&bytes, stretch.start, &segment.header, (stretch.first_offset, |_| ())) {
            Step::End { .. } => {}
            Step::Invalid { position, reason } => return Err(corrupt(position, reason)),
            Step::CutOff { position, .. } => return Err(corrupt(position, "the batch is cut off".to_owned())),
            Step::Batch(_) => unreachable!("a walk ends with something else"),
        }
        if let Some(key) = stretch.cached_as {
            self.context.cache.insert(key, bytes.clone());
        }
        Ok(bytes)
    }

    async fn read_file(&self, segment: &Segment<R>, start: u64, end: u64) -> Result<Bytes, RequestError> {
        let failed =
            |error: std::io::Error| RequestError::ReadFailed { file: segment.path.clone(), reason: error.to_string() };
        let file = segment.file.borrow().clone();
        let file = file.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let align = file.alignment();
        let from = start - start % align;
        let len = end.next_multiple_of(align) - from;
        self.context.metrics.disk_reads.add(1);
        self.context.metrics.disk_read_bytes.add(len);
        let bytes = file.read_at(from, len as usize).await.map_err(failed)?;
        let wanted = (start - from) as usize..((end - from) as usize).min(bytes.len());
        if wanted.start > wanted.end {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes.slice(wanted))
    }

    /// Opens the sealed segment that holds `offset` and gets its index, from its sidecar or from itself.
    async fn load_segment(self: &Rc<Self>, offset: Offset) -> Result<(), RequestError> {
        let found = {
            let segments = self.segments.borrow();
            let after = segments.partition_point(|segment| segment.base_offset() <= offset);
            after.checked_sub(1).map(|at| Rc::clone(&segments[at]))
        };
        let Some(known) = found else { return Ok(()) };
        let corrupt = |reason| RequestError::Corrupt { file: known.path.clone(), position: 0, reason };
        let failed =
            |error: std::io::Error| RequestError::ReadFailed { file: known.path.clone(), reason: error.to_string() };
        let runtime = &self.context.runtime;
        let file = runtime.open(&known.path, OpenMode::Existing).await.map_err(failed)?;
        let block = file.read_at(0, SEGMENT_HEADER_BYTES as usize).await.map_err(failed)?;
        let header = SegmentHeader::decode(&block).map_err(|error| corrupt(error.to_string()))?;
        if header.partition != self.partition || header.base_offset != known.base_offset() {
            let (partition, base) = (header.partition, header.base_offset);
            return Err(corrupt(format!("its header says partition {partition} and base offset {base}")));
        }
        let segment = Segment::planned(&self.dir, header);
        segment.end_position.set(known.end_position.get());
        *segment.file.borrow_mut() = Some(Rc::new(file));
        let index = match self.read_sidecar(&segment).await {
            Some(index) => index,
            None => self.rebuild_index(&segment).await?,
        };
        *segment.index.borrow_mut() = Some(index);
        let mut segments = self.segments.borrow_mut();
        // Another reader may have been faster; then its segment stays.
        if let Some(place) = segments.iter_mut().find(|other| Rc::ptr_eq(other, &known)) {
            *place = Rc::new(segment);
        }
        Ok(())
    }

    async fn read_sidecar(&self, segment: &Segment<R>) -> Option<Index> {
        let file = self.context.runtime.open(&segment.index_path(), OpenMode::Existing).await.ok()?;
        let size = usize::try_from(file.size().await.ok()?).ok()?;
        let bytes = file.read_at(0, size.next_multiple_of(file.alignment() as usize)).await.ok()?;
        let key = SidecarKey { incarnation: segment.header.incarnation, end_position: segment.end_position.get() };
        Index::from_sidecar(&bytes, key)
    }

    async fn rebuild_index(&self, segment: &Segment<R>) -> Result<Index, RequestError> {
        let mut index = Index::default();
        let (mut position, end) = (SEGMENT_HEADER_BYTES, segment.end_position.get());
        let mut offset = segment.base_offset();
        while position < end {
            let bytes = self.read_file(segment, position, end.min(position + REBUILD_BYTES as u64)).await?;
            let stopped = check_whole(
                &bytes,
                position,
                &segment.header,
                (offset, |batch: &Located| {
                    index.note(batch.header.base_offset, batch.position, batch.header.max_timestamp_ms);
                    offset = batch.header.end_offset();
                }),
            );
            position = match stopped {
                Step::End { position } => position,
                Step::CutOff { position: next, .. } if next > position => next,
                Step::CutOff { position: damaged, .. } => {
                    let reason = "the batch is cut off".to_owned();
                    return Err(RequestError::Corrupt { file: segment.path.clone(), position: damaged, reason });
                }
                Step::Invalid { position: damaged, reason } => {
                    return Err(RequestError::Corrupt { file: segment.path.clone(), position: damaged, reason });
                }
                Step::Batch(_) => unreachable!("a walk ends with something else"),
            };
        }
        if let Err(error) = self.write_index(segment, &index).await {
            tracing::warn!(file = %segment.index_path().display(), %error, "the rebuilt index was not kept");
        }
        Ok(index)
    }
}

/// Bytes to read from a segment file.
struct Stretch {
    start: u64,
    end: u64,
    /// Of the batch at `start`.
    first_offset: Offset,
    /// Under which name they are cached: a single whole block.
    cached_as: Option<BlockKey>,
}

/// Checks every byte of `bytes`, which stand at `start`, and that the records go on from `offset` without a gap: lost
/// bytes that read as zeros look like the padding between groups. Shows each batch to `see`. Returns what ended the
/// walk.
fn check_whole(
    bytes: &[u8],
    start: u64,
    header: &SegmentHeader,
    (offset, mut see): (Offset, impl FnMut(&Located)),
) -> Step {
    let mut walk = Walk::new(bytes, start, (header.block_bytes, header.incarnation), Check::Whole);
    let (mut position, mut expected) = (start, offset);
    loop {
        match walk.step() {
            Step::Batch(batch) if batch.header.base_offset == expected => {
                position = batch.position + batch.header.batch_len() as u64;
                expected = batch.header.end_offset();
                see(&batch);
            }
            Step::Batch(batch) => {
                let reason = format!("offset {expected} is missing, {} follows", batch.header.base_offset);
                return Step::Invalid { position, reason };
            }
            stopped => return stopped,
        }
    }
}

fn headers_of(piece: &Bytes) -> Vec<crate::record::BatchHeader> {
    let mut headers = Vec::new();
    let mut rest: &[u8] = piece;
    while let Ok(header) = crate::record::BatchHeader::decode(rest) {
        rest = rest.get(header.batch_len()..).unwrap_or_default();
        headers.push(header);
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::{
        log::{
            fixture::{P, batch_of, context},
            flush::Commit,
            recovery,
            segment::segment_path,
        },
        record::check_produced,
        runtime::{
            Buffer,
            sim::{Sim, SimConfig, SimRuntime},
        },
    };

    const BATCH: usize = 512;

    /// A log with two groups of two batches, the one at offset `lost` overwritten with zeros.
    async fn with_a_hole(runtime: SimRuntime, lost: u64) -> Rc<Log<SimRuntime>> {
        let dir = PathBuf::from("/p");
        runtime.create_dir_all(&dir).await.unwrap();
        let log = recovery::open(&context(&runtime, 4096), P, dir.clone()).await.unwrap().log;
        let batch = batch_of(BATCH);
        for offset in 0..4 {
            log.append(&batch, &check_produced(&batch).unwrap(), (Offset(offset), Offset(0)));
            if offset % 2 == 1 {
                log.write_waiting(Commit::Written).await.unwrap();
            }
        }
        let file = runtime.open(&segment_path(&dir, Offset(0)), OpenMode::Existing).await.unwrap();
        let mut zeros = runtime.allocate(4096);
        zeros.trim(BATCH);
        let position = SEGMENT_HEADER_BYTES + lost / 2 * 4096 + lost % 2 * BATCH as u64;
        file.write_at(position, Rc::new(zeros)).await.unwrap();
        log
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
                Err(RequestError::Corrupt { file, .. }) => assert_eq!(file, segment_path(Path::new("/p"), Offset(0))),
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
}

//! Reading sealed segments again, slowly, to find what rots in them while nobody reads it: a copy may still be there
//! then, and the records that are lost are known before somebody needs them.

use std::{
    ops::Range,
    rc::{Rc, Weak},
    time::Duration,
};

use super::{
    Log,
    segment::{Segment, SegmentHeader},
    survey::{Found, Survey},
};
use crate::{
    limits::SEGMENT_HEADER_BYTES,
    runtime::{File, OpenMode, Runtime},
    types::Offset,
};

/// What is read at once: long reads would be felt by those who are served.
const CHUNK_BYTES: usize = 256 << 10;

/// How a core scrubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPace {
    /// Bytes of segments in a second, on average. Zero: never.
    pub bytes_per_second: u64,
    /// From the beginning of one pass over all segments to that of the next, if a pass takes no longer.
    pub period: Duration,
}

impl ScrubPace {
    /// When the first pass begins after a start, which has other things to do.
    pub fn first_pause(self) -> Duration {
        (self.period / 10).min(Duration::from_secs(600))
    }

    /// How long `bytes` take at this pace.
    fn takes(self, bytes: usize) -> Duration {
        Duration::from_nanos((bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second.max(1))) as u64)
    }
}

/// Reads and checks every sealed segment of `log` once that begins in `span`. Holds the log only while it reads, so
/// that it may be deleted meanwhile.
pub async fn scrub<R: Runtime>(log: Weak<Log<R>>, pace: ScrubPace, span: Range<Offset>) {
    let mut next = span.start;
    loop {
        let Some(log) = log.upgrade() else { return };
        let Some(segment) = log.sealed_from(next).filter(|segment| segment.base_offset() < span.end) else { return };
        next = Offset(segment.base_offset().0 + 1);
        if let Err(error) = log.scrub_segment(&segment, pace).await
            && log.still_has(&segment)
        {
            log.context.metrics.scrub_errors.add(1);
            tracing::error!(file = %segment.path.display(), %error, "a segment could not be read for its scrub");
        }
    }
}

impl<R: Runtime> Log<R> {
    /// Where the sealed segment begins that `number` chooses; 0 if there is none.
    pub fn any_sealed(&self, number: u64) -> Offset {
        let segments = self.segments.borrow();
        let sealed = segments.len() as u64 - 1;
        number.checked_rem(sealed).map_or(Offset(0), |at| segments[at as usize].base_offset())
    }

    /// The first sealed segment whose base is not before `base`.
    fn sealed_from(&self, base: Offset) -> Option<Rc<Segment<R>>> {
        let segments = self.segments.borrow();
        let (_, sealed) = segments.split_last()?;
        sealed.iter().find(|segment| segment.base_offset() >= base).cloned()
    }

    fn still_has(&self, segment: &Segment<R>) -> bool {
        self.segments.borrow().iter().any(|other| other.base_offset() == segment.base_offset())
    }

    async fn scrub_segment(&self, segment: &Rc<Segment<R>>, pace: ScrubPace) -> std::io::Result<()> {
        if self.tail.borrow().unwritten_offset(segment).is_some() {
            // Just sealed, and not all on the device yet.
            return Ok(());
        }
        let (runtime, metrics) = (&self.context.runtime, &self.context.metrics);
        // A file of its own: those that are kept open are for readers.
        let file = runtime.open(&segment.path, OpenMode::Existing).await?;
        let block = file.read_at(0, SEGMENT_HEADER_BYTES as usize).await?;
        let header = match SegmentHeader::decode(&block) {
            Ok(header) if header.partition == self.partition && header.base_offset == segment.base_offset() => header,
            Ok(_) => return self.scrubbed_header(segment, "its header is another segment's".to_owned()),
            Err(error) => return self.scrubbed_header(segment, error.to_string()),
        };
        let span = (SEGMENT_HEADER_BYTES, segment.end_position.get());
        let offsets = (segment.base_offset(), self.written_offset(segment));
        let mut survey = Survey::new(&header, span, offsets).in_windows_of(CHUNK_BYTES);
        let mut see = |found| {
            if let Found::Lost(lost) = found
                && self.still_has(segment)
            {
                self.report_loss(segment, lost);
            }
        };
        let align = file.alignment();
        while let Some((position, len)) = survey.wants() {
            let begun = runtime.monotonic();
            let from = position - position % align;
            let skip = (position - from) as usize;
            let bytes = {
                let _lane = self.context.ahead.lane().await;
                file.read_at(from, (skip + len).next_multiple_of(align as usize)).await?
            };
            metrics.scrub_bytes.add(bytes.len() as u64);
            survey.take(&bytes[skip.min(bytes.len())..(skip + len).min(bytes.len())], &mut see);
            let took = runtime.monotonic().saturating_sub(begun);
            runtime.sleep(pace.takes(bytes.len()).saturating_sub(took)).await;
        }
        survey.finish(&mut see);
        metrics.scrub_segments.add(1);
        Ok(())
    }

    fn scrubbed_header(&self, segment: &Rc<Segment<R>>, reason: String) -> std::io::Result<()> {
        if self.still_has(segment) {
            self.whole_segment_lost(segment, reason);
        }
        self.context.metrics.scrub_segments.add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::fixture::{append_each, batch_of, context, edit_header, open},
        runtime::sim::{Sim, SimConfig},
    };

    #[test]
    fn the_first_pass_begins_after_a_tenth_of_the_period_and_within_ten_minutes() {
        let pause = |seconds| ScrubPace { bytes_per_second: 1, period: Duration::from_secs(seconds) }.first_pause();
        assert_eq!([0, 60, 6000, 1_000_000].map(|period| pause(period).as_secs()), [0, 6, 600, 600]);
    }

    #[test]
    fn what_rots_in_a_sealed_segment_is_found_without_a_reader_and_at_the_pace_that_is_set() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let making = {
            let context = Rc::clone(&context);
            async move {
                let log = open(&context).await.log;
                append_each(&log, &batch_of(8192), 0..400).await;
                log
            }
        };
        let log = sim.block_on(&cores[0], making, 1_000_000).unwrap();
        let files: Vec<_> = log.segments.borrow().iter().map(|segment| segment.path.clone()).collect();
        assert_eq!(files.len(), 4);
        assert!(sim.flip_bit(&files[1]));
        let scrubbing = {
            let (log, context) = (Rc::clone(&log), Rc::clone(&context));
            async move {
                let pace = ScrubPace { bytes_per_second: 1 << 20, period: Duration::from_secs(60) };
                let before = context.runtime.monotonic();
                let middle = log.any_sealed(4);
                assert!((0..3).all(|number| log.any_sealed(number) != log.any_sealed(number + 1)));
                // As after a restart: from somewhere on, and then what is before that.
                for span in [middle..Offset(u64::MAX), Offset(0)..middle] {
                    scrub(Rc::downgrade(&log), pace, span).await;
                }
                context.runtime.monotonic() - before
            }
        };
        let took = sim.block_on(&cores[0], scrubbing, 1_000_000).unwrap();
        assert!((2.8..4.0).contains(&took.as_secs_f64()), "3 MiB at 1 MiB/s took {took:?}");
        let metrics = &context.metrics;
        assert_eq!((metrics.scrub_segments.get(), metrics.damages_found.get()), (3, 1));
        assert_eq!(log.losses().all()[0].file, files[1]);
    }

    #[test]
    fn a_sealed_segment_with_another_ones_header_is_lost_whole_and_counts_as_scrubbed() {
        type Change = fn(&mut SegmentHeader);
        let changes: [Change; 2] = [|header| header.partition.index.0 += 1, |header| header.base_offset.0 += 1];
        for change in changes {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 4096);
            let story = async move {
                let log = open(&context).await.log;
                append_each(&log, &batch_of(8192), 0..400).await;
                let segments = log.segments.borrow().clone();
                edit_header(&context.runtime, &segments[1].path, change).await;
                let pace = ScrubPace { bytes_per_second: 1 << 30, period: Duration::from_secs(60) };
                scrub(Rc::downgrade(&log), pace, Offset(0)..Offset(u64::MAX)).await;
                let losses = log.losses().all();
                let [loss] = &losses[..] else { panic!("{losses:?}") };
                assert_eq!(loss.file, segments[1].path);
                assert_eq!((loss.lost.position, loss.lost.from), (0, segments[1].base_offset()));
                assert_eq!(loss.lost.to, segments[2].base_offset());
                assert_eq!((context.metrics.scrub_segments.get(), context.metrics.scrub_errors.get()), (3, 0));
            };
            sim.block_on(&cores[0], story, 1_000_000).unwrap();
        }
    }

    #[test]
    fn a_segment_that_cannot_be_read_is_told_and_the_next_ones_are_scrubbed_all_the_same() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = open(&context).await.log;
            append_each(&log, &batch_of(8192), 0..400).await;
            let path = log.segments.borrow()[1].path.clone();
            context.runtime.remove_file(&path).await.unwrap();
            let pace = ScrubPace { bytes_per_second: 1 << 30, period: Duration::from_secs(60) };
            scrub(Rc::downgrade(&log), pace, Offset(0)..Offset(u64::MAX)).await;
            let metrics = &context.metrics;
            assert_eq!((metrics.scrub_segments.get(), metrics.scrub_errors.get()), (2, 1));
            assert!(log.losses().is_empty(), "who reads it says what is lost");
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }

    #[test]
    fn any_number_chooses_a_sealed_segment_and_all_are_chosen_by_some() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = open(&context).await.log;
            assert_eq!(log.any_sealed(7), Offset(0), "there is none");
            append_each(&log, &batch_of(8192), 0..400).await;
            let bases: Vec<_> = log.segments.borrow().iter().map(|segment| segment.base_offset()).collect();
            let chosen: Vec<_> = (0..6).map(|number| log.any_sealed(number)).collect();
            assert_eq!(chosen, [&bases[..3], &bases[..3]].concat(), "of {bases:?} the last is not sealed");
        };
        sim.block_on(&cores[0], story, 1_000_000).unwrap();
    }
}

//! What the batches of a log's segments say of their producers, read from their headers: since the last snapshot that
//! can be trusted ([`super::producer_snapshot`]), or in all.
//!
//! Batches that are damaged then say nothing. Another copy may give them back later, and until it has, what is known
//! here lacks them: nothing is kept of that, and everything is gathered anew from the last snapshot as soon as the
//! damage is repaired, or at the next opening. No order of the two on the drive matters.

use std::{io, rc::Rc};

use bytes::Bytes;

use super::{
    Log, LogContext, LogFault,
    behind_damage::run_survey,
    producer_snapshot::load,
    segment::{Segment, SegmentHeader},
    survey::{Found, Lost, Survey},
};
use crate::{
    limits::{BATCH_HEADER_BYTES, SEGMENT_HEADER_BYTES},
    record::{BatchHeader, ProducerHistory, check_stored_header},
    runtime::{File, OpenMode, Runtime},
    types::Offset,
};

/// What a walk over headers reads at once: enough for full bandwidth over small batches, little to waste on large ones.
const WINDOW_BYTES: usize = 256 << 10;

impl<R: Runtime> Log<R> {
    /// Damaged records, the first and the one after the last, of which it is not known what they say of producers:
    /// other copies may have them.
    pub fn unread(&self) -> Option<(Offset, Offset)> {
        self.unread.get()
    }

    /// Nobody will say what they say of producers.
    pub fn give_up_unread(&self) {
        self.unread.set(None);
    }

    /// What was gathered is all that is known of producers now. Records before `start` are deleted.
    pub(super) fn take_gathered(&self, gathered: Gathered<R>, start: Offset) -> ProducerHistory {
        let Gathered { history, mut missed } = gathered;
        missed.retain(|(_, lost)| lost.to > start);
        let from = missed.iter().map(|(_, lost)| lost.from).min();
        self.unread.set(from.zip(missed.iter().map(|(_, lost)| lost.to).max()));
        for (segment, lost) in missed {
            self.report_loss(&segment, lost);
        }
        history
    }

    /// Gathers anew what was not all known: what the batches before some place say, which lies before all that the
    /// device has not taken. `None` if it is not all known yet. Records before `start` are deleted.
    ///
    /// Errors: those of [`until`].
    pub async fn gather_producers(self: &Rc<Self>, start: Offset) -> Result<Option<ProducerHistory>, LogFault> {
        let mut segments = self.released.borrow().clone();
        segments.extend(self.on_disk().0);
        let newest = segments.pop().expect("a log has an active segment"); // why: see `on_disk`
        let known = ProducerHistory::default();
        let gathered = until(&self.context, &segments, newest.base_offset(), known).await?;
        let history = self.take_gathered(gathered, start);
        self.keep_beside(&newest, &history);
        Ok(self.unread.get().is_none().then_some(history))
    }
}

/// What batches say of their producers, as far as they can be read.
pub(super) struct Gathered<R: Runtime> {
    pub(super) history: ProducerHistory,
    /// The records that cannot.
    pub(super) missed: Vec<(Rc<Segment<R>>, Lost)>,
}

impl<R: Runtime> Gathered<R> {
    fn all(history: ProducerHistory) -> Self {
        Gathered { history, missed: Vec::new() }
    }
}

/// What the batches of the segments `earlier` say, which are all before `last`. With whether it was taken from the
/// snapshot of `last`, or must be kept anew.
///
/// Errors: those of [`until`].
pub(super) async fn before<R: Runtime>(
    context: &LogContext<R>,
    earlier: &[Rc<Segment<R>>],
    last: &Segment<R>,
) -> Result<(Gathered<R>, bool), LogFault> {
    if last.base_offset() == Offset(0) {
        return Ok((Gathered::all(ProducerHistory::default()), true));
    }
    if let Some(history) = load(context, last, &last.header).await {
        return Ok((Gathered::all(history), true));
    }
    tracing::info!(file = %last.path.display(), "producers are read from the segments before");
    Ok((until(context, earlier, last.base_offset(), ProducerHistory::default()).await?, false))
}

/// What the batches before `end` say, which are in these segments, if `known` is what is known of those before them
/// where no snapshot tells.
///
/// Errors: a segment cannot be read. To go on without it could mean to store something twice.
pub(super) async fn until<R: Runtime>(
    context: &LogContext<R>,
    segments: &[Rc<Segment<R>>],
    end: Offset,
    known: ProducerHistory,
) -> Result<Gathered<R>, LogFault> {
    let (mut opened, mut missed) = (Vec::new(), Vec::new());
    let mut history = known;
    let mut bound = end;
    for segment in segments.iter().rev() {
        let fault = |error: io::Error| LogFault::unread("reading", &segment.path, &error);
        let bound = std::mem::replace(&mut bound, segment.base_offset());
        let file = context.runtime.open(&segment.path, OpenMode::Existing).await.map_err(fault)?;
        let block = file.read_at(0, SEGMENT_HEADER_BYTES as usize).await.map_err(fault)?;
        let from = segment.base_offset();
        let Some(header) = SegmentHeader::decode(&block).ok().filter(|header| header.base_offset == from) else {
            tracing::warn!(file = %segment.path.display(), "its header is damaged; its producers are not known");
            let (end_position, reason) = (segment.end_position.get(), "its header is damaged".to_owned());
            missed.push((Rc::clone(segment), Lost { position: 0, end_position, from, to: bound, reason }));
            continue;
        };
        let kept = load(context, segment, &header).await;
        opened.push((segment, header, file, bound));
        if let Some(kept) = kept {
            history = kept;
            break;
        }
    }
    for (segment, header, file, bound) in opened.into_iter().rev() {
        let span = (segment.end_position.get(), bound);
        let read = gather_from(context, (&header, &file), span, &history).await;
        let (said, losses) = read.map_err(|error| LogFault::unread("reading", &segment.path, &error))?;
        history = said;
        missed.extend(losses.into_iter().map(|lost| (Rc::clone(segment), lost)));
    }
    Ok(Gathered { history, missed })
}

/// Goes on from `known` with what the batches of a sealed segment say, and gives what is lost of them. The segment is
/// `end` bytes long, and `bound` is the offset that follows it: what stands in it from there on was cut off.
async fn gather_from<R: Runtime>(
    context: &LogContext<R>,
    (header, file): (&SegmentHeader, &R::File),
    (end, bound): (u64, Offset),
    known: &ProducerHistory,
) -> io::Result<(ProducerHistory, Vec<Lost>)> {
    let mut history = known.clone();
    if walk_headers(context, (header, file), (end, bound), &mut history).await? {
        return Ok((history, Vec::new()));
    }
    // A group in a wrong place must not hide those that follow it.
    let (mut history, mut losses) = (known.clone(), Vec::new());
    let mut survey = Survey::new(header, (SEGMENT_HEADER_BYTES, end), (header.base_offset, bound));
    let mut see = |found| match found {
        Found::Batch(batch) => {
            let mark = batch.header.producer_mark();
            mark.iter().for_each(|mark| history.note(mark, batch.header.base_offset));
        }
        Found::Lost(lost) if lost.from < lost.to => losses.push(lost),
        Found::Lost(_) => {}
    };
    run_survey(context, file, &mut survey, &mut see).await?;
    survey.finish(&mut see);
    Ok((history, losses))
}

/// Notes the batches of a sealed segment by their headers, which is all of it that is read if they are large. Gives
/// whether each was where it belongs.
async fn walk_headers<R: Runtime>(
    context: &LogContext<R>,
    (header, file): (&SegmentHeader, &R::File),
    (end, bound): (u64, Offset),
    history: &mut ProducerHistory,
) -> io::Result<bool> {
    let block = u64::from(header.block_bytes);
    let (mut position, mut start, mut window) = (SEGMENT_HEADER_BYTES, 0, Bytes::new());
    let mut due = header.base_offset;
    while due < bound && position + BATCH_HEADER_BYTES as u64 <= end {
        if window.len() < (position - start) as usize + BATCH_HEADER_BYTES {
            start = position & !(SEGMENT_HEADER_BYTES - 1);
            window = match file.read_at(start, WINDOW_BYTES).await {
                Ok(bytes) => bytes,
                // What comes next the drive may give, if it does not give all that is behind it.
                Err(_) => file.read_at(start, 2 * SEGMENT_HEADER_BYTES as usize).await?,
            };
            context.runtime.yield_now().await;
        }
        let Some(rest) = window.get((position - start) as usize..).filter(|rest| !rest.is_empty()) else { break };
        if rest[0] == 0 && !position.is_multiple_of(block) {
            position = position.next_multiple_of(block);
            continue;
        }
        let found = check_stored_header(rest).ok();
        let is_due = |batch: &BatchHeader| batch.incarnation == header.incarnation && batch.base_offset == due;
        let Some(batch) = found.filter(is_due) else { return Ok(false) };
        if let Some(mark) = batch.producer_mark() {
            history.note(&mark, batch.base_offset);
        }
        due = batch.end_offset();
        position += batch.batch_len() as u64;
    }
    Ok(due == bound)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::{
        log::{
            fixture::{P, edit, open},
            producer_snapshot::tests::{batch, fill, history_of, run, snapshots},
            recovery,
            segment::segment_path,
        },
        record::{BatchBuilder, Codec, ServerFields, stamp},
        runtime::{Buffer, sim::SimRuntime},
        types::{Incarnation, ProducerId, Sequence},
    };

    #[test]
    fn producers_behind_a_damaged_batch_of_a_sealed_segment_are_found() {
        run(|context| async move {
            fill(&context, 0..45).await;
            lose_snapshots(&context).await;
            let file =
                context.runtime.open(&segment_path(Path::new("/p"), Offset(0)), OpenMode::Existing).await.unwrap();
            let mut block = context.runtime.allocate(4096);
            block.trim(512);
            file.write_at(SEGMENT_HEADER_BYTES, Rc::new(block)).await.unwrap();
            assert_eq!(open(&context).await.producers, history_of(45), "they wrote again since");
        });
    }

    async fn lose_snapshots(context: &Rc<LogContext<SimRuntime>>) {
        for path in snapshots(context).await {
            context.runtime.remove_file(&path).await.unwrap();
        }
    }

    /// A log of four segments, of which no snapshot is left: power was lost before the last one was durable.
    async fn without_snapshots(context: &Rc<LogContext<SimRuntime>>) {
        fill(context, 0..70).await;
        lose_snapshots(context).await;
    }

    /// The place of batch `number`, which is the only one of its flush group.
    fn place_of(number: u64) -> std::ops::Range<u64> {
        let len = batch(number).len().next_multiple_of(512) as u64;
        let at = SEGMENT_HEADER_BYTES + number % 20 * len;
        at..at + len
    }

    async fn open_replica(context: &Rc<LogContext<SimRuntime>>) -> recovery::Recovered<SimRuntime> {
        recovery::open_replica(context, P, (PathBuf::from("/p"), Offset(0))).await.unwrap()
    }

    /// Writes `batch` over the damage at its offset, as another copy gives it.
    async fn repair(log: &Rc<Log<SimRuntime>>, number: u64) {
        let mut theirs = batch(number).to_vec();
        let (base_offset, leader_epoch) = (Offset(number), crate::types::LeaderEpoch(1));
        stamp(
            &mut theirs,
            ServerFields { base_offset, durable_hint: Offset(0), leader_epoch, incarnation: Incarnation(77) },
        );
        let loss = log.losses().at(base_offset).unwrap();
        log.rewrite(&loss, &theirs.into(), Offset(70)).await.unwrap();
    }

    /// What a shard knows when it was told what was gathered.
    fn known_with(gathered: ProducerHistory, before: &ProducerHistory) -> ProducerHistory {
        let mut history = gathered;
        history.follow(before);
        history
    }

    #[test]
    fn what_damaged_batches_say_is_known_when_another_copy_gave_them_and_nothing_is_kept_before() {
        // Opened anew as soon as they are repaired, or not.
        for is_opened_anew in [false, true] {
            run(move |context| async move {
                without_snapshots(&context).await;
                let path = segment_path(Path::new("/p"), Offset(40));
                edit(&context.runtime, &path, place_of(59), |bytes| bytes.fill(9)).await;
                let recovery::Recovered { log, producers, .. } = open_replica(&context).await;
                assert_ne!(producers, history_of(70));
                assert_eq!(log.unread(), Some((Offset(59), Offset(60))));
                assert_eq!(log.gather_producers(Offset(0)).await, Ok(None), "it is damaged still");
                log.keep_producers(&producers);
                log.roll(Offset(70), &producers).await.unwrap();
                context.runtime.sleep(std::time::Duration::from_millis(50)).await;
                assert!(snapshots(&context).await.is_empty(), "it would lack what is damaged");
                repair(&log, 59).await;
                if is_opened_anew {
                    let found = open_replica(&context).await;
                    assert_eq!((found.producers, found.log.unread()), (history_of(70), None));
                    return;
                }
                assert_eq!(log.unread(), Some((Offset(59), Offset(60))), "nobody has read them");
                let gathered = log.gather_producers(Offset(0)).await.unwrap().unwrap();
                assert_eq!((&gathered, log.unread()), (&history_of(70), None));
                assert_eq!(known_with(gathered, &producers), history_of(70));
                context.runtime.sleep(std::time::Duration::from_millis(50)).await;
                let newest = segment_path(Path::new("/p"), Offset(70)).with_extension("prd");
                assert_eq!(snapshots(&context).await, [newest]);
                assert_eq!(open_replica(&context).await.producers, history_of(70));
            });
        }
    }

    #[test]
    fn a_group_in_a_wrong_place_hides_what_it_hit_and_no_other_producers() {
        run(|context| async move {
            without_snapshots(&context).await;
            let path = segment_path(Path::new("/p"), Offset(40));
            let file = context.runtime.open(&path, OpenMode::Existing).await.unwrap();
            let last = place_of(59);
            let group = file.read_at(last.start, (last.end - last.start) as usize).await.unwrap();
            edit(&context.runtime, &path, place_of(42), |bytes| bytes.copy_from_slice(&group)).await;
            for path in [0, 20].map(|base| segment_path(Path::new("/p"), Offset(base))) {
                edit(&context.runtime, &path, place_of(5), |bytes| bytes.fill(9)).await;
            }
            let found = open_replica(&context).await;
            assert_eq!(found.producers, history_of(70), "the last batches of each are where they belong");
            assert_eq!(found.log.unread(), Some((Offset(5), Offset(43))));
            let lost: Vec<_> = found.log.losses().all().iter().map(|loss| loss.lost.from.0).collect();
            assert_eq!(lost, [5, 25, 42]);
            assert_eq!(open(&context).await.log.unread(), None, "nobody has what is lost of the only copy");
        });
    }

    #[test]
    fn a_segment_with_a_damaged_header_says_nothing_until_it_has_one() {
        run(|context| async move {
            without_snapshots(&context).await;
            let path = segment_path(Path::new("/p"), Offset(40));
            edit(&context.runtime, &path, 0..512, |bytes| bytes.fill(9)).await;
            let recovery::Recovered { log, .. } = open_replica(&context).await;
            assert_eq!(log.unread(), Some((Offset(40), Offset(60))));
            let loss = log.losses().at(Offset(40)).unwrap();
            assert_eq!(log.look_again(&loss).await, Ok(crate::log::rewrite::Look::Restored));
            assert_eq!(log.gather_producers(Offset(0)).await, Ok(Some(history_of(60))));
        });
    }

    #[test]
    fn damaged_batches_that_are_deleted_say_nothing_and_are_not_waited_for() {
        run(|context| async move {
            without_snapshots(&context).await;
            let path = segment_path(Path::new("/p"), Offset(20));
            edit(&context.runtime, &path, place_of(27), |bytes| bytes.fill(9)).await;
            for (start, unread) in [(27, Some((Offset(27), Offset(28)))), (28, None)] {
                let log = open_replica(&context).await.log;
                log.keep_start(Offset(start)).await.unwrap();
                let log = open_replica(&context).await.log;
                assert_eq!(log.unread(), unread, "from {start} on");
                let gathered = log.gather_producers(Offset(start)).await.unwrap();
                assert_eq!(gathered.is_none(), unread.is_some());
                log.give_up_unread();
                assert_eq!(log.unread(), None);
            }
        });
    }

    #[test]
    fn batches_of_an_earlier_life_of_a_segment_say_nothing_of_producers() {
        run(|context| async move {
            fill(&context, 0..45).await;
            lose_snapshots(&context).await;
            let mut builder = BatchBuilder::new(Codec::None);
            builder.push(None, &[1; 100], &[], 1).unwrap();
            builder.producer(ProducerId(77), 1, Sequence(0));
            let stale = builder.finish().unwrap();
            // In the place of the first batch, whose producer wrote again since.
            let path = segment_path(Path::new("/p"), Offset(0));
            let place = SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + 512;
            for (life, is_known) in [(1, false), (0, true)] {
                let header = context.runtime.open(&path, OpenMode::Existing).await.unwrap();
                let header = SegmentHeader::decode(&header.read_at(0, 4096).await.unwrap()).unwrap();
                edit(&context.runtime, &path, place.clone(), |bytes| {
                    bytes.fill(0);
                    bytes[..stale.len()].copy_from_slice(&stale);
                    let incarnation = Incarnation(header.incarnation.0 ^ life);
                    let fields = ServerFields {
                        base_offset: Offset(0),
                        durable_hint: Offset(0),
                        leader_epoch: header.leader_epoch,
                        incarnation,
                    };
                    stamp(&mut bytes[..stale.len()], fields);
                })
                .await;
                let found = open(&context).await.producers;
                assert_eq!(found.iter().any(|(id, _)| id == ProducerId(77)), is_known, "life {life}");
                context.runtime.sleep(std::time::Duration::from_millis(50)).await;
                lose_snapshots(&context).await;
            }
        });
    }
}

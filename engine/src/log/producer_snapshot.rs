//! What a log's batches say of their producers, kept beside its segments: as of the base offset of the last one, so
//! that an opening takes it from there and reads only the last segment, which it does anyway.
//!
//! Derived data, as long as the segments are there. The snapshot is taken when a segment is begun, and written and
//! synced behind the acks; the one before it stays until then, and so do the segments that would be walked without it.
//! Without a snapshot that can be trusted, what the segments say is gathered anew ([`super::producer_gathering`]):
//! since the last one that can, or in all. Of what was gathered without all batches nothing is kept, so every snapshot
//! that there is says all that it should.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use rkyv::{Archive, Deserialize, Serialize, rancor, util::AlignedVec};

use super::{
    Log, LogContext, LogFault, envelope,
    segment::{ASIDE_SUFFIX, Segment, SegmentHeader, Snapshot as State},
};
use crate::{
    record::{KeptBatch, ProducerHistory},
    runtime::{File, OpenMode, Runtime},
    types::{Incarnation, Offset, ProducerId, Sequence},
};

/// The first bytes of a snapshot's file. The 1 is the version.
pub(super) const MAGIC: [u8; 4] = *b"PYP1";

/// Which segment a snapshot stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotKey {
    /// The segment's incarnation.
    pub incarnation: Incarnation,
    /// The segment's base offset.
    pub base_offset: Offset,
}

#[derive(Archive, Serialize, Deserialize)]
struct Snapshot {
    incarnation: u32,
    base_offset: u64,
    producers: Vec<Producer>,
}

#[derive(Archive, Serialize, Deserialize)]
struct Producer {
    id: u64,
    epoch: u32,
    batches: Vec<Batch>,
}

#[derive(Archive, Serialize, Deserialize)]
struct Batch {
    sequence: u32,
    count: u32,
    base_offset: u64,
    crc: u32,
}

impl From<&SegmentHeader> for SnapshotKey {
    fn from(header: &SegmentHeader) -> Self {
        SnapshotKey { incarnation: header.incarnation, base_offset: header.base_offset }
    }
}

/// The bytes of a snapshot's file.
pub fn to_sidecar(history: &ProducerHistory, key: SnapshotKey) -> Vec<u8> {
    let batch = |batch: &KeptBatch| Batch {
        sequence: batch.sequence.0,
        count: batch.count,
        base_offset: batch.base_offset.0,
        crc: batch.crc,
    };
    let producers = history.iter().map(|(id, kept)| Producer {
        id: id.0,
        epoch: kept.epoch(),
        batches: kept.batches().iter().map(batch).collect(),
    });
    let SnapshotKey { incarnation: Incarnation(incarnation), base_offset: Offset(base_offset) } = key;
    let snapshot = Snapshot { incarnation, base_offset, producers: producers.collect() };
    envelope::seal(MAGIC, &rkyv::to_bytes::<rancor::Error>(&snapshot).unwrap_or_default())
}

/// Reads a snapshot's file; `None` on any doubt.
pub fn from_sidecar(bytes: &[u8], key: SnapshotKey) -> Option<ProducerHistory> {
    let snapshot = rkyv::from_bytes::<Snapshot, rancor::Error>(&open(bytes)?).ok()?;
    let found =
        SnapshotKey { incarnation: Incarnation(snapshot.incarnation), base_offset: Offset(snapshot.base_offset) };
    let batch = |batch: &Batch| KeptBatch {
        sequence: Sequence(batch.sequence),
        count: batch.count,
        base_offset: Offset(batch.base_offset),
        crc: batch.crc,
    };
    let parts = snapshot.producers.iter().map(|producer| {
        (ProducerId(producer.id), producer.epoch, producer.batches.iter().map(batch).collect::<Vec<_>>())
    });
    let history = ProducerHistory::from_parts(parts)?;
    let stands_before = history.newest_offset().is_none_or(|newest| newest < key.base_offset);
    (found == key && stands_before).then_some(history)
}

/// What is in the envelope. The digit of its version may be spoiled, for nothing else may know what a snapshot says: a
/// checksum that is right shows that it is ours all the same.
fn open(bytes: &[u8]) -> Option<AlignedVec<16>> {
    let mut magic = MAGIC;
    magic[3] = bytes.get(3).copied().filter(u8::is_ascii_digit)?;
    envelope::open(magic, bytes)
}

/// Whether `bytes` are a snapshot of ours, whatever digit its magic has.
pub(super) fn is_ours(bytes: &[u8]) -> bool {
    open(bytes).is_some()
}

impl<R: Runtime> Log<R> {
    /// Whether the batch at `offset` is the first of the active segment.
    pub fn begins_segment(&self, offset: Offset) -> bool {
        self.segments.borrow().last().is_some_and(|active| active.base_offset() == offset)
    }

    /// Keeps what the batches before the active segment say, which was just begun.
    pub fn keep_producers(self: &Rc<Self>, history: &ProducerHistory) {
        self.keep_beside(&self.active(), history);
    }

    pub(super) fn keep_beside(self: &Rc<Self>, segment: &Rc<Segment<R>>, history: &ProducerHistory) {
        if segment.base_offset() == Offset(0) || segment.snapshot.get() != State::Unknown || self.unread.get().is_some()
        {
            // Nothing is before it, or what is before it is there or on its way, or not all of it is known.
            return;
        }
        *segment.producers.borrow_mut() = Some(to_sidecar(history, SnapshotKey::from(&segment.header)));
        if segment.file.borrow().is_some() {
            self.write_producers(segment);
        }
    }

    /// Writes what is kept for `segment`, whose file exists by now: a snapshot without its segment would be a stray.
    pub(super) fn write_producers(self: &Rc<Self>, segment: &Rc<Segment<R>>) {
        let Some(bytes) = segment.producers.borrow_mut().take() else { return };
        let (log, path, superseded) = (Rc::clone(self), segment.producers_path(), self.superseded(segment));
        let segment = Rc::clone(segment);
        segment.snapshot.set(State::Pending);
        self.context.runtime.spawn(async move {
            let runtime = &log.context.runtime;
            let Some(_writing) = log.end.begin_writing() else { return };
            match log.write_durably(&path, &bytes).await {
                Ok(()) => {
                    segment.snapshot.set(State::Durable);
                    if let Some(path) = superseded {
                        // None may be there; one that stays takes room and does no harm.
                        let _ = runtime.remove_file(&path).await;
                    }
                }
                Err(error) => {
                    if error.kind() == io::ErrorKind::StorageFull {
                        segment.snapshot.set(State::Unknown);
                    }
                    tracing::warn!(file = %path.display(), %error, "what is known of producers was not kept");
                }
            }
        });
    }

    /// Durably, for the segments behind it may be deleted, and then nothing else knows. Aside first: one may be there
    /// already, and must be until this one is.
    async fn write_durably(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let (runtime, aside) = (&self.context.runtime, path.with_extension(ASIDE_SUFFIX));
        envelope::write(runtime, &aside, bytes).await?.fdatasync().await?;
        runtime.rename(&aside, path).await?;
        runtime.sync_dir(&self.dir).await
    }

    /// Keeps `history` beside `segment` durably, unless something is kept there.
    pub(super) async fn keep_durably(&self, segment: &Segment<R>, history: &ProducerHistory) -> Result<(), LogFault> {
        // Without its header nothing would be believed that stands beside it.
        let Ok(header) = self.header_of(segment).await else { return Ok(()) };
        if load(&self.context, segment, &header).await.is_some() {
            return Ok(());
        }
        let path = segment.producers_path();
        let written = self.write_durably(&path, &to_sidecar(history, SnapshotKey::from(&header))).await;
        written.map_err(|error| LogFault::from_io("writing", &path, &error))
    }

    /// The snapshot that nobody needs once `segment` has its own: the one before that is kept for the case that power
    /// is lost before the new one is on the drive.
    fn superseded(&self, segment: &Rc<Segment<R>>) -> Option<PathBuf> {
        let segments = self.segments.borrow();
        let at = segments.partition_point(|other| other.base_offset() < segment.base_offset());
        at.checked_sub(2).map(|older| segments[older].producers_path())
    }
}

pub(super) async fn load<R: Runtime>(
    context: &LogContext<R>,
    segment: &Segment<R>,
    header: &SegmentHeader,
) -> Option<ProducerHistory> {
    let file = context.runtime.open(&segment.producers_path(), OpenMode::Existing).await.ok()?;
    let size = usize::try_from(file.size().await.ok()?).ok()?;
    let bytes = file.read_at(0, size.next_multiple_of(file.alignment() as usize)).await.ok()?;
    from_sidecar(&bytes, SnapshotKey::from(header))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::{
        log::{
            fixture::{P, context, edit, open, placed},
            recovery,
            segment::segment_path,
            version::OtherVersion,
        },
        record::{BatchBuilder, Codec, check_produced},
        runtime::sim::{
            Sim, SimConfig, SimRuntime,
            faults::{Failure, FaultKind, FaultRates},
        },
    };

    const STEPS: u64 = 1_000_000;
    const KEY: SnapshotKey = SnapshotKey { incarnation: Incarnation(9), base_offset: Offset(100) };

    /// Batch `number` of three producers that take turns; a record of 50 KB.
    pub(in crate::log) fn batch(number: u64) -> Bytes {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &vec![number as u8; 50_000], &[], 1).unwrap();
        builder.producer(ProducerId(number % 3 + 1), 1, Sequence((number / 3) as u32));
        builder.finish().unwrap()
    }

    pub(in crate::log) fn history_of(batches: u64) -> ProducerHistory {
        let mut history = ProducerHistory::default();
        for number in 0..batches {
            let mark = check_produced(&batch(number)).unwrap().producer_mark().unwrap();
            history.note(&mark, Offset(number));
        }
        history
    }

    /// Appends `batches` to a log as a shard does; it rolls every 20 of them.
    pub(in crate::log) async fn fill(context: &Rc<LogContext<SimRuntime>>, batches: std::ops::Range<u64>) {
        let log = open(context).await.log;
        for number in batches {
            let (bytes, offset) = (batch(number), Offset(number));
            log.append(&bytes, &check_produced(&bytes).unwrap(), placed(offset.0, 0));
            if log.begins_segment(offset) {
                log.keep_producers(&history_of(number));
            }
            log.write_waiting(crate::log::flush::Commit::Written).await.unwrap();
        }
        log.sync().await.unwrap();
        context.runtime.sleep(std::time::Duration::from_millis(50)).await;
    }

    pub(in crate::log) async fn snapshots(context: &Rc<LogContext<SimRuntime>>) -> Vec<PathBuf> {
        let entries = context.runtime.list_dir(Path::new("/p")).await.unwrap();
        let paths = entries.into_iter().map(|entry| entry.path);
        paths.filter(|path| path.extension() == Some("prd".as_ref())).collect()
    }

    pub(in crate::log) fn run<F: Future<Output = ()> + 'static>(story: impl FnOnce(Rc<LogContext<SimRuntime>>) -> F) {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        sim.block_on(&cores[0], story(context(&cores[0], 512)), STEPS).unwrap()
    }

    #[test]
    fn a_snapshot_comes_back_whole_and_any_damage_or_other_segment_is_refused() {
        let history = history_of(70);
        let bytes = to_sidecar(&history, KEY);
        let mut padded = bytes.clone();
        padded.resize(8192, 0);
        assert_eq!(from_sidecar(&padded, KEY), Some(history));
        assert_eq!(from_sidecar(&bytes, SnapshotKey { incarnation: Incarnation(8), ..KEY }), None);
        assert_eq!(from_sidecar(&bytes, SnapshotKey { base_offset: Offset(99), ..KEY }), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // Everything but the digit of the version has a checksum, and that says which it should be.
            let is_harmless = bit / 8 == 3 && damaged[3].is_ascii_digit();
            assert_eq!(from_sidecar(&damaged, KEY).is_some(), is_harmless, "bit {bit}");
        }
        let early = SnapshotKey { base_offset: Offset(69), ..KEY };
        assert_eq!(from_sidecar(&to_sidecar(&history_of(70), early), early), None, "it knows what comes after it");
    }

    #[test]
    fn producers_are_known_again_after_a_restart_whatever_became_of_the_snapshots() {
        type Loss = fn(usize) -> bool;
        let losses: [Loss; 4] = [|_| false, |from_end| from_end == 0, |from_end| from_end == 1, |_| true];
        for (case, is_lost) in losses.into_iter().enumerate() {
            run(move |context| async move {
                fill(&context, 0..90).await;
                let kept = snapshots(&context).await;
                assert_eq!(kept.len(), 2, "the last two are kept: {kept:?}");
                for (from_end, path) in kept.iter().rev().enumerate().filter(|(from_end, _)| is_lost(*from_end)) {
                    if case == 1 || from_end == 1 {
                        envelope::write(&context.runtime, path, b"no snapshot").await.unwrap();
                    } else {
                        context.runtime.remove_file(path).await.unwrap();
                    }
                }
                let found = open(&context).await;
                assert_eq!((found.end, &found.producers), (Offset(90), &history_of(90)), "case {case}");
                context.runtime.sleep(std::time::Duration::from_millis(50)).await;
                let newest = snapshots(&context).await.pop().unwrap();
                let last = segment_path(Path::new("/p"), Offset(80));
                assert_eq!(newest, last.with_extension("prd"), "case {case}: it is made anew");
                assert_eq!(open(&context).await.producers, history_of(90), "case {case}, once more");
            });
        }
    }

    /// A drive that keeps no bytes and no names but those that were synced, but lengths: one that keeps no length
    /// undoes what cuts a file off, too.
    fn forgetful() -> SimConfig {
        let lost = [FaultKind::LostUnsynced, FaultKind::LostName];
        let rates = lost.into_iter().fold(FaultRates::none(), |rates, kind| rates.with(kind, 10_000));
        SimConfig { rates, ..SimConfig::default() }
    }

    #[test]
    fn a_snapshot_that_is_written_once_more_is_never_gone_when_the_power_is_lost() {
        for steps in 1.. {
            let sim = Sim::new(1, &forgetful());
            let (process, cores) = sim.process(1);
            let before = context(&cores[0], 512);
            let story = async move {
                fill(&before, 0..40).await;
                let log = open(&before).await.log;
                log.roll(Offset(40), &history_of(40)).await.unwrap();
                before.runtime.sleep(std::time::Duration::from_millis(50)).await;
                log.keep_start(Offset(40)).await.unwrap();
                log.release_before(Offset(40));
                log.bury().await.unwrap();
                assert!(!log.has_released(), "only the snapshot knows the producers");
            };
            sim.block_on(&cores[0], story, STEPS).unwrap();
            let again = context(&cores[0], 512);
            let story = async move {
                let log = open(&again).await.log;
                // As for the first batch of a segment that was begun in another life.
                log.keep_producers(&history_of(40));
                again.runtime.sleep(std::time::Duration::from_millis(50)).await;
            };
            let outcome = sim.block_on(&cores[0], story, steps);
            sim.lose_power(process);
            let (_, cores) = sim.process(1);
            let last = context(&cores[0], 512);
            let story = async move { open(&last).await.producers };
            assert_eq!(sim.block_on(&cores[0], story, STEPS).unwrap(), history_of(40), "lost after step {steps}");
            if outcome.is_ok() {
                break;
            }
        }
    }

    #[test]
    fn a_snapshot_of_batches_that_are_gone_is_not_believed() {
        run(|context| async move {
            fill(&context, 0..45).await;
            // Another life of the file with the same base offset.
            let path = segment_path(Path::new("/p"), Offset(40)).with_extension("prd");
            let key = SnapshotKey { incarnation: Incarnation(1), base_offset: Offset(40) };
            let other = to_sidecar(&history_of(10), key);
            envelope::write(&context.runtime, &path, &other).await.unwrap();
            assert_eq!(open(&context).await.producers, history_of(45));
        });
    }

    #[test]
    fn a_snapshot_of_another_version_is_made_anew_or_refused_where_nothing_else_knows_what_it_says() {
        run(|context| async move {
            fill(&context, 0..45).await;
            let last = Path::new("/p/00000000000000000040.prd");
            // With a checksum that is another one too.
            let say = async |version| {
                let change = |bytes: &mut [u8]| (bytes[3], bytes[4]) = (version, bytes[4] ^ 1);
                edit(&context.runtime, last, 0..512, change).await;
            };
            let read = async || {
                let file = context.runtime.open(last, OpenMode::Existing).await.unwrap();
                file.read_at(0, 4096).await.unwrap()
            };
            let right = read().await;
            say(b'2').await;
            assert_eq!(open(&context).await.producers, history_of(45));
            context.runtime.sleep(std::time::Duration::from_millis(50)).await;
            assert_eq!(read().await, right);
            context.runtime.remove_file(&segment_path(Path::new("/p"), Offset(0))).await.unwrap();
            say(b'2').await;
            let before = read().await;
            let opened = recovery::open(&context, P, PathBuf::from("/p")).await.map(|_| ());
            let other = OtherVersion { path: last.to_path_buf(), found: 2, supported: 1 };
            assert_eq!(opened, Err(LogFault::Version(other)));
            assert_eq!(read().await, before);
            say(b'1').await;
            assert_eq!(open(&context).await.producers, history_of(45));
            edit(&context.runtime, last, 0..512, |bytes| bytes[3] = b'3').await;
            assert_eq!(open(&context).await.producers, history_of(45), "a bit turned over");
        });
    }

    #[test]
    fn a_snapshot_that_found_no_room_is_tried_again_and_one_that_failed_is_not() {
        for (failure, again) in [(Failure::NoSpace, true), (Failure::Error, false)] {
            let sim = Sim::new(1, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let context = context(&cores[0], 512);
            let making = {
                let context = Rc::clone(&context);
                async move {
                    let log = open(&context).await.log;
                    log.roll(Offset(0), &ProducerHistory::default()).await.unwrap();
                    let bytes = batch(0);
                    log.append(&bytes, &check_produced(&bytes).unwrap(), placed(0, 0));
                    log.write_waiting(crate::log::flush::Commit::Durable).await.unwrap();
                    log.roll(Offset(1), &ProducerHistory::default()).await.unwrap();
                    context.runtime.sleep(std::time::Duration::from_millis(50)).await;
                    log.active().snapshot.set(State::Unknown);
                    log
                }
            };
            let log = sim.block_on(&cores[0], making, STEPS).unwrap();
            sim.fail_nth(1, failure, true);
            log.keep_producers(&history_of(1));
            sim.run_for(std::time::Duration::from_millis(50), STEPS).unwrap();
            sim.fail_none();
            let state = log.active().snapshot.get();
            assert_eq!(state == State::Unknown, again, "{failure:?}: {state:?}");
        }
    }

    #[test]
    fn beside_the_first_segment_nothing_is_kept_and_beside_another_one_once() {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let (world, context) = (Rc::clone(&sim), context(&cores[0], 512));
        let story = async move {
            let log = open(&context).await.log;
            let kept =
                || world.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "prd")).count();
            let keep = async || {
                log.keep_producers(&ProducerHistory::default());
                context.runtime.sleep(std::time::Duration::from_millis(50)).await;
                kept()
            };
            assert_eq!(keep().await, 0);
            let bytes = batch(0);
            log.append(&bytes, &check_produced(&bytes).unwrap(), placed(0, 0));
            log.write_waiting(crate::log::flush::Commit::Written).await.unwrap();
            log.roll(Offset(1), &ProducerHistory::default()).await.unwrap();
            assert_eq!(keep().await, 1);
            let renames = world.renames("prd");
            assert_eq!((keep().await, world.renames("prd")), (1, renames), "it is there");
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }
}

//! Writing a sealed segment anew: the way out when damaged records do not fit where they should stand, because a drive
//! wrote other bytes over more than their place.
//!
//! A new file is filled aside with all the batches of the segment, those that are intact here and those that another
//! replica gave, and takes the old one's name when it is durable. So nothing is given up on the way: until then every
//! batch stands where it stood. Offsets, reigns and the incarnation stay; positions change. Therefore the index goes
//! before the name does, and whoever uses the log drops it and opens it again.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;

use super::{
    Log, LogFault,
    flush::Commit,
    removal::unless_gone,
    rewrite::{RewriteError, Wanted, batches_in, unreadable},
    segment::{RENEWED_NAME, Segment, SegmentHeader, header_block},
};
use crate::{
    limits::{DEVICE_BLOCK_BYTES_MAX, SEGMENT_HEADER_BYTES},
    record::{ServerFields, check_stored_header, stamp},
    runtime::{Buffer, File, OpenMode, Runtime},
    types::{LeaderEpoch, Offset},
};

/// A segment that is being written anew.
pub struct Renewal<R: Runtime> {
    segment: Rc<Segment<R>>,
    header: SegmentHeader,
    path: PathBuf,
    file: R::File,
    position: u64,
    next: Offset,
    end: Offset,
}

impl<R: Runtime> Renewal<R> {
    /// The first record that it has not, and the end of the segment; `None` if it has all.
    pub fn wants(&self) -> Option<(Offset, Offset)> {
        (self.next < self.end).then_some((self.next, self.end))
    }

    /// Whether this file is the one that is written anew.
    pub fn is_of(&self, file: &Path) -> bool {
        self.segment.path == file
    }
}

impl<R: Runtime> fmt::Display for Renewal<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} written anew", self.segment.path.display())
    }
}

impl<R: Runtime> Log<R> {
    /// Begins to write the segment that has the record at `offset` anew, without what is of records before `start`:
    /// those are deleted, and nobody may have them any more.
    ///
    /// Errors: `Active` if that is the last one; `Full`; `Unreadable` if the drive does not give its header.
    pub async fn begin_renewal(self: &Rc<Self>, offset: Offset, start: Offset) -> Result<Renewal<R>, RewriteError> {
        let Some(_writing) = self.end.begin_writing() else { return Err(RewriteError::Ending) };
        let Some(segment) = self.segment_of(offset) else { return Err(RewriteError::Ending) };
        // It is sealed before the next one gets its file.
        let is_begun = |next: &Rc<Segment<R>>| next.file.borrow().is_some() || self.successor(next).is_some();
        let Some(next) = self.successor(&segment).filter(is_begun) else {
            return Err(RewriteError::Active { path: segment.path.clone() });
        };
        // One that is damaged beyond what its first batch could tell begins another life, whose reign comes with that.
        let header = match self.header_of(&segment).await {
            Ok(header) => header,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.new_header(segment.base_offset(), LeaderEpoch(0))
            }
            Err(error) => return Err(unreadable(&segment, &error)),
        };
        let path = self.dir.join(RENEWED_NAME);
        if self.context.room.has_less_than(segment.end_position.get()) {
            return Err(LogFault::Full { path }.into());
        }
        let (runtime, fault) = (&self.context.runtime, |error| LogFault::from_io("creating", &path, &error));
        let file = runtime.open(&path, OpenMode::CreateTruncate).await.map_err(fault)?;
        // It may have been made on a drive with smaller blocks.
        let header = SegmentHeader { block_bytes: header.block_bytes.max(file.alignment() as u32), ..header };
        let (position, end) = (SEGMENT_HEADER_BYTES, next.base_offset());
        Ok(Renewal { next: segment.base_offset().max(start), segment, header, path, file, position, end })
    }

    /// Adds batches that begin at the first record it has not; those behind the end of the segment are left out. They
    /// are a flush group of their own. With the last of them the file is durable.
    ///
    /// Errors: `Wrong`; a fault of the drive.
    pub async fn renew(self: &Rc<Self>, renewal: &mut Renewal<R>, batches: &Bytes) -> Result<(), RewriteError> {
        let Some(_writing) = self.end.begin_writing() else { return Err(RewriteError::Ending) };
        let is_first = renewal.position == SEGMENT_HEADER_BYTES;
        // The log may begin within a batch.
        let first = check_stored_header(batches).ok().filter(|first| is_first && first.base_offset < renewal.next);
        let due =
            first.filter(|first| first.end_offset() > renewal.next).map_or(renewal.next, |first| first.base_offset);
        let wanted = batches_in(batches, due, renewal.end)?;
        let len: usize = wanted.iter().map(|batch| batch.bytes.len()).sum();
        let padded = len.next_multiple_of(renewal.header.block_bytes as usize);
        let mut buffer = self.context.runtime.allocate(padded.next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize));
        buffer.trim(padded);
        let mut at = 0;
        for Wanted { bytes, header } in &wanted {
            let place = &mut buffer.bytes_mut()[at..at + bytes.len()];
            place.copy_from_slice(bytes);
            // What is before the group is durable when this file gets its name.
            let (base_offset, durable_hint) = (header.base_offset, due);
            let (leader_epoch, incarnation) = (header.leader_epoch, renewal.header.incarnation);
            stamp(place, ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
            at += bytes.len();
        }
        self.context.metrics.disk_writes.add(1);
        self.context.metrics.disk_write_bytes.add(padded as u64);
        let written = renewal.file.write_at(renewal.position, Rc::new(buffer)).await;
        written.map_err(|error| LogFault::from_io("writing", &renewal.path, &error))?;
        renewal.position += padded as u64;
        if is_first {
            // In the log of a replica all of a segment is of one reign.
            renewal.header.leader_epoch = wanted[0].header.leader_epoch.max(renewal.header.leader_epoch);
        }
        renewal.next = wanted.last().map_or(renewal.next, |batch| batch.header.end_offset());
        if renewal.wants().is_none() {
            let header = Rc::new(header_block(&self.context.runtime, &renewal.header));
            let written = renewal.file.write_at(0, header).await;
            written.map_err(|error| LogFault::from_io("writing", &renewal.path, &error))?;
            self.context.metrics.disk_syncs.add(1);
            let synced = renewal.file.fdatasync().await;
            synced.map_err(|error| LogFault::failed("fdatasync", &renewal.path, &error))?;
        }
        Ok(())
    }

    /// Puts the new file, which has everything, in the place of the old one, durably. Whoever calls it is the only one
    /// who uses the log; he drops it and opens it again. Nothing happens if the segment was deleted meanwhile.
    ///
    /// Errors: the operating system's. The next opening finds the one file or the other.
    pub async fn put_in_place(self: &Rc<Self>, renewal: Renewal<R>) -> Result<(), LogFault> {
        assert!(renewal.wants().is_none(), "{} to {} are missing", renewal.next, renewal.end);
        let Renewal { segment, path, file, .. } = renewal;
        while self.write_waiting(Commit::Written).await?.is_some() {}
        self.sync().await?;
        drop(file);
        self.come_to_rest().await;
        let runtime = &self.context.runtime;
        let fault = |operation, error| LogFault::failed(operation, &segment.path, &error);
        if !self.holds(segment.base_offset()) {
            return unless_gone(runtime.remove_file(&path).await).map_err(|error| fault("removing", error));
        }
        let gone = runtime.remove_file(&segment.index_path()).await;
        unless_gone(gone).map_err(|error| fault("removing the index of", error))?;
        runtime.sync_dir(&self.dir).await.map_err(|error| fault("syncing the directory of", error))?;
        runtime.rename(&path, &segment.path).await.map_err(|error| fault("replacing", error))?;
        runtime.sync_dir(&self.dir).await.map_err(|error| fault("syncing the directory of", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{
            LogContext,
            fixture::{DIR, P, batch_of, context_of, cut_everywhere, edit, open, placed},
            loading::headers_of,
            read::ReadRange,
            recovery,
            segment::segment_path,
        },
        record::{ProducerHistory, check_produced},
        runtime::sim::{Sim, SimConfig, SimRuntime},
    };

    const BLOCK: u32 = 512;
    const END: u64 = 6;

    /// Six batches in a sealed segment, and one behind it.
    async fn sealed(context: &Rc<LogContext<SimRuntime>>) -> Rc<Log<SimRuntime>> {
        let log = open(context).await.log;
        for offset in 0..=END {
            if offset == END {
                log.roll(Offset(END), &ProducerHistory::default()).await.unwrap();
            }
            let batch = batch_of(300 + offset as usize);
            log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, offset));
            log.write_waiting(Commit::Durable).await.unwrap();
        }
        log
    }

    /// Spoils all of the third batch, and lets the fourth stand there.
    async fn spoil(runtime: &SimRuntime, path: &Path) {
        edit(runtime, path, 4096..8192, |bytes| bytes.copy_within(3 * 512..4 * 512, 2 * 512)).await;
        runtime.open(path, OpenMode::Existing).await.unwrap().fdatasync().await.unwrap();
    }

    /// What another replica has from `offset` on.
    fn theirs(offset: u64) -> Bytes {
        let mut batch = batch_of(300 + offset as usize).to_vec();
        let (base_offset, durable_hint) = (Offset(offset), Offset(0));
        let (leader_epoch, incarnation) = (crate::types::LeaderEpoch(1), crate::types::Incarnation(77));
        stamp(&mut batch, ServerFields { base_offset, durable_hint, leader_epoch, incarnation });
        batch.into()
    }

    async fn offsets(log: &Rc<Log<SimRuntime>>) -> Vec<u64> {
        let (mut next, mut all) = (0, Vec::new());
        while next <= END {
            let range = ReadRange { offset: Offset(next), end: Offset(END + 1), max_bytes: 1 << 20 };
            let Ok(pieces) = log.read_disk(range).await else {
                next += 1;
                continue;
            };
            all.extend(pieces.iter().flat_map(headers_of).map(|header| header.base_offset.0));
            next = all.last().map_or(next, |last| last + 1);
        }
        all
    }

    async fn renew_all(log: &Rc<Log<SimRuntime>>, start: u64) {
        let mut renewal = log.begin_renewal(Offset(3), Offset(start)).await.unwrap();
        while let Some((next, end)) = renewal.wants() {
            let range = ReadRange { offset: next, end, max_bytes: 1 << 20 };
            let bytes = match log.read_disk(range).await {
                Ok(pieces) => pieces.concat().into(),
                Err(_) => theirs(next.0),
            };
            log.renew(&mut renewal, &bytes).await.unwrap();
        }
        log.put_in_place(renewal).await.unwrap();
    }

    fn run<Fut: Future<Output = ()> + 'static>(story: impl FnOnce(SimRuntime) -> Fut) {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        sim.block_on(&cores[0], story(cores[0].clone()), 2_000_000).unwrap();
    }

    #[test]
    fn records_that_fit_nowhere_are_there_again_and_all_others_still() {
        run(|runtime| async move {
            let context = context_of(&runtime, BLOCK, 1 << 20);
            let log = sealed(&context).await;
            let active = log.begin_renewal(Offset(END), Offset(0)).await.map(drop);
            assert!(matches!(active, Err(RewriteError::Active { .. })), "{active:?}");
            drop(log);
            let path = segment_path(Path::new(DIR), Offset(0));
            spoil(&runtime, &path).await;
            let log = open(&context).await.log;
            assert_eq!(offsets(&log).await, [0, 1, 3, 4, 5, 6]);
            let mut renewal = log.begin_renewal(Offset(2), Offset(0)).await.unwrap();
            assert!(renewal.is_of(&path) && !renewal.is_of(&path.with_extension("idx")));
            assert_eq!(renewal.to_string(), format!("{} written anew", path.display()));
            let wrong = log.renew(&mut renewal, &theirs(2)).await;
            assert!(matches!(wrong, Err(RewriteError::Wrong { at: Offset(0), .. })), "{wrong:?}");
            renew_all(&log, 0).await;
            let index = path.with_extension("idx");
            assert!(runtime.open(&index, OpenMode::Existing).await.is_err(), "it leads to the old places");
            let log = recovery::open(&context, P, DIR.into()).await.unwrap().log;
            assert_eq!(offsets(&log).await, [0, 1, 2, 3, 4, 5, 6]);
            assert!(log.losses().is_empty());
        });
    }

    #[test]
    fn a_header_that_nothing_here_tells_is_made_anew() {
        run(|runtime| async move {
            let context = context_of(&runtime, BLOCK, 1 << 20);
            drop(sealed(&context).await);
            let path = segment_path(Path::new(DIR), Offset(0));
            edit(&runtime, &path, 0..4608, |bytes| bytes.fill(9)).await;
            let log = open(&context).await.log;
            renew_all(&log, 0).await;
            let log = open(&context).await.log;
            assert_eq!(offsets(&log).await, [0, 1, 2, 3, 4, 5, 6]);
            let segment = log.segment_of(Offset(0)).unwrap();
            assert_eq!(log.header_of(&segment).await.unwrap().leader_epoch, LeaderEpoch(1));
        });
    }

    #[test]
    fn what_is_deleted_is_not_asked_for() {
        run(|runtime| async move {
            let context = context_of(&runtime, BLOCK, 1 << 20);
            drop(sealed(&context).await);
            let path = segment_path(Path::new(DIR), Offset(0));
            spoil(&runtime, &path).await;
            edit(&runtime, &path, 4096..4608, |bytes| bytes.fill(9)).await;
            let log = open(&context).await.log;
            log.keep_start(Offset(1)).await.unwrap();
            renew_all(&log, 1).await;
            let log = open(&context).await.log;
            assert_eq!(offsets(&log).await, [1, 2, 3, 4, 5, 6]);
            assert!(log.losses().all().iter().all(|loss| loss.lost.to <= Offset(1)), "{:?}", log.losses().all());
        });
    }

    #[test]
    fn power_that_is_lost_on_the_way_leaves_the_old_file_or_the_new_one() {
        cut_everywhere(
            |runtime| context_of(runtime, BLOCK, 1 << 20),
            |context| async move {
                drop(sealed(&context).await);
                let path = segment_path(Path::new(DIR), Offset(0));
                spoil(&context.runtime, &path).await;
                // With an index, which is kept beside it.
                let log = open(&context).await.log;
                offsets(&log).await;
            },
            |context, ()| async move { renew_all(&open(&context).await.log, 0).await },
            |context, over| async move {
                let log = open(&context).await.log;
                let left = context.runtime.list_dir(Path::new(DIR)).await.unwrap();
                assert!(!left.iter().any(|entry| entry.path.ends_with(RENEWED_NAME)), "{left:?}");
                let offsets = offsets(&log).await;
                assert!(offsets == [0, 1, 2, 3, 4, 5, 6] || (offsets == [0, 1, 3, 4, 5, 6] && !over), "{offsets:?}");
            },
        );
    }

    #[test]
    fn the_batch_within_which_the_log_begins_is_taken_whole_and_one_before_it_is_not() {
        run(|runtime| async move {
            let context = context_of(&runtime, BLOCK, 1 << 20);
            let log = open(&context).await.log;
            let produced = || {
                let mut builder = crate::record::BatchBuilder::new(crate::record::Codec::None);
                (0..3).for_each(|_| builder.push(None, &[7; 90], &[], 1).unwrap());
                builder.finish().unwrap()
            };
            let three = |offset: u64| {
                let mut batch = produced().to_vec();
                let (base_offset, incarnation) = (Offset(offset), crate::types::Incarnation(77));
                let fields =
                    ServerFields { base_offset, durable_hint: Offset(0), leader_epoch: LeaderEpoch(1), incarnation };
                stamp(&mut batch, fields);
                Bytes::from(batch)
            };
            for offset in [0, 3, 6] {
                if offset == 6 {
                    log.roll(Offset(6), &ProducerHistory::default()).await.unwrap();
                }
                let batch = produced();
                log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, offset));
                log.write_waiting(Commit::Durable).await.unwrap();
            }
            for (start, wrong, right) in [(4, 0, 3), (3, 0, 3), (1, 3, 0)] {
                let mut renewal = log.begin_renewal(Offset(0), Offset(start)).await.unwrap();
                assert_eq!(renewal.wants(), Some((Offset(start), Offset(6))));
                let refused = log.renew(&mut renewal, &three(wrong)).await;
                assert!(matches!(refused, Err(RewriteError::Wrong { .. })), "{wrong} from {start}: {refused:?}");
                log.renew(&mut renewal, &three(right)).await.unwrap();
                assert_eq!(renewal.wants().is_some(), right == 0, "from {start}");
            }
        });
    }

    #[test]
    fn a_segment_from_a_drive_with_smaller_blocks_is_written_anew_in_those_of_this_one() {
        let before = Sim::new(1, &SimConfig::default());
        let (_, cores) = before.process(1);
        let runtime = cores[0].clone();
        let made = async move { drop(sealed(&context_of(&runtime, 512, 1 << 20)).await) };
        before.block_on(&cores[0], made, 2_000_000).unwrap();
        let sim = Sim::new(1, &SimConfig { alignment: 4096, ..SimConfig::default() });
        for (path, _) in before.files() {
            sim.install(&path, &before.content(&path).unwrap()).unwrap();
        }
        let (_, cores) = sim.process(1);
        let context = context_of(&cores[0], 4096, 1 << 20);
        let story = async move {
            renew_all(&open(&context).await.log, 0).await;
            let log = open(&context).await.log;
            assert_eq!(offsets(&log).await, [0, 1, 2, 3, 4, 5, 6]);
            let segment = log.segment_of(Offset(0)).unwrap();
            assert_eq!(log.header_of(&segment).await.unwrap().block_bytes, 4096);
        };
        sim.block_on(&cores[0], story, 2_000_000).unwrap();
    }

    #[test]
    fn a_header_that_cannot_be_read_is_not_taken_for_a_damaged_one() {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let (world, context) = (Rc::clone(&sim), context_of(&cores[0], BLOCK, 1 << 20));
        let story = async move {
            let log = sealed(&context).await;
            drop(log);
            let log = open(&context).await.log;
            world.fail_nth(1, crate::runtime::sim::faults::Failure::Error, false);
            let refused = log.begin_renewal(Offset(2), Offset(0)).await.map(drop);
            assert!(matches!(refused, Err(RewriteError::Unreadable { .. })), "{refused:?}");
            log.begin_renewal(Offset(2), Offset(0)).await.map(drop).unwrap();
        };
        sim.block_on(&cores[0], story, 2_000_000).unwrap();
    }
}

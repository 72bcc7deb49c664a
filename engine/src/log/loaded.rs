//! How much is kept loaded of sealed segments: their open files and their indexes, of all logs of a core together, so
//! that ten thousand segments take no more than a few. What nobody read since the last look goes first.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

use super::{Log, segment::Segment};
use crate::{limits::OPEN_SEALED_SEGMENTS_MAX, runtime::Runtime, types::Offset};

struct Entry<R: Runtime> {
    log: Weak<Log<R>>,
    base: Offset,
    index_bytes: usize,
}

/// What is loaded on a core.
pub struct Loaded<R: Runtime> {
    /// Those loaded first first; whoever was read since goes to the end once more.
    entries: RefCell<VecDeque<Entry<R>>>,
    index_bytes: Cell<usize>,
    index_bytes_max: usize,
}

impl<R: Runtime> Loaded<R> {
    /// Room for `index_bytes_max` bytes of indexes, or for one.
    pub fn new(index_bytes_max: usize) -> Self {
        Loaded { entries: RefCell::default(), index_bytes: Cell::new(0), index_bytes_max }
    }

    /// The sealed `segment` of `log` was loaded. What no longer has room beside it goes, never itself: it is last.
    fn add(&self, log: &Rc<Log<R>>, segment: &Segment<R>) {
        let index_bytes = segment.index.borrow().as_ref().map_or(0, |index| index.memory_bytes());
        let entry = Entry { log: Rc::downgrade(log), base: segment.base_offset(), index_bytes };
        // Two readers may have loaded it at once. With a second entry it could be told to go the moment it came.
        self.forget(&entry);
        self.index_bytes.set(self.index_bytes.get() + index_bytes);
        self.entries.borrow_mut().push_back(entry);
        while self.is_crowded()
            && let Some(oldest) = self.take_oldest()
        {
            let Some(log) = oldest.log.upgrade() else { continue };
            let Some(known) = log.exactly(oldest.base).filter(|known| known.index.borrow().is_some()) else { continue };
            // Everybody gets a second chance once: nobody reads meanwhile.
            if known.read_lately.take() {
                self.index_bytes.set(self.index_bytes.get() + oldest.index_bytes);
                self.entries.borrow_mut().push_back(oldest);
            } else {
                known.unload();
            }
        }
    }

    fn forget(&self, known: &Entry<R>) {
        let mut entries = self.entries.borrow_mut();
        let is_known = |one: &Entry<R>| one.base == known.base && one.log.ptr_eq(&known.log);
        if let Some(entry) = entries.iter().position(is_known).and_then(|at| entries.remove(at)) {
            self.index_bytes.set(self.index_bytes.get() - entry.index_bytes);
        }
    }

    fn is_crowded(&self) -> bool {
        let count = self.entries.borrow().len();
        count > OPEN_SEALED_SEGMENTS_MAX || (count > 1 && self.index_bytes.get() > self.index_bytes_max)
    }

    fn take_oldest(&self) -> Option<Entry<R>> {
        let oldest = self.entries.borrow_mut().pop_front()?;
        self.index_bytes.set(self.index_bytes.get() - oldest.index_bytes);
        Some(oldest)
    }
}

impl<R: Runtime> Log<R> {
    /// Notes that a sealed segment has its file open and its index in memory.
    pub(super) fn note_loaded(self: &Rc<Self>, segment: &Segment<R>) {
        let newest = segment.index.borrow().as_ref().map(|index| index.max_timestamp());
        segment.max_timestamp.set(newest.or(segment.max_timestamp.get()));
        segment.read_lately.set(true);
        self.context.loaded.add(self, segment);
    }

    fn exactly(&self, base: Offset) -> Option<Rc<Segment<R>>> {
        self.segment_of(base).filter(|segment| segment.base_offset() == base)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use futures_util::future::join_all;

    use super::*;
    use crate::{
        error::RequestError,
        log::{
            LogContext,
            fixture::{P, append_each, append_timed, batch_of, context, context_of, edit, open, placed},
            flush::Commit,
            loading::headers_of,
            read::ReadRange,
            recovery,
        },
        record::{BatchBuilder, Codec, check_produced},
        runtime::sim::{Sim, SimConfig, SimRuntime, faults::Failure},
    };

    /// A log of 3,000 records in more segments than there is room for, and where they begin.
    async fn of_many_segments(context: &Rc<LogContext<SimRuntime>>) -> (Rc<Log<SimRuntime>>, Vec<Offset>) {
        context.runtime.create_dir_all(&PathBuf::from("/p")).await.unwrap();
        let log = recovery::open(context, P, PathBuf::from("/p")).await.unwrap().log;
        let batch = batch_of(8192);
        let header = check_produced(&batch).unwrap();
        for offset in 0..3000 {
            log.append(&batch, &header, placed(offset, 0));
            log.write_waiting(Commit::Written).await.unwrap();
        }
        let bases = log.segments.borrow().iter().map(|segment| segment.base_offset()).collect();
        (log, bases)
    }

    async fn read_one(log: &Rc<Log<SimRuntime>>, offset: Offset) {
        let range = ReadRange { offset, end: Offset(3000), max_bytes: 1 };
        assert_eq!(log.read_disk(range).await.unwrap().len(), 1);
    }

    #[test]
    fn of_many_segments_a_few_are_open_and_what_is_read_often_stays() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let (log, bases) = of_many_segments(&context).await;
            assert!(bases.len() > 20, "{} segments", bases.len());
            let read = async |offset: Offset| read_one(&log, offset).await;
            let open = || {
                let segments = log.segments.borrow();
                segments.iter().filter(|segment| segment.file.borrow().is_some()).count()
            };
            let often = bases[5];
            for base in &bases[..bases.len() - 1] {
                read(often).await;
                read(*base).await;
                assert!(context.loaded.index_bytes.get() <= context.loaded.index_bytes_max);
            }
            assert!(open() < 10, "{} files are open", open());
            let (file, index) = {
                let segment = log.exactly(often).unwrap();
                (segment.file.borrow().is_some(), segment.index.borrow().is_some())
            };
            assert!(file && index, "what is read all the time was unloaded");
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn whoever_loaded_a_segment_can_read_it_however_many_load_it_at_once() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let (log, bases) = of_many_segments(&context).await;
            let read = async |offset: Offset| read_one(&log, offset).await;
            for _ in 0..3 {
                for at in 0..bases.len() - 1 {
                    let at = |ahead: usize| bases[(at + ahead) % (bases.len() - 1)];
                    join_all([at(0), at(0), at(1), at(1), at(7), at(0)].map(read)).await;
                }
            }
            assert!(context.loaded.index_bytes.get() <= context.loaded.index_bytes_max);
            let counted = context.loaded.entries.borrow().iter().map(|entry| entry.index_bytes).sum::<usize>();
            assert_eq!(context.loaded.index_bytes.get(), counted, "each is counted once");
            let entries = context.loaded.entries.borrow().len();
            let loaded = log.segments.borrow().iter().filter(|one| one.index.borrow().is_some()).count();
            // The active segment has an index and no entry.
            assert_eq!(entries, loaded - 1);
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn a_time_is_found_behind_records_and_segments_that_are_lost() {
        let sim = Sim::new(3, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            context.runtime.create_dir_all(&PathBuf::from("/p")).await.unwrap();
            let log = recovery::open(&context, P, PathBuf::from("/p")).await.unwrap().log;
            append_timed(&log).await;
            drop(log);
            let log = recovery::open(&context, P, PathBuf::from("/p")).await.unwrap().log;
            let segments: Vec<_> =
                log.segments.borrow().iter().map(|known| (known.path.clone(), known.base_offset())).collect();
            let [_, (second, second_base), (third, third_base), (_, last_base)] = &segments[..] else {
                panic!("{segments:?}")
            };
            // A batch of the second segment, and the third one's header.
            edit(&context.runtime, second, 8192 * 10..8192 * 10 + 4096, |bytes| bytes.fill(9)).await;
            edit(&context.runtime, third, 0..4096, |bytes| bytes[20] ^= 1).await;
            let find = async |wanted: Offset| log.find_time(wanted.0 as i64, (Offset(0), Offset(400))).await.unwrap();
            let lost = log.find_time(second_base.0 as i64 + 9, (Offset(0), Offset(400))).await.unwrap();
            assert!((second_base.0 + 9..second_base.0 + 12).contains(&lost.0), "{lost} from {second_base}");
            assert_eq!(find(Offset(third_base.0 - 1)).await, Offset(third_base.0 - 1));
            assert_eq!(find(*third_base).await, *last_base, "all of the third is lost");
            assert_eq!(find(Offset(last_base.0 + 3)).await, Offset(last_base.0 + 3));
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn a_time_is_found_across_segments_and_the_second_search_loads_only_where_it_leads() {
        let sim = Sim::new(2, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            context.runtime.create_dir_all(&PathBuf::from("/p")).await.unwrap();
            let log = recovery::open(&context, P, PathBuf::from("/p")).await.unwrap().log;
            // Times rise, and every seventh batch is late.
            let time = |offset: u64| if offset.is_multiple_of(7) { offset as i64 - 300 } else { offset as i64 };
            for offset in 0..3000 {
                let mut builder = BatchBuilder::new(Codec::None);
                builder.push(None, &[7; 8000], &[], time(offset)).unwrap();
                let batch = builder.finish().unwrap();
                log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
                log.write_waiting(Commit::Written).await.unwrap();
            }
            drop(log);
            let log = recovery::open(&context, P, PathBuf::from("/p")).await.unwrap().log;
            let range = |start| (Offset(start), Offset(3000));
            let first_from = |start: u64, wanted: i64| (start..3000).find(|at| time(*at) >= wanted).unwrap_or(3000);
            for wanted in [-1000, 0, 1, 699, 700, 701, 1500, 2998, 2999, 3000] {
                for start in [0, 1, 350, 1499, 2999] {
                    let found = log.find_time(wanted, range(start)).await.unwrap();
                    assert_eq!(found, Offset(first_from(start, wanted)), "{wanted} from {start}");
                }
            }
            let bases: Vec<u64> = log.segments.borrow().iter().map(|segment| segment.base_offset().0).collect();
            for newest in bases[1..].iter().map(|next| *next as i64 - 1) {
                let found = log.find_time(newest, range(0)).await.unwrap();
                assert_eq!(found, Offset(first_from(0, newest)), "the newest of a segment");
            }
            let reads = context.metrics.disk_reads.get();
            assert_eq!(log.find_time(2990, range(0)).await.unwrap(), Offset(2990));
            assert!(context.metrics.disk_reads.get() - reads < 3, "a second search reads all over again");
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn so_many_sealed_segments_are_open_and_no_more_however_small_their_indexes_are() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let mut context = context_of(&cores[0], 512, 8 << 10);
        Rc::get_mut(&mut context).unwrap().loaded = Loaded::new(1 << 30);
        let story = async move {
            let log = open(&context).await.log;
            let count = OPEN_SEALED_SEGMENTS_MAX as u64 + 3;
            append_each(&log, &batch_of(4000), 0..count + 1).await;
            assert_eq!(log.segments.borrow().len() as u64, count + 1, "a segment for each batch");
            let log = open(&context).await.log;
            for offset in 0..count {
                let range = ReadRange { offset: Offset(offset), end: Offset(count), max_bytes: 1 };
                log.read_disk(range).await.unwrap();
                let open = log.segments.borrow().iter().filter(|one| one.file.borrow().is_some()).count() as u64;
                // The active one is open too.
                assert_eq!(open, 1 + (offset + 1).min(OPEN_SEALED_SEGMENTS_MAX as u64), "after {offset}");
            }
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn a_segment_that_cannot_be_opened_is_not_lost_and_one_that_is_gone_is() {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let (world, context) = (Rc::clone(&sim), context(&cores[0], 4096));
        let story = async move {
            append_each(&open(&context).await.log, &batch_of(8192), 0..300).await;
            let log = open(&context).await.log;
            let read = async || log.read_disk(ReadRange { offset: Offset(7), end: Offset(300), max_bytes: 1 }).await;
            world.fail_nth(1, Failure::Error, false);
            let failed = read().await;
            assert!(matches!(failed, Err(RequestError::ReadFailed { .. })), "{failed:?}");
            assert!(log.losses().is_empty());
            read().await.unwrap();
            let log = open(&context).await.log;
            let path = log.segments.borrow()[0].path.clone();
            context.runtime.remove_file(&path).await.unwrap();
            let failed = log.read_disk(ReadRange { offset: Offset(7), end: Offset(300), max_bytes: 1 }).await;
            assert!(matches!(failed, Err(RequestError::Corrupt { from: Offset(0), .. })), "{failed:?}");
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn an_index_made_from_a_segment_whose_first_record_is_lost_leads_there() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            append_each(&open(&context).await.log, &batch_of(8192), 0..300).await;
            let log = open(&context).await.log;
            let (path, base) = {
                let second = &log.segments.borrow()[1];
                (second.path.clone(), second.base_offset())
            };
            context.runtime.remove_file(&path.with_extension("idx")).await.unwrap();
            edit(&context.runtime, &path, 4096..8192, |bytes| bytes[200] ^= 1).await;
            let read = async |offset| log.read_disk(ReadRange { offset, end: Offset(300), max_bytes: 1 }).await;
            let next = Offset(base.0 + 1);
            let lost = read(base).await.unwrap_err();
            let RequestError::Corrupt { from, to, .. } = lost else { panic!("{lost}") };
            assert_eq!((from, to), (base, next));
            assert_eq!(headers_of(&read(next).await.unwrap()[0])[0].base_offset, next);
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }

    #[test]
    fn there_is_room_for_the_one_segment_that_is_read_however_little_there_is() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let mut context = context(&cores[0], 4096);
        Rc::get_mut(&mut context).unwrap().loaded = Loaded::new(0);
        let story = async move {
            append_each(&open(&context).await.log, &batch_of(8192), 0..300).await;
            let log = open(&context).await.log;
            for offset in [7, 150, 8] {
                let range = ReadRange { offset: Offset(offset), end: Offset(300), max_bytes: 1 };
                log.read_disk(range).await.unwrap();
                assert!(log.has_index_of(Offset(offset)) && context.loaded.entries.borrow().len() == 1);
            }
        };
        sim.block_on(&cores[0], story, 5_000_000).unwrap();
    }
}

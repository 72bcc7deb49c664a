//! Reading ahead for readers who catch up: one who goes on where the last read of the device ended is given the next
//! stretch from memory, because it was read while he was busy with the one before.
//!
//! A log knows its last few readers by the offset that each would ask for next, and nothing else of them: so their
//! state is bounded, and a reader who jumps about reads nothing ahead. The stretches grow from 64 KiB to 4 MiB while he
//! goes on. They are read and checked in the background, a few at a time on a core, never go into the block cache (a
//! long scan would flush it) and take bounded room; when that is used up, those read first are dropped.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

use bytes::Bytes;

use super::{
    Log,
    read::{Checked, ReadRange},
    segment::Segment,
};
use crate::{error::RequestError, runtime::Runtime, signal::Signal, types::Offset};

/// Readers that a log knows at once.
const READERS_MAX: usize = 4;

/// The first stretch: what a device gives in hardly more time than a block.
const STRETCH_BYTES_MIN: usize = 64 << 10;

/// The largest stretch: from 1 MiB on the device is at its bandwidth, and a client asks for no more at once.
const STRETCH_BYTES_MAX: usize = 4 << 20;

/// Stretches of one reader: the one being handed out, and the one behind it.
const STRETCHES_MAX: usize = 2;

/// Background reads of a core that the device has at once. Two keep a drive busy; more of them only make those wait who
/// are served.
const LANES: usize = 2;

/// What all logs of a core share for reading ahead and in the background.
pub struct AheadMemory<R: Runtime> {
    used_bytes: Rc<Cell<usize>>,
    bytes_max: usize,
    /// Whose stretches there are, those begun first first. Some may be gone, until the next one is begun.
    begun: RefCell<VecDeque<(Weak<Log<R>>, u64)>>,
    lanes: Lanes,
}

impl<R: Runtime> AheadMemory<R> {
    /// Room for `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        let lanes = Lanes { free: Cell::new(LANES), freed: Signal::default() };
        AheadMemory { used_bytes: Rc::default(), bytes_max, begun: RefCell::default(), lanes }
    }

    /// Waits until the device may have one more background read of this core; it may until the result is dropped.
    pub(super) async fn lane(&self) -> Lane<'_> {
        self.lanes.freed.wait_until(|| self.lanes.free.get() > 0).await;
        self.lanes.free.set(self.lanes.free.get() - 1);
        Lane(&self.lanes)
    }

    /// Takes room for a stretch of `log`, from those begun first if there is none. `None` if there is too little.
    fn room(&self, log: &Rc<Log<R>>, (id, bytes): (u64, usize)) -> Option<Share> {
        if bytes < STRETCH_BYTES_MIN {
            return None;
        }
        while self.used_bytes.get() + bytes > self.bytes_max {
            let (other, id) = self.begun.borrow_mut().pop_front()?;
            if let Some(other) = other.upgrade() {
                other.ahead.drop_stretch(id);
            }
        }
        let mut begun = self.begun.borrow_mut();
        // What is here beside the new one has room, so these are few.
        begun.retain(|(log, id)| log.upgrade().is_some_and(|log| log.ahead.has_stretch(*id)));
        begun.push_back((Rc::downgrade(log), id));
        Share::take(&self.used_bytes, bytes, self.bytes_max)
    }
}

struct Lanes {
    free: Cell<usize>,
    freed: Signal,
}

/// See [`AheadMemory::lane`].
pub(super) struct Lane<'a>(&'a Lanes);

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.freed.notify();
    }
}

/// Room that something takes within a bound, given back when this is dropped.
pub(super) struct Share {
    used_bytes: Rc<Cell<usize>>,
    bytes: usize,
}

impl Share {
    /// Takes `bytes` beside the `used_bytes`. `None` if that is more than `bytes_max`.
    pub(super) fn take(used_bytes: &Rc<Cell<usize>>, bytes: usize, bytes_max: usize) -> Option<Share> {
        let used = used_bytes.get().checked_add(bytes).filter(|used| *used <= bytes_max)?;
        used_bytes.set(used);
        Some(Share { used_bytes: Rc::clone(used_bytes), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.used_bytes.set(self.used_bytes.get() - self.bytes);
    }
}

/// What was read of a stretch.
pub(super) struct Ready<R: Runtime> {
    pub(super) segment: Rc<Segment<R>>,
    pub(super) checked: Checked,
    /// The offset that follows it.
    pub(super) bound: Offset,
}

struct Stretch<R: Runtime> {
    id: u64,
    from: Offset,
    /// `None` while it is read.
    ready: Option<Ready<R>>,
    _room: Share,
}

struct Reader<R: Runtime> {
    /// What it asks for next, if it goes on.
    next: Offset,
    /// How long the last stretch was; 0 for one who was seen once.
    stretch_bytes: usize,
    stretches: VecDeque<Stretch<R>>,
    last_seen: u64,
}

/// What a log knows of its readers.
pub(super) struct ReadAhead<R: Runtime> {
    readers: RefCell<Vec<Reader<R>>>,
    changed: Signal,
    counter: Cell<u64>,
}

impl<R: Runtime> Default for ReadAhead<R> {
    fn default() -> Self {
        ReadAhead { readers: RefCell::default(), changed: Signal::default(), counter: Cell::new(0) }
    }
}

impl<R: Runtime> ReadAhead<R> {
    fn count(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    /// Whether `offset` is what a reader who catches up asks for next.
    pub(super) fn expects(&self, offset: Offset) -> bool {
        self.readers.borrow().iter().any(|reader| reader.next == offset && reader.stretch_bytes > 0)
    }

    /// Whether the stretch that holds `offset` is being read.
    fn is_reading(&self, offset: Offset) -> bool {
        let readers = self.readers.borrow();
        let front = readers.iter().find(|reader| reader.next == offset).and_then(|reader| reader.stretches.front());
        front.is_some_and(|stretch| stretch.ready.is_none() && stretch.from <= offset)
    }

    /// Waits while the stretch that holds `offset` is being read.
    pub(super) async fn settled(&self, offset: Offset) {
        self.changed.wait_until(|| !self.is_reading(offset)).await;
    }

    fn has_stretch(&self, id: u64) -> bool {
        self.readers.borrow().iter().any(|reader| reader.stretches.iter().any(|stretch| stretch.id == id))
    }

    fn drop_stretch(&self, id: u64) {
        self.readers.borrow_mut().iter_mut().for_each(|reader| reader.stretches.retain(|stretch| stretch.id != id));
        self.changed.notify();
    }

    /// Drops what was read of segments but those that `stay`.
    pub(super) fn retain(&self, stay: impl Fn(Offset) -> bool) {
        let stays = |stretch: &Stretch<R>| stretch.ready.as_ref().is_none_or(|ready| stay(ready.segment.base_offset()));
        self.readers.borrow_mut().iter_mut().for_each(|reader| reader.stretches.retain(stays));
    }

    fn arrived(&self, id: u64, ready: Ready<R>) {
        let mut readers = self.readers.borrow_mut();
        if let Some(stretch) = readers.iter_mut().flat_map(|r| &mut r.stretches).find(|stretch| stretch.id == id) {
            stretch.ready = Some(ready);
        }
        drop(readers);
        self.changed.notify();
    }

    /// A reader got the records from `from` to before `end`. Where to read on for him and how much, if it is time to.
    fn handed_out(&self, from: Offset, end: Offset, bytes_max: usize) -> Option<(Offset, usize)> {
        let now = self.count();
        let mut readers = self.readers.borrow_mut();
        let Some(reader) = readers.iter_mut().find(|reader| reader.next == from) else {
            if readers.len() == READERS_MAX
                && let Some(oldest) = (0..READERS_MAX).min_by_key(|at| readers[*at].last_seen)
            {
                readers.swap_remove(oldest);
            }
            readers.push(Reader { next: end, stretch_bytes: 0, stretches: VecDeque::new(), last_seen: now });
            return None;
        };
        (reader.next, reader.last_seen) = (end, now);
        let is_passed = |stretch: &Stretch<R>| stretch.ready.as_ref().is_some_and(|ready| ready.bound <= end);
        while reader.stretches.front().is_some_and(is_passed) {
            reader.stretches.pop_front();
        }
        if reader.stretches.len() >= STRETCHES_MAX {
            return None;
        }
        let begin = match reader.stretches.back() {
            None => end,
            Some(last) => last.ready.as_ref()?.bound,
        };
        reader.stretch_bytes = (reader.stretch_bytes * 2).max(STRETCH_BYTES_MIN).min(bytes_max);
        Some((begin, reader.stretch_bytes))
    }
}

impl<R: Runtime> Log<R> {
    /// Whether a read of `offset` is that of a reader who catches up, so that it belongs into the background.
    pub fn is_catching_up(&self, offset: Offset) -> bool {
        self.ahead.expects(offset)
    }

    /// Reads without waiting, if the first record wanted was read ahead. `None` if it was not.
    pub fn read_ahead(self: &Rc<Self>, range: ReadRange) -> Option<Result<Vec<Bytes>, RequestError>> {
        let outcome = {
            let readers = self.ahead.readers.borrow();
            let reader = readers.iter().find(|reader| reader.next == range.offset)?;
            let stretch = reader.stretches.front().filter(|stretch| stretch.from <= range.offset)?;
            let ready = stretch.ready.as_ref()?;
            ready.checked.batches(range, &ready.segment)
        };
        match outcome {
            Ok((pieces, _)) if pieces.is_empty() => None,
            Ok((pieces, end)) => {
                self.context.metrics.read_ahead_hits.add(1);
                self.note_reader(range.offset, end);
                Some(Ok(pieces))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Notes that a reader was given the records from `from` to before `end`, and reads ahead for him if he goes on.
    pub(super) fn note_reader(self: &Rc<Self>, from: Offset, end: Offset) {
        let memory = &self.context.ahead;
        let bytes_max = STRETCH_BYTES_MAX.min(memory.bytes_max / STRETCHES_MAX);
        let Some((begin, bytes)) = self.ahead.handed_out(from, end, bytes_max) else { return };
        if !self.is_on_device_only(begin) {
            return;
        }
        let id = self.ahead.count();
        let Some(room) = memory.room(self, (id, bytes)) else { return };
        let stretch = Stretch { id, from: begin, ready: None, _room: room };
        match self.ahead.readers.borrow_mut().iter_mut().find(|reader| reader.next == end) {
            Some(reader) => reader.stretches.push_back(stretch),
            // Room was made by forgetting.
            None => return,
        }
        let log = Rc::clone(self);
        self.context.runtime.spawn_background(async move {
            let range = ReadRange { offset: begin, end: Offset(u64::MAX), max_bytes: bytes };
            match log.read_stretch(range).await {
                Ok(ready) if log.holds(ready.segment.base_offset()) => log.ahead.arrived(id, ready),
                // Deleted meanwhile; or whoever asks for it meets the same error.
                Ok(_) | Err(_) => log.ahead.drop_stretch(id),
            }
        });
    }

    /// Whether the record at `offset` exists and must be read from the device.
    fn is_on_device_only(&self, offset: Offset) -> bool {
        let Some(segment) = self.segment_of(offset) else { return false };
        offset < self.written_offset(&segment) && self.tail.borrow().start_of(&segment, offset).is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        log::{
            LogContext,
            fixture::{P, batch_of, context, placed},
            flush::Commit,
            loading::headers_of,
            recovery,
        },
        record::check_produced,
        runtime::sim::{Sim, SimConfig, SimRuntime},
    };

    const BATCH: usize = 8192;
    const STEPS: u64 = 5_000_000;

    async fn log_of(context: &Rc<LogContext<SimRuntime>>, batches: u64) -> Rc<Log<SimRuntime>> {
        log_in("/p", context, batches).await
    }

    async fn log_in(dir: &str, context: &Rc<LogContext<SimRuntime>>, batches: u64) -> Rc<Log<SimRuntime>> {
        context.runtime.create_dir_all(&PathBuf::from(dir)).await.unwrap();
        let log = recovery::open(context, P, PathBuf::from(dir)).await.unwrap().log;
        let batch = batch_of(BATCH);
        let header = check_produced(&batch).unwrap();
        for offset in 0..batches {
            log.append(&batch, &header, placed(offset, 0));
            log.write_waiting(Commit::Written).await.unwrap();
        }
        log
    }

    async fn read(log: &Rc<Log<SimRuntime>>, from: u64, max_bytes: usize) -> u64 {
        let end = log.end_offset.get();
        let pieces = log.read_disk(ReadRange { offset: Offset(from), end, max_bytes }).await.unwrap();
        let headers: Vec<_> = pieces.iter().flat_map(headers_of).collect();
        assert_eq!(headers[0].base_offset, Offset(from));
        headers.last().unwrap().end_offset().0
    }

    #[test]
    fn who_reads_on_finds_what_comes_next_in_memory_and_who_jumps_about_reads_nothing_ahead() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = log_of(&context, 600).await;
            let metrics = &context.metrics;
            let mut next = 0;
            while next < 600 {
                next = read(&log, next, 30_000).await;
                context.runtime.sleep(std::time::Duration::from_millis(5)).await;
                assert!(context.ahead.used_bytes.get() <= context.ahead.bytes_max);
            }
            let (reads, hits) = (metrics.disk_reads.get(), metrics.read_ahead_hits.get());
            assert!(hits > 180 && reads < 40, "{hits} of 200 fetches came from memory, {reads} reads of the drive");
            let before = metrics.disk_read_bytes.get();
            for jump in 0..100 {
                read(&log, (jump * 37) % 600, 1).await;
                context.runtime.sleep(std::time::Duration::from_millis(5)).await;
            }
            let blocks = 100 * 2 * 24 * 1024;
            assert!(
                metrics.disk_read_bytes.get() - before < blocks,
                "{} bytes",
                metrics.disk_read_bytes.get() - before
            );
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn a_long_scan_leaves_the_cache_to_those_who_read_the_same_again() {
        let sim = Sim::new(2, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = log_of(&context, 600).await;
            // The cache of this world has room for three blocks.
            for _ in 0..3 {
                read(&log, 100, 1).await;
                read(&log, 200, 1).await;
            }
            for max_bytes in [1, 30_000, 1 << 20] {
                let mut next = 300;
                while next < 600 {
                    next = read(&log, next, max_bytes).await;
                }
            }
            let misses = context.metrics.cache_misses.get();
            read(&log, 100, 1).await;
            read(&log, 200, 1).await;
            assert_eq!(context.metrics.cache_misses.get(), misses, "a scan flushed what is read often");
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn many_readers_take_bounded_room_and_all_get_what_they_ask_for() {
        let sim = Sim::new(3, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = log_of(&context, 400).await;
            let mut places: Vec<u64> = (0..12).map(|reader| reader * 20).collect();
            while places.iter().any(|next| *next < 400) {
                for next in places.iter_mut().filter(|next| **next < 400) {
                    *next = read(&log, *next, 20_000).await;
                    assert!(context.ahead.used_bytes.get() <= context.ahead.bytes_max);
                    assert!(log.ahead.readers.borrow().len() <= READERS_MAX);
                }
            }
            drop(log);
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn the_device_has_so_many_background_reads_at_once_and_no_more() {
        let sim = Sim::new(4, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let memory = Rc::new(AheadMemory::<SimRuntime>::new(1 << 20));
        let runtime = cores[0].clone();
        let story = async move {
            let mut taken: Vec<_> = Vec::new();
            for _ in 0..LANES {
                taken.push(memory.lane().await);
            }
            let waiter = Rc::clone(&memory);
            let got = Rc::new(Cell::new(false));
            let seen = Rc::clone(&got);
            runtime.spawn(async move {
                let _lane = waiter.lane().await;
                seen.set(true);
            });
            runtime.sleep(std::time::Duration::from_millis(5)).await;
            assert!(!got.get(), "one more than {LANES}");
            taken.pop();
            runtime.sleep(std::time::Duration::from_millis(5)).await;
            assert!(got.get(), "a lane is free");
            drop(taken);
            assert_eq!(memory.lanes.free.get(), LANES);
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn with_room_for_two_stretches_of_the_least_size_one_reads_ahead_and_with_less_nobody_does() {
        for (bytes_max, reads_ahead) in [(2 * STRETCH_BYTES_MIN, true), (2 * STRETCH_BYTES_MIN - 4096, false)] {
            let sim = Sim::new(5, &SimConfig::default());
            let (_, cores) = sim.process(1);
            let mut context = context(&cores[0], 4096);
            Rc::get_mut(&mut context).unwrap().ahead = AheadMemory::new(bytes_max);
            let story = async move {
                let log = log_of(&context, 200).await;
                let mut next = 0;
                while next < 200 {
                    next = read(&log, next, 10_000).await;
                    context.runtime.sleep(std::time::Duration::from_millis(5)).await;
                    assert!(context.ahead.used_bytes.get() <= bytes_max);
                }
                assert_eq!(context.metrics.read_ahead_hits.get() > 0, reads_ahead, "room for {bytes_max} bytes");
            };
            sim.block_on(&cores[0], story, STEPS).unwrap();
        }
    }

    #[test]
    fn what_is_remembered_of_stretches_that_are_gone_is_bounded() {
        let sim = Sim::new(6, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = log_of(&context, 100).await;
            // Readers of whom each is seen twice and then no more.
            for turn in 0..200 {
                let next = read(&log, turn % 40, 1).await;
                read(&log, next, 1).await;
                context.runtime.sleep(std::time::Duration::from_millis(5)).await;
                let begun = context.ahead.begun.borrow().len();
                assert!(begun <= READERS_MAX * STRETCHES_MAX, "{begun} of them");
            }
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn who_reads_on_without_a_pause_waits_for_what_is_read_for_him_and_nothing_is_read_twice() {
        let sim = Sim::new(7, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 4096);
        let story = async move {
            let log = log_of(&context, 600).await;
            assert!(!log.is_catching_up(Offset(0)));
            let mut next = read(&log, 0, 30_000).await;
            assert!(!log.is_catching_up(Offset(next)), "he was seen once");
            while next < 600 {
                next = read(&log, next, 30_000).await;
                assert!(log.is_catching_up(Offset(next)) && !log.is_catching_up(Offset(next + 1)));
            }
            let (read, stored) = (context.metrics.disk_read_bytes.get(), 600 * BATCH as u64);
            assert!(read < stored * 11 / 10, "{read} bytes were read of {stored}");
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }

    #[test]
    fn room_for_who_reads_on_is_taken_from_the_stretches_that_were_begun_first() {
        let sim = Sim::new(8, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let mut context = context(&cores[0], 4096);
        Rc::get_mut(&mut context).unwrap().ahead = AheadMemory::new(2 * STRETCH_BYTES_MIN);
        let story = async move {
            let (idle, busy) = (log_of(&context, 200).await, log_in("/q", &context, 200).await);
            let stretches = || idle.ahead.readers.borrow().iter().map(|reader| reader.stretches.len()).sum::<usize>();
            let read_on = async |log: &Rc<Log<SimRuntime>>, mut next: u64, end: u64| {
                while next < end {
                    next = read(log, next, 10_000).await;
                    context.runtime.sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            read_on(&idle, 0, 20).await;
            assert_eq!(stretches(), STRETCHES_MAX, "all the room there is");
            let hits = context.metrics.read_ahead_hits.get();
            read_on(&busy, 0, 150).await;
            let hits = context.metrics.read_ahead_hits.get() - hits;
            assert!(stretches() == 0 && hits > 130, "{} stretches are left, {hits} hits", stretches());
        };
        sim.block_on(&cores[0], story, STEPS).unwrap();
    }
}

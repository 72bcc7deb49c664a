//! The requests of one stream between their arrival and their answer.
//!
//! A reader task puts requests in, a writer task takes bursts of answers out; they meet here. What keeps a client from
//! making the server grow: a bounded number of requests is open, and each holds its share of the core's memory budget
//! until its answer was handed to the stream.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use pyralog_engine::{
    runtime::Runtime,
    shard::{
        budget::Reservation,
        completion::CompletionQueue,
        request::{Fetch, Outcome, Reply, Request},
        stages::{Stage, StageClock},
    },
};

use super::{connection::Core, handler};
use crate::wire::code::ErrorCode;

/// Bytes of answers after which a burst is written, though more are there: the first of them should not wait for the
/// last.
const BURST_BYTES: usize = 256 << 10;

/// What a burst's small frames get as room at first: some 200 acks.
const SMALL_FRAMES_BYTES: usize = 8 << 10;

/// What a request was, as far as its answer depends on it.
pub(super) enum Asked {
    Produce,
    /// A fetch is tried without waiting, holding memory for what it may read. If there is nothing, it waits without
    /// memory.
    Fetch {
        fetch: Fetch,
        waits: bool,
    },
    FindOffset,
    CreateLog,
    DeleteLog,
    AlterLog,
    Trim,
    DescribePartition,
    Recover,
    Move,
    DescribeCores,
    Unpin,
}

struct Slot {
    correlation: u64,
    asked: Asked,
    memory: Reservation,
}

/// One stream's requests. See the module's comment.
pub(super) struct Pipeline {
    core: Rc<Core>,
    id: u64,
    outcomes: Rc<CompletionQueue>,
    /// By token. Freed places are used again, so this grows to the most requests ever open.
    slots: RefCell<Vec<Option<Slot>>>,
    free: RefCell<Vec<usize>>,
    /// Answers that needed no shard.
    prepared: RefCell<VecDeque<(Bytes, Reservation)>>,
    open: Cell<usize>,
    state: Cell<State>,
    /// When bytes were last read, on a stream with timed requests.
    timed_read: Cell<Option<Duration>>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Requests come and answers go.
    Open,
    /// No more requests; what is open will be answered, and then the stream ends so.
    Ending(StreamEnd),
    /// Answers cannot be delivered any more.
    Broken,
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// After the last answer, in good order.
    Finish,
    /// Abruptly, with an error's code: the client broke the protocol.
    Reset(ErrorCode),
}

/// What the writer does next.
pub(super) enum Next {
    /// Write these.
    Burst(Burst),
    /// End the stream: everything is answered.
    End(StreamEnd),
}

/// Answers to write in one go.
#[derive(Default)]
pub(super) struct Burst {
    /// What to write, in order.
    pub chunks: Vec<Bytes>,
    small: BytesMut,
    bytes: usize,
    answers: usize,
    memory: Vec<Reservation>,
}

impl Burst {
    /// Appends a small frame, or the head of a large one, by `encode`.
    pub fn put(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        if self.small.capacity() == 0 {
            self.small.reserve(SMALL_FRAMES_BYTES);
        }
        let before = self.small.len();
        encode(&mut self.small);
        self.bytes += self.small.len() - before;
    }

    /// Appends bytes without copying them.
    pub fn put_shared(&mut self, bytes: Bytes) {
        self.cut();
        self.bytes += bytes.len();
        self.chunks.push(bytes);
    }

    /// What to write, in order.
    pub fn into_chunks(mut self) -> Vec<Bytes> {
        self.cut();
        self.chunks
    }

    fn cut(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
    }
}

impl Pipeline {
    pub fn new(core: Rc<Core>) -> Rc<Self> {
        let id = core.next_stream_id();
        let pipeline = Rc::new(Pipeline {
            core: Rc::clone(&core),
            id,
            outcomes: CompletionQueue::new(),
            slots: RefCell::default(),
            free: RefCell::default(),
            prepared: RefCell::default(),
            open: Cell::new(0),
            state: Cell::new(State::Open),
            timed_read: Cell::new(None),
            reader: Cell::default(),
            writer: Cell::default(),
        });
        core.register(id, &pipeline);
        pipeline
    }

    pub fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Waits until one more request may be open. Gives false if the stream is broken.
    pub async fn room(&self) -> bool {
        let open_max = self.core.admission.limits().requests_in_flight_per_stream_max;
        if self.open.get() < open_max {
            return !self.is_broken();
        }
        poll_fn(|context| {
            if self.is_broken() || self.open.get() < open_max {
                return Poll::Ready(!self.is_broken());
            }
            self.wake_reader_by(context);
            Poll::Pending
        })
        .await
    }

    /// Passes a request on to the shard.
    pub fn submit(&self, correlation: u64, asked: Asked, request: Request, memory: Reservation) {
        self.submit_timed(correlation, asked, (request, None), memory);
    }

    /// [`Pipeline::submit`], measured if there is a clock.
    pub fn submit_timed(
        &self,
        correlation: u64,
        asked: Asked,
        (request, clock): (Request, Option<StageClock>),
        memory: Reservation,
    ) {
        self.count_open(1);
        let slot = Slot { correlation, asked, memory };
        let token = match self.free.borrow_mut().pop() {
            Some(token) => {
                self.slots.borrow_mut()[token] = Some(slot);
                token
            }
            None => {
                self.slots.borrow_mut().push(Some(slot));
                self.slots.borrow().len() - 1
            }
        };
        self.core.shard.submit(request, self.outcomes.reply_to(token as u64).timed(clock));
    }

    /// The clock of a request whose turn has come. Its first stage began with the last read; the first timed request of
    /// a stream has none, since nobody took the time yet.
    pub fn start_clock(&self) -> StageClock {
        let now = self.core.shard.runtime().monotonic();
        let mut clock = StageClock::start(self.timed_read.get().unwrap_or(now));
        clock.mark(Stage::Receive, now);
        if self.timed_read.get().is_none() {
            self.timed_read.set(Some(now));
        }
        clock
    }

    /// Bytes were read. Takes the time if a request of this stream asked for its own.
    pub fn note_read(&self) {
        if self.timed_read.get().is_some() {
            self.timed_read.set(Some(self.core.shard.runtime().monotonic()));
        }
    }

    /// Answers a request at once.
    pub fn answer(&self, frames: Bytes, memory: Reservation) {
        self.count_open(1);
        self.prepared.borrow_mut().push_back((frames, memory));
        self.wake_writer();
    }

    /// No more requests will come.
    pub fn end(&self, how: StreamEnd) {
        if self.state.get() == State::Open {
            self.state.set(State::Ending(how));
        }
        self.wake_writer();
    }

    /// The answers cannot be delivered. The reader learns of it.
    pub fn set_broken(&self) {
        self.state.set(State::Broken);
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub fn is_broken(&self) -> bool {
        self.state.get() == State::Broken
    }

    /// Whether the stream must come to its end: the server stops, or the client broke off.
    pub fn must_finish(&self) -> bool {
        self.is_broken() || self.core.is_finishing()
    }

    /// Has the reader woken when the stream breaks or has room.
    pub fn wake_reader_by(&self, context: &Context<'_>) {
        self.reader.set(Some(context.waker().clone()));
    }

    /// Has the writer woken when there is something to do for it.
    pub fn wake_writer_by(&self, context: &Context<'_>) {
        self.writer.set(Some(context.waker().clone()));
    }

    pub fn wake_writer(&self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Waits for answers and takes as many as make a burst.
    pub async fn next(&self) -> Next {
        loop {
            let mut outcome_ready = pin!(self.outcomes.ready());
            let end = poll_fn(|context| {
                if !self.prepared.borrow().is_empty() || outcome_ready.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                if let Some(end) = self.ended() {
                    return Poll::Ready(Some(end));
                }
                self.wake_writer_by(context);
                Poll::Pending
            })
            .await;
            if let Some(end) = end {
                return Next::End(end);
            }
            let burst = self.take_burst();
            if burst.answers > 0 {
                return Next::Burst(burst);
            }
        }
    }

    fn ended(&self) -> Option<StreamEnd> {
        match self.state.get() {
            State::Ending(how) if self.open.get() == 0 => Some(how),
            State::Broken if self.open.get() == 0 => Some(StreamEnd::Finish),
            // The server stops. What is still open are fetches that wait for records, or else what took too long: a
            // client must not take the end of the stream for the word that such a write was not carried out.
            _ if self.core.is_finishing() && self.open.get() > self.waiting() => {
                Some(StreamEnd::Reset(ErrorCode::OUTCOME_UNKNOWN))
            }
            _ if self.core.is_finishing() => Some(StreamEnd::Finish),
            _ => None,
        }
    }

    /// Fetches that wait for records.
    fn waiting(&self) -> usize {
        let waits = |slot: &Option<Slot>| {
            slot.as_ref().is_some_and(|slot| matches!(slot.asked, Asked::Fetch { waits: true, .. }))
        };
        self.slots.borrow().iter().filter(|slot| waits(slot)).count()
    }

    fn take_burst(&self) -> Burst {
        let mut burst = Burst::default();
        while burst.bytes < BURST_BYTES {
            let Some((frames, memory)) = self.prepared.borrow_mut().pop_front() else { break };
            burst.answers += 1;
            burst.memory.push(memory);
            burst.put_shared(frames);
        }
        while burst.bytes < BURST_BYTES {
            let Some((token, outcome)) = self.outcomes.pop() else { break };
            self.take_answer(token as usize, outcome, &mut burst);
        }
        burst.cut();
        burst
    }

    fn take_answer(&self, token: usize, outcome: Outcome, burst: &mut Burst) {
        let slot = self.slots.borrow_mut()[token].take();
        let Some(mut slot) = slot else { unreachable!("an outcome came for token {token}, which nobody holds") };
        if let Asked::Fetch { fetch, waits } = &mut slot.asked {
            if *waits {
                self.core.count_under_way(1);
            }
            let nothing = matches!(&outcome, Ok(Reply::Fetched(fetched)) if fetched.batches.is_empty());
            if nothing && !*waits && !fetch.max_wait.is_zero() && !self.core.admission.is_closed() {
                *waits = true;
                let request = Request::Fetch(*fetch);
                slot.memory.resize(0);
                // A wait is no work under way: a server that stops need not see it through.
                self.core.count_under_way(-1);
                self.slots.borrow_mut()[token] = Some(slot);
                self.core.shard.submit(request, self.outcomes.reply_to(token as u64));
                return;
            }
        }
        self.free.borrow_mut().push(token);
        let before = burst.bytes;
        handler::encode(burst, &self.core, &slot.asked, slot.correlation, outcome);
        slot.memory.resize(burst.bytes - before);
        burst.answers += 1;
        burst.memory.push(slot.memory);
    }

    /// The burst was handed to the stream, or given up: its memory is free.
    pub fn delivered(&self, burst: Burst) {
        self.count_open(-(burst.answers as isize));
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn count_open(&self, change: isize) {
        self.open.set(self.open.get().saturating_add_signed(change));
        self.core.count_under_way(change);
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.core.count_under_way(self.waiting() as isize - self.open.get() as isize);
        self.core.unregister(self.id);
    }
}

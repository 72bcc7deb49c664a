//! One long-lived stream of a connection: many callers' requests go out pipelined, and each gets its reply by
//! correlation ID.
//!
//! A caller encodes its request straight into the lane's outbox, under a lock that is held for some tens of
//! nanoseconds; one writer task hands whatever gathered meanwhile to QUIC as one write, and one reader task completes
//! all callers whose replies came together under one lock. No task, timer or allocation per request. What is in flight
//! is bounded in bytes, first come first served. When the stream dies every caller learns at once whether its request
//! may have been sent.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use pyralog_engine::shard::request::{Fetch, FindOffset};
use quinn::{RecvStream, SendStream, WriteError};

use crate::wire::{
    frame::{Frame, FrameDecoder},
    request::{self, Produce},
};

/// Payloads up to this many bytes are copied behind their frame's head: a chunk of its own costs QUIC more than the
/// copy.
const COPIED_BYTES_MAX: usize = 4 << 10;

/// What a request in flight costs besides its own bytes: its slot and its caller.
const REQUEST_COST_BYTES: usize = 256;

/// Chunks read from the stream at once. A datagram is one chunk.
const READ_CHUNKS: usize = 64;

/// How often requests are checked against their timeout.
const TICK: Duration = Duration::from_millis(100);

/// Appends a frame with this correlation ID.
pub(super) type Encode = Box<dyn FnOnce(&mut BytesMut, u64) + Send>;

/// A request to be sent.
pub(super) enum Outgoing {
    /// Append a batch.
    Produce(Produce),
    /// Read batches.
    Fetch(Fetch),
    /// Find an offset.
    FindOffset(FindOffset),
    /// Something rare, encoded by this function.
    Admin(Encode),
}

/// Why a request has no reply.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// Whether the request may have reached the server.
    pub sent: bool,
    /// Why; `None` for the timeout.
    pub reason: Option<Arc<str>>,
}

/// What became of requests that were sent and not answered when the stream ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The server ended the stream in good order, which says that it carried out nothing that it did not answer.
    NotCarriedOut,
    /// The stream broke off.
    Unknown,
}

/// One stream, shared by its callers.
pub(super) struct Lane {
    state: Mutex<State>,
    in_flight_bytes_max: usize,
    timeout_ticks: u64,
}

#[derive(Default)]
struct State {
    closed: Option<Arc<str>>,
    /// What the writer has not taken yet: whole chunks, and after them `tail`.
    chunks: Vec<Bytes>,
    tail: BytesMut,
    /// The writer, while it has nothing to do.
    writer: Option<Waker>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Requests put into the outbox, and those of them that the writer took, in order.
    submitted: u64,
    taken: u64,
    in_flight_bytes: usize,
    /// Callers that wait for room, in line.
    line: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    now_ticks: u64,
}

/// A request in flight. Its number in `slots` and its generation are its correlation ID, so a late reply finds nobody.
struct Slot {
    generation: u32,
    /// Its place among the submitted.
    order: u64,
    cost: usize,
    deadline_ticks: u64,
    stage: Stage,
}

enum Stage {
    Free,
    Waiting(Option<Waker>),
    Abandoned,
    Done(Result<Frame, Lost>),
}

/// A request on its way; resolves to the reply's frame. Dropped, the reply is thrown away when it comes.
pub(super) struct Call {
    lane: Arc<Lane>,
    stage: CallStage,
}

enum CallStage {
    /// Waits for room, with its place in the line.
    Queued(Outgoing, u64),
    InFlight(u64),
    Over,
}

impl Lane {
    /// Takes over a stream. The tasks end when the stream does.
    pub fn start(send: SendStream, receive: RecvStream, in_flight_bytes_max: usize, timeout: Duration) -> Arc<Self> {
        let timeout_ticks = timeout.as_millis().div_ceil(TICK.as_millis()) as u64 + 1;
        let lane = Arc::new(Lane { state: Mutex::default(), in_flight_bytes_max, timeout_ticks });
        tokio::spawn(write(Arc::clone(&lane), send));
        tokio::spawn(read(Arc::clone(&lane), receive));
        tokio::spawn(watch_timeouts(Arc::downgrade(&lane)));
        lane
    }

    /// Sends `request`, at once if there is room. Requests are sent in the order of these calls unless some had to wait
    /// for room.
    pub fn submit(self: &Arc<Self>, request: Outgoing) -> Call {
        let mut state = self.lock();
        let stage = if state.line.is_empty() && state.has_room(request.cost(), self.in_flight_bytes_max) {
            CallStage::InFlight(state.admit(request, self.timeout_ticks))
        } else {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.line.push_back((ticket, Waker::noop().clone()));
            CallStage::Queued(request, ticket)
        };
        drop(state);
        Call { lane: Arc::clone(self), stage }
    }

    /// Whether requests can still be sent.
    pub fn is_open(&self) -> bool {
        self.lock().closed.is_none()
    }

    /// Ends the lane: every caller, present or future, learns `reason`. What was sent may have reached the server.
    pub fn close(&self, reason: &str) {
        self.end(reason, Fate::Unknown);
    }

    fn end(&self, reason: &str, fate: Fate) {
        let mut state = self.lock();
        if state.closed.is_some() {
            return;
        }
        let reason: Arc<str> = reason.into();
        state.closed = Some(Arc::clone(&reason));
        let taken = state.taken;
        let mut wakers: Vec<Waker> = state.line.drain(..).map(|(_, waker)| waker).collect();
        wakers.extend(state.writer.take());
        for index in 0..state.slots.len() {
            let sent = fate == Fate::Unknown && state.slots[index].order <= taken;
            wakers.extend(state.complete(index, Err(Lost { sent, reason: Some(Arc::clone(&reason)) })));
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held but a broken invariant, after which the state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what gathered in the outbox to the writer; `None` when the lane is closed.
    fn poll_outbox(&self, context: &mut Context<'_>, chunks: &mut Vec<Bytes>) -> Poll<Option<()>> {
        let mut state = self.lock();
        if state.closed.is_some() {
            return Poll::Ready(None);
        }
        if state.chunks.is_empty() && state.tail.is_empty() {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        chunks.append(&mut state.chunks);
        if !state.tail.is_empty() {
            chunks.push(state.tail.split().freeze());
        }
        state.taken = state.submitted;
        Poll::Ready(Some(()))
    }

    fn complete_all(&self, frames: &mut Vec<Frame>, wakers: &mut Vec<Waker>) {
        let mut state = self.lock();
        for frame in frames.drain(..) {
            if let Some(index) = state.find(frame.header.correlation) {
                wakers.extend(state.complete(index, Ok(frame)));
            }
        }
        drop(state);
        wakers.drain(..).for_each(Waker::wake);
    }

    fn tick(&self) {
        let mut state = self.lock();
        state.now_ticks += 1;
        let now = state.now_ticks;
        let mut wakers = Vec::new();
        for index in 0..state.slots.len() {
            let slot = &state.slots[index];
            if slot.deadline_ticks <= now && matches!(slot.stage, Stage::Waiting(_) | Stage::Abandoned) {
                let sent = slot.order <= state.taken;
                wakers.extend(state.complete(index, Err(Lost { sent, reason: None })));
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn has_room(&self, cost: usize, in_flight_bytes_max: usize) -> bool {
        // A request larger than the bound is sent alone; a closed lane has room, so that the caller learns of it.
        self.in_flight_bytes == 0 || self.in_flight_bytes + cost <= in_flight_bytes_max || self.closed.is_some()
    }

    /// Gives the request a slot and puts it into the outbox. Returns the correlation ID.
    fn admit(&mut self, request: Outgoing, timeout_ticks: u64) -> u64 {
        let cost = request.cost();
        let deadline_ticks = self.now_ticks + timeout_ticks + request.wait_ticks();
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, order: 0, cost: 0, deadline_ticks: 0, stage: Stage::Free });
            (self.slots.len() - 1) as u32
        });
        self.in_flight_bytes += cost;
        let order = self.submitted + 1;
        let closed = self.closed.clone();
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        (slot.order, slot.cost, slot.deadline_ticks) = (order, cost, deadline_ticks);
        let correlation = u64::from(slot.generation) << 32 | u64::from(index);
        if let Some(reason) = closed {
            slot.stage = Stage::Done(Err(Lost { sent: false, reason: Some(reason) }));
            return correlation;
        }
        slot.stage = Stage::Waiting(None);
        self.submitted = order;
        if let Some(payload) = request.encode(&mut self.tail, correlation) {
            self.chunks.push(self.tail.split().freeze());
            self.chunks.push(payload);
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        correlation
    }

    fn find(&self, correlation: u64) -> Option<usize> {
        let index = (correlation & 0xffff_ffff) as usize;
        let slot = self.slots.get(index)?;
        (u64::from(slot.generation) == correlation >> 32).then_some(index)
    }

    /// Answers the request in this slot, if it still waits. Returns whom to wake.
    fn complete(&mut self, index: usize, answer: Result<Frame, Lost>) -> Option<Waker> {
        let slot = &mut self.slots[index];
        match &mut slot.stage {
            Stage::Waiting(waker) => {
                let waker = waker.take();
                slot.stage = Stage::Done(answer);
                waker
            }
            Stage::Abandoned => self.release(index),
            Stage::Free | Stage::Done(_) => None,
        }
    }

    /// Frees the slot. Returns the first in line, who may have room now.
    fn release(&mut self, index: usize) -> Option<Waker> {
        let slot = &mut self.slots[index];
        slot.stage = Stage::Free;
        self.in_flight_bytes -= slot.cost;
        self.free.push(index as u32);
        self.line.front().map(|(_, waker)| waker.clone())
    }

    fn leave_line(&mut self, ticket: u64) -> Option<Waker> {
        self.line.retain(|(other, _)| *other != ticket);
        self.line.front().map(|(_, waker)| waker.clone())
    }
}

impl Future for Call {
    type Output = Result<Frame, Lost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut state = this.lane.lock();
        let mut next_in_line = None;
        if let CallStage::Queued(request, ticket) = &this.stage {
            let first = state.line.front().is_none_or(|(first, _)| first == ticket);
            if !(first || state.closed.is_some()) || !state.has_room(request.cost(), this.lane.in_flight_bytes_max) {
                if let Some((_, waker)) = state.line.iter_mut().find(|(other, _)| other == ticket) {
                    waker.clone_from(context.waker());
                }
                return Poll::Pending;
            }
            next_in_line = state.leave_line(*ticket);
            if let CallStage::Queued(request, _) = std::mem::replace(&mut this.stage, CallStage::Over) {
                this.stage = CallStage::InFlight(state.admit(request, this.lane.timeout_ticks));
            }
        }
        let CallStage::InFlight(correlation) = this.stage else { panic!("polled after it was ready") };
        let index = (correlation & 0xffff_ffff) as usize;
        let answer = match &mut state.slots[index].stage {
            Stage::Done(_) => match std::mem::replace(&mut state.slots[index].stage, Stage::Free) {
                Stage::Done(answer) => {
                    this.stage = CallStage::Over;
                    next_in_line = state.release(index).or(next_in_line);
                    Poll::Ready(answer)
                }
                _ => Poll::Pending,
            },
            Stage::Waiting(Some(waker)) => {
                waker.clone_from(context.waker());
                Poll::Pending
            }
            stage => {
                *stage = Stage::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
        };
        drop(state);
        if let Some(waker) = next_in_line {
            waker.wake();
        }
        answer
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.lane.lock();
        let waker = match self.stage {
            CallStage::Over => return,
            CallStage::Queued(_, ticket) => state.leave_line(ticket),
            CallStage::InFlight(correlation) => {
                let index = (correlation & 0xffff_ffff) as usize;
                match state.slots[index].stage {
                    Stage::Done(_) => state.release(index),
                    _ => {
                        state.slots[index].stage = Stage::Abandoned;
                        None
                    }
                }
            }
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Outgoing {
    /// Bytes that the request pins on either side while it is in flight: its own, and those of the reply if that is
    /// long.
    fn cost(&self) -> usize {
        REQUEST_COST_BYTES
            + match self {
                Outgoing::Produce(produce) => produce.append.batch.len(),
                Outgoing::Fetch(fetch) => fetch.max_bytes.min(pyralog_engine::limits::FETCH_BYTES_MAX) as usize,
                Outgoing::FindOffset(_) | Outgoing::Admin(_) => 0,
            }
    }

    /// A long poll has all of its wait on top of the timeout.
    fn wait_ticks(&self) -> u64 {
        match self {
            Outgoing::Fetch(fetch) => (fetch.max_wait.as_millis() / TICK.as_millis()) as u64,
            _ => 0,
        }
    }

    /// Appends the frame; the payload, if it is to be sent uncopied, is returned.
    fn encode(self, out: &mut BytesMut, correlation: u64) -> Option<Bytes> {
        match self {
            Outgoing::Produce(produce) => {
                request::encode_produce_head(out, correlation, &produce);
                let batch = produce.append.batch;
                if batch.len() > COPIED_BYTES_MAX {
                    return Some(batch);
                }
                out.extend_from_slice(&batch);
            }
            Outgoing::Fetch(fetch) => request::encode_fetch(out, correlation, &fetch),
            Outgoing::FindOffset(find) => request::encode_find_offset(out, correlation, &find),
            Outgoing::Admin(encode) => encode(out, correlation),
        }
        None
    }
}

async fn write(lane: Arc<Lane>, mut stream: SendStream) {
    let mut chunks = Vec::new();
    while poll_fn(|context| lane.poll_outbox(context, &mut chunks)).await.is_some() {
        match stream.write_all_chunks(&mut chunks).await {
            Ok(()) => {}
            // The server reads no further and is about to end its side: how it does that says what became of the
            // requests.
            Err(WriteError::Stopped(_)) => return,
            Err(error) => return lane.close(&error.to_string()),
        }
        chunks.clear();
    }
}

async fn read(lane: Arc<Lane>, mut stream: RecvStream) {
    let mut decoder = FrameDecoder::new();
    let mut chunks = vec![Bytes::new(); READ_CHUNKS];
    let (mut frames, mut wakers) = (Vec::new(), Vec::new());
    loop {
        let read = match stream.read_chunks(&mut chunks).await {
            Ok(Some(read)) => read,
            Ok(None) => return lane.end("the server ended the stream in good order", Fate::NotCarriedOut),
            Err(error) => return lane.close(&error.to_string()),
        };
        for chunk in &mut chunks[..read] {
            decoder.push(std::mem::take(chunk));
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return lane.close(&error.to_string()),
            }
        }
        lane.complete_all(&mut frames, &mut wakers);
    }
}

async fn watch_timeouts(lane: Weak<Lane>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match lane.upgrade() {
            Some(lane) if lane.is_open() => lane.tick(),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use pyralog_engine::shard::request::{Append, OffsetAt};
    use pyralog_engine::types::{LogUid, PartitionId, PartitionIndex};

    use super::*;
    use crate::wire::frame::FrameHeader;

    const PARTITION: PartitionId = PartitionId { log: LogUid(1), index: PartitionIndex(0) };

    fn lane(in_flight_bytes_max: usize) -> Arc<Lane> {
        Arc::new(Lane { state: Mutex::default(), in_flight_bytes_max, timeout_ticks: 2 })
    }

    fn produce(bytes: usize) -> Outgoing {
        let batch = vec![0; bytes].into();
        Outgoing::Produce(Append { partition: PARTITION, batch, ack: None, expected_offset: None }.into())
    }

    fn find() -> Outgoing {
        Outgoing::FindOffset(FindOffset { partition: PARTITION, at: OffsetAt::Latest })
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// What the writer would send now: the correlation IDs.
    fn sent(lane: &Lane) -> Vec<u64> {
        let (mut chunks, mut decoder, mut ids) = (Vec::new(), FrameDecoder::new(), Vec::new());
        let _ = lane.poll_outbox(&mut Context::from_waker(Waker::noop()), &mut chunks);
        chunks.into_iter().for_each(|chunk| decoder.push(chunk));
        while let Some(frame) = decoder.next_frame().unwrap() {
            ids.push(frame.header.correlation);
        }
        ids
    }

    fn reply(lane: &Lane, correlation: u64) {
        let header = FrameHeader::new(crate::wire::Api::Produce, correlation, 0);
        lane.complete_all(&mut vec![Frame { header, body: Bytes::new() }], &mut Vec::new());
    }

    #[test]
    fn replies_in_any_order_find_their_callers() {
        let lane = lane(1 << 20);
        let mut calls: Vec<Call> = (0..3).map(|_| lane.submit(find())).collect();
        let ids = sent(&lane);
        assert_eq!(ids.len(), 3);
        for index in [2, 0, 1] {
            assert!(poll(Pin::new(&mut calls[index])).is_pending());
            reply(&lane, ids[index]);
            let Poll::Ready(Ok(frame)) = poll(Pin::new(&mut calls[index])) else { panic!("no reply for {index}") };
            assert_eq!(frame.header.correlation, ids[index]);
        }
        assert_eq!(lane.lock().in_flight_bytes, 0);
    }

    #[test]
    fn a_late_reply_reaches_nobody_who_has_the_slot_now() {
        let lane = lane(1 << 20);
        let mut first = lane.submit(find());
        let old = sent(&lane)[0];
        (0..3).for_each(|_| lane.tick());
        let Poll::Ready(Err(lost)) = poll(pin!(&mut first)) else { panic!("no timeout") };
        assert!(lost.sent && lost.reason.is_none());
        let mut second = lane.submit(find());
        reply(&lane, old);
        assert!(poll(pin!(&mut second)).is_pending(), "the reply to another request was taken");
    }

    #[test]
    fn what_is_in_flight_is_bounded_and_those_who_wait_are_served_in_order() {
        let lane = lane(2000);
        let mut first = lane.submit(produce(1500));
        let mut second = lane.submit(produce(1000));
        let mut third = lane.submit(produce(1));
        let ids = sent(&lane);
        assert_eq!(ids.len(), 1);
        assert!(poll(pin!(&mut third)).is_pending());
        assert!(poll(pin!(&mut second)).is_pending());
        reply(&lane, ids[0]);
        assert!(poll(pin!(&mut first)).is_ready());
        assert!(poll(pin!(&mut third)).is_pending());
        assert!(sent(&lane).is_empty(), "the third overtook the second");
        assert!(poll(pin!(&mut second)).is_pending());
        assert!(poll(pin!(&mut third)).is_pending());
        assert_eq!(sent(&lane).len(), 2);
    }

    #[test]
    fn one_who_leaves_the_line_blocks_nobody_and_an_abandoned_request_gives_its_room_back() {
        let lane = lane(1000);
        let first = lane.submit(produce(700));
        let second = lane.submit(produce(700));
        let mut third = lane.submit(produce(600));
        let ids = sent(&lane);
        drop((second, first));
        assert!(poll(pin!(&mut third)).is_pending());
        assert!(sent(&lane).is_empty(), "the first request is still in flight");
        reply(&lane, ids[0]);
        assert!(poll(pin!(&mut third)).is_pending());
        assert_eq!(sent(&lane).len(), 1);
    }

    #[test]
    fn a_stream_that_ends_in_good_order_leaves_nothing_unknown() {
        let lane = lane(1000);
        let mut call = lane.submit(produce(10));
        assert_eq!(sent(&lane).len(), 1);
        lane.end("drained", Fate::NotCarriedOut);
        let Poll::Ready(Err(lost)) = poll(pin!(&mut call)) else { panic!("still waiting") };
        assert!(!lost.sent);
    }

    #[test]
    fn when_the_stream_dies_each_caller_learns_whether_its_request_was_sent() {
        let lane = lane(1000);
        let mut sent_one = lane.submit(produce(10));
        sent(&lane);
        let mut unsent = lane.submit(produce(10));
        let mut queued = lane.submit(produce(900));
        assert!(poll(pin!(&mut queued)).is_pending());
        lane.close("gone");
        let mut late = lane.submit(find());
        for (call, was_sent) in [(&mut sent_one, true), (&mut unsent, false), (&mut queued, false), (&mut late, false)]
        {
            let Poll::Ready(Err(lost)) = poll(Pin::new(call)) else { panic!("still waiting") };
            assert_eq!((lost.sent, lost.reason.as_deref()), (was_sent, Some("gone")));
        }
        assert_eq!(lane.lock().in_flight_bytes, 0);
    }
}

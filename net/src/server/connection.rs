//! One connection: its streams, and on each stream a reader that turns bytes into requests and a writer that turns
//! outcomes into bytes.
//!
//! Back-pressure is QUIC's: a reader that waits, for memory or for room among the stream's open requests, does not
//! read, and the client's window closes. Natural batching in both directions: the reader takes all that came and
//! submits every request in it before it yields; the writer writes all answers that are there in one call.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use pyralog_engine::{
    runtime::Runtime,
    shard::{Shard, budget::Reservation},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::{
    ServerInfo,
    admission::Admission,
    close_code,
    handler::{self, Begun},
    pipeline::{Next, Pipeline, StreamEnd},
    subscription,
};
use crate::{
    quic_on_glommio::CoreRuntime,
    wire::{
        code::{ErrorCode, ProtocolError},
        frame::{Frame, FrameDecoder, HEADER_BYTES},
    },
};

/// What a request costs us beside its body: its slot, its place in the shard, its answer's frame.
const REQUEST_BYTES: usize = 256;

/// Chunks that one read takes: the datagrams of one receive.
const CHUNKS: usize = 64;

/// Streams of a connection that may end without a single whole request, over and above those that brought one. Opening
/// and resetting streams costs the client next to nothing and us a task each.
const BARREN_STREAMS_MAX: u32 = 1000;

/// How long the end of a stream waits for the client to have got everything.
const LINGER: Duration = Duration::from_secs(1);

/// What all connections of one core share.
pub(super) struct Core {
    pub shard: Shard<CoreRuntime>,
    pub admission: Rc<Admission>,
    pub info: Arc<ServerInfo>,
    under_way: Cell<usize>,
    finishing: Cell<bool>,
    next_id: Cell<u64>,
    streams: RefCell<BTreeMap<u64, Weak<Pipeline>>>,
    connections: RefCell<BTreeMap<u64, Connection>>,
    window_bytes: Cell<u64>,
}

impl Core {
    pub fn new(shard: Shard<CoreRuntime>, admission: Rc<Admission>, info: Arc<ServerInfo>) -> Rc<Self> {
        Rc::new(Core {
            shard,
            admission,
            info,
            under_way: Cell::new(0),
            finishing: Cell::new(false),
            next_id: Cell::new(0),
            streams: RefCell::default(),
            connections: RefCell::default(),
            window_bytes: Cell::new(0),
        })
    }

    /// Requests accepted and not yet answered, but for fetches that wait for records.
    pub fn under_way(&self) -> usize {
        self.under_way.get()
    }

    pub fn count_under_way(&self, change: isize) {
        let count = self.under_way.get().checked_add_signed(change);
        self.under_way.set(count.expect("requests end once")); // why: each was counted when it was accepted
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.streams.borrow().len()
    }

    /// Whether streams must come to their end.
    pub fn is_finishing(&self) -> bool {
        self.finishing.get()
    }

    /// Brings all streams to their end.
    pub fn finish_streams(&self) {
        self.finishing.set(true);
        let streams: Vec<_> = self.streams.borrow().values().filter_map(Weak::upgrade).collect();
        streams.iter().for_each(|stream| stream.wake_writer());
    }

    pub fn next_stream_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    pub fn register(&self, id: u64, stream: &Rc<Pipeline>) {
        self.streams.borrow_mut().insert(id, Rc::downgrade(stream));
    }

    pub fn unregister(&self, id: u64) {
        self.streams.borrow_mut().remove(&id);
    }

    /// Gives every connection its share of the memory, if that has changed.
    fn share_windows(&self, newcomer: Option<&Connection>) {
        let connections = self.connections.borrow();
        let bytes = self.admission.limits().window_bytes(connections.len());
        if self.window_bytes.replace(bytes) == bytes {
            newcomer.into_iter().for_each(|connection| set_windows(connection, bytes));
        } else {
            connections.values().for_each(|connection| set_windows(connection, bytes));
        }
    }
}

fn set_windows(connection: &Connection, bytes: u64) {
    connection.set_receive_window(VarInt::from_u64(bytes).unwrap_or(VarInt::MAX));
    connection.set_send_window(bytes);
}

/// What one connection is held to.
#[derive(Default)]
struct Conduct {
    barren_streams: Cell<u32>,
}

/// Serves an admitted connection until it ends.
pub(super) async fn serve(core: Rc<Core>, connection: Connection) {
    let metrics = Arc::clone(core.shard.metrics());
    metrics.connections.add(1);
    metrics.connections_accepted.add(1);
    let id = core.next_stream_id();
    core.connections.borrow_mut().insert(id, connection.clone());
    core.share_windows(Some(&connection));
    connection.set_max_concurrent_bi_streams(core.admission.limits().streams_per_connection_max.into());
    let conduct = Rc::<Conduct>::default();
    // Ends with the connection's error, whose reason the client knows best.
    while let Ok((send, receive)) = connection.accept_bi().await {
        if conduct.barren_streams.get() > BARREN_STREAMS_MAX {
            metrics.protocol_errors.add(1);
            let reason = b"too many streams were opened and ended without a request";
            connection.close(close_code(ErrorCode::MISPLACED), reason);
            break;
        }
        core.shard.runtime().spawn(serve_stream(Rc::clone(&core), Rc::clone(&conduct), send, receive));
    }
    core.connections.borrow_mut().remove(&id);
    core.share_windows(None);
    metrics.connections.sub(1);
}

async fn serve_stream(core: Rc<Core>, conduct: Rc<Conduct>, send: SendStream, receive: RecvStream) {
    let pipeline = Pipeline::new(Rc::clone(&core));
    let mut reader = Reader::new(receive);
    let first = match reader.next(&pipeline).await {
        Ok(Some(first)) => Ok(first),
        Ok(None) => Err(StreamEnd::Finish),
        Err(broken) => Err(reader.give_up(&pipeline, broken)),
    };
    let (frame, memory) = match first {
        Ok(first) => first,
        Err(end) => {
            conduct.barren_streams.set(conduct.barren_streams.get() + 1);
            pipeline.end(end);
            return write_answers(pipeline, send).await;
        }
    };
    conduct.barren_streams.set(conduct.barren_streams.get().saturating_sub(1));
    match handler::begin(&pipeline, frame, memory, handler::Position::First).await {
        Begun::Request => {}
        Begun::Subscription(wanted) => return subscription::serve(pipeline, wanted, send, reader.into_stream()).await,
    }
    core.shard.runtime().spawn(write_answers(Rc::clone(&pipeline), send));
    let end = reader.serve(&pipeline).await;
    pipeline.end(end);
}

/// Why a stream cannot be read further.
enum Broken {
    /// Framing is lost.
    Protocol(ProtocolError),
    /// A frame was begun and not finished in time.
    Timeout,
    /// The client reset the stream, or the connection ended, or answers cannot be delivered.
    Gone,
}

/// Reads one stream.
struct Reader {
    receive: RecvStream,
    decoder: FrameDecoder,
    chunks: Box<[Bytes; CHUNKS]>,
    /// Memory for the next frame, whose header is known.
    memory: Option<Reservation>,
    /// When the wait for the rest of a frame began.
    frame_begun: Option<Duration>,
}

impl Reader {
    fn new(receive: RecvStream) -> Self {
        let chunks = Box::new([const { Bytes::new() }; CHUNKS]);
        Reader { receive, decoder: FrameDecoder::new(), chunks, memory: None, frame_begun: None }
    }

    fn into_stream(self) -> RecvStream {
        self.receive
    }

    async fn serve(&mut self, pipeline: &Rc<Pipeline>) -> StreamEnd {
        loop {
            match self.next(pipeline).await {
                Ok(Some((frame, memory))) => {
                    let _ = handler::begin(pipeline, frame, memory, handler::Position::Later).await;
                }
                Ok(None) => return StreamEnd::Finish,
                Err(broken) => return self.give_up(pipeline, broken),
            }
        }
    }

    /// The next request, when its turn has come and there is memory for it; `None` at the end of the stream.
    async fn next(&mut self, pipeline: &Pipeline) -> Result<Option<(Frame, Reservation)>, Broken> {
        loop {
            if let Some(header) = self.decoder.peek_header().map_err(Broken::Protocol)? {
                // Memory first: the decoder may allocate the body as soon as it is asked for it.
                let memory = match self.memory.take() {
                    Some(memory) => memory,
                    None => self.admit_frame(pipeline, header.body_bytes as usize).await?,
                };
                match self.decoder.next_frame().map_err(Broken::Protocol)? {
                    Some(frame) => {
                        self.frame_begun = None;
                        return Ok(Some((frame, memory)));
                    }
                    None => self.memory = Some(memory),
                }
            }
            match self.read(pipeline).await? {
                Some(count) => {
                    pipeline.note_read();
                    self.chunks[..count].iter_mut().for_each(|chunk| self.decoder.push(std::mem::take(chunk)))
                }
                None if self.decoder.is_at_frame_boundary() => return Ok(None),
                None => return Err(Broken::Gone),
            }
        }
    }

    async fn admit_frame(&mut self, pipeline: &Pipeline, body_bytes: usize) -> Result<Reservation, Broken> {
        if !pipeline.room().await {
            return Err(Broken::Gone);
        }
        let budget = pipeline.core().shard.budget();
        let bytes = HEADER_BYTES + body_bytes + REQUEST_BYTES;
        if let Some(memory) = budget.try_reserve(bytes) {
            return Ok(memory);
        }
        let memory = budget.reserve(bytes).await;
        // That was our time, not the client's.
        self.frame_begun = None;
        Ok(memory)
    }

    /// Reads what came, or waits for something; `None` at the end of the stream.
    async fn read(&mut self, pipeline: &Pipeline) -> Result<Option<usize>, Broken> {
        let runtime = pipeline.core().shard.runtime();
        let mut timeout = None;
        if !self.decoder.is_at_frame_boundary() {
            let now = runtime.monotonic();
            let begun = *self.frame_begun.get_or_insert(now);
            let left = pipeline.core().admission.limits().frame_timeout.saturating_sub(now - begun);
            timeout = Some(left);
        }
        let mut read = pin!(self.receive.read_chunks(&mut self.chunks[..]));
        // Most reads find something; a timer is made only for those that do not.
        let mut timer: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
        poll_fn(|context| {
            if let Poll::Ready(chunks) = read.as_mut().poll(context) {
                return Poll::Ready(chunks.map_err(|_| Broken::Gone));
            }
            if pipeline.is_broken() {
                return Poll::Ready(Err(Broken::Gone));
            }
            pipeline.wake_reader_by(context);
            if let Some(left) = timeout {
                let timer = timer.get_or_insert_with(|| Box::pin(runtime.sleep(left)));
                if timer.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Err(Broken::Timeout));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn give_up(&mut self, pipeline: &Pipeline, broken: Broken) -> StreamEnd {
        self.memory = None;
        let (code, end) = match broken {
            Broken::Protocol(error) => {
                handler::answer_error(pipeline, handler::NO_REQUEST, error.into());
                (ErrorCode::FRAME_TOO_LARGE, StreamEnd::Finish)
            }
            Broken::Timeout => {
                pipeline.core().shard.metrics().protocol_errors.add(1);
                (ErrorCode::FRAME_TIMEOUT, StreamEnd::Reset(ErrorCode::FRAME_TIMEOUT))
            }
            Broken::Gone => return StreamEnd::Finish,
        };
        // Fails only if the stream is closed already.
        let _ = self.receive.stop(close_code(code));
        end
    }
}

/// Writes answers until all are given.
async fn write_answers(pipeline: Rc<Pipeline>, mut send: SendStream) {
    loop {
        match pipeline.next().await {
            Next::Burst(mut burst) => {
                // Once broken, answers are still taken, so that their memory is given back when the shard is done with
                // them.
                if !pipeline.is_broken() && send.write_all_chunks(&mut burst.chunks).await.is_err() {
                    pipeline.set_broken();
                }
                pipeline.delivered(burst);
            }
            Next::End(StreamEnd::Finish) => return finish(&pipeline, send).await,
            Next::End(StreamEnd::Reset(code)) => {
                let _ = send.reset(close_code(code));
                return;
            }
        }
    }
}

/// Ends the stream, and waits a little until the client has everything: a server that stops closes the connection next.
pub(super) async fn finish(pipeline: &Pipeline, mut send: SendStream) {
    if send.finish().is_ok() && pipeline.core().is_finishing() {
        let timer = pin!(pipeline.core().shard.runtime().sleep(LINGER));
        futures_util::future::select(pin!(send.stopped()), timer).await;
    }
}

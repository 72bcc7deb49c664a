//! Reading: what a fetch gives, and a subscription that the server feeds.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use pyralog_engine::{
    error::RequestError,
    limits::FETCH_WAIT_MS_MAX,
    record::{BatchHeader, Batches, Record as StoredRecord, Records, split_batches},
    shard::request::{Fetch, OffsetAt},
    types::{Offset, PartitionId, PartitionIndex},
};
use quinn::{RecvStream, SendStream, VarInt};

use super::{
    connection::{Connection, unless_error},
    error::{Error, Result},
    ids::LogId,
    router::{Retry, Router},
};
use crate::wire::{
    Api,
    code::ProtocolError,
    frame::{Frame, FrameDecoder},
    reply::{self, FetchReply},
    request,
};

/// How much a fetch may bring, and how long it may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// The answer ends before the batch that would exceed this, but has at least one. The server has a bound of its own
    /// (4 MiB).
    pub max_bytes: u32,
    /// How long to wait for a record when there is none; at most 30 s. The longest silence on a subscription.
    pub max_wait: Duration,
}

impl Default for FetchOptions {
    fn default() -> Self {
        FetchOptions { max_bytes: 1 << 20, max_wait: Duration::from_millis(500) }
    }
}

impl FetchOptions {
    pub(super) fn at(self, partition: PartitionId, offset: Offset) -> Fetch {
        let max_wait = self.max_wait.min(Duration::from_millis(u64::from(FETCH_WAIT_MS_MAX)));
        Fetch { partition, offset, max_bytes: self.max_bytes, max_wait }
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the first record.
    Earliest,
    /// After the last record.
    Latest,
    /// At the first record of the first batch that has one at least as new, in milliseconds since 1970.
    Timestamp(i64),
    /// At this record.
    Offset(Offset),
}

impl From<Offset> for StartAt {
    fn from(offset: Offset) -> Self {
        StartAt::Offset(offset)
    }
}

/// What a fetch brought: stored batches, decoded and checked as one iterates.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The partition's first offset.
    pub start_offset: Offset,
    /// The offset after the last visible record.
    pub high_watermark: Offset,
    /// The offset after the last record, visible or not.
    pub log_end_offset: Offset,
    /// The offset to fetch from next.
    pub next_offset: Offset,
    from: Offset,
    batches: Bytes,
}

impl Fetched {
    /// Checks that the batches hold `from` and follow each other without a gap; looks at their headers only.
    pub(super) fn new(reply: FetchReply, from: Offset) -> Result<Self> {
        let (mut next_offset, mut rest) = (from, reply.batches.as_ref());
        while !rest.is_empty() {
            let header = BatchHeader::decode(rest)?;
            let fits = if next_offset == from { header.base_offset <= from } else { header.base_offset == next_offset };
            if !fits || header.end_offset() <= next_offset || header.batch_len() > rest.len() {
                let (base, end) = (header.base_offset, header.end_offset());
                let reason = format!("a batch of offsets {base} to {end} came where offset {next_offset} was due");
                return Err(ProtocolError::BadBody { api: Api::Fetch.name(), reason }.into());
            }
            next_offset = header.end_offset();
            rest = &rest[header.batch_len()..];
        }
        let FetchReply { start_offset, high_watermark, log_end_offset, batches } = reply;
        Ok(Fetched { start_offset, high_watermark, log_end_offset, next_offset, from, batches })
    }

    /// Whether it brought nothing.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The batches as they are stored, end to end. The first may begin before the offset asked for.
    pub fn batches(&self) -> &Bytes {
        &self.batches
    }

    /// All records.
    ///
    /// Errors: `Batch`, if one is damaged.
    pub fn records(self) -> Result<Vec<StoredRecord>> {
        self.into_iter().collect()
    }
}

impl IntoIterator for Fetched {
    type Item = Result<StoredRecord>;
    type IntoIter = FetchedRecords;

    fn into_iter(self) -> FetchedRecords {
        FetchedRecords { from: self.from, batches: split_batches(self.batches), records: None }
    }
}

/// The records of a [`Fetched`], from the offset asked for on.
#[derive(Debug)]
pub struct FetchedRecords {
    from: Offset,
    batches: Batches,
    records: Option<Records>,
}

impl Iterator for FetchedRecords {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(record) = self.records.as_mut().and_then(Iterator::next) {
                match record {
                    Ok(record) if record.offset < self.from => {}
                    record => return Some(record.map_err(Error::from)),
                }
            }
            match self.batches.next()?.and_then(|batch| batch.records()) {
                Ok(records) => self.records = Some(records),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

/// The records of a partition, sent by the server as they become visible; a `Stream` that ends only with an error.
///
/// It has a QUIC stream of its own: one who reads it slowly slows nobody else down, and the server stops sending when 8
/// MiB are unread. After a lost connection it goes on where it was. It never skips: an offset that is gone is an error.
pub struct Subscription {
    step: Option<Step>,
    records: Option<FetchedRecords>,
}

type Step = Pin<Box<dyn Future<Output = (Box<Feed>, Result<Fetched>)> + Send>>;

/// The subscription's position and, while it is connected, its stream.
struct Feed {
    router: Arc<Router>,
    log: LogId,
    index: PartitionIndex,
    /// The log's number, once known: a log made anew under the same name is another one.
    partition: Option<PartitionId>,
    next: Offset,
    options: FetchOptions,
    stream: Option<FeedStream>,
    retry: Retry,
}

struct FeedStream {
    /// Keeps the connection open.
    connection: Arc<Connection>,
    _send: SendStream,
    receive: RecvStream,
    decoder: FrameDecoder,
}

impl Subscription {
    pub(super) async fn open(
        router: Arc<Router>,
        log: LogId,
        index: PartitionIndex,
        next: Offset,
        options: FetchOptions,
    ) -> Result<Self> {
        let retry = Retry::new(router.settings().retry_for);
        let mut feed = Box::new(Feed { router, log, index, partition: None, next, options, stream: None, retry });
        feed.connect().await?;
        Ok(Subscription { step: Some(Box::pin(feed.step())), records: None })
    }

    /// The next record; waits for it. `None` after an error.
    pub async fn next(&mut self) -> Option<Result<StoredRecord>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for Subscription {
    type Item = Result<StoredRecord>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.records.as_mut().and_then(Iterator::next) {
                Some(Ok(record)) => return Poll::Ready(Some(Ok(record))),
                Some(Err(error)) => {
                    (self.step, self.records) = (None, None);
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.records = None,
            }
            let Some(step) = &mut self.step else { return Poll::Ready(None) };
            let (feed, fetched) = match step.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(done) => done,
            };
            match fetched {
                Ok(fetched) => {
                    self.records = Some(fetched.into_iter());
                    self.step = Some(Box::pin(feed.step()));
                }
                Err(error) => {
                    self.step = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl Feed {
    /// The next frame that has records.
    async fn step(mut self: Box<Self>) -> (Box<Self>, Result<Fetched>) {
        loop {
            let outcome = self.read().await;
            match outcome {
                Ok(fetched) => {
                    self.retry.reset();
                    self.next = fetched.next_offset;
                    if !fetched.is_empty() {
                        return (self, Ok(fetched));
                    }
                }
                Err(error) => {
                    self.stream = None;
                    if let Err(error) = self.retry.pause(error).await {
                        return (self, Err(error));
                    }
                }
            }
        }
    }

    async fn read(&mut self) -> Result<Fetched> {
        if self.stream.is_none() {
            self.connect().await?;
        }
        let Some(stream) = &mut self.stream else { return Err(Error::Closed { what: "subscription" }) };
        let frame = unless_error(stream.next_frame().await?)?;
        Fetched::new(reply::decode_fetched(frame.body)?, self.next)
    }

    async fn connect(&mut self) -> Result<()> {
        if self.partition.is_some() {
            // The server may have been restarted with other data: what the name means is asked anew.
            self.router.forget(&self.log);
        }
        let (connection, partition) = self.router.route(&self.log, self.index).await?;
        if let Some(known) = self.partition.filter(|known| *known != partition) {
            return Err(RequestError::UnknownPartition { partition: known }.into());
        }
        self.partition = Some(partition);
        let (mut send, receive) = connection.open_stream().await?;
        let mut out = BytesMut::new();
        request::encode_subscribe(&mut out, 0, &self.options.at(partition, self.next));
        let address = connection.address();
        let unavailable = |error: quinn::WriteError| Error::Unavailable { address, reason: error.to_string() };
        send.write_all(&out).await.map_err(unavailable)?;
        let decoder = FrameDecoder::new();
        self.stream = Some(FeedStream { connection, _send: send, receive, decoder });
        Ok(())
    }
}

impl FeedStream {
    async fn next_frame(&mut self) -> Result<Frame> {
        let address = self.connection.address();
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            let mut chunks: [Bytes; 32] = Default::default();
            let read = match self.receive.read_chunks(&mut chunks).await {
                Ok(Some(read)) => read,
                Ok(None) => {
                    let reason = "the server ended the subscription".to_owned();
                    return Err(Error::Unavailable { address, reason });
                }
                Err(error) => return Err(Error::Unavailable { address, reason: error.to_string() }),
            };
            chunks.into_iter().take(read).for_each(|chunk| self.decoder.push(chunk));
        }
    }
}

impl Drop for FeedStream {
    fn drop(&mut self) {
        let _ = self.receive.stop(VarInt::from_u32(0));
    }
}

/// The way to name an offset that the server understands, unless it is one.
pub(super) fn offset_at(start: StartAt) -> Result<OffsetAt, Offset> {
    match start {
        StartAt::Earliest => Ok(OffsetAt::Earliest),
        StartAt::Latest => Ok(OffsetAt::Latest),
        StartAt::Timestamp(timestamp_ms) => Ok(OffsetAt::Timestamp(timestamp_ms)),
        StartAt::Offset(offset) => Err(offset),
    }
}

//! A subscription: fetches that the server asks itself, one after the other, on a stream of its own.
//!
//! A frame is written before the next is read from the log, so the stream's window is the back-pressure, and a consumer
//! that does not read holds one frame and nothing else.

use std::{pin::pin, rc::Rc, task::Poll, time::Duration};

use futures_util::future::{Either, select};
use pyralog_engine::{
    error::RequestError,
    limits::BATCH_HEADER_BYTES,
    record::check_stored_header,
    shard::{
        completion::CompletionQueue,
        request::{Fetch, Fetched, Outcome, Reply, Request},
    },
    types::Offset,
};
use quinn::{RecvStream, SendStream};

use super::{
    connection::finish,
    handler::{Wanted, capped},
    pipeline::{Burst, Pipeline},
};
use crate::wire::{Api, code::WireError, reply::encode_fetched_head};

/// The shortest silence that a subscriber may ask for: each ends with a frame, and frames without records cost both
/// sides.
const SILENCE_MIN: Duration = Duration::from_millis(100);

/// Bytes of one frame: enough for full speed, and what a consumer that stops reading holds of the core's memory.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// Serves a subscription until the client stops the stream, an error ends it, or the server stops.
pub(super) async fn serve(pipeline: Rc<Pipeline>, wanted: Wanted, mut send: SendStream, receive: RecvStream) {
    let mut fetch = capped(wanted.fetch);
    fetch.max_bytes = fetch.max_bytes.min(FRAME_BYTES_MAX);
    fetch.max_wait = fetch.max_wait.max(SILENCE_MIN);
    // Whatever else the client sends on this stream is not read: its window is the limit.
    let _receive = receive;
    let stopped = send.stopped();
    let deliver = deliver(&pipeline, wanted.correlation, fetch, &mut send);
    let ended = match select(pin!(deliver), pin!(stopped)).await {
        Either::Left((ended, _)) => ended,
        Either::Right(_) => return,
    };
    let Err(error) = ended else { return };
    let mut burst = Burst::default();
    burst.put(|out| WireError::from(error).encode(out, Api::Subscribe.number(), wanted.correlation));
    if send.write_all_chunks(&mut burst.into_chunks()).await.is_ok() {
        finish(&pipeline, send).await;
    }
}

/// Sends frame after frame. Ends well when the stream is gone.
async fn deliver(
    pipeline: &Pipeline,
    correlation: u64,
    mut fetch: Fetch,
    send: &mut SendStream,
) -> Result<(), RequestError> {
    let shard = &pipeline.core().shard;
    let answers = CompletionQueue::new();
    loop {
        let mut memory = shard.budget().reserve(fetch.max_bytes as usize).await;
        let mut fetched = ask(pipeline, &answers, Fetch { max_wait: Duration::ZERO, ..fetch }).await?;
        if fetched.batches.is_empty() {
            // Waiting takes no memory: there may be many who wait.
            memory.resize(0);
            fetched = ask(pipeline, &answers, fetch).await?;
        }
        let mut burst = Burst::default();
        burst.put(|out| encode_fetched_head(out, Api::Subscribe, correlation, &fetched));
        fetch.offset = end_of(&fetched, fetch.offset)?;
        fetched.batches.into_iter().for_each(|bytes| burst.put_shared(bytes));
        let mut chunks = burst.into_chunks();
        memory.resize(chunks.iter().map(bytes::Bytes::len).sum());
        if send.write_all_chunks(&mut chunks).await.is_err() {
            return Ok(());
        }
    }
}

async fn ask(pipeline: &Pipeline, answers: &Rc<CompletionQueue>, fetch: Fetch) -> Result<Fetched, RequestError> {
    pipeline.core().shard.submit(Request::Fetch(fetch), answers.reply_to(0));
    let mut ready = pin!(answers.ready());
    let outcome: Outcome = std::future::poll_fn(|context| {
        if pipeline.must_finish() {
            return Poll::Ready(Err(RequestError::ShuttingDown));
        }
        if ready.as_mut().poll(context).is_ready()
            && let Some((_, outcome)) = answers.pop()
        {
            return Poll::Ready(outcome);
        }
        pipeline.wake_writer_by(context);
        Poll::Pending
    })
    .await;
    match outcome? {
        Reply::Fetched(fetched) => Ok(fetched),
        other => unreachable!("the shard answered a fetch with {other:?}"),
    }
}

/// The offset after the last batch: where the next frame begins.
fn end_of(fetched: &Fetched, from: Offset) -> Result<Offset, RequestError> {
    let mut end = from;
    let mut pieces = fetched.batches.iter();
    let mut piece: &[u8] = &[];
    // Bytes of the present batch that lie in pieces to come.
    let mut skip = 0;
    let mut header = Vec::with_capacity(BATCH_HEADER_BYTES);
    loop {
        if skip >= piece.len() {
            skip -= piece.len();
            let Some(next) = pieces.next() else { break };
            piece = next;
            continue;
        }
        piece = &piece[skip..];
        skip = 0;
        // A header may span pieces.
        let taken = piece.len().min(BATCH_HEADER_BYTES - header.len());
        header.extend_from_slice(&piece[..taken]);
        piece = &piece[taken..];
        if header.len() == BATCH_HEADER_BYTES {
            let batch = check_stored_header(&header).map_err(|error| RequestError::ReadFailed {
                file: "(batches read for a subscription)".into(),
                position: 0,
                from: end,
                to: end,
                reason: error.to_string(),
            })?;
            end = batch.end_offset();
            skip = batch.batch_len() - BATCH_HEADER_BYTES;
            header.clear();
        }
    }
    Ok(end)
}

//! One partition, resolved: requests without a look-up, a copy or a task each. What load generators and connectors use.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use pyralog_engine::{
    shard::request::{Append, Appended},
    types::{Offset, PartitionId},
};

use super::{
    AppendOptions,
    connection::Connection,
    consumer::FetchOptions,
    error::{Error, Result},
    lane::{Call, Outgoing},
};
use crate::wire::{
    reply::{self, FetchReply},
    request::Produce,
};

/// A partition and the connection that its requests take. It repeats nothing and finds no new way: after a lost
/// connection get another one from the client.
#[derive(Clone)]
pub struct PartitionHandle {
    pub(super) connection: Arc<Connection>,
    pub(super) partition: PartitionId,
}

/// A write on its way.
pub struct PendingAppend {
    connection: Arc<Connection>,
    /// The batch was refused before it was sent.
    refused: Option<Error>,
    call: Option<Call>,
}

/// A fetch on its way.
pub struct PendingFetch {
    connection: Arc<Connection>,
    call: Call,
}

impl PartitionHandle {
    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Whether requests can still be sent.
    pub fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    /// Sends the bytes of one batch, now if there is room. Batches are stored in the order of these calls while there
    /// is. The level of the client does not count here.
    pub fn append(&self, batch: Bytes, options: impl Into<AppendOptions>) -> PendingAppend {
        let connection = Arc::clone(&self.connection);
        if batch.len() > pyralog_engine::limits::BATCH_BYTES_MAX {
            let bytes = batch.len() as u64;
            let refused = Some(pyralog_engine::record::BatchError::BatchTooLarge { bytes }.into());
            return PendingAppend { connection, refused, call: None };
        }
        let AppendOptions { ack, expected_offset, timed: is_timed } = options.into();
        let append = Append { partition: self.partition, batch, ack, expected_offset };
        let call = self.connection.write(Outgoing::Produce(Produce { append, is_timed }));
        PendingAppend { connection, refused: None, call: Some(call) }
    }

    /// Asks for stored batches from `offset` on, now if there is room. What comes is not looked at.
    pub fn fetch(&self, offset: Offset, options: FetchOptions) -> PendingFetch {
        let call = self.connection.read(Outgoing::Fetch(options.at(self.partition, offset)));
        PendingFetch { connection: Arc::clone(&self.connection), call }
    }
}

impl Future for PendingAppend {
    type Output = Result<Appended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(call) = &mut this.call else {
            return Poll::Ready(Err(this.refused.take().unwrap_or(Error::Closed { what: "request" })));
        };
        let answer = ready!(Pin::new(call).poll(context));
        let frame = this.connection.written(answer)?;
        Poll::Ready(Ok(reply::decode_appended(&frame.body)?))
    }
}

impl Future for PendingFetch {
    type Output = Result<FetchReply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.call).poll(context));
        let frame = self.connection.have_read(answer)?;
        Poll::Ready(Ok(reply::decode_fetched(frame.body)?))
    }
}

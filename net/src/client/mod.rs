//! The client: [`PyralogClient`] and what it gives and takes.
//!
//! A produced record's way: `partitioner` picks the partition, `batches` builds the batch, `router` finds the
//! connection of the owning core, `lane` sends it among others and finds the reply. A fetched record's way back ends in
//! `consumer`.
//!
//! It runs on tokio. A client is cheap to clone and used from anywhere; it holds one QUIC connection for each core of
//! the server that it has needed.

use std::{
    borrow::Borrow,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use bytes::{Bytes, BytesMut};
use pyralog_engine::{
    error::RequestError,
    limits::BATCH_BYTES_MAX,
    name::LogName,
    record::{BatchError, BatchHeader},
    shard::request::{AlterLog, Append, Appended, CreateLog, FindOffset, Move, Recover, Trim},
};
use tokio::net::ToSocketAddrs;

mod ack;
mod batches;
mod builder;
mod connection;
mod consumer;
mod error;
mod idempotence;
mod ids;
mod lane;
mod partition;
mod partitioner;
mod producer;
mod record;
mod router;
mod tls;

pub use ack::{BatchAck, PartitionAck, RecordAck};
pub use builder::{ClientBuilder, FINGERPRINT_VARIABLE};
pub use consumer::{FetchOptions, Fetched, FetchedRecords, StartAt, Subscription};
pub use error::{Error, Result};
pub use idempotence::ProducerIdentity;
pub use ids::LogId;
pub use partition::{PartitionHandle, PendingAppend, PendingFetch};
pub use partitioner::partition_of_key;
pub use producer::{Delivery, Producer, ProducerOptions};
pub use pyralog_engine::{
    record::{Codec, Record as StoredRecord},
    replication::assignment::ReplicaId,
    settings::{Bound, LogChanges, LogSettings, Replication, ReplicationChanges},
    shard::{
        control::{
            CopyStanding, CoreDoing, CoreStatus, Moved, PartitionStatus, Places, RecoveryReport, ReplicaRole,
            ReplicaStatus,
        },
        request::{Found, OffsetAt},
    },
    types::{AckLevel, CoreId, Offset, PartitionIndex as PartitionId},
};
pub use record::{IntoKey, IntoRecord, Record};
pub use router::Facts;

pub use crate::wire::{
    code::{ErrorCode, WireError},
    reply::{FetchReply, Limits, LogMetadata, ServerDescription},
};

use batches::Batches;
use idempotence::Idempotence;
use lane::Outgoing;
use router::Router;

use crate::wire::{
    Api, reply,
    request::{self, MetadataRequest, Produce},
};

/// A client of one server. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct PyralogClient {
    router: Arc<Router>,
    /// The next partition for records without a key.
    next_partition: Arc<AtomicU32>,
    /// Under whose name it writes, if its writes are idempotent.
    idempotence: Option<Arc<Idempotence>>,
}

/// How a batch is appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppendOptions {
    /// The level at which it is acknowledged; `None` for the client's, else the log's, else the server's.
    pub ack: Option<AckLevel>,
    /// The offset that its first record must get. If the log has gone on the batch is refused, and the error says how
    /// far ([`Error::log_end`]).
    pub expected_offset: Option<Offset>,
    /// Whether the answer is to say where the time went ([`Appended::clock`]).
    pub timed: bool,
}

impl From<Option<AckLevel>> for AppendOptions {
    /// At this level, and nothing else.
    fn from(ack: Option<AckLevel>) -> Self {
        AppendOptions { ack, ..AppendOptions::default() }
    }
}

impl PyralogClient {
    /// Connects to the server at `address`, such as `"127.0.0.1:9092"`, with the defaults of [`ClientBuilder`].
    ///
    /// Errors: `Setting`, `Unavailable`, `NotTrusted`.
    pub async fn connect(address: impl ToSocketAddrs) -> Result<Self> {
        Self::builder().connect(address).await
    }

    /// Sets up a client that is to differ from the defaults.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    fn over(router: Router) -> Self {
        let settings = router.settings();
        let idempotence = settings.idempotent.then(|| Idempotence::new(settings.identity, settings.delivery_timeout));
        PyralogClient { router: Arc::new(router), next_partition: Arc::default(), idempotence }
    }

    /// This client, over the same connections, with idempotent writes under this identity, or under one of its own.
    ///
    /// An idempotent write whose fate is unknown is sent again until it is known, for as long as
    /// [`ClientBuilder::delivery_timeout`] says, and is stored at most once. Writes to one partition take turns: gather
    /// records into batches, or use a [`Producer`], which is idempotent by itself.
    pub fn idempotent(&self, identity: Option<ProducerIdentity>) -> PyralogClient {
        let idempotence = Idempotence::new(identity, self.router.settings().delivery_timeout);
        PyralogClient { idempotence: Some(idempotence), ..self.clone() }
    }

    /// What the server said of itself when the client connected.
    pub fn server(&self) -> Facts {
        self.router.facts()
    }

    /// Closes all connections; requests in flight are lost. Clones of this client find them closed too, and open new
    /// ones.
    pub async fn close(&self) {
        self.router.close().await;
    }

    /// Creates a log. What `settings` leaves open is the server's to decide; an ack level alone, or `None`, does too.
    ///
    /// Errors: `LogExists`, `SettingsRefused` among others.
    pub async fn create_log(
        &self,
        log: impl Borrow<LogId>,
        partitions: u32,
        settings: impl Into<LogSettings>,
    ) -> Result<LogMetadata> {
        let create = CreateLog { name: log.borrow().name().clone(), partitions, settings: settings.into() };
        let body =
            self.write_admin(move |out, correlation| request::encode_create_log(out, correlation, &create)).await?;
        self.router.forget(log.borrow());
        Ok(reply::decode_json(Api::CreateLog, &body)?)
    }

    /// Changes the settings of a log while it is in use. Returns the log as it is then.
    ///
    /// Errors: `UnknownLog`, `SettingsRefused` among others.
    pub async fn alter_log(&self, log: impl Borrow<LogId>, changes: LogChanges) -> Result<LogMetadata> {
        let alter = AlterLog { name: log.borrow().name().clone(), changes };
        let body =
            self.write_admin(move |out, correlation| request::encode_alter_log(out, correlation, &alter)).await?;
        self.router.forget(log.borrow());
        Ok(reply::decode_json(Api::AlterLog, &body)?)
    }

    /// Deletes the records of a partition before an offset, for good: when this returns, no crash brings them back. At
    /// most up to the high watermark. Returns the range that the partition has then; deleting what is gone already
    /// changes nothing.
    ///
    /// Errors: an offset beyond the high watermark is one, and carries the true range ([`Error::offset_range`]).
    pub async fn trim(&self, log: impl Borrow<LogId>, partition: PartitionId, before: Offset) -> Result<Found> {
        let trim = |connection: Arc<connection::Connection>, partition| async move {
            let trim = Trim { partition, before };
            let encode = Box::new(move |out: &mut BytesMut, correlation| request::encode_trim(out, correlation, &trim));
            let frame = connection.written(connection.write(Outgoing::Admin(encode)).await)?;
            Ok(reply::decode_trimmed(&frame.body)?)
        };
        self.router.at_partition(log.borrow(), partition, trim).await
    }

    /// Deletes a log and its records.
    ///
    /// Errors: `UnknownLog` among others.
    pub async fn delete_log(&self, log: impl Borrow<LogId>) -> Result<()> {
        let name: LogName = log.borrow().name().clone();
        self.write_admin(move |out, correlation| request::encode_delete_log(out, correlation, &name)).await?;
        self.router.forget(log.borrow());
        Ok(())
    }

    /// All logs, by name, without the owners of their partitions.
    pub async fn list_logs(&self) -> Result<Vec<LogMetadata>> {
        let all = |connection: Arc<connection::Connection>| async move {
            connection.metadata(MetadataRequest::default()).await
        };
        Ok(self.router.anywhere(all).await?.logs)
    }

    /// One log, as the server knows it now.
    ///
    /// Errors: `UnknownLog` among others.
    pub async fn describe_log(&self, log: impl Borrow<LogId>) -> Result<LogMetadata> {
        self.router.forget(log.borrow());
        let log = self.router.anywhere(|_| self.router.log(log.borrow())).await?;
        Ok(LogMetadata::clone(&log))
    }

    /// How a partition and its copies are, as its leader sees it; while none leads, as another of its copies does.
    pub async fn describe_partition(&self, log: impl Borrow<LogId>, partition: PartitionId) -> Result<PartitionStatus> {
        let describe = |connection: Arc<connection::Connection>, partition| async move {
            let encode = move |out: &mut BytesMut, correlation| {
                request::encode_describe_partition(out, correlation, partition);
            };
            let frame = connection.have_read(connection.read(Outgoing::Admin(Box::new(encode))).await)?;
            Ok(reply::decode_json(Api::DescribePartition, &frame.body)?)
        };
        self.router.at_partition(log.borrow(), partition, describe).await
    }

    /// Says how the copies of a partition stand that nobody leads, and which of them would lead it: `copy`, or that
    /// which loses least. With `accept_data_loss` that one then leads without the votes that it lacks, and what it has
    /// not is cut off everywhere.
    ///
    /// Errors: `RECOVERY_REFUSED`, if a copy leads, or that one cannot. After `Unknown`, ask how the copies stand.
    pub async fn recover(
        &self,
        log: impl Borrow<LogId>,
        partition: PartitionId,
        (copy, accept_data_loss): (Option<ReplicaId>, bool),
    ) -> Result<RecoveryReport> {
        let log = self.describe_log(log).await?;
        if partition.0 >= log.partitions {
            let (partitions, log) = (log.partitions, log.name);
            return Err(RequestError::PartitionOutOfRange { log, partition, partitions }.into());
        }
        let recover = Recover { partition: log.partition(partition), copy, accept_data_loss };
        let body =
            self.write_admin(move |out, correlation| request::encode_recover(out, correlation, &recover)).await?;
        Ok(reply::decode_json(Api::Recover, &body)?)
    }

    /// What the cores have, and what they have done since they were started.
    pub async fn describe_cores(&self) -> Result<Vec<CoreStatus>> {
        let describe = |connection: Arc<connection::Connection>| async move {
            let request = Outgoing::Admin(Box::new(request::encode_describe_cores));
            let frame = connection.have_read(connection.read(request).await)?;
            Ok(reply::decode_json(Api::DescribeCores, &frame.body)?)
        };
        self.router.anywhere(describe).await
    }

    /// Has the copy of a partition that is on a core lead it, now and from now on. Whoever writes and reads is led
    /// there. It does not move by itself before [`PyralogClient::unpin_partition`].
    ///
    /// Errors: `MOVE_REFUSED`, if there is none, or it does not keep up. Then it leads as soon as it does.
    pub async fn move_partition(&self, log: impl Borrow<LogId>, partition: PartitionId, to: CoreId) -> Result<Moved> {
        let log_id = log.borrow();
        let log = self.describe_log(log_id).await?;
        if partition.0 >= log.partitions {
            let (partitions, log) = (log.partitions, log.name);
            return Err(RequestError::PartitionOutOfRange { log, partition, partitions }.into());
        }
        let request = Move { partition: log.partition(partition), to };
        let body = self.write_admin(move |out, correlation| request::encode_move(out, correlation, &request)).await?;
        self.router.forget(log_id);
        Ok(reply::decode_json(Api::Move, &body)?)
    }

    /// Lets a partition that was moved by command move by itself again.
    pub async fn unpin_partition(&self, log: impl Borrow<LogId>, partition: PartitionId) -> Result<()> {
        let log = self.describe_log(log.borrow()).await?;
        if partition.0 >= log.partitions {
            let (partitions, log) = (log.partitions, log.name);
            return Err(RequestError::PartitionOutOfRange { log, partition, partitions }.into());
        }
        let id = log.partition(partition);
        self.write_admin(move |out, correlation| request::encode_unpin(out, correlation, id)).await?;
        Ok(())
    }

    /// What the server is and how it is configured.
    pub async fn describe_server(&self) -> Result<ServerDescription> {
        let describe = |connection: Arc<connection::Connection>| async move {
            let request = Outgoing::Admin(Box::new(request::encode_describe_server));
            let frame = connection.have_read(connection.read(request).await)?;
            Ok(reply::decode_json(Api::DescribeServer, &frame.body)?)
        };
        self.router.anywhere(describe).await
    }

    /// Writes one record. Without a key the partitions take turns.
    pub async fn produce(
        &self,
        log: impl Borrow<LogId>,
        key: impl IntoKey,
        value: impl Into<Bytes>,
    ) -> Result<RecordAck> {
        let record = Record { key: key.into_key(), value: value.into(), ..Record::default() };
        self.produce_record(log.borrow(), record).await
    }

    /// Writes one record to this partition.
    pub async fn produce_to(
        &self,
        log: impl Borrow<LogId>,
        partition: PartitionId,
        key: impl IntoKey,
        value: impl Into<Bytes>,
    ) -> Result<RecordAck> {
        let (key, partition) = (key.into_key(), Some(partition));
        let record = Record { key, value: value.into(), partition, ..Record::default() };
        self.produce_record(log.borrow(), record).await
    }

    async fn produce_record(&self, log: &LogId, record: Record) -> Result<RecordAck> {
        let partition = match record.partition {
            Some(partition) => partition,
            None => self.partition_for(&record, self.partitions(log).await?),
        };
        let batch = batches::single(&record, self.codec(log).await?)?;
        let Appended { base_offset: offset, level, duplicate, .. } =
            self.append_batch(log, partition, batch, AppendOptions::default()).await?;
        Ok(RecordAck { partition, offset, level, duplicate })
    }

    /// Writes records: anything that iterates over [`Record`]s or pairs of key and value. Those without a key all go to
    /// one partition, another one with each call. Within a partition they are stored in this order.
    ///
    /// Errors: if only some were stored, `Partial`, which says which.
    pub async fn produce_batch<I>(&self, log: impl Borrow<LogId>, records: I) -> Result<BatchAck>
    where
        I: IntoIterator,
        I::Item: IntoRecord,
    {
        let log = log.borrow();
        let partitions = self.partitions(log).await?;
        let sticky = PartitionId(self.next_partition.fetch_add(1, Relaxed) % partitions);
        let mut batches = Batches::new(partitions, self.codec(log).await?, self.router.settings());
        for record in records {
            let record = record.into_record();
            let keyed = || record.key.as_deref().map(|key| partition_of_key(key, partitions));
            let partition = record.partition.or_else(keyed).unwrap_or(sticky);
            batches.push(partition, &record)?;
        }
        batches.send(self, log).await
    }

    /// Writes records to one partition, whatever their keys.
    ///
    /// Errors: if only some were stored, `Partial`, which says how many.
    pub async fn produce_batch_to<I>(
        &self,
        log: impl Borrow<LogId>,
        partition: PartitionId,
        records: I,
    ) -> Result<BatchAck>
    where
        I: IntoIterator,
        I::Item: IntoRecord,
    {
        let codec = self.codec(log.borrow()).await?;
        let mut batches = Batches::new(1, codec, self.router.settings());
        for record in records {
            batches.push(partition, &record.into_record())?;
        }
        batches.send(self, log.borrow()).await
    }

    /// Writes records to one partition, all of them if the first one gets offset `expected`, else none: of all who
    /// expect the same offset at most one wins. So a log can be the history of something: read to the end, decide by
    /// what was read, append there; whoever loses reads on and decides anew.
    ///
    /// Errors: `WRONG_OFFSET` if the log has gone on, and [`Error::log_end`] says how far; `BatchFull` if the records
    /// do not fit into one batch. After `Unknown`, read to see who won, or let an idempotent client find out.
    pub async fn produce_batch_at<I>(
        &self,
        log: impl Borrow<LogId>,
        partition: PartitionId,
        expected: Offset,
        records: I,
    ) -> Result<RecordAck>
    where
        I: IntoIterator,
        I::Item: IntoRecord,
    {
        let batch = batches::whole(records, self.codec(log.borrow()).await?)?;
        let options = AppendOptions { expected_offset: Some(expected), ..AppendOptions::default() };
        let appended = self.append_batch(log, partition, batch, options).await?;
        let Appended { base_offset: offset, level, duplicate, .. } = appended;
        Ok(RecordAck { partition, offset, level, duplicate })
    }

    /// A producer that gathers records into batches by itself.
    pub fn producer(&self, options: ProducerOptions) -> Producer {
        Producer::new(self.clone(), options)
    }

    /// Reads from a partition, from `offset` on; waits for records as long as the options say if there are none yet.
    ///
    /// Errors: an offset out of range is one, and carries the true range ([`Error::offset_range`]).
    pub async fn fetch(
        &self,
        log: impl Borrow<LogId>,
        partition: PartitionId,
        offset: Offset,
        options: FetchOptions,
    ) -> Result<Fetched> {
        let fetch = |connection: Arc<connection::Connection>, partition| async move {
            let request = Outgoing::Fetch(options.at(partition, offset));
            let frame = connection.have_read(connection.read(request).await)?;
            Fetched::new(reply::decode_fetched(frame.body)?, offset)
        };
        self.router.at_partition(log.borrow(), partition, fetch).await
    }

    /// Subscribes to a partition: a stream of records, sent as they become visible.
    pub async fn subscribe(
        &self,
        log: impl Borrow<LogId>,
        partition: PartitionId,
        from: impl Into<StartAt>,
        options: FetchOptions,
    ) -> Result<Subscription> {
        let log = log.borrow();
        let next = match consumer::offset_at(from.into()) {
            Ok(at) => self.find_offset(log, partition, at).await?.offset,
            Err(offset) => offset,
        };
        Subscription::open(Arc::clone(&self.router), log.clone(), partition, next, options).await
    }

    /// Finds an offset, and the range that the partition has now.
    pub async fn find_offset(&self, log: impl Borrow<LogId>, partition: PartitionId, at: OffsetAt) -> Result<Found> {
        let find = |connection: Arc<connection::Connection>, partition| async move {
            let request = Outgoing::FindOffset(FindOffset { partition, at });
            let frame = connection.have_read(connection.read(request).await)?;
            Ok(reply::decode_found(&frame.body)?)
        };
        self.router.at_partition(log.borrow(), partition, find).await
    }

    /// The offset of the first record.
    pub async fn earliest(&self, log: impl Borrow<LogId>, partition: PartitionId) -> Result<Offset> {
        Ok(self.find_offset(log, partition, OffsetAt::Earliest).await?.offset)
    }

    /// The offset after the last visible record.
    pub async fn latest(&self, log: impl Borrow<LogId>, partition: PartitionId) -> Result<Offset> {
        Ok(self.find_offset(log, partition, OffsetAt::Latest).await?.offset)
    }

    /// A partition, resolved, for requests at the least cost.
    pub async fn partition(&self, log: impl Borrow<LogId>, partition: PartitionId) -> Result<PartitionHandle> {
        let handle = |connection, partition| async move { Ok(PartitionHandle { connection, partition }) };
        self.router.at_partition(log.borrow(), partition, handle).await
    }

    async fn partitions(&self, log: &LogId) -> Result<u32> {
        Ok(self.router.anywhere(|_| self.router.log(log)).await?.partitions)
    }

    /// How records for `log` are compressed: as this client was told, else as the log's settings say, as far as they
    /// are known here; they are asked for anew when the log is.
    async fn codec(&self, log: &LogId) -> Result<Codec> {
        match self.router.settings().codec {
            Some(codec) => Ok(codec),
            None => {
                let log = self.router.anywhere(|_| self.router.log(log)).await?;
                Ok(log.settings.compression.unwrap_or_default())
            }
        }
    }

    fn partition_for(&self, record: &Record, partitions: u32) -> PartitionId {
        match (record.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of_key(key, partitions),
            (None, None) => PartitionId(self.next_partition.fetch_add(1, Relaxed) % partitions),
        }
    }

    /// Appends the bytes of one batch, again after retriable errors. With an idempotent client the batch is given its
    /// producer, epoch and sequence, and is sent again until its fate is known.
    pub async fn append_batch(
        &self,
        log: impl Borrow<LogId>,
        partition: PartitionId,
        batch: Bytes,
        options: AppendOptions,
    ) -> Result<Appended> {
        let log = log.borrow();
        if batch.len() > BATCH_BYTES_MAX {
            return Err(BatchError::BatchTooLarge { bytes: batch.len() as u64 }.into());
        }
        match &self.idempotence {
            Some(idempotence) => {
                BatchHeader::decode(&batch)?;
                idempotence.append(self, (log, partition), batch, options).await
            }
            None => self.append_once(log, partition, &batch, options).await,
        }
    }

    /// Appends a batch; whether that succeeded may be unknown afterwards.
    async fn append_once(
        &self,
        log: &LogId,
        partition: PartitionId,
        batch: &Bytes,
        options: AppendOptions,
    ) -> Result<Appended> {
        let AppendOptions { ack, expected_offset, timed: is_timed } = options;
        let ack = ack.or(self.router.settings().ack);
        let append = |connection: Arc<connection::Connection>, partition| async move {
            let append = Append { partition, batch: batch.clone(), ack, expected_offset };
            let request = Outgoing::Produce(Produce { append, is_timed });
            let frame = connection.written(connection.write(request).await)?;
            Ok(reply::decode_appended(&frame.body)?)
        };
        self.router.at_partition(log, partition, append).await
    }

    async fn write_admin(&self, encode: impl Fn(&mut BytesMut, u64) + Clone + Send + 'static) -> Result<Bytes> {
        let write = |connection: Arc<connection::Connection>| {
            let encode = encode.clone();
            async move {
                let frame = connection.written(connection.write(Outgoing::Admin(Box::new(encode))).await)?;
                Ok(frame.body)
            }
        };
        self.router.anywhere(write).await
    }
}

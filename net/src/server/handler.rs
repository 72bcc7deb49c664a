//! From requests on the wire to requests of the engine, and from outcomes to answers.

use std::rc::Rc;

use bytes::BytesMut;
use pyralog_engine::{
    error::RequestError,
    limits::{FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX},
    runtime::Runtime,
    shard::{
        budget::Reservation,
        request::{Fetch, Outcome, Reply, Request as EngineRequest},
        stages::Stage,
    },
};

use super::{
    connection::Core,
    pipeline::{Asked, Burst, Pipeline},
};
use crate::wire::{
    Api,
    code::{ProtocolError, WireError},
    frame::{Frame, FrameHeader},
    reply::{
        Limits, LogMetadata, Metadata, ServerDescription, encode_appended, encode_cores, encode_fetched_head,
        encode_found, encode_log_altered, encode_log_created, encode_log_deleted, encode_metadata, encode_moved,
        encode_partition_description, encode_recovery, encode_server_description, encode_unpinned,
    },
    request::{MetadataRequest, Produce, Request},
};

/// Where on its stream a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    First,
    Later,
}

/// What became of a frame.
pub(super) enum Begun {
    /// A request that the pipeline answers.
    Request,
    /// The stream is a subscription from now on.
    Subscription(Wanted),
}

/// A subscription to serve.
pub(super) struct Wanted {
    pub correlation: u64,
    pub fetch: Fetch,
}

/// What an answer refers to.
#[derive(Clone, Copy)]
pub(super) struct Answered {
    api: u8,
    correlation: u64,
}

/// What the answer to an unreadable frame refers to.
pub(super) const NO_REQUEST: Answered = Answered { api: 0, correlation: 0 };

impl From<&FrameHeader> for Answered {
    fn from(header: &FrameHeader) -> Self {
        Answered { api: header.api, correlation: header.correlation }
    }
}

/// Begins what a frame asks for. Waits only for memory. `memory` covers the frame.
pub(super) async fn begin(pipeline: &Rc<Pipeline>, frame: Frame, memory: Reservation, at: Position) -> Begun {
    let answered = Answered::from(&frame.header);
    let correlation = answered.correlation;
    let request = match Request::decode(&frame.header, frame.body) {
        Ok(request) => request,
        Err(error) => {
            pipeline.core().shard.metrics().protocol_errors.add(1);
            answer_error(pipeline, answered, error);
            return Begun::Request;
        }
    };
    if pipeline.core().admission.is_closed() {
        answer_error(pipeline, answered, RequestError::ShuttingDown.into());
        return Begun::Request;
    }
    match request {
        Request::Produce(Produce { append, is_timed }) => {
            let clock = is_timed.then(|| pipeline.start_clock());
            pipeline.submit_timed(correlation, Asked::Produce, (EngineRequest::Append(append), clock), memory);
        }
        Request::Fetch(fetch) => {
            drop(memory);
            begin_fetch(pipeline, correlation, fetch).await;
        }
        Request::FindOffset(find) => {
            pipeline.submit(correlation, Asked::FindOffset, EngineRequest::FindOffset(find), memory);
        }
        Request::CreateLog(create) => {
            pipeline.submit(correlation, Asked::CreateLog, EngineRequest::CreateLog(create), memory);
        }
        Request::DeleteLog(name) => {
            pipeline.submit(correlation, Asked::DeleteLog, EngineRequest::DeleteLog(name), memory);
        }
        Request::AlterLog(alter) => {
            pipeline.submit(correlation, Asked::AlterLog, EngineRequest::AlterLog(alter), memory);
        }
        Request::Trim(trim) => pipeline.submit(correlation, Asked::Trim, EngineRequest::Trim(trim), memory),
        Request::DescribePartition(partition) => {
            pipeline.submit(correlation, Asked::DescribePartition, EngineRequest::Describe(partition), memory);
        }
        Request::DescribeCores => {
            pipeline.submit(correlation, Asked::DescribeCores, EngineRequest::DescribeCores, memory);
        }
        Request::Move(request) => pipeline.submit(correlation, Asked::Move, EngineRequest::Move(request), memory),
        Request::Unpin(partition) => {
            pipeline.submit(correlation, Asked::Unpin, EngineRequest::Unpin(partition), memory);
        }
        Request::Recover(recover) => {
            pipeline.submit(correlation, Asked::Recover, EngineRequest::Recover(recover), memory);
        }
        Request::Subscribe(fetch) if at == Position::First => {
            return Begun::Subscription(Wanted { correlation, fetch });
        }
        Request::Subscribe(_) => {
            pipeline.core().shard.metrics().protocol_errors.add(1);
            let reason = "subscribe is the first and only request on a stream of its own".to_owned();
            answer_error(pipeline, answered, ProtocolError::Misplaced { reason }.into());
        }
        Request::Metadata(wanted) => {
            let metadata = metadata(pipeline.core(), &wanted);
            answer(pipeline, memory, |out| encode_metadata(out, correlation, &metadata)).await;
        }
        Request::DescribeServer => {
            let description = describe(pipeline.core());
            answer(pipeline, memory, |out| encode_server_description(out, correlation, &description)).await;
        }
    }
    Begun::Request
}

/// A fetch within our limits.
pub(super) fn capped(fetch: Fetch) -> Fetch {
    let longest = std::time::Duration::from_millis(u64::from(FETCH_WAIT_MS_MAX));
    Fetch { max_bytes: fetch.max_bytes.min(FETCH_BYTES_MAX), max_wait: fetch.max_wait.min(longest), ..fetch }
}

async fn begin_fetch(pipeline: &Pipeline, correlation: u64, fetch: Fetch) {
    let fetch = capped(fetch);
    // For what it may read. A single batch may be larger; it is counted when it is there.
    let memory = pipeline.core().shard.budget().reserve(fetch.max_bytes as usize).await;
    let at_once = Fetch { max_wait: std::time::Duration::ZERO, ..fetch };
    pipeline.submit(correlation, Asked::Fetch { fetch, waits: false }, EngineRequest::Fetch(at_once), memory);
}

async fn answer(pipeline: &Pipeline, memory: Reservation, encode: impl FnOnce(&mut BytesMut)) {
    let mut out = BytesMut::new();
    encode(&mut out);
    drop(memory);
    // Waiting here bounds what a client can pile up by asking and not reading: one answer beyond the budget.
    let memory = pipeline.core().shard.budget().reserve(out.len()).await;
    pipeline.answer(out.freeze(), memory);
}

/// Answers with an error.
pub(super) fn answer_error(pipeline: &Pipeline, answered: Answered, error: WireError) {
    let mut out = BytesMut::new();
    error.encode(&mut out, answered.api, answered.correlation);
    // Never waits. The stream's bound on open requests bounds these too, and they are small.
    let mut memory = pipeline.core().shard.budget().empty();
    memory.resize(out.len());
    pipeline.answer(out.freeze(), memory);
}

/// Puts the answer to a request into a burst.
pub(super) fn encode(burst: &mut Burst, core: &Core, asked: &Asked, correlation: u64, outcome: Outcome) {
    let api = match asked {
        Asked::Produce => Api::Produce,
        Asked::Fetch { .. } => Api::Fetch,
        Asked::FindOffset => Api::FindOffset,
        Asked::CreateLog => Api::CreateLog,
        Asked::DeleteLog => Api::DeleteLog,
        Asked::AlterLog => Api::AlterLog,
        Asked::Trim => Api::Trim,
        Asked::DescribePartition => Api::DescribePartition,
        Asked::Recover => Api::Recover,
        Asked::Move => Api::Move,
        Asked::DescribeCores => Api::DescribeCores,
        Asked::Unpin => Api::Unpin,
    };
    let reply = match outcome {
        Ok(reply) => reply,
        Err(error) => {
            return burst.put(|out| WireError::from(error).encode(out, api.number(), correlation));
        }
    };
    match (asked, reply) {
        (Asked::Produce, Reply::Appended(mut appended)) => {
            if let Some(clock) = &mut appended.clock {
                clock.mark(Stage::Ack, core.shard.runtime().monotonic());
            }
            burst.put(|out| encode_appended(out, correlation, &appended));
        }
        (Asked::Fetch { .. }, Reply::Fetched(fetched)) => {
            burst.put(|out| encode_fetched_head(out, api, correlation, &fetched));
            fetched.batches.into_iter().for_each(|bytes| burst.put_shared(bytes));
        }
        (Asked::FindOffset, Reply::Found(found)) | (Asked::Trim, Reply::Trimmed(found)) => {
            burst.put(|out| encode_found(out, api, correlation, &found));
        }
        (Asked::CreateLog, Reply::LogCreated(log)) => {
            let log = LogMetadata::with_owners(&log, |partition| core.shard.owner(partition));
            burst.put(|out| encode_log_created(out, correlation, &log));
        }
        (Asked::AlterLog, Reply::LogAltered(log)) => {
            let log = LogMetadata::with_owners(&log, |partition| core.shard.owner(partition));
            burst.put(|out| encode_log_altered(out, correlation, &log));
        }
        (Asked::DescribePartition, Reply::Described(status)) => {
            burst.put(|out| encode_partition_description(out, correlation, &status));
        }
        (Asked::DescribeCores, Reply::Cores(cores)) => burst.put(|out| encode_cores(out, correlation, &cores)),
        (Asked::Move, Reply::Moved(moved)) => burst.put(|out| encode_moved(out, correlation, &moved)),
        (Asked::Recover, Reply::Recovery(report)) => burst.put(|out| encode_recovery(out, correlation, &report)),
        (Asked::Unpin, Reply::Unpinned) => burst.put(|out| encode_unpinned(out, correlation)),
        (Asked::DeleteLog, Reply::LogDeleted) => burst.put(|out| encode_log_deleted(out, correlation)),
        (_, reply) => unreachable!("the shard answered {} with {reply:?}", api.name()),
    }
}

fn metadata(core: &Core, wanted: &MetadataRequest) -> Metadata {
    let catalog = core.shard.catalog();
    let owner = |partition| core.shard.owner(partition);
    let logs = match &wanted.logs {
        None => catalog.logs().map(|log| LogMetadata::without_owners(log)).collect(),
        Some(names) => {
            let found = names.iter().filter_map(|name| catalog.by_name(name));
            found.map(|log| LogMetadata::with_owners(log, owner)).collect()
        }
    };
    Metadata {
        version: core.info.version.clone(),
        cores: cores(core),
        core: core.shard.core(),
        limits: Limits::OURS,
        default_ack: core.info.ack,
        logs,
    }
}

fn describe(core: &Core) -> ServerDescription {
    let info = &core.info;
    ServerDescription {
        version: info.version.clone(),
        profile: info.profile.clone(),
        ack: info.ack,
        guarantee: info.guarantee.clone(),
        copies: info.copies.clone(),
        cores: cores(core),
        config: info.config.clone(),
    }
}

fn cores(core: &Core) -> u16 {
    u16::try_from(core.shard.cores()).unwrap_or(u16::MAX)
}

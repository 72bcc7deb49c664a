//! Requests: what a client writes and a server reads.
//!
//! Hand-laid where records pass, JSON where people administer. A field that must be zero is checked, so that it can
//! mean something one day; an unknown JSON field is refused rather than silently not done.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pyralog_engine::{
    error::RequestError,
    limits::BATCH_BYTES_MAX,
    name::LogName,
    record::Codec,
    replication::assignment::ReplicaId,
    settings::{Bound, LogChanges, LogSettings, Replication},
    shard::request::{AlterLog, Append, CreateLog, Fetch, FindOffset, Move, OffsetAt, Recover, Trim},
    types::{AckLevel, CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Api, VERSION,
    code::{ProtocolError, WireError},
    frame::{BODY_BYTES_MAX, FrameHeader},
};

/// Bytes that stand before the batch in the body of a produce request, if it names no expected offset.
pub const PRODUCE_HEAD_BYTES: usize = 16;

/// Bytes of the expected offset, behind the head and before the batch.
const EXPECTED_OFFSET_BYTES: usize = 8;

/// The flag of a produce request that has an expected offset.
const HAS_EXPECTED_OFFSET: u8 = 1;
/// The flag of one whose reply is to say where its time went.
const IS_TIMED: u8 = 2;

/// Names in one metadata request; the reply, with up to 1024 owners for each, must fit into a frame.
pub const METADATA_NAMES_MAX: usize = 1000;

const FETCH_BYTES: usize = 32;
const FIND_OFFSET_BYTES: usize = 24;
const TRIM_BYTES: usize = 24;
const PARTITION_BYTES: usize = 16;
const MOVE_BYTES: usize = 16;

const _: () = assert!(
    PRODUCE_HEAD_BYTES + EXPECTED_OFFSET_BYTES + BATCH_BYTES_MAX <= BODY_BYTES_MAX,
    "the largest batch must fit into a frame"
);

/// What a client wants.
#[derive(Clone, Debug)]
pub enum Request {
    /// Which logs there are and which core owns what; all logs, without owners, if none is named.
    Metadata(MetadataRequest),
    /// Create a log.
    CreateLog(CreateLog),
    /// Delete a log.
    DeleteLog(LogName),
    /// Append a batch. The batch is a slice of the frame's body, not looked at yet.
    Produce(Produce),
    /// Read batches.
    Fetch(Fetch),
    /// Find an offset.
    FindOffset(FindOffset),
    /// Be sent batches as they come; `max_wait` is the longest silence between two frames.
    Subscribe(Fetch),
    /// What the server is.
    DescribeServer,
    /// Change the settings of a log.
    AlterLog(AlterLog),
    /// Delete the records before an offset.
    Trim(Trim),
    /// How a partition and its copies are.
    DescribePartition(PartitionId),
    /// Have a copy lead by the operator's word, or say what that would come to.
    Recover(Recover),
    /// Have the copy of a partition that is on a core lead it.
    Move(Move),
    /// What the cores have and do.
    DescribeCores,
    /// Let a partition that was moved by command move by itself again.
    Unpin(PartitionId),
}

/// Which logs a client asks about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataRequest {
    /// Their names, at most [`METADATA_NAMES_MAX`]; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Vec<LogName>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateLogBody {
    name: String,
    partitions: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ack: Option<AckLevel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retention_ms: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retention_bytes: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compression: Option<Codec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replication: Option<Replication>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlterLogBody {
    name: String,
    changes: LogChanges,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteLogBody {
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecoverBody {
    log: LogUid,
    partition: PartitionIndex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copy: Option<ReplicaId>,
    #[serde(default)]
    accept_data_loss: bool,
}

impl Request {
    /// Reads the request in a frame. The body's length was checked by the frame decoder.
    ///
    /// Errors: of the protocol, or of a name; both as what to reply. The stream can be read further.
    pub fn decode(header: &FrameHeader, body: Bytes) -> Result<Request, WireError> {
        if header.version != VERSION {
            return Err(ProtocolError::UnsupportedVersion { version: header.version }.into());
        }
        let Some(api) = Api::from_number(header.api) else {
            return Err(ProtocolError::UnknownApi { api: header.api }.into());
        };
        if header.status != 0 {
            return Err(bad_body(api, format!("the status of a request is 0, not {}", header.status)).into());
        }
        Ok(match api {
            Api::Metadata => Request::Metadata(decode_metadata(&body)?),
            Api::CreateLog => Request::CreateLog(decode_create_log(&body)?),
            Api::DeleteLog => Request::DeleteLog(name(&json::<DeleteLogBody>(api, &body)?.name)?),
            Api::Produce => Request::Produce(decode_produce(body)?),
            Api::Fetch => Request::Fetch(decode_fetch(api, &body)?),
            Api::FindOffset => Request::FindOffset(decode_find_offset(&body)?),
            Api::Subscribe => Request::Subscribe(decode_fetch(api, &body)?),
            Api::DescribeServer => {
                exactly(api, &body, 0)?;
                Request::DescribeServer
            }
            Api::AlterLog => {
                let body: AlterLogBody = json(api, &body)?;
                Request::AlterLog(AlterLog { name: name(&body.name)?, changes: body.changes })
            }
            Api::Trim => Request::Trim(decode_trim(&body)?),
            Api::DescribePartition => Request::DescribePartition(decode_partition(api, &body)?),
            Api::DescribeCores => {
                exactly(api, &body, 0)?;
                Request::DescribeCores
            }
            Api::Move => Request::Move(decode_move(&body)?),
            Api::Unpin => Request::Unpin(decode_partition(api, &body)?),
            Api::Recover => {
                let RecoverBody { log, partition: index, copy, accept_data_loss } = json(api, &body)?;
                Request::Recover(Recover { partition: PartitionId { log, index }, copy, accept_data_loss })
            }
        })
    }
}

/// A request to append.
#[derive(Clone, Debug)]
pub struct Produce {
    /// What, and where to.
    pub append: Append,
    /// Whether the reply is to say where its time went.
    pub is_timed: bool,
}

impl From<Append> for Produce {
    /// Without the time.
    fn from(append: Append) -> Self {
        Produce { append, is_timed: false }
    }
}

/// Appends all of a produce frame but the batch, which the caller sends next, uncopied.
///
/// Panics if the batch is above `BATCH_BYTES_MAX`: a builder of batches keeps the limit.
pub fn encode_produce_head(out: &mut BytesMut, correlation: u64, produce: &Produce) {
    let Append { partition, batch, ack, expected_offset } = &produce.append;
    let batch_bytes = batch.len();
    assert!(batch_bytes <= BATCH_BYTES_MAX, "a batch of {batch_bytes} bytes is above {BATCH_BYTES_MAX}");
    let (mut flags, expected_bytes) = match expected_offset {
        Some(_) => (HAS_EXPECTED_OFFSET, EXPECTED_OFFSET_BYTES),
        None => (0, 0),
    };
    if produce.is_timed {
        flags |= IS_TIMED;
    }
    FrameHeader::new(Api::Produce, correlation, PRODUCE_HEAD_BYTES + expected_bytes + batch_bytes).encode(out);
    out.put_u64_le(partition.log.0);
    out.put_u32_le(partition.index.0);
    out.put_u8(ack.map_or(0, AckLevel::code));
    out.put_u8(flags);
    out.put_bytes(0, 2);
    if let Some(offset) = expected_offset {
        out.put_u64_le(offset.0);
    }
}

/// Appends a fetch frame.
pub fn encode_fetch(out: &mut BytesMut, correlation: u64, fetch: &Fetch) {
    put_fetch(out, Api::Fetch, correlation, fetch);
}

/// Appends a subscribe frame.
pub fn encode_subscribe(out: &mut BytesMut, correlation: u64, fetch: &Fetch) {
    put_fetch(out, Api::Subscribe, correlation, fetch);
}

fn put_fetch(out: &mut BytesMut, api: Api, correlation: u64, fetch: &Fetch) {
    FrameHeader::new(api, correlation, FETCH_BYTES).encode(out);
    out.put_u64_le(fetch.partition.log.0);
    out.put_u32_le(fetch.partition.index.0);
    out.put_u32_le(fetch.max_bytes);
    out.put_u64_le(fetch.offset.0);
    out.put_u32_le(u32::try_from(fetch.max_wait.as_millis()).unwrap_or(u32::MAX));
    out.put_u32_le(0);
}

/// Appends a find offset frame.
pub fn encode_find_offset(out: &mut BytesMut, correlation: u64, find: &FindOffset) {
    FrameHeader::new(Api::FindOffset, correlation, FIND_OFFSET_BYTES).encode(out);
    let (kind, timestamp_ms) = match find.at {
        OffsetAt::Earliest => (0, 0),
        OffsetAt::Latest => (1, 0),
        OffsetAt::Timestamp(timestamp_ms) => (2, timestamp_ms),
    };
    out.put_u64_le(find.partition.log.0);
    out.put_u32_le(find.partition.index.0);
    out.put_u8(kind);
    out.put_bytes(0, 3);
    out.put_i64_le(timestamp_ms);
}

/// Appends a metadata frame.
///
/// Panics above [`METADATA_NAMES_MAX`] names.
pub fn encode_metadata(out: &mut BytesMut, correlation: u64, request: &MetadataRequest) {
    let names = request.logs.as_ref().map_or(0, Vec::len);
    assert!(names <= METADATA_NAMES_MAX, "{names} names are above {METADATA_NAMES_MAX}");
    put_json(out, Api::Metadata, correlation, request);
}

/// Appends a create log frame.
pub fn encode_create_log(out: &mut BytesMut, correlation: u64, create: &CreateLog) {
    let LogSettings { ack, retention_ms, retention_bytes, compression, replication } = create.settings;
    let (name, partitions) = (create.name.to_string(), create.partitions);
    let body = CreateLogBody { name, partitions, ack, retention_ms, retention_bytes, compression, replication };
    put_json(out, Api::CreateLog, correlation, &body);
}

/// Appends an alter log frame.
pub fn encode_alter_log(out: &mut BytesMut, correlation: u64, alter: &AlterLog) {
    let body = AlterLogBody { name: alter.name.to_string(), changes: alter.changes };
    put_json(out, Api::AlterLog, correlation, &body);
}

/// Appends a trim frame.
pub fn encode_trim(out: &mut BytesMut, correlation: u64, trim: &Trim) {
    FrameHeader::new(Api::Trim, correlation, TRIM_BYTES).encode(out);
    out.put_u64_le(trim.partition.log.0);
    out.put_u32_le(trim.partition.index.0);
    out.put_u32_le(0);
    out.put_u64_le(trim.before.0);
}

/// Appends a describe partition frame.
pub fn encode_describe_partition(out: &mut BytesMut, correlation: u64, partition: PartitionId) {
    encode_partition(out, Api::DescribePartition, correlation, partition);
}

/// Appends an unpin frame.
pub fn encode_unpin(out: &mut BytesMut, correlation: u64, partition: PartitionId) {
    encode_partition(out, Api::Unpin, correlation, partition);
}

fn encode_partition(out: &mut BytesMut, api: Api, correlation: u64, partition: PartitionId) {
    FrameHeader::new(api, correlation, PARTITION_BYTES).encode(out);
    out.put_u64_le(partition.log.0);
    out.put_u32_le(partition.index.0);
    out.put_u32_le(0);
}

/// Appends a recover frame.
pub fn encode_recover(out: &mut BytesMut, correlation: u64, recover: &Recover) {
    let Recover { partition, copy, accept_data_loss } = *recover;
    let body = RecoverBody { log: partition.log, partition: partition.index, copy, accept_data_loss };
    put_json(out, Api::Recover, correlation, &body);
}

/// Appends a move frame.
pub fn encode_move(out: &mut BytesMut, correlation: u64, request: &Move) {
    FrameHeader::new(Api::Move, correlation, MOVE_BYTES).encode(out);
    out.put_u64_le(request.partition.log.0);
    out.put_u32_le(request.partition.index.0);
    out.put_u16_le(request.to.0);
    out.put_u16_le(0);
}

/// Appends a delete log frame.
pub fn encode_delete_log(out: &mut BytesMut, correlation: u64, name: &LogName) {
    put_json(out, Api::DeleteLog, correlation, &DeleteLogBody { name: name.to_string() });
}

/// Appends a describe server frame.
pub fn encode_describe_server(out: &mut BytesMut, correlation: u64) {
    FrameHeader::new(Api::DescribeServer, correlation, 0).encode(out);
}

/// Appends a describe cores frame.
pub fn encode_describe_cores(out: &mut BytesMut, correlation: u64) {
    FrameHeader::new(Api::DescribeCores, correlation, 0).encode(out);
}

/// Appends a frame whose body is JSON.
pub(super) fn put_json(out: &mut BytesMut, api: Api, correlation: u64, body: &impl Serialize) {
    let body = serde_json::to_vec(body).expect("plain structs"); // why: only maps with odd keys fail
    FrameHeader::new(api, correlation, body.len()).encode(out);
    out.extend_from_slice(&body);
}

fn decode_produce(mut body: Bytes) -> Result<Produce, ProtocolError> {
    let too_short = |have: usize, need: usize| {
        bad_body(Api::Produce, format!("it has {have} bytes, fewer than the {need} before the batch"))
    };
    let len = body.len();
    if len < PRODUCE_HEAD_BYTES {
        return Err(too_short(len, PRODUCE_HEAD_BYTES));
    }
    let mut batch = body.split_off(PRODUCE_HEAD_BYTES);
    let head = &mut &body[..];
    let partition = get_partition(head);
    let ack = match head.get_u8() {
        0 => None,
        code => match AckLevel::from_code(code) {
            Some(level) => Some(level),
            None => return Err(bad_body(Api::Produce, format!("there is no ack level {code}; there are 0 to 4"))),
        },
    };
    let flags = head.get_u8();
    zero(Api::Produce, head, 2)?;
    if flags & !(HAS_EXPECTED_OFFSET | IS_TIMED) != 0 {
        let reason = format!("there are no flags {flags:#x}; there are {HAS_EXPECTED_OFFSET} and {IS_TIMED}");
        return Err(bad_body(Api::Produce, reason));
    }
    let expected_offset = match flags & HAS_EXPECTED_OFFSET {
        0 => None,
        _ if batch.len() >= EXPECTED_OFFSET_BYTES => Some(Offset(batch.get_u64_le())),
        _ => return Err(too_short(len, PRODUCE_HEAD_BYTES + EXPECTED_OFFSET_BYTES)),
    };
    Ok(Produce { append: Append { partition, batch, ack, expected_offset }, is_timed: flags & IS_TIMED != 0 })
}

fn decode_fetch(api: Api, body: &[u8]) -> Result<Fetch, ProtocolError> {
    exactly(api, body, FETCH_BYTES)?;
    let body = &mut &body[..];
    let partition = get_partition(body);
    let max_bytes = body.get_u32_le();
    let offset = Offset(body.get_u64_le());
    let max_wait = Duration::from_millis(u64::from(body.get_u32_le()));
    zero(api, body, 4)?;
    Ok(Fetch { partition, offset, max_bytes, max_wait })
}

fn decode_find_offset(body: &[u8]) -> Result<FindOffset, ProtocolError> {
    let api = Api::FindOffset;
    exactly(api, body, FIND_OFFSET_BYTES)?;
    let body = &mut &body[..];
    let partition = get_partition(body);
    let kind = body.get_u8();
    zero(api, body, 3)?;
    let timestamp_ms = body.get_i64_le();
    let at = match (kind, timestamp_ms) {
        (0, 0) => OffsetAt::Earliest,
        (1, 0) => OffsetAt::Latest,
        (2, timestamp_ms) => OffsetAt::Timestamp(timestamp_ms),
        (0 | 1, _) => return Err(bad_body(api, "earliest and latest have a timestamp of 0".to_owned())),
        _ => return Err(bad_body(api, format!("there is no kind {kind}; there are 0, 1 and 2"))),
    };
    Ok(FindOffset { partition, at })
}

fn decode_metadata(body: &[u8]) -> Result<MetadataRequest, WireError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        logs: Option<Vec<String>>,
    }
    let Some(names) = json::<Body>(Api::Metadata, body)?.logs else { return Ok(MetadataRequest::default()) };
    if names.len() > METADATA_NAMES_MAX {
        let reason = format!("it names {} logs, more than {METADATA_NAMES_MAX}", names.len());
        return Err(bad_body(Api::Metadata, reason).into());
    }
    let logs = names.iter().map(|text| name(text)).collect::<Result<_, _>>()?;
    Ok(MetadataRequest { logs: Some(logs) })
}

fn decode_create_log(body: &[u8]) -> Result<CreateLog, WireError> {
    let body: CreateLogBody = json(Api::CreateLog, body)?;
    let CreateLogBody { name: text, partitions, ack, retention_ms, retention_bytes, compression, replication } = body;
    let settings = LogSettings { ack, retention_ms, retention_bytes, compression, replication };
    Ok(CreateLog { name: name(&text)?, partitions, settings })
}

fn decode_trim(body: &[u8]) -> Result<Trim, ProtocolError> {
    exactly(Api::Trim, body, TRIM_BYTES)?;
    let body = &mut &body[..];
    let partition = get_partition(body);
    zero(Api::Trim, body, 4)?;
    Ok(Trim { partition, before: Offset(body.get_u64_le()) })
}

fn decode_partition(api: Api, body: &[u8]) -> Result<PartitionId, ProtocolError> {
    exactly(api, body, PARTITION_BYTES)?;
    let body = &mut &body[..];
    let partition = get_partition(body);
    zero(api, body, 4)?;
    Ok(partition)
}

fn decode_move(body: &[u8]) -> Result<Move, ProtocolError> {
    exactly(Api::Move, body, MOVE_BYTES)?;
    let body = &mut &body[..];
    let partition = get_partition(body);
    let to = CoreId(body.get_u16_le());
    zero(Api::Move, body, 2)?;
    Ok(Move { partition, to })
}

fn name(text: &str) -> Result<LogName, WireError> {
    text.parse().map_err(|error| RequestError::NameRefused(error).into())
}

fn json<T: DeserializeOwned>(api: Api, body: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(body).map_err(|error| bad_body(api, error.to_string()))
}

fn get_partition(body: &mut &[u8]) -> PartitionId {
    PartitionId { log: LogUid(body.get_u64_le()), index: PartitionIndex(body.get_u32_le()) }
}

fn zero(api: Api, body: &mut &[u8], bytes: usize) -> Result<(), ProtocolError> {
    if body[..bytes].iter().any(|byte| *byte != 0) {
        return Err(bad_body(api, "a byte that must be zero is not".to_owned()));
    }
    body.advance(bytes);
    Ok(())
}

pub(super) fn exactly(api: Api, body: &[u8], bytes: usize) -> Result<(), ProtocolError> {
    if body.len() == bytes {
        return Ok(());
    }
    Err(bad_body(api, format!("it has {} bytes instead of {bytes}", body.len())))
}

pub(super) fn bad_body(api: Api, reason: String) -> ProtocolError {
    ProtocolError::BadBody { api: api.name(), reason }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{
        code::ErrorCode,
        frame::{Frame, FrameDecoder, HEADER_BYTES},
    };

    const PARTITION: PartitionId = PartitionId { log: LogUid(0x0102), index: PartitionIndex(3) };

    fn append(batch: Bytes) -> Append {
        Append { partition: PARTITION, batch, ack: None, expected_offset: None }
    }

    fn frame(bytes: BytesMut) -> Frame {
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes.freeze());
        let frame = decoder.next_frame().unwrap().expect("a whole frame");
        assert!(decoder.is_at_frame_boundary());
        frame
    }

    fn decoded(encode: impl FnOnce(&mut BytesMut)) -> Request {
        let mut out = BytesMut::new();
        encode(&mut out);
        let frame = frame(out);
        assert_eq!(frame.header.correlation, 42);
        Request::decode(&frame.header, frame.body).unwrap()
    }

    fn refusal(api: Api, body: &[u8]) -> WireError {
        let header = FrameHeader::new(api, 1, body.len());
        Request::decode(&header, Bytes::copy_from_slice(body)).unwrap_err()
    }

    #[test]
    fn a_produce_frame_is_these_bytes() {
        let mut out = BytesMut::new();
        let append = Append { ack: Some(AckLevel::Durable), ..append(Bytes::from_static(b"xy")) };
        encode_produce_head(&mut out, 5, &append.clone().into());
        out.extend_from_slice(&append.batch);
        let expected = [
            18, 0, 0, 0, 1, 4, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // header
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, b'x', b'y',
        ];
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn a_produce_frame_with_an_expected_offset_has_it_before_the_batch() {
        let mut out = BytesMut::new();
        let append = Append { expected_offset: Some(Offset(0x0304)), ..append(Bytes::from_static(b"xy")) };
        encode_produce_head(&mut out, 5, &append.clone().into());
        out.extend_from_slice(&append.batch);
        let expected = [
            26, 0, 0, 0, 1, 4, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // header
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, b'x', b'y',
        ];
        assert_eq!(&out[..], expected);
        let frame = frame(out);
        let Request::Produce(got) = Request::decode(&frame.header, frame.body).unwrap() else { panic!() };
        assert_eq!((got.append.expected_offset, got.append.batch), (append.expected_offset, append.batch));
        assert!(!got.is_timed);
        let cut_off = [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 4, 3, 0, 0, 0, 0, 0];
        assert_eq!(refusal(Api::Produce, &cut_off).code, ErrorCode::BAD_BODY);
        let other_flag = [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0];
        assert_eq!(refusal(Api::Produce, &other_flag).code, ErrorCode::BAD_BODY);
    }

    #[test]
    fn a_timed_produce_frame_has_a_flag() {
        let mut out = BytesMut::new();
        let append = append(Bytes::from_static(b"xy"));
        encode_produce_head(&mut out, 5, &Produce { append: append.clone(), is_timed: true });
        out.extend_from_slice(&append.batch);
        let expected = [
            18, 0, 0, 0, 1, 4, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // header
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 2, 0, 0, b'x', b'y',
        ];
        assert_eq!(&out[..], expected);
        let frame = frame(out);
        let Request::Produce(got) = Request::decode(&frame.header, frame.body).unwrap() else { panic!() };
        assert!(got.is_timed && got.append.batch == append.batch);
    }

    #[test]
    fn a_fetch_frame_is_these_bytes() {
        let mut out = BytesMut::new();
        let max_wait = Duration::from_millis(6);
        encode_fetch(&mut out, 5, &Fetch { partition: PARTITION, offset: Offset(4), max_bytes: 5, max_wait });
        let expected = [
            32, 0, 0, 0, 1, 5, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // header
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn a_find_offset_frame_is_these_bytes() {
        let mut out = BytesMut::new();
        encode_find_offset(&mut out, 5, &FindOffset { partition: PARTITION, at: OffsetAt::Timestamp(7) });
        let expected = [
            24, 0, 0, 0, 1, 6, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // header
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn a_trim_frame_is_these_bytes() {
        let mut out = BytesMut::new();
        encode_trim(&mut out, 5, &Trim { partition: PARTITION, before: Offset(7) });
        let expected = [
            24, 0, 0, 0, 1, 10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // header
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn a_describe_partition_frame_is_these_bytes() {
        let mut out = BytesMut::new();
        encode_describe_partition(&mut out, 5, PARTITION);
        let expected = [
            16, 0, 0, 0, 1, 11, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // header
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn the_batch_of_a_produce_request_is_a_slice_of_the_frame() {
        let mut out = BytesMut::new();
        encode_produce_head(&mut out, 42, &append(Bytes::from_static(&[9; 100])).into());
        out.extend_from_slice(&[9; 100]);
        let frame = frame(out);
        let place = frame.body[PRODUCE_HEAD_BYTES..].as_ptr();
        let Request::Produce(Produce { append, .. }) = Request::decode(&frame.header, frame.body).unwrap() else {
            panic!()
        };
        assert_eq!((append.partition, append.ack, append.batch.len()), (PARTITION, None, 100));
        assert_eq!(append.batch.as_ptr(), place);
    }

    #[test]
    fn every_request_comes_back_as_it_was() {
        let fetch = Fetch { partition: PARTITION, offset: Offset(4), max_bytes: 5, max_wait: Duration::from_millis(6) };
        let same = |got: Fetch| {
            assert_eq!((got.partition, got.offset, got.max_bytes), (fetch.partition, fetch.offset, fetch.max_bytes));
            assert_eq!(got.max_wait, fetch.max_wait);
        };
        let Request::Fetch(got) = decoded(|out| encode_fetch(out, 42, &fetch)) else { panic!() };
        same(got);
        let Request::Subscribe(got) = decoded(|out| encode_subscribe(out, 42, &fetch)) else { panic!() };
        same(got);
        for at in [OffsetAt::Earliest, OffsetAt::Latest, OffsetAt::Timestamp(-5)] {
            let find = FindOffset { partition: PARTITION, at };
            let Request::FindOffset(got) = decoded(|out| encode_find_offset(out, 42, &find)) else { panic!() };
            assert_eq!((got.partition, got.at), (PARTITION, at));
        }
        for logs in [None, Some(vec![]), Some(vec!["a".parse().unwrap(), "b/c".parse().unwrap()])] {
            let request = MetadataRequest { logs };
            let Request::Metadata(got) = decoded(|out| encode_metadata(out, 42, &request)) else { panic!() };
            assert_eq!(got, request);
        }
        let all = LogSettings {
            ack: Some(AckLevel::Written),
            retention_ms: Some(Bound::AtMost(5)),
            retention_bytes: Some(Bound::Unlimited),
            compression: Some(Codec::Lz4),
            replication: Some(Replication { replication_factor: 3, write_quorum: 2, read_quorum: 1 }),
        };
        for settings in [LogSettings::default(), all] {
            let create = CreateLog { name: "b/c".parse().unwrap(), partitions: 8, settings };
            let Request::CreateLog(got) = decoded(|out| encode_create_log(out, 42, &create)) else { panic!() };
            assert_eq!((got.name, got.partitions, got.settings), (create.name, 8, settings));
        }
        let changes = LogChanges { ack: Some(None), compression: Some(Some(Codec::Zstd)), ..LogChanges::default() };
        let alter = AlterLog { name: "b/c".parse().unwrap(), changes };
        let Request::AlterLog(got) = decoded(|out| encode_alter_log(out, 42, &alter)) else { panic!() };
        assert_eq!((got.name, got.changes), (alter.name, changes));
        let trim = Trim { partition: PARTITION, before: Offset(9) };
        let Request::Trim(got) = decoded(|out| encode_trim(out, 42, &trim)) else { panic!() };
        assert_eq!((got.partition, got.before), (trim.partition, trim.before));
        let describe = decoded(|out| encode_describe_partition(out, 42, PARTITION));
        assert!(matches!(describe, Request::DescribePartition(PARTITION)));
        assert!(matches!(decoded(|out| encode_unpin(out, 42, PARTITION)), Request::Unpin(PARTITION)));
        let request = Move { partition: PARTITION, to: CoreId(0x0102) };
        let Request::Move(got) = decoded(|out| encode_move(out, 42, &request)) else { panic!() };
        assert_eq!((got.partition, got.to), (PARTITION, request.to));
        for (copy, accept_data_loss) in [(None, false), (Some(ReplicaId(3)), true)] {
            let recover = Recover { partition: PARTITION, copy, accept_data_loss };
            let Request::Recover(back) = decoded(|out| encode_recover(out, 42, &recover)) else { panic!() };
            assert_eq!((back.partition, back.copy, back.accept_data_loss), (PARTITION, copy, accept_data_loss));
        }
        let log = "b/c".parse().unwrap();
        let Request::DeleteLog(got) = decoded(|out| encode_delete_log(out, 42, &log)) else { panic!() };
        assert_eq!(got, log);
        assert!(matches!(decoded(|out| encode_describe_server(out, 42)), Request::DescribeServer));
        assert!(matches!(decoded(|out| encode_describe_cores(out, 42)), Request::DescribeCores));
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said() {
        for (api, body, word) in [
            (Api::Produce, &b"short"[..], "5 bytes"),
            (Api::Produce, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0], "ack level 5"),
            (Api::Produce, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0], "must be zero"),
            (Api::Fetch, &[0; 31], "31 bytes instead of 32"),
            (Api::Fetch, &[1; 32], "must be zero"),
            (Api::FindOffset, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "kind 9"),
            (Api::DescribeServer, b"{}", "2 bytes instead of 0"),
            (Api::CreateLog, br#"{"name":"a","partitions":1,"retention":5}"#, "retention"),
            (Api::CreateLog, br#"{"name":"a","partitions":1,"retention_ms":"7d"}"#, "unlimited"),
            (Api::AlterLog, br#"{"name":"a","changes":{"partitions":2}}"#, "partitions"),
            (Api::AlterLog, br#"{"name":"a"}"#, "changes"),
            (Api::Trim, &[0; 23], "23 bytes instead of 24"),
            (Api::Trim, &[1; 24], "must be zero"),
            (Api::DescribePartition, &[0; 15], "15 bytes instead of 16"),
            (Api::DescribePartition, &[1; 16], "must be zero"),
            (Api::Unpin, &[0; 15], "15 bytes instead of 16"),
            (Api::Unpin, &[1; 16], "must be zero"),
            (Api::Move, &[0; 15], "15 bytes instead of 16"),
            (Api::Move, &[1; 16], "must be zero"),
            (Api::Recover, b"{\"log\":1}", "missing field `partition`"),
            (Api::Recover, b"{\"log\":1,\"partition\":0,\"force\":1}", "unknown field `force`"),
            (Api::CreateLog, br#"{"name":"a","partitions":1,"replication":{"factor":2}}"#, "factor"),
            (Api::CreateLog, br#"{"name":"a"}"#, "partitions"),
            (Api::Metadata, b"", "EOF"),
        ] {
            let error = refusal(api, body);
            assert_eq!(error.code, ErrorCode::BAD_BODY);
            assert!(error.message.contains(word), "{}: {}", api.name(), error.message);
            assert!(error.message.contains(api.name()), "{}", error.message);
        }
    }

    #[test]
    fn a_name_that_is_none_has_its_own_error() {
        for (api, body) in [
            (Api::CreateLog, &br#"{"name":"../a","partitions":1}"#[..]),
            (Api::DeleteLog, br#"{"name":".."}"#),
            (Api::AlterLog, br#"{"name":"..","changes":{}}"#),
            (Api::Metadata, br#"{"logs":["a","/"]}"#),
        ] {
            assert_eq!(refusal(api, body).code, ErrorCode::NAME_REFUSED, "{}", api.name());
        }
    }

    #[test]
    fn other_versions_apis_and_statuses_are_refused() {
        let header = FrameHeader::new(Api::DescribeServer, 1, 0);
        let code = |header: FrameHeader| Request::decode(&header, Bytes::new()).unwrap_err().code;
        assert_eq!(code(FrameHeader { version: 2, ..header }), ErrorCode::UNSUPPORTED_VERSION);
        assert_eq!(code(FrameHeader { api: 99, ..header }), ErrorCode::UNKNOWN_API);
        assert_eq!(code(FrameHeader { api: 0, ..header }), ErrorCode::UNKNOWN_API);
        assert_eq!(code(FrameHeader { status: 1, ..header }), ErrorCode::BAD_BODY);
    }

    #[test]
    fn the_largest_batch_fits_into_a_frame() {
        let mut out = BytesMut::new();
        encode_produce_head(&mut out, 1, &append(vec![0; BATCH_BYTES_MAX].into()).into());
        assert_eq!(out.len(), HEADER_BYTES + PRODUCE_HEAD_BYTES);
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(api in 0u8..13, body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let header = FrameHeader { api, body_bytes: body.len() as u32, ..FrameHeader::new(Api::Fetch, 1, 0) };
            let _ = Request::decode(&header, body.into());
        }

        #[test]
        fn arbitrary_json_never_panics(
            api in 1u8..4,
            body in r#"\{("name"|"logs"|"partitions"|:|,|\[|"a"|[0-9]| )*\}"#,
        ) {
            let header = FrameHeader { api, body_bytes: body.len() as u32, ..FrameHeader::new(Api::Fetch, 1, 0) };
            let _ = Request::decode(&header, body.into());
        }
    }
}

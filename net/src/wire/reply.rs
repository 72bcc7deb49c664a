//! Replies without error: what a server writes and a client reads. Errors are in [`super::code`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pyralog_engine::{
    catalog::LogEntry,
    limits,
    name::LogName,
    settings::{LogSettings, Replication},
    shard::{
        control::{CoreStatus, Moved, PartitionStatus, RecoveryReport},
        request::{Appended, Fetched, Found},
        stages::{Stage, StageClock, Stages},
    },
    types::{AckLevel, CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Api,
    code::ProtocolError,
    frame::{BODY_BYTES_MAX, FrameHeader},
    request::{bad_body, exactly, put_json},
};

/// Bytes that stand before the batches in the body of a fetch reply.
pub const FETCHED_HEAD_BYTES: usize = 24;

const APPENDED_BYTES: usize = 16;
/// The flag of a produce reply about a batch that was there already.
const IS_DUPLICATE: u8 = 1;
/// The flag of a produce reply that says where the time went, in [`STAGES_BYTES`] more.
const HAS_STAGES: u8 = 2;
const STAGES_BYTES: usize = 4 * Stage::COUNT;
const FOUND_BYTES: usize = 32;

const _: () = assert!(FETCHED_HEAD_BYTES + limits::BATCH_BYTES_MAX <= BODY_BYTES_MAX, "the largest batch must fit");
const _: () = assert!(limits::FETCH_BYTES_MAX as usize <= limits::BATCH_BYTES_MAX, "a full fetch must fit");

/// What a server says of itself and of logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The server's version.
    pub version: String,
    /// How many cores it has; N in the steering of connections.
    pub cores: u16,
    /// The core that answers, which is the one this connection ends at.
    pub core: CoreId,
    /// What the server accepts.
    pub limits: Limits,
    /// The ack level of writes to a log that names none.
    pub default_ack: AckLevel,
    /// The logs asked for that exist, or all, without owners.
    pub logs: Vec<LogMetadata>,
}

/// What a server accepts; see `pyralog_engine::limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of a batch, header included.
    pub batch_bytes_max: u32,
    /// Records of a batch.
    pub batch_records_max: u32,
    /// Bytes of a record.
    pub record_bytes_max: u32,
    /// Bytes of one fetch's answer, unless a single batch is larger.
    pub fetch_bytes_max: u32,
    /// How long one fetch may wait, in milliseconds.
    pub fetch_wait_ms_max: u32,
    /// Partitions of a log.
    pub partitions_per_log_max: u32,
}

/// One log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMetadata {
    /// Its full name.
    pub name: LogName,
    /// Its number.
    pub uid: LogUid,
    /// How many partitions it has.
    pub partitions: u32,
    /// The core that owns each partition, in order; absent in a list of all logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<Vec<CoreId>>,
    /// What holds for it.
    #[serde(flatten)]
    pub settings: LogSettings,
    /// What its copies were before a change of them that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Replication>,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
}

/// What a server is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerDescription {
    /// The server's version.
    pub version: String,
    /// The profile in force.
    pub profile: String,
    /// The ack level of writes that name none.
    pub ack: AckLevel,
    /// What that level promises, in one sentence.
    pub guarantee: String,
    /// What the copies of logs that do not say it themselves are worth, in one sentence; empty of an earlier version.
    #[serde(default)]
    pub copies: String,
    /// How many cores it has.
    pub cores: u16,
    /// The configuration in force.
    pub config: Value,
}

/// The reply to a fetch as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchReply {
    /// The partition's first offset.
    pub start_offset: Offset,
    /// The offset after the last visible record.
    pub high_watermark: Offset,
    /// The offset after the last record, visible or not.
    pub log_end_offset: Offset,
    /// Whole batches end to end, a slice of the frame's body. The first holds the offset asked for.
    pub batches: Bytes,
}

impl Limits {
    /// The limits of this version of the engine.
    pub const OURS: Limits = Limits {
        batch_bytes_max: limits::BATCH_BYTES_MAX as u32,
        batch_records_max: limits::BATCH_RECORDS_MAX,
        record_bytes_max: limits::RECORD_BYTES_MAX as u32,
        fetch_bytes_max: limits::FETCH_BYTES_MAX,
        fetch_wait_ms_max: limits::FETCH_WAIT_MS_MAX,
        partitions_per_log_max: limits::PARTITIONS_PER_LOG_MAX,
    };
}

impl LogMetadata {
    /// The log with its owners, of which `owner` knows each.
    pub fn with_owners(log: &LogEntry, owner: impl Fn(PartitionId) -> CoreId) -> Self {
        LogMetadata { owners: Some(log.partition_ids().map(owner).collect()), ..Self::without_owners(log) }
    }

    /// The log as it stands in a list of all.
    pub fn without_owners(log: &LogEntry) -> Self {
        LogMetadata {
            name: log.name.clone(),
            uid: log.uid,
            partitions: log.partitions,
            owners: None,
            settings: log.settings,
            former: log.former,
            created_ms: log.created_ms,
        }
    }

    /// A partition of this log.
    pub fn partition(&self, index: PartitionIndex) -> PartitionId {
        PartitionId { log: self.uid, index }
    }
}

/// Appends the reply to a produce request.
pub fn encode_appended(out: &mut BytesMut, correlation: u64, appended: &Appended) {
    let stages = appended.clock.map(|clock| clock.stages());
    let stages_bytes = if stages.is_some() { STAGES_BYTES } else { 0 };
    FrameHeader::new(Api::Produce, correlation, APPENDED_BYTES + stages_bytes).encode(out);
    out.put_u64_le(appended.base_offset.0);
    out.put_u32_le(appended.count);
    out.put_u8(appended.level.code());
    let duplicate = if appended.duplicate { IS_DUPLICATE } else { 0 };
    out.put_u8(duplicate | if stages.is_some() { HAS_STAGES } else { 0 });
    out.put_bytes(0, 2);
    stages.into_iter().flat_map(|stages| stages.0).for_each(|nanos| out.put_u32_le(nanos));
}

/// Appends all of a reply to a fetch, or of a subscription's next frame, but the batches, which the caller sends next,
/// uncopied.
pub fn encode_fetched_head(out: &mut BytesMut, api: Api, correlation: u64, fetched: &Fetched) {
    assert!(matches!(api, Api::Fetch | Api::Subscribe), "a {} reply has no batches", api.name());
    let batches: usize = fetched.batches.iter().map(Bytes::len).sum();
    FrameHeader::new(api, correlation, FETCHED_HEAD_BYTES + batches).encode(out);
    out.put_u64_le(fetched.start_offset.0);
    out.put_u64_le(fetched.high_watermark.0);
    out.put_u64_le(fetched.log_end_offset.0);
}

/// Appends the reply to a find offset request, or to a trim request.
pub fn encode_found(out: &mut BytesMut, api: Api, correlation: u64, found: &Found) {
    assert!(matches!(api, Api::FindOffset | Api::Trim), "a {} reply has no offset", api.name());
    FrameHeader::new(api, correlation, FOUND_BYTES).encode(out);
    for offset in [found.offset, found.start_offset, found.high_watermark, found.log_end_offset] {
        out.put_u64_le(offset.0);
    }
}

/// Appends the reply to a metadata request.
pub fn encode_metadata(out: &mut BytesMut, correlation: u64, metadata: &Metadata) {
    put_json(out, Api::Metadata, correlation, metadata);
}

/// Appends the reply to a create log request.
pub fn encode_log_created(out: &mut BytesMut, correlation: u64, log: &LogMetadata) {
    put_json(out, Api::CreateLog, correlation, log);
}

/// Appends the reply to an alter log request.
pub fn encode_log_altered(out: &mut BytesMut, correlation: u64, log: &LogMetadata) {
    put_json(out, Api::AlterLog, correlation, log);
}

/// Appends the reply to a describe partition request.
pub fn encode_partition_description(out: &mut BytesMut, correlation: u64, status: &PartitionStatus) {
    put_json(out, Api::DescribePartition, correlation, status);
}

/// Appends the reply to a recover request.
pub fn encode_recovery(out: &mut BytesMut, correlation: u64, report: &RecoveryReport) {
    put_json(out, Api::Recover, correlation, report);
}

/// Appends the reply to a move request.
pub fn encode_moved(out: &mut BytesMut, correlation: u64, moved: &Moved) {
    put_json(out, Api::Move, correlation, moved);
}

/// Appends the reply to a describe cores request.
pub fn encode_cores(out: &mut BytesMut, correlation: u64, cores: &[CoreStatus]) {
    put_json(out, Api::DescribeCores, correlation, &cores);
}

/// Appends the reply to a delete log request.
pub fn encode_log_deleted(out: &mut BytesMut, correlation: u64) {
    FrameHeader::new(Api::DeleteLog, correlation, 0).encode(out);
}

/// Appends the reply to an unpin request.
pub fn encode_unpinned(out: &mut BytesMut, correlation: u64) {
    FrameHeader::new(Api::Unpin, correlation, 0).encode(out);
}

/// Appends the reply to a describe server request.
pub fn encode_server_description(out: &mut BytesMut, correlation: u64, description: &ServerDescription) {
    put_json(out, Api::DescribeServer, correlation, description);
}

/// Reads the reply to a produce request.
///
/// Errors: `BadBody`.
pub fn decode_appended(mut body: &[u8]) -> Result<Appended, ProtocolError> {
    // A newer server may set more flags.
    let flags = body.get(APPENDED_BYTES - 3).copied().unwrap_or(0);
    let is_timed = flags & HAS_STAGES != 0;
    exactly(Api::Produce, body, if is_timed { APPENDED_BYTES + STAGES_BYTES } else { APPENDED_BYTES })?;
    let (base_offset, count, level) = (Offset(body.get_u64_le()), body.get_u32_le(), body.get_u8());
    let duplicate = flags & IS_DUPLICATE != 0;
    body.advance(3);
    let clock = is_timed.then(|| StageClock::from(Stages(std::array::from_fn(|_| body.get_u32_le()))));
    let Some(level) = AckLevel::from_code(level) else {
        return Err(bad_body(Api::Produce, format!("there is no ack level {level}")));
    };
    Ok(Appended { base_offset, count, level, duplicate, clock })
}

/// Reads the reply to a fetch, or a subscription's frame.
///
/// Errors: `BadBody`.
pub fn decode_fetched(mut body: Bytes) -> Result<FetchReply, ProtocolError> {
    if body.len() < FETCHED_HEAD_BYTES {
        let reason = format!("it has {} bytes, fewer than {FETCHED_HEAD_BYTES}", body.len());
        return Err(bad_body(Api::Fetch, reason));
    }
    let batches = body.split_off(FETCHED_HEAD_BYTES);
    Ok(FetchReply {
        start_offset: Offset(body.get_u64_le()),
        high_watermark: Offset(body.get_u64_le()),
        log_end_offset: Offset(body.get_u64_le()),
        batches,
    })
}

/// Reads the reply to a find offset request.
///
/// Errors: `BadBody`.
pub fn decode_found(body: &[u8]) -> Result<Found, ProtocolError> {
    decode_offsets(Api::FindOffset, body)
}

/// Reads the reply to a trim request.
///
/// Errors: `BadBody`.
pub fn decode_trimmed(body: &[u8]) -> Result<Found, ProtocolError> {
    decode_offsets(Api::Trim, body)
}

fn decode_offsets(api: Api, mut body: &[u8]) -> Result<Found, ProtocolError> {
    exactly(api, body, FOUND_BYTES)?;
    let mut next = || Offset(body.get_u64_le());
    Ok(Found { offset: next(), start_offset: next(), high_watermark: next(), log_end_offset: next() })
}

/// Reads a reply that is JSON: [`Metadata`], [`LogMetadata`], [`ServerDescription`], [`PartitionStatus`] or
/// [`RecoveryReport`]. Unknown
/// fields are skipped: a newer server may say more.
///
/// Errors: `BadBody`.
pub fn decode_json<T: DeserializeOwned>(api: Api, body: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(body).map_err(|error| bad_body(api, error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pyralog_engine::{
        record::Codec,
        settings::{Bound, Replication},
    };

    use super::*;
    use crate::wire::frame::{Frame, FrameDecoder};

    fn frame(encode: impl FnOnce(&mut BytesMut)) -> Frame {
        let mut out = BytesMut::new();
        encode(&mut out);
        let mut decoder = FrameDecoder::new();
        decoder.push(out.freeze());
        decoder.next_frame().unwrap().expect("a whole frame")
    }

    #[test]
    fn a_timed_produce_reply_ends_with_its_stages() {
        let clock = Some(StageClock::from(Stages([1, 2, 3, 4, 5, 6, 0x0708])));
        let appended = Appended { base_offset: Offset(2), count: 4, level: AckLevel::Durable, duplicate: true, clock };
        let mut out = BytesMut::new();
        encode_appended(&mut out, 5, &appended);
        assert_eq!(out[..4], [44, 0, 0, 0]);
        assert_eq!(out[16..32], [2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3, 3, 0, 0]);
        assert_eq!(out[56..], [8, 7, 0, 0]);
        assert_eq!(decode_appended(&out[16..]), Ok(appended));
        assert!(decode_appended(&out[16..59]).is_err(), "it is cut off");
        assert!(decode_appended(&out[16..32]).is_err(), "the stages are missing");
    }

    #[test]
    fn a_produce_reply_is_these_bytes() {
        for duplicate in [false, true] {
            let level = AckLevel::Written;
            let appended = Appended { base_offset: Offset(0x0203), count: 4, level, duplicate, clock: None };
            let mut out = BytesMut::new();
            encode_appended(&mut out, 5, &appended);
            let expected = [
                16,
                0,
                0,
                0,
                1,
                4,
                0,
                0,
                5,
                0,
                0,
                0,
                0,
                0,
                0,
                0, // header
                3,
                2,
                0,
                0,
                0,
                0,
                0,
                0,
                4,
                0,
                0,
                0,
                2,
                u8::from(duplicate),
                0,
                0,
            ];
            assert_eq!(&out[..], expected);
            assert_eq!(decode_appended(&expected[16..]), Ok(appended));
        }
    }

    #[test]
    fn a_fetch_reply_carries_its_batches_end_to_end() {
        let batches = vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        let (start_offset, high_watermark, log_end_offset) = (Offset(1), Offset(2), Offset(3));
        let fetched = Fetched { start_offset, high_watermark, log_end_offset, batches };
        let frame = frame(|out| {
            encode_fetched_head(out, Api::Fetch, 5, &fetched);
            fetched.batches.iter().for_each(|batch| out.extend_from_slice(batch));
        });
        let reply = decode_fetched(frame.body).unwrap();
        assert_eq!((reply.start_offset, reply.high_watermark), (start_offset, high_watermark));
        assert_eq!((reply.log_end_offset, &reply.batches[..]), (log_end_offset, &b"onetwo"[..]));
    }

    #[test]
    fn offsets_found_come_back_in_their_places() {
        let found =
            Found { offset: Offset(4), start_offset: Offset(1), high_watermark: Offset(5), log_end_offset: Offset(6) };
        assert_eq!(decode_found(&frame(|out| encode_found(out, Api::FindOffset, 5, &found)).body), Ok(found));
        assert_eq!(decode_trimmed(&frame(|out| encode_found(out, Api::Trim, 5, &found)).body), Ok(found));
    }

    #[test]
    fn metadata_comes_back_and_may_say_more_than_we_know() {
        let replication = Replication { replication_factor: 3, write_quorum: 2, read_quorum: 1 };
        let (compression, replication) = (Some(Codec::Lz4), Some(replication));
        let settings = LogSettings { compression, replication, ..LogSettings::default() };
        let log = LogEntry {
            uid: LogUid(4),
            name: "a/b".parse().unwrap(),
            partitions: 3,
            settings,
            former: None,
            founding: false,
            drives: 1,
            dealt: false,
            leaders: Vec::new(),
            places: Default::default(),
            pinned: Vec::new(),
            created_ms: 9,
        };
        let metadata = Metadata {
            version: "1".to_owned(),
            cores: 2,
            core: CoreId(1),
            limits: Limits::OURS,
            default_ack: AckLevel::Durable,
            logs: vec![LogMetadata::with_owners(&log, |p| CoreId(p.index.0 as u16 % 2))],
        };
        let body = frame(|out| encode_metadata(out, 5, &metadata)).body;
        let mut value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["logs"][0]["owners"], serde_json::json!([0, 1, 0]));
        assert_eq!(value["logs"][0]["compression"], "lz4");
        let replication = serde_json::json!({ "replication_factor": 3, "write_quorum": 2, "read_quorum": 1 });
        assert_eq!(value["logs"][0]["replication"], replication);
        value["news"] = true.into();
        assert_eq!(decode_json(Api::Metadata, value.to_string().as_bytes()), Ok(metadata));
    }

    #[test]
    fn a_list_of_the_most_logs_with_the_longest_names_fits_into_a_frame() {
        let part = "x".repeat(limits::NAME_BYTES_MAX);
        let log = LogMetadata {
            name: format!("{part}/{part}").parse().unwrap(),
            uid: LogUid(u64::MAX),
            partitions: u32::MAX,
            owners: None,
            settings: LogSettings {
                ack: Some(AckLevel::Received),
                retention_ms: Some(Bound::AtMost(u64::MAX)),
                retention_bytes: Some(Bound::AtMost(u64::MAX)),
                compression: Some(Codec::None),
                replication: Some(Replication { replication_factor: 8, write_quorum: 8, read_quorum: 8 }),
            },
            former: Some(Replication { replication_factor: 8, write_quorum: 8, read_quorum: 8 }),
            created_ms: i64::MIN,
        };
        let bytes_each = serde_json::to_vec(&log).unwrap().len() + 1;
        assert!(bytes_each * limits::LOGS_MAX < limits::BATCH_BYTES_MAX, "{bytes_each} bytes a log");
        let owners = vec![CoreId(255); limits::PARTITIONS_PER_LOG_MAX as usize];
        let bytes_each = serde_json::to_vec(&LogMetadata { owners: Some(owners), ..log }).unwrap().len() + 1;
        let names = crate::wire::request::METADATA_NAMES_MAX;
        assert!(bytes_each * names < limits::BATCH_BYTES_MAX, "{bytes_each} bytes a log with its owners");
    }

    proptest! {
        #[test]
        fn arbitrary_replies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_appended(&body);
            let _ = decode_found(&body);
            let _ = decode_trimmed(&body);
            let _ = decode_json::<Metadata>(Api::Metadata, &body);
            let _ = decode_fetched(body.into());
        }
    }
}

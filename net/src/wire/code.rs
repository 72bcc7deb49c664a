//! Errors as numbers: the one mapping between what the engine or the protocol refuses and what the wire says.
//!
//! A code never changes its meaning. Its hundreds tell the class, so that a client treats a code it does not know as
//! the server means it: 1 protocol, 2 refused, 3 retriable, 4 fenced, 5 corrupt, 6 unknown outcome.

use std::fmt;

use bytes::BytesMut;
use pyralog_engine::error::{ErrorClass, RequestError};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{
    VERSION,
    frame::{BODY_BYTES_MAX, FrameHeader},
};

/// A breach of the protocol itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// No api has this number.
    #[error("there is no api {api}")]
    UnknownApi {
        /// The number.
        api: u8,
    },
    /// The frame is of another version.
    #[error("version {version} of the protocol is not spoken here; this is version {VERSION}")]
    UnsupportedVersion {
        /// The frame's version.
        version: u8,
    },
    /// The body is not what the api has.
    #[error("the body of a {api} frame is wrong: {reason}")]
    BadBody {
        /// The api's name.
        api: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The body is longer than a body may be; the stream cannot be read further.
    #[error("a frame of {body_bytes} bytes is too large; a body has at most {BODY_BYTES_MAX}")]
    FrameTooLarge {
        /// Bytes that the frame's header announced.
        body_bytes: u32,
    },
    /// The request does not belong on this stream.
    #[error("{reason}")]
    Misplaced {
        /// What belongs where.
        reason: String,
    },
}

/// The number of an error on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u16);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl ErrorCode {
            $($(#[$doc])* pub const $name: ErrorCode = ErrorCode($number);)*

            /// Every code that this version knows, with its name.
            pub const ALL: &[(ErrorCode, &'static str)] = &[$((ErrorCode($number), stringify!($name))),*];
        }
    };
}

codes! {
    /// No api has this number.
    UNKNOWN_API = 101;
    /// The frame is of another version.
    UNSUPPORTED_VERSION = 102;
    /// The body is not what the api has.
    BAD_BODY = 103;
    /// The body is longer than a body may be.
    FRAME_TOO_LARGE = 104;
    /// The request does not belong on this stream.
    MISPLACED = 105;
    /// A frame was begun and not finished in time. Only as the code of a reset stream.
    FRAME_TIMEOUT = 106;
    /// No log has this name.
    UNKNOWN_LOG = 201;
    /// No partition has this number, or its log was deleted.
    UNKNOWN_PARTITION = 202;
    /// The log has fewer partitions.
    PARTITION_OUT_OF_RANGE = 203;
    /// The offset is before the first record or after the last.
    OFFSET_OUT_OF_RANGE = 204;
    /// The batch breaks the format or a limit.
    BATCH_REFUSED = 205;
    /// The text is no log name.
    NAME_REFUSED = 206;
    /// A log of this name exists.
    LOG_EXISTS = 207;
    /// The log's settings break a limit.
    SETTINGS_REFUSED = 208;
    /// A partition is not led by an operator's word.
    RECOVERY_REFUSED = 209;
    /// A partition cannot be moved to that core, or not now.
    MOVE_REFUSED = 210;
    /// The append was to be made at another offset than the next one.
    WRONG_OFFSET = 211;
    /// A batch of the producer is missing before this one.
    OUT_OF_SEQUENCE = 212;
    /// A newer life of the producer has written.
    PRODUCER_FENCED = 213;
    /// The partition knows no batch of the producer, and this one is not its first.
    UNKNOWN_PRODUCER = 214;
    /// The producer's sequence is taken by another batch.
    SEQUENCE_REUSED = 215;
    /// The core's memory is used up.
    OVERLOADED = 301;
    /// The server is stopping.
    SHUTTING_DOWN = 302;
    /// The drive is full.
    DISK_FULL = 303;
    /// The partition's log was created just now, and is not open everywhere.
    PARTITION_OPENING = 304;
    /// The partition is led by a copy on another core, or by none at the moment.
    NOT_LEADER = 305;
    /// A drive does not answer, and a change of the catalogue was not begun.
    DRIVE_SILENT = 306;
    /// The partition stopped accepting writes after a fault.
    READ_ONLY = 401;
    /// The catalogue of logs could not be written.
    CATALOG_FAILED = 402;
    /// Stored bytes are damaged.
    CORRUPT = 501;
    /// Reading failed.
    READ_FAILED = 502;
    /// Whether the write was stored is not known.
    OUTCOME_UNKNOWN = 601;
    /// A drive does not answer, and whether a change of the catalogue is made is not known.
    CHANGE_UNKNOWN = 602;
}

impl ErrorCode {
    /// Who must act. A protocol error is the caller's; a code of no known hundred is taken for a refusal, which is
    /// never retried.
    pub fn class(self) -> ErrorClass {
        match self.0 / 100 {
            3 => ErrorClass::Retriable,
            4 => ErrorClass::Fenced,
            5 => ErrorClass::Corrupt,
            6 => ErrorClass::Unknown,
            _ => ErrorClass::Refused,
        }
    }

    fn name(self) -> Option<&'static str> {
        ErrorCode::ALL.iter().find(|(code, _)| *code == self).map(|(_, name)| *name)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name().unwrap_or("ErrorCode"), self.0)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An error as the wire carries it: what a server sends, and what a client got.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{message}")]
pub struct WireError {
    /// Its number.
    pub code: ErrorCode,
    /// Its text, complete: what was wrong, and what is allowed.
    pub message: String,
    /// The fields of the cause, by name; for example `start` and `end` of an offset out of range.
    pub details: Map<String, Value>,
}

impl WireError {
    /// Who must act.
    pub fn class(&self) -> ErrorClass {
        self.code.class()
    }

    /// Whether the same request may succeed later without anybody doing anything.
    pub fn is_retriable(&self) -> bool {
        self.class() == ErrorClass::Retriable
    }

    /// A field of the cause that is a number.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.details.get(field)?.as_u64()
    }

    /// Appends the reply frame that says this about request `correlation` of api number `api`.
    pub fn encode(&self, out: &mut BytesMut, api: u8, correlation: u64) {
        let mut body = self.details.clone();
        body.insert("message".to_owned(), Value::String(self.message.clone()));
        let body = Value::Object(body).to_string();
        let header =
            FrameHeader { body_bytes: body.len() as u32, version: VERSION, api, status: self.code.0, correlation };
        assert!(body.len() <= BODY_BYTES_MAX, "an error message of {} bytes", body.len());
        header.encode(out);
        out.extend_from_slice(body.as_bytes());
    }

    /// What a reply with `status` and this body says. Never fails: a body that is no JSON object still has its code.
    pub fn decode(status: u16, body: &[u8]) -> Self {
        let mut details: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
        let code = ErrorCode(status);
        let message = match details.remove("message") {
            Some(Value::String(message)) => message,
            _ => format!("the server answered with error {code} and no message"),
        };
        WireError { code, message, details }
    }
}

fn wire_error(code: ErrorCode, message: String, details: Value) -> WireError {
    let details = match details {
        Value::Object(details) => details,
        _ => Map::new(),
    };
    WireError { code, message, details }
}

impl From<&RequestError> for WireError {
    fn from(error: &RequestError) -> Self {
        use ErrorCode as C;
        use RequestError as E;
        let (code, details) = match error {
            E::UnknownLog { name } => (C::UNKNOWN_LOG, json!({ "name": name })),
            E::UnknownPartition { partition } => {
                (C::UNKNOWN_PARTITION, json!({ "log": partition.log, "partition": partition.index }))
            }
            E::PartitionOutOfRange { log, partition, partitions } => {
                (C::PARTITION_OUT_OF_RANGE, json!({ "log": log, "partition": partition, "partitions": partitions }))
            }
            E::PartitionOpening { partition } => {
                (C::PARTITION_OPENING, json!({ "log": partition.log, "partition": partition.index }))
            }
            E::NotLeader { partition, leader } => {
                (C::NOT_LEADER, json!({ "log": partition.log, "partition": partition.index, "leader": leader }))
            }
            E::OffsetOutOfRange { offset, start, end } => {
                (C::OFFSET_OUT_OF_RANGE, json!({ "offset": offset, "start": start, "end": end }))
            }
            E::BatchRefused { reason } => (C::BATCH_REFUSED, json!({ "reason": reason })),
            E::WrongOffset { expected, end } => (C::WRONG_OFFSET, json!({ "expected": expected, "end": end })),
            E::OutOfSequence { producer, expected, got } => {
                (C::OUT_OF_SEQUENCE, json!({ "producer": producer, "expected": expected, "got": got }))
            }
            E::ProducerFenced { producer, epoch, current } => {
                (C::PRODUCER_FENCED, json!({ "producer": producer, "epoch": epoch, "current": current }))
            }
            E::UnknownProducer { producer, sequence } => {
                (C::UNKNOWN_PRODUCER, json!({ "producer": producer, "sequence": sequence }))
            }
            E::SequenceReused { producer, sequence, base_offset } => {
                (C::SEQUENCE_REUSED, json!({ "producer": producer, "sequence": sequence, "base_offset": base_offset }))
            }
            E::NameRefused(name) => (C::NAME_REFUSED, json!({ "text": name.text, "reason": name.reason })),
            E::LogExists { name } => (C::LOG_EXISTS, json!({ "name": name })),
            E::SettingsRefused { reason } => (C::SETTINGS_REFUSED, json!({ "reason": reason })),
            E::RecoveryRefused { reason } => (C::RECOVERY_REFUSED, json!({ "reason": reason })),
            E::MoveRefused { reason } => (C::MOVE_REFUSED, json!({ "reason": reason })),
            E::Overloaded => (C::OVERLOADED, Value::Null),
            E::ShuttingDown => (C::SHUTTING_DOWN, Value::Null),
            E::DiskFull { path, free_bytes, reserve_bytes } => (
                C::DISK_FULL,
                json!({ "path": path.display().to_string(), "free_bytes": free_bytes, "reserve_bytes": reserve_bytes }),
            ),
            E::ReadOnly { partition, reason } => {
                (C::READ_ONLY, json!({ "log": partition.log, "partition": partition.index, "reason": reason }))
            }
            E::Corrupt { file, position, from, to, reason } => {
                let file = file.display().to_string();
                let details = json!({ "file": file, "position": position, "from": from, "to": to, "reason": reason });
                (C::CORRUPT, details)
            }
            E::ReadFailed { file, position, from, to, reason } => {
                let file = file.display().to_string();
                let details = json!({ "file": file, "position": position, "from": from, "to": to, "reason": reason });
                (C::READ_FAILED, details)
            }
            E::OutcomeUnknown { reason } => (C::OUTCOME_UNKNOWN, json!({ "reason": reason })),
            E::DriveSilent { path } => (C::DRIVE_SILENT, json!({ "path": path.display().to_string() })),
            E::ChangeUnknown { path } => (C::CHANGE_UNKNOWN, json!({ "path": path.display().to_string() })),
            E::CatalogFailed { reason } => (C::CATALOG_FAILED, json!({ "reason": reason })),
        };
        wire_error(code, error.to_string(), details)
    }
}

impl From<RequestError> for WireError {
    fn from(error: RequestError) -> Self {
        WireError::from(&error)
    }
}

impl From<ProtocolError> for WireError {
    fn from(error: ProtocolError) -> Self {
        use ProtocolError as E;
        let (code, details) = match &error {
            E::UnknownApi { api } => (ErrorCode::UNKNOWN_API, json!({ "api": api })),
            E::UnsupportedVersion { version } => {
                (ErrorCode::UNSUPPORTED_VERSION, json!({ "version": version, "supported": [VERSION] }))
            }
            E::BadBody { api, reason } => (ErrorCode::BAD_BODY, json!({ "api": api, "reason": reason })),
            E::FrameTooLarge { body_bytes } => {
                (ErrorCode::FRAME_TOO_LARGE, json!({ "body_bytes": body_bytes, "body_bytes_max": BODY_BYTES_MAX }))
            }
            E::Misplaced { .. } => (ErrorCode::MISPLACED, Value::Null),
        };
        wire_error(code, error.to_string(), details)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pyralog_engine::types::{CoreId, LogUid, Offset, PartitionId, PartitionIndex, ProducerId, Sequence};

    use super::*;
    use crate::wire::{Api, frame::FrameDecoder};

    fn one_of_each() -> Vec<RequestError> {
        use RequestError as E;
        let partition = PartitionId { log: LogUid(7), index: PartitionIndex(3) };
        let (log, reason) = ("a/b".parse().unwrap(), "because".to_owned());
        let (producer, sequence) = (ProducerId(u64::MAX), Sequence(u32::MAX));
        vec![
            E::UnknownLog { name: "a".into() },
            E::UnknownPartition { partition },
            E::PartitionOpening { partition },
            E::NotLeader { partition, leader: Some(CoreId(1)) },
            E::PartitionOutOfRange { log, partition: partition.index, partitions: 2 },
            E::OffsetOutOfRange { offset: Offset(9), start: Offset(1), end: Offset(5) },
            E::BatchRefused { reason: reason.clone() },
            E::NameRefused("..".parse::<pyralog_engine::name::LogName>().unwrap_err()),
            E::WrongOffset { expected: Offset(4), end: Offset(5) },
            E::OutOfSequence { producer, expected: sequence, got: Sequence(3) },
            E::ProducerFenced { producer, epoch: 3, current: u32::MAX },
            E::UnknownProducer { producer, sequence },
            E::SequenceReused { producer, sequence, base_offset: Offset(5) },
            E::LogExists { name: "a/b".parse().unwrap() },
            E::SettingsRefused { reason: reason.clone() },
            E::RecoveryRefused { reason: reason.clone() },
            E::MoveRefused { reason: reason.clone() },
            E::Overloaded,
            E::ShuttingDown,
            E::DiskFull { path: "/d".into(), free_bytes: 7, reserve_bytes: 9 },
            E::ReadOnly { partition, reason: reason.clone() },
            E::Corrupt { file: "/d/f".into(), position: 4096, from: Offset(3), to: Offset(5), reason: reason.clone() },
            E::ReadFailed { file: "/d/f".into(), position: 8, from: Offset(3), to: Offset(5), reason: reason.clone() },
            E::OutcomeUnknown { reason: reason.clone() },
            E::DriveSilent { path: "/d".into() },
            E::ChangeUnknown { path: "/d".into() },
            E::CatalogFailed { reason },
        ]
    }

    #[test]
    fn every_error_of_the_engine_keeps_class_message_and_fields_over_the_wire() {
        let mut codes = BTreeSet::new();
        for error in one_of_each() {
            let mut out = BytesMut::new();
            WireError::from(&error).encode(&mut out, Api::Fetch.number(), 5);
            let mut decoder = FrameDecoder::new();
            decoder.push(out.freeze());
            let frame = decoder.next_frame().unwrap().unwrap();
            let got = WireError::decode(frame.header.status, &frame.body);
            assert_eq!(got, WireError::from(&error));
            assert_eq!((got.class(), got.is_retriable()), (error.class(), error.is_retriable()), "{error}");
            assert_eq!(got.message, error.to_string());
            assert!(codes.insert(got.code.0), "two errors have the code {}", got.code);
        }
    }

    #[test]
    fn the_codes_in_the_document_are_the_codes() {
        let document = include_str!("../../../docs/PROTOCOL.md");
        for (code, name) in ErrorCode::ALL {
            let row = format!("| {code} | {} |", name.to_lowercase().replace('_', " "));
            assert!(document.contains(&row), "PROTOCOL.md lacks `{row}`");
        }
    }

    #[test]
    fn the_true_range_comes_with_an_offset_out_of_range() {
        let error = RequestError::OffsetOutOfRange { offset: Offset(9), start: Offset(1), end: Offset(5) };
        let error = WireError::from(error);
        assert_eq!((error.number("start"), error.number("end")), (Some(1), Some(5)));
    }

    #[test]
    fn an_error_without_a_readable_body_still_has_its_code_and_class() {
        let error = WireError::decode(399, b"\xffnot json");
        assert!(error.is_retriable());
        assert!(error.message.contains("399"));
        assert!(!WireError::decode(9999, b"").is_retriable());
    }
}

//! What a client's call can come to besides success: three outcomes of a write, and reasons with who must act.

use std::{net::SocketAddr, time::Duration};

use pyralog_engine::{
    error::{ErrorClass, RequestError},
    name::NameError,
    record::BatchError,
    types::Offset,
};
use thiserror::Error;

use super::ack::BatchAck;
use crate::{
    fingerprint::Fingerprint,
    wire::code::{ErrorCode, ProtocolError, WireError},
};

/// The result of a client's call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not succeed.
///
/// A write has three outcomes: acknowledged, refused (nothing of it was stored) and unknown. The last is
/// [`Error::Unknown`], or [`Error::Partial`] when some of a batch's partitions were stored; every other error of a
/// write means that it was not stored.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused the request; see [`Error::code`] and [`Error::detail`].
    #[error(transparent)]
    Server(Box<WireError>),
    /// Whether the write was stored is not known: the connection or the server failed before it was acknowledged.
    #[error("whether the write was stored is not known: {reason}")]
    Unknown {
        /// What happened.
        reason: String,
    },
    /// Some parts of a batch of records were stored, and others were not or may not have been.
    #[error("of the batch, {} records were stored before this: {error}", stored.count())]
    Partial {
        /// What was stored.
        stored: Box<BatchAck>,
        /// What befell the first part that was not.
        error: Box<Error>,
    },
    /// No connection to the server could be had, or it ended before the request was sent or taken up. Nothing was
    /// stored.
    #[error("no connection to the server at {address}: {reason}")]
    Unavailable {
        /// The server.
        address: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// The server did not answer a read in time.
    #[error("the server at {address} gave no answer within {} ms", waited.as_millis())]
    TimedOut {
        /// The server.
        address: SocketAddr,
        /// The client's timeout.
        waited: Duration,
    },
    /// The server's certificate is not the one expected.
    #[error("{}", not_trusted(*address, *seen, expected))]
    NotTrusted {
        /// The server.
        address: SocketAddr,
        /// The fingerprint of the certificate that it showed, if it showed one.
        seen: Option<Fingerprint>,
        /// The fingerprints that would have been accepted; none if nothing vouches for any.
        expected: Vec<Fingerprint>,
    },
    /// A record or a batch breaks a limit.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The text is no log's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting of the client, or an address, is not usable.
    #[error("{reason}")]
    Setting {
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The server broke the protocol: a fault of the server or of this client.
    #[error("the server's answer makes no sense: {0}")]
    Protocol(#[from] ProtocolError),
    /// The client or the producer was closed.
    #[error("this {what} was closed")]
    Closed {
        /// What was closed.
        what: &'static str,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody doing anything. A write with such an error was not
    /// stored.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Server(error) => error.is_retriable(),
            Error::Unavailable { .. } | Error::TimedOut { .. } => true,
            _ => false,
        }
    }

    /// Whether a write with this error may have been stored.
    pub fn is_unknown(&self) -> bool {
        match self {
            Error::Unknown { .. } => true,
            Error::Partial { error, .. } => error.is_unknown(),
            _ => false,
        }
    }

    /// Who must act.
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::Server(error) => error.class(),
            Error::Unknown { .. } => ErrorClass::Unknown,
            Error::Partial { error, .. } => error.class(),
            Error::Unavailable { .. } | Error::TimedOut { .. } => ErrorClass::Retriable,
            Error::NotTrusted { .. } | Error::Batch(_) | Error::Name(_) => ErrorClass::Refused,
            Error::Setting { .. } | Error::Protocol(_) | Error::Closed { .. } => ErrorClass::Refused,
        }
    }

    /// The server's code, if the server refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Server(error) => Some(error.code),
            Error::Partial { error, .. } => error.code(),
            _ => None,
        }
    }

    /// A number among the fields of the cause that the server gave, such as `partitions`.
    pub fn detail(&self, field: &str) -> Option<u64> {
        match self {
            Error::Server(error) => error.number(field),
            _ => None,
        }
    }

    /// The offsets that the partition has, from the first to the next to be written, if this is an offset out of range.
    pub fn offset_range(&self) -> Option<(Offset, Offset)> {
        if self.code() != Some(ErrorCode::OFFSET_OUT_OF_RANGE) {
            return None;
        }
        Some((Offset(self.detail("start")?), Offset(self.detail("end")?)))
    }

    /// The records that are lost, if this is damage of which that is known: the first, and the one where records go on.
    /// A reader may go on there by its own decision.
    pub fn lost_records(&self) -> Option<(Offset, Offset)> {
        if self.code() != Some(ErrorCode::CORRUPT) {
            return None;
        }
        let (from, to) = (Offset(self.detail("from")?), Offset(self.detail("to")?));
        (from < to).then_some((from, to))
    }

    /// The offset that an append would have got, if this is the refusal of one that expected another.
    pub fn log_end(&self) -> Option<Offset> {
        let refused = self.code() == Some(ErrorCode::WRONG_OFFSET);
        refused.then(|| self.detail("end")).flatten().map(Offset)
    }

    pub(super) fn server(error: WireError) -> Self {
        match error.code {
            ErrorCode::OUTCOME_UNKNOWN => {
                let reason = error.details.get("reason").and_then(|reason| reason.as_str()).unwrap_or(&error.message);
                Error::Unknown { reason: reason.to_owned() }
            }
            _ => Error::Server(Box::new(error)),
        }
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        Error::server(error.into())
    }
}

fn not_trusted(address: SocketAddr, seen: Option<Fingerprint>, expected: &[Fingerprint]) -> String {
    let seen_text = match seen {
        Some(seen) => format!("the server at {address} shows a certificate with fingerprint {seen}"),
        None => format!("the server at {address} shows no certificate that can be checked"),
    };
    let expected_text = match expected {
        [] => "and nothing vouches for it".to_owned(),
        [one] => format!("but {one} is expected"),
        many => {
            let many: Vec<String> = many.iter().map(Fingerprint::to_string).collect();
            format!("but one of {} is expected", many.join(", "))
        }
    };
    format!(
        "{seen_text}, {expected_text}. Compare it with the one that the server printed at start (also in \
         <data>/tls/fingerprint); if they are equal, set DLOG_FINGERPRINT to it. Servers of this user on this machine \
         are recognised by themselves"
    )
}

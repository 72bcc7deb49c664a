//! What holds for one log: what its creator decided, and what can be changed later while it is in use.
//!
//! A setting that is absent is the server's to decide, so a catalogue of an earlier version, which knows fewer of them,
//! opens as it is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    error::RequestError,
    limits::REPLICAS_MAX,
    record::Codec,
    replication::assignment::{Members, ReplicaId},
    types::AckLevel,
};

/// A bound that a log sets itself: a log may keep everything also where the server has a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// There is none.
    Unlimited,
    /// This much, at least 1.
    AtMost(u64),
}

/// How many copies of each partition there are, and how many of them a decision takes. What that means:
/// `docs/REPLICATION.md`, "Numbers".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replication {
    /// Copies of a partition, each on a core of its own: 1 to 8.
    pub replication_factor: u8,
    /// How many must have a record before it is acknowledged: 1 to `replication_factor`.
    pub write_quorum: u8,
    /// How many must confirm that their leader still leads before it answers a read: 1 to `replication_factor`.
    pub read_quorum: u8,
}

impl Replication {
    /// One copy.
    pub const SINGLE: Replication = Replication { replication_factor: 1, write_quorum: 1, read_quorum: 1 };

    /// The members of a partition in the beginning: slots 0, 1, 2 …
    ///
    /// Errors: `SettingsRefused`.
    pub fn members(&self) -> Result<Members, RequestError> {
        if !(1..=REPLICAS_MAX).contains(&self.replication_factor) {
            let reason = format!("replication_factor is 1 to {REPLICAS_MAX}, not {}", self.replication_factor);
            return Err(RequestError::SettingsRefused { reason });
        }
        let slots = (0..self.replication_factor).map(ReplicaId).collect();
        Members::new(slots, self.write_quorum, self.read_quorum)
            .map_err(|error| RequestError::SettingsRefused { reason: error.to_string() })
    }
}

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replication { replication_factor, write_quorum, read_quorum } = self;
        write!(f, "{replication_factor} with write quorum {write_quorum} and read quorum {read_quorum}")
    }
}

/// Changes of the copies of a log: what is not named follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicationChanges {
    /// See [`Replication::replication_factor`]; as before if it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<u8>,
    /// See [`Replication::write_quorum`]; if it is not named a majority of another number of copies, or else as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_quorum: Option<u8>,
    /// See [`Replication::read_quorum`]; as before if it is not named, but not more than there are copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_quorum: Option<u8>,
}

impl ReplicationChanges {
    /// What is to be after what was.
    pub fn after(self, before: Replication) -> Replication {
        let replication_factor = self.replication_factor.unwrap_or(before.replication_factor);
        let follows = if replication_factor == before.replication_factor {
            before.write_quorum
        } else {
            replication_factor / 2 + 1
        };
        Replication {
            replication_factor,
            write_quorum: self.write_quorum.unwrap_or(follows),
            read_quorum: self.read_quorum.unwrap_or(before.read_quorum.min(replication_factor.max(1))),
        }
    }
}

impl From<Replication> for ReplicationChanges {
    fn from(all: Replication) -> Self {
        ReplicationChanges {
            replication_factor: Some(all.replication_factor),
            write_quorum: Some(all.write_quorum),
            read_quorum: Some(all.read_quorum),
        }
    }
}

/// The settings of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// The ack level of writes that name none; absent for the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<AckLevel>,
    /// For how many milliseconds records are kept at least; absent for the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<Bound>,
    /// How many bytes of each partition are kept at least; absent for the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<Bound>,
    /// How producers compress that do not decide for themselves; absent for not at all. A wish: the server stores what
    /// it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Codec>,
    /// Copies of its partitions; absent, in a request to create a log, for as many as the server's setting says, and in
    /// a log for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
}

/// Changes of a log's settings: `None` leaves one as it is, `Some(None)` makes it the server's again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogChanges {
    /// See [`LogSettings::ack`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ack: Option<Option<AckLevel>>,
    /// See [`LogSettings::retention_ms`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<Option<Bound>>,
    /// See [`LogSettings::retention_bytes`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<Option<Bound>>,
    /// See [`LogSettings::compression`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub compression: Option<Option<Codec>>,
    /// How many copies there are to be, and how many of them a decision takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationChanges>,
}

/// A field that is there, be it `null`.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl LogSettings {
    /// The settings after `changes`.
    pub fn with(self, changes: &LogChanges) -> Self {
        LogSettings {
            ack: changes.ack.unwrap_or(self.ack),
            retention_ms: changes.retention_ms.unwrap_or(self.retention_ms),
            retention_bytes: changes.retention_bytes.unwrap_or(self.retention_bytes),
            compression: changes.compression.unwrap_or(self.compression),
            replication: self.replication_after(changes),
        }
    }

    fn replication_after(&self, changes: &LogChanges) -> Option<Replication> {
        let Some(changes) = changes.replication else { return self.replication };
        let after = changes.after(self.replication.unwrap_or(Replication::SINGLE));
        // What has one copy, and no other knows of, stays as it is.
        if self.replication.is_none() && after == Replication::SINGLE { None } else { Some(after) }
    }

    /// Errors: `SettingsRefused`.
    pub fn check(&self) -> Result<(), RequestError> {
        for (name, bound) in [("retention_ms", self.retention_ms), ("retention_bytes", self.retention_bytes)] {
            if bound == Some(Bound::AtMost(0)) {
                let reason = format!("{name} is at least 1, or unlimited; records are deleted by `trim`");
                return Err(RequestError::SettingsRefused { reason });
            }
        }
        self.replication.map_or(Ok(()), |replication| replication.members().map(|_| ()))
    }
}

/// Most logs say no more than how safe a write is to be.
impl From<Option<AckLevel>> for LogSettings {
    fn from(ack: Option<AckLevel>) -> Self {
        LogSettings { ack, ..LogSettings::default() }
    }
}

impl Bound {
    /// The number; `None` if there is no bound.
    pub fn number(self) -> Option<u64> {
        match self {
            Bound::Unlimited => None,
            Bound::AtMost(most) => Some(most),
        }
    }
}

const UNLIMITED: &str = "unlimited";

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Unlimited => f.write_str(UNLIMITED),
            Bound::AtMost(most) => fmt::Display::fmt(most, f),
        }
    }
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            UNLIMITED => Ok(Bound::Unlimited),
            _ => text.parse().map(Bound::AtMost).map_err(|_| format!("`{text}` is no number and not `{UNLIMITED}`")),
        }
    }
}

/// A number, or the word.
impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Bound::Unlimited => serializer.serialize_str(UNLIMITED),
            Bound::AtMost(most) => serializer.serialize_u64(*most),
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bound;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number or \"{UNLIMITED}\"")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bound, E> {
                Ok(Bound::AtMost(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bound, E> {
                if text == UNLIMITED {
                    Ok(Bound::Unlimited)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: LogSettings = LogSettings {
        ack: Some(AckLevel::Written),
        retention_ms: Some(Bound::AtMost(1000)),
        retention_bytes: Some(Bound::Unlimited),
        compression: Some(Codec::Zstd),
        replication: Some(Replication { replication_factor: 3, write_quorum: 2, read_quorum: 1 }),
    };

    #[test]
    fn settings_come_back_and_those_of_an_earlier_version_are_the_servers() {
        let text = serde_json::to_string(&ALL).unwrap();
        let expected = concat!(
            r#"{"ack":"written","retention_ms":1000,"retention_bytes":"unlimited","compression":"zstd","#,
            r#""replication":{"replication_factor":3,"write_quorum":2,"read_quorum":1}}"#,
        );
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<LogSettings>(&text).unwrap(), ALL);
        assert_eq!(serde_json::from_str::<LogSettings>("{}").unwrap(), LogSettings::default());
        for wrong in [r#"{"retention_ms":-1}"#, r#"{"retention_ms":"7d"}"#, r#"{"compression":"gzip"}"#] {
            assert!(serde_json::from_str::<LogSettings>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_change_touches_what_it_names_and_null_gives_it_back_to_the_server() {
        let changes: LogChanges = serde_json::from_str(r#"{"ack":null,"retention_ms":"unlimited"}"#).unwrap();
        let expected = LogSettings { ack: None, retention_ms: Some(Bound::Unlimited), ..ALL };
        assert_eq!(ALL.with(&changes), expected);
        let text = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<LogChanges>(&text).unwrap(), changes);
        assert_eq!(ALL.with(&LogChanges::default()), ALL);
        assert!(serde_json::from_str::<LogChanges>(r#"{"partitions":2}"#).is_err());
    }

    #[test]
    fn quorums_that_are_not_named_follow_the_number_of_copies() {
        let before = ALL.replication.unwrap();
        let after = |n, w, r| {
            let changes = ReplicationChanges { replication_factor: n, write_quorum: w, read_quorum: r };
            let Replication { replication_factor, write_quorum, read_quorum } = changes.after(before);
            (replication_factor, write_quorum, read_quorum)
        };
        assert_eq!(after(None, None, None), (3, 2, 1));
        assert_eq!(after(Some(5), None, None), (5, 3, 1));
        assert_eq!(after(Some(3), None, Some(2)), (3, 2, 2));
        assert_eq!(after(None, Some(3), None), (3, 3, 1));
        assert_eq!(after(Some(1), None, None), (1, 1, 1));
        let two = Replication { read_quorum: 2, ..before };
        let one = ReplicationChanges { replication_factor: Some(1), ..ReplicationChanges::default() };
        assert_eq!(one.after(two), Replication::SINGLE);
        let changes = LogChanges { replication: Some(one), ..LogChanges::default() };
        assert_eq!(LogSettings::default().with(&changes).replication, None);
        assert_eq!(ALL.with(&changes).replication, Some(Replication::SINGLE));
        assert_eq!(serde_json::to_string(&changes).unwrap(), r#"{"replication":{"replication_factor":1}}"#);
    }

    #[test]
    fn nothing_is_no_bound() {
        for settings in [
            LogSettings { retention_ms: Some(Bound::AtMost(0)), ..ALL },
            LogSettings { retention_bytes: Some(Bound::AtMost(0)), ..ALL },
        ] {
            assert!(settings.check().unwrap_err().to_string().contains("at least 1"));
        }
        assert_eq!(ALL.check(), Ok(()));
    }

    #[test]
    fn quorums_are_of_the_copies_that_there_are() {
        let why = |replication_factor, write_quorum, read_quorum| {
            let replication = Some(Replication { replication_factor, write_quorum, read_quorum });
            LogSettings { replication, ..ALL }.check().map_err(|error| error.to_string())
        };
        assert_eq!(why(3, 3, 1), Ok(()));
        assert_eq!(why(0, 1, 1), Err("replication_factor is 1 to 8, not 0".to_owned()));
        assert_eq!(why(9, 1, 1), Err("replication_factor is 1 to 8, not 9".to_owned()));
        let refused = "the write quorum is 1 to 3, the number of replicas, not 4".to_owned();
        assert_eq!(why(3, 4, 1), Err(refused));
    }
}

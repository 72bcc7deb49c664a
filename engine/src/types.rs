//! The words of the domain as types, so that an offset is never mistaken for a byte position or a core for a partition.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

newtype! {
    /// The address of a record in its partition: 0, 1, 2 … without gaps, never reset.
    Offset(u64)
}
newtype! {
    /// A position in a segment file, in bytes from the start of the file.
    BytePosition(u64)
}
newtype! {
    /// Counts the reigns over a partition: it grows at every opening that follows a crash and, later, at every change
    /// of leader.
    LeaderEpoch(u32)
}
newtype! {
    /// Distinguishes the live bytes of a segment file from those of an earlier life of the same file.
    Incarnation(u32)
}
newtype! {
    /// An idempotent producer; 0 means none.
    ProducerId(u64)
}
newtype! {
    /// The position of a batch's first record in its producer's own sequence.
    Sequence(u32)
}
newtype! {
    /// A core of the server, counted from 0 in the order of `--cores`; not the number of a CPU.
    CoreId(u16)
}
newtype! {
    /// A drive of the server, counted from 0; it keeps its number wherever it is mounted.
    DriveId(u16)
}
newtype! {
    /// A partition of a log, counted from 0.
    PartitionIndex(u32)
}
newtype! {
    /// The number of a log, unique for the life of a data directory, also after the log's name was deleted and used
    /// again.
    LogUid(u64)
}

impl Offset {
    /// The offset `records` further on.
    ///
    /// Panics if it would pass 2^64: offsets are assigned by us, and no log lives that long.
    pub fn advance(self, records: u64) -> Self {
        Offset(self.0.checked_add(records).expect("offset overflow")) // why: 2^64 records are out of reach
    }
}

/// One partition of one log: the unit that a core owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId {
    /// The log.
    pub log: LogUid,
    /// The partition of it.
    pub index: PartitionIndex,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.log, self.index)
    }
}

/// What the reply to a write means, weakest first; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckLevel {
    /// In the memory of the owning core. Survives nothing.
    Received = 1,
    /// Handed to the device: the O_DIRECT write completed. Survives the death of the process.
    Written = 2,
    /// Synced by fdatasync. Survives a loss of power.
    Durable = 3,
    /// Durable on a write quorum of replicas. With one replica it equals `Durable`.
    Quorum = 4,
}

impl AckLevel {
    /// The level's number on the wire, 1 to 4.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The level with number `code`; `None` if there is none. 0 is not a level: on the wire it asks for the log's
    /// default.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(AckLevel::Received),
            2 => Some(AckLevel::Written),
            3 => Some(AckLevel::Durable),
            4 => Some(AckLevel::Quorum),
            _ => None,
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AckLevel::Received => "received",
            AckLevel::Written => "written",
            AckLevel::Durable => "durable",
            AckLevel::Quorum => "quorum",
        })
    }
}

impl std::str::FromStr for AckLevel {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "received" => Ok(AckLevel::Received),
            "written" => Ok(AckLevel::Written),
            "durable" => Ok(AckLevel::Durable),
            "quorum" => Ok(AckLevel::Quorum),
            _ => Err(format!("`{word}` is no ack level; there are received, written, durable and quorum")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_levels_survive_the_way_over_the_wire_and_over_the_command_line() {
        for level in [AckLevel::Received, AckLevel::Written, AckLevel::Durable, AckLevel::Quorum] {
            assert_eq!(AckLevel::from_code(level.code()), Some(level));
            assert_eq!(level.to_string().parse::<AckLevel>().unwrap(), level);
        }
        assert_eq!(AckLevel::from_code(0), None);
        assert!("sometimes".parse::<AckLevel>().is_err());
    }
}

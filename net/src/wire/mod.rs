//! The protocol `dlog/1` as values: bytes in, frames and requests out, and back. No I/O, no clock, and every length is
//! checked before anything is allocated for it. `docs/PROTOCOL.md` is the same in words; golden bytes in the tests hold
//! the two together.
//!
//! The room's doors: [`frame::FrameDecoder`] cuts a stream into frames, [`request::Request::decode`] reads what a
//! client wants, [`reply`] reads and writes answers, [`code`] is the one mapping between errors and their numbers.

pub mod code;
pub mod frame;
pub mod reply;
pub mod request;

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"dlog/1";

/// The version that every frame carries.
pub const VERSION: u8 = 1;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Api {
    /// Which logs there are and which core owns what.
    Metadata = 1,
    /// Create a log.
    CreateLog = 2,
    /// Delete a log.
    DeleteLog = 3,
    /// Append a batch.
    Produce = 4,
    /// Read batches.
    Fetch = 5,
    /// Find an offset.
    FindOffset = 6,
    /// Be sent batches as they come.
    Subscribe = 7,
    /// What the server is and how it is configured.
    DescribeServer = 8,
    /// Change the settings of a log.
    AlterLog = 9,
    /// Delete the records before an offset.
    Trim = 10,
    /// How a partition and its copies are.
    DescribePartition = 11,
    /// Have a copy of a partition that nobody leads lead it, whatever is lost with that.
    Recover = 12,
    /// Have the copy of a partition that is on a core lead it.
    Move = 13,
    /// What the cores have and do.
    DescribeCores = 14,
    /// Let a partition that was moved by command move by itself again.
    Unpin = 15,
}

impl Api {
    /// The api with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Api::Metadata,
            2 => Api::CreateLog,
            3 => Api::DeleteLog,
            4 => Api::Produce,
            5 => Api::Fetch,
            6 => Api::FindOffset,
            7 => Api::Subscribe,
            8 => Api::DescribeServer,
            9 => Api::AlterLog,
            10 => Api::Trim,
            11 => Api::DescribePartition,
            12 => Api::Recover,
            13 => Api::Move,
            14 => Api::DescribeCores,
            15 => Api::Unpin,
            _ => return None,
        })
    }

    /// The api's number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The api's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Api::Metadata => "metadata",
            Api::CreateLog => "create log",
            Api::DeleteLog => "delete log",
            Api::Produce => "produce",
            Api::Fetch => "fetch",
            Api::FindOffset => "find offset",
            Api::Subscribe => "subscribe",
            Api::DescribeServer => "describe server",
            Api::AlterLog => "alter log",
            Api::Trim => "trim",
            Api::DescribePartition => "describe partition",
            Api::Recover => "recover",
            Api::Move => "move",
            Api::DescribeCores => "describe cores",
            Api::Unpin => "unpin",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_api_is_found_by_its_number() {
        let all: Vec<Api> = (0..=u8::MAX).filter_map(Api::from_number).collect();
        assert_eq!(all.len(), 15);
        for api in all {
            assert_eq!(Api::from_number(api.number()), Some(api));
        }
    }
}

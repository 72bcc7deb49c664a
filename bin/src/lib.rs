//! The client crate of Pyralog: `use dlog::prelude::*` brings what most programs need; the rest is in [`client`].
//!
//! ```no_run
//! use dlog::prelude::*;
//!
//! # async fn example() -> Result<()> {
//! let client = PyralogClient::connect("127.0.0.1:9092").await?;
//! let log = LogId::new("events")?;
//! let ack = client.produce(&log, "key", "value").await?;
//! let fetched = client.fetch(&log, ack.partition, ack.offset, Default::default()).await?;
//! for record in fetched {
//!     println!("{:?}", record?.value);
//! }
//! # Ok(()) }
//! ```

pub use pyralog_net::{client, fingerprint};

/// What most programs need.
pub mod prelude {
    pub use bytes::Bytes;
    pub use pyralog_net::client::{BatchAck, Error, LogId, Offset, PartitionId, PyralogClient, Record, Result};
}

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

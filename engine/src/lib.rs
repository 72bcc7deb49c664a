//! Partitions, storage and shards of Pyralog. Knows nothing of networks.

pub mod catalog;
pub mod error;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod name;
pub mod partition;
pub mod record;
pub mod runtime;
pub mod shard;
pub mod signal;
pub mod testing;
pub mod types;

//! Partitions, storage and shards of Pyralog. Knows nothing of networks.
//!
//! A core owns partitions, and with them everything about them: their promises ([`partition`]), their bytes ([`log`]),
//! the memory and the ring to do it with ([`runtime`]). [`shard`] is where these meet; what concerns another core's
//! partition goes through its mailbox. [`record`] is the format that clients, disks and consumers share.
//!
//! # The way of a produced record
//!
//! `Shard::submit` → `Owned::append` → `check_produced` → `Partition::handle_append` → `Log::append` → `Tail::push` →
//! `Owned::wake_flusher` → `Log::write_waiting` → `Partition::handle_written` → `Log::sync` →
//! `Partition::handle_durable` →
//! `Partition::poll_effect` → `ReplyTo::send`
//!
//! # The way of a fetched record
//!
//! `Shard::submit` → `Owned::fetch` → `Partition::handle_fetch_wait` → `Log::read_memory` → `Log::read_ahead` →
//! `Log::read_disk` → `BlockCache::get` → `File::read_at` → `ReplyTo::send`

pub mod catalog;
pub mod error;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod name;
pub mod partition;
pub mod record;
pub mod replication;
pub mod runtime;
pub mod settings;
pub mod shard;
pub mod signal;
pub mod testing;
pub mod types;

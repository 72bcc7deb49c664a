//! Everything that is decided before the first record: the configuration with its layers and profiles, what it
//! promises, and what the host can give.
//!
//! The room's door is [`Settings::load`]: flags over `DLOG_*` variables over a file over a profile over defaults,
//! checked against one table of keys ([`keys::KEYS`]), so that each refused value names its key, its line and what is
//! allowed, and each accepted one knows where it came from. [`Promise`] says in words what a configuration's
//! acknowledgement is worth. [`host`] looks at the machine, [`cores`] reads `--cores` against the cpuset, [`memory`]
//! does the arithmetic that must hold before serving.
//!
//! Invariant: a [`Config`] that came out of [`Settings::load`] is within every range of the table, and its quorums are
//! of the copies that there are; one that came out of [`Settings::on_cores`] has a core for each copy and for
//! each data directory.

pub mod config;
pub mod copies;
pub mod cores;
pub mod data_dirs;
pub mod error;
pub mod host;
pub mod keys;
mod layers;
pub mod memory;
pub mod profile;
mod promise;
pub mod reference;
mod settings;
pub mod units;

pub use config::Config;
pub use error::ConfigError;
pub use promise::{Ack, Promise};
pub use settings::{Entry, Inputs, Settings};

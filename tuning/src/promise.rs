//! What an acknowledgement is worth under a configuration, as a level and as a sentence. Pure.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Config, copies::Copies, units::about};

/// When a write is acknowledged, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// In the memory of the owning core.
    Received,
    /// Handed to the device.
    Written,
    /// Synced to stable storage.
    Durable,
    /// Durable on a quorum of copies.
    Quorum,
}

impl Ack {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Ack::Received => "received",
            Ack::Written => "written",
            Ack::Durable => "durable",
            Ack::Quorum => "quorum",
        }
    }
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Ack {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Ack::Received, Ack::Written, Ack::Durable, Ack::Quorum].into_iter().find(|ack| ack.word() == word).ok_or(())
    }
}

/// What the server promises to whom names no ack level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The level of a write whose request and log name none.
    pub ack: Ack,
    /// The promise in one sentence, with the window of loss.
    pub guarantee: String,
    /// What the copies are worth, in one sentence.
    pub copies: String,
}

impl Promise {
    /// The promise of `config`.
    pub fn of(config: &Config) -> Promise {
        let ack = config.log.ack.unwrap_or_else(|| implied_ack(config));
        let drives = config.server.data_dir.paths().len() as u64;
        Promise { ack, guarantee: guarantee(ack, config), copies: config.copies().guarantee(drives) }
    }
}

/// The level that the storage keys imply, in the words of the design: `sync_on_write` means durable; the write cache
/// means an answer from memory; neither means an answer once the device has taken the write.
fn implied_ack(config: &Config) -> Ack {
    if config.storage.segment_config.sync_on_write {
        if config.copies().write > 1 { Ack::Quorum } else { Ack::Durable }
    } else if config.storage.cache_config.enabled {
        Ack::Received
    } else {
        Ack::Written
    }
}

fn guarantee(ack: Ack, config: &Config) -> String {
    let cache = &config.storage.cache_config;
    let sync = config.storage.sync_interval_ms;
    let Copies { factor, write, .. } = config.copies();
    let on = if factor > 1 { format!(" on {write} of {factor} copies") } else { String::new() };
    match ack {
        Ack::Received if cache.enabled => format!(
            "an acknowledged record is in memory{on}; it goes to the drive within {} or once {} wait, and is synced \
             within {sync} after that; a crash can lose the first window of what was acknowledged, a power loss both",
            cache.max_buffer_time_ms,
            about(cache.max_size.0),
        ),
        Ack::Received => format!(
            "an acknowledged record is in memory{on} and on its way to the drive, and is synced within {sync} after \
             that; a crash can lose the few milliseconds that were not there yet, a power loss {sync} more",
        ),
        Ack::Written => format!(
            "an acknowledged record was handed to the drive{on} and survives a crash of the server; it is synced \
             within {sync}, and a power loss can lose that window",
        ),
        Ack::Durable | Ack::Quorum => format!(
            "an acknowledged record is synced to stable storage{on} and survives a crash of the server and a power \
             loss; nothing acknowledged is lost{}",
            match (factor, write) {
                (1, _) => "",
                (_, 1) => " while that one is there",
                _ => " while one of these is there",
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ByteSize, Millis};

    fn config(sync: bool, cache: bool) -> Config {
        let mut config = Config::default();
        config.storage.segment_config.sync_on_write = sync;
        config.storage.cache_config.enabled = cache;
        config.storage.cache_config.max_size = ByteSize(8 << 20);
        config.storage.cache_config.max_buffer_time_ms = Millis(1);
        config
    }

    #[test]
    fn the_storage_keys_imply_the_level() {
        for (sync, cache, ack) in [
            (true, true, Ack::Durable),
            (true, false, Ack::Durable),
            (false, true, Ack::Received),
            (false, false, Ack::Written),
        ] {
            assert_eq!(Promise::of(&config(sync, cache)).ack, ack);
        }
        let mut copies = config(true, false);
        copies.replication.quorum.replication_factor = 3;
        let promise = Promise::of(&copies);
        assert_eq!(promise.ack, Ack::Quorum);
        assert!(promise.guarantee.contains("on 2 of 3 copies and survives"), "{}", promise.guarantee);
        assert!(promise.copies.contains("the loss of any 1 of them"), "{}", promise.copies);
        copies.replication.quorum.write_quorum = Some(1);
        assert_eq!(Promise::of(&copies).ack, Ack::Durable);
        assert!(Promise::of(&copies).guarantee.ends_with("lost while that one is there"));
    }

    #[test]
    fn an_explicit_level_wins() {
        let mut config = config(true, false);
        config.log.ack = Some(Ack::Written);
        assert_eq!(Promise::of(&config).ack, Ack::Written);
    }

    #[test]
    fn the_window_of_loss_is_stated() {
        let promise = Promise::of(&config(false, true));
        assert!(
            promise.guarantee.contains("within 1 ms or once 8 MiB wait, and is synced within 100 ms"),
            "{}",
            promise.guarantee
        );
        assert!(promise.guarantee.contains("can lose"));
        assert!(Promise::of(&config(true, true)).guarantee.ends_with("nothing acknowledged is lost"));
    }
}

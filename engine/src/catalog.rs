//! Which logs exist, with their settings. Pure; `shard` keeps it on disk and carries its changes to every core.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    error::RequestError,
    limits::{LOGS_MAX, PARTITIONS_PER_LOG_MAX},
    name::LogName,
    settings::LogSettings,
    shard::request::{AlterLog, CreateLog},
    types::{LogUid, PartitionId, PartitionIndex},
};

/// One log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number, never used again.
    pub uid: LogUid,
    /// Its name.
    pub name: LogName,
    /// How many partitions it has, at least 1.
    pub partitions: u32,
    /// What holds for it.
    #[serde(flatten)]
    pub settings: LogSettings,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
}

impl LogEntry {
    /// The log's partitions, in order.
    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let log = self.uid;
        (0..self.partitions).map(move |index| PartitionId { log, index: PartitionIndex(index) })
    }
}

/// All logs of a server. A value: a change makes a new one, which replaces the old everywhere at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    next_uid: u64,
    by_name: BTreeMap<LogName, Arc<LogEntry>>,
    by_uid: BTreeMap<LogUid, Arc<LogEntry>>,
}

impl Catalog {
    /// A catalogue with these logs. `next_uid` is above the number of every log that ever existed.
    pub fn from_parts(next_uid: u64, logs: impl IntoIterator<Item = LogEntry>) -> Self {
        let mut catalog = Catalog { next_uid, ..Catalog::default() };
        for log in logs {
            catalog.insert(Arc::new(log));
        }
        catalog
    }

    /// The number the next log will get.
    pub fn next_uid(&self) -> u64 {
        self.next_uid
    }

    /// All logs by name.
    pub fn logs(&self) -> impl Iterator<Item = &Arc<LogEntry>> {
        self.by_name.values()
    }

    /// The log of this name.
    pub fn by_name(&self, name: &LogName) -> Option<&Arc<LogEntry>> {
        self.by_name.get(name)
    }

    /// The log with this number.
    pub fn by_uid(&self, uid: LogUid) -> Option<&Arc<LogEntry>> {
        self.by_uid.get(&uid)
    }

    /// The catalogue after `request`, and the log it made.
    ///
    /// Errors: `LogExists`, `SettingsRefused`.
    pub fn with_log(&self, request: &CreateLog, now_ms: i64) -> Result<(Catalog, Arc<LogEntry>), RequestError> {
        if self.by_name.contains_key(&request.name) {
            return Err(RequestError::LogExists { name: request.name.clone() });
        }
        if !(1..=PARTITIONS_PER_LOG_MAX).contains(&request.partitions) {
            let reason = format!("a log has 1 to {PARTITIONS_PER_LOG_MAX} partitions, not {}", request.partitions);
            return Err(RequestError::SettingsRefused { reason });
        }
        if self.by_name.len() >= LOGS_MAX {
            let reason = format!("there are {LOGS_MAX} logs already, the most a server has");
            return Err(RequestError::SettingsRefused { reason });
        }
        request.settings.check()?;
        let log = Arc::new(LogEntry {
            uid: LogUid(self.next_uid),
            name: request.name.clone(),
            partitions: request.partitions,
            settings: request.settings,
            created_ms: now_ms,
        });
        let mut next = self.clone();
        next.next_uid += 1;
        next.insert(Arc::clone(&log));
        Ok((next, log))
    }

    /// The catalogue after a change of a log's settings, and what the log is then.
    ///
    /// Errors: `UnknownLog`, `SettingsRefused`.
    pub fn with_changes(&self, request: &AlterLog) -> Result<(Catalog, Arc<LogEntry>), RequestError> {
        let unknown = || RequestError::UnknownLog { name: request.name.to_string() };
        let log = self.by_name.get(&request.name).ok_or_else(unknown)?;
        let settings = log.settings.with(&request.changes);
        settings.check()?;
        let log = Arc::new(LogEntry { settings, ..LogEntry::clone(log) });
        let mut next = self.clone();
        next.by_uid.insert(log.uid, Arc::clone(&log));
        next.by_name.insert(log.name.clone(), Arc::clone(&log));
        Ok((next, log))
    }

    /// The catalogue without the log `name`, and what it was.
    ///
    /// Errors: `UnknownLog`.
    pub fn without_log(&self, name: &LogName) -> Result<(Catalog, Arc<LogEntry>), RequestError> {
        let mut next = self.clone();
        let log = next.by_name.remove(name).ok_or_else(|| RequestError::UnknownLog { name: name.to_string() })?;
        next.by_uid.remove(&log.uid);
        Ok((next, log))
    }

    fn insert(&mut self, log: Arc<LogEntry>) {
        assert!(log.uid.0 < self.next_uid, "log number {} is not below {}", log.uid, self.next_uid);
        let twin = self.by_uid.insert(log.uid, Arc::clone(&log));
        assert!(twin.is_none(), "two logs have the number {}", log.uid);
        self.by_name.insert(log.name.clone(), log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::Codec,
        settings::{Bound, LogChanges},
    };

    fn create(name: &str, partitions: u32) -> CreateLog {
        CreateLog { name: name.parse().unwrap(), partitions, settings: LogSettings::default() }
    }

    #[test]
    fn a_name_used_again_gets_a_new_number() {
        let (catalog, first) = Catalog::default().with_log(&create("a", 1), 0).unwrap();
        let (catalog, _) = catalog.without_log(&first.name).unwrap();
        let (catalog, second) = catalog.with_log(&create("a", 1), 0).unwrap();
        assert!(second.uid > first.uid);
        assert!(catalog.by_uid(first.uid).is_none());
    }

    #[test]
    fn a_log_keeps_its_number_when_its_settings_change() {
        let (catalog, made) = Catalog::default().with_log(&create("a", 3), 7).unwrap();
        let compression = Some(Some(Codec::Lz4));
        let changes = LogChanges { compression, ..LogChanges::default() };
        let alter = AlterLog { name: made.name.clone(), changes };
        let (catalog, altered) = catalog.with_changes(&alter).unwrap();
        let settings = LogSettings { compression: Some(Codec::Lz4), ..LogSettings::default() };
        assert_eq!(*altered, LogEntry { settings, ..LogEntry::clone(&made) });
        assert_eq!((catalog.by_uid(made.uid), catalog.by_name(&made.name)), (Some(&altered), Some(&altered)));
        let unknown = AlterLog { name: "b".parse().unwrap(), changes };
        assert!(matches!(catalog.with_changes(&unknown), Err(RequestError::UnknownLog { .. })));
        let nothing = LogChanges { retention_ms: Some(Some(Bound::AtMost(0))), ..LogChanges::default() };
        let refused = catalog.with_changes(&AlterLog { name: made.name.clone(), changes: nothing });
        assert!(matches!(refused, Err(RequestError::SettingsRefused { .. })));
    }

    #[test]
    fn partition_counts_are_checked_at_both_ends() {
        for (count, fine) in
            [(0, false), (1, true), (PARTITIONS_PER_LOG_MAX, true), (PARTITIONS_PER_LOG_MAX + 1, false)]
        {
            assert_eq!(Catalog::default().with_log(&create("a", count), 0).is_ok(), fine, "{count} partitions");
        }
    }
}

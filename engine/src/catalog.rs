//! Which logs exist, with their settings. Pure; `shard` keeps it on disk and carries its changes to every core.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    error::RequestError,
    limits::{LOGS_MAX, PARTITIONS_PER_LOG_MAX},
    name::LogName,
    replication::assignment::ReplicaId,
    settings::{LogSettings, Replication},
    shard::request::{AlterLog, CreateLog},
    types::{CoreId, LogUid, PartitionId, PartitionIndex},
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
    /// Its creation is not complete: a copy of a partition that is not there was never there, and may be made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub founding: bool,
    /// How many drives there were when it was created: the drive of each copy follows from that.
    #[serde(default = "one_drive", skip_serializing_if = "is_one")]
    pub drives: u16,
    /// The copy that is to lead a partition where that is not the first one, in the order of the partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaders: Vec<(PartitionIndex, ReplicaId)>,
    /// Copies that were moved away from the core that they would be on.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    pub places: Places,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
}

fn one_drive() -> u16 {
    1
}

fn is_one(drives: &u16) -> bool {
    *drives == 1
}

/// The cores that copies of a log were moved to. A choice among so many cores says nothing about another number: there
/// it does not hold, and the next move forgets it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    cores: u16,
    /// In the order of the copies.
    moved: Vec<(PartitionIndex, ReplicaId, CoreId)>,
}

impl Places {
    fn is_empty(&self) -> bool {
        self.moved.is_empty()
    }

    /// The core that a copy was moved to, on a server that has `cores` of them.
    pub fn of(&self, (partition, copy): (PartitionIndex, ReplicaId), cores: u16) -> Option<CoreId> {
        let at = self.moved.binary_search_by_key(&(partition, copy), |(partition, copy, _)| (*partition, *copy));
        at.ok().filter(|_| self.cores == cores).map(|at| self.moved[at].2)
    }

    /// The same with a copy on `core`; on the one that it would be on anyway, if that is none.
    fn with(&self, (partition, copy): (PartitionIndex, ReplicaId), core: Option<CoreId>, cores: u16) -> Places {
        let hold = self.moved.iter().filter(|_| self.cores == cores);
        let others = hold.filter(|(index, other, _)| (*index, *other) != (partition, copy)).copied();
        let mut moved: Vec<_> = others.chain(core.map(|core| (partition, copy, core))).collect();
        moved.sort_unstable();
        Places { cores: if moved.is_empty() { 0 } else { cores }, moved }
    }
}

impl LogEntry {
    /// The log's partitions, in order.
    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let log = self.uid;
        (0..self.partitions).map(move |index| PartitionId { log, index: PartitionIndex(index) })
    }

    /// Its copies, if there are several of each partition.
    pub fn replication(&self) -> Option<Replication> {
        self.settings.replication.filter(|replication| replication.replication_factor > 1)
    }

    /// The copy that is to lead a partition, if it can.
    pub fn preferred(&self, partition: PartitionIndex) -> ReplicaId {
        let at = self.leaders.binary_search_by_key(&partition, |(index, _)| *index);
        at.map_or(ReplicaId(0), |at| self.leaders[at].1)
    }

    /// Whether each partition has such a copy.
    pub fn has_slot(&self, copy: ReplicaId) -> bool {
        self.slots().any(|slot| slot == copy)
    }

    /// The copies of each partition that it is created with.
    pub fn slots(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        (0..self.replication().map_or(1, |replication| replication.replication_factor)).map(ReplicaId)
    }
}

/// All logs of a server. A value: a change makes a new one, which replaces the old everywhere at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    next_uid: u64,
    /// Counts the changes: of two copies of a catalogue the higher is the later.
    revision: u64,
    by_name: BTreeMap<LogName, Arc<LogEntry>>,
    by_uid: BTreeMap<LogUid, Arc<LogEntry>>,
}

impl Catalog {
    /// A catalogue with these logs. `next_uid` is above the number of every log that ever existed.
    pub fn from_parts((next_uid, revision): (u64, u64), logs: impl IntoIterator<Item = LogEntry>) -> Self {
        let mut catalog = Catalog { next_uid, revision, ..Catalog::default() };
        for log in logs {
            catalog.insert(Arc::new(log));
        }
        catalog
    }

    /// The number the next log will get.
    pub fn next_uid(&self) -> u64 {
        self.next_uid
    }

    /// How many changes there were.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The same as one change later.
    pub fn next_revision(self) -> Catalog {
        Catalog { revision: self.revision + 1, ..self }
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

    /// The catalogue after `request` on a server with `drives` drives, and the log it made.
    ///
    /// Errors: `LogExists`, `SettingsRefused`.
    pub fn with_log(
        &self,
        request: &CreateLog,
        (drives, now_ms): (u16, i64),
    ) -> Result<(Catalog, Arc<LogEntry>), RequestError> {
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
            founding: false,
            drives: 1,
            leaders: Vec::new(),
            places: Places::default(),
            created_ms: now_ms,
        });
        let founding = log.replication().is_some();
        let log = Arc::new(LogEntry { founding, drives: drives.max(1), ..LogEntry::clone(&log) });
        let mut next = self.clone();
        next.next_uid += 1;
        next.insert(Arc::clone(&log));
        Ok((next, log))
    }

    /// The catalogue after the creation of the log `uid` is complete.
    pub fn with_founded(&self, uid: LogUid) -> Catalog {
        let mut next = self.clone();
        if let Some(log) = self.by_uid.get(&uid) {
            next.replace(Arc::new(LogEntry { founding: false, ..LogEntry::clone(log) }));
        }
        next
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
        next.replace(Arc::clone(&log));
        Ok((next, log))
    }

    /// The catalogue in which `copy` is to lead `partition`.
    pub fn with_leader(&self, partition: PartitionId, copy: ReplicaId) -> Catalog {
        let mut next = self.clone();
        if let Some(log) = self.by_uid.get(&partition.log) {
            let others = log.leaders.iter().copied().filter(|(index, _)| *index != partition.index);
            let own = (copy != ReplicaId(0)).then_some((partition.index, copy));
            let mut leaders: Vec<_> = others.chain(own).collect();
            leaders.sort_unstable();
            next.replace(Arc::new(LogEntry { leaders, ..LogEntry::clone(log) }));
        }
        next
    }

    /// The catalogue in which `copy` of `partition` is on `core`, of a server that has `cores` of them; on the one that
    /// it would be on anyway, if that is none.
    pub fn with_place(&self, (partition, copy): (PartitionId, ReplicaId), core: Option<CoreId>, cores: u16) -> Catalog {
        let mut next = self.clone();
        if let Some(log) = self.by_uid.get(&partition.log) {
            let places = log.places.with((partition.index, copy), core, cores);
            next.replace(Arc::new(LogEntry { places, ..LogEntry::clone(log) }));
        }
        next
    }

    fn replace(&mut self, log: Arc<LogEntry>) {
        self.by_uid.insert(log.uid, Arc::clone(&log));
        self.by_name.insert(log.name.clone(), log);
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
        let (catalog, first) = Catalog::default().with_log(&create("a", 1), (1, 0)).unwrap();
        let (catalog, _) = catalog.without_log(&first.name).unwrap();
        let (catalog, second) = catalog.with_log(&create("a", 1), (1, 0)).unwrap();
        assert!(second.uid > first.uid);
        assert!(catalog.by_uid(first.uid).is_none());
    }

    #[test]
    fn a_log_keeps_its_number_when_its_settings_change() {
        let (catalog, made) = Catalog::default().with_log(&create("a", 3), (1, 7)).unwrap();
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
    fn the_first_copy_leads_unless_another_is_to() {
        let (catalog, log) = Catalog::default().with_log(&create("a", 3), (1, 0)).unwrap();
        let partition = |index| PartitionId { log: log.uid, index: PartitionIndex(index) };
        let moved = catalog.with_leader(partition(2), ReplicaId(1)).with_leader(partition(0), ReplicaId(2));
        let leaders = |catalog: &Catalog| {
            let log = catalog.by_uid(log.uid).unwrap();
            [0, 1, 2].map(|index| log.preferred(PartitionIndex(index)).0)
        };
        assert_eq!((leaders(&catalog), leaders(&moved)), ([0, 0, 0], [2, 0, 1]));
        let back = moved.with_leader(partition(0), ReplicaId(1)).with_leader(partition(2), ReplicaId(0));
        assert_eq!(leaders(&back), [1, 0, 0]);
        assert_eq!(back.with_leader(partition(0), ReplicaId(0)), catalog);
    }

    #[test]
    fn a_place_holds_for_the_number_of_cores_that_it_was_chosen_among() {
        let (catalog, log) = Catalog::default().with_log(&create("a", 3), (1, 0)).unwrap();
        let copy = |index, copy| (PartitionId { log: log.uid, index: PartitionIndex(index) }, ReplicaId(copy));
        let place = |catalog: &Catalog, (partition, copy): (PartitionId, ReplicaId), cores| {
            catalog.by_uid(log.uid).unwrap().places.of((partition.index, copy), cores)
        };
        let moved = catalog.with_place(copy(2, 0), Some(CoreId(3)), 4).with_place(copy(1, 1), Some(CoreId(0)), 4);
        assert_eq!(place(&moved, copy(2, 0), 4), Some(CoreId(3)));
        assert_eq!(place(&moved, copy(1, 1), 4), Some(CoreId(0)));
        assert_eq!((place(&moved, copy(1, 0), 4), place(&moved, copy(2, 0), 5)), (None, None));
        let elsewhere = moved.with_place(copy(0, 0), Some(CoreId(4)), 5);
        assert_eq!((place(&elsewhere, copy(0, 0), 5), place(&elsewhere, copy(2, 0), 4)), (Some(CoreId(4)), None));
        let back = moved.with_place(copy(2, 0), None, 4).with_place(copy(1, 1), None, 4);
        assert_eq!(back, catalog);
    }

    #[test]
    fn partition_counts_are_checked_at_both_ends() {
        for (count, fine) in
            [(0, false), (1, true), (PARTITIONS_PER_LOG_MAX, true), (PARTITIONS_PER_LOG_MAX + 1, false)]
        {
            assert_eq!(Catalog::default().with_log(&create("a", count), (1, 0)).is_ok(), fine, "{count} partitions");
        }
    }
}

//! Which logs exist, with their settings. Pure; `shard` keeps it on disk and carries its changes to every core.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    error::RequestError,
    limits::{LOGS_MAX, PARTITIONS_PER_LOG_MAX},
    name::LogName,
    replication::assignment::{Configuration, ReplicaId},
    settings::{LogSettings, Replication},
    shard::{
        placement::Layout,
        request::{AlterLog, CreateLog},
    },
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
    /// What its copies were before a change of them that is under way: some partitions may still be like that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Replication>,
    /// Its creation is not complete: a copy of a partition that is not there was never there, and may be made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub founding: bool,
    /// How many drives there were when it was created: the drive of each copy follows from that.
    #[serde(default = "one_drive", skip_serializing_if = "is_one")]
    pub drives: u16,
    /// How: see [`Layout`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dealt: bool,
    /// The copy that is to lead a partition where that is not the first one, in the order of the partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaders: Vec<(PartitionIndex, ReplicaId)>,
    /// Copies that were moved away from the core that they would be on.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    pub places: Places,
    /// Partitions that an operator put where they are, in their order: they do not move by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<PartitionIndex>,
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

    /// Forgets the copies that are none any more.
    fn keep(&mut self, is_copy: impl Fn(ReplicaId) -> bool) {
        self.moved.retain(|(_, copy, _)| is_copy(*copy));
        self.cores = if self.moved.is_empty() { 0 } else { self.cores };
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

    /// Its copies, if they know of each other: there are several of each partition, or there were.
    pub fn replication(&self) -> Option<Replication> {
        self.settings.replication
    }

    /// How its copies are spread over drives.
    pub fn layout(&self) -> Layout {
        Layout { drives: self.drives, dealt: self.dealt }
    }

    /// What a copy takes for the members that knows nothing of its partition any more. While they change any partition
    /// may have the former ones, or those to be, or both: so it has to hear from enough of either.
    pub fn configuration(&self) -> Option<Configuration> {
        let target = self.replication()?.members().ok()?;
        let former = self.former.and_then(|former| former.members().ok());
        let founding = Configuration::founding(former.unwrap_or(target));
        Some(Configuration { incoming: former.map(|_| target), ..founding })
    }

    /// The copy that is to lead a partition, if it can.
    pub fn preferred(&self, partition: PartitionIndex) -> ReplicaId {
        let at = self.leaders.binary_search_by_key(&partition, |(index, _)| *index);
        let chosen = at.map_or(ReplicaId(0), |at| self.leaders[at].1);
        // One that is given up leads no more.
        let stays = self.settings.replication.is_none_or(|to_be| chosen.0 < to_be.replication_factor);
        if stays { chosen } else { ReplicaId(0) }
    }

    /// What its copies were before, if they are to be like `wanted` and are not yet. One change at a time, but one that
    /// is under way may be turned back.
    ///
    /// Errors: `SettingsRefused`.
    fn former_after(&self, wanted: Option<Replication>) -> Result<Option<Replication>, RequestError> {
        if wanted == self.settings.replication {
            return Ok(self.former);
        }
        let now = self.settings.replication.unwrap_or(Replication::SINGLE);
        let refused = |reason: String| Err(RequestError::SettingsRefused { reason });
        match self.former {
            _ if self.founding => refused("its creation is not complete; try again later".to_owned()),
            Some(former) if wanted != Some(former) => refused(format!(
                "its copies are changing from {former} to {now} already; when that is done they can change again, or \
                 they can be given back what they were"
            )),
            _ => Ok(Some(now)),
        }
    }

    /// Whether a partition moves by an operator's word only.
    pub fn is_pinned(&self, partition: PartitionIndex) -> bool {
        self.pinned.binary_search(&partition).is_ok()
    }

    /// Whether each partition has such a copy.
    pub fn has_slot(&self, copy: ReplicaId) -> bool {
        self.slots().any(|slot| slot == copy)
    }

    /// The copies of each partition; while they change those that were and those to be.
    pub fn slots(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        let both = [self.settings.replication, self.former];
        let most = both.into_iter().flatten().map(|replication| replication.replication_factor).max();
        (0..most.unwrap_or(1)).map(ReplicaId)
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
            former: None,
            founding: false,
            drives: drives.max(1),
            dealt: drives > 1,
            leaders: Vec::new(),
            places: Places::default(),
            pinned: Vec::new(),
            created_ms: now_ms,
        });
        let founding = log.replication().is_some();
        let log = Arc::new(LogEntry { founding, ..LogEntry::clone(&log) });
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
        let former = log.former_after(settings.replication)?;
        let log = Arc::new(LogEntry { settings, former, ..LogEntry::clone(log) });
        let mut next = self.clone();
        next.replace(Arc::clone(&log));
        Ok((next, log))
    }

    /// The catalogue in which the only copies of the log `uid` are about to be members that know of no other.
    pub fn with_only_members(&self, uid: LogUid) -> Catalog {
        let mut next = self.clone();
        if let Some(log) = self.by_uid.get(&uid) {
            let settings = LogSettings { replication: Some(Replication::SINGLE), ..log.settings };
            next.replace(Arc::new(LogEntry { settings, founding: true, ..LogEntry::clone(log) }));
        }
        next
    }

    /// The catalogue in which the only members of the log `uid` are copies again that could have no others.
    pub fn with_only_copies(&self, uid: LogUid) -> Catalog {
        let mut next = self.clone();
        if let Some(log) = self.by_uid.get(&uid) {
            let settings = LogSettings { replication: None, ..log.settings };
            next.replace(Arc::new(LogEntry { settings, founding: false, ..LogEntry::clone(log) }));
        }
        next
    }

    /// The catalogue after every partition of the log `uid` has the members that its settings say.
    pub fn with_settled(&self, uid: LogUid) -> Catalog {
        let mut next = self.clone();
        if let Some(log) = self.by_uid.get(&uid) {
            let mut log = LogEntry { former: None, ..LogEntry::clone(log) };
            let copies: Vec<_> = log.slots().collect();
            log.leaders.retain(|(_, copy)| copies.contains(copy));
            log.places.keep(|copy| copies.contains(&copy));
            next.replace(Arc::new(log));
        }
        next
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

    /// The catalogue in which a partition moves by an operator's word only, or by itself again.
    pub fn with_pin(&self, partition: PartitionId, is_pinned: bool) -> Catalog {
        let mut next = self.clone();
        if let Some(log) = self.by_uid.get(&partition.log) {
            let others = log.pinned.iter().copied().filter(|index| *index != partition.index);
            let mut pinned: Vec<_> = others.chain(is_pinned.then_some(partition.index)).collect();
            pinned.sort_unstable();
            next.replace(Arc::new(LogEntry { pinned, ..LogEntry::clone(log) }));
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
    fn a_partition_is_pinned_until_it_is_released() {
        let (catalog, log) = Catalog::default().with_log(&create("a", 3), (1, 0)).unwrap();
        let partition = |index| PartitionId { log: log.uid, index: PartitionIndex(index) };
        let pinned = catalog.with_pin(partition(2), true).with_pin(partition(0), true).with_pin(partition(2), true);
        let of = |catalog: &Catalog| {
            [0, 1, 2].map(|index| catalog.by_uid(log.uid).unwrap().is_pinned(PartitionIndex(index)))
        };
        assert_eq!(of(&pinned), [true, false, true]);
        let left = pinned.with_pin(partition(0), false).with_pin(partition(1), false);
        assert_eq!(of(&left), [false, false, true]);
        assert_eq!(left.with_pin(partition(2), false), catalog);
    }

    #[test]
    fn what_the_copies_were_is_kept_until_all_have_changed_and_one_change_waits_for_another() {
        let of = |replication_factor| Replication { replication_factor, write_quorum: 1, read_quorum: 1 };
        let settings = LogSettings { replication: Some(of(3)), ..LogSettings::default() };
        let (catalog, log) = Catalog::default().with_log(&CreateLog { settings, ..create("a", 1) }, (1, 0)).unwrap();
        let alter = |n| {
            let changes = LogChanges { replication: Some(of(n).into()), ..LogChanges::default() };
            AlterLog { name: log.name.clone(), changes }
        };
        assert!(catalog.with_changes(&alter(2)).is_err(), "it is not made completely");
        let partition = PartitionId { log: log.uid, index: PartitionIndex(0) };
        let catalog = catalog.with_founded(log.uid).with_leader(partition, ReplicaId(2));
        let (changing, entry) = catalog.with_changes(&alter(2)).unwrap();
        assert_eq!((entry.former, entry.replication(), entry.slots().count()), (Some(of(3)), Some(of(2)), 3));
        assert_eq!(entry.preferred(PartitionIndex(0)), ReplicaId(0), "who is given up is not to lead");
        let config = entry.configuration().unwrap();
        assert_eq!((config.current, config.incoming), (of(3).members().unwrap(), of(2).members().ok()));
        assert!(matches!(changing.with_changes(&alter(4)), Err(RequestError::SettingsRefused { .. })));
        assert_eq!(changing.with_changes(&alter(2)).unwrap().1, entry);
        let (_, back) = changing.with_changes(&alter(3)).unwrap();
        assert_eq!((back.former, back.replication(), back.slots().count()), (Some(of(2)), Some(of(3)), 3));
        let settled = changing.with_settled(log.uid);
        let entry = settled.by_uid(log.uid).unwrap();
        assert_eq!((entry.former, entry.slots().count(), entry.leaders.len()), (None, 2, 0));
        assert_eq!(entry.configuration().unwrap().incoming, None);
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

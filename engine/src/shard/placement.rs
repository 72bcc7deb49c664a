//! Which core has which copy of which partition: rendezvous hashing, so that every core computes the same answer, and a
//! change of the core count moves as few partitions as possible; unless the catalogue says that the copy was moved.
//! Nothing on disk depends on a core; on which drive a copy is depends on how many there were when its log was made,
//! and on nothing else.
//!
//! Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), with splitmix64 as the
//! hash.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::CopyId;
use crate::{
    catalog::LogEntry,
    replication::assignment::ReplicaId,
    types::{CoreId, DriveId, PartitionId},
};

/// The drives of a server that are there, and the cores of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drives {
    mounted: Vec<(DriveId, PathBuf)>,
    /// How many there are, also those that are away.
    known: u16,
    /// Those of them that were away, or are copies of an earlier time.
    old: BTreeSet<DriveId>,
    /// Those that are empty in the place of one that was there.
    replaced: BTreeSet<DriveId>,
    cores: usize,
}

impl Drives {
    /// One drive for all cores.
    pub fn single(data_dir: &Path) -> Self {
        Drives::new(vec![(DriveId(0), data_dir.to_path_buf())])
    }

    /// These drives, by their numbers and folders; the cores are dealt out to them in turn. One core for each, until it
    /// is known how many there are.
    pub fn new(mounted: Vec<(DriveId, PathBuf)>) -> Self {
        assert!(!mounted.is_empty(), "a server has a drive");
        let cores = mounted.len();
        let known = mounted.iter().map(|(drive, _)| drive.0 + 1).max().unwrap_or(1);
        Drives { mounted, known, old: BTreeSet::new(), replaced: BTreeSet::new(), cores }
    }

    /// The same of a server that is known to have so many.
    pub fn with_known(self, known: u16) -> Self {
        Drives { known: self.known.max(known), ..self }
    }

    /// The same, of which these do not have all that they once had.
    pub fn with_old(self, old: BTreeSet<DriveId>) -> Self {
        Drives { old, ..self }
    }

    /// The same, of which these are empty in the place of others.
    pub fn with_replaced(self, replaced: BTreeSet<DriveId>) -> Self {
        Drives { replaced, ..self }
    }

    /// Whether a drive is an empty one in the place of another.
    pub fn is_replaced(&self, drive: DriveId) -> bool {
        self.replaced.contains(&drive)
    }

    /// Whether a drive may not have all that it once had.
    pub fn is_old(&self, drive: DriveId) -> bool {
        self.old.contains(&drive)
    }

    /// The same on `cores` cores.
    ///
    /// Panics if a drive would have none: the configuration is checked before.
    pub fn on(self, cores: usize) -> Self {
        assert!(cores >= self.mounted.len(), "{cores} cores for {:?}", self.mounted);
        Drives { cores, ..self }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (DriveId, &Path)> {
        self.mounted.iter().map(|(drive, dir)| (*drive, dir.as_path()))
    }

    /// How many drives the server has, also those that are away.
    pub fn known(&self) -> u16 {
        self.known
    }

    /// Those that are away.
    pub fn away(&self) -> impl Iterator<Item = DriveId> {
        (0..self.known).map(DriveId).filter(|drive| self.mounted.iter().all(|(there, _)| there != drive))
    }

    /// Whether none is away.
    pub fn is_complete(&self) -> bool {
        self.away().next().is_none()
    }

    fn at(&self, core: CoreId) -> &(DriveId, PathBuf) {
        &self.mounted[usize::from(core.0) % self.mounted.len()]
    }

    /// The drive of a core.
    pub fn of(&self, core: CoreId) -> DriveId {
        self.at(core).0
    }

    /// The data directory of a core.
    pub fn dir_of(&self, core: CoreId) -> &Path {
        &self.at(core).1
    }

    /// The core that has a copy of `log`: that which it was moved to, if that is possible here, or else that which it
    /// is on by itself. `None` if its drive is away.
    pub fn place(&self, log: &LogEntry, CopyId { partition, copy }: CopyId) -> Option<CoreId> {
        let moved = log.places.of((partition.index, copy), self.cores as u16);
        let drive = drive_of(partition, copy, log.drives);
        let is_possible = |core: &CoreId| usize::from(core.0) < self.cores && self.of(*core) == drive;
        moved.filter(is_possible).or_else(|| self.home(partition, copy, log.drives))
    }

    /// The core that by itself has this copy of `partition`, whose log was made when there were `drives` of them:
    /// copies are on drives of their own while there are enough, and on cores of their own. `None` if its drive is
    /// away.
    pub fn home(&self, partition: PartitionId, copy: ReplicaId, drives: u16) -> Option<CoreId> {
        let drive = drive_of(partition, copy, drives);
        let (copy, drives) = (usize::from(copy.0), usize::from(drives.max(1)));
        let at = self.mounted.iter().position(|(number, _)| *number == drive)?;
        let cores = || (at..self.cores).step_by(self.mounted.len());
        let key = key(partition);
        let core = ranked(cores(), copy / drives % cores().count(), |core| mix(key ^ mix(core as u64 + 1)));
        Some(CoreId(core as u16))
    }
}

/// The drive of this copy of `partition`, whose log was made when there were `drives` of them.
pub fn drive_of(partition: PartitionId, copy: ReplicaId, drives: u16) -> DriveId {
    let (key, drives) = (key(partition), usize::from(drives.max(1)));
    let drive = ranked(0..drives, usize::from(copy.0) % drives, |drive| mix(key ^ mix(!(drive as u64))));
    DriveId(drive as u16)
}

fn key(partition: PartitionId) -> u64 {
    mix(partition.log.0 ^ mix(u64::from(partition.index.0)))
}

/// The one of these with the highest weight, or the next highest …
fn ranked(all: impl Iterator<Item = usize> + Clone, rank: usize, weight: impl Fn(usize) -> u64) -> usize {
    let weighed = all.map(|one| (weight(one), one));
    let mut place = weighed.clone().max();
    for _ in 0..rank {
        place = weighed.clone().filter(|next| Some(*next) < place).max();
    }
    place.map_or(0, |(_, one)| one)
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::Catalog,
        settings::LogSettings,
        shard::request::CreateLog,
        types::{LogUid, PartitionIndex},
    };

    fn all() -> impl Iterator<Item = PartitionId> {
        (1..=100).flat_map(|log| (0..40).map(move |p| PartitionId { log: LogUid(log), index: PartitionIndex(p) }))
    }

    fn drives(count: u16, cores: usize) -> Drives {
        Drives::new((0..count).map(|drive| (DriveId(drive), PathBuf::from(format!("/{drive}")))).collect()).on(cores)
    }

    fn owner(partition: PartitionId, cores: usize) -> CoreId {
        drives(1, cores).home(partition, ReplicaId(0), 1).unwrap()
    }

    #[test]
    fn partitions_spread_evenly() {
        for cores in [1, 2, 3, 8] {
            let mut owned = vec![0usize; cores];
            all().for_each(|p| owned[usize::from(owner(p, cores).0)] += 1);
            let fair = 4000 / cores;
            assert!(owned.iter().all(|n| n.abs_diff(fair) < fair / 5 + 1), "{owned:?}");
        }
    }

    #[test]
    fn a_further_core_takes_its_share_and_moves_nothing_else() {
        for p in all() {
            let (before, after) = (owner(p, 4), owner(p, 5));
            assert!(after == before || after == CoreId(4), "{p} moved from {before} to {after}");
        }
    }

    #[test]
    fn copies_are_on_drives_and_cores_of_their_own_while_there_are_enough() {
        for (count, cores) in [(1, 1), (1, 5), (2, 4), (3, 3), (3, 8)] {
            let drives = drives(count, cores);
            let mut leaders = vec![0; cores];
            for p in all() {
                let homes: Vec<_> = (0..8).map(|copy| drives.home(p, ReplicaId(copy), count).unwrap()).collect();
                let on: BTreeSet<_> = homes[..usize::from(count)].iter().map(|core| drives.of(*core)).collect();
                assert_eq!(on.len(), usize::from(count), "{homes:?}");
                let enough = cores / usize::from(count) * usize::from(count);
                let distinct: BTreeSet<_> = homes[..enough.min(8)].iter().collect();
                assert_eq!(distinct.len(), enough.min(8), "{homes:?}");
                leaders[usize::from(homes[0].0)] += 1;
            }
            let fair = 4000 / cores;
            assert!(leaders.iter().all(|n| *n > fair / 2), "{leaders:?}");
        }
    }

    #[test]
    fn a_copy_is_where_it_was_moved_to_if_that_core_has_its_drive() {
        let name = "a".parse().unwrap();
        let create = CreateLog { name, partitions: 1, settings: LogSettings::default() };
        let (catalog, log) = Catalog::default().with_log(&create, (2, 0)).unwrap();
        let id = CopyId::only(log.partition_ids().next().unwrap());
        let server = drives(2, 6);
        let own = server.place(&log, id).unwrap();
        for core in (0..8).map(CoreId) {
            let moved = catalog.with_place((id.partition, id.copy), Some(core), 6);
            let is_possible = core.0 < 6 && server.of(core) == server.of(own);
            let place = server.place(moved.by_uid(log.uid).unwrap(), id);
            assert_eq!(place, Some(if is_possible { core } else { own }), "{core}");
            let away = Drives::new(vec![(DriveId(1 - server.of(own).0), PathBuf::from("/other"))]).on(6);
            assert_eq!(away.place(moved.by_uid(log.uid).unwrap(), id), None);
        }
    }

    #[test]
    fn a_copy_stays_on_its_drive_whatever_is_added_or_away() {
        let (before, after) = (drives(2, 4), drives(3, 7));
        let without = Drives::new(vec![(DriveId(1), PathBuf::from("/1"))]).on(2);
        for (p, copy) in all().flat_map(|p| (0..4).map(move |copy| (p, ReplicaId(copy)))) {
            let drive = before.of(before.home(p, copy, 2).unwrap());
            assert_eq!(after.of(after.home(p, copy, 2).unwrap()), drive);
            assert_eq!(without.home(p, copy, 2).is_some(), drive == DriveId(1));
        }
        assert!(before.is_complete() && !without.is_complete() && without.known() == 2);
    }
}

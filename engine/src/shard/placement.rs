//! Which core has which copy of which partition. Partitions are dealt out like cards, first over the drives, then over
//! the cores of each: a log of as many partitions as there are cores keeps all of them busy, which a hash would not.
//! The further copies are dealt so that what one core leads is followed by all others in turn, and a core that fails
//! leaves each of them a like share. Every core computes the same answer, unless the catalogue says that the copy was
//! moved. Nothing on disk depends on a core; on which drive a copy is depends on how many there were when its log was
//! made, and on nothing else.
//!
//! Source: the assignment of replicas in Kafka (`AdminUtils.assignReplicasToBrokersRackUnaware`), with the log's number
//! where that draws where to begin.

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

/// How the copies of a log are spread over drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many there were when it was made.
    pub drives: u16,
    /// Whether they were dealt out; else a hash decides, as it did for the first logs.
    pub dealt: bool,
}

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
        let drive = drive_of(partition, copy, log.layout());
        let is_possible = |core: &CoreId| usize::from(core.0) < self.cores && self.of(*core) == drive;
        moved.filter(is_possible).or_else(|| self.home(partition, copy, log.layout()))
    }

    /// The core that by itself has this copy of `partition`, of a log with this layout: copies are on drives of their
    /// own while there are enough, and on cores of their own. `None` if its drive is away.
    pub fn home(&self, partition: PartitionId, copy: ReplicaId, layout: Layout) -> Option<CoreId> {
        let drive = drive_of(partition, copy, layout);
        let at = self.mounted.iter().position(|(number, _)| *number == drive)?;
        let mut cores = (at..self.cores).step_by(self.mounted.len());
        let drives = u64::from(layout.drives.max(1));
        let core = cores.nth(dealt(turn(partition) / drives, u64::from(copy.0) / drives, cores.len()))?;
        Some(CoreId(core as u16))
    }
}

/// The drive of this copy of `partition`, of a log with this layout.
pub fn drive_of(partition: PartitionId, copy: ReplicaId, Layout { drives, dealt: is_dealt }: Layout) -> DriveId {
    let (rank, drives) = (u64::from(copy.0), usize::from(drives.max(1)));
    let drive =
        if is_dealt { dealt(turn(partition), rank, drives) } else { hashed(partition, rank as usize % drives, drives) };
    DriveId(drive as u16)
}

/// Whose turn it is when a partition is dealt. Logs begin one after the other, so that those of one partition are
/// spread like those of many.
fn turn(partition: PartitionId) -> u64 {
    partition.log.0.wrapping_add(u64::from(partition.index.0))
}

/// Which of `among` gets the copy of this rank at this turn: those of ranks below `among` go to different ones, and
/// from round to round another one comes after the first.
fn dealt(turn: u64, rank: u64, among: usize) -> usize {
    let among = among as u64;
    let (first, rank) = (turn % among, rank % among);
    let place = if rank == 0 { first } else { first + 1 + (turn / among + rank - 1) % (among - 1) };
    (place % among) as usize
}

/// The drive of a log that was made when they were chosen by rendezvous hashing (Thaler and Ravishankar, "Using
/// name-based mappings to increase hit rates", 1998).
fn hashed(partition: PartitionId, rank: usize, drives: usize) -> usize {
    let key = mix(partition.log.0 ^ mix(u64::from(partition.index.0)));
    let mut weighed: Vec<_> = (0..drives).map(|drive| (mix(key ^ mix(!(drive as u64))), drive)).collect();
    weighed.sort_unstable_by(|a, b| b.cmp(a));
    weighed[rank].1
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

    fn partition(log: u64, index: u32) -> PartitionId {
        PartitionId { log: LogUid(log), index: PartitionIndex(index) }
    }

    fn all() -> impl Iterator<Item = PartitionId> {
        (1..=100).flat_map(|log| (0..40).map(move |p| partition(log, p)))
    }

    fn drives(count: u16, cores: usize) -> Drives {
        Drives::new((0..count).map(|drive| (DriveId(drive), PathBuf::from(format!("/{drive}")))).collect()).on(cores)
    }

    fn dealt_over(drives: u16) -> Layout {
        Layout { drives, dealt: true }
    }

    /// The cores of the first copies of all partitions of a log, or of many logs with one each.
    fn owned(drives: &Drives, partitions: impl Iterator<Item = PartitionId>) -> Vec<u32> {
        let mut owned = vec![0; drives.cores];
        let layout = dealt_over(drives.known());
        partitions.for_each(|p| owned[usize::from(drives.home(p, ReplicaId(0), layout).unwrap().0)] += 1);
        owned
    }

    #[test]
    fn every_log_keeps_all_cores_busy_and_so_do_many_small_ones() {
        for (count, cores) in [(1, 1), (1, 2), (1, 3), (1, 8), (2, 4), (3, 3), (4, 8)] {
            let drives = drives(count, cores);
            for (log, partitions) in (1..20).flat_map(|log| (1..=17).map(move |partitions| (log, partitions))) {
                let owned = owned(&drives, (0..partitions).map(|p| partition(log, p)));
                let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
                assert!(most - least <= 1, "{count} drives, {cores} cores, {partitions} partitions: {owned:?}");
            }
            let small = owned(&drives, (1..=24).map(|log| partition(log, 0)));
            assert_eq!(small, vec![24 / cores as u32; cores], "{count} drives");
        }
    }

    #[test]
    fn what_a_core_leads_is_followed_by_all_others_alike() {
        for (count, cores) in [(1, 4), (4, 4), (5, 5)] {
            let drives = drives(count, cores);
            let mut followed = vec![vec![0; cores]; cores];
            for p in 0..(cores * (cores - 1)) as u32 {
                let home =
                    |copy| usize::from(drives.home(partition(7, p), ReplicaId(copy), dealt_over(count)).unwrap().0);
                followed[home(0)][home(1)] += 1;
            }
            let alike =
                |(core, row): (usize, &Vec<i32>)| (0..cores).all(|other| row[other] == i32::from(other != core));
            assert!(followed.iter().enumerate().all(alike), "{followed:?}");
        }
    }

    #[test]
    fn the_first_logs_stay_where_they_are() {
        let hashed = Layout { drives: 3, dealt: false };
        let of = |p| [0, 1, 2].map(|copy| drive_of(partition(1, p), ReplicaId(copy), hashed).0);
        let drives = [0, 1, 2, 3, 4, 5].map(of);
        assert_eq!(drives, [[2, 0, 1], [1, 2, 0], [2, 1, 0], [0, 1, 2], [2, 0, 1], [1, 2, 0]]);
    }

    #[test]
    fn copies_are_on_drives_and_cores_of_their_own_while_there_are_enough() {
        for (count, cores) in [(1, 1), (1, 5), (2, 4), (3, 3), (3, 8)] {
            let drives = drives(count, cores);
            let mut leaders = vec![0; cores];
            for p in all() {
                let homes: Vec<_> =
                    (0..8).map(|copy| drives.home(p, ReplicaId(copy), dealt_over(count)).unwrap()).collect();
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
            let drive = before.of(before.home(p, copy, dealt_over(2)).unwrap());
            assert_eq!(after.of(after.home(p, copy, dealt_over(2)).unwrap()), drive);
            assert_eq!(without.home(p, copy, dealt_over(2)).is_some(), drive == DriveId(1));
        }
        assert!(before.is_complete() && !without.is_complete() && without.known() == 2);
    }
}

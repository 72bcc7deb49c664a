//! Partitions as an operator sees them: what the cores say of their copies, put together.

use std::{collections::BTreeMap, time::Duration};

use pyralog_engine::{
    shard::control::{PartitionStatus, ReplicaRole, ReplicaStatus},
    types::CoreId,
};
use serde_json::{Value, json};

use super::cores::Cores;

/// A core that says nothing for so long is left out: the others' copies are still to be seen.
const PATIENCE: Duration = Duration::from_secs(1);

/// All copies of a partition, put together.
pub struct Partition {
    /// As its leader sees it; without one, as the copy does that has most. The roles are what each copy says itself.
    pub status: PartitionStatus,
}

/// A copy that lost its memory and is being given back what it had.
pub struct Rebuilding {
    /// Where it is.
    pub core: CoreId,
    /// Records that it does not have yet.
    pub records_left: u64,
}

/// All partitions, by log and number.
pub async fn all(cores: &Cores) -> Vec<Partition> {
    let mut said = Vec::new();
    for control in &cores.controls {
        let answer = tokio::time::timeout(PATIENCE, control.partitions()).await;
        said.extend(answer.ok().flatten().unwrap_or_default());
    }
    put_together(said)
}

fn put_together(said: Vec<PartitionStatus>) -> Vec<Partition> {
    let mut by_partition: BTreeMap<_, Vec<PartitionStatus>> = BTreeMap::new();
    for status in said {
        by_partition.entry((status.log.clone(), status.partition)).or_default().push(status);
    }
    by_partition.into_values().filter_map(Partition::of).collect()
}

impl Partition {
    fn of(mut copies: Vec<PartitionStatus>) -> Option<Self> {
        let own: BTreeMap<_, ReplicaStatus> = copies
            .iter()
            .flat_map(|copy| copy.replicas.iter().filter(|replica| replica.replica == copy.replica))
            .map(|replica| (replica.replica, replica.clone()))
            .collect();
        // A leader that does not know yet that it was deposed is of an earlier epoch.
        copies.sort_by_key(|copy| (copy.leads, copy.epoch, copy.durable_end_offset));
        let mut status = copies.pop()?;
        status.repaired_records += copies.iter().map(|copy| copy.repaired_records).sum::<u64>();
        status.damages.extend(copies.into_iter().flat_map(|copy| copy.damages));
        if status.leads {
            for replica in &mut status.replicas {
                own.get(&replica.replica).into_iter().for_each(|own| replica.take_its_word(own));
            }
        } else {
            status.replicas = own.into_values().collect();
        }
        Some(Partition { status })
    }

    /// How many copies keep up with the leader, itself included; none without one.
    pub fn in_sync(&self) -> usize {
        self.status.replicas.iter().filter(|replica| replica.in_sync).count()
    }

    /// The copies that are being rebuilt.
    pub fn rebuilding(&self) -> impl Iterator<Item = Rebuilding> {
        let end = self.status.log_end_offset.0;
        let rebuilding = self.status.replicas.iter().filter(|replica| replica.role == ReplicaRole::Rebuilding);
        rebuilding.filter_map(move |replica| {
            Some(Rebuilding { core: replica.core?, records_left: end.saturating_sub(replica.durable_offset.0) })
        })
    }

    /// Whether fewer copies keep up than there are to be.
    pub fn is_under_replicated(&self) -> bool {
        self.in_sync() < usize::from(self.status.replication.replication_factor)
    }

    /// Whether there are several copies.
    pub fn is_replicated(&self) -> bool {
        self.status.replication.replication_factor > 1
    }

    /// Whether `core` has the copy that leads.
    pub fn is_led_by(&self, core: CoreId) -> bool {
        self.status.leads && self.status.core == core
    }

    /// How many copies `core` has.
    pub fn copies_on(&self, core: CoreId) -> usize {
        self.status.replicas.iter().filter(|replica| replica.core == Some(core)).count()
    }

    /// For `/status`.
    pub fn shown(&self) -> Value {
        let mut shown = json!(self.status);
        shown["in_sync"] = self.in_sync().into();
        shown
    }
}

/// The fewest copies in sync of any partition that has several; 1 if none has.
pub fn isr_count(partitions: &[Partition]) -> usize {
    partitions.iter().filter(|partition| partition.is_replicated()).map(Partition::in_sync).min().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use pyralog_engine::{
        replication::assignment::ReplicaId,
        settings::Replication,
        shard::control::Places,
        types::{LeaderEpoch, Offset, PartitionIndex},
    };

    use super::*;

    fn replica(number: u8, role: ReplicaRole, in_sync: bool) -> ReplicaStatus {
        ReplicaStatus {
            replica: ReplicaId(number),
            core: Some(CoreId(u16::from(number))),
            role,
            received_offset: Offset(9),
            written_offset: Offset(9),
            durable_offset: Offset(9),
            in_sync,
            lag_ms: 0,
            damaged: None,
            withheld: None,
            problem: None,
        }
    }

    /// What copy `number`, on the core of this number, says in this epoch.
    fn said(number: u8, epoch: u32, leads: bool, replicas: Vec<ReplicaStatus>) -> PartitionStatus {
        PartitionStatus {
            log: "default/a".to_owned(),
            partition: PartitionIndex(0),
            core: CoreId(u16::from(number)),
            replica: ReplicaId(number),
            leads,
            replication: Replication { replication_factor: 3, write_quorum: 2, read_quorum: 1 },
            wanted: None,
            pinned: false,
            replicas,
            start_offset: Offset(0),
            high_watermark: Offset(9),
            log_end_offset: Offset(9),
            durable_end_offset: Offset(9),
            epoch: LeaderEpoch(epoch),
            forced_epoch: LeaderEpoch(0),
            size_bytes: 1,
            read_only: None,
            damages: Vec::new(),
            repaired_records: 0,
        }
    }

    #[test]
    fn the_later_of_two_leaders_speaks_for_the_partition_and_each_copy_says_what_it_is() {
        use ReplicaRole::{Follower, Leader, Rebuilding};
        let all =
            |leader| (0..3).map(move |n| replica(n, if n == leader { Leader } else { Follower }, n < 2)).collect();
        let old = said(0, 8, true, all(0));
        let new = said(1, 9, true, all(1));
        let third = said(2, 9, false, vec![replica(2, Rebuilding, false)]);
        let partitions = put_together(vec![old, new, third]);
        let [partition] = &partitions[..] else { panic!("{}", partitions.len()) };
        assert!(partition.is_led_by(CoreId(1)) && !partition.is_led_by(CoreId(0)));
        let roles: Vec<_> = partition.status.replicas.iter().map(|replica| replica.role).collect();
        assert_eq!(roles, [Leader, Leader, Rebuilding]);
        assert_eq!((partition.in_sync(), isr_count(&partitions)), (2, 2));
        assert!(partition.is_under_replicated());
        assert_eq!(partition.shown()["in_sync"], 2);
        let rebuilding: Vec<_> = partition.rebuilding().map(|one| (one.core, one.records_left)).collect();
        assert_eq!(rebuilding, [(CoreId(2), 0)]);
    }

    #[test]
    fn a_partition_without_a_leader_shows_the_copies_that_are_there() {
        use ReplicaRole::{Candidate, Follower};
        let one = said(0, 9, false, vec![replica(0, Candidate, false)]);
        let other = said(2, 8, false, vec![replica(2, Follower, false)]);
        let partitions = put_together(vec![one, other]);
        assert_eq!((partitions[0].status.leads, isr_count(&partitions)), (false, 0));
        let shown: Vec<_> = partitions[0].status.replicas.iter().map(|r| (r.replica.0, r.role)).collect();
        assert_eq!(shown, [(0, Candidate), (2, Follower)]);
    }

    #[test]
    fn what_a_copy_cannot_read_is_shown_as_it_says_itself() {
        use ReplicaRole::{Follower, Leader};
        let of_leader = vec![replica(0, Leader, true), replica(1, Follower, true)];
        let places = Places { places: 2, first_offset: Offset(7), records: Some(3) };
        let mut own = replica(1, Follower, false);
        own.damaged = Some(places);
        own.withheld = Some(Places { records: None, ..places });
        let partitions = put_together(vec![said(0, 9, true, of_leader), said(1, 9, false, vec![own])]);
        let shown = &partitions[0].shown()["replicas"];
        assert!(shown[0]["damaged"].is_null() && shown[0]["withheld"].is_null(), "{shown}");
        assert_eq!(shown[1]["damaged"], json!({ "places": 2, "first_offset": 7, "records": 3 }));
        assert_eq!(shown[1]["withheld"]["places"], 2);
        assert_eq!(shown[1]["in_sync"], true, "that the leader knows");
    }

    #[test]
    fn single_copies_are_not_what_the_fewest_is_of() {
        let mut single = said(0, 0, true, vec![replica(0, ReplicaRole::Leader, true)]);
        single.replication = Replication::SINGLE;
        let partitions = put_together(vec![single]);
        assert_eq!((isr_count(&partitions), isr_count(&[])), (1, 1));
        assert!(!partitions[0].is_under_replicated());
    }
}

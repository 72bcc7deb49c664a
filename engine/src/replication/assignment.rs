//! Who holds a partition, and how many of them a decision takes: replicas, quorums, and the change from one set to
//! another.
//!
//! Every quorum of the protocol is counted here, over sets of replicas, so that none is ever counted twice. Two facts
//! carry all of it: a write quorum and an election quorum of the same members always share a replica, and so do a write
//! quorum and a read quorum if `R + W > N`. While members change, whatever takes a quorum takes one of the old *and*
//! one of the new, so the two facts hold across the change too.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    limits::REPLICAS_MAX,
    testing::bug::{PlantedBug, planted},
    types::{LeaderEpoch, Offset},
};

/// One replica of a partition: a slot, 0 to `REPLICAS_MAX - 1`, that keeps its number while it moves between the cores
/// of a drive. Where a slot lives is the catalogue's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub u8);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A set of replicas. Being a set, it counts nobody twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaSet(u8);

const _: () = assert!(REPLICAS_MAX as u32 == u8::BITS, "a set is one byte, a bit for each slot");

impl ReplicaSet {
    /// Adds a replica; one that is in the set already changes nothing.
    pub fn insert(&mut self, replica: ReplicaId) {
        assert!(replica.0 < REPLICAS_MAX, "replica {replica} of at most {REPLICAS_MAX}");
        self.0 |= 1 << replica.0;
    }

    /// Takes a replica out.
    pub fn remove(&mut self, replica: ReplicaId) {
        assert!(replica.0 < REPLICAS_MAX, "replica {replica} of at most {REPLICAS_MAX}");
        self.0 &= !(1 << replica.0);
    }

    /// Whether the replica is in the set.
    pub fn contains(self, replica: ReplicaId) -> bool {
        replica.0 < REPLICAS_MAX && self.0 & (1 << replica.0) != 0
    }

    /// How many are in the set.
    pub fn len(self) -> u8 {
        self.0.count_ones() as u8
    }

    /// Whether nobody is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are in either set.
    pub fn union(self, other: Self) -> Self {
        ReplicaSet(self.0 | other.0)
    }

    /// Those that are in both.
    pub fn intersection(self, other: Self) -> Self {
        ReplicaSet(self.0 & other.0)
    }

    /// The set without `replica`.
    pub fn without(mut self, replica: ReplicaId) -> Self {
        self.remove(replica);
        self
    }

    /// The replicas, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = ReplicaId> {
        (0..REPLICAS_MAX).map(ReplicaId).filter(move |replica| self.contains(*replica))
    }
}

impl FromIterator<ReplicaId> for ReplicaSet {
    fn from_iter<I: IntoIterator<Item = ReplicaId>>(replicas: I) -> Self {
        let mut set = ReplicaSet::default();
        replicas.into_iter().for_each(|replica| set.insert(replica));
        set
    }
}

impl fmt::Display for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (place, replica) in self.iter().enumerate() {
            write!(f, "{}{replica}", if place == 0 { "" } else { " " })?;
        }
        f.write_str("}")
    }
}

/// Why members were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MembersError {
    /// A partition has at least one replica.
    #[error("a partition has 1 to {REPLICAS_MAX} replicas, not 0")]
    NoReplicas,
    /// A quorum must be met by members alone.
    #[error("the {which} quorum is 1 to {replicas}, the number of replicas, not {quorum}")]
    QuorumOutOfRange {
        /// `write` or `read`.
        which: &'static str,
        /// What was asked for.
        quorum: u8,
        /// How many replicas there are.
        replicas: u8,
    },
}

/// The replicas of a partition and its quorums: N, W and R.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Members {
    /// The replicas; at least one.
    replicas: ReplicaSet,
    /// How many must hold a record before it is acknowledged; 1 to N.
    write_quorum: u8,
    /// How many must confirm that the leader still leads before it answers a read; 1 to N.
    read_quorum: u8,
}

impl Members {
    /// Members with `write_quorum` and `read_quorum`.
    ///
    /// Errors: `NoReplicas`, `QuorumOutOfRange`.
    pub fn new(replicas: ReplicaSet, write_quorum: u8, read_quorum: u8) -> Result<Self, MembersError> {
        if replicas.is_empty() {
            return Err(MembersError::NoReplicas);
        }
        for (which, quorum) in [("write", write_quorum), ("read", read_quorum)] {
            if !(1..=replicas.len()).contains(&quorum) {
                return Err(MembersError::QuorumOutOfRange { which, quorum, replicas: replicas.len() });
            }
        }
        Ok(Members { replicas, write_quorum, read_quorum })
    }

    /// The replicas.
    pub fn replicas(&self) -> ReplicaSet {
        self.replicas
    }

    /// W: how many hold what is acknowledged.
    pub fn write_quorum(&self) -> u8 {
        self.write_quorum
    }

    /// R: how many confirm a read.
    pub fn read_quorum(&self) -> u8 {
        self.read_quorum
    }

    /// N - W + 1: how many must vote for a leader. One fewer could all be replicas that an acknowledged record is not
    /// on.
    pub fn election_quorum(&self) -> u8 {
        let quorum = self.replicas.len() - self.write_quorum + 1;
        assert!(quorum + self.write_quorum > self.replicas.len(), "{self:?}: an election may miss a write");
        quorum
    }

    /// How many *others* a replica that lost its memory must hear from before it may follow anybody: so many that among
    /// them is one that knows of any promise it may have given, and of any epoch it may have led.
    pub fn inquiry_quorum(&self, replica: ReplicaId) -> u8 {
        self.write_quorum.min(self.replicas.without(replica).len())
    }

    /// Whether a read that is confirmed by R replicas sees every write that was acknowledged before.
    pub fn reads_are_linearizable(&self) -> bool {
        self.read_quorum + self.write_quorum > self.replicas.len()
    }

    fn counts(&self, set: ReplicaSet) -> u8 {
        set.intersection(self.replicas).len()
    }

    /// The offset up to which `write_quorum` members hold the log, when `held` says how far each does.
    fn held_by_quorum(&self, held: impl Fn(ReplicaId) -> Offset) -> Offset {
        let mut ends = [Offset(0); REPLICAS_MAX as usize];
        let mut count = 0;
        for replica in self.replicas.iter() {
            ends[count] = held(replica);
            count += 1;
        }
        ends[..count].sort_unstable_by(|a, b| b.cmp(a));
        assert!(usize::from(self.write_quorum) <= count, "write quorum {} of {count}", self.write_quorum);
        let bug = usize::from(planted(PlantedBug::CountTwice) && self.write_quorum > 1);
        ends[usize::from(self.write_quorum) - 1 - bug]
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} W{} R{}", self.replicas, self.write_quorum, self.read_quorum)
    }
}

/// Names a configuration, and orders them: a later reign's is newer, and within a reign the higher version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConfigId {
    /// The reign in which a leader issued it; a new leader issues the newest that it finds anew as its own.
    pub epoch: LeaderEpoch,
    /// Counts the changes of a partition's members.
    pub version: u32,
}

impl fmt::Display for ConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.version)
    }
}

/// Who decides about a partition now. Every replica keeps the newest that it heard of, with its ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Configuration {
    /// Its name.
    pub id: ConfigId,
    /// The members.
    pub current: Members,
    /// The members that are about to take over. While there are some, every quorum is needed among both.
    pub incoming: Option<Members>,
}

impl Configuration {
    /// The configuration that a partition is created with.
    pub fn founding(members: Members) -> Self {
        Configuration { id: ConfigId::default(), current: members, incoming: None }
    }

    /// Everybody who is a member, or about to be one.
    pub fn replicas(&self) -> ReplicaSet {
        self.parts().fold(ReplicaSet::default(), |all, part| all.union(part.replicas))
    }

    /// Whether nobody else is, or is about to be.
    pub fn has_one_member(&self) -> bool {
        self.replicas().len() == 1
    }

    fn parts(&self) -> impl Iterator<Item = &Members> {
        std::iter::once(&self.current).chain(&self.incoming)
    }

    /// Whether these hold enough for a record to be acknowledged, or for a configuration to be kept for ever.
    pub fn is_write_quorum(&self, set: ReplicaSet) -> bool {
        self.parts().all(|part| part.counts(set) >= part.write_quorum)
    }

    /// Whether these may make a leader.
    pub fn is_election_quorum(&self, set: ReplicaSet) -> bool {
        self.parts().all(|part| part.counts(set) >= part.election_quorum())
    }

    /// Whether a replica can forget that it voted, and be rebuilt without hearing of it, while others have not voted
    /// yet: it need not ask all others then, so perhaps not the candidate. With W = 1 no loss of memory is survived
    /// anyhow.
    pub fn may_miss_votes(&self) -> bool {
        self.parts().any(|part| part.write_quorum > 1 && part.write_quorum + 1 < part.replicas.len())
    }

    /// Whether these may confirm a read.
    pub fn is_read_quorum(&self, set: ReplicaSet) -> bool {
        self.parts().all(|part| part.counts(set) >= part.read_quorum)
    }

    /// Whether these, who are others, know whatever `replica` may have promised before it lost its memory.
    pub fn is_inquiry_quorum(&self, replica: ReplicaId, set: ReplicaSet) -> bool {
        let others = set.without(replica);
        self.parts().all(|part| part.counts(others) >= part.inquiry_quorum(replica))
    }

    /// The offset up to which a write quorum holds the log, when `held` says how far each replica does.
    pub fn held_by_quorum(&self, held: impl Fn(ReplicaId) -> Offset) -> Offset {
        let current = self.current.held_by_quorum(&held);
        self.incoming.map_or(current, |incoming| current.min(incoming.held_by_quorum(&held)))
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.current)?;
        match &self.incoming {
            Some(incoming) => write!(f, " -> {incoming}"),
            None => Ok(()),
        }
    }
}

/// The first epoch after `seen` that is `replica`'s to lead. Each slot has epochs of its own, so an epoch never has two
/// leaders, whatever was voted, forgotten or forced.
pub fn next_epoch(seen: LeaderEpoch, replica: ReplicaId) -> LeaderEpoch {
    let slots = u32::from(REPLICAS_MAX);
    let base = seen.0 - seen.0 % slots + u32::from(replica.0);
    let next = if base > seen.0 { base } else { base + slots };
    assert!(next > seen.0 && next % slots == u32::from(replica.0), "epoch {next} after {seen} for {replica}");
    LeaderEpoch(next)
}

/// The replica that leads in an epoch.
pub fn leader_of(epoch: LeaderEpoch) -> ReplicaId {
    ReplicaId((epoch.0 % u32::from(REPLICAS_MAX)) as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(bits: u8) -> ReplicaSet {
        (0..REPLICAS_MAX).map(ReplicaId).filter(|replica| bits & (1 << replica.0) != 0).collect()
    }

    fn members() -> impl Strategy<Value = Members> {
        (1u8..=255, 1u8..=8, 1u8..=8)
            .prop_filter_map("quorums", |(bits, write, read)| Members::new(set(bits), write, read).ok())
    }

    fn configuration() -> impl Strategy<Value = Configuration> {
        (members(), proptest::option::of(members()))
            .prop_map(|(current, incoming)| Configuration { incoming, ..Configuration::founding(current) })
    }

    /// All subsets of all replicas there can be.
    fn all_sets() -> impl Iterator<Item = ReplicaSet> {
        (0..=255).map(ReplicaSet)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_election_meets_every_write(c in configuration()) {
            let writes: Vec<_> = all_sets().filter(|s| c.is_write_quorum(*s)).collect();
            for election in all_sets().filter(|s| c.is_election_quorum(*s)) {
                prop_assert!(writes.iter().all(|write| !write.intersection(election).is_empty()));
            }
        }

        #[test]
        fn a_change_meets_the_elections_of_the_members_before_and_after_it(c in configuration()) {
            let joint: Vec<_> = all_sets().filter(|s| c.is_write_quorum(*s)).collect();
            for part in std::iter::once(c.current).chain(c.incoming) {
                let alone = Configuration::founding(part);
                for election in all_sets().filter(|s| alone.is_election_quorum(*s)) {
                    prop_assert!(joint.iter().all(|write| !write.intersection(election).is_empty()));
                }
            }
        }

        #[test]
        fn a_read_meets_every_write_if_the_two_quorums_are_more_than_all(m in members()) {
            let c = Configuration::founding(m);
            let writes: Vec<_> = all_sets().filter(|s| c.is_write_quorum(*s)).collect();
            let meets = all_sets()
                .filter(|s| c.is_read_quorum(*s))
                .all(|read| writes.iter().all(|write| !write.intersection(read).is_empty()));
            prop_assert_eq!(meets, m.reads_are_linearizable());
        }

        #[test]
        fn whoever_is_asked_after_a_loss_of_memory_knows_of_every_vote(m in members()) {
            let c = Configuration::founding(m);
            for replica in m.replicas().iter() {
                let asked: Vec<_> = all_sets().filter(|s| c.is_inquiry_quorum(replica, *s)).collect();
                let elections = all_sets().filter(|s| c.is_election_quorum(*s) && s.contains(replica));
                for others in elections.map(|s| s.without(replica)).filter(|s| !s.is_empty()) {
                    let others = others.intersection(m.replicas());
                    prop_assume!(!others.is_empty());
                    let meets = asked.iter().all(|asked| !asked.intersection(others).is_empty());
                    prop_assert!(meets, "{} of {:?} asks others than {}", replica, m, others);
                }
            }
        }

        #[test]
        fn votes_are_missed_only_where_not_all_others_are_asked(m in members()) {
            let c = Configuration::founding(m);
            let asked = |replica: ReplicaId| m.inquiry_quorum(replica) == m.replicas().len() - 1;
            prop_assert_eq!(c.may_miss_votes(), m.write_quorum() > 1 && !m.replicas().iter().all(asked));
        }

        #[test]
        fn what_a_quorum_holds_is_what_the_sets_say(c in configuration(), ends in proptest::array::uniform8(0u64..6)) {
            let held = |replica: ReplicaId| Offset(ends[usize::from(replica.0)]);
            let watermark = c.held_by_quorum(held);
            let holders = |offset: u64| (0..REPLICAS_MAX).map(ReplicaId).filter(|r| held(*r).0 >= offset).collect();
            prop_assert!(c.is_write_quorum(holders(watermark.0)));
            prop_assert!(!c.is_write_quorum(holders(watermark.0 + 1)));
        }

        #[test]
        fn no_two_replicas_have_an_epoch_in_common(a in 0u32..1000, b in 0u32..1000, x in 0u8..8, y in 0u8..8) {
            let (of_x, of_y) = (next_epoch(LeaderEpoch(a), ReplicaId(x)), next_epoch(LeaderEpoch(b), ReplicaId(y)));
            prop_assert!(x == y || of_x != of_y);
            prop_assert!(of_x.0 > a && of_x.0 <= a + 8);
        }
    }

    #[test]
    fn members_are_checked_at_both_ends() {
        assert_eq!(Members::new(set(0), 1, 1), Err(MembersError::NoReplicas));
        for (write, read, fine) in
            [(0, 1, false), (1, 0, false), (1, 1, true), (3, 3, true), (4, 3, false), (3, 4, false)]
        {
            assert_eq!(Members::new(set(0b111), write, read).is_ok(), fine, "W {write}, R {read}");
        }
    }
}

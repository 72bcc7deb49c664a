//! Which core owns which partition: rendezvous hashing, so that every core and every client computes the same answer,
//! and a change of the core count moves as few partitions as possible. Nothing on disk depends on it.

use crate::types::{CoreId, PartitionId};

/// The core, of `cores`, that owns `partition`: the one with the highest weight.
///
/// Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), with splitmix64 as the
/// hash.
pub fn owner(partition: PartitionId, cores: usize) -> CoreId {
    assert!(cores > 0, "a server has at least one core");
    let key = mix(partition.log.0 ^ mix(u64::from(partition.index.0)));
    let weight = |core: &usize| mix(key ^ mix(*core as u64 + 1));
    let winner = (0..cores).max_by_key(weight).unwrap_or(0);
    CoreId(winner as u16)
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
    use crate::types::{LogUid, PartitionIndex};

    fn all() -> impl Iterator<Item = PartitionId> {
        (1..=100).flat_map(|log| (0..40).map(move |p| PartitionId { log: LogUid(log), index: PartitionIndex(p) }))
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
}

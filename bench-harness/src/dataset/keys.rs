//! Which keys records have, and so which partitions they go to.
//!
//! A set of keys is made once and divided among the partitions as the client's partitioner divides them. Drawing a
//! partition with the weight of its keys and then a key among them is the same as drawing a key of all, and lets a
//! batch, which belongs to one partition, be filled without throwing draws away. The key of a record follows from its
//! identity, so that the reader can check it.

use std::{fmt, str::FromStr};

use pyralog_net::client::partition_of_key;

use super::Identity;
use crate::pacing::unit;

/// How keys are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Keys {
    /// Records have none; partitions take turns.
    #[default]
    None,
    /// Each as likely.
    Uniform,
    /// The nth most frequent has the weight 1/n^s: few keys are hot, and so are their partitions.
    Zipf(f64),
    /// One after the other, over and over.
    Sequential,
    /// All records have the same, and so are in one partition.
    Single,
}

/// The keys of a run and how they are drawn.
#[derive(Clone, Debug)]
pub struct KeySpace {
    keys: Keys,
    partitions: Vec<Share>,
    /// The partition of each key in order, for sequential keys.
    order: Vec<u16>,
}

/// The keys of one partition.
#[derive(Clone, Debug, Default)]
struct Share {
    names: Vec<Box<[u8]>>,
    /// Sums of weights up to and with each key.
    weights: Vec<f64>,
}

impl Share {
    fn weight(&self) -> f64 {
        self.weights.last().copied().unwrap_or(0.0)
    }
}

impl KeySpace {
    /// `count` keys over this many partitions; `None` if there are to be no keys.
    pub fn new(keys: Keys, count: u32, partitions: u32) -> Option<Self> {
        let count = match keys {
            Keys::None => return None,
            Keys::Single => 1,
            _ => count.max(1),
        };
        let mut space = KeySpace { keys, partitions: vec![Share::default(); partitions as usize], order: Vec::new() };
        for n in 0..count {
            let name = format!("key-{n:010}").into_bytes();
            let partition = partition_of_key(&name, partitions).0;
            let weight = if let Keys::Zipf(s) = keys { f64::from(n + 1).powf(-s) } else { 1.0 };
            let share = &mut space.partitions[partition as usize];
            share.weights.push(share.weight() + weight);
            share.names.push(name.into_boxed_slice());
            space.order.push(partition as u16);
        }
        Some(space)
    }

    /// The partition of the next record: the `turn`th of its writer.
    pub fn partition(&self, turn: u64, mut chance: u64) -> usize {
        if self.keys == Keys::Sequential {
            return usize::from(self.order[(turn % self.order.len() as u64) as usize]);
        }
        let mut left = unit(&mut chance) * self.partitions.iter().map(Share::weight).sum::<f64>();
        let found = self.partitions.iter().position(|share| {
            left -= share.weight();
            left < 0.0
        });
        found.unwrap_or_else(|| usize::from(self.order[0]))
    }

    /// The key of the record of this identity, whose chance this is; `None` in a partition that no key falls into.
    pub fn key(&self, identity: Identity, mut chance: u64) -> Option<&[u8]> {
        let share = self.partitions.get(usize::from(identity.partition))?;
        let last = share.names.len().checked_sub(1)?;
        let index = match self.keys {
            Keys::Sequential => (identity.sequence % share.names.len() as u64) as usize,
            _ => {
                let drawn = unit(&mut chance) * share.weight();
                share.weights.partition_point(|sum| *sum <= drawn).min(last)
            }
        };
        Some(&share.names[index])
    }

    /// Bytes of the longest key.
    pub fn bytes_max(&self) -> usize {
        self.partitions.iter().flat_map(|share| &share.names).map(|name| name.len()).max().unwrap_or(0)
    }
}

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Keys::None),
            "uniform" => Ok(Keys::Uniform),
            "zipf" => Ok(Keys::Zipf(1.0)),
            "sequential" => Ok(Keys::Sequential),
            "single" => Ok(Keys::Single),
            _ => {
                let exponent = text.strip_prefix("zipf:").and_then(|exponent| exponent.parse().ok());
                let exponent = exponent.filter(|exponent| (0.0..=10.0).contains(exponent));
                let forms = "none, uniform, zipf, zipf:EXPONENT (0 to 10), sequential, single";
                exponent.map(Keys::Zipf).ok_or_else(|| format!("`{text}` is none of {forms}"))
            }
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keys::None => f.write_str("none"),
            Keys::Uniform => f.write_str("uniform"),
            Keys::Zipf(exponent) => write!(f, "zipf:{exponent}"),
            Keys::Sequential => f.write_str("sequential"),
            Keys::Single => f.write_str("single"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::dataset::splitmix;

    /// Draws records as a writer does and counts each key; every key must be in its own partition.
    fn drawn(keys: &str, count: u32, partitions: u32) -> Vec<u32> {
        let space = KeySpace::new(keys.parse().unwrap(), count, partitions).unwrap();
        let (mut counts, mut sequences, mut chance) = (BTreeMap::<Vec<u8>, u32>::new(), BTreeMap::new(), 1);
        for turn in 0..100_000 {
            let partition = space.partition(turn, splitmix(&mut chance)) as u16;
            let sequence = sequences.entry(partition).or_insert(0u64);
            let identity = Identity { writer: 0, partition, sequence: *sequence };
            *sequence += 1;
            let key = space.key(identity, splitmix(&mut chance)).unwrap();
            assert_eq!(partition_of_key(key, partitions).0, u32::from(partition));
            *counts.entry(key.to_vec()).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn uniform_keys_are_equally_frequent() {
        let counts = drawn("uniform", 100, 4);
        assert!(counts.len() == 100 && counts[0] < 1150 && counts[99] > 850, "{counts:?}");
    }

    #[test]
    fn zipf_keys_are_as_frequent_as_their_rank_says() {
        let counts = drawn("zipf:1", 1000, 8);
        let whole: f64 = (1..=1000).map(|n| 1.0 / f64::from(n)).sum();
        for rank in [1u32, 2, 3, 10] {
            let expected = 1e5 / whole / f64::from(rank);
            let measured = f64::from(counts[rank as usize - 1]);
            assert!((measured / expected - 1.0).abs() < 0.08, "{rank}: {measured}, not {expected}");
        }
    }

    #[test]
    fn sequential_keys_take_turns_and_a_single_key_is_alone() {
        let counts = drawn("sequential", 100, 4);
        assert!(counts.iter().all(|count| *count == 1000), "{counts:?}");
        assert_eq!(drawn("single", 100, 4), [100_000]);
    }

    #[test]
    fn no_keys_are_no_space_and_nonsense_is_refused() {
        assert!(KeySpace::new(Keys::None, 10, 1).is_none());
        for wrong in ["", "zipf:", "zipf:-1", "zipf:11", "hot"] {
            assert!(wrong.parse::<Keys>().is_err(), "{wrong}");
        }
        assert_eq!("zipf:1.1".parse::<Keys>().unwrap().to_string(), "zipf:1.1");
    }
}

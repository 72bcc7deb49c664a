//! Whether the drive under the partitions can still be trusted. Pure.
//!
//! One failed write or sync is one file's misfortune: a bad sector, a mistaken file system. A second one of another
//! partition, or one of the catalogue, which has a file of a few KiB, says that the drive itself is failing: then what
//! it still confirms is worth little, and every confirmation more would be a promise about a drive that breaks them.

use std::collections::BTreeMap;

use crate::types::PartitionId;

/// Whose write or sync failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sufferer {
    /// A partition's.
    Partition(PartitionId),
    /// The catalogue's.
    Catalog,
}

/// What is known against the drive.
#[derive(Debug, Default)]
pub struct Trust {
    faults: BTreeMap<Sufferer, String>,
    fence: Option<String>,
}

impl Trust {
    /// A write or a sync failed. Gives why the drive is not to be trusted any more, if that is so from now on.
    pub fn note(&mut self, sufferer: Sufferer, reason: &str) -> Option<&str> {
        if self.fence.is_some() {
            return None;
        }
        let before = self.faults.iter().find(|(other, _)| **other != sufferer).map(|(_, reason)| reason.clone());
        self.faults.entry(sufferer).or_insert_with(|| reason.to_owned());
        self.fence = match (sufferer, before) {
            (_, Some(before)) => Some(format!("the drive failed twice: {before}; then {reason}")),
            (Sufferer::Catalog, None) => Some(format!("the drive failed the catalogue: {reason}")),
            (Sufferer::Partition(_), None) => None,
        };
        self.fence.as_deref()
    }

    /// Why the drive is not trusted, if it is not.
    pub fn fence(&self) -> Option<&str> {
        self.fence.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogUid, PartitionIndex};

    fn partition(index: u32) -> Sufferer {
        Sufferer::Partition(PartitionId { log: LogUid(1), index: PartitionIndex(index) })
    }

    #[test]
    fn one_partitions_faults_are_its_own_and_a_second_ones_are_the_drives() {
        let mut trust = Trust::default();
        assert_eq!(trust.note(partition(0), "EIO of 0"), None);
        assert_eq!(trust.note(partition(0), "EIO of 0 again"), None);
        assert_eq!(trust.fence(), None);
        assert_eq!(trust.note(partition(1), "EIO of 1"), Some("the drive failed twice: EIO of 0; then EIO of 1"));
        assert_eq!(trust.note(partition(2), "EIO of 2"), None, "it is said once");
        assert_eq!(trust.fence(), Some("the drive failed twice: EIO of 0; then EIO of 1"));
    }

    #[test]
    fn the_catalogue_alone_is_enough() {
        let mut trust = Trust::default();
        let reason = "the drive failed the catalogue: EIO";
        assert_eq!(trust.note(Sufferer::Catalog, "EIO"), Some(reason));
        assert_eq!(trust.note(partition(0), "EIO"), None);
        assert_eq!(trust.fence(), Some(reason));
    }
}

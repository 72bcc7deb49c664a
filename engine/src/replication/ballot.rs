//! What a replica must never forget, beside its log: what it promised, whose log its own is a copy of, and who decides.
//!
//! A ballot is kept durably by each replica, on the drive of its log, and is the only authority over the partition:
//! whoever leads does so by the ballots of an election quorum. Nothing that a ballot says is told to anybody before it
//! is durable.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::assignment::Configuration;
use crate::types::{LeaderEpoch, Offset};

/// Whether a replica still has what it once said it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// It has: log and promises are as it left them.
    Intact,
    /// It has not, or nobody knows: an empty or older drive stands in its place, or recovery found damage. It neither
    /// votes nor counts until a leader has given back everything it may have had.
    Lost,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Nothing of a lower epoch is listened to. Never goes back; not below `accepted`.
    pub promised: LeaderEpoch,
    /// The last epoch whose leader's log this one is a copy of, at least up to where that epoch began. It orders logs:
    /// of two, the one with the higher `accepted` has everything that was acknowledged before, and of two with the
    /// same, the longer one. Never goes back.
    pub accepted: LeaderEpoch,
    /// The newest configuration heard of.
    pub config: Configuration,
    /// Whether the log holds what this replica once acknowledged.
    pub memory: Memory,
    /// The last epoch that an operator began by force, accepting that records were lost; 0 for none.
    pub forced: LeaderEpoch,
    /// Everything before it was durable on a write quorum, as far as was known at the last save. No leader may be
    /// without it.
    pub committed: Offset,
    /// The reign that `committed` is known from.
    pub committed_in: LeaderEpoch,
}

impl Ballot {
    /// What every replica of a new partition begins with, whose creation is durable on its own drive.
    pub fn founding(config: Configuration) -> Self {
        Ballot {
            promised: LeaderEpoch(0),
            accepted: LeaderEpoch(0),
            config,
            memory: Memory::Intact,
            forced: LeaderEpoch(0),
            committed: Offset(0),
            committed_in: LeaderEpoch(0),
        }
    }

    /// What stands in the place of a ballot that is missing or cannot be trusted.
    pub fn lost(config: Configuration) -> Self {
        Ballot { memory: Memory::Lost, ..Ballot::founding(config) }
    }

    /// Whether records that were acknowledged may be missing from every log, because an operator said so after
    /// `committed` was learnt.
    pub fn loss_was_accepted(&self) -> bool {
        self.committed_in < self.forced
    }

    pub(super) fn check(&self) {
        assert!(self.accepted <= self.promised, "a ballot accepts what it refuses: {self:?}");
        assert!(self.forced <= self.promised, "a ballot knows of a reign to come: {self:?}");
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ballot { promised, accepted, config, committed, .. } = self;
        write!(f, "promised={promised} accepted={accepted} committed={committed} config={config}")?;
        if self.memory == Memory::Lost {
            f.write_str(" memory=lost")?;
        }
        if self.forced > LeaderEpoch(0) {
            write!(f, " forced={}", self.forced)?;
        }
        Ok(())
    }
}

//! The named sets of values. Three are the performance guide's own texts, byte for byte; `balanced` is what holds when
//! none is named.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named set of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Durable before the ack, group commit. The default.
    #[default]
    Balanced,
    /// The lowest latency of a write, acknowledged from memory.
    Latency,
    /// The most records a second, acknowledged from memory.
    Throughput,
    /// Nothing acknowledged is ever lost.
    Durability,
}

impl Profile {
    /// All profiles, the default first.
    pub const ALL: [Profile; 4] = [Profile::Balanced, Profile::Latency, Profile::Throughput, Profile::Durability];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Balanced => "balanced",
            Profile::Latency => "latency",
            Profile::Throughput => "throughput",
            Profile::Durability => "durability",
        }
    }

    /// Its text: JSON with comments.
    pub fn text(self) -> &'static str {
        match self {
            Profile::Balanced => include_str!("../profiles/balanced.json"),
            Profile::Latency => include_str!("../profiles/latency.json"),
            Profile::Throughput => include_str!("../profiles/throughput.json"),
            Profile::Durability => include_str!("../profiles/durability.json"),
        }
    }

    /// What it is for, in a few words.
    pub fn purpose(self) -> &'static str {
        match self {
            Profile::Balanced => {
                "the default: every acknowledged record is on stable storage, and group commit keeps it fast"
            }
            Profile::Latency => "the lowest latency of a write: acknowledged from memory, flushed within a millisecond",
            Profile::Throughput => "the most records a second: acknowledged from memory, flushed in large pieces",
            Profile::Durability => "the most safety: synced on every write, on every copy there is",
        }
    }

    /// The profile with this name.
    pub fn named(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// All names, the default's first.
    pub fn names() -> [&'static str; 4] {
        Profile::ALL.map(Profile::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chapter of the performance guide that the user wrote, unchanged.
    const GUIDE: &str = include_str!("../tests/seed_configuration_tuning.md");

    #[test]
    fn the_guides_three_configurations_are_taken_to_the_letter() {
        let blocks: Vec<_> = GUIDE.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(blocks, [Profile::Latency, Profile::Throughput, Profile::Durability].map(Profile::text));
    }

    #[test]
    fn names_lead_back_to_their_profiles() {
        for profile in Profile::ALL {
            assert_eq!(Profile::named(profile.name()), Some(profile));
        }
        assert_eq!(Profile::named("Latency"), None);
    }
}

//! What a number needs to be believed: the machine it was measured on, the server's own account of itself, what
//! everything used while it was measured, and whether the measurement itself went well.

pub mod host;
pub mod shares;
pub mod status;
pub mod usage;
pub mod validity;

use serde::{Deserialize, Serialize};

pub use host::Host;
pub use shares::CpuShares;
pub use status::StatusPage;
pub use usage::{Snapshot, Usage};

/// Whether a row's measurement can be believed, and what was used.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trust {
    /// Why its numbers say nothing of the server.
    pub invalid: Vec<String>,
    /// What to keep in mind when reading them.
    pub doubts: Vec<String>,
    /// How much of its CPU each thread of the load needed, in percent: without looking for work that was not there.
    pub load_busy_percent: Vec<f64>,
    /// What was used meanwhile.
    pub usage: Option<Usage>,
}

//! What is measured together, to answer one question each. The decisions of each suite are pure and stand beside it.

use std::sync::{Arc, atomic::AtomicBool};

use crate::{args::CommonArgs, progress::Progress, report::Report, session::Session, target::HarnessError};

pub mod batch_sweep;
pub mod idle;
pub mod profiles;
pub mod recovery;
pub mod scale;
pub mod seed_table;
pub mod soak;
pub mod sweep;
pub mod tail;

/// What suites share: where to show how it goes, and whether to stop.
pub struct Stage {
    /// Shows how it goes.
    pub progress: Progress,
    /// Set by Control-C.
    pub stop: Arc<AtomicBool>,
}

/// What a suite came to. What was measured before an error is worth seeing, so a suite fails with its report.
pub type Played = Result<Report, (Option<Report>, HarnessError)>;

/// An error before anything was measured.
pub fn nothing(error: HarnessError) -> (Option<Report>, HarnessError) {
    (None, error)
}

impl Stage {
    /// A session with the server that the command line names.
    pub async fn session<'a>(&'a self, common: &'a CommonArgs) -> Result<Session<'a>, HarnessError> {
        Session::open(common, &self.progress, Arc::clone(&self.stop)).await
    }
}

/// Runs `rows` one after the other and hands out the report.
pub async fn rows(mut session: Session<'_>, rows: Vec<(crate::plan::Plan, Option<seed_table::Target>)>) -> Played {
    for (plan, target) in rows {
        if let Err(error) = session.row(&plan, target).await {
            return Err((Some(session.report), error));
        }
    }
    Ok(session.report)
}

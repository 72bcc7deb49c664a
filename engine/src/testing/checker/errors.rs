//! C11 and C12: what may go wrong, and what must go right again.

use std::time::Duration;

use super::{Evidence, Judge, Rule};
use crate::{
    error::RequestError,
    testing::history::{Cause, Failed},
    types::{Offset, PartitionId},
};

/// How long an operation may take when nothing fails.
const TOOK_MAX: Duration = Duration::from_secs(60);

/// An error of a life whose causes are not all known yet.
pub(super) enum Complaint<'a> {
    Failed(&'a Failed),
    NotStarted(&'a str),
}

impl<'a> Judge<'a> {
    pub(super) fn failed(&mut self, failed: &'a Failed) {
        let acked_end = failed.asked.and_then(|asked| self.asked.remove(&asked.0)).unwrap_or(Offset(0));
        if let RequestError::OffsetOutOfRange { offset, start, end } = failed.error {
            let inside = start <= offset && offset <= end;
            if inside || end < acked_end {
                let evidence = Evidence::WrongRange(failed.error.to_string());
                self.broken(Rule::C11, failed.partition, offset, evidence);
            }
        } else {
            self.errors.push(Complaint::Failed(failed));
        }
    }

    /// A life is over and all that happened in it is known: were its errors due to that?
    pub(super) fn explain_errors(&mut self) {
        for complaint in std::mem::take(&mut self.errors) {
            let (partition, text, fine) = match complaint {
                Complaint::Failed(failed) => {
                    (failed.partition, failed.error.to_string(), self.explains(failed.partition, &failed.error))
                }
                Complaint::NotStarted(why) => (None, why.to_owned(), self.any(&DRIVE)),
            };
            if !fine {
                self.broken(Rule::C11, partition, Offset(0), Evidence::Unexplained(text));
            }
        }
        self.causes.clear();
    }

    fn any(&self, causes: &[Cause]) -> bool {
        causes.iter().any(|cause| self.causes.contains(cause))
    }

    fn explains(&self, partition: Option<PartitionId>, error: &RequestError) -> bool {
        use RequestError as E;
        let spoiled = partition
            .and_then(|partition| self.partitions.get(&partition))
            .is_some_and(|state| !state.spoiled.is_empty());
        let is_deleted = partition.is_some_and(|partition| self.deleting.contains(&partition.log));
        match error {
            E::DiskFull { .. } => self.any(&[Cause::DriveFull]),
            // A full drive gets no second chance when the server stops.
            E::OutcomeUnknown { .. } if is_deleted || self.any(&[Cause::Replicated]) => true,
            E::ReadOnly { .. } | E::OutcomeUnknown { .. } => {
                let full = self.any(&[Cause::DriveFull]) && self.any(&[Cause::Stopping]);
                spoiled || full || self.any(&[Cause::DriveFailed, Cause::Misread])
            }
            // A failed sync takes what was written before it: readers may have seen it already.
            E::Corrupt { .. } => spoiled || self.any(&[Cause::DriveFailed, Cause::Misread]),
            E::ReadFailed { .. } => spoiled || self.any(&DRIVE),
            E::DriveSilent { .. } | E::ChangeUnknown { .. } => self.any(&[Cause::DriveStalled]),
            E::CatalogFailed { .. } => self.any(&[Cause::DriveFailed, Cause::DriveFull]),
            E::ShuttingDown => self.any(&[Cause::Stopping]),
            E::PartitionOpening { .. } => self.any(&[Cause::Creating]),
            // How long that may take is the judge of C12's to say.
            E::NotLeader { .. } => self.any(&[Cause::Replicated, Cause::Moving]),
            E::UnknownPartition { .. } => is_deleted,
            // Clients may create the same log.
            E::LogExists { .. } => true,
            _ => false,
        }
    }

    pub(super) fn took(&mut self, took: Duration) {
        if self.healed && took > TOOK_MAX {
            self.broken(Rule::C12, None, Offset(0), Evidence::TooLong(took));
        }
    }

    pub(super) fn in_use(&mut self, what: &'static str, amount: u64, allowed: u64) {
        if amount > allowed {
            self.broken(Rule::C12, None, Offset(0), Evidence::LeftOver { what, amount, allowed });
        }
    }
}

/// What a drive may do to whatever is opened.
const DRIVE: [Cause; 4] = [Cause::DriveFull, Cause::DriveFailed, Cause::ReadFailed, Cause::Misread];

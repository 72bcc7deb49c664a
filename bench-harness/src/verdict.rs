//! What a command came to, as an exit code: scripts and CI decide by it.

use std::{path::Path, process::ExitCode};

use crate::{
    args::{BaselineArgs, BaselineCommand},
    baseline,
    report::{Report, assertion::Assertion, compare::compare as compare_reports, files},
    target::HarnessError,
};

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All went well.
    Good,
    /// Something failed, or is worse.
    Bad,
    /// It was asked for wrongly.
    WrongUse,
    /// A verdict was asked of a measurement that is not to be believed.
    NoVerdict,
}

impl Outcome {
    /// The outcome of a command that ended with this error.
    pub fn of_error(error: &HarnessError) -> Self {
        match error {
            HarnessError::Usage(_) => Outcome::WrongUse,
            HarnessError::Invalid(_) => Outcome::NoVerdict,
            _ => Outcome::Bad,
        }
    }

    /// As the shell sees it.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Outcome::Good => 0,
            Outcome::Bad => 1,
            Outcome::WrongUse => 2,
            Outcome::NoVerdict => 3,
        })
    }
}

/// The outcome of a report: it is clean, and all that was asserted holds. Tells what became of each assertion.
pub fn of_report(report: &Report, asserts: &[Assertion]) -> Outcome {
    let mut outcome = if report.is_clean() { Outcome::Good } else { Outcome::Bad };
    for assertion in asserts {
        let about: Vec<_> = report.rows.iter().filter(|row| assertion.is_about(row)).collect();
        if about.is_empty() {
            println!("FAILS  no row is there for {assertion}");
            outcome = Outcome::Bad;
        }
        for row in about {
            println!("{}", assertion.verdict(row));
            if !row.is_valid() && outcome == Outcome::Good {
                println!("       the measurement of {} is not to be believed, so this is no verdict", row.name);
                outcome = Outcome::NoVerdict;
            } else if row.is_valid() && !assertion.holds(row) {
                outcome = Outcome::Bad;
            }
        }
    }
    outcome
}

/// Compares two reports and tells how.
pub fn compare(before: &Path, after: &Path, tolerance: f64) -> Result<Outcome, HarnessError> {
    let comparison = compare_reports(&files::read_json(before)?, &files::read_json(after)?, tolerance);
    print!("{comparison}");
    Ok(match (comparison.is_worse(), comparison.is_incomplete()) {
        (true, _) => Outcome::Bad,
        (false, true) => Outcome::NoVerdict,
        (false, false) => Outcome::Good,
    })
}

/// Keeps a report, or compares one with what was kept.
pub fn baseline(command: &BaselineCommand) -> Result<Outcome, HarnessError> {
    match command {
        BaselineCommand::Save(BaselineArgs { name, report, dir, .. }) => {
            let file = baseline::save(dir, name, &files::read_json(report)?)?;
            println!("kept as {}", file.display());
            Ok(Outcome::Good)
        }
        BaselineCommand::Check(BaselineArgs { name, report, dir, tolerance }) => {
            compare(&baseline::file(dir, name)?, report, *tolerance)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{report, row};

    fn outcome(invalid: bool, asserts: &[&str]) -> Outcome {
        let mut report = report(vec![row(10_000, None)]);
        if invalid {
            report.rows[0].trust.invalid.push("slip".to_owned());
        }
        let asserts: Vec<_> = asserts.iter().map(|text| text.parse().unwrap()).collect();
        of_report(&report, &asserts)
    }

    #[test]
    fn a_broken_assertion_is_bad_and_one_of_an_invalid_measurement_no_verdict() {
        assert_eq!(outcome(false, &[]), Outcome::Good);
        assert_eq!(outcome(false, &["p99<1s", "errors=0"]), Outcome::Good);
        assert_eq!(outcome(false, &["p99<1s", "p99<1ms"]), Outcome::Bad);
        assert_eq!(outcome(false, &["read:p99<1s"]), Outcome::Bad);
        assert_eq!(outcome(true, &[]), Outcome::Good);
        assert_eq!(outcome(true, &["p99<1s"]), Outcome::NoVerdict);
        assert_eq!(of_report(&report(vec![row(0, None)]), &[]), Outcome::Bad);
    }

    #[test]
    fn two_files_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut slow = report(vec![row(10_000, None)]);
        files::write_json(&path("fast"), &slow).unwrap();
        slow.rows[0].records_per_s /= 2.0;
        files::write_json(&path("slow"), &slow).unwrap();
        assert_eq!(compare(&path("fast"), &path("slow"), 0.05).unwrap(), Outcome::Bad);
        assert_eq!(compare(&path("slow"), &path("fast"), 0.05).unwrap(), Outcome::Good);
        slow.rows[0].batch = 1;
        files::write_json(&path("other"), &slow).unwrap();
        assert_eq!(compare(&path("slow"), &path("other"), 0.05).unwrap(), Outcome::NoVerdict);
        assert!(compare(&path("none"), &path("fast"), 0.05).is_err());
    }
}

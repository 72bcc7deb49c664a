//! Keeps a report under a name, to compare later ones with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    report::{Report, files},
    target::HarnessError,
};

/// Where the baseline of this name is in `folder`.
///
/// Errors: a name that is no file's.
pub fn file(folder: &Path, name: &str) -> Result<PathBuf, HarnessError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(HarnessError::Usage(format!("`{name}` names no baseline: letters, digits, `.`, `_` and `-` do")));
    }
    Ok(folder.join(format!("{name}.json")))
}

/// Keeps `report`, in place of what was kept under this name.
///
/// Errors: it failed or is not to be believed, or cannot be written.
pub fn save(folder: &Path, name: &str, report: &Report) -> Result<PathBuf, HarnessError> {
    if !report.is_clean() || report.rows.is_empty() {
        return Err(HarnessError::Usage("a report with failures makes no baseline".to_owned()));
    }
    if let Some(row) = report.rows.iter().find(|row| !row.is_valid()) {
        let why = row.trust.invalid.join("; ");
        return Err(HarnessError::Invalid(format!("{} makes no baseline: {why}", row.name)));
    }
    let file = file(folder, name)?;
    fs::create_dir_all(folder).map_err(HarnessError::system(format!("making {}", folder.display())))?;
    files::write_json(&file, report)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{report, row};

    #[test]
    fn a_good_report_is_kept_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let kept = save(&folder.path().join("new"), "main-1.0", &report(vec![row(10_000, None)])).unwrap();
        let again = files::read_json(&kept).unwrap();
        assert_eq!((again.rows[0].name.as_str(), again.rows[0].requests), ("write-batch-10", 10_000));
    }

    #[test]
    fn a_bad_report_or_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let failed = report(vec![row(0, None)]);
        let mut invalid = report(vec![row(100, None)]);
        invalid.rows[0].trust.invalid.push("slip".to_owned());
        assert!(matches!(save(folder.path(), "x", &failed), Err(HarnessError::Usage(_))));
        assert!(matches!(save(folder.path(), "x", &invalid), Err(HarnessError::Invalid(_))));
        for name in ["", "../x", ".x", "a/b"] {
            assert!(file(folder.path(), name).is_err(), "{name}");
        }
    }
}

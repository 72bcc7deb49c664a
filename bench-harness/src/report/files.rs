//! Writes what was measured to files: the report as JSON, distributions in the forms that other tools read.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    time::SystemTime,
};

use super::{Report, html};
use crate::{
    drive::Outcome,
    measuring::export::{write_csv, write_hgrm, write_hlog},
    target::HarnessError,
};

/// Writes the report.
pub fn write_json(file: &Path, report: &Report) -> Result<(), HarnessError> {
    let json = serde_json::to_vec_pretty(report).expect("report"); // why: strings and numbers are always JSON
    fs::write(file, json).map_err(HarnessError::system(format!("writing {}", file.display())))
}

/// Reads a report.
///
/// Errors: there is none, or it is of another version.
pub fn read_json(file: &Path) -> Result<Report, HarnessError> {
    let failed = |error| HarnessError::system(format!("reading {}", file.display()))(error);
    let json = fs::read(file).map_err(failed)?;
    serde_json::from_slice(&json).map_err(|error| failed(error.into()))
}

/// Writes the report as a page.
pub fn write_html(file: &Path, report: &Report) -> Result<(), HarnessError> {
    let failed = |error| HarnessError::system(format!("writing {}", file.display()))(error);
    let page = html::page(report).map_err(|error| failed(io::Error::other(error.to_string())))?;
    fs::write(file, page).map_err(failed)
}

/// Writes the distributions of a row into `folder`, in files that begin with `name`.
pub fn export(folder: &Path, name: &str, outcome: &Outcome) -> Result<(), HarnessError> {
    let failed = |error| HarnessError::system(format!("writing into {}", folder.display()))(error);
    fs::create_dir_all(folder).map_err(failed)?;
    let (main, reads) = (&outcome.tally.main, &outcome.tally.reads);
    let kinds = [
        ("response", &main.response),
        ("service", &main.service),
        ("end-to-end", &main.end_to_end),
        ("reads-response", &reads.response),
        ("reads-service", &reads.service),
    ];
    for (kind, times) in kinds.into_iter().filter(|(_, times)| times.count() > 0) {
        let file = folder.join(format!("{name}.{kind}.hgrm"));
        into(&file, |out| write_hgrm(times, out)).map_err(failed)?;
    }
    let tag = if main.response.count() > 0 { "response" } else { "service" };
    let began = outcome.began.unwrap_or(SystemTime::UNIX_EPOCH);
    let file = folder.join(format!("{name}.hlog"));
    into(&file, |out| write_hlog(tag, began, &outcome.intervals, out)).map_err(failed)?;
    into(&folder.join(format!("{name}.csv")), |out| write_csv(&outcome.intervals, out)).map_err(failed)
}

fn into(file: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    write(&mut out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::outcome;

    #[test]
    fn each_distribution_that_there_is_has_a_file() {
        let folder = tempfile::tempdir().unwrap();
        export(&folder.path().join("new"), "row", &outcome(1000, true)).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(folder.path().join("new")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["row.csv", "row.hlog", "row.response.hgrm", "row.service.hgrm"]);
    }
}

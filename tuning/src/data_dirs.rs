//! The data directories of a server: one for each of its drives. Written as a path where there is one, as most have it,
//! and as a list of paths otherwise; read in either form.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Drives that a server may have.
pub const DATA_DIRS_MAX: usize = 64;

/// At least one path, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "OneOrMore", into = "OneOrMore")]
pub struct DataDirs(Vec<PathBuf>);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

impl DataDirs {
    /// One directory for everything.
    pub fn single(path: impl Into<PathBuf>) -> Self {
        DataDirs(vec![path.into()])
    }

    /// All of them, in order.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }
}

impl TryFrom<Vec<PathBuf>> for DataDirs {
    type Error = &'static str;

    fn try_from(paths: Vec<PathBuf>) -> Result<Self, Self::Error> {
        if paths.is_empty() { Err("a server has a data directory") } else { Ok(DataDirs(paths)) }
    }
}

impl TryFrom<OneOrMore> for DataDirs {
    type Error = &'static str;

    fn try_from(paths: OneOrMore) -> Result<Self, Self::Error> {
        match paths {
            OneOrMore::One(path) => Ok(DataDirs::single(path)),
            OneOrMore::More(paths) => paths.try_into(),
        }
    }
}

impl From<DataDirs> for OneOrMore {
    fn from(DataDirs(mut paths): DataDirs) -> Self {
        match (paths.pop(), paths.is_empty()) {
            (Some(path), true) => OneOrMore::One(path),
            (last, _) => {
                paths.extend(last);
                OneOrMore::More(paths)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_written_as_a_path_and_several_as_a_list_and_both_are_read() {
        for (text, count) in [("\"/a\"", 1), ("[\"/a\",\"/b\"]", 2)] {
            let dirs: DataDirs = serde_json::from_str(text).unwrap();
            assert_eq!(dirs.paths().len(), count);
            assert_eq!(serde_json::to_string(&dirs).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<DataDirs>("[\"/a\"]").unwrap(), DataDirs::single("/a"));
        assert!(serde_json::from_str::<DataDirs>("[]").is_err());
    }
}

//! What can be wrong with a configuration: each error names the key, the place, and what is allowed. All are the
//! operator's to mend, before anything was started.

use std::{fmt, io, path::PathBuf};

use thiserror::Error;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A profile.
    Profile {
        /// Its name.
        name: &'static str,
        /// The line of the profile's text, from 1.
        line: usize,
    },
    /// The configuration file.
    File {
        /// Its path as it was given.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// The command line.
    Flag {
        /// The flag.
        flag: String,
    },
}

impl Origin {
    /// Whether a person chose the value itself, rather than a profile or nothing.
    pub fn is_explicit(&self) -> bool {
        !matches!(self, Origin::Default | Origin::Profile { .. })
    }

    /// The layer in one word: `default`, `profile`, `file`, `environment` or `flag`.
    pub fn layer(&self) -> &'static str {
        match self {
            Origin::Default => "default",
            Origin::Profile { .. } => "profile",
            Origin::File { .. } => "file",
            Origin::Environment { .. } => "environment",
            Origin::Flag { .. } => "flag",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Profile { name, .. } => write!(f, "profile {name}"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment { variable } => write!(f, "environment variable {variable}"),
            Origin::Flag { flag } => write!(f, "flag {flag}"),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No key has this path.
    #[error("{origin}: there is no key `{key}`{}", suggestion(*nearest))]
    UnknownKey {
        /// The path as it was written.
        key: String,
        /// Where.
        origin: Origin,
        /// The known key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// The value has the wrong type or is out of range.
    #[error("{origin}: `{key}` is {value}, but must be {allowed}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// Where.
        origin: Origin,
        /// What was written.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A value stands where keys are expected.
    #[error("{origin}: `{key}` is a section and takes an object {{…}}, not {value}")]
    NotASection {
        /// The section.
        key: String,
        /// Where.
        origin: Origin,
        /// What was written.
        value: String,
    },
    /// A key is given twice, and nobody can tell which is meant.
    #[error("{origin}: `{key}` is given twice; the first is at line {first}")]
    Twice {
        /// The key.
        key: String,
        /// Where it is given again.
        origin: Origin,
        /// The line of the first, from 1.
        first: usize,
    },
    /// Values that are fine each on their own but not together, or not on this version.
    #[error("{origin}: `{key}` is {value}, which cannot be honoured: {reason}")]
    Impossible {
        /// The key.
        key: &'static str,
        /// Where it was set.
        origin: Origin,
        /// Its value.
        value: String,
        /// The arithmetic.
        reason: String,
    },
    /// The file is no JSON, even with comments and trailing commas allowed.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The file could not be read.
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `--set` was given without a value.
    #[error("flag --set: `{text}` is not of the form KEY=VALUE")]
    NoValue {
        /// What was given.
        text: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

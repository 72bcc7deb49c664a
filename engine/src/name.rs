//! The one parser of log names. Names become folder names, so nothing else may ever build a path from a client's text.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::NAME_BYTES_MAX;

/// The namespace of a bare name.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A log's name, `namespace/name`. Each part has 1 to [`NAME_BYTES_MAX`] of `A-Z a-z 0-9 . _ -` and begins with a
/// letter, a digit or `_`, which rules out `.`, `..` and hidden files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogName {
    namespace: String,
    name: String,
}

/// Why a text is no log name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{}` is no log name: {reason}; a name is NAME or NAMESPACE/NAME, each part 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 \
     . _ - and beginning with a letter, a digit or _",
    text.escape_debug()
)]
pub struct NameError {
    /// The refused text, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl LogName {
    /// The part before the slash.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for LogName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = |reason| NameError { text: text.chars().take(64).collect(), reason };
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        for part in [namespace, name] {
            check_part(part).map_err(refuse)?;
        }
        Ok(LogName { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

fn check_part(part: &str) -> Result<(), &'static str> {
    let Some(first) = part.bytes().next() else { return Err("a part of it is empty") };
    if part.len() > NAME_BYTES_MAX {
        return Err("a part of it is too long");
    }
    if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err("it has a character that is not allowed");
    }
    if !(first.is_ascii_alphanumeric() || first == b'_') {
        return Err("a part of it begins with . or -");
    }
    Ok(())
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl TryFrom<String> for LogName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<LogName> for String {
    fn from(name: LogName) -> String {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_in_the_default_namespace() {
        assert_eq!("events".parse::<LogName>().unwrap().to_string(), "default/events");
        assert_eq!("shop/orders-1.v2".parse::<LogName>().unwrap().to_string(), "shop/orders-1.v2");
    }

    #[test]
    fn names_that_could_leave_the_data_directory_are_refused() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for bad in
            ["", "/", "a/", "/a", "..", "../a", "a/..", "a/b/c", ".hidden", "a\0b", "ä", "a b", "-rf", long.as_str()]
        {
            assert!(bad.parse::<LogName>().is_err(), "{bad:?} was taken for a name");
        }
        assert!("x".repeat(NAME_BYTES_MAX).parse::<LogName>().is_ok());
    }
}

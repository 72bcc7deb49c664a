//! How a caller names things.

use std::{fmt, str::FromStr, sync::Arc};

use pyralog_engine::name::{LogName, NameError};

/// The name of a log, `namespace/name`; a bare name is in the namespace `default`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(Arc<LogName>);

impl LogId {
    /// The log that `text` names.
    ///
    /// Errors: the text is no log name; the error says what is one.
    pub fn new(text: &str) -> Result<Self, NameError> {
        text.parse()
    }

    /// The parsed name.
    pub fn name(&self) -> &LogName {
        &self.0
    }
}

impl FromStr for LogId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(LogId(Arc::new(text.parse()?)))
    }
}

impl TryFrom<&str> for LogId {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        text.parse()
    }
}

impl TryFrom<String> for LogId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<LogName> for LogId {
    fn from(name: LogName) -> Self {
        LogId(Arc::new(name))
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

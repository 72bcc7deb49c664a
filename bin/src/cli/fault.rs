//! What a command reports when it does not succeed: a message, what to do, and the process's exit code.

use std::fmt;

use miette::Diagnostic;
use pyralog_net::client::Error;
use pyralog_tuning::ConfigError;
use serde_json::{Map, Value, json};

/// The command did its work.
pub const EXIT_OK: u8 = 0;
/// It did not.
pub const EXIT_FAILURE: u8 = 1;
/// It was not understood: flags, names, the configuration.
pub const EXIT_USAGE: u8 = 2;
/// It did its work as far as there was anything to work with: damaged records were passed over, as was asked for.
pub const EXIT_SKIPPED: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
pub struct Fault {
    message: String,
    help: Option<String>,
    /// For machines: the server's code and the fields of the cause.
    details: Map<String, Value>,
    exit: u8,
}

/// The result of a command.
pub type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    /// The command failed.
    pub fn new(message: impl ToString) -> Self {
        Fault { message: message.to_string(), help: None, details: Map::new(), exit: EXIT_FAILURE }
    }

    /// The command was not understood.
    pub fn usage(message: impl ToString) -> Self {
        Fault { exit: EXIT_USAGE, ..Fault::new(message) }
    }

    /// The command passed over damaged records.
    pub fn skipped(message: impl ToString) -> Self {
        Fault { exit: EXIT_SKIPPED, ..Fault::new(message) }
    }

    /// The same, with what to do.
    pub fn with_help(mut self, help: impl ToString) -> Self {
        self.help = Some(help.to_string());
        self
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.exit
    }

    /// The fault for a machine.
    pub fn as_json(&self) -> Value {
        let mut object = json!({ "error": self.message, "help": self.help, "exit_code": self.exit });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl Diagnostic for Fault {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let fault = match &error {
            Error::Name(_) | Error::Setting { .. } => Fault::usage(&error),
            _ => Fault::new(&error),
        };
        let range = error.offset_range();
        match error {
            Error::Unavailable { .. } => fault.with_help("is the server running there? `dlog` starts one"),
            Error::Server(error) => {
                let mut details = error.details;
                details.insert("code".to_owned(), error.code.0.into());
                let fault = Fault { details, ..fault };
                match range {
                    Some((start, _)) => fault.with_help(format!("the first record there is has offset {start}")),
                    None => fault,
                }
            }
            _ => fault,
        }
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Fault::usage(error).with_help("docs/CONFIG.md lists every key; `dlog config show` prints what holds")
    }
}

//! The house rules of this repository, so that its architecture cannot rot silently.
//!
//! A crate of its own under `scripts/`, not a test of one of the crates it judges: it depends on nothing but a Rust
//! parser, so it builds in seconds and still speaks when the rest does not compile. `cargo test -p tidy` runs it over
//! the files that git tracks.
//!
//! Each rule is a module in [`rules`] with snippets that it must refuse. A rule reads a [`tree::Tree`] and returns
//! [`Violation`]s, each of which says where, what, and what to do.

pub mod rules;
pub mod source;
pub mod tree;

use std::fmt;

/// A place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The file, relative to the top of the repository.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The rule's short name.
    pub rule: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl Violation {
    /// A violation of `rule` at `file:line`.
    pub fn new(file: &str, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Violation { file: file.to_owned(), line, rule, message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.file, self.line, self.rule, self.message)
    }
}

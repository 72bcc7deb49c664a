//! What the process prints. Whoever reads it may stop reading: then nothing more is said, the work goes on, and the
//! exit code is that of the work. Any other failure of stdout is remembered, and is a fault in the end. The macros of
//! the standard library panic instead, a server that only wanted to say that it stops included.

use std::{
    fmt,
    io::{self, Write},
    sync::OnceLock,
};

/// The first failure of stdout that is not its reader's doing.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Prints a line on stdout, as `println!` does.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line on stderr, as `eprintln!` does. There is nowhere to say that this failed.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::print_aside(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {note, say};

/// Prints on stdout.
pub fn print(text: fmt::Arguments<'_>) {
    if let Err(error) = io::stdout().write_fmt(text)
        && !is_unread(&error)
    {
        let _ = FAILED.set(error);
    }
}

/// Prints on stderr.
pub fn print_aside(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

/// Whether writing failed because nobody reads any more: of `dlog consume … | head`, `head` has seen enough.
pub fn is_unread(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Sends on its way what was printed. Whether all of it arrived, as far as somebody reads it.
pub fn finish() -> Result<(), String> {
    let flushed = io::stdout().flush();
    match (FAILED.get(), flushed) {
        (Some(error), _) => Err(format!("stdout: {error}")),
        (None, Err(error)) if !is_unread(&error) => Err(format!("stdout: {error}")),
        (None, _) => Ok(()),
    }
}

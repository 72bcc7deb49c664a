//! Judging the files of a partition without changing them: what is damaged, which records that concerns, which case of
//! [`super::recovery`] it is, and what could be done about it without losing anything that was promised.
//!
//! The rules for where a log ends are [`super::last_segment`]'s, so this says what the next start would do. It goes
//! further where recovery does not look: sealed segments, what stands behind damage, and the sidecars. It reads through
//! [`Disk`], a window at a time, and never panics on what it reads.

mod compare;
mod last;
mod partition;
mod pass;
mod sidecars;
mod walk;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use compare::{CopyFiles, compare_copies};
pub use partition::{PartitionFiles, Totals, check_partition};
use walk::first_batch;
pub use walk::{Piece, Source, walk_segment};

use crate::{runtime::DirEntry, types::Offset};

/// The files to judge, as they can be read.
pub trait Disk {
    /// An open file.
    type File: Source;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file is of another format version. Nothing beside it is judged.
    Version,
    /// The catalogue of logs cannot be used.
    Catalog,
    /// A file or a directory cannot be read at all.
    Unreadable,
    /// A segment's header block.
    Header,
    /// A batch's body: its checksum is wrong.
    Batch,
    /// Bytes where a batch should stand.
    Bytes,
    /// Records that should be there are not, or are there twice.
    Chain,
    /// What a flush that was cut off left behind.
    TornTail,
    /// A segment file that was created and never written to.
    EmptySegment,
    /// A partition without a segment.
    NoSegment,
    /// A segment that must have been there is not.
    Missing,
    /// A sealed segment's index says something else than the segment.
    Index,
    /// A sealed segment has no index. It is made when it is needed.
    NoIndex,
    /// A snapshot of producers says something else than the segments before it.
    Producers,
    /// The file that says where the log begins, or what is to be cut off.
    Start,
    /// What a replica promised.
    Ballot,
    /// Something that was deleted, whose space is given back when the server gets to it.
    Deleted,
    /// A segment or an index that does not belong where it is.
    Stray,
    /// Two copies of a partition have different records where they must not.
    Diverges,
    /// They have where nothing is final yet.
    Unsettled,
    /// Something that nobody here has to do with.
    Unknown,
}

impl Kind {
    /// Its name for machines.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Version => "version",
            Kind::Catalog => "catalog",
            Kind::Unreadable => "unreadable",
            Kind::Header => "header",
            Kind::Batch => "batch",
            Kind::Bytes => "bytes",
            Kind::Chain => "chain",
            Kind::TornTail => "torn-tail",
            Kind::EmptySegment => "empty-segment",
            Kind::NoSegment => "no-segment",
            Kind::Missing => "missing-segment",
            Kind::Index => "index",
            Kind::NoIndex => "no-index",
            Kind::Producers => "producers",
            Kind::Start => "start",
            Kind::Ballot => "ballot",
            Kind::Deleted => "deleted",
            Kind::Stray => "stray",
            Kind::Diverges => "diverges",
            Kind::Unsettled => "unsettled",
            Kind::Unknown => "unknown",
        }
    }

    /// Whether it is no damage, only worth knowing: an index that was not written when the process died, what is left
    /// of a deletion, records that no leader has settled yet, a stranger's file.
    pub fn is_harmless(self) -> bool {
        matches!(self, Kind::NoIndex | Kind::Deleted | Kind::Unsettled | Kind::Unknown)
    }
}

/// What can be done about a finding without taking away anything that was acknowledged as durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Cut the file off at this position: what stands behind it was provably never acknowledged as durable.
    Truncate(u64),
    /// Keep a copy of what stands in the file from this position on, and cut off nothing: the next start will, and
    /// nobody can prove that it was never acknowledged.
    Copy(u64),
    /// Write these bytes as the file.
    Rewrite(Vec<u8>),
    /// Move it out of the way.
    SetAside,
    /// Nothing here; and why.
    None(&'static str),
}

const DURABLE: Remedy = Remedy::None("the records were durable; restore them from a copy");

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// The file, or the directory.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub position: Option<u64>,
    /// The records that it concerns: the first, and the one after the last.
    pub offsets: Option<(Offset, Offset)>,
    /// The row of the table in [`super::recovery`], if one applies.
    pub case: Option<char>,
    /// What was found.
    pub reason: String,
    /// What can be done.
    pub remedy: Remedy,
}

impl Finding {
    /// One of `kind` about the file at `path`, which nothing is known to help against.
    pub fn new(kind: Kind, path: &Path, reason: impl Into<String>) -> Self {
        let remedy = Remedy::None("nothing that is here can repair it; restore it from a copy");
        let path = path.to_path_buf();
        Finding { kind, path, position: None, offsets: None, case: None, reason: reason.into(), remedy }
    }

    /// The same, at `position`.
    pub fn at(mut self, position: u64) -> Self {
        self.position = Some(position);
        self
    }

    /// The same, of a case.
    pub fn case(mut self, case: char) -> Self {
        self.case = Some(case);
        self
    }

    /// The same, about the records from `first` to before `end`, if there are any.
    pub fn records(mut self, first: Offset, end: Offset) -> Self {
        self.offsets = (first < end).then_some((first, end));
        self
    }

    /// The same, with what can be done.
    pub fn remedy(mut self, remedy: Remedy) -> Self {
        self.remedy = remedy;
        self
    }
}

#[cfg(test)]
mod tests;

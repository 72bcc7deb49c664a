//! Files of another format version, as another Pyralog leaves them: refused before anything in a partition's directory
//! is touched, since whatever is made of bytes that cannot be read takes something away from the one who can.
//!
//! A digit before content whose checksum is that of our version is no other version, but a bit that turned over: the
//! checksum of every version is its own. Such a file is ours, and damaged.
//!
//! Only what nothing else knows is refused. An index is made anew whatever its version, and so is a snapshot of
//! producers while all segments before it are there. Pure: recovery and `verify` ask it alike.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{
    copies, cut,
    missing::Names,
    producer_snapshot,
    segment::{self, SEGMENT_MAGIC, base_offset_of, producers_base_of},
    start,
};
use crate::types::Offset;

/// All copies of a start file, and the header of a segment.
const VERSION_BYTES: usize = 4096;

/// A file that this version cannot read, and does not touch.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{} has format version {found}, this version reads {supported}; nothing was changed", path.display())]
pub struct OtherVersion {
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub found: u8,
    /// What this version reads.
    pub supported: u8,
}

/// The version in the first bytes of a file, if they are those of `magic` but for the version, its last byte. Only a
/// digit is taken for one: other bytes are damage. So is a digit if the checksum of our own version `holds`.
pub fn other_version(magic: [u8; 4], bytes: &[u8], holds: impl FnOnce(&[u8]) -> bool) -> Option<u8> {
    let found = *bytes.get(3)?;
    let is_other = bytes[..3] == magic[..3] && found != magic[3] && found.is_ascii_digit();
    (is_other && !holds(bytes)).then(|| digit(found))
}

/// Whether the checksum behind a magic is right for what follows, of which `len` bytes with magic and checksum mean
/// something; whatever the magic says.
pub fn has_checksum(bytes: &[u8], len: usize) -> bool {
    bytes.get(..len).is_some_and(|bytes| bytes[4..8] == crc32c::crc32c(&bytes[8..]).to_le_bytes())
}

fn digit(byte: u8) -> u8 {
    byte - b'0'
}

/// Judges the files of one directory.
pub struct Versions {
    first: Option<Offset>,
    /// The first segment that is missing, as far as the names tell; all before it are there.
    missing: Offset,
}

impl Versions {
    /// For the directory with these names.
    pub fn of(names: &Names) -> Self {
        let first = names.first_segment();
        let missing = match first {
            Some(Offset(0)) => names.missing_between().min().unwrap_or(Offset(u64::MAX)),
            _ => Offset(0),
        };
        Versions { first, missing }
    }

    /// How much of the file at `path`, which has `size` bytes, must be looked at; `None` if it need not be at all.
    pub fn wants(&self, path: &Path, size: u64) -> Option<usize> {
        // The checksum of a snapshot is over all of it.
        let whole = usize::try_from(size).unwrap_or(usize::MAX).max(VERSION_BYTES);
        self.magic_of(path).map(|magic| if magic == producer_snapshot::MAGIC { whole } else { VERSION_BYTES })
    }

    /// Judges a file by its first bytes, as many as [`Versions::wants`].
    pub fn judge(&self, path: &Path, bytes: &[u8]) -> Result<(), OtherVersion> {
        let Some(magic) = self.magic_of(path) else { return Ok(()) };
        let found = match magic {
            start::MAGIC => copies::other_version_of(magic, bytes, |copy| has_checksum(copy, start::COPY_LEN)),
            cut::MAGIC => copies::other_version_of(magic, bytes, |copy| has_checksum(copy, cut::COPY_LEN)),
            copies::BALLOT_MAGIC => copies::other_version_of(magic, bytes, copies::ballot_holds),
            producer_snapshot::MAGIC => other_version(magic, bytes, producer_snapshot::is_ours),
            _ => other_version(magic, bytes, segment::has_checksum),
        };
        match found {
            Some(found) => Err(OtherVersion { path: path.to_path_buf(), found, supported: digit(magic[3]) }),
            None => Ok(()),
        }
    }

    fn magic_of(&self, path: &Path) -> Option<[u8; 4]> {
        if base_offset_of(path).is_some() {
            return Some(SEGMENT_MAGIC);
        }
        let with_copies = [
            (start::FILE_NAME, start::MAGIC),
            (cut::FILE_NAME, cut::MAGIC),
            (copies::BALLOT_NAME, copies::BALLOT_MAGIC),
        ];
        let name = path.file_name();
        if let Some((_, magic)) = with_copies.into_iter().find(|(known, _)| name.is_some_and(|name| name == *known)) {
            return Some(magic);
        }
        // One before the first segment is left of a deletion, and one that can be made anew is derived data.
        let base = producers_base_of(path)?;
        let is_needed = self.first.is_none_or(|first| base >= first) && base > self.missing;
        is_needed.then_some(producer_snapshot::MAGIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Versions {
        Versions::of(&Names::of(names.iter().map(Path::new)))
    }

    #[test]
    fn only_a_digit_behind_the_right_letters_is_another_version() {
        for version in 0..=9 {
            let bytes = [b'P', b'Y', b'S', b'0' + version, 7];
            let found = other_version(SEGMENT_MAGIC, &bytes, |_| false);
            assert_eq!(found, Some(version).filter(|version| *version != 1));
            assert_eq!(other_version(SEGMENT_MAGIC, &bytes, |_| true), None, "a bit turned over");
        }
        for damaged in [b"PYSq", b"PYR2", b"PYS\0", b"\0\0\0\0"] {
            assert_eq!(other_version(SEGMENT_MAGIC, damaged, |_| false), None);
        }
        assert_eq!(other_version(SEGMENT_MAGIC, b"PYS", |_| false), None);
    }

    #[test]
    fn a_snapshot_of_another_version_is_refused_where_nothing_else_knows_what_it_says() {
        let (zero, ten, twenty) = ("00000000000000000000.seg", "00000000000000000010.seg", "00000000000000000020.seg");
        let snapshot = Path::new("00000000000000000020.prd");
        let judge = |names: &[&str]| of(names).judge(snapshot, b"PYP2");
        assert_eq!(judge(&[zero, ten, twenty]), Ok(()));
        let error = OtherVersion { path: snapshot.to_path_buf(), found: 2, supported: 1 };
        assert_eq!(judge(&[ten, twenty]), Err(error.clone()), "the first segment is gone");
        assert_eq!(judge(&[zero, "00000000000000000010.idx", twenty]), Err(error), "one between is");
        let of_missing = Path::new("00000000000000000010.prd");
        let names = [zero, "00000000000000000010.idx", twenty];
        assert_eq!(of(&names).judge(of_missing, b"PYP2"), Ok(()), "all before it are there");
        let early = Path::new("00000000000000000005.prd");
        assert_eq!(of(&[ten, twenty]).judge(early, b"PYP2"), Ok(()), "it is left of a deletion");
        assert_eq!(of(&[ten, twenty]).judge(snapshot, b"PYP1"), Ok(()));
    }

    #[test]
    fn an_index_of_another_version_is_none_of_its_business_and_segments_always_are() {
        let versions = of(&["00000000000000000000.seg"]);
        assert_eq!(versions.wants(Path::new("00000000000000000000.idx"), 1 << 20), None);
        assert_eq!(versions.wants(Path::new("next.spare"), 1 << 20), None);
        assert_eq!(versions.wants(Path::new("00000000000000000000.seg"), 1 << 20), Some(VERSION_BYTES));
        for (name, magic) in [("start", b"PYB2"), ("cut", b"PYC2"), ("ballot", b"PYV2")] {
            assert_eq!(versions.judge(Path::new(name), magic).unwrap_err().found, 2, "{name}");
            let spoiled = [&[7; 512][..], magic].concat();
            assert_eq!(versions.judge(Path::new(name), &spoiled).unwrap_err().found, 2, "{name}");
        }
        let path = Path::new("00000000000000000000.seg");
        let found = versions.judge(path, b"PYS3").unwrap_err();
        let text = "00000000000000000000.seg has format version 3, this version reads 1; nothing was changed";
        assert_eq!(found.to_string(), text);
    }
}

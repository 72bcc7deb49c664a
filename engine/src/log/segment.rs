//! A segment file: its name, its header block, and what is known of it in memory. Format: `docs/FORMAT.md`, "Segment
//! file".

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
};

use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{I64, U32, U64},
};

use super::{
    copies::is_ballot_file,
    cut::is_cut_file,
    index::Index,
    missing::BEGUN,
    removal::DELETED_SUFFIX,
    start::is_start_file,
    version::{self, other_version},
};
use crate::{
    limits::{DEVICE_BLOCK_BYTES_MAX, DEVICE_BLOCK_BYTES_MIN, SEGMENT_HEADER_BYTES},
    runtime::{Buffer, Runtime},
    types::{Incarnation, LeaderEpoch, LogUid, Offset, PartitionId, PartitionIndex},
};

/// The first bytes of every segment file. The 1 is the version.
pub const SEGMENT_MAGIC: [u8; 4] = *b"PYS1";

const SEGMENT_SUFFIX: &str = ".seg";
/// The name of the file that waits to be the next segment.
pub(super) const SPARE_NAME: &str = "next.spare";
const INDEX_SUFFIX: &str = ".idx";
const PRODUCERS_SUFFIX: &str = ".prd";

/// The suffixes of the files that stand beside a segment and go with it.
const SIDECAR_SUFFIXES: [&str; 3] = ["idx", "prd", ASIDE_SUFFIX];
/// The name of a segment that replaces an empty one, while it is made.
pub(super) const REPLACEMENT_NAME: &str = "next.segment";
/// That of its snapshot of producers.
pub(super) const REPLACEMENT_PRODUCERS_NAME: &str = "next.producers";
/// The name of a segment that is written anew, until it takes the place of the damaged one.
pub(super) const RENEWED_NAME: &str = "renewed.segment";
/// That of the snapshot of producers while it is written.
pub(super) const ASIDE_SUFFIX: &str = "prn";

/// The header block as it stands on disk; the rest of the 4 KiB is zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    /// CRC-32C of what follows.
    crc: U32,
    log: U64,
    partition: U32,
    block_bytes: U32,
    base_offset: U64,
    created_ms: I64,
    incarnation: U32,
    leader_epoch: U32,
}

const _: () = assert!(size_of::<RawHeader>() == 48, "the header block is laid out by hand");

/// Whether the checksum in a header block is that of its content, whatever its magic says.
pub(super) fn has_checksum(block: &[u8]) -> bool {
    version::has_checksum(block, size_of::<RawHeader>())
}

/// The header block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose records it holds.
    pub partition: PartitionId,
    /// What every flush group is padded to, in bytes.
    pub block_bytes: u32,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
    /// What its batches are stamped with.
    pub incarnation: Incarnation,
    /// The reign in which it was created, so that an empty segment does not forget it.
    pub leader_epoch: LeaderEpoch,
}

/// Why a block is no header of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SegmentHeaderError {
    /// All zero: the file was created, and then power was lost.
    #[error("the header block is empty")]
    Blank,
    /// Another version wrote it.
    #[error("the header block has format version {0}")]
    Version(u8),
    /// Something else.
    #[error("the header block is damaged: {0}")]
    Damaged(&'static str),
}

impl SegmentHeader {
    /// The header block's first bytes; the rest is zero.
    pub fn encode(&self) -> [u8; 48] {
        let mut raw = RawHeader {
            magic: SEGMENT_MAGIC,
            crc: U32::new(0),
            log: U64::new(self.partition.log.0),
            partition: U32::new(self.partition.index.0),
            block_bytes: U32::new(self.block_bytes),
            base_offset: U64::new(self.base_offset.0),
            created_ms: I64::new(self.created_ms),
            incarnation: U32::new(self.incarnation.0),
            leader_epoch: U32::new(self.leader_epoch.0),
        };
        raw.crc = U32::new(crc32c::crc32c(&raw.as_bytes()[8..]));
        zerocopy::transmute!(raw)
    }

    /// Reads a header block.
    pub fn decode(block: &[u8]) -> Result<Self, SegmentHeaderError> {
        let damaged = SegmentHeaderError::Damaged;
        let (raw, _) = RawHeader::read_from_prefix(block).map_err(|_| damaged("it is cut off"))?;
        if raw.as_bytes().iter().all(|byte| *byte == 0) {
            return Err(SegmentHeaderError::Blank);
        }
        if let Some(found) = other_version(SEGMENT_MAGIC, block, has_checksum) {
            return Err(SegmentHeaderError::Version(found));
        }
        if raw.magic != SEGMENT_MAGIC {
            return Err(damaged("it does not begin with PYS1"));
        }
        if !has_checksum(block) {
            return Err(damaged("its checksum is wrong"));
        }
        let block_bytes = raw.block_bytes.get();
        if !block_bytes.is_power_of_two()
            || !(DEVICE_BLOCK_BYTES_MIN as u32..=DEVICE_BLOCK_BYTES_MAX as u32).contains(&block_bytes)
        {
            return Err(damaged("its block size is not a power of two from 512 to 4096"));
        }
        Ok(SegmentHeader {
            partition: PartitionId { log: LogUid(raw.log.get()), index: PartitionIndex(raw.partition.get()) },
            block_bytes,
            base_offset: Offset(raw.base_offset.get()),
            created_ms: raw.created_ms.get(),
            incarnation: Incarnation(raw.incarnation.get()),
            leader_epoch: LeaderEpoch(raw.leader_epoch.get()),
        })
    }
}

/// What is known of the snapshot of producers beside a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// Nobody looked, or there was no room for it.
    Unknown,
    /// It is being written, or the drive failed.
    Pending,
    /// It is there and survives a loss of power.
    Durable,
}

/// A segment as its log knows it.
pub struct Segment<R: Runtime> {
    /// Its header block.
    pub header: SegmentHeader,
    /// Its file's name.
    pub path: PathBuf,
    /// Its file, once it has one, takes the place of one with the same name.
    pub replaces: bool,
    /// Open once it was created or first read.
    pub file: RefCell<Option<Rc<R::File>>>,
    /// The position after its last flush group, padding included; moves while the segment is active.
    pub end_position: Cell<u64>,
    /// How far the file is filled with zeros ahead of use, or written; meaningful while the segment is active.
    pub prepared_end: Cell<u64>,
    /// How far it has room, if that is further: blocks that were never written.
    pub allocated_end: Cell<u64>,
    /// It will never be written or cut again: its successor has a file.
    pub sealed: Cell<bool>,
    /// `None` until it is first needed, for a sealed segment.
    pub index: RefCell<Option<Index>>,
    /// The newest timestamp in it, once its index was loaded; meaningful when it is sealed.
    pub max_timestamp: Cell<Option<i64>>,
    /// Somebody read from it since [`super::loaded`] looked last.
    pub read_lately: Cell<bool>,
    /// File and index were let go. Then the header is known, other than before the first reading.
    pub was_loaded: Cell<bool>,
    /// The snapshot of producers to write beside it once it has a file.
    pub producers: RefCell<Option<Vec<u8>>>,
    /// What is known of the snapshot beside it. Also known to one in its place: it may be being written.
    pub snapshot: Rc<Cell<Snapshot>>,
    /// The time of its newest record once it is sealed and somebody asked, in milliseconds since 1970.
    pub newest_ms: Cell<Option<i64>>,
    /// How long it was when retention looked at it, and since when it is as long; see `removal`.
    pub seen: Cell<(u64, i64)>,
}

impl<R: Runtime> Segment<R> {
    /// A segment that has no file yet.
    pub fn planned(dir: &Path, header: SegmentHeader) -> Self {
        Segment {
            path: segment_path(dir, header.base_offset),
            header,
            replaces: false,
            file: RefCell::new(None),
            end_position: Cell::new(SEGMENT_HEADER_BYTES),
            prepared_end: Cell::new(0),
            allocated_end: Cell::new(0),
            sealed: Cell::new(false),
            index: RefCell::new(Some(Index::default())),
            max_timestamp: Cell::new(None),
            read_lately: Cell::new(false),
            was_loaded: Cell::new(false),
            producers: RefCell::new(None),
            snapshot: Rc::new(Cell::new(Snapshot::Unknown)),
            newest_ms: Cell::new(None),
            seen: Cell::new((0, 0)),
        }
    }

    /// One that begins where `empty` does, which never had a batch. It goes by the same incarnation, which nothing is
    /// stamped with: so what is kept beside the one, or is being written, is right for the other.
    pub fn in_place_of(empty: &Self, header: SegmentHeader) -> Self {
        assert!(empty.header.base_offset == header.base_offset, "{header:?} in place of {:?}", empty.header);
        let header = SegmentHeader { incarnation: empty.header.incarnation, ..header };
        Segment {
            path: empty.path.clone(),
            replaces: empty.replaces || empty.file.borrow().is_some(),
            producers: RefCell::new(empty.producers.take()),
            snapshot: Rc::clone(&empty.snapshot),
            ..Segment::planned(Path::new(""), header)
        }
    }

    /// The offset of its first record.
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// Lets go of the file and the index of a sealed segment, which were loaded.
    pub fn unload(&self) {
        *self.file.borrow_mut() = None;
        *self.index.borrow_mut() = None;
        self.was_loaded.set(true);
    }

    /// Where its index is kept once it is sealed.
    pub fn index_path(&self) -> PathBuf {
        self.path.with_extension(&INDEX_SUFFIX[1..])
    }

    /// Where it is kept what the batches before it say of producers.
    pub fn producers_path(&self) -> PathBuf {
        producers_path(&self.path)
    }
}

/// Where it is kept what the batches before the segment at `path` say of producers.
pub fn producers_path(path: &Path) -> PathBuf {
    path.with_extension(&PRODUCERS_SUFFIX[1..])
}

/// The name of the segment file in `dir` whose first record has `base`.
pub fn segment_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}{SEGMENT_SUFFIX}", base.0))
}

/// The base offset in a segment file's name; `None` if it is not one.
pub fn base_offset_of(path: &Path) -> Option<Offset> {
    base_in_name(path, SEGMENT_SUFFIX)
}

/// The base offset in the name of a segment's index.
pub fn index_base_of(path: &Path) -> Option<Offset> {
    base_in_name(path, INDEX_SUFFIX)
}

/// The base offset in the name of a segment's snapshot of producers.
pub fn producers_base_of(path: &Path) -> Option<Offset> {
    base_in_name(path, PRODUCERS_SUFFIX)
}

fn base_in_name(path: &Path, suffix: &str) -> Option<Offset> {
    let name = path.file_name()?.to_str()?.strip_suffix(suffix)?;
    let digits = name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit());
    if digits { name.parse().ok().map(Offset) } else { None }
}

/// The files that stand beside the segment at `path`, whether or not they are there.
pub fn sidecars_of(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    SIDECAR_SUFFIXES.iter().map(|suffix| path.with_extension(suffix))
}

/// The segment beside which the file at `path` stands, if it is a sidecar.
pub fn segment_of_sidecar(path: &Path) -> Option<PathBuf> {
    let suffix = path.extension()?.to_str()?;
    let segment = path.with_extension(&SEGMENT_SUFFIX[1..]);
    (SIDECAR_SUFFIXES.contains(&suffix) && base_offset_of(&segment).is_some()).then_some(segment)
}

/// Whether the file at `path` is a segment that was deleted and whose space was not given back yet.
pub fn is_deleted_segment(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix == DELETED_SUFFIX)
        && base_offset_of(&path.with_extension(&SEGMENT_SUFFIX[1..])).is_some()
}

/// Whether a file in a partition's directory is one of ours, and goes when the log is deleted.
pub fn belongs_to_log(path: &Path) -> bool {
    base_offset_of(path).is_some()
        || segment_of_sidecar(path).is_some()
        || is_deleted_segment(path)
        || is_start_file(path)
        || is_cut_file(path)
        || is_ballot_file(path)
        || is_spare(path)
        || path.file_name().is_some_and(|name| name == BEGUN)
}

/// Whether a file is one that waits to be a segment. It holds nothing that is not elsewhere.
pub fn is_spare(path: &Path) -> bool {
    let names = [SPARE_NAME, REPLACEMENT_NAME, REPLACEMENT_PRODUCERS_NAME, RENEWED_NAME];
    path.file_name().is_some_and(|name| names.iter().any(|ours| name == *ours))
}

/// The block at the start of a segment file with `header`.
pub(super) fn header_block<R: Runtime>(runtime: &R, header: &SegmentHeader) -> R::Buffer {
    let mut block = runtime.allocate(SEGMENT_HEADER_BYTES as usize);
    let header = header.encode();
    block.bytes_mut()[..header.len()].copy_from_slice(&header);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            partition: PartitionId { log: LogUid(7), index: PartitionIndex(3) },
            block_bytes: 512,
            base_offset: Offset(1_000_000),
            created_ms: 1_790_000_000_000,
            incarnation: Incarnation(0xdead_beef),
            leader_epoch: LeaderEpoch(5),
        }
    }

    #[test]
    fn the_header_block_has_these_bytes() {
        let golden = "50595331eec0f3040700000000000000030000000002000040420f0000000000006c50c4a0010000efbeadde05000000";
        let bytes: String = header().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(bytes, golden);
        assert_eq!(SegmentHeader::decode(&header().encode()), Ok(header()));
    }

    #[test]
    fn any_flipped_bit_of_the_header_is_noticed_and_an_empty_block_is_told_from_a_damaged_one() {
        for bit in 0..48 * 8 {
            let mut bytes = header().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = SegmentHeader::decode(&bytes).unwrap_err();
            assert!(matches!(error, SegmentHeaderError::Damaged(_)), "bit {bit}, also of the version");
        }
        let mut other = header().encode();
        // A version whose checksum is its own.
        (other[3], other[4]) = (b'2', other[4] ^ 1);
        assert_eq!(SegmentHeader::decode(&other), Err(SegmentHeaderError::Version(2)));
        assert_eq!(SegmentHeader::decode(&[0; 4096]), Err(SegmentHeaderError::Blank));
        assert!(SegmentHeader::decode(&[1; 10]).is_err());
    }

    #[test]
    fn a_block_size_that_no_device_has_is_damage() {
        let decoded = |block_bytes| SegmentHeader::decode(&SegmentHeader { block_bytes, ..header() }.encode());
        for right in [512, 1024, 4096] {
            assert_eq!(decoded(right).map(|header| header.block_bytes), Ok(right));
        }
        for wrong in [0, 1, 256, 600, 4095, 8192] {
            assert!(matches!(decoded(wrong), Err(SegmentHeaderError::Damaged(_))), "{wrong}");
        }
    }

    #[test]
    fn names_sort_as_offsets_do_and_come_back() {
        let path = segment_path(Path::new("/d"), Offset(42));
        assert_eq!(path, Path::new("/d/00000000000000000042.seg"));
        assert_eq!(base_offset_of(&path), Some(Offset(42)));
        for foreign in ["42.seg", "00000000000000000042.idx", "0000000000000000004x.seg", "notes.txt"] {
            assert_eq!(base_offset_of(Path::new(foreign)), None, "{foreign}");
        }
        for ours in
            ["00000000000000000042.idx", "00000000000000000042.prd", "00000000000000000042.del", "start", "start.new"]
        {
            assert!(belongs_to_log(Path::new(ours)), "{ours}");
        }
        for foreign in ["notes.txt", "42.del", "starts", "00000000000000000042.txt"] {
            assert!(!belongs_to_log(Path::new(foreign)), "{foreign}");
        }
        let sidecars: Vec<PathBuf> = sidecars_of(&path).collect();
        assert!(sidecars.iter().all(|sidecar| segment_of_sidecar(sidecar) == Some(path.clone())), "{sidecars:?}");
    }

    #[test]
    fn a_segment_in_the_place_of_an_empty_one_goes_on_with_its_incarnation_and_what_is_kept_beside_it() {
        type Planned = Segment<crate::runtime::sim::SimRuntime>;
        let empty = Planned::planned(Path::new("/d"), header());
        *empty.producers.borrow_mut() = Some(vec![7]);
        empty.snapshot.set(Snapshot::Pending);
        let (incarnation, leader_epoch) = (Incarnation(1), LeaderEpoch(6));
        let next = Planned::in_place_of(&empty, SegmentHeader { incarnation, leader_epoch, ..header() });
        assert_eq!(next.header, SegmentHeader { leader_epoch, ..header() });
        assert_eq!((&next.path, next.snapshot.get(), next.replaces), (&empty.path, Snapshot::Pending, false));
        assert_eq!((next.producers.borrow().as_deref(), empty.producers.borrow().as_deref()), (Some(&[7][..]), None));
        // It was being written.
        empty.snapshot.set(Snapshot::Durable);
        assert_eq!(next.snapshot.get(), Snapshot::Durable, "whatever is deleted waits for it");
    }
}

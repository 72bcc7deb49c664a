//! Where a log begins, when that is not where its first segment does: a small checked file beside the segments. For
//! one copy of it nothing else knows that, and a drive that spoils a sector would bring records back that were given
//! up.
//!
//! It is written before any record before it is given up, and durable before anybody hears of it: so whatever a crash
//! leaves of the segments behind it, the log never begins earlier than it once did. Segments that lie before it whole
//! mean nothing any more, in whatever order they disappear. Format: `docs/FORMAT.md`, "Start file".

use std::{io, path::Path};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

use super::{
    LogFault,
    copies::{self, COPY_BYTES},
};
use crate::{
    runtime::Runtime,
    types::{LogUid, Offset, PartitionIndex},
};

/// Its name in the partition's directory, and that of the next one while it is written.
pub const FILE_NAME: &str = "start";
const ASIDE_NAME: &str = "start.new";

/// The first bytes of each copy. The 1 is the version.
pub(super) const MAGIC: [u8; 4] = *b"PYB1";

/// One copy, as it stands on disk; the rest of its sector is zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawStart {
    magic: [u8; 4],
    /// CRC-32C of what follows.
    crc: U32,
    log: U64,
    partition: U32,
    reserved: U32,
    start: U64,
}

const _: () = assert!(size_of::<RawStart>() == 32, "the start file is laid out by hand");

/// What means something of a copy.
pub(super) const COPY_LEN: usize = size_of::<RawStart>();

/// Whose start file it is. The log's number is not known to a tool without a catalogue.
pub type Owner = (Option<LogUid>, PartitionIndex);

/// Whether a file in a partition's directory is this one, or the next one that was never finished.
pub fn is_start_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == FILE_NAME || name == ASIDE_NAME)
}

/// The bytes of one copy.
pub fn encode((log, index): (LogUid, PartitionIndex), start: Offset) -> [u8; 32] {
    let mut raw = RawStart {
        magic: MAGIC,
        crc: U32::new(0),
        log: U64::new(log.0),
        partition: U32::new(index.0),
        reserved: U32::new(0),
        start: U64::new(start.0),
    };
    raw.crc = U32::new(crc32c::crc32c(&raw.as_bytes()[8..]));
    zerocopy::transmute!(raw)
}

/// Reads the file of `owner`: the latest beginning that an intact copy tells, since a log never begins earlier again.
///
/// Errors: what is wrong with the first copy, if all are damaged.
pub fn decode(bytes: &[u8], owner: Owner) -> Result<Offset, String> {
    copies::best_of(bytes.chunks(COPY_BYTES).map(|copy| decode_copy(copy, owner)), Offset::max)
}

fn decode_copy(bytes: &[u8], owner: Owner) -> Result<Offset, String> {
    let (raw, _) = RawStart::read_from_prefix(bytes).map_err(|_| "the start file is cut off".to_owned())?;
    if raw.magic != MAGIC {
        return Err("the start file does not begin with PYB1".to_owned());
    }
    if raw.crc.get() != crc32c::crc32c(&raw.as_bytes()[8..]) {
        return Err("the checksum of the start file is wrong".to_owned());
    }
    let (log, index) = (LogUid(raw.log.get()), PartitionIndex(raw.partition.get()));
    if owner.0.is_some_and(|known| known != log) || owner.1 != index {
        return Err(format!("the start file is that of partition {log}/{index}"));
    }
    Ok(Offset(raw.start.get()))
}

/// Makes `start` the beginning of the log in `dir`. Durable when this returns.
pub async fn write<R: Runtime>(
    runtime: &R,
    dir: &Path,
    owner: (LogUid, PartitionIndex),
    start: Offset,
) -> Result<(), LogFault> {
    copies::write(runtime, &dir.join(FILE_NAME), &encode(owner, start)).await
}

/// Where the log in `dir` begins, as its start file says; `None` if there is none, the inner error if it is damaged.
/// The directory was synced by the caller; the file is, before it is trusted.
pub async fn read<R: Runtime>(runtime: &R, dir: &Path, owner: Owner) -> io::Result<Option<Result<Offset, String>>> {
    let bytes = copies::read(runtime, &dir.join(FILE_NAME)).await?;
    Ok(bytes.map(|bytes| decode(&bytes, owner)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sim::{Sim, SimConfig};

    const OWNER: (LogUid, PartitionIndex) = (LogUid(7), PartitionIndex(3));

    #[test]
    fn the_start_file_has_these_bytes() {
        let golden = "50594231ce2b26e80700000000000000030000000000000040420f0000000000";
        let bytes: String = encode(OWNER, Offset(1_000_000)).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(bytes, golden);
    }

    #[test]
    fn any_flipped_bit_is_noticed_and_so_is_the_file_of_another_partition() {
        let bytes = encode(OWNER, Offset(42));
        assert_eq!(decode(&bytes, (Some(OWNER.0), OWNER.1)), Ok(Offset(42)));
        assert_eq!(decode(&bytes, (None, OWNER.1)), Ok(Offset(42)));
        assert!(decode(&bytes, (Some(LogUid(8)), OWNER.1)).unwrap_err().contains("7/3"));
        assert!(decode(&bytes, (None, PartitionIndex(4))).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, (None, OWNER.1)).is_err(), "bit {bit}");
        }
        assert!(decode(&bytes[..31], (None, OWNER.1)).is_err());
        assert!(decode(&[], (None, OWNER.1)).is_err());
        assert!(decode(&[0; 4096], (None, OWNER.1)).is_err());
    }

    #[test]
    fn one_copy_that_is_left_is_enough() {
        let other = |file: &[u8]| {
            copies::other_version_of(MAGIC, file, |copy| crate::log::version::has_checksum(copy, COPY_LEN))
        };
        let owner = (Some(OWNER.0), OWNER.1);
        let mut file = [0; 4096];
        for at in (0..4096).step_by(COPY_BYTES) {
            file[at..at + 32].copy_from_slice(&encode(OWNER, Offset(42)));
        }
        for left in 0..8 {
            let mut spoiled = [0xa5; 4096];
            spoiled[left * COPY_BYTES..][..COPY_BYTES].copy_from_slice(&file[left * COPY_BYTES..][..COPY_BYTES]);
            assert_eq!(decode(&spoiled, owner), Ok(Offset(42)), "copy {left}");
        }
        file[1024..1056].copy_from_slice(&encode(OWNER, Offset(43)));
        assert_eq!(decode(&file, owner), Ok(Offset(43)), "the beginning never goes back");
        assert_eq!(other(&file), None);
        file[3] = b'2';
        assert_eq!((other(&file), decode(&file, owner)), (None, Ok(Offset(43))), "a spoiled sector");
        file.chunks_mut(COPY_BYTES).for_each(|copy| copy[3] = b'2');
        assert_eq!(other(&file), None, "all of them spoiled, and still the checksums of ours");
        file.chunks_mut(COPY_BYTES).for_each(|copy| copy[4] ^= 1);
        assert_eq!(other(&file), Some(2));
        file[515] = b'1';
        assert_eq!(other(&file), None, "one begins as ours do");
        file.fill(7);
        assert_eq!(other(&file), None);
        assert!(decode(&file, owner).unwrap_err().contains("PYB1"));
    }

    #[test]
    fn the_file_that_is_written_has_a_copy_in_each_sector() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let runtime = cores[0].clone();
        let story = async move {
            runtime.create_dir_all(Path::new("/p")).await.unwrap();
            write(&runtime, Path::new("/p"), OWNER, Offset(42)).await.unwrap();
        };
        sim.block_on(&cores[0], story, 10_000).unwrap();
        let file = sim.content(Path::new("/p/start")).unwrap();
        assert_eq!(file.chunks(COPY_BYTES).filter(|copy| decode(copy, (None, OWNER.1)) == Ok(Offset(42))).count(), 8);
    }
}

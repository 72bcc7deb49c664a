//! Small files of which nothing else knows what they say: one page with a copy of it in each sector, or in each few, so
//! that a drive that spoils one takes nothing away. Replaced whole: written aside, synced, renamed, directory synced.

use std::{io, path::Path, rc::Rc};

use bytes::Bytes;

use super::{LogFault, envelope, version::other_version};
use crate::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    runtime::{Buffer, File, OpenMode, Runtime},
    testing::bug::{PlantedBug, planted},
};

/// The ballot of a replica, which stands beside its segments. What is in it is the business of whoever owns the log;
/// the log knows its file.
pub(crate) const BALLOT_NAME: &str = "ballot";
const BALLOT_ASIDE_NAME: &str = "ballot.new";
/// The first bytes of each copy of it. The 1 is the version.
pub(crate) const BALLOT_MAGIC: [u8; 4] = *b"PYV1";

/// Whether a file in a partition's directory is a ballot, or the next one that was never finished.
pub fn is_ballot_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == BALLOT_NAME || name == BALLOT_ASIDE_NAME)
}

/// Whether any copy in a ballot's file is intact.
pub fn has_intact_ballot(bytes: &[u8]) -> bool {
    (0..bytes.len()).step_by(COPY_BYTES).any(|at| envelope::open(BALLOT_MAGIC, &bytes[at..]).is_some())
}

/// A copy begins at each multiple of this, or of a number of them.
pub(crate) const COPY_BYTES: usize = 512;

/// The version of a file that another Pyralog wrote, whose copies begin with `magic`. A copy that begins as ours do, or
/// whose checksum `holds`, says that it is ours: then a sector that says otherwise is spoiled.
pub(crate) fn other_version_of(magic: [u8; 4], bytes: &[u8], holds: impl Fn(&[u8]) -> bool) -> Option<u8> {
    let is_ours = |copy: &[u8]| copy.starts_with(&magic) || (copy.starts_with(&magic[..3]) && holds(copy));
    if bytes.chunks(COPY_BYTES).any(is_ours) {
        return None;
    }
    bytes.chunks(COPY_BYTES).find_map(|copy| other_version(magic, copy, &holds))
}

/// Whether the checksum of a copy of a ballot holds, whatever its version says.
pub(crate) fn ballot_holds(copy: &[u8]) -> bool {
    let rest = copy.get(BALLOT_MAGIC.len()..).unwrap_or_default();
    envelope::open(BALLOT_MAGIC, &[&BALLOT_MAGIC[..], rest].concat()).is_some()
}

/// What the copies of a file come to, each read by `decode`: of two that are intact and differ, what `newest` says.
///
/// Errors: what is wrong with the first, if all are damaged.
pub(crate) fn best_of<T>(
    copies: impl Iterator<Item = Result<T, String>>,
    newest: impl Fn(T, T) -> T,
) -> Result<T, String> {
    let best = copies.reduce(|best, copy| match (best, copy) {
        (Ok(one), Ok(other)) => Ok(newest(one, other)),
        (Err(_), Ok(intact)) => Ok(intact),
        (best, Err(_)) => best,
    });
    best.unwrap_or_else(|| Err("the file is empty".to_owned()))
}

/// Makes the file at `path` one of copies of `copy`, of which two have room in a page. Durable when this returns.
pub(crate) async fn write<R: Runtime>(runtime: &R, path: &Path, copy: &[u8]) -> Result<(), LogFault> {
    let most = DEVICE_BLOCK_BYTES_MAX as usize / 2;
    assert!(copy.len() <= most, "a copy of {} bytes, where {most} have room", copy.len());
    let aside = path.with_extension("new");
    let full = |error: io::Error| LogFault::from_io("writing", &aside, &error);
    let failed = |error: io::Error| LogFault::failed("writing", path, &error);
    let mut buffer = runtime.allocate(DEVICE_BLOCK_BYTES_MAX as usize);
    for place in buffer.bytes_mut().chunks_exact_mut(copy.len().next_multiple_of(COPY_BYTES)) {
        place[..copy.len()].copy_from_slice(copy);
    }
    let file = runtime.open(&aside, OpenMode::CreateTruncate).await.map_err(full)?;
    file.write_at(0, Rc::new(buffer)).await.map_err(full)?;
    if !planted(PlantedBug::StartNotSynced) {
        file.fdatasync().await.map_err(failed)?;
    }
    drop(file);
    runtime.rename(&aside, path).await.map_err(failed)?;
    if !planted(PlantedBug::StartNameNotSynced)
        && let Some(dir) = path.parent()
    {
        runtime.sync_dir(dir).await.map_err(failed)?;
    }
    Ok(())
}

/// The bytes of the file at `path`; `None` if there is none. The directory was synced by the caller; the file is,
/// before it is trusted.
pub(crate) async fn read<R: Runtime>(runtime: &R, path: &Path) -> io::Result<Option<Bytes>> {
    let file = match runtime.open(path, OpenMode::Existing).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Not to be taken for bytes that the drive does not give.
    file.fdatasync().await.map_err(|error| io::Error::new(error.kind(), format!("its sync: {error}")))?;
    file.read_at(0, DEVICE_BLOCK_BYTES_MAX as usize).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sim::{Sim, SimConfig, faults::Failure};

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_one_that_is_not_there() {
        let sim = Rc::new(Sim::new(1, &SimConfig::default()));
        let (_, cores) = sim.process(1);
        let (world, runtime) = (Rc::clone(&sim), cores[0].clone());
        let story = async move {
            let path = Path::new("/f");
            assert_eq!(read(&runtime, path).await.unwrap(), None);
            write(&runtime, path, &[7; 600]).await.unwrap();
            let bytes = read(&runtime, path).await.unwrap().unwrap();
            assert!(bytes.chunks(2 * COPY_BYTES).all(|copy| copy[..600] == [7; 600] && copy[600..] == [0; 424]));
            world.fail_nth(1, Failure::Error, true);
            read(&runtime, path).await.unwrap_err();
        };
        sim.block_on(&cores[0], story, 10_000).unwrap();
    }

    #[test]
    #[should_panic(expected = "where 2048 have room")]
    fn a_copy_that_would_be_alone_in_its_page_is_not_written() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let runtime = cores[0].clone();
        let story = async move { write(&runtime, Path::new("/f"), &[7; 2049]).await };
        let _ = sim.block_on(&cores[0], story, 10_000);
    }
}

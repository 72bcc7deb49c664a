//! The envelope of a sidecar: a magic that names its kind and version, the CRC-32C of what is in it, its length, and an
//! rkyv archive. What a sidecar says can always be had from the segments, so a doubt is no error. A ballot stands in
//! one too, as JSON.

use std::{io, path::Path, rc::Rc};

use rkyv::util::AlignedVec;

use crate::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    runtime::{Buffer, File, OpenMode, Runtime},
};

const ENVELOPE_BYTES: usize = 16;

/// The bytes of a sidecar.
pub(crate) fn seal(magic: [u8; 4], archive: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENVELOPE_BYTES + archive.len());
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&crc32c::crc32c(archive).to_le_bytes());
    bytes.extend_from_slice(&(archive.len() as u64).to_le_bytes());
    bytes.extend_from_slice(archive);
    bytes
}

/// The archive in a sidecar, aligned for rkyv; `None` on any doubt. The file may go on behind it.
pub(crate) fn open(magic: [u8; 4], bytes: &[u8]) -> Option<AlignedVec<16>> {
    let (envelope, rest) = bytes.split_at_checked(ENVELOPE_BYTES)?;
    let crc = u32::from_le_bytes(envelope[4..8].try_into().ok()?);
    let len = usize::try_from(u64::from_le_bytes(envelope[8..16].try_into().ok()?)).ok()?;
    let archive = rest.get(..len)?;
    if envelope[..4] != magic || crc32c::crc32c(archive) != crc {
        return None;
    }
    let mut aligned = AlignedVec::<16>::with_capacity(len);
    aligned.extend_from_slice(archive);
    Some(aligned)
}

/// Writes a sidecar's file, and gives it. Not synced: most of what is not there after a loss of power is made anew.
pub(super) async fn write<R: Runtime>(runtime: &R, path: &Path, bytes: &[u8]) -> io::Result<R::File> {
    let padded = bytes.len().next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize);
    let mut buffer = runtime.allocate(padded);
    buffer.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    let file = runtime.open(path, OpenMode::CreateTruncate).await?;
    file.write_at(0, Rc::new(buffer)).await?;
    Ok(file)
}

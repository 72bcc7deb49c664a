//! The drive alone: plain writes with O_DIRECT by one thread, into a file whose blocks were written before, as the
//! server's segments are.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};

use super::{Device, Rate};
use crate::measuring::{Times, rounded};

/// Devices' blocks divide this.
const BLOCK: usize = 4 << 10;
/// What a bulk write is.
const BULK: usize = 1 << 20;
/// The file is written over and over. Larger than drives' own small caches would be nicer and would take longer.
const FILE_BYTES: usize = 64 << 20;

/// Measures the drive under `folder`, each way for `seconds`. Leaves nothing behind.
///
/// Errors: the folder cannot be written to, or its file system knows no O_DIRECT.
pub fn measure(folder: &Path, seconds: Duration) -> io::Result<Device> {
    let file = tempfile::Builder::new().prefix(".floor-").tempfile_in(folder)?;
    let open = |flags: OFlags| -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(file.path(), OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC | flags, Mode::empty())?)
    };
    let bytes = Aligned::new(BULK);
    let (direct, dsync) = (open(OFlags::empty())?, open(OFlags::DSYNC)?);
    fill(&direct, &bytes)?;
    let bulk = repeat(seconds, BULK, |at| write(&direct, bytes.first(BULK), at))?;
    Ok(Device {
        folder: folder.display().to_string(),
        write: repeat(seconds, BLOCK, |at| write(&direct, bytes.first(BLOCK), at))?,
        write_fdatasync: repeat(seconds, BLOCK, |at| {
            write(&direct, bytes.first(BLOCK), at)?;
            Ok(rustix::fs::fdatasync(&direct)?)
        })?,
        write_dsync: repeat(seconds, BLOCK, |at| write(&dsync, bytes.first(BLOCK), at))?,
        bulk_bytes_per_s: rounded(bulk.per_s * BULK as f64),
    })
}

/// Writes all blocks once, so that none of the writes that count has to turn an unwritten extent into a written one.
fn fill(file: &OwnedFd, bytes: &Aligned) -> io::Result<()> {
    for at in (0..FILE_BYTES).step_by(BULK) {
        write(file, bytes.first(BULK), at as u64)?;
    }
    File::from(file.try_clone()?).sync_all()
}

fn write(file: &OwnedFd, bytes: &[u8], at: u64) -> io::Result<()> {
    match rustix::io::pwrite(file, bytes, at)? {
        written if written == bytes.len() => Ok(()),
        written => Err(io::Error::other(format!("{written} of {} bytes were written", bytes.len()))),
    }
}

/// Does something at one place of the file after the other for so long.
fn repeat(seconds: Duration, step: usize, mut act: impl FnMut(u64) -> io::Result<()>) -> io::Result<Rate> {
    let (mut times, begin) = (Times::default(), Instant::now());
    let (mut at, mut before) = (0, begin);
    while before - begin < seconds {
        act(at as u64)?;
        let now = Instant::now();
        times.record(now - before);
        (at, before) = ((at + step) % FILE_BYTES, now);
    }
    let per_s = rounded(times.count() as f64 / (before - begin).as_secs_f64().max(1e-9));
    Ok(Rate { per_s, times: times.latencies() })
}

/// Bytes at an address that O_DIRECT takes.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let mut state = 1;
        let mut bytes = vec![0; len + BLOCK];
        bytes.chunks_mut(8).for_each(|chunk| {
            let noise = crate::dataset::splitmix(&mut state).to_le_bytes();
            chunk.copy_from_slice(&noise[..chunk.len()]);
        });
        let start = bytes.as_ptr().align_offset(BLOCK);
        Aligned { bytes, start }
    }

    fn first(&self, len: usize) -> &[u8] {
        &self.bytes[self.start..self.start + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_drive_is_measured_and_left_clean() {
        // The folder of the build is on a real disk; a temporary one may be in memory, where there is no O_DIRECT.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        match measure(folder.path(), Duration::from_millis(5)) {
            Ok(device) => {
                assert!(
                    device.write.per_s > 0.0 && device.write_fdatasync.per_s > 0.0 && device.write_dsync.per_s > 0.0
                );
                assert!(device.bulk_bytes_per_s > 0.0 && device.write.times.is_some());
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}"),
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(measure(Path::new("no/such/folder"), Duration::from_millis(1)).is_err());
    }
}

//! Files of the real world, opened with O_DIRECT.

use std::{cell::OnceCell, io, os::fd::AsRawFd, path::Path, rc::Rc};

use bytes::Bytes;
use glommio::{
    GlommioError,
    io::{DmaBuffer, DmaFile, OpenOptions, ReadResult},
};
use send_wrapper::SendWrapper;

use super::{
    super::{Buffer, File, MapError, OpenMode},
    helper::blocking,
    mapping::{Mapping, claim},
};

/// The operating system's own error, with its number. glommio's conversion loses the number of most.
fn io_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}

/// A file opened with O_DIRECT. See [`File`].
///
/// Futures of it may be dropped at any time: glommio keeps buffers that the kernel may still touch until the kernel is
/// done.
pub struct GlommioFile {
    file: DmaFile,
    /// The same file opened with O_DSYNC, once somebody wants that: glommio has no such flag for a single write.
    synchronous: OnceCell<DmaFile>,
    /// The same file once more, holding the lock that keeps mappings away, once [`File::claim`] got it.
    claimed: OnceCell<std::fs::File>,
}

impl File for GlommioFile {
    type Buffer = DmaBuffer;
    type Mapped = Mapping;

    fn alignment(&self) -> u64 {
        self.file.alignment().max(512)
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let first = self.read_once(position, len).await?;
        // Short and ragged: the end of the file. Short and aligned: perhaps the end, perhaps a kernel that stopped
        // early.
        if first.len() == len || first.is_empty() || !(first.len() as u64).is_multiple_of(self.alignment()) {
            return Ok(first);
        }
        let mut whole = Vec::from(first);
        while whole.len() < len {
            let more = self.read_once(position + whole.len() as u64, len - whole.len()).await?;
            whole.extend_from_slice(&more);
            if more.is_empty() || !(more.len() as u64).is_multiple_of(self.alignment()) {
                break;
            }
        }
        Ok(Bytes::from(whole))
    }

    async fn map(&self, position: u64, len: usize) -> Result<Mapping, MapError> {
        // Here and not by the helper: should nobody wait any more, the descriptor could be another file's by then.
        let file = self.open_again().map_err(MapError::Unreadable)?;
        let populated = move || Ok(Mapping::populated(&file, position, len));
        blocking(populated).await.map_err(MapError::Unreadable)?
    }

    async fn claim(&self) -> io::Result<bool> {
        if self.claimed.get().is_some() {
            return Ok(true);
        }
        let file = self.open_again()?;
        let alone = claim(&file)?;
        if alone {
            self.claimed.get_or_init(|| file);
        }
        Ok(alone)
    }

    async fn write_at(&self, position: u64, buffer: Rc<DmaBuffer>) -> io::Result<()> {
        write_whole(&self.file, position, buffer).await
    }

    async fn write_durable_at(&self, position: u64, buffer: Rc<DmaBuffer>) -> io::Result<()> {
        let file = match self.synchronous.get() {
            Some(file) => file,
            None => {
                let opened = self.open_synchronous().await?;
                // Another write may have been faster: then its file stays.
                self.synchronous.get_or_init(|| opened)
            }
        };
        write_whole(file, position, buffer).await
    }

    async fn fdatasync(&self) -> io::Result<()> {
        self.file.fdatasync().await.map_err(io_error)
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.pre_allocate(len, false).await.map_err(io_error)
    }

    async fn size(&self) -> io::Result<u64> {
        // Not `DmaFile::file_size`: it goes by the name the file had when it was opened, and ours are renamed.
        match std::fs::metadata(self.by_descriptor()) {
            Ok(metadata) => Ok(metadata.len()),
            Err(_) => self.file.file_size().await.map_err(io_error),
        }
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        // Not `DmaFile::truncate`: whether the helper thread still owes it an answer, nobody could tell.
        let file = std::fs::OpenOptions::new().write(true).open(self.by_descriptor())?;
        blocking(move || file.set_len(len)).await
    }
}

async fn write_whole(file: &DmaFile, position: u64, buffer: Rc<DmaBuffer>) -> io::Result<()> {
    let len = buffer.len();
    let mut done = file.write_rc_at(Rc::clone(&buffer), position).await.map_err(io_error)?;
    // A write falls short when the drive fills up. Asking for the rest either works or says what is wrong.
    while done < len {
        let rest_at = done - done % file.alignment().max(512) as usize;
        let mut rest = glommio::allocate_dma_buffer(len - rest_at);
        rest.as_bytes_mut().copy_from_slice(&buffer.as_bytes()[rest_at..]);
        let more = file.write_at(rest, position + rest_at as u64).await.map_err(io_error)?;
        if rest_at + more <= done {
            return Err(io::Error::new(io::ErrorKind::WriteZero, format!("wrote {done} of {len} bytes")));
        }
        done = rest_at + more;
    }
    Ok(())
}

impl GlommioFile {
    pub(super) async fn open(path: &Path, mode: OpenMode) -> io::Result<GlommioFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o640);
        match mode {
            OpenMode::Existing => &mut options,
            OpenMode::CreateNew => options.create_new(true),
            OpenMode::CreateTruncate => options.create(true).truncate(true),
        };
        let file = options.dma_open(path).await.map_err(io_error)?;
        Ok(GlommioFile { file, synchronous: OnceCell::new(), claimed: OnceCell::new() })
    }

    /// The same file, opened for reading without O_DIRECT; by its descriptor, as files are renamed. The descriptor is
    /// ours and open, so this walks no directory and waits for no drive.
    fn open_again(&self) -> io::Result<std::fs::File> {
        std::fs::File::open(self.by_descriptor())
    }

    fn by_descriptor(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// By its descriptor, not by a name: files are renamed.
    async fn open_synchronous(&self) -> io::Result<DmaFile> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_DSYNC);
        options.dma_open(self.by_descriptor()).await.map_err(io_error)
    }

    async fn read_once(&self, position: u64, len: usize) -> io::Result<Bytes> {
        /// Lets the bytes stay where the drive put them; see [`super::share`] for what `SendWrapper` guards.
        struct Read(SendWrapper<ReadResult>);
        impl AsRef<[u8]> for Read {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let read = self.file.read_at_aligned(position, len).await.map_err(io_error)?;
        Ok(Bytes::from_owner(Read(SendWrapper::new(read))))
    }
}

impl Buffer for DmaBuffer {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_bytes_mut()
    }

    fn trim(&mut self, len: usize) {
        self.trim_to_size(len);
    }
}

//! `dlog verify --repair`: does what a finding allows, and says what it did. It cuts off only what was provably never
//! acknowledged as durable, and never deletes: what must go is moved into a folder of its own, under the path that it
//! had, and so is what is cut off.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use pyralog_engine::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    log::verify::{Finding, Remedy},
};

/// Where in the data directory things are set aside.
pub const SET_ASIDE: &str = "set-aside";

/// What was done about a finding, in words.
pub enum Done {
    /// It is no more.
    Repaired(String),
    /// It is still there, but what is in danger is kept elsewhere.
    Kept(String),
    /// Nothing could be.
    Nothing,
}

/// One run of repairs on a data directory, which nobody else uses.
pub struct Repair {
    root: PathBuf,
    /// Made when the first thing is set aside.
    aside: Option<PathBuf>,
}

impl Repair {
    /// Repairs in the data directory `root`.
    pub fn new(root: &Path) -> Self {
        Repair { root: root.to_owned(), aside: None }
    }

    /// Does what `finding` allows.
    pub fn apply(&mut self, finding: &Finding) -> io::Result<Done> {
        match &finding.remedy {
            Remedy::Truncate(position) => self.cut(&finding.path, *position).map(Done::Repaired),
            Remedy::Copy(position) => self.keep(&finding.path, *position).map(Done::Kept),
            Remedy::Rewrite(bytes) => rewrite(&finding.path, bytes).map(Done::Repaired),
            Remedy::SetAside => self.set_aside(&finding.path).map(Done::Repaired),
            Remedy::None(_) => Ok(Done::Nothing),
        }
    }

    fn set_aside(&mut self, path: &Path) -> io::Result<String> {
        let target = self.place_for(path)?;
        fs::rename(path, &target)?;
        // The new name before the old one is gone for good.
        self.sync_names_of(&target)?;
        path.parent().map_or(Ok(()), sync_dir)?;
        Ok(format!("moved to {}", self.shown(&target)))
    }

    /// Cuts off what stands in the file from `position` on, after keeping a copy of it.
    fn cut(&mut self, path: &Path, position: u64) -> io::Result<String> {
        let (copy, size) = self.copy(path, position)?;
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(position)?;
        file.sync_all()?;
        Ok(format!("cut off at byte {position}; it had {size} bytes; the rest is in {copy}"))
    }

    /// Keeps a copy of what stands in the file from `position` on.
    fn keep(&mut self, path: &Path, position: u64) -> io::Result<String> {
        let (copy, _) = self.copy(path, position)?;
        Ok(format!("nothing is cut off; a copy of what stands from byte {position} on is in {copy}"))
    }

    /// Where the copy is, and how many bytes the file has.
    fn copy(&mut self, path: &Path, position: u64) -> io::Result<(String, u64)> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        if size <= position {
            return Err(io::Error::other(format!("it has only {size} bytes now")));
        }
        let target = self.place_for(path)?.with_extension(format!("seg.from-{position}"));
        let mut copy = File::create_new(&target)?;
        file.seek(SeekFrom::Start(position))?;
        io::copy(&mut file, &mut copy)?;
        copy.sync_all()?;
        self.sync_names_of(&target)?;
        Ok((self.shown(&target).to_string(), size))
    }

    /// Where `path` is set aside: under the path that it has, in folders that exist.
    fn place_for(&mut self, path: &Path) -> io::Result<PathBuf> {
        let relative = path.strip_prefix(&self.root).map_err(io::Error::other)?.to_owned();
        let target = self.folder()?.join(relative);
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        Ok(target)
    }

    /// Syncs every folder on the way to `target`.
    fn sync_names_of(&self, target: &Path) -> io::Result<()> {
        let mut folders = target.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root));
        folders.try_for_each(sync_dir)
    }

    fn shown<'a>(&self, target: &'a Path) -> std::path::Display<'a> {
        target.strip_prefix(&self.root).unwrap_or(target).display()
    }

    /// A folder that nothing was moved to before.
    fn folder(&mut self) -> io::Result<PathBuf> {
        if let Some(folder) = &self.aside {
            return Ok(folder.clone());
        }
        let all = self.root.join(SET_ASIDE);
        fs::create_dir_all(&all)?;
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        for attempt in 0u32.. {
            let name = if attempt == 0 { time.clone() } else { format!("{time}-{attempt}") };
            match fs::create_dir(all.join(&name)) {
                Ok(()) => return Ok(self.aside.insert(all.join(&name)).clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// Waits for the writes that a killed server left under way, as recovery does, so that what is read after this stays.
pub fn settle(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let size = file.metadata()?.len();
    file.set_len(size + DEVICE_BLOCK_BYTES_MAX)?;
    file.set_len(size)?;
    file.sync_all()
}

fn rewrite(path: &Path, bytes: &[u8]) -> io::Result<String> {
    let aside = path.with_extension("new");
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), sync_dir)?;
    Ok("written anew from its segment".to_owned())
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

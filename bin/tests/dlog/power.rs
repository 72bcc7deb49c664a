//! A drive whose power can be cut, that can be full, freeze and lose its sectors: an ext4 file system in a file, which
//! the kernel can be told to abandon. What its journal had not committed is gone, and every operation fails until it is
//! mounted anew. Only root can do that.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::support::PATIENCE;

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: stop at once and do not write the journal. In Perl, which
/// every Debian has, as an ioctl takes unsafe code here.
const SHUT_DOWN: &str =
    r#"open(my $f, "<", $ARGV[0]) or die "$!"; my $how = pack("L", 2); ioctl($f, 0x8004587d, $how) or die "$!""#;

const DRIVE_BYTES: u64 = 2 << 30;

/// A file system in a file. Dropped, it is unmounted.
pub struct Drive {
    image: PathBuf,
    mounted_at: PathBuf,
    /// The file system in memory that the image is on, if it is.
    memory_at: Option<PathBuf>,
}

impl Drive {
    /// Makes and mounts one in `dir`. `None`, loudly, where that is not allowed.
    pub fn mount(dir: &Path) -> Option<Drive> {
        Drive::of_size(dir, DRIVE_BYTES)
    }

    /// The same with so many bytes.
    pub fn of_size(dir: &Path, bytes: u64) -> Option<Drive> {
        Drive::make(dir, dir.join("drive.ext4"), None, bytes)
    }

    /// One that says that it has `bytes` and runs out of room after `real_bytes`, as thinly provisioned volumes do.
    pub fn promising(dir: &Path, bytes: u64, real_bytes: u64) -> Option<Drive> {
        let memory = dir.join("memory");
        fs::create_dir(&memory).unwrap();
        if let Err(reason) = run("mount", &["-t", "tmpfs", "-o", &format!("size={real_bytes}"), "none", text(&memory)])
        {
            println!("SKIPPED: a drive in memory: {reason}");
            return None;
        }
        Drive::make(dir, memory.join("drive.ext4"), Some(memory), bytes)
    }

    fn make(dir: &Path, image: PathBuf, memory_at: Option<PathBuf>, bytes: u64) -> Option<Drive> {
        let drive = Drive { image, mounted_at: dir.join("drive"), memory_at };
        fs::File::create(&drive.image).unwrap().set_len(bytes).unwrap();
        fs::create_dir(&drive.mounted_at).unwrap();
        // Without room for root only, so that what is free is free for everybody.
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&drive.image)]).and_then(|()| drive.try_power_up());
        made.inspect_err(|reason| println!("SKIPPED: a drive of its own, which takes root and loop devices: {reason}"))
            .ok()
            .map(|()| drive)
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// Cuts the power.
    pub fn cut(&self) {
        run("perl", &["-e", SHUT_DOWN, text(&self.mounted_at)]).unwrap();
    }

    /// Mounts it anew, once nobody has a file of it open.
    pub fn power_up(&self) {
        self.take_away();
        self.try_power_up().unwrap();
    }

    fn take_away(&self) {
        // The kernel lets go of a dead process's files a moment after its end.
        let until = Instant::now() + PATIENCE;
        while let Err(reason) = run("umount", &[text(&self.mounted_at)]) {
            assert!(Instant::now() < until, "{reason}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Puts an empty one in its place.
    pub fn replace(&self) {
        self.take_away();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&self.image)]).unwrap();
        self.try_power_up().unwrap();
    }

    fn try_power_up(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", text(&self.image), text(&self.mounted_at)])?;
        if self.memory_at.is_some() { self.be_honest() } else { Ok(()) }
    }

    /// A loop device says of a write that its file took a part of that it took it whole (seen on kernel 6.18). A page
    /// is taken whole or not at all.
    fn be_honest(&self) -> Result<(), String> {
        let found = Command::new("losetup").args(["-n", "-O", "NAME", "-j", text(&self.image)]).output();
        let name = String::from_utf8(found.map_err(|error| error.to_string())?.stdout).unwrap();
        let device = name.trim().trim_start_matches("/dev/");
        let path = format!("/sys/block/{device}/queue/max_sectors_kb");
        fs::write(&path, "4").map_err(|error| format!("{path}: {error}"))
    }

    /// No write ends from now on, until the drive is thawed.
    pub fn freeze(&self) {
        run("fsfreeze", &["-f", text(&self.mounted_at)]).unwrap();
    }

    /// The same for as long as what it returns is there: a server whose drive is frozen does not even die.
    pub fn frozen(&self) -> Frozen<'_> {
        self.freeze();
        Frozen(self)
    }

    /// The end of [`Drive::freeze`].
    pub fn thaw(&self) {
        run("fsfreeze", &["-u", text(&self.mounted_at)]).unwrap();
    }

    /// Has the file system write nothing more by itself, neither what waits nor when something was read: a write after
    /// [`Drive::lose_sectors`] would give the drive sectors again, which read as zeros.
    pub fn come_to_rest(&self) {
        run("mount", &["-o", "remount,noatime", text(&self.mounted_at)]).unwrap();
        run("sync", &["-f", text(&self.mounted_at)]).unwrap();
    }

    /// What the drive holds cannot be read any more.
    pub fn lose_sectors(&self) {
        fs::OpenOptions::new().write(true).open(&self.image).unwrap().set_len(0).unwrap();
    }

    /// Gives a drive that only promised its room the room.
    pub fn get_real(&self) {
        let memory = self.memory_at.as_ref().unwrap();
        run("mount", &["-o", "remount,size=4g", text(memory)]).unwrap();
    }

    /// Takes all room but `left` bytes of what is free, until [`Drive::make_room`].
    pub fn fill_up_to(&self, left: u64) {
        let volume = nix::sys::statvfs::statvfs(self.path()).unwrap();
        let free = volume.blocks_available() as u64 * volume.fragment_size() as u64;
        run("fallocate", &["-l", &free.saturating_sub(left).to_string(), text(&self.ballast())]).unwrap();
    }

    /// Takes the last byte.
    pub fn fill(&self) {
        self.fill_up_to(8 << 20);
        let mut file = fs::File::create(self.path().join("rest")).unwrap();
        for bytes in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; bytes]).and_then(|()| file.sync_all()).is_ok() {}
        }
    }

    /// Gives room back.
    pub fn make_room(&self) {
        for file in [self.ballast(), self.path().join("rest")] {
            let _ = fs::remove_file(file);
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

/// A drive that does not answer. Dropped, it does.
pub struct Frozen<'a>(&'a Drive);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        // In case a test failed while it was frozen.
        let _ = run("fsfreeze", &["-u", text(&self.mounted_at)]);
        for path in [Some(&self.mounted_at), self.memory_at.as_ref()].into_iter().flatten() {
            let _ = run("umount", &[text(path)]);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(command: &str, args: &[&str]) -> Result<(), String> {
    match Command::new(command).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{command}: {error}")),
    }
}

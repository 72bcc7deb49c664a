//! A drive whose power can be cut: an ext4 file system in a file, which the kernel can be told to abandon. What its
//! journal had not committed is gone, and every operation fails until it is mounted anew. Only root can do that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: stop at once and do not write the journal. In Perl, which
/// every Debian has, as an ioctl takes unsafe code here.
const SHUT_DOWN: &str =
    r#"open(my $f, "<", $ARGV[0]) or die "$!"; my $how = pack("L", 2); ioctl($f, 0x8004587d, $how) or die "$!""#;

const DRIVE_BYTES: u64 = 2 << 30;

/// A file system in a file. Dropped, it is unmounted.
pub struct Drive {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl Drive {
    /// Makes and mounts one in `dir`. `None` where that is not allowed.
    pub fn mount(dir: &Path) -> Option<Drive> {
        let drive = Drive { image: dir.join("drive.ext4"), mounted_at: dir.join("drive") };
        fs::File::create(&drive.image).unwrap().set_len(DRIVE_BYTES).unwrap();
        fs::create_dir(&drive.mounted_at).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", text(&drive.image)]).and_then(|()| drive.try_power_up());
        made.inspect_err(|reason| println!("{reason}")).ok().map(|()| drive)
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
        run("umount", &[text(&self.mounted_at)]).unwrap();
        self.try_power_up().unwrap();
    }

    fn try_power_up(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", text(&self.image), text(&self.mounted_at)])
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        let _ = run("umount", &[text(&self.mounted_at)]);
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

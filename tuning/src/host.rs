//! What the machine has and allows: CPUs, memory, io_uring, the drive under the data directory. Looks, and never
//! changes anything; what it finds unfit is an error that says what to do.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit};
use thiserror::Error;

use crate::cores;

/// Why this machine cannot run a server. The operator must act.
#[derive(Debug, Error)]
pub enum HostError {
    /// The CPUs could not be found out.
    #[error(transparent)]
    Cores(#[from] cores::CoresError),
    /// The data directory's file system cannot do what a log needs.
    #[error("the data directory {} is on {file_system}, {reason}", path.display())]
    UnfitFileSystem {
        /// The directory.
        path: PathBuf,
        /// The file system's name.
        file_system: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// The data directory cannot be looked at.
    #[error("the data directory {} cannot be used: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The machine, as far as it matters.
#[derive(Clone, Debug)]
pub struct Host {
    /// The CPUs that this process may use, ascending.
    pub cpus: Vec<usize>,
    /// The model of the first CPU.
    pub cpu_model: String,
    /// The machine's memory in bytes, or the least limit of a cgroup above us.
    pub memory_bytes: u64,
    /// Whether `memory_bytes` is a cgroup's limit.
    pub memory_is_limited: bool,
    /// The kernel's release.
    pub kernel: String,
    /// Memory that may be locked, in bytes; `None` if there is no limit.
    pub memlock_bytes: Option<u64>,
}

impl Host {
    /// Looks at the machine.
    ///
    /// Errors: `Cores`, when the operating system does not say which CPUs there are.
    pub fn probe() -> Result<Host, HostError> {
        let physical = memory_total();
        let limit = cgroup_memory_limit(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup"));
        let limited = limit.filter(|limit| *limit < physical);
        Ok(Host {
            cpus: cores::allowed()?,
            cpu_model: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            memory_bytes: limited.unwrap_or(physical),
            memory_is_limited: limited.is_some(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memlock_bytes: memlock(),
        })
    }
}

/// The drive under a directory.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The directory that was looked at: the one asked for, or its nearest parent that exists.
    pub path: PathBuf,
    /// The file system's name.
    pub file_system: &'static str,
    /// The block device's name, such as `nvme0n1p1`, if there is one.
    pub device: Option<String>,
    /// The file system's number: two directories with the same one are on the same drive.
    pub device_number: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that an unprivileged process may still write.
    pub free_bytes: u64,
}

impl Volume {
    /// Looks at the drive under `path`, or under its nearest parent if it does not exist yet.
    ///
    /// Errors: `Directory`.
    pub fn of(path: &Path) -> Result<Volume, HostError> {
        let refuse = |source: io::Error| HostError::Directory { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(refuse)?;
        let existing = absolute.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statfs(existing).map_err(|error| refuse(error.into()))?;
        let block = u64::try_from(stat.f_bsize).unwrap_or(0);
        let device = fs::metadata(existing).map_err(refuse)?.dev();
        Ok(Volume {
            path: existing.to_owned(),
            file_system: file_system_name(stat.f_type),
            device: device_name(device),
            device_number: device,
            total_bytes: stat.f_blocks.saturating_mul(block),
            free_bytes: stat.f_bavail.saturating_mul(block),
        })
    }

    /// Whether a log may live here. What a file system says of itself is not enough: the runtime reads back what it
    /// wrote before serving.
    ///
    /// Errors: `UnfitFileSystem`.
    pub fn check(&self) -> Result<(), HostError> {
        let reason = match self.file_system {
            "tmpfs" | "ramfs" => {
                "which is memory: direct I/O reaches no drive and nothing would survive a restart; choose a directory \
                 on a drive (ext4, xfs)"
            }
            "nfs" | "cifs" | "smb2" | "fuse" | "9p" => {
                "where a sync promises too little for a log; choose a directory on a local drive (ext4, xfs)"
            }
            _ => return Ok(()),
        };
        Err(HostError::UnfitFileSystem { path: self.path.clone(), file_system: self.file_system, reason })
    }
}

/// The name for a magic number of statfs(2).
fn file_system_name(magic: i64) -> &'static str {
    // The kernel's numbers are 32 bits; some come back with their sign extended.
    match magic as u32 {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0xF2F5_2010 => "f2fs",
        0x2FC1_2FC1 => "zfs",
        0x794C_7630 => "overlayfs",
        0x0102_1994 => "tmpfs",
        0x8584_58F6 => "ramfs",
        0x6969 => "nfs",
        0xFF53_4D42 => "cifs",
        0xFE53_4D42 => "smb2",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        _ => "another file system",
    }
}

fn device_name(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

fn memory_total() -> u64 {
    let kib = field(&read("/proc/meminfo"), "MemTotal").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib * 1024)
}

fn memlock() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != nix::sys::resource::RLIM_INFINITY).then_some(soft)
}

/// The least memory limit of the cgroups that `membership` (the text of `/proc/self/cgroup`) names, and of those above
/// them. A container often sees its own group as the root, hence the walk up to it.
fn cgroup_memory_limit(root: &Path, membership: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (mount, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            v1 if v1.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut group = Path::new(group.trim_start_matches('/'));
        loop {
            let text = fs::read_to_string(mount.join(group).join(file)).unwrap_or_default();
            limits.extend(text.trim().parse::<u64>().ok());
            let Some(parent) = group.parent() else { break };
            group = parent;
        }
    }
    limits.into_iter().min()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_seen() {
        let host = Host::probe().unwrap();
        assert!(host.memory_bytes > 64 << 20, "{host:?}");
        assert!(host.kernel.contains('.'), "{host:?}");
        let volume = Volume::of(Path::new("/a/b/c/that/is/not/there")).unwrap();
        assert_eq!(volume.path, Path::new("/"));
        assert!(volume.total_bytes > 0);
    }

    #[test]
    fn a_log_in_memory_is_refused() {
        let volume = Volume::of(Path::new("/dev/shm")).unwrap();
        if volume.file_system == "tmpfs" {
            let message = volume.check().unwrap_err().to_string();
            assert!(message.starts_with("the data directory /dev/shm is on tmpfs, which is memory"), "{message}");
        }
        for (magic, fit) in
            [(0xEF53, true), (0x0102_1994, false), (i64::from(0x8584_58F6_u32 as i32), false), (0x5846_5342, true)]
        {
            let file_system = file_system_name(magic);
            assert_eq!(Volume { file_system, ..volume.clone() }.check().is_ok(), fit, "{file_system}");
        }
    }

    #[test]
    fn the_least_limit_of_the_groups_above_counts_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("a/b/memory.max", "max\n");
        put("a/memory.max", "1000000\n");
        assert_eq!(cgroup_memory_limit(root.path(), "0::/a/b\n"), Some(1_000_000));
        put("memory/c/memory.limit_in_bytes", "500\n");
        assert_eq!(cgroup_memory_limit(root.path(), "9:pids:/x\n4:cpu,memory:/c\n"), Some(500));
        assert_eq!(cgroup_memory_limit(root.path(), "0::/elsewhere\n"), None);
        put("memory.max", "700\n");
        assert_eq!(cgroup_memory_limit(root.path(), "0::/elsewhere\n"), Some(700), "a container's view");
    }
}

//! The machine that the harness runs on, as reports name it: numbers mean nothing without it.

use std::fs;

use serde::{Deserialize, Serialize};

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The processor's name.
    pub cpu: String,
    /// CPUs online.
    pub cpus: usize,
    /// The operating system's kernel.
    pub kernel: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The type of the file system of the working directory, and its device.
    pub file_system: String,
    /// How the CPUs' frequency is governed; virtual machines rarely know.
    pub governor: String,
}

impl Host {
    /// This machine. What cannot be found out is "unknown" or 0.
    pub fn probe() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let uname = rustix::system::uname();
        let directory = std::env::current_dir().unwrap_or_default().display().to_string();
        Host {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(0, Into::into),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal").as_deref().and_then(kibibytes).unwrap_or(0),
            file_system: file_system_of(&directory, &read("/proc/mounts")).unwrap_or_else(unknown),
            governor: Some(read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").trim().to_owned())
                .filter(|governor| !governor.is_empty())
                .unwrap_or_else(unknown),
        }
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// The first `name: value` or `name : value` of a text.
fn field(text: &str, name: &str) -> Option<String> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The file system mounted nearest above `directory`.
fn file_system_of(directory: &str, mounts: &str) -> Option<String> {
    let mut nearest: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(point), Some(kind)) = (words.next(), words.next(), words.next()) else { continue };
        let holds =
            directory.strip_prefix(point).is_some_and(|rest| point == "/" || rest.is_empty() || rest.starts_with('/'));
        // The last of several mounts on one point is the one seen.
        if holds && nearest.as_ref().is_none_or(|(length, _)| point.len() >= *length) {
            nearest = Some((point.len(), format!("{kind} on {device}")));
        }
    }
    nearest.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_is_the_file_system() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/deep xfs rw 0 0\n";
        assert_eq!(file_system_of("/tmp/deep/er", mounts).unwrap(), "xfs on /dev/b");
        assert_eq!(file_system_of("/tmp/deeper", mounts).unwrap(), "tmpfs on tmpfs");
        assert_eq!(file_system_of("/tmpx", mounts).unwrap(), "ext4 on /dev/a");
    }

    #[test]
    fn this_machine_has_a_kernel_memory_and_cpus() {
        let host = Host::probe();
        assert!(host.kernel.starts_with("Linux ") && host.memory_bytes > 0 && host.cpus > 0, "{host:?}");
    }
}

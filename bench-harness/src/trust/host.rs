//! The machine that the harness runs on, as reports name it: numbers mean nothing without it.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

/// A machine. What cannot be found out is "unknown" or 0; virtual machines rarely know of governors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The processor's name.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Which ones: what is left by cgroups, containers and `taskset`.
    pub cpuset: String,
    /// Whether a hypervisor is beneath.
    pub virtualised: bool,
    /// How the CPUs' frequency is governed.
    pub governor: String,
    /// The operating system's kernel.
    pub kernel: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The type of the file system of the data, and its device.
    pub file_system: String,
    /// The drive beneath it: its model, its scheduler, and whether the kernel takes it for a rotating one, as it does
    /// many virtual ones.
    pub drive: String,
    /// Processes that wanted to run, on average over the minute before.
    pub load_average: f64,
}

impl Host {
    /// This machine, with the drive on which `folder` is.
    pub fn probe(folder: &Path) -> Self {
        let uname = rustix::system::uname();
        let folder = fs::canonicalize(folder).unwrap_or_default().display().to_string();
        let cpu_info = read("/proc/cpuinfo");
        let mount = mount_of(&folder, &read("/proc/mounts"));
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Host {
            cpu: field(&cpu_info, "model name").unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(0, Into::into),
            cpuset: field(&read("/proc/self/status"), "Cpus_allowed_list").unwrap_or_else(unknown),
            virtualised: field(&cpu_info, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            governor: Some(governor.trim().to_owned()).filter(|text| !text.is_empty()).unwrap_or_else(unknown),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal").as_deref().and_then(kibibytes).unwrap_or(0),
            file_system: mount.as_ref().map_or_else(unknown, |(device, kind)| format!("{kind} on {device}")),
            drive: mount.map_or_else(unknown, |(device, _)| drive(&device)),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
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

/// The device mounted nearest above `folder`, and the type of its file system.
fn mount_of(folder: &str, mounts: &str) -> Option<(String, String)> {
    let mut nearest: Option<(usize, (String, String))> = None;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(point), Some(kind)) = (words.next(), words.next(), words.next()) else { continue };
        let holds =
            folder.strip_prefix(point).is_some_and(|rest| point == "/" || rest.is_empty() || rest.starts_with('/'));
        // The last of several mounts on one point is the one seen.
        if holds && nearest.as_ref().is_none_or(|(length, _)| point.len() >= *length) {
            nearest = Some((point.len(), (device.to_owned(), kind.to_owned())));
        }
    }
    nearest.map(|(_, mount)| mount)
}

/// What the kernel says of the drive that `device` is, or is a partition of.
fn drive(device: &str) -> String {
    let Some(name) = device.strip_prefix("/dev/") else { return unknown() };
    let whole = |name: &str| Path::new("/sys/block").join(name).is_dir();
    let parent = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let candidates = [name, parent, parent.trim_end_matches('p')];
    let Some(name) = candidates.into_iter().find(|name| !name.is_empty() && whole(name)) else { return unknown() };
    let say = |file: &str| read(&format!("/sys/block/{name}/{file}")).trim().to_owned();
    let model = Some(say("device/model")).filter(|model| !model.is_empty());
    let kind = if say("queue/rotational") == "1" { "rotational" } else { "solid" };
    let scheduler = say("queue/scheduler");
    let scheduler = scheduler.split(['[', ']']).nth(1).unwrap_or("unknown");
    let cache = say("queue/write_cache");
    format!("{name}, {}, {kind}, scheduler {scheduler}, {cache}", model.as_deref().unwrap_or("model unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_is_the_file_system() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/deep xfs rw 0 0\n";
        let device = |folder| mount_of(folder, mounts).unwrap().0;
        assert_eq!(device("/tmp/deep/er"), "/dev/b");
        assert_eq!(device("/tmp/deeper"), "tmpfs");
        assert_eq!(device("/tmpx"), "/dev/a");
    }

    #[test]
    fn this_machine_has_a_kernel_memory_and_cpus() {
        let host = Host::probe(Path::new("."));
        assert!(host.kernel.starts_with("Linux ") && host.memory_bytes > 0 && host.cpus > 0, "{host:?}");
        assert!(host.cpuset != "unknown" && host.file_system.contains(" on "), "{host:?}");
    }

    #[test]
    fn a_device_that_is_none_is_unknown() {
        assert_eq!((drive("tmpfs"), drive("/dev/no-such-drive")), (unknown(), unknown()));
    }
}

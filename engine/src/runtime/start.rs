//! Whether this host can run us at all: io_uring, lockable memory, and what to tell the operator if not. Also the hook
//! that turns a panic on any thread into the end of the process, because a dead core would leave its partitions
//! unserved for ever.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

/// What glommio insists on per process before it makes a ring.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// glommio registers the I/O memory of an executor with each of its three rings, and each counts.
const RINGS_PER_CORE: u64 = 3;

/// Why the cores could not be started. Each message says what to do.
#[derive(Debug, Error)]
pub enum StartError {
    /// The kernel has no io_uring, or does not let us use it.
    #[error("io_uring is not available: {reason}; {advice}")]
    IoUringUnavailable {
        /// What the kernel said.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The kernel's io_uring lacks an operation.
    #[error("io_uring is too old here: the operations {missing} are missing; Linux 5.8 or newer is needed")]
    IoUringTooOld {
        /// The missing operations.
        missing: String,
    },
    /// The limit on locked memory is too low.
    #[error(
        "memlock too low: {has_bytes} bytes, needs {needs_bytes}; raise it with `ulimit -l {}`, LimitMEMLOCK= in the \
         systemd \
         unit, or --ulimit memlock= for a container",
        needs_bytes.div_ceil(1024)
    )]
    MemlockTooLow {
        /// The limit now.
        has_bytes: u64,
        /// The least that works.
        needs_bytes: u64,
    },
    /// A CPU cannot be used.
    #[error("cannot run on CPU {cpu}: {reason}; `taskset -p $$` shows the CPUs this process may use")]
    Cpu {
        /// The CPU's number.
        cpu: usize,
        /// Why.
        reason: String,
    },
    /// A data directory cannot be used.
    #[error("cannot use the data directory {dir}: {what}: {source}")]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// What was written with O_DIRECT did not come back.
    #[error(
        "the drive of {dir} failed the self-test: {reason}; direct I/O does not work there, choose another data \
         directory"
    )]
    SelfTest {
        /// The directory.
        dir: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// Whether the rings' I/O memory is registered with the kernel, which saves some CPU per I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// It is.
    Registered,
    /// There is no room under the limit on locked memory; all works, a little slower.
    Unregistered {
        /// The limit now.
        has_bytes: u64,
        /// What registration takes.
        wants_bytes: u64,
    },
}

/// Checks that io_uring is there with all operations we use.
///
/// Errors: `IoUringUnavailable`, `IoUringTooOld`.
pub fn check_io_uring() -> Result<(), StartError> {
    let ring = IoUring::new(8).map_err(|error| io_uring_error(&error))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| io_uring_error(&error))?;
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("read_fixed", opcode::ReadFixed::CODE),
        ("write_fixed", opcode::WriteFixed::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("openat", opcode::OpenAt::CODE),
        ("close", opcode::Close::CODE),
        ("statx", opcode::Statx::CODE),
        ("timeout", opcode::Timeout::CODE),
        ("poll_add", opcode::PollAdd::CODE),
        ("async_cancel", opcode::AsyncCancel::CODE),
        ("recvmsg", opcode::RecvMsg::CODE),
        ("sendmsg", opcode::SendMsg::CODE),
    ];
    let missing: Vec<&str> =
        needed.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(StartError::IoUringTooOld { missing: missing.join(", ") }) }
}

fn io_uring_error(error: &io::Error) -> StartError {
    let advice = match error.raw_os_error() {
        Some(libc::ENOSYS) => "Linux 5.8 or newer is needed, with io_uring compiled in",
        Some(libc::EPERM | libc::EACCES) => {
            "it is forbidden: set the sysctl kernel.io_uring_disabled=0, or let the container's seccomp profile allow \
             io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::ENOMEM) => "there is no memory to lock: raise `ulimit -l` or LimitMEMLOCK= in the systemd unit",
        Some(libc::EMFILE | libc::ENFILE) => "there are no file descriptors left: raise `ulimit -n` or LimitNOFILE=",
        _ => "`dlog doctor` may say more",
    };
    StartError::IoUringUnavailable { reason: error.to_string(), advice }
}

/// Raises the soft limit on locked memory to the hard one, then checks that `cores` executors can start and says
/// whether their I/O memory, `io_memory_bytes` for each, will be registered.
///
/// Errors: `MemlockTooLow`.
pub fn check_memlock(cores: usize, io_memory_bytes: usize) -> Result<Registration, StartError> {
    judge_memlock(raise_memlock(), may_lock_any_memory(), cores, io_memory_bytes)
}

/// Raises the soft limit on locked memory to the hard one, which needs no privilege. Gives the limit: as it is, should
/// that fail all the same.
pub fn raise_memlock() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Memlock);
    if current != maximum {
        let _ = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit on open files to the hard one, which needs no privilege: every partition keeps its newest
/// segment open, and the usual soft limit of 1,024 is for programs that use `select`. Gives the limit.
pub fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn judge_memlock(
    has_bytes: u64,
    privileged: bool,
    cores: usize,
    io_memory_bytes: usize,
) -> Result<Registration, StartError> {
    // glommio looks at the limit even where a capability lifts it.
    if has_bytes < MEMLOCK_BYTES_MIN {
        return Err(StartError::MemlockTooLow { has_bytes, needs_bytes: MEMLOCK_BYTES_MIN });
    }
    let wants_bytes = cores as u64 * io_memory_bytes as u64 * RINGS_PER_CORE;
    if privileged || has_bytes >= wants_bytes {
        Ok(Registration::Registered)
    } else {
        Ok(Registration::Unregistered { has_bytes, wants_bytes })
    }
}

/// Whether the process has CAP_IPC_LOCK, which lifts the limit.
fn may_lock_any_memory() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << CAP_IPC_LOCK) != 0)
}

/// From now on a panic on any thread is reported as usual, logged, and ends the process.
pub fn abort_on_panic() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.swap(true, Ordering::Relaxed) {
        return;
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            "{panic}; the process ends, to leave no dead core"
        );
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_the_io_uring_we_need() {
        check_io_uring().unwrap();
    }

    #[test]
    fn too_little_lockable_memory_is_refused_with_the_number_to_set() {
        let error = judge_memlock(64 << 10, true, 1, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("memlock too low: 65536 bytes, needs 524288"), "{error}");
        assert!(error.contains("ulimit -l 512"), "{error}");
    }

    #[test]
    fn registration_wants_room_for_three_rings_on_each_core_unless_privileged() {
        let room = 2 * 3 * (1 << 20);
        assert_eq!(judge_memlock(room, false, 2, 1 << 20).unwrap(), Registration::Registered);
        let scarce = judge_memlock(room - 1, false, 2, 1 << 20).unwrap();
        assert_eq!(scarce, Registration::Unregistered { has_bytes: room - 1, wants_bytes: room });
        assert_eq!(judge_memlock(room - 1, true, 2, 1 << 20).unwrap(), Registration::Registered);
    }

    #[test]
    fn every_refusal_of_io_uring_says_what_to_do() {
        for (code, word) in
            [(libc::ENOSYS, "5.8"), (libc::EPERM, "seccomp"), (libc::ENOMEM, "ulimit -l"), (0, "doctor")]
        {
            let message = io_uring_error(&io::Error::from_raw_os_error(code)).to_string();
            assert!(message.starts_with("io_uring is not available") && message.contains(word), "{message}");
        }
    }
}

//! The time slice of a thread that may be busy for long: the longest there is, so that the kernel's own helpers get
//! past it at once.
//!
//! A write with O_DSYNC is finished by a worker thread of the kernel, on the CPU that got the drive's interrupt. If
//! that CPU is taken by one of ours, the worker waits: Linux lets whoever asked for the shorter slice go first, and
//! with equal slices looks again at the next tick only, which is 1 to 10 ms away. A sync takes two such turns.
//! Measured with the load generator busy on the drive's CPU, 250 ticks a second: 254 durable writes a second with the
//! default slice, 6,900 with the longest.
#![allow(unsafe_code)]

use std::{io, mem::size_of};

use libc::{SCHED_FLAG_RESET_ON_FORK, SCHED_OTHER, SYS_sched_getattr, SYS_sched_setattr, sched_attr, syscall};

/// The longest that Linux grants (since 6.12; before, it takes the wish and ignores it).
const SLICE_NANOS: u64 = 100_000_000;

const ATTR_BYTES: usize = size_of::<sched_attr>();

/// Asks for long slices for this thread, not for those that it starts: among them are the workers of io_uring, which do
/// its syncs and must get past it too. A thread with a real-time or an idle policy is left alone.
///
/// Errors: the operating system's. All works without, but see the module.
pub fn ask_for_long_slices() -> io::Result<()> {
    let mut attributes = current()?;
    if attributes.sched_policy != SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = SLICE_NANOS;
    attributes.sched_flags |= SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: the kernel reads `size` bytes at the address of a live value of that size, of this thread (0) only.
    answer(unsafe { syscall(SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn current() -> io::Result<sched_attr> {
    let mut attributes = sched_attr {
        size: ATTR_BYTES as u32,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most the bytes it is told of to the address of a live value of that size; all of its
    // fields are integers.
    answer(unsafe { syscall(SYS_sched_getattr, 0, &raw mut attributes, ATTR_BYTES, 0) })?;
    Ok(attributes)
}

fn answer(returned: libc::c_long) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_is_asked_for_and_policy_and_niceness_stay() {
        std::thread::spawn(|| {
            let before = current().unwrap();
            ask_for_long_slices().unwrap();
            let after = current().unwrap();
            assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
            // A kernel before 6.12 reports no slice.
            assert!([0, SLICE_NANOS].contains(&after.sched_runtime), "{}", after.sched_runtime);
            let started = std::thread::spawn(|| current().unwrap()).join().unwrap();
            assert_eq!(started.sched_runtime, before.sched_runtime, "a thread that it starts has its own");
        })
        .join()
        .unwrap();
    }
}

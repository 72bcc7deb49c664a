//! `--cores`: which CPUs to use, checked against those that the process may use.

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use thiserror::Error;

/// A choice of CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// All that the process may use.
    All,
    /// These, ascending. One that is named several times has as many cores of the server on it.
    These(Vec<usize>),
}

/// Why a choice of CPUs was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CoresError {
    /// The text cannot be read.
    #[error("`{text}` names no CPUs; write `all`, `0`, `0-3` or `0,2,4-6`")]
    Unreadable {
        /// The text.
        text: String,
    },
    /// A CPU does not exist here, or the cpuset of the process does not include it.
    #[error("CPU {cpu} is not available; this process may use {}", list(allowed))]
    NotAllowed {
        /// The first CPU that is not available.
        cpu: usize,
        /// Those that are, ascending.
        allowed: Vec<usize>,
    },
    /// More shards than connection IDs can steer to.
    #[error("{count} CPUs are more than the {CORES_MAX} that a server can use")]
    TooMany {
        /// How many were asked for.
        count: usize,
    },
    /// The operating system did not say which CPUs there are.
    #[error("the CPUs that this process may use cannot be found out: {reason}")]
    NoAffinity {
        /// Its words.
        reason: String,
    },
}

/// Shards of one server: one byte of the connection ID names the core.
pub const CORES_MAX: usize = 256;

/// Reads a choice of CPUs, without looking at the machine.
pub fn parse(text: &str) -> Result<Cores, CoresError> {
    let refuse = || CoresError::Unreadable { text: text.to_owned() };
    if text.trim() == "all" {
        return Ok(Cores::All);
    }
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| refuse())?;
        let last: usize = last.trim().parse().map_err(|_| refuse())?;
        // Linux counts CPUs to 8192 at most; without the bound `0-9999999999` would be built before it is refused.
        if first > last || last >= 8192 {
            return Err(refuse());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    Ok(Cores::These(cpus))
}

/// The CPUs that this process may use, ascending: what its cpuset and affinity leave of the machine.
///
/// Errors: `NoAffinity`.
pub fn allowed() -> Result<Vec<usize>, CoresError> {
    let set =
        sched_getaffinity(Pid::from_raw(0)).map_err(|error| CoresError::NoAffinity { reason: error.to_string() })?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

impl Cores {
    /// How many CPUs these are, whether this machine has them or not.
    ///
    /// Errors: `NoAffinity`.
    pub fn count(&self) -> Result<usize, CoresError> {
        match self {
            Cores::All => Ok(allowed()?.len().min(CORES_MAX)),
            Cores::These(cpus) => Ok(cpus.len()),
        }
    }

    /// The CPUs to use, ascending, out of `allowed`.
    ///
    /// Errors: `NotAllowed`, `TooMany`.
    pub fn choose(&self, allowed: &[usize]) -> Result<Vec<usize>, CoresError> {
        let chosen: Vec<usize> = match self {
            Cores::All => allowed.iter().copied().take(CORES_MAX).collect(),
            Cores::These(cpus) => cpus.clone(),
        };
        if let Some(cpu) = chosen.iter().find(|cpu| !allowed.contains(cpu)) {
            return Err(CoresError::NotAllowed { cpu: *cpu, allowed: allowed.to_vec() });
        }
        if chosen.len() > CORES_MAX {
            return Err(CoresError::TooMany { count: chosen.len() });
        }
        Ok(chosen)
    }
}

/// CPUs as one would write them for `--cores`: `0-3,8`.
pub fn list(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => runs.push((*cpu, *cpu)),
        }
    }
    let shown =
        runs.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    shown.collect::<Vec<_>>().join(",")
}

/// The first CPU that has several cores on it, if there is one.
pub fn shared(cpus: &[usize]) -> Option<usize> {
    cpus.iter().enumerate().find(|(at, cpu)| cpus[..*at].contains(cpu)).map(|(_, cpu)| *cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_lists_and_both_are_read() {
        for (text, cpus) in
            [("0", vec![0]), ("0-3", vec![0, 1, 2, 3]), ("4, 0,2", vec![0, 2, 4]), ("0-1,3,1", vec![0, 1, 1, 3])]
        {
            assert_eq!(parse(text), Ok(Cores::These(cpus)), "{text}");
        }
        assert_eq!(parse("all"), Ok(Cores::All));
        for text in ["", "a", "3-1", "0-", "-1", "0,,1", "0-99999999999", "1.5"] {
            assert!(matches!(parse(text), Err(CoresError::Unreadable { .. })), "{text}");
        }
    }

    #[test]
    fn a_cpu_outside_the_cpuset_is_refused_with_those_inside() {
        let error = parse("0,5").unwrap().choose(&[0, 1, 2, 8]).unwrap_err();
        assert_eq!(error.to_string(), "CPU 5 is not available; this process may use 0-2,8");
        assert_eq!(parse("all").unwrap().choose(&[1, 3]), Ok(vec![1, 3]));
        assert_eq!(parse("3").unwrap().choose(&[1, 3]), Ok(vec![3]));
        let twice = parse("3,1,3").unwrap().choose(&[1, 3]).unwrap();
        assert_eq!((list(&twice), shared(&twice)), ("1,3,3".to_owned(), Some(3)));
        assert_eq!(shared(&[1, 3]), None);
    }

    #[test]
    fn this_process_may_use_at_least_one_cpu() {
        assert!(!allowed().unwrap().is_empty());
    }
}

//! What was used while a row was measured: each CPU, the server's process, and the datagrams that the kernel dropped.

use procfs::{CurrentSI, KernelStats};
use serde::{Deserialize, Serialize};

use super::{CpuShares, status::ServerCounters};
use crate::measuring::rounded;

/// The machine's counters at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    cpus: Vec<Ticks>,
    udp: UdpErrors,
    server: Option<ServerCounters>,
}

/// One CPU's time in ticks since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    stolen: u64,
    all: u64,
}

/// Datagrams that the kernel of this machine dropped since it started, whoever's they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpErrors {
    /// A socket's receive buffer was full.
    pub receive_buffer: u64,
    /// A socket's send buffer was full.
    pub send_buffer: u64,
}

/// What was used between two moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Each CPU of this machine, by number.
    pub cpus: Vec<CpuUse>,
    /// CPU time of the load's threads, in seconds.
    pub load_cpu_s: f64,
    /// CPU time of the server, in seconds, if it could be asked.
    pub server_cpu_s: Option<f64>,
    /// CPU time of the server for a million records, in seconds.
    pub server_cpu_s_per_million_records: Option<f64>,
    /// What that went into, if it was asked for and could be seen.
    #[serde(default)]
    pub server_cpu_shares: Option<CpuShares>,
    /// Memory of the server at the end.
    pub server_memory_bytes: Option<f64>,
    /// Datagrams that the kernel dropped.
    pub udp_errors: UdpErrors,
    /// Datagrams that the server dropped.
    pub server_datagrams_dropped: f64,
}

/// One CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuUse {
    /// How much of the time it worked, in percent.
    pub busy_percent: f64,
    /// How much of the time the hypervisor gave it to somebody else, in percent.
    pub stolen_percent: f64,
}

impl Snapshot {
    /// The counters now. What cannot be read counts as nothing.
    pub fn take(server: Option<ServerCounters>) -> Self {
        let cpus = KernelStats::current().map(|stats| stats.cpu_time).unwrap_or_default();
        let ticks = cpus.iter().map(|cpu| {
            let stolen = cpu.steal.unwrap_or(0);
            let idle = cpu.idle + cpu.iowait.unwrap_or(0);
            let busy = cpu.user + cpu.nice + cpu.system + cpu.irq.unwrap_or(0) + cpu.softirq.unwrap_or(0);
            Ticks { busy, stolen, all: busy + idle + stolen }
        });
        Snapshot { cpus: ticks.collect(), udp: UdpErrors::now(), server }
    }

    /// What was used since `before`, while this many records moved and the load's threads took so much CPU time.
    pub fn since(&self, before: &Snapshot, records: u64, load_cpu_s: f64) -> Usage {
        let cpus = self.cpus.iter().zip(&before.cpus).map(|(now, then)| {
            let all = now.all.saturating_sub(then.all).max(1) as f64;
            let percent = |now: u64, then: u64| rounded(100.0 * now.saturating_sub(then) as f64 / all);
            CpuUse { busy_percent: percent(now.busy, then.busy), stolen_percent: percent(now.stolen, then.stolen) }
        });
        let server = self.server.zip(before.server);
        let server_cpu_s = server.map(|(now, then)| ((now.cpu_s - then.cpu_s) * 1e3).round() / 1e3);
        Usage {
            cpus: cpus.collect(),
            load_cpu_s: (load_cpu_s * 1e3).round() / 1e3,
            server_cpu_s,
            server_cpu_s_per_million_records: server_cpu_s
                .filter(|_| records > 0)
                .map(|seconds| (seconds / records as f64 * 1e9).round() / 1e3),
            server_cpu_shares: None,
            server_memory_bytes: self.server.map(|server| server.memory_bytes),
            udp_errors: UdpErrors {
                receive_buffer: self.udp.receive_buffer.saturating_sub(before.udp.receive_buffer),
                send_buffer: self.udp.send_buffer.saturating_sub(before.udp.send_buffer),
            },
            server_datagrams_dropped: server.map_or(0.0, |(now, then)| now.datagrams_dropped - then.datagrams_dropped),
        }
    }
}

impl UdpErrors {
    fn now() -> Self {
        let four = procfs::net::snmp().map(|all| (all.udp_rcvbuf_errors, all.udp_sndbuf_errors)).unwrap_or_default();
        let six = procfs::net::snmp6().map(|all| (all.udp_rcvbuf_errors, all.udp_sndbuf_errors)).unwrap_or_default();
        UdpErrors { receive_buffer: four.0 + six.0, send_buffer: four.1 + six.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(busy: u64, stolen: u64, server: ServerCounters) -> Snapshot {
        let udp = UdpErrors { receive_buffer: busy, send_buffer: 0 };
        Snapshot { cpus: vec![Ticks { busy, stolen, all: 1000 + busy }], udp, server: Some(server) }
    }

    #[test]
    fn what_was_used_is_the_difference_of_two_moments() {
        let then = ServerCounters { cpu_s: 1.0, memory_bytes: 1e6, datagrams_dropped: 3.0 };
        let now = ServerCounters { cpu_s: 3.0, memory_bytes: 2e6, datagrams_dropped: 5.0 };
        let mut after = snapshot(150, 20, now);
        after.cpus[0].all = 1300;
        let usage = after.since(&snapshot(100, 0, then), 4_000_000, 1.25);
        assert_eq!(usage.cpus, [CpuUse { busy_percent: 25.0, stolen_percent: 10.0 }]);
        assert_eq!((usage.server_cpu_s, usage.server_cpu_s_per_million_records), (Some(2.0), Some(0.5)));
        assert_eq!((usage.udp_errors.receive_buffer, usage.server_datagrams_dropped), (50, 2.0));
    }

    #[test]
    fn this_machine_has_cpus_that_are_neither_idle_nor_busy_for_ever() {
        let snapshot = Snapshot::take(None);
        assert!(!snapshot.cpus.is_empty() && snapshot.cpus.iter().all(|cpu| cpu.all > cpu.busy), "{snapshot:?}");
    }
}

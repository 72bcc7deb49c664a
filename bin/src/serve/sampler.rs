//! The performance guide's key metrics over the last minute, under its bare names, for `/status`. A sample a second is
//! kept; a figure is the difference between the newest and the oldest.

use std::{
    collections::VecDeque,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};
use pyralog_engine::metrics::{CoreMetrics, LATENCY_BUCKETS, LatencyHistogram};
use serde_json::{Value, json};

use super::prometheus::{bucket_counts, replication_lag, sum};

/// How often a sample is taken.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Samples kept: a minute has that many intervals, and one more end.
const SAMPLES_MAX: usize = 61;

/// The counters at one moment.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    write_durations: [u64; LATENCY_BUCKETS],
    writes: u64,
    write_bytes: u64,
    reads: u64,
    read_bytes: u64,
    disk_operations: u64,
    replication_lag: Duration,
    cpu: Duration,
}

/// Remembers a minute.
#[derive(Debug, Default)]
pub struct Sampler {
    samples: VecDeque<Sample>,
}

impl Sampler {
    /// Takes a sample of all cores.
    pub fn take(&mut self, cores: &[Arc<CoreMetrics>]) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample::now(cores));
    }

    /// The key metrics of the time between the oldest sample and now. So many copies are in sync now.
    pub fn key_metrics(&self, cores: &[Arc<CoreMetrics>], isr_count: usize) -> Value {
        let now = Sample::now(cores);
        let then = self.samples.front().unwrap_or(&now);
        let seconds = now.at.duration_since(then.at).as_secs_f64();
        let rate = |now: u64, then: u64| if seconds > 0.0 { now.saturating_sub(then) as f64 / seconds } else { 0.0 };
        let mut durations = now.write_durations;
        durations.iter_mut().zip(then.write_durations).for_each(|(now, then)| *now = now.saturating_sub(then));
        let lag = self.samples.iter().map(|sample| sample.replication_lag).fold(now.replication_lag, Duration::max);
        let cpu = now.cpu.saturating_sub(then.cpu).as_secs_f64();
        let moved = rate(now.write_bytes + now.read_bytes, then.write_bytes + then.read_bytes);
        json!({
            "seconds": rounded(seconds),
            "write_latency_p50": quantile_ms(&durations, 0.50),
            "write_latency_p99": quantile_ms(&durations, 0.99),
            "write_latency_p999": quantile_ms(&durations, 0.999),
            "write_throughput_ops_per_sec": rounded(rate(now.writes, then.writes)),
            "write_throughput_bytes_per_sec": rounded(rate(now.write_bytes, then.write_bytes)),
            "read_throughput_ops_per_sec": rounded(rate(now.reads, then.reads)),
            "read_throughput_bytes_per_sec": rounded(rate(now.read_bytes, then.read_bytes)),
            "cpu_usage_percent": rounded(if seconds > 0.0 { 100.0 * cpu / seconds } else { 0.0 }),
            "memory_usage_bytes": resident_bytes(),
            "disk_io_ops_per_sec": rounded(rate(now.disk_operations, then.disk_operations)),
            "network_bandwidth_mbps": rounded(moved * 8.0 / 1e6),
            "replication_lag_ms": rounded(lag.as_secs_f64() * 1000.0),
            "isr_count": isr_count,
        })
    }
}

impl Sample {
    fn now(cores: &[Arc<CoreMetrics>]) -> Self {
        Sample {
            at: Instant::now(),
            write_durations: bucket_counts(cores, |core| &core.write_duration),
            writes: sum(cores, |core| &core.writes),
            write_bytes: sum(cores, |core| &core.write_bytes),
            reads: sum(cores, |core| &core.read_requests),
            read_bytes: sum(cores, |core| &core.read_bytes),
            disk_operations: sum(cores, |core| &core.disk_writes)
                + sum(cores, |core| &core.disk_reads)
                + sum(cores, |core| &core.disk_syncs),
            replication_lag: replication_lag(cores),
            cpu: cpu_time(),
        }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The quantile in milliseconds, linear within its bucket; `null` without events. Beyond the last bound, that bound.
fn quantile_ms(counts: &[u64; LATENCY_BUCKETS], quantile: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let rank = (quantile * total as f64).max(f64::MIN_POSITIVE);
    let mut below = 0;
    for (index, count) in counts.iter().enumerate() {
        if *count > 0 && (below + count) as f64 >= rank {
            let bound = |index: usize| LatencyHistogram::upper_bound_nanos(index).map(|nanos| nanos as f64 / 1e6);
            let lower = index.checked_sub(1).and_then(bound).unwrap_or(0.0);
            let upper = bound(index).unwrap_or(lower);
            return Some(rounded(lower + (upper - lower) * (rank - below as f64) / *count as f64));
        }
        below += count;
    }
    None
}

/// CPU time of this process since its start, all threads.
pub fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let part = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().max(0) as u64, (time.tv_usec().max(0) * 1000) as u32)
    };
    part(usage.user_time()) + part(usage.system_time())
}

/// Resident memory of this process.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_differences_over_the_time_between_samples() {
        let cores = [Arc::new(CoreMetrics::default())];
        cores[0].writes.add(1_000_000);
        let mut sampler = Sampler::default();
        sampler.take(&cores);
        sampler.samples[0].at -= Duration::from_secs(10);
        cores[0].writes.add(500);
        let figure = sampler.key_metrics(&cores, 1)["write_throughput_ops_per_sec"].as_f64().unwrap();
        assert!((45.0..=50.0).contains(&figure), "{figure}");
    }

    #[test]
    fn the_lag_is_the_worst_of_the_samples() {
        let cores = [Arc::new(CoreMetrics::default())];
        let mut sampler = Sampler::default();
        for lag_us in [0, 1_500, 200] {
            cores[0].replication_lag_us.set(lag_us);
            sampler.take(&cores);
        }
        let shown = sampler.key_metrics(&cores, 2);
        assert_eq!((&shown["replication_lag_ms"], &shown["isr_count"]), (&1.5.into(), &2.into()));
    }

    #[test]
    fn a_minute_is_kept_and_no_more() {
        let mut sampler = Sampler::default();
        (0..200).for_each(|_| sampler.take(&[]));
        assert_eq!(sampler.samples.len(), SAMPLES_MAX);
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_rank() {
        let metrics = CoreMetrics::default();
        metrics.write_duration.record_many(Duration::from_micros(300), 990);
        metrics.write_duration.record_many(Duration::from_millis(50), 10);
        let counts = metrics.write_duration.counts();
        let within = |quantile, low: f64, high: f64| {
            let found = quantile_ms(&counts, quantile).unwrap();
            assert!((low..=high).contains(&found), "{quantile}: {found}");
        };
        within(0.5, 0.2, 0.33);
        within(0.99, 0.2, 0.33);
        within(0.999, 40.0, 65.0);
        assert_eq!(quantile_ms(&[0; LATENCY_BUCKETS], 0.5), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(resident_bytes() > 1 << 20);
    }
}

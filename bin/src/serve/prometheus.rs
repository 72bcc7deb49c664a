//! `/metrics` in Prometheus' text format: the counters of all cores, summed. Names have base units and no labels, so
//! that the performance guide's queries work as they are written.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pyralog_engine::metrics::{CoreMetrics, Counter, LATENCY_BUCKETS, LatencyHistogram};

use super::drives::DriveView;

type Field = fn(&CoreMetrics) -> &Counter;

/// Name, what it says, the counter. They only grow.
const COUNTERS: &[(&str, &str, Field)] = &[
    ("dlog_writes_total", "Records acknowledged.", |m| &m.writes),
    ("dlog_write_requests_total", "Batches acknowledged.", |m| &m.write_requests),
    ("dlog_write_bytes_total", "Bytes of the batches acknowledged.", |m| &m.write_bytes),
    ("dlog_duplicate_writes_total", "Batches sent again that were there already.", |m| &m.duplicate_writes),
    ("dlog_write_errors_total", "Writes that were refused or failed.", |m| &m.write_errors),
    ("dlog_reads_total", "Fetches answered.", |m| &m.read_requests),
    ("dlog_read_bytes_total", "Bytes of batches handed out.", |m| &m.read_bytes),
    ("dlog_read_errors_total", "Fetches that were refused or failed.", |m| &m.read_errors),
    ("dlog_disk_writes_total", "Write operations sent to the drives.", |m| &m.disk_writes),
    ("dlog_disk_write_bytes_total", "Bytes of these, padding included.", |m| &m.disk_write_bytes),
    ("dlog_disk_syncs_total", "Syncs sent to the drives.", |m| &m.disk_syncs),
    ("dlog_disk_reads_total", "Read operations sent to the drives.", |m| &m.disk_reads),
    ("dlog_disk_read_bytes_total", "Bytes of these.", |m| &m.disk_read_bytes),
    ("dlog_mapped_reads_total", "Parts of sealed segments that were mapped.", |m| &m.mapped_reads),
    ("dlog_mapped_read_bytes_total", "Bytes of these, by whole pages.", |m| &m.mapped_read_bytes),
    ("dlog_cache_hits_total", "Reads that found their bytes in the cache.", |m| &m.cache_hits),
    ("dlog_cache_misses_total", "Reads that did not.", |m| &m.cache_misses),
    ("dlog_read_ahead_hits_total", "Reads that found their bytes read ahead.", |m| &m.read_ahead_hits),
    ("dlog_damages_found_total", "Damaged places found in segments since the start.", |m| &m.damages_found),
    ("dlog_records_lost_total", "Records lost in them.", |m| &m.records_lost),
    ("dlog_damages_repaired_total", "Damaged places that were repaired from other copies.", |m| &m.damages_repaired),
    ("dlog_batches_repaired_total", "Batches written over them.", |m| &m.batches_repaired),
    ("dlog_records_repaired_total", "Records in them that are readable again.", |m| &m.records_repaired),
    ("dlog_scrub_bytes_total", "Bytes of sealed segments read again by the scrub.", |m| &m.scrub_bytes),
    ("dlog_scrub_segments_total", "Segments that the scrub read whole.", |m| &m.scrub_segments),
    ("dlog_scrub_errors_total", "Segments that the scrub could not read.", |m| &m.scrub_errors),
    ("dlog_scrub_passes_total", "Passes of the scrub over all segments, of all cores.", |m| &m.scrub_passes),
    ("dlog_leader_elections_total", "Copies that began to lead their partition.", |m| &m.leader_elections),
    ("dlog_leaders_moved_total", "Leaderships that were handed over by plan.", |m| &m.leaders_moved),
    ("dlog_copies_moved_total", "Copies that were moved from one core to another.", |m| &m.copies_moved),
    ("dlog_balancing_moves_total", "Partitions that were moved to spread load.", |m| &m.balancing_moves),
    ("dlog_core_busy_microseconds_total", "For how long each core ran tasks.", |m| &m.busy_us),
    ("dlog_forced_leaders_total", "Copies that an operator had lead though records may be lost.", |m| {
        &m.forced_leaders
    }),
    (
        "dlog_copies_given_up_total",
        "Copies that were given up since their drives did not give them, to be rebuilt.",
        |m| &m.copies_given_up,
    ),
    ("dlog_segments_deleted_total", "Segments that were given up: trimmed, or too many, or too old.", |m| {
        &m.segments_deleted
    }),
    ("dlog_segment_bytes_deleted_total", "Bytes of these.", |m| &m.segment_bytes_deleted),
    ("dlog_hops_total", "Requests passed on to the core that owns their partition.", |m| &m.hops),
    ("dlog_datagrams_misrouted_total", "Datagrams passed on to the core they are for.", |m| &m.datagrams_misrouted),
    ("dlog_datagrams_dropped_total", "Datagrams for another core that were dropped.", |m| &m.datagrams_dropped),
    ("dlog_connections_accepted_total", "Connections ever accepted.", |m| &m.connections_accepted),
    ("dlog_connections_refused_total", "Connection attempts refused.", |m| &m.connections_refused),
    ("dlog_protocol_errors_total", "Frames that broke the protocol.", |m| &m.protocol_errors),
];

/// The same, for what rises and falls.
const GAUGES: &[(&str, &str, Field)] = &[
    ("dlog_connections", "Connections open now.", |m| &m.connections),
    ("dlog_memory_reserved_bytes", "Bytes of the request memory in use now.", |m| &m.memory_reserved_bytes),
    ("dlog_undurable_bytes", "Bytes accepted but not yet synced: what a power loss would take.", |m| {
        &m.undurable_bytes
    }),
];

/// What every core sees of its drive. Of several drives the worst is shown, and each under its own name with
/// `dlog_drive_` in place of `dlog_disk_`.
const DRIVE_GAUGES: &[(&str, &str, Field, Worst)] = &[
    (
        "dlog_disk_free_bytes",
        "Bytes that a data directory's file system has left.",
        |m| &m.disk_free_bytes,
        Iterator::min,
    ),
    ("dlog_disk_reserve_bytes", "Bytes of these that are kept back.", |m| &m.disk_reserve_bytes, Iterator::max),
    ("dlog_disk_full", "1 while writes are refused for want of room.", |m| &m.disk_full, Iterator::max),
    (
        "dlog_disk_fenced",
        "1 after the drive failed twice: no write is taken until restart.",
        |m| &m.disk_fenced,
        Iterator::max,
    ),
];

type Values<'a> = std::vec::IntoIter<u64>;
type Worst = fn(Values<'_>) -> Option<u64>;

type Histogram = fn(&CoreMetrics) -> &LatencyHistogram;

const HISTOGRAMS: &[(&str, &str, Histogram)] = &[
    ("dlog_write_duration_seconds", "From the arrival of a batch at its core until its ack.", |m| &m.write_duration),
    ("dlog_read_duration_seconds", "From the arrival of a fetch until its answer, waiting excluded.", |m| {
        &m.read_duration
    }),
];

/// The sum of a counter over all cores.
pub fn sum(cores: &[Arc<CoreMetrics>], field: Field) -> u64 {
    cores.iter().map(|core| field(core).get()).sum()
}

fn worst(cores: &[Arc<CoreMetrics>], field: Field, worst: Worst) -> u64 {
    let values: Vec<_> = cores.iter().map(|core| field(core).get()).collect();
    worst(values.into_iter()).unwrap_or(0)
}

/// How long the oldest of what is not durable waits.
pub fn undurable_age(cores: &[Arc<CoreMetrics>], now: SystemTime) -> Duration {
    let since = cores.iter().map(|core| core.undurable_since_unix_ms.get()).filter(|since| *since > 0).min();
    let since = since.map(|since| UNIX_EPOCH + Duration::from_millis(since));
    since.and_then(|since| now.duration_since(since).ok()).unwrap_or_default()
}

/// For how long the worst follower of any partition has not had all that its leader has.
pub fn replication_lag(cores: &[Arc<CoreMetrics>]) -> Duration {
    Duration::from_micros(worst(cores, |core| &core.replication_lag_us, Iterator::max))
}

/// What is known of the drive of these cores, or of the worst of their drives, for `/status`.
pub fn drive(cores: &[Arc<CoreMetrics>]) -> serde_json::Map<String, serde_json::Value> {
    let short = |name: &str| name.trim_start_matches("dlog_disk_").to_owned();
    DRIVE_GAUGES.iter().map(|(name, _, field, of)| (short(name), worst(cores, *field, *of).into())).collect()
}

/// Each drive by itself. The labels are the number that it keeps, and where it is now.
pub fn render_drives(drives: &[DriveView], cores: &[Arc<CoreMetrics>]) -> String {
    let mut page = String::new();
    for (name, help, field, of) in DRIVE_GAUGES {
        let name = name.replace("dlog_disk_", "dlog_drive_");
        head(&mut page, &name, help, "gauge");
        for (at, view) in drives.iter().enumerate() {
            let own: Vec<_> = cores.iter().skip(at).step_by(drives.len()).cloned().collect();
            let dir = view.dir.display().to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let value = worst(&own, *field, *of);
            let _ = writeln!(page, "{name}{{drive=\"{}\",dir=\"{dir}\"}} {value}", view.number);
        }
    }
    page
}

/// The counts of a histogram's buckets over all cores.
pub fn bucket_counts(cores: &[Arc<CoreMetrics>], histogram: Histogram) -> [u64; LATENCY_BUCKETS] {
    let mut sums = [0; LATENCY_BUCKETS];
    for core in cores {
        sums.iter_mut().zip(histogram(core).counts()).for_each(|(sum, count)| *sum += count);
    }
    sums
}

/// A core's counters by their names, for `/status`.
pub fn by_name(core: &CoreMetrics) -> serde_json::Map<String, serde_json::Value> {
    let short = |name: &str| name.trim_start_matches("dlog_").trim_end_matches("_total").to_owned();
    COUNTERS.iter().chain(GAUGES).map(|(name, _, field)| (short(name), field(core).get().into())).collect()
}

/// The hot path's part of the page.
pub fn render(cores: &[Arc<CoreMetrics>]) -> String {
    let mut page = String::with_capacity(16 << 10);
    for (kind, families) in [("counter", COUNTERS), ("gauge", GAUGES)] {
        for (name, help, field) in families {
            head(&mut page, name, help, kind);
            let _ = writeln!(page, "{name} {}", sum(cores, *field));
        }
    }
    for (name, help, field, of) in DRIVE_GAUGES {
        head(&mut page, name, help, "gauge");
        let _ = writeln!(page, "{name} {}", worst(cores, *field, *of));
    }
    head(
        &mut page,
        "dlog_undurable_age_seconds",
        "How long the oldest of the bytes wait that are accepted and not synced; 0 if there are none.",
        "gauge",
    );
    let _ = writeln!(page, "dlog_undurable_age_seconds {}", undurable_age(cores, SystemTime::now()).as_secs_f64());
    head(
        &mut page,
        "dlog_replication_lag_seconds",
        "For how long the worst copy has not had all that its leader has; 0 where there is one copy.",
        "gauge",
    );
    let _ = writeln!(page, "dlog_replication_lag_seconds {}", replication_lag(cores).as_secs_f64());
    for (name, help, histogram) in HISTOGRAMS {
        head(&mut page, name, help, "histogram");
        let mut below = 0;
        for (index, count) in bucket_counts(cores, *histogram).into_iter().enumerate() {
            below += count;
            let _ = match LatencyHistogram::upper_bound_nanos(index) {
                Some(bound) => writeln!(page, "{name}_bucket{{le=\"{}\"}} {below}", bound as f64 / 1e9),
                None => writeln!(page, "{name}_bucket{{le=\"+Inf\"}} {below}"),
            };
        }
        let nanos: u64 = cores.iter().map(|core| histogram(core).sum_nanos()).sum();
        let _ = writeln!(page, "{name}_sum {}\n{name}_count {below}", nanos as f64 / 1e9);
    }
    page
}

fn head(page: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_undurable_bytes_of_all_cores_count_and_none_is_no_age() {
        let cores = [Arc::new(CoreMetrics::default()), Arc::new(CoreMetrics::default())];
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(undurable_age(&cores, now), Duration::ZERO);
        cores[0].undurable_since_unix_ms.set(999_000);
        cores[1].undurable_since_unix_ms.set(997_500);
        assert_eq!(undurable_age(&cores, now), Duration::from_millis(2_500));
        assert_eq!(undurable_age(&cores, UNIX_EPOCH), Duration::ZERO, "a clock that went back");
    }

    #[test]
    fn cores_are_summed_under_the_guides_names_without_labels() {
        let cores = [Arc::new(CoreMetrics::default()), Arc::new(CoreMetrics::default())];
        cores[0].writes.add(3);
        cores[1].replication_lag_us.set(2_500);
        cores[1].writes.add(4);
        cores[0].write_duration.record_many(Duration::from_micros(15), 1);
        cores[1].write_duration.record_many(Duration::from_secs(60), 2);
        let page = render(&cores);
        for line in [
            "dlog_writes_total 7",
            "dlog_replication_lag_seconds 0.0025",
            "dlog_write_duration_seconds_bucket{le=\"0.00001\"} 0",
            "dlog_write_duration_seconds_bucket{le=\"0.00002\"} 1",
            "dlog_write_duration_seconds_bucket{le=\"+Inf\"} 3",
            "dlog_write_duration_seconds_count 3",
            "dlog_write_duration_seconds_sum 120.000015",
            "# TYPE dlog_connections gauge",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
        }
    }

    #[test]
    fn buckets_cumulate_and_no_family_occurs_twice() {
        let page = render(&[Arc::default()]);
        let families: Vec<_> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let distinct: std::collections::BTreeSet<_> = families.iter().collect();
        assert_eq!(families.len(), distinct.len());
        let infinite = page.lines().filter(|line| line.contains("+Inf")).count();
        assert_eq!(infinite, HISTOGRAMS.len());
    }
}

//! What one core counts. One core writes, any thread reads: plain loads and stores, no read-modify-write, no lock.
//!
//! The `metrics` macros cost 50 to 150 ns a call, too much for the hot path; these cost one store. The control thread
//! sums the cores when it is asked (`dlog`'s `/metrics`).

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A number that only its own core changes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only for the core that owns the counter: two writers would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes `n` away, for gauges.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Replaces the value, for gauges.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Buckets of a [`LatencyHistogram`], the last of them without an upper bound.
pub const LATENCY_BUCKETS: usize = 40;

/// Durations in buckets whose bounds grow by a factor of √2 from 10 µs to about 5 s.
#[derive(Debug)]
pub struct LatencyHistogram {
    buckets: [Counter; LATENCY_BUCKETS],
    sum_nanos: Counter,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        LatencyHistogram { buckets: std::array::from_fn(|_| Counter::default()), sum_nanos: Counter::default() }
    }
}

impl LatencyHistogram {
    /// The upper bound of bucket `index` in nanoseconds; `None` for the last.
    pub fn upper_bound_nanos(index: usize) -> Option<u64> {
        // Even buckets double 10 µs; odd ones stand √2 above them.
        let doubled = 10_000u64 << (index / 2);
        let bound = if index.is_multiple_of(2) { doubled } else { doubled * 1_414 / 1_000 };
        (index + 1 < LATENCY_BUCKETS).then_some(bound)
    }

    /// Counts `events` that each took `duration`.
    pub fn record_many(&self, duration: Duration, events: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket_of(nanos)].add(events);
        self.sum_nanos.add(nanos.saturating_mul(events));
    }

    fn bucket_of(nanos: u64) -> usize {
        if nanos <= 10_000 {
            return 0;
        }
        // The doubling that holds it, then one comparison for the half step; no search.
        let doublings = ((nanos - 1) / 10_000).ilog2() as usize;
        let lower_half = (2 * doublings + 1).min(LATENCY_BUCKETS - 1);
        let beyond = Self::upper_bound_nanos(lower_half).is_some_and(|bound| nanos > bound);
        (lower_half + usize::from(beyond)).min(LATENCY_BUCKETS - 1)
    }

    /// The count of each bucket, not cumulated.
    pub fn counts(&self) -> [u64; LATENCY_BUCKETS] {
        std::array::from_fn(|i| self.buckets[i].get())
    }

    /// The sum of all durations in nanoseconds.
    pub fn sum_nanos(&self) -> u64 {
        self.sum_nanos.get()
    }
}

/// Everything one core counts.
#[derive(Debug, Default)]
pub struct CoreMetrics {
    /// Records acknowledged.
    pub writes: Counter,
    /// Batches acknowledged.
    pub write_requests: Counter,
    /// Bytes of the batches acknowledged.
    pub write_bytes: Counter,
    /// Batches of idempotent producers that were there already.
    pub duplicate_writes: Counter,
    /// Writes that were refused or failed.
    pub write_errors: Counter,
    /// From the arrival of an append at its owner until its ack.
    pub write_duration: LatencyHistogram,
    /// Fetches answered.
    pub read_requests: Counter,
    /// Bytes of batches handed out.
    pub read_bytes: Counter,
    /// Fetches that were refused or failed.
    pub read_errors: Counter,
    /// From the arrival of a fetch until its answer; time spent waiting for new records does not count.
    pub read_duration: LatencyHistogram,
    /// Write operations sent to the device.
    pub disk_writes: Counter,
    /// Bytes of these, padding included.
    pub disk_write_bytes: Counter,
    /// Syncs sent to the device.
    pub disk_syncs: Counter,
    /// Parts of sealed segments that were mapped.
    pub mapped_reads: Counter,
    /// Bytes of these, by whole pages.
    pub mapped_read_bytes: Counter,
    /// Read operations sent to the device.
    pub disk_reads: Counter,
    /// Bytes of these.
    pub disk_read_bytes: Counter,
    /// Reads that found their bytes in the cache.
    pub cache_hits: Counter,
    /// Reads that did not.
    pub cache_misses: Counter,
    /// Reads that found their bytes read ahead.
    pub read_ahead_hits: Counter,
    /// Copies that an operator had lead though records may be lost.
    pub forced_leaders: Counter,
    /// Copies that were given up because their drives did not give them, to be rebuilt.
    pub copies_given_up: Counter,
    /// Damaged places found in segments, each once in the life of the process.
    pub damages_found: Counter,
    /// Records lost in them.
    pub records_lost: Counter,
    /// Damaged places that were repaired with what other copies have.
    pub damages_repaired: Counter,
    /// Batches that were written over them.
    pub batches_repaired: Counter,
    /// Records in them.
    pub records_repaired: Counter,
    /// Bytes of sealed segments that the scrub read.
    pub scrub_bytes: Counter,
    /// Segments that it read whole.
    pub scrub_segments: Counter,
    /// Segments that it could not read.
    pub scrub_errors: Counter,
    /// Passes over all segments.
    pub scrub_passes: Counter,
    /// Copies of this core that began to lead their partition.
    pub leader_elections: Counter,
    /// Copies of this core that began to hand leadership over to another by plan.
    pub leaders_moved: Counter,
    /// Copies that were moved from one core to another. Core 0 counts them.
    pub copies_moved: Counter,
    /// Partitions that were moved to spread load. Core 0 counts them.
    pub balancing_moves: Counter,
    /// For how many microseconds this core ran tasks.
    pub busy_us: Counter,
    /// For how many microseconds the worst follower of a partition led here has not had all that its leader has.
    pub replication_lag_us: Counter,
    /// Segments that were given up: trimmed, or too many, or too old.
    pub segments_deleted: Counter,
    /// Bytes of these.
    pub segment_bytes_deleted: Counter,
    /// Requests passed on to the core that owns their partition.
    pub hops: Counter,
    /// Datagrams that arrived on this core for another, and were passed on.
    pub datagrams_misrouted: Counter,
    /// Datagrams for another core that were dropped, because the ring was full or the core does not exist.
    pub datagrams_dropped: Counter,
    /// Sends that found the socket's buffer full.
    pub sends_blocked: Counter,
    /// Connections open now.
    pub connections: Counter,
    /// Connections ever accepted.
    pub connections_accepted: Counter,
    /// Connection attempts refused by admission.
    pub connections_refused: Counter,
    /// Frames that broke the protocol.
    pub protocol_errors: Counter,
    /// Bytes of the memory budget in use now.
    pub memory_reserved_bytes: Counter,
    /// Bytes acknowledged or accepted but not yet synced: the window of loss at a power cut.
    pub undurable_bytes: Counter,
    /// When the oldest of these were accepted, in milliseconds since 1970; 0 if there are none.
    pub undurable_since_unix_ms: Counter,
    /// Free bytes on the drive of the data directory, as this core saw them last. The same on every core.
    pub disk_free_bytes: Counter,
    /// Bytes of these that are kept back. The same on every core.
    pub disk_reserve_bytes: Counter,
    /// 1 while writes are refused for want of room.
    pub disk_full: Counter,
    /// 1 after the drive failed so often that no write is taken until restart.
    pub disk_fenced: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_and_every_duration_is_in_the_bucket_of_its_bounds() {
        for i in 1..LATENCY_BUCKETS - 1 {
            assert!(LatencyHistogram::upper_bound_nanos(i) > LatencyHistogram::upper_bound_nanos(i - 1));
        }
        for nanos in
            (0..100_000_000u64).step_by(9_973).chain([10_000, 10_001, 14_140, 14_141, 20_000, 20_001, u64::MAX])
        {
            let bucket = LatencyHistogram::bucket_of(nanos);
            assert!(
                LatencyHistogram::upper_bound_nanos(bucket).is_none_or(|bound| nanos <= bound),
                "{nanos} in {bucket}"
            );
            let below = bucket.checked_sub(1).and_then(LatencyHistogram::upper_bound_nanos);
            assert!(below.is_none_or(|bound| nanos > bound), "{nanos} in {bucket}");
        }
    }
}

//! Since when the bytes wait that a loss of power would take: per partition, and the oldest of a core. That, with how
//! many they are, is the real window of loss, whatever the settings promise.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use crate::{metrics::CoreMetrics, runtime::Runtime, shard::CopyId};

/// The partitions of a core that have accepted what is not durable, with the time of the oldest of it.
#[derive(Debug, Default)]
pub(super) struct Exposure {
    since: RefCell<BTreeSet<(Duration, CopyId)>>,
}

impl Exposure {
    /// What `partition` has that is not durable is no older than `now`; before, that was `before`. `None`: all is
    /// durable.
    pub(super) fn change<R: Runtime>(
        &self,
        (runtime, metrics): (&R, &CoreMetrics),
        partition: CopyId,
        (before, now): (Option<Duration>, Option<Duration>),
    ) {
        let mut since = self.since.borrow_mut();
        if let Some(before) = before {
            let known = since.remove(&(before, partition));
            assert!(known, "partition {partition} was not exposed since {before:?}");
        }
        if let Some(now) = now {
            since.insert((now, partition));
        }
        let oldest = since.first().map_or(0, |(oldest, _)| {
            let age = runtime.monotonic().saturating_sub(*oldest);
            // 0 means none; and the clock may be anywhere.
            runtime.unix_millis().saturating_sub(age.as_millis() as i64).max(1) as u64
        });
        metrics.undurable_since_unix_ms.set(oldest);
    }
}

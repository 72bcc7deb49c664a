//! Consumers beside the writers: they subscribe to what is written and say when they had it, so that end-to-end time
//! is measured, from when a write was meant to be sent.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use pyralog_engine::types::Offset;
use pyralog_net::client::{FetchOptions, LogId, PartitionId};
use tokio::time::timeout;

use super::{Found, Job, Start};
use crate::{checking::Kind, dataset::Identity, measuring::Side, target::Target};

/// How long a consumer waits for what was acknowledged after the writers have gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it looks whether they have.
const GLANCE: Duration = Duration::from_millis(50);

/// When each write that is on its way was due: by its first record.
#[derive(Debug, Default)]
pub struct DueBook {
    due: Mutex<HashMap<(u16, u16, u64), Instant>>,
    writers: AtomicU64,
}

impl DueBook {
    /// So many writers are at work.
    pub fn writers_begin(&self, count: u64) {
        self.writers.fetch_add(count, Relaxed);
    }

    /// So many have finished.
    pub fn writers_end(&self, count: u64) {
        self.writers.fetch_sub(count, Relaxed);
    }

    /// A write that begins with this record is sent, and was due then.
    pub fn sent(&self, first: Identity, due: Instant) {
        self.lock().insert((first.writer, first.partition, first.sequence), due);
    }

    /// A write was refused, or its fate is unknown: nobody need wait for it.
    pub fn forget(&self, first: Identity) {
        self.lock().remove(&(first.writer, first.partition, first.sequence));
    }

    /// This record came. When its write was due, if it is the first of one.
    fn came(&self, record: Identity) -> Option<Instant> {
        self.lock().remove(&(record.writer, record.partition, record.sequence))
    }

    fn is_over(&self) -> bool {
        self.writers.load(Relaxed) == 0 && self.lock().is_empty()
    }

    fn writers_gone(&self) -> bool {
        self.writers.load(Relaxed) == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(u16, u16, u64), Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Consumes one partition from its beginning until all that was written has come.
pub async fn consume(job: Job, log: LogId, target: Target, partition: PartitionId, start: Start) -> Found {
    let mut found = Found::default();
    let subscribed = target.client.subscribe(&log, partition, Offset(0), FetchOptions::default()).await;
    let mut subscription = match subscribed {
        Ok(subscription) => subscription,
        Err(error) => {
            start.recorder.failed(Side::Main, &format!("subscribing: {error}"));
            return found;
        }
    };
    let mut last = Instant::now();
    loop {
        match timeout(GLANCE, subscription.next()).await {
            Err(_) if !job.book.writers_gone() => last = Instant::now(),
            Err(_) if job.book.is_over() || last.elapsed() > PATIENCE => return found,
            Err(_) => {}
            Ok(Some(Ok(record))) => {
                last = Instant::now();
                match job.dataset.read(&record.value) {
                    Ok(who) => {
                        if let Some(due) = job.book.came(who) {
                            start.recorder.consumed(due, last);
                        }
                    }
                    Err(damage) => {
                        let what = || format!("consumer of {partition:?}, offset {}: {damage:?}", record.offset);
                        found.defects.note(Kind::Corrupt, 1, what);
                    }
                }
            }
            Ok(Some(Err(error))) => {
                start.recorder.failed(Side::Main, &format!("consuming: {error}"));
                return found;
            }
            Ok(None) => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_over_when_its_first_record_came_or_it_failed() {
        let (book, due) = (DueBook::default(), Instant::now());
        let first = Identity { writer: 1, partition: 2, sequence: 30 };
        book.writers_begin(1);
        book.sent(first, due);
        assert_eq!(book.came(Identity { sequence: 31, ..first }), None);
        assert_eq!((book.came(first), book.came(first)), (Some(due), None));
        assert!(!book.is_over());
        book.writers_end(1);
        assert!(book.is_over());
        book.sent(first, due);
        assert!(!book.is_over());
        book.forget(first);
        assert!(book.is_over());
    }
}

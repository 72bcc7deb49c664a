//! How much of what was written stays in memory: one bound for the tails of all logs of a core, so that ten thousand
//! partitions take no more than one. What was written first is forgotten first, whoever wrote it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

use super::Log;
use crate::runtime::Runtime;

/// The memory that written groups may take while readers near the end of their log may want them.
pub struct TailMemory<R: Runtime> {
    /// A group each: whose it is, and what it takes. Per log in the order of its groups.
    kept: RefCell<VecDeque<(Weak<Log<R>>, usize)>>,
    kept_bytes: Cell<usize>,
    bytes_max: usize,
}

impl<R: Runtime> TailMemory<R> {
    /// Room for `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        TailMemory { kept: RefCell::default(), kept_bytes: Cell::new(0), bytes_max }
    }

    /// Bytes kept now.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes.get()
    }

    /// `log` has written groups that take `sizes`. They stay; what no longer has room beside them goes.
    pub(super) fn keep(&self, log: &Rc<Log<R>>, sizes: impl Iterator<Item = usize>) {
        let mut kept = self.kept.borrow_mut();
        for bytes in sizes {
            kept.push_back((Rc::downgrade(log), bytes));
            self.kept_bytes.set(self.kept_bytes.get() + bytes);
        }
        while self.kept_bytes.get() > self.bytes_max
            && let Some((log, bytes)) = kept.pop_front()
        {
            self.kept_bytes.set(self.kept_bytes.get() - bytes);
            // The groups of a log that was deleted are gone already.
            if let Some(log) = log.upgrade() {
                log.tail.borrow_mut().forget_oldest();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use super::*;
    use crate::{
        log::{
            LogContext, ahead::AheadMemory, cache::BlockCache, fixture::placed, flush::Commit, loaded::Loaded,
            read::ReadRange, recovery, room::Room, windows::Windows,
        },
        record::{BatchBuilder, Codec, check_produced},
        runtime::sim::{Sim, SimConfig, SimRuntime},
        types::{LogUid, Offset, PartitionId, PartitionIndex},
    };

    async fn log_with_records(context: &Rc<LogContext<SimRuntime>>, number: u32, records: u64) -> Rc<Log<SimRuntime>> {
        let dir = PathBuf::from(format!("/{number}"));
        context.runtime.create_dir_all(&dir).await.unwrap();
        let id = PartitionId { log: LogUid(1), index: PartitionIndex(number) };
        let log = recovery::open(context, id, dir).await.unwrap().log;
        for offset in 0..records {
            let mut builder = BatchBuilder::new(Codec::None);
            builder.push(None, &[7; 1000], &[], 1).unwrap();
            let batch = builder.finish().unwrap();
            log.append(&batch, &check_produced(&batch).unwrap(), placed(offset, 0));
            log.write_waiting(Commit::Written).await.unwrap();
        }
        log
    }

    #[test]
    fn what_was_written_first_is_forgotten_first_across_all_logs() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let runtime = cores[0].clone();
        let test = async move {
            let context = Rc::new(LogContext {
                metrics: Arc::default(),
                openings: Default::default(),
                cache: BlockCache::new(1 << 16),
                ahead: AheadMemory::new(1 << 20),
                windows: Windows::new(0, 0),
                loaded: Loaded::new(8 << 10),
                zeros: Rc::new(runtime.allocate(1 << 20)),
                block_bytes: 512,
                segment_bytes: 1 << 20,
                heavy_load: Default::default(),
                tails: TailMemory::new(64 << 10),
                room: Room::new(0),
                reaper: Default::default(),
                runtime,
            });
            let mut logs = Vec::new();
            for number in 0..20 {
                logs.push(log_with_records(&context, number, 10).await);
                assert!(context.tails.kept_bytes.get() <= 64 << 10, "{} bytes", context.tails.kept_bytes.get());
            }
            let range = |offset| ReadRange { offset: Offset(offset), end: Offset(40), max_bytes: 1 };
            assert!(logs[0].read_memory(range(9)).is_none(), "the oldest is still in memory");
            assert!(logs[19].read_memory(range(9)).is_some(), "the newest is not in memory");
            assert_eq!(logs[0].read_disk(range(9)).await.unwrap().len(), 1);
            // The groups of a log that is gone do not count for ever.
            logs.pop();
            logs.push(log_with_records(&context, 20, 40).await);
            assert!(logs[19].read_memory(range(39)).is_some());
            // Each group is a block, and the bound a multiple of it.
            assert_eq!(context.tails.kept_bytes(), 64 << 10, "room stands empty");
        };
        sim.block_on(&cores[0], test, 1_000_000).unwrap();
    }
}

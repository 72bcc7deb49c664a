//! The task of a core that reads its sealed segments again, log by log, for ever.

use std::rc::{Rc, Weak};

use super::{Core, Slot};
use crate::{
    log::{
        Log,
        scrub::{ScrubPace, scrub},
    },
    runtime::Runtime,
    types::PartitionId,
};

impl<R: Runtime> Core<R> {
    /// Begins to scrub, if that is wanted.
    pub(super) fn begin_scrubbing(self: &Rc<Self>, pace: ScrubPace) {
        if pace.bytes_per_second == 0 {
            return;
        }
        let (core, runtime) = (Rc::downgrade(self), self.common.context.runtime.clone());
        self.common.context.runtime.spawn_background(async move {
            let mut pause = pace.first_pause();
            loop {
                runtime.sleep(pause).await;
                let begun = runtime.monotonic();
                let mut last = None;
                // One after the other by number: partitions come and go meanwhile.
                while let Some((id, log)) = core.upgrade().and_then(|core| core.log_after(last)) {
                    last = Some(id);
                    scrub(log, pace).await;
                }
                let Some(core) = core.upgrade().filter(|core| !core.common.draining.get()) else { return };
                core.common.context.metrics.scrub_passes.add(1);
                pause = pace.period.saturating_sub(runtime.monotonic().saturating_sub(begun));
            }
        });
    }

    /// The first open partition behind `last`, and its log; none while the server stops.
    fn log_after(&self, last: Option<PartitionId>) -> Option<(PartitionId, Weak<Log<R>>)> {
        if self.common.draining.get() {
            return None;
        }
        let partitions = self.partitions.borrow();
        partitions.iter().filter(|(id, _)| last.is_none_or(|last| **id > last)).find_map(|(id, slot)| match slot {
            Slot::Open(partition) => Some((*id, Rc::downgrade(&partition.log))),
            Slot::Broken(_) | Slot::NoRoom => None,
        })
    }
}

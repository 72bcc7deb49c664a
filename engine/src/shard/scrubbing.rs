//! The task of a core that reads its sealed segments again, log by log, for ever.
//!
//! How far it got is kept nowhere. The first pass after a start begins at a segment that chance chooses, so that a
//! server which is restarted more often than a pass takes still reads all of them in the end; a pass reads every
//! segment once wherever it begins.

use std::rc::{Rc, Weak};

use super::{CopyId, Core, Slot};
use crate::{
    log::{
        Log,
        scrub::{ScrubPace, scrub},
    },
    runtime::Runtime,
    types::Offset,
};

/// A copy of a partition, and where one of its segments begins.
type Place = (CopyId, Offset);

/// One pass: everything from `start` on, and then everything before it.
async fn scrub_all<R: Runtime>(core: &Weak<Core<R>>, pace: ScrubPace, start: Option<Place>) {
    let end = Offset(u64::MAX);
    let next = |last| core.upgrade().and_then(|core| core.log_after(last));
    let mut last = None;
    if let Some((first, base)) = start {
        if let Some(log) = core.upgrade().and_then(|core| core.log_of(first)) {
            scrub(log, pace, base..end).await;
        }
        last = Some(first);
    }
    // One after the other by number: partitions come and go meanwhile.
    while let Some((id, log)) = next(last) {
        last = Some(id);
        scrub(log, pace, Offset(0)..end).await;
    }
    let Some((first, base)) = start else { return };
    last = None;
    while let Some((id, log)) = next(last).filter(|(id, _)| *id <= first) {
        last = Some(id);
        scrub(log, pace, Offset(0)..if id == first { base } else { end }).await;
    }
}

impl<R: Runtime> Core<R> {
    /// Begins to scrub, if that is wanted.
    pub(super) fn begin_scrubbing(self: &Rc<Self>, pace: ScrubPace) {
        if pace.bytes_per_second == 0 {
            return;
        }
        let (core, runtime) = (Rc::downgrade(self), self.common.context.runtime.clone());
        self.common.context.runtime.spawn_background(async move {
            let mut pause = pace.first_pause();
            let mut is_first = true;
            loop {
                runtime.sleep(pause).await;
                let begun = runtime.monotonic();
                let chance = (runtime.random_u64(), runtime.random_u64());
                let start = core.upgrade().filter(|_| is_first).and_then(|core| core.any_place(chance));
                is_first = false;
                scrub_all(&core, pace, start).await;
                let Some(core) = core.upgrade().filter(|core| !core.common.draining.get()) else { return };
                core.common.context.metrics.scrub_passes.add(1);
                pause = pace.period.saturating_sub(runtime.monotonic().saturating_sub(begun));
            }
        });
    }

    /// A partition and one of its sealed segments, as chance chooses; none if there is no partition.
    fn any_place(&self, (first, second): (u64, u64)) -> Option<Place> {
        let open = self.open_partitions();
        let partition = &open[first.checked_rem(open.len() as u64)? as usize];
        Some((partition.copy_id(), partition.log.any_sealed(second)))
    }

    fn log_of(&self, id: CopyId) -> Option<Weak<Log<R>>> {
        self.copy(id).map(|partition| Rc::downgrade(&partition.log))
    }

    /// The first open partition behind `last`, and its log; none while the server stops.
    fn log_after(&self, last: Option<CopyId>) -> Option<(CopyId, Weak<Log<R>>)> {
        if self.common.draining.get() {
            return None;
        }
        let partitions = self.partitions.borrow();
        partitions.iter().filter(|(id, _)| last.is_none_or(|last| **id > last)).find_map(|(id, slot)| match slot {
            Slot::Open(partition) => Some((*id, Rc::downgrade(&partition.log))),
            Slot::Broken(_) | Slot::Unread(_) | Slot::NoRoom | Slot::Released(_) => None,
        })
    }
}

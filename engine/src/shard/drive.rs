//! The drive under a core's partitions: how much room it has, and whether it is to be trusted.
//!
//! The core looks at it a few times a second, so that writes are refused while the reserve is still there (see
//! [`crate::log::room`]), and taken again as soon as there is room, without anybody doing anything.
//!
//! A failure on one core is told to all others; each judges by the same rule ([`super::trust`]), and stops the writes
//! of its partitions when the drive is no longer trusted.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::Arc, time::Duration};

use super::{CATALOG_CORE, Common, Core, mailbox::Message, muster, trust::Sufferer};
use crate::{error::RequestError, runtime::Runtime, signal::Signal, types::CoreId};

/// How often a core asks how much room there is. What other cores and other programs take between two looks comes out
/// of the reserve: at 1 GB/s as much as the default reserve.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a full drive is left alone before the next try.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(500);

/// Failures on their way from those who met them to the task that tells everybody.
#[derive(Default)]
pub(super) struct Faults {
    waiting: RefCell<VecDeque<(Sufferer, String)>>,
    filled: Signal,
}

impl Faults {
    /// A write or a sync of `sufferer` failed.
    pub(super) fn report(&self, sufferer: Sufferer, reason: String) {
        self.waiting.borrow_mut().push_back((sufferer, reason));
        self.filled.notify();
    }
}

impl<R: Runtime> Core<R> {
    /// Tells every core what failed on this one, for ever.
    pub(super) async fn report_drive_faults(self: Rc<Self>) {
        let faults = &self.common.drive_faults;
        loop {
            faults.filled.wait_until(|| !faults.waiting.borrow().is_empty()).await;
            let next = faults.waiting.borrow_mut().pop_front();
            let Some((sufferer, reason)) = next else { continue };
            let drives = &self.common.config.drives;
            let sharing = |core: &CoreId| drives.of(*core) == drives.of(self.common.id);
            for core in self.other_cores().filter(sharing) {
                self.mailbox.outbox(core).push(Message::DriveFailed { sufferer, reason: reason.clone() });
            }
            self.take_drive_fault(sufferer, &reason);
        }
    }

    /// A write or a sync failed, here or elsewhere. If that is one too many, no partition takes writes any more.
    pub(super) fn take_drive_fault(&self, sufferer: Sufferer, reason: &str) {
        let fence = self.common.trust.borrow_mut().note(sufferer, reason).map(str::to_owned);
        let Some(fence) = fence else { return };
        let drives = &self.common.config.drives;
        // Once for each drive.
        let first = (0..self.cores as u16).map(CoreId).find(|core| drives.of(*core) == drives.of(self.common.id));
        if first == Some(self.common.id) {
            let dir = self.common.data_dir.display();
            tracing::error!(%dir, fence, "no partition of the drive accepts writes until the server is restarted");
        }
        self.common.context.metrics.disk_fenced.set(1);
        self.open_partitions().iter().for_each(|partition| partition.stop_writes(&fence));
    }
}

impl<R: Runtime> Core<R> {
    /// Raises the generation of several drives: once when every core has opened its copies, and then again and again.
    pub(super) fn keep_generations(self: &Rc<Self>) {
        if self.common.config.drives.all().count() < 2 {
            return;
        }
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let all_open = {
                let _turn = core.admin.changes.take().await;
                let current = Arc::clone(&core.catalog.borrow());
                core.tell_others(&current).await
            };
            let Common { context, config, draining, .. } = &*core.common;
            while all_open.is_ok() && !draining.get() {
                muster::raise(&context.runtime, &config.drives).await;
                context.runtime.sleep(muster::PERIOD).await;
            }
        });
    }
}

impl<R: Runtime> Common<R> {
    /// What a write is answered that there is no room for.
    pub(super) fn disk_full(&self) -> RequestError {
        let room = &self.context.room;
        RequestError::DiskFull {
            path: self.data_dir.clone(),
            free_bytes: room.free_bytes(),
            reserve_bytes: room.reserve_bytes(),
        }
    }

    /// Asks the file system how much room there is, and says so when it begins or ceases to be too little.
    pub(super) async fn look_at_drive(&self) {
        let Common { context, data_dir, .. } = self;
        // A drive that cannot even say how full it is will fail in ways that are noticed elsewhere.
        let Ok(free_bytes) = context.runtime.free_bytes(data_dir).await else { return };
        let was_low = context.room.is_low();
        context.room.look(free_bytes);
        let is_low = context.room.is_low();
        if was_low != is_low && self.id == CATALOG_CORE {
            let (dir, reserve_bytes) = (data_dir.display(), context.room.reserve_bytes());
            if is_low {
                tracing::warn!(%dir, free_bytes, reserve_bytes, "the drive is full: writes are refused");
            } else {
                tracing::warn!(%dir, free_bytes, reserve_bytes, "the drive has room again: writes are taken");
            }
        }
        context.metrics.disk_free_bytes.set(free_bytes);
        context.metrics.disk_reserve_bytes.set(context.room.reserve_bytes());
        context.metrics.disk_full.set(u64::from(context.room.is_full()));
    }

    /// Counts for how long this core ran tasks.
    pub(super) fn note_busy(&self) {
        let busy_us = self.context.runtime.take_busy().as_micros();
        self.context.metrics.busy_us.add(u64::try_from(busy_us).unwrap_or(0));
    }

    /// Keeps looking.
    pub(super) async fn watch_drive(self: Rc<Self>) {
        loop {
            self.context.runtime.sleep(LOOK_INTERVAL).await;
            self.note_busy();
            self.look_at_drive().await;
        }
    }
}

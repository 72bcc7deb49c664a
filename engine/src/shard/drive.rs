//! The drive under a core's partitions: how much room it has.
//!
//! The core looks at it a few times a second, so that writes are refused while the reserve is still there (see
//! [`crate::log::room`]), and taken again as soon as there is room, without anybody doing anything.

use std::{rc::Rc, time::Duration};

use super::{CATALOG_CORE, Common};
use crate::{error::RequestError, runtime::Runtime};

/// How often a core asks how much room there is. What other cores and other programs take between two looks comes out
/// of the reserve: at 1 GB/s as much as the default reserve.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a full drive is left alone before the next try.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(500);

impl<R: Runtime> Common<R> {
    /// What a write is answered that there is no room for.
    pub(super) fn disk_full(&self) -> RequestError {
        let room = &self.context.room;
        RequestError::DiskFull {
            path: self.config.data_dir.clone(),
            free_bytes: room.free_bytes(),
            reserve_bytes: room.reserve_bytes(),
        }
    }

    /// Asks the file system how much room there is, and says so when it begins or ceases to be too little.
    pub(super) async fn look_at_drive(&self) {
        let Common { context, config, .. } = self;
        // A drive that cannot even say how full it is will fail in ways that are noticed elsewhere.
        let Ok(free_bytes) = context.runtime.free_bytes(&config.data_dir).await else { return };
        let was_low = context.room.is_low();
        context.room.look(free_bytes);
        let is_low = context.room.is_low();
        if was_low != is_low && self.id == CATALOG_CORE {
            let (dir, reserve_bytes) = (config.data_dir.display(), context.room.reserve_bytes());
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

    /// Keeps looking.
    pub(super) async fn watch_drive(self: Rc<Self>) {
        loop {
            self.context.runtime.sleep(LOOK_INTERVAL).await;
            self.look_at_drive().await;
        }
    }
}

//! What an earlier log of the same name left behind: a deletion does not reach a folder whose drive fails then, or
//! is replaced later by a copy of an earlier time. A name is one log's at a time, and numbers only grow: in the folder
//! of a log, whatever is of a lower number is of one that was deleted. As records of the log that has the name now it
//! would be damage at best, and with reigns of the same numbers be taken for what its other copies have.

use std::path::Path;

use super::{
    CopyId, Core,
    opening::{copy_dir, copy_named},
};
use crate::{
    catalog::LogEntry,
    limits::SEGMENT_HEADER_BYTES,
    log::{
        LogFault,
        recovery::Recovered,
        segment::{SegmentHeader, base_offset_of},
    },
    runtime::{File, OpenMode, Runtime},
    types::{LogUid, Offset, PartitionId},
};

impl<R: Runtime> Core<R> {
    /// Opens the log of a copy as [`Core::recover`] does, and anew if what was there was an earlier log's. That is
    /// looked at only where something is wrong.
    pub(super) async fn recover_own(
        &self,
        id: CopyId,
        entry: &LogEntry,
        end: Offset,
    ) -> Result<Recovered<R>, LogFault> {
        let found = self.recover(id, entry, end).await;
        let is_fine = found.as_ref().is_ok_and(|recovered| recovered.damage.is_none());
        let dir = copy_dir(&self.common.data_dir, &entry.name, id);
        if is_fine || !self.is_of_earlier(&dir, entry.uid).await {
            return found;
        }
        if let Ok(recovered) = found {
            recovered.log.close().await;
        }
        tracing::warn!(log = %entry.name, copy = %id, "what is there is of a deleted log of this name, and is removed");
        self.throw_away(&self.common.data_dir, &dir).await;
        self.recover(id, entry, end).await
    }

    /// Whether nobody will ever open a folder in that of the log `entry`, in a data directory: it is of a copy that was
    /// given up, or of one that has no place there and belonged to an earlier log.
    pub(super) async fn is_left_over(&self, data_dir: &Path, entry: &LogEntry, dir: &Path) -> bool {
        let Some((index, copy)) = dir.file_name().and_then(|name| copy_named(name.to_str()?)) else { return false };
        let drives = &self.common.config.drives;
        let id = CopyId { partition: PartitionId { log: entry.uid, index }, copy };
        let has_place = || {
            let core = drives.place(entry, id).filter(|_| index.0 < entry.partitions);
            core.is_some_and(|core| drives.dir_of(core) == data_dir)
        };
        // Who opens it looks at it otherwise.
        !entry.has_slot(copy) || !has_place() && self.is_of_earlier(dir, entry.uid).await
    }

    /// Whether the segments in `dir` say that they are of logs before `log`, and none says anything else.
    async fn is_of_earlier(&self, dir: &Path, log: LogUid) -> bool {
        let runtime = &self.common.context.runtime;
        let mut is_earlier = false;
        for path in runtime.list_dir(dir).await.unwrap_or_default().into_iter().map(|found| found.path) {
            if base_offset_of(&path).is_none() {
                continue;
            }
            let Ok(file) = runtime.open(&path, OpenMode::Existing).await else { return false };
            let Ok(block) = file.read_at(0, SEGMENT_HEADER_BYTES as usize).await else { return false };
            match SegmentHeader::decode(&block) {
                Ok(header) if header.partition.log >= log => return false,
                Ok(_) => is_earlier = true,
                Err(_) => {}
            }
        }
        is_earlier
    }
}

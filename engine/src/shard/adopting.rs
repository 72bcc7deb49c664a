//! What a core has open follows from the catalogue, whatever it had before: the copies that the catalogue places here
//! and that are not open are opened, and those that are not placed here any more are closed. So nothing has to be
//! remembered of a change that was cut off: the next catalogue, or the next start, completes it.

use std::{rc::Rc, sync::Arc};

use futures_util::future::join_all;

use super::{CopyId, Core, Slot, opening::open_partition, owned::Gone};
use crate::{
    catalog::{Catalog, LogEntry},
    error::RequestError,
    runtime::Runtime,
    types::CoreId,
};

impl<R: Runtime> Core<R> {
    /// Takes a catalogue over from core 0. Until then requests for partitions of new logs are answered that they are
    /// not open yet.
    pub(super) async fn take_catalog(self: &Rc<Self>, next: Arc<Catalog>) -> Result<(), RequestError> {
        let opened = self.open_missing(&next).await.and(self.have_made(&next));
        self.adopt(next).await;
        opened
    }

    /// The core that has a copy by the present catalogue, which is the one way to ask; `None` if its drive is away, or
    /// the log is not known here.
    pub(super) fn home_of(&self, id: CopyId) -> Option<CoreId> {
        let catalog = self.catalog.borrow();
        catalog.by_uid(id.partition.log).and_then(|log| self.home_in(log, id))
    }

    /// The same by another entry of its log.
    fn home_in(&self, log: &LogEntry, id: CopyId) -> Option<CoreId> {
        self.common.config.drives.place(log, id)
    }

    /// Whether a catalogue places a copy on this core.
    fn places_here(&self, catalog: &Catalog, id: CopyId) -> bool {
        let log = catalog.by_uid(id.partition.log);
        log.is_some_and(|log| log.has_slot(id.copy) && self.home_in(log, id) == Some(self.common.id))
    }

    /// This core's copies of the partitions of a log.
    pub(super) fn mine(&self, log: &LogEntry) -> impl Iterator<Item = CopyId> {
        let copies = log.slots().collect::<Vec<_>>();
        let all = log
            .partition_ids()
            .flat_map(move |partition| copies.clone().into_iter().map(move |copy| CopyId { partition, copy }));
        all.filter(|id| self.home_in(log, *id) == Some(self.common.id))
    }

    /// Whether this core's copies are there of the logs that `next` begins to found; of all that are being founded, if
    /// it is the catalogue that the core has. What is wrong with another log is no answer to who makes one.
    ///
    /// Errors: why one is not.
    pub(super) fn have_made(&self, next: &Catalog) -> Result<(), RequestError> {
        let (partitions, now) = (self.partitions.borrow(), self.catalog.borrow());
        let is_old_news = |log: &LogEntry| now.by_uid(log.uid).is_some_and(|log| log.founding);
        let asked = |log: &LogEntry| log.founding && (now.revision() == next.revision() || !is_old_news(log));
        let mut copies = next.logs().filter(|log| asked(log)).flat_map(|log| self.mine(log));
        copies.try_for_each(|id| match partitions.get(&id) {
            Some(Slot::Open(_)) => Ok(()),
            Some(Slot::Broken(error)) => Err(error.clone()),
            Some(Slot::Unread(unread)) => Err(unread.error()),
            Some(Slot::NoRoom | Slot::Released(_)) | None => Err(self.common.disk_full()),
        })
    }

    /// Opens the copies that `next` places on this core and that are not open. What could not be opened before is left
    /// as it is.
    pub(super) async fn open_missing(self: &Rc<Self>, next: &Catalog) -> Result<(), RequestError> {
        self.call_back(|id| self.places_here(next, id)).await;
        let mut missing = Vec::new();
        for log in next.logs() {
            let partitions = self.partitions.borrow();
            missing.extend(self.mine(log).filter(|id| !partitions.contains_key(id)).map(|id| (id, Arc::clone(log))));
        }
        let opening = missing.into_iter().map(|(id, log)| open_partition(Rc::clone(self), id, log));
        join_all(opening).await.into_iter().collect()
    }

    /// Makes `next`, whose copies are open, the catalogue of this core: the copies that it does not place here are
    /// closed when this returns, and the others keep to their settings.
    pub(super) async fn adopt(self: &Rc<Self>, next: Arc<Catalog>) {
        *self.catalog.borrow_mut() = Arc::clone(&next);
        self.common.leaving.closed.borrow_mut().retain(|id, _| self.places_here(&next, *id));
        for partition in self.open_partitions() {
            if let Some(entry) = next.by_uid(partition.id.log) {
                let before = partition.entry.replace(Arc::clone(entry));
                if before.founding && !entry.founding {
                    // All copies are there: nobody needs to wait for anybody.
                    partition.member.iter().for_each(|member| member.begin());
                }
            }
        }
        self.forget_leaders(|partition| next.by_uid(partition.log).is_some());
        let gone: Vec<_> =
            self.partitions.borrow().keys().copied().filter(|id| !self.places_here(&next, *id)).collect();
        for id in gone {
            let gone = match next.by_uid(id.partition.log) {
                None => Gone::Deleted,
                Some(log) if log.has_slot(id.copy) => Gone::Elsewhere(self.home_of(id)),
                Some(_) => Gone::Elsewhere(self.led_elsewhere(id.partition)),
            };
            self.let_go(id, gone).await;
        }
    }

    /// Closes a copy: nobody touches its files any more when this returns, except for who reads from them.
    async fn let_go(self: &Rc<Self>, id: CopyId, gone: Gone) {
        // A log that is being changed is opened anew at the end of that, by a task of its own.
        if let Some(member) = self.copy(id).and_then(|owned| owned.member.clone()) {
            member.until_unchanging().await;
        }
        let slot = self.partitions.borrow_mut().remove(&id);
        match slot {
            Some(Slot::Open(partition)) => partition.end(gone).await,
            // Whoever tries to open it again has its turn, and sees that it need not.
            Some(Slot::NoRoom | Slot::Unread(_)) => drop(self.openings.take().await),
            Some(Slot::Broken(_) | Slot::Released(_)) | None => {}
        }
    }
}

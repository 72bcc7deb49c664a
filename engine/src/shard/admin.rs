//! Changes of the catalogue: decided and made durable by core 0, then taken over by every core before the client hears
//! of it, and by core 0 itself as the last.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use futures_util::future::join_all;

use super::{
    CATALOG_CORE, CatalogError, Core, Slot, catalog_store,
    completion::ReplyTo,
    mailbox::Message,
    opening::{log_dir, open_partition},
    placement,
    request::{AlterLog, CreateLog, Reply},
    trust::Sufferer,
};
use crate::{
    catalog::{Catalog, LogEntry},
    error::RequestError,
    name::LogName,
    runtime::Runtime,
    signal::{Signal, Turns},
    types::{CoreId, PartitionId},
};

/// The state of catalogue changes on a core.
#[derive(Default)]
pub(super) struct Admin {
    /// One change after the other.
    changes: Turns,
    /// A write of the catalogue failed: which version is durable is not known, so none may follow.
    failed: RefCell<Option<RequestError>>,
    /// Answers of other cores to messages of ours, by number.
    answers: RefCell<BTreeMap<u64, Option<Result<(), RequestError>>>>,
    answered: Signal,
}

impl Admin {
    pub(super) fn taken(&self, id: u64, result: Result<(), RequestError>) {
        if let Some(slot) = self.answers.borrow_mut().get_mut(&id) {
            *slot = Some(result);
        }
        self.answered.notify();
    }
}

impl<R: Runtime> Core<R> {
    pub(super) fn create_log(self: &Rc<Self>, request: CreateLog, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let _turn = core.admin.changes.take().await;
            let current = Arc::clone(&core.catalog.borrow());
            let now_ms = core.common.context.runtime.unix_millis();
            let outcome = match current.with_log(&request, now_ms) {
                // A deletion may use the reserve: it makes room.
                Ok(_) if core.common.context.room.is_low() => Err(core.common.disk_full()),
                Ok((next, log)) => core.change(next).await.map(|()| Reply::LogCreated(log)),
                Err(error) => Err(error),
            };
            reply.send(outcome);
        });
    }

    pub(super) fn alter_log(self: &Rc<Self>, request: AlterLog, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let _turn = core.admin.changes.take().await;
            let current = Arc::clone(&core.catalog.borrow());
            let outcome = match current.with_changes(&request) {
                Ok((next, log)) => core.change(next).await.map(|()| Reply::LogAltered(log)),
                Err(error) => Err(error),
            };
            reply.send(outcome);
        });
    }

    pub(super) fn delete_log(self: &Rc<Self>, name: LogName, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let _turn = core.admin.changes.take().await;
            let current = Arc::clone(&core.catalog.borrow());
            let outcome = match current.without_log(&name) {
                Ok((next, log)) => core.change(next).await.map(|()| log),
                Err(error) => Err(error),
            };
            if let Ok(log) = &outcome {
                // Every core has let go of its files. Before the next change, which may make a log of the same name.
                core.throw_away(&log_dir(&core.common.config.data_dir, &log.name)).await;
            }
            reply.send(outcome.map(|_| Reply::LogDeleted));
        });
    }

    /// Makes `next` the catalogue: on disk first, then on every core.
    async fn change(self: &Rc<Self>, next: Catalog) -> Result<(), RequestError> {
        if self.common.draining.get() {
            return Err(RequestError::ShuttingDown);
        }
        let failed = self.admin.failed.borrow().clone();
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(fence) = self.common.trust.borrow().fence() {
            return Err(RequestError::CatalogFailed { reason: format!("{fence}; restart the server") });
        }
        match catalog_store::save(&self.common.context.runtime, &self.common.config.data_dir, &next).await {
            Ok(()) => {}
            Err(CatalogError::Full { .. }) => return Err(self.common.disk_full()),
            Err(error) => {
                self.common.drive_faults.report(Sufferer::Catalog, error.to_string());
                let error = RequestError::CatalogFailed { reason: format!("{error}; restart the server") };
                tracing::error!(%error, "no log can be created or deleted until the server is restarted");
                *self.admin.failed.borrow_mut() = Some(error.clone());
                return Err(error);
            }
        }
        let next = Arc::new(next);
        let ids: Vec<u64> = self.others().map(|core| self.announce(core, &next)).collect();
        let mut result = self.open_new(&next).await;
        let all_answered = || self.admin.answers.borrow().values().all(Option::is_some);
        self.admin.answered.wait_until(all_answered).await;
        for id in ids {
            let answer = self.admin.answers.borrow_mut().remove(&id).flatten();
            result = result.and(answer.unwrap_or(Ok(())));
        }
        // The last to show a new log: whoever sees it here finds it open everywhere.
        self.adopt(next).await;
        result
    }

    fn others(&self) -> impl Iterator<Item = CoreId> + use<R> {
        (0..self.cores as u16).map(CoreId).filter(|core| *core != CATALOG_CORE)
    }

    fn announce(&self, core: CoreId, catalog: &Arc<Catalog>) -> u64 {
        let id = self.mailbox.next_id();
        self.admin.answers.borrow_mut().insert(id, None);
        self.mailbox.outbox(core).push(Message::Catalog { id, catalog: Arc::clone(catalog) });
        id
    }

    /// Takes a catalogue over from core 0. Until then requests for partitions of new logs are answered that they are
    /// not open yet.
    pub(super) async fn take_catalog(self: &Rc<Self>, next: Arc<Catalog>) -> Result<(), RequestError> {
        let opened = self.open_new(&next).await;
        self.adopt(next).await;
        opened
    }

    /// Opens this core's partitions of logs that `next` has and the present catalogue has not.
    async fn open_new(self: &Rc<Self>, next: &Catalog) -> Result<(), RequestError> {
        let current = Arc::clone(&self.catalog.borrow());
        let new = next.logs().filter(|log| current.by_uid(log.uid).is_none());
        let mine = new.flat_map(|log| self.mine(log).map(|id| open_partition(Rc::clone(self), id, Arc::clone(log))));
        join_all(mine).await.into_iter().collect()
    }

    /// This core's partitions of a log.
    fn mine(&self, log: &LogEntry) -> impl Iterator<Item = PartitionId> + use<R> {
        let (id, cores) = (self.common.id, self.cores);
        log.partition_ids().filter(move |partition| placement::owner(*partition, cores) == id)
    }

    /// Makes `next`, whose new partitions are open, the catalogue of this core: those of deleted logs are closed when
    /// this returns, and the others keep to their settings.
    async fn adopt(self: &Rc<Self>, next: Arc<Catalog>) {
        let current = Arc::clone(&self.catalog.borrow());
        *self.catalog.borrow_mut() = Arc::clone(&next);
        for partition in self.open_partitions() {
            if let Some(entry) = next.by_uid(partition.id.log) {
                partition.entry.replace(Arc::clone(entry));
            }
        }
        let gone = current.logs().filter(|log| next.by_uid(log.uid).is_none());
        let closing = gone.flat_map(|log| self.mine(log)).filter_map(|id| self.partitions.borrow_mut().remove(&id));
        for slot in closing.collect::<Vec<_>>() {
            match slot {
                Slot::Open(partition) => partition.delete().await,
                Slot::NoRoom => drop(self.openings.take().await),
                Slot::Broken(_) => {}
            }
        }
    }
}

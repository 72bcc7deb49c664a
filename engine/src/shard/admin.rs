//! Changes of the catalogue: decided and made durable by core 0, then taken over by every core before the client hears
//! of it, and by core 0 itself as the last.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
};

use super::{
    CatalogError, Core,
    answering::Probes,
    catalog_store,
    completion::ReplyTo,
    mailbox::Message,
    opening::log_dir,
    request::{CreateLog, Reply},
    trust::Sufferer,
};
use crate::{
    catalog::{Catalog, LogEntry},
    error::RequestError,
    name::LogName,
    runtime::Runtime,
    signal::{Signal, Turns},
    types::CoreId,
};

/// The state of catalogue changes on a core.
#[derive(Default)]
pub(super) struct Admin {
    /// One change after the other.
    pub(super) changes: Turns,
    /// A write of the catalogue failed: which version is durable is not known, so none may follow.
    failed: RefCell<Option<RequestError>>,
    /// Answers of other cores to messages of ours, by number.
    answers: RefCell<BTreeMap<u64, Option<Result<(), RequestError>>>>,
    answered: Signal,
    /// It is looked whether copies that change have changed.
    pub(super) watches: Cell<bool>,
    pub(super) probes: Probes,
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
    pub(super) fn create_log(self: &Rc<Self>, mut request: CreateLog, reply: ReplyTo) {
        let core = Rc::clone(self);
        let replication = request.settings.replication.unwrap_or(self.common.config.replication);
        request.settings.replication = (replication.replication_factor > 1).then_some(replication);
        self.administer(reply, async move {
            let current = Arc::clone(&core.catalog.borrow());
            let now_ms = core.common.context.runtime.unix_millis();
            let drives = core.common.config.drives.known();
            match current.with_log(&request, (drives, now_ms)) {
                // A deletion may use the reserve: it makes room.
                Ok(_) if core.common.context.room.is_low() => Err(core.common.disk_full()),
                Ok(_) if usize::from(replication.replication_factor) > core.cores => {
                    Err(too_many_copies(replication.replication_factor, core.cores))
                }
                Ok((next, log)) => core.found(next, log).await.map(Reply::LogCreated),
                Err(error) => Err(error),
            }
        });
    }

    pub(super) fn delete_log(self: &Rc<Self>, name: LogName, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.administer(reply, async move {
            let current = Arc::clone(&core.catalog.borrow());
            let (next, log) = current.without_log(&name)?;
            let changed = core.change(next).await;
            // It is gone, whatever else became of other logs' copies meanwhile.
            if core.catalog.borrow().by_uid(log.uid).is_some() {
                changed?;
            }
            // Every core has let go of its files. Before the next change, which may make a log of the same name.
            for (_, data_dir) in core.common.config.drives.all() {
                core.throw_away(data_dir, &log_dir(data_dir, &log.name)).await;
            }
            Ok(Reply::LogDeleted)
        });
    }

    /// Makes `log` part of the catalogue, in two steps if it has several copies: first every copy is made, and only
    /// then one that is not there is one that is lost.
    async fn found(self: &Rc<Self>, next: Catalog, log: Arc<LogEntry>) -> Result<Arc<LogEntry>, RequestError> {
        self.change(next).await?;
        if !log.founding {
            return Ok(log);
        }
        let founded = self.catalog.borrow().with_founded(log.uid);
        self.change(founded).await?;
        Ok(self.catalog.borrow().by_uid(log.uid).map_or(log, Arc::clone))
    }

    /// Makes `next` the catalogue: on disk first, then on every core.
    pub(super) async fn change(self: &Rc<Self>, next: Catalog) -> Result<(), RequestError> {
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
        let next = next.next_revision();
        match self.save_catalog(&next).await {
            Ok(()) => {}
            Err(CatalogError::Full { .. }) => return Err(self.common.disk_full()),
            Err(error) => {
                // What another drive does not take is no reason to distrust this core's.
                if error.path().starts_with(&self.common.data_dir) {
                    self.common.drive_faults.report(Sufferer::Catalog, error.to_string());
                }
                let error = RequestError::CatalogFailed { reason: format!("{error}; restart the server") };
                tracing::error!(%error, "no log can be created or deleted until the server is restarted");
                *self.admin.failed.borrow_mut() = Some(error.clone());
                return Err(error);
            }
        }
        let next = Arc::new(next);
        let (told, opened) = futures_util::future::join(self.tell_others(&next), self.open_missing(&next)).await;
        let result = opened.and(self.have_made(&next)).and(told);
        // The last to show a new log: whoever sees it here finds it open everywhere.
        self.adopt(next).await;
        result
    }

    /// Completes the creation of logs that an earlier life began: when every core has opened its copies, those of
    /// them that were not there are made.
    pub(super) fn go_on_founding(self: &Rc<Self>) {
        let founding = |catalog: &Catalog| catalog.logs().find(|log| log.founding).map(|log| log.uid);
        if founding(&self.catalog.borrow()).is_none() {
            return;
        }
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let _turn = core.admin.changes.take().await;
            let current = Arc::clone(&core.catalog.borrow());
            let answers = core.tell_others(&current).await.and(core.have_made(&current));
            let mut next = Catalog::clone(&current);
            while let (true, Some(uid)) = (answers.is_ok(), founding(&next)) {
                next = next.with_founded(uid);
            }
            if next != *current
                && let Err(error) = core.change(next).await
            {
                tracing::error!(%error, "the creation of a log was not completed; it is tried again at the next start");
            }
        });
    }

    /// Has all other cores take a catalogue over. Gives the first thing that went wrong with a new log.
    pub(super) async fn tell_others(self: &Rc<Self>, catalog: &Arc<Catalog>) -> Result<(), RequestError> {
        let ids: Vec<u64> = self.other_cores().map(|core| self.announce(core, catalog)).collect();
        let all_answered = || self.admin.answers.borrow().values().all(Option::is_some);
        self.admin.answered.wait_until(all_answered).await;
        let answers = ids.into_iter().map(|id| self.admin.answers.borrow_mut().remove(&id).flatten());
        answers.map(|answer| answer.unwrap_or(Ok(()))).fold(Ok(()), Result::and)
    }

    /// On two drives at least, if there are several: the loss of one takes nothing away.
    pub(super) async fn save_catalog(&self, next: &Catalog) -> Result<(), CatalogError> {
        let (mut saved, mut failed) = (0, None);
        for (drive, data_dir) in self.common.config.drives.all() {
            match catalog_store::save(&self.common.context.runtime, data_dir, next).await {
                Ok(()) => saved += 1,
                Err(error) => {
                    tracing::error!(%drive, %error, "the drive has not taken the catalogue");
                    if failed.is_none() || data_dir == self.common.data_dir {
                        failed = Some(error);
                    }
                }
            }
        }
        match failed {
            Some(error) if saved < 2 => Err(error),
            _ => Ok(()),
        }
    }

    fn announce(&self, core: CoreId, catalog: &Arc<Catalog>) -> u64 {
        let id = self.mailbox.next_id();
        self.admin.answers.borrow_mut().insert(id, None);
        self.mailbox.outbox(core).push(Message::Catalog { id, catalog: Arc::clone(catalog) });
        id
    }
}

/// Why there cannot be so many.
pub(super) fn too_many_copies(factor: u8, cores: usize) -> RequestError {
    let reason =
        format!("replication_factor {factor} needs {factor} cores, one for each copy; this server has {cores}");
    RequestError::SettingsRefused { reason }
}

//! Administrative requests are answered also while a drive does not answer.
//!
//! They take every drive and every core: the catalogue is on all drives, and all cores take it over. How long that
//! takes depends on how much there is to open, so no time is set for it. Instead each core is asked for a small durable
//! write on its drive: before anything is begun, and then again for as long as it takes. If one does not do that in
//! time, whoever asked is told which. What was not begun is not begun later either, and he is told that nothing was
//! changed; what was begun goes on when the drive answers, and he is told that it may.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures_util::future::{Either, join_all, select};

use super::{
    Core, Shard,
    completion::ReplyTo,
    request::{Outcome, Reply, Request},
};
use crate::{
    error::RequestError,
    limits::DEVICE_BLOCK_BYTES_MAX,
    runtime::{File, OpenMode, PROBE, Runtime},
    signal::{Signal, Turn},
    types::CoreId,
};

/// How many times `drive_timeout` it is waited before drives are asked whether they answer, and then for their answer:
/// one that only is busy has others lead by then, and no operator sees an error.
const PATIENCE: u32 = 2;

/// The small writes of a core.
#[derive(Default)]
pub(super) struct Probes {
    under_way: Cell<bool>,
    over: Signal,
    /// Of core 0: the cores that have started, so that they should answer. Others are waited for.
    started: RefCell<BTreeSet<CoreId>>,
}

impl<R: Runtime> Core<R> {
    /// Carries out a change of the catalogue when its turn comes, and answers in time.
    pub(super) fn administer(self: &Rc<Self>, reply: ReplyTo, change: impl Future<Output = Outcome> + 'static) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let turn = match core.begin().await {
                Ok(turn) => turn,
                Err(error) => return reply.send(Err(error)),
            };
            let change = async {
                let outcome = change.await;
                drop(turn);
                if let Ok(Reply::LogCreated(log)) = &outcome {
                    core.until_led(log).await;
                }
                outcome
            };
            core.see_through(change, reply).await;
        });
    }

    /// The same with something that takes its turns itself, one for each of its steps.
    pub(super) fn administer_in_steps(self: &Rc<Self>, reply: ReplyTo, steps: impl Future<Output = Outcome> + 'static) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            match core.begin().await.map(drop) {
                Ok(()) => core.see_through(steps, reply).await,
                Err(error) => reply.send(Err(error)),
            }
        });
    }

    /// Waits for a turn, and whether all drives answer.
    async fn begin(self: &Rc<Self>) -> Result<Turn<'_>, RequestError> {
        let ready = pin!(async {
            let turn = self.admin.changes.take().await;
            (turn, self.silent_drive().await)
        });
        match select(ready, pin!(self.until_silent())).await {
            Either::Left(((turn, None), _)) => Ok(turn),
            // Else the turn of somebody else does not end.
            Either::Left(((_, Some(path)), _)) | Either::Right((path, _)) => Err(RequestError::DriveSilent { path }),
        }
    }

    /// Carries out what may begin, to its end, and answers before that if a drive does not.
    async fn see_through(self: &Rc<Self>, change: impl Future<Output = Outcome>, reply: ReplyTo) {
        let change = pin!(change);
        match select(change, pin!(self.until_silent())).await {
            Either::Left((outcome, _)) => reply.send(outcome),
            Either::Right((path, change)) => {
                tracing::warn!(drive = %path.display(), "a change of the catalogue waits for the drive to answer");
                reply.send(Err(RequestError::ChangeUnknown { path }));
                match change.await {
                    Ok(_) => tracing::warn!("the change of the catalogue that waited for a drive is made"),
                    Err(error) => tracing::warn!(%error, "the change that waited for a drive came to nothing"),
                }
            }
        }
    }

    /// Waits until some drive does not answer. Gives its folder.
    async fn until_silent(self: &Rc<Self>) -> PathBuf {
        loop {
            self.common.context.runtime.sleep(self.drive_patience()).await;
            if let Some(path) = self.silent_drive().await {
                return path;
            }
        }
    }

    fn drive_patience(&self) -> Duration {
        self.common.config.drive_timeout * PATIENCE
    }

    /// Notes which cores have started, as they do.
    pub(super) fn await_cores(self: &Rc<Self>) {
        for id in (0..self.cores as u16).map(CoreId) {
            let shard = Shard(Rc::clone(self));
            self.common.context.runtime.spawn(async move {
                if shard.call(Request::Probe(id)).await.is_ok() {
                    shard.0.admin.probes.started.borrow_mut().insert(id);
                }
            });
        }
    }

    /// The folder of a drive that does not do a small write in time.
    async fn silent_drive(self: &Rc<Self>) -> Option<PathBuf> {
        let started = self.admin.probes.started.borrow().clone();
        let all = started.into_iter().map(async |core| {
            // One that refuses the write answers.
            let answer = self.call_within(Request::Probe(core), self.drive_patience()).await;
            answer.is_none().then(|| self.common.config.drives.dir_of(core).to_path_buf())
        });
        join_all(all).await.into_iter().flatten().next()
    }

    /// Answers when a small write on this core's drive is done. One at a time: of a drive that does not answer not much
    /// is wanted.
    pub(super) fn probe(self: &Rc<Self>, reply: ReplyTo) {
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let Probes { under_way, over, .. } = &core.admin.probes;
            if under_way.replace(true) {
                over.wait_until(|| !under_way.get()).await;
            } else {
                if let Err(error) = core.write_a_block().await {
                    tracing::debug!(%error, "the drive refuses a small write");
                }
                under_way.set(false);
                over.notify();
            }
            reply.send(Ok(Reply::Probed));
        });
    }

    async fn write_a_block(&self) -> std::io::Result<()> {
        let runtime = &self.common.context.runtime;
        let path = self.common.data_dir.join(format!("{PROBE}{}", self.common.id));
        let file = runtime.open(&path, OpenMode::CreateTruncate).await?;
        file.write_at(0, Rc::new(runtime.allocate(DEVICE_BLOCK_BYTES_MAX as usize))).await?;
        file.fdatasync().await?;
        runtime.remove_file(&path).await
    }
}

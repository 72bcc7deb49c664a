//! Getting back from other copies what is damaged on this one: each damaged place that a reader, the scrub or an
//! opening finds is looked at again, its records are fetched and written over it ([`crate::log::rewrite`]).
//!
//! Where they do not fit, the whole segment is written anew ([`crate::log::renew`]); for that a copy that leads hands
//! over.
//!
//! One place after the other, so that what is fetched takes bounded memory. What cannot be repaired now, because the
//! others are away or it is not known yet to be final, is tried again for as long as it is damaged. A leader that alone
//! has what it cannot read any more gives way to the others, if these can elect another. A reader waits for the repair
//! of what he asked for, but not for ever.
//!
//! If the copy was opened when it could not read what damaged records say of producers, it does so when they are
//! repaired. Until then it takes no batch of a producer for a new one.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    member::{Member, extent, join},
    owned::Owned,
    reopening::Change,
    wait_at_most,
};
use crate::{
    error::RequestError,
    log::{
        damage::Loss,
        read::ReadRange,
        rewrite::{Look, REWRITE_BYTES_MAX, RewriteError},
    },
    replication::{Damaged, assignment::ReplicaId, message::Batches},
    runtime::Runtime,
    signal::Signal,
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// What one message brings at most, unless a batch is longer.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// How long others are asked for the records of one place: each of them a few times.
const PATIENCE: Duration = Duration::from_secs(1);

/// After a round that left something damaged.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// The same if it is only not known yet what is final: a leader says so with its next beat.
pub(super) const SHORT_PAUSE: Duration = Duration::from_millis(50);

/// How often a place whose records do not fit into it is taken for a longer one.
const WIDENINGS_MAX: usize = 8;

/// How long a reader waits for what he asked for: a round with a place that nobody gives, and one more.
pub(super) const READER_PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(super) struct Repairs {
    /// A round is under way.
    busy: Cell<bool>,
    /// When the next may begin.
    next: Cell<Duration>,
    /// What came for the place that is being repaired, and that something did, or that a round is over.
    came: RefCell<Vec<Batches<Bytes>>>,
    pub(super) news: Signal,
    /// Records that were repaired.
    records: Cell<u64>,
    /// Why something stays damaged, as it was said last: of which records.
    said: RefCell<Option<(Offset, Offset, String)>>,
}

impl Repairs {
    /// Others gave records that are wanted.
    pub(super) fn take(&self, batches: Batches<Bytes>) {
        if self.busy.get() {
            self.came.borrow_mut().push(batches);
            self.news.notify();
        }
    }

    /// How many records were repaired.
    pub(super) fn records(&self) -> u64 {
        self.records.get()
    }

    /// Why the damage that begins at `from` is not repaired, as far as was said.
    pub(super) fn why_not(&self, from: Offset) -> Option<String> {
        self.said.borrow().as_ref().filter(|(first, ..)| *first == from).map(|(.., why)| why.clone())
    }

    /// Notes why a place stays damaged. Gives whether that is news.
    fn say(&self, (from, to): (Offset, Offset), why: String) -> bool {
        let said = Some((from, to, why));
        let is_news = *self.said.borrow() != said;
        *self.said.borrow_mut() = said;
        is_news
    }

    /// What came, if that is all before `to`.
    fn all_until(&self, to: Offset) -> Option<Bytes> {
        let came = self.came.borrow();
        let is_all = came.last().is_some_and(|last| last.end >= to);
        is_all.then(|| join(&came.iter().map(|batches| batches.bytes.clone()).collect::<Vec<_>>()))
    }
}

/// Why a place stays damaged for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotNow {
    #[error("it is not known yet whether these records are final")]
    NotFinal,
    #[error(
        "no other copy has them, and too few others are there and have their memory to elect another leader: the \
         partition waits for these"
    )]
    Alone,
    #[error("no other copy has them, and others can lead: the copy is rebuilt from these")]
    Forgotten,
    #[error("the damaged place is longer than {REWRITE_BYTES_MAX} bytes")]
    TooLong,
    #[error("some of them are deleted")]
    Deleted,
    #[error("no other copy gives them")]
    NotGiven,
    #[error("the segment is to be written anew, and this copy leads: {0}")]
    Leads(String),
    #[error(transparent)]
    Unreadable(#[from] RequestError),
    #[error(transparent)]
    Refused(#[from] RewriteError),
}

impl<R: Runtime> Member<R> {
    /// Begins to repair what is damaged, if anything is.
    pub(super) fn see_to_damage(self: &Rc<Self>) {
        let owned = self.owned();
        let is_damaged = |owned: &Rc<Owned<R>>| !owned.log.losses().is_empty() || owned.log.unread().is_some();
        let is_damaged = self.withheld.lasts() || owned.as_ref().is_some_and(is_damaged);
        self.replica.borrow_mut().note_damage(is_damaged);
        let Some(owned) = owned.filter(|_| is_damaged || !self.withheld.is_empty()) else { return };
        // A log that ends at damage is mended first.
        let waits =
            self.is_closed() || self.is_changing() || owned.damage.is_some() || self.now() < self.repairs.next.get();
        if waits || planted(PlantedBug::NeverRepair) || self.repairs.busy.replace(true) {
            return;
        }
        let member = Rc::clone(self);
        self.runtime().clone().spawn_background(async move {
            let mut pause = None;
            owned.log.losses().forget_before(owned.kept_start.get());
            for loss in owned.log.losses().all() {
                if member.is_closed() || member.is_changing() || owned.retired.get() || owned.is_gone() {
                    break;
                }
                pause = pause.max(member.repair(&owned, &loss).await.err());
            }
            pause = pause.max(member.see_to_withheld(&owned).await.err());
            pause = pause.max(member.see_to_producers(&owned).await.err());
            let repairs = &member.repairs;
            repairs.next.set(pause.map_or(Duration::ZERO, |pause| member.now() + pause));
            repairs.busy.set(false);
            repairs.news.notify();
        });
    }

    /// Finds out what records say of producers that were damaged when the log was opened, if they are not any more.
    /// Gives when to try again if something is left.
    async fn see_to_producers(&self, owned: &Owned<R>) -> Result<(), Duration> {
        let Some((from, to)) = owned.log.unread() else { return Ok(()) };
        let start = owned.kept_start.get();
        if to <= start {
            // They are deleted.
            owned.log.give_up_unread();
            return Ok(());
        }
        if owned.log.losses().any_in(from.max(start), to) {
            return Ok(());
        }
        match owned.log.gather_producers(start).await {
            Ok(Some(gathered)) => {
                owned.state.borrow_mut().handle_gathered(gathered);
                Ok(())
            }
            // What is damaged still, or again, is known now.
            Ok(None) => Err(SHORT_PAUSE),
            Err(fault) => {
                tracing::warn!(copy = %self.id, %fault, "what stored batches say of producers is not known yet");
                Err(PAUSE)
            }
        }
    }

    /// A reader met damage at `offset`. Gives whether it is gone, after some time at most.
    ///
    /// Errors: `NotLeader` if this copy does not lead any more: whoever does may have what he wants.
    pub(super) async fn repaired(self: &Rc<Self>, owned: &Owned<R>, offset: Offset) -> Result<bool, RequestError> {
        let epoch = self.epoch();
        let leads_on = || self.leads() && self.epoch() == epoch;
        let is_whole = || owned.log.losses().at(offset).is_none();
        let deadline = self.now() + READER_PATIENCE;
        while leads_on() && !is_whole() && self.now() < deadline {
            self.see_to_damage();
            wait_at_most(self.runtime(), &self.repairs.news, SHORT_PAUSE).await;
        }
        if leads_on() { Ok(is_whole()) } else { Err(self.not_leader()) }
    }

    /// Gives when to try again if something is left.
    async fn repair(self: &Rc<Self>, owned: &Rc<Owned<R>>, loss: &Loss) -> Result<(), Duration> {
        let outcome = self.try_repair(owned, loss).await;
        self.repairs.came.borrow_mut().clear();
        let copy = self.id;
        match outcome {
            Ok(Some(batches)) => {
                let (from, to) = (loss.lost.from, loss.lost.to);
                tracing::warn!(%copy, file = %loss.file.display(), %from, %to, "damaged records were repaired");
                let (metrics, records) = (self.metrics(), to.0 - from.0);
                metrics.damages_repaired.add(1);
                metrics.batches_repaired.add(batches);
                metrics.records_repaired.add(records);
                self.repairs.records.set(self.repairs.records.get() + records);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(why) => Err(self.leave(owned, (loss.lost.from, loss.lost.to), &why)),
        }
    }

    /// Says why records stay damaged, if that is news. Gives when to try again.
    pub(super) fn leave(&self, owned: &Owned<R>, (from, to): (Offset, Offset), why: &NotNow) -> Duration {
        let (copy, reason) = (self.id, why.to_string());
        let is_news = self.repairs.say((from, to), reason.clone());
        match why {
            _ if !is_news => {}
            NotNow::Alone | NotNow::Forgotten => {
                tracing::error!(%copy, %from, %to, reason, "records of the copy that leads are damaged");
            }
            _ => tracing::warn!(%copy, %from, %to, reason, "damaged records are not repaired yet"),
        }
        if let NotNow::Refused(RewriteError::Fault(fault)) = why {
            owned.fence(fault.to_string());
        }
        if matches!(why, NotNow::NotFinal | NotNow::Alone) { SHORT_PAUSE } else { PAUSE }
    }

    /// Gives how many batches were written; none if nothing is damaged.
    async fn try_repair(self: &Rc<Self>, owned: &Rc<Owned<R>>, loss: &Loss) -> Result<Option<u64>, NotNow> {
        let fits = match owned.log.look_again(loss).await {
            Ok(Look::Intact) => return Ok(None),
            Ok(Look::Restored) => return Ok(Some(0)),
            Ok(Look::Lost) => true,
            // A header that its first batch does not tell.
            Err(RewriteError::Misfit { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        let (from, to) = (loss.lost.from.max(owned.kept_start.get()), loss.lost.to);
        self.check_final(from, to)?;
        if !fits {
            return self.renew(owned, loss.lost.to).await.map(Some);
        }
        match self.repair_in_place(owned, loss).await {
            Err(NotNow::TooLong | NotNow::Refused(RewriteError::Misfit { .. })) => {
                self.renew(owned, loss.lost.to).await.map(Some)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Whether others have the records from `from` to `to`, which are damaged here. If not it may be that this copy
    /// gives way for them.
    pub(super) fn check_final(self: &Rc<Self>, from: Offset, to: Offset) -> Result<(), NotNow> {
        if self.look(|replica| replica.committed()) >= to {
            return Ok(());
        }
        Err(match self.drive(|replica, now| replica.handle_damage(from, to, now)) {
            Damaged::Waits => NotNow::NotFinal,
            Damaged::Keeps => NotNow::Alone,
            Damaged::Forgets => NotNow::Forgotten,
        })
    }

    async fn repair_in_place(self: &Rc<Self>, owned: &Owned<R>, loss: &Loss) -> Result<u64, NotNow> {
        let mut loss = loss.clone();
        // The others have no more than that.
        loss.lost.from = loss.lost.from.max(owned.kept_start.get());
        for _ in 0..WIDENINGS_MAX {
            match self.fetch_and_rewrite(owned, &loss).await {
                Err(NotNow::Refused(why @ RewriteError::Misfit { .. })) => match owned.log.widened(&loss).await? {
                    Some(wider) => loss = wider,
                    None => return Err(why.into()),
                },
                outcome => return outcome,
            }
        }
        self.fetch_and_rewrite(owned, &loss).await
    }

    /// Writes the segment that has the record before `to` anew, with what is intact of it and what others give. Gives
    /// how many batches those gave.
    pub(super) async fn renew(self: &Rc<Self>, owned: &Rc<Owned<R>>, to: Offset) -> Result<u64, NotNow> {
        let (at, start) = (Offset(to.0.saturating_sub(1)), owned.kept_start.get());
        let mut renewal = match owned.log.begin_renewal(at, start).await {
            Err(RewriteError::Active { .. }) if owned.roll().await => owned.log.begin_renewal(at, start).await?,
            begun => begun?,
        };
        self.have_another_lead().await?;
        let mut given = 0;
        while let Some((next, end)) = renewal.wants() {
            let range = ReadRange { offset: next, end, max_bytes: SPARE_BYTES_MAX };
            let batches = match owned.log.read(range).await {
                Ok(pieces) => join(&pieces),
                Err(RequestError::Corrupt { .. } | RequestError::ReadFailed { .. }) => {
                    given += 1;
                    // One batch: how many bytes the others are is not known.
                    self.fetch(next, Offset(next.0 + 1)).await?
                }
                Err(error) => return Err(error.into()),
            };
            owned.log.renew(&mut renewal, &batches).await?;
        }
        let may_not = self.leads() || self.is_closed() || self.is_changing();
        if may_not || owned.retired.get() || owned.is_gone() {
            return Err(RewriteError::Ending.into());
        }
        self.change_log(Rc::clone(owned), Change::Renew(renewal));
        Ok(given)
    }

    /// Hands over if this copy leads, and waits until it leads no more.
    async fn have_another_lead(self: &Rc<Self>) -> Result<(), NotNow> {
        if !self.leads() {
            return Ok(());
        }
        let other = self.successors(self.members()).iter().next();
        let other = other.ok_or_else(|| NotNow::Leads("no other copy keeps up".to_owned()))?;
        self.hand_over(other).map_err(|error| NotNow::Leads(error.to_string()))?;
        let deadline = self.now() + PATIENCE;
        while self.leads() && self.now() < deadline && !self.is_closed() {
            self.runtime().sleep(SHORT_PAUSE).await;
        }
        if self.leads() { Err(NotNow::Leads(format!("copy {other} was not elected"))) } else { Ok(()) }
    }

    async fn fetch_and_rewrite(self: &Rc<Self>, owned: &Owned<R>, loss: &Loss) -> Result<u64, NotNow> {
        let (from, to) = (loss.lost.from, loss.lost.to);
        if loss.bytes() > REWRITE_BYTES_MAX {
            return Err(NotNow::TooLong);
        }
        let bytes = self.fetch(from, to).await?;
        Ok(owned.log.rewrite(loss, &bytes, owned.held.get().durable).await?)
    }

    /// Gets the records from `from` to `to` from others.
    async fn fetch(self: &Rc<Self>, from: Offset, to: Offset) -> Result<Bytes, NotNow> {
        self.repairs.came.borrow_mut().clear();
        if self.look(|replica| replica.committed()) < to {
            return Err(NotNow::NotFinal);
        }
        if !self.drive(|replica, now| replica.repair(from, to, now)) {
            return Err(NotNow::Deleted);
        }
        let deadline = self.now() + PATIENCE;
        loop {
            if let Some(bytes) = self.repairs.all_until(to) {
                return Ok(bytes);
            }
            let left = deadline.saturating_sub(self.now());
            if left.is_zero() || self.is_closed() {
                self.drive(|replica, _| replica.stop_repair());
                return Err(NotNow::NotGiven);
            }
            wait_at_most(self.runtime(), &self.repairs.news, left).await;
        }
    }

    /// Reads for another copy what is damaged there.
    pub(super) fn load_spare(self: &Rc<Self>, owned: Rc<Owned<R>>, to: ReplicaId, (from, until): (Offset, Offset)) {
        let range = ReadRange { offset: from, end: until, max_bytes: SPARE_BYTES_MAX };
        let member = Rc::clone(self);
        self.runtime().clone().spawn_background(async move {
            match owned.log.read(range).await.map(|pieces| extent(&join(&pieces))) {
                Ok(Some(batches)) => member.drive(|replica, _| replica.handle_spare(to, batches)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(copy = %member.id, %error, "another copy cannot be given what it lost");
                    member.note_withheld(from, &error);
                }
            }
        });
    }
}

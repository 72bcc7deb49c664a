//! A copy whose drive does not give what its log is to be opened with, or what must be read to cut it off: it is out of
//! service. A read may fail once and not again, so it is looked at again a few times, and after that now and then for
//! as long as the core lives.
//!
//! If that lasts, and the others can do without what it has, as the one of them that leads says
//! (`replication/sparing.rs`), it is given up: its folder goes, and what is opened in its place has no memory, like a
//! copy on an empty drive, and is rebuilt from that leader. As long as they cannot nothing is given up: it keeps its
//! files, and waits for the drive or for the operator. A drive that does not take writes either is left alone after a
//! few tries. Nobody can do anything for an only copy: it stays as it is until the next start.

use std::{cell::Cell, io, rc::Rc, sync::Arc, time::Duration};

use super::{
    CopyId, Core, Slot,
    completion::ReplyTo,
    member::Member,
    opening::{cannot_open, copy_dir, open_copy},
    owned::Gone,
    request::{Reply, Request},
    withheld::{LOOK_PAUSE, LOOKS},
};
use crate::{
    catalog::LogEntry,
    error::RequestError,
    log::{LogFault, recovery::Recovered},
    runtime::Runtime,
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// How often the leader is asked, once the drive had its time.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// How long the drive is left alone at most between two looks: each may read a whole segment.
const REST_MAX: Duration = Duration::from_secs(30);

/// A leader that does not answer so soon is asked again later.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is tried to give a copy up. The pause doubles each time, so that the last try is after two minutes.
const TRIES: u32 = 7;

/// A copy that is out of service, and why.
pub(super) struct Unread {
    error: RequestError,
    /// The others cannot do without it, as far as was heard.
    is_needed: Cell<bool>,
}

impl Unread {
    pub(super) fn error(&self) -> RequestError {
        self.error.clone()
    }

    /// For the operator.
    pub(super) fn problem(&self) -> String {
        let next = if self.is_needed.get() {
            "the others cannot do without it: it keeps its files, and waits for the drive"
        } else {
            "it is looked at again"
        };
        format!("the copy is out of service, since its drive does not give it: {}; {next}", self.error)
    }
}

/// Whether other copies may have what one has.
pub(super) fn has_others(entry: &LogEntry) -> bool {
    entry.replication().is_some() && entry.slots().count() > 1
}

/// When a copy is looked at again, and when it may be given up. Pure.
pub(super) struct Looks {
    /// How often it was looked at in vain, up to what is enough.
    made: u32,
    next: Duration,
    rest: Duration,
    /// It can be opened, as far as is known, and then not be changed: to open it once more says nothing.
    opens: bool,
    /// How often it could not be given up, and when that may be tried again.
    failed: u32,
    try_at: Duration,
}

impl Looks {
    /// It could not be opened at `now`.
    pub(super) fn at_opening(now: Duration) -> Self {
        let (next, rest) = (now + LOOK_PAUSE, ASK_PAUSE);
        Looks { made: 0, next, rest, opens: false, failed: 0, try_at: now }
    }

    /// Its log could not be changed until `now`, though that was tried as often as is enough.
    fn after_change(now: Duration) -> Self {
        Looks { made: LOOKS, next: now + REST_MAX, rest: REST_MAX, opens: true, failed: 0, try_at: now }
    }

    /// Whether the drive had its time.
    fn lasts(&self) -> bool {
        self.made >= LOOKS
    }

    fn pause(&self) -> Duration {
        if self.lasts() { ASK_PAUSE } else { LOOK_PAUSE }
    }

    /// Whether it is to be looked at. In any case once more before it is given up.
    fn is_due(&self, now: Duration, is_spared: bool) -> bool {
        now >= self.next || (is_spared && !self.opens)
    }

    fn looked(&mut self, now: Duration) {
        self.made = (self.made + 1).min(LOOKS);
        if self.lasts() {
            self.next = now + self.rest;
            self.rest = (self.rest * 2).min(REST_MAX);
        } else {
            self.next = now + LOOK_PAUSE;
        }
    }

    fn may_give_up(&self, now: Duration) -> bool {
        self.lasts() && self.failed < TRIES && now >= self.try_at
    }

    /// The drive does not take what it takes to give the copy up.
    fn could_not(&mut self, now: Duration) {
        self.failed += 1;
        self.try_at = now + ASK_PAUSE * 2u32.pow(self.failed);
    }
}

/// A copy that was opened.
type Opened<R> = (Recovered<R>, Option<Rc<Member<R>>>);

impl<R: Runtime> Core<R> {
    /// A copy is out of service: it is looked after from now on.
    pub(super) fn leave_unread(
        self: &Rc<Self>,
        (id, entry): (CopyId, Arc<LogEntry>),
        error: RequestError,
        looks: Looks,
    ) {
        let unread = Rc::new(Unread { error, is_needed: Cell::new(false) });
        self.partitions.borrow_mut().insert(id, Slot::Unread(Rc::clone(&unread)));
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move { core.look_after(id, entry, (&unread, looks)).await });
    }

    async fn look_after(self: &Rc<Self>, id: CopyId, entry: Arc<LogEntry>, (unread, mut looks): (&Rc<Unread>, Looks)) {
        let runtime = &self.common.context.runtime;
        loop {
            runtime.sleep(looks.pause()).await;
            let asks = looks.may_give_up(runtime.monotonic());
            let is_spared = asks && self.is_spared(id).await;
            unread.is_needed.set(asks && !is_spared);
            // In turn: a deletion waits until nothing is created in the log's folder any more.
            let _turn = self.openings.take().await;
            let waits =
                || matches!(self.partitions.borrow().get(&id), Some(Slot::Unread(other)) if Rc::ptr_eq(other, unread));
            if !waits() || self.common.draining.get() {
                return;
            }
            let entry = self.catalog.borrow().by_uid(id.partition.log).map_or_else(|| Arc::clone(&entry), Arc::clone);
            let outcome = self.look_at_unread((id, &entry), &mut looks, is_spared).await;
            match outcome {
                None => {}
                // Deleted meanwhile.
                Some(_) if !waits() => return,
                Some(Ok((recovered, member))) => {
                    tracing::warn!(copy = %id, end = %recovered.end, "a copy that was out of service is open");
                    return self.place(id, (entry, member), recovered);
                }
                Some(Err(fault)) => {
                    let error = cannot_open(self, id, &entry, &fault);
                    self.partitions.borrow_mut().insert(id, Slot::Broken(error));
                    return;
                }
            }
        }
    }

    /// Gives what came of it, if it is not waited any more.
    async fn look_at_unread(
        self: &Rc<Self>,
        copy: (CopyId, &LogEntry),
        looks: &mut Looks,
        is_spared: bool,
    ) -> Option<Result<Opened<R>, LogFault>> {
        let ((id, entry), now) = (copy, self.common.context.runtime.monotonic());
        if looks.is_due(now, is_spared) {
            let outcome = self.try_to_open(copy, (looks, now)).await;
            if outcome.is_some() {
                return outcome;
            }
        }
        if !is_spared || !looks.lasts() || entry.founding {
            return None;
        }
        if let Err(error) = self.give_up_copy(id, entry).await {
            looks.could_not(now);
            let tries_left = TRIES - looks.failed;
            tracing::error!(copy = %id, %error, tries_left, "the drive does not take writes either");
            return None;
        }
        *looks = Looks::at_opening(now);
        self.try_to_open(copy, (looks, now)).await
    }

    async fn try_to_open(
        self: &Rc<Self>,
        (id, entry): (CopyId, &LogEntry),
        (looks, now): (&mut Looks, Duration),
    ) -> Option<Result<Opened<R>, LogFault>> {
        let outcome = open_copy(self, id, entry).await;
        if let Err(fault @ (LogFault::Unread { .. } | LogFault::Full { .. })) = &outcome {
            looks.looked(now);
            if looks.lasts() {
                tracing::error!(copy = %id, %fault, "the drive does not give a copy: out of service");
            }
            return None;
        }
        Some(outcome)
    }

    /// Whether the others can do without what a copy of this core has.
    async fn is_spared(self: &Rc<Self>, id: CopyId) -> bool {
        if self.common.trust.borrow().fence().is_some() {
            return false;
        }
        let answer = self.call_within(Request::Spare(id), ANSWER_PATIENCE).await;
        matches!(answer, Some(Ok(Reply::Spared(true)))) || planted(PlantedBug::SpareAnybody)
    }

    async fn give_up_copy(&self, id: CopyId, entry: &LogEntry) -> io::Result<()> {
        let data_dir = &self.common.data_dir;
        self.move_away(data_dir, &copy_dir(data_dir, &entry.name, id)).await?;
        // What comes in its place begins without a record.
        self.common.leaving.closed.borrow_mut().remove(&id);
        self.common.context.metrics.copies_given_up.add(1);
        tracing::error!(
            copy = %id, log = %entry.name,
            "A COPY IS GIVEN UP, since its drive does not give it and the others can do without: it is rebuilt"
        );
        Ok(())
    }

    /// Answers whether the copy that leads can do without `id`.
    pub(super) fn tell_spared(&self, id: CopyId, reply: ReplyTo) {
        let spared = self.owned(id.partition).map(|owned| {
            let member = owned.member.as_ref().filter(|member| !member.is_closed());
            member.is_some_and(|member| member.spares(id.copy))
        });
        reply.send(spared.map(Reply::Spared));
    }
}

/// Why the log of a copy could not be opened anew.
pub(super) enum NotReopened {
    /// The drive does not give what that takes. The log is durable up to there, as far as is known.
    Unread(LogFault, Offset),
    /// Nor what it takes to change the log.
    Unchanged(LogFault),
    /// Something else.
    Closed(String),
}

impl<R: Runtime> Member<R> {
    /// Does what must read something first. What the drive does not give once it may give the next time.
    pub(super) async fn patiently(&self, change: impl AsyncFn() -> Result<(), LogFault>) -> Result<(), LogFault> {
        for _ in 1..LOOKS {
            match change().await {
                Err(fault @ LogFault::Unread { .. }) => tracing::warn!(copy = %self.id, %fault, "it is tried again"),
                done => return done,
            }
            self.runtime().sleep(LOOK_PAUSE).await;
        }
        change().await
    }

    /// The log is not open any more.
    pub(super) async fn give_place(self: &Rc<Self>, why: NotReopened) {
        let Some(core) = self.core.upgrade() else { return };
        let entry = core.catalog.borrow().by_uid(self.id.partition.log).map(Arc::clone);
        let entry = entry.filter(|entry| has_others(entry));
        let now = self.now();
        let (fault, end, looks) = match why {
            NotReopened::Closed(reason) => return self.close(&reason),
            NotReopened::Unread(fault, end) => (fault, end, Looks::at_opening(now)),
            NotReopened::Unchanged(fault) => (fault, Offset(0), Looks::after_change(now)),
        };
        let Some(entry) = entry else { return self.close(&fault.to_string()) };
        if let Some(owned) = core.copy(self.id) {
            owned.end(Gone::Elsewhere(core.led_elsewhere(self.id.partition))).await;
        }
        core.common.leaving.note_closed(self.id, end);
        let error = cannot_open(&core, self.id, &entry, &fault);
        core.leave_unread((self.id, entry), error, looks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_drive_gets_a_second_and_rests_longer_and_longer_after_that() {
        let mut looks = Looks::at_opening(ms(0));
        for look in 1..=5 {
            assert!(!looks.lasts() && !looks.may_give_up(ms(200 * look)) && looks.pause() == LOOK_PAUSE);
            assert!(!looks.is_due(ms(200 * look - 1), false) && looks.is_due(ms(200 * look), false));
            looks.looked(ms(200 * look));
        }
        assert!(looks.lasts() && looks.may_give_up(ms(1_000)) && looks.pause() == ASK_PAUSE);
        assert!(looks.is_due(ms(1_000), true), "once more before it is given up");
        let (mut now, mut rests) = (ms(1_000), Vec::new());
        for _ in 0..7 {
            rests.push((looks.next - now).as_secs());
            now = looks.next;
            looks.looked(now);
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_drive_that_takes_no_writes_is_left_alone_after_a_few_tries() {
        let mut looks = Looks::after_change(ms(0));
        let (mut now, mut pauses) = (ms(0), Vec::new());
        while looks.failed < TRIES {
            assert!(looks.may_give_up(now));
            assert_eq!(looks.is_due(now, true), now >= REST_MAX, "it can be opened");
            looks.could_not(now);
            assert!(!looks.may_give_up(now));
            pauses.push((looks.try_at - now).as_secs());
            now = looks.try_at;
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128]);
        assert!(!looks.may_give_up(now + REST_MAX * 1_000) && looks.is_due(REST_MAX, false));
    }
}

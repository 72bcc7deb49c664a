//! What a copy that leads tells only when others have confirmed that it does: reads, which a read quorum confirms, and
//! that an append is refused for good by what the log has, which a write quorum does ([`crate::replication::Replica`]).

use std::{cell::Cell, rc::Rc, time::Duration};

use super::{completion::ReplyTo, member::Member, wait_at_most};
use crate::{
    error::RequestError,
    replication::ReadTicket,
    runtime::Runtime,
    signal::Signal,
    testing::bug::{PlantedBug, planted},
};

/// How long a refusal waits for others to confirm it, before whoever is refused is to ask again.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);

/// What was confirmed in this reign.
#[derive(Default)]
pub(super) struct Confirmed {
    /// The last read that may be answered.
    reads: Cell<ReadTicket>,
    /// The last refusal that may be given.
    refusals: Cell<ReadTicket>,
    /// More may be answered or refused, or the leader is another.
    pub(super) news: Signal,
}

impl Confirmed {
    /// Each reign counts its tickets anew.
    pub(super) fn begin_reign(&self) {
        self.reads.set(ReadTicket::default());
        self.refusals.set(ReadTicket::default());
    }

    /// Reads up to this one may be answered.
    pub(super) fn note_reads(&self, through: ReadTicket) {
        self.reads.set(through);
        self.news.notify();
    }

    /// Refusals up to this one may be given.
    pub(super) fn note_refusals(&self, through: ReadTicket) {
        self.refusals.set(through);
        self.news.notify();
    }
}

impl<R: Runtime> Member<R> {
    /// Whether reads are to be confirmed by other copies.
    pub(super) fn confirms_reads(&self) -> bool {
        self.replica.borrow().ballot().config.current.read_quorum() > 1 && !planted(PlantedBug::ReadUnconfirmed)
    }

    /// Waits until a read that comes now may be answered with everything that is visible then.
    ///
    /// Errors: `NotLeader`.
    pub(super) async fn confirm_read(self: &Rc<Self>) -> Result<(), RequestError> {
        if self.is_closed() {
            return Err(self.not_leader());
        }
        let ticket = self.drive(|replica, now| replica.ask(now)).map_err(|_| self.not_leader())?;
        self.until_confirmed(ticket, &self.confirmed.reads, None).await
    }

    /// Answers an append with what its log says against it, which must be the log that counts.
    pub(super) fn refuse(self: &Rc<Self>, refusal: RequestError, reply: ReplyTo) {
        if self.replica.borrow().is_enough_alone() || planted(PlantedBug::RefuseUnconfirmed) {
            return reply.send(Err(refusal));
        }
        let member = Rc::clone(self);
        self.runtime().spawn(async move {
            let refusal = member.confirm_lead().await.err().unwrap_or(refusal);
            reply.send(Err(refusal));
        });
    }

    /// Waits until it is sure that this copy led when this was called, so that what it refuses by its log then is not
    /// in another's; not for ever, since others may be away.
    ///
    /// Errors: `NotLeader`.
    async fn confirm_lead(self: &Rc<Self>) -> Result<(), RequestError> {
        let ticket = self.drive(|replica, now| replica.ask_whether_it_leads(now)).map_err(|_| self.not_leader())?;
        self.until_confirmed(ticket, &self.confirmed.refusals, Some(self.now() + REFUSAL_PATIENCE)).await
    }

    /// Waits until `ticket` of this reign is among those `confirmed`.
    ///
    /// Errors: `NotLeader` if the reign is over before, or `deadline` has come.
    async fn until_confirmed(
        &self,
        ticket: ReadTicket,
        confirmed: &Cell<ReadTicket>,
        deadline: Option<Duration>,
    ) -> Result<(), RequestError> {
        let epoch = self.epoch();
        let is_over = || !self.leads() || self.epoch() != epoch;
        while confirmed.get() < ticket && !is_over() {
            match deadline.map(|deadline| deadline.saturating_sub(self.now())) {
                None => self.confirmed.news.wait().await,
                Some(Duration::ZERO) => break,
                Some(left) => wait_at_most(self.runtime(), &self.confirmed.news, left).await,
            }
        }
        if confirmed.get() >= ticket && !is_over() { Ok(()) } else { Err(self.not_leader()) }
    }
}

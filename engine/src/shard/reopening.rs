//! The log of a copy that is changed as nothing but a new opening can take over: cut off, begun anew, mended, or given
//! a segment that was written anew. Meanwhile the copy does nothing else; its effects wait.

use std::{fmt, rc::Rc, time::Duration};

use super::{ballot_store, member::Member, owned::Owned, unread::NotReopened};
use crate::{
    log::{LogFault, damage::Loss, renew::Renewal},
    record::ProducerHistory,
    replication::ballot::{Ballot, Memory},
    runtime::Runtime,
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// How often it is looked whether a log can be used again.
pub(super) const LOG_BUSY_PAUSE: Duration = Duration::from_millis(5);

/// What has to happen to a log before it can go on.
pub(super) enum Change<R: Runtime> {
    /// See [`Effect::Truncate`](crate::replication::effect::Effect::Truncate).
    Cut(Offset),
    /// See [`Effect::Restart`](crate::replication::effect::Effect::Restart).
    Restart(Offset),
    /// It ends at damage, and there is a leader: what is behind the damage is of no more use.
    Mend,
    /// A damaged segment was written anew.
    Renew(Renewal<R>),
}

impl<R: Runtime> fmt::Display for Change<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Cut(at) => write!(f, "it is cut off at {at}, to agree with its leader's"),
            Change::Restart(at) => write!(f, "it begins anew at {at}, as its leader's does"),
            Change::Mend => f.write_str("it ends at the damage"),
            Change::Renew(renewal) => write!(f, "{renewal} takes its place"),
        }
    }
}

impl<R: Runtime> Member<R> {
    /// Changes the log as nothing but a new opening can take over, and opens it anew.
    pub(super) fn change_log(self: &Rc<Self>, owned: Rc<Owned<R>>, change: Change<R>) {
        self.log_busy.set(true);
        let member = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            tracing::info!(copy = %member.id, %change, "the log is opened anew");
            owned.retire().await;
            let mut losses = owned.log.losses().all();
            let cut_at = match &change {
                Change::Cut(at) | Change::Restart(at) => Some(*at),
                Change::Mend | Change::Renew(_) => None,
            };
            let end = cut_at.unwrap_or_else(|| owned.log.end());
            let changed = match change {
                Change::Cut(_) if planted(PlantedBug::SkipTruncation) => Ok(()),
                Change::Cut(to) => member.patiently(async || owned.log.cut(to).await).await,
                Change::Restart(at) => {
                    let told = member.told_producers.take().until(at);
                    let forgets = planted(PlantedBug::ForgetProducersWhenBegunAnew);
                    let producers = if forgets { ProducerHistory::default() } else { told };
                    owned.log.restart(at, &producers).await
                }
                Change::Mend => member.patiently(async || owned.log.mend().await).await,
                Change::Renew(renewal) => {
                    losses.retain(|loss| !renewal.is_of(&loss.file));
                    owned.log.put_in_place(renewal).await
                }
            };
            let reopened = match changed {
                Ok(()) => member.reopen(owned, (losses, end)).await,
                Err(fault @ LogFault::Unread { .. }) => Err(NotReopened::Unchanged(fault)),
                Err(fault) => Err(NotReopened::Closed(fault.to_string())),
            };
            if let Err(why) = reopened {
                member.give_place(why).await;
                return member.log_busy.set(false);
            }
            member.log_busy.set(false);
            if let Some(at) = cut_at {
                let now = member.common.context.runtime.monotonic();
                member.replica.borrow_mut().handle_truncated(at, now);
            }
            member.carry_effects();
        });
    }

    async fn reopen(
        self: &Rc<Self>,
        owned: Rc<Owned<R>>,
        (losses, end): (Vec<Loss>, Offset),
    ) -> Result<(), NotReopened> {
        let Some(core) = self.core.upgrade() else { return Ok(()) };
        owned.log.close().await;
        let entry = owned.entry.borrow().clone();
        drop(owned);
        let recovered = core.recover(self.id, &entry, end).await.map_err(|fault| match fault {
            LogFault::Unread { .. } => NotReopened::Unread(fault, end),
            fault => NotReopened::Closed(fault.to_string()),
        })?;
        if recovered.end < end {
            // The drive answers with other bytes than it had. The next opening may take them for a torn tail.
            let noted = self.note_loss().await;
            let found = recovered.end;
            let noted = noted.map_or_else(|fault| fault.to_string(), |()| "it will be rebuilt".to_owned());
            let reason = format!("its log ended at {end} and was found to end at {found}; {noted}");
            return Err(NotReopened::Closed(reason));
        }
        if let Some(damage) = &recovered.damage {
            let reason = format!("{damage}; remove its folder to have the copy rebuilt from the others");
            return Err(NotReopened::Closed(reason));
        }
        // What is damaged in the middle is repaired, if it is still there.
        recovered.log.remember(losses);
        core.place(self.id, (entry, Some(Rc::clone(self))), recovered);
        Ok(())
    }

    /// Has the next opening know that the log lacks something that it had.
    async fn note_loss(&self) -> Result<(), LogFault> {
        self.until_saved().await;
        let ballot = Ballot { memory: Memory::Lost, ..*self.replica.borrow().ballot() };
        ballot_store::save(self.runtime(), &self.dir, (self.id.partition, self.id.copy), &ballot).await
    }
}

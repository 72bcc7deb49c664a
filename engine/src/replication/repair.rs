//! Getting records back from another replica that are damaged here.
//!
//! Below what is known to be on a write quorum whoever has a record at an offset, of the same epoch, has the same
//! bytes, and can give them in any reign; above it nothing is fetched: there a leader says what the log is. Only who
//! wants them need know that they are final, and looks at the epoch. Members are asked one after the other.

use std::time::Duration;

use super::{
    assignment::ReplicaId,
    effect::Effect,
    message::{Batches, Message},
    own::Own,
};
use crate::types::Offset;

/// Records that are wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Repair {
    /// The first that is still missing.
    from: Offset,
    /// The offset after the last; above `from`.
    until: Offset,
    /// Who was asked last.
    asked: ReplicaId,
    asked_at: Duration,
}

impl Repair {
    /// Asks for the records from `from` to `until`, or for those of them that are final.
    pub(super) fn begin<B>(own: &mut Own<B>, from: Offset, until: Offset, now: Duration) -> Option<Self> {
        let until = until.min(own.committed()).min(own.held.received);
        let mut repair = Repair { from, until, asked: own.id, asked_at: now };
        (own.log_start <= from && from < until).then(|| {
            repair.ask(own, now);
            repair
        })
    }

    fn ask<B>(&mut self, own: &mut Own<B>, now: Duration) {
        let others = own.ballot.config.replicas().without(own.id);
        let after = others.iter().find(|replica| *replica > self.asked);
        let Some(next) = after.or_else(|| others.iter().next()) else { return };
        (self.asked, self.asked_at) = (next, now);
        own.send(next, Message::Want { from: self.from, until: self.until });
    }

    /// Records come. Gives whether that was all.
    pub(super) fn handle_spare<B>(&mut self, own: &mut Own<B>, batches: Batches<B>, now: Duration) -> bool {
        if self.from < own.log_start {
            // It was deleted meanwhile.
            return true;
        }
        // A batch may begin before the first record that is damaged: batches are replaced whole.
        let fits = batches.from <= self.from && batches.end > self.from && batches.end <= own.held.received;
        if !fits || own.epochs.at(self.from) != batches.epoch {
            return false;
        }
        self.from = batches.end;
        own.effect(Effect::Rewrite(batches));
        if self.from < self.until {
            self.ask(own, now);
        }
        self.from >= self.until
    }

    /// Asks another replica if this one does not answer.
    pub(super) fn tick<B>(&mut self, own: &mut Own<B>, now: Duration) {
        if now.saturating_sub(self.asked_at) >= own.pace.resend {
            self.ask(own, now);
        }
    }

    #[cfg(test)]
    pub(super) fn forget_times(&mut self) {
        self.asked_at = Duration::ZERO;
    }
}

/// Another replica wants records that it knows to be final: have those read that are durable here.
pub(super) fn give<B>(own: &mut Own<B>, to: ReplicaId, from: Offset, until: Offset) {
    let until = until.min(own.held.durable);
    if own.is_intact() && own.cutting.is_none() && from >= own.log_start && from < until {
        let until = until.min(own.epochs.end_of(own.epochs.at(from), own.held.received).end);
        own.effect(Effect::LoadSpare { to, from, until });
    }
}

//! Reads that must see every write that was acknowledged before them.
//!
//! A leader may be deposed without knowing it. So it asks its followers before it answers: R replicas, itself among
//! them, must have promised nothing to a later leader. A write of a later reign needs a write quorum that promised, and
//! with `R + W > N` one of those who confirm is in it; so there was no such write when the read came. One round serves
//! all reads that came before it began.
//!
//! In the same way a leader finds out that its log was *the* log when it decided to refuse something by it. For that a
//! write quorum must confirm, which meets every election quorum: no later leader was elected yet, or none whom anybody
//! remembers who voted for it, itself included; and whose reign has acknowledged nothing then, and never will.

use super::assignment::{ReplicaId, ReplicaSet};

/// Names a read that waits for its confirmation. Tickets grow: a later read has a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadTicket(pub u64);

/// A round of questions under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Round {
    /// Counts the rounds of the reign.
    number: u64,
    /// The last read that came before the round began.
    through: ReadTicket,
    /// Who confirmed, the leader among them.
    confirmed: ReplicaSet,
}

/// A leader's reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Reads {
    /// The ticket of the last read that came.
    last: ReadTicket,
    /// The ticket of the last read that was answered; not above `last`.
    answered: ReadTicket,
    /// The round under way, if there is one. Its reads are above `answered`, and not above `last`.
    round: Option<Round>,
    /// The number of the last round.
    rounds: u64,
}

/// The rounds that confirm refusals have higher numbers than this, those that confirm reads lower ones.
const REFUSALS: u64 = 1_000_000_000_000_000;

impl Reads {
    /// The same for who is to be refused something.
    pub(super) fn of_refusals() -> Self {
        Reads { rounds: REFUSALS, ..Reads::default() }
    }

    /// A read comes.
    pub(super) fn ask(&mut self) -> ReadTicket {
        self.last.0 += 1;
        self.last
    }

    /// Begins a round if reads wait and none is under way. Gives its number.
    fn begin(&mut self, leader: ReplicaId) -> Option<u64> {
        if self.round.is_some() || self.answered == self.last {
            return None;
        }
        self.rounds += 1;
        let confirmed = [leader].into_iter().collect();
        self.round = Some(Round { number: self.rounds, through: self.last, confirmed });
        Some(self.rounds)
    }

    /// Begins a round if there is reason to, for which `ask` asks the others, and ends it if those who have confirmed
    /// it are enough. Gives the last read that may be answered.
    pub(super) fn turn(
        &mut self,
        leader: ReplicaId,
        ask: impl FnOnce(u64),
        is_enough: impl Fn(ReplicaSet) -> bool,
    ) -> Option<ReadTicket> {
        if let Some(round) = self.begin(leader) {
            ask(round);
        }
        self.end(is_enough)
    }

    /// The round under way, and who has not confirmed it.
    pub(super) fn open_round(&self) -> Option<(u64, ReplicaSet)> {
        self.round.map(|round| (round.number, round.confirmed))
    }

    /// A follower confirms a round.
    pub(super) fn confirm(&mut self, from: ReplicaId, number: u64) {
        if let Some(round) = self.round.as_mut().filter(|round| round.number == number) {
            round.confirmed.insert(from);
        }
    }

    /// Ends the round if those who have confirmed it are enough. Gives the last read that may be answered.
    fn end(&mut self, is_enough: impl Fn(ReplicaSet) -> bool) -> Option<ReadTicket> {
        let round = self.round.filter(|round| is_enough(round.confirmed))?;
        assert!(round.through > self.answered && round.through <= self.last, "{round:?} of {self:?}");
        self.round = None;
        self.answered = round.through;
        Some(round.through)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::assignment::{Configuration, Members},
        *,
    };

    #[test]
    fn a_read_is_not_answered_by_a_round_that_began_before_it() {
        let members = Members::new((0..3).map(ReplicaId).collect(), 2, 2).unwrap();
        let config = Configuration::founding(members);
        let is_enough = |confirmed| config.is_read_quorum(confirmed);
        let mut reads = Reads::default();
        let first = reads.ask();
        assert_eq!(reads.begin(ReplicaId(0)), Some(1));
        let second = reads.ask();
        assert_eq!((reads.begin(ReplicaId(0)), reads.end(is_enough)), (None, None));
        reads.confirm(ReplicaId(1), 1);
        assert_eq!(reads.end(is_enough), Some(first));
        assert_eq!(reads.begin(ReplicaId(0)), Some(2));
        reads.confirm(ReplicaId(1), 1);
        assert_eq!(reads.end(is_enough), None, "a confirmation of the round before came again");
        reads.confirm(ReplicaId(2), 2);
        assert_eq!(reads.end(is_enough), Some(second));
        assert_eq!(reads.begin(ReplicaId(0)), None);
    }
}

//! An idempotent producer's side of one partition: which mark its next batch bears, and what an answer, or the lack of
//! one, means for it. The partition's side is [`crate::partition::producers`].
//!
//! One batch at a time: it is sent again, unchanged, until its fate is known. When the producer must give up not
//! knowing it, it begins a new epoch, which shuts the old one out: a request that is still on its way somewhere is
//! refused when it arrives, and cannot be stored after what is sent next. The same when the partition has lost earlier
//! batches, which were acknowledged at a level that did not survive.

use crate::{
    error::{ErrorClass, RequestError},
    types::{ProducerId, Sequence},
};

/// What a batch is marked with before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The producer.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: u32,
    /// The sequence of the batch's first record.
    pub sequence: Sequence,
}

/// Who decides about the producer's epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epochs {
    /// The producer, whose id nobody else has.
    Own,
    /// The user: an id that outlives the process, of which a higher epoch is its next life.
    Given,
}

/// What an attempt that did not succeed came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may be stored, or be stored yet.
    Unknown,
    /// It was not stored, for a reason that may pass, and that says nothing of the attempts before.
    NotNow,
    /// It was not stored because it would never be.
    Refused,
    /// The same, and the partition first saw that the batch is not there.
    RefusedAsNew,
    /// The partition is at another sequence.
    OutOfSequence {
        /// Which one.
        expected: Sequence,
    },
    /// The partition does not know the producer.
    Forgotten,
    /// The producer's epoch is over.
    Fenced,
}

impl From<&RequestError> for Failure {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::OutOfSequence { expected, .. } => Failure::OutOfSequence { expected: *expected },
            RequestError::UnknownProducer { .. } => Failure::Forgotten,
            RequestError::ProducerFenced { .. } => Failure::Fenced,
            RequestError::WrongOffset { .. } => Failure::RefusedAsNew,
            error => match error.class() {
                ErrorClass::Unknown => Failure::Unknown,
                // Until a restart, which an attempt before this one may be waiting for.
                ErrorClass::Retriable | ErrorClass::Fenced => Failure::NotNow,
                ErrorClass::Refused | ErrorClass::Corrupt => Failure::Refused,
            },
        }
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send it again as it is.
    Again,
    /// It is not stored: send it again under the new stamp.
    Renumbered,
    /// It is not stored and will not be.
    Refused,
    /// Nobody knows whether it is stored.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Sequencer {
    stamp: Stamp,
    epochs: Epochs,
    /// A batch is under way.
    under_way: bool,
    /// An attempt to store it has an unknown fate.
    in_doubt: bool,
    /// Nothing can be sent any more: the epoch is not ours to change.
    over: bool,
}

impl Sequencer {
    /// A producer that has sent nothing to the partition in this epoch.
    pub fn new(id: ProducerId, epoch: u32, epochs: Epochs) -> Self {
        assert!(id.0 != 0, "0 is no producer");
        let stamp = Stamp { id, epoch, sequence: Sequence(0) };
        Sequencer { stamp, epochs, under_way: false, in_doubt: false, over: false }
    }

    /// Begins the next batch; `None` if the epoch is over and only the user can begin another one.
    pub fn begin(&mut self) -> Option<Stamp> {
        if self.under_way {
            // Whoever sent the last one went away before its fate was known.
            self.in_doubt = true;
            self.give_up();
        }
        self.under_way = !self.over;
        self.under_way.then_some(self.stamp)
    }

    /// The stamp of the batch under way.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Whether an attempt of the batch under way may have stored it.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// The batch under way, of `count` records, is stored.
    pub fn stored(&mut self, count: u32) {
        assert!(self.under_way && count > 0, "{count} records of no batch are stored");
        self.stamp.sequence = Sequence(self.stamp.sequence.0.wrapping_add(count));
        (self.under_way, self.in_doubt) = (false, false);
    }

    /// An attempt failed. After [`Next::Again`] the caller may also [`Sequencer::give_up`].
    pub fn failed(&mut self, failure: Failure) -> Next {
        assert!(self.under_way, "{failure:?} of no batch");
        match failure {
            Failure::Unknown => {
                self.in_doubt = true;
                Next::Again
            }
            Failure::NotNow => Next::Again,
            Failure::Refused => self.give_up(),
            Failure::RefusedAsNew => {
                // An attempt that is still on its way must not be taken for the next batch.
                self.leave_epoch_if(self.in_doubt);
                self.end(Next::Refused)
            }
            // The partition has lost batches before this one, so it does not have this one either.
            Failure::OutOfSequence { expected } if self.is_behind(expected) => self.renumber(),
            Failure::OutOfSequence { .. } => self.give_up(),
            Failure::Forgotten if self.in_doubt => self.give_up(),
            Failure::Forgotten => self.renumber(),
            Failure::Fenced => {
                let next = self.give_up();
                self.over = true;
                next
            }
        }
    }

    /// The batch is sent no more.
    pub fn give_up(&mut self) -> Next {
        if !self.in_doubt {
            return self.end(Next::Refused);
        }
        match self.epochs {
            Epochs::Own => self.leave_epoch_if(true),
            Epochs::Given => self.over = true,
        }
        self.end(Next::Unknown)
    }

    fn end(&mut self, next: Next) -> Next {
        (self.under_way, self.in_doubt) = (false, false);
        next
    }

    fn renumber(&mut self) -> Next {
        if self.epochs == Epochs::Given {
            return self.end(Next::Refused);
        }
        self.leave_epoch_if(true);
        self.in_doubt = false;
        if self.over { self.end(Next::Refused) } else { Next::Renumbered }
    }

    fn leave_epoch_if(&mut self, wanted: bool) {
        if !wanted || self.epochs == Epochs::Given {
            return;
        }
        match self.stamp.epoch.checked_add(1) {
            Some(epoch) => (self.stamp.epoch, self.stamp.sequence) = (epoch, Sequence(0)),
            None => self.over = true,
        }
    }

    /// Whether `expected` comes before our sequence, in a space where 0 follows the largest.
    fn is_behind(&self, expected: Sequence) -> bool {
        (self.stamp.sequence.0.wrapping_sub(expected.0) as i32) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Sequencer {
        Sequencer::new(ProducerId(7), 3, Epochs::Own)
    }

    fn given() -> Sequencer {
        Sequencer::new(ProducerId(7), 3, Epochs::Given)
    }

    fn stamp(epoch: u32, sequence: u32) -> Option<Stamp> {
        Some(Stamp { id: ProducerId(7), epoch, sequence: Sequence(sequence) })
    }

    #[test]
    fn a_batch_keeps_its_stamp_until_it_is_stored() {
        let mut producer = own();
        assert_eq!(producer.begin(), stamp(3, 0));
        for (failure, in_doubt) in [(Failure::NotNow, false), (Failure::Unknown, true), (Failure::NotNow, true)] {
            assert_eq!((producer.failed(failure), Some(producer.stamp())), (Next::Again, stamp(3, 0)));
            assert_eq!(producer.is_in_doubt(), in_doubt, "after {failure:?}");
        }
        producer.stored(5);
        assert!(!producer.is_in_doubt());
        assert_eq!(producer.begin(), stamp(3, 5));
    }

    #[test]
    fn a_refusal_is_one_unless_an_attempt_before_it_may_have_been_stored() {
        let mut producer = own();
        producer.begin();
        assert_eq!(producer.failed(Failure::Refused), Next::Refused);
        assert_eq!(producer.begin(), stamp(3, 0), "the sequence was not used");
        producer.failed(Failure::Unknown);
        assert_eq!(producer.failed(Failure::Refused), Next::Unknown);
        assert_eq!(producer.begin(), stamp(4, 0), "what is on its way must be shut out");
    }

    #[test]
    fn a_condition_that_fails_says_that_the_batch_is_not_there() {
        let mut producer = own();
        producer.begin();
        producer.failed(Failure::Unknown);
        assert_eq!(producer.failed(Failure::RefusedAsNew), Next::Refused);
        assert_eq!(producer.begin(), stamp(4, 0));
        assert_eq!(producer.failed(Failure::RefusedAsNew), Next::Refused);
        assert_eq!(producer.begin(), stamp(4, 0));
    }

    #[test]
    fn a_sequence_that_the_partition_expects_later_says_nothing_of_a_batch_in_doubt() {
        let mut producer = own();
        producer.begin();
        producer.failed(Failure::Unknown);
        assert_eq!(producer.failed(Failure::OutOfSequence { expected: Sequence(7) }), Next::Unknown);
        producer.begin();
        assert_eq!(producer.failed(Failure::OutOfSequence { expected: Sequence(7) }), Next::Refused);
    }

    #[test]
    fn when_the_partition_lost_earlier_batches_the_rest_goes_on_in_a_new_epoch() {
        for failure in [Failure::OutOfSequence { expected: Sequence(2) }, Failure::Forgotten] {
            for (mut producer, after) in [(own(), Next::Renumbered), (given(), Next::Refused)] {
                producer.begin();
                producer.stored(5);
                producer.begin();
                assert_eq!(producer.failed(failure), after);
            }
        }
        let mut producer = own();
        producer.begin();
        producer.stored(5);
        producer.begin();
        producer.failed(Failure::Unknown);
        assert_eq!(producer.failed(Failure::OutOfSequence { expected: Sequence(2) }), Next::Renumbered);
        assert_eq!((Some(producer.stamp()), producer.is_in_doubt()), (stamp(4, 0), false));
        producer.failed(Failure::Unknown);
        assert_eq!(producer.failed(Failure::Forgotten), Next::Unknown, "it may be stored and forgotten");
    }

    #[test]
    fn one_who_goes_away_leaves_the_epoch_behind() {
        let mut producer = own();
        producer.begin();
        assert_eq!(producer.begin(), stamp(4, 0));
        let mut producer = given();
        producer.begin();
        assert_eq!(producer.begin(), None);
    }

    #[test]
    fn a_fenced_producer_sends_no_more() {
        let mut producer = own();
        producer.begin();
        assert_eq!(producer.failed(Failure::Fenced), Next::Refused);
        assert_eq!(producer.begin(), None);
    }

    #[test]
    fn sequences_are_compared_across_their_end() {
        let mut producer = own();
        producer.begin();
        producer.stored(u32::MAX);
        producer.begin();
        producer.stored(3);
        assert_eq!(producer.begin(), stamp(3, 2));
        assert_eq!(producer.failed(Failure::OutOfSequence { expected: Sequence(u32::MAX) }), Next::Renumbered);
    }
}

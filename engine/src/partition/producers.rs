//! What a batch of an idempotent producer is to a partition: new, the same again, or out of turn.
//!
//! A producer numbers its records for each partition, from 0 in each of its epochs, and repeats a batch unchanged until
//! it knows what became of it. So the next batch is the one that continues the last; one of the last batches again is
//! answered with where it is; a gap means that a batch before it is missing, and is refused. A higher epoch is a new
//! life of the producer and shuts the older ones out, whose batches may still be on their way.

use std::cmp::Ordering;

use crate::{
    error::RequestError,
    record::{ProducerHistory, ProducerMark},
    testing::bug::{PlantedBug, planted},
    types::{Offset, Sequence},
};

/// What an append that is not refused is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// New: it gets the next offset.
    Fresh,
    /// A batch that is there already, or on its way to the device: nothing is to be stored.
    Duplicate {
        /// Where its first record is.
        base_offset: Offset,
        /// How many records.
        count: u32,
    },
}

/// Judges a batch by what the partition's producers wrote so far.
///
/// Errors: `ProducerFenced`, `OutOfSequence`, `UnknownProducer`, `SequenceReused`. Nothing was stored.
pub fn judge(history: &ProducerHistory, mark: &ProducerMark) -> Result<Standing, RequestError> {
    let (producer, got) = (mark.id, mark.sequence);
    let Some(kept) = history.get(mark.id) else {
        // Only the first batch needs no predecessor. To believe another one would store it again if it was forgotten.
        return match got {
            Sequence(0) => Ok(Standing::Fresh),
            sequence => Err(RequestError::UnknownProducer { producer, sequence }),
        };
    };
    match mark.epoch.cmp(&kept.epoch()) {
        Ordering::Less if !planted(PlantedBug::SkipEpochCheck) => {
            let (epoch, current) = (mark.epoch, kept.epoch());
            return Err(RequestError::ProducerFenced { producer, epoch, current });
        }
        Ordering::Less => return Ok(Standing::Fresh),
        Ordering::Greater if got == Sequence(0) => return Ok(Standing::Fresh),
        Ordering::Greater => return Err(RequestError::OutOfSequence { producer, expected: Sequence(0), got }),
        Ordering::Equal => {}
    }
    let expected = kept.newest().next_sequence();
    if let Some(same) = kept.batches().iter().rev().find(|batch| batch.sequence == got) {
        if (same.count, same.crc) != (mark.count, mark.crc) {
            return Err(RequestError::SequenceReused { producer, sequence: got, base_offset: same.base_offset });
        }
        return Ok(Standing::Duplicate { base_offset: same.base_offset, count: same.count });
    }
    if got == expected { Ok(Standing::Fresh) } else { Err(RequestError::OutOfSequence { producer, expected, got }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{limits::PRODUCER_BATCHES_KEPT, types::ProducerId};

    const ID: ProducerId = ProducerId(7);

    fn mark(epoch: u32, sequence: u32, count: u32) -> ProducerMark {
        ProducerMark { id: ID, epoch, sequence: Sequence(sequence), count, crc: sequence ^ epoch << 16 }
    }

    /// What a partition does: judges, and stores what is new.
    struct Table {
        history: ProducerHistory,
        end: u64,
    }

    impl Table {
        fn new() -> Self {
            Table { history: ProducerHistory::default(), end: 100 }
        }

        fn append(&mut self, mark: ProducerMark) -> Result<Standing, RequestError> {
            let standing = judge(&self.history, &mark)?;
            if standing == Standing::Fresh {
                self.history.note(&mark, Offset(self.end));
                self.end += u64::from(mark.count);
            }
            Ok(standing)
        }
    }

    fn duplicate(base_offset: u64, count: u32) -> Result<Standing, RequestError> {
        Ok(Standing::Duplicate { base_offset: Offset(base_offset), count })
    }

    fn out_of_sequence(expected: u32, got: u32) -> Result<Standing, RequestError> {
        Err(RequestError::OutOfSequence { producer: ID, expected: Sequence(expected), got: Sequence(got) })
    }

    #[test]
    fn batches_that_continue_each_other_are_new_and_the_last_ones_again_are_found() {
        let mut table = Table::new();
        for number in 0..10 {
            assert_eq!(table.append(mark(3, number * 4, 4)), Ok(Standing::Fresh));
        }
        for number in 5..10u32 {
            assert_eq!(table.append(mark(3, number * 4, 4)), duplicate(100 + u64::from(number) * 4, 4));
        }
        assert_eq!(table.append(mark(3, 4 * 4, 4)), out_of_sequence(40, 16), "too old to be known");
        assert_eq!(table.append(mark(3, 40, 1)), Ok(Standing::Fresh));
    }

    #[test]
    fn a_gap_is_refused_and_so_is_a_first_batch_that_is_not_the_first() {
        let mut table = Table::new();
        let unknown = RequestError::UnknownProducer { producer: ID, sequence: Sequence(1) };
        assert_eq!(table.append(mark(0, 1, 1)), Err(unknown));
        assert_eq!(table.append(mark(0, 0, 2)), Ok(Standing::Fresh));
        assert_eq!(table.append(mark(0, 3, 1)), out_of_sequence(2, 3));
        assert_eq!(table.append(mark(0, 1, 1)), out_of_sequence(2, 1), "the middle of a batch is no batch");
    }

    #[test]
    fn another_batch_of_a_sequence_that_is_taken_is_no_duplicate() {
        let mut table = Table::new();
        table.append(mark(0, 0, 2)).unwrap();
        let reused = RequestError::SequenceReused { producer: ID, sequence: Sequence(0), base_offset: Offset(100) };
        assert_eq!(table.append(mark(0, 0, 1)), Err(reused.clone()));
        assert_eq!(table.append(ProducerMark { crc: 1, ..mark(0, 0, 2) }), Err(reused));
    }

    #[test]
    fn a_higher_epoch_begins_at_zero_and_shuts_out_the_lower_ones() {
        let mut table = Table::new();
        table.append(mark(1, 0, 5)).unwrap();
        assert_eq!(table.append(mark(2, 5, 1)), out_of_sequence(0, 5));
        assert_eq!(table.append(mark(4, 0, 1)), Ok(Standing::Fresh));
        for (epoch, sequence) in [(1, 5), (1, 0), (3, 0)] {
            let fenced = RequestError::ProducerFenced { producer: ID, epoch, current: 4 };
            assert_eq!(table.append(mark(epoch, sequence, 1)), Err(fenced));
        }
        assert_eq!(table.append(mark(4, 1, 1)), Ok(Standing::Fresh));
    }

    #[test]
    fn after_the_largest_sequence_comes_zero() {
        let mut table = Table::new();
        table.history.note(&mark(0, u32::MAX - 2, 2), Offset(50));
        assert_eq!(table.append(mark(0, u32::MAX, 3)), Ok(Standing::Fresh));
        assert_eq!(table.append(mark(0, 2, 1)), Ok(Standing::Fresh));
        assert_eq!(table.append(mark(0, u32::MAX, 3)), duplicate(100, 3));
    }

    proptest! {
        /// The model: a log of everything stored; a batch is new if it continues the last of its epoch, the same again
        /// if it is among the last ones of it, else refused. Nothing is ever stored twice or out of order.
        #[test]
        fn it_does_as_the_whole_log_would(
            tries in proptest::collection::vec((1u64..3, 0u32..3, 0u32..12, 1u32..3), 1..120),
        ) {
            let mut table = Table::new();
            let mut log: Vec<(ProducerMark, u64)> = Vec::new();
            for (id, epoch, sequence, count) in tries {
                let mark = ProducerMark { id: ProducerId(id), ..mark(epoch, sequence, count) };
                let before = table.end;
                let got = table.append(mark);
                let own = || log.iter().filter(|(old, _)| old.id == mark.id);
                let newest_epoch = own().map(|(old, _)| old.epoch).max();
                let life: Vec<_> = own().filter(|(old, _)| Some(old.epoch) == newest_epoch).copied().collect();
                let mut last_ones = life.iter().rev().take(PRODUCER_BATCHES_KEPT);
                let known = last_ones.find(|(old, _)| old.sequence == mark.sequence);
                let next = life.last().map_or(0, |(last, _)| last.sequence.0 + last.count);
                match (newest_epoch.map(|newest| epoch.cmp(&newest)), got) {
                    (Some(Ordering::Less), got) => prop_assert!(got.is_err()),
                    (None | Some(Ordering::Greater), got) => prop_assert_eq!(got.is_ok(), sequence == 0),
                    (_, Ok(Standing::Duplicate { base_offset, count })) => {
                        let (old, at) = known.expect("it is in the log");
                        prop_assert_eq!((base_offset, count, old.crc), (Offset(*at), old.count, mark.crc));
                    }
                    (_, Ok(Standing::Fresh)) => prop_assert!(known.is_none() && sequence == next),
                    (_, Err(_)) => {
                        let same = known.is_some_and(|(old, _)| old.count == mark.count);
                        prop_assert!(!same && (known.is_some() || sequence != next));
                    }
                }
                if table.end > before {
                    log.push((mark, before));
                }
            }
        }
    }
}

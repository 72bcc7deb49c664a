//! Where each reign began in a partition's log. Derived from the batch headers, and rebuilt from them.
//!
//! A record is known by its epoch and its offset: an epoch has one leader, which gives an offset once. So two logs
//! agree up to the end of the last epoch that both have, or to the earlier of its two ends, and that place is found
//! from this table alone, without comparing a byte.

use crate::types::{LeaderEpoch, Offset};

/// The end of an epoch in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochEnd {
    /// The epoch; 0, which nobody leads, stands before the first.
    pub epoch: LeaderEpoch,
    /// The offset after its last record.
    pub end: Offset,
}

/// The reigns that records of a log are from.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epochs {
    /// Epoch and offset of its first record; both grow. Only reigns that records are left of, so there are never more
    /// than batches in the log.
    starts: Vec<(LeaderEpoch, Offset)>,
}

impl Epochs {
    /// Notes that the batch at `at`, which is the end of the log, is of `epoch`.
    ///
    /// Panics if the epoch is older than the log's last: a leader stamps its own or hands on what it has.
    pub fn note(&mut self, epoch: LeaderEpoch, at: Offset) {
        assert!(epoch > LeaderEpoch(0), "a record at {at} of no reign");
        match self.starts.last() {
            Some((last, start)) => {
                assert!(epoch >= *last && at > *start, "epoch {epoch} at {at} behind {last} at {start}");
                if epoch > *last {
                    self.starts.push((epoch, at));
                }
            }
            None => self.starts.push((epoch, at)),
        }
    }

    /// The epoch of the last record; 0 if there is none.
    pub fn last(&self) -> LeaderEpoch {
        self.starts.last().map_or(LeaderEpoch(0), |(epoch, _)| *epoch)
    }

    /// The epoch of the record at `offset`, which the log has.
    pub fn at(&self, offset: Offset) -> LeaderEpoch {
        let behind = self.starts.partition_point(|(_, start)| *start <= offset);
        assert!(behind > 0, "nothing is known of a record at {offset}: {self:?}");
        self.starts[behind - 1].0
    }

    /// The last epoch that is not after `epoch`, and its end, in a log that ends at `log_end`. Before the first reign
    /// it is epoch 0, and its end is where the log's first record is.
    pub fn end_of(&self, epoch: LeaderEpoch, log_end: Offset) -> EpochEnd {
        let behind = self.starts.partition_point(|(known, _)| *known <= epoch);
        let end = self.starts.get(behind).map_or(log_end, |(_, start)| *start);
        let found = if behind == 0 { LeaderEpoch(0) } else { self.starts[behind - 1].0 };
        EpochEnd { epoch: found, end }
    }

    /// Where a log that ends at `log_end` stops to agree with another, whose last epoch that is not after this log's
    /// last one is `other`. The answer is final if its epoch is `other`'s; if it is earlier, the other log must be
    /// asked again about that.
    pub fn agrees_until(&self, other: EpochEnd, log_end: Offset) -> EpochEnd {
        let own = self.end_of(other.epoch, log_end);
        if own.epoch == other.epoch { EpochEnd { end: own.end.min(other.end), ..own } } else { own }
    }

    /// Forgets the records from `end` on.
    pub fn truncate(&mut self, end: Offset) {
        self.starts.retain(|(_, start)| *start < end);
    }

    /// Forgets the records before `start`, in a log that ends at `log_end`.
    pub fn begin(&mut self, start: Offset, log_end: Offset) {
        assert!(start <= log_end, "a log that ends at {log_end} begins at {start}");
        if start == log_end {
            return self.clear();
        }
        let behind = self.starts.partition_point(|(_, first)| *first <= start);
        self.starts.drain(..behind.saturating_sub(1));
        if let Some((_, first)) = self.starts.first_mut() {
            *first = start.max(*first);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.starts.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The epochs of a log's records, as a table.
    fn table(log: &[u32]) -> Epochs {
        let mut epochs = Epochs::default();
        log.iter().enumerate().for_each(|(at, epoch)| epochs.note(LeaderEpoch(*epoch), Offset(at as u64)));
        epochs
    }

    /// What a follower's log comes to when it asks a leader until they agree.
    fn align(leader: &[u32], follower: &[u32]) -> (usize, usize) {
        let (of_leader, mut of_follower) = (table(leader), table(follower));
        let mut end = Offset(follower.len() as u64);
        for round in 0.. {
            let last = of_follower.last();
            let theirs = of_leader.end_of(last, Offset(leader.len() as u64));
            if theirs.epoch == last && end <= theirs.end {
                return (end.0 as usize, round);
            }
            let until = of_follower.agrees_until(theirs, end);
            assert!(until.end < end, "no step back from {end}: {theirs:?} {until:?}");
            end = until.end;
            of_follower.truncate(end);
        }
        unreachable!()
    }

    #[test]
    fn the_end_of_an_epoch_is_where_the_next_one_begins() {
        let epochs = table(&[3, 3, 5, 9, 9]);
        let end_of = |epoch| epochs.end_of(LeaderEpoch(epoch), Offset(5));
        let expected = |epoch, end| EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) };
        assert_eq!(end_of(2), expected(0, 0));
        assert_eq!(end_of(3), expected(3, 2));
        assert_eq!(end_of(4), expected(3, 2));
        assert_eq!(end_of(8), expected(5, 3));
        assert_eq!(end_of(100), expected(9, 5));
        assert_eq!((epochs.at(Offset(1)), epochs.at(Offset(2))), (LeaderEpoch(3), LeaderEpoch(5)));
    }

    #[test]
    fn a_trimmed_log_keeps_the_epoch_of_its_first_record() {
        let mut epochs = table(&[3, 3, 5, 9]);
        epochs.begin(Offset(1), Offset(4));
        assert_eq!(epochs.at(Offset(1)), LeaderEpoch(3));
        epochs.begin(Offset(2), Offset(4));
        assert_eq!(epochs.end_of(LeaderEpoch(4), Offset(4)), EpochEnd { epoch: LeaderEpoch(0), end: Offset(2) });
        epochs.begin(Offset(4), Offset(4));
        assert_eq!((epochs.last(), epochs), (LeaderEpoch(0), Epochs::default()));
    }

    #[test]
    fn two_leaders_who_each_wrote_alone_are_told_apart() {
        // The case that one question is not enough for: neither has the other's last epoch.
        assert_eq!(align(&[1, 2, 2, 4], &[1, 1, 3, 3]), (1, 2));
        assert_eq!(align(&[1, 2], &[1, 2, 2]).0, 2);
        assert_eq!(align(&[1, 2, 2], &[1]).0, 1);
        assert_eq!(align(&[], &[1]).0, 0);
    }

    #[test]
    #[should_panic(expected = "behind")]
    fn an_epoch_that_is_over_writes_no_more() {
        table(&[3, 2]);
    }

    proptest! {
        #[test]
        fn a_follower_keeps_exactly_what_agrees(
            common in proptest::collection::vec(1u32..4, 0..5),
            leader in proptest::collection::vec(2u32..6, 0..5),
            follower in proptest::collection::vec(2u32..6, 0..5),
        ) {
            // Epochs grow within a log, and the two never write in the same epoch after they part.
            let grow = |from: &[u32], parity: u32, more: &[u32]| {
                let mut all = from.to_vec();
                let base = all.last().copied().unwrap_or(1);
                let mut more: Vec<u32> = more.iter().map(|step| base + 2 * step + (base + parity) % 2).collect();
                more.sort_unstable();
                all.extend(more);
                all
            };
            let mut common = common;
            common.sort_unstable();
            let (a, b) = (grow(&common, 0, &leader), grow(&common, 1, &follower));
            prop_assert_eq!(align(&a, &b).0, common.len());
        }
    }
}

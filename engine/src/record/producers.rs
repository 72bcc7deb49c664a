//! What the headers of a log say of its idempotent producers: for each, its newest epoch and its last batches.
//!
//! It follows from the headers alone, taken in the order of their offsets, so it is never the only copy of anything: a
//! partition keeps it in memory, a log keeps it beside its segments and makes it anew from them, and the two agree.
//! What it means for a batch that arrives is decided in [`crate::partition::producers`].
//!
//! It is bounded: of each producer the last [`PRODUCER_BATCHES_KEPT`] batches, and of all producers the
//! [`PRODUCERS_PER_PARTITION_MAX`] that wrote last. Who is forgotten depends on offsets only, not on a clock.

use std::collections::BTreeMap;

use super::header::BatchHeader;
use crate::{
    limits::{PRODUCER_BATCHES_KEPT, PRODUCERS_PER_PARTITION_MAX},
    types::{Offset, ProducerId, Sequence},
};

/// What an idempotent producer's batch says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerMark {
    /// Whose it is; not 0.
    pub id: ProducerId,
    /// Which life of the producer.
    pub epoch: u32,
    /// The first record's place in the producer's sequence.
    pub sequence: Sequence,
    /// How many records.
    pub count: u32,
    /// The batch's fingerprint.
    pub crc: u32,
}

impl BatchHeader {
    /// The batch's mark; `None` if no idempotent producer made it.
    pub fn producer_mark(&self) -> Option<ProducerMark> {
        (self.producer_id.0 != 0).then_some(ProducerMark {
            id: self.producer_id,
            epoch: self.producer_epoch,
            sequence: self.base_sequence,
            count: self.record_count,
            crc: self.crc,
        })
    }
}

/// A stored batch, as far as it takes to know it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptBatch {
    /// The first record's place in the producer's sequence.
    pub sequence: Sequence,
    /// How many records.
    pub count: u32,
    /// The first record's offset.
    pub base_offset: Offset,
    /// The batch's fingerprint.
    pub crc: u32,
}

impl KeptBatch {
    /// The sequence of the record after its last one; after the largest u32 comes 0.
    pub fn next_sequence(&self) -> Sequence {
        Sequence(self.sequence.0.wrapping_add(self.count))
    }
}

/// What is kept of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptProducer {
    epoch: u32,
    /// The first `len` count, oldest first; at least one.
    batches: [KeptBatch; PRODUCER_BATCHES_KEPT],
    len: usize,
}

impl KeptProducer {
    fn new(epoch: u32, batch: KeptBatch) -> Self {
        let mut kept = KeptProducer { epoch, batches: Default::default(), len: 0 };
        kept.push(batch);
        kept
    }

    fn push(&mut self, batch: KeptBatch) {
        if self.len == PRODUCER_BATCHES_KEPT {
            self.batches.copy_within(1.., 0);
            self.len -= 1;
        }
        self.batches[self.len] = batch;
        self.len += 1;
    }

    /// Its newest epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Its last batches of that epoch, oldest first; at least one.
    pub fn batches(&self) -> &[KeptBatch] {
        &self.batches[..self.len]
    }

    /// Its last batch.
    pub fn newest(&self) -> &KeptBatch {
        assert!(self.len > 0, "a producer without a batch is kept");
        &self.batches[self.len - 1]
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerHistory {
    producers: BTreeMap<ProducerId, KeptProducer>,
    /// The same by the offset of their newest batch: the first is the next to be forgotten.
    by_newest: BTreeMap<Offset, ProducerId>,
}

impl ProducerHistory {
    /// A history of these producers: id, epoch, and the last batches, oldest first. `None` if no log gives such a one.
    pub fn from_parts(parts: impl IntoIterator<Item = (ProducerId, u32, Vec<KeptBatch>)>) -> Option<Self> {
        let mut history = ProducerHistory::default();
        for (id, epoch, batches) in parts {
            let in_order = batches.windows(2).all(|two| two[0].base_offset < two[1].base_offset);
            let (first, rest) = batches.split_first()?;
            if id.0 == 0 || !in_order || batches.len() > PRODUCER_BATCHES_KEPT {
                return None;
            }
            let mut kept = KeptProducer::new(epoch, *first);
            rest.iter().for_each(|batch| kept.push(*batch));
            let newest = kept.newest().base_offset;
            let is_new = history.producers.insert(id, kept).is_none() && history.by_newest.insert(newest, id).is_none();
            if !is_new || history.producers.len() > PRODUCERS_PER_PARTITION_MAX {
                return None;
            }
        }
        Some(history)
    }

    /// Notes a stored batch. Batches come in the order of their offsets; one that does not is of a log that is damaged,
    /// and says nothing.
    pub fn note(&mut self, mark: &ProducerMark, base_offset: Offset) {
        let newest = self.by_newest.last_key_value().map(|(offset, _)| *offset);
        if mark.id.0 == 0 || newest.is_some_and(|newest| base_offset <= newest) {
            return;
        }
        let batch = KeptBatch { sequence: mark.sequence, count: mark.count, base_offset, crc: mark.crc };
        match self.producers.get_mut(&mark.id) {
            Some(kept) if mark.epoch < kept.epoch => return,
            Some(kept) => {
                self.by_newest.remove(&kept.newest().base_offset);
                if mark.epoch > kept.epoch {
                    *kept = KeptProducer::new(mark.epoch, batch);
                } else {
                    kept.push(batch);
                }
            }
            None => {
                self.forget_beyond(PRODUCERS_PER_PARTITION_MAX - 1);
                self.producers.insert(mark.id, KeptProducer::new(mark.epoch, batch));
            }
        }
        self.by_newest.insert(base_offset, mark.id);
        let (kept, listed) = (self.producers.len(), self.by_newest.len());
        assert!(kept == listed && kept <= PRODUCERS_PER_PARTITION_MAX, "{kept} producers are kept, {listed} listed");
    }

    /// Goes on with what later batches say, as if each had been noted.
    pub fn follow(&mut self, later: &ProducerHistory) {
        let batches =
            later.iter().flat_map(|(id, kept)| kept.batches().iter().map(move |batch| (id, kept.epoch, batch)));
        let mut batches: Vec<_> = batches.collect();
        batches.sort_by_key(|(_, _, batch)| batch.base_offset);
        for (id, epoch, batch) in batches {
            let KeptBatch { sequence, count, base_offset, crc } = *batch;
            self.note(&ProducerMark { id, epoch, sequence, count, crc }, base_offset);
        }
    }

    /// What is left of it when the batches from `end` on are cut off: not what of each producer was known before them
    /// and is kept no more.
    pub fn until(&self, end: Offset) -> ProducerHistory {
        let mut history = ProducerHistory::default();
        for (id, kept) in self.iter() {
            let mut batches = kept.batches().iter().take_while(|batch| batch.base_offset < end);
            let Some(first) = batches.next() else { continue };
            let mut left = KeptProducer::new(kept.epoch, *first);
            batches.for_each(|batch| left.push(*batch));
            history.by_newest.insert(left.newest().base_offset, id);
            history.producers.insert(id, left);
        }
        history
    }

    /// Whether both say the same of the newest batch of every producer. They may differ in older ones if they began at
    /// different places.
    pub fn agrees_with(&self, other: &ProducerHistory) -> bool {
        let newest = |history: &ProducerHistory, (offset, id): (&Offset, &ProducerId)| {
            history.get(*id).map(|kept| (*offset, kept.epoch, *kept.newest()))
        };
        let (ours, theirs) = (&self.by_newest, &other.by_newest);
        ours.len() == theirs.len()
            && ours.iter().zip(theirs).all(|(a, b)| a == b && newest(self, a) == newest(other, b))
    }

    fn forget_beyond(&mut self, most: usize) {
        while self.producers.len() > most
            && let Some((_, oldest)) = self.by_newest.pop_first()
        {
            self.producers.remove(&oldest);
        }
    }

    /// What is known of a producer.
    pub fn get(&self, id: ProducerId) -> Option<&KeptProducer> {
        self.producers.get(&id)
    }

    /// All producers, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ProducerId, &KeptProducer)> {
        self.producers.iter().map(|(id, kept)| (*id, kept))
    }

    /// The offset of the newest batch; `None` if there is none.
    pub fn newest_offset(&self) -> Option<Offset> {
        self.by_newest.last_key_value().map(|(offset, _)| *offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: u64, epoch: u32, sequence: u32) -> ProducerMark {
        ProducerMark { id: ProducerId(id), epoch, sequence: Sequence(sequence), count: 1, crc: sequence }
    }

    #[test]
    fn the_last_batches_of_the_newest_epoch_are_kept() {
        let mut history = ProducerHistory::default();
        (0..8).for_each(|at| history.note(&mark(1, 0, at), Offset(u64::from(at))));
        let kept = history.get(ProducerId(1)).unwrap();
        let sequences: Vec<u32> = kept.batches().iter().map(|batch| batch.sequence.0).collect();
        assert_eq!(sequences, [3, 4, 5, 6, 7]);
        history.note(&mark(1, 2, 0), Offset(8));
        history.note(&mark(1, 1, 7), Offset(9));
        let kept = history.get(ProducerId(1)).unwrap();
        assert_eq!((kept.epoch(), kept.batches().len(), kept.newest().base_offset), (2, 1, Offset(8)));
    }

    #[test]
    fn who_wrote_longest_ago_is_forgotten_when_there_are_too_many() {
        let most = PRODUCERS_PER_PARTITION_MAX as u64;
        let mut history = ProducerHistory::default();
        (0..most).for_each(|at| history.note(&mark(at + 1, 0, 0), Offset(at)));
        history.note(&mark(1, 0, 1), Offset(most));
        assert_eq!(history.iter().len(), PRODUCERS_PER_PARTITION_MAX);
        history.note(&mark(most + 1, 0, 0), Offset(most + 1));
        assert_eq!(history.iter().len(), PRODUCERS_PER_PARTITION_MAX);
        assert!(history.get(ProducerId(1)).is_some(), "it wrote again");
        assert!(history.get(ProducerId(2)).is_none(), "it wrote longest ago");
    }

    #[test]
    fn a_history_comes_back_from_its_parts_and_parts_that_no_log_gives_are_refused() {
        let mut history = ProducerHistory::default();
        (0..20u32).for_each(|at| history.note(&mark(u64::from(at % 3) + 1, at % 2, at), Offset(u64::from(at))));
        type Part = (ProducerId, u32, Vec<KeptBatch>);
        let parts = |history: &ProducerHistory| -> Vec<Part> {
            history.iter().map(|(id, kept)| (id, kept.epoch(), kept.batches().to_vec())).collect()
        };
        assert_eq!(ProducerHistory::from_parts(parts(&history)), Some(history.clone()));
        let refused = |change: fn(&mut Vec<Part>)| {
            let mut parts = parts(&history);
            change(&mut parts);
            assert_eq!(ProducerHistory::from_parts(parts), None);
        };
        refused(|parts| parts[0].0 = ProducerId(0));
        refused(|parts| parts[0].0 = parts[1].0);
        refused(|parts| parts[0].2.clear());
        refused(|parts| parts[0].2.reverse());
        refused(|parts| parts[0].2 = vec![KeptBatch::default(); PRODUCER_BATCHES_KEPT + 1]);
        refused(|parts| parts[1].2 = parts[0].2.clone());
        let many = |count: usize| (0..count as u64).map(|at| (ProducerId(at + 1), 0, vec![batch_at(at)]));
        assert!(ProducerHistory::from_parts(many(PRODUCERS_PER_PARTITION_MAX)).is_some());
        assert_eq!(ProducerHistory::from_parts(many(PRODUCERS_PER_PARTITION_MAX + 1)), None);
    }

    fn batch_at(offset: u64) -> KeptBatch {
        KeptBatch { base_offset: Offset(offset), ..KeptBatch::default() }
    }

    #[test]
    fn what_later_batches_say_follows_as_if_each_had_been_noted() {
        let tries = (0..60u32).map(|at| (mark(u64::from(at % 7) + 1, at / 40, at), Offset(u64::from(at))));
        let tries: Vec<_> = tries.collect();
        let noted = |tries: &[(ProducerMark, Offset)]| {
            let mut history = ProducerHistory::default();
            tries.iter().for_each(|(mark, offset)| history.note(mark, *offset));
            history
        };
        let all = noted(&tries);
        for cut in 0..tries.len() {
            let mut history = noted(&tries[..cut]);
            assert!(!history.agrees_with(&all));
            history.follow(&noted(&tries[cut..]));
            assert_eq!(history, all, "cut at {cut}");
            assert!(history.agrees_with(&all));
        }
    }

    #[test]
    fn batches_out_of_order_say_nothing() {
        let mut history = ProducerHistory::default();
        history.note(&mark(1, 0, 0), Offset(5));
        let before = history.clone();
        history.note(&mark(2, 0, 0), Offset(5));
        history.note(&mark(2, 0, 0), Offset(4));
        assert_eq!(history, before);
    }

    #[test]
    fn histories_agree_only_if_the_newest_batch_of_each_producer_is_the_same() {
        let of = |marks: &[(ProducerMark, u64)]| {
            let mut history = ProducerHistory::default();
            marks.iter().for_each(|(mark, offset)| history.note(mark, Offset(*offset)));
            history
        };
        let history = of(&[(mark(1, 0, 0), 3), (mark(2, 0, 0), 4), (mark(1, 0, 1), 5)]);
        assert!(history.agrees_with(&of(&[(mark(2, 0, 0), 4), (mark(1, 0, 1), 5)])), "older batches do not count");
        for other in [
            of(&[(mark(2, 0, 0), 4), (mark(1, 1, 1), 5)]),
            of(&[(mark(2, 0, 0), 4), (ProducerMark { crc: 9, ..mark(1, 0, 1) }, 5)]),
            of(&[(mark(2, 0, 0), 4), (mark(1, 0, 1), 6)]),
            of(&[(mark(3, 0, 0), 4), (mark(1, 0, 1), 5)]),
            of(&[(mark(1, 0, 1), 5)]),
        ] {
            assert!(!history.agrees_with(&other) && !other.agrees_with(&history), "{other:?}");
        }
    }
}

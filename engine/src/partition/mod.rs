//! One partition's promises: which offset a batch gets, when its append may be acknowledged, and what consumers may
//! see.
//!
//! Pure: events come in through `handle_…`, effects go out through [`Partition::poll_effect`]; no bytes, no file, no
//! clock. The invariant is that an ack is released exactly when the high watermark passes its records, so what is
//! acknowledged is visible, in order, and nothing is visible that is less safe than its own ack asked for.

pub mod ends;
pub mod producers;
pub mod waiters;

use std::collections::VecDeque;

use ends::{End, Ends};
use producers::Standing;
use waiters::{AckQueue, DuplicateQueue, FetchQueue, PendingAck, WaitId};

use crate::{
    error::RequestError,
    record::{ProducerHistory, ProducerMark},
    testing::bug::{PlantedBug, planted},
    types::{AckLevel, LeaderEpoch, Offset},
};

/// What the owner of a partition must do. `A` and `F` are the tokens of waiting appends and fetches.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<A, F> {
    /// Tell the appender that its records are stored.
    Ack {
        /// Who appended.
        token: A,
        /// The offset of the first record.
        base_offset: Offset,
        /// How many records.
        count: u32,
        /// The level asked for, which is reached.
        level: AckLevel,
    },
    /// Tell the appender that a fault came between: whether its records are stored is not known.
    Unknown {
        /// Who appended.
        token: A,
        /// How many records.
        count: u32,
    },
    /// Serve a fetch: the record it waits for is visible, or never will be.
    Wake {
        /// Who fetches.
        token: F,
    },
}

/// What an admitted batch is stamped with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The reign it was admitted in.
    pub leader_epoch: LeaderEpoch,
}

/// What a partition's own copy is among all of its copies. Decided elsewhere ([`crate::replication`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The only one.
    Alone,
    /// It leads, since its log ended at `start`.
    Leading { start: Offset },
    /// It takes what another gives it.
    Following,
}

/// One partition, as its owner sees it.
#[derive(Debug)]
pub struct Partition<A, F> {
    role: Role,
    epoch: LeaderEpoch,
    ends: Ends,
    acks: AckQueue<A>,
    duplicates: DuplicateQueue<A>,
    /// What every batch so far says of its producer, pending ones included.
    producers: ProducerHistory,
    fetches: FetchQueue<F>,
    /// The fault that stopped writes until restart.
    fence: Option<String>,
    effects: VecDeque<Effect<A, F>>,
}

impl<A, F> Partition<A, F> {
    /// A partition that was recovered with the records from `log_start` to `log_end`, about to reign in `epoch`.
    pub fn recovered(log_start: Offset, log_end: Offset, epoch: LeaderEpoch) -> Self {
        Partition::new(Role::Alone, epoch, Ends::recovered(log_start, log_end))
    }

    /// The same of a copy, one of several: it follows until it is told that it leads.
    pub fn of_copy(log_start: Offset, log_end: Offset) -> Self {
        Partition::new(Role::Following, LeaderEpoch(0), Ends::of_copy(log_start, log_end))
    }

    fn new(role: Role, epoch: LeaderEpoch, ends: Ends) -> Self {
        Partition {
            role,
            epoch,
            ends,
            acks: AckQueue::default(),
            duplicates: DuplicateQueue::default(),
            producers: ProducerHistory::default(),
            fetches: FetchQueue::default(),
            fence: None,
            effects: VecDeque::new(),
        }
    }

    /// The same, with what its records say of their producers.
    pub fn with_producers(mut self, producers: ProducerHistory) -> Self {
        let newest = producers.newest_offset();
        let end = self.ends.log_end();
        assert!(newest.is_none_or(|newest| newest < end), "a producer's batch at {newest:?} is behind the end {end}");
        self.producers = producers;
        self
    }

    /// Where the partition stands.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// The fault that stopped writes, if one did.
    pub fn fence(&self) -> Option<&str> {
        self.fence.as_deref()
    }

    /// Whether appends may be admitted, as far as other copies are concerned.
    pub fn leads(&self) -> bool {
        self.role != Role::Following
    }

    /// The reign that batches are admitted in.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Whether every record is synced. Then nobody waits for an ack either: nothing can be safer.
    pub fn is_settled(&self) -> bool {
        self.ends.durable_end() == self.ends.log_end()
    }

    /// Whether an append waits for `level` or more.
    pub fn waits_for(&self, level: AckLevel) -> bool {
        self.acks.waits_for(level) || self.duplicates.waits_for(level)
    }

    /// What the batches so far say of their producers.
    pub fn producers(&self) -> &ProducerHistory {
        &self.producers
    }

    /// Judges an append before it is admitted: whether it is a producer's batch again, or must be refused. A batch
    /// again is known as such before its condition is looked at, for that was fulfilled when it was stored.
    ///
    /// Errors: `WrongOffset` and those of [`producers::judge`].
    pub fn judge(&self, mark: Option<&ProducerMark>, expected: Option<Offset>) -> Result<Standing, RequestError> {
        let standing = match mark {
            None => Standing::Fresh,
            Some(mark) => producers::judge(&self.producers, mark)?,
        };
        if let Standing::Duplicate { base_offset, .. } = standing {
            let is_pending = base_offset >= self.ends.durable_end();
            let missed = planted(PlantedBug::PendingDuplicateIsFresh) && is_pending;
            return Ok(if missed { Standing::Fresh } else { standing });
        }
        let end = self.ends.log_end();
        match expected {
            Some(expected) if expected != end && !planted(PlantedBug::IgnoreExpectedOffset) => {
                Err(RequestError::WrongOffset { expected, end })
            }
            _ => Ok(standing),
        }
    }

    /// How many appends and fetches wait.
    pub fn waiting(&self) -> usize {
        self.acks.len() + self.fetches.count()
    }

    /// Admits a batch of `count` records, to be acknowledged at `level`. Its owner must now hand it to the log.
    ///
    /// Panics if the partition is fenced or follows: the owner asks [`Partition::fence`] and [`Partition::leads`]
    /// first, to answer with the reason.
    pub fn handle_append(&mut self, count: u32, level: AckLevel, token: A) -> Placement {
        assert!(self.fence.is_none(), "append to a fenced partition");
        assert!(self.leads(), "append to a copy that follows");
        assert!(count > 0, "an append of no records has no offset");
        let base_offset = self.ends.log_end();
        let end_offset = base_offset.advance(u64::from(count));
        let placement = Placement { base_offset, leader_epoch: self.epoch };
        self.ends.advance(End::Log, end_offset);
        if self.role == Role::Alone {
            self.ends.advance(End::Received, end_offset);
        }
        if planted(PlantedBug::ShowFirstBeforeAck)
            && level == AckLevel::Durable
            && self.ends.durable_end() == base_offset
        {
            self.ends.advance(End::HighWatermark, end_offset);
        }
        self.acks.push(PendingAck { base_offset, end_offset, level, token });
        self.release();
        placement
    }

    /// Notes whose batch was admitted at `base_offset`. Its owner does so after it handed the batch to the log: what is
    /// known before that is what the log's earlier batches say.
    pub fn note_producer(&mut self, mark: &ProducerMark, base_offset: Offset) {
        assert!(base_offset < self.ends.log_end(), "a batch at {base_offset} was not admitted");
        self.producers.note(mark, base_offset);
    }

    /// What all batches before some place say of their producers was gathered, which was not all known before; what
    /// those behind it say was.
    pub fn handle_gathered(&mut self, mut whole: ProducerHistory) {
        let (newest, end) = (whole.newest_offset(), self.ends.log_end());
        assert!(newest.is_none_or(|newest| newest < end), "a producer's batch at {newest:?} is behind the end {end}");
        whole.follow(&self.producers);
        self.producers = whole;
    }

    /// A producer sent the batch of `count` records at `base_offset` again. It is acknowledged when that is visible and
    /// as safe as `level` says, which may be more than the first time.
    pub fn handle_duplicate(&mut self, (base_offset, count): (Offset, u32), level: AckLevel, token: A) {
        let end_offset = base_offset.advance(u64::from(count));
        assert!(self.fence.is_none(), "append to a fenced partition");
        assert!(end_offset <= self.ends.log_end(), "a duplicate of what ends at {end_offset}, which was not admitted");
        if planted(PlantedBug::AckPendingDuplicate) {
            return self.effects.push_back(Effect::Ack { token, base_offset, count, level });
        }
        self.duplicates.push(PendingAck { base_offset, end_offset, level, token });
        self.release_duplicates();
    }

    /// The log took `count` records of another copy's.
    pub fn handle_copied(&mut self, count: u32) {
        assert!(self.role == Role::Following, "a copy takes records while it is {:?}", self.role);
        self.ends.advance(End::Log, self.ends.log_end().advance(u64::from(count)));
    }

    /// This copy leads from now on, in `epoch`. All before `committed` may be seen; the rest of what it has when a
    /// write quorum has that too.
    pub fn handle_lead(&mut self, epoch: LeaderEpoch, committed: Offset) {
        let end = self.ends.log_end();
        assert!(epoch > self.epoch && self.acks.is_empty(), "reign {epoch} after {}", self.epoch);
        self.epoch = epoch;
        self.role = Role::Leading { start: end };
        self.ends.advance(End::HighWatermark, committed.min(end).max(self.ends.high_watermark()));
        self.release();
    }

    /// This copy leads no more. What waits for its ack has an unknown fate: it may be in the log that is the log now.
    pub fn handle_follow(&mut self) {
        self.role = Role::Following;
        self.give_up_waiting();
        while let Some(token) = self.fetches.pop() {
            self.effects.push_back(Effect::Wake { token });
        }
    }

    /// A write quorum of the copies has all records before each of these ends: in memory, on the device, synced.
    pub fn handle_quorum(&mut self, received: Offset, written: Offset, durable: Offset) {
        assert!(self.role != Role::Alone, "a quorum of one copy");
        self.ends.advance(End::Received, received.max(self.ends.received_end()));
        self.ends.advance(End::Written, written.max(self.ends.written_end()));
        self.ends.advance(End::Durable, durable.max(self.ends.durable_end()));
        self.release();
    }

    /// The device has taken all records before `end`, of the only copy.
    pub fn handle_written(&mut self, end: Offset) {
        assert!(self.role == Role::Alone, "one of several copies is written up to {end}");
        self.ends.advance(End::Written, end.max(self.ends.written_end()));
        self.release();
    }

    /// All records before `end` of the only copy survive a loss of power.
    pub fn handle_durable(&mut self, end: Offset) {
        assert!(self.role == Role::Alone, "one of several copies is durable up to {end}");
        self.ends.advance(End::Durable, end.max(self.ends.durable_end()));
        self.release();
    }

    /// A write or a sync failed: from now on no write is accepted, and what waits for its ack has an unknown fate.
    pub fn handle_fault(&mut self, reason: String) {
        self.fence.get_or_insert(reason);
        self.give_up_waiting();
    }

    fn give_up_waiting(&mut self) {
        while let Some(ack) = self.acks.pop().or_else(|| self.duplicates.pop()) {
            let count = (ack.end_offset.0 - ack.base_offset.0) as u32;
            self.effects.push_back(Effect::Unknown { token: ack.token, count });
        }
    }

    /// The records before `start` are gone, durably. At most all that are visible.
    pub fn handle_log_start(&mut self, start: Offset) {
        if self.role == Role::Following {
            // Its leader would not delete what may not be seen.
            self.ends.advance(End::HighWatermark, start.max(self.ends.high_watermark()));
        }
        self.ends.advance(End::LogStart, start);
    }

    /// A fetch waits for the record at `offset`, which is not visible yet.
    pub fn handle_fetch_wait(&mut self, offset: Offset, token: F) -> WaitId {
        assert!(offset >= self.ends.high_watermark(), "a fetch waits for {offset}, which is visible");
        self.fetches.push(offset, token)
    }

    /// A fetch stops waiting.
    pub fn handle_fetch_cancel(&mut self, id: WaitId) {
        self.fetches.cancel(id);
    }

    /// The partition ends here, because its log is deleted or the server stops: everybody who waits is told.
    pub fn handle_close(&mut self, reason: &str) {
        self.handle_fault(reason.to_owned());
        while let Some(token) = self.fetches.pop() {
            self.effects.push_back(Effect::Wake { token });
        }
    }

    /// The next thing to do, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect<A, F>> {
        self.effects.pop_front()
    }

    /// Moves the high watermark over what is fulfilled, acknowledges it and wakes who waits for it.
    fn release(&mut self) {
        let before = self.ends.high_watermark();
        // Nobody waits for what earlier leaders left: it is final when this reign is.
        if let Role::Leading { start } = self.role
            && self.ends.durable_end() >= start
        {
            self.ends.advance(End::HighWatermark, start.max(before));
        }
        while let Some(ack) = self.acks.pop_fulfilled(&self.ends) {
            self.ends.advance(End::HighWatermark, ack.end_offset);
            self.acknowledge(ack);
        }
        self.release_duplicates();
        let now = self.ends.high_watermark();
        let early = planted(PlantedBug::ShowBeforeAck) || planted(PlantedBug::ShowFirstBeforeAck);
        if now > before || early {
            while let Some(token) = self.fetches.pop_served(now) {
                self.effects.push_back(Effect::Wake { token });
            }
        }
    }

    fn release_duplicates(&mut self) {
        while let Some(ack) = self.duplicates.pop_fulfilled(&self.ends) {
            self.acknowledge(ack);
        }
    }

    fn acknowledge(&mut self, ack: PendingAck<A>) {
        let PendingAck { base_offset, end_offset, level, mut token } = ack;
        let count = (end_offset.0 - base_offset.0) as u32;
        if planted(PlantedBug::AckOfAnother)
            && let Some(Effect::Ack { token: other, count: same, .. }) = self.effects.back_mut()
            && *same == count
        {
            std::mem::swap(other, &mut token);
        }
        self.effects.push_back(Effect::Ack { token, base_offset, count, level });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ProducerId, Sequence};

    fn partition() -> Partition<u32, &'static str> {
        Partition::recovered(Offset(0), Offset(10), LeaderEpoch(3))
    }

    fn effects(partition: &mut Partition<u32, &'static str>) -> Vec<Effect<u32, &'static str>> {
        std::iter::from_fn(|| partition.poll_effect()).collect()
    }

    fn ack(token: u32, base_offset: u64, count: u32, level: AckLevel) -> Effect<u32, &'static str> {
        Effect::Ack { token, base_offset: Offset(base_offset), count, level }
    }

    #[test]
    fn each_level_is_acknowledged_at_its_own_event_and_not_before() {
        let mut p = partition();
        assert!(p.is_settled() && p.epoch() == LeaderEpoch(3));
        p.handle_append(1, AckLevel::Received, 1);
        assert_eq!(effects(&mut p), [ack(1, 10, 1, AckLevel::Received)]);
        assert!(!p.is_settled(), "nobody waits, and the record is not synced");
        p.handle_append(2, AckLevel::Written, 2);
        p.handle_append(3, AckLevel::Durable, 3);
        assert_eq!(effects(&mut p), []);
        p.handle_written(Offset(16));
        assert_eq!(effects(&mut p), [ack(2, 11, 2, AckLevel::Written)]);
        p.handle_durable(Offset(16));
        assert_eq!(effects(&mut p), [ack(3, 13, 3, AckLevel::Durable)]);
        assert!(p.is_settled());
    }

    #[test]
    fn a_weaker_append_waits_for_the_stronger_one_before_it() {
        let mut p = partition();
        p.handle_append(1, AckLevel::Durable, 1);
        p.handle_append(1, AckLevel::Received, 2);
        assert_eq!(effects(&mut p), []);
        assert_eq!(p.ends().high_watermark(), Offset(10));
        p.handle_durable(Offset(11));
        assert_eq!(effects(&mut p), [ack(1, 10, 1, AckLevel::Durable), ack(2, 11, 1, AckLevel::Received)]);
    }

    #[test]
    fn a_fetch_wakes_when_its_record_is_visible_and_no_sooner() {
        let mut p = partition();
        p.handle_fetch_wait(Offset(10), "next");
        p.handle_fetch_wait(Offset(12), "later");
        p.handle_append(1, AckLevel::Durable, 1);
        assert_eq!(p.waiting(), 3);
        p.handle_written(Offset(11));
        assert_eq!(effects(&mut p), []);
        p.handle_durable(Offset(11));
        assert_eq!(effects(&mut p), [ack(1, 10, 1, AckLevel::Durable), Effect::Wake { token: "next" }]);
        assert_eq!(p.waiting(), 1);
    }

    #[test]
    fn who_waits_for_an_ack_is_asked_for_by_level_as_long_as_he_waits() {
        let mut p = partition();
        let waits = |p: &Partition<u32, &'static str>| {
            [AckLevel::Received, AckLevel::Written, AckLevel::Durable].map(|level| p.waits_for(level))
        };
        assert_eq!(waits(&p), [false; 3]);
        p.handle_append(2, AckLevel::Written, 1);
        assert_eq!((waits(&p), p.acks.len(), p.acks.is_empty()), ([true, true, false], 1, false));
        p.handle_written(Offset(12));
        assert_eq!((waits(&p), p.acks.len(), p.acks.is_empty()), ([false; 3], 0, true));
        duplicate_of(&mut p, 10, AckLevel::Durable, 2);
        assert_eq!(waits(&p), [true; 3]);
        p.handle_durable(Offset(12));
        assert_eq!(waits(&p), [false; 3]);
    }

    #[test]
    fn a_fetch_that_gave_up_is_not_woken_and_the_others_are() {
        let mut p = partition();
        let gone = p.handle_fetch_wait(Offset(10), "gone");
        p.handle_fetch_wait(Offset(10), "stays");
        p.handle_fetch_cancel(gone);
        assert_eq!(p.waiting(), 1);
        p.handle_append(1, AckLevel::Received, 1);
        assert_eq!(effects(&mut p), [ack(1, 10, 1, AckLevel::Received), Effect::Wake { token: "stays" }]);
    }

    #[test]
    fn when_it_closes_all_who_wait_are_told() {
        let mut p = partition();
        p.handle_fetch_wait(Offset(10), "next");
        p.handle_fetch_wait(Offset(99), "later");
        p.handle_append(4, AckLevel::Durable, 1);
        p.handle_close("deleted");
        let told =
            [Effect::Unknown { token: 1, count: 4 }, Effect::Wake { token: "next" }, Effect::Wake { token: "later" }];
        assert_eq!((effects(&mut p), p.fence(), p.waiting()), (told.into(), Some("deleted"), 0));
    }

    #[test]
    fn after_a_fault_nothing_is_acknowledged_and_what_waited_is_unknown() {
        let mut p = partition();
        p.handle_append(4, AckLevel::Durable, 1);
        p.handle_fault("EIO".into());
        assert_eq!(effects(&mut p), [Effect::Unknown { token: 1, count: 4 }]);
        p.handle_written(Offset(14));
        assert_eq!((effects(&mut p), p.fence()), (vec![], Some("EIO")));
    }

    #[test]
    fn the_stamp_carries_the_reign() {
        let mut p = partition();
        p.handle_append(1, AckLevel::Received, 1);
        let placed = p.handle_append(1, AckLevel::Received, 2);
        assert_eq!(placed, Placement { base_offset: Offset(11), leader_epoch: LeaderEpoch(3) });
    }

    #[test]
    fn a_copy_that_leads_acknowledges_what_a_quorum_has_at_each_level() {
        let mut p = Partition::<u32, &'static str>::of_copy(Offset(2), Offset(10));
        assert!(!p.leads());
        p.handle_copied(2);
        p.handle_lead(LeaderEpoch(8), Offset(5));
        assert_eq!((p.ends().high_watermark(), p.ends().log_end()), (Offset(5), Offset(12)));
        for (token, level) in [(1, AckLevel::Received), (2, AckLevel::Written), (3, AckLevel::Durable)] {
            p.handle_append(1, level, token);
        }
        assert_eq!(effects(&mut p), [], "what this copy has alone is acknowledged to nobody");
        p.handle_quorum(Offset(12), Offset(12), Offset(12));
        assert_eq!(p.ends().high_watermark(), Offset(12), "what it began with is final");
        p.handle_quorum(Offset(15), Offset(14), Offset(12));
        assert_eq!(effects(&mut p), [ack(1, 12, 1, AckLevel::Received), ack(2, 13, 1, AckLevel::Written)]);
        assert!(!p.is_settled());
        p.handle_quorum(Offset(15), Offset(15), Offset(15));
        assert_eq!(effects(&mut p), [ack(3, 14, 1, AckLevel::Durable)]);
    }

    #[test]
    fn a_copy_that_is_deposed_acknowledges_nothing_and_wakes_who_waits() {
        let mut p = Partition::<u32, &'static str>::of_copy(Offset(0), Offset(0));
        p.handle_lead(LeaderEpoch(1), Offset(0));
        p.handle_append(4, AckLevel::Durable, 1);
        p.handle_fetch_wait(Offset(0), "reader");
        p.handle_follow();
        assert_eq!(effects(&mut p), [Effect::Unknown { token: 1, count: 4 }, Effect::Wake { token: "reader" }]);
        p.handle_copied(2);
        p.handle_log_start(Offset(5));
        p.handle_lead(LeaderEpoch(9), Offset(4));
        assert_eq!((p.ends().high_watermark(), p.ends().log_end()), (Offset(5), Offset(6)));
    }

    fn duplicate_of(p: &mut Partition<u32, &'static str>, base_offset: u64, level: AckLevel, token: u32) {
        p.handle_duplicate((Offset(base_offset), 2), level, token);
    }

    #[test]
    fn a_batch_again_is_acknowledged_when_the_first_is_as_safe_as_the_second_asks() {
        let mut p = partition();
        p.handle_append(2, AckLevel::Received, 1);
        assert_eq!(effects(&mut p), [ack(1, 10, 2, AckLevel::Received)]);
        duplicate_of(&mut p, 10, AckLevel::Received, 2);
        assert_eq!(effects(&mut p), [ack(2, 10, 2, AckLevel::Received)]);
        duplicate_of(&mut p, 10, AckLevel::Durable, 3);
        duplicate_of(&mut p, 10, AckLevel::Written, 4);
        assert!(effects(&mut p).is_empty() && p.waits_for(AckLevel::Durable) && !p.is_settled());
        p.handle_written(Offset(12));
        assert_eq!(effects(&mut p), [ack(4, 10, 2, AckLevel::Written)]);
        p.handle_durable(Offset(12));
        assert_eq!(effects(&mut p), [ack(3, 10, 2, AckLevel::Durable)]);
        assert!(p.is_settled());
    }

    #[test]
    fn a_batch_again_is_not_acknowledged_before_it_is_visible() {
        let mut p = partition();
        p.handle_append(2, AckLevel::Durable, 1);
        duplicate_of(&mut p, 10, AckLevel::Received, 2);
        p.handle_written(Offset(12));
        assert_eq!(effects(&mut p), []);
        p.handle_durable(Offset(12));
        assert_eq!(effects(&mut p), [ack(1, 10, 2, AckLevel::Durable), ack(2, 10, 2, AckLevel::Received)]);
    }

    #[test]
    fn after_a_fault_a_batch_again_is_as_unknown_as_the_first() {
        let mut p = partition();
        p.handle_append(2, AckLevel::Durable, 1);
        duplicate_of(&mut p, 10, AckLevel::Durable, 2);
        p.handle_fault("EIO".into());
        assert_eq!(effects(&mut p), [Effect::Unknown { token: 1, count: 2 }, Effect::Unknown { token: 2, count: 2 }]);
    }

    #[test]
    fn a_condition_holds_for_the_next_offset_only_and_not_for_a_batch_again() {
        let mut p = partition();
        let wrong = |expected, end| RequestError::WrongOffset { expected: Offset(expected), end: Offset(end) };
        assert_eq!(p.judge(None, Some(Offset(10))), Ok(Standing::Fresh));
        assert_eq!(p.judge(None, Some(Offset(9))), Err(wrong(9, 10)));
        let mark = ProducerMark { id: ProducerId(5), epoch: 0, sequence: Sequence(0), count: 2, crc: 1 };
        p.handle_append(2, AckLevel::Durable, 1);
        p.note_producer(&mark, Offset(10));
        assert_eq!(p.judge(None, Some(Offset(10))), Err(wrong(10, 12)));
        let again = Standing::Duplicate { base_offset: Offset(10), count: 2 };
        assert_eq!(p.judge(Some(&mark), Some(Offset(10))), Ok(again), "it won, and asks whether it did");
        let next = ProducerMark { sequence: Sequence(2), ..mark };
        assert_eq!(p.judge(Some(&next), Some(Offset(10))), Err(wrong(10, 12)));
    }

    #[test]
    fn what_it_knows_of_producers_is_what_it_was_told_and_what_was_noted() {
        let mut told = ProducerHistory::default();
        let mark = ProducerMark { id: ProducerId(5), epoch: 0, sequence: Sequence(0), count: 2, crc: 1 };
        told.note(&mark, Offset(8));
        let mut p = partition().with_producers(told.clone());
        assert_eq!(p.producers().newest_offset(), Some(Offset(8)));
        p.handle_append(2, AckLevel::Received, 1);
        p.note_producer(&ProducerMark { sequence: Sequence(2), ..mark }, Offset(10));
        assert_eq!(p.producers().newest_offset(), Some(Offset(10)));
    }

    #[test]
    fn what_was_gathered_of_producers_is_known_together_with_what_was_noted_behind_it() {
        let mark = |id, sequence| ProducerMark {
            id: ProducerId(id),
            epoch: 0,
            sequence: Sequence(sequence),
            count: 2,
            crc: 1,
        };
        let history = |marks: &[(ProducerMark, u64)]| {
            let mut history = ProducerHistory::default();
            marks.iter().for_each(|(mark, offset)| history.note(mark, Offset(*offset)));
            history
        };
        let (first, lost, last) = ((mark(5, 0), 2), (mark(6, 0), 4), (mark(5, 2), 6));
        let mut p = partition().with_producers(history(&[first, last]));
        p.handle_append(2, AckLevel::Received, 1);
        p.note_producer(&mark(7, 0), Offset(10));
        p.handle_gathered(history(&[first, lost]));
        assert_eq!(p.producers(), &history(&[first, lost, last, (mark(7, 0), 10)]));
        let again = Standing::Duplicate { base_offset: Offset(4), count: 2 };
        assert_eq!(p.judge(Some(&lost.0), None), Ok(again));
    }

    #[test]
    fn all_who_send_the_same_batch_again_are_answered() {
        let mut p = partition();
        p.handle_append(2, AckLevel::Durable, 1);
        (2..5).for_each(|token| duplicate_of(&mut p, 10, AckLevel::Durable, token));
        p.handle_durable(Offset(12));
        let expected: Vec<_> = (1..5).map(|token| ack(token, 10, 2, AckLevel::Durable)).collect();
        assert_eq!(effects(&mut p), expected);
    }
}

//! One partition's promises: which offset a batch gets, when its append may be acknowledged, and what consumers may
//! see.
//!
//! Pure: events come in through `handle_…`, effects go out through [`Partition::poll_effect`]; no bytes, no file, no
//! clock. The invariant is that an ack is released exactly when the high watermark passes its records, so what is
//! acknowledged is visible, in order, and nothing is visible that is less safe than its own ack asked for.

pub mod ends;
pub mod waiters;

use std::collections::VecDeque;

use ends::{End, Ends};
use waiters::{AckQueue, FetchQueue, PendingAck, WaitId};

use crate::types::{AckLevel, LeaderEpoch, Offset};

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
    /// The durable end known now; see "Where the log ends" in `docs/FORMAT.md`.
    pub durable_hint: Offset,
}

/// One partition, as its owner sees it.
#[derive(Debug)]
pub struct Partition<A, F> {
    epoch: LeaderEpoch,
    ends: Ends,
    acks: AckQueue<A>,
    fetches: FetchQueue<F>,
    /// The fault that stopped writes until restart.
    fence: Option<String>,
    effects: VecDeque<Effect<A, F>>,
}

impl<A, F> Partition<A, F> {
    /// A partition that was recovered with the records from `log_start` to `log_end`, about to reign in `epoch`.
    pub fn recovered(log_start: Offset, log_end: Offset, epoch: LeaderEpoch) -> Self {
        Partition {
            epoch,
            ends: Ends::recovered(log_start, log_end),
            acks: AckQueue::default(),
            fetches: FetchQueue::default(),
            fence: None,
            effects: VecDeque::new(),
        }
    }

    /// Where the partition stands.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// The fault that stopped writes, if one did.
    pub fn fence(&self) -> Option<&str> {
        self.fence.as_deref()
    }

    /// Whether every record is synced and nobody waits for an ack.
    pub fn is_settled(&self) -> bool {
        self.acks.is_empty() && self.ends.durable_end() == self.ends.log_end()
    }

    /// Whether an append waits for `level` or more.
    pub fn waits_for(&self, level: AckLevel) -> bool {
        self.acks.waits_for(level)
    }

    /// Admits a batch of `count` records, to be acknowledged at `level`. Its owner must now hand it to the log.
    ///
    /// Panics if the partition is fenced: the owner asks [`Partition::fence`] first, to answer with the reason.
    pub fn handle_append(&mut self, count: u32, level: AckLevel, token: A) -> Placement {
        assert!(self.fence.is_none(), "append to a fenced partition");
        assert!(count > 0, "an append of no records has no offset");
        let base_offset = self.ends.log_end();
        let end_offset = base_offset.advance(u64::from(count));
        let placement = Placement { base_offset, leader_epoch: self.epoch, durable_hint: self.ends.durable_end() };
        self.ends.advance(End::Log, end_offset);
        self.acks.push(PendingAck { base_offset, end_offset, level, token });
        self.release();
        placement
    }

    /// The device has taken all records before `end`.
    pub fn handle_written(&mut self, end: Offset) {
        self.ends.advance(End::Written, end.max(self.ends.written_end()));
        self.release();
    }

    /// All records before `end` survive a loss of power.
    pub fn handle_durable(&mut self, end: Offset) {
        self.ends.advance(End::Durable, end.max(self.ends.durable_end()));
        self.release();
    }

    /// A write or a sync failed: from now on no write is accepted, and what waits for its ack has an unknown fate.
    pub fn handle_fault(&mut self, reason: String) {
        self.fence.get_or_insert(reason);
        while let Some(ack) = self.acks.pop() {
            let count = (ack.end_offset.0 - ack.base_offset.0) as u32;
            self.effects.push_back(Effect::Unknown { token: ack.token, count });
        }
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
        while let Some(ack) = self.acks.pop_fulfilled(&self.ends) {
            self.ends.advance(End::HighWatermark, ack.end_offset);
            let count = (ack.end_offset.0 - ack.base_offset.0) as u32;
            let (token, base_offset, level) = (ack.token, ack.base_offset, ack.level);
            self.effects.push_back(Effect::Ack { token, base_offset, count, level });
        }
        let now = self.ends.high_watermark();
        if now > before {
            while let Some(token) = self.fetches.pop_served(now) {
                self.effects.push_back(Effect::Wake { token });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        p.handle_append(1, AckLevel::Received, 1);
        assert_eq!(effects(&mut p), [ack(1, 10, 1, AckLevel::Received)]);
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
        p.handle_written(Offset(11));
        assert_eq!(effects(&mut p), []);
        p.handle_durable(Offset(11));
        assert_eq!(effects(&mut p), [ack(1, 10, 1, AckLevel::Durable), Effect::Wake { token: "next" }]);
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
    fn the_stamp_carries_the_reign_and_the_durable_end() {
        let mut p = partition();
        p.handle_append(1, AckLevel::Received, 1);
        let placed = p.handle_append(1, AckLevel::Received, 2);
        let expected = Placement { base_offset: Offset(11), leader_epoch: LeaderEpoch(3), durable_hint: Offset(10) };
        assert_eq!(placed, expected);
    }
}

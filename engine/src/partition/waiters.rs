//! Who waits for a partition to move: appends for their ack, fetches for new records. Both are kept in the order of
//! what they wait for, so that a move touches only those it serves.

use std::collections::{BTreeMap, VecDeque};

use super::ends::Ends;
use crate::types::{AckLevel, Offset};

/// An append that waits to be as safe as it asked to be.
#[derive(Debug)]
pub struct PendingAck<A> {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// What it waits for.
    pub level: AckLevel,
    /// The one who waits.
    pub token: A,
}

/// The appends of a partition that are not acknowledged, in offset order.
#[derive(Debug)]
pub struct AckQueue<A> {
    pending: VecDeque<PendingAck<A>>,
    /// How many of them wait for each level, by its code.
    by_level: [usize; 5],
}

impl<A> AckQueue<A> {
    /// Adds an append. Offsets are assigned in order, so it goes to the end.
    pub fn push(&mut self, ack: PendingAck<A>) {
        if let Some(last) = self.pending.back() {
            assert!(last.end_offset == ack.base_offset, "append at {} behind {}", ack.base_offset, last.end_offset);
        }
        self.by_level[usize::from(ack.level.code())] += 1;
        self.pending.push_back(ack);
    }

    /// Takes the first append if `ends` fulfils what it asked for. Later ones wait for it even if they ask for less:
    /// what is acknowledged must be visible, and the high watermark cannot jump over a record.
    pub fn pop_fulfilled(&mut self, ends: &Ends) -> Option<PendingAck<A>> {
        let first = self.pending.front()?;
        if reached(first.level, ends) >= first.end_offset { self.pop() } else { None }
    }

    /// Takes the first append, fulfilled or not.
    pub fn pop(&mut self) -> Option<PendingAck<A>> {
        let first = self.pending.pop_front()?;
        self.by_level[usize::from(first.level.code())] -= 1;
        Some(first)
    }

    /// Whether one waits for `level` or more.
    pub fn waits_for(&self, level: AckLevel) -> bool {
        self.by_level[usize::from(level.code())..].iter().any(|count| *count > 0)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

impl<A> Default for AckQueue<A> {
    fn default() -> Self {
        AckQueue { pending: VecDeque::new(), by_level: [0; 5] }
    }
}

/// The repeated appends of a partition that wait until what they repeat is as safe as they ask for.
///
/// By level, and within one by the offset after the last record. They are beside the line of [`AckQueue`]: what they
/// wait for has a place in it already, or had one.
#[derive(Debug)]
pub struct DuplicateQueue<A> {
    by_level: [BTreeMap<(Offset, u64), PendingAck<A>>; 5],
    next_serial: u64,
}

impl<A> DuplicateQueue<A> {
    /// Adds a repeated append.
    pub fn push(&mut self, ack: PendingAck<A>) {
        let level = usize::from(ack.level.code());
        self.by_level[level].insert((ack.end_offset, self.next_serial), ack);
        self.next_serial += 1;
    }

    /// Takes one whose records are as safe as it asks for, and visible.
    pub fn pop_fulfilled(&mut self, ends: &Ends) -> Option<PendingAck<A>> {
        self.by_level.iter_mut().find_map(|waiting| {
            let first = waiting.first_entry()?;
            let reached = reached(first.get().level, ends).min(ends.high_watermark());
            (first.key().0 <= reached).then(|| first.remove())
        })
    }

    /// Takes one, fulfilled or not.
    pub fn pop(&mut self) -> Option<PendingAck<A>> {
        self.by_level.iter_mut().find_map(|waiting| waiting.pop_first()).map(|(_, ack)| ack)
    }

    /// Whether one waits for `level` or more.
    pub fn waits_for(&self, level: AckLevel) -> bool {
        self.by_level[usize::from(level.code())..].iter().any(|waiting| !waiting.is_empty())
    }
}

impl<A> Default for DuplicateQueue<A> {
    fn default() -> Self {
        DuplicateQueue { by_level: std::array::from_fn(|_| BTreeMap::new()), next_serial: 0 }
    }
}

/// Up to where records are as safe as `level` says.
fn reached(level: AckLevel, ends: &Ends) -> Offset {
    match level {
        AckLevel::Received => ends.received_end(),
        AckLevel::Written => ends.written_end(),
        AckLevel::Durable | AckLevel::Quorum => ends.durable_end(),
    }
}

/// Names a waiting fetch, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitId {
    offset: Offset,
    serial: u64,
}

/// The fetches of a partition that wait for records from some offset on.
#[derive(Debug)]
pub struct FetchQueue<F> {
    waiting: BTreeMap<WaitId, F>,
    next_serial: u64,
}

impl<F> FetchQueue<F> {
    /// Adds a fetch that waits for the record at `offset`.
    pub fn push(&mut self, offset: Offset, token: F) -> WaitId {
        let id = WaitId { offset, serial: self.next_serial };
        self.next_serial += 1;
        self.waiting.insert(id, token);
        id
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a fetch back; `None` if it was served.
    pub fn cancel(&mut self, id: WaitId) -> Option<F> {
        self.waiting.remove(&id)
    }

    /// Takes one fetch whose record is below `high_watermark`.
    pub fn pop_served(&mut self, high_watermark: Offset) -> Option<F> {
        let first = self.waiting.first_entry()?;
        (first.key().offset < high_watermark).then(|| first.remove())
    }

    /// Takes one fetch, whatever it waits for.
    pub fn pop(&mut self) -> Option<F> {
        self.waiting.pop_first().map(|(_, token)| token)
    }
}

impl<F> Default for FetchQueue<F> {
    fn default() -> Self {
        FetchQueue { waiting: BTreeMap::new(), next_serial: 0 }
    }
}

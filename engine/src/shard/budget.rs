//! The memory that requests in flight on one core may use. When it is used up, readers of streams wait here, and QUIC's
//! flow control carries the back-pressure to the clients: nothing grows with load.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
};

use crate::{
    metrics::CoreMetrics,
    testing::bug::{PlantedBug, planted},
};

/// A counted amount of memory.
pub struct Budget {
    limit_bytes: usize,
    used_bytes: Cell<usize>,
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next_ticket: Cell<u64>,
    metrics: Arc<CoreMetrics>,
}

/// Bytes taken from a [`Budget`], given back when this is dropped.
pub struct Reservation {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit_bytes`.
    pub fn new(limit_bytes: usize, metrics: Arc<CoreMetrics>) -> Rc<Self> {
        Rc::new(Budget {
            limit_bytes,
            used_bytes: Cell::new(0),
            waiting: RefCell::default(),
            next_ticket: Cell::new(0),
            metrics,
        })
    }

    /// How much there is in all.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// How much is taken.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.get()
    }

    /// Takes `bytes`, if so much is free and nobody waits. More than the whole budget is given when nothing else is
    /// taken, so that a small budget slows a large request down but never blocks it for ever.
    pub fn try_reserve(self: &Rc<Self>, bytes: usize) -> Option<Reservation> {
        if self.waiting.borrow().is_empty() { self.take(bytes) } else { None }
    }

    /// Nothing yet, whoever waits; to be grown to the size of memory that is there already.
    pub fn empty(self: &Rc<Self>) -> Reservation {
        Reservation { budget: Rc::clone(self), bytes: 0 }
    }

    /// Takes `bytes`, waiting in line until so much is free.
    pub async fn reserve(self: &Rc<Self>, bytes: usize) -> Reservation {
        if let Some(reservation) = self.try_reserve(bytes) {
            return reservation;
        }
        let ticket = self.next_ticket.replace(self.next_ticket.get() + 1);
        let place = Place { budget: self, ticket };
        poll_fn(|context| {
            let mut waiting = self.waiting.borrow_mut();
            let first = waiting.front().is_none_or(|(first, _)| *first == ticket);
            if first && let Some(reservation) = self.take(bytes) {
                return Poll::Ready(reservation);
            }
            match waiting.iter_mut().find(|(other, _)| *other == ticket) {
                Some((_, waker)) => waker.clone_from(context.waker()),
                None => waiting.push_back((ticket, context.waker().clone())),
            }
            drop(waiting);
            let _in_line = &place;
            Poll::Pending
        })
        .await
    }

    fn take(self: &Rc<Self>, bytes: usize) -> Option<Reservation> {
        let used = self.used_bytes.get();
        let fits = used.saturating_add(bytes) <= self.limit_bytes || used == 0;
        fits.then(|| {
            self.set_used(used + bytes);
            Reservation { budget: Rc::clone(self), bytes }
        })
    }

    fn set_used(&self, bytes: usize) {
        self.used_bytes.set(bytes);
        self.metrics.memory_reserved_bytes.set(bytes as u64);
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.waiting.borrow().front() {
            waker.wake_by_ref();
        }
    }
}

impl Reservation {
    /// Makes this a reservation of `bytes`. Growing goes beyond the budget if it must: it counts memory that is there
    /// already, and makes others wait.
    pub fn resize(&mut self, bytes: usize) {
        let others = self.budget.used_bytes.get() - self.bytes;
        let shrunk = bytes < self.bytes;
        self.bytes = bytes;
        self.budget.set_used(others + bytes);
        if shrunk {
            self.budget.wake_first();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if planted(PlantedBug::LeakBudget) && self.bytes.is_multiple_of(7) {
            return;
        }
        let used = self.budget.used_bytes.get();
        assert!(used >= self.bytes, "{} bytes given back of {used} taken", self.bytes);
        self.budget.set_used(used - self.bytes);
        self.budget.wake_first();
    }
}

/// A place in the line; given up when the one who waits is served or goes away, and then the next one's turn comes.
struct Place<'a> {
    budget: &'a Budget,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.waiting.borrow_mut().retain(|(ticket, _)| *ticket != self.ticket);
        self.budget.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        task::Context,
    };

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn those_who_wait_are_served_in_order_and_one_who_leaves_blocks_nobody() {
        let budget = Budget::new(100, Arc::default());
        let first = budget.try_reserve(80).unwrap();
        let mut second = Box::pin(budget.reserve(50));
        let mut third = pin!(budget.reserve(10));
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_pending(), "the third would fit but must not overtake");
        drop(second);
        let Poll::Ready(third) = poll(third.as_mut()) else { panic!("the place of the second is still taken") };
        drop((first, third));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn memory_that_turned_out_smaller_lets_the_next_in_and_larger_keeps_it_out() {
        let budget = Budget::new(100, Arc::default());
        let mut first = budget.try_reserve(90).unwrap();
        let mut second = pin!(budget.reserve(50));
        assert!(poll(second.as_mut()).is_pending());
        first.resize(40);
        let Poll::Ready(second) = poll(second.as_mut()) else { panic!("50 of 60 free bytes were not given") };
        first.resize(140);
        assert_eq!(budget.used_bytes(), 190);
        assert!(budget.try_reserve(1).is_none());
        drop((first, second));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_request_larger_than_the_budget_is_served_alone() {
        let budget = Budget::new(100, Arc::default());
        let small = budget.try_reserve(1).unwrap();
        assert!(budget.try_reserve(1000).is_none());
        drop(small);
        assert!(budget.try_reserve(1000).is_some());
    }
}

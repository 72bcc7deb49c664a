//! The simulated ring from one core to another: bounded, in order, and sometimes slow.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::executor::{Stream, World};
use super::faults::FaultKind;
use crate::runtime::{RingReceiver, RingSender};

struct Ring<T> {
    /// Items with the time from which on they can be received.
    items: VecDeque<(Duration, T)>,
    capacity: usize,
    sender_gone: bool,
    receiver_gone: bool,
    receiver: Option<Waker>,
    senders: Vec<Waker>,
}

/// See [`RingSender`].
pub struct SimSender<T> {
    world: Rc<World>,
    ring: Rc<RefCell<Ring<T>>>,
}

/// See [`RingReceiver`].
pub struct SimReceiver<T> {
    world: Rc<World>,
    ring: Rc<RefCell<Ring<T>>>,
}

/// A ring with room for `capacity` items.
pub(super) fn ring<T>(world: &Rc<World>, capacity: usize) -> (SimSender<T>, SimReceiver<T>) {
    let ring = Rc::new(RefCell::new(Ring {
        items: VecDeque::new(),
        capacity,
        sender_gone: false,
        receiver_gone: false,
        receiver: None,
        senders: Vec::new(),
    }));
    let sender = SimSender { world: Rc::clone(world), ring: Rc::clone(&ring) };
    (sender, SimReceiver { world: Rc::clone(world), ring })
}

impl<T: Send + 'static> RingSender<T> for SimSender<T> {
    fn try_send(&self, item: T) -> Result<(), T> {
        let mut ring = self.ring.borrow_mut();
        if ring.receiver_gone || ring.items.len() >= ring.capacity {
            return Err(item);
        }
        let mut arrives = self.world.now();
        if self.world.fault(FaultKind::RingDelay, Stream::Ring) {
            let nanos = self.world.random(Stream::Ring, |random| random.within(1_000..5_000_000));
            arrives += Duration::from_nanos(nanos);
        }
        // No overtaking.
        arrives = arrives.max(ring.items.back().map_or(Duration::ZERO, |(when, _)| *when));
        ring.items.push_back((arrives, item));
        if let Some(waker) = ring.receiver.take() {
            waker.wake();
        }
        Ok(())
    }

    async fn send(&self, item: T) -> Result<(), T> {
        let mut waiting = Some(item);
        poll_fn(|context| {
            let Some(item) = waiting.take() else { return Poll::Ready(Ok(())) };
            match self.try_send(item) {
                Ok(()) => Poll::Ready(Ok(())),
                Err(item) if self.ring.borrow().receiver_gone => Poll::Ready(Err(item)),
                Err(item) => {
                    waiting = Some(item);
                    self.ring.borrow_mut().senders.push(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl<T: Send + 'static> RingReceiver<T> for SimReceiver<T> {
    async fn recv(&self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }
}

impl<T> SimReceiver<T> {
    fn poll_recv(&self, context: &Context<'_>) -> Poll<Option<T>> {
        let mut ring = self.ring.borrow_mut();
        let arrives = ring.items.front().map(|(when, _)| *when);
        match arrives {
            Some(when) if when <= self.world.now() => {
                ring.senders.drain(..).for_each(Waker::wake);
                Poll::Ready(ring.items.pop_front().map(|(_, item)| item))
            }
            Some(when) => {
                let waker = context.waker().clone();
                self.world.at(when, move || waker.wake());
                Poll::Pending
            }
            None if ring.sender_gone => Poll::Ready(None),
            None => {
                ring.receiver = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for SimSender<T> {
    fn drop(&mut self) {
        let mut ring = self.ring.borrow_mut();
        ring.sender_gone = true;
        if let Some(waker) = ring.receiver.take() {
            waker.wake();
        }
    }
}

impl<T> Drop for SimReceiver<T> {
    fn drop(&mut self) {
        let mut ring = self.ring.borrow_mut();
        ring.receiver_gone = true;
        ring.senders.drain(..).for_each(Waker::wake);
        // Dropped outside of the borrow: an item may hold anything.
        let items = std::mem::take(&mut ring.items);
        drop(ring);
        drop(items);
    }
}

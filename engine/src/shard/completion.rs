//! How answers come back: a queue per asker, so that a burst of acks wakes it once and is written as one.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use super::{
    mailbox::Outbox,
    request::Outcome,
    stages::{Stage, StageClock},
};
use crate::{error::RequestError, runtime::Runtime};

/// Collects the outcomes of many requests for one asker, who gives each a token of its own choosing.
#[derive(Default)]
pub struct CompletionQueue {
    outcomes: RefCell<VecDeque<(u64, Outcome)>>,
    waiting: Cell<Option<Waker>>,
}

impl CompletionQueue {
    /// An empty queue.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// The way back for the request that the asker calls `token`.
    pub fn reply_to(self: &Rc<Self>, token: u64) -> ReplyTo {
        ReplyTo { asker: Some(Asker::Queue(Rc::clone(self))), token, clock: None }
    }

    /// Waits until at least one outcome is there. One task at a time may wait.
    pub async fn ready(&self) {
        poll_fn(|context| {
            if !self.outcomes.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.waiting.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Takes the oldest outcome, if there is one.
    pub fn pop(&self) -> Option<(u64, Outcome)> {
        self.outcomes.borrow_mut().pop_front()
    }

    /// Whether no outcome waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.outcomes.borrow().is_empty()
    }

    fn push(&self, token: u64, outcome: Outcome) {
        self.outcomes.borrow_mut().push_back((token, outcome));
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

/// The way back for one request's outcome. Dropped unused, it reports that the outcome is unknown: no asker waits for
/// ever.
pub struct ReplyTo {
    asker: Option<Asker>,
    token: u64,
    /// Measures the request, if its client asked.
    clock: Option<StageClock>,
}

enum Asker {
    /// A task of this core.
    Queue(Rc<CompletionQueue>),
    /// Another core, which passed the request on.
    Core(Rc<Outbox>),
}

impl ReplyTo {
    /// The way back to the core behind `outbox`, which calls the request `token`.
    pub(super) fn core(outbox: &Rc<Outbox>, token: u64) -> Self {
        ReplyTo { asker: Some(Asker::Core(Rc::clone(outbox))), token, clock: None }
    }

    /// Has the request measured by `clock`.
    pub fn timed(mut self, clock: Option<StageClock>) -> Self {
        self.clock = clock;
        self
    }

    /// What measures the request.
    pub(super) fn clock(&self) -> Option<StageClock> {
        self.clock
    }

    /// `stage` is over now.
    pub(super) fn mark(&mut self, stage: Stage, runtime: &impl Runtime) {
        if let Some(clock) = &mut self.clock {
            clock.mark(stage, runtime.monotonic());
        }
    }

    /// Delivers the outcome.
    pub fn send(mut self, outcome: Outcome) {
        self.deliver(outcome);
    }

    fn deliver(&mut self, outcome: Outcome) {
        match self.asker.take() {
            Some(Asker::Queue(queue)) => queue.push(self.token, outcome),
            Some(Asker::Core(outbox)) => outbox.push_response(self.token, outcome),
            None => {}
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        let reason = "the core stopped before it could answer";
        if self.asker.is_some() {
            self.deliver(Err(RequestError::OutcomeUnknown { reason: reason.to_owned() }));
        }
    }
}

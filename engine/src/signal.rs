//! Wakes tasks of the same core: the one way a task tells others that something they wait for has changed.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
};

/// Tasks wait, somebody notifies, all of them look again. A notification without a waiter is not kept: wait in a loop
/// that checks its condition first.
#[derive(Default)]
pub struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Wakes all who wait.
    pub fn notify(&self) {
        let woken = std::mem::take(&mut *self.waiting.borrow_mut());
        for waker in woken {
            waker.wake();
        }
    }

    /// Waits for the next [`Signal::notify`] after the first poll; may return early.
    pub async fn wait(&self) {
        let mut registered = false;
        poll_fn(|context| {
            if registered {
                return Poll::Ready(());
            }
            registered = true;
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until `condition` holds; it is checked first and after every notification.
    pub async fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        while !condition() {
            self.wait().await;
        }
    }
}

/// What only one task of a core does at a time, though it waits in between.
#[derive(Default)]
pub struct Turns {
    busy: Cell<bool>,
    free: Signal,
}

/// Somebody's turn. Ends when it is dropped, also half-way.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// Whether it is somebody's turn.
    pub fn is_taken(&self) -> bool {
        self.busy.get()
    }

    /// Waits for a turn.
    pub async fn take(&self) -> Turn<'_> {
        self.free.wait_until(|| !self.busy.get()).await;
        self.busy.set(true);
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        self.0.free.notify();
    }
}

//! The rings between cores.

use std::{rc::Rc, time::Duration};

use futures_util::future::{join, join_all};
use glommio::{
    GlommioError, ResourceType,
    channels::shared_channel::{ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender, new_bounded},
};

use super::{
    super::{Mesh, RingReceiver, RingSender, Runtime},
    GlommioRuntime,
};

/// How long a sender whose ring is full waits before it looks again. A ring of a thousand drains in about this time.
const FULL_RING_PAUSE: Duration = Duration::from_micros(100);

/// How often an executor wakes while its rings are being connected.
const CONNECT_TICK: Duration = Duration::from_millis(1);

/// One core's seat in a [`mesh`]; moves to its core, where [`MeshSeat::connect`] makes it usable.
pub struct MeshSeat<T: Send + 'static> {
    senders: Vec<Option<SharedSender<T>>>,
    receivers: Vec<Option<SharedReceiver<T>>>,
}

/// A ring from every one of `cores` cores to every other, each with room for `capacity` items: one seat per core.
pub fn mesh<T: Send + 'static>(cores: usize, capacity: usize) -> Vec<MeshSeat<T>> {
    let mut seats: Vec<MeshSeat<T>> = (0..cores)
        .map(|_| MeshSeat {
            senders: (0..cores).map(|_| None).collect(),
            receivers: (0..cores).map(|_| None).collect(),
        })
        .collect();
    for from in 0..cores {
        for to in (0..cores).filter(|to| *to != from) {
            let (sender, receiver) = new_bounded(capacity);
            seats[from].senders[to] = Some(sender);
            seats[to].receivers[from] = Some(receiver);
        }
    }
    seats
}

impl<T: Send + 'static> MeshSeat<T> {
    /// Connects this core's rings. Returns when every other core has done the same.
    pub async fn connect(self, runtime: &GlommioRuntime) -> Mesh<GlommioRuntime, T> {
        // An executor that sleeps while its peer connects may miss the wake-up for good (seen in 15 of 20 starts of
        // four executors). A timer that keeps waking it until all stands cures it (0 of 20).
        let connecting = Rc::new(());
        let (alive, ticker) = (Rc::downgrade(&connecting), runtime.clone());
        runtime.spawn(async move {
            while alive.upgrade().is_some() {
                ticker.sleep(CONNECT_TICK).await;
            }
        });
        // All at once: each waits for its peer, so one after the other would be a deadlock.
        let senders = join_all(self.senders.into_iter().map(async |sender| match sender {
            Some(sender) => Some(GlommioSender { ring: sender.connect().await }),
            None => None,
        }));
        let receivers = join_all(self.receivers.into_iter().map(async |receiver| match receiver {
            Some(receiver) => Some(GlommioReceiver { ring: receiver.connect().await }),
            None => None,
        }));
        let (senders, receivers) = join(senders, receivers).await;
        drop(connecting);
        Mesh { senders, receivers }
    }
}

/// See [`RingSender`].
pub struct GlommioSender<T: Send + 'static> {
    ring: ConnectedSender<T>,
}

impl<T: Send + 'static> RingSender<T> for GlommioSender<T> {
    fn try_send(&self, item: T) -> Result<(), T> {
        self.ring.try_send(item).map_err(|error| match error {
            GlommioError::WouldBlock(ResourceType::Channel(item))
            | GlommioError::Closed(ResourceType::Channel(item)) => item,
            other => unreachable!("a channel refuses only because it is full or closed: {other}"),
        })
    }

    async fn send(&self, mut item: T) -> Result<(), T> {
        // Not glommio's own `send`: it waits for ever when the receiver goes away while the ring is full.
        loop {
            match self.ring.try_send(item) {
                Ok(()) => return Ok(()),
                Err(GlommioError::WouldBlock(ResourceType::Channel(refused))) => item = refused,
                Err(GlommioError::Closed(ResourceType::Channel(refused))) => return Err(refused),
                Err(other) => unreachable!("a channel refuses only because it is full or closed: {other}"),
            }
            glommio::timer::sleep(FULL_RING_PAUSE).await;
        }
    }
}

/// See [`RingReceiver`].
pub struct GlommioReceiver<T: Send + 'static> {
    ring: ConnectedReceiver<T>,
}

impl<T: Send + 'static> RingReceiver<T> for GlommioReceiver<T> {
    async fn recv(&self) -> Option<T> {
        self.ring.recv().await
    }
}

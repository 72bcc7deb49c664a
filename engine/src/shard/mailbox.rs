//! Crossing from core to core, in one place: what goes out to each other core, and what waits for an answer from it.
//!
//! Every pair of cores has a ring each way. What does not fit into the ring waits in the [`Outbox`], which the request
//! budgets of the clients bound; one task per ring empties it, so a burst of messages costs one wake-up.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::{
    CopyId,
    completion::ReplyTo,
    request::{Outcome, Reply, Request},
    stages::StageClock,
    trust::Sufferer,
};
use crate::{
    catalog::Catalog,
    error::RequestError,
    record::ProducerHistory,
    replication::{self, assignment::ReplicaId},
    runtime::{RingSender, Runtime},
    signal::Signal,
    testing::bug::{PlantedBug, planted},
    types::{CoreId, LeaderEpoch, Offset, PartitionId},
};

/// What one core says to another.
#[derive(Debug)]
pub enum Message {
    /// Carry this out; the answer carries the same number.
    Request {
        /// Chosen by the sender.
        id: u64,
        /// What to do.
        request: Request,
        /// Measures it, if its client asked.
        clock: Option<StageClock>,
    },
    /// The answer to a request.
    Response {
        /// The request's.
        id: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// The logs are these from now on: open those that are new and yours, close and remove those that are gone.
    Catalog {
        /// Chosen by the sender.
        id: u64,
        /// The new state.
        catalog: Arc<Catalog>,
    },
    /// The catalogue was taken over.
    CatalogTaken {
        /// The message's.
        id: u64,
        /// What went wrong with a new log.
        result: Result<(), RequestError>,
    },
    /// The next catalogue has the receiver open a copy that was closed.
    Closed {
        /// The copy.
        copy: CopyId,
        /// Where its log ended, all of it durable.
        end: Offset,
    },
    /// One copy of a partition says something to another.
    Replica {
        /// The partition.
        partition: PartitionId,
        /// The copy that speaks.
        from: ReplicaId,
        /// The copy that is meant.
        to: ReplicaId,
        /// What it says.
        message: replication::message::Message<Bytes>,
    },
    /// What the leader of a partition knows of producers, for a copy whose log it is about to begin anew: what is said
    /// by batches that are deleted stands in no log.
    Producers {
        /// The partition.
        partition: PartitionId,
        /// The copy that is meant.
        to: ReplicaId,
        /// What all batches of the leader's log, and those before it, say.
        history: Box<ProducerHistory>,
    },
    /// A copy of a partition stopped: its drive failed, or does not answer.
    Suspect {
        /// The partition.
        partition: PartitionId,
        /// The copy.
        copy: ReplicaId,
    },
    /// The sender leads a partition from now on.
    Leads {
        /// The partition.
        partition: PartitionId,
        /// The reign.
        epoch: LeaderEpoch,
    },
    /// The sender is alive.
    Pulse,
    /// A write or a sync failed on the sender.
    DriveFailed {
        /// Whose.
        sufferer: Sufferer,
        /// What happened.
        reason: String,
    },
}

/// What waits to go to one other core.
#[derive(Default)]
pub struct Outbox {
    waiting: RefCell<VecDeque<Message>>,
    filled: Signal,
}

impl Outbox {
    /// Adds a message.
    pub fn push(&self, message: Message) {
        self.waiting.borrow_mut().push_back(message);
        self.filled.notify();
    }

    /// Adds an answer. Bytes of this core's buffers must not leave it, so they are copied.
    pub fn push_response(&self, id: u64, outcome: Outcome) {
        let outcome = outcome.map(|reply| match reply {
            Reply::Fetched(mut fetched) => {
                let len = fetched.batches.iter().map(Bytes::len).sum();
                let mut copy = BytesMut::with_capacity(len);
                fetched.batches.iter().for_each(|piece| copy.extend_from_slice(piece));
                fetched.batches = if len == 0 { Vec::new() } else { vec![copy.freeze()] };
                Reply::Fetched(fetched)
            }
            other => other,
        });
        self.push(Message::Response { id, outcome });
    }

    /// Takes the oldest message, as soon as there is one.
    pub async fn next(&self) -> Message {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            match next {
                Some(message) => return message,
                None => self.filled.wait_until(|| !self.waiting.borrow().is_empty()).await,
            }
        }
    }

    /// Sends what is pushed, for ever; ends when the other core is gone.
    pub async fn drain<R: Runtime>(self: Rc<Self>, ring: R::Sender<Message>) {
        while ring.send(self.next().await).await.is_ok() {}
    }
}

/// One core's outboxes and unanswered requests.
pub struct Mailbox {
    outboxes: Vec<Rc<Outbox>>,
    next_id: Cell<u64>,
    unanswered: RefCell<BTreeMap<u64, ReplyTo>>,
}

impl Mailbox {
    /// The mailbox of one of `cores` cores.
    pub fn new(cores: usize) -> Self {
        Mailbox {
            outboxes: (0..cores).map(|_| Rc::default()).collect(),
            next_id: Cell::new(0),
            unanswered: RefCell::default(),
        }
    }

    /// What waits to go to `core`.
    pub fn outbox(&self, core: CoreId) -> &Rc<Outbox> {
        &self.outboxes[usize::from(core.0)]
    }

    /// A number that no other message of this core has.
    pub fn next_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    /// Passes a request on to the core that owns what it concerns.
    pub fn pass_on(&self, core: CoreId, request: Request, reply: ReplyTo) {
        let (id, clock) = (self.next_id(), reply.clock());
        self.unanswered.borrow_mut().insert(id, reply);
        self.outbox(core).push(Message::Request { id, request, clock });
    }

    /// Messages that are not sent, and requests without an answer.
    pub fn pending(&self) -> usize {
        let waiting: usize = self.outboxes.iter().map(|outbox| outbox.waiting.borrow().len()).sum();
        waiting + self.unanswered.borrow().len()
    }

    /// An answer came.
    pub fn answer(&self, id: u64, outcome: Outcome) {
        if planted(PlantedBug::LoseAnswer) && id % 64 == 63 {
            return;
        }
        let reply = self.unanswered.borrow_mut().remove(&id);
        if let Some(reply) = reply {
            reply.send(outcome);
        }
    }
}

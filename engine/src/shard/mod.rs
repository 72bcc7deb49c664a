//! One core of the server: takes a request, feeds the partition it concerns, and carries out the partition's effects on its log.
//!
//! A shard owns every partition that [`placement`] gives its core, with all their state, as plain data. What concerns another
//! core's partition goes through [`mailbox`], visibly.

use std::{rc::Rc, sync::Arc};

pub mod budget;
pub mod completion;
pub mod control;
pub mod placement;
pub mod request;

use budget::Budget;
use completion::ReplyTo;
use request::{Outcome, Request};

use crate::{
    catalog::Catalog,
    metrics::CoreMetrics,
    runtime::Runtime,
    types::{CoreId, PartitionId},
};

/// A core's shard; cheap to clone, never leaves its core.
pub struct Shard<R: Runtime> {
    runtime: R,
}

impl<R: Runtime> Clone for Shard<R> {
    fn clone(&self) -> Self {
        Shard { runtime: self.runtime.clone() }
    }
}

impl<R: Runtime> Shard<R> {
    /// Which core this is.
    pub fn core(&self) -> CoreId {
        unreachable!()
    }

    /// How many cores the server has.
    pub fn cores(&self) -> usize {
        unreachable!()
    }

    /// The door to the world of this core.
    pub fn runtime(&self) -> &R {
        &self.runtime
    }

    /// What this core counts.
    pub fn metrics(&self) -> &Arc<CoreMetrics> {
        unreachable!()
    }

    /// The memory that requests in flight on this core may use.
    pub fn budget(&self) -> &Rc<Budget> {
        unreachable!()
    }

    /// The logs that exist, as this core knows them now.
    pub fn catalog(&self) -> Arc<Catalog> {
        unreachable!()
    }

    /// The core that owns `partition`.
    pub fn owner(&self, partition: PartitionId) -> CoreId {
        let _ = partition;
        unreachable!()
    }

    /// Carries out `request`, here or on the core that owns what it concerns, and delivers the outcome to `reply`. Never waits.
    pub fn submit(&self, request: Request, reply: ReplyTo) {
        let _ = (request, reply);
    }

    /// [`Shard::submit`] for callers that want one answer.
    pub async fn call(&self, request: Request) -> Outcome {
        let _ = request;
        unreachable!()
    }
}

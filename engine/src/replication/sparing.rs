//! Whether the others can do without what a replica has whose drive does not give it, so that it may take its memory
//! for lost and be rebuilt from its leader, like one on an empty drive.
//!
//! That is a loss that nobody has to bear: the replica could as well wait for its drive. So it is one only if every
//! record that is final is, durably and whole, on enough of the others to elect a leader, as they said in their
//! sessions with this one. And it comes after all that are known: who asks is out of service, so what it said before
//! counts for nothing when the next one asks.

use std::time::Duration;

use super::{
    Replica, Role,
    assignment::{ReplicaId, ReplicaSet},
    leader::Leader,
    own::Own,
};
use crate::types::Offset;

impl Leader {
    fn can_spare<B>(&self, own: &Own<B>, copy: ReplicaId) -> bool {
        let Some(asking) = self.followers.get(&copy) else { return false };
        let is_all = self.moved.durable.max(own.committed());
        let able = self.followers.iter().filter(|(replica, progress)| {
            **replica != copy && progress.accepted && !progress.damaged && progress.held.durable >= is_all
        });
        let has_all = own.saved.accepted == self.epoch && !own.damaged && own.held.durable >= is_all;
        let able: ReplicaSet = able.map(|(replica, _)| *replica).chain(has_all.then_some(own.id)).collect();
        // By the operator's word everything goes that this leader lacked when its reign began.
        let was_given_up = own.ballot.forced == self.epoch && asking.promised_durable == Offset(0);
        own.ballot.config.is_election_quorum(able) || was_given_up
    }
}

impl<B> Replica<B> {
    /// The replica `copy` is out of service, since its drive does not give what it has. Gives whether it may take its
    /// memory for lost. Only a leader can say.
    pub fn handle_out_of_service(&mut self, copy: ReplicaId, now: Duration) -> bool {
        let Role::Leader(leader) = &mut self.role else { return false };
        leader.handle_stranger(&mut self.own, copy, now);
        leader.can_spare(&self.own, copy)
    }
}

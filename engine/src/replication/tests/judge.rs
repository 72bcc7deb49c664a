//! What must hold in every state, whatever happened before.

use std::collections::BTreeMap;

use super::super::{
    assignment::{Members, ReplicaId, ReplicaSet},
    effect::Effect,
    message::Claim,
    reads::ReadTicket,
};
use super::world::{Bytes, Node, Record};
use crate::types::{LeaderEpoch, Offset};

/// Remembers what was promised to the world outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Judge {
    /// The records that were acknowledged as durable by a write quorum, by offset.
    pub acked: Vec<Record>,
    /// The last reign in which one was.
    acked_in: LeaderEpoch,
    /// Who led in which epoch.
    leaders: BTreeMap<LeaderEpoch, ReplicaId>,
    /// Reads that wait, with how much was acknowledged when they came.
    reads: Vec<(ReplicaId, ReadTicket, usize)>,
    /// Refusals that wait, and whether there was a later leader when they came.
    refusals: Vec<(ReplicaId, ReadTicket, bool)>,
    /// A read must see every write that was acknowledged before it.
    linearizable: bool,
    /// A replica that has an old copy of its drive and does not know it. Nobody can say what an election without the
    /// leader that remembers would come to; with that leader, it must be found out.
    pub stale: Option<ReplicaId>,
    /// Where the log was shown to begin.
    pub begins: u64,
    /// An operator accepted a loss: what was acknowledged until then may be gone.
    pub loss_accepted: bool,
    /// More replicas lost what they had than a write quorum can spare: only what is shown is judged.
    pub beyond_repair: bool,
}

impl Judge {
    pub fn new(members: Members) -> Self {
        Judge {
            acked: Vec::new(),
            acked_in: LeaderEpoch(0),
            leaders: BTreeMap::new(),
            reads: Vec::new(),
            refusals: Vec::new(),
            linearizable: members.reads_are_linearizable(),
            stale: None,
            begins: 0,
            loss_accepted: false,
            beyond_repair: false,
        }
    }

    pub fn asked(&mut self, id: ReplicaId, ticket: ReadTicket) {
        self.reads.push((id, ticket, self.acked.len()));
    }

    /// A leader of `epoch` is to refuse something by its log.
    pub fn asked_to_refuse(&mut self, (id, epoch): (ReplicaId, LeaderEpoch), ticket: ReadTicket) {
        let is_over = self.leaders.range(epoch..).any(|(later, _)| *later > epoch);
        self.refusals.push((id, ticket, is_over));
    }

    pub fn forget_reads(&mut self, id: ReplicaId) {
        self.reads.retain(|(reader, ..)| *reader != id);
        self.refusals.retain(|(leader, ..)| *leader != id);
    }

    /// Judges what a replica does.
    pub fn see(&mut self, nodes: &[Node], id: ReplicaId, effect: &Effect<Bytes>) {
        let Node { replica, disk, .. } = &nodes[usize::from(id.0)];
        match effect {
            Effect::Lead { epoch, .. } => {
                let before = self.leaders.insert(*epoch, id);
                assert!(before.is_none_or(|before| before == id), "C9: {before:?} and {id} both lead in {epoch}");
                if self.loss_accepted || self.beyond_repair {
                    let kept = disk.log.len().min(self.acked.len());
                    self.acked.truncate(kept);
                }
                // Votes may come late, when a later reign has acknowledged records: those do not count any more.
                let known = if *epoch < self.acked_in { &[] } else { &self.acked[..] };
                let has = &disk.log[..];
                for (at, record) in known.iter().enumerate().skip(disk.log_start as usize) {
                    let own = has.get(at - disk.log_start as usize);
                    assert!(
                        own == Some(record),
                        "C1: leader {id} of {epoch} has {own:?} at {at} instead of {record:?}"
                    );
                }
            }
            Effect::Moved(held) => {
                let (durable, start) = (held.durable.0 as usize, disk.log_start as usize);
                for at in start..durable {
                    let record = disk.log[at - start];
                    match self.acked.get(at) {
                        Some(acked) => {
                            assert!(*acked == record, "C10: {record:?} acknowledged at {at} after {acked:?}")
                        }
                        None => {
                            self.acked.push(record);
                            self.acked_in = self.acked_in.max(replica.ballot().promised);
                        }
                    }
                }
            }
            Effect::Begins { at } => self.begins = self.begins.max(at.0),
            Effect::Established { epoch } if !self.loss_accepted && !self.beyond_repair => {
                let (begins, seen) = (disk.log_start, self.begins);
                assert!(begins >= seen, "C6: the log of leader {id} of {epoch} begins at {begins}, after {seen}");
            }
            Effect::Follow { .. } => self.forget_reads(id),
            Effect::Rebuilt if self.stale == Some(id) => self.stale = None,
            Effect::Answer { through } => {
                let shown = replica.quorum().expect("an answer before the reign is established").durable.0 as usize;
                let answered = self.reads.iter().filter(|(reader, ticket, _)| *reader == id && ticket <= through);
                for (_, ticket, acked) in answered {
                    let sees = shown >= *acked || !self.linearizable;
                    assert!(sees, "C5: {ticket:?} at {id} sees {shown} of {acked} acknowledged records");
                }
                self.reads.retain(|(reader, ticket, _)| *reader != id || ticket > through);
            }
            Effect::StillLeads { through } => {
                let knows = !self.loss_accepted && !self.beyond_repair && self.stale.is_none();
                let given = self.refusals.iter().filter(|(leader, ticket, _)| *leader == id && ticket <= through);
                for (_, ticket, is_over) in given {
                    assert!(!is_over || !knows, "C8: {id} refuses {ticket:?} after a later leader was elected");
                }
                self.refusals.retain(|(leader, ticket, _)| *leader != id || ticket > through);
            }
            _ => {}
        }
    }

    /// Judges a state.
    pub fn judge(&self, nodes: &[Node]) {
        for (id, node) in nodes.iter().enumerate() {
            judge_what_may_be_sent(node);
            // Who has not heard yet that records were given up still has them.
            if self.loss_accepted && node.replica.ballot().forced == LeaderEpoch(0) {
                continue;
            }
            let committed = node.replica.committed().0 as usize;
            if !self.loss_accepted && !self.beyond_repair {
                assert!(committed <= self.acked.len(), "{id} takes {committed} of {} for final", self.acked.len());
            }
            for at in node.disk.log_start as usize..committed.min(self.acked.len()) {
                let record = node.disk.log[at - node.disk.log_start as usize];
                assert!(record == self.acked[at], "C10: {id} has {record:?} at {at} instead of {:?}", self.acked[at]);
            }
        }
        if !self.loss_accepted && !self.beyond_repair {
            self.judge_survival(nodes);
        }
    }

    /// All that was acknowledged survives if everything crashes now and only as many drives come back as it takes to
    /// elect a leader, whichever these are.
    fn judge_survival(&self, nodes: &[Node]) {
        let disk = |id: ReplicaId| &nodes[usize::from(id.0)].disk;
        let all = (0..nodes.len() as u8).map(ReplicaId).filter(|id| disk(*id).is_intact());
        let all: Vec<ReplicaId> = all.filter(|id| self.stale != Some(*id)).collect();
        for bits in 1u32..1 << all.len() {
            let some = all.iter().enumerate().filter(|(place, _)| bits & (1 << place) != 0).map(|(_, id)| *id);
            let set: ReplicaSet = some.collect();
            let newest = set.iter().map(|id| disk(id).ballot.config).max_by_key(|config| config.id);
            let Some(config) = newest.filter(|config| config.is_election_quorum(set)) else { continue };
            let voters = set.intersection(config.replicas());
            let claim = |id| Claim { accepted: disk(id).ballot.accepted, log_end: Offset(disk(id).durable) };
            let best = voters.iter().map(claim).max();
            for elected in voters.iter().filter(|id| Some(claim(*id)) == best) {
                let disk = disk(elected);
                let durable = &disk.log[..disk.durable.saturating_sub(disk.log_start) as usize];
                for (at, record) in self.acked.iter().enumerate().skip(disk.log_start as usize) {
                    let own = durable.get(at - disk.log_start as usize);
                    assert!(
                        own == Some(record),
                        "C1: {set} elect {elected} with {own:?} at {at} instead of {record:?}"
                    );
                }
            }
        }
    }
}

/// What a leader says may be sent is there, also where it deleted records since it wanted to, and is of one reign.
fn judge_what_may_be_sent(Node { replica, disk, .. }: &Node) {
    for from in 0..=disk.end() {
        let Some(until) = replica.sendable_from(Offset(from)) else { continue };
        assert!(disk.log_start <= from && until.0 <= disk.end(), "{from}..{until} of {disk:?}");
        let records = &disk.log[(from - disk.log_start) as usize..(until.0 - disk.log_start) as usize];
        assert!(!records.is_empty() && records.iter().all(|record| record.epoch == records[0].epoch), "{records:?}");
    }
}

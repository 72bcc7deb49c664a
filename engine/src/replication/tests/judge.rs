//! What must hold in every state, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Reigns that their leader has forgotten: its drive was replaced by one that had not promised them.
    forgotten: BTreeSet<LeaderEpoch>,
    /// Those of them in spite of which something was refused by the log of an earlier reign.
    void: BTreeSet<LeaderEpoch>,
    /// Refusals that wait, with the later reigns that had begun when they came.
    refusals: Vec<(ReplicaId, ReadTicket, Vec<LeaderEpoch>)>,
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
            forgotten: BTreeSet::new(),
            void: BTreeSet::new(),
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
        let later = self.leaders.keys().filter(|later| **later > epoch).copied().collect();
        self.refusals.push((id, ticket, later));
    }

    /// The drive of `id` is replaced by one that has promised no more than `promised`. A reign that goes with it is as
    /// if it had never been, if nobody else who voted for it is left: it has acknowledged nothing then, and will not.
    pub fn replaced(&mut self, id: ReplicaId, promised: LeaderEpoch) {
        let led = self.leaders.iter().filter(|(epoch, leader)| **leader == id && **epoch > promised);
        self.forgotten.extend(led.map(|(epoch, _)| *epoch));
    }

    /// A reign begins; perhaps one of this number was forgotten, and what was said of that one does not go for this.
    fn note_reign(&mut self, epoch: LeaderEpoch) {
        if self.forgotten.remove(&epoch) {
            self.void.remove(&epoch);
            self.refusals.iter_mut().for_each(|(.., later)| later.retain(|later| *later != epoch));
        }
    }

    /// Refusals at `id` up to `through` may be given: by the log that counted when they came.
    fn see_refusals(&mut self, id: ReplicaId, through: ReadTicket) {
        let (given, wait) = std::mem::take(&mut self.refusals)
            .into_iter()
            .partition::<Vec<_>, _>(|(leader, ticket, _)| *leader == id && *ticket <= through);
        self.refusals = wait;
        if self.loss_accepted || self.beyond_repair || self.stale.is_some() {
            return;
        }
        for (_, ticket, later) in given {
            let is_gone = later.iter().all(|epoch| self.forgotten.contains(epoch));
            assert!(is_gone, "C8: {id} refuses {ticket:?} after later leaders were elected, in {later:?}");
            let kept = self.acked.iter().find(|record| later.contains(&record.epoch));
            assert!(kept.is_none(), "C8: {id} refuses {ticket:?} without {kept:?} of a later leader");
            self.void.extend(later);
        }
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
                self.note_reign(*epoch);
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
                            let is_void = self.void.contains(&record.epoch);
                            assert!(!is_void, "C8: {record:?} acknowledged at {at}, after refusals without it");
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
            Effect::StillLeads { through } => self.see_refusals(id, *through),
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

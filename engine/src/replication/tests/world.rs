//! Replicas of one partition, their disks and the messages under way. Whoever drives it decides what happens next.

use std::{collections::BTreeSet, time::Duration};

use super::super::{
    Damaged, Opened, Pace, Replica,
    assignment::{Configuration, Members, ReplicaId},
    ballot::{Ballot, Memory},
    effect::Effect,
    epochs::Epochs,
    message::{Batches, Loaded, Message},
    reads::ReadTicket,
};
use super::judge::Judge;
use crate::types::{AckLevel, LeaderEpoch, Offset};

/// A record: who gave it its place, and which of the appended ones it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    pub epoch: LeaderEpoch,
    pub number: u8,
}

/// One batch is one record here.
pub type Bytes = Vec<Record>;

/// A message under way.
pub type Letter = (ReplicaId, ReplicaId, Message<Bytes>);

/// What a drive has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub ballot: Ballot,
    /// Ballots that are being saved.
    pub saving: Vec<(u64, Ballot)>,
    /// The log, of which a crash leaves the first `durable - log_start`.
    pub log: Vec<Record>,
    pub log_start: u64,
    pub durable: u64,
    /// A record that cannot be read.
    pub damaged: Option<u64>,
}

/// A replica and its drive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub replica: Replica<Bytes>,
    pub disk: Disk,
    /// How often it was opened.
    pub life: u64,
}

/// What a driver wants to be done by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Habits {
    /// A save is done as soon as it is asked for.
    pub saves_at_once: bool,
    /// What is written is durable at once: a crash loses nothing then.
    pub syncs_at_once: bool,
}

impl Habits {
    /// Drives that are never behind.
    pub const PROMPT: Habits = Habits { saves_at_once: true, syncs_at_once: true };
    /// Ballots are saved at once, records are not.
    pub const SYNCS_LATER: Habits = Habits { saves_at_once: true, syncs_at_once: false };
    /// Nothing is durable before its time.
    pub const SLOW: Habits = Habits { saves_at_once: false, syncs_at_once: false };
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub nodes: Vec<Node>,
    /// Messages that were sent since they were last taken, in order.
    pub sent: Vec<Letter>,
    pub judge: Judge,
    pub habits: Habits,
    pub appended: u8,
    /// What the owners were told since it was last taken.
    pub told: Vec<(ReplicaId, Effect<Bytes>)>,
    /// Everything that replicas say and want, in words; `None` if nobody reads it.
    pub script: Option<Vec<String>>,
}

pub fn members(replicas: &[u8], write_quorum: u8, read_quorum: u8) -> Members {
    Members::new(replicas.iter().copied().map(ReplicaId).collect(), write_quorum, read_quorum).unwrap()
}

pub fn pace() -> Pace {
    Pace { window_bytes: 2, ..Pace::default() }
}

impl Disk {
    pub fn end(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    fn open(&self, id: ReplicaId, life: u64, now: Duration) -> Replica<Bytes> {
        let (log_start, log_end) = (Offset(self.log_start), Offset(self.end()));
        let mut epochs = Epochs::default();
        self.log.iter().enumerate().for_each(|(at, r)| epochs.note(r.epoch, Offset(self.log_start + at as u64)));
        Replica::open(Opened { id, life, ballot: self.ballot, log_start, log_end, epochs }, pace(), now)
    }
}

impl World {
    pub fn new(members: Members, nodes: u8, habits: Habits) -> Self {
        let config = Configuration::founding(members);
        let nodes = (0..nodes).map(ReplicaId).map(|id| {
            let founded = members.replicas().contains(id);
            let ballot = if founded { Ballot::founding(config) } else { Ballot::lost(config) };
            let disk = Disk { ballot, saving: Vec::new(), log: Vec::new(), log_start: 0, durable: 0, damaged: None };
            Node { replica: disk.open(id, 1, Duration::ZERO), disk, life: 1 }
        });
        let nodes = nodes.collect();
        World {
            nodes,
            sent: Vec::new(),
            judge: Judge::new(members),
            habits,
            appended: 0,
            told: Vec::new(),
            script: None,
        }
    }

    pub fn ids(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        (0..self.nodes.len() as u8).map(ReplicaId)
    }

    pub fn node(&self, id: ReplicaId) -> &Node {
        &self.nodes[usize::from(id.0)]
    }

    fn node_mut(&mut self, id: ReplicaId) -> &mut Node {
        &mut self.nodes[usize::from(id.0)]
    }

    /// Calls a replica, and does what it wants done.
    pub fn act<T>(&mut self, id: ReplicaId, act: impl FnOnce(&mut Replica<Bytes>) -> T) -> T {
        let result = act(&mut self.node_mut(id).replica);
        self.carry_effects(id);
        result
    }

    fn carry_effects(&mut self, id: ReplicaId) {
        while let Some(effect) = self.node_mut(id).replica.poll_effect() {
            self.judge.see(&self.nodes, id, &effect);
            self.carry(id, effect);
        }
    }

    fn carry(&mut self, id: ReplicaId, effect: Effect<Bytes>) {
        let now = Duration::ZERO;
        let Habits { saves_at_once, syncs_at_once } = self.habits;
        if let Some(script) = &mut self.script {
            match &effect {
                Effect::Send { to, message } => script.push(format!("{id} > {to} {message}")),
                other => script.push(format!("{id}: {other}")),
            }
        }
        if !matches!(effect, Effect::Send { .. } | Effect::Load { .. }) {
            self.told.push((id, effect.clone()));
        }
        let Node { replica, disk, .. } = self.node_mut(id);
        match effect {
            Effect::Send { to, message } => self.sent.push((id, to, message)),
            Effect::Save { revision, ballot } if saves_at_once => {
                disk.ballot = ballot;
                replica.handle_saved(revision, now);
            }
            Effect::Save { revision, ballot } => disk.saving.push((revision, ballot)),
            Effect::Write { batches, .. } => {
                disk.log.extend(batches.bytes);
                if syncs_at_once {
                    disk.durable = disk.end();
                    replica.handle_held(Offset(disk.durable), Offset(disk.durable), now);
                }
            }
            Effect::Truncate { to } => {
                disk.damaged.take_if(|at| *at >= to.0);
                disk.log.truncate((to.0 - disk.log_start) as usize);
                disk.durable = disk.end();
                replica.handle_truncated(to, now);
            }
            Effect::Restart { at } => {
                (disk.damaged, disk.log) = (None, Vec::new());
                (disk.log_start, disk.durable) = (at.0, at.0);
                replica.handle_truncated(at, now);
            }
            Effect::Trim { before } => {
                disk.damaged.take_if(|at| *at < before.0);
                disk.log.drain(..(before.0 - disk.log_start) as usize);
                disk.log_start = before.0;
                replica.handle_log_start(before, now);
            }
            Effect::Load { to, from, .. } if disk.damaged == Some(from.0) => replica.handle_load_failed(to),
            Effect::Load { to, from, until, bytes_max } => {
                let batches = disk.read(from, until, bytes_max);
                let size_bytes = batches.bytes.len() as u64;
                replica.handle_loaded(to, Loaded { batches, size_bytes, wanted: AckLevel::Durable }, now);
            }
            Effect::LoadSpare { from, .. } if disk.damaged == Some(from.0) => {}
            Effect::LoadSpare { to, from, until } => {
                let batches = disk.read(from, until, 1);
                replica.handle_spare(to, batches);
            }
            Effect::Rewrite(batches) => {
                disk.damaged.take_if(|at| (batches.from.0..batches.end.0).contains(at));
                let from = (batches.from.0 - disk.log_start) as usize;
                disk.log[from..from + batches.bytes.len()].copy_from_slice(&batches.bytes);
            }
            _ => {}
        }
    }

    pub fn deliver(&mut self, (from, to, message): Letter, now: Duration) {
        self.act(to, |replica| replica.handle_message(from, message, now));
    }

    /// The oldest save of a node is done.
    pub fn save(&mut self, id: ReplicaId, now: Duration) -> bool {
        let disk = &mut self.node_mut(id).disk;
        if disk.saving.is_empty() {
            return false;
        }
        let (revision, ballot) = disk.saving.remove(0);
        disk.ballot = ballot;
        self.act(id, |replica| replica.handle_saved(revision, now));
        true
    }

    /// Everything that a node has is synced. Gives whether something was not.
    pub fn flush(&mut self, id: ReplicaId, now: Duration) -> bool {
        let disk = &mut self.node_mut(id).disk;
        let end = disk.end();
        if disk.durable == end {
            return false;
        }
        disk.durable = end;
        self.act(id, |replica| replica.handle_held(Offset(end), Offset(end), now));
        true
    }

    /// Appends a record at a leader. Gives whether it took it.
    pub fn append(&mut self, id: ReplicaId, now: Duration) -> bool {
        let number = self.appended;
        let Node { replica, disk, .. } = self.node_mut(id);
        if !replica.admits_appends() {
            return false;
        }
        let from = replica.held().received;
        disk.log.push(Record { epoch: replica.ballot().promised, number });
        self.appended += 1;
        self.act(id, |replica| replica.handle_appended(from, from.advance(1), now));
        if self.habits.syncs_at_once {
            self.flush(id, now);
        }
        true
    }

    /// A read comes to a leader.
    pub fn ask(&mut self, id: ReplicaId, now: Duration) -> Option<ReadTicket> {
        let ticket = self.node_mut(id).replica.ask(now).ok()?;
        self.judge.asked(id, ticket);
        self.carry_effects(id);
        Some(ticket)
    }

    /// A leader is to refuse something.
    pub fn refuse(&mut self, id: ReplicaId, now: Duration) -> Option<ReadTicket> {
        let replica = &mut self.node_mut(id).replica;
        let ticket = replica.ask_whether_it_leads(now).ok()?;
        let epoch = replica.ballot().promised;
        self.judge.asked_to_refuse((id, epoch), ticket);
        self.carry_effects(id);
        Some(ticket)
    }

    /// A node dies, loses what is not durable, and begins a new life.
    pub fn crash(&mut self, id: ReplicaId, now: Duration) {
        self.judge.forget_reads(id);
        let node = self.node_mut(id);
        node.disk.saving.clear();
        // A log that begins beyond its end is begun anew there.
        node.disk.durable = node.disk.durable.max(node.disk.log_start);
        node.disk.log.truncate((node.disk.durable - node.disk.log_start) as usize);
        let end = node.disk.end();
        node.disk.damaged.take_if(|at| *at >= end);
        node.life += 1;
        node.replica = node.disk.open(id, node.life, now);
        self.carry_effects(id);
    }

    /// A record that a node has turns out to be damaged.
    pub fn damage(&mut self, id: ReplicaId, at: u64) {
        let disk = &mut self.node_mut(id).disk;
        assert!((disk.log_start..disk.end()).contains(&at), "damage at {at} of {disk:?}");
        disk.damaged = Some(at);
        self.node_mut(id).replica.stop_repair();
    }

    /// A node does about its damage what it can.
    pub fn see_to_damage(&mut self, id: ReplicaId, now: Duration) -> Option<Damaged> {
        let at = Offset(self.node(id).disk.damaged?);
        let damaged = self.act(id, |replica| replica.handle_damage(at, at.advance(1), now));
        if damaged == Damaged::Waits && self.node(id).replica.repair.is_none() {
            self.act(id, |replica| replica.repair(at, at.advance(1), now));
        }
        Some(damaged)
    }

    /// The records of a node before `before` are deleted.
    pub fn trim(&mut self, id: ReplicaId, before: Offset, now: Duration) {
        let Node { replica, disk, .. } = self.node_mut(id);
        disk.log.drain(..(before.0 - disk.log_start) as usize);
        disk.log_start = before.0;
        disk.damaged.take_if(|at| *at < before.0);
        replica.handle_log_start(before, now);
        self.carry_effects(id);
    }

    /// The drive of a node is replaced, by an empty one or by a copy of an earlier time.
    pub fn replace(&mut self, id: ReplicaId, disk: Option<Disk>, now: Duration) {
        let config = self.node(id).disk.ballot.config;
        let empty = Disk {
            ballot: Ballot::lost(config),
            saving: Vec::new(),
            log: Vec::new(),
            log_start: 0,
            durable: 0,
            damaged: None,
        };
        let disk = disk.unwrap_or(empty);
        self.judge.replaced(id, disk.ballot.promised);
        self.node_mut(id).disk = disk;
        self.crash(id, now);
    }

    /// Delivers, saves and syncs everything, in order, until nothing is under way.
    pub fn run(&mut self, now: Duration) {
        for _ in 0..10_000 {
            let letters = std::mem::take(&mut self.sent);
            let mut quiet = letters.is_empty();
            letters.into_iter().for_each(|letter| self.deliver(letter, now));
            for id in self.ids() {
                while self.save(id, now) {
                    quiet = false;
                }
                quiet &= !self.flush(id, now);
            }
            if quiet {
                return;
            }
        }
        panic!("the replicas do not come to rest");
    }

    /// What is to be told about a node, without times.
    pub fn describe(&self, id: ReplicaId) -> String {
        let Node { replica, disk, .. } = self.node(id);
        let log: Vec<_> = disk.log.iter().map(|record| record.epoch.to_string()).collect();
        let from = if disk.log_start > 0 { format!(" from={}", disk.log_start) } else { String::new() };
        let role = format!("{:?}", replica.role()).to_lowercase();
        let damaged = disk.damaged.map_or(String::new(), |at| format!(" damaged={at}"));
        format!("{id}: {role} {}{from} log=[{}] durable={}{damaged}", replica.ballot(), log.join(" "), disk.durable)
    }

    pub fn forget_times(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.replica.forget_times());
    }

    /// The replicas that lead, as they believe.
    pub fn leaders(&self) -> BTreeSet<ReplicaId> {
        self.ids().filter(|id| self.node(*id).replica.role() == super::super::RoleName::Leader).collect()
    }
}

impl Disk {
    fn read(&self, from: Offset, until: Offset, bytes_max: u64) -> Batches<Bytes> {
        let first = (from.0 - self.log_start) as usize;
        let until = self.damaged.filter(|at| *at > from.0).map_or(until.0, |at| at.min(until.0));
        let count = (until - from.0).min(bytes_max.max(1)) as usize;
        let bytes = self.log[first..first + count].to_vec();
        let epoch = bytes[0].epoch;
        assert!(bytes.iter().all(|record| record.epoch == epoch), "batches of several reigns: {bytes:?}");
        Batches { from, end: from.advance(count as u64), epoch, bytes }
    }

    /// Whether it may vote, were it opened now.
    pub fn is_intact(&self) -> bool {
        self.ballot.memory == Memory::Intact
    }
}

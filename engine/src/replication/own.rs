//! What a replica is, whatever its role: its ballot, how far its log goes, and what is to be done for it.

use std::{collections::VecDeque, time::Duration};

use super::{
    Pace,
    assignment::{Configuration, ReplicaId, next_epoch},
    ballot::{Ballot, Memory},
    effect::Effect,
    epochs::{EpochEnd, Epochs},
    message::{Claim, Held, Message},
};
use crate::types::{LeaderEpoch, Offset};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Own<B> {
    pub(super) id: ReplicaId,
    /// A random number, drawn when the replica was opened.
    pub(super) life: u64,
    pub(super) pace: Pace,
    /// The ballot as it shall be. What is said to others waits until it is saved.
    pub(super) ballot: Ballot,
    /// The ballot as it is, durably. Never ahead of `ballot`.
    pub(super) saved: Ballot,
    /// Ballots on their way to the drive, oldest first; the last one is `ballot`.
    saving: VecDeque<(u64, Ballot)>,
    /// The number of the last save.
    revision: u64,
    /// What waits until the save of this number is done, in the order of the numbers.
    after_save: VecDeque<(u64, ReplicaId, Message<B>)>,
    /// The highest epoch that anybody spoke of. Not below `ballot.promised`, nor that of `ballot.config`.
    pub(super) seen: LeaderEpoch,
    /// The first offset of the log; at most `held.received`.
    pub(super) log_start: Offset,
    /// How far the log goes. Ordered, see [`Held`].
    pub(super) held: Held,
    /// Where the reigns begin in it.
    pub(super) epochs: Epochs,
    /// Where the log is being cut off. Until that is done it takes no batches, and its claim is the old one.
    pub(super) cutting: Option<Offset>,
    /// Whether it is not cut off there but begun anew.
    pub(super) restarting: bool,
    /// The first record that is damaged, if the memory was taken for lost for that. From there on the log is of no use
    /// once there is another leader.
    pub(super) damaged_at: Option<Offset>,
    /// Records of the log are damaged, as the owner says: that others know it, and rather have one lead that has none.
    pub(super) damaged: bool,
    /// Something happened that must not be: nothing is done any more.
    pub(super) halted: bool,
    /// The leader and the epoch that the owner was told of last.
    told: (Option<ReplicaId>, LeaderEpoch),
    effects: VecDeque<Effect<B>>,
}

/// How a replica is found when its drive is opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Which it is.
    pub id: ReplicaId,
    /// A random number that no other opening has.
    pub life: u64,
    /// The ballot on the drive, or [`Ballot::lost`].
    pub ballot: Ballot,
    /// The first offset of its log.
    pub log_start: Offset,
    /// The end of its log; everything is synced before it is believed.
    pub log_end: Offset,
    /// Where the reigns begin in it.
    pub epochs: Epochs,
}

impl<B> Own<B> {
    pub(super) fn new(opened: Opened, pace: Pace) -> Self {
        let Opened { id, life, ballot, log_start, log_end, epochs } = opened;
        ballot.check();
        assert!(log_start <= log_end, "the log of replica {id} begins at {log_start} and ends at {log_end}");
        let last = epochs.last();
        let newest = ballot.promised.max(last);
        assert!(ballot.memory == Memory::Lost || newest == ballot.promised, "replica {id} has {last} in {ballot}");
        Own {
            id,
            life,
            pace,
            ballot,
            saved: ballot,
            saving: VecDeque::new(),
            revision: 0,
            after_save: VecDeque::new(),
            seen: newest.max(ballot.config.id.epoch),
            log_start,
            held: Held::durable(log_end),
            epochs,
            cutting: None,
            restarting: false,
            damaged_at: None,
            damaged: false,
            halted: false,
            told: (None, LeaderEpoch(0)),
            effects: VecDeque::new(),
        }
    }

    pub(super) fn is_member(&self) -> bool {
        self.ballot.config.replicas().contains(self.id)
    }

    pub(super) fn is_intact(&self) -> bool {
        self.ballot.memory == Memory::Intact
    }

    /// What the log is worth in an election.
    pub(super) fn claim(&self) -> Claim {
        Claim { accepted: self.ballot.accepted, log_end: self.held.received }
    }

    /// The epoch and the end of the last record.
    pub(super) fn last(&self) -> EpochEnd {
        EpochEnd { epoch: self.epochs.last(), end: self.held.received }
    }

    /// What no leader may be without, as far as is known here.
    pub(super) fn committed(&self) -> Offset {
        if self.ballot.loss_was_accepted() { Offset(0) } else { self.ballot.committed }
    }

    /// An epoch for this replica to lead, above all that it ever heard of.
    pub(super) fn epoch_to_lead(&self) -> LeaderEpoch {
        next_epoch(self.seen, self.id)
    }

    pub(super) fn see(&mut self, epoch: LeaderEpoch) {
        self.seen = self.seen.max(epoch);
    }

    pub(super) fn effect(&mut self, effect: Effect<B>) {
        self.effects.push_back(effect);
    }

    /// Tells the owner whom this replica follows, if that is news.
    pub(super) fn tell(&mut self, leader: Option<ReplicaId>) {
        let now = (leader, self.ballot.promised);
        if self.told != now {
            self.told = now;
            self.effect(Effect::Follow { leader, epoch: now.1 });
        }
    }

    /// Tells the owner that this replica leads the epoch it promised.
    pub(super) fn lead(&mut self, start: Offset) {
        let epoch = self.ballot.promised;
        self.told = (Some(self.id), epoch);
        self.effect(Effect::Lead { epoch, start });
    }

    pub(super) fn pop_effect(&mut self) -> Option<Effect<B>> {
        self.effects.pop_front()
    }

    /// Changes the ballot, and has it saved.
    pub(super) fn vow(&mut self, change: impl FnOnce(&mut Ballot)) {
        let before = self.ballot;
        change(&mut self.ballot);
        let now = &self.ballot;
        now.check();
        let grows = now.promised >= before.promised && now.accepted >= before.accepted && now.forced >= before.forced;
        assert!(grows && now.config.id >= before.config.id, "a ballot goes back from {before} to {now}");
        if *now == before {
            return;
        }
        self.seen = self.seen.max(now.promised).max(now.config.id.epoch);
        self.save();
    }

    fn save(&mut self) {
        self.revision += 1;
        let (revision, ballot) = (self.revision, self.ballot);
        self.saving.push_back((revision, ballot));
        self.effect(Effect::Save { revision, ballot });
    }

    /// Has the ballot saved as it is, if anything in it was only noted since the last save.
    pub(super) fn keep(&mut self) {
        let last = self.saving.back().map_or(self.saved, |(_, ballot)| *ballot);
        if last != self.ballot {
            self.save();
        }
    }

    /// Notes what is known to be durable on a write quorum. That is in memory only until the next save, at the latest
    /// when the replica stops: it guards against what should never happen, and is not worth a write of its own.
    pub(super) fn note_committed(&mut self, committed: Offset, epoch: LeaderEpoch) {
        assert!(epoch <= self.ballot.promised, "committed {committed} in {epoch} of {}", self.ballot);
        let ballot = &mut self.ballot;
        if ballot.committed_in < ballot.forced {
            // What an earlier reign knew was given up.
            ballot.committed = Offset(0);
        }
        ballot.committed = ballot.committed.max(committed);
        ballot.committed_in = epoch;
    }

    /// Takes over a configuration, if it is news.
    pub(super) fn learn(&mut self, config: Configuration) {
        if config.id > self.ballot.config.id {
            self.vow(|ballot| ballot.config = config);
        }
    }

    /// A save is done, and all before it.
    pub(super) fn handle_saved(&mut self, revision: u64) {
        assert!(revision <= self.revision, "save {revision} of {}", self.revision);
        while let Some((number, ballot)) = self.saving.front()
            && *number <= revision
        {
            self.saved = *ballot;
            self.saving.pop_front();
        }
        while self.after_save.front().is_some_and(|(number, ..)| *number <= revision) {
            if let Some((_, to, message)) = self.after_save.pop_front() {
                self.send(to, message);
            }
        }
    }

    pub(super) fn send(&mut self, to: ReplicaId, message: Message<B>) {
        assert!(to != self.id, "replica {to} sends to itself");
        self.effect(Effect::Send { to, message });
    }

    /// Sends when the ballot as it is now is durable: for whatever gives word of it.
    pub(super) fn send_saved(&mut self, to: ReplicaId, message: Message<B>) {
        if self.saving.is_empty() {
            self.send(to, message)
        } else {
            self.after_save.push_back((self.revision, to, message))
        }
    }

    /// Appends what a leader wrote or sent to what is known of the log.
    pub(super) fn extend(&mut self, from: Offset, end: Offset, epoch: LeaderEpoch) {
        assert!(from == self.held.received && end > from, "{from} to {end} behind {}", self.held);
        assert!(self.cutting.is_none(), "records from {from} while the log is cut off at {:?}", self.cutting);
        self.epochs.note(epoch, from);
        self.held.received = end;
    }

    /// The device has come further.
    pub(super) fn hold(&mut self, written: Offset, durable: Offset) {
        let held = Held { received: self.held.received, written, durable };
        assert!(held.is_ordered(), "{held}");
        assert!(written >= self.held.written && durable >= self.held.durable, "{held} after {}", self.held);
        self.held = held;
    }

    /// There is another leader, and it has all that was acknowledged: what is damaged, and all behind it, is given up,
    /// so that it does not pass for what this replica has.
    pub(super) fn give_up_damage(&mut self) {
        let at = self.damaged_at.take().filter(|at| (self.log_start..self.held.received).contains(at));
        if let Some(to) = at.filter(|_| self.cutting.is_none()) {
            assert!(!self.is_intact(), "the log is cut off at {to} by a replica that counts: {}", self.ballot);
            self.cutting = Some(to);
            self.effect(Effect::Truncate { to });
        }
    }

    /// The log is cut off.
    pub(super) fn cut(&mut self, to: Offset) {
        assert!(self.cutting == Some(to), "cut off at {to} instead of {:?}", self.cutting);
        self.cutting = None;
        if !std::mem::take(&mut self.restarting) {
            self.epochs.truncate(to);
        } else {
            self.epochs.clear();
            self.log_start = to;
        }
        self.held = Held::durable(to);
    }

    /// Where the records of the reign end that the record at `at` is of. `None` if there is none (any more).
    pub(super) fn reign_end(&self, at: Offset) -> Option<Offset> {
        let is_there = self.log_start <= at && at < self.held.received;
        is_there.then(|| self.epochs.end_of(self.epochs.at(at), self.held.received).end)
    }

    pub(super) fn begin(&mut self, log_start: Offset) {
        assert!(log_start >= self.log_start, "the log begins at {log_start} after {}", self.log_start);
        self.log_start = log_start;
        self.epochs.begin(log_start, self.held.received);
    }

    /// When to try to lead, so that not all try at once.
    pub(super) fn turn(&self, now: Duration) -> Duration {
        now + self.pace.election_stagger * u32::from(self.id.0)
    }

    /// When to try to lead after another had the time to, twice.
    pub(super) fn patience(&self, now: Duration) -> Duration {
        self.turn(now) + self.pace.election_retry * 2
    }
}

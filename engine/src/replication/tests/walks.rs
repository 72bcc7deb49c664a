//! Long random walks, where the exhaustive world is too wide to go deep: any action at any time, from a seed, then
//! peace, in which the replicas must come to agree and serve again.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{
    super::assignment::{Members, ReplicaId},
    super::{Damaged, RoleName, effect::Effect},
    world::{Habits, Letter, World, members},
};
use crate::types::{AckLevel, Offset};

/// Splitmix64: a walk is the same for ever.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % bound
    }

    fn replica(&mut self, world: &World) -> ReplicaId {
        ReplicaId(self.below(world.nodes.len() as u64) as u8)
    }
}

/// One walk.
struct Walk {
    world: World,
    chance: Chance,
    now: Duration,
    letters: Vec<Letter>,
    /// How many crashes there are among a hundred other things.
    crashes: u64,
    /// How many drives may be replaced, or spoil a record, before all replicas are whole again: fewer than a write
    /// quorum, which can spare so many.
    spare: u8,
    /// How many still may.
    losses: u8,
    /// Which of the two happens.
    damages: bool,
    /// Whether drives may not give what they have: those of replicas that can be spared then, as some leader says.
    withholds: bool,
    /// To what the members may change.
    changes: Vec<Members>,
    /// What happened, for the message of a failure.
    story: Vec<String>,
}

impl Walk {
    fn step(&mut self) {
        self.now += Duration::from_millis(self.chance.below(20));
        let (now, id) = (self.now, self.chance.replica(&self.world));
        match self.chance.below(100 + self.crashes) {
            0..=54 => self.deliver(),
            55..=64 => drop(self.world.flush(id, now)),
            65..=74 => drop(self.world.save(id, now)),
            75..=81 => drop(self.world.append(id, now)),
            82 => self.trim(id),
            83..=90 => {
                self.world.act(id, |replica| replica.tick(now));
                self.see_to_damage(id);
            }
            91 => self.world.act(id, |replica| replica.campaign(now)),
            92 => self.suspect(id),
            93 => drop(self.world.ask(id, now)),
            94 => {
                if let Some(ticket) = self.world.refuse(id, now) {
                    self.story.push(format!("{id} is to refuse {ticket:?}"));
                }
            }
            95..=96 => self.hand_over(id),
            97 => self.change(id),
            98 => self.lose(id),
            100.. => {
                self.story.push(format!("crash {id}"));
                self.world.crash(id, now);
                self.withhold(id);
            }
            _ => {
                // A partition of the network loses much at once.
                let side = self.chance.replica(&self.world);
                self.letters.retain(|letter| letter.0 != side && letter.1 != side);
            }
        }
        for letter in self.world.sent.drain(..) {
            self.letters.push(letter);
        }
        let led = self.world.told.drain(..).filter(|(_, effect)| matches!(effect, Effect::Lead { .. }));
        self.story.extend(led.map(|(leader, effect)| format!("{leader}: {effect}")));
        self.world.judge.judge(&self.world.nodes);
    }

    fn deliver(&mut self) {
        if self.letters.is_empty() {
            return;
        }
        // Mostly the oldest, sometimes any; mostly once, sometimes again, sometimes never.
        let any = self.chance.below(4) == 0;
        let place = if any { self.chance.below(self.letters.len() as u64) as usize } else { 0 };
        let again = self.chance.below(20) == 0 && self.letters.len() < 200;
        let letter = if again { self.letters[place].clone() } else { self.letters.remove(place) };
        if self.chance.below(20) != 0 {
            self.story.push(format!("{} > {} {}", letter.0, letter.1, letter.2));
            self.world.deliver(letter, self.now);
        }
    }

    fn trim(&mut self, id: ReplicaId) {
        let start = self.world.node(id).disk.log_start;
        let end = self.world.node(id).replica.quorum().map_or(start, |quorum| quorum.durable.0);
        let end = end.min(self.world.node(id).disk.durable);
        if end > start {
            let before = Offset(start + 1 + self.chance.below(end - start));
            self.story.push(format!("{id} trims to {before}"));
            self.world.trim(id, before, self.now);
        }
    }

    fn suspect(&mut self, id: ReplicaId) {
        let (now, leader) = (self.now, self.chance.replica(&self.world));
        if leader != id {
            self.world.act(id, |replica| replica.handle_suspect(leader, now));
        }
    }

    fn hand_over(&mut self, id: ReplicaId) {
        let (now, to) = (self.now, self.chance.replica(&self.world));
        // Refused where it makes no sense.
        let _ = self.world.act(id, |replica| replica.hand_over(to, AckLevel::Received, now));
    }

    fn change(&mut self, id: ReplicaId) {
        if let Some(members) = self.changes.last().copied() {
            let now = self.now;
            if self.world.act(id, |replica| replica.change_members(members, now)).is_ok() {
                self.story.push(format!("{id} changes to {members}"));
                self.changes.pop();
            }
        }
    }

    fn lose(&mut self, id: ReplicaId) {
        let (start, end) = (self.world.node(id).disk.log_start, self.world.node(id).disk.end());
        if self.losses < self.spare && self.is_whole() {
            WHOLE_AGAIN.fetch_add(1, Relaxed);
            self.losses = self.spare;
        }
        if self.losses == 0 || (self.damages && start == end) {
            return;
        }
        self.losses -= 1;
        if self.damages {
            // Mostly one of the last: there the others may lack it.
            let at = end - 1 - self.chance.below((end - start).min(3));
            self.story.push(format!("damage {id} at {at}"));
            self.world.damage(id, at);
        } else {
            self.story.push(format!("replace {id}"));
            self.world.replace(id, None, self.now);
        }
    }

    /// Whether somebody leads and everybody has everything, durably and not damaged.
    fn is_whole(&self) -> bool {
        self.world.ids().any(|leader| self.leads(leader) && self.have_all_of(leader))
    }

    fn leads(&self, id: ReplicaId) -> bool {
        self.world.node(id).replica.quorum().is_some()
    }

    fn have_all_of(&self, leader: ReplicaId) -> bool {
        let replica = &self.world.node(leader).replica;
        let (config, end) = (replica.ballot().config, replica.held().received);
        let whole = |id: ReplicaId| {
            let node = self.world.node(id);
            let follows = matches!(node.replica.role(), RoleName::Follower | RoleName::Leader);
            follows && node.replica.held().durable == end && node.disk.damaged.is_none()
        };
        config.replicas().iter().all(whole) && config.incoming.is_none()
    }

    /// Nothing was said of the new life yet.
    fn withhold(&mut self, id: ReplicaId) {
        if !self.withholds || self.chance.below(3) == 0 {
            return;
        }
        let (now, asked) = (self.now, self.chance.replica(&self.world));
        if asked != id && self.world.act(asked, |replica| replica.handle_out_of_service(id, now)) {
            SPARED.fetch_add(1, Relaxed);
            self.story.push(format!("{asked} spares {id}"));
            self.world.replace(id, None, now);
        }
    }

    fn see_to_damage(&mut self, id: ReplicaId) {
        if self.world.see_to_damage(id, self.now) == Some(Damaged::Forgets) {
            FORGOT.fetch_add(1, Relaxed);
            self.story.push(format!("{id} takes its memory for lost"));
        }
    }

    /// No more faults: somebody must lead, take a record, and everybody must come to have everything.
    fn settle(&mut self) {
        self.letters.clear();
        let appended = self.world.appended;
        for round in 0.. {
            assert!(round < 400, "they do not come to agree");
            self.now += Duration::from_millis(10);
            let now = self.now;
            for id in self.world.ids() {
                self.world.act(id, |replica| replica.tick(now));
                self.see_to_damage(id);
            }
            self.world.run(now);
            self.world.told.clear();
            self.world.judge.judge(&self.world.nodes);
            let Some(leader) = self.world.ids().find(|id| self.leads(*id)) else { continue };
            if self.world.appended == appended {
                self.world.append(leader, now);
                continue;
            }
            let end = self.world.node(leader).replica.held().received;
            // What others have deleted already they cannot give: whoever had it deleted says so again.
            let begins = self.world.nodes.iter().map(|node| node.disk.log_start).max().unwrap_or(0);
            if self.world.node(leader).disk.damaged.is_some_and(|at| at < begins) {
                self.world.trim(leader, Offset(begins), now);
                continue;
            }
            let acknowledged = self.world.judge.acked.len() as u64 == end.0;
            if acknowledged && self.have_all_of(leader) {
                return;
            }
        }
    }
}

fn walk(seed: u64, nodes: u8, members: Members, changes: Vec<Members>) {
    let mut chance = Chance(seed);
    let habits = [Habits::PROMPT, Habits::SYNCS_LATER, Habits::SLOW][chance.below(3) as usize];
    let spare = members.write_quorum() - 1;
    let world = World::new(members, nodes, habits);
    let losses = if chance.below(3) == 0 && changes.is_empty() { spare } else { 0 };
    let crashes = [0, 1, 12][chance.below(3) as usize];
    let (now, letters, story) = (Duration::ZERO, Vec::new(), Vec::new());
    let damages = Chance(!seed).below(2) == 0;
    let withholds = losses == 0 && Chance(!seed).below(4) > 1;
    let mut walk =
        Walk { world, chance, now, letters, crashes, spare: losses, losses, damages, withholds, changes, story };
    walk.letters.append(&mut walk.world.sent);
    let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..STEPS).for_each(|_| walk.step());
        walk.settle();
    }));
    if walked.is_err() {
        let nodes: Vec<_> = walk.world.ids().map(|id| walk.world.describe(id)).collect();
        panic!("seed {seed} of {members}:\n{}\n{}", walk.story.join("\n"), nodes.join("\n"));
    }
}

/// How many leaders took their memory for lost because of damage.
static FORGOT: AtomicU64 = AtomicU64::new(0);

/// How many replicas were rebuilt because their drives did not give what they had.
static SPARED: AtomicU64 = AtomicU64::new(0);

/// How often all replicas were whole again, so that as much could be lost as before.
static WHOLE_AGAIN: AtomicU64 = AtomicU64::new(0);

/// How many steps a walk takes before there is peace.
const STEPS: usize = 400;

/// How many walks of each kind, unless `PYRALOG_WALKS` says otherwise.
const WALKS: u64 = 150;

fn seeds() -> std::ops::Range<u64> {
    0..std::env::var("PYRALOG_WALKS").map_or(WALKS, |count| count.parse().unwrap())
}

#[test]
fn three_replicas_survive_whatever_happens() {
    for seed in seeds() {
        walk(seed, 3, members(&[0, 1, 2], 2, 2), Vec::new());
        walk(seed, 3, members(&[0, 1, 2], 3, 1), Vec::new());
        walk(seed, 3, members(&[0, 1, 2], 1, 1), Vec::new());
        walk(seed, 2, members(&[0, 1], 2, 1), Vec::new());
    }
    assert!(FORGOT.load(Relaxed) > 0, "no leader took its memory for lost");
    assert!(SPARED.load(Relaxed) > 0, "nobody could be spared");
    assert!(WHOLE_AGAIN.load(Relaxed) > 0, "nobody was whole again after a loss");
}

#[test]
fn five_replicas_survive_whatever_happens() {
    for seed in seeds().step_by(2) {
        walk(seed, 5, members(&[0, 1, 2, 3, 4], 5, 3), Vec::new());
        walk(seed, 5, members(&[0, 1, 2, 3, 4], 3, 3), Vec::new());
    }
}

#[test]
fn members_change_while_everything_goes_on() {
    // In 55003 a member without its memory was to stay as one of two, of which both were needed to elect a leader.
    for seed in seeds().chain([55003]) {
        let changes = vec![members(&[0, 1, 2, 3], 2, 3), members(&[0, 3], 1, 2), members(&[0, 1, 2, 3], 3, 2)];
        walk(seed, 4, members(&[0, 1, 2], 2, 2), changes);
        walk(seed, 4, members(&[0], 1, 1), vec![members(&[0, 1, 2], 2, 2), members(&[0, 1], 2, 1)]);
    }
}

//! Every interleaving of a small world: three replicas, four records, messages that are lost, doubled and overtake each
//! other, crashes that lose what is not durable, elections, drives that are replaced. Breadth first, each state once,
//! the judge in every one, from several beginnings so that the deep ones are reached too.
//!
//! A message that was sent stays: it can be delivered at any later time, again and again, or never. That is every loss,
//! delay, doubling and reordering there can be.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    rc::Rc,
    time::Duration,
};

use super::{
    super::{
        Damaged,
        assignment::{Members, ReplicaId},
    },
    world::{Disk, Habits, Letter, World, members},
};

/// All of it happens at once: nothing in the protocol's promises depends on time.
const NOW: Duration = Duration::ZERO;

/// How many states a beginning may come to, unless `PYRALOG_WORLD_STATES` says otherwise.
const STATES_MAX: usize = 3_000;

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Budget {
    appends: u8,
    campaigns: u8,
    crashes: u8,
    reads: u8,
    replacements: u8,
}

#[derive(Clone)]
struct State {
    world: World,
    /// Every message ever sent.
    letters: BTreeSet<Rc<Letter>>,
    budget: Budget,
    /// A copy of a drive that may be put in its place later.
    image: Option<(ReplicaId, Disk)>,
    /// What was done, for the message of a failure.
    path: Option<Rc<Step>>,
}

struct Step {
    what: String,
    before: Option<Rc<Step>>,
}

#[derive(Clone, Debug)]
enum Action {
    Deliver(Rc<Letter>),
    Flush(ReplicaId),
    Save(ReplicaId),
    Append(ReplicaId),
    Campaign(ReplicaId),
    Crash(ReplicaId),
    Read(ReplicaId),
    Replace(ReplicaId),
    Look(ReplicaId),
}

impl State {
    fn new(world: World, budget: Budget) -> Self {
        let mut state = State { world, letters: BTreeSet::new(), budget, image: None, path: None };
        state.tidy();
        state
    }

    /// Everything that can happen next.
    fn actions(&self) -> Vec<Action> {
        let mut actions: Vec<Action> = self.letters.iter().map(|letter| Action::Deliver(Rc::clone(letter))).collect();
        let Budget { appends, campaigns, crashes, reads, replacements } = self.budget;
        let leaders = self.world.leaders();
        for id in self.world.ids() {
            actions.extend([Action::Flush(id), Action::Save(id)]);
            let may = [
                (appends > 0 && leaders.contains(&id), Action::Append(id)),
                (reads > 0 && leaders.contains(&id), Action::Read(id)),
                (campaigns > 0 && !leaders.contains(&id), Action::Campaign(id)),
                (crashes > 0, Action::Crash(id)),
                (replacements > 0, Action::Replace(id)),
                (self.world.node(id).disk.damaged.is_some(), Action::Look(id)),
            ];
            actions.extend(may.into_iter().filter(|(may, _)| *may).map(|(_, action)| action));
        }
        actions
    }

    fn after(&self, action: &Action) -> Self {
        let mut next = self.clone();
        let State { world, budget, image, .. } = &mut next;
        match action {
            Action::Deliver(letter) => world.deliver(Letter::clone(letter), NOW),
            Action::Flush(id) => drop(world.flush(*id, NOW)),
            Action::Save(id) => drop(world.save(*id, NOW)),
            Action::Append(id) => budget.appends -= u8::from(world.append(*id, NOW)),
            Action::Campaign(id) => {
                budget.campaigns -= 1;
                world.act(*id, |replica| replica.campaign(NOW));
            }
            Action::Crash(id) => {
                budget.crashes -= 1;
                world.crash(*id, NOW);
            }
            Action::Read(id) => {
                budget.reads -= 1;
                world.ask(*id, NOW);
            }
            Action::Look(id) => drop(world.see_to_damage(*id, NOW)),
            Action::Replace(id) => {
                budget.replacements -= 1;
                let copy = image.take_if(|(of, _)| of == id).map(|(_, disk)| disk);
                world.judge.stale = copy.is_some().then_some(*id);
                world.replace(*id, copy, NOW);
            }
        }
        next.tidy();
        next.path = Some(Rc::new(Step { what: describe(action), before: self.path.clone() }));
        next
    }

    fn tidy(&mut self) {
        self.letters.extend(self.world.sent.drain(..).map(Rc::new));
        self.world.told.clear();
        self.world.forget_times();
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.world, &self.letters, &self.budget).hash(&mut hasher);
        hasher.finish()
    }

    fn story(&self) -> String {
        let mut steps = Vec::new();
        let mut step = self.path.clone();
        while let Some(now) = step {
            steps.push(now.what.clone());
            step = now.before.clone();
        }
        steps.reverse();
        let nodes: Vec<_> = self.world.ids().map(|id| self.world.describe(id)).collect();
        format!("{}\n{}", steps.join("\n"), nodes.join("\n"))
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Deliver(letter) => format!("{} > {} {}", letter.0, letter.1, letter.2),
        other => format!("{other:?}"),
    }
}

/// How far an exploration came.
struct Explored {
    states: usize,
    /// How many steps the last ones are from the beginning.
    depth: usize,
    /// There are no others.
    all: bool,
}

/// Looks at the states that `beginning` can come to, nearest first.
fn explore(beginning: State) -> Explored {
    let states_max = std::env::var("PYRALOG_WORLD_STATES").map_or(STATES_MAX, |count| count.parse().unwrap());
    let mut seen = BTreeSet::from([beginning.fingerprint()]);
    let mut frontier = vec![beginning];
    let mut depth = 0;
    while !frontier.is_empty() && seen.len() < states_max {
        let mut next = Vec::new();
        for state in &frontier {
            for action in state.actions() {
                let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let after = state.after(&action);
                    after.world.judge.judge(&after.world.nodes);
                    after
                }));
                let Ok(after) = judged else { panic!("{}\n{}", state.story(), describe(&action)) };
                if seen.insert(after.fingerprint()) {
                    next.push(after);
                }
            }
            if seen.len() >= states_max {
                break;
            }
        }
        // A beginning whose states were all seen has no frontier any more.
        frontier = next;
        depth += 1;
    }
    Explored { states: seen.len(), depth, all: frontier.is_empty() }
}

/// Explores, and says how far it came.
fn look(name: &str, world: World, budget: Budget) {
    look_at(name, State::new(world, budget));
}

fn look_at(name: &str, beginning: State) {
    let Explored { states, depth, all } = explore(beginning);
    println!("{name}: {states} states{}, {depth} steps deep", if all { ", which are all" } else { "" });
    assert!(all || states > 1000, "{name}: only {states} states, {depth} steps deep");
}

fn fresh(members: Members, habits: Habits) -> World {
    World::new(members, 3, habits)
}

/// Replica 0 leads, and `records` are acknowledged and known everywhere.
fn settled(members: Members, records: usize, habits: Habits) -> World {
    let mut world = fresh(members, Habits::PROMPT);
    world.act(ReplicaId(0), |replica| replica.campaign(NOW));
    world.run(NOW);
    for _ in 0..records {
        assert!(world.append(ReplicaId(0), NOW));
        world.run(NOW);
    }
    assert_eq!(world.judge.acked.len(), records);
    World { habits, ..world }
}

const ALL: [u8; 3] = [0, 1, 2];

#[test]
fn nobody_leads_yet() {
    let budget = Budget { appends: 4, campaigns: 2, ..Budget::default() };
    look("3,2,2 at start-up", fresh(members(&ALL, 2, 2), Habits::PROMPT), budget);
    look("3,3,1 at start-up", fresh(members(&ALL, 3, 1), Habits::PROMPT), budget);
    let budget = Budget { appends: 2, campaigns: 2, crashes: 1, ..Budget::default() };
    look("3,2,2 at start-up, and a crash", fresh(members(&ALL, 2, 2), Habits::SYNCS_LATER), budget);
    look("3,1,1 at start-up, and a crash", fresh(members(&ALL, 1, 1), Habits::SYNCS_LATER), budget);
}

#[test]
fn a_promise_counts_when_it_is_durable() {
    let budget = Budget { appends: 1, campaigns: 2, crashes: 2, ..Budget::default() };
    look("3,2,2 with slow saves", fresh(members(&ALL, 2, 2), Habits::SLOW), budget);
    look("3,2,2 with slow saves, settled", settled(members(&ALL, 2, 2), 1, Habits::SLOW), budget);
}

#[test]
fn a_leader_is_replaced() {
    let budget = Budget { appends: 2, campaigns: 2, crashes: 1, reads: 1, ..Budget::default() };
    for (write, read) in [(2, 2), (1, 1), (3, 1)] {
        let m = members(&ALL, write, read);
        look("a settled leader", settled(m, 2, Habits::PROMPT), budget);
        // What it appended last has reached nobody.
        let mut world = settled(m, 2, Habits::SYNCS_LATER);
        world.append(ReplicaId(0), NOW);
        world.sent.clear();
        world.act(ReplicaId(2), |replica| replica.campaign(NOW));
        look("a leader with a tail of its own", world, Budget { appends: 1, campaigns: 1, ..budget });
    }
}

/// 0 led and wrote alone, then 1 was elected by 2, and wrote alone too. Nothing is under way.
fn two_tails(habits: Habits) -> World {
    let mut world = settled(members(&ALL, 2, 2), 1, Habits::PROMPT);
    world.append(ReplicaId(0), NOW);
    world.sent.clear();
    world.act(ReplicaId(1), |replica| replica.campaign(NOW));
    for to in [ReplicaId(2), ReplicaId(1)] {
        let letters: Vec<Letter> = world.sent.drain(..).filter(|letter| letter.1 == to).collect();
        letters.into_iter().for_each(|letter| world.deliver(letter, NOW));
    }
    world.sent.clear();
    assert!(world.append(ReplicaId(1), NOW), "{}", world.describe(ReplicaId(1)));
    world.sent.clear();
    World { habits, ..world }
}

#[test]
fn two_tails_differ() {
    let budget = Budget { appends: 1, campaigns: 2, ..Budget::default() };
    look("two tails", two_tails(Habits::PROMPT), budget);
    look("two tails and a crash", two_tails(Habits::SYNCS_LATER), Budget { crashes: 1, ..budget });
}

#[test]
fn a_drive_is_replaced_by_an_empty_one() {
    let mut world = settled(members(&ALL, 2, 2), 2, Habits::PROMPT);
    let budget = Budget { appends: 1, campaigns: 2, replacements: 1, reads: 1, ..Budget::default() };
    look("a drive to be replaced", world.clone(), budget);
    world.replace(ReplicaId(2), None, NOW);
    let budget = Budget { appends: 1, campaigns: 2, crashes: 1, ..Budget::default() };
    look("a replaced drive", world.clone(), budget);
    world.sent.clear();
    world.crash(ReplicaId(0), NOW);
    look("a replaced drive and a crash", world, Budget { crashes: 0, ..budget });
}

#[test]
fn a_replica_forgets_what_it_promised() {
    // 2 voted for 1, which leads, and 0 does not know that; then 2 loses its drive.
    let mut world = two_tails(Habits::PROMPT);
    world.replace(ReplicaId(2), None, NOW);
    let budget = Budget { appends: 1, ..Budget::default() };
    look("a vote on a lost drive", world.clone(), budget);
    world.act(ReplicaId(1), |replica| replica.tick(Duration::from_secs(1)));
    look("a vote on a lost drive, and a leader who asks", world, budget);

    // 2 is asked for its vote, and crashes before its promise is durable.
    let mut world = settled(members(&ALL, 2, 2), 1, Habits::SLOW);
    world.act(ReplicaId(1), |replica| replica.campaign(NOW));
    world.save(ReplicaId(1), NOW);
    let letters = world.sent.clone();
    let to_two = letters.into_iter().filter(|letter| letter.1 == ReplicaId(2));
    to_two.for_each(|letter| world.deliver(letter, NOW));
    world.crash(ReplicaId(2), NOW);
    world.habits = Habits::PROMPT;
    look("a vote that was not saved", world, Budget { appends: 1, ..Budget::default() });
}

#[test]
fn a_replica_forgets_what_it_acknowledged() {
    // 0 and 2 have a record that 1 has not; then 2 loses its drive.
    let mut world = settled(members(&ALL, 2, 2), 1, Habits::PROMPT);
    world.append(ReplicaId(0), NOW);
    world.sent.retain(|letter| letter.1 != ReplicaId(1));
    world.run(NOW);
    assert_eq!(world.judge.acked.len(), 2);
    world.replace(ReplicaId(2), None, NOW);
    look("a record on a lost drive", world, Budget { campaigns: 2, ..Budget::default() });
}

#[test]
fn a_drive_is_replaced_by_an_earlier_copy_of_itself() {
    let mut world = settled(members(&ALL, 2, 2), 1, Habits::PROMPT);
    let copy = (ReplicaId(2), world.node(ReplicaId(2)).disk.clone());
    world.append(ReplicaId(0), NOW);
    world.run(NOW);
    let budget = Budget { appends: 1, replacements: 1, reads: 1, ..Budget::default() };
    let mut state = State::new(world, budget);
    state.image = Some(copy);
    look_at("an earlier copy", state.after(&Action::Replace(ReplicaId(2))));
}

#[test]
fn a_leader_has_damaged_what_others_lack() {
    // 0 has a record that 2 lacks, and with W = 3 so was never acknowledged; 1 has it there.
    for (write, lack) in [(2, [1, 2].as_slice()), (3, &[2])] {
        let mut world = settled(members(&ALL, write, 1), 2, Habits::PROMPT);
        world.append(ReplicaId(0), NOW);
        world.sent.retain(|letter| !lack.contains(&letter.1.0));
        world.run(NOW);
        world.damage(ReplicaId(0), 2);
        world.crash(ReplicaId(0), NOW);
        world.sent.clear();
        world.act(ReplicaId(0), |replica| replica.campaign(NOW));
        let budget = Budget { appends: 1, campaigns: 1, ..Budget::default() };
        look("a damaged leader", world.clone(), budget);
        world.run(NOW);
        look("a damaged leader that is elected", world.clone(), budget);
        look("a damaged leader that is elected, and a crash", world.clone(), Budget { crashes: 1, ..budget });
        assert_eq!(world.see_to_damage(ReplicaId(0), NOW), Some(Damaged::Forgets));
        look("a damaged leader that forgot", world.clone(), Budget { reads: 1, ..budget });
        look(
            "a damaged leader that forgot, and a crash",
            World { habits: Habits::SLOW, ..world },
            Budget { crashes: 1, ..budget },
        );
    }
}

#[test]
fn a_log_is_not_cut_off_before_it_is_durable_that_its_memory_is_lost() {
    // 0 leads and has damaged what 2 lacks. It forgets, another leads, and its drive is slow to save that.
    let mut world = settled(members(&ALL, 3, 1), 2, Habits::PROMPT);
    world.append(ReplicaId(0), NOW);
    world.sent.retain(|letter| letter.1 != ReplicaId(2));
    world.run(NOW);
    world.damage(ReplicaId(0), 2);
    world.crash(ReplicaId(0), NOW);
    world.sent.clear();
    world.act(ReplicaId(0), |replica| replica.campaign(NOW));
    world.run(NOW);
    world.habits = Habits::SLOW;
    assert_eq!(world.see_to_damage(ReplicaId(0), NOW), Some(Damaged::Forgets));
    world.act(ReplicaId(1), |replica| replica.campaign(NOW));
    for _ in 0..20 {
        for letter in std::mem::take(&mut world.sent) {
            world.deliver(letter, NOW);
        }
        for id in [ReplicaId(1), ReplicaId(2)] {
            while world.save(id, NOW) {}
            world.flush(id, NOW);
        }
        world.judge.judge(&world.nodes);
    }
    assert_eq!(world.leaders(), [ReplicaId(1)].into());
    let disk = &world.node(ReplicaId(0)).disk;
    assert!(disk.is_intact() && disk.durable == 3, "{}", world.describe(ReplicaId(0)));
    for second in 1..5 {
        let now = Duration::from_millis(200 * second);
        world.act(ReplicaId(1), |replica| replica.tick(now));
        world.run(now);
        world.judge.judge(&world.nodes);
    }
    let disk = &world.node(ReplicaId(0)).disk;
    assert!(disk.is_intact() && disk.durable == 3 && disk.damaged.is_none(), "{}", world.describe(ReplicaId(0)));
}

#[test]
fn a_follower_with_damaged_records_is_not_fit_to_lead_until_they_are_repaired() {
    let mut world = settled(members(&ALL, 2, 2), 2, Habits::PROMPT);
    let others = |world: &World| -> Vec<u8> {
        world.node(ReplicaId(0)).replica.fit_to_lead().iter().map(|replica| replica.0).collect()
    };
    assert_eq!(others(&world), [1, 2]);
    for (is_damaged, fit) in [(true, [2].as_slice()), (false, &[1, 2])] {
        world.act(ReplicaId(1), |replica| replica.note_damage(is_damaged));
        world.append(ReplicaId(0), NOW);
        world.run(NOW);
        assert_eq!(others(&world), fit);
        assert!(world.node(ReplicaId(0)).replica.in_sync().contains(ReplicaId(1)), "it keeps up");
    }
}

#[test]
fn members_change() {
    let mut world = World::new(members(&[0, 1], 2, 1), 3, Habits::PROMPT);
    world.act(ReplicaId(0), |replica| replica.campaign(NOW));
    world.run(NOW);
    world.append(ReplicaId(0), NOW);
    world.run(NOW);
    world.act(ReplicaId(0), |replica| replica.change_members(members(&ALL, 2, 2), NOW)).unwrap();
    let budget = Budget { appends: 1, campaigns: 1, crashes: 1, ..Budget::default() };
    look("from two replicas to three", world, budget);

    let mut world = settled(members(&ALL, 2, 2), 1, Habits::PROMPT);
    world.act(ReplicaId(0), |replica| replica.change_members(members(&[0, 1], 1, 2), NOW)).unwrap();
    look("from three replicas to two", world, budget);
}

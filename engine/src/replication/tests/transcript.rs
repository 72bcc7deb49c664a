//! The protocol, running, in words: `transcripts/` has a file for each case of `docs/REPLICATION.md`, with commands
//! (`> `) and under each what the replicas say and want then, to the letter.
//!
//! A run with `PYRALOG_TRANSCRIPTS=write` writes the answers anew, for a reviewer to read as a difference.

use std::{collections::VecDeque, fs, path::Path, time::Duration};

use super::{
    super::assignment::{Members, ReplicaId},
    world::{Disk, Habits, Letter, World, members},
};
use crate::types::{AckLevel, Offset};

/// A transcript that is being played.
struct Play {
    world: World,
    now: Duration,
    /// Messages on their way, in order.
    letters: VecDeque<Letter>,
    /// All messages that were ever sent, to be sent again.
    past: Vec<Letter>,
    /// Which kind of message is lost.
    dropped: Option<String>,
    /// Whose messages are lost, in both directions.
    lost: Vec<ReplicaId>,
    /// Whose drives sync nothing.
    stalled: Vec<ReplicaId>,
    /// A copy of a drive.
    copy: Option<Disk>,
}

fn number(word: &str) -> u64 {
    word.trim_start_matches(['w', 'r']).parse().unwrap_or_else(|_| panic!("`{word}` is no number"))
}

fn replica(word: &str) -> ReplicaId {
    ReplicaId(number(word) as u8)
}

/// Members from `0 1 2 w2 r2`.
fn parse_members(words: &[&str]) -> Members {
    let of = |letter: char| words.iter().find(|word| word.starts_with(letter)).map_or(1, |word| number(word) as u8);
    let replicas: Vec<u8> =
        words.iter().filter(|word| !word.starts_with(['w', 'r'])).map(|word| number(word) as u8).collect();
    members(&replicas, of('w'), of('r'))
}

impl Play {
    fn new() -> Self {
        let world = World::new(members(&[0], 1, 1), 1, Habits::SYNCS_LATER);
        Play {
            world,
            now: Duration::ZERO,
            letters: VecDeque::new(),
            past: Vec::new(),
            dropped: None,
            lost: Vec::new(),
            stalled: Vec::new(),
            copy: None,
        }
    }

    /// Does what a line asks for. Gives what was said.
    fn command(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.world.script.get_or_insert_default().clear();
        let now = self.now;
        let told = match words[0] {
            "show" => return self.world.ids().map(|id| self.world.describe(id)).collect(),
            "drop" => {
                self.dropped = words.get(1).map(|kind| (*kind).to_owned());
                None
            }
            "again" => self.again(words.get(1).copied().unwrap_or_default()),
            "members" | "nodes" => self.begin(&words),
            "lose" | "heal" | "stall" | "resume" | "copy" => self.set(words[0], replica(words[1])),
            "wait" => {
                self.now += Duration::from_millis(number(words[1]));
                let now = self.now;
                self.world.ids().for_each(|id| self.world.act(id, |replica| replica.tick(now)));
                None
            }
            _ => {
                let (id, rest) = (replica(words[1]), &words[2..]);
                self.of_replica(words[0], id, rest, now)
            }
        };
        self.run();
        self.world.judge.judge(&self.world.nodes);
        self.world.told.clear();
        let script = self.world.script.get_or_insert_default();
        told.into_iter().chain(script.drain(..)).filter(|line| !line.contains(": Load ")).collect()
    }

    fn begin(&mut self, words: &[&str]) -> Option<String> {
        let (nodes, rest) = if words[0] == "nodes" { (number(words[1]) as u8, &words[3..]) } else { (0, &words[1..]) };
        let members = parse_members(rest);
        let nodes = nodes.max(members.replicas().len());
        *self = Play { world: World::new(members, nodes, Habits::SYNCS_LATER), ..Play::new() };
        self.world.script = Some(Vec::new());
        None
    }

    fn set(&mut self, what: &str, id: ReplicaId) -> Option<String> {
        match what {
            "lose" => self.lost.push(id),
            "heal" => self.lost.retain(|lost| *lost != id),
            "stall" => self.stalled.push(id),
            "resume" => self.stalled.retain(|stalled| *stalled != id),
            _ => self.copy = Some(self.world.node(id).disk.clone()),
        }
        None
    }

    fn of_replica(&mut self, what: &str, id: ReplicaId, rest: &[&str], now: Duration) -> Option<String> {
        let world = &mut self.world;
        match what {
            "campaign" => world.act(id, |replica| replica.campaign(now)),
            "suspect" => world.act(id, |replica| replica.handle_suspect(self::replica(rest[0]), now)),
            "force" => {
                world.judge.loss_accepted = true;
                let members = parse_members(rest);
                world.act(id, |replica| replica.force(members, now));
            }
            "append" => {
                for _ in 0..rest.first().map_or(1, |count| number(count)) {
                    if !world.append(id, now) {
                        return Some("refused: this replica admits no appends".to_owned());
                    }
                }
            }
            "read" => {
                return Some(match world.ask(id, now) {
                    Some(ticket) => format!("ticket {}", ticket.0),
                    None => "refused: this replica does not lead".to_owned(),
                });
            }
            "refuse" => {
                return Some(match world.refuse(id, now) {
                    Some(ticket) => format!("refusal {}", ticket.0),
                    None => "not now: this replica does not lead".to_owned(),
                });
            }
            "crash" => world.crash(id, now),
            "empty" => world.replace(id, None, now),
            "restore" => {
                let copy = self.copy.take();
                world.replace(id, copy, now);
            }
            "hand-over" => {
                let to = self::replica(rest[0]);
                return world
                    .act(id, |replica| replica.hand_over(to, AckLevel::Durable, now))
                    .err()
                    .map(|error| error.to_string());
            }
            "change" => {
                let members = parse_members(rest);
                return world.act(id, |replica| replica.change_members(members, now)).err().map(|e| e.to_string());
            }
            "trim" => world.trim(id, Offset(number(rest[0])), now),
            "repair" => {
                let (from, until) = (Offset(number(rest[0])), Offset(number(rest[1])));
                let any = world.act(id, |replica| replica.repair(from, until, now));
                return (!any).then(|| "nothing of it is known to be final".to_owned());
            }
            "damage" => world.damage(id, number(rest[0])),
            "look" => {
                return world.see_to_damage(id, now).map(|damaged| format!("{id} {damaged:?}").to_lowercase());
            }
            "out" => {
                let asking = self::replica(rest[0]);
                let spared = world.act(id, |replica| replica.handle_out_of_service(asking, now));
                return Some(format!("{id} {} {asking}", if spared { "spares" } else { "needs" }));
            }
            "spoil" => world.judge.beyond_repair = true,
            other => panic!("`{other}` is no command"),
        }
        None
    }

    /// Sends all messages of a kind once more, the last of them first.
    fn again(&mut self, which: &str) -> Option<String> {
        let again: Vec<Letter> =
            self.past.iter().rev().filter(|letter| format!("{}", letter.2).starts_with(which)).cloned().collect();
        self.letters.extend(again);
        None
    }

    /// Delivers everything in the order in which it was sent, and syncs drives when nothing is on its way.
    fn run(&mut self) {
        loop {
            self.letters.extend(self.world.sent.drain(..));
            if let Some(letter) = self.letters.pop_front() {
                self.past.push(letter.clone());
                let dropped = self.dropped.as_ref().is_some_and(|kind| letter.2.to_string().starts_with(kind));
                if !dropped && !self.lost.contains(&letter.0) && !self.lost.contains(&letter.1) {
                    self.world.deliver(letter, self.now);
                }
                continue;
            }
            let ids: Vec<ReplicaId> = self.world.ids().filter(|id| !self.stalled.contains(id)).collect();
            let synced: Vec<bool> = ids.into_iter().map(|id| self.world.flush(id, self.now)).collect();
            if !synced.contains(&true) {
                return;
            }
        }
    }
}

/// Plays a transcript, and gives it with the answers that came.
fn play(text: &str) -> String {
    let mut play = Play::new();
    let mut out = String::new();
    for line in text.lines() {
        let command = line.strip_prefix("> ");
        if command.is_some() || line.starts_with('#') || line.is_empty() {
            out += line;
            out.push('\n');
        }
        // What another transcript shows already is done quietly.
        let (command, quiet) = match command.and_then(|command| command.strip_prefix("quietly ")) {
            Some(command) => (Some(command), true),
            None => (command, false),
        };
        let answers = command.map(|command| play.command(command)).unwrap_or_default();
        for answer in answers.into_iter().filter(|_| !quiet) {
            out += &answer;
            out.push('\n');
        }
    }
    out
}

#[test]
fn replicas_say_what_the_transcripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/replication/tests/transcripts");
    let writes = std::env::var_os("PYRALOG_TRANSCRIPTS").is_some();
    let mut differ = Vec::new();
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 15, "only {} transcripts", files.len());
    for file in files {
        let before = fs::read_to_string(&file).unwrap();
        let after = play(&before);
        if after != before && writes {
            fs::write(&file, after).unwrap();
        } else if after != before {
            let line = before.lines().zip(after.lines()).find(|(before, after)| before != after);
            differ.push(format!("{}: {line:?}", file.display()));
        }
    }
    assert!(differ.is_empty(), "other than written:\n{}", differ.join("\n"));
}

#[test]
fn every_message_is_in_a_transcript() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/replication/tests/transcripts");
    let all: String =
        fs::read_dir(&folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let messages = "Elect Vote Refuse Deposed Probe Standing Align Restart Amnesia Append Beat Ack Stranger Confirm \
                    Confirmed TakeOver Retire Inquire Known Want Spare";
    for word in messages.split_whitespace() {
        assert!(all.lines().any(|line| line.contains(&format!(" {word} "))), "no transcript shows {word}");
    }
}

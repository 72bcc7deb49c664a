//! When a life of a server ends: mostly at any time, and in half of the seeds often at a moment in which an end is most
//! dangerous. Chance alone meets these so seldom that hundreds of seeds may not see a wrong order of operations.

use std::{cell::RefCell, time::Duration};

use pyralog_engine::{
    runtime::sim::{Sim, SimRandom, faults::FaultKind},
    settings::LogSettings,
};

use crate::{clients::Clients, lives::STEPS_MAX, plan::Plan};

/// Draws when lives end. It has a stream of chance of its own.
pub struct Deaths {
    dangerous: bool,
    random: SimRandom,
    /// The life before was killed, and what it wrote may not be synced.
    was_killed: bool,
}

/// When a life ends.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    /// Whenever its time is over.
    AnyTime,
    /// A little after so many files got names of a kind, by a loss of power mostly: recovery relies on what was done
    /// before a change of names, and on what was not done before it.
    Renamed { kind: &'static str, count: u64, after: Duration },
    /// A little after a file got its name while one of that kind in the directory was not synced, by a loss of power
    /// mostly. There should be no such moment.
    RenamedTooEarly { after: Duration },
    /// It is killed while the drive takes long for a write, so that the next life meets that under way.
    Writing,
    /// By a loss of power, just after it showed so many ends of what a killed one left: what that had under way stands
    /// there.
    JustShown { ends: u64, after: Duration },
}

/// A stream in which the kept seeds have no dangerous moments, and are the runs that they were.
const STREAM: u64 = 487;

/// So much longer a life may be that waits for its moment.
const PATIENCE: Duration = Duration::from_millis(300);

impl Deaths {
    /// None but those of any time.
    pub fn any_time() -> Self {
        Deaths { dangerous: false, random: SimRandom::new(0, 0), was_killed: false }
    }

    pub fn of_seed(seed: u64) -> Self {
        let mut random = SimRandom::new(seed, STREAM);
        Deaths { dangerous: random.happens(5_000), random, was_killed: false }
    }

    /// The plan with these deaths. With dangerous ones, logs roll more often, half of them keep all for the judge to
    /// see, and what was not synced is in danger indeed. None where writes go astray: of what is behind these in a last
    /// segment nobody can be sure, and longer lives only show more of that.
    pub fn arrange(mut self, plan: Plan) -> Plan {
        let Deaths { dangerous, random, .. } = &mut self;
        *dangerous &= plan.rates.get(FaultKind::MisdirectedWrite) == 0;
        if !*dangerous {
            return Plan { deaths: RefCell::new(self), ..plan };
        }
        let segment_bytes = random.within(24..96) << 12;
        let settings = if random.happens(5_000) { LogSettings::default() } else { plan.settings };
        let lost = plan.rates.get(FaultKind::LostUnsynced).max([1_000, 10_000, 10_000][random.below(3) as usize]);
        let rates = plan.rates.clone().with(FaultKind::LostUnsynced, lost);
        Plan { deaths: RefCell::new(self), segment_bytes, settings, rates, ..plan }
    }

    /// That of the life that begins.
    pub fn next(&mut self) -> Death {
        if !self.dangerous {
            return Death::AnyTime;
        }
        let mut micros = |most| Duration::from_micros(self.random.below(most));
        let (at_once, soon) = (micros(200), micros(1_500));
        let after = if self.random.happens(5_000) { at_once } else { soon };
        if self.was_killed && self.random.happens(7_000) {
            return Death::JustShown { ends: self.random.within(1..6), after };
        }
        match self.random.below(10) {
            0..3 => {
                let kind = ["seg", "seg", "json", "start", "prd"][self.random.below(5) as usize];
                Death::Renamed { kind, count: self.random.within(1..4), after }
            }
            3..6 => Death::RenamedTooEarly { after },
            6..8 => Death::Writing,
            _ => Death::AnyTime,
        }
    }

    /// Whether a life with this death is killed, or loses its power.
    pub fn is_kill(&mut self, death: Death, any_time: bool) -> bool {
        self.was_killed = match death {
            Death::AnyTime => any_time,
            Death::Renamed { .. } | Death::RenamedTooEarly { .. } => self.random.happens(1_000),
            Death::Writing => true,
            Death::JustShown { .. } => false,
        };
        self.was_killed
    }
}

impl Death {
    /// When a life that has until `end` is over at the latest.
    pub fn latest(self, end: Duration) -> Duration {
        match self {
            Death::AnyTime | Death::Writing => end,
            // It may take long until the writes of the life before are over.
            Death::Renamed { .. } | Death::RenamedTooEarly { .. } | Death::JustShown { .. } => end + PATIENCE,
        }
    }

    /// Lets the world go on until a server that serves is to die, at `end` at the latest. Whether that is because of
    /// the moment.
    pub fn wait(self, sim: &Sim, (plan, clients): (&Plan, &Clients), end: Duration) -> bool {
        let until = |end: Duration, moment: &dyn Fn() -> bool| {
            sim.run_until(|| sim.now() >= end || moment(), STEPS_MAX).unwrap();
        };
        match self {
            Death::AnyTime => until(end, &|| false),
            Death::Renamed { kind, count, after } => {
                let wanted = sim.renames(kind) + count;
                until(end, &|| sim.renames(kind) >= wanted);
                until(sim.now() + after, &|| false);
            }
            Death::RenamedTooEarly { after } => {
                let before = sim.renames_too_early();
                until(end, &|| sim.renames_too_early() > before);
                until(sim.now() + after, &|| false);
            }
            Death::Writing => {
                const LONG: Duration = Duration::from_millis(5);
                until(end, &|| false);
                sim.set_rate(FaultKind::Stall, 3_000);
                until(end + LONG, &|| sim.writes_end() > sim.now() + LONG);
                sim.set_rate(FaultKind::Stall, plan.rates.get(FaultKind::Stall));
            }
            Death::JustShown { ends, after } => {
                let wanted = clients.ends_read.get() + ends;
                until(end, &|| clients.ends_read.get() >= wanted);
                until(sim.now() + after, &|| false);
            }
        }
        !matches!(self, Death::AnyTime)
    }
}

//! What a seed means, drawn before anything runs.

use std::{cell::RefCell, path::PathBuf, time::Duration};

use pyralog_engine::{
    log::{prepare::HeavyLoad, scrub::ScrubPace},
    runtime::sim::{
        SimRandom,
        faults::{FaultKind, FaultRates},
    },
    settings::{Bound, LogSettings, Replication},
    shard::{ShardConfig, balancing::Balance, placement::Drives},
    types::AckLevel,
};

use crate::{deaths::Deaths, withholding};

/// What one seed means, drawn before anything runs.
pub struct Plan {
    pub rates: FaultRates,
    pub alignment: u64,
    pub segment_bytes: u64,
    /// From which load on segments are not filled with zeros.
    pub heavy_load: HeavyLoad,
    pub lives: u64,
    /// How many logs the clients make.
    pub logs: usize,
    /// Drives fail reads, writes or syncs in this seed: then a dead process may have lost what was only written.
    pub drive_fails: bool,
    /// Where its drives are; several only if partitions have several copies.
    pub drives: Vec<PathBuf>,
    /// Something spoils single copies.
    pub spoils_copies: bool,
    /// Drives do not give some bytes.
    pub withholds: bool,
    /// An operator moves partitions from core to core.
    pub moves: bool,
    /// An operator changes how many copies there are.
    pub changes: bool,
    /// Logs are deleted.
    pub deletes: bool,
    /// And the logs begin with one, that knows of no others.
    pub begins_alone: bool,
    /// When they move by themselves.
    pub balance: Option<Balance>,
    /// How many cores each life has besides those that it draws: then some have no copy of a partition.
    pub more_cores: usize,
    /// Of the log.
    pub settings: LogSettings,
    /// Which cores of which lives map sealed segments.
    pub mappings: RefCell<Mappings>,
    /// When the lives of the server end.
    pub deaths: RefCell<Deaths>,
}

/// How often a core maps sealed segments, in ten thousand chances, and what draws it.
pub struct Mappings(pub u32, SimRandom);

impl Mappings {
    /// None.
    pub fn none() -> Self {
        Mappings(0, SimRandom::new(0, 0))
    }

    /// From a stream of its own, so that all else of a seed stays as it is: half of the seeds have none, and so are the
    /// runs that they were before there were any. The stream is one in which that is so of the kept seeds.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = SimRandom::new(seed, 225);
        Mappings([0, 0, 5_000, 10_000][random.below(4) as usize], random)
    }
}

/// Whether the only copies of a seed are moved from core to core. Like [`Mappings::of_seed`]. Not where a drive takes
/// one place for another: a copy that moves is recovered, which believes what it reads, and what was spoiled is told to
/// the judge between lives only.
pub fn moves(seed: u64, rates: &FaultRates) -> bool {
    let misdirected = [FaultKind::MisdirectedWrite, FaultKind::MisdirectedRead];
    SimRandom::new(seed, 232).happens(5_000) && misdirected.iter().all(|kind| rates.get(*kind) == 0)
}

/// What is a heavy load: in a fifth of the seeds any, or commits that are not the smallest. Like
/// [`Mappings::of_seed`].
pub fn heavy_load(seed: u64) -> HeavyLoad {
    let mut random = SimRandom::new(seed, 332);
    if !random.happens(2_000) {
        return HeavyLoad::default();
    }
    HeavyLoad {
        commit_bytes_min: [0, 6 << 10][random.below(2) as usize],
        bytes_per_second_min: 0,
        unawaited_bytes_per_second_min: 0,
    }
}

/// Partitions move by themselves, in a quarter of the seeds in which they are moved at all, and then no operator does
/// it. Soon enough for short lives.
pub fn balance(seed: u64) -> Option<Balance> {
    let soon = Duration::from_millis(20);
    let balance = Balance { busy_percent: 1, difference_percent: 1, period: soon, pause: soon };
    SimRandom::new(seed, 234).happens(2_500).then_some(balance)
}

/// What spoils copies; see `spoiling`.
const SPOILING: [FaultKind; 2] = [FaultKind::BitFlip, FaultKind::MisdirectedWrite];

/// How many copies a seed's partitions have, if they have several, from a stream of its own.
fn replication(seed: u64) -> Replication {
    let (replication_factor, write_quorum, read_quorum) = match SimRandom::new(seed, 226).below(4) {
        0 => (2, 2, 1),
        1 => (3, 2, 2),
        2 => (3, 3, 2),
        _ => (3, 1, 1),
    };
    Replication { replication_factor, write_quorum, read_quorum }
}

/// How much of what copies say to each other is lost: nothing in three of four seeds, else up to a tenth. Like
/// [`Mappings::of_seed`].
fn messages_lost(seed: u64) -> u32 {
    let mut random = SimRandom::new(seed, 1845);
    if random.happens(2_500) { random.within(1..1_000) as u32 } else { 0 }
}

impl Plan {
    /// The plan of a seed in which partitions have several copies, on one drive or on several. What spoils sectors does
    /// so to one copy at a time, and between lives.
    pub fn with_copies(mut self, seed: u64) -> Plan {
        self.settings.replication = Some(replication(seed));
        self.moves = true;
        self.balance = balance(seed);
        self.more_cores = [0, 0, 1, 3][SimRandom::new(seed, 233).below(4) as usize];
        let more = SimRandom::new(seed, 227).below(3);
        self.drives.extend((0..more).map(|drive| PathBuf::from(format!("/data{}", drive + 1))));
        let write_quorum = self.settings.replication.map_or(1, |replication| replication.write_quorum);
        let any = SPOILING.iter().any(|kind| self.rates.get(*kind) > 0) || SimRandom::new(seed, 231).happens(3_000);
        self.spoils_copies = write_quorum > 1 && any;
        self.withholds = withholding::of_seed(seed);
        for kind in SPOILING {
            self.rates = self.rates.with(kind, 0);
        }
        self.rates = self.rates.with(FaultKind::MessageLost, messages_lost(seed));
        self
    }

    /// Whether a drive may be lost for good, or go back to what it was.
    pub fn may_lose_a_drive(&self) -> bool {
        let spare = self.settings.replication.map_or(0, |replication| {
            let on_a_drive = usize::from(replication.replication_factor).div_ceil(self.drives.len());
            usize::from(replication.write_quorum - 1) / on_a_drive
        });
        self.drives.len() > 1 && spare > 0 && !self.spoils_copies && !self.withholds
    }

    /// What logs are made with.
    pub fn first_settings(&self) -> LogSettings {
        let replication = self.settings.replication.filter(|_| !self.begins_alone);
        LogSettings { replication, ..self.settings }
    }

    /// Swarm: each seed has some kinds of fault, with strengths of their own; a third of them have only one.
    pub fn draw(random: &mut SimRandom) -> Plan {
        let rare = [
            (FaultKind::WriteError, 60),
            (FaultKind::SyncError, 200),
            (FaultKind::ReadError, 100),
            (FaultKind::NoSpace, 50),
            (FaultKind::MisdirectedWrite, 15),
            (FaultKind::MisdirectedRead, 60),
            (FaultKind::BitFlip, 10_000),
            (FaultKind::ShortWrite, 1_000),
            (FaultKind::ShortRead, 1_000),
            (FaultKind::Stall, 100),
            (FaultKind::RingDelay, 3_000),
            (FaultKind::Pause, 20),
            (FaultKind::ClockJump, 5_000),
        ];
        let at_power_loss = [FaultKind::LostUnsynced, FaultKind::TornSector, FaultKind::LostName, FaultKind::LostSize];
        let mut rates = FaultRates::none();
        let single = random.happens(3_333).then(|| random.below((rare.len() + at_power_loss.len()) as u64) as usize);
        for (index, (kind, most)) in rare.into_iter().enumerate() {
            let drawn = random.below(most) as u32 + 1;
            if single.map_or_else(|| random.happens(3_000), |only| only == index) {
                rates = rates.with(kind, drawn);
            }
        }
        for (index, kind) in (rare.len()..).zip(at_power_loss) {
            let drawn = [300, 3_000, 10_000][random.below(3) as usize];
            if single.map_or_else(|| random.happens(7_000), |only| only == index) {
                rates = rates.with(kind, drawn);
            }
        }
        // It has an effect only when the drive is full.
        if rates.get(FaultKind::NoSpace) > 0 && random.happens(5_000) {
            rates = rates.with(FaultKind::NoSpaceLate, 5_000);
        }
        let drive_fails = rates.get(FaultKind::WriteError) + rates.get(FaultKind::SyncError) > 0;
        Plan {
            rates,
            alignment: if random.happens(5_000) { 512 } else { 4096 },
            segment_bytes: random.within(24..256) << 12,
            heavy_load: HeavyLoad::default(),
            lives: random.within(2..6),
            logs: if random.happens(3_000) { 6 } else { 2 },
            drive_fails,
            drives: vec![PathBuf::from("/data")],
            spoils_copies: false,
            withholds: false,
            moves: false,
            changes: false,
            deletes: false,
            begins_alone: false,
            balance: None,
            more_cores: 0,
            settings: settings(random),
            mappings: RefCell::new(Mappings::none()),
            deaths: RefCell::new(Deaths::any_time()),
        }
    }

    /// Of a core that is about to start.
    pub fn config(&self, drives: Drives) -> ShardConfig {
        let Mappings(rate, random) = &mut *self.mappings.borrow_mut();
        ShardConfig {
            drives,
            segment_bytes: self.segment_bytes,
            heavy_load: self.heavy_load,
            buffer_time_max: Duration::from_millis(5),
            buffer_bytes_max: 256 << 10,
            sync_interval: Duration::from_millis(20),
            scrub: ScrubPace { bytes_per_second: 16 << 20, period: Duration::from_millis(40) },
            default_ack: AckLevel::Durable,
            cache_bytes: 512 << 10,
            use_mmap: random.happens(*rate),
            tail_bytes: 16 << 10,
            budget_bytes: 8 << 20,
            reserve_bytes: 0,
            retention: Default::default(),
            retention_interval: Duration::from_millis(7),
            replication: Replication::SINGLE,
            drive_timeout: Duration::from_millis(500),
            calm: Duration::from_millis(100),
            balance: self.balance,
        }
    }
}

/// A third of the logs keep everything, a third give up what is old, and a third what is too much.
pub fn settings(random: &mut SimRandom) -> LogSettings {
    let bound = Bound::AtMost;
    match random.below(3) {
        0 => LogSettings::default(),
        1 => LogSettings { retention_ms: Some(bound(random.within(5..80))), ..LogSettings::default() },
        _ => LogSettings { retention_bytes: Some(bound(random.within(16..512) << 10)), ..LogSettings::default() },
    }
}

//! Operations on a log in the simulated world, beside a model that is a list: what was durable survives a loss of
//! power, what was written survives a kill, and what is read is what was appended.
//!
//! The first bytes seed the world; of the others each is an operation.
#![no_main]

use std::{path::PathBuf, rc::Rc, sync::Arc};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pyralog_engine::{
    limits::BATCH_HEADER_BYTES,
    log::{
        Log, LogContext, Placed, ahead::AheadMemory, cache::BlockCache, flush::Commit, loaded::Loaded, read::ReadRange,
        recovery, room::Room, tail_memory::TailMemory, windows::Windows,
    },
    record::{BatchBuilder, Codec, check_produced, split_batches},
    runtime::{
        Runtime,
        sim::{
            ProcessId, Sim, SimConfig, SimRuntime,
            faults::{FaultKind, FaultRates},
        },
    },
    types::{LogUid, Offset, PartitionId, PartitionIndex},
};

const STEPS_MAX: u64 = 1_000_000;
const OPERATIONS_MAX: usize = 60;
const PARTITION: PartitionId = PartitionId { log: LogUid(1), index: PartitionIndex(0) };

/// A log, and what should be in it.
struct World {
    sim: Sim,
    process: ProcessId,
    runtime: SimRuntime,
    log: Rc<Log<SimRuntime>>,
    /// Every batch that was appended and may be there, by its offset: they have one record each.
    batches: Vec<Bytes>,
    written: u64,
    durable: u64,
}

fuzz_target!(|input: &[u8]| {
    let Some((seed, operations)) = input.split_first_chunk::<2>() else { return };
    let mut world = World::new(u64::from(u16::from_le_bytes(*seed)));
    for (number, operation) in operations.iter().take(OPERATIONS_MAX).enumerate() {
        world.carry_out(*operation, number);
    }
    world.reopen(false);
    world.read(0);
});

fn rates() -> FaultRates {
    let kinds = [FaultKind::LostUnsynced, FaultKind::TornSector, FaultKind::LostName, FaultKind::LostSize];
    kinds.into_iter().fold(FaultRates::none(), |rates, kind| rates.with(kind, 4_000))
}

async fn open(runtime: SimRuntime) -> recovery::Recovered<SimRuntime> {
    let context = LogContext {
        openings: Default::default(),
        metrics: Arc::default(),
        cache: BlockCache::new(1 << 16),
        ahead: AheadMemory::new(256 << 10),
        loaded: Loaded::new(8 << 10),
        zeros: Rc::new(runtime.allocate(1 << 17)),
        block_bytes: 512,
        segment_bytes: 32 << 10,
        heavy_load: Default::default(),
        tails: TailMemory::new(8 << 10),
        reaper: Default::default(),
        room: Room::new(0),
        windows: Windows::new(0, 0),
        runtime,
    };
    let dir = PathBuf::from("/p");
    context.runtime.create_dir_all(&dir).await.expect("a directory can be made");
    recovery::open(&Rc::new(context), PARTITION, dir).await.expect("nothing fails in this world")
}

impl World {
    fn new(seed: u64) -> World {
        let sim = Sim::new(seed, &SimConfig { rates: rates(), ..SimConfig::default() });
        let (process, cores) = sim.process(1);
        let runtime = cores[0].clone();
        let log = sim.block_on(&runtime, open(runtime.clone()), STEPS_MAX).expect("it opens").log;
        World { sim, process, runtime, log, batches: Vec::new(), written: 0, durable: 0 }
    }

    fn carry_out(&mut self, operation: u8, number: usize) {
        let argument = usize::from(operation >> 3);
        match operation & 7 {
            0..=2 => self.append(1 + argument * argument * 20, number as u8),
            3 => self.write(Commit::Written),
            4 => {
                self.write(Commit::Durable);
                self.sync();
            }
            5 => self.sync(),
            6 => self.read(argument * self.batches.len() / 32),
            _ => self.reopen(argument & 1 == 0),
        }
    }

    fn append(&mut self, bytes: usize, filler: u8) {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &vec![filler; bytes], &[], filler.into()).expect("a small record");
        let batch = builder.finish().expect("a batch of one");
        let header = check_produced(&batch).expect("a builder's batch is accepted");
        let (base_offset, durable_hint) = (Offset(self.batches.len() as u64), Offset(self.durable));
        self.log.append(&batch, &header, Placed { base_offset, durable_hint, epoch: self.log.epoch() });
        self.batches.push(batch);
    }

    fn write(&mut self, commit: Commit) {
        let log = Rc::clone(&self.log);
        // Only a commit of all that waits is one that the caller may ask to be durable.
        let commit = if self.durable == self.written { commit } else { Commit::Written };
        let task = async move { log.write_waiting(commit).await.expect("nothing fails in this world") };
        if let Some(written) = self.sim.block_on(&self.runtime, task, STEPS_MAX).expect("a write ends") {
            self.written = written.end.0;
            if written.durable {
                self.durable = self.written;
            }
        }
    }

    fn sync(&mut self) {
        let log = Rc::clone(&self.log);
        let task = async move { log.sync().await.expect("nothing fails in this world") };
        self.sim.block_on(&self.runtime, task, STEPS_MAX).expect("a sync ends");
        self.durable = self.written;
    }

    /// Everything from `from` on is there, once, in order.
    fn read(&mut self, from: usize) {
        let (mut next, end) = (from as u64, self.batches.len() as u64);
        while next < end {
            let range = ReadRange { offset: Offset(next), end: Offset(end), max_bytes: 4096 };
            let pieces = self.log.read_memory(range).unwrap_or_else(|| {
                let log = Rc::clone(&self.log);
                let task = async move { log.read_disk(range).await };
                let read = self.sim.block_on(&self.runtime, task, STEPS_MAX).expect("a read ends");
                read.unwrap_or_else(|error| panic!("offset {next} of {end}: {error}"))
            });
            let stored: Vec<u8> = pieces.concat();
            for view in split_batches(Bytes::from(stored.clone())) {
                let header = *view.expect("a damaged batch was read").header();
                assert!(header.base_offset.0 <= next, "{} was read where {next} should be", header.base_offset);
                next = next.max(header.end_offset().0);
            }
            assert!(contains(&stored, &self.batches[next as usize - 1]), "the batch before {next} is another");
        }
    }

    /// The process dies, by a kill or by a loss of power, and the log is opened again.
    fn reopen(&mut self, power: bool) {
        let survives = if power {
            self.sim.lose_power(self.process);
            self.durable
        } else {
            self.sim.kill(self.process);
            self.written
        };
        let (process, cores) = self.sim.process(1);
        (self.process, self.runtime) = (process, cores[0].clone());
        let opened = self.sim.block_on(&self.runtime, open(self.runtime.clone()), STEPS_MAX).expect("it opens");
        assert_eq!(opened.damage, None, "a crash was taken for damage");
        let (end, appended) = (opened.end.0, self.batches.len() as u64);
        assert!((survives..=appended).contains(&end), "{end} records, {survives} to {appended} should be there");
        self.batches.truncate(end as usize);
        (self.log, self.written, self.durable) = (opened.log, end, end);
    }
}

/// Whether the client's part of `batch` stands at the end of `stored`.
fn contains(stored: &[u8], batch: &[u8]) -> bool {
    let client = &batch[BATCH_HEADER_BYTES..];
    stored.windows(client.len()).any(|window| window == client)
}

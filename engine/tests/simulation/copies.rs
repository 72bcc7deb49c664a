//! What becomes of the drives of a server that keeps several copies of its partitions, and whether the copies are the
//! same in the end.
//!
//! No seed loses more drives than its write quorum can spare, so nothing that was acknowledged may be missing.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use pyralog_engine::{
    limits::SEGMENT_HEADER_BYTES,
    log::{
        scan::{Check, Step, Walk},
        segment::{SegmentHeader, base_offset_of},
    },
    runtime::{
        Runtime,
        sim::{DriveImage, Sim, SimRandom, SimRuntime, faults::FaultKind},
    },
    shard::{
        Shard,
        request::{Move, Reply, Request},
    },
    testing::history::{Cause, Event},
    types::CoreId,
};

use crate::{
    clients::{Clients, partitions_of},
    plan::Plan,
    spoiling,
    withholding::{withhold, withhold_from_openings, withhold_from_the_last},
};

/// What chance has in store for the drives of one seed.
pub struct Fate {
    random: SimRandom,
    drives: Vec<PathBuf>,
    /// A drive may be lost for good, or go back to what it was.
    may_lose: bool,
    /// What a drive was, at the end of some life.
    image: Option<(PathBuf, DriveImage)>,
    /// Something spoils copies.
    spoiling: Option<SimRandom>,
    /// Drives do not give some bytes,
    withholding: Option<SimRandom>,
    /// also while copies are opened.
    from_openings: Option<SimRandom>,
}

impl Fate {
    pub fn new(seed: u64, plan: &Plan) -> Fate {
        let drives = plan.drives.clone();
        let may_lose = plan.may_lose_a_drive();
        let spoiling = plan.spoils_copies.then(|| SimRandom::new(seed, 230));
        let withholding = plan.withholds.then(|| SimRandom::new(seed, 259));
        let from_openings = plan.withholds.then(|| SimRandom::new(seed, 260));
        let random = SimRandom::new(seed, 228);
        Fate { random, may_lose, drives, image: None, spoiling, withholding, from_openings }
    }

    fn any(&mut self) -> PathBuf {
        self.drives[self.random.below(self.drives.len() as u64) as usize].clone()
    }

    /// Perhaps one of several drives of a server that runs fails or stalls, a while later.
    pub fn strike(&mut self, sim: &Sim, clients: &Clients) {
        if self.drives.len() < 2 || self.random.happens(5_000) {
            return;
        }
        let drive = self.any();
        if self.random.happens(4_000) {
            clients.note(Event::Cause(Cause::DriveFailed));
            clients.note(Event::Cause(Cause::ReadFailed));
            sim.fail_drive(&drive);
        } else {
            clients.note(Event::Cause(Cause::DriveStalled));
            let millis = self.random.within(10..3_000);
            sim.stall_drive(&drive, Duration::from_millis(millis));
        }
    }

    /// The server runs: what could not be read when it started can be now, perhaps, and other bytes may not be read
    /// again in this life.
    pub fn withhold(&mut self, sim: &Sim, plan: &Plan) {
        if self.from_openings.as_mut().is_some_and(|random| random.happens(4_000)) {
            sim.allow_reads();
        }
        self.withholding.iter_mut().for_each(|random| withhold(sim, plan, random));
    }

    /// How the server of a life that is about to end did. A copy that was given up is one of the losses that a write
    /// quorum can spare, and until it is rebuilt there must be no other.
    pub fn note_given_up(&mut self, shards: &[Shard<SimRuntime>]) {
        if shards.iter().any(|shard| shard.metrics().copies_given_up.get() > 0) {
            (self.may_lose, self.spoiling) = (false, None);
        }
    }

    /// The power was lost: something may be spoiled.
    pub fn spoil(&mut self, sim: &Sim, plan: &Plan) {
        self.spoiling.iter_mut().for_each(|random| spoiling::spoil(sim, plan, random));
    }

    /// The server is down: drives are mended, or replaced.
    pub fn between_lives(&mut self, sim: &Sim, plan: &Plan) {
        sim.allow_reads();
        self.see_to_drives(sim);
        self.from_openings.iter_mut().for_each(|random| withhold_from_openings(sim, plan, random));
    }

    /// Nothing fails any more, but that a copy of each partition may not be given. Gives whether any is not.
    pub fn before_the_last(&mut self, sim: &Sim, plan: &Plan) -> bool {
        sim.allow_reads();
        self.from_openings.as_mut().is_some_and(|random| withhold_from_the_last(sim, plan, random))
    }

    fn see_to_drives(&mut self, sim: &Sim) {
        if self.drives.len() < 2 {
            return;
        }
        // What the dead process had under way is not done to the drive that comes in the place of its own.
        sim.wait_for_calls();
        self.drives.iter().for_each(|drive| sim.heal_drive(drive));
        if !self.may_lose || !self.random.happens(3_000) {
            return;
        }
        match self.image.take() {
            Some((drive, image)) => {
                sim.replace_drive(&drive, Some(&image)).unwrap();
                self.may_lose = false;
            }
            None if self.random.happens(5_000) => {
                let drive = self.any();
                self.image = Some((drive.clone(), sim.image_of(&drive)));
            }
            None => {
                sim.replace_drive(&self.any(), None).unwrap();
                self.may_lose = false;
            }
        }
    }
}

/// For as long as the server lives, its partitions are moved from core to core: leadership goes to a core that has a
/// copy, and a copy to one that has none.
pub fn keep_moving(sim: &Sim, runtime: &SimRuntime, (shard, cores): (Shard<SimRuntime>, u64)) {
    let mut random = SimRandom::new(sim.now().as_nanos() as u64, 229);
    let pause = random.within(5_000..300_000);
    runtime.spawn(async move {
        loop {
            shard.runtime().sleep(Duration::from_micros(random.within(1_000..pause.max(2_000)))).await;
            let catalog = shard.catalog();
            let partitions: Vec<_> = catalog.logs().flat_map(|log| log.partition_ids()).collect();
            if partitions.is_empty() {
                continue;
            }
            let partition = partitions[random.below(partitions.len() as u64) as usize];
            let to = CoreId(random.below(cores) as u16);
            // Whether it could be done is of no concern here.
            if shard.call(Request::Move(Move { partition, to })).await.is_ok() {
                shard.runtime().count(FaultKind::PartitionMoved);
            }
        }
    });
}

/// The copies that are not in service and in sync after a minute. Called when all is well again.
pub async fn out_of_service(shard: &Shard<SimRuntime>) -> Vec<String> {
    let until = shard.runtime().monotonic() + Duration::from_secs(60);
    loop {
        let mut out = Vec::new();
        for partition in partitions_of(shard) {
            match shard.call(Request::Describe(partition)).await {
                Ok(Reply::Described(status)) if status.leads && status.replicas.iter().all(|copy| copy.in_sync) => {}
                told => out.push(format!("a copy is not in service in the end: {told:?}")),
            }
        }
        if out.is_empty() || shard.runtime().monotonic() >= until {
            return out;
        }
        shard.runtime().sleep(Duration::from_millis(100)).await;
    }
}

/// The batches of a copy, by offset: what they end with, their reign, and their fingerprint.
type Batches = BTreeMap<u64, (u64, u32, u32)>;

/// What is different among copies of one partition. Called when all is well again.
pub fn compare(sim: &Sim, plan: &Plan) -> Vec<String> {
    if plan.settings.replication.is_none() {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for (partition, copies) in spoiling::copies_on(sim, plan) {
        let read: Vec<_> = copies.iter().map(|(dir, segments)| (dir, batches(sim, segments))).collect();
        for (one, other) in read.iter().zip(read.iter().skip(1)) {
            let differs = one.1.iter().find(|(base, batch)| other.1.get(base).is_some_and(|other| other != *batch));
            if let Some((base, batch)) = differs {
                let (a, b, theirs) = (one.0.display(), other.0.display(), other.1[base]);
                complaints.push(format!(
                    "C10 broken in {}: {a} has {batch:?} at {base}, {b} {theirs:?}",
                    partition.display()
                ));
            }
        }
    }
    complaints
}

/// What the segments of a copy hold; each ends where the next begins.
fn batches(sim: &Sim, segments: &[PathBuf]) -> Batches {
    let mut all = Batches::new();
    for (at, path) in segments.iter().enumerate() {
        let end = segments.get(at + 1).and_then(|next: &PathBuf| base_offset_of(next));
        let Some(bytes) = sim.content(path) else { continue };
        let Ok(header) = SegmentHeader::decode(&bytes) else { continue };
        let body = &bytes[SEGMENT_HEADER_BYTES as usize..];
        let mut walk = Walk::new(body, SEGMENT_HEADER_BYTES, (header.block_bytes, header.incarnation), Check::Whole);
        while let Step::Batch(batch) = walk.step() {
            let header = &batch.header;
            if end.is_none_or(|end| header.base_offset < end) {
                let batch = (header.end_offset().0, header.leader_epoch.0, header.crc);
                all.insert(header.base_offset.0, batch);
            }
        }
    }
    all
}

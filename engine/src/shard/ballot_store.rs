//! The ballot of a replica on disk: the file `ballot` beside its segments, of a few copies, replaced whole. It names
//! the replica, so that the ballot of another, which a copied directory or a mixed-up drive brings, is not taken for
//! its own. Format: `docs/FORMAT.md`, "Ballot".

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    log::{
        LogFault,
        copies::{self, BALLOT_MAGIC, BALLOT_NAME, COPY_BYTES},
        envelope,
    },
    replication::{
        assignment::{Members, ReplicaId},
        ballot::Ballot,
    },
    runtime::Runtime,
    types::{LogUid, Offset, PartitionId, PartitionIndex},
};

/// What is found of a ballot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There is none.
    Missing,
    /// None of its copies can be believed, or it is another's; and why.
    Damaged(String),
    /// Another version wrote it, this one; it must not be touched.
    Version(u8),
    /// It is this one.
    Is(Ballot),
}

/// One copy, as JSON in an envelope.
#[derive(Serialize, Deserialize)]
struct Stored {
    log: LogUid,
    partition: PartitionIndex,
    replica: ReplicaId,
    ballot: Ballot,
}

/// The ballot of a replica whose directory, which was synced, is `dir`.
///
/// Errors: the operating system's; what that means for the ballot is not known.
pub(super) async fn load<R: Runtime>(runtime: &R, dir: &Path, owner: (PartitionId, ReplicaId)) -> io::Result<Found> {
    let bytes = copies::read(runtime, &dir.join(BALLOT_NAME)).await?;
    Ok(bytes.map_or(Found::Missing, |bytes| judge(&bytes, owner)))
}

/// Makes `ballot` that of a replica. Durable when this returns; until then what was there before is.
pub(super) async fn save<R: Runtime>(
    runtime: &R,
    dir: &Path,
    (id, replica): (PartitionId, ReplicaId),
    ballot: &Ballot,
) -> Result<(), LogFault> {
    let path = dir.join(BALLOT_NAME);
    let stored = Stored { log: id.log, partition: id.index, replica, ballot: *ballot };
    let json = serde_json::to_vec(&stored).map_err(|error| LogFault::failed("writing", &path, &error.into()))?;
    copies::write(runtime, &path, &envelope::seal(BALLOT_MAGIC, &json)).await
}

/// Everything before it is final, as the ballot with these `bytes` says of its copy; zero if that says nothing.
pub fn committed_in(bytes: &[u8], owner: (PartitionId, ReplicaId)) -> Offset {
    match judge(bytes, owner) {
        Found::Is(ballot) if !ballot.loss_was_accepted() => ballot.committed,
        Found::Is(_) | Found::Missing | Found::Damaged(_) | Found::Version(_) => Offset(0),
    }
}

fn judge(bytes: &[u8], owner: (PartitionId, ReplicaId)) -> Found {
    // A copy ends before the next begins, wherever that is.
    let copies = (0..bytes.len()).step_by(COPY_BYTES).map(|at| decode_copy(&bytes[at..], owner));
    match copies::best_of(copies, |first, _| first) {
        Ok(ballot) => Found::Is(ballot),
        Err(reason) => copies::other_version_of(BALLOT_MAGIC, bytes, copies::ballot_holds)
            .map_or(Found::Damaged(reason), Found::Version),
    }
}

fn decode_copy(bytes: &[u8], (id, replica): (PartitionId, ReplicaId)) -> Result<Ballot, String> {
    let json = envelope::open(BALLOT_MAGIC, bytes).ok_or_else(|| "its checksum is wrong".to_owned())?;
    let stored: Stored = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    let found = PartitionId { log: stored.log, index: stored.partition };
    if (found, stored.replica) != (id, replica) {
        return Err(format!("it is that of replica {} of partition {found}", stored.replica));
    }
    let Ballot { promised, accepted, forced, config, .. } = stored.ballot;
    if accepted > promised || forced > promised {
        return Err(format!("it knows of reigns that it has not promised: {}", stored.ballot));
    }
    for members in [Some(config.current), config.incoming].into_iter().flatten() {
        Members::new(members.replicas(), members.write_quorum(), members.read_quorum())
            .map_err(|error| error.to_string())?;
    }
    Ok(stored.ballot)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        replication::assignment::{ConfigId, Configuration},
        runtime::sim::{
            Sim, SimConfig,
            faults::{Failure, FaultKind, FaultRates},
        },
        types::{LeaderEpoch, Offset},
    };

    const DIR: &str = "/p";
    const OWNER: (PartitionId, ReplicaId) = (PartitionId { log: LogUid(7), index: PartitionIndex(3) }, ReplicaId(1));

    fn ballot(promised: u32) -> Ballot {
        let members = Members::new((0..3).map(ReplicaId).collect(), 2, 2).unwrap();
        let founding = Ballot::founding(Configuration::founding(members));
        Ballot { promised: LeaderEpoch(promised), committed: Offset(1_000_000), ..founding }
    }

    fn copy(ballot: Ballot) -> Vec<u8> {
        let (PartitionId { log, index: partition }, replica) = OWNER;
        let stored = Stored { log, partition, replica, ballot };
        envelope::seal(BALLOT_MAGIC, &serde_json::to_vec(&stored).unwrap())
    }

    #[test]
    fn the_largest_ballot_has_room_for_two_copies_and_any_flipped_bit_is_noticed() {
        let members = Members::new((0..8).map(ReplicaId).collect(), 8, 8).unwrap();
        let id = ConfigId { epoch: LeaderEpoch(u32::MAX), version: u32::MAX };
        let config = Configuration { id, current: members, incoming: Some(members) };
        let most = LeaderEpoch(u32::MAX);
        let largest = Ballot {
            accepted: most,
            forced: most,
            committed_in: most,
            committed: Offset(u64::MAX),
            config,
            ..ballot(u32::MAX)
        };
        let bytes = copy(largest);
        assert!(bytes.len() + 20 <= 2 * COPY_BYTES, "{} bytes, without a long log number", bytes.len());
        assert_eq!(judge(&bytes, OWNER), Found::Is(largest));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(judge(&damaged, OWNER), Found::Is(_)), "bit {bit}");
        }
    }

    #[test]
    fn the_ballot_of_another_replica_or_version_and_one_that_makes_no_sense_are_told_apart() {
        let bytes = copy(ballot(9));
        let (partition, replica) = OWNER;
        let other = PartitionId { index: PartitionIndex(4), ..partition };
        for stranger in [(partition, ReplicaId(2)), (other, replica)] {
            let Found::Damaged(reason) = judge(&bytes, stranger) else { panic!("{stranger:?}") };
            assert!(reason.contains("replica 1 of partition 7/3"), "{reason}");
        }
        let senseless = Ballot { accepted: LeaderEpoch(10), ..ballot(9) };
        assert!(matches!(judge(&copy(senseless), OWNER), Found::Damaged(_)));
        let mut later = bytes;
        later[3] = b'2';
        assert!(matches!(judge(&later, OWNER), Found::Damaged(_)), "a bit turned over");
        later[20] ^= 1;
        assert_eq!(judge(&later, OWNER), Found::Version(2));
        for garbage in [&[][..], &[0; 4096], &[0xa5; 4096], &BALLOT_MAGIC] {
            assert!(matches!(judge(garbage, OWNER), Found::Damaged(_)));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..1200),
            json in "[ -~]{0,300}",
        ) {
            judge(&bytes, OWNER);
            judge(&envelope::seal(BALLOT_MAGIC, &bytes), OWNER);
            judge(&envelope::seal(BALLOT_MAGIC, json.as_bytes()), OWNER);
        }
    }

    #[test]
    fn a_spoiled_sector_costs_nothing() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let runtime = cores[0].clone();
        let story = async move {
            runtime.create_dir_all(Path::new(DIR)).await.unwrap();
            assert_eq!(load(&runtime, Path::new(DIR), OWNER).await.unwrap(), Found::Missing);
            save(&runtime, Path::new(DIR), OWNER, &ballot(9)).await.unwrap();
            load(&runtime, Path::new(DIR), OWNER).await.unwrap()
        };
        assert_eq!(sim.block_on(&cores[0], story, 10_000).unwrap(), Found::Is(ballot(9)));
        let file = sim.content(&PathBuf::from(DIR).join(BALLOT_NAME)).unwrap();
        for sector in 0..8 {
            let mut spoiled = file.clone();
            spoiled[sector * COPY_BYTES..][..COPY_BYTES].fill(0xa5);
            assert_eq!(judge(&spoiled, OWNER), Found::Is(ballot(9)), "sector {sector}");
        }
    }

    #[test]
    fn power_that_is_lost_while_it_is_saved_leaves_the_one_before_or_it() {
        let lossy = [FaultKind::LostUnsynced, FaultKind::LostName, FaultKind::LostSize];
        let rates = lossy.into_iter().fold(FaultRates::none(), |rates, kind| rates.with(kind, 5_000));
        for (operation, seed) in (1..12).flat_map(|operation| (0..8).map(move |seed| (operation, seed))) {
            let sim = Sim::new(seed, &SimConfig { rates: rates.clone(), ..SimConfig::default() });
            let (process, cores) = sim.process(1);
            let (runtime, dir) = (cores[0].clone(), Path::new(DIR));
            let first = async move {
                runtime.create_dir_all(dir).await.unwrap();
                runtime.sync_dir(Path::new("/")).await.unwrap();
                save(&runtime, dir, OWNER, &ballot(1)).await.unwrap();
            };
            sim.block_on(&cores[0], first, 10_000).unwrap();
            sim.fail_nth(operation, Failure::Crash, false);
            let (runtime, over) = (cores[0].clone(), std::rc::Rc::new(std::cell::Cell::new(false)));
            let flag = std::rc::Rc::clone(&over);
            cores[0].spawn(async move {
                save(&runtime, dir, OWNER, &ballot(2)).await.unwrap();
                flag.set(true);
            });
            sim.run_until(|| over.get() || sim.has_failed(), 10_000).unwrap();
            sim.lose_power(process);
            sim.fail_none();
            let (_, cores) = sim.process(1);
            let runtime = cores[0].clone();
            let found = sim.block_on(&cores[0], async move { load(&runtime, dir, OWNER).await.unwrap() }, 10_000);
            let expected = if over.get() { 2..=2 } else { 1..=2 };
            let is_one = expected.clone().any(|promised| found == Ok(Found::Is(ballot(promised))));
            assert!(is_one, "operation {operation}, seed {seed}: {found:?}, of {expected:?}");
        }
    }
}

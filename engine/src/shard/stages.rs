//! Where the time of an append went, for a client that asked.
//!
//! A [`StageClock`] travels with the way back of the request ([`super::completion::ReplyTo`]); whoever is done with a
//! stage marks it. Without one nothing is read and nothing is kept: what it costs when nobody asks is a branch.

use std::time::Duration;

/// What an append goes through, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the reading of its bytes until its frame is whole, its turn has come, and there is memory for it.
    Receive,
    /// Until a shard has it.
    Queue,
    /// To the core that owns the partition.
    Hop,
    /// Header and checksum, the producer's sequence, the expected offset.
    Validate,
    /// In memory, until the write begins that carries it, or until the ack if that comes first.
    Buffer,
    /// The device, from the begin of that write to what the ack waited for.
    Disk,
    /// Back to the core that has the connection, and onto the stream.
    Ack,
}

impl Stage {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All of them, in order.
    pub const ALL: [Stage; Stage::COUNT] =
        [Stage::Receive, Stage::Queue, Stage::Hop, Stage::Validate, Stage::Buffer, Stage::Disk, Stage::Ack];

    /// Its name for people and machines.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Receive => "receive",
            Stage::Queue => "queue",
            Stage::Hop => "hop",
            Stage::Validate => "validate",
            Stage::Buffer => "buffer",
            Stage::Disk => "disk",
            Stage::Ack => "ack",
        }
    }
}

/// How long each stage took, in nanoseconds, at most 4.29 s each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages(pub [u32; Stage::COUNT]);

impl Stages {
    /// What `stage` took.
    pub fn get(&self, stage: Stage) -> Duration {
        Duration::from_nanos(self.0[stage as usize].into())
    }

    /// All of it.
    pub fn total(&self) -> Duration {
        Stage::ALL.into_iter().map(|stage| self.get(stage)).sum()
    }
}

/// Measures one append. Times are those of [`crate::runtime::Runtime::monotonic`], which all cores share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageClock {
    /// When the stage before was over.
    marked: Duration,
    stages: Stages,
}

impl StageClock {
    /// Starts with the first stage at `now`.
    pub fn start(now: Duration) -> Self {
        StageClock { marked: now, stages: Stages::default() }
    }

    /// `stage` is over at `now`. What came out of order (a write that began before the batch came) counts as nothing.
    pub fn mark(&mut self, stage: Stage, now: Duration) {
        let took = now.saturating_sub(self.marked);
        self.marked = self.marked.max(now);
        let spent = &mut self.stages.0[stage as usize];
        *spent = spent.saturating_add(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
    }

    /// What was measured so far.
    pub fn stages(&self) -> Stages {
        self.stages
    }
}

impl From<Stages> for StageClock {
    /// One that was read: of an answer that came over the network.
    fn from(stages: Stages) -> Self {
        StageClock { marked: Duration::ZERO, stages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn stages_follow_each_other_without_gaps_or_overlaps() {
        let mut clock = StageClock::start(10 * US);
        clock.mark(Stage::Receive, 12 * US);
        clock.mark(Stage::Validate, 15 * US);
        // The write had begun before.
        clock.mark(Stage::Buffer, 14 * US);
        clock.mark(Stage::Disk, 40 * US);
        let stages = clock.stages();
        let all = Stage::ALL.map(|stage| stages.get(stage).as_micros());
        assert_eq!(all, [2, 0, 0, 3, 0, 25, 0]);
        assert_eq!(stages.total(), 30 * US);
    }

    #[test]
    fn what_took_for_ever_is_the_longest_there_is() {
        let mut clock = StageClock::start(Duration::ZERO);
        clock.mark(Stage::Disk, Duration::from_secs(3600));
        assert_eq!(clock.stages().get(Stage::Disk), Duration::from_nanos(u32::MAX.into()));
    }
}

//! `dlog log alter`: changes of a log in use. A change of its copies goes on after the answer; it is shown how far it
//! has come until it is done.

use std::time::Duration;

use pyralog_net::{
    client::{LogChanges, LogId, PartitionId, PartitionStatus, PyralogClient, Replication, ReplicationChanges},
    wire::reply::LogMetadata,
};
use serde_json::{Value, json};

use super::{
    Fault, Outcome,
    log::{count, print_settings},
};
use crate::output::say;

/// How often it is looked how far a change of copies has come, and how often that is said.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOKS_PER_LINE: u32 = 10;

/// What the copies of a log are to become.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct NewCopiesArgs {
    /// How many copies there are to be of each partition, each on a core of its own: 1 to 8. The log stays in use while
    /// they change.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    replication_factor: Option<u8>,
    /// How many of them must have a record before it is acknowledged. If not given, a majority of another number of
    /// copies, or else as before.
    #[arg(long, value_name = "W")]
    write_quorum: Option<u8>,
    /// How many of them must confirm that their leader leads before it answers a read. As before, if not given.
    #[arg(long, value_name = "R")]
    read_quorum: Option<u8>,
    /// Do not wait until the copies are what they are to be: that goes on by itself.
    #[arg(long)]
    no_wait: bool,
}

impl NewCopiesArgs {
    /// What changes, if anything does.
    pub fn changes(&self) -> Option<ReplicationChanges> {
        let NewCopiesArgs { replication_factor, write_quorum, read_quorum, .. } = *self;
        let changes = ReplicationChanges { replication_factor, write_quorum, read_quorum };
        (changes != ReplicationChanges::default()).then_some(changes)
    }
}

/// How far a change of copies has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Partitions whose members are those that are to be.
    done: u64,
    /// Copies that are to be and keep up with their leaders, of all partitions.
    in_sync: u64,
    /// For how long the worst of the others has not had all that its leader has.
    lag_ms: u64,
    /// Partitions that nobody leads, or that cannot be asked.
    unknown: u64,
}

/// Changes the settings of a log.
pub async fn alter(
    client: &PyralogClient,
    name: &LogId,
    changes: LogChanges,
    (copies, json): (&NewCopiesArgs, bool),
) -> Outcome {
    if changes == LogChanges::default() {
        return Err(Fault::usage("nothing is to change; `dlog log alter --help` lists what can"));
    }
    let log = client.alter_log(name, changes).await?;
    if !json {
        say!("changed {}", log.name);
        print_settings(&log);
    }
    let log = if log.former.is_none() || copies.no_wait { log } else { watch(client, name, json).await? };
    if json {
        say!("{}", json!(log));
    }
    Ok(())
}

/// Waits until the copies of a log are what they are to be, and shows how far they are.
async fn watch(client: &PyralogClient, name: &LogId, json: bool) -> Result<LogMetadata, Fault> {
    let mut looks = 0;
    loop {
        let log = client.describe_log(name).await?;
        let Some((_, to)) = under_way(&log) else {
            if !json {
                say!("the copies are what they are to be");
            }
            return Ok(log);
        };
        if looks % LOOKS_PER_LINE == 0 {
            let progress = progress(client, name, (log.partitions, to)).await;
            if json { say!("{}", progress.as_json(&log, to)) } else { say!("{}", progress.as_line(&log, to)) }
        }
        looks += 1;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// From what to what the copies of a log change, if they do.
pub fn under_way(log: &LogMetadata) -> Option<(Replication, Replication)> {
    log.former.map(|former| (former, log.settings.replication.unwrap_or(Replication::SINGLE)))
}

async fn progress(client: &PyralogClient, name: &LogId, (partitions, to): (u32, Replication)) -> Progress {
    let mut progress = Progress::default();
    for index in (0..partitions).map(PartitionId) {
        match client.describe_partition(name, index).await {
            Ok(status) => progress.note(&status, to),
            Err(_) => progress.unknown += 1,
        }
    }
    progress
}

impl Progress {
    fn note(&mut self, status: &PartitionStatus, to: Replication) {
        if !status.leads {
            self.unknown += 1;
            return;
        }
        self.done += u64::from(status.replication == to);
        let (there, away): (Vec<_>, Vec<_>) =
            status.replicas.iter().filter(|copy| copy.replica.0 < to.replication_factor).partition(|copy| copy.in_sync);
        self.in_sync += there.len() as u64;
        self.lag_ms = away.iter().map(|copy| copy.lag_ms).fold(self.lag_ms, u64::max);
    }

    fn as_line(&self, log: &LogMetadata, to: Replication) -> String {
        let copies = u64::from(log.partitions) * u64::from(to.replication_factor);
        let mut line = format!(
            "{} of {} changed, {} of {} in sync",
            self.done,
            count(u64::from(log.partitions), "partition"),
            self.in_sync,
            if copies == 1 { "1 copy".to_owned() } else { format!("{copies} copies") },
        );
        if self.lag_ms > 0 {
            line += &format!(", the last one {} behind", pyralog_tuning::units::Millis(self.lag_ms));
        }
        if self.unknown > 0 {
            line += &format!("; {} not led now", count(self.unknown, "partition"));
        }
        line
    }

    fn as_json(&self, log: &LogMetadata, to: Replication) -> Value {
        let Progress { done, in_sync, lag_ms, unknown } = *self;
        let copies = u64::from(log.partitions) * u64::from(to.replication_factor);
        json!({
            "log": log.name, "partitions": log.partitions, "partitions_changed": done, "copies": copies,
            "copies_in_sync": in_sync, "lag_ms": lag_ms, "partitions_not_led": unknown,
        })
    }
}

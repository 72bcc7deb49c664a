//! `dlog cores`: what the cores of a server have and do, and which of them leads what.

use std::time::Duration;

use clap::Subcommand;
use pyralog_net::client::{CoreDoing, CoreId, CoreStatus, LogId, PartitionId, PyralogClient};
use pyralog_tuning::units::ByteSize;
use serde_json::{Value, json};

use super::{Outcome, log::partition};
use crate::output::say;

/// Over how long the load is measured.
const MEASURED: Duration = Duration::from_secs(1);

/// The commands.
#[derive(Debug, Subcommand)]
pub enum CoresCommand {
    /// List the cores: the drive of each, how busy it is, how many partitions it leads, how many of these stay there
    /// until `dlog cores release`, of how many it has a copy that does not lead, and its load, which is measured for a
    /// second.
    List,
    /// Have a core lead a partition, now and from now on, until `dlog cores release`.
    ///
    /// If the core has a copy of it, that one leads. Else a copy goes there, which must be on the drive of that core:
    /// the only one, or of several the one that leads, if it is. Nothing is lost and no record is copied. A copy that
    /// does not keep up now leads as soon as it does.
    Move {
        /// LOG/NUMBER, such as orders/0 or eu/orders/3.
        #[arg(value_name = "LOG/PARTITION", value_parser = partition)]
        partition: (LogId, PartitionId),
        /// The core's number, as `dlog cores list` shows it.
        core: u16,
    },
    /// Let a partition that was moved by command move by itself again. It stays where it is until load makes it move.
    Release {
        /// LOG/NUMBER, such as orders/0 or eu/orders/3.
        #[arg(value_name = "LOG/PARTITION", value_parser = partition)]
        partition: (LogId, PartitionId),
    },
}

/// Does what the command says.
pub async fn run(client: &PyralogClient, command: &CoresCommand, json: bool) -> Outcome {
    match command {
        CoresCommand::List => list(client, json).await?,
        CoresCommand::Move { partition: (log, index), core } => {
            let moved = client.move_partition(log, *index, CoreId(*core)).await?;
            if json {
                say!("{}", json!(moved));
            } else {
                let (core, copy, epoch) = (moved.core, moved.replica, moved.epoch);
                if epoch.0 == 0 {
                    say!("partition {index} of {log} is on core {core}");
                } else {
                    say!("partition {index} of {log} is led by copy {copy} on core {core}, in epoch {epoch}");
                }
            }
        }
        CoresCommand::Release { partition: (log, index) } => {
            client.unpin_partition(log, *index).await?;
            if json {
                say!("{}", json!({ "released": format!("{log}/{index}") }));
            } else {
                say!("partition {index} of {log} may move by itself");
            }
        }
    }
    Ok(())
}

/// What a core did in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    /// Of a thousand parts of the time.
    busy: u64,
    write_requests: u64,
    write_bytes: u64,
    read_requests: u64,
    read_bytes: u64,
}

impl Load {
    /// Between two reports. None if the core was started anew between them.
    fn between(before: &CoreDoing, after: &CoreDoing) -> Option<Load> {
        let micros = after.at_us.checked_sub(before.at_us).filter(|micros| *micros > 0)?;
        let rate = |field: fn(&CoreDoing) -> u64| {
            let done = u128::from(field(after).checked_sub(field(before))?);
            u64::try_from(done * 1_000_000 / u128::from(micros)).ok()
        };
        Some(Load {
            busy: rate(|doing| doing.busy_us)? / 1000,
            write_requests: rate(|doing| doing.write_requests)?,
            write_bytes: rate(|doing| doing.write_bytes)?,
            read_requests: rate(|doing| doing.read_requests)?,
            read_bytes: rate(|doing| doing.read_bytes)?,
        })
    }
}

async fn list(client: &PyralogClient, json: bool) -> Outcome {
    let before = client.describe_cores().await?;
    tokio::time::sleep(MEASURED).await;
    let cores = client.describe_cores().await?;
    let load = |core: &CoreStatus| {
        let earlier = before.iter().find(|earlier| earlier.core == core.core)?;
        Load::between(&earlier.doing?, &core.doing?)
    };
    if json {
        let shown = cores.iter().map(|core| shown(core, load(core)));
        say!("{}", shown.collect::<Vec<Value>>().into_iter().collect::<Value>());
        return Ok(());
    }
    say!(
        "{:>4} {:>5} {:>6} {:>5} {:>6} {:>7} {:>10} {:>12} {:>10} {:>12}  DIRECTORY",
        "CORE",
        "DRIVE",
        "BUSY",
        "LEADS",
        "PINNED",
        "FOLLOWS",
        "WRITES/S",
        "BYTES/S",
        "READS/S",
        "BYTES/S"
    );
    for core in &cores {
        let (id, drive, dir) = (core.core.to_string(), core.drive, &core.data_dir);
        let Some(doing) = core.doing else {
            say!("{id:>4} {drive:>5} it does not answer  {dir}");
            continue;
        };
        let figure = |of: fn(Load) -> String| load(core).map_or_else(|| "-".to_owned(), of);
        say!(
            "{id:>4} {drive:>5} {:>6} {:>5} {:>6} {:>7} {:>10} {:>12} {:>10} {:>12}  {dir}",
            figure(|load| format!("{:.1}%", load.busy as f64 / 10.0)),
            doing.leads,
            doing.pinned,
            doing.follows,
            figure(|load| load.write_requests.to_string()),
            figure(|load| ByteSize(load.write_bytes).to_string()),
            figure(|load| load.read_requests.to_string()),
            figure(|load| ByteSize(load.read_bytes).to_string()),
        );
    }
    Ok(())
}

fn shown(core: &CoreStatus, load: Option<Load>) -> Value {
    let CoreStatus { core, drive, data_dir, doing } = core;
    json!({
        "core": core, "drive": drive, "data_dir": data_dir,
        "answers": doing.is_some(),
        "leads": doing.map(|doing| doing.leads),
        "pinned": doing.map(|doing| doing.pinned),
        "follows": doing.map(|doing| doing.follows),
        "busy_percent": load.map(|load| load.busy as f64 / 10.0),
        "write_requests_per_s": load.map(|load| load.write_requests),
        "write_bytes_per_s": load.map(|load| load.write_bytes),
        "read_requests_per_s": load.map(|load| load.read_requests),
        "read_bytes_per_s": load.map(|load| load.read_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_what_was_done_by_the_time_that_passed() {
        let doing = |at_us, done| CoreDoing {
            at_us,
            leads: 1,
            follows: 1,
            pinned: 0,
            busy_us: done * 1_000,
            write_requests: done,
            write_bytes: done * 100,
            read_requests: done * 2,
            read_bytes: 0,
        };
        let load = Load { busy: 20, write_requests: 20, write_bytes: 2_000, read_requests: 40, read_bytes: 0 };
        assert_eq!(Load::between(&doing(1_000_000, 5), &doing(1_500_000, 15)), Some(load));
        assert_eq!(Load::between(&doing(1, 5), &doing(1, 5)), None, "no time passed");
        assert_eq!(Load::between(&doing(9, 5), &doing(99, 4)), None, "it began anew");
    }
}

//! `dlog log`: the logs of a server.

use clap::Subcommand;
use pyralog_net::{
    client::{
        AckLevel, Bound, Codec, LogChanges, LogId, LogSettings, Offset, PartitionId, PartitionStatus, Places,
        PyralogClient, ReplicaStatus, Replication,
    },
    wire::reply::LogMetadata,
};
use pyralog_tuning::{
    copies::majority,
    units::{ByteSize, Millis},
};
use serde_json::{Value, json};

use super::{
    Outcome,
    alter::{NewCopiesArgs, alter, under_way},
};
use crate::output::say;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Create a log.
    Create {
        /// NAME, or NAMESPACE/NAME.
        name: LogId,
        /// How many partitions: 1 to 1024. Order holds within a partition.
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// The ack level of writes that name none: received, written, durable or quorum. The server's, if not given.
        #[arg(long, value_name = "LEVEL")]
        ack: Option<AckLevel>,
        /// For how long records are kept at least, such as 7d, 12h or a number of milliseconds; or unlimited. The
        /// server's, if not given.
        #[arg(long, visible_alias = "retention-ms", value_name = "TIME", value_parser = time)]
        retention: Option<Bound>,
        /// How many bytes of each partition are kept at least, such as 10GiB; or unlimited. The server's, if not given.
        #[arg(long, value_name = "SIZE", value_parser = size)]
        retention_bytes: Option<Bound>,
        /// How producers compress that do not decide for themselves: none, lz4, zstd, or producer for as they like,
        /// which is none.
        #[arg(long, value_name = "CODEC", value_parser = compression)]
        compression: Option<Choice<Codec>>,
        #[command(flatten)]
        copies: CopiesArgs,
    },
    /// Change the settings of a log. Those that are not given stay as they are.
    Alter {
        /// NAME, or NAMESPACE/NAME.
        name: LogId,
        /// The ack level of writes that name none; `server` for the server's.
        #[arg(long, value_name = "LEVEL", value_parser = or_server::<AckLevel>)]
        ack: Option<Choice<AckLevel>>,
        /// For how long records are kept at least, such as 7d; unlimited; or `server` for the server's. What is too old
        /// then is deleted.
        #[arg(long, visible_alias = "retention-ms", value_name = "TIME", value_parser = time_or_server)]
        retention: Option<Choice<Bound>>,
        /// How many bytes of each partition are kept at least; unlimited; or `server` for the server's. What is too
        /// much then is deleted.
        #[arg(long, value_name = "SIZE", value_parser = size_or_server)]
        retention_bytes: Option<Choice<Bound>>,
        /// How producers compress that do not decide for themselves: none, lz4, zstd or producer.
        #[arg(long, value_name = "CODEC", value_parser = compression)]
        compression: Option<Choice<Codec>>,
        #[command(flatten)]
        copies: NewCopiesArgs,
    },
    /// Delete the records of a partition before an offset. There is no way back.
    Trim {
        /// LOG/NUMBER, such as orders/0 or eu/orders/3.
        #[arg(value_name = "LOG/PARTITION", value_parser = partition)]
        partition: (LogId, PartitionId),
        /// The first record that stays: an offset, or latest for none of those there are now.
        #[arg(long, value_name = "OFFSET", value_parser = before)]
        before: Before,
    },
    /// List all logs.
    List,
    /// Print a log's partitions with their owners and offsets.
    ///
    /// Of each partition that has several copies it lists them too: where they are, what they are, how far they have
    /// the log (in memory, on the device, synced), for how long they have not had all that the leader has, and whether
    /// they are in sync.
    Describe {
        /// NAME, or NAMESPACE/NAME.
        name: LogId,
    },
    /// Delete a log and all its records. There is no way back.
    Delete {
        /// NAME, or NAMESPACE/NAME.
        name: LogId,
    },
}

/// The copies of a new log.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct CopiesArgs {
    /// How many copies there are of each partition, each on a core of its own: 1 to 8. As many as the server's setting
    /// says, with its quorums, if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    replication_factor: Option<u8>,
    /// How many of them must have a record before it is acknowledged. What is acknowledged survives the loss of any W -
    /// 1. A majority of them, if not given.
    #[arg(long, value_name = "W", requires = "replication_factor")]
    write_quorum: Option<u8>,
    /// How many of them must confirm that their leader leads before it answers a read; reads are linearizable if R + W
    /// > N. 1, if not given.
    #[arg(long, value_name = "R", requires = "replication_factor")]
    read_quorum: Option<u8>,
}

impl CopiesArgs {
    fn replication(&self) -> Option<Replication> {
        self.replication_factor.map(|replication_factor| Replication {
            replication_factor,
            write_quorum: self.write_quorum.unwrap_or(majority(u64::from(replication_factor)) as u8),
            read_quorum: self.read_quorum.unwrap_or(1),
        })
    }
}

/// Does what the command says.
pub async fn run(client: &PyralogClient, command: &LogCommand, json: bool) -> Outcome {
    match command {
        LogCommand::Create { name, partitions, ack, retention, retention_bytes, compression, copies } => {
            let settings = LogSettings {
                ack: *ack,
                retention_ms: *retention,
                retention_bytes: *retention_bytes,
                compression: compression.and_then(|choice| choice.0),
                replication: copies.replication(),
            };
            let log = client.create_log(name, *partitions, settings).await?;
            if json {
                say!("{}", json!(log));
            } else {
                let partitions = count(u64::from(log.partitions), "partition");
                match replication(&log) {
                    Replication::SINGLE => say!("created {} with {partitions}", log.name),
                    many => say!("created {} with {partitions}, {} copies of each", log.name, many.replication_factor),
                }
            }
        }
        LogCommand::Alter { name, ack, retention, retention_bytes, compression, copies } => {
            let changes = LogChanges {
                ack: ack.map(|choice| choice.0),
                retention_ms: retention.map(|choice| choice.0),
                retention_bytes: retention_bytes.map(|choice| choice.0),
                compression: compression.map(|choice| choice.0),
                replication: copies.changes(),
            };
            alter(client, name, changes, (copies, json)).await?;
        }
        LogCommand::Trim { partition: (name, index), before } => trim(client, (name, *index), *before, json).await?,
        LogCommand::List => list(client, json).await?,
        LogCommand::Describe { name } => describe(client, name, json).await?,
        LogCommand::Delete { name } => {
            client.delete_log(name).await?;
            if json {
                say!("{}", json!({ "deleted": name.to_string() }));
            } else {
                say!("deleted {name}");
            }
        }
    }
    Ok(())
}

/// A value, or none of one's own: the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<T>(Option<T>);

fn or_server<T: std::str::FromStr<Err = String>>(text: &str) -> Result<Choice<T>, String> {
    if text == "server" { Ok(Choice(None)) } else { text.parse().map(|value| Choice(Some(value))) }
}

fn compression(text: &str) -> Result<Choice<Codec>, String> {
    if text == "producer" { Ok(Choice(None)) } else { text.parse().map(|codec| Choice(Some(codec))) }
}

fn time(text: &str) -> Result<Bound, String> {
    if text == "unlimited" { Ok(Bound::Unlimited) } else { text.parse().map(|Millis(ms)| Bound::AtMost(ms)) }
}

fn size(text: &str) -> Result<Bound, String> {
    if text == "unlimited" { Ok(Bound::Unlimited) } else { text.parse().map(|ByteSize(bytes)| Bound::AtMost(bytes)) }
}

fn time_or_server(text: &str) -> Result<Choice<Bound>, String> {
    if text == "server" { Ok(Choice(None)) } else { time(text).map(|bound| Choice(Some(bound))) }
}

fn size_or_server(text: &str) -> Result<Choice<Bound>, String> {
    if text == "server" { Ok(Choice(None)) } else { size(text).map(|bound| Choice(Some(bound))) }
}

/// Reads LOG/PARTITION.
pub fn partition(text: &str) -> Result<(LogId, PartitionId), String> {
    let (log, index) = text.rsplit_once('/').ok_or("write LOG/NUMBER, such as orders/0")?;
    let index = index.parse().map_err(|_| format!("`{index}` is no number of a partition"))?;
    Ok((log.parse().map_err(|error: pyralog_engine::name::NameError| error.to_string())?, PartitionId(index)))
}

/// Where a trim ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// At this offset.
    Offset(u64),
    /// At the high watermark.
    Latest,
}

fn before(text: &str) -> Result<Before, String> {
    if text == "latest" {
        return Ok(Before::Latest);
    }
    text.parse().map(Before::Offset).map_err(|_| format!("`{text}` is no offset and not `latest`"))
}

async fn trim(client: &PyralogClient, (name, index): (&LogId, PartitionId), before: Before, json: bool) -> Outcome {
    let before = match before {
        Before::Offset(offset) => Offset(offset),
        Before::Latest => client.latest(name, index).await?,
    };
    let now = client.trim(name, index, before).await?;
    if json {
        say!(
            "{}",
            json!({
                "log": name.to_string(), "partition": index, "start_offset": now.start_offset,
                "high_watermark": now.high_watermark, "log_end_offset": now.log_end_offset,
            })
        );
    } else {
        say!("partition {index} of {name} begins at offset {}", now.start_offset);
    }
    Ok(())
}

/// `1 record`, `2 records`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

async fn list(client: &PyralogClient, json: bool) -> Outcome {
    let logs = client.list_logs().await?;
    if json {
        say!("{}", json!(logs));
        return Ok(());
    }
    if logs.is_empty() {
        say!("there are no logs; `dlog log create NAME` makes one");
        return Ok(());
    }
    say!("{:<40} {:>10} {:>6} {:>2} {:>2}  {:<10} CREATED", "LOG", "PARTITIONS", "COPIES", "W", "R", "ACK");
    for log in logs {
        let Replication { replication_factor, write_quorum, read_quorum } = replication(&log);
        say!(
            "{:<40} {:>10} {replication_factor:>6} {write_quorum:>2} {read_quorum:>2}  {:<10} {}",
            log.name.to_string(),
            log.partitions,
            ack(&log),
            created(&log),
        );
    }
    Ok(())
}

fn ack(log: &LogMetadata) -> String {
    log.settings.ack.map_or_else(|| "server's".to_owned(), |ack| ack.to_string())
}

/// The copies that a log has.
fn replication(log: &LogMetadata) -> Replication {
    log.settings.replication.unwrap_or(Replication::SINGLE)
}

/// Prints what holds for a log.
pub fn print_settings(log: &LogMetadata) {
    let settings = &log.settings;
    let bound = |bound: Option<Bound>, shown: fn(u64) -> String| match bound {
        None => "server's".to_owned(),
        Some(Bound::Unlimited) => "unlimited".to_owned(),
        Some(Bound::AtMost(most)) => shown(most),
    };
    say!("  ack              {}", ack(log));
    say!("  retention time   {}", bound(settings.retention_ms, |ms| Millis(ms).to_string()));
    say!("  retention bytes  {}", bound(settings.retention_bytes, |bytes| ByteSize(bytes).to_string()));
    let compression = settings.compression.map_or_else(|| "producer's".to_owned(), |codec| codec.to_string());
    say!("  compression      {compression}");
    let Replication { replication_factor, write_quorum, read_quorum } = replication(log);
    say!("  copies           {replication_factor}, write quorum {write_quorum}, read quorum {read_quorum}");
    if let Some((former, _)) = under_way(log) {
        say!("                   not everywhere yet: they were {former}");
    }
}

fn created(log: &LogMetadata) -> String {
    jiff::Timestamp::from_millisecond(log.created_ms).map_or_else(|_| "?".to_owned(), |time| format!("{time:.0}"))
}

async fn describe(client: &PyralogClient, name: &LogId, json: bool) -> Outcome {
    let log = client.describe_log(name).await?;
    let mut partitions = Vec::new();
    for index in (0..log.partitions).map(PartitionId) {
        let owner = log.owners.as_ref().and_then(|owners| owners.get(index.0 as usize)).copied();
        // A partition that cannot be asked must not hide the others.
        partitions.push((index, owner, client.describe_partition(name, index).await));
    }
    if json {
        let mut object = json!(log);
        let shown = partitions.into_iter().map(|(index, core, told)| match told {
            Ok(status) => json!(status),
            Err(error) => json!({ "partition": index, "core": core, "error": error.to_string() }),
        });
        object["partitions"] = shown.collect::<Vec<Value>>().into();
        say!("{object}");
        return Ok(());
    }
    say!("{}, created {}", log.name, created(&log));
    print_settings(&log);
    say!("{:>9} {:>5} {:>8} {:>14} {:>14} {:>14}", "PARTITION", "CORE", "EPOCH", "START", "HIGH WATERMARK", "LOG END");
    for (index, owner, told) in &partitions {
        match told {
            Ok(status) if status.leads => say!(
                "{:>9} {:>5} {:>8} {:>14} {:>14} {:>14}",
                index.to_string(),
                status.core.to_string(),
                status.epoch.to_string(),
                status.start_offset.to_string(),
                status.high_watermark.to_string(),
                status.log_end_offset.to_string(),
            ),
            Ok(status) => say!("{index:>9} {:>5} {:>8} none of its copies leads", "-", status.epoch.to_string()),
            Err(error) => {
                say!("{index:>9} {:>5} {error}", owner.map_or_else(|| "-".to_owned(), |core| core.to_string()))
            }
        }
    }
    let told = partitions.iter().filter_map(|(_, _, told)| told.as_ref().ok());
    told.clone().for_each(print_remarks);
    print_copies(&told.filter(|status| status.replication.replication_factor > 1).collect::<Vec<_>>());
    Ok(())
}

/// What an operator should know of a partition beside the figures.
fn print_remarks(status: &PartitionStatus) {
    let PartitionStatus { log, partition, forced_epoch, .. } = status;
    if forced_epoch.0 > 0 {
        say!("partition {partition}: an operator accepted the loss of records in epoch {forced_epoch}");
    }
    if status.pinned {
        say!("partition {partition}: moved by command, load does not move it; `dlog cores release {log}/{partition}`");
    }
    for ReplicaStatus { replica, damaged, withheld, .. } in &status.replicas {
        if let Some(damaged) = damaged {
            say!("partition {partition}, copy {replica}: {} damaged", places(damaged));
        }
        if let Some(withheld) = withheld {
            say!("partition {partition}, copy {replica}: {} not given by its drive", places(withheld));
        }
    }
}

fn places(Places { places, first_offset, records }: &Places) -> String {
    let records = records.map_or_else(String::new, |records| format!(" ({})", count(records, "record")));
    format!("{} from offset {first_offset}{records}", count(*places, "place"))
}

/// The copies of partitions that have several.
fn print_copies(partitions: &[&PartitionStatus]) {
    if partitions.is_empty() {
        return;
    }
    say!(
        "\n{:>9} {:>4} {:>5} {:<10} {:>14} {:>14} {:>14} {:>8}  IN SYNC",
        "PARTITION",
        "COPY",
        "CORE",
        "ROLE",
        "RECEIVED",
        "WRITTEN",
        "DURABLE",
        "LAG"
    );
    for partition in partitions {
        for copy in &partition.replicas {
            let ReplicaStatus { received_offset, written_offset, durable_offset, lag_ms, .. } = copy;
            // Only a leader knows it, and only of the others.
            let behind = partition.leads && copy.replica != partition.replica;
            say!(
                "{:>9} {:>4} {:>5} {:<10} {:>14} {:>14} {:>14} {:>8}  {}",
                partition.partition.to_string(),
                copy.replica.to_string(),
                copy.core.map_or_else(|| "-".to_owned(), |core| core.to_string()),
                json!(copy.role).as_str().unwrap_or_default(),
                received_offset.to_string(),
                written_offset.to_string(),
                durable_offset.to_string(),
                if behind { Millis(*lag_ms).to_string() } else { "-".to_owned() },
                if copy.in_sync { "yes" } else { "no" },
            );
        }
    }
    for partition in partitions {
        for (copy, problem) in partition.replicas.iter().filter_map(|copy| Some((copy.replica, copy.problem.as_ref()?)))
        {
            say!("copy {copy} of partition {}: {problem}", partition.partition);
        }
    }
}

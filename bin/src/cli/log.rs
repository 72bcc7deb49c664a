//! `dlog log`: the logs of a server.

use clap::Subcommand;
use pyralog_net::{
    client::{AckLevel, Bound, Codec, LogChanges, LogId, LogSettings, Offset, OffsetAt, PartitionId, PyralogClient},
    wire::reply::LogMetadata,
};
use pyralog_tuning::units::{ByteSize, Millis};
use serde_json::{Value, json};

use super::{Fault, Outcome};
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

/// Does what the command says.
pub async fn run(client: &PyralogClient, command: &LogCommand, json: bool) -> Outcome {
    match command {
        LogCommand::Create { name, partitions, ack, retention, retention_bytes, compression } => {
            let settings = LogSettings {
                ack: *ack,
                retention_ms: *retention,
                retention_bytes: *retention_bytes,
                compression: compression.and_then(|choice| choice.0),
                replication: None,
            };
            let log = client.create_log(name, *partitions, settings).await?;
            if json {
                say!("{}", json!(log));
            } else {
                say!("created {} with {}", log.name, count(u64::from(log.partitions), "partition"));
            }
        }
        LogCommand::Alter { name, ack, retention, retention_bytes, compression } => {
            let changes = LogChanges {
                ack: ack.map(|choice| choice.0),
                retention_ms: retention.map(|choice| choice.0),
                retention_bytes: retention_bytes.map(|choice| choice.0),
                compression: compression.map(|choice| choice.0),
            };
            if changes == LogChanges::default() {
                return Err(Fault::usage("nothing is to change; `dlog log alter --help` lists what can"));
            }
            let log = client.alter_log(name, changes).await?;
            if json {
                say!("{}", json!(log));
            } else {
                say!("changed {}", log.name);
                print_settings(&log);
            }
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
fn partition(text: &str) -> Result<(LogId, PartitionId), String> {
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
    say!("{:<40} {:>10}  {:<10} CREATED", "LOG", "PARTITIONS", "ACK");
    for log in logs {
        say!("{:<40} {:>10}  {:<10} {}", log.name.to_string(), log.partitions, ack(&log), created(&log));
    }
    Ok(())
}

fn ack(log: &LogMetadata) -> String {
    log.settings.ack.map_or_else(|| "server's".to_owned(), |ack| ack.to_string())
}

fn print_settings(log: &LogMetadata) {
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
}

fn created(log: &LogMetadata) -> String {
    jiff::Timestamp::from_millisecond(log.created_ms).map_or_else(|_| "?".to_owned(), |time| format!("{time:.0}"))
}

async fn describe(client: &PyralogClient, name: &LogId, json: bool) -> Outcome {
    let log = client.describe_log(name).await?;
    let mut partitions: Vec<Value> = Vec::new();
    for index in 0..log.partitions {
        let owner = log.owners.as_ref().and_then(|owners| owners.get(index as usize));
        // A partition that cannot be read must not hide the others.
        partitions.push(match client.find_offset(name, PartitionId(index), OffsetAt::Latest).await {
            Ok(found) => json!({
                "partition": index,
                "core": owner,
                "start_offset": found.start_offset,
                "high_watermark": found.high_watermark,
                "log_end_offset": found.log_end_offset,
            }),
            Err(error) => json!({ "partition": index, "core": owner, "error": error.to_string() }),
        });
    }
    if json {
        let mut object = json!(log);
        object["partitions"] = partitions.into();
        say!("{object}");
        return Ok(());
    }
    say!("{}, created {}", log.name, created(&log));
    print_settings(&log);
    say!("{:>9} {:>5} {:>14} {:>14} {:>14}", "PARTITION", "CORE", "START", "HIGH WATERMARK", "LOG END");
    for partition in partitions {
        let field = |name: &str| partition[name].to_string();
        match partition["error"].as_str() {
            Some(error) => say!("{:>9} {:>5} {error}", field("partition"), field("core")),
            None => say!(
                "{:>9} {:>5} {:>14} {:>14} {:>14}",
                field("partition"),
                field("core"),
                field("start_offset"),
                field("high_watermark"),
                field("log_end_offset"),
            ),
        }
    }
    Ok(())
}

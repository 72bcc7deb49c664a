//! `dlog log`: the logs of a server.

use clap::Subcommand;
use pyralog_net::{
    client::{AckLevel, LogId, OffsetAt, PartitionId, PyralogClient},
    wire::reply::LogMetadata,
};
use serde_json::{Value, json};

use super::Outcome;

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
        LogCommand::Create { name, partitions, ack } => {
            let log = client.create_log(name, *partitions, *ack).await?;
            if json {
                println!("{}", json!(log));
            } else {
                println!("created {} with {}", log.name, count(u64::from(log.partitions), "partition"));
            }
        }
        LogCommand::List => list(client, json).await?,
        LogCommand::Describe { name } => describe(client, name, json).await?,
        LogCommand::Delete { name } => {
            client.delete_log(name).await?;
            if json {
                println!("{}", json!({ "deleted": name.to_string() }));
            } else {
                println!("deleted {name}");
            }
        }
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
        println!("{}", json!(logs));
        return Ok(());
    }
    if logs.is_empty() {
        println!("there are no logs; `dlog log create NAME` makes one");
        return Ok(());
    }
    println!("{:<40} {:>10}  {:<10} CREATED", "LOG", "PARTITIONS", "ACK");
    for log in logs {
        println!("{:<40} {:>10}  {:<10} {}", log.name.to_string(), log.partitions, ack(&log), created(&log));
    }
    Ok(())
}

fn ack(log: &LogMetadata) -> String {
    log.ack.map_or_else(|| "server's".to_owned(), |ack| ack.to_string())
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
        println!("{object}");
        return Ok(());
    }
    println!("{}  ack: {}, created: {}", log.name, ack(&log), created(&log));
    println!("{:>9} {:>5} {:>14} {:>14} {:>14}", "PARTITION", "CORE", "START", "HIGH WATERMARK", "LOG END");
    for partition in partitions {
        let field = |name: &str| partition[name].to_string();
        match partition["error"].as_str() {
            Some(error) => println!("{:>9} {:>5} {error}", field("partition"), field("core")),
            None => println!(
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

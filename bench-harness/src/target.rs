//! The server under test, through the client that users have: no short cut past it is measured.

use std::{fmt, time::Duration};

use pyralog_engine::types::{AckLevel, PartitionIndex};
use pyralog_net::{
    client::{Error, FetchOptions, LogId, PartitionHandle, PyralogClient},
    wire::reply::ServerDescription,
};

/// What stopped the harness.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// The client could not do what it was asked to.
    #[error("{doing}: {error}")]
    Client {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        error: Error,
    },
    /// The operating system refused something.
    #[error("{doing}: {error}")]
    System {
        /// What was being done.
        doing: String,
        /// Why it failed.
        error: std::io::Error,
    },
    /// Records to be read could not be written as they should.
    #[error("the log to be read could not be prepared: {0}")]
    NotPrepared(String),
    /// A thread of the harness ended without a result.
    #[error("a thread of the load generator panicked")]
    ThreadDied,
    /// A verdict was asked for, and the measurement allows none.
    #[error("{0}")]
    Invalid(String),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Usage(String),
    /// Control-C.
    #[error("interrupted")]
    Interrupted,
}

impl HarnessError {
    /// Says what was being done when the client failed.
    pub fn client(doing: &'static str) -> impl FnOnce(Error) -> HarnessError {
        move |error| HarnessError::Client { doing, error }
    }

    /// Says what was being done when the operating system failed.
    pub fn system(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> HarnessError {
        move |error| HarnessError::System { doing: doing.into(), error }
    }
}

/// One client's connection to the server.
#[derive(Clone)]
pub struct Target {
    /// The client.
    pub client: PyralogClient,
    is_local: bool,
}

impl Target {
    /// Connects to `server`.
    pub async fn connect(server: &str) -> Result<Self, HarnessError> {
        // A load generator reports what it meets; it does not hide it by asking again.
        let builder = PyralogClient::builder().retry_for(Duration::ZERO);
        let client = builder.connect(server).await.map_err(HarnessError::client("connecting"))?;
        let mut addresses =
            tokio::net::lookup_host(server).await.map_err(HarnessError::system("finding the server"))?;
        Ok(Target { client, is_local: addresses.all(|address| address.ip().is_loopback()) })
    }

    /// Whether it runs on this machine.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// What the server says of itself.
    pub async fn describe(&self) -> Result<ServerDescription, HarnessError> {
        self.client.describe_server().await.map_err(HarnessError::client("asking the server what it is"))
    }

    /// Creates a log that did not exist.
    pub async fn create(&self, log: &LogId, partitions: u32, ack: Option<AckLevel>) -> Result<(), HarnessError> {
        let created = self.client.create_log(log, partitions, ack).await;
        created.map(drop).map_err(HarnessError::client("creating the log to be measured"))
    }

    /// Deletes a log.
    pub async fn delete(&self, log: &LogId) -> Result<(), HarnessError> {
        self.client.delete_log(log).await.map_err(HarnessError::client("deleting the log that was measured"))
    }

    /// All partitions of a log, resolved.
    pub async fn partitions(&self, log: &LogId, count: u32) -> Result<Vec<PartitionHandle>, HarnessError> {
        let mut handles = Vec::with_capacity(count as usize);
        for index in 0..count {
            let handle = self.client.partition(log, PartitionIndex(index)).await;
            handles.push(handle.map_err(HarnessError::client("finding a partition"))?);
        }
        Ok(handles)
    }
}

/// A fetch of at most `max_bytes`, or one batch, that does not wait for more.
pub fn at_once(max_bytes: u32) -> FetchOptions {
    FetchOptions { max_bytes, max_wait: Duration::ZERO }
}

/// A run's number, different from those of other runs, and the names made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId(pub u32);

impl RunId {
    /// A number from the clock and the process.
    pub fn new() -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut state = since_1970.as_nanos() as u64 ^ u64::from(std::process::id()) << 40;
        RunId(crate::dataset::splitmix(&mut state) as u32)
    }

    /// This run's log for a row.
    pub fn log(self, row: &str) -> LogId {
        let plain: String = row.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect();
        LogId::new(&format!("bench/{plain}-{self}")).expect("log name") // why: of letters, digits and dashes, and short
    }
}

impl Default for RunId {
    fn default() -> Self {
        RunId::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_log_of_its_run_whatever_its_name() {
        for row in ["write-single", "write@1.5K", "a/b c", &"long".repeat(100)] {
            let name = RunId(7).log(row).name().to_string();
            assert!(name.starts_with("bench/") && name.ends_with("-00000007"), "{name}");
        }
    }
}

//! Which connection a request takes: one for each core of the server, opened when it is first needed, and the log's
//! owners.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use pyralog_engine::{
    error::RequestError,
    types::{AckLevel, CoreId, PartitionId, PartitionIndex},
};
use tokio::time::Instant;

use super::{
    builder::Settings,
    connection::{Connection, Steer},
    error::{Error, Result},
    ids::LogId,
};
use crate::wire::{
    code::ErrorCode,
    reply::{Limits, LogMetadata, Metadata},
    request::MetadataRequest,
};

const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Logs whose owners are remembered; with more in use some are asked for again.
const LOGS_REMEMBERED: usize = 10_000;

/// The connections to one server, and what is known of its logs.
pub(super) struct Router {
    addresses: Vec<SocketAddr>,
    settings: Settings,
    topology: RwLock<Arc<Topology>>,
    logs: RwLock<HashMap<LogId, Arc<LogMetadata>>>,
    /// Grows when a lost connection was replaced: the server may be another one now, so what was learnt before is void.
    /// A log's number above all: in another data directory it may be another log's.
    era: AtomicU64,
}

/// What the server is, for as long as it has this many cores.
struct Topology {
    facts: Facts,
    seats: Vec<Seat>,
}

/// What a server said of itself when the client connected.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its version.
    pub version: String,
    /// How many cores it has.
    pub cores: u16,
    /// What it accepts.
    pub limits: Limits,
    /// The ack level of writes to a log that names none.
    pub default_ack: AckLevel,
}

/// The place of one core's connection.
#[derive(Default)]
struct Seat {
    live: Mutex<Option<Arc<Connection>>>,
    /// Held while it is being opened, so that many who need it open one.
    opening: tokio::sync::Mutex<()>,
}

impl Router {
    /// Connects to the first of the addresses that answers.
    pub async fn connect(addresses: Vec<SocketAddr>, settings: Settings) -> Result<Self> {
        let (connection, metadata) = open_any(&addresses, &settings, Steer::Anywhere).await?;
        Ok(Router {
            addresses,
            settings,
            topology: RwLock::new(Arc::new(Topology::new(connection, &metadata))),
            logs: RwLock::default(),
            era: AtomicU64::new(0),
        })
    }

    /// The client's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the server said of itself.
    pub fn facts(&self) -> Facts {
        self.topology().facts.clone()
    }

    /// Runs `attempt` with the connection that a partition's requests take, again after retriable errors for as long as
    /// the settings say, and once more with fresh metadata if the partition was not found: the log may have been
    /// deleted and made anew. Where the leader is another one by now, its core is asked for.
    pub async fn at_partition<T, F, A>(&self, log: &LogId, index: PartitionIndex, attempt: A) -> Result<T>
    where
        A: Fn(Arc<Connection>, PartitionId) -> F,
        F: Future<Output = Result<T>>,
    {
        let (mut retry, mut refreshed) = (Retry::new(self.settings.retry_for), false);
        loop {
            let error = match self.route(log, index).await {
                Ok((connection, partition)) => match attempt(connection, partition).await {
                    Ok(done) => return Ok(done),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let stale = [ErrorCode::UNKNOWN_PARTITION, ErrorCode::PARTITION_OUT_OF_RANGE];
            if !refreshed && error.code().is_some_and(|code| stale.contains(&code)) {
                refreshed = true;
                self.forget(log);
                continue;
            }
            if error.code() == Some(ErrorCode::NOT_LEADER) {
                self.forget(log);
            }
            retry.pause(error).await?;
        }
    }

    /// Runs `attempt` with any connection, again after retriable errors for as long as the settings say.
    pub async fn anywhere<T, F, A>(&self, attempt: A) -> Result<T>
    where
        A: Fn(Arc<Connection>) -> F,
        F: Future<Output = Result<T>>,
    {
        let mut retry = Retry::new(self.settings.retry_for);
        loop {
            let error = match self.any_connection().await {
                Ok(connection) => match attempt(connection).await {
                    Ok(done) => return Ok(done),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            retry.pause(error).await?;
        }
    }

    /// The connection that requests about a partition take now, and the partition's full name.
    pub async fn route(&self, log: &LogId, index: PartitionIndex) -> Result<(Arc<Connection>, PartitionId)> {
        loop {
            let era = self.era.load(SeqCst);
            let metadata = self.log(log).await?;
            if index.0 >= metadata.partitions {
                let (log, partitions) = (metadata.name.clone(), metadata.partitions);
                return Err(RequestError::PartitionOutOfRange { log, partition: index, partitions }.into());
            }
            let owner = metadata.owners.as_ref().and_then(|owners| owners.get(index.0 as usize));
            let connection = self.connection(owner.copied().unwrap_or_default()).await?;
            if self.era.load(SeqCst) == era {
                return Ok((connection, metadata.partition(index)));
            }
        }
    }

    /// What is known of a log; asked for if nothing is.
    ///
    /// Errors: `UnknownLog` among others.
    pub async fn log(&self, log: &LogId) -> Result<Arc<LogMetadata>> {
        if let Some(known) = self.logs.read().unwrap_or_else(PoisonError::into_inner).get(log) {
            return Ok(Arc::clone(known));
        }
        let connection = self.any_connection().await?;
        let era = self.era.load(SeqCst);
        let mut metadata = connection.metadata(MetadataRequest { logs: Some(vec![log.name().clone()]) }).await?;
        let Some(found) = metadata.logs.pop() else {
            return Err(RequestError::UnknownLog { name: log.to_string() }.into());
        };
        let found = Arc::new(found);
        let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
        if self.era.load(SeqCst) == era {
            if logs.len() >= LOGS_REMEMBERED {
                logs.clear();
            }
            logs.insert(log.clone(), Arc::clone(&found));
        }
        Ok(found)
    }

    /// Makes the next request ask for the log again.
    pub fn forget(&self, log: &LogId) {
        self.logs.write().unwrap_or_else(PoisonError::into_inner).remove(log);
    }

    /// Closes all connections.
    pub async fn close(&self) {
        for seat in &self.topology().seats {
            let live = seat.live.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(connection) = live {
                connection.close().await;
            }
        }
    }

    fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn any_connection(&self) -> Result<Arc<Connection>> {
        let live = self.topology().seats.iter().find_map(Seat::live);
        match live {
            Some(connection) => Ok(connection),
            None => self.connection(CoreId(0)).await,
        }
    }

    async fn connection(&self, core: CoreId) -> Result<Arc<Connection>> {
        let topology = self.topology();
        let cores = topology.seats.len();
        let core = CoreId((usize::from(core.0) % cores) as u16);
        let seat = &topology.seats[usize::from(core.0)];
        if let Some(connection) = seat.live() {
            return Ok(connection);
        }
        let _alone = seat.opening.lock().await;
        if let Some(connection) = seat.live() {
            return Ok(connection);
        }
        let steer = if cores > 1 { Steer::To(core, cores) } else { Steer::Anywhere };
        let (connection, metadata) = open_any(&self.addresses, &self.settings, steer).await?;
        let replaced = seat.live.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&connection));
        let changed = usize::from(metadata.cores) != cores;
        if changed {
            let fresh = Arc::new(Topology::new(Arc::clone(&connection), &metadata));
            *self.topology.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        if changed || replaced.is_some() {
            let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
            self.era.fetch_add(1, SeqCst);
            logs.clear();
        }
        Ok(connection)
    }
}

impl Topology {
    fn new(connection: Arc<Connection>, metadata: &Metadata) -> Self {
        let cores = usize::from(metadata.cores.max(1));
        let seats: Vec<Seat> = (0..cores).map(|_| Seat::default()).collect();
        *seats[usize::from(metadata.core.0) % cores].live.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(connection);
        let Metadata { version, cores, limits, default_ack, .. } = metadata.clone();
        Topology { facts: Facts { version, cores, limits, default_ack }, seats }
    }
}

impl Seat {
    fn live(&self) -> Option<Arc<Connection>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().filter(|connection| connection.is_open()).cloned()
    }
}

async fn open_any(addresses: &[SocketAddr], settings: &Settings, steer: Steer) -> Result<(Arc<Connection>, Metadata)> {
    let mut first_error = None;
    for address in addresses {
        match Connection::open(*address, settings, steer).await {
            Ok(opened) => return Ok(opened),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or(Error::Setting { reason: "the server's name has no address".to_owned() }))
}

/// Counts how long a request has been repeated.
pub(super) struct Retry {
    retry_for: Duration,
    until: Option<Instant>,
    pause: Duration,
}

impl Retry {
    pub fn new(retry_for: Duration) -> Self {
        Retry { retry_for, until: None, pause: PAUSE_FIRST }
    }

    /// Waits before the next attempt; gives the error back if there is to be none. The clock starts with the first
    /// error.
    pub async fn pause(&mut self, error: Error) -> Result<()> {
        if !error.is_retriable() {
            return Err(error);
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + self.retry_for);
        if now + self.pause > until {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    /// Forgets the errors so far, after a success.
    pub fn reset(&mut self) {
        *self = Retry::new(self.retry_for);
    }
}

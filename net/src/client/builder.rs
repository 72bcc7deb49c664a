//! How a client is set up before it connects.

use std::{env, net::SocketAddr, time::Duration};

use pyralog_engine::{limits::BATCH_BYTES_MAX, record::Codec, types::AckLevel};
use tokio::net::ToSocketAddrs;

use super::{
    PyralogClient,
    error::{Error, Result},
    idempotence::ProducerIdentity,
    router::Router,
    tls::{Trust, authorities},
};
use crate::fingerprint::Fingerprint;

/// The environment variable that pins the server's certificate, where the builder does not.
pub const FINGERPRINT_VARIABLE: &str = "DLOG_FINGERPRINT";

/// What a client keeps to, once connected.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub trust: Trust,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    pub retry_for: Duration,
    pub in_flight_bytes: usize,
    pub batch_bytes: usize,
    pub codec: Option<Codec>,
    pub ack: Option<AckLevel>,
    pub idempotent: bool,
    pub identity: Option<ProducerIdentity>,
    pub delivery_timeout: Duration,
}

/// Sets up a [`PyralogClient`]; the defaults suit a server on this machine.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    settings: Settings,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        ClientBuilder {
            settings: Settings {
                trust: Trust::Pinned(Vec::new()),
                connect_timeout: Duration::from_secs(5),
                request_timeout: Duration::from_secs(30),
                retry_for: Duration::from_secs(5),
                in_flight_bytes: 64 << 20,
                batch_bytes: 1 << 20,
                codec: None,
                ack: None,
                idempotent: false,
                identity: None,
                delivery_timeout: Duration::from_secs(120),
            },
        }
    }
}

impl ClientBuilder {
    /// Accepts the server whose certificate has this fingerprint; may be called several times, for several servers.
    /// Without it `DLOG_FINGERPRINT` counts, and without that a server of the same user on the same machine is
    /// recognised by itself.
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        match &mut self.settings.trust {
            Trust::Pinned(pins) => pins.push(fingerprint),
            Trust::Authorities(..) => self.settings.trust = Trust::Pinned(vec![fingerprint]),
        }
        self
    }

    /// Accepts a server with a certificate for `server_name` from one of these authorities, in PEM.
    ///
    /// Errors: `Setting`.
    pub fn authorities(mut self, pem: &[u8], server_name: &str) -> Result<Self> {
        self.settings.trust = Trust::Authorities(authorities(pem)?, server_name.to_owned());
        Ok(self)
    }

    /// How long one attempt to connect may take; 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// How long a request may be in flight; 30 s, kept to 0.1 s. A write that takes longer has an unknown outcome. A
    /// long poll has its own wait on top.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.settings.request_timeout = timeout;
        self
    }

    /// How long requests are repeated while they meet retriable errors, which left nothing stored; 5 s, zero for never.
    pub fn retry_for(mut self, retry_for: Duration) -> Self {
        self.settings.retry_for = retry_for;
        self
    }

    /// Bytes of requests, and of the longest replies to them, that may be in flight on one stream; 64 MiB. Callers wait
    /// for room.
    pub fn in_flight_bytes(mut self, bytes: usize) -> Self {
        self.settings.in_flight_bytes = bytes;
        self
    }

    /// Bytes, before compression, at which a batch of records is sent and another one begun; 1 MiB. A larger record has
    /// a batch of its own.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes = bytes.min(BATCH_BYTES_MAX);
        self
    }

    /// How batches are compressed; otherwise as the log's settings say, else not at all.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.settings.codec = Some(codec);
        self
    }

    /// The level at which writes are acknowledged; otherwise the log's, else the server's.
    pub fn ack(mut self, level: AckLevel) -> Self {
        self.settings.ack = Some(level);
        self
    }

    /// Whether writes whose fate is unknown are sent again until it is known, and stored at most once; not, since the
    /// writes to one partition then take turns. A [`super::Producer`] does it in any case.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.settings.idempotent = idempotent;
        self
    }

    /// Makes writes idempotent, under an identity that outlives this process.
    pub fn producer_identity(mut self, identity: ProducerIdentity) -> Self {
        (self.settings.idempotent, self.settings.identity) = (true, Some(identity));
        self
    }

    /// How long an idempotent write is sent again while its fate is unknown, or while it is refused for reasons that
    /// may pass; 120 s, at least [`ClientBuilder::retry_for`]. Then it is reported as what it came to.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.settings.delivery_timeout = timeout;
        self
    }

    /// Connects to the server at `address`, such as `"127.0.0.1:9092"`.
    ///
    /// Errors: `Setting`, `Unavailable`, `NotTrusted`.
    pub async fn connect(mut self, address: impl ToSocketAddrs) -> Result<PyralogClient> {
        if let Trust::Pinned(pins) = &mut self.settings.trust
            && pins.is_empty()
        {
            pins.extend(fingerprint_of_environment()?);
        }
        let setting = |reason: String| Error::Setting { reason };
        let found = tokio::net::lookup_host(address).await;
        let found = found.map_err(|error| setting(format!("the server's address is not usable: {error}")))?;
        let addresses: Vec<SocketAddr> = found.collect();
        if addresses.is_empty() {
            return Err(setting("the server's name has no address".to_owned()));
        }
        Ok(PyralogClient::over(Router::connect(addresses, self.settings).await?))
    }
}

fn fingerprint_of_environment() -> Result<Option<Fingerprint>> {
    let Ok(text) = env::var(FINGERPRINT_VARIABLE) else { return Ok(None) };
    let fingerprint =
        text.parse().map_err(|error| Error::Setting { reason: format!("{FINGERPRINT_VARIABLE}: {error}") });
    fingerprint.map(Some)
}

//! One QUIC connection, which ends at one core of the server, on a UDP socket of its own.
//!
//! A socket of its own because network cards may merge datagrams of two connections that share one before the server's
//! kernel has chosen the core. Writes and reads have a lane each, so that a long fetch holds up no acknowledgement.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use pyralog_engine::types::CoreId;
use quinn::{
    ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, RecvStream, SendStream, TokioRuntime,
    TransportConfig, VarInt, congestion::CubicConfig,
};

use super::{
    builder::Settings,
    error::{Error, Result},
    lane::{Call, Lane, Lost, Outgoing},
    tls::{Seen, Trust, client_crypto},
};
use crate::{
    fingerprint::{Fingerprint, published},
    steering::dcid_provider,
    wire::{
        Api,
        code::WireError,
        frame::Frame,
        reply::{self, Metadata},
        request::{self, MetadataRequest},
    },
};

/// The largest datagram: with it ten segments still fit into one GSO call of 64 KiB.
const DATAGRAM_BYTES_MAX: u16 = 6500;

/// What one stream may hold unread. A subscription that nobody reads holds this much and no more.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// Enough for every stream's window: a connection-wide limit would let idle subscriptions stop the acknowledgements.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

const SEND_WINDOW_BYTES: u64 = 64 << 20;

/// A few batches of records: on a LAN the first round trips should not be spent growing the window.
const INITIAL_WINDOW_BYTES: u64 = 2 << 20;

const INITIAL_RTT: Duration = Duration::from_millis(5);

/// Half a second of bulk traffic in the kernel is never needed; 8 MiB rides out a scheduling delay of some
/// milliseconds.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// How long a peer may be silent before it is given up, and how often we make it speak.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Where a new connection should end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Steer {
    /// Wherever the server's kernel puts it.
    Anywhere,
    /// At this core of so many.
    To(CoreId, usize),
}

/// A connection; closed when the last user lets it go.
pub(super) struct Connection {
    address: SocketAddr,
    quic: quinn::Connection,
    endpoint: quinn::Endpoint,
    writes: Arc<Lane>,
    reads: Arc<Lane>,
    timeout: Duration,
}

impl Connection {
    /// Connects, and asks the server what it is and which core answers.
    pub async fn open(address: SocketAddr, settings: &Settings, steer: Steer) -> Result<(Arc<Self>, Metadata)> {
        let connecting = Self::open_in_time(address, settings, steer);
        match tokio::time::timeout(settings.connect_timeout, connecting).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let waited = settings.connect_timeout.as_millis();
                let reason = format!("no answer within {waited} ms; is a server running there?");
                Err(Error::Unavailable { address, reason })
            }
        }
    }

    async fn open_in_time(address: SocketAddr, settings: &Settings, steer: Steer) -> Result<(Arc<Self>, Metadata)> {
        let pins = pins(address, &settings.trust);
        let (config, seen) = client_config(&pins, settings, steer)?;
        let unavailable = |reason: String| Error::Unavailable { address, reason };
        let endpoint = endpoint(address).map_err(|error| unavailable(error.to_string()))?;
        let name = match &settings.trust {
            Trust::Authorities(_, name) => name.as_str(),
            Trust::Pinned(_) => "localhost",
        };
        let connecting =
            endpoint.connect_with(config, address, name).map_err(|error| unavailable(error.to_string()))?;
        let quic = connecting.await.map_err(|error| explain(address, error, &seen, pins))?;
        let open = |(send, receive): (SendStream, RecvStream)| {
            Lane::start(send, receive, settings.in_flight_bytes, settings.request_timeout)
        };
        let lost = |error: quinn::ConnectionError| unavailable(error.to_string());
        let writes = open(quic.open_bi().await.map_err(lost)?);
        let reads = open(quic.open_bi().await.map_err(lost)?);
        let timeout = settings.request_timeout;
        let connection = Arc::new(Connection { address, quic, endpoint, writes, reads, timeout });
        let metadata = connection.metadata(MetadataRequest { logs: Some(Vec::new()) }).await?;
        Ok((connection, metadata))
    }

    /// Whether requests can still be sent.
    pub fn is_open(&self) -> bool {
        self.writes.is_open() && self.reads.is_open()
    }

    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request that changes something, in the order of these calls.
    pub fn write(&self, request: Outgoing) -> Call {
        self.writes.submit(request)
    }

    /// Sends a request that changes nothing.
    pub fn read(&self, request: Outgoing) -> Call {
        self.reads.submit(request)
    }

    /// The body of a reply to a write, or what the write came to.
    pub fn written(&self, answer: Result<Frame, Lost>) -> Result<Frame> {
        match answer {
            Ok(frame) => unless_error(frame),
            Err(Lost { sent: true, reason: Some(reason) }) => {
                Err(Error::Unknown { reason: format!("the connection was lost: {reason}") })
            }
            Err(Lost { sent: true, reason: None }) => {
                Err(Error::Unknown { reason: format!("no answer within {} ms", self.timeout.as_millis()) })
            }
            Err(lost) => Err(self.unsent(lost)),
        }
    }

    /// The body of a reply to a read, or why there is none.
    pub fn have_read(&self, answer: Result<Frame, Lost>) -> Result<Frame> {
        match answer {
            Ok(frame) => unless_error(frame),
            Err(lost) => Err(self.unsent(lost)),
        }
    }

    fn unsent(&self, lost: Lost) -> Error {
        match lost.reason {
            Some(reason) => Error::Unavailable { address: self.address, reason: reason.to_string() },
            None => Error::TimedOut { address: self.address, waited: self.timeout },
        }
    }

    /// Asks for metadata.
    pub async fn metadata(&self, request: MetadataRequest) -> Result<Metadata> {
        let encode = move |out: &mut BytesMut, correlation| request::encode_metadata(out, correlation, &request);
        let frame = self.have_read(self.read(Outgoing::Admin(Box::new(encode))).await)?;
        Ok(reply::decode_json(Api::Metadata, &frame.body)?)
    }

    /// A stream of its own, for a subscription.
    pub async fn open_stream(&self) -> Result<(SendStream, RecvStream)> {
        let lost =
            |error: quinn::ConnectionError| Error::Unavailable { address: self.address, reason: error.to_string() };
        self.quic.open_bi().await.map_err(lost)
    }

    /// Closes the connection; requests in flight are lost.
    pub async fn close(&self) {
        self.writes.close("the client closed the connection");
        self.reads.close("the client closed the connection");
        self.quic.close(VarInt::from_u32(0), b"done");
        self.endpoint.wait_idle().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.quic.close(VarInt::from_u32(0), b"done");
    }
}

/// The frame, unless it says what went wrong.
pub(super) fn unless_error(frame: Frame) -> Result<Frame> {
    match frame.header.status {
        0 => Ok(frame),
        status => Err(Error::server(WireError::decode(status, &frame.body))),
    }
}

/// The fingerprints to accept. Read anew for each connection: a server restarted with another data directory has
/// published another.
fn pins(address: SocketAddr, trust: &Trust) -> Vec<Fingerprint> {
    match trust {
        Trust::Pinned(pins) if pins.is_empty() => published(address),
        Trust::Pinned(pins) => pins.clone(),
        Trust::Authorities(..) => Vec::new(),
    }
}

fn explain(address: SocketAddr, error: quinn::ConnectionError, seen: &Seen, expected: Vec<Fingerprint>) -> Error {
    let seen = *seen.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.is_some_and(|seen| !expected.contains(&seen)) {
        return Error::NotTrusted { address, seen, expected };
    }
    Error::Unavailable { address, reason: error.to_string() }
}

fn client_config(pins: &[Fingerprint], settings: &Settings, steer: Steer) -> Result<(ClientConfig, Seen)> {
    let (crypto, seen) = client_crypto(pins, &settings.trust)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config()));
    if let Steer::To(core, cores) = steer {
        config.initial_dst_cid_provider(dcid_provider(core, cores));
    }
    Ok((config, seen))
}

fn transport_config() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES_MAX);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .send_fairness(false)
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        // The server opens no streams and sends no datagrams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

fn endpoint(server: SocketAddr) -> std::io::Result<quinn::Endpoint> {
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(server), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // The kernel grants what its limits allow; less only means that bursts are lost and sent again.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&local.into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(std::io::Error::other)?;
    quinn::Endpoint::new(config, None, socket.into(), Arc::new(TokioRuntime))
}

//! How QUIC is set up on one core: every default of quinn that a stranger could use against us is replaced.

use std::{io, net::UdpSocket, sync::Arc, time::Duration};

use pyralog_engine::{metrics::CoreMetrics, types::CoreId};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};

use super::{
    certificate::ServerIdentity,
    limits::{STREAMS_BEFORE_ADMISSION, ServerLimits, WINDOW_BYTES_BEFORE_ADMISSION},
    steering::CoreCids,
};
use crate::quic_on_glommio::{CoreSocket, QuicRuntime, Seat};

/// Bytes of the largest datagram. quinn sends ten segments in one GSO call, which together must stay below 64 KiB, or
/// the path collapses to 1200. Both ends must allow it: quinn's default of 1472 caps the discovery. Loopback: 1.7 to
/// 2.0 GB/s at 6500 against 0.9 at 1452.
pub(crate) const DATAGRAM_BYTES_MAX: u16 = 6500;

/// Bytes of the first datagrams: what every Ethernet carries under IPv6 (1500 - 48), so that bulk need not wait for the
/// discovery. quinn falls back to 1200 if a path does not carry it.
pub(crate) const DATAGRAM_BYTES_INITIAL: u16 = 1452;

/// The round trip assumed before one is measured; it sets the first timeouts. We serve local networks: quinn's 333 ms
/// would make a lost first packet felt.
pub(crate) const INITIAL_RTT: Duration = Duration::from_millis(20);

/// Bytes in flight at first: fills a local network from the first request on, and is half a socket's default buffer.
const INITIAL_WINDOW_BYTES: u64 = 128 << 10;

/// Connection attempts that wait to be looked at. They are looked at as soon as the core has a moment.
const INCOMING_MAX: usize = 1024;

/// Bytes buffered for one attempt that waits, and for all.
const INCOMING_BUFFER_BYTES: u64 = 16 << 10;
const INCOMING_BUFFERS_BYTES: u64 = 8 << 20;

/// Opens the core's endpoint on its socket. Must be called on the core's executor. The socket is returned too, for
/// datagrams that other cores pass on.
///
/// Errors: those of the operating system.
pub(super) fn open(
    socket: UdpSocket,
    seat: Seat,
    identity: &ServerIdentity,
    limits: &ServerLimits,
    metrics: Arc<CoreMetrics>,
) -> io::Result<(Endpoint, Arc<CoreSocket>)> {
    let config = endpoint_config(identity, seat.core, seat.cores)?;
    // With one core there is nothing to steer, and no datagram need be looked at.
    let seat = (seat.cores > 1).then_some(seat);
    let socket = CoreSocket::new(socket, seat, metrics)?;
    let server = server_config(identity, limits)?;
    let shared = Arc::clone(&socket);
    let endpoint = Endpoint::new_with_abstract_socket(config, Some(server), shared, Arc::new(QuicRuntime))?;
    Ok((endpoint, socket))
}

fn endpoint_config(identity: &ServerIdentity, core: CoreId, cores: usize) -> io::Result<EndpointConfig> {
    let secrets = &identity.secrets;
    let mut config = EndpointConfig::new(Arc::clone(&secrets.reset_key) as _);
    let cids = CoreCids { core, cores, key: secrets.cid_key };
    config.cid_generator(move || Box::new(cids.clone()));
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(io::Error::other)?;
    Ok(config)
}

fn server_config(identity: &ServerIdentity, limits: &ServerLimits) -> io::Result<ServerConfig> {
    let mut config = ServerConfig::new(Arc::clone(&identity.crypto) as _, Arc::clone(&identity.secrets.token_key) as _);
    config
        .transport_config(Arc::new(transport_config(limits)?))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES);
    Ok(config)
}

fn transport_config(limits: &ServerLimits) -> io::Result<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES_MAX);
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    let idle = IdleTimeout::try_from(limits.idle_timeout).map_err(io::Error::other)?;
    let stream_window = VarInt::from_u64(limits.window_bytes(1)).map_err(io::Error::other)?;
    let window = VarInt::from_u64(WINDOW_BYTES_BEFORE_ADMISSION).map_err(io::Error::other)?;
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_BEFORE_ADMISSION.into())
        .max_concurrent_uni_streams(0u8.into())
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .max_idle_timeout(Some(idle))
        // The connection's windows are what bounds memory, and they move with the number of connections; a stream may
        // use all.
        .stream_receive_window(stream_window)
        .receive_window(window)
        .send_window(WINDOW_BYTES_BEFORE_ADMISSION)
        // Replies go out in the order they were written; fairness would interleave streams packet by packet, at a
        // price.
        .send_fairness(false)
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(DATAGRAM_BYTES_INITIAL)
        .min_mtu(1200)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion));
    Ok(config)
}

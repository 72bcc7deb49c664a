//! The network stack alone: quinn between two threads of this process, over loopback, encrypted as Pyralog is and tuned
//! as Pyralog's client is, with nothing on top.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pyralog_net::tls::crypto_provider;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream, SendStream, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{RootCertStore, pki_types::PrivateKeyDer};
use tokio::sync::{Semaphore, oneshot};

use super::{Ground, Quic, Rate};
use crate::{
    load::pin_to,
    measuring::{Times, rounded},
};

/// Bytes of a message that is echoed: the seed's record.
const MESSAGE: usize = 100;
/// Messages in flight where many are.
const IN_FLIGHT: usize = 256;
/// Bytes handed over at once in bulk.
const CHUNK: usize = 256 << 10;
/// As Pyralog has it: above, ten segments no longer fit into one call of the kernel.
const DATAGRAM_BYTES: u16 = 6_500;
const WINDOW_BYTES: u32 = 64 << 20;
const NAME: &str = "localhost";
const ALPN: &[u8] = b"floor";

/// What a stream is for: its first byte.
const ECHO: u8 = 1;
const SINK: u8 = 2;

/// Measures echo and bulk, each for the time given.
///
/// Errors: no socket, no certificate, or the connection broke.
pub fn measure(ground: &Ground) -> io::Result<Quic> {
    let (server, client) = configs()?;
    let (address_sender, address) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let cpu = ground.server_cpu;
    let echoing = thread::Builder::new().name("floor".to_owned()).spawn(move || -> io::Result<()> {
        pin_to(cpu).map_err(io::Error::other)?;
        runtime()?.block_on(async {
            let endpoint = endpoint(Some(server))?;
            // Nobody waits for it if the other side is gone.
            let _ = address_sender.send(endpoint.local_addr()?);
            tokio::select! {
                _ = stopped => {}
                () = serve(&endpoint) => {}
            }
            Ok(())
        })
    })?;
    let (cpu, seconds) = (ground.client_cpu, ground.seconds);
    let asking = thread::Builder::new().name("floor-load".to_owned()).spawn(move || -> io::Result<Quic> {
        pin_to(cpu).map_err(io::Error::other)?;
        runtime()?.block_on(async {
            let address = address.await.map_err(io::Error::other)?;
            let mut endpoint = endpoint(None)?;
            endpoint.set_default_client_config(client);
            let connection = endpoint.connect(address, NAME).map_err(io::Error::other)?.await?;
            let echo = echo(&connection, seconds).await?;
            let pipelined_per_s = rounded(pipelined(&connection, seconds).await?);
            let bulk_bytes_per_s = rounded(bulk(&connection, seconds).await?);
            connection.close(VarInt::from_u32(0), b"");
            Ok(Quic { echo, pipelined_per_s, bulk_bytes_per_s })
        })
    })?;
    let died = |_| io::Error::other("a thread panicked");
    let measured = asking.join().map_err(died)?;
    drop(stop);
    echoing.join().map_err(died)??;
    measured
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn configs() -> io::Result<(ServerConfig, ClientConfig)> {
    let other = io::Error::other::<Box<dyn std::error::Error + Send + Sync>>;
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(|error| other(error.into()))?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let certificate = made.cert.der().clone();
    let provider = Arc::new(crypto_provider());
    let versions = [&rustls::version::TLS13];

    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).map_err(|error| other(error.into()))?;
    let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions);
    let client = client.map_err(|error| other(error.into()))?.with_root_certificates(roots);
    let mut client = client.with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];

    let server = rustls::ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions);
    let server = server.map_err(|error| other(error.into()))?.with_no_client_auth();
    let mut server = server.with_single_cert(vec![certificate], key).map_err(|error| other(error.into()))?;
    server.alpn_protocols = vec![ALPN.to_vec()];

    let server = QuicServerConfig::try_from(server).map_err(|error| other(error.into()))?;
    let client = QuicClientConfig::try_from(client).map_err(|error| other(error.into()))?;
    let transport = Arc::new(transport());
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(Arc::clone(&transport));
    let mut client = ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    Ok((server, client))
}

fn transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(4 << 20);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES / 4))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into())
        .send_fairness(false)
        .initial_rtt(Duration::from_millis(2))
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion));
    transport
}

fn endpoint(server: Option<ServerConfig>) -> io::Result<Endpoint> {
    let socket = std::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // The kernel grants what its limits allow.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 8 << 20);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, 8 << 20);
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM_BYTES).map_err(io::Error::other)?;
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
}

/// Serves one connection until it closes.
async fn serve(endpoint: &Endpoint) {
    let Some(incoming) = endpoint.accept().await else { return };
    let Ok(connection) = incoming.await else { return };
    while let Ok((send, receive)) = connection.accept_bi().await {
        // A stream that breaks is noticed on the other side.
        tokio::spawn(async move { answer(send, receive).await });
    }
}

async fn answer(mut send: SendStream, mut receive: RecvStream) -> io::Result<()> {
    let mut kind = [0];
    receive.read_exact(&mut kind).await.map_err(io::Error::other)?;
    while let Some(chunk) = receive.read_chunk(CHUNK, true).await? {
        if kind == [ECHO] {
            send.write_chunk(chunk.bytes).await?;
        }
    }
    send.write_all(&[0]).await?;
    Ok(())
}

async fn open(connection: &Connection, kind: u8) -> io::Result<(SendStream, RecvStream)> {
    let (mut send, receive) = connection.open_bi().await?;
    send.write_all(&[kind]).await?;
    Ok((send, receive))
}

async fn echo(connection: &Connection, seconds: Duration) -> io::Result<Rate> {
    let (mut send, mut receive) = open(connection, ECHO).await?;
    let (mut message, mut times) = ([7; MESSAGE], Times::default());
    let begin = Instant::now();
    let mut before = begin;
    while before - begin < seconds {
        send.write_all(&message).await?;
        receive.read_exact(&mut message).await.map_err(io::Error::other)?;
        let now = Instant::now();
        times.record(now - before);
        before = now;
    }
    let per_s = rounded(times.count() as f64 / (before - begin).as_secs_f64().max(1e-9));
    Ok(Rate { per_s, times: times.latencies() })
}

async fn pipelined(connection: &Connection, seconds: Duration) -> io::Result<f64> {
    let (mut send, mut receive) = open(connection, ECHO).await?;
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let (begin, sending) = (Instant::now(), Arc::clone(&places));
    let sender = tokio::spawn(async move {
        while begin.elapsed() < seconds {
            let Ok(place) = sending.acquire().await else { return Ok(()) };
            place.forget();
            send.write_all(&[7; MESSAGE]).await?;
        }
        send.finish().map_err(io::Error::other)
    });
    let mut bytes = 0;
    while let Some(chunk) = receive.read_chunk(CHUNK, true).await? {
        let before = bytes / MESSAGE;
        bytes += chunk.bytes.len();
        places.add_permits(bytes / MESSAGE - before);
    }
    sender.await.map_err(io::Error::other)??;
    Ok((bytes / MESSAGE) as f64 / begin.elapsed().as_secs_f64())
}

async fn bulk(connection: &Connection, seconds: Duration) -> io::Result<f64> {
    let (mut send, mut receive) = open(connection, SINK).await?;
    let chunk = bytes::Bytes::from(vec![7; CHUNK]);
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < seconds {
        send.write_chunk(chunk.clone()).await?;
        sent += CHUNK;
    }
    send.finish().map_err(io::Error::other)?;
    // All has arrived when the other side says so, not when the last of it was handed over here.
    receive.read_exact(&mut [0]).await.map_err(io::Error::other)?;
    Ok(sent as f64 / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_is_measured_between_two_threads() {
        let seconds = Duration::from_millis(30);
        let ground = Ground { folder: ".".into(), server_cpu: None, client_cpu: None, seconds };
        let quic = measure(&ground).unwrap();
        assert!(quic.echo.per_s > 0.0 && quic.pipelined_per_s > 0.0 && quic.bulk_bytes_per_s > 0.0, "{quic:?}");
    }
}

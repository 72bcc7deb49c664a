//! The server's QUIC front end against clients that speak QUIC and the protocol by hand, well and badly.

mod support;

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use pyralog_engine::{
    limits::RECORD_BYTES_MAX,
    metrics::{CoreMetrics, Counter},
    record::{BatchBuilder, Codec},
    shard::request::{Append, CreateLog, Fetch},
    types::{AckLevel, CoreId, LogUid, Offset, PartitionId, PartitionIndex},
};
use pyralog_net::{
    server::{ServerLimits, Steering},
    steering::dcid_provider,
    tls::crypto_provider,
    wire::{
        ALPN, Api, VERSION,
        code::{ErrorCode, WireError},
        frame::{BODY_BYTES_MAX, Frame, FrameDecoder, FrameHeader},
        reply::{LogMetadata, Metadata, decode_appended, decode_fetched, decode_json},
        request::{
            MetadataRequest, encode_create_log, encode_fetch, encode_metadata, encode_produce_head, encode_subscribe,
        },
    },
};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, ReadError, RecvStream,
    SendStream, TokioRuntime, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use support::{End, TestServer, data_dir};

/// How long anything may take before it counts as hanging.
const BOUND: Duration = Duration::from_secs(60);

/// A server and what is needed to reach it.
struct Scene {
    server: TestServer,
    data: tempfile::TempDir,
    cores: usize,
}

impl Scene {
    fn new(cores: usize) -> Self {
        Self::with(cores, ServerLimits::default(), Steering::ByConnectionId)
    }

    fn with(cores: usize, limits: ServerLimits, steering: Steering) -> Self {
        let data = data_dir();
        let server = TestServer::start_with(data.path(), cores, limits, steering);
        Scene { server, data, cores }
    }

    /// Runs `story` and stops the server in good order.
    fn play<F: Future<Output = ()>>(self, story: impl FnOnce(Actor) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let metrics = self.server.metrics.clone();
        runtime.block_on(async {
            let actor = Actor::new(self.server.address, self.data.path(), self.cores, metrics);
            tokio::time::timeout(BOUND, story(actor)).await.expect("the story comes to an end");
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        self.server.stop(End::Drained);
    }
}

/// A client that can do what no decent client does.
struct Actor {
    endpoint: Endpoint,
    address: SocketAddr,
    cores: usize,
    crypto: Arc<QuicClientConfig>,
    metrics: Vec<Arc<CoreMetrics>>,
}

impl Actor {
    fn new(address: SocketAddr, data: &Path, cores: usize, metrics: Vec<Arc<CoreMetrics>>) -> Self {
        let mut roots = RootCertStore::empty();
        let pem = std::fs::read(data.join("tls/cert.pem")).unwrap();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(crypto_provider()));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = Arc::new(QuicClientConfig::try_from(tls).unwrap());
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(6500).unwrap();
        let endpoint = Endpoint::new(config, None, client_socket(), Arc::new(TokioRuntime)).unwrap();
        Actor { endpoint, address, cores, crypto, metrics }
    }

    fn config(&self, hint: Option<CoreId>) -> ClientConfig {
        let mut config = ClientConfig::new(Arc::clone(&self.crypto) as _);
        if let Some(core) = hint {
            config.initial_dst_cid_provider(dcid_provider(core, self.cores));
        }
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(6500);
        let mut transport = TransportConfig::default();
        transport.mtu_discovery_config(Some(discovery)).initial_rtt(Duration::from_millis(20));
        transport.stream_receive_window(VarInt::from_u32(4 << 20));
        config.transport_config(Arc::new(transport));
        config
    }

    async fn try_connect(&self, hint: Option<CoreId>) -> Result<Connection, ConnectionError> {
        self.endpoint.connect_with(self.config(hint), self.address, "localhost").unwrap().await
    }

    async fn connect(&self, hint: Option<CoreId>) -> Connection {
        self.try_connect(hint).await.unwrap()
    }

    fn sum(&self, counter: impl Fn(&CoreMetrics) -> &Counter) -> u64 {
        self.metrics.iter().map(|core| counter(core).get()).sum()
    }

    async fn until(&self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn client_socket() -> std::net::UdpSocket {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap()
}

/// A stream of frames.
struct Talk {
    send: SendStream,
    receive: RecvStream,
    decoder: FrameDecoder,
}

impl Talk {
    async fn on(connection: &Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Talk { send, receive, decoder: FrameDecoder::new() }
    }

    async fn say(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        encode(&mut out);
        self.send.write_all(&out).await.unwrap();
    }

    /// The next frame; `None` at the end of the stream.
    async fn try_hear(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Ok(Some(frame));
            }
            match self.receive.read_chunk(usize::MAX, true).await? {
                Some(chunk) => self.decoder.push(chunk.bytes),
                None => return Ok(None),
            }
        }
    }

    async fn hear(&mut self) -> Frame {
        self.try_hear().await.unwrap().expect("a frame")
    }

    async fn hear_error(&mut self) -> WireError {
        let frame = self.hear().await;
        assert_ne!(frame.header.status, 0, "an error was expected");
        WireError::decode(frame.header.status, &frame.body)
    }

    async fn metadata(&mut self) -> Metadata {
        self.say(|out| encode_metadata(out, 1, &MetadataRequest::default())).await;
        decode_json(Api::Metadata, &self.hear().await.body).unwrap()
    }

    async fn create_log(&mut self, name: &str, partitions: u32) -> LogMetadata {
        let ack = Some(AckLevel::Received);
        let create = CreateLog { name: name.parse().unwrap(), partitions, settings: ack.into() };
        self.say(|out| encode_create_log(out, 2, &create)).await;
        let frame = self.hear().await;
        assert_eq!(frame.header.status, 0, "{:?}", WireError::decode(frame.header.status, &frame.body));
        decode_json(Api::CreateLog, &frame.body).unwrap()
    }

    async fn produce(&mut self, partition: PartitionId, batch: &[u8]) {
        let mut head = BytesMut::new();
        let batch = Bytes::copy_from_slice(batch);
        let append = Append { partition, batch, ack: None, expected_offset: None };
        encode_produce_head(&mut head, 3, &append.clone().into());
        self.send.write_all(&head).await.unwrap();
        self.send.write_all(&append.batch).await.unwrap();
    }
}

/// The core that a connection ends at, as the server says.
async fn core_of(connection: &Connection) -> CoreId {
    Talk::on(connection).await.metadata().await.core
}

fn batch(record_bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(None, &vec![b'x'; record_bytes], &[], 1).unwrap();
    builder.finish().unwrap()
}

fn fetch(partition: PartitionId, offset: u64, max_bytes: u32) -> Fetch {
    Fetch { partition, offset: Offset(offset), max_bytes, max_wait: Duration::from_secs(10) }
}

#[test]
fn a_hinted_connection_lands_on_the_core_it_names() {
    for cores in [2, 4] {
        Scene::new(cores).play(|actor| async move {
            for attempt in 0..200 {
                let named = CoreId((attempt % cores) as u16);
                let connection = actor.connect(Some(named)).await;
                assert_eq!(core_of(&connection).await, named, "attempt {attempt} of {cores} cores");
                connection.close(VarInt::from_u32(0), b"");
            }
            assert_eq!(actor.sum(|m| &m.datagrams_misrouted), 0);
        });
    }
}

#[test]
fn a_connection_stays_on_its_core_through_bulk_both_ways_and_new_addresses() {
    Scene::new(2).play(|actor| async move {
        let connection = actor.connect(Some(CoreId(1))).await;
        let mut talk = Talk::on(&connection).await;
        let log = talk.create_log("bulk", 1).await;
        let partition = log.partition(PartitionIndex(0));
        let batch = batch(RECORD_BYTES_MAX - 100);
        let rounds = 150;
        for round in 0..rounds {
            if round % 50 == 25 {
                actor.endpoint.rebind(client_socket()).unwrap();
            }
            talk.produce(partition, &batch).await;
            let appended = talk.hear().await;
            assert_eq!(decode_appended(&appended.body).unwrap().base_offset, Offset(round));
        }
        for round in 0..rounds {
            if round % 50 == 25 {
                actor.endpoint.rebind(client_socket()).unwrap();
            }
            talk.say(|out| encode_fetch(out, 4, &fetch(partition, round, 1))).await;
            let fetched = decode_fetched(talk.hear().await.body).unwrap();
            assert_eq!(fetched.batches.len(), batch.len());
        }
        assert_eq!(core_of(&connection).await, CoreId(1));
        assert_eq!(actor.sum(|m| &m.datagrams_misrouted), 0);
        assert_eq!(actor.metrics[0].connections_accepted.get(), 0);
    });
}

#[test]
fn an_unhinted_client_works_and_spreads_over_the_cores() {
    Scene::new(2).play(|actor| async move {
        let mut seen = [0; 2];
        for _ in 0..40 {
            let connection = actor.connect(None).await;
            seen[usize::from(core_of(&connection).await.0)] += 1;
        }
        // A fair coin lands 40 times on one side once in 10^12.
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
        let connection = actor.connect(None).await;
        let mut talk = Talk::on(&connection).await;
        let log = talk.create_log("spread", 8).await;
        for index in 0..8 {
            let partition = log.partition(PartitionIndex(index));
            talk.produce(partition, &batch(10)).await;
            assert_eq!(decode_appended(&talk.hear().await.body).unwrap().base_offset, Offset(0));
        }
        assert!(actor.sum(|m| &m.hops) > 0, "all of 8 partitions on one core?");
        assert_eq!(actor.sum(|m| &m.datagrams_misrouted), 0);
    });
}

#[test]
fn without_the_filter_misdirected_datagrams_are_passed_on_and_all_works() {
    Scene::with(2, ServerLimits::default(), Steering::ByAddressHash).play(|mut actor| async move {
        for attempt in 0..20 {
            // The kernel hashes addresses here, so each port is another throw.
            actor.endpoint = {
                let mut config = EndpointConfig::default();
                config.max_udp_payload_size(6500).unwrap();
                Endpoint::new(config, None, client_socket(), Arc::new(TokioRuntime)).unwrap()
            };
            let named = CoreId(attempt % 2);
            let connection = actor.connect(Some(named)).await;
            assert_eq!(core_of(&connection).await, named);
        }
        assert!(actor.sum(|m| &m.datagrams_misrouted) > 0, "the filter was attached after all");
        assert_eq!(actor.sum(|m| &m.datagrams_dropped), 0);
    });
}

#[test]
fn with_more_than_a_few_handshakes_under_way_clients_prove_their_address() {
    let limits = ServerLimits { half_open_before_retry: 0, ..ServerLimits::default() };
    Scene::with(2, limits, Steering::ByConnectionId).play(|actor| async move {
        for attempt in 0..50 {
            let named = CoreId(attempt % 2);
            let connection = actor.try_connect(Some(named)).await;
            let connection = connection.unwrap_or_else(|error| panic!("attempt {attempt}: {error}"));
            assert_eq!(core_of(&connection).await, named, "the Retry moved the connection");
        }
    });
}

#[test]
fn one_connection_too_many_is_told_why() {
    let limits = ServerLimits { connections_per_loopback_ip_max: 2, ..ServerLimits::default() };
    Scene::with(1, limits, Steering::ByConnectionId).play(|actor| async move {
        let first = actor.connect(None).await;
        let second = actor.connect(None).await;
        assert_eq!((core_of(&first).await, core_of(&second).await), (CoreId(0), CoreId(0)));
        let third = match actor.try_connect(None).await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        let ConnectionError::ApplicationClosed(close) = third else { panic!("{third}") };
        assert_eq!(close.error_code, VarInt::from(ErrorCode::OVERLOADED.0));
        assert!(String::from_utf8_lossy(&close.reason).contains("2 connections"), "{close}");
        assert_eq!(actor.sum(|m| &m.connections_refused), 1);
        drop(first);
        actor.until(|actor| actor.sum(|m| &m.connections) == 1).await;
        // The place is free when the server has forgotten the connection, a moment later.
        loop {
            let Ok(connection) = actor.try_connect(None).await else { continue };
            let open = async { Talk::on(&connection).await.metadata().await };
            tokio::select! {
                _ = open => break,
                _ = connection.closed() => {}
            }
        }
    });
}

#[test]
fn two_hundred_connections_come_and_go_and_leave_nothing() {
    Scene::new(2).play(|actor| async move {
        for round in 0..4 {
            let mut open = Vec::new();
            for attempt in 0..50 {
                let connection = actor.connect(Some(CoreId(attempt % 2))).await;
                let mut talk = Talk::on(&connection).await;
                talk.metadata().await;
                open.push((connection, talk));
            }
            assert_eq!(actor.sum(|m| &m.connections), 50, "round {round}");
            drop(open);
            actor.until(|actor| actor.sum(|m| &m.connections) == 0).await;
        }
        assert_eq!(actor.sum(|m| &m.connections_accepted), 200);
        assert_eq!(actor.sum(|m| &m.memory_reserved_bytes), 0);
    });
}

#[test]
fn garbage_in_datagrams_is_dropped_and_hurts_nobody() {
    Scene::new(2).play(|actor| async move {
        let connection = actor.connect(Some(CoreId(0))).await;
        let socket = client_socket();
        let mut state = 1u64;
        for round in 0..5000 {
            let mut datagram = [0u8; 1300];
            for byte in &mut datagram {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            // Long headers of version 1 among them, which look like first packets.
            if round % 3 == 0 {
                datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            }
            let _ = socket.send_to(&datagram[..round % 1301], actor.address);
        }
        assert_eq!(core_of(&connection).await, CoreId(0));
        assert_eq!(core_of(&actor.connect(Some(CoreId(1))).await).await, CoreId(1));
        assert_eq!(actor.sum(|m| &m.connections), 2);
        assert_eq!(actor.sum(|m| &m.memory_reserved_bytes), 0);
    });
}

#[test]
fn frames_that_break_the_protocol_are_answered_and_the_stream_goes_on() {
    Scene::new(1).play(|actor| async move {
        let connection = actor.connect(None).await;
        let mut talk = Talk::on(&connection).await;
        let header = |api, version, body_bytes| FrameHeader { body_bytes, version, api, status: 0, correlation: 7 };
        talk.say(|out| {
            header(99, VERSION, 3).encode(out);
            out.extend_from_slice(b"abc");
            header(1, 9, 2).encode(out);
            out.extend_from_slice(b"{}");
            header(4, VERSION, 5).encode(out);
            out.extend_from_slice(b"short");
            header(1, VERSION, 4).encode(out);
            out.extend_from_slice(b"nope");
            let partition = PartitionId { log: LogUid(1), index: PartitionIndex(0) };
            encode_subscribe(out, 7, &fetch(partition, 0, 100));
        })
        .await;
        for code in [
            ErrorCode::UNKNOWN_API,
            ErrorCode::UNSUPPORTED_VERSION,
            ErrorCode::BAD_BODY,
            ErrorCode::BAD_BODY,
            ErrorCode::MISPLACED,
        ] {
            assert_eq!(talk.hear_error().await.code, code);
        }
        // A log that this core has not heard of may have been created a moment ago.
        let partition = PartitionId { log: LogUid(4711), index: PartitionIndex(0) };
        talk.produce(partition, &batch(10)).await;
        assert_eq!(talk.hear_error().await.code, ErrorCode::PARTITION_OPENING);
        let log = talk.create_log("garbage", 1).await;
        talk.produce(log.partition(PartitionIndex(1)), &batch(10)).await;
        assert_eq!(talk.hear_error().await.code, ErrorCode::UNKNOWN_PARTITION);
        talk.produce(log.partition(PartitionIndex(0)), b"no batch at all").await;
        assert_eq!(talk.hear_error().await.code, ErrorCode::BATCH_REFUSED);
        talk.metadata().await;
        assert_eq!(actor.sum(|m| &m.protocol_errors), 5);
        actor.until(|actor| actor.sum(|m| &m.memory_reserved_bytes) == 0).await;
    });
}

#[test]
fn a_length_over_the_limit_ends_its_stream_and_no_other() {
    Scene::new(1).play(|actor| async move {
        let connection = actor.connect(None).await;
        for body_bytes in [BODY_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut talk = Talk::on(&connection).await;
            talk.say(|out| {
                FrameHeader { body_bytes, version: VERSION, api: 4, status: 0, correlation: 7 }.encode(out);
            })
            .await;
            assert_eq!(talk.hear_error().await.code, ErrorCode::FRAME_TOO_LARGE);
            assert_eq!(talk.try_hear().await.unwrap(), None);
        }
        // Half a frame, and the end of the stream.
        let mut talk = Talk::on(&connection).await;
        talk.say(|out| FrameHeader::new(Api::Produce, 7, 1000).encode(out)).await;
        talk.send.finish().unwrap();
        assert_eq!(talk.try_hear().await.unwrap(), None);
        Talk::on(&connection).await.metadata().await;
        actor.until(|actor| actor.sum(|m| &m.memory_reserved_bytes) == 0).await;
    });
}

#[test]
fn a_frame_that_is_never_finished_is_cut_off_and_others_go_on() {
    let limits = ServerLimits { frame_timeout: Duration::from_millis(300), ..ServerLimits::default() };
    Scene::with(1, limits, Steering::ByConnectionId).play(|actor| async move {
        let connection = actor.connect(None).await;
        let mut slow = Talk::on(&connection).await;
        slow.say(|out| FrameHeader::new(Api::Produce, 7, 1 << 20).encode(out)).await;
        actor.until(|actor| actor.sum(|m| &m.memory_reserved_bytes) > 1 << 20).await;
        let mut other = Talk::on(&connection).await;
        let heard = loop {
            // A byte now and then does not help: the frame's time runs from its start.
            let _ = slow.send.write_all(&[0]).await;
            other.metadata().await;
            let wait = tokio::time::timeout(Duration::from_millis(20), slow.try_hear()).await;
            if let Ok(heard) = wait {
                break heard;
            }
        };
        assert_eq!(heard, Err(ReadError::Reset(VarInt::from(ErrorCode::FRAME_TIMEOUT.0))));
        actor.until(|actor| actor.sum(|m| &m.memory_reserved_bytes) == 0).await;
        other.metadata().await;
    });
}

#[test]
fn a_reader_that_does_not_read_blocks_only_itself() {
    Scene::new(1).play(|actor| async move {
        let connection = actor.connect(None).await;
        let mut writer = Talk::on(&connection).await;
        let log = writer.create_log("slow", 1).await;
        let partition = log.partition(PartitionIndex(0));
        let batch = batch(RECORD_BYTES_MAX - 100);
        let mut idle = Talk::on(&actor.connect(None).await).await;
        idle.say(|out| encode_subscribe(out, 5, &fetch(partition, 0, u32::MAX))).await;
        let rounds = 60;
        for round in 0..rounds {
            writer.produce(partition, &batch).await;
            assert_eq!(decode_appended(&writer.hear().await.body).unwrap().base_offset, Offset(round));
        }
        let mut reader = Talk::on(&connection).await;
        reader.say(|out| encode_subscribe(out, 6, &fetch(partition, 0, u32::MAX))).await;
        let mut bytes = 0;
        while bytes < rounds as usize * batch.len() {
            bytes += decode_fetched(reader.hear().await.body).unwrap().batches.len();
        }
        // And when it reads at last, nothing is missing.
        let mut bytes = 0;
        while bytes < rounds as usize * batch.len() {
            bytes += decode_fetched(idle.hear().await.body).unwrap().batches.len();
        }
        drop((idle, reader));
        actor.until(|actor| actor.sum(|m| &m.memory_reserved_bytes) == 0).await;
    });
}

#[test]
fn streams_that_are_opened_and_reset_without_end_cost_the_client_its_connection() {
    Scene::new(1).play(|actor| async move {
        let connection = actor.connect(None).await;
        let error = loop {
            match connection.open_bi().await {
                Ok((mut send, mut receive)) => {
                    let _ = send.write(&[1]).await;
                    let _ = send.reset(VarInt::from_u32(0));
                    let _ = receive.stop(VarInt::from_u32(0));
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnectionError::ApplicationClosed(_)), "{error}");
        assert_eq!(core_of(&actor.connect(None).await).await, CoreId(0));
    });
}

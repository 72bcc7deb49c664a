//! The QUIC front end: one endpoint per core, on one UDP port.
//!
//! How a server uses it. In the main thread, before any core starts: [`ServerLimits::validate`],
//! [`ServerIdentity::load_or_create`], [`ServerSockets::bind`] (keep it until every core has ended) and [`forwarding`],
//! which gives a seat per core. On each core's executor, once its shard stands: [`serve_core`]. All cores must call it,
//! since it waits for the others to take their seats. To stop: [`ServerHandle::drain`] on every core, then stop the
//! shards.
//!
//! The files, in the order in which a packet meets them: [`sockets`] and [`steering`](crate::steering) (which core),
//! `endpoint` (QUIC's settings), `admission` (who may enter), `connection` (frames, back-pressure), `handler` (requests
//! and answers),
//! `subscription`.

use std::{io, net::UdpSocket, pin::pin, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use pyralog_engine::{
    runtime::{RingReceiver, RingSender, Runtime},
    shard::Shard,
    types::AckLevel,
};
use quinn::{Endpoint, Incoming, VarInt};

use crate::{
    quic_on_glommio::{CoreRuntime, CoreSocket, ForwardedRun, ForwardingSeat, Seat, forwarding_seats},
    wire::code::ErrorCode,
};

mod admission;
pub mod certificate;
mod connection;
pub(crate) mod endpoint;
mod handler;
pub mod limits;
mod pipeline;
pub mod sockets;
mod steering;
mod subscription;

pub use certificate::{CertificateError, ServerIdentity};
pub use limits::{LimitsError, ServerLimits};
pub use sockets::{BindError, ServerSockets, Steering};

use admission::{Admission, Decision, Refusal};
use connection::Core;

/// Runs of datagrams that may wait in the ring from one core to another. Steering makes them rare.
const FORWARDED_RUNS_MAX: usize = 64;

/// How long a drain waits for requests under way, and after that for the clients to have got the answers.
const DRAIN_REQUESTS: Duration = Duration::from_secs(10);
const DRAIN_STREAMS: Duration = Duration::from_secs(1);

/// How often a drain looks whether it is done.
const DRAIN_TICK: Duration = Duration::from_millis(1);

/// What the server says of itself.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// Its version.
    pub version: String,
    /// The profile in force.
    pub profile: String,
    /// The ack level of writes that name none, to logs that have none.
    pub ack: AckLevel,
    /// What that level promises, in one sentence.
    pub guarantee: String,
    /// What the copies of logs that do not say it themselves are worth, in one sentence.
    pub copies: String,
    /// The configuration in force.
    pub config: serde_json::Value,
}

/// All that one core needs to serve.
pub struct ServerCore {
    /// The core's shard.
    pub shard: Shard<CoreRuntime>,
    /// The core's socket, of [`ServerSockets::take`].
    pub socket: UdpSocket,
    /// The core's seat, of [`forwarding`].
    pub seat: ForwardingSeat,
    /// The server's certificate and secrets; the same on every core.
    pub identity: ServerIdentity,
    /// Bounds; the same on every core, and valid.
    pub limits: ServerLimits,
    /// What the server says of itself.
    pub info: Arc<ServerInfo>,
}

/// A seat for each core in the mesh over which datagrams that arrived on the wrong core are passed on. Each moves to
/// its core.
pub fn forwarding(cores: usize) -> Vec<ForwardingSeat> {
    forwarding_seats(cores, FORWARDED_RUNS_MAX)
}

/// Begins to serve on this core: call it on the core's executor. Returns when all cores have come this far; from then
/// on clients are served by tasks of the executor, until [`ServerHandle::drain`].
///
/// Errors: the operating system's, about the socket.
///
/// Panics if the limits are not valid.
pub async fn serve_core(parts: ServerCore) -> io::Result<ServerHandle> {
    let ServerCore { shard, socket, seat, identity, limits, info } = parts;
    limits.validate().expect("limits are validated at start"); // why: documented
    let runtime = shard.runtime().clone();
    let mesh = seat.connect(&runtime).await;
    let senders = mesh.senders;
    let place = Seat {
        core: shard.core(),
        cores: shard.cores(),
        forward: Box::new(move |core, run| match senders.get(usize::from(core.0)) {
            Some(Some(sender)) => sender.try_send(run),
            _ => Err(run),
        }),
    };
    let metrics = Arc::clone(shard.metrics());
    let (endpoint, socket) = endpoint::open(socket, place, &identity, &limits, metrics)?;
    for receiver in mesh.receivers.into_iter().flatten() {
        runtime.spawn(receive_forwarded(receiver, Arc::clone(&socket)));
    }
    let core = Core::new(shard, Admission::new(limits), info);
    runtime.spawn(accept_all(Rc::clone(&core), endpoint.clone()));
    Ok(ServerHandle { core, endpoint })
}

/// A core that serves. Dropping it stops nothing.
pub struct ServerHandle {
    core: Rc<Core>,
    endpoint: Endpoint,
}

impl ServerHandle {
    /// Stops serving in good order: refuses new connections and new requests with a retriable error, finishes the
    /// requests that were accepted, sees their answers to the clients, and closes all connections. Bounded in time:
    /// what takes longer is cut off, and its clients learn that the outcome is unknown.
    pub async fn drain(&self) {
        let core = &self.core;
        core.admission.close();
        self.wait(DRAIN_REQUESTS, || core.under_way() == 0).await;
        core.finish_streams();
        self.wait(DRAIN_STREAMS, || core.streams() == 0).await;
        let refusal = Refusal::ShuttingDown;
        self.endpoint.close(close_code(refusal.code()), refusal.reason().as_bytes());
        self.wait(DRAIN_STREAMS, || self.endpoint.open_connections() == 0).await;
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.core.admission.connections()
    }

    async fn wait(&self, at_most: Duration, done: impl Fn() -> bool) {
        let runtime = self.core.shard.runtime();
        let until = runtime.monotonic() + at_most;
        while !done() && runtime.monotonic() < until {
            runtime.sleep(DRAIN_TICK).await;
        }
    }
}

/// An error's code as that of a closed connection or stream.
fn close_code(code: ErrorCode) -> VarInt {
    VarInt::from(code.0)
}

async fn receive_forwarded(receiver: impl RingReceiver<ForwardedRun>, socket: Arc<CoreSocket>) {
    while let Some(run) = receiver.recv().await {
        socket.inject(run);
    }
}

async fn accept_all(core: Rc<Core>, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let metrics = core.shard.metrics();
        match core.admission.decide(incoming.remote_address().ip(), incoming.remote_address_validated()) {
            Decision::Admit => core.shard.runtime().spawn(admit(Rc::clone(&core), incoming)),
            Decision::Retry => {
                // An address that is not validated may always be asked to prove itself.
                let _ = incoming.retry();
            }
            Decision::Refuse => {
                metrics.connections_refused.add(1);
                incoming.refuse();
            }
            Decision::Explain(refusal) => {
                metrics.connections_refused.add(1);
                core.shard.runtime().spawn(explain(Rc::clone(&core), incoming, refusal));
            }
        }
    }
}

/// Shakes hands and serves the connection until it ends.
fn admit(core: Rc<Core>, incoming: Incoming) -> impl Future<Output = ()> {
    // The places are taken now, not when the task first runs: the next decision must know of them.
    let place = core.admission.enter(incoming.remote_address().ip());
    let half_open = core.admission.begin_handshake();
    async move {
        let connected = shake_hands(&core, incoming).await;
        drop(half_open);
        if let Some(connection) = connected {
            connection::serve(core, connection).await;
        }
        drop(place);
    }
}

/// Shakes hands only to say why the connection is refused: a client gets a code and a sentence instead of guessing.
fn explain(core: Rc<Core>, incoming: Incoming, refusal: Refusal) -> impl Future<Output = ()> {
    let half_open = core.admission.begin_handshake();
    async move {
        if let Some(connection) = shake_hands(&core, incoming).await {
            connection.close(close_code(refusal.code()), refusal.reason().as_bytes());
        }
        drop(half_open);
    }
}

async fn shake_hands(core: &Core, incoming: Incoming) -> Option<quinn::Connection> {
    let connecting = incoming.accept().ok()?;
    let timeout = core.shard.runtime().sleep(core.admission.limits().handshake_timeout);
    match select(connecting, pin!(timeout)).await {
        Either::Left((connected, _)) => connected.ok(),
        Either::Right(_) => None,
    }
}

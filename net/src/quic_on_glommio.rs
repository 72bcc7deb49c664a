//! quinn's [`Runtime`] on a glommio executor: timers, tasks and the UDP socket of one core.
//!
//! quinn demands `Send + Sync` of all of them. Nothing here ever leaves its core: what glommio makes single-threaded
//! sits in [`SendWrapper`]s, which stop the process if that is ever broken. The socket also carries the fallback of the
//! steering (see [`Seat`]): datagrams whose connection ID names another core are handed to it, and those that other
//! cores hand to us are received as if they had come from the network.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use glommio::timer::Timer;
use pyralog_engine::runtime::Runtime as _;
use pyralog_engine::{metrics::CoreMetrics, types::CoreId};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller, udp};
use send_wrapper::SendWrapper;

use crate::steering::core_of_datagram;

/// How long a full send buffer is left alone before the next attempt. glommio has no write readiness for datagrams. At
/// 10 Gbit/s an 8 MiB buffer drains 125 KB in this time, two full GSO sends, so the device does not run dry; and it
/// caps the attempts at 10,000 a second.
const SEND_RETRY: Duration = Duration::from_micros(100);

/// How long receiving pauses after the kernel refused to say whether there is anything to receive. Such a refusal (no
/// memory) may be lasting, and asking again at once would spin.
const RECEIVE_RETRY: Duration = Duration::from_millis(1);

/// Datagram runs from other cores that may wait for this one. A run is at most 64 KiB, so at most 16 MiB; beyond it
/// they are dropped, as a full socket buffer would drop them.
const INBOX_RUNS_MAX: usize = 256;

/// The engine's door to the executor, for those who serve QUIC on it.
pub type CoreRuntime = pyralog_engine::runtime::glommio::GlommioRuntime;

/// One core's seat in the mesh over which datagrams are passed on.
pub type ForwardingSeat = pyralog_engine::runtime::glommio::MeshSeat<ForwardedRun>;

/// A ring from every core to every other, each with room for `capacity` runs: one seat per core.
pub(crate) fn forwarding_seats(cores: usize, capacity: usize) -> Vec<ForwardingSeat> {
    pyralog_engine::runtime::glommio::mesh(cores, capacity)
}

/// quinn's door to the executor it is called on.
#[derive(Debug)]
pub struct QuicRuntime;

impl Runtime for QuicRuntime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(LazyTimer { deadline, armed: SendWrapper::new(None) })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        CoreRuntime::on_this_executor().spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(CoreSocket::new(socket, None, Arc::default())?)
    }
}

/// A timer that touches glommio's timer tree as rarely as it can.
///
/// quinn moves a connection's deadline on almost every packet, nearly always later. The tree keeps the first, earlier
/// entry; when that fires, the timer looks at the deadline as it is by then and arms again if need be.
struct LazyTimer {
    deadline: Instant,
    armed: SendWrapper<Option<Armed>>,
}

struct Armed {
    at: Instant,
    timer: Timer,
    waker: Waker,
}

impl AsyncTimer for LazyTimer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.deadline = deadline;
        if self.armed.as_ref().is_some_and(|armed| armed.at > deadline) {
            *self.armed = None;
        }
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            let deadline = self.deadline;
            if now >= deadline {
                *self.armed = None;
                return Poll::Ready(());
            }
            let armed = self.armed.get_or_insert_with(|| Armed {
                at: deadline,
                timer: Timer::new(deadline - now),
                waker: Waker::noop().clone(),
            });
            // Polling a glommio timer replaces its entry in the tree, so it is left alone while the entry is right.
            if armed.waker.will_wake(context.waker()) && now < armed.at {
                return Poll::Pending;
            }
            match Pin::new(&mut armed.timer).poll(context) {
                Poll::Pending => {
                    armed.waker.clone_from(context.waker());
                    return Poll::Pending;
                }
                Poll::Ready(_) => *self.armed = None,
            }
        }
    }
}

impl fmt::Debug for LazyTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyTimer").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// One or more datagrams of one sender that arrived on the wrong core, with all that QUIC wants to know about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedRun {
    /// The datagrams end to end.
    pub contents: Bytes,
    /// Bytes of each datagram but the last, which may be shorter; at least 1.
    pub stride: usize,
    /// Who sent them.
    pub source: SocketAddr,
    /// The address of ours they were sent to.
    pub destination: Option<IpAddr>,
    /// Congestion marks.
    pub ecn: Option<udp::EcnCodepoint>,
}

impl ForwardedRun {
    fn datagrams(&self) -> u64 {
        self.contents.len().div_ceil(self.stride) as u64
    }
}

/// The place of a socket among those of the other cores, and the way to them.
pub struct Seat {
    /// Whose socket it is.
    pub core: CoreId,
    /// How many cores share the port.
    pub cores: usize,
    /// Passes datagrams on to the core that owns them; gives them back if there is no room.
    pub forward: Box<dyn Fn(CoreId, ForwardedRun) -> Result<(), ForwardedRun>>,
}

/// One core's UDP socket.
pub struct CoreSocket {
    socket: std::net::UdpSocket,
    state: udp::UdpSocketState,
    metrics: Arc<CoreMetrics>,
    local: SendWrapper<Local>,
}

/// What belongs to the core alone.
struct Local {
    /// A duplicate of the descriptor, for readiness: glommio offers it only together with a receive.
    probe: Rc<glommio::net::UdpSocket>,
    /// The wait for the next datagram, if one is on.
    readable: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    /// The last receive did not fill its buffers, so the socket is probably empty.
    drained: Cell<bool>,
    seat: Option<Seat>,
    inbox: RefCell<VecDeque<ForwardedRun>>,
    receiver: Cell<Option<Waker>>,
    outlet: Rc<Outlet>,
}

impl CoreSocket {
    /// Takes over a bound socket. Must be called on the executor that will use it. Without a seat every datagram is
    /// ours.
    ///
    /// Errors: those of the operating system.
    pub fn new(socket: std::net::UdpSocket, seat: Option<Seat>, metrics: Arc<CoreMetrics>) -> io::Result<Arc<Self>> {
        // Makes the socket non-blocking and asks for GRO, packet info and no fragmentation.
        let state = udp::UdpSocketState::new((&socket).into())?;
        let probe = glommio::net::UdpSocket::from(socket2_04::Socket::from(socket.try_clone()?));
        let local = SendWrapper::new(Local {
            probe: Rc::new(probe),
            readable: RefCell::default(),
            drained: Cell::new(false),
            seat,
            inbox: RefCell::default(),
            receiver: Cell::default(),
            outlet: Rc::default(),
        });
        Ok(Arc::new(CoreSocket { socket, state, metrics, local }))
    }

    /// Receives datagrams that another core passed on.
    pub fn inject(&self, run: ForwardedRun) {
        let mut inbox = self.local.inbox.borrow_mut();
        if inbox.len() >= INBOX_RUNS_MAX {
            self.metrics.datagrams_dropped.add(run.datagrams());
            return;
        }
        inbox.push_back(run);
        if let Some(waker) = self.local.receiver.take() {
            waker.wake();
        }
    }

    fn take_injected(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [udp::RecvMeta]) -> usize {
        let mut inbox = self.local.inbox.borrow_mut();
        let places = buffers.iter_mut().zip(metas.iter_mut());
        let mut taken = 0;
        for (buffer, meta) in places {
            let Some(run) = inbox.pop_front() else { break };
            // All cores' buffers have the same size; a run that still does not fit loses its tail, as in a socket.
            let len = run.contents.len().min(buffer.len());
            buffer[..len].copy_from_slice(&run.contents[..len]);
            *meta = udp::RecvMeta { addr: run.source, len, stride: run.stride, ecn: run.ecn, dst_ip: run.destination };
            taken += 1;
        }
        taken
    }

    /// Passes on what belongs to other cores, and closes the gaps that this leaves.
    fn sort_out(&self, seat: &Seat, buffer: &mut [u8], meta: &mut udp::RecvMeta) {
        let stride = meta.stride.max(1);
        let owner = |datagram: &[u8]| core_of_datagram(datagram, seat.cores).unwrap_or(seat.core);
        if buffer[..meta.len].chunks(stride).all(|datagram| owner(datagram) == seat.core) {
            return;
        }
        let mut kept = 0;
        let mut at = 0;
        while at < meta.len {
            // A run: neighbours with one owner. GRO merges what one client socket sent, which may hold several
            // connections.
            let core = owner(&buffer[at..meta.len.min(at + stride)]);
            let mut end = meta.len.min(at + stride);
            while end < meta.len && owner(&buffer[end..meta.len.min(end + stride)]) == core {
                end = meta.len.min(end + stride);
            }
            if core == seat.core {
                buffer.copy_within(at..end, kept);
                kept += end - at;
            } else {
                self.pass_on(
                    seat,
                    core,
                    ForwardedRun {
                        contents: Bytes::copy_from_slice(&buffer[at..end]),
                        stride,
                        source: meta.addr,
                        destination: meta.dst_ip,
                        ecn: meta.ecn,
                    },
                );
            }
            at = end;
        }
        meta.len = kept;
    }

    fn pass_on(&self, seat: &Seat, core: CoreId, run: ForwardedRun) {
        self.metrics.datagrams_misrouted.add(run.datagrams());
        if let Err(run) = (seat.forward)(core, run) {
            self.metrics.datagrams_dropped.add(run.datagrams());
        }
    }

    /// Waits for the socket to have something; `Ready` may be wrong, `Pending` is not.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut readable = self.local.readable.borrow_mut();
        let wait = readable.get_or_insert_with(|| {
            let probe = Rc::clone(&self.local.probe);
            Box::pin(async move {
                // `peek` would demand a connected socket.
                if probe.peek_from(&mut [0u8; 1]).await.is_err() {
                    Timer::new(RECEIVE_RETRY).await;
                }
            })
        });
        let polled = wait.as_mut().poll(context);
        if polled.is_ready() {
            *readable = None;
        }
        polled
    }
}

impl AsyncUdpSocket for CoreSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritePoller { outlet: SendWrapper::new(Rc::clone(&self.local.outlet)) })
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send((&self.socket).into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.metrics.sends_blocked.add(1);
            self.local.outlet.block();
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let injected = self.take_injected(buffers, metas);
        if injected > 0 {
            return Poll::Ready(Ok(injected));
        }
        loop {
            // A wait that is on must end first. And when the last receive left the socket empty, asking whether there
            // is more comes before trying: the question is one system call less when, as usual, there is not.
            let waiting = self.local.readable.borrow().is_some();
            if (waiting || self.local.drained.get()) && self.poll_readable(context).is_pending() {
                if self.local.seat.is_some() {
                    self.local.receiver.set(Some(context.waker().clone()));
                }
                return Poll::Pending;
            }
            match self.state.recv((&self.socket).into(), buffers, metas) {
                Ok(count) => {
                    self.local.drained.set(count < buffers.len());
                    if let Some(seat) = &self.local.seat {
                        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
                            self.sort_out(seat, buffer, meta);
                        }
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.local.drained.set(true),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

impl fmt::Debug for CoreSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoreSocket").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Whether the socket takes more, and who waits for it: all connections of the core share one send buffer.
#[derive(Default)]
struct Outlet {
    blocked: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Outlet {
    /// The send buffer was full: nobody tries again until a pause is over, and then all who wait do.
    fn block(self: &Rc<Self>) {
        if self.blocked.replace(true) {
            return;
        }
        let outlet = Rc::clone(self);
        CoreRuntime::on_this_executor().spawn(async move {
            Timer::new(SEND_RETRY).await;
            outlet.blocked.set(false);
            outlet.waiting.take().into_iter().for_each(Waker::wake);
        });
    }

    fn poll_open(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.blocked.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

struct WritePoller {
    outlet: SendWrapper<Rc<Outlet>>,
}

impl UdpPoller for WritePoller {
    /// quinn 0.11 asks before *every* send, so this must be `Ready` unless a send has just found the buffer full:
    /// taking the question for a real wait cost a factor of ten.
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outlet.poll_open(context).map(Ok)
    }
}

impl fmt::Debug for WritePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WritePoller")
    }
}

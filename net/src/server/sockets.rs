//! The UDP sockets of all cores: one port, one socket each, bound together and closed together.
//!
//! The order of binding is the index that the steering filter answers with, and closing one socket of the group would
//! give its index to the last one for good. So the main thread binds all of them before anything is served, and keeps a
//! duplicate of each until the process ends: a core that dies cannot shift the others.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use nix::sys::socket::{setsockopt, sockopt};
use pyralog_engine::{limits::CORES_MAX, types::CoreId};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;

use super::steering::attach_filter;

/// What we ask for as the send and the receive buffer of each socket. Bulk transfer over loopback overruns the kernel's
/// defaults (212 KiB) and loses packets.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Why the port could not be opened.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process has the port.
    #[error("UDP {address} is in use by another process: stop it, or choose another address with --listen")]
    PortInUse {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The address is not ours, or the port is privileged.
    #[error("UDP {address} cannot be opened: {reason}")]
    Refused {
        /// What was asked for.
        address: SocketAddr,
        /// The operating system's words.
        reason: io::Error,
    },
    /// The core count is out of range.
    #[error("a server has 1 to {CORES_MAX} cores, not {cores}")]
    Cores {
        /// What was asked for.
        cores: usize,
    },
    /// The kernel did not take the program that steers packets to cores.
    #[error("the kernel refused the filter that steers packets to cores (SO_ATTACH_REUSEPORT_CBPF): {reason}")]
    Steering {
        /// The operating system's words.
        reason: io::Error,
    },
}

/// Whether the kernel steers packets to cores by their connection ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// By connection ID: the normal way.
    ByConnectionId,
    /// By a hash of the addresses, as a kernel without the filter does: every misdirected datagram is passed on by the
    /// core it arrives on. For tests of that fallback.
    ByAddressHash,
}

/// The sockets of all cores. The main thread makes it and keeps it until every core has ended.
#[derive(Debug)]
pub struct ServerSockets {
    address: SocketAddr,
    /// By core; taken when the core starts.
    to_serve: Vec<Option<UdpSocket>>,
    /// Duplicates, see the module's comment.
    _kept: Vec<UdpSocket>,
    warnings: Vec<String>,
}

impl ServerSockets {
    /// Opens `cores` sockets on `listen`. Port 0 takes a free port, see [`ServerSockets::local_addr`].
    ///
    /// Errors: see [`BindError`].
    pub fn bind(listen: SocketAddr, cores: usize) -> Result<Self, BindError> {
        Self::bind_steered(listen, cores, Steering::ByConnectionId)
    }

    /// [`ServerSockets::bind`] with a choice of the steering.
    ///
    /// Errors: see [`BindError`].
    pub fn bind_steered(listen: SocketAddr, cores: usize, steering: Steering) -> Result<Self, BindError> {
        if !(1..=CORES_MAX).contains(&cores) {
            return Err(BindError::Cores { cores });
        }
        // Alone first: with SO_REUSEPORT we would join another server's group without noticing, and take half its
        // packets.
        let alone = bind_one(listen, Sharing::Alone)?;
        let address = alone.local_addr().map_err(|reason| BindError::Refused { address: listen, reason })?;
        let sockets = if cores == 1 {
            // Nothing to steer; and a port that is not shared cannot be joined by another process either.
            vec![alone]
        } else {
            drop(alone);
            bind_group(address, cores, steering)?
        };
        let warnings = enlarge_buffers(&sockets);
        let duplicates = sockets.iter().map(UdpSocket::try_clone).collect::<io::Result<Vec<_>>>();
        let kept = duplicates.map_err(|reason| BindError::Refused { address, reason })?;
        Ok(ServerSockets { address, to_serve: sockets.into_iter().map(Some).collect(), _kept: kept, warnings })
    }

    /// The address that clients reach, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// How many cores share the port.
    pub fn cores(&self) -> usize {
        self.to_serve.len()
    }

    /// What the operator should know, each with the command that mends it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The socket of a core, once; it is moved to the core's executor.
    pub fn take(&mut self, core: CoreId) -> Option<UdpSocket> {
        self.to_serve.get_mut(usize::from(core.0))?.take()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Group,
}

fn bind_one(address: SocketAddr, sharing: Sharing) -> Result<UdpSocket, BindError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        if sharing == Sharing::Group {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    open().map_err(|reason: io::Error| match reason.kind() {
        io::ErrorKind::AddrInUse => BindError::PortInUse { address },
        _ => BindError::Refused { address, reason },
    })
}

fn bind_group(address: SocketAddr, cores: usize, steering: Steering) -> Result<Vec<UdpSocket>, BindError> {
    let sockets = (0..cores).map(|_| bind_one(address, Sharing::Group)).collect::<Result<Vec<_>, _>>()?;
    if let (Steering::ByConnectionId, Some(first)) = (steering, sockets.first()) {
        attach_filter(first, cores).map_err(|reason| BindError::Steering { reason })?;
    }
    Ok(sockets)
}

/// Asks for [`SOCKET_BUFFER_BYTES`] and says what came of it.
fn enlarge_buffers(sockets: &[UdpSocket]) -> Vec<String> {
    for socket in sockets {
        let plain = SockRef::from(socket);
        // FORCE goes past the sysctl's limit and needs a privilege; without it, as much as the sysctl allows.
        if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            let _ = plain.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        }
        if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            let _ = plain.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        }
    }
    let Some(first) = sockets.first().map(SockRef::from) else { return Vec::new() };
    let granted = [
        ("receive", "net.core.rmem_max", first.recv_buffer_size()),
        ("send", "net.core.wmem_max", first.send_buffer_size()),
    ];
    // Linux reports twice what it granted: it counts its own bookkeeping.
    granted.into_iter().filter_map(|(which, sysctl, got)| buffer_warning(which, sysctl, got.ok()? / 2)).collect()
}

fn buffer_warning(which: &str, sysctl: &str, got: usize) -> Option<String> {
    (got < SOCKET_BUFFER_BYTES).then(|| {
        format!(
            "the {which} buffer of the UDP sockets is {} KiB of the {} KiB asked for, so bursts may be lost; \
             as root: sysctl -w {sysctl}={SOCKET_BUFFER_BYTES}",
            got >> 10,
            SOCKET_BUFFER_BYTES >> 10,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[test]
    fn a_port_that_another_server_shares_among_its_cores_is_in_use() {
        for cores in [1, 2] {
            let first = ServerSockets::bind(loopback(), cores).unwrap();
            let second = ServerSockets::bind(first.local_addr(), cores);
            assert!(matches!(second, Err(BindError::PortInUse { .. })), "{second:?}");
        }
    }

    #[test]
    fn each_core_gets_its_socket_once() {
        let mut sockets = ServerSockets::bind(loopback(), 3).unwrap();
        for core in 0..3 {
            assert_eq!(sockets.take(CoreId(core)).unwrap().local_addr().unwrap(), sockets.local_addr());
            assert!(sockets.take(CoreId(core)).is_none());
        }
        assert!(sockets.take(CoreId(3)).is_none());
        assert!(matches!(ServerSockets::bind(loopback(), 0), Err(BindError::Cores { cores: 0 })));
    }

    #[test]
    fn a_small_buffer_is_reported_with_the_sysctl_that_mends_it() {
        assert!(
            buffer_warning("receive", "net.core.rmem_max", 4096)
                .unwrap()
                .contains("sysctl -w net.core.rmem_max=8388608")
        );
        assert_eq!(buffer_warning("receive", "net.core.rmem_max", SOCKET_BUFFER_BYTES), None);
    }
}

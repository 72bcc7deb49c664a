//! What the front end of one core takes at most, whatever its clients do.

use std::time::Duration;

use thiserror::Error;

/// Bytes that a connection costs beside its windows: quinn's and rustls's state, buffers of datagrams under way, our
/// tasks.
const CONNECTION_BYTES: u64 = 64 << 10;

/// The smallest flow-control window worth having: four of the largest datagrams' bursts.
const WINDOW_BYTES_MIN: u64 = 64 << 10;

/// The largest window a connection is given. At 2 GB/s over loopback and 1 ms of round trip under load 2 MiB are in
/// flight; over a network 8 MiB fill 10 Gbit/s at 6 ms.
const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// The window of a connection until it is admitted.
pub(super) const WINDOW_BYTES_BEFORE_ADMISSION: u64 = WINDOW_BYTES_MIN;

/// Streams of a connection until it is admitted.
pub(super) const STREAMS_BEFORE_ADMISSION: u32 = 16;

/// Bounds of one core's front end. All of them are per core, since cores share nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections. Further ones are refused, with the reason.
    pub connections_max: usize,
    /// Connections from one IP address.
    pub connections_per_ip_max: usize,
    /// Connections from one loopback address. All clients of this machine, proxies and load generators share it, and
    /// who can connect from here can do worse than to connect often.
    pub connections_per_loopback_ip_max: usize,
    /// Bytes that all connections' QUIC state may take: `connections × (receive window + send window + 64 KiB)`. The
    /// fewer connections there are, the larger are their windows.
    pub quic_memory_bytes: u64,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Handshakes under way above which new clients must first prove their address (QUIC Retry).
    pub half_open_before_retry: usize,
    /// How long a client may leave a frame unfinished.
    pub frame_timeout: Duration,
    /// After how long without any packet a connection is given up.
    pub idle_timeout: Duration,
    /// Streams of a connection.
    pub streams_per_connection_max: u32,
    /// Requests of one stream that are read but not answered. Further ones wait in QUIC's windows.
    pub requests_in_flight_per_stream_max: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            connections_max: 512,
            connections_per_ip_max: 32,
            connections_per_loopback_ip_max: 512,
            quic_memory_bytes: 256 << 20,
            handshake_timeout: Duration::from_secs(3),
            half_open_before_retry: 64,
            frame_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            streams_per_connection_max: 100,
            requests_in_flight_per_stream_max: 4096,
        }
    }
}

/// Why limits were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LimitsError {
    /// The connections do not fit into the memory.
    #[error(
        "{connections} connections need at least {needed_bytes} bytes of QUIC memory per core, and there are \
         {given_bytes}: \
         a connection takes a receive and a send window of at least 64 KiB each, and 64 KiB of state"
    )]
    QuicMemory {
        /// How many may connect.
        connections: usize,
        /// What they need.
        needed_bytes: u64,
        /// What there is.
        given_bytes: u64,
    },
    /// A limit is zero.
    #[error("{name} must be at least 1")]
    Zero {
        /// The limit.
        name: &'static str,
    },
    /// The idle timeout is longer than QUIC can say.
    #[error("an idle timeout of {seconds} s is too long")]
    IdleTimeout {
        /// What was asked for.
        seconds: u64,
    },
}

impl ServerLimits {
    /// Checks that the limits go together.
    ///
    /// Errors: see [`LimitsError`].
    pub fn validate(&self) -> Result<(), LimitsError> {
        let counts = [
            ("connections_max", self.connections_max),
            ("connections_per_ip_max", self.connections_per_ip_max),
            ("connections_per_loopback_ip_max", self.connections_per_loopback_ip_max),
            ("streams_per_connection_max", self.streams_per_connection_max as usize),
            ("requests_in_flight_per_stream_max", self.requests_in_flight_per_stream_max),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(LimitsError::Zero { name });
        }
        if quinn::IdleTimeout::try_from(self.idle_timeout).is_err() {
            return Err(LimitsError::IdleTimeout { seconds: self.idle_timeout.as_secs() });
        }
        let needed_bytes = (self.connections_max as u64).saturating_mul(2 * WINDOW_BYTES_MIN + CONNECTION_BYTES);
        if needed_bytes > self.quic_memory_bytes {
            let (connections, given_bytes) = (self.connections_max, self.quic_memory_bytes);
            return Err(LimitsError::QuicMemory { connections, needed_bytes, given_bytes });
        }
        Ok(())
    }

    /// The receive window, and the send window, of each of `connections`: an equal share of the memory. It moves by
    /// factors of two, so that a connection that comes or goes seldom changes those of the others.
    pub(super) fn window_bytes(&self, connections: usize) -> u64 {
        let connections =
            connections.clamp(1, self.connections_max).next_power_of_two().min(self.connections_max) as u64;
        let share = (self.quic_memory_bytes / connections).saturating_sub(CONNECTION_BYTES) / 2;
        share.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_number_of_connections_their_windows_fit_into_the_memory() {
        let limits = ServerLimits::default();
        limits.validate().unwrap();
        for connections in 1..=limits.connections_max {
            let each = 2 * limits.window_bytes(connections) + CONNECTION_BYTES;
            assert!(connections as u64 * each <= limits.quic_memory_bytes, "{connections} connections of {each} bytes");
        }
        assert_eq!(limits.window_bytes(1), WINDOW_BYTES_MAX);
    }

    #[test]
    fn more_connections_than_the_memory_holds_are_refused_with_the_arithmetic() {
        let needed = 512 * (192 << 10);
        let tight = ServerLimits { quic_memory_bytes: needed, ..ServerLimits::default() };
        assert_eq!(tight.validate(), Ok(()));
        let short = ServerLimits { quic_memory_bytes: needed - 1, ..tight };
        assert!(
            matches!(short.validate(), Err(LimitsError::QuicMemory { needed_bytes, .. }) if needed_bytes == needed)
        );
    }
}

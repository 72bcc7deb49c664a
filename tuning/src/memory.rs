//! The arithmetic that must hold before a server starts: what every part may hold at most, summed, fits into the memory
//! there is. Pure. Afterwards nothing grows with load, partitions or clients beyond these numbers.

use thiserror::Error;

use crate::units::about;

/// What a connection holds beside its windows: its state, its streams' heads, TLS.
pub const CONNECTION_OVERHEAD_BYTES: u64 = 64 << 10;

/// What an executor holds for I/O whatever happens: glommio's own pool of registered memory, and the mailboxes.
pub const CORE_OVERHEAD_BYTES: u64 = 16 << 20;

/// The part of the memory, in percent, that we plan with. The rest is the code's, the allocator's, the kernel's for our
/// sockets, and the page cache's for mapped segments.
pub const USABLE_PERCENT: u64 = 80;

/// The least share of the request memory that a core can work with: one batch of the largest size (8 MiB), and another
/// while that one is on its way to the drive.
pub const REQUESTS_BYTES_PER_CORE_MIN: u64 = 16 << 20;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// How many cores.
    pub cores: u64,
    /// Connections on each.
    pub connections_per_core: u64,
    /// Whether a person chose that number; then it is not lowered.
    pub connections_are_explicit: bool,
    /// The receive window and the send window of a connection together, in bytes.
    pub windows_bytes: u64,
    /// For requests in flight, all cores together.
    pub requests_bytes: u64,
    /// For the read cache, all cores together.
    pub read_cache_bytes: u64,
}

/// What each core gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Connections on each core: those asked for, or as many as fit.
    pub connections_per_core: u64,
    /// For requests in flight, on each core.
    pub requests_bytes_per_core: u64,
    /// For the read cache, on each core.
    pub read_cache_bytes_per_core: u64,
    /// The most that the whole server will hold.
    pub total_bytes: u64,
}

/// Why the demand cannot be met. The operator must act.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// It does not fit.
    #[error(
        "the configured limits need {}: {cores} cores x {connections} connections x {} for windows, {} for requests, \
         {} for the read cache and {} for the cores themselves; there are {} to plan with ({USABLE_PERCENT} % of the \
         memory): lower network.connections_per_core, memory.requests or memory.read_cache",
        about(*needed_bytes), about(*connection_bytes), about(*requests_bytes), about(*read_cache_bytes),
        about(cores * CORE_OVERHEAD_BYTES), about(*usable_bytes)
    )]
    DoesNotFit {
        /// The sum.
        needed_bytes: u64,
        /// What there is to plan with.
        usable_bytes: u64,
        /// How many cores.
        cores: u64,
        /// Connections on each.
        connections: u64,
        /// What each connection may hold.
        connection_bytes: u64,
        /// For requests.
        requests_bytes: u64,
        /// For the read cache.
        read_cache_bytes: u64,
    },
    /// A core's share of the request memory is too small.
    #[error(
        "memory.requests is {} for {cores} cores, which leaves each less than the {} that it needs; give at least {}",
        about(*requests_bytes), about(REQUESTS_BYTES_PER_CORE_MIN), about(REQUESTS_BYTES_PER_CORE_MIN * cores)
    )]
    TooLittleForRequests {
        /// What is configured.
        requests_bytes: u64,
        /// How many cores share it.
        cores: u64,
    },
}

impl Demand {
    /// Shares out `memory_bytes`, and lowers the number of connections to what fits unless it is explicit.
    ///
    /// Errors: `DoesNotFit`, `TooLittleForRequests`.
    pub fn plan(&self, memory_bytes: u64) -> Result<Plan, MemoryError> {
        assert!(self.cores > 0, "a server has at least one core");
        if self.requests_bytes / self.cores < REQUESTS_BYTES_PER_CORE_MIN {
            let (requests_bytes, cores) = (self.requests_bytes, self.cores);
            return Err(MemoryError::TooLittleForRequests { requests_bytes, cores });
        }
        let usable = memory_bytes / 100 * USABLE_PERCENT;
        let fixed = self.requests_bytes + self.read_cache_bytes + self.cores * CORE_OVERHEAD_BYTES;
        let each = self.windows_bytes + CONNECTION_OVERHEAD_BYTES;
        let fitting = usable.saturating_sub(fixed) / (each * self.cores);
        let too_many = fitting < self.connections_per_core;
        if fitting == 0 || (too_many && self.connections_are_explicit) {
            return Err(self.does_not_fit(usable, fixed, each));
        }
        let connections = self.connections_per_core.min(fitting);
        Ok(Plan {
            connections_per_core: connections,
            requests_bytes_per_core: self.requests_bytes / self.cores,
            read_cache_bytes_per_core: self.read_cache_bytes / self.cores,
            total_bytes: fixed + each * self.cores * connections,
        })
    }

    fn does_not_fit(&self, usable_bytes: u64, fixed: u64, connection_bytes: u64) -> MemoryError {
        MemoryError::DoesNotFit {
            needed_bytes: fixed + connection_bytes * self.cores * self.connections_per_core,
            usable_bytes,
            cores: self.cores,
            connections: self.connections_per_core,
            connection_bytes,
            requests_bytes: self.requests_bytes,
            read_cache_bytes: self.read_cache_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        cores: 2,
        connections_per_core: 1024,
        connections_are_explicit: false,
        windows_bytes: 2 << 20,
        requests_bytes: 256 << 20,
        read_cache_bytes: 256 << 20,
    };

    #[test]
    fn a_large_host_gives_what_is_asked_for_and_a_small_one_fewer_connections() {
        let plan = DEMAND.plan(24 << 30).unwrap();
        assert_eq!(plan.connections_per_core, 1024);
        assert_eq!(plan.requests_bytes_per_core, 128 << 20);
        let small = DEMAND.plan(2 << 30).unwrap();
        assert!((100..1024).contains(&small.connections_per_core), "{small:?}");
        assert!(small.total_bytes <= (2 << 30) / 100 * USABLE_PERCENT);
    }

    #[test]
    fn what_fits_exactly_is_given_and_a_byte_less_of_memory_is_refused_with_the_sum() {
        let demand = Demand { connections_are_explicit: true, ..DEMAND };
        let total = demand.plan(1 << 40).unwrap().total_bytes;
        let exact = total.div_ceil(USABLE_PERCENT) * 100;
        assert_eq!(demand.plan(exact).unwrap().total_bytes, total);
        let message = demand.plan(exact - 100).unwrap_err().to_string();
        assert!(message.contains("2 cores x 1024 connections"), "{message}");
    }

    #[test]
    fn a_core_without_room_for_two_batches_is_refused() {
        let demand = Demand { requests_bytes: (32 << 20) - 2, ..DEMAND };
        let message = demand.plan(24 << 30).unwrap_err().to_string();
        assert!(message.ends_with("give at least 32 MiB"), "{message}");
        assert!(Demand { requests_bytes: 32 << 20, ..DEMAND }.plan(24 << 30).is_ok());
    }
}

//! The arithmetic that must hold before a server starts: what every part may hold at most, summed, fits into the memory
//! there is. Pure. Afterwards nothing grows with load, partitions or clients beyond these numbers.

use thiserror::Error;

use crate::units::about;

/// What an executor holds for I/O whatever happens: glommio's own pool of registered memory, and the mailboxes.
pub const CORE_OVERHEAD_BYTES: u64 = 16 << 20;

/// The part of the memory, in percent, that we plan with. The rest is the code's, the allocator's, the kernel's for our
/// sockets, and the page cache's for mapped segments.
pub const USABLE_PERCENT: u64 = 80;

/// The least share of the request memory that a core can work with: one batch of the largest size (8 MiB), and another
/// while that one is on its way to the drive.
pub const REQUESTS_BYTES_PER_CORE_MIN: u64 = 16 << 20;

/// What a connection takes at least: two windows of 64 KiB, and as much for its state, its streams' heads and TLS.
pub const CONNECTION_BYTES_MIN: u64 = 192 << 10;

/// One part's wish, all cores together.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Bytes.
    pub bytes: u64,
    /// Whether a person chose that number; then it is not lowered.
    pub is_explicit: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// How many cores.
    pub cores: u64,
    /// What each of them needs whatever is shared out: [`CORE_OVERHEAD_BYTES`] and more.
    pub overhead_bytes_per_core: u64,
    /// Connections on each. Lowered with `network` unless a person chose it.
    pub connections_per_core: Wish,
    /// For requests in flight.
    pub requests: Wish,
    /// For the read cache.
    pub read_cache: Wish,
    /// For the windows of connections.
    pub network: Wish,
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
    /// For the windows of connections, on each core.
    pub network_bytes_per_core: u64,
    /// The most that the whole server will hold.
    pub total_bytes: u64,
}

/// Why the demand cannot be met. The operator must act.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// It does not fit.
    #[error(
        "memory.requests ({}), memory.read_cache ({}), memory.network ({}) and {} for {cores} cores need {} together; \
         there are {} to plan with ({USABLE_PERCENT} % of the memory); lower one of them",
        about(*requests_bytes), about(*read_cache_bytes), about(*network_bytes), about(*overhead_bytes),
        about(requests_bytes + read_cache_bytes + network_bytes + overhead_bytes), about(*usable_bytes)
    )]
    DoesNotFit {
        /// What there is to plan with.
        usable_bytes: u64,
        /// How many cores.
        cores: u64,
        /// What they need whatever is shared out.
        overhead_bytes: u64,
        /// For requests.
        requests_bytes: u64,
        /// For the read cache.
        read_cache_bytes: u64,
        /// For connections.
        network_bytes: u64,
    },
    /// A core's share of the request memory is too small.
    #[error(
        "memory.requests is {} for {cores} cores, which leaves each less than the {} that it needs; give at least {}",
        about(*requests_bytes), about(REQUESTS_BYTES_PER_CORE_MIN), about(REQUESTS_BYTES_PER_CORE_MIN * cores)
    )]
    TooLittleForRequests {
        /// What there is.
        requests_bytes: u64,
        /// How many cores share it.
        cores: u64,
    },
    /// The connections do not fit into their memory.
    #[error(
        "{cores} cores x {connections} connections x 192 KiB need {}, and memory.network is {}; \
         raise it or lower network.connections_per_core",
        about(cores * connections * CONNECTION_BYTES_MIN), about(*network_bytes)
    )]
    TooLittleForConnections {
        /// What there is.
        network_bytes: u64,
        /// How many cores share it.
        cores: u64,
        /// Connections on each.
        connections: u64,
    },
}

impl Demand {
    /// Shares out `memory_bytes`. On a host with too little, what nobody chose is lowered in proportion.
    ///
    /// Errors: `DoesNotFit`, `TooLittleForRequests`, `TooLittleForConnections`.
    pub fn plan(&self, memory_bytes: u64) -> Result<Plan, MemoryError> {
        assert!(self.cores > 0, "a server has at least one core");
        let (cores, usable_bytes) = (self.cores, memory_bytes / 100 * USABLE_PERCENT);
        let [requests_bytes, read_cache_bytes, network_bytes] = self.lowered(usable_bytes);
        let overhead_bytes = cores * self.overhead_bytes_per_core;
        let total_bytes = requests_bytes + read_cache_bytes + network_bytes + overhead_bytes;
        let least = REQUESTS_BYTES_PER_CORE_MIN * cores;
        if self.requests.bytes < least {
            return Err(MemoryError::TooLittleForRequests { requests_bytes: self.requests.bytes, cores });
        }
        // Also when lowering would have left nothing to work with.
        if total_bytes > usable_bytes || requests_bytes < least {
            return Err(MemoryError::DoesNotFit {
                usable_bytes,
                cores,
                overhead_bytes,
                requests_bytes: self.requests.bytes,
                read_cache_bytes: self.read_cache.bytes,
                network_bytes: self.network.bytes,
            });
        }
        Ok(Plan {
            connections_per_core: self.connections(network_bytes)?,
            requests_bytes_per_core: requests_bytes / cores,
            read_cache_bytes_per_core: read_cache_bytes / cores,
            network_bytes_per_core: network_bytes / cores,
            total_bytes,
        })
    }

    /// Requests, read cache and network: as wished if all fit, else the chosen ones as they are and the others scaled
    /// to the rest.
    fn lowered(&self, usable_bytes: u64) -> [u64; 3] {
        let wishes = [self.requests, self.read_cache, self.network];
        let sum =
            |explicit| wishes.iter().filter(|w| w.is_explicit == explicit).map(|w| u128::from(w.bytes)).sum::<u128>();
        let chosen = sum(true) + u128::from(self.cores * self.overhead_bytes_per_core);
        let (open, rest) = (sum(false), u128::from(usable_bytes).saturating_sub(chosen));
        wishes.map(|wish| match wish.is_explicit || open <= rest {
            true => wish.bytes,
            false => (u128::from(wish.bytes) * rest / open) as u64,
        })
    }

    fn connections(&self, network_bytes: u64) -> Result<u64, MemoryError> {
        let (cores, connections) = (self.cores, self.connections_per_core.bytes);
        let fitting = network_bytes / cores / CONNECTION_BYTES_MIN;
        if fitting == 0 || (fitting < connections && self.connections_per_core.is_explicit) {
            return Err(MemoryError::TooLittleForConnections { network_bytes, cores, connections });
        }
        Ok(connections.min(fitting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn open(bytes: u64) -> Wish {
        Wish { bytes, is_explicit: false }
    }

    const fn chosen(bytes: u64) -> Wish {
        Wish { bytes, is_explicit: true }
    }

    const DEMAND: Demand = Demand {
        cores: 2,
        overhead_bytes_per_core: CORE_OVERHEAD_BYTES,
        connections_per_core: open(512),
        requests: open(256 << 20),
        read_cache: open(256 << 20),
        network: open(512 << 20),
    };

    #[test]
    fn a_large_host_gives_what_is_asked_for_and_a_small_one_proportionally_less() {
        let plan = DEMAND.plan(24 << 30).unwrap();
        assert_eq!((plan.connections_per_core, plan.requests_bytes_per_core), (512, 128 << 20));
        assert_eq!((plan.read_cache_bytes_per_core, plan.network_bytes_per_core), (128 << 20, 256 << 20));
        let small = DEMAND.plan(512 << 20).unwrap();
        assert!(small.total_bytes <= (512 << 20) / 100 * USABLE_PERCENT, "{small:?}");
        assert!(small.network_bytes_per_core.abs_diff(2 * small.requests_bytes_per_core) <= 2, "{small:?}");
    }

    #[test]
    fn what_a_person_chose_is_never_lowered_but_refused_with_the_sum() {
        let demand = Demand { network: chosen(1 << 30), ..DEMAND };
        assert_eq!(demand.plan(2 << 30).unwrap().network_bytes_per_core, 512 << 20);
        let all = Demand { requests: chosen(256 << 20), read_cache: chosen(256 << 20), ..demand };
        let message = all.plan(1 << 30).unwrap_err().to_string();
        assert_eq!(
            message,
            "memory.requests (256 MiB), memory.read_cache (256 MiB), memory.network (1 GiB) and 32 MiB for 2 cores \
             need 1.5 GiB together; there are 819 MiB to plan with (80 % of the memory); lower one of them"
        );
    }

    #[test]
    fn a_part_that_leaves_nothing_for_the_others_is_refused_as_what_it_is() {
        let greedy = Demand { network: chosen(16 << 40), ..DEMAND };
        assert!(matches!(greedy.plan(24 << 30), Err(MemoryError::DoesNotFit { .. })));
    }

    #[test]
    fn what_fits_exactly_is_given_and_a_little_less_memory_is_refused() {
        let all = Demand { requests: chosen(256 << 20), read_cache: chosen(0), network: chosen(512 << 20), ..DEMAND };
        let total = all.plan(1 << 40).unwrap().total_bytes;
        let exact = total.div_ceil(USABLE_PERCENT) * 100;
        assert_eq!(all.plan(exact).unwrap().total_bytes, total);
        assert!(matches!(all.plan(exact - 100), Err(MemoryError::DoesNotFit { .. })));
    }

    #[test]
    fn a_core_without_room_for_two_batches_is_refused() {
        let demand = Demand { requests: chosen((32 << 20) - 2), ..DEMAND };
        let message = demand.plan(24 << 30).unwrap_err().to_string();
        assert!(message.ends_with("give at least 32 MiB"), "{message}");
        assert!(Demand { requests: chosen(32 << 20), ..DEMAND }.plan(24 << 30).is_ok());
    }

    #[test]
    fn more_connections_than_their_memory_holds_are_lowered_or_refused() {
        let small = Demand { network: chosen(192 << 20), ..DEMAND };
        assert_eq!(small.plan(24 << 30).unwrap().connections_per_core, 512);
        let tight = Demand { network: chosen((192 << 20) - 1), ..DEMAND };
        assert_eq!(tight.plan(24 << 30).unwrap().connections_per_core, 511);
        let wished = Demand { connections_per_core: chosen(512), ..tight };
        let message = wished.plan(24 << 30).unwrap_err().to_string();
        assert!(message.starts_with("2 cores x 512 connections x 192 KiB need 192 MiB, and memory.network is 191 MiB"));
    }
}

//! The rule that both sides keep so that a packet arrives where the partition lives: byte 0 of a connection ID, modulo
//! the number of cores, is the core.
//!
//! The client chooses its first destination ID by it ([`dcid_provider`]); the server keeps the core in every ID that it
//! issues, so the connection stays on its core for life, also when the client's address changes.

use std::sync::Arc;

use pyralog_engine::{limits::CORES_MAX, types::CoreId};
use quinn::ConnectionId;

/// Bytes of the connection IDs that we choose: the steering byte and enough others to be unpredictable, of which the
/// server uses some to recognise its own. A client's first ID must have 8 at least (RFC 9000, section 7.2).
pub const CID_BYTES: usize = 12;

const _: () = assert!(CID_BYTES >= 8 && CID_BYTES <= 20, "RFC 9000 allows 8 to 20 bytes");
const _: () = assert!(CORES_MAX <= 256, "one byte names the core");

/// The bytes of a connection ID, random but for the core that it names.
///
/// Panics if the server of `cores` has no such core.
pub fn cid_for(core: CoreId, cores: usize) -> [u8; CID_BYTES] {
    assert!(usize::from(core.0) < cores && cores <= CORES_MAX, "core {core} of {cores}");
    let mut bytes = [0; CID_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).expect("random bytes"); // why: the system's source is up before us
    bytes[0] = steering_byte(core, cores, bytes[0]);
    bytes
}

/// The core that a QUIC datagram is for: the one its destination connection ID names. `None` if it is too short to have
/// one.
///
/// Looks where the kernel's filter looks: at byte 6 behind a long header, at byte 1 behind a short one.
pub fn core_of_datagram(datagram: &[u8], cores: usize) -> Option<CoreId> {
    assert!(cores > 0, "a server has at least one core");
    let long_header = datagram.first()? & 0x80 != 0;
    let byte = datagram.get(if long_header { 6 } else { 1 })?;
    Some(CoreId((usize::from(*byte) % cores) as u16))
}

/// Chooses the first destination IDs of a client's connections, so that already their first packet lands on `core`.
pub fn dcid_provider(core: CoreId, cores: usize) -> Arc<dyn Fn() -> ConnectionId + Send + Sync> {
    Arc::new(move || ConnectionId::new(&cid_for(core, cores)))
}

/// `core` plus a random multiple of `cores` that still fits into the byte.
fn steering_byte(core: CoreId, cores: usize, random: u8) -> u8 {
    let multiples = 256 / cores;
    let byte = usize::from(core.0) + cores * (usize::from(random) % multiples);
    u8::try_from(byte).expect("core + cores * (256 / cores - 1) < 256") // why: core is below cores
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_id_names_its_core() {
        for cores in [1, 2, 3, 7, 8, 100, 255, 256] {
            for core in (0..cores).map(|core| CoreId(core as u16)) {
                let id = dcid_provider(core, cores)();
                assert_eq!(usize::from(id[0]) % cores, usize::from(core.0));
                assert_eq!(core_of_datagram(&[&[0x40][..], &id].concat(), cores), Some(core));
                let long_header = [0xc0, 0, 0, 0, 1, CID_BYTES as u8];
                assert_eq!(core_of_datagram(&[&long_header[..], &id].concat(), cores), Some(core));
                for random in [0, 1, 127, 254, 255] {
                    assert_eq!(usize::from(steering_byte(core, cores, random)) % cores, usize::from(core.0));
                }
            }
        }
    }

    #[test]
    fn a_datagram_without_an_id_names_no_core() {
        for short in [&[][..], &[0x40], &[0xc0, 0, 0, 0, 1, 0]] {
            assert_eq!(core_of_datagram(short, 4), None);
        }
    }

    #[test]
    fn ids_for_one_core_differ_also_in_their_steering_byte() {
        let ids: Vec<_> = (0..200).map(|_| cid_for(CoreId(1), 2)).collect();
        let whole: BTreeSet<_> = ids.iter().collect();
        let first: BTreeSet<u8> = ids.iter().map(|id| id[0]).collect();
        assert_eq!(whole.len(), ids.len());
        assert!(first.len() > 50, "only {} different steering bytes", first.len());
    }
}

//! The packet arrives where the partition lives: one byte of the QUIC destination connection ID names the core.
//!
//! The rule exists twice, as a program for the kernel, which picks the socket of a group that shares one port, and in
//! [`core_of_datagram`](crate::steering::core_of_datagram), for what arrives on the wrong core all the same.
//! [`CoreCids`] keeps the core in every ID that the server gives out; the client chooses its first one (see
//! [`crate::steering`]).

use std::{
    hash::{DefaultHasher, Hasher},
    io,
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use pyralog_engine::{limits::CORES_MAX, types::CoreId};
use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::InvalidCid;

use crate::steering::{CID_BYTES, cid_for};

/// Bytes at the end of our connection IDs that prove that we made them.
const CID_PROOF_BYTES: usize = 4;

const _: () = assert!(CORES_MAX <= 256, "the core is read from one byte");
const _: () = assert!(CID_BYTES > CID_PROOF_BYTES + 1, "a connection ID must have random bytes");

/// Makes the kernel pick the socket of a datagram by its connection ID. Attached once, to any socket of the group,
/// after all of them are bound: the program's result is an index in the order of binding. Needs no privilege.
///
/// Errors: those of the operating system.
pub(super) fn attach_filter(group: &impl AsFd, cores: usize) -> io::Result<()> {
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let modulus = u32::try_from(cores).map_err(io::Error::other)?;
    let mut program = [
        instruction(0x30, 0, 0, 0),       // ldb [0]             the first byte of the datagram
        instruction(0x45, 0, 2, 0x80),    // jset #0x80, +0, +2  has it a long header?
        instruction(0x30, 0, 0, 6),       // ldb [6]             yes: after flags, version and the length of the ID
        instruction(0x05, 0, 0, 1),       // ja +1
        instruction(0x30, 0, 0, 1),       // ldb [1]             no: after the flags
        instruction(0x94, 0, 0, modulus), // mod #cores
        instruction(0x16, 0, 0, 0),       // ret a
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    Ok(setsockopt(group, AttachReusePortCbpf, &filter)?)
}

/// Makes connection IDs whose first byte names a core, and recognises them.
///
/// An ID is the steering byte, random bytes, and a proof: a keyed hash of both. All cores share the keys of stateless
/// resets, so a packet with a forged or a foreign ID must not be answered with a reset: it might be a valid one for
/// somebody's connection.
#[derive(Clone)]
pub(super) struct CoreCids {
    pub core: CoreId,
    pub cores: usize,
    pub key: [u8; 16],
}

impl CoreCids {
    fn proof(&self, open: &[u8]) -> [u8; CID_PROOF_BYTES] {
        // SipHash over a secret prefix and a text of fixed length. 32 bits stop blind forgery at line rate: one packet
        // in four billion draws a reset, which is then of no use.
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.key);
        hasher.write(open);
        let mut proof = [0; CID_PROOF_BYTES];
        proof.copy_from_slice(&hasher.finish().to_le_bytes()[..CID_PROOF_BYTES]);
        proof
    }
}

impl ConnectionIdGenerator for CoreCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut cid = [0; CID_BYTES];
        cid.copy_from_slice(&cid_for(self.core, self.cores));
        let (open, proof) = cid.split_at_mut(CID_BYTES - CID_PROOF_BYTES);
        proof.copy_from_slice(&self.proof(open));
        ConnectionId::new(&cid)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        let ours = cid.len() == CID_BYTES
            && usize::from(cid[0]) % self.cores == usize::from(self.core.0)
            && cid[CID_BYTES - CID_PROOF_BYTES..] == self.proof(&cid[..CID_BYTES - CID_PROOF_BYTES]);
        if ours { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(core: u16, cores: usize) -> CoreCids {
        CoreCids { core: CoreId(core), cores, key: [7; 16] }
    }

    #[test]
    fn only_the_ids_of_ones_own_core_and_key_are_valid() {
        for cores in [1usize, 2, 3, 5, 8, 256] {
            for core in 0..cores.min(8) as u16 {
                let cid = generator(core, cores).generate_cid();
                assert_eq!(usize::from(cid[0]) % cores, usize::from(core));
                assert!(generator(core, cores).validate(&cid).is_ok());
                let stranger = CoreCids { key: [8; 16], ..generator(core, cores) };
                assert!(stranger.validate(&cid).is_err(), "a forged ID passes");
                if cores > 1 {
                    let neighbour = generator((core + 1) % cores as u16, cores);
                    assert!(neighbour.validate(&cid).is_err(), "another core's ID passes");
                }
            }
        }
    }
}

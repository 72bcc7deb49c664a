//! Integers of one to ten bytes: seven bits a byte, the lowest first, the top bit set on all but the last (LEB128).
//!
//! Signed numbers are zigzag-mapped first (0, -1, 1, -2 … become 0, 1, 2, 3 …), so that small negative ones stay short.

/// Bytes of the longest varint: ten times seven bits hold 64.
pub(super) const VARINT_BYTES_MAX: usize = 10;

/// Bytes that `value` takes.
pub(super) fn unsigned_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Bytes that `value` takes.
pub(super) fn signed_len(value: i64) -> usize {
    unsigned_len(zigzag(value))
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Up to `N` bytes of varints on the stack, so that a row of them is appended to a buffer with one check of its
/// capacity.
pub(super) struct VarintRow<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> VarintRow<N> {
    /// An empty row.
    pub(super) fn new() -> Self {
        VarintRow { bytes: [0; N], len: 0 }
    }

    /// Appends `value`. Panics if the row is too short.
    #[inline]
    pub(super) fn unsigned(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.bytes[self.len] = value as u8 | 0x80;
            self.len += 1;
            value >>= 7;
        }
        self.bytes[self.len] = value as u8;
        self.len += 1;
        self
    }

    /// Appends `value`. Panics if the row is too short.
    #[inline]
    pub(super) fn signed(self, value: i64) -> Self {
        self.unsigned(zigzag(value))
    }

    /// Appends the row to `buffer`.
    #[inline]
    pub(super) fn append_to(self, buffer: &mut Vec<u8>) {
        let end = buffer.len() + self.len;
        if buffer.capacity() - buffer.len() >= N {
            // A copy of constant length is two moves, where one of variable length is a call.
            buffer.extend_from_slice(&self.bytes);
            buffer.truncate(end);
        } else {
            buffer.extend_from_slice(&self.bytes[..self.len]);
        }
    }
}

/// Reads varints and byte strings from the front of a slice. `None` means that the bytes end too early, or that a
/// varint has more than 64 bits; the position is then of no use any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads an unsigned number.
    #[inline]
    pub(super) fn unsigned(&mut self) -> Option<u64> {
        match self.rest.split_first()? {
            (&byte, rest) if byte < 0x80 => {
                self.rest = rest;
                Some(u64::from(byte))
            }
            _ => self.unsigned_of_many_bytes(),
        }
    }

    /// Reads a signed number.
    #[inline]
    pub(super) fn signed(&mut self) -> Option<i64> {
        self.unsigned().map(unzigzag)
    }

    /// Takes `len` bytes.
    #[inline]
    pub(super) fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(len).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    fn unsigned_of_many_bytes(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for (i, &byte) in self.rest.iter().take(VARINT_BYTES_MAX).enumerate() {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for the 64th bit only.
            if i == VARINT_BYTES_MAX - 1 && bits > 1 {
                return None;
            }
            value |= bits << (7 * i);
            if byte < 0x80 {
                self.rest = &self.rest[i + 1..];
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of<const N: usize>(row: VarintRow<N>) -> Vec<u8> {
        let (mut tight, mut roomy) = (Vec::new(), Vec::with_capacity(64));
        tight.reserve_exact(row.len);
        let room = tight.capacity();
        VarintRow { ..row }.append_to(&mut tight);
        assert_eq!(tight.capacity(), room, "a buffer grows that has room for the row");
        row.append_to(&mut roomy);
        assert_eq!(tight, roomy, "the room behind the row shows");
        tight
    }

    fn unsigned_bytes(value: u64) -> Vec<u8> {
        bytes_of(VarintRow::<VARINT_BYTES_MAX>::new().unsigned(value))
    }

    fn signed_bytes(value: i64) -> Vec<u8> {
        bytes_of(VarintRow::<VARINT_BYTES_MAX>::new().signed(value))
    }

    #[test]
    fn the_examples_of_the_format_document_hold() {
        assert_eq!(unsigned_bytes(0), [0x00]);
        assert_eq!(unsigned_bytes(127), [0x7f]);
        assert_eq!(unsigned_bytes(128), [0x80, 0x01]);
        assert_eq!(unsigned_bytes(300), [0xac, 0x02]);
        assert_eq!(signed_bytes(-1), [0x01]);
        assert_eq!(signed_bytes(1), [0x02]);
        assert_eq!(signed_bytes(-64), [0x7f]);
        assert_eq!(signed_bytes(64), [0x80, 0x01]);
    }

    #[test]
    fn a_varint_of_more_than_64_bits_or_without_an_end_is_refused() {
        let largest = unsigned_bytes(u64::MAX);
        assert_eq!(largest.len(), VARINT_BYTES_MAX);
        assert_eq!(Reader::new(&largest).unsigned(), Some(u64::MAX));
        let mut too_large = largest.clone();
        too_large[9] = 0x02;
        assert_eq!(Reader::new(&too_large).unsigned(), None);
        assert_eq!(Reader::new(&[0x80; 11]).unsigned(), None);
        assert_eq!(Reader::new(&[0x80]).unsigned(), None);
        assert_eq!(Reader::new(&[]).unsigned(), None);
    }

    proptest! {
        #[test]
        fn numbers_survive_the_round_trip_and_take_the_length_foretold(unsigned: u64, signed: i64, shift in 0_u32..64) {
            // The shift makes short numbers as likely as long ones.
            let (unsigned, signed) = (unsigned >> shift, signed >> shift);
            let row = bytes_of(VarintRow::<20>::new().unsigned(unsigned).signed(signed));
            prop_assert_eq!(row.len(), unsigned_len(unsigned) + signed_len(signed));
            let mut reader = Reader::new(&row);
            prop_assert_eq!(reader.unsigned(), Some(unsigned));
            prop_assert_eq!(reader.signed(), Some(signed));
            prop_assert!(reader.rest().is_empty());
        }
    }
}

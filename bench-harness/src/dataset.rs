//! What the harness writes: values that tell who wrote them, where, as the how manyth, and whether they are intact.
//!
//! A value is a head of 20 bytes (run, writer, partition, sequence, a check over these) and a fill taken from a fixed
//! noise at a place that the sequence names. All of it follows from (run, writer, partition, sequence), so that the
//! reader compares bytes with what must stand there instead of remembering what was written. Noise does not compress:
//! what is measured is the transport and the disk, not the data's redundancy.

/// Bytes of a value's head, and so the smallest record that can be checked.
pub const VALUE_BYTES_MIN: usize = 20;

/// Bytes of noise that values are cut from. Larger than a core's second-level cache would only measure the memory.
const NOISE_BYTES: usize = 64 << 10;

/// Who wrote a record, and as the how manyth into its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The connection that wrote it.
    pub writer: u16,
    /// The partition it was written to.
    pub partition: u16,
    /// Counts the writer's records in this partition, from 0.
    pub sequence: u64,
}

/// Why a value is not one of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It has another length.
    Length,
    /// Its head contradicts its own check.
    Head,
    /// It was written by another run.
    ForeignRun,
    /// Its fill is not what its head says.
    Fill,
}

/// Makes and recognises the values of one run.
#[derive(Clone, Debug)]
pub struct Dataset {
    run: u32,
    value_bytes: usize,
    noise: Vec<u8>,
}

impl Dataset {
    /// The data set of `run` with values of `value_bytes`, at least [`VALUE_BYTES_MIN`].
    pub fn new(run: u32, value_bytes: usize) -> Self {
        assert!(value_bytes >= VALUE_BYTES_MIN, "a value of {value_bytes} bytes cannot hold its head");
        let fill_bytes = value_bytes - VALUE_BYTES_MIN;
        let mut state = u64::from(run);
        let words = (NOISE_BYTES + fill_bytes).div_ceil(8);
        let noise = std::iter::repeat_with(|| splitmix(&mut state).to_le_bytes()).take(words).flatten().collect();
        Dataset { run, value_bytes, noise }
    }

    /// Bytes of every value.
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Writes the value of `identity` into `value`, which has [`Dataset::value_bytes`].
    pub fn write(&self, identity: Identity, value: &mut [u8]) {
        let (head, fill) = value.split_at_mut(VALUE_BYTES_MIN);
        head.copy_from_slice(&self.head(identity));
        fill.copy_from_slice(self.fill(identity));
    }

    /// Who wrote `value`.
    ///
    /// Errors: it is not, byte for byte, what this run wrote for that identity.
    pub fn read(&self, value: &[u8]) -> Result<Identity, Damage> {
        if value.len() != self.value_bytes {
            return Err(Damage::Length);
        }
        let (head, fill) = value.split_at(VALUE_BYTES_MIN);
        let identity = Identity {
            writer: u16::from_le_bytes(array(head, 4)),
            partition: u16::from_le_bytes(array(head, 6)),
            sequence: u64::from_le_bytes(array(head, 8)),
        };
        let run = u32::from_le_bytes(array(head, 0));
        if check(run, identity).to_le_bytes() != array(head, 16) {
            return Err(Damage::Head);
        }
        if run != self.run {
            return Err(Damage::ForeignRun);
        }
        if fill != self.fill(identity) {
            return Err(Damage::Fill);
        }
        Ok(identity)
    }

    fn head(&self, identity: Identity) -> [u8; VALUE_BYTES_MIN] {
        let mut head = [0; VALUE_BYTES_MIN];
        head[..4].copy_from_slice(&self.run.to_le_bytes());
        head[4..6].copy_from_slice(&identity.writer.to_le_bytes());
        head[6..8].copy_from_slice(&identity.partition.to_le_bytes());
        head[8..16].copy_from_slice(&identity.sequence.to_le_bytes());
        head[16..].copy_from_slice(&check(self.run, identity).to_le_bytes());
        head
    }

    fn fill(&self, identity: Identity) -> &[u8] {
        let start = check(self.run, identity) as usize % NOISE_BYTES;
        &self.noise[start..start + self.value_bytes - VALUE_BYTES_MIN]
    }
}

fn check(run: u32, identity: Identity) -> u32 {
    let who = u64::from(run) << 32 | u64::from(identity.writer) << 16 | u64::from(identity.partition);
    let mut state = who ^ identity.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    splitmix(&mut state) as u32
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// The next number of splitmix64 (Steele, Lea and Flood, 2014): enough chance for noise and for picking offsets.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Identity = Identity { writer: 3, partition: 7, sequence: 1 << 40 };

    fn value(dataset: &Dataset, identity: Identity) -> Vec<u8> {
        let mut value = vec![0; dataset.value_bytes()];
        dataset.write(identity, &mut value);
        value
    }

    #[test]
    fn a_value_tells_who_wrote_it_at_every_size() {
        for bytes in [VALUE_BYTES_MIN, VALUE_BYTES_MIN + 1, 100, 1024, 1 << 20] {
            let dataset = Dataset::new(42, bytes);
            assert_eq!(dataset.read(&value(&dataset, WHO)), Ok(WHO), "{bytes} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let dataset = Dataset::new(42, 100);
        let fine = value(&dataset, WHO);
        for bit in 0..fine.len() * 8 {
            let mut damaged = fine.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(dataset.read(&damaged).is_err(), "bit {bit}");
        }
        assert_eq!(dataset.read(&fine[1..]), Err(Damage::Length));
    }

    #[test]
    fn another_runs_values_are_foreign() {
        let (ours, theirs) = (Dataset::new(1, 100), Dataset::new(2, 100));
        assert_eq!(ours.read(&value(&theirs, WHO)), Err(Damage::ForeignRun));
    }
}

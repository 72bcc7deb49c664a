//! What the harness writes: records that tell who wrote them, where, as the how manyth, and whether they are intact.
//!
//! A value is a head of 20 bytes (run, writer, partition, sequence, a check over these) and a fill taken from fixed
//! bytes at a place that the sequence names. All of it, the length and the key too, follows from (run, writer,
//! partition, sequence), so that the reader compares with what must stand there instead of remembering what was
//! written. The fill is noise, which does not compress, unless a compressibility or a file of real data is asked for.

pub mod keys;
pub mod sizes;

pub use keys::{KeySpace, Keys};
pub use sizes::Sizes;

/// Bytes of a value's head, and so the smallest record that can be checked.
pub const VALUE_BYTES_MIN: usize = 20;

/// Bytes that values are cut from. Larger than a core's second-level cache would only measure the memory.
const NOISE_BYTES: usize = 64 << 10;

/// Bytes of a file of real data that are used, at most.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Bytes of which each has its share of zeros, if values are to be compressible: compressors find runs of this length.
const BLOCK_BYTES: usize = 64;

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

/// Makes and recognises the records of one run.
#[derive(Clone, Debug)]
pub struct Dataset {
    run: u32,
    sizes: Sizes,
    keys: Option<KeySpace>,
    /// What fills are cut from, with room behind it for the longest.
    source: Vec<u8>,
    starts: usize,
}

impl Dataset {
    /// The data set of `run` with values of such sizes, at least [`VALUE_BYTES_MIN`], filled with noise, without keys.
    pub fn new(run: u32, sizes: impl Into<Sizes>) -> Self {
        let mut state = u64::from(run);
        let noise = std::iter::repeat_with(|| splitmix(&mut state).to_le_bytes()).take(NOISE_BYTES / 8);
        Dataset { run, sizes: sizes.into(), keys: None, source: Vec::new(), starts: 0 }
            .filled_from(&noise.flatten().collect::<Vec<u8>>())
    }

    /// This data set with keys.
    pub fn with_keys(mut self, keys: Option<KeySpace>) -> Self {
        self.keys = keys;
        self
    }

    /// This data set with values of which such a fraction can be compressed away.
    pub fn compressible(self, fraction: f64) -> Self {
        let mut source = self.source[..self.starts].to_vec();
        let zeros = (fraction.clamp(0.0, 1.0) * BLOCK_BYTES as f64).round() as usize;
        source.chunks_mut(BLOCK_BYTES).for_each(|block| {
            let end = zeros.min(block.len());
            block[..end].fill(0);
        });
        self.filled_from(&source)
    }

    /// This data set with values cut from `payload`, over and over.
    pub fn filled_from(mut self, payload: &[u8]) -> Self {
        let fill_bytes = self.sizes.most().checked_sub(VALUE_BYTES_MIN);
        let fill_bytes = fill_bytes.expect("sizes"); // why: sizes that cannot hold a head are refused when read
        let payload = if payload.is_empty() { &[0] } else { &payload[..payload.len().min(PAYLOAD_BYTES_MAX)] };
        self.starts = payload.len();
        self.source = payload.iter().copied().cycle().take(payload.len() + fill_bytes).collect();
        self
    }

    /// Bytes of the largest value.
    pub fn value_bytes(&self) -> usize {
        self.sizes.most()
    }

    /// Bytes of the longest key.
    pub fn key_bytes(&self) -> usize {
        self.keys.as_ref().map_or(0, KeySpace::bytes_max)
    }

    /// Writes the value of `identity` into `value`, in place of what is there.
    pub fn write(&self, identity: Identity, value: &mut Vec<u8>) {
        let head = self.head(identity);
        value.clear();
        value.extend_from_slice(&head);
        value.extend_from_slice(self.fill(identity));
    }

    /// The key of `identity`, if records have keys.
    pub fn key(&self, identity: Identity) -> Option<&[u8]> {
        self.keys.as_ref()?.key(identity, self.chance(identity, 1))
    }

    /// Whether records have keys.
    pub fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// The partition that the keys give a writer's next batch; `None` without keys.
    pub fn partition(&self, turn: u64, chance: u64) -> Option<usize> {
        self.keys.as_ref().map(|keys| keys.partition(turn, chance))
    }

    /// Who wrote `value`.
    ///
    /// Errors: it is not, byte for byte, what this run wrote for that identity.
    pub fn read(&self, value: &[u8]) -> Result<Identity, Damage> {
        if value.len() < VALUE_BYTES_MIN {
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
        let expected = self.fill(identity);
        match fill == expected {
            true => Ok(identity),
            false if fill.len() != expected.len() => Err(Damage::Length),
            false => Err(Damage::Fill),
        }
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
        // Scaled, not divided: a reader does this for each of ten million records a second.
        let start = ((u64::from(check(self.run, identity)) * self.starts as u64) >> 32) as usize;
        let bytes = match &self.sizes {
            Sizes::Fixed(bytes) => *bytes,
            sizes => sizes.pick(self.chance(identity, 0)),
        };
        &self.source[start..start + bytes - VALUE_BYTES_MIN]
    }

    /// The chance by which one of the properties of a record is drawn.
    fn chance(&self, identity: Identity, property: u64) -> u64 {
        let mut state = u64::from(check(self.run, identity)) | property << 32;
        splitmix(&mut state)
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
        let mut value = Vec::new();
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
        assert_eq!(dataset.read(&fine[..99]), Err(Damage::Length));
        assert_eq!(dataset.read(&fine[..19]), Err(Damage::Length));
    }

    #[test]
    fn another_runs_values_are_foreign() {
        let (ours, theirs) = (Dataset::new(1, 100), Dataset::new(2, 100));
        assert_eq!(ours.read(&value(&theirs, WHO)), Err(Damage::ForeignRun));
    }

    #[test]
    fn values_of_many_sizes_with_keys_tell_who_wrote_them_too() {
        let keys = KeySpace::new(Keys::Uniform, 100, 8);
        let dataset = Dataset::new(42, "100..5000".parse::<Sizes>().unwrap()).with_keys(keys);
        let mut lengths = std::collections::BTreeSet::new();
        for sequence in 0..1000 {
            let who = Identity { sequence, ..WHO };
            let value = value(&dataset, who);
            lengths.insert(value.len());
            assert_eq!(dataset.read(&value), Ok(who));
            assert!(dataset.key(who).is_some());
        }
        assert!(lengths.len() > 800, "{}", lengths.len());
    }

    #[test]
    fn compressible_values_have_their_share_of_zeros_and_are_still_checked() {
        let dataset = Dataset::new(42, 20_020).compressible(0.75);
        let value = value(&dataset, WHO);
        let zeros = value.iter().filter(|byte| **byte == 0).count();
        assert!((14_800..15_300).contains(&zeros), "{zeros}");
        assert_eq!(dataset.read(&value), Ok(WHO));
    }

    #[test]
    fn a_payload_is_used_over_and_over() {
        let dataset = Dataset::new(42, 100).filled_from(b"abc");
        let value = value(&dataset, WHO);
        assert!(value[20..].windows(4).all(|window| window[0] == window[3]), "{value:?}");
        assert_eq!(dataset.read(&value), Ok(WHO));
    }
}

//! Which partition a record goes to, if the caller does not say.

use murmur2::{KAFKA_SEED, murmur2};
use pyralog_engine::types::PartitionIndex;

/// The partition of a key: murmur2 as in Kafka's default partitioner, so that data moved from Kafka keeps its
/// partitions.
///
/// Panics if the log has no partition.
pub fn partition_of_key(key: &[u8], partitions: u32) -> PartitionIndex {
    assert!(partitions > 0, "a log has at least one partition");
    PartitionIndex((murmur2(key, KAFKA_SEED) & 0x7fff_ffff) % partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafka() {
        // From Kafka's own UtilsTest.
        let known: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key, KAFKA_SEED) as i32, hash, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn a_negative_hash_is_made_positive_as_kafka_does_it() {
        // -973932308 & 0x7fffffff = 1173551340
        assert_eq!(partition_of_key(b"21", 1000), PartitionIndex(340));
        assert_eq!(partition_of_key(b"abc", 1000), PartitionIndex(107));
        assert_eq!(partition_of_key(b"", 1), PartitionIndex(0));
    }
}

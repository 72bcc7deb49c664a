//! Every bound of the engine with its reason. A limit that is checked anywhere is named here.

/// Bytes of a batch header; see `docs/FORMAT.md`.
pub const BATCH_HEADER_BYTES: usize = 80;

/// Bytes of a batch, header included. Bounds what one request can pin in memory, and lets a frame's length be checked
/// before anything is allocated. Eight times the record limit, so that a batch of large records still amortises its
/// header.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// Bytes of a record: key, value and headers together. The same order as the defaults of Kafka, NATS and Redpanda (1
/// MiB).
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// Bytes of a batch's records after decompression: what a reader may be made to allocate by 1 KiB of zstd.
pub const DECOMPRESSED_BYTES_MAX: usize = 32 << 20;

/// Records of a batch. A record takes at least 5 bytes, so this is reached before [`BATCH_BYTES_MAX`] only by records
/// with two bytes of key and value or fewer.
pub const BATCH_RECORDS_MAX: u32 = 1 << 20;

/// Headers of one record.
pub const RECORD_HEADERS_MAX: usize = 128;

/// Bytes of the name of a namespace or of a log. Both are folder names; ext4 and xfs allow 255.
pub const NAME_BYTES_MAX: usize = 128;

/// Partitions of one log.
pub const PARTITIONS_PER_LOG_MAX: u32 = 1024;

/// Logs of one server. The catalogue is one JSON file that is written whole.
pub const LOGS_MAX: usize = 10_000;

/// Cores of one server: the connection ID's steering byte counts to 256.
pub const CORES_MAX: usize = 256;

/// Bytes of the header block at the start of a segment file: one page, so that the first batch is aligned for any
/// device.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;

/// The smallest segment that may be configured: room for the header block and one batch of the largest size.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 20;

/// The largest alignment of O_DIRECT that we accept from a device.
pub const DEVICE_BLOCK_BYTES_MAX: u64 = 4096;
/// The smallest: what a drive writes whole or not at all.
pub const DEVICE_BLOCK_BYTES_MIN: u64 = 512;

/// Bytes that one flush group takes at most. Large enough for full device bandwidth (2.5 GB/s is reached from 1 MiB
/// on), small enough that a group commit is not felt as a stall. At least one batch of the largest size must fit.
pub const FLUSH_GROUP_BYTES_MAX: usize = 8 << 20;

/// Bytes between two entries of the sparse offset index: a lookup scans at most this much, some 80 single-record
/// batches.
pub const INDEX_INTERVAL_BYTES: u64 = 16 << 10;

/// Idempotent producers that a partition knows; beyond, it forgets the one that wrote longest ago. A producer that
/// waited that long is refused, and has to begin a new epoch. Each takes some 200 bytes, so all of them 0.8 MiB a
/// partition.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 4096;

/// Batches of a producer that are known again when they are repeated: as many as it may have in flight to a partition.
/// Kafka's number, so that its clients' habits fit; ours has one in flight.
pub const PRODUCER_BATCHES_KEPT: usize = 5;

/// Sealed segments of a core whose file and index are kept open and loaded: enough for all that is read at once, few
/// enough for any limit on open files.
pub const OPEN_SEALED_SEGMENTS_MAX: usize = 256;

/// Bytes of one fetch's answer, whatever the client asked for, unless a single batch is larger.
pub const FETCH_BYTES_MAX: u32 = 4 << 20;

/// How long one fetch may wait for data, in milliseconds.
pub const FETCH_WAIT_MS_MAX: u32 = 30_000;

/// Replicas of a partition, and slots for them: one byte holds a set of them. Twice the largest factor in use anywhere
/// is room enough, and each slot has every eighth epoch for its own, which leaves it 2^29 reigns.
pub const REPLICAS_MAX: u8 = 8;

/// Bytes that a leader has sent to one follower and does not know to be written there: what a slow follower costs. Two
/// batches of the largest size, so that one can be sent while the other is written.
pub const REPLICATION_WINDOW_BYTES: u64 = 2 * BATCH_BYTES_MAX as u64;

const _: () = assert!(BATCH_HEADER_BYTES <= 96, "the header is at most 96 bytes");
const _: () = assert!(RECORD_BYTES_MAX < BATCH_BYTES_MAX, "the largest record must fit into a batch");
const _: () = assert!(SEGMENT_BYTES_MIN > SEGMENT_HEADER_BYTES + BATCH_BYTES_MAX as u64, "a segment must hold a batch");
const _: () = assert!(FLUSH_GROUP_BYTES_MAX >= BATCH_BYTES_MAX, "a flush group must hold a batch");
const _: () = assert!(BATCH_BYTES_MAX <= u32::MAX as usize, "lengths are u32 on disk");

//! The bounds that are part of the program, for `docs/CONFIG.md`.

use pyralog_engine::limits;
use pyralog_tuning::reference::FixedLimit;

/// All of them that a user can meet.
pub fn fixed_limits() -> Vec<FixedLimit> {
    let bytes = |what, bound: u64, reason| FixedLimit { what, bound, is_bytes: true, reason };
    let count = |what, bound: u64, reason| FixedLimit { what, bound, is_bytes: false, reason };
    vec![
        bytes(
            "a record: key, value and headers together",
            limits::RECORD_BYTES_MAX as u64,
            "the same order as elsewhere; larger things belong into an object store, and their address into the log",
        ),
        count(
            "headers of a record",
            limits::RECORD_HEADERS_MAX as u64,
            "they describe the record, they are not the record",
        ),
        bytes(
            "a batch, as it is sent and stored",
            limits::BATCH_BYTES_MAX as u64,
            "bounds what one request pins in memory; eight of the largest records",
        ),
        bytes(
            "a batch after decompression",
            limits::DECOMPRESSED_BYTES_MAX as u64,
            "bounds what a reader can be made to allocate by a small batch",
        ),
        count(
            "records of a batch",
            u64::from(limits::BATCH_RECORDS_MAX),
            "reached before the bytes only by empty records",
        ),
        bytes(
            "the answer to a fetch",
            u64::from(limits::FETCH_BYTES_MAX),
            "unless a single batch is larger; clients ask again",
        ),
        count("milliseconds that a fetch waits for records", u64::from(limits::FETCH_WAIT_MS_MAX), "clients ask again"),
        count(
            "bytes of the name of a namespace or a log",
            limits::NAME_BYTES_MAX as u64,
            "names are folders; file systems allow 255",
        ),
        count("partitions of a log", u64::from(limits::PARTITIONS_PER_LOG_MAX), "each has files and memory of its own"),
        count("logs of a server", limits::LOGS_MAX as u64, "the catalogue is one file that is written whole"),
        count("cores of a server", limits::CORES_MAX as u64, "one byte of a connection's ID names its core"),
    ]
}

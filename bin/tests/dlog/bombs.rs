//! Batches that are small on the wire and huge after decompression: a client that sends them is believed by the server,
//! which never decompresses, and every reader refuses them before they take memory.

use std::{
    io::{self, Read},
    process::{Command, Output},
};

use bytes::Bytes;
use pyralog_engine::{limits::DECOMPRESSED_BYTES_MAX, record::BatchBuilder};
use pyralog_net::client::{Codec, Error, FetchOptions, LogId, Offset, PartitionId, PyralogClient};

use crate::support::{Server, dlog, failed, scratch};

const GIB: u64 = 1 << 30;

/// A batch of one record that claims to be `declared` bytes long after decompression, and is a GiB of zeros.
fn bomb(frame: &[u8], declared: u32) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::Zstd);
    builder.push(None, &[0; 1000], &[], 1).unwrap();
    let mut batch = builder.finish().unwrap()[..80].to_vec();
    batch.extend_from_slice(&declared.to_le_bytes());
    batch.extend_from_slice(frame);
    let body_bytes = (batch.len() - 80) as u32;
    batch[36..40].copy_from_slice(&body_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&batch[36..]);
    batch[32..36].copy_from_slice(&crc.to_le_bytes());
    Bytes::from(batch)
}

/// A GiB of zeros as a Zstandard frame of some tens of KiB.
fn gib_of_zeros() -> Vec<u8> {
    let frame = zstd::stream::encode_all(io::repeat(0).take(GIB), 3).unwrap();
    assert!(frame.len() < 200 << 10, "{} bytes", frame.len());
    frame
}

/// Consumes with less address space than a bomb asks for: who decompressed it would die of it.
fn consume_within_a_gib(server: &Server, from: &str) -> Output {
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -v 1048576; exec "$0" "$@""#, env!("CARGO_BIN_EXE_dlog")]);
    limited.args(["--server", &server.address, "consume", "a", "--from", from]).output().unwrap()
}

#[test]
fn a_bomb_is_stored_as_it_was_sent_and_refused_by_every_reader() {
    let root = scratch();
    let data = root.path().join("data");
    let server = Server::start(&data, &[]);
    server.run(&["log", "create", "a"]);
    let frame = gib_of_zeros();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = PyralogClient::connect(&server.address).await.unwrap();
        let log: LogId = "a".parse().unwrap();
        let partition = client.partition(&log, PartitionId(0)).await.unwrap();
        // One says what it is, one what is allowed, one much less.
        for declared in [GIB as u32, DECOMPRESSED_BYTES_MAX as u32, 1000] {
            partition.append(bomb(&frame, declared), None).await.unwrap();
        }
        client.produce_to(&log, PartitionId(0), None, "behind them").await.unwrap();
        for (offset, words) in [(0, "1073741824 bytes after decompression"), (1, "longer than it declares")] {
            let options = FetchOptions { max_bytes: 1, ..FetchOptions::default() };
            let fetched = client.fetch(&log, PartitionId(0), Offset(offset), options).await.unwrap();
            let error = fetched.records().unwrap_err();
            assert!(matches!(error, Error::Batch(_)) && error.to_string().contains(words), "{error}");
        }
        let behind = client.fetch(&log, PartitionId(0), Offset(3), FetchOptions::default()).await.unwrap();
        assert_eq!(behind.records().unwrap()[0].value, "behind them");
        client.close().await;
    });
    for offset in ["0", "1", "2"] {
        let (code, message) = failed(consume_within_a_gib(&server, offset));
        assert!(code == 1 && message.contains("decompress"), "{message}");
    }
    let output = consume_within_a_gib(&server, "3");
    assert_eq!(output.stdout, b"behind them\n", "{}", String::from_utf8_lossy(&output.stderr));
    server.stop();
    let dumped = dlog().args(["dump", "--records", "--partition", "a/0"]).arg(&data).output().unwrap();
    let text = String::from_utf8_lossy(&dumped.stdout);
    assert!(text.contains("1073741824 bytes after decompression") && text.contains("behind them"), "{text}");
}

//! The performance guide's custom load test, word for word, with a `main` around it.
//!
//! `cargo run --release --example load_test [SERVER]`; the server is 127.0.0.1:9092 if none is named.

use dlog::client::{Error, ErrorCode, Result};

#[tokio::main]
async fn main() -> Result<()> {
    guide::run(&std::env::args().nth(1).unwrap_or("127.0.0.1:9092".to_owned())).await
}

/// Creates the log, unless it is there.
async fn ensure_log(client: &dlog::client::PyralogClient, log_id: &dlog::client::LogId) -> Result<()> {
    match client.create_log(log_id, 4, None).await {
        Err(Error::Server(error)) if error.code == ErrorCode::LOG_EXISTS => Ok(()),
        outcome => outcome.map(drop),
    }
}

#[rustfmt::skip] // The guide's own lines.
mod guide {
use dlog::prelude::*;
use std::time::Instant;

async fn benchmark_writes(
    client: &PyralogClient,
    log_id: LogId,
    num_records: usize,
    batch_size: usize,
) {
    let start = Instant::now();
    
    for batch_num in 0..(num_records / batch_size) {
        let records: Vec<_> = (0..batch_size)
            .map(|i| {
                let key = format!("key-{}-{}", batch_num, i);
                let value = format!("value-{}", i);
                (
                    Some(Bytes::from(key)),
                    Bytes::from(value),
                )
            })
            .collect();
        
        client.produce_batch(log_id.clone(), records).await.unwrap();
    }
    
    let elapsed = start.elapsed();
    let ops_per_sec = num_records as f64 / elapsed.as_secs_f64();
    
    println!("Throughput: {:.0} ops/sec", ops_per_sec);
    println!("Avg latency: {:.2}ms", elapsed.as_millis() as f64 / num_records as f64);
}

pub async fn run(server: &str) -> Result<()> {
    let client = PyralogClient::connect(server).await?;
    let log_id = LogId::new("load-test")?;
    super::ensure_log(&client, &log_id).await?;
    benchmark_writes(&client, log_id, 100_000, 1000).await;
    Ok(())
}
}

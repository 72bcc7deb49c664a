//! The performance guide's measurement of the latency distribution, word for word, with imports and a `main` around it.
//!
//! `cargo run --release --example latency_distribution [SERVER]`; the server is 127.0.0.1:9092 if none is named.

use std::time::Instant;

use dlog::prelude::*;

#[tokio::main]
async fn main() -> Result<()> {
    let server = std::env::args().nth(1).unwrap_or("127.0.0.1:9092".to_owned());
    let client = PyralogClient::connect(server).await?;
    let log_id = LogId::new("latency")?;
    match client.create_log(&log_id, 1, None).await {
        Err(error) if error.code() != Some(dlog::client::ErrorCode::LOG_EXISTS) => return Err(error),
        _ => {}
    }
    measure(client, log_id, "key", "value").await
}

#[rustfmt::skip]
async fn measure(client: PyralogClient, log_id: LogId, key: &'static str, value: &'static str) -> Result<()> {
use hdrhistogram::Histogram;

let mut histogram = Histogram::<u64>::new(3).unwrap();

for _ in 0..10000 {
    let start = Instant::now();
    client.produce(log_id.clone(), key, value).await?;
    let latency = start.elapsed().as_micros() as u64;
    histogram.record(latency).unwrap();
}

println!("p50: {}μs", histogram.value_at_quantile(0.50));
println!("p99: {}μs", histogram.value_at_quantile(0.99));
println!("p999: {}μs", histogram.value_at_quantile(0.999));
println!("max: {}μs", histogram.max());
Ok(())
}

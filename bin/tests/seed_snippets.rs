//! The performance guide's two Rust snippets are examples of ours, word for word: this holds the guide's text against
//! them.

const CUSTOM_LOAD_TEST: &str = r#"use dlog::prelude::*;
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
"#;

const LATENCY_DISTRIBUTION: &str = r#"use hdrhistogram::Histogram;

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
"#;

#[test]
fn the_custom_load_test_stands_in_its_example_word_for_word() {
    assert!(include_str!("../examples/load_test.rs").contains(CUSTOM_LOAD_TEST));
}

#[test]
fn the_latency_distribution_stands_in_its_example_word_for_word() {
    assert!(include_str!("../examples/latency_distribution.rs").contains(LATENCY_DISTRIBUTION));
}

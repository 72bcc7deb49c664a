//! How long one write takes through a real server, durable, with none other in flight.

mod support;

use std::time::Instant;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pyralog_engine::record::{BatchBuilder, Codec};
use pyralog_net::client::AppendOptions;

fn write_latency(criterion: &mut Criterion) {
    let served = support::served("write_latency");
    let mut group = criterion.benchmark_group("write_latency");
    for bytes in [100, 1000, 10_000] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &bytes, |bencher, bytes| {
            let value = vec![b'v'; *bytes];
            bencher.iter_custom(|times| {
                served.runtime.block_on(async {
                    let begin = Instant::now();
                    for n in 0..times {
                        let ack = served.partition.append(batch(&value, n), AppendOptions::default());
                        ack.await.expect("an ack");
                    }
                    begin.elapsed()
                })
            });
        });
    }
    group.finish();
}

/// A batch of one record, built and checksummed within the time that is measured, as a client does.
fn batch(value: &[u8], time: u64) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(None, value, &[], time as i64).expect("a record");
    builder.finish().expect("a batch")
}

criterion_group!(benches, write_latency);
criterion_main!(benches);

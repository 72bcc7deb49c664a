//! How long one read of one record takes through a real server, with none other in flight.

mod support;

use std::time::Instant;

use bench_harness::{dataset::splitmix, target::at_once};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use pyralog_engine::{
    record::{BatchBuilder, Codec, split_batches},
    types::{AckLevel, Offset},
};
use support::Served;

/// Records of each size that there are to be read.
const RECORDS: u64 = 2000;

fn read_latency(criterion: &mut Criterion) {
    let served = support::served("read_latency");
    let mut group = criterion.benchmark_group("read_latency");
    for bytes in [100, 1000, 10_000] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &bytes, |bencher, bytes| {
            let first = fill(&served, *bytes);
            let mut chance = 1;
            bencher.iter_custom(|times| {
                served.runtime.block_on(async {
                    let begin = Instant::now();
                    for _ in 0..times {
                        let offset = first + splitmix(&mut chance) % RECORDS;
                        let reply = served.partition.fetch(Offset(offset), at_once(1)).await.expect("a reply");
                        assert_eq!(decode(reply.batches, offset), *bytes);
                    }
                    begin.elapsed()
                })
            });
        });
    }
    group.finish();
}

/// Writes records of this size, each in a batch of its own; the offset of the first.
fn fill(served: &Served, bytes: usize) -> u64 {
    let value = vec![b'v'; bytes];
    let batch = |n: u64| {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, &value, &[], n as i64).expect("a record");
        builder.finish().expect("a batch")
    };
    served.runtime.block_on(async {
        let acks = (0..RECORDS).map(|n| served.partition.append(batch(n), Some(AckLevel::Durable)));
        let acks = join_all(acks.collect::<Vec<_>>()).await;
        acks.into_iter().map(|ack| ack.expect("an ack").base_offset.0).min().expect("an offset")
    })
}

/// The length of the value at `offset`, decoded and checked as a client does.
fn decode(batches: bytes::Bytes, offset: u64) -> usize {
    let batch = split_batches(batches).next().expect("a batch").expect("a sound batch");
    let records = batch.records().expect("records");
    let mut records = records.borrowed().map(|record| record.expect("a sound record"));
    records.find(|record| record.offset.0 == offset).expect("the record").value.len()
}

criterion_group!(benches, read_latency);
criterion_main!(benches);

//! The client against a real server: what it promises, over real QUIC and real disks.

mod support;

use std::{future::Future, time::Duration};

use bytes::Bytes;
use pyralog_engine::{
    error::ErrorClass,
    limits::RECORD_BYTES_MAX,
    record::{BatchBuilder, split_batches},
    shard::stages::Stage,
};
use pyralog_net::{
    client::{
        AckLevel, AppendOptions, Codec, Error, ErrorCode, FetchOptions, LogChanges, LogId, LogSettings, Offset,
        OffsetAt, PartitionId, ProducerOptions, PyralogClient, Record, StartAt, partition_of_key,
    },
    fingerprint::Fingerprint,
};
use support::{End, Relay, TestServer, data_dir};

const FIRST: PartitionId = PartitionId(0);

/// Runs `story` with a server of `cores` cores and a client of it; both end in good order.
fn with_server<F: Future<Output = ()>>(cores: usize, story: impl FnOnce(PyralogClient, LogId) -> F) {
    let data = data_dir();
    let server = TestServer::start(data.path(), cores);
    run(async {
        let client = server.client().await;
        let log = LogId::new("tests/log").unwrap();
        story(client.clone(), log).await;
        client.close().await;
    });
    server.stop(End::Drained);
}

/// No story takes this long unless something waits for ever.
fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(60), story).await };
    let outcome = runtime.block_on(bounded).expect("the story comes to an end");
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// All values of a partition, as texts.
async fn values(client: &PyralogClient, log: &LogId, partition: PartitionId) -> Vec<String> {
    let found = client.find_offset(log, partition, OffsetAt::Latest).await.unwrap();
    let (mut at, mut values) = (found.start_offset, Vec::new());
    while at < found.high_watermark {
        let fetched = client.fetch(log, partition, at, FetchOptions::default()).await.unwrap();
        at = fetched.next_offset;
        let records = fetched.records().unwrap();
        values.extend(records.iter().map(|record| String::from_utf8(record.value.to_vec()).unwrap()));
    }
    values
}

fn numbered(count: usize) -> Vec<(Option<Bytes>, Bytes)> {
    (0..count).map(|i| (None, Bytes::from(format!("value-{i}")))).collect()
}

#[test]
fn records_come_back_with_key_headers_timestamp_and_order() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 4, None).await.unwrap();
        let record = Record::new("v").with_key("k").with_header("h", "x").with_timestamp_ms(1234);
        let ack = client.produce_batch(&log, [record.with_partition(PartitionId(2)), Record::new("w")]).await.unwrap();
        assert_eq!(ack.count(), 2);
        let fetched = client.fetch(&log, PartitionId(2), Offset(0), FetchOptions::default()).await.unwrap();
        let record = fetched.records().unwrap().remove(0);
        assert_eq!((record.offset, record.timestamp_ms), (Offset(0), 1234));
        assert_eq!((record.key, record.value), (Some(Bytes::from("k")), Bytes::from("v")));
        assert_eq!(record.headers, [(Bytes::from("h"), Bytes::from("x"))]);
    });
}

#[test]
fn keys_go_to_their_partitions_and_records_without_one_stay_together() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 8, None).await.unwrap();
        for key in ["a", "b", "c", "d", "21"] {
            let ack = client.produce(&log, key, "v").await.unwrap();
            assert_eq!(ack.partition, partition_of_key(key.as_bytes(), 8));
        }
        let mut seen = Vec::new();
        for _ in 0..8 {
            let ack = client.produce_batch(&log, numbered(10)).await.unwrap();
            assert_eq!((ack.partitions.len(), ack.partitions[0].count), (1, 10), "a partition per batch");
            seen.push(ack.partitions[0].partition);
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 8, "batches without keys take turns");
        let chosen = client.produce_to(&log, PartitionId(7), "a", "v").await.unwrap();
        assert_eq!(chosen.partition, PartitionId(7), "an explicit partition wins over the key");
    });
}

#[test]
fn a_batch_over_many_partitions_is_acknowledged_part_by_part() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 4, Some(AckLevel::Durable)).await.unwrap();
        let records: Vec<_> = (0..1000).map(|i| (Some(Bytes::from(format!("key-{i}"))), Bytes::from("v"))).collect();
        let ack = client.produce_batch(&log, records.clone()).await.unwrap();
        assert_eq!((ack.count(), ack.level), (1000, Some(AckLevel::Durable)));
        let first = partition_of_key(b"key-0", 4);
        assert_eq!(ack.partitions[0].partition, first, "in the order of the input");
        for part in &ack.partitions {
            let keys = records.iter().filter_map(|(key, _)| key.clone());
            let expected: Vec<_> = keys.filter(|key| partition_of_key(key, 4) == part.partition).collect();
            let fetched = client.fetch(&log, part.partition, part.base_offset, FetchOptions::default()).await.unwrap();
            let keys: Vec<_> = fetched.records().unwrap().into_iter().filter_map(|record| record.key).collect();
            assert_eq!(keys, expected);
        }
        assert_eq!(client.produce_batch(&log, Vec::<Record>::new()).await.unwrap().count(), 0);
    });
}

#[test]
fn many_requests_in_flight_are_all_answered_and_none_twice() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 2, None).await.unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for i in 0..5000u32 {
            let (client, log) = (client.clone(), log.clone());
            calls.spawn(async move { client.produce_to(&log, PartitionId(i % 2), None, i.to_string()).await });
        }
        let mut offsets = [Vec::new(), Vec::new()];
        while let Some(ack) = calls.join_next().await {
            let ack = ack.unwrap().unwrap();
            offsets[ack.partition.0 as usize].push(ack.offset.0);
        }
        for offsets in &mut offsets {
            offsets.sort_unstable();
            assert!(offsets.iter().copied().eq(0..2500));
        }
    });
}

#[test]
fn what_one_handle_sends_is_stored_in_that_order() {
    with_server(1, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        let handle = client.partition(&log, FIRST).await.unwrap();
        let batch = |i: usize| {
            let mut builder = BatchBuilder::new(Codec::None);
            builder.push(None, format!("value-{i}").as_bytes(), &[], 0).unwrap();
            builder.finish().unwrap()
        };
        let pending: Vec<_> = (0..1000).map(|i| handle.append(batch(i), Some(AckLevel::Written))).collect();
        for (i, pending) in pending.into_iter().enumerate() {
            let appended = pending.await.unwrap();
            assert_eq!((appended.base_offset, appended.level >= AckLevel::Written), (Offset(i as u64), true));
        }
        let reply = handle.fetch(Offset(0), FetchOptions::default()).await.unwrap();
        assert_eq!(reply.high_watermark, Offset(1000));
        assert!(!reply.batches.is_empty());
    });
}

#[test]
fn a_long_poll_ends_when_a_record_comes_and_otherwise_empty_at_its_time() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        let options = FetchOptions { max_wait: Duration::from_millis(50), ..FetchOptions::default() };
        let empty = client.fetch(&log, FIRST, Offset(0), options).await.unwrap();
        assert!(empty.is_empty());
        assert_eq!(empty.next_offset, Offset(0));
        let options = FetchOptions { max_wait: Duration::from_secs(25), ..options };
        let (fetched, ack) =
            tokio::join!(client.fetch(&log, FIRST, Offset(0), options), client.produce(&log, None, "late"));
        assert_eq!(ack.unwrap().offset, Offset(0));
        assert_eq!(fetched.unwrap().records().unwrap()[0].value, "late");
    });
}

#[test]
fn an_offset_out_of_range_comes_with_the_range() {
    with_server(1, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        client.produce_batch(&log, numbered(3)).await.unwrap();
        let error = client.fetch(&log, FIRST, Offset(9), FetchOptions::default()).await.unwrap_err();
        assert_eq!(error.offset_range(), Some((Offset(0), Offset(3))));
        assert!(!error.is_retriable());
        let error = client.produce_to(&log, PartitionId(5), None, "v").await.unwrap_err();
        assert_eq!((error.code(), error.detail("partitions")), (Some(ErrorCode::PARTITION_OUT_OF_RANGE), Some(1)));
        let missing = LogId::new("missing").unwrap();
        let error = client.produce(&missing, None, "v").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::UNKNOWN_LOG));
        assert!(error.to_string().contains("default/missing"), "{error}");
    });
}

#[test]
fn offsets_are_found_by_time_and_at_both_ends() {
    with_server(1, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        for timestamp_ms in [1000, 2000, 3000] {
            client.produce_batch(&log, [Record::new("v").with_timestamp_ms(timestamp_ms)]).await.unwrap();
        }
        assert_eq!(client.earliest(&log, FIRST).await.unwrap(), Offset(0));
        assert_eq!(client.latest(&log, FIRST).await.unwrap(), Offset(3));
        for (timestamp_ms, offset) in [(0, 0), (1500, 1), (3000, 2), (3001, 3)] {
            let found = client.find_offset(&log, FIRST, OffsetAt::Timestamp(timestamp_ms)).await.unwrap();
            assert_eq!(found.offset, Offset(offset), "at {timestamp_ms} ms");
        }
    });
}

#[test]
fn logs_are_listed_described_deleted_and_made_anew_without_mixing_them_up() {
    with_server(2, |client, log| async move {
        let made = client.create_log(&log, 3, None).await.unwrap();
        let again = client.create_log(&log, 3, None).await.unwrap_err();
        assert_eq!(again.code(), Some(ErrorCode::LOG_EXISTS));
        assert_eq!(client.list_logs().await.unwrap().len(), 1);
        assert_eq!(client.describe_log(&log).await.unwrap(), made);
        client.produce_batch_to(&log, FIRST, numbered(5)).await.unwrap();

        // Another client deletes it and makes it anew; ours still knows the old number.
        let other = client.clone();
        other.delete_log(&log).await.unwrap();
        other.create_log(&log, 1, None).await.unwrap();
        let ack = client.produce_to(&log, FIRST, None, "new").await.unwrap();
        assert_eq!(ack.offset, Offset(0));
        assert_eq!(values(&client, &log, FIRST).await, ["new"]);
        client.delete_log(&log).await.unwrap();
        let error = client.produce(&log, None, "v").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::UNKNOWN_LOG));
        assert!(client.list_logs().await.unwrap().is_empty());
        assert_eq!(client.describe_server().await.unwrap().cores, 2);
    });
}

#[test]
fn a_client_that_did_not_see_the_deletion_finds_the_new_log() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 2);
    run(async {
        let (ours, other) = (server.client().await, server.client().await);
        let log = LogId::new("log").unwrap();
        ours.create_log(&log, 1, None).await.unwrap();
        ours.produce(&log, None, "old").await.unwrap();
        let mut subscription = ours.subscribe(&log, FIRST, Offset(0), FetchOptions::default()).await.unwrap();
        assert_eq!(subscription.next().await.unwrap().unwrap().value, "old");
        other.delete_log(&log).await.unwrap();
        let error = subscription.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::UNKNOWN_PARTITION), "a subscription never moves to another log");
        other.create_log(&log, 2, None).await.unwrap();
        let ack = ours.produce_to(&log, PartitionId(1), None, "new").await.unwrap();
        assert_eq!(ack.offset, Offset(0));
    });
    server.stop(End::Drained);
}

#[test]
fn records_at_the_limit_pass_and_one_byte_more_is_refused_before_it_is_sent() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        let largest = Bytes::from(vec![7; RECORD_BYTES_MAX]);
        client.produce(&log, None, largest.clone()).await.unwrap();
        let error = client.produce(&log, None, vec![7; RECORD_BYTES_MAX + 1]).await.unwrap_err();
        assert!(matches!(error, Error::Batch(_)), "{error}");
        assert!(error.to_string().contains(&RECORD_BYTES_MAX.to_string()), "{error}");
        // More than fits into one batch, and than the windows of a stream.
        let many: Vec<Record> = (0..20).map(|_| Record::new(largest.clone())).collect();
        let ack = client.produce_batch(&log, many).await.unwrap();
        assert_eq!(ack.count(), 20);
        let (mut at, mut seen) = (Offset(0), 0);
        while at < Offset(21) {
            let fetched = client.fetch(&log, FIRST, at, FetchOptions::default()).await.unwrap();
            at = fetched.next_offset;
            for record in fetched {
                assert_eq!(record.unwrap().value, largest);
                seen += 1;
            }
        }
        assert_eq!(seen, 21);
    });
}

#[test]
fn an_append_says_where_its_time_went_if_it_is_asked_to() {
    with_server(1, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        let handle = client.partition(&log, FIRST).await.unwrap();
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(None, b"value", &[], 0).unwrap();
        let batch = builder.finish().unwrap();
        let options = AppendOptions { ack: Some(AckLevel::Durable), timed: true, ..Default::default() };
        for _ in 0..2 {
            let begun = std::time::Instant::now();
            let clock = handle.append(batch.clone(), options).await.unwrap().clock.unwrap();
            assert!(clock.stages().get(Stage::Disk) > Duration::ZERO, "{clock:?}");
            assert!(clock.stages().get(Stage::Ack) > Duration::ZERO, "{clock:?}");
            assert!(clock.stages().total() <= begun.elapsed(), "{clock:?}");
        }
        assert!(client.append_batch(&log, FIRST, batch.clone(), options).await.unwrap().clock.is_some());
        assert_eq!(handle.append(batch, None).await.unwrap().clock, None);
    });
}

#[test]
fn batches_of_the_largest_size_pass_in_both_directions() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        let handle = client.partition(&log, FIRST).await.unwrap();
        let mut builder = BatchBuilder::new(Codec::None);
        while builder.push(None, &[9; 500_000], &[], 0).is_ok() {}
        let batch = builder.finish().unwrap();
        handle.append(batch.clone(), None).await.unwrap();
        let reply = handle.fetch(Offset(0), FetchOptions { max_bytes: 1, ..Default::default() }).await.unwrap();
        assert_eq!(reply.batches.len(), batch.len());
    });
}

#[test]
fn a_subscription_brings_everything_in_order_and_waits_for_more() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        client.produce_batch(&log, numbered(2000)).await.unwrap();
        let mut subscription = client.subscribe(&log, FIRST, Offset(500), FetchOptions::default()).await.unwrap();
        let mut tail = client.subscribe(&log, FIRST, StartAt::Latest, FetchOptions::default()).await.unwrap();
        for i in 500..2000 {
            let record = subscription.next().await.unwrap().unwrap();
            assert_eq!((record.offset, record.value), (Offset(i), Bytes::from(format!("value-{i}"))));
        }
        let (next, ack) = tokio::join!(subscription.next(), client.produce(&log, None, "more"));
        assert_eq!(ack.unwrap().offset, Offset(2000));
        assert_eq!(next.unwrap().unwrap().value, "more");
        assert_eq!(tail.next().await.unwrap().unwrap().value, "more");
    });
}

#[test]
fn subscriptions_that_nobody_reads_hold_up_nobody() {
    with_server(1, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        let value = Bytes::from(vec![1; 64 << 10]);
        // More than a stream's window, so that the server cannot send it all.
        for _ in 0..24 {
            let records: Vec<Record> = (0..16).map(|_| Record::new(value.clone())).collect();
            client.produce_batch(&log, records).await.unwrap();
        }
        let mut idle = Vec::new();
        for _ in 0..10 {
            let mut subscription = client.subscribe(&log, FIRST, Offset(0), FetchOptions::default()).await.unwrap();
            subscription.next().await.unwrap().unwrap();
            idle.push(subscription);
        }
        for _ in 0..200 {
            client.produce(&log, None, "v").await.unwrap();
        }
        let last = &mut idle[9];
        for i in 1..24 * 16 {
            assert_eq!(last.next().await.unwrap().unwrap().offset, Offset(i), "it goes on where it was");
        }
    });
}

#[test]
fn a_producer_sends_an_idle_tail_and_keeps_the_order() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 4, None).await.unwrap();
        let producer = client.producer(ProducerOptions { batch_records: 100, ..ProducerOptions::default() });
        let mut last = None;
        for i in 0..1050 {
            let record = Record::new(format!("value-{i}")).with_partition(PartitionId(1));
            last = Some(producer.send(&log, record).await.unwrap());
        }
        // Nobody flushes: the timer sends the last fifty.
        let ack = last.unwrap().await.unwrap();
        assert_eq!((ack.partition, ack.offset), (PartitionId(1), Offset(1049)));
        let expected: Vec<String> = (0..1050).map(|i| format!("value-{i}")).collect();
        assert_eq!(values(&client, &log, PartitionId(1)).await, expected);
        producer.flush().await.unwrap();

        let doomed = Record::new("v").with_partition(PartitionId(9));
        let delivery = producer.send(&log, doomed).await.unwrap();
        let error = producer.flush().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PARTITION_OUT_OF_RANGE));
        assert_eq!(delivery.await.unwrap_err().code(), Some(ErrorCode::PARTITION_OUT_OF_RANGE));
        producer.flush().await.unwrap();
    });
}

#[test]
fn a_producer_waits_when_too_much_is_in_flight() {
    with_server(1, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        let options = ProducerOptions { in_flight_bytes: 4096, linger: Duration::ZERO, ..Default::default() };
        let producer = client.producer(options);
        for _ in 0..500 {
            producer.send(&log, Record::new(vec![1; 1000])).await.unwrap();
        }
        producer.flush().await.unwrap();
        assert_eq!(client.latest(&log, FIRST).await.unwrap(), Offset(500));
    });
}

#[test]
fn compressed_batches_come_back_as_they_were() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        for (codec, name) in [(Codec::Lz4, "lz4"), (Codec::Zstd, "zstd")] {
            let client = server.builder().codec(codec).connect(server.address).await.unwrap();
            let log = LogId::new(name).unwrap();
            client.create_log(&log, 1, None).await.unwrap();
            client.produce_batch(&log, numbered(1000)).await.unwrap();
            let expected: Vec<String> = (0..1000).map(|i| format!("value-{i}")).collect();
            assert_eq!(values(&client, &log, FIRST).await, expected);
        }
    });
    server.stop(End::Drained);
}

#[test]
fn a_server_with_another_certificate_is_not_trusted() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let wrong = Fingerprint([7; 32]);
        let refused = PyralogClient::builder().fingerprint(wrong).connect(server.address).await.err().unwrap();
        let Error::NotTrusted { seen, expected, .. } = &refused else { panic!("{refused}") };
        assert_eq!((*seen, &expected[..]), (Some(server.fingerprint), &[wrong][..]));
        assert!(refused.to_string().contains("DLOG_FINGERPRINT"), "{refused}");
    });
    server.stop(End::Drained);
}

#[test]
fn no_server_is_a_retriable_error_that_names_the_address() {
    run(async {
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        let builder = PyralogClient::builder().connect_timeout(Duration::from_millis(200));
        let error = builder.connect(address).await.err().unwrap();
        assert!(matches!(error, Error::Unavailable { .. }) && error.is_retriable(), "{error}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    });
}

#[test]
fn when_the_server_dies_a_write_in_flight_is_unknown_and_the_client_finds_the_next_server() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let relay = Relay::start(server.address).await;
        let builder = server.builder().retry_for(Duration::from_secs(30)).request_timeout(Duration::from_secs(1));
        let client = builder.connect(relay.address).await.unwrap();
        let log = LogId::new("log").unwrap();
        client.create_log(&log, 1, Some(AckLevel::Durable)).await.unwrap();
        client.produce(&log, None, "one").await.unwrap();
        let mut subscription = client.subscribe(&log, FIRST, Offset(0), FetchOptions::default()).await.unwrap();
        assert_eq!(subscription.next().await.unwrap().unwrap().value, "one");

        tokio::task::spawn_blocking(move || server.stop(End::Killed)).await.unwrap();
        let error = client.produce(&log, None, "two").await.unwrap_err();
        assert!(error.is_unknown() && !error.is_retriable(), "{error}");
        assert_eq!(error.class(), ErrorClass::Unknown);

        let dir = data.path().to_path_buf();
        let server = tokio::task::spawn_blocking(move || TestServer::start(&dir, 2)).await.unwrap();
        relay.switch(server.address);
        // Reads are asked again, on a new connection, without the caller doing anything.
        assert_eq!(values(&client, &log, FIRST).await, ["one"]);
        let ack = client.produce(&log, None, "three").await.unwrap();
        assert_eq!(ack.offset, Offset(1));
        let next = subscription.next().await.unwrap().unwrap();
        assert_eq!((next.offset, next.value), (Offset(1), Bytes::from("three")), "it goes on where it was");
        assert_eq!(client.server().cores, 2);
        client.close().await;
        tokio::task::spawn_blocking(move || server.stop(End::Drained)).await.unwrap();
    });
}

#[test]
fn a_server_that_drains_finishes_what_it_accepted_and_refuses_the_rest_retriably() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let client = server.builder().retry_for(Duration::ZERO).connect(server.address).await.unwrap();
        let log = LogId::new("log").unwrap();
        client.create_log(&log, 1, Some(AckLevel::Durable)).await.unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let (client, log) = (client.clone(), log.clone());
            calls.spawn(async move { client.produce(&log, None, "v").await });
        }
        client.produce(&log, None, "v").await.unwrap();
        let stopping = tokio::task::spawn_blocking(move || server.stop(End::Drained));
        while let Some(outcome) = calls.join_next().await {
            outcome.unwrap().unwrap();
        }
        let error = loop {
            match client.produce(&log, None, "v").await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(error.is_retriable() && !error.is_unknown(), "{error}");
        stopping.await.unwrap();
    });
}

/// The codecs of all batches of the first partition, in order.
async fn codecs(client: &PyralogClient, log: &LogId) -> Vec<Codec> {
    let (mut at, end) = (client.earliest(log, FIRST).await.unwrap(), client.latest(log, FIRST).await.unwrap());
    let mut codecs = Vec::new();
    while at < end {
        let fetched = client.fetch(log, FIRST, at, FetchOptions::default()).await.unwrap();
        at = fetched.next_offset;
        let views = split_batches(fetched.batches().clone());
        codecs.extend(views.map(|view| view.unwrap().header().codec));
    }
    codecs
}

#[test]
fn a_client_compresses_as_it_was_told_else_as_the_log_says() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let (client, log) = (server.client().await, LogId::new("tests/log").unwrap());
        let settings = LogSettings { compression: Some(Codec::Zstd), ..LogSettings::default() };
        client.create_log(&log, 1, settings).await.unwrap();
        let value = Bytes::from(vec![b'x'; 10_000]);
        client.produce(&log, None, value.clone()).await.unwrap();
        client.produce_batch(&log, [(None, value.clone())]).await.unwrap();
        client.produce_batch_to(&log, FIRST, [(None, value.clone())]).await.unwrap();
        let producer = client.producer(ProducerOptions::default());
        drop(producer.send(&log, Record { value: value.clone(), ..Record::default() }).await.unwrap());
        producer.flush().await.unwrap();
        assert_eq!(codecs(&client, &log).await, [Codec::Zstd; 4]);
        let told = server.builder().codec(Codec::Lz4).connect(server.address).await.unwrap();
        told.produce(&log, None, value.clone()).await.unwrap();
        // What the log says now holds for those who learn of it.
        let changes = LogChanges { compression: Some(None), ..LogChanges::default() };
        let altered = client.alter_log(&log, changes).await.unwrap();
        assert_eq!(altered.settings, LogSettings::default());
        client.produce(&log, None, value).await.unwrap();
        assert_eq!(codecs(&client, &log).await[4..], [Codec::Lz4, Codec::None]);
        told.close().await;
        client.close().await;
    });
    server.stop(End::Drained);
}

#[test]
fn a_trim_moves_the_beginning_and_the_range_comes_with_every_refusal() {
    with_server(2, |client, log| async move {
        client.create_log(&log, 1, None).await.unwrap();
        client.produce_batch_to(&log, FIRST, numbered(10)).await.unwrap();
        let now = client.trim(&log, FIRST, Offset(4)).await.unwrap();
        assert_eq!((now.start_offset, now.high_watermark), (Offset(4), Offset(10)));
        assert_eq!(values(&client, &log, FIRST).await, (4..10).map(|i| format!("value-{i}")).collect::<Vec<_>>());
        let gone = client.fetch(&log, FIRST, Offset(3), FetchOptions::default()).await.unwrap_err();
        assert_eq!(gone.offset_range(), Some((Offset(4), Offset(10))));
        let beyond = client.trim(&log, FIRST, Offset(11)).await.unwrap_err();
        assert_eq!(beyond.offset_range(), Some((Offset(4), Offset(10))));
        assert!(!beyond.is_retriable() && !beyond.is_unknown());
        // Again, and further back, changes nothing.
        for before in [4, 0] {
            assert_eq!(client.trim(&log, FIRST, Offset(before)).await.unwrap().start_offset, Offset(4));
        }
        let mut behind = client.subscribe(&log, FIRST, Offset(0), FetchOptions::default()).await.unwrap();
        let refused = behind.next().await.unwrap().unwrap_err();
        assert_eq!(refused.offset_range(), Some((Offset(4), Offset(10))));
        // Within a batch: what comes before in it is not shown.
        let mut from = client.subscribe(&log, FIRST, StartAt::Earliest, FetchOptions::default()).await.unwrap();
        assert_eq!(from.next().await.unwrap().unwrap().value, "value-4");
    });
}

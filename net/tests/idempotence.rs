//! Idempotent producers and conditional appends against real servers: through lost answers and servers that die.

mod support;

use std::{future::Future, num::NonZeroU64, time::Duration};

use bytes::Bytes;
use pyralog_net::client::{
    AckLevel, AppendOptions, Error, ErrorCode, FetchOptions, LogId, Offset, PartitionId, ProducerIdentity,
    ProducerOptions, PyralogClient, Record,
};
use support::{End, Relay, TestServer, data_dir};

const FIRST: PartitionId = PartitionId(0);

/// No story takes this long unless something waits for ever.
fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(120), story).await };
    let outcome = runtime.block_on(bounded).expect("the story comes to an end");
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn values(client: &PyralogClient, log: &LogId) -> Vec<String> {
    let (mut at, end) = (Offset(0), client.latest(log, FIRST).await.unwrap());
    let mut values = Vec::new();
    while at < end {
        let fetched = client.fetch(log, FIRST, at, FetchOptions::default()).await.unwrap();
        at = fetched.next_offset;
        values.extend(fetched.into_iter().map(|record| String::from_utf8(record.unwrap().value.to_vec()).unwrap()));
    }
    values
}

fn identity(epoch: u32) -> ProducerIdentity {
    ProducerIdentity { id: NonZeroU64::new(77).unwrap(), epoch }
}

#[test]
fn a_write_whose_answer_is_lost_is_stored_once_and_acknowledged_with_its_first_offset() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let relay = Relay::start(server.address).await;
        let builder = server.builder().request_timeout(Duration::from_millis(500)).ack(AckLevel::Durable);
        let client = builder.idempotent(true).connect(relay.address).await.unwrap();
        let log = LogId::new("log").unwrap();
        client.create_log(&log, 1, None).await.unwrap();
        assert!(!client.produce(&log, None, "one").await.unwrap().duplicate);
        relay.mute(true);
        let unmute = async {
            // Until the server was asked again, and knew it.
            while server.metrics[0].duplicate_writes.get() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            relay.mute(false);
        };
        let (ack, ()) = tokio::join!(client.produce(&log, None, "two"), unmute);
        let ack = ack.unwrap();
        assert_eq!((ack.offset, ack.level, ack.duplicate), (Offset(1), AckLevel::Durable, true));
        client.produce(&log, None, "three").await.unwrap();
        assert_eq!(values(&client, &log).await, ["one", "two", "three"]);
        client.close().await;
    });
    server.stop(End::Drained);
}

#[test]
fn a_producer_goes_on_through_a_servers_death_and_nothing_is_lost_or_there_twice() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let relay = Relay::start(server.address).await;
        let builder = server.builder().request_timeout(Duration::from_secs(1)).ack(AckLevel::Durable);
        let client = builder.connect(relay.address).await.unwrap();
        let log = LogId::new("log").unwrap();
        client.create_log(&log, 1, None).await.unwrap();
        let options = ProducerOptions { batch_records: 7, ..ProducerOptions::default() };
        let producer = client.producer(options);
        let (mut server, mut deliveries) = (Some(server), Vec::new());
        for i in 0..3000 {
            deliveries.push(producer.send(&log, Record::new(format!("value-{i}"))).await.unwrap());
            if i == 1500 {
                // Batches are under way now.
                let (dying, dir) = (server.take().unwrap(), data.path().to_path_buf());
                let next = tokio::task::spawn_blocking(move || {
                    dying.stop(End::Killed);
                    TestServer::start(&dir, 2)
                });
                let next = next.await.unwrap();
                relay.switch(next.address);
                server = Some(next);
            }
        }
        producer.flush().await.unwrap();
        for (i, delivery) in deliveries.into_iter().enumerate() {
            assert_eq!(delivery.await.unwrap().offset, Offset(i as u64));
        }
        let expected: Vec<String> = (0..3000).map(|i| format!("value-{i}")).collect();
        assert_eq!(values(&client, &log).await, expected);
        client.close().await;
        tokio::task::spawn_blocking(move || server.unwrap().stop(End::Drained)).await.unwrap();
    });
}

#[test]
fn a_newer_life_of_a_producer_shuts_out_the_older_one() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let log = LogId::new("log").unwrap();
        let first = server.builder().producer_identity(identity(1)).connect(server.address).await.unwrap();
        first.create_log(&log, 1, None).await.unwrap();
        first.produce(&log, None, "one").await.unwrap();
        let second = first.idempotent(Some(identity(2)));
        second.produce(&log, None, "two").await.unwrap();
        let error = first.produce(&log, None, "late").await.unwrap_err();
        assert_eq!((error.code(), error.detail("current")), (Some(ErrorCode::PRODUCER_FENCED), Some(2)));
        assert!(!error.is_retriable() && !error.is_unknown());
        let over = first.produce(&log, None, "later").await.unwrap_err();
        assert!(matches!(over, Error::Closed { .. }), "{over}");
        let twin = first.idempotent(Some(identity(2)));
        let error = twin.produce(&log, None, "twin").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::SEQUENCE_REUSED), "two lives have the same epoch");
        second.produce(&log, None, "three").await.unwrap();
        assert_eq!(values(&second, &log).await, ["one", "two", "three"]);
        first.close().await;
    });
    server.stop(End::Drained);
}

#[test]
fn one_of_all_who_expect_the_same_offset_wins_and_the_others_learn_how_far_the_log_is() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 2);
    run(async {
        let client = server.client().await;
        let log = LogId::new("account").unwrap();
        client.create_log(&log, 1, Some(AckLevel::Durable)).await.unwrap();
        // Ten writers count to a hundred together: each reads the last number and appends the next.
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..10 {
            let (client, log) = (if writer % 2 == 0 { client.idempotent(None) } else { client.clone() }, log.clone());
            writers.spawn(async move {
                let mut at = client.latest(&log, FIRST).await.unwrap();
                let mut won = 0;
                while at < Offset(100) {
                    let next = [(None::<Bytes>, Bytes::from(format!("{at}")))];
                    match client.produce_batch_at(&log, FIRST, at, next).await {
                        Ok(ack) => {
                            assert_eq!(ack.offset, at);
                            (at, won) = (Offset(at.0 + 1), won + 1);
                        }
                        Err(error) => {
                            let end = error.log_end().unwrap_or_else(|| panic!("{error}"));
                            assert!(end > at && !error.is_retriable() && !error.is_unknown());
                            at = end;
                        }
                    }
                }
                won
            });
        }
        let won: u64 = writers.join_all().await.into_iter().sum();
        let expected: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        assert_eq!((won, values(&client, &log).await), (100, expected));

        let three = (0..3).map(|i| Record::new(format!("{i}")));
        let ack = client.produce_batch_at(&log, FIRST, Offset(100), three).await.unwrap();
        assert_eq!((ack.offset, client.latest(&log, FIRST).await.unwrap()), (Offset(100), Offset(103)));
        let too_much = (0..9).map(|_| Record::new(vec![0; 1 << 20]));
        let error = client.produce_batch_at(&log, FIRST, Offset(103), too_much).await.unwrap_err();
        assert!(matches!(error, Error::Batch(_)), "all or nothing, so it must fit into a batch: {error}");
        client.close().await;
    });
    server.stop(End::Drained);
}

#[test]
fn a_write_that_nobody_waits_for_is_never_stored_behind_the_next_one() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let client = server.builder().idempotent(true).connect(server.address).await.unwrap();
        let log = LogId::new("log").unwrap();
        client.create_log(&log, 1, None).await.unwrap();
        let mut dropped = 0;
        for i in 0..200 {
            let patience = Duration::from_micros(i * 7 % 400);
            let write = client.produce(&log, None, format!("{i:03}"));
            dropped += u32::from(tokio::time::timeout(patience, write).await.is_err());
        }
        assert!(dropped > 0, "nothing was dropped");
        client.produce(&log, None, "999").await.unwrap();
        let values = values(&client, &log).await;
        assert!(values.windows(2).all(|two| two[0] < two[1]), "{values:?}");
        client.close().await;
    });
    server.stop(End::Drained);
}

#[test]
fn what_is_no_batch_is_refused_before_it_is_sent() {
    let data = data_dir();
    let server = TestServer::start(data.path(), 1);
    run(async {
        let client = server.client().await;
        let log = LogId::new("log").unwrap();
        client.create_log(&log, 1, None).await.unwrap();
        for client in [client.clone(), client.idempotent(None)] {
            for bytes in [Bytes::from_static(b"no batch"), Bytes::from(vec![0; 9 << 20])] {
                let refused = client.append_batch(&log, FIRST, bytes, AppendOptions::default()).await.unwrap_err();
                assert!(!refused.is_retriable() && !refused.is_unknown(), "{refused}");
            }
        }
        client.close().await;
    });
    server.stop(End::Drained);
}

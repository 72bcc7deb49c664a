//! The batch as a whole: golden bytes, round trips, hostile bytes.

use bytes::Bytes;
use proptest::prelude::*;

use super::{header::RawHeader, *};
use crate::{
    limits::{
        BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, DECOMPRESSED_BYTES_MAX, RECORD_BYTES_MAX,
        RECORD_HEADERS_MAX,
    },
    types::{Incarnation, LeaderEpoch, Offset, ProducerId, Sequence},
};

const SERVER_FIELDS: ServerFields = ServerFields {
    base_offset: Offset(1000),
    durable_hint: Offset(990),
    leader_epoch: LeaderEpoch(3),
    incarnation: Incarnation(7),
};

/// A record as a test wishes it; the offset is the batch's to give.
#[derive(Clone, Debug)]
struct Wish {
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    headers: Vec<(Bytes, Bytes)>,
    timestamp_ms: i64,
}

impl Wish {
    fn value(value: &[u8]) -> Self {
        Wish { key: None, value: value.to_vec(), headers: Vec::new(), timestamp_ms: 0 }
    }

    fn at(&self, offset: u64) -> Record {
        Record {
            offset: Offset(offset),
            timestamp_ms: self.timestamp_ms,
            key: self.key.clone().map(Bytes::from),
            value: Bytes::from(self.value.clone()),
            headers: self.headers.clone(),
        }
    }
}

fn push(builder: &mut BatchBuilder, wish: &Wish) -> Result<(), BatchError> {
    builder.push(wish.key.as_deref(), &wish.value, &wish.headers, wish.timestamp_ms)
}

fn built(codec: Codec, wishes: &[Wish]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    for wish in wishes {
        push(&mut builder, wish).unwrap();
    }
    builder.finish().unwrap().to_vec()
}

fn stored(codec: Codec, wishes: &[Wish]) -> Vec<u8> {
    let mut batch = built(codec, wishes);
    check_produced(&batch).unwrap();
    stamp(&mut batch, SERVER_FIELDS);
    batch
}

/// A batch whose checksums are right whatever else is wrong: what a broken or hostile client sends.
fn sealed(change_header: impl FnOnce(&mut RawHeader), body: &[u8]) -> Vec<u8> {
    let mut batch = built(Codec::None, &[Wish::value(b"")]);
    batch.truncate(BATCH_HEADER_BYTES);
    batch.extend_from_slice(body);
    let (raw, _) = <RawHeader as zerocopy::FromBytes>::mut_from_prefix(&mut batch).unwrap();
    raw.body_len = (body.len() as u32).into();
    change_header(raw);
    let crc = crc32c::crc32c(&batch[36..]);
    batch[32..36].copy_from_slice(&crc.to_le_bytes());
    stamp(&mut batch, SERVER_FIELDS);
    batch
}

fn read(batch: &[u8]) -> Result<Vec<Record>, BatchError> {
    BatchView::parse(Bytes::copy_from_slice(batch))?.records()?.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The checksums in it were computed by another implementation than ours: a loop over bits, in Python.
#[test]
fn the_bytes_of_a_batch_never_change() {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.producer(ProducerId(0x1122_3344_5566_7788), 2, Sequence(40));
    let header = (Bytes::from_static(b"h"), Bytes::from_static(b"x"));
    builder.push(Some(b"key"), b"value", &[header], 1_700_000_000_000).unwrap();
    builder.push(None, b"", &[], 1_699_999_999_999).unwrap();
    let mut batch = builder.finish().unwrap().to_vec();
    let body = concat!(
        "10",
        "00",
        "06",
        "6b6579",
        "05",
        "76616c7565",
        "01",
        "01",
        "68",
        "01",
        "78", // the first record: 16 bytes follow
        "04",
        "01",
        "01",
        "00",
        "00", // the second: 1 ms earlier, no key, empty value, no header
    );
    let client = concat!(
        "16000000",
        "02000000",
        "00",
        "00",
        "0000", // body_len, record_count, codec, flags, reserved
        "0068e5cf8b010000",
        "0068e5cf8b010000", // first and max timestamp
        "8877665544332211",
        "02000000",
        "28000000", // producer: id, epoch, sequence
    );
    let produced = ["50595231", "00000000", &"00".repeat(24), "256870da", client, body].concat();
    assert_eq!(hex(&batch), produced);

    stamp(&mut batch, SERVER_FIELDS);
    let server = concat!("e803000000000000", "de03000000000000", "03000000", "07000000");
    let stamped = ["50595231", "af2f38f6", server, "256870da", client, body].concat();
    assert_eq!(hex(&batch), stamped);
    assert_eq!(hex(&batch), example_of_the_format_document());
    assert_eq!(check_stored(&batch).unwrap().end_offset(), Offset(1002));
}

/// The bytes of the one block of code: in each line after the position, up to the two spaces before the explanation.
fn example_of_the_format_document() -> String {
    let document = include_str!("../../../docs/FORMAT.md");
    let example = document.split("### An example").nth(1).unwrap().split("```").nth(1).unwrap();
    let lines = example.lines().filter(|line| !line.is_empty());
    lines.map(|line| line[4..].split("  ").next().unwrap().replace(' ', "")).collect()
}

#[test]
fn a_stamped_header_tells_what_the_client_and_the_server_wrote() {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.producer(ProducerId(9), 8, Sequence(7));
    builder.push(None, b"older", &[], 50).unwrap();
    builder.push(None, b"newer", &[], 60).unwrap();
    let mut batch = builder.finish().unwrap().to_vec();
    let produced = check_produced(&batch).unwrap();
    stamp(&mut batch, SERVER_FIELDS);

    let header = check_stored_header(&batch[..BATCH_HEADER_BYTES]).unwrap();
    assert_eq!(header, check_stored(&batch).unwrap());
    assert_eq!(
        (header.base_offset, header.last_offset(), header.end_offset()),
        (Offset(1000), Offset(1001), Offset(1002))
    );
    assert_eq!((header.durable_hint, header.leader_epoch), (Offset(990), LeaderEpoch(3)));
    assert_eq!((header.incarnation, header.crc), (Incarnation(7), produced.crc));
    assert_eq!((header.first_timestamp_ms, header.max_timestamp_ms, header.record_count), (50, 60, 2));
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (ProducerId(9), 8, Sequence(7)));
    assert_eq!(header.batch_len(), batch.len());
}

#[test]
fn a_batch_that_no_server_stamped_is_not_taken_for_a_stored_one() {
    let batch = built(Codec::None, &[Wish::value(b"v")]);
    assert!(matches!(check_stored(&batch), Err(BatchError::ServerChecksumMismatch { .. })));
}

#[test]
fn a_stamp_is_not_taken_for_another_batchs() {
    let mut one = stored(Codec::None, &[Wish::value(b"one")]);
    let other = stored(Codec::None, &[Wish::value(b"two")]);
    // A misdirected write: the server's fields of one batch before the client's part of another, each intact.
    one[32..].copy_from_slice(&other[32..]);
    assert!(check_produced(&one).is_ok());
    assert!(matches!(check_stored_header(&one), Err(BatchError::ServerChecksumMismatch { .. })));
}

#[test]
fn every_flipped_bit_of_a_stored_batch_is_detected() {
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        let batch = stored(codec, &vec![Wish::value(b"a value that repeats"); 10]);
        assert_eq!(check_stored(&batch).unwrap().codec, codec);
        for bit in 0..batch.len() * 8 {
            let mut damaged = batch.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check_stored(&damaged).is_err(), "{codec}: bit {bit} was flipped unseen");
            // The header vouches for itself: a walk is never led astray, whatever became of the body.
            assert!(bit / 8 >= BATCH_HEADER_BYTES || check_stored_header(&damaged).is_err(), "{codec}: bit {bit}");
        }
    }
}

#[test]
fn a_batch_that_is_cut_or_goes_on_is_refused() {
    let batch = stored(Codec::None, &[Wish::value(b"v")]);
    for len in 0..batch.len() {
        assert!(check_stored(&batch[..len]).is_err(), "{len} of {} bytes", batch.len());
        assert!(check_produced(&batch[..len]).is_err(), "{len} of {} bytes", batch.len());
    }
    let longer = [&batch[..], &[0]].concat();
    let (declared, have) = (batch.len(), longer.len());
    assert_eq!(check_stored(&longer), Err(BatchError::LengthMismatch { declared, have }));
    assert_eq!(check_produced(&longer), Err(BatchError::LengthMismatch { declared, have }));
}

fn wish() -> impl Strategy<Value = Wish> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
    let headers = proptest::collection::vec((bytes().prop_map(Bytes::from), bytes().prop_map(Bytes::from)), 0..4);
    // Within a century of 1970, so that any two are within reach of each other.
    (proptest::option::of(bytes()), bytes(), headers, -3_000_000_000_000_i64..3_000_000_000_000)
        .prop_map(|(key, value, headers, timestamp_ms)| Wish { key, value, headers, timestamp_ms })
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::None), Just(Codec::Lz4), Just(Codec::Zstd)]
}

proptest! {
    #[test]
    fn records_survive_the_round_trip(wishes in proptest::collection::vec(wish(), 1..50), codec in codec()) {
        let batch = stored(codec, &wishes);
        let view = BatchView::parse(Bytes::from(batch.clone())).unwrap();
        let expected: Vec<Record> = (1000..).zip(&wishes).map(|(offset, wish)| wish.at(offset)).collect();

        let records = view.records().unwrap();
        let shared: Vec<Record> = records.borrowed().map(|record| records.share(&record.unwrap())).collect();
        prop_assert_eq!(&shared, &expected);
        let owned: Vec<Record> = records.collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&owned, &expected);
        prop_assert_eq!(view.header().max_timestamp_ms, wishes.iter().map(|wish| wish.timestamp_ms).max().unwrap());
        prop_assert_eq!(view.header().record_count as usize, wishes.len());
        prop_assert_eq!(&view.bytes()[..], &batch[..]);
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check_produced(&bytes).is_err());
        prop_assert!(check_stored_header(&bytes).is_err());
        prop_assert!(split_batches(Bytes::from(bytes)).all(|batch| batch.is_err()));
    }

    /// As the hostile client has it: the checksums are right, the rest is not.
    #[test]
    fn an_arbitrary_body_gives_as_many_records_as_declared_or_an_error(
        body in proptest::collection::vec(any::<u8>(), 1..300),
        codec in 0_u8..4,
        count in 0_u32..20,
        first_timestamp: i64,
    ) {
        let batch = sealed(
            |raw| {
                raw.codec = codec;
                raw.record_count = count.into();
                raw.first_timestamp = first_timestamp.into();
                raw.max_timestamp = i64::MAX.into();
            },
            &body,
        );
        if let Ok(records) = read(&batch) {
            prop_assert_eq!(records.len(), count as usize);
        }
    }

    /// Small bytes are likely to be plausible lengths, so that this reaches deep into the parser.
    #[test]
    fn a_body_of_small_bytes_gives_as_many_records_as_declared_or_an_error(
        body in proptest::collection::vec(0_u8..12, 5..100),
        count in 1_u32..6,
    ) {
        let batch = sealed(|raw| raw.record_count = count.into(), &body);
        let view = BatchView::parse(Bytes::from(batch));
        if let Ok(records) = view.and_then(|view| view.records()) {
            let read: Vec<_> = records.borrowed().collect();
            let good = read.iter().filter(|record| record.is_ok()).count();
            // Either all records and no error, or exactly one error, the last item.
            prop_assert!(read.len() == good + usize::from(read.last().unwrap().is_err()));
            prop_assert!(good == count as usize || read.last().unwrap().is_err());
            for record in read.into_iter().flatten() {
                let owned = records.share(&record);
                prop_assert_eq!(owned.headers.len(), record.headers.len());
                prop_assert_eq!(&owned.value[..], record.value);
            }
        }
    }
}

#[test]
fn a_header_over_a_limit_is_refused_though_its_checksums_are_right() {
    let body = [4, 0, 1, 0, 0];
    let refused = |change: fn(&mut RawHeader)| check_stored_header(&sealed(change, &body)).unwrap_err();
    assert_eq!(check_stored(&sealed(|_| (), &body)).map(|header| header.record_count), Ok(1));

    assert_eq!(refused(|raw| raw.record_count = 0.into()), BatchError::NoRecords);
    let count = BATCH_RECORDS_MAX + 1;
    assert_eq!(refused(|raw| raw.record_count = (BATCH_RECORDS_MAX + 1).into()), BatchError::TooManyRecords { count });
    assert_eq!(
        refused(|raw| raw.record_count = BATCH_RECORDS_MAX.into()),
        BatchError::BodyTooSmall { count: BATCH_RECORDS_MAX, bytes: 5 }
    );
    assert_eq!(refused(|raw| raw.record_count = 2.into()), BatchError::BodyTooSmall { count: 2, bytes: 5 });
    assert_eq!(refused(|raw| raw.codec = 3), BatchError::UnknownCodec { code: 3 });
    assert_eq!(refused(|raw| raw.flags = 0x80), BatchError::UnknownFlags { flags: 0x80 });
    assert_eq!(refused(|raw| raw.reserved = 1.into()), BatchError::ReservedNotZero { value: 1 });
    let (first_ms, max_ms) = (0, -1);
    assert_eq!(refused(|raw| raw.max_timestamp = (-1).into()), BatchError::TimestampsReversed { first_ms, max_ms });

    let largest = (BATCH_BYTES_MAX - BATCH_HEADER_BYTES) as u32;
    let mut batch = sealed(|_| (), &body);
    batch[36..40].copy_from_slice(&largest.to_le_bytes());
    assert_eq!(BatchHeader::decode(&batch).unwrap().batch_len(), BATCH_BYTES_MAX);
    batch[36..40].copy_from_slice(&(largest + 1).to_le_bytes());
    let bytes = BATCH_BYTES_MAX as u64 + 1;
    assert_eq!(BatchHeader::decode(&batch), Err(BatchError::BatchTooLarge { bytes }));
    batch[36..40].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(BatchHeader::decode(&batch), Err(BatchError::BatchTooLarge { .. })));
}

#[test]
fn offsets_past_the_largest_are_refused() {
    let mut batch = built(Codec::None, &[Wish::value(b"v")]);
    let base = u64::MAX;
    stamp(&mut batch, ServerFields { base_offset: Offset(base - 1), ..SERVER_FIELDS });
    assert_eq!(check_stored(&batch).unwrap().end_offset(), Offset(base));
    stamp(&mut batch, ServerFields { base_offset: Offset(base), ..SERVER_FIELDS });
    assert_eq!(check_stored(&batch), Err(BatchError::OffsetsOverflow { base, count: 1 }));
}

#[test]
fn another_version_or_another_format_is_named_as_such() {
    let mut batch = stored(Codec::None, &[Wish::value(b"v")]);
    batch[3] = b'2';
    let error = check_stored(&batch).unwrap_err();
    assert_eq!(error, BatchError::WrongMagic { found: *b"PYR2" });
    assert_eq!(error.to_string(), "a batch begins with `PYR1`, not with `PYR2`");
}

#[test]
#[should_panic(expected = "which is no batch")]
fn what_is_no_batch_is_not_stamped() {
    stamp(&mut [0; BATCH_HEADER_BYTES], SERVER_FIELDS);
}

#[test]
fn malformed_records_are_refused_with_the_reason() {
    let too_long = [0x80; 11];
    let long_varint = [&[12], &too_long[..], &[0]].concat();
    let overflow = [13, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1, 0, 0].to_vec();
    let cases: [(&[u8], &str); 12] = [
        (&[0x80, 0x80, 0x80, 0x80, 0x80], "its length is cut off or longer than 64 bits"),
        (&[5, 0, 1, 0, 0], "it is longer than what is left of the batch"),
        (&long_varint, "its timestamp is cut off or longer than 64 bits"),
        (&overflow, "its timestamp is out of range"),
        (&[1, 0, 0, 0, 0], "the length of its key is cut off or longer than 64 bits"),
        (&[4, 0, 3, 0, 0], "the length of its key is negative, and not -1"),
        (&[4, 0, 6, 0, 0], "its key is longer than what is left of the record"),
        (&[2, 0, 1, 0, 0], "the length of its value is cut off or longer than 64 bits"),
        (&[4, 0, 1, 2, 0], "its value is longer than what is left of the record"),
        (&[3, 0, 1, 0, 0], "the number of its headers is cut off or longer than 64 bits"),
        (&[4, 0, 1, 0, 1], "a header is longer than what is left of the record"),
        (&[5, 0, 1, 0, 0, 9], "it is longer than its parts"),
    ];
    for (body, problem) in cases {
        let batch = sealed(
            |raw| {
                raw.first_timestamp = 1.into();
                raw.max_timestamp = 1.into();
            },
            body,
        );
        assert_eq!(read(&batch), Err(BatchError::MalformedRecord { index: 0, problem }), "{body:?}");
    }
}

#[test]
fn bytes_after_the_last_record_are_refused_once() {
    let batch = sealed(|_| (), &[4, 0, 1, 0, 0, 4, 0, 1, 0, 0]);
    let records = BatchView::parse(Bytes::from(batch)).unwrap().records().unwrap();
    let read: Vec<_> = records.collect();
    assert_eq!(read.len(), 2);
    assert!(read[0].is_ok());
    assert_eq!(read[1], Err(BatchError::TrailingBytes { bytes: 5, count: 1 }));
}

#[test]
fn a_bomb_is_refused_by_the_length_it_declares() {
    let over = DECOMPRESSED_BYTES_MAX as u32 + 1;
    for (codec, declared) in [(1, over), (2, over), (1, u32::MAX), (2, u32::MAX)] {
        let body = [&declared.to_le_bytes()[..], &[0; 1000]].concat();
        let bytes = u64::from(declared);
        assert_eq!(read(&sealed(|raw| raw.codec = codec, &body)), Err(BatchError::DecompressedTooLarge { bytes }));
    }
    // Within the limit, but more than any LZ4 block of this length can hold.
    let body = [&(1_u32 << 20).to_le_bytes()[..], &[0; 1000]].concat();
    let problem = "a block so short cannot hold as many bytes as it declares";
    let codec = Codec::Lz4;
    assert_eq!(read(&sealed(|raw| raw.codec = 1, &body)), Err(BatchError::DecompressionFailed { codec, problem }));
}

#[test]
fn a_bomb_that_understates_its_length_stops_at_the_length() {
    let plain = vec![0_u8; DECOMPRESSED_BYTES_MAX + 1];
    let lz4 = lz4_flex::block::compress(&plain);
    let zstd = zstd::bulk::compress(&plain, 1).unwrap();
    for (code, packed) in [(1, &lz4), (2, &zstd)] {
        let declared = |len: usize| [&(len as u32).to_le_bytes()[..], packed].concat();
        for len in [0, 1, 1000, DECOMPRESSED_BYTES_MAX] {
            let error = read(&sealed(|raw| raw.codec = code, &declared(len))).unwrap_err();
            assert!(matches!(error, BatchError::DecompressionFailed { .. }), "codec {code}, {len} bytes: {error}");
        }
    }
}

#[test]
fn the_most_that_may_be_decompressed_is_decompressed() {
    let plain = vec![0_u8; DECOMPRESSED_BYTES_MAX];
    for (code, packed) in [(1, lz4_flex::block::compress(&plain)), (2, zstd::bulk::compress(&plain, 1).unwrap())] {
        let body = [&(DECOMPRESSED_BYTES_MAX as u32).to_le_bytes()[..], &packed].concat();
        // It arrives at the parser, which finds that zeros are no record.
        assert!(matches!(read(&sealed(|raw| raw.codec = code, &body)), Err(BatchError::MalformedRecord { .. })));
    }
}

#[test]
fn a_compressed_body_that_is_cut_or_declares_too_much_is_refused() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let batch = stored(codec, &vec![Wish::value(b"a value that repeats"); 100]);
        let body = &batch[BATCH_HEADER_BYTES..];
        for cut in [1, 3, 4, 5, body.len() - 1] {
            let error = read(&sealed(|raw| raw.codec = codec.code(), &body[..cut])).unwrap_err();
            assert!(matches!(error, BatchError::DecompressionFailed { .. }), "{codec}, {cut} bytes: {error}");
        }
        let mut overstated = body.to_vec();
        overstated[0] += 1;
        let problem = "there are fewer bytes of records than it declares";
        let error = read(&sealed(|raw| raw.codec = codec.code(), &overstated)).unwrap_err();
        assert_eq!(error, BatchError::DecompressionFailed { codec, problem });
    }
}

#[test]
fn records_that_do_not_compress_are_stored_as_they_are() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let batch = stored(codec, &[Wish::value(b"!")]);
        assert_eq!(check_stored(&batch).unwrap().codec, Codec::None);
        assert_eq!(read(&batch).unwrap(), [Wish::value(b"!").at(1000)]);
    }
}

#[test]
fn a_record_at_the_limit_is_taken_and_one_byte_more_is_refused() {
    let name = Bytes::from_static(b"name");
    let value = vec![7; RECORD_BYTES_MAX - 3 - 2 * name.len()];
    let headers = [(name.clone(), name.clone())];
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(Some(b"key"), &value, &headers, 0).unwrap();
    let bytes = RECORD_BYTES_MAX + 1;
    assert_eq!(builder.push(Some(b"key+"), &value, &headers, 0), Err(BatchError::RecordTooLarge { bytes }));
    assert_eq!(builder.count(), 1);
    let mut batch = builder.finish().unwrap().to_vec();
    stamp(&mut batch, SERVER_FIELDS);
    assert_eq!(read(&batch).unwrap()[0].value.len(), value.len());

    let headers = vec![(Bytes::new(), Bytes::new()); RECORD_HEADERS_MAX + 1];
    let count = RECORD_HEADERS_MAX + 1;
    assert_eq!(builder.push(None, b"", &headers, 0), Err(BatchError::TooManyHeaders { count }));
    builder.push(None, b"", &headers[1..], 0).unwrap();
    let mut batch = builder.finish().unwrap().to_vec();
    stamp(&mut batch, SERVER_FIELDS);
    assert_eq!(read(&batch).unwrap()[0].headers.len(), RECORD_HEADERS_MAX);
    let records = BatchView::parse(batch.into()).unwrap().records().unwrap();
    let mut left = records.borrowed().next().unwrap().unwrap().headers;
    assert_eq!(left.len(), RECORD_HEADERS_MAX);
    left.next();
    assert_eq!(
        (left.size_hint(), left.count()),
        ((RECORD_HEADERS_MAX - 1, Some(RECORD_HEADERS_MAX - 1)), RECORD_HEADERS_MAX - 1)
    );
}

#[test]
fn more_headers_than_allowed_are_refused_on_reading_too() {
    let headers = vec![0; 2 * (RECORD_HEADERS_MAX + 1)];
    let body = |count: u8| {
        let rest = [&[0, 1, 0, 0x80 | count, 0x01], &headers[..2 * (128 + usize::from(count))]].concat();
        [&[0x80 | (rest.len() - 256) as u8, 0x02], &rest[..]].concat()
    };
    assert_eq!(read(&sealed(|_| (), &body(0))).unwrap()[0].headers.len(), RECORD_HEADERS_MAX);
    let problem = "it has more headers than are allowed";
    assert_eq!(read(&sealed(|_| (), &body(1))), Err(BatchError::MalformedRecord { index: 0, problem }));
}

#[test]
fn a_record_over_the_limit_is_refused_on_reading_too() {
    // A batch of one record with this value, as a client would build it that keeps no limit.
    let body = |value: usize| {
        let mut rest = vec![0, 1];
        rest.extend(varint(value as u64));
        rest.resize(rest.len() + value, 7);
        rest.push(0);
        [varint(rest.len() as u64), rest].concat()
    };
    assert_eq!(read(&sealed(|_| (), &body(RECORD_BYTES_MAX))).unwrap()[0].value.len(), RECORD_BYTES_MAX);
    let problem = "its key, value and headers have more than 1048576 bytes, the most that is allowed";
    let refused = read(&sealed(|_| (), &body(RECORD_BYTES_MAX + 1)));
    assert_eq!(refused, Err(BatchError::MalformedRecord { index: 0, problem }));
    // A third of it each, and the rest as the name of the header.
    let third = RECORD_BYTES_MAX / 3;
    let parts = |name: usize| {
        let counted = |len: usize| [varint(len as u64), vec![7; len]].concat();
        let key = [varint(2 * third as u64), vec![7; third]].concat();
        let rest = [&[0][..], &key, &counted(third), &[1], &counted(name), &counted(1)].concat();
        [varint(rest.len() as u64), rest].concat()
    };
    let most = RECORD_BYTES_MAX - 2 * third - 1;
    assert_eq!(read(&sealed(|_| (), &parts(most))).unwrap()[0].headers[0].0.len(), most);
    let refused = read(&sealed(|_| (), &parts(most + 1))).map(|records| records.len());
    assert_eq!(refused, Err(BatchError::MalformedRecord { index: 0, problem }), "no part of it is too large");
    // The same within a compressed batch.
    let plain = body(RECORD_BYTES_MAX + 1);
    let packed = [&(plain.len() as u32).to_le_bytes()[..], &zstd::bulk::compress(&plain, 1).unwrap()].concat();
    assert_eq!(read(&sealed(|raw| raw.codec = 2, &packed)), Err(BatchError::MalformedRecord { index: 0, problem }));
}

/// LEB128, as `docs/FORMAT.md` says.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[test]
fn a_batch_is_filled_to_the_last_byte_and_a_record_that_did_not_fit_opens_the_next() {
    let mut builder = BatchBuilder::new(Codec::None);
    let large = vec![1; RECORD_BYTES_MAX];
    while builder.push(None, &large, &[], 0).is_ok() {}
    // A value of 16 KiB to 2 MiB has lengths of three bytes each, beside three bytes for the rest of the record.
    let room = BATCH_BYTES_MAX - builder.len_bytes() - 9;
    let (count, before) = (builder.count(), builder.len_bytes());
    assert_eq!(builder.push(None, &large[..room + 1], &[], 0), Err(BatchError::BatchFull));
    assert_eq!((builder.count(), builder.len_bytes()), (count, before), "a refused record left something behind");
    builder.push(None, &large[..room], &[], 0).unwrap();
    let batch = builder.finish().unwrap();
    assert_eq!(batch.len(), BATCH_BYTES_MAX);
    check_produced(&batch).unwrap();

    builder.push(None, &large[..room + 1], &[], 0).unwrap();
    assert_eq!(check_produced(&builder.finish().unwrap()).unwrap().record_count, 1);
}

#[test]
fn a_batch_takes_the_largest_number_of_records_and_not_one_more() {
    let mut builder = BatchBuilder::new(Codec::Lz4);
    for _ in 0..BATCH_RECORDS_MAX {
        builder.push(None, b"", &[], 0).unwrap();
    }
    assert_eq!(builder.push(None, b"", &[], 0), Err(BatchError::BatchFull));
    let batch = builder.finish().unwrap();
    assert_eq!(check_produced(&batch).unwrap().record_count, BATCH_RECORDS_MAX);
}

#[test]
fn timestamps_too_far_apart_go_to_different_batches() {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(None, b"", &[], i64::MIN).unwrap();
    builder.push(None, b"", &[], -1).unwrap();
    assert_eq!(builder.push(None, b"", &[], 0), Err(BatchError::BatchFull));
    let mut batch = builder.finish().unwrap().to_vec();
    stamp(&mut batch, SERVER_FIELDS);
    assert_eq!(read(&batch).unwrap()[1].timestamp_ms, -1);
    builder.push(None, b"", &[], 0).unwrap();
}

#[test]
fn a_builder_begins_anew_after_each_batch() {
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        let mut builder = BatchBuilder::new(codec);
        assert_eq!(builder.finish(), Err(BatchError::NoRecords));
        assert_eq!((builder.len_bytes(), builder.is_empty()), (BATCH_HEADER_BYTES, true));
        builder.producer(ProducerId(5), 1, Sequence(9));
        let wishes = [vec![Wish::value(b"first batch, first batch"); 9], vec![Wish::value(b"second"); 2]];
        for (wishes, producer) in wishes.iter().zip([5, 0]) {
            for wish in wishes {
                push(&mut builder, wish).unwrap();
            }
            assert_eq!(builder.count() as usize, wishes.len());
            let mut batch = builder.finish().unwrap().to_vec();
            assert!(builder.is_empty());
            assert_eq!(check_produced(&batch).unwrap().producer_id, ProducerId(producer));
            stamp(&mut batch, SERVER_FIELDS);
            assert_eq!(read(&batch).unwrap().len(), wishes.len());
        }
    }
}

#[test]
fn a_batch_of_one_record_takes_exactly_its_own_memory() {
    let mut builder = BatchBuilder::new(Codec::None);
    for _ in 0..2 {
        builder.push(Some(b"key"), &[1; 100], &[], 0).unwrap();
        let batch = builder.finish().unwrap();
        let len = batch.len();
        assert_eq!(Vec::from(batch).capacity(), len);
    }
}

#[test]
fn batches_end_to_end_are_split_again() {
    let batches: Vec<Vec<u8>> =
        [Codec::None, Codec::Lz4, Codec::Zstd].map(|codec| stored(codec, &vec![Wish::value(b"abcabcabc"); 20])).into();
    let bytes = Bytes::from(batches.concat());
    let split: Vec<BatchView> = split_batches(bytes.clone()).collect::<Result<_, _>>().unwrap();
    assert!(split.iter().zip(&batches).all(|(view, batch)| view.bytes() == batch));
    assert_eq!(split.len(), 3);
    assert_eq!(split_batches(Bytes::new()).count(), 0);

    // The last one cut: two batches, one error, and no more.
    let cut: Vec<_> = split_batches(bytes.slice(..bytes.len() - 1)).collect();
    assert_eq!(cut.len(), 3);
    assert!(cut[..2].iter().all(|batch| batch.is_ok()));
    let declared = batches[2].len();
    let have = declared - 1;
    assert_eq!(cut[2].as_ref().unwrap_err(), &BatchError::LengthMismatch { declared, have });
}

#[test]
fn codecs_are_known_by_their_words_and_numbers() {
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        assert_eq!(codec.to_string().parse(), Ok(codec));
        assert_eq!(Codec::from_code(codec.code()), Ok(codec));
    }
    assert_eq!("gzip".parse::<Codec>(), Err("`gzip` is no codec; there are none, lz4 and zstd".to_owned()));
}

#[test]
fn a_batch_that_is_marked_later_is_the_batch_that_was_built_with_the_mark() {
    let built = |mark: Option<(ProducerId, u32, Sequence)>| {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(Some(b"key"), b"value", &[], 5).unwrap();
        if let Some((id, epoch, sequence)) = mark {
            builder.producer(id, epoch, sequence);
        }
        builder.finish().unwrap()
    };
    let wanted = (ProducerId(9), 3, Sequence(77));
    for first in [None, Some((ProducerId(1), 1, Sequence(1)))] {
        let shared = built(first);
        let kept = shared.clone();
        assert_eq!(mark_producer(shared, wanted.0, wanted.1, wanted.2), built(Some(wanted)));
        assert_eq!(kept, built(first), "who holds the batch too keeps it as it was");
        assert_eq!(mark_producer(built(first), wanted.0, wanted.1, wanted.2), built(Some(wanted)));
    }
}

#[test]
fn a_batch_is_passed_by_if_all_its_records_come_before_an_offset() {
    let batch = stored(Codec::None, &[Wish::value(b"a"), Wish::value(b"b"), Wish::value(b"c")]);
    let passed = |offset| len_if_before(&batch, Offset(offset));
    assert_eq!([999, 1000, 1002, 1003, 2000].map(passed), [0, 0, 0, batch.len(), batch.len()]);
    assert_eq!(len_if_before(&batch[..BATCH_HEADER_BYTES - 1], Offset(2000)), 0);
}

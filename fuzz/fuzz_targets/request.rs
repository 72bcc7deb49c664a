//! Arbitrary bytes as the body of a request of each kind. What is understood must be understood the same again after
//! it was written by a client.
//!
//! The first bytes are the fields of the frame's header; the rest is the body.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use pyralog_net::wire::{
    VERSION,
    frame::{FrameDecoder, FrameHeader},
    request::{
        Request, encode_alter_log, encode_create_log, encode_delete_log, encode_describe_cores,
        encode_describe_partition, encode_describe_server, encode_fetch, encode_find_offset, encode_metadata,
        encode_move, encode_produce_head, encode_recover, encode_subscribe, encode_trim, encode_unpin,
    },
};

fuzz_target!(|input: &[u8]| {
    let Some((&[api, odd], body)) = input.split_first_chunk() else { return };
    // Now and then another version or a status, which no request has.
    let (version, status) = if odd == 255 { (VERSION + 1, 0) } else { (VERSION, u16::from(odd == 254)) };
    let header = FrameHeader { body_bytes: body.len() as u32, version, api: api % 16, status, correlation: 7 };
    let Ok(request) = Request::decode(&header, Bytes::copy_from_slice(body)) else { return };
    let mut out = BytesMut::new();
    match &request {
        Request::Metadata(metadata) => encode_metadata(&mut out, 7, metadata),
        Request::CreateLog(create) => encode_create_log(&mut out, 7, create),
        Request::AlterLog(alter) => encode_alter_log(&mut out, 7, alter),
        Request::Trim(trim) => encode_trim(&mut out, 7, trim),
        Request::DeleteLog(name) => encode_delete_log(&mut out, 7, name),
        Request::Produce(produce) => {
            encode_produce_head(&mut out, 7, produce);
            out.extend_from_slice(&produce.append.batch);
        }
        Request::Fetch(fetch) => encode_fetch(&mut out, 7, fetch),
        Request::FindOffset(find) => encode_find_offset(&mut out, 7, find),
        Request::Subscribe(fetch) => encode_subscribe(&mut out, 7, fetch),
        Request::DescribePartition(partition) => encode_describe_partition(&mut out, 7, *partition),
        Request::DescribeServer => encode_describe_server(&mut out, 7),
        Request::Recover(recover) => encode_recover(&mut out, 7, recover),
        Request::Move(request) => encode_move(&mut out, 7, request),
        Request::Unpin(partition) => encode_unpin(&mut out, 7, *partition),
        Request::DescribeCores => encode_describe_cores(&mut out, 7),
    }
    let mut decoder = FrameDecoder::new();
    decoder.push(out.freeze());
    let frame = decoder.next_frame().expect("a request fits into a frame").expect("a whole frame");
    let again = Request::decode(&frame.header, frame.body).expect("a client's own request is understood");
    assert_eq!(format!("{request:?}"), format!("{again:?}"));
});

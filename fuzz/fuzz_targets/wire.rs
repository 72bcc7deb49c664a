//! Arbitrary bytes as a stream of frames, cut anywhere, and every frame as a request and as each kind of reply.
//!
//! The first byte is the length of the chunks in which the rest arrives. However the stream is cut, the same frames
//! must come out.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pyralog_net::wire::{
    Api,
    code::WireError,
    frame::{Frame, FrameDecoder},
    reply::{LogMetadata, Metadata, ServerDescription, decode_appended, decode_fetched, decode_found, decode_json},
    request::Request,
};

fuzz_target!(|input: &[u8]| {
    let Some((&chunk_bytes, stream)) = input.split_first() else { return };
    let frames = frames(stream, usize::from(chunk_bytes) + 1);
    assert_eq!(frames, self::frames(stream, stream.len().max(1)), "frames depend on how the stream was cut");
    for Frame { header, body } in frames {
        let _ = Request::decode(&header, body.clone());
        let _ = decode_appended(&body);
        let _ = decode_fetched(body.clone());
        let _ = decode_found(&body);
        let _ = decode_json::<Metadata>(Api::Metadata, &body);
        let _ = decode_json::<LogMetadata>(Api::CreateLog, &body);
        let _ = decode_json::<ServerDescription>(Api::DescribeServer, &body);
        let error = WireError::decode(header.status, &body);
        let _ = (error.to_string(), error.class(), error.is_retriable());
    }
});

fn frames(stream: &[u8], chunk_bytes: usize) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    for chunk in stream.chunks(chunk_bytes) {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

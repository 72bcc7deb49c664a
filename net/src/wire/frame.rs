//! Frames: a fixed header and a body whose length the header states.
//!
//! [`FrameDecoder`] takes a stream's bytes in chunks of any size and gives frames. It holds at most one unfinished
//! frame besides what was pushed and not yet taken, allocates nothing for a body before [`FrameDecoder::next_frame`] is
//! called (so that a server can reserve the memory first, see [`FrameDecoder::peek_header`]), and copies a body only if
//! it came in several chunks.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pyralog_engine::limits::BATCH_BYTES_MAX;

use super::{Api, VERSION, code::ProtocolError};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 16;

/// Bytes of a frame's body at most: one batch of the largest size and room for what an api puts before it.
pub const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX + (64 << 10);

const _: () = assert!(BODY_BYTES_MAX <= u32::MAX as usize, "a body's length is a u32");

/// What a frame says before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the body, at most [`BODY_BYTES_MAX`].
    pub body_bytes: u32,
    /// The protocol's version; [`VERSION`] in frames of ours.
    pub version: u8,
    /// The number of the api; see [`Api`].
    pub api: u8,
    /// 0 in requests and successful replies, else an error's code.
    pub status: u16,
    /// Chosen by the client for the request, returned in the reply.
    pub correlation: u64,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its body: exactly `header.body_bytes`.
    pub body: Bytes,
}

impl FrameHeader {
    /// The header of a request, or of a reply without error. `body_bytes` is what follows the header.
    ///
    /// Panics if `body_bytes` is above [`BODY_BYTES_MAX`]: callers check their input against the limits of its own
    /// kind.
    pub fn new(api: Api, correlation: u64, body_bytes: usize) -> Self {
        assert!(body_bytes <= BODY_BYTES_MAX, "a body of {body_bytes} bytes is above {BODY_BYTES_MAX}");
        FrameHeader { body_bytes: body_bytes as u32, version: VERSION, api: api.number(), status: 0, correlation }
    }

    /// Appends the header's 16 bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(HEADER_BYTES);
        out.put_u32_le(self.body_bytes);
        out.put_u8(self.version);
        out.put_u8(self.api);
        out.put_u16_le(self.status);
        out.put_u64_le(self.correlation);
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut bytes = bytes.as_slice();
        FrameHeader {
            body_bytes: bytes.get_u32_le(),
            version: bytes.get_u8(),
            api: bytes.get_u8(),
            status: bytes.get_u16_le(),
            correlation: bytes.get_u64_le(),
        }
    }
}

/// Cuts one stream into frames.
///
/// The loop of a reader: push what came; then, until it gives nothing, [`next_frame`](Self::next_frame). A reader that
/// must reserve memory looks at [`peek_header`](Self::peek_header) before each `next_frame`.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// What was pushed and not yet consumed. No empty chunks.
    chunks: VecDeque<Bytes>,
    /// The start of a header that is not complete yet; the first `partial_bytes` count.
    partial: [u8; HEADER_BYTES],
    partial_bytes: usize,
    /// The header of the frame whose body comes next.
    header: Option<FrameHeader>,
    /// What came of a body that is spread over chunks; its capacity is the body's length.
    body: BytesMut,
}

impl FrameDecoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the stream's next bytes.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// The header of the next frame, if all of it is here; the body may not be. Nothing was allocated for the body yet.
    ///
    /// Errors: `FrameTooLarge`. The stream cannot be read further then.
    pub fn peek_header(&mut self) -> Result<Option<FrameHeader>, ProtocolError> {
        if self.header.is_none() {
            let Some(header) = self.read_header() else { return Ok(None) };
            self.header = Some(header);
        }
        match self.header {
            // Checked on every look, so that a caller that goes on after the error gets it again, never garbage.
            Some(header) if header.body_bytes as usize > BODY_BYTES_MAX => {
                Err(ProtocolError::FrameTooLarge { body_bytes: header.body_bytes })
            }
            header => Ok(header),
        }
    }

    /// The next frame, if all of it is here. Otherwise, if its header is here, what came of its body is moved into a
    /// buffer of the body's size, so that the chunks (which may be slices of larger receive buffers) can go.
    ///
    /// Errors: `FrameTooLarge`. The stream cannot be read further then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let Some(header) = self.peek_header()? else { return Ok(None) };
        let Some(body) = self.take_body(header.body_bytes as usize) else { return Ok(None) };
        self.header = None;
        Ok(Some(Frame { header, body }))
    }

    /// Whether the stream may end here: no frame has begun.
    pub fn is_at_frame_boundary(&self) -> bool {
        self.header.is_none() && self.partial_bytes == 0 && self.chunks.is_empty()
    }

    fn read_header(&mut self) -> Option<FrameHeader> {
        if self.partial_bytes == 0
            && let Some(chunk) = self.chunks.front_mut()
            && let Some(bytes) = chunk.first_chunk::<HEADER_BYTES>()
        {
            let header = FrameHeader::decode(bytes);
            chunk.advance(HEADER_BYTES);
            self.drop_empty_front();
            return Some(header);
        }
        while self.partial_bytes < HEADER_BYTES {
            let chunk = self.chunks.front_mut()?;
            let taken = chunk.len().min(HEADER_BYTES - self.partial_bytes);
            self.partial[self.partial_bytes..self.partial_bytes + taken].copy_from_slice(&chunk[..taken]);
            chunk.advance(taken);
            self.partial_bytes += taken;
            self.drop_empty_front();
        }
        self.partial_bytes = 0;
        Some(FrameHeader::decode(&self.partial))
    }

    fn take_body(&mut self, length: usize) -> Option<Bytes> {
        if length == 0 {
            return Some(Bytes::new());
        }
        if self.body.is_empty()
            && let Some(chunk) = self.chunks.front_mut()
            && chunk.len() >= length
        {
            let body = chunk.split_to(length);
            self.drop_empty_front();
            return Some(body);
        }
        while self.body.len() < length {
            let chunk = self.chunks.front_mut()?;
            if self.body.capacity() < length {
                assert!(self.body.is_empty(), "a body is given its room at its start");
                self.body = BytesMut::with_capacity(length);
            }
            let taken = chunk.len().min(length - self.body.len());
            self.body.extend_from_slice(&chunk[..taken]);
            chunk.advance(taken);
            self.drop_empty_front();
        }
        Some(std::mem::take(&mut self.body).freeze())
    }

    fn drop_empty_front(&mut self) {
        if self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(frames: &[Frame]) -> Bytes {
        let mut out = BytesMut::new();
        for frame in frames {
            frame.header.encode(&mut out);
            out.extend_from_slice(&frame.body);
        }
        out.freeze()
    }

    fn frame(api: u8, status: u16, correlation: u64, body: Vec<u8>) -> Frame {
        let header = FrameHeader { body_bytes: body.len() as u32, version: VERSION, api, status, correlation };
        Frame { header, body: body.into() }
    }

    fn drain(decoder: &mut FrameDecoder, into: &mut Vec<Frame>) {
        while let Some(frame) = decoder.next_frame().unwrap() {
            into.push(frame);
        }
    }

    #[test]
    fn a_header_is_these_sixteen_bytes() {
        let mut out = BytesMut::new();
        let header =
            FrameHeader { body_bytes: 0x0403_0201, version: 1, api: 4, status: 0x0605, correlation: 0x0706_0504 };
        header.encode(&mut out);
        assert_eq!(&out[..], [1, 2, 3, 4, 1, 4, 5, 6, 4, 5, 6, 7, 0, 0, 0, 0]);
    }

    #[test]
    fn a_body_in_one_chunk_is_not_copied() {
        let stream = bytes_of(&[frame(4, 0, 1, vec![7; 1000])]);
        let mut decoder = FrameDecoder::new();
        decoder.push(stream.clone());
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(frame.body.as_ptr(), stream[HEADER_BYTES..].as_ptr());
    }

    #[test]
    fn a_header_is_seen_before_its_body_and_costs_no_memory() {
        let header = FrameHeader::new(Api::Produce, 9, BODY_BYTES_MAX);
        let mut out = BytesMut::new();
        header.encode(&mut out);
        let mut decoder = FrameDecoder::new();
        decoder.push(out.freeze());
        assert_eq!(decoder.peek_header(), Ok(Some(header)));
        assert_eq!(decoder.body.capacity(), 0);
        assert!(!decoder.is_at_frame_boundary());
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_for_good() {
        let mut out = BytesMut::new();
        FrameHeader { body_bytes: BODY_BYTES_MAX as u32 + 1, ..FrameHeader::new(Api::Produce, 9, 0) }.encode(&mut out);
        let mut decoder = FrameDecoder::new();
        decoder.push(out.freeze());
        for _ in 0..2 {
            assert!(matches!(decoder.next_frame(), Err(ProtocolError::FrameTooLarge { .. })));
            decoder.push(Bytes::from_static(&[0; 64]));
        }
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(
            bodies in proptest::collection::vec((any::<u8>(), any::<u16>(), any::<u64>(), 0usize..300), 0..20),
            cuts in proptest::collection::vec(1usize..90, 1..40),
            drained_each_time: bool,
        ) {
            let frames: Vec<Frame> =
                bodies.into_iter().map(|(api, status, id, len)| frame(api, status, id, vec![api; len])).collect();
            let mut stream = bytes_of(&frames);
            let (mut decoder, mut seen, mut cuts) = (FrameDecoder::new(), Vec::new(), cuts.iter().cycle());
            while !stream.is_empty() {
                let cut = stream.len().min(*cuts.next().unwrap());
                decoder.push(stream.split_to(cut));
                if drained_each_time {
                    drain(&mut decoder, &mut seen);
                }
            }
            drain(&mut decoder, &mut seen);
            prop_assert_eq!(seen, frames);
            prop_assert!(decoder.is_at_frame_boundary());
        }

        #[test]
        fn arbitrary_bytes_neither_panic_nor_allocate_beyond_the_limit(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..64)
        ) {
            let mut decoder = FrameDecoder::new();
            for chunk in chunks {
                decoder.push(chunk.into());
                while let Ok(Some(_)) = decoder.next_frame() {}
                prop_assert!(decoder.body.capacity() <= BODY_BYTES_MAX);
            }
        }
    }
}

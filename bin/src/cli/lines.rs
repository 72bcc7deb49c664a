//! Cuts a stream of bytes into records at a delimiter, without ever holding more than a block and a record. Pure but
//! for the reading itself.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

/// How much is read at once: enough for the disk's bandwidth, little enough to stay in the CPU's cache.
const BLOCK_BYTES: usize = 256 << 10;

/// One record of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its bytes, without the delimiter. Shares its memory with its neighbours.
    pub bytes: Bytes,
    /// Whether the delimiter followed; `false` only for the last of an input that does not end with one.
    pub is_ended: bool,
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// The input could not be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// A record is larger than a record may be; without a bound a file without newlines would be read into memory
    /// whole.
    #[error("record {number} has more than {limit_bytes} bytes, the most a record may have")]
    TooLong {
        /// Its number in the input, from 1.
        number: u64,
        /// What is allowed.
        limit_bytes: usize,
    },
}

/// An input that is cut as it is read.
pub struct Lines<R> {
    input: R,
    delimiter: Vec<u8>,
    limit_bytes: usize,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no delimiter.
    searched: usize,
    is_over: bool,
    count: u64,
    /// What stopped the cutting after records that had to be handed on first.
    failure: Option<LinesError>,
}

impl<R: Read> Lines<R> {
    /// Cuts `input` at `delimiter`, which is not empty, into records of at most `limit_bytes`.
    pub fn new(input: R, delimiter: &[u8], limit_bytes: usize) -> Self {
        assert!(!delimiter.is_empty(), "records would never end");
        let buffer = BytesMut::with_capacity(BLOCK_BYTES);
        let delimiter = delimiter.to_vec();
        Lines { input, delimiter, limit_bytes, buffer, searched: 0, is_over: false, count: 0, failure: None }
    }

    /// The records that are there, at least one, waiting for a read only if there is none; none at the end. So a slow
    /// input's records are handed on as they come.
    pub fn next_lines(&mut self) -> Result<Vec<Line>, LinesError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut lines = Vec::new();
        loop {
            match self.cut() {
                Ok(Some(line)) => lines.push(line),
                Ok(None) if lines.is_empty() && !self.is_over => self.read_block()?,
                Ok(None) => return Ok(lines),
                Err(failure) if lines.is_empty() => return Err(failure),
                Err(failure) => {
                    self.failure = Some(failure);
                    return Ok(lines);
                }
            }
        }
    }

    /// The next record, if all of it was read.
    fn cut(&mut self) -> Result<Option<Line>, LinesError> {
        if let Some(at) = find(&self.buffer[self.searched..], &self.delimiter) {
            let mut bytes = self.buffer.split_to(self.searched + at + self.delimiter.len());
            bytes.truncate(self.searched + at);
            self.searched = 0;
            return self.line(bytes.freeze(), true).map(Some);
        }
        // A delimiter may be cut in two by the end of the buffer.
        self.searched = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
        if self.is_over && !self.buffer.is_empty() {
            self.searched = 0;
            let rest = self.buffer.split().freeze();
            return self.line(rest, false).map(Some);
        }
        if self.searched > self.limit_bytes {
            return Err(LinesError::TooLong { number: self.count + 1, limit_bytes: self.limit_bytes });
        }
        Ok(None)
    }

    fn line(&mut self, bytes: Bytes, is_ended: bool) -> Result<Line, LinesError> {
        self.count += 1;
        if bytes.len() > self.limit_bytes {
            return Err(LinesError::TooLong { number: self.count, limit_bytes: self.limit_bytes });
        }
        Ok(Line { bytes, is_ended })
    }

    fn read_block(&mut self) -> io::Result<()> {
        let held = self.buffer.len();
        self.buffer.resize(held + BLOCK_BYTES, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[held..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(held + *read.as_ref().unwrap_or(&0));
        self.is_over = read? == 0;
        Ok(())
    }
}

fn find(bytes: &[u8], delimiter: &[u8]) -> Option<usize> {
    match delimiter {
        [single] => memchr::memchr(*single, bytes),
        longer => memchr::memmem::find(bytes, longer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, as a pipe does.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let some = self.1.min(self.0.len()).min(out.len());
            out[..some].copy_from_slice(&self.0[..some]);
            self.0 = &self.0[some..];
            Ok(some)
        }
    }

    fn cut(input: &[u8], delimiter: &[u8], step: usize) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Lines::new(Drops(input, step), delimiter, 100);
        let mut all = Vec::new();
        loop {
            let some = lines.next_lines().unwrap();
            if some.is_empty() {
                return all;
            }
            all.extend(some.into_iter().map(|line| (line.bytes.to_vec(), line.is_ended)));
        }
    }

    #[test]
    fn joined_again_the_records_are_the_input_whatever_the_reads() {
        for input in ["", "a", "a\n", "\n", "\n\n", "a\n\nb", "a\r\nb\r\n", "ab--c-d--", "--", "-", "a-"] {
            for delimiter in ["\n", "--"] {
                for step in [1, 2, 3, 100] {
                    let cut = cut(input.as_bytes(), delimiter.as_bytes(), step);
                    let joined: Vec<u8> = cut
                        .iter()
                        .flat_map(|(bytes, ended)| {
                            [&bytes[..], if *ended { delimiter.as_bytes() } else { b"" }].concat()
                        })
                        .collect();
                    assert_eq!(joined, input.as_bytes(), "{input:?} at {delimiter:?} in steps of {step}");
                    assert!(cut.iter().rev().skip(1).all(|(_, ended)| *ended));
                }
            }
        }
    }

    #[test]
    fn an_empty_line_is_an_empty_record_and_the_end_of_the_last_line_is_none() {
        assert_eq!(cut(b"a\n\nb\n", b"\n", 9), [(b"a".to_vec(), true), (vec![], true), (b"b".to_vec(), true)]);
        assert_eq!(cut(b"", b"\n", 9), []);
    }

    #[test]
    fn a_record_at_the_limit_passes_and_one_byte_more_is_named() {
        let input = [[b'x'; 100].as_slice(), b"\n", &[b'y'; 101], b"\n"].concat();
        let mut lines = Lines::new(&input[..], b"\n", 100);
        let before: Vec<_> = lines.next_lines().unwrap().into_iter().map(|line| line.bytes.len()).collect();
        assert_eq!(before, [100]);
        let message = lines.next_lines().unwrap_err().to_string();
        assert_eq!(message, "record 2 has more than 100 bytes, the most a record may have");
    }

    #[test]
    fn what_is_there_is_handed_on_before_more_is_read() {
        let mut lines = Lines::new(Drops(b"a\nb\nc", 4), b"\n", 100);
        assert_eq!(lines.next_lines().unwrap().len(), 2);
        assert_eq!(lines.next_lines().unwrap().len(), 1);
        assert!(lines.next_lines().unwrap().is_empty());
    }

    #[test]
    fn an_endless_line_is_refused_before_it_fills_the_memory() {
        let mut lines = Lines::new(io::repeat(b'x'), b"\n", 1 << 20);
        assert!(matches!(lines.next_lines(), Err(LinesError::TooLong { number: 1, .. })));
        assert!(lines.buffer.len() <= (1 << 20) + 2 * BLOCK_BYTES);
    }
}

//! `--output` of `dlog consume`: a record's value, JSON, or a format of the user's own. Pure.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

/// How records are printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The value and the delimiter.
    Value,
    /// One JSON object a line.
    Json,
    /// Pieces of text and fields.
    Format(Vec<Piece>),
}

/// A piece of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Itself.
    Text(Vec<u8>),
    /// `%o`.
    Offset,
    /// `%k`; nothing if there is none.
    Key,
    /// `%s`.
    Value,
    /// `%p`.
    Partition,
    /// `%t`, milliseconds since 1970.
    Timestamp,
}

/// A record as it is printed.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its timestamp in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
    /// Its headers.
    pub headers: &'a [(bytes::Bytes, bytes::Bytes)],
}

/// Reads `value`, `json`, or a format such as `"%o %k %s\n"`.
pub fn parse_output(text: &str) -> Result<Output, String> {
    match text {
        "value" => return Ok(Output::Value),
        "json" => return Ok(Output::Json),
        _ if !text.contains(['%', '\\']) => {
            return Err(format!("`{text}` is no output; there are value, json, and formats such as \"%o %k %s\\n\""));
        }
        _ => {}
    }
    let (mut pieces, mut plain) = (Vec::new(), Vec::new());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\\' {
            plain.push(escaped(rest.next())?);
            continue;
        }
        let piece = match c {
            '%' => match rest.next() {
                Some('o') => Piece::Offset,
                Some('k') => Piece::Key,
                Some('s') => Piece::Value,
                Some('p') => Piece::Partition,
                Some('t') => Piece::Timestamp,
                Some('%') => {
                    plain.push(b'%');
                    continue;
                }
                other => return Err(format!("there is no field `%{}`; there are {FIELDS}", shown(other))),
            },
            other => {
                plain.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(piece);
    }
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(Output::Format(pieces))
}

const FIELDS: &str = "%o (offset), %k (key), %s (value), %p (partition), %t (timestamp in ms) and %%";

fn shown(c: Option<char>) -> String {
    c.map_or_else(String::new, String::from)
}

fn escaped(c: Option<char>) -> Result<u8, String> {
    match c {
        Some('n') => Ok(b'\n'),
        Some('t') => Ok(b'\t'),
        Some('r') => Ok(b'\r'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        other => Err(format!("there is no escape `\\{}`; there are \\n, \\t, \\r, \\0 and \\\\", shown(other))),
    }
}

/// Reads a delimiter: any text, with the escapes of formats; not empty.
pub fn parse_delimiter(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => bytes.push(escaped(rest.next())?),
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    if bytes.is_empty() { Err("a delimiter has at least one byte".to_owned()) } else { Ok(bytes) }
}

/// Prints one record, without its delimiter: that is the caller's, who knows whether another follows.
pub fn print(output: &Output, record: &Shown<'_>, out: &mut impl Write) -> io::Result<()> {
    match output {
        Output::Value => out.write_all(record.value),
        Output::Json => serde_json::to_writer(&mut *out, &as_json(record)).map_err(io::Error::from),
        Output::Format(pieces) => pieces.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => out.write_all(text),
            Piece::Offset => write!(out, "{}", record.offset),
            Piece::Key => out.write_all(record.key.unwrap_or_default()),
            Piece::Value => out.write_all(record.value),
            Piece::Partition => write!(out, "{}", record.partition),
            Piece::Timestamp => write!(out, "{}", record.timestamp_ms),
        }),
    }
}

fn as_json(record: &Shown<'_>) -> Value {
    let mut object = Map::new();
    object.insert("partition".to_owned(), record.partition.into());
    object.insert("offset".to_owned(), record.offset.into());
    object.insert("timestamp_ms".to_owned(), record.timestamp_ms.into());
    put(&mut object, "key", record.key);
    put(&mut object, "value", Some(record.value));
    if !record.headers.is_empty() {
        let header = |(name, value): &(bytes::Bytes, bytes::Bytes)| {
            let mut header = Map::new();
            put(&mut header, "name", Some(name));
            put(&mut header, "value", Some(value));
            Value::Object(header)
        };
        object.insert("headers".to_owned(), record.headers.iter().map(header).collect());
    }
    Value::Object(object)
}

/// Text as it is; other bytes as hexadecimal digits under the name `…_hex`, so that nothing is lost and nothing is
/// mistaken.
fn put(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => object.insert(name.to_owned(), Value::Null),
        Some((Ok(text), _)) => object.insert(name.to_owned(), json!(text)),
        Some((Err(_), bytes)) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            object.insert(format!("{name}_hex"), json!(digits))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Shown<'_> =
        Shown { partition: 3, offset: 7, timestamp_ms: 9, key: Some(b"k"), value: b"v\xff", headers: &[] };

    fn printed(output: &str, record: &Shown<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        print(&parse_output(output).unwrap(), record, &mut out).unwrap();
        out
    }

    #[test]
    fn every_field_and_escape_is_printed() {
        assert_eq!(printed("%p:%o %t %k=%s 100%%\\t\\n", &RECORD), b"3:7 9 k=v\xff 100%\t\n");
        assert_eq!(printed("ä%k|", &Shown { key: None, ..RECORD }), "ä|".as_bytes());
        assert_eq!(printed("value", &RECORD), b"v\xff");
    }

    #[test]
    fn json_loses_no_byte() {
        let object: Value = serde_json::from_slice(&printed("json", &RECORD)).unwrap();
        assert_eq!(object, json!({"partition": 3, "offset": 7, "timestamp_ms": 9, "key": "k", "value_hex": "76ff"}));
        let headers = [(bytes::Bytes::from_static(b"h"), bytes::Bytes::from_static(b"1"))];
        let record = Shown { key: None, value: b"\n", headers: &headers, ..RECORD };
        let object: Value = serde_json::from_slice(&printed("json", &record)).unwrap();
        assert_eq!(object["key"], Value::Null);
        assert_eq!(object["value"], "\n");
        assert_eq!(object["headers"], json!([{"name": "h", "value": "1"}]));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_what_there_is() {
        for (text, word) in
            [("%x", "there is no field `%x`"), ("%", "`%`"), ("a\\q", "no escape `\\q`"), ("xml", "no output")]
        {
            let message = parse_output(text).unwrap_err();
            assert!(message.contains(word), "{message}");
        }
        assert!(parse_delimiter("").is_err());
        assert_eq!(parse_delimiter("\\0").unwrap(), [0]);
        assert_eq!(parse_delimiter("--\\r\\n").unwrap(), b"--\r\n");
    }
}

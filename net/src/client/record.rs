//! Records as a caller gives them.

use bytes::Bytes;
use pyralog_engine::types::PartitionIndex;

/// A record to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The key; records with equal keys go to the same partition. An empty key is a key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Bytes,
    /// Names and values, in order; a name may occur twice.
    pub headers: Vec<(Bytes, Bytes)>,
    /// In milliseconds since 1970; `None` for the time at which the client builds the batch.
    pub timestamp_ms: Option<i64>,
    /// The partition; `None` leaves it to the key, else to the client.
    pub partition: Option<PartitionIndex>,
}

impl Record {
    /// A record of this value alone.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Record { value: value.into(), ..Record::default() }
    }

    /// The record with this key.
    pub fn with_key(mut self, key: impl IntoKey) -> Self {
        self.key = key.into_key();
        self
    }

    /// The record with one more header.
    pub fn with_header(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The record with this timestamp, in milliseconds since 1970.
    pub fn with_timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// The record for this partition, whatever its key.
    pub fn with_partition(mut self, partition: PartitionIndex) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Bytes of key, value and headers.
    pub fn len_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.len() + headers
    }
}

/// What can be written as a record: a [`Record`], or a key and a value.
pub trait IntoRecord {
    /// The record.
    fn into_record(self) -> Record;
}

impl IntoRecord for Record {
    fn into_record(self) -> Record {
        self
    }
}

impl<K: IntoKey, V: Into<Bytes>> IntoRecord for (K, V) {
    fn into_record(self) -> Record {
        Record { key: self.0.into_key(), value: self.1.into(), ..Record::default() }
    }
}

/// What can be a key: all that is `Into<Option<Bytes>>`, which is `Bytes`, `Option<Bytes>` and `None`, and texts and
/// byte strings too.
pub trait IntoKey {
    /// The key, if there is one.
    fn into_key(self) -> Option<Bytes>;
}

// One implementation for an `Option`, so that a bare `None` is understood.
impl IntoKey for Option<Bytes> {
    fn into_key(self) -> Option<Bytes> {
        self
    }
}

macro_rules! into_key {
    ($($type:ty),*) => {
        $(impl IntoKey for $type {
            fn into_key(self) -> Option<Bytes> {
                Some(self.into())
            }
        })*
    };
}

into_key!(Bytes, &'static str, &'static [u8], String, Vec<u8>);

impl IntoKey for &Bytes {
    fn into_key(self) -> Option<Bytes> {
        Some(self.clone())
    }
}

impl<const N: usize> IntoKey for &'static [u8; N] {
    fn into_key(self) -> Option<Bytes> {
        Some(Bytes::from_static(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_many_types_and_none_needs_no_annotation() {
        let key = |key: Option<Bytes>| key.as_deref().map(<[u8]>::to_vec);
        assert_eq!(key(None.into_key()), None);
        let some = Some(b"k".to_vec());
        assert_eq!(key(Some(Bytes::from("k")).into_key()), some);
        assert_eq!(key("k".into_key()), some);
        assert_eq!(key(b"k".into_key()), some);
        assert_eq!(key(String::from("k").into_key()), some);
        assert_eq!(key((&Bytes::from("k")).into_key()), some);
        let record = (None, "value").into_record();
        assert_eq!((record.key, record.value), (None, Bytes::from("value")));
    }
}

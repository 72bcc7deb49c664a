//! Sizes and durations as people write them: `512MiB`, `10ms`. A bare integer is in the base unit.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// Units of size, longest name first where one ends another. Binary and decimal ones are told apart as IEC 80000 does.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Units of time in milliseconds; `ms` before `s`, since it ends with it.
const TIME_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A size in bytes; always 64 bits wide, so that the throughput profile's 4 GiB segments fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// A duration in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    /// An integer (bytes), or an integer and a unit: `64MiB`, `64 MB`. Case does not matter.
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, &SIZE_UNITS).map(ByteSize).ok_or_else(|| format!("`{text}` is no size; write 1048576 or 1MiB"))
    }
}

impl FromStr for Millis {
    type Err = String;

    /// An integer (milliseconds), or an integer and one of `ms`, `s`, `min`, `h`, `d`.
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, &TIME_UNITS).map(Millis).ok_or_else(|| format!("`{text}` is no duration; write 10 or 10ms"))
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Some(number);
    }
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*factor)
}

impl fmt::Display for ByteSize {
    /// The largest binary unit that divides it, so that what is printed can be read back exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |(_, factor): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*factor);
        match SIZE_UNITS[..4].iter().rev().find(divides) {
            Some((unit, factor)) => write!(f, "{} {unit}", self.0 / factor),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// About `bytes`, for people: three digits or fewer and a unit.
pub fn about(bytes: u64) -> String {
    let (unit, factor) = SIZE_UNITS[..4].iter().rev().find(|(_, factor)| bytes >= *factor).unwrap_or(&("B", 1));
    let tenths = (u128::from(bytes) * 10 / u128::from(*factor)) as u64;
    if tenths < 100 && !tenths.is_multiple_of(10) {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", tenths / 10)
    }
}

macro_rules! number_or_text {
    ($name:ident, $words:literal, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($words)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        Ok($name(number))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "anyOf": [
                    { "type": "integer", "minimum": 0 },
                    { "type": "string", "pattern": $pattern },
                ] })
            }
        }
    };
}

number_or_text!(ByteSize, "a size such as 1048576 or \"1MiB\"", "^[0-9]+ *([KMGTkmgt]?i?[Bb])?$");
number_or_text!(Millis, "a duration such as 10 or \"10ms\"", "^[0-9]+ *(ms|s|min|h|d)?$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4294967296", 1 << 32),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("64KB", 64_000),
            ("7B", 7),
            ("16TiB", 16 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "1.5GiB", "-1", "12 parsecs", "99999999999TiB", "18446744073709551616", "1 000"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in
            [("10", 10), ("10ms", 10), ("2 s", 2_000), ("1min", 60_000), ("1h", 3_600_000), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse(), Ok(Millis(ms)), "{text}");
        }
        assert!("10 fortnights".parse::<Millis>().is_err());
    }

    #[test]
    fn a_printed_size_reads_back_as_itself() {
        for bytes in [0, 1, 1_000, 1023, 1024, 1536, 4_294_967_296, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(about(25_281_740_800), "23 GiB");
        assert_eq!(about(1_610_612_736), "1.5 GiB");
        assert_eq!(about(12), "12 B");
    }
}

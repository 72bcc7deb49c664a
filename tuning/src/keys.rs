//! The table of keys: every path of the configuration with its kind and range. All layers are checked against it, and
//! `docs/CONFIG.md` is generated from it.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{
    copies::COPIES_MAX,
    cores,
    data_dirs::DATA_DIRS_MAX,
    profile::Profile,
    promise::Ack,
    units::{ByteSize, Millis},
};

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its path, levels joined with dots.
    pub path: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Its own flag of `dlog serve`, if it has one; every key can be set with `--set PATH=VALUE`.
    pub flag: Option<&'static str>,
}

/// What values a key takes. Ranges include both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes.
    Size(u64, u64),
    /// Milliseconds.
    Millis(u64, u64),
    /// A number without a unit.
    Count(u64, u64),
    /// `true` or `false`.
    Switch,
    /// Paths of the file system, one or several.
    Paths,
    /// An IP address and a port.
    Address,
    /// A set of CPUs.
    Cores,
    /// An ack level.
    Ack,
    /// The name of a profile.
    Profile,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const fn key(path: &'static str, kind: Kind) -> Key {
    Key { path, kind, flag: None }
}

const fn flagged(path: &'static str, kind: Kind, flag: &'static str) -> Key {
    Key { path, kind, flag: Some(flag) }
}

/// Every key, in the order of the documentation.
pub const KEYS: &[Key] = &[
    flagged("profile", Kind::Profile, "--profile"),
    flagged("server.data_dir", Kind::Paths, "--data-dir"),
    flagged("server.listen", Kind::Address, "--listen"),
    flagged("server.http", Kind::Address, "--http"),
    flagged("server.cores", Kind::Cores, "--cores"),
    // Above an hour nobody is waiting any more.
    key("server.drain_time_ms", Kind::Millis(0, 3_600_000)),
    // Beyond a millisecond a core may as well never sleep, and that is what 1,000,000 comes to.
    key("server.spin_before_park_us", Kind::Count(0, 1_000_000)),
    // A core's connection table; 65,536 is where the memory arithmetic has long said no.
    key("network.connections_per_core", Kind::Count(1, 65_536)),
    key("network.connections_per_ip", Kind::Count(1, 65_536)),
    // 16 MiB is two batches of the largest size; below, a core could never overlap two requests.
    key("memory.requests", Kind::Size(16 * MIB, 16 * TIB)),
    key("memory.read_cache", Kind::Size(0, 16 * TIB)),
    key("memory.network", Kind::Size(MIB, 16 * TIB)),
    key("log.ack", Kind::Ack),
    // The least holds the header block and a batch of the largest size; the most keeps recovery's scan of one file
    // bearable.
    key("storage.segment_config.max_size", Kind::Size(16 * MIB, 64 * GIB)),
    key("storage.segment_config.use_mmap", Kind::Switch),
    key("storage.segment_config.sync_on_write", Kind::Switch),
    key("storage.cache_config.max_size", Kind::Size(4 * KIB, 4 * GIB)),
    // A minute of loss is more than anybody can mean by a write cache.
    key("storage.cache_config.max_buffer_time_ms", Kind::Millis(1, 60_000)),
    key("storage.cache_config.enabled", Kind::Switch),
    key("storage.sync_interval_ms", Kind::Millis(1, 60_000)),
    // Below, a busy drive that is well is suspected all the time; after a minute everybody has given up waiting.
    key("storage.drive_timeout_ms", Kind::Millis(50, 60_000)),
    key("storage.scrub.bytes_per_second", Kind::Size(0, 64 * GIB)),
    // From a test's second to a year, after which a drive has rotted unseen.
    key("storage.scrub.period_ms", Kind::Millis(1_000, 31_536_000_000)),
    key("storage.reserve_bytes", Kind::Size(0, 16 * TIB)),
    // A hundred years, and more than a drive has: beyond them one means for ever.
    key("storage.retention.max_age_ms", Kind::Millis(1, 100 * 365 * 86_400_000)),
    key("storage.retention.max_size", Kind::Size(1, 16 * TIB)),
    // What is looked at costs a moment for each partition; an hour is late enough.
    key("storage.retention.check_interval_ms", Kind::Millis(10, 3_600_000)),
    key("replication.quorum.replication_factor", Kind::Count(1, COPIES_MAX)),
    key("replication.quorum.write_quorum", Kind::Count(1, COPIES_MAX)),
    key("replication.quorum.read_quorum", Kind::Count(1, COPIES_MAX)),
    key("balancing.enabled", Kind::Switch),
    key("balancing.busy_percent", Kind::Count(1, 100)),
    key("balancing.difference_percent", Kind::Count(1, 100)),
    // Below, a burst is taken for a load; within an hour people look themselves.
    key("balancing.period_ms", Kind::Millis(1_000, 3_600_000)),
];

/// The key with this path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether keys stand below `path`.
pub fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The known key or section that looks most like `path`, if one looks like it at all.
pub fn nearest(path: &str) -> Option<&'static str> {
    let last = path.rsplit('.').next().unwrap_or(path);
    let likeness = |known: &'static str| {
        let own_last = known.rsplit('.').next().unwrap_or(known);
        // A key put at the wrong level is as likely as a slip of the finger; among equals the whole path decides.
        let whole = strsim::normalized_damerau_levenshtein(path, known);
        let tail = strsim::normalized_damerau_levenshtein(last, own_last) * 0.95;
        (whole.max(tail), whole)
    };
    let candidates = KEYS.iter().map(|key| key.path).chain(sections()).map(|known| (likeness(known), known));
    let best =
        candidates.max_by(|((a, a_whole), _), ((b, b_whole), _)| a.total_cmp(b).then(a_whole.total_cmp(b_whole)));
    best.filter(|((likeness, _), _)| *likeness >= 0.6).map(|(_, known)| known)
}

/// The paths that have keys below them, each once.
pub fn sections() -> impl Iterator<Item = &'static str> {
    let prefixes = KEYS.iter().flat_map(|key| key.path.match_indices('.').map(|(at, _)| &key.path[..at]));
    prefixes.collect::<std::collections::BTreeSet<_>>().into_iter()
}

/// A value as a layer gives it, before it is checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw {
    /// `true` or `false` of a file.
    Switch(bool),
    /// A number of a file, as it is written.
    Number(String),
    /// A string of a file.
    Text(String),
    /// The words of a flag or of an environment variable, which have no types.
    Words(String),
    /// A list of strings.
    List(Vec<String>),
    /// Something that no key takes: `null`, another list, an object.
    Other(&'static str),
}

impl Raw {
    /// The value for a message.
    pub(crate) fn shown(&self) -> String {
        match self {
            Raw::Switch(value) => value.to_string(),
            Raw::Number(text) | Raw::Words(text) => text.clone(),
            Raw::Text(text) => format!("{text:?}"),
            Raw::List(list) => format!("{list:?}"),
            Raw::Other(what) => (*what).to_owned(),
        }
    }
}

/// Paths in their one form: a string for one, a list for several.
fn paths<'a>(paths: impl Iterator<Item = &'a str>) -> Option<Value> {
    let mut paths: Vec<Value> = paths.map(|path| (!path.is_empty()).then(|| path.into())).collect::<Option<_>>()?;
    match paths.len() {
        1 => paths.pop(),
        2..=DATA_DIRS_MAX => Some(paths.into()),
        _ => None,
    }
}

impl Key {
    /// The environment variable of this key: `DLOG_` and the path in capitals, levels joined with `__`. Keys of
    /// `server` may also be written without their section: `DLOG_LISTEN`.
    pub fn environment_variables(&self) -> Vec<String> {
        let full = format!("DLOG_{}", self.path.replace('.', "__").to_ascii_uppercase());
        let short = self.path.strip_prefix("server.").map(|name| format!("DLOG_{}", name.to_ascii_uppercase()));
        short.into_iter().chain([full]).collect()
    }

    /// What is allowed, in words that follow "must be".
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Size(least, most) => {
                format!("a size from {} to {}, such as 67108864 or \"64MiB\"", ByteSize(least), ByteSize(most))
            }
            Kind::Millis(least, most) => {
                format!("a duration from {} to {}, such as 10 or \"10ms\"", Millis(least), Millis(most))
            }
            Kind::Count(least, most) => format!("an integer from {least} to {most}"),
            Kind::Switch => "true or false".to_owned(),
            Kind::Paths => format!("a path, or a list of 1 to {DATA_DIRS_MAX} paths"),
            Kind::Address => "an IP address and a port, such as \"127.0.0.1:9092\" or \"[::1]:9092\"".to_owned(),
            Kind::Cores => "\"all\", or CPUs such as \"0\", \"0-3\" or \"0,2,4-6\"".to_owned(),
            Kind::Ack => "received, written, durable or quorum".to_owned(),
            Kind::Profile => format!("one of {}", Profile::names().join(", ")),
        }
    }

    /// The checked value in its one form (sizes in bytes, durations in milliseconds), or nothing if it is not allowed.
    pub(crate) fn check(&self, raw: &Raw) -> Option<Value> {
        let text = match raw {
            Raw::Switch(value) => return (self.kind == Kind::Switch).then(|| Value::from(*value)),
            Raw::Number(text) => text,
            Raw::Text(text) | Raw::Words(text) => text,
            Raw::List(list) => {
                return (self.kind == Kind::Paths).then(|| paths(list.iter().map(String::as_str))).flatten();
            }
            Raw::Other(_) => return None,
        };
        let is_number = matches!(raw, Raw::Number(_));
        let within = |number: u64, least, most| (least..=most).contains(&number).then(|| Value::from(number));
        match self.kind {
            Kind::Size(least, most) => within(text.parse::<ByteSize>().ok()?.0, least, most),
            Kind::Millis(least, most) => within(text.parse::<Millis>().ok()?.0, least, most),
            // A count in quotes is a slip in a file, but a variable has no other form.
            Kind::Count(..) if matches!(raw, Raw::Text(_)) => None,
            Kind::Count(least, most) => within(text.parse().ok()?, least, most),
            Kind::Switch => match raw {
                Raw::Words(text) => text.parse::<bool>().ok().map(Value::from),
                _ => None,
            },
            // One CPU is as naturally written 0 as "0".
            Kind::Cores => cores::parse(text).is_ok().then(|| Value::from(text.as_str())),
            _ if is_number => None,
            Kind::Paths => match raw {
                Raw::Words(text) => paths(text.split(':')),
                _ => paths(std::iter::once(text.as_str())),
            },
            Kind::Address => text.parse::<SocketAddr>().ok().map(|address| Value::from(address.to_string())),
            Kind::Ack => text.parse::<Ack>().ok().map(|_| Value::from(text.as_str())),
            Kind::Profile => Profile::named(text).map(|profile| Value::from(profile.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(path: &str, raw: Raw) -> Option<Value> {
        find(path).unwrap().check(&raw)
    }

    #[test]
    fn both_ends_of_a_range_are_in_it_and_one_beyond_is_not() {
        for key in KEYS {
            let (Kind::Size(least, most) | Kind::Millis(least, most) | Kind::Count(least, most)) = key.kind else {
                continue;
            };
            for (number, fine) in [(least, true), (most, true), (most + 1, false), (least.wrapping_sub(1), false)] {
                let got = key.check(&Raw::Number(number.to_string()));
                assert_eq!(got.is_some(), fine, "{} = {number}", key.path);
            }
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused() {
        assert_eq!(checked("storage.cache_config.enabled", Raw::Number("1".into())), None);
        assert_eq!(checked("storage.cache_config.enabled", Raw::Text("true".into())), None);
        assert_eq!(checked("storage.cache_config.enabled", Raw::Words("true".into())), Some(true.into()));
        assert_eq!(checked("replication.quorum.write_quorum", Raw::Text("1".into())), None);
        assert_eq!(checked("replication.quorum.write_quorum", Raw::Number("1.0".into())), None);
        assert_eq!(checked("server.listen", Raw::Text("localhost".into())), None);
        assert_eq!(checked("server.data_dir", Raw::Number("7".into())), None);
        assert_eq!(checked("server.data_dir", Raw::Text(String::new())), None);
        assert_eq!(checked("server.cores", Raw::List(vec!["0".into()])), None);
        assert_eq!(checked("server.cores", Raw::Number("0".into())), Some("0".into()));
    }

    #[test]
    fn one_path_is_a_string_and_several_are_a_list_wherever_they_come_from() {
        let list = |paths: &[&str]| Raw::List(paths.iter().map(|path| (*path).to_owned()).collect());
        let dir = |raw| checked("server.data_dir", raw).map(|value| value.to_string());
        assert_eq!(dir(Raw::Text("/a:b".into())).unwrap(), "\"/a:b\"");
        assert_eq!(dir(list(&["/a"])).unwrap(), "\"/a\"");
        assert_eq!(dir(list(&["/a", "/b"])).unwrap(), "[\"/a\",\"/b\"]");
        assert_eq!(dir(Raw::Words("/a".into())).unwrap(), "\"/a\"");
        assert_eq!(dir(Raw::Words("/a:/b".into())).unwrap(), "[\"/a\",\"/b\"]");
        for none in [list(&[]), list(&["/a", ""]), Raw::Words("/a:".into()), list(&["/a"; DATA_DIRS_MAX + 1])] {
            assert_eq!(dir(none), None);
        }
        assert!(dir(list(&["/a"; DATA_DIRS_MAX])).is_some());
    }

    #[test]
    fn a_slip_of_the_finger_and_a_wrong_level_both_find_the_key() {
        for (wrong, right) in [
            ("storage.segment_config.max_sise", "storage.segment_config.max_size"),
            ("storage.segment.max_size", "storage.segment_config.max_size"),
            ("sync_on_write", "storage.segment_config.sync_on_write"),
            ("listen", "server.listen"),
            ("storage.use_mmap", "storage.segment_config.use_mmap"),
            ("strage", "storage"),
        ] {
            assert_eq!(nearest(wrong), Some(right));
        }
        assert_eq!(nearest("kafka.zookeeper"), None);
    }

    #[test]
    fn no_two_keys_share_a_path_or_a_variable() {
        let variables: Vec<_> = KEYS.iter().flat_map(Key::environment_variables).collect();
        let distinct: std::collections::BTreeSet<_> = variables.iter().collect();
        assert_eq!(variables.len(), distinct.len());
    }
}

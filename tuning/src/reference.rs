//! `docs/CONFIG.md`, made from the keys' table, the configuration's doc comments and the profiles, so that it cannot
//! differ from what the server does. A test of the `dlog` package holds the file against this.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::{
    Config, Inputs, Settings,
    keys::{KEYS, Key, Kind},
    profile::Profile,
    units::{ByteSize, Millis},
};

/// A bound that is part of the program and cannot be configured.
#[derive(Clone, Copy, Debug)]
pub struct FixedLimit {
    /// What is bounded.
    pub what: &'static str,
    /// The bound, with its unit.
    pub bound: u64,
    /// Whether the bound counts bytes.
    pub is_bytes: bool,
    /// Why there.
    pub reason: &'static str,
}

/// The configuration's JSON schema, for editors.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}

/// The whole of `docs/CONFIG.md`.
pub fn markdown(limits: &[FixedLimit]) -> String {
    let mut page = INTRODUCTION.to_owned();
    profiles(&mut page);
    let schema = schema();
    let mut section = "";
    for key in KEYS {
        let own = key.path.rsplit_once('.').map_or("", |(section, _)| section);
        if own != section {
            section = own;
            let words = words(&schema, section).0;
            let _ = write!(page, "\n## {section}\n{words}\n");
        }
        entry(&mut page, key, &schema);
    }
    fixed_limits(&mut page, limits);
    page
}

const INTRODUCTION: &str = "\
# Configuration reference

Generated from the code; `PYRALOG_UPDATE_DOCS=1 cargo test -p dlog configuration_reference` writes it anew;
`dlog config reference` prints it.

Nothing needs to be configured. What is, is taken from these layers, the first that has a value:

1. flags of `dlog serve`: `--data-dir`, `--listen`, `--http`, `--cores`, `--profile`, and `--set KEY=VALUE`
2. environment variables: `DLOG_` and the key in capitals, levels joined with two underscores, such as
   `DLOG_STORAGE__SEGMENT_CONFIG__MAX_SIZE=512MiB`. Keys of `server` also have a short form: `DLOG_LISTEN`
3. the file that `--config` or `DLOG_CONFIG` names: JSON; comments and trailing commas are allowed
4. the profile
5. the default

`dlog config show` prints what holds and where it came from; `dlog config check FILE` reads a file without starting
anything. An unknown key, a value of the wrong type and one out of range are errors that name the key, the line, and
what is allowed.

Sizes are integers (bytes) or strings with a unit: `\"512MiB\"`, `\"64MB\"`. Durations are integers (milliseconds) or
strings: `\"10ms\"`, `\"2s\"`. Ranges include both ends.
";

/// The profiles side by side, and what they promise.
fn profiles(page: &mut String) {
    page.push_str("\n## Profiles\nA profile is a named set of values below the file and above the defaults.\n\n");
    for profile in Profile::ALL {
        let _ = writeln!(page, "- `{}`: {}", profile.name(), profile.purpose());
    }
    let loaded: Vec<_> = Profile::ALL.into_iter().filter_map(load).collect();
    let _ = write!(page, "\n| key |");
    Profile::ALL.iter().for_each(|profile| _ = write!(page, " {} |", profile.name()));
    let _ = write!(page, "\n|---|{}", "---|".repeat(Profile::ALL.len()));
    let entries: Vec<_> = loaded.iter().map(Settings::entries).collect();
    for (row, key) in KEYS.iter().enumerate() {
        if !(key.path.starts_with("storage.") || key.path.starts_with("replication.")) {
            continue;
        }
        let _ = write!(page, "\n| `{}` |", key.path);
        for column in &entries {
            let _ = write!(page, " {} |", shown(key, &column[row].value));
        }
    }
    let _ = write!(page, "\n| acknowledged when |");
    loaded.iter().for_each(|settings| _ = write!(page, " {} |", settings.promise().ack));
    page.push_str("\n\nWhat an acknowledgement is worth, as the server prints it at its start:\n\n");
    for (profile, settings) in Profile::ALL.iter().zip(&loaded) {
        let _ = writeln!(page, "- `{}`: {}.", profile.name(), settings.promise().guarantee);
    }
    page.push_str("\nWhat its copies are worth, on a server with a core for each:\n\n");
    for (profile, settings) in Profile::ALL.iter().zip(&loaded) {
        let _ = writeln!(page, "- `{}`: {}.", profile.name(), settings.promise().copies);
    }
    page.push_str(
        "\nA request or a log may name another ack level than the profile's, and a log other copies. Where there are\n",
    );
    page.push_str(
        "fewer cores than a profile has copies, it is lowered to one for each core, quorums included, and a warning\n",
    );
    page.push_str("says so; explicit copies beyond the cores are refused.\n");
    page.push_str("\nThe key `profile` chooses one.\n");
}

fn load(profile: Profile) -> Option<Settings> {
    let mut inputs = Inputs::default();
    inputs.flag("--profile", "profile", Some(profile.name()));
    Settings::load(&inputs).ok()
}

fn entry(page: &mut String, key: &Key, schema: &Value) {
    if key.kind == Kind::Profile {
        return;
    }
    let (what, trades) = words(schema, key.path);
    let default = Config::default();
    let tree = serde_json::to_value(&default).unwrap_or_default();
    let value = tree.pointer(&format!("/{}", key.path.replace('.', "/"))).cloned().unwrap_or(Value::Null);
    let default = if value.is_null() { "none".to_owned() } else { format!("`{}`", shown(key, &value)) };
    let _ = write!(page, "\n### `{}`\nDefault: {default}. Must be {}.", key.path, key.allowed());
    if let Some(flag) = key.flag {
        let _ = write!(page, " Flag: `{flag}`.");
    }
    let variables: Vec<_> = key.environment_variables().into_iter().map(|name| format!("`{name}`")).collect();
    let _ = writeln!(page, " Variable: {}.\n\n{what}", variables.join(" or "));
    if let Some(trades) = trades {
        let _ = writeln!(page, "\nTrades: {trades}");
    }
}

fn fixed_limits(page: &mut String, limits: &[FixedLimit]) {
    page.push_str(
        "\n## Fixed limits\nNot configurable; beyond them a request is refused with the limit in the message.\n\n",
    );
    page.push_str("| what | at most | why |\n|---|---|---|\n");
    for limit in limits {
        let bound = if limit.is_bytes { ByteSize(limit.bound).to_string() } else { limit.bound.to_string() };
        let _ = writeln!(page, "| {} | {bound} | {} |", limit.what, limit.reason);
    }
}

/// A value as one would write it.
pub fn shown(key: &Key, value: &Value) -> String {
    match (key.kind, value) {
        (Kind::Size(..), Value::Number(number)) => ByteSize(number.as_u64().unwrap_or(0)).to_string(),
        (Kind::Millis(..), Value::Number(number)) => Millis(number.as_u64().unwrap_or(0)).to_string(),
        (_, Value::String(text)) => text.clone(),
        (Kind::Paths, Value::Array(paths)) => {
            paths.iter().map(|path| path.as_str().unwrap_or_default()).collect::<Vec<_>>().join(":")
        }
        (_, Value::Null) => "none".to_owned(),
        (_, other) => other.to_string(),
    }
}

/// What the doc comment at `path` says: what it is, and what it trades.
fn words(schema: &Value, path: &str) -> (String, Option<String>) {
    let place = path.split('.').try_fold(schema, |place, level| place.get("properties")?.get(level));
    let text = place.and_then(|place| place.get("description")?.as_str()).unwrap_or_default();
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let (mut what, mut trades) = (Vec::new(), None);
    for paragraph in paragraphs {
        match paragraph.strip_prefix("Trades: ") {
            Some(rest) => trades = Some(rest.to_owned()),
            None => what.push(paragraph),
        }
    }
    (what.join("\n\n"), trades)
}

/// The paths of all values that a schema describes.
#[cfg(test)]
pub(crate) fn schema_keys(schema: &Value) -> Vec<String> {
    fn walk(place: &Value, prefix: &str, paths: &mut Vec<String>) {
        match place.get("properties").and_then(Value::as_object) {
            None => paths.push(prefix.to_owned()),
            Some(properties) => properties.iter().for_each(|(name, below)| {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                walk(below, &path, paths);
            }),
        }
    }
    let mut paths = Vec::new();
    walk(schema, "", &mut paths);
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained() {
        let page = markdown(&[]);
        for key in KEYS.iter().filter(|key| key.kind != Kind::Profile) {
            assert!(page.contains(&format!("### `{}`", key.path)), "{}", key.path);
            assert!(words(&schema(), key.path).0.len() > 20, "{} has no words", key.path);
        }
        for profile in Profile::ALL {
            assert!(load(profile).is_some());
        }
    }
}

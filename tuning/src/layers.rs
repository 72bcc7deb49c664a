//! One layer of the configuration: where its values stand and what they are, checked key by key before layers meet, so
//! that an error can name the line. Text goes in, checked values come out; files are read elsewhere.

use std::{collections::BTreeMap, path::Path};

use figment::{
    Error, Metadata, Profile as Section, Provider,
    value::{Dict, Map},
};
use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{self, ObjectProp},
    common::Ranged,
    errors::ParseError,
    parse_to_ast,
};
use serde_json::Value;

use crate::{
    Config,
    error::{ConfigError, Origin},
    keys::{self, KEYS, Key, Kind, Raw},
    profile::Profile,
};

/// Variables that begin as ours do but are no keys: the file's path, the tracing filter, and what the client commands
/// read.
const OTHER_VARIABLES: [&str; 4] = ["DLOG_CONFIG", "DLOG_LOG", "DLOG_SERVER", "DLOG_FINGERPRINT"];

/// Checked values of one source.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// `default`, `profile`, `file`, `environment` or `flag`; unique among the layers of one configuration.
    pub(crate) name: &'static str,
    pub(crate) values: BTreeMap<&'static str, (Value, Origin)>,
}

impl Layer {
    fn new(name: &'static str) -> Self {
        Layer { name, values: BTreeMap::new() }
    }

    /// What is built in.
    pub(crate) fn defaults() -> Self {
        let tree = serde_json::to_value(Config::default()).unwrap_or_default();
        let mut layer = Layer::new("default");
        for key in KEYS {
            if let Some(value) = tree.pointer(&format!("/{}", key.path.replace('.', "/"))) {
                layer.values.insert(key.path, (value.clone(), Origin::Default));
            }
        }
        layer
    }

    /// A profile's values.
    pub(crate) fn of_profile(profile: Profile) -> Result<Self, ConfigError> {
        let name = profile.name();
        let reader =
            Reader { text: profile.text(), path: Path::new(name), origin: &|line| Origin::Profile { name, line } };
        reader.read("profile")
    }

    /// The values of a file with this text.
    pub(crate) fn of_file(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // Some editors of other systems put a byte order mark in front.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Reader { text, path, origin: &|line| Origin::File { path: path.to_owned(), line } }.read("file")
    }

    /// The values of the environment, and warnings about variables that look like ours but are not.
    pub(crate) fn of_environment(variables: &[(String, String)]) -> Result<(Self, Vec<String>), ConfigError> {
        let mut layer = Layer::new("environment");
        let mut warnings = Vec::new();
        for (variable, value) in variables.iter().filter(|(variable, _)| variable.starts_with("DLOG_")) {
            if OTHER_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            let origin = Origin::Environment { variable: variable.clone() };
            match KEYS.iter().find(|key| key.environment_variables().contains(variable)) {
                Some(key) => layer.put(key, &Raw::Words(value.clone()), origin)?,
                None => warnings.push(refuse_or_warn(variable, origin)?),
            }
        }
        Ok((layer, warnings))
    }

    /// The values of the command line: the flag as it was written, the key's path, the value.
    pub(crate) fn of_flags(flags: &[(String, String, String)]) -> Result<Self, ConfigError> {
        let mut layer = Layer::new("flag");
        for (at, (flag, path, value)) in flags.iter().enumerate() {
            let origin = Origin::Flag { flag: flag.clone() };
            let Some(key) = keys::find(path) else {
                return Err(ConfigError::UnknownKey { key: path.clone(), origin, nearest: keys::nearest(path) });
            };
            // A flag of its own is given once for each path, and each is taken as it is.
            if key.kind == Kind::Paths && key.flag == Some(flag.as_str()) {
                let all = flags[..=at].iter().filter(|(other, ..)| other == flag).map(|(.., value)| value.clone());
                layer.put(key, &Raw::List(all.collect()), origin)?;
            } else {
                layer.put(key, &Raw::Words(value.clone()), origin)?;
            }
        }
        Ok(layer)
    }

    fn put(&mut self, key: &'static Key, raw: &Raw, origin: Origin) -> Result<(), ConfigError> {
        let Some(value) = key.check(raw) else {
            return Err(ConfigError::BadValue { key: key.path, origin, value: raw.shown(), allowed: key.allowed() });
        };
        self.values.insert(key.path, (value, origin));
        Ok(())
    }
}

/// An unknown variable of ours is an error when it is clearly meant for us: it has levels, or is a slip from a known
/// name. Otherwise a warning must do: Kubernetes sets `DLOG_PORT` and `DLOG_SERVICE_HOST` for everyone beside a service
/// called `dlog`.
fn refuse_or_warn(variable: &str, origin: Origin) -> Result<String, ConfigError> {
    let known = KEYS.iter().flat_map(|key| key.environment_variables().into_iter().map(move |name| (name, key)));
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, variable);
    let nearest = known.max_by(|a, b| likeness(&a.0).total_cmp(&likeness(&b.0)));
    let close = nearest.filter(|(name, _)| likeness(name) >= 0.85);
    if close.is_none() && !variable.contains("__") {
        return Ok(format!("{origin} is not one of ours and was ignored"));
    }
    let key = variable.trim_start_matches("DLOG_").to_ascii_lowercase().replace("__", ".");
    let nearest = close.map(|(_, key)| key.path).or_else(|| keys::nearest(&key));
    Err(ConfigError::UnknownKey { key, origin, nearest })
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Section, Dict>, Error> {
        let mut tree = Value::Object(serde_json::Map::new());
        for (path, (value, _)) in &self.values {
            let mut place = &mut tree;
            for level in path.split('.') {
                place = &mut place[level];
            }
            *place = value.clone();
        }
        let dict = figment::value::Value::serialize(tree)?.into_dict().unwrap_or_default();
        Ok(Section::Default.collect(dict))
    }
}

/// Reads JSON with comments into a layer.
struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
    origin: &'a dyn Fn(usize) -> Origin,
}

impl Reader<'_> {
    fn read(&self, name: &'static str) -> Result<Layer, ConfigError> {
        let options = ParseOptions {
            allow_comments: true,
            allow_trailing_commas: true,
            // The rest of JSON5 stays out: what we read, other tools should read too.
            allow_loose_object_property_names: false,
            allow_missing_commas: false,
            allow_single_quoted_strings: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            allow_extended_string_escapes: false,
        };
        let parsed =
            parse_to_ast(self.text, &CollectOptions::default(), &options).map_err(|error| self.syntax(&error))?;
        let mut layer = Layer::new(name);
        match parsed.value {
            None => Ok(layer),
            Some(ast::Value::Object(object)) => {
                self.section(&mut layer, "", &object)?;
                Ok(layer)
            }
            Some(other) => Err(ConfigError::NotASection {
                key: "the file".to_owned(),
                origin: (self.origin)(self.line(other.range().start)),
                value: raw(&other).shown(),
            }),
        }
    }

    fn section(&self, layer: &mut Layer, prefix: &str, object: &ast::Object<'_>) -> Result<(), ConfigError> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for property in &object.properties {
            let name = property.name.as_str();
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            let line = self.line(property.range.start);
            if let Some(first) = seen.insert(path.clone(), line) {
                return Err(ConfigError::Twice { key: path, origin: (self.origin)(line), first });
            }
            self.property(layer, path, property)?;
        }
        Ok(())
    }

    fn property(&self, layer: &mut Layer, path: String, property: &ObjectProp<'_>) -> Result<(), ConfigError> {
        let origin = (self.origin)(self.line(property.range.start));
        if let Some(key) = keys::find(&path) {
            return layer.put(key, &raw(&property.value), origin);
        }
        match &property.value {
            // For editors that fetch a schema by it.
            _ if path == "$schema" => Ok(()),
            ast::Value::Object(object) if keys::is_section(&path) => self.section(layer, &path, object),
            other if keys::is_section(&path) => {
                Err(ConfigError::NotASection { key: path, origin, value: raw(other).shown() })
            }
            _ => Err(ConfigError::UnknownKey { nearest: keys::nearest(&path), key: path, origin }),
        }
    }

    fn line(&self, position: usize) -> usize {
        1 + self.text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count()
    }

    fn syntax(&self, error: &ParseError) -> ConfigError {
        ConfigError::Syntax {
            path: self.path.to_owned(),
            line: error.line_display(),
            column: error.column_display(),
            message: error.kind().to_string(),
        }
    }
}

fn raw(value: &ast::Value<'_>) -> Raw {
    match value {
        ast::Value::StringLit(text) => Raw::Text(text.value.to_string()),
        ast::Value::NumberLit(number) => Raw::Number(number.value.to_owned()),
        ast::Value::BooleanLit(value) => Raw::Switch(value.value),
        ast::Value::Object(_) => Raw::Other("an object"),
        ast::Value::Array(array) => {
            let text = |element: &ast::Value<'_>| match raw(element) {
                Raw::Text(text) => Some(text),
                _ => None,
            };
            array.elements.iter().map(text).collect::<Option<_>>().map_or(Raw::Other("a list"), Raw::List)
        }
        ast::Value::NullKeyword(_) => Raw::Other("null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Layer, String> {
        Layer::of_file(Path::new("dlog.json"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn comments_and_trailing_commas_are_read_and_lines_remembered() {
        let layer = file(
            "\u{feff}{ // a comment\n \"server\": {\"cores\": 0,},\n /* two\n lines */\n \"profile\": \"latency\"\n}",
        );
        let values = layer.unwrap().values;
        assert_eq!(values["server.cores"].0, "0");
        assert_eq!(values["server.cores"].1.to_string(), "dlog.json:2");
        assert_eq!(values["profile"].1.to_string(), "dlog.json:5");
    }

    #[test]
    fn an_empty_file_and_an_empty_object_say_nothing() {
        assert!(file("").unwrap().values.is_empty());
        assert!(file("// nothing\n").unwrap().values.is_empty());
        assert!(file("{\"storage\": {}, \"$schema\": \"x\"}").unwrap().values.is_empty());
    }

    #[test]
    fn every_mistake_names_key_place_and_remedy() {
        for (text, message) in [
            (
                "{\n\"storage\": {\n\"segment_config\": {\n\"max_sise\": 1}}}",
                "dlog.json:4: there is no key `storage.segment_config.max_sise`; \
                 did you mean `storage.segment_config.max_size`?",
            ),
            ("{\"zookeeper\": 1}", "dlog.json:1: there is no key `zookeeper`"),
            (
                "{\"storage\": {\"segment_config\":\n{\"max_size\": \"64 parsecs\"}}}",
                "dlog.json:2: `storage.segment_config.max_size` is \"64 parsecs\", but must be a size from 16 MiB to \
                 64 GiB, such as 67108864 or \"64MiB\"",
            ),
            (
                "{\"storage\": {\"cache_config\": {\"enabled\": null}}}",
                "dlog.json:1: `storage.cache_config.enabled` is null, but must be true or false",
            ),
            ("{\"storage\": 7}", "dlog.json:1: `storage` is a section and takes an object {…}, not 7"),
            (
                "{\"profile\": \"latency\",\n\"profile\": \"balanced\"}",
                "dlog.json:2: `profile` is given twice; the first is at line 1",
            ),
            ("[]", "dlog.json:1: `the file` is a section and takes an object {…}, not []"),
            ("[1]", "dlog.json:1: `the file` is a section and takes an object {…}, not a list"),
            (
                "{\"server\": {\"data_dir\": [\"/a\", 7]}}",
                "dlog.json:1: `server.data_dir` is a list, but must be a path, or a list of 1 to 64 paths",
            ),
            ("{\"profile\": 'latency'}", "dlog.json:1:13: Single-quoted strings are not allowed"),
            (
                "{\"profile\": \"fast\"}",
                "dlog.json:1: `profile` is \"fast\", but must be one of balanced, latency, throughput, durability",
            ),
        ] {
            assert_eq!(file(text).map(|_| ()), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn several_data_directories_are_a_list_in_a_file_and_a_flag_given_several_times() {
        let layer = file("{\"server\": {\"data_dir\": [\"/a\", \"/b\"]}}").unwrap();
        assert_eq!(layer.values["server.data_dir"].0.to_string(), "[\"/a\",\"/b\"]");
        let flag = |dir: &str| ("--data-dir".to_owned(), "server.data_dir".to_owned(), dir.to_owned());
        let of = |flags: &[_]| Layer::of_flags(flags).unwrap().values["server.data_dir"].0.to_string();
        assert_eq!(of(&[flag("/a:b")]), "\"/a:b\"");
        assert_eq!(of(&[flag("/a"), flag("/b:c")]), "[\"/a\",\"/b:c\"]");
        let set = ("--set server.data_dir".to_owned(), "server.data_dir".to_owned(), "/x:/y".to_owned());
        assert_eq!(of(&[flag("/a"), set]), "[\"/x\",\"/y\"]", "the last word holds");
    }

    fn environment(variable: &str, value: &str) -> Result<(Layer, Vec<String>), String> {
        Layer::of_environment(&[(variable.to_owned(), value.to_owned())]).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_are_read_in_both_forms() {
        for variable in ["DLOG_CORES", "DLOG_SERVER__CORES"] {
            assert_eq!(environment(variable, "0").unwrap().0.values["server.cores"].0, "0");
        }
        let (layer, _) = environment("DLOG_STORAGE__SEGMENT_CONFIG__MAX_SIZE", "512MiB").unwrap();
        assert_eq!(layer.values["storage.segment_config.max_size"].0, 512u64 << 20);
        assert!(environment("PATH", "/bin").unwrap().0.values.is_empty());
    }

    #[test]
    fn a_misspelt_variable_is_refused_but_those_of_kubernetes_are_only_mentioned() {
        let error = environment("DLOG_LISTN", "x").unwrap_err();
        assert_eq!(error, "environment variable DLOG_LISTN: there is no key `listn`; did you mean `server.listen`?");
        assert!(environment("DLOG_STORAGE__COLOUR", "x").is_err());
        for theirs in ["DLOG_PORT", "DLOG_SERVICE_HOST", "DLOG_PORT_9092_UDP_ADDR"] {
            let (layer, warnings) = environment(theirs, "x").unwrap();
            assert!(layer.values.is_empty());
            assert_eq!(warnings, [format!("environment variable {theirs} is not one of ours and was ignored")]);
        }
        for ours in OTHER_VARIABLES {
            assert_eq!(environment(ours, "x").unwrap().1, [""; 0]);
        }
    }
}

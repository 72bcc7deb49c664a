//! The layers brought together: what holds, where each value came from, and what had to be lowered.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use figment::Figment;
use serde_json::Value;

use crate::{
    Config, ConfigError, Promise,
    error::Origin,
    keys::{KEYS, Key},
    layers::Layer,
    profile::Profile,
};

/// Copies of a partition that this version can keep. Replication on other cores and nodes is to come; until then more
/// would be an empty promise.
const COPIES_MAX: u64 = 1;

/// What was said from outside.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// `--config`; without it `DLOG_CONFIG` of the environment holds.
    pub config_file: Option<PathBuf>,
    /// Flag as written, path of its key, value. [`Inputs::flag`] and [`Inputs::set`] add to it.
    pub flags: Vec<(String, String, String)>,
    /// Environment variables; those that do not begin with `DLOG_` are ignored.
    pub environment: Vec<(String, String)>,
}

impl Inputs {
    /// The environment of this process and nothing else. Variables that are not UTF-8 are left out.
    pub fn from_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Inputs { environment: std::env::vars_os().filter_map(text).collect(), ..Inputs::default() }
    }

    /// Adds the flag of the key `path`, if it was given.
    pub fn flag(&mut self, flag: &str, path: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.flags.push((flag.to_owned(), path.to_owned(), value.to_string()));
        }
    }

    /// Adds `--set KEY=VALUE`.
    ///
    /// Errors: `NoValue`.
    pub fn set(&mut self, text: &str) -> Result<(), ConfigError> {
        let (path, value) = text.split_once('=').ok_or_else(|| ConfigError::NoValue { text: text.to_owned() })?;
        self.flag(&format!("--set {path}"), path, Some(value));
        Ok(())
    }
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
    lowered: BTreeMap<&'static str, u64>,
    warnings: Vec<String>,
}

/// One key of a checked configuration.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: &'static Key,
    /// What holds; `null` if there is no value.
    pub value: Value,
    /// The layer it came from.
    pub origin: Origin,
    /// What the profile asked for, if this version cannot do that.
    pub lowered_from: Option<u64>,
}

impl Settings {
    /// Brings the layers together: flags over environment over file over profile over defaults.
    ///
    /// Errors: see [`ConfigError`].
    pub fn load(inputs: &Inputs) -> Result<Settings, ConfigError> {
        match config_path(inputs) {
            Some(path) => match fs::read_to_string(&path) {
                Ok(text) => Settings::of_texts(inputs, Some((&path, &text))),
                Err(source) => Err(ConfigError::Unreadable { path, source }),
            },
            None => Settings::of_texts(inputs, None),
        }
    }

    /// [`Settings::load`] with a file's path and text in place of the one that `inputs` names.
    pub fn of_texts(inputs: &Inputs, file: Option<(&Path, &str)>) -> Result<Settings, ConfigError> {
        let flags = Layer::of_flags(&inputs.flags)?;
        let (environment, warnings) = Layer::of_environment(&inputs.environment)?;
        let mut layers = vec![environment, flags];
        if let Some((path, text)) = file {
            layers.insert(0, Layer::of_file(path, text)?);
        }
        let profile = layers.iter().rev().find_map(named_profile).unwrap_or_default();
        layers.insert(0, Layer::of_profile(profile)?);
        layers.insert(0, Layer::defaults());
        let mut settings = merge(&layers)?;
        settings.warnings = warnings;
        settings.lower_copies()?;
        Ok(settings)
    }

    /// What holds.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is promised to whom names no ack level.
    pub fn promise(&self) -> Promise {
        Promise::of(&self.config)
    }

    /// What the operator should know, though it stops nothing.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where the value of the key `path` came from.
    pub fn origin(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }

    /// Every key with its value and its origin, in the order of the documentation.
    pub fn entries(&self) -> Vec<Entry> {
        let tree = serde_json::to_value(&self.config).unwrap_or_default();
        let entry = |key: &'static Key| Entry {
            key,
            value: tree.pointer(&format!("/{}", key.path.replace('.', "/"))).cloned().unwrap_or(Value::Null),
            origin: self.origin(key.path).clone(),
            lowered_from: self.lowered.get(key.path).copied(),
        };
        KEYS.iter().map(entry).collect()
    }

    /// Brings what a profile asks for down to what there is, and refuses what a person asked for beyond it.
    fn lower_copies(&mut self) -> Result<(), ConfigError> {
        let quorum = &mut self.config.replication.quorum;
        let wanted = quorum.replication_factor;
        for (path, value) in [
            ("replication.quorum.replication_factor", &mut quorum.replication_factor),
            ("replication.quorum.write_quorum", &mut quorum.write_quorum),
            ("replication.quorum.read_quorum", &mut quorum.read_quorum),
        ] {
            if *value <= COPIES_MAX {
                continue;
            }
            let origin = self.origins.get(path).unwrap_or(&Origin::Default);
            if origin.is_explicit() {
                return Err(ConfigError::Impossible {
                    key: path,
                    origin: origin.clone(),
                    value: value.to_string(),
                    reason: format!(
                        "it needs {value} copies of every partition; this version keeps one copy per partition, \
                         so the most is {COPIES_MAX}"
                    ),
                });
            }
            self.lowered.insert(path, std::mem::replace(value, COPIES_MAX));
        }
        if !self.lowered.is_empty() {
            self.warnings.push(format!(
                "profile {} asks for {wanted} copies of each partition; this version keeps one, so replication_factor, \
                 write_quorum and read_quorum are 1",
                self.config.profile.name(),
            ));
        }
        Ok(())
    }
}

fn config_path(inputs: &Inputs) -> Option<PathBuf> {
    let variable = || inputs.environment.iter().find(|(name, value)| name == "DLOG_CONFIG" && !value.is_empty());
    inputs.config_file.clone().or_else(|| variable().map(|(_, path)| PathBuf::from(path)))
}

fn named_profile(layer: &Layer) -> Option<Profile> {
    let (value, _) = layer.values.get("profile")?;
    Profile::named(value.as_str()?)
}

fn merge(layers: &[Layer]) -> Result<Settings, ConfigError> {
    let figment = layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
    let mut origins = BTreeMap::new();
    for key in KEYS {
        let Some(winner) = figment.find_metadata(key.path) else { continue };
        let layer = layers.iter().find(|layer| layer.name == winner.name);
        if let Some((_, origin)) = layer.and_then(|layer| layer.values.get(key.path)) {
            origins.insert(key.path, origin.clone());
        }
    }
    // Every value was checked against the table, and a test holds the table against the struct.
    let config = figment.extract().expect("checked values fit the configuration"); // why: see the line above
    Ok(Settings { config, origins, lowered: BTreeMap::new(), warnings: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{promise::Ack, units::ByteSize};

    fn inputs(file: Option<&str>, environment: &[(&str, &str)], set: &[&str]) -> (Inputs, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let mut inputs = Inputs::default();
        if let Some(text) = file {
            let path = directory.path().join("dlog.json");
            fs::write(&path, text).unwrap();
            inputs.config_file = Some(path);
        }
        inputs.environment = environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        set.iter().for_each(|text| inputs.set(text).unwrap());
        (inputs, directory)
    }

    fn load(file: Option<&str>, environment: &[(&str, &str)], set: &[&str]) -> Result<Settings, String> {
        let (inputs, _directory) = inputs(file, environment, set);
        Settings::load(&inputs).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_means_balanced_and_durable() {
        let settings = load(None, &[], &[]).unwrap();
        assert_eq!(settings.config().profile, Profile::Balanced);
        assert_eq!(settings.promise().ack, Ack::Durable);
        assert_eq!(settings.warnings(), [""; 0]);
        assert_eq!(settings.config(), &Config::default(), "the balanced profile and the defaults say the same");
    }

    #[test]
    fn each_layer_beats_those_below_it_and_the_winner_is_known() {
        let key = "storage.cache_config.max_size";
        let variable = ("DLOG_STORAGE__CACHE_CONFIG__MAX_SIZE", "3MiB");
        let file = Some("{\"profile\": \"latency\",\n \"storage\": {\"cache_config\": {\"max_size\": \"2MiB\"}}}");
        let set = ["storage.cache_config.max_size=4MiB"];
        let of = |settings: Settings| {
            (settings.config().storage.cache_config.max_size.0 >> 20, settings.origin(key).layer())
        };
        assert_eq!(of(load(None, &[], &[]).unwrap()), (16, "profile"));
        assert_eq!(of(load(None, &[("DLOG_PROFILE", "latency")], &[]).unwrap()), (8, "profile"));
        assert_eq!(of(load(file, &[], &[]).unwrap()), (2, "file"));
        assert_eq!(of(load(file, &[variable], &[]).unwrap()), (3, "environment"));
        assert_eq!(of(load(file, &[variable], &set).unwrap()), (4, "flag"));
        let settings = load(file, &[], &[]).unwrap();
        assert!(settings.origin(key).to_string().ends_with("dlog.json:2"), "{}", settings.origin(key));
        assert_eq!(settings.origin("server.cores").layer(), "default");
        assert_eq!(settings.config().storage.cache_config.max_buffer_time_ms.0, 1, "the file's profile holds below it");
    }

    #[test]
    fn the_file_is_found_through_the_environment_too() {
        let (mut inputs, _directory) = inputs(Some("{\"server\": {\"cores\": \"0\"}}"), &[], &[]);
        let path = inputs.config_file.take().unwrap();
        inputs.environment.push(("DLOG_CONFIG".to_owned(), path.display().to_string()));
        assert_eq!(Settings::load(&inputs).unwrap().config().server.cores, "0");
    }

    #[test]
    fn every_profile_loads_with_its_own_promise() {
        for (name, ack, segment) in [
            ("latency", Ack::Received, 536_870_912),
            ("throughput", Ack::Received, 4_294_967_296),
            ("durability", Ack::Durable, 1_073_741_824),
            ("balanced", Ack::Durable, 268_435_456),
        ] {
            let settings = load(None, &[("DLOG_PROFILE", name)], &[]).unwrap();
            assert_eq!(settings.promise().ack, ack);
            assert_eq!(settings.config().storage.segment_config.max_size, ByteSize(segment));
        }
    }

    #[test]
    fn a_profile_is_lowered_with_a_warning_and_an_explicit_value_refused_with_the_arithmetic() {
        let settings = load(None, &[], &["profile=durability"]).unwrap();
        let lowered: Vec<_> = settings.entries().into_iter().filter_map(|e| e.lowered_from).collect();
        assert_eq!(lowered, [5, 5, 3]);
        assert_eq!(settings.config().replication.quorum.write_quorum, 1);
        assert_eq!(
            settings.warnings(),
            ["profile durability asks for 5 copies of each partition; this version keeps one, so replication_factor, \
              write_quorum and read_quorum are 1"]
        );
        let error = load(None, &[], &["replication.quorum.replication_factor=3"]).unwrap_err();
        assert_eq!(
            error,
            "flag --set replication.quorum.replication_factor: `replication.quorum.replication_factor` is 3, which \
             cannot be honoured: it needs 3 copies of every partition; this version keeps one copy per partition, so \
             the most is 1"
        );
        assert!(load(None, &[], &["profile=latency", "replication.quorum.replication_factor=1"]).is_ok());
    }

    #[test]
    fn a_missing_file_is_an_error_with_its_path() {
        let inputs = Inputs { config_file: Some(PathBuf::from("/nowhere/dlog.json")), ..Inputs::default() };
        let error = Settings::load(&inputs).unwrap_err().to_string();
        assert!(error.starts_with("the configuration file /nowhere/dlog.json cannot be read: "), "{error}");
    }

    #[test]
    fn the_table_of_keys_and_the_struct_have_the_same_paths() {
        let tree = crate::reference::schema();
        let mut paths = crate::reference::schema_keys(&tree);
        paths.sort_unstable();
        let mut known: Vec<_> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        known.sort_unstable();
        assert_eq!(paths, known);
    }

    #[test]
    fn the_struct_alone_refuses_unknown_keys_too() {
        assert!(serde_json::from_str::<Config>("{\"storage\": {\"cache\": 1}}").is_err());
        let config: Config = serde_json::from_str("{\"memory\": {\"requests\": \"1GiB\"}}").unwrap();
        assert_eq!(config.memory.requests, ByteSize(1 << 30));
    }
}

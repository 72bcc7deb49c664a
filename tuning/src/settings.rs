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
    config::Quorum,
    copies::{Copies, majority},
    error::Origin,
    keys::{KEYS, Key},
    layers::Layer,
    profile::Profile,
};

/// The keys of copies, in the order of [`Copies`].
const COPIES: [&str; 3] =
    ["replication.quorum.replication_factor", "replication.quorum.write_quorum", "replication.quorum.read_quorum"];

const DATA_DIR: &str = "server.data_dir";

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
    /// What the layers said of copies.
    asked: Quorum,
    /// Why there are fewer, if that is nobody's explicit wish.
    fewer: Option<String>,
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
    /// What the profile asked for, if there are fewer cores or copies.
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
        settings.settle_copies(None)?;
        Ok(settings)
    }

    /// The settings on a server with `cores` cores: a profile that asks for more copies than that is lowered.
    ///
    /// Errors: `Impossible`, if a person asked for them, or for more data directories.
    pub fn on_cores(mut self, cores: usize) -> Result<Settings, ConfigError> {
        self.settle_copies(Some(cores as u64))?;
        let dirs = self.config.server.data_dir.paths();
        if dirs.len() > cores {
            let count = dirs.len();
            return Err(ConfigError::Impossible {
                key: DATA_DIR,
                origin: self.origin(DATA_DIR).clone(),
                value: serde_json::to_string(dirs).unwrap_or_default(),
                reason: format!("{count} directories need {count} cores, one for each; this server has {cores}"),
            });
        }
        Ok(self)
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
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.iter().chain(&self.fewer).cloned().collect()
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
    fn settle_copies(&mut self, cores: Option<u64>) -> Result<(), ConfigError> {
        (self.lowered, self.fewer) = (BTreeMap::new(), None);
        let Quorum { replication_factor: asked, write_quorum, read_quorum } = self.asked;
        let [factor_key, write_key, read_key] = COPIES;
        let factor = self.at_most(factor_key, asked, cores, |most| {
            format!("it needs {asked} cores, one for each copy; this server has {most}")
        })?;
        let of_copies = |most: u64| {
            let lowered = if asked > most { format!(" instead of {asked}, for want of cores") } else { String::new() };
            format!("it is a number of copies, and there are {most} of each partition{lowered}")
        };
        let write_quorum = write_quorum.unwrap_or(majority(factor));
        let write_quorum = self.at_most(write_key, write_quorum, Some(factor), of_copies)?;
        let read_quorum = self.at_most(read_key, read_quorum, Some(factor), of_copies)?;
        let settled = Quorum { replication_factor: factor, write_quorum: Some(write_quorum), read_quorum };
        self.config.replication.quorum = settled;
        if !self.lowered.is_empty() {
            self.fewer = Some(self.words_of_fewer(cores));
        }
        Ok(())
    }

    /// The value of a key, or `most` if that is less and nobody chose the value.
    fn at_most(
        &mut self,
        key: &'static str,
        value: u64,
        most: Option<u64>,
        reason: impl Fn(u64) -> String,
    ) -> Result<u64, ConfigError> {
        let Some(most) = most.filter(|most| value > *most) else { return Ok(value) };
        let origin = self.origin(key).clone();
        if origin.is_explicit() {
            return Err(ConfigError::Impossible { key, origin, value: value.to_string(), reason: reason(most) });
        }
        self.lowered.insert(key, value);
        Ok(most)
    }

    fn words_of_fewer(&self, cores: Option<u64>) -> String {
        let profile = self.config.profile.name();
        let Copies { factor, write, read } = self.config.copies();
        let is_now = format!("replication_factor is {factor}, write_quorum {write} and read_quorum {read}");
        match (self.lowered.get(COPIES[0]), cores) {
            (Some(asked), Some(cores)) => format!(
                "profile {profile} asks for {asked} copies of each partition, each on a core of its own; this server \
                 has {cores} core{}, so {is_now}",
                if cores == 1 { "" } else { "s" },
            ),
            _ => format!("profile {profile} asks for larger quorums than there are copies, so {is_now}"),
        }
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
    let config: Config = figment.extract().expect("checked values fit the configuration"); // why: see the line above
    let asked = config.replication.quorum.clone();
    Ok(Settings { config, origins, lowered: BTreeMap::new(), warnings: Vec::new(), asked, fewer: None })
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
        assert!(settings.warnings().is_empty());
        let mut expected = Config::default();
        expected.replication.quorum.write_quorum = Some(1);
        assert_eq!(settings.config(), &expected, "the balanced profile and the defaults say the same");
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
            ("durability", Ack::Quorum, 1_073_741_824),
            ("balanced", Ack::Durable, 268_435_456),
        ] {
            let settings = load(None, &[("DLOG_PROFILE", name)], &[]).unwrap();
            assert_eq!(settings.promise().ack, ack);
            assert_eq!(settings.config().storage.segment_config.max_size, ByteSize(segment));
        }
    }

    #[test]
    fn a_profile_is_lowered_to_the_cores_with_a_warning() {
        for (profile, cores, factor, write, read) in [
            ("latency", 8, 3, 1, 1),
            ("latency", 2, 2, 1, 1),
            ("throughput", 2, 2, 1, 1),
            ("durability", 8, 5, 5, 3),
            ("durability", 4, 4, 4, 3),
            ("durability", 2, 2, 2, 2),
            ("latency", 1, 1, 1, 1),
            ("throughput", 1, 1, 1, 1),
            ("durability", 1, 1, 1, 1),
            ("balanced", 1, 1, 1, 1),
        ] {
            let settings = load(None, &[("DLOG_PROFILE", profile)], &[]).unwrap().on_cores(cores).unwrap();
            assert_eq!(settings.config().copies(), Copies { factor, write, read }, "{profile} on {cores}");
            let asks = load(None, &[("DLOG_PROFILE", profile)], &[]).unwrap().config().copies();
            assert_eq!(settings.warnings().is_empty(), asks.factor == factor, "{profile} on {cores}");
        }
        let settings = load(None, &[], &["profile=durability"]).unwrap();
        assert!(settings.warnings().is_empty(), "how many cores there are is not known");
        let settings = settings.on_cores(2).unwrap();
        let lowered: Vec<_> = settings.entries().into_iter().filter_map(|e| e.lowered_from).collect();
        assert_eq!(lowered, [5, 5, 3]);
        let warning = "profile durability asks for 5 copies of each partition, each on a core of its own; this server \
                       has 2 cores, so replication_factor is 2, write_quorum 2 and read_quorum 2";
        assert_eq!(settings.warnings(), [warning]);
        assert!(settings.on_cores(1).unwrap().warnings()[0].contains("has 1 core, so replication_factor is 1,"));
    }

    #[test]
    fn explicit_copies_are_refused_with_the_arithmetic_if_there_are_too_few_cores() {
        let settings = load(None, &[], &["replication.quorum.replication_factor=3"]).unwrap();
        assert_eq!(settings.config().copies(), Copies { factor: 3, write: 2, read: 1 }, "a majority, as nobody said");
        assert!(settings.clone().on_cores(3).is_ok());
        assert_eq!(
            settings.on_cores(2).unwrap_err().to_string(),
            "flag --set replication.quorum.replication_factor: `replication.quorum.replication_factor` is 3, which \
             cannot be honoured: it needs 3 cores, one for each copy; this server has 2"
        );
    }

    #[test]
    fn quorums_are_of_the_copies_that_there_are() {
        let error = load(None, &[], &["replication.quorum.write_quorum=2"]).unwrap_err();
        assert!(error.ends_with("it is a number of copies, and there are 1 of each partition"), "{error}");
        let file = Some("{\"replication\": {\"quorum\": {\"replication_factor\": 3, \"read_quorum\": 4}}}");
        let error = load(file, &[], &[]).unwrap_err();
        assert!(error.contains("dlog.json:1: `replication.quorum.read_quorum` is 4, which"), "{error}");
        let of_profile = load(None, &[], &["profile=durability", "replication.quorum.replication_factor=2"]).unwrap();
        assert_eq!(of_profile.config().copies(), Copies { factor: 2, write: 2, read: 2 });
        assert!(of_profile.warnings()[0].starts_with("profile durability asks for larger quorums than there are"));
        let wanted = load(None, &[], &["profile=durability", "replication.quorum.write_quorum=4"]).unwrap();
        let error = wanted.on_cores(2).unwrap_err().to_string();
        assert!(error.ends_with("there are 2 of each partition instead of 5, for want of cores"), "{error}");
        assert!(load(None, &[], &["profile=latency", "replication.quorum.replication_factor=1"]).is_ok());
    }

    #[test]
    fn each_data_directory_needs_a_core_and_the_copies_are_on_so_many_drives() {
        let settings = load(None, &[("DLOG_DATA_DIR", "/a:/b:/c")], &["replication.quorum.replication_factor=3"]);
        let settings = settings.unwrap();
        let error = settings.clone().on_cores(2).unwrap_err().to_string();
        assert!(error.contains("is 3, which cannot be honoured: it needs 3 cores"), "{error}");
        let copies = settings.on_cores(3).unwrap().promise().copies;
        assert!(copies.contains("each on a core and a drive of its own"), "{copies}");
        let error = load(None, &[], &["server.data_dir=/a:/b:/c"]).unwrap().on_cores(2).unwrap_err().to_string();
        let says = "--set server.data_dir: `server.data_dir` is [\"/a\",\"/b\",\"/c\"], which cannot be honoured: 3 \
                    directories need 3 cores, one for each; this server has 2";
        assert!(error.ends_with(says), "{error}");
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

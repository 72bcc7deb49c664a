//! `dlog serve`: the flags of the server, as the uppermost layer of its configuration.

use std::path::PathBuf;

use pyralog_tuning::{Inputs, Settings};

use super::{Fault, Outcome};
use crate::serve::ServeError;

/// The flags. Each overrides `DLOG_*`, the file, the profile and the default; see docs/CONFIG.md.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// The directory of all data; created if missing. Given several times, one for each drive [default: ./dlog-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Vec<String>,
    /// The UDP address for clients; port 0 takes any free port [default: 127.0.0.1:9092]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The TCP address of /health, /status and /metrics; port 0 takes any free port [default: 127.0.0.1:9644]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// The CPUs to use: all, 0-3, 0,2,4 [default: all]
    #[arg(long, value_name = "CPUS")]
    cores: Option<String>,
    /// balanced, latency, throughput or durability [default: balanced]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// The configuration file: JSON, with comments and trailing commas allowed
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of docs/CONFIG.md; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ServeArgs {
    /// Whether any flag was given.
    pub fn is_given(&self) -> bool {
        let one = [&self.listen, &self.http, &self.cores, &self.profile].into_iter().any(Option::is_some);
        one || self.config.is_some() || !self.set.is_empty() || !self.data_dir.is_empty()
    }

    /// The flags and the environment, for the configuration's layers.
    pub fn inputs(&self) -> Outcome<Inputs> {
        let mut inputs = Inputs { config_file: self.config.clone(), ..Inputs::from_process() };
        for dir in &self.data_dir {
            inputs.flag("--data-dir", "server.data_dir", Some(dir));
        }
        inputs.flag("--listen", "server.listen", self.listen.as_ref());
        inputs.flag("--http", "server.http", self.http.as_ref());
        inputs.flag("--cores", "server.cores", self.cores.as_ref());
        inputs.flag("--profile", "profile", self.profile.as_ref());
        for text in &self.set {
            inputs.set(text)?;
        }
        Ok(inputs)
    }
}

/// Serves until a signal ends it.
pub fn run(args: &ServeArgs) -> Outcome {
    let settings = Settings::load(&args.inputs()?)?;
    crate::serve::run(&settings).map_err(|error| match error {
        ServeError::Config(error) => error.into(),
        error => Fault::new(&error),
    })
}

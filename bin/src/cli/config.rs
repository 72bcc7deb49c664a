//! `dlog config`: what holds, where it came from, and whether a file can be used.

use std::path::PathBuf;

use clap::Subcommand;
use pyralog_tuning::{Inputs, Settings, cores, reference};
use serde_json::{Map, Value, json};

use super::{Fault, Outcome, limits::fixed_limits, serve::ServeArgs};
use crate::output::{self, say};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its value and the layer it came from, as the server would start with these flags, variables
    /// and file.
    Show(ServeArgs),
    /// Check a file without starting anything, and print what it guarantees on the cores that it names, or else on all
    /// of this machine. Flags and variables are left out.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print the JSON schema of the configuration file, for editors.
    Schema,
    /// Print docs/CONFIG.md.
    Reference,
}

/// Does what the command says.
pub fn run(command: &ConfigCommand, json: bool) -> Outcome {
    match command {
        ConfigCommand::Show(args) => show(&here(Settings::load(&args.inputs()?)?)?, json),
        ConfigCommand::Check { file } => {
            let settings = Settings::load(&Inputs { config_file: Some(file.clone()), ..Inputs::default() })?;
            check(&here(settings)?, json);
        }
        ConfigCommand::Reference => output::print(format_args!("{}", reference::markdown(&fixed_limits()))),
        ConfigCommand::Schema => say!("{:#}", reference::schema()),
    }
    Ok(())
}

/// The settings on the cores that they would have: those they name, or all that there are here.
fn here(settings: Settings) -> Result<Settings, Fault> {
    let cores = cores::parse(&settings.config().server.cores).and_then(|cores| cores.count()).map_err(Fault::usage)?;
    Ok(settings.on_cores(cores)?)
}

fn show(settings: &Settings, json: bool) {
    let promise = settings.promise();
    if json {
        let keys: Map<String, Value> = settings
            .entries()
            .into_iter()
            .map(|entry| {
                let origin = json!({ "layer": entry.origin.layer(), "from": entry.origin.to_string() });
                let mut object = json!({ "value": entry.value, "origin": origin });
                if let Some(wanted) = entry.lowered_from {
                    object["lowered_from"] = wanted.into();
                }
                (entry.key.path.to_owned(), object)
            })
            .collect();
        let shown = json!({
            "keys": keys, "ack": promise.ack, "guarantee": promise.guarantee, "copies": promise.copies,
            "warnings": settings.warnings(),
        });
        say!("{shown:#}");
        return;
    }
    for entry in settings.entries() {
        let lowered = entry.lowered_from.map_or_else(String::new, |wanted| format!(", lowered from {wanted}"));
        let value = reference::shown(entry.key, &entry.value);
        say!("{:<44} {value:<22} {}{lowered}", entry.key.path, entry.origin);
    }
    say!("\nacknowledged when {}: {}", promise.ack, promise.guarantee);
    say!("copies: {}", promise.copies);
    settings.warnings().iter().for_each(|warning| say!("warning: {warning}"));
}

fn check(settings: &Settings, json: bool) {
    let (promise, profile) = (settings.promise(), settings.config().profile.name());
    if json {
        let shown = json!({
            "profile": profile, "ack": promise.ack, "guarantee": promise.guarantee, "copies": promise.copies,
            "warnings": settings.warnings(),
        });
        say!("{shown:#}");
        return;
    }
    say!("the configuration is fine: profile {profile}, acknowledged when {}", promise.ack);
    say!("{}", promise.guarantee);
    say!("copies: {}", promise.copies);
    settings.warnings().iter().for_each(|warning| say!("warning: {warning}"));
}

//! The command line: what can be said, and which file does it. One file per subcommand.

mod alter;
mod config;
mod consume;
mod cores;
mod cutting;
mod dump;
mod fault;
mod files;
mod format;
mod limits;
mod lines;
mod log;
mod produce;
mod recover;
mod repair;
mod serve;
mod verify;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use pyralog_net::{client::PyralogClient, fingerprint::Fingerprint};

pub use fault::{Fault, Outcome};

use crate::output::{self, note};

/// How long an attempt to connect may take at most, and saying goodbye.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Pyralog: a log engine that runs one shard per core. Without a subcommand it starts the server.
#[derive(Debug, Parser)]
#[command(name = "dlog", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    serve: serve::ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command that talks to a server takes.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// The server to talk to.
    #[arg(long, global = true, env = "DLOG_SERVER", default_value = "127.0.0.1:9092", value_name = "ADDR")]
    server: String,
    /// The SHA-256 of the server's certificate, as it printed it at start. Not needed for a server that this user runs
    /// on this machine.
    #[arg(long, global = true, env = "DLOG_FINGERPRINT", value_name = "HEX")]
    fingerprint: Option<Fingerprint>,
    /// How long to wait for a connection, and for an answer, in seconds.
    #[arg(long, global = true, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Print JSON: results on stdout, errors on stderr.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server.
    Serve(serve::ServeArgs),
    /// Create, change, list, describe, trim and delete logs.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Move partitions among the cores of a server.
    #[command(subcommand)]
    Cores(cores::CoresCommand),
    /// Write records: one for each line of the files, or of stdin.
    Produce(produce::ProduceArgs),
    /// Print records.
    Consume(consume::ConsumeArgs),
    /// Give a partition that nobody can lead a leader, accepting that records are lost. Without --accept-data-loss it
    /// only says what would be done and what that may cost.
    Recover(recover::RecoverArgs),
    /// Check every byte of a data directory; also while a server runs, as far as that goes.
    Verify(verify::VerifyArgs),
    /// Show what is in a segment file, or in a partition.
    Dump(dump::DumpArgs),
    /// Show and check configurations.
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

/// Reads the command line, does what it says, and reports.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.command.is_some() && cli.serve.is_given() {
        let message = "flags of the server come after `serve`, and go with no other subcommand";
        Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::from(fault::EXIT_OK),
        Err(fault) => {
            report(&fault, json);
            ExitCode::from(fault.exit_code())
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let Cli { global, serve, command } = cli;
    let outcome = match command {
        // What it prints is for whoever looks on: that it got lost is no failure of the server.
        None => return serve::run(&serve),
        Some(Command::Serve(args)) => return serve::run(&args),
        Some(Command::Verify(args)) => verify::run(&args, global.json),
        Some(Command::Dump(args)) => dump::run(&args, global.json),
        Some(Command::Config(command)) => config::run(&command, global.json),
        Some(Command::Log(command)) => {
            on_tokio(global.with_client(async |client| log::run(client, &command, global.json).await))
        }
        Some(Command::Recover(args)) => {
            on_tokio(global.with_client(async |client| recover::run(client, &args, global.json).await))
        }
        Some(Command::Cores(command)) => {
            on_tokio(global.with_client(async |client| cores::run(client, &command, global.json).await))
        }
        Some(Command::Produce(args)) => {
            on_tokio(global.with_client(async |client| produce::run(client, &args, global.json).await))
        }
        Some(Command::Consume(args)) => on_tokio(global.with_client(async |client| consume::run(client, &args).await)),
    };
    outcome.and_then(|()| output::finish().map_err(Fault::new))
}

/// Plain words for files and machines; on a terminal miette's drawing of them.
fn report(fault: &Fault, json: bool) {
    if json {
        note!("{}", fault.as_json());
    } else if std::io::stderr().is_terminal() {
        note!("{:?}", Drawn(fault, miette::MietteHandlerOpts::new().wrap_lines(false).build()));
    } else {
        note!("dlog: {fault}");
        if let Some(help) = miette::Diagnostic::help(fault) {
            note!("help: {help}");
        }
    }
}

/// A fault through miette's eyes.
struct Drawn<'a>(&'a Fault, miette::MietteHandler);

impl std::fmt::Debug for Drawn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        miette::ReportHandler::debug(&self.1, self.0, f)
    }
}

/// Runs a client command. Two threads: one moves bytes while the other compresses, checks or prints.
fn on_tokio(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| Fault::new(format!("the client cannot start: {error}")))?.block_on(command)
}

impl Global {
    /// Does `work` with a client set up as the flags say, and closes its connections: otherwise the server would keep
    /// each for its idle timeout.
    async fn with_client(&self, work: impl AsyncFnOnce(&PyralogClient) -> Outcome) -> Outcome {
        let timeout = Duration::from_secs(self.timeout);
        let mut builder =
            PyralogClient::builder().connect_timeout(timeout.min(CONNECT_TIMEOUT)).request_timeout(timeout);
        if let Some(fingerprint) = self.fingerprint {
            builder = builder.fingerprint(fingerprint);
        }
        let client = builder.connect(self.server.as_str()).await?;
        let outcome = work(&client).await;
        // The outcome stands whether or not the server hears of the end.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, client.close()).await;
        outcome
    }
}

//! A real server for the benchmarks that need one, and a client of it.

use std::{cell::LazyCell, path::Path, process::Command};

use bench_harness::{
    args::ServerArgs,
    server_process::{ServerFolder, ServerProcess},
};
use pyralog_net::client::{LogId, PartitionHandle, PartitionId, PyralogClient};
use tokio::runtime::Runtime;

/// A server with a log of one partition, and a client of it.
pub struct Served {
    /// The client's runtime: one thread, as a benchmark has.
    pub runtime: Runtime,
    /// The log's partition.
    pub partition: PartitionHandle,
    _client: PyralogClient,
    // Stopped before its folder is removed: fields go in order.
    _server: ServerProcess,
    _folder: ServerFolder,
}

impl Served {
    /// Starts `dlog` without a configuration, as a user would, but on one core.
    pub fn start() -> Self {
        let program = build();
        let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
        std::fs::create_dir_all(&data_dir).expect("a folder for data");
        let args = ServerArgs { dlog: Some(program), data_dir, server_cpu: None };
        let folder = ServerFolder::new(&args).expect("a folder");
        let server = folder.start("bench", &["--cores", "0"]).expect("a server");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (client, partition) = runtime.block_on(async {
            let client = PyralogClient::connect(&server.address).await.expect("a connection");
            let log = LogId::new("bench/latency").expect("a name");
            client.create_log(&log, 1, None).await.expect("a log");
            let partition = client.partition(&log, PartitionId(0)).await.expect("a partition");
            (client, partition)
        });
        Served { runtime, partition, _client: client, _server: server, _folder: folder }
    }
}

/// A server for the benchmarks of `group`. It is not started if the command line asks for others only; if it asks for
/// these it is built and started now: within a benchmark that would be taken for time that warming up took.
pub fn served(group: &str) -> LazyCell<Served> {
    let served = LazyCell::new(Served::start as fn() -> Served);
    // Numbers are the values of options.
    let words = std::env::args().skip(1).filter(|word| !word.starts_with('-') && word.parse::<f64>().is_err());
    let words: Vec<String> = words.collect();
    if words.is_empty() || words.iter().any(|word| group.contains(word.as_str()) || word.contains(group)) {
        LazyCell::force(&served);
    }
    served
}

/// The server's program, built as this benchmark was. Cargo builds only what a package depends on, and nothing depends
/// on a program.
fn build() -> std::path::PathBuf {
    let this = std::env::current_exe().expect("this program");
    let folder = this.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => "release",
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = folder.parent().expect("target");
    let mut command = Command::new(cargo);
    command.args(["build", "--locked", "--package", "dlog", "--profile", profile, "--target-dir"]).arg(target);
    let built = command.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo");
    assert!(built.success(), "the server could not be built");
    folder.join("dlog")
}

//! The options of the suites.

use std::path::PathBuf;

use clap::Args;
use pyralog_engine::limits::BATCH_RECORDS_MAX;

use super::{
    CommonArgs, RunArgs,
    parse::{CpuList, cpu_list, factor, rate, up_to},
};
use crate::report::assertion::Assertion;

/// Options of `seed-table`.
#[derive(Clone, Debug, Args)]
pub struct SeedTableArgs {
    /// What every row has in common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Offer each row this many times its target rate.
    #[arg(long, default_value = "1", value_name = "FACTOR", value_parser = factor, conflicts_with = "closed")]
    pub offer: f64,
    /// Closed loop: as much as the server takes, with few requests in flight. Its latencies flatter the server.
    #[arg(long)]
    pub closed: bool,
    /// The default, by the name that scripts know it by.
    #[arg(long, hide = true, conflicts_with = "closed")]
    pub open_loop: bool,
    /// Run only the rows whose name contains this; may be repeated.
    #[arg(long = "row", value_name = "NAME")]
    pub rows: Vec<String>,
}

/// Options of `sweep`.
#[derive(Clone, Debug, Args)]
pub struct SweepArgs {
    /// The workload.
    #[command(flatten)]
    pub run: RunArgs,
    /// The lowest rate, in records a second, or where the search begins.
    #[arg(long, default_value = "1000", value_name = "RECORDS", value_parser = rate)]
    pub from: f64,
    /// The highest rate.
    #[arg(long, default_value = "1000000", value_name = "RECORDS", value_parser = rate)]
    pub to: f64,
    /// How many rates.
    #[arg(long, default_value_t = 10, value_parser = up_to(1000))]
    pub steps: u32,
    /// Search the highest rate at which this holds, for example `p99<1ms`.
    #[arg(long, value_name = "ASSERTION", conflicts_with_all = ["to", "steps"])]
    pub slo: Option<Assertion>,
}

/// The servers that a suite starts.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// The server program [default: the dlog beside this program].
    #[arg(long, value_name = "FILE")]
    pub dlog: Option<PathBuf>,
    /// Where the servers' data go, in a folder that is removed afterwards; on a real disk.
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    pub data_dir: PathBuf,
    /// The servers' CPUs, for example `0` [default: all].
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub server_cpu: Option<CpuList>,
}

impl ServerArgs {
    /// The servers' CPUs as flags.
    pub fn cores_flag(&self) -> Vec<String> {
        let list = |cpus: &CpuList| cpus.0.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        self.server_cpu.iter().flat_map(|cpus| ["--cores".to_owned(), list(cpus)]).collect()
    }
}

/// Options of `profiles`.
#[derive(Clone, Debug, Args)]
pub struct ProfilesArgs {
    /// What every row has in common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The servers.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Options of `batch-sweep`.
#[derive(Clone, Debug, Args)]
pub struct BatchSweepArgs {
    /// What every row has in common.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Options of `scale`.
#[derive(Clone, Debug, Args)]
pub struct ScaleArgs {
    /// What every row has in common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The servers: as many cores as these CPUs.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The servers' profile.
    #[arg(long, default_value = "throughput", value_name = "PROFILE")]
    pub profile: String,
    /// Records in a batch.
    #[arg(long, default_value_t = 1000, value_parser = up_to(BATCH_RECORDS_MAX))]
    pub batch: u32,
}

/// Options of `tail-vs-catchup`.
#[derive(Clone, Debug, Args)]
pub struct TailArgs {
    /// What both rows have in common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Records a second that are written.
    #[arg(long, default_value = "100000", value_name = "RECORDS", value_parser = rate)]
    pub rate: f64,
    /// Records in a batch.
    #[arg(long, default_value_t = 100, value_parser = up_to(BATCH_RECORDS_MAX))]
    pub batch: u32,
    /// Readers that catch up.
    #[arg(long, default_value_t = 1, value_parser = up_to(1000))]
    pub readers: u32,
}

/// Options of `soak`.
#[derive(Clone, Debug, Args)]
pub struct SoakArgs {
    /// What every suite has in common; --seconds does not count here.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How long.
    #[arg(long, default_value = "30", value_name = "MINUTES", value_parser = factor)]
    pub minutes: f64,
    /// Records a second that are written.
    #[arg(long, default_value = "10000", value_name = "RECORDS", value_parser = rate)]
    pub rate: f64,
    /// Records in a batch.
    #[arg(long, default_value_t = 10, value_parser = up_to(BATCH_RECORDS_MAX))]
    pub batch: u32,
}

/// Options of `idle`.
#[derive(Clone, Debug, Args)]
pub struct IdleArgs {
    /// What every suite has in common; --seconds says how long to watch.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Options of `recovery`.
#[derive(Clone, Debug, Args)]
pub struct RecoveryArgs {
    /// What every suite has in common; --seconds says how long to write.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The server's profile.
    #[arg(long, default_value = "balanced", value_name = "PROFILE")]
    pub profile: String,
    /// Records in a batch.
    #[arg(long, default_value_t = 1000, value_parser = up_to(BATCH_RECORDS_MAX))]
    pub batch: u32,
}

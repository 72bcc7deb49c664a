//! Each shipped profile against what the performance guide expects of it, with a server started for each.

use std::time::Duration;

use super::{Played, Stage, nothing, seed_table::Target};
use crate::{
    args::{ProfilesArgs, Workload},
    measuring::times::SAMPLES_BEYOND_MIN,
    pacing::Arrivals,
    plan::Plan,
    report::Report,
    server_process::ServerFolder,
    target::HarnessError,
};

/// What the guide expects of a profile.
struct Expected {
    profile: &'static str,
    batch: u32,
    records_per_s: f64,
    p99_us: f64,
}

impl Expected {
    /// How long it takes until a 99th percentile is known, and a tenth more.
    fn long_enough(&self) -> Duration {
        let requests_per_s = self.records_per_s / f64::from(self.batch);
        Duration::from_secs_f64(1.1 * SAMPLES_BEYOND_MIN / 0.01 / requests_per_s)
    }
}

/// The guide gives ranges for two of them; the rate is the upper end, and so is the latency.
const EXPECTED: [Expected; 3] = [
    Expected { profile: "latency", batch: 1, records_per_s: 100e3, p99_us: 1e3 },
    Expected { profile: "throughput", batch: 1000, records_per_s: 1e6, p99_us: 5e3 },
    Expected { profile: "durability", batch: 1, records_per_s: 50e3, p99_us: 20e3 },
];

/// Starts a server with each profile and offers it the rate that is expected of it.
pub async fn play(args: &ProfilesArgs, stage: &Stage) -> Played {
    let folder = ServerFolder::new(&args.server).map_err(nothing)?;
    let mut all: Option<Report> = None;
    for expected in &EXPECTED {
        match one(args, stage, &folder, expected).await {
            Ok(report) => all = Some(Report::joined(all, report)),
            Err(error) => return Err((all, error)),
        }
    }
    all.ok_or_else(|| nothing(HarnessError::Usage("there are no profiles".to_owned())))
}

async fn one(
    args: &ProfilesArgs,
    stage: &Stage,
    folder: &ServerFolder,
    expected: &Expected,
) -> Result<Report, HarnessError> {
    let cores = args.server.cores_flag();
    let flags: Vec<&str> =
        ["--profile", expected.profile].into_iter().chain(cores.iter().map(String::as_str)).collect();
    let server = folder.start(expected.profile, &flags)?;
    let common = server.args(&args.common);
    let name = format!("profile-{}", expected.profile);
    let plan = Plan::of_common(name, Workload::Write, expected.batch, &common)?;
    let seconds = common.seconds.max(expected.long_enough());
    let plan = Plan { seconds, ..plan.offered(expected.records_per_s, Arrivals::Constant) };
    // Of the median the guide says nothing; it is within the 99th percentile.
    let target = Target { records_per_s: expected.records_per_s, p50_us: expected.p99_us, p99_us: expected.p99_us };
    let report = {
        let mut session = stage.session(&common).await?;
        session.row(&plan, Some(target)).await?;
        session.report
    };
    server.stop()?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_lasts_until_its_99th_percentile_is_known() {
        let seconds = EXPECTED.each_ref().map(|expected| expected.long_enough().as_secs_f64());
        assert_eq!(seconds.map(|seconds| (seconds * 100.0).round()), [11.0, 1100.0, 22.0]);
    }
}

//! How throughput grows with cores: the same work for each, on servers of one core, two, and so on.

use super::{Played, Stage, nothing};
use crate::{
    args::{ScaleArgs, Workload},
    plan::Plan,
    report::{Report, human::count},
    server_process::ServerFolder,
    target::HarnessError,
};

/// Partitions of each core, as the performance guide advises: two to four.
const PARTITIONS_PER_CORE: u32 = 4;
/// Requests in flight for each core.
const IN_FLIGHT: u32 = 16;

/// Starts servers of 1, 2, … cores and writes as much as they take.
pub async fn play(args: &ScaleArgs, stage: &Stage) -> Played {
    let folder = ServerFolder::new(&args.server).map_err(nothing)?;
    let cpus = match &args.server.server_cpu {
        Some(list) => list.0.clone(),
        None => (0..std::thread::available_parallelism().map_or(1, Into::into)).collect(),
    };
    let (mut all, mut rates): (Option<Report>, Vec<f64>) = (None, Vec::new());
    for cores in 1..=cpus.len() {
        match one(args, stage, &folder, &cpus[..cores]).await {
            Ok(report) => {
                rates.extend(report.rows.iter().map(|row| row.records_per_s));
                all = Some(Report::joined(all, report));
            }
            Err(error) => return Err((all, error)),
        }
    }
    let mut report = all.ok_or_else(|| nothing(HarnessError::Usage("no CPU was given".to_owned())))?;
    report.conclusions.extend(efficiencies(&rates).into_iter().enumerate().map(|(index, efficiency)| {
        let (cores, rate, percent) = (index + 1, count(rates[index]), efficiency * 100.0);
        format!("{cores} cores: {rate} records/s, {percent:.0} % of {cores} times one core")
    }));
    Ok(report)
}

async fn one(args: &ScaleArgs, stage: &Stage, folder: &ServerFolder, cpus: &[usize]) -> Result<Report, HarnessError> {
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    let cores = cpus.len() as u32;
    let name = format!("cores-{cores}");
    let server = folder.start(&name, &["--profile", &args.profile, "--cores", &list.join(",")])?;
    let common = server.args(&args.common);
    let plan = Plan::of_common(name, Workload::Write, args.batch, &common)?;
    let plan = Plan { partitions: PARTITIONS_PER_CORE * cores, connections: cores as u16, ..plan };
    let report = {
        let mut session = stage.session(&common).await?;
        session.row(&plan.closed(IN_FLIGHT), None).await?;
        session.report
    };
    server.stop()?;
    Ok(report)
}

/// What each number of cores reaches of so many times one core.
fn efficiencies(rates: &[f64]) -> Vec<f64> {
    let one = rates.first().copied().unwrap_or(0.0).max(1e-9);
    rates.iter().enumerate().map(|(index, rate)| rate / (one * (index + 1) as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efficiency_is_measured_by_one_core() {
        assert_eq!(efficiencies(&[100.0, 150.0, 300.0]), [1.0, 0.75, 1.0]);
        assert!(efficiencies(&[]).is_empty());
    }
}

//! How long a server takes to serve again after a crash, and whether everything acknowledged is there.

use std::time::{Duration, Instant};

use pyralog_engine::types::{AckLevel, Offset};

use super::{Played, Stage, nothing};
use crate::{
    args::{CommonArgs, RecoveryArgs, Workload},
    plan::Plan,
    report::{Recovery, Report, Row},
    server_process::ServerFolder,
    target::{HarnessError, at_once},
};

/// Requests in flight while the log is filled.
const IN_FLIGHT: u32 = 16;

/// Fills a log, kills the server, starts it again, and reads everything back.
pub async fn play(args: &RecoveryArgs, stage: &Stage) -> Played {
    let folder = ServerFolder::new(&args.server).map_err(nothing)?;
    let cores = args.server.cores_flag();
    let profile = ["--profile", args.profile.as_str()];
    let flags: Vec<&str> = profile.into_iter().chain(cores.iter().map(String::as_str)).collect();
    let server = folder.start("recovery", &flags).map_err(nothing)?;
    let mut common = server.args(&args.common);
    // What is promised of a lower level is not promised of a crash.
    common.ack = common.ack.or(Some(AckLevel::Durable));
    let plan = Plan::of_common("recovery".to_owned(), Workload::Write, args.batch, &common).map_err(nothing)?;
    let plan = plan.closed(IN_FLIGHT);
    let mut session = stage.session(&common).await.map_err(nothing)?;
    let filled = session.driver().fill(&plan).await.map_err(nothing)?;
    server.kill().map_err(nothing)?;

    let begin = Instant::now();
    let again = folder.start("recovery", &flags).map_err(nothing)?;
    let again_args = CommonArgs { floor_seconds: Duration::ZERO, ..again.args(&common) };
    let after = stage.session(&again_args).await.map_err(nothing)?;
    let log = filled.log();
    let partitions = after.driver().target.partitions(log, plan.partitions).await.map_err(nothing)?;
    for partition in &partitions {
        let first = partition.fetch(Offset(0), at_once(1)).await;
        first.map_err(HarnessError::client("reading after the crash")).map_err(nothing)?;
    }
    let serving_after = begin.elapsed();
    let outcome = after.driver().read_back(filled).await.map_err(nothing)?;
    let row = Row::new(&plan, &outcome, None);
    let recovery = recovery(&row, again.ready_after, serving_after);
    session.report.conclusions.push(recovery.to_string());
    session.report.recovery = Some(recovery);
    session.report.rows.push(row);
    let report: Report = session.report;
    match again.stop() {
        Ok(()) => Ok(report),
        Err(error) => Err((Some(report), error)),
    }
}

fn recovery(row: &Row, ready_after: Duration, serving_after: Duration) -> Recovery {
    let seconds = |time: Duration| (time.as_secs_f64() * 1e3).round() / 1e3;
    Recovery {
        records: row.records_checked,
        ready_after_s: seconds(ready_after),
        serving_after_s: seconds(serving_after),
    }
}

//! The command: parses, connects, runs the rows one after the other, reports.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use bench_harness::{
    args::{Cli, Command, CommonArgs},
    drive::Driver,
    host::Host,
    plan::Plan,
    progress::Progress,
    report::{Report, Row, files, human},
    seed_table::{self, Target as SeedTarget},
    target::{HarnessError, RunId, Target},
};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match carry_out(&cli) {
        Ok(report) if report.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-harness: {error}");
            ExitCode::from(if matches!(error, HarnessError::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn carry_out(cli: &Cli) -> Result<Report, HarnessError> {
    let (common, plans) = match &cli.command {
        Command::Run(args) => (&args.common, vec![(Plan::of_run(args)?, None)]),
        Command::SeedTable(args) => {
            let plans = seed_table::plans(args)?;
            (&args.common, plans.into_iter().map(|(plan, target)| (plan, Some(target))).collect())
        }
    };
    if plans.is_empty() {
        return Err(HarnessError::Usage("no row has such a name".to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(HarnessError::system("starting a runtime"))?.block_on(run(common, &plans))
}

async fn run(common: &CommonArgs, plans: &[(Plan, Option<SeedTarget>)]) -> Result<Report, HarnessError> {
    let progress = Progress::new();
    let target = Target::connect(&common.server).await?;
    let server = target.describe().await?;
    let stop = Arc::default();
    let driver = Driver { args: common, target, run: RunId::new(), progress: &progress, stop: Arc::clone(&stop) };
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.store(true, Relaxed);
        }
    });

    let begun_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let command = std::env::args().collect();
    let mut report = Report { command, begun_unix_s, host: Host::probe(), server, rows: Vec::new() };
    let mut failed = None;
    for (plan, seed_target) in plans {
        let whole = (plan.warmup + plan.seconds).as_secs_f64();
        progress.note(&plan.name, &format!("{whole:.1} s, the warm-up included"));
        match driver.row(plan).await {
            Ok(outcome) => {
                report.rows.push(Row::new(plan, &outcome, *seed_target));
                if let Some(folder) = &common.export {
                    files::export(folder, &plan.name, &outcome)?;
                }
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    progress.finish();
    // What was measured before a failure is worth seeing.
    if !report.rows.is_empty() {
        print!("{}", human::table(&report));
    }
    if let Some(file) = &common.json {
        files::write_json(file, &report)?;
    }
    failed.map_or(Ok(report), Err)
}

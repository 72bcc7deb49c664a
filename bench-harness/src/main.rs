//! The command: parses, connects, runs the rows one after the other, reports.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bench_harness::{
    args::{Cli, Command, CommonArgs},
    drive::Driver,
    host::Host,
    plan::Plan,
    progress::Progress,
    report::{Report, Row, human},
    seed_table::{self, Target as SeedTarget},
    target::{HarnessError, RunId, Target},
};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (common, plans) = match &cli.command {
        Command::Run(args) => (&args.common, vec![(Plan::of_run(args), None)]),
        Command::SeedTable(args) => {
            let plans = seed_table::plans(args);
            (&args.common, plans.into_iter().map(|(plan, target)| (plan, Some(target))).collect())
        }
    };
    if plans.is_empty() {
        eprintln!("bench-harness: no row has such a name");
        return ExitCode::from(2);
    }
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(HarnessError::system("starting a runtime"))
        .and_then(|runtime| runtime.block_on(run(common, &plans)));
    match done {
        Ok(report) if report.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-harness: {error}");
            ExitCode::FAILURE
        }
    }
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

    let mut report = Report { host: Host::probe(), server, rows: Vec::new() };
    let mut failed = None;
    for (plan, seed_target) in plans {
        let whole = (plan.warmup + plan.seconds).as_secs_f64();
        progress.note(&plan.name, &format!("{whole:.1} s, the warm-up included"));
        match driver.row(plan).await {
            Ok(outcome) => report.rows.push(Row::new(plan, &outcome, *seed_target)),
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
        write_json(file, &report)?;
    }
    failed.map_or(Ok(report), Err)
}

fn write_json(file: &Path, report: &Report) -> Result<(), HarnessError> {
    let json = serde_json::to_vec_pretty(report).expect("report"); // why: strings and numbers are always JSON
    std::fs::write(file, json).map_err(HarnessError::system(format!("writing {}", file.display())))
}

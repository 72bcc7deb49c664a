//! The command: parses, connects, runs the rows one after the other, reports.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bench_harness::{
    args::{Cli, Command, CommonArgs},
    plan::Plan,
    progress::Progress,
    report::{Report, files, human},
    seed_table::{self, Target as SeedTarget},
    session::Session,
    target::HarnessError,
    verdict::{self, Outcome},
};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match carry_out(&cli) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            eprintln!("bench-harness: {error}");
            Outcome::of_error(&error).exit_code()
        }
    }
}

fn carry_out(cli: &Cli) -> Result<Outcome, HarnessError> {
    match &cli.command {
        Command::Run(args) => measure(&args.common, vec![(Plan::of_run(args)?, None)]),
        Command::SeedTable(args) => {
            let plans = seed_table::plans(args)?;
            measure(&args.common, plans.into_iter().map(|(plan, target)| (plan, Some(target))).collect())
        }
        Command::Compare(args) => verdict::compare(&args.before, &args.after, args.tolerance),
        Command::Baseline(command) => verdict::baseline(command),
        Command::Html(args) => files::write_html(&args.page, &files::read_json(&args.report)?).map(|()| Outcome::Good),
    }
}

fn measure(common: &CommonArgs, plans: Vec<(Plan, Option<SeedTarget>)>) -> Result<Outcome, HarnessError> {
    if plans.is_empty() {
        return Err(HarnessError::Usage("no row has such a name".to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.map_err(HarnessError::system("starting a runtime"))?.block_on(run(common, &plans))?;
    Ok(verdict::of_report(&report, &common.asserts))
}

async fn run(common: &CommonArgs, plans: &[(Plan, Option<SeedTarget>)]) -> Result<Report, HarnessError> {
    let (progress, stop) = (Progress::new(), stop_on_control_c());
    let mut session = Session::open(common, &progress, stop).await?;
    let mut failed = None;
    for (plan, seed_target) in plans {
        if let Err(error) = session.row(plan, *seed_target).await {
            failed = Some(error);
            break;
        }
    }
    progress.finish();
    let report = session.report;
    // What was measured before a failure is worth seeing.
    if !report.rows.is_empty() {
        print!("{}", human::table(&report));
    }
    if let Some(file) = &common.json {
        files::write_json(file, &report)?;
    }
    if let Some(file) = &common.html {
        files::write_html(file, &report)?;
    }
    failed.map_or(Ok(report), Err)
}

/// A flag that Control-C sets.
fn stop_on_control_c() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            set.store(true, Relaxed);
        }
    });
    stop
}

//! The command: parses, plays what was asked for, reports.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bench_harness::{
    args::{Cli, Command, CommonArgs, RunArgs, SeedTableArgs},
    plan::Plan,
    progress::Progress,
    report::{Report, files, human},
    suites::{
        self, Played, Stage, batch_sweep, idle, nothing, profiles, recovery, scale, seed_table, soak, sweep, tail,
    },
    target::HarnessError,
    verdict::{self, Outcome},
};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = carry_out(&cli.command);
    outcome
        .unwrap_or_else(|error| {
            eprintln!("bench-harness: {error}");
            Outcome::of_error(&error)
        })
        .exit_code()
}

fn carry_out(command: &Command) -> Result<Outcome, HarnessError> {
    match command {
        Command::Compare(args) => verdict::compare(&args.before, &args.after, args.tolerance),
        Command::Baseline(command) => verdict::baseline(command),
        Command::Html(args) => files::write_html(&args.page, &files::read_json(&args.report)?).map(|()| Outcome::Good),
        Command::Run(args) => measure(&args.common, async |stage| run(args, stage).await),
        Command::SeedTable(args) => measure(&args.common, async |stage| table(args, stage).await),
        Command::Sweep(args) => measure(&args.run.common, async |stage| sweep::play(args, stage).await),
        Command::BatchSweep(args) => measure(&args.common, async |stage| batch_sweep::play(&args.common, stage).await),
        Command::Profiles(args) => measure(&args.common, async |stage| profiles::play(args, stage).await),
        Command::Scale(args) => measure(&args.common, async |stage| scale::play(args, stage).await),
        Command::TailVsCatchup(args) => measure(&args.common, async |stage| tail::play(args, stage).await),
        Command::Soak(args) => measure(&args.common, async |stage| soak::play(args, stage).await),
        Command::Idle(args) => measure(&args.common, async |stage| idle::play(args, stage).await),
        Command::Recovery(args) => measure(&args.common, async |stage| recovery::play(args, stage).await),
    }
}

async fn run(args: &RunArgs, stage: &Stage) -> Played {
    let plan = Plan::of_run(args).map_err(nothing)?;
    suites::rows(stage.session(&args.common).await.map_err(nothing)?, vec![(plan, None)]).await
}

async fn table(args: &SeedTableArgs, stage: &Stage) -> Played {
    let plans = seed_table::plans(args).map_err(nothing)?;
    if plans.is_empty() {
        return Err(nothing(HarnessError::Usage("no row has such a name".to_owned())));
    }
    let rows = plans.into_iter().map(|(plan, target)| (plan, Some(target))).collect();
    suites::rows(stage.session(&args.common).await.map_err(nothing)?, rows).await
}

/// Plays a suite and tells what came of it, to people and into files.
fn measure(common: &CommonArgs, play: impl AsyncFnOnce(&Stage) -> Played) -> Result<Outcome, HarnessError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let played = runtime.map_err(HarnessError::system("starting a runtime"))?.block_on(async {
        let stage = Stage { progress: Progress::new(), stop: stop_on_control_c() };
        let played = play(&stage).await;
        stage.progress.finish();
        played
    });
    match played {
        Ok(report) => {
            tell(common, &report)?;
            Ok(verdict::of_report(&report, &common.asserts))
        }
        Err((report, error)) => {
            // What was measured before a failure is worth seeing.
            report.filter(|report| !report.rows.is_empty()).map_or(Ok(()), |report| tell(common, &report))?;
            Err(error)
        }
    }
}

fn tell(common: &CommonArgs, report: &Report) -> Result<(), HarnessError> {
    print!("{}", human::table(report));
    if let Some(file) = &common.json {
        files::write_json(file, report)?;
    }
    if let Some(file) = &common.html {
        files::write_html(file, report)?;
    }
    Ok(())
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

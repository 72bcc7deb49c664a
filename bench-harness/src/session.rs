//! One session with one server: finds out what it is, measures what the machine can do, runs rows one after the other,
//! and gathers the report.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{
    args::CommonArgs,
    drive::{Driver, Outcome},
    floor::{Floor, Ground},
    plan::Plan,
    progress::Progress,
    report::{Report, Row, files, repeats},
    suites::seed_table::Target as SeedTarget,
    target::{HarnessError, RunId, Target},
    trust::{Host, StatusPage},
};

/// A session.
pub struct Session<'a> {
    driver: Driver<'a>,
    repeats: u32,
    /// What was found out so far.
    pub report: Report,
}

impl<'a> Session<'a> {
    /// Connects, asks the server what it is, and measures the floor.
    pub async fn open(
        args: &'a CommonArgs,
        progress: &'a Progress,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, HarnessError> {
        let target = Target::connect(&args.server).await?;
        let server = target.describe().await?;
        let pages = StatusPage::find(args.http.as_deref(), &server.config);
        let status = match &pages {
            Some(pages) => pages.status().await,
            None => Err(std::io::Error::other("its address is not known; give it with --http")),
        };
        let (status, missing) = match status {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(format!("the server's /status page: {error}"))),
        };
        let folder = folder_of(args, &target, &server.config);
        let pages = pages.filter(|_| status.is_some());
        let driver = Driver { args, target, run: RunId::new(), progress, pages, stop };
        let mut report = Report {
            command: std::env::args().collect(),
            begun_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            host: Host::probe(&folder),
            server,
            status,
            floor: None,
            missing: missing.into_iter().collect(),
            rows: Vec::new(),
            conclusions: Vec::new(),
            memory: None,
            idle: None,
            recovery: None,
        };
        if !args.floor_seconds.is_zero() {
            report.floor = Some(floor(&driver, &report, folder));
        }
        Ok(Session { driver, repeats: args.repeats, report })
    }

    /// Runs a row as often as was asked for, and adds it to the report.
    pub async fn row(&mut self, plan: &Plan, target: Option<SeedTarget>) -> Result<&Row, HarnessError> {
        let (mut runs, mut all) = (Vec::new(), Outcome::default());
        for run in 1..=self.repeats {
            let whole = (plan.warmup + plan.seconds).as_secs_f64();
            let which = if self.repeats > 1 { format!("run {run} of {}, ", self.repeats) } else { String::new() };
            self.driver.progress.note(&plan.name, &format!("{which}{whole:.1} s, the warm-up included"));
            let outcome = self.driver.row(plan).await?;
            runs.push(Row::new(plan, &outcome, target));
            all.merge(outcome);
        }
        if let Some(folder) = &self.driver.args.export {
            files::export(folder, &plan.name, &all)?;
        }
        let mut row = repeats::combine(runs, Row::new(plan, &all, target), target);
        row.profile = self.report.server.profile.clone();
        row.floor_share = self.report.floor.as_ref().and_then(|floor| floor.share(&row));
        self.report.rows.push(row);
        Ok(&self.report.rows[self.report.rows.len() - 1])
    }

    /// What runs the rows.
    pub fn driver(&self) -> &Driver<'a> {
        &self.driver
    }
}

/// The folder whose drive counts: the server's, if it is on this machine.
fn folder_of(args: &CommonArgs, target: &Target, config: &Value) -> PathBuf {
    // One directory is a string, several are a list.
    let dirs = &config["server"]["data_dir"];
    let server = dirs.as_str().or(dirs[0].as_str()).map(Path::new).filter(|_| target.is_local());
    let server = server.filter(|folder| folder.is_absolute() && folder.is_dir());
    args.floor_dir.clone().or(server.map(Path::to_owned)).unwrap_or_else(|| PathBuf::from("."))
}

fn floor(driver: &Driver<'_>, report: &Report, folder: PathBuf) -> Floor {
    // The echoing side sits where the server does, if that is known.
    let server_cpu = report.status.as_ref().and_then(|status| status["cores"][0]["cpu"].as_u64());
    let ground = Ground {
        folder,
        server_cpu: server_cpu.filter(|_| driver.target.is_local()).map(|cpu| cpu as usize),
        client_cpu: driver.cpus(1).first().copied().flatten(),
        seconds: driver.args.floor_seconds,
    };
    Floor::measure(&ground, |what| driver.progress.note("floor", what))
}

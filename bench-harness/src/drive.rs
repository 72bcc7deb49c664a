//! Runs one row: makes a log, prepares it if it is to be read, puts the load on it, lets the judge read it back, and
//! deletes it.
//!
//! Each thread of the load has its own pinned CPU, its own tokio runtime and its own connections, and shares nothing
//! with the others: a harness that stumbles over itself measures itself.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use pyralog_engine::types::AckLevel;
use pyralog_net::client::LogId;
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};

use crate::{
    args::{CommonArgs, Workload},
    checking::Defects,
    dataset::Dataset,
    ledger::{Ledger, Run},
    measuring::{Measured, Recorder, Window},
    plan::Plan,
    progress::Progress,
    target::{HarnessError, RunId, Target},
    workloads::{
        Connection, Found, Job,
        read::{self, prepared_requests},
        readback, write,
    },
};

/// Between all threads being ready and the first request: enough for each of them to hear of it.
const START_DELAY: Duration = Duration::from_millis(50);

/// How long work that is counted, not timed, may take.
const FOR_EVER: Duration = Duration::from_secs(86_400);

/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(250);

/// What came of a row.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The requests.
    pub measured: Measured,
    /// From the first request measured to the last answer.
    pub elapsed: Duration,
    /// What was wrong with what was read.
    pub defects: Defects,
    /// Records that were read and checked.
    pub checked: u64,
    /// The lowest level that an ack named.
    pub level: Option<AckLevel>,
}

/// Runs rows against one server.
pub struct Driver<'a> {
    /// Where, and on which CPUs.
    pub args: &'a CommonArgs,
    /// A connection for what is not measured.
    pub target: Target,
    /// This run.
    pub run: RunId,
    /// Where to show how it goes.
    pub progress: &'a Progress,
    /// Set by Control-C.
    pub stop: Arc<AtomicBool>,
}

impl Driver<'_> {
    /// Runs the row and deletes its log, whatever came of it.
    pub async fn row(&self, plan: &Plan) -> Result<Outcome, HarnessError> {
        let name = self.run.log_name(&plan.name);
        let log = LogId::new(&name).expect("log name"); // why: row names are ours, and of letters, digits and dashes
        self.target.create(&log, plan.partitions, plan.ack).await?;
        let outcome = self.on_log(plan, &log).await;
        let deleted = self.target.delete(&log).await;
        let mut outcome = outcome?;
        if let Err(error) = deleted {
            outcome.measured.note_failure(&error.to_string());
        }
        if self.stop.load(Relaxed) { Err(HarnessError::Interrupted) } else { Ok(outcome) }
    }

    async fn on_log(&self, plan: &Plan, log: &LogId) -> Result<Outcome, HarnessError> {
        let dataset = Arc::new(Dataset::new(self.run.0, plan.record_size));
        if plan.workload == Workload::Write {
            let mut load = self.load(plan, log, &dataset, None);
            let (mut outcome, found) = load.carry_out(self).await?;
            self.progress.note(&plan.name, "reading everything back");
            let ledgers = ledgers_by_writer(found.ledgers);
            match load.read_back(self, ledgers).await {
                Ok((defects, checked)) => {
                    outcome.defects += defects;
                    outcome.checked = checked;
                }
                // What was measured is worth seeing nevertheless; the row has failed.
                Err(error) => outcome.measured.note_failure(&error.to_string()),
            }
            return Ok(outcome);
        }
        let level = self.prepare(plan, log, &dataset).await?;
        let mut load = self.load(plan, log, &dataset, None);
        let (mut outcome, _) = load.carry_out(self).await?;
        outcome.checked = load.job.done.load(Relaxed);
        outcome.level = level;
        Ok(outcome)
    }

    async fn prepare(
        &self,
        plan: &Plan,
        log: &LogId,
        dataset: &Arc<Dataset>,
    ) -> Result<Option<AckLevel>, HarnessError> {
        let preparing = plan.preparing();
        let requests = prepared_requests(plan.prepare, preparing.batch, plan.partitions);
        let records = requests * u64::from(preparing.batch);
        self.progress.note(&plan.name, &format!("preparing {records} records"));
        let (outcome, found) = self.load(&preparing, log, dataset, Some(records)).carry_out(self).await?;
        if let Some(message) = outcome.measured.messages.keys().next() {
            return Err(HarnessError::NotPrepared(message.clone()));
        }
        let in_order = [Run { sequence: 0, offset: 0, count: records / u64::from(plan.partitions) }];
        let ledgers = found.ledgers.iter().flat_map(|(_, ledgers)| ledgers);
        for (partition, ledger) in ledgers.enumerate().filter(|_| !self.stop.load(Relaxed)) {
            if ledger.runs() != in_order {
                let runs = ledger.runs();
                let first: Vec<_> = runs.iter().take(3).collect();
                let message = format!("partition {partition} was acknowledged as {first:?}, expected {in_order:?}");
                return Err(HarnessError::NotPrepared(message));
            }
        }
        Ok(found.level)
    }

    fn load(&self, plan: &Plan, log: &LogId, dataset: &Arc<Dataset>, records: Option<u64>) -> Load {
        let (plan, dataset, stop) = (Arc::new(plan.clone()), Arc::clone(dataset), Arc::clone(&self.stop));
        Load { log: log.clone(), job: Job { plan, dataset, stop, done: Arc::new(AtomicU64::new(0)), records } }
    }

    /// The CPU of each thread; one thread on any CPU if none were given.
    fn cpus(&self, threads_max: usize) -> Vec<Option<usize>> {
        match &self.args.cpu {
            None => vec![None],
            Some(list) => list.0.iter().take(threads_max).map(|cpu| Some(*cpu)).collect(),
        }
    }
}

fn ledgers_by_writer(mut ledgers: Vec<(u16, Vec<Ledger>)>) -> Vec<Vec<Ledger>> {
    ledgers.sort_by_key(|(writer, _)| *writer);
    ledgers.into_iter().map(|(_, partitions)| partitions).collect()
}

/// One load on one log.
struct Load {
    log: LogId,
    job: Job,
}

/// What starts a thread once all are ready.
struct Start {
    begin: Instant,
    end: Instant,
    recorder: Recorder,
}

enum Message {
    Ready,
    Done(Result<Found, HarnessError>),
}

impl Load {
    async fn carry_out(&mut self, driver: &Driver<'_>) -> Result<(Outcome, Found), HarnessError> {
        let plan = Arc::clone(&self.job.plan);
        let cpus = driver.cpus(plan.connections.into());
        let (sender, mut messages) = mpsc::unbounded_channel();
        let (mut starts, mut threads) = (Vec::new(), Vec::new());
        for (number, cpu) in cpus.iter().enumerate() {
            let (start, started) = oneshot::channel();
            let mine = (number as u16..plan.connections).step_by(cpus.len()).collect();
            let task = Task { server: driver.args.server.clone(), log: self.log.clone(), job: self.job.clone(), mine };
            threads.push(spawn_pinned(*cpu, sender.clone(), move |sender| task.run(started, sender))?);
            starts.push(start);
        }
        drop(sender);
        let mut found = Found::default();
        let mut ready = 0;
        while ready < threads.len() {
            match messages.recv().await.ok_or(HarnessError::ThreadDied)? {
                Message::Ready => ready += 1,
                // Before the start a thread ends only with an error. Dropping `starts` lets the others go home.
                Message::Done(result) => drop(result?),
            }
        }
        let (window, recorders) = self.start(starts);
        let measured = self.watch(driver, &recorders, messages, &mut found).await?;
        join(threads)?;
        let last = measured.last.unwrap_or(window.end);
        let elapsed = last.max(window.end).saturating_duration_since(window.begin);
        let outcome =
            Outcome { elapsed, level: found.level, defects: std::mem::take(&mut found.defects), measured, checked: 0 };
        Ok((outcome, found))
    }

    fn start(&self, starts: Vec<oneshot::Sender<Start>>) -> (Window, Vec<Recorder>) {
        let plan = &self.job.plan;
        let first = Instant::now() + START_DELAY;
        let window = match self.job.records {
            None => Window { begin: first + plan.warmup, end: first + plan.warmup + plan.seconds },
            Some(_) => Window { begin: first, end: first + FOR_EVER },
        };
        let recorders = starts.into_iter().map(|start| {
            let recorder = Recorder::new(window);
            // A thread that is gone says so by its message.
            let _ = start.send(Start { begin: first, end: window.end, recorder: recorder.clone() });
            recorder
        });
        (window, recorders.collect())
    }

    /// Shows the progress until all threads are done, and adds up what they measured.
    async fn watch(
        &self,
        driver: &Driver<'_>,
        recorders: &[Recorder],
        mut messages: mpsc::UnboundedReceiver<Message>,
        found: &mut Found,
    ) -> Result<Measured, HarnessError> {
        let mut total = Measured::default();
        let mut done = 0;
        let mut tick = tokio::time::interval(TICK);
        let begun = Instant::now();
        while done < recorders.len() {
            tokio::select! {
                message = messages.recv() => match message.ok_or(HarnessError::ThreadDied)? {
                    Message::Ready => {}
                    Message::Done(result) => {
                        merge(found, result?);
                        done += 1;
                    }
                },
                _ = tick.tick() => {
                    let mut lately = Measured::default();
                    recorders.iter().for_each(|recorder| lately.add(&recorder.take()));
                    total.add(&lately);
                    driver.progress.show(&self.job, begun.elapsed(), &lately, total.errors);
                }
            }
        }
        recorders.iter().for_each(|recorder| total.add(&recorder.take()));
        Ok(total)
    }

    async fn read_back(
        &mut self,
        driver: &Driver<'_>,
        ledgers: Vec<Vec<Ledger>>,
    ) -> Result<(Defects, u64), HarnessError> {
        self.job.done = Arc::default();
        let (server, log, job) = (driver.args.server.clone(), self.log.clone(), self.job.clone());
        let (sender, mut messages) = mpsc::unbounded_channel();
        let cpu = driver.cpus(1).first().copied().flatten();
        let thread = spawn_pinned(cpu, sender, move |_| async move {
            let partitions = Target::connect(&server).await?.partitions(&log, job.plan.partitions).await?;
            let defects = readback::judge_log(&job, &partitions, &ledgers).await?;
            Ok(Found { defects, ..Found::default() })
        })?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                message = messages.recv() => {
                    if let Message::Done(found) = message.ok_or(HarnessError::ThreadDied)? {
                        join(vec![thread])?;
                        return Ok((found?.defects, self.job.done.load(Relaxed)));
                    }
                }
                _ = tick.tick() => driver.progress.show_count("records checked", self.job.done.load(Relaxed)),
            }
        }
    }
}

/// What one thread of the load does.
struct Task {
    server: String,
    log: LogId,
    job: Job,
    mine: Vec<u16>,
}

impl Task {
    async fn run(
        self,
        started: oneshot::Receiver<Start>,
        sender: mpsc::UnboundedSender<Message>,
    ) -> Result<Found, HarnessError> {
        let mut clients = Vec::new();
        for number in &self.mine {
            let target = Target::connect(&self.server).await?;
            clients.push((*number, target.partitions(&self.log, self.job.plan.partitions).await?, target));
        }
        let _ = sender.send(Message::Ready);
        let Ok(start) = started.await else { return Ok(Found::default()) };

        let (mut connections, mut tasks) = (Vec::new(), Vec::new());
        for (number, partitions, _) in &clients {
            let times = (start.begin, start.end);
            let recorder = start.recorder.clone();
            connections.push(Connection::new(self.job.clone(), *number, partitions.clone(), recorder, times)?);
        }
        tokio::time::sleep_until(start.begin.into()).await;
        for connection in &connections {
            tasks.extend((0..self.job.plan.in_flight).map(|task| spawn_task(connection, task)));
        }
        for task in tasks {
            task.await.map_err(|_| HarnessError::ThreadDied)?;
        }
        let mut found = Found::default();
        connections.iter().for_each(|connection| connection.report(&mut found));
        Ok(found)
    }
}

fn spawn_task(connection: &Rc<Connection>, task: u32) -> tokio::task::JoinHandle<()> {
    let plan = &connection.job.plan;
    let tasks = u32::from(plan.connections) * plan.in_flight;
    let global = u32::from(connection.number) * plan.in_flight + task;
    let connection = Rc::clone(connection);
    match plan.workload {
        Workload::Write => tokio::task::spawn_local(write::keep_one_in_flight(connection)),
        Workload::ReadSingle => tokio::task::spawn_local(read::read_single(connection, task)),
        Workload::ReadSequential => tokio::task::spawn_local(read::read_sequential(connection, global, tasks)),
    }
}

fn merge(found: &mut Found, more: Found) {
    found.ledgers.extend(more.ledgers);
    found.defects += more.defects;
    found.level = [found.level, more.level].into_iter().flatten().min();
}

/// Runs `work` on a thread of its own, with its own runtime, and sends what came of it as the last message.
fn spawn_pinned<F>(
    cpu: Option<usize>,
    sender: mpsc::UnboundedSender<Message>,
    work: impl FnOnce(mpsc::UnboundedSender<Message>) -> F + Send + 'static,
) -> Result<JoinHandle<()>, HarnessError>
where
    F: Future<Output = Result<Found, HarnessError>>,
{
    let thread = std::thread::Builder::new().name(format!("load-{}", cpu.unwrap_or(0)));
    let body = move || {
        let result = pin_to(cpu).and_then(|()| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(HarnessError::system("starting a runtime"))?;
            let local = LocalSet::new();
            let result = local.block_on(&runtime, work(sender.clone()));
            // Lets the connections' farewells go out.
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
            result
        });
        let _ = sender.send(Message::Done(result));
    };
    thread.spawn(body).map_err(HarnessError::system("starting a thread"))
}

fn pin_to(cpu: Option<usize>) -> Result<(), HarnessError> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let pinned = rustix::thread::sched_setaffinity(None, &set);
    pinned
        .map_err(|error| HarnessError::System { doing: format!("pinning a thread to CPU {cpu}"), error: error.into() })
}

fn join(threads: Vec<JoinHandle<()>>) -> Result<(), HarnessError> {
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| HarnessError::ThreadDied))
}

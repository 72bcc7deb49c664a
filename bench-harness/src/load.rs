//! One load on one log: threads, each with its own pinned CPU, its own tokio runtime and its own connections, that
//! share nothing: a harness that stumbles over itself measures itself.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use pyralog_engine::{runtime::slice::ask_for_long_slices, types::PartitionIndex};
use pyralog_net::client::LogId;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle as Task, LocalSet, spawn_local},
};

use crate::{
    args::Workload,
    checking::Defects,
    drive::{Driver, Outcome},
    ledger::Ledger,
    measuring::{Recorder, Tally, Window, intervals::Intervals},
    target::{HarnessError, Target},
    trust::{CpuShares, shares::Recording},
    turns::idle_of_this_thread,
    workloads::{Connection, Found, Job, Start, catch_up, consume, read, readback, write},
};

/// Between all threads being ready and the first request: enough for each of them to hear of it.
const START_DELAY: Duration = Duration::from_millis(50);

/// How long work that is counted, not timed, may take.
const FOR_EVER: Duration = Duration::from_secs(86_400);

/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(250);

/// One load on one log.
pub struct Load {
    /// The log.
    pub log: LogId,
    /// What to do there.
    pub job: Job,
}

enum Message {
    Ready,
    Done(Result<Found, HarnessError>),
}

impl Load {
    /// Puts the load on the log, from all threads at once, until the time or the work is over.
    pub async fn carry_out(&mut self, driver: &Driver<'_>) -> Result<(Outcome, Found), HarnessError> {
        let plan = Arc::clone(&self.job.plan);
        let cpus = driver.cpus(plan.connections.into());
        let (sender, mut messages) = mpsc::unbounded_channel();
        let (mut starts, mut threads) = (Vec::new(), Vec::new());
        for (number, cpu) in cpus.iter().enumerate() {
            let (start, started) = oneshot::channel();
            let part = Part {
                server: driver.args.server.clone(),
                log: self.log.clone(),
                job: self.job.clone(),
                thread: number,
                threads: cpus.len(),
            };
            threads.push(spawn_pinned(*cpu, sender.clone(), move |sender| part.run(started, sender))?);
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
        let mut outcome = self.watch(driver, (&recorders, window), messages, &mut found).await?;
        join(threads)?;
        let last = outcome.tally.main.last.max(outcome.tally.reads.last).unwrap_or(window.end);
        outcome.elapsed = last.max(window.end).saturating_duration_since(window.begin);
        outcome.take(&mut found);
        Ok((outcome, found))
    }

    fn start(&self, starts: Vec<oneshot::Sender<Start>>) -> (Window, Vec<Recorder>) {
        let plan = &self.job.plan;
        let first = Instant::now() + START_DELAY;
        let open_loop = plan.is_open_loop();
        let window = match self.job.records {
            None => Window { begin: first + plan.warmup, end: first + plan.warmup + plan.seconds, open_loop },
            Some(_) => Window { begin: first, end: first + FOR_EVER, open_loop },
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
        (recorders, window): (&[Recorder], Window),
        mut messages: mpsc::UnboundedReceiver<Message>,
        found: &mut Found,
    ) -> Result<Outcome, HarnessError> {
        let began = SystemTime::now() + window.begin.saturating_duration_since(Instant::now());
        let mut outcome = Outcome { began: Some(began), ..Outcome::default() };
        let mut intervals = Intervals::new(self.job.plan.seconds, TICK);
        let (mut before, mut done, mut shares) = (None, 0, Ok(None));
        let mut tick = tokio::time::interval(TICK);
        while done < recorders.len() {
            tokio::select! {
                message = messages.recv() => match message.ok_or(HarnessError::ThreadDied)? {
                    Message::Ready => {}
                    Message::Done(result) => {
                        found.merge(result?);
                        done += 1;
                    }
                },
                _ = tick.tick() => {
                    let lately = take(recorders);
                    outcome.tally.add(&lately);
                    let now = Instant::now();
                    if now >= window.begin && before.is_none() && self.job.records.is_none() {
                        before = Some(driver.snapshot().await);
                        shares = driver.record_shares(self.job.plan.seconds).await;
                    }
                    if (window.begin..window.end + TICK).contains(&now) && self.job.records.is_none() {
                        intervals.add(now - window.begin, &lately.main);
                    }
                    driver.progress.show(&self.job, (window, TICK), &lately, &outcome.tally);
                }
            }
        }
        outcome.tally.add(&take(recorders));
        if let Some(before) = before {
            let records = outcome.tally.main.records + outcome.tally.reads.records;
            let mut usage = driver.snapshot().await.since(&before, records, found.cpu_s);
            usage.server_cpu_shares = outcome.note_missed(finished(shares).await);
            outcome.usage = Some(usage);
            outcome.is_server_local = driver.target.is_local();
        }
        outcome.intervals = intervals.finish();
        Ok(outcome)
    }

    /// Lets the judge read the whole log; returns what was wrong, and how many records there were.
    pub async fn read_back(
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

/// What a recording saw, if there is one.
async fn finished(recording: Result<Option<Recording>, String>) -> Result<Option<CpuShares>, String> {
    let Some(recording) = recording? else { return Ok(None) };
    let finishing = tokio::task::spawn_blocking(|| recording.finish());
    match finishing.await {
        Ok(shares) => shares.map(Some).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn take(recorders: &[Recorder]) -> Tally {
    let mut tally = Tally::default();
    recorders.iter().for_each(|recorder| tally.add(&recorder.take()));
    tally
}

/// What one thread of the load does.
struct Part {
    server: String,
    log: LogId,
    job: Job,
    thread: usize,
    threads: usize,
}

impl Part {
    async fn run(
        self,
        started: oneshot::Receiver<Start>,
        sender: mpsc::UnboundedSender<Message>,
    ) -> Result<Found, HarnessError> {
        let plan = Arc::clone(&self.job.plan);
        let mut clients = Vec::new();
        for number in (self.thread as u16..plan.connections).step_by(self.threads) {
            let target = Target::connect(&self.server).await?;
            clients.push((number, target.partitions(&self.log, plan.partitions).await?, target));
        }
        self.job.book.writers_begin(clients.len() as u64);
        let beside = self.prepare_beside().await?;
        let _ = sender.send(Message::Ready);
        let Ok(start) = started.await else { return Ok(Found::default()) };

        let (wall, cpu, idle) = (Instant::now(), thread_cpu(), idle_of_this_thread());
        let beside = self.spawn_beside(beside, &start);
        let (mut connections, mut tasks) = (Vec::new(), Vec::new());
        for (number, partitions, _) in &clients {
            connections.push(Connection::new(self.job.clone(), *number, partitions.clone(), &start)?);
        }
        tokio::time::sleep_until(start.begin.into()).await;
        for connection in &connections {
            tasks.extend((0..plan.in_flight).map(|task| spawn_task(connection, task)));
        }
        for task in tasks {
            task.await.map_err(|_| HarnessError::ThreadDied)?;
        }
        self.job.book.writers_end(clients.len() as u64);
        let mut found = Found { cpu_s: (thread_cpu() - cpu).as_secs_f64(), ..Found::default() };
        let idle_s = (idle_of_this_thread() - idle).as_secs_f64();
        found.busy.push((found.cpu_s - idle_s).max(0.0) / wall.elapsed().as_secs_f64().max(1e-9));
        for task in beside {
            found.merge(task.await.map_err(|_| HarnessError::ThreadDied)??);
        }
        connections.iter().for_each(|connection| connection.report(&mut found));
        Ok(found)
    }

    /// Connects the consumers and readers beside the writers that this thread has.
    async fn prepare_beside(&self) -> Result<Vec<(Beside, Target)>, HarnessError> {
        let plan = &self.job.plan;
        let consumers = if plan.end_to_end { plan.partitions } else { 0 };
        let consumers = (0..consumers).map(Beside::Consumer);
        let all = consumers.chain((0..plan.catch_up).map(Beside::CatchUp));
        let mut beside = Vec::new();
        for one in all.skip(self.thread).step_by(self.threads) {
            beside.push((one, Target::connect(&self.server).await?));
        }
        Ok(beside)
    }

    fn spawn_beside(&self, beside: Vec<(Beside, Target)>, start: &Start) -> Vec<Task<Result<Found, HarnessError>>> {
        let spawn = |(one, target): (Beside, Target)| {
            let (job, log, start) = (self.job.clone(), self.log.clone(), start.clone());
            spawn_local(async move {
                match one {
                    Beside::Consumer(partition) => {
                        Ok(consume::consume(job, log, target, PartitionIndex(partition), start).await)
                    }
                    Beside::CatchUp(number) => {
                        let partitions = target.partitions(&log, job.plan.partitions).await?;
                        catch_up::catch_up(job, partitions, number as usize, start).await
                    }
                }
            })
        };
        beside.into_iter().map(spawn).collect()
    }
}

/// Who works beside the writers.
enum Beside {
    /// Consumes this partition at its tail.
    Consumer(u32),
    /// Reads from the beginning; its number.
    CatchUp(u32),
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn spawn_task(connection: &Rc<Connection>, task: u32) -> Task<()> {
    let plan = &connection.job.plan;
    let tasks = u32::from(plan.connections) * plan.in_flight;
    let global = u32::from(connection.number) * plan.in_flight + task;
    let connection = Rc::clone(connection);
    match plan.workload {
        Workload::Write => spawn_local(write::keep_one_in_flight(connection)),
        Workload::ReadSingle => spawn_local(read::read_single(connection, task)),
        Workload::ReadSequential => spawn_local(read::read_sequential(connection, global, tasks)),
    }
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
            // A generator that is busy on the CPU of the drive's interrupts must not hold them up.
            ask_for_long_slices().map_err(HarnessError::system("setting a time slice"))?;
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

/// Keeps this thread on a CPU, if one is given.
pub fn pin_to(cpu: Option<usize>) -> Result<(), HarnessError> {
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

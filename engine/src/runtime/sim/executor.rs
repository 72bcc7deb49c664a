//! Time and tasks of the simulated world: one thread, one step at a time, the next one chosen by the seed.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use super::{
    disk::Disk,
    drives::Drives,
    faults::{Failure, FaultCounts, FaultKind, FaultRates},
    random::{SimRandom, mix},
};

/// What one poll of a task costs in virtual time. Without it, a task that yields until some time has come would never
/// see it.
const STEP_COST: Duration = Duration::from_micros(1);

/// The streams of chance of one seed.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Schedule = 1,
    Disk = 2,
    Ring = 3,
    Runtime = 4,
}

/// Tasks that were woken and not looked at yet. Behind a lock only because a `Waker` must be `Send`; there is one
/// thread.
type Woken = Arc<Mutex<Vec<u64>>>;

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    woken: Woken,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Relaxed)
            && let Ok(mut woken) = self.woken.lock()
        {
            woken.push(self.id);
        }
    }
}

/// Where a task runs: its process, and the core in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) process: u64,
    pub(super) core: usize,
}

/// A core, or a whole process, that does not run.
struct Pause {
    process: u64,
    /// `None` for all of them.
    core: Option<usize>,
    /// Tasks that would have run.
    waiting: Vec<u64>,
}

impl Pause {
    fn covers(&self, place: Place) -> bool {
        self.process == place.process && self.core.is_none_or(|core| core == place.core)
    }
}

struct Task {
    place: Place,
    /// `None` while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

type Event = Box<dyn FnOnce()>;

/// Everything there is.
pub(super) struct World {
    now: Cell<Duration>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: RefCell<Vec<u64>>,
    woken: Woken,
    events: RefCell<BTreeMap<(Duration, u64), Event>>,
    next_id: Cell<u64>,
    pauses: RefCell<BTreeMap<u64, Pause>>,
    /// Operations begun so far, and which of them is to fail; every later one too if it is sticky.
    operations: Cell<u64>,
    chosen: Cell<Option<(u64, Failure, bool)>>,
    failed: Cell<bool>,
    /// What jumps of the wall clock came to, in milliseconds.
    clock_shift_ms: Cell<i64>,
    /// Processes that were crashed; what their dying tasks spawn is dropped.
    dead: RefCell<Vec<u64>>,
    /// Nothing happens any more, and nothing is taken on.
    ended: Cell<bool>,
    random: [RefCell<SimRandom>; 4],
    pub(super) rates: RefCell<FaultRates>,
    pub(super) counts: RefCell<FaultCounts>,
    trace: Cell<u64>,
    steps: Cell<u64>,
    /// By core, if it is asked for.
    polls: RefCell<BTreeMap<Place, u32>>,
    pub(super) disk: Disk,
    pub(super) drives: Drives,
}

impl World {
    pub(super) fn new(seed: u64, rates: FaultRates, alignment: u64) -> Rc<Self> {
        let stream = |stream: Stream| RefCell::new(SimRandom::new(seed, stream as u64));
        Rc::new(World {
            now: Cell::new(Duration::from_secs(1)),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            woken: Woken::default(),
            events: RefCell::default(),
            next_id: Cell::new(1),
            pauses: RefCell::default(),
            operations: Cell::new(0),
            chosen: Cell::new(None),
            failed: Cell::new(false),
            clock_shift_ms: Cell::new(0),
            dead: RefCell::default(),
            ended: Cell::new(false),
            random: [stream(Stream::Schedule), stream(Stream::Disk), stream(Stream::Ring), stream(Stream::Runtime)],
            rates: RefCell::new(rates),
            counts: RefCell::default(),
            trace: Cell::new(seed),
            steps: Cell::new(0),
            polls: RefCell::default(),
            disk: Disk::new(alignment),
            drives: Drives::default(),
        })
    }

    pub(super) fn now(&self) -> Duration {
        self.now.get()
    }

    /// How often tasks of a core were polled since this was asked last.
    pub(super) fn take_polls(&self, place: Place) -> u32 {
        self.polls.borrow_mut().insert(place, 0).unwrap_or(0)
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.get()
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.trace.get()
    }

    /// Adds something that happened to the trace.
    pub(super) fn trace(&self, what: u64) {
        self.trace.set(mix(self.trace.get().rotate_left(5) ^ what ^ self.now.get().as_nanos() as u64));
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    pub(super) fn random<T>(&self, stream: Stream, draw: impl FnOnce(&mut SimRandom) -> T) -> T {
        draw(&mut self.random[stream as usize - 1].borrow_mut())
    }

    /// Whether a fault of `kind` happens now. It is counted if so.
    pub(super) fn fault(&self, kind: FaultKind, stream: Stream) -> bool {
        let happens = self.would(kind, stream);
        if happens {
            self.count(kind);
        }
        happens
    }

    /// Whether a fault of `kind` should happen now; whoever asks counts it if it has an effect.
    pub(super) fn would(&self, kind: FaultKind, stream: Stream) -> bool {
        let rate = self.rates.borrow().get(kind);
        rate > 0 && self.random(stream, |random| random.happens(rate))
    }

    /// From now on the `nth` operation fails, and all after it if `sticky`.
    pub(super) fn choose(&self, chosen: Option<(u64, Failure, bool)>) {
        self.operations.set(0);
        self.failed.set(false);
        self.chosen.set(chosen);
    }

    /// How many operations there were since the choice, and whether the chosen one was among them and failed.
    pub(super) fn operations(&self) -> (u64, bool) {
        (self.operations.get(), self.failed.get())
    }

    /// An operation begins: how it fails, if it is the chosen one.
    pub(super) fn begins(&self, takes_room: bool) -> Option<Failure> {
        let number = self.operations.get() + 1;
        self.operations.set(number);
        let (nth, failure, sticky) = self.chosen.get()?;
        let hit = number == nth || (sticky && number > nth);
        let fails = hit && (takes_room || failure != Failure::NoSpace);
        self.failed.set(self.failed.get() || fails);
        fails.then_some(failure)
    }

    /// What the wall clock has gained or lost by jumps; it may jump now.
    pub(super) fn clock_shift_ms(&self) -> i64 {
        if self.fault(FaultKind::ClockJump, Stream::Runtime) {
            let hours = self.random(Stream::Runtime, |random| random.within(1..7_200_000)) as i64;
            let back = self.random(Stream::Runtime, |random| random.happens(5_000));
            self.clock_shift_ms.set(self.clock_shift_ms.get() + if back { -hours } else { hours });
        }
        self.clock_shift_ms.get()
    }

    pub(super) fn count(&self, kind: FaultKind) {
        self.counts.borrow_mut().add(kind);
        self.trace(0x1000 + kind as u64);
    }

    pub(super) fn spawn(&self, place: Place, future: impl Future<Output = ()> + 'static) {
        if self.ended.get() || self.dead.borrow().contains(&place.process) {
            return;
        }
        let id = self.next_id();
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(true), woken: Arc::clone(&self.woken) });
        self.tasks.borrow_mut().insert(id, Task { place, future: Some(Box::pin(future)), waker });
        self.ready.borrow_mut().push(id);
    }

    /// Has `event` happen at `when`.
    pub(super) fn at(&self, when: Duration, event: impl FnOnce() + 'static) -> (Duration, u64) {
        let key = (when.max(self.now()), self.next_id());
        if self.ended.get() {
            return key;
        }
        self.events.borrow_mut().insert(key, Box::new(event));
        key
    }

    fn cancel(&self, key: (Duration, u64)) {
        let event = self.events.borrow_mut().remove(&key);
        drop(event);
    }

    /// Waits until `duration` from the first poll on.
    pub(super) fn sleep(self: &Rc<Self>, duration: Duration) -> impl Future<Output = ()> + 'static {
        struct Pending(Rc<World>, (Duration, u64));
        impl Drop for Pending {
            fn drop(&mut self) {
                self.0.cancel(self.1);
            }
        }
        let world = Rc::clone(self);
        async move {
            let done = Done::new();
            let event = Rc::clone(&done);
            let key = world.at(world.now() + duration, move || event.set(()));
            let _pending = Pending(world, key);
            done.wait().await;
        }
    }

    /// Does one thing: polls a ready task, or lets the time pass until the next event. `false` if there is nothing to
    /// do.
    pub(super) fn step(self: &Rc<Self>) -> bool {
        self.collect_woken();
        let ready = self.ready.borrow().len() as u64;
        if ready > 0 {
            let chosen = self.random(Stream::Schedule, |random| random.below(ready)) as usize;
            let id = self.ready.borrow_mut().swap_remove(chosen);
            if self.is_paused(id) {
                return true;
            }
            self.now.set(self.now() + STEP_COST);
            self.run_due_events();
            self.poll(id);
            return true;
        }
        let next = self.events.borrow().keys().next().copied();
        let Some((when, _)) = next else { return false };
        self.now.set(self.now().max(when));
        self.run_due_events();
        true
    }

    /// Whether the task may not run now; it then waits for the end of the pause. A pause begins by chance.
    fn is_paused(self: &Rc<Self>, id: u64) -> bool {
        let Some(place) = self.tasks.borrow().get(&id).map(|task| task.place) else { return false };
        if let Some(pause) = self.pauses.borrow_mut().values_mut().find(|pause| pause.covers(place)) {
            pause.waiting.push(id);
            return true;
        }
        if !self.fault(FaultKind::Pause, Stream::Schedule) {
            return false;
        }
        let (micros, whole) =
            self.random(Stream::Schedule, |random| (random.within(500..150_000), random.happens(3_000)));
        let core = (!whole).then_some(place.core);
        let number = self.next_id();
        self.pauses.borrow_mut().insert(number, Pause { process: place.process, core, waiting: vec![id] });
        let world = Rc::downgrade(self);
        self.at(self.now() + Duration::from_micros(micros), move || {
            let Some(world) = world.upgrade() else { return };
            let over = world.pauses.borrow_mut().remove(&number);
            world.ready.borrow_mut().extend(over.into_iter().flat_map(|pause| pause.waiting));
        });
        true
    }

    fn collect_woken(&self) {
        if let Ok(mut woken) = self.woken.lock() {
            self.ready.borrow_mut().append(&mut woken);
        }
    }

    fn run_due_events(&self) {
        loop {
            let mut events = self.events.borrow_mut();
            match events.first_entry() {
                Some(entry) if entry.key().0 <= self.now() => {
                    let event = entry.remove();
                    drop(events);
                    event();
                }
                _ => return,
            }
        }
    }

    fn poll(self: &Rc<Self>, id: u64) {
        let taken = match self.tasks.borrow_mut().get_mut(&id) {
            Some(task) => {
                if let Some(polls) = self.polls.borrow_mut().get_mut(&task.place) {
                    *polls = polls.saturating_add(1);
                }
                task.future.take().map(|future| (future, Arc::clone(&task.waker)))
            }
            None => None,
        };
        let Some((mut future, task_waker)) = taken else { return };
        self.steps.set(self.steps() + 1);
        self.trace(id);
        task_waker.queued.store(false, Relaxed);
        let waker = Waker::from(task_waker);
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if done {
            let finished = self.tasks.borrow_mut().remove(&id);
            drop((future, finished));
        } else if let Some(task) = self.tasks.borrow_mut().get_mut(&id) {
            task.future = Some(future);
        }
    }

    /// Drops every task of a process, wherever it is.
    pub(super) fn drop_process(&self, process: u64) {
        self.dead.borrow_mut().push(process);
        let dying: Vec<u64> =
            self.tasks.borrow().iter().filter(|(_, task)| task.place.process == process).map(|(id, _)| *id).collect();
        self.trace(dying.len() as u64);
        for id in dying {
            // One at a time and unborrowed: what is dropped may wake or spawn others.
            let task = self.tasks.borrow_mut().remove(&id);
            drop(task);
        }
    }

    /// Drops every task and every event. They hold the world that holds them, so nobody else ever would.
    pub(super) fn end(&self) {
        self.ended.set(true);
        // Taken out first: what is dropped may ask for anything.
        let tasks = self.tasks.take();
        drop(tasks);
        let events = self.events.take();
        drop(events);
    }
}

/// A value that an event delivers to a task. It does not matter whether anybody still waits.
pub(super) struct Done<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Done<T> {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Done { value: RefCell::new(None), waker: RefCell::new(None) })
    }

    pub(super) fn set(&self, value: T) {
        *self.value.borrow_mut() = Some(value);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    pub(super) async fn wait(&self) -> T {
        poll_fn(|context| match self.value.borrow_mut().take() {
            Some(value) => Poll::Ready(value),
            None => {
                *self.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

//! Keeps how long requests took, and how many records and errors there were.
//!
//! Three times are kept apart and never mixed: *response time* from when a request was meant to be sent until its
//! answer, *service time* from when it was sent, and *end-to-end time* from when a write was meant to be sent until a
//! consumer had its records. A closed loop means to send when it sends, so it has service times only.
//!
//! Each thread of the harness has a [`Recorder`]; the thread that shows the progress takes what has gathered in it a
//! few times a second and adds it up. The lock between the two is almost never contended and costs some 20 ns a
//! request.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use pyralog_engine::shard::stages::{Stage, Stages};

pub mod export;
pub mod intervals;
pub mod times;

pub use times::{Latencies, Times, rounded};

use crate::turns::Turn;

/// Kinds of error messages that are kept; the rest are counted.
const MESSAGES_MAX: usize = 8;

/// The moments that count: requests due in it are measured, those before are warm-up.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The first moment.
    pub begin: Instant,
    /// The moment after the last.
    pub end: Instant,
    /// Whether requests are due whatever the server does.
    pub open_loop: bool,
}

/// What was measured in some time, of requests of one kind.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Requests that were answered well.
    pub requests: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of keys and values in them.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// When the last answer came.
    pub last: Option<Instant>,
    /// Why requests failed, and how often.
    pub messages: BTreeMap<String, u64>,
    /// From when a request was meant to be sent to its answer. Empty in a closed loop.
    pub response: Times,
    /// From when a request was sent to its answer.
    pub service: Times,
    /// From when a write was meant to be sent to a consumer's having it. Empty if nobody consumes.
    pub end_to_end: Times,
    /// How late the harness sent what it could have sent in time.
    pub slip: Times,
    /// Requests that were due before there was a place among those in flight.
    pub held_up: u64,
    /// What each of the server's stages took, if it was asked; else empty.
    pub stages: Vec<Times>,
}

/// What was measured in some time.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// The requests that the workload is about.
    pub main: Measured,
    /// The reads among the writes of a mixed workload.
    pub reads: Measured,
}

/// Whose side a request counts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// [`Tally::main`].
    Main,
    /// [`Tally::reads`].
    Reads,
}

/// What a request carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Records.
    pub records: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Measured {
    /// The times that a user of this load would name: response times, of a closed loop service times.
    pub fn headline(&self) -> &Times {
        if self.response.count() > 0 { &self.response } else { &self.service }
    }

    /// Adds what `other` measured.
    pub fn add(&mut self, other: &Measured) {
        self.requests += other.requests;
        self.records += other.records;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.held_up += other.held_up;
        self.last = self.last.max(other.last);
        for (message, count) in &other.messages {
            self.count_message(message, *count);
        }
        self.response.add(&other.response);
        self.service.add(&other.service);
        self.end_to_end.add(&other.end_to_end);
        self.slip.add(&other.slip);
        self.stages.resize_with(self.stages.len().max(other.stages.len()), Times::default);
        self.stages.iter_mut().zip(&other.stages).for_each(|(stage, other)| stage.add(other));
    }

    /// Counts something that failed outside of any request that is measured.
    pub fn note_failure(&mut self, message: &str) {
        self.errors += 1;
        self.count_message(message, 1);
    }

    fn count_message(&mut self, message: &str, count: u64) {
        let known = self.messages.contains_key(message) || self.messages.len() < MESSAGES_MAX;
        *self.messages.entry(if known { message } else { "other errors" }.to_owned()).or_default() += count;
    }
}

impl Tally {
    /// Adds what `other` measured.
    pub fn add(&mut self, other: &Tally) {
        self.main.add(&other.main);
        self.reads.add(&other.reads);
    }
}

/// Where one thread keeps what it measures. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Recorder {
    window: Window,
    tally: Arc<Mutex<Tally>>,
}

impl Recorder {
    /// An empty recorder for requests due in `window`.
    pub fn new(window: Window) -> Self {
        Recorder { window, tally: Arc::default() }
    }

    /// The request of this turn was answered at `now`.
    pub fn answered(&self, side: Side, turn: Turn, now: Instant, amount: Amount) {
        if !self.counts(turn.due) {
            return;
        }
        let mut tally = self.lock();
        let measured = side.of(&mut tally);
        measured.requests += 1;
        measured.records += amount.records;
        measured.bytes += amount.bytes;
        measured.last = measured.last.max(Some(now));
        measured.service.record(now.saturating_duration_since(turn.sent));
        if self.window.open_loop {
            measured.response.record(now.saturating_duration_since(turn.due));
            match turn.held_up {
                true => measured.held_up += 1,
                false => measured.slip.record(turn.sent.saturating_duration_since(turn.due)),
            }
        }
    }

    /// A consumer had, at `now`, the records of a write that was due at `due`.
    pub fn consumed(&self, due: Instant, now: Instant) {
        if self.counts(due) {
            self.lock().main.end_to_end.record(now.saturating_duration_since(due));
        }
    }

    /// A write that was due at `due` says where its time went.
    pub fn staged(&self, due: Instant, stages: &Stages) {
        if !self.counts(due) {
            return;
        }
        let mut tally = self.lock();
        let times = &mut tally.main.stages;
        times.resize_with(Stage::COUNT, Times::default);
        Stage::ALL.iter().zip(times).for_each(|(stage, times)| times.record(stages.get(*stage)));
    }

    /// A request failed. Counts also outside of the window: an error is an error.
    pub fn failed(&self, side: Side, message: &str) {
        side.of(&mut self.lock()).note_failure(message);
    }

    /// What was measured since this was called last.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *self.lock())
    }

    fn counts(&self, due: Instant) -> bool {
        (self.window.begin..self.window.end).contains(&due)
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Side {
    fn of(self, tally: &mut Tally) -> &mut Measured {
        match self {
            Side::Main => &mut tally.main,
            Side::Reads => &mut tally.reads,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const ONE: Amount = Amount { records: 1, bytes: 100 };

    fn recorder(open_loop: bool) -> (Recorder, Instant) {
        let begin = Instant::now() - 10_000 * MS;
        (Recorder::new(Window { begin, end: begin + 5000 * MS, open_loop }), begin)
    }

    fn turn(due: Instant, late: Duration, held_up: bool) -> Turn {
        Turn { due, sent: due + late, held_up }
    }

    #[test]
    fn response_service_and_end_to_end_time_are_three_things() {
        let (recorder, begin) = recorder(true);
        recorder.answered(Side::Main, turn(begin, 30 * MS, true), begin + 40 * MS, Amount { records: 100, bytes: 9 });
        recorder.answered(Side::Main, turn(begin, 2 * MS, false), begin + 40 * MS, ONE);
        recorder.consumed(begin, begin + 70 * MS);
        recorder.staged(begin, &Stages([5_000; Stage::COUNT]));
        let measured = recorder.take().main;
        let max = |times: &Times| times.max_us().round() as u64 / 1000;
        assert_eq!((measured.requests, measured.records, measured.bytes, measured.held_up), (2, 101, 109, 1));
        assert_eq!((max(&measured.response), max(&measured.service)), (40, 38));
        assert_eq!((max(&measured.end_to_end), max(&measured.slip)), (70, 2));
        assert!(measured.stages.len() == Stage::COUNT && measured.stages.iter().all(|stage| stage.count() == 1));
        assert_eq!(recorder.take().main.requests, 0);
    }

    #[test]
    fn a_closed_loop_has_service_times_only() {
        let (recorder, begin) = recorder(false);
        recorder.answered(Side::Main, turn(begin, Duration::ZERO, false), begin + MS, ONE);
        let measured = recorder.take().main;
        assert_eq!((measured.response.count(), measured.service.count(), measured.slip.count()), (0, 1, 0));
        assert_eq!(measured.headline().count(), 1);
    }

    #[test]
    fn the_warm_up_and_what_comes_after_do_not_count_but_errors_do() {
        let (recorder, begin) = recorder(true);
        recorder.answered(Side::Main, turn(begin - Duration::from_nanos(1), MS, false), begin + MS, ONE);
        recorder.answered(Side::Main, turn(begin + 5000 * MS, MS, false), begin + 5002 * MS, ONE);
        recorder.failed(Side::Main, "no");
        let measured = recorder.take().main;
        assert_eq!((measured.requests, measured.errors), (0, 1));
    }

    #[test]
    fn messages_are_counted_and_bounded_and_sides_kept_apart() {
        let (recorder, _) = recorder(true);
        (0..100).for_each(|n| recorder.failed(Side::Reads, &format!("error {n}")));
        let mut sum = Tally::default();
        sum.add(&recorder.take());
        assert_eq!(sum.reads.messages.len(), MESSAGES_MAX + 1);
        assert_eq!((sum.reads.messages.values().sum::<u64>(), sum.main.errors), (100, 0));
    }
}

/// A server that is not there, with a stall that is programmed, under the harness's own pacer and recorder, in a time
/// that only jumps: what coordinated omission is, and that an open loop does not commit it.
#[cfg(test)]
mod coordinated_omission {
    use std::{rc::Rc, time::Duration};

    use tokio::{
        task::{LocalSet, spawn_local},
        time,
    };

    use super::*;
    use crate::{
        pacing::{Arrivals, Schedule},
        turns::{Clock, Pacer},
    };

    const SERVICE: Duration = Duration::from_millis(1);
    const STALL: Duration = Duration::from_secs(1);
    const LENGTH: Duration = Duration::from_secs(10);

    struct Jumping;

    impl Clock for Jumping {
        fn now(&self) -> Instant {
            time::Instant::now().into_std()
        }

        async fn until(&self, due: Instant) {
            time::sleep_until(due.into()).await;
        }
    }

    /// Answers each request after a millisecond, except that it does nothing at all from 4 s to 5 s.
    async fn stub(begin: Instant) {
        let stall = begin + Duration::from_secs(4)..begin + Duration::from_secs(4) + STALL;
        time::sleep(SERVICE).await;
        if stall.contains(&Jumping.now()) {
            time::sleep_until(stall.end.into()).await;
        }
    }

    fn load(requests_per_s: Option<f64>, in_flight: u32) -> Measured {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let begin = Jumping.now();
            let end = begin + LENGTH;
            let recorder = Recorder::new(Window { begin, end, open_loop: requests_per_s.is_some() });
            let schedule = requests_per_s.map(|rate| Schedule::new(Arrivals::Constant, rate, 0));
            let pacer = Rc::new(Pacer::new(begin, end, schedule, Jumping));
            let tasks: Vec<_> = (0..in_flight)
                .map(|_| {
                    let (pacer, recorder) = (Rc::clone(&pacer), recorder.clone());
                    spawn_local(async move {
                        while let Some(turn) = pacer.next().await {
                            stub(begin).await;
                            recorder.answered(Side::Main, turn, pacer.now(), Amount::default());
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            recorder.take().main
        })
    }

    #[test]
    fn a_closed_loop_hides_a_stall_of_a_second_from_its_99th_percentile() {
        let measured = load(None, 4);
        assert!(measured.service.quantile_us(0.99).unwrap() <= 2100.0, "{:?}", measured.service.latencies());
        assert!(measured.service.max_us() >= 1e6);
    }

    /// 250 requests a second for ten seconds, of which those due within the stalled second, one in ten, wait for what
    /// is left of it: half of them longer than half a second, so that is the 95th percentile.
    #[test]
    fn an_open_loop_shows_it() {
        let measured = load(Some(250.0), 1000);
        assert_eq!((measured.requests, measured.held_up), (2500, 0));
        let p95 = measured.response.quantile_us(0.95).unwrap();
        assert!((450e3..=550e3).contains(&p95), "{p95} µs");
    }

    /// With one place only, requests cannot even be sent: service time hides it, response time does not.
    #[test]
    fn response_time_shows_it_where_service_time_does_not() {
        let measured = load(Some(250.0), 1);
        assert_eq!(measured.requests, 2500);
        assert!(measured.held_up >= 249, "{}", measured.held_up);
        let p95 = |times: &Times| times.quantile_us(0.95).unwrap();
        assert!(p95(&measured.service) <= 2100.0, "{}", p95(&measured.service));
        assert!(p95(&measured.response) >= 300e3, "{}", p95(&measured.response));
    }
}

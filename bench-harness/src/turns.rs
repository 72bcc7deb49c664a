//! Hands out turns: waits until the next request of a connection is due, and says whether it was sent late and why.
//!
//! Tokio's timers tick in milliseconds, a hundred requests long at 100,000 a second; a timerfd is exact to some
//! microseconds and, unlike spinning, leaves the CPU to the client.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::{io::unix::AsyncFd, sync::Mutex, task::yield_now};

use crate::pacing::Schedule;

/// Below this a timer costs more than giving way to other tasks a few times.
const TOO_SHORT_FOR_A_TIMER: Duration = Duration::from_micros(20);

/// A pass through all other tasks and the network that took less did nothing: a system call that finds no datagram
/// takes half a microsecond, one that finds something several.
const EMPTY_PASS_MAX: Duration = Duration::from_micros(2);

/// For how long after its end a load still sends what was due before, at least.
const GIVEN_UP_MIN: Duration = Duration::from_secs(2);

thread_local! {
    static IDLE: Idle = const { Idle { until: Cell::new(None), total: Cell::new(Duration::ZERO) } };
}

/// What a thread spent in looking for work that was not there. Waiting for a moment that is only microseconds away uses
/// the CPU without needing it: a thread that does so is not saturated.
struct Idle {
    /// When the last empty pass ended; several pacers of a thread wait in the same one.
    until: Cell<Option<Instant>>,
    total: Cell<Duration>,
}

impl Idle {
    fn passed(&self, from: Instant, to: Instant) {
        if to.saturating_duration_since(from) < EMPTY_PASS_MAX {
            let from = self.until.replace(Some(to)).map_or(from, |until| until.max(from));
            self.total.set(self.total.get() + to.saturating_duration_since(from));
        }
    }
}

/// How long this thread has looked for work that was not there, in all.
pub fn idle_of_this_thread() -> Duration {
    IDLE.with(|idle| idle.total.get())
}

/// The time, and how to wait for a moment of it.
pub trait Clock {
    /// Now.
    fn now(&self) -> Instant;
    /// Waits until `due`.
    fn until(&self, due: Instant) -> impl Future<Output = ()>;
}

/// The machine's clock, exact to some microseconds.
pub struct Timer {
    descriptor: AsyncFd<OwnedFd>,
}

/// A request's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// When it was meant to be sent.
    pub due: Instant,
    /// When it is sent.
    pub sent: Instant,
    /// It was due before there was a place among those in flight: the server's doing, or too few places. Otherwise
    /// whatever lies between `due` and `sent` is the harness's own lateness.
    pub held_up: bool,
}

/// Hands out one connection's turns. For one thread.
pub struct Pacer<C> {
    begin: Instant,
    end: Instant,
    /// `None` for a closed loop.
    schedule: Option<RefCell<Schedule>>,
    over: Cell<bool>,
    unsent: Cell<u64>,
    clock: C,
    /// Held while waiting, so that those who wait are served in the order in which they came.
    turn: Mutex<()>,
}

impl<C: Clock> Pacer<C> {
    /// A pacer from `begin` to `end` that follows `schedule`, or without it has a turn whenever one asks.
    pub fn new(begin: Instant, end: Instant, schedule: Option<Schedule>, clock: C) -> Self {
        let schedule = schedule.map(RefCell::new);
        Pacer { begin, end, schedule, over: Cell::new(false), unsent: Cell::new(0), clock, turn: Mutex::new(()) }
    }

    /// Now.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// How many turns there were that nobody took before the pacer gave up.
    pub fn unsent(&self) -> u64 {
        self.unsent.get()
    }

    /// When requests that are due are not sent any more: a server that is offered far more than it takes would be fed
    /// for hours, and what is measured by then is the length of the queue.
    fn given_up(&self) -> Instant {
        self.end + self.end.saturating_duration_since(self.begin).max(GIVEN_UP_MIN)
    }

    fn count_unsent(&self, mut due: Instant, schedule: &mut Schedule) {
        while due < self.end {
            self.unsent.set(self.unsent.get() + 1);
            due = self.begin + schedule.next_due();
        }
    }

    /// Waits for the next turn; `None` once the time is over.
    pub async fn next(&self) -> Option<Turn> {
        let asked = self.clock.now();
        let Some(schedule) = &self.schedule else {
            return (asked < self.end).then_some(Turn { due: asked, sent: asked, held_up: false });
        };
        let _turn = self.turn.lock().await;
        if self.over.get() {
            return None;
        }
        let due = self.begin + schedule.borrow_mut().next_due();
        if due >= self.end || asked >= self.given_up() {
            self.over.set(true);
            self.count_unsent(due, &mut schedule.borrow_mut());
            return None;
        }
        self.clock.until(due).await;
        Some(Turn { due, sent: self.clock.now(), held_up: asked > due })
    }
}

impl Timer {
    /// A timer.
    ///
    /// Errors: the operating system gives none. Must be called within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[allow(deprecated, reason = "unsound only for types that change their descriptor, which `OwnedFd` does not")]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Timer { descriptor })
    }

    async fn rest(&self, duration: Duration) -> io::Result<()> {
        let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let it_value = Timespec { tv_sec: seconds, tv_nsec: duration.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(self.descriptor.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        let mut ready = self.descriptor.readable().await?;
        let mut expirations = [0; 8];
        // Not read is not expired: the readiness is taken back and the caller looks at the clock again.
        if ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut expirations)?)).is_err() {
            ready.clear_ready();
        }
        Ok(())
    }
}

impl Clock for Timer {
    fn now(&self) -> Instant {
        Instant::now()
    }

    async fn until(&self, due: Instant) {
        let mut now = Instant::now();
        loop {
            let left = due.saturating_duration_since(now);
            if left.is_zero() {
                return;
            }
            let before = now;
            let rests = left >= TOO_SHORT_FOR_A_TIMER && self.rest(left).await.is_ok();
            if !rests {
                yield_now().await;
            }
            now = Instant::now();
            if !rests {
                IDLE.with(|idle| idle.passed(before, now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacing::Arrivals;

    fn within_tokio<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn pacer(begin: Instant, length: Duration, requests_per_s: Option<f64>) -> Pacer<Timer> {
        let schedule = requests_per_s.map(|rate| Schedule::new(Arrivals::Constant, rate, 0));
        Pacer::new(begin, begin + length, schedule, Timer::new().unwrap())
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_open_loop_is_due_at_its_rate_however_late_it_is_asked() {
        within_tokio(async {
            // Five seconds in the past: as if the first answer had taken so long.
            let begin = Instant::now() - 5000 * MS;
            let pacer = pacer(begin, 4000 * MS, Some(1000.0));
            for expected in 0..4000 {
                let turn = pacer.next().await.unwrap();
                let apart = turn.due.duration_since(begin).abs_diff(expected * MS);
                assert!(turn.held_up && apart < Duration::from_nanos(2), "{expected}: {apart:?}");
            }
            assert_eq!(pacer.next().await, None);
            assert_eq!((pacer.next().await, pacer.unsent()), (None, 0));
        });
    }

    #[test]
    fn a_load_that_is_hopelessly_behind_is_given_up_and_what_was_not_sent_is_counted() {
        within_tokio(async {
            let begin = Instant::now() - 10_000 * MS;
            let pacer = pacer(begin, 4000 * MS, Some(1000.0));
            assert_eq!((pacer.next().await, pacer.unsent()), (None, 4000));
        });
    }

    #[test]
    fn no_request_is_sent_before_it_is_due_and_one_that_waited_was_not_held_up() {
        within_tokio(async {
            let begin = Instant::now() + MS;
            let pacer = pacer(begin, 20 * MS, Some(1500.0));
            assert!(!pacer.next().await.unwrap().held_up);
            while let Some(turn) = pacer.next().await {
                assert!(turn.sent >= turn.due);
            }
            assert!(Instant::now() >= begin + 18 * MS);
        });
    }

    #[test]
    fn only_passes_that_found_nothing_are_idle_and_those_of_several_pacers_count_once() {
        let idle = Idle { until: Cell::new(None), total: Cell::new(Duration::ZERO) };
        let begin = Instant::now();
        let at = |ns| begin + Duration::from_nanos(ns);
        for (from, to) in [(0, 1000), (200, 1100), (1100, 5000), (1200, 5100), (5100, 6100)] {
            idle.passed(at(from), at(to));
        }
        assert_eq!(idle.total.get(), Duration::from_nanos(2100));
    }

    #[test]
    fn a_closed_loop_is_due_when_it_is_asked_until_the_time_is_over() {
        within_tokio(async {
            let begin = Instant::now();
            let turn = pacer(begin, 3_600_000 * MS, None).next().await.unwrap();
            assert!(turn.due >= begin && turn.due == turn.sent && !turn.held_up);
            assert_eq!(pacer(begin, Duration::ZERO, None).next().await, None);
        });
    }
}

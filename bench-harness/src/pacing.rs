//! When a request is due.
//!
//! Open loop: requests are due at a fixed rate, whatever the server does, and response time counts from the moment a
//! request was due. A server that stalls is then charged for every request that had to wait, also for those that the
//! harness could not send in time ("coordinated omission" is what hides them otherwise). Closed loop: the next request
//! is due when a place among those in flight is free; such latencies flatter the server and are labelled so.
//!
//! Tokio's timers tick in milliseconds, a hundred requests long at 100,000 a second; a timerfd is exact to some
//! microseconds and, unlike spinning, leaves the CPU to the client.

use std::{
    cell::Cell,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::{io::unix::AsyncFd, sync::Mutex, task::yield_now};

/// Below this a timer costs more than giving way to other tasks a few times.
const TOO_SHORT_FOR_A_TIMER: Duration = Duration::from_micros(20);

/// Hands out the moments at which one connection's requests are due. For one thread.
pub struct Pacer {
    begin: Instant,
    end: Instant,
    /// `None` for a closed loop.
    interval: Option<Duration>,
    issued: Cell<u64>,
    /// Held while waiting, so that those who wait are served in the order in which they came.
    turn: Mutex<Timer>,
}

impl Pacer {
    /// A pacer from `begin` to `end` that makes one request due every `interval`, or as soon as one asks without it.
    ///
    /// Errors: the operating system gives no timer. Must be called within a tokio runtime.
    pub fn new(begin: Instant, end: Instant, interval: Option<Duration>) -> io::Result<Self> {
        Ok(Pacer { begin, end, interval, issued: Cell::new(0), turn: Mutex::new(Timer::new()?) })
    }

    /// Waits until the next request is due and returns when that was: now, or before. `None` once the time is over.
    pub async fn next(&self) -> Option<Instant> {
        let due = match self.interval {
            None => Instant::now(),
            Some(interval) => {
                let timer = self.turn.lock().await;
                let due = self.begin + interval.mul_f64(self.issued.get() as f64);
                if due < self.end {
                    self.issued.set(self.issued.get() + 1);
                    timer.until(due).await;
                }
                due
            }
        };
        (due < self.end).then_some(due)
    }
}

struct Timer {
    descriptor: AsyncFd<OwnedFd>,
}

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[allow(deprecated, reason = "unsound only for types that change their descriptor, which `OwnedFd` does not")]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Timer { descriptor })
    }

    async fn until(&self, due: Instant) {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if left < TOO_SHORT_FOR_A_TIMER || self.rest(left).await.is_err() {
                yield_now().await;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn within_tokio<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_open_loop_is_due_at_its_rate_however_late_it_is_asked() {
        within_tokio(async {
            // Five seconds in the past: as if the first answer had taken so long.
            let begin = Instant::now() - 5000 * MS;
            let pacer = Pacer::new(begin, begin + 4000 * MS, Some(MS)).unwrap();
            for expected in 0..4000 {
                assert_eq!(pacer.next().await, Some(begin + expected * MS));
            }
            assert_eq!(pacer.next().await, None);
        });
    }

    #[test]
    fn no_request_is_sent_before_it_is_due() {
        within_tokio(async {
            let begin = Instant::now();
            let pacer = Pacer::new(begin, begin + 20 * MS, Some(Duration::from_micros(700))).unwrap();
            while let Some(due) = pacer.next().await {
                assert!(Instant::now() >= due);
            }
            assert!(Instant::now() >= begin + 18 * MS);
        });
    }

    #[test]
    fn a_closed_loop_is_due_when_it_is_asked_until_the_time_is_over() {
        within_tokio(async {
            let begin = Instant::now();
            let pacer = Pacer::new(begin, begin + 3600 * 1000 * MS, None).unwrap();
            assert!(pacer.next().await.unwrap() >= begin);
            let over = Pacer::new(begin, begin, None).unwrap();
            assert_eq!(over.next().await, None);
        });
    }
}

//! What a leader knows of one follower, and what it may send it.
//!
//! A follower is first asked where it stands, then brought to agree with the leader's log, then sent what it lacks. It is
//! the same whether it is one batch behind or a terabyte: only what it may have in flight differs, and where the batches
//! come from. A leader keeps no batch for a follower, only offsets, so a slow one costs no memory here; and since what is
//! sent counts as in flight until it is *written* there, it does not cost more than the window there either.

use std::{collections::VecDeque, time::Duration};

use super::{
    Pace,
    assignment::ConfigId,
    message::{Ack, Held, Session},
};
use crate::types::Offset;

/// What is going on between a leader and a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Phase {
    /// The follower was asked where it stands, and has not answered.
    Probing,
    /// It answered, and its log differs from the leader's: it was told to cut it off.
    Aligning,
    /// Its log is the beginning of the leader's, and it is sent the rest.
    Replicating,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Progress {
    pub(super) phase: Phase,
    /// The number of the last probe. Only answers to it are heard.
    pub(super) round: u32,
    /// The follower's life, as its answer to that probe says. `None` exactly while probing.
    life: Option<u64>,
    /// How far it said it is, in this session. Zero before it said anything.
    pub(super) held: Held,
    /// It has durably taken over the log of this reign: only then does it count for anything.
    pub(super) accepted: bool,
    /// The configuration that it durably knows.
    pub(super) config: ConfigId,
    /// The most that it ever said to be durable in this reign, in whatever session. Having less later means that it lost
    /// something.
    pub(super) promised_durable: Offset,
    /// The offset of the next batch to send; not below `held.received` while replicating.
    pub(super) next: Offset,
    /// What was sent and is not known to be written: end and bytes of each, in order.
    sent: VecDeque<(Offset, u64)>,
    /// The sum of the bytes in `sent`.
    in_flight: u64,
    /// Batches are being read for it. One read at a time.
    pub(super) loading: bool,
    /// When it was last sent something that asks for an answer.
    pub(super) sent_at: Duration,
    /// When `held` last grew, or something was sent while nothing was in flight.
    moved_at: Duration,
    /// Where the log ended at some time, and when that was: whoever has all before it kept up until then.
    mark: (Offset, Duration),
    /// Until when it kept up; `None` if it never did.
    kept_up_until: Option<Duration>,
    /// Whether it keeps up.
    pub(super) in_sync: bool,
    /// Before this nothing is sent to one that does not keep up, so that catching up is felt by nobody.
    allowed_at: Duration,
}

impl Progress {
    /// A follower that nothing is known of. Its first probe is `round` 1.
    pub(super) fn new(log_end: Offset, now: Duration) -> Self {
        Progress {
            phase: Phase::Probing,
            round: 0,
            life: None,
            held: Held::default(),
            accepted: false,
            config: ConfigId::default(),
            promised_durable: Offset(0),
            next: Offset(0),
            sent: VecDeque::new(),
            in_flight: 0,
            loading: false,
            sent_at: now,
            moved_at: now,
            mark: (log_end, now),
            kept_up_until: None,
            in_sync: false,
            allowed_at: now,
        }
    }

    /// Begins a new session: nothing of what was said before counts.
    pub(super) fn probe(&mut self, now: Duration) {
        self.phase = Phase::Probing;
        self.round += 1;
        self.life = None;
        self.held = Held::default();
        self.accepted = false;
        self.loading = false;
        self.rewind(Offset(0), now);
        self.sent_at = now;
    }

    /// The session, once the follower has answered.
    pub(super) fn session(&self) -> Option<Session> {
        self.life.map(|life| Session { round: self.round, life })
    }

    /// Whether `session` is the one under way.
    pub(super) fn is_in(&self, session: Session) -> bool {
        self.session() == Some(session)
    }

    /// The follower answers the probe.
    pub(super) fn answered(&mut self, session: Session) {
        assert!(session.round == self.round, "{session:?} answers round {}", self.round);
        self.life = Some(session.life);
        self.phase = Phase::Aligning;
    }

    /// The logs agree up to `end`, which is the end of the follower's.
    pub(super) fn aligned(&mut self, end: Offset, now: Duration) {
        self.phase = Phase::Replicating;
        self.rewind(end, now);
    }

    /// Takes over what the follower says. Gives whether it has come further.
    pub(super) fn heard(&mut self, ack: &Ack, now: Duration) -> bool {
        assert!(ack.held.is_ordered(), "{ack:?}");
        let before = (self.held, self.accepted, self.config);
        self.held = self.held.max(ack.held);
        self.accepted |= ack.accepted;
        self.config = self.config.max(ack.config);
        if self.accepted {
            self.promised_durable = self.promised_durable.max(self.held.durable);
        }
        while let Some((end, bytes)) = self.sent.front()
            && *end <= self.held.written
        {
            self.in_flight -= bytes;
            self.sent.pop_front();
        }
        self.next = self.next.max(self.held.received);
        let moved = before != (self.held, self.accepted, self.config);
        if moved {
            self.moved_at = now;
        }
        if ack.missing && ack.held.received == self.held.received && self.next > self.held.received {
            self.rewind(self.held.received, now);
        }
        moved
    }

    /// Sends again from `next` on.
    fn rewind(&mut self, next: Offset, now: Duration) {
        self.next = next;
        self.sent.clear();
        self.in_flight = 0;
        self.moved_at = now;
    }

    /// What was sent and not received for too long is taken for lost.
    pub(super) fn resend_if_lost(&mut self, pace: &Pace, now: Duration) {
        let waits = self.next > self.held.received;
        if self.phase == Phase::Replicating && waits && now.saturating_sub(self.moved_at) >= pace.resend {
            self.rewind(self.held.received, now);
        }
    }

    /// How many bytes may be read for it now, in a log that ends at `log_end`. At least one, or `None`.
    pub(super) fn room(&self, log_end: Offset, pace: &Pace, now: Duration) -> Option<u64> {
        let window = if self.in_sync { pace.window_bytes } else { pace.window_bytes / 4 };
        let may = self.phase == Phase::Replicating
            && !self.loading
            && self.next < log_end
            && self.in_flight < window.max(1)
            && (self.in_sync || now >= self.allowed_at);
        may.then(|| window.max(1) - self.in_flight)
    }

    /// Batches up to `end` go out.
    pub(super) fn sending(&mut self, end: Offset, bytes: u64, pace: &Pace, now: Duration) {
        assert!(end > self.next, "sending up to {end} what continues {}", self.next);
        if self.sent.is_empty() {
            self.moved_at = now;
        }
        self.next = end;
        self.sent.push_back((end, bytes));
        self.in_flight += bytes;
        self.sent_at = now;
        if !self.in_sync {
            let takes = Duration::from_secs_f64(bytes as f64 / pace.catch_up_bytes_per_second.max(1) as f64);
            self.allowed_at = self.allowed_at.max(now) + takes;
        }
    }

    /// Looks whether the follower keeps up with a log that ends at `log_end`. Gives whether that has changed.
    pub(super) fn judge(&mut self, log_end: Offset, pace: &Pace, now: Duration) -> bool {
        let (end, at) = self.mark;
        if self.accepted && self.held.written >= log_end {
            self.kept_up_until = Some(now);
            self.mark = (log_end, now);
        } else if self.accepted && self.held.written >= end {
            self.kept_up_until = self.kept_up_until.max(Some(at));
            self.mark = (log_end, now);
        }
        let before = self.in_sync;
        let lag = self.kept_up_until.map(|until| now.saturating_sub(until));
        self.in_sync = self.accepted && lag.is_some_and(|lag| lag < pace.lag_max);
        before != self.in_sync
    }

    /// Forgets every point in time, so that states that differ in nothing else are the same.
    #[cfg(test)]
    pub(super) fn forget_times(&mut self) {
        self.sent_at = Duration::ZERO;
        self.moved_at = Duration::ZERO;
        self.mark = (Offset(0), Duration::ZERO);
        self.kept_up_until = self.kept_up_until.map(|_| Duration::ZERO);
        self.allowed_at = Duration::ZERO;
    }
}

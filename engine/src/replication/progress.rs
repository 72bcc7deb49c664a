//! What a leader knows of one follower, and what it may send it.
//!
//! A follower is first asked where it stands, then brought to agree with the leader's log, then sent what it lacks. It
//! is the same whether it is one batch behind or a terabyte: only what it may have in flight differs, and where the
//! batches come from. A leader keeps no batch for a follower, only offsets, so a slow one costs no memory here; and
//! since what is sent counts as in flight until it is *written* there, it does not cost more than the window there
//! either.

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
    /// The session, once the follower has answered that probe. `None` exactly while probing.
    session: Option<Session>,
    /// How far it said it is, in this session. Zero before it said anything.
    pub(super) held: Held,
    /// It has durably taken over the log of this reign: only then does it count for anything.
    pub(super) accepted: bool,
    /// It has its memory, as it said in this session.
    pub(super) remembers: bool,
    /// Records of its log are damaged, as it said last.
    pub(super) damaged: bool,
    /// The configuration that it durably knows.
    pub(super) config: ConfigId,
    /// Where its log begins.
    pub(super) log_start: Offset,
    /// The most that it ever said to be durable in this reign, in whatever session. Having less later means that it
    /// lost something.
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
            session: None,
            held: Held::default(),
            accepted: false,
            remembers: false,
            damaged: false,
            config: ConfigId::default(),
            log_start: Offset(0),
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
        self.session = None;
        self.held = Held::default();
        (self.accepted, self.remembers) = (false, false);
        self.log_start = Offset(0);
        self.loading = false;
        self.rewind(Offset(0), now);
        self.sent_at = now;
    }

    /// The session, once the follower has answered.
    pub(super) fn session(&self) -> Option<Session> {
        self.session
    }

    /// Whether `session` is the one under way.
    pub(super) fn is_in(&self, session: Session) -> bool {
        self.session() == Some(session)
    }

    /// The follower answers the probe.
    pub(super) fn answered(&mut self, session: Session) {
        assert!(session.round == self.round, "{session:?} answers round {}", self.round);
        self.session = Some(session);
        self.phase = Phase::Aligning;
    }

    /// The logs agree up to `end`, which is the end of the follower's.
    pub(super) fn aligned(&mut self, end: Offset, now: Duration) {
        self.phase = Phase::Replicating;
        self.rewind(end, now);
    }

    /// Whether it has everything that it was sent, and would be sent next one of the records from `from` to `until`.
    pub(super) fn waits_for(&self, from: Offset, until: Offset) -> bool {
        self.next == self.held.received && from <= self.next && self.next < until
    }

    /// Takes over what the follower says. Gives whether it has come further.
    pub(super) fn heard(&mut self, ack: &Ack, now: Duration) -> bool {
        assert!(ack.held.is_ordered(), "{ack:?}");
        let before = (self.held, self.accepted, self.config);
        self.held = self.held.max(ack.held);
        self.accepted |= ack.accepted;
        self.remembers |= ack.accepted;
        self.damaged = ack.damaged;
        self.config = self.config.max(ack.config);
        self.log_start = self.log_start.max(ack.log_start);
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

    /// For how long the follower has not had, on its device, all of a log that ends at `log_end`; since the reign began
    /// if it never did in this one.
    pub(super) fn lag(&self, log_end: Offset, now: Duration) -> Duration {
        if self.accepted && self.held.written >= log_end {
            return Duration::ZERO;
        }
        now.saturating_sub(self.kept_up_until.unwrap_or(self.mark.1))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::LeaderEpoch;

    const SESSION: Session = Session { leader_life: 3, round: 1, life: 7 };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn pace() -> Pace {
        Pace { window_bytes: 100, catch_up_bytes_per_second: 1000, ..Pace::default() }
    }

    /// A follower whose log agrees with the leader's up to `end`.
    fn replicating(end: u64) -> Progress {
        let mut progress = Progress::new(Offset(end), at(0));
        progress.probe(at(0));
        progress.answered(SESSION);
        progress.aligned(Offset(end), at(0));
        progress
    }

    fn ack(received: u64, written: u64) -> Ack {
        let held = Held { received: Offset(received), written: Offset(written), durable: Offset(written) };
        let config = ConfigId::default();
        let (epoch, log_start) = (LeaderEpoch(8), Offset(0));
        Ack { epoch, session: SESSION, held, accepted: true, config, log_start, missing: false, damaged: false }
    }

    #[test]
    fn what_is_sent_counts_as_in_flight_until_it_is_written_there() {
        let mut progress = replicating(0);
        progress.in_sync = true;
        assert_eq!(progress.room(Offset(9), &pace(), at(0)), Some(100));
        progress.sending(Offset(4), 60, &pace(), at(0));
        progress.sending(Offset(5), 40, &pace(), at(0));
        assert_eq!(progress.room(Offset(9), &pace(), at(0)), None);
        progress.heard(&ack(5, 0), at(1));
        assert_eq!(progress.room(Offset(9), &pace(), at(1)), None, "it is in memory there, and costs memory there");
        progress.heard(&ack(5, 4), at(2));
        assert_eq!(progress.room(Offset(9), &pace(), at(2)), Some(60));
        assert_eq!(progress.room(Offset(5), &pace(), at(2)), None, "there is nothing to send");
    }

    #[test]
    fn who_does_not_keep_up_is_sent_less_and_not_faster_than_allowed() {
        let mut progress = replicating(0);
        assert_eq!(progress.room(Offset(9), &pace(), at(0)), Some(25));
        progress.sending(Offset(1), 20, &pace(), at(0));
        progress.heard(&ack(1, 1), at(1));
        assert_eq!(progress.room(Offset(9), &pace(), at(19)), None, "20 bytes take 20 ms at 1,000 a second");
        assert_eq!(progress.room(Offset(9), &pace(), at(20)), Some(25));
    }

    #[test]
    fn a_new_session_counts_nothing_of_the_one_before_but_remembers_what_was_promised() {
        let mut progress = replicating(0);
        progress.sending(Offset(3), 10, &pace(), at(0));
        progress.heard(&ack(3, 3), at(1));
        progress.probe(at(2));
        assert_eq!((progress.held, progress.accepted, progress.session()), (Held::default(), false, None));
        assert_eq!(progress.promised_durable, Offset(3));
        assert!(!progress.is_in(SESSION));
    }

    #[test]
    fn a_follower_is_in_sync_that_has_what_the_leader_had_half_a_second_ago() {
        let mut progress = replicating(0);
        assert!(!progress.judge(Offset(10), &pace(), at(0)), "it has not said that it follows");
        progress.heard(&ack(0, 0), at(1));
        assert!(progress.judge(Offset(10), &pace(), at(1)) && progress.in_sync);
        // It has what there was at the beginning, and no more for too long.
        assert!(progress.judge(Offset(20), &pace(), at(600)) && !progress.in_sync);
        progress.heard(&ack(10, 10), at(700));
        progress.judge(Offset(30), &pace(), at(700));
        progress.heard(&ack(30, 30), at(800));
        assert!(progress.judge(Offset(40), &pace(), at(800)) && progress.in_sync);
    }

    #[test]
    fn a_follower_lags_since_it_last_had_everything() {
        let mut progress = replicating(0);
        assert_eq!(progress.lag(Offset(0), at(70)), at(70), "it has not said that it follows, since the reign began");
        progress.heard(&ack(10, 10), at(100));
        progress.judge(Offset(10), &pace(), at(100));
        assert_eq!(progress.lag(Offset(10), at(900)), at(0), "nothing came since");
        assert_eq!(progress.lag(Offset(11), at(900)), at(800));
        progress.probe(at(1000));
        assert_eq!(progress.lag(Offset(11), at(1100)), at(1000), "a new session is not caught up by itself");
    }

    proptest! {
        #[test]
        fn acks_in_any_order_come_to_the_same(order in Just([1u64, 2, 3, 4, 5]).prop_shuffle(), twice in 0usize..5) {
            let mut progress = replicating(0);
            progress.sending(Offset(5), 10, &pace(), at(0));
            for end in order.iter().chain([&order[twice]]) {
                progress.heard(&ack(*end, end - 1), at(1));
            }
            prop_assert_eq!(progress.held, ack(5, 4).held);
            prop_assert_eq!(progress.next, Offset(5));
        }
    }
}

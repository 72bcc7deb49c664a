//! What a log gives up by itself, decided from values only: by size, by age, and whether the active segment is sealed
//! so that it can be given up too.
//!
//! *By size* a partition keeps at least as many bytes as it is told to, and at most about twice as many: an old
//! segment goes when what remains is still enough, and the active one is sealed when it alone is enough. *By age* a
//! segment goes when its newest record is older than the limit, and the active one is sealed when that holds for all
//! of the log; so a log that nobody writes to expires too.
//!
//! Timestamps are the producers', who may be wrong. A record from the future keeps its segment no longer than one that
//! was written when the segment was sealed. A record from the past is as old as it says: who copies old records into a
//! log with a limit on their age sees them go at the next look.

use std::time::Duration;

/// How much a partition keeps at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Records that are not older, in milliseconds; `None` for all.
    pub age_ms: Option<u64>,
    /// The newest bytes; `None` for all.
    pub bytes: Option<u64>,
}

impl Limits {
    /// Whether everything is kept.
    pub fn is_unlimited(&self) -> bool {
        self.age_ms.is_none() && self.bytes.is_none()
    }
}

/// The active segment, as far as retention looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// Bytes of its batches.
    pub bytes: u64,
    /// The time of its newest record, in milliseconds since 1970.
    pub newest_ms: i64,
}

/// How many of the sealed segments, oldest first, are more than `limit` asks for; `active_bytes` come after them.
pub fn surplus(sealed_bytes: &[u64], active_bytes: u64, limit: u64) -> usize {
    let mut rest: u64 = sealed_bytes.iter().sum::<u64>() + active_bytes;
    let goes = |bytes: &&u64| {
        let enough = rest - **bytes >= limit;
        if enough {
            rest -= **bytes;
        }
        enough
    };
    sealed_bytes.iter().take_while(goes).count()
}

/// Whether records of `newest_ms` and before are older than `age_ms`.
pub fn is_expired(newest_ms: i64, now_ms: i64, age_ms: u64) -> bool {
    i128::from(now_ms) - i128::from(newest_ms) > i128::from(age_ms)
}

/// Whether the active segment is to be sealed. `all_expired`: all before it may go for their age.
pub fn must_roll(active: Option<Active>, all_expired: bool, limits: Limits, now_ms: i64) -> bool {
    let Some(active) = active else { return false };
    let by_size = limits.bytes.is_some_and(|limit| active.bytes >= limit.max(ROLL_BYTES_MIN));
    let by_age = limits.age_ms.is_some_and(|age| is_expired(active.newest_ms, now_ms, age));
    by_size || (all_expired && by_age)
}

/// A segment that is smaller is not sealed for the sake of a small limit: a file for every few records costs more than
/// it frees.
pub const ROLL_BYTES_MIN: u64 = 1 << 20;

/// The time by which records are judged: the wall clock, but not one that has just jumped ahead. A server whose clock
/// is set to next year for a minute must not lose everything.
///
/// A step of more than a minute beyond what the monotonic clock saw pass counts only once it has lasted for an hour. A
/// step back counts at once: it keeps more.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    now_ms: i64,
    at: Duration,
    /// Since when the wall clock is ahead.
    ahead_since: Option<Duration>,
}

const JUMP_MS: i64 = 60_000;
const TRUST_AFTER: Duration = Duration::from_secs(3600);

impl Clock {
    /// Believes `wall_ms`, as there is nothing to compare it with.
    pub fn new(monotonic: Duration, wall_ms: i64) -> Self {
        Clock { now_ms: wall_ms, at: monotonic, ahead_since: None }
    }

    /// What time it is, given both clocks.
    pub fn now(&mut self, monotonic: Duration, wall_ms: i64) -> i64 {
        assert!(monotonic >= self.at, "the monotonic clock went back from {:?} to {monotonic:?}", self.at);
        let passed = i64::try_from((monotonic - self.at).as_millis()).unwrap_or(i64::MAX);
        let expected = self.now_ms.saturating_add(passed);
        self.at = monotonic;
        let is_ahead = wall_ms > expected.saturating_add(JUMP_MS);
        if is_ahead && monotonic - *self.ahead_since.get_or_insert(monotonic) < TRUST_AFTER {
            self.now_ms = expected;
        } else {
            (self.now_ms, self.ahead_since) = (wall_ms, None);
        }
        self.now_ms
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_segment_goes_when_what_remains_is_still_enough() {
        for (sealed, active, limit, gone) in [
            (&[][..], 0, 1, 0),
            (&[10, 10, 10], 5, 1, 3),
            (&[10, 10, 10], 5, 5, 3),
            (&[10, 10, 10], 5, 6, 2),
            (&[10, 10, 10], 5, 15, 2),
            (&[10, 10, 10], 5, 16, 1),
            (&[10, 10, 10], 5, 25, 1),
            (&[10, 10, 10], 5, 26, 0),
            (&[10, 10, 10], 0, 1, 2),
            (&[1, 100], 0, 100, 1),
            (&[100, 1], 0, 100, 0),
        ] {
            assert_eq!(surplus(sealed, active, limit), gone, "{sealed:?} + {active}, limit {limit}");
        }
    }

    #[test]
    fn one_limit_is_a_limit() {
        let unlimited = |age_ms, bytes| Limits { age_ms, bytes }.is_unlimited();
        assert!(unlimited(None, None));
        assert!(!unlimited(Some(1), None) && !unlimited(None, Some(1)) && !unlimited(Some(1), Some(1)));
    }

    #[test]
    fn a_record_is_kept_until_it_is_older_than_the_limit() {
        assert!(!is_expired(1_000, 1_500, 500));
        assert!(is_expired(1_000, 1_501, 500));
        assert!(!is_expired(9_000, 1_000, 0), "a record from the future is not old");
        assert!(is_expired(i64::MIN, i64::MAX, u64::MAX / 2));
        assert!(!is_expired(i64::MIN, i64::MAX, u64::MAX));
    }

    #[test]
    fn the_active_segment_is_sealed_when_all_of_the_log_is_old_or_it_alone_is_enough() {
        let active = |bytes, newest_ms| Some(Active { bytes, newest_ms });
        let age = Limits { age_ms: Some(500), bytes: None };
        assert!(must_roll(active(1, 0), true, age, 501));
        assert!(!must_roll(active(1, 0), false, age, 501), "older segments stay, so nothing is gained");
        assert!(!must_roll(active(1, 1), true, age, 501));
        assert!(!must_roll(None, true, age, 501), "an empty segment has nothing to give up");
        let bytes = Limits { age_ms: None, bytes: Some(2 << 20) };
        assert!(must_roll(active(2 << 20, 0), false, bytes, 0));
        assert!(!must_roll(active((2 << 20) - 1, 0), true, bytes, 0));
        let tiny = Limits { age_ms: None, bytes: Some(1) };
        assert!(!must_roll(active(ROLL_BYTES_MIN - 1, 0), true, tiny, 0));
        assert!(must_roll(active(ROLL_BYTES_MIN, 0), true, tiny, 0));
        assert!(!must_roll(active(u64::MAX, 0), true, Limits::default(), i64::MAX));
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_clock_that_jumps_ahead_is_believed_after_an_hour_and_not_before() {
        let year = 365 * 86_400_000;
        let mut clock = Clock::new(SECOND, 1_000_000);
        assert_eq!(clock.now(2 * SECOND, 1_001_000), 1_001_000);
        for second in 3..3_603 {
            let wall_ms = year + i64::from(second) * 1000;
            assert_eq!(clock.now(second * SECOND, wall_ms), 999_000 + i64::from(second) * 1000);
        }
        let wall_ms = year + 3_603_000;
        assert_eq!(clock.now(3_603 * SECOND, wall_ms), wall_ms);
    }

    #[test]
    fn a_jump_that_is_taken_back_never_counted_and_a_new_one_has_its_own_hour() {
        let mut clock = Clock::new(Duration::ZERO, 0);
        assert_eq!(clock.now(10 * SECOND, 100_000_000), 10_000);
        assert_eq!(clock.now(20 * SECOND, 20_000), 20_000);
        assert_eq!(clock.now(3_615 * SECOND, 200_000_000), 3_615_000);
    }

    #[test]
    fn a_clock_that_goes_back_or_runs_a_little_fast_is_believed_at_once() {
        let mut clock = Clock::new(Duration::ZERO, 1_000_000);
        assert_eq!(clock.now(10 * SECOND, 500_000), 500_000);
        assert_eq!(clock.now(20 * SECOND, 510_000 + JUMP_MS), 510_000 + JUMP_MS);
    }

    proptest! {
        #[test]
        fn what_stays_is_enough_and_one_less_would_not_be(
            sealed in proptest::collection::vec(1u64..50, 0..20),
            active in 0u64..50,
            limit in 1u64..500,
        ) {
            let gone = surplus(&sealed, active, limit);
            let rest: u64 = sealed[gone..].iter().sum::<u64>() + active;
            prop_assert!(gone == 0 || rest >= limit, "{rest} bytes stay");
            if let Some(next) = sealed.get(gone) {
                prop_assert!(rest - next < limit, "{next} of {rest} bytes stay without need");
            }
        }

        #[test]
        fn the_time_is_never_ahead_of_the_wall_clock_nor_of_what_passed(
            steps in proptest::collection::vec((0u64..1_000_000, -1_000_000i64..1_000_000), 1..30),
        ) {
            let (mut clock, mut mono, mut wall) = (Clock::new(Duration::ZERO, 0), Duration::ZERO, 0i64);
            for (passed, drift) in steps {
                mono += Duration::from_millis(passed);
                wall += passed as i64 + drift;
                let now = clock.now(mono, wall);
                prop_assert!(now <= wall, "{now} at {wall}");
            }
        }
    }
}

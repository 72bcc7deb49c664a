//! How latency grows with the rate, where the knee is, and the highest rate that keeps a promise.

use super::{Played, Stage, nothing};
use crate::{
    args::SweepArgs,
    pacing::Arrivals,
    plan::{Pace, Plan},
    report::{Row, assertion::Assertion, human::count},
    session::Session,
    target::HarnessError,
};

/// A server takes a rate if it answers so much of it in time.
const TAKEN_MIN: f64 = 0.99;
/// The knee is before the first rate at which the 99th percentile is so many times what it was at the lowest.
const KNEE_FACTOR: f64 = 5.0;
/// The search ends when the highest rate that holds and the lowest that does not are this near.
const NEAR_ENOUGH: f64 = 1.05;
/// The search gives up here: no machine of ours goes so far.
const RATE_MAX: f64 = 1e9;

/// Sweeps over rates, or searches the highest that keeps the promise.
pub async fn play(args: &SweepArgs, stage: &Stage) -> Played {
    let plan = Plan::of_run(&args.run).map_err(nothing)?;
    let mut session = stage.session(&args.run.common).await.map_err(nothing)?;
    let outcome = match &args.slo {
        Some(slo) => search(&mut session, &plan, slo, args.from).await,
        None => sweep(&mut session, &plan, &rates(args.from, args.to, args.steps)).await,
    };
    match outcome {
        Ok(conclusion) => {
            session.report.conclusions.push(conclusion);
            Ok(session.report)
        }
        Err(error) => Err((Some(session.report), error)),
    }
}

async fn sweep(session: &mut Session<'_>, plan: &Plan, rates: &[f64]) -> Result<String, HarnessError> {
    let mut points = Vec::new();
    for rate in rates {
        let row = session.row(&at_rate(plan, *rate), None).await?;
        points.push((*rate, takes(row), row.p99_us));
    }
    Ok(match knee(&points) {
        Some(rate) => format!("the knee is at {} records/s: beyond it latency grows faster than the rate", count(rate)),
        None => "not even the lowest rate is taken: begin lower (--from)".to_owned(),
    })
}

async fn search(session: &mut Session<'_>, plan: &Plan, slo: &Assertion, from: f64) -> Result<String, HarnessError> {
    let mut search = Search::from(from);
    let mut own_limit = false;
    while let Some(rate) = search.next_rate() {
        let row = session.row(&at_rate(plan, rate), None).await?;
        let is_taken = row.is_clean() && takes(row);
        own_limit |= !row.is_valid();
        // Too few requests for the percentile: more of them are what a higher rate brings.
        let outcome = (!is_taken || slo.is_known(row)).then(|| is_taken && slo.holds(row));
        search.note(outcome);
    }
    let limit =
        if own_limit { " (some of the measurements are invalid: look at them before you quote this)" } else { "" };
    Ok(match search.highest() {
        Some(rate) => format!("{slo} holds up to {} records/s{limit}", count(rate)),
        None => format!(
            "{slo} does not hold at {} records/s, or the first rate above at which it is known: begin lower (--from), \
             or run longer{limit}",
            count(from)
        ),
    })
}

fn at_rate(plan: &Plan, rate: f64) -> Plan {
    let arrivals = if let Pace::Open { arrivals, .. } = plan.pace { arrivals } else { Arrivals::Constant };
    let name = format!("{}@{}", plan.name, count(rate));
    Plan { name, ..plan.clone().offered(rate, arrivals) }
}

/// Whether the server took what was offered.
fn takes(row: &Row) -> bool {
    row.unsent == 0 && row.offered_per_s.is_none_or(|offered| row.records_per_s >= offered * TAKEN_MIN)
}

/// Rates from the first to the last, each the same factor above the one before.
fn rates(from: f64, to: f64, steps: u32) -> Vec<f64> {
    let factor = (to / from).powf(1.0 / f64::from(steps.max(2) - 1));
    (0..steps.max(2)).map(|n| (from * factor.powi(n as i32)).round()).collect()
}

/// The highest rate before latency runs away: of points by rate, with whether the rate was taken, and the 99th
/// percentile.
fn knee(points: &[(f64, bool, Option<f64>)]) -> Option<f64> {
    let base = points.iter().find_map(|(_, _, p99)| *p99);
    let is_before = |(_, taken, p99): &&(f64, bool, Option<f64>)| {
        *taken && p99.zip(base).is_none_or(|(p99, base)| p99 <= base * KNEE_FACTOR)
    };
    points.iter().take_while(is_before).last().map(|(rate, _, _)| *rate)
}

/// Looks for the highest rate that holds: doubles while it does, then halves what is between.
#[derive(Clone, Debug, PartialEq)]
struct Search {
    next: f64,
    holds: Option<f64>,
    fails: Option<f64>,
}

impl Search {
    fn from(rate: f64) -> Self {
        Search { next: rate, holds: None, fails: None }
    }

    /// The rate to be tried next; `None` when enough is known.
    fn next_rate(&self) -> Option<f64> {
        match (self.holds, self.fails) {
            (None, Some(_)) => None,
            (Some(holds), Some(fails)) if fails / holds <= NEAR_ENOUGH => None,
            _ => Some(self.next).filter(|rate| *rate <= RATE_MAX),
        }
    }

    /// Whether the rate that was tried holds; `None` if that is not known, and then it takes a higher one to know.
    fn note(&mut self, holds: Option<bool>) {
        match holds {
            Some(true) => self.holds = Some(self.next),
            None if self.fails.is_none() => {}
            Some(false) | None => self.fails = Some(self.next),
        }
        self.next = match (self.holds, self.fails) {
            (Some(holds), Some(fails)) => (holds * fails).sqrt().round(),
            _ => self.next * 2.0,
        };
    }

    fn highest(&self) -> Option<f64> {
        self.holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that holds up to `limit`; how often it was asked, and what was found.
    fn found(from: f64, limit: f64) -> (u32, Option<f64>) {
        let (mut search, mut tries) = (Search::from(from), 0);
        while let Some(rate) = search.next_rate() {
            search.note(Some(rate <= limit));
            tries += 1;
        }
        (tries, search.highest())
    }

    #[test]
    fn the_search_finds_the_highest_rate_within_a_twentieth_and_in_few_tries() {
        for limit in [10_000.0, 123_456.0, 5e6] {
            let (tries, highest) = found(10_000.0, limit);
            let highest = highest.unwrap();
            assert!(highest <= limit && limit / highest <= 1.06 && tries < 20, "{limit}: {highest} after {tries}");
        }
    }

    #[test]
    fn a_search_that_fails_at_once_finds_nothing_and_one_that_never_fails_ends() {
        assert_eq!(found(10_000.0, 5.0), (1, None));
        assert!(found(10_000.0, f64::INFINITY).1.unwrap() > 5e8);
    }

    #[test]
    fn a_search_goes_on_to_rates_at_which_it_is_known_whether_they_hold() {
        let mut search = Search::from(1000.0);
        for (rate, outcome) in [(1000.0, None), (2000.0, None), (4000.0, Some(true)), (8000.0, Some(false))] {
            assert_eq!(search.next_rate(), Some(rate));
            search.note(outcome);
        }
        assert_eq!((search.next_rate(), search.highest()), (Some(5657.0), Some(4000.0)));
        search.note(None);
        assert_eq!(search.fails, Some(5657.0), "what is not known between does not hold");
    }

    #[test]
    fn rates_grow_by_a_factor_from_end_to_end() {
        assert_eq!(rates(1000.0, 16_000.0, 5), [1000.0, 2000.0, 4000.0, 8000.0, 16_000.0]);
        assert_eq!(rates(1000.0, 2000.0, 1), [1000.0, 2000.0]);
    }

    #[test]
    fn the_knee_is_before_the_rate_that_is_not_taken_or_too_slow() {
        let point = |rate, taken, p99| (rate, taken, Some(p99));
        let by_latency =
            [point(1.0, true, 10.0), point(2.0, true, 12.0), point(4.0, true, 90.0), point(8.0, true, 11.0)];
        assert_eq!(knee(&by_latency), Some(2.0));
        assert_eq!(knee(&[point(1.0, true, 10.0), point(2.0, false, 12.0)]), Some(1.0));
        assert_eq!(knee(&[point(1.0, false, 10.0)]), None);
    }
}

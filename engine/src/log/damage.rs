//! What a log knows to be lost in its segments: remembered, so that a reader who asks again costs no device read, and
//! counted and reported once.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf};

use super::{Log, segment::Segment, survey::Lost};
use crate::{error::RequestError, metrics::CoreMetrics, runtime::Runtime, types::Offset};

/// How many damaged places of a log are remembered. A log with more of them is beyond help; they are found again when
/// they are read.
const REMEMBERED_MAX: usize = 1000;

/// A damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The segment file.
    pub file: PathBuf,
    /// Where in it, and which records it concerns.
    pub lost: Lost,
}

impl Loss {
    pub(super) fn error(&self) -> RequestError {
        let Lost { position, from, to, reason, .. } = self.lost.clone();
        RequestError::Corrupt { file: self.file.clone(), position, from, to, reason }
    }
}

/// The losses of one log, by the first record lost.
#[derive(Default)]
pub struct Losses {
    known: RefCell<BTreeMap<Offset, Loss>>,
}

impl Losses {
    /// The loss that takes the record at `offset`, if one is known.
    pub fn at(&self, offset: Offset) -> Option<Loss> {
        let known = self.known.borrow();
        let (_, loss) = known.range(..=offset).next_back()?;
        (offset < loss.lost.to).then(|| loss.clone())
    }

    /// Whether any of the records from `from` to before `to` is known to be lost.
    pub fn any_in(&self, from: Offset, to: Offset) -> bool {
        let known = self.known.borrow();
        known.range(..to).next_back().is_some_and(|(_, loss)| from < loss.lost.to)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Loss> {
        self.known.borrow().values().cloned().collect()
    }

    /// Whether nothing is known to be lost.
    pub fn is_empty(&self) -> bool {
        self.known.borrow().is_empty()
    }

    /// Forgets what is lost within `loss`: it was repaired.
    pub(super) fn forget(&self, loss: &Loss) {
        let (from, to) = (loss.lost.from, loss.lost.to);
        self.known.borrow_mut().retain(|_, known| known.lost.from < from || to < known.lost.to);
    }

    /// Forgets what concerns only records before `start`: their segments are gone.
    pub fn forget_before(&self, start: Offset) {
        self.known.borrow_mut().retain(|_, loss| loss.lost.to > start);
    }

    /// Remembers a loss. `false` if it was known, or part of one that was.
    fn remember(&self, loss: &Loss) -> bool {
        let (from, to) = (loss.lost.from, loss.lost.to);
        let mut known = self.known.borrow_mut();
        if known.range(..=from).next_back().is_some_and(|(_, other)| to <= other.lost.to) {
            return false;
        }
        // Whoever began to read elsewhere may have seen a part of it.
        known.retain(|first, other| *first < from || other.lost.to > to);
        if known.len() < REMEMBERED_MAX {
            known.insert(from, loss.clone());
        }
        true
    }
}

impl<R: Runtime> Log<R> {
    /// Takes over what an earlier opening of the log knew to be lost; some of it may be gone.
    pub(crate) fn remember(&self, losses: Vec<Loss>) {
        let end = self.end_offset.get();
        let is_here = |loss: &Loss| loss.lost.to <= end && loss.lost.from < loss.lost.to;
        losses.into_iter().filter(is_here).for_each(|loss| _ = self.losses.remember(&loss));
    }

    /// Notes what was found damaged in `segment`: once in the log of the server and in the metrics.
    pub(super) fn report_loss(&self, segment: &Segment<R>, lost: Lost) -> Loss {
        let loss = Loss { file: segment.path.clone(), lost };
        // What was deleted while somebody read it is no loss.
        if self.holds(segment.base_offset()) && loss.lost.from < loss.lost.to && self.losses.remember(&loss) {
            let error = loss.error();
            tracing::error!(partition = %self.partition, %error, "stored records are lost; the others stay readable");
            let metrics: &CoreMetrics = &self.context.metrics;
            metrics.damages_found.add(1);
            metrics.records_lost.add(loss.lost.to.0 - loss.lost.from.0);
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(from: u64, to: u64) -> Loss {
        let reason = "because".to_owned();
        let lost = Lost { position: from, end_position: to, from: Offset(from), to: Offset(to), reason };
        Loss { file: "/f".into(), lost }
    }

    #[test]
    fn a_loss_is_remembered_once_also_when_parts_of_it_are_seen_before_or_after() {
        let losses = Losses::default();
        assert!(losses.remember(&loss(10, 20)));
        assert!(!losses.remember(&loss(10, 20)) && !losses.remember(&loss(12, 15)));
        assert!(losses.remember(&loss(5, 25)), "it was known in part only");
        assert_eq!(losses.all().len(), 1);
        assert!(losses.remember(&loss(30, 31)));
        let at = |offset| losses.at(Offset(offset)).map(|loss| loss.lost.from.0);
        assert_eq!([4, 5, 24, 25, 30, 31].map(at), [None, Some(5), Some(5), None, Some(30), None]);
        let any = |from, to| losses.any_in(Offset(from), Offset(to));
        let spans = [(0, 5), (0, 6), (24, 30), (25, 30), (25, 31), (31, 40)];
        assert_eq!(spans.map(|(from, to)| any(from, to)), [false, true, true, false, true, false]);
        losses.forget_before(Offset(25));
        assert_eq!(losses.all(), [loss(30, 31)]);
    }

    #[test]
    fn a_log_full_of_damage_takes_bounded_memory() {
        let losses = Losses::default();
        for at in 0..2 * REMEMBERED_MAX as u64 {
            assert!(losses.remember(&loss(2 * at, 2 * at + 1)));
        }
        assert_eq!(losses.all().len(), REMEMBERED_MAX);
    }

    #[test]
    fn of_what_an_earlier_opening_knew_to_be_lost_only_records_that_are_still_there_are_remembered() {
        use crate::{
            log::fixture::{append_each, batch_of, context, open},
            runtime::sim::{Sim, SimConfig},
        };
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append_each(&log, &batch_of(300), 0..10).await;
            log.remember(vec![loss(1, 3), loss(5, 5), loss(8, 10), loss(9, 11), loss(20, 21)]);
            assert_eq!(log.losses().all(), [loss(1, 3), loss(8, 10)]);
        };
        sim.block_on(&cores[0], story, 100_000).unwrap();
    }

    #[test]
    fn a_loss_takes_the_place_of_those_within_it_and_of_no_other() {
        let losses = Losses::default();
        for known in [loss(10, 20), loss(22, 24), loss(25, 30), loss(31, 35)] {
            assert!(losses.remember(&known));
        }
        assert!(losses.remember(&loss(15, 30)));
        assert_eq!(losses.all(), [loss(10, 20), loss(15, 30), loss(31, 35)]);
        losses.forget(&loss(10, 30));
        assert_eq!(losses.all(), [loss(31, 35)], "what reaches further is not forgotten with it");
    }

    #[test]
    fn a_loss_is_counted_once_and_not_at_all_if_it_costs_no_record_or_its_segment_is_gone() {
        use crate::{
            log::fixture::{append_each, batch_of, context, open},
            runtime::sim::{Sim, SimConfig},
        };
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let context = context(&cores[0], 512);
        let story = async move {
            let log = open(&context).await.log;
            append_each(&log, &batch_of(300), 0..10).await;
            assert!(log.losses().is_empty());
            let segment = log.active();
            for (from, to) in [(3, 5), (3, 5), (7, 7)] {
                log.report_loss(&segment, loss(from, to).lost);
            }
            let header = crate::log::segment::SegmentHeader { base_offset: Offset(8), ..segment.header };
            log.report_loss(&Segment::planned(&log.dir, header), loss(8, 9).lost);
            assert_eq!((context.metrics.damages_found.get(), context.metrics.records_lost.get()), (1, 2));
            assert!(!log.losses().is_empty() && log.losses().all().len() == 1);
        };
        sim.block_on(&cores[0], story, 100_000).unwrap();
    }
}

//! Where reigns begin in the log of a replica, as its segments tell: each begins a segment ([`Log::append`]), so the
//! headers of the sealed ones say it, one block of each, and the batches of the last one, which an opening reads
//! anyway.

use super::{Log, LogFault, last_segment::Damage, recovery::LOOKS, segment::SegmentHeader};
use crate::{
    limits::SEGMENT_HEADER_BYTES,
    record::check_stored_header,
    runtime::{File, OpenMode, Runtime},
    types::{LeaderEpoch, Offset},
};

/// Reigns and the offsets of their first records, ascending; no reign is there twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reigns(Vec<(LeaderEpoch, Offset)>);

impl Reigns {
    /// The batch at `at`, which follows those that were noted, is of `epoch`.
    pub fn note(&mut self, epoch: LeaderEpoch, at: Offset) {
        if self.0.last().is_none_or(|(last, _)| *last != epoch) {
            self.0.push((epoch, at));
        }
    }

    /// Notes what stands behind all that was noted.
    fn follow(&mut self, other: &Reigns) {
        other.0.iter().for_each(|(epoch, at)| self.note(*epoch, *at));
    }

    /// Each with the offset where it begins.
    pub fn beginnings(&self) -> &[(LeaderEpoch, Offset)] {
        &self.0
    }

    /// Those of a log that begins at `start`.
    fn from(mut self, start: Offset) -> Reigns {
        let behind = self.0.partition_point(|(_, first)| *first <= start);
        self.0.drain(..behind.saturating_sub(1));
        if let Some((_, first)) = self.0.first_mut() {
            *first = (*first).max(start);
        }
        self
    }
}

impl<R: Runtime> Log<R> {
    /// The reigns of the records from `start` on, if the batches of the last segment are of those of `last`. And why
    /// that cannot be known: whoever compares logs by reigns must not go by half of them.
    pub(super) async fn reigns(&self, start: Offset, last: &Reigns) -> Result<(Reigns, Option<Damage>), LogFault> {
        let segments = self.segments.borrow().clone();
        let sealed = segments.split_last().map_or(&[][..], |(_, sealed)| sealed);
        let mut reigns = Reigns::default();
        let mut damage = None;
        for segment in sealed {
            let fault = |error| LogFault::unread("reading", &segment.path, &error);
            let file = self.context.runtime.open(&segment.path, OpenMode::Existing).await.map_err(fault)?;
            let mut first = Err(String::new());
            for _ in 0..LOOKS {
                let block = file.read_at(0, 2 * SEGMENT_HEADER_BYTES as usize).await.map_err(fault)?;
                first = first_reign(&block, segment.base_offset());
                if first.is_ok() {
                    break;
                }
            }
            match first {
                Ok(epoch) => reigns.note(epoch, segment.base_offset()),
                Err(reason) => {
                    let path = segment.path.clone();
                    damage.get_or_insert(Damage { case: 'E', path, position: 0, reason });
                }
            }
        }
        reigns.follow(last);
        Ok((reigns.from(start), damage))
    }
}

/// The reign of the first batch of the segment with this `beginning`, as its header says, or else the batch itself.
fn first_reign(beginning: &[u8], base_offset: Offset) -> Result<LeaderEpoch, String> {
    let reason = match SegmentHeader::decode(beginning) {
        Ok(header) => return Ok(header.leader_epoch),
        Err(error) => error.to_string(),
    };
    let batch = beginning.get(SEGMENT_HEADER_BYTES as usize..).map(check_stored_header);
    match batch {
        Some(Ok(batch)) if batch.base_offset == base_offset => Ok(batch.leader_epoch),
        _ => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reigns(noted: &[(u32, u64)]) -> Reigns {
        let mut reigns = Reigns::default();
        noted.iter().for_each(|(epoch, at)| reigns.note(LeaderEpoch(*epoch), Offset(*at)));
        reigns
    }

    #[test]
    fn a_reign_is_noted_once_and_a_log_begins_within_one() {
        let all = [(2, 0), (2, 5), (3, 10), (3, 12), (7, 20)];
        let from = |start| {
            let found = reigns(&all).from(Offset(start));
            found.0.into_iter().map(|(epoch, at)| (epoch.0, at.0)).collect::<Vec<_>>()
        };
        assert_eq!(from(0), [(2, 0), (3, 10), (7, 20)]);
        assert_eq!(from(9), [(2, 9), (3, 10), (7, 20)]);
        assert_eq!(from(10), [(3, 10), (7, 20)]);
        assert_eq!(from(25), [(7, 25)]);
        assert_eq!(Reigns::default().from(Offset(5)), Reigns::default());
        let mut first = reigns(&all[..3]);
        first.follow(&reigns(&all[3..]));
        assert_eq!(first, reigns(&all));
    }

    #[test]
    fn behind_a_damaged_header_only_the_first_batch_of_the_segment_tells_its_reign() {
        use crate::{
            log::fixture::batch_of,
            record::{ServerFields, stamp},
            types::Incarnation,
        };
        let mut beginning = vec![9; SEGMENT_HEADER_BYTES as usize];
        beginning.extend_from_slice(&batch_of(300));
        let (base_offset, leader_epoch) = (Offset(70), LeaderEpoch(5));
        let fields = ServerFields { base_offset, durable_hint: Offset(0), leader_epoch, incarnation: Incarnation(1) };
        stamp(&mut beginning[SEGMENT_HEADER_BYTES as usize..], fields);
        assert_eq!(first_reign(&beginning, Offset(70)), Ok(LeaderEpoch(5)));
        assert!(first_reign(&beginning, Offset(71)).is_err(), "it is another segment's");
    }
}

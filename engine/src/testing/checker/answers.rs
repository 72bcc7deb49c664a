//! C5 and C6: what answers must show, and must not.

use super::{Evidence, Judge, Rule};
use crate::{
    testing::history::{Answered, AppendSent},
    types::{Offset, PartitionId},
};

impl Judge<'_> {
    /// The offset after the last record of `partition` that everybody who asks now must see.
    pub(super) fn acked_end(&self, partition: PartitionId) -> Offset {
        self.partitions.get(&partition).map_or(Offset(0), |state| state.acked_end)
    }

    /// An append was acknowledged at `base`; `acked_before` is what was acknowledged when it was sent.
    pub(super) fn placed(&mut self, append: &AppendSent, base: Offset, acked_before: Option<Offset>) {
        let state = self.partitions.entry(append.partition).or_default();
        state.acked_end = state.acked_end.max(base.advance(append.records.len() as u64));
        if let Some(acked_end) = acked_before.filter(|acked_end| base < *acked_end) {
            self.broken(Rule::C5, append.partition, base, Evidence::BeforeEarlier { acked_end });
        }
    }

    /// An answer told how far a partition reaches, and perhaps gave records.
    pub(super) fn answered(&mut self, answer: &Answered) {
        let Answered { observer, asked, partition, high_watermark, gave } = *answer;
        let acked_end = self.asked.remove(&asked.0).unwrap_or(Offset(0));
        if high_watermark < acked_end {
            self.broken(Rule::C5, partition, high_watermark, Evidence::NotSeen { acked_end });
        }
        if let Some((from, count)) = gave {
            let shown_end = from.advance(count);
            if count == 0 && from < acked_end {
                self.broken(Rule::C5, partition, from, Evidence::NotSeen { acked_end });
            }
            if count > 0 && shown_end > high_watermark {
                self.broken(Rule::C6, partition, high_watermark, Evidence::ShownTooEarly { shown_end });
            }
        }
        let state = self.partitions.entry(partition).or_default();
        let before = state.seen_end.insert(observer, high_watermark);
        if let Some(before) = before.filter(|before| high_watermark < *before) {
            self.broken(Rule::C6, partition, high_watermark, Evidence::WentBack { before });
        }
    }
}

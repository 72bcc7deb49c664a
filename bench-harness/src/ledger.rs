//! What one writer knows of its own writes to one partition: which sequences were acknowledged, and at which offsets.
//!
//! Acknowledged stretches whose offsets go on without a gap are one [`Run`], so that a run of millions of records by a
//! single writer takes a few bytes.

use std::ops::Range;

/// A stretch of acknowledged records: sequence and offset grow together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first sequence.
    pub sequence: u64,
    /// The offset of the first sequence.
    pub offset: u64,
    /// How many records, at least 1.
    pub count: u64,
}

impl Run {
    /// The sequences.
    pub fn sequences(&self) -> Range<u64> {
        self.sequence..self.sequence + self.count
    }

    /// The offsets.
    pub fn offsets(&self) -> Range<u64> {
        self.offset..self.offset + self.count
    }
}

/// One writer's book on one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    next: u64,
    acked: Vec<Run>,
    refused: Vec<Range<u64>>,
}

impl Ledger {
    /// Takes the next `count` sequences for a write that is sent now.
    pub fn begin(&mut self, count: u64) -> Range<u64> {
        let first = self.next;
        self.next += count;
        first..self.next
    }

    /// The write was acknowledged: its first record lies at `offset`.
    pub fn acknowledged(&mut self, sequences: Range<u64>, offset: u64) {
        let run = Run { sequence: sequences.start, offset, count: sequences.end - sequences.start };
        match self.acked.last_mut() {
            Some(last) if last.sequences().end == run.sequence && last.offsets().end == offset => {
                last.count += run.count
            }
            _ => self.acked.push(run),
        }
    }

    /// The write was refused: it must not be found. A write whose outcome is unknown is simply never entered.
    pub fn refused(&mut self, sequences: Range<u64>) {
        self.refused.push(sequences);
    }

    /// The sequences that were refused.
    pub fn refusals(&self) -> &[Range<u64>] {
        &self.refused
    }

    /// The acknowledged runs by sequence. Acks may come in any order.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = self.acked.clone();
        runs.sort_unstable();
        runs
    }

    /// The offset after the last acknowledged record; 0 if there is none.
    pub fn end_offset(&self) -> u64 {
        self.acked.iter().map(|run| run.offsets().end).max().unwrap_or(0)
    }

    /// How many records were acknowledged.
    pub fn acknowledged_count(&self) -> u64 {
        self.acked.iter().map(|run| run.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_that_follow_each_other_are_one_run_and_others_are_not() {
        let mut ledger = Ledger::default();
        let writes: Vec<_> = (0..4).map(|_| ledger.begin(10)).collect();
        ledger.acknowledged(writes[0].clone(), 100);
        ledger.acknowledged(writes[1].clone(), 110);
        ledger.acknowledged(writes[3].clone(), 140);
        ledger.acknowledged(writes[2].clone(), 120);
        let runs = ledger.runs();
        assert_eq!(runs[0], Run { sequence: 0, offset: 100, count: 20 });
        assert_eq!(runs.len(), 3);
        assert_eq!((ledger.end_offset(), ledger.acknowledged_count()), (150, 40));
    }
}

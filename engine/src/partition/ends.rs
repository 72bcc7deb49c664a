//! The six offsets that say where a partition stands. This is their only owner: one setter, which asserts order and
//! monotony.

use crate::{
    testing::bug::{PlantedBug, planted},
    types::Offset,
};

/// Where a partition begins and how far it is visible, synced, written, received and assigned. Of a partition with
/// several copies the three in the middle say how far a write quorum of them is.
///
/// Always `log_start ≤ high_watermark ≤ log_end` and `durable_end ≤ written_end ≤ received_end ≤ log_end`; none of them
/// ever goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    log_start: Offset,
    high_watermark: Offset,
    durable_end: Offset,
    written_end: Offset,
    received_end: Offset,
    log_end: Offset,
}

/// Which end moves, see [`Ends::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first offset.
    LogStart,
    /// The offset after the last record that consumers may see.
    HighWatermark,
    /// The offset after the last record that survives a loss of power.
    Durable,
    /// The offset after the last record that the device has taken.
    Written,
    /// The offset after the last record that is in enough memories.
    Received,
    /// The offset that the next record gets.
    Log,
}

impl Ends {
    /// A partition just recovered: everything it has was synced and is visible.
    pub fn recovered(log_start: Offset, log_end: Offset) -> Self {
        Ends::new(log_start, log_end, log_end)
    }

    /// A copy just recovered, one of several: nothing is known yet of what the others have.
    pub fn of_copy(log_start: Offset, log_end: Offset) -> Self {
        Ends::new(log_start, log_start, log_end)
    }

    fn new(log_start: Offset, known: Offset, log_end: Offset) -> Self {
        assert!(log_start <= log_end, "log start {log_start} is beyond the log end {log_end}");
        Ends { log_start, high_watermark: known, durable_end: known, written_end: known, received_end: known, log_end }
    }

    /// The first offset.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// The offset after the last visible record.
    pub fn high_watermark(&self) -> Offset {
        if planted(PlantedBug::ShowBeforeAck) {
            return self.high_watermark.max(self.written_end);
        }
        self.high_watermark
    }

    /// The offset after the last synced record.
    pub fn durable_end(&self) -> Offset {
        self.durable_end
    }

    /// The offset after the last written record.
    pub fn written_end(&self) -> Offset {
        self.written_end
    }

    /// The offset after the last record that is in enough memories.
    pub fn received_end(&self) -> Offset {
        self.received_end
    }

    /// The offset that the next record gets.
    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    /// Moves one end forward, or leaves it. What is durable was written, and what was written was received: a sync
    /// moves those ends too.
    ///
    /// Panics if it would go back or break the order: both are our bugs, and carrying on would lie to clients.
    pub fn advance(&mut self, end: End, to: Offset) {
        let before = *self;
        match end {
            End::LogStart => self.log_start = to,
            End::HighWatermark => self.high_watermark = to,
            End::Durable => {
                self.durable_end = to;
                self.written_end = self.written_end.max(to);
                self.received_end = self.received_end.max(to);
            }
            End::Written => {
                self.written_end = to;
                self.received_end = self.received_end.max(to);
            }
            End::Received => self.received_end = to,
            End::Log => self.log_end = to,
        }
        let monotone = self.log_start >= before.log_start
            && self.high_watermark >= before.high_watermark
            && self.durable_end >= before.durable_end
            && self.written_end >= before.written_end
            && self.received_end >= before.received_end
            && self.log_end >= before.log_end;
        assert!(monotone, "{end:?} would go back to {to}: {before:?}");
        let ordered = self.log_start <= self.high_watermark
            && self.high_watermark <= self.log_end
            && self.durable_end <= self.written_end
            && self.written_end <= self.received_end
            && self.received_end <= self.log_end;
        assert!(ordered, "moving {end:?} to {to} breaks the order: {before:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_says_that_the_records_were_written_too() {
        let mut ends = Ends::recovered(Offset(0), Offset(0));
        ends.advance(End::Log, Offset(5));
        ends.advance(End::Durable, Offset(3));
        assert_eq!(ends.written_end(), Offset(3));
    }

    #[test]
    fn the_log_may_begin_where_its_visible_records_end() {
        let mut ends = Ends::recovered(Offset(0), Offset(5));
        ends.advance(End::LogStart, Offset(5));
        assert_eq!((ends.log_start(), ends.high_watermark()), (Offset(5), Offset(5)));
    }

    #[test]
    #[should_panic(expected = "breaks the order")]
    fn the_log_does_not_begin_with_records_that_nobody_may_see() {
        let mut ends = Ends::recovered(Offset(0), Offset(5));
        ends.advance(End::Log, Offset(7));
        ends.advance(End::LogStart, Offset(6));
    }

    #[test]
    #[should_panic(expected = "would go back")]
    fn a_beginning_does_not_come_back() {
        Ends::recovered(Offset(3), Offset(5)).advance(End::LogStart, Offset(2));
    }

    #[test]
    #[should_panic(expected = "would go back")]
    fn no_end_goes_back() {
        Ends::recovered(Offset(0), Offset(5)).advance(End::Written, Offset(4));
    }

    #[test]
    #[should_panic(expected = "breaks the order")]
    fn nothing_is_written_that_was_not_appended() {
        Ends::recovered(Offset(0), Offset(5)).advance(End::Written, Offset(6));
    }
}

//! One broken history for each way in which a promise can be broken, and whole ones that pass.

use super::{
    super::history::{Fault, StartSeen, TrimSent},
    *,
};
use crate::types::{LogUid, PartitionIndex};

const P: PartitionId = PartitionId { log: LogUid(1), index: PartitionIndex(0) };

fn tag(sequence: u64) -> RecordTag {
    RecordTag { producer: 7, sequence, crc: 1000 + sequence as u32 }
}

fn send(history: &mut History, ack: AckLevel, sequences: &[u64]) -> AppendId {
    history.send(AppendSent { partition: P, ack, records: sequences.iter().map(|s| tag(*s)).collect() })
}

fn acked(history: &mut History, level: AckLevel, base: u64, sequences: &[u64]) {
    let id = send(history, level, sequences);
    history.end(id, AppendOutcome::Acked { level, base: Offset(base) });
}

fn placed(from: u64, tags: &[RecordTag]) -> Vec<(Offset, RecordTag)> {
    (from..).map(Offset).zip(tags.iter().copied()).collect()
}

fn read(history: &mut History, from: u64, sequences: &[u64]) {
    let records = placed(from, &sequences.iter().map(|s| tag(*s)).collect::<Vec<_>>());
    history.read(ReadSeen { observer: 0, partition: P, from: Offset(from), records });
}

fn finish(history: &mut History, sequences: &[u64]) {
    let records = placed(0, &sequences.iter().map(|s| tag(*s)).collect::<Vec<_>>());
    history.finish(FinalRead { partition: P, start: Offset(0), records });
}

fn rules(history: &History) -> Vec<Rule> {
    judge(history).iter().map(|violation| violation.rule).collect()
}

#[test]
fn a_history_of_all_outcomes_and_faults_passes() {
    let mut h = History::new();
    acked(&mut h, AckLevel::Durable, 0, &[1, 2]);
    acked(&mut h, AckLevel::Written, 2, &[3]);
    acked(&mut h, AckLevel::Received, 3, &[4]);
    read(&mut h, 1, &[2, 3, 4]);
    let refused = send(&mut h, AckLevel::Durable, &[5]);
    h.end(refused, AppendOutcome::Refused);
    send(&mut h, AckLevel::Durable, &[6]);
    h.fault(Fault::Kill);
    // The received one is gone, and the unknown one has taken its place.
    read(&mut h, 2, &[3, 6]);
    acked(&mut h, AckLevel::Written, 4, &[7]);
    h.fault(Fault::PowerLoss);
    acked(&mut h, AckLevel::Durable, 4, &[8]);
    finish(&mut h, &[1, 2, 3, 6, 8]);
    assert_eq!(judge(&h), []);
}

#[test]
fn c1_a_durable_record_that_is_gone_after_a_loss_of_power() {
    let mut h = History::new();
    acked(&mut h, AckLevel::Durable, 0, &[1, 2]);
    h.fault(Fault::PowerLoss);
    finish(&mut h, &[1]);
    let violation = Violation { rule: Rule::C1, partition: P, offset: Offset(1), evidence: Evidence::Missing(tag(2)) };
    assert_eq!(judge(&h), [violation]);
}

#[test]
fn c1_a_written_record_survives_a_kill_but_need_not_survive_a_loss_of_power() {
    for (fault, fine) in [(Fault::Kill, false), (Fault::PowerLoss, true)] {
        let mut h = History::new();
        acked(&mut h, AckLevel::Written, 0, &[1]);
        h.fault(fault);
        finish(&mut h, &[]);
        assert_eq!(judge(&h).is_empty(), fine, "{fault:?}");
    }
}

#[test]
fn c1_what_lies_before_a_durable_record_is_durable_too() {
    let mut h = History::new();
    acked(&mut h, AckLevel::Received, 0, &[1]);
    acked(&mut h, AckLevel::Durable, 1, &[2]);
    h.fault(Fault::PowerLoss);
    let other = send(&mut h, AckLevel::Received, &[3]);
    h.end(other, AppendOutcome::Unknown);
    finish(&mut h, &[3, 2]);
    assert_eq!(rules(&h)[0], Rule::C1);
}

#[test]
fn c1_another_record_or_other_bytes_at_an_acknowledged_offset() {
    let mut h = History::new();
    acked(&mut h, AckLevel::Durable, 0, &[1]);
    send(&mut h, AckLevel::Durable, &[2]);
    read(&mut h, 0, &[2]);
    assert_eq!(rules(&h), [Rule::C1]);

    let mut h = History::new();
    acked(&mut h, AckLevel::Durable, 0, &[1]);
    let altered = RecordTag { crc: 5, ..tag(1) };
    h.finish(FinalRead { partition: P, start: Offset(0), records: placed(0, &[altered]) });
    let found = judge(&h);
    assert_eq!(found[0].evidence, Evidence::Altered { sent: tag(1), found: altered });
}

#[test]
fn c2_a_refused_record_is_seen() {
    let mut h = History::new();
    let id = send(&mut h, AckLevel::Durable, &[1]);
    h.end(id, AppendOutcome::Refused);
    finish(&mut h, &[1]);
    assert_eq!(rules(&h), [Rule::C2]);
}

#[test]
fn c2_an_unknown_record_is_stored_twice() {
    let mut h = History::new();
    send(&mut h, AckLevel::Durable, &[1]);
    finish(&mut h, &[1, 1]);
    assert_eq!(rules(&h), [Rule::C2]);
}

#[test]
fn c2_an_unknown_record_that_a_new_life_showed_is_gone_in_the_next() {
    let mut h = History::new();
    send(&mut h, AckLevel::Received, &[1]);
    h.fault(Fault::Kill);
    read(&mut h, 0, &[1]);
    h.fault(Fault::PowerLoss);
    finish(&mut h, &[]);
    assert_eq!(rules(&h), [Rule::C2]);
}

#[test]
fn c3_a_gap_two_contents_and_a_record_that_nobody_sent() {
    let mut h = History::new();
    acked(&mut h, AckLevel::Durable, 0, &[1, 2]);
    let records = vec![(Offset(0), tag(1)), (Offset(2), tag(2))];
    h.read(ReadSeen { observer: 0, partition: P, from: Offset(0), records });
    assert_eq!(rules(&h), [Rule::C3, Rule::C4], "a gap, and the record behind it is at two places");

    let mut h = History::new();
    send(&mut h, AckLevel::Durable, &[1]);
    send(&mut h, AckLevel::Durable, &[2]);
    read(&mut h, 0, &[1]);
    read(&mut h, 0, &[2]);
    assert_eq!(rules(&h), [Rule::C3]);

    let mut h = History::new();
    finish(&mut h, &[9]);
    assert_eq!(judge(&h)[0].evidence, Evidence::NeverSent(tag(9)));
}

#[test]
fn c4_a_producers_records_change_places_or_appear_twice() {
    let mut h = History::new();
    send(&mut h, AckLevel::Durable, &[1]);
    send(&mut h, AckLevel::Durable, &[2]);
    finish(&mut h, &[2, 1]);
    assert_eq!(rules(&h), [Rule::C4]);

    let mut h = History::new();
    acked(&mut h, AckLevel::Durable, 0, &[1]);
    finish(&mut h, &[1, 1]);
    assert_eq!(rules(&h), [Rule::C4]);
}

#[test]
fn c4_a_batch_that_was_sent_again_is_stored_twice_and_the_copy_is_seen_by_a_reader() {
    let mut h = History::new();
    let id = send(&mut h, AckLevel::Durable, &[1]);
    h.end(id, AppendOutcome::Acked { level: AckLevel::Durable, base: Offset(0) });
    h.resend(id);
    read(&mut h, 0, &[1, 1]);
    assert_eq!(rules(&h), [Rule::C4]);
    let mut h = History::new();
    let id = send(&mut h, AckLevel::Durable, &[1]);
    h.end(id, AppendOutcome::Acked { level: AckLevel::Durable, base: Offset(0) });
    h.end(id, AppendOutcome::Acked { level: AckLevel::Durable, base: Offset(1) });
    assert_eq!(rules(&h), [Rule::C4], "it was acknowledged at two offsets");
}

#[test]
fn an_append_that_is_sent_again_may_be_stored_by_the_new_life_as_weakly_as_it_asked() {
    let mut h = History::new();
    let id = send(&mut h, AckLevel::Received, &[1]);
    h.fault(Fault::PowerLoss);
    h.resend(id);
    read(&mut h, 0, &[1]);
    h.fault(Fault::PowerLoss);
    finish(&mut h, &[]);
    assert_eq!(judge(&h), []);
}

#[test]
fn c8_an_append_is_stored_elsewhere_than_it_expects_and_two_win_the_same_offset() {
    let conditional = |h: &mut History, sequence, offset| {
        let id = send(h, AckLevel::Durable, &[sequence]);
        h.expect(id, Offset(offset));
        id
    };
    let acked = |h: &mut History, id, base| {
        h.end(id, AppendOutcome::Acked { level: AckLevel::Durable, base: Offset(base) });
    };
    let mut h = History::new();
    let id = conditional(&mut h, 1, 0);
    acked(&mut h, id, 1);
    assert_eq!(rules(&h), [Rule::C8]);
    let mut h = History::new();
    conditional(&mut h, 1, 5);
    read(&mut h, 0, &[1]);
    assert_eq!(judge(&h)[0].evidence, Evidence::Misplaced { expected: Offset(5) });
    let mut h = History::new();
    let (first, second) = (conditional(&mut h, 1, 0), conditional(&mut h, 2, 0));
    acked(&mut h, first, 0);
    acked(&mut h, second, 0);
    assert_eq!(judge(&h)[0].evidence, Evidence::TwoWinners { first, second });
    assert_eq!(rules(&h)[0], Rule::C8);
}

#[test]
fn an_offset_may_be_won_again_when_a_fault_took_the_first_winner() {
    let mut h = History::new();
    for (sequence, level) in [(1, AckLevel::Received), (2, AckLevel::Durable)] {
        let id = send(&mut h, level, &[sequence]);
        h.expect(id, Offset(0));
        h.end(id, AppendOutcome::Acked { level, base: Offset(0) });
        h.fault(Fault::PowerLoss);
    }
    finish(&mut h, &[2]);
    assert_eq!(judge(&h), []);
}

fn told(history: &mut History, observer: u32, start: u64, due: u64) {
    history.start(StartSeen { observer, partition: P, start: Offset(start), due: Offset(due) });
}

fn five_records() -> History {
    let mut h = History::new();
    acked(&mut h, AckLevel::Durable, 0, &[1, 2, 3, 4, 5]);
    h
}

#[test]
fn a_trim_takes_what_lies_before_it_and_nothing_else() {
    let mut h = five_records();
    h.trim(TrimSent { partition: P, before: Offset(2) });
    told(&mut h, 0, 2, 0);
    h.fault(Fault::PowerLoss);
    read(&mut h, 3, &[4, 5]);
    let left = |from, sequences: &[u64]| {
        let records = placed(from, &sequences.iter().map(|s| tag(*s)).collect::<Vec<_>>());
        FinalRead { partition: P, start: Offset(from), records }
    };
    let mut fine = h.clone();
    fine.finish(left(2, &[3, 4, 5]));
    assert_eq!(judge(&fine), []);
    h.finish(left(2, &[3, 4]));
    assert_eq!(rules(&h), [Rule::C1], "a record behind the trim is gone");
}

#[test]
fn c6_the_beginning_goes_back_in_what_is_told_in_what_is_read_and_in_the_end() {
    for which in 0..3 {
        let mut h = five_records();
        h.trim(TrimSent { partition: P, before: Offset(3) });
        told(&mut h, 0, 3, 0);
        h.fault(Fault::PowerLoss);
        match which {
            0 => told(&mut h, 0, 2, 0),
            1 => read(&mut h, 2, &[3, 4, 5]),
            _ => finish(&mut h, &[1, 2, 3, 4, 5]),
        }
        assert_eq!(rules(&h), [Rule::C6], "{which}");
    }
    // Another observer was not told.
    let mut h = five_records();
    h.trim(TrimSent { partition: P, before: Offset(3) });
    told(&mut h, 1, 3, 0);
    read(&mut h, 2, &[3, 4, 5]);
    assert_eq!(judge(&h), []);
}

#[test]
fn c1_more_is_given_up_than_was_asked_for_and_than_was_due() {
    for (start, due, fine) in [(2, 0, true), (3, 0, false), (3, 3, true), (4, 3, false)] {
        let mut h = five_records();
        h.trim(TrimSent { partition: P, before: Offset(2) });
        told(&mut h, 0, start, due);
        assert_eq!(rules(&h), if fine { vec![] } else { vec![Rule::C1] }, "{start}, {due}");
    }
}

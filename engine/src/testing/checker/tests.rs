//! One broken history for each way in which a promise can be broken, and whole ones that pass.

use super::{
    super::history::{Answered, AskId, Failed, Fault, Spoiled, StartSeen, TrimSent},
    *,
};
use crate::{
    error::RequestError,
    types::{LogUid, PartitionIndex},
};

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
    let violation =
        Violation { rule: Rule::C1, partition: Some(P), offset: Offset(1), evidence: Evidence::Missing(tag(2)) };
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
    let id = send(&mut h, AckLevel::Received, &[1]);
    h.end(id, AppendOutcome::Unknown);
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

fn answer(history: &mut History, asked: AskId, high_watermark: u64, gave: Option<(u64, u64)>) {
    let gave = gave.map(|(from, count)| (Offset(from), count));
    let high_watermark = Offset(high_watermark);
    history.note(Event::Answered(Answered { observer: 0, asked, partition: P, high_watermark, gave }));
}

fn failed(history: &mut History, asked: Option<AskId>, error: RequestError) {
    history.note(Event::Failed(Failed { partition: Some(P), asked, error }));
}

#[test]
fn c5_an_append_is_placed_before_one_that_was_acknowledged_before_it_was_sent() {
    for sent_first in [true, false] {
        let mut h = History::new();
        let early = sent_first.then(|| send(&mut h, AckLevel::Received, &[2]));
        acked(&mut h, AckLevel::Durable, 5, &[1]);
        let id = early.unwrap_or_else(|| send(&mut h, AckLevel::Received, &[2]));
        h.end(id, AppendOutcome::Acked { level: AckLevel::Received, base: Offset(3) });
        assert_eq!(rules(&h), if sent_first { vec![] } else { vec![Rule::C5] });
    }
}

#[test]
fn c5_an_answer_does_not_show_what_was_acknowledged_before_the_question() {
    for (asked_first, high_watermark, gave, fine) in [
        (true, 0, None, true),
        (false, 0, None, false),
        (false, 1, None, true),
        (false, 1, Some((0, 0)), false),
        (false, 1, Some((0, 1)), true),
    ] {
        let mut h = History::new();
        let early = asked_first.then(|| h.ask(P));
        acked(&mut h, AckLevel::Received, 0, &[1]);
        let asked = early.unwrap_or_else(|| h.ask(P));
        answer(&mut h, asked, high_watermark, gave);
        assert_eq!(rules(&h), if fine { vec![] } else { vec![Rule::C5] }, "{asked_first} {high_watermark} {gave:?}");
    }
}

#[test]
fn c6_a_watermark_goes_back_for_an_observer_unless_a_fault_took_what_was_below_it() {
    for (fault, fine) in [(None, false), (Some(Fault::Kill), false), (Some(Fault::PowerLoss), true)] {
        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[1]);
        acked(&mut h, AckLevel::Written, 1, &[2]);
        let asked = h.ask(P);
        answer(&mut h, asked, 2, None);
        fault.into_iter().for_each(|fault| h.fault(fault));
        // Asked of nothing that was noted, so that only the observer's memory counts.
        answer(&mut h, AskId(usize::MAX), 1, None);
        assert_eq!(rules(&h), if fine { vec![] } else { vec![Rule::C6] }, "{fault:?}");
    }
}

#[test]
fn c6_a_record_is_shown_above_the_watermark() {
    let mut h = History::new();
    let asked = h.ask(P);
    answer(&mut h, asked, 4, Some((2, 3)));
    assert_eq!(rules(&h), [Rule::C6]);
}

#[test]
fn c7_a_record_that_was_shown_before_its_ack_is_gone_or_replaced() {
    for replaced in [true, false] {
        let mut h = History::new();
        send(&mut h, AckLevel::Durable, &[1]);
        send(&mut h, AckLevel::Durable, &[2]);
        read(&mut h, 0, &[1]);
        h.fault(Fault::PowerLoss);
        finish(&mut h, if replaced { &[2] } else { &[] });
        assert_eq!(rules(&h), [Rule::C7], "replaced: {replaced}");
    }
}

#[test]
fn c11_an_error_needs_a_cause_in_the_same_life() {
    let full = || RequestError::DiskFull { path: "/d".into(), free_bytes: 0, reserve_bytes: 0 };
    let mut h = History::new();
    failed(&mut h, None, full());
    h.note(Event::Cause(Cause::DriveFull));
    h.fault(Fault::Kill);
    assert_eq!(rules(&h), []);
    failed(&mut h, None, full());
    assert_eq!(rules(&h), [Rule::C11]);
    let mut h = History::new();
    h.note(Event::NotStarted("the catalogue is damaged".to_owned()));
    assert_eq!(rules(&h), [Rule::C11]);
}

#[test]
fn c11_an_error_about_a_range_carries_the_true_range() {
    for (offset, end, fine) in [(9, 3, true), (9, 2, false), (2, 3, false)] {
        let mut h = History::new();
        acked(&mut h, AckLevel::Received, 0, &[1, 2, 3]);
        let asked = h.ask(P);
        let error = RequestError::OffsetOutOfRange { offset: Offset(offset), start: Offset(0), end: Offset(end) };
        failed(&mut h, Some(asked), error);
        assert_eq!(rules(&h), if fine { vec![] } else { vec![Rule::C11] }, "{offset} beyond {end}");
    }
}

#[test]
fn what_a_drive_spoiled_may_be_missing_and_its_neighbours_may_not() {
    let spoil = |h: &mut History, newest| {
        let spoiled = Spoiled { partition: P, from: Offset(1), to: Offset(2), newest };
        h.note(Event::Spoiled(spoiled));
    };
    let corrupt =
        RequestError::Corrupt { file: "f".into(), position: 0, from: Offset(1), to: Offset(2), reason: String::new() };
    for (found, newest, expected) in [
        (&[0, 2][..], false, vec![]),
        (&[0][..], false, vec![Rule::C1]),
        (&[0][..], true, vec![]),
        (&[2][..], true, vec![Rule::C3, Rule::C1]),
    ] {
        let mut h = History::new();
        acked(&mut h, AckLevel::Durable, 0, &[0, 1, 2]);
        spoil(&mut h, newest);
        failed(&mut h, None, corrupt.clone());
        let records = found.iter().map(|at| (Offset(*at), tag(*at))).collect();
        h.finish(FinalRead { partition: P, start: Offset(0), records });
        assert_eq!(rules(&h), expected, "{found:?} of 0, 1, 2 without 1; newest: {newest}");
    }
}

#[test]
fn c12_after_healing_nothing_takes_long_and_nothing_is_left_in_use() {
    let mut h = History::new();
    let long = Event::Took(Duration::from_secs(61));
    h.note(long.clone());
    h.note(Event::InUse { what: "bytes", amount: 5, allowed: 5 });
    h.note(Event::Healed);
    assert_eq!(rules(&h), []);
    h.note(long);
    h.note(Event::InUse { what: "bytes", amount: 6, allowed: 5 });
    assert_eq!(rules(&h), [Rule::C12, Rule::C12]);
}

//! Whether a measurement went well. What makes a row *invalid* means that its numbers say more of the harness or of
//! the machine than of the server; a *doubt* is to be kept in mind. Pure.

use std::time::Duration;

use super::Trust;
use crate::{drive::Outcome, measuring::rounded};

/// A request sent so much later than it could have been is late.
const LATE: Duration = Duration::from_millis(1);
/// This fraction of requests may be late: the 99th percentile then still is the server's.
const LATE_FRACTION_MAX: f64 = 0.01;
/// A thread that uses more of its CPU than this has no time left to keep a schedule.
const BUSY_MAX: f64 = 0.97;
/// The hypervisor may take this much of a CPU before it is worth a word, in percent.
const STOLEN_PERCENT_MAX: f64 = 2.0;
/// Other programs may use this much of a CPU before they are worth a word, in percent.
const STRANGERS_PERCENT_MAX: f64 = 10.0;
/// This fraction of requests may be held up for want of a place in flight.
const HELD_UP_FRACTION_MAX: f64 = 0.01;

/// Judges what came of a row.
pub fn judge(outcome: &Outcome, open_loop: bool) -> Trust {
    let mut trust = Trust {
        usage: outcome.usage.clone(),
        load_busy_percent: outcome.busy.iter().map(|busy| rounded(busy * 100.0)).collect(),
        ..Trust::default()
    };
    trust.doubts.extend(outcome.missed.iter().cloned());
    schedule(outcome, open_loop, &mut trust);
    saturation(outcome, open_loop, &mut trust);
    drops(outcome, &mut trust);
    neighbours(outcome, &mut trust);
    trust
}

fn schedule(outcome: &Outcome, open_loop: bool, trust: &mut Trust) {
    if !open_loop {
        return;
    }
    let measured = &outcome.tally.main;
    let late = measured.slip.fraction_above(LATE);
    if late > LATE_FRACTION_MAX {
        trust.invalid.push(format!(
            "schedule slip: the harness sent {:.1} % of the requests more than 1 ms late although there was a place",
            late * 100.0
        ));
    }
    let held_up = measured.held_up as f64 / measured.requests.max(1) as f64;
    if held_up > HELD_UP_FRACTION_MAX {
        trust.doubts.push(format!(
            "the server was behind: {:.1} % of the requests waited for a place in flight before they were sent",
            held_up * 100.0
        ));
    }
    if outcome.unsent > 0 {
        let unsent = outcome.unsent;
        trust.doubts.push(format!("the server takes less than was offered: {unsent} requests were never sent"));
    }
}

fn saturation(outcome: &Outcome, open_loop: bool, trust: &mut Trust) {
    let Some(busiest) = outcome.busy.iter().copied().reduce(f64::max).filter(|busy| *busy > BUSY_MAX) else { return };
    let percent = busiest * 100.0;
    match open_loop {
        true => trust.invalid.push(format!(
            "generator saturated: a thread of the load needed {percent:.0} % of its CPU: its own queue is in the times"
        )),
        // A closed loop has no schedule to miss. What it shows is a lower bound then.
        false => trust.doubts.push(format!(
            "generator saturated: a thread of the load needed {percent:.0} % of its CPU; the server may take more"
        )),
    }
}

fn drops(outcome: &Outcome, trust: &mut Trust) {
    let Some(usage) = &outcome.usage else { return };
    let (received, sent) = (usage.udp_errors.receive_buffer, usage.udp_errors.send_buffer);
    if received + sent > 0 {
        trust.invalid.push(format!(
            "UDP drops: this machine's kernel dropped {received} datagrams at full receive buffers and {sent} at full \
             send buffers"
        ));
    }
    if usage.server_datagrams_dropped > 0.0 {
        trust.invalid.push(format!("UDP drops: the server dropped {} datagrams", usage.server_datagrams_dropped));
    }
}

fn neighbours(outcome: &Outcome, trust: &mut Trust) {
    let Some(usage) = &outcome.usage else { return };
    let stolen = usage.cpus.iter().map(|cpu| cpu.stolen_percent).fold(0.0, f64::max);
    if stolen > STOLEN_PERCENT_MAX {
        trust.doubts.push(format!("the hypervisor took {stolen:.1} % of a CPU away"));
    }
    // Without the server's own account, and with a server elsewhere, nobody can say whose work it was.
    let Some(server_cpu_s) = usage.server_cpu_s else { return };
    let all: f64 = usage.cpus.iter().map(|cpu| cpu.busy_percent).sum();
    let ours = (server_cpu_s + usage.load_cpu_s) / outcome.elapsed.as_secs_f64().max(1e-9) * 100.0;
    if outcome.is_server_local && all - ours > STRANGERS_PERCENT_MAX {
        trust.doubts.push(format!("other programs used {:.0} % of a CPU", all - ours));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::usage::{CpuUse, UdpErrors, Usage};

    fn outcome() -> Outcome {
        let mut outcome = Outcome { busy: vec![0.5], elapsed: Duration::from_secs(10), ..Outcome::default() };
        let measured = &mut outcome.tally.main;
        measured.requests = 1000;
        (0..1000).for_each(|_| measured.slip.record(Duration::from_micros(50)));
        outcome
    }

    fn with_usage(usage: Usage) -> Outcome {
        Outcome { usage: Some(usage), is_server_local: true, ..outcome() }
    }

    #[test]
    fn a_measurement_that_went_well_is_valid() {
        let trust = judge(&with_usage(Usage::default()), true);
        assert!(trust.invalid.is_empty() && trust.doubts.is_empty(), "{trust:?}");
    }

    #[test]
    fn slip_saturation_and_drops_make_it_invalid() {
        let mut late = outcome();
        (0..20).for_each(|_| late.tally.main.slip.record(Duration::from_millis(5)));
        let saturated = Outcome { busy: vec![0.3, 0.99], ..outcome() };
        let udp_errors = UdpErrors { receive_buffer: 1, send_buffer: 0 };
        let dropped = with_usage(Usage { udp_errors, ..Usage::default() });
        for (outcome, word) in [(late, "slip"), (saturated, "saturated"), (dropped, "UDP drops")] {
            let trust = judge(&outcome, true);
            assert!(trust.invalid.len() == 1 && trust.invalid[0].contains(word), "{trust:?}");
        }
    }

    #[test]
    fn a_saturated_closed_loop_is_a_lower_bound_and_has_no_schedule_to_miss() {
        let mut outcome = Outcome { busy: vec![1.0], ..outcome() };
        (0..1000).for_each(|_| outcome.tally.main.slip.record(Duration::from_secs(1)));
        let trust = judge(&outcome, false);
        assert!(trust.invalid.is_empty() && trust.doubts.len() == 1, "{trust:?}");
    }

    #[test]
    fn neighbours_and_a_server_that_is_behind_are_doubts() {
        let cpus = vec![CpuUse { busy_percent: 100.0, stolen_percent: 5.0 }; 2];
        let usage = Usage { cpus, load_cpu_s: 5.0, server_cpu_s: Some(9.0), ..Usage::default() };
        let mut outcome = with_usage(usage);
        (outcome.tally.main.held_up, outcome.unsent) = (100, 7);
        let trust = judge(&outcome, true);
        let all = trust.doubts.join("; ");
        for part in ["10.0 % of the requests waited", "7 requests", "took 5.0 %", "other programs used 60 %"] {
            assert!(all.contains(part), "{all}");
        }
        assert!(trust.invalid.is_empty(), "{trust:?}");
    }
}

//! The table that people read. Says with every number what it was measured with: without that it means nothing.

use std::fmt::Write;

use super::{Report, Row};
use crate::{
    floor::{Floor, Rate},
    measuring::Latencies,
};

/// The report as text.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    preface(report, &mut text);
    let titles = ["row", "records/s", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "verdict"];
    let mut lines = vec![titles.map(str::to_owned).to_vec()];
    for row in &report.rows {
        lines.extend(row.target.map(|_| target_line(row)));
        lines.push(measured_line(row));
    }
    if !report.rows.is_empty() {
        text.push_str(&align(&lines));
    }
    for row in &report.rows {
        describe(row, &mut text);
    }
    if !report.conclusions.is_empty() {
        let _ = write!(text, "\n{}\n", report.conclusions.join("\n"));
    }
    if report.rows.iter().any(|row| row.p999_us.is_none()) {
        text.push_str("\n-  fewer than 100 samples lie beyond this percentile: run longer to know it\n");
    }
    text
}

fn preface(report: &Report, text: &mut String) {
    let (host, server) = (&report.host, &report.server);
    let virtualised = if host.virtualised { ", virtual" } else { "" };
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "host    {}, {} CPUs ({}){virtualised}, {} memory, {}, governor {}, load {:.2}",
        host.cpu,
        host.cpus,
        host.cpuset,
        bytes(host.memory_bytes),
        host.kernel,
        host.governor,
        host.load_average
    );
    let _ = writeln!(text, "        file system {}; drive {}", host.file_system, host.drive);
    let _ = writeln!(
        text,
        "server  dlog {}, {} cores, profile {}, ack {}",
        server.version, server.cores, server.profile, server.ack
    );
    let _ = writeln!(text, "        {}", server.guarantee);
    if !server.copies.is_empty() {
        let _ = writeln!(text, "        copies: {}", server.copies);
    }
    for missing in &report.missing {
        let _ = writeln!(text, "        not known: {missing}");
    }
    if let Some(floor) = &report.floor {
        floor_lines(floor, text);
    }
    text.push('\n');
}

fn floor_lines(floor: &Floor, text: &mut String) {
    let rate = |rate: &Rate| {
        let p50 = rate.times.as_ref().and_then(|times| times.p50_us);
        format!("{}/s, p50 {} µs", count(rate.per_s), microseconds(p50))
    };
    if let Some(device) = &floor.device {
        let bulk = device.bulk_bytes_per_s / 1e6;
        let (write, sync, dsync) = (rate(&device.write), rate(&device.write_fdatasync), rate(&device.write_dsync));
        let _ = writeln!(
            text,
            "floor   drive: 4 KiB written {write}; with fdatasync {sync}; O_DSYNC {dsync}; 1 MiB {bulk:.0} MB/s"
        );
    }
    if let Some(quic) = &floor.quic {
        let (echo, many, bulk) = (rate(&quic.echo), count(quic.pipelined_per_s), quic.bulk_bytes_per_s / 1e6);
        let _ = writeln!(text, "        raw QUIC: echo {echo}; 256 in flight {many}/s; bulk {bulk:.0} MB/s");
    }
    for missing in &floor.missing {
        let _ = writeln!(text, "        not measured: {missing}");
    }
}

fn target_line(row: &Row) -> Vec<String> {
    let Some(target) = row.target else { return Vec::new() };
    let mut line = vec![format!("{} target", row.name), count(target.records_per_s), String::new()];
    line.extend([format!("{:.0}", target.p50_us), format!("{:.0}", target.p99_us)]);
    line.extend([String::new(), String::new(), String::new()]);
    line
}

fn measured_line(row: &Row) -> Vec<String> {
    let name = if row.target.is_some() { format!("{} measured", row.name) } else { row.name.clone() };
    vec![
        name,
        count(row.records_per_s),
        format!("{:.1}", row.bytes_per_s / 1e6),
        microseconds(row.p50_us),
        microseconds(row.p99_us),
        microseconds(row.p999_us),
        format!("{:.1}", row.max_us),
        verdict(row),
    ]
}

/// A time, or that it is not known.
pub fn microseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// What a row came to, in few words.
pub fn verdict(row: &Row) -> String {
    if !row.is_clean() {
        return "FAILED".to_owned();
    }
    if !row.is_valid() {
        return "INVALID".to_owned();
    }
    let Some(target) = row.target else { return "clean".to_owned() };
    let parts = [(target.throughput_met, "throughput"), (target.p50_met, "p50"), (target.p99_met, "p99")];
    let missed: Vec<_> = parts.iter().filter(|(met, _)| !met).map(|(_, name)| *name).collect();
    if missed.is_empty() { "met".to_owned() } else { format!("misses {}", missed.join(", ")) }
}

fn describe(row: &Row, text: &mut String) {
    let pace = match (row.offered_per_s, &row.arrivals) {
        (Some(rate), Some(arrivals)) => format!("open loop, {arrivals} arrivals, {} records/s offered", count(rate)),
        _ => "CLOSED LOOP: service times under full load, which hide stalls".to_owned(),
    };
    let _ = write!(
        text,
        "\n{}: {pace}\n  values of {} B, keys {}, codec {}, batch {}, at most {} in flight on each of {} connections, \
         {} partitions, ack {}\n  {} requests in {:.1} s, {} records read back and checked: {} errors, {} lost, \
         {} duplicated, {} reordered, {} corrupt\n",
        row.name,
        row.data.sizes,
        row.data.keys,
        row.data.codec,
        row.batch,
        row.in_flight,
        row.connections,
        row.partitions,
        row.ack,
        row.requests,
        row.seconds,
        row.records_checked,
        row.errors,
        row.lost,
        row.duplicated,
        row.reordered,
        row.corrupt
    );
    if row.expired > 0 {
        let _ = writeln!(text, "  {} acknowledged records were expired: retention deleted them", row.expired);
    }
    times(text, "response time", row.response.as_ref());
    times(text, "service time", row.service.as_ref());
    times(text, "end-to-end time", row.end_to_end.as_ref());
    if let Some(reads) = &row.reads {
        let (rate, megabytes) = (count(reads.records_per_s), reads.bytes_per_s / 1e6);
        let _ = writeln!(text, "  reads beside the writes: {rate} records/s, {megabytes:.1} MB/s");
        times(text, "  their response time", reads.response.as_ref());
        times(text, "  their service time", reads.service.as_ref());
    }
    if let Some(stages) = &row.stages {
        let parts: Vec<_> = stages.stages.iter().map(|stage| format!("{} {:.1}", stage.name, stage.mean_us)).collect();
        let _ = writeln!(text, "  means of stages in µs: {}; most: {}", parts.join(", "), stages.bottleneck);
    }
    if row.held_up + row.unsent > 0 {
        let (held_up, unsent) = (row.held_up, row.unsent);
        let _ = writeln!(text, "  {held_up} requests were due before there was a place in flight, {unsent} never sent");
    }
    believe(row, text);
    for (message, count) in &row.messages {
        let _ = writeln!(text, "  {count} × {message}");
    }
    for defect in &row.defects {
        let _ = writeln!(text, "  {defect}");
    }
}

fn believe(row: &Row, text: &mut String) {
    if let Some(share) = &row.floor_share {
        let _ = writeln!(text, "  {} % of what this machine can do: {}", share.percent, share.of);
    }
    if let Some(spread) = row.spread_percent {
        let rates: Vec<_> = row.repeats.iter().map(|repeat| count(repeat.records_per_s)).collect();
        let (runs, rates) = (rates.len(), rates.join(", "));
        let _ = writeln!(text, "  medians of {runs} runs: {rates} records/s, spread {spread:.0} %");
    }
    if let Some(usage) = &row.trust.usage {
        let cpus: Vec<_> = usage.cpus.iter().map(|cpu| format!("{:.0}", cpu.busy_percent)).collect();
        let _ = write!(text, "  CPUs {} % busy; load {:.2} s", cpus.join(", "), usage.load_cpu_s);
        if let (Some(server), Some(each)) = (usage.server_cpu_s, usage.server_cpu_s_per_million_records) {
            let _ = write!(text, ", server {server:.2} s of CPU, {each:.3} s for a million records");
        }
        if let Some(busiest) = row.trust.load_busy_percent.iter().copied().reduce(f64::max) {
            let _ = write!(text, "; the busiest thread of the load needed {busiest:.0} % of its CPU");
        }
        text.push('\n');
        if let Some(shares) = &usage.server_cpu_shares {
            let parts: Vec<_> = shares.named().iter().map(|(name, percent)| format!("{name} {percent:.0} %")).collect();
            let _ = writeln!(text, "  the server's CPU time: {}", parts.join(", "));
        }
    }
    for invalid in &row.trust.invalid {
        let _ = writeln!(text, "  INVALID  {invalid}");
    }
    for doubt in &row.trust.doubts {
        let _ = writeln!(text, "  doubt    {doubt}");
    }
}

fn times(text: &mut String, what: &str, latencies: Option<&Latencies>) {
    let Some(latencies) = latencies else { return };
    let percentiles = [
        ("p50", latencies.p50_us),
        ("p90", latencies.p90_us),
        ("p99", latencies.p99_us),
        ("p99.9", latencies.p999_us),
        ("p99.99", latencies.p9999_us),
    ];
    let known = percentiles.into_iter().filter_map(|(name, value)| Some(format!("{name} {:.1}", value?)));
    let known: Vec<_> = known.collect();
    let (known, max) = (known.join(", "), latencies.max_us);
    let comma = if known.is_empty() { "" } else { ", " };
    let _ = writeln!(text, "  {what} in µs: {known}{comma}max {max:.1}");
}

fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            last if last + 1 == columns => cell.clone(),
            _ => format!("{cell:>width$}"),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// A number in three digits and a letter.
pub fn count(number: f64) -> String {
    match number {
        n if n >= 999.5e6 => format!("{:.2}G", n / 1e9),
        n if n >= 999.5e3 => format!("{:.2}M", n / 1e6),
        n if n >= 9_995.0 => format!("{:.0}K", n / 1e3),
        n if n >= 999.5 => format!("{:.1}K", n / 1e3),
        n => format!("{n:.0}"),
    }
}

fn bytes(number: u64) -> String {
    format!("{:.1} GiB", number as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{report::tests::row, suites::seed_table::Target};

    #[test]
    fn numbers_are_short() {
        for (number, text) in [(0.0, "0"), (999.0, "999"), (1234.0, "1.2K"), (123_456.0, "123K"), (5.0e6, "5.00M")] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn a_verdict_names_what_was_missed_and_a_failure_is_no_miss() {
        let target = Target { records_per_s: 1e9, p50_us: 1e9, p99_us: 1.0 };
        assert_eq!(verdict(&row(10_000, Some(target))), "misses throughput, p99");
        let mut failed = row(10_000, Some(target));
        failed.lost = 1;
        assert_eq!(verdict(&failed), "FAILED");
        assert_eq!(verdict(&row(1, None)), "clean");
    }

    #[test]
    fn a_percentile_that_means_little_is_not_printed() {
        let line = measured_line(&row(1000, None));
        assert!(line[3] != "-" && line[4] == "-" && line[5] == "-", "{line:?}");
    }

    #[test]
    fn a_closed_loop_is_labelled_and_the_kinds_of_time_are_apart() {
        let mut row = row(1000, None);
        row.response = row.service.clone();
        let mut text = String::new();
        describe(&row, &mut text);
        for part in ["CLOSED LOOP", "response time in µs", "service time in µs"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("p99 ") && !text.contains("end-to-end"), "{text}");
    }
}

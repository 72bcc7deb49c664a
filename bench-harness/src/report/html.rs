//! The report as one HTML file: everything is in it, nothing is fetched from anywhere.

use std::{error::Error, fmt::Write};

use super::{
    Report, Row,
    human::{self, count},
    plots,
};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}\
table{border-collapse:collapse;width:100%}th,td{padding:.3rem .5rem;border-bottom:1px solid #ddd;text-align:right}\
th:first-child,td:first-child{text-align:left}figure{margin:1rem 0}figcaption{font-weight:600}\
svg{max-width:100%;height:auto}pre{overflow:auto;background:#f5f5f5;padding:.8rem;font-size:12px}\
.bad{color:#b00020;font-weight:600}.doubt{color:#8a5a00}";

const TITLES: &str = "<table><tr><th>row</th><th>records/s</th><th>MB/s</th><th>p50 µs</th><th>p99 µs</th>\
<th>p99.9 µs</th><th>max µs</th><th>% of the floor</th><th>verdict</th></tr>";

/// The page.
///
/// Errors: a figure cannot be drawn.
pub fn page(report: &Report) -> Result<String, Box<dyn Error>> {
    let mut html = String::new();
    let title = escaped(&format!("bench-harness {}", report.command.get(1).map_or("", String::as_str)));
    write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>{title}</title><style>{STYLE}</style>\
         </head><body><h1>{title}</h1><p><code>{}</code></p>",
        escaped(&report.command.join(" "))
    )?;
    table(report, &mut html)?;
    for conclusion in &report.conclusions {
        write!(html, "<p><strong>{}</strong></p>", escaped(conclusion))?;
    }
    if report.rows.len() > 1 {
        figure(&mut html, "Latency against throughput, all rows", &plots::throughput(report)?)?;
    }
    for row in &report.rows {
        one_row(row, &mut html)?;
    }
    write!(html, "<h2>All of it in words</h2><pre>{}</pre>", escaped(&human::table(report)))?;
    let config = serde_json::to_string_pretty(&report.server.config)?;
    details(&mut html, "The server's configuration", &config)?;
    if let Some(status) = &report.status {
        details(&mut html, "The server's status before the rows", &serde_json::to_string_pretty(status)?)?;
    }
    details(&mut html, "The machine", &serde_json::to_string_pretty(&report.host)?)?;
    html.push_str("</body></html>\n");
    Ok(html)
}

fn table(report: &Report, html: &mut String) -> Result<(), Box<dyn Error>> {
    let server = &report.server;
    write!(
        html,
        "<p>{}, {} CPUs, {}; dlog {}, profile {}, ack {}: {}</p>{TITLES}",
        escaped(&report.host.cpu),
        report.host.cpus,
        escaped(&report.host.kernel),
        escaped(&server.version),
        escaped(&server.profile),
        server.ack,
        escaped(&server.guarantee)
    )?;
    for row in &report.rows {
        let verdict = human::verdict(row);
        let class = if row.is_clean() && row.is_valid() { "" } else { " class=\"bad\"" };
        let share = row.floor_share.as_ref().map_or_else(|| "-".to_owned(), |share| format!("{}", share.percent));
        write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{share}</td>\
             <td{class}>{}</td></tr>",
            escaped(&row.name),
            count(row.records_per_s),
            row.bytes_per_s / 1e6,
            human::microseconds(row.p50_us),
            human::microseconds(row.p99_us),
            human::microseconds(row.p999_us),
            row.max_us,
            escaped(&verdict)
        )?;
    }
    html.push_str("</table>");
    Ok(())
}

fn one_row(row: &Row, html: &mut String) -> Result<(), Box<dyn Error>> {
    let pace = if row.open_loop { "open loop" } else { "closed loop: service times, which hide stalls" };
    write!(html, "<h2>{} ({pace})</h2>", escaped(&row.name))?;
    for invalid in &row.trust.invalid {
        write!(html, "<p class=\"bad\">Invalid: {}</p>", escaped(invalid))?;
    }
    for doubt in &row.trust.doubts {
        write!(html, "<p class=\"doubt\">Doubt: {}</p>", escaped(doubt))?;
    }
    if let Some(share) = &row.floor_share {
        write!(html, "<p>{} % of what this machine can do: {}</p>", share.percent, escaped(&share.of))?;
    }
    figure(html, "Latency by percentile, as far as 100 samples lie beyond", &plots::percentiles(row)?)?;
    if !row.intervals.is_empty() {
        figure(html, "Latency over time", &plots::over_time(row)?)?;
    }
    if let Some(stages) = &row.stages {
        let caption = format!("Where the time of a write went; most of it: {}", stages.bottleneck);
        figure(html, &caption, &plots::stages(stages)?)?;
    }
    if row.trust.usage.is_some() {
        figure(html, "CPUs", &plots::cpus(row)?)?;
    }
    if let Some(shares) = row.trust.usage.as_ref().and_then(|usage| usage.server_cpu_shares.as_ref()) {
        figure(html, "What the server's CPU time went into", &plots::cpu_shares(shares)?)?;
    }
    Ok(())
}

fn figure(html: &mut String, caption: &str, svg: &str) -> Result<(), Box<dyn Error>> {
    write!(html, "<figure><figcaption>{}</figcaption>{svg}</figure>", escaped(caption))?;
    Ok(())
}

fn details(html: &mut String, summary: &str, text: &str) -> Result<(), Box<dyn Error>> {
    write!(html, "<details><summary>{}</summary><pre>{}</pre></details>", escaped(summary), escaped(text))?;
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        measuring::intervals::Interval,
        report::{
            StageShown, StagesShown,
            tests::{report, row},
        },
        trust::usage::{CpuUse, Usage},
    };

    fn full_report() -> Report {
        let mut row = row(100_000, None);
        row.response = row.service.clone();
        let interval = |n| Interval {
            begin_s: f64::from(n),
            seconds: 1.0,
            p50_us: Some(10.0),
            max_us: 99.0,
            ..Interval::default()
        };
        row.intervals = (0..10).map(interval).collect();
        let cpus = vec![CpuUse { busy_percent: 70.0, stolen_percent: 3.0 }; 2];
        row.trust.usage = Some(Usage { cpus, ..Usage::default() });
        row.trust.doubts.push("a <script> & \"quotes\"".to_owned());
        let stage = |name: &str| StageShown { name: name.to_owned(), mean_us: 5.0, ..StageShown::default() };
        let stages = ["receive", "queue", "hop", "validate", "buffer", "disk", "ack", "network and client"].map(stage);
        row.stages = Some(StagesShown { stages: stages.to_vec(), bottleneck: "disk".to_owned() });
        let other = Row { name: "<b>&".to_owned(), records_per_s: 5.0, p99_us: Some(100_000.0), ..row.clone() };
        report(vec![row, other])
    }

    /// No browser is needed to know that a browser can read it: it is well-formed XML with all figures in it.
    #[test]
    fn the_page_is_well_formed_and_has_every_figure() {
        let html = page(&full_report()).unwrap();
        let body = html.trim_start_matches("<!DOCTYPE html>\n");
        let document = roxmltree::Document::parse(body).unwrap_or_else(|error| panic!("{error}"));
        let tagged = |name: &'static str| document.descendants().filter(move |node| node.has_tag_name(name));
        let in_svg = |name: &'static str| document.descendants().filter(move |node| node.tag_name().name() == name);
        assert_eq!(in_svg("svg").count(), 1 + 2 * 4, "figures");
        assert!(in_svg("polyline").count() >= 2 * 4 && in_svg("text").count() > 40);
        assert_eq!(tagged("h2").count(), 3);
        let texts: Vec<_> = in_svg("text").filter_map(|node| node.text()).map(str::trim).collect();
        for label in ["percentile", "seconds", "records a second", "CPU 1", "response time"] {
            assert!(texts.contains(&label), "{label}: {texts:?}");
        }
    }

    #[test]
    fn nothing_comes_from_outside_and_no_text_becomes_markup() {
        let html = page(&full_report()).unwrap();
        let links = html.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "src=", "href=", "<script", "@import", "url("] {
            assert!(!links.contains(outside), "{outside}");
        }
        assert!(html.contains("a &lt;script&gt; &amp; &quot;quotes&quot;"));
    }

    #[test]
    fn a_report_of_next_to_nothing_is_a_page_too() {
        let html = page(&report(vec![Row::default()])).unwrap();
        assert!(roxmltree::Document::parse(html.trim_start_matches("<!DOCTYPE html>\n")).is_ok(), "{html}");
        assert!(page(&report(vec![])).is_ok());
    }
}

//! The figures of the HTML report, as SVG without anything from outside.

use std::{error::Error, ops::Range};

use plotters::{coord::Shift, prelude::*};

use super::{Report, Row, StagesShown};
use crate::{measuring::Latencies, trust::CpuShares};

const WIDE: (u32, u32) = (860, 320);

/// Told apart also by those who see few colours (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

type Drawn = Result<String, Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Points with the name they have in the legend.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A line chart over such ranges.
struct Chart<'a> {
    x: (&'a str, Range<f64>),
    y: (&'a str, Range<f64>),
    x_label: &'a dyn Fn(&f64) -> String,
    lines: Vec<Line>,
}

/// Latency against percentile: the axis is the number of nines, so that the tail has as much room as the rest.
pub fn percentiles(row: &Row) -> Drawn {
    let kinds =
        [("response time", &row.response), ("service time", &row.service), ("end-to-end time", &row.end_to_end)];
    let line = |(name, times): (&str, &Option<Latencies>)| {
        let curve = &times.as_ref()?.curve;
        let nines = |quantile: f64| -(1.0 - quantile).max(1e-9).log10();
        let points = curve.iter().map(|(quantile, us)| (nines(*quantile), *us)).collect();
        Some(Line { name: name.to_owned(), points })
    };
    let lines: Vec<_> = kinds.into_iter().filter_map(line).collect();
    draw(&Chart {
        x: ("percentile", range(&lines, |point| point.0)),
        y: ("µs", range(&lines, |point| point.1)),
        x_label: &|nines| percentile(*nines),
        lines,
    })
}

/// Latency over the time of the run.
pub fn over_time(row: &Row) -> Drawn {
    let line = |name: &str, of: fn(&super::Interval) -> Option<f64>| Line {
        name: name.to_owned(),
        points: row.intervals.iter().filter_map(|at| Some((at.begin_s, of(at)?))).collect(),
    };
    let lines = vec![
        line("p50", |at| at.p50_us),
        line("p99", |at| at.p99_us),
        line("max", |at| (at.max_us > 0.0).then_some(at.max_us)),
    ];
    draw(&Chart {
        x: ("seconds", 0.0..row.intervals.last().map_or(1.0, |at| at.begin_s + at.seconds)),
        y: ("µs", range(&lines, |point| point.1)),
        x_label: &|seconds| format!("{seconds:.1}"),
        lines,
    })
}

/// The latency of all rows against their throughput; a sweep is a curve with a knee.
pub fn throughput(report: &Report) -> Drawn {
    let line = |name: &str, of: fn(&Row) -> Option<f64>| Line {
        name: name.to_owned(),
        points: report.rows.iter().filter_map(|row| Some((row.records_per_s, of(row)?))).collect(),
    };
    let mut lines = vec![line("p50", |row| row.p50_us), line("p99", |row| row.p99_us)];
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let most = range(&lines, |point| point.0).end;
    draw(&Chart {
        x: ("records a second", 0.0..most),
        y: ("µs", range(&lines, |point| point.1)),
        x_label: &|records| super::human::count(*records),
        lines,
    })
}

/// How busy each CPU was.
pub fn cpus(row: &Row) -> Drawn {
    let cpus = row.trust.usage.as_ref().map(|usage| usage.cpus.as_slice()).unwrap_or_default();
    let bars = cpus.iter().enumerate().map(|(number, cpu)| {
        let name = format!("CPU {number}");
        (name, vec![("busy", cpu.busy_percent), ("stolen", cpu.stolen_percent)])
    });
    stacked(&bars.collect::<Vec<_>>(), "% of the time", 100.0)
}

/// What the server's CPU time went into.
pub fn cpu_shares(shares: &CpuShares) -> Drawn {
    stacked(&[("server".to_owned(), shares.named().to_vec())], "%", 100.0)
}

/// Where the mean of the service time went.
pub fn stages(stages: &StagesShown) -> Drawn {
    let parts = stages.stages.iter().map(|stage| (stage.name.as_str(), stage.mean_us)).collect::<Vec<_>>();
    let whole = parts.iter().map(|(_, us)| us).sum();
    stacked(&[("mean".to_owned(), parts)], "µs", whole)
}

/// The range of a coordinate over all lines, never empty.
fn range(lines: &[Line], of: fn(&(f64, f64)) -> f64) -> Range<f64> {
    let values = || lines.iter().flat_map(|line| &line.points).map(of);
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    if least < most { least..most } else { least.clamp(0.0, 1e12)..least.clamp(0.0, 1e12) + 1.0 }
}

/// The percentile of so many nines, where their number is whole: what is between has no round name.
fn percentile(nines: f64) -> String {
    match (nines - nines.round()).abs() < 1e-6 {
        true => format!("{}", rounded(100.0 * (1.0 - 10f64.powf(-nines)))),
        false => String::new(),
    }
}

/// A label of a logarithmic axis, where 1, 2 or 5 begin it: the others would stand on each other.
fn on_log_scale(value: f64) -> String {
    let leading = value / 10f64.powf((value.log10() + 1e-9).floor());
    match value >= 1.0 && [1.0, 2.0, 5.0].iter().any(|begin| (leading - begin).abs() < 1e-6) {
        true => super::human::count(value),
        false => String::new(),
    }
}

/// To five digits behind the point, which hides what floating point adds.
fn rounded(percent: f64) -> f64 {
    (percent * 1e5).round() / 1e5
}

fn draw(chart: &Chart<'_>) -> Drawn {
    let mut svg = String::new();
    {
        let area: Area<'_> = SVGBackend::with_string(&mut svg, WIDE).into_drawing_area();
        area.fill(&WHITE)?;
        // Latencies span orders of magnitude.
        let y = (chart.y.1.start.max(0.1) * 0.8..chart.y.1.end.max(0.2) * 1.2).log_scale();
        let mut drawing = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(72)
            .build_cartesian_2d(chart.x.1.clone(), y)?;
        drawing
            .configure_mesh()
            .x_desc(chart.x.0)
            .y_desc(chart.y.0)
            .x_label_formatter(chart.x_label)
            .y_label_formatter(&|us: &f64| on_log_scale(*us))
            .light_line_style(WHITE)
            .draw()?;
        for (line, colour) in chart.lines.iter().filter(|line| !line.points.is_empty()).zip(COLOURS) {
            let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(2);
            drawing
                .draw_series(series)?
                .label(line.name.as_str())
                .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], colour.filled()));
        }
        let (background, frame) = (WHITE.mix(0.85), BLACK.mix(0.4));
        drawing
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(background)
            .border_style(frame)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// Horizontal bars, each of parts beside each other.
fn stacked(bars: &[(String, Vec<(&str, f64)>)], unit: &str, whole: f64) -> Drawn {
    const BAR: i32 = 26;
    const LEFT: i32 = 80;
    let (width, legend) = (WIDE.0 as i32 - LEFT - 20, 30);
    let height = bars.len() as i32 * (BAR + 8) + legend + 24;
    let mut svg = String::new();
    {
        let area: Area<'_> = SVGBackend::with_string(&mut svg, (WIDE.0, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let font = ("sans-serif", 13).into_font();
        for (number, (name, parts)) in bars.iter().enumerate() {
            let top = 8 + number as i32 * (BAR + 8);
            area.draw(&Text::new(name.clone(), (8, top + 7), font.clone()))?;
            area.draw(&Rectangle::new([(LEFT, top), (LEFT + width, top + BAR)], BLACK.mix(0.06).filled()))?;
            let mut left = f64::from(LEFT);
            for ((_, value), colour) in parts.iter().zip(COLOURS.iter().cycle()) {
                let right = left + value / whole.max(1e-9) * f64::from(width);
                area.draw(&Rectangle::new([(left as i32, top), (right as i32, top + BAR)], colour.filled()))?;
                left = right;
            }
        }
        let mut x = LEFT;
        let top = height - legend;
        for ((name, value), colour) in bars.iter().take(1).flat_map(|bar| &bar.1).zip(COLOURS.iter().cycle()) {
            let text = if bars.len() == 1 { format!("{name} {value:.1}") } else { (*name).to_owned() };
            area.draw(&Rectangle::new([(x, top), (x + 12, top + 12)], colour.filled()))?;
            area.draw(&Text::new(text.clone(), (x + 16, top), font.clone()))?;
            x += 30 + text.chars().count() as i32 * 7;
        }
        area.draw(&Text::new(unit.to_owned(), (8, top), font))?;
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_labels_and_none_that_stand_on_each_other() {
        let shown: Vec<_> = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 4.5].into_iter().map(percentile).collect();
        assert_eq!(shown, ["0", "", "90", "99", "99.9", "99.99", ""]);
        let shown: Vec<_> = [0.5, 1.0, 3.0, 20.0, 90.0, 500.0, 1000.0, 7000.0].into_iter().map(on_log_scale).collect();
        assert_eq!(shown, ["", "1", "", "20", "", "500", "1.0K", ""]);
    }
}

//! Writes distributions in the forms that other tools read: HdrHistogram's percentile table (`.hgrm`), its interval
//! log (`.hlog`), and CSV.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

use hdrhistogram::serialization::{
    V2DeflateSerializer,
    interval_log::{IntervalLogWriterBuilder, Tag},
};

use super::{Times, intervals::Interval};

/// Steps of the percentile table in each halving of the distance to 100 %, as HdrHistogram's own tools have.
const TICKS: u32 = 5;

/// The percentile table: values in milliseconds, as HdrHistogram's plotter reads it. It holds the whole distribution,
/// also percentiles with few samples beyond them; the counts say how many.
pub fn write_hgrm(times: &Times, out: &mut impl Write) -> io::Result<()> {
    let histogram = times.histogram();
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS) {
        total += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64 / 1e6, step.quantile_iterated_to());
        match quantile < 1.0 {
            true => writeln!(out, "{value:12.6} {quantile:14.12} {total:10} {:14.2}", 1.0 / (1.0 - quantile))?,
            false => writeln!(out, "{value:12.6} {quantile:14.12} {total:10}")?,
        }
    }
    let (mean, deviation) = (histogram.mean() / 1e6, histogram.stdev() / 1e6);
    writeln!(out, "#[Mean    = {mean:12.6}, StdDeviation   = {deviation:12.6}]")?;
    let (max, count) = (histogram.max() as f64 / 1e6, histogram.len());
    writeln!(out, "#[Max     = {max:12.6}, Total count    = {count:12}]")
}

/// The interval log, version 1.3, with values in nanoseconds and maxima in milliseconds.
pub fn write_hlog(tag: &str, begin: SystemTime, intervals: &[Interval], out: &mut impl Write) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment("nanoseconds; interval maxima in milliseconds").with_start_time(begin).with_base_time(begin);
    builder.with_max_value_divisor(1e6);
    let mut log = builder.begin_log_with(out, &mut serializer)?;
    let seconds = |seconds: f64| Duration::from_secs_f64(seconds.max(0.0));
    for interval in intervals {
        let times = Times::unpacked(&interval.packed);
        let written =
            log.write_histogram(times.histogram(), seconds(interval.begin_s), seconds(interval.seconds), Tag::new(tag));
        written.map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(())
}

/// The stretches as CSV.
pub fn write_csv(intervals: &[Interval], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "begin_s,seconds,records_per_s,errors,p50_us,p99_us,max_us")?;
    let cell = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for at in intervals {
        let (p50, p99) = (cell(at.p50_us), cell(at.p99_us));
        let (begin, seconds, rate) = (at.begin_s, at.seconds, at.records_per_s);
        writeln!(out, "{begin},{seconds},{rate},{},{p50},{p99},{}", at.errors, at.max_us)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::{
        Deserializer,
        interval_log::{IntervalLogIterator, LogEntry},
    };

    use super::*;

    fn times() -> Times {
        let mut times = Times::default();
        (1..=1000).for_each(|n| times.record(Duration::from_micros(n)));
        times
    }

    #[test]
    fn the_percentile_table_has_the_columns_and_the_footer_that_plotters_read() {
        let mut text = Vec::new();
        write_hgrm(&times(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let median = text.lines().find(|line| line.split_whitespace().nth(1) == Some("0.500000000000")).unwrap();
        let columns: Vec<f64> = median.split_whitespace().map(|column| column.parse().unwrap()).collect();
        assert!((columns[0] - 0.5).abs() < 0.001 && columns[2] == 500.0 && columns[3] == 2.0, "{median}");
        assert!(text.contains("#[Mean    =     0.50") && text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn the_interval_log_is_read_back_by_the_library() {
        let interval = |begin_s| Interval { begin_s, seconds: 1.0, packed: times().packed(), ..Interval::default() };
        let mut text = Vec::new();
        write_hlog("response", SystemTime::now(), &[interval(0.0), interval(1.0)], &mut text).unwrap();
        let mut entries = IntervalLogIterator::new(&text).filter_map(|entry| match entry.unwrap() {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let (first, second) = (entries.next().unwrap(), entries.next().unwrap());
        assert_eq!((first.tag().unwrap().as_str(), second.start_timestamp()), ("response", Duration::from_secs(1)));
        let bytes = base64_decoded(second.encoded_histogram());
        let histogram: hdrhistogram::Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!(histogram.len(), 1000);
    }

    #[test]
    fn the_csv_has_a_line_for_each_stretch_and_leaves_out_what_is_not_known() {
        let mut text = Vec::new();
        let interval = Interval { begin_s: 0.5, seconds: 0.25, p50_us: Some(3.5), ..Interval::default() };
        write_csv(&[interval], &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap().lines().nth(1), Some("0.5,0.25,0,0,3.5,,0"));
    }

    fn base64_decoded(text: &str) -> Vec<u8> {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits = text.bytes().filter_map(|byte| LETTERS.iter().position(|letter| *letter == byte));
        let (mut bytes, mut gathered, mut count) = (Vec::new(), 0u32, 0);
        for six in bits {
            gathered = gathered << 6 | six as u32;
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push((gathered >> count) as u8);
            }
        }
        bytes
    }
}

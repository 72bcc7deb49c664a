//! Assertions about rows, such as `p99<1ms` or `write-single:rate>=100K`: a promise that a script can check.

use std::{fmt, str::FromStr};

use super::Row;

/// An assertion about each row, or about those whose name contains something.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    text: String,
    rows: Option<String>,
    metric: Metric,
    relation: Relation,
    bound: f64,
}

/// What is compared: times in microseconds, the rest in ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// A percentile of a kind of time.
    Time(Kind, Point),
    /// Records a second.
    Rate,
    /// Bytes of keys and values a second.
    Bytes,
    /// Requests that failed and records that were wrong.
    Errors,
}

/// A kind of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Response time, in a closed loop service time.
    Headline,
    /// From when a request was meant to be sent.
    Response,
    /// From when it was sent.
    Service,
    /// Until a consumer had it.
    EndToEnd,
}

/// A point of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The mean.
    Mean,
    /// Half.
    P50,
    /// 90 of 100.
    P90,
    /// 99 of 100.
    P99,
    /// 999 of 1000.
    P999,
    /// 9999 of 10000.
    P9999,
    /// All.
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

impl Metric {
    /// Its value in a row; `None` if it is not known.
    pub fn of(self, row: &Row) -> Option<f64> {
        match self {
            Metric::Rate => Some(row.records_per_s),
            Metric::Bytes => Some(row.bytes_per_s),
            Metric::Errors => Some((row.errors + row.lost + row.duplicated + row.reordered + row.corrupt) as f64),
            Metric::Time(Kind::Headline, Point::P50) => row.p50_us,
            Metric::Time(Kind::Headline, Point::P99) => row.p99_us,
            Metric::Time(Kind::Headline, Point::P999) => row.p999_us,
            Metric::Time(kind, point) => {
                let times = match kind {
                    Kind::Headline => row.response.as_ref().or(row.service.as_ref()),
                    Kind::Response => row.response.as_ref(),
                    Kind::Service => row.service.as_ref(),
                    Kind::EndToEnd => row.end_to_end.as_ref(),
                }?;
                match point {
                    Point::Mean => Some(times.mean_us),
                    Point::P50 => times.p50_us,
                    Point::P90 => times.p90_us,
                    Point::P99 => times.p99_us,
                    Point::P999 => times.p999_us,
                    Point::P9999 => times.p9999_us,
                    Point::Max => Some(times.max_us),
                }
            }
        }
    }
}

impl Assertion {
    /// Whether it speaks of this row.
    pub fn is_about(&self, row: &Row) -> bool {
        self.rows.as_ref().is_none_or(|part| row.name.contains(part.as_str()))
    }

    /// Whether it holds for this row. What is not known does not hold.
    pub fn holds(&self, row: &Row) -> bool {
        let Some(value) = self.metric.of(row) else { return false };
        match self.relation {
            Relation::Less => value < self.bound,
            Relation::AtMost => value <= self.bound,
            Relation::Equal => value == self.bound,
            Relation::AtLeast => value >= self.bound,
            Relation::More => value > self.bound,
        }
    }

    /// Whether enough is known of this row to say.
    pub fn is_known(&self, row: &Row) -> bool {
        self.metric.of(row).is_some()
    }

    /// What became of it in this row, in words.
    pub fn verdict(&self, row: &Row) -> String {
        let word = if self.holds(row) { "holds" } else { "FAILS" };
        let value = match (self.metric, self.metric.of(row)) {
            (_, None) => "not known: too few samples, or not measured".to_owned(),
            (Metric::Time(..), Some(value)) => format!("{value:.1} µs"),
            (_, Some(value)) => format!("{value:.0}"),
        };
        format!("{word}  {}: {} ({value})", row.name, self)
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Assertion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let forms = "such as `p99<1ms`, `service.p50<=300us`, `rate>=100K`, `errors=0`, `write-single:max<20ms`";
        let refuse = || format!("`{text}` is no assertion {forms}");
        let relations = [
            ("<=", Relation::AtMost),
            (">=", Relation::AtLeast),
            ("<", Relation::Less),
            (">", Relation::More),
            ("=", Relation::Equal),
        ];
        let (sign, relation) = *relations.iter().find(|(sign, _)| text.contains(sign)).ok_or_else(refuse)?;
        let (left, bound) = text.split_once(sign).ok_or_else(refuse)?;
        let (rows, metric) = match left.rsplit_once(':') {
            Some((rows, metric)) => (Some(rows.trim().to_owned()), metric),
            None => (None, left),
        };
        let metric = metric.trim().parse::<Metric>().map_err(|()| refuse())?;
        let bound = parse_bound(bound.trim(), metric).ok_or_else(refuse)?;
        Ok(Assertion { text: text.trim().to_owned(), rows, metric, relation, bound })
    }
}

impl FromStr for Metric {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "rate" | "records" => return Ok(Metric::Rate),
            "bytes" => return Ok(Metric::Bytes),
            "errors" => return Ok(Metric::Errors),
            _ => {}
        }
        let (kind, point) = match text.split_once('.') {
            Some(("response", point)) => (Kind::Response, point),
            Some(("service", point)) => (Kind::Service, point),
            Some(("e2e" | "end-to-end", point)) => (Kind::EndToEnd, point),
            _ => (Kind::Headline, text),
        };
        let point = match point {
            "mean" => Point::Mean,
            "p50" => Point::P50,
            "p90" => Point::P90,
            "p99" => Point::P99,
            "p999" | "p99.9" => Point::P999,
            "p9999" | "p99.99" => Point::P9999,
            "max" => Point::Max,
            _ => return Err(()),
        };
        Ok(Metric::Time(kind, point))
    }
}

/// A number with its unit: times need one, the rest may have K, M or G.
fn parse_bound(text: &str, metric: Metric) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..digits].parse::<f64>().ok()?, text[digits..].trim());
    let factor = match (metric, unit) {
        (Metric::Time(..), "ns") => 1e-3,
        (Metric::Time(..), "us" | "µs") => 1.0,
        (Metric::Time(..), "ms") => 1e3,
        (Metric::Time(..), "s") => 1e6,
        (Metric::Time(..), _) => return None,
        (_, "") => 1.0,
        (_, "K" | "k") => 1e3,
        (_, "M") => 1e6,
        (_, "G") => 1e9,
        _ => return None,
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::row;

    fn holds(text: &str) -> bool {
        text.parse::<Assertion>().unwrap_or_else(|error| panic!("{error}")).holds(&row(10_000, None))
    }

    /// The row has 10,000 requests of 10 records in 2 s, which took 10 to 20 ms.
    #[test]
    fn an_assertion_holds_or_fails_as_it_says() {
        for text in ["p99<20ms", "p50>=14.9ms", "service.p90<=20ms", "rate>=50K", "rate=50000", "errors=0", "max<0.1s"]
        {
            assert!(holds(text), "{text}");
        }
        for text in ["p99<10ms", "rate>50K", "errors>0", "bytes>1G", "mean<1us"] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_does_not_hold() {
        assert!(!holds("p99.9<1s") && !holds("response.p50<1s") && !holds("e2e.p50<1s"));
        let text = "p999<1s".parse::<Assertion>().unwrap().verdict(&row(10_000, None));
        assert!(text.starts_with("FAILS") && text.contains("not known"), "{text}");
    }

    #[test]
    fn it_may_speak_of_some_rows_only() {
        let assertion: Assertion = "write:p99<1ms".parse().unwrap();
        assert!(assertion.is_about(&row(1, None)));
        let assertion: Assertion = "read-single:p99<1ms".parse().unwrap();
        assert!(!assertion.is_about(&row(1, None)));
    }

    #[test]
    fn what_is_none_is_refused() {
        for wrong in ["", "p99", "p99<1", "p99<fast", "p98<1ms", "rate>1ms", "<1ms", "p99!1ms"] {
            assert!(wrong.parse::<Assertion>().is_err(), "{wrong}");
        }
    }
}

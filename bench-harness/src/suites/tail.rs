//! What consumers at the tail notice of one who catches up from the beginning.

use super::{Played, Stage, nothing};
use crate::{
    args::TailArgs,
    pacing::Arrivals,
    plan::Plan,
    report::{Row, human::microseconds},
};

/// Writes at a rate with consumers at the tail, first alone, then with readers from the beginning.
pub async fn play(args: &TailArgs, stage: &Stage) -> Played {
    let alone = Plan::of_common("tail".to_owned(), crate::args::Workload::Write, args.batch, &args.common);
    let alone = Plan { end_to_end: true, ..alone.map_err(nothing)?.offered(args.rate, Arrivals::Constant) };
    let beside = Plan { name: "tail-and-catch-up".to_owned(), catch_up: args.readers, ..alone.clone() };
    let session = stage.session(&args.common).await.map_err(nothing)?;
    let mut report = super::rows(session, vec![(alone, None), (beside, None)]).await?;
    if let [alone, beside] = report.rows.as_slice() {
        let conclusion = conclusion(alone, beside);
        report.conclusions.push(conclusion);
    }
    Ok(report)
}

fn conclusion(alone: &Row, beside: &Row) -> String {
    let p99 = |row: &Row| row.end_to_end.as_ref().and_then(|times| times.p99_us);
    let megabytes = beside.reads.as_ref().map_or(0.0, |reads| reads.bytes_per_s / 1e6);
    let (before, after) = (microseconds(p99(alone)), microseconds(p99(beside)));
    format!("end-to-end p99 at the tail: {before} µs alone, {after} µs while others catch up at {megabytes:.1} MB/s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{measuring::Latencies, report::ReadsShown};

    #[test]
    fn both_tails_and_the_speed_of_catching_up_are_told() {
        let row = |p99_us| Row { end_to_end: Some(Latencies { p99_us, ..Latencies::default() }), ..Row::default() };
        let reads = ReadsShown { bytes_per_s: 5e6, ..ReadsShown::default() };
        let beside = Row { reads: Some(Box::new(reads)), ..row(None) };
        let text = conclusion(&row(Some(300.0)), &beside);
        assert!(text.contains("300.0 µs alone, - µs while others catch up at 5.0 MB/s"), "{text}");
    }
}

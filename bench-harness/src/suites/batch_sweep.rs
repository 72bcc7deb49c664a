//! Which batch is large enough, by record size: checks the sizes that the performance guide calls optimal.

use super::{Played, Stage, nothing};
use crate::{
    args::{CommonArgs, Workload},
    dataset::Sizes,
    plan::Plan,
};

/// Requests in flight: enough that throughput, not the way there and back, decides.
const IN_FLIGHT: u32 = 8;
/// A batch is large enough if its throughput is this near to the best.
const LARGE_ENOUGH: f64 = 0.95;

/// A kind of record, the batches tried, and those that the guide calls optimal.
struct Kind {
    record_bytes: usize,
    batches: &'static [u32],
    guide: (u32, u32),
}

const KINDS: [Kind; 3] = [
    Kind { record_bytes: 100, batches: &[1, 10, 50, 100, 250, 500, 1000, 2000, 5000], guide: (500, 1000) },
    Kind { record_bytes: 4 << 10, batches: &[1, 5, 10, 50, 100, 250, 500, 1000], guide: (100, 500) },
    Kind { record_bytes: 32 << 10, batches: &[1, 2, 5, 10, 25, 50, 100, 200], guide: (10, 100) },
];

/// Tries each batch with each kind of record.
pub async fn play(common: &CommonArgs, stage: &Stage) -> Played {
    let mut session = stage.session(common).await.map_err(nothing)?;
    for kind in &KINDS {
        let mut points = Vec::new();
        for batch in kind.batches {
            let name = format!("records-of-{}-by-{batch}", kind.record_bytes);
            let plan = Plan::of_common(name, Workload::Write, *batch, common).map_err(nothing)?;
            let mut plan = plan.closed(IN_FLIGHT);
            plan.data.sizes = Sizes::Fixed(kind.record_bytes);
            match session.row(&plan, None).await {
                Ok(row) => points.push((*batch, row.bytes_per_s)),
                Err(error) => return Err((Some(session.report), error)),
            }
        }
        session.report.conclusions.extend(conclusion(kind, &points));
    }
    Ok(session.report)
}

fn conclusion(kind: &Kind, points: &[(u32, f64)]) -> Option<String> {
    let enough = large_enough(points)?;
    let (least, most) = kind.guide;
    let stands = match enough {
        enough if enough < least => "less is enough",
        enough if enough > most => "more is needed",
        _ => "as it says",
    };
    let bytes = kind.record_bytes;
    Some(format!(
        "records of {bytes} B: batches of {enough} are large enough; the guide says {least} to {most}: {stands}"
    ))
}

/// The smallest batch whose throughput is near to the best.
fn large_enough(points: &[(u32, f64)]) -> Option<u32> {
    let best = points.iter().map(|(_, rate)| *rate).reduce(f64::max)?;
    points.iter().find(|(_, rate)| *rate >= best * LARGE_ENOUGH).map(|(batch, _)| *batch)
}

#[cfg(test)]
mod tests {
    use pyralog_engine::limits::BATCH_BYTES_MAX;

    use super::*;

    #[test]
    fn the_smallest_batch_near_the_best_is_large_enough() {
        let points = [(1, 10.0), (10, 60.0), (100, 96.0), (1000, 100.0), (5000, 80.0)];
        assert_eq!(large_enough(&points), Some(100));
        let text = conclusion(&KINDS[0], &points).unwrap();
        assert!(text.contains("batches of 100") && text.contains("500 to 1000: less is enough"), "{text}");
        assert_eq!(large_enough(&[]), None);
    }

    #[test]
    fn every_batch_that_is_tried_can_be_sent_and_the_guides_are_among_them() {
        for kind in &KINDS {
            assert!(kind.batches.iter().all(|batch| *batch as usize * (kind.record_bytes + 24) < BATCH_BYTES_MAX));
            assert!(kind.batches.contains(&kind.guide.0) && kind.batches.contains(&kind.guide.1));
        }
    }
}

//! Whether memory stays flat under a load that goes on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::interval};

use super::{Played, Stage, nothing};
use crate::{
    args::{SoakArgs, Workload},
    pacing::Arrivals,
    plan::Plan,
    report::Memory,
    target::HarnessError,
    trust::StatusPage,
};

/// How often memory is looked at.
const GLANCE: Duration = Duration::from_secs(1);
/// The first part of the run is left out: buffers and caches fill.
const SETTLING: f64 = 0.25;
/// Memory is flat if it would grow by less than this fraction of itself in another run as long.
const GROWTH_MAX: f64 = 0.02;

type Samples = Arc<Mutex<Vec<(f64, f64)>>>;

/// Puts a load on the server and watches its memory.
pub async fn play(args: &SoakArgs, stage: &Stage) -> Played {
    let plan = Plan::of_common("soak".to_owned(), Workload::Write, args.batch, &args.common).map_err(nothing)?;
    let seconds = Duration::from_secs_f64(args.minutes * 60.0);
    let plan = Plan { seconds, ..plan.offered(args.rate, Arrivals::Constant) };
    let mut session = stage.session(&args.common).await.map_err(nothing)?;
    let Some(pages) = session.driver().pages.clone() else {
        let why = "memory is read from the server's /metrics page, and that was not found: give --http";
        return Err((Some(session.report), HarnessError::Usage(why.to_owned())));
    };
    let samples = Samples::default();
    let watching = watch(pages, Arc::clone(&samples));
    let measured = session.row(&plan, None).await.map(drop);
    watching.abort();
    if let Err(error) = measured {
        return Err((Some(session.report), error));
    }
    let samples = samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let memory = judge(&samples);
    session.report.conclusions.push(match &memory {
        Some(memory) => memory.to_string(),
        None => "memory: too few samples to tell".to_owned(),
    });
    session.report.memory = memory;
    Ok(session.report)
}

fn watch(pages: StatusPage, samples: Samples) -> JoinHandle<()> {
    let begin = Instant::now();
    tokio::spawn(async move {
        let mut tick = interval(GLANCE);
        loop {
            tick.tick().await;
            if let Ok(counters) = pages.counters().await {
                let sample = (begin.elapsed().as_secs_f64(), counters.memory_bytes);
                samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            }
        }
    })
}

/// The slope of memory over time, by least squares, after it has settled.
fn judge(samples: &[(f64, f64)]) -> Option<Memory> {
    let length = samples.last()?.0;
    let settled: Vec<_> = samples.iter().filter(|(at, _)| *at >= length * SETTLING).collect();
    if settled.len() < 10 {
        return None;
    }
    let mean = |of: fn(&(f64, f64)) -> f64| settled.iter().map(|sample| of(sample)).sum::<f64>() / settled.len() as f64;
    let (time, bytes) = (mean(|sample| sample.0), mean(|sample| sample.1));
    let moment = |sample: &(f64, f64)| (sample.0 - time) * (sample.1 - bytes);
    let covariance: f64 = settled.iter().map(|sample| moment(sample)).sum();
    let variance: f64 = settled.iter().map(|sample| (sample.0 - time).powi(2)).sum();
    let bytes_per_s = covariance / variance.max(1e-9);
    Some(Memory {
        mean_bytes: bytes.round(),
        bytes_per_hour: (bytes_per_s * 3600.0).round(),
        is_flat: bytes_per_s * length < bytes * GROWTH_MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(growth_per_s: f64) -> Memory {
        let noise = [0.0, 3e5, -3e5, 1e5, -1e5];
        let sample = |n: usize| {
            let start = if n < 200 { 50e6 } else { 0.0 };
            (n as f64, 100e6 - start + growth_per_s * n as f64 + noise[n % 5])
        };
        judge(&(0..1800).map(sample).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn memory_that_fills_up_at_first_and_then_stays_is_flat() {
        let memory = memory(0.0);
        assert!(memory.is_flat && memory.bytes_per_hour.abs() < 1e6, "{memory:?}");
    }

    #[test]
    fn a_slow_leak_is_found() {
        let memory = memory(10_000.0);
        assert!(!memory.is_flat && (memory.bytes_per_hour / 36e6 - 1.0).abs() < 0.05, "{memory:?}");
        assert!(memory.to_string().contains("NOT flat"), "{memory}");
    }

    #[test]
    fn few_samples_tell_nothing() {
        assert_eq!(judge(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(judge(&[]), None);
    }
}

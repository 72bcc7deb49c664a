//! What a server costs that nobody asks anything.

use std::sync::atomic::Ordering::Relaxed;

use super::{Played, Stage, nothing};
use crate::{args::IdleArgs, report::Idle, target::HarnessError};

/// An idle server may use this much of a core, in percent.
const BUSY_PERCENT_MAX: f64 = 1.0;

/// Watches the server for a while.
pub async fn play(args: &IdleArgs, stage: &Stage) -> Played {
    let mut session = stage.session(&args.common).await.map_err(nothing)?;
    let Some(pages) = session.driver().pages.clone() else {
        let why = "CPU time is read from the server's /metrics page, and that was not found: give --http";
        return Err((Some(session.report), HarnessError::Usage(why.to_owned())));
    };
    let failed = HarnessError::system("reading the server's counters");
    let begin = std::time::Instant::now();
    let before = match pages.counters().await {
        Ok(counters) => counters,
        Err(error) => return Err((Some(session.report), failed(error))),
    };
    stage.progress.note("idle", &format!("{:.0} s", args.common.seconds.as_secs_f64()));
    while begin.elapsed() < args.common.seconds && !stage.stop.load(Relaxed) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let after = match pages.counters().await {
        Ok(counters) => counters,
        Err(error) => return Err((Some(session.report), failed(error))),
    };
    let idle = judge(after.cpu_s - before.cpu_s, begin.elapsed().as_secs_f64(), after.memory_bytes);
    session.report.conclusions.push(idle.to_string());
    session.report.idle = Some(idle);
    Ok(session.report)
}

fn judge(cpu_s: f64, seconds: f64, memory_bytes: f64) -> Idle {
    let percent = cpu_s / seconds.max(1e-9) * 100.0;
    Idle { busy_percent: (percent * 1e3).round() / 1e3, memory_bytes, is_idle: percent < BUSY_PERCENT_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_hundredth_of_a_core_is_idle() {
        assert_eq!(judge(0.05, 10.0, 1e6), Idle { busy_percent: 0.5, memory_bytes: 1e6, is_idle: true });
        assert!(!judge(0.2, 10.0, 1e6).is_idle);
    }
}

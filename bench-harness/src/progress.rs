//! Shows on stderr how it goes: a live line on a terminal, a line for each step elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{measuring::Measured, report::human::count, workloads::Job};

/// The progress of a run.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// On stderr.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        let style = ProgressStyle::with_template("{spinner} {prefix:<18} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Progress { bar }
    }

    /// A new step of a row.
    pub fn note(&self, row: &str, step: &str) {
        self.bar.set_prefix(row.to_owned());
        self.bar.set_message(step.to_owned());
        if self.bar.is_hidden() {
            eprintln!("{row}: {step}");
        }
    }

    /// A load is running: what came of it lately, in all errors so far.
    pub fn show(&self, job: &Job, elapsed: Duration, lately: &Measured, errors: u64) {
        self.bar.tick();
        if let Some(records) = job.records {
            let done = job.done.load(std::sync::atomic::Ordering::Relaxed);
            return self.bar.set_message(format!(
                "preparing: {} of {} records",
                count(done as f64),
                count(records as f64)
            ));
        }
        let whole = job.plan.warmup + job.plan.seconds;
        let time = format!("{:>4.1} of {:.1} s", elapsed.min(whole).as_secs_f64(), whole.as_secs_f64());
        if elapsed < job.plan.warmup {
            return self.bar.set_message(format!("{time}   warming up"));
        }
        let rate = lately.records as f64 * 4.0;
        let message = format!(
            "{time}   {:>7} records/s   p50 {:>8.1} µs   p99 {:>8.1} µs   {errors} errors",
            count(rate),
            lately.quantile_us(0.5),
            lately.quantile_us(0.99),
        );
        self.bar.set_message(message);
    }

    /// Something is being counted.
    pub fn show_count(&self, what: &str, number: u64) {
        self.bar.tick();
        self.bar.set_message(format!("{} {what}", count(number as f64)));
    }

    /// Leaves the terminal clean.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

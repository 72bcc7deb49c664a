//! Shows on stderr how it goes: a live line on a terminal, a line for each step elsewhere.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    measuring::{Tally, Window},
    report::human::count,
    workloads::Job,
};

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

    /// A load is running: what came of it in the last `tick`, and in all so far.
    pub fn show(&self, job: &Job, (window, tick): (Window, Duration), lately: &Tally, total: &Tally) {
        self.bar.tick();
        if let Some(records) = job.records {
            let (done, all) = (count(job.done.load(Relaxed) as f64), count(records as f64));
            return self.bar.set_message(format!("preparing: {done} of {all} records"));
        }
        let now = Instant::now();
        if now < window.begin {
            return self.bar.set_message("warming up".to_owned());
        }
        let left = window.end.saturating_duration_since(now).as_secs_f64();
        let rate = (lately.main.records + lately.reads.records) as f64 / tick.as_secs_f64();
        let times = lately.main.headline();
        let quantile = |quantile| times.quantile_us(quantile).map_or("-".to_owned(), |us| format!("{us:.0} µs"));
        self.bar.set_message(format!(
            "{:>7} records/s   p50 {:>9}   p99 {:>9}   {} errors   {left:.0} s left",
            count(rate),
            quantile(0.5),
            quantile(0.99),
            total.main.errors + total.reads.errors,
        ));
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

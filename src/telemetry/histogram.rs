//! Histograms of durations and other figures, for Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The most buckets that a histogram can have.
const MAX_BUCKETS: usize = 12;
/// Upper bounds of the buckets, in microseconds: from 10 ms to 30 s.
const LONG: &[u64] = &[
    10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
    30_000_000,
];
/// The same from 0.1 ms to 1 s.
const SHORT: &[u64] =
    &[100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000];
/// Mean opinion scores, in millionths.
const SCORES: &[u64] =
    &[2_000_000, 2_500_000, 3_000_000, 3_500_000, 3_800_000, 4_000_000, 4_200_000];

/// How often durations, or other figures, occurred.
#[derive(Debug)]
pub struct Histogram {
    /// Name without `trunkless_`; ends with `_seconds` if it has durations.
    pub name: &'static str,
    pub help: &'static str,
    /// A label with its value, as `direction="to_ai",`; or empty.
    label: &'static str,
    /// Upper bounds of the buckets, in millionths. More counts towards `+Inf` only.
    bounds: &'static [u64],
    /// Figures up to each bound and above the one before.
    buckets: [AtomicU64; MAX_BUCKETS],
    count: AtomicU64,
    sum: AtomicU64,
}

impl Histogram {
    /// For durations from 10 ms to 30 s.
    pub const fn new(name: &'static str, help: &'static str) -> Histogram {
        Histogram {
            name,
            help,
            label: "",
            bounds: LONG,
            buckets: [const { AtomicU64::new(0) }; MAX_BUCKETS],
            count: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// For durations from 0.1 ms to 1 s.
    pub const fn short(name: &'static str, help: &'static str) -> Histogram {
        Histogram { bounds: SHORT, ..Histogram::new(name, help) }
    }

    /// For mean opinion scores.
    pub const fn scores(name: &'static str, help: &'static str) -> Histogram {
        Histogram { bounds: SCORES, ..Histogram::new(name, help) }
    }

    /// `label`: a label with its value, as `direction="to_ai",`.
    pub const fn labelled(self, label: &'static str) -> Histogram {
        Histogram { label, ..self }
    }

    pub fn observe(&self, duration: Duration) {
        self.add(duration.as_micros() as u64);
    }

    /// Counts a figure that is not a duration.
    pub fn observe_figure(&self, figure: f64) {
        self.add((figure * 1e6) as u64);
    }

    fn add(&self, millionths: u64) {
        let bucket = self.bounds.iter().position(|bound| millionths <= *bound);
        if let Some(bucket) = bucket.and_then(|at| self.buckets.get(at)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(millionths, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the samples, one per line.
    pub fn samples(&self) -> String {
        let (mut out, mut below, name, label) = (String::new(), 0, self.name, self.label);
        for (bound, bucket) in self.bounds.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let le = *bound as f64 / 1e6;
            let _ = writeln!(out, "trunkless_{name}_bucket{{{label}le=\"{le}\"}} {below}");
        }
        // never below a bucket, even if another thread counts just now
        let count = self.count.load(Ordering::Relaxed).max(below);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "trunkless_{name}_bucket{{{label}le=\"+Inf\"}} {count}");
        let label = label.strip_suffix(',').map(|label| format!("{{{label}}}")).unwrap_or_default();
        let _ = writeln!(out, "trunkless_{name}_sum{label} {sum}");
        let _ = writeln!(out, "trunkless_{name}_count{label} {count}");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::new("x_seconds", "X.");
        for ms in [10, 11, 2000, 60_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let samples = histogram.samples();
        for line in [
            "trunkless_x_seconds_bucket{le=\"0.01\"} 1",
            "trunkless_x_seconds_bucket{le=\"0.025\"} 2",
            "trunkless_x_seconds_bucket{le=\"1\"} 2",
            "trunkless_x_seconds_bucket{le=\"2.5\"} 3",
            "trunkless_x_seconds_bucket{le=\"30\"} 3",
            "trunkless_x_seconds_bucket{le=\"+Inf\"} 4",
            "trunkless_x_seconds_sum 62.021",
            "trunkless_x_seconds_count 4",
        ] {
            assert!(samples.lines().any(|l| l == line), "{line}: {samples}");
        }
    }

    #[test]
    fn a_label_is_in_every_sample() {
        let histogram = Histogram::short("x_seconds", "X.").labelled("way=\"in\",");
        histogram.observe(Duration::from_micros(150));
        let samples = histogram.samples();
        assert!(samples.lines().all(|line| line.contains("{way=\"in\"")), "{samples}");
        assert!(samples.contains("_bucket{way=\"in\",le=\"0.00025\"} 1\n"), "{samples}");
        let scores = Histogram::scores("mos", "X.");
        scores.observe_figure(4.1);
        assert!(scores.samples().contains("mos_bucket{le=\"4.2\"} 1\n"), "{}", scores.samples());
        assert!(scores.samples().contains("mos_bucket{le=\"4\"} 0\n"));
    }
}

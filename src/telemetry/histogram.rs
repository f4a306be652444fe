//! Histograms of durations, for Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in milliseconds. Longer durations count towards `+Inf` only.
const BOUNDS_MS: [u64; 11] = [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000];

/// How often durations occurred.
#[derive(Debug)]
pub struct Histogram {
    /// Name without `trunkless_`; ends with `_seconds`.
    pub name: &'static str,
    pub help: &'static str,
    /// Durations up to each bound and above the one before.
    buckets: [AtomicU64; BOUNDS_MS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub const fn new(name: &'static str, help: &'static str) -> Histogram {
        Histogram {
            name,
            help,
            buckets: [const { AtomicU64::new(0) }; BOUNDS_MS.len()],
            count: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, duration: Duration) {
        let bucket = BOUNDS_MS.iter().position(|ms| duration <= Duration::from_millis(*ms));
        if let Some(bucket) = bucket.and_then(|at| self.buckets.get(at)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the samples, one per line.
    pub fn samples(&self) -> String {
        let (mut out, mut below, name) = (String::new(), 0, self.name);
        for (ms, bucket) in BOUNDS_MS.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let le = *ms as f64 / 1e3;
            let _ = writeln!(out, "trunkless_{name}_bucket{{le=\"{le}\"}} {below}");
        }
        // never below a bucket, even if another thread counts just now
        let count = self.count.load(Ordering::Relaxed).max(below);
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "trunkless_{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "trunkless_{name}_sum {sum}\ntrunkless_{name}_count {count}");
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
}

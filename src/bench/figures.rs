//! Distributions of times, and the figures reported for them.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use hdrhistogram::Histogram;
use serde::Serialize;

/// Times in microseconds, with three significant digits, up to two minutes.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

const LONGEST_US: u64 = 120_000_000;

impl Default for Times {
    fn default() -> Times {
        Times(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("valid histogram bounds"))
    }
}

impl Times {
    pub fn add_us(&mut self, us: u64) {
        self.0.saturating_record(us);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the share of times longer than `us`; 0 if nothing was recorded.
    pub fn share_over_us(&self, us: u64) -> f64 {
        let over = self.0.len() - self.0.count_between(0, us);
        over as f64 / self.0.len().max(1) as f64
    }

    pub fn quantile_ms(&self, q: f64) -> f64 {
        self.0.value_at_quantile(q) as f64 / 1000.0
    }

    /// Returns the reported figures; `None` if nothing was recorded.
    pub fn spread(&self) -> Option<Spread> {
        (self.count() > 0).then(|| Spread {
            count: self.count(),
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p99_ms: self.quantile_ms(0.99),
            p999_ms: self.quantile_ms(0.999),
            max_ms: self.0.max() as f64 / 1000.0,
        })
    }
}

/// A distribution, as reported.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub count: u64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_shares() {
        let mut times = Times::default();
        assert_eq!(times.spread(), None);
        assert_eq!(times.share_over_us(5), 0.0);
        (1..=1000).for_each(|n| times.add_us(n * 10));
        let spread = times.spread().unwrap();
        assert_eq!(spread.count, 1000);
        assert!((spread.p50_ms - 5.0).abs() < 0.05, "{spread:?}");
        assert!((spread.p90_ms - 9.0).abs() < 0.05, "{spread:?}");
        assert!((spread.p99_ms - 9.9).abs() < 0.05, "{spread:?}");
        assert!((spread.max_ms - 10.0).abs() < 0.05, "{spread:?}");
        assert!((times.share_over_us(9000) - 0.1).abs() < 0.01);
        times.add_us(u64::MAX);
        assert!(times.spread().unwrap().max_ms >= 100_000.0);
    }
}

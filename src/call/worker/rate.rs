//! The event rate of a worker, which decides when events are batched.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

/// Load begins at this many events per millisecond: two per batch, or the load of about 50 calls.
const BUSY_RATE: usize = 8;

/// Measures the event rate, over at least a millisecond at a time.
pub(super) struct Rate {
    /// Start of the current measurement.
    since: Instant,
    /// Events since then.
    events: usize,
    /// True if the last completed measurement was at or above [`BUSY_RATE`].
    high: bool,
}

impl Rate {
    pub fn new(now: Instant) -> Rate {
        Rate { since: now, events: 0, high: false }
    }

    pub fn count(&mut self, now: Instant, events: usize) {
        self.events += events;
        let passed = now.saturating_duration_since(self.since);
        if passed >= Duration::from_millis(1) {
            self.high = self.events as u128 * 1000 >= BUSY_RATE as u128 * passed.as_micros();
            (self.since, self.events) = (now, 0);
        }
    }

    pub fn is_high(&self) -> bool {
        self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn the_rate_is_that_of_the_last_whole_millisecond() {
        let now = start();
        let mut rate = Rate::new(now);
        let at = |ms: u64| now + Duration::from_millis(ms);
        rate.count(now, 100);
        assert!(!rate.is_high(), "not measured yet");
        rate.count(at(1), 0);
        assert!(rate.is_high());
        rate.count(at(3), 2 * BUSY_RATE - 1);
        assert!(!rate.is_high());
        rate.count(at(5), 2 * BUSY_RATE);
        assert!(rate.is_high());
    }
}

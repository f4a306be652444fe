//! Waiting for a condition, and for time to pass.

use std::time::{Duration, Instant};

/// Waits until `good` is true; returns false if the limit passes first.
pub async fn until(limit: Duration, mut good: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    while !good() {
        if begin.elapsed() > limit {
            return false;
        }
        ticks.tick().await;
    }
    true
}

/// Lets time pass in which audio flows.
pub async fn pass(time: Duration) {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + time, time);
    ticks.tick().await;
}

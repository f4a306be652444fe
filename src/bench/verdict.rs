//! Whether a measurement is worth anything, and whether what it found is good.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::figures::Times;
use crate::bench::report::Report;

/// The generator was late, and its figures are worth nothing, when more than one frame in a hundred
/// went out later than this after its time …
const P99_MS: f64 = 2.0;
/// … or more than one in a thousand so late that a slot was missed.
const MISSED_US: u64 = 20_000;
const MISSED_SHARE: f64 = 0.001;

/// Why a thread's lateness spoils the measurement; empty when it does not.
pub fn why_not_valid(who: &str, lateness: &Times) -> Option<String> {
    let p99_ms = lateness.quantile_ms(0.99);
    if p99_ms > P99_MS {
        return Some(format!("{who}: p99 {p99_ms:.1} ms, the limit is {P99_MS} ms"));
    }
    let missed = lateness.share_over_us(MISSED_US);
    (missed > MISSED_SHARE)
        .then(|| format!("{who}: {:.2} % of the frames went out over 20 ms late", missed * 100.0))
}

/// What is wrong with the frames and calls. Times are never: they are for the reader to judge.
pub fn faults(report: &Report) -> Vec<String> {
    let mut faults = Vec::new();
    let mut none = |count: u64, what: &str| {
        if count > 0 {
            faults.push(format!("{count} {what}"));
        }
    };
    let calls = &report.calls;
    none(u64::from(calls.asked - calls.answered.min(calls.asked)), "calls were not answered");
    none(u64::from(calls.dropped), "calls were ended by the other side");
    none(u64::from(calls.asked == 0), "calls asked: none was set up");
    for (way, name) in [(&report.to_ai, "to the AI"), (&report.to_caller, "to the callers")] {
        none(way.lost, &format!("frames {name} were lost"));
        none(way.swapped, &format!("frames {name} were swapped"));
        none(way.repeated, &format!("frames {name} came twice"));
        none(way.damaged, &format!("frames {name} were damaged"));
        none(way.misrouted, &format!("frames {name} were another call's"));
    }
    let sent = report.to_ai.sent.min(report.to_caller.sent);
    none(u64::from(sent == 0), "way without a judged frame");
    none(report.ai_connections_broken, "connections to the AI broke");
    if let Some(complete) = report.recordings_complete {
        none(u64::from(calls.answered.saturating_sub(complete)), "recordings are not complete");
    }
    if let Some(code) = report.bridge.exit_code.filter(|code| *code != 0) {
        faults.push(format!("the bridge ended with exit code {code}"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_is_late_makes_no_valid_figures() {
        let mut times = Times::default();
        assert_eq!(why_not_valid("callers", &times), None);
        (0..10_000).for_each(|_| times.add_us(300));
        assert_eq!(why_not_valid("callers", &times), None);
        // one in a hundred and a little, by more than 2 ms
        let mut late = times.clone();
        (0..150).for_each(|_| late.add_us(2_500));
        assert!(why_not_valid("callers", &late).unwrap().contains("p99 2.5 ms"));
        // one in 500 missed its slot
        (0..20).for_each(|_| times.add_us(25_000));
        assert!(why_not_valid("callers", &times).unwrap().contains("0.20 %"));
    }
}

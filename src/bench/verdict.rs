//! Judges whether a measurement is valid, and lists the faults it found.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::figures::Times;
use crate::bench::report::Report;

/// The generator was too late for its figures to be valid if more than one frame in a hundred went
/// out later than this after its time …
const P99_MS: f64 = 2.0;
/// … or if more than one in a thousand was so late that it missed a slot.
const MISSED_US: u64 = 20_000;
const MISSED_SHARE: f64 = 0.001;

/// Returns why a thread's lateness invalidates the measurement; `None` if it does not.
pub fn why_not_valid(who: &str, lateness: &Times) -> Option<String> {
    let p99_ms = lateness.quantile_ms(0.99);
    if p99_ms > P99_MS {
        return Some(format!("{who}: p99 {p99_ms:.1} ms, the limit is {P99_MS} ms"));
    }
    let missed = lateness.share_over_us(MISSED_US);
    (missed > MISSED_SHARE)
        .then(|| format!("{who}: {:.2} % of the frames went out over 20 ms late", missed * 100.0))
}

/// Lists the faults in frames and calls. Times are never faults; the reader has to judge them.
pub fn faults(report: &Report) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |count: u64, what: &str| {
        if count > 0 {
            faults.push(format!("{count} {what}"));
        }
    };
    let calls = &report.calls;
    fault(u64::from(calls.asked - calls.answered.min(calls.asked)), "calls were not answered");
    fault(u64::from(calls.dropped), "calls were ended by the other side");
    fault(u64::from(calls.asked == 0), "measurement without a call");
    for (way, name) in [(&report.to_ai, "to the AI"), (&report.to_caller, "to the callers")] {
        fault(way.lost, &format!("frames {name} were lost"));
        fault(way.swapped, &format!("frames {name} were swapped"));
        fault(way.repeated, &format!("frames {name} were repeated"));
        fault(way.damaged, &format!("frames {name} were damaged"));
        fault(way.misrouted, &format!("frames {name} belonged to another call"));
    }
    let sent = report.to_ai.sent.min(report.to_caller.sent);
    fault(u64::from(sent == 0), "direction without a judged frame");
    fault(report.ai_connections_broken, "connections to the AI broke");
    if let Some(complete) = report.recordings_complete {
        fault(u64::from(calls.answered.saturating_sub(complete)), "recordings are incomplete");
    }
    if let Some(code) = report.bridge.exit_code.filter(|code| *code != 0) {
        faults.push(format!("the bridge exited with code {code}"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_generator_makes_a_measurement_invalid() {
        let mut times = Times::default();
        assert_eq!(why_not_valid("callers", &times), None);
        (0..10_000).for_each(|_| times.add_us(300));
        assert_eq!(why_not_valid("callers", &times), None);
        // slightly more than one in a hundred, by more than 2 ms
        let mut late = times.clone();
        (0..150).for_each(|_| late.add_us(2_500));
        assert!(why_not_valid("callers", &late).unwrap().contains("p99 2.5 ms"));
        // one in 500 missed its slot
        (0..20).for_each(|_| times.add_us(25_000));
        assert!(why_not_valid("callers", &times).unwrap().contains("0.20 %"));
    }
}

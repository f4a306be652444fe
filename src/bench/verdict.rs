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
/// … or if it read more than this share of the frames after a pause of its own.
const HELD_UP_SHARE: f64 = 0.01;
/// Late frames prove nothing about the bridge if the host kept more than this share of the CPU from
/// the machine …
const STOLEN_PERCENT: f64 = 1.0;
/// … or if other processes used more than this share of it.
const OTHERS_PERCENT: f64 = 5.0;
/// Silence in place of speech that is late by no more than this is the bridge's fault. A bridge
/// should wait 40 ms, and the generator itself may be 5 ms late.
const GRACE_MS: u32 = 35;

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

/// Returns why a thread's pauses invalidate the measurement: it read more than one in a hundred of
/// `all` packets or messages only after it had been held up. `None` if it did not.
pub fn why_held_up(who: &str, after_pause: u64, all: u64) -> Option<String> {
    let share = after_pause as f64 / all.max(1) as f64;
    (share > HELD_UP_SHARE)
        .then(|| format!("{who}: {:.2} % of the frames were read after a pause", share * 100.0))
}

/// Returns why faults that any delay explains are not held against the bridge: late frames,
/// timestamps out of step, audio missing before a `clear`. `None` if there are none, or if only the
/// bridge can have caused them.
pub fn why_times_are_excused(report: &Report) -> Option<String> {
    let doubtful = report.to_ai.late + report.to_caller.late;
    let doubtful = doubtful + report.timestamp_jumps + report.lost_tails;
    disturbance(report).filter(|_| doubtful > 0)
}

/// Returns what else than the bridge may have delayed frames.
fn disturbance(report: &Report) -> Option<String> {
    let used = &report.machine_use;
    if !report.is_valid() {
        Some("the generator was late itself".to_owned())
    } else if used.stolen_percent > STOLEN_PERCENT {
        Some(format!("the host kept {:.1} % of the CPU from this machine", used.stolen_percent))
    } else if used.others_percent > OTHERS_PERCENT {
        Some(format!("other processes used {:.1} % of this machine", used.others_percent))
    } else {
        None
    }
}

/// Lists the faults in frames and calls. A time is a fault only if it is longer than a frame;
/// shorter ones are for the reader to judge.
pub fn faults(report: &Report) -> Vec<String> {
    let undisturbed = disturbance(report).is_none();
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
        // a PBX in between may still be connecting its two sides
        if !report.real_pbx {
            let what = format!("frames {name} were lost in the first second of their call");
            fault(way.first_second_lost, &what);
        }
        if undisturbed {
            fault(way.late, &format!("frames {name} were more than 20 ms late"));
        }
        fault(way.swapped, &format!("frames {name} were swapped"));
        fault(way.repeated, &format!("frames {name} were repeated"));
        fault(way.damaged, &format!("frames {name} were damaged"));
        fault(way.misrouted, &format!("frames {name} belonged to another call"));
    }
    // a bridge without a buffer cannot fill longer pauses of the AI
    if report.ai_jitter_ms <= GRACE_MS {
        fault(report.holes_in_speech, "holes in speech, filled with silence");
    }
    if undisturbed {
        fault(report.lost_tails, "frames to the callers were missing before a clear");
    }
    // a PBX in between writes timestamps of its own
    if undisturbed && !report.real_pbx {
        fault(report.timestamp_jumps, "RTP packets to the callers had a timestamp out of step");
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
    use crate::bench::report::tests::good;

    /// A change to a report, and a part of the text that it should lead to.
    type Row = (fn(&mut Report), &'static str);

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
        assert_eq!(why_held_up("AI", 0, 0), None);
        assert_eq!(why_held_up("AI", 10, 1000), None);
        assert!(why_held_up("AI", 11, 1000).unwrap().contains("1.10 %"));
    }

    #[test]
    fn every_fault_is_listed() {
        assert_eq!(faults(&good()), Vec::<String>::new());
        let changes: [Row; 16] = [
            (|r| r.to_ai.lost = 1, "to the AI were lost"),
            (|r| r.to_caller.swapped = 1, "to the callers were swapped"),
            (|r| r.to_caller.damaged = 1, "damaged"),
            (|r| r.to_ai.repeated = 1, "repeated"),
            (|r| r.to_ai.misrouted = 1, "belonged to another call"),
            (|r| r.to_caller.first_second_lost = 1, "first second"),
            (|r| r.to_ai.late = 1, "more than 20 ms late"),
            (|r| r.holes_in_speech = 1, "with silence"),
            (|r| r.lost_tails = 1, "missing before a clear"),
            (|r| r.timestamp_jumps = 1, "out of step"),
            (|r| r.calls.answered = 1, "not answered"),
            (|r| r.calls.dropped = 1, "ended by the other side"),
            (|r| r.recordings_complete = Some(1), "recordings"),
            (|r| r.bridge.exit_code = Some(1), "exited with code 1"),
            (|r| r.to_caller.sent = 0, "without a judged frame"),
            (|r| r.ai_connections_broken = 1, "broke"),
        ];
        for (change, text) in changes {
            let mut report = good();
            change(&mut report);
            let faults = faults(&report);
            assert!(faults.len() == 1 && faults[0].contains(text), "{text}: {faults:?}");
        }
    }

    #[test]
    fn late_frames_are_no_fault_on_a_disturbed_machine() {
        let disturbances: [Row; 3] = [
            (|r| r.not_valid.push("AI: p99 3.0 ms".to_owned()), "generator"),
            (|r| r.machine_use.stolen_percent = 1.5, "host kept 1.5 %"),
            (|r| r.machine_use.others_percent = 40.0, "other processes used 40.0 %"),
        ];
        for (disturb, text) in disturbances {
            let mut report = good();
            disturb(&mut report);
            assert_eq!(why_times_are_excused(&report), None);
            report.to_caller.late = 7;
            assert_eq!(faults(&report), Vec::<String>::new());
            assert!(why_times_are_excused(&report).unwrap().contains(text));
            assert!(report.to_string().contains("late 7"));
        }
    }

    #[test]
    fn an_ai_with_long_jitter_makes_holes_itself() {
        let mut report = good();
        (report.holes_in_speech, report.ai_jitter_ms) = (3, 20);
        assert_eq!(faults(&report).len(), 1);
        report.ai_jitter_ms = 40;
        assert_eq!(faults(&report), Vec::<String>::new());
    }

    #[test]
    fn a_pbx_in_between_may_lose_the_beginning() {
        let mut report = good();
        report.to_ai.first_second_lost = 3;
        assert_eq!(faults(&report).len(), 1);
        report.real_pbx = true;
        assert_eq!(faults(&report), Vec::<String>::new());
    }
}

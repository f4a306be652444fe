//! More and more calls, a fresh bridge for each step, until something gives: the knee.

use std::io;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::bench::figures::Spread;
use crate::bench::report::Report;
use crate::bench::run::{Options, run};

/// 50, 100, then by hundreds.
const FIRST: u32 = 50;
const STEP: u32 = 100;
/// A p99 over this is a frame in a hundred that missed its slot.
const P99_MS: f64 = 20.0;
/// Bridge and generator together use this of all cores: there is no more. What others on the
/// machine use is not counted; the line of a step shows how much of the machine was idle.
const FULL_PERCENT: f64 = 95.0;

#[derive(Debug, Serialize)]
pub struct Ramp {
    pub steps: Vec<Report>,
    /// The highest number of calls at which nothing gave.
    pub calls_carried: u32,
    /// What gave at the next step; `None` when the last step was carried too.
    pub knee: Option<String>,
}

/// Climbs until the knee, or `options.calls`; `told` hears of each step.
///
/// # Errors
/// As of [`run`].
pub fn ramp(
    options: &Options,
    cancelled: &AtomicBool,
    told: &mut dyn FnMut(&Report, Option<&str>),
) -> io::Result<Ramp> {
    let mut ramp = Ramp { steps: Vec::new(), calls_carried: 0, knee: None };
    let mut calls = FIRST.min(options.calls);
    loop {
        let report = run(&Options { calls, ..options.clone() }, cancelled)?;
        let gave = what_gave(&report);
        told(&report, gave.as_deref());
        ramp.steps.push(report);
        if gave.is_some() || calls >= options.calls {
            ramp.knee = gave;
            ramp.calls_carried =
                ramp.calls_carried.max(if ramp.knee.is_none() { calls } else { 0 });
            return Ok(ramp);
        }
        ramp.calls_carried = calls;
        calls = if calls < STEP { STEP } else { calls + STEP }.min(options.calls);
    }
}

fn what_gave(report: &Report) -> Option<String> {
    let first = report.faults.first().or(report.not_valid.first());
    let slow = [
        (&report.to_ai.added, "latency to the AI"),
        (&report.to_caller.added, "latency to the callers"),
        (&report.rtp_lateness, "lateness of RTP"),
    ];
    let slow = slow.iter().find_map(|(spread, what)| {
        let p99_ms = spread.as_ref()?.p99_ms;
        (p99_ms > P99_MS).then(|| format!("{what}: p99 {p99_ms:.1} ms"))
    });
    let used = report.used_percent();
    let full = (used > FULL_PERCENT).then(|| format!("CPU: {used:.0} % of all cores used"));
    first.cloned().or(slow).or(full)
}

/// One line of a step.
pub fn line(report: &Report, gave: Option<&str>) -> String {
    let p99 = |spread: &Option<_>| spread.as_ref().map_or(f64::NAN, |s: &Spread| s.p99_ms);
    format!(
        "{:5} calls  lost {}+{}  p99 in {:.2} out {:.2} RTP {:.2} ms  \
         bridge {:.1} % CPU ({:.3} % a call), {:.0} kB a call  idle {:.0} %  {}",
        report.calls_wanted,
        report.to_ai.lost,
        report.to_caller.lost,
        p99(&report.to_ai.added),
        p99(&report.to_caller.added),
        p99(&report.rtp_lateness),
        report.cpu_percent(),
        report.bridge.cpu_percent_per_call,
        report.bridge.resident_kb_per_call,
        report.machine_idle_percent,
        gave.map_or("carried".to_owned(), |gave| format!("KNEE: {gave}")),
    )
}

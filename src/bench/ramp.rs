//! Measurements with more and more calls, each with a fresh bridge, until something breaks: the
//! knee.

use std::io;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::bench::figures::Spread;
use crate::bench::report::Report;
use crate::bench::run::{Options, run};

/// The steps are 50, 100, and then every further 100 calls.
const FIRST: u32 = 50;
const STEP: u32 = 100;
/// A p99 above this means that one frame in a hundred missed its slot.
const P99_MS: f64 = 20.0;
/// Above this share of all cores, used by the bridge and the generator together, the machine is
/// full. Other processes are not counted; each step's line shows how much of the machine was idle.
const FULL_PERCENT: f64 = 95.0;

#[derive(Debug, Serialize)]
pub struct Ramp {
    pub steps: Vec<Report>,
    /// The highest number of calls at which nothing broke.
    pub calls_carried: u32,
    /// The reason why the next step failed; `None` if the last step was carried too.
    pub knee: Option<String>,
}

/// Adds calls until the knee or `options.calls` is reached. `on_step` is called after each step
/// with its report and, at the knee, the reason.
///
/// # Errors
/// Returns the errors of [`run`].
pub fn ramp(
    options: &Options,
    cancelled: &AtomicBool,
    on_step: &mut dyn FnMut(&Report, Option<&str>),
) -> io::Result<Ramp> {
    let mut ramp = Ramp { steps: Vec::new(), calls_carried: 0, knee: None };
    let mut calls = FIRST.min(options.calls);
    loop {
        let report = run(&Options { calls, ..options.clone() }, cancelled)?;
        let knee = find_knee(&report);
        on_step(&report, knee.as_deref());
        ramp.steps.push(report);
        if knee.is_some() || calls >= options.calls {
            ramp.knee = knee;
            ramp.calls_carried =
                ramp.calls_carried.max(if ramp.knee.is_none() { calls } else { 0 });
            return Ok(ramp);
        }
        ramp.calls_carried = calls;
        calls = if calls < STEP { STEP } else { calls + STEP }.min(options.calls);
    }
}

/// Returns the reason why a step counts as the knee, if there is one.
fn find_knee(report: &Report) -> Option<String> {
    let first = report.faults.first().or(report.not_valid.first());
    let slow = [
        (&report.to_ai.latency, "latency to the AI"),
        (&report.to_caller.latency, "latency to the callers"),
        (&report.rtp_lateness, "RTP lateness"),
    ];
    let slow = slow.iter().find_map(|(spread, what)| {
        let p99_ms = spread.as_ref()?.p99_ms;
        (p99_ms > P99_MS).then(|| format!("{what}: p99 {p99_ms:.1} ms"))
    });
    let used = report.used_percent();
    let full = (used > FULL_PERCENT).then(|| format!("CPU: {used:.0} % of all cores in use"));
    first.cloned().or(slow).or(full)
}

/// Formats the one-line summary of a step.
pub fn line(report: &Report, knee: Option<&str>) -> String {
    let p99 = |spread: &Option<_>| spread.as_ref().map_or(f64::NAN, |s: &Spread| s.p99_ms);
    format!(
        "{:5} calls  lost {}+{}  p99 in {:.2} out {:.2} RTP {:.2} ms  \
         bridge {:.1} % CPU ({:.3} % per call), {:.0} kB per call  idle {:.0} %  {}",
        report.calls_wanted,
        report.to_ai.lost,
        report.to_caller.lost,
        p99(&report.to_ai.latency),
        p99(&report.to_caller.latency),
        p99(&report.rtp_lateness),
        report.cpu_percent(),
        report.bridge.cpu_percent_per_call,
        report.bridge.resident_kb_per_call,
        report.machine_use.idle_percent,
        knee.map_or("carried".to_owned(), |knee| format!("KNEE: {knee}")),
    )
}

//! `/metrics`: counters and gauges in the Prometheus text format, version 0.0.4. Specification:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>. Owns a reading of the clock, for
//! the ports that have rested.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use crate::call::counters::{by_pbx, dropped, ended_by_reason};
use crate::call::live::STATES;
use crate::control::health::Watched;
use crate::telemetry::process;

/// Returns the metrics page.
pub fn text(watched: &Watched) -> String {
    let mut out = String::new();
    let head = |name: &str, help: &str, kind: &str| {
        format!("# HELP trunkless_{name} {help}\n# TYPE trunkless_{name} {kind}\n")
    };
    for counter in watched.counters.iter().flat_map(|part| part.iter()) {
        let (suffix, kind) = if counter.is_gauge { ("", "gauge") } else { ("_total", "counter") };
        let name = format!("{}{suffix}", counter.name);
        out += &head(&name, counter.help, kind);
        let _ = writeln!(out, "trunkless_{name} {}", counter.shown());
    }
    for total in watched.labelled.iter().flat_map(|part| part.iter()) {
        let name = format!("{}_total", total.name);
        out += &head(&name, total.help, "counter");
        for (values, count) in total.get() {
            let _ = writeln!(out, "trunkless_{name}{{{values}}} {count}");
        }
    }
    out += &head("calls_ended_total", "Calls that have ended, by reason.", "counter");
    for (reason, count) in ended_by_reason() {
        let label = reason.label();
        let _ = writeln!(out, "trunkless_calls_ended_total{{reason=\"{label}\"}} {count}");
    }
    out += &pbx_calls(&head);
    out += &head("frames_dropped_total", "Frames of 20 ms dropped, by the rule.", "counter");
    for (policy, frames) in dropped() {
        let _ = writeln!(out, "trunkless_frames_dropped_total{{policy=\"{policy}\"}} {frames}");
    }
    let mut before = "";
    for histogram in watched.histograms.iter().flat_map(|part| part.iter()) {
        // those with labels share one heading
        if std::mem::replace(&mut before, histogram.name) != histogram.name {
            out += &head(histogram.name, histogram.help, "histogram");
        }
        out += &histogram.samples();
    }
    out += &head("build_info", "The version; always 1.", "gauge");
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(out, "trunkless_build_info{{version=\"{version}\"}} 1");
    out += &head("rtp_port_pairs", "Pairs of RTP ports, by state.", "gauge");
    for (state, pairs) in
        [("used", watched.ports.in_use()), ("free", watched.ports.free(Instant::now()))]
    {
        let _ = writeln!(out, "trunkless_rtp_port_pairs{{state=\"{state}\"}} {pairs}");
    }
    out += &head("calls", "Calls in progress.", "gauge");
    let _ = writeln!(out, "trunkless_calls {}", watched.switchboard.len());
    out += &states(watched, &head);
    out += &head("calls_limit", "The setting max in [calls].", "gauge");
    let _ = writeln!(out, "trunkless_calls_limit {}", watched.admission.max());
    out += &process::text();
    out += &head("pbx_ready", "1 while calls from this PBX can be taken.", "gauge");
    for pbx in watched.pbxs.all() {
        let (name, mode, ready) = (&pbx.name, pbx.mode, u8::from(pbx.get().0));
        let _ = writeln!(out, "trunkless_pbx_ready{{pbx=\"{name}\",mode=\"{mode}\"}} {ready}");
    }
    let recorder = watched.recorder.borrow().clone();
    if let Some(recorder) = recorder {
        out += &head("recording_ready", "0 while recordings cannot be written.", "gauge");
        let ready = u8::from(recorder.trouble().is_none());
        let _ = writeln!(out, "trunkless_recording_ready {ready}");
    }
    out
}

/// Returns the calls in progress, of each PBX in each state.
fn states(watched: &Watched, head: &dyn Fn(&str, &str, &str) -> String) -> String {
    let mut counts = BTreeMap::new();
    for pbx in watched.pbxs.all() {
        counts.extend(STATES.map(|state| ((pbx.name.clone(), state), 0)));
    }
    for call in watched.switchboard.live() {
        if let Some(count) = counts.get_mut(&(call.pbx.to_string(), call.word())) {
            *count += 1;
        }
    }
    let mut out = head("pbx_calls", "Calls in progress, by PBX and state.", "gauge");
    for ((pbx, state), count) in counts {
        let labels = format!("pbx=\"{pbx}\",state=\"{state}\"");
        let _ = writeln!(out, "trunkless_pbx_calls{{{labels}}} {count}");
    }
    out
}

/// Returns the counts of each PBX. Its names come from the configuration, so they are few.
fn pbx_calls(head: &dyn Fn(&str, &str, &str) -> String) -> String {
    let all = by_pbx();
    let mut out = head("pbx_calls_answered_total", "Ended calls that were answered.", "counter");
    for (pbx, calls) in &all {
        let answered = calls.answered;
        let _ = writeln!(out, "trunkless_pbx_calls_answered_total{{pbx=\"{pbx}\"}} {answered}");
    }
    out += &head("pbx_calls_ended_total", "Calls that have ended or were refused.", "counter");
    for (pbx, reason, count) in
        all.iter().flat_map(|(pbx, calls)| calls.ended().map(move |(r, n)| (pbx, r.label(), n)))
    {
        let labels = format!("pbx=\"{pbx}\",reason=\"{reason}\"");
        let _ = writeln!(out, "trunkless_pbx_calls_ended_total{{{labels}}} {count}");
    }
    out += &head("pbx_calls_refused_total", "Calls refused before they began.", "counter");
    for (pbx, reason, count) in
        all.iter().flat_map(|(pbx, calls)| calls.refused().map(move |(r, n)| (pbx, r.label(), n)))
    {
        let labels = format!("pbx=\"{pbx}\",reason=\"{reason}\"");
        let _ = writeln!(out, "trunkless_pbx_calls_refused_total{{{labels}}} {count}");
    }
    out
}

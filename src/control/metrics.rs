//! `/metrics`: counters and gauges in the Prometheus text format, version 0.0.4. Specification:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write as _;

use crate::call::counters::ended_by_reason;
use crate::control::Watched;

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
        let _ = writeln!(out, "trunkless_{name} {}", counter.get());
    }
    for total in watched.labelled {
        let (name, label) = (format!("{}_total", total.name), total.label);
        out += &head(&name, total.help, "counter");
        for (value, count) in total.get() {
            let _ = writeln!(out, "trunkless_{name}{{{label}=\"{value}\"}} {count}");
        }
    }
    out += &head("calls_ended_total", "Calls that have ended, by reason.", "counter");
    for (reason, count) in ended_by_reason() {
        let label = reason.label();
        let _ = writeln!(out, "trunkless_calls_ended_total{{reason=\"{label}\"}} {count}");
    }
    out += &head("calls", "Calls in progress.", "gauge");
    let _ = writeln!(out, "trunkless_calls {}", (watched.calls)());
    out += &head("pbx_ready", "1 while calls from this PBX can be taken.", "gauge");
    for pbx in &*watched.pbxs {
        let (name, mode, ready) = (&pbx.name, pbx.mode, u8::from(pbx.get().0));
        let _ = writeln!(out, "trunkless_pbx_ready{{pbx=\"{name}\",mode=\"{mode}\"}} {ready}");
    }
    if let Some(recorder) = &watched.recorder {
        out += &head("recording_ready", "0 while recordings cannot be written.", "gauge");
        let ready = u8::from(recorder.trouble().is_none());
        let _ = writeln!(out, "trunkless_recording_ready {ready}");
    }
    out
}

//! `/metrics`: counters and gauges in the Prometheus text format, version 0.0.4. Specification:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::call::end::EndReason;
use crate::control::Watched;
use crate::telemetry::COUNTERS;

/// Name, help text and counter.
type Row = (&'static str, &'static str, &'static AtomicU64);

fn counters() -> [Row; 19] {
    let c = &COUNTERS;
    [
        ("calls_offered", "Calls offered by a PBX.", &c.offered),
        ("calls_answered", "Calls answered.", &c.answered),
        ("sip_strangers", "SIP requests from addresses outside the configuration.", &c.strangers),
        ("sip_unreadable", "SIP messages that could not be parsed.", &c.unreadable),
        ("rtp_frames_lost", "Caller frames that never arrived.", &c.frames_lost),
        ("rtp_frames_late", "Caller frames that arrived too late.", &c.frames_late),
        ("rtp_wrong_source", "RTP from addresses that no PBX named.", &c.rtp_wrong_source),
        ("ai_frames_dropped", "Frames dropped because an AI was slow.", &c.ai_frames_dropped),
        ("recordings", "Recordings finished.", &c.recordings),
        ("recordings_partial", "Recordings finished with gaps.", &c.recordings_partial),
        ("recordings_failed", "Recordings given up.", &c.recordings_failed),
        ("recordings_repaired", "Recordings repaired after a crash.", &c.recordings_repaired),
        ("recording_errors", "Writes to the disk that failed.", &c.recording_errors),
        ("recording_lost_milliseconds", "Audio that was not recorded.", &c.recording_lost_ms),
        ("recording_uploads", "Recordings uploaded.", &c.uploads),
        ("recording_webhooks", "Webhooks accepted.", &c.webhooks),
        ("recording_send_errors", "Failed upload and webhook attempts.", &c.outbox_errors),
        ("panics", "Internal errors (panics).", &c.panics),
        ("recordings_waiting", "Recordings waiting to be sent.", &c.outbox_waiting),
    ]
}

/// Returns the metrics page.
pub fn text(watched: &Watched) -> String {
    let mut out = String::new();
    let head = |name: &str, help: &str, kind: &str| {
        format!("# HELP trunkless_{name} {help}\n# TYPE trunkless_{name} {kind}\n")
    };
    for (name, help, counter) in counters() {
        let gauge = name == "recordings_waiting";
        let name = if gauge { name.to_owned() } else { format!("{name}_total") };
        out += &head(&name, help, if gauge { "gauge" } else { "counter" });
        let _ = writeln!(out, "trunkless_{name} {}", counter.load(Ordering::Relaxed));
    }
    out += &head("calls_ended_total", "Calls ended, by reason.", "counter");
    for reason in EndReason::ALL {
        let (label, count) = (reason.label(), COUNTERS.ended_by(reason));
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

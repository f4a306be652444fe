//! `/metrics`: counters and states in Prometheus' text format, version 0.0.4.
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::call::end::EndReason;
use crate::control::Watched;
use crate::telemetry::COUNTERS;

/// Name, what it counts, and the counter.
type Row = (&'static str, &'static str, &'static AtomicU64);

fn counters() -> [Row; 19] {
    let c = &COUNTERS;
    [
        ("calls_offered", "Calls that a PBX has offered.", &c.offered),
        ("calls_answered", "Calls that were answered.", &c.answered),
        ("sip_strangers", "SIP requests from addresses that are no PBX of ours.", &c.strangers),
        ("sip_unreadable", "SIP messages that could not be read.", &c.unreadable),
        ("rtp_frames_lost", "Frames of callers that never came.", &c.frames_lost),
        ("rtp_frames_late", "Frames of callers that came too late.", &c.frames_late),
        ("rtp_wrong_source", "RTP from addresses that no PBX has named.", &c.rtp_wrong_source),
        ("ai_frames_dropped", "Frames that an AI was too slow for.", &c.ai_frames_dropped),
        ("recordings", "Recordings that were finished.", &c.recordings),
        ("recordings_partial", "Recordings with gaps.", &c.recordings_partial),
        ("recordings_failed", "Recordings that were given up.", &c.recordings_failed),
        ("recordings_repaired", "Recordings that a crash had left.", &c.recordings_repaired),
        ("recording_errors", "Writes that the disk refused.", &c.recording_errors),
        ("recording_lost_milliseconds", "Audio that could not be kept.", &c.recording_lost_ms),
        ("recording_uploads", "Recordings that were uploaded.", &c.uploads),
        ("recording_webhooks", "Webhooks that were taken.", &c.webhooks),
        ("recording_send_errors", "Uploads and webhooks that failed once.", &c.outbox_errors),
        ("panics", "Calls that a fault of ours has ended.", &c.panics),
        ("recordings_waiting", "Recordings that are still to be sent.", &c.outbox_waiting),
    ]
}

/// The page.
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
    out += &head("calls_ended_total", "Calls that have ended, by reason.", "counter");
    for reason in EndReason::ALL {
        let (label, count) = (reason.label(), COUNTERS.ended_by(reason));
        let _ = writeln!(out, "trunkless_calls_ended_total{{reason=\"{label}\"}} {count}");
    }
    out += &head("calls", "Calls that are up.", "gauge");
    let _ = writeln!(out, "trunkless_calls {}", (watched.calls)());
    out += &head("pbx_ready", "1 while calls from this PBX can be taken.", "gauge");
    for pbx in &*watched.pbxs {
        let (name, mode, ready) = (&pbx.name, pbx.mode, u8::from(pbx.get().0));
        let _ = writeln!(out, "trunkless_pbx_ready{{pbx=\"{name}\",mode=\"{mode}\"}} {ready}");
    }
    if let Some(recorder) = &watched.recorder {
        out += &head("recording_ready", "0 while recordings cannot be written: alert.", "gauge");
        let ready = u8::from(recorder.trouble().is_none());
        let _ = writeln!(out, "trunkless_recording_ready {ready}");
    }
    out
}

//! The counters of calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::call::end::EndReason;
use crate::call::words::Summary;
use crate::telemetry::counter::counters;
use crate::telemetry::histogram::Histogram;

counters! {
    total OFFERED = "calls_offered", "Calls offered by a PBX.";
    total ANSWERED = "calls_answered", "Calls answered.";
    total FRAMES_LOST = "rtp_frames_lost", "Caller frames that never arrived.";
    total FRAMES_LATE = "rtp_frames_late", "Caller frames dropped because they arrived too late.";
    total FRAMES_LATE_KEPT = "rtp_frames_late_kept", "Caller frames that were late, but kept.";
    total FRAMES_LEFT_OUT = "rtp_frames_left_out", "Quiet caller frames left out after late ones.";
    total PLAYOUT_LEFT_OUT = "playout_frames_left_out", "AI frames left out to reduce delay.";
    total WRONG_SOURCE = "rtp_wrong_source", "RTP from addresses that no PBX named.";
    total AI_FRAMES_DROPPED = "ai_frames_dropped", "Frames dropped because an AI was slow.";
    gauge PLAYOUT_FLOOR = "playout_floor_bytes", "AI audio that stays queued in all calls.";
}

/// From the offer of a call to its answer.
static SETUP: Histogram =
    Histogram::new("call_setup_seconds", "Time from the offer of a call to its answer.");
/// From the answer of a call to the AI's first audio.
static FIRST_AUDIO: Histogram = Histogram::new(
    "call_first_audio_seconds",
    "Time from the answer of a call to the first audio of the AI sent to the caller.",
);
/// All histograms of calls.
pub static HISTOGRAMS: &[&Histogram] = &[&SETUP, &FIRST_AUDIO];

/// The calls of one PBX that have ended.
#[derive(Debug, Clone, Default)]
pub struct PbxCalls {
    pub answered: u64,
    /// By end reason, in the order of [`EndReason::ALL`].
    ended: [u64; EndReason::ALL.len()],
    /// Those that were refused before they began, by reason.
    refused: [u64; EndReason::ALL.len()],
}

impl PbxCalls {
    /// The end reasons that have occurred, with their counts.
    pub fn ended(&self) -> impl Iterator<Item = (EndReason, u64)> {
        EndReason::ALL.into_iter().zip(self.ended).filter(|(_, count)| *count > 0)
    }

    /// The reasons of refusals that have occurred, with their counts.
    pub fn refused(&self) -> impl Iterator<Item = (EndReason, u64)> {
        EndReason::ALL.into_iter().zip(self.refused).filter(|(_, count)| *count > 0)
    }
}

/// The calls of each PBX in the configuration.
static BY_PBX: Mutex<BTreeMap<String, PbxCalls>> = Mutex::new(BTreeMap::new());

/// The calls of each PBX so far.
pub fn by_pbx() -> BTreeMap<String, PbxCalls> {
    BY_PBX.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn count(pbx: &str, reason: EndReason, answered: bool, refused: bool) {
    let mut all = BY_PBX.lock().unwrap_or_else(PoisonError::into_inner);
    let calls = all.entry(pbx.to_owned()).or_default();
    calls.answered += u64::from(answered);
    let at = EndReason::ALL.iter().position(|r| *r == reason);
    if let Some(at) = at {
        calls.ended[at] += 1;
        calls.refused[at] += u64::from(refused);
    }
}

/// Counts a call that was refused before it began.
pub fn refused(pbx: &str, reason: EndReason) {
    ended(reason);
    count(pbx, reason, false, true);
}

/// Counts a call that ended without a summary, because it panicked.
pub fn panicked(pbx: &str) {
    ended(EndReason::Internal);
    count(pbx, EndReason::Internal, false, false);
}

/// A call's part of [`PLAYOUT_FLOOR`].
#[derive(Debug, Default)]
pub struct PlayoutFloor(u64);

impl PlayoutFloor {
    pub fn set(&mut self, bytes: u64) {
        if bytes != self.0 {
            PLAYOUT_FLOOR.replace(self.0, bytes);
            self.0 = bytes;
        }
    }
}

impl Drop for PlayoutFloor {
    fn drop(&mut self) {
        self.set(0);
    }
}

static ENDED: [AtomicU64; EndReason::ALL.len()] =
    [const { AtomicU64::new(0) }; EndReason::ALL.len()];

/// Counts an ended call.
pub fn ended(reason: EndReason) {
    let at = EndReason::ALL.iter().position(|r| *r == reason);
    if let Some(count) = at.and_then(|at| ENDED.get(at)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every end reason with its count.
pub fn ended_by_reason() -> impl Iterator<Item = (EndReason, u64)> {
    EndReason::ALL.into_iter().zip(ENDED.iter().map(|count| count.load(Ordering::Relaxed)))
}

/// The end reasons that have occurred and their counts: `caller_hangup=3 ai_hangup=1`.
pub fn ended_text() -> String {
    let seen = ended_by_reason().filter(|(_, count)| *count > 0);
    let seen = seen.map(|(reason, count)| format!("{}={count}", reason.label()));
    seen.collect::<Vec<_>>().join(" ")
}

/// Counts an ended call with its figures.
pub fn add(pbx: &str, reason: EndReason, summary: &Summary, ai_frames_dropped: u64) {
    ended(reason);
    count(pbx, reason, summary.answered, false);
    if summary.answered {
        SETUP.observe(summary.setup);
    }
    if let Some(first) = summary.first_audio {
        FIRST_AUDIO.observe(first);
    }
    ANSWERED.add(summary.answered.into());
    FRAMES_LOST.add(summary.received.sequence.lost);
    FRAMES_LATE.add(summary.received.late());
    FRAMES_LATE_KEPT.add(summary.received.late_kept());
    FRAMES_LEFT_OUT.add(summary.received.timeline.left_out);
    PLAYOUT_LEFT_OUT.add(summary.playout_left_out);
    WRONG_SOURCE.add(summary.received.wrong_source);
    AI_FRAMES_DROPPED.add(ai_frames_dropped);
}

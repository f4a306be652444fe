//! The counters of calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::call::end::EndReason;
use crate::call::ended::Given;
use crate::call::placing::Refused;
use crate::call::turns::Turn;
use crate::call::words::Summary;
use crate::command::Failure;
use crate::media::frame::FRAME_SAMPLES;
use crate::media::quality::Quality;
use crate::stream::unreachable::ConnectError;
use crate::telemetry::counter::{Counter, Labelled, counters};
use crate::telemetry::histogram::Histogram;

/// The command `transfer` in records.
const TRANSFER: &str = "transfer";

counters! {
    total OFFERED = "calls_offered", "Calls offered by a PBX.";
    total ANSWERED = "calls_answered", "Calls answered.";
    total PACKETS_IN = "rtp_packets_received", "RTP packets from PBXs.";
    total PACKETS_OUT = "rtp_packets_sent", "RTP packets to PBXs.";
    total STALLS = "stalls", "Times at which a call thread stood still for more than 200 ms.";
    seconds STALLED_MS = "stalled_seconds", "The time for which call threads stood still.";
    total FRAMES_LOST = "rtp_frames_lost", "Caller frames that never arrived.";
    total FRAMES_LATE = "rtp_frames_late", "Caller frames dropped because they arrived too late.";
    total FRAMES_LATE_KEPT = "rtp_frames_late_kept", "Caller frames that were late, but kept.";
    total FRAMES_LEFT_OUT = "rtp_frames_left_out", "Quiet caller frames left out after late ones.";
    total PLAYOUT_LEFT_OUT = "playout_frames_left_out", "AI frames left out to reduce delay.";
    total PLAYOUT_DISCARDED = "playout_discarded_bytes", "AI audio beyond what may be queued.";
    total PREROLL_DROPPED = "preroll_frames_dropped",
        "Caller frames from before the AI was connected that were dropped.";
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
/// From the end of what the caller said to the AI's answer, and its two parts.
static TURN: Histogram = Histogram::new(
    "turn_latency_seconds",
    "Time from the end of what the caller said to the first RTP of the answer.",
);
static TURN_AI: Histogram = Histogram::new(
    "turn_ai_seconds",
    "The AI's share of the turn latency: until the first audio of its answer arrives.",
);
static TURN_BRIDGE: Histogram = Histogram::short(
    "turn_bridge_seconds",
    "Our share of the turn latency: from there to the first RTP.",
);
/// All histograms of calls.
pub static HISTOGRAMS: &[&Histogram] = &[
    &SETUP,
    &FIRST_AUDIO,
    &AI_CONNECT,
    &TURN,
    &TURN_AI,
    &TURN_BRIDGE,
    &ADDED_TO_AI,
    &ADDED_TO_CALLER,
    &JITTER,
    &ROUND_TRIP,
    &MOS,
];

const ADDED: &str = "added_latency_seconds";
const ADDED_HELP: &str =
    "Delay within trunkless, of one frame in 64: from arriving, or being due, to departing.";
static ADDED_TO_AI: Histogram =
    Histogram::short(ADDED, ADDED_HELP).labelled("direction=\"to_ai\",");
static ADDED_TO_CALLER: Histogram =
    Histogram::short(ADDED, ADDED_HELP).labelled("direction=\"to_caller\",");
/// Every 5 s of a call.
static JITTER: Histogram =
    Histogram::short("rtp_jitter_seconds", "Jitter of the RTP from the PBX, every 5 s of a call.");
static ROUND_TRIP: Histogram = Histogram::short(
    "rtp_round_trip_seconds",
    "Round trip to the PBX by RTCP, every 5 s of a call, where the PBX sends RTCP.",
);
static MOS: Histogram = Histogram::scores(
    "rtp_mos",
    "Estimated mean opinion score (E-model) of the audio from the PBX, every 5 s of a call.",
);
static AI_CONNECT: Histogram =
    Histogram::new("ai_connect_seconds", "Time from dialling an AI to its open WebSocket.");
static AI_FAILURES: Labelled = Labelled::with_known(
    "ai_connect_failures",
    "AIs that could not be reached, by cause.",
    &["kind"],
    &ConnectError::KINDS,
);
static TRANSFERS: Labelled =
    Labelled::new("transfers", "Transfers by their result: done, or why they failed.", &["result"]);
static TOOLS: Labelled = Labelled::with_known(
    "ai_tools",
    "Tools called by models, other than call control, by result.",
    &["result"],
    &["done", "failed", "refused"],
);
/// Counts an AI that a call could not be connected with, by the kind of the error.
pub fn ai_failed(kind: &'static str) {
    AI_FAILURES.add(&[kind]);
}

/// Counts a tool by its result.
pub fn tool_called(result: &'static str) {
    TOOLS.add(&[result]);
}

static NOT_PLACED: Labelled = Labelled::with_known(
    "calls_not_placed",
    "Calls out that were refused before the callee was called, by reason.",
    &["reason"],
    &Refused::WORDS,
);

/// Counts a call out that was refused.
pub fn not_placed(reason: &'static str) {
    NOT_PLACED.add(&[reason]);
}

static ROUTED: Labelled =
    Labelled::new("route_calls", "Calls by the route that applied to them.", &["route"]);
/// All counters of calls that have labels.
pub static LABELLED: &[&Labelled] = &[&AI_FAILURES, &TRANSFERS, &TOOLS, &NOT_PLACED, &ROUTED];

/// Counts a call to which a route applied. Its name is from the configuration.
pub fn routed(route: &str) {
    ROUTED.add(&[route]);
}

/// Counts an attempt to connect a call with its AI: how long it took, and the kind of its failure.
pub fn ai_dialled(took: Duration, failure: Option<&'static str>) {
    match failure {
        None => AI_CONNECT.observe(took),
        Some(kind) => ai_failed(kind),
    }
}

/// Counts the delay of one frame from the caller to the AI.
pub fn delayed_to_ai(time: Duration) {
    ADDED_TO_AI.observe(time);
}

/// Counts the delay of one frame from the AI to the caller.
pub fn delayed_to_caller(time: Duration) {
    ADDED_TO_CALLER.observe(time);
}

/// Counts a turn of a conversation.
pub fn turn(turn: &Turn) {
    TURN.observe(turn.total());
    TURN_AI.observe(turn.ai_share());
    TURN_BRIDGE.observe(turn.bridge_share());
}

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

/// Counts an ended call with its times and its commands.
pub fn add(pbx: &str, reason: EndReason, summary: &Summary, commands: &[Given]) {
    ended(reason);
    count(pbx, reason, summary.answered, false);
    if summary.answered {
        SETUP.observe(summary.setup);
    }
    if let Some(first) = summary.first_audio {
        FIRST_AUDIO.observe(first);
    }
    ANSWERED.add(summary.answered.into());
    for transfer in commands.iter().filter(|given| given.command == TRANSFER) {
        TRANSFERS.add(&[transfer.failure.map_or("done", Failure::word)]);
    }
}

/// The audio of one call, as far as it has been counted.
#[derive(Debug, Default)]
pub struct Traffic {
    summary: Summary,
    ai_dropped: u64,
}

impl Traffic {
    /// Counts what is new since the last time.
    pub fn count(&mut self, summary: &Summary, ai_dropped: u64) {
        let before = &self.summary;
        let new = |counter: &Counter, part: fn(&Summary) -> u64| {
            counter.add(part(summary).saturating_sub(part(before)));
        };
        new(&PACKETS_IN, |s| s.received.sequence.received);
        new(&PACKETS_OUT, |s| s.packets_sent.into());
        new(&FRAMES_LOST, |s| s.received.sequence.lost);
        new(&FRAMES_LATE, |s| s.received.late());
        new(&FRAMES_LATE_KEPT, |s| s.received.late_kept());
        new(&FRAMES_LEFT_OUT, |s| s.received.timeline.left_out);
        new(&PLAYOUT_LEFT_OUT, |s| s.playout_left_out);
        new(&PLAYOUT_DISCARDED, |s| s.playout_discarded);
        new(&PREROLL_DROPPED, |s| s.preroll_dropped);
        new(&WRONG_SOURCE, |s| s.received.wrong_source);
        AI_FRAMES_DROPPED.add(ai_dropped.saturating_sub(self.ai_dropped));
        (self.summary, self.ai_dropped) = (*summary, ai_dropped);
    }

    /// The same after some seconds of the call, whose quality is counted too.
    pub fn report(&mut self, summary: &Summary, ai_dropped: u64) {
        let since = |part: fn(&Summary) -> u64| part(summary).saturating_sub(part(&self.summary));
        let received = since(|s| s.received.sequence.received);
        let missing = since(|s| s.received.sequence.lost + s.received.late());
        if let Some(jitter) = summary.jitter.filter(|_| received > 0) {
            let loss = missing as f64 / (received + missing) as f64;
            let round_trip = summary.round_trip;
            JITTER.observe(jitter);
            MOS.observe_figure(Quality { loss, jitter, round_trip }.mos());
            round_trip.iter().for_each(|time| ROUND_TRIP.observe(*time));
        }
        self.count(summary, ai_dropped);
    }
}

/// The frames that were dropped so far, by the rule that dropped them.
pub fn dropped() -> [(&'static str, u64); 6] {
    let in_frames = |bytes: &Counter| bytes.get() / FRAME_SAMPLES as u64;
    [
        ("late", FRAMES_LATE.get()),
        ("left_out_caller", FRAMES_LEFT_OUT.get()),
        ("left_out_ai", PLAYOUT_LEFT_OUT.get()),
        ("preroll_full", PREROLL_DROPPED.get()),
        ("ai_slow", AI_FRAMES_DROPPED.get()),
        ("playout_full", in_frames(&PLAYOUT_DISCARDED)),
    ]
}

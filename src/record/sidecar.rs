//! The sidecar: a JSON file beside each recording.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Changes when a field changes its meaning.
pub const VERSION: u32 = 1;

/// State of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In progress.
    Recording,
    /// Finished without gaps.
    Complete,
    /// Finished, but the `gaps` could not be written and are silence.
    Partial,
    /// Cut off because the program or the machine stopped.
    Truncated,
}

impl State {
    pub fn label(self) -> &'static str {
        match self {
            State::Recording => "recording",
            State::Complete => "complete",
            State::Partial => "partial",
            State::Truncated => "truncated",
        }
    }
}

/// The recorded call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallInfo {
    /// The call's id in the log.
    pub id: String,
    pub call_sid: String,
    pub stream_sid: String,
    /// The PBX's own id: the SIP Call-ID, or the channel's id.
    pub native_id: String,
    pub pbx: String,
    /// The name of the route that applied to the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    pub from_number: String,
    #[serde(default)]
    pub from_name: String,
    pub to_number: String,
    /// `outbound` for a call that we placed; otherwise empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub direction: String,
    /// How a dialler knows the call: its ids there, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// The audio file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audio {
    /// File name; the file is in the sidecar's folder.
    pub file: String,
    /// `mulaw`, `alaw` or `pcm16`; always a WAV at 8 kHz.
    pub format: String,
    /// Names of the left and the right channel.
    pub channels: Vec<String>,
    /// Samples per channel.
    pub samples: u64,
    /// Size of the whole file.
    pub bytes: u64,
    /// Hash of the whole file, in hex.
    pub sha256: String,
}

/// Network statistics of the call's audio, in packets and milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub packets_in: u64,
    pub packets_out: u64,
    pub lost: u64,
    pub late: u64,
    pub duplicates: u64,
    /// Audio made up for lost packets.
    pub concealed_ms: u64,
    /// Time without packets: hold, or a phone that sends nothing.
    pub silence_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<u64>,
}

/// How the caller's track was kept in step with the AI's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Alignment {
    /// Frames inserted or dropped.
    pub steps: u32,
    /// Offset between the tracks at the end.
    pub offset_ms: f64,
}

/// A part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    pub from_ms: u64,
    pub to_ms: u64,
}

/// An event, at its position in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at_ms: u64,
    #[serde(flatten)]
    pub what: What,
}

/// The kind of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The caller pressed a key.
    Dtmf(char),
    /// The AI's audio before this mark has been played.
    Mark(String),
}

/// Where and when the audio was uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub url: String,
    pub at: String,
}

/// The commands of the call and its result, as known at the end of the recording.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The result of the conversation, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disposition: Option<DispositionInfo>,
    /// The commands that were given, in the order in which they were completed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<CommandInfo>,
    /// The first 1000 turns of the conversation in which the AI answered the caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<TurnInfo>,
}

/// A turn of the conversation. Times are milliseconds since the call's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnInfo {
    /// The caller stopped speaking.
    pub caller_stopped_ms: u64,
    /// The first audio of the answer arrived.
    pub ai_first_audio_ms: u64,
    /// Its beginning was sent to the caller.
    pub first_rtp_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DispositionInfo {
    pub status: String,
    pub data: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// The sender: `ai`, or `http:` and the name of a token of the control API.
    pub by: String,
    pub command: String,
    /// The target of a transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why it failed; missing if it was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The contents of a sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sidecar {
    pub version: u32,
    /// Id of the recording: the call's id, followed by -2 for its second recording, and so on.
    pub id: String,
    pub state: State,
    pub call: CallInfo,
    /// Time of the file's first sample: RFC 3339, UTC.
    pub started_at: String,
    /// The same, as time since the call's answer.
    pub start_ms: u64,
    pub duration_ms: u64,
    /// The call's end reason, as in the log; or `recording_stopped`, or `internal_kill` after a
    /// crash.
    pub end_reason: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Path of both files below the recordings' directory, without extension.
    pub path: String,
    pub audio: Audio,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    pub alignment: Alignment,
    /// Silence because recording was paused.
    pub pauses: Vec<Interval>,
    /// Silence because the audio could not be written in time.
    pub gaps: Vec<Interval>,
    pub events: Vec<Event>,
    /// Events left out: beyond 10,000 events, or 1 MiB of mark names.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub events_dropped: u64,
    /// Failed attempts to write to the disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub write_errors: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Sidecar {
    /// Creates the sidecar of a recording that starts now; `path` is relative, without extension.
    pub fn begun(id: &str, call: CallInfo, unix: Duration, path: &Path) -> Sidecar {
        Sidecar {
            version: VERSION,
            id: id.to_owned(),
            state: State::Recording,
            call,
            started_at: rfc3339(unix),
            start_ms: 0,
            duration_ms: 0,
            end_reason: String::new(),
            outcome: Outcome::default(),
            path: path.to_string_lossy().into_owned(),
            audio: Audio {
                channels: vec!["caller".to_owned(), "ai".to_owned()],
                ..Audio::default()
            },
            network: None,
            alignment: Alignment::default(),
            pauses: Vec::new(),
            gaps: Vec::new(),
            events: Vec::new(),
            events_dropped: 0,
            write_errors: 0,
            upload: None,
        }
    }

    /// Returns the text of the file, with one line per field.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Formats a time as `2026-11-24T15:29:25.123Z`.
pub fn rfc3339(unix: Duration) -> String {
    let at = UNIX_EPOCH.checked_add(unix).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string()
}

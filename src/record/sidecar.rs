//! The JSON file beside a recording.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Changes when a field changes its meaning.
pub const VERSION: u32 = 1;

/// How a recording came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is being made.
    Recording,
    /// Whole.
    Complete,
    /// Closed in order, but `gaps` could not be written and are silence.
    Partial,
    /// The program or the machine stopped while it was made.
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

/// Which call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallInfo {
    /// As in the log.
    pub id: String,
    pub call_sid: String,
    pub stream_sid: String,
    /// The PBX's name of it: SIP Call-ID, or the channel's id.
    pub native_id: String,
    pub pbx: String,
    pub from_number: String,
    pub to_number: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audio {
    /// The file's name, beside this one.
    pub file: String,
    /// `mulaw`, `alaw` or `pcm16`, 8 kHz, in a WAV.
    pub format: String,
    /// Left and right.
    pub channels: Vec<String>,
    /// Of each channel.
    pub samples: u64,
    /// The whole file's size.
    pub bytes: u64,
    /// The whole file's, in hex.
    pub sha256: String,
}

/// What the network did to the caller's audio, in packets and milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub packets_in: u64,
    pub packets_out: u64,
    pub lost: u64,
    pub late: u64,
    pub duplicates: u64,
    /// Made up for lost packets.
    pub concealed_ms: u64,
    /// Nothing came: hold, or a silent phone.
    pub silence_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<u64>,
}

/// How the caller's track was kept beside the AI's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Alignment {
    /// Frames that were put in or left out.
    pub steps: u32,
    /// How far apart the two were in the end.
    pub offset_ms: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    pub from_ms: u64,
    pub to_ms: u64,
}

/// Something that happened, at its place in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at_ms: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The caller pressed a key.
    Dtmf(char),
    /// The AI's audio was played up to this mark.
    Mark(String),
}

/// Where it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub url: String,
    pub at: String,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sidecar {
    pub version: u32,
    /// The recording's: the call's id, with -2 for its second recording.
    pub id: String,
    pub state: State,
    pub call: CallInfo,
    /// When the file's first sample was heard, RFC 3339, UTC.
    pub started_at: String,
    /// So long after the call's answer.
    pub start_ms: u64,
    pub duration_ms: u64,
    /// The call's, as in the log; `recording_stopped`, or `internal_kill` after a crash.
    pub end_reason: String,
    /// Where both files are below the recordings' directory, without ending.
    pub path: String,
    pub audio: Audio,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    pub alignment: Alignment,
    /// Silence because of `pause`.
    pub pauses: Vec<Interval>,
    /// Silence because it could not be written in time.
    pub gaps: Vec<Interval>,
    pub events: Vec<Event>,
    /// Events beyond the first 10,000.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub events_dropped: u64,
    /// Times that the disk refused a write.
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
    /// Of a recording that begins now; `path` is relative and without ending.
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

    /// As the file holds it, a line a field.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// `2026-11-24T15:29:25.123Z`.
pub fn rfc3339(unix: Duration) -> String {
    let at = UNIX_EPOCH.checked_add(unix).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string()
}

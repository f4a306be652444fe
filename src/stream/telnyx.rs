//! Telnyx' media streaming over WebSockets, bidirectional, with mu-law.
//! Source: <https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::{Value, json};

use crate::stream::StreamInfo;
use crate::stream::carrier::{Encoding, Shape};
use crate::stream::own::parameter;
use crate::stream::twilio::object;

/// The header field of the handshake with the token.
const TOKEN: &str = "x-telnyx-streaming-auth-token";

/// Returns the handshake headers of Telnyx' media servers.
pub(super) fn handshake_headers(auth_token: Option<&str>) -> Vec<(&'static str, String)> {
    auth_token.map(|token| (TOKEN, token.to_owned())).into_iter().collect()
}

/// Telnyx' messages.
pub(super) enum Telnyx {}

impl Shape for Telnyx {
    const SEQUENCE: (&'static str, bool) = ("sequence_number", true);
    const FIRST: u64 = 1;
    const STREAM: &'static str = "stream_id";
    const TRACK: &'static str = r#""track":"inbound","#;
    const WORDS: [&'static str; 3] = ["media", "mark", "clear"];
    const CONNECTED: Option<&'static str> = Some(r#"{"event":"connected","version":"1.0.0"}"#);
    const CLEARED: Option<&'static str> = None;

    fn start(info: &StreamInfo, rate: u32) -> Vec<(&'static str, Value)> {
        let start = json!({
            "user_id": info.account_sid,
            "call_control_id": info.call_sid,
            "call_session_id": info.call_sid,
            "from": parameter(info, "from_number"),
            "to": parameter(info, "to_number"),
            "tags": [],
            "client_state": "",
            "custom_parameters": object(&info.parameters),
            "media_format": {"encoding": "PCMU", "sample_rate": rate, "channels": 1},
        });
        vec![("start", start)]
    }

    fn digit(digit: char, _t_ms: u64) -> Value {
        json!({"digit": digit})
    }

    fn mark(
        name: &str,
        cleared: bool,
        extended: bool,
    ) -> Option<(&'static str, &'static str, Value)> {
        Some(("mark", "mark", marked(name, cleared, extended)))
    }

    fn stop(info: &StreamInfo) -> Option<Value> {
        Some(json!({"user_id": info.account_sid, "call_control_id": info.call_sid}))
    }

    fn encoding(_rate: u32) -> Encoding {
        Encoding::MuLaw
    }
}

/// Returns the body of a mark; once our own messages may be sent, with what became of its audio.
pub(super) fn marked(name: &str, cleared: bool, extended: bool) -> Value {
    match (extended, cleared) {
        (false, _) => json!({"name": name}),
        (true, false) => json!({"name": name, "played": true}),
        (true, true) => json!({"name": name, "cleared": true}),
    }
}

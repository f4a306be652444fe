//! Exotel's streams of its Voicebot applet: linear audio in base64.
//! Source: <https://developer.exotel.com/docs/agentstream/websocket-protocol>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::{Value, json};

use crate::stream::StreamInfo;
use crate::stream::carrier::{Encoding, Shape};
use crate::stream::l16::KEY_MS;
use crate::stream::own::parameter;
use crate::stream::telnyx::marked;
use crate::stream::twilio::object;

/// The parameter of the URL that names the sample rate.
const RATE_PARAMETER: &str = "sample-rate=";

/// Exotel's messages.
pub(super) enum Exotel {}

impl Shape for Exotel {
    const SEQUENCE: (&'static str, bool) = ("sequence_number", true);
    const FIRST: u64 = 1;
    const STREAM: &'static str = "stream_sid";
    const TRACK: &'static str = "";
    const WORDS: [&'static str; 3] = ["media", "mark", "clear"];
    const CONNECTED: Option<&'static str> = Some(r#"{"event":"connected"}"#);
    const CLEARED: Option<&'static str> = None;

    fn start(info: &StreamInfo, rate: u32) -> Vec<(&'static str, Value)> {
        let start = json!({
            "stream_sid": info.stream_sid,
            "call_sid": info.call_sid,
            "account_sid": info.account_sid,
            "from": parameter(info, "from_number"),
            "to": parameter(info, "to_number"),
            "custom_parameters": object(&info.parameters),
            "media_format":
                {"encoding": "audio/x-raw", "sample_rate": rate.to_string(), "bit_rate": "16"},
        });
        vec![("start", start)]
    }

    fn digit(digit: char, _t_ms: u64) -> Value {
        json!({"digit": digit, "duration": KEY_MS.to_string()})
    }

    fn mark(
        name: &str,
        cleared: bool,
        extended: bool,
    ) -> Option<(&'static str, &'static str, Value)> {
        Some(("mark", "mark", marked(name, cleared, extended)))
    }

    fn stop(info: &StreamInfo) -> Option<Value> {
        let (call, account) = (&info.call_sid, &info.account_sid);
        Some(json!({"call_sid": call, "account_sid": account, "reason": "callended"}))
    }

    fn encoding(rate: u32) -> Encoding {
        Encoding::Linear(rate)
    }
}

/// Returns the URL with the parameter that names the sample rate, if there is one and the URL does
/// not name it already.
pub(super) fn url(configured: &str, rate: Option<u32>) -> String {
    let (path, query) = configured.split_once('?').unwrap_or((configured, ""));
    let named = query.split('&').any(|pair| pair.starts_with(RATE_PARAMETER));
    match rate.filter(|_| !named) {
        None => configured.to_owned(),
        Some(rate) if query.is_empty() => format!("{path}?{RATE_PARAMETER}{rate}"),
        Some(rate) => format!("{path}?{query}&{RATE_PARAMETER}{rate}"),
    }
}

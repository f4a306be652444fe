//! Plivo's audio streaming, bidirectional: mu-law, or linear audio at 16 kHz. An AI may answer in
//! another of Plivo's formats, because each of its messages names one.
//! Sources: Plivo's documentation of audio streaming, and its SDK (`plivo-stream-sdk`).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::{Value, json};

use crate::media::frame::RATE;
use crate::stream::StreamInfo;
use crate::stream::carrier::{Encoding, Shape};
use crate::stream::twilio::object;

const MU_LAW: &str = "audio/x-mulaw";
const LINEAR: &str = "audio/x-l16";

/// Plivo's messages.
pub(super) enum Plivo {}

impl Shape for Plivo {
    const SEQUENCE: (&'static str, bool) = ("sequenceNumber", false);
    const FIRST: u64 = 0;
    const STREAM: &'static str = "streamId";
    const TRACK: &'static str = r#""track":"inbound","#;
    const WORDS: [&'static str; 3] = ["playAudio", "checkpoint", "clearAudio"];
    const CONNECTED: Option<&'static str> = None;
    const CLEARED: Option<&'static str> = Some("clearedAudio");

    /// `extra_headers` has the parameters, as JSON in a string.
    fn start(info: &StreamInfo, rate: u32) -> Vec<(&'static str, Value)> {
        let encoding = match Plivo::encoding(rate) {
            Encoding::MuLaw => MU_LAW,
            Encoding::Linear(_) => LINEAR,
        };
        let start = json!({
            "callId": info.call_sid,
            "streamId": info.stream_sid,
            "accountId": info.account_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": encoding, "sampleRate": rate},
        });
        vec![("start", start), ("extra_headers", object(&info.parameters).to_string().into())]
    }

    fn digit(digit: char, t_ms: u64) -> Value {
        json!({"track": "inbound", "digit": digit, "timestamp": t_ms.to_string()})
    }

    /// The event is sent only for audio that has been played.
    fn mark(
        name: &str,
        cleared: bool,
        _extended: bool,
    ) -> Option<(&'static str, &'static str, Value)> {
        (!cleared).then(|| ("playedStream", "name", name.into()))
    }

    fn stop(_info: &StreamInfo) -> Option<Value> {
        None
    }

    fn encoding(rate: u32) -> Encoding {
        if u64::from(rate) == RATE { Encoding::MuLaw } else { Encoding::Linear(rate) }
    }

    fn named(content_type: &str, rate: u32, _stream: Encoding) -> Option<Encoding> {
        match (content_type, rate) {
            (MU_LAW, 8000) => Some(Encoding::MuLaw),
            (LINEAR, 8000 | 16_000) => Some(Encoding::Linear(rate)),
            _ => None,
        }
    }
}

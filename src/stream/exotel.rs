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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::carrier::Carrier;
    use crate::stream::dialect::{Codec as _, Extensions};
    use crate::stream::testing::{audio_of, info, opening, text};
    use crate::stream::{FromAi, Received, ToAi};

    #[test]
    fn messages_have_exotels_names() {
        let mut codec = Carrier::<Exotel>::new(info(), Extensions::OnUse, 24_000);
        let opened = opening(&mut codec);
        assert_eq!(opened[0], json!({"event": "connected"}));
        assert_eq!(
            opened[1],
            json!({"event": "start", "sequence_number": "1", "stream_sid": "MZ1", "start": {
                "stream_sid": "MZ1", "call_sid": "CA1", "account_sid": "AC1", "from": "+1\"5",
                "to": "8010", "custom_parameters": {"from_number": "+1\"5", "to_number": "8010"},
                "media_format":
                    {"encoding": "audio/x-raw", "sample_rate": "24000", "bit_rate": "16"}
            }})
        );
        let media = text(&mut codec, &ToAi::Audio { samples: [0x55; 160], t_ms: 20 });
        assert_eq!(audio_of(&media).len(), 960);
        for (message, expected) in [
            (
                ToAi::Digit('5'),
                json!({"event": "dtmf", "sequence_number": "3", "stream_sid": "MZ1",
                "dtmf": {"digit": "5", "duration": "100"}}),
            ),
            (
                ToAi::Mark { name: "a".into(), cleared: true },
                json!({"event": "mark",
                "sequence_number": "4", "stream_sid": "MZ1", "mark": {"name": "a"}}),
            ),
            (
                ToAi::Stop,
                json!({"event": "stop", "sequence_number": "5", "stream_sid": "MZ1",
                "stop": {"call_sid": "CA1", "account_sid": "AC1", "reason": "callended"}}),
            ),
        ] {
            let text = text(&mut codec, &message);
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        }
        let mut audio = Vec::new();
        let silence = r#"{"event":"media","stream_sid":"MZ1","media":{"payload":"AAAAAA=="}}"#;
        let mut codec = Carrier::<Exotel>::new(info(), Extensions::OnUse, 8000);
        codec.decode(Received::Text(silence), &mut audio, &mut |said| {
            assert_eq!(said, FromAi::Audio(&[255, 255]));
        });
    }

    #[test]
    fn the_url_names_the_sample_rate() {
        for (configured, rate, expected) in [
            ("wss://a/b", None, "wss://a/b"),
            ("wss://a/b", Some(16_000), "wss://a/b?sample-rate=16000"),
            ("wss://a/b?c=d", Some(8000), "wss://a/b?c=d&sample-rate=8000"),
            ("wss://a/b?sample-rate=8000", Some(16_000), "wss://a/b?sample-rate=8000"),
        ] {
            assert_eq!(url(configured, rate), expected);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::carrier::Carrier;
    use crate::stream::dialect::{Codec as _, Extensions};
    use crate::stream::testing::{all, audio_of, info, opening, said, text};
    use crate::stream::{FromAi, Received, ToAi};

    #[test]
    fn messages_have_telnyxs_names() {
        let mut codec = Carrier::<Telnyx>::new(info(), Extensions::OnUse, 8000);
        let opened = opening(&mut codec);
        assert_eq!(opened[0], json!({"event": "connected", "version": "1.0.0"}));
        assert_eq!(
            opened[1],
            json!({"event": "start", "sequence_number": "1", "stream_id": "MZ1", "start": {
                "user_id": "AC1", "call_control_id": "CA1", "call_session_id": "CA1",
                "from": "+1\"5", "to": "8010", "tags": [], "client_state": "",
                "custom_parameters": {"from_number": "+1\"5", "to_number": "8010"},
                "media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1}
            }})
        );
        let media = text(&mut codec, &ToAi::Audio { samples: [0x55; 160], t_ms: 20 });
        assert_eq!(audio_of(&media), [0x55; 160]);
        let media: Value = serde_json::from_str(&media).unwrap();
        assert_eq!(
            (&media["sequence_number"], &media["media"]["chunk"]),
            (&"2".into(), &"1".into())
        );
        assert_eq!(media["media"]["track"], "inbound");
        let mark = ToAi::Mark { name: "a\"".into(), cleared: true };
        for (message, expected) in [
            (
                ToAi::Digit('5'),
                json!({"event": "dtmf", "sequence_number": "3", "stream_id": "MZ1",
                "dtmf": {"digit": "5"}}),
            ),
            (
                mark,
                json!({"event": "mark", "sequence_number": "4", "stream_id": "MZ1",
                "mark": {"name": "a\""}}),
            ),
            (
                ToAi::Stop,
                json!({"event": "stop", "sequence_number": "5", "stream_id": "MZ1",
                "stop": {"user_id": "AC1", "call_control_id": "CA1"}}),
            ),
        ] {
            let text = text(&mut codec, &message);
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        }
        assert_eq!(text(&mut codec, &all().cleared), "");
        let speech = r#"{"event":"speechStarted","speechStarted":{"timestamp":"1240"}}"#;
        assert_eq!(text(&mut codec, &all().speech), speech);
    }

    #[test]
    fn messages_of_the_ai_are_read() {
        let mut codec = Carrier::<Telnyx>::new(info(), Extensions::OnUse, 8000);
        for (message, expected) in [
            (r#"{"event":"media","media":{"payload":"AQID"}}"#, FromAi::Audio(&[1, 2, 3])),
            (
                r#"{"event":"media","stream_id":"MZ1","media":{"payload":"AQID"}}"#,
                FromAi::Audio(&[1, 2, 3]),
            ),
            (r#"{"event":"m\u0065dia","media":{"payload":"\/\/8="}}"#, FromAi::Audio(&[255, 255])),
            (r#"{"event":"mark","mark":{"name":"x"}}"#, FromAi::Mark("x".into())),
            (r#"{"event":"clear"}"#, FromAi::Clear),
            (r#"{"event":"clear","stream_id":"MZ2"}"#, FromAi::Ignored("id of another stream")),
            (
                r#"{"event":"media","stream_id":"MZ2","media":{"payload":"AQID"}}"#,
                FromAi::Ignored("id of another stream"),
            ),
            (
                r#"{"event":"media","media":{"payload":"!"}}"#,
                FromAi::Ignored("media.payload is not valid base64"),
            ),
            (r#"{"event":"media"}"#, FromAi::Ignored("media without payload")),
            (r#"{"event":"mark"}"#, FromAi::Ignored("mark without a name")),
            (r#"{"event":"x"}"#, FromAi::Ignored("unknown event")),
            ("5", FromAi::Ignored("not a JSON message in the dialect's format")),
        ] {
            let mut audio = vec![9; 9];
            let mut found = 0;
            codec.decode(Received::Text(message), &mut audio, &mut |said| {
                assert_eq!(said, expected, "{message}");
                found += 1;
            });
            assert_eq!(found, 1);
        }
        assert_eq!(said(&mut codec, Received::Binary(&[1])), [FromAi::Ignored("binary message")]);
    }

    #[test]
    fn the_token_is_in_the_handshake() {
        assert_eq!(handshake_headers(None), []);
        assert_eq!(handshake_headers(Some("t")), [(TOKEN, "t".to_owned())]);
    }
}

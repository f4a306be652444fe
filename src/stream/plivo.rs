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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::carrier::Carrier;
    use crate::stream::dialect::{Codec as _, Extensions};
    use crate::stream::testing::{all, audio_of, info, opening, text};
    use crate::stream::{FromAi, Received, ToAi};

    #[test]
    fn messages_have_plivos_names() {
        for (rate, encoding, length) in [(8000, MU_LAW, 160), (16_000, LINEAR, 640)] {
            let mut codec = Carrier::<Plivo>::new(info(), Extensions::OnUse, rate);
            let opened = opening(&mut codec);
            assert_eq!(
                opened,
                [json!({"event": "start", "sequenceNumber": 0, "streamId": "MZ1", "start": {
                    "callId": "CA1", "streamId": "MZ1", "accountId": "AC1", "tracks": ["inbound"],
                    "mediaFormat": {"encoding": encoding, "sampleRate": rate}
                }, "extra_headers": r#"{"from_number":"+1\"5","to_number":"8010"}"#})]
            );
            let media = text(&mut codec, &ToAi::Audio { samples: [0x55; 160], t_ms: 20 });
            assert_eq!(audio_of(&media).len(), length);
            let media: Value = serde_json::from_str(&media).unwrap();
            assert_eq!(
                (&media["sequenceNumber"], &media["media"]["chunk"]),
                (&json!(1), &json!(1))
            );
            for (message, expected) in [
                (
                    ToAi::Digit('5'),
                    json!({"event": "dtmf", "sequenceNumber": 2, "streamId": "MZ1",
                    "dtmf": {"track": "inbound", "digit": "5", "timestamp": "20"}}),
                ),
                (
                    ToAi::Mark { name: "a".into(), cleared: false },
                    json!({"event": "playedStream",
                    "sequenceNumber": 3, "streamId": "MZ1", "name": "a"}),
                ),
                (
                    all().cleared,
                    json!({"event": "clearedAudio", "sequenceNumber": 4,
                    "streamId": "MZ1"}),
                ),
            ] {
                let text = text(&mut codec, &message);
                assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
            }
            assert_eq!(text(&mut codec, &ToAi::Mark { name: "a".into(), cleared: true }), "");
            assert_eq!(text(&mut codec, &ToAi::Stop), "");
        }
    }

    #[test]
    fn each_message_of_the_ai_names_its_format() {
        let mut codec = Carrier::<Plivo>::new(info(), Extensions::OnUse, 8000);
        let play = |media: &str| format!(r#"{{"event":"playAudio","media":{{{media}}}}}"#);
        let unsupported = FromAi::Ignored("media.contentType or sampleRate not supported");
        for (message, expected) in [
            (
                play(r#""contentType":"audio/x-mulaw","sampleRate":8000,"payload":"AQID""#),
                FromAi::Audio(&[1, 2, 3]),
            ),
            (
                play(r#""contentType":"audio\/x-mulaw","sampleRate":8000,"payload":"AQID""#),
                FromAi::Audio(&[1, 2, 3]),
            ),
            (play(r#""payload":"AQID""#), FromAi::Audio(&[1, 2, 3])),
            // two samples of zero
            (
                play(r#""contentType":"audio/x-l16","sampleRate":8000,"payload":"AAAAAA==""#),
                FromAi::Audio(&[255, 255]),
            ),
            (
                play(r#""contentType":"audio/x-l16","sampleRate":44100,"payload":"AAAAAA==""#),
                unsupported.clone(),
            ),
            (
                play(r#""contentType":"audio/x-mulaw","sampleRate":16000,"payload":"AQID""#),
                unsupported,
            ),
            (
                r#"{"event":"checkpoint","streamId":"MZ1","name":"a"}"#.to_owned(),
                FromAi::Mark("a".into()),
            ),
            (r#"{"event":"clearAudio","streamId":"MZ1"}"#.to_owned(), FromAi::Clear),
        ] {
            let mut audio = Vec::new();
            codec.decode(Received::Text(&message), &mut audio, &mut |said| {
                assert_eq!(said, expected, "{message}");
            });
        }
    }
}

//! Linear audio in binary messages, with control messages in JSON that have Vonage's names.
//! Source: <https://developer.vonage.com/en/voice/voice-api/concepts/websockets>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::stream::dialect::{Codec, Extensions, Form};
use crate::stream::linear::{Linear, MAX_FRAME_BYTES};
use crate::stream::own::{Own, flatten};
use crate::stream::twilio::MAX_MARK;
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi};

/// The duration of every key press that is reported, in milliseconds: it is not measured.
pub(super) const KEY_MS: u32 = 100;
const UNKNOWN: &str = "unknown action";

/// The codec of one stream.
pub(super) struct L16 {
    info: StreamInfo,
    rate: u32,
    linear: Linear,
    own: Own,
}

impl L16 {
    pub fn new(mut info: StreamInfo, extensions: Extensions, rate: u32) -> L16 {
        let own = Own::new(extensions, &mut info);
        L16 { info, rate, linear: Linear::new(rate), own }
    }

    fn read(&mut self, text: &str) -> FromAi<'static> {
        let Ok(incoming) = serde_json::from_str::<Incoming<'_>>(text) else {
            return FromAi::Ignored("not a JSON message in Vonage's format");
        };
        match incoming.action.as_deref() {
            Some("clear") => {
                self.linear.clear();
                FromAi::Clear
            }
            Some("notify") => match incoming.payload.map_or("null", RawValue::get) {
                long if long.len() > MAX_MARK => {
                    FromAi::Ignored("payload of notify longer than 64 KiB")
                }
                payload => FromAi::Mark(payload.to_owned()),
            },
            _ => self.own.read(text, UNKNOWN),
        }
    }
}

/// A message from the AI.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow, default)]
    action: Option<Cow<'a, str>>,
    /// Returned as it is.
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

impl Codec for L16 {
    /// The event `websocket:connected`, with the stream's parameters beside it.
    fn opening(&mut self) -> Vec<Message> {
        let rate = self.rate;
        let mut members = Map::new();
        members.insert("event".into(), "websocket:connected".into());
        members.insert("content-type".into(), format!("audio/l16;rate={rate}").into());
        flatten(&self.info, &mut members);
        members.entry("call_sid").or_insert_with(|| self.info.call_sid.as_str().into());
        vec![Message::Text(Value::Object(members).to_string())]
    }

    fn add_parameters(&mut self, parameters: Vec<(String, String)>) {
        self.info.parameters.extend(parameters);
    }

    fn decode(
        &mut self,
        message: Received<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        match message {
            Received::Binary(data) => {
                audio.clear();
                audio.extend_from_slice(data);
                self.linear.decode(audio);
                each(FromAi::Audio(audio));
            }
            Received::Text(text) => each(self.read(text)),
        }
    }

    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form {
        // a BytesMut grows: writing to it cannot fail
        let _ = match message {
            ToAi::Audio { samples, .. } => {
                let mut buffer = [0; MAX_FRAME_BYTES];
                out.extend_from_slice(self.linear.encode(samples, &mut buffer));
                return Form::Binary;
            }
            ToAi::Digit(digit) => {
                write!(out, r#"{{"event":"websocket:dtmf","digit":"{digit}","duration":{KEY_MS}}}"#)
            }
            // the name is JSON
            ToAi::Mark { name, cleared: false } => {
                write!(out, r#"{{"event":"websocket:notify","payload":{name}}}"#)
            }
            ToAi::Cleared { .. } => out.write_str(r#"{"event":"websocket:cleared"}"#),
            // the notice of cleared audio is for its marks too; the close frame ends the stream
            ToAi::Mark { .. } | ToAi::Stop | ToAi::ToolResult(_) => Ok(()),
            ToAi::Heard(_) | ToAi::Reply(_) | ToAi::State(_) | ToAi::Parameters(_) => {
                self.own.write(message, out);
                Ok(())
            }
        };
        Form::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::testing::{all, info, said, text};

    fn codec(extensions: Extensions) -> L16 {
        L16::new(info(), extensions, 16_000)
    }

    #[test]
    fn messages_have_vonages_names() {
        let mut codec = codec(Extensions::OnUse);
        let Message::Text(opening) = &codec.opening()[0] else { panic!("not text") };
        assert_eq!(
            serde_json::from_str::<Value>(opening).unwrap(),
            serde_json::json!({
                "event": "websocket:connected", "content-type": "audio/l16;rate=16000",
                "from_number": "+1\"5", "to_number": "8010", "call_sid": "CA1"
            })
        );
        let mut out = BytesMut::new();
        let audio = ToAi::Audio { samples: [0x80; 160], t_ms: 0 };
        assert_eq!((codec.encode(&audio, &mut out), out.len()), (Form::Binary, 640));
        let notify = ToAi::Mark { name: r#"{"a":[1]}"#.into(), cleared: false };
        let gone = ToAi::Mark { name: "1".into(), cleared: true };
        for (message, expected) in [
            (ToAi::Digit('#'), r##"{"event":"websocket:dtmf","digit":"#","duration":100}"##),
            (notify, r#"{"event":"websocket:notify","payload":{"a":[1]}}"#),
            (gone, ""),
            (all().cleared, r#"{"event":"websocket:cleared"}"#),
            (all().speech, r#"{"event":"speechStarted","speechStarted":{"timestamp":"1240"}}"#),
            (ToAi::Stop, ""),
            (all().reply, ""),
        ] {
            assert_eq!(text(&mut codec, &message), expected);
        }
    }

    #[test]
    fn messages_of_the_ai_are_read() {
        let mut codec = codec(Extensions::OnUse);
        for (message, expected) in [
            (r#"{"action":"clear"}"#, FromAi::Clear),
            (
                r#"{"action":"notify","payload":{ "b":2, "a":1 }}"#,
                FromAi::Mark(r#"{ "b":2, "a":1 }"#.into()),
            ),
            (r#"{"action":"notify"}"#, FromAi::Mark("null".into())),
            (r#"{"action":"x"}"#, FromAi::Ignored(UNKNOWN)),
            ("{]", FromAi::Ignored("not a JSON message in Vonage's format")),
        ] {
            assert_eq!(said(&mut codec, Received::Text(message)), [expected], "{message}");
        }
        let long = format!(r#"{{"action":"notify","payload":"{}"}}"#, "x".repeat(MAX_MARK));
        assert!(matches!(&said(&mut codec, Received::Text(&long))[..], [FromAi::Ignored(_)]));
    }

    #[test]
    fn our_own_messages_follow_the_ais() {
        let hang_up = r#"{"event":"hangup","id":"7"}"#;
        let mut off = codec(Extensions::Off);
        assert_eq!(said(&mut off, Received::Text(hang_up)), [FromAi::Ignored(UNKNOWN)]);
        let mut on = codec(Extensions::OnUse);
        assert!(matches!(&said(&mut on, Received::Text(hang_up))[..], [FromAi::Order(_)]));
        assert_eq!(
            text(&mut on, &all().reply),
            r#"{"event":"result","id":"7","result":{"command":"hold","status":"done"}}"#
        );
        let mut always = codec(Extensions::Always);
        let Message::Text(opening) = &always.opening()[0] else { panic!("not text") };
        assert!(opening.contains(r#""bridge_control":"1 hangup,transfer"#), "{opening}");
    }
}

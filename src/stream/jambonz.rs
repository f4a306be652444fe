//! The WebSocket of jambonz' verbs `stream` and `listen`, with audio both ways: linear audio in
//! binary messages, control messages in JSON. Sources: jambonz' documentation of these verbs, its
//! module mod_audio_fork and its SDK for Node.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write as _;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::stream::dialect::{Codec, Extensions, Form};
use crate::stream::l16::KEY_MS;
use crate::stream::linear::{Linear, MAX_FRAME_BYTES};
use crate::stream::own::{Own, flatten, parameter};
use crate::stream::twilio::MAX_MARK;
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi};

/// At most this many marks may wait; jambonz itself takes 30.
const MAX_MARKS: usize = 1000;
const UNKNOWN: &str = "unknown type";

/// The codec of one stream.
pub(super) struct Jambonz {
    info: StreamInfo,
    rate: u32,
    linear: Linear,
    own: Own,
    /// The names of the marks that have not been returned, in order.
    marks: VecDeque<String>,
    /// How many of the next marks that come back were reported as cleared before.
    reported: usize,
    /// Messages that answer `clearMarks`.
    answers: VecDeque<Message>,
}

impl Jambonz {
    pub fn new(mut info: StreamInfo, extensions: Extensions, rate: u32) -> Jambonz {
        let own = Own::new(extensions, &mut info);
        let (marks, answers) = (VecDeque::new(), VecDeque::new());
        Jambonz { info, rate, linear: Linear::new(rate), own, marks, reported: 0, answers }
    }

    /// Returns what a message says; `None` if it is already dealt with.
    fn read(&mut self, text: &str) -> Option<FromAi<'static>> {
        let Ok(incoming) = serde_json::from_str::<Incoming<'_>>(text) else {
            return Some(FromAi::Ignored("not a JSON message in jambonz' format"));
        };
        let name = incoming.data.and_then(|data| data.name);
        Some(match (incoming.kind.as_deref(), name) {
            (Some("killAudio"), _) => {
                self.linear.clear();
                FromAi::Clear
            }
            (Some("mark"), Some(name)) => self.mark(name.into_owned()),
            (Some("mark"), None) => FromAi::Ignored("mark without a name"),
            (Some("clearMarks"), _) => {
                self.clear_marks();
                return None;
            }
            (Some("disconnect"), _) => FromAi::Done("disconnect"),
            (Some("playAudio"), _) => {
                FromAi::Ignored("playAudio: send the audio in binary messages instead")
            }
            _ => self.own.read(text, UNKNOWN),
        })
    }

    fn mark(&mut self, name: String) -> FromAi<'static> {
        if name.len() > MAX_MARK {
            return FromAi::Ignored("mark name longer than 64 KiB");
        }
        if self.marks.len() >= MAX_MARKS {
            return FromAi::Ignored("more than 1000 marks are waiting");
        }
        self.marks.push_back(name.clone());
        FromAi::Mark(name)
    }

    /// Reports all marks that wait as cleared; their audio is played all the same.
    fn clear_marks(&mut self) {
        for name in self.marks.iter().skip(self.reported) {
            self.answers.push_back(Message::Text(mark(name, true)));
        }
        self.reported = self.marks.len();
    }

    /// Notes that a mark has come back. Returns false if it was reported before.
    fn takes(&mut self, name: &str) -> bool {
        // marks before it were lost with the messages of an AI that was too slow
        let Some(at) = self.marks.iter().position(|known| known == name) else { return true };
        self.marks.drain(..=at);
        let reported = at < self.reported;
        self.reported = self.reported.saturating_sub(at + 1);
        !reported
    }
}

/// Returns the message for a mark.
fn mark(name: &str, cleared: bool) -> String {
    let (name, event) = (Value::from(name), if cleared { "cleared" } else { "playout" });
    format!(r#"{{"type":"mark","data":{{"name":{name},"event":"{event}"}}}}"#)
}

/// A message from the AI.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<Data<'a>>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
}

impl Codec for Jambonz {
    /// The attributes of the call, with the stream's parameters beside them as its metadata.
    fn opening(&mut self) -> Vec<Message> {
        let info = &self.info;
        let mut members = Map::new();
        for (name, value) in [
            ("callSid", info.call_sid.as_str()),
            ("accountSid", &info.account_sid),
            ("callId", parameter(info, "sip_call_id")),
            ("from", parameter(info, "from_number")),
            ("callerName", parameter(info, "from_name")),
            ("to", parameter(info, "to_number")),
            ("direction", "inbound"),
            ("callStatus", "in-progress"),
            ("mixType", "mono"),
        ] {
            members.insert(name.to_owned(), value.into());
        }
        members.insert("sampleRate".to_owned(), self.rate.into());
        flatten(info, &mut members);
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
            Received::Text(text) => {
                if let Some(message) = self.read(text) {
                    each(message);
                }
            }
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
                write!(out, r#"{{"event":"dtmf","dtmf":"{digit}","duration":"{KEY_MS}"}}"#)
            }
            ToAi::Mark { name, cleared } => match self.takes(name) {
                true => out.write_str(&mark(name, *cleared)),
                false => Ok(()),
            },
            // the close frame ends the stream
            ToAi::Stop | ToAi::ToolResult(_) => Ok(()),
            ToAi::Cleared { .. } | ToAi::Reply(_) | ToAi::State(_) | ToAi::Parameters(_) => {
                self.own.write(message, out);
                Ok(())
            }
        };
        Form::Text
    }

    fn next_message(&mut self) -> Option<Message> {
        self.answers.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::testing::{all, info, said, text};

    fn codec() -> Jambonz {
        Jambonz::new(info(), Extensions::OnUse, 8000)
    }

    #[test]
    fn messages_have_jambonzs_names() {
        let mut codec = codec();
        let Message::Text(opening) = &codec.opening()[0] else { panic!("not text") };
        let opening: Value = serde_json::from_str(opening).unwrap();
        for (name, value) in [
            ("callSid", "CA1"),
            ("from", "+1\"5"),
            ("to", "8010"),
            ("mixType", "mono"),
            ("from_number", "+1\"5"),
        ] {
            assert_eq!(opening[name], value, "{opening}");
        }
        assert_eq!(opening["sampleRate"], 8000);
        let mut out = BytesMut::new();
        let audio = ToAi::Audio { samples: [0x80; 160], t_ms: 0 };
        assert_eq!((codec.encode(&audio, &mut out), out.len()), (Form::Binary, 320));
        let mark = |cleared| ToAi::Mark { name: "a\"".into(), cleared };
        for (message, expected) in [
            (ToAi::Digit('5'), r#"{"event":"dtmf","dtmf":"5","duration":"100"}"#),
            (mark(false), r#"{"type":"mark","data":{"name":"a\"","event":"playout"}}"#),
            (mark(true), r#"{"type":"mark","data":{"name":"a\"","event":"cleared"}}"#),
            (all().cleared, ""),
            (ToAi::Stop, ""),
        ] {
            assert_eq!(text(&mut codec, &message), expected);
        }
    }

    #[test]
    fn messages_of_the_ai_are_read() {
        for (message, expected) in [
            (r#"{"type":"killAudio"}"#, FromAi::Clear),
            (r#"{"type":"mark","data":{"name":"x\u0041"}}"#, FromAi::Mark("xA".into())),
            (r#"{"type":"disconnect"}"#, FromAi::Done("disconnect")),
            (r#"{"type":"mark","data":{}}"#, FromAi::Ignored("mark without a name")),
            (r#"{"type":"json"}"#, FromAi::Ignored(UNKNOWN)),
            (r#"{"type":7}"#, FromAi::Ignored("not a JSON message in jambonz' format")),
        ] {
            assert_eq!(said(&mut codec(), Received::Text(message)), [expected], "{message}");
        }
        let play = r#"{"type":"playAudio","data":{"audioContent":"AAAA"}}"#;
        assert!(matches!(&said(&mut codec(), Received::Text(play))[..], [FromAi::Ignored(_)]));
    }

    #[test]
    fn cleared_marks_are_reported_once() {
        let mut codec = codec();
        let set = |codec: &mut Jambonz, name: &str| {
            let message = format!(r#"{{"type":"mark","data":{{"name":"{name}"}}}}"#);
            said(codec, Received::Text(&message)).len()
        };
        let back = |codec: &mut Jambonz, name: &str| {
            !text(codec, &ToAi::Mark { name: name.into(), cleared: false }).is_empty()
        };
        for name in ["a", "b", "c"] {
            assert_eq!(set(&mut codec, name), 1);
        }
        assert!(back(&mut codec, "a"));
        let clear = Received::Text(r#"{"type":"clearMarks"}"#);
        assert_eq!(said(&mut codec, clear), []);
        let answers: Vec<Message> = std::iter::from_fn(|| codec.next_message()).collect();
        assert_eq!(answers, ["b", "c"].map(|name| Message::Text(mark(name, true))));
        set(&mut codec, "b");
        // again: only the new one
        assert_eq!(said(&mut codec, clear), []);
        assert_eq!(std::iter::from_fn(|| codec.next_message()).count(), 1);
        set(&mut codec, "d");
        let came = ["b", "c", "b", "d"].map(|name| back(&mut codec, name));
        assert_eq!(came, [false, false, false, true]);
        for n in 0..=MAX_MARKS {
            let message = format!(r#"{{"type":"mark","data":{{"name":"{n}"}}}}"#);
            let kept = matches!(&said(&mut codec, Received::Text(&message))[..], [FromAi::Mark(_)]);
            assert_eq!(kept, n < MAX_MARKS);
        }
    }
}

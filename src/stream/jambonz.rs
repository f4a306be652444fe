//! The WebSocket of jambonz' verbs `stream` and `listen`, with audio both ways: linear audio in
//! binary messages, control messages in JSON. Sources: jambonz' documentation of these verbs, its
//! module mod_audio_fork and its SDK for Node.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write as _;

use base64::Engine as _;
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::stream::clip;
use crate::stream::dialect::{Codec, Extensions, Form};
use crate::stream::l16::KEY_MS;
use crate::stream::linear::{Linear, MAX_FRAME_BYTES};
use crate::stream::own::{Own, flatten, parameter};
use crate::stream::twilio::{BASE64, MAX_MARK};
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
    /// The marks that have not been returned, in order, and the ends of clips.
    waiting: VecDeque<Waiting>,
    /// Messages that answer `clearMarks`.
    answers: VecDeque<Message>,
}

impl Jambonz {
    pub fn new(mut info: StreamInfo, extensions: Extensions, rate: u32) -> Jambonz {
        let own = Own::new(extensions, &mut info);
        let (waiting, answers) = (VecDeque::new(), VecDeque::new());
        Jambonz { info, rate, linear: Linear::new(rate), own, waiting, answers }
    }

    /// Passes on what a message in JSON says.
    fn read(&mut self, text: &str, audio: &mut Vec<u8>, each: &mut dyn FnMut(FromAi<'_>)) {
        let Ok(incoming) = serde_json::from_str::<Incoming<'_>>(text) else {
            return each(FromAi::Ignored("not a JSON message in jambonz' format"));
        };
        let data = incoming.data.unwrap_or_default();
        match (incoming.kind.as_deref(), &data.name) {
            (Some("killAudio"), _) => {
                self.linear.clear();
                each(FromAi::Clear);
            }
            (Some("mark"), Some(name)) => each(self.wait(name.to_string(), None)),
            (Some("mark"), None) => each(FromAi::Ignored("mark without a name")),
            (Some("clearMarks"), _) => self.clear_marks(),
            (Some("disconnect"), _) => each(FromAi::Done("disconnect")),
            (Some("playAudio"), _) => self.play(data, audio, each),
            _ => each(self.own.read(text, UNKNOWN)),
        }
    }

    /// Plays a clip, at once or behind the audio that waits.
    fn play(&mut self, data: Data<'_>, audio: &mut Vec<u8>, each: &mut dyn FnMut(FromAi<'_>)) {
        audio.clear();
        let content = data.audio_content.unwrap_or_default();
        if BASE64.decode_vec(&*content, audio).is_err() {
            return each(FromAi::Ignored("playAudio: audioContent is not valid base64"));
        }
        let converted = match data.audio_content_type.as_deref() {
            Some("wav" | "wave") => clip::wav(audio),
            _ => clip::raw(audio, data.sample_rate.unwrap_or(self.rate)),
        };
        if let Err(why) = converted {
            return each(FromAi::Ignored(why));
        }
        if !data.queue_play.unwrap_or_default() {
            self.linear.clear();
            each(FromAi::Clear);
        }
        each(FromAi::Audio(audio));
        let id = data.id.unwrap_or(Value::Null);
        each(self.wait(format!("playAudio {id}"), Some(id)));
    }

    /// Sets a mark: one that the AI named, or the end of a clip with an id.
    fn wait(&mut self, name: String, clip: Option<Value>) -> FromAi<'static> {
        if name.len() > MAX_MARK {
            return FromAi::Ignored("mark name longer than 64 KiB");
        }
        if self.waiting.len() >= MAX_MARKS {
            return FromAi::Ignored("more than 1000 marks are waiting");
        }
        self.waiting.push_back(Waiting { name: name.clone(), clip, reported: false });
        FromAi::Mark(name)
    }

    /// Reports all marks that wait as cleared; their audio is played all the same.
    fn clear_marks(&mut self) {
        let marks = self.waiting.iter_mut().filter(|mark| mark.clip.is_none() && !mark.reported);
        for waiting in marks {
            waiting.reported = true;
            self.answers.push_back(Message::Text(mark(&waiting.name, true)));
        }
    }

    /// Returns the message for a mark that has come back; none if it was reported before.
    fn came_back(&mut self, name: &str, cleared: bool) -> Option<String> {
        let at = self.waiting.iter().position(|waiting| waiting.name == name);
        let Some(at) = at else { return Some(mark(name, cleared)) };
        // marks before it were lost with the messages of an AI that was too slow
        let waiting = self.waiting.drain(..=at).next_back()?;
        match waiting.clip {
            Some(Value::Null) => Some(r#"{"type":"playDone","data":{}}"#.to_owned()),
            Some(id) => Some(format!(r#"{{"type":"playDone","data":{{"id":{id}}}}}"#)),
            None => (!waiting.reported).then(|| mark(name, cleared)),
        }
    }
}

/// A mark that has not come back.
struct Waiting {
    name: String,
    /// At the end of a clip: its id.
    clip: Option<Value>,
    /// True if it was reported as cleared.
    reported: bool,
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

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Data<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    audio_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    audio_content_type: Option<Cow<'a, str>>,
    sample_rate: Option<u32>,
    id: Option<Value>,
    queue_play: Option<bool>,
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
            Received::Text(text) => self.read(text, audio, each),
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
            ToAi::Mark { name, cleared } => {
                out.write_str(&self.came_back(name, *cleared).unwrap_or_default())
            }
            // the close frame ends the stream
            ToAi::Stop | ToAi::ToolResult(_) => Ok(()),
            ToAi::Cleared { .. }
            | ToAi::Heard(_)
            | ToAi::Reply(_)
            | ToAi::State(_)
            | ToAi::Parameters(_) => {
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
            (all().speech, r#"{"event":"speechStarted","speechStarted":{"timestamp":"1240"}}"#),
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
    }

    #[test]
    fn clips_are_played_and_reported() {
        let mut codec = codec();
        let mut play = |members: &str| {
            let text = format!(r#"{{"type":"playAudio","data":{{{members}}}}}"#);
            let (mut audio, mut found) = (Vec::new(), Vec::new());
            codec.decode(Received::Text(&text), &mut audio, &mut |said| {
                found.push(match said {
                    FromAi::Audio(audio) => format!("{} bytes", audio.len()),
                    other => format!("{other:?}"),
                });
            });
            found
        };
        let raw = r#""audioContent":"AAAAAA==","audioContentType":"raw","sampleRate":8000"#;
        assert_eq!(
            play(&format!(r#"{raw},"id":"a","queuePlay":true"#)),
            ["2 bytes", r#"Mark("playAudio \"a\"")"#]
        );
        assert_eq!(play(raw), ["Clear", "2 bytes", r#"Mark("playAudio null")"#]);
        for refused in [
            r#""audioContent":"!""#,
            r#""audioContent":"AAAA","sampleRate":11025"#,
            r#""audioContent":"AAAA","audioContentType":"wav""#,
        ] {
            assert!(play(refused)[0].starts_with("Ignored(\"playAudio: "), "{refused}");
        }
        let done = |name: &str| ToAi::Mark { name: name.into(), cleared: true };
        assert_eq!(
            text(&mut codec, &done(r#"playAudio "a""#)),
            r#"{"type":"playDone","data":{"id":"a"}}"#
        );
        assert_eq!(text(&mut codec, &done("playAudio null")), r#"{"type":"playDone","data":{}}"#);
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

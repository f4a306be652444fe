//! The common part of the dialects of carriers whose messages are Twilio's with other names:
//! numbered messages in JSON, with audio in base64. Each has a file with its [`Shape`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;

use base64::Engine as _;
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::Value;

use crate::media::frame::{RATE, Samples};
use crate::stream::dialect::{Codec, Extensions, Form};
use crate::stream::json::Cursor;
use crate::stream::linear::{Linear, MAX_FRAME_BYTES};
use crate::stream::own::Own;
use crate::stream::twilio::{BASE64, MAX_MARK, decimal};
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi};

/// Length in base64 of a frame at the highest rate.
const MAX_PAYLOAD_BYTES: usize = MAX_FRAME_BYTES.div_ceil(3) * 4;
const UNKNOWN: &str = "unknown event";

/// The names and the form of one carrier's messages.
pub(super) trait Shape: Send {
    /// The member with the number of a message, and whether numbers are strings.
    const SEQUENCE: (&'static str, bool);
    /// The number of `start`.
    const FIRST: u64;
    /// The member with the stream's id.
    const STREAM: &'static str;
    /// The member of `media` before the others, with a comma.
    const TRACK: &'static str;
    /// The AI's events for audio, marks and clearing.
    const WORDS: [&'static str; 3];
    /// The message before `start`.
    const CONNECTED: Option<&'static str>;

    /// Returns the further members of `start`. `rate` is the sample rate.
    fn start(info: &StreamInfo, rate: u32) -> Vec<(&'static str, Value)>;

    /// Returns the body of `dtmf`. `t_ms` is the position on the audio clock.
    fn digit(digit: char, t_ms: u64) -> Value;

    /// Returns the event for a mark, and the further member of it; `None` if it is not sent.
    /// `extended`: our own messages may be sent.
    fn mark(
        name: &str,
        cleared: bool,
        extended: bool,
    ) -> Option<(&'static str, &'static str, Value)>;

    /// The event after `clear`.
    const CLEARED: Option<&'static str>;

    /// Returns the body of `stop`; `None` if it is not sent.
    fn stop(info: &StreamInfo) -> Option<Value>;

    /// Returns the encoding of the stream's audio at a sample rate.
    fn encoding(rate: u32) -> Encoding;

    /// Returns the encoding of a message that names one; `None` if it is not supported. By default
    /// it is that of the stream.
    fn named(_content_type: &str, _rate: u32, stream: Encoding) -> Option<Encoding> {
        Some(stream)
    }
}

/// The encoding of audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    MuLaw,
    /// 16 bits, little-endian, at this rate.
    Linear(u32),
}

/// The codec of one stream.
pub(super) struct Carrier<S> {
    info: StreamInfo,
    rate: u32,
    own: Own,
    /// Number of the next message.
    sequence: u64,
    /// Number of the last `media` message; the first is 1.
    chunk: u64,
    /// Position of the last frame on the audio clock.
    t_ms: u64,
    /// Converts audio for the AI; `None` if it is mu-law.
    to_ai: Option<Linear>,
    /// Converts audio of the AI, with its rate.
    from_ai: Option<(u32, Linear)>,
    shape: std::marker::PhantomData<S>,
}

impl<S: Shape> Carrier<S> {
    pub fn new(mut info: StreamInfo, extensions: Extensions, rate: u32) -> Carrier<S> {
        let own = Own::new(extensions, &mut info);
        let to_ai = match S::encoding(rate) {
            Encoding::MuLaw => None,
            Encoding::Linear(rate) => Some(Linear::new(rate)),
        };
        Carrier {
            info,
            rate,
            own,
            sequence: S::FIRST,
            chunk: 0,
            t_ms: 0,
            to_ai,
            from_ai: None,
            shape: std::marker::PhantomData,
        }
    }

    /// Appends the beginning of a message: its event, its number and the stream's id.
    fn begin(&mut self, event: &str, out: &mut BytesMut) {
        let (name, quoted) = S::SEQUENCE;
        let quote: &[u8] = if quoted { b"\"" } else { b"" };
        out.extend_from_slice(br#"{"event":""#);
        out.extend_from_slice(event.as_bytes());
        out.extend_from_slice(br#"",""#);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(br#"":"#);
        out.extend_from_slice(quote);
        decimal(self.sequence, out);
        out.extend_from_slice(quote);
        out.extend_from_slice(br#",""#);
        out.extend_from_slice(S::STREAM.as_bytes());
        out.extend_from_slice(br#"":""#);
        out.extend_from_slice(self.info.stream_sid.as_bytes());
        out.extend_from_slice(br#"""#);
        self.sequence += 1;
    }

    /// Appends a message with one more member.
    fn message(&mut self, event: &str, name: &str, value: &Value, out: &mut BytesMut) {
        self.begin(event, out);
        out.extend_from_slice(format!(r#","{name}":{value}}}"#).as_bytes());
    }

    /// Appends a `media` message. Runs 50 times per second for each call.
    fn audio(&mut self, samples: &Samples, t_ms: u64, out: &mut BytesMut) {
        self.chunk += 1;
        self.t_ms = t_ms;
        self.begin("media", out);
        let quote: &[u8] = if S::SEQUENCE.1 { b"\"" } else { b"" };
        out.extend_from_slice(br#","media":{"#);
        out.extend_from_slice(S::TRACK.as_bytes());
        out.extend_from_slice(br#""chunk":"#);
        out.extend_from_slice(quote);
        decimal(self.chunk, out);
        out.extend_from_slice(quote);
        out.extend_from_slice(br#","timestamp":""#);
        decimal(t_ms, out);
        out.extend_from_slice(br#"","payload":""#);
        let mut buffer = [0; MAX_FRAME_BYTES];
        let audio: &[u8] = match &mut self.to_ai {
            None => samples,
            Some(linear) => linear.encode(samples, &mut buffer),
        };
        let mut payload = [0; MAX_PAYLOAD_BYTES];
        let length = BASE64.encode_slice(audio, &mut payload).unwrap_or_default();
        out.extend_from_slice(&payload[..length]);
        out.extend_from_slice(br#""}}"#);
    }

    /// Decodes audio of the AI, in the encoding that it names or in that of the stream.
    fn decode_media<'a>(
        &mut self,
        payload: &str,
        content_type: Option<&str>,
        rate: Option<u32>,
        audio: &'a mut Vec<u8>,
    ) -> FromAi<'a> {
        let stream = S::encoding(self.rate);
        let named = content_type.map(|name| S::named(name, rate.unwrap_or(RATE as u32), stream));
        let Some(encoding) = named.unwrap_or(Some(stream)) else {
            return FromAi::Ignored("media.contentType or sampleRate not supported");
        };
        audio.clear();
        if BASE64.decode_vec(payload, audio).is_err() {
            return FromAi::Ignored("media.payload is not valid base64");
        }
        if let Encoding::Linear(rate) = encoding {
            match &mut self.from_ai {
                Some((known, linear)) if *known == rate => linear.decode(audio),
                other => other.insert((rate, Linear::new(rate))).1.decode(audio),
            }
        }
        FromAi::Audio(audio)
    }

    fn read<'a>(&mut self, text: &str, audio: &'a mut Vec<u8>) -> FromAi<'a> {
        let [media, mark, clear] = S::WORDS;
        if let Some(plain) = Plain::read(text, media, S::STREAM, &self.info.stream_sid) {
            return self.decode_media(plain.payload, plain.content_type, plain.rate, audio);
        }
        let Ok(incoming) = serde_json::from_str::<Incoming<'_>>(text) else {
            return FromAi::Ignored("not a JSON message in the dialect's format");
        };
        if incoming.stream_id.as_deref().is_some_and(|id| id != self.info.stream_sid) {
            return FromAi::Ignored("id of another stream");
        }
        let name = incoming.mark.map(|mark| mark.name).or(incoming.name);
        match (&*incoming.event, incoming.media) {
            (event, Some(found)) if event == media => {
                let content_type = found.content_type.as_deref();
                self.decode_media(&found.payload, content_type, found.sample_rate, audio)
            }
            (event, None) if event == media => FromAi::Ignored("media without payload"),
            (event, _) if event == mark => match name {
                None => FromAi::Ignored("mark without a name"),
                Some(name) if name.len() > MAX_MARK => {
                    FromAi::Ignored("mark name longer than 64 KiB")
                }
                Some(name) => FromAi::Mark(name.into_owned()),
            },
            (event, _) if event == clear => {
                self.from_ai.iter_mut().for_each(|(_, linear)| linear.clear());
                FromAi::Clear
            }
            _ => self.own.read(text, UNKNOWN),
        }
    }
}

impl<S: Shape> Codec for Carrier<S> {
    fn opening(&mut self) -> Vec<Message> {
        let mut out = BytesMut::new();
        self.begin("start", &mut out);
        for (name, value) in S::start(&self.info, self.rate) {
            out.extend_from_slice(format!(r#","{name}":{value}"#).as_bytes());
        }
        out.extend_from_slice(b"}");
        let connected = S::CONNECTED.map(|text| Message::Text(text.to_owned()));
        let start = Message::Text(String::from_utf8_lossy(&out).into_owned());
        connected.into_iter().chain([start]).collect()
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
            Received::Text(text) => each(self.read(text, audio)),
            Received::Binary(_) => each(FromAi::Ignored("binary message")),
        }
    }

    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form {
        match message {
            ToAi::Audio { samples, t_ms } => self.audio(samples, *t_ms, out),
            ToAi::Digit(digit) => self.message("dtmf", "dtmf", &S::digit(*digit, self.t_ms), out),
            ToAi::Mark { name, cleared } => {
                let extended = self.own.extended();
                if let Some((event, member, value)) = S::mark(name, *cleared, extended) {
                    self.message(event, member, &value, out);
                }
            }
            ToAi::Cleared { .. } if S::CLEARED.is_some() => {
                self.begin(S::CLEARED.unwrap_or_default(), out);
                out.extend_from_slice(b"}");
            }
            ToAi::Stop => {
                if let Some(stop) = S::stop(&self.info) {
                    self.message("stop", "stop", &stop, out);
                }
            }
            ToAi::Cleared { .. }
            | ToAi::Heard(_)
            | ToAi::Reply(_)
            | ToAi::State(_)
            | ToAi::Parameters(_) => {
                self.own.write(message, out);
            }
            ToAi::ToolResult(_) => {}
        }
        Form::Text
    }
}

/// A message of the AI, with the names of all carriers.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default, alias = "streamId", alias = "stream_sid")]
    stream_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    media: Option<IncomingMedia<'a>>,
    #[serde(borrow, default)]
    mark: Option<IncomingMark<'a>>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IncomingMedia<'a> {
    #[serde(borrow)]
    payload: Cow<'a, str>,
    #[serde(borrow, default)]
    content_type: Option<Cow<'a, str>>,
    #[serde(default)]
    sample_rate: Option<u32>,
}

#[derive(Deserialize)]
struct IncomingMark<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// A message with audio, written as almost all are: without escapes, duplicate members and members
/// of other events.
struct Plain<'a> {
    payload: &'a str,
    content_type: Option<&'a str>,
    rate: Option<u32>,
}

impl<'a> Plain<'a> {
    /// Returns `None` if the message needs the full parser.
    fn read(text: &'a str, event: &str, id_name: &str, id: &str) -> Option<Plain<'a>> {
        fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
            place.replace(value).is_none().then_some(())
        }
        let (mut found, mut stream, mut payload) = (None, None, None);
        let (mut content_type, mut rate, mut seen) = (None, None, false);
        let mut member = |cursor: &mut Cursor<'a>, key: &str| match key {
            "event" => once(&mut found, cursor.string()?),
            "media" if !std::mem::replace(&mut seen, true) => {
                cursor.object(&mut |cursor, key| match key {
                    "payload" => once(&mut payload, cursor.string()?),
                    "contentType" => once(&mut content_type, cursor.string()?),
                    "sampleRate" => once(&mut rate, u32::try_from(cursor.number()?).ok()?),
                    _ => cursor.skip(),
                })
            }
            "media" | "mark" | "name" => None,
            key if key == id_name => once(&mut stream, cursor.string()?),
            // the other carriers' names of the same are left to the full parser
            "stream_id" | "streamId" | "stream_sid" => None,
            _ => cursor.skip(),
        };
        Cursor::read(text, &mut member)?;
        let payload = payload?;
        let ours = found == Some(event) && stream.is_none_or(|stream| stream == id);
        ours.then_some(Plain { payload, content_type, rate })
    }
}

//! A dialect: the protocol that is spoken with an AI over its WebSocket.
//!
//! [`Dialect`] is the choice in the configuration; [`Codec`] writes and reads the messages of one
//! stream. To add a dialect, add a file beside `twilio.rs` and a variant here; no other part of the
//! program refers to it. Messages are [`ToAi`] and [`FromAi`] in every dialect.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use bytes::BytesMut;
use md5::{Digest, Md5};

use crate::stream::carrier::Carrier;
use crate::stream::exotel::{self, Exotel};
use crate::stream::jambonz::Jambonz;
use crate::stream::l16::L16;
use crate::stream::model::filled;
use crate::stream::plivo::Plivo;
use crate::stream::telnyx::{self, Telnyx};
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi};
use crate::stream::{deepgram, elevenlabs, gemini, openai, twilio, ultravox};

/// A supported dialect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    Twilio,
    /// OpenAI's Realtime API, and servers of the same shape.
    OpenAiRealtime,
    L16,
    Jambonz,
    Telnyx,
    Plivo,
    Exotel,
    Deepgram,
    ElevenLabs,
    GeminiLive,
    Ultravox,
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(text: &str) -> Result<Dialect, String> {
        Dialect::ALL.into_iter().find(|dialect| dialect.name() == text).ok_or_else(|| {
            let names = Dialect::ALL.map(Dialect::name).join(", ");
            format!("\"{text}\" is not one of: {names}")
        })
    }
}

/// The maximum length of a parameter's name, and of its value, in characters. It is Twilio's.
pub const MAX_PARAMETER: usize = twilio::MAX_PARAMETER;
/// The sample rate of a call, in Hz, and of every dialect unless another one is set.
pub const CALL_RATE: u32 = 8000;

/// When trunkless' own messages are exchanged with the AI, besides those of the dialect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extensions {
    /// Once the AI has sent one. Until then, the stream is exactly as in the dialect.
    #[default]
    OnUse,
    /// From the beginning, and they are announced.
    Always,
    Off,
}

/// The settings of a model's session, in dialects that have one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Session {
    /// Passed to the model as it is, apart from placeholders such as `{from_number}`.
    pub settings: Option<serde_json::Value>,
    /// The first words of the model.
    pub greeting: Option<String>,
    /// Our tools that are offered to the model; `None` = all.
    pub tools: Option<Vec<String>>,
    /// The sample rate of linear audio in both directions, in Hz, in dialects that have a choice.
    pub sample_rate: Option<u32>,
}

/// The request by which a vendor's API creates a call, before the socket.
#[derive(Debug, Clone, Copy)]
pub struct Creation {
    pub url: &'static str,
    /// How URLs of this API begin.
    pub api: &'static str,
    /// The header with the key.
    pub key: &'static str,
    /// Where the answer has the URL of the socket.
    pub url_field: &'static str,
    /// The hosts that this URL may have.
    pub allow_hosts: &'static [&'static str],
}

/// How an encoded message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Binary,
}

/// Writes and reads the messages of one stream.
///
/// The order: [`Codec::hello`], until [`Codec::is_ready`]; then, when the caller is connected,
/// [`Codec::opening`], and after that [`Codec::encode`] for each message to the AI.
/// [`Codec::next_message`] is asked for more after each message in either direction.
pub trait Codec: Send {
    /// Returns the messages that are sent as soon as the WebSocket is open, while the caller still
    /// waits. By default there are none.
    fn hello(&mut self) -> Vec<Message> {
        Vec::new()
    }

    /// True once the AI can take the call. Until then, the WebSocket does not count as open.
    fn is_ready(&self) -> bool {
        true
    }

    /// Returns the messages that open the stream, in the order in which they are sent.
    fn opening(&mut self) -> Vec<Message>;

    /// Adds parameters, before the messages that open the stream.
    fn add_parameters(&mut self, parameters: Vec<(String, String)>);

    /// Appends one message to `out`; nothing if the AI does not expect such a message.
    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form;

    /// Decodes a message, and calls `each` with what it says: mostly one thing, which may be
    /// [`FromAi::Ignored`]. `audio` is a buffer for decoded audio; what it contained is lost.
    fn decode(
        &mut self,
        message: Received<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    );

    /// True if the AI ends the call by closing its stream with an ordinary code. Otherwise its
    /// session is over then, which counts as a failure unless it is dialled again.
    fn hangs_up_by_closing(&self) -> bool {
        true
    }

    /// Returns the handle that continues the AI's session on another connection, if it gave one. A
    /// stream that ends is then dialled again.
    fn resumption(&self) -> Option<&str> {
        None
    }

    /// Returns the text that is sent every few seconds while the AI is ready and the caller is not
    /// connected yet, such as while a callee's phone rings.
    fn keep_alive(&self) -> Option<&'static str> {
        None
    }

    /// Returns a further message that is to be sent, such as an answer to a ping of the dialect.
    fn next_message(&mut self) -> Option<Message> {
        None
    }
}

impl Dialect {
    /// All dialects.
    pub const ALL: [Dialect; 11] = [
        Dialect::Twilio,
        Dialect::L16,
        Dialect::Jambonz,
        Dialect::Telnyx,
        Dialect::Plivo,
        Dialect::Exotel,
        Dialect::OpenAiRealtime,
        Dialect::Deepgram,
        Dialect::ElevenLabs,
        Dialect::GeminiLive,
        Dialect::Ultravox,
    ];

    /// Returns the dialect's name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Twilio => "twilio",
            Dialect::L16 => "l16",
            Dialect::Jambonz => "jambonz",
            Dialect::Telnyx => "telnyx",
            Dialect::Plivo => "plivo",
            Dialect::Exotel => "exotel",
            Dialect::OpenAiRealtime => "openai-realtime",
            Dialect::Deepgram => "deepgram-agent",
            Dialect::ElevenLabs => "elevenlabs",
            Dialect::GeminiLive => "gemini-live",
            Dialect::Ultravox => "ultravox",
        }
    }

    /// Creates the codec for a new stream.
    pub fn codec(
        self,
        info: StreamInfo,
        extensions: Extensions,
        session: &Session,
    ) -> Box<dyn Codec> {
        let rate = session.sample_rate.unwrap_or(CALL_RATE);
        match self {
            Dialect::Twilio => Box::new(twilio::Encoder::new(info, extensions)),
            Dialect::OpenAiRealtime => Box::new(openai::Realtime::new(info, session.clone())),
            Dialect::L16 => Box::new(L16::new(info, extensions, rate)),
            Dialect::Jambonz => Box::new(Jambonz::new(info, extensions, rate)),
            Dialect::Telnyx => Box::new(Carrier::<Telnyx>::new(info, extensions, rate)),
            Dialect::Plivo => Box::new(Carrier::<Plivo>::new(info, extensions, rate)),
            Dialect::Exotel => Box::new(Carrier::<Exotel>::new(info, extensions, rate)),
            Dialect::Deepgram => Box::new(deepgram::Agent::new(info, session)),
            Dialect::ElevenLabs => Box::new(elevenlabs::Agent::new(info, session)),
            Dialect::GeminiLive => Box::new(gemini::Live::new(info, session)),
            Dialect::Ultravox => Box::new(ultravox::Agent::new(info, session)),
        }
    }

    /// Returns the URL of the AI, made of the configured one and the session's settings. `None` if
    /// the dialect has no usual one.
    pub fn url(self, configured: Option<&str>, session: &Session) -> Option<String> {
        match self {
            Dialect::OpenAiRealtime => Some(openai::url(configured, session.settings.as_ref())),
            Dialect::Deepgram => Some(configured.unwrap_or(deepgram::URL).to_owned()),
            Dialect::ElevenLabs => elevenlabs::url(configured, session),
            Dialect::GeminiLive => Some(configured.unwrap_or(gemini::URL).to_owned()),
            Dialect::Exotel => configured.map(|url| exotel::url(url, session.sample_rate)),
            _ => configured.map(str::to_owned),
        }
    }

    /// Checks the settings of a session.
    ///
    /// # Errors
    /// Returns the key below `session` that cannot work, and the reason.
    pub fn check(self, session: &Session) -> Result<(), (&'static str, String)> {
        match self {
            Dialect::OpenAiRealtime => openai::check(session.settings.as_ref()),
            Dialect::GeminiLive => gemini::check(session.settings.as_ref()),
            Dialect::Ultravox => ultravox::check(session.settings.as_ref()),
            _ => Ok(()),
        }
    }

    /// Returns how calls are created before the socket, if the vendor wants that.
    pub fn creation(self) -> Option<Creation> {
        (self == Dialect::Ultravox).then_some(ultravox::CREATION)
    }

    /// Returns the body of such a request to `path`: `body` with its placeholders filled, and with
    /// what the dialect needs.
    pub fn creation_body(
        self,
        path: &str,
        body: Option<&serde_json::Value>,
        session: &Session,
        info: &StreamInfo,
    ) -> Option<serde_json::Value> {
        match self {
            Dialect::Ultravox => Some(ultravox::creation(path, body, session, info)),
            _ => body.map(|body| filled(body, info)),
        }
    }

    /// True if the AI can be connected before there is a call. At others, the conversation begins
    /// with the connection, or the time of the connection is charged for.
    pub fn connects_early(self) -> bool {
        !matches!(self, Dialect::Deepgram | Dialect::ElevenLabs | Dialect::Ultravox)
    }

    /// True if the AI waits for the caller to speak unless it has a greeting.
    pub fn waits_without_greeting(self) -> bool {
        matches!(self, Dialect::OpenAiRealtime | Dialect::GeminiLive)
    }

    /// After how long without data the AI is sent a ping, unless that is configured; zero = never.
    /// Google may take 30 s to answer one.
    pub fn usual_ping(self) -> Duration {
        Duration::from_secs(if self == Dialect::GeminiLive { 0 } else { 10 })
    }

    /// Returns the key that is missing where there is no URL, and what to do.
    pub fn missing(self) -> (&'static str, &'static str) {
        match self {
            Dialect::ElevenLabs => (
                "ai.session.agent_id",
                "is missing; set the agent's id as ElevenLabs shows it, such as \"agent_…\"",
            ),
            _ => (
                "ai.url",
                "is missing; set the AI's WebSocket URL, such as \"ws://127.0.0.1:8080\"",
            ),
        }
    }

    /// True if the AI is a model with a session of its own: `[ai.session]`, a greeting and tools.
    pub fn has_session(self) -> bool {
        matches!(
            self,
            Dialect::OpenAiRealtime
                | Dialect::Deepgram
                | Dialect::ElevenLabs
                | Dialect::GeminiLive
                | Dialect::Ultravox
        )
    }

    /// The sample rates that can be set; none if there is only that of calls.
    pub fn sample_rates(self) -> &'static [u32] {
        match self {
            Dialect::L16 | Dialect::Exotel => &[8000, 16_000, 24_000],
            Dialect::Jambonz => &[8000, 16_000, 24_000, 32_000, 48_000],
            Dialect::Plivo => &[8000, 16_000],
            Dialect::GeminiLive => &gemini::RATES,
            _ => &[],
        }
    }

    /// True if the dialect has a place for `auth_token`. Otherwise, the AI may be given a token in
    /// `headers`.
    pub fn has_token(self) -> bool {
        !matches!(self, Dialect::L16 | Dialect::Jambonz | Dialect::Plivo | Dialect::Exotel)
    }

    /// Returns the extra headers for a handshake with `url`, signed if there is an `auth_token`.
    pub fn handshake_headers(
        self,
        url: &str,
        auth_token: Option<&str>,
    ) -> Vec<(&'static str, String)> {
        match self {
            Dialect::Twilio => twilio::handshake_headers(url, auth_token),
            Dialect::OpenAiRealtime => openai::handshake_headers(auth_token),
            Dialect::Telnyx => telnyx::handshake_headers(auth_token),
            Dialect::L16 | Dialect::Jambonz | Dialect::Plivo | Dialect::Exotel => Vec::new(),
            Dialect::Deepgram => deepgram::handshake_headers(auth_token),
            Dialect::ElevenLabs => elevenlabs::handshake_headers(auth_token),
            Dialect::GeminiLive => gemini::handshake_headers(auth_token),
            // the URL of a call has its own token
            Dialect::Ultravox => Vec::new(),
        }
    }
}

/// Derives an id of Twilio's shape (`CA…`, `MZ…`, `AC…`) from `of`, which for a call contains the
/// PBX's id, so that logs can be matched. The log, the recordings and all dialects use these ids.
pub fn sid(prefix: &str, of: &str) -> String {
    let digest = Md5::digest(format!("{prefix}:{of}"));
    digest.iter().fold(prefix.to_owned(), |mut sid, byte| {
        let _ = write!(sid, "{byte:02x}");
        sid
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sids_have_twilios_shape() {
        let sid = sid("MZ", "call-1@pbx");
        assert_eq!(sid.len(), 34);
        assert!(sid.starts_with("MZ") && sid[2..].bytes().all(|b| b.is_ascii_hexdigit()));
    }

    /// Pieces of all dialects' messages.
    const PIECES: &str = r#"{ } [ " : , \ \u0065 0 16000 -1 null true é
        "event": "type": "action": "media" "payload": "AQID" "AAE=" "mark" "name" "data": "clear"
        "playAudio" "contentType":"audio/x-l16" "sampleRate": "streamId":"MZ1" "killAudio"
        "clearMarks" "notify" "hangup" "checkpoint" "audioContent": "wav" "queuePlay":true
        {"event":"media","media":{ {"event":"playAudio","media":{ {"type":"playAudio","data":{
        {"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm","data":
        "interrupted":true {"toolCall":{"functionCalls":[{"name":"hang_up","args":{
        {"type":"client_tool_invocation","toolName":"hang_up","invocationId":"1" "goAway":{}"#;
    /// Valid messages.
    const WHOLE: [&str; 13] = [
        r#"{"event":"media","media":{"payload":"AQID"}}"#,
        r#"{"event":"playAudio","media":{"contentType":"audio/x-l16","sampleRate":16000,"payload":"AAE="}}"#,
        r#"{"event":"mark","mark":{"name":"é"}}"#,
        r#"{"event":"clear"}"#,
        r#"{"action":"notify","payload":{"a":[1.5e300]}}"#,
        r#"{"type":"mark","data":{"name":"a"}}"#,
        r#"{"type":"playAudio","data":{"audioContent":"AAAAAA==","sampleRate":16000}}"#,
        r#"{"type":"clearMarks"}"#,
        r#"{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"AAEA"}}]}}}"#,
        r#"{"serverContent":{"interrupted":true,"turnComplete":true},"goAway":{"timeLeft":"5s"}}"#,
        r#"{"toolCall":{"functionCalls":[{"id":"1","name":"hang_up","args":{"a":[1]}}]}}"#,
        r#"{"sessionResumptionUpdate":{"newHandle":"é","resumable":true}}"#,
        r#"{"type":"client_tool_invocation","toolName":"hang_up","invocationId":"1","parameters":{}}"#,
    ];

    /// Messages made of pieces, valid ones with a piece too much, and bytes at random.
    #[test]
    fn junk_never_panics() {
        let pieces: Vec<&str> = PIECES.split_whitespace().collect();
        let mut state = 5u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        for (dialect, rate) in [
            (Dialect::L16, 24_000),
            (Dialect::Jambonz, 48_000),
            (Dialect::Telnyx, 8000),
            (Dialect::Plivo, 16_000),
            (Dialect::Exotel, 8000),
            (Dialect::GeminiLive, 16_000),
            (Dialect::Ultravox, 8000),
        ] {
            let session = Session { sample_rate: Some(rate), ..Session::default() };
            let info = StreamInfo { stream_sid: "MZ1".into(), ..StreamInfo::default() };
            let mut codec = dialect.codec(info, Extensions::OnUse, &session);
            let (mut audio, mut out, mut taken) = (Vec::new(), BytesMut::new(), 0);
            for round in 0..400 {
                let mut text: String = (0..next(14)).map(|_| pieces[next(pieces.len())]).collect();
                if round % 2 == 0 {
                    text = WHOLE[next(WHOLE.len())].to_owned();
                    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
                    if next(4) > 0 {
                        text.insert_str(places[next(places.len())], pieces[next(pieces.len())]);
                    }
                }
                let bytes: Vec<u8> = (0..next(40)).map(|_| next(256) as u8).collect();
                let mut said = vec![ToAi::Audio { samples: [next(256) as u8; 160], t_ms: 20 }];
                for message in [Received::Text(&text), Received::Binary(&bytes)] {
                    codec.decode(message, &mut audio, &mut |message| match message {
                        FromAi::Mark(name) => said.push(ToAi::Mark { name, cleared: false }),
                        FromAi::Ignored(_) => {}
                        _ => taken += 1,
                    });
                }
                for message in &said {
                    codec.encode(message, &mut out);
                }
                while codec.next_message().is_some() {}
                out.clear();
            }
            assert!(taken > 0, "{dialect:?}: nothing was understood");
        }
    }
}

//! Bidirectional Twilio Media Streams, with messages that match Twilio's byte for byte.
//! Source: <https://www.twilio.com/docs/voice/media-streams/websocket-messages>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::fmt::Write as _;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::sync::LazyLock;

use base64::Engine as _;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha1::Sha1;

use crate::command::Order;
use crate::media::frame::Samples;
use crate::stream::dialect::{Codec, Extensions, Form};
use crate::stream::extension;
use crate::stream::json::Cursor;
use crate::stream::{CallState, FromAi, Message, Received, StreamInfo, ToAi, Unusable};

/// Base64 with SIMD instructions, if the processor has them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) static BASE64: LazyLock<base64::engine::simd::Simd> =
    LazyLock::new(|| base64::engine::simd::Simd::standard(base64::engine::general_purpose::PAD));

/// The User-Agent of Twilio's media servers.
const USER_AGENT: &str = "Twilio.TmeWs/1.0";
/// The first message of every stream.
pub const CONNECTED: &str = r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#;
/// Length of a frame in base64.
pub(super) const PAYLOAD_BYTES: usize = size_of::<Samples>().div_ceil(3) * 4;
/// Maximum length of a mark's name, in bytes.
pub(super) const MAX_MARK: usize = 64 * 1024;
/// Maximum length of a parameter's name, and of its value, in characters.
pub const MAX_PARAMETER: usize = 499;

/// Appends bytes in base64.
pub(super) fn base64(bytes: &[u8], out: &mut BytesMut) {
    let before = out.len();
    out.resize(before + bytes.len().div_ceil(3) * 4, 0);
    let encoded = BASE64.encode_slice(bytes, &mut out[before..]);
    debug_assert_eq!(encoded.ok(), Some(out.len() - before));
}

/// Returns the handshake headers of Twilio's media servers. With an auth token, they include a
/// signature.
pub fn handshake_headers(url: &str, auth_token: Option<&str>) -> Vec<(&'static str, String)> {
    let signature = auth_token.map(|token| ("X-Twilio-Signature", signature(token, url)));
    [("User-Agent", USER_AGENT.to_owned())].into_iter().chain(signature).collect()
}

/// Returns the value of `X-Twilio-Signature` for a stream's URL: base64(HMAC-SHA1(token, URL +
/// sorted names and values of its query)). Source: Twilio's "Validating requests".
pub fn signature(auth_token: &str, url: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut pairs: Vec<&str> = query.split('&').filter(|p| !p.is_empty()).collect();
    pairs.sort_unstable();
    let mut signed = base.to_owned();
    pairs.iter().for_each(|pair| signed.push_str(&pair.replacen('=', "", 1)));
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(auth_token.as_bytes()) else {
        return String::new(); // HMAC takes keys of any length
    };
    mac.update(signed.as_bytes());
    BASE64.encode(mac.finalize().into_bytes())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Start<'a> {
    account_sid: &'a str,
    stream_sid: &'a str,
    call_sid: &'a str,
    tracks: [&'static str; 1],
    media_format: MediaFormat,
    custom_parameters: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MediaFormat {
    encoding: &'static str,
    sample_rate: u32,
    channels: u32,
}

/// The parameter that announces our own messages, and its value before the list of commands.
pub(super) const ANNOUNCED: (&str, &str) = ("bridge_control", "1 ");
/// Twilio's servers and clients do not know this event.
const UNKNOWN: &str = "unknown event";

/// Writes one stream's messages and counts them.
#[derive(Debug)]
pub struct Encoder {
    info: StreamInfo,
    extensions: Extensions,
    /// True if our own messages may be sent.
    extended: bool,
    /// Number of the last message; the first after `connected` is 1.
    sequence: u64,
    /// Number of the last `media` message; the first is 1.
    chunk: u64,
}

impl Encoder {
    pub fn new(mut info: StreamInfo, extensions: Extensions) -> Encoder {
        let extended = extensions == Extensions::Always;
        if extended {
            let (name, version) = ANNOUNCED;
            let value = format!("{version}{}", extension::NAMES.join(","));
            info.parameters.push((name.to_owned(), value));
        }
        Encoder { info, extensions, extended, sequence: 0, chunk: 0 }
    }

    /// Returns the `start` message.
    pub fn start(&mut self) -> String {
        self.sequence += 1;
        let StreamInfo { account_sid, call_sid, stream_sid, parameters, .. } = &self.info;
        let cut = |text: &str| text.chars().take(MAX_PARAMETER).collect::<String>();
        let parameters =
            parameters.iter().map(|(name, value)| (cut(name), cut(value).into())).collect();
        let start = Start {
            account_sid,
            stream_sid,
            call_sid,
            tracks: ["inbound"],
            media_format: MediaFormat { encoding: "audio/x-mulaw", sample_rate: 8000, channels: 1 },
            custom_parameters: parameters,
        };
        let start = serde_json::to_string(&start).expect("strings and numbers always serialise");
        let sequence = self.sequence;
        format!(
            r#"{{"event":"start","sequenceNumber":"{sequence}","start":{start},"streamSid":"{stream_sid}"}}"#
        )
    }
}

impl Codec for Encoder {
    /// `connected` and `start`, which Twilio sends back to back.
    fn opening(&mut self) -> Vec<Message> {
        vec![Message::Text(CONNECTED.to_owned()), Message::Text(self.start())]
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
        let Received::Text(text) = message else {
            return each(FromAi::Ignored("binary message"));
        };
        let decoded = decode(text, &self.info.stream_sid, audio);
        if decoded == FromAi::Ignored(UNKNOWN)
            && self.extensions != Extensions::Off
            && let Some(order) = order(text)
        {
            self.extended = true;
            return each(FromAi::Order(Box::new(order)));
        }
        each(decoded);
    }

    /// Messages are numbered when they are encoded, so messages dropped before that leave no gap.
    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form {
        let own = matches!(
            message,
            ToAi::Cleared { .. } | ToAi::Reply(_) | ToAi::State(_) | ToAi::Parameters(_)
        );
        let unwanted = self.extensions == Extensions::Off && matches!(message, ToAi::Heard(_));
        // Twilio has no tools
        if own && !self.extended || unwanted || matches!(message, ToAi::ToolResult(_)) {
            return Form::Text;
        }
        self.sequence += 1;
        let (sequence, sid) = (self.sequence, &self.info.stream_sid);
        // a BytesMut grows: writing to it cannot fail
        let _ = match message {
            ToAi::Audio { samples, t_ms } => {
                self.audio(samples, *t_ms, out);
                Ok(())
            }
            ToAi::Digit(digit) => write!(
                out,
                r#"{{"event":"dtmf","streamSid":"{sid}","sequenceNumber":"{sequence}","dtmf":{{"track":"inbound_track","digit":"{digit}"}}}}"#
            ),
            ToAi::Mark { name, cleared } => {
                let name = serde_json::Value::from(name.as_str());
                let fate = match (self.extended, cleared) {
                    (false, _) => "",
                    (true, false) => r#","played":true"#,
                    (true, true) => r#","cleared":true"#,
                };
                write!(
                    out,
                    r#"{{"event":"mark","sequenceNumber":"{sequence}","streamSid":"{sid}","mark":{{"name":{name}{fate}}}}}"#
                )
            }
            ToAi::Stop => self.stop(out),
            other => self.own(other, out),
        };
        Form::Text
    }
}

/// Names and values as a JSON object.
pub(super) fn object(pairs: &[(String, String)]) -> serde_json::Value {
    let all = pairs.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
    serde_json::Value::Object(all.collect())
}

/// The member that says that the caller has interrupted the AI.
pub(super) fn by_whom(by_caller: bool) -> &'static str {
    if by_caller { r#","by":"caller""# } else { "" }
}

/// The member with the reason of a state, if it has one.
pub(super) fn reason(state: CallState) -> String {
    match state {
        CallState::TransferFailed(why) => format!(r#","reason":"{}""#, why.word()),
        _ => String::new(),
    }
}

impl Encoder {
    /// Appends one of our own messages, which Twilio does not have.
    fn own(&self, message: &ToAi, out: &mut BytesMut) -> std::fmt::Result {
        let (sequence, sid) = (self.sequence, &self.info.stream_sid);
        match message {
            ToAi::Cleared { played, discarded, by_caller, .. } => {
                let (played, discarded) = (played.as_millis(), discarded.as_millis());
                let by = by_whom(*by_caller);
                write!(
                    out,
                    r#"{{"event":"cleared","sequenceNumber":"{sequence}","streamSid":"{sid}","cleared":{{"playedMs":{played},"discardedMs":{discarded}{by}}}}}"#
                )
            }
            ToAi::Heard(sign) => {
                let (event, heard) = extension::heard(*sign);
                write!(
                    out,
                    r#"{{"event":"{event}","sequenceNumber":"{sequence}","streamSid":"{sid}","{event}":{heard}}}"#
                )
            }
            ToAi::Reply(reply) => {
                let id = serde_json::Value::from(reply.id.as_str());
                let result = extension::result(reply);
                write!(
                    out,
                    r#"{{"event":"result","sequenceNumber":"{sequence}","streamSid":"{sid}","id":{id},"result":{result}}}"#
                )
            }
            ToAi::State(state) => {
                let (state, reason) = (extension::state(*state), reason(*state));
                write!(
                    out,
                    r#"{{"event":"call","sequenceNumber":"{sequence}","streamSid":"{sid}","call":{{"state":"{state}"{reason}}}}}"#
                )
            }
            ToAi::Parameters(parameters) => {
                let parameters = object(parameters);
                write!(
                    out,
                    r#"{{"event":"parameters","sequenceNumber":"{sequence}","streamSid":"{sid}","parameters":{parameters}}}"#
                )
            }
            _ => Ok(()),
        }
    }

    /// Appends `stop`.
    fn stop(&self, out: &mut BytesMut) -> std::fmt::Result {
        let StreamInfo { account_sid, call_sid, stream_sid, .. } = &self.info;
        let sequence = self.sequence;
        write!(
            out,
            r#"{{"event":"stop","sequenceNumber":"{sequence}","stop":{{"accountSid":"{account_sid}","callSid":"{call_sid}"}},"streamSid":"{stream_sid}"}}"#
        )
    }

    /// Appends a `media` message. Runs 50 times per second for each call, so it does not use
    /// `write!`.
    fn audio(&mut self, samples: &Samples, t_ms: u64, out: &mut BytesMut) {
        self.chunk += 1;
        let mut payload = [0u8; PAYLOAD_BYTES];
        let encoded = BASE64.encode_slice(samples, &mut payload);
        debug_assert_eq!(encoded.ok(), Some(PAYLOAD_BYTES));
        out.extend_from_slice(br#"{"event":"media","sequenceNumber":""#);
        decimal(self.sequence, out);
        out.extend_from_slice(br#"","media":{"track":"inbound","chunk":""#);
        decimal(self.chunk, out);
        out.extend_from_slice(br#"","timestamp":""#);
        decimal(t_ms, out);
        out.extend_from_slice(br#"","payload":""#);
        out.extend_from_slice(&payload);
        out.extend_from_slice(br#""},"streamSid":""#);
        out.extend_from_slice(self.info.stream_sid.as_bytes());
        out.extend_from_slice(br#""}"#);
    }
}

/// Appends a number in decimal.
pub(super) fn decimal(mut number: u64, out: &mut BytesMut) {
    let mut digits = [0u8; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// A message from the AI, in one flat struct for speed. Strings are `Cow` because they may contain
/// escapes: PHP writes `\/` inside payloads.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incoming<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    stream_sid: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    media: Option<IncomingMedia<'a>>,
    #[serde(borrow, default)]
    mark: Option<IncomingMark<'a>>,
}

#[derive(Deserialize)]
struct IncomingMedia<'a> {
    #[serde(borrow)]
    payload: Cow<'a, str>,
}

#[derive(Deserialize)]
struct IncomingMark<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// Decodes a message from the AI; its audio replaces the contents of `audio`. An unusable message
/// is [`FromAi::Ignored`] and not an error, as Twilio only warns too (31951).
pub fn decode<'a>(text: &str, stream_sid: &str, audio: &'a mut Vec<u8>) -> FromAi<'a> {
    if let Some(payload) = plain_media(text, stream_sid) {
        return decode_audio(payload, audio);
    }
    let Ok(incoming) = serde_json::from_str::<Incoming<'_>>(text) else {
        return FromAi::Ignored("not a JSON message in Twilio's format");
    };
    if incoming.stream_sid.as_deref().is_some_and(|sid| sid != stream_sid) {
        return FromAi::Ignored("streamSid of another stream");
    }
    match (&*incoming.event, incoming.media, incoming.mark) {
        ("media", Some(media), _) => decode_audio(&media.payload, audio),
        ("media", None, _) => FromAi::Ignored("media without payload"),
        ("mark", _, Some(mark)) if mark.name.len() > MAX_MARK => {
            FromAi::Ignored("mark name longer than 64 KiB")
        }
        ("mark", _, Some(mark)) => FromAi::Mark(mark.name.into_owned()),
        ("mark", _, None) => FromAi::Ignored("mark without a name"),
        ("clear", ..) => FromAi::Clear,
        _ => FromAi::Ignored(UNKNOWN),
    }
}

/// Reads one of our own events.
pub(super) fn order(text: &str) -> Option<Result<Order, Unusable>> {
    let message: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let event = message.get("event")?.as_str()?;
    extension::read(event, message.get(event).and_then(serde_json::Value::as_object), &message)
}

fn decode_audio<'a>(payload: &str, audio: &'a mut Vec<u8>) -> FromAi<'a> {
    audio.clear();
    match BASE64.decode_vec(payload, audio) {
        Ok(()) => FromAi::Audio(audio),
        Err(_) => FromAi::Ignored("media.payload is not valid base64"),
    }
}

/// Returns the payload of a `media` message of this stream, if it is written as almost all are: no
/// escapes, no duplicate members, no members of other events. `None` only means that the message
/// needs the full parser.
fn plain_media<'a>(text: &'a str, stream_sid: &str) -> Option<&'a str> {
    let (mut media, mut sid, mut payload) = (None, None, None);
    let once = |place: &mut Option<&'a str>, value| place.replace(value).is_none().then_some(());
    let mut seen = false;
    let mut member = |cursor: &mut Cursor<'a>, key: &str| match key {
        "event" => once(&mut media, cursor.string()?),
        "streamSid" => once(&mut sid, cursor.string()?),
        "media" if !std::mem::replace(&mut seen, true) => {
            cursor.object(&mut |cursor, key| match key {
                "payload" => once(&mut payload, cursor.string()?),
                _ => cursor.skip(),
            })
        }
        "media" | "mark" => None,
        _ => cursor.skip(),
    };
    Cursor::read(text, &mut member)?;
    payload.filter(|_| media == Some("media") && sid.is_none_or(|sid| sid == stream_sid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> Encoder {
        extended(Extensions::OnUse)
    }

    fn extended(extensions: Extensions) -> Encoder {
        let info = StreamInfo {
            account_sid: "AC1".into(),
            call_sid: "CA1".into(),
            stream_sid: "MZ1".into(),
            parameters: vec![("from_number".into(), "1\"5".into())],
            targets: Vec::new(),
            resumed: false,
            resumption: None,
        };
        Encoder::new(info, extensions)
    }

    fn text(encoder: &mut Encoder, message: &ToAi) -> String {
        let mut out = BytesMut::new();
        encoder.encode(message, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn messages_match_twilios() {
        let mut encoder = encoder();
        assert_eq!(
            encoder.start(),
            r#"{"event":"start","sequenceNumber":"1","start":{"accountSid":"AC1","streamSid":"MZ1","callSid":"CA1","tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1},"customParameters":{"from_number":"1\"5"}},"streamSid":"MZ1"}"#
        );
        let media = text(&mut encoder, &ToAi::Audio { samples: [0xff; 160], t_ms: 20 });
        let payload = BASE64.encode([0xff; 160]);
        assert_eq!(
            media,
            format!(
                r#"{{"event":"media","sequenceNumber":"2","media":{{"track":"inbound","chunk":"1","timestamp":"20","payload":"{payload}"}},"streamSid":"MZ1"}}"#
            )
        );
        assert_eq!(
            text(&mut encoder, &ToAi::Digit('#')),
            r##"{"event":"dtmf","streamSid":"MZ1","sequenceNumber":"3","dtmf":{"track":"inbound_track","digit":"#"}}"##
        );
        assert_eq!(
            text(&mut encoder, &ToAi::Mark { name: "a\"\n".into(), cleared: true }),
            r#"{"event":"mark","sequenceNumber":"4","streamSid":"MZ1","mark":{"name":"a\"\n"}}"#
        );
        assert_eq!(
            text(&mut encoder, &ToAi::Stop),
            r#"{"event":"stop","sequenceNumber":"5","stop":{"accountSid":"AC1","callSid":"CA1"},"streamSid":"MZ1"}"#
        );
    }

    #[test]
    fn messages_from_servers_are_decoded() {
        let table = [
            (r#"{"event":"clear","streamSid":"MZ1"}"#, FromAi::Clear),
            (r#"{"event":"clear"}"#, FromAi::Clear),
            (
                r#"{"event":"mark","streamSid":"MZ1","mark":{"name":"x\u0041"}}"#,
                FromAi::Mark("xA".into()),
            ),
            (
                r#"{"streamSid":"MZ1","media":{"track":"outbound","payload":"\/\/8=","x":[1]},"event":"media","sequenceNumber":7}"#,
                FromAi::Audio(&[255, 255]),
            ),
            (
                r#"{"event":"media","streamSid":"MZ1","media":{"payload":"AQID","track":"x"}}"#,
                FromAi::Audio(&[1, 2, 3]),
            ),
            (
                r#" { "media" : {"chunk":7, "payload":"AQID"} , "event":"media", "mark":{"name":"m"} }"#,
                FromAi::Audio(&[1, 2, 3]),
            ),
            (r#"{"event":"media","media":{"payload":""}}"#, FromAi::Audio(&[])),
        ];
        for (text, expected) in table {
            let mut audio = vec![9; 9];
            assert_eq!(decode(text, "MZ1", &mut audio), expected, "{text}");
        }
    }

    #[test]
    fn invalid_messages_are_ignored() {
        let deep = "[".repeat(100_000);
        let table = [
            "",
            "null",
            "{}",
            "{\"event\":5}",
            "{\"event\":\"media\"}",
            "{\"event\":\"media\",\"media\":{}}",
            "{\"event\":\"media\",\"media\":{\"payload\":\"!\"}}",
            "{\"event\":\"mark\",\"mark\":{\"name\":7}}",
            "{\"event\":\"hangup\"}",
            "{\"event\":\"clear\",\"streamSid\":\"MZ2\"}",
            "{\"event\":\"media\",\"streamSid\":\"MZ2\",\"media\":{\"payload\":\"AQID\"}}",
            "{\"event\":\"media\",\"media\":{\"payload\":\"AQID\",\"payload\":\"AQID\"}}",
            "{\"event\":\"media\",\"event\":\"media\",\"media\":{\"payload\":\"AQID\"}}",
            "{\"event\":\"media\",\"media\":{\"payload\":\"AQID\"},\"media\":{}}",
            "{\"event\":\"media\",\"media\":{},\"media\":{\"payload\":\"AQID\"}}",
            &deep,
        ];
        for text in table {
            let mut audio = Vec::new();
            let decoded = decode(text, "MZ1", &mut audio);
            assert!(matches!(decoded, FromAi::Ignored(_)), "{text:.60}");
        }
    }

    /// The expected value was computed independently, with `openssl dgst -sha1 -hmac`.
    #[test]
    fn signatures_match_twilios_algorithm() {
        let url = "wss://ai.example.com/media?b=2&a=1";
        assert_eq!(
            signature("12345", url),
            signature("12345", "wss://ai.example.com/media?a=1&b=2")
        );
        assert_ne!(signature("12345", url), signature("12346", url));
        assert_eq!(
            signature("12345", "wss://ai.example.com/media"),
            "YN500Ddw+RvOiEk6SQN7QePYQ+g="
        );
    }
}

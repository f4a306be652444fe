//! ElevenLabs Agents: the agent and its audio formats are kept at ElevenLabs, and audio is base64
//! in JSON, mu-law as it is. Where the agent uses PCM at 8 kHz, it is converted here.
//! Source: <https://elevenlabs.io/docs/api-reference/agents-platform/websocket>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::VecDeque;

use base64::Engine as _;
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::media::frame::{FRAME_SAMPLES, Samples};
use crate::media::g711;
use crate::stream::dialect::{Codec, Form, Session};
use crate::stream::json::Cursor;
use crate::stream::keys::Keys;
use crate::stream::twilio::BASE64;
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi, ToolCall, model};

/// Where the agents are; the id of one follows as `agent_id`.
const URL: &str = "wss://api.elevenlabs.io/v1/convai/conversation";
/// The member of `[ai.session]` with the agent's id.
const AGENT_ID: &str = "agent_id";
/// Length of a frame in base64, as 16-bit samples.
const MAX_PAYLOAD: usize = (2 * FRAME_SAMPLES).div_ceil(3) * 4;
/// Variables with this prefix belong to ElevenLabs.
const RESERVED: &str = "system__";
/// Pongs and further messages that may wait.
const MAX_FURTHER: usize = 64;

/// Returns the URL for an agent: the configured one, or ElevenLabs' own. `None` without an id.
pub fn url(configured: Option<&str>, session: &Session) -> Option<String> {
    let id = session.settings.as_ref().and_then(|all| all.get(AGENT_ID)).and_then(Value::as_str);
    let base = configured.unwrap_or(URL);
    let (path, query) = base.split_once('?').unwrap_or((base, ""));
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    match id.filter(|id| !id.is_empty()) {
        _ if form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == AGENT_ID) => {
            return Some(base.to_owned());
        }
        Some(id) => pairs.append_pair(AGENT_ID, id),
        None => return None,
    };
    let own = if query.is_empty() { String::new() } else { format!("{query}&") };
    Some(format!("{path}?{own}{}", pairs.finish()))
}

/// Returns the headers for a handshake.
pub fn handshake_headers(auth_token: Option<&str>) -> Vec<(&'static str, String)> {
    auth_token.map(|key| ("xi-api-key", key.to_owned())).into_iter().collect()
}

/// How the agent's audio is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    MuLaw,
    /// 16 bits, little-endian, at 8 kHz.
    Pcm,
}

impl Format {
    fn new(name: &str) -> Option<Format> {
        match name {
            "ulaw_8000" => Some(Format::MuLaw),
            "pcm_8000" => Some(Format::Pcm),
            _ => None,
        }
    }
}

/// Writes and reads the messages of one stream.
#[derive(Debug)]
pub struct Agent {
    info: StreamInfo,
    session: Session,
    /// The tools of ours that the agent may call.
    offered: Vec<model::Tool>,
    /// The formats to and from the agent, once it is ready.
    formats: Option<(Format, Format)>,
    /// The last interruption: audio up to this event is not played.
    interrupted: Option<i64>,
    /// The first byte of a sample whose second has not arrived.
    half: Option<u8>,
    /// Messages to be sent.
    further: VecDeque<Message>,
    keys: Keys,
    /// Parameters that became known after the session was requested.
    late: Vec<(String, String)>,
}

/// A message from ElevenLabs. Members of other messages are left out.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    audio_event: Option<AudioEvent<'a>>,
    #[serde(default)]
    interruption_event: Option<NumberedEvent>,
    #[serde(default)]
    ping_event: Option<NumberedEvent>,
    #[serde(borrow, default)]
    conversation_initiation_metadata_event: Option<Metadata<'a>>,
    #[serde(default)]
    client_tool_call: Option<ClientToolCall>,
    #[serde(borrow, default)]
    error_event: Option<ErrorEvent<'a>>,
}

#[derive(Deserialize)]
struct AudioEvent<'a> {
    #[serde(borrow)]
    audio_base_64: Cow<'a, str>,
    #[serde(default)]
    event_id: Option<i64>,
}

#[derive(Deserialize)]
struct NumberedEvent {
    event_id: i64,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    agent_output_audio_format: Cow<'a, str>,
    #[serde(borrow)]
    user_input_audio_format: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ClientToolCall {
    tool_name: String,
    tool_call_id: String,
    #[serde(default)]
    parameters: Value,
}

#[derive(Deserialize)]
struct ErrorEvent<'a> {
    #[serde(default)]
    code: Option<i64>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    error_type: Option<Cow<'a, str>>,
}

impl Agent {
    pub fn new(info: StreamInfo, session: &Session) -> Agent {
        Agent {
            offered: model::tools(session.tools.as_deref(), &info.targets),
            info,
            session: session.clone(),
            formats: None,
            interrupted: None,
            half: None,
            further: VecDeque::new(),
            keys: Keys::default(),
            late: Vec::new(),
        }
    }

    /// Returns the message that requests the session.
    fn initiation(&self) -> Value {
        let session = self.session.settings.as_ref().map(|all| model::filled(all, &self.info));
        let mut data = match session {
            Some(Value::Object(data)) => data,
            _ => Map::new(),
        };
        data.remove(AGENT_ID);
        data.insert("type".into(), "conversation_initiation_client_data".into());
        let variables = self.info.parameters.iter();
        let variables = variables.filter(|(name, _)| !name.starts_with(RESERVED));
        let mut variables: Map<String, Value> =
            variables.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        if let Some(Value::Object(own)) = data.remove("dynamic_variables") {
            variables.extend(own);
        }
        data.insert("dynamic_variables".into(), variables.into());
        if let Some(greeting) = &self.session.greeting {
            let greeting = model::filled_text(greeting, &self.info);
            let overrides = object(&mut data, "conversation_config_override");
            object(overrides, "agent").insert("first_message".into(), greeting.into());
        }
        Value::Object(data)
    }

    fn say(&mut self, message: &Value) {
        if self.further.len() < MAX_FURTHER {
            self.further.push_back(Message::Text(message.to_string()));
        }
    }

    /// Tells the agent parameters that became known after the session was requested.
    fn explain(&mut self, parameters: &[(String, String)]) {
        let lines: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        if !lines.is_empty() {
            self.say(&json!({"type": "contextual_update", "text": lines.join("\n")}));
        }
    }

    fn on_message(
        &mut self,
        incoming: Incoming<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        match &*incoming.kind {
            "audio" => match incoming.audio_event {
                Some(event) => self.on_audio(&event.audio_base_64, event.event_id, audio, each),
                None => each(FromAi::Ignored("audio without audio_event")),
            },
            "interruption" => {
                if let Some(event) = incoming.interruption_event {
                    self.interrupted = self.interrupted.max(Some(event.event_id));
                }
                self.half = None;
                each(FromAi::Clear);
            }
            "ping" => {
                if let Some(NumberedEvent { event_id }) = incoming.ping_event {
                    self.say(&json!({"type": "pong", "event_id": event_id}));
                }
            }
            "conversation_initiation_metadata" => match self.start(&incoming) {
                Ok(formats) => self.formats = Some(formats),
                Err(why) => each(FromAi::Failed(why)),
            },
            "client_tool_call" => match incoming.client_tool_call {
                Some(call) => self.on_call(call, each),
                None => each(FromAi::Ignored("client_tool_call without details")),
            },
            "error" => {
                // an agent that ends the call in the regular way closes the stream
                let event = incoming.error_event.filter(|event| event.code != Some(1000));
                event.iter().for_each(|event| each(FromAi::Failed(failure(event))));
            }
            // the others are for people who watch, and new ones may come
            _ => {}
        }
    }

    /// Returns the formats to and from the agent.
    fn start(&self, incoming: &Incoming<'_>) -> Result<(Format, Format), String> {
        let Some(metadata) = &incoming.conversation_initiation_metadata_event else {
            return Err("conversation_initiation_metadata has no details".to_owned());
        };
        let format = |side: &str, name: &str| {
            Format::new(name).ok_or_else(|| {
                let name = model::said(name);
                format!(
                    "the agent's {side} format is {name}; set the input and the output format of \
                     the agent to mu-law 8000 Hz"
                )
            })
        };
        let to = format("input", &metadata.user_input_audio_format)?;
        Ok((to, format("output", &metadata.agent_output_audio_format)?))
    }

    fn on_audio(
        &mut self,
        payload: &str,
        event_id: Option<i64>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        let Some((_, format)) = self.formats else {
            return each(FromAi::Ignored("audio before conversation_initiation_metadata"));
        };
        if event_id.is_some_and(|id| self.interrupted.is_some_and(|last| id <= last)) {
            return;
        }
        audio.clear();
        if format == Format::Pcm {
            audio.extend(self.half.take());
        }
        if BASE64.decode_vec(payload, audio).is_err() {
            return each(FromAi::Ignored("audio_base_64 is not valid base64"));
        }
        if format == Format::Pcm {
            self.half = from_pcm(audio);
        }
        each(FromAi::Audio(audio));
    }

    fn on_call(&mut self, call: ClientToolCall, each: &mut dyn FnMut(FromAi<'_>)) {
        let ClientToolCall { tool_name: name, tool_call_id: id, parameters } = call;
        let arguments = match parameters {
            Value::Null => "{}".to_owned(),
            parameters => parameters.to_string(),
        };
        let offered = self.offered.iter().any(|tool| tool.name == name);
        match offered.then(|| model::order(&id, &name, &arguments)).flatten() {
            Some(order) => each(FromAi::Order(Box::new(order))),
            None => each(FromAi::Tool(Box::new(ToolCall { id, name, arguments }))),
        }
    }

    /// Appends a frame of audio. Runs 50 times per second for each call.
    fn audio(&self, samples: &Samples, out: &mut BytesMut) {
        let mut linear = [0u8; 2 * FRAME_SAMPLES];
        let bytes = match self.formats {
            Some((Format::Pcm, _)) => {
                for (to, sample) in linear.as_chunks_mut().0.iter_mut().zip(samples) {
                    *to = g711::decode(*sample).to_le_bytes();
                }
                &linear[..]
            }
            Some((Format::MuLaw, _)) | None => &samples[..],
        };
        let mut payload = [0u8; MAX_PAYLOAD];
        let length = BASE64.encode_slice(bytes, &mut payload).unwrap_or_default();
        out.extend_from_slice(br#"{"user_audio_chunk":""#);
        out.extend_from_slice(&payload[..length]);
        out.extend_from_slice(br#""}"#);
    }
}

impl Codec for Agent {
    fn hello(&mut self) -> Vec<Message> {
        vec![Message::Text(self.initiation().to_string())]
    }

    fn is_ready(&self) -> bool {
        self.formats.is_some()
    }

    fn opening(&mut self) -> Vec<Message> {
        let late = std::mem::take(&mut self.late);
        self.explain(&late);
        self.further.drain(..).collect()
    }

    fn add_parameters(&mut self, parameters: Vec<(String, String)>) {
        self.late.extend(parameters);
    }

    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form {
        let result = match message {
            ToAi::Audio { samples, .. } => {
                self.audio(samples, out);
                self.keys.on_frame();
                None
            }
            ToAi::Digit(key) => {
                self.keys.press(*key);
                None
            }
            ToAi::Reply(reply) => model::output(reply).map(|output| {
                let failed = output["status"] == "failed";
                result(&reply.id, &output.to_string(), failed)
            }),
            ToAi::ToolResult(tool) => Some(result(&tool.id, &tool.output, tool.failed)),
            ToAi::Parameters(parameters) => {
                self.explain(parameters);
                None
            }
            // the caller hears what remains, and the end of the call is the end of the connection
            ToAi::Mark { .. } | ToAi::Cleared { .. } | ToAi::State(_) | ToAi::Stop => None,
        };
        if let Some(result) = result {
            out.extend_from_slice(result.as_bytes());
        }
        Form::Text
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
        if let Some((payload, event_id)) = plain_audio(text) {
            return self.on_audio(payload, Some(event_id), audio, each);
        }
        match serde_json::from_str(text) {
            Ok(incoming) => self.on_message(incoming, audio, each),
            Err(_) => each(FromAi::Ignored("not a JSON message in ElevenLabs' format")),
        }
    }

    fn next_message(&mut self) -> Option<Message> {
        if let Some(keys) = self.keys.take() {
            self.say(&json!({"type": "user_message", "text": keys}));
        }
        self.further.pop_front()
    }
}

/// Returns the member `name` as an object, which replaces anything else.
fn object<'a>(all: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let member = all.entry(name).or_insert(Value::Null);
    if !member.is_object() {
        *member = json!({});
    }
    member.as_object_mut().expect("it has just been made one")
}

fn result(id: &str, result: &str, failed: bool) -> String {
    let kind = "client_tool_result";
    json!({"type": kind, "tool_call_id": id, "result": result, "is_error": failed}).to_string()
}

/// Converts 16-bit samples to mu-law in place. Returns the first half of one that is not complete.
fn from_pcm(audio: &mut Vec<u8>) -> Option<u8> {
    let half = (audio.len() % 2 == 1).then(|| audio.pop()).flatten();
    let samples = audio.len() / 2;
    for n in 0..samples {
        audio[n] = g711::encode(i16::from_le_bytes([audio[2 * n], audio[2 * n + 1]]));
    }
    audio.truncate(samples);
    half
}

/// Returns why the agent has failed, and what to do.
fn failure(error: &ErrorEvent<'_>) -> String {
    let kind = error.error_type.as_deref().unwrap_or("an error");
    let cure = match kind {
        "override_error" => "; allow the override in the security settings of the agent",
        "missing_dynamic_variable" => {
            "; set the variable in [ai] parameters or [ai.session.dynamic_variables]"
        }
        "missing_fields" | "invalid_message" | "value_error" => "; check [ai.session]",
        _ => "",
    };
    let why = error.message.as_deref().or(error.reason.as_deref()).unwrap_or("no details");
    format!("ElevenLabs reports {}: {}{cure}", model::said(kind), model::said(why))
}

/// Returns payload and number of an `audio` message, if it is written as almost all are: no
/// escapes, no duplicate or unusual members. `None` only means that the message needs the full
/// parser.
fn plain_audio(text: &str) -> Option<(&str, i64)> {
    let (mut kind, mut payload, mut event_id, mut seen) = (None, None, None, false);
    Cursor::read(text, &mut |cursor, key| match key {
        "type" => kind.replace(cursor.string()?).is_none().then_some(()),
        "audio_event" if !std::mem::replace(&mut seen, true) => {
            cursor.object(&mut |cursor, key| match key {
                "audio_base_64" => payload.replace(cursor.string()?).is_none().then_some(()),
                "event_id" => event_id.replace(cursor.number()?).is_none().then_some(()),
                _ => cursor.skip(),
            })
        }
        _ => None,
    })?;
    let audio = kind == Some("audio");
    audio.then_some((payload?, i64::try_from(event_id?).ok()?))
}

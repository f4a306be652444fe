//! ElevenLabs Agents: the agent and its audio formats are kept at ElevenLabs, and audio is base64
//! in JSON, mu-law as it is. Where the agent uses PCM, it is converted here.
//! Source: <https://elevenlabs.io/docs/api-reference/agents-platform/websocket>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::VecDeque;

use base64::Engine as _;
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::media::frame::Samples;
use crate::stream::dialect::{Codec, Form, Session};
use crate::stream::json::Cursor;
use crate::stream::keys::Keys;
use crate::stream::linear::{Linear, MAX_FRAME_BYTES};
use crate::stream::twilio::{BASE64, base64};
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi, model};

/// Where the agents are; the id of one follows as `agent_id`.
const URL: &str = "wss://api.elevenlabs.io/v1/convai/conversation";
/// The member of `[ai.session]` with the agent's id.
const AGENT_ID: &str = "agent_id";
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

/// A format of the agent's audio.
enum Format {
    MuLaw,
    /// 16 bits, little-endian.
    Pcm(Linear),
}

impl Format {
    fn new(name: &str) -> Option<Format> {
        let rate = match name {
            "ulaw_8000" => return Some(Format::MuLaw),
            "pcm_8000" => 8000,
            "pcm_16000" => 16_000,
            "pcm_24000" => 24_000,
            "pcm_48000" => 48_000,
            _ => return None,
        };
        Some(Format::Pcm(Linear::new(rate)))
    }
}

/// Writes and reads the messages of one stream.
pub struct Agent {
    info: StreamInfo,
    session: Session,
    /// Our tools that the agent may call.
    offered: Vec<model::Tool>,
    /// The formats to and from the agent, once it is ready.
    formats: Option<(Format, Format)>,
    /// The last interruption: audio up to this event is not played.
    interrupted: Option<i64>,
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

    /// Sends parameters that became known after the session was requested.
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
                if let Some((_, Format::Pcm(linear))) = &mut self.formats {
                    linear.clear();
                }
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
        let refused = |side: &str, name: &str| {
            let name = model::said(name);
            format!(
                "the agent's {side} format is {name}; set the input and the output format of the \
                 agent to mu-law 8000 Hz"
            )
        };
        let (to, from) = (&metadata.user_input_audio_format, &metadata.agent_output_audio_format);
        let to = Format::new(to).ok_or_else(|| refused("input", to))?;
        Ok((to, Format::new(from).ok_or_else(|| refused("output", from))?))
    }

    fn on_audio(
        &mut self,
        payload: &str,
        event_id: Option<i64>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        let Some((_, format)) = &mut self.formats else {
            return each(FromAi::Ignored("audio before conversation_initiation_metadata"));
        };
        if event_id.is_some_and(|id| self.interrupted.is_some_and(|last| id <= last)) {
            return;
        }
        audio.clear();
        if BASE64.decode_vec(payload, audio).is_err() {
            return each(FromAi::Ignored("audio_base_64 is not valid base64"));
        }
        if let Format::Pcm(linear) = format {
            linear.decode(audio);
        }
        each(FromAi::Audio(audio));
    }

    fn on_call(&mut self, call: ClientToolCall, each: &mut dyn FnMut(FromAi<'_>)) {
        let ClientToolCall { tool_name: name, tool_call_id: id, parameters } = call;
        let offered = self.offered.iter().any(|tool| tool.name == name);
        each(model::called(&self.info, offered, id, name, &parameters));
    }

    /// Appends a frame of audio. Runs 50 times per second for each call.
    fn audio(&mut self, samples: &Samples, out: &mut BytesMut) {
        out.extend_from_slice(br#"{"user_audio_chunk":""#);
        match &mut self.formats {
            Some((Format::Pcm(linear), _)) => {
                base64(linear.encode(samples, &mut [0; MAX_FRAME_BYTES]), out);
            }
            Some((Format::MuLaw, _)) | None => base64(samples, out),
        }
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
            ToAi::Mark { .. }
            | ToAi::Cleared { .. }
            | ToAi::Heard(_)
            | ToAi::State(_)
            | ToAi::Stop => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Failure, Reply};
    use crate::media::g711;
    use crate::stream::testing::{encoded, in_words, sent};
    use crate::stream::{OrderReply, ToolResult};

    fn agent(session: Value, greeting: Option<&str>) -> Agent {
        let parameters = [("from_number", "+49"), ("system__x", "1")];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let targets = vec!["sales".into()];
        let info = StreamInfo { parameters: parameters.into(), targets, ..StreamInfo::default() };
        let greeting = greeting.map(str::to_owned);
        Agent::new(info, &Session { settings: Some(session), greeting, ..Session::default() })
    }

    fn metadata(to: &str, from: &str) -> Value {
        let event = json!({
            "conversation_id": "c1",
            "agent_output_audio_format": from,
            "user_input_audio_format": to,
        });
        let kind = "conversation_initiation_metadata";
        json!({"type": kind, "conversation_initiation_metadata_event": event})
    }

    fn ready(format: &str) -> Agent {
        let mut agent = agent(json!({"agent_id": "a1"}), None);
        assert_eq!(decode(&mut agent, &metadata(format, format)), [""; 0]);
        assert!(agent.is_ready());
        agent
    }

    fn decode(agent: &mut Agent, message: &Value) -> Vec<String> {
        decode_text(agent, &message.to_string())
    }

    /// Returns the meaning of a message in a few words.
    fn decode_text(agent: &mut Agent, text: &str) -> Vec<String> {
        in_words(agent, Received::Text(text))
    }

    #[test]
    fn the_url_names_the_agent() {
        let session = |id: &str| {
            let settings = Some(json!({"agent_id": id}));
            Session { settings, ..Session::default() }
        };
        for (configured, id, expected) in [
            (
                None,
                "agent_1",
                Some("wss://api.elevenlabs.io/v1/convai/conversation?agent_id=agent_1"),
            ),
            (None, "", None),
            (Some("ws://h/x?environment=eu"), "a b", Some("ws://h/x?environment=eu&agent_id=a+b")),
            (Some("ws://h/x?agent_id=2"), "", Some("ws://h/x?agent_id=2")),
        ] {
            assert_eq!(url(configured, &session(id)).as_deref(), expected);
        }
    }

    #[test]
    fn the_session_is_requested_with_variables_and_overrides() {
        let session = json!({
            "agent_id": "a1",
            "user_id": "{from_number}",
            "dynamic_variables": {"plan": "gold", "from_number": "hidden"},
            "conversation_config_override": {"tts": {"voice_id": "v1"}},
        });
        let data = agent(session, Some("Hello {from_number}")).initiation();
        let expected = json!({
            "type": "conversation_initiation_client_data",
            "user_id": "+49",
            "dynamic_variables": {"plan": "gold", "from_number": "hidden"},
            "conversation_config_override": {
                "tts": {"voice_id": "v1"},
                "agent": {"first_message": "Hello +49"},
            },
        });
        assert_eq!(data, expected);
        let plain = agent(json!({"agent_id": "a1"}), None).initiation();
        assert_eq!(plain["dynamic_variables"], json!({"from_number": "+49"}));
        assert_eq!(plain.get("conversation_config_override"), None);
    }

    #[test]
    fn messages_are_decoded() {
        let tool = |name: &str, parameters: Value| {
            let call = json!({"tool_name": name, "tool_call_id": "t1", "parameters": parameters});
            json!({"type": "client_tool_call", "client_tool_call": call}).to_string()
        };
        let error = |code: i64, kind: &str| {
            let event = json!({"code": code, "error_type": kind, "message": "not\nallowed"});
            json!({"type": "error", "error_event": event}).to_string()
        };
        let audio = "audio [1, 2, 3]";
        let table = [
            (r#"{"type":"audio","audio_event":{"audio_base_64":"AQID","event_id":1}}"#, audio),
            (r#"{"audio_event":{"event_id":0,"audio_base_64":"AQID"},"type":"audio"}"#, audio),
            (
                r#"{"type":"audio","audio_event":{"audio_base_64":"AQID","event_id":1,"alignment":{"chars":["a"]}}}"#,
                audio,
            ),
            (r#"{"type":"audio","audio_event":{"audio_base_64":"AQ\u0049D"}}"#, audio),
            (r#"{"type":"audio","audio_event":{"audio_base_64":"!","event_id":1}}"#, {
                "audio_base_64 is not valid base64"
            }),
            (r#"{"type":"audio"}"#, "audio without audio_event"),
            (r#"{"type":"interruption","interruption_event":{"event_id":3}}"#, "clear"),
            (r#"{"type":"interruption"}"#, "clear"),
            (r#"{"type":"vad_score","vad_score_event":{"vad_score":0.95}}"#, ""),
            (r#"{"type":"something_new","x":[1]}"#, ""),
            (r#"{"type":"client_tool_call"}"#, "client_tool_call without details"),
            ("null", "not a JSON message in ElevenLabs' format"),
            (&"[".repeat(100_000), "not a JSON message in ElevenLabs' format"),
            (&tool("hang_up", json!({})), "order t1"),
            (&tool("hang_up", Value::Null), "order t1"),
            (&tool("transfer_call", json!({"target": "sales"})), "order t1"),
            (&tool("transfer_call", json!({})), "unusable t1"),
            (&tool("look_up", json!({"a": 1})), "tool look_up {\"a\":1}"),
            (&error(1008, "override_error"), {
                "ElevenLabs reports override_error: not allowed; allow the override in the \
                 security settings of the agent"
            }),
            (&error(1000, "max_duration_exceeded"), ""),
        ];
        for (text, expected) in table {
            let said = decode_text(&mut ready("ulaw_8000"), text);
            assert_eq!(said.join(" "), expected, "{text:.200}");
        }
        let mut early = agent(json!({}), None);
        let said = decode_text(&mut early, table[0].0);
        assert_eq!(said, ["audio before conversation_initiation_metadata"]);
    }

    #[test]
    fn other_formats_are_refused_with_the_remedy() {
        for (to, from, side) in [
            ("pcm_22050", "ulaw_8000", "input format is pcm_22050"),
            ("ulaw_8000", "mp3_44100", "output format is mp3_44100"),
        ] {
            let mut agent = agent(json!({}), None);
            let said = decode(&mut agent, &metadata(to, from)).remove(0);
            assert!(said.contains(side) && said.ends_with("to mu-law 8000 Hz"), "{said}");
            assert!(!agent.is_ready());
        }
    }

    #[test]
    fn other_rates_are_resampled() {
        for (name, bytes) in [("pcm_16000", 640), ("pcm_24000", 960), ("pcm_48000", 1920)] {
            let mut agent = ready(name);
            let frame = ToAi::Audio { samples: [0xff; 160], t_ms: 0 };
            let text = encoded(&mut agent, &frame);
            let sent: Value = serde_json::from_str(&text).unwrap();
            let payload = BASE64.decode(sent["user_audio_chunk"].as_str().unwrap()).unwrap();
            assert_eq!(payload, vec![0; bytes], "{name}");
            let event = json!({"audio_base_64": BASE64.encode(payload), "event_id": 1});
            let said = decode(&mut agent, &json!({"type": "audio", "audio_event": event}));
            assert_eq!(said, [format!("audio {:?}", [0xff; 160])], "{name}");
        }
    }

    #[test]
    fn audio_before_an_interruption_is_dropped() {
        let mut agent = ready("ulaw_8000");
        let audio = |id: i64| {
            let event = json!({"audio_base_64": "AQID", "event_id": id});
            json!({"type": "audio", "audio_event": event})
        };
        let interruption =
            |id: i64| json!({"type": "interruption", "interruption_event": {"event_id": id}});
        assert_eq!(decode(&mut agent, &audio(1)).len(), 1);
        assert_eq!(decode(&mut agent, &interruption(5)), ["clear"]);
        // an older one changes nothing
        assert_eq!(decode(&mut agent, &interruption(2)), ["clear"]);
        for (id, heard) in [(1, 0), (5, 0), (6, 1)] {
            assert_eq!(decode(&mut agent, &audio(id)).len(), heard, "{id}");
        }
    }

    #[test]
    fn pings_are_answered_and_keys_are_messages() {
        let mut agent = ready("ulaw_8000");
        decode(&mut agent, &json!({"type": "ping", "ping_event": {"event_id": 7, "ping_ms": 50}}));
        assert_eq!(sent(&mut agent), [json!({"type": "pong", "event_id": 7})]);
        encoded(&mut agent, &ToAi::Digit('4'));
        encoded(&mut agent, &ToAi::Digit('#'));
        let message = json!({"type": "user_message", "text": "[keys pressed: 4#]"});
        assert_eq!(sent(&mut agent), [message]);
        for n in 0..1000 {
            decode(&mut agent, &json!({"type": "ping", "ping_event": {"event_id": n}}));
        }
        assert_eq!(sent(&mut agent).len(), MAX_FURTHER);
        agent.add_parameters(vec![("lead_id".into(), "7".into())]);
        let update = r#"{"text":"lead_id: 7","type":"contextual_update"}"#;
        assert_eq!(agent.opening(), [Message::Text(update.into())]);
    }

    #[test]
    fn results_are_sent() {
        let mut agent = ready("ulaw_8000");
        let reply = |reply| {
            let id = "t1".to_owned();
            ToAi::Reply(Box::new(OrderReply { id, command: "transfer", reply, why: None }))
        };
        assert_eq!(encoded(&mut agent, &reply(Reply::Accepted)), "");
        for (given, failed) in [(Reply::Done, false), (Reply::Failed(Failure::Busy), true)] {
            let result = encoded(&mut agent, &reply(given));
            let result: Value = serde_json::from_str(&result).unwrap();
            assert_eq!(
                (&result["tool_call_id"], &result["is_error"]),
                (&json!("t1"), &json!(failed))
            );
        }
        let (id, name, output) = ("t2".into(), "look_up".into(), "42".into());
        let result = ToAi::ToolResult(Box::new(ToolResult { id, name, output, failed: true }));
        assert_eq!(
            encoded(&mut agent, &result),
            r#"{"is_error":true,"result":"42","tool_call_id":"t2","type":"client_tool_result"}"#
        );
    }

    #[test]
    fn audio_is_passed_on_as_the_agent_wants_it() {
        let samples: Samples = std::array::from_fn(|n| n as u8);
        let frame = ToAi::Audio { samples, t_ms: 0 };
        let payload = |text: String| {
            let base64 = text.strip_prefix("{\"user_audio_chunk\":\"").unwrap();
            BASE64.decode(base64.strip_suffix("\"}").unwrap()).unwrap()
        };
        assert_eq!(payload(encoded(&mut ready("ulaw_8000"), &frame)), samples);
        let mut agent = ready("pcm_8000");
        let linear = payload(encoded(&mut agent, &frame));
        let expected: Vec<u8> =
            samples.iter().flat_map(|s| g711::decode(*s).to_le_bytes()).collect();
        assert_eq!(linear, expected);
        // back again in uneven pieces, without a lost byte; mu-law has two zeros
        let mut heard = Vec::new();
        for piece in linear.chunks(33) {
            let event = json!({"audio_base_64": BASE64.encode(piece), "event_id": 1});
            let text = json!({"type": "audio", "audio_event": event}).to_string();
            agent.decode(Received::Text(&text), &mut Vec::new(), &mut |message| match message {
                FromAi::Audio(audio) => heard.extend_from_slice(audio),
                other => panic!("{other:?}"),
            });
        }
        assert!(heard.iter().zip(samples).all(|(a, b)| *a == b || b == 0x7f), "{heard:?}");
        assert_eq!(heard.len(), samples.len());
    }
}

//! Google's Gemini Live API (`BidiGenerateContent`, v1beta): JSON in both directions, which Google
//! puts into binary messages, with linear audio in base64.
//! Source: <https://ai.google.dev/api/live>.
//!
//! A connection lasts about ten minutes. The session continues on another one with the handle that
//! Google sent last, so a call is not limited to that.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::VecDeque;

use base64::Engine as _;
use bytes::BytesMut;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::media::frame::Samples;
use crate::stream::dialect::{Codec, Form, Session};
use crate::stream::keys::Keys;
use crate::stream::linear::{Linear, MAX_FRAME_BYTES};
use crate::stream::model::{self, GREETS, RESUMED};
use crate::stream::twilio::{BASE64, base64};
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi};

pub const URL: &str = concat!(
    "wss://generativelanguage.googleapis.com/ws/",
    "google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
);
const MODEL: &str = "gemini-3.8-live";
/// The sample rates of audio to the model; the last one unless another is set.
pub const RATES: [u32; 2] = [8000, 16_000];
/// The sample rate of audio from the model, unless it says otherwise.
const MODEL_RATE: u32 = 24_000;
/// Calls of tools without a result. A model that makes more has lost its way.
const MAX_OPEN: usize = 32;
/// Longest handle that is kept, in bytes.
const MAX_HANDLE: usize = 16 * 1024;

/// Returns the headers for a handshake.
pub fn handshake_headers(auth_token: Option<&str>) -> Vec<(&'static str, String)> {
    auth_token.map(|key| ("x-goog-api-key", key.to_owned())).into_iter().collect()
}

/// Checks the settings of a session.
///
/// # Errors
/// Returns the key that cannot work, and the reason.
pub fn check(session: Option<&Value>) -> Result<(), (&'static str, String)> {
    let Some(session) = session else { return Ok(()) };
    let wrong = |part: &'static str, what: &str| Err((part, format!("must be {what}")));
    if session.get("model").is_some_and(|model| !model.is_string()) {
        return wrong("model", "a text, such as \"gemini-3.8-live\"");
    }
    if session.get("tools").is_some_and(|tools| !tools.is_array()) {
        return wrong("tools", "a list: write [[ai.session.tools]]");
    }
    for part in ["generationConfig", "sessionResumption"] {
        if session.get(part).is_some_and(|value| !value.is_object()) {
            return wrong(part, "a table");
        }
    }
    let modalities = session.pointer("/generationConfig/responseModalities");
    if modalities.is_some_and(|modalities| *modalities != json!(["AUDIO"])) {
        return wrong("generationConfig.responseModalities", "[\"AUDIO\"], or left out");
    }
    Ok(())
}

/// Writes and reads the messages of one stream.
pub struct Live {
    info: StreamInfo,
    session: Session,
    /// Our tools that the model may call.
    offered: Vec<model::Tool>,
    ready: bool,
    /// Sample rates to and from the model, and the converter between them and ours.
    rates: (u32, u32),
    linear: Linear,
    /// Messages to be sent.
    further: VecDeque<Message>,
    keys: Keys,
    /// Ids of the calls of tools that the model waits for.
    open: Vec<String>,
    /// Calls without an id so far.
    unnamed: u64,
    /// True while the model generates speech.
    speaking: bool,
    /// True once Google has announced the end of the connection.
    leaving: bool,
    /// Continues the session on another connection.
    handle: Option<String>,
    /// Parameters that became known after the session was set up.
    late: Vec<(String, String)>,
}

/// A message from Google. Members of other messages are left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incoming<'a> {
    setup_complete: Option<IgnoredAny>,
    #[serde(borrow)]
    server_content: Option<Content<'a>>,
    tool_call: Option<Calls>,
    tool_call_cancellation: Option<Cancellation>,
    go_away: Option<IgnoredAny>,
    session_resumption_update: Option<Resumption>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Content<'a> {
    #[serde(borrow)]
    model_turn: Option<Turn<'a>>,
    interrupted: bool,
    generation_complete: bool,
    turn_complete: bool,
}

#[derive(Deserialize)]
struct Turn<'a> {
    #[serde(borrow, default)]
    parts: Vec<Part<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part<'a> {
    #[serde(borrow)]
    inline_data: Option<Blob<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Blob<'a> {
    #[serde(borrow, default)]
    mime_type: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Calls {
    #[serde(default)]
    function_calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    id: Option<String>,
    name: String,
    #[serde(default)]
    args: Value,
}

#[derive(Deserialize)]
struct Cancellation {
    #[serde(default)]
    ids: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resumption {
    new_handle: Option<String>,
    #[serde(default)]
    resumable: bool,
}

impl Live {
    pub fn new(info: StreamInfo, session: &Session) -> Live {
        let rate = session.sample_rate.unwrap_or(RATES[1]);
        Live {
            offered: model::tools(session.tools.as_deref(), &info.targets),
            handle: info.resumption.clone(),
            info,
            session: session.clone(),
            ready: false,
            rates: (rate, MODEL_RATE),
            linear: Linear::between(rate, MODEL_RATE),
            further: VecDeque::new(),
            keys: Keys::default(),
            open: Vec::new(),
            unnamed: 0,
            speaking: false,
            leaving: false,
            late: Vec::new(),
        }
    }

    /// Returns the message that sets up the session.
    fn setup(&self) -> Value {
        let session = self.session.settings.as_ref().map(|all| model::filled(all, &self.info));
        let mut setup = match session {
            Some(Value::Object(setup)) => setup,
            _ => Map::new(),
        };
        let model = setup.get("model").and_then(Value::as_str).unwrap_or(MODEL);
        let model = match model.contains('/') {
            true => model.to_owned(),
            false => format!("models/{model}"),
        };
        setup.insert("model".into(), model.into());
        if let Some(Value::String(text)) = setup.get("systemInstruction") {
            let content = json!({"parts": [{"text": text}]});
            setup.insert("systemInstruction".into(), content);
        }
        // `check` has made sure that these are of this kind
        if let Some(config) = entry(&mut setup, "generationConfig", json!({})).as_object_mut() {
            config.insert("responseModalities".into(), json!(["AUDIO"]));
        }
        if let Some(resumption) = entry(&mut setup, "sessionResumption", json!({})).as_object_mut()
        {
            resumption.extend(self.handle.iter().map(|h| ("handle".into(), h.as_str().into())));
        }
        self.add_tools(&mut setup);
        json!({ "setup": setup })
    }

    /// Adds our tools, apart from those whose names the user has given to others.
    fn add_tools(&self, setup: &mut Map<String, Value>) {
        let own = setup.get("tools").and_then(Value::as_array).into_iter().flatten();
        let own = own.filter_map(|tool| tool["functionDeclarations"].as_array()).flatten();
        let known: Vec<&Value> = own.map(|function| &function["name"]).collect();
        let new = self.offered.iter().filter(|tool| !known.iter().any(|name| **name == tool.name));
        let ours: Vec<Value> = new.map(declaration).collect();
        if !ours.is_empty()
            && let Some(tools) = entry(setup, "tools", json!([])).as_array_mut()
        {
            tools.push(json!({ "functionDeclarations": ours }));
        }
    }

    fn say(&mut self, message: &Value) {
        self.further.push_back(Message::Text(message.to_string()));
    }

    /// Says something in the caller's place, to which the model reacts.
    fn say_text(&mut self, text: &str) {
        self.say(&json!({"realtimeInput": {"text": text}}));
    }

    /// Gives the model what has become known of the call, without an answer.
    fn explain(&mut self, parameters: &[(String, String)]) {
        if parameters.is_empty() {
            return;
        }
        let turns = json!([{"role": "user", "parts": [{"text": model::known(parameters)}]}]);
        self.say(&json!({"clientContent": {"turns": turns, "turnComplete": false}}));
    }

    fn on_message(
        &mut self,
        incoming: Incoming<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        self.ready |= incoming.setup_complete.is_some();
        self.leaving |= incoming.go_away.is_some();
        if let Some(content) = incoming.server_content {
            self.on_content(&content, audio, each);
        }
        for call in incoming.tool_call.into_iter().flat_map(|calls| calls.function_calls) {
            self.on_call(call, each);
        }
        if let Some(Cancellation { ids }) = incoming.tool_call_cancellation {
            self.open.retain(|id| !ids.contains(id));
        }
        if let Some(update) = incoming.session_resumption_update {
            self.on_handle(update, each);
        }
    }

    fn on_content(
        &mut self,
        content: &Content<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        if content.interrupted {
            self.speaking = false;
            self.linear.clear();
            each(FromAi::Clear);
        }
        for part in content.model_turn.iter().flat_map(|turn| &turn.parts) {
            if let Some(blob) = &part.inline_data {
                self.on_audio(blob, audio, each);
            }
        }
        if content.generation_complete || content.turn_complete {
            self.speaking = false;
        }
    }

    fn on_audio(&mut self, blob: &Blob<'_>, audio: &mut Vec<u8>, each: &mut dyn FnMut(FromAi<'_>)) {
        let Some(rate) = rate(&blob.mime_type) else {
            return each(FromAi::Ignored("inlineData is not audio/pcm"));
        };
        if rate != self.rates.1 {
            if rate == 0 || rate % 8000 != 0 || rate > 48_000 {
                // another connection would not change that
                self.handle = None;
                let why = format!("the model's audio has {rate} Hz, which is not supported");
                return each(FromAi::Failed(why));
            }
            self.rates.1 = rate;
            self.linear = Linear::between(self.rates.0, rate);
        }
        audio.clear();
        if BASE64.decode_vec(&*blob.data, audio).is_err() {
            return each(FromAi::Ignored("inlineData is not valid base64"));
        }
        self.speaking = true;
        self.linear.decode(audio);
        each(FromAi::Audio(audio));
    }

    fn on_call(&mut self, call: Call, each: &mut dyn FnMut(FromAi<'_>)) {
        let Call { id, name, args } = call;
        if self.open.len() >= MAX_OPEN {
            return each(FromAi::Ignored("the model calls too many tools at once"));
        }
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| {
            self.unnamed += 1;
            format!("call-{}", self.unnamed)
        });
        self.open.push(id.clone());
        let offered = self.offered.iter().any(|tool| tool.name == name);
        each(model::called(&self.info, offered, id, name, &args));
    }

    /// Keeps the handle. After the end of the connection has been announced, the session moves to
    /// another one as soon as nothing would be lost: the model has nothing more to say, and what
    /// was said before is behind the handle.
    fn on_handle(&mut self, update: Resumption, each: &mut dyn FnMut(FromAi<'_>)) {
        let handle = update.new_handle.filter(|new| !new.is_empty() && new.len() <= MAX_HANDLE);
        let Some(handle) = handle.filter(|_| update.resumable) else { return };
        self.handle = Some(handle);
        if self.leaving && !self.speaking && self.open.is_empty() {
            self.leaving = false;
            each(FromAi::SessionEnded("Google ends the connection soon".to_owned()));
        }
    }

    /// Returns the result of a tool, if the model still waits for it.
    fn result(&mut self, id: &str, name: &str, response: &Value) -> Option<Value> {
        let at = self.open.iter().position(|open| open == id)?;
        self.open.swap_remove(at);
        let response = json!({"id": id, "name": name, "response": response});
        Some(json!({"toolResponse": {"functionResponses": [response]}}))
    }

    /// Appends a frame of audio. Runs 50 times per second for each call.
    fn audio(&mut self, samples: &Samples, out: &mut BytesMut) {
        let begin: &[u8] = match self.rates.0 == RATES[0] {
            true => br#"{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=8000","data":""#,
            false => br#"{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=16000","data":""#,
        };
        out.extend_from_slice(begin);
        base64(self.linear.encode(samples, &mut [0; MAX_FRAME_BYTES]), out);
        out.extend_from_slice(br#""}}}"#);
    }
}

/// Returns a member, or inserts it.
fn entry<'a>(all: &'a mut Map<String, Value>, name: &str, or: Value) -> &'a mut Value {
    all.entry(name).or_insert(or)
}

/// Declares a tool. The model waits for its result: it should not talk on during a transfer.
fn declaration(tool: &model::Tool) -> Value {
    let mut function = json!({
        "name": tool.name,
        "description": tool.description,
        "behavior": "BLOCKING",
    });
    // a schema without properties is refused
    if tool.parameters["properties"].as_object().is_some_and(|all| !all.is_empty()) {
        function["parameters"] = schema(&tool.parameters);
    }
    function
}

/// Returns a schema with its types as Google writes them.
fn schema(value: &Value) -> Value {
    let Value::Object(all) = value else { return value.clone() };
    let member = |(name, value): (&String, &Value)| {
        let value = match value.as_str().filter(|_| name == "type") {
            Some(kind) => kind.to_ascii_uppercase().into(),
            None => schema(value),
        };
        (name.clone(), value)
    };
    Value::Object(all.iter().map(member).collect())
}

/// Returns the sample rate of linear audio; `None` if it is something else.
fn rate(mime_type: &str) -> Option<u32> {
    let mut parts = mime_type.split(';').map(str::trim);
    if parts.next() != Some("audio/pcm") {
        return None;
    }
    let rate = parts.find_map(|part| part.strip_prefix("rate="));
    Some(rate.map_or(MODEL_RATE, |rate| rate.parse().unwrap_or(0)))
}

impl Codec for Live {
    fn hello(&mut self) -> Vec<Message> {
        vec![Message::Text(self.setup().to_string())]
    }

    fn is_ready(&self) -> bool {
        self.ready
    }

    fn opening(&mut self) -> Vec<Message> {
        let late = std::mem::take(&mut self.late);
        self.explain(&late);
        match &self.session.greeting {
            // the session continues, and knows what was said
            _ if self.info.resumption.is_some() => {}
            _ if self.info.resumed => self.say_text(RESUMED),
            Some(greeting) => {
                let text = format!("{GREETS} {}", model::filled_text(greeting, &self.info));
                self.say_text(&text);
            }
            None => {}
        }
        self.further.drain(..).collect()
    }

    fn add_parameters(&mut self, parameters: Vec<(String, String)>) {
        self.info.parameters.extend(parameters.iter().cloned());
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
            ToAi::Reply(reply) => model::output(reply).and_then(|output| {
                self.result(&reply.id, model::tool_name(reply.command), &output)
            }),
            ToAi::ToolResult(tool) => {
                let output = serde_json::from_str(&tool.output);
                let output = output.unwrap_or_else(|_| Value::from(tool.output.as_str()));
                let member = if tool.failed { "error" } else { "output" };
                self.result(&tool.id, &tool.name, &json!({ member: output }))
            }
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
            out.extend_from_slice(result.to_string().as_bytes());
        }
        Form::Text
    }

    fn decode(
        &mut self,
        message: Received<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        let incoming = match message {
            Received::Text(text) => serde_json::from_str(text),
            Received::Binary(data) => serde_json::from_slice(data),
        };
        match incoming {
            Ok(incoming) => self.on_message(incoming, audio, each),
            Err(_) => each(FromAi::Ignored("not a JSON message in Google's format")),
        }
    }

    fn hangs_up_by_closing(&self) -> bool {
        false
    }

    fn resumption(&self) -> Option<&str> {
        self.handle.as_deref()
    }

    fn next_message(&mut self) -> Option<Message> {
        if let Some(keys) = self.keys.take() {
            self.say_text(&keys);
        }
        self.further.pop_front()
    }
}

#[cfg(test)]
mod tests;

//! Ultravox: a request to its API creates a call, and audio is binary in both directions, linear at
//! 8 kHz, so that nothing is resampled. Source: <https://docs.ultravox.ai/apps/datamessages>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::command::Reply;
use crate::stream::dialect::{CALL_RATE, Codec, Creation, Form, Session};
use crate::stream::keys::Keys;
use crate::stream::linear::{Linear, MAX_FRAME_BYTES};
use crate::stream::{FromAi, Message, OrderReply, Received, StreamInfo, ToAi, model};

/// How a call is created.
pub const CREATION: Creation = Creation {
    url: "https://api.ultravox.ai/api/calls",
    api: "https://api.ultravox.ai/",
    key: "X-API-Key",
    url_field: "joinUrl",
    allow_hosts: &["*.ultravox.ai"],
};
/// How much audio Ultravox may send ahead, in ms. What the caller does not hear is cleared.
const BUFFER_MS: u32 = 30_000;
/// How long Ultravox waits for the result of a tool whose audio comes first, and of a transfer.
const TOOL_TIMEOUTS: [&str; 2] = ["20s", "30s"];

/// In the path of a request for a call with an agent that is kept at Ultravox.
const AGENTS: &str = "/agents/";

/// Checks the settings of a session.
///
/// # Errors
/// Returns the key that cannot work, and the reason.
pub fn check(session: Option<&Value>) -> Result<(), (&'static str, String)> {
    let is = |name: &str, good: fn(&Value) -> bool| {
        session.and_then(|all| all.get(name)).is_none_or(good)
    };
    if !is("selectedTools", Value::is_array) {
        return Err(("selectedTools", "must be a list: write [[ai.session.selectedTools]]".into()));
    }
    if !is("toolOverrides", Value::is_object) {
        return Err(("toolOverrides", "must be a table".into()));
    }
    Ok(())
}

/// Returns the body of the request that creates a call: the user's, completed with the format of
/// the audio, the greeting and our tools.
pub fn creation(path: &str, body: Option<&Value>, session: &Session, info: &StreamInfo) -> Value {
    let body = body.or(session.settings.as_ref()).map(|body| model::filled(body, info));
    let mut body = match body {
        Some(Value::Object(body)) => body,
        _ => Map::new(),
    };
    let medium = json!({"serverWebSocket": {
        "inputSampleRate": CALL_RATE,
        "outputSampleRate": CALL_RATE,
        "clientBufferSizeMs": BUFFER_MS,
    }});
    body.insert("medium".into(), medium);
    let first = match &session.greeting {
        _ if info.resumed => Some(json!({"prompt": model::RESUMED})),
        Some(greeting) => Some(json!({"text": model::filled_text(greeting, info)})),
        None => None,
    };
    if let Some(first) = first {
        body.insert("firstSpeakerSettings".into(), json!({ "agent": first }));
    }
    let offered = model::tools(session.tools.as_deref(), &info.targets);
    if !offered.is_empty() {
        match path.contains(AGENTS) {
            // it has tools of its own, which stay
            true => {
                let overrides = body.entry("toolOverrides").or_insert_with(|| json!({}));
                if let Some(overrides) = overrides.as_object_mut() {
                    add_tools(overrides, "add", &offered);
                }
            }
            false => add_tools(&mut body, "selectedTools", &offered),
        }
    }
    Value::Object(body)
}

/// Adds our tools, apart from those whose names the user has given to others.
fn add_tools(to: &mut Map<String, Value>, list: &str, offered: &[model::Tool]) {
    let tools = to.entry(list).or_insert_with(|| json!([]));
    let Value::Array(tools) = tools else { return };
    for tool in offered {
        let is_known = tools.iter().any(|other| {
            let names = ["/temporaryTool/modelToolName", "/nameOverride", "/toolName"];
            names.iter().any(|name| other.pointer(name).is_some_and(|name| name == tool.name))
        });
        if !is_known {
            tools.push(json!({ "temporaryTool": temporary_tool(tool) }));
        }
    }
}

fn temporary_tool(tool: &model::Tool) -> Value {
    let is_required = |name: &str| {
        tool.parameters["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name))
    };
    let properties = tool.parameters["properties"].as_object();
    let parameter = |(name, schema): (&String, &Value)| {
        json!({
            "name": name,
            "location": "PARAMETER_LOCATION_BODY",
            "schema": schema,
            "required": is_required(name),
        })
    };
    let parameters: Vec<Value> = properties.into_iter().flatten().map(parameter).collect();
    let timeout = TOOL_TIMEOUTS[usize::from(tool.name == "transfer_call")];
    json!({
        "modelToolName": tool.name,
        "description": tool.description,
        "dynamicParameters": parameters,
        "timeout": timeout,
        "client": {},
    })
}

/// Writes and reads the messages of one stream.
pub struct Agent {
    info: StreamInfo,
    /// The names of our tools that the agent may call.
    offered: Vec<&'static str>,
    linear: Linear,
    /// Messages to be sent.
    further: VecDeque<Message>,
    keys: Keys,
    /// Parameters that became known after the call was created.
    late: Vec<(String, String)>,
}

/// A message from Ultravox. Members of other messages are left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incoming<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    tool_name: Option<String>,
    invocation_id: Option<String>,
    #[serde(default)]
    parameters: Value,
}

impl Agent {
    pub fn new(info: StreamInfo, session: &Session) -> Agent {
        let offered = model::tools(session.tools.as_deref(), &info.targets);
        Agent {
            offered: offered.into_iter().map(|tool| tool.name).collect(),
            info,
            linear: Linear::new(CALL_RATE),
            further: VecDeque::new(),
            keys: Keys::default(),
            late: Vec::new(),
        }
    }

    fn say(&mut self, message: &Value) {
        self.further.push_back(Message::Text(message.to_string()));
    }

    /// Gives the agent what has become known of the call, without an answer.
    fn explain(&mut self, parameters: &[(String, String)]) {
        if !parameters.is_empty() {
            let text = model::known(parameters);
            self.say(&json!({"type": "user_text_message", "text": text, "urgency": "later"}));
        }
    }

    fn on_message(&mut self, incoming: Incoming<'_>, each: &mut dyn FnMut(FromAi<'_>)) {
        match &*incoming.kind {
            "playback_clear_buffer" => {
                self.linear.clear();
                each(FromAi::Clear);
            }
            "client_tool_invocation" => match (incoming.invocation_id, incoming.tool_name) {
                (Some(id), Some(name)) => self.on_call(id, name, &incoming.parameters, each),
                _ => each(FromAi::Ignored("client_tool_invocation without details")),
            },
            // the others are for people who watch, and new ones may come
            _ => {}
        }
    }

    fn on_call(
        &self,
        id: String,
        name: String,
        parameters: &Value,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        let offered = self.offered.iter().any(|tool| *tool == name);
        each(model::called(&self.info, offered, id, name, parameters));
    }
}

/// Returns the result of one of our tools; `None` if it is not final.
fn result_of(reply: &OrderReply) -> Option<Value> {
    let output = model::output(reply)?;
    let reaction = match (reply.command, &reply.reply) {
        // nothing is left to say
        ("hangup" | "transfer", Reply::Done) => "listens",
        (_, Reply::Done) => "speaks-once",
        _ => "speaks",
    };
    Some(json!({
        "type": "client_tool_result",
        "invocationId": reply.id,
        "result": output.to_string(),
        "agentReaction": reaction,
    }))
}

impl Codec for Agent {
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
                out.extend_from_slice(self.linear.encode(samples, &mut [0; MAX_FRAME_BYTES]));
                self.keys.on_frame();
                return Form::Binary;
            }
            ToAi::Digit(key) => {
                self.keys.press(*key);
                None
            }
            ToAi::Reply(reply) => result_of(reply),
            ToAi::ToolResult(tool) => {
                let mut result = json!({"type": "client_tool_result", "invocationId": tool.id});
                match tool.failed {
                    true => {
                        result["errorType"] = "implementation-error".into();
                        result["errorMessage"] = tool.output.as_str().into();
                    }
                    false => result["result"] = tool.output.as_str().into(),
                }
                Some(result)
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
        match message {
            Received::Binary(data) => {
                audio.clear();
                audio.extend_from_slice(data);
                self.linear.decode(audio);
                each(FromAi::Audio(audio));
            }
            Received::Text(text) => match serde_json::from_str(text) {
                Ok(incoming) => self.on_message(incoming, each),
                Err(_) => each(FromAi::Ignored("not a JSON message in Ultravox' format")),
            },
        }
    }

    fn keep_alive(&self) -> Option<&'static str> {
        Some(r#"{"type":"ping","timestamp":0.0}"#)
    }

    fn next_message(&mut self) -> Option<Message> {
        if let Some(keys) = self.keys.take() {
            self.say(&json!({"type": "user_text_message", "text": keys, "urgency": "immediate"}));
        }
        self.further.pop_front()
    }
}

#[cfg(test)]
mod tests;

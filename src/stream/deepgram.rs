//! Deepgram Voice Agent (v1): the agent is configured by a message of the client, `Settings`, and
//! audio is binary in both directions, mu-law as it is.
//! Source: <https://developers.deepgram.com/reference/voice-agent/voice-agent>.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::command::{Order, When};
use crate::stream::dialect::{Codec, Form, Session};
use crate::stream::keys::Keys;
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi, ToolCall, model};

pub const URL: &str = "wss://agent.deepgram.com/v1/agent/converse";
/// Members of `[ai.session]` that belong beside `agent`; all others belong to it.
const BESIDE_AGENT: [&str; 4] = ["tags", "experimental", "flags", "mip_opt_out"];
/// Orders that wait for the end of what the agent is saying, and cancelled calls of tools that are
/// remembered.
const MAX_KEPT: usize = 32;
/// An order waits at most this long, in frames of 20 ms (10 s).
const MAX_WAIT: u32 = 500;

/// Returns the headers for a handshake.
pub fn handshake_headers(auth_token: Option<&str>) -> Vec<(&'static str, String)> {
    auth_token.map(|key| ("Authorization", format!("Token {key}"))).into_iter().collect()
}

/// Writes and reads the messages of one stream.
#[derive(Debug)]
pub struct Agent {
    info: StreamInfo,
    session: Session,
    /// Our tools that the agent may call.
    offered: Vec<model::Tool>,
    progress: Progress,
    /// Messages to be sent.
    further: VecDeque<Message>,
    keys: Keys,
    /// True while the agent speaks: the end of its audio has not arrived.
    speaking: bool,
    /// Orders for the time after that, and how many frames ago the first one arrived.
    held: Vec<Order>,
    held_frames: u32,
    /// Calls of tools that the agent is not waiting for any more.
    cancelled: VecDeque<String>,
    /// Parameters that became known after `Settings`.
    late: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Waiting for `Welcome`, before which nothing may be sent.
    Connected,
    /// Waiting for `SettingsApplied`.
    Configured,
    Ready,
}

/// A message from Deepgram. Members of other messages are left out.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    description: Option<Cow<'a, str>>,
    #[serde(default)]
    functions: Vec<Function>,
}

#[derive(Deserialize)]
struct Function {
    id: String,
    name: String,
    #[serde(default)]
    arguments: String,
    #[serde(default)]
    client_side: bool,
}

impl Agent {
    pub fn new(info: StreamInfo, session: &Session) -> Agent {
        Agent {
            offered: model::tools(session.tools.as_deref(), &info.targets),
            info,
            session: session.clone(),
            progress: Progress::Connected,
            further: VecDeque::new(),
            keys: Keys::default(),
            speaking: false,
            held: Vec::new(),
            held_frames: 0,
            cancelled: VecDeque::new(),
            late: Vec::new(),
        }
    }

    /// Returns the message that configures the agent.
    fn settings(&self) -> Value {
        let session = self.session.settings.as_ref().map(|all| model::filled(all, &self.info));
        let mut agent = match session {
            Some(Value::Object(agent)) => agent,
            _ => Map::new(),
        };
        let format = json!({"encoding": "mulaw", "sample_rate": 8000});
        let mut output = format.clone();
        output["container"] = "none".into();
        let mut settings = Map::new();
        settings.insert("type".into(), "Settings".into());
        for name in BESIDE_AGENT {
            settings.extend(agent.remove(name).map(|value| (name.to_owned(), value)));
        }
        settings.insert("audio".into(), json!({"input": format, "output": output}));
        let agent = match agent.remove("agent") {
            // a configuration that is kept at Deepgram, which cannot be changed here
            Some(id) => id,
            None => self.agent(agent),
        };
        settings.insert("agent".into(), agent);
        Value::Object(settings)
    }

    /// Completes the configuration of the agent.
    fn agent(&self, mut agent: Map<String, Value>) -> Value {
        let provider = |kind: &str, name: &str| json!({"type": kind, "model": name});
        let part = |provider: Value| json!({"provider": provider});
        let insert = |all: &mut Map<String, Value>, name: &str, value: Value| {
            all.entry(name).or_insert(value);
        };
        insert(&mut agent, "listen", part(provider("deepgram", "nova-3")));
        insert(&mut agent, "speak", part(provider("deepgram", "aura-2-thalia-en")));
        match agent.entry("think").or_insert_with(|| json!({})) {
            Value::Object(think) => {
                insert(think, "provider", provider("open_ai", "gpt-4o-mini"));
                self.add_functions(think);
            }
            // the first one that works is used
            Value::Array(all) => {
                let all = all.iter_mut().filter_map(Value::as_object_mut);
                all.for_each(|think| self.add_functions(think));
            }
            _ => {}
        }
        if let Some(greeting) = &self.session.greeting {
            let greeting = model::filled_text(greeting, &self.info);
            agent.insert("greeting".into(), greeting.into());
        }
        Value::Object(agent)
    }

    /// Adds our tools to a model's, apart from those whose names it has already.
    fn add_functions(&self, think: &mut Map<String, Value>) {
        let functions = think.entry("functions").or_insert_with(|| json!([]));
        if let Value::Array(functions) = functions {
            for tool in &self.offered {
                if !functions.iter().any(|other| other["name"] == tool.name) {
                    functions.push(json!({
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.parameters,
                        // not before the caller has certainly finished speaking
                        "defer_until_eot": true,
                    }));
                }
            }
        }
        if functions.as_array().is_some_and(Vec::is_empty) {
            think.remove("functions");
        }
    }

    /// Sends parameters that became known after `Settings`, if its texts have placeholders for
    /// them.
    fn explain(&mut self, parameters: &[(String, String)]) {
        let settings = self.session.settings.as_ref().map(Value::to_string).unwrap_or_default();
        let known = |(name, value): &(String, String)| {
            let placeholder = format!("{{{name}}}");
            settings.contains(&placeholder).then(|| format!("{placeholder} is {value}."))
        };
        let lines: Vec<String> = parameters.iter().filter_map(known).collect();
        if !lines.is_empty() {
            self.say(&json!({"type": "UpdatePrompt", "prompt": lines.join("\n")}));
        }
    }

    fn say(&mut self, message: &Value) {
        self.further.push_back(Message::Text(message.to_string()));
    }

    fn on_message(&mut self, incoming: Incoming<'_>, each: &mut dyn FnMut(FromAi<'_>)) {
        match &*incoming.kind {
            "Welcome" if self.progress == Progress::Connected => {
                self.progress = Progress::Configured;
                let settings = self.settings();
                self.say(&settings);
            }
            "SettingsApplied" => self.progress = Progress::Ready,
            "ConversationText" if incoming.role.as_deref() == Some("assistant") => {
                self.speaking = true;
                self.keys.accepted();
            }
            "AgentStartedSpeaking" => self.speaking = true,
            "AgentAudioDone" => self.speaking = false,
            "UserStartedSpeaking" => {
                self.speaking = false;
                each(FromAi::Clear);
            }
            "FunctionCallRequest" => {
                let ours = incoming.functions.into_iter().filter(|call| call.client_side);
                ours.for_each(|call| self.on_call(call, each));
            }
            "FunctionCallCancelled" => {
                incoming.functions.into_iter().for_each(|call| self.cancel(call.id));
            }
            "InjectionRefused" => self.keys.refused(),
            "Error" => each(FromAi::Failed(failure(&incoming))),
            "Warning" => each(FromAi::Ignored(warning(incoming.code.as_deref()))),
            // the others are for people who watch, and new ones may come
            _ => {}
        }
        // what is cancelled by the caller's speech is reported behind it
        let more_follows = ["UserStartedSpeaking", "FunctionCallCancelled"];
        if !more_follows.contains(&&*incoming.kind) {
            self.release(each);
        }
    }

    /// Handles the call of a tool. What ends the agent's part in the call waits until the agent has
    /// sent what it is saying.
    fn on_call(&mut self, call: Function, each: &mut dyn FnMut(FromAi<'_>)) {
        let Function { id, name, arguments, .. } = call;
        let offered = self.offered.iter().any(|tool| tool.name == name);
        let order = offered.then(|| model::order(&self.info, &id, &name, &arguments)).flatten();
        match order {
            Some(Ok(order))
                if order.when == When::AfterAudio
                    && self.speaking
                    && self.held.len() < MAX_KEPT =>
            {
                if self.held.is_empty() {
                    self.held_frames = 0;
                }
                self.held.push(order);
            }
            Some(order) => each(FromAi::Order(Box::new(order))),
            None => each(FromAi::Tool(Box::new(ToolCall { id, name, arguments }))),
        }
    }

    /// Passes on the orders that have waited for the end of the agent's audio.
    fn release(&mut self, each: &mut dyn FnMut(FromAi<'_>)) {
        if self.speaking && self.held_frames < MAX_WAIT {
            return;
        }
        for order in self.held.drain(..) {
            each(FromAi::Order(Box::new(Ok(order))));
        }
    }

    /// Notes that the result of a call is not expected any more. An order that still waits is not
    /// carried out.
    fn cancel(&mut self, id: String) {
        let before = self.held.len();
        self.held.retain(|order| order.id != id);
        if self.held.len() == before {
            if self.cancelled.len() >= MAX_KEPT {
                self.cancelled.pop_front();
            }
            self.cancelled.push_back(id);
        }
    }

    /// Appends the result of a tool.
    fn result(&mut self, id: &str, name: &str, content: &str, out: &mut BytesMut) {
        if let Some(at) = self.cancelled.iter().position(|other| other == id) {
            self.cancelled.remove(at);
            return;
        }
        let result =
            json!({"type": "FunctionCallResponse", "id": id, "name": name, "content": content});
        out.extend_from_slice(result.to_string().as_bytes());
    }
}

impl Codec for Agent {
    fn is_ready(&self) -> bool {
        self.progress == Progress::Ready
    }

    fn opening(&mut self) -> Vec<Message> {
        let kept = self.session.settings.as_ref().is_some_and(|all| all.get("agent").is_some());
        if let Some(greeting) = self.session.greeting.as_ref().filter(|_| kept) {
            let greeting = model::filled_text(greeting, &self.info);
            self.say(&json!({"type": "InjectAgentMessage", "message": greeting}));
        }
        let late = std::mem::take(&mut self.late);
        self.explain(&late);
        self.further.drain(..).collect()
    }

    fn add_parameters(&mut self, parameters: Vec<(String, String)>) {
        match self.progress {
            Progress::Connected => self.info.parameters.extend(parameters),
            Progress::Configured | Progress::Ready => self.late.extend(parameters),
        }
    }

    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form {
        match message {
            ToAi::Audio { samples, .. } => {
                out.extend_from_slice(samples);
                self.keys.on_frame();
                self.held_frames = self.held_frames.saturating_add(1);
                return Form::Binary;
            }
            ToAi::Digit(key) => self.keys.press(*key),
            ToAi::Reply(reply) => {
                if let Some(output) = model::output(reply) {
                    let name = model::tool_name(reply.command);
                    self.result(&reply.id, name, &output.to_string(), out);
                }
            }
            ToAi::ToolResult(result) => self.result(&result.id, &result.name, &result.output, out),
            ToAi::Parameters(parameters) => self.explain(parameters),
            // the caller hears what remains, and the end of the call is the end of the connection
            ToAi::Mark { .. }
            | ToAi::Cleared { .. }
            | ToAi::Heard(_)
            | ToAi::State(_)
            | ToAi::Stop => {}
        }
        Form::Text
    }

    fn decode(
        &mut self,
        message: Received<'_>,
        _audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        match message {
            Received::Binary(audio) => {
                self.speaking = true;
                each(FromAi::Audio(audio));
                self.release(each);
            }
            Received::Text(text) => match serde_json::from_str(text) {
                Ok(incoming) => self.on_message(incoming, each),
                Err(_) => each(FromAi::Ignored("not a JSON message in Deepgram's format")),
            },
        }
    }

    fn keep_alive(&self) -> Option<&'static str> {
        Some(r#"{"type":"KeepAlive"}"#)
    }

    fn next_message(&mut self) -> Option<Message> {
        if let Some(keys) = self.keys.take() {
            self.say(&json!({"type": "InjectUserMessage", "content": keys}));
        }
        self.further.pop_front()
    }
}

/// Returns why the agent has failed, and what to do.
fn failure(error: &Incoming<'_>) -> String {
    let code = error.code.as_deref().unwrap_or("no code");
    let cure = match code {
        "INVALID_SETTINGS" | "UNPARSABLE_CLIENT_MESSAGE" => "; check [ai.session]",
        _ => "",
    };
    let why = model::said(error.description.as_deref().unwrap_or_default());
    format!("Deepgram reports {}: {why}{cure}", model::said(code))
}

/// Returns the words for a warning.
fn warning(code: Option<&str>) -> &'static str {
    match code {
        Some("PROMPT_TOO_LONG") => "Deepgram warns that the prompt is too long and was cut",
        Some("THINK_REQUEST_FAILED") => "Deepgram warns that a request to the model failed",
        Some("SPEAK_REQUEST_FAILED") => "Deepgram warns that a request for speech failed",
        Some("FUNCTION_CALL_FAILED") => "Deepgram warns that it could not call a function",
        _ => "Deepgram sent a warning",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Failure, Reply};
    use crate::stream::testing::{encoded, in_words, sent};
    use crate::stream::{OrderReply, ToolResult};

    fn agent(session: Value, greeting: Option<&str>) -> Agent {
        let info = StreamInfo {
            parameters: vec![("from_number".into(), "+49".into())],
            targets: vec!["sales".into()],
            ..StreamInfo::default()
        };
        let greeting = greeting.map(str::to_owned);
        Agent::new(info, &Session { settings: Some(session), greeting, ..Session::default() })
    }

    /// An agent that is ready.
    fn ready() -> Agent {
        let mut agent = agent(json!({}), None);
        decode(&mut agent, &json!({"type": "Welcome", "request_id": "r"}));
        assert!(!agent.is_ready());
        decode(&mut agent, &json!({"type": "SettingsApplied"}));
        assert!(agent.is_ready());
        sent(&mut agent);
        agent
    }

    /// Returns the meaning of a message in a few words.
    fn decode(agent: &mut Agent, message: &Value) -> Vec<String> {
        let text = message.to_string();
        decode_raw(agent, Received::Text(&text))
    }

    fn decode_raw(agent: &mut Agent, message: Received<'_>) -> Vec<String> {
        in_words(agent, message)
    }

    fn call(id: &str, name: &str, arguments: &str) -> Value {
        let function = json!({"id": id, "name": name, "arguments": arguments, "client_side": true});
        json!({"type": "FunctionCallRequest", "functions": [function]})
    }

    #[test]
    fn settings_are_sent_after_the_welcome_and_complete_the_session() {
        let mut agent = agent(
            json!({
                "mip_opt_out": true,
                "think": {"prompt": "Caller: {from_number}, lead {lead_id}."},
                "language": "en",
            }),
            Some("Hello {from_number}"),
        );
        assert_eq!((agent.hello(), sent(&mut agent)), (vec![], vec![]));
        agent.add_parameters(vec![("lead_id".into(), "7".into())]);
        decode(&mut agent, &json!({"type": "Welcome", "request_id": "r"}));
        let settings = sent(&mut agent).remove(0);
        assert_eq!(settings["mip_opt_out"], true);
        assert_eq!(settings["audio"]["input"], json!({"encoding": "mulaw", "sample_rate": 8000}));
        assert_eq!(
            settings["audio"]["output"],
            json!({"encoding": "mulaw", "sample_rate": 8000, "container": "none"})
        );
        let agent = &settings["agent"];
        assert_eq!((&agent["greeting"], &agent["language"]), (&json!("Hello +49"), &json!("en")));
        assert_eq!(agent["think"]["prompt"], "Caller: +49, lead 7.");
        assert_eq!(agent["think"]["provider"]["type"], "open_ai");
        let names: Vec<&str> = agent["think"]["functions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|function| function["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, model::TOOLS);
    }

    #[test]
    fn the_functions_of_the_session_stay() {
        let function = json!({"name": "hang_up", "endpoint": {"url": "https://example.com"}});
        let think = json!({"provider": {"type": "google"}, "functions": [function]});
        let settings = agent(json!({"think": [think.clone(), {}]}), None).settings();
        let thinks = &settings["agent"]["think"];
        assert_eq!(
            (&thinks[0]["provider"], &thinks[1]["provider"]),
            (&think["provider"], &Value::Null)
        );
        let functions = thinks[0]["functions"].as_array().unwrap();
        assert_eq!((functions.len(), &functions[0]), (4, &function));

        let session = Session { tools: Some(vec![]), ..Session::default() };
        let settings = Agent::new(StreamInfo::default(), &session).settings();
        assert_eq!(settings["agent"]["think"].get("functions"), None);

        // a configuration at Deepgram cannot be changed, so the greeting follows
        let mut kept = agent(json!({"agent": "a1", "tags": ["x"]}), Some("Hello"));
        let settings = kept.settings();
        assert_eq!((&settings["agent"], &settings["tags"]), (&json!("a1"), &json!(["x"])));
        let greeting = r#"{"message":"Hello","type":"InjectAgentMessage"}"#;
        assert_eq!(kept.opening(), [Message::Text(greeting.into())]);
    }

    #[test]
    fn messages_are_decoded() {
        let table = [
            (json!({"type": "UserStartedSpeaking"}), "clear"),
            (json!({"type": "AgentThinking", "content": "x"}), ""),
            (json!({"type": "History", "function_calls": [{"id": 7}]}), ""),
            (json!({"type": "Warning", "code": "PROMPT_TOO_LONG", "description": "d"}), {
                "Deepgram warns that the prompt is too long and was cut"
            }),
            (json!({"type": "Error", "code": "INVALID_SETTINGS", "description": "no\nmodel"}), {
                "Deepgram reports INVALID_SETTINGS: no model; check [ai.session]"
            }),
            (json!({"type": "Error"}), "Deepgram reports no code: "),
            (json!({"type": 5}), "not a JSON message in Deepgram's format"),
            (json!([]), "not a JSON message in Deepgram's format"),
            (call("f1", "look_up", "{\"a\":1}"), "tool look_up {\"a\":1}"),
            (call("f2", "hang_up", ""), "order f2"),
            (call("f3", "transfer_call", "{}"), "unusable f3"),
        ];
        for (message, expected) in table {
            let said = decode(&mut ready(), &message);
            assert_eq!(said.join(" "), expected, "{message}");
        }
        let mut server_side = call("f4", "hang_up", "");
        server_side["functions"][0]["client_side"] = false.into();
        assert_eq!(decode(&mut ready(), &server_side), [""; 0]);
        assert_eq!(decode_raw(&mut ready(), Received::Binary(&[1, 2, 3])), ["audio [1, 2, 3]"]);
    }

    #[test]
    fn an_order_waits_for_the_rest_of_the_goodbye() {
        let mut agent = ready();
        let goodbye = json!({"type": "ConversationText", "role": "assistant", "content": "Bye"});
        decode(&mut agent, &goodbye);
        assert_eq!(decode(&mut agent, &call("f1", "hang_up", "")), [""; 0]);
        assert_eq!(
            decode_raw(&mut agent, Received::Binary(&[0; 160])),
            [format!("audio {:?}", [0; 160])]
        );
        // a disposition does not wait
        let sale = call("f2", "set_disposition", "{\"status\":\"SALE\"}");
        assert_eq!(decode(&mut agent, &sale), ["order f2"]);
        assert_eq!(decode(&mut agent, &json!({"type": "AgentAudioDone"})), ["order f1"]);

        // the caller speaks, and the model changes its mind
        decode(&mut agent, &goodbye);
        decode(&mut agent, &call("f3", "hang_up", ""));
        assert_eq!(decode(&mut agent, &json!({"type": "UserStartedSpeaking"})), ["clear"]);
        let functions = json!([{"id": "f3", "name": "hang_up"}]);
        let cancelled = json!({"type": "FunctionCallCancelled", "functions": functions});
        assert_eq!(decode(&mut agent, &cancelled), [""; 0]);
        assert_eq!(decode(&mut agent, &json!({"type": "AgentThinking"})), [""; 0]);

        // a lost end of the audio holds nothing up
        decode(&mut agent, &goodbye);
        decode(&mut agent, &call("f4", "hang_up", ""));
        for _ in 0..MAX_WAIT {
            assert_eq!(decode(&mut agent, &json!({"type": "AgentThinking"})), [""; 0]);
            encoded(&mut agent, &ToAi::Audio { samples: [0xff; 160], t_ms: 0 });
        }
        assert_eq!(decode(&mut agent, &json!({"type": "AgentThinking"})), ["order f4"]);
    }

    #[test]
    fn results_are_sent_unless_the_call_was_cancelled() {
        let mut agent = ready();
        let reply = |id: &str| {
            let reply = Reply::Failed(Failure::Busy);
            ToAi::Reply(Box::new(OrderReply {
                id: id.into(),
                command: "transfer",
                reply,
                why: None,
            }))
        };
        let sent: Value = serde_json::from_str(&encoded(&mut agent, &reply("f1"))).unwrap();
        let kind = (&sent["type"], &sent["id"], &sent["name"]);
        assert_eq!(kind, (&json!("FunctionCallResponse"), &json!("f1"), &json!("transfer_call")));
        let content: Value = serde_json::from_str(sent["content"].as_str().unwrap()).unwrap();
        assert_eq!((&content["status"], &content["reason"]), (&json!("failed"), &json!("busy")));

        let functions = json!([{"id": "f2", "name": "look_up"}]);
        decode(&mut agent, &json!({"type": "FunctionCallCancelled", "functions": functions}));
        let result = |id: &str| {
            let (id, name, output) = (id.to_owned(), "look_up".to_owned(), "42".to_owned());
            ToAi::ToolResult(Box::new(ToolResult { id, name, output, failed: false }))
        };
        assert_eq!(encoded(&mut agent, &result("f2")), "");
        assert!(encoded(&mut agent, &result("f3")).contains(r#""content":"42""#));
        for n in 0..2 * MAX_KEPT {
            let functions = json!([{"id": n.to_string(), "name": "x"}]);
            decode(&mut agent, &json!({"type": "FunctionCallCancelled", "functions": functions}));
        }
        assert_eq!(agent.cancelled.len(), MAX_KEPT);
    }

    #[test]
    fn late_parameters_are_told_where_the_session_asks_for_them() {
        let mut agent = agent(json!({"think": {"prompt": "Lead {lead_id}."}}), None);
        decode(&mut agent, &json!({"type": "Welcome", "request_id": "r"}));
        sent(&mut agent);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        agent.add_parameters(vec![pair("lead_id", "7"), pair("phone", "+49")]);
        let update = r#"{"prompt":"{lead_id} is 7.","type":"UpdatePrompt"}"#;
        assert_eq!(agent.opening(), [Message::Text(update.into())]);
        let late = ToAi::Parameters(Box::new(vec![pair("phone", "+49")]));
        assert_eq!((encoded(&mut agent, &late), sent(&mut agent)), (String::new(), vec![]));
    }

    #[test]
    fn keys_are_injected() {
        let mut agent = ready();
        "12#".chars().for_each(|key| drop(encoded(&mut agent, &ToAi::Digit(key))));
        let expected = json!({"type": "InjectUserMessage", "content": "[keys pressed: 12#]"});
        assert_eq!(sent(&mut agent), std::slice::from_ref(&expected));
        decode(&mut agent, &json!({"type": "InjectionRefused", "message": "speaking"}));
        assert_eq!(sent(&mut agent), [Value::Null; 0]);
        for _ in 0..50 {
            encoded(&mut agent, &ToAi::Audio { samples: [0xff; 160], t_ms: 0 });
        }
        assert_eq!(sent(&mut agent), [expected]);
    }
}

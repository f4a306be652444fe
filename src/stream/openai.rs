//! OpenAI's Realtime API over a WebSocket (`session.type = "realtime"`), and servers of the same
//! shape. Source: <https://platform.openai.com/docs/api-reference/realtime-client-events>.
//!
//! ```text
//! session.update ──session.updated──> ready ──caller connected──> response.create (greeting)
//!    └──error──> failed                 └── append ──> … audio deltas, tools, truncation …
//! ```
//!
//! [`session`] makes the session, [`items`] knows what the caller has heard, [`responses`] decides
//! when the model is asked to speak, [`calls`] keeps the tools that it has called.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod calls;
mod delta;
mod errors;
mod items;
mod responses;
mod session;

use std::borrow::Cow;
use std::collections::VecDeque;

use base64::Engine as _;
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::command::Reply;
use crate::stream::dialect::{Codec, Form, Session};
use crate::stream::openai::calls::{Calls, FunctionCall};
use crate::stream::openai::delta::{DELTA, Delta};
use crate::stream::openai::errors::{is_fatal, reason, shown};
use crate::stream::openai::items::{Items, Truncation};
use crate::stream::openai::responses::Responses;
use crate::stream::twilio::{BASE64, PAYLOAD_BYTES};
use crate::stream::{FromAi, Message, OrderReply, Received, StreamInfo, ToAi, ToolResult, model};

pub use session::{check, url};

/// The events that matter here.
const EVENTS: [&str; 9] = [
    DELTA,
    "session.updated",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "response.created",
    "response.output_item.done",
    "response.done",
    "conversation.item.added",
    "error",
];
/// The caller's keys are passed on after this many frames without another one (1.5 s), after `#`,
/// and if there are this many.
const KEYS_END: (u32, usize) = (75, 64);
/// Events wait for their turn; a model that makes us say more than this has lost its way.
const MAX_WAITING: usize = 500;

/// Returns the header fields of the handshake.
pub fn handshake_headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    let agent = concat!("trunkless/", env!("CARGO_PKG_VERSION")).to_owned();
    let key = key.map(|key| ("Authorization", format!("Bearer {key}")));
    [("User-Agent", agent)].into_iter().chain(key).collect()
}

/// One session with a model.
pub struct Realtime {
    info: StreamInfo,
    settings: Session,
    /// The session as it was sent last.
    sent: Value,
    /// Instructions for the first words, until they have been said.
    first: Option<String>,
    /// True once the server has accepted the session.
    ready: bool,
    /// False if the model continues to speak when the caller does.
    interrupts: bool,
    /// False if the server does not answer the caller by itself.
    creates: bool,
    items: Items,
    responses: Responses,
    calls: Calls,
    /// The keys that the caller has pressed, and the frames since the last one.
    keys: (String, u32),
    /// Events to be sent.
    out: VecDeque<Message>,
    /// Number of the last event with an id.
    last: u64,
}

impl Realtime {
    pub fn new(info: StreamInfo, settings: Session) -> Realtime {
        let user = settings.settings.as_ref();
        let vad = |name: &str| session::turn_detection(user, name) != Some(false);
        Realtime {
            interrupts: vad("interrupt_response"),
            creates: vad("create_response"),
            calls: Calls::new(user, settings.tools.as_deref(), &info.targets),
            info,
            settings,
            sent: Value::Null,
            first: None,
            ready: false,
            items: Items::default(),
            responses: Responses::default(),
            keys: (String::new(), 0),
            out: VecDeque::new(),
            last: 0,
        }
    }

    /// Numbers an event. The server repeats the id in an error about it.
    fn id(&mut self, about: &str) -> String {
        self.last += 1;
        format!("trunkless_{about}_{}", self.last)
    }

    /// Returns the event that sets the session, if it differs from the one that was sent.
    fn update(&mut self) -> Option<Message> {
        let session =
            session::session(self.settings.settings.as_ref(), &self.info, self.calls.tools());
        if session == self.sent {
            return None;
        }
        let id = self.id("session");
        let event = json!({"type": "session.update", "event_id": id, "session": session});
        self.sent = session;
        Some(Message::Text(event.to_string()))
    }

    /// Returns the event that makes the model speak.
    fn create(&mut self) -> Message {
        self.responses.asked();
        let id = self.id("response");
        let mut event = json!({"type": "response.create", "event_id": id});
        if let Some(instructions) = &self.first {
            event["response"] = json!({"instructions": instructions, "tool_choice": "none"});
        }
        Message::Text(event.to_string())
    }

    /// Returns the event that adds an item to the conversation.
    fn item(&mut self, item: Value) -> String {
        let id = self.id("item");
        json!({"type": "conversation.item.create", "event_id": id, "item": item}).to_string()
    }

    fn wait(&mut self, text: String) {
        if self.out.len() < MAX_WAITING {
            self.out.push_back(Message::Text(text));
        }
    }

    /// Adds a frame of the caller. Runs 50 times per second for each call.
    fn audio(&mut self, samples: &[u8], out: &mut BytesMut) {
        let mut payload = [0u8; PAYLOAD_BYTES];
        let encoded = BASE64.encode_slice(samples, &mut payload);
        debug_assert_eq!(encoded.ok(), Some(PAYLOAD_BYTES));
        out.extend_from_slice(br#"{"type":"input_audio_buffer.append","audio":""#);
        out.extend_from_slice(&payload);
        out.extend_from_slice(br#""}"#);
        self.responses.on_frame();
        if !self.keys.0.is_empty() {
            self.keys.1 += 1;
            if self.keys.1 >= KEYS_END.0 {
                self.pass_keys();
            }
        }
    }

    fn on_key(&mut self, key: char) {
        self.keys.0.push(key);
        self.keys.1 = 0;
        if key == '#' || self.keys.0.len() >= KEYS_END.1 {
            self.pass_keys();
        }
    }

    /// Gives the model the keys that the caller has pressed, as an utterance of the caller.
    fn pass_keys(&mut self) {
        let keys = std::mem::take(&mut self.keys.0);
        let content = json!([{"type": "input_text", "text": format!("(keys pressed: {keys})")}]);
        let item = json!({"type": "message", "role": "user", "content": content});
        let text = self.item(item);
        self.wait(text);
        self.responses.owes_answer();
    }

    /// Passes the output of a tool on. `ends`: nothing is left to say after it.
    fn output(&mut self, call_id: &str, output: &str, ends: bool, out: &mut BytesMut) {
        let item = json!({"type": "function_call_output", "call_id": call_id, "output": output});
        out.extend_from_slice(self.item(item).as_bytes());
        if !ends {
            self.responses.owes_answer();
        }
    }

    fn on_reply(&mut self, reply: &OrderReply, out: &mut BytesMut) {
        let Some(output) = model::output(reply) else { return };
        let Some(name) = self.calls.answered(&reply.id) else { return };
        let leaves = matches!(name.as_str(), "hang_up" | "transfer_call");
        self.output(&reply.id, &output.to_string(), leaves && reply.reply == Reply::Done, out);
    }

    fn on_result(&mut self, result: &ToolResult, out: &mut BytesMut) {
        if self.calls.answered(&result.id).is_some() {
            self.output(&result.id, &result.output, false, out);
        }
    }

    /// Gives the model what has become known of the call, without an answer.
    fn on_parameters(&mut self, parameters: &[(String, String)], out: &mut BytesMut) {
        let content = json!([{"type": "input_text", "text": model::known(parameters)}]);
        let item = json!({"type": "message", "role": "system", "content": content});
        out.extend_from_slice(self.item(item).as_bytes());
    }

    /// Stops the response that the caller has interrupted, before the server has noticed. `end`:
    /// the end of the audio that was queued, in bytes of the stream.
    fn interrupted(&mut self, end: u64) {
        let active = self.responses.active().map(str::to_owned);
        self.items.interrupted(active.as_deref(), end);
        if active.is_some_and(|active| !active.is_empty()) {
            self.responses.interrupted();
            let id = self.id("cancel");
            self.wait(json!({"type": "response.cancel", "event_id": id}).to_string());
        }
    }

    /// Makes the model forget what the caller has not heard.
    fn truncate(&mut self, truncations: Vec<Truncation>) {
        for Truncation { item_id, content_index, end_ms } in truncations {
            let id = self.id("truncate");
            let event = json!({
                "type": "conversation.item.truncate",
                "event_id": id,
                "item_id": item_id,
                "content_index": content_index,
                "audio_end_ms": end_ms,
            });
            self.wait(event.to_string());
        }
    }

    /// Handles any event but audio in its usual form.
    fn on_event(
        &mut self,
        kind: &str,
        text: &str,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        if !EVENTS.contains(&kind) {
            return;
        }
        let Ok(event) = serde_json::from_str::<Value>(text) else { return };
        match kind {
            DELTA => {
                let string = |name: &str| event[name].as_str().unwrap_or_default();
                let delta = Delta {
                    response_id: string("response_id"),
                    item_id: string("item_id"),
                    content_index: event["content_index"].as_u64().unwrap_or_default(),
                    payload: string("delta"),
                };
                self.on_delta(&delta, audio, each);
            }
            "session.updated" => self.on_updated(&event, each),
            "input_audio_buffer.speech_started" => {
                self.responses.caller_speaks();
                if self.interrupts {
                    self.items.clear(self.responses.active());
                    each(FromAi::Clear);
                }
            }
            "input_audio_buffer.speech_stopped" => self.responses.caller_pauses(self.creates),
            "response.created" => self.responses.created(event["response"]["id"].as_str()),
            "response.output_item.done" => {
                if let Some(call) = FunctionCall::of(&event["item"]) {
                    self.on_call(call, each);
                }
            }
            "response.done" => self.on_done(&event["response"], each),
            "conversation.item.added" => {
                let item = &event["item"];
                let typed = item["content"][0]["type"] == "input_text" && item["role"] == "user";
                if typed || item["type"] == "function_call_output" {
                    self.responses.item_added();
                }
            }
            "error" => self.on_error(&event["error"], each),
            _ => {}
        }
    }

    fn on_updated(&mut self, event: &Value, each: &mut dyn FnMut(FromAi<'_>)) {
        for side in ["input", "output"] {
            let format = event["session"]["audio"][side]["format"]["type"].as_str();
            if let Some(other) = format.filter(|format| *format != session::FORMAT) {
                let why = format!("the AI wants {side} audio as {other}, not G.711 mu-law");
                return each(FromAi::Failed(shown(&why)));
            }
        }
        self.ready = true;
    }

    /// A tool is called at once; call control waits until the response is complete, so that the
    /// caller hears all of it.
    fn on_call(&mut self, call: FunctionCall, each: &mut dyn FnMut(FromAi<'_>)) {
        match self.calls.take(call) {
            Ok(Some(tool)) => each(FromAi::Tool(Box::new(tool))),
            Ok(None) => {}
            Err(why) => each(FromAi::Ignored(why)),
        }
    }

    fn on_done(&mut self, response: &Value, each: &mut dyn FnMut(FromAi<'_>)) {
        let (id, status) = (response["id"].as_str(), response["status"].as_str());
        self.responses.done(id);
        let truncations = self.items.response_done();
        self.truncate(truncations);
        if status == Some("completed") {
            let output = response["output"].as_array().into_iter().flatten();
            output.filter_map(FunctionCall::of).for_each(|call| self.on_call(call, each));
        }
        let interrupted = status == Some("cancelled");
        for call in self.calls.take_held() {
            let order = model::order(&self.info, &call.id, &call.name, &call.arguments);
            match order.filter(|_| !interrupted) {
                Some(order) => each(FromAi::Order(Box::new(order))),
                None => self.refuse_interrupted(&call.id),
            }
        }
        match status {
            Some("failed") => self.on_failed(&response["status_details"]["error"], each),
            _ => {
                self.first = None;
                self.responses.succeeded();
            }
        }
    }

    /// The caller spoke before the announcement of an order was complete.
    fn refuse_interrupted(&mut self, id: &str) {
        let _ = self.calls.answered(id);
        let output = json!({
            "status": "failed",
            "reason": "interrupted",
            "detail": "the caller spoke before you were done; call it again if it is still right",
        });
        let output = output.to_string();
        let item = json!({"type": "function_call_output", "call_id": id, "output": output});
        let text = self.item(item);
        self.wait(text);
        self.responses.owes_answer();
    }

    /// A response failed. It is tried again once, because the caller waits for it.
    fn on_failed(&mut self, error: &Value, each: &mut dyn FnMut(FromAi<'_>)) {
        let why = reason(error);
        if is_fatal(error) || !self.responses.failed() {
            return each(FromAi::Failed(format!("the model cannot answer: {why}")));
        }
        each(FromAi::Warning(format!("the model could not answer, and is asked again: {why}")));
    }

    fn on_error(&mut self, error: &Value, each: &mut dyn FnMut(FromAi<'_>)) {
        let about = error["event_id"].as_str().unwrap_or_default();
        let is_about = |what: &str| {
            about.strip_prefix("trunkless_").is_some_and(|about| about.starts_with(what))
        };
        let code = error["code"].as_str().unwrap_or_default();
        if code == "session_expired" {
            return each(FromAi::SessionEnded(reason(error)));
        }
        if !self.ready {
            return each(FromAi::Failed(format!("the AI refused the session: {}", reason(error))));
        }
        if is_fatal(error) {
            return each(FromAi::Failed(reason(error)));
        }
        match code {
            "conversation_already_has_active_response" => self.responses.refused(),
            // harmless races: it had ended, or was shorter
            "response_cancel_not_active" => {}
            _ if is_about("truncate") => {}
            _ => {
                if is_about("response") {
                    self.responses.gave_up();
                }
                if is_about("item") {
                    self.responses.item_added();
                }
                each(FromAi::Warning(reason(error)));
            }
        }
    }

    fn on_delta(
        &mut self,
        delta: &Delta<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) {
        audio.clear();
        if BASE64.decode_vec(delta.payload, audio).is_err() {
            return each(FromAi::Ignored("delta is not valid base64"));
        }
        self.responses.speaks(delta.response_id);
        if self.items.add(delta.response_id, delta.item_id, delta.content_index, audio.len()) {
            each(FromAi::Audio(audio));
        }
    }
}

impl Codec for Realtime {
    fn hello(&mut self) -> Vec<Message> {
        self.update().into_iter().collect()
    }

    fn is_ready(&self) -> bool {
        self.ready
    }

    /// Sets the session again if more has become known of the call, and makes the model speak.
    fn opening(&mut self) -> Vec<Message> {
        let update = self.update();
        let Session { settings, greeting, .. } = &self.settings;
        self.first = session::first_words(settings.as_ref(), greeting.as_deref(), &self.info);
        let first = self.first.is_some().then(|| self.create());
        update.into_iter().chain(first).collect()
    }

    fn add_parameters(&mut self, parameters: Vec<(String, String)>) {
        self.info.parameters.extend(parameters);
    }

    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form {
        match message {
            ToAi::Audio { samples, .. } => self.audio(samples, out),
            ToAi::Digit(key) => self.on_key(*key),
            ToAi::Cleared { discarded, at, by_caller, .. } => {
                let discarded = (discarded.as_micros() / 125) as u64;
                if *by_caller {
                    self.interrupted(at + discarded);
                }
                let truncations = self.items.cleared(*at, discarded);
                self.truncate(truncations);
            }
            ToAi::Reply(reply) => self.on_reply(reply, out),
            ToAi::ToolResult(result) => self.on_result(result, out),
            ToAi::Parameters(parameters) => self.on_parameters(parameters, out),
            // the API has no marks, the caller's state is in the replies, and closing ends it
            ToAi::Mark { .. } | ToAi::Heard(_) | ToAi::State(_) | ToAi::Stop => {}
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
        if let Some(delta) = Delta::read(text) {
            return self.on_delta(&delta, audio, each);
        }
        match serde_json::from_str::<Kind<'_>>(text) {
            Ok(Kind { kind }) => self.on_event(&kind, text, audio, each),
            Err(_) => each(FromAi::Ignored("not an event of the Realtime API")),
        }
    }

    fn hangs_up_by_closing(&self) -> bool {
        false
    }

    fn next_message(&mut self) -> Option<Message> {
        if let Some(message) = self.out.pop_front() {
            return Some(message);
        }
        self.responses.wants_answer(self.calls.are_answered()).then(|| self.create())
    }
}

/// The type of an event.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

#[cfg(test)]
mod tests;

//! A Realtime API server as strict as OpenAI's own: it checks every event of the client, keeps the
//! conversation, and answers as the API does. What the model says is up to the test. With
//! `REALTIME_EVENTS=FILE`, all events are appended to a file for `tests/models/realtime_events.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::call::CALLER;
use crate::log::Log;
use crate::stream::agent_frames;
use crate::strict::{field, linger_zero, read_head, refusing, switching};
use trunkless::peer::pattern;

pub const KEY: &str = "sk-test-0123456789abcdef";
/// Members that each event must have, beside its type and id.
const EVENTS: [(&str, &[&str]); 5] = [
    ("session.update", &["session"]),
    ("input_audio_buffer.append", &["audio"]),
    ("conversation.item.create", &["item"]),
    ("conversation.item.truncate", &["audio_end_ms", "content_index", "item_id"]),
    ("response.create", &[]),
];

/// A message that was received.
#[derive(Debug, Clone)]
pub enum Got {
    Event(Value),
    /// A close frame with its code, if it has one.
    Closed(Option<u16>),
    End,
    Wrong(String),
}

#[derive(Default)]
struct Conversation {
    ready: bool,
    ids: BTreeSet<String>,
    /// The response that is being given, and the number of all.
    active: Option<String>,
    responses: u32,
    /// Bytes of audio sent, by item.
    audio: BTreeMap<String, u64>,
    truncated: BTreeSet<String>,
    /// Calls of tools without an output.
    calls: BTreeSet<String>,
}

pub struct Server {
    pub address: SocketAddr,
    listener: TcpListener,
}

impl Server {
    pub async fn start(ip: IpAddr) -> Server {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        Server { address: listener.local_addr().unwrap(), listener }
    }

    async fn handshake(&self) -> (TcpStream, String) {
        let accepted = timeout(Duration::from_secs(10), self.listener.accept()).await;
        let (mut tcp, _) = accepted.expect("the bridge dials the AI").unwrap();
        tcp.set_nodelay(true).unwrap();
        let head = read_head(&mut tcp).await.expect("a request");
        assert!(head.starts_with("GET /v1/realtime?model=test-model HTTP/1.1\r\n"), "{head}");
        assert_eq!(field(&head, "Authorization"), Some(&*format!("Bearer {KEY}")));
        assert_eq!(field(&head, "OpenAI-Beta"), None);
        (tcp, head)
    }

    /// Accepts the next session.
    pub async fn session(&self) -> Session {
        self.open(None).await
    }

    /// Answers the next session's settings with this error.
    pub async fn refuse_session(&self, error: Value) -> Session {
        self.open(Some(error)).await
    }

    /// Refuses the next handshake.
    pub async fn refuse(&self, status: &str) {
        let (mut tcp, _) = self.handshake().await;
        tcp.write_all(refusing(status).as_bytes()).await.unwrap();
    }

    async fn open(&self, refusal: Option<Value>) -> Session {
        let (mut tcp, head) = self.handshake().await;
        tcp.write_all(switching(&head).as_bytes()).await.unwrap();
        let raw = tcp.into_std().unwrap();
        let other = TcpStream::from_std(raw.try_clone().unwrap()).unwrap();
        let socket = WebSocketStream::from_raw_socket(other, Role::Server, None).await;
        let (writer, messages) = socket.split();
        let session = Session {
            got: Arc::new(Log::new()),
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            state: Arc::default(),
            raw,
        };
        let created = json!({"type": "realtime"});
        session.send(json!({"type": "session.created", "session": created})).await;
        tokio::spawn(session.handle().serve(messages, refusal));
        session
    }
}

type Writer = Arc<tokio::sync::Mutex<SplitSink<WebSocketStream<TcpStream>, Message>>>;

/// One session.
pub struct Session {
    pub got: Arc<Log<Got>>,
    writer: Writer,
    state: Arc<Mutex<Conversation>>,
    raw: std::net::TcpStream,
}

impl Drop for Session {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}

impl Session {
    fn handle(&self) -> Handle {
        Handle { got: self.got.clone(), writer: self.writer.clone(), state: self.state.clone() }
    }

    /// Panics if anything received is not what the API accepts.
    pub fn check(&self) {
        let wrong = self.got.look(|got| {
            got.iter().find_map(|got| match got {
                Got::Wrong(why) => Some(why.clone()),
                _ => None,
            })
        });
        assert_eq!(wrong, None, "not what the API accepts");
    }

    pub async fn send(&self, event: Value) {
        self.handle().send(event).await;
    }

    /// Waits for an event that satisfies `good`.
    pub async fn until(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let found = self.got.wait(what, |got| {
            got.iter().find_map(|got| match got {
                Got::Event(event) if good(event) => Some(event.clone()),
                Got::Wrong(why) => panic!("{why}"),
                _ => None,
            })
        });
        found.await
    }

    /// All events of a type so far.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        self.check();
        self.got.look(|got| {
            let events = got.iter().filter_map(|got| match got {
                Got::Event(event) if event["type"] == kind => Some(event.clone()),
                _ => None,
            });
            events.collect()
        })
    }

    /// Waits for this many events of a type.
    pub async fn count(&self, kind: &str, count: usize) -> Vec<Value> {
        let what = format!("{count} of {kind}");
        self.got
            .wait(&what, |got| {
                let is = |got: &&Got| matches!(got, Got::Event(event) if event["type"] == kind);
                (got.iter().filter(is).count() >= count).then_some(())
            })
            .await;
        self.all(kind)
    }

    /// The numbers of the caller's frames so far; silence is left out.
    pub fn heard(&self) -> Vec<u32> {
        let frames = self.all("input_audio_buffer.append").into_iter().filter_map(|event| {
            let audio = BASE64.decode(event["audio"].as_str().unwrap()).unwrap();
            if audio.iter().all(|byte| *byte == 0xff) {
                return None;
            }
            let (call, index) = pattern::read(&audio).expect("a frame of the caller");
            assert_eq!(call, CALLER);
            Some(index)
        });
        frames.collect()
    }

    /// Waits for the output of a tool.
    pub async fn output(&self, call_id: &str) -> Value {
        let is = |event: &Value| event["item"]["call_id"] == call_id;
        let event = self.until(&format!("the output of {call_id}"), is).await;
        event["item"]["output"].clone()
    }

    /// The server begins a response by itself.
    pub async fn begin(&self) {
        self.handle().begin().await;
    }

    /// The model says bytes `bytes` of its numbered audio in this item.
    pub async fn say(&self, item: &str, bytes: std::ops::Range<usize>) {
        let response = {
            let mut state = self.state.lock().unwrap();
            *state.audio.entry(item.to_owned()).or_default() += bytes.len() as u64;
            state.active.clone().expect("a response")
        };
        let frames = bytes.start as u32 / 160..bytes.end.div_ceil(160) as u32;
        let first = frames.start as usize * 160;
        let audio = &agent_frames(frames)[bytes.start - first..bytes.end - first];
        self.send(json!({
            "type": "response.output_audio.delta", "response_id": response, "item_id": item,
            "output_index": 0, "content_index": 0, "delta": BASE64.encode(audio),
        }))
        .await;
    }

    /// The model calls a tool.
    pub async fn call(&self, id: &str, name: &str, arguments: Value) {
        let response = {
            let mut state = self.state.lock().unwrap();
            state.calls.insert(id.to_owned());
            state.active.clone().expect("a response")
        };
        let arguments = arguments.to_string();
        self.send(json!({
            "type": "response.function_call_arguments.done", "response_id": response,
            "item_id": format!("item_{id}"), "output_index": 1, "call_id": id, "name": name,
            "arguments": arguments,
        }))
        .await;
        self.send(json!({
            "type": "response.output_item.done", "response_id": response, "output_index": 1,
            "item": {
                "id": format!("item_{id}"), "type": "function_call", "status": "completed",
                "call_id": id, "name": name, "arguments": arguments,
            },
        }))
        .await;
    }

    /// The response is complete.
    pub async fn done(&self, status: &str) {
        let id = self.state.lock().unwrap().active.take().expect("a response");
        self.send(json!({"type": "response.done", "response": {
            "id": id, "object": "realtime.response", "status": status, "output": []
        }}))
        .await;
    }

    /// The caller begins to speak. The server interrupts the response that it is giving.
    pub async fn speech_started(&self) -> Instant {
        let at = Instant::now();
        self.send(json!({
            "type": "input_audio_buffer.speech_started", "audio_start_ms": 0, "item_id": "item_user"
        }))
        .await;
        if self.state.lock().unwrap().active.is_some() {
            self.done("cancelled").await;
        }
        at
    }

    pub async fn speech_stopped(&self) {
        self.send(json!({
            "type": "input_audio_buffer.speech_stopped", "audio_end_ms": 0, "item_id": "item_user"
        }))
        .await;
    }

    pub async fn error(&self, code: &str, message: &str) {
        self.send(json!({"type": "error", "error": {
            "type": "invalid_request_error", "code": code, "message": message, "event_id": null
        }}))
        .await;
    }

    pub async fn close(&self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.writer.lock().await.send(Message::Close(Some(frame))).await.unwrap();
    }

    pub fn reset(&self) {
        linger_zero(&self.raw);
        let _ = self.raw.shutdown(std::net::Shutdown::Both);
    }

    /// Waits for the bridge's regular close.
    pub async fn closed(&self) {
        let closed = |got: &mut Vec<Got>| {
            got.iter().find_map(|got| match got {
                Got::Closed(code) => Some(*code),
                Got::Wrong(why) => panic!("{why}"),
                _ => None,
            })
        };
        assert_eq!(self.got.wait("the close frame", closed).await, Some(1000));
    }
}

/// The server's end of a session.
#[derive(Clone)]
struct Handle {
    got: Arc<Log<Got>>,
    writer: Writer,
    state: Arc<Mutex<Conversation>>,
}

impl Handle {
    /// Sends an event, as the API writes it: the type first.
    async fn send(&self, mut event: Value) {
        let members = event.as_object_mut().unwrap();
        let kind = members.remove("type").unwrap();
        members.insert("event_id".to_owned(), json!("event_1"));
        let rest = event.to_string();
        let text = format!("{{\"type\":{kind},{}", rest.strip_prefix('{').unwrap());
        keep("server", &text);
        // the bridge may have closed
        let _ = self.writer.lock().await.send(Message::text(text)).await;
    }

    async fn begin(&self) {
        let id = {
            let mut state = self.state.lock().unwrap();
            state.responses += 1;
            let id = format!("resp_{}", state.responses);
            state.active = Some(id.clone());
            id
        };
        let response = json!({"id": id, "status": "in_progress", "output": []});
        self.send(json!({"type": "response.created", "response": response})).await;
    }

    async fn serve(
        self,
        mut messages: SplitStream<WebSocketStream<TcpStream>>,
        refusal: Option<Value>,
    ) {
        while let Some(Ok(message)) = messages.next().await {
            let event = match message {
                Message::Text(text) => {
                    keep("client", &text);
                    serde_json::from_str::<Value>(&text).unwrap_or_default()
                }
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(frame) => {
                    self.got.push(Got::Closed(frame.map(|frame| frame.code.into())));
                    continue;
                }
                other => {
                    self.got.push(Got::Wrong(format!("{other:?}")));
                    continue;
                }
            };
            if let Err(why) = self.state.lock().unwrap().check(&event) {
                self.got.push(Got::Wrong(format!("{why}: {event}")));
                continue;
            }
            self.answer(&event, refusal.as_ref()).await;
            self.got.push(Got::Event(event));
        }
        self.got.push(Got::End);
    }

    /// Answers as the API does.
    async fn answer(&self, event: &Value, refusal: Option<&Value>) {
        match event["type"].as_str().unwrap_or_default() {
            "session.update" => match refusal {
                Some(error) => self.send(json!({"type": "error", "error": error})).await,
                None => {
                    self.state.lock().unwrap().ready = true;
                    let session = event["session"].clone();
                    self.send(json!({"type": "session.updated", "session": session})).await;
                }
            },
            "conversation.item.create" => {
                let item = event["item"].clone();
                self.send(json!({"type": "conversation.item.added", "item": item.clone()})).await;
                self.send(json!({"type": "conversation.item.done", "item": item})).await;
            }
            "conversation.item.truncate" => {
                self.send(json!({
                    "type": "conversation.item.truncated", "item_id": event["item_id"],
                    "content_index": 0, "audio_end_ms": event["audio_end_ms"],
                }))
                .await;
            }
            "response.create" => self.begin().await,
            _ => {}
        }
    }
}

impl Conversation {
    fn check(&mut self, event: &Value) -> Result<(), String> {
        let kind = event["type"].as_str().ok_or("no type")?;
        let (_, members) = EVENTS.iter().find(|(name, _)| *name == kind).ok_or("unknown event")?;
        let mut names: Vec<&str> = event.as_object().unwrap().keys().map(|s| s.as_str()).collect();
        names.retain(|name| !["type", "event_id"].contains(name));
        if kind == "response.create" {
            names.retain(|name| *name != "response");
        }
        if names != *members {
            return Err(format!("members {names:?}"));
        }
        if let Some(id) = event["event_id"].as_str()
            && !self.ids.insert(id.to_owned())
        {
            return Err("an id twice".to_owned());
        }
        if !self.ready && kind != "session.update" {
            return Err("before the session was ready".to_owned());
        }
        match kind {
            "session.update" => check_session(&event["session"]),
            "input_audio_buffer.append" => {
                let audio = event["audio"].as_str().ok_or("audio is not a string")?;
                let audio = BASE64.decode(audio).map_err(|e| e.to_string())?;
                if audio.len() == 160 { Ok(()) } else { Err("not 20 ms".to_owned()) }
            }
            "conversation.item.create" => self.check_item(&event["item"]),
            "conversation.item.truncate" => self.check_truncation(event),
            _ => self.check_response(&event["response"]),
        }
    }

    fn check_item(&mut self, item: &Value) -> Result<(), String> {
        match item["type"].as_str() {
            Some("function_call_output") => {
                exactly(item, &["call_id", "output", "type"])?;
                let id = item["call_id"].as_str().ok_or("call_id is not a string")?;
                item["output"].as_str().ok_or("output is not a string")?;
                if self.calls.remove(id) { Ok(()) } else { Err("no such call".to_owned()) }
            }
            Some("message") => {
                exactly(item, &["content", "role", "type"])?;
                exactly(&item["content"][0], &["text", "type"])?;
                let typed = item["content"][0]["type"] == "input_text";
                let role = item["role"] == "user" || item["role"] == "system";
                if typed && role { Ok(()) } else { Err("a message of another kind".to_owned()) }
            }
            _ => Err("an item of another type".to_owned()),
        }
    }

    /// More than the API itself would notice: an item is truncated once.
    fn check_truncation(&mut self, event: &Value) -> Result<(), String> {
        let id = event["item_id"].as_str().ok_or("item_id is not a string")?;
        let end_ms = event["audio_end_ms"].as_u64().ok_or("audio_end_ms is not an integer")?;
        let bytes = self.audio.get(id).ok_or("no such item")?;
        if event["content_index"] != 0 || end_ms > bytes / 8 {
            return Err(format!("Audio content of {} ms is already shorter", bytes / 8));
        }
        match self.truncated.insert(id.to_owned()) {
            true => Ok(()),
            false => Err("truncated twice".to_owned()),
        }
    }

    fn check_response(&self, response: &Value) -> Result<(), String> {
        if self.active.is_some() {
            return Err("conversation_already_has_active_response".to_owned());
        }
        if response.is_null() {
            return Ok(());
        }
        exactly(response, &["instructions", "tool_choice"])?;
        let is_text = response["instructions"].is_string() && response["tool_choice"] == "none";
        if is_text { Ok(()) } else { Err("a response of another kind".to_owned()) }
    }
}

/// Appends an event to the file of `REALTIME_EVENTS`.
fn keep(side: &str, event: &str) {
    if let Some(file) = std::env::var_os("REALTIME_EVENTS") {
        let mut file = std::fs::File::options().append(true).create(true).open(file).unwrap();
        // one write, because the tests run side by side
        file.write_all(format!("[\"{side}\",{event}]\n").as_bytes()).unwrap();
    }
}

fn exactly(value: &Value, members: &[&str]) -> Result<(), String> {
    let object = value.as_object().ok_or("not an object")?;
    let names: Vec<&str> = object.keys().map(|name| name.as_str()).collect();
    if names == *members { Ok(()) } else { Err(format!("members {names:?}")) }
}

fn check_session(session: &Value) -> Result<(), String> {
    const KNOWN: [&str; 5] = ["audio", "instructions", "max_output_tokens", "tools", "type"];
    let object = session.as_object().ok_or("the session is not an object")?;
    if let Some(other) = object.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(format!("Unknown parameter: 'session.{other}'"));
    }
    let format = json!({"type": "audio/pcmu"});
    for side in ["input", "output"] {
        if session["audio"][side]["format"] != format {
            return Err(format!("{side} is not G.711 without a rate"));
        }
    }
    if session["type"] != "realtime" {
        return Err("not a realtime session".to_owned());
    }
    for tool in session["tools"].as_array().into_iter().flatten() {
        exactly(tool, &["description", "name", "parameters", "type"])?;
        if tool["type"] != "function" || tool["parameters"]["type"] != "object" {
            return Err("a tool of another kind".to_owned());
        }
    }
    Ok(())
}

//! An AI that sends numbered audio and records what it receives: a real WebSocket server.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use trunkless::peer::pattern;

/// Everything the AI has received on one stream.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    pub parameters: Value,
    /// The events in order: their names, key presses with the key, and one entry per run of
    /// numbered audio.
    pub story: Vec<String>,
    /// All frames received.
    pub frames: Vec<Vec<u8>>,
    pub timestamps: Vec<u64>,
    /// When each frame was received.
    pub heard_at: Vec<Instant>,
    /// When each numbered frame was sent, if the plan is paced.
    pub said_at: Vec<Instant>,
    pub digits: String,
    /// Our own messages received.
    pub own: Vec<Value>,
    pub stopped: bool,
    /// The close code, once closed; 0 for an end without a close frame.
    pub closed: Option<u16>,
}

impl Stream {
    /// The statuses of the replies to an order, and its last reason.
    pub fn replies(&self, id: &str) -> (Vec<String>, String) {
        let results = self.own.iter().filter(|own| own["id"] == id).map(|own| &own["result"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut reason = String::new();
        let statuses = results.map(|result| {
            reason = text(&result["reason"]);
            let state = text(&result["state"]);
            if state.is_empty() { text(&result["status"]) } else { state }
        });
        let statuses = statuses.collect();
        (statuses, reason)
    }

    /// Indices of the numbered frames of call `call`.
    pub fn numbers(&self, call: u32) -> Vec<u32> {
        let read = self.frames.iter().filter_map(|f| pattern::read(f));
        read.filter(|(c, _)| *c == call).map(|(_, index)| index).collect()
    }
}

/// The AI's behaviour in a call.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many numbered frames to send.
    pub say: u32,
    /// Start sending after this many frames received.
    pub after_heard: usize,
    /// Send one frame per frame received, instead of all at once.
    pub paced: bool,
    /// Close after this many frames received.
    pub close_after: Option<usize>,
    /// Drop the connection after this many frames received.
    pub drop_after: Option<usize>,
    /// The call number in the audio sent; `None` takes it from the audio received.
    pub call: Option<u32>,
    /// Stay this many frames ahead of those received, instead of sending all at once.
    pub ahead: Option<u32>,
    /// Our own messages to send, each after this many frames received. `streamSid` is added.
    pub orders: Vec<(usize, Value)>,
    /// Send a mark after each message of audio, named after the number of frames sent so far.
    pub marks: bool,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            say: 0,
            after_heard: 25,
            paced: false,
            close_after: None,
            drop_after: None,
            call: Some(1000),
            ahead: None,
            orders: Vec::new(),
            marks: false,
        }
    }
}

pub struct Ai {
    pub url: String,
    streams: Arc<Mutex<Vec<Stream>>>,
}

impl Ai {
    pub async fn start(plan: Plan) -> Ai {
        Ai::start_at("127.0.0.1:0", plan).await
    }

    /// Like [`Ai::start`], at an address that is known before.
    pub async fn start_at(address: &str, plan: Plan) -> Ai {
        let listener = TcpListener::bind(address).await.expect("a port");
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let all = streams.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let index = {
                    let mut all = all.lock().expect("no panic elsewhere");
                    all.push(Stream::default());
                    all.len() - 1
                };
                tokio::spawn(talk(socket, plan.clone(), all.clone(), index));
            }
        });
        Ai { url, streams }
    }

    pub fn streams(&self) -> Vec<Stream> {
        self.streams.lock().expect("no panic elsewhere").clone()
    }

    /// Waits until the first stream satisfies `wanted` and returns it.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Stream) -> bool,
    ) -> Stream {
        let wait = async {
            loop {
                let first = self.streams().into_iter().next();
                if let Some(stream) = first.filter(|s| wanted(s)) {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(stream) => stream,
            Err(_) => panic!("not seen by the AI within {limit:?}: {what}"),
        }
    }
}

/// One stream, on the AI's side.
struct Talk {
    plan: Plan,
    all: Arc<Mutex<Vec<Stream>>>,
    index: usize,
    sid: String,
    /// Numbered frames sent so far.
    said: u32,
    /// The call number to send as, once known.
    call: Option<u32>,
}

async fn talk(socket: TcpStream, plan: Plan, all: Arc<Mutex<Vec<Stream>>>, index: usize) {
    let _ = socket.set_nodelay(true);
    let config = WebSocketConfig::default().read_buffer_size(8 * 1024).write_buffer_size(0);
    let Ok(mut socket) = accept_async_with_config(socket, Some(config)).await else { return };
    let call = plan.call;
    let mut talk = Talk { plan, all, index, sid: String::new(), said: 0, call };
    while let Some(Ok(message)) = socket.next().await {
        let text = match message {
            Message::Text(text) => text,
            Message::Close(frame) => {
                let code = frame.map_or(1005, |f| u16::from(f.code));
                talk.edit(|s| s.closed = Some(code));
                continue;
            }
            _ => continue,
        };
        let at = Instant::now();
        let heard = talk.hear(at, &serde_json::from_str(&text).expect("JSON"));
        for message in talk.answer(heard).into_iter().chain(talk.orders(heard)) {
            let _ = socket.send(message).await;
        }
        if talk.plan.close_after.is_some_and(|n| heard >= n) {
            let _ = socket.close(None).await;
        }
        if talk.plan.drop_after.is_some_and(|n| heard >= n) {
            return;
        }
    }
    talk.edit(|s| {
        s.closed.get_or_insert(0);
    });
}

impl Talk {
    fn edit(&self, change: impl FnOnce(&mut Stream)) {
        change(&mut self.all.lock().expect("no panic elsewhere")[self.index]);
    }

    /// Adds a message to the story.
    fn add_to_story(&self, value: &Value) {
        let name = value["event"].as_str().unwrap_or("none");
        let payload = value["media"]["payload"].as_str().map(|p| BASE64.decode(p));
        let line = match (name, payload) {
            ("media", Some(Ok(frame))) => match pattern::read(&frame) {
                Some((call, _)) => format!("media of call {call}"),
                None => return,
            },
            ("dtmf", _) => format!("dtmf {}", value["dtmf"]["digit"]),
            ("start", _) => format!("start {}", value["start"]["mediaFormat"]),
            _ => name.to_owned(),
        };
        self.edit(|s| {
            if s.story.last() != Some(&line) {
                s.story.push(line);
            }
        });
    }

    /// Processes a message. Returns the number of frames received so far if it was one, otherwise
    /// 0.
    fn hear(&mut self, at: Instant, value: &Value) -> usize {
        let mut heard = 0;
        self.add_to_story(value);
        match value["event"].as_str() {
            Some("start") => {
                self.sid = value["streamSid"].as_str().expect("a streamSid").to_owned();
                self.edit(|s| s.parameters = value["start"]["customParameters"].clone());
            }
            Some("media") => {
                let media = &value["media"];
                let payload = media["payload"].as_str().expect("a payload");
                let frame = BASE64.decode(payload).expect("base64");
                let time = media["timestamp"].as_str().expect("a string").parse();
                self.call = self.call.or(pattern::read(&frame).map(|(call, _)| call));
                self.edit(|s| {
                    s.frames.push(frame);
                    s.timestamps.push(time.expect("a number"));
                    s.heard_at.push(at);
                    heard = s.frames.len();
                });
            }
            Some("dtmf") => {
                let digit = value["dtmf"]["digit"].as_str().expect("a digit").to_owned();
                self.edit(|s| s.digits.push_str(&digit));
            }
            Some("stop") => self.edit(|s| s.stopped = true),
            Some("result" | "call" | "cleared" | "speechStarted" | "speechStopped") => {
                self.edit(|s| s.own.push(value.clone()))
            }
            _ => {}
        }
        heard
    }

    /// The orders to give once `heard` frames have been received.
    fn orders(&mut self, heard: usize) -> Vec<Message> {
        let mut due = Vec::new();
        while let Some((_, order)) = self.plan.orders.first().filter(|(at, _)| *at <= heard) {
            let mut order = order.clone();
            order["streamSid"] = self.sid.clone().into();
            due.push(Message::Text(order.to_string().into()));
            self.plan.orders.remove(0);
        }
        due
    }

    /// The messages to send once `heard` frames have been received.
    fn answer(&mut self, heard: usize) -> Vec<Message> {
        let started = !self.sid.is_empty() && heard >= self.plan.after_heard;
        let Some(call) = self.call.filter(|_| started) else {
            return Vec::new();
        };
        let end = match (self.plan.paced, self.plan.ahead) {
            (true, _) => self.said + 1,
            (false, Some(ahead)) => (heard as u32 + ahead) / 7 * 7,
            // all at once: the bridge paces
            (false, None) => self.plan.say,
        };
        let (first, end) = (self.said, end.min(self.plan.say));
        self.said = end;
        if self.plan.paced && first < end {
            self.edit(|s| s.said_at.push(Instant::now()));
        }
        let chunks = (first..end).step_by(7).flat_map(|n| {
            let next = (n + 7).min(end);
            let frames = (n..next).flat_map(|n| pattern::frame(call, n));
            let payload = BASE64.encode(frames.collect::<Vec<u8>>());
            let media = json!({"event": "media", "streamSid": self.sid,
                "media": {"payload": payload}});
            let name = next.to_string();
            let mark = json!({"event": "mark", "streamSid": self.sid, "mark": {"name": name}});
            let both = [Some(media), self.plan.marks.then_some(mark)];
            both.into_iter().flatten().map(|value| Message::Text(value.to_string().into()))
        });
        chunks.collect()
    }
}

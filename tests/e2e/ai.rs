//! An AI that speaks numbered audio and checks what it hears: a real WebSocket server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use trunkless::peer::pattern;

/// What one stream has told the AI.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    pub parameters: Value,
    /// Each frame heard.
    pub frames: Vec<Vec<u8>>,
    pub timestamps: Vec<u64>,
    pub digits: String,
    pub stopped: bool,
    /// Close code, once closed; 0 for an end without a close frame.
    pub closed: Option<u16>,
}

impl Stream {
    /// Indices of the numbered frames of call `call`.
    pub fn numbers(&self, call: u32) -> Vec<u32> {
        let read = self.frames.iter().filter_map(|f| pattern::read(f));
        read.filter(|(c, _)| *c == call).map(|(_, index)| index).collect()
    }
}

/// What an AI does with a call.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Numbered frames to say: how many, after so many heard.
    pub say: u32,
    pub after_heard: usize,
    /// Close when so many frames have been heard.
    pub close_after: Option<usize>,
    /// Drop the connection when so many frames have been heard.
    pub drop_after: Option<usize>,
    /// The call's number in the audio that is said; taken from what is heard when `None`.
    pub call: Option<u32>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { say: 0, after_heard: 25, close_after: None, drop_after: None, call: Some(1000) }
    }
}

pub struct Ai {
    pub url: String,
    streams: Arc<Mutex<Vec<Stream>>>,
}

impl Ai {
    pub async fn start(plan: Plan) -> Ai {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
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

    /// Waits until the first stream is as wanted.
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
            Err(_) => panic!("the AI has not seen within {limit:?}: {what}"),
        }
    }
}

async fn talk(socket: TcpStream, plan: Plan, all: Arc<Mutex<Vec<Stream>>>, index: usize) {
    let Ok(mut socket) = accept_async(socket).await else { return };
    let mut sid = String::new();
    let mut said = false;
    let edit = |change: &mut dyn FnMut(&mut Stream)| {
        change(&mut all.lock().expect("no panic elsewhere")[index]);
    };
    while let Some(Ok(message)) = socket.next().await {
        let text = match message {
            Message::Text(text) => text,
            Message::Close(frame) => {
                let code = frame.map_or(1005, |f| u16::from(f.code));
                edit(&mut |s| s.closed = Some(code));
                continue;
            }
            _ => continue,
        };
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let mut heard = 0;
        let mut number = plan.call;
        match value["event"].as_str() {
            Some("start") => {
                sid = value["streamSid"].as_str().expect("a streamSid").to_owned();
                edit(&mut |s| s.parameters = value["start"]["customParameters"].clone());
            }
            Some("media") => {
                let media = &value["media"];
                let payload = media["payload"].as_str().expect("a payload");
                let frame = BASE64.decode(payload).expect("base64");
                let time =
                    media["timestamp"].as_str().expect("a string").parse().expect("a number");
                number = number.or(pattern::read(&frame).map(|(call, _)| call));
                edit(&mut |s| {
                    s.frames.push(frame.clone());
                    s.timestamps.push(time);
                    heard = s.frames.len();
                });
            }
            Some("dtmf") => {
                let digit = value["dtmf"]["digit"].as_str().expect("a digit").to_owned();
                edit(&mut |s| s.digits.push_str(&digit));
            }
            Some("stop") => edit(&mut |s| s.stopped = true),
            _ => {}
        }
        if let Some(call) = number.filter(|_| !said && plan.say > 0 && heard >= plan.after_heard) {
            said = true;
            // all at once: the bridge paces
            for first in (0..plan.say).step_by(7) {
                let chunk: Vec<u8> = (first..(first + 7).min(plan.say))
                    .flat_map(|n| pattern::frame(call, n))
                    .collect();
                let media = json!({"event": "media", "streamSid": sid,
                    "media": {"payload": BASE64.encode(chunk)}});
                let _ = socket.send(Message::Text(media.to_string().into())).await;
            }
        }
        if plan.close_after.is_some_and(|n| heard >= n) {
            let _ = socket.close(None).await;
        }
        if plan.drop_after.is_some_and(|n| heard >= n) {
            return;
        }
    }
    edit(&mut |s| {
        s.closed.get_or_insert(0);
    });
}

//! One stream of the strict server: it records and checks everything it receives, and sends the
//! AI's messages.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use trunkless::media::frame::{SILENCE, Samples};
use trunkless::peer::pattern;

use crate::call::CALLER;
use crate::checker::Checker;
use crate::log::Log;
use crate::strict::linger_zero;

/// The call number in the AI's numbered audio.
pub const AGENT: u32 = 2;

/// One thing received, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub at: Instant,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Connected,
    Start(Value),
    Media {
        t_ms: u64,
        samples: Samples,
    },
    Digit(String),
    Mark(String),
    /// One of our own messages.
    Own(Value),
    Stop,
    Ping,
    Pong(Vec<u8>),
    /// A close frame with its code.
    Closed(Option<u16>),
    /// The end of the connection.
    End,
    /// Something Twilio would not send, and why.
    Wrong(String),
}

pub struct Stream {
    pub account_sid: String,
    pub call_sid: String,
    pub sid: String,
    pub parameters: Value,
    /// Everything received so far.
    told: Arc<Log<Told>>,
    /// See [`Checker::extended`].
    extended: Arc<AtomicBool>,
    writer: Mutex<SplitSink<WebSocketStream<TcpStream>, Message>>,
    /// The same connection, for bytes that are not WebSocket.
    raw: std::net::TcpStream,
    reader: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
        if !std::thread::panicking() {
            self.check();
        }
    }
}

impl Stream {
    pub fn new(
        socket: WebSocketStream<TcpStream>,
        raw: std::net::TcpStream,
        checker: Checker,
    ) -> Stream {
        let extended = checker.extended.clone();
        let (writer, messages) = socket.split();
        let told = Arc::new(Log::new());
        let end = raw.try_clone().unwrap();
        let reader = tokio::spawn(read(messages, checker, end, told.clone()));
        Stream {
            account_sid: String::new(),
            call_sid: String::new(),
            sid: String::new(),
            parameters: Value::Null,
            told,
            extended,
            writer: Mutex::new(writer),
            raw,
            reader,
        }
    }

    pub async fn read_start(&mut self) {
        let start = self.find("start", |what| match what {
            What::Start(start) => Some(start.clone()),
            _ => None,
        });
        let start = start.await;
        let text = |name: &str| start[name].as_str().unwrap_or_default().to_owned();
        self.account_sid = text("accountSid");
        self.call_sid = text("callSid");
        self.sid = text("streamSid");
        self.parameters = start["customParameters"].clone();
    }

    /// Waits for `start` and returns true, or false if the stream ends first.
    pub async fn starts(&self) -> bool {
        let start = |what: &What| match what {
            What::Start(_) => Some(true),
            What::End => Some(false),
            _ => None,
        };
        self.find("start, or the end", start).await
    }

    /// Panics if anything received is not what Twilio would send.
    fn check(&self) {
        let wrong = self.told.look(|told| {
            told.iter().find_map(|t| match &t.what {
                What::Wrong(why) => Some(why.clone()),
                _ => None,
            })
        });
        assert_eq!(wrong, None, "not what Twilio would send");
    }

    /// Everything received so far.
    pub fn told(&self) -> Vec<Told> {
        self.check();
        self.told.look(|told| told.clone())
    }

    /// Waits until `see` returns something for one of the things received.
    async fn find<R>(&self, what: &str, see: impl Fn(&What) -> Option<R>) -> R {
        let found = self.told.wait(what, |told| {
            let wrong = told.iter().any(|t| matches!(t.what, What::Wrong(_)));
            let found = told.iter().find_map(|t| see(&t.what));
            (wrong || found.is_some()).then_some(found)
        });
        let found = found.await;
        self.check();
        found.expect("nothing is wrong, so it was found")
    }

    /// Waits until `count` numbered frames from the caller have arrived and returns the numbers of
    /// all so far, in order of arrival. Panics at a frame that is neither silence nor one of them.
    pub async fn heard(&self, count: usize) -> Vec<u32> {
        let what = format!("{count} frames of the caller");
        let enough = |told: &mut Vec<Told>| {
            let indices: Vec<u32> = numbered(told).map(|(_, index)| index).collect();
            (indices.len() >= count).then_some(indices)
        };
        let indices = self.told.wait(&what, enough).await;
        self.check();
        indices
    }

    /// Waits for frame `index` of the caller.
    pub async fn hears(&self, index: u32) {
        self.told
            .wait("a frame of the caller", |told| {
                numbered(told).any(|(_, i)| i == index).then_some(())
            })
            .await;
        self.check();
    }

    /// All frames so far, each with its time on the audio clock.
    pub fn frames(&self) -> Vec<(u64, Samples)> {
        frames(&self.told()).collect()
    }

    /// Waits until the audio clock has advanced by `ms`.
    pub async fn listen(&self, ms: u64) {
        let until = self.frames().last().map_or(0, |(t, _)| *t) + ms;
        self.told
            .wait("advance of the audio clock", |told| {
                frames(told).any(|(t, _)| t >= until).then_some(())
            })
            .await;
    }

    /// The numbers of the frames from the caller, each with its time on the audio clock.
    pub fn positions(&self) -> Vec<(u64, u32)> {
        numbered(&self.told()).collect()
    }

    /// The digits received so far.
    pub fn digits(&self) -> String {
        let told = self.told();
        let digits = told.iter().filter_map(|t| match &t.what {
            What::Digit(digit) => Some(digit.as_str()),
            _ => None,
        });
        digits.collect()
    }

    pub async fn pressed(&self, digits: &str) {
        let enough = |told: &mut Vec<Told>| {
            let count = told.iter().filter(|t| matches!(t.what, What::Digit(_))).count();
            (count >= digits.len()).then_some(())
        };
        self.told.wait(&format!("keys {digits}"), enough).await;
        assert_eq!(self.digits(), digits);
    }

    /// Waits until a mark comes back and returns the time at which it did.
    pub async fn marked(&self, name: &str) -> Instant {
        let wanted = What::Mark(name.to_owned());
        let found = |told: &mut Vec<Told>| told.iter().find(|t| t.what == wanted).map(|t| t.at);
        self.told.wait(&format!("mark {name}"), found).await
    }

    /// The marks that have come back so far.
    pub fn marks(&self) -> Vec<String> {
        let told = self.told();
        let marks = told.iter().filter_map(|t| match &t.what {
            What::Mark(name) => Some(name.clone()),
            _ => None,
        });
        marks.collect()
    }

    /// Waits for the pong with this payload.
    pub async fn ponged(&self, payload: &[u8]) {
        let wanted = What::Pong(payload.to_vec());
        self.find("pong", |what| (*what == wanted).then_some(())).await;
    }

    pub async fn until_stop(&self) {
        self.find("stop", |what| (*what == What::Stop).then_some(())).await;
    }

    /// Waits for the regular end: `stop`, close frame 1000, end of the connection.
    pub async fn stopped(&self) {
        self.find("the end", |what| (*what == What::End).then_some(())).await;
        let told = self.told();
        let last: Vec<&What> = told.iter().rev().take(3).map(|t| &t.what).collect();
        assert_eq!(last, [&What::End, &What::Closed(Some(1000)), &What::Stop]);
    }

    /// Waits for the end of a stream that the AI closed: no `stop` may have been sent.
    pub async fn ended(&self) {
        self.find("the end", |what| (*what == What::End).then_some(())).await;
        assert!(!self.told().iter().any(|t| t.what == What::Stop));
    }

    pub async fn send(&self, message: Message) {
        self.writer.lock().await.send(message).await.unwrap();
    }

    pub async fn text(&self, text: impl Into<String>) {
        self.send(Message::Text(text.into().into())).await;
    }

    pub async fn say(&self, value: &Value) {
        self.text(value.to_string()).await;
    }

    /// The text of a `media` message with this audio.
    pub fn media(&self, audio: &[u8]) -> String {
        let media = json!({"payload": BASE64.encode(audio)});
        json!({"event": "media", "streamSid": self.sid, "media": media}).to_string()
    }

    pub async fn play(&self, audio: &[u8]) {
        self.text(self.media(audio)).await;
    }

    /// Sends numbered frames in one message.
    pub async fn play_frames(&self, frames: std::ops::Range<u32>) {
        self.play(&agent_frames(frames)).await;
    }

    /// Sends one of our own messages.
    pub async fn order(&self, value: &Value) {
        self.extended.store(true, Ordering::Relaxed);
        self.say(value).await;
    }

    /// Allows our own messages without having sent one.
    pub fn expect_own(&self) {
        self.extended.store(true, Ordering::Relaxed);
    }

    /// Our own messages so far.
    pub fn own(&self) -> Vec<Value> {
        let told = self.told();
        let own = told.iter().filter_map(|t| match &t.what {
            What::Own(value) => Some(value.clone()),
            _ => None,
        });
        own.collect()
    }

    /// Waits for the last reply to the order with this id, and returns the statuses of all.
    pub async fn replied(&self, id: &str) -> Vec<Value> {
        let results = |told: &[Told]| -> Vec<Value> {
            let results = told.iter().filter_map(|t| match &t.what {
                What::Own(value) if value["id"] == id => Some(value["result"].clone()),
                _ => None,
            });
            results.collect()
        };
        let last = |told: &mut Vec<Told>| {
            let results = results(told);
            let over = |r: &Value| r["status"] == "done" || r["status"] == "failed";
            results.last().is_some_and(over).then_some(results)
        };
        let results = self.told.wait(&format!("the replies to {id}"), last).await;
        self.check();
        results
    }

    /// Waits until the target of the transfer with this id has answered.
    pub async fn answered(&self, id: &str) {
        let is = |what: &What| match what {
            What::Own(value) if value["id"] == id && value["result"]["state"] == "answered" => {
                Some(())
            }
            _ => None,
        };
        self.find(&format!("the answer to {id}"), is).await;
    }

    /// Waits for the event `call` with this state.
    pub async fn state(&self, state: &str) {
        let is = |what: &What| match what {
            What::Own(value) if value["call"]["state"] == state => Some(()),
            _ => None,
        };
        self.find(state, is).await;
    }

    pub async fn mark(&self, name: &str) {
        let sid = &self.sid;
        self.say(&json!({"event": "mark", "streamSid": sid, "mark": {"name": name}})).await;
    }

    pub async fn clear(&self) {
        self.say(&json!({"event": "clear", "streamSid": self.sid})).await;
    }

    /// Sends a close frame with this code; the bridge answers with its own.
    pub async fn close(&self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.send(Message::Close(Some(frame))).await;
    }

    /// Sends close frame 1000 where the bridge may have closed already.
    pub async fn close_if_open(&self) {
        let close = Message::Close(Some(CloseFrame { code: 1000.into(), reason: "".into() }));
        let _ = self.writer.lock().await.send(close).await;
    }

    /// Waits for the end of the connection, whichever side ends it.
    pub async fn over(&self) {
        self.find("the end", |what| (*what == What::End).then_some(())).await;
    }

    /// Resets the connection.
    pub async fn reset(self) {
        linger_zero(&self.raw);
        self.reader.abort();
    }

    /// Ends the connection without a close frame.
    pub fn hang_up(&self) {
        self.raw.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Writes raw bytes, bypassing the WebSocket layer.
    pub fn write_raw(&self, bytes: &[u8]) {
        (&self.raw).write_all(bytes).unwrap();
    }
}

/// The AI's numbered audio.
pub fn agent_frames(frames: std::ops::Range<u32>) -> Vec<u8> {
    frames.flat_map(|index| pattern::frame(AGENT, index)).collect()
}

fn frames(told: &[Told]) -> impl Iterator<Item = (u64, Samples)> {
    told.iter().filter_map(|t| match t.what {
        What::Media { t_ms, samples } => Some((t_ms, samples)),
        _ => None,
    })
}

/// The caller's numbered frames; silence is left out.
fn numbered(told: &[Told]) -> impl Iterator<Item = (u64, u32)> {
    frames(told).filter(|(_, samples)| *samples != [SILENCE; 160]).map(|(t_ms, samples)| {
        match pattern::read(&samples) {
            Some((CALLER, index)) => (t_ms, index),
            other => panic!("frame {other:?} at {t_ms} ms: {samples:02x?}"),
        }
    })
}

/// Reads until the connection ends, then ends it from this side too, as servers do.
async fn read(
    mut messages: SplitStream<WebSocketStream<TcpStream>>,
    mut checker: Checker,
    raw: std::net::TcpStream,
    told: Arc<Log<Told>>,
) {
    while let Some(Ok(message)) = messages.next().await {
        let at = Instant::now();
        let what = match message {
            Message::Text(text) => checker.check(&text).unwrap_or_else(What::Wrong),
            Message::Ping(_) => What::Ping,
            Message::Pong(payload) => What::Pong(payload.to_vec()),
            Message::Close(frame) => What::Closed(frame.map(|f| f.code.into())),
            other => What::Wrong(format!("{other:?}")),
        };
        told.push(Told { at, what });
    }
    let _ = raw.shutdown(std::net::Shutdown::Both);
    told.push(Told { at: Instant::now(), what: What::End });
}

//! The bystanders' AI: a WebSocket server on a thread of its own, which sends one frame of numbered
//! audio every 20 ms to each call and notes every frame it receives. Owns the thread.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep_until;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};
use trunkless::peer::pattern;

use super::calls::{AI, Call, hear};
use super::canary::Canary;
use super::judge::{Arrival, Content, FRAME};

/// Each frame is sent this long before the packet in which the bridge will send it. A bridge that
/// keeps a fixed grid of slots then always meets the same slot, although timers are inexact, and
/// one whose slots follow the AI sends it at once.
const AHEAD: Duration = Duration::from_millis(6);
/// A frame this late has missed its slot. It takes the next one, and all later ones follow it.
const LATE: Duration = Duration::from_millis(4);
/// RTP packets at the caller before the AI speaks; they show where the slots are.
const PACKETS: usize = 10;

/// The calls by number.
pub type Calls = Arc<Mutex<Vec<Arc<Call>>>>;

pub struct Ai {
    pub address: SocketAddr,
    /// Dropping it ends the thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Ai {
    /// Serves until dropped.
    pub fn start(listener: std::net::TcpListener, calls: Calls, canary: Arc<Canary>) -> Ai {
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket option");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                canary.watch_this_runtime();
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    () = accept(listener, calls) => {}
                    _ = stopped => {}
                }
            });
        });
        Ai { address, _stop: stop }
    }
}

async fn accept(listener: TcpListener, calls: Calls) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(talk(socket, calls.clone()));
    }
}

/// One stream.
struct Talk {
    socket: WebSocketStream<TcpStream>,
    calls: Calls,
    sid: String,
    /// The call, once a numbered frame has arrived.
    call: Option<Arc<Call>>,
    /// When the next frame is due.
    next: Option<Instant>,
}

async fn talk(socket: TcpStream, calls: Calls) {
    let _ = socket.set_nodelay(true);
    let config = WebSocketConfig::default().read_buffer_size(8 * 1024).write_buffer_size(0);
    let Ok(socket) = accept_async_with_config(socket, Some(config)).await else { return };
    let mut talk = Talk { socket, calls, sid: String::new(), call: None, next: None };
    loop {
        // well below 20 ms, because each frame from the caller starts this wait again
        let soon = Instant::now() + FRAME / 4;
        let due = talk.next.unwrap_or(soon);
        tokio::select! {
            message = talk.socket.next() => match message {
                Some(Ok(Message::Text(text))) => talk.on_message(&text),
                Some(Ok(_)) => {}
                _ => return,
            },
            () = sleep_until(due.into()) => talk.on_time().await,
        }
    }
}

/// The value of a key whose value is a string without escapes.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let begin = text.find(key)? + key.len();
    let rest = &text[begin..];
    rest.find('"').map(|end| &rest[..end])
}

impl Talk {
    fn on_message(&mut self, text: &str) {
        let at = Instant::now();
        if text.starts_with("{\"event\":\"start\"") {
            self.sid = field(text, "\"streamSid\":\"").unwrap_or_default().to_owned();
        }
        let media = field(text, "\"timestamp\":\"").zip(field(text, "\"payload\":\""));
        let Some((timestamp, payload)) = media else { return };
        let samples = BASE64.decode(payload).unwrap_or_default();
        let position = timestamp.parse::<i64>().unwrap_or(-1) / 20;
        let content = Content::of(&samples);
        if self.call.is_none()
            && let Content::Frame { call, .. } = content
        {
            let calls = self.calls.lock().expect("no panic elsewhere");
            self.call = calls.iter().find(|c| c.number == call).cloned();
        }
        if let Some(call) = &self.call {
            hear(&mut call.state().to_ai, Arrival { at, position, content });
        }
    }

    /// Sends the frame that is due, and decides when the next one is.
    async fn on_time(&mut self) {
        let Some(call) = self.call.clone().filter(|call| call.talks()) else {
            self.next = None;
            return;
        };
        let Some(due) = self.next else {
            let state = call.state();
            let last = state.last_packet.filter(|_| state.packets >= PACKETS);
            // two frames later, because this one's time may have passed already
            self.next = last.map(|(at, _)| at + 2 * FRAME - AHEAD);
            return;
        };
        let at = Instant::now();
        let missed = at.saturating_duration_since(due).saturating_sub(LATE);
        let missed = missed.as_micros().div_ceil(FRAME.as_micros()) as u32;
        self.next = Some(due + FRAME * (missed + 1));
        let index = {
            let sent = &mut call.state().to_caller.sent;
            sent.push(at);
            sent.len() as u32 - 1
        };
        let payload = BASE64.encode(pattern::frame(AI + call.number, index));
        let sid = &self.sid;
        let text =
            format!(r#"{{"event":"media","streamSid":"{sid}","media":{{"payload":"{payload}"}}}}"#);
        let _ = self.socket.send(Message::Text(text.into())).await;
    }
}

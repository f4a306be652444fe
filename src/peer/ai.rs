//! The bundled AI stand-in: a WebSocket server that speaks the Twilio dialect, without a speech
//! model. It plays a greeting, can be interrupted, and echoes what it hears. Owns sockets.

use std::net::SocketAddr;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};
use tracing::{info, warn};

use crate::media::frame::level_dbfs;

/// The greeting: mu-law, 8 kHz.
pub const GREETING: &[u8] = include_bytes!("../cli/assets/greeting.ulaw");
/// A frame louder than this counts as speech.
const SPEECH_DBFS: f64 = -35.0;
/// This many frames of speech in a row interrupt the greeting.
const SPEECH_FRAMES: u32 = 5;
/// Echoed frames between two marks: one second.
const MARK_EVERY: u64 = 50;

/// An event on a stream, for the demo and the tests.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    Started {
        call_sid: String,
        parameters: Value,
    },
    /// A frame from the caller arrived.
    Heard {
        at: Instant,
        payload: Vec<u8>,
    },
    /// A frame was sent back.
    Echoed {
        at: Instant,
        payload: Vec<u8>,
    },
    /// The caller interrupted the greeting.
    BargeIn,
    MarkReturned(String),
    Digit(String),
    Stopped,
}

/// Serves every connection; never returns.
pub async fn serve(listener: TcpListener, events: Option<mpsc::UnboundedSender<AgentEvent>>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let events = events.clone();
                tokio::spawn(async move {
                    if let Err(why) = talk(stream, from, events).await {
                        warn!(%from, "stream ended: {why}");
                    }
                });
            }
            Err(why) => {
                warn!(%why, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// The state of one stream.
struct Conversation {
    socket: WebSocketStream<TcpStream>,
    stream_sid: String,
    /// True from sending the greeting until its mark returns.
    greeting_pending: bool,
    /// True once the greeting was interrupted and `clear` sent.
    cleared: bool,
    /// Frames of speech in a row during the greeting.
    loud: u32,
    /// Frames echoed.
    echoed: u64,
    /// Marks sent since the greeting.
    marks: u64,
    events: Option<mpsc::UnboundedSender<AgentEvent>>,
}

async fn talk(
    stream: TcpStream,
    from: SocketAddr,
    events: Option<mpsc::UnboundedSender<AgentEvent>>,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let config = WebSocketConfig::default().read_buffer_size(8 * 1024).write_buffer_size(0);
    let socket = accept_async_with_config(stream, Some(config)).await.map_err(|e| e.to_string())?;
    info!(%from, "connected");
    let mut conversation = Conversation {
        socket,
        stream_sid: String::new(),
        greeting_pending: false,
        cleared: false,
        loud: 0,
        echoed: 0,
        marks: 0,
        events,
    };
    while let Some(message) = conversation.socket.next().await {
        match message.map_err(|e| e.to_string())? {
            Message::Text(text) => {
                let at = Instant::now();
                let value: Value =
                    serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
                if conversation.on_message(at, &value).await? {
                    break;
                }
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    // close, and read until the peer has closed as well
    let _ = conversation.socket.close(None).await;
    while let Some(Ok(_)) = conversation.socket.next().await {}
    info!(%from, echoed = conversation.echoed, "ended");
    Ok(())
}

impl Conversation {
    fn emit(&self, event: AgentEvent) {
        if let Some(events) = &self.events {
            let _ = events.send(event);
        }
    }

    async fn send(&mut self, value: Value) -> Result<(), String> {
        let text = value.to_string();
        self.socket.send(Message::Text(text.into())).await.map_err(|e| e.to_string())
    }

    async fn send_mark(&mut self, name: &str) -> Result<(), String> {
        let sid = self.stream_sid.clone();
        self.send(json!({"event": "mark", "streamSid": sid, "mark": {"name": name}})).await
    }

    /// Processes a message. Returns true if the stream is to end.
    async fn on_message(&mut self, at: Instant, message: &Value) -> Result<bool, String> {
        match message["event"].as_str().unwrap_or("") {
            "start" => {
                let start = &message["start"];
                self.stream_sid = message["streamSid"].as_str().unwrap_or("").to_owned();
                let call_sid = start["callSid"].as_str().unwrap_or("").to_owned();
                info!(call_sid, parameters = %start["customParameters"], "start");
                let parameters = start["customParameters"].clone();
                self.emit(AgentEvent::Started { call_sid, parameters });
                let payload = BASE64.encode(GREETING);
                let sid = self.stream_sid.clone();
                let media =
                    json!({"event": "media", "streamSid": sid, "media": {"payload": payload}});
                self.send(media).await?;
                self.send_mark("greeting").await?;
                self.greeting_pending = true;
            }
            "media" => {
                let text = message["media"]["payload"].as_str().unwrap_or("");
                let payload = BASE64.decode(text).map_err(|e| format!("media.payload: {e}"))?;
                self.emit(AgentEvent::Heard { at, payload: payload.clone() });
                self.on_media(text, payload).await?;
            }
            "mark" => {
                let name = message["mark"]["name"].as_str().unwrap_or("").to_owned();
                info!(name, "mark returned");
                if name == "greeting" {
                    self.greeting_pending = false;
                }
                self.emit(AgentEvent::MarkReturned(name));
            }
            "dtmf" => {
                let digit = message["dtmf"]["digit"].as_str().unwrap_or("").to_owned();
                info!(digit, "dtmf");
                self.emit(AgentEvent::Digit(digit));
            }
            "stop" => {
                info!("stop");
                self.emit(AgentEvent::Stopped);
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    async fn on_media(&mut self, text: &str, payload: Vec<u8>) -> Result<(), String> {
        let sid = self.stream_sid.clone();
        if self.greeting_pending {
            let loud = level_dbfs(&payload) > SPEECH_DBFS;
            self.loud = if loud { self.loud + 1 } else { 0 };
            if self.loud >= SPEECH_FRAMES && !self.cleared {
                self.cleared = true;
                info!("caller interrupted the greeting: sending clear");
                self.emit(AgentEvent::BargeIn);
                self.send(json!({"event": "clear", "streamSid": sid})).await?;
            }
            return Ok(());
        }
        self.emit(AgentEvent::Echoed { at: Instant::now(), payload });
        self.send(json!({"event": "media", "streamSid": sid, "media": {"payload": text}})).await?;
        self.echoed += 1;
        if self.echoed.is_multiple_of(MARK_EVERY) {
            self.marks += 1;
            let name = self.marks.to_string();
            self.send_mark(&name).await?;
        }
        Ok(())
    }
}

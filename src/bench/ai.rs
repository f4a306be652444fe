//! The AI's thread: a WebSocket server for Twilio's dialect. Owns the sockets and the clock.
//!
//! A stream sends a greeting of one frame as soon as `start` arrives. After that it sends at its
//! slots in the ring, following [`speech`](crate::bench::speech).

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::bench::figures::Times;
use crate::bench::ledger::{Ledger, Tally};
use crate::bench::schedule::{Due, Ring};
use crate::bench::shared::{Phase, Shared, Window};
use crate::bench::speech::{FLOOD_FRAMES, Say, Speech};
use crate::bench::stamp::{Kind, Read, Stamp};
use crate::bench::waiting::Waiting;
use crate::bench::websocket::{self, BINARY, CLOSE, PING, PONG, TEXT};

/// The thread's name, by which its CPU time is looked up.
pub const THREAD: &str = "bench-ai";
/// Longest wait before the phase is checked again.
const IDLE_NS: u64 = 5_000_000;
/// The listener's number in epoll; a stream has its place plus one.
const LISTENER: u64 = 0;
/// Length of a frame in base64.
const PAYLOAD_CHARS: usize = 216;
/// Longest message accepted from a bridge, in bytes.
const MAX_MESSAGE: usize = 60_000;
/// A stream is dropped when more bytes than this are unsent because the bridge does not read.
const MAX_PENDING: usize = 1 << 20;

/// Results of this thread.
#[derive(Debug, Default)]
pub struct AiResults {
    /// Judged frames sent to the callers, without those of floods.
    pub sent: u64,
    /// Judged floods sent.
    pub floods: u64,
    pub tally: Tally,
    pub clears: Vec<Cleared>,
    /// Lateness of this thread's sends against the schedule.
    pub own_lateness: Times,
    /// Text messages received in the measured time.
    pub messages_in: u64,
    /// Number of sends that a socket did not accept completely.
    pub blocked: u64,
    /// Connections dropped because of an error.
    pub broken: u64,
    /// The last reason for dropping one.
    pub why_broken: Option<&'static str>,
}

/// A `clear` that was sent: the stream, the first frame of the flood, and the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    pub sender: u32,
    pub first: u32,
    pub at_us: u64,
}

/// One connection from the bridge.
struct Stream {
    socket: TcpStream,
    /// The stream's number in its stamps.
    number: u32,
    /// True once the WebSocket handshake has been answered.
    upgraded: bool,
    /// Time of the start message.
    started_us: Option<u64>,
    /// The beginning of an incomplete message.
    inbox: Vec<u8>,
    /// A complete `media` message; its payload is replaced for each frame.
    media: Vec<u8>,
    /// A complete `clear` message.
    clear: Vec<u8>,
    /// Offset of the payload in `media`.
    payload_at: usize,
    /// True if audio is mu-law in binary messages, false if it is base64 in JSON.
    raw: bool,
    /// Bytes that the socket has not accepted yet.
    unsent: Vec<u8>,
    speech: Speech,
    /// Number of the next frame to send.
    frame: u32,
    /// First frame of the last flood, if it was judged and has not been cleared.
    flood: Option<u32>,
    /// Account of the frames received.
    ledger: Ledger,
}

pub struct Ai {
    pub shared: Arc<Shared>,
    pub listener: TcpListener,
    /// Concurrent calls.
    pub calls: usize,
    /// How long a call lasts; `None` if all last until the end.
    pub hold_us: Option<u64>,
}

impl Ai {
    /// Runs until [`Phase::Stop`].
    ///
    /// # Errors
    /// Returns any I/O error from epoll, the listener or a newly accepted socket.
    pub fn run(self) -> io::Result<AiResults> {
        let waiting = Waiting::new(self.calls)?;
        self.listener.set_nonblocking(true)?;
        waiting.watch(&self.listener, LISTENER)?;
        // ending calls overlap with new ones
        let places = self.calls + self.calls / 8 + 4;
        let mut server = Server {
            ring: Ring::new(places, self.shared.clock.now_ns() + 7_300_000),
            streams: (0..places).map(|_| None).collect(),
            next_number: 0,
            results: AiResults::default(),
            waiting,
            burst: Vec::new(),
            hint: 0,
            ai: self,
        };
        let (mut ready, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while server.ai.shared.phase() != Phase::Stop {
            let (clock, window) = (server.ai.shared.clock, server.ai.shared.window());
            while let Some(due) = server.ring.take(clock.now_ns()) {
                server.speak(due, window);
            }
            let streams = &server.streams;
            let busy = |s: usize| streams[s].as_ref().is_some_and(|s| s.started_us.is_some());
            let idle = clock.now_ns() + IDLE_NS;
            let until = server.ring.next_ns(busy).map_or(idle, |next| next.min(idle));
            server.waiting.wait(clock, until, &mut ready)?;
            for number in &ready {
                match number {
                    &LISTENER => server.accept()?,
                    number => server.on_ready((number - 1) as usize, window, &mut buffer),
                }
            }
        }
        Ok(server.results)
    }
}

/// State of the running thread.
struct Server {
    ai: Ai,
    ring: Ring,
    /// Streams by their place in the ring.
    streams: Vec<Option<Stream>>,
    /// Number of the next stream.
    next_number: u32,
    results: AiResults,
    waiting: Waiting,
    /// Buffer for messages other than a single frame.
    burst: Vec<u8>,
    /// Offset of the audio in the last message received.
    hint: usize,
}

impl Server {
    fn accept(&mut self) -> io::Result<()> {
        let (socket, _) = match self.ai.listener.accept() {
            Ok(accepted) => accepted,
            Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(why) => return Err(why),
        };
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let Some(place) = self.streams.iter().position(Option::is_none) else {
            self.results.broken += 1;
            self.results.why_broken = Some("more connections than places for calls");
            return Ok(());
        };
        self.waiting.watch(&socket, place as u64 + 1)?;
        let number = self.next_number;
        self.next_number += 1;
        self.ai.shared.streams.fetch_add(1, Ordering::Relaxed);
        self.streams[place] = Some(Stream {
            socket,
            number,
            upgraded: false,
            started_us: None,
            inbox: Vec::new(),
            media: Vec::new(),
            clear: Vec::new(),
            payload_at: 0,
            raw: false,
            unsent: Vec::new(),
            speech: Speech::new(number),
            frame: 0,
            flood: None,
            ledger: Ledger::default(),
        });
        Ok(())
    }

    /// Sends what is due on a stream at its tick.
    fn speak(&mut self, due: Due, window: Window) {
        let Some(stream) = &mut self.streams[due.sender] else { return };
        let Some(up_us) = stream.started_us else { return };
        let now_ns = self.ai.shared.clock.now_ns();
        let now_us = now_ns / 1000;
        let judged = window.judges(now_us, up_us, self.ai.hold_us.map(|hold| up_us + hold));
        let say = stream.speech.say();
        self.burst.clear();
        match say {
            Say::Nothing => return,
            Say::First | Say::Paced => {
                let kind = if say == Say::First { Kind::First } else { Kind::Paced };
                stream.compose(kind, now_us, judged);
                self.results.sent += u64::from(judged);
                stream.send(None, &mut self.results);
            }
            Say::Flood => {
                stream.flood = judged.then_some(stream.frame);
                self.results.floods += u64::from(judged);
                for place in 0..FLOOD_FRAMES {
                    stream.compose(Kind::Flood(place), now_us, judged);
                    self.burst.extend_from_slice(&stream.media);
                }
                stream.send(Some(&self.burst), &mut self.results);
            }
            Say::Clear => {
                let (sender, at_us) = (stream.number, now_us);
                let cleared = stream.flood.take().map(|first| Cleared { sender, first, at_us });
                self.results.clears.extend(cleared);
                self.burst.extend_from_slice(&stream.clear);
                stream.send(Some(&self.burst), &mut self.results);
            }
        }
        if window.holds(now_us) {
            self.results.own_lateness.add_us((now_ns - due.at_ns) / 1000);
        }
        self.watch_writing(due.sender, true);
    }

    /// Updates epoll when a stream begins (`on`) or stops having unsent bytes, and drops a stream
    /// that has too many.
    fn watch_writing(&mut self, place: usize, on: bool) {
        let Some(stream) = &self.streams[place] else { return };
        if stream.unsent.is_empty() != on {
            let _ = self.waiting.watch_writing(&stream.socket, place as u64 + 1, on);
        }
        if stream.unsent.len() > MAX_PENDING {
            self.give_up(place, "the bridge does not read");
        }
    }

    fn give_up(&mut self, place: usize, why: &'static str) {
        self.results.broken += 1;
        self.results.why_broken = Some(why);
        self.streams[place] = None;
    }

    fn on_ready(&mut self, place: usize, window: Window, buffer: &mut [u8]) {
        let Some(stream) = &mut self.streams[place] else { return };
        if !stream.unsent.is_empty() {
            stream.flush();
            self.watch_writing(place, false);
        }
        let Some(stream) = &mut self.streams[place] else { return };
        let before = stream.inbox.len();
        buffer[..before].copy_from_slice(&stream.inbox);
        stream.inbox.clear();
        let n = match stream.socket.read(&mut buffer[before..]) {
            Ok(n @ 1..) => before + n,
            Err(why) if why.kind() == ErrorKind::WouldBlock => before,
            // the bridge closed the connection: the call is over
            Ok(0) | Err(_) => {
                self.streams[place] = None;
                return;
            }
        };
        let now_us = self.ai.shared.clock.now_us();
        match self.on_bytes(place, &mut buffer[..n], now_us, window) {
            Ok(used) => {
                if let Some(stream) = &mut self.streams[place] {
                    stream.inbox.extend_from_slice(&buffer[used..n]);
                    if stream.inbox.len() > MAX_MESSAGE {
                        self.give_up(place, "a message is longer than 60 kB");
                    }
                }
            }
            Err(why) => self.give_up(place, why),
        }
    }

    /// Handles all complete messages. Returns the number of bytes used.
    fn on_bytes(
        &mut self,
        place: usize,
        bytes: &mut [u8],
        now_us: u64,
        window: Window,
    ) -> Result<usize, &'static str> {
        let Some(stream) = &mut self.streams[place] else { return Ok(0) };
        let mut at = 0;
        if !stream.upgraded {
            let Some((answer, end)) = websocket::accept(bytes)? else { return Ok(0) };
            stream
                .socket
                .write_all(answer.as_bytes())
                .map_err(|_| "the handshake answer could not be sent")?;
            stream.upgraded = true;
            at = end;
        }
        while let Some(frame) = websocket::next_frame(bytes, at)? {
            at = frame.payload.end;
            let payload = &bytes[frame.payload];
            match frame.opcode {
                BINARY => {
                    let counting = window.holds(now_us);
                    stream.on_audio(Stamp::read(payload), now_us, counting, &mut self.results);
                }
                TEXT => {
                    let counting = window.holds(now_us);
                    stream.on_text(payload, now_us, counting, &mut self.results, &mut self.hint)?;
                }
                PING => {
                    let mut pong = Vec::new();
                    websocket::write(PONG, payload, &mut pong);
                    stream.send(Some(&pong), &mut self.results);
                }
                CLOSE => {
                    let mut close = Vec::new();
                    websocket::write(CLOSE, payload, &mut close);
                    stream.send(Some(&close), &mut self.results);
                    self.streams[place] = None;
                    return Ok(at);
                }
                _ => {}
            }
        }
        Ok(at)
    }
}

impl Stream {
    fn on_text(
        &mut self,
        text: &[u8],
        now_us: u64,
        counting: bool,
        results: &mut AiResults,
        hint: &mut usize,
    ) -> Result<(), &'static str> {
        results.messages_in += u64::from(counting);
        let Some(payload) = websocket::media_payload(text, hint) else {
            let value: Value =
                serde_json::from_slice(text).map_err(|_| "a text message is not JSON")?;
            match value["event"].as_str() {
                Some("start") => {
                    self.start(value["streamSid"].as_str().ok_or("start without streamSid")?);
                }
                Some("MEDIA_START") => self.start_raw(),
                _ => return Ok(()),
            }
            self.started_us = Some(now_us);
            self.compose(Kind::First, now_us, false);
            self.send(None, results);
            return Ok(());
        };
        let mut samples = [0; 256];
        let read = match BASE64.decode_slice(payload, &mut samples) {
            Ok(n) => Stamp::read(&samples[..n]),
            Err(_) => Read::Damaged,
        };
        self.on_audio(read, now_us, counting, results);
        Ok(())
    }

    fn on_audio(&mut self, read: Read, now_us: u64, counting: bool, results: &mut AiResults) {
        if let Some(stamp) = self.ledger.take(&mut results.tally, read, now_us, counting)
            && stamp.judged
        {
            results.tally.time(now_us.saturating_sub(stamp.sent_us));
        }
    }

    /// Prepares the stream's messages for Asterisk's chan_websocket with `f(json)`: mu-law in
    /// binary messages. Source: docs.asterisk.org, WebSocket channel.
    fn start_raw(&mut self) {
        self.raw = true;
        self.media.clear();
        websocket::write(BINARY, &[0; 160], &mut self.media);
        self.payload_at = self.media.len() - 160;
        self.clear.clear();
        websocket::write(TEXT, br#"{"command":"FLUSH_MEDIA"}"#, &mut self.clear);
    }

    /// Prepares the stream's messages for Twilio's dialect.
    fn start(&mut self, stream_sid: &str) {
        let sid = Value::from(stream_sid);
        let before = format!(r#"{{"event":"media","streamSid":{sid},"media":{{"payload":""#);
        let text = [before.as_bytes(), &[b'A'; PAYLOAD_CHARS], br#""}}"#].concat();
        self.media.clear();
        websocket::write(TEXT, &text, &mut self.media);
        self.payload_at = self.media.len() - PAYLOAD_CHARS - 3;
        let clear = format!(r#"{{"event":"clear","streamSid":{sid}}}"#);
        self.clear.clear();
        websocket::write(TEXT, clear.as_bytes(), &mut self.clear);
    }

    /// Writes the next frame into the `media` message.
    fn compose(&mut self, kind: Kind, now_us: u64, judged: bool) {
        let stamp =
            Stamp { sender: self.number, number: self.frame, sent_us: now_us, judged, kind };
        self.frame += 1;
        let mut samples = [0; 160];
        stamp.write(&mut samples);
        if self.raw {
            return self.media[self.payload_at..].copy_from_slice(&samples);
        }
        let payload = &mut self.media[self.payload_at..][..PAYLOAD_CHARS];
        let written = BASE64.encode_slice(samples, payload);
        debug_assert_eq!(written, Ok(PAYLOAD_CHARS));
    }

    /// Sends these bytes, or with `None` the `media` message. Bytes that the socket does not accept
    /// are queued in order.
    fn send(&mut self, bytes: Option<&[u8]>, results: &mut AiResults) {
        let bytes = bytes.unwrap_or(&self.media);
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return;
        }
        // an error shows up at the next read
        let sent = (&self.socket).write(bytes).unwrap_or(0);
        if sent < bytes.len() {
            results.blocked += 1;
            self.unsent.extend_from_slice(&bytes[sent..]);
        }
    }

    fn flush(&mut self) {
        if let Ok(sent) = (&self.socket).write(&self.unsent) {
            self.unsent.drain(..sent);
        }
    }
}

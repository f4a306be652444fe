//! The AI's thread: a WebSocket server for Twilio's dialect. Owns the sockets and the clock.
//!
//! A stream sends a greeting of one frame as soon as `start` arrives. After that it sends at its
//! slots in the ring, following [`speech`](crate::bench::speech).

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bench::ai_stream::Stream;
use crate::bench::figures::Times;
use crate::bench::floods::Cleared;
use crate::bench::ledger::{Arrival, Sent, Tally};
use crate::bench::schedule::{Due, Ring};
use crate::bench::shared::{Phase, Shared, Window};
use crate::bench::speech::{PIECE_FRAMES, Utterance};
use crate::bench::stamp::{Kind, Stamp};
use crate::bench::waiting::{IDLE_NS, PAUSE_NS, SENT_LATE_NS, Waiting, grain_ns};
use crate::bench::websocket::{self, BINARY, CLOSE, PING, PONG, TEXT};

/// The thread's name, by which its CPU time is looked up.
pub const THREAD: &str = "bench-ai";
/// The listener's number in epoll; a stream has its place plus one.
const LISTENER: u64 = 0;
/// Longest message accepted from a bridge, in bytes.
const MAX_MESSAGE: usize = 60_000;
/// A stream is dropped when more bytes than this are unsent because the bridge does not read.
const MAX_PENDING: usize = 1 << 20;

/// Results of this thread.
#[derive(Debug, Default)]
pub struct AiResults {
    /// Frames sent to the callers, without those of floods.
    pub sent: Sent,
    pub tally: Tally,
    /// The floods that were judged and cleared.
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

pub struct Ai {
    pub shared: Arc<Shared>,
    pub listener: TcpListener,
    /// Concurrent calls.
    pub calls: usize,
    /// How long a call lasts; `None` if all last until the end.
    pub hold_us: Option<u64>,
    /// True if the `start` message names the number of the call. With a real PBX in between, the
    /// caller's number is up to that PBX.
    pub names_caller: bool,
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
            ring: Ring::new(places, self.shared.clock.now_ns() + 7_300_000, grain_ns(self.calls)),
            streams: (0..places).map(|_| None).collect(),
            next_number: 0,
            results: AiResults::default(),
            waiting,
            burst: Vec::new(),
            hint: 0,
            after_pause: false,
            ai: self,
        };
        let (mut ready, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        let clock = server.ai.shared.clock;
        let mut round_ns = clock.now_ns();
        while server.ai.shared.phase() != Phase::Stop {
            let window = server.ai.shared.window();
            while let Some(due) = server.ring.take(clock.now_ns()) {
                server.speak(due, window);
            }
            let streams = &server.streams;
            let busy = |s: usize| streams[s].as_ref().is_some_and(|s| s.started_us.is_some());
            let idle = clock.now_ns() + IDLE_NS;
            let until = server.ring.next_ns(busy).map_or(idle, |next| next.min(idle));
            let now_ns = server.waiting.wait(clock, until, &mut ready)?;
            server.after_pause = now_ns - std::mem::replace(&mut round_ns, now_ns) > PAUSE_NS;
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
    /// True if this thread has just been held up: the times at which it reads prove nothing.
    after_pause: bool,
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
        self.streams[place] = Some(Stream::new(socket, number));
        Ok(())
    }

    /// Sends what is due on a stream at its tick.
    fn speak(&mut self, due: Due, window: Window) {
        let Some(stream) = &mut self.streams[due.sender] else { return };
        let Some(up_us) = stream.started_us else { return };
        let now_ns = self.ai.shared.clock.now_ns();
        let (due_us, late_ns) = (due.at_ns / 1000, now_ns - due.at_ns);
        let scope = window.scope(due_us, up_us, self.ai.hold_us.map(|hold| up_us + hold));
        let stamp = stream.stamp(scope, due_us, late_ns > SENT_LATE_NS);
        self.burst.clear();
        let paced = match stream.speech.advance() {
            Utterance::Nothing => return,
            Utterance::First => Some(Kind::First),
            Utterance::Paced => Some(Kind::Paced),
            Utterance::Queued => {
                self.results.sent.add_many(scope, PIECE_FRAMES.into());
                stream.compose_piece(stamp, Kind::Queued, &mut self.burst);
                None
            }
            Utterance::Flood => {
                stream.flood = stamp.is_judged().then_some((stamp.number, now_ns / 1000));
                stream.compose_piece(stamp, Kind::Flood, &mut self.burst);
                None
            }
            Utterance::Clear => {
                let (sender, at_us) = (stream.number, now_ns / 1000);
                let cleared = stream.flood.take();
                let cleared =
                    cleared.map(|(first, flood_us)| Cleared { sender, first, flood_us, at_us });
                self.results.clears.extend(cleared);
                self.burst.extend_from_slice(&stream.clear);
                None
            }
        };
        match paced {
            Some(kind) => {
                self.results.sent.add(scope);
                stream.compose(Stamp { kind, ..stamp });
                stream.send(None, &mut self.results);
            }
            None => stream.send(Some(&self.burst), &mut self.results),
        }
        if window.holds(due_us) {
            self.results.own_lateness.add_us(late_ns / 1000);
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
        let counts = window.holds(now_us);
        let up_us = stream.started_us.unwrap_or(now_us);
        let arrival = Arrival {
            now_us,
            own: stream.number,
            counts_damage: window.counts_damage(now_us, up_us),
            after_pause: self.after_pause,
        };
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
                BINARY => stream.on_audio(Stamp::read(payload), &arrival, &mut self.results),
                TEXT => {
                    self.results.messages_in += u64::from(counts);
                    let start =
                        stream.on_text(payload, &arrival, &mut self.results, &mut self.hint)?;
                    if let Some(caller) = start.filter(|_| self.ai.names_caller) {
                        stream.expect(caller);
                    }
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

//! The AI's thread: a WebSocket server for one dialect. Owns the sockets and the clock.
//!
//! A stream sends a greeting of one frame as soon as it starts. After that it sends at its slots in
//! the ring, following [`speech`](crate::bench::speech).

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustls::ServerConfig;

use crate::bench::ai_stream::Stream;
use crate::bench::delays::Delays;
use crate::bench::figures::Times;
use crate::bench::floods::Cleared;
use crate::bench::ledger::{Arrival, Sent, Tally};
use crate::bench::network::{Network, hash};
use crate::bench::schedule::{Due, Ring};
use crate::bench::shared::{Phase, Shared, Window};
use crate::bench::speech::{PIECE_FRAMES, Utterance};
use crate::bench::stamp::{Kind, Stamp};
use crate::bench::waiting::{IDLE_NS, SENT_LATE_NS, Waiting, grain_ns};
use crate::bench::websocket::{self, BINARY, CLOSE, PING, PONG, TEXT};
use crate::bench::wire::Wire;
use crate::stream::dialect::Dialect;

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
    /// Messages among them that this thread read after it had been held up.
    pub read_after_pause: u64,
    /// Number of sends that a socket did not accept completely.
    pub blocked: u64,
    /// Connections dropped because of an error.
    pub broken: u64,
    /// The last reason for dropping one.
    pub why_broken: Option<&'static str>,
}

/// How the AI behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct AiOptions {
    pub dialect: Dialect,
    /// Longest random delay of a message. Messages stay in order.
    pub jitter_ms: u32,
    /// True if every tenth AI stops reading for one second out of four.
    pub slow_reader: bool,
    /// The network between the callers and the bridge.
    pub network: Network,
    /// True if the start of a stream names the number of the call. With a real PBX in between, the
    /// caller's number is up to that PBX.
    pub names_caller: bool,
}

pub struct Ai {
    pub shared: Arc<Shared>,
    pub listener: TcpListener,
    /// Concurrent calls.
    pub calls: usize,
    /// How long a call lasts; `None` if all last until the end.
    pub hold_us: Option<u64>,
    pub options: AiOptions,
    /// Settings for wss; `None` for ws.
    pub tls: Option<Arc<ServerConfig>>,
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
        let tally = Tally::with_allowance(self.options.network.allowance_us());
        let mut server = Server {
            ring: Ring::new(places, self.shared.clock.now_ns() + 7_300_000, grain_ns(self.calls)),
            streams: (0..places).map(|_| None).collect(),
            next_number: 0,
            results: AiResults { tally, ..AiResults::default() },
            delayed: Delays::default(),
            waiting,
            burst: Vec::new(),
            hint: 0,
            ai: self,
        };
        let (mut ready, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        let clock = server.ai.shared.clock;
        while server.ai.shared.phase() != Phase::Stop {
            let window = server.ai.shared.window();
            while let Some(due) = server.ring.take(clock.now_ns()) {
                server.tick(due, window);
            }
            while let Some(due) = server.take_delayed(clock.now_ns()) {
                server.speak(due, window);
            }
            let streams = &server.streams;
            let busy = |s: usize| streams[s].as_ref().is_some_and(|s| s.started_us.is_some());
            let idle = clock.now_ns() + IDLE_NS;
            let nexts = [server.ring.next_ns(busy), server.delayed.next_ns()];
            let until = nexts.into_iter().flatten().fold(idle, u64::min);
            server.waiting.wait(clock, until, &mut ready)?;
            for number in &ready {
                match number {
                    &LISTENER => server.accept()?,
                    number => server.on_ready((number - 1) as usize, window, &mut buffer),
                }
            }
        }
        (0..places).for_each(|place| server.close(place));
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
    /// Ticks whose messages are delayed: the place of the stream, and its number.
    delayed: Delays<(usize, u32)>,
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
        let wire = Wire::new(socket, self.ai.tls.as_ref())?;
        let Some(place) = self.streams.iter().position(Option::is_none) else {
            self.results.broken += 1;
            self.results.why_broken = Some("more connections than places for calls");
            return Ok(());
        };
        self.waiting.watch(&wire, place as u64 + 1)?;
        let number = self.next_number;
        self.next_number += 1;
        self.ai.shared.streams.fetch_add(1, Ordering::Relaxed);
        self.streams[place] = Some(Stream::new(wire, number, &self.ai.options));
        Ok(())
    }

    /// Sends what is due on a stream at its tick, or puts it off.
    fn tick(&mut self, due: Due, window: Window) {
        let Some(stream) = &mut self.streams[due.sender] else { return };
        let reads = stream.should_read(due.at_ns / 1000);
        if std::mem::replace(&mut stream.reads, reads) != reads {
            self.watch(due.sender);
        }
        let jitter_ns = u64::from(self.ai.options.jitter_ms) * 1_000_000;
        let Some(stream) = &mut self.streams[due.sender] else { return };
        if jitter_ns == 0 || stream.started_us.is_none() {
            return self.speak(due, window);
        }
        let delay_ns = hash(stream.number, due.at_ns) % jitter_ns;
        stream.last_send_ns = stream.last_send_ns.max(due.at_ns + delay_ns);
        self.delayed.push(stream.last_send_ns, (due.sender, stream.number));
    }

    /// Takes a delayed tick that is due now.
    fn take_delayed(&mut self, now_ns: u64) -> Option<Due> {
        while let Some((at_ns, (sender, number))) = self.delayed.take(now_ns) {
            // meanwhile, the stream may have ended
            if self.streams[sender].as_ref().is_some_and(|s| s.number == number) {
                return Some(Due { sender, at_ns });
            }
        }
        None
    }

    /// Sends what is due on a stream.
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
            Utterance::First => {
                stream.messages.begin_talkspurt(&mut self.burst);
                Some(Kind::First)
            }
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
                stream.messages.clear(&mut self.burst);
                None
            }
        };
        match paced {
            Some(kind) => {
                self.results.sent.add(scope);
                if !self.burst.is_empty() {
                    stream.send(&self.burst, &mut self.results);
                }
                stream.send_frame(Stamp { kind, ..stamp }, &mut self.results);
            }
            None => stream.send(&self.burst, &mut self.results),
        }
        if window.holds(due_us) {
            self.results.own_lateness.add_us(late_ns / 1000);
        }
        let Some(stream) = &self.streams[due.sender] else { return };
        if stream.wire.has_unsent() {
            self.watch(due.sender);
        }
    }

    /// Updates what epoll reports of a stream, and drops a stream with too many unsent bytes.
    fn watch(&mut self, place: usize) {
        let Some(stream) = &self.streams[place] else { return };
        let writing = stream.wire.has_unsent();
        let _ = self.waiting.watch_for(&stream.wire, place as u64 + 1, stream.reads, writing);
        if stream.wire.unsent_bytes() > MAX_PENDING {
            self.give_up(place, "the bridge does not read");
        }
    }

    fn give_up(&mut self, place: usize, why: &'static str) {
        self.results.broken += 1;
        self.results.why_broken = Some(why);
        self.close(place);
    }

    fn close(&mut self, place: usize) {
        if let Some(mut stream) = self.streams[place].take() {
            stream.finish(&mut self.results);
        }
    }

    fn on_ready(&mut self, place: usize, window: Window, buffer: &mut [u8]) {
        let Some(stream) = &mut self.streams[place] else { return };
        if stream.wire.has_unsent() {
            stream.wire.flush();
            self.watch(place);
        }
        while let Some(stream) = &mut self.streams[place]
            && stream.reads
        {
            let before = stream.inbox.len();
            buffer[..before].copy_from_slice(&stream.inbox);
            let n = match stream.wire.read(&mut buffer[before..]) {
                Ok(n @ 1..) => before + n,
                Err(why) if why.kind() == ErrorKind::WouldBlock => return,
                // the bridge closed the connection: the call is over
                Ok(0) | Err(_) => return self.close(place),
            };
            stream.inbox.clear();
            // epoll reports what a plain socket leaves behind, but not what TLS has
            let plain = stream.wire.is_plain();
            let now_us = self.ai.shared.clock.now_us();
            match self.on_bytes(place, &mut buffer[..n], now_us, window) {
                Ok(used) => self.keep(place, &buffer[used..n]),
                Err(why) => self.give_up(place, why),
            }
            if plain {
                return;
            }
        }
    }

    /// Keeps the beginning of an incomplete message.
    fn keep(&mut self, place: usize, rest: &[u8]) {
        let Some(stream) = &mut self.streams[place] else { return };
        stream.inbox.extend_from_slice(rest);
        if stream.inbox.len() > MAX_MESSAGE {
            self.give_up(place, "a message is longer than 60 kB");
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
            after_pause: self.waiting.was_held_up,
        };
        let mut at = 0;
        if !stream.upgraded {
            let Some((answer, end)) = websocket::accept(bytes)? else { return Ok(0) };
            stream.upgrade(&answer, &mut self.results);
            at = end;
        }
        while let Some(frame) = websocket::next_frame(bytes, at)? {
            at = frame.payload.end;
            let payload = &bytes[frame.payload];
            match frame.opcode {
                BINARY => stream.on_binary(payload, &arrival, &mut self.results),
                TEXT => {
                    self.results.messages_in += u64::from(counts);
                    self.results.read_after_pause += u64::from(counts && arrival.after_pause);
                    let start =
                        stream.on_text(payload, &arrival, &mut self.results, &mut self.hint)?;
                    if let Some(caller) = start.filter(|_| self.ai.options.names_caller) {
                        stream.expect(caller);
                    }
                }
                PING => {
                    let mut pong = Vec::new();
                    websocket::write(PONG, payload, &mut pong);
                    stream.send(&pong, &mut self.results);
                }
                CLOSE => {
                    let mut close = Vec::new();
                    websocket::write(CLOSE, payload, &mut close);
                    stream.send(&close, &mut self.results);
                    self.close(place);
                    return Ok(at);
                }
                _ => {}
            }
        }
        Ok(at)
    }
}

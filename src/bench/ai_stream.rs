//! One connection from the bridge to the AI: the messages in both directions.

use crate::bench::ai::{AiOptions, AiResults};
use crate::bench::dialect::Messages;
use crate::bench::ledger::{Arrival, Ledger};
use crate::bench::speech::{PIECE_FRAMES, Speech};
use crate::bench::stamp::{Kind, Read, Scope, Stamp};
use crate::bench::websocket::{self, TEXT};
use crate::bench::wire::Wire;
use crate::media::frame::FRAME_SAMPLES;

const FRAME_US: u64 = 20_000;
/// With slow readers, every tenth stream is one …
const SLOW_EACH: u32 = 10;
/// … and does not read in one second out of four.
const SLOW_PHASE_US: u64 = 1_000_000;
const SLOW_PHASES: u64 = 4;

/// One connection from the bridge.
pub struct Stream {
    pub wire: Wire,
    /// The stream's number in its stamps.
    pub number: u32,
    /// True once the WebSocket handshake has been answered.
    pub upgraded: bool,
    /// Time of the start message, or of the caller's first audio in dialects without one.
    pub started_us: Option<u64>,
    /// The beginning of an incomplete message.
    pub inbox: Vec<u8>,
    pub messages: Messages,
    pub speech: Speech,
    /// Number of the next frame to send.
    frame: u32,
    /// First frame of the last flood and the time at which it was sent, if it was judged and has
    /// not been cleared.
    pub flood: Option<(u32, u64)>,
    /// Account of the frames received.
    ledger: Ledger,
    /// True if this AI stops reading from time to time.
    is_slow: bool,
    /// True if it reads now.
    pub reads: bool,
    /// Time at which the last delayed message is sent; the next one is not sent before it.
    pub last_send_ns: u64,
}

impl Stream {
    pub fn new(wire: Wire, number: u32, options: &AiOptions) -> Stream {
        Stream {
            wire,
            number,
            upgraded: false,
            started_us: None,
            inbox: Vec::new(),
            messages: Messages::new(options.dialect),
            speech: Speech::new(number),
            frame: 0,
            flood: None,
            ledger: Ledger::behind(options.network),
            is_slow: options.slow_reader && number.is_multiple_of(SLOW_EACH),
            reads: true,
            last_send_ns: 0,
        }
    }

    /// Makes audio of any caller but this one count as that of another call.
    pub fn expect(&mut self, caller: u32) {
        self.ledger.expect(caller);
    }

    /// Handles a text message. Returns the caller's number if the message names it.
    ///
    /// # Errors
    /// Returns an error if the message is not one that a bridge sends, or if the stream cannot be
    /// measured.
    pub fn on_text(
        &mut self,
        text: &[u8],
        arrival: &Arrival,
        results: &mut AiResults,
        hint: &mut usize,
    ) -> Result<Option<u32>, &'static str> {
        if let Some(read) = self.messages.audio_of_text(text, hint) {
            self.on_audio(read, arrival, results);
            return Ok(None);
        }
        let said = self.messages.read(text)?;
        if let Some(reply) = said.reply {
            self.say(&reply, results);
        }
        if said.starts && self.started_us.is_none() {
            self.start(arrival.now_us, results);
        }
        Ok(said.caller)
    }

    /// Handles a binary message.
    pub fn on_binary(&mut self, payload: &[u8], arrival: &Arrival, results: &mut AiResults) {
        let read = self.messages.read_audio(payload);
        self.on_audio(read, arrival, results);
    }

    /// Answers the handshake of the WebSocket.
    pub fn upgrade(&mut self, answer: &str, results: &mut AiResults) {
        self.send(answer.as_bytes(), results);
        self.upgraded = true;
        if let Some(hello) = self.messages.hello() {
            self.say(hello, results);
        }
    }

    /// Begins to speak, with a greeting.
    fn start(&mut self, now_us: u64, results: &mut AiResults) {
        self.started_us = Some(now_us);
        let greeting = self.stamp(Scope::FirstSecond, now_us, false);
        let mut out = Vec::new();
        self.messages.begin_talkspurt(&mut out);
        self.compose(Stamp { kind: Kind::First, ..greeting }, &mut out);
        results.sent.add(Scope::FirstSecond);
        self.send(&out, results);
    }

    /// Ends the account of the stream.
    pub fn finish(&mut self, results: &mut AiResults) {
        self.ledger.finish(&mut results.tally);
    }

    /// True if this AI should read at this time.
    pub fn should_read(&self, now_us: u64) -> bool {
        !self.is_slow
            || self.started_us.is_none()
            || !(now_us / SLOW_PHASE_US).is_multiple_of(SLOW_PHASES)
    }

    fn on_audio(&mut self, read: Read, arrival: &Arrival, results: &mut AiResults) {
        if self.started_us.is_none() && self.messages.starts_with_audio() {
            self.start(arrival.now_us, results);
        }
        if self.is_slow {
            // its audio has to arrive, at whatever time
            self.ledger.take(&mut results.tally, read, arrival);
        } else if let Some(stamp) = self.ledger.take(&mut results.tally, read, arrival)
            && stamp.scope == Scope::Measured
        {
            results.tally.judge_lateness(&stamp, arrival);
            results.tally.latency.add_us(arrival.latency_us(&stamp));
        }
    }

    /// Returns the stamp of the next frame.
    pub fn stamp(&self, scope: Scope, due_us: u64, sent_late: bool) -> Stamp {
        Stamp {
            sender: self.number,
            hears: self.ledger.sender(),
            number: self.frame,
            due_us,
            scope,
            sent_late,
            kind: Kind::Paced,
        }
    }

    /// Sends the next frame.
    pub fn send_frame(&mut self, stamp: Stamp, results: &mut AiResults) {
        self.frame += 1;
        let mut samples = [0; FRAME_SAMPLES];
        stamp.write(&mut samples);
        let whole = self.wire.send(self.messages.media(&samples));
        results.blocked += u64::from(!whole);
    }

    /// Appends the message with the next frame.
    pub fn compose(&mut self, stamp: Stamp, out: &mut Vec<u8>) {
        self.frame += 1;
        let mut samples = [0; FRAME_SAMPLES];
        stamp.write(&mut samples);
        out.extend_from_slice(self.messages.media(&samples));
    }

    /// Appends the messages of a piece of audio that begins with `first`. Each frame is due 20 ms
    /// after the one before.
    pub fn compose_piece(&mut self, first: Stamp, kind: fn(u8) -> Kind, out: &mut Vec<u8>) {
        for place in 0..PIECE_FRAMES {
            let due_us = first.due_us + u64::from(place) * FRAME_US;
            self.compose(Stamp { number: self.frame, due_us, kind: kind(place), ..first }, out);
        }
    }

    /// Sends a text message.
    fn say(&mut self, text: &str, results: &mut AiResults) {
        let mut message = Vec::new();
        websocket::write(TEXT, text.as_bytes(), &mut message);
        self.send(&message, results);
    }

    pub fn send(&mut self, bytes: &[u8], results: &mut AiResults) {
        let whole = self.wire.send(bytes);
        results.blocked += u64::from(!whole);
    }
}

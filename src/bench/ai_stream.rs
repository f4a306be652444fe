//! One connection from the bridge to the AI: the messages in both directions.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::bench::ai::{AiOptions, AiResults};
use crate::bench::ledger::{Arrival, Ledger};
use crate::bench::speech::{PIECE_FRAMES, Speech};
use crate::bench::stamp::{Kind, Read, Scope, Stamp};
use crate::bench::websocket::{self, BINARY, TEXT};
use crate::bench::wire::Wire;

/// Length of a frame in base64.
const PAYLOAD_CHARS: usize = 216;
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
    /// Time of the start message.
    pub started_us: Option<u64>,
    /// The beginning of an incomplete message.
    pub inbox: Vec<u8>,
    /// A complete `media` message; its payload is replaced for each frame.
    media: Vec<u8>,
    /// A complete `clear` message.
    pub clear: Vec<u8>,
    /// Offset of the payload in `media`.
    payload_at: usize,
    /// True if audio is mu-law in binary messages, false if it is base64 in JSON.
    raw: bool,
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
            media: Vec::new(),
            clear: Vec::new(),
            payload_at: 0,
            raw: false,
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
    /// Returns an error if the message is not one that a bridge sends.
    pub fn on_text(
        &mut self,
        text: &[u8],
        arrival: &Arrival,
        results: &mut AiResults,
        hint: &mut usize,
    ) -> Result<Option<u32>, &'static str> {
        let Some(payload) = websocket::media_payload(text, hint) else {
            let value: Value =
                serde_json::from_slice(text).map_err(|_| "a text message is not JSON")?;
            match value["event"].as_str() {
                Some("start") => {
                    self.start(value["streamSid"].as_str().ok_or("start without streamSid")?);
                }
                Some("MEDIA_START") => self.start_raw(),
                _ => return Ok(None),
            }
            self.started_us = Some(arrival.now_us);
            let greeting = self.stamp(Scope::FirstSecond, arrival.now_us, false);
            self.compose(Stamp { kind: Kind::First, ..greeting });
            results.sent.add(Scope::FirstSecond);
            self.send(None, results);
            let caller = value["start"]["customParameters"]["from_number"].as_str();
            return Ok(caller.and_then(|number| number.parse().ok()));
        };
        let mut samples = [0; 256];
        let read = match BASE64.decode_slice(payload, &mut samples) {
            Ok(n) => Stamp::read(&samples[..n]),
            Err(_) => Read::Damaged,
        };
        self.on_audio(read, arrival, results);
        Ok(None)
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

    pub fn on_audio(&mut self, read: Read, arrival: &Arrival, results: &mut AiResults) {
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

    /// Writes the next frame into the `media` message.
    pub fn compose(&mut self, stamp: Stamp) {
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

    /// Appends the messages of a piece of audio that begins with `first`. Each frame is due 20 ms
    /// after the one before.
    pub fn compose_piece(&mut self, first: Stamp, kind: fn(u8) -> Kind, out: &mut Vec<u8>) {
        for place in 0..PIECE_FRAMES {
            let due_us = first.due_us + u64::from(place) * FRAME_US;
            self.compose(Stamp { number: self.frame, due_us, kind: kind(place), ..first });
            out.extend_from_slice(&self.media);
        }
    }

    /// Sends these bytes, or with `None` the `media` message.
    pub fn send(&mut self, bytes: Option<&[u8]>, results: &mut AiResults) {
        let whole = self.wire.send(bytes.unwrap_or(&self.media));
        results.blocked += u64::from(!whole);
    }
}

//! One stream's WebSocket: a bounded queue of ours before the sink, so that a slow AI never holds
//! up what plays audio. Nothing here waits: [`AiSocket::pump`] sends what the kernel takes,
//! [`AiSocket::read`] reads what is there. Owns I/O.
//!
//! Text messages of one frame, which is all that streams consist of, are written and read here, in
//! memory that all streams of a worker share; anything else, and the ends, are the WebSocket
//! library's.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::stream::connect::{MAX_MESSAGE_BYTES, Socket};
use crate::stream::dialect::Codec;
use crate::stream::frames::{self, Frames, Next};
use crate::stream::{FromAi, ToAi};

/// Audio that waits for a slow AI: 1 s; then the oldest is dropped.
const MAX_AUDIO: usize = 50;
/// Marks and key presses that wait.
const MAX_CONTROL: usize = 20_000;
/// An AI that has taken nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(5);
/// How long the farewell may take.
pub const FAREWELL: Duration = Duration::from_secs(2);
/// Bytes given to the kernel at once, and a message: what it does not take can no more be dropped.
const CHUNK_BYTES: usize = 2 * 1024;
/// A longer message leaves no buffer of its size behind.
const KEPT_BYTES: usize = 16 * 1024;
/// Bytes read at once.
const INPUT_BYTES: usize = 16 * 1024;

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// A close frame: 1000, 1001 or without a code.
    Orderly(String),
    /// Reset, end of file, or a close frame that tells of a failure.
    Failed(String),
    /// What came is not WebSocket.
    Protocol(String),
    /// Nothing of ours was taken for 5 s.
    Stalled,
}

/// Why [`AiSocket::read`] has stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing more is there now.
    Empty,
    /// More is there, for another turn.
    Turn,
    /// The end. What was asked for before it may still be answered, up to
    /// [`AiSocket::answer_close`].
    Closed(Closed),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames of 20 ms that a slow AI did not get.
    pub dropped_audio: u64,
    pub dropped_control: u64,
    /// Messages that were not understood.
    pub ignored: u64,
}

/// Memory for what is written and what is read, the same for many streams: it stays in the
/// processor's cache, which that of a thousand streams does not. Nothing stays in it between two
/// looks at a stream.
pub struct Scratch {
    text: BytesMut,
    /// Frames that go out with the next [`AiSocket::pump`].
    frames: Vec<u8>,
    input: Box<[u8]>,
    audio: Vec<u8>,
    masks: [u8; 256],
    masks_left: usize,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            text: BytesMut::new(),
            frames: Vec::new(),
            input: vec![0; INPUT_BYTES].into(),
            audio: Vec::new(),
            masks: [0; 256],
            masks_left: 0,
        }
    }
}

impl Scratch {
    /// A mask that nobody can foresee (RFC 6455 §10.3), so that no proxy on the way can be fooled.
    fn mask(&mut self) -> [u8; 4] {
        if self.masks_left < 4 {
            // without new ones the old ones must do: they are no secret from the AI
            let _ = getrandom::fill(&mut self.masks);
            self.masks_left = self.masks.len();
        }
        self.masks_left -= 4;
        *self.masks[self.masks_left..].first_chunk().unwrap_or(&[0; 4])
    }

    fn write(&mut self, text: &[u8]) {
        let mask = self.mask();
        frames::write_text(text, mask, &mut self.frames);
    }
}

pub struct AiSocket {
    socket: Socket,
    frames: Frames,
    /// Received, and not looked at yet: part of a frame, or what another turn has left.
    held: Vec<u8>,
    codec: Box<dyn Codec>,
    queue: VecDeque<ToAi>,
    /// The dialect's opening messages, ahead of the queue.
    opening: VecDeque<String>,
    queued_audio: usize,
    /// More than [`MAX_AUDIO`] while a burst from before `start` is on its way.
    max_audio: usize,
    progress: Instant,
    /// The kernel does not take more for now.
    blocked: bool,
    /// Something was left behind when it did not.
    unflushed: bool,
    farewell: Farewell,
    pub counts: Counts,
}

/// How far the end of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Farewell {
    No,
    /// What is queued goes out before the close frame.
    Sending,
    /// The close frame is out, or as good as; the AI's is waited for.
    Waiting,
    Done,
}

impl AiSocket {
    pub fn new(now: Instant, mut socket: Socket, codec: Box<dyn Codec>) -> AiSocket {
        AiSocket {
            held: socket.get_mut().begin(),
            socket,
            frames: Frames::new(MAX_MESSAGE_BYTES),
            codec,
            queue: VecDeque::new(),
            opening: VecDeque::new(),
            queued_audio: 0,
            max_audio: MAX_AUDIO,
            progress: now,
            blocked: false,
            unflushed: false,
            farewell: Farewell::No,
            counts: Counts::default(),
        }
    }

    /// Sends the dialect's opening messages; `burst` frames of audio follow at once.
    pub fn start(&mut self, now: Instant, burst: usize) {
        self.opening.extend(self.codec.opening());
        self.max_audio = MAX_AUDIO.max(burst);
        self.progress = now;
    }

    /// Sends a message with the next [`AiSocket::pump`], or queues it; over the bound the oldest of
    /// its kind is dropped and counted.
    pub fn send(&mut self, now: Instant, message: ToAi, scratch: &mut Scratch) {
        let idle = self.queue.is_empty() && self.opening.is_empty() && self.is_open();
        let room = scratch.frames.len() < CHUNK_BYTES;
        if idle && room && !self.blocked && !self.unflushed {
            self.progress = now;
            return self.encode(&message, scratch);
        }
        if self.queue.is_empty() {
            self.progress = now;
        }
        let is_audio = |m: &ToAi| matches!(m, ToAi::Audio { .. });
        let audio = is_audio(&message);
        let full = match audio {
            true => self.queued_audio >= self.max_audio,
            false => self.queue.len() - self.queued_audio >= MAX_CONTROL,
        };
        if full && let Some(oldest) = self.queue.iter().position(|m| is_audio(m) == audio) {
            self.queue.remove(oldest);
            match audio {
                true => {
                    self.queued_audio -= 1;
                    self.counts.dropped_audio += 1;
                }
                false => self.counts.dropped_control += 1,
            }
        }
        self.queued_audio += usize::from(audio);
        self.queue.push_back(message);
    }

    /// When an AI that takes nothing is to be given up ([`Closed::Stalled`]), unless it takes
    /// something.
    pub fn stalls_at(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then(|| self.progress + STALLED)
    }

    /// The kernel is to say when it takes more.
    pub fn wants_write(&self) -> bool {
        self.blocked
    }

    /// The kernel says that there is something to read, and perhaps that nothing more will come.
    pub fn readable(&mut self, ending: bool) {
        self.socket.get_mut().readable(ending);
    }

    /// The kernel takes more.
    pub fn writable(&mut self) {
        self.blocked = false;
    }

    /// Reads messages, at most `limit` of them, and gives each to `each`.
    pub fn read(
        &mut self,
        scratch: &mut Scratch,
        limit: usize,
        each: &mut dyn FnMut(FromAi<'_>),
    ) -> Stop {
        let mut left = limit;
        let Scratch { input, audio, .. } = scratch;
        // an answer of minutes in one message is rare, and its memory is not kept
        if audio.capacity() > KEPT_BYTES {
            *audio = Vec::new();
        }
        loop {
            if !self.held.is_empty() {
                let mut held = std::mem::take(&mut self.held);
                let (taken, stop) = self.take(&held, &mut left, audio, each);
                if taken < held.len() {
                    held.drain(..taken);
                    self.held = held;
                }
                if let Some(stop) = stop {
                    return stop;
                }
            }
            if self.socket.get_ref().is_handed_over() {
                return self.read_library(&mut left, audio, each);
            }
            match self.socket.get_mut().receive(input) {
                // the library is to see the end
                Ok(0) => self.socket.get_mut().hand_over(&[]),
                Ok(n) if self.held.is_empty() => {
                    let (taken, stop) = self.take(&input[..n], &mut left, audio, each);
                    self.held.extend_from_slice(&input[taken..n]);
                    if let Some(stop) = stop {
                        return stop;
                    }
                }
                Ok(n) => self.held.extend_from_slice(&input[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.pause(),
                Err(error) => return Stop::Closed(closed(&tungstenite::Error::Io(error))),
            }
        }
    }

    /// There was more to read than one turn takes.
    pub fn is_starved(&self) -> bool {
        self.socket.get_ref().starved()
    }

    /// Nothing can be read now.
    fn pause(&self) -> Stop {
        if self.is_starved() { Stop::Turn } else { Stop::Empty }
    }

    /// Takes the whole frames that `bytes` begins with; how many bytes that were, and why no more.
    fn take(
        &mut self,
        bytes: &[u8],
        left: &mut usize,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) -> (usize, Option<Stop>) {
        let mut at = 0;
        while *left > 0 {
            let rest = &bytes[at..];
            let taken = match self.frames.next(rest) {
                Next::Text { payload, taken } => match str::from_utf8(payload) {
                    Ok(text) => {
                        *left -= 1;
                        self.on_text(text, audio, each);
                        at += taken;
                        continue;
                    }
                    Err(_) => taken,
                },
                Next::Frame { taken } => taken,
                Next::Partial => return (at, None),
                Next::Bad => {
                    self.socket.get_mut().hand_over(rest);
                    return (bytes.len(), None);
                }
            };
            at += taken;
            self.socket.get_mut().give(&rest[..taken]);
            let mut frame = usize::MAX; // one, and nothing behind it
            if let stop @ Stop::Closed(_) = self.read_library(&mut frame, audio, each) {
                return (at, Some(stop));
            }
            *left -= 1;
        }
        (at, (at < bytes.len()).then_some(Stop::Turn))
    }

    /// What the library has read.
    fn read_library(
        &mut self,
        left: &mut usize,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) -> Stop {
        while *left > 0 {
            *left -= 1;
            match self.socket.read() {
                Ok(Message::Text(text)) => self.on_text(&text, audio, each),
                Ok(Message::Binary(_)) => {
                    self.counts.ignored += 1;
                    each(FromAi::Ignored("a binary message"));
                }
                Ok(Message::Close(frame)) => return Stop::Closed(close_kind(frame.as_ref())),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    let _ = self.flush();
                }
                Err(error) if would_block(&error) => return self.pause(),
                Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                    return Stop::Closed(Closed::Failed("end of stream".into()));
                }
                Err(error) => return Stop::Closed(closed(&error)),
            }
        }
        Stop::Turn
    }

    fn on_text(&mut self, text: &str, audio: &mut Vec<u8>, each: &mut dyn FnMut(FromAi<'_>)) {
        let message = self.codec.decode(text, audio);
        self.counts.ignored += u64::from(matches!(message, FromAi::Ignored(_)));
        each(message);
    }

    /// Answers the AI's close frame, if there was one; nothing goes out behind that.
    pub fn answer_close(&mut self) {
        let _ = self.flush();
        self.give_up();
    }

    /// Nothing more can be said.
    fn give_up(&mut self) {
        self.queue.clear();
        self.opening.clear();
        self.queued_audio = 0;
        self.farewell = self.farewell.max(Farewell::Waiting);
    }

    fn is_open(&self) -> bool {
        self.farewell < Farewell::Waiting
    }

    /// Sends what is queued, as far as the kernel takes it.
    ///
    /// # Errors
    /// How the stream has ended.
    pub fn pump(&mut self, now: Instant, scratch: &mut Scratch) -> Result<(), Closed> {
        let pumped = self.try_pump(now, scratch).map_err(|error| closed(&error));
        scratch.frames.clear();
        pumped
    }

    fn try_pump(&mut self, now: Instant, scratch: &mut Scratch) -> Result<(), tungstenite::Error> {
        if self.blocked {
            return Ok(());
        }
        // first what is older
        if self.unflushed {
            self.flush()?;
            // the answer to the AI's close frame may have been in it
            if !self.socket.can_write() {
                self.give_up();
                scratch.frames.clear();
            }
        }
        while self.is_open() && !self.blocked {
            while scratch.frames.len() < CHUNK_BYTES {
                if let Some(text) = self.opening.pop_front() {
                    scratch.write(text.as_bytes());
                } else if let Some(message) = self.queue.pop_front() {
                    self.queued_audio -= usize::from(matches!(message, ToAi::Audio { .. }));
                    self.encode(&message, scratch);
                } else {
                    self.queue.clear(); // its first place again, which is in the cache
                    break;
                }
                self.progress = now;
            }
            if scratch.frames.is_empty() {
                break;
            }
            let sent = self.socket.get_mut().send(&scratch.frames);
            scratch.frames.clear();
            if !sent? {
                self.block();
            }
        }
        if self.queued_audio <= MAX_AUDIO {
            self.max_audio = MAX_AUDIO;
        }
        if self.farewell != Farewell::No { self.flush() } else { Ok(()) }
    }

    /// Appends the frame of a message.
    fn encode(&mut self, message: &ToAi, scratch: &mut Scratch) {
        let mut text = std::mem::take(&mut scratch.text);
        text.clear();
        self.codec.encode(message, &mut text);
        scratch.write(&text);
        scratch.text = text;
    }

    fn block(&mut self) {
        (self.blocked, self.unflushed) = (true, true);
    }

    fn flush(&mut self) -> Result<(), tungstenite::Error> {
        match self.socket.flush() {
            Err(error) if would_block(&error) => self.block(),
            other => {
                other?;
                (self.blocked, self.unflushed) = (false, false);
            }
        }
        Ok(())
    }

    /// From now on it goes to its end: what is queued, a close frame (1000), the AI's.
    pub fn bid_farewell(&mut self) {
        // one that has closed takes nothing more
        self.farewell = self.farewell.max(Farewell::Sending);
        let held = std::mem::take(&mut self.held);
        self.socket.get_mut().hand_over(&held);
    }

    /// Goes on with the farewell; true when nothing is left to do.
    pub fn farewell(&mut self, now: Instant, scratch: &mut Scratch) -> bool {
        if self.try_pump(now, scratch).is_err() {
            // an AI that has closed takes nothing more, but may have something on the way
            self.queue.clear();
            self.opening.clear();
        }
        scratch.frames.clear();
        if self.farewell == Farewell::Sending
            && self.queue.is_empty()
            && self.opening.is_empty()
            && !self.blocked
        {
            self.farewell = Farewell::Waiting;
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            match self.socket.close(Some(frame)) {
                Err(error) if would_block(&error) => self.block(),
                // the AI has closed first, and its close frame has been answered
                _ => {}
            }
        }
        while matches!(self.farewell, Farewell::Sending | Farewell::Waiting) {
            match self.socket.read() {
                Ok(Message::Close(_)) => self.answer_close(),
                // a pong may be owed
                Ok(_) => drop(self.flush()),
                Err(error) if would_block(&error) => break,
                Err(_) => self.farewell = Farewell::Done,
            }
        }
        self.farewell == Farewell::Done
    }
}

impl AsFd for AiSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn would_block(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(why) if why.kind() == io::ErrorKind::WouldBlock)
}

fn close_kind(frame: Option<&CloseFrame>) -> Closed {
    let Some(frame) = frame else { return Closed::Orderly("close frame without a code".into()) };
    let text = format!("close frame {}", u16::from(frame.code));
    match frame.code {
        CloseCode::Normal | CloseCode::Away | CloseCode::Status => Closed::Orderly(text),
        _ => Closed::Failed(text),
    }
}

fn closed(error: &tungstenite::Error) -> Closed {
    use tungstenite::Error as E;
    use tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    match error {
        E::ConnectionClosed | E::AlreadyClosed => Closed::Orderly("closed".into()),
        // the kernel has found out first that nothing is taken (TCP_USER_TIMEOUT)
        E::Io(why) if why.kind() == io::ErrorKind::TimedOut => Closed::Stalled,
        E::Io(_) | E::Protocol(ResetWithoutClosingHandshake) => Closed::Failed(error.to_string()),
        _ => Closed::Protocol(error.to_string()),
    }
}

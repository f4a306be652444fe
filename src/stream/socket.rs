//! One stream's WebSocket: a bounded queue of ours before the sink, so that a slow AI never holds
//! up what plays audio. Nothing here waits: [`AiSocket::pump`] sends what the kernel takes,
//! [`AiSocket::read`] reads what is there. Owns I/O.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::stream::connect::Socket;
use crate::stream::twilio::{self, Encoder};
use crate::stream::{FromAi, StreamInfo, ToAi};

/// Audio that waits for a slow AI: 1 s; then the oldest is dropped.
const MAX_AUDIO: usize = 50;
/// Marks and key presses that wait.
const MAX_CONTROL: usize = 20_000;
/// An AI that has taken nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(5);
/// How long the farewell may take.
pub const FAREWELL: Duration = Duration::from_secs(2);
/// A message of audio, and air.
const MESSAGE_BYTES: usize = 512;
/// A longer one leaves no buffer of its size behind.
const KEPT_BYTES: usize = 16 * 1024;

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

#[derive(Debug, PartialEq, Eq)]
pub enum SocketEvent<'a> {
    Message(FromAi<'a>),
    /// A ping or pong, which has been seen to.
    Control,
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
/// processor's cache, which that of a thousand streams does not.
#[derive(Debug, Default)]
pub struct Scratch {
    text: BytesMut,
    audio: Vec<u8>,
}

pub struct AiSocket {
    socket: Socket,
    encoder: Encoder,
    queue: VecDeque<ToAi>,
    /// `connected` and `start`, ahead of the queue.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    No,
    /// What is queued goes out before the close frame.
    Sending,
    /// The close frame is out, or as good as; the AI's is waited for.
    Waiting,
    Done,
}

impl AiSocket {
    pub fn new(now: Instant, socket: Socket, info: StreamInfo) -> AiSocket {
        AiSocket {
            socket,
            encoder: Encoder::new(info),
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

    /// `connected` and `start`, back to back; `burst` frames of audio follow at once.
    pub fn start(&mut self, now: Instant, burst: usize) {
        self.opening.push_back(twilio::CONNECTED.to_owned());
        let start = self.encoder.start();
        self.opening.push_back(start);
        self.max_audio = MAX_AUDIO.max(burst);
        self.progress = now;
    }

    /// Queues a message; over the bound the oldest of its kind is dropped and counted.
    pub fn send(&mut self, now: Instant, message: ToAi) {
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

    /// There was more to read than one turn takes.
    pub fn starved(&self) -> bool {
        self.socket.get_ref().starved()
    }

    /// The next message, or the end; `None` when nothing more is there now, or for this turn.
    pub fn read<'a>(&mut self, scratch: &'a mut Scratch) -> Option<SocketEvent<'a>> {
        let message = match self.socket.read() {
            Ok(message) => message,
            Err(error) if would_block(&error) => return None,
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                return Some(SocketEvent::Closed(Closed::Failed("end of stream".into())));
            }
            Err(error) => return Some(SocketEvent::Closed(closed(&error))),
        };
        let from_ai = match message {
            Message::Text(text) => {
                // an answer of minutes in one message is rare, and its memory is not kept
                if scratch.audio.capacity() > KEPT_BYTES {
                    scratch.audio = Vec::new();
                }
                let sid = &self.encoder.info().stream_sid;
                twilio::decode(&text, sid, &mut scratch.audio)
            }
            Message::Binary(_) => FromAi::Ignored("a binary message"),
            Message::Close(frame) => {
                // the answer to the close frame goes out with the next flush
                let _ = self.flush();
                return Some(SocketEvent::Closed(close_kind(frame.as_ref())));
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                let _ = self.flush();
                return Some(SocketEvent::Control);
            }
        };
        if matches!(from_ai, FromAi::Ignored(_)) {
            self.counts.ignored += 1;
        }
        Some(SocketEvent::Message(from_ai))
    }

    /// Sends what is queued, as far as the kernel takes it.
    ///
    /// # Errors
    /// How the stream has ended.
    pub fn pump(&mut self, now: Instant, scratch: &mut Scratch) -> Result<(), Closed> {
        self.try_pump(now, scratch).map_err(|error| closed(&error))
    }

    fn try_pump(&mut self, now: Instant, scratch: &mut Scratch) -> Result<(), tungstenite::Error> {
        if self.blocked {
            return Ok(());
        }
        // first what is older
        if self.unflushed {
            self.flush()?;
        }
        let mut sent = false;
        while !self.blocked && (!self.queue.is_empty() || !self.opening.is_empty()) {
            let text = match self.opening.pop_front() {
                Some(text) => text.into(),
                None => {
                    let Some(message) = self.queue.pop_front() else { break };
                    self.queued_audio -= usize::from(matches!(message, ToAi::Audio { .. }));
                    scratch.text.clear();
                    scratch.text.reserve(MESSAGE_BYTES);
                    self.encoder.encode(&message, &mut scratch.text);
                    let text = Utf8Bytes::try_from(scratch.text.split().freeze());
                    text.expect("the encoder writes UTF-8")
                }
            };
            match self.socket.write(Message::Text(text)) {
                // it is in the socket's own buffer, and goes on with the next flush
                Err(error) if would_block(&error) => self.block(),
                other => other?,
            }
            self.progress = now;
            sent = true;
        }
        if self.queue.is_empty() {
            self.queue.clear(); // its first place again, which is in the cache
        }
        if self.queued_audio <= MAX_AUDIO {
            self.max_audio = MAX_AUDIO;
        }
        if sent || self.farewell != Farewell::No { self.flush() } else { Ok(()) }
    }

    fn block(&mut self) {
        (self.blocked, self.unflushed) = (true, true);
    }

    fn flush(&mut self) -> Result<(), tungstenite::Error> {
        match self.socket.flush() {
            Err(error) if would_block(&error) => self.block(),
            other => {
                other?;
                self.unflushed = false;
            }
        }
        Ok(())
    }

    /// From now on it goes to its end: what is queued, a close frame (1000), the AI's.
    pub fn bid_farewell(&mut self) {
        self.farewell = Farewell::Sending;
    }

    /// Goes on with the farewell; true when nothing is left to do.
    pub fn farewell(&mut self, now: Instant, scratch: &mut Scratch) -> bool {
        if self.try_pump(now, scratch).is_err() {
            // an AI that has closed takes nothing more, but may have something on the way
            self.queue.clear();
            self.opening.clear();
        }
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
                Ok(_) => {}
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

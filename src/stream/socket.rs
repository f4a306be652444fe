//! The WebSocket of one stream, behind a bounded queue, so that a slow AI never holds up playout.
//! Nothing here blocks: [`AiSocket::pump`] sends what the kernel accepts, [`AiSocket::read`] reads
//! what has arrived. Owns I/O.
//!
//! Messages in a single frame, which is all that streams consist of, are written and read here, in
//! memory shared by all streams of a worker. Anything else, and the end of the stream, is left to
//! the WebSocket library.

mod farewell;
mod sending;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::net::{SocketAddrAny, getpeername, getsockname};
use serde::de::IgnoredAny;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::Message as Library;

use crate::capture::tap::Tap;
use crate::capture::{Direction, Kind};
use crate::media::frame::FRAME_TIME;
use crate::stream::closed::{Closed, close_kind, closed};
use crate::stream::connect::{MAX_MESSAGE_BYTES, Socket};
use crate::stream::dialect::Codec;
use crate::stream::frames::{Frames, Next};
use crate::stream::liveness::{Liveness, Unfinished};
use crate::stream::queue::Queue;
use crate::stream::scratch::Scratch;
use crate::stream::{FromAi, Message, Received};

/// Give up an AI that has accepted nothing for this long.
const STALLED: Duration = Duration::from_secs(5);
/// An AI that takes longer to accept its session has failed.
const READY_WAIT: Duration = Duration::from_secs(5);
/// Pause between two messages that keep the AI's session alive before the call. Deepgram asks for
/// at most 8 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Time limit for closing a stream.
pub const FAREWELL: Duration = Duration::from_secs(2);
/// Capacity that the audio buffer may keep after a long message.
const KEPT_BYTES: usize = 16 * 1024;

/// Why [`AiSocket::read`] stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing more to read now.
    Empty,
    /// More to read in another turn.
    Turn,
    /// End of the stream. Earlier messages can still be answered until [`AiSocket::answer_close`].
    Closed(Closed),
}

/// Messages that were lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames of 20 ms dropped because the AI was too slow.
    pub dropped_audio: u64,
    /// Other messages dropped for the same reason.
    pub dropped_control: u64,
    /// Messages that were not understood.
    pub ignored: u64,
}

/// The WebSocket of one stream.
pub struct AiSocket {
    socket: Socket,
    frames: Frames,
    /// Received bytes not processed yet: part of a frame, or what the last turn did not get to.
    held: Vec<u8>,
    codec: Box<dyn Codec>,
    /// Messages waiting to be sent.
    queue: Queue,
    /// When a message last left the queue, or the queue was last empty.
    progress: Instant,
    liveness: Liveness,
    unfinished: Unfinished,
    /// True if a ping is to be sent.
    ping_waits: bool,
    /// True while the kernel accepts no more data.
    blocked: bool,
    /// True if data from before that is still to be flushed.
    unflushed: bool,
    farewell: Farewell,
    /// True if the AI asked for the end of the stream in a message, not with a close frame.
    asked_to_close: bool,
    /// When its session was last kept alive; `None` once the stream has started.
    kept_alive: Option<Instant>,
    /// When the AI has to be ready for the call, until it is.
    ready_by: Option<Instant>,
    /// Messages that were not understood.
    ignored: u64,
    /// Copies messages to a capture, while there is one; with our address and the AI's.
    tap: Option<(Tap, (SocketAddr, SocketAddr))>,
}

/// How far the stream has been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Farewell {
    No,
    /// Sending the queue, before our close frame.
    Sending,
    /// Waiting for the AI's close frame: ours has been sent, or nothing more can be sent.
    Waiting,
    Done,
}

impl AiSocket {
    /// `ping`: send a ping after this long without received data; zero = never.
    pub fn new(
        now: Instant,
        mut socket: Socket,
        mut codec: Box<dyn Codec>,
        ping: Duration,
    ) -> AiSocket {
        let mut queue = Queue::default();
        codec.hello().into_iter().for_each(|message| queue.push_own(message));
        AiSocket {
            held: socket.get_mut().begin(),
            socket,
            frames: Frames::new(MAX_MESSAGE_BYTES),
            kept_alive: Some(now),
            ready_by: (!codec.is_ready()).then(|| now + READY_WAIT),
            codec,
            queue,
            progress: now,
            liveness: Liveness::new(now, ping),
            unfinished: Unfinished::default(),
            ping_waits: false,
            blocked: false,
            unflushed: false,
            farewell: Farewell::No,
            asked_to_close: false,
            ignored: 0,
            tap: None,
        }
    }

    /// Gives the AI less time to accept its session, because the caller already waits for it.
    pub fn be_ready_by(&mut self, at: Instant) {
        self.ready_by = self.ready_by.map(|by| by.min(at));
    }

    pub fn counts(&self) -> Counts {
        Counts {
            dropped_audio: self.queue.dropped_audio,
            dropped_control: self.queue.dropped_control,
            ignored: self.ignored,
        }
    }

    /// Copies all further messages to a capture.
    pub fn capture(&mut self, tap: Tap) {
        let address = |found: Option<SocketAddrAny>| {
            let known = found.and_then(|address| SocketAddr::try_from(address).ok());
            known.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into())
        };
        let peer = getpeername(&*self).ok().flatten();
        let between = (address(getsockname(&*self).ok()), address(peer));
        self.tap = Some((tap, between));
    }

    /// Copies a message to the capture. Binary ones become JSON there, unless they already are.
    fn tap_message(&mut self, direction: Direction, message: Received<'_>) {
        let tap = self.tap.take();
        self.tap = tap.filter(|(tap, between)| {
            let add = |text: &[u8]| tap.message(Kind::Ai, direction, *between, text);
            match message {
                Received::Text(text) => add(text.as_bytes()),
                // with its names, so that secrets and keys can be found
                Received::Binary(data) if is_json(data) => add(data),
                Received::Binary(data) => {
                    add(format!(r#"{{"binary":"{}"}}"#, BASE64.encode(data)).as_bytes())
                }
            }
        });
    }

    /// True once the AI can take the call: the session that the dialect has set up is accepted.
    pub fn is_ready(&self) -> bool {
        self.codec.is_ready()
    }

    /// Adds parameters, before [`AiSocket::start`].
    pub fn add_parameters(&mut self, parameters: Vec<(String, String)>) {
        self.codec.add_parameters(parameters);
    }

    /// Queues the dialect's opening messages; `burst` frames of audio follow at once.
    pub fn start(&mut self, now: Instant, burst: usize) {
        self.kept_alive = None;
        self.queue.start(self.codec.opening(), burst);
        self.progress = now;
    }

    /// Returns when the AI is to be given up unless it accepts something first, or when a ping, its
    /// answer or the rest of a message is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let times = [self.unfinished.next_timeout(), self.ready_by, self.keep_alive_at()];
        let unfinished = times.into_iter().flatten().min();
        self.stalls_at().into_iter().chain(self.liveness.next_timeout()).chain(unfinished).min()
    }

    fn keep_alive_at(&self) -> Option<Instant> {
        let since = self.kept_alive.filter(|_| self.ready_by.is_none())?;
        self.codec.keep_alive().map(|_| since + KEEP_ALIVE)
    }

    fn stalls_at(&self) -> Option<Instant> {
        (!self.queue.has_no_messages()).then(|| self.progress + STALLED)
    }

    /// Returns how the stream ended, if the AI has accepted or sent nothing for too long, or began
    /// a message that is not complete. What has arrived must have been read before.
    pub fn on_timeout(&mut self, now: Instant) -> Option<Closed> {
        if self.stalls_at().is_some_and(|at| at <= now) {
            return Some(self.judged(Closed::Stalled));
        }
        if self.unfinished.next_timeout().is_some_and(|at| at <= now) {
            let why = "a message was not complete after 10 s";
            return Some(self.judged(Closed::Protocol(why.into())));
        }
        if self.ready_by.is_some_and(|at| at <= now) {
            return Some(Closed::Failed("its session was not ready in time".to_owned()));
        }
        if self.keep_alive_at().is_some_and(|at| at <= now)
            && let Some(text) = self.codec.keep_alive()
        {
            self.queue.push_own(Message::Text(text.to_owned()));
            self.kept_alive = Some(now);
        }
        self.ping_waits |= self.liveness.takes_ping(now);
        self.liveness.is_dead(now).then(|| self.judged(Closed::Unanswered))
    }

    /// Notes that this process stood still for `time`, in which the AI may have been well.
    pub fn stood_still(&mut self, now: Instant, time: Duration) {
        self.progress = now.min(self.progress + time);
        self.ready_by = self.ready_by.map(|at| at + time);
        self.queue.expect_burst((time.as_millis() / FRAME_TIME.as_millis()) as usize);
        self.liveness.stood_still(now, time);
        self.unfinished.stood_still(now, time);
    }

    /// Returns true if the kernel is to be asked when it accepts more data.
    pub fn wants_write(&self) -> bool {
        self.blocked
    }

    /// Notes that the kernel has something to read. `ending`: nothing more will follow.
    pub fn readable(&mut self, ending: bool) {
        self.socket.get_mut().readable(ending);
    }

    /// Notes that the kernel accepts more data.
    pub fn writable(&mut self) {
        self.blocked = false;
    }

    /// Reads up to `limit` messages, and calls `each` with every one.
    pub fn read(
        &mut self,
        now: Instant,
        scratch: &mut Scratch,
        limit: usize,
        each: &mut dyn FnMut(FromAi<'_>),
    ) -> Stop {
        let stop = match self.read_messages(scratch, limit, each) {
            Stop::Closed(Closed::Orderly(how)) if !self.codec.hangs_up_by_closing() => {
                let how = format!("the AI ended its session: {how}");
                Stop::Closed(self.judged(Closed::SessionEnded(how)))
            }
            Stop::Closed(closed) => Stop::Closed(self.judged(closed)),
            stop => stop,
        };
        if self.socket.get_mut().takes_received() {
            self.liveness.on_data(now);
        }
        self.ready_by = self.ready_by.filter(|_| !self.codec.is_ready());
        while let Some(message) = self.codec.next_message() {
            self.queue.push_own(message);
        }
        // after it took over, the library only reads the end of the stream
        let partial = !self.held.is_empty() || self.frames.is_in_parts();
        let partial = partial && !self.socket.get_ref().is_handed_over();
        self.unfinished.note(now, self.frames.messages(), partial);
        stop
    }

    fn read_messages(
        &mut self,
        scratch: &mut Scratch,
        limit: usize,
        each: &mut dyn FnMut(FromAi<'_>),
    ) -> Stop {
        let mut left = limit;
        let Scratch { input, audio, .. } = scratch;
        // one message with minutes of audio is rare, so its memory is not kept
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
                // the end of the stream is for the library to see
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

    /// Returns how the stream ended, with regard to a session that can continue.
    fn judged(&self, closed: Closed) -> Closed {
        match self.codec.resumption() {
            Some(_) => Closed::Resumable(Box::new(closed)),
            None => closed,
        }
    }

    /// Returns the handle that continues the AI's session on another connection.
    pub fn resumption(&self) -> Option<String> {
        self.codec.resumption().map(str::to_owned)
    }

    /// Returns true if there was more to read than one turn allows.
    pub fn is_starved(&self) -> bool {
        self.socket.get_ref().starved()
    }

    /// Returns why nothing can be read now.
    fn pause(&self) -> Stop {
        if self.is_starved() { Stop::Turn } else { Stop::Empty }
    }

    /// Processes the whole frames at the start of `bytes`. Returns the number of bytes used, and
    /// the reason if reading has to stop.
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
                Next::Whole { binary, payload, taken } => match Received::of(binary, payload) {
                    Some(message) => {
                        *left -= 1;
                        at += taken;
                        if let Some(stop) = self.on_message(message, audio, each) {
                            return (at, Some(stop));
                        }
                        continue;
                    }
                    None => taken,
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
            let mut frame = usize::MAX; // no limit: the library has this one frame and no more
            if let stop @ Stop::Closed(_) = self.read_library(&mut frame, audio, each) {
                return (at, Some(stop));
            }
            *left -= 1;
        }
        (at, (at < bytes.len()).then_some(Stop::Turn))
    }

    /// Reads messages with the library.
    fn read_library(
        &mut self,
        left: &mut usize,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) -> Stop {
        while *left > 0 {
            *left -= 1;
            match self.socket.read() {
                Ok(Library::Text(text)) => {
                    if let Some(stop) = self.on_message(Received::Text(&text), audio, each) {
                        return stop;
                    }
                }
                Ok(Library::Binary(data)) => {
                    if let Some(stop) = self.on_message(Received::Binary(&data), audio, each) {
                        return stop;
                    }
                }
                Ok(Library::Close(frame)) => return Stop::Closed(close_kind(frame.as_ref())),
                Ok(Library::Ping(_) | Library::Pong(_) | Library::Frame(_)) => {
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

    /// Passes on what a message says. Returns the end of the stream if the AI cannot continue.
    fn on_message(
        &mut self,
        message: Received<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    ) -> Option<Stop> {
        if self.tap.is_some() {
            self.tap_message(Direction::Received, message);
        }
        let (mut ignored, mut closed) = (0, None);
        self.codec.decode(message, audio, &mut |message| match message {
            FromAi::Failed(why) => closed = Some(Closed::Failed(why)),
            FromAi::SessionEnded(why) => closed = Some(Closed::SessionEnded(why)),
            FromAi::Done(how) => closed = Some(Closed::Orderly(how.to_owned())),
            message => {
                ignored += u64::from(matches!(message, FromAi::Ignored(_)));
                each(message);
            }
        });
        self.ignored += ignored;
        // the close frame is then ours to send
        self.asked_to_close |= matches!(closed, Some(Closed::Orderly(_) | Closed::SessionEnded(_)));
        closed.map(Stop::Closed)
    }

    /// Answers the AI's close frame, if there was one. Nothing is sent after that.
    pub fn answer_close(&mut self) {
        let _ = self.flush();
        if !self.asked_to_close {
            self.give_up();
        }
    }

    /// Clears the queue, because nothing more can be sent.
    fn give_up(&mut self) {
        self.queue.clear();
        self.farewell = self.farewell.max(Farewell::Waiting);
    }

    fn is_open(&self) -> bool {
        self.farewell < Farewell::Waiting
    }
}

impl AsFd for AiSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn is_json(data: &[u8]) -> bool {
    data.starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(data).is_ok()
}

fn would_block(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(why) if why.kind() == io::ErrorKind::WouldBlock)
}

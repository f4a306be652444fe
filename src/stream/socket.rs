//! One stream's WebSocket: a bounded queue of ours before the sink, and both directions driven by
//! one future, so that a slow AI never holds up what plays audio. Owns I/O.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{Sink, Stream, StreamExt as _};
use std::pin::Pin;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
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
const FAREWELL: Duration = Duration::from_secs(2);

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
pub enum SocketEvent {
    Message(FromAi),
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
    pub counts: Counts,
}

impl AiSocket {
    pub fn new(socket: Socket, info: StreamInfo) -> AiSocket {
        AiSocket {
            socket,
            encoder: Encoder::new(info),
            queue: VecDeque::new(),
            opening: VecDeque::new(),
            queued_audio: 0,
            max_audio: MAX_AUDIO,
            progress: Instant::now(),
            counts: Counts::default(),
        }
    }

    /// `connected` and `start`, back to back; `burst` frames of audio follow at once.
    pub fn start(&mut self, burst: usize) {
        self.opening.push_back(twilio::CONNECTED.to_owned());
        let start = self.encoder.start();
        self.opening.push_back(start);
        self.max_audio = MAX_AUDIO.max(burst);
        self.progress = Instant::now();
    }

    /// Queues a message; over the bound the oldest of its kind is dropped and counted.
    pub fn send(&mut self, message: ToAi) {
        if self.queue.is_empty() {
            self.progress = Instant::now();
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

    /// Sends what is queued and returns the next message or the end. Cancel-safe: all state is in
    /// `self`.
    pub async fn next(&mut self) -> SocketEvent {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// When an AI that takes nothing is to be given up ([`Closed::Stalled`]), unless it takes
    /// something.
    pub fn stalls_at(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then(|| self.progress + STALLED)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SocketEvent> {
        if let Err(error) = self.poll_send(cx) {
            return Poll::Ready(SocketEvent::Closed(closed(&error)));
        }
        loop {
            let message = match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    return Poll::Ready(SocketEvent::Closed(Closed::Failed(
                        "end of stream".into(),
                    )));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(SocketEvent::Closed(closed(&error)));
                }
                Poll::Ready(Some(Ok(message))) => message,
            };
            let from_ai = match message {
                Message::Text(text) => twilio::decode(&text, &self.encoder.info().stream_sid),
                Message::Binary(_) => FromAi::Ignored("a binary message"),
                Message::Close(frame) => {
                    // the answer to the close frame goes out with the next flush
                    let _ = Pin::new(&mut self.socket).poll_flush(cx);
                    return Poll::Ready(SocketEvent::Closed(close_kind(frame.as_ref())));
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                    let _ = Pin::new(&mut self.socket).poll_flush(cx);
                    continue;
                }
            };
            if matches!(from_ai, FromAi::Ignored(_)) {
                self.counts.ignored += 1;
            }
            return Poll::Ready(SocketEvent::Message(from_ai));
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), tungstenite::Error> {
        while !self.queue.is_empty() || !self.opening.is_empty() {
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
            let text = match self.opening.pop_front() {
                Some(text) => text,
                None => {
                    let Some(message) = self.queue.pop_front() else { break };
                    self.queued_audio -= usize::from(matches!(message, ToAi::Audio { .. }));
                    self.encoder.encode(&message)
                }
            };
            Pin::new(&mut self.socket).start_send(Message::Text(text.into()))?;
            self.progress = Instant::now();
        }
        if self.queued_audio <= MAX_AUDIO {
            self.max_audio = MAX_AUDIO;
        }
        let _ = Pin::new(&mut self.socket).poll_flush(cx)?;
        Ok(())
    }

    /// Sends what is queued and a close frame (1000), and waits a moment for the AI's.
    pub async fn finish(mut self) {
        let farewell = async {
            poll_fn(|cx| match self.poll_send(cx) {
                Err(_) => Poll::Ready(()),
                Ok(()) if self.queue.is_empty() && self.opening.is_empty() => Poll::Ready(()),
                Ok(()) => Poll::Pending,
            })
            .await;
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = self.socket.close(Some(frame)).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(FAREWELL, farewell).await;
    }
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

//! The way to the AI: messages are sent as far as the kernel accepts them, and the rest later. Owns
//! I/O.

use std::time::Instant;

use tokio_tungstenite::tungstenite;

use crate::capture::Direction;
use crate::stream::closed::{Closed, closed};
use crate::stream::dialect::Form;
use crate::stream::queue::Queued;
use crate::stream::scratch::Scratch;
use crate::stream::socket::{AiSocket, Farewell, would_block};
use crate::stream::{Message, Received, ToAi};

/// Bytes passed to the kernel at once, exceeded by at most one message. The limit is low because
/// messages that were passed on can no longer be dropped.
const CHUNK_BYTES: usize = 2 * 1024;
/// Bytes sent to one AI before the other calls get their turn, exceeded by at most one chunk.
const TURN_BYTES: usize = 32 * 1024;

impl AiSocket {
    /// Sends a message with the next [`AiSocket::pump`], or queues it. If the queue is full, the
    /// oldest message of the same kind is dropped and counted.
    pub fn send(&mut self, now: Instant, message: ToAi, scratch: &mut Scratch) {
        let idle = self.queue.is_empty() && self.is_open();
        let room = scratch.frames.len() < CHUNK_BYTES;
        if idle && room && !self.blocked && !self.unflushed {
            self.progress = now;
            return self.encode(&message, scratch);
        }
        if self.queue.has_no_messages() {
            self.progress = now;
        }
        self.queue.push(message);
    }

    /// Returns true if more can be sent than one turn allows.
    pub fn has_backlog(&self) -> bool {
        !self.queue.is_empty() && !self.blocked && self.is_open()
    }

    /// Sends what is queued, as far as the kernel accepts it, but no more than one turn allows.
    ///
    /// # Errors
    /// Returns how the stream ended.
    pub fn pump(&mut self, now: Instant, scratch: &mut Scratch) -> Result<(), Closed> {
        let pumped = self.try_pump(now, scratch);
        let pumped = pumped.map_err(|error| self.judged(closed(&error)));
        scratch.frames.clear();
        pumped
    }

    pub(super) fn try_pump(
        &mut self,
        now: Instant,
        scratch: &mut Scratch,
    ) -> Result<(), tungstenite::Error> {
        if self.blocked {
            return Ok(());
        }
        // older data first
        if self.unflushed {
            self.flush()?;
            // the answer to the AI's close frame may have been part of it
            if !self.socket.can_write() {
                self.give_up();
                scratch.frames.clear();
            }
        }
        if self.farewell == Farewell::No && !self.blocked && std::mem::take(&mut self.ping_waits) {
            scratch.write_ping();
        }
        let mut sent_bytes = 0;
        while self.is_open() && !self.blocked && sent_bytes < TURN_BYTES {
            while scratch.frames.len() < CHUNK_BYTES {
                match self.queue.pop() {
                    Some(Queued::Own(message)) => self.write_own(&message, scratch),
                    Some(Queued::Message(message)) => self.encode(&message, scratch),
                    None => break,
                }
                self.progress = now;
            }
            if scratch.frames.is_empty() {
                break;
            }
            sent_bytes += scratch.frames.len();
            let sent = self.socket.get_mut().send(&scratch.frames);
            scratch.frames.clear();
            if !sent? {
                self.block();
            }
        }
        self.queue.settle();
        if self.farewell != Farewell::No { self.flush() } else { Ok(()) }
    }

    /// Appends the frame of a message.
    fn encode(&mut self, message: &ToAi, scratch: &mut Scratch) {
        let mut text = std::mem::take(&mut scratch.text);
        text.clear();
        let form = self.codec.encode(message, &mut text);
        if !text.is_empty() {
            if self.tap.is_some()
                && let Some(message) = Received::of(form == Form::Binary, &text)
            {
                self.tap_message(Direction::Sent, message);
            }
            scratch.write(form, &text);
        }
        scratch.text = text;
        while let Some(message) = self.codec.next_message() {
            self.write_own(&message, scratch);
        }
    }

    /// Appends the frame of a message of the dialect's own.
    fn write_own(&mut self, message: &Message, scratch: &mut Scratch) {
        match message {
            Message::Text(text) => {
                self.tap_message(Direction::Sent, Received::Text(text));
                scratch.write(Form::Text, text.as_bytes());
            }
            Message::Binary(data) => {
                self.tap_message(Direction::Sent, Received::Binary(data));
                scratch.write(Form::Binary, data);
            }
        }
    }

    pub(super) fn block(&mut self) {
        (self.blocked, self.unflushed) = (true, true);
    }

    pub(super) fn flush(&mut self) -> Result<(), tungstenite::Error> {
        match self.socket.flush() {
            Err(error) if would_block(&error) => self.block(),
            other => {
                other?;
                (self.blocked, self.unflushed) = (false, false);
            }
        }
        Ok(())
    }
}

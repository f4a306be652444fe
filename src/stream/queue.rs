//! The messages that wait to be sent to one AI, within bounds. If the queue is full, the oldest
//! message of the same kind is dropped and counted.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

use crate::stream::{Message, ToAi};

/// Audio frames (1 s) that may wait for a slow AI; then the oldest is dropped.
const MAX_AUDIO: usize = 50;
/// The longest burst after a standstill, in frames (3 s).
const MAX_BURST: usize = 150;
/// Marks, key presses and replies that may wait.
const MAX_CONTROL: usize = 20_000;
/// Messages of the dialect's own that may wait.
const MAX_OWN: usize = 1000;
/// Bytes of the texts of the AI in them, such as names of marks.
const MAX_CONTROL_BYTES: usize = 16 * 1024 * 1024;

/// A message taken from the queue.
#[derive(Debug)]
pub(super) enum Queued {
    /// One of the dialect's own messages, such as those that open the stream.
    Own(Message),
    Message(ToAi),
}

/// The messages to one AI that have not been sent yet.
#[derive(Debug, Default)]
pub(super) struct Queue {
    messages: VecDeque<ToAi>,
    /// The dialect's own messages, sent before the others.
    own: VecDeque<Message>,
    /// Audio messages in `messages`.
    audio: usize,
    /// Bytes of texts from the AI in `messages`.
    text_bytes: usize,
    /// Length of the burst from before `start`, or from a standstill, that is being sent, if it
    /// exceeds [`MAX_AUDIO`].
    burst: usize,
    pub dropped_audio: u64,
    pub dropped_control: u64,
}

impl Queue {
    /// Adds the opening messages; `burst` frames of audio follow at once.
    pub fn start(&mut self, opening: Vec<Message>, burst: usize) {
        self.own.extend(opening);
        self.burst = burst;
    }

    /// Adds a message of the dialect's own. If too many wait, it is dropped and counted.
    pub fn push_own(&mut self, message: Message) {
        match self.own.len() < MAX_OWN {
            true => self.own.push_back(message),
            false => self.dropped_control += 1,
        }
    }

    /// Allows for `frames` of audio at once, which arrived during a standstill of this process.
    pub fn expect_burst(&mut self, frames: usize) {
        self.burst = self.burst.max(frames.min(MAX_BURST));
    }

    /// True if no message waits. The dialect's own do not count.
    pub fn has_no_messages(&self) -> bool {
        self.messages.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.own.is_empty()
    }

    pub fn push(&mut self, message: ToAi) {
        let (audio, text) = (is_audio(&message), text_bytes(&message));
        let full = match audio {
            true => self.audio >= self.burst.max(MAX_AUDIO),
            false => {
                self.messages.len() - self.audio >= MAX_CONTROL
                    || self.text_bytes + text > MAX_CONTROL_BYTES
            }
        };
        if full && let Some(oldest) = self.messages.iter().position(|m| is_audio(m) == audio) {
            let dropped = self.messages.remove(oldest);
            dropped.iter().for_each(|message| self.leaves(message));
            match audio {
                true => self.dropped_audio += 1,
                false => self.dropped_control += 1,
            }
        }
        self.audio += usize::from(audio);
        self.text_bytes += text;
        self.messages.push_back(message);
    }

    /// Takes the next message.
    pub fn pop(&mut self) -> Option<Queued> {
        if let Some(message) = self.own.pop_front() {
            return Some(Queued::Own(message));
        }
        let Some(message) = self.messages.pop_front() else {
            self.messages.clear(); // starts over at its first slot, which is in the cache
            return None;
        };
        self.leaves(&message);
        Some(Queued::Message(message))
    }

    /// Ends the burst once no more audio is queued than usual.
    pub fn settle(&mut self) {
        if self.audio <= MAX_AUDIO {
            self.burst = 0;
        }
    }

    pub fn clear(&mut self) {
        self.messages.clear();
        self.own.clear();
        (self.audio, self.text_bytes) = (0, 0);
    }

    /// Updates the totals for a message taken out.
    fn leaves(&mut self, message: &ToAi) {
        self.audio -= usize::from(is_audio(message));
        self.text_bytes -= text_bytes(message);
    }
}

fn is_audio(message: &ToAi) -> bool {
    matches!(message, ToAi::Audio { .. })
}

/// Returns the length of the texts in a message that are the AI's.
fn text_bytes(message: &ToAi) -> usize {
    match message {
        ToAi::Mark { name, .. } => name.len(),
        ToAi::Reply(reply) => reply.id.len() + reply.why.as_ref().map_or(0, String::len),
        ToAi::ToolResult(result) => result.id.len() + result.output.len(),
        _ => 0,
    }
}

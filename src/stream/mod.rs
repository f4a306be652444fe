//! The AI's WebSocket. [`connect`] dials it, [`socket`] sends and receives, [`wire`] is the
//! connection below. [`dialect`] selects the protocol spoken on it, with one file per dialect.

pub mod breaker;
mod carrier;
mod clip;
pub mod closed;
pub mod connect;
pub mod create;
pub mod deepgram;
pub mod dialect;
pub mod elevenlabs;
mod exotel;
pub mod extension;
mod frames;
pub mod gemini;
mod head;
mod jambonz;
mod json;
mod keys;
mod l16;
mod linear;
mod liveness;
pub mod model;
pub mod openai;
mod own;
mod plivo;
pub mod prewarm;
pub mod proxy;
mod queue;
pub mod scratch;
pub mod socket;
mod telnyx;
#[cfg(test)]
mod testing;
pub mod twilio;
pub mod ultravox;
pub mod unreachable;
pub mod wire;

use std::time::Duration;

use crate::command::{Failure, Order, Reply};
use crate::media::frame::Samples;
use crate::media::machine::Finding;

/// A message to the AI, in any dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAi {
    /// 20 ms of caller audio, mu-law. `t_ms` is its position on the call's audio clock.
    Audio {
        samples: Samples,
        t_ms: u64,
    },
    Digit(char),
    /// A mark set by the AI: everything before it has been played, or some of it was discarded.
    Mark {
        name: String,
        cleared: bool,
    },
    /// The answer to `clear`: how much of the utterance was played, and how much was discarded.
    Cleared {
        played: Duration,
        discarded: Duration,
        /// Bytes of the stream's audio that had left the queue before, played or left out: the
        /// position in all that the AI has sent since the stream started.
        at: u64,
        /// True if the AI did not ask for it: the caller has interrupted it.
        by_caller: bool,
    },
    /// Something heard of the caller.
    Heard(HeardSign),
    /// An answer to an order of the AI.
    Reply(Box<OrderReply>),
    /// The result of a tool that the AI has called.
    ToolResult(Box<ToolResult>),
    /// A change of the caller's state.
    State(CallState),
    /// Parameters that became known after the start of the stream: names and values.
    Parameters(Box<Vec<(String, String)>>),
    Stop,
}

/// A message from the AI, in any dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAi<'a> {
    /// Mu-law at 8 kHz, of any length.
    Audio(&'a [u8]),
    Mark(String),
    Clear,
    /// A command, or the reason why it cannot be carried out.
    Order(Box<Result<Order, Unusable>>),
    /// A call of a tool of the user's own.
    Tool(Box<ToolCall>),
    /// The AI cannot continue, with the reason: it has failed.
    Failed(String),
    /// The AI's session is over, with the reason, although the call is not. Another session may be
    /// possible.
    SessionEnded(String),
    /// A problem that the AI reports. The call continues.
    Warning(String),
    /// The AI asks for the end of the stream, with the word for it. It is the same as a close.
    Done(&'static str),
    /// Not usable, with the reason. The call continues.
    Ignored(&'static str),
}

/// A message on the WebSocket, to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Text(String),
    Binary(Vec<u8>),
}

/// A message on the WebSocket, as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

impl<'a> Received<'a> {
    /// Returns a message as dialects read it; `None` if a text is not UTF-8.
    pub fn of(binary: bool, payload: &'a [u8]) -> Option<Received<'a>> {
        match binary {
            true => Some(Received::Binary(payload)),
            false => str::from_utf8(payload).ok().map(Received::Text),
        }
    }
}

/// The call of a tool: a function of the user's own that a model may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// The result of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// The id of the [`ToolCall`].
    pub id: String,
    pub name: String,
    /// For the model: JSON, or plain text.
    pub output: String,
    pub failed: bool,
}

/// An order that cannot be carried out as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The order's id.
    pub id: String,
    pub command: &'static str,
    pub why: String,
}

/// An answer to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderReply {
    pub id: String,
    pub command: &'static str,
    pub reply: Reply,
    /// More about a failure.
    pub why: Option<String>,
}

/// Something heard of the caller, and when: milliseconds on the call's audio clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeardSign {
    SpeechStarted { at_ms: u64 },
    SpeechStopped { at_ms: u64 },
    Answer { finding: Finding, at_ms: u64 },
}

/// The state of the caller, as far as the AI cannot hear it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallState {
    Held,
    Resumed,
    Transferring,
    /// The caller is with the target of a transfer.
    Transferred,
    /// The caller is back.
    TransferFailed(Failure),
}

/// The ids of a stream and its call, and the stream's parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamInfo {
    pub account_sid: String,
    pub call_sid: String,
    pub stream_sid: String,
    /// `customParameters`: names and values.
    pub parameters: Vec<(String, String)>,
    /// Names of the targets that the caller may be transferred to.
    pub targets: Vec<String>,
    /// True if the AI was dialled again in the middle of the call, after its stream had ended.
    pub resumed: bool,
    /// The handle that continues the AI's session on another connection, if it gave one.
    pub resumption: Option<String>,
}

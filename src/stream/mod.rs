//! The AI's WebSocket. [`connect`] dials it, [`socket`] sends and receives, [`wire`] is the
//! connection below. [`dialect`] selects the protocol spoken on it, with one file per dialect.

pub mod closed;
pub mod connect;
pub mod dialect;
mod frames;
mod head;
mod json;
mod liveness;
mod queue;
pub mod scratch;
pub mod socket;
pub mod twilio;
pub mod unreachable;
pub mod wire;

use crate::media::frame::Samples;

/// A message to the AI, in any dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAi {
    /// 20 ms of caller audio, mu-law. `t_ms` is its position on the call's audio clock.
    Audio {
        samples: Samples,
        t_ms: u64,
    },
    Digit(char),
    /// A mark set by the AI: everything before it has been played or discarded.
    Mark(String),
    Stop,
}

/// A message from the AI, in any dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAi<'a> {
    /// Mu-law at 8 kHz, of any length.
    Audio(&'a [u8]),
    Mark(String),
    Clear,
    /// Not usable, with the reason. The call continues.
    Ignored(&'static str),
}

/// The ids of a stream and its call, and the stream's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    pub account_sid: String,
    pub call_sid: String,
    pub stream_sid: String,
    /// `customParameters`: names and values.
    pub parameters: Vec<(String, String)>,
}

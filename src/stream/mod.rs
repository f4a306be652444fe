//! The AI's WebSocket: [`dialect`] is the protocol on it, one file per dialect; [`socket`] is the
//! socket itself.

pub mod connect;
pub mod dialect;
mod frames;
mod json;
pub mod socket;
pub mod twilio;
pub mod wire;

use crate::media::frame::Samples;

/// What the AI is told, whatever the dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAi {
    /// 20 ms of the caller, mu-law; `t_ms` on the audio clock of the call.
    Audio {
        samples: Samples,
        t_ms: u64,
    },
    Digit(char),
    /// A mark of the AI's: what was before it has been played, or thrown away.
    Mark(String),
    Stop,
}

/// What the AI says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAi<'a> {
    /// Mu-law at 8 kHz, of any length.
    Audio(&'a [u8]),
    Mark(String),
    Clear,
    /// Not understood; the call goes on.
    Ignored(&'static str),
}

/// How a stream names itself and its call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    pub account_sid: String,
    pub call_sid: String,
    pub stream_sid: String,
    /// `customParameters`: names and values.
    pub parameters: Vec<(String, String)>,
}

//! How a stream ended, read off close frames and the WebSocket library's errors.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::io;

use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// A close frame with code 1000 or 1001, or without a code.
    Orderly(String),
    /// A reset, an end of file, or a close frame with any other code.
    Failed(String),
    /// The received data is not valid WebSocket.
    Protocol(String),
    /// The AI accepted nothing for 5 s.
    Stalled,
    /// The AI sent nothing, and did not answer a ping either.
    Unanswered,
}

pub(super) fn close_kind(frame: Option<&CloseFrame>) -> Closed {
    let Some(frame) = frame else { return Closed::Orderly("close frame without a code".into()) };
    let text = format!("close frame {}", u16::from(frame.code));
    match frame.code {
        CloseCode::Normal | CloseCode::Away | CloseCode::Status => Closed::Orderly(text),
        _ => Closed::Failed(text),
    }
}

pub(super) fn closed(error: &tungstenite::Error) -> Closed {
    use tungstenite::Error as E;
    use tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    match error {
        E::ConnectionClosed | E::AlreadyClosed => Closed::Orderly("connection closed".into()),
        // the kernel noticed first that nothing is accepted (TCP_USER_TIMEOUT)
        E::Io(why) if why.kind() == io::ErrorKind::TimedOut => Closed::Stalled,
        E::Io(_) | E::Protocol(ResetWithoutClosingHandshake) => Closed::Failed(error.to_string()),
        _ => Closed::Protocol(error.to_string()),
    }
}

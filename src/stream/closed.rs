//! How a stream ended, read off close frames and the WebSocket library's errors.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{fmt, io};

use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::stream::model;

/// Close code by which an AI hands the caller over to the dialplan.
pub const HAND_OVER: u16 = 4000;

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// An ordinary close: a close frame without a code, with code 1000 or 1001, or with one of an
    /// application's own codes, 3000 to 4999 (RFC 6455 §7.4.2).
    Orderly(String),
    /// A close frame with [`HAND_OVER`].
    HandOver,
    /// The session of a model is over, although nothing has ended the call.
    SessionEnded(String),
    /// Its connection is over, and its session continues on another one.
    Resumable(Box<Closed>),
    /// A reset, an end of file, or a close frame with any other code.
    Failed(String),
    /// The received data is not valid WebSocket, or a message took too long.
    Protocol(String),
    /// The AI accepted nothing for 5 s.
    Stalled,
    /// The AI sent nothing, and did not answer a ping either.
    Unanswered,
}

impl Closed {
    /// True if the AI closed the stream on purpose.
    pub fn is_ordinary(&self) -> bool {
        match self {
            Closed::Orderly(_) | Closed::HandOver | Closed::SessionEnded(_) => true,
            Closed::Resumable(how) => how.is_ordinary(),
            _ => false,
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Orderly(how) | Closed::Failed(how) | Closed::Protocol(how) => f.write_str(how),
            Closed::SessionEnded(why) => f.write_str(why),
            Closed::Resumable(how) => how.fmt(f),
            Closed::HandOver => write!(f, "close frame {HAND_OVER}"),
            Closed::Stalled => f.write_str("no data accepted for 5 s"),
            Closed::Unanswered => f.write_str("nothing received, and a ping not answered in 10 s"),
        }
    }
}

pub(super) fn close_kind(frame: Option<&CloseFrame>) -> Closed {
    let Some(frame) = frame else { return Closed::Orderly("close frame without a code".into()) };
    let code = u16::from(frame.code);
    let text = match model::said(&frame.reason) {
        reason if reason.is_empty() => format!("close frame {code}"),
        reason => format!("close frame {code}: {reason}"),
    };
    match code {
        HAND_OVER => Closed::HandOver,
        // 1005 stands for a frame without a code
        1000 | 1001 | 1005 | 3000..=4999 => Closed::Orderly(text),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn closed_with(code: u16) -> Closed {
        close_kind(Some(&CloseFrame { code: code.into(), reason: "".into() }))
    }

    #[test]
    fn close_codes_tell_an_ordinary_close_from_a_failure() {
        for code in [1000, 1001, 1005, 3000, 3999, 4001, 4999] {
            assert_eq!(closed_with(code), Closed::Orderly(format!("close frame {code}")));
        }
        assert_eq!(closed_with(4000), Closed::HandOver);
        for code in [0, 999, 1002, 1003, 1006, 1007, 1008, 1009, 1011, 1012, 1015, 2999, 5000] {
            assert_eq!(closed_with(code), Closed::Failed(format!("close frame {code}")));
        }
        assert!(matches!(close_kind(None), Closed::Orderly(_)));
        let frame = CloseFrame { code: 1008.into(), reason: "no\nquota".into() };
        let closed = close_kind(Some(&frame));
        assert_eq!(closed, Closed::Failed("close frame 1008: no quota".to_owned()));
    }
}

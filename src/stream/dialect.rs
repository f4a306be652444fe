//! A dialect: the protocol that is spoken with an AI over its WebSocket.
//!
//! [`Dialect`] is the choice in the configuration; [`Codec`] writes and reads the messages of one
//! stream. A dialect is one file beside `twilio.rs` and one variant here; nothing else in the
//! program names it. Audio and marks are [`ToAi`] and [`FromAi`], whatever the dialect.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;

use bytes::BytesMut;
use md5::{Digest, Md5};

use crate::stream::{FromAi, StreamInfo, ToAi, twilio};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    Twilio,
}

/// Writes and reads the messages of one stream.
pub trait Codec: Send {
    /// The messages that open the stream, in the order in which they are sent.
    fn opening(&mut self) -> Vec<String>;

    /// Appends the text of one message to `out`.
    fn encode(&mut self, message: &ToAi, out: &mut BytesMut);

    /// Reads a text message. Its audio replaces the contents of `audio`.
    fn decode<'a>(&self, text: &str, audio: &'a mut Vec<u8>) -> FromAi<'a>;
}

impl Dialect {
    /// The codec of a new stream.
    pub fn codec(self, info: StreamInfo) -> Box<dyn Codec> {
        match self {
            Dialect::Twilio => Box::new(twilio::Encoder::new(info)),
        }
    }

    /// Names and values of the headers of the handshake with `url`. `auth_token` signs it.
    pub fn handshake_headers(
        self,
        url: &str,
        auth_token: Option<&str>,
    ) -> Vec<(&'static str, String)> {
        match self {
            Dialect::Twilio => twilio::handshake_headers(url, auth_token),
        }
    }

    /// The longest name and value of a parameter, in characters.
    pub fn max_parameter(self) -> usize {
        match self {
            Dialect::Twilio => twilio::MAX_PARAMETER,
        }
    }
}

/// An id of Twilio's shape (`CA…`, `MZ…`, `AC…`), derived from the PBX's id of the call so that
/// logs can be joined. The log, the recordings and every dialect use the same ids.
pub fn sid(prefix: &str, of: &str) -> String {
    let digest = Md5::digest(format!("{prefix}:{of}"));
    digest.iter().fold(prefix.to_owned(), |mut sid, byte| {
        let _ = write!(sid, "{byte:02x}");
        sid
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sids_have_twilios_shape() {
        let sid = sid("MZ", "call-1@pbx");
        assert_eq!(sid.len(), 34);
        assert!(sid.starts_with("MZ") && sid[2..].bytes().all(|b| b.is_ascii_hexdigit()));
    }
}

//! A dialect: the protocol that is spoken with an AI over its WebSocket.
//!
//! [`Dialect`] is the choice in the configuration; [`Codec`] writes and reads the messages of one
//! stream. To add a dialect, add a file beside `twilio.rs` and a variant here; no other part of the
//! program refers to it. Messages are [`ToAi`] and [`FromAi`] in every dialect.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;

use bytes::BytesMut;
use md5::{Digest, Md5};

use crate::stream::{FromAi, StreamInfo, ToAi, twilio};

/// A supported dialect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    Twilio,
}

/// When trunkless' own messages are exchanged with the AI, besides those of the dialect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extensions {
    /// Once the AI has sent one. Until then, the stream is exactly as in the dialect.
    #[default]
    OnUse,
    /// From the beginning, and they are announced.
    Always,
    Off,
}

/// Writes and reads the messages of one stream.
pub trait Codec: Send {
    /// Returns the messages that open the stream, in the order in which they are sent.
    fn opening(&mut self) -> Vec<String>;

    /// Adds parameters, before the messages that open the stream.
    fn add_parameters(&mut self, parameters: Vec<(String, String)>);

    /// Appends the text of one message to `out`; nothing if the AI does not expect such a message.
    fn encode(&mut self, message: &ToAi, out: &mut BytesMut);

    /// Decodes a text message. Its audio replaces the contents of `audio`.
    fn decode<'a>(&mut self, text: &str, audio: &'a mut Vec<u8>) -> FromAi<'a>;
}

impl Dialect {
    /// Creates the codec for a new stream.
    pub fn codec(self, info: StreamInfo, extensions: Extensions) -> Box<dyn Codec> {
        match self {
            Dialect::Twilio => Box::new(twilio::Encoder::new(info, extensions)),
        }
    }

    /// Returns the extra headers for a handshake with `url`, signed if there is an `auth_token`.
    pub fn handshake_headers(
        self,
        url: &str,
        auth_token: Option<&str>,
    ) -> Vec<(&'static str, String)> {
        match self {
            Dialect::Twilio => twilio::handshake_headers(url, auth_token),
        }
    }

    /// The maximum length of a parameter's name, and of its value, in characters.
    pub fn max_parameter(self) -> usize {
        match self {
            Dialect::Twilio => twilio::MAX_PARAMETER,
        }
    }
}

/// Derives an id of Twilio's shape (`CA…`, `MZ…`, `AC…`) from `of`, which for a call contains the
/// PBX's id, so that logs can be matched. The log, the recordings and all dialects use these ids.
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

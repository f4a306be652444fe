//! A dialect: the protocol that is spoken with an AI over its WebSocket.
//!
//! [`Dialect`] is the choice in the configuration; [`Codec`] writes and reads the messages of one
//! stream. To add a dialect, add a file beside `twilio.rs` and a variant here; no other part of the
//! program refers to it. Messages are [`ToAi`] and [`FromAi`] in every dialect.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;

use bytes::BytesMut;
use md5::{Digest, Md5};

use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi, openai, twilio};

/// A supported dialect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    Twilio,
    /// OpenAI's Realtime API, and servers of the same shape.
    OpenAiRealtime,
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

/// The settings of a model's session, in dialects that have one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Session {
    /// Passed to the model as it is, apart from placeholders such as `{from_number}`.
    pub settings: Option<serde_json::Value>,
    /// The first words of the model.
    pub greeting: Option<String>,
    /// Our tools that are offered to the model; `None` = all.
    pub tools: Option<Vec<String>>,
}

/// How an encoded message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Binary,
}

/// Writes and reads the messages of one stream.
///
/// The order: [`Codec::hello`], until [`Codec::is_ready`]; then, when the caller is connected,
/// [`Codec::opening`], and after that [`Codec::encode`] for each message to the AI.
/// [`Codec::next_message`] is asked for more after each message in either direction.
pub trait Codec: Send {
    /// Returns the messages that are sent as soon as the WebSocket is open, while the caller still
    /// waits. By default there are none.
    fn hello(&mut self) -> Vec<Message> {
        Vec::new()
    }

    /// True once the AI can take the call. Until then, the WebSocket does not count as open.
    fn is_ready(&self) -> bool {
        true
    }

    /// Returns the messages that open the stream, in the order in which they are sent.
    fn opening(&mut self) -> Vec<Message>;

    /// Adds parameters, before the messages that open the stream.
    fn add_parameters(&mut self, parameters: Vec<(String, String)>);

    /// Appends one message to `out`; nothing if the AI does not expect such a message.
    fn encode(&mut self, message: &ToAi, out: &mut BytesMut) -> Form;

    /// Decodes a message, and calls `each` with what it says: mostly one thing, which may be
    /// [`FromAi::Ignored`]. `audio` is a buffer for decoded audio; what it contained is lost.
    fn decode(
        &mut self,
        message: Received<'_>,
        audio: &mut Vec<u8>,
        each: &mut dyn FnMut(FromAi<'_>),
    );

    /// True if the AI ends the call by closing its stream with an ordinary code. Otherwise its
    /// session is over then, which counts as a failure unless it is dialled again.
    fn hangs_up_by_closing(&self) -> bool {
        true
    }

    /// Returns a further message that is to be sent, such as an answer to a ping of the dialect.
    fn next_message(&mut self) -> Option<Message> {
        None
    }
}

impl Dialect {
    /// Creates the codec for a new stream.
    pub fn codec(
        self,
        info: StreamInfo,
        extensions: Extensions,
        session: &Session,
    ) -> Box<dyn Codec> {
        match self {
            Dialect::Twilio => Box::new(twilio::Encoder::new(info, extensions)),
            Dialect::OpenAiRealtime => Box::new(openai::Realtime::new(info, session.clone())),
        }
    }

    /// Returns the URL of the AI, made of the configured one and the session's settings. `None` if
    /// the dialect has no usual one.
    pub fn url(self, configured: Option<&str>, session: &Session) -> Option<String> {
        match self {
            Dialect::Twilio => configured.map(str::to_owned),
            Dialect::OpenAiRealtime => Some(openai::url(configured, session.settings.as_ref())),
        }
    }

    /// Checks the settings of a session.
    ///
    /// # Errors
    /// Returns the key below `session` that cannot work, and the reason.
    pub fn check(self, session: &Session) -> Result<(), (&'static str, String)> {
        match self {
            Dialect::Twilio => Ok(()),
            Dialect::OpenAiRealtime => openai::check(session.settings.as_ref()),
        }
    }

    /// True if the AI is a model with a session of its own: `[ai.session]`, a greeting and tools.
    pub fn has_session(self) -> bool {
        match self {
            Dialect::Twilio => false,
            Dialect::OpenAiRealtime => true,
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
            Dialect::OpenAiRealtime => openai::handshake_headers(auth_token),
        }
    }

    /// The maximum length of a parameter's name, and of its value, in characters.
    pub fn max_parameter(self) -> usize {
        match self {
            // placeholders have the same bounds
            Dialect::Twilio | Dialect::OpenAiRealtime => twilio::MAX_PARAMETER,
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

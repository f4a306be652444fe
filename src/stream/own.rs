//! Our own messages in dialects whose control messages are JSON: the commands and replies of call
//! control, in the form that they have beside Twilio's, without Twilio's numbers and ids.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;

use bytes::BytesMut;
use serde_json::Value;

use crate::stream::dialect::Extensions;
use crate::stream::twilio::{ANNOUNCED, by_whom, object, order, reason};
use crate::stream::{FromAi, StreamInfo, ToAi, extension};

/// Reads and writes the messages that are not the dialect's.
#[derive(Debug)]
pub(super) struct Own {
    extensions: Extensions,
    /// True if our own messages may be sent.
    extended: bool,
}

impl Own {
    /// Announces the commands among the stream's parameters, if they are always available.
    pub fn new(extensions: Extensions, info: &mut StreamInfo) -> Own {
        let extended = extensions == Extensions::Always;
        if extended {
            let (name, version) = ANNOUNCED;
            let value = format!("{version}{}", extension::NAMES.join(","));
            info.parameters.push((name.to_owned(), value));
        }
        Own { extensions, extended }
    }

    /// True if our own messages may be sent.
    pub fn extended(&self) -> bool {
        self.extended
    }

    /// Reads a message that is not of the dialect. `why` is the reason if it is not ours either.
    pub fn read(&mut self, text: &str, why: &'static str) -> FromAi<'static> {
        if self.extensions == Extensions::Off {
            return FromAi::Ignored(why);
        }
        match order(text) {
            None => FromAi::Ignored(why),
            Some(order) => {
                self.extended = true;
                FromAi::Order(Box::new(order))
            }
        }
    }

    /// Appends one of our own messages, once these may be sent. Does nothing for others.
    pub fn write(&self, message: &ToAi, out: &mut BytesMut) {
        // what is heard of the caller is configured
        let wanted = self.extensions != Extensions::Off && matches!(message, ToAi::Heard(_));
        if !self.extended && !wanted {
            return;
        }
        // a BytesMut grows: writing to it cannot fail
        let _ = match message {
            ToAi::Cleared { played, discarded, by_caller, .. } => {
                let (played, discarded) = (played.as_millis(), discarded.as_millis());
                let by = by_whom(*by_caller);
                write!(
                    out,
                    r#"{{"event":"cleared","cleared":{{"playedMs":{played},"discardedMs":{discarded}{by}}}}}"#
                )
            }
            ToAi::Heard(sign) => {
                let (event, heard) = extension::heard(*sign);
                write!(out, r#"{{"event":"{event}","{event}":{heard}}}"#)
            }
            ToAi::Reply(reply) => {
                let (id, result) = (Value::from(reply.id.as_str()), extension::result(reply));
                write!(out, r#"{{"event":"result","id":{id},"result":{result}}}"#)
            }
            ToAi::State(state) => {
                let (state, reason) = (extension::state(*state), reason(*state));
                write!(out, r#"{{"event":"call","call":{{"state":"{state}"{reason}}}}}"#)
            }
            ToAi::Parameters(parameters) => {
                let parameters = object(parameters);
                write!(out, r#"{{"event":"parameters","parameters":{parameters}}}"#)
            }
            _ => Ok(()),
        };
    }
}

/// Returns a parameter of the stream; empty if there is none of that name.
pub(super) fn parameter<'a>(info: &'a StreamInfo, name: &str) -> &'a str {
    let found = info.parameters.iter().find(|(known, _)| known == name);
    found.map_or("", |(_, value)| value.as_str())
}

/// Adds the parameters of a stream to the members of a message, which keep their values.
pub(super) fn flatten(info: &StreamInfo, members: &mut serde_json::Map<String, Value>) {
    for (name, value) in &info.parameters {
        members.entry(name.clone()).or_insert_with(|| value.as_str().into());
    }
}

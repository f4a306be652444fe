//! The AI's side of the dialects of carriers.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::Value;

use crate::bench::dialect::{AiSide, Format, Said};
use crate::stream::dialect::Dialect;

const WRONG_RATE: &str =
    "the bridge's audio is not at 8 kHz: remove sample_rate from its configuration";

/// Returns the AI's side of a carrier's dialect.
pub(super) fn side(dialect: Dialect) -> Box<dyn AiSide> {
    let is_text = !matches!(dialect, Dialect::L16 | Dialect::Jambonz);
    let is_linear = matches!(dialect, Dialect::L16 | Dialect::Jambonz | Dialect::Exotel);
    let format = Format { is_text, is_linear };
    Box::new(Carrier { dialect, format, stream: Value::Null, flush: false })
}

struct Carrier {
    dialect: Dialect,
    format: Format,
    /// The stream's id, in dialects in which the AI's messages have it.
    stream: Value,
    /// True if the bridge is Asterisk's chan_websocket, which has commands of its own.
    flush: bool,
}

/// Returns a number that is written as a string.
fn number(value: &Value) -> Option<u32> {
    value.as_str().and_then(|text| text.parse().ok())
}

impl Carrier {
    /// Reads a `start` message with the stream's id in the member `id`. Returns what begins.
    fn start(&mut self, message: &Value, id: &str) -> Result<Said, &'static str> {
        self.stream = message[id].clone();
        if !self.stream.is_string() {
            return Err("start without the stream's id");
        }
        let start = &message["start"];
        let caller = match self.dialect {
            Dialect::Twilio => number(&start["customParameters"]["from_number"]),
            Dialect::Plivo => {
                let extra = message["extra_headers"].as_str().unwrap_or_default();
                let extra: Value = serde_json::from_str(extra).unwrap_or_default();
                number(&extra["from_number"])
            }
            _ => number(&start["custom_parameters"]["from_number"]),
        };
        let good = match self.dialect {
            Dialect::Plivo => start["mediaFormat"]["sampleRate"] == 8000,
            Dialect::Exotel => start["media_format"]["sample_rate"] == "8000",
            _ => true,
        };
        good.then_some(Said { starts: true, caller, reply: None }).ok_or(WRONG_RATE)
    }

    /// Reads the first message of a stream with binary audio, which has the parameters beside its
    /// own members.
    fn start_binary(message: &Value, good: bool) -> Result<Said, &'static str> {
        let caller = number(&message["from_number"]);
        good.then_some(Said { starts: true, caller, reply: None }).ok_or(WRONG_RATE)
    }
}

impl AiSide for Carrier {
    fn format(&self) -> Format {
        self.format
    }

    fn read(&mut self, message: &Value) -> Result<Said, &'static str> {
        match (self.dialect, message["event"].as_str()) {
            // mu-law in binary messages, with f(json); source: docs.asterisk.org
            (Dialect::Twilio, Some("MEDIA_START")) => {
                self.flush = true;
                self.format.is_text = false;
                Ok(Said { starts: true, ..Said::default() })
            }
            (Dialect::Twilio, Some("start")) => self.start(message, "streamSid"),
            (Dialect::Telnyx, Some("start")) => self.start(message, "stream_id"),
            (Dialect::Plivo, Some("start")) => self.start(message, "streamId"),
            (Dialect::Exotel, Some("start")) => self.start(message, "stream_sid"),
            (Dialect::L16, Some("websocket:connected")) => {
                let good = message["content-type"] == "audio/l16;rate=8000";
                Carrier::start_binary(message, good)
            }
            (Dialect::Jambonz, None) if message["callSid"].is_string() => {
                Carrier::start_binary(message, message["sampleRate"] == 8000)
            }
            _ => Ok(Said::default()),
        }
    }

    fn around(&self) -> (String, &'static str) {
        let id = &self.stream;
        match self.dialect {
            _ if !self.format.is_text => (String::new(), ""),
            Dialect::Telnyx => (r#"{"event":"media","media":{"payload":""#.to_owned(), "\"}}"),
            Dialect::Plivo => {
                let format = r#""contentType":"audio/x-mulaw","sampleRate":8000"#;
                let before = r#"{"event":"playAudio","media":{"#;
                (format!(r#"{before}{format},"payload":""#), "\"}}")
            }
            Dialect::Exotel => {
                let before = format!(r#"{{"event":"media","stream_sid":{id},"media":{{"#);
                (format!(r#"{before}"payload":""#), "\"}}")
            }
            _ => {
                let before = format!(r#"{{"event":"media","streamSid":{id},"media":{{"#);
                (format!(r#"{before}"payload":""#), "\"}}")
            }
        }
    }

    fn clear(&mut self) -> Vec<String> {
        let id = &self.stream;
        vec![match self.dialect {
            _ if self.flush => r#"{"command":"FLUSH_MEDIA"}"#.to_owned(),
            Dialect::Telnyx => r#"{"event":"clear"}"#.to_owned(),
            Dialect::Plivo => format!(r#"{{"event":"clearAudio","streamId":{id}}}"#),
            Dialect::Exotel => format!(r#"{{"event":"clear","stream_sid":{id}}}"#),
            Dialect::L16 => r#"{"action":"clear"}"#.to_owned(),
            Dialect::Jambonz => r#"{"type":"killAudio"}"#.to_owned(),
            _ => format!(r#"{{"event":"clear","streamSid":{id}}}"#),
        }]
    }
}

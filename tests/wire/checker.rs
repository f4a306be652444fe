//! Checks messages byte for byte: each one is parsed, written again as Twilio writes it, and
//! compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use trunkless::media::frame::Samples;

use crate::stream::What;

/// The state of one stream, which decides the messages that may come next.
#[derive(Default)]
pub struct Checker {
    /// `connected` has been received.
    connected: bool,
    /// `stop` has been received.
    stopped: bool,
    /// The `streamSid` from `start`.
    sid: String,
    account_and_call: (String, String),
    /// Sequence number of the last message after `connected`.
    sequence: u64,
    /// Chunk number of the last `media`.
    chunk: u64,
    /// Timestamp of the last `media`.
    t_ms: Option<u64>,
    /// Frames may be missing.
    may_skip: bool,
    /// True once the AI has sent one of our own messages, so that the bridge may send them too.
    pub extended: Arc<AtomicBool>,
}

impl Checker {
    /// For a server that reads too slowly: frames may be missing, which shows in the timestamps
    /// too.
    pub fn that_may_skip() -> Checker {
        Checker { may_skip: true, ..Checker::default() }
    }

    /// Checks the next message.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the message.
    pub fn check(&mut self, text: &str) -> Result<What, String> {
        let wrong = |why: &str| Err(format!("{why}: {text}"));
        let value: Value = serde_json::from_str(text).map_err(|e| format!("{e}: {text}"))?;
        if !self.connected {
            self.connected = true;
            return match text {
                r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"# => {
                    Ok(What::Connected)
                }
                _ => wrong("the first message is not connected"),
            };
        }
        if self.stopped {
            return wrong("a message after stop");
        }
        self.sequence += 1;
        let (what, expected) = match (value["event"].as_str(), self.sequence) {
            (Some("start"), 1) => self.start(&value)?,
            (Some(_), 1) => return wrong("the second message is not start"),
            (Some("media"), _) => self.media(&value)?,
            (Some("dtmf"), _) => self.dtmf(&value),
            (Some("mark"), _) => self.mark(&value),
            (Some("stop"), _) => self.stop(),
            (Some("result" | "cleared" | "call" | "parameters"), _) if self.is_extended() => {
                self.own(&value, text)
            }
            _ => return wrong("unknown event"),
        };
        match text == expected {
            true => Ok(what),
            false => wrong(&format!("expected {expected}")),
        }
    }

    fn start(&mut self, value: &Value) -> Result<(What, String), String> {
        let start = &value["start"];
        let sid = |name: &str, prefix: &str| match start[name].as_str() {
            Some(sid) if is_sid(sid, prefix) => Ok(sid.to_owned()),
            other => Err(format!("{name} is {other:?}")),
        };
        let (account, call) = (sid("accountSid", "AC")?, sid("callSid", "CA")?);
        self.sid = sid("streamSid", "MZ")?;
        let parameters = start["customParameters"].as_object().ok_or("no customParameters")?;
        let short = |text: &str| text.chars().count() < 500;
        let strings =
            |(name, value): (&String, &Value)| short(name) && value.as_str().is_some_and(short);
        if !parameters.iter().all(strings) {
            return Err(format!("customParameters: {parameters:?}"));
        }
        let expected = format!(
            concat!(
                r#"{{"event":"start","sequenceNumber":"1","start":{{"accountSid":"{account}","#,
                r#""streamSid":"{sid}","callSid":"{call}","tracks":["inbound"],"#,
                r#""mediaFormat":{{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"#,
                r#""customParameters":{parameters}}},"streamSid":"{sid}"}}"#
            ),
            account = account,
            call = call,
            sid = self.sid,
            parameters = start["customParameters"]
        );
        self.account_and_call = (account, call);
        Ok((What::Start(start.clone()), expected))
    }

    fn media(&mut self, value: &Value) -> Result<(What, String), String> {
        let payload = value["media"]["payload"].as_str().ok_or("no payload")?;
        let audio = BASE64.decode(payload).map_err(|e| e.to_string())?;
        let samples = Samples::try_from(audio).map_err(|a| format!("{} bytes", a.len()))?;
        let stated = value["media"]["timestamp"].as_str().and_then(|t| t.parse().ok());
        let t_ms = stated.ok_or("timestamp is not a number in a string")?;
        // the clock starts at a multiple of 20 ms and never runs backwards
        let next = self.t_ms.map_or(t_ms, |t| t + 20);
        let skips = self.may_skip && t_ms >= next;
        if (t_ms != next && !skips) || !t_ms.is_multiple_of(20) {
            return Err(format!("timestamp {t_ms} after {:?}", self.t_ms));
        }
        self.t_ms = Some(t_ms);
        self.chunk += 1;
        let (sequence, chunk, sid) = (self.sequence, self.chunk, &self.sid);
        let expected = format!(
            concat!(
                r#"{{"event":"media","sequenceNumber":"{sequence}","media":{{"track":"inbound","#,
                r#""chunk":"{chunk}","timestamp":"{t_ms}","payload":"{payload}"}},"#,
                r#""streamSid":"{sid}"}}"#
            ),
            sequence = sequence,
            chunk = chunk,
            t_ms = t_ms,
            payload = BASE64.encode(samples),
            sid = sid
        );
        Ok((What::Media { t_ms, samples }, expected))
    }

    fn dtmf(&self, value: &Value) -> (What, String) {
        let digit = value["dtmf"]["digit"].as_str().unwrap_or("no digit");
        let (sequence, sid) = (self.sequence, &self.sid);
        let expected = format!(
            concat!(
                r#"{{"event":"dtmf","streamSid":"{sid}","sequenceNumber":"{sequence}","#,
                r#""dtmf":{{"track":"inbound_track","digit":"{digit}"}}}}"#
            ),
            sid = sid,
            sequence = sequence,
            digit = digit
        );
        (What::Digit(digit.to_owned()), expected)
    }

    fn mark(&self, value: &Value) -> (What, String) {
        let (sequence, sid, name) = (self.sequence, &self.sid, &value["mark"]["name"]);
        let fate = match (self.is_extended(), &value["mark"]["cleared"]) {
            (false, _) => "",
            (true, Value::Bool(true)) => r#","cleared":true"#,
            (true, _) => r#","played":true"#,
        };
        let expected = format!(
            concat!(
                r#"{{"event":"mark","sequenceNumber":"{sequence}","streamSid":"{sid}","#,
                r#""mark":{{"name":{name}{fate}}}}}"#
            ),
            sequence = sequence,
            sid = sid,
            name = name,
            fate = fate
        );
        (What::Mark(name.as_str().unwrap_or("no name").to_owned()), expected)
    }

    fn is_extended(&self) -> bool {
        self.extended.load(Ordering::Relaxed)
    }

    /// One of our own messages. They begin like the others.
    fn own(&self, value: &Value, text: &str) -> (What, String) {
        let (event, sequence) = (value["event"].as_str().unwrap_or_default(), self.sequence);
        let sid = &self.sid;
        let head =
            format!(r#"{{"event":"{event}","sequenceNumber":"{sequence}","streamSid":"{sid}","#);
        let expected = if text.starts_with(&head) { text.to_owned() } else { head };
        (What::Own(value.clone()), expected)
    }

    fn stop(&mut self) -> (What, String) {
        self.stopped = true;
        let (sequence, sid) = (self.sequence, &self.sid);
        let (account, call) = &self.account_and_call;
        let expected = format!(
            concat!(
                r#"{{"event":"stop","sequenceNumber":"{sequence}","#,
                r#""stop":{{"accountSid":"{account}","callSid":"{call}"}},"streamSid":"{sid}"}}"#
            ),
            sequence = sequence,
            account = account,
            call = call,
            sid = sid
        );
        (What::Stop, expected)
    }
}

/// True for `prefix` followed by 32 lower-case hexadecimal digits.
fn is_sid(text: &str, prefix: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.strip_prefix(prefix).is_some_and(|rest| rest.len() == 32 && rest.bytes().all(hex))
}

//! Commands on the AI's WebSocket, beyond Twilio's messages: how orders are read from an AI and how
//! replies are written to it. docs/commands.json has the table of all of them.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::command::{
    Cause, Command, Digits, Disposition, LeadChange, OnFail, Order, RecordCommand, Reply, Sender,
    Side, Transfer, TransferKind, When,
};
use crate::media::machine::Finding;
use crate::stream::{CallState, HeardSign, OrderReply, Unusable};

/// Maximum length of an order's id, and of any text in an order, in bytes.
pub const MAX_TEXT: usize = 4096;
/// At most this many variables are set by one order.
const MAX_VARIABLES: usize = 64;
/// The names of all commands, as they are announced.
pub const NAMES: [&str; 14] = [
    "hangup",
    "transfer",
    "sendDigits",
    "hold",
    "unhold",
    "mute",
    "unmute",
    "record",
    "play",
    "setVariables",
    "disposition",
    "callback",
    "doNotCall",
    "updateLead",
];
/// How long a transfer's target may ring, unless the order says otherwise.
const RING: Duration = Duration::from_secs(25);
/// The longest time that a target may ring.
const MAX_RING: Duration = Duration::from_secs(300);

/// Returns the beginning of a text of the AI, for a reason.
fn clipped(text: &str) -> String {
    const MAX: usize = 60;
    match text.char_indices().nth(MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Reads an order of the AI, or of the control API. `event` is the name of its command, `body` has
/// its details, `message` has its id. Returns `None` if there is no such command.
///
/// # Errors
/// Returns the reason if the order cannot be carried out as it is written.
pub fn read(
    event: &str,
    body: Option<&Map<String, Value>>,
    message: &Map<String, Value>,
) -> Option<Result<Order, Unusable>> {
    let fields = Fields { event, body, message };
    let command = match event {
        _ if known(event).is_some() && fields.has_odd_body() => {
            Err(format!("{event} is not an object"))
        }
        "hangup" => fields.hangup(),
        "transfer" => fields.transfer(),
        "sendDigits" => fields.digits(),
        "hold" => Ok(Command::Hold(true)),
        "unhold" => Ok(Command::Hold(false)),
        "mute" => fields.side().map(|side| Command::Mute { side, on: true }),
        "unmute" => fields.side().map(|side| Command::Mute { side, on: false }),
        "record" => fields.record(),
        "play" => fields.text("prompt").map(Command::Play),
        "setVariables" => fields.variables(),
        "disposition" => fields.disposition(),
        "callback" => fields.callback(),
        "doNotCall" => fields.do_not_call(),
        "updateLead" => fields.lead_fields(),
        _ => return None,
    };
    let id = match message.get("id") {
        Some(Value::String(id)) => id.chars().take(MAX_TEXT / 4).collect(),
        Some(Value::Number(id)) => id.to_string(),
        _ => String::new(),
    };
    let order = command.and_then(|command| Ok((command, fields.when()?)));
    Some(match order {
        Ok((command, when)) => Ok(Order { id, by: Sender::Ai, when, command }),
        Err(why) => Err(Unusable { id, command: known(event)?, why }),
    })
}

/// Returns the event's name in the list of all commands.
fn known(event: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|name| *name == event)
}

/// The members of an order.
struct Fields<'a> {
    event: &'a str,
    /// The object under the event's name.
    body: Option<&'a Map<String, Value>>,
    message: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.body?.get(name).filter(|value| !value.is_null())
    }

    /// True if the member with the event's name cannot be read.
    fn has_odd_body(&self) -> bool {
        self.message.get(self.event).is_some_and(|body| !body.is_object() && !body.is_null())
    }

    /// Returns a string that is required.
    fn text(&self, name: &str) -> Result<String, String> {
        let event = self.event;
        match self.get(name) {
            Some(Value::String(text)) if text.is_empty() => Err(format!("{event}.{name} is empty")),
            Some(Value::String(text)) if text.len() > MAX_TEXT => {
                Err(format!("{event}.{name} is longer than {MAX_TEXT} bytes"))
            }
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(format!("{event}.{name} is not a string")),
            None => Err(format!("{event}.{name} is missing")),
        }
    }

    /// Returns one of several words, the first if there is none.
    fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<T, String> {
        self.word_of(name, self.get(name), words)
    }

    fn word_of<T: Copy>(
        &self,
        name: &str,
        value: Option<&Value>,
        words: &[(&str, T)],
    ) -> Result<T, String> {
        let Some(value) = value else { return Ok(words[0].1) };
        let found = words.iter().find(|(word, _)| value.as_str() == Some(word));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let value = clipped(&value.to_string());
            format!("{}.{name} is {value}, not one of {}", self.event, words.join(", "))
        })
    }

    fn when(&self) -> Result<When, String> {
        // beside the event's name, or in its object
        let beside = || self.message.get("when").filter(|value| !value.is_null());
        let value = self.get("when").or_else(beside);
        self.word_of("when", value, &[("now", When::Now), ("after_audio", When::AfterAudio)])
    }

    fn hangup(&self) -> Result<Command, String> {
        let causes = Cause::ALL.map(|cause| (cause.name(), cause));
        Ok(Command::Hangup { cause: self.word("cause", &causes)?, status: self.status()? })
    }

    fn transfer(&self) -> Result<Command, String> {
        let actions = [
            ("start", None),
            ("complete", Some(Command::CompleteTransfer)),
            ("cancel", Some(Command::CancelTransfer)),
        ];
        let names: Vec<(&str, usize)> = actions.iter().enumerate().map(|(n, a)| (a.0, n)).collect();
        if let Some(command) = actions[self.word("action", &names)?].1.clone() {
            return Ok(command);
        }
        let kinds = [("blind", TransferKind::Blind), ("attended", TransferKind::Attended)];
        let on_fail =
            [("resume", OnFail::Resume), ("ladder", OnFail::Ladder), ("hangup", OnFail::Hangup)];
        let timeout = match self.get("timeout") {
            None => RING,
            Some(seconds) => {
                let seconds = seconds.as_u64().map(Duration::from_secs);
                let valid = seconds.filter(|time| !time.is_zero() && *time <= MAX_RING);
                valid.ok_or("transfer.timeout is not a number of seconds from 1 to 300")?
            }
        };
        Ok(Command::Transfer(Transfer {
            to: self.text("to")?,
            kind: self.word("type", &kinds)?,
            timeout,
            on_fail: self.word("onFail", &on_fail)?,
            status: self.status()?,
        }))
    }

    /// Returns the status of the disposition, if there is one.
    fn status(&self) -> Result<Option<String>, String> {
        self.get("status").map(|_| self.text("status")).transpose()
    }

    fn digits(&self) -> Result<Command, String> {
        let keys = self.text("digits")?;
        let digits = Digits::new(&keys);
        digits.map(Command::SendDigits).ok_or_else(|| {
            format!("sendDigits.digits may have 0-9, *, #, A-D and w, at most {}", Digits::MAX)
        })
    }

    fn side(&self) -> Result<Side, String> {
        self.word("side", &[("caller", Side::Caller), ("ai", Side::Ai)])
    }

    fn record(&self) -> Result<Command, String> {
        self.text("action")?;
        let actions = [
            ("start", RecordCommand::Start),
            ("pause", RecordCommand::Pause),
            ("resume", RecordCommand::Resume),
            ("stop", RecordCommand::Stop),
        ];
        self.word("action", &actions).map(Command::Record)
    }

    /// Variables are beside the event, not in an object of its name.
    fn variables(&self) -> Result<Command, String> {
        let all = self.message.get("variables").or_else(|| self.get("variables"));
        let all = all.and_then(Value::as_object).ok_or("setVariables has no object `variables`")?;
        if all.is_empty() || all.len() > MAX_VARIABLES {
            return Err(format!("variables has not 1 to {MAX_VARIABLES} members"));
        }
        let pair = |(name, value): (&String, &Value)| {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                _ => {
                    let name = clipped(name);
                    return Err(format!("variables.{name} is neither text nor a number"));
                }
            };
            let fits = !name.is_empty() && name.len() + value.len() <= MAX_TEXT;
            let why = || format!("variables.{} is too long", clipped(name));
            fits.then(|| (name.clone(), value)).ok_or_else(why)
        };
        all.iter().map(pair).collect::<Result<_, _>>().map(Command::SetVariables)
    }

    fn callback(&self) -> Result<Command, String> {
        let at = self.text("at")?;
        let shape = "0000-00-00 00:00:00";
        let fits = |(given, wanted): (char, char)| match wanted {
            '0' => given.is_ascii_digit(),
            _ => given == wanted,
        };
        let number = |from: usize| at.get(from..from + 2).and_then(|text| text.parse().ok());
        let within = |from: usize, range: std::ops::RangeInclusive<u8>| {
            number(from).is_some_and(|number| range.contains(&number))
        };
        let shaped = at.len() == shape.len() && at.chars().zip(shape.chars()).all(fits);
        let date = shaped && within(5, 1..=12) && within(8, 1..=31);
        if !(date && within(11, 0..=23) && within(14, 0..=59) && within(17, 0..=59)) {
            return Err("callback.at is not a time such as 2026-11-24 10:00:00".to_owned());
        }
        let comments = match self.get("comments") {
            None => String::new(),
            Some(_) => self.text("comments")?,
        };
        Ok(Command::Lead(LeadChange::Callback { at, comments }))
    }

    fn do_not_call(&self) -> Result<Command, String> {
        let everywhere = self.word("list", &[("campaign", false), ("system", true)])?;
        Ok(Command::Lead(LeadChange::DoNotCall { everywhere }))
    }

    fn lead_fields(&self) -> Result<Command, String> {
        let fields = self.get("fields").and_then(Value::as_object);
        let fields = fields.ok_or("updateLead has no object `fields`")?;
        if fields.is_empty() || fields.len() > MAX_VARIABLES {
            return Err(format!("fields has not 1 to {MAX_VARIABLES} members"));
        }
        let pair = |(name, value): (&String, &Value)| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let text = match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            let fits = |text: &String| {
                !name.is_empty() && name.chars().all(plain) && text.len() <= MAX_TEXT
            };
            let text = text.filter(fits);
            text.map(|text| (name.clone(), text))
                .ok_or_else(|| format!("fields.{} cannot be set", clipped(name)))
        };
        let fields = fields.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
        Ok(Command::Lead(LeadChange::Update(fields)))
    }

    fn disposition(&self) -> Result<Command, String> {
        let data = match self.get("data") {
            None => "{}".to_owned(),
            Some(data @ Value::Object(_)) => data.to_string(),
            Some(_) => return Err("disposition.data is not an object".to_owned()),
        };
        if data.len() > MAX_TEXT {
            return Err(format!("disposition.data is longer than {MAX_TEXT} bytes"));
        }
        Ok(Command::Disposition(Disposition { status: self.text("status")?, data }))
    }
}

/// Returns the name of a command's event.
pub fn name(command: &Command) -> &'static str {
    match command {
        Command::Hangup { .. } => "hangup",
        Command::Transfer(_) | Command::CompleteTransfer | Command::CancelTransfer => "transfer",
        Command::SendDigits(_) => "sendDigits",
        Command::Hold(true) => "hold",
        Command::Hold(false) => "unhold",
        Command::Mute { on: true, .. } => "mute",
        Command::Mute { on: false, .. } => "unmute",
        Command::Record(_) => "record",
        Command::Play(_) => "play",
        Command::SetVariables(_) => "setVariables",
        Command::Disposition(_) => "disposition",
        Command::Lead(LeadChange::Callback { .. }) => "callback",
        Command::Lead(LeadChange::DoNotCall { .. }) => "doNotCall",
        Command::Lead(LeadChange::Update(_)) => "updateLead",
        Command::Redirect(_) => "redirect",
    }
}

/// Returns the member `result` of a reply: the command, the status, and the reason or the state.
pub fn result(reply: &OrderReply) -> Value {
    let mut result = Map::new();
    let mut put = |name: &str, value: &str| result.insert(name.to_owned(), value.into());
    put("command", reply.command);
    put("status", reply.reply.status());
    match &reply.reply {
        Reply::Accepted | Reply::Done => {}
        Reply::Progress(state) => drop(put("state", state)),
        Reply::Failed(failure) => {
            put("reason", failure.word());
            let detail = reply.why.clone().unwrap_or_else(|| failure.to_string());
            put("detail", &detail);
        }
    }
    Value::Object(result)
}

/// Returns the name of the event for what was heard of the caller, and its details.
pub fn heard(sign: HeardSign) -> (&'static str, Value) {
    let share = |percent: u8| f64::from(percent) / 100.0;
    match sign {
        HeardSign::SpeechStarted { at_ms } => {
            ("speechStarted", json!({"timestamp": at_ms.to_string()}))
        }
        HeardSign::SpeechStopped { at_ms } => {
            ("speechStopped", json!({"timestamp": at_ms.to_string()}))
        }
        HeardSign::Answer { finding: Finding::AnsweredBy { machine, confidence }, at_ms } => {
            let by = if machine { "machine" } else { "human" };
            let at = at_ms.to_string();
            ("answeredBy", json!({"by": by, "confidence": share(confidence), "timestamp": at}))
        }
        HeardSign::Answer { finding: Finding::Beep { hertz, length, confidence }, at_ms } => {
            let beep = json!({
                "confidence": share(confidence),
                "durationMs": length.as_millis() as u64,
                "hertz": hertz,
                "timestamp": at_ms.to_string(),
            });
            ("beep", beep)
        }
    }
}

/// Returns the word for a state of the caller.
pub fn state(state: CallState) -> &'static str {
    match state {
        CallState::Held => "held",
        CallState::Resumed => "resumed",
        CallState::Transferring => "transferring",
        CallState::Transferred => "transferred",
        CallState::TransferFailed(_) => "transferFailed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> Option<Result<Order, Unusable>> {
        let message: Map<String, Value> = serde_json::from_str(text).unwrap();
        let event = message["event"].as_str().unwrap();
        read(event, message.get(event).and_then(Value::as_object), &message)
    }

    #[track_caller]
    fn command(text: &str) -> (Command, When) {
        let order = order(text).unwrap().unwrap();
        assert_eq!(order.by, Sender::Ai);
        (order.command, order.when)
    }

    #[test]
    fn orders_are_read() {
        let hangup = |cause| Command::Hangup { cause, status: None };
        for (text, expected) in [
            (r#"{"event":"hangup"}"#, (hangup(Cause::Normal), When::Now)),
            (
                r#"{"event":"hangup","hangup":{"when":"after_audio","cause":"busy"}}"#,
                (hangup(Cause::Busy), When::AfterAudio),
            ),
            (
                r#"{"event":"sendDigits","sendDigits":{"digits":"1w2#a"}}"#,
                (Command::SendDigits(Digits::new("1w2#A").unwrap()), When::Now),
            ),
            (r#"{"event":"hold"}"#, (Command::Hold(true), When::Now)),
            (r#"{"event":"hangup","when":"after_audio"}"#, {
                (hangup(Cause::Normal), When::AfterAudio)
            }),
            (r#"{"event":"unmute","unmute":{"side":"ai"}}"#, {
                (Command::Mute { side: Side::Ai, on: false }, When::Now)
            }),
            (
                r#"{"event":"record","record":{"action":"pause"}}"#,
                (Command::Record(RecordCommand::Pause), When::Now),
            ),
            (
                r#"{"event":"setVariables","variables":{"CDR(userfield)":"x","n":7}}"#,
                (
                    Command::SetVariables(vec![
                        ("CDR(userfield)".into(), "x".into()),
                        ("n".into(), "7".into()),
                    ]),
                    When::Now,
                ),
            ),
        ] {
            assert_eq!(command(text), expected, "{text}");
        }
        let text = r#"{"event":"transfer","id":7,"transfer":{"to":"humans","onFail":"ladder"}}"#;
        let Ok(order) = order(text).unwrap() else { panic!("unusable") };
        assert_eq!(order.id, "7");
        let transfer = Transfer {
            to: "humans".into(),
            kind: TransferKind::Blind,
            timeout: RING,
            on_fail: OnFail::Ladder,
            status: None,
        };
        assert_eq!(order.command, Command::Transfer(transfer));
    }

    #[test]
    fn an_order_that_cannot_be_carried_out_has_a_reason() {
        for (text, why) in [
            (r#"{"event":"hangup","hangup":{"when":"later"}}"#, "not one of now, after_audio"),
            (r#"{"event":"hangup","hangup":{"cause":5}}"#, "hangup.cause is 5"),
            (r#"{"event":"hangup","hangup":"after_audio"}"#, "hangup is not an object"),
            (r#"{"event":"hold","when":"later"}"#, "not one of now, after_audio"),
            (r#"{"event":"transfer","id":"a"}"#, "transfer.to is missing"),
            (r#"{"event":"transfer","transfer":{"to":""}}"#, "transfer.to is empty"),
            (r#"{"event":"transfer","transfer":{"to":"1","timeout":0}}"#, "from 1 to 300"),
            (r#"{"event":"sendDigits","sendDigits":{"digits":"1;2"}}"#, "may have 0-9"),
            (r#"{"event":"record","record":{}}"#, "record.action is missing"),
            (r#"{"event":"record","record":{"action":"x"}}"#, "not one of start"),
            (r#"{"event":"setVariables","variables":{}}"#, "members"),
            (r#"{"event":"setVariables","variables":{"a":[1]}}"#, "neither text nor a number"),
            (r#"{"event":"disposition","disposition":{"status":"A","data":[]}}"#, "not an object"),
        ] {
            let unusable = order(text).unwrap().unwrap_err();
            assert!(unusable.why.contains(why), "{text}: {}", unusable.why);
        }
        assert_eq!(order(r#"{"event":"something"}"#), None);
    }
}

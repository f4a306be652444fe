//! The common part of the dialects of speech-to-speech models: placeholders in their settings, and
//! call control as tools that the model may call.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::{Map, Value, json};

use crate::command::{Order, Reply};
use crate::stream::{FromAi, OrderReply, StreamInfo, ToolCall, Unusable, extension};

/// The tools of call control, by the names under which models know them.
pub const TOOLS: [&str; 4] = ["hang_up", "transfer_call", "send_dtmf", "set_disposition"];
/// Maximum length of the arguments of one of our tools, in bytes.
const MAX_ARGUMENTS: usize = 64 * 1024;

/// The task of a model that begins a call. The greeting follows.
pub const GREETS: &str = "The call begins. Say this to the caller, word for word, and no more:";
/// The task of a model that gets a call in progress, because the session before it has ended.
pub const RESUMED: &str = "You are in the middle of a telephone call. Your connection was \
    interrupted, and you no longer know what was said. Apologise in one sentence, and ask the \
    caller to repeat the last point.";

/// The words for a model about what has become known of the call: names and values.
pub fn known(parameters: &[(String, String)]) -> String {
    let mut text = "More is known of this call:".to_owned();
    parameters.iter().for_each(|(name, value)| text.push_str(&format!("\n{name}: {value}")));
    text
}

/// Reads the call of a tool: an order if it is `offered` by us, and otherwise the user's own.
pub fn called(
    info: &StreamInfo,
    offered: bool,
    id: String,
    name: String,
    arguments: &Value,
) -> FromAi<'static> {
    let arguments = match arguments {
        Value::Null => "{}".to_owned(),
        arguments => arguments.to_string(),
    };
    match offered.then(|| order(info, &id, &name, &arguments)).flatten() {
        Some(order) => FromAi::Order(Box::new(order)),
        None => FromAi::Tool(Box::new(ToolCall { id, name, arguments })),
    }
}

/// A tool that is offered to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: &'static str,
    /// For the model: when to call it.
    pub description: &'static str,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

/// Returns the tools for a call: those of `allowed` (`None` = all). The transfer is among them only
/// if there are targets.
pub fn tools(allowed: Option<&[String]>, targets: &[String]) -> Vec<Tool> {
    let offered = |name: &&str| {
        let listed = allowed.is_none_or(|allowed| allowed.iter().any(|word| word == name));
        listed && (*name != "transfer_call" || !targets.is_empty())
    };
    TOOLS.into_iter().filter(offered).map(|name| tool(name, targets)).collect()
}

fn tool(name: &'static str, targets: &[String]) -> Tool {
    let (description, properties, required) = match name {
        "hang_up" => (
            "Ends the call. Say goodbye first: the caller hears it to its end.",
            json!({}),
            json!([]),
        ),
        "transfer_call" => (
            "Transfers the caller to someone else. Announce it first: the caller hears that to its \
             end. If it fails, the caller is back with you.",
            json!({"target": {"type": "string", "enum": targets}}),
            json!(["target"]),
        ),
        "send_dtmf" => (
            "Presses keys on the telephone, such as in a menu.",
            json!({"digits": {
                "type": "string",
                "description": "0-9, *, #, A-D, and w for a pause of half a second"
            }}),
            json!(["digits"]),
        ),
        _ => (
            "Notes the result of the call.",
            json!({"status": {"type": "string", "description": "a short code, such as SALE"}}),
            json!(["status"]),
        ),
    };
    let parameters = json!({"type": "object", "properties": properties, "required": required});
    Tool { name, description, parameters }
}

/// Reads the call of one of our tools; `None` if it is another one. `arguments` is JSON. What the
/// caller should still hear comes first: the order waits for the audio that is queued.
///
/// # Errors
/// Returns the reason if the order cannot be carried out as it is written.
pub fn order(
    info: &StreamInfo,
    id: &str,
    name: &str,
    arguments: &str,
) -> Option<Result<Order, Unusable>> {
    // the argument of the tool, its name in our own message, and whether the audio comes first
    let (event, argument, waits) = match name {
        "hang_up" => ("hangup", None, true),
        "transfer_call" => ("transfer", Some(("target", "to")), true),
        "send_dtmf" => ("sendDigits", Some(("digits", "digits")), true),
        "set_disposition" => ("disposition", Some(("status", "status")), false),
        _ => return None,
    };
    let read = || -> Result<Map<String, Value>, String> {
        if arguments.len() > MAX_ARGUMENTS {
            return Err("the arguments are too long".to_owned());
        }
        match serde_json::from_str(arguments) {
            Ok(Value::Object(body)) => Ok(body),
            Ok(Value::Null) => Ok(Map::new()),
            _ if arguments.trim().is_empty() => Ok(Map::new()),
            _ => Err("the arguments are not a JSON object".to_owned()),
        }
    };
    let unusable = |why| Some(Err(Unusable { id: id.to_owned(), command: event, why }));
    let mut given = match read() {
        Ok(given) => given,
        Err(why) => return unusable(why),
    };
    // nothing else: a model that has been talked into it must not choose a number
    let mut body = Map::new();
    if let Some((from, to)) = argument
        && let Some(value) = given.remove(from)
    {
        let is_target = |target: &str| info.targets.iter().any(|known| known == target);
        if to == "to" && value.as_str().is_some_and(|target| !is_target(target)) {
            return unusable("target is not one of the targets that were offered".to_owned());
        }
        body.insert(to.to_owned(), value);
    }
    if waits {
        body.insert("when".to_owned(), "after_audio".into());
    }
    let message = Map::from_iter([("id".to_owned(), Value::from(id))]);
    extension::read(event, Some(&body), &message)
}

/// Returns the name of the tool for a command.
pub fn tool_name(command: &str) -> &'static str {
    match command {
        "hangup" => "hang_up",
        "transfer" => "transfer_call",
        "sendDigits" => "send_dtmf",
        _ => "set_disposition",
    }
}

/// Returns the beginning of a received text for the log, on one line.
pub fn said(text: &str) -> String {
    const MAX: usize = 300;
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut said: String = line.take(MAX).collect();
    if text.chars().nth(MAX).is_some() {
        said.push('…');
    }
    said
}

/// Returns the result of one of our tools for the model; `None` if it is not final.
pub fn output(reply: &OrderReply) -> Option<Value> {
    match &reply.reply {
        Reply::Accepted | Reply::Progress(_) => None,
        Reply::Done | Reply::Failed(_) => {
            let mut result = extension::result(reply);
            result.as_object_mut()?.remove("command");
            Some(result)
        }
    }
}

/// Members of a session whose texts are secret: models are passed the keys of further services.
const SECRET: [&str; 5] =
    ["headers", "credentials", "api_key", "secret_access_key", "session_token"];

/// Returns the texts in a session that are secret.
pub fn secrets(session: &Value) -> Vec<String> {
    let mut secrets = Vec::new();
    collect_secrets(session, false, &mut secrets);
    secrets
}

fn collect_secrets(value: &Value, secret: bool, secrets: &mut Vec<String>) {
    match value {
        // a short word is not a key, and would be taken out of other texts
        Value::String(text) if secret && text.len() >= 8 => secrets.push(text.clone()),
        Value::Array(all) => all.iter().for_each(|value| collect_secrets(value, secret, secrets)),
        Value::Object(all) => {
            for (name, value) in all {
                collect_secrets(value, secret || SECRET.contains(&name.as_str()), secrets);
            }
        }
        _ => {}
    }
}

/// Replaces placeholders such as `{from_number}` in all texts of `value` by the parameters of the
/// stream. Unknown ones stay as they are, because braces have other uses, too.
pub fn filled(value: &Value, info: &StreamInfo) -> Value {
    match value {
        Value::String(text) => Value::String(filled_text(text, info)),
        Value::Array(all) => all.iter().map(|value| filled(value, info)).collect(),
        Value::Object(all) => {
            let members = all.iter().map(|(name, value)| (name.clone(), filled(value, info)));
            Value::Object(members.collect())
        }
        other => other.clone(),
    }
}

/// Same as [`filled`], for one text.
pub fn filled_text(text: &str, info: &StreamInfo) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let name = rest[1..].find(['}', '{']).map(|end| &rest[1..=end]);
        let known = name.filter(|name| rest[1 + name.len()..].starts_with('}'));
        let value = known.and_then(|name| {
            let found = info.parameters.iter().find(|(known, _)| known == name);
            Some((name, found.map(|(_, value)| value.as_str())?))
        });
        match value {
            Some((name, value)) => {
                out.push_str(value);
                rest = &rest[name.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Failure, When};

    fn info() -> StreamInfo {
        let pairs = [("from_number", "+49"), ("lead_id", "7{from_number}")];
        let parameters = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        StreamInfo {
            parameters: parameters.into(),
            targets: vec!["sales".to_owned()],
            ..StreamInfo::default()
        }
    }

    #[test]
    fn placeholders_are_filled_once() {
        for (text, expected) in [
            ("call {from_number}.", "call +49."),
            ("{lead_id}{from_number}", "7{from_number}+49"),
            ("{unknown} {{from_number}} {", "{unknown} {+49} {"),
            ("{é{from_number}}é", "{é+49}é"),
            ("{}{", "{}{"),
        ] {
            assert_eq!(filled_text(text, &info()), expected, "{text}");
        }
        let value = json!({"a": ["{lead_id}", 5], "{from_number}": null});
        assert_eq!(
            filled(&value, &info()),
            json!({"a": ["7{from_number}", 5], "{from_number}": null})
        );
    }

    #[test]
    fn credentials_of_a_session_are_secret() {
        let session = json!({"think": [{
            "endpoint": {"url": "https://llm", "headers": {"authorization": "Bearer 1", "n": 5}},
            "provider": {"credentials": {"type": "iam", "secret_access_key": "the second"}},
        }], "api_key": "the third", "prompt": "a long text"});
        let mut secrets = secrets(&session);
        secrets.sort();
        assert_eq!(secrets, ["Bearer 1", "the second", "the third"]);
    }

    #[test]
    fn tools_become_orders() {
        let Some(Ok(order)) = order(&info(), "c1", "hang_up", "") else { panic!("not an order") };
        assert_eq!((order.id.as_str(), order.when), ("c1", When::AfterAudio));
        let text = r#"{"target":"sales"}"#;
        let Some(Ok(order)) = super::order(&info(), "c2", "transfer_call", text) else {
            panic!("no order")
        };
        let Command::Transfer(transfer) = order.command else { panic!("no transfer") };
        assert_eq!((transfer.to.as_str(), order.when), ("sales", When::AfterAudio));
        let Some(Ok(order)) =
            super::order(&info(), "c3", "set_disposition", r#"{"status":"SALE"}"#)
        else {
            panic!("no order")
        };
        assert_eq!(order.when, When::Now);
        for (name, arguments, why) in [
            ("transfer_call", "{}", "transfer.to is missing"),
            ("send_dtmf", "{\"digits\":\"x\"}", "may have 0-9"),
            ("hang_up", "[]", "not a JSON object"),
            ("transfer_call", "{\"target\":\"1099\"}", "not one of the targets"),
            (
                "transfer_call",
                "{\"to\":\"1099\",\"action\":\"complete\"}",
                "transfer.to is missing",
            ),
        ] {
            let unusable = super::order(&info(), "c", name, arguments).unwrap().unwrap_err();
            assert!(unusable.why.contains(why), "{}", unusable.why);
        }
        assert_eq!(super::order(&info(), "c", "look_up", "{}"), None);
    }

    #[test]
    fn transfers_are_offered_only_with_targets() {
        let names = |tools: Vec<Tool>| tools.into_iter().map(|tool| tool.name).collect::<Vec<_>>();
        assert_eq!(names(tools(None, &[])), ["hang_up", "send_dtmf", "set_disposition"]);
        let targets = ["sales".to_owned()];
        let allowed = ["transfer_call".to_owned()];
        let offered = tools(Some(&allowed), &targets);
        assert_eq!(offered[0].parameters["properties"]["target"]["enum"], json!(["sales"]));
        assert_eq!(names(offered), ["transfer_call"]);
    }

    #[test]
    fn only_final_replies_are_results() {
        let reply = |reply| OrderReply { id: "1".into(), command: "transfer", reply, why: None };
        assert_eq!(output(&reply(Reply::Accepted)), None);
        assert_eq!(output(&reply(Reply::Done)), Some(json!({"status": "done"})));
        let failed = output(&reply(Reply::Failed(Failure::Busy))).unwrap();
        assert_eq!((&failed["status"], &failed["reason"]), (&json!("failed"), &json!("busy")));
    }
}

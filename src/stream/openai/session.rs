//! The session of a model: what of it is the user's, and what is ours.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::{Map, Value, json};

use crate::stream::StreamInfo;
use crate::stream::model::{GREETS, RESUMED, filled, filled_text};

/// The audio format in both directions: G.711 mu-law, as on the telephone.
pub(super) const FORMAT: &str = "audio/pcmu";
/// OpenAI's own address.
const URL: &str = "wss://api.openai.com/v1/realtime";
/// The model, unless the session names one.
const MODEL: &str = "gpt-realtime-2.1";

/// Returns the URL of the model: `configured`, or OpenAI's. It gets the session's model, unless it
/// already names one.
pub fn url(configured: Option<&str>, settings: Option<&Value>) -> String {
    let model = settings.and_then(|settings| settings["model"].as_str());
    let model = model.or(configured.is_none().then_some(MODEL));
    let base = configured.unwrap_or(URL);
    let (_, query) = base.split_once('?').unwrap_or_default();
    let named = query.split('&').any(|pair| pair.starts_with("model="));
    match model.filter(|_| !named) {
        None => base.to_owned(),
        Some(model) => {
            let joint = if base.contains('?') { '&' } else { '?' };
            format!("{base}{joint}model={}", escaped(model))
        }
    }
}

/// Escapes a value of a query.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Checks the user's part of a session.
///
/// # Errors
/// Returns the key below `session` that cannot work, and the reason.
pub fn check(settings: Option<&Value>) -> Result<(), (&'static str, String)> {
    let Some(settings) = settings else { return Ok(()) };
    let is = |value: &Value, allowed: Value| value.is_null() || *value == allowed;
    if !is(&settings["type"], json!("realtime")) {
        return Err(("type", "must be \"realtime\"; leave it out".to_owned()));
    }
    for (key, side) in [("audio.input.format", "input"), ("audio.output.format", "output")] {
        let format = &settings["audio"][side]["format"];
        if !is(format, json!({"type": FORMAT})) {
            let why =
                format!("must be {{ type = \"{FORMAT}\" }}, as on the telephone; leave it out");
            return Err((key, why));
        }
    }
    if !is(&settings["output_modalities"], json!(["audio"])) {
        let why = "must be [\"audio\"], or the caller hears nothing; leave it out";
        return Err(("output_modalities", why.to_owned()));
    }
    for (key, value, wanted) in [
        ("model", &settings["model"], Value::is_string as fn(&Value) -> bool),
        ("instructions", &settings["instructions"], Value::is_string),
        ("tools", &settings["tools"], Value::is_array),
        ("audio", &settings["audio"], Value::is_object),
        ("audio.input", &settings["audio"]["input"], Value::is_object),
        ("audio.output", &settings["audio"]["output"], Value::is_object),
    ] {
        if !value.is_null() && !wanted(value) {
            return Err((key, "has the wrong type; see docs/models.md for an example".to_owned()));
        }
    }
    Ok(())
}

/// Returns a setting of the turn detection.
pub(super) fn turn_detection(settings: Option<&Value>, name: &str) -> Option<bool> {
    settings?["audio"]["input"]["turn_detection"][name].as_bool()
}

/// Returns the session: the user's settings with placeholders filled, our audio formats, and our
/// tools behind the user's. The model is part of the URL, and cannot be changed by an update.
pub(super) fn session(settings: Option<&Value>, info: &StreamInfo, tools: &[Value]) -> Value {
    let settings = settings.map(|settings| filled(settings, info));
    let mut all = match settings {
        Some(Value::Object(all)) => all,
        _ => Map::new(),
    };
    all.remove("model");
    all.insert("type".to_owned(), json!("realtime"));
    let audio = all.entry("audio").or_insert_with(|| json!({}));
    for side in ["input", "output"] {
        // `check` has made sure that these are objects
        if let Some(audio) = audio.as_object_mut() {
            let side = audio.entry(side).or_insert_with(|| json!({}));
            if let Some(side) = side.as_object_mut() {
                side.insert("format".to_owned(), json!({"type": FORMAT}));
            }
        }
    }
    if !tools.is_empty() {
        let list = all.entry("tools").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.extend(tools.iter().cloned());
        }
    }
    Value::Object(all)
}

/// Returns the instructions for what the model says without being spoken to, if anything. They
/// replace those of the session for this response, so they contain them.
pub(super) fn first_words(
    settings: Option<&Value>,
    greeting: Option<&str>,
    info: &StreamInfo,
) -> Option<String> {
    let task = match greeting {
        _ if info.resumed => RESUMED.to_owned(),
        Some(greeting) => format!("{GREETS} {}", filled_text(greeting, info)),
        None => return None,
    };
    let instructions = settings.and_then(|settings| settings["instructions"].as_str());
    let instructions = instructions.map(|text| filled_text(text, info)).unwrap_or_default();
    Some(format!("{instructions}\n\n{task}").trim_start().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_becomes_part_of_the_url() {
        let mini = json!({"model": "gpt realtime&mini"});
        let (none, mini) = (None, Some(&mini));
        let azure = "wss://x.openai.azure.com/openai/v1/realtime";
        for (configured, session, expected) in [
            (None, none, format!("{URL}?model={MODEL}")),
            (None, mini, format!("{URL}?model=gpt%20realtime%26mini")),
            (Some(azure), none, azure.to_owned()),
            (Some(azure), mini, format!("{azure}?model=gpt%20realtime%26mini")),
            (Some("ws://h/?model=a"), mini, "ws://h/?model=a".to_owned()),
            (Some("ws://h/?a=b"), mini, "ws://h/?a=b&model=gpt%20realtime%26mini".to_owned()),
        ] {
            assert_eq!(url(configured, session), expected);
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for (value, key) in [
            (json!({"type": "transcription"}), "type"),
            (json!({"audio": {"input": {"format": {"type": "audio/pcm"}}}}), "audio.input.format"),
            (
                json!({"audio": {"output": {"format": {"type": "audio/pcmu", "rate": 8000}}}}),
                "audio.output.format",
            ),
            (json!({"output_modalities": ["text"]}), "output_modalities"),
            (json!({"tools": {}}), "tools"),
            (json!({"audio": {"input": 5}}), "audio.input"),
            (json!({"model": 5}), "model"),
        ] {
            assert_eq!(check(Some(&value)).unwrap_err().0, key);
        }
        let good = json!({
            "audio": {"input": {"format": {"type": "audio/pcmu"}, "noise_reduction": null}},
            "output_modalities": ["audio"],
        });
        assert_eq!(check(Some(&good)), Ok(()));
        assert_eq!(check(None), Ok(()));
    }

    #[test]
    fn the_users_settings_are_kept_and_the_formats_are_ours() {
        let info = StreamInfo {
            parameters: vec![("from_number".to_owned(), "+49".to_owned())],
            ..StreamInfo::default()
        };
        let given = json!({
            "model": "m",
            "instructions": "The caller is {from_number}.",
            "audio": {"output": {"voice": "marin"}},
            "tools": [{"type": "function", "name": "look_up"}],
        });
        let format = json!({"type": "audio/pcmu"});
        assert_eq!(
            session(Some(&given), &info, &[json!({"name": "hang_up"})]),
            json!({
                "type": "realtime",
                "instructions": "The caller is +49.",
                "audio": {
                    "input": {"format": format},
                    "output": {"format": format, "voice": "marin"},
                },
                "tools": [{"type": "function", "name": "look_up"}, {"name": "hang_up"}],
            })
        );
        let words = first_words(Some(&given), Some("Hello {from_number}!"), &info).unwrap();
        assert!(words.starts_with("The caller is +49.\n\n"), "{words}");
        assert!(words.ends_with("no more: Hello +49!"), "{words}");
        let info = StreamInfo { resumed: true, ..info };
        let resumed = first_words(Some(&given), Some("Hello"), &info).unwrap();
        assert!(resumed.contains("interrupted") && !resumed.contains("Hello"), "{resumed}");
        assert_eq!(first_words(None, None, &StreamInfo::default()), None);
    }
}

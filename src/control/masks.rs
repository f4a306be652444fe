//! Hides phone numbers from tokens without the scope `numbers`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::Value;

use crate::telemetry::Masked;

/// From this many digits on, a text may be a phone number. Extensions are shorter.
const MIN_DIGITS: usize = 5;
/// Digits that are left at the end.
const SHOWN: usize = 2;

/// Hides the phone numbers in a call, an event or a record.
pub fn mask(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (name.as_str(), member) {
                    ("from_number" | "from" | "from_formatted", Value::String(text)) => {
                        *text = Masked(text).to_string();
                    }
                    (
                        "from_name" | "caller_name" | "to_number" | "to" | "to_formatted",
                        Value::String(text),
                    ) => *text = hide(text),
                    // whatever the AI has put there
                    ("disposition", member) => hide_all(member),
                    (_, member) => mask(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        _ => {}
    }
}

/// Hides all numbers in a value.
fn hide_all(value: &mut Value) {
    match value {
        Value::Object(members) => members.values_mut().for_each(hide_all),
        Value::Array(items) => items.iter_mut().for_each(hide_all),
        Value::String(text) => *text = hide(text),
        Value::Number(number) => {
            let text = number.to_string();
            let hidden = hide(&text);
            if hidden != text {
                *value = hidden.into();
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// Replaces the digits of each number in a text with stars, except for its last two. Digits that
/// are separated as in phone numbers are one number.
fn hide(text: &str) -> String {
    let joins = |c: char| c.is_numeric() || " -/().+".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(char::is_numeric) {
        let (before, number) = rest.split_at(start);
        let (number, after) = number.split_at(number.find(|c| !joins(c)).unwrap_or(number.len()));
        out.push_str(before);
        let digits = number.chars().filter(|c| c.is_numeric()).count();
        let mut left = if digits < MIN_DIGITS { 0 } else { digits - SHOWN };
        for c in number.chars() {
            if c.is_numeric() && left > 0 {
                left -= 1;
                out.push('*');
            } else {
                out.push(c);
            }
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_hidden_and_extensions_are_not() {
        for (text, expected) in [
            ("", ""),
            ("8010", "8010"),
            ("Anna 12", "Anna 12"),
            ("+49 30 901820", "+** ** ****20"),
            ("Anna (727) 555-1234!", "Anna (***) ***-**34!"),
            ("to 5551234, then 5551235", "to *****34, then *****35"),
            ("\u{661}\u{662}\u{663}\u{664}\u{665}", "***\u{664}\u{665}"),
        ] {
            assert_eq!(hide(text), expected);
        }
    }

    #[test]
    fn the_members_with_numbers_are_masked() {
        let mut event = json!({"data": {
            "call": {"id": "1795984598-55", "from_number": "101", "from_name": "7275551234",
                "to_number": "+4930901820", "details": {"lead_id": "123456"}},
            "summary": {"commands": [{"to": "5551234", "by": "ai"}], "talk_ms": 123_456,
                "disposition": {"status": "CALLBK", "data": {"n": 7_275_551_234_u64, "x": [1]}}},
        }});
        mask(&mut event);
        assert_eq!(
            event,
            json!({"data": {
                "call": {"id": "1795984598-55", "from_number": "*01", "from_name": "********34",
                    "to_number": "+********20", "details": {"lead_id": "123456"}},
                "summary": {"commands": [{"to": "*****34", "by": "ai"}], "talk_ms": 123_456,
                    "disposition": {"status": "CALLBK", "data": {"n": "********34", "x": [1]}}},
            }})
        );
    }
}

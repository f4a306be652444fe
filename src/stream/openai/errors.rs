//! The errors of the server: which of them are fatal, and how they are shown.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::Value;

/// The errors after which no session of this key and model can continue.
const FATAL: [&str; 8] = [
    "insufficient_quota",
    "invalid_api_key",
    "authentication_error",
    "permission_error",
    "permission_denied",
    "account_deactivated",
    "billing_hard_limit_reached",
    "model_not_found",
];
/// Maximum length of an error's text, in characters.
const MAX_WHY: usize = 300;
/// Words of this length with a digit in them may be keys, and are not shown.
const SECRET_LENGTH: usize = 20;

/// True if no session can continue.
pub(super) fn is_fatal(error: &Value) -> bool {
    ["code", "type"].iter().any(|name| error[name].as_str().is_some_and(|w| FATAL.contains(&w)))
}

/// Returns an error's text for the log.
pub(super) fn reason(error: &Value) -> String {
    let word = |name: &str| error[name].as_str().filter(|word| !word.is_empty());
    let message = word("message").or(word("code")).or(word("type"));
    match (message, word("code")) {
        (Some(message), Some(code)) if message != code => shown(&format!("{message} ({code})")),
        (Some(message), _) => shown(message),
        _ => "it gives no reason".to_owned(),
    }
}

/// Returns a text of the server on one line, of limited length, without anything that may be a key.
pub(super) fn shown(text: &str) -> String {
    let may_be_secret = |word: &&str| {
        let secret = |c: char| c.is_ascii_alphanumeric() || "-_*.".contains(c);
        word.chars().filter(|c| secret(*c)).count() >= SECRET_LENGTH
            && word.chars().any(|c| c.is_ascii_digit() || c == '*')
            && !word.starts_with("http")
    };
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words = words.filter(|word| !word.is_empty()).map(|word| match may_be_secret(&word) {
        true => "…",
        false => word,
    });
    words.collect::<Vec<_>>().join(" ").chars().take(MAX_WHY).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_server_are_shown_without_keys() {
        let link = "see https://platform.openai.com/account/api-keys2";
        for (text, expected) in [
            (
                "Incorrect API key provided: sk-abc***********************wxyz.",
                "Incorrect API key provided: …",
            ),
            ("a\n\tb\u{7}c", "a b c"),
            (link, link),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown(&"word ".repeat(200)).len(), MAX_WHY);
    }
}

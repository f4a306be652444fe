//! Key presses in INFO requests, in the forms that devices send.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::message::Message;
use crate::sip::multipart;

/// The types of the bodies that contain a key press, for Accept.
pub const ACCEPT: &str = "application/dtmf-relay, application/dtmf, audio/telephone-event";

const KINDS: [&str; 3] = ["application/dtmf-relay", "application/dtmf", "audio/telephone-event"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPress {
    Digit(char),
    /// The hook flash, which the stream has no key for.
    Flash,
    Unreadable,
}

/// Returns the key press in a request, or `None` if its body is of another type.
pub fn read(request: &Message) -> Option<KeyPress> {
    let (_, body) = multipart::find(request, &KINDS)?;
    let body = String::from_utf8_lossy(&body);
    let signal = body.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        name.trim().eq_ignore_ascii_case("Signal").then(|| value.trim())
    });
    Some(key(signal.unwrap_or(body.trim())))
}

/// Reads a character, or the number of an event (RFC 4733 §3.2).
fn key(text: &str) -> KeyPress {
    match text.parse() {
        Ok(16) => return KeyPress::Flash,
        Ok(event @ 10..=15_usize) => {
            return "*#ABCD".chars().nth(event - 10).map_or(KeyPress::Unreadable, KeyPress::Digit);
        }
        _ => {}
    }
    let mut chars = text.chars().map(|c| c.to_ascii_uppercase());
    match (chars.next(), chars.next()) {
        (Some(digit), None) if "0123456789*#ABCD".contains(digit) => KeyPress::Digit(digit),
        (Some('!'), None) => KeyPress::Flash,
        _ => KeyPress::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_presses_in_all_forms() {
        let several = "--b\r\nContent-Type: application/dtmf-relay\r\n\r\nSignal=7\r\n--b--\r\n";
        let table = [
            ("application/dtmf-relay", "Signal=5\r\nDuration=160", Some(KeyPress::Digit('5'))),
            ("application/dtmf-relay", "signal = d", Some(KeyPress::Digit('D'))),
            ("application/dtmf-relay", "Signal=10", Some(KeyPress::Digit('*'))),
            ("application/dtmf-relay", "Signal=11", Some(KeyPress::Digit('#'))),
            ("application/dtmf-relay", "Signal=12", Some(KeyPress::Digit('A'))),
            ("application/dtmf-relay", "Signal=15", Some(KeyPress::Digit('D'))),
            ("application/dtmf-relay", "Signal=16", Some(KeyPress::Flash)),
            ("application/dtmf-relay", "Signal=!", Some(KeyPress::Flash)),
            ("application/dtmf-relay", "Signal=17", Some(KeyPress::Unreadable)),
            ("application/dtmf-relay", "Signal=", Some(KeyPress::Unreadable)),
            ("application/dtmf", "Signal=5\r\n", Some(KeyPress::Digit('5'))),
            ("Application / DTMF;x", "#\r\n", Some(KeyPress::Digit('#'))),
            ("audio/telephone-event", "5", Some(KeyPress::Digit('5'))),
            ("multipart/mixed;boundary=b", several, Some(KeyPress::Digit('7'))),
            ("text/plain", "5", None),
        ];
        for (kind, body, expected) in table {
            let info = Message::request("INFO", "sip:a@b").with_body(kind, body);
            assert_eq!(read(&info), expected, "{kind} {body}");
        }
    }
}

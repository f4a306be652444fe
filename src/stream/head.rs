//! The head of the response to a WebSocket handshake: finds its end, and rewrites what the
//! WebSocket library reads too strictly.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The field with the subprotocol that a server has selected.
const SUBPROTOCOL: &str = "Sec-WebSocket-Protocol";

/// Parser state within a head, which ends with an empty line. Lines end with LF or CR LF, as for
/// the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Line ends before the first line.
    Before,
    Line,
    /// At the start of a line; with `cr`, behind a CR.
    Empty {
        cr: bool,
    },
    End,
}

impl Head {
    /// Returns the state after another byte.
    pub fn then(self, byte: u8) -> Head {
        match (self, byte) {
            (Head::Before, b'\r' | b'\n') => Head::Before,
            (Head::Line, b'\n') => Head::Empty { cr: false },
            (Head::Empty { .. }, b'\n') => Head::End,
            (Head::Empty { cr: false }, b'\r') => Head::Empty { cr: true },
            _ => Head::Line,
        }
    }
}

/// Returns the head of a 101 with a single `Connection: Upgrade`, if `Upgrade` is among the tokens
/// of its Connection fields. The field is a list (RFC 6455 §4.1, RFC 9110 §7.6.1), to which proxies
/// add `keep-alive`; the library accepts only the one word. Any other head is returned as it is.
///
/// A server need not select the `subprotocol` that was requested (RFC 6455 §4.2.2), but the library
/// insists on it, so it is added if there is none.
pub(super) fn normalized(head: Vec<u8>, subprotocol: Option<&str>) -> Vec<u8> {
    let lines = || head.split_inclusive(|byte| *byte == b'\n');
    let status = lines().find(|line| !line.trim_ascii().is_empty());
    let switching = status.and_then(|line| line.split(|b| *b == b' ').nth(1));
    let upgrades = lines().filter_map(connection).any(|value| {
        let mut tokens = value.split(|byte| *byte == b',');
        tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    if switching.is_none_or(|status| status.trim_ascii() != b"101") || !upgrades {
        return head;
    }
    let mut out = Vec::with_capacity(head.len() + 96);
    let mut written = false;
    let missing = subprotocol.filter(|_| lines().all(|line| value(line, SUBPROTOCOL).is_none()));
    for line in lines() {
        if connection(line).is_none() {
            out.extend_from_slice(line);
        } else if !std::mem::replace(&mut written, true) {
            out.extend_from_slice(b"Connection: Upgrade\r\n");
            if let Some(name) = missing {
                out.extend_from_slice(format!("{SUBPROTOCOL}: {name}\r\n").as_bytes());
            }
        }
    }
    out
}

/// Returns the value of a Connection field.
fn connection(line: &[u8]) -> Option<&[u8]> {
    value(line, "Connection")
}

/// Returns the value of the field in `line`, if it has this name.
fn value<'a>(line: &'a [u8], field: &str) -> Option<&'a [u8]> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    name.eq_ignore_ascii_case(field.as_bytes()).then(|| value[1..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_heads_match_the_library() {
        for head in [
            "HTTP/1.1 101 X\r\na: b\r\n\r\n",
            "HTTP/1.1 101 X\na: b\n\n",
            "HTTP/1.1 101 X\r\na: b\n\r\n",
            "\r\n\r\nHTTP/1.1 101 X\r\na: \r b\r\n\r\n",
        ] {
            let bytes = format!("{head}behind\r\n\r\n");
            let mut state = Head::Before;
            let end = bytes.bytes().position(|byte| {
                state = state.then(byte);
                state == Head::End
            });
            assert_eq!(end.map(|at| at + 1), Some(head.len()), "{head:?}");
        }
    }

    #[test]
    fn a_list_with_upgrade_becomes_that_word() {
        let plain = "HTTP/1.1 101 X\r\nConnection: Upgrade\r\na: b\r\n\r\n";
        for fields in [
            "Connection: Upgrade\r\n",
            "Connection: keep-alive, Upgrade\r\n",
            "connection:UPGRADE,close\r\n",
            "CONNECTION: , upgrade ,\t\r\n",
            "Connection: keep-alive\r\nConnection: upgrade\r\n",
        ] {
            let head = format!("HTTP/1.1 101 X\r\n{fields}a: b\r\n\r\n");
            assert_eq!(normalized(head.into_bytes(), None), plain.as_bytes(), "{fields:?}");
        }
    }

    #[test]
    fn other_heads_remain_as_they_are() {
        for head in [
            "HTTP/1.1 101 X\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 101 X\r\nConnection: not-upgrade\r\n\r\n",
            "HTTP/1.1 101 X\r\nX-Connection: Upgrade, a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: Upgrade, close\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "\r\n\r\n",
            "",
        ] {
            assert_eq!(normalized(head.as_bytes().to_vec(), Some("a")), head.as_bytes());
        }
    }

    #[test]
    fn a_subprotocol_that_was_not_selected_is_added() {
        let text = |head: &str| {
            String::from_utf8(normalized(head.as_bytes().to_vec(), Some("a.example"))).unwrap()
        };
        let plain = "HTTP/1.1 101 X\r\nConnection: Upgrade\r\n\r\n";
        let selected = plain.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: a.example\r\n\r\n");
        assert_eq!(text(plain), selected);
        let other = plain.replace("\r\n\r\n", "\r\nsec-websocket-protocol: other\r\n\r\n");
        assert_eq!(text(&other), other);
    }
}

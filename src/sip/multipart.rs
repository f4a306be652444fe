//! Finds the session description in a message body of several parts (RFC 5621, RFC 2046 §5.1).
//!
//! Gateways and PBXs put SDP beside other parts, such as the caller's location or ISUP. Those are
//! ignored, unless the sender requires that they are understood.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::header::{find_param, full_name, parse_params, split_outside};
use crate::sip::message::{Message, head_end};
use crate::sip::uri::Param;

/// The body types we accept, for Accept.
pub const ACCEPT: &str = "application/sdp, multipart/mixed, multipart/alternative";

/// Parts may contain parts down to this depth.
const MAX_DEPTH: usize = 4;
/// Maximum number of parts in a multipart body; further ones are ignored.
const MAX_PARTS: usize = 64;

/// The content of a message body, as far as a session is concerned.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Sdp(Vec<u8>),
    /// Nothing that concerns us, and nothing that has to be understood.
    Nothing,
    /// A type that we do not support, but have to.
    Unsupported,
}

/// Replaces a body of several parts by the session description in it, and removes a body that may
/// be ignored. Other bodies do not change: if it is not SDP, the request is refused later.
pub fn unwrap(message: &mut Message) {
    if message.body.is_empty() || message.content_type().as_deref() == Some("application/sdp") {
        return;
    }
    let headers = message.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    let part = Part { headers: headers.collect(), body: &message.body };
    let (kind, body) = match content(&part, 0) {
        Content::Sdp(body) => (Some("application/sdp"), body),
        Content::Nothing => (None, Vec::new()),
        Content::Unsupported => return,
    };
    message.headers.retain(|(name, _)| {
        let described = ["Content-Type", "Content-Disposition", "Content-Encoding"];
        !described.iter().any(|d| d.eq_ignore_ascii_case(name))
    });
    if let Some(kind) = kind {
        message.push("Content-Type", kind);
    }
    message.body = body;
}

/// A message or a part of one.
struct Part<'a> {
    headers: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
}

impl<'a> Part<'a> {
    fn parse(text: &'a [u8]) -> Part<'a> {
        // a part without header fields begins with the blank line
        let end = match text.iter().position(|b| !matches!(b, b'\r')) {
            Some(at) if text[at] == b'\n' => Some((0, at + 1)),
            _ => head_end(text),
        };
        let (head, body) = end.unwrap_or((text.len(), text.len()));
        let head = std::str::from_utf8(&text[..head]).unwrap_or_default();
        let fields = head.lines().filter_map(|line| line.split_once(':'));
        let headers = fields.map(|(name, value)| (name.trim(), value.trim())).collect();
        Part { headers, body: &text[body..] }
    }

    /// Returns a field's value, in lower case and without parameters, and its parameters.
    fn field(&self, name: &str) -> Option<(String, Vec<Param>)> {
        let found = self.headers.iter().find(|(n, _)| full_name(n).eq_ignore_ascii_case(name))?;
        let parts = split_outside(found.1, ';')?;
        let params = parse_params(&parts[1..]).unwrap_or_default();
        Some((parts[0].to_ascii_lowercase(), params))
    }

    /// True unless the sender allows us to ignore the part. Without Content-Disposition, only the
    /// body of a whole message has to be understood: RFC 3261 §20.11 says the same of every part,
    /// but devices add parts without one that no other end understands either.
    fn is_required(&self, depth: usize) -> bool {
        match self.field("Content-Disposition") {
            Some((_, params)) => find_param(&params, "handling")
                .map_or(depth == 0, |h| h.eq_ignore_ascii_case("required")),
            None => depth == 0,
        }
    }

    /// True if the body can be read as it is.
    fn is_plain(&self) -> bool {
        let plain = |name: &str, values: &[&str]| {
            self.field(name).is_none_or(|(value, _)| values.contains(&value.as_str()))
        };
        plain("Content-Encoding", &["identity"])
            && plain("Content-Transfer-Encoding", &["binary", "8bit", "7bit"])
    }
}

fn content(part: &Part<'_>, depth: usize) -> Content {
    let unknown = match part.is_required(depth) {
        true => Content::Unsupported,
        false => Content::Nothing,
    };
    // RFC 3261 §20.15 requires a type; a body without one is SDP in practice
    let untyped = (String::new(), Vec::new());
    let (kind, params) = part.field("Content-Type").unwrap_or(untyped);
    let is_sdp = kind == "application/sdp"
        || (kind.is_empty() && depth == 0 && part.body.starts_with(b"v="));
    // early media has a description of its own (RFC 3959)
    let early = part.field("Content-Disposition").is_some_and(|(d, _)| d == "early-session");
    match kind.as_str() {
        _ if is_sdp && early => Content::Nothing,
        _ if is_sdp && part.is_plain() => Content::Sdp(part.body.to_vec()),
        "multipart/alternative" | "multipart/mixed" | "multipart/related"
            if depth < MAX_DEPTH && part.is_plain() =>
        {
            let Some(boundary) = find_param(&params, "boundary") else { return unknown };
            let parts = split(part.body, boundary);
            if parts.is_empty() {
                return unknown;
            }
            let contents = parts.into_iter().map(|text| content(&Part::parse(text), depth + 1));
            match kind.as_str() {
                // the last one that we understand is the best (RFC 2046 §5.1.4)
                "multipart/alternative" => {
                    let found = contents.rev().find(|c| matches!(c, Content::Sdp(_)));
                    found.unwrap_or(unknown)
                }
                _ => mixed(contents),
            }
        }
        _ => unknown,
    }
}

/// Returns the first session description, unless a part must be understood and is not.
fn mixed(contents: impl Iterator<Item = Content>) -> Content {
    let mut found = Content::Nothing;
    for content in contents {
        match content {
            Content::Unsupported => return Content::Unsupported,
            Content::Sdp(_) if found == Content::Nothing => found = content,
            Content::Sdp(_) | Content::Nothing => {}
        }
    }
    found
}

/// Splits a body at the lines that consist of `--` and the boundary. Text before the first and
/// after the last is dropped. A missing closing line ends the body, too.
fn split<'a>(body: &'a [u8], boundary: &str) -> Vec<&'a [u8]> {
    let (mut parts, mut from, mut at) = (Vec::new(), None, 0);
    for line in body.split_inclusive(|b| *b == b'\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let line = line.trim_ascii_end();
        let rest = line.strip_prefix(b"--").and_then(|l| l.strip_prefix(boundary.as_bytes()));
        let Some(rest) = rest.filter(|r| matches!(*r, b"" | b"--")) else { continue };
        if let Some(from) = from {
            // the line break before the boundary belongs to it
            let part = &body[from..start];
            let part = part.strip_suffix(b"\n").unwrap_or(part);
            parts.push(part.strip_suffix(b"\r").unwrap_or(part));
        }
        from = (rest.is_empty() && parts.len() < MAX_PARTS).then_some(end);
        if from.is_none() {
            break;
        }
    }
    parts.extend(from.map(|from| &body[from..]));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const SDP: &str = "v=0\r\nm=audio 4000 RTP/AVP 0\r\n";

    fn message(kind: &str, body: &str) -> Message {
        let mut message = Message::request("INVITE", "sip:a@b").with_body(kind, body);
        unwrap(&mut message);
        message
    }

    /// Returns a multipart body of these parts, each a header block and a body.
    fn parts(boundary: &str, parts: &[(&str, &str)]) -> String {
        let part = |(head, body): &(&str, &str)| format!("--{boundary}\r\n{head}\r\n{body}\r\n");
        parts.iter().map(part).collect::<String>() + &format!("--{boundary}--\r\n")
    }

    const SESSION: (&str, &str) = ("Content-Type: application/sdp\r\n", SDP);

    #[test]
    fn the_session_description_is_found_among_other_parts() {
        let other = |disposition: &str| {
            (format!("Content-Type: application/pidf+xml\r\n{disposition}"), "<presence/>")
        };
        let (location, silent) =
            (other("Content-Disposition: by-reference;handling=optional\r\n"), other(""));
        let isup = ("c: application/isup;version=itu\r\nContent-Disposition: signal\r\n", "\x01");
        let location = (location.0.as_str(), location.1);
        let silent = (silent.0.as_str(), silent.1);
        let nested = parts("in", &[silent, SESSION]);
        let nested = ("Content-Type: multipart/mixed; boundary=in\r\n", nested.as_str());
        let cheap = ("Content-Type: application/sdp\r\n", "v=0\r\nm=audio 1 RTP/AVP 0\r\n");
        let early =
            ("Content-Disposition: early-session\r\nContent-Type: application/sdp\r\n", cheap.1);
        let table = [
            ("multipart/mixed;boundary=b1", parts("b1", &[SESSION, location])),
            ("multipart/mixed;boundary=b1", parts("b1", &[isup, SESSION])),
            ("multipart/mixed;boundary=b1", parts("b1", &[silent, SESSION, cheap])),
            ("multipart/mixed;boundary=b1", parts("b1", &[early, SESSION])),
            ("Multipart/Mixed; boundary = \"a b;c\" ; x", parts("a b;c", &[SESSION, location])),
            ("multipart/mixed;boundary=b1", parts("b1", &[location, nested])),
            ("multipart/alternative;boundary=b1", parts("b1", &[cheap, SESSION, silent])),
            ("multipart/related;boundary=b1", parts("b1", &[SESSION, silent])),
            (
                "multipart/mixed;boundary=b1",
                format!("preamble\r\n--b12\r\n\r\n{}epilogue", parts("b1", &[SESSION])),
            ),
            ("multipart/mixed;boundary=b1", parts("b1", &[SESSION]).replace("--b1\r", "--b1 \t\r")),
            ("multipart/mixed;boundary=b1", parts("b1", &[SESSION]).replace("--b1--\r\n", "")),
            ("application/sdp", SDP.to_owned()),
        ];
        for (kind, body) in table {
            let found = message(kind, &body);
            assert_eq!(found.content_type().as_deref(), Some("application/sdp"), "{body}");
            assert_eq!(String::from_utf8_lossy(&found.body).trim(), SDP.trim(), "{body}");
        }
        let bare = message("multipart/mixed;boundary=b", &parts("b", &[SESSION]).replace('\r', ""));
        assert_eq!(bare.body, SDP.replace('\r', "").as_bytes());
        let mut untyped = Message::request("INVITE", "sip:a@b");
        untyped.body = SDP.as_bytes().to_vec();
        unwrap(&mut untyped);
        assert_eq!(untyped.content_type().as_deref(), Some("application/sdp"));
    }

    #[test]
    fn a_part_that_must_be_understood_leaves_the_body_as_it_is() {
        let required = "Content-Type: text/x\r\nContent-Disposition: signal;handling=Required\r\n";
        let encoded = "Content-Type: application/sdp\r\nContent-Transfer-Encoding: base64\r\n\
            Content-Disposition: session;handling=required\r\n";
        let mut deep = parts("b0", &[SESSION]);
        for n in 1..9 {
            let head = format!("Content-Type: multipart/mixed;boundary=b{}\r\n", n - 1);
            deep = parts(&format!("b{n}"), &[(&head, &deep), (required, "")]);
        }
        let table = [
            ("multipart/mixed;boundary=b1", parts("b1", &[SESSION, (required, "x")])),
            ("multipart/mixed;boundary=b1", parts("b1", &[(encoded, "dj0w")])),
            ("multipart/mixed;boundary=b8", deep),
            ("multipart/mixed", parts("b1", &[SESSION])),
            ("multipart/digest;boundary=b1", parts("b1", &[SESSION])),
            ("multipart/alternative;boundary=b1", parts("b1", &[("", "x")])),
            ("text/plain", "x".to_owned()),
        ];
        for (kind, body) in table {
            let found = message(kind, &body);
            assert_eq!((found.get("Content-Type"), &found.body[..]), (Some(kind), body.as_bytes()));
        }
    }

    #[test]
    fn a_body_that_may_be_ignored_is_removed() {
        let none =
            message("multipart/mixed;boundary=b", &parts("b", &[("Content-Type: x/y\r\n", "")]));
        assert_eq!((none.content_type(), none.body.len()), (None, 0));
        let mut optional = Message::request("INVITE", "sip:a@b")
            .with("Content-Disposition", "signal;handling=optional")
            .with_body("application/isup", "x");
        unwrap(&mut optional);
        assert_eq!((optional.content_type(), optional.body.len()), (None, 0));
    }
}

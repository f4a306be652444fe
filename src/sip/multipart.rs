//! Finds the session description in a message body of several parts (RFC 5621, RFC 2046 §5.1).
//!
//! Gateways and PBXs put SDP beside other parts, such as the caller's location or ISUP. Those are
//! ignored, unless the sender requires that they are understood.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::sip::header::{find_param, full_name, media_type, parse_params, split_leniently};
use crate::sip::message::Message;
use crate::sip::reader::head_end;
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
    /// Perhaps a session description, but unreadable. Without another one, the request must not be
    /// taken for one without an offer.
    Unread,
    /// A type that we do not support, but have to.
    Unsupported,
}

/// Replaces a body of several parts by the session description in it, and removes a body that may
/// be ignored. Other bodies do not change: if it is not SDP, the request is refused later.
pub fn unwrap(message: &mut Message) {
    if message.body.is_empty() || message.content_type().as_deref() == Some("application/sdp") {
        return;
    }
    let part = Part { headers: message.headers.clone(), body: &message.body };
    let (kind, body) = match content(&part, 0) {
        Content::Sdp(body) => (Some("application/sdp"), body),
        Content::Nothing => (None, Vec::new()),
        Content::Unread | Content::Unsupported => return,
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

/// Returns the type and body of the first part of one of these types, or of the message itself.
pub fn find(message: &Message, kinds: &[&str]) -> Option<(String, Vec<u8>)> {
    find_in(&Part { headers: message.headers.clone(), body: &message.body }, kinds, 0)
}

fn find_in(part: &Part<'_>, kinds: &[&str], depth: usize) -> Option<(String, Vec<u8>)> {
    let (kind, params) = part.field("Content-Type")?;
    let body = part.decoded()?;
    if kinds.contains(&kind.as_str()) {
        return Some((kind, body));
    }
    let boundary = find_param(&params, "boundary").filter(|_| kind.starts_with("multipart/"))?;
    let parts = if depth < MAX_DEPTH { split(&body, boundary) } else { Vec::new() };
    parts.into_iter().find_map(|text| find_in(&Part::parse(text), kinds, depth + 1))
}

/// A message or a part of one.
struct Part<'a> {
    headers: Vec<(String, String)>,
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
        let mut headers: Vec<(String, String)> = Vec::new();
        for line in String::from_utf8_lossy(&text[..head]).lines() {
            match (headers.last_mut(), line.split_once(':')) {
                (Some((_, value)), _) if line.starts_with([' ', '\t']) => {
                    *value = format!("{value} {}", line.trim()).trim().to_owned();
                }
                (_, Some((name, value))) => {
                    headers.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                _ => {}
            }
        }
        Part { headers, body: &text[body..] }
    }

    /// Returns a field's value, in lower case and without parameters, and its parameters.
    fn field(&self, name: &str) -> Option<(String, Vec<Param>)> {
        let found = self.headers.iter().find(|(n, _)| full_name(n).eq_ignore_ascii_case(name))?;
        let parts = split_leniently(&found.1, ';');
        Some((media_type(parts[0]), parse_params(&parts[1..])))
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

    /// Returns the body without its transfer encoding, if that is known.
    fn decoded(&self) -> Option<Vec<u8>> {
        let value = |name: &str| self.field(name).map(|(value, _)| value).unwrap_or_default();
        if !matches!(value("Content-Encoding").as_str(), "" | "identity") {
            return None;
        }
        match value("Content-Transfer-Encoding").as_str() {
            "" | "binary" | "8bit" | "7bit" => Some(self.body.to_vec()),
            "quoted-printable" => Some(unquote_printable(self.body)),
            "base64" => {
                let letters = self.body.iter().filter(|b| !b.is_ascii_whitespace() && **b != b'=');
                STANDARD_NO_PAD.decode(letters.copied().collect::<Vec<u8>>()).ok()
            }
            _ => None,
        }
    }
}

/// Decodes quoted-printable text (RFC 2045 §6.7). An `=` that begins no escape stands for itself,
/// because some senders name this encoding without using it.
fn unquote_printable(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).filter(|h| h.iter().all(u8::is_ascii_hexdigit));
        let hex = hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        rest = match (first, hex, after) {
            (b'=', _, [b'\r', b'\n', next @ ..] | [b'\n', next @ ..]) => next,
            // `a=20…` of an SDP that is not encoded: only an encoder writes capitals
            (b'=', Some(byte), _) if !after[..2].iter().any(u8::is_ascii_lowercase) => {
                out.push(byte);
                &after[2..]
            }
            _ => {
                out.push(*first);
                after
            }
        };
    }
    out
}

fn content(part: &Part<'_>, depth: usize) -> Content {
    let (kind, params) = part.field("Content-Type").unwrap_or_default();
    let has_audio = part.body.windows(7).any(|w| w.eq_ignore_ascii_case(b"m=audio"));
    let unknown = match part.is_required(depth) {
        _ if kind.contains("sdp") || has_audio => Content::Unread,
        true => Content::Unsupported,
        false => Content::Nothing,
    };
    // RFC 3261 §20.15 requires a type; a body without one is SDP in practice
    let untyped = kind.is_empty() && part.body.trim_ascii_start().starts_with(b"v=");
    // early media has a description of its own (RFC 3959)
    let early = part.field("Content-Disposition").is_some_and(|(d, _)| d == "early-session");
    match (kind.as_str(), part.decoded()) {
        ("application/sdp", _) if early => Content::Nothing,
        // a call loses nothing if the signalling that a gateway carries through is not understood
        ("application/isup" | "application/qsig", _) if depth > 0 => Content::Nothing,
        (kind, Some(body)) if kind == "application/sdp" || untyped => Content::Sdp(body),
        (
            "multipart/alternative" | "multipart/mixed" | "multipart/related" | "multipart/signed",
            Some(body),
        ) if depth < MAX_DEPTH => {
            let Some(boundary) = find_param(&params, "boundary") else { return unknown };
            let parts = split(&body, boundary);
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
        match (content, &found) {
            (Content::Unsupported, _) => return Content::Unsupported,
            (sdp @ Content::Sdp(_), Content::Nothing | Content::Unread) => found = sdp,
            (Content::Unread, Content::Nothing) => found = Content::Unread,
            _ => {}
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
    fn a_session_description_in_an_odd_part_is_found() {
        let encoded = "dj0wDQptPWF1ZGlvIDQwMDAg\r\nUlRQL0FWUCAwDQo=";
        let printable = "v=3D0=0D=0A=\r\nm=3Daudio 4000=\r\n RTP/AVP 0\r\n";
        let table = [
            ("mixed;boundary=b", "Content-Type:\r\n application/sdp\r\n", SDP),
            ("mixed;boundary=b", "Content-Disposition: session\r\n", SDP),
            ("mixed;boundary=b", "", SDP),
            ("mixed;boundary=b", "X: M\u{fc}ller\r\nContent-Type: application / SDP,\r\n", SDP),
            ("mixed;x[1]=2;boundary=b", SESSION.0, SDP),
            ("signed;boundary=b", SESSION.0, SDP),
            (
                "mixed;boundary=b",
                "c: application/sdp\r\nContent-Transfer-Encoding: BINARY\r\n",
                SDP,
            ),
            (
                "mixed;boundary=b",
                "c: application/sdp\r\nContent-Transfer-Encoding: Base64\r\n",
                encoded,
            ),
            (
                "mixed;boundary=b",
                "c: application/sdp\r\nContent-Transfer-Encoding: quoted-printable\r\n",
                SDP,
            ),
            (
                "mixed;boundary=b",
                "c: application/sdp\r\nContent-Transfer-Encoding: quoted-printable\r\n",
                printable,
            ),
        ];
        let isup = "Content-Type: application/isup\r\nContent-Disposition: x;handling=required\r\n";
        for (kind, head, body) in table {
            let kind = format!("multipart/{kind}");
            let text = parts("b", &[(isup, "\x01"), (head, body)]);
            // as Latin-1
            let text: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
            let mut found = Message::request("INVITE", "sip:a@b").with_body(&kind, text);
            unwrap(&mut found);
            assert_eq!(found.content_type().as_deref(), Some("application/sdp"), "{head}");
            assert_eq!(String::from_utf8_lossy(&found.body).trim(), SDP.trim(), "{head}");
        }
    }

    #[test]
    fn a_part_that_must_be_understood_leaves_the_body_as_it_is() {
        let required = "Content-Type: text/x\r\nContent-Disposition: signal;handling=Required\r\n";
        let encoded = "Content-Type: application/sdp\r\nContent-Transfer-Encoding: x-own\r\n\
            Content-Disposition: session;handling=optional\r\n";
        let private = "Content-Type: application/x-sdp\r\n";
        let mut deep = parts("b0", &[SESSION]);
        for n in 1..9 {
            let head = format!("Content-Type: multipart/mixed;boundary=b{}\r\n", n - 1);
            deep = parts(&format!("b{n}"), &[(&head, &deep), (required, "")]);
        }
        let table = [
            ("multipart/mixed;boundary=b1", parts("b1", &[SESSION, (required, "x")])),
            ("multipart/mixed;boundary=b1", parts("b1", &[(encoded, "dj0w")])),
            ("multipart/mixed;boundary=b1", parts("b1", &[(private, "v=0")])),
            ("multipart/mixed;boundary=b1", parts("b1", &[("Content-Type: text/x\r\n", SDP)])),
            ("multipart/mixed;boundary=other", parts("b1", &[SESSION])),
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

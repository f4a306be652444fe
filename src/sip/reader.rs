//! Reads SIP messages (RFC 3261 §7). It is strict only about the fields that identify and route a
//! message: the topmost Via, From, To, Call-ID, CSeq and Content-Length, and the Request-URI of a
//! request outside a dialog. A call must not fail, and a BYE must not be lost, because of a field
//! that a device writes wrongly and that is not needed here.
//!
//! [`Message::parse`] reads as much as it can and returns the first fault with the message, so that
//! a bad request can be answered with the right status and a bad response dropped.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::bytes::decode;
use crate::sip::header::{full_name, is_token, parse_number};
use crate::sip::message::{Fault, MAX_MESSAGE_BYTES, Message, Start, Unreadable};
use crate::sip::uri::{Uri, UriError, number};

/// Header field lines that are kept in any case. Of the lines after them, only [`NEEDED`] ones are.
const MAX_HEADERS: usize = 128;
/// Header field lines that are kept at most. A message with more that are needed is refused.
const MAX_NEEDED: usize = 256;
/// Fields that a message needs even if they come after many others.
const NEEDED: [&str; 13] = [
    "Via",
    "From",
    "To",
    "Call-ID",
    "CSeq",
    "Content-Length",
    "Content-Type",
    "Content-Disposition",
    "Content-Encoding",
    "Contact",
    "Record-Route",
    "Require",
    "Session-Expires",
];

impl Message {
    /// Parses one message. In a datagram, bytes after Content-Length are ignored and a body shorter
    /// than Content-Length is a fault (RFC 3261 §18.3). From a stream, the caller passes exactly
    /// one message.
    ///
    /// # Errors
    /// Returns [`Unreadable`] if the data cannot be answered; the caller drops and counts it.
    pub fn parse(data: &[u8]) -> Result<(Message, Option<Fault>), Unreadable> {
        if data.len() > MAX_MESSAGE_BYTES {
            return Err(Unreadable("too large"));
        }
        let start_at = data.iter().take_while(|b| is_filler(**b)).count();
        let data = &data[start_at..];
        let (end, body) = head_end(data).ok_or(Unreadable("no blank line after the headers"))?;
        let (head, body) = (&data[..end], &data[body..]);
        let lines: Vec<String> = head.split(|b| *b == b'\n').map(decode).collect();
        // some devices end a line with several CRs
        let mut lines = lines.iter().map(|line| line.trim_end_matches('\r'));
        let (start, mut fault) = parse_start(lines.next().unwrap_or(""))?;
        let headers = unfold(lines, &mut fault);
        let mut message = Message { start, headers, body: Vec::new() };
        let length = match message.declared_length() {
            Ok(None) => body.len(),
            Ok(Some(length)) if length <= body.len() => length,
            Ok(Some(_)) => {
                bad(&mut fault, "Content-Length is larger than the body");
                body.len()
            }
            Err(reason) => {
                bad(&mut fault, reason);
                body.len()
            }
        };
        message.body = body[..length].to_vec();
        if let Err(found) = message.check() {
            fault.get_or_insert(found);
        }
        Ok((message, fault))
    }

    /// Returns the Content-Length; an empty one is as good as none. It may be repeated.
    fn declared_length(&self) -> Result<Option<usize>, &'static str> {
        let mut length = None;
        for value in self.all("Content-Length").filter(|value| !value.is_empty()) {
            let digits = value.split_once(';').map_or(value, |(digits, _)| digits);
            let found = parse_number(digits).ok_or("Content-Length is not a number")?;
            if length.is_some_and(|length| length != found) {
                return Err("several Content-Length fields that differ");
            }
            length = Some(found);
        }
        Ok(length.map(|length| length as usize))
    }

    /// Checks the fields that identify and route the message.
    fn check(&self) -> Result<(), Fault> {
        let fault = |reason| Err(Fault { code: 400, reason });
        for name in ["From", "To", "Call-ID", "CSeq"] {
            match self.all(name).count() {
                1 => {}
                0 => return fault("From, To, Call-ID or CSeq is missing"),
                _ => return fault("From, To, Call-ID or CSeq occurs more than once"),
            }
        }
        if self.call_id().is_empty() || self.call_id().contains(char::is_whitespace) {
            return fault("malformed Call-ID");
        }
        let (Some(_), Some(to)) = (self.from(), self.to()) else {
            return fault("malformed From or To");
        };
        if self.top_via().is_none() {
            return fault("malformed or missing Via");
        }
        let Some((_, cseq_method)) = self.cseq() else { return fault("malformed CSeq") };
        let Start::Request { method, uri } = &self.start else { return Ok(()) };
        if method != cseq_method {
            return fault("CSeq method does not match the request method");
        }
        if to.tag().is_some() {
            return Ok(()); // the dialog routes the request, not its Request-URI
        }
        match Uri::parse(uri) {
            Ok(uri) if uri.headers.is_some() => fault("Request-URI contains header fields"),
            Ok(_) => Ok(()),
            Err(UriError::Scheme) if number(uri).is_some() => Ok(()), // a tel URI
            Err(UriError::Scheme) => Err(Fault { code: 416, reason: "Unsupported URI Scheme" }),
            Err(UriError::Syntax) => fault("malformed Request-URI"),
        }
    }
}

/// Records a 400, unless there is a fault already.
fn bad(fault: &mut Option<Fault>, reason: &'static str) {
    fault.get_or_insert(Fault { code: 400, reason });
}

/// True for the bytes that may stand before a message: keep-alive line breaks (RFC 3261 §7.5), and
/// the NULs and blanks that some devices send instead.
pub fn is_filler(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | b'\0' | b' ' | b'\t')
}

/// Returns the end of a header block, and the start of the body after the blank line. Each line may
/// end with CRLF or with LF alone.
pub fn head_end(data: &[u8]) -> Option<(usize, usize)> {
    let mut breaks = data.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at);
    breaks.find_map(|at| {
        let end = if at > 0 && data[at - 1] == b'\r' { at - 1 } else { at };
        match data[at + 1..] {
            [b'\n', ..] => Some((end, at + 2)),
            [b'\r', b'\n', ..] => Some((end, at + 3)),
            _ => None,
        }
    })
}

fn parse_start(line: &str) -> Result<(Start, Option<Fault>), Unreadable> {
    let line = line.trim_end();
    if line.get(..4).is_some_and(|name| name.eq_ignore_ascii_case("SIP/")) {
        let mut parts = line[4..].splitn(3, ' ');
        let (version, code, reason) = (parts.next(), parts.next(), parts.next().unwrap_or(""));
        let code = code.filter(|c| c.len() == 3).and_then(parse_number).unwrap_or(0);
        if version != Some("2.0") || !(100..700).contains(&code) {
            return Err(Unreadable("malformed status line"));
        }
        let code = u16::try_from(code).map_err(|_| Unreadable("invalid status code"))?;
        return Ok((Start::Response { code, reason: reason.to_owned() }, None));
    }
    let parts: Vec<&str> = line.split(' ').collect();
    let method = parts[0].to_owned();
    let version = parts.last().copied().unwrap_or("");
    if !is_token(&method) || parts.len() < 3 {
        return Err(Unreadable("malformed request line"));
    }
    let version = version.to_ascii_uppercase();
    let fault = match version.as_str() {
        "SIP/2.0" if parts.len() == 3 => None,
        v if v.starts_with("SIP/") && v != "SIP/2.0" && parts.len() == 3 => {
            Some(Fault { code: 505, reason: "Version Not Supported" })
        }
        _ => Some(Fault { code: 400, reason: "malformed request line" }),
    };
    // the URI is taken as it is, because it is not used if `fault` is set
    Ok((Start::Request { method, uri: parts[1].to_owned() }, fault))
}

/// Parses header lines, joining continuation lines (RFC 3261 §7.3.1). A line that is not a
/// header field is skipped, with its continuation.
fn unfold<'a>(
    lines: impl Iterator<Item = &'a str>,
    fault: &mut Option<Fault>,
) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut skipped = true; // a continuation before the first field belongs to none
    for line in lines {
        if line.contains('\r') {
            // the value may be copied into our response, where another parser could take the CR
            // for the end of a line
            bad(fault, "bare carriage return in a header line");
        }
        let line = line.replace('\r', " ");
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = headers.last_mut().filter(|_| !skipped) {
                // all of a value may be in the second line
                let space = if value.is_empty() || line.trim().is_empty() { "" } else { " " };
                *value += space;
                value.push_str(line.trim());
            }
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        let field = line.split_once(':').filter(|(name, _)| is_token(name.trim_end()));
        skipped = true;
        let Some((name, value)) = field else { continue };
        let name = full_name(name.trim_end());
        let needed = || NEEDED.iter().any(|n| n.eq_ignore_ascii_case(name));
        if headers.len() >= MAX_HEADERS && !needed() {
            continue;
        }
        if headers.len() >= MAX_NEEDED {
            bad(fault, "too many header fields");
            continue;
        }
        headers.push((name.to_owned(), value.trim().to_owned()));
        skipped = false;
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVITE: &str = "INVITE sip:8001@10.77.7.1:5062 SIP/2.0\r\n\
        Via: SIP/2.0/UDP 10.77.7.2:5060;branch=z9hG4bK1;rport\r\nMax-Forwards: 70\r\n\
        From: \"V1\" <sip:727@10.77.7.2>;tag=as1\r\nTo: <sip:8001@10.77.7.1:5062>\r\n\
        Contact: <sip:pbx@10.77.7.2>\r\nCall-ID: c1\r\nCSeq: 102 INVITE\r\n\
        Content-Length: 4\r\n\r\nbody";

    fn accepted(text: &str) -> Message {
        let (message, fault) = Message::parse(text.as_bytes()).expect(text);
        assert_eq!(fault, None, "{text}");
        message
    }

    #[test]
    fn faults_in_fields_that_are_not_needed_are_accepted() {
        let table = [
            ("Max-Forwards: 70", "X Y: 1"),
            ("Max-Forwards: 70", "X-Lead=5: 7"),
            ("Max-Forwards: 70", "X-Lead[0]: 7\r\n folded"),
            ("Max-Forwards: 70", "no colon"),
            ("Max-Forwards: 70", ": 7"),
            ("Max-Forwards: 70", "Max-Forwards: x"),
            ("Max-Forwards: 70", "Max-Forwards: "),
            ("Max-Forwards: 70", "Max-Forwards: 300\r\nMax-Forwards: 1"),
            ("Max-Forwards: 70", "Via: SIP / 2.0 / UDP proxy.example.com: 4000;ttl=16"),
            ("Max-Forwards: 70", "Via: SIP/2.0/UDP proxy.example.com:;branch=z9hG4bKq"),
            ("Max-Forwards: 70", "Via: SIP/2.0/UDP 2001:db8::1;branch=\"z"),
            ("Via: SIP/2.0/UDP 10.77.7.2:5060", "Via: SIP / 2.0 / UDP 10.77.7.2 : 5060"),
            ("z9hG4bK1;rport", "z9hG4bK1;x[1]=2;rport"),
            ("z9hG4bK1;rport", "z9hG4bK1;rport, SIP/2.0/UDP \"x"),
            ("<sip:pbx@10.77.7.2>", "<sip:p bx@10.77.7.2>"),
            ("<sip:pbx@10.77.7.2>", "\"ACME <sip:pbx@10.77.7.2>"),
            ("102 INVITE", "4294967295 INVITE"),
            ("INVITE sip:8001@10.77.7.1:5062 SIP/2.0", "INVITE sip:8001@10.77.7.1: sip/2.0 "),
            ("INVITE sip:8001@", "INVITE sip:8001%@"),
            ("Content-Length: 4", "Content-Length: 4\r\nl: 4"),
            ("Content-Length: 4", "Content-Length: 4;"),
            ("Content-Length: 4", "Content-Length: "),
            ("70\r\n", "70\r\r\n"),
        ];
        for (old, new) in table {
            let message = accepted(&INVITE.replacen(old, new, 1));
            assert_eq!(message.top_via().unwrap().branch(), Some("z9hG4bK1"), "{new}");
            assert_eq!(message.body, b"body", "{new}");
            assert_eq!(message.from().unwrap().tag(), Some("as1"), "{new}");
        }
        assert_eq!(accepted(&INVITE.replace("Max-", "x y: 1\r\n z\r\nMax-")).all("Via").count(), 1);
    }

    #[test]
    fn odd_addresses_are_read_and_the_tag_is_found() {
        let table = [
            ("\"V1 <sip:727@h>", "sip:727@h"),
            ("\"ACME\\\" <sip:727@h>", "sip:727@h"),
            ("<sip:7 27@h>", "sip:7 27@h"),
            ("< sip:727@h >", "sip:727@h"),
            ("<sip:727@h>;x[0]=1", "sip:727@h"),
            ("<sip:\"727\"@h>", "sip:\"727\"@h"),
            ("<sip:727@h> trailing", "sip:727@h"),
            ("Dept: Sales, Bob <sip:727@h>", "sip:727@h"),
            ("sip:727@h?x=y", "sip:727@h"),
            ("\"Test\" <>", ""),
            ("<727@h>", "727@h"),
        ];
        for (form, uri) in table {
            let text = INVITE.replace("\"V1\" <sip:727@10.77.7.2>", form);
            let from = accepted(&text).from().unwrap();
            assert_eq!((&*from.uri, from.tag()), (uri, Some("as1")), "{form}");
            let text = INVITE.replace("<sip:pbx@10.77.7.2>", form);
            let contact = accepted(&text).contact().map(|c| c.uri);
            let usable = uri.starts_with("sip:727@");
            assert_eq!(contact.as_deref(), usable.then_some(uri), "{form}");
        }
    }

    #[test]
    fn a_request_in_a_dialog_does_not_need_its_request_uri() {
        let text = INVITE.replace("5062>\r\nC", "5062>;tag=ours\r\nC");
        for uri in ["<sip:8001@h>", "sip:8001@h?Subject=x", "urn:service:sos", "8001"] {
            accepted(&text.replacen("sip:8001@10.77.7.1:5062", uri, 1));
        }
    }

    #[test]
    fn surplus_header_fields_are_ignored_but_not_those_that_are_needed() {
        let many = "X-H: 1\r\n".repeat(1000);
        let message = accepted(&INVITE.replace("Via:", &format!("{many}Via:")));
        assert_eq!(message.all("X-H").count(), MAX_HEADERS);
        assert_eq!(message.body, b"body");
        let vias = "Via: SIP/2.0/UDP h\r\n".repeat(300);
        let text = INVITE.replace("From:", &format!("{vias}From:"));
        let (_, fault) = Message::parse(text.as_bytes()).unwrap();
        assert_eq!(fault.unwrap().reason, "too many header fields");
    }

    #[test]
    fn lines_may_end_with_lf_crlf_or_a_mixture() {
        let bare = INVITE.replace("\r\n", "\n");
        let (head, body) = INVITE.split_once("\r\n\r\n").unwrap();
        let mixed = [
            bare.clone(),
            bare.replace("\n\n", "\n\r\n"),
            bare.replace("\n\n", "\r\n\n"),
            format!("{head}\n\r\n{body}"),
        ];
        for text in mixed {
            assert_eq!(accepted(&text), accepted(INVITE), "{text:?}");
        }
    }
}

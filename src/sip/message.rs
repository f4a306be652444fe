//! SIP messages (RFC 3261 §7): parsing, validation, construction and serialization.
//!
//! [`Message::parse`] reads as much as it can and returns the first fault with the message, so that
//! a bad request can be answered with the right status and a bad response dropped.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;

use crate::sip::header::{
    NameAddr, Via, full_name, is_token, parse_cseq, parse_number, split_addresses, split_outside,
};
use crate::sip::uri::{Uri, UriError, number};

/// Largest message accepted: the maximum size of a UDP datagram, and the limit on a TCP stream.
pub const MAX_MESSAGE_BYTES: usize = 65_535;
/// Maximum number of header field lines in a message.
pub const MAX_HEADERS: usize = 128;

/// Methods that are answered with 405 rather than 501 if they are not allowed.
const KNOWN: [&str; 14] = [
    "INVITE",
    "ACK",
    "BYE",
    "CANCEL",
    "OPTIONS",
    "INFO",
    "UPDATE",
    "NOTIFY",
    "REGISTER",
    "PRACK",
    "MESSAGE",
    "REFER",
    "SUBSCRIBE",
    "PUBLISH",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Request { method: String, uri: String },
    Response { code: u16, reason: String },
}

/// A fault in a message: the status code for the response, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub code: u16,
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub start: Start,
    /// Names and values. Names are as received, with compact forms expanded; values are unfolded
    /// and trimmed.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The data has no start line or no header block, or exceeds a limit, so it cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SIP message: {0}")]
pub struct Unreadable(pub &'static str);

impl Message {
    pub fn request(method: &str, uri: &str) -> Message {
        let start = Start::Request { method: method.to_owned(), uri: uri.to_owned() };
        Message { start, headers: Vec::new(), body: Vec::new() }
    }

    /// Builds a response to `request` with its Via, From, To, Call-ID and CSeq (RFC 3261 §8.2.6.2).
    /// `to_tag` is added if the To has no tag, except in a 100.
    pub fn response(request: &Message, code: u16, reason: &str, to_tag: &str) -> Message {
        let start = Start::Response { code, reason: reason.to_owned() };
        let mut response = Message { start, headers: Vec::new(), body: Vec::new() };
        for (name, value) in &request.headers {
            let copied = ["Via", "From", "To", "Call-ID", "CSeq"];
            if !copied.iter().any(|c| c.eq_ignore_ascii_case(name)) {
                continue;
            }
            let untagged = name.eq_ignore_ascii_case("To")
                && code != 100
                && NameAddr::parse(value).is_some_and(|to| to.tag().is_none());
            let value = if untagged { format!("{value};tag={to_tag}") } else { value.clone() };
            response.headers.push((name.clone(), value));
        }
        response
    }

    /// Adds a header field. Line breaks in the value become spaces, so that a value cannot inject a
    /// header line.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Message {
        self.push(name, value);
        self
    }

    pub fn push(&mut self, name: &str, value: impl Into<String>) {
        let mut value: String = value.into();
        if value.contains(['\r', '\n']) {
            value = value.replace(['\r', '\n'], " ");
        }
        self.headers.push((name.to_owned(), value));
    }

    pub fn with_body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Message {
        self.push("Content-Type", content_type);
        self.body = body.into();
        self
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512 + self.body.len());
        match &self.start {
            Start::Request { method, uri } => {
                out.extend_from_slice(format!("{method} {uri} SIP/2.0\r\n").as_bytes());
            }
            Start::Response { code, reason } => {
                out.extend_from_slice(format!("SIP/2.0 {code} {reason}\r\n").as_bytes());
            }
        }
        for (name, value) in &self.headers {
            if name.eq_ignore_ascii_case("Content-Length") {
                continue;
            }
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", self.body.len()).as_bytes());
        out.extend_from_slice(&self.body);
        out
    }

    /// Returns the first value of a header field; the case of `name` does not matter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Returns all values of a header field, one per line.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let name = name.to_owned();
        let named = self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(&name));
        named.map(|(_, v)| v.as_str())
    }

    /// Returns all values of a comma-separated header field.
    pub fn list(&self, name: &str) -> Vec<String> {
        let lines = self.all(name).filter_map(|line| split_outside(line, ','));
        lines.flatten().filter(|v| !v.is_empty()).map(str::to_owned).collect()
    }

    pub fn method(&self) -> Option<&str> {
        match &self.start {
            Start::Request { method, .. } => Some(method),
            Start::Response { .. } => None,
        }
    }

    pub fn code(&self) -> Option<u16> {
        match &self.start {
            Start::Request { .. } => None,
            Start::Response { code, .. } => Some(*code),
        }
    }

    pub fn uri(&self) -> &str {
        match &self.start {
            Start::Request { uri, .. } => uri,
            Start::Response { .. } => "",
        }
    }

    pub fn is_known_method(&self) -> bool {
        self.method().is_some_and(|m| KNOWN.contains(&m))
    }

    pub fn call_id(&self) -> &str {
        self.get("Call-ID").unwrap_or("")
    }

    pub fn cseq(&self) -> Option<(u32, &str)> {
        self.get("CSeq").and_then(parse_cseq)
    }

    pub fn from(&self) -> Option<NameAddr> {
        self.get("From").and_then(NameAddr::parse)
    }

    pub fn to(&self) -> Option<NameAddr> {
        self.get("To").and_then(NameAddr::parse)
    }

    pub fn top_via(&self) -> Option<Via> {
        let line = self.get("Via")?;
        Via::parse(split_outside(line, ',')?.first()?)
    }

    /// Adds the request's source to its topmost Via, and so to all responses; see
    /// [`Via::completed`].
    pub fn complete_via(&mut self, source: SocketAddr) {
        let line = self.headers.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case("Via"));
        let Some((_, line)) = line else { return };
        let Some(values) = split_outside(line, ',') else { return };
        let Some(top) = Via::completed(values[0], source) else { return };
        let rest = values.into_iter().skip(1).filter(|via| !via.is_empty());
        *line = std::iter::once(top.as_str()).chain(rest).collect::<Vec<_>>().join(", ");
    }

    /// Returns the addresses in a header field such as Contact or P-Asserted-Identity, as written.
    pub fn addresses(&self, name: &str) -> Vec<String> {
        self.all(name).filter_map(split_addresses).flatten().collect()
    }

    pub fn contact(&self) -> Option<NameAddr> {
        NameAddr::parse(self.addresses("Contact").first()?)
    }

    /// Returns the media type without parameters and in lower case: `application/sdp` for
    /// `application/sdp; charset=…`.
    pub fn content_type(&self) -> Option<String> {
        Some(self.get("Content-Type")?.split(';').next()?.trim().to_ascii_lowercase())
    }

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
        let (head, body) = (String::from_utf8_lossy(&data[..end]), &data[body..]);
        let mut lines = head.split("\r\n").flat_map(|l| l.split('\n'));
        let (start, mut fault) = parse_start(lines.next().unwrap_or(""))?;
        let headers = unfold(lines, &mut fault)?;
        let mut message = Message { start, headers, body: Vec::new() };
        let declared: Vec<&str> = message.all("Content-Length").collect();
        let length = match declared[..] {
            [] => body.len(),
            // equal repetitions are one value
            [one, ..] if declared.iter().all(|other| *other == one) => match parse_number(one) {
                Some(n) if n as usize <= body.len() => n as usize,
                Some(_) => bad(&mut fault, "Content-Length is larger than the body", body.len()),
                None => bad(&mut fault, "Content-Length is not a number", body.len()),
            },
            _ => bad(&mut fault, "more than one Content-Length", body.len()),
        };
        message.body = body[..length].to_vec();
        if let Err(found) = message.check() {
            fault.get_or_insert(found);
        }
        Ok((message, fault))
    }

    /// Checks that the mandatory header fields (RFC 3261 §8.1.1 and §20) are present and
    /// well-formed.
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
        if self.from().is_none() || self.to().is_none() {
            return fault("malformed From or To");
        }
        let vias = self.list("Via");
        let readable = self.all("Via").all(|line| split_outside(line, ',').is_some());
        if vias.is_empty() || !readable || vias.iter().any(|v| Via::parse(v).is_none()) {
            return fault("malformed or missing Via");
        }
        let Some((_, cseq_method)) = self.cseq() else { return fault("malformed CSeq") };
        // the Contact of a response may name other devices; one that is malformed is not used
        let Start::Request { method, uri } = &self.start else { return Ok(()) };
        let contacts = self.addresses("Contact");
        let readable = self.all("Contact").all(|line| split_outside(line, ',').is_some());
        if !readable || contacts.iter().any(|c| c != "*" && NameAddr::parse(c).is_none()) {
            return fault("malformed Contact");
        }
        if method != cseq_method {
            return fault("CSeq method does not match the request method");
        }
        let hops = self.get("Max-Forwards");
        if hops.is_some_and(|v| parse_number(v).is_none_or(|n| n > 255)) {
            return fault("Max-Forwards is not a number from 0 to 255");
        }
        match Uri::parse(uri) {
            Ok(uri) if uri.headers.is_some() => fault("Request-URI contains header fields"),
            Ok(_) => Ok(()),
            Err(UriError::Scheme) if number(uri).is_some() => Ok(()), // a tel URI
            Err(UriError::Scheme) => Err(Fault { code: 416, reason: "Unsupported URI Scheme" }),
            Err(UriError::Syntax) => fault("malformed Request-URI"),
        }
    }

    /// True if a response can be built and routed: the message is a request other than ACK, with a
    /// Via, From, To, Call-ID and CSeq.
    pub fn can_be_answered(&self) -> bool {
        let has = |name| self.get(name).is_some_and(|v| !v.is_empty());
        self.method().is_some_and(|m| m != "ACK")
            && self.top_via().is_some()
            && has("From")
            && has("To")
            && has("Call-ID")
            && has("CSeq")
    }
}

/// Records a 400, unless there is a fault already, and returns `length`.
fn bad(fault: &mut Option<Fault>, reason: &'static str, length: usize) -> usize {
    fault.get_or_insert(Fault { code: 400, reason });
    length
}

/// True for the bytes that may stand before a message: keep-alive line breaks (RFC 3261 §7.5), and
/// the NULs and blanks that some devices send instead.
pub fn is_filler(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | b'\0' | b' ' | b'\t')
}

/// Returns the end of a header block, and the start of the body after the blank line. Lines may
/// end with LF alone.
pub fn head_end(data: &[u8]) -> Option<(usize, usize)> {
    let crlf = data.windows(4).position(|w| w == b"\r\n\r\n").map(|i| (i, i + 4));
    let lf = data.windows(2).position(|w| w == b"\n\n").map(|i| (i, i + 2));
    [crlf, lf].into_iter().flatten().min()
}

fn parse_start(line: &str) -> Result<(Start, Option<Fault>), Unreadable> {
    if let Some(rest) = line.strip_prefix("SIP/") {
        let mut parts = rest.splitn(3, ' ');
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
    let fault = match version {
        "SIP/2.0" if parts.len() == 3 => None,
        v if v.to_ascii_uppercase().starts_with("SIP/") && v != "SIP/2.0" && parts.len() == 3 => {
            Some(Fault { code: 505, reason: "Version Not Supported" })
        }
        _ => Some(Fault { code: 400, reason: "malformed request line" }),
    };
    // the URI is taken as it is, because it is not used if `fault` is set
    Ok((Start::Request { method, uri: parts[1].to_owned() }, fault))
}

/// Parses header lines, joining continuation lines (RFC 3261 §7.3.1).
fn unfold<'a>(
    lines: impl Iterator<Item = &'a str>,
    fault: &mut Option<Fault>,
) -> Result<Vec<(String, String)>, Unreadable> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.contains('\r') {
            // the value may be copied into our response, where another parser could take the CR
            // for the end of a line
            bad(fault, "bare carriage return in a header line", 0);
        }
        let line = line.replace('\r', " ");
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = headers.last_mut() {
                // all of a value may be in the second line
                let space = if value.is_empty() || line.trim().is_empty() { "" } else { " " };
                *value += space;
                value.push_str(line.trim());
                continue;
            }
            bad(fault, "continuation line without a header", 0);
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        if headers.len() == MAX_HEADERS {
            return Err(Unreadable("too many header fields"));
        }
        match line.split_once(':') {
            Some((name, value)) if is_token(name.trim_end()) => {
                let name = full_name(name.trim_end()).to_owned();
                headers.push((name, value.trim().to_owned()));
            }
            _ => {
                bad(fault, "malformed header line", 0);
            }
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVITE: &str = "INVITE sip:8001@10.77.7.1:5062 SIP/2.0\r\n\
        v: SIP/2.0/UDP 10.77.7.2:5060;branch=z9hG4bK1;rport\r\nMax-Forwards: 70\r\n\
        f: \"V1\" <sip:727@10.77.7.2>;tag=as1\r\nt: <sip:8001@10.77.7.1:5062>\r\n\
        i: c1@10.77.7.2\r\nCSeq: 102 INVITE\r\nSubject: one\r\n  two\r\nl: 4\r\n\r\nbodytrailing";

    #[test]
    fn parses_compact_and_folded_headers_and_drops_trailing_bytes() {
        let (message, fault) = Message::parse(INVITE.as_bytes()).unwrap();
        assert_eq!(fault, None);
        assert_eq!(message.get("subject"), Some("one two"));
        assert_eq!(message.call_id(), "c1@10.77.7.2");
        assert_eq!(message.body, b"body");
        let folded = INVITE.replace("i: c1", "i:\r\n c1").replace("102 INVITE", "102\r\n\tINVITE");
        let (folded, fault) = Message::parse(folded.as_bytes()).unwrap();
        assert_eq!(
            (folded.call_id(), folded.cseq(), fault),
            (message.call_id(), message.cseq(), None)
        );
        let (again, _) = Message::parse(&message.to_bytes()).unwrap();
        assert_eq!(again.body, message.body);
        assert_eq!(again.cseq(), Some((102, "INVITE")));
    }

    #[test]
    fn a_response_copies_headers_and_adds_a_to_tag() {
        let (request, _) = Message::parse(INVITE.as_bytes()).unwrap();
        let response = Message::response(&request, 200, "OK", "ours");
        assert_eq!(response.to().unwrap().tag(), Some("ours"));
        assert_eq!(Message::response(&request, 100, "Trying", "ours").to().unwrap().tag(), None);
        assert_eq!(response.all("Via").count(), 1);
    }

    #[test]
    fn each_fault_has_a_status_and_can_be_answered() {
        let table = [
            ("SIP/2.0\r\nv", "SIP/7.0\r\nv", 505),
            ("CSeq: 102 INVITE", "CSeq: 102 BYE", 400),
            ("l: 4", "l: 400", 400),
            ("l: 4", "l: -4", 400),
            ("l: 4", "l: 4\r\nContent-Length: 5", 400),
            ("sip:8001@10.77.7.1:5062 SIP", "urn:service:sos SIP", 416),
            ("sip:8001@10.77.7.1:5062 SIP", "<sip:8001@10.77.7.1> SIP", 400),
            ("INVITE sip", "INVITE  sip", 400),
        ];
        for (old, new, code) in table {
            let (message, fault) = Message::parse(INVITE.replacen(old, new, 1).as_bytes()).unwrap();
            assert_eq!(fault.map(|f| f.code), Some(code), "{new}");
            assert!(message.can_be_answered(), "{new}");
        }
    }

    #[test]
    fn a_value_cannot_inject_a_header_line() {
        let bare = INVITE.replace("one\r\n", "one\rEvil: 1\r\n");
        let (message, fault) = Message::parse(bare.as_bytes()).unwrap();
        assert_eq!(fault.map(|f| f.code), Some(400));
        assert!(!String::from_utf8(message.to_bytes()).unwrap().contains("\rEvil"));
        let text = Message::request("BYE", "sip:a@b").with("Reason", "x\r\nEvil: 1").to_bytes();
        assert!(!String::from_utf8(text).unwrap().contains("\r\nEvil"));
    }

    #[test]
    fn unreadable_data_is_an_error() {
        for junk in ["", "\r\n\r\n", "SIP/2.0 9999 x\r\n\r\n", "GARBAGE\r\n\r\n", "\0\u{1}\r\n\r\n"]
        {
            assert!(Message::parse(junk.as_bytes()).is_err(), "{junk:?}");
        }
    }
}

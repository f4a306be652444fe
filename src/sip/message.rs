//! SIP messages (RFC 3261 §7): their fields, construction and serialization. They are read in
//! [`crate::sip::reader`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;

use crate::sip::bytes::encode;
use crate::sip::header::{
    NameAddr, Via, media_type, parse_cseq, split_addresses, split_leniently, split_outside,
    with_tag,
};
use crate::sip::uri::is_target;

/// Largest message accepted: the maximum size of a UDP datagram, and the limit on a TCP stream.
pub const MAX_MESSAGE_BYTES: usize = 65_535;

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
            // a request that has one of these twice is refused, with a valid response
            if !name.eq_ignore_ascii_case("Via") && response.get(name).is_some() {
                continue;
            }
            let untagged = name.eq_ignore_ascii_case("To")
                && code != 100
                && NameAddr::parse(value).is_some_and(|to| to.tag().is_none());
            let value = if untagged { with_tag(value, to_tag) } else { value.clone() };
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
                encode(&format!("{method} {uri} SIP/2.0\r\n"), &mut out);
            }
            Start::Response { code, reason } => {
                encode(&format!("SIP/2.0 {code} {reason}\r\n"), &mut out);
            }
        }
        for (name, value) in &self.headers {
            if name.eq_ignore_ascii_case("Content-Length") {
                continue;
            }
            encode(name, &mut out);
            out.extend_from_slice(b": ");
            encode(value, &mut out);
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

    /// Returns the method if it is one that we know, allowed or not.
    pub fn known_method(&self) -> Option<&'static str> {
        KNOWN.into_iter().find(|known| self.method() == Some(known))
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
        Via::parse(split_leniently(line, ',').first()?)
    }

    /// Adds the request's source to its topmost Via, and so to all responses; see
    /// [`Via::completed`].
    pub fn complete_via(&mut self, source: SocketAddr) {
        let line = self.headers.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case("Via"));
        let Some((_, line)) = line else { return };
        let values = split_leniently(line, ',');
        let Some(top) = Via::completed(values[0], source) else { return };
        let rest = values.into_iter().skip(1).filter(|via| !via.is_empty());
        *line = std::iter::once(top.as_str()).chain(rest).collect::<Vec<_>>().join(", ");
    }

    /// Returns the addresses in a header field such as Contact or P-Asserted-Identity, as written.
    pub fn addresses(&self, name: &str) -> Vec<String> {
        self.all(name).flat_map(split_addresses).collect()
    }

    /// Returns the first Contact to which a request can be sent.
    pub fn contact(&self) -> Option<NameAddr> {
        let contacts = self.addresses("Contact");
        contacts.iter().filter_map(|c| NameAddr::parse(c)).find(|c| is_target(&c.uri))
    }

    /// Returns the media type without parameters and blanks, in lower case: `application/sdp` for
    /// `application / SDP; charset=…`.
    pub fn content_type(&self) -> Option<String> {
        self.get("Content-Type").map(media_type)
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
    fn bytes_that_are_not_utf_8_are_written_as_they_came() {
        let places = [
            ("SIP/2.0 486 Busy", "SIP/2.0 486 Bu\u{f797}sy"),
            ("Subject: one", "Subject: \u{f797}"),
            ("Subject: one", "Sub\u{f797}ject: one"),
        ];
        let response =
            INVITE.replacen("INVITE sip:8001@10.77.7.1:5062 SIP/2.0", "SIP/2.0 486 Busy", 1);
        for (from, to) in places {
            let (message, _) = Message::parse(response.replacen(from, to, 1).as_bytes()).unwrap();
            let (again, _) = Message::parse(&message.to_bytes()).unwrap();
            assert_eq!((&again.start, &again.headers), (&message.start, &message.headers), "{to}");
        }
        let uri = INVITE.replacen("sip:8001@", "sip:\u{f797}@", 1);
        let (message, _) = Message::parse(uri.as_bytes()).unwrap();
        let (again, _) = Message::parse(&message.to_bytes()).unwrap();
        assert_eq!(again.start, message.start);
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
    fn names_that_are_not_utf8_are_echoed_as_they_came() {
        let text: Vec<u8> = INVITE.replace("V1", "M\u{fc}ller").chars().map(|c| c as u8).collect();
        let (request, fault) = Message::parse(&text).unwrap();
        assert_eq!(
            (request.from().unwrap().display.as_deref(), fault),
            (Some("M\u{fc}ller"), None)
        );
        let response = Message::response(&request, 200, "OK", "ours").to_bytes();
        assert!(response.windows(8).any(|w| w == b"\"M\xfcller\""), "the byte is unchanged");
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

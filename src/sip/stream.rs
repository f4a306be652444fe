//! Splits a TCP stream into messages by Content-Length (RFC 3261 §18.3), with a size limit.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::header::{full_name, is_token, parse_number};
use crate::sip::message::MAX_MESSAGE_BYTES;
use crate::sip::reader::{head_end, is_filler};

/// Maximum number of stray bytes before a message: the rest of a body whose length was too small.
const MAX_STRAY: usize = 4096;
/// Methods of which a request without Content-Length and Content-Type has no body.
const WITHOUT_BODY: [&str; 4] = ["BYE", "CANCEL", "ACK", "OPTIONS"];

/// A piece of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Message(Vec<u8>),
    /// Bytes before the start line of a message were dropped.
    Stray,
}

/// The stream can no longer be split into messages. The connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The header fields of the message at fault, as far as they arrived, with a blank line.
    pub head: Vec<u8>,
    pub why: &'static str,
}

/// Collects bytes from the stream until they form a complete message.
#[derive(Debug, Default)]
pub struct Framer {
    /// Bytes received after the last message returned.
    buffer: Vec<u8>,
}

impl Framer {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// True if no bytes of the next message have arrived.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Returns the next complete message, if there is one. Keep-alive line breaks between messages
    /// (RFC 5626 §3.5.1) are skipped, and so are NULs and blanks. Other bytes before a start line
    /// are dropped.
    ///
    /// # Errors
    /// Returns [`Broken`] if the stream can no longer be split into messages.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Broken> {
        let filler = self.buffer.iter().take_while(|b| is_filler(**b)).count();
        self.buffer.drain(..filler);
        let Some((head, body)) = head_end(&self.buffer) else {
            let full = self.buffer.len() > MAX_MESSAGE_BYTES;
            return if full { Err(self.broken("larger than 65,535 bytes")) } else { Ok(None) };
        };
        match find_start(&self.buffer[..head]) {
            Some(0) => {}
            Some(at) if at <= MAX_STRAY => {
                self.buffer.drain(..at);
                return Ok(Some(Frame::Stray));
            }
            _ => return Err(self.broken("not a SIP message")),
        }
        let length = content_length(&self.buffer[..head]).map_err(|why| self.broken(why))?;
        let total = body + length;
        if total > MAX_MESSAGE_BYTES {
            return Err(self.broken("larger than 65,535 bytes"));
        }
        if self.buffer.len() < total {
            return Ok(None);
        }
        Ok(Some(Frame::Message(self.buffer.drain(..total).collect())))
    }

    /// Handles the end of the time in which the rest of a message should have arrived. Bytes that
    /// do not begin a message are dropped.
    ///
    /// # Errors
    /// Returns [`Broken`] if a message had begun.
    pub fn on_timeout(&mut self) -> Result<Frame, Broken> {
        if self.buffer.len() <= MAX_STRAY && find_start(&self.buffer).is_none() {
            self.buffer.clear();
            return Ok(Frame::Stray);
        }
        Err(self.broken("incomplete: the rest did not arrive in time"))
    }

    fn broken(&self, why: &'static str) -> Broken {
        let most = self.buffer.len().min(MAX_MESSAGE_BYTES - 4);
        let end = head_end(&self.buffer[..most]).map_or(most, |(head, _)| head);
        let lines = &self.buffer[..end];
        // a line that did not arrive in full is left out
        let end = match end < most {
            true => end,
            false => lines.iter().rposition(|b| *b == b'\n').unwrap_or(0),
        };
        let end = end - usize::from(self.buffer[..end].ends_with(b"\r"));
        Broken { head: [&self.buffer[..end], b"\r\n\r\n"].concat(), why }
    }
}

/// Returns the offset of the start line. Only binary bytes may stand before it in its own line.
fn find_start(head: &[u8]) -> Option<usize> {
    let mut offset = 0;
    for line in head.split_inclusive(|b| *b == b'\n') {
        let binary = line.iter().position(|b| *b == b' ').unwrap_or(0);
        let binary = line[..binary].iter().rposition(|b| *b == 0 || !b.is_ascii());
        let at = binary.map_or(0, |at| at + 1);
        if is_start_line(&line[at..], offset == 0) {
            return Some(offset + at);
        }
        offset += line.len();
    }
    None
}

/// `first`: no bytes are skipped if this is taken for a start line, so that one that cannot be
/// parsed is taken as well, for its response.
fn is_start_line(line: &[u8], first: bool) -> bool {
    let line = String::from_utf8_lossy(line).trim_end().to_ascii_uppercase();
    let Some((word, rest)) = line.split_once(' ') else { return false };
    match rest.rsplit_once(' ') {
        _ if word.starts_with("SIP/") => first || word == "SIP/2.0",
        Some((uri, version)) if first => {
            is_token(word) && (version.starts_with("SIP/") || uri.contains(" SIP/"))
        }
        Some((uri, version)) => is_token(word) && version == "SIP/2.0" && uri.contains(':'),
        None => false,
    }
}

/// Returns the length of the body. Two different ones could make another program on the way see
/// other messages than we do, so that none is used.
fn content_length(head: &[u8]) -> Result<usize, &'static str> {
    // a value may be in the line after its name
    let text = String::from_utf8_lossy(head).replace("\r\n", "\n");
    let text = text.replace("\n ", " ").replace("\n\t", " ");
    let values = |wanted: &str| -> Vec<&str> {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let found = lines.filter(|(name, _)| full_name(name.trim()).eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.trim()).collect()
    };
    let mut length = None;
    // lenient in the same way as the reader of messages
    for value in values("Content-Length").into_iter().filter(|value| !value.is_empty()) {
        let value = parse_number(value.split(';').next().unwrap_or_default().trim());
        let value = value.ok_or("Content-Length is not a number")? as usize;
        if length.is_some_and(|before| before != value) {
            return Err("two different Content-Lengths");
        }
        length = Some(value);
    }
    let method = text.split(' ').next().unwrap_or_default();
    let bare = method.starts_with("SIP/") || WITHOUT_BODY.contains(&method);
    match length {
        Some(length) => Ok(length),
        None if bare && values("Content-Type").is_empty() => Ok(0),
        None => Err("Content-Length is missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> Result<Option<Frame>, Broken> {
        Ok(Some(Frame::Message(bytes.to_vec())))
    }

    #[test]
    fn splits_single_bytes_and_two_messages_at_once() {
        let one = b"BYE sip:a@b SIP/2.0\r\nl: 3\r\n\r\nabc";
        let mut framer = Framer::default();
        let mut found = 0;
        for byte in one {
            framer.push(&[*byte]);
            found += usize::from(framer.next_frame().unwrap().is_some());
        }
        assert_eq!(found, 1);
        framer.push(b"\r\n\r\n");
        framer.push(&[&one[..], &one[..]].concat());
        assert_eq!(framer.next_frame(), message(one));
        assert_eq!(framer.next_frame(), message(one));
        assert_eq!(framer.next_frame(), Ok(None));
    }

    #[test]
    fn filler_between_messages_is_skipped() {
        let one = b"BYE sip:a@b SIP/2.0\r\nl:\r\n 3\r\n\r\nabc";
        let two = b"BYE sip:a@b SIP/2.0\nl: 0\n\n";
        for filler in [&b"\0"[..], b"\r\n", b" \t", b"\0\0\r\n \0", b"\n"] {
            let mut framer = Framer::default();
            framer.push(&[filler, one, filler, two, filler].concat());
            assert_eq!(framer.next_frame(), message(one));
            assert_eq!(framer.next_frame(), message(two));
            assert_eq!(framer.next_frame(), Ok(None));
            assert!(framer.is_empty(), "only filler is left");
        }
    }

    #[test]
    fn stray_bytes_before_a_start_line_are_dropped() {
        let one = b"BYE sip:a@b SIP/2.0\r\nl: 0\r\n\r\n";
        let answer = b"SIP/2.0 200 OK\r\nl: 0\r\n\r\n";
        for stray in [&b"a=x\r\n"[..], b"jaK\0", b"\xef\xbb\xbf", b"\xff\xf1", b"v\r\na=b\n"] {
            for one in [&one[..], &answer[..]] {
                let mut framer = Framer::default();
                framer.push(&[one, stray, one].concat());
                assert_eq!(framer.next_frame(), message(one));
                assert_eq!(framer.next_frame(), Ok(Some(Frame::Stray)), "{stray:?}");
                assert_eq!(framer.next_frame(), message(one));
            }
        }
        let mut framer = Framer::default();
        framer.push(b"a=sendrecv\r\n");
        assert_eq!(framer.next_frame(), Ok(None));
        assert_eq!(framer.on_timeout(), Ok(Frame::Stray));
        assert!(framer.is_empty());
        framer.push(b"BYE sip:a@b SIP/2.0\r\nl: 4");
        let head = b"BYE sip:a@b SIP/2.0\r\n\r\n".to_vec();
        assert_eq!(framer.on_timeout().unwrap_err().head, head);
    }

    #[test]
    fn a_length_may_be_repeated_or_missing_if_it_is_clear() {
        let clear: [&[u8]; 5] = [
            b"BYE sip:a@b SIP/2.0\r\n\r\n",
            b"SIP/2.0 200 OK\r\n\r\n",
            b"INVITE sip:a@b SIP/2.0\r\nl: 2\r\nContent-Length: 2\r\n\r\nab",
            b"INVITE sip:a@b sip/2.0\r\nl: 0\r\n\r\n",
            b"INVITE  sip:a@b SIP/3.0\r\nl: 0\r\n\r\n",
        ];
        for bytes in clear {
            let mut framer = Framer::default();
            framer.push(&[bytes, bytes].concat());
            assert_eq!(framer.next_frame(), message(bytes));
            assert_eq!(framer.next_frame(), message(bytes));
        }
    }

    #[test]
    fn an_unclear_length_or_a_large_message_breaks_the_stream() {
        let table = [
            ("INVITE sip:a@b SIP/2.0\r\n", "", "missing"),
            ("INVITE sip:a@b\r\nl: 0\r\n", "", "not a SIP message"),
            ("GET / HTTP/1.1\r\nl: 0\r\n", "", "not a SIP message"),
            ("ACK sip:a@b SIP/2.0\r\nc: application/sdp\r\n", "", "missing"),
            ("BYE sip:a@b SIP/2.0\r\nl: abc\r\n", "", "not a number"),
            ("BYE sip:a@b SIP/2.0\r\nl: 1\r\nContent-Length: 2\r\n", "ab", "two different"),
            ("BYE sip:a@b SIP/2.0\r\nl: 1, 2\r\n", "ab", "not a number"),
            ("BYE sip:a@b SIP/2.0\r\nContent-Length: 1000000000\r\n", "", "larger"),
        ];
        for (head, body, why) in table {
            let mut framer = Framer::default();
            framer.push(format!("{head}\r\n{body}").as_bytes());
            let broken = framer.next_frame().unwrap_err();
            assert_eq!(broken.head, format!("{head}\r\n").as_bytes());
            assert!(broken.why.contains(why), "{why}: {}", broken.why);
        }
        let mut framer = Framer::default();
        framer.push(&[&b"BYE sip:a@b SIP/2.0\r\nX: "[..], &[b'x'; 70_000]].concat());
        let broken = framer.next_frame().unwrap_err();
        assert_eq!(broken.head, b"BYE sip:a@b SIP/2.0\r\n\r\n", "the unfinished line is left out");
    }
}

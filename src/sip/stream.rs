//! Splits a TCP stream into messages by Content-Length (RFC 3261 §18.3), with a size limit.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::header::{full_name, parse_number};
use crate::sip::message::{MAX_MESSAGE_BYTES, head_end, is_filler};

/// The stream can no longer be split into messages; the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("a message is larger than 65,535 bytes")]
    TooLarge,
    #[error("a message's Content-Length is missing, repeated or not a number")]
    NoLength,
    #[error("the data is not a SIP message")]
    NotSip,
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
    /// (RFC 5626 §3.5.1) are skipped, and so are NULs and blanks.
    ///
    /// # Errors
    /// Returns a [`StreamError`] if the stream can no longer be split into messages.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        let filler = self.buffer.iter().take_while(|b| is_filler(**b)).count();
        self.buffer.drain(..filler);
        let Some((head, body)) = head_end(&self.buffer) else {
            let full = self.buffer.len() > MAX_MESSAGE_BYTES;
            return if full { Err(StreamError::TooLarge) } else { Ok(None) };
        };
        // a value may be in the line after its name
        let text = String::from_utf8_lossy(&self.buffer[..head]).replace("\r\n", "\n");
        let text = text.replace("\n ", " ").replace("\n\t", " ");
        let first = text.lines().next().unwrap_or_default();
        if !first.starts_with("SIP/") && !first.contains(" SIP/") {
            return Err(StreamError::NotSip);
        }
        let lengths = text.lines().filter_map(|line| line.split_once(':'));
        let mut lengths = lengths
            .filter(|(name, _)| full_name(name.trim()).eq_ignore_ascii_case("Content-Length"));
        let length = match (lengths.next(), lengths.next()) {
            (Some((_, value)), None) => parse_number(value).ok_or(StreamError::NoLength)? as usize,
            _ => return Err(StreamError::NoLength),
        };
        let total = body + length;
        if total > MAX_MESSAGE_BYTES {
            return Err(StreamError::TooLarge);
        }
        if self.buffer.len() < total {
            return Ok(None);
        }
        Ok(Some(self.buffer.drain(..total).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_single_bytes_and_two_messages_at_once() {
        let one = b"BYE sip:a@b SIP/2.0\r\nl: 3\r\n\r\nabc";
        let mut framer = Framer::default();
        let mut found = 0;
        for byte in one {
            framer.push(&[*byte]);
            found += usize::from(framer.next_message().unwrap().is_some());
        }
        assert_eq!(found, 1);
        framer.push(b"\r\n\r\n");
        framer.push(&[&one[..], &one[..]].concat());
        assert_eq!(framer.next_message().unwrap().as_deref(), Some(&one[..]));
        assert_eq!(framer.next_message().unwrap().as_deref(), Some(&one[..]));
        assert_eq!(framer.next_message(), Ok(None));
    }

    #[test]
    fn filler_between_messages_is_skipped() {
        let one = b"BYE sip:a@b SIP/2.0\r\nl:\r\n 3\r\n\r\nabc";
        let two = b"BYE sip:a@b SIP/2.0\nl: 0\n\n";
        for filler in [&b"\0"[..], b"\r\n", b" \t", b"\0\0\r\n \0", b"\n"] {
            let mut framer = Framer::default();
            framer.push(&[filler, one, filler, two, filler].concat());
            assert_eq!(framer.next_message().unwrap().as_deref(), Some(&one[..]));
            assert_eq!(framer.next_message().unwrap().as_deref(), Some(&two[..]));
            assert_eq!(framer.next_message(), Ok(None));
            assert!(framer.is_empty(), "only filler is left");
        }
    }

    #[test]
    fn a_bad_length_or_a_large_message_is_an_error() {
        let table: [(&[u8], StreamError); 5] = [
            (b"jaK\0BYE sip:a@b\r\nl: 0\r\n\r\n", StreamError::NotSip),
            (b"BYE sip:a@b SIP/2.0\r\n\r\n", StreamError::NoLength),
            (b"BYE sip:a@b SIP/2.0\r\nl: 1\r\nContent-Length: 2\r\n\r\n", StreamError::NoLength),
            (b"BYE sip:a@b SIP/2.0\r\nContent-Length: 1000000000\r\n\r\n", StreamError::TooLarge),
            (&[b'x'; 70_000], StreamError::TooLarge),
        ];
        for (bytes, error) in table {
            let mut framer = Framer::default();
            framer.push(bytes);
            assert_eq!(framer.next_message(), Err(error));
        }
    }
}

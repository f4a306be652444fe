//! Cuts messages out of a TCP stream by Content-Length (RFC 3261 §18.3), with limits.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::header::{full_name, parse_number};
use crate::sip::message::MAX_MESSAGE_BYTES;

/// The stream cannot be followed any longer: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("a message is larger than 65,535 bytes")]
    TooLarge,
    #[error("a message has no usable Content-Length")]
    NoLength,
}

/// What arrived and is not yet a whole message.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
}

impl Framer {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether nothing of a next message has come yet.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole message, if there is one. Keep-alive line breaks between messages
    /// (RFC 5626 §3.5.1) are skipped.
    ///
    /// # Errors
    /// [`StreamError`] when the stream is lost.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        let breaks = self.buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        self.buffer.drain(..breaks);
        let Some(head) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") else {
            let full = self.buffer.len() > MAX_MESSAGE_BYTES;
            return if full { Err(StreamError::TooLarge) } else { Ok(None) };
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]);
        let lengths = text.split("\r\n").filter_map(|line| line.split_once(':'));
        let mut lengths = lengths
            .filter(|(name, _)| full_name(name.trim()).eq_ignore_ascii_case("Content-Length"));
        let length = match (lengths.next(), lengths.next()) {
            (Some((_, value)), None) => parse_number(value).ok_or(StreamError::NoLength)? as usize,
            _ => return Err(StreamError::NoLength),
        };
        let total = head + 4 + length;
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
    fn one_byte_at_a_time_and_two_at_once() {
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
    fn limits() {
        let table: [(&[u8], StreamError); 4] = [
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

//! As much of a WebSocket server (RFC 6455) as the AI needs, without a copy or an allocation per
//! message: answers the handshake, reads the client's frames in place, writes the server's headers.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::Range;

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Returns the answer to a WebSocket request and the length of that request; `None` while the
/// request is incomplete.
///
/// # Errors
/// Returns an error if the complete request is not for a WebSocket.
pub fn accept(request: &[u8]) -> Result<Option<(String, usize)>, &'static str> {
    let Some(end) = find(request, b"\r\n\r\n", 0) else { return Ok(None) };
    let text = std::str::from_utf8(&request[..end]).map_err(|_| "the request is not UTF-8 text")?;
    let key = text.lines().filter_map(|line| line.split_once(':'));
    let key = key.filter(|(name, _)| name.trim().eq_ignore_ascii_case("sec-websocket-key"));
    let key =
        key.map(|(_, value)| value.trim()).next().ok_or("the request has no Sec-WebSocket-Key")?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    Ok(Some((answer, end + 4)))
}

/// A complete frame in a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    /// Position of the payload, which has been unmasked.
    pub payload: Range<usize>,
}

/// Reads the client's frame at `at` and unmasks its payload; `None` while the frame is incomplete.
///
/// # Errors
/// Returns an error if the frame is a fragment or is not masked.
pub fn next_frame(buffer: &mut [u8], at: usize) -> Result<Option<Frame>, &'static str> {
    let rest = &buffer[at..];
    let [first, second, ..] = rest else { return Ok(None) };
    if first & FIN == 0 || second & MASKED == 0 {
        return Err("a frame is fragmented or not masked");
    }
    let opcode = first & 0x0f;
    let (length, header) = match second & 0x7f {
        126 => {
            let Some(bytes) = rest[2..].first_chunk() else { return Ok(None) };
            (usize::from(u16::from_be_bytes(*bytes)), 4)
        }
        127 => {
            let Some(bytes) = rest[2..].first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*bytes) as usize, 10)
        }
        short => (usize::from(short), 2),
    };
    let Some(mask) = rest.get(header..).and_then(|r| r.first_chunk::<4>()).copied() else {
        return Ok(None);
    };
    let begin = at + header + 4;
    let Some(end) = begin.checked_add(length).filter(|end| *end <= buffer.len()) else {
        return Ok(None);
    };
    unmask(&mut buffer[begin..end], mask);
    Ok(Some(Frame { opcode, payload: begin..end }))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = payload.chunks_exact_mut(8);
    for bytes in &mut words {
        if let Some(bytes) = bytes.first_chunk_mut::<8>() {
            *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
    }
    words.into_remainder().iter_mut().zip(mask.iter().cycle()).for_each(|(byte, m)| *byte ^= m);
}

/// Appends a server's frame with this payload.
pub fn write(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match payload.len() {
        short @ 0..126 => out.push(short as u8),
        length @ 126..65_536 => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

fn find(text: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let rest = text.get(from..)?;
    rest.windows(what.len()).position(|window| window == what).map(|at| from + at)
}

/// Returns the base64 in the string that follows `name` in a message, such as `"payload":"`; `None`
/// if the message has none. `chars` is its usual length. `hint` is the offset of `name` in the last
/// message: the messages of one bridge are alike.
#[inline]
pub fn base64_after<'a>(
    text: &'a [u8],
    name: &[u8],
    chars: usize,
    hint: &mut usize,
) -> Option<&'a [u8]> {
    // the numbers before it may have gained a digit or two
    let near = (hint.saturating_sub(2)..*hint + 3)
        .find(|at| text.get(*at..).is_some_and(|rest| rest.starts_with(name)));
    let at = near.or_else(|| find(text, name, 0))?;
    *hint = at;
    let begin = at + name.len();
    // at any other length than the usual one, the end has to be searched for
    let end = match text.get(begin + chars) {
        Some(b'"') => begin + chars,
        _ => begin + text[begin..].iter().position(|b| *b == b'"')?,
    };
    Some(&text[begin..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    use tokio_tungstenite::tungstenite::protocol::frame::{Frame as Theirs, FrameHeader};

    fn client(payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader {
            is_final: true,
            opcode: OpCode::Data(Data::Text),
            mask: Some([1, 200, 3, 77]),
            ..FrameHeader::default()
        };
        let mut bytes = Vec::new();
        header.format(payload.len() as u64, &mut bytes).unwrap();
        let masked = payload.iter().zip([1, 200, 3, 77].iter().cycle()).map(|(b, m)| b ^ m);
        bytes.extend(masked);
        bytes
    }

    #[test]
    fn reads_what_tungstenite_writes() {
        for length in [0, 1, 125, 126, 400, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let bytes = client(&payload);
            for cut in [0, 1, 3, 9, bytes.len() - 1].into_iter().filter(|c| *c < bytes.len()) {
                assert_eq!(next_frame(&mut bytes.clone()[..cut], 0), Ok(None), "{length} {cut}");
            }
            let mut two = [bytes.clone(), bytes].concat();
            let frame = next_frame(&mut two, 0).unwrap().unwrap();
            assert_eq!((frame.opcode, &two[frame.payload.clone()]), (TEXT, &payload[..]));
            let second = next_frame(&mut two, frame.payload.end).unwrap().unwrap();
            assert_eq!(two[second.payload], payload);
        }
        assert!(next_frame(&mut [0x81, 0, 0, 0], 0).is_err(), "not masked");
        assert!(next_frame(&mut [0x01, 0x80, 0, 0, 0, 0], 0).is_err(), "fragmented");
    }

    #[test]
    fn writes_what_tungstenite_writes() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let payload = vec![7u8; length];
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            write(TEXT, &payload, &mut ours);
            let frame = Theirs::message(payload, OpCode::Data(Data::Text), true);
            frame.format(&mut theirs).unwrap();
            assert_eq!(ours, theirs, "{length}");
        }
    }

    /// The example of RFC 6455 §1.3.
    #[test]
    fn answers_the_handshake() {
        let request = b"GET /x HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: \
                        dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nmore";
        assert_eq!(accept(&request[..30]), Ok(None));
        let (answer, end) = accept(request).unwrap().unwrap();
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        assert_eq!(&request[end..], b"more");
        assert!(accept(b"GET / HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn finds_the_audio_of_a_media_message() {
        let mut hint = 0;
        let payload = |text: &str, hint: &mut usize| {
            base64_after(text.as_bytes(), br#""payload":""#, 216, hint).map(<[u8]>::to_vec)
        };
        let message = |number: u32, payload: &str| {
            format!(r#"{{"event":"media","n":"{number}","media":{{"payload":"{payload}"}}}}"#)
        };
        for number in [9, 10, 1000, 1001] {
            let text = message(number, &"x".repeat(216));
            assert_eq!(payload(&text, &mut hint).unwrap().len(), 216);
        }
        let short = message(5, "abcd");
        assert_eq!(payload(&short, &mut hint).unwrap(), b"abcd");
        assert_eq!(payload(r#"{"event":"start"}"#, &mut hint), None);
    }
}

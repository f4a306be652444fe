//! WebSocket frames (RFC 6455 §5.2), as far as the fast path of a stream needs them: finds the end
//! of a frame, recognizes whole messages, and writes our own. All other frames are passed on
//! whole to the WebSocket library.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTROL: u8 = 8;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// Longest payload of a control frame.
const MAX_CONTROL_BYTES: u64 = 125;

/// The first frame of the received bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// A message in a single frame; `taken` is the length of the frame.
    Whole { binary: bool, payload: &'a [u8], taken: usize },
    /// Any other frame, including a fragment of a message.
    Frame { taken: usize },
    /// An incomplete frame: more bytes are needed.
    Partial,
    /// A protocol violation, or a frame longer than any message may be.
    Bad,
}

/// Follows the received half of a stream from frame to frame.
#[derive(Debug)]
pub struct Frames {
    /// Maximum payload of a frame.
    max_bytes: u64,
    /// True within a fragmented message. Frames that arrive in between are then left to the
    /// library, even if they look like whole messages.
    in_parts: bool,
    /// Complete messages so far, without control frames within a fragmented one.
    messages: u64,
}

impl Frames {
    pub fn new(max_bytes: usize) -> Frames {
        Frames { max_bytes: max_bytes as u64, in_parts: false, messages: 0 }
    }

    /// Returns true within a fragmented message.
    pub fn is_in_parts(&self) -> bool {
        self.in_parts
    }

    /// Returns the number of complete messages so far. Control frames within a fragmented message
    /// do not count.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Examines the first frame of `bytes`.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Next<'a> {
        let &[first, second, ref rest @ ..] = bytes else { return Next::Partial };
        let (length, head) = match (second & !MASKED, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 4),
            (127, rest) if rest.len() >= 8 => {
                let length = rest.first_chunk().map_or(0, |length| u64::from_be_bytes(*length));
                (length, 10)
            }
            (126 | 127, _) => return Next::Partial,
            (short, _) => (u64::from(short), 2),
        };
        let (opcode, fin) = (first & OPCODE, first & FIN != 0);
        let known = matches!(opcode & !CONTROL, CONTINUATION | TEXT | BINARY);
        let bad_control = opcode & CONTROL != 0 && (!fin || length > MAX_CONTROL_BYTES);
        // no extension is negotiated, and servers do not mask
        let odd = first & RESERVED != 0 || second & MASKED != 0;
        if !known || bad_control || odd || length > self.max_bytes {
            return Next::Bad;
        }
        let taken = head + length as usize;
        if bytes.len() < taken {
            return Next::Partial;
        }
        if fin && matches!(opcode, TEXT | BINARY) && !self.in_parts {
            self.messages += 1;
            let payload = &bytes[head..taken];
            return Next::Whole { binary: opcode == BINARY, payload, taken };
        }
        match (opcode, fin) {
            (TEXT | BINARY, false) => self.in_parts = true,
            (CONTINUATION, true) => self.in_parts = false,
            _ => {}
        }
        self.messages += u64::from(!self.in_parts);
        Next::Frame { taken }
    }
}

/// A control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Close,
    /// A ping or a pong.
    Other,
}

/// Returns the kind of the first frame of `bytes`, if it is a control frame.
pub fn control(bytes: &[u8]) -> Option<Control> {
    let opcode = bytes.first()? & OPCODE;
    match opcode {
        CLOSE => Some(Control::Close),
        _ => (opcode & CONTROL != 0).then_some(Control::Other),
    }
}

/// Appends a client's ping without a payload.
pub fn write_ping(mask: [u8; 4], out: &mut Vec<u8>) {
    out.extend_from_slice(&[FIN | PING, MASKED]);
    out.extend_from_slice(&mask);
}

/// Appends a client's message in a single frame (§5.3: every client masks).
pub fn write_message(binary: bool, data: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    out.push(FIN | if binary { BINARY } else { TEXT });
    match data.len() {
        short @ ..126 => out.push(MASKED | short as u8),
        middle @ 126..=0xffff => {
            out.push(MASKED | 126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let from = out.len();
    out.extend_from_slice(data);
    // eight bytes at a time; the compiler makes it even more
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = out[from..].as_chunks_mut::<8>();
    words.iter_mut().for_each(|word| *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes());
    rest.iter_mut().zip(wide.to_ne_bytes()).for_each(|(byte, mask)| *byte ^= mask);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tokio_tungstenite::tungstenite::{Message, WebSocket};

    /// Returns the bytes that the library writes, as a server or as a client.
    fn written(role: Role, messages: &[Message]) -> Vec<u8> {
        let mut out = std::io::Cursor::new(Vec::new());
        let mut socket = WebSocket::from_raw_socket(&mut out, role, None);
        messages.iter().for_each(|message| socket.send(message.clone()).unwrap());
        out.into_inner()
    }

    #[test]
    fn ends_of_frames_match_the_library_at_all_lengths() {
        for length in [0, 1, 125, 126, 127, 300, 0xffff, 0x1_0000, 70_000] {
            let text = "x".repeat(length);
            let bytes = written(Role::Server, &[Message::Text(text.clone().into())]);
            let mut frames = Frames::new(70_000);
            let whole = frames.next(&bytes);
            let taken = bytes.len();
            assert_eq!(
                whole,
                Next::Whole { binary: false, payload: text.as_bytes(), taken },
                "{length}"
            );
            for cut in [0, 1, 2, 3, 5, 9, taken / 2, taken - 1].into_iter().filter(|c| *c < taken) {
                assert_eq!(frames.next(&bytes[..cut]), Next::Partial, "{length}, {cut}");
            }
        }
        let long = written(Role::Server, &[Message::Text("x".repeat(70_001).into())]);
        assert_eq!(Frames::new(70_000).next(&long), Next::Bad);
        assert_eq!(
            Frames::new(70_000).next(&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255]),
            Next::Bad
        );
    }

    #[test]
    fn other_frames_are_left_to_the_library() {
        let mut frames = Frames::new(1000);
        let bytes = written(Role::Server, &[Message::Binary(b"1".as_slice().into())]);
        let taken = bytes.len();
        assert_eq!(frames.next(&bytes), Next::Whole { binary: true, payload: b"1", taken });
        for message in [
            Message::Ping(b"1".as_slice().into()),
            Message::Pong(b"".as_slice().into()),
            Message::Close(None),
        ] {
            let bytes = written(Role::Server, std::slice::from_ref(&message));
            assert_eq!(frames.next(&bytes), Next::Frame { taken: bytes.len() }, "{message:?}");
        }
        let masked = written(Role::Client, &[Message::Text("masked".into())]);
        assert_eq!(frames.next(&masked), Next::Bad);
        // reserved bits and opcodes, a fragmented ping, a ping of 126 bytes
        for bad in [[0xc1, 1], [0x83, 1], [0x8b, 0], [0x09, 0]] {
            assert_eq!(frames.next(&bad), Next::Bad, "{bad:x?}");
        }
        assert_eq!(frames.next(&[0x89, 126, 0, 126]), Next::Bad);
        // a message in three fragments, with a ping in between
        for (bytes, text) in [
            (&[0x01, 1, b'a'][..], false),
            (&[0x81, 1, b'b'], false),
            (&[0x89, 0], false),
            (&[0x00, 1, b'c'], false),
            (&[0x80, 1, b'd'], false),
            (&[0x81, 1, b'e'], true),
        ] {
            let next = frames.next(bytes);
            assert_eq!(matches!(next, Next::Whole { .. }), text, "{bytes:?}: {next:?}");
        }
    }

    #[test]
    fn written_messages_are_read_by_the_library() {
        let mut out = Vec::new();
        let texts = [0, 1, 5, 125, 126, 127, 331, 0xffff, 0x1_0000].map(|n| "é".repeat(n / 2));
        for (text, n) in texts.iter().zip(1u8..) {
            write_message(false, text.as_bytes(), [n, 0xff, 0, n.wrapping_mul(77)], &mut out);
        }
        write_ping([1, 2, 3, 4], &mut out);
        let mut socket = WebSocket::from_raw_socket(std::io::Cursor::new(out), Role::Server, None);
        for text in &texts {
            assert_eq!(socket.read().unwrap(), Message::Text(text.into()));
        }
        assert_eq!(socket.read().unwrap(), Message::Ping(b"".as_slice().into()));
    }

    #[test]
    fn junk_never_panics() {
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        for _ in 0..100_000 {
            let bytes: Vec<u8> = (0..byte() % 20).map(|_| byte()).collect();
            let mut frames = Frames::new(1000);
            if let Next::Whole { taken, .. } | Next::Frame { taken } = frames.next(&bytes) {
                assert!((2..=bytes.len()).contains(&taken));
            }
        }
    }
}

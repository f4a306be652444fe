//! The messages of a stream arrive complete and in order, with nothing of another stream in them,
//! whatever frames they come in and however TCP cuts them.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio_tungstenite::tungstenite::WebSocket;
use tokio_tungstenite::tungstenite::protocol::Role;
use trunkless::stream::dialect::{Dialect, Extensions, Session};
use trunkless::stream::scratch::Scratch;
use trunkless::stream::socket::{AiSocket, Stop};
use trunkless::stream::wire::Wire;
use trunkless::stream::{FromAi, StreamInfo};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// A message as the bridge reads it.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Audio(Vec<u8>),
    Mark(String),
    Clear,
    Ignored,
}

fn said(message: &FromAi<'_>) -> Said {
    match message {
        FromAi::Audio(audio) => Said::Audio(audio.to_vec()),
        FromAi::Mark(name) => Said::Mark(name.clone()),
        FromAi::Clear => Said::Clear,
        FromAi::Order(_) | FromAi::Tool(_) | FromAi::Failed(_) => Said::Ignored,
        FromAi::Done(_) | FromAi::SessionEnded(_) => Said::Ignored,
        FromAi::Warning(_) | FromAi::Ignored(_) => Said::Ignored,
    }
}

fn frame(first: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    match payload.len() {
        n @ ..126 => out.push(n as u8),
        n @ 126..=0xffff => {
            out.push(126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    out.extend(payload);
}

/// Appends a random message to `out`, usually as one frame, sometimes as fragments with a ping
/// between them. Returns how the bridge should read it; `None` for a ping.
fn message(random: &mut Random, out: &mut Vec<u8>) -> Option<Said> {
    let text = |what: String, out: &mut Vec<u8>, random: &mut Random| {
        if random.below(4) > 0 {
            return frame(0x81, what.as_bytes(), out);
        }
        let at = [random.below(what.len() + 1), random.below(what.len() + 1)];
        let (a, b) = (at[0].min(at[1]), at[0].max(at[1]));
        frame(0x01, &what.as_bytes()[..a], out);
        frame(0x89, b"between", out);
        frame(0x00, &what.as_bytes()[a..b], out);
        frame(0x80, &what.as_bytes()[b..], out);
    };
    Some(match random.below(12) {
        0 => {
            let name = format!("é{}", random.below(1000));
            text(format!(r#"{{"event":"mark","mark":{{"name":"{name}"}}}}"#), out, random);
            Said::Mark(name)
        }
        1 => {
            text(r#"{"event":"clear"}"#.into(), out, random);
            Said::Clear
        }
        2 => {
            frame(0x82, &vec![7; random.below(300)], out);
            Said::Ignored
        }
        3 => {
            frame(0x89, &vec![9; random.below(126)], out);
            return None;
        }
        kind => {
            let length = if kind == 4 { random.below(60_000) } else { random.below(400) };
            let audio: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
            let payload = BASE64.encode(&audio);
            text(format!(r#"{{"event":"media","media":{{"payload":"{payload}"}}}}"#), out, random);
            Said::Audio(audio)
        }
    })
}

struct Stream {
    /// The AI's end of the connection.
    server: TcpStream,
    ai: AiSocket,
    /// Everything the server sends.
    bytes: Vec<u8>,
    /// How many of `bytes` have been sent.
    sent: usize,
    /// The messages in `bytes`.
    expected: Vec<Said>,
    /// The messages read so far.
    heard: Vec<Said>,
}

impl Stream {
    /// Opens a stream whose first bytes directly follow the answer to the handshake.
    fn open(random: &mut Random) -> Stream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_nodelay(true).unwrap();
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            expected.extend(message(random, &mut bytes));
        }
        let sent = random.below(200);
        server.write_all(b"HTTP/1.1 101 Switching Protocols\r\na: b\r\n\r\n").unwrap();
        server.write_all(&bytes[..sent]).unwrap();
        // the head is read as the WebSocket library does
        client.set_nonblocking(true).unwrap();
        let mut wire = Wire::new(client, None).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut buffer = [0; 4096];
            let n = wire.read(&mut buffer).unwrap();
            head.extend(&buffer[..n]);
            wire.readable_at_length();
        }
        let config = None;
        let socket = WebSocket::from_raw_socket(wire, Role::Client, config);
        let info = StreamInfo {
            account_sid: "AC".into(),
            call_sid: "CA".into(),
            stream_sid: "MZ".into(),
            parameters: Vec::new(),
            targets: Vec::new(),
            resumed: false,
            resumption: None,
        };
        let ai = AiSocket::new(
            Instant::now(),
            socket,
            Dialect::Twilio.codec(info, Extensions::Off, &Session::default()),
            Duration::ZERO,
        );
        // from here on nothing blocks
        server.set_nonblocking(true).unwrap();
        Stream { server, ai, bytes, sent, expected, heard: Vec::new() }
    }

    /// The server sends some of its bytes and reads pongs.
    fn speak(&mut self, random: &mut Random) {
        let limit = if random.below(3) == 0 { 20_000 } else { 700 };
        let end = (self.sent + random.below(limit)).min(self.bytes.len());
        if let Ok(n) = self.server.write(&self.bytes[self.sent..end]) {
            self.sent += n;
        }
        let _ = self.server.read(&mut [0; 4096]);
    }

    fn listen(&mut self, scratch: &mut Scratch, limit: usize) {
        self.ai.readable(false);
        let heard = &mut self.heard;
        let stop =
            self.ai.read(Instant::now(), scratch, limit, &mut |message| heard.push(said(&message)));
        assert!(matches!(stop, Stop::Empty | Stop::Turn), "{stop:?}");
    }
}

#[test]
fn messages_arrive_complete_however_they_are_cut() {
    for seed in 1..60 {
        let mut random = Random(seed);
        let mut scratch = Scratch::default();
        let mut streams: Vec<Stream> = (0..3).map(|_| Stream::open(&mut random)).collect();
        // a message that never arrives must not loop forever
        let begin = Instant::now();
        while streams.iter().any(|s| s.heard.len() < s.expected.len()) {
            assert!(begin.elapsed().as_secs() < 20, "seed {seed}: messages are missing");
            let index = random.below(3);
            streams[index].speak(&mut random);
            let index = random.below(3);
            let limit = 1 + random.below(40);
            streams[index].listen(&mut scratch, limit);
        }
        for stream in &streams {
            assert_eq!(stream.heard, stream.expected, "seed {seed}");
        }
    }
}

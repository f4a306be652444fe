//! A Twilio Media Streams server that checks every byte it receives, and treats the bridge in
//! whatever way a test asks for.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::checker::Checker;
use crate::stream::Stream;

/// The complete list of header fields in Twilio's handshake.
const HANDSHAKE: [&str; 6] =
    ["host", "user-agent", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version"];

pub struct Ai {
    pub address: SocketAddr,
    listener: TcpListener,
}

impl Ai {
    pub async fn start(ip: IpAddr) -> Ai {
        Ai::with_buffer(ip, None).await
    }

    /// Starts with a receive buffer of `bytes`: small, so that the bridge soon notices when the AI
    /// does not read.
    pub async fn with_buffer(ip: IpAddr, bytes: Option<u32>) -> Ai {
        let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.unwrap();
        if let Some(bytes) = bytes {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.bind(SocketAddr::new(ip, 0)).unwrap();
        let listener = socket.listen(1024).unwrap();
        Ai { address: listener.local_addr().unwrap(), listener }
    }

    /// Waits for the next connection and reads its request without answering it.
    pub async fn handshake(&self) -> Handshake {
        let next = timeout(Duration::from_secs(10), self.next()).await;
        next.expect("the bridge dials the AI").expect("the connection lasts for the handshake")
    }

    /// Like [`Ai::handshake`], without a time limit; `None` if the connection ends before its
    /// request does.
    pub async fn next(&self) -> Option<Handshake> {
        let (mut tcp, _) = self.listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let text = read_head(&mut tcp).await?;
        Some(Handshake { tcp, text, allowed: Vec::new(), selected: None })
    }

    /// Accepts the next stream and waits for `connected` and `start`.
    pub async fn stream(&self) -> Stream {
        self.handshake().await.open().await.started().await
    }

    /// True if the bridge does not dial within `time`.
    pub async fn is_left_alone(&self, time: Duration) -> bool {
        timeout(time, self.listener.accept()).await.is_err()
    }
}

/// A connection whose request has been read.
pub struct Handshake {
    pub tcp: TcpStream,
    pub text: String,
    /// Header fields besides Twilio's that this test expects, in lower case.
    allowed: Vec<&'static str>,
    /// The subprotocol that the answer selects.
    selected: Option<String>,
}

impl Handshake {
    pub fn allow(mut self, names: &[&'static str]) -> Handshake {
        self.allowed.extend(names);
        self
    }

    /// The value of a header field.
    pub fn get(&self, name: &str) -> Option<&str> {
        field(&self.text, name)
    }

    /// Asserts that this is the request Twilio would send.
    fn check(&self) {
        let first = self.text.split("\r\n").next().unwrap();
        assert_eq!(first, "GET /media HTTP/1.1");
        let mut names: Vec<String> =
            fields(&self.text).map(|(n, _)| n.to_ascii_lowercase()).collect();
        let mut expected: Vec<&str> = HANDSHAKE.iter().chain(&self.allowed).copied().collect();
        names.sort();
        expected.sort_unstable();
        assert_eq!(names, expected, "{}", self.text);
        assert_eq!(self.get("Host"), Some(&*self.tcp.local_addr().unwrap().to_string()));
        assert_eq!(self.get("User-Agent"), Some("Twilio.TmeWs/1.0"));
        assert_eq!(self.get("Connection"), Some("Upgrade"));
        assert_eq!(self.get("Upgrade"), Some("websocket"));
        assert_eq!(self.get("Sec-WebSocket-Version"), Some("13"));
        let key = BASE64.decode(self.get("Sec-WebSocket-Key").unwrap()).unwrap();
        assert_eq!(key.len(), 16);
    }

    /// Answers 101.
    pub async fn open(mut self) -> Opened {
        self.accept().await;
        self.into_stream(Checker::default()).await
    }

    /// Answers 101 with these messages right behind it, in one segment.
    pub async fn open_saying(mut self, messages: &[String]) -> Opened {
        self.check();
        let mut bytes = switching(&self.text).into_bytes();
        for text in messages {
            let length = u16::try_from(text.len()).unwrap().to_be_bytes();
            bytes.extend([0x81, 126, length[0], length[1]]);
            bytes.extend(text.bytes());
        }
        self.tcp.write_all(&bytes).await.unwrap();
        self.into_stream(Checker::default()).await
    }

    /// For use after [`Handshake::accept`] and some time without reading: frames may be missing.
    pub async fn into_stream_that_may_skip(self) -> Opened {
        self.into_stream(Checker::that_may_skip()).await
    }

    async fn into_stream(self, checker: Checker) -> Opened {
        let raw = self.tcp.into_std().unwrap();
        let other = TcpStream::from_std(raw.try_clone().unwrap()).unwrap();
        let socket = WebSocketStream::from_raw_socket(other, Role::Server, None).await;
        Opened { stream: Stream::new(socket, raw, checker) }
    }

    /// Answers 101 and leaves the rest to the test.
    pub async fn accept(&mut self) {
        self.try_accept().await.unwrap();
    }

    /// Answers 101 with these lines instead of the usual `Connection` and `Upgrade`.
    pub async fn open_with(mut self, lines: &str) -> Opened {
        self.check();
        let usual = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
        let head = switching(&self.text).replace(usual, lines);
        self.tcp.write_all(head.as_bytes()).await.unwrap();
        self.into_stream(Checker::default()).await
    }

    /// Has the answer select a subprotocol.
    pub fn select(mut self, subprotocol: &str) -> Handshake {
        self.selected = Some(subprotocol.to_owned());
        self
    }

    /// Answers 101 with these bytes right behind it, in one segment. The request is not checked.
    pub async fn open_with_behind(mut self, behind: &[u8]) -> TcpStream {
        let mut head = switching(&self.text);
        if let Some(name) = &self.selected {
            head = head.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Protocol: {name}\r\n\r\n"));
        }
        let bytes = [head.as_bytes(), behind].concat();
        self.tcp.write_all(&bytes).await.unwrap();
        self.tcp
    }

    /// Answers 101 with the accept key of another request.
    pub async fn open_wrongly(mut self) {
        let other = "GET /\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
        let head = switching(other).replace("Connection: Upgrade", "Connection: a, Upgrade");
        self.tcp.write_all(head.as_bytes()).await.unwrap();
    }

    async fn try_accept(&mut self) -> std::io::Result<()> {
        self.check();
        self.tcp.write_all(switching(&self.text).as_bytes()).await
    }

    /// Answers 101; `None` if the bridge has given up.
    pub async fn open_if_open(mut self) -> Option<Opened> {
        self.try_accept().await.ok()?;
        Some(self.into_stream(Checker::default()).await)
    }

    /// Answers with another status.
    pub async fn refuse(self, status: &str) {
        self.try_refuse(status).await.unwrap();
    }

    /// Like [`Handshake::refuse`], where the bridge may have given up.
    pub async fn refuse_if_open(self, status: &str) {
        let _ = self.try_refuse(status).await;
    }

    async fn try_refuse(mut self, status: &str) -> std::io::Result<()> {
        self.check();
        self.tcp.write_all(refusing(status).as_bytes()).await
    }

    /// Answers 101. The bridge must close the connection with a close frame, and send nothing else.
    pub async fn expect_only_a_probe(mut self) {
        self.accept().await;
        let mut bytes = Vec::new();
        let read = timeout(Duration::from_secs(10), self.tcp.read_to_end(&mut bytes)).await;
        assert!(read.is_ok() && bytes.len() == 8 && bytes[0] == 0x88, "{read:?} {bytes:?}");
    }

    /// Waits until the bridge closes the connection; false if it sends another byte or does not
    /// close.
    pub async fn is_given_up(&mut self) -> bool {
        let mut byte = [0u8];
        let read = timeout(Duration::from_secs(10), self.tcp.read(&mut byte)).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }
}

/// Reads the head of a request; `None` if the connection ends within it.
pub async fn read_head(tcp: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0u8];
        match tcp.read(&mut byte).await {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

fn fields(head: &str) -> impl Iterator<Item = (&str, &str)> {
    head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "))
}

/// The value of a header field.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    fields(head).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
}

/// The answer that opens a WebSocket.
pub fn switching(head: &str) -> String {
    let accept = derive_accept_key(field(head, "Sec-WebSocket-Key").unwrap().as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// The answer that refuses a WebSocket.
pub fn refusing(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// Makes the end of the connection a reset instead of a regular close.
pub fn linger_zero(tcp: &impl AsFd) {
    SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

/// An open WebSocket on which nothing has been received yet.
pub struct Opened {
    stream: Stream,
}

impl Opened {
    /// Waits for `connected` and `start`.
    pub async fn started(mut self) -> Stream {
        self.stream.read_start().await;
        self.stream
    }

    /// Like [`Opened::started`]; `None` if the stream ends before `start`.
    pub async fn started_unless_ended(self) -> Option<Stream> {
        match self.stream.starts().await {
            true => Some(self.started().await),
            false => None,
        }
    }
}

//! A SIP client for single requests, from a port of its own, so that a running registration is not
//! disturbed. Owns sockets and a clock.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::sip::agent::Route;
use crate::sip::flow::Transport;
use crate::sip::message::Message;
use crate::sip::random::Random;
use crate::sip::stream::{Frame, Framer};

/// First interval between two copies of a request (RFC 3261 §17.1.2.2); it doubles.
const RESEND: Duration = Duration::from_millis(500);
/// Time limit for opening a TCP connection.
const CONNECT: Duration = Duration::from_secs(2);

/// The reaction to a request.
#[derive(Debug)]
pub enum Reply {
    /// A final response.
    Answer(Message),
    /// An ICMP error or a refused connection: nothing listens there.
    Refused,
    /// Nothing came back.
    Silent,
    /// The kernel's error.
    Failed(String),
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream, Framer),
}

pub struct Client {
    socket: Socket,
    /// Our address.
    pub local: SocketAddr,
    transport: Transport,
    pub random: Random,
    call_id: String,
    tag: String,
    cseq: u32,
}

impl Client {
    /// Opens a socket to an address of the PBX.
    ///
    /// # Errors
    /// Returns the reply that stands for the failure.
    pub async fn open(route: &Route, transport: Transport) -> Result<Client, Reply> {
        let failed = |error: io::Error| match error.kind() {
            ErrorKind::ConnectionRefused => Reply::Refused,
            ErrorKind::TimedOut => Reply::Silent,
            _ => Reply::Failed(error.to_string()),
        };
        let (socket, local) = match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind((route.local, 0)).await.map_err(failed)?;
                // only a connected socket is notified of ICMP errors
                socket.connect(route.remote).await.map_err(failed)?;
                let local = socket.local_addr().map_err(failed)?;
                (Socket::Udp(socket), local)
            }
            Transport::Tcp => {
                let stream = timeout(CONNECT, TcpStream::connect(route.remote)).await;
                let stream = stream.map_err(|_| Reply::Silent)?.map_err(failed)?;
                let local = stream.local_addr().map_err(failed)?;
                (Socket::Tcp(stream, Framer::default()), local)
            }
        };
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|error| Reply::Failed(error.to_string()))?;
        let mut random = Random::new(key);
        let (call_id, tag) = (format!("{}@trunkless-doctor", random.token()), random.token());
        Ok(Client { socket, local, transport, random, call_id, tag, cseq: 0 })
    }

    /// Returns a request outside of a call. `aor` is the address in From and To.
    pub fn request(&mut self, method: &str, uri: &str, aor: &str) -> Message {
        self.cseq += 1;
        let branch = self.random.branch();
        let via = format!("SIP/2.0/{} {};rport;branch={branch}", self.transport.via(), self.local);
        Message::request(method, uri)
            .with("Via", via)
            .with("Max-Forwards", "70")
            .with("From", format!("<{aor}>;tag={}", self.tag))
            .with("To", format!("<{aor}>"))
            .with("Call-ID", self.call_id.clone())
            .with("CSeq", format!("{} {method}", self.cseq))
            .with("User-Agent", concat!("trunkless-doctor/", env!("CARGO_PKG_VERSION")))
    }

    /// Sends the request until there is a final response, or for this long.
    pub async fn ask(&mut self, request: &Message, limit: Duration) -> Reply {
        let data = request.to_bytes();
        let end = Instant::now() + limit;
        let (mut pause, mut refused, mut sent) = (RESEND, false, false);
        loop {
            // TCP repeats by itself
            let due = !std::mem::replace(&mut sent, true) || self.transport == Transport::Udp;
            match if due { self.send(&data).await } else { Ok(()) } {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused = true,
                Err(error) => return Reply::Failed(error.to_string()),
                Ok(()) => {}
            }
            let next = (Instant::now() + pause).min(end);
            pause *= 2;
            match timeout_at(next, self.answer(request)).await {
                Ok(Ok(message)) => return Reply::Answer(message),
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                    // one error may be about an older datagram, and the PBX may be starting
                    if std::mem::replace(&mut refused, true) {
                        return Reply::Refused;
                    }
                    tokio::time::sleep_until(next).await;
                }
                Ok(Err(error)) => return Reply::Failed(error.to_string()),
                Err(_) => {}
            }
            if Instant::now() >= end {
                return if refused { Reply::Refused } else { Reply::Silent };
            }
        }
    }

    async fn send(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.socket {
            Socket::Udp(socket) => socket.send(data).await.map(drop),
            Socket::Tcp(stream, _) => stream.write_all(data).await,
        }
    }

    /// Waits for the final response to a request.
    async fn answer(&mut self, request: &Message) -> io::Result<Message> {
        loop {
            let message = match &mut self.socket {
                Socket::Udp(socket) => {
                    let mut buffer = vec![0u8; 65_536];
                    let n = socket.recv(&mut buffer).await?;
                    buffer.truncate(n);
                    buffer
                }
                Socket::Tcp(stream, framer) => read_frame(stream, framer).await?,
            };
            let Ok((message, _)) = Message::parse(&message) else { continue };
            let same = message.call_id() == request.call_id() && message.cseq() == request.cseq();
            if same && message.code().is_some_and(|code| code >= 200) {
                return Ok(message);
            }
        }
    }
}

async fn read_frame(stream: &mut TcpStream, framer: &mut Framer) -> io::Result<Vec<u8>> {
    loop {
        match framer.next_frame() {
            Ok(Some(Frame::Message(message))) => return Ok(message),
            Ok(Some(Frame::Stray)) => continue,
            Ok(None) => {}
            Err(broken) => return Err(io::Error::other(broken.why)),
        }
        let mut buffer = [0u8; 4096];
        match stream.read(&mut buffer).await? {
            0 => return Err(ErrorKind::ConnectionReset.into()),
            n => framer.push(&buffer[..n]),
        }
    }
}

//! SIP over TCP: one task per connection, with limits. Owns sockets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::sip::stream::Framer;

/// Maximum number of messages waiting to be written; the connection is dropped if there are more.
const QUEUE: usize = 256;
/// Incoming connections are refused when there are this many.
const MAX_CONNECTIONS: usize = 256;
/// Time limit for receiving the rest of a message, and for writing one.
const PARTIAL: Duration = Duration::from_secs(10);
/// Time limit for connecting.
const CONNECT: Duration = Duration::from_secs(4);
/// The peer counts as gone if it leaves data unacknowledged for this long.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// An event that a connection sends to the endpoint.
#[derive(Debug)]
pub enum TcpEvent {
    /// A complete message from this address.
    Message(SocketAddr, Vec<u8>),
    /// The connection of this generation could not be made, or ended.
    Closed(SocketAddr, u64),
}

/// All connections, by the peer's address.
pub struct Connections {
    /// Generation and send queue of each connection.
    writers: HashMap<SocketAddr, (u64, mpsc::Sender<Vec<u8>>)>,
    /// Number of connections so far. It distinguishes the end of an old connection from the end of
    /// its successor.
    generation: u64,
    /// Queue to the endpoint.
    events: mpsc::Sender<TcpEvent>,
}

impl Connections {
    pub fn new(events: mpsc::Sender<TcpEvent>) -> Connections {
        Connections { writers: HashMap::new(), generation: 0, events }
    }

    /// Serves a connection made by the PBX.
    pub fn accepted(&mut self, remote: SocketAddr, stream: TcpStream) {
        if self.writers.len() < MAX_CONNECTIONS {
            self.open(remote, Some(stream));
        }
    }

    /// Sends over the connection to `remote`, opening one if necessary.
    pub fn send(&mut self, remote: SocketAddr, data: Vec<u8>) {
        if !self.writers.contains_key(&remote) {
            self.open(remote, None);
        }
        let Some((_, writer)) = self.writers.get(&remote) else { return };
        if writer.try_send(data).is_err() {
            self.writers.remove(&remote);
        }
    }

    fn open(&mut self, remote: SocketAddr, stream: Option<TcpStream>) {
        self.generation += 1;
        let (writer, queue) = mpsc::channel(QUEUE);
        self.writers.insert(remote, (self.generation, writer));
        tokio::spawn(serve(remote, self.generation, stream, queue, self.events.clone()));
    }

    /// Handles the end of a connection. Returns false if a newer one to `remote` has replaced it.
    pub fn closed(&mut self, remote: SocketAddr, generation: u64) -> bool {
        let current = self.writers.get(&remote).is_none_or(|(number, _)| *number == generation);
        if current {
            self.writers.remove(&remote);
        }
        current
    }
}

async fn serve(
    remote: SocketAddr,
    generation: u64,
    stream: Option<TcpStream>,
    mut queue: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<TcpEvent>,
) {
    let stream = match stream {
        Some(stream) => Some(stream),
        None => timeout(CONNECT, TcpStream::connect(remote)).await.ok().and_then(Result::ok),
    };
    if let Some(mut stream) = stream {
        let _ = stream.set_nodelay(true);
        // otherwise a PBX that disappeared would look connected for a quarter of an hour
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        exchange(remote, &mut stream, &mut queue, &events).await;
    }
    let _ = events.send(TcpEvent::Closed(remote, generation)).await;
}

/// Reads and writes messages until the connection ends.
async fn exchange(
    remote: SocketAddr,
    stream: &mut TcpStream,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<TcpEvent>,
) {
    let (mut reader, mut writer) = stream.split();
    let mut framer = Framer::default();
    let mut buffer = [0u8; 4096];
    // fixed when a message begins, so that a trickle of bytes does not keep the connection open
    let mut partial_until = None;
    loop {
        let limit = partial_until
            .unwrap_or_else(|| tokio::time::Instant::now() + 86_400 * Duration::from_secs(1));
        tokio::select! {
            data = queue.recv() => {
                let Some(data) = data else { return };
                let written = timeout(PARTIAL, writer.write_all(&data)).await;
                if !matches!(written, Ok(Ok(()))) {
                    return;
                }
            }
            read = tokio::time::timeout_at(limit, reader.read(&mut buffer)) => {
                let n = match read {
                    Ok(Ok(n)) if n > 0 => n,
                    _ => return,
                };
                framer.push(&buffer[..n]);
                loop {
                    match framer.next_message() {
                        Ok(Some(message)) => {
                            partial_until = None;
                            if events.send(TcpEvent::Message(remote, message)).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break,
                        Err(_) => return,
                    }
                }
                partial_until = match (framer.is_empty(), partial_until) {
                    (true, _) => None,
                    (false, before) => {
                        before.or_else(|| Some(tokio::time::Instant::now() + PARTIAL))
                    }
                };
            }
        }
    }
}

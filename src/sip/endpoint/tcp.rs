//! SIP over TCP: one task a connection, with limits. Owns sockets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::sip::stream::Framer;

/// Messages that wait to be written; over it the connection is given up.
const QUEUE: usize = 256;
/// Connections at once.
const MAX_CONNECTIONS: usize = 256;
/// How long the rest of a begun message may take.
const PARTIAL: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(4);
/// Data unacknowledged for so long means that the peer is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// What a connection tells the endpoint.
#[derive(Debug)]
pub enum TcpEvent {
    Message(SocketAddr, Vec<u8>),
    /// Could not be made, or has ended: the connection of this generation.
    Closed(SocketAddr, u64),
}

/// All connections, by the peer's address.
pub struct Connections {
    writers: HashMap<SocketAddr, (u64, mpsc::Sender<Vec<u8>>)>,
    /// Counts connections, so that the end of an old one is not taken for that of its successor.
    generation: u64,
    events: mpsc::Sender<TcpEvent>,
}

impl Connections {
    pub fn new(events: mpsc::Sender<TcpEvent>) -> Connections {
        Connections { writers: HashMap::new(), generation: 0, events }
    }

    /// Serves a connection that the PBX has made.
    pub fn accepted(&mut self, remote: SocketAddr, stream: TcpStream) {
        if self.writers.len() < MAX_CONNECTIONS {
            self.open(remote, Some(stream));
        }
    }

    /// Sends over the connection to `remote`, which is made when there is none.
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

    /// True when it was the connection in use.
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
        // a PBX that is gone without a word must not look connected for a quarter of an hour
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        exchange(remote, &mut stream, &mut queue, &events).await;
    }
    let _ = events.send(TcpEvent::Closed(remote, generation)).await;
}

/// Until either side has enough.
async fn exchange(
    remote: SocketAddr,
    stream: &mut TcpStream,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<TcpEvent>,
) {
    let (mut reader, mut writer) = stream.split();
    let mut framer = Framer::default();
    let mut buffer = [0u8; 4096];
    // fixed when a message begins, so that one byte now and then does not keep it open
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

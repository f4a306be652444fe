//! SIP over TCP: one task a connection, with limits. Owns sockets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

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

/// What a connection tells the endpoint.
#[derive(Debug)]
pub enum TcpEvent {
    Message(SocketAddr, Vec<u8>),
    /// Could not be made, or has ended.
    Closed(SocketAddr),
}

/// All connections, by the peer's address.
pub struct Connections {
    writers: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>,
    events: mpsc::Sender<TcpEvent>,
}

impl Connections {
    pub fn new(events: mpsc::Sender<TcpEvent>) -> Connections {
        Connections { writers: HashMap::new(), events }
    }

    /// Serves a connection that the PBX has made.
    pub fn accepted(&mut self, remote: SocketAddr, stream: TcpStream) {
        if self.writers.len() < MAX_CONNECTIONS {
            let (writer, queue) = mpsc::channel(QUEUE);
            self.writers.insert(remote, writer);
            tokio::spawn(serve(remote, Some(stream), queue, self.events.clone()));
        }
    }

    /// Sends over the connection to `remote`, which is made when there is none.
    pub fn send(&mut self, remote: SocketAddr, data: Vec<u8>) {
        let events = &self.events;
        let writer = self.writers.entry(remote).or_insert_with(|| {
            let (writer, queue) = mpsc::channel(QUEUE);
            tokio::spawn(serve(remote, None, queue, events.clone()));
            writer
        });
        if writer.try_send(data).is_err() {
            self.writers.remove(&remote);
        }
    }

    pub fn closed(&mut self, remote: SocketAddr) {
        self.writers.remove(&remote);
    }
}

async fn serve(
    remote: SocketAddr,
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
        exchange(remote, &mut stream, &mut queue, &events).await;
    }
    let _ = events.send(TcpEvent::Closed(remote)).await;
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

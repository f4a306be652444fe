//! SIP over TCP: one task per connection, with limits. Owns sockets.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::sip::message::Message;
use crate::sip::stream::{Broken, Frame, Framer};

/// Maximum number of messages waiting to be written; the connection is dropped if there are more.
const QUEUE: usize = 256;
/// With this many connections, an idle one makes room for a new one, or the new one is refused.
const MAX_CONNECTIONS: usize = 256;
/// An idle connection is probed at this interval, because a PBX that disappeared does not close it.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Time limit for receiving the rest of a message, and for writing one.
const PARTIAL: Duration = Duration::from_secs(10);
/// Time for which the peer of a connection that we close may be silent before it is gone.
const LINGER: Duration = Duration::from_secs(1);
/// Time limit for connecting.
const CONNECT: Duration = Duration::from_secs(4);
/// The peer counts as gone if it leaves data unacknowledged for this long.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// An event that a connection sends to the endpoint.
#[derive(Debug)]
pub enum TcpEvent {
    /// A complete message from this address.
    Message(SocketAddr, Vec<u8>),
    /// Bytes from this address that do not belong to a message were dropped.
    Stray(SocketAddr),
    /// Nothing more is read from the connection of this generation. It has to be closed with
    /// [`Connections::finish`].
    Broken { remote: SocketAddr, generation: u64, broken: Broken },
    /// The connection of this generation could not be made, or ended. `gone`: the peer refused or
    /// closed it, so it did not merely time out.
    Closed { remote: SocketAddr, generation: u64, gone: bool },
}

/// One connection.
struct Connection {
    /// See [`Connections::generation`].
    generation: u64,
    /// Queue of messages to be written. The connection is closed when this is dropped.
    writer: mpsc::Sender<Vec<u8>>,
    /// When the last message was sent or received.
    used: Instant,
}

/// All connections, by the peer's address.
pub struct Connections {
    open: HashMap<SocketAddr, Connection>,
    /// Number of connections so far. It distinguishes the end of an old connection from the end of
    /// its successor.
    generation: u64,
    /// Queue to the endpoint.
    events: mpsc::Sender<TcpEvent>,
}

impl Connections {
    pub fn new(events: mpsc::Sender<TcpEvent>) -> Connections {
        Connections { open: HashMap::new(), generation: 0, events }
    }

    /// Serves a connection made by the PBX. If there are too many, an idle one is closed for it.
    /// `busy` returns the addresses whose connections are needed by a call or a registration.
    pub fn accepted(
        &mut self,
        remote: SocketAddr,
        stream: TcpStream,
        busy: impl FnOnce() -> HashSet<SocketAddr>,
    ) {
        if self.open.len() >= MAX_CONNECTIONS {
            let open = self.open.iter().map(|(at, c)| (*at, c.used));
            let Some(idle) = least_needed(remote.ip(), open, &busy()) else { return };
            self.open.remove(&idle);
        }
        self.connect(remote, Some(stream));
    }

    /// Notes that a message arrived.
    pub fn received(&mut self, remote: SocketAddr) {
        if let Some(connection) = self.open.get_mut(&remote) {
            connection.used = Instant::now();
        }
    }

    /// Sends over the connection to `remote`, opening one if necessary. If the connection of a
    /// request has closed, its response goes to the port in its Via (RFC 3261 §18.2.2).
    pub fn send(&mut self, mut remote: SocketAddr, data: Vec<u8>) {
        if !self.open.contains_key(&remote)
            && let Some(port) = sent_by_port(&data)
        {
            remote.set_port(port);
        }
        if !self.open.contains_key(&remote) {
            self.connect(remote, None);
        }
        let Some(connection) = self.open.get_mut(&remote) else { return };
        connection.used = Instant::now();
        if connection.writer.try_send(data).is_err() {
            self.open.remove(&remote);
        }
    }

    fn connect(&mut self, remote: SocketAddr, stream: Option<TcpStream>) {
        self.generation += 1;
        let (generation, used) = (self.generation, Instant::now());
        let (writer, queue) = mpsc::channel(QUEUE);
        self.open.insert(remote, Connection { generation, writer, used });
        tokio::spawn(serve(remote, generation, stream, queue, self.events.clone()));
    }

    /// Closes a connection once everything in its queue is written.
    pub fn finish(&mut self, remote: SocketAddr, generation: u64) {
        if self.open.get(&remote).is_some_and(|c| c.generation == generation) {
            self.open.remove(&remote);
        }
    }

    /// Handles the end of a connection. Returns false if a newer one to `remote` has replaced it.
    pub fn closed(&mut self, remote: SocketAddr, generation: u64) -> bool {
        let current = self.open.get(&remote).is_none_or(|c| c.generation == generation);
        if current {
            self.open.remove(&remote);
        }
        current
    }
}

/// Returns the port for the response `data`; `None` for a request.
fn sent_by_port(data: &[u8]) -> Option<u16> {
    if !data.starts_with(b"SIP/2.0 ") {
        return None;
    }
    let (response, _) = Message::parse(data).ok()?;
    Some(response.top_via()?.port.unwrap_or(5060))
}

/// Returns the connection to close for a new one from `newcomer`: of the idle connections of the
/// address that has the most, the one that was used least recently. An address that has no more
/// connections than the newcomer's loses none, so that one PBX cannot push out another.
fn least_needed(
    newcomer: IpAddr,
    open: impl Iterator<Item = (SocketAddr, Instant)> + Clone,
    busy: &HashSet<SocketAddr>,
) -> Option<SocketAddr> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    open.clone().for_each(|(at, _)| *counts.entry(at.ip()).or_default() += 1);
    let count = |ip: IpAddr| counts.get(&ip).copied().unwrap_or(0);
    let own = count(newcomer);
    let idle = open.filter(|(at, _)| !busy.contains(at));
    let candidates = idle.filter(|(at, _)| at.ip() == newcomer || count(at.ip()) > own);
    let chosen = candidates.min_by_key(|(at, used)| (std::cmp::Reverse(count(at.ip())), *used));
    chosen.map(|(at, _)| at)
}

async fn serve(
    remote: SocketAddr,
    generation: u64,
    stream: Option<TcpStream>,
    mut queue: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<TcpEvent>,
) {
    let stream = match stream {
        Some(stream) => Ok(stream),
        None => match timeout(CONNECT, TcpStream::connect(remote)).await {
            Ok(connected) => connected,
            Err(_) => Err(ErrorKind::TimedOut.into()),
        },
    };
    let ended = match stream {
        Ok(stream) => exchange(remote, generation, stream, &mut queue, &events).await,
        Err(error) => Err(error),
    };
    let gone = match ended {
        Ok(()) => true,
        Err(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
    };
    let _ = events.send(TcpEvent::Closed { remote, generation, gone }).await;
}

/// Writes the rest of the queue, then waits until the peer has closed the connection as well:
/// closing it with unread data would discard the response that was just written.
async fn finish(stream: &mut TcpStream, queue: &mut mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(data) = queue.recv().await {
        stream.write_all(&data).await?;
    }
    stream.shutdown().await?;
    let mut buffer = [0u8; 4096];
    while timeout(LINGER, stream.read(&mut buffer)).await?? > 0 {}
    Ok(())
}

/// Reads and writes messages until the connection ends. Returns an error unless the peer closed it.
async fn exchange(
    remote: SocketAddr,
    generation: u64,
    mut stream: TcpStream,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<TcpEvent>,
) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    // otherwise a PBX that disappeared would look connected for a quarter of an hour
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let _ = socket.set_tcp_keepalive(&keepalive);
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
                let Some(data) = data else { return Err(ErrorKind::ConnectionAborted.into()) };
                timeout(PARTIAL, writer.write_all(&data)).await??;
            }
            read = tokio::time::timeout_at(limit, reader.read(&mut buffer)) => {
                let mut next = match read {
                    Ok(Ok(0)) => return Ok(()),
                    Ok(Ok(n)) => {
                        framer.push(&buffer[..n]);
                        framer.next_frame()
                    }
                    Ok(Err(error)) => return Err(error),
                    Err(_) => framer.on_timeout().map(Some),
                };
                while let Ok(Some(frame)) = next {
                    partial_until = None;
                    let event = match frame {
                        Frame::Message(message) => TcpEvent::Message(remote, message),
                        Frame::Stray => TcpEvent::Stray(remote),
                    };
                    if events.send(event).await.is_err() {
                        return Ok(()); // the endpoint has stopped
                    }
                    next = framer.next_frame();
                }
                if let Err(broken) = next {
                    let _ = events.send(TcpEvent::Broken { remote, generation, broken }).await;
                    timeout(PARTIAL, finish(&mut stream, queue)).await??;
                    return Err(ErrorKind::InvalidData.into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn the_oldest_idle_connection_of_the_greediest_address_is_closed() {
        let at = |host: u8, port: u16| SocketAddr::from(([10, 0, 0, host], port));
        let second = |n: u64| start() + Duration::from_secs(n);
        // the first address has the oldest connection, the second has the most
        let open = [
            (at(1, 1), second(0)),
            (at(2, 1), second(5)),
            (at(2, 2), second(4)),
            (at(2, 3), second(6)),
        ];
        let close = |host: u8, busy: &[SocketAddr]| {
            let busy = busy.iter().copied().collect();
            least_needed(at(host, 0).ip(), open.iter().copied(), &busy)
        };
        assert_eq!(close(3, &[]), Some(at(2, 2)));
        assert_eq!(close(3, &[at(2, 2)]), Some(at(2, 1)), "a busy one stays");
        assert_eq!(close(2, &[]), Some(at(2, 2)), "the newcomer's own");
        assert_eq!(close(2, &[at(2, 1), at(2, 2), at(2, 3)]), None, "not another's");
        assert_eq!(close(1, &[at(2, 1), at(2, 2), at(2, 3)]), Some(at(1, 1)));
    }
}

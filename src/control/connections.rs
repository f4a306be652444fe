//! The connections of the HTTP server, bounded in number, time and bytes. Owns sockets.
//!
//! Anyone who can reach the port may open connections, and each of them costs a descriptor that a
//! call would need. All bounds are in the socket: it fails when the client takes too long or sends
//! too much, and when its place is needed. There is one response per connection. A client with a
//! token may send more, and keep its connection: [`Lasting`].

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep};

/// With more connections, the oldest one is closed.
const MAX_CONNECTIONS: usize = 64;
/// A client has this long for its request and for reading the response.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of a request without a valid token.
const MAX_REQUEST: usize = 32 << 10;
/// Maximum size of a request with one. Bodies that are too long are read up to here, so that the
/// client gets its response.
const MAX_ADMITTED: usize = 4 << 20;
/// At most this many connections may be kept for longer, for each purpose.
const MAX_LASTING: usize = 32;
/// At most this many of them with the same token.
const MAX_PER_TOKEN: usize = 16;
/// A kept connection is closed when its client reads nothing for this long.
const MAX_STALL: Duration = Duration::from_secs(30);
/// Pause after a failed accept, which is probably due to a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The open connections, in the order of their arrival. Dropping a sender closes one.
#[derive(Default)]
struct Open {
    connections: BTreeMap<u64, oneshot::Sender<()>>,
    /// Number of the next connection.
    next: u64,
    /// Connections that are kept for longer. They are not among the others.
    lasting: Vec<Place>,
}

/// The purpose of a connection that is kept for longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It reads events.
    Events,
    /// It waits for the outcome of a command.
    Outcome,
    /// It waits for the checks of doctor.
    Doctor,
    /// It reads a packet capture.
    Capture,
    /// It follows the live calls.
    Live,
    /// It listens to a live call.
    Listening,
    /// It reads a whole recording.
    Audio,
}

/// The purpose of a kept connection, and the name of its token.
type Place = (Purpose, String);

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Open>>);

impl Shared {
    /// A panic elsewhere leaves the table consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts the oldest connection if there is no place for another. Returns true if it did.
    fn make_place(&self) -> bool {
        let mut open = self.lock();
        let full = open.connections.len() >= MAX_CONNECTIONS;
        full && open.connections.pop_first().is_some()
    }

    /// Adds a connection.
    fn add(&self) -> (u64, oneshot::Receiver<()>) {
        let (place, evicted) = oneshot::channel();
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, place);
        (number, evicted)
    }
}

/// Accepts connections for axum.
pub struct Bounded {
    listener: TcpListener,
    open: Shared,
}

impl Bounded {
    pub fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, open: Shared::default() }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    if self.open.make_place() {
                        // the evicted connection closes first: in a flood, many more than allowed
                        // would be open otherwise
                        yield_now().await;
                    }
                    let (number, evicted) = self.open.add();
                    let open = self.open.clone();
                    let (kept, admitted) = (Arc::default(), Arc::default());
                    let lasting = Lasting { open, number, kept, admitted };
                    return (Connection::new(stream, lasting, evicted), from);
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The place of one connection.
#[derive(Clone)]
pub struct Lasting {
    open: Shared,
    /// Its number in [`Open`].
    number: u64,
    /// Set if the connection has no time limit and is not evicted.
    kept: Arc<OnceLock<Place>>,
    /// True if the request has a valid token.
    admitted: Arc<AtomicBool>,
}

impl Lasting {
    /// Admits a longer request.
    pub fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    /// Keeps the connection for as long as the client wants it. `token` is the token's name.
    ///
    /// # Errors
    /// Returns the reason if too many are kept already.
    pub fn keep(&self, purpose: Purpose, token: &str) -> Result<(), &'static str> {
        let mut open = self.open.lock();
        let same = open.lasting.iter().filter(|(other, _)| *other == purpose);
        if same.clone().filter(|(_, other)| other == token).count() >= MAX_PER_TOKEN {
            return Err(
                "too many connections of this token are waiting, or reading events or captures",
            );
        }
        if same.count() >= MAX_LASTING {
            return Err("too many connections are waiting, or reading events or captures");
        }
        if self.kept.set((purpose, token.to_owned())).is_ok() {
            open.lasting.push((purpose, token.to_owned()));
            open.connections.remove(&self.number);
        }
        Ok(())
    }

    fn is_kept(&self) -> bool {
        self.kept.get().is_some()
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Lasting {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Lasting {
        stream.io().lasting.clone()
    }
}

/// One connection. Dropping it frees its place.
pub struct Connection {
    stream: TcpStream,
    lasting: Lasting,
    evicted: oneshot::Receiver<()>,
    /// When the connection is closed, if it still exists.
    until: Pin<Box<Sleep>>,
    /// True once the connection is out of time or evicted.
    over: bool,
    /// Bytes read so far.
    read: usize,
    /// When the connection is closed unless the client reads something.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.lasting.open.lock();
        open.connections.remove(&self.lasting.number);
        let place = self.lasting.kept.get();
        let index = place.and_then(|place| open.lasting.iter().position(|other| other == place));
        if let Some(index) = index {
            open.lasting.swap_remove(index);
        }
    }
}

impl Connection {
    fn new(stream: TcpStream, lasting: Lasting, evicted: oneshot::Receiver<()>) -> Connection {
        let until = Box::pin(sleep(LIMIT));
        Connection { stream, lasting, evicted, until, over: false, read: 0, stalled: None }
    }

    /// Returns an error if a write of a kept connection is pending for too long.
    fn check_stall(&mut self, pending: bool, cx: &mut Context<'_>) -> io::Result<()> {
        if !pending || !self.lasting.is_kept() {
            self.stalled = None;
            return Ok(());
        }
        let until = self.stalled.get_or_insert_with(|| Box::pin(sleep(MAX_STALL)));
        match until.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Returns an error if the connection is out of time or evicted. Checked before each read and
    /// write, because a busy client may never leave one pending. Registers for the end of both.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.lasting.is_kept() {
            return Ok(());
        }
        // neither future may be polled again once it is ready
        self.over = self.over
            || self.until.as_mut().poll(cx).is_ready()
            || Pin::new(&mut self.evicted).poll(cx).is_ready();
        match self.over {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.read += buffer.filled().len() - before;
        let admitted = self.lasting.admitted.load(Ordering::Relaxed);
        let good = self.read <= if admitted { MAX_ADMITTED } else { MAX_REQUEST };
        Poll::Ready(if good { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) })
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.check_stall(written.is_pending(), cx)?;
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Instant;

    use super::*;

    /// A connection and its client.
    async fn connection(bounded: &mut Bounded) -> (Connection, TcpStream) {
        let address = bounded.local_addr().expect("an address");
        let client = TcpStream::connect(address).await.expect("a connection");
        (bounded.accept().await.0, client)
    }

    async fn bounded() -> Bounded {
        Bounded::new(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_whose_client_reads_nothing_is_closed() {
        let mut bounded = bounded().await;
        let (mut connection, _client) = connection(&mut bounded).await;
        connection.lasting.keep(Purpose::Events, "wall").expect("a place");
        let start = Instant::now();
        let error = loop {
            let data = [0; 65_536];
            let write = |cx: &mut Context<'_>| Pin::new(&mut connection).poll_write(cx, &data);
            if let Err(error) = poll_fn(write).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= MAX_STALL);
        drop(connection);
        assert!(bounded.open.lock().lasting.is_empty());
    }

    #[tokio::test]
    async fn readers_of_events_leave_places_for_commands_and_other_tokens() {
        let mut bounded = bounded().await;
        let mut all = Vec::new();
        for (token, fits) in [("wall", MAX_PER_TOKEN), ("desk", MAX_PER_TOKEN), ("bot", 0)] {
            for number in 0..=fits {
                let (connection, client) = connection(&mut bounded).await;
                let kept = connection.lasting.keep(Purpose::Events, token);
                assert_eq!(kept.is_ok(), number < fits, "{token} {number}");
                all.push((connection, client));
            }
        }
        let (connection, _client) = connection(&mut bounded).await;
        assert_eq!(connection.lasting.keep(Purpose::Outcome, "wall"), Ok(()));
        all.clear();
        assert_eq!(bounded.open.lock().lasting, [(Purpose::Outcome, "wall".to_owned())]);
        assert!(bounded.open.lock().connections.is_empty());
    }
}

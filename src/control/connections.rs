//! The connections of the HTTP server, bounded in number, time and bytes. Owns sockets.
//!
//! Anyone who can reach the port may open connections, and each of them costs a descriptor that a
//! call would need. All bounds are in the socket: it fails when the client takes too long or sends
//! too much, and when its place is needed. A response sets both bounds back.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// With more connections, the one that has been idle longest is closed.
const MAX_CONNECTIONS: usize = 64;
/// A client has this long for each request and for reading its response. A connection that is kept
/// open without a request is closed after this time too.
const IDLE: Duration = Duration::from_secs(10);
/// Maximum size of a request.
const MAX_REQUEST: usize = 16 << 10;
/// Pause after a failed accept, which is probably due to a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The open connections, by the order of their last response. Dropping a sender closes one.
#[derive(Default)]
struct Open {
    connections: BTreeMap<u64, oneshot::Sender<()>>,
    /// Number of the next connection or response.
    next: u64,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Open>>);

impl Shared {
    /// A panic elsewhere leaves the table consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, and evicts the one that has been idle longest if there are too many.
    fn add(&self) -> (u64, oneshot::Receiver<()>) {
        let (place, evicted) = oneshot::channel();
        let mut open = self.lock();
        if open.connections.len() >= MAX_CONNECTIONS {
            open.connections.pop_first();
        }
        (open.insert(place), evicted)
    }

    /// Makes a connection the one with the latest response. Returns its new number.
    fn touch(&self, number: u64) -> u64 {
        let mut open = self.lock();
        match open.connections.remove(&number) {
            Some(place) => open.insert(place),
            None => number,
        }
    }
}

impl Open {
    fn insert(&mut self, place: oneshot::Sender<()>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.connections.insert(number, place);
        number
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
                    let (number, evicted) = self.open.add();
                    let until = Box::pin(sleep(IDLE));
                    let open = self.open.clone();
                    return (Connection { stream, open, number, evicted, until, read: 0 }, from);
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection. Dropping it frees its place.
pub struct Connection {
    stream: TcpStream,
    open: Shared,
    /// Its number in [`Open`].
    number: u64,
    evicted: oneshot::Receiver<()>,
    /// When the connection is closed, unless there is a response before.
    until: Pin<Box<Sleep>>,
    /// Bytes read since the last response.
    read: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.lock().connections.remove(&self.number);
    }
}

impl Connection {
    /// Returns `result`, or an error if it is pending and the connection is out of time or evicted.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            let over = self.until.as_mut().poll(cx).is_ready();
            if over || Pin::new(&mut self.evicted).poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        result
    }

    fn responded(&mut self) {
        self.number = self.open.touch(self.number);
        self.until.set(sleep_until(Instant::now() + IDLE));
        self.read = 0;
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        ready!(self.bounded(cx, result))?;
        self.read += buffer.filled().len() - before;
        let good = self.read <= MAX_REQUEST;
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
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        let written = ready!(self.bounded(cx, result))?;
        self.responded();
        Poll::Ready(Ok(written))
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

//! The connections of the HTTP server, bounded in number, time and bytes. Owns sockets.
//!
//! Anyone who can reach the port may open connections, and each of them costs a descriptor that a
//! call would need. All bounds are in the socket: it fails when the client takes too long or sends
//! too much, and when its place is needed. There is one response per connection.

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
use tokio::time::{Sleep, sleep};

/// With more connections, the oldest one is closed.
const MAX_CONNECTIONS: usize = 64;
/// A client has this long for its request and for reading the response.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of a request.
const MAX_REQUEST: usize = 16 << 10;
/// Pause after a failed accept, which is probably due to a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The open connections, in the order of their arrival. Dropping a sender closes one.
#[derive(Default)]
struct Open {
    connections: BTreeMap<u64, oneshot::Sender<()>>,
    /// Number of the next connection.
    next: u64,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Open>>);

impl Shared {
    /// A panic elsewhere leaves the table consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, and evicts the oldest one if there are too many.
    fn add(&self) -> (u64, oneshot::Receiver<()>) {
        let (place, evicted) = oneshot::channel();
        let mut open = self.lock();
        if open.connections.len() >= MAX_CONNECTIONS {
            open.connections.pop_first();
        }
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
                    let (number, evicted) = self.open.add();
                    let until = Box::pin(sleep(LIMIT));
                    let open = self.open.clone();
                    return (
                        Connection { stream, open, number, evicted, until, over: false, read: 0 },
                        from,
                    );
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
    /// When the connection is closed, if it still exists.
    until: Pin<Box<Sleep>>,
    /// True once the connection is out of time or evicted.
    over: bool,
    /// Bytes read so far.
    read: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.lock().connections.remove(&self.number);
    }
}

impl Connection {
    /// Returns an error if the connection is out of time or evicted. Checked before each read and
    /// write, because a busy client may never leave one pending. Registers for the end of both.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
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
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
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

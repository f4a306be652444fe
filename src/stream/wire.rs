//! The bytes below a stream's WebSocket: TCP with or without TLS, non-blocking. Owns I/O.
//!
//! Both the stream and the WebSocket library read and write here. The stream knows where frames
//! end; the library gets the frames that are not simple ([`Wire::give`]) and writes control frames.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::{RecvFlags, SendFlags};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::stream::head::{Head, normalized};

/// Bytes read per turn; after that, it is the turn of the worker's other calls.
const TURN: usize = 16 * 1024;
/// Capacity that an empty buffer may keep.
const KEPT_BYTES: usize = 1024;
/// A longer head is passed to the library as it arrives.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// A non-blocking connection that is read only while the kernel is known to have data. A read that
/// does not fill the buffer has emptied the socket, so another would waste a system call.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    /// True once the socket has been emptied, until the kernel reports more.
    drained: bool,
    /// Bytes left of this turn.
    left: usize,
    /// True if the peer sends nothing more. A short read then does not mean that the socket is
    /// empty, because the end of the stream may follow.
    ending: bool,
    /// True if bytes have arrived since the stream last asked.
    received: bool,
    /// True if the last call that would have blocked was a write.
    pub blocked_on_write: bool,
}

impl Tcp {
    fn blocked(&mut self, on_write: bool) -> io::Error {
        self.blocked_on_write = on_write;
        io::ErrorKind::WouldBlock.into()
    }
}

impl Read for Tcp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.drained || self.left == 0 {
            return Err(self.blocked(false));
        }
        // not read(2), which takes a longer path on a socket
        let received = rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::empty());
        match received.map_err(io::Error::from) {
            Ok((_, n)) => {
                self.left = self.left.saturating_sub(n);
                self.received |= n > 0;
                // 0 is the end of the stream, which the next read must see again
                self.drained = n > 0 && n < buffer.len() && !self.ending;
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.drained = true;
                Err(self.blocked(false))
            }
            Err(error) => Err(error),
        }
    }
}

impl Write for Tcp {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match rustix::net::send(&self.stream, data, SendFlags::NOSIGNAL).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(self.blocked(true)),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The connection.
#[derive(Debug)]
enum Way {
    Plain(Tcp),
    Tls(Box<StreamOwned<ClientConnection, Tcp>>),
}

/// The source of the library's reads.
#[derive(Debug)]
enum Reads {
    /// The head of the handshake's response, once it is complete. Bytes that arrive right behind it
    /// are kept back.
    Head(Head),
    /// Only bytes passed to [`Wire::give`].
    Given,
    /// The connection itself.
    All,
}

/// The byte stream below a WebSocket.
#[derive(Debug)]
pub struct Wire {
    way: Way,
    reads: Reads,
    /// The head so far; the library reads it once it is complete.
    head: VecDeque<u8>,
    /// The subprotocol that the handshake requests.
    subprotocol: Option<Box<str>>,
    /// Bytes for the library to read; at the end of the handshake, the bytes received behind it.
    given: VecDeque<u8>,
    /// The rest of frames that were sent in part. It goes out before anything else.
    rest: Vec<u8>,
}

impl Wire {
    /// Wraps a connected, non-blocking `stream`.
    ///
    /// # Errors
    /// Returns a rustls error if the name or the settings do not allow a connection.
    pub fn new(
        stream: TcpStream,
        tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> Result<Wire, rustls::Error> {
        let tcp = Tcp {
            stream,
            drained: false,
            left: usize::MAX,
            ending: false,
            received: false,
            blocked_on_write: false,
        };
        let way = match tls {
            None => Way::Plain(tcp),
            Some((config, name)) => {
                let connection = ClientConnection::new(config.clone(), name.clone())?;
                Way::Tls(Box::new(StreamOwned::new(connection, tcp)))
            }
        };
        Ok(Wire {
            way,
            reads: Reads::Head(Head::Before),
            head: VecDeque::new(),
            subprotocol: None,
            given: VecDeque::new(),
            rest: Vec::new(),
        })
    }

    /// Notes the subprotocol that the handshake requests, before it begins.
    pub fn requests(&mut self, subprotocol: Option<&str>) {
        self.subprotocol = subprotocol.map(Box::from);
    }

    /// Ends the handshake, and returns the bytes received behind it.
    pub fn begin(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.given).into()
    }

    /// Keeps bytes that were received and not used for [`Wire::begin`].
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        self.given = bytes.into();
    }

    /// Gives the library a frame to read next.
    pub fn give(&mut self, frame: &[u8]) {
        self.given.extend(frame);
    }

    /// Lets the library read everything from now on, starting with `bytes`.
    pub fn hand_over(&mut self, bytes: &[u8]) {
        self.give(bytes);
        self.reads = Reads::All;
    }

    pub fn is_handed_over(&self) -> bool {
        matches!(self.reads, Reads::All)
    }

    /// Reads from the connection, bypassing the library.
    ///
    /// # Errors
    /// Returns `WouldBlock` if there is nothing to read now, and any error from the kernel or
    /// rustls.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.way {
            Way::Plain(tcp) => tcp.read(buffer),
            Way::Tls(tls) => tls.read(buffer),
        }
    }

    /// Sends whole frames, bypassing the library. Returns false if some bytes must wait for
    /// [`Write::flush`].
    ///
    /// # Errors
    /// Returns any error from the kernel or rustls, except `WouldBlock`.
    pub fn send(&mut self, frames: &[u8]) -> io::Result<bool> {
        let mut left = frames;
        while self.rest.is_empty() && !left.is_empty() {
            match self.transmit(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => left = &left[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.rest.extend_from_slice(left);
        match self.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Receives the head, and returns its first part once it is complete.
    fn read_head(&mut self, mut state: Head, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = [0; KEPT_BYTES];
        while state != Head::End {
            let n = self.receive(&mut bytes)?;
            let end = bytes[..n].iter().position(|byte| {
                state = state.then(*byte);
                state == Head::End
            });
            let (head, behind) = bytes[..n].split_at(end.map_or(n, |at| at + 1));
            self.head.extend(head);
            self.given.extend(behind);
            self.reads = Reads::Head(state);
            // an incomplete or endless head is for the library to judge
            if n == 0 || self.head.len() > MAX_HEAD_BYTES {
                self.reads = Reads::All;
                return self.head.read(buffer);
            }
        }
        self.reads = Reads::Given;
        let head = std::mem::take(&mut self.head).into();
        self.head = normalized(head, self.subprotocol.take().as_deref()).into();
        self.head.read(buffer)
    }

    fn transmit(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.way {
            Way::Plain(tcp) => tcp.write(data),
            Way::Tls(tls) => tls.write(data),
        }
    }

    /// Sends the rest of frames that were sent in part.
    fn settle(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            let sent = self.transmit(&rest);
            self.rest = rest;
            match sent? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => drop(self.rest.drain(..sent)),
            }
        }
        Ok(())
    }

    /// Performs the TLS handshake as far as possible without blocking. Does nothing without TLS.
    ///
    /// # Errors
    /// Returns `WouldBlock` while it is the peer's turn, and any error of the handshake.
    pub fn shake_hands(&mut self) -> io::Result<()> {
        match &mut self.way {
            Way::Plain(_) => Ok(()),
            Way::Tls(tls) => {
                while tls.conn.is_handshaking() {
                    tls.conn.complete_io(&mut tls.sock)?;
                }
                Ok(())
            }
        }
    }

    pub fn tcp(&mut self) -> &mut Tcp {
        match &mut self.way {
            Way::Plain(tcp) => tcp,
            Way::Tls(tls) => &mut tls.sock,
        }
    }

    /// Begins a turn, because the kernel has something to read. `ending`: nothing more will follow.
    pub fn readable(&mut self, ending: bool) {
        let tcp = self.tcp();
        (tcp.drained, tcp.left) = (false, TURN);
        tcp.ending |= ending;
    }

    /// Returns true if bytes have arrived since the last call.
    pub fn takes_received(&mut self) -> bool {
        std::mem::take(&mut self.tcp().received)
    }

    /// Returns true if the turn ended before the socket was empty.
    pub fn starved(&self) -> bool {
        let tcp = match &self.way {
            Way::Plain(tcp) => tcp,
            Way::Tls(tls) => &tls.sock,
        };
        !tcp.drained && tcp.left == 0
    }

    /// Same as [`Wire::readable`], with an unlimited turn: for handshakes, which do not hold up
    /// other calls.
    pub fn readable_at_length(&mut self) {
        let tcp = self.tcp();
        (tcp.drained, tcp.left) = (false, usize::MAX);
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.way {
            Way::Plain(tcp) => tcp.stream.as_fd(),
            Way::Tls(tls) => tls.sock.stream.as_fd(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reads {
            Reads::Head(state) => self.read_head(state, buffer),
            _ if !self.head.is_empty() => self.head.read(buffer),
            _ if !self.given.is_empty() => {
                let n = self.given.read(buffer);
                if self.given.is_empty() && self.given.capacity() > KEPT_BYTES {
                    self.given = VecDeque::new();
                }
                n
            }
            Reads::Given => Err(io::ErrorKind::WouldBlock.into()),
            Reads::All => self.receive(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.settle()?;
        self.transmit(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.settle()?;
        match &mut self.way {
            Way::Plain(tcp) => tcp.flush(),
            Way::Tls(tls) => tls.flush(),
        }
    }
}

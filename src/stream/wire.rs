//! The bytes below a stream's WebSocket: TCP, with TLS or without, never waiting. Owns I/O.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::sync::Arc;

/// Bytes read in one go: the other calls of a worker have their turn after so many.
const TURN: usize = 16 * 1024;

/// A non-blocking connection, read only while the kernel is known to have something: a read that
/// does not fill the buffer has emptied the socket, and the next one would be a system call for
/// nothing.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    drained: bool,
    /// Bytes left of this turn.
    left: usize,
    /// The peer sends nothing more: a short read is no sign of an empty socket then, the end may be
    /// behind it.
    ending: bool,
    /// The last call that would have had to wait was a write.
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
        match self.stream.read(buffer) {
            Ok(n) => {
                self.left = self.left.saturating_sub(n);
                // 0 is the end, and is to be seen again
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
        match self.stream.write(data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(self.blocked(true)),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a WebSocket reads and writes.
#[derive(Debug)]
pub enum Wire {
    Plain(Tcp),
    Tls(Box<StreamOwned<ClientConnection, Tcp>>),
}

impl Wire {
    /// `stream` is connected and non-blocking.
    ///
    /// # Errors
    /// rustls', when the name or the settings do not allow a connection.
    pub fn new(
        stream: TcpStream,
        tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> Result<Wire, rustls::Error> {
        let tcp = Tcp {
            stream,
            drained: false,
            left: usize::MAX,
            ending: false,
            blocked_on_write: false,
        };
        let Some((config, name)) = tls else { return Ok(Wire::Plain(tcp)) };
        let connection = ClientConnection::new(config.clone(), name.clone())?;
        Ok(Wire::Tls(Box::new(StreamOwned::new(connection, tcp))))
    }

    /// Shakes hands, as far as that goes without waiting; nothing to do without TLS.
    ///
    /// # Errors
    /// `WouldBlock` when the peer's turn has come, or what has gone wrong.
    pub fn shake_hands(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(_) => Ok(()),
            Wire::Tls(tls) => {
                while tls.conn.is_handshaking() {
                    tls.conn.complete_io(&mut tls.sock)?;
                }
                Ok(())
            }
        }
    }

    pub fn tcp(&mut self) -> &mut Tcp {
        match self {
            Wire::Plain(tcp) => tcp,
            Wire::Tls(tls) => &mut tls.sock,
        }
    }

    /// The kernel says that there is something to read, and perhaps that nothing more will come.
    pub fn readable(&mut self, ending: bool) {
        let tcp = self.tcp();
        (tcp.drained, tcp.left) = (false, TURN);
        tcp.ending |= ending;
    }

    /// Something may be left to read, for another turn.
    pub fn starved(&self) -> bool {
        let tcp = match self {
            Wire::Plain(tcp) => tcp,
            Wire::Tls(tls) => &tls.sock,
        };
        !tcp.drained && tcp.left == 0
    }

    /// As [`Wire::readable`], without turns: for a handshake, which nobody else waits for.
    pub fn readable_at_length(&mut self) {
        let tcp = self.tcp();
        (tcp.drained, tcp.left) = (false, usize::MAX);
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Wire::Plain(tcp) => tcp.stream.as_fd(),
            Wire::Tls(tls) => tls.sock.stream.as_fd(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(tcp) => tcp.read(buffer),
            Wire::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(tcp) => tcp.write(data),
            Wire::Tls(tls) => tls.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(tcp) => tcp.flush(),
            Wire::Tls(tls) => tls.flush(),
        }
    }
}

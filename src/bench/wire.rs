//! A connection to the AI, with or without TLS. Owns its socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

pub struct Wire {
    tcp: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Bytes that the socket has not accepted yet; with TLS, the session keeps them.
    unsent: Vec<u8>,
}

/// Makes a certificate for `name`. Returns the settings of a server that has it, and the
/// certificate as PEM, for its clients to trust.
///
/// # Errors
/// Returns an error if the certificate cannot be made or used.
pub fn self_signed(name: &str) -> io::Result<(Arc<ServerConfig>, String)> {
    let made = generate_simple_self_signed(vec![name.to_owned()]).map_err(io::Error::other)?;
    let CertifiedKey { cert, signing_key } = made;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|c| c.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key))
        .map_err(io::Error::other)?;
    Ok((Arc::new(config), cert.pem()))
}

impl Wire {
    /// # Errors
    /// Returns an error if the socket or the TLS session cannot be prepared.
    pub fn new(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Wire> {
        tcp.set_nonblocking(true)?;
        tcp.set_nodelay(true)?;
        let tls = match tls {
            Some(config) => {
                let mut session =
                    ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                session.set_buffer_limit(None);
                Some(Box::new(session))
            }
            None => None,
        };
        Ok(Wire { tcp, tls, unsent: Vec::new() })
    }

    /// True if a read leaves nothing behind that epoll would not report.
    pub fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Reads what has arrived; 0 at the end of the stream.
    ///
    /// # Errors
    /// Returns any I/O or TLS error, and `WouldBlock` if nothing has arrived.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.read_tls(&mut self.tcp)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            // the handshake has answers of its own
            while tls.wants_write() {
                tls.write_tls(&mut self.tcp)?;
            }
        }
    }

    /// Sends these bytes. Those that the socket does not accept are queued in order. Returns true
    /// if it accepted all.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        // an error shows up at the next read
        if let Some(tls) = &mut self.tls {
            let _ = tls.writer().write_all(bytes);
            self.flush();
            return !self.has_unsent();
        }
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return false;
        }
        let sent = self.tcp.write(bytes).unwrap_or(0);
        self.unsent.extend_from_slice(&bytes[sent..]);
        sent == bytes.len()
    }

    pub fn flush(&mut self) {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() && tls.write_tls(&mut self.tcp).is_ok() {}
        } else if !self.unsent.is_empty()
            && let Ok(sent) = self.tcp.write(&self.unsent)
        {
            self.unsent.drain(..sent);
        }
    }

    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().map_or(!self.unsent.is_empty(), |tls| tls.wants_write())
    }

    /// Returns the number of bytes queued here; 0 with TLS, where the session does not report it.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent.len()
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

//! The source or destination of a message: transport and remote address.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::SocketAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    /// Returns the transport's name in a Via header field.
    pub fn via(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
        }
    }

    /// True if transactions do not retransmit over this transport (RFC 3261 §17).
    pub fn reliable(self) -> bool {
        self == Transport::Tcp
    }
}

/// A remote address and its transport. Responses and in-dialog requests go to the address that the
/// peer's message came from, because the PBX may be behind NAT (RFC 3581).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    pub transport: Transport,
    pub remote: SocketAddr,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport.via(), self.remote)
    }
}

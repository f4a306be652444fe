//! The RTP side of a call: how packets get in and out. Owns sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use crate::call::ports::PortPair;

/// Largest datagram that is looked at: far more than any audio packet.
pub const MAX_DATAGRAM: usize = 2048;

const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

#[derive(Debug)]
pub struct Leg {
    ports: PortPair,
    /// Our address in the SDP.
    ip: IpAddr,
    /// The PBX's signalling address.
    pub signalling: IpAddr,
}

/// Which of the two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    Rtp,
    Rtcp,
}

impl Leg {
    pub fn new(ports: PortPair, ip: IpAddr, signalling: IpAddr) -> Leg {
        Leg { ports, ip, signalling }
    }

    /// Where the PBX is to send RTP.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.ports.port())
    }

    /// A datagram that is there already.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; an ICMP error of an earlier packet is no reason to end a
    /// call.
    pub fn recv(&self, channel: Channel, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (_, n, from) = recvfrom(self.socket(channel), &mut *buffer, RecvFlags::empty())?;
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        // who cannot be named is nobody that we know
        Ok((n.min(buffer.len()), canonical(from.unwrap_or(NOBODY))))
    }

    pub fn socket(&self, channel: Channel) -> &UdpSocket {
        match channel {
            Channel::Rtp => &self.ports.rtp,
            Channel::Rtcp => &self.ports.rtcp,
        }
    }

    /// An IPv4 address as a socket bound to `[::]` takes it.
    fn reachable(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.ports.is_ipv6() => {
                SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
            }
            other => other,
        }
    }

    /// Sends now or not at all: a full socket buffer loses the packet, as the network might.
    pub fn send(&self, channel: Channel, to: SocketAddr, data: &[u8]) {
        let _ = sendto(self.socket(channel), data, SendFlags::NOSIGNAL, &self.reachable(to));
    }
}

/// A socket bound to `[::]` shows IPv4 peers as mapped addresses; an SDP does not.
fn canonical(from: SocketAddr) -> SocketAddr {
    SocketAddr::new(from.ip().to_canonical(), from.port())
}

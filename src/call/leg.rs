//! The RTP side of a call: receives and sends its packets. Owns sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use crate::call::ports::PortPair;

/// Longer datagrams are truncated. Audio packets are far shorter.
pub const MAX_DATAGRAM: usize = 2048;

/// Stands in for the address of an unknown sender.
const UNKNOWN_SENDER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The RTP and RTCP sockets of a call.
#[derive(Debug)]
pub struct Leg {
    ports: PortPair,
    /// Our IP address in the SDP.
    ip: IpAddr,
    /// The PBX's signalling address.
    pub signalling: IpAddr,
}

/// One of the two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    Rtp,
    Rtcp,
}

impl Leg {
    pub fn new(ports: PortPair, ip: IpAddr, signalling: IpAddr) -> Leg {
        Leg { ports, ip, signalling }
    }

    /// The address to which the PBX has to send RTP.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.ports.port())
    }

    /// Our address of this socket, with the IP address in the SDP.
    pub fn address_of(&self, channel: Channel) -> SocketAddr {
        SocketAddr::new(self.ip, self.ports.port() + u16::from(channel == Channel::Rtcp))
    }

    /// Returns the next datagram that has arrived: its length and its sender. Does not wait.
    ///
    /// # Errors
    /// Returns `WouldBlock` if there is none. Other errors may stem from the ICMP reply to an
    /// earlier packet, so they are not a reason to end the call.
    pub fn recv(&self, channel: Channel, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (_, n, from) = recvfrom(self.socket(channel), &mut *buffer, RecvFlags::empty())?;
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        // a sender without an IP address is not one that we know
        Ok((n.min(buffer.len()), canonical(from.unwrap_or(UNKNOWN_SENDER))))
    }

    pub fn socket(&self, channel: Channel) -> &UdpSocket {
        match channel {
            Channel::Rtp => &self.ports.rtp,
            Channel::Rtcp => &self.ports.rtcp,
        }
    }

    /// Converts an IPv4 address to the mapped form that a socket bound to `[::]` needs.
    fn reachable(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.ports.is_ipv6() => {
                SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
            }
            other => other,
        }
    }

    /// Sends a packet, or drops it if the socket's buffer is full, as the network might.
    pub fn send(&self, channel: Channel, to: SocketAddr, data: &[u8]) {
        let _ = sendto(self.socket(channel), data, SendFlags::NOSIGNAL, &self.reachable(to));
    }
}

/// Converts a mapped IPv4 address to plain IPv4, as in SDP: a socket bound to `[::]` reports IPv4
/// peers as mapped addresses.
fn canonical(from: SocketAddr) -> SocketAddr {
    SocketAddr::new(from.ip().to_canonical(), from.port())
}

//! The headers below a captured packet or message: IP with UDP or TCP, or those of Wireshark's
//! exported PDUs. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};

/// The time to live in the headers.
const HOPS: u8 = 64;
/// The window in TCP headers.
const WINDOW: u16 = 65_535;
/// The longest payload below one header: with the headers, a packet has at most 65,535 bytes.
pub const MAX_PAYLOAD: usize = 65_000;

/// Tags of an exported PDU (Wireshark's epan/exported_pdu.h).
const DISSECTOR_NAME: u16 = 12;
const IPV4: [u16; 2] = [20, 21];
const IPV6: [u16; 2] = [22, 23];
const PORT_TYPE: u16 = 24;
const PORTS: [u16; 2] = [25, 26];
const END_OF_TAGS: u16 = 0;
/// The value of `PORT_TYPE` for TCP.
const TCP: u32 = 2;

/// Appends the headers of IP and UDP and the payload.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8], out: &mut Vec<u8>) {
    let builder = ip(from, to).udp(from.port(), to.port());
    // fails only for payloads that are too long, and writing to a Vec cannot fail
    let _ = builder.write(out, payload);
}

/// Writes the headers of TCP, with the sequence numbers of each direction.
#[derive(Debug, Default)]
pub struct Tcp {
    /// The next sequence number from the first address to the second.
    next: HashMap<(SocketAddr, SocketAddr), u32>,
}

impl Tcp {
    /// Appends the headers of IP and TCP and the payload.
    pub fn segment(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8], out: &mut Vec<u8>) {
        let acknowledged = self.next.get(&(to, from)).copied().unwrap_or(1);
        let next = self.next.entry((from, to)).or_insert(1);
        let builder = ip(from, to).tcp(from.port(), to.port(), *next, WINDOW);
        let _ = builder.ack(acknowledged).psh().write(out, payload);
        *next = next.wrapping_add(payload.len() as u32);
    }
}

fn ip(from: SocketAddr, to: SocketAddr) -> PacketBuilderStep<IpHeaders> {
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (from, to) => PacketBuilder::ipv6(v6(from).octets(), v6(to).octets(), HOPS),
    }
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Appends a message as a PDU that Wireshark shows as JSON.
pub fn json(from: SocketAddr, to: SocketAddr, text: &[u8], out: &mut Vec<u8>) {
    tag(DISSECTOR_NAME, b"json", out);
    for (index, address) in [from, to].into_iter().enumerate() {
        match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => continue,
            IpAddr::V4(ip) => tag(IPV4[index], &ip.octets(), out),
            IpAddr::V6(ip) => tag(IPV6[index], &ip.octets(), out),
        }
        tag(PORTS[index], &u32::from(address.port()).to_be_bytes(), out);
    }
    tag(PORT_TYPE, &TCP.to_be_bytes(), out);
    tag(END_OF_TAGS, &[], out);
    out.extend_from_slice(text);
}

fn tag(tag: u16, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&tag.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

/// Returns the message of an exported PDU; `None` if it has no end of its tags.
pub fn text_of(pdu: &[u8]) -> Option<&[u8]> {
    let mut rest = pdu;
    loop {
        let (head, after) = rest.split_first_chunk::<4>()?;
        let [tag, length] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_be_bytes);
        rest = after.get(usize::from(length)..)?;
        if tag == END_OF_TAGS {
            return Some(rest);
        }
    }
}

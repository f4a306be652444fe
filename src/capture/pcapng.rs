//! Writes the blocks of a pcapng file (draft-ietf-opsawg-pcapng): one section with two interfaces.
//! Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::capture::Direction;

/// Block types.
pub const SECTION: u32 = 0x0a0d_0d0a;
pub const INTERFACE: u32 = 1;
pub const STATISTICS: u32 = 5;
pub const PACKET: u32 = 6;
/// The byte order: this number as the writer writes it.
pub const MAGIC: u32 = 0x1a2b_3c4d;
/// Options.
const END_OF_OPTIONS: u16 = 0;
pub const COMMENT: u16 = 1;
const INTERFACE_NAME: u16 = 2;
pub const PACKET_FLAGS: u16 = 2;
const APPLICATION: u16 = 4;
const RECEIVED: u16 = 4;
const DROPPED: u16 = 5;
/// Values of the packet's flags.
pub const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Link types (<https://www.tcpdump.org/linktypes.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkType {
    /// A packet begins with its IP header.
    Raw = 101,
    /// Wireshark's exported PDUs, which name their dissector.
    UpperPdu = 252,
}

/// A packet, as it goes into the file.
pub struct Packet<'a> {
    pub interface: usize,
    /// Time since 1970.
    pub at: Duration,
    pub direction: Direction,
    pub data: &'a [u8],
    /// Its length before a part was left out.
    pub length: usize,
    pub comment: Option<&'a str>,
}

/// Appends the header of the section.
pub fn section(application: &str, comment: &str, out: &mut Vec<u8>) {
    block(SECTION, out, |out| {
        out.extend_from_slice(&MAGIC.to_le_bytes());
        // version 1.0, of unknown length
        out.extend_from_slice(&[1, 0, 0, 0]);
        out.extend_from_slice(&u64::MAX.to_le_bytes());
        option(APPLICATION, application.as_bytes(), out);
        option(COMMENT, comment.as_bytes(), out);
        option(END_OF_OPTIONS, &[], out);
    });
}

/// Appends the description of an interface. The first one is number 0.
pub fn interface(link: LinkType, name: &str, out: &mut Vec<u8>) {
    block(INTERFACE, out, |out| {
        out.extend_from_slice(&(link as u16).to_le_bytes());
        // reserved, and no limit to the length of packets
        out.extend_from_slice(&[0; 6]);
        option(INTERFACE_NAME, name.as_bytes(), out);
        option(END_OF_OPTIONS, &[], out);
    });
}

pub fn packet(packet: &Packet<'_>, out: &mut Vec<u8>) {
    block(PACKET, out, |out| {
        out.extend_from_slice(&(packet.interface as u32).to_le_bytes());
        time(packet.at, out);
        let (kept, length) = (packet.data.len() as u32, packet.length as u32);
        out.extend_from_slice(&kept.to_le_bytes());
        out.extend_from_slice(&length.max(kept).to_le_bytes());
        out.extend_from_slice(packet.data);
        pad(packet.data.len(), out);
        if let Some(comment) = packet.comment {
            option(COMMENT, comment.as_bytes(), out);
        }
        let flags = if packet.direction == Direction::Received { INBOUND } else { OUTBOUND };
        option(PACKET_FLAGS, &flags.to_le_bytes(), out);
        option(END_OF_OPTIONS, &[], out);
    });
}

/// Appends the statistics of an interface: the number of its packets, with and without those that
/// are missing from the file.
pub fn statistics(interface: usize, at: Duration, counts: [u64; 2], text: &str, out: &mut Vec<u8>) {
    block(STATISTICS, out, |out| {
        out.extend_from_slice(&(interface as u32).to_le_bytes());
        time(at, out);
        option(COMMENT, text.as_bytes(), out);
        let [received, dropped] = counts;
        option(RECEIVED, &received.to_le_bytes(), out);
        option(DROPPED, &dropped.to_le_bytes(), out);
        option(END_OF_OPTIONS, &[], out);
    });
}

/// Appends a block: its type, its length, its contents and again its length.
fn block(kind: u32, out: &mut Vec<u8>, contents: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    contents(out);
    let length = (out.len() - start + 4) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
}

/// Appends an option. Longer values are cut off at what its length can express.
fn option(code: u16, value: &[u8], out: &mut Vec<u8>) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    pad(value.len(), out);
}

/// Appends a time, in microseconds.
fn time(at: Duration, out: &mut Vec<u8>) {
    let micros = at.as_micros() as u64;
    out.extend_from_slice(&((micros >> 32) as u32).to_le_bytes());
    out.extend_from_slice(&(micros as u32).to_le_bytes());
}

/// Appends zeros after a value of this length, up to a multiple of 4.
fn pad(length: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + length.next_multiple_of(4) - length, 0);
}

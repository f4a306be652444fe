//! The packet capture of one call: its SIP and RTP, and the messages of its AI and of ARI, as a
//! pcapng file.
//!
//! A [`tap::Tap`] copies what passes into a bounded queue, and drops it if the queue is full, so
//! that a capture never delays its call. At the other end, [`reader`] turns the copies into the
//! file: [`redact`] removes secrets, [`framing`] adds the headers of IP, UDP and TCP, [`pcapng`]
//! writes the blocks. [`extract`] reads the messages back from such a file.

pub mod counters;
pub mod extract;
mod framing;
mod pcapng;
pub mod reader;
pub mod redact;
pub mod tap;

use std::net::SocketAddr;
use std::time::Duration;

/// The direction of a packet or message, as seen from trunkless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Received,
    Sent,
}

/// A kind of captured data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A SIP message, over UDP or over TCP.
    Sip {
        tcp: bool,
    },
    Rtp,
    Rtcp,
    /// A text message on the WebSocket of the AI.
    Ai,
    /// A message of ARI: an event, or one of our requests.
    Ari,
}

impl Kind {
    /// True for a packet with its addresses, false for a message in JSON.
    fn is_packet(self) -> bool {
        !matches!(self, Kind::Ai | Kind::Ari)
    }
}

/// A packet or message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Time since 1970.
    pub at: Duration,
    pub kind: Kind,
    pub direction: Direction,
    /// Our address and the peer's.
    pub between: (SocketAddr, SocketAddr),
    pub data: Vec<u8>,
    /// The length before a part was left out.
    pub length: usize,
    /// True if audio and keys are left out in any case: the recording of the call was paused, or
    /// may have been.
    pub is_private: bool,
}

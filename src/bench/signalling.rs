//! How calls are set up and ended, whatever PBX and bridge speak with each other: SIP
//! ([`telephony`]) or ARI ([`stasis`]).
//!
//! [`telephony`]: crate::bench::telephony
//! [`stasis`]: crate::bench::stasis

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// Where a call's audio goes to, and its payload type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audio {
    pub rtp: SocketAddr,
    pub payload_type: u8,
}

/// What has happened to a call. `line`: the RTP socket that it really has, where the bridge's order
/// of doing things decides that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Answered {
        number: u32,
        line: Option<usize>,
        audio: Audio,
    },
    /// Its audio goes elsewhere from now on.
    Moved {
        number: u32,
        audio: Audio,
    },
    /// `code`: the SIP status that refused it, 0 for anything else.
    Ended {
        number: u32,
        line: Option<usize>,
        code: u16,
    },
}

pub trait Signalling: Send {
    /// Readable when there is something to see to.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Calls can come.
    fn is_ready(&self) -> bool;

    fn next_timeout(&self) -> Option<Instant>;

    fn on_timeout(&mut self, now: Instant);

    fn on_readable(&mut self, now: Instant);

    /// Begins call `number`. `rtp`: the socket of `line`. False while there is nobody to call.
    fn dial(&mut self, now: Instant, number: u32, line: usize, rtp: SocketAddr) -> bool;

    fn hang_up(&mut self, now: Instant, number: u32);

    fn told(&mut self) -> Option<Told>;
}

//! The interface for setting up and ending calls, over SIP ([`telephony`]) or ARI ([`stasis`]).
//!
//! [`telephony`]: crate::bench::telephony
//! [`stasis`]: crate::bench::stasis

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// The destination of a call's audio, and its payload type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audio {
    pub rtp: SocketAddr,
    pub payload_type: u8,
}

/// A change to a call. `line` is the RTP socket that the call really uses, if that depends on the
/// order in which the bridge does things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Answered {
        number: u32,
        line: Option<usize>,
        audio: Audio,
    },
    /// The audio has a new destination.
    Moved {
        number: u32,
        audio: Audio,
    },
    /// `code` is the SIP status that refused the call, or 0 for any other end.
    Ended {
        number: u32,
        line: Option<usize>,
        code: u16,
    },
}

pub trait Signalling: Send {
    /// Returns a descriptor that is readable when [`Signalling::on_readable`] has work to do.
    fn fd(&self) -> BorrowedFd<'_>;

    /// True once calls can be dialled.
    fn is_ready(&self) -> bool;

    fn next_timeout(&self) -> Option<Instant>;

    fn on_timeout(&mut self, now: Instant);

    fn on_readable(&mut self, now: Instant);

    /// Starts call `number`. `rtp` is the address of the socket `line`. Returns false if the bridge
    /// cannot be called yet.
    fn dial(&mut self, now: Instant, number: u32, line: usize, rtp: SocketAddr) -> bool;

    fn hang_up(&mut self, now: Instant, number: u32);

    /// Returns the next change to a call.
    fn next_change(&mut self) -> Option<Change>;
}

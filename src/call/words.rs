//! What goes into a call's decisions and what comes out.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::Duration;

use crate::call::end::EndReason;
use crate::call::{Request, Signal};
use crate::media::frame::Samples;
use crate::media::receiver;
use crate::stream::socket::Closed;
use crate::stream::{FromAi, ToAi};

#[derive(Debug)]
pub enum Input<'a> {
    Rtp {
        from: SocketAddr,
        data: &'a [u8],
    },
    /// `unix`: wall clock, for the reports.
    Rtcp {
        data: &'a [u8],
        unix: Duration,
    },
    AiOpen,
    AiFailed,
    Ai(FromAi),
    AiClosed(&'a Closed),
    Signal(Signal),
    /// End it, for a reason of the program's.
    End(EndReason),
    Timeout {
        unix: Duration,
    },
}

#[derive(Debug, PartialEq)]
pub enum Output {
    Request(Request),
    Rtp {
        to: SocketAddr,
        packet: Vec<u8>,
    },
    Rtcp {
        to: SocketAddr,
        packet: Vec<u8>,
    },
    /// `connected` and `start`; so many frames follow at once.
    AiStart {
        burst: usize,
    },
    Ai(ToAi),
    /// The caller's frame number `index`.
    RecordCaller {
        index: u64,
        samples: Samples,
    },
    /// What the caller was played in frame number `index`.
    RecordAi {
        index: u64,
        samples: Samples,
    },
    /// The call is over; nothing follows.
    Ended(EndReason),
}

/// What is told of a call when it is over.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    /// From the answer on.
    pub talk: Duration,
    /// From the INVITE to the answer.
    pub setup: Duration,
    pub answered: bool,
    pub received: receiver::Counts,
    pub packets_sent: u32,
    /// Frames of the time before `start` that were too old to keep.
    pub preroll_dropped: u64,
    pub playout_discarded: u64,
    pub round_trip: Option<Duration>,
}

/// Random numbers that a call starts with.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    pub ssrc: u32,
    pub sequence: u16,
    pub timestamp: u32,
}

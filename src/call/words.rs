//! What goes into a call's decisions and what comes out.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::Duration;

use crate::call::end::EndReason;
use crate::call::{Signal, SourceRequest};
use crate::media::g711::Law;
use crate::media::receiver;
use crate::media::sender::AudioPacket;
use crate::record::RecordCommand;
use crate::record::recording::Tap;
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
    Ai(FromAi<'a>),
    AiClosed(&'a Closed),
    Signal(Signal),
    /// End it, for a reason of the program's.
    End(EndReason),
    Record(RecordCommand),
    Timeout {
        unix: Duration,
    },
}

#[derive(Debug, PartialEq)]
pub enum Output {
    Request(SourceRequest),
    Rtp {
        to: SocketAddr,
        packet: AudioPacket,
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
    /// What a recording, if one is being made, is to hold.
    Tap(Tap),
    /// Begin, pause, go on, close. `index`: the frame that comes next; `law`: the leg's.
    Recording {
        command: RecordCommand,
        index: u64,
        law: Law,
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

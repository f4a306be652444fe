//! The inputs and outputs of a call's decisions.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::Duration;

use crate::call::answering::Verdict;
use crate::call::end::EndReason;
use crate::call::ladder::Rung;
use crate::call::turns::{Turn, TurnLatency};
use crate::call::{Signal, SourceRequest};
use crate::command::{Disposition, Order, RecordCommand, Reply};
use crate::media::frame::{FRAME_TIME, Frame, Samples};
use crate::media::g711::Law;
use crate::media::receiver;
use crate::media::sender::AudioPacket;
use crate::record::recording::Tap;
use crate::stream::closed::Closed;
use crate::stream::{FromAi, ToAi};

/// An event for a call to handle.
#[derive(Debug)]
pub enum Input<'a> {
    Rtp {
        from: SocketAddr,
        data: &'a [u8],
    },
    /// `unix`: wall-clock time, for RTCP reports.
    Rtcp {
        data: &'a [u8],
        unix: Duration,
    },
    /// The AI's WebSocket has opened.
    AiOpen,
    /// The AI could not be reached.
    AiFailed,
    /// The AI is not dialled: this step is taken instead.
    Instead(Rung),
    Ai(FromAi<'a>),
    AiClosed(&'a Closed),
    Signal(Signal),
    /// End the call for a reason outside it, such as shutdown.
    End(EndReason),
    /// The owner's data about the call has arrived.
    Known,
    /// The recording is required, and lacks audio.
    RecordingLost,
    /// An order, with the number under which its replies are given.
    Order {
        number: u32,
        order: Order,
    },
    Timeout {
        unix: Duration,
    },
}

/// An action that a call has decided on.
#[derive(Debug, PartialEq)]
pub enum Output {
    Request(SourceRequest),
    /// The callee's phone rings.
    Ringing,
    /// The caller has been connected.
    Answered,
    /// It is known who has answered.
    AnsweredBy(Verdict),
    Rtp {
        to: SocketAddr,
        packet: AudioPacket,
    },
    /// An RTP packet of a key press.
    KeyPress {
        to: SocketAddr,
        packet: Vec<u8>,
    },
    Rtcp {
        to: SocketAddr,
        packet: Vec<u8>,
    },
    /// An answer to an order.
    Reply {
        order: u32,
        reply: Reply,
    },
    /// The result of the conversation, to be kept with the call.
    Disposition(Disposition),
    /// The caller was put on hold, or is back.
    Held(bool),
    /// The caller is with the target of a transfer.
    Transferred,
    /// Close the AI's stream; the call continues.
    CloseAi,
    /// Dial an AI in place of the one before: its place in the configuration.
    DialAi {
        ai: usize,
        /// It is the same one, which has closed its stream.
        again: Option<DialAgain>,
    },
    /// The AI has sent nothing for this long since the start of its stream: it has failed.
    AiSilent(Duration),
    /// The caller's AI has failed, and this is tried next.
    Step(Rung),
    /// Start the AI's stream. `burst` frames of audio follow at once.
    AiStart {
        burst: usize,
    },
    Ai(ToAi),
    /// Content for the recording, if one is being made.
    Tap(Tap),
    /// Start, pause, resume or stop a recording. `index` is the number of the call's next frame,
    /// `law` the leg's codec.
    Recording {
        command: RecordCommand,
        index: u64,
        law: Law,
    },
    /// The AI has answered something that the caller said.
    Turn(Turn),
    /// Some seconds of the call have passed: its figures can be read.
    Report,
    /// No RTP arrives.
    MissingRtp(MissingRtp),
    /// The call is over. This is the last output.
    /// The AI is gone, and the owner of the call ends it: it takes no place of another call.
    Leaving,
    Ended(EndReason),
}

/// How an AI is dialled again that has closed its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DialAgain {
    /// Try for this long.
    pub limit: Duration,
    /// Begin after this time.
    pub pause: Duration,
}

/// The addresses to look at when RTP is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRtp {
    /// True if RTP has arrived before in this call.
    pub stopped: bool,
    /// The address that the PBX announced for its RTP.
    pub announced: Option<SocketAddr>,
    /// The last address from which RTP was rejected.
    pub rejected: Option<SocketAddr>,
}

/// The figures of an ended call.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    /// Time from the answer to the end.
    pub talk: Duration,
    /// Time from the offer to the answer, or to the end of an unanswered call.
    pub setup: Duration,
    pub answered: bool,
    /// Time from the answer to the first audio of the AI that was sent to the caller.
    pub first_audio: Option<Duration>,
    pub received: receiver::Counts,
    pub packets_sent: u32,
    /// Frames dropped from the pre-roll because it was full.
    pub preroll_dropped: u64,
    /// Bytes of AI audio discarded because the queue or the budget was full.
    pub playout_discarded: u64,
    /// Quiet frames of AI audio left out to work off a standing delay.
    pub playout_left_out: u64,
    /// AI audio that stayed queued throughout the last two seconds of streaming.
    pub playout_floor_bytes: u64,
    pub round_trip: Option<Duration>,
    /// Jitter of the RTP from the PBX.
    pub jitter: Option<Duration>,
    /// `None` if no turn was measured.
    pub turn_latency: Option<TurnLatency>,
}

/// Random start values of a call's RTP stream.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    pub ssrc: u32,
    pub sequence: u16,
    pub timestamp: u32,
}

/// A frame of the caller, for the recording.
pub fn caller_tap(index: u64, frame: &Frame, heard_at: Option<Duration>) -> Tap {
    Tap::Caller { index, law: frame.law, samples: frame.samples, heard_at }
}

/// A frame of the caller, for the AI.
pub fn audio(index: u64, samples: Samples) -> ToAi {
    ToAi::Audio { samples, t_ms: index * FRAME_TIME.as_millis() as u64 }
}

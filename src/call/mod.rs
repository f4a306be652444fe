//! The call: one caller talking to one AI, whatever the source.
//!
//! [`core`] decides (pure; [`words`] are its inputs and outputs): [`hearing`] is the caller's audio
//! on its way to the AI, [`playing`] the audio to the caller, [`limits`] the times that end a
//! call, [`end`] the reasons, [`departure`] what becomes of the caller. [`run`] moves packets on
//! the threads of [`worker`]; [`leg`] and [`ports`] own the RTP sockets. A source (SIP, ARI) hands
//! over an [`Offer`] that [`admission`] let in. [`recordings`] writes a call's audio.
//! [`switchboard`] keeps the live calls.

pub mod admission;
pub mod core;
pub mod counters;
pub mod departure;
pub mod end;
mod hearing;
pub mod leg;
pub mod limits;
mod playing;
pub mod ports;
pub mod recordings;
pub mod run;
pub mod switchboard;
pub mod words;
pub mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::media::playout::Budget;
use crate::media::receiver::Format;
use crate::record::recorder::Recorder;
use crate::record::{RecordCommand, When};
use crate::stream::connect::Target;
use departure::{Departure, DeparturePolicy};
use end::EndReason;
use leg::Leg;

/// The PBX's side of the media, from an accepted SDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteMedia {
    pub rtp: SocketAddr,
    pub rtcp: SocketAddr,
    pub format: Format,
    /// False while the PBX has us on hold.
    pub wants_audio: bool,
    /// False while it has said that no RTP of its own comes.
    pub sends_audio: bool,
    /// It takes RTP, silence, from now on, before the caller is connected.
    pub early: bool,
}

/// What the source tells the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Media(RemoteMedia),
    /// The answer has gone out and audio flows from now on: time 0 of the call.
    Connected,
    /// A key press told by signalling.
    Digit(char),
    /// The PBX does not answer any more: the call ends if its RTP has stopped too.
    PbxLost,
    /// The PBX answers again: calls whose RTP flows again have survived.
    PbxBack,
    /// The PBX says that it has this call.
    PbxConfirms,
    Ended(EndReason),
}

/// What the call tells its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceRequest {
    Answer,
    Ringing,
    /// End the call: the source refuses a caller who was not answered yet.
    End {
        reason: EndReason,
        departure: Departure,
    },
}

/// Sends a call's requests to its source; never waits.
pub type RequestSender = Box<dyn Fn(SourceRequest) + Send + Sync>;

/// A call that wants to be taken.
pub struct Offer {
    /// For the log: short and unique within this process.
    pub id: String,
    pub pbx: Arc<str>,
    pub from_number: String,
    pub to_number: String,
    /// The PBX's own name of the call (SIP Call-ID), and what the Twilio-shaped ids derive from.
    pub native_id: String,
    pub sid_seed: String,
    /// Further `customParameters`.
    pub vars: Vec<(String, String)>,
    pub remote: Option<RemoteMedia>,
    pub leg: Leg,
    pub requests: RequestSender,
    pub signals: mpsc::Receiver<Signal>,
    /// The source can return the caller to the dialplan.
    pub can_continue: bool,
    /// Held while the call lives: admission.
    pub permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerWhen {
    /// When the AI's socket is open; refused when it is not in time.
    AiReady,
    /// At once; what the caller says before the AI is there is kept.
    AtOnce,
}

/// How calls of one PBX are handled.
pub struct CallConfig {
    pub target: Target,
    pub account_sid: String,
    pub parameters: Vec<(String, String)>,
    pub answer: AnswerWhen,
    pub answer_wait: Duration,
    pub ringing: bool,
    /// How long queued audio is still played after an orderly close of the AI's.
    pub drain_on_close: Duration,
    pub departure: DeparturePolicy,
    /// Played when the AI fails in mid-call, mu-law.
    pub prompt: Option<bytes::Bytes>,
    pub max_duration: Duration,
    /// An AI that has said nothing at all for so long after `start` has failed; zero = never.
    pub silent_timeout: Duration,
    /// No RTP for so long ends the call; zero = never.
    pub media_timeout: Duration,
    pub reorder_wait: Duration,
    pub playout_bytes: usize,
    pub playout_budget: Budget,
    /// How a call is recorded; `None`: not at all.
    pub record: Option<RecordPlan>,
    pub recorder: Option<Recorder>,
}

/// What is asked of a call while it is up, by whoever controls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Record(RecordCommand),
}

/// How the calls of one PBX are recorded.
#[derive(Debug, Clone)]
pub struct RecordPlan {
    pub when: When,
    /// Played to the caller when it begins, mu-law; may be empty.
    pub notice: bytes::Bytes,
}

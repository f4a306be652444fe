//! The call: one caller talking to one AI, whatever the source.
//!
//! [`core`] makes all decisions without I/O; [`words`] are its inputs and outputs. It uses
//! [`hearing`] for the caller's audio to the AI, [`playing`] for the audio to the caller,
//! [`limits`] for the times at which a call ends, [`end`] for the end reasons, and [`departure`]
//! for the caller's fate.
//!
//! [`run`] moves the packets, on the threads of [`worker`]; [`leg`] and [`ports`] own the RTP
//! sockets. A source (SIP or ARI) hands over an [`Offer`] once [`admission`] has admitted the call.
//! [`recordings`] records the audio, [`switchboard`] keeps the live calls, and [`live`] shows them.

pub mod admission;
pub mod answering;
pub mod core;
pub mod counters;
pub mod departure;
pub mod dispatch;
pub mod end;
pub mod ended;
pub mod fault_point;
mod hearing;
pub mod history;
pub mod hours;
pub mod ladder;
pub mod leg;
pub mod limits;
pub mod listening;
pub mod live;
pub mod outgoing;
pub mod parameters;
pub mod placing;
mod playing;
pub mod ports;
pub mod recordings;
pub mod routing;
pub mod speech;
pub mod switchboard;
pub mod transfers;
pub mod turns;
pub mod variables;
pub mod vitals;
pub mod words;
pub mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::call::routing::Conditions;
use crate::call::variables::VariableRules;
use crate::capture::tap::Tap;
use crate::command::{Cause, Destination, Digits, Failure, LeadChange, Order, Reply, TransferKind};
use crate::media;
use crate::media::playout::Budget;
use crate::media::receiver::Format;
use crate::record::When;
use crate::record::recorder::Recorder;
use crate::stream::ToolCall;
use crate::stream::breaker::Breaker;
use crate::stream::connect::Target;
use crate::stream::create::Create;
use crate::stream::dialect::Extensions;
use crate::stream::prewarm::Prewarmed;
use admission::Permit;
use departure::{Departure, DeparturePolicy};
use end::EndReason;
use ladder::Rung;
use leg::Leg;
use outgoing::Outgoing;
use speech::SpeechSettings;
use transfers::TransferRules;

/// The PBX's side of the media, as agreed during signalling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteMedia {
    pub rtp: SocketAddr,
    pub rtcp: SocketAddr,
    pub format: Format,
    /// False while the PBX has us on hold.
    pub wants_audio: bool,
    /// False while the PBX has announced that it sends no RTP.
    pub sends_audio: bool,
    /// True if we send RTP, with silence, even before the caller is connected.
    pub early: bool,
    /// True if RTP may be sent before the PBX has acknowledged the answer. Elsewhere it may not,
    /// because an INVITE with a forged source address could direct it at anyone.
    pub trusted: bool,
}

impl RemoteMedia {
    /// True while the PBX sends or wants no audio.
    pub fn is_on_hold(&self) -> bool {
        !self.wants_audio || !self.sends_audio
    }
}

/// An event that the source reports to the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The outcome of an order that the call passed on.
    Replied {
        order: u32,
        result: Result<(), Failure>,
    },
    /// The state of such an order: `command::RINGING` or `command::ANSWERED`.
    Progress {
        order: u32,
        state: &'static str,
    },
    Media(RemoteMedia),
    /// The answer has been sent, and the PBX has yet to acknowledge it. This is time 0 of the call.
    Answered,
    /// The caller is connected, and audio flows from now on. This is time 0 of the call, unless
    /// `Answered` was.
    Connected,
    /// A key press that arrived by signalling, not by RTP.
    Digit(char),
    /// The PBX has stopped responding. The call ends if its RTP has stopped too. `gone`: it has
    /// proved that it is not there, so this is not a pause of the network.
    PbxLost {
        gone: bool,
    },
    /// The PBX responds again. The call has survived if its RTP flows again.
    PbxBack,
    /// The PBX has confirmed that the call still exists.
    PbxConfirms,
    /// The Q.850 cause of a hangup that follows, as the PBX gives it.
    HangupCause(u16),
    /// The owner has not taken the caller of a call that was not answered.
    NotTaken,
    /// The callee's phone rings.
    Ringing,
    /// The callee has not answered a call that we placed. `code`: the SIP status or the Q.850
    /// cause.
    Unanswered {
        reason: EndReason,
        code: Option<u16>,
    },
    Ended(EndReason),
}

/// A request from the call to its source. The outcome of one with the number of an order is
/// reported as [`Signal::Replied`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceRequest {
    /// Answer the caller, or call the callee of a call that we place.
    Answer,
    Ringing,
    /// End the call. If it was not answered yet, the source refuses it.
    End {
        reason: EndReason,
        departure: Departure,
    },
    /// Hang up, or refuse the call if it was not answered yet, for this cause.
    HangUp {
        reason: EndReason,
        cause: Cause,
    },
    /// Put the caller on hold, or take the caller off hold.
    Hold {
        order: u32,
        on: bool,
    },
    /// Press keys towards the caller.
    Digits {
        order: u32,
        digits: Digits,
    },
    /// Transfer the caller. `plain`: the caller is sent off at once, and does not come back if that
    /// fails.
    Transfer {
        order: u32,
        destination: Destination,
        kind: TransferKind,
        timeout: Duration,
        plain: bool,
        /// The status of the call's disposition, if the transfer succeeds. Only an owner needs it.
        status: Option<String>,
    },
    /// Join the caller and the target of an attended transfer.
    CompleteTransfer,
    /// Give up a transfer.
    CancelTransfer,
    /// The result of the conversation. Only an owner needs it.
    Disposition(String),
    /// The caller has said something, or pressed a key. Only an owner needs it.
    Spoken,
    /// Change what the owner knows of the customer.
    Lead {
        order: u32,
        change: LeadChange,
    },
    /// Set variables of the caller's channel: names and values.
    SetVariables {
        order: u32,
        variables: Vec<(String, String)>,
    },
    /// Copy the signalling of the call to a packet capture.
    Capture(Tap),
}

/// An order from outside the call, and the receiver of its replies.
#[derive(Debug)]
pub struct OrderRequest {
    pub order: Order,
    pub replies: mpsc::UnboundedSender<Reply>,
}

/// A request to a call from outside.
#[derive(Debug)]
pub enum CallRequest {
    Order(OrderRequest),
    /// Copy what passes to a packet capture.
    Capture(Tap),
    /// Pass the call's audio to a listener, until it goes away.
    Listen(listening::Listener),
}

/// The prompts of the configuration, mu-law, by name.
pub type Prompts = Arc<BTreeMap<String, bytes::Bytes>>;

/// Sends a call's requests to its source. Never blocks.
pub type RequestSender = Box<dyn Fn(SourceRequest) + Send + Sync>;

/// A new call from a source, ready to be started.
pub struct Offer {
    /// Id for the log, short and unique within this process.
    pub id: String,
    pub pbx: Arc<str>,
    pub from_number: String,
    /// Empty if the PBX gives none.
    pub from_name: String,
    pub to_number: String,
    /// The PBX's own id of the call, such as the SIP Call-ID.
    pub native_id: String,
    /// The Twilio-shaped ids (`CA…`, `MZ…`) are derived from this.
    pub sid_seed: String,
    /// More `customParameters`.
    pub added: parameters::Added,
    /// The header fields of the INVITE, for routes; none in ARI mode.
    pub headers: Vec<(String, String)>,
    pub remote: Option<RemoteMedia>,
    pub leg: Leg,
    pub requests: RequestSender,
    pub signals: mpsc::Receiver<Signal>,
    /// True if the source can return the caller to the dialplan.
    pub can_continue: bool,
    /// Counts the call towards `[calls] max` for as long as it exists.
    pub permit: Permit,
    /// The link to the call's owner, if it has one.
    pub owned: Option<Owned>,
    /// Why the call may not go to its AI, if so: the caller goes down the ladder.
    pub refused: Option<EndReason>,
    /// Set if we place the call: the other party is the callee.
    pub outgoing: Option<Outgoing>,
}

/// The link of a call to its owner.
pub struct Owned {
    /// Further `customParameters`, as they become known. Closed when there are no more.
    pub known: mpsc::Receiver<Vec<(String, String)>>,
    /// The AI's stream waits for them for this long after the offer.
    pub wait: Duration,
    /// Maximum length of the status of a disposition, in bytes.
    pub max_status: usize,
}

/// A system beside a PBX that decides over its calls, such as a dialler. It knows more of a call
/// than the PBX does, and ends calls and takes callers elsewhere by its own means.
pub trait Owner: Send + Sync {
    /// Takes part in a call that is its own: adds to it what is known, and carries out the requests
    /// that end it or take the caller elsewhere in place of the source.
    fn adopt(&self, offer: Offer) -> Offer;

    /// Returns a function that is true for the names of its own callers.
    fn owns(&self) -> fn(&str) -> bool;

    /// Takes away a caller for whom no call can be started and who has not been answered. `name`:
    /// the caller's name. Returns false if the call is not its own. `left` is called once the
    /// caller should be gone, or is not taken away.
    fn take_away(&self, name: &str, left: Box<dyn FnOnce() + Send>) -> bool;
}

/// When a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerWhen {
    /// Once the AI's WebSocket is open. If it does not open in time, the call is refused.
    AiReady,
    /// At once. Audio from before the AI is connected is kept for it.
    AtOnce,
}

/// Has a tool called by its user's server. Returns its output, or why there is none.
pub type ToolServer = Arc<dyn Fn(ToolRequest) -> ToolOutput + Send + Sync>;
pub type ToolOutput = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// A tool that the AI of a call has called.
#[derive(Debug, Clone)]
pub struct ToolRequest {
    pub call_sid: String,
    pub tool: ToolCall,
    /// The parameters of the call's stream: names and values.
    pub parameters: Vec<(String, String)>,
}

/// One AI.
#[derive(Clone)]
pub struct Ai {
    /// Its name in the configuration; empty for the one of `[ai]`.
    pub name: String,
    pub target: Target,
    /// The request before its socket, if there is one.
    pub create: Option<Arc<Create>>,
    /// Shared by all PBXs that use this AI.
    pub breaker: Arc<Breaker>,
    /// Open connections to it, if some are kept. Those of an earlier configuration are gone.
    pub prewarmed: Weak<Prewarmed>,
    pub extensions: Extensions,
    pub account_sid: String,
    pub parameters: Vec<(String, String)>,
    /// It has failed if it has sent nothing at all this long after `start`; zero = never.
    pub silent_timeout: Duration,
    /// It is sent a ping after this long without data from it; zero = never.
    pub ping: Duration,
    /// Calls the tools of a model's user; without it they are refused.
    pub tools: Option<ToolServer>,
}

/// Settings for the calls of one PBX, or for those of them to which a route applies.
#[derive(Clone)]
pub struct CallConfig {
    /// The AIs: first the one for all calls, then those of routes and ladders.
    pub ais: Arc<[Ai]>,
    /// The AI that is dialled first: its place in `ais`.
    pub first: usize,
    /// The name of the route that these settings belong to.
    pub route: Option<Arc<str>>,
    /// The routes of the PBX's calls, in their order.
    pub routes: Vec<dispatch::RouteCalls>,
    /// The steps to try when the AI fails.
    pub ladder: Arc<[Rung]>,
    /// Dial an AI again that has closed its stream cleanly.
    pub reconnect: bool,
    pub answer: AnswerWhen,
    pub answer_wait: Duration,
    pub ringing: bool,
    /// How long queued audio is still played after the AI has closed its stream cleanly.
    pub drain_on_close: Duration,
    pub departure: DeparturePolicy,
    /// The owner of the calls.
    pub owner: Option<Arc<dyn Owner>>,
    /// Where callers may be transferred to.
    pub transfers: TransferRules,
    /// Channel variables that may be set.
    pub variables: VariableRules,
    /// Prompts that orders may play, by name.
    pub prompts: Prompts,
    pub max_duration: Duration,
    /// The call ends after this long without RTP; zero = never.
    pub media_timeout: Duration,
    pub media: media::Settings,
    pub playout_bytes: usize,
    pub playout_budget: Budget,
    /// `None` if calls are not recorded.
    pub record: Option<RecordPlan>,
    pub recorder: Option<Recorder>,
    /// Measure the turn latency.
    pub turn_latency: bool,
    /// The uses of the caller's voice.
    pub speech: SpeechSettings,
}

/// How long the queued audio of a model still plays after it has closed its stream, unless another
/// time is configured: it sends ahead of time, and closes when it has said goodbye.
const MODEL_DRAIN: Duration = Duration::from_secs(10);

impl CallConfig {
    /// How long the queued audio of an AI still plays after it has closed its stream.
    pub fn drain(&self, ai: usize) -> Duration {
        let is_model = self.ais.get(ai).is_some_and(|ai| ai.target.dialect.has_session());
        match self.drain_on_close {
            Duration::ZERO if is_model => MODEL_DRAIN,
            drain => drain,
        }
    }

    /// The breakers of all AIs that a caller may be connected with.
    pub fn breakers(&self) -> Vec<Arc<Breaker>> {
        let mut all = Vec::new();
        for route in &self.routes {
            all.extend(route.choices.iter().flat_map(|choice| choice.config.breakers()));
            if *route.conditions == Conditions::default() {
                return all; // it takes all calls that come so far
            }
        }
        let others = self.ladder.iter().filter_map(|rung| match rung {
            Rung::Ai(place) | Rung::Next(place) => Some(*place),
            _ => None,
        });
        let places = std::iter::once(self.first).chain(others);
        all.extend(places.filter_map(|place| Some(self.ais.get(place)?.breaker.clone())));
        all
    }

    /// True if a further AI of the route follows the first one.
    pub fn has_next_ai(&self) -> bool {
        matches!(self.ladder.first(), Some(Rung::Next(_)))
    }
}

/// How the calls of one PBX are recorded.
#[derive(Debug, Clone)]
pub struct RecordPlan {
    pub when: When,
    /// Mu-law audio, played to the caller when a recording starts. May be empty.
    pub notice: bytes::Bytes,
}

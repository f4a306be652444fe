//! The agent's inputs and outputs: configuration, messages, commands and events.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::sip::flow::{Flow, Transport};
use crate::sip::network::Network;
use crate::sip::registration::{Settings, Status};
use crate::sip::sdp::{Direction, Remote};
use crate::user_pattern::UserPattern;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey(pub u64);

/// Index of a PBX in the agent's list of accounts.
pub type AccountId = usize;

/// The settings of one PBX.
#[derive(Debug, Clone)]
pub struct AccountConfig {
    pub name: String,
    /// The user to which calls are addressed, also the user of our Contact.
    pub username: String,
    /// Further users to which calls may be addressed. A trunk without any takes calls to all.
    pub users: Vec<UserPattern>,
    /// Further addresses from which calls are accepted.
    pub ranges: Vec<Network>,
    /// `None` for a trunk: the PBX calls us without registration.
    pub registration: Option<Settings>,
    /// Interval of OPTIONS to the peers of a trunk; zero sends none.
    pub keepalive: Duration,
    pub transport: Transport,
    /// Our address in Via, Contact and SDP; by default the local one on the route to the PBX.
    pub advertised: Option<IpAddr>,
    /// Networks to which RTP may be sent; if empty, there is no such restriction.
    pub media_peers: Vec<Network>,
    pub ai_down: AiDown,
}

/// The PBX's view of us while no AI can be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AiDown {
    /// Nothing: calls still arrive, and the ladder serves them.
    #[default]
    Stay,
    /// Its OPTIONS are answered 503.
    RefuseOptions,
    /// The registration is removed.
    Unregister,
}

pub struct AgentConfig {
    pub accounts: Vec<AccountConfig>,
    /// Port of our UDP and TCP sockets.
    pub listen_port: u16,
    pub max_calls: usize,
    /// Maximum number of calls whose 200 has not been acknowledged. With more, 503 is sent in place
    /// of a 200: INVITEs without an ACK may have a forged source address.
    pub max_unacknowledged: usize,
}

/// An address of a PBX and our own address on the route to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub remote: SocketAddr,
    pub local: IpAddr,
}

/// The addresses of one PBX.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Where REGISTER may be sent, in order of preference; empty for a trunk.
    pub registrar: Result<Vec<Route>, String>,
    /// Further addresses from which calls are accepted.
    pub peers: Vec<Route>,
}

#[derive(Debug)]
pub enum Input<'a> {
    /// One message from the network.
    Message {
        flow: Flow,
        data: &'a [u8],
    },
    /// The head of a message after which a stream could not be split into messages any more. The
    /// stream is closed after the response.
    Broken {
        flow: Flow,
        head: &'a [u8],
        why: &'static str,
    },
    /// The result of [`Output::Resolve`].
    Resolved {
        account: AccountId,
        routes: Routes,
    },
    /// ICMP port unreachable, or a TCP connection that could not be made or was closed.
    Unreachable {
        remote: SocketAddr,
        /// False if a TCP connection timed out, which may be due to a pause of the network.
        gone: bool,
    },
    Timeout,
    Command(Command),
}

/// The reason in [`CallEnd::Refused`] if our INVITE was not answered at all.
pub const NO_RESPONSE: &str = "no answer to the INVITE";

/// The reason that a call ended, as far as it is known from the signalling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallEnd {
    /// BYE from the PBX, with the Q.850 cause if it is given (RFC 3326 or Asterisk's own header).
    Bye { cause: Option<u16> },
    /// CANCEL before we answered.
    Cancelled,
    /// Our 200 was never acknowledged.
    NoAck,
    /// The session timer ran out (RFC 4028).
    SessionExpired,
    /// Our session refresh was answered 481 or not at all: the PBX no longer knows the call.
    Lost,
    /// The SDP in the ACK, or in the 2xx to our INVITE, could not be used.
    BadAnswer,
    /// Too many calls were not acknowledged.
    Overload,
    /// We rejected the call, or sent a BYE that was answered or timed out.
    HungUp,
    /// Our INVITE was refused with this status.
    Refused { code: u16, reason: String },
}

#[derive(Debug)]
pub enum Event {
    Invite(Box<Invite>),
    /// The ACK of our 2xx arrived.
    Acked {
        call: CallKey,
    },
    /// The peer's side of the media changed, or became known after a late offer.
    Media {
        call: CallKey,
        remote: Remote,
    },
    /// A DTMF digit, received by SIP INFO.
    Digit {
        call: CallKey,
        digit: char,
    },
    /// The answer to [`Command::Direction`].
    Directed {
        call: CallKey,
        accepted: bool,
    },
    /// The answer to [`Command::Info`].
    InfoAnswered {
        call: CallKey,
        accepted: bool,
    },
    /// The peer carries out [`Command::Refer`]. May be sent several times.
    ReferAccepted {
        call: CallKey,
    },
    /// The outcome of [`Command::Refer`], as a status.
    Referred {
        call: CallKey,
        code: u16,
    },
    /// A provisional response to our INVITE, other than 100.
    Progress {
        call: CallKey,
        code: u16,
    },
    /// Our INVITE was answered.
    Answered {
        call: CallKey,
        remote: Remote,
    },
    /// A request was refused or dropped: no call begins, or the call that it belongs to continues
    /// unchanged. Calls that are refused by [`Command::Reject`] are not reported.
    Refused(Box<Refused>),
    /// Data from a PBX that is not a SIP message was dropped.
    Unreadable {
        source: SocketAddr,
        why: &'static str,
    },
    /// The call ended; this is its last event.
    Ended {
        call: CallKey,
        end: CallEnd,
    },
    /// `remote`: the address that REGISTER was sent to, if it is known.
    Registration {
        account: AccountId,
        remote: Option<SocketAddr>,
        status: Status,
    },
    /// The registrar sees us at another address than that of our contact.
    AddressDiffers {
        account: AccountId,
        ours: IpAddr,
        seen: IpAddr,
    },
    /// REGISTER is sent to this address from now on.
    Registrar {
        account: AccountId,
        remote: SocketAddr,
    },
    /// A peer of a trunk no longer answers OPTIONS, or does so again.
    Peer {
        account: AccountId,
        remote: SocketAddr,
        answers: bool,
    },
    /// All registrations have stopped, after [`Command::Shutdown`].
    Unregistered,
}

/// An incoming call.
#[derive(Debug, Clone)]
pub struct Invite {
    pub call: CallKey,
    pub account: AccountId,
    pub sip_call_id: String,
    pub from_tag: String,
    /// The caller's number, from P-Asserted-Identity, Remote-Party-ID or From.
    pub from_user: String,
    /// The caller's name, from one of them with the same number.
    pub from_name: Option<String>,
    /// The user of the Request-URI.
    pub to_user: String,
    /// The privacy that the caller has asked for, from Privacy (RFC 3323) or Remote-Party-ID.
    pub privacy: Option<String>,
    /// All header fields except those with credentials. Names are as received, or the full forms
    /// of compact ones.
    pub headers: Vec<(String, String)>,
    /// The peer's side of the media; `None` if the INVITE has no SDP and we make the offer.
    pub remote: Option<Remote>,
    /// Our address for the SDP.
    pub local_ip: IpAddr,
    /// Source address of the INVITE.
    pub signalling: IpAddr,
}

/// A request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `None` if the method is unknown.
    pub method: Option<&'static str>,
    /// Status of the response; `None` if there was none: the request is too malformed, or an ACK.
    pub code: Option<u16>,
    pub why: String,
    pub source: SocketAddr,
    pub sip_call_id: String,
    pub from_number: String,
}

/// An outgoing call.
#[derive(Debug, Clone)]
pub struct Dial {
    pub call: CallKey,
    pub flow: Flow,
    pub uri: String,
    /// Our address for Via, Contact and From.
    pub local_ip: IpAddr,
    pub user: String,
    pub password: Option<secrecy::SecretString>,
    pub rtp: SocketAddr,
    pub headers: Vec<(String, String)>,
    /// Codecs to offer, in order of preference.
    pub codecs: Vec<crate::sip::sdp::Codec>,
}

/// A call that is placed through a PBX.
#[derive(Debug, Clone)]
pub struct Place {
    pub account: AccountId,
    pub call: CallKey,
    /// From [`Agent::new_call_id`](crate::sip::agent::Agent::new_call_id).
    pub call_id: String,
    /// The number to call, and the one that the callee is to see.
    pub to: String,
    pub from: String,
    pub rtp: SocketAddr,
}

#[derive(Debug)]
pub enum Command {
    Answer {
        call: CallKey,
        rtp: SocketAddr,
    },
    Ringing {
        call: CallKey,
    },
    Reject {
        call: CallKey,
        code: u16,
        reason: &'static str,
        retry_after_s: Option<u32>,
    },
    /// Refuses the call, and names another user of the PBX for it.
    Redirect {
        call: CallKey,
        user: String,
    },
    /// Ends the call in any state, by a rejection, a CANCEL or a BYE with a Reason.
    Hangup {
        call: CallKey,
        q850: u16,
        text: &'static str,
    },
    Dial(Box<Dial>),
    Place(Box<Place>),
    /// Holds or resumes a call. The answer is [`Event::Directed`].
    Direction {
        call: CallKey,
        direction: Direction,
    },
    /// Sends a DTMF digit by SIP INFO. The answer is [`Event::InfoAnswered`].
    Info {
        call: CallKey,
        digit: char,
    },
    /// Begins the second call of a transfer: `call` is its key.
    Consult {
        of: CallKey,
        call: CallKey,
        user: String,
    },
    /// Asks the PBX to connect the peer of a call with `user`, or with the peer of `replaces`. The
    /// answer is [`Event::Referred`].
    Refer {
        call: CallKey,
        user: String,
        replaces: Option<CallKey>,
    },
    /// No AI can be reached for the calls of this PBX, or one can again.
    AiDown {
        account: AccountId,
        down: bool,
    },
    /// Adds a PBX. Its id is the number of accounts so far.
    Add(Box<AccountConfig>),
    /// Takes other settings of a PBX that keeps its registrar, user, transport and own address.
    Change {
        account: AccountId,
        config: Box<AccountConfig>,
    },
    /// Removes a PBX: it is unregistered and sends no new calls; those that it has continue.
    Retire {
        account: AccountId,
    },
    /// See [`AgentConfig`].
    Limits {
        max_calls: usize,
        max_unacknowledged: usize,
    },
    /// Removes all registrations, and answers OPTIONS with 503.
    Shutdown,
}

#[derive(Debug)]
pub enum Output {
    Send {
        flow: Flow,
        data: Vec<u8>,
    },
    /// Resolve the account's hosts and return the result as [`Input::Resolved`].
    Resolve {
        account: AccountId,
    },
    Event(Event),
}

/// Counters of dropped and refused messages, for the log and the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages and connections from addresses that belong to no PBX.
    pub strangers: u64,
    /// Data that is not a SIP message, and malformed responses.
    pub unreadable: u64,
    /// Responses that match no client transaction.
    pub stray_responses: u64,
    /// Messages that arrived again.
    pub retransmissions: u64,
}

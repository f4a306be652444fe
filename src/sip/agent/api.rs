//! What goes into the agent and what comes out.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use crate::sip::flow::{Flow, Transport};
use crate::sip::network::Network;
use crate::sip::registration::{Settings, Status};
use crate::sip::sdp::{Direction, Remote};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey(pub u64);

/// Index of a PBX in the agent's list of accounts.
pub type AccountId = usize;

/// One PBX.
#[derive(Clone)]
pub struct AccountConfig {
    pub name: String,
    /// The user that calls are for, and our Contact's user.
    pub username: String,
    /// `None`: the PBX calls us over a trunk, without registration; then any user is ours.
    pub registration: Option<Settings>,
    pub transport: Transport,
    /// The address that Contact and SDP name; default: the local one on the route to the PBX.
    pub advertised: Option<IpAddr>,
    /// Where RTP may go to, when not everywhere that an SDP says.
    pub media_peers: Vec<Network>,
}

pub struct AgentConfig {
    pub accounts: Vec<AccountConfig>,
    /// Port of our UDP and TCP sockets.
    pub listen_port: u16,
    pub max_calls: usize,
}

/// An address of the PBX and our own address on the route to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub remote: SocketAddr,
    pub local: IpAddr,
}

#[derive(Debug)]
pub enum Input<'a> {
    /// One message from the network.
    Message {
        flow: Flow,
        data: &'a [u8],
    },
    /// The answer to [`Output::Resolve`]: the registrar's (or peers') addresses.
    Resolved {
        account: AccountId,
        routes: Result<Vec<Route>, String>,
    },
    /// ICMP port unreachable, or a TCP connection that could not be made or has closed.
    Unreachable {
        remote: SocketAddr,
    },
    Timeout,
    Command(Command),
}

/// Why a call ended, as far as the signalling knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallEnd {
    /// BYE from the PBX; Q.850 cause where it was told (RFC 3326, or Asterisk's own header).
    Bye { cause: Option<u16> },
    /// CANCEL before we answered.
    Cancelled,
    /// Our 200 was never acknowledged.
    NoAck,
    /// The session timer ran out (RFC 4028).
    SessionExpired,
    /// The PBX answers 481 or not at all: it has forgotten the call.
    Lost,
    /// The SDP in the ACK could not be used.
    BadAnswer,
    /// Our BYE has been answered.
    HungUp,
    /// Our INVITE was refused with this status.
    Refused { code: u16, reason: String },
}

#[derive(Debug)]
pub enum Event {
    Invite(Box<Invite>),
    Acked {
        call: CallKey,
    },
    /// The peer's side of the media has changed (or is known, after a late offer).
    Media {
        call: CallKey,
        remote: Remote,
    },
    /// A key pressed, by SIP INFO.
    Digit {
        call: CallKey,
        digit: char,
    },
    /// 180 or 183 to our INVITE.
    Progress {
        call: CallKey,
        code: u16,
    },
    /// Our INVITE was answered.
    Answered {
        call: CallKey,
        remote: Remote,
    },
    /// The call is over; nothing follows.
    Ended {
        call: CallKey,
        end: CallEnd,
    },
    Registration {
        account: AccountId,
        status: Status,
    },
    /// All registrations are given back, after [`Command::Shutdown`].
    Unregistered,
}

/// A call that wants to be answered.
#[derive(Debug, Clone)]
pub struct Invite {
    pub call: CallKey,
    pub account: AccountId,
    pub sip_call_id: String,
    pub from_tag: String,
    /// The caller's number and name, from P-Asserted-Identity, Remote-Party-ID or From.
    pub from_user: String,
    pub from_name: Option<String>,
    /// The user of the Request-URI.
    pub to_user: String,
    /// X- headers, names as received.
    pub x_headers: Vec<(String, String)>,
    /// `None`: the offer is ours to make.
    pub remote: Option<Remote>,
    /// Our address for the SDP.
    pub local_ip: IpAddr,
    /// Where the INVITE came from.
    pub signalling: IpAddr,
}

/// A call that we make.
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
    /// Codecs offered.
    pub codecs: Vec<crate::sip::sdp::Codec>,
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
    /// Ends the call whatever its state: refusal, CANCEL or BYE with a Reason.
    Hangup {
        call: CallKey,
        q850: u16,
        text: &'static str,
    },
    Dial(Box<Dial>),
    /// Holds or resumes a call.
    Direction {
        call: CallKey,
        direction: Direction,
    },
    /// Sends a key by SIP INFO.
    Info {
        call: CallKey,
        digit: char,
    },
    /// No new calls; give all registrations back.
    Shutdown,
}

#[derive(Debug)]
pub enum Output {
    Send {
        flow: Flow,
        data: Vec<u8>,
    },
    /// Look the account's host up and answer with [`Input::Resolved`].
    Resolve {
        account: AccountId,
    },
    Event(Event),
}

/// What was dropped or refused, for the log and the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// From an address that is no PBX of ours.
    pub strangers: u64,
    /// Not a SIP message.
    pub unreadable: u64,
    /// Requests answered 4xx or 5xx for what they are.
    pub refused_requests: u64,
    /// Responses that belong to nothing of ours.
    pub stray_responses: u64,
    /// Requests answered 503 because too much is open.
    pub overload: u64,
    pub retransmissions: u64,
}

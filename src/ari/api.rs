//! The inputs and outputs of [`crate::ari::application::Application`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use crate::ari::bridging::transfer::TransferWish;
use crate::ari::bridging::words::{After, Tell};
use crate::ari::event::{Channel, Event};
use crate::ari::request::{Outcome, RestRequest};
use crate::ari::sweep::Orphans;

/// Identifies a call within one application.
pub type CallKey = u64;
/// Pairs a REST request with its outcome.
pub type RequestId = u64;

/// Generates an application's ids. Each is [`Ids::seconds`] followed by a number, so that ids are
/// unique across restarts.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    /// Unix time when the process started.
    pub seconds: u64,
    /// A random start value for the number.
    pub seed: u64,
}

impl Ids {
    pub fn id(&self, n: u64) -> String {
        format!("{}-{:010x}", self.seconds, self.seed.wrapping_add(n) & 0xff_ffff_ffff)
    }
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub app: String,
    pub format: &'static str,
    /// The most external media channels that may exist at once.
    pub max_media: usize,
    /// Channel variables to read for each call.
    pub variables: Vec<String>,
    pub ids: Ids,
    /// True for the name of a caller whom the owner of the PBX's calls takes elsewhere, after a
    /// crash of trunkless.
    pub is_owned: Option<fn(&str) -> bool>,
}

#[derive(Debug)]
pub enum Input {
    /// The events socket is open; the PBX has this address.
    Connected(IpAddr),
    Disconnected,
    Event(Event),
    Outcome(RequestId, Outcome),
    /// An offer was accepted; our RTP socket has this address.
    Accept(CallKey, SocketAddr),
    Answer(CallKey),
    Ring(CallKey),
    /// A call is over, or an offer was refused.
    End(CallKey, After),
    /// An order of the call.
    Order {
        call: CallKey,
        order: u32,
        wish: Wish,
    },
    /// A transfer of the call.
    Transfer {
        call: CallKey,
        order: u32,
        wish: TransferWish,
    },
    CompleteTransfer(CallKey),
    CancelTransfer(CallKey),
    /// Take no more calls.
    Stop,
    /// Take calls again after [`Input::Stop`].
    Resume,
    /// Use these for new calls: the most external media channels, and the channel variables.
    Change {
        max_media: usize,
        variables: Vec<String>,
    },
    /// The events socket is closed for good: clean up what is left.
    Close,
    Timeout,
}

/// The part of an order that the PBX carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Music on hold for the caller, or its end.
    Hold(bool),
    /// Keys, with `w` for a pause.
    Digits(String),
    /// Channel variables: names and values.
    Variables(Vec<(String, String)>),
}

/// A caller that the dialplan sent into our application.
#[derive(Debug, PartialEq)]
pub struct NewCall {
    pub call: CallKey,
    /// Unique; part of the ids of our channel and bridge.
    pub id: String,
    pub channel: Channel,
    pub args: Vec<String>,
    /// The values of [`Settings::variables`]; empty if not set.
    pub variables: Vec<(String, String)>,
}

/// Why no call begins for a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// [`Input::Stop`] came before.
    Stopping,
    /// There are as many external media channels as there may be.
    Full,
}

#[derive(Debug, PartialEq)]
pub enum Output {
    Send(RequestId, RestRequest),
    Offer(Box<NewCall>),
    /// No call begins for the caller on this channel: decide with [`Input::End`] where the caller
    /// goes.
    Refused(CallKey, NotTaken, Box<Channel>),
    Tell(CallKey, Tell),
    /// None of the call's objects are left.
    Finished(CallKey),
    Orphans(Orphans),
    /// A request was refused for lack of permission (401 or 403).
    Failed(&'static str, Outcome),
    /// Another client took over the application.
    Replaced,
}

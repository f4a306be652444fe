//! What goes into [`crate::ari::application::Application`] and what comes out.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use crate::ari::bridging::words::{After, Tell};
use crate::ari::event::{Channel, Event};
use crate::ari::request::{Outcome, RestRequest};
use crate::ari::sweep::Orphans;

/// A call, within one application.
pub type CallKey = u64;
/// A request that an outcome will come for.
pub type RequestId = u64;

/// Where an application's ids come from: `ID` is [`Ids::seconds`] and a number, so that
/// they are unique across restarts.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    pub seconds: u64,
    /// Random.
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
    /// External media channels at the same time.
    pub max_media: usize,
    /// Channel variables that each call is asked for.
    pub variables: Vec<String>,
    pub ids: Ids,
}

#[derive(Debug)]
pub enum Input {
    /// The events socket is open, to the PBX at this address.
    Connected(IpAddr),
    Disconnected,
    Event(Event),
    Outcome(RequestId, Outcome),
    /// An offer is taken; our RTP socket is there.
    Accept(CallKey, SocketAddr),
    Answer(CallKey),
    Ring(CallKey),
    /// A call is over, or an offer is not taken.
    End(CallKey, After),
    /// No more calls.
    Stop,
    /// The events socket is closed, and stays so: what is left is cleared up.
    Close,
    Timeout,
}

/// A caller that the dialplan has sent to us.
#[derive(Debug, PartialEq)]
pub struct NewCall {
    pub call: CallKey,
    /// Unique; part of the names of our objects.
    pub id: String,
    pub channel: Channel,
    pub args: Vec<String>,
    /// The chosen variables that it has.
    pub variables: Vec<(String, String)>,
}

#[derive(Debug, PartialEq)]
pub enum Output {
    Send(RequestId, RestRequest),
    Offer(Box<NewCall>),
    /// A caller that goes on in the dialplan at once.
    Refused(&'static str),
    Tell(CallKey, Tell),
    /// Nothing of the call is left.
    Finished(CallKey),
    Orphans(Orphans),
    /// A request that should have worked.
    Failed(&'static str, Outcome),
    /// Another client has taken the application.
    Replaced,
}
